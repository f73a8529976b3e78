/* The hashing device; see null_device.h. */
#include "tests/support/null_device.h"

#include "runtime/base/mem.h"

#include <string.h>
#include <time.h>

enum { FAILURE_TAG = 0xfa11 };

struct kv_slot {
    uint64_t prefix; /* of all ids up to and with this one */
    uint32_t id, position;
};

struct null_device {
    struct device device;
    struct null_device_config config;
    struct kv_slot *kv; /* [kv_blocks][KV_BLOCK_TOKENS] */
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
    block_id block = table[position / KV_BLOCK_TOKENS];
    if (block >= d->config.kv_blocks) return NULL;
    return &d->kv[(size_t)block * KV_BLOCK_TOKENS + position % KV_BLOCK_TOKENS];
}

static bool keeps_contract(const struct null_device *d, const struct batch *b)
{
    if (b->tokens_count > d->config.tokens_max || b->seqs_count > d->config.seqs_max ||
        b->rows_count > d->config.rows_max)
        return false;
    if (!b->tokens_count || b->q_start[0] != 0 || b->q_start[b->seqs_count] != b->tokens_count) return false;
    for (uint32_t s = 0; s < b->seqs_count; s++) {
        uint32_t q = b->q_start[s], n = b->q_start[s + 1] - q;
        if (b->q_start[s + 1] <= q || b->kv_len[s] < n) return false;
        for (uint32_t i = 0; i < n; i++)
            if (b->positions[q + i] != b->kv_len[s] - n + i || b->seq_of_token[q + i] != s ||
                b->tokens[q + i] >= d->config.vocab)
                return false;
    }
    for (uint32_t r = 0; r < b->rows_count; r++) {
        if (b->rows[r].token >= b->tokens_count || (r && b->rows[r].token <= b->rows[r - 1].token)) return false;
        if (b->rows[r].position != b->positions[b->rows[r].token] + 1) return false;
    }
    return true;
}

/* Whether the KV of a row's sequence is that of the ids it has seen, read position by position. */
static bool kv_matches(struct null_device *d, const struct batch *b, const struct batch_row *row)
{
    uint32_t s = b->seq_of_token[row->token];
    uint64_t prefix = 1;
    for (uint32_t p = 0; p < row->position; p++) {
        const struct kv_slot *kv = kv_at(d, b->block_table[s], p);
        prefix = mix(prefix, row->seen[p]);
        if (!kv || kv->id != row->seen[p] || kv->position != p || kv->prefix != prefix) return false;
    }
    return true;
}

static void run_row(struct null_device *d, const struct batch *b, const struct batch_row *row,
                    struct row_result *result)
{
    const struct kv_slot *kv = kv_at(d, b->block_table[b->seq_of_token[row->token]], b->positions[row->token]);
    enum null_failure failure = failure_of(row->seed, row->position);
    if (d->config.verify && !kv_matches(d, b, row)) d->counts.kv_mismatches++;
    result->flags = failure == NULL_FAILURE_NOT_FINITE  ? ROW_NOT_FINITE
                    : failure == NULL_FAILURE_NO_CHOICE ? ROW_NO_CHOICE
                                                        : 0;
    result->id = row->score_only ? row->target
                                 : null_device_next(kv->prefix, row->seed, row->position, d->config.vocab, row->banned,
                                                    row->banned_count);
    if (row->params->logprobs < 0) return;
    result->logprob = -(float)(mix(kv->prefix, result->id) % 1000) / 100;
    result->rank = 1;
    result->top_count = (uint32_t)row->params->logprobs < LOGPROBS_MAX ? (uint32_t)row->params->logprobs : LOGPROBS_MAX;
    for (uint32_t i = 0; i < result->top_count; i++) {
        result->top_ids[i] = (result->id + i) % d->config.vocab;
        result->top_logprobs[i] = result->logprob - (float)i;
    }
}

static enum status null_step(struct device *device, const struct batch *b, struct batch_result *result)
{
    struct null_device *d = (struct null_device *)device;
    if (d->counts.steps++)
        d->counts.allocations_in_steps = mem_allocations_of_thread() - d->allocations_before;
    else
        d->allocations_before = mem_allocations_of_thread();
    if (d->config.before_step) d->config.before_step(d->config.before_step_state, b);
    if (!keeps_contract(d, b)) return ST_INVAL;
    if (d->counts.steps == d->config.fail_step) return ST_DEVICE;
    for (uint32_t s = 0; s < b->seqs_count; s++) {
        for (uint32_t t = b->q_start[s]; t < b->q_start[s + 1]; t++) {
            uint32_t p = b->positions[t];
            struct kv_slot *kv = kv_at(d, b->block_table[s], p);
            const struct kv_slot *before = p ? kv_at(d, b->block_table[s], p - 1) : NULL;
            if (!kv || (p && !before)) return ST_INVAL;
            *kv = (struct kv_slot){
                .prefix = mix(before ? before->prefix : 1, b->tokens[t]), .id = b->tokens[t], .position = p};
        }
    }
    for (uint32_t r = 0; r < b->rows_count; r++) run_row(d, b, &b->rows[r], &result->rows[r]);
    d->counts.tokens += b->tokens_count;
    d->counts.rows += b->rows_count;
    if (d->config.step_ns) {
        struct timespec pause = {.tv_sec = (time_t)(d->config.step_ns / 1000000000),
                                 .tv_nsec = (long)(d->config.step_ns % 1000000000)};
        nanosleep(&pause, NULL);
    }
    return ST_OK;
}

static void null_destroy(struct device *device)
{
    struct null_device *d = (struct null_device *)device;
    mem_free(d->kv);
    mem_free(d);
}

enum status null_device_create(const struct null_device_config *config, struct device **device)
{
    static const struct device_ops ops = {.step = null_step, .destroy = null_destroy};
    struct null_device *d = mem_alloc(1, sizeof *d);
    if (!d) return ST_NOMEM;
    d->kv = mem_alloc((size_t)config->kv_blocks * KV_BLOCK_TOKENS, sizeof *d->kv);
    if (!d->kv) {
        mem_free(d);
        return ST_NOMEM;
    }
    d->config = *config;
    d->device.ops = &ops;
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
