/* The audit log's lines, read back from its file. */
#include "tests/unit/unit.h"

#include "runtime/base/json.h"
#include "server/audit.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/millrace-audit-XXXXXX", path[64], old_path[64];

static const struct audit_call post = {.who = "ada",
                                       .from = "10.0.0.9",
                                       .request = "r-1",
                                       .method = "POST",
                                       .target = "/models/load?x=\"1\"\n",
                                       .body = "{\"a\":\"\xff\"}",
                                       .body_length = 9};

/* Line i of the file as JSON (released by the caller), or NULL: there is none, or it is none. */
static struct json *line_at(const char *of, size_t i)
{
    static char text[262144];
    struct error err;
    struct json *root = NULL;
    FILE *file = fopen(of, "rb");
    assert_non_null(file);
    while (fgets(text, sizeof text, file))
        if (i-- == 0 && json_read(text, strlen(text), &root, &err) != ST_OK) root = NULL;
    assert_int_equal(fclose(file), 0);
    return root;
}

static void assert_text(const struct json *root, const char *name, const char *expected)
{
    const char *text = json_to_text(json_member(root, name), NULL);
    assert_non_null(text);
    assert_string_equal(text, expected);
}

static void test_audit_call_and_answer(void **state)
{
    (void)state;
    struct audit *audit = NULL;
    struct error err = {""};
    struct stat about;
    uint64_t n = 0;
    assert_int_equal(audit_open(path, &audit, &err), ST_OK);
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0600);
    audit_event(audit, 0, "start", "1.2.3");
    assert_int_equal(audit_call(audit, 1790000000123, &post, &n, &err), ST_OK);
    assert_int_equal(n, 1);
    audit_answer(audit, 1790000000999, n, 409);
    assert_int_equal(audit_lines(audit), 3);
    audit_close(audit);
    struct json *start = line_at(path, 0), *call = line_at(path, 1), *answer = line_at(path, 2);
    assert_text(start, "time", "1970-01-01T00:00:00.000Z");
    assert_text(start, "event", "start");
    assert_text(start, "detail", "1.2.3");
    assert_text(call, "time", "2026-09-21T14:13:20.123Z");
    assert_text(call, "who", "ada");
    assert_text(call, "from", "10.0.0.9");
    assert_text(call, "request", "r-1");
    assert_text(call, "method", "POST");
    assert_text(call, "target", post.target);
    assert_text(call, "body", "{\"a\":\"\xef\xbf\xbd\"}"); /* a byte that is no UTF-8 */
    assert_int_equal(json_to_int(json_member(call, "body_bytes")), 9);
    assert_int_equal(json_to_int(json_member(answer, "n")), 1);
    assert_int_equal(json_to_int(json_member(answer, "status")), 409);
    json_release(start), json_release(call), json_release(answer);
}

static void test_audit_cuts_long_bodies(void **state)
{
    (void)state;
    struct audit *audit = NULL;
    struct error err = {""};
    uint64_t n;
    char *body = malloc(65536);
    assert_non_null(body);
    memset(body, 1, 65536); /* six bytes each in JSON */
    struct audit_call call = post;
    call.body = body, call.body_length = 65536;
    (void)unlink(path);
    assert_int_equal(audit_open(path, &audit, &err), ST_OK);
    assert_int_equal(audit_call(audit, 0, &call, &n, &err), ST_OK);
    audit_close(audit);
    struct json *line = line_at(path, 0);
    size_t length;
    assert_non_null(json_to_text(json_member(line, "body"), &length));
    assert_int_equal(length, AUDIT_BODY_BYTES_MAX);
    assert_int_equal(json_to_int(json_member(line, "body_bytes")), 65536);
    json_release(line);
    free(body);
}

static void test_audit_refused_once_a_second(void **state)
{
    (void)state;
    struct audit *audit = NULL;
    struct error err = {""};
    struct audit_call call = post;
    call.who = NULL, call.body = NULL;
    (void)unlink(path);
    assert_int_equal(audit_open(path, &audit, &err), ST_OK);
    for (int64_t ms = 0; ms < 2500; ms += 5) audit_refused(audit, 1000000 + ms, &call, 401);
    audit_refused(audit, 500, &call, 401); /* the clock set back: no silence until it has caught up */
    assert_int_equal(audit_lines(audit), 4);
    audit_close(audit);
    struct json *first = line_at(path, 0), *third = line_at(path, 2), *last = line_at(path, 3);
    assert_int_equal(json_kind(json_member(first, "who")), JSON_KIND_NULL);
    assert_int_equal(json_to_int(json_member(first, "unwritten")), 0);
    assert_int_equal(json_to_int(json_member(third, "unwritten")), 199);
    assert_int_equal(json_to_int(json_member(last, "unwritten")), 99);
    json_release(first), json_release(third), json_release(last);
}

/* D4: a line that was cut off, by a full disk or a lost power, does not swallow the next. */
static void test_audit_goes_on_after_a_torn_line(void **state)
{
    (void)state;
    struct audit *audit = NULL;
    struct error err = {""};
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_true(fputs("{\"time\":\"2026", file) >= 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(audit_open(path, &audit, &err), ST_OK);
    audit_event(audit, 0, "start", NULL);
    audit_event(audit, 0, "stop", NULL);
    audit_close(audit);
    struct json *torn = line_at(path, 0), *start = line_at(path, 1), *stop = line_at(path, 2);
    assert_null(torn);
    assert_text(start, "event", "start");
    assert_text(stop, "event", "stop");
    json_release(start), json_release(stop);
}

static void test_audit_file_that_is_moved_away(void **state)
{
    (void)state;
    struct audit *audit = NULL;
    struct error err = {""};
    uint64_t n = 0;
    (void)unlink(path);
    assert_int_equal(audit_open(path, &audit, &err), ST_OK);
    assert_int_equal(audit_call(audit, 0, &post, &n, &err), ST_OK);
    assert_int_equal(rename(path, old_path), 0);
    assert_int_equal(audit_reopen(audit, &err), ST_OK);
    audit_answer(audit, 0, n, 200);
    struct json *old = line_at(old_path, 0), *new = line_at(path, 0);
    assert_text(old, "event", "call");
    assert_text(new, "event", "answer");
    json_release(old), json_release(new);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(audit_reopen(audit, &err), ST_IO); /* it goes on with what it has */
    assert_int_equal(audit_call(audit, 0, &post, &n, &err), ST_OK);
    audit_close(audit);
    assert_int_equal(rmdir(path), 0);
}

static void test_audit_refuses_what_is_no_file(void **state)
{
    (void)state;
    struct audit *audit = NULL;
    struct error err = {""};
    assert_int_equal(audit_open("/dev/null", &audit, &err), ST_IO);
    assert_non_null(strstr(err.message, "/dev/null"));
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(audit_open(path, &audit, &err), ST_IO);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(audit_open("/nowhere/at/all", &audit, &err), ST_IO);
    assert_null(audit);
}

/* D1: the limit of a file's size is a full disk. */
static void test_audit_says_what_it_could_not_write(void **state)
{
    (void)state;
    struct audit *audit = NULL;
    struct error err = {""};
    uint64_t n = 0;
    struct rlimit limit, small;
    assert_int_equal(audit_open(path, &audit, &err), ST_OK);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = limit, small.rlim_cur = 100;
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_int_equal(audit_call(audit, 0, &post, &n, &err), ST_IO); /* a part of it went through */
    assert_int_equal(audit_call(audit, 0, &post, &n, &err), ST_IO);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(n, 0);
    assert_int_equal(audit_failures(audit), 2);
    assert_int_equal(audit_call(audit, 0, &post, &n, &err), ST_OK);
    assert_int_equal(n, 1);
    audit_close(audit);
    struct json *torn = line_at(path, 0), *whole = line_at(path, 1);
    assert_null(torn);
    assert_text(whole, "event", "call");
    json_release(whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_audit_call_and_answer),
        cmocka_unit_test(test_audit_cuts_long_bodies),
        cmocka_unit_test(test_audit_refused_once_a_second),
        cmocka_unit_test(test_audit_goes_on_after_a_torn_line),
        cmocka_unit_test(test_audit_file_that_is_moved_away),
        cmocka_unit_test(test_audit_refuses_what_is_no_file),
        cmocka_unit_test(test_audit_says_what_it_could_not_write),
    };
    if (!mkdtemp(folder)) return 1;
    (void)snprintf(path, sizeof path, "%s/audit.log", folder);
    (void)snprintf(old_path, sizeof old_path, "%s/audit.log.1", folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)unlink(path);
    (void)unlink(old_path);
    (void)rmdir(folder);
    return failed;
}
