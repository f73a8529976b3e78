/* The live cost: by hand, with prices of sources and of the option, and what is refused. */
#include "tests/unit/unit.h"

#include "server/power/cost_live.h"

#include <math.h>
#include <string.h>

/* An hour of 1 kW, half of it for prompts. */
static struct cost_span hour(void)
{
    return (struct cost_span){.seconds = 3600,
                              .meter_uj = UINT64_C(3600000000000),
                              .prefill_uj = UINT64_C(1000000000000),
                              .decode_uj = UINT64_C(1000000000000),
                              .door_kwh = 1.25,
                              .prompt_tokens = 600000,
                              .output_tokens = 400000};
}

static void test_cost_live_by_hand(void **state)
{
    (void)state;
    struct cost_live_terms terms;
    struct cost_live live;
    struct error err;
    assert_int_equal(cost_live_read("capex=87600,years=10,opex-hour=0.5,price=0.4,currency=EUR", &terms, &err), ST_OK);
    assert_string_equal(terms.currency, "EUR");
    struct cost_span usage = hour();
    assert_int_equal(cost_live_compute(&terms, &usage, &live, &err), ST_OK);
    assert_true(fabs(live.cost.hour[COST_HARDWARE] - 1) < 1e-9);
    assert_true(fabs(live.cost.hour[COST_ENERGY] - 1.25 * 0.4) < 1e-9 && fabs(live.terms.pue - 1.25) < 1e-9);
    assert_true(fabs(live.cost.million_all - 2.0) < 1e-9 && fabs(live.cost.million_output - 5.0) < 1e-9);
    assert_true(fabs(live.cost.million_input_part - 1 / 0.6) < 1e-9 && live.priced_share == 0);
    usage.paid = 0.75, usage.paid_kwh = 0.75; /* at 1 while a source told it; the rest at the option's 0.4 */
    assert_int_equal(cost_live_compute(&terms, &usage, &live, &err), ST_OK);
    assert_true(fabs(live.cost.hour[COST_ENERGY] - (0.75 + 0.5 * 0.4)) < 1e-9 && fabs(live.priced_share - 0.6) < 1e-9);
    terms.price_kwh = NAN; /* the rest at the mean of what was told */
    assert_int_equal(cost_live_compute(&terms, &usage, &live, &err), ST_OK);
    assert_true(fabs(live.cost.hour[COST_ENERGY] - 1.25) < 1e-9);
}

static void test_cost_live_refuses(void **state)
{
    (void)state;
    struct cost_live_terms terms;
    struct cost_live live;
    struct error err;
    assert_int_equal(cost_live_read(NULL, &terms, &err), ST_OK);
    assert_true(isnan(terms.price_kwh) && strcmp(terms.currency, "CNY") == 0 && terms.terms.years == 5);
    struct cost_span usage = hour(), idle = hour(), nothing = {.seconds = 0};
    idle.prompt_tokens = idle.output_tokens = 0;
    assert_int_equal(cost_live_compute(&terms, &usage, &live, &err), ST_INVAL); /* no price */
    terms.price_kwh = 1;
    assert_int_equal(cost_live_compute(&terms, &idle, &live, &err), ST_INVAL); /* no tokens */
    assert_int_equal(cost_live_compute(&terms, &nothing, &live, &err), ST_INVAL);
    static const char *const wrong[] = {"capex",
                                        "capex=",
                                        "capex=-1",
                                        "capex=1x",
                                        "years=0",
                                        "price=nan",
                                        "currency=",
                                        "currency=E\"R",
                                        "currency=ABCDEFGHIJKLM",
                                        "wages=5",
                                        "capex=1,,years=3",
                                        "tariff=00:00-08:00=1",
                                        "utc-hours=15",
                                        "utc-hours=",
                                        "tariff=",
                                        "tariff=00:00-08:00=1/07:00-24:00=2"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        err.message[0] = '\0';
        assert_int_equal(cost_live_read(wrong[i], &terms, &err), ST_INVAL);
        assert_non_null(strstr(err.message, "--power-cost"));
    }
    char long_term[2000];
    memset(long_term, '1', sizeof long_term - 1);
    memcpy(long_term, "capex=", 6);
    long_term[sizeof long_term - 1] = '\0';
    assert_int_equal(cost_live_read(long_term, &terms, &err), ST_INVAL);
}

/* By the time of day, eight hours east: 01:00 UTC is 09:00 there. */
static void test_cost_live_tariff(void **state)
{
    (void)state;
    struct cost_live_terms terms;
    struct error err;
    const int64_t hour_ms = 3600000;
    assert_int_equal(
        cost_live_read("tariff=00:00-08:00=0.31/08:00-22:00=0.92/22:00-24:00=0.31,utc-hours=8,capex=5", &terms, &err),
        ST_OK);
    assert_true(terms.terms.capex == 5 && isnan(terms.price_kwh) && terms.tariff.count == 3);
    assert_true(tariff_price(&terms.tariff, hour_ms) == 0.92 && tariff_price(&terms.tariff, -hour_ms) == 0.31);
    assert_true(tariff_price(&terms.tariff, 14 * hour_ms) == 0.31 && tariff_price(&terms.tariff, 0) == 0.92);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cost_live_by_hand),
        cmocka_unit_test(test_cost_live_refuses),
        cmocka_unit_test(test_cost_live_tariff),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
