/* kernels/sample.cu against runtime/sampler.c: the same rows of logits and the same requests to both; ids, flags, ranks
 * and lists are equal, log-probabilities within a step of f32. Rows are laid out by a packer of this file's own,
 * results poisoned before each launch, and each step runs twice. */
#include "tests/unit/unit.h"

#include "kernels/cuda_ops.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/sampler.h"
#include "tests/emulator/counters.h"

#include <math.h>

/* Under the race detector, which takes fifty times as long, and under schedules.sh, which runs the program again and
 * again, every kernel and branch is met with some of the cases. */
#if defined(__SANITIZE_THREAD__)
static uint32_t fewer = 16;
#elif defined(__SANITIZE_ADDRESS__)
static uint32_t fewer = 4;
#else
static uint32_t fewer = 1;
#endif
enum { ROWS_MAX = 12, LISTS_MAX = 8192, SEEN_MAX = 60 };

static const struct sampling_params plain = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1};

/* A step of rows in host memory; row r is token r, the only one of sequence r, unless a test says otherwise. */
static struct {
    uint32_t V, stride, count;
    float scale;
    float *logits;
    struct sampling_params params[ROWS_MAX];
    struct batch_row rows[ROWS_MAX];
    uint32_t pending[ROWS_MAX]; /* 1 + row of the step before */
    uint32_t seen[ROWS_MAX][SEEN_MAX + 1], banned[ROWS_MAX][8], allowed[ROWS_MAX][40];
    struct logit_bias bias[ROWS_MAX][5];
    uint32_t bad[ROWS_MAX], seq_of_token[ROWS_MAX], q_start[ROWS_MAX + 1], previous[ROWS_MAX];
    struct row_result results[ROWS_MAX];
    uint32_t ids[ROWS_MAX];
} step;

static cudaStream_t stream;

static void *device_bytes(const void *source, size_t bytes)
{
    void *p;
    assert_int_equal(cudaMalloc(&p, bytes ? bytes : 16), cudaSuccess);
    if (source) assert_int_equal(cudaMemcpy(p, source, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    if (!source) assert_int_equal(cudaMemsetAsync(p, 0xdb, bytes, stream), cudaSuccess);
    return p;
}

static void start(uint32_t V, uint32_t rows)
{
    memset(&step, 0, sizeof step);
    step.V = V;
    step.stride = (V + 3) / 4 * 4 + 8;
    step.count = rows;
    step.scale = 1;
    step.logits = mem_alloc((size_t)rows * step.stride, sizeof(float));
    assert_non_null(step.logits);
    for (uint32_t r = 0; r < rows; r++) {
        step.params[r] = plain;
        step.rows[r] = (struct batch_row){.token = r, .params = &step.params[r], .seed = r + 1};
        step.seq_of_token[r] = step.q_start[r] = r;
    }
    step.q_start[rows] = rows;
}

static void finish(void)
{
    mem_free(step.logits);
    step.logits = NULL;
}

static float *logits_of(uint32_t r)
{
    return step.logits + (size_t)r * step.stride;
}

static uint32_t put(uint32_t *lists, uint32_t *used, const void *values, uint32_t count)
{
    uint32_t at = *used;
    assert_true(at + count <= LISTS_MAX);
    if (count) memcpy(lists + at, values, count * sizeof *lists);
    *used += count;
    return at;
}

static struct cuda_row pack(uint32_t r, uint32_t *lists, uint32_t *used)
{
    const struct batch_row *row = &step.rows[r];
    const struct sampling_params *p = row->params;
    struct cuda_row out = {.seed = row->seed, .token = row->token, .position = row->position, .target = row->target};
    if (row->score_only) out.flags |= CUDA_ROW_SCORE_ONLY;
    if (step.pending[r]) {
        out.flags |= CUDA_ROW_PENDING_SEEN;
        out.pending = step.pending[r] - 1;
    }
    out.temperature = p->temperature;
    out.top_p = p->top_p;
    out.min_p = p->min_p;
    out.top_k = p->top_k;
    out.repetition_penalty = p->repetition_penalty;
    out.frequency_penalty = p->frequency_penalty;
    out.presence_penalty = p->presence_penalty;
    out.logprobs = p->logprobs;
    out.bias = put(lists, used, p->bias, 2 * p->bias_count);
    out.bias_count = p->bias_count;
    out.any_allowed = p->allowed != NULL;
    out.allowed_count = p->allowed_count;
    out.allowed = put(lists, used, p->allowed, p->allowed_count);
    out.banned_count = row->banned_count;
    out.banned = put(lists, used, row->banned, row->banned_count);
    out.seen_prompt = row->seen_prompt;
    out.seen_count = row->seen_count;
    out.seen = put(lists, used, row->seen, row->seen_count);
    return out;
}

/* Runs the step on the device, `live` of its rows in a launch of `launched`; results and ids of all, poison included.
 */
static void run_part(uint32_t live, uint32_t launched)
{
    static struct cuda_row rows[ROWS_MAX];
    static uint32_t lists[LISTS_MAX];
    uint32_t used = 0, R = step.count;
    for (uint32_t r = 0; r < R; r++) rows[r] = pack(r, lists, &used);
    struct cuda_step_header header = {.tokens = R, .seqs = R, .rows = live};
    struct cuda_step on_device = {.header = device_bytes(&header, sizeof header),
                                  .rows = device_bytes(rows, R * sizeof *rows),
                                  .lists = device_bytes(lists, used * sizeof *lists),
                                  .seq_of_token = device_bytes(step.seq_of_token, R * sizeof(uint32_t)),
                                  .q_start = device_bytes(step.q_start, (R + 1) * sizeof(uint32_t))};
    size_t scratch_bytes = cuda_sample_scratch_bytes(launched, step.V);
    struct cuda_sample sample = {.logits = device_bytes(step.logits, (size_t)R * step.stride * sizeof(float)),
                                 .stride = step.stride,
                                 .V = step.V,
                                 .logit_scale = step.scale,
                                 .bad = device_bytes(step.bad, R * sizeof(uint32_t)),
                                 .previous = device_bytes(step.previous, R * sizeof(uint32_t)),
                                 .ids = device_bytes(NULL, R * sizeof(uint32_t)),
                                 .results = device_bytes(NULL, R * sizeof(struct row_result)),
                                 .scratch = device_bytes(NULL, scratch_bytes)};
    for (int round = 0; round < 2; round++) {
        assert_int_equal(cudaMemsetAsync(sample.ids, 0xdb, R * sizeof(uint32_t), stream), cudaSuccess);
        assert_int_equal(cudaMemsetAsync(sample.results, 0xdb, R * sizeof(struct row_result), stream), cudaSuccess);
        counters_start();
        counters_watch("logits", sample.logits, (size_t)R * step.stride * sizeof(float));
        assert_int_equal(cuda_sample(&sample, &on_device, launched, stream), cudaSuccess);
        assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
        counters_stop();
        struct row_result results[ROWS_MAX];
        size_t bytes = R * sizeof *results;
        assert_int_equal(cudaMemcpy(results, sample.results, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
        if (round) assert_memory_equal(results, step.results, bytes);
        memcpy(step.results, results, bytes);
    }
    assert_int_equal(cudaMemcpy(step.ids, sample.ids, R * sizeof(uint32_t), cudaMemcpyDeviceToHost), cudaSuccess);
    const void *all[] = {on_device.header,  on_device.rows, on_device.lists, on_device.seq_of_token,
                         on_device.q_start, sample.logits,  sample.bad,      sample.previous,
                         sample.ids,        sample.results, sample.scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        union {
            const void *read;
            void *any;
        } p = {.read = all[i]};
        assert_int_equal(cudaFree(p.any), cudaSuccess);
    }
}

static void run(void)
{
    run_part(step.count, step.count);
}

/* What the CPU chooses for row r. A pending id is appended to what was seen. */
static void choose_on_cpu(uint32_t r, struct row_result *result)
{
    static struct sampler sampler;
    static void *memory;
    static float *logits, *highest;
    if (sampler.V != step.V) {
        mem_free(memory);
        mem_free(logits);
        mem_free(highest);
        memory = mem_alloc(sampler_bytes(step.V) + 64, 1);
        logits = mem_alloc(step.V, sizeof *logits);
        highest = mem_alloc(sample_units(step.V), sizeof *highest);
        assert_true(memory && logits && highest);
        memset(memory, 0, sampler_bytes(step.V) + 64);
        sampler_init(&sampler, cpu_path_best(), step.V, (void *)(((uintptr_t)memory + 63) & ~(uintptr_t)63));
    }
    for (uint32_t i = 0; i < step.V; i++) logits[i] = logits_of(r)[i] * step.scale;
    struct logit_row view = {step.V, logits, highest};
    struct batch_row row = step.rows[r];
    if (step.pending[r]) {
        assert_ptr_equal(row.seen, step.seen[r]);
        step.seen[r][row.seen_count++] = step.previous[step.pending[r] - 1];
    }
    sample_scan(sampler.path, logits, step.V, highest);
    memset(result, 0, sizeof *result);
    sampler_row(&sampler, &view, &row, result);
}

static double worst_logprob; /* largest difference met, in steps of f32 at that magnitude */

static void compare_logprobs(float a, float b)
{
    double one = fmax(fabs((double)b) * 0x1p-23, step.V * 0x1p-52); /* near 0 the sums' own rounding counts */
    double ulps = fabs((double)a - (double)b) / one;
    if (ulps > worst_logprob) worst_logprob = ulps;
    if (!(ulps <= 1.01)) fail_msg("log-probability %.9g, the CPU has %.9g", (double)a, (double)b);
}

static void compare_row(uint32_t r)
{
    const struct row_result *got = &step.results[r];
    const struct sampling_params *p = step.rows[r].params;
    struct row_result want;
    choose_on_cpu(r, &want);
    if (got->id != want.id || got->flags != want.flags || step.ids[r] != want.id) {
        fail_msg("V %u row %u: %u (%g) flags %u, ids %u; the CPU has %u (%g) flags %u; T %g k %u p %g min_p %g", step.V,
                 r, got->id, (double)logits_of(r)[got->id % step.V], got->flags, step.ids[r], want.id,
                 (double)logits_of(r)[want.id], want.flags, (double)p->temperature, p->top_k, (double)p->top_p,
                 (double)p->min_p);
    }
    assert_int_equal(got->rank, want.rank);
    assert_int_equal(got->top_count, want.top_count);
    compare_logprobs(got->logprob, want.logprob);
    for (uint32_t i = 0; i < want.top_count; i++) {
        if (got->top_ids[i] != want.top_ids[i]) {
            fail_msg("V %u row %u: best %u of %u is %u, the CPU has %u", step.V, r, i, want.top_count, got->top_ids[i],
                     want.top_ids[i]);
        }
        compare_logprobs(got->top_logprobs[i], want.top_logprobs[i]);
    }
}

static void run_and_compare(void)
{
    run();
    for (uint32_t r = 0; r < step.count; r++) compare_row(r);
}

static float between(uint64_t *seed, float low, float high)
{
    return low + (high - low) * (float)(random_next(seed) >> 40) * 0x1p-24f;
}

enum { SPREAD, TIES, FLAT, AHEAD, EQUAL, ZEROS, NORMAL, HUGE, FEW_LEVELS, CROWDED, KINDS };

static float logit_of_kind(int kind, uint32_t i, uint64_t *seed)
{
    float sum = 0;
    switch (kind) {
    case TIES: return (float)(random_next(seed) % 5);
    case FLAT: return between(seed, 0, 0.5f);
    case AHEAD: return i == step.V / 2 ? 40 : between(seed, -10, 10);
    case EQUAL: return -3;
    case ZEROS: return random_next(seed) % 2 ? -0.0f : 0.0f;
    case NORMAL:
        for (int k = 0; k < 12; k++) sum += between(seed, -1, 1);
        return sum * 1.3f;
    case HUGE: return between(seed, -3e38f, 3e38f);
    case FEW_LEVELS: return (float)(random_next(seed) % 3) * 0.6931472f;
    case CROWDED: return 17.25f + (float)(random_next(seed) % 700) * 0x1p-19f;
    default: return between(seed, -10, 10);
    }
}

static void fill(uint32_t r, int kind, uint64_t *seed)
{
    for (uint32_t i = 0; i < step.V; i++) logits_of(r)[i] = logit_of_kind(kind, i, seed);
    for (uint32_t i = step.V; i < step.stride; i++) logits_of(r)[i] = NAN; /* never looked at */
}

static void random_lists(uint32_t r, uint64_t bits, uint64_t *seed)
{
    uint32_t V = step.V;
    struct batch_row *row = &step.rows[r];
    struct sampling_params *p = &step.params[r];
    uint32_t narrow = bits & 1 && V > 40 ? 40 : V;
    for (uint32_t i = 0; i < SEEN_MAX; i++) step.seen[r][i] = (uint32_t)(random_next(seed) % narrow);
    for (uint32_t i = 0; i < 8; i++) step.banned[r][i] = (uint32_t)(random_next(seed) % V);
    for (uint32_t i = 0; i < 5; i++) step.bias[r][i] = (struct logit_bias){i * (V / 5), between(seed, -5, 5)};
    for (uint32_t i = 0; i < 40; i++) step.allowed[r][i] = (uint32_t)(random_next(seed) % V);
    row->seen = step.seen[r];
    row->seen_prompt = 30;
    row->seen_count = SEEN_MAX;
    if (bits & 2) row->banned = step.banned[r], row->banned_count = 8;
    if (bits & 4 && V >= 5) p->bias = step.bias[r], p->bias_count = 5;
    if ((bits & 0x38) == 0) p->allowed = step.allowed[r], p->allowed_count = 40;
    step.previous[r] = (uint32_t)(random_next(seed) % narrow);
    if (bits & 0x40) step.pending[r] = 1 + (uint32_t)(random_next(seed) % step.count);
}

static void random_request(uint32_t r, uint64_t *seed)
{
    static const float temperatures[] = {1, 0.7f, 0.1f, 2, 1e-3f, 1e-30f, 0.35f, 1.3f};
    struct batch_row *row = &step.rows[r];
    struct sampling_params *p = &step.params[r];
    uint64_t bits = random_next(seed);
    p->temperature = bits & 0x700 ? temperatures[bits >> 8 & 7] : 0;
    if (bits & 2) p->top_p = bits & 0x10000 ? 0.5f : between(seed, 0.05f, 0.999f);
    if (bits & 4) p->top_k = 1 + (uint32_t)(random_next(seed) % (bits & 0x20000 ? 50 : step.V + 10));
    if (bits & 8) p->min_p = bits & 0x40000 ? 1 : between(seed, 0.001f, 0.5f);
    if ((bits & 0x90) == 0x10) p->repetition_penalty = between(seed, 0.5f, 2);
    if ((bits & 0xa0) == 0x20) p->frequency_penalty = between(seed, -2, 2);
    if ((bits & 0xc0) == 0x40) p->presence_penalty = between(seed, -2, 2);
    if (bits & 0x800) p->logprobs = (int32_t)(bits >> 24 & 31) - 2;
    row->seed = random_next(seed);
    row->position = (uint32_t)(bits >> 40);
    row->score_only = (bits & 0x7000) == 0;
    row->target = (uint32_t)(random_next(seed) % step.V);
    if (bits & 0x8000) random_lists(r, bits >> 32, seed);
}

static void compare_random_steps(uint32_t V, int steps, uint64_t *seed)
{
    for (int n = 0; n < steps; n++) {
        start(V, 1 + (uint32_t)(random_next(seed) % ROWS_MAX));
        if (n % 4 == 3) step.scale = 0.3f;
        for (uint32_t r = 0; r < step.count; r++) step.previous[r] = V; /* none of the vocabulary: without effect */
        for (uint32_t r = 0; r < step.count; r++) {
            fill(r, (int)(random_next(seed) % KINDS), seed);
            random_request(r, seed);
        }
        run_and_compare();
        finish();
    }
}

static void test_sample_equals_the_cpu(void **state)
{
    (void)state;
    static const struct {
        uint32_t V;
        int steps;
    } sizes[] = {{1, 8}, {2, 20}, {3, 8}, {5, 8}, {100, 20}, {1000, 20}, {1023, 10}, {1025, 10}, {3001, 20}, {9001, 4}};
    uint64_t seed = 29;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        compare_random_steps(sizes[i].V, (sizes[i].steps + (int)fewer - 1) / (int)fewer, &seed);
    print_message("worst log-probability: %.2f steps of f32\n", worst_logprob);
}

static void test_sample_takes_large_vocabularies(void **state)
{
    (void)state;
    uint64_t seed = 31;
    const uint32_t sizes[] = {fewer > 1 ? 9000 : 49152, 50257, 262145};
    for (size_t i = 0; i < (fewer > 1 ? 1 : 3); i++) {
        start(sizes[i], 3);
        for (uint32_t r = 0; r < 3; r++) fill(r, i == 2 && r == 1 ? FLAT : NORMAL, &seed);
        step.params[0].temperature = 0;
        step.params[0].logprobs = 20;
        step.params[1].logprobs = 3;
        step.params[2].temperature = 0.8f;
        step.params[2].top_p = 0.9f;
        run_and_compare();
        finish();
    }
}

/* Places where one item more or less would be another id: the k-th of equals, half of equal weights, the first and the
 * last item of the order. */
static void test_sample_keeps_to_its_borders(void **state)
{
    (void)state;
    uint64_t seed = 37;
    for (uint32_t position = 0; position < 40; position += fewer) {
        start(1500, 8);
        for (uint32_t r = 0; r < 8; r++) {
            fill(r, r < 5 ? EQUAL : r < 7 ? FEW_LEVELS : CROWDED, &seed);
            step.rows[r].position = position;
            step.params[r].logprobs = (int32_t)(position % 22);
        }
        step.params[0].top_k = 1;
        step.params[1].top_k = 1 + 37 * position;
        step.params[2].top_p = 0.5f;
        step.params[3].top_p = (float)position / 64 + 0x1p-12f;
        step.params[4].top_p = 0x1p-20f;
        step.params[5].top_k = 500 + position;
        step.params[6].top_p = 0.75f;
        run_and_compare();
        for (uint32_t r = 0; r < 5; r++) assert_true(step.results[r].id < 1500);
        assert_int_equal(step.results[0].id, 0);
        assert_true(step.results[2].id < 750);
        assert_int_equal(step.results[4].id, 0);
        finish();
    }
}

/* The second of two logits lies at ln(min_p) to the bit, so it stays only where (l - peak) / T has the CPU's bits. */
static void test_sample_keeps_to_the_border_of_min_p(void **state)
{
    (void)state;
    uint64_t seed = 59;
    for (uint32_t n = 0; n < 10; n += fewer) {
        start(2, ROWS_MAX);
        for (uint32_t r = 0; r < ROWS_MAX; r++) {
            struct sampling_params *p = &step.params[r];
            do {
                p->temperature = between(&seed, 0.3f, 2);
                logits_of(r)[1] = 0;
                logits_of(r)[0] = between(&seed, -0.2f, -0.05f);
                p->min_p = (float)exp((double)(logits_of(r)[0] / p->temperature));
            } while ((float)log((double)p->min_p) != logits_of(r)[0] / p->temperature);
            step.rows[r].seed = random_next(&seed);
        }
        run_and_compare();
        uint32_t lower = 0;
        for (uint32_t r = 0; r < ROWS_MAX; r++) lower += step.results[r].id == 0;
        assert_in_range(lower, 1, ROWS_MAX - 1);
        finish();
    }
}

/* A penalised logit and another that equals it to the bit, after a product and two differences rounded each: the lower
 * id wins. Then the id of the step before, which is the best, is penalised as output. */
static void test_sample_rounds_penalties_as_the_cpu(void **state)
{
    (void)state;
    uint64_t seed = 61;
    start(2, ROWS_MAX);
    for (uint32_t r = 0; r < ROWS_MAX; r++) {
        struct sampling_params *p = &step.params[r];
        uint32_t penalised = r % 2;
        p->temperature = 0;
        p->frequency_penalty = between(&seed, 0.1f, 2);
        p->presence_penalty = between(&seed, 0.1f, 2);
        float logit = logits_of(r)[penalised] = between(&seed, 0.01f, 0.1f), times = 3 * p->frequency_penalty;
        logits_of(r)[1 - penalised] = logit - times - p->presence_penalty;
        for (uint32_t i = 0; i < 3; i++) step.seen[r][i] = penalised;
        step.rows[r].seen = step.seen[r];
        step.rows[r].seen_count = 3;
    }
    run_and_compare();
    for (uint32_t r = 0; r < ROWS_MAX; r++) {
        assert_int_equal(step.results[r].id, 0);
        logits_of(r)[0] = 3;
        logits_of(r)[1] = 2.5f;
        step.params[r].frequency_penalty = r % 3 == 0;
        step.params[r].presence_penalty = r % 3 == 1;
        step.params[r].repetition_penalty = r % 3 == 2 ? 1.5f : 1;
        step.rows[r].seen_count = 0;
        step.previous[r] = r % 2;
        step.pending[r] = 1 + r;
    }
    run_and_compare();
    for (uint32_t r = 0; r < ROWS_MAX; r++) assert_int_equal(step.results[r].id, r % 2 == 0);
    finish();
}

static void test_sample_flags_its_row_alone(void **state)
{
    (void)state;
    uint64_t seed = 41;
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    struct row_result clean[ROWS_MAX];
    start(2500, 8);
    for (uint32_t r = 0; r < 8; r++) {
        fill(r, NORMAL, &seed);
        step.params[r].logprobs = 5;
        step.params[r].temperature = (float)(r % 2);
    }
    run_and_compare();
    memcpy(clean, step.results, sizeof clean);
    for (uint32_t i = 0; i < 3; i++) logits_of(2 + i)[i * 1200 + 1] = odd[i];
    step.params[5].allowed = step.allowed[5]; /* nothing is allowed */
    static const uint32_t only[] = {7, 9};
    step.params[6].allowed = step.rows[6].banned = only;
    step.params[6].allowed_count = 2;
    step.rows[6].banned_count = 1;
    run();
    for (uint32_t r = 0; r < 8; r++) {
        if (r == 0 || r == 1 || r == 7) assert_memory_equal(&step.results[r], &clean[r], sizeof clean[r]);
        if (r < 2 || r == 7) continue;
        compare_row(r);
        assert_int_equal(step.results[r].flags, r < 5 ? ROW_NOT_FINITE : r == 5 ? ROW_NO_CHOICE : 0);
        assert_int_equal(step.results[r].id, r == 6 ? 9 : 0);
    }
    finish();
}

static void test_sample_spreads_bad_tokens_in_their_sequence(void **state)
{
    (void)state;
    uint64_t seed = 43;
    start(300, 6); /* sequences of tokens 0; 1, 2, 3; 4, 5 */
    static const uint32_t seq_of_token[] = {0, 1, 1, 1, 2, 2}, q_start[] = {0, 1, 4, 6};
    memcpy(step.seq_of_token, seq_of_token, sizeof seq_of_token);
    memcpy(step.q_start, q_start, sizeof q_start);
    for (uint32_t r = 0; r < 6; r++) fill(r, SPREAD, &seed);
    step.bad[2] = 1;
    run();
    for (uint32_t r = 0; r < 6; r++) {
        bool bad = r == 2 || r == 3;
        assert_int_equal(step.results[r].flags, bad ? ROW_NOT_FINITE : 0);
        if (bad) assert_int_equal(step.ids[r], 0);
        if (!bad) compare_row(r);
    }
    finish();
}

/* Bits do not depend on neighbours, on the launch's size or on rows beyond the header's, which write nothing. */
static void test_sample_depends_on_its_row_alone(void **state)
{
    (void)state;
    uint64_t seed = 47;
    struct row_result together[ROWS_MAX];
    start(fewer > 1 ? 4500 : 9000, ROWS_MAX);
    for (uint32_t r = 0; r < ROWS_MAX; r++) {
        fill(r, r % 2 ? NORMAL : TIES, &seed);
        random_request(r, &seed);
        step.params[r].logprobs = (int32_t)r;
    }
    run();
    memcpy(together, step.results, sizeof together);
    run_part(3, ROWS_MAX);
    const uint8_t *beyond = (const uint8_t *)&step.results[3];
    for (size_t i = 0; i < sizeof(struct row_result) * (ROWS_MAX - 3); i++) assert_int_equal(beyond[i], 0xdb);
    for (uint32_t r = 3; r < ROWS_MAX; r++) assert_int_equal(step.ids[r], 0xdbdbdbdb);
    assert_memory_equal(step.results, together, 3 * sizeof together[0]);
    run_part(1, 1);
    assert_memory_equal(step.results, together, sizeof together[0]);
    run_part(0, ROWS_MAX);
    run_part(0, 0);
    assert_int_equal(step.ids[0], 0xdbdbdbdb);
    finish();
}

static double sectors_read_of_ideal(void)
{
    struct range_counts counts;
    assert_true(counters_range("logits", &counts));
    assert_int_equal(counts.written_sectors, 0);
    return (double)counts.read_sectors / (step.count * ((step.V + 7) / 8));
}

static void test_sample_reads_greedy_rows_once(void **state)
{
    (void)state;
    uint64_t seed = 53;
    start(fewer > 1 ? 8199 : 32775, 3); /* rows begin at whole sectors */
    for (uint32_t r = 0; r < step.count; r++) {
        fill(r, NORMAL, &seed);
        step.params[r].temperature = 0;
    }
    run_and_compare();
    double greedy = sectors_read_of_ideal();
    for (uint32_t r = 0; r < step.count; r++) step.params[r].temperature = 0.7f;
    run_and_compare();
    double drawn = sectors_read_of_ideal();
    for (uint32_t r = 0; r < step.count; r++) step.params[r].logprobs = 5;
    run_and_compare();
    print_message("sectors of logits read, of the ideal: greedy %.3f, drawn %.3f, drawn with log-probabilities %.3f\n",
                  greedy, drawn, sectors_read_of_ideal());
    assert_true(greedy >= 1 && greedy <= 1.05);
    assert_true(drawn <= 4);
    finish();
}

static void test_sample_refuses_what_it_cannot(void **state)
{
    (void)state;
    struct cuda_step none = {0};
    struct cuda_sample sample = {.V = (1u << 21) + 1, .stride = 1u << 22};
    assert_int_equal(cuda_sample(&sample, &none, 1, stream), cudaErrorInvalidValue);
    sample = (struct cuda_sample){.V = 10, .stride = 11};
    assert_int_equal(cuda_sample(&sample, &none, 1, stream), cudaErrorInvalidValue);
    sample = (struct cuda_sample){.V = 10, .stride = 8};
    assert_int_equal(cuda_sample(&sample, &none, 1, stream), cudaErrorInvalidValue);
}

int main(void)
{
    if (getenv("CUSIM_SEED")) fewer = 8;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample_equals_the_cpu),
        cmocka_unit_test(test_sample_takes_large_vocabularies),
        cmocka_unit_test(test_sample_keeps_to_its_borders),
        cmocka_unit_test(test_sample_keeps_to_the_border_of_min_p),
        cmocka_unit_test(test_sample_rounds_penalties_as_the_cpu),
        cmocka_unit_test(test_sample_flags_its_row_alone),
        cmocka_unit_test(test_sample_spreads_bad_tokens_in_their_sequence),
        cmocka_unit_test(test_sample_depends_on_its_row_alone),
        cmocka_unit_test(test_sample_reads_greedy_rows_once),
        cmocka_unit_test(test_sample_refuses_what_it_cannot),
    };
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
