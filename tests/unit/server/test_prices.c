/* Price files: what is read, what is refused, what may follow. */
#include "tests/unit/unit.h"

#include "server/billing/prices.h"

#include <unistd.h>

static char path[] = "/tmp/millrace-prices-XXXXXX";

static enum status read_text(const char *text, struct prices **prices, struct error *err)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
    return prices_read(path, prices, err);
}

static void test_prices_weights_are_exact(void **state)
{
    (void)state;
    const struct {
        const char *text;
        uint64_t ppm;
    } good[] = {{"0", 0},         {"1", 1000000},          {"1.0", 1000000},     {"0.25", 250000},
                {"0.000001", 1},  {"12.345678", 12345678}, {"1000", 1000000000}, {"1000.000000", 1000000000},
                {"0001", 1000000}};
    const char *bad[] = {"",
                         ".5",
                         "5.",
                         "-1",
                         "+1",
                         " 1",
                         "1 ",
                         "1e3",
                         "0.0000001",
                         "1000.000001",
                         "1001",
                         "10000",
                         "99999999999999999999",
                         "1.2.3",
                         "0x1",
                         "1,5",
                         "inf",
                         "nan"};
    uint64_t ppm;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(weight_read(good[i].text, &ppm));
        assert_int_equal(ppm, good[i].ppm);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (weight_read(bad[i], &ppm)) fail_msg("\"%s\" was read", bad[i]);
}

static void test_prices_rows_and_default(void **state)
{
    (void)state;
    struct prices *prices;
    struct error err = {""};
    struct charge charge = {0};
    assert_int_equal(read_text("# prices\nversion: 7\ndefault: [class=0, input=1, cached=0.1, output=4]\n"
                               "org/model: [output=1.5, class=52, cached=0.025, input=0.25]\n",
                               &prices, &err),
                     ST_OK);
    char other[] = "other", model[] = "org/model";
    char *names[] = {other, model};
    prices_fill(prices, prices_find(prices, names, 2), &charge);
    assert_int_equal(charge.price_version, 7);
    assert_int_equal(charge.mclass, 52);
    assert_int_equal(charge.weight_in_ppm, 250000);
    assert_int_equal(charge.weight_hit_ppm, 25000);
    assert_int_equal(charge.weight_out_ppm, 1500000);
    prices_fill(prices, prices_find(prices, names, 1), &charge);
    assert_int_equal(charge.mclass, 0);
    assert_int_equal(charge.weight_hit_ppm, 100000);
    prices_destroy(prices);
    assert_int_equal(prices_read(NULL, &prices, &err), ST_OK);
    prices_fill(prices, prices_find(prices, names, 2), &charge);
    assert_int_equal(charge.price_version, 0);
    assert_int_equal(charge.weight_in_ppm, 1000000);
    assert_int_equal(charge.weight_hit_ppm, 1000000);
    assert_int_equal(charge.weight_out_ppm, 1000000);
    prices_destroy(prices);
}

#define DEFAULT "default: [class=0, input=1, cached=1, output=1]\n"

static void test_prices_refuses_bad_files(void **state)
{
    (void)state;
    const struct {
        const char *text, *says;
    } cases[] = {
        {"", "no version"},
        {DEFAULT, "no version"},
        {"version: 0\n" DEFAULT, "version must"},
        {"version: 1.5\n" DEFAULT, "version must"},
        {"version: 4294967296\n" DEFAULT, "version must"},
        {"version: 1\nversion: 2\n" DEFAULT, "version must"},
        {"version: 1\n", "\"default\""},
        {"version: 1\n" DEFAULT "m: [class=0, input=1, cached=1]\n", "\"m\" needs"},
        {"version: 1\n" DEFAULT "m: [class=53, input=1, cached=1, output=1]\n", "\"m\": class"},
        {"version: 1\n" DEFAULT "m: [class=0, input=-1, cached=1, output=1]\n", "\"m\": input"},
        {"version: 1\n" DEFAULT "m: [class=0, input=1, cached=0.1234567, output=1]\n", "\"m\": cached"},
        {"version: 1\n" DEFAULT "m: [class=0, input=1, cached=1, output=1, output=2]\n", "output stands twice"},
        {"version: 1\n" DEFAULT "m: [class=0, input=1, cached=1, out=1]\n", "\"out=1\" is none"},
        {"version: 1\n" DEFAULT DEFAULT, "stands twice"},
        {"version: 1\n" DEFAULT "m: 1\n", "\"1\" is none"},
        {"version: 1\n" DEFAULT "m: {class: 0}\n", "nested"},
        {"version: [1\n", "line"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct prices *prices = NULL;
        struct error err = {""};
        assert_int_equal(read_text(cases[i].text, &prices, &err), ST_INVAL);
        if (!strstr(err.message, cases[i].says)) fail_msg("\"%s\" does not say %s", err.message, cases[i].says);
        assert_non_null(strstr(err.message, path));
        assert_null(prices);
    }
    struct prices *prices;
    assert_int_equal(prices_read("/nonexistent/prices", &prices, NULL), ST_NOTFOUND);
}

static void test_prices_follow_only_under_a_new_version(void **state)
{
    (void)state;
    struct prices *now, *same, *changed, *newer;
    struct error err = {""};
    assert_int_equal(read_text("version: 2\n" DEFAULT, &now, &err), ST_OK);
    assert_int_equal(read_text("# again\nversion: 2\n" DEFAULT, &same, &err), ST_OK);
    assert_int_equal(read_text("version: 2\ndefault: [class=0, input=1, cached=1, output=2]\n", &changed, &err), ST_OK);
    assert_int_equal(read_text("version: 3\n" DEFAULT, &newer, &err), ST_OK);
    assert_int_equal(prices_follow(now, same, &err), ST_OK);
    assert_int_equal(prices_follow(now, changed, &err), ST_INVAL);
    assert_int_equal(prices_follow(now, newer, &err), ST_OK);
    assert_int_equal(prices_follow(newer, now, &err), ST_INVAL);
    prices_destroy(now);
    prices_destroy(same);
    prices_destroy(changed);
    prices_destroy(newer);
}

static int make_file(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prices_weights_are_exact),
        cmocka_unit_test(test_prices_rows_and_default),
        cmocka_unit_test(test_prices_refuses_bad_files),
        cmocka_unit_test(test_prices_follow_only_under_a_new_version),
    };
    return cmocka_run_group_tests(tests, make_file, remove_file);
}
