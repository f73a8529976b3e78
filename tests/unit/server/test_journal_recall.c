/* Keys that a journal remembers: charged ones, young ones, over segments and damage. */
#include "tests/unit/server/journal_fixture.h"

#include "server/billing/journal_recall.h"

struct recalled {
    uint32_t count;
    uint64_t numbers[4096];
};

static void take(void *state, const struct record *record)
{
    struct recalled *recalled = state;
    assert_true(recalled->count < 4096);
    memcpy(&recalled->numbers[recalled->count++], record->charge.charge_id, sizeof(uint64_t));
}

/* A charge from OPEN to FINAL; with an Idempotency-Key, if asked. */
static void put_charge(struct journal *journal, uint64_t number, bool has_key, enum record_kind kind)
{
    struct charge charge = fixture_charge(number);
    struct open_counts counts = {
        .in_total = 100, .in_hit = 20, .choices = 1, .opened_us = test_clock.us, .opened_ns = test_clock.ns};
    uint32_t handle;
    if (has_key) memset(charge.idempotency, 0xab, sizeof charge.idempotency);
    assert_int_equal(journal_put_open(journal, &charge, &counts, &handle), ST_OK);
    struct record record = {.kind = kind,
                            .cause = kind == RECORD_CHARGED ? CAUSE_STOP : CAUSE_PLATFORM_ERROR,
                            .in_total = 100,
                            .in_hit = 20,
                            .out = 3,
                            .choices = 1,
                            .opened_us = test_clock.us,
                            .ended_us = test_clock.us,
                            .units = kind == RECORD_CHARGED ? 94000000 : 0};
    assert_int_equal(journal_put_final(journal, handle, &record), ST_OK);
    assert_int_equal(journal_commit(journal), ST_OK);
}

static void recall(int64_t since_us, struct recalled *recalled)
{
    struct error err = {""};
    recalled->count = 0;
    if (journal_recall(disk_system(), journal_folder, NULL, since_us, UINT64_MAX, NULL, take, recalled, &err) != ST_OK)
        fail_msg("%s", err.message);
}

static void test_journal_recall_charged_and_young_ones(void **state)
{
    (void)state;
    static struct recalled recalled;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    put_charge(journal, 1, true, RECORD_CHARGED);
    put_charge(journal, 2, false, RECORD_CHARGED);
    put_charge(journal, 3, true, RECORD_WAIVED); /* a retry may run */
    put_charge(journal, 4, true, RECORD_CHARGED);
    recall(0, &recalled);
    assert_int_equal(recalled.count, 2);
    assert_int_equal(recalled.numbers[0], 1);
    assert_int_equal(recalled.numbers[1], 4);
    /* over many segments, from a time on: the same as of all of them, and no more than that is read */
    test_clock.us += 1000000;
    for (uint64_t i = 10; i < 1000; i++) put_charge(journal, i, true, RECORD_CHARGED);
    int64_t middle_us = test_clock.us;
    for (uint64_t i = 1000; i < 2000; i++) put_charge(journal, i, true, RECORD_CHARGED);
    struct segment_info segments[64];
    uint32_t count;
    struct error err = {""};
    assert_int_equal(journal_segments(disk_system(), journal_folder, NULL, segments, 64, &count, &err), ST_OK);
    assert_true(count > 4);
    recall(middle_us, &recalled);
    assert_int_equal(recalled.count, 1000);
    for (uint32_t i = 0; i < recalled.count; i++) assert_int_equal(recalled.numbers[i], 1000 + i);
    const _Atomic bool stop = true;
    recalled.count = 0;
    assert_int_equal(journal_recall(disk_system(), journal_folder, NULL, 0, UINT64_MAX, &stop, take, &recalled, &err),
                     ST_CANCELED);
    assert_int_equal(recalled.count, 0);
    recall(INT64_MAX, &recalled);
    assert_int_equal(recalled.count, 0);
    journal_close(journal);
}

static void test_journal_recall_of_nothing_and_of_damage(void **state)
{
    (void)state;
    static struct recalled recalled;
    struct error err = {""};
    assert_int_not_equal(
        journal_recall(disk_system(), "/tmp/there-is-none", NULL, 0, UINT64_MAX, NULL, take, &recalled, &err), ST_OK);
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    recall(0, &recalled);
    assert_int_equal(recalled.count, 0);
    for (uint64_t i = 0; i < 1000; i++) put_charge(journal, i, true, RECORD_CHARGED);
    struct segment_info segments[64];
    uint32_t count;
    assert_int_equal(journal_segments(disk_system(), journal_folder, NULL, segments, 64, &count, &err), ST_OK);
    assert_true(count > 2);
    journal_close(journal);
    FILE *file = fopen(segments[0].path, "r+b"); /* an older one: no torn tail */
    assert_non_null(file);
    assert_int_equal(fseek(file, 4096 + 200, SEEK_SET), 0); /* in the checkpoint */
    assert_int_equal(fputc(0x5a, file), 0x5a);
    assert_int_equal(fclose(file), 0);
    recalled.count = 0;
    assert_int_equal(journal_recall(disk_system(), journal_folder, NULL, 0, UINT64_MAX, NULL, take, &recalled, &err),
                     ST_INVAL);
    assert_int_equal(recalled.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_journal_recall_charged_and_young_ones, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_journal_recall_of_nothing_and_of_damage, fixture_setup, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
