/* A table by key with open addressing, at most half full; see bill_map.h. */
#include "server/billing/bill_map.h"

#include "runtime/base/hash.h"
#include "runtime/base/mem.h"

#include <string.h>

enum { ROOM_FIRST = 64, SLOTS_FIRST = 128 };

void bill_map_init(struct bill_map *map, size_t key_bytes, size_t item_bytes)
{
    *map = (struct bill_map){.key_bytes = key_bytes, .item_bytes = item_bytes};
}

void bill_map_free(struct bill_map *map)
{
    mem_free(map->items);
    mem_free(map->slots);
    bill_map_init(map, map->key_bytes, map->item_bytes);
}

void *bill_map_at(const struct bill_map *map, uint32_t idx)
{
    return map->items + (size_t)idx * map->item_bytes;
}

/* The slot of the key, or the free one where it would stand. */
static uint32_t *slot_of(const struct bill_map *map, const void *key)
{
    uint32_t mask = map->slots_count - 1;
    for (uint32_t at = (uint32_t)hash_bytes(key, map->key_bytes, 0) & mask;; at = (at + 1) & mask) {
        uint32_t idx = map->slots[at];
        if (idx == 0 || memcmp(bill_map_at(map, idx - 1), key, map->key_bytes) == 0) return &map->slots[at];
    }
}

static bool grow(struct bill_map *map)
{
    if (map->count == map->room) {
        uint32_t room = map->room ? map->room * 2 : ROOM_FIRST;
        if (room <= map->room) return false;
        void *items = map->items ? mem_resize(map->items, room, map->item_bytes) : mem_alloc(room, map->item_bytes);
        if (!items) return false;
        map->items = items;
        map->room = room;
    }
    if (map->slots_count >= (map->count + 1) * UINT64_C(2)) return true;
    uint32_t slots_count = map->slots_count ? map->slots_count * 2 : SLOTS_FIRST;
    uint32_t *slots = slots_count > map->slots_count ? mem_alloc(slots_count, sizeof *slots) : NULL;
    if (!slots) return false;
    mem_free(map->slots);
    map->slots = slots;
    map->slots_count = slots_count;
    for (uint32_t i = 0; i < map->count; i++) *slot_of(map, bill_map_at(map, i)) = i + 1;
    return true;
}

void *bill_map_find(const struct bill_map *map, const void *key)
{
    uint32_t *slot = map->slots_count ? slot_of(map, key) : NULL;
    return slot && *slot ? bill_map_at(map, *slot - 1) : NULL;
}

void *bill_map_take(struct bill_map *map, const void *key, bool *made)
{
    void *item = bill_map_find(map, key);
    if (made) *made = !item;
    if (item) return item;
    if (!grow(map)) return NULL;
    item = bill_map_at(map, map->count);
    memset(item, 0, map->item_bytes);
    memcpy(item, key, map->key_bytes);
    *slot_of(map, key) = ++map->count;
    return item;
}
