/* A bounded ring of fixed-size records between exactly two threads: one pushes, one pops. Neither ever waits.
 *
 *        tail (popper)            head (pusher)
 *          v                        v
 *   [ . . | r | r | r | r | r | r | . . . ]      head - tail = records inside; both count up for ever
 *
 * A full ring returns false: the pusher decides what "full" means for it (each ring's owner says so). The record count
 * is a power of two. Head and tail are on cache lines of their own. */
#ifndef RUNTIME_BASE_RING_H
#define RUNTIME_BASE_RING_H

#include "runtime/base/status.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ring {
    uint8_t *records;
    size_t record_bytes;
    uint32_t mask; /* records - 1 */
    _Alignas(64) _Atomic uint32_t head;
    _Alignas(64) _Atomic uint32_t tail;
};

/* Room for at least `records` (rounded up to a power of two). ST_NOMEM, ST_INVAL (0 or above 2^24 records). */
NODISCARD enum status ring_init(struct ring *ring, uint32_t records, size_t record_bytes);
void ring_free(struct ring *ring);

bool ring_push(struct ring *ring, const void *record); /* pusher's thread; false: full */
bool ring_pop(struct ring *ring, void *record);        /* popper's thread; false: empty */
uint32_t ring_count(const struct ring *ring);          /* any thread; exact only for the two */
uint32_t ring_room(const struct ring *ring);           /* pusher's thread: pushes that will succeed */

#endif
