/* The hashing device; see null_device.h. */
#include "tests/support/null_device.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <string.h>
#include <time.h>

enum { FAILURE_TAG = 0xfa11, BANNED_MAX = 1056 /* of a row: limits.api_stop_token_ids, and end ids */ };

struct kv_slot {
    uint64_t prefix; /* of all ids up to and with this one */
    uint32_t id, position;
};

/* What a launch keeps of a row. */
struct kept_row {
    uint64_t seed, seen; /* seen: the hash of the ids it has seen, without a pending one */
    uint32_t token, position, seq, target;
    uint32_t banned_first, banned_count; /* in banned[] of the step */
    int32_t logprobs;
    bool score_only, pending;
};

struct kept_step {
    uint32_t tokens_count, seqs_count, rows_count, banned_count;
    uint32_t *tokens, *positions;
    uint32_t *q_start;
    size_t *table_start; /* [seqs_max] in tables[] */
    block_id *tables;    /* [seqs_max * kv_blocks], pages come with use */
    uint32_t *banned;    /* [rows_max * BANNED_MAX], likewise */
    struct kept_row *rows;
    uint64_t number, done_ns;
};

struct null_device {
    struct device device;
    struct null_device_config config;
    struct kv_slot *kv; /* [kv_blocks][KV_BLOCK_TOKENS] */
    struct kept_step steps[LAUNCHED_MAX];
    uint32_t oldest, under_way;
    size_t tables_bytes, banned_bytes;
    uint32_t *chosen; /* [rows_max] by the step that ran last */
    uint64_t free_ns; /* when the step launched last is done */
    bool lost;
    struct null_device_counts counts;
    uint64_t allocations_before;
};

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = (a ^ (b + UINT64_C(0x9e3779b97f4a7c15))) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 29) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 32;
}

uint64_t null_device_prefix(const uint32_t *ids, uint32_t count)
{
    uint64_t prefix = 1;
    for (uint32_t i = 0; i < count; i++) prefix = mix(prefix, ids[i]);
    return prefix;
}

uint64_t null_device_extend(uint64_t prefix, uint32_t id)
{
    return mix(prefix, id);
}

uint64_t null_device_seed_failing(enum null_failure failure, uint32_t position)
{
    return (uint64_t)FAILURE_TAG << 48 | (uint64_t)failure << 40 | position;
}

static enum null_failure failure_of(uint64_t seed, uint32_t position)
{
    if (seed >> 48 != FAILURE_TAG || (uint32_t)seed != position) return NULL_FAILURE_NONE;
    return (enum null_failure)(seed >> 40 & 0xff);
}

static bool is_banned(const uint32_t *banned, uint32_t count, uint32_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (banned[i] == id) return true;
    return false;
}

uint32_t null_device_next(uint64_t prefix, uint64_t seed, uint32_t position, uint32_t vocab, const uint32_t *banned,
                          uint32_t banned_count)
{
    uint64_t h = mix(mix(prefix, seed), position);
    uint32_t id = (uint32_t)(h >> 16) % vocab;
    for (uint32_t tries = 0; tries < vocab && is_banned(banned, banned_count, id); tries++) id = (id + 1) % vocab;
    return id;
}

static struct kv_slot *kv_at(struct null_device *d, const block_id *table, uint32_t position)
{
    return &d->kv[(size_t)table[position / KV_BLOCK_TOKENS] * KV_BLOCK_TOKENS + position % KV_BLOCK_TOKENS];
}

static const block_id *table_of(const struct kept_step *step, uint32_t seq)
{
    return step->tables + step->table_start[seq];
}

/* The step that a TOKEN_OF_ROW of the next launch speaks of; NULL without one. */
static struct kept_step *launched_last(struct null_device *d)
{
    return d->under_way ? &d->steps[(d->oldest + d->under_way - 1) % LAUNCHED_MAX] : NULL;
}

/* Whether token n, the only one of sequence s, may be chosen by row r of the step before. */
static bool names_row(struct null_device *d, const struct batch *b, uint32_t s, uint32_t n)
{
    const struct kept_step *before = launched_last(d);
    uint32_t r = b->tokens[n] & ~TOKEN_OF_ROW;
    if (!before || r >= before->rows_count || b->q_start[s + 1] - b->q_start[s] != 1) return false;
    const struct kept_row *row = &before->rows[r];
    if (row->score_only || row->position != b->positions[n]) return false;
    const block_id *table = table_of(before, row->seq);
    return memcmp(table, b->block_table[s], (row->position - 1) / KV_BLOCK_TOKENS * sizeof *table) == 0;
}

static bool keeps_contract(struct null_device *d, const struct batch *b)
{
    if (b->tokens_count > d->config.tokens_max || b->seqs_count > d->config.seqs_max ||
        b->rows_count > d->config.rows_max)
        return false;
    if (!b->tokens_count || b->q_start[0] != 0 || b->q_start[b->seqs_count] != b->tokens_count) return false;
    for (uint32_t s = 0; s < b->seqs_count; s++) {
        uint32_t q = b->q_start[s], n = b->q_start[s + 1] - q, length = b->kv_len[s];
        if (b->q_start[s + 1] <= q || length < n || length > d->config.kv_blocks * KV_BLOCK_TOKENS) return false;
        for (uint32_t i = 0; i < n; i++) {
            if (b->positions[q + i] != length - n + i || b->seq_of_token[q + i] != s) return false;
            if (b->tokens[q + i] >= d->config.vocab && !(b->tokens[q + i] & TOKEN_OF_ROW)) return false;
            if (b->tokens[q + i] & TOKEN_OF_ROW && !names_row(d, b, s, q + i)) return false;
        }
        for (uint32_t p = 0; p < length; p += KV_BLOCK_TOKENS)
            if (b->block_table[s][p / KV_BLOCK_TOKENS] >= d->config.kv_blocks) return false;
    }
    for (uint32_t r = 0; r < b->rows_count; r++) {
        const struct batch_row *row = &b->rows[r];
        if (row->token >= b->tokens_count || (r && row->token <= b->rows[r - 1].token)) return false;
        if (row->position != b->positions[row->token] + 1 || row->banned_count > BANNED_MAX) return false;
        if (row->pending != (b->tokens[row->token] & TOKEN_OF_ROW) >> 31) return false;
        if (row->pending && launched_last(d)->rows[b->tokens[row->token] & ~TOKEN_OF_ROW].seed != row->seed)
            return false;
    }
    return true;
}

/* ---- a step ---- */

static void keep_row(const struct null_device *d, const struct batch *b, const struct batch_row *row,
                     struct kept_step *step, struct kept_row *kept)
{
    kept->seed = row->seed;
    kept->token = row->token;
    kept->position = row->position;
    kept->seq = b->seq_of_token[row->token];
    kept->target = row->target;
    kept->logprobs = row->params->logprobs;
    kept->score_only = row->score_only;
    kept->pending = row->pending;
    kept->banned_count = row->banned_count;
    kept->banned_first = step->banned_count;
    if (row->banned_count)
        memcpy(step->banned + step->banned_count, row->banned, row->banned_count * sizeof *row->banned);
    step->banned_count += row->banned_count;
    if (d->config.verify) kept->seen = null_device_prefix(row->seen, row->position - row->pending);
}

static void keep_step(struct null_device *d, const struct batch *b, struct kept_step *kept)
{
    kept->tokens_count = b->tokens_count;
    kept->seqs_count = b->seqs_count;
    kept->rows_count = b->rows_count;
    memcpy(kept->tokens, b->tokens, b->tokens_count * sizeof *b->tokens);
    memcpy(kept->positions, b->positions, b->tokens_count * sizeof *b->positions);
    memcpy(kept->q_start, b->q_start, (b->seqs_count + 1) * sizeof *b->q_start);
    size_t entries = 0;
    for (uint32_t s = 0; s < b->seqs_count; s++) {
        uint32_t blocks = kv_blocks_for(b->kv_len[s]);
        memcpy(kept->tables + entries, b->block_table[s], blocks * sizeof **b->block_table);
        kept->table_start[s] = entries;
        entries += blocks;
    }
    kept->banned_count = 0;
    for (uint32_t r = 0; r < b->rows_count; r++) keep_row(d, b, &b->rows[r], kept, &kept->rows[r]);
    d->counts.tokens += b->tokens_count;
    d->counts.rows += b->rows_count;
}

/* Whether the KV of a row's sequence is that of the ids it has seen, read position by position. */
static bool kv_matches(struct null_device *d, const struct kept_step *step, const struct kept_row *row)
{
    uint64_t prefix = 1;
    for (uint32_t p = 0; p < row->position; p++) {
        const struct kv_slot *kv = kv_at(d, table_of(step, row->seq), p);
        if (row->pending && p + 1 == row->position && prefix != row->seen) return false;
        prefix = mix(prefix, kv->id);
        if (kv->position != p || kv->prefix != prefix) return false;
    }
    return row->pending || prefix == row->seen;
}

static void run_row(struct null_device *d, const struct kept_step *step, const struct kept_row *row,
                    struct row_result *result)
{
    const struct kv_slot *kv = kv_at(d, table_of(step, row->seq), row->position - 1);
    enum null_failure failure = failure_of(row->seed, row->position);
    if (d->config.verify && !kv_matches(d, step, row)) d->counts.kv_mismatches++;
    result->flags = failure == NULL_FAILURE_NOT_FINITE  ? ROW_NOT_FINITE
                    : failure == NULL_FAILURE_NO_CHOICE ? ROW_NO_CHOICE
                                                        : 0;
    result->id = row->score_only ? row->target
                                 : null_device_next(kv->prefix, row->seed, row->position, d->config.vocab,
                                                    step->banned + row->banned_first, row->banned_count);
    if (row->logprobs < 0) return;
    result->logprob = -(float)(mix(kv->prefix, result->id) % 1000) / 100;
    result->rank = 1;
    result->top_count = (uint32_t)row->logprobs < LOGPROBS_MAX ? (uint32_t)row->logprobs : LOGPROBS_MAX;
    for (uint32_t i = 0; i < result->top_count; i++) {
        result->top_ids[i] = (result->id + i) % d->config.vocab;
        result->top_logprobs[i] = result->logprob - (float)i;
    }
}

static void run_step(struct null_device *d, struct kept_step *step, struct batch_result *result)
{
    for (uint32_t s = 0; s < step->seqs_count; s++) {
        for (uint32_t t = step->q_start[s]; t < step->q_start[s + 1]; t++) {
            uint32_t p = step->positions[t], id = step->tokens[t];
            if (id & TOKEN_OF_ROW) id = d->chosen[id & ~TOKEN_OF_ROW];
            const struct kv_slot *before = p ? kv_at(d, table_of(step, s), p - 1) : NULL;
            *kv_at(d, table_of(step, s), p) =
                (struct kv_slot){.prefix = mix(before ? before->prefix : 1, id), .id = id, .position = p};
        }
    }
    for (uint32_t r = 0; r < step->rows_count; r++) {
        run_row(d, step, &step->rows[r], &result->rows[r]);
        d->chosen[r] = result->rows[r].id;
    }
}

static enum status null_launch(struct device *device, const struct batch *b)
{
    struct null_device *d = (struct null_device *)device;
    if (d->lost) return ST_DEVICE;
    if (d->counts.steps++)
        d->counts.allocations_in_steps = mem_allocations_of_thread() - d->allocations_before;
    else
        d->allocations_before = mem_allocations_of_thread();
    if (d->config.before_step) d->config.before_step(d->config.before_step_state, b);
    if (d->under_way == LAUNCHED_MAX || !keeps_contract(d, b)) return ST_INVAL;
    d->lost = d->config.fail_launch && d->counts.steps == d->config.fail_step;
    if (d->lost) return ST_DEVICE;
    struct kept_step *step = &d->steps[(d->oldest + d->under_way) % LAUNCHED_MAX];
    keep_step(d, b, step);
    d->counts.ahead += d->under_way > 0;
    d->under_way++;
    step->number = d->counts.steps;
    if (d->config.step_ns) {
        uint64_t now_ns = clock_now_ns(clock_system());
        step->done_ns = d->free_ns = (d->free_ns > now_ns ? d->free_ns : now_ns) + d->config.step_ns;
    }
    return ST_OK;
}

static enum status null_collect(struct device *device, struct batch_result *result)
{
    struct null_device *d = (struct null_device *)device;
    if (d->lost) return ST_DEVICE;
    if (!d->under_way) return ST_INVAL;
    struct kept_step *step = &d->steps[d->oldest];
    d->under_way--;
    d->oldest = d->under_way ? (d->oldest + 1) % LAUNCHED_MAX : 0;
    d->lost = !d->config.fail_launch && step->number == d->config.fail_step;
    if (d->lost) return ST_DEVICE;
    run_step(d, step, result);
    uint64_t now_ns = d->config.step_ns ? clock_now_ns(clock_system()) : 0;
    if (d->config.step_ns && step->done_ns > now_ns) {
        uint64_t left_ns = step->done_ns - now_ns;
        nanosleep(&(struct timespec){.tv_sec = (time_t)(left_ns / NS_PER_S), .tv_nsec = (long)(left_ns % NS_PER_S)},
                  NULL);
    }
    return ST_OK;
}

static enum status null_step(struct device *device, const struct batch *b, struct batch_result *result)
{
    TRY(null_launch(device, b));
    return null_collect(device, result);
}

static void null_destroy(struct device *device)
{
    struct null_device *d = (struct null_device *)device;
    for (uint32_t i = 0; i < LAUNCHED_MAX; i++) {
        mem_free(d->steps[i].tokens);
        mem_free(d->steps[i].positions);
        mem_free(d->steps[i].q_start);
        mem_unmap(d->steps[i].tables, d->tables_bytes);
        mem_unmap(d->steps[i].banned, d->banned_bytes);
        mem_free(d->steps[i].table_start);
        mem_free(d->steps[i].rows);
    }
    mem_free(d->chosen);
    mem_free(d->kv);
    mem_free(d);
}

static bool take_memory(struct null_device *d)
{
    const struct null_device_config *c = &d->config;
    d->tables_bytes = (size_t)c->seqs_max * c->kv_blocks * sizeof(block_id);
    d->banned_bytes = (size_t)c->rows_max * BANNED_MAX * sizeof(uint32_t);
    d->kv = mem_alloc((size_t)c->kv_blocks * KV_BLOCK_TOKENS, sizeof *d->kv);
    d->chosen = mem_alloc(c->rows_max, sizeof *d->chosen);
    if (!d->kv || !d->chosen) return false;
    for (uint32_t i = 0; i < (c->ahead ? LAUNCHED_MAX : 1); i++) {
        struct kept_step *step = &d->steps[i];
        step->tokens = mem_alloc(c->tokens_max, sizeof *step->tokens);
        step->positions = mem_alloc(c->tokens_max, sizeof *step->positions);
        step->q_start = mem_alloc((size_t)c->seqs_max + 1, sizeof *step->q_start);
        step->tables = mem_map(d->tables_bytes);
        step->table_start = mem_alloc(c->seqs_max, sizeof *step->table_start);
        step->rows = mem_alloc(c->rows_max, sizeof *step->rows);
        step->banned = mem_map(d->banned_bytes);
        if (!step->tokens || !step->positions || !step->q_start || !step->table_start || !step->tables || !step->rows ||
            !step->banned)
            return false;
    }
    return true;
}

enum status null_device_create(const struct null_device_config *config, struct device **device)
{
    static const struct device_ops one_by_one = {.step = null_step, .destroy = null_destroy};
    static const struct device_ops ahead = {
        .step = null_step, .destroy = null_destroy, .launch = null_launch, .collect = null_collect};
    struct null_device *d = mem_alloc(1, sizeof *d);
    if (!d) return ST_NOMEM;
    d->config = *config;
    if (!take_memory(d)) {
        null_destroy(&d->device);
        return ST_NOMEM;
    }
    d->device.ops = config->ahead ? &ahead : &one_by_one;
    d->device.info = (struct device_info){.name = "null",
                                          .vocab = config->vocab,
                                          .kv_blocks = config->kv_blocks,
                                          .kv_block_bytes = config->kv_block_bytes,
                                          .weights_bytes = config->weights_bytes,
                                          .tokens_max = config->tokens_max,
                                          .seqs_max = config->seqs_max,
                                          .rows_max = config->rows_max};
    *device = &d->device;
    return ST_OK;
}

void null_device_counts(const struct device *device, struct null_device_counts *counts)
{
    *counts = ((const struct null_device *)device)->counts;
}
