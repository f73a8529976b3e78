/* See rank_comms.h. */
#include "runtime/device/rank_comms.h"

#include <stdbool.h>

static bool has_rows_and_columns(uint32_t ranks, uint32_t stages)
{
    return ranks > 1 && stages > 1;
}

/* Where the comm of a stage's ranks lies; with stage == stages, where the last of them ends. */
static uint8_t *rows_at(void *memory, uint32_t ranks, uint32_t stages, uint32_t stage, size_t slot_bytes)
{
    return (uint8_t *)memory + comm_local_bytes(ranks * stages, slot_bytes) +
           stage * comm_local_bytes(ranks, slot_bytes);
}

static uint8_t *column_at(void *memory, uint32_t ranks, uint32_t stages, uint32_t rank, size_t slot_bytes)
{
    return rows_at(memory, ranks, stages, stages, slot_bytes) + rank * comm_local_bytes(stages, slot_bytes);
}

size_t rank_comms_bytes(uint32_t ranks, uint32_t stages, size_t slot_bytes)
{
    size_t bytes = comm_local_bytes(ranks * stages, slot_bytes);
    if (has_rows_and_columns(ranks, stages))
        bytes += stages * comm_local_bytes(ranks, slot_bytes) + ranks * comm_local_bytes(stages, slot_bytes);
    return bytes;
}

void rank_comms_prepare(void *memory, uint32_t ranks, uint32_t stages, size_t slot_bytes)
{
    comm_local_prepare(memory, ranks * stages, slot_bytes);
    if (!has_rows_and_columns(ranks, stages)) return;
    for (uint32_t s = 0; s < stages; s++)
        comm_local_prepare(rows_at(memory, ranks, stages, s, slot_bytes), ranks, slot_bytes);
    for (uint32_t r = 0; r < ranks; r++)
        comm_local_prepare(column_at(memory, ranks, stages, r, slot_bytes), stages, slot_bytes);
}

static enum status join(void *memory, const struct comm_local_config *all, uint32_t rank, uint32_t ranks,
                        struct comm **comm)
{
    struct comm_local_config config = *all;
    config.rank = rank;
    config.ranks = ranks;
    return comm_local_join(memory, &config, comm);
}

enum status rank_comms_join(void *memory, const struct comm_local_config *config, uint32_t stages,
                            struct rank_comms *comms)
{
    uint32_t ranks = config->ranks / stages, rank = config->rank % ranks, stage = config->rank / ranks;
    struct rank_comms c = {.memory = memory, .ranks = ranks, .stages = stages, .slot_bytes = config->slot_bytes};
    TRY(comm_local_join(memory, config, &c.all));
    c.peers = ranks > 1 ? c.all : NULL;
    c.line = stages > 1 ? c.all : NULL;
    if (has_rows_and_columns(ranks, stages)) {
        void *row = rows_at(memory, ranks, stages, stage, c.slot_bytes);
        void *column = column_at(memory, ranks, stages, rank, c.slot_bytes);
        c.peers = c.line = NULL;
        enum status status = join(row, config, rank, ranks, &c.peers);
        if (status == ST_OK) status = join(column, config, stage, stages, &c.line);
        if (status != ST_OK) {
            rank_comms_leave(&c);
            return status;
        }
    }
    *comms = c;
    return ST_OK;
}

void rank_comms_abort(const struct rank_comms *c)
{
    comm_local_abort(c->memory);
    if (!has_rows_and_columns(c->ranks, c->stages)) return;
    for (uint32_t s = 0; s < c->stages; s++)
        comm_local_abort(rows_at(c->memory, c->ranks, c->stages, s, c->slot_bytes));
    for (uint32_t r = 0; r < c->ranks; r++)
        comm_local_abort(column_at(c->memory, c->ranks, c->stages, r, c->slot_bytes));
}

void rank_comms_leave(struct rank_comms *c)
{
    if (c->peers != c->all) comm_destroy(c->peers);
    if (c->line != c->all) comm_destroy(c->line);
    comm_destroy(c->all);
    *c = (struct rank_comms){0};
}
