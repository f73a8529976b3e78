/* What is printed: the same figures in every form, unknown ones left out, and a model's name that is markup is text. */
#include "tests/unit/unit.h"

#include "runtime/base/json.h"
#include "server/bench/bench_report.h"

#include <math.h>

static double times[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
static struct bench_result result = {.prompt_tokens = 3000,
                                     .output_tokens = 1000,
                                     .answered = 11,
                                     .seconds = 10,
                                     .first_ms = {times, 11, 11},
                                     .gap_ms = {times, 5, 11},
                                     .whole_ms = {times, 11, 11}};

static void make(struct bench_options *o, struct bench_report *r, const char *meter)
{
    struct error err = {""};
    *o = (struct bench_options){.clients = 2,
                                .prompt_tokens = 300,
                                .output_tokens = 100,
                                .currency = "EUR",
                                .terms = {.pue = 1.5, .busy_share = 1, .years = 5, .capex = 43800},
                                .speed = 1};
    o->exchanges_count = 1;
    memcpy(o->exchanges[0].label, "USD", 4);
    o->exchanges[0].rate = 0.5;
    assert_int_equal(tariff_read("00:00-12:00=0.2,12:00-24:00=0.4", &o->tariff, &err), ST_OK);
    *r = (struct bench_report){.options = o, .result = &result, .model = "a<b>&\"c", .meter = meter, .busy_s = 9};
    r->load = (struct cost_load){10, strcmp(meter, "none") ? 2400 : 0, 3000, 1000, strcmp(meter, "none") ? 0.25 : -1};
    assert_int_equal(cost_compute(&o->terms, &r->load, tariff_mean(&o->tariff), &r->cost, &err), ST_OK);
}

static struct json *json_of(const struct bench_report *r)
{
    struct buf out;
    struct json *root;
    struct error err = {""};
    buf_init(&out, 0);
    bench_report_json(r, &out);
    assert_int_equal(json_read(out.data, out.length, &root, &err), ST_OK);
    buf_free(&out);
    return root;
}

static double number(const struct json *root, const char *name)
{
    const struct json *value = json_member(root, name);
    if (!json_has_number(value)) fail_msg("%s is no number", name);
    return json_to_number(value);
}

/* 43,800 over 5 years is 1 an hour; 240 W at PUE 1.5 and 0.3 is 0.108; 1.44 million tokens an hour. */
static void test_bench_report_json(void **state)
{
    (void)state;
    struct bench_options o;
    struct bench_report r;
    make(&o, &r, "estimate");
    o.explain = true;
    struct json *root = json_of(&r);
    assert_string_equal(json_to_text(json_member(root, "model"), NULL), "a<b>&\"c");
    assert_true(json_to_bool(json_member(root, "estimated")));
    double million = 1.108 / 1.44;
    assert_true(fabs(number(root, "per_million") - million) < 1e-6);
    assert_true(fabs(number(root, "per_million_over_outputs") - 4 * million) < 1e-6);
    assert_true(fabs(number(root, "per_million_inputs") - 1.108 * 0.25 / 1.08) < 1e-6);
    assert_true(fabs(number(root, "per_million_outputs") - 1.108 * 0.75 / 0.36) < 1e-6);
    assert_true(fabs(number(root, "hour_hardware") - 1) < 1e-9);
    assert_true(fabs(number(root, "energy_of_all") - 0.108 / 1.108) < 1e-6);
    assert_true(number(root, "ttft_ms_p50") == 6 && number(root, "ttft_ms_p90") == 10 &&
                number(root, "gap_ms_p50") == 3);
    assert_true(fabs(number(json_member(root, "exchanges"), "USD") - 2 * million) < 1e-6);
    const struct json *night = json_at(json_member(root, "day"), 0), *day = json_at(json_member(root, "day"), 1);
    assert_string_equal(json_to_text(json_member(day, "from"), NULL), "12:00");
    assert_true(fabs(number(day, "per_million") - number(night, "per_million") - 0.36 * 0.2 / 1.44) < 1e-6);
    assert_non_null(strstr(json_to_text(json_member(root, "explain"), NULL), "C = 10^6 * H / N"));
    json_release(root);
}

/* Without a meter the energy is not 0 but unknown. */
static void test_bench_report_unknown(void **state)
{
    (void)state;
    struct bench_options o;
    struct bench_report r;
    make(&o, &r, "none");
    r.busy_s = -1;
    struct json *root = json_of(&r);
    static const char *const names[] = {"joules",      "joules_per_token",   "kwh_per_million",
                                        "hour_energy", "energy_of_all",      "per_million_inputs",
                                        "input_share", "engine_busy_seconds"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(json_kind(json_member(root, names[i])), JSON_KIND_NULL);
    assert_false(json_to_bool(json_member(root, "estimated")));
    json_release(root);
    struct buf out;
    buf_init(&out, 0);
    bench_report_text(&r, &out);
    buf_append_char(&out, 0);
    assert_non_null(strstr(out.data, "(WITHOUT ENERGY)"));
    assert_non_null(strstr(out.data, "energy   not known"));
    buf_free(&out);
}

static void test_bench_report_others(void **state)
{
    (void)state;
    struct bench_options o;
    struct bench_report r;
    struct buf out;
    uint32_t commas[2] = {0}, line = 0, opened = 0, closed = 0;
    make(&o, &r, "server");
    buf_init(&out, 0);
    bench_report_csv(&r, &out);
    for (size_t i = 0; i < out.length; i++) {
        if (out.data[i] == '\n') line++;
        if (out.data[i] == ',' && line < 2) commas[line]++;
    }
    assert_int_equal(line, 2);
    assert_int_equal(commas[0], commas[1]);
    buf_clear(&out);
    bench_report_svg(&r, &out);
    for (size_t i = 0; i < out.length; i++) opened += out.data[i] == '<', closed += out.data[i] == '>';
    buf_append_char(&out, 0);
    assert_int_equal(opened, closed);
    assert_non_null(strstr(out.data, "a&#60;b&#62;&#38;\"c: 0.769"));
    assert_null(strstr(out.data, "estimated"));
    assert_non_null(strstr(out.data, "hardware: 0.694"));
    buf_clear(&out);
    bench_report_text(&r, &out);
    buf_append_char(&out, 0);
    assert_null(strstr(out.data, "ESTIMATED"));
    assert_non_null(strstr(out.data, "12:00-24:00  a kWh at 0.4"));
    assert_non_null(strstr(out.data, "by cause: 0.256"));
    buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bench_report_json),
        cmocka_unit_test(test_bench_report_unknown),
        cmocka_unit_test(test_bench_report_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
