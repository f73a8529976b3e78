/* Files of upstreams: what is read, what is refused, and that no refusal quotes a key. */
#include "tests/unit/unit.h"

#include "server/upstream/upstreams.h"

#include <stdlib.h>
#include <unistd.h>

static char path[] = "/tmp/millrace-upstreams-XXXXXX", key_path[] = "/tmp/millrace-upstream-key-XXXXXX";

static void write_file(const char *to, const char *text)
{
    FILE *file = fopen(to, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
}

static enum status read_text(const char *text, struct upstreams **upstreams, struct error *err)
{
    write_file(path, text);
    return upstreams_read(path, 1234, upstreams, err);
}

static void test_upstreams_read_a_file(void **state)
{
    (void)state;
    struct upstreams *read;
    struct error err = {""};
    char text[512];
    write_file(key_path, "sk-secret\nrest\n");
    snprintf(text, sizeof text,
             "far: [url=https://far.example:8443/v1, key_file=%s, concurrency=3, timeout=7, counts=continuous]\n"
             "org/x: [upstream=far, as=x-1, context=8192, output=100]\n"
             "small: [upstream=near, context=64]\n"
             "near: [\"url=http://127.0.0.1:1/v1\"]\n"
             "y: [upstream=near]\n",
             key_path);
    if (read_text(text, &read, &err) != ST_OK) fail_msg("%s", err.message);
    assert_int_equal(read->count, 2);
    assert_int_equal(read->models_count, 3);
    const struct upstream *far = read->items[0], *near = read->items[1];
    assert_string_equal(far->url, "https://far.example:8443/v1");
    assert_string_equal(far->key, "sk-secret");
    assert_int_equal(far->concurrency, 3);
    assert_int_equal(far->timeout_s, 7);
    assert_true(far->continuous);
    assert_null(near->key);
    assert_int_equal(near->concurrency, 16);
    assert_int_equal(near->timeout_s, 600);
    assert_ptr_equal(read->models[0].upstream, far);
    assert_string_equal(read->models[0].name, "org/x");
    assert_string_equal(read->models[0].as, "x-1");
    assert_int_equal(read->models[0].output_max, 100);
    assert_int_equal(read->models[1].output_max, 64);
    assert_string_equal(read->models[2].as, "y");
    assert_int_equal(read->models[2].output_max, UPSTREAM_OUTPUT_DEFAULT);
    assert_string_equal(read->far[0].owner, "far");
    assert_int_equal(read->far[0].created_unix_s, 1234);
    struct buf metrics;
    buf_init(&metrics, 0);
    read->items[0]->outcomes[UPSTREAM_TIMEOUT] = 5;
    upstreams_print_metrics(read, &metrics);
    buf_append_char(&metrics, '\0');
    assert_non_null(strstr(metrics.data, "mr_upstream_requests_total{upstream=\"far\",outcome=\"timeout\"} 5\n"));
    assert_null(strstr(metrics.data, "secret"));
    buf_free(&metrics);
    upstreams_destroy(read);
}

static void test_upstreams_key_of_the_environment(void **state)
{
    (void)state;
    struct upstreams *read;
    struct error err = {""};
    assert_int_equal(setenv("MILLRACE_TEST_UPSTREAM_KEY", "sk-of-env", 1), 0);
    const char *text = "a: [url=http://h/v1, key_env=MILLRACE_TEST_UPSTREAM_KEY]\nm: [upstream=a]\n";
    assert_int_equal(read_text(text, &read, &err), ST_OK);
    assert_string_equal(read->items[0]->key, "sk-of-env");
    upstreams_destroy(read);
    assert_int_equal(setenv("MILLRACE_TEST_UPSTREAM_KEY", "sk-bad key", 1), 0);
    assert_int_equal(read_text(text, &read, &err), ST_INVAL);
    assert_null(strstr(err.message, "sk-bad"));
    assert_int_equal(unsetenv("MILLRACE_TEST_UPSTREAM_KEY"), 0);
    assert_int_equal(read_text(text, &read, &err), ST_INVAL);
}

static void test_upstreams_refusals(void **state)
{
    (void)state;
    const struct {
        const char *text, *says;
    } bad[] = {
        {"m: [upstream=nobody]\n", "no upstream \"nobody\""},
        {"a: [url=ftp://h/v1]\n", "url must be"},
        {"a: [url=http://]\n", "url must be"},
        {"a: [url=http:///v1]\n", "url must be"},
        {"a: [url=http://h/v1/]\n", "url must be"},
        {"a: [\"url=http://u:sk-secret@h/v1\"]\n", "url must be"},
        {"a: [\"url=http://h/v1?key=sk-secret\"]\n", "url must be"},
        {"a: [\"url=http://h h/v1\"]\n", "url must be"},
        {"a: [url=http://h/v1, concurrency=0]\n", "concurrency must be"},
        {"a: [url=http://h/v1, timeout=99999999999999999999999]\n", "timeout must be"},
        {"a: [url=http://h/v1, timeout=1s]\n", "timeout must be"},
        {"a: [url=http://h/v1, timeout=-1]\n", "timeout must be"},
        {"a: [url=http://h/v1, url=http://h/v1]\n", "stands twice"},
        {"a: [url=http://h/v1, counts=maybe]\n", "counts may be"},
        {"a: [url=http://h/v1, sk-secret]\n", "none of url="},
        {"a: [url=http://h/v1, key=sk-secret]\n", "none of url="},
        {"a: [url=]\n", "url is empty"},
        {"a: [url=http://h/v1, context=5]\n", "which models have"},
        {"a: [url=http://h/v1]\nm: [upstream=a, key_file=/x]\n", "which upstreams have"},
        {"a: [url=http://h/v1]\nm: [as=x]\n", "has neither"},
        {"a: [url=http://h/v1]\nm: [upstream=a, output=9000001]\n", "output must be"},
        {"a: [url=http://h/v1, key_file=/nonexistent/key]\n", "cannot read /nonexistent/key"},
        {"a: [url=http://h/v1, key_file=/dev/null]\n", "is empty"},
        {"a: [url=http://h/v1, key_file=/x, key_env=Y]\n", "one too many"},
        {"a:\n  b: c\n", "nested"},
        {"- a\n", "a list belongs"},
        {"a: [url=http://h/v1\n", "line"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct upstreams *read = NULL;
        struct error err = {""};
        if (read_text(bad[i].text, &read, &err) == ST_OK) fail_msg("was read: %s", bad[i].text);
        if (!strstr(err.message, bad[i].says)) fail_msg("%s: %s", bad[i].text, err.message);
        if (strstr(err.message, "sk-secret")) fail_msg("a key is told: %s", err.message);
        if (!strstr(err.message, path)) fail_msg("no path: %s", err.message);
    }
    struct upstreams *read;
    struct error err;
    assert_int_equal(upstreams_read("/nonexistent/file", 0, &read, &err), ST_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_upstreams_read_a_file),
        cmocka_unit_test(test_upstreams_key_of_the_environment),
        cmocka_unit_test(test_upstreams_refusals),
    };
    assert_true(close(mkstemp(path)) == 0);
    assert_true(close(mkstemp(key_path)) == 0);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    unlink(key_path);
    return failed;
}
