/* See id_table.h. */
#include "runtime/base/id_table.h"

#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/base/mem.h"

enum { PLACES_MIN = 16, IDS_LIMIT = 1 << 30 };

struct id_place {
    uint64_t id;
    uint32_t number; /* ID_NONE: free */
};

enum status id_table_init(struct id_table *table, uint32_t ids_max)
{
    uint32_t places = PLACES_MIN;
    CHECK(ids_max <= IDS_LIMIT);
    while (places < 2 * ids_max) places *= 2;
    table->places = mem_alloc(places, sizeof *table->places);
    if (!table->places) return ST_NOMEM;
    for (uint32_t i = 0; i < places; i++) table->places[i].number = ID_NONE;
    table->mask = places - 1;
    return ST_OK;
}

void id_table_free(struct id_table *table)
{
    mem_free(table->places);
    table->places = NULL;
}

static uint32_t home_of(const struct id_table *table, uint64_t id)
{
    return (uint32_t)hash_bytes(&id, sizeof id, 0) & table->mask;
}

/* Where the id stands, or the free place where it would. */
static uint32_t place_of(const struct id_table *table, uint64_t id)
{
    uint32_t at = home_of(table, id);
    while (table->places[at].number != ID_NONE && table->places[at].id != id) at = (at + 1) & table->mask;
    return at;
}

uint32_t id_table_find(const struct id_table *table, uint64_t id)
{
    return table->places[place_of(table, id)].number;
}

void id_table_add(struct id_table *table, uint64_t id, uint32_t number)
{
    table->places[place_of(table, id)] = (struct id_place){id, number};
}

void id_table_remove(struct id_table *table, uint64_t id)
{
    uint32_t hole = place_of(table, id), mask = table->mask;
    CHECK(table->places[hole].number != ID_NONE);
    for (uint32_t at = (hole + 1) & mask; table->places[at].number != ID_NONE; at = (at + 1) & mask) {
        uint32_t home = home_of(table, table->places[at].id);
        if (((at - home) & mask) < ((at - hole) & mask)) continue; /* it begins behind the hole */
        table->places[hole] = table->places[at];
        hole = at;
    }
    table->places[hole].number = ID_NONE;
}
