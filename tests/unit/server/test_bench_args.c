/* Options of `millrace bench cost`: every one is told by the help and taken; what is wrong is named. */
#include "tests/unit/unit.h"

#include "server/bench/bench_args.h"

static char *no_environment[] = {NULL};

static enum status read_line(struct bench_options *options, const char *line, char **environment, struct error *err)
{
    static char text[1024];
    char *argv[32];
    int argc = 0;
    snprintf(text, sizeof text, "%s", line);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    err->message[0] = 0;
    return bench_args_read(options, argc, argv, environment, err);
}

static void test_bench_args_all(void **state)
{
    (void)state;
    struct bench_options o;
    struct error err;
    char key[] = "MILLRACE_API_KEY=sk-1", *environment[] = {key, NULL};
    assert_int_equal(read_line(&o, "--tariff 0.5", environment, &err), ST_OK);
    assert_string_equal(o.server, "http://127.0.0.1:8000");
    assert_string_equal(o.currency, "CNY");
    assert_string_equal(o.key, "sk-1");
    assert_true(o.terms.pue == 1 && o.terms.busy_share == 1 && o.clients == 8 && o.form == BENCH_TEXT);
    assert_int_equal(
        read_line(&o,
                  "--server http://h:1 --tariff 00:00-12:00=1,12:00-24:00=2 --utc-offset -3.5 --pue 1.3 --capex 1e6 "
                  "--interest 0.05 --currency EUR --exchange USD=0.9 --exchange CNY=0.13 --busy 0.4 --idle-watts 50 "
                  "--full-watts 400 --json --explain --no-split --seed 3",
                  no_environment, &err),
        ST_OK);
    assert_null(o.key);
    assert_int_equal(o.tariff.count, 2);
    assert_int_equal(o.tariff.utc_offset_s, -12600);
    assert_true(o.terms.idle_w == 50 && o.terms.busy_share == 0.4 && o.terms.capex == 1e6);
    assert_int_equal(o.exchanges_count, 2);
    assert_string_equal(o.exchanges[1].label, "CNY");
    assert_true(o.exchanges[0].rate == 0.9);
    assert_true(o.form == BENCH_JSON && o.explain && o.no_split && o.seed == 3);
    struct buf help;
    buf_init(&help, 0);
    bench_args_help(&help);
    buf_append_char(&help, 0);
    assert_non_null(strstr(help.data, "  --per-second R "));
    assert_non_null(strstr(help.data, "  --svg FILE "));
    buf_free(&help);
    assert_int_equal(read_line(&o, "--help", no_environment, &err), ST_OK);
    assert_true(o.help);
}

static void test_bench_args_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *line, *says;
    } lines[] = {
        {"", "--tariff is needed"},
        {"--tariff", "needs a value"},
        {"--tariff x", "tariff is a price"},
        {"--tariff 1 --nothing", "no option"},
        {"--tariff 1 --clients 0", "from 1 to"},
        {"--tariff 1 --clients 1.5", "not a whole number"},
        {"--tariff 1 --pue 0.9", "from 1 to 10"},
        {"--tariff 1 --pue nan", "is not a number"},
        {"--tariff 1 --pue 1x", "is not a number"},
        {"--tariff 1 --currency E<R", "--currency"},
        {"--tariff 1 --currency TWELVELETTER", "--currency"},
        {"--tariff 1 --exchange USD", "LABEL=RATE"},
        {"--tariff 1 --exchange =3", "LABEL=RATE"},
        {"--tariff 1 --exchange USD=0", "LABEL=RATE"},
        {"--tariff 1 --exchange A=1 --exchange B=1 --exchange C=1 --exchange D=1 --exchange E=1", "LABEL=RATE"},
        {"--tariff 1 --trace f --per-second 2", "exclude"},
        {"--tariff 1 --idle-watts 9 --full-watts 8", "below"}};
    struct bench_options o;
    struct error err;
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        if (read_line(&o, lines[i].line, no_environment, &err) != ST_INVAL) fail_msg("\"%s\" is taken", lines[i].line);
        if (!strstr(err.message, lines[i].says)) fail_msg("\"%s\" says: %s", lines[i].line, err.message);
    }
    char key[] = "MILLRACE_API_KEY=a\r\nb", *environment[] = {key, NULL};
    assert_int_equal(read_line(&o, "--tariff 1", environment, &err), ST_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bench_args_all),
        cmocka_unit_test(test_bench_args_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
