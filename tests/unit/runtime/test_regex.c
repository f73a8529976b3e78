/* Regular expressions: that windows do not show in what is found, and that the work of hostile texts ends. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/text/pretokenize.h"
#include "runtime/text/regex.h"

static struct regex *create(const char *pattern)
{
    struct regex *regex;
    struct error err = {{0}};
    if (regex_create(pattern, strlen(pattern), &regex, &err) != ST_OK) fail_msg("%s: %s", pattern, err.message);
    return regex;
}

static void refuse(const char *pattern, const char *reason)
{
    struct regex *regex;
    struct error err = {{0}};
    assert_int_equal(regex_create(pattern, strlen(pattern), &regex, &err), ST_INVAL);
    if (!strstr(err.message, reason)) fail_msg("%s: \"%s\" does not say \"%s\"", pattern, err.message, reason);
}

struct matches {
    size_t count, bytes, last;
    size_t ends[40000];
};

static enum status note(void *state, size_t start, size_t end)
{
    struct matches *m = state;
    assert_true(start >= m->last && end >= start);
    assert_true(m->count < sizeof m->ends / sizeof *m->ends);
    m->last = end;
    m->bytes += end - start;
    m->ends[m->count++] = end;
    return ST_OK;
}

static void test_regex_refuses(void **state)
{
    (void)state;
    refuse("a{2,3}+", "repeated");
    refuse("a{2}?", "repeated");
    refuse("a{,3}", "lower bound");
    refuse("a(?i)b|c", "rest of a group");
    static const char *const good[] = {"\\p{L}+", "\\p{N}{1,3}", "a{2,}?b",  "(?i)a",
                                       "(?i:'s)", "[{,]+",       "\\x{41}+", "a{b}+"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) regex_destroy(create(good[i]));
}

/* Runs of one kind, of lengths around those of windows. */
static size_t make_text(uint64_t *random, char *text, size_t capacity)
{
    static const char *const kinds[] = {" ", "\n", "a", "7", "\xc3\xa9", "\xe4\xb8\xad", "!", "'s", "\xcc\x81", "\t "};
    size_t n = 0;
    for (int runs = 0; runs < 12; runs++) {
        const char *kind = kinds[random_next(random) % (sizeof kinds / sizeof *kinds)];
        uint64_t count = 1 + random_next(random) % (random_next(random) % 3 ? 8 : 1600);
        for (; count-- && n + 4 < capacity; n += strlen(kind)) memcpy(text + n, kind, strlen(kind));
    }
    return n;
}

/* Llama 3's expression by the engine and by the lexer. */
static void test_regex_windows_do_not_show(void **state)
{
    (void)state;
    enum { CAPACITY = 30000 };
    static struct matches found;
    static char text[CAPACITY];
    uint64_t random = 20;
    struct unicode_classes classes;
    struct regex *regex =
        create("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
               "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+");
    assert_int_equal(unicode_classes_init(&classes), ST_OK);
    for (int round = 0; round < 300; round++) {
        struct pretokenize_cursor cursor;
        size_t length = make_text(&random, text, CAPACITY), at = 0;
        found.count = found.bytes = found.last = 0;
        assert_int_equal(regex_find_all(regex, text, length, note, &found), ST_OK);
        assert_int_equal(found.bytes, length);
        pretokenize_start(&cursor, &classes, PRETOKENIZE_LLAMA3, text, length);
        for (; pretokenize_next(&cursor); at++) {
            assert_true(at < found.count);
            assert_int_equal(found.ends[at], cursor.at);
        }
        assert_int_equal(at, found.count);
    }
    unicode_classes_free(&classes);
    regex_destroy(regex);
}

/* What is found in n equal bytes and one behind them, wherever the windows end. */
static void test_regex_at_the_ends_of_windows(void **state)
{
    (void)state;
    static struct matches found;
    static char text[2100];
    static const struct {
        const char *pattern;
        char fill, last;
        bool one; /* one match of all but the last byte; else the last byte alone */
    } cases[] = {{"a+(?=b)", 'a', 'b', true},    {"b$", 'a', 'b', false},      {"(?<=a)b", 'a', 'b', false},
                 {"\n+^(?=b)", '\n', 'b', true}, {"(?:a|a)+", 'a', 'b', true}, {"[^a]", 'a', 'b', false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct regex *regex = create(cases[i].pattern);
        for (size_t n = 1; n<2060; n += n> 20 && n < 500 ? 37 : 1) {
            memset(text, cases[i].fill, n);
            text[n] = cases[i].last;
            found.count = found.bytes = found.last = 0;
            assert_int_equal(regex_find_all(regex, text, n + 1, note, &found), ST_OK);
            assert_int_equal(found.count, 1);
            assert_int_equal(found.last, cases[i].one ? n : n + 1);
            assert_int_equal(found.bytes, cases[i].one ? n : 1);
        }
        regex_destroy(regex);
    }
}

/* Squares and worse end at the budget; a run that is one match does not meet it. */
static void test_regex_work_ends(void **state)
{
    (void)state;
    enum { LENGTH = 4 << 20 };
    static struct matches found;
    static const char *const hostile[] = {"a+[bc]", "(?:a|a)+[bc]", "(?:a+)+[bc]", "a*a*a*[bc]"};
    char *text = mem_alloc(LENGTH, 1);
    assert_non_null(text);
    memset(text, 'a', LENGTH);
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        struct regex *regex = create(hostile[i]);
        assert_int_equal(regex_find_all(regex, text, LENGTH, note, &found), ST_LIMIT);
        assert_int_equal(found.count, 0);
        regex_destroy(regex);
    }
    struct regex *regex = create("\\s+|a*[bc]|a+(?!\\S)|a+");
    assert_int_equal(regex_find_all(regex, text, LENGTH, note, &found), ST_OK);
    assert_int_equal(found.count, 1);
    assert_int_equal(found.bytes, LENGTH);
    regex_destroy(regex);
    mem_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_regex_refuses),
        cmocka_unit_test(test_regex_windows_do_not_show),
        cmocka_unit_test(test_regex_at_the_ends_of_windows),
        cmocka_unit_test(test_regex_work_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
