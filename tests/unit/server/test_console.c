/* The console's files, their headers and tags. */
#include "tests/unit/unit.h"

#include "server/console.h"

static const struct console_file *find(const char *path)
{
    return console_find(path, strlen(path));
}

static void test_console_files_are_found_by_their_whole_path(void **state)
{
    (void)state;
    const struct console_file *page = find("/console");
    assert_non_null(page);
    assert_string_equal(page->content_type, "text/html; charset=utf-8");
    assert_memory_equal(page->data, "<!doctype html>", 15);
    for (size_t i = 0; i < console_files_count; i++) {
        assert_ptr_equal(find(console_files[i].path), &console_files[i]);
        assert_null(console_find(console_files[i].path, strlen(console_files[i].path) - 1));
        assert_true(console_files[i].length > 100);
        assert_int_equal(strlen(console_files[i].etag), 34);
    }
    assert_null(find(""));
    assert_null(find("/console/"));
    assert_null(find("/console/index.html"));
    assert_null(find("/console/../console"));
}

/* W1 */
static void test_console_headers(void **state)
{
    (void)state;
    static const char *const lines[] = {
        ("\r\ncontent-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
         "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'\r\n"),
        "\r\nx-content-type-options: nosniff\r\n", "\r\nreferrer-policy: no-referrer\r\n"};
    for (size_t i = 0; i < console_files_count; i++) {
        struct buf out;
        buf_init(&out, 0);
        console_print_headers(&console_files[i], &out);
        assert_memory_equal(out.data + out.length - 2, "\r\n", 2);
        buf_append_char(&out, '\0');
        assert_memory_equal(out.data, "etag: \"", 7);
        for (size_t k = 0; k < sizeof lines / sizeof lines[0]; k++) assert_non_null(strstr(out.data, lines[k]));
        buf_free(&out);
    }
}

static void test_console_is_kept(void **state)
{
    (void)state;
    static const struct {
        const char *before, *after;
        uint32_t cut; /* off the tag's end */
        bool kept;
    } cases[] = {
        {"", "", 0, true},      {"W/", "", 0, true},        {"\"x\", ", "", 0, true}, {"\"x\",W/", " , \"y\"", 0, true},
        {"*", "", 34, true},    {"\"x\", *", "", 34, true}, {"", "", 34, false},      {"", "", 1, false},
        {"x", "", 0, false},    {"", "x", 0, false},        {"\"x\"", "", 34, false}, {"W/", "", 34, false},
        {",, ,", "", 34, false}};
    char text[128];
    const struct console_file *page = find("/console"), *style = find("/console/console.css");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        (void)snprintf(text, sizeof text, "%s%.*s%s", cases[i].before, (int)(34 - cases[i].cut), page->etag,
                       cases[i].after);
        if (console_is_kept(page, text) != cases[i].kept) fail_msg("If-None-Match: %s", text);
    }
    assert_false(console_is_kept(page, NULL));
    assert_false(console_is_kept(page, style->etag));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_console_files_are_found_by_their_whole_path),
        cmocka_unit_test(test_console_headers),
        cmocka_unit_test(test_console_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
