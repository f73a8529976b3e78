/* Accounts and keys: lines there and back, look-up, bad lines, size. */
#include "tests/unit/unit.h"

#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/billing/directory.c"

static struct directory *make(const char *const *lines, size_t count)
{
    struct directory *directory;
    struct error err = {""};
    assert_int_equal(directory_create(&directory), ST_OK);
    for (size_t i = 0; i < count; i++) {
        enum status status = directory_add(directory, lines[i], strlen(lines[i]), &err);
        if (status != ST_OK) fail_msg("%s", err.message);
    }
    assert_int_equal(directory_seal(directory, &err), ST_OK);
    return directory;
}

static struct buf line_of_key(const char *text, const char *account, bool active)
{
    struct directory_key key = {.active = active, .created_ms = 5, .limits = {.tpm = 7}, .label = "a \"b\""};
    char id[DIRECTORY_ID_MAX + 1];
    struct buf line;
    key_hash(text, strlen(text), key.hash);
    strncpy(key.account_name, account, sizeof key.account_name - 1);
    buf_init(&line, 0);
    directory_key_line(&key, &line, id);
    buf_append_char(&line, '\0');
    assert_true(buf_ok(&line));
    line.length--;
    return line;
}

static void test_directory_keys_are_random_and_of_one_shape(void **state)
{
    (void)state;
    char one[KEY_TEXT_CHARS + 1], two[KEY_TEXT_CHARS + 1];
    key_make(one);
    key_make(two);
    assert_string_not_equal(one, two);
    assert_int_equal(strlen(one), 46);
    assert_memory_equal(one, "mr-", 3);
    assert_int_equal(strspn(one + 3, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"), 43);
}

static void fixed_bytes(void *state, void *out, size_t length)
{
    memcpy(out, state, length);
}

static void test_directory_key_is_base64url_of_its_bytes(void **state)
{
    (void)state;
    uint8_t bytes[32];
    char text[KEY_TEXT_CHARS + 1];
    for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)(i * 37 + 200);
    random_hook_set(fixed_bytes, bytes);
    key_make(text);
    random_hook_set(NULL, NULL);
    /* python3: base64.urlsafe_b64encode(bytes((i * 37 + 200) % 256 for i in range(32))) */
    assert_string_equal(text, "mr-yO0SN1yBpsvwFTpfhKnO8xg9Yoes0fYbQGWKr9T5HkM");
}

static void test_directory_finds_keys_accounts_and_limits(void **state)
{
    (void)state;
    struct buf good = line_of_key("mr-good", "acme", true), off = line_of_key("mr-off", "acme", false),
               shut = line_of_key("mr-shut", "shut", true);
    const char *lines[] = {
        good.data,
        "{\"id\":\"a:acme\",\"kind\":\"account\",\"name\":\"acme\",\"tenant\":\"t1\",\"state\":\"open\",\"rpm\":60,"
        "\"tpm\":9,\"concurrency\":0,\"created_ms\":1}",
        off.data,
        "{\"id\":\"a:shut\",\"kind\":\"account\",\"name\":\"shut\",\"state\":\"open\",\"later\":[1]}",
        "{\"id\":\"a:shut\",\"kind\":\"account\",\"name\":\"shut\",\"state\":\"closed\"}",
        shut.data,
    };
    struct directory *directory = make(lines, 6);
    assert_int_equal(directory_keys(directory), 3);
    assert_int_equal(directory_accounts(directory), 2);
    const struct directory_key *key = directory_find_key(directory, "mr-good", 7);
    assert_non_null(key);
    assert_true(key->active && key->account->open);
    assert_string_equal(key->account->name, "acme");
    assert_string_equal(key->account->tenant, "t1");
    assert_string_equal(key->label, "a \"b\"");
    assert_true(key->account->number == account_number("acme"));
    struct key_limits server = {.rpm = 1, .tpm = 2, .concurrency = 3};
    struct key_limits used = directory_limits(key, &server);
    assert_int_equal(used.rpm, 60);
    assert_int_equal(used.tpm, 7);
    assert_int_equal(used.concurrency, 3);
    assert_false(directory_find_key(directory, "mr-off", 6)->active);
    key = directory_find_key(directory, "mr-shut", 7);
    assert_false(key->account->open); /* the later line */
    assert_string_equal(key->account->tenant, "shut");
    assert_null(directory_find_key(directory, "mr-goo", 6));
    assert_null(directory_find_key(directory, "", 0));
    /* a line written again is the same line */
    struct buf again;
    char id[DIRECTORY_ID_MAX + 1];
    buf_init(&again, 0);
    directory_key_line(directory_find_key(directory, "mr-good", 7), &again, id);
    assert_int_equal(again.length, good.length);
    assert_memory_equal(again.data, good.data, good.length);
    buf_clear(&again);
    directory_account_line(directory_find_account(directory, account_number("acme")), &again, id);
    assert_string_equal(id, "a:acme");
    assert_memory_equal(again.data, lines[1], again.length);
    buf_free(&again);
    directory_destroy(directory);
    buf_free(&good);
    buf_free(&off);
    buf_free(&shut);
}

static void test_directory_refuses_bad_lines_by_name(void **state)
{
    (void)state;
    struct buf long_line;
    buf_init(&long_line, 0);
    buf_append_text(&long_line, "{\"id\":\"a:x\",\"kind\":\"account\",\"name\":\"x\",\"state\":\"open\",\"pad\":\"");
    while (long_line.length < DIRECTORY_LINE_MAX) buf_append_char(&long_line, 'x');
    buf_append_text(&long_line, "\"}");
    buf_append_char(&long_line, '\0');
    const struct {
        const char *line, *names;
    } cases[] = {
        {"", "not JSON"},
        {"{", "not JSON"},
        {"[]", "no \"id\""},
        {"{\"id\":5}", "no \"id\""},
        {"{\"id\":\"x:y\"}", "no \"id\""},
        {"{\"id\":\"a:SECRET here\"}", "no \"id\""},
        {"{\"id\":\"a:x\",\"kind\":\"key\"}", "a:x: \"kind\""},
        {"{\"id\":\"a:x\",\"kind\":\"account\",\"state\":\"open\"}", "a:x: \"name\""},
        {"{\"id\":\"a:x\",\"kind\":\"account\",\"name\":\"y\",\"state\":\"open\"}", "a:x: its name"},
        {"{\"id\":\"a:x\",\"kind\":\"account\",\"name\":\"x\"}", "a:x: \"state\""},
        {"{\"id\":\"a:x\",\"kind\":\"account\",\"name\":\"x\",\"state\":\"half\"}", "a:x: \"state\""},
        {"{\"id\":\"a:x\",\"kind\":\"account\",\"name\":\"x\",\"state\":\"open\",\"tenant\":\"t t\"}", "\"tenant\""},
        {"{\"id\":\"a:x\",\"kind\":\"account\",\"name\":\"x\",\"state\":\"open\",\"rpm\":-1}", "a:x: \"rpm\""},
        {"{\"id\":\"a:x\",\"kind\":\"account\",\"name\":\"x\",\"state\":\"open\",\"rpm\":4294967296}", "a:x: \"rpm\""},
        {"{\"id\":\"a:x\",\"kind\":\"account\",\"name\":\"x\",\"state\":\"open\",\"tpm\":1.5}", "a:x: \"tpm\""},
        {"{\"id\":\"k:0000000000000001\",\"kind\":\"key\",\"hash\":\"00\",\"account\":\"x\",\"state\":\"active\"}",
         "k:0000000000000001: \"hash\""},
        {"{\"id\":\"k:01\",\"kind\":\"key\",\"account\":\"x\",\"state\":\"active\",\"hash\":"
         "\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"}",
         "k:01: its hash"},
        {long_line.data, "longer than"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct directory *directory;
        struct error err = {""};
        assert_int_equal(directory_create(&directory), ST_OK);
        assert_int_equal(directory_add(directory, cases[i].line, strlen(cases[i].line), &err), ST_INVAL);
        if (!strstr(err.message, cases[i].names)) fail_msg("\"%s\" does not say %s", err.message, cases[i].names);
        assert_null(strstr(err.message, "SECRET"));
        directory_destroy(directory);
    }
    buf_free(&long_line);
}

static void test_directory_refuses_strays_and_floods(void **state)
{
    (void)state;
    struct buf stray = line_of_key("mr-a", "nobody", true);
    struct directory *directory;
    struct error err = {""};
    assert_int_equal(directory_create(&directory), ST_OK);
    assert_int_equal(directory_add(directory, stray.data, stray.length, &err), ST_OK);
    assert_int_equal(directory_seal(directory, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "nobody"));
    directory_destroy(directory);
    uint64_t before = limits.directory_lines;
    limits.directory_lines = 16;
    assert_int_equal(directory_create(&directory), ST_OK);
    enum status status = ST_OK;
    for (int i = 0; i < 17; i++) {
        char line[128];
        (void)snprintf(line, sizeof line, "{\"id\":\"a:n%d\",\"kind\":\"account\",\"name\":\"n%d\",\"state\":\"open\"}",
                       i, i);
        assert_int_equal(status, ST_OK);
        status = directory_add(directory, line, strlen(line), &err);
    }
    assert_int_equal(status, ST_LIMIT);
    limits.directory_lines = before;
    directory_destroy(directory);
    buf_free(&stray);
}

/* D2: two names with one number cannot be found by trying; so one is put there. */
static void test_directory_refuses_numbers_that_collide(void **state)
{
    (void)state;
    const char one[] = "{\"id\":\"a:one\",\"kind\":\"account\",\"name\":\"one\",\"state\":\"open\"}";
    const char two[] = "{\"id\":\"a:two\",\"kind\":\"account\",\"name\":\"two\",\"state\":\"open\"}";
    struct directory *directory;
    struct error err = {""};
    assert_int_equal(directory_create(&directory), ST_OK);
    assert_int_equal(directory_add(directory, one, strlen(one), &err), ST_OK);
    directory->accounts[0].number = account_number("two");
    memset(directory->account_index.places, 0, (directory->account_index.mask + 1) * sizeof(uint32_t));
    *place_of(directory, false, account_number("two")) = 1;
    assert_int_equal(directory_add(directory, two, strlen(two), &err), ST_INVAL);
    assert_non_null(strstr(err.message, "a:two: another one has the same number"));
    directory_destroy(directory);
}

static void test_directory_holds_many(void **state)
{
    (void)state;
    enum { ACCOUNTS = 10000, KEYS = 100000 };
    struct directory *directory;
    struct error err = {""};
    char line[256], text[32];
    assert_int_equal(directory_create(&directory), ST_OK);
    for (int i = 0; i < ACCOUNTS; i++) {
        (void)snprintf(line, sizeof line, "{\"id\":\"a:n%d\",\"kind\":\"account\",\"name\":\"n%d\",\"state\":\"open\"}",
                       i, i);
        assert_int_equal(directory_add(directory, line, strlen(line), &err), ST_OK);
    }
    for (int i = 0; i < KEYS; i++) {
        (void)snprintf(text, sizeof text, "mr-%d", i);
        (void)snprintf(line, sizeof line, "n%d", i % ACCOUNTS);
        struct buf key = line_of_key(text, line, i % 3 > 0);
        assert_int_equal(directory_add(directory, key.data, key.length, &err), ST_OK);
        buf_free(&key);
    }
    assert_int_equal(directory_seal(directory, &err), ST_OK);
    assert_int_equal(directory_keys(directory), KEYS);
    for (int i = 0; i < KEYS; i += 7) {
        (void)snprintf(text, sizeof text, "mr-%d", i);
        (void)snprintf(line, sizeof line, "n%d", i % ACCOUNTS);
        const struct directory_key *key = directory_find_key(directory, text, strlen(text));
        assert_non_null(key);
        assert_string_equal(key->account->name, line);
        assert_int_equal(key->active, i % 3 > 0);
        (void)snprintf(text, sizeof text, "mr-%dx", i);
        assert_null(directory_find_key(directory, text, strlen(text)));
    }
    directory_destroy(directory);
}

/* Any damage of a good line gives a status, and never a directory that says something else about another key. */
static void test_directory_survives_damage(void **state)
{
    (void)state;
    struct buf good = line_of_key("mr-good", "acme", true);
    uint64_t random = 5;
    for (int i = 0; i < 20000; i++) {
        char line[512];
        struct directory_line out;
        struct error err = {""};
        size_t length = good.length;
        memcpy(line, good.data, length);
        for (uint64_t k = random_next(&random) % 3 + 1; k > 0; k--)
            line[random_next(&random) % length] = (char)random_next(&random);
        if (random_next(&random) % 4 == 0) length = random_next(&random) % length;
        if (directory_line_read(line, length, &out, &err) != ST_OK) assert_true(err.message[0] != '\0');
    }
    buf_free(&good);
}

static bool fail_at(void *state, size_t size_bytes)
{
    uint32_t *left = state;
    (void)size_bytes;
    if (*left == 0) return false;
    --*left;
    return true;
}

static void test_directory_without_memory(void **state)
{
    (void)state;
    struct buf key = line_of_key("mr-good", "acme", true);
    const char account[] = "{\"id\":\"a:acme\",\"kind\":\"account\",\"name\":\"acme\",\"state\":\"open\"}";
    bool done = false;
    for (uint32_t at = 0; !done; at++) {
        uint32_t left = at;
        struct directory *directory = NULL;
        mem_hook_set(fail_at, &left);
        enum status status = directory_create(&directory);
        if (status == ST_OK) status = directory_add(directory, account, strlen(account), NULL);
        if (status == ST_OK) status = directory_add(directory, key.data, key.length, NULL);
        if (status == ST_OK) status = directory_seal(directory, NULL);
        mem_hook_set(NULL, NULL);
        done = status == ST_OK;
        if (!done) assert_int_equal(status, ST_NOMEM);
        directory_destroy(directory);
        assert_true(at < 100);
    }
    buf_free(&key);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_directory_keys_are_random_and_of_one_shape),
        cmocka_unit_test(test_directory_key_is_base64url_of_its_bytes),
        cmocka_unit_test(test_directory_finds_keys_accounts_and_limits),
        cmocka_unit_test(test_directory_refuses_bad_lines_by_name),
        cmocka_unit_test(test_directory_refuses_strays_and_floods),
        cmocka_unit_test(test_directory_refuses_numbers_that_collide),
        cmocka_unit_test(test_directory_holds_many),
        cmocka_unit_test(test_directory_survives_damage),
        cmocka_unit_test(test_directory_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
