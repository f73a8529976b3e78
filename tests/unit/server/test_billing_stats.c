/* billing_stats.c: every member under its name, whole numbers exact, the histogram cumulative, the age from now. */
#include "server/billing/billing_stats.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static char *text_of(const struct billing_stats *stats, uint64_t now_ns, struct buf *out)
{
    buf_init(out, 0);
    billing_stats_print(stats, now_ns, out);
    buf_append_char(out, '\0');
    assert_true(buf_ok(out));
    return out->data;
}

static void test_billing_stats_every_member(void **state)
{
    (void)state;
    static struct billing_stats stats;
    struct buf out;
    char line[128];
    uint64_t value = UINT64_C(9007199254740993); /* no double has it */
#define X(member, kind, metric, help) billing_stats_set(&stats.member, value++);
    BILLING_STATS_MAP(X)
#undef X
    const char *text = text_of(&stats, 5, &out);
    value = UINT64_C(9007199254740993);
#define X(member, kind, metric, help)                                                                                  \
    (void)snprintf(line, sizeof line, "\n%s{engine=\"0\"} %" PRIu64 "\n", metric, value++);                            \
    assert_non_null(strstr(text, line));                                                                               \
    (void)snprintf(line, sizeof line, "# TYPE %s %s\n", metric, kind);                                                 \
    assert_non_null(strstr(text, line));
    BILLING_STATS_MAP(X)
#undef X
    buf_free(&out);
}

static void test_billing_stats_histogram_and_age(void **state)
{
    (void)state;
    static struct billing_stats stats;
    struct buf out;
    billing_stats_sync(&stats, 50 * 1000);            /* on a bound: in it */
    billing_stats_sync(&stats, 50 * 1000 + 1);        /* just above */
    billing_stats_sync(&stats, UINT64_C(2000000000)); /* above all */
    billing_stats_set(&stats.unapplied_since_ns, 1000000000);
    const char *text = text_of(&stats, 3500000000, &out);
    assert_non_null(strstr(text, "_bucket{engine=\"0\",le=\"5e-05\"} 1\n"));
    assert_non_null(strstr(text, "_bucket{engine=\"0\",le=\"0.0001\"} 2\n"));
    assert_non_null(strstr(text, "_bucket{engine=\"0\",le=\"1\"} 2\n"));
    assert_non_null(strstr(text, "_bucket{engine=\"0\",le=\"+Inf\"} 3\n"));
    assert_non_null(strstr(text, "mr_billing_fdatasync_seconds_count{engine=\"0\"} 3\n"));
    assert_non_null(strstr(text, "mr_billing_fdatasync_seconds_sum{engine=\"0\"} 2.000100001\n"));
    assert_non_null(strstr(text, "mr_billing_unapplied_age_seconds{engine=\"0\"} 2.500\n"));
    buf_free(&out);
    assert_non_null(strstr(text_of(&stats, 999, &out), "mr_billing_unapplied_age_seconds{engine=\"0\"} 0.000\n"));
    buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_billing_stats_every_member),
        cmocka_unit_test(test_billing_stats_histogram_and_age),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
