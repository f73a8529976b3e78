/* Files of power signals, as text. */
#include "tests/unit/unit.h"

#include "server/power/signal_table.h"

#include <math.h>

#define T INT64_C(1763892000000) /* 2025-11-23T10:00:00Z */

static struct signal_table good(const char *text)
{
    struct signal_table table;
    struct error err = {""};
    if (signal_table_read(text, strlen(text), &table, &err) != ST_OK) fail_msg("%s\n%s", text, err.message);
    return table;
}

static void test_signal_table_csv(void **state)
{
    (void)state;
    struct signal_table table =
        good("\xef\xbb\xbf# of the grid\r\n\r\n time , cap_w,\"green_w\",shed_level,price_kwh,cap_hard,quality\r\n"
             "2025-11-23T10:00:00Z,60.5,,1,-0.02,true,estimated\r\n"
             "# noon\n"
             "2025-11-23T12:15:00+02:00,,33,,nan\n"
             "2025-11-23T11:00:00Z,inf");
    assert_int_equal(table.count, 3);
    assert_true(!table.holds && !table.is_trace && table.has_quality);
    const struct power_slot *slots = table.slots;
    assert_true(slots[0].t0_ms == T && slots[0].dur_s == 900 && slots[0].have == (SLOT_CAP | SLOT_SHED | SLOT_PRICE));
    assert_true(slots[0].cap_w == 60.5 && slots[0].shed_level == 1 && slots[0].price_kwh == -0.02 && slots[0].cap_hard);
    assert_int_equal(slots[0].quality, SLOT_ESTIMATED);
    assert_true(slots[1].t0_ms == T + 900000 && slots[1].dur_s == 2700 && slots[1].have == (SLOT_GREEN | SLOT_PRICE));
    assert_true(slots[1].green_w == 33 && isnan(slots[1].price_kwh)); /* the store says why not */
    assert_true(slots[2].dur_s == 2700 && isinf(slots[2].cap_w));     /* as long as the one before */
    signal_table_free(&table);
    table = good("cap_w\n60\n");
    assert_true(table.holds && table.count == 1 && table.slots[0].cap_w == 60 && table.slots[0].t0_ms == 0);
    signal_table_free(&table);
    table = good("t0_ms,dur_s,pue\n1763892000000,60,1.1");
    assert_true(table.slots[0].t0_ms == T && table.slots[0].dur_s == 60 && table.slots[0].pue == 1.1);
    signal_table_free(&table);
    table = good("time,cap_w\n2025-11-23T10:00:00Z,1");
    assert_int_equal(table.slots[0].dur_s, 900);
    signal_table_free(&table);
}

static void test_signal_table_trace(void **state)
{
    (void)state;
    struct signal_table table =
        good("time_local,solar_pu,wind_pu\n2016-04-08 00:00:00,0.25,0.5\n2016-04-08 00:15:00,0,\n");
    assert_true(table.is_trace && table.count == 2 && table.slots[0].green_w == 0.75 && table.slots[1].dur_s == 900);
    assert_int_equal(table.slots[0].have, SLOT_GREEN);
    signal_table_free(&table);
}

static void test_signal_table_json(void **state)
{
    (void)state;
    const char *texts[] = {"[{\"time\":\"2025-11-23T10:00:00Z\",\"cap_w\":60,\"price_kwh\":-1.5e-1,\"shed_level\":2,"
                           "\"cap_hard\":true,\"pue\":null,\"green_w\":\"12\"}]",
                           " {\"slots\":[{\"t0_ms\":1763892000000,\"cap_w\":60.0,\"price_kwh\":-0.15,\"shed_level\":2,"
                           "\"cap_hard\":1,\"green_w\":12}]}"};
    for (int i = 0; i < 2; i++) {
        struct signal_table table = good(texts[i]);
        const struct power_slot *slot = table.slots;
        assert_true(table.count == 1 && !table.holds && slot->t0_ms == T && slot->dur_s == 900);
        assert_int_equal(slot->have, SLOT_CAP | SLOT_PRICE | SLOT_SHED | SLOT_GREEN);
        assert_true(slot->cap_w == 60 && slot->price_kwh == -0.15 && slot->shed_level == 2 && slot->cap_hard);
        assert_true(slot->green_w == 12);
        signal_table_free(&table);
    }
    struct signal_table table = good("{\"cap_w\": 60}");
    assert_true(table.holds && table.slots[0].cap_w == 60);
    signal_table_free(&table);
}

/* What is wrong is said with its line, and nothing is written. */
static void test_signal_table_refuses(void **state)
{
    (void)state;
    const struct {
        const char *text, *says;
    } cases[] = {
        {"", "it is empty"},
        {"\n \n# only this\n", "it is empty"},
        {"cap_w\n", "no row"},
        {"time,watts\n", "line 1: there is no field \"watts\""},
        {"\n\ncap_w,cap_w\n", "line 3: two columns cap_w"},
        {"cap_w\nabc\n", "line 2: cap_w: \"abc\" is not a number"},
        {"cap_w\n0x10\n", "line 2: cap_w"},
        {"cap_w\n6 0\n", "line 2: cap_w"},
        {"cap_w\n60,70\n", "line 2: more cells than columns"},
        {"time,cap_w\n2025-11-23T10:00:00Z,1\n2025-11-23T10:00:00Z,2\n", "line 3: its time is not after"},
        {"time,cap_w\n2025-11-23T10:00:00Z,1\n,2\n", "line 3: several rows need a time each"},
        {"cap_w\n60\n70\n", "line 3: several rows need a time each"},
        {"cap_w,dur_s\n60,5\n", "dur_s needs a time"},
        {"time,cap_w\nyesterday,5\n", "line 2: time: \"yesterday\" is not a time"},
        {"t0_ms,cap_w\n-5,5\n", "line 2: t0_ms"},
        {"t0_ms,cap_w\n1e300,5\n", "line 2: t0_ms"},
        {"t0_ms,dur_s\n5,0\n", "line 2: dur_s"},
        {"shed_level\n1.5\n", "line 2: shed_level"},
        {"cap_hard\nperhaps\n", "line 2: cap_hard"},
        {"quality\ngood\n", "line 2: quality"},
        {"time_local\n", "a trace needs a column"},
        {"time_local,solar\n", "no field \"solar\""},
        {"time_local,solar_pu\n2016-04-08 00:00:00,nan\n", "line 2: solar_pu"},
        {"time_local,solar_pu\n2016-04-08 00:00:00,-1\n", "line 2: solar_pu"},
        {"time_local,solar_pu\n,1\n", "line 2: the row has no time"},
        {"cap_w\n1111111111111111111111111111111111111111111111111111111111111111\n", "line 2: a cell has more"},
        {"[", "line"},
        {"[]", "no row"},
        {"[5]", "row 1: it is no object"},
        {"{\"slots\": 5}", "slots must be a list"},
        {"{\"cap_w\": [1]}", "cap_w: this must be one value"},
        {"[{\"t0_ms\":5,\"cap_w\":1},{\"t0_ms\":4}]", "row 2: its time"},
        {"{\"cap_w\": 1, \"sun\": 2}", "\"sun\" is no field"},
        {"{\"cap_w\": 1, \"cap_w\": 2}", ""},
        {"{\"cap_w\": NaN}", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct signal_table table = {.count = 7};
        struct error err = {""};
        assert_int_equal(signal_table_read(cases[i].text, strlen(cases[i].text), &table, &err), ST_INVAL);
        if (strcmp(cases[i].says, "line") != 0 && !strstr(err.message, cases[i].says))
            fail_msg("\"%s\": %s", cases[i].text, err.message);
        assert_int_equal(table.count, 7);
    }
    struct signal_table table;
    struct error err;
    assert_int_equal(signal_table_read("cap_w\n1\0002\n", 10, &table, &err), ST_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signal_table_csv), cmocka_unit_test(test_signal_table_trace),
        cmocka_unit_test(test_signal_table_json), cmocka_unit_test(test_signal_table_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
