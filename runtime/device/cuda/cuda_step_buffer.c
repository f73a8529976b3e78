/* Laying out a step: see cuda_step_buffer.h. */
#include "runtime/device/cuda/cuda_step_buffer.h"

#include "runtime/base/check.h"
#include "runtime/batch_rows_wire.h"

#include <string.h>

_Static_assert(CUDA_TOKEN_OF_ROW == TOKEN_OF_ROW, "one mark on both sides");
_Static_assert(sizeof(struct cuda_step_header) % 16 == 0 && sizeof(struct cuda_row) % 8 == 0, "aligned in a row");

enum { ARRAY_ALIGNMENT = 16 };

static size_t aligned(size_t bytes)
{
    return (bytes + ARRAY_ALIGNMENT - 1) & ~(size_t)(ARRAY_ALIGNMENT - 1);
}

static uint32_t groups_of(const struct cuda_step_bounds *bounds, uint32_t rows)
{
    return (rows + bounds->group_rows - 1) / bounds->group_rows;
}

void cuda_step_layout_make(const struct cuda_step_bounds *bounds, struct cuda_step_room room,
                           struct cuda_step_layout *layout)
{
    size_t used = 0;
#define TAKE(array, bytes) (layout->array = used, used += aligned(bytes))
    layout->room = room;
    used += (1 + groups_of(bounds, room.rows)) * sizeof(struct cuda_step_header);
    TAKE(q_start, (room.seqs + 1) * sizeof(uint32_t));
    TAKE(kv_len, room.seqs * sizeof(uint32_t));
    TAKE(table_start, (room.seqs + 1) * sizeof(uint32_t));
    TAKE(rows, room.rows * sizeof(struct cuda_row));
    TAKE(row_tokens, room.rows * sizeof(uint32_t));
    TAKE(tokens, room.tokens * sizeof(uint32_t));
    TAKE(positions, room.tokens * sizeof(uint32_t));
    TAKE(seq_of_token, room.tokens * sizeof(uint32_t));
    TAKE(items[0], (size_t)room.items * sizeof(struct attention_item));
    TAKE(items[1], (size_t)room.items * sizeof(struct attention_item));
    TAKE(table, 0);
#undef TAKE
}

size_t cuda_step_bytes_max(const struct cuda_step_bounds *bounds, uint32_t items_max)
{
    struct cuda_step_layout layout;
    const struct batch_bounds *most = &bounds->batch;
    struct cuda_step_room room = {most->tokens_max, most->seqs_max, most->rows_max, items_max};
    cuda_step_layout_make(bounds, room, &layout);
    size_t entries = (size_t)most->seqs_max * kv_blocks_for(most->context_max) + bounds->lists_max;
    return layout.table + aligned(entries * sizeof(uint32_t));
}

size_t cuda_step_lists_max(const struct batch_bounds *l)
{
    return batch_rows_lists_max(l->seqs_max, l->context_max, l->vocab);
}

struct cuda_step cuda_step_at(const struct cuda_step_layout *layout, const void *base)
{
    const uint8_t *at = base;
    return (struct cuda_step){.header = (const void *)at,
                              .tokens = (const void *)(at + layout->tokens),
                              .positions = (const void *)(at + layout->positions),
                              .seq_of_token = (const void *)(at + layout->seq_of_token),
                              .q_start = (const void *)(at + layout->q_start),
                              .kv_len = (const void *)(at + layout->kv_len),
                              .table_start = (const void *)(at + layout->table_start),
                              .table = (const void *)(at + layout->table),
                              .items = {(const void *)(at + layout->items[0]), (const void *)(at + layout->items[1])},
                              .rows = (const void *)(at + layout->rows),
                              .row_tokens = (const void *)(at + layout->row_tokens),
                              .lists = (const void *)(at + layout->table)};
}

struct cuda_step cuda_step_group(const struct cuda_step *step, uint32_t group_rows, uint32_t group)
{
    struct cuda_step of_group = *step;
    of_group.header += 1 + group;
    of_group.rows += (size_t)group * group_rows;
    of_group.row_tokens += (size_t)group * group_rows;
    return of_group;
}

/* The end of a buffer: block tables, then lists. */
struct tail {
    uint32_t *entries;
    size_t used, limit;
};

/* Gives where `count` words were put, counted from the first block table. */
static bool tail_put(struct tail *tail, const void *words, uint32_t count, uint32_t *at)
{
    if (count > tail->limit - tail->used) return false;
    *at = (uint32_t)tail->used;
    if (count) memcpy(tail->entries + tail->used, words, count * sizeof(uint32_t));
    tail->used += count;
    return true;
}

/* Rows of one sequence look at one growing list: it travels once, as long as its last row wants it. */
static bool put_seen(struct tail *tail, const struct batch *batch, uint32_t r, struct cuda_row *rows)
{
    const struct batch_row *row = &batch->rows[r];
    if (!batch_row_wants_seen(row)) return true;
    rows[r].seen_prompt = row->seen_prompt;
    rows[r].seen_count = row->seen_count;
    if (r && batch_row_wants_seen(row - 1) && row[-1].seen == row->seen) {
        rows[r].seen = rows[r - 1].seen;
        return true;
    }
    uint32_t longest = row->seen_count;
    for (uint32_t i = r + 1; i < batch->rows_count; i++) {
        const struct batch_row *next = &batch->rows[i];
        if (!batch_row_wants_seen(next) || next->seen != row->seen) break;
        if (next->seen_count > longest) longest = next->seen_count;
    }
    return tail_put(tail, row->seen, longest, &rows[r].seen);
}

_Static_assert(sizeof(struct logit_bias) == 2 * sizeof(uint32_t), "a pair of words");

static bool put_row(struct tail *tail, const struct batch *batch, uint32_t r, struct cuda_row *rows)
{
    const struct batch_row *from = &batch->rows[r];
    const struct sampling_params *p = from->params;
    uint32_t token = batch->tokens[from->token];
    rows[r] = (struct cuda_row){.seed = from->seed,
                                .token = from->token,
                                .position = from->position,
                                .target = from->target,
                                .temperature = p->temperature,
                                .top_p = p->top_p,
                                .min_p = p->min_p,
                                .repetition_penalty = p->repetition_penalty,
                                .frequency_penalty = p->frequency_penalty,
                                .presence_penalty = p->presence_penalty,
                                .top_k = p->top_k,
                                .logprobs = p->logprobs};
    if (from->score_only) {
        rows[r].flags = CUDA_ROW_SCORE_ONLY;
        return true;
    }
    if (from->pending) {
        rows[r].flags = CUDA_ROW_PENDING_SEEN;
        rows[r].pending = token & ~TOKEN_OF_ROW;
    }
    rows[r].any_allowed = p->allowed != NULL;
    rows[r].allowed_count = p->allowed ? p->allowed_count : 0;
    rows[r].bias_count = p->bias_count;
    rows[r].banned_count = from->banned_count;
    bool shared = r && !from[-1].score_only && from[-1].params == p; /* rows of one request */
    if (shared) {
        rows[r].allowed = rows[r - 1].allowed;
        rows[r].bias = rows[r - 1].bias;
    } else if (!tail_put(tail, p->allowed, rows[r].allowed_count, &rows[r].allowed) ||
               2 * (uint64_t)p->bias_count > UINT32_MAX || !tail_put(tail, p->bias, 2 * p->bias_count, &rows[r].bias)) {
        return false;
    }
    return tail_put(tail, from->banned, from->banned_count, &rows[r].banned) && put_seen(tail, batch, r, rows);
}

static void put_headers(const struct cuda_step_bounds *bounds, const struct cuda_step_layout *layout,
                        const struct batch *batch, struct cuda_step_header *headers)
{
    headers[0] = (struct cuda_step_header){batch->tokens_count, batch->seqs_count, batch->rows_count, {0}, {0}};
    for (uint32_t g = 0; g < groups_of(bounds, layout->room.rows); g++) {
        uint32_t first = g * bounds->group_rows, left = batch->rows_count > first ? batch->rows_count - first : 0;
        headers[1 + g] = headers[0];
        headers[1 + g].rows = left < bounds->group_rows ? left : bounds->group_rows;
    }
}

enum status cuda_step_fill(const struct cuda_step_bounds *bounds, const struct cuda_step_layout *layout,
                           const struct batch *batch, void *buffer, size_t *bytes)
{
    uint8_t *at = buffer;
    uint32_t N = batch->tokens_count, S = batch->seqs_count, R = batch->rows_count;
    CHECK(N <= layout->room.tokens && S <= layout->room.seqs && R <= layout->room.rows);
    put_headers(bounds, layout, batch, (struct cuda_step_header *)(void *)at);
    memcpy(at + layout->q_start, batch->q_start, (S + 1) * sizeof(uint32_t));
    memcpy(at + layout->kv_len, batch->kv_len, S * sizeof(uint32_t));
    memcpy(at + layout->tokens, batch->tokens, N * sizeof(uint32_t));
    memcpy(at + layout->positions, batch->positions, N * sizeof(uint32_t));
    memcpy(at + layout->seq_of_token, batch->seq_of_token, N * sizeof(uint32_t));
    struct tail tail = {(uint32_t *)(void *)(at + layout->table), 0,
                        (size_t)bounds->batch.seqs_max * kv_blocks_for(bounds->batch.context_max) + bounds->lists_max};
    uint32_t *starts = (uint32_t *)(void *)(at + layout->table_start);
    for (uint32_t s = 0; s < S; s++) {
        CHECK(tail_put(&tail, batch->block_table[s], kv_blocks_for(batch->kv_len[s]), &starts[s]));
    }
    starts[S] = (uint32_t)tail.used;
    struct cuda_row *rows = (struct cuda_row *)(void *)(at + layout->rows);
    uint32_t *row_tokens = (uint32_t *)(void *)(at + layout->row_tokens);
    for (uint32_t r = 0; r < R; r++) {
        if (!put_row(&tail, batch, r, rows)) return ST_INVAL;
        row_tokens[r] = batch->rows[r].token;
    }
    *bytes = layout->table + tail.used * sizeof(uint32_t);
    return ST_OK;
}
