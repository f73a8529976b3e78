/* A batch as bytes, for ranks that run the same step in other processes: what all of them need, which is everything but
 * how rows are chosen (rank 0's business). Little-endian words of 32 bits:
 *
 *   magic, tokens, sequences, rows, table entries
 *   of each sequence: its tokens, its kv_len         (positions, q_start and seq_of_token follow from these)
 *   tokens[]   row tokens[]   block tables, one behind the other, ceil(kv_len / 16) entries each
 *
 * Pure; any thread. */
#ifndef RUNTIME_BATCH_WIRE_H
#define RUNTIME_BATCH_WIRE_H

#include "runtime/batch.h"

#include <stddef.h>

/* Bytes of the largest batch of so many tokens, sequences, rows and table entries of all sequences. */
size_t batch_wire_bytes_max(uint32_t tokens_max, uint32_t seqs_max, uint32_t rows_max, size_t entries_max);
size_t batch_wire_bytes(const struct batch *batch);
/* Writes batch_wire_bytes(batch) bytes. The batch keeps the contract of batch.h. */
void batch_wire_write(const struct batch *batch, void *bytes);

/* Reads bytes of any origin into a batch of batch_create and its block tables into entries. ST_PROTO: they are no
 * batch, or one too large for it; the batch's counts are then 0. A batch that was read keeps the contract but for what
 * only a device knows: ids of blocks and tokens. Rows all have the same params, for devices that look whether there are
 * any. */
NODISCARD enum status batch_wire_read(const void *bytes, size_t size_bytes, struct batch *batch, block_id *entries,
                                      size_t entries_max);

#endif
