/* billing_http.c, bill_directory.c and bill_json.c over a ledger in memory: orders count once, an account sees itself
 * alone, a key's text is told once, bad input changes nothing. */
#include "tests/unit/unit.h"

#include "server/billing/bill_directory.h"
#include "server/billing/bill_json.h"
#include "server/billing/billing_http.h"
#include "server/billing/directory.h"
#include "tests/support/memory_ledger.h"

#include <inttypes.h>

#define UUID "01234567-89ab-4cde-8f01-23456789abcd"

static struct memory_ledger memory;
static struct ledger_client client;
static struct buf out;
static struct api_error error;

static int set_up(void **state)
{
    (void)state;
    memory_ledger_init(&memory, UUID, &client);
    buf_init(&out, 0);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    memory_ledger_free(&memory);
    buf_free(&out);
    return 0;
}

static struct billing_ask ask_of(enum billing_ask_kind kind, const char *body)
{
    return (struct billing_ask){
        .kind = kind, .body = body, .body_length = body ? strlen(body) : 0, .now_us = INT64_C(1795424400000000)};
}

static int run(const struct billing_ask *ask)
{
    buf_clear(&out);
    bool good = billing_http_run(&client, ask, &out, &error);
    buf_append_char(&out, '\0');
    return good ? 200 : error.http_status;
}

static int post(enum billing_ask_kind kind, const char *body)
{
    struct billing_ask ask = ask_of(kind, body);
    return run(&ask);
}

static void balance_of(const char *name, struct account_balance *balance)
{
    ledger_balance(memory.ledger, account_number(name), balance);
}

static void test_billing_http_order_counts_once(void **state)
{
    (void)state;
    static struct account_balance balance;
    const char *order = "{\"id\":\"o-1\",\"account\":\"ada\",\"tokens\":\"1.5\"}";
    assert_int_equal(post(BILLING_ORDER, order), 200);
    assert_non_null(strstr(out.data, "\"answer\":\"OK\""));
    assert_int_equal(post(BILLING_ORDER, order), 200);
    assert_non_null(strstr(out.data, "\"answer\":\"DUP\""));
    assert_int_equal(post(BILLING_ORDER, "{\"id\":\"o-1\",\"account\":\"ada\",\"tokens\":\"2\"}"), 409);
    assert_string_equal(error.code, "CONFLICT");
    memory.fails = 1; /* done, but its answer is lost */
    assert_int_equal(post(BILLING_ORDER, "{\"id\":\"o-2\",\"account\":\"ada\",\"units\":7}"), 503);
    assert_int_equal(post(BILLING_ORDER, "{\"id\":\"o-2\",\"account\":\"ada\",\"units\":7}"), 200);
    assert_non_null(strstr(out.data, "\"answer\":\"DUP\""));
    balance_of("ada", &balance);
    assert_int_equal(balance.packages_count, 2);
    assert_int_equal(balance.packages[0].granted + balance.packages[1].granted, 1500007);
    assert_int_equal(post(BILLING_ORDER, "{\"id\":\"o-3\",\"account\":\"ada\",\"op\":\"void\",\"package\":\"none\"}"),
                     404);
}

static void test_billing_http_bad_orders_change_nothing(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "[]",
        "{",
        "1",
        "{}",
        "{\"id\":\"o\"}",
        "{\"id\":\"o\",\"account\":\"a\"}",
        "{\"id\":\"\",\"account\":\"a\",\"units\":1}",
        "{\"id\":\"o o\",\"account\":\"a\",\"units\":1}",
        "{\"id\":\"o\",\"account\":\"a/b\",\"units\":1}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":-1}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":1.5}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":4600000000000000001}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":1,\"tokens\":\"1\"}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":1,\"expire\":\"2027-01-01\"}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":1,\"expires\":\"tomorrow\"}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":1,\"expires\":1}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":1,\"effective\":\"2027-01-02\",\"expires\":\"2027-01-01\"}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":1,\"classes\":\"53\"}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":1,\"op\":\"reap\"}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":1,\"op\":\"inc\"}",
        "{\"id\":\"o\",\"account\":7,\"units\":1}",
        "{\"id\":\"o\",\"account\":\"a\",\"units\":1,\"package\":\"a b\"}",
        "{\"id\":\"o\",\"account\":\"id:99999999999999999999\",\"units\":1}"};
    static struct account_balance balance;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (post(BILLING_ORDER, bad[i]) != 400) fail_msg("%s: %d", bad[i], error.http_status);
    balance_of("a", &balance);
    assert_false(balance.known);
}

/* Own account alone, whatever form another's id is given in. */
static void test_billing_http_own_usage(void **state)
{
    (void)state;
    char number[32];
    assert_int_equal(post(BILLING_ORDER, "{\"id\":\"o-1\",\"account\":\"ada\",\"units\":111}"), 200);
    assert_int_equal(post(BILLING_ORDER, "{\"id\":\"o-2\",\"account\":\"bob\",\"units\":222}"), 200);
    struct billing_ask ask = ask_of(BILLING_OWN_USAGE, NULL);
    ask.own_account = account_number("ada");
    memcpy(ask.own_name, "ada", 4);
    assert_int_equal(run(&ask), 200);
    assert_non_null(strstr(out.data, "\"available_units\":111"));
    assert_non_null(strstr(out.data, "\"month\":\"2026-11\""));
    assert_null(strstr(out.data, "222"));
    (void)snprintf(number, sizeof number, "id:%" PRIu64, account_number("bob"));
    const char *const forms[] = {"bob", number, number + 3, "ada", "*", "../bob"};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        struct billing_ask other = ask;
        (void)snprintf(other.account, sizeof other.account, "%s", forms[i]);
        assert_int_equal(run(&other), 400);
        other = ask;
        (void)snprintf(other.argument, sizeof other.argument, "%s", forms[i]);
        assert_int_equal(run(&other), 400);
        other = ask;
        char body[96];
        (void)snprintf(body, sizeof body, "{\"account\":\"%s\"}", forms[i]);
        other.body = body;
        other.body_length = strlen(body);
        assert_int_equal(run(&other), 200); /* a body says nothing here */
        assert_null(strstr(out.data, "222"));
    }
    (void)snprintf(ask.month, sizeof ask.month, "2026-13");
    assert_int_equal(run(&ask), 400);
}

static void test_billing_http_accounts_and_keys(void **state)
{
    (void)state;
    char key[80], id[80], body[160];
    assert_int_equal(post(BILLING_KEY_CHANGE, "{\"account\":\"ada\"}"), 404);
    assert_int_equal(post(BILLING_ACCOUNT_CHANGE, "{\"name\":\"ada\",\"tenant\":\"acme\"}"), 200);
    assert_int_equal(post(BILLING_ACCOUNT_CHANGE, "{\"name\":\"ada\",\"tenant\":\"acme\"}"), 200);
    assert_int_equal(post(BILLING_ACCOUNT_CHANGE, "{\"name\":\"ada\",\"tenant\":\"other\"}"), 400);
    assert_int_equal(memory.lines_count, 1);
    assert_int_equal(post(BILLING_KEY_CHANGE, "{\"account\":\"ada\",\"label\":\"l\",\"rpm\":60}"), 200);
    const char *text = strstr(out.data, "\"key\":\""), *id_text = strstr(out.data, "\"id\":\"");
    assert_non_null(text);
    assert_int_equal(sscanf(text, "\"key\":\"%79[^\"]", key), 1);
    assert_int_equal(sscanf(id_text, "\"id\":\"%79[^\"]", id), 1);
    for (uint32_t i = 0; i < memory.lines_count; i++) assert_null(strstr(memory.lines[i].line, key)); /* hashed */
    assert_int_equal(post(BILLING_KEYS, NULL), 200);
    assert_non_null(strstr(out.data, id));
    assert_null(strstr(out.data, key));
    assert_null(strstr(out.data, "hash"));
    static const char *const no_truths[] = {"\"true\"", "1", "\"yes\"", "{}"};
    for (size_t i = 0; i < sizeof no_truths / sizeof *no_truths; i++) {
        (void)snprintf(body, sizeof body, "{\"id\":\"%s\",\"revoke\":%s}", id, no_truths[i]);
        assert_int_equal(post(BILLING_KEY_CHANGE, body), 400);
    }
    (void)snprintf(body, sizeof body, "{\"id\":\"%s\",\"revoke\":true}", id);
    assert_int_equal(post(BILLING_KEY_CHANGE, body), 200);
    assert_non_null(strstr(out.data, "\"active\":false"));
    assert_non_null(strstr(out.data, "\"rpm\":60"));
    assert_int_equal(post(BILLING_KEY_CHANGE, "{\"id\":\"k:0000000000000000\",\"revoke\":true}"), 404);
    (void)snprintf(body, sizeof body, "{\"id\":\"%s\",\"revoke\":true}", key); /* the key itself is no id */
    assert_int_equal(post(BILLING_KEY_CHANGE, body), 400);
    assert_null(strstr(error.message, key));
    /* closing is told to the directory once; a repeated order does not undo a later one */
    assert_int_equal(post(BILLING_ACCOUNT_CHANGE, "{\"account\":\"ada\",\"open\":false,\"order\":\"c-1\"}"), 200);
    assert_non_null(strstr(memory.lines[0].line, "closed"));
    assert_int_equal(post(BILLING_ACCOUNT_CHANGE, "{\"account\":\"ada\",\"open\":true,\"order\":\"c-2\"}"), 200);
    assert_non_null(strstr(memory.lines[0].line, "open"));
    assert_int_equal(post(BILLING_ACCOUNT_CHANGE, "{\"account\":\"ada\",\"open\":false,\"order\":\"c-1\"}"), 200);
    assert_non_null(strstr(memory.lines[0].line, "open"));
    /* closed in the ledger, and the answer lost before the directory knew: the same order again tells it */
    memory.fails = 1;
    assert_int_equal(post(BILLING_ACCOUNT_CHANGE, "{\"account\":\"ada\",\"open\":false,\"order\":\"c-3\"}"), 503);
    assert_int_equal(post(BILLING_ACCOUNT_CHANGE, "{\"account\":\"ada\",\"open\":false,\"order\":\"c-3\"}"), 200);
    assert_non_null(strstr(memory.lines[0].line, "closed"));
    assert_int_equal(post(BILLING_DIRECTORY_PUT, "{\"id\":\"a:eve\",\"line\":\"no line\"}"), 400);
    assert_int_equal(memory.lines_count, 2);
}

/* The largest limits that a line carries, and those above; a line that cannot be written must not be tried. */
static void test_billing_http_limits_of_a_key(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "\"tpm\":9007199254740992", "\"tpm\":9223372036854775807", "\"tpm\":-1", "\"tpm\":1.5",
        "\"rpm\":4294967296",       "\"concurrency\":4294967296"};
    char body[160];
    assert_int_equal(post(BILLING_ACCOUNT_CHANGE, "{\"name\":\"ada\"}"), 200);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        (void)snprintf(body, sizeof body, "{\"account\":\"ada\",%s}", bad[i]);
        if (post(BILLING_KEY_CHANGE, body) != 400) fail_msg("%s: %d", body, error.http_status);
    }
    assert_int_equal(memory.lines_count, 1);
    struct bill_key_change change = {.account = "ada", .tpm_given = true, .tpm = KEY_TPM_MAX + 1};
    struct error err = {""};
    assert_int_equal(bill_key_set(&client, &change, &out, &err), ST_INVAL); /* `millrace bill key create` */
    assert_int_equal(post(BILLING_KEY_CHANGE, "{\"account\":\"ada\",\"rpm\":4294967295,"
                                              "\"tpm\":9007199254740991,\"concurrency\":4294967295}"),
                     200);
    assert_int_equal(memory.lines_count, 2);
}

/* What writers write, readers read: every member of a balance and of monthly sums. */
static void test_billing_http_json_round_trip(void **state)
{
    (void)state;
    static struct account_balance balance, back;
    struct month_total totals[MODEL_CLASSES], totals_back[MODEL_CLASSES];
    struct json *root;
    uint32_t count;
    balance = (struct account_balance){
        .account = INT64_MAX, .known = true, .open = true, .used = UINT64_C(9100000000000000000)};
    balance.packages_count = PACKAGES_MAX;
    for (uint32_t i = 0; i < PACKAGES_MAX; i++) {
        struct package_balance *package = &balance.packages[i];
        (void)snprintf(package->id, sizeof package->id, "p%u", i);
        package->granted = PACKAGE_UNITS_MAX - i;
        package->free = i;
        package->leased = i * 2;
        package->used = i * 3;
        package->expired = i * 4;
        package->priority = i;
        package->effective_ms = i * UINT64_C(1000);
        package->expires_ms = i % 2 ? UINT64_C(1795424400250) : 0;
        package->created_ms = UINT64_C(1795424400001);
        package->class_mask = i % 3 ? (UINT64_C(1) << 53) - 1 : 5;
    }
    buf_clear(&out);
    bill_json_balance(&balance, "ada", &out);
    assert_int_equal(json_read(out.data, out.length, &root, NULL), ST_OK);
    assert_int_equal(bill_read_balance(root, &back, NULL), ST_OK);
    json_release(root);
    assert_memory_equal(&balance, &back, sizeof back);
    memset(totals, 0, sizeof totals);
    for (uint8_t i = 0; i < MODEL_CLASSES; i++)
        totals[i] = (struct month_total){i,      i + 1u, i + 2u,  i + 3u,  UINT64_C(9100000000000000000),
                                         i + 4u, i + 5u, i + 6u,  i + 7u,  UINT64_C(9100000000000000001),
                                         i + 8u, i + 9u, i + 10u, i + 11u, i + 12u};
    buf_clear(&out);
    bill_json_months(5, NULL, 202611, totals, MODEL_CLASSES, &out);
    assert_int_equal(json_read(out.data, out.length, &root, NULL), ST_OK);
    assert_int_equal(bill_read_months(root, totals_back, &count, NULL), ST_OK);
    json_release(root);
    assert_int_equal(count, MODEL_CLASSES);
    assert_memory_equal(totals, totals_back, sizeof totals);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_billing_http_order_counts_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_billing_http_bad_orders_change_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_billing_http_own_usage, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_billing_http_accounts_and_keys, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_billing_http_limits_of_a_key, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_billing_http_json_round_trip, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
