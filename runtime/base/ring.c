/* Single-producer, single-consumer ring with acquire/release counters; see ring.h. */
#include "runtime/base/ring.h"

#include "runtime/base/mem.h"

#include <string.h>

enum status ring_init(struct ring *ring, uint32_t records, size_t record_bytes)
{
    if (!records || records > 1u << 24 || !record_bytes) return ST_INVAL;
    uint32_t rounded = 1;
    while (rounded < records) rounded *= 2;
    memset(ring, 0, sizeof *ring);
    ring->records = mem_alloc(rounded, record_bytes);
    if (!ring->records) return ST_NOMEM;
    ring->record_bytes = record_bytes;
    ring->mask = rounded - 1;
    return ST_OK;
}

void ring_free(struct ring *ring)
{
    mem_free(ring->records);
    ring->records = NULL;
}

bool ring_push(struct ring *ring, const void *record)
{
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    if (head - atomic_load_explicit(&ring->tail, memory_order_acquire) > ring->mask) return false;
    memcpy(ring->records + (size_t)(head & ring->mask) * ring->record_bytes, record, ring->record_bytes);
    atomic_store_explicit(&ring->head, head + 1, memory_order_release);
    return true;
}

bool ring_pop(struct ring *ring, void *record)
{
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    if (atomic_load_explicit(&ring->head, memory_order_acquire) == tail) return false;
    memcpy(record, ring->records + (size_t)(tail & ring->mask) * ring->record_bytes, ring->record_bytes);
    atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
    return true;
}

uint32_t ring_count(const struct ring *ring)
{
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    return atomic_load_explicit(&ring->head, memory_order_acquire) - tail;
}

uint32_t ring_room(const struct ring *ring)
{
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    return ring->mask + 1 - (head - atomic_load_explicit(&ring->tail, memory_order_acquire));
}
