/* See cpu_cost.h. Each figure is the mean of steps that take turns, so that all see the machine in the same moods. The
 * mean, since a run's time is the sum of its steps': medians leave out the slow ones and predict too much. */
#include "bench/gpu_model/cpu_cost.h"

#include "runtime/base/clock.h"
#include "runtime/base/random.h"

enum { SEQS = 64, CONTEXT = 1024, RUNS_MAX = 400, BLOCKS = SEQS * CONTEXT / KV_BLOCK_TOKENS };

struct probe {
    uint32_t seqs, tokens_each, context; /* positions after the step */
    uint32_t rows;
};

/* Prefill of one sequence for base; then pairs of probes that differ in one thing: rows, KV, pairs. */
static const uint32_t base_tokens[COST_POINTS] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};
static const struct probe extra[] = {
    {64, 1, 33, 64},   /* rows: against the 64 tokens of one sequence */
    {64, 1, 1024, 64}, /* KV: against the last */
    {1, 256, 1024, 1}, /* pairs: against 256 tokens from position 0 */
};
enum { EXTRAS = sizeof extra / sizeof *extra, PROBES = COST_POINTS + EXTRAS };

struct bench {
    struct device *device;
    struct batch *batch;
    struct batch_result *result;
    block_id blocks[BLOCKS];
    double times[PROBES][RUNS_MAX];
};

static const struct sampling_params greedy = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};

static struct probe probe_at(uint32_t idx)
{
    if (idx >= COST_POINTS) return extra[idx - COST_POINTS];
    return (struct probe){1, base_tokens[idx], base_tokens[idx], 1};
}

static void fill(struct bench *b, const struct probe *probe)
{
    struct batch *batch = b->batch;
    uint64_t rng = 11;
    batch->seqs_count = probe->seqs;
    batch->rows_count = probe->rows;
    batch->tokens_count = probe->seqs * probe->tokens_each;
    for (uint32_t s = 0; s <= probe->seqs; s++) batch->q_start[s] = s * probe->tokens_each;
    for (uint32_t n = 0; n < batch->tokens_count; n++) {
        uint32_t s = n / probe->tokens_each;
        batch->tokens[n] = (uint32_t)(random_next(&rng) % b->device->info.vocab);
        batch->positions[n] = probe->context - probe->tokens_each + n % probe->tokens_each;
        batch->seq_of_token[n] = s;
        batch->kv_len[s] = probe->context;
        batch->block_table[s] = b->blocks + (size_t)s * (CONTEXT / KV_BLOCK_TOKENS);
    }
    for (uint32_t r = 0; r < probe->rows; r++)
        batch->rows[r] = (struct batch_row){
            .token = (r + 1) * probe->tokens_each - 1, .params = &greedy, .position = probe->context};
}

static enum status time_probe(struct bench *b, uint32_t idx, uint32_t run)
{
    const struct clock *clock = clock_system();
    struct probe probe = probe_at(idx);
    fill(b, &probe);
    uint64_t start_ns = clock_now_ns(clock);
    TRY(device_step(b->device, b->batch, b->result));
    b->times[idx][run] = (double)(clock_now_ns(clock) - start_ns) * 1e-9;
    return ST_OK;
}

static double at_least_0(double value)
{
    return value > 0 ? value : 0;
}

/* The probes' means into the model. What a base step has of rows and pairs is taken out of it again. */
static void fit(const double mean[PROBES], struct cpu_cost *cost)
{
    const double *more = mean + COST_POINTS;
    uint32_t at_64 = 6, at_256 = 8;
    double pairs_0 = 256.0 * 257 / 2, pairs_deep = (769.0 + 1024.0) / 2 * 256;
    cost->pair_s = at_least_0(more[2] - mean[at_256]) / (pairs_deep - pairs_0);
    cost->kv_s = at_least_0(more[1] - more[0]) / (64.0 * (1024 - 33));
    cost->kv_s = at_least_0(cost->kv_s - cost->pair_s); /* a decode's pairs are as many as its KV positions */
    double base_64 = mean[at_64] - cost->pair_s * 64 * 65 / 2;
    double decode_64 = more[0] - (cost->pair_s + cost->kv_s) * 64 * 33;
    cost->row_s = at_least_0(decode_64 - base_64) / 63;
    for (uint32_t i = 0; i < COST_POINTS; i++) {
        double M = base_tokens[i];
        cost->tokens[i] = M;
        cost->base_s[i] = at_least_0(mean[i] - cost->row_s - cost->kv_s * M - cost->pair_s * M * (M + 1) / 2);
    }
}

enum status cpu_cost_measure(struct device *device, double seconds, struct cpu_cost *cost, struct error *err)
{
    static struct bench b;
    const struct clock *clock = clock_system();
    double mean[PROBES];
    uint32_t runs = 0;
    b.device = device;
    for (uint32_t i = 0; i < BLOCKS; i++) b.blocks[i] = i;
    enum status status = batch_create(512, SEQS, SEQS, &b.batch);
    if (status == ST_OK) status = batch_result_create(SEQS, &b.result);
    uint64_t start_ns = clock_now_ns(clock);
    while (status == ST_OK && runs < RUNS_MAX &&
           (runs < 3 || (double)(clock_now_ns(clock) - start_ns) < seconds * 1e9)) {
        for (uint32_t i = 0; status == ST_OK && i < PROBES; i++) status = time_probe(&b, i, runs);
        runs++;
    }
    if (status != ST_OK) error_set(err, status, "cost of the CPU device: %s", status_text(status));
    for (uint32_t i = 0; status == ST_OK && i < PROBES; i++) {
        mean[i] = 0;
        for (uint32_t k = 0; k < runs; k++) mean[i] += b.times[i][k] / runs;
    }
    if (status == ST_OK) fit(mean, cost);
    batch_result_destroy(b.result);
    batch_destroy(b.batch);
    b.result = NULL;
    b.batch = NULL;
    return status;
}

double cpu_cost_step(const void *state, const struct step_shape *step)
{
    const struct cpu_cost *cost = state;
    double M = step->tokens;
    uint32_t i = 1;
    while (i + 1 < COST_POINTS && M > cost->tokens[i]) i++;
    double base_s = cost->base_s[i - 1] + (cost->base_s[i] - cost->base_s[i - 1]) * (M - cost->tokens[i - 1]) /
                                              (cost->tokens[i] - cost->tokens[i - 1]);
    return base_s + cost->row_s * step->rows + cost->kv_s * step->kv_tokens + cost->pair_s * step->pairs;
}
