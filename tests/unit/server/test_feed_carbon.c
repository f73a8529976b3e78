/* Documents of Electricity Maps, the Carbon Aware SDK and WattTime, written after their references. */
#include "tests/unit/unit.h"

#include "runtime/base/limits.h"
#include "server/power/feed_carbon.h"

#include <math.h>

/* 2026-11-23T10:00:00Z */
#define TEN  INT64_C(1795428000000)
#define HOUR INT64_C(3600000)

#define assert_near(a, b, within)                                                                                      \
    do {                                                                                                               \
        double a_ = (a), b_ = (b);                                                                                     \
        if (!(fabs(a_ - b_) <= (within))) fail_msg(#a " is %.9g, not %.9g", a_, b_);                                   \
    } while (0)

static struct feed feed;
static struct error err;

static enum status read(enum feed_kind kind, const char *text, bool marginal, int64_t now_ms)
{
    err.message[0] = '\0';
    return feed_read_carbon(kind, text, strlen(text), marginal, now_ms, &feed, &err);
}

#define is_slot(idx, t0, seconds, gco2, how)                                                                           \
    do {                                                                                                               \
        assert_true(feed.count > (uint32_t)(idx));                                                                     \
        const struct power_slot *slot_ = &feed.slots[idx];                                                             \
        assert_int_equal(slot_->have, SLOT_CO2);                                                                       \
        assert_int_equal(slot_->t0_ms, t0);                                                                            \
        assert_int_equal(slot_->dur_s, seconds);                                                                       \
        assert_near(slot_->gco2_kwh, gco2, 1e-9);                                                                      \
        assert_int_equal(slot_->quality, how);                                                                         \
    } while (0)

static void test_feed_carbon_electricity_maps_latest(void **state)
{
    (void)state;
    assert_int_equal(read(FEED_ELECTRICITY_MAPS,
                          "{\"zone\":\"DE\",\"carbonIntensity\":302,\"datetime\":\"2026-11-23T10:00:00.000Z\","
                          "\"updatedAt\":\"2026-11-23T09:20:00.000Z\",\"emissionFactorType\":\"lifecycle\","
                          "\"isEstimated\":true,\"estimationMethod\":\"TIME_SLICER_AVERAGE\"}",
                          false, TEN + HOUR / 2),
                     ST_OK);
    assert_int_equal(feed.count, 1);
    is_slot(0, TEN, 3600, 302, SLOT_ESTIMATED);
    assert_false(feed.slots[0].co2_marginal);
    assert_int_equal(feed.refused, 0);
}

static void test_feed_carbon_what_comes_late_is_held_as_an_estimate(void **state)
{
    const char *text = "{\"carbonIntensity\":302,\"datetime\":\"2026-11-23T10:00:00Z\",\"isEstimated\":false}";
    (void)state;
    assert_int_equal(read(FEED_ELECTRICITY_MAPS, text, false, TEN + 2 * HOUR), ST_OK);
    assert_int_equal(feed.count, 2);
    is_slot(0, TEN, 3600, 302, SLOT_MEASURED);
    is_slot(1, TEN + HOUR, 3600 + 900, 302, SLOT_ESTIMATED);
    assert_int_equal(read(FEED_ELECTRICITY_MAPS, text, false, TEN + HOUR + FEED_HOLD_MS + 1), ST_OK);
    assert_int_equal(feed.count, 1);
}

static void test_feed_carbon_electricity_maps_lists(void **state)
{
    (void)state;
    /* v4: data, with a granularity; out of order, one without a value yet, one twice */
    assert_int_equal(
        read(FEED_ELECTRICITY_MAPS,
             "{\"zone\":\"DK-DK2\",\"temporalGranularity\":\"15_minutes\",\"unit\":\"gCO2eq/kWh\",\"data\":["
             "{\"datetime\":\"2026-11-23T10:15:00Z\",\"carbonIntensity\":101.5},"
             "{\"datetime\":\"2026-11-23T10:00:00Z\",\"carbonIntensity\":100,\"isEstimated\":true},"
             "{\"datetime\":\"2026-11-23T10:15:00Z\",\"carbonIntensity\":7},"
             "{\"datetime\":\"2026-11-23T10:30:00Z\",\"carbonIntensity\":null},"
             "{\"datetime\":\"2026-11-23T10:45:00Z\"}]}",
             true, TEN),
        ST_OK);
    assert_int_equal(feed.count, 2);
    is_slot(0, TEN, 900, 100, SLOT_ESTIMATED);
    is_slot(1, TEN + HOUR / 4, 900, 101.5, SLOT_FORECAST);
    assert_true(feed.slots[0].co2_marginal);
    assert_int_equal(feed.refused, 1);
    /* v3: forecast */
    assert_int_equal(
        read(FEED_ELECTRICITY_MAPS,
             "{\"zone\":\"DE\",\"forecast\":[{\"carbonIntensity\":326,\"datetime\":\"2026-11-23T10:00:00.000Z\"},"
             "{\"carbonIntensity\":297,\"datetime\":\"2026-11-23T10:30:00.000Z\"}],"
             "\"updatedAt\":\"2026-11-23T09:20:00.000Z\"}",
             false, TEN + 1),
        ST_OK);
    assert_int_equal(feed.count, 2);
    is_slot(0, TEN, 1800, 326, SLOT_FORECAST);
    is_slot(1, TEN + HOUR / 2, 1800, 297, SLOT_FORECAST);
    /* v3: history */
    assert_int_equal(read(FEED_ELECTRICITY_MAPS, "{\"history\":[]}", false, TEN), ST_OK);
    assert_int_equal(feed.count, 0);
}

static void test_feed_carbon_carbon_aware(void **state)
{
    (void)state;
    assert_int_equal(read(FEED_CARBON_AWARE,
                          "[{\"generatedAt\":\"2026-11-23T09:55:00+00:00\",\"location\":\"eastus\",\"windowSize\":5,"
                          "\"optimalDataPoints\":[],\"forecastData\":["
                          "{\"location\":\"PJM_ROANOKE\",\"timestamp\":\"2026-11-23T10:00:00+00:00\",\"duration\":5,"
                          "\"value\":380.99},"
                          "{\"location\":\"PJM_ROANOKE\",\"timestamp\":\"2026-11-23T10:05:00+00:00\",\"duration\":10,"
                          "\"value\":379}]}]",
                          true, TEN),
                     ST_OK);
    assert_int_equal(feed.count, 2);
    is_slot(0, TEN, 300, 380.99, SLOT_FORECAST);
    is_slot(1, TEN + 300000, 600, 379, SLOT_FORECAST);
    assert_true(feed.slots[1].co2_marginal);
    assert_int_equal(read(FEED_CARBON_AWARE,
                          "[{\"location\":\"eastus\",\"time\":\"2026-11-23T09:45:11.5092741+00:00\",\"rating\":70,"
                          "\"duration\":\"01:00:00\"}]",
                          true, TEN),
                     ST_OK);
    assert_int_equal(feed.count, 1);
    is_slot(0, TEN - 888491, 3600, 70, SLOT_MEASURED);
    assert_int_equal(read(FEED_CARBON_AWARE, "[{\"forecastData\":[]},{\"forecastData\":[]}]", true, TEN), ST_OK);
    assert_int_equal(feed.refused, 1);
}

static void test_feed_carbon_watttime(void **state)
{
    (void)state;
    assert_int_equal(
        read(FEED_WATTTIME,
             "{\"meta\":{\"region\":\"CAISO_NORTH\",\"signal_type\":\"co2_moer\",\"units\":\"lbs_co2_per_mwh\","
             "\"data_point_period_seconds\":300,\"generated_at\":\"2026-11-23T09:55:00+00:00\"},\"data\":["
             "{\"point_time\":\"2026-11-23T10:00:00+00:00\",\"value\":1000.0,\"version\":\"2026-03-01\"},"
             "{\"point_time\":\"2026-11-23T10:05:00+00:00\",\"value\":0}]}",
             false, TEN),
        ST_OK);
    assert_int_equal(feed.count, 2);
    is_slot(0, TEN, 300, 453.59237, SLOT_MEASURED);
    is_slot(1, TEN + 300000, 300, 0, SLOT_FORECAST);
    assert_true(feed.slots[0].co2_marginal); /* whatever is configured: it says so */
    assert_int_equal(read(FEED_WATTTIME, "{\"meta\":{\"signal_type\":\"co2_aoer\"},\"data\":[]}", true, TEN), ST_OK);
    assert_int_equal(read(FEED_WATTTIME, "{\"meta\":{\"signal_type\":\"health_damage\"},\"data\":[]}", true, TEN),
                     ST_INVAL);
    assert_int_equal(read(FEED_WATTTIME, "{\"meta\":{\"units\":\"percentile\"},\"data\":[]}", true, TEN), ST_INVAL);
}

static void test_feed_carbon_refuses_values_one_by_one(void **state)
{
    static const char *const bad[] = {
        "{\"datetime\":\"2026-11-23T10:00:00Z\",\"carbonIntensity\":-1}",
        "{\"datetime\":\"2026-11-23T10:00:00Z\",\"carbonIntensity\":5001}",
        "{\"datetime\":\"2026-11-23T10:00:00Z\",\"carbonIntensity\":\"low\"}",
        "{\"datetime\":\"2026-11-23T10:00:00Z\",\"carbonIntensity\":true}",
        "{\"datetime\":\"yesterday\",\"carbonIntensity\":100}",
        "{\"datetime\":12,\"carbonIntensity\":100}",
        "{\"carbonIntensity\":100}",
        "7",
        "null",
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[400];
        (void)snprintf(text, sizeof text,
                       "{\"data\":[%s,{\"datetime\":\"2026-11-23T10:00:00Z\",\"carbonIntensity\":200}]}", bad[i]);
        assert_int_equal(read(FEED_ELECTRICITY_MAPS, text, false, TEN), ST_OK);
        if (feed.refused != 1 || feed.count != 1 || !feed.first.message[0])
            fail_msg("%s: %u refused, %u taken", bad[i], feed.refused, feed.count);
        is_slot(0, TEN, 3600, 200, SLOT_MEASURED);
    }
}

static void test_feed_carbon_refuses_documents(void **state)
{
    static const char *const bad[] = {"",
                                      "<html>",
                                      "{",
                                      "[]",
                                      "7",
                                      "{\"data\":7}",
                                      "{\"error\":\"no such zone\"}",
                                      "{\"datetime\":\"a\",\"datetime\":\"b\"}"};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(read(FEED_ELECTRICITY_MAPS, bad[i], false, TEN), ST_INVAL);
        assert_int_equal(feed.count, 0);
        assert_true(err.message[0] != '\0');
    }
    assert_int_equal(read(FEED_CARBON_AWARE, "{\"forecastData\":[]}", true, TEN), ST_INVAL);
    assert_int_equal(read(FEED_WATTTIME, "{\"data\":{}}", true, TEN), ST_INVAL);
}

static void test_feed_carbon_bounds(void **state)
{
    static char text[FEED_BYTES_MAX + 2];
    (void)state;
    memset(text, ' ', sizeof text - 1); /* longer than it may be */
    assert_int_equal(read(FEED_CARBON_AWARE, text, true, TEN), ST_LIMIT);
    memset(text, 0, sizeof text);
    memset(text, '[', (size_t)limits.json_depth + 1); /* deeper */
    assert_int_equal(read(FEED_CARBON_AWARE, text, true, TEN), ST_LIMIT);
    for (size_t count = FEED_ITEMS_MAX; count <= FEED_ITEMS_MAX + 1; count++) { /* more */
        size_t length = 0;
        memset(text, 0, sizeof text);
        text[length++] = '[';
        for (size_t i = 0; i < count; i++) text[length++] = '0', text[length++] = ',';
        text[length - 1] = ']';
        assert_int_equal(read(FEED_CARBON_AWARE, text, true, TEN), count <= FEED_ITEMS_MAX ? ST_OK : ST_LIMIT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_feed_carbon_electricity_maps_latest),
        cmocka_unit_test(test_feed_carbon_what_comes_late_is_held_as_an_estimate),
        cmocka_unit_test(test_feed_carbon_electricity_maps_lists),
        cmocka_unit_test(test_feed_carbon_carbon_aware),
        cmocka_unit_test(test_feed_carbon_watttime),
        cmocka_unit_test(test_feed_carbon_refuses_values_one_by_one),
        cmocka_unit_test(test_feed_carbon_refuses_documents),
        cmocka_unit_test(test_feed_carbon_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
