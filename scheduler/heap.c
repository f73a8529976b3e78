/* Indexed binary heap; see heap.h. */
#include "scheduler/heap.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"

#include <string.h>

enum status heap_init(struct heap *heap, uint32_t ids_max)
{
    memset(heap, 0, sizeof *heap);
    heap->items = mem_alloc(ids_max, sizeof *heap->items);
    heap->position = mem_alloc(ids_max, sizeof *heap->position);
    heap->keys = mem_alloc(ids_max, sizeof *heap->keys);
    if (!heap->items || !heap->position || !heap->keys) {
        heap_free(heap);
        return ST_NOMEM;
    }
    heap->ids_max = ids_max;
    for (uint32_t i = 0; i < ids_max; i++) heap->position[i] = HEAP_NONE;
    return ST_OK;
}

void heap_free(struct heap *heap)
{
    mem_free(heap->items);
    mem_free(heap->position);
    mem_free(heap->keys);
    memset(heap, 0, sizeof *heap);
}

static bool before(const struct heap *heap, uint32_t a, uint32_t b)
{
    return heap->keys[a] != heap->keys[b] ? heap->keys[a] < heap->keys[b] : a < b;
}

static void place(struct heap *heap, uint32_t at, uint32_t id)
{
    heap->items[at] = id;
    heap->position[id] = at;
    heap->touched++;
}

static void sift_up(struct heap *heap, uint32_t at, uint32_t id)
{
    while (at > 0) {
        uint32_t parent = (at - 1) / 2;
        if (!before(heap, id, heap->items[parent])) break;
        place(heap, at, heap->items[parent]);
        at = parent;
    }
    place(heap, at, id);
}

static void sift_down(struct heap *heap, uint32_t at, uint32_t id)
{
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= heap->count) break;
        if (child + 1 < heap->count && before(heap, heap->items[child + 1], heap->items[child])) child++;
        if (!before(heap, heap->items[child], id)) break;
        place(heap, at, heap->items[child]);
        at = child;
    }
    place(heap, at, id);
}

static void settle(struct heap *heap, uint32_t at, uint32_t id)
{
    if (at > 0 && before(heap, id, heap->items[(at - 1) / 2]))
        sift_up(heap, at, id);
    else
        sift_down(heap, at, id);
}

void heap_set(struct heap *heap, uint32_t id, uint64_t key)
{
    CHECK(id < heap->ids_max);
    uint32_t at = heap->position[id];
    heap->keys[id] = key;
    if (at == HEAP_NONE) at = heap->count++;
    settle(heap, at, id);
}

void heap_remove(struct heap *heap, uint32_t id)
{
    CHECK(id < heap->ids_max);
    uint32_t at = heap->position[id];
    if (at == HEAP_NONE) return;
    heap->position[id] = HEAP_NONE;
    uint32_t last = heap->items[--heap->count];
    if (last != id) settle(heap, at, last);
}
