/* Numbers by id: open addressing with linear probing, at most half full. Deletion moves later ones of the run up
 * (Knuth, TAOCP 3, 6.4, algorithm R), so that nothing is left behind and nothing is ever built anew. Memory is taken at
 * the start. One thread. */
#ifndef RUNTIME_BASE_ID_TABLE_H
#define RUNTIME_BASE_ID_TABLE_H

#include "runtime/base/status.h"

#include <stdint.h>

enum { ID_NONE = UINT32_MAX };

struct id_table {
    struct id_place *places;
    uint32_t mask;
};

/* For ids_max ids at a time, at most 2^30. ST_NOMEM. */
NODISCARD enum status id_table_init(struct id_table *table, uint32_t ids_max);
void id_table_free(struct id_table *table); /* one that is all zero is fine */
/* ID_NONE: it is not there. */
uint32_t id_table_find(const struct id_table *table, uint64_t id);
/* It is not there; number is not ID_NONE. */
void id_table_add(struct id_table *table, uint64_t id, uint32_t number);
/* It is there. */
void id_table_remove(struct id_table *table, uint64_t id);

#endif
