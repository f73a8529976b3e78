/* A whole number divided by weight: nothing is over or short, nobody gets a unit more or less than the due, and what is
 * no weight gets nothing. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "runtime/power/apportion.h"

#include <math.h>

enum { PARTIES = 300 };

static void test_apportion_by_hand(void **state)
{
    (void)state;
    uint64_t parts[4], remainders[4];
    const double thirds[3] = {1, 1, 1};
    assert_true(apportion(100, thirds, 3, parts, remainders));
    assert_int_equal(parts[0], 34); /* the earlier of equals */
    assert_int_equal(parts[1], 33);
    assert_int_equal(parts[2], 33);
    const double hamilton[3] = {0.5, 0.335, 0.165};
    assert_true(apportion(10, hamilton, 3, parts, remainders)); /* 5, 3.35, 1.65 */
    assert_int_equal(parts[0], 5);
    assert_int_equal(parts[1], 3);
    assert_int_equal(parts[2], 2);
    const double odd[4] = {NAN, -3, INFINITY, 2};
    assert_true(apportion(7, odd, 4, parts, remainders));
    assert_int_equal(parts[0] + parts[1] + parts[2], 0);
    assert_int_equal(parts[3], 7);
    assert_false(apportion(7, odd, 3, parts, remainders));
    assert_true(apportion(0, odd, 3, parts, remainders));
    assert_int_equal(parts[0] + parts[1] + parts[2], 0);
    const double one = 1e-300;
    assert_true(apportion(INT64_MAX, &one, 1, parts, remainders));
    assert_int_equal(parts[0], INT64_MAX);
}

static void test_apportion_exact(void **state)
{
    (void)state;
    static double weights[PARTIES];
    static uint64_t parts[PARTIES], remainders[PARTIES];
    uint64_t rng = 11;
    for (uint32_t round = 0; round < 5000; round++) {
        uint32_t parties = 1 + (uint32_t)(random_next(&rng) % PARTIES);
        uint64_t whole = random_next(&rng) >> (1 + random_next(&rng) % 63), sum = 0;
        double total = 0, scale = ldexp(1, (int)(random_next(&rng) % 200) - 100);
        for (uint32_t i = 0; i < parties; i++) {
            weights[i] = random_next_uniform(&rng) < 0.1 ? 0 : random_next_uniform(&rng) * scale;
            total += weights[i];
        }
        if (total <= 0) continue;
        assert_true(apportion(whole, weights, parties, parts, remainders));
        for (uint32_t i = 0; i < parties; i++) {
            double due = (double)whole * (weights[i] / total), slack = 1 + (double)whole * 1e-9;
            sum += parts[i];
            assert_true(fabs((double)parts[i] - due) <= slack);
            if (weights[i] == 0) assert_int_equal(parts[i], 0);
        }
        assert_int_equal(sum, whole);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_apportion_by_hand),
        cmocka_unit_test(test_apportion_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
