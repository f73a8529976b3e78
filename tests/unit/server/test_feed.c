/* What readers of power signals share: times, durations, refusals. */
#include "tests/unit/unit.h"

#include "server/power/feed.h"

#include <inttypes.h>

static struct feed feed;

static void test_feed_times(void **state)
{
    static const struct {
        const char *text;
        int64_t ms; /* -1: refused */
    } cases[] = {
        {"2026-11-23T10:00:00Z", INT64_C(1795428000000)},
        {"2026-11-23T10:00:00.5092741+00:00", INT64_C(1795428000509)},
        {"2026-11-23T11:00:00.5+01:00", INT64_C(1795428000500)},
        {"2026-11-23T10:00Z", INT64_C(1795428000000)},
        {"2026-11-23 10:00:00z", INT64_C(1795428000000)},
        {"2026-11-23T10:00:00", INT64_C(1795428000000)},
        {"2026-11-23", INT64_C(1795392000000)},
        {"2026-02-30T10:00:00Z", -1},
        {"2026-11-23T24:00:00Z", -1},
        {"2026-11-23T10:00:0Z", -1},
        {"2026-11-23T10:00:00.Z", -1},
        {"2026-11-23T10:00:00zz", -1},
        {"2026-11-23T10-00:00Z", -1},
        {"2026-11-23T10:00:00+1", -1},
        {"2026-11-23T10:00:00.000000000000000000000000Z", -1},
        {"", -1},
        {"noon", -1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t ms = -1;
        bool good = feed_parse_time(cases[i].text, &ms);
        if (good != (cases[i].ms >= 0) || (good && ms != cases[i].ms))
            fail_msg("%s: %d, %" PRId64 ", expected %" PRId64, cases[i].text, good, ms, cases[i].ms);
    }
}

static void test_feed_durations(void **state)
{
    static const struct {
        const char *text;
        int64_t ms;
    } cases[] = {{"PT15M", 900000},
                 {"PT1H30M", 5400000},
                 {"P1D", 86400000},
                 {"P2W", INT64_C(1209600000)},
                 {"PT0S", 0},
                 {"PT1.25S", 1250},
                 {"P1DT12H", 129600000},
                 {"P1M", INT64_C(2592000000)},
                 {"PT1M", 60000},
                 {"P9999Y", INT64_MAX},
                 {"01:00:00", 3600000},
                 {"P", -1},
                 {"PT", -1},
                 {"P1H", -1},
                 {"PT1D", -1},
                 {"PT1M1H", -1},
                 {"PT1H1H", -1},
                 {"-PT1H", -1},
                 {"PT1.5H", -1},
                 {"P999999999Y", -1},
                 {"PT9999999999S", -1},
                 {"1:60:00", -1},
                 {"one hour", -1},
                 {"", -1}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t ms = -1;
        bool good = feed_parse_duration(cases[i].text, &ms);
        if (good != (cases[i].ms >= 0) || (good && ms != cases[i].ms))
            fail_msg("%s: %d, %" PRId64 ", expected %" PRId64, cases[i].text, good, ms, cases[i].ms);
    }
}

static void test_feed_counts_every_refusal_and_tells_the_first(void **state)
{
    struct power_slot slot = {.dur_s = 1};
    (void)state;
    feed_clear(&feed);
    for (int i = 0; i < FEED_SLOTS_MAX + 3; i++) feed_add(&feed, &slot);
    assert_int_equal(feed.count, FEED_SLOTS_MAX);
    assert_int_equal(feed.refused, 3);
    feed_clear(&feed);
    feed_refuse(&feed, "one\n%s", "line");
    feed_refuse(&feed, "another");
    assert_int_equal(feed.refused, 2);
    assert_string_equal(feed.first.message, "one?line");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_feed_times),
        cmocka_unit_test(test_feed_durations),
        cmocka_unit_test(test_feed_counts_every_refusal_and_tells_the_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
