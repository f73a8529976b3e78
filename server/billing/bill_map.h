/* A table of items by key, for sums over many records: an item begins with its key, keys have one length and are
 * compared by their bytes (so padding in them must be zero). Items stay in the order they were made in. One thread. */
#ifndef SERVER_BILLING_BILL_MAP_H
#define SERVER_BILLING_BILL_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bill_map {
    uint8_t *items;
    uint32_t *slots; /* index + 1 into items; 0: free */
    uint32_t count, room, slots_count;
    size_t key_bytes, item_bytes;
};

void bill_map_init(struct bill_map *map, size_t key_bytes, size_t item_bytes);
void bill_map_free(struct bill_map *map);
/* The item of the key, made with zeros behind it if it is not there. NULL: no memory. Valid until the next take. */
void *bill_map_take(struct bill_map *map, const void *key, bool *made);
void *bill_map_find(const struct bill_map *map, const void *key); /* NULL: it is not there */
void *bill_map_at(const struct bill_map *map, uint32_t idx);

#endif
