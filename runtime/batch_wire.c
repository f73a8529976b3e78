/* See batch_wire.h. */
#include "runtime/batch_wire.h"

#include <string.h>

enum { MAGIC = 0x31424d4c, HEADER_WORDS = 5, SEQ_WORDS = 2, WORD = 4 };

static size_t bytes_of(uint64_t tokens, uint64_t seqs, uint64_t rows, uint64_t entries)
{
    return (size_t)(HEADER_WORDS + SEQ_WORDS * seqs + tokens + rows + entries) * WORD;
}

size_t batch_wire_bytes_max(uint32_t tokens_max, uint32_t seqs_max, uint32_t rows_max, size_t entries_max)
{
    return bytes_of(tokens_max, seqs_max, rows_max, entries_max);
}

static size_t entries_in(const struct batch *batch)
{
    size_t entries = 0;
    for (uint32_t s = 0; s < batch->seqs_count; s++) entries += kv_blocks_for(batch->kv_len[s]);
    return entries;
}

size_t batch_wire_bytes(const struct batch *batch)
{
    return bytes_of(batch->tokens_count, batch->seqs_count, batch->rows_count, entries_in(batch));
}

static uint8_t *put(uint8_t *to, uint32_t word)
{
    for (int i = 0; i < WORD; i++) to[i] = (uint8_t)(word >> 8 * i);
    return to + WORD;
}

static uint32_t get(const uint8_t **from)
{
    const uint8_t *b = *from;
    *from += WORD;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

void batch_wire_write(const struct batch *batch, void *bytes)
{
    uint8_t *to = bytes;
    to = put(to, MAGIC);
    to = put(to, batch->tokens_count);
    to = put(to, batch->seqs_count);
    to = put(to, batch->rows_count);
    to = put(to, (uint32_t)entries_in(batch));
    for (uint32_t s = 0; s < batch->seqs_count; s++) {
        to = put(to, batch->q_start[s + 1] - batch->q_start[s]);
        to = put(to, batch->kv_len[s]);
    }
    for (uint32_t n = 0; n < batch->tokens_count; n++) to = put(to, batch->tokens[n]);
    for (uint32_t r = 0; r < batch->rows_count; r++) to = put(to, batch->rows[r].token);
    for (uint32_t s = 0; s < batch->seqs_count; s++)
        for (size_t i = 0; i < kv_blocks_for(batch->kv_len[s]); i++) to = put(to, batch->block_table[s][i]);
}

/* Sequences, and what follows from them; false when they do not make up the counts. */
static bool read_seqs(const uint8_t **from, uint32_t tokens, uint32_t seqs, uint32_t entries_count, struct batch *batch,
                      const block_id *entries)
{
    uint32_t token = 0;
    size_t entry = 0;
    for (uint32_t s = 0; s < seqs; s++) {
        uint32_t count = get(from), kv_len = get(from);
        if (count == 0 || count > kv_len || count > tokens - token || kv_blocks_for(kv_len) > entries_count - entry)
            return false;
        batch->q_start[s] = token;
        batch->kv_len[s] = kv_len;
        batch->block_table[s] = entries + entry;
        entry += kv_blocks_for(kv_len);
        for (uint32_t i = 0; i < count; i++, token++) {
            batch->positions[token] = kv_len - count + i;
            batch->seq_of_token[token] = s;
        }
    }
    batch->q_start[seqs] = token;
    return token == tokens && entry == entries_count;
}

enum status batch_wire_read(const void *bytes, size_t size_bytes, struct batch *batch, block_id *entries,
                            size_t entries_max)
{
    static const struct sampling_params none = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};
    const uint8_t *from = bytes;
    batch->tokens_count = batch->seqs_count = batch->rows_count = 0;
    if (size_bytes < HEADER_WORDS * WORD || get(&from) != MAGIC) return ST_PROTO;
    uint32_t tokens = get(&from), seqs = get(&from), rows = get(&from), entries_count = get(&from);
    if (tokens > batch->tokens_max || seqs > batch->seqs_max || rows > batch->rows_max || entries_count > entries_max ||
        size_bytes != bytes_of(tokens, seqs, rows, entries_count))
        return ST_PROTO;
    if (!read_seqs(&from, tokens, seqs, entries_count, batch, entries)) return ST_PROTO;
    for (uint32_t n = 0; n < tokens; n++) batch->tokens[n] = get(&from);
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t token = get(&from);
        if (token >= tokens || (r && token < batch->rows[r - 1].token)) return ST_PROTO;
        batch->rows[r] = (struct batch_row){.token = token, .params = &none};
    }
    for (uint32_t i = 0; i < entries_count; i++) entries[i] = get(&from);
    batch->tokens_count = tokens;
    batch->seqs_count = seqs;
    batch->rows_count = rows;
    return ST_OK;
}
