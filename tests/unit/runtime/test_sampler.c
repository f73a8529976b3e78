/* The sampler against brute force: sort everything, add everything up in double, walk. And against chance: the
 * frequencies of many draws (fixed seeds, so the result is the same in every run). */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/sampler.h"

#include <math.h>

enum { V_MAX = 3000 };

static const struct sampling_params plain = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1};
static float logits[V_MAX], effective[V_MAX];
static uint32_t order[V_MAX];

struct fixture {
    struct sampler sampler;
    void *memory;
};

/* Samples from `logits`, and sees that these are then as before (S3). */
static void sample(struct fixture *f, const struct batch_row *row, struct row_result *result)
{
    static float highest[V_MAX / SAMPLE_UNIT + 1], logits_before[V_MAX], highest_before[V_MAX / SAMPLE_UNIT + 1];
    struct logit_row view = {f->sampler.V, logits, highest};
    sample_scan(f->sampler.path, logits, view.V, highest);
    memcpy(logits_before, logits, view.V * sizeof *logits);
    memcpy(highest_before, highest, sample_units(view.V) * sizeof *highest);
    sampler_row(&f->sampler, &view, row, result);
    assert_memory_equal(logits, logits_before, view.V * sizeof *logits);
    assert_memory_equal(highest, highest_before, sample_units(view.V) * sizeof *highest);
}

static void fixture_make(struct fixture *f, enum cpu_path path, uint32_t V)
{
    f->memory = mem_alloc(sampler_bytes(V), 1);
    assert_non_null(f->memory);
    sampler_init(&f->sampler, path, V, f->memory);
}

static float uniform(uint64_t *state, float low, float high)
{
    return low + (high - low) * (float)(random_next(state) >> 40) * 0x1p-24f;
}

/* kind 0: spread over 20; 1: many ties; 2: nearly flat; 3: one far ahead; 4: all equal; 5: the best of them in one
 * unit, for ban_unit */
static void fill(uint32_t V, int kind, uint64_t *seed)
{
    for (uint32_t i = 0; i < V; i++) {
        logits[i] = uniform(seed, -10, 10);
        if (kind == 1) logits[i] = (float)(random_next(seed) % 5);
        if (kind == 2) logits[i] = uniform(seed, 0, 0.5f);
    }
    if (kind == 3) logits[V / 2] = 40;
    for (uint32_t i = 0; kind == 4 && i < V; i++) logits[i] = -3;
    for (uint32_t i = SAMPLE_UNIT; kind == 5 && i < 2 * SAMPLE_UNIT && i < V; i++) logits[i] += 20;
}

static int by_logit(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    if (effective[x] != effective[y]) return effective[x] > effective[y] ? -1 : 1;
    return (x > y) - (x < y);
}

static void brute_effective(uint32_t V, const struct batch_row *row)
{
    const struct sampling_params *p = row->params;
    for (uint32_t i = 0; i < V; i++) {
        bool allowed = !p->allowed;
        for (uint32_t k = 0; p->allowed && k < p->allowed_count; k++) allowed |= p->allowed[k] == i;
        for (uint32_t k = 0; k < row->banned_count; k++) allowed &= row->banned[k] != i;
        effective[i] = allowed ? logits[i] : -INFINITY;
        for (uint32_t k = 0; k < p->bias_count; k++) effective[i] += p->bias[k].id == i ? p->bias[k].bias : 0;
        uint32_t seen = 0, times = 0;
        for (uint32_t k = 0; k < row->seen_count; k++) {
            seen += row->seen[k] == i;
            times += row->seen[k] == i && k >= row->seen_prompt;
        }
        if (seen && effective[i] > 0)
            effective[i] /= p->repetition_penalty;
        else if (seen)
            effective[i] *= p->repetition_penalty;
        effective[i] -= (float)times * p->frequency_penalty;
        if (times) effective[i] -= p->presence_penalty;
    }
}

/* The id that the definition gives; false when rounding could decide (a sum within 1e-5 of a border). */
static bool brute(uint32_t V, const struct batch_row *row, uint32_t *id)
{
    const struct sampling_params *p = row->params;
    static double weights[V_MAX];
    brute_effective(V, row);
    for (uint32_t i = 0; i < V; i++) order[i] = i;
    qsort(order, V, sizeof order[0], by_logit);
    *id = order[0];
    if (p->temperature == 0) return true;
    uint32_t n = 0;
    double sum = 0, running = 0;
    for (; n < V && isfinite(effective[order[n]]) && (!p->top_k || n < p->top_k); n++) {
        weights[n] = exp(((double)effective[order[n]] - (double)effective[order[0]]) / (double)p->temperature);
        if (fabs(weights[n] - (double)p->min_p) < 1e-5 * (double)p->min_p) return false;
        if (weights[n] < (double)p->min_p) break;
        sum += weights[n];
    }
    if (p->top_p < 1) {
        for (uint32_t i = 0; i < n; i++) {
            running += weights[i];
            if (fabs(running - (double)p->top_p * sum) < 1e-5 * sum) return false;
            if (running > (double)p->top_p * sum) n = i + 1;
        }
        sum = 0;
        for (uint32_t i = 0; i < n; i++) sum += weights[i];
    }
    double goal = random_uniform(row->seed, row->position) * sum;
    running = 0;
    for (uint32_t i = 0; i < n; i++) {
        running += weights[i];
        if (fabs(running - goal) < 1e-5 * sum) return false;
        *id = order[i];
        if (running > goal) break;
    }
    return true;
}

static void random_params(struct sampling_params *p, struct batch_row *row, uint32_t V, uint64_t *seed)
{
    static uint32_t seen[60], banned[8], allowed[40];
    static struct logit_bias bias[5];
    *p = plain;
    uint64_t bits = random_next(seed);
    p->temperature = bits & 1 ? uniform(seed, 0.1f, 2) : 1;
    if (bits & 2) p->top_p = uniform(seed, 0.05f, 0.999f);
    if (bits & 4) p->top_k = 1 + (uint32_t)(random_next(seed) % (V + 10));
    if (bits & 8) p->min_p = uniform(seed, 0.001f, 0.5f);
    if (bits & 16) p->repetition_penalty = uniform(seed, 0.5f, 2);
    if (bits & 32) p->frequency_penalty = uniform(seed, -2, 2);
    if (bits & 64) p->presence_penalty = uniform(seed, -2, 2);
    if ((bits & 0x700) == 0) p->temperature = 0;
    for (uint32_t i = 0; i < 60; i++) seen[i] = (uint32_t)(random_next(seed) % (V < 40 ? V : 40));
    for (uint32_t i = 0; i < 8; i++) banned[i] = (uint32_t)(random_next(seed) % V);
    for (uint32_t i = 0; i < 5; i++) bias[i] = (struct logit_bias){i * V / 5, uniform(seed, -5, 5)};
    for (uint32_t i = 0; i < 40; i++) allowed[i] = (uint32_t)((i * UINT64_C(37)) % V);
    *row = (struct batch_row){.params = p,
                              .seed = random_next(seed),
                              .position = (uint32_t)(bits >> 40),
                              .seen = seen,
                              .seen_prompt = 30,
                              .seen_count = 60};
    if (bits & 0x800) row->banned = banned, row->banned_count = 8;
    if (bits & 0x1000 && V >= 5) p->bias = bias, p->bias_count = 5;
    if ((bits & 0xe000) == 0) p->allowed = allowed, p->allowed_count = 40;
}

static void ban_unit(struct batch_row *row)
{
    static uint32_t unit[SAMPLE_UNIT];
    for (uint32_t i = 0; i < SAMPLE_UNIT; i++) unit[i] = SAMPLE_UNIT + i;
    row->banned = unit;
    row->banned_count = SAMPLE_UNIT;
}

static void test_sampler_equals_brute_force(void **state)
{
    (void)state;
    uint64_t seed = 14;
    static const uint32_t sizes[] = {1, 7, 16, 100, 1000, V_MAX};
    uint32_t compared = 0, left_out = 0;
    for (enum cpu_path path = CPU_PATH_SCALAR; path < CPU_PATH_COUNT; path++) {
        for (size_t s = 0; s < 6 && cpu_path_supported(path); s++) {
            struct fixture f;
            fixture_make(&f, path, sizes[s]);
            for (int round = 0; round < 150; round++) {
                struct sampling_params params;
                struct batch_row row;
                struct row_result result;
                uint32_t wanted;
                fill(sizes[s], round % 6, &seed);
                random_params(&params, &row, sizes[s], &seed);
                if (round % 6 == 5 && sizes[s] > 2 * SAMPLE_UNIT) ban_unit(&row);
                sample(&f, &row, &result);
                bool certain = brute(sizes[s], &row, &wanted);
                if (!isfinite(effective[order[0]])) {
                    assert_int_equal(result.flags, ROW_NO_CHOICE);
                    continue;
                }
                assert_int_equal(result.flags, 0);
                if (certain && result.id != wanted) {
                    fail_msg("V %u round %d: %u (%g), wanted %u (%g); T %g k %u p %g min_p %g", sizes[s], round,
                             result.id, (double)effective[result.id], wanted, (double)effective[wanted],
                             (double)params.temperature, params.top_k, (double)params.top_p, (double)params.min_p);
                }
                compared += certain;
                left_out += !certain;
            }
            for (uint32_t i = 0; i < sizes[s]; i++) assert_int_equal(f.sampler.marks[i], 0); /* S4 */
            mem_free(f.memory);
        }
    }
    assert_true(compared > 20 * left_out);
}

/* Pearson's statistic of 40,000 draws against the exact probabilities. */
static double chi_square(struct fixture *f, const struct sampling_params *params, const double *wanted, uint32_t V)
{
    enum { DRAWS = 40000 };
    static uint32_t counts[64];
    double statistic = 0;
    memset(counts, 0, sizeof counts);
    for (uint32_t i = 0; i < DRAWS; i++) {
        struct batch_row row = {.params = params, .seed = i % 97, .position = i / 97};
        struct row_result result;
        sample(f, &row, &result);
        counts[result.id]++;
    }
    for (uint32_t i = 0; i < V; i++) {
        double expected = wanted[i] * DRAWS;
        if (expected == 0)
            assert_int_equal(counts[i], 0);
        else
            statistic += ((double)counts[i] - expected) * ((double)counts[i] - expected) / expected;
    }
    return statistic;
}

static void test_sampler_draws_with_the_right_frequencies(void **state)
{
    (void)state;
    struct fixture f;
    double wanted[20], sum = 0;
    fixture_make(&f, cpu_path_best(), 20);
    for (uint32_t i = 0; i < 20; i++) {
        logits[i] = (float)(i * 7 % 20) / 5;
        sum += wanted[i] = exp((double)logits[i] / 0.8);
    }
    for (uint32_t i = 0; i < 20; i++) wanted[i] /= sum;
    struct sampling_params params = plain;
    params.temperature = 0.8f;
    double statistic = chi_square(&f, &params, wanted, 20);
    if (!(statistic < 43.8)) fail_msg("chi-square %g with 19 degrees of freedom (0.1 %% lies above 43.8)", statistic);
    params.top_k = 5; /* logits 3.8 down to 3.0 */
    sum = 0;
    for (uint32_t i = 0; i < 20; i++) sum += wanted[i] = logits[i] > 2.9f ? exp((double)logits[i] / 0.8) : 0;
    for (uint32_t i = 0; i < 20; i++) wanted[i] /= sum;
    statistic = chi_square(&f, &params, wanted, 20);
    if (!(statistic < 18.5)) fail_msg("chi-square %g with 4 degrees of freedom (0.1 %% lies above 18.5)", statistic);
    mem_free(f.memory);
}

static void check_scores(const struct row_result *result, uint32_t V, uint32_t wanted_top)
{
    double sum = 0;
    uint32_t rank = 1;
    for (uint32_t i = 0; i < V; i++) sum += exp((double)logits[i] - 10);
    for (uint32_t i = 0; i < V; i++) {
        effective[i] = logits[i];
        order[i] = i;
        rank += logits[i] > logits[result->id] || (logits[i] == logits[result->id] && i < result->id);
    }
    qsort(order, V, sizeof order[0], by_logit);
    assert_true(fabs((double)result->logprob - ((double)logits[result->id] - 10 - log(sum))) < 1e-5);
    assert_int_equal(result->rank, rank);
    assert_int_equal(result->top_count, wanted_top < V ? wanted_top : V);
    for (uint32_t i = 0; i < result->top_count; i++) {
        assert_int_equal(result->top_ids[i], order[i]);
        assert_true(fabs((double)result->top_logprobs[i] - ((double)logits[order[i]] - 10 - log(sum))) < 1e-5);
    }
}

static void test_sampler_scores_raw_logits(void **state)
{
    (void)state;
    uint64_t seed = 15;
    static const uint32_t sizes[] = {1, 5, 21, 300, V_MAX};
    for (size_t s = 0; s < 5; s++) {
        struct fixture f;
        fixture_make(&f, cpu_path_best(), sizes[s]);
        for (int round = 0; round < 60; round++) {
            struct sampling_params params;
            struct batch_row row;
            struct row_result result;
            fill(sizes[s], round % 3, &seed);
            random_params(&params, &row, sizes[s], &seed);
            params.logprobs = round % 22;
            row.score_only = round % 2;
            row.target = (uint32_t)(random_next(&seed) % sizes[s]);
            sample(&f, &row, &result);
            if (result.flags) continue; /* no choice: everything was masked */
            if (row.score_only) assert_int_equal(result.id, row.target);
            check_scores(&result, sizes[s], (uint32_t)params.logprobs);
        }
        mem_free(f.memory);
    }
}

static void test_sampler_flags_its_row(void **state)
{
    (void)state;
    uint64_t seed = 16;
    struct fixture f;
    struct row_result result;
    struct sampling_params params = plain;
    struct batch_row row = {.params = &params};
    fixture_make(&f, cpu_path_best(), 100);
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3; i++) {
        fill(100, 0, &seed);
        logits[93 - i] = odd[i];
        sample(&f, &row, &result);
        assert_int_equal(result.flags, ROW_NOT_FINITE);
    }
    fill(100, 0, &seed);
    uint32_t allowed[] = {4, 9};
    params.allowed = allowed;
    params.allowed_count = 2;
    row.banned = allowed;
    row.banned_count = 2;
    sample(&f, &row, &result);
    assert_int_equal(result.flags, ROW_NO_CHOICE);
    row.banned_count = 1;
    sample(&f, &row, &result);
    assert_int_equal(result.flags, 0);
    assert_int_equal(result.id, 9);
    mem_free(f.memory);
}

static void test_sampler_takes_extreme_temperatures(void **state)
{
    (void)state;
    uint64_t seed = 17;
    struct fixture f;
    struct row_result result;
    struct sampling_params params = plain;
    fixture_make(&f, cpu_path_best(), V_MAX);
    static const float temperatures[] = {1e-45f, 1e-30f, 1e-6f, 1e-4f};
    for (size_t i = 0; i < 4; i++) {
        fill(V_MAX, 0, &seed);
        logits[1234] = 11; /* ahead by at least 1 */
        params.temperature = temperatures[i];
        struct batch_row row = {.params = &params, .seed = 5, .position = (uint32_t)i};
        sample(&f, &row, &result);
        assert_int_equal(result.flags, 0);
        assert_int_equal(result.id, 1234);
    }
    mem_free(f.memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sampler_equals_brute_force),
                                       cmocka_unit_test(test_sampler_draws_with_the_right_frequencies),
                                       cmocka_unit_test(test_sampler_scores_raw_logits),
                                       cmocka_unit_test(test_sampler_flags_its_row),
                                       cmocka_unit_test(test_sampler_takes_extreme_temperatures)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
