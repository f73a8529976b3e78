/* Idempotency keys: first, joined, answered, evicted, floods. */
#include "tests/unit/unit.h"

#include "runtime/base/limits.h"
#include "runtime/base/random.h"
#include "server/idempotency.h"

#define MS      UINT64_C(1000000)
#define HOUR_NS (3600000 * MS)

static struct idempotency *make(void)
{
    struct idempotency *table;
    assert_int_equal(idempotency_create(&table), ST_OK);
    return table;
}

static enum idempotency_verdict begin(struct idempotency *table, uint64_t account, const char *key, const char *body,
                                      uint64_t now_ns, struct idempotency_entry **entry)
{
    uint8_t digest[IDEMPOTENCY_DIGEST_BYTES], print[IDEMPOTENCY_PRINT_BYTES];
    char call_id[32];
    (void)snprintf(call_id, sizeof call_id, "chatcmpl-%.15s", key);
    idempotency_digest(account, key, digest);
    idempotency_print("POST", "/v1/chat/completions", body, strlen(body), print);
    return idempotency_begin(table, digest, print, call_id, now_ns, entry);
}

static void test_idempotency_keys(void **state)
{
    (void)state;
    char text[300];
    memset(text, 'k', sizeof text);
    text[255] = '\0';
    assert_true(idempotency_key_ok(text));
    text[255] = 'k';
    text[256] = '\0';
    assert_false(idempotency_key_ok(text));
    assert_false(idempotency_key_ok(""));
    assert_true(idempotency_key_ok("a b~!"));
    assert_false(idempotency_key_ok("a\tb"));
    assert_false(idempotency_key_ok("a\x7f"));
    assert_false(idempotency_key_ok("\xc3\xa4"));
    uint8_t one[IDEMPOTENCY_PRINT_BYTES], two[IDEMPOTENCY_PRINT_BYTES];
    idempotency_print("POST", "/a", "b", 1, one);
    idempotency_print("POST", "/", "ab", 2, two);
    assert_memory_not_equal(one, two, sizeof one);
    idempotency_print("POST", "/a", NULL, 0, two);
    assert_memory_not_equal(one, two, sizeof one);
}

static void test_idempotency_first_joined_answered(void **state)
{
    (void)state;
    struct idempotency *table = make();
    struct idempotency_entry *first, *entry;
    bool stream;
    assert_int_equal(begin(table, 1, "k", "{}", 0, &first), IDEMPOTENCY_NEW);
    assert_int_equal(begin(table, 1, "k", "{}", 0, &entry), IDEMPOTENCY_RUNS);
    assert_int_equal(begin(table, 1, "k", "{ }", 0, &entry), IDEMPOTENCY_REUSED);
    assert_int_equal(begin(table, 2, "k", "{}", 0, &entry), IDEMPOTENCY_NEW); /* another account's own */
    idempotency_forget(table, entry);
    idempotency_keep(table, first, "data: ", 6);
    idempotency_keep(table, first, "x\n\n", 3);
    idempotency_done(table, first, true, true);
    assert_int_equal(begin(table, 1, "k", "{}", HOUR_NS, &entry), IDEMPOTENCY_DONE);
    const struct buf *answer = idempotency_answer(entry, &stream);
    assert_true(stream);
    assert_int_equal(answer->length, 9);
    assert_memory_equal(answer->data, "data: x\n\n", 9);
    assert_int_equal(begin(table, 1, "k", "{ }", HOUR_NS, &entry), IDEMPOTENCY_REUSED);
    assert_int_equal(begin(table, 1, "k", "{ }", 24 * HOUR_NS, &entry), IDEMPOTENCY_NEW); /* its time is over */
    idempotency_destroy(table);
}

static void test_idempotency_failed_is_forgotten_cut_is_gone(void **state)
{
    (void)state;
    struct idempotency *table = make();
    struct idempotency_entry *entry;
    assert_int_equal(begin(table, 1, "k", "{}", 0, &entry), IDEMPOTENCY_NEW);
    idempotency_forget(table, entry);
    assert_int_equal(begin(table, 1, "k", "{ }", 0, &entry), IDEMPOTENCY_NEW);
    idempotency_keep(table, entry, "half", 4);
    idempotency_done(table, entry, false, false);
    assert_int_equal(begin(table, 1, "k", "{ }", 0, &entry), IDEMPOTENCY_GONE);
    assert_string_equal(idempotency_id(entry), "chatcmpl-k");
    assert_int_equal(idempotency_bytes(table), 0);
    idempotency_destroy(table);
}

static void test_idempotency_bytes_are_bounded(void **state)
{
    (void)state;
    uint64_t before = limits.idempotency_bytes;
    limits.idempotency_bytes = 65536;
    struct idempotency *table = make();
    struct idempotency_entry *entry;
    char key[32], body[4096] = {0};
    for (int i = 0; i < 100; i++) {
        (void)snprintf(key, sizeof key, "k%d", i);
        assert_int_equal(begin(table, 1, key, "{}", (uint64_t)i, &entry), IDEMPOTENCY_NEW);
        idempotency_keep(table, entry, body, sizeof body);
        assert_true(idempotency_bytes(table) <= 65536);
        idempotency_done(table, entry, false, true);
    }
    assert_int_equal(begin(table, 1, "k0", "{}", 100, &entry), IDEMPOTENCY_GONE);
    assert_string_equal(idempotency_id(entry), "chatcmpl-k0");
    assert_int_equal(begin(table, 1, "k99", "{}", 100, &entry), IDEMPOTENCY_DONE);
    /* one that can never fit takes the others' place and leaves its id */
    assert_int_equal(begin(table, 1, "large", "{}", 100, &entry), IDEMPOTENCY_NEW);
    for (int i = 0; i < 100; i++) {
        idempotency_keep(table, entry, body, sizeof body);
        assert_true(idempotency_bytes(table) <= 65536);
    }
    idempotency_done(table, entry, false, true);
    assert_int_equal(begin(table, 1, "large", "{}", 100, &entry), IDEMPOTENCY_GONE);
    assert_int_equal(idempotency_bytes(table), 0);
    limits.idempotency_bytes = before;
    idempotency_destroy(table);
}

/* Who ended first loses its answer first; and what that costs does not grow with the keys whose answers are gone: a day
 * of them would hold up everything else at each answer (this test would take minutes). */
static void test_idempotency_answers_go_at_no_cost(void **state)
{
    (void)state;
    struct idempotency *table = make();
    struct idempotency_entry *slow, *quick, *entry;
    static const char answer[4096];
    char key[32];
    uint64_t before = limits.idempotency_bytes;
    limits.idempotency_bytes = 65536;
    assert_int_equal(begin(table, 1, "slow", "{}", 0, &slow), IDEMPOTENCY_NEW);
    assert_int_equal(begin(table, 1, "quick", "{}", 1, &quick), IDEMPOTENCY_NEW);
    idempotency_keep(table, quick, answer, sizeof answer);
    idempotency_done(table, quick, false, true);
    idempotency_keep(table, slow, answer, sizeof answer);
    idempotency_done(table, slow, false, true);
    enum idempotency_verdict of_quick = IDEMPOTENCY_DONE;
    for (uint32_t i = 0; of_quick == IDEMPOTENCY_DONE && i < 64; i++) {
        (void)snprintf(key, sizeof key, "more %u", i);
        assert_int_equal(begin(table, 1, key, "{}", 2, &entry), IDEMPOTENCY_NEW);
        idempotency_keep(table, entry, answer, sizeof answer);
        idempotency_done(table, entry, false, true);
        of_quick = begin(table, 1, "quick", "{}", 2, &entry);
    }
    assert_int_equal(of_quick, IDEMPOTENCY_GONE);
    assert_int_equal(begin(table, 1, "slow", "{}", 2, &entry), IDEMPOTENCY_DONE);
    for (uint32_t i = 0; i < 100000; i++) {
        (void)snprintf(key, sizeof key, "%u", i);
        assert_int_equal(begin(table, 1, key, "{}", 3 + i, &entry), IDEMPOTENCY_NEW);
        idempotency_keep(table, entry, answer, sizeof answer);
        idempotency_done(table, entry, false, true);
        assert_true(idempotency_bytes(table) <= limits.idempotency_bytes);
    }
    limits.idempotency_bytes = before;
    idempotency_destroy(table);
}

static void test_idempotency_entries_are_bounded(void **state)
{
    (void)state;
    uint64_t before = limits.idempotency_entries;
    limits.idempotency_entries = 10;
    struct idempotency *table = make();
    struct idempotency_entry *entry, *running[10];
    char key[32];
    for (int i = 0; i < 10000; i++) {
        (void)snprintf(key, sizeof key, "k%d", i);
        assert_int_equal(begin(table, 1, key, "{}", (uint64_t)i, &entry), IDEMPOTENCY_NEW);
        idempotency_done(table, entry, false, true);
        assert_true(idempotency_entries(table) <= 10);
    }
    assert_int_equal(begin(table, 1, "k9990", "{}", 10000, &entry), IDEMPOTENCY_DONE);
    assert_int_equal(begin(table, 1, "k9989", "{}", 10000, &running[0]), IDEMPOTENCY_NEW);
    for (int i = 1; i < 10; i++) {
        (void)snprintf(key, sizeof key, "r%d", i);
        assert_int_equal(begin(table, 1, key, "{}", 10000, &running[i]), IDEMPOTENCY_NEW);
    }
    assert_int_equal(begin(table, 1, "more", "{}", 10000, &entry), IDEMPOTENCY_FULL);
    idempotency_tick(table, 100 * HOUR_NS); /* what runs stays */
    assert_int_equal(idempotency_entries(table), 10);
    for (int i = 0; i < 10; i++) idempotency_done(table, running[i], false, true);
    idempotency_tick(table, 100 * HOUR_NS);
    assert_int_equal(idempotency_entries(table), 0);
    limits.idempotency_entries = before;
    idempotency_destroy(table);
}

static void test_idempotency_recalls_an_earlier_life(void **state)
{
    (void)state;
    struct idempotency *table = make();
    struct idempotency_entry *entry;
    uint8_t digest[IDEMPOTENCY_DIGEST_BYTES];
    idempotency_digest(1, "old", digest);
    idempotency_recall(table, digest, "0123", 23 * HOUR_NS, 5);
    idempotency_recall(table, digest, "4567", 22 * HOUR_NS, 5);
    idempotency_digest(1, "older", digest);
    idempotency_recall(table, digest, "89ab", 24 * HOUR_NS, 5);
    assert_int_equal(idempotency_entries(table), 1);
    assert_int_equal(begin(table, 1, "old", "{}", 5, &entry), IDEMPOTENCY_GONE);
    assert_string_equal(idempotency_id(entry), "0123");
    assert_int_equal(begin(table, 1, "older", "{}", 5, &entry), IDEMPOTENCY_NEW);
    idempotency_done(table, entry, false, true);
    assert_int_equal(begin(table, 1, "old", "{}", HOUR_NS + 5, &entry), IDEMPOTENCY_NEW); /* its 24 h are over */
    idempotency_done(table, entry, false, true);
    idempotency_destroy(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_idempotency_keys),
        cmocka_unit_test(test_idempotency_first_joined_answered),
        cmocka_unit_test(test_idempotency_failed_is_forgotten_cut_is_gone),
        cmocka_unit_test(test_idempotency_bytes_are_bounded),
        cmocka_unit_test(test_idempotency_answers_go_at_no_cost),
        cmocka_unit_test(test_idempotency_entries_are_bounded),
        cmocka_unit_test(test_idempotency_recalls_an_earlier_life),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
