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
                                       cmocka_unit_test(test_signal_spec_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
