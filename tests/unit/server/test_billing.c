/* The settings of billing: modes, offsets, what belongs together, and segments too small for what may be open. */
#include "tests/unit/server/journal_fixture.h"

#include "server/billing/billing.h"

static void test_billing_modes(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",         "steps",      "group",      "group:",    "group:0",
        "group:-1", "group:1001", "group:12ms", "group: 12", "group:99999999999999999999"};
    enum commit_mode mode = COMMIT_GROUP;
    uint32_t group_ms = 7;
    struct error err;
    assert_int_equal(billing_read_mode("step", &mode, &group_ms, &err), ST_OK);
    assert_int_equal(mode, COMMIT_STEP);
    assert_int_equal(billing_read_mode("write", &mode, &group_ms, &err), ST_OK);
    assert_int_equal(mode, COMMIT_WRITE);
    for (uint32_t ms = 1; ms <= 1000; ms += 333) {
        char text[16];
        snprintf(text, sizeof text, "group:%u", ms);
        assert_int_equal(billing_read_mode(text, &mode, &group_ms, &err), ST_OK);
        assert_int_equal(mode, COMMIT_GROUP);
        assert_int_equal(group_ms, ms);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(billing_read_mode(bad[i], &mode, &group_ms, &err), ST_INVAL);
}

static void test_billing_offsets(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int32_t offset_s;
    } good[] = {{"+00:00", 0}, {"+08:00", 28800}, {"-03:30", -12600}, {"+14:00", 50400}, {"-00:01", -60}};
    static const char *const bad[] = {"", "8", "08:00", "+8:00", "+08:60", "+15:00", "+08-00", "+08:00 ", "UTC"};
    int32_t offset_s = 1;
    struct error err;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(billing_read_offset(good[i].text, &offset_s, &err), ST_OK);
        assert_int_equal(offset_s, good[i].offset_s);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(billing_read_offset(bad[i], &offset_s, &err), ST_INVAL);
}

static void test_billing_what_belongs_together(void **state)
{
    (void)state;
    char journal[] = "/nonexistent/journal", redis[] = "redis://127.0.0.1:1", prepaid[] = "prepaid";
    struct billing_stats stats = {0};
    struct billing *billing = NULL;
    struct error err;
    assert_int_equal(billing_open(&(struct config){0}, &stats, NULL, NULL, &billing, &err), ST_OK);
    assert_null(billing); /* nothing is billed */
    assert_int_equal(billing_open(&(struct config){.enforce = prepaid}, &stats, NULL, NULL, &billing, &err), ST_INVAL);
    assert_int_equal(billing_open(&(struct config){.redis = redis}, &stats, NULL, NULL, &billing, &err), ST_INVAL);
    assert_int_equal(
        billing_open(&(struct config){.journal = journal, .redis = redis}, &stats, NULL, NULL, &billing, &err),
        ST_INVAL);
    assert_non_null(strstr(err.message, "--enforce"));
}

static void test_billing_segments_hold_what_is_open(void **state)
{
    (void)state;
    char journal[] = "/nonexistent/journal";
    struct error err;
    struct config config = {.journal = journal, .max_num_seqs = 256, .journal_segment_bytes = 64 << 20};
    assert_int_equal(billing_check_models(&config, MODELS_MAX, &err), ST_OK);
    config.journal_segment_bytes = journal_segment_least(2 * 256 * 3);
    assert_int_equal(billing_check_models(&config, 3, &err), ST_OK);
    assert_int_equal(billing_check_models(&config, 4, &err), ST_INVAL);
    config.journal = NULL;
    assert_int_equal(billing_check_models(&config, 4, &err), ST_OK);
}

/* A journal that was given to another ledger belongs to that one, whatever its older segments say. */
static void test_billing_takes_the_last_ledger_of_a_journal(void **state)
{
    (void)state;
    struct journal_config journal = fixture_config();
    struct error err = {""};
    uint64_t producer;
    journal_close(fixture_start(&journal, NULL));
    journal.uuid = "22222222-3333-4444-5555-666666666666";
    if (journal_adopt(&journal, &producer, &err) != ST_OK) fail_msg("%s", err.message);
    char mode[] = "step", offset[] = "+00:00", unseen[] = "charge", outage[] = "reject";
    struct config config = {.journal = journal_folder,
                            .journal_mode = mode,
                            .bill_utc_offset = offset,
                            .unseen = unseen,
                            .on_outage = outage,
                            .journal_segment_bytes = 65536};
    struct billing *billing;
    static struct billing_stats stats;
    if (billing_open(&config, &stats, NULL, NULL, &billing, &err) != ST_OK) fail_msg("%s", err.message);
    assert_string_equal(billing->uuid, journal.uuid);
    billing_close(billing);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_billing_modes),
        cmocka_unit_test(test_billing_offsets),
        cmocka_unit_test(test_billing_what_belongs_together),
        cmocka_unit_test(test_billing_segments_hold_what_is_open),
        cmocka_unit_test_setup_teardown(test_billing_takes_the_last_ledger_of_a_journal, fixture_setup,
                                        fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
