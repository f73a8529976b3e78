/* A step on its way to a GPU: a checked batch, laid out as kernels/cuda_step.h wants it, in one piece of memory
 * that is copied once. Pure: it knows neither CUDA calls nor time.
 *
 *   headers | q_start | kv_len | table_start | rows | row_tokens | tokens | positions | seq_of_token | items | table,
 * lists
 *
 * Places follow from the room that is made for tokens, sequences and rows: their own counts, or for a step that is
 * replayed as a graph its bucket, so that the graph finds them again. What has no bound of that kind, block tables and
 * the lists of rows, comes last, the lists behind the tables: both are reached from one pointer. Attention items are
 * planned by each rank for its own heads after the rest is filled.
 *
 * B1. Only a batch that batch_check took is written.
 * B2. headers[0] is the step's; headers[1 + g] counts the rows of group g, which are sampled together.
 * Rejected: fixed places for the largest step (a decode of 64 rows would copy the gaps that 8,192 rows leave). */
#ifndef RUNTIME_DEVICE_CUDA_CUDA_STEP_BUFFER_H
#define RUNTIME_DEVICE_CUDA_CUDA_STEP_BUFFER_H

#include "kernels/cuda_step.h"
#include "runtime/base/status.h"
#include "runtime/batch.h"

#include <stddef.h>
#include <stdint.h>

struct cuda_step_bounds {
    struct batch_bounds batch;
    uint32_t group_rows; /* rows sampled together */
    size_t lists_max;    /* entries of all rows' lists together */
};

/* What a step has room for. */
struct cuda_step_room {
    uint32_t tokens, seqs, rows;
    uint32_t items; /* of attention, in each plan, on the rank that has most */
};

/* Bytes from the beginning of the buffer to each array. */
struct cuda_step_layout {
    struct cuda_step_room room;
    size_t q_start, kv_len, table_start, rows, row_tokens, tokens, positions, seq_of_token, items[CUDA_ATTENTION_PLANS],
        table;
};

void cuda_step_layout_make(const struct cuda_step_bounds *bounds, struct cuda_step_room room,
                           struct cuda_step_layout *layout);
/* Of the largest step within the bounds, whose plans have so many items. */
size_t cuda_step_bytes_max(const struct cuda_step_bounds *bounds, uint32_t items_max);
/* Entries that lists of so many sequences can need (batch_rows_lists_max). */
size_t cuda_step_lists_max(const struct batch_bounds *bounds);

/* Where kernels find the arrays of a buffer that lies at `base` (of the device). */
struct cuda_step cuda_step_at(const struct cuda_step_layout *layout, const void *base);
/* The same for group g of its rows: header and rows are the group's own. */
struct cuda_step cuda_step_group(const struct cuda_step *step, uint32_t group_rows, uint32_t group);

/* Writes a checked batch, without its items, into `buffer`; *bytes is how much of it is used. ST_INVAL: lists_max. */
NODISCARD enum status cuda_step_fill(const struct cuda_step_bounds *bounds, const struct cuda_step_layout *layout,
                                     const struct batch *batch, void *buffer, size_t *bytes);

#endif
