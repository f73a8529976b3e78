/* What each pattern cuts, in cases whose answers come from the expressions; tests/text holds the lexers against the
 * expressions themselves. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/text/pretokenize.h"

static struct unicode_classes classes;

static int setup(void **state)
{
    (void)state;
    return unicode_classes_init(&classes) == ST_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    unicode_classes_free(&classes);
    return 0;
}

/* The pieces of text, each followed by '|' in the result. */
static const char *cut(enum pretokenize_pattern pattern, const char *text)
{
    static char out[1024];
    size_t n = 0, length, at = 0;
    struct pretokenize_cursor cursor;
    pretokenize_start(&cursor, &classes, pattern, text, strlen(text));
    while ((length = pretokenize_next(&cursor))) {
        memcpy(out + n, text + at, length);
        n += length;
        at += length;
        out[n++] = '|';
    }
    out[n] = 0;
    assert_int_equal(at, strlen(text));
    return out;
}

static void test_pretokenize_gpt2(void **state)
{
    (void)state;
    assert_string_equal(cut(PRETOKENIZE_GPT2, ""), "");
    assert_string_equal(cut(PRETOKENIZE_GPT2, "Hello  world's 123abc!!\n\n x"),
                        "Hello| | world|'s| 123|abc|!!|\n\n| x|");
    assert_string_equal(cut(PRETOKENIZE_GPT2, "I'LL we'll 'rex"), "I|'|LL| we|'ll| '|rex|");
    assert_string_equal(cut(PRETOKENIZE_GPT2, "end  \n"), "end|  \n|");
    assert_string_equal(cut(PRETOKENIZE_GPT2, "\ta\xc2\xa0z"), "\t|a|\xc2\xa0|z|");
    assert_string_equal(cut(PRETOKENIZE_GPT2, " \xcc\x81"
                                              "e\xcc\x81"),
                        " \xcc\x81|e|\xcc\x81|");
    assert_string_equal(cut(PRETOKENIZE_GPT2, "\xe4\xb8\xad\xe3\x80\x80\xc2\xb2"),
                        "\xe4\xb8\xad|\xe3\x80\x80|\xc2\xb2|");
}

static void test_pretokenize_digits(void **state)
{
    (void)state;
    assert_string_equal(cut(PRETOKENIZE_DIGITS_GPT2, "a  15 b"), "a|  |1|5| b|");
    assert_string_equal(cut(PRETOKENIZE_DIGITS_GPT2, "x'5's"), "x|'|5|'s|");
    assert_string_equal(cut(PRETOKENIZE_DIGITS_GPT2, "\xc2\xbd\xd9\xa3"), "\xc2\xbd|\xd9\xa3|"); /* a half, Arabic 3 */
}

static void test_pretokenize_llama3_and_qwen2(void **state)
{
    (void)state;
    static const enum pretokenize_pattern both[] = {PRETOKENIZE_LLAMA3, PRETOKENIZE_QWEN2};
    for (int i = 0; i < 2; i++) {
        assert_string_equal(cut(both[i], "He'S \"quoted\" \tx"), "He|'S| \"|quoted|\"| |\tx|");
        assert_string_equal(cut(both[i], "it'\xc5\xbf we'LL'Ve"), "it|'\xc5\xbf| we|'LL|'Ve|"); /* long s */
        assert_string_equal(cut(both[i], "a!!\r\n\n  \n  b"), "a|!!\r\n\n|  \n| | b|");
        assert_string_equal(cut(both[i], "  \n \t"), "  \n| \t|");
        assert_string_equal(cut(both[i], "e\xcc\x81t"), "e|\xcc\x81t|");
    }
    assert_string_equal(cut(PRETOKENIZE_LLAMA3, " 12345"), " |123|45|");
    assert_string_equal(cut(PRETOKENIZE_QWEN2, " 123"), " |1|2|3|");
}

static void test_pretokenize_qwen35_keeps_marks_in_words(void **state)
{
    (void)state;
    assert_string_equal(cut(PRETOKENIZE_QWEN35, "e\xcc\x81t \xcc\x81!"), "e\xcc\x81t| \xcc\x81|!|");
    assert_string_equal(cut(PRETOKENIZE_QWEN35, "\xcc\x81"), "\xcc\x81|");
    assert_string_equal(cut(PRETOKENIZE_QWEN35, "!\xcc\x81!12"), "!\xcc\x81|!|1|2|");
}

static void test_pretokenize_bad_bytes_are_characters_of_no_class(void **state)
{
    (void)state;
    assert_string_equal(cut(PRETOKENIZE_GPT2, "a\xff\xc3 b\xe4\xb8"), "a|\xff\xc3| b|\xe4\xb8|");
}

static void test_pretokenize_finds_each_name_it_tells(void **state)
{
    (void)state;
    char names[512];
    enum pretokenize_pattern pattern;
    bool whole;
    int count = 0;
    snprintf(names, sizeof names, "%s, ", pretokenize_names());
    for (char *name = names, *comma; (comma = strstr(name, ", ")); name = comma + 2, count++) {
        *comma = 0;
        assert_true(pretokenize_find(name, &pattern, &whole));
        if (whole) assert_int_equal(pattern, PRETOKENIZE_LLAMA3);
    }
    assert_true(count >= 5);
    assert_false(pretokenize_find("", &pattern, &whole));
    assert_false(pretokenize_find("default", &pattern, &whole));
    assert_false(pretokenize_find("gpt-2 ", &pattern, &whole));
}

/* Whatever the bytes, the pieces are the text, and the characters looked at are at most a fixed multiple of its bytes.
 */
static void test_pretokenize_work_is_linear(void **state)
{
    (void)state;
    static const char *const units[] = {"a",    " ",   "\n", " \n",      "  \n\n",       "'",
                                        "'s",   "!",   " !", "1",        "\xe4\xb8\xad", "\xcc\x81",
                                        "\xff", "!\n", "\t", "\xc2\xa0", "\n!"};
    enum { BYTES = 1000000 };
    char *text = mem_alloc(BYTES, 1);
    assert_non_null(text);
    uint64_t seed = 7;
    print_message("seed %d\n", 7);
    for (size_t u = 0; u <= sizeof units / sizeof *units; u++) {
        size_t unit = u < sizeof units / sizeof *units ? strlen(units[u]) : 0;
        for (size_t i = 0; i < BYTES; i++) text[i] = unit ? units[u][i % unit] : (char)random_next(&seed);
        for (int pattern = PRETOKENIZE_GPT2; pattern <= PRETOKENIZE_QWEN35; pattern++) {
            struct pretokenize_cursor cursor;
            size_t total = 0, length;
            pretokenize_start(&cursor, &classes, (enum pretokenize_pattern)pattern, text, BYTES);
            while ((length = pretokenize_next(&cursor))) total += length;
            assert_int_equal(total, BYTES);
            assert_in_range(cursor.work, BYTES / 4, 6 * (uint64_t)BYTES);
        }
    }
    mem_free(text);
}

static void test_pretokenize_classes(void **state)
{
    (void)state;
    assert_int_equal(unicode_class_of(&classes, 'a'), UNICODE_LETTER);
    assert_int_equal(unicode_class_of(&classes, 0x10ffff), UNICODE_OTHER);
    assert_int_equal(unicode_class_of(&classes, 0x85), UNICODE_SPACE);
    assert_int_equal(unicode_class_of(&classes, 0x200b), UNICODE_OTHER); /* zero width space: not White_Space */
    assert_int_equal(unicode_class_of(&classes, 0x1c), UNICODE_OTHER);   /* a space to Python, not to Unicode */
    assert_int_equal(unicode_class_of(&classes, 0x0301), UNICODE_MARK);
    assert_int_equal(unicode_class_of(&classes, 0x2ebf0), UNICODE_LETTER); /* CJK Extension I, Unicode 15.1 */
    assert_int_equal(unicode_class_of(&classes, 0x11de0), UNICODE_NUMBER_NEW);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pretokenize_gpt2),
        cmocka_unit_test(test_pretokenize_digits),
        cmocka_unit_test(test_pretokenize_llama3_and_qwen2),
        cmocka_unit_test(test_pretokenize_qwen35_keeps_marks_in_words),
        cmocka_unit_test(test_pretokenize_bad_bytes_are_characters_of_no_class),
        cmocka_unit_test(test_pretokenize_finds_each_name_it_tells),
        cmocka_unit_test(test_pretokenize_work_is_linear),
        cmocka_unit_test(test_pretokenize_classes),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
