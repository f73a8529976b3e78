/* The ledger in the process, alone: memory that fails, saved bytes that are damaged, queries. Its rules are held to
 * ledger.lua's in tests/ledger/. */
#include "tests/unit/unit.h"

#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "server/billing/ledger.h"

#include <inttypes.h>

enum { ACCOUNTS = 5, RECORDS = 120 };
static const char UUID[] = "0b9c3f2e-0000-4000-8000-000000000001";
static const uint64_t PRODUCER = 0xabcdef0123456789;

/* Records of one partition, sealed in order, from a small generator with its seed. */
struct journal_lines {
    uint64_t accounts[ACCOUNTS], seed;
    uint16_t partition;
    uint32_t count;
    uint8_t bytes[RECORDS][RECORD_BYTES_MAX];
    struct encoded_record records[RECORDS];
};

static uint64_t draw(struct journal_lines *lines, uint64_t end)
{
    lines->seed = lines->seed * 6364136223846793005u + 1442695040888963407u;
    return (lines->seed >> 33) % end;
}

static void add_record(struct journal_lines *lines, struct record record)
{
    static const uint8_t none[CHAIN_BYTES];
    uint32_t at = lines->count++;
    record.partition = lines->partition;
    record.pseq = at + 1;
    size_t length = record_encode(&record, lines->bytes[at]);
    const struct encoded_record *before = at > 0 ? &lines->records[at - 1] : NULL;
    record_seal(lines->bytes[at], length, before != NULL ? before->bytes + before->length - CHAIN_BYTES : none);
    lines->records[at] = (struct encoded_record){.bytes = lines->bytes[at], .length = (uint32_t)length};
}

static struct record usage_of(uint64_t account, enum record_kind kind, uint64_t units, uint32_t tokens)
{
    return (struct record){.kind = kind,
                           .account = account,
                           .t_ms = 1000,
                           .units = kind == RECORD_CHARGED ? units : 0,
                           .month = 202611,
                           .in_total = tokens,
                           .out = tokens,
                           .choices = 1,
                           .charge = {.tenant = "acme", .model = "tiny"}};
}

static struct record energy_of(uint64_t account, uint64_t uj)
{
    return (struct record){.kind = RECORD_ENERGY,
                           .account = account,
                           .t_ms = 1000,
                           .month = 202611,
                           .energy = {.uj_prefill = uj,
                                      .uj_decode = 2,
                                      .uj_host = 3,
                                      .uj_idle_share = uj + 4,
                                      .green_uj = uj + 5,
                                      .ugco2_loc = uj + 6,
                                      .ugco2_mkt = uj + 7,
                                      .pue_ppm = PUE_PPM_MIN}};
}

static struct journal_lines *make_lines(uint64_t seed)
{
    struct journal_lines *lines = calloc(1, sizeof *lines);
    assert_non_null(lines);
    lines->seed = seed;
    lines->partition = record_partition(1);
    uint32_t found = 0;
    for (uint64_t account = 1; found < ACCOUNTS; account++) {
        if (record_partition(account) == lines->partition) lines->accounts[found++] = account;
    }
    for (uint32_t i = 0; i < RECORDS; i++) {
        uint64_t account = lines->accounts[draw(lines, ACCOUNTS)];
        uint64_t kind = draw(lines, 9);
        if (kind < 4) {
            add_record(lines, usage_of(account, RECORD_CHARGED, draw(lines, 5000), (uint32_t)draw(lines, 50)));
        } else if (kind < 5) {
            add_record(lines, usage_of(account, RECORD_WAIVED, 0, 7));
        } else if (kind < 7) {
            add_record(lines, (struct record){.kind = RECORD_GRANT,
                                              .account = account,
                                              .t_ms = 1000,
                                              .want = draw(lines, 4000),
                                              .valid_ms = 120000});
        } else if (kind < 8) {
            add_record(lines, (struct record){.kind = RECORD_RELEASE, .account = account, .t_ms = 1000});
        } else {
            add_record(lines, energy_of(account, draw(lines, 1000000)));
        }
    }
    return lines;
}

static struct ledger *make_ledger(void)
{
    struct ledger *ledger;
    assert_int_equal(ledger_create(&ledger), ST_OK);
    assert_int_equal(ledger_init(ledger, UUID), LEDGER_OK);
    return ledger;
}

static struct order order_of(uint64_t account, const char *id, const char *package, uint64_t units)
{
    struct order order = {
        .account = account, .op = PACKAGE_ADD, .units = units, .priority = 5, .class_mask = UNITS_MAX};
    snprintf(order.id, sizeof order.id, "%s", id);
    snprintf(order.package, sizeof order.package, "%s", package);
    return order;
}

static void order_packages(struct ledger *ledger, const struct journal_lines *lines)
{
    for (uint32_t i = 0; i < ACCOUNTS; i++) {
        struct order first = order_of(lines->accounts[i], "o1", "p1", 30000), second = first;
        second = order_of(lines->accounts[i], "o2", "p2", 1000000);
        assert_int_equal(ledger_order(ledger, UUID, &first, 0), LEDGER_OK);
        assert_int_equal(ledger_order(ledger, UUID, &second, 0), LEDGER_OK);
    }
    assert_int_equal(ledger_account_set(ledger, UUID, lines->accounts[0], "c1", false), LEDGER_OK);
}

static enum ledger_answer apply(struct ledger *ledger, const struct journal_lines *lines, uint32_t from, uint32_t count,
                                ledger_log_fn log, void *state)
{
    static struct ledger_reply reply;
    ledger_apply(ledger, lines->partition, PRODUCER, 1, UUID, lines->records + from, count, 5000, log, state, &reply);
    return reply.answer;
}

static struct buf text_of(const struct ledger *ledger)
{
    struct buf text;
    buf_init(&text, 0);
    ledger_dump(ledger, &text);
    assert_true(buf_ok(&text));
    return text;
}

static void assert_same_state(const struct ledger *a, const struct ledger *b)
{
    struct buf x = text_of(a), y = text_of(b);
    assert_int_equal(x.length, y.length);
    assert_memory_equal(x.data, y.data, x.length);
    buf_free(&x);
    buf_free(&y);
}

static struct ledger *filled(const struct journal_lines *lines, uint32_t count)
{
    struct ledger *ledger = make_ledger();
    order_packages(ledger, lines);
    assert_int_equal(apply(ledger, lines, 0, count, NULL, NULL), LEDGER_OK);
    return ledger;
}

static void assert_sound(const struct ledger *ledger)
{
    struct error err = {""};
    if (!ledger_check(ledger, &err)) fail_msg("%s", err.message);
}

static void test_ledger_saved_and_loaded_is_the_same(void **state)
{
    (void)state;
    struct journal_lines *lines = make_lines(1);
    struct ledger *whole = filled(lines, RECORDS);
    assert_sound(whole);
    for (uint32_t cut = 0; cut < RECORDS; cut += 17) { /* state so far, then the rest, against all at once */
        struct ledger *part = filled(lines, cut), *loaded = make_ledger();
        struct buf bytes, again;
        struct error err = {""};
        buf_init(&bytes, 0);
        buf_init(&again, 0);
        ledger_save(part, &bytes);
        if (ledger_load(loaded, bytes.data, bytes.length, &err) != ST_OK) fail_msg("%s", err.message);
        assert_int_equal(apply(loaded, lines, cut, RECORDS - cut, NULL, NULL), LEDGER_OK);
        assert_same_state(whole, loaded);
        buf_clear(&bytes);
        ledger_save(whole, &bytes);
        ledger_save(loaded, &again);
        assert_int_equal(bytes.length, again.length);
        assert_memory_equal(bytes.data, again.data, bytes.length);
        buf_free(&bytes);
        buf_free(&again);
        ledger_destroy(part);
        ledger_destroy(loaded);
    }
    ledger_destroy(whole);
    free(lines);
}

/* Sums of a month; with energy in any the saved bytes are of another version, without they stay what an older program
 * reads. */
static void test_ledger_energy_of_a_month(void **state)
{
    (void)state;
    struct journal_lines *lines = make_lines(9);
    lines->count = 0;
    add_record(lines, usage_of(lines->accounts[0], RECORD_CHARGED, 10, 5));
    add_record(lines, energy_of(lines->accounts[0], 1000));
    add_record(lines, energy_of(lines->accounts[0], UNITS_MAX - 7));
    add_record(lines, energy_of(lines->accounts[1], 0)); /* a month of energy alone */
    struct ledger *ledger = make_ledger(), *loaded = make_ledger();
    struct month_total totals[MODEL_CLASSES];
    struct buf bytes;
    struct error err = {""};
    buf_init(&bytes, 0);
    assert_int_equal(apply(ledger, lines, 0, 1, NULL, NULL), LEDGER_OK);
    ledger_save(ledger, &bytes);
    assert_memory_equal(bytes.data, "MRLEDG1", 8);
    assert_int_equal(apply(ledger, lines, 1, 3, NULL, NULL), LEDGER_OK);
    buf_clear(&bytes);
    ledger_save(ledger, &bytes);
    assert_memory_equal(bytes.data, "MRLEDG2", 8);
    assert_int_equal(ledger_load(loaded, bytes.data, bytes.length, &err), ST_OK);
    assert_same_state(ledger, loaded);
    assert_int_equal(ledger_month(loaded, lines->accounts[0], 202611, totals), 1);
    assert_int_equal(totals[0].records, 1);
    assert_int_equal(totals[0].units, 10);
    assert_int_equal(totals[0].energy_records, 2);
    assert_int_equal(totals[0].energy_uj, 1000 + UNITS_MAX - 7 + 10);
    assert_int_equal(totals[0].idle_uj, 1000 + UNITS_MAX - 7 + 8);
    assert_int_equal(totals[0].green_uj, 1000 + UNITS_MAX - 7 + 10);
    assert_int_equal(totals[0].ugco2_loc, 1000 + UNITS_MAX - 7 + 12);
    assert_int_equal(totals[0].ugco2_mkt, 1000 + UNITS_MAX - 7 + 14);
    assert_int_equal(ledger_month(loaded, lines->accounts[1], 202611, totals), 1);
    assert_int_equal(totals[0].energy_uj, 5);
    assert_sound(loaded);
    buf_free(&bytes);
    ledger_destroy(ledger);
    ledger_destroy(loaded);
    free(lines);
}

/* Each sum of energy alone comes to its end: 1,011 records of 2^53 - 1 pass 9.1e18, and the next is refused. */
static void test_ledger_energy_has_an_end(void **state)
{
    (void)state;
    static const size_t members[] = {
        offsetof(struct record_energy, uj_host), offsetof(struct record_energy, uj_idle_share),
        offsetof(struct record_energy, green_uj), offsetof(struct record_energy, ugco2_loc),
        offsetof(struct record_energy, ugco2_mkt)};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        struct ledger *ledger = make_ledger();
        struct ledger_reply *reply = calloc(1, sizeof *reply);
        assert_non_null(reply);
        uint8_t bytes[RECORD_BYTES_MAX], chain[CHAIN_BYTES] = {0};
        struct record record = {
            .kind = RECORD_ENERGY, .account = 1, .month = 202611, .energy = {.pue_ppm = PUE_PPM_MIN}};
        record.partition = record_partition(1);
        memcpy((char *)&record.energy + members[i], &(uint64_t){UNITS_MAX}, sizeof(uint64_t));
        while (reply->answer == LEDGER_OK && record.pseq < 2000) {
            record.pseq++;
            struct encoded_record encoded = {.bytes = bytes, .length = (uint32_t)record_encode(&record, bytes)};
            record_seal(bytes, encoded.length, chain);
            memcpy(chain, bytes + encoded.length - CHAIN_BYTES, CHAIN_BYTES);
            ledger_apply(ledger, record.partition, PRODUCER, 1, UUID, &encoded, 1, 0, NULL, NULL, reply);
        }
        assert_int_equal(reply->answer, LEDGER_BADSTATE);
        assert_int_equal(record.pseq, 1012);
        assert_int_equal(reply->hwm, 1011);
        assert_sound(ledger);
        free(reply);
        ledger_destroy(ledger);
    }
}

static void test_ledger_load_refuses_every_flip_and_cut(void **state)
{
    (void)state;
    struct journal_lines *lines = make_lines(2);
    struct ledger *ledger = filled(lines, 40), *target = make_ledger(), *before = make_ledger();
    struct buf bytes;
    buf_init(&bytes, 0);
    ledger_save(ledger, &bytes);
    for (size_t at = 0; at < bytes.length; at++) {
        for (int bit = 0; bit < 8; bit++) {
            bytes.data[at] = (char)(bytes.data[at] ^ 1 << bit);
            assert_int_equal(ledger_load(target, bytes.data, bytes.length, NULL), ST_INVAL);
            bytes.data[at] = (char)(bytes.data[at] ^ 1 << bit);
        }
        char *cut = malloc(at); /* of its own, so that a read past its end is seen */
        if (at > 0) memcpy(cut, bytes.data, at);
        assert_int_equal(ledger_load(target, cut, at, NULL), ST_INVAL);
        free(cut);
    }
    assert_same_state(target, before);
    buf_free(&bytes);
    ledger_destroy(ledger);
    ledger_destroy(target);
    ledger_destroy(before);
    free(lines);
}

/* Bytes with a good checksum and nonsense inside: refused, or a sound ledger that saves as the same bytes. */
static void test_ledger_load_survives_forged_bytes(void **state)
{
    (void)state;
    struct journal_lines *lines = make_lines(3);
    struct ledger *ledger = filled(lines, 40);
    struct buf bytes, again;
    buf_init(&bytes, 0);
    buf_init(&again, 0);
    ledger_save(ledger, &bytes);
    uint32_t taken = 0, refused = 0;
    for (int round = 0; round < 40000; round++) {
        size_t at = 8 + draw(lines, bytes.length - 16), body = bytes.length - 8;
        char old = bytes.data[at];
        bytes.data[at] = (char)(round % 3 == 0 ? 0xff : round % 3 == 1 ? old + 1 : (int)draw(lines, 256));
        uint64_t sum = hash_xxh64(bytes.data, body, 0);
        memcpy(bytes.data + body, &sum, sizeof sum);
        struct ledger *loaded = make_ledger();
        if (ledger_load(loaded, bytes.data, bytes.length, NULL) == ST_OK) {
            taken++;
            assert_sound(loaded);
            buf_clear(&again);
            ledger_save(loaded, &again);
            assert_int_equal(again.length, bytes.length);
            assert_memory_equal(again.data, bytes.data, bytes.length);
        } else {
            refused++;
        }
        ledger_destroy(loaded);
        bytes.data[at] = old;
    }
    assert_true(taken > 0 && refused > 0);
    buf_free(&bytes);
    buf_free(&again);
    ledger_destroy(ledger);
    free(lines);
}

struct failing {
    uint64_t at, seen;
};

static bool fail_one(void *state, size_t size_bytes)
{
    (void)size_bytes;
    struct failing *failing = state;
    return ++failing->seen != failing->at;
}

static void count_log(void *state, const struct record *record, const char *funding, const char *extra)
{
    assert_true(funding != NULL && extra != NULL && record != NULL);
    ++*(uint32_t *)state;
}

/* A call of the ledger under failing allocations: the order, or the record, of that number. */
struct attempt {
    struct ledger *ledger;
    const struct journal_lines *lines;
    uint32_t at, logged;
};

static enum ledger_answer try_order(struct attempt *attempt)
{
    char id[16];
    snprintf(id, sizeof id, "o%" PRIu32, attempt->at);
    struct order order = order_of(attempt->lines->accounts[attempt->at % ACCOUNTS], id, id, 500);
    return ledger_order(attempt->ledger, UUID, &order, 0);
}

static enum ledger_answer try_record(struct attempt *attempt)
{
    return apply(attempt->ledger, attempt->lines, attempt->at, 1, count_log, &attempt->logged);
}

/* Fails the first allocation of the call, then the second ... until it needs no more: LIMIT and no change each time,
 * then OK. Returns how many there were. */
static uint32_t fail_each(struct attempt *attempt, enum ledger_answer (*call)(struct attempt *attempt))
{
    for (struct failing failing = {.at = 1};; failing = (struct failing){.at = failing.at + 1}) {
        struct buf before = text_of(attempt->ledger);
        uint32_t logged = attempt->logged;
        mem_hook_set(fail_one, &failing);
        enum ledger_answer answer = call(attempt);
        mem_hook_set(NULL, NULL);
        struct buf after = text_of(attempt->ledger);
        bool same =
            before.length == after.length && (before.length == 0 || memcmp(before.data, after.data, after.length) == 0);
        buf_free(&before);
        buf_free(&after);
        if (answer == LEDGER_OK) return (uint32_t)failing.at - 1;
        assert_int_equal(answer, LEDGER_LIMIT);
        assert_true(same);
        assert_int_equal(attempt->logged, logged);
    }
}

static void test_ledger_without_memory_changes_nothing(void **state)
{
    (void)state;
    struct journal_lines *lines = make_lines(4);
    struct attempt attempt = {.ledger = make_ledger(), .lines = lines};
    uint32_t limits = 0;
    for (; attempt.at < RECORDS; attempt.at++) {
        limits += fail_each(&attempt, try_order);
        limits += fail_each(&attempt, try_record);
    }
    assert_true(limits > 20);
    assert_int_equal(attempt.logged, RECORDS);
    assert_sound(attempt.ledger);
    ledger_destroy(attempt.ledger);
    free(lines);
}

static void test_ledger_load_without_memory_keeps_the_old(void **state)
{
    (void)state;
    struct journal_lines *lines = make_lines(5);
    struct ledger *ledger = filled(lines, RECORDS), *target = filled(lines, 3), *twin = filled(lines, 3);
    struct buf bytes;
    buf_init(&bytes, 0);
    ledger_save(ledger, &bytes);
    uint32_t failures = 0;
    for (struct failing failing = {.at = 1};; failing = (struct failing){.at = failing.at + 1}) {
        mem_hook_set(fail_one, &failing);
        enum status status = ledger_load(target, bytes.data, bytes.length, NULL);
        mem_hook_set(NULL, NULL);
        if (status == ST_OK) break;
        failures++;
        assert_same_state(target, twin);
    }
    assert_true(failures > 10);
    assert_same_state(target, ledger);
    buf_free(&bytes);
    ledger_destroy(ledger);
    ledger_destroy(target);
    ledger_destroy(twin);
    free(lines);
}

static void test_ledger_finds_each_of_many_accounts(void **state)
{
    (void)state;
    struct ledger *ledger = make_ledger();
    for (uint64_t i = 1; i <= 20000; i++) {
        struct order order = order_of(i * 7919 % 20011, "o", "p", i);
        assert_int_equal(ledger_order(ledger, UUID, &order, 0), LEDGER_OK);
    }
    static struct account_balance balance;
    uint32_t known = 0;
    for (uint64_t account = 0; account <= 20011; account++) {
        ledger_balance(ledger, account, &balance);
        known += balance.known;
    }
    assert_int_equal(known, 20000);
    ledger_balance(ledger, 7919, &balance);
    assert_true(balance.known && balance.open && balance.packages_count == 1 && balance.packages[0].free == 1);
    ledger_balance(ledger, 99999, &balance);
    assert_true(!balance.known && balance.open && balance.packages_count == 0);
    assert_sound(ledger);
    ledger_destroy(ledger);
}

static void test_ledger_more_packages_than_a_balance_shows(void **state)
{
    (void)state;
    struct ledger *ledger = make_ledger();
    uint32_t leases, packages;
    char id[16];
    for (uint32_t i = 0; i < 2 * PACKAGES_MAX; i++) { /* each is over at once, and settled before there are too many */
        snprintf(id, sizeof id, "p%" PRIu32, i);
        struct order order = order_of(9, id, id, 10);
        order.expires_ms = 5;
        assert_int_equal(ledger_order(ledger, UUID, &order, 0), LEDGER_OK);
        if (i % 200 == 199) assert_int_equal(ledger_reap(ledger, UUID, 9, 0, 6, &leases, &packages), LEDGER_OK);
    }
    static struct account_balance balance;
    ledger_balance(ledger, 9, &balance);
    assert_int_equal(balance.packages_count, PACKAGES_MAX);
    assert_string_equal(balance.packages[PACKAGES_MAX - 1].id, "p256"); /* unsettled ones first, then the newest */
    for (uint32_t i = 0;; i++) {
        snprintf(id, sizeof id, "q%" PRIu32, i);
        struct order order = order_of(9, id, id, 10);
        enum ledger_answer answer = ledger_order(ledger, UUID, &order, 0);
        if (answer == LEDGER_LIMIT) break;
        assert_int_equal(answer, LEDGER_OK);
        assert_true(i < PACKAGES_MAX);
    }
    assert_sound(ledger);
    ledger_destroy(ledger);
}

static void test_ledger_answers_have_names(void **state)
{
    (void)state;
    for (int i = 0; i <= LEDGER_LIMIT; i++) {
        enum ledger_answer back;
        assert_true(ledger_answer_parse(ledger_answer_name((enum ledger_answer)i), &back));
        assert_int_equal(back, i);
    }
    enum ledger_answer back;
    assert_false(ledger_answer_parse("ok", &back));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ledger_saved_and_loaded_is_the_same),
        cmocka_unit_test(test_ledger_energy_of_a_month),
        cmocka_unit_test(test_ledger_energy_has_an_end),
        cmocka_unit_test(test_ledger_load_refuses_every_flip_and_cut),
        cmocka_unit_test(test_ledger_load_survives_forged_bytes),
        cmocka_unit_test(test_ledger_without_memory_changes_nothing),
        cmocka_unit_test(test_ledger_load_without_memory_keeps_the_old),
        cmocka_unit_test(test_ledger_finds_each_of_many_accounts),
        cmocka_unit_test(test_ledger_more_packages_than_a_balance_shows),
        cmocka_unit_test(test_ledger_answers_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
