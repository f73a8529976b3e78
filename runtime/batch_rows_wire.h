/* How the rows of a batch are chosen, as bytes: what batch_wire.h leaves out, for devices whose every process draws by
 * itself (the CUDA device: all ranks choose from the same gathered logits). Little-endian words of 32 bits:
 *
 *   magic, rows, words of lists
 *   of each row 20 words: flags, seed, position, target, penalties' counts, params, lengths of its lists
 *   lists of each row, one behind the other: allowed ids, biases (id, bits of the f32), banned ids, seen ids
 *
 * Rows that stand side by side and share params or a list of seen ids, as those of one sequence do, send them once and
 * share them again where they are read. Seen ids travel for rows with penalties alone; of a row that is only scored no
 * list does.
 *
 * Pure; any thread. */
#ifndef RUNTIME_BATCH_ROWS_WIRE_H
#define RUNTIME_BATCH_ROWS_WIRE_H

#include "runtime/batch.h"

#include <stddef.h>

/* Words of lists that the rows of so many sequences can need: all ids that each has seen, and as many allowed, biased
 * and banned ids as a request may bring (runtime/base/limits.h). */
size_t batch_rows_lists_max(uint32_t seqs_max, uint32_t context_max, uint32_t vocab);

size_t batch_rows_wire_bytes_max(uint32_t rows_max, size_t lists_max);
size_t batch_rows_wire_bytes(const struct batch *batch);
/* Writes batch_rows_wire_bytes(batch) bytes. */
void batch_rows_wire_write(const struct batch *batch, void *bytes);

/* What read rows point into: valid until the next read. */
struct batch_rows_memory {
    struct sampling_params *params; /* [rows_max] */
    struct logit_bias *biases;      /* [lists_max / 2] */
    uint32_t *ids;                  /* [lists_max] */
    size_t lists_max;
};
/* Both are pages that are only taken when they are used. ST_NOMEM. */
NODISCARD enum status batch_rows_memory_take(struct batch_rows_memory *memory, uint32_t rows_max, size_t lists_max);
void batch_rows_memory_free(struct batch_rows_memory *memory);

/* Reads bytes of any origin into the rows of a batch that batch_wire_read has read. ST_PROTO: they are no rows of this
 * batch, or too many: its rows_count is then 0. Counts, indices and lengths of rows that were read are sound; ids in
 * lists are any numbers, as a request's are. */
NODISCARD enum status batch_rows_wire_read(const void *bytes, size_t size_bytes, struct batch *batch,
                                           struct batch_rows_memory *memory);

#endif
