/* Files and batches as JSON: what is written is read again; times, windows and what a client asks for. */
#include "tests/unit/unit.h"

#include "server/batch/batch_record.h"

static void test_batch_record_times(void **state)
{
    (void)state;
    int64_t unix_s;
    static const struct {
        const char *text;
        int64_t unix_s;
    } good[] = {{"1970-01-01T00:00:00Z", 0},
                {"2026-11-23T22:13:20Z", 1795472000},
                {"2024-02-29T12:00:00.123456+02:00", 1709200800},
                {"2000-03-01t00:00:00z", 951868800},
                {"2026-12-31 23:59:59-05:30", 1798781399}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(batch_time_read(good[i].text, &unix_s));
        assert_int_equal(unix_s, good[i].unix_s);
    }
    static const char *const wrong[] = {"",
                                        "now",
                                        "2026-11-23",
                                        "2026-11-23T22:13:20",
                                        "2026-13-01T00:00:00Z",
                                        "2025-02-29T00:00:00Z",
                                        "2026-11-23T24:00:00Z",
                                        "2026-11-23T22:13:20.Z",
                                        "2026-11-23T22:13:20+2:00",
                                        "2026-11-23T22:13:20Zx",
                                        "1969-01-01T00:00:00Z"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) assert_false(batch_time_read(wrong[i], &unix_s));
    assert_int_equal(batch_window_s("24h"), 86400);
    assert_int_equal(batch_window_s("90m"), 5400);
    assert_int_equal(batch_window_s("30d"), BATCH_WINDOW_S_MAX);
    static const char *const no_window[] = {"", "h", "0h", "24", "24hh", "-1h", "31d", "999999999999h", "1y"};
    for (size_t i = 0; i < sizeof no_window / sizeof *no_window; i++) assert_int_equal(batch_window_s(no_window[i]), 0);
}

static void test_batch_record_round_trip(void **state)
{
    (void)state;
    static const char body[] =
        "{\"input_file_id\":\"file-00112233445566778899aabbccddeeff\",\"endpoint\":\"/v1/completions\","
        "\"completion_window\":\"24h\",\"metadata\":{\"a\":\"\\\"x\"},\"green\":\"only\"}";
    struct batch_info info, again;
    struct api_error error;
    assert_true(batch_info_ask(body, strlen(body), 1000, &info, &error));
    assert_int_equal(info.times_s[TIME_EXPIRES], 1000 + 86400);
    batch_make_id("batch_", info.id);
    info.caller.account = UINT64_MAX;
    info.caller.key = 1;
    memcpy(info.caller.tenant_name, "ada", 4);
    memcpy(info.caller.account_name, "ada", 4);
    info.status = BATCH_FINALIZING;
    info.ends_as = BATCH_EXPIRED;
    batch_make_id("file-", info.output_id);
    buf_append_text(&info.errors, "{\"code\":\"c\",\"line\":3,\"message\":\"m\",\"param\":null}");
    info.total = 7;
    struct buf text, second;
    buf_init(&text, 0);
    buf_init(&second, 0);
    batch_info_print(&info, true, &text);
    assert_true(batch_info_read(text.data, text.length, &again));
    assert_int_equal(again.caller.account, UINT64_MAX);
    assert_int_equal(again.ends_as, BATCH_EXPIRED);
    assert_int_equal(again.green, GREEN_ONLY);
    batch_info_print(&again, true, &second);
    assert_int_equal(text.length, second.length);
    assert_memory_equal(text.data, second.data, text.length);
    buf_clear(&second);
    batch_info_print(&again, false, &second); /* what a client sees has no owner, and no file before its end */
    buf_append_char(&second, '\0');
    assert_null(strstr(second.data, "account"));
    assert_null(strstr(second.data, again.output_id));
    for (size_t length = 0; length < text.length; length++) { /* a part of it is none */
        struct batch_info part;
        assert_false(batch_info_read(text.data, length, &part));
        batch_info_free(&part);
    }
    batch_info_free(&info);
    batch_info_free(&again);
    struct file_info file = {.bytes = 5, .account = 3, .created_s = 9, .filename = "a\"b"}, read;
    batch_make_id("file-", file.id);
    buf_clear(&text);
    file_info_print(&file, true, &text);
    assert_true(file_info_read(text.data, text.length, &read));
    assert_string_equal(read.filename, "a\"b");
    assert_int_equal(read.account, 3);
    buf_free(&text);
    buf_free(&second);
}

static void test_batch_record_what_is_refused(void **state)
{
    (void)state;
#define ID "\"input_file_id\":\"file-00112233445566778899aabbccddeeff\","
    static const struct {
        const char *body, *param;
    } wrong[] = {
        {"{}", "endpoint"},
        {"[]", ""},
        {"{" ID "\"endpoint\":\"/v1/embeddings\"}", "endpoint"},
        {"{\"input_file_id\":\"../etc\",\"endpoint\":\"/v1/completions\"}", "input_file_id"},
        {"{" ID "\"endpoint\":\"/v1/completions\"}", "completion_window"},
        {"{" ID "\"endpoint\":\"/v1/completions\",\"completion_window\":\"25\"}", "completion_window"},
        {"{" ID "\"endpoint\":\"/v1/completions\",\"completion_window\":\"1h\",\"green\":1}", "green"},
        {"{" ID "\"endpoint\":\"/v1/completions\",\"completion_window\":\"1h\",\"metadata\":{\"a\":1}}", "metadata"},
        {"{" ID "\"endpoint\":\"/v1/completions\",\"completion_window\":\"1h\",\"deadline\":\"1970-01-01T00:00:01Z\"}",
         "deadline"},
        {"{" ID
         "\"endpoint\":\"/v1/completions\",\"completion_window\":\"1h\",\"output_expires_after\":{\"seconds\":9}}",
         "output_expires_after"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct batch_info info;
        struct api_error error = {.http_status = 0};
        assert_false(batch_info_ask(wrong[i].body, strlen(wrong[i].body), 1000, &info, &error));
        assert_int_equal(error.http_status, 400);
        assert_string_equal(error.param, wrong[i].param);
        batch_info_free(&info);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_record_times),
        cmocka_unit_test(test_batch_record_round_trip),
        cmocka_unit_test(test_batch_record_what_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
