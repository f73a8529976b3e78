/* The ledger behind a journal: what it holds after any stop is what it held, from a snapshot or from the first frame;
 * what it refuses; the client of a folder at rest. */
#include "tests/unit/server/journal_fixture.h"

#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "server/billing/disk_file.h"
#include "server/billing/ledger_store.c" /* to see how far a store has come */

#include <inttypes.h>

enum { ACCOUNTS = 5, OPEN_MAX = 8 };

/* A server's meter in small: requests, grants, orders; a commit and the ledger's follow a round. */
struct work {
    struct journal *journal;
    struct ledger_store *store;
    uint64_t seed, charges;
    uint32_t open[OPEN_MAX], open_count, answers, grants, orders, snapshots;
};

static uint64_t draw(struct work *work, uint64_t end)
{
    work->seed = work->seed * 6364136223846793005u + 1442695040888963407u;
    return (work->seed >> 33) % end;
}

static void on_grant(void *state, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open)
{
    struct work *work = state;
    assert_true(account >= 1 && account <= ACCOUNTS && mclass == 3 && pseq > 0 && (open || leased < UINT64_MAX));
    work->grants++;
}

static void on_order(void *state, uint64_t lsn, enum ledger_answer answer, uint32_t leases, uint32_t packages)
{
    struct work *work = state;
    assert_true(lsn > 0 && answer <= LEDGER_LIMIT && leases + packages < 1000);
    work->answers++;
}

static struct ledger_store_config store_config(void)
{
    return (struct ledger_store_config){.disk = disk_system(), .folder = journal_folder, .uuid = ledger_uuid_text};
}

static struct ledger_store *start_store(uint64_t until_lsn, struct ledger_store_report *report)
{
    struct ledger_store_config config = store_config();
    struct ledger_store *store = NULL;
    struct ledger_store_report ignored;
    struct error err = {""};
    if (ledger_store_open(&config, until_lsn, &store, report != NULL ? report : &ignored, &err) != ST_OK) {
        fail_msg("%s", err.message);
    }
    return store;
}

static void start(struct work *work, struct ledger_store_report *report)
{
    struct journal_config config = fixture_config();
    work->journal = fixture_start(&config, NULL);
    work->store = start_store(journal_durable_lsn(work->journal), report);
    journal_keep_from(work->journal, ledger_store_kept_lsn(work->store) + 1);
    work->open_count = 0;
}

static struct order random_order(struct work *work)
{
    struct order order = {.account = draw(work, ACCOUNTS) + 1,
                          .op = (enum package_op)draw(work, PACKAGE_OPS),
                          .units = draw(work, UINT64_C(1) << 36),
                          .priority = draw(work, 3),
                          .class_mask = UNITS_MAX,
                          .created_ms = (uint64_t)(test_clock.us / 1000)};
    snprintf(order.id, sizeof order.id, "o%d", (int)draw(work, 200)); /* some twice: DUP, CONFLICT */
    snprintf(order.package, sizeof order.package, "p%d", (int)draw(work, 6));
    if (draw(work, 2) == 0) order.expires_ms = order.created_ms + draw(work, 4000);
    if (order.op == PACKAGE_REAP) order.units = draw(work, 2000);
    return order;
}

static void one_event(struct work *work)
{
    uint64_t what = draw(work, 20);
    if (what < 9 && work->open_count < OPEN_MAX) {
        work->open[work->open_count++] = fixture_open(work->journal, work->charges++);
    } else if (what < 9) {
        fixture_step(work->journal, work->open[draw(work, OPEN_MAX)], (uint32_t)draw(work, 4));
    } else if (what < 15 && work->open_count > 0) {
        (void)fixture_final(work->journal, work->open[--work->open_count], (uint32_t)draw(work, 900));
    } else if (what < 18) {
        struct record record = {.kind = draw(work, 4) > 0 ? RECORD_GRANT : RECORD_RELEASE,
                                .account = draw(work, ACCOUNTS) + 1,
                                .mclass = 3,
                                .want = draw(work, UINT64_C(1) << 32),
                                .valid_ms = 1000};
        if (record.kind == RECORD_RELEASE) record.want = record.valid_ms = 0;
        assert_int_equal(journal_put_record(work->journal, &record), ST_OK);
    } else if (what < 19) {
        struct order order = random_order(work);
        assert_int_equal(journal_put_order(work->journal, &order), ST_OK);
        work->orders++;
    } else {
        char id[16];
        snprintf(id, sizeof id, "c%d", (int)draw(work, 50));
        assert_int_equal(journal_put_account(work->journal, draw(work, ACCOUNTS) + 1, id, draw(work, 3) > 0), ST_OK);
        work->orders++;
    }
    test_clock.us += 50000; /* so that leases and packages end */
}

static void follow(struct work *work)
{
    const struct ledger_store_events events = {.state = work, .grant = on_grant, .order = on_order};
    struct error err = {""};
    if (ledger_store_follow(work->store, journal_durable_lsn(work->journal), &events, &err) != ST_OK) {
        fail_msg("%s", err.message);
    }
}

static void rounds(struct work *work, uint32_t count, bool snapshots)
{
    struct error err = {""};
    for (uint32_t i = 0; i < count; i++) {
        for (uint64_t n = draw(work, 6) + 1; n > 0; n--) one_event(work);
        assert_int_equal(journal_commit(work->journal), ST_OK);
        follow(work);
        assert_int_equal(work->store->lsn, journal_durable_lsn(work->journal));
        if (!snapshots || !ledger_store_snapshot_wanted(work->store, journal_segment_lsn(work->journal))) continue;
        if (ledger_store_snapshot(work->store, work->journal, &err) != ST_OK) fail_msg("%s", err.message);
        assert_int_equal(journal_commit(work->journal), ST_OK);
        work->snapshots++;
    }
}

static struct buf saved(const struct ledger_store *store)
{
    struct buf bytes;
    buf_init(&bytes, 0);
    ledger_save(ledger_store_ledger(store), &bytes);
    assert_true(buf_ok(&bytes));
    return bytes;
}

static void assert_same(struct buf a, struct buf b)
{
    assert_int_equal(a.length, b.length);
    assert_memory_equal(a.data, b.data, a.length);
    buf_free(&a);
    buf_free(&b);
}

static void assert_sound(const struct ledger_store *store)
{
    struct error err = {""};
    if (!ledger_check(ledger_store_ledger(store), &err)) fail_msg("%s", err.message);
}

static void stop(struct work *work)
{
    ledger_store_close(work->store);
    journal_close(work->journal);
}

static void remove_file(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", journal_folder, name);
    (void)unlink(path);
}

static void without_snapshots(void)
{
    remove_file("ledger.snap");
    remove_file("ledger.snap.old");
}

/* Live, from a snapshot, and from the first frame: the same bytes (S1). Over stops, with requests left open. */
static void test_ledger_store_any_replay_is_the_same_state(void **state)
{
    (void)state;
    struct work work = {.seed = 11};
    for (int run = 0; run < 6; run++) {
        struct ledger_store_report report;
        start(&work, &report);
        assert_true(run == 0 || report.lsn > 0);
        rounds(&work, 150, true);
        assert_sound(work.store);
        struct buf live = saved(work.store);
        struct ledger_store *again = start_store(journal_durable_lsn(work.journal), &report);
        assert_true(report.snapshot_lsn > 0 || work.snapshots == 0);
        assert_true(report.frames < again->lsn || work.snapshots == 0);
        assert_same(live, saved(again));
        ledger_store_close(again);
        stop(&work);
    }
    assert_true(work.snapshots >= 3);
    assert_true(work.grants > 50 && work.answers == work.orders);
    struct ledger_store *quick = start_store(UINT64_MAX, NULL);
    without_snapshots();
    struct ledger_store_report report;
    struct ledger_store *slow = start_store(UINT64_MAX, &report);
    assert_true(report.snapshot_lsn == 0 && report.frames == quick->lsn);
    assert_same(saved(quick), saved(slow));
    assert_sound(slow);
    ledger_store_close(quick);
    ledger_store_close(slow);
}

static struct buf file_bytes(const char *name)
{
    struct buf bytes;
    buf_init(&bytes, 0);
    assert_int_equal(disk_file_read(disk_system(), journal_folder, name, 1 << 24, &bytes, NULL), ST_OK);
    return bytes;
}

static void write_bytes(const char *name, const void *bytes, size_t length)
{
    assert_int_equal(disk_file_replace(disk_system(), journal_folder, name, NULL, bytes, length, NULL), ST_OK);
}

static enum status try_open(struct ledger_store_report *report, struct error *err)
{
    struct ledger_store_config config = store_config();
    struct ledger_store *store = NULL;
    enum status status = ledger_store_open(&config, UINT64_MAX, &store, report, err);
    if (status == ST_OK) ledger_store_close(store);
    return status;
}

static void test_ledger_store_a_damaged_snapshot_is_passed_over(void **state)
{
    (void)state;
    struct work work = {.seed = 12};
    start(&work, NULL);
    while (work.snapshots < 3) rounds(&work, 20, true);
    struct buf live = saved(work.store);
    stop(&work);
    struct buf newer = file_bytes("ledger.snap");
    struct ledger_store_report report;
    struct error err;
    for (size_t at = 0; at < newer.length; at += newer.length / 97 + 1) {
        newer.data[at] = (char)(newer.data[at] ^ 0x10);
        write_bytes("ledger.snap", newer.data, newer.length);
        newer.data[at] = (char)(newer.data[at] ^ 0x10);
        struct ledger_store *store = start_store(UINT64_MAX, &report);
        assert_true(report.snapshot_damaged && report.snapshot_lsn > 0);
        assert_same(saved(store), saved(store));
        ledger_store_close(store);
        write_bytes("ledger.snap", newer.data, at);
        assert_int_equal(try_open(&report, &err), ST_OK);
        assert_true(report.snapshot_damaged);
    }
    struct ledger_store *store = start_store(UINT64_MAX, NULL);
    assert_same(live, saved(store));
    ledger_store_close(store);
    /* the next one is written over the damaged one, not over the good one */
    start(&work, &report);
    assert_true(report.snapshot_damaged);
    struct buf good = file_bytes("ledger.snap.old");
    uint32_t before = work.snapshots;
    while (work.snapshots == before) rounds(&work, 20, true);
    stop(&work);
    assert_same(good, file_bytes("ledger.snap.old"));
    assert_int_equal(try_open(&report, &err), ST_OK);
    assert_false(report.snapshot_damaged);
    write_bytes("ledger.snap", "x", 1);
    write_bytes("ledger.snap.old", "x", 1);
    assert_int_equal(try_open(&report, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "ledger.snap"));
    buf_free(&newer);
}

/* Removes segments whose base LSN is in [from, to]. */
static uint32_t remove_segments(uint64_t from, uint64_t to)
{
    static struct segment_info segments[256];
    uint32_t count = 0, removed = 0;
    assert_int_equal(journal_segments(disk_system(), journal_folder, NULL, segments, 256, &count, NULL), ST_OK);
    for (uint32_t i = 0; i < count; i++) {
        if (segments[i].base_lsn < from || segments[i].base_lsn > to) continue;
        assert_int_equal(unlink(segments[i].path), 0);
        removed++;
    }
    return removed;
}

static void test_ledger_store_refuses_a_journal_that_is_not_its_own(void **state)
{
    (void)state;
    struct work work = {.seed = 13};
    struct ledger_store_report report;
    struct error err;
    start(&work, NULL);
    while (work.snapshots < 4) rounds(&work, 20, true);
    uint64_t segment_lsn = journal_segment_lsn(work.journal);
    stop(&work);
    struct buf snapshot = file_bytes("ledger.snap");
    without_snapshots(); /* the first segment gone, and no snapshot that has seen it */
    assert_true(remove_segments(1, 1) == 1);
    assert_int_equal(try_open(&report, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "missing"));
    write_bytes("ledger.snap", snapshot.data, snapshot.length);
    assert_int_equal(try_open(&report, &err), ST_OK);
    assert_int_equal(report.snapshot_lsn + 1, segment_lsn);
    /* the snapshot's last segments gone: a journal restored from before it */
    static struct segment_info segments[256];
    uint32_t count = 0;
    assert_int_equal(journal_segments(disk_system(), journal_folder, NULL, segments, 256, &count, NULL), ST_OK);
    assert_true(count >= 3);
    assert_true(remove_segments(segments[count - 2].base_lsn, UINT64_MAX) == 2);
    assert_int_equal(try_open(&report, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "restored or cloned"));
    buf_free(&snapshot);
}

static void test_ledger_store_confirms_what_both_snapshots_hold(void **state)
{
    (void)state;
    struct work work = {.seed = 14};
    start(&work, NULL);
    int64_t later_ms = test_clock.us / 1000 + INT64_C(1000) * 86400 * 365;
    while (work.snapshots < 1) rounds(&work, 10, true);
    assert_int_equal(journal_retire(work.journal, later_ms, 1000), 0); /* one snapshot confirms nothing */
    while (work.snapshots < 3) rounds(&work, 10, true);
    assert_true(journal_retire(work.journal, later_ms, 1000) >= 1);
    /* segments of orders alone, before which all records are confirmed: those that no two snapshots hold stay */
    for (int batch = 0; batch < 3; batch++) {
        if (batch > 0) assert_int_equal(ledger_store_snapshot(work.store, work.journal, NULL), ST_OK);
        for (int i = 0; i < 2000; i++) {
            struct order order = random_order(&work);
            assert_int_equal(journal_put_order(work.journal, &order), ST_OK);
            if (i % 50 == 0) assert_int_equal(journal_commit(work.journal), ST_OK);
        }
        assert_int_equal(journal_commit(work.journal), ST_OK);
        follow(&work);
        if (batch == 1) assert_true(journal_retire(work.journal, later_ms, 1000) >= 1);
    }
    (void)journal_retire(work.journal, later_ms, 1000);
    struct buf live = saved(work.store);
    stop(&work);
    write_bytes("ledger.snap", "x", 1); /* the older one is enough for what is left */
    struct ledger_store_report report;
    struct ledger_store *store = start_store(UINT64_MAX, &report);
    assert_true(report.snapshot_damaged);
    assert_same(live, saved(store));
    ledger_store_close(store);
}

static void test_ledger_store_leaves_records_of_other_ledgers(void **state)
{
    (void)state;
    struct work work = {.seed = 15};
    start(&work, NULL);
    rounds(&work, 30, false);
    stop(&work);
    without_snapshots();
    struct ledger_store_config config = store_config();
    config.uuid = "99999999-2222-3333-4444-555555555555"; /* another ledger: its frames are none of ours */
    struct ledger_store *store = NULL;
    struct ledger_store_report report;
    assert_int_equal(ledger_store_open(&config, UINT64_MAX, &store, &report, NULL), ST_OK);
    struct account_balance balance;
    ledger_balance(ledger_store_ledger(store), 1, &balance);
    assert_false(balance.known);
    ledger_store_close(store);
}

static struct ledger_client open_client(void)
{
    struct journal_config config = fixture_config();
    config.uuid = NULL;
    struct ledger_client client = {NULL, NULL};
    struct error err = {""};
    if (ledger_store_client_open(&config, &client, &err) != ST_OK) fail_msg("%s", err.message);
    return client;
}

static void count_line(void *visitor, const char *line, size_t length)
{
    assert_true(length == 2 && memcmp(line, "{}", 2) == 0);
    ++*(uint32_t *)visitor;
}

static void test_ledger_store_client_of_a_folder_at_rest(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct ledger_client client = {NULL, NULL};
    struct error err = {""};
    config.uuid = NULL;
    assert_int_equal(ledger_store_client_open(&config, &client, &err), ST_NOTFOUND);
    struct work work = {.seed = 16};
    start(&work, NULL);
    assert_int_equal(ledger_store_client_open(&config, &client, &err), ST_AGAIN); /* somebody has the folder */
    stop(&work);
    struct order order = {.id = "o1", .account = 4, .op = PACKAGE_ADD, .package = "p", .units = 70, .class_mask = 1};
    enum ledger_answer answer;
    for (int turn = 0; turn < 2; turn++) {
        client = open_client();
        char uuid[LEDGER_UUID_CHARS + 1];
        assert_int_equal(client.calls->uuid(client.state, uuid, &err), ST_OK);
        assert_string_equal(uuid, ledger_uuid_text);
        assert_int_equal(client.calls->order(client.state, &order, &answer, &err), ST_OK);
        assert_int_equal(answer, turn == 0 ? LEDGER_OK : LEDGER_DUP);
        assert_int_equal(client.calls->account_set(client.state, 4, "c1", false, &answer, &err), ST_OK);
        assert_int_equal(answer, turn == 0 ? LEDGER_OK : LEDGER_DUP);
        assert_int_equal(client.calls->directory_put(client.state, "k:1", "{}", &err), ST_OK);
        client.calls->close(client.state);
    }
    client = open_client();
    static struct account_balance balance;
    assert_int_equal(client.calls->balance(client.state, 4, &balance, &err), ST_OK);
    assert_true(balance.known && !balance.open && balance.packages[0].free == 70);
    assert_true(balance.packages[0].created_ms > 0);
    order.package[0] = '\n'; /* never reaches the journal, where nobody could read it */
    assert_int_equal(client.calls->order(client.state, &order, &answer, &err), ST_OK);
    assert_int_equal(answer, LEDGER_BADARG);
    assert_int_equal(client.calls->account_set(client.state, 4, "", true, &answer, &err), ST_OK);
    assert_int_equal(answer, LEDGER_BADARG);
    uint32_t leases, packages, lines = 0;
    uint64_t version;
    order = (struct order){.id = "o2", .account = 4, .op = PACKAGE_ADD, .package = "q", .units = 5, .expires_ms = 9};
    assert_int_equal(client.calls->order(client.state, &order, &answer, &err), ST_OK);
    assert_int_equal(client.calls->reap(client.state, 4, 0, &leases, &packages, &answer, &err), ST_OK);
    assert_true(answer == LEDGER_OK && leases == 0 && packages == 1);
    assert_int_equal(client.calls->directory_read(client.state, count_line, &lines, &version, &err), ST_OK);
    assert_true(lines == 1 && version == 1);
    client.calls->close(client.state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_ledger_store_any_replay_is_the_same_state, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(test_ledger_store_a_damaged_snapshot_is_passed_over, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(test_ledger_store_refuses_a_journal_that_is_not_its_own, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(test_ledger_store_confirms_what_both_snapshots_hold, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(test_ledger_store_leaves_records_of_other_ledgers, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(test_ledger_store_client_of_a_folder_at_rest, fixture_setup, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
