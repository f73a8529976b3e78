/* Tests of server/billing/emitter_core.c against ledger.c: records made in memory, a reader that can go back to the
 * checkpoints of small segments, and a ledger that loses answers, loses connections and goes back in time. Whatever
 * happens, in the end the ledger must hold each record once. */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/billing/emitter_core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define UUID     "0193-test"
#define PRODUCER UINT64_C(0xabcdef)
enum { RECORDS = 6000, SEGMENT = 500, ACCOUNTS = 40, GRANT_EVERY = 7 };

struct entry {
    uint8_t bytes[RECORD_BYTES_MAX];
    uint32_t length;
    uint16_t partition;
    uint64_t pseq, account;
};

/* The journal: entry i has LSN i + 1; a segment begins at every SEGMENT-th. */
struct journal_model {
    struct entry *entries;
    uint32_t count;
    uint64_t pseq[PARTITIONS];
    uint8_t chain[PARTITIONS][CHAIN_BYTES];
    uint64_t segment_pseq[RECORDS / SEGMENT + 1][PARTITIONS];
    uint8_t segment_chain[RECORDS / SEGMENT + 1][PARTITIONS][CHAIN_BYTES];
    uint32_t segments, oldest; /* oldest: segments below it are gone */
    uint8_t salt;              /* in every record: two journals with different ones are two histories */
};

struct world {
    struct journal_model *journal;
    struct emitter_core *core;
    struct ledger *ledger;
    uint64_t now_ns, random;
    uint64_t cursor; /* LSN that the reader gives next; 0: not open */
    uint64_t durable;
    uint64_t grants, applied_marks[PARTITIONS];
    char applied_hash8[PARTITIONS][HASH8_CHARS + 1];
    enum emitter_stop stops[PARTITIONS];
    uint32_t stop_calls;
};

static void on_granted(void *state, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open)
{
    struct world *w = state;
    const struct journal_model *j = w->journal;
    bool found = false;
    for (uint32_t i = 0; i < j->count && !found; i++)
        found = j->entries[i].account == account && j->entries[i].pseq == pseq && j->entries[i].bytes[0] == 'G';
    assert_true(found);
    assert_int_equal(mclass, 0);
    assert_true(open && leased > 0);
    w->grants++;
}

static void on_applied(void *state, uint16_t partition, uint64_t hwm, const char *hash8)
{
    struct world *w = state;
    w->applied_marks[partition] = hwm;
    memcpy(w->applied_hash8[partition], hash8, HASH8_CHARS + 1);
}

static void on_stopped(void *state, uint16_t partition, enum emitter_stop stop)
{
    struct world *w = state;
    w->stops[partition] = stop;
    w->stop_calls++;
}

static void write_record(struct journal_model *j, uint64_t account, bool grant)
{
    if (j->count % SEGMENT == 0) {
        memcpy(j->segment_pseq[j->segments], j->pseq, sizeof j->pseq);
        memcpy(j->segment_chain[j->segments], j->chain, sizeof j->chain);
        j->segments++;
    }
    struct entry *e = &j->entries[j->count++];
    uint16_t p = record_partition(account);
    struct record r = {.kind = grant ? RECORD_GRANT : RECORD_CHARGED,
                       .partition = p,
                       .pseq = ++j->pseq[p],
                       .account = account,
                       .t_ms = 1800000000000};
    if (grant) {
        r.want = 1000;
        r.valid_ms = 120000;
    } else {
        r.charge = (struct charge){.account = account,
                                   .price_version = 1,
                                   .weight_in_ppm = 1000000,
                                   .weight_hit_ppm = 1000000,
                                   .weight_out_ppm = 1000000,
                                   .tenant = "t",
                                   .model = "m"};
        r.charge.charge_id[0] = 1;
        r.charge.charge_id[1] = j->salt;
        r.month = 202701;
        r.boot = 1;
        r.opened_us = r.first_us = r.ended_us = INT64_C(1800000000000000);
        r.in_total = 3;
        r.in_hit = 1;
        r.out = 5;
        r.choices = 1;
        r.units = 8000000;
    }
    e->length = (uint32_t)record_encode(&r, e->bytes);
    record_seal(e->bytes, e->length, j->chain[p]);
    memcpy(j->chain[p], e->bytes + e->length - CHAIN_BYTES, CHAIN_BYTES);
    e->partition = p;
    e->pseq = r.pseq;
    e->account = account;
}

static void setup(struct world *w, uint64_t seed, uint32_t window)
{
    memset(w, 0, sizeof *w);
    w->journal = mem_alloc(1, sizeof *w->journal);
    w->journal->entries = mem_alloc(RECORDS, sizeof *w->journal->entries);
    w->random = seed;
    w->now_ns = 1;
    assert_int_equal(ledger_create(&w->ledger), ST_OK);
    assert_int_equal(ledger_init(w->ledger, UUID), LEDGER_OK);
    const struct emitter_core_hooks hooks = {w, on_granted, on_applied, on_stopped};
    assert_int_equal(core_create(window, &hooks, &w->core), ST_OK);
    for (uint64_t a = 1; a <= ACCOUNTS; a++) {
        struct order order = {.account = a, .op = PACKAGE_ADD, .units = UINT64_C(1) << 50, .class_mask = 1};
        snprintf(order.id, sizeof order.id, "o%u", (unsigned)a);
        snprintf(order.package, sizeof order.package, "p");
        assert_int_equal(ledger_order(w->ledger, UUID, &order, 1), LEDGER_OK);
    }
}

static void teardown(struct world *w)
{
    core_destroy(w->core);
    ledger_destroy(w->ledger);
    mem_free(w->journal->entries);
    mem_free(w->journal);
}

static void read_on(struct world *w)
{
    struct journal_model *j = w->journal;
    if (core_seeks(w->core)) {
        for (uint32_t s = j->segments; s-- > j->oldest;)
            if (core_checkpoint(w->core, (uint64_t)s * SEGMENT + 1, j->segment_pseq[s], j->segment_chain[s], w->now_ns))
                break;
        uint64_t lsn = core_sought(w->core, w->now_ns);
        if (lsn != 0 && (w->cursor == 0 || lsn < w->cursor))
            w->cursor = (lsn - 1) / SEGMENT * SEGMENT + 1; /* readers begin at a segment */
    }
    while (w->cursor != 0 && w->cursor <= w->durable) {
        const struct entry *e = &j->entries[w->cursor - 1];
        enum status status = core_record(w->core, w->cursor, e->bytes, e->length, w->now_ns);
        if (status == ST_AGAIN) return;
        assert_int_equal(status, ST_OK);
        w->cursor++;
    }
    if (w->cursor != 0) core_end(w->core, w->now_ns);
}

/* One call; faults of `percent` probability each: refused, lost before, lost after. */
static void call(struct world *w, uint16_t p, uint64_t epoch, const char *uuid, uint32_t percent)
{
    static struct emitter_batch batch;
    static struct ledger_reply reply;
    if (!core_next(w->core, p, w->now_ns, &batch)) return;
    uint32_t roll = (uint32_t)(random_next(&w->random) % 100);
    if (roll < percent) {
        core_refused(w->core, p, w->now_ns, w->now_ns + NS_PER_MS);
        return;
    }
    if (roll >= 2 * percent)
        ledger_apply(w->ledger, p, PRODUCER, epoch, uuid, batch.records, batch.count, w->now_ns / NS_PER_MS, NULL, NULL,
                     &reply);
    if (roll < 3 * percent)
        core_lost(w->core, p, w->now_ns, w->now_ns + NS_PER_MS);
    else
        core_answer(w->core, p, &reply, w->now_ns);
}

static void round_of_calls(struct world *w, uint32_t percent)
{
    w->now_ns += NS_PER_MS * 2;
    read_on(w);
    for (uint16_t p = 0; p < PARTITIONS; p++) call(w, p, 1, UUID, percent);
    read_on(w);
}

static void assert_applied_once(const struct world *w)
{
    uint64_t used[ACCOUNTS + 1] = {0};
    for (uint32_t i = 0; i < w->journal->count; i++)
        if (w->journal->entries[i].bytes[0] == 'F') used[w->journal->entries[i].account] += 8000000;
    static struct account_balance balance;
    for (uint64_t a = 1; a <= ACCOUNTS; a++) {
        ledger_balance(w->ledger, a, &balance);
        assert_int_equal(balance.used, used[a]);
    }
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        uint64_t epoch, hwm = 0;
        char hash8[HASH8_CHARS + 1] = "", own[HASH8_CHARS + 1];
        (void)ledger_hwm(w->ledger, p, PRODUCER, &epoch, &hwm, hash8);
        assert_int_equal(hwm, w->journal->pseq[p]);
        if (hwm == 0) continue;
        record_hash8(w->journal->chain[p], own);
        assert_string_equal(hash8, own);
        assert_int_equal(w->applied_marks[p], hwm);
        assert_string_equal(w->applied_hash8[p], own);
        assert_int_equal(w->stops[p], STOP_NONE);
    }
}

static bool all_applied(const struct world *w)
{
    struct emitter_view view;
    core_look(w->core, w->now_ns, &view);
    return view.unapplied == 0 && view.reachable && w->cursor > w->durable && !core_seeks(w->core);
}

static uint64_t any_account(struct world *w)
{
    return 1 + random_next(&w->random) % ACCOUNTS;
}

static void drain(struct world *w)
{
    for (int quiet = 0; quiet < 2; quiet++) {
        /* also what only shows when an idle partition asks again */
        w->now_ns += 15 * NS_PER_S;
        do round_of_calls(w, 0);
        while (!all_applied(w) && w->now_ns < 1000 * NS_PER_S);
        struct emitter_view view;
        core_look(w->core, w->now_ns, &view);
        if (!all_applied(w))
            fail_msg("unapplied %u of %u, reachable %d, stopped %u (%s), cursor %u of %u, seeks %d",
                     (unsigned)view.unapplied, w->journal->count, view.reachable, view.stopped,
                     emitter_stop_text(view.stop), (unsigned)w->cursor, (unsigned)w->durable, core_seeks(w->core));
    }
}

/* Records come while calls fail in every way and the ledger goes back to an older state now and then. */
static void storm(uint64_t seed, uint32_t window)
{
    struct world w;
    setup(&w, seed, window);
    struct buf saved;
    buf_init(&saved, 0);
    ledger_save(w.ledger, &saved);
    while (w.journal->count < RECORDS) {
        uint64_t more = random_next(&w.random) % 120;
        for (uint64_t i = 0; i < more && w.journal->count < RECORDS; i++)
            write_record(w.journal, any_account(&w), w.journal->count % GRANT_EVERY == 0);
        w.durable = w.journal->count;
        round_of_calls(&w, 8);
        uint64_t roll = random_next(&w.random) % 40;
        struct error err;
        if (roll == 0) {
            buf_clear(&saved);
            ledger_save(w.ledger, &saved);
        } else if (roll == 1) {
            assert_int_equal(ledger_load(w.ledger, saved.data, saved.length, &err), ST_OK);
        } else if (roll == 2) {
            for (uint16_t p = 0; p < PARTITIONS; p++) core_lost(w.core, p, w.now_ns, w.now_ns + 10 * NS_PER_MS);
        }
    }
    drain(&w);
    assert_applied_once(&w);
    assert_true(w.grants > 0);
    buf_free(&saved);
    teardown(&w);
}

static void test_emitter_core_storm(void **state)
{
    (void)state;
    const char *text = getenv("MILLRACE_TEST_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 10) : 1;
    for (uint64_t i = 0; i < 12; i++) {
        printf("seed %llu\n", (unsigned long long)(seed + i));
        storm(seed + i, i % 3 == 0 ? 3 : i % 3 == 1 ? 64 : 2048);
    }
}

/* What one stop looks like: it comes, tells why, and keeps what it has. */
static void assert_stopped(struct world *w, uint16_t p, enum emitter_stop why, bool refuses)
{
    struct emitter_view view;
    core_look(w->core, w->now_ns, &view);
    assert_int_equal(w->stops[p], why);
    assert_int_equal(view.refuses, refuses);
    assert_true(view.stopped >= 1);
    assert_true(strlen(emitter_stop_text(why)) > 0);
}

static void fill(struct world *w, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) write_record(w->journal, any_account(w), false);
    w->durable = w->journal->count;
}

/* A second emitter over the same ledger, as after a restart of the node. */
static void restart(struct world *w)
{
    core_destroy(w->core);
    const struct emitter_core_hooks hooks = {w, on_granted, on_applied, on_stopped};
    assert_int_equal(core_create(64, &hooks, &w->core), ST_OK);
    w->cursor = 0;
    memset(w->stops, 0, sizeof w->stops);
}

static void test_emitter_core_restart(void **state)
{
    (void)state;
    struct world w;
    setup(&w, 5, 64);
    fill(&w, 1700);
    drain(&w);
    restart(&w);
    fill(&w, 300);
    drain(&w);
    assert_applied_once(&w);
    teardown(&w);
}

/* E1: a copy of the journal that went its own way below the ledger's mark sends duplicates only. */
static void test_emitter_core_clone(void **state)
{
    (void)state;
    struct world w;
    setup(&w, 6, 64);
    fill(&w, 600);
    drain(&w);
    struct world other;
    setup(&other, 99, 64);
    other.journal->salt = 1;
    fill(&other, 900);
    struct ledger *own = other.ledger;
    other.ledger = w.ledger;
    for (int i = 0; i < 50; i++) round_of_calls(&other, 0);
    uint32_t stopped = 0;
    for (uint16_t p = 0; p < PARTITIONS; p++)
        if (other.stops[p] != STOP_NONE) {
            assert_true(other.stops[p] == STOP_CONFLICT || other.stops[p] == STOP_BEHIND);
            stopped++;
        }
    assert_true(stopped > 20);
    struct emitter_view view;
    core_look(other.core, other.now_ns, &view);
    assert_true(view.refuses);
    assert_applied_once(&w);
    other.ledger = own;
    teardown(&other);
    teardown(&w);
}

/* E1: nothing to send at all, and as many records as the ledger has: only the hash tells. */
static void test_emitter_core_clone_of_same_length(void **state)
{
    (void)state;
    struct world w, other;
    setup(&w, 6, 64);
    fill(&w, 600);
    drain(&w);
    setup(&other, 6, 64);
    other.journal->salt = 1;
    fill(&other, 600);
    struct ledger *own = other.ledger;
    other.ledger = w.ledger;
    for (int i = 0; i < 10; i++) round_of_calls(&other, 0);
    for (uint16_t p = 0; p < PARTITIONS; p++)
        assert_int_equal(other.stops[p], w.journal->pseq[p] > 0 ? STOP_CONFLICT : STOP_NONE);
    other.ledger = own;
    teardown(&other);
    teardown(&w);
}

/* E1: an answer with the number that was expected and another hash. */
static void test_emitter_core_other_hash(void **state)
{
    (void)state;
    struct world w;
    setup(&w, 32, 16);
    fill(&w, 10);
    drain(&w);
    write_record(w.journal, 3, false);
    w.durable++;
    read_on(&w);
    uint16_t p = record_partition(3);
    static struct emitter_batch batch;
    assert_true(core_next(w.core, p, w.now_ns, &batch));
    struct ledger_reply reply = {.answer = LEDGER_OK, .hwm = w.journal->pseq[p], .hash8 = "0123456789abcdef"};
    core_answer(w.core, p, &reply, w.now_ns);
    assert_stopped(&w, p, STOP_CONFLICT, true);
    teardown(&w);
}

/* A record is missing in the journal's files. */
static void test_emitter_core_gap(void **state)
{
    (void)state;
    struct world w;
    setup(&w, 33, 16);
    fill(&w, 20);
    drain(&w);
    write_record(w.journal, 3, false);
    write_record(w.journal, 3, false);
    w.durable += 2;
    w.cursor++;
    read_on(&w);
    assert_stopped(&w, record_partition(3), STOP_HISTORY, true);
    teardown(&w);
}

/* The journal was restored from an older copy: the same history, but the ledger knows more of it. */
static void test_emitter_core_behind(void **state)
{
    (void)state;
    struct world w;
    setup(&w, 7, 64);
    fill(&w, 400);
    uint64_t account = w.journal->entries[399].account;
    uint16_t p = record_partition(account);
    drain(&w);
    restart(&w);
    w.durable = 399;
    for (int i = 0; i < 10; i++) round_of_calls(&w, 0);
    assert_stopped(&w, p, STOP_BEHIND, true);
    teardown(&w);
}

/* Segments were retired that an older ledger needs. */
static void test_emitter_core_history(void **state)
{
    (void)state;
    struct world w;
    setup(&w, 8, 64);
    struct buf saved;
    struct error err;
    buf_init(&saved, 0);
    ledger_save(w.ledger, &saved);
    fill(&w, 1600);
    drain(&w);
    w.journal->oldest = 2;
    assert_int_equal(ledger_load(w.ledger, saved.data, saved.length, &err), ST_OK);
    restart(&w);
    for (int i = 0; i < 10; i++) round_of_calls(&w, 0);
    struct emitter_view view;
    core_look(w.core, w.now_ns, &view);
    assert_int_equal(view.stop, STOP_HISTORY);
    assert_true(view.refuses);
    assert_int_equal(view.applied, 0);
    buf_free(&saved);
    teardown(&w);
}

/* E3: a record of the journal was changed and its frame's checksum made anew. */
static void test_emitter_core_damage(void **state)
{
    (void)state;
    struct world w;
    setup(&w, 9, 64);
    fill(&w, 300);
    struct entry *e = &w.journal->entries[150];
    struct record r;
    struct error err;
    assert_int_equal(record_decode(e->bytes, e->length, &r, &err), ST_OK);
    r.out++;
    uint8_t chain[CHAIN_BYTES];
    memcpy(chain, e->bytes + e->length - CHAIN_BYTES, CHAIN_BYTES);
    memcpy(r.chain, chain, CHAIN_BYTES);
    r.units += 1000000;
    e->length = (uint32_t)record_encode(&r, e->bytes);
    for (int i = 0; i < 50; i++) round_of_calls(&w, 0);
    assert_stopped(&w, e->partition, STOP_DAMAGE, true);
    uint64_t epoch, hwm = 0;
    char hash8[HASH8_CHARS + 1];
    (void)ledger_hwm(w.ledger, e->partition, PRODUCER, &epoch, &hwm, hash8);
    assert_true(hwm < e->pseq); /* and nothing behind it */
    teardown(&w);
}

/* Answers that stop: which of them refuse new requests, and that a mended ledger is used again. */
static void test_emitter_core_answers(void **state)
{
    (void)state;
    const struct {
        enum ledger_answer answer;
        enum emitter_stop stop;
        bool refuses, again;
    } rows[] = {
        {LEDGER_NOLEDGER, STOP_NOLEDGER, true, true}, {LEDGER_WRONGLEDGER, STOP_WRONGLEDGER, true, true},
        {LEDGER_FENCED, STOP_FENCED, true, false},    {LEDGER_CONFLICT, STOP_CONFLICT, true, true},
        {LEDGER_BADARG, STOP_BADARG, false, true},    {LEDGER_BADSTATE, STOP_BADSTATE, false, true},
        {LEDGER_LIMIT, STOP_BADSTATE, false, true},   {LEDGER_EXISTS, STOP_BADSTATE, false, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct world w;
        setup(&w, 10 + i, 64);
        fill(&w, 50);
        drain(&w);
        write_record(w.journal, 3, false);
        w.durable++;
        w.now_ns += NS_PER_MS;
        read_on(&w);
        static struct emitter_batch batch;
        uint16_t p = record_partition(3);
        assert_true(core_next(w.core, p, w.now_ns, &batch));
        assert_int_equal(batch.count, 1);
        assert_false(core_next(w.core, p, w.now_ns, &batch)); /* one in flight */
        struct ledger_reply reply = {.answer = rows[i].answer, .hash8 = "0000000000000000"};
        core_answer(w.core, p, &reply, w.now_ns);
        assert_stopped(&w, p, rows[i].stop, rows[i].refuses);
        assert_false(core_next(w.core, p, w.now_ns, &batch));
        w.now_ns += 16 * NS_PER_S;
        assert_int_equal(core_wants(w.core, p, w.now_ns), rows[i].again);
        core_lost(w.core, p, w.now_ns, w.now_ns);
        assert_int_equal(core_wants(w.core, p, w.now_ns), rows[i].again);
        if (rows[i].again) {
            drain(&w);
            assert_applied_once(&w);
        }
        teardown(&w);
    }
}

/* While nobody answers, memory does not grow, everything is counted, and another partition is not held up. */
static void test_emitter_core_outage(void **state)
{
    (void)state;
    struct world w;
    setup(&w, 30, 16);
    fill(&w, 200);
    drain(&w);
    uint16_t dead = record_partition(1);
    for (uint32_t i = 0; i < 20; i++) write_record(w.journal, 1, false); /* its records fill the window */
    w.durable = w.journal->count;
    read_on(&w);
    core_lost(w.core, dead, w.now_ns, UINT64_MAX - 1);
    for (uint32_t i = 0; i < 1000; i++) {
        write_record(w.journal, i % 2 == 0 ? 1 : 2, false);
        w.durable = w.journal->count;
        w.now_ns += NS_PER_MS;
        uint64_t allocations = mem_allocations();
        read_on(&w);
        assert_int_equal(mem_allocations(), allocations); /* E4 */
        call(&w, record_partition(2), 1, UUID, 0);
    }
    struct emitter_view view;
    core_look(w.core, w.now_ns, &view);
    assert_false(view.reachable);
    assert_int_equal(view.unapplied, 520);
    assert_true(view.unapplied_since_ns > 0 && view.unapplied_since_ns < w.now_ns - 900 * NS_PER_MS);
    core_lost(w.core, dead, w.now_ns, w.now_ns);
    drain(&w);
    assert_applied_once(&w);
    teardown(&w);
}

/* An answer that makes nothing of what was sent is no reason to send it at full speed for ever. */
static void test_emitter_core_no_progress(void **state)
{
    (void)state;
    struct world w;
    setup(&w, 31, 16);
    fill(&w, 10);
    drain(&w);
    write_record(w.journal, 3, false);
    w.durable++;
    read_on(&w);
    uint16_t p = record_partition(3);
    static struct emitter_batch batch;
    assert_true(core_next(w.core, p, w.now_ns, &batch));
    struct ledger_reply reply = {.answer = LEDGER_GAP, .hwm = w.applied_marks[p]};
    memcpy(reply.hash8, w.applied_marks[p] == 0 ? "0000000000000000" : w.applied_hash8[p], sizeof reply.hash8);
    core_answer(w.core, p, &reply, w.now_ns);
    assert_false(core_wants(w.core, p, w.now_ns));
    drain(&w);
    assert_applied_once(&w);
    teardown(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_emitter_core_storm),       cmocka_unit_test(test_emitter_core_restart),
        cmocka_unit_test(test_emitter_core_clone),       cmocka_unit_test(test_emitter_core_behind),
        cmocka_unit_test(test_emitter_core_history),     cmocka_unit_test(test_emitter_core_damage),
        cmocka_unit_test(test_emitter_core_answers),     cmocka_unit_test(test_emitter_core_outage),
        cmocka_unit_test(test_emitter_core_no_progress), cmocka_unit_test(test_emitter_core_clone_of_same_length),
        cmocka_unit_test(test_emitter_core_other_hash),  cmocka_unit_test(test_emitter_core_gap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
