/* bill_text.c: amounts exactly, times, months, classes, tables. */
#include "tests/unit/unit.h"

#include "server/billing/bill_text.h"
#include "server/billing/ledger.h"

#include <inttypes.h>

static const char *shown(struct buf *out)
{
    buf_append_char(out, '\0');
    assert_true(buf_ok(out));
    return out->data;
}

static void test_bill_text_tokens(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t units;
    } good[] = {
        {"0", 0},
        {"1", 1000000},
        {"0.000001", 1},
        {"1.5", 1500000},
        {"1.50000000000", 1500000},
        {"1.5M", UINT64_C(1500000000000)},
        {"20k", UINT64_C(20000000000)},
        {"2K", UINT64_C(2000000000)},
        {"0.0000000000000000000", 0},
        {"0.000000000001T", 1000000},
        {"2G", UINT64_C(2000000000000000)},
        {"4600000000000", PACKAGE_UNITS_MAX},
        {"4.6T", PACKAGE_UNITS_MAX},
        {".5", 500000},
        {"5.", 5000000},
    };
    static const char *const bad[] = {"",          ".",
                                      "M",         "1.5.",
                                      "1,5",       "-1",
                                      "+1",        "1 M",
                                      "1MM",       "1e6",
                                      "0x10",      "nan",
                                      " 1",        "1 ",
                                      "1m",        "1µ",
                                      "1.5Mi",     "4600000000000.000001",
                                      "4.7T",      "99999999999999999999",
                                      "0.0000001", "0.0000015",
                                      "1.0000001"};
    uint64_t units;
    struct error err;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        if (bill_parse_tokens(good[i].text, PACKAGE_UNITS_MAX, &units, &err) != ST_OK) fail_msg("%s", good[i].text);
        if (units != good[i].units) fail_msg("%s: %" PRIu64, good[i].text, units);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (bill_parse_tokens(bad[i], PACKAGE_UNITS_MAX, &units, &err) == ST_OK) fail_msg("%s passed", bad[i]);
}

/* What people may write reads as the amount it is. */
static void test_bill_text_tokens_round_trip(void **state)
{
    (void)state;
    uint64_t seed = 7, units;
    struct error err;
    struct buf out;
    buf_init(&out, 0);
    for (int i = 0; i < 20000; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
        uint64_t value = (seed >> (seed >> 58)) % (PACKAGE_UNITS_MAX + 1);
        buf_clear(&out);
        buf_append_format(&out, "%" PRIu64 ".%06" PRIu64, value / UNITS_PER_TOKEN, value % UNITS_PER_TOKEN);
        assert_int_equal(bill_parse_tokens(shown(&out), PACKAGE_UNITS_MAX, &units, &err), ST_OK);
        if (units != value) fail_msg("%" PRIu64 " became %s and %" PRIu64, value, out.data, units);
    }
    buf_clear(&out);
    bill_append_tokens(&out, UINT64_C(1234567890123));
    assert_string_equal(shown(&out), "1,234,567.890123");
    buf_clear(&out);
    bill_append_tokens(&out, UINT64_MAX);
    assert_string_equal(shown(&out), "18,446,744,073,709.551615");
    buf_clear(&out);
    bill_append_tokens(&out, 999000000);
    assert_string_equal(shown(&out), "999");
    buf_free(&out);
}

static void test_bill_text_times(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t ms;
        const char *back;
    } good[] = {
        {"1970-01-01", 0, "1970-01-01T00:00:00.000Z"},
        {"2024-02-29T23:59:59Z", INT64_C(1709251199000), "2024-02-29T23:59:59.000Z"},
        {"2026-11-23T10:00:00.250+01:00", INT64_C(1795424400250), "2026-11-23T09:00:00.250Z"},
        {"2026-11-23T00:30:00-03:30", INT64_C(1795406400000), "2026-11-23T04:00:00.000Z"},
        {"9999-12-31T23:59:59.999Z", INT64_C(253402300799999), "9999-12-31T23:59:59.999Z"},
    };
    static const char *const bad[] = {"",
                                      "2026",
                                      "2026-13-01",
                                      "2026-02-30",
                                      "2025-02-29",
                                      "2026-11-23T10:00:00",
                                      "2026-11-23 10:00:00Z",
                                      "1969-12-31",
                                      "2026-11-23T24:00:00Z",
                                      "2026-11-23T10:00:00+15:00",
                                      "2026-11-23T10:00:00Zx",
                                      "1970-01-01T00:00:00+01:00",
                                      "2026-11-23T10:00:00.2Z"};
    int64_t ms;
    struct error err;
    struct buf out;
    buf_init(&out, 0);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(bill_parse_time(good[i].text, &ms, &err), ST_OK);
        if (ms != good[i].ms) fail_msg("%s: %" PRId64, good[i].text, ms);
        buf_clear(&out);
        bill_append_time_ms(&out, ms);
        assert_string_equal(shown(&out), good[i].back);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (bill_parse_time(bad[i], &ms, &err) == ST_OK) fail_msg("%s passed", bad[i]);
    buf_clear(&out);
    bill_append_time_us(&out, -1);
    assert_string_equal(shown(&out), "1969-12-31T23:59:59.999999Z");
    buf_clear(&out);
    bill_append_day(&out, INT64_C(1795424399999999), 3600);
    assert_string_equal(shown(&out), "2026-11-23");
    buf_clear(&out);
    bill_append_day(&out, INT64_C(1795388400000000), 3600); /* 23:00 the day before, in UTC */
    assert_string_equal(shown(&out), "2026-11-23");
    buf_free(&out);
}

static void test_bill_text_months_offsets_classes(void **state)
{
    (void)state;
    uint32_t month;
    int32_t offset_s;
    uint64_t mask, number;
    struct buf out;
    assert_int_equal(bill_parse_month("2026-11", &month, NULL), ST_OK);
    assert_int_equal(month, 202611);
    assert_int_equal(bill_parse_month("202601", &month, NULL), ST_OK);
    assert_int_equal(month, 202601);
    static const char *const months[] = {"", "2026", "2026-00", "2026-13", "26-01", "2026-1", "2026-011", "1969-12"};
    for (size_t i = 0; i < sizeof months / sizeof *months; i++)
        assert_int_equal(bill_parse_month(months[i], &month, NULL), ST_INVAL);
    assert_int_equal(bill_parse_offset("-03:30", &offset_s, NULL), ST_OK);
    assert_int_equal(offset_s, -12600);
    assert_int_equal(bill_parse_offset("+1", &offset_s, NULL), ST_INVAL);
    assert_int_equal(bill_parse_classes("0,3,52", &mask, NULL), ST_OK);
    assert_true(mask == (1 | 8 | UINT64_C(1) << 52));
    buf_init(&out, 0);
    bill_append_classes(&out, mask);
    assert_string_equal(shown(&out), "0,3,52");
    assert_int_equal(bill_parse_classes("all", &mask, NULL), ST_OK);
    buf_clear(&out);
    bill_append_classes(&out, mask);
    assert_string_equal(shown(&out), "all");
    buf_free(&out);
    static const char *const classes[] = {"", "53", "0,", ",1", "0 1", "-1", "0000", "x"};
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        assert_int_equal(bill_parse_classes(classes[i], &mask, NULL), ST_INVAL);
    assert_int_equal(bill_parse_number("18446744073709551615", UINT64_MAX, &number, NULL), ST_OK);
    assert_true(number == UINT64_MAX);
    assert_int_equal(bill_parse_number("18446744073709551616", UINT64_MAX, &number, NULL), ST_INVAL);
}

static void test_bill_text_table(void **state)
{
    (void)state;
    static const char *const heads[] = {"name", ">tokens"};
    struct bill_table table;
    struct buf out;
    buf_init(&out, 0);
    bill_table_init(&table, heads, 2);
    table.rules = 1;
    bill_table_text(&table, "añ"); /* two characters, three bytes */
    bill_table_tokens(&table, UINT64_C(1234500000));
    bill_table_text(&table, "total");
    bill_table_tokens(&table, 1000000);
    bill_table_print(&table, &out);
    assert_string_equal(shown(&out),
                        "name    tokens\n-----  -------\nañ     1,234.5\n-----  -------\ntotal        1\n");
    bill_table_free(&table);
    buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bill_text_tokens), cmocka_unit_test(test_bill_text_tokens_round_trip),
        cmocka_unit_test(test_bill_text_times),  cmocka_unit_test(test_bill_text_months_offsets_classes),
        cmocka_unit_test(test_bill_text_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
