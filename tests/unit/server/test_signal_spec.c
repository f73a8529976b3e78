/* --power-signal as it is typed. */
#include "tests/unit/unit.h"

#include "server/power/signal_spec.h"

static struct signal_spec good(const char *text)
{
    struct signal_spec spec;
    struct error err = {""};
    if (signal_spec_read(text, 3, &spec, &err) != ST_OK) fail_msg("%s: %s", text, err.message);
    return spec;
}

static void test_signal_spec_fixed(void **state)
{
    (void)state;
    struct signal_spec spec = good("fixed:price=-0.31,gco2=400,pue=1.2");
    assert_int_equal(spec.kind, SIGNAL_KIND_FIXED);
    assert_int_equal(spec.constants.have, SLOT_PRICE | SLOT_CO2 | SLOT_PUE);
    assert_true(spec.constants.price_kwh == -0.31 && spec.constants.gco2_kwh == 400 && spec.constants.pue == 1.2);
}

static void test_signal_spec_file(void **state)
{
    (void)state;
    struct signal_spec spec = good("file:/a,b=c,dir/power.csv,share=0.25,period=0.5,scale=60,speed=96,name=grid-1");
    assert_int_equal(spec.kind, SIGNAL_KIND_FILE);
    assert_string_equal(spec.place, "/a,b=c,dir/power.csv"); /* commas of a path end nothing */
    assert_string_equal(spec.name, "grid-1");
    assert_true(spec.rank == 3 && spec.period_ms == 500);
    assert_true(spec.share == 0.25 && spec.scale_w == 60 && spec.speed == 96);
    spec = good("file:power.csv");
    assert_true(spec.rank == 3 && spec.period_ms == 10000 && spec.share == 1 && spec.speed == 1 && !spec.name[0]);
    assert_int_equal(good("file:power.csv,rank=0").rank, 0);
    spec = good("redis:north,url=redis-cluster://a:1,b:2,share=0.1");
    assert_true(spec.kind == SIGNAL_KIND_REDIS && spec.share == 0.1);
    assert_string_equal(spec.place, "north");
    assert_string_equal(spec.url, "redis-cluster://a:1,b:2");
}

static void test_signal_spec_refuses(void **state)
{
    (void)state;
    const struct {
        const char *text, *says;
    } cases[] = {
        {"", "it must begin with one of"},
        {"fixed", "it must begin with one of"},
        {"sun:x", "it must begin with one of fixed"},
        {"fixed:", "needs price="},
        {"fixed:price=", "price="},
        {"fixed:price=nan", "price=nan must be"},
        {"fixed:price=inf", "price=inf must be"},
        {"fixed:price=0.3x", "price=0.3x must be"},
        {"fixed:pue=0.9", "from 1 to 10"},
        {"fixed:share=0.5", "nothing that fixed takes"},
        {"file:", "there must be a path"},
        {"file:,share=1", "there must be a path"},
        {"file:x,share=0", "share=0 must be"},
        {"file:x,share=1.01", "share=1.01 must be"},
        {"file:x,rank=1.5", "whole number"},
        {"file:x,period=0", "period=0 must be"},
        {"file:x,name=a b", "name= has letters"},
        {"file:x,name=", "name= has letters"},
        {"file:x,share=1,zone=DE", "share=1,zone=DE must be"},
        {"fixed:price=0.3,gco2", "price=0.3,gco2 must be"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct signal_spec spec = {.rank = 77};
        struct error err = {""};
        assert_int_equal(signal_spec_read(cases[i].text, 0, &spec, &err), ST_INVAL);
        if (!strstr(err.message, cases[i].says)) fail_msg("\"%s\": %s", cases[i].text, err.message);
        assert_non_null(strstr(err.message, "--power-signal"));
        assert_int_equal(spec.rank, 77);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_signal_spec_fixed),
                                       cmocka_unit_test(test_signal_spec_file),
                                       cmocka_unit_test(test_signal_spec_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
