/* Lists of requests: sizes, times of an open loop, recorded ones, and what is refused. */
#include "tests/unit/unit.h"

#include "server/bench/bench_work.h"

#include <math.h>

static void test_bench_work_closed(void **state)
{
    (void)state;
    struct bench_work work, prompts;
    struct error err = {""};
    assert_int_equal(bench_work_make(&work, 5, 128, 64, 0, 1, &err), ST_OK);
    assert_false(work.timed);
    assert_int_equal(work.count, 5);
    assert_int_equal(work.requests[4].prompt_tokens, 128);
    assert_int_equal(work.requests[4].at_ns, 0);
    assert_int_equal(bench_work_prompts(&work, &prompts, &err), ST_OK);
    assert_int_equal(prompts.count, 5);
    assert_int_equal(prompts.requests[4].prompt_tokens, 128);
    assert_int_equal(prompts.requests[4].output_tokens, 1);
    bench_work_free(&work);
    bench_work_free(&prompts);
}

/* Gaps of a Poisson process: their mean is 1 / rate, and as large as their deviation. */
static void test_bench_work_open(void **state)
{
    (void)state;
    struct bench_work work;
    struct error err = {""};
    double sum = 0, squares = 0, count = 20000;
    assert_int_equal(bench_work_make(&work, 20001, 1, 1, 50, 7, &err), ST_OK);
    assert_true(work.timed);
    assert_int_equal(work.requests[0].at_ns, 0);
    for (uint32_t i = 1; i < work.count; i++) {
        assert_true(work.requests[i].at_ns >= work.requests[i - 1].at_ns);
        double gap = (double)(work.requests[i].at_ns - work.requests[i - 1].at_ns) * 1e-9;
        sum += gap;
        squares += gap * gap;
    }
    double mean = sum / count, deviation = sqrt(squares / count - mean * mean);
    assert_true(fabs(mean * 50 - 1) < 0.03);
    assert_true(fabs(deviation / mean - 1) < 0.05);
    bench_work_free(&work);
}

static void test_bench_work_trace(void **state)
{
    (void)state;
    struct bench_work work;
    struct error err = {""};
    assert_int_equal(bench_work_read(&work, "seconds,in,out\n0,10,20\r\n\n1.5,30,40\n1.5,1,1", 2, &err), ST_OK);
    assert_true(work.timed);
    assert_int_equal(work.count, 3);
    assert_int_equal(work.requests[0].output_tokens, 20);
    assert_int_equal(work.requests[1].at_ns, 750000000);
    assert_int_equal(work.requests[1].prompt_tokens, 30);
    assert_int_equal(work.requests[2].output_tokens, 1);
    bench_work_free(&work);
}

static void test_bench_work_refuses(void **state)
{
    (void)state;
    static const char *const traces[] = {"",          "a,b,c\n",  "0,10\n",         "0,10,20,30\n",   "0,0,1\n",
                                         "0,1,0\n",   "-1,1,1\n", "nan,1,1\n",      "1,1,1\n0,1,1\n", "0,1,99999999\n",
                                         "0,-1,1\n",  "0, 1,1\n", "0,1,1\nx,1,1\n", "0,1,\n1,1,1\n",  "1e99,1,1\n",
                                         "0\n1,2,3\n"};
    struct bench_work work;
    for (size_t i = 0; i < sizeof traces / sizeof *traces; i++) {
        struct error err = {""};
        if (bench_work_read(&work, traces[i], 1, &err) != ST_INVAL) fail_msg("\"%s\" is taken", traces[i]);
        assert_true(err.message[0]);
    }
    struct error err = {""};
    assert_int_equal(bench_work_read(&work, "0,1,1", 0, &err), ST_INVAL);
    assert_int_equal(bench_work_make(&work, 0, 1, 1, 0, 1, &err), ST_INVAL);
    assert_int_equal(bench_work_make(&work, BENCH_REQUESTS_MAX + 1, 1, 1, 0, 1, &err), ST_INVAL);
    assert_int_equal(bench_work_make(&work, 1, 0, 1, 0, 1, &err), ST_INVAL);
    assert_int_equal(bench_work_make(&work, 1, 1, BENCH_TOKENS_MAX + 1, 0, 1, &err), ST_INVAL);
    assert_int_equal(bench_work_make(&work, 1, 1, 1, NAN, 1, &err), ST_INVAL);
    assert_int_equal(bench_work_make(&work, 1, 1, 1, -1, 1, &err), ST_INVAL);
    assert_int_equal(bench_work_make(&work, 1000000, 1, 1, 1e-6, 1, &err), ST_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bench_work_closed),
        cmocka_unit_test(test_bench_work_open),
        cmocka_unit_test(test_bench_work_trace),
        cmocka_unit_test(test_bench_work_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
