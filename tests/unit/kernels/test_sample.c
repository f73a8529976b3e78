/* The passes over logits: every path gives what plain loops and a full sort give, with ties, masks, zeros of both
 * signs. */
#include "tests/unit/unit.h"

#include "kernels/sample.h"
#include "tests/unit/kernels/paths.h"

#include <math.h>

enum { V_MAX = 5000 };
static float logits[V_MAX], highest[V_MAX / SAMPLE_UNIT + 1];
static uint64_t keys[V_MAX], spare[V_MAX], wanted_keys[V_MAX];

/* kind 0: smooth; 1: few distinct values, so that ties are everywhere; 2: with masked entries, and a unit that has
 * nothing else; 3: all equal */
static void fill(uint32_t V, int kind, uint64_t *seed)
{
    for (uint32_t i = 0; i < V; i++) {
        logits[i] = random_between(seed, -20, 20);
        if (kind == 1) logits[i] = (float)(int)(random_next(seed) % 7) - 3;
        if (kind == 1 && logits[i] == 0 && random_next(seed) % 2) logits[i] = -0.0f;
        if (kind == 2 && (random_next(seed) % 3 || i / SAMPLE_UNIT == 2)) logits[i] = -INFINITY;
        if (kind == 3) logits[i] = 0.5f;
    }
}

/* The row as sampling sees it: without masks the scan says what is highest, with them each has been set. */
static struct logit_row row_of(enum cpu_path path, uint32_t V, bool masked)
{
    struct logit_row row = {V, logits, highest};
    if (!masked) {
        sample_scan(path, logits, V, highest);
        return row;
    }
    static float values[V_MAX];
    memcpy(values, logits, V * sizeof *values);
    for (uint32_t i = 0; i < V; i++) logits[i] = -INFINITY;
    for (uint32_t u = 0; u < sample_units(V); u++) highest[u] = -INFINITY;
    for (uint32_t i = 0; i < V; i++) sample_set(path, &row, i, values[i]);
    return row;
}

static void test_sample_set_keeps_the_highest_of_each_unit(void **state)
{
    (void)state;
    uint64_t seed = 8;
    static const uint32_t sizes[] = {1, 16, 127, 128, 129, 1000};
    PATHS_EACH(path)
    {
        for (size_t s = 0; s < 6; s++) {
            uint32_t V = sizes[s];
            fill(V, (int)(s % 2), &seed);
            struct logit_row row = row_of(path, V, false);
            for (uint32_t round = 0; round < 3 * V + 20; round++) {
                uint32_t id = (uint32_t)(random_next(&seed) % V);
                float value = random_next(&seed) % 4 ? (float)(random_next(&seed) % 9) : -INFINITY;
                if (round >= 2 * V) id = round % V, value = -INFINITY; /* to the end: everything masked */
                sample_set(path, &row, id, value);
                assert_true(logits[id] == value);
                float wanted = -INFINITY;
                uint32_t unit = id / SAMPLE_UNIT;
                for (uint32_t i = unit * SAMPLE_UNIT; i < V && i < (unit + 1) * SAMPLE_UNIT; i++) {
                    wanted = logits[i] > wanted ? logits[i] : wanted;
                }
                assert_true(highest[unit] == wanted);
            }
        }
    }
}

static void test_sample_scan_in_parts_is_a_whole_scan(void **state)
{
    (void)state;
    uint64_t seed = 7;
    float parts[V_MAX / SAMPLE_UNIT + 1];
    fill(V_MAX, 0, &seed);
    PATHS_EACH(path)
    {
        sample_scan(path, logits, V_MAX, highest);
        for (uint32_t units = 1; units < 9; units++) {
            for (uint32_t i = 0; i < V_MAX; i += units * SAMPLE_UNIT) {
                uint32_t count = V_MAX - i < units * SAMPLE_UNIT ? V_MAX - i : units * SAMPLE_UNIT;
                sample_scan(path, logits + i, count, parts + i / SAMPLE_UNIT);
            }
            assert_memory_equal(parts, highest, sample_units(V_MAX) * sizeof parts[0]);
        }
    }
}

static int by_key(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void test_sample_peak_is_the_lowest_id_of_the_highest(void **state)
{
    (void)state;
    uint64_t seed = 9;
    for (uint32_t V = 1; V <= V_MAX; V += V < 70 ? 1 : 701) {
        for (int kind = 0; kind < 4; kind++) {
            fill(V, kind, &seed);
            uint32_t best = 0;
            for (uint32_t i = 1; i < V; i++) best = logits[i] > logits[best] ? i : best;
            PATHS_EACH(path)
            {
                struct logit_row row = row_of(path, V, kind == 2);
                struct logit_peak peak = sample_peak(path, &row);
                assert_int_equal(peak.finite, isfinite(logits[best]) != 0);
                if (peak.finite) assert_int_equal(peak.id, best);
                if (peak.finite) assert_true(peak.value == logits[best]);
            }
        }
    }
}

static void test_sample_peak_sees_every_nan_and_infinity(void **state)
{
    (void)state;
    uint64_t seed = 10;
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    for (uint32_t V = 1; V <= 300; V += 23) {
        for (uint32_t at = 0; at < V; at++) {
            fill(V, 0, &seed);
            logits[at] = odd[at % 3];
            PATHS_EACH(path)
            {
                struct logit_row row = row_of(path, V, false);
                assert_false(sample_peak(path, &row).finite);
            }
        }
    }
}

static void test_sample_weights_agree_and_match_exp(void **state)
{
    (void)state;
    uint64_t seed = 11;
    for (uint32_t V = 1; V <= V_MAX; V += V < 40 ? 1 : 977) {
        for (int kind = 0; kind < 4; kind++) {
            fill(V, kind, &seed);
            const struct logit_weights weights = {20, kind == 0 ? 0.7f : 1.3f, kind == 2 ? -9 : -INFINITY};
            struct logit_row row = row_of(CPU_PATH_SCALAR, V, kind == 2);
            double wanted = 0, scalar = sample_weight_sum(CPU_PATH_SCALAR, &row, &weights);
            for (uint32_t i = 0; i < V; i++) {
                double z = ((double)logits[i] - 20) / (double)weights.temperature;
                if (z >= (double)weights.lowest && z > -87) wanted += exp(z);
            }
            if (!(fabs(scalar - wanted) <= 1e-5 * wanted)) fail_msg("V %u: %g, wanted %g", V, scalar, wanted);
            PATHS_EACH(path) assert_true(sample_weight_sum(path, &row, &weights) == scalar);
        }
    }
}

static void test_sample_gather_and_sort_equal_a_full_sort(void **state)
{
    (void)state;
    uint64_t seed = 12;
    for (uint32_t V = 1; V <= V_MAX; V += V < 70 ? 1 : 701) {
        for (int kind = 0; kind < 4; kind++) {
            fill(V, kind, &seed);
            uint32_t count = 0;
            float low = kind == 1 ? -1 : -7, high = kind == 1 ? 2 : 11;
            for (uint32_t i = 0; i < V; i++) {
                if (logits[i] >= low && logits[i] < high) wanted_keys[count++] = sample_key(logits[i], i);
            }
            qsort(wanted_keys, count, sizeof *wanted_keys, by_key);
            PATHS_EACH(path)
            {
                struct logit_row row = row_of(path, V, kind == 2);
                assert_int_equal(sample_gather(path, &row, low, high, keys), count);
                sample_sort(keys, spare, count);
                assert_memory_equal(keys, wanted_keys, count * sizeof *keys);
            }
            for (uint32_t i = 0; i < count; i++) {
                assert_true(sample_key_logit(keys[i]) == logits[sample_key_id(keys[i])]);
                assert_true(i == 0 || sample_key_logit(keys[i - 1]) >= sample_key_logit(keys[i]));
            }
        }
    }
}

static void test_sample_count_before_is_the_place_in_order(void **state)
{
    (void)state;
    uint64_t seed = 13;
    for (uint32_t V = 1; V <= 900; V += V < 40 ? 1 : 97) {
        for (int kind = 0; kind < 4; kind++) {
            fill(V, kind, &seed);
            for (uint32_t id = 0; id < V; id += 1 + V / 20) {
                uint32_t before = 0;
                for (uint32_t i = 0; i < V; i++) {
                    before += logits[i] > logits[id] || (logits[i] == logits[id] && i < id);
                }
                PATHS_EACH(path)
                {
                    struct logit_row row = row_of(path, V, kind == 2);
                    assert_int_equal(sample_count_before(path, &row, logits[id], id), before);
                }
            }
        }
    }
}

static void test_sample_dot_agrees_and_matches_double(void **state)
{
    (void)state;
    uint64_t seed = 20;
    float other[600];
    for (uint32_t count = 0; count <= 600; count += count < 40 ? 1 : 56) {
        double wanted = 0;
        fill(600, 0, &seed);
        for (uint32_t i = 0; i < count; i++) {
            other[i] = random_between(&seed, -1, 1);
            wanted += (double)logits[i] * (double)other[i];
        }
        float scalar = sample_dot(CPU_PATH_SCALAR, logits, other, count);
        if (!(fabs((double)scalar - wanted) <= 1e-3))
            fail_msg("count %u: %g, wanted %g", count, (double)scalar, wanted);
        PATHS_EACH(path) assert_true(sample_dot(path, logits, other, count) == scalar);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sample_set_keeps_the_highest_of_each_unit),
                                       cmocka_unit_test(test_sample_scan_in_parts_is_a_whole_scan),
                                       cmocka_unit_test(test_sample_peak_is_the_lowest_id_of_the_highest),
                                       cmocka_unit_test(test_sample_peak_sees_every_nan_and_infinity),
                                       cmocka_unit_test(test_sample_weights_agree_and_match_exp),
                                       cmocka_unit_test(test_sample_gather_and_sort_equal_a_full_sort),
                                       cmocka_unit_test(test_sample_count_before_is_the_place_in_order),
                                       cmocka_unit_test(test_sample_dot_agrees_and_matches_double)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
