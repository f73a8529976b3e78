/* The cost of a million tokens: worked examples, each part apart, and tariffs over the day. */
#include "tests/unit/unit.h"

#include "runtime/power/cost.h"

#include <math.h>

static void near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-9 + fabs(want) * 1e-6)) fail_msg("got %.9g, want %.9g", got, want);
}

static struct cost compute(const struct cost_terms *terms, const struct cost_load *load, double price)
{
    struct cost cost;
    struct error err = {""};
    if (cost_compute(terms, load, price, &cost, &err) != ST_OK) fail_msg("%s", err.message);
    return cost;
}

/* 0.12 J a token (8B, H100, batch 64), twice that with host and idle time, PUE 1.2: 0.08 kWh, 0.028 CNY a million. */
static void test_cost_of_energy(void **state)
{
    (void)state;
    const struct cost_terms terms = {.pue = 1.2, .busy_share = 1};
    const struct cost_load load = {.seconds = 100, .joules = 0.24e6, .prompt_tokens = 1e6, .input_share = -1};
    struct cost cost = compute(&terms, &load, 0.35);
    near(cost.million_kwh, 0.08);
    near(cost.million_all, 0.028);
    near(cost.energy_of_all, 1);
    near(cost.energy_of_running, 1);
    near(cost.joules_token, 0.24);
    near(cost.million_output, 0); /* there were none */
    near(cost.million_input_part, 0);
}

/* 250,000 over 5 years at 6 %: crf 0.2373964, 6.775011 an hour. 20 kW at 30 a month: 0.8219178. */
static void test_cost_parts(void **state)
{
    (void)state;
    const struct cost_terms terms = {.capex = 250000,
                                     .interest_year = 0.06,
                                     .years = 5,
                                     .site_kw_month = 30,
                                     .contract_kw = 20,
                                     .opex_hour = 1.5,
                                     .income_hour = 0.25,
                                     .pue = 1.5,
                                     .busy_share = 0.25,
                                     .idle_w = 1000};
    const struct cost_load load = {1800, 7.2e6, 3e6, 1e6, 0.4};
    struct cost cost = compute(&terms, &load, 0.1);
    near(cost.crf, 0.23739640);
    near(cost.hour[COST_HARDWARE], 250000 * 0.2373964004 / 8760);
    near(cost.hour[COST_SITE], 600.0 / 730);
    near(cost.hour[COST_OPEX], 1.5);
    near(cost.kwh_hour, (0.25 * 4 + 0.75 * 1) * 1.5); /* 4 kW a quarter of the time, 1 kW the rest */
    near(cost.hour[COST_ENERGY], 0.2625);
    near(cost.hour[COST_INCOME], -0.25);
    double spent = 6.7750115 + 0.8219178 + 1.5 + 0.2625;
    near(cost.hour_total, spent - 0.25);
    near(cost.tokens_hour, 2e6);
    near(cost.million_all, (spent - 0.25) / 2);
    near(cost.million_output, (spent - 0.25) / 0.5);
    near(cost.million_input_part, (spent - 0.25) * 0.4 / 1.5);
    near(cost.million_output_part, (spent - 0.25) * 0.6 / 0.5);
    near(cost.energy_of_all, 0.2625 / spent);
    near(cost.energy_of_running, 0.2625 / (spent - 6.7750115));
    struct buf out;
    buf_init(&out, 0);
    cost_explain(&terms, &load, &cost, "EUR", &out);
    buf_append_char(&out, 0);
    assert_non_null(strstr(out.data, "crf      = r (1+r)^n / ((1+r)^n - 1) = 0.237396"));
    assert_non_null(strstr(out.data, "energy   = kWh * price = 2.625 * 0.1 = 0.2625 EUR"));
    buf_free(&out);
}

static void test_cost_crf(void **state)
{
    (void)state;
    near(cost_crf(0, 4), 0.25);
    near(cost_crf(1e-12, 4), 0.25);
    near(cost_crf(0.1, 1), 1.1);
    near(cost_crf(0.05, 10), 0.129504575);
    near(cost_crf(0.05, 0), 0);
}

static void test_cost_refuses(void **state)
{
    (void)state;
    const struct cost_terms fine = {.pue = 1, .busy_share = 1};
    const struct cost_load load = {1, 1, 1, 1, -1};
    struct cost cost = {.crf = 42};
    struct error err = {""};
    const struct cost_terms bad[] = {{.pue = 0.9, .busy_share = 1},
                                     {.pue = 1, .busy_share = 0},
                                     {.pue = 1, .busy_share = 1.1},
                                     {.pue = NAN, .busy_share = 1},
                                     {.pue = 1, .busy_share = 1, .capex = -1},
                                     {.pue = 1, .busy_share = 1, .idle_w = INFINITY}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(cost_compute(&bad[i], &load, 1, &cost, &err), ST_INVAL);
    const struct cost_load none[] = {{0, 1, 1, 1, -1}, {1, 1, 0, 0, -1}, {1, -1, 1, 1, -1}, {1, 1, NAN, 1, -1}};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_int_equal(cost_compute(&fine, &none[i], 1, &cost, &err), ST_INVAL);
    assert_int_equal(cost_compute(&fine, &load, NAN, &cost, &err), ST_INVAL);
    near(cost.crf, 42);
    assert_non_null(strstr(err.message, "price of a kWh"));
}

static void test_tariff_day(void **state)
{
    (void)state;
    struct tariff tariff = {.utc_offset_s = 8 * 3600};
    struct error err = {""};
    assert_int_equal(tariff_read("00:00-08:00=0.3,08:00-22:30=0.9,22:30-24:00=-0.1", &tariff, &err), ST_OK);
    assert_int_equal(tariff.count, 3);
    near(tariff_mean(&tariff), (8 * 0.3 + 14.5 * 0.9 - 1.5 * 0.1) / 24);
    const int64_t hour = 3600000;
    near(tariff_price(&tariff, 0), 0.9); /* 08:00 there */
    near(tariff_price(&tariff, -1), 0.3);
    near(tariff_price(&tariff, 14 * hour + hour / 2), -0.1);
    near(tariff_price(&tariff, 14 * hour + hour / 2 - 60000), 0.9);
    near(tariff_price(&tariff, 16 * hour), 0.3);
    near(tariff_price(&tariff, 16 * hour + 365 * 24 * hour), 0.3);
    assert_int_equal(tariff_read("0.35", &tariff, &err), ST_OK);
    near(tariff_mean(&tariff), 0.35);
    near(tariff_price(&tariff, -5 * hour), 0.35);
    assert_int_equal(tariff.utc_offset_s, 8 * 3600);
}

static void test_tariff_refuses(void **state)
{
    (void)state;
    static const char *const texts[] = {"",
                                        "x",
                                        "0.3x",
                                        "nan",
                                        "inf",
                                        "00:00-24:00=",
                                        "00:00-24:00=1,",
                                        "00:00-23:00=1",
                                        "01:00-24:00=1",
                                        "00:00-08:00=1,09:00-24:00=1",
                                        "00:00-12:00=1,08:00-24:00=1",
                                        "00:00-00:00=1,00:00-24:00=1",
                                        "00:00-24:01=1",
                                        "00:00-08:60=1,08:60-24:00=1",
                                        "0:00-24:00=1",
                                        "00:00-24:00=1;",
                                        "00:00-24:00= 1",
                                        "00:00-99:99=1"};
    struct tariff tariff = {.count = 7}, before = tariff;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct error err = {""};
        if (tariff_read(texts[i], &tariff, &err) != ST_INVAL || !err.message[0]) fail_msg("\"%s\" is taken", texts[i]);
        assert_memory_equal(&tariff, &before, sizeof tariff);
    }
    char many[TARIFF_BANDS_MAX * 20 + 40] = "";
    for (uint32_t i = 0; i <= TARIFF_BANDS_MAX; i++)
        snprintf(many + strlen(many), sizeof many - strlen(many), "%s%02u:%02u-%02u:%02u=1", i ? "," : "", i / 60,
                 i % 60, (i + 1) / 60, (i + 1) % 60);
    struct error err = {""};
    assert_int_equal(tariff_read(many, &tariff, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "at most 48"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cost_of_energy), cmocka_unit_test(test_cost_parts), cmocka_unit_test(test_cost_crf),
        cmocka_unit_test(test_cost_refuses),   cmocka_unit_test(test_tariff_day), cmocka_unit_test(test_tariff_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
