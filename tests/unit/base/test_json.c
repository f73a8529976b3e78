/* JSON from outside: bounds from the table of limits, what is refused, and that printing gives the same document. */
#include "tests/unit/unit.h"

#include "runtime/base/json.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"

static struct error err;

static enum status read_text(const char *text, struct json **root)
{
    return json_read(text, strlen(text), root, &err);
}

static void test_json_print_round_trip(void **state)
{
    (void)state;
    static const char *const texts[] = {"{\"b\":1,\"a\":[true,false,null,-3,\"x\\u00e9\\n\"],\"c\":{}}", "[]", "\"s\"",
                                        "1.5", "{\"z\":\"\xc3\xa9\",\"y\":\"\xf0\x9f\x98\x80\"}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct json *a, *b;
        struct buf first, second;
        buf_init(&first, 0);
        buf_init(&second, 0);
        assert_int_equal(read_text(texts[i], &a), ST_OK);
        json_print(a, &first);
        assert_int_equal(json_read(first.data, first.length, &b, &err), ST_OK);
        json_print(b, &second);
        assert_int_equal(first.length, second.length);
        assert_memory_equal(first.data, second.data, first.length);
        json_release(a);
        json_release(b);
        buf_free(&first);
        buf_free(&second);
    }
}

static void test_json_queries(void **state)
{
    (void)state;
    struct json *root;
    assert_int_equal(read_text("{\"i\":7,\"f\":0.5,\"s\":\"ab\",\"t\":true,\"l\":[1,2],\"o\":{\"k\":null}}", &root),
                     ST_OK);
    assert_int_equal(json_to_int(json_member(root, "i")), 7);
    assert_true(json_to_number(json_member(root, "f")) == 0.5);
    assert_true(json_has_number(json_member(root, "i")) && !json_has_number(json_member(root, "s")));
    size_t length;
    assert_string_equal(json_to_text(json_member(root, "s"), &length), "ab");
    assert_int_equal(length, 2);
    assert_true(json_to_bool(json_member(root, "t")));
    assert_int_equal(json_length(json_member(root, "l")), 2);
    assert_int_equal(json_to_int(json_at(json_member(root, "l"), 1)), 2);
    assert_null(json_at(json_member(root, "l"), 2));
    assert_null(json_member(json_member(root, "l"), "k"));
    assert_null(json_to_text(json_member(root, "i"), &length));
    assert_int_equal(json_kind(NULL), JSON_KIND_NULL);
    void *iterator = NULL;
    const char *key;
    const struct json *value;
    char order[16] = "";
    while (json_iterate(root, &iterator, &key, &value)) strncat(order, key, 1);
    assert_string_equal(order, "ifstlo");
    json_release(root);
}

static void test_json_refuses(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "{",
                                      "[1,]",
                                      "{\"a\":1,\"a\":2}",
                                      "nan",
                                      "NaN",
                                      "Infinity",
                                      "1e400",
                                      "-1e400",
                                      "9223372036854775808",
                                      "'a'",
                                      "\"\xff\"",
                                      "\"\xc0\x80\"",
                                      "\"\xed\xa0\x80\"",
                                      "\"\\ud800\"",
                                      "\"\\u0000\"",
                                      "[1] x",
                                      "\xef\xbb\xbf{}",
                                      "{\"a\" 1}",
                                      "01",
                                      "+1",
                                      "[1\n\x01]",
                                      "\"a\nb\""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct json *root = NULL;
        err.message[0] = 0;
        enum status status = read_text(bad[i], &root);
        if (status == ST_OK || !err.message[0])
            fail_msg("case %zu (%s): status %d, \"%s\"", i, bad[i], status, err.message);
    }
}

static char *repeat(const char *piece, size_t count, const char *middle, const char *end, size_t *length)
{
    size_t n = strlen(piece), m = strlen(end);
    char *text = malloc(count * (n + m) + strlen(middle) + 1), *at = text;
    for (size_t i = 0; i < count; i++, at += n) memcpy(at, piece, n);
    memcpy(at, middle, strlen(middle));
    at += strlen(middle);
    for (size_t i = 0; i < count; i++, at += m) memcpy(at, end, m);
    *at = 0;
    *length = (size_t)(at - text);
    return text;
}

/* Nesting at the limit, one above, and far above, also in a value that nobody reads. */
static void test_json_depth_limit(void **state)
{
    (void)state;
    const size_t depths[] = {limits.json_depth - 1, limits.json_depth, limits.json_depth + 1, limits.json_depth * 10,
                             100000};
    for (size_t i = 0; i < 5; i++) {
        size_t length;
        char *text = repeat("[", depths[i], "", "]", &length);
        struct json *root = NULL;
        assert_int_equal(json_read(text, length, &root, &err), depths[i] <= limits.json_depth ? ST_OK : ST_LIMIT);
        if (depths[i] <= limits.json_depth) json_release(root);
        for (size_t cut = 0; cut < length && cut < 300; cut++) { /* every truncation */
            root = NULL;
            assert_int_not_equal(json_read(text, cut, &root, &err), ST_OK);
        }
        free(text);
    }
}

static void test_json_value_and_number_limits(void **state)
{
    (void)state;
    uint64_t values = limits.json_values, chars = limits.json_number_chars;
    assert_int_equal(limits_set("json_values", 100, &err), ST_OK);
    for (size_t count = 98; count <= 101; count++) {
        size_t length;
        char *text = repeat("1,", count - 2, "1", "", &length); /* count - 1 numbers in one array */
        char *list = malloc(length + 3);
        sprintf(list, "[%s]", text);
        struct json *root = NULL;
        enum status status = json_read(list, length + 2, &root, &err);
        assert_int_equal(status, count <= 100 ? ST_OK : ST_LIMIT);
        if (status == ST_OK) json_release(root);
        free(list);
        free(text);
    }
    assert_int_equal(limits_set("json_values", values, &err), ST_OK);
    for (size_t digits = chars - 1; digits <= chars + 1; digits++) {
        char text[256] = "0.";
        memset(text + 2, '1', digits - 2);
        struct json *root = NULL;
        enum status status = json_read(text, digits, &root, &err);
        assert_int_equal(status, digits <= chars ? ST_OK : ST_LIMIT);
        if (status == ST_OK) json_release(root);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_print_round_trip),
        cmocka_unit_test(test_json_queries),
        cmocka_unit_test(test_json_refuses),
        cmocka_unit_test(test_json_depth_limit),
        cmocka_unit_test(test_json_value_and_number_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
