/* The multipart parser: however its bytes are cut, what it tells is the same, and what is no form is refused. */
#include "tests/unit/unit.h"

#include "server/batch/multipart.h"

#include "runtime/base/buf.h"
#include "runtime/base/random.h"

static bool on_part(void *state, const char *name, const char *filename)
{
    struct buf *told = state;
    buf_append_format(told, "[%s|%s]", name, filename ? filename : "-");
    return true;
}

static bool on_bytes(void *state, const char *data, size_t length)
{
    buf_append(state, data, length);
    return true;
}

static bool never(void *state, const char *data, size_t length)
{
    (void)state;
    (void)data;
    (void)length;
    return false;
}

/* Fed in pieces of `piece` bytes; 0: of random lengths. */
static enum multipart_result feed(const char *body, size_t length, size_t piece, uint64_t seed, struct buf *told)
{
    struct multipart multipart;
    struct multipart_reader reader = {.state = told, .part = on_part, .bytes = on_bytes};
    enum multipart_result result = MULTIPART_MORE;
    assert_true(multipart_begin(&multipart, "multipart/form-data; boundary=XX"));
    buf_clear(told);
    for (size_t i = 0, k = 0; i < length && result == MULTIPART_MORE; k++) {
        size_t take = piece ? piece : 1 + (size_t)(random_uniform(seed, k) * 9);
        if (take > length - i) take = length - i;
        result = multipart_feed(&multipart, body + i, take, &reader);
        i += take;
    }
    return result;
}

#define HEAD "Content-Disposition: form-data; name=\"file\"; filename=\"a;\\\"b.jsonl\"\r\nContent-Type: x/y\r\n\r\n"
static const char form[] =
    "before\r\n--XX\r\ncontent-disposition: form-data; name=purpose\r\n\r\nbatch\r\n--XX \r\n" HEAD
    "one\r\n--X\r\r\n--XY\r\n\r\n-\r\n--XX--\r\nafter";
static const char told_of_form[] = "[purpose|-]batch[file|a;\"b.jsonl]one\r\n--X\r\r\n--XY\r\n\r\n-";

static void test_multipart_cut_anywhere(void **state)
{
    (void)state;
    struct buf told;
    buf_init(&told, 0);
    for (size_t piece = 0; piece < 40; piece++) {
        assert_int_equal(feed(form, sizeof form - 1, piece, piece, &told), MULTIPART_END);
        assert_int_equal(told.length, sizeof told_of_form - 1);
        assert_memory_equal(told.data, told_of_form, told.length);
    }
    for (size_t length = 0; length < sizeof form - 1 - strlen("-\r\nafter"); length++)
        assert_int_equal(feed(form, length, 7, 0, &told), MULTIPART_MORE); /* never looks whole before its end */
    buf_free(&told);
}

static void test_multipart_content_types(void **state)
{
    (void)state;
    struct multipart multipart;
    assert_true(multipart_begin(&multipart, "Multipart/Form-Data; charset=x; boundary=\"a b\"") == false);
    assert_true(multipart_begin(&multipart, "Multipart/Form-Data; charset=x; boundary=\"a+b\""));
    assert_memory_equal(multipart.boundary, "\r\n--a+b", 7);
    static const char *const wrong[] = {"",
                                        "text/plain",
                                        "multipart/form-data",
                                        "multipart/form-data; boundary=",
                                        "multipart/form-data; boundary=\"x",
                                        "multipart/form-datax; boundary=b"};
    assert_false(multipart_begin(&multipart, NULL));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) assert_false(multipart_begin(&multipart, wrong[i]));
    char longest[128] = "multipart/form-data; boundary=";
    memset(longest + 30, 'b', MULTIPART_BOUNDARY_MAX + 1);
    assert_false(multipart_begin(&multipart, longest));
    longest[30 + MULTIPART_BOUNDARY_MAX] = '\0';
    assert_true(multipart_begin(&multipart, longest));
}

static void test_multipart_what_is_refused(void **state)
{
    (void)state;
    struct buf told, text;
    buf_init(&told, 0);
    buf_init(&text, 0);
    static const char *const wrong[] = {"--XXy",
                                        "--XX-y",
                                        "--XX\ry",
                                        "--XX\r\nA: b\r\n\r\n",
                                        "--XX\r\nContent-Disposition: form-data\r\n\r\n",
                                        "--XX\r\nContent-Disposition: form-data; name=\"a\r\n\r\n",
                                        "--XX\r\n\r\n"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(feed(wrong[i], strlen(wrong[i]), 1, 0, &told), MULTIPART_BAD);
    buf_append_text(&text, "--XX\r\n");
    for (int i = 0; i <= MULTIPART_HEAD_MAX; i++) buf_append_char(&text, 'a');
    assert_int_equal(feed(text.data, text.length, 100, 0, &told), MULTIPART_BAD);
    buf_clear(&text);
    for (int i = 0; i <= MULTIPART_PARTS_MAX; i++)
        buf_append_text(&text, "--XX\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n");
    assert_int_equal(feed(text.data, text.length, 100, 0, &told), MULTIPART_BAD);
    struct multipart multipart;
    struct multipart_reader reader = {.state = &told, .part = on_part, .bytes = never};
    assert_true(multipart_begin(&multipart, "multipart/form-data; boundary=XX"));
    assert_int_equal(multipart_feed(&multipart, form, sizeof form - 1, &reader), MULTIPART_STOPPED);
    assert_int_equal(multipart_feed(&multipart, "x", 1, &reader), MULTIPART_BAD);
    buf_free(&told);
    buf_free(&text);
}

/* Bytes of the grammar in any order: no cut changes what is told, and nothing is read or held past its bounds. */
static void test_multipart_random_bytes(void **state)
{
    (void)state;
    static const char *const pieces[] = {"\r",
                                         "\n",
                                         "\r\n",
                                         "--",
                                         "XX",
                                         "-",
                                         "X",
                                         "\r\n--XX",
                                         "\r\n--XX\r\n",
                                         "a",
                                         "\0b",
                                         HEAD,
                                         "\r\n\r\n",
                                         "Content-Disposition: form-data; name=\"n\"\r\n\r\n"};
    struct buf body, told, again;
    buf_init(&body, 0);
    buf_init(&told, 0);
    buf_init(&again, 0);
    for (uint64_t seed = 0; seed < 3000; seed++) {
        buf_clear(&body);
        buf_append_text(&body, seed % 2 ? "--XX\r\n" HEAD : "");
        for (uint64_t i = 0; i < 30; i++) {
            const char *piece = pieces[(size_t)(random_uniform(seed, i) * (sizeof pieces / sizeof *pieces))];
            buf_append(&body, piece, *piece ? strlen(piece) : 2);
        }
        enum multipart_result whole = feed(body.data, body.length, body.length, 0, &told);
        enum multipart_result cut = feed(body.data, body.length, 0, seed, &again);
        assert_int_equal(whole, cut);
        assert_int_equal(told.length, again.length);
        if (told.length > 0) assert_memory_equal(told.data, again.data, told.length);
    }
    buf_free(&body);
    buf_free(&told);
    buf_free(&again);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_multipart_cut_anywhere),
        cmocka_unit_test(test_multipart_content_types),
        cmocka_unit_test(test_multipart_what_is_refused),
        cmocka_unit_test(test_multipart_random_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
