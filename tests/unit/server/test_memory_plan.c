/* Shares of the KV memory and the limit of all: exact figures, the edges, and random ones against the rules. */
#include "tests/unit/unit.h"

#include "server/memory_plan.h"

#define GIB (UINT64_C(1) << 30)

static void test_memory_plan_kv_total(void **state)
{
    (void)state;
    assert_int_equal(memory_kv_total(123, 7 * GIB, 6 * GIB, GIB), 123); /* an operator's word */
    assert_int_equal(memory_kv_total(0, 8 * GIB, GIB, GIB), 2 * GIB);
    assert_int_equal(memory_kv_total(0, 640 * GIB, GIB, GIB), 4 * GIB);
    assert_int_equal(memory_kv_total(0, 16 * GIB, 14 * GIB, GIB), 2 * GIB - 2 * GIB / 16);
    assert_int_equal(memory_kv_total(0, 16 * GIB, 17 * GIB, GIB), 0);
    assert_int_equal(memory_kv_total(0, 8 * GIB, GIB, 5 * GIB), 5 * GIB); /* needed, and there */
    assert_int_equal(memory_kv_total(0, 8 * GIB, GIB, 7 * GIB), 2 * GIB); /* not there */
    assert_int_equal(memory_kv_total(0, 640 * GIB, GIB, 5 * GIB), 5 * GIB);
}

static void test_memory_plan_divides_by_need(void **state)
{
    (void)state;
    struct error err = {""};
    uint64_t shares[3];
    assert_int_equal(memory_divide(1000, (uint64_t[]){30, 10, 60}, 3, shares, &err), ST_OK);
    assert_int_equal(shares[0], 300);
    assert_int_equal(shares[1], 100);
    assert_int_equal(shares[2], 600);
    assert_int_equal(memory_divide(100, (uint64_t[]){30, 10, 60}, 3, shares, &err), ST_OK); /* one sequence each */
    assert_int_equal(shares[1], 10);
    assert_int_equal(memory_divide(99, (uint64_t[]){30, 10, 60}, 3, shares, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "needs 100 bytes, 99 are given"));
    assert_int_equal(memory_divide(UINT64_MAX, (uint64_t[]){UINT64_MAX / 4, UINT64_MAX / 4, 2}, 3, shares, &err),
                     ST_OK);
    assert_true(shares[0] >= UINT64_MAX / 4 && shares[1] == shares[0]);
    assert_int_equal(memory_divide(5, (uint64_t[]){UINT64_MAX, UINT64_MAX}, 2, shares, &err), ST_INVAL); /* no wrap */
}

static void test_memory_plan_shares_never_pass_what_there_is(void **state)
{
    (void)state;
    uint64_t seed = 88172645463325252u;
    for (int round = 0; round < 2000; round++) {
        uint64_t least[16], shares[16], sum = 0, given = 0;
        struct error err;
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        uint32_t count = 1 + (uint32_t)(seed % 16);
        for (uint32_t i = 0; i < count; i++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            least[i] = 1 + seed % (1u << 30);
            sum += least[i];
        }
        uint64_t total = sum + seed % (8 * GIB);
        assert_int_equal(memory_divide(total, least, count, shares, &err), ST_OK);
        for (uint32_t i = 0; i < count; i++) {
            assert_true(shares[i] >= least[i]);
            given += shares[i];
        }
        assert_true(given <= total && given + count > total);
    }
}

static const struct memory_row two[] = {{"small", 100, 10, 50}, {"large", 1000, 20, 500}};

static void test_memory_plan_share_of_one_more(void **state)
{
    (void)state;
    struct error err = {""};
    uint64_t share = 0;
    assert_int_equal(memory_share(1000, true, two, 2, "new", 300, 0, &share, &err), ST_OK);
    assert_int_equal(share, 450); /* all that is left */
    assert_int_equal(memory_share(1000, true, two, 2, "new", 300, 310, &share, &err), ST_OK);
    assert_int_equal(share, 310);
    assert_int_equal(memory_share(1000, true, two, 2, "new", 451, 0, &share, &err), ST_NOMEM);
    assert_non_null(strstr(err.message, "new needs 451 bytes, 450 of 1000 are left"));
    assert_non_null(strstr(err.message, "large (500 bytes), small (50 bytes)"));
    assert_int_equal(memory_share(1000, false, two, 2, "new", 451, 0, &share, &err), ST_OK); /* the limit decides */
    assert_int_equal(share, 451);
    assert_int_equal(memory_share(1000, true, two, 2, "new", 300, 299, &share, &err), ST_INVAL);
}

static void test_memory_plan_limit(void **state)
{
    (void)state;
    struct error err = {""};
    struct memory_row more = {"new", 200, 0, 20};
    assert_int_equal(memory_check(1900, two, 2, &more, &err), ST_OK); /* 160 + 1520 + 220 */
    assert_int_equal(memory_check(1899, two, 2, &more, &err), ST_NOMEM);
    assert_non_null(strstr(err.message, "new needs 220 bytes (weights 200, KV 20, scratch 0), 219 of 1899 are left"));
    assert_non_null(strstr(err.message, "large (1520 bytes), small (160 bytes)"));
    assert_int_equal(memory_check(100, NULL, 0, &more, &err), ST_NOMEM);
    assert_non_null(strstr(err.message, "--memory-limit"));
    more.kv_bytes = UINT64_MAX;
    assert_int_equal(memory_check(UINT64_MAX - 1, two, 2, &more, &err), ST_NOMEM); /* no wrap */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_plan_kv_total), cmocka_unit_test(test_memory_plan_divides_by_need),
        cmocka_unit_test(test_memory_plan_shares_never_pass_what_there_is),
        cmocka_unit_test(test_memory_plan_share_of_one_more), cmocka_unit_test(test_memory_plan_limit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
