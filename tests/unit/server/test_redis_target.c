/* Tests of server/billing/redis_target.c: what --redis and its fellows may say, and that no password leaks from them.
 */
#include "server/billing/redis_link.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static struct redis_target target;
static struct error err;

static enum status read_url(const char *url)
{
    err.message[0] = '\0';
    return redis_target_read(&(struct redis_settings){.url = url}, &target, &err);
}

static void test_redis_target_forms(void **state)
{
    (void)state;
    assert_int_equal(read_url("redis://127.0.0.1:7001"), ST_OK);
    assert_int_equal(target.kind, REDIS_SINGLE);
    assert_false(target.tls.on);
    assert_string_equal(target.addresses[0].host, "127.0.0.1");
    assert_int_equal(target.addresses[0].port, 7001);
    assert_int_equal(read_url("rediss://ledger.example/0"), ST_OK);
    assert_true(target.tls.on);
    assert_int_equal(target.addresses[0].port, 6379);
    assert_int_equal(read_url("redis://[::1]:7002/"), ST_OK);
    assert_string_equal(target.addresses[0].host, "::1");
    assert_int_equal(target.addresses[0].port, 7002);
    assert_int_equal(read_url("redis+unix:///run/redis/r@1.sock"), ST_OK);
    assert_string_equal(target.addresses[0].path, "/run/redis/r@1.sock");
    assert_int_equal(read_url("redis-sentinel://a,b:26380,[::2]:1/mymaster"), ST_OK);
    assert_int_equal(target.kind, REDIS_SENTINEL);
    assert_int_equal(target.addresses_count, 3);
    assert_int_equal(target.addresses[0].port, 26379);
    assert_int_equal(target.addresses[1].port, 26380);
    assert_string_equal(target.master, "mymaster");
    assert_int_equal(read_url("rediss-cluster://a:1,b:2,c:3"), ST_OK);
    assert_int_equal(target.kind, REDIS_CLUSTER);
    assert_true(target.tls.on);
    struct redis_settings s = {.url = "redis://biller@h", .password = "s3cret"};
    assert_int_equal(redis_target_read(&s, &target, &err), ST_OK);
    assert_string_equal(target.user, "biller");
    assert_string_equal(target.password, "s3cret");
}

static void test_redis_target_refusals(void **state)
{
    (void)state;
    char long_host[400] = "redis://", many[400] = "redis-cluster://a";
    memset(long_host + 8, 'a', 300);
    for (int i = 0; i < 16; i++) strcat(many, ",a");
    const char *urls[] = {
        "",
        "http://a",
        "redis:/a",
        "redis://",
        "redis://:6379",
        "redis://a:",
        "redis://a:0",
        "redis://a:65536",
        "redis://a:1x",
        "redis://a:99999999999",
        "redis://a,b",
        "redis://a/1",
        "redis://[::1",
        "redis://[::1]x",
        "redis://a b",
        "redis://u@",
        "redis+unix://run/x",
        "redis+unix://",
        "redis-sentinel://a",
        "redis-sentinel://a/",
        "redis-sentinel://a/m/x",
        "redis-cluster://a,,b",
        "redis://a?db=1",
        "redis://user@h" /* no password */,
        long_host,
        many,
    };
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
        if (read_url(urls[i]) == ST_OK) fail_msg("\"%s\" was taken", urls[i]);
        assert_int_not_equal(strlen(err.message), 0);
    }
    assert_int_equal(redis_target_read(&(struct redis_settings){.url = "redis://a", .ca_file = "/x"}, &target, &err),
                     ST_INVAL);
    assert_int_equal(redis_target_read(&(struct redis_settings){.url = "rediss://a", .key_file = "/x"}, &target, &err),
                     ST_INVAL);
}

/* K4: refused, and the message does not repeat it. */
static void test_redis_target_password_in_url(void **state)
{
    (void)state;
    const char *urls[] = {"redis://user:hunter2@h:1", "redis://:hunter2@h", "redis-sentinel://u:hunter2@a,b/m",
                          "redis-cluster://u:hun@ter2@a:1", "redis+unix://u:hunter2@/run/x"};
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
        struct redis_settings with = {.url = urls[i], .password = "other"};
        assert_int_equal(redis_target_read(&with, &target, &err), ST_INVAL);
        assert_null(strstr(err.message, "hunter2"));
        assert_int_equal(read_url(urls[i]), ST_INVAL);
        assert_null(strstr(err.message, "hunter2"));
        assert_non_null(strstr(err.message, "MILLRACE_REDIS_PASSWORD"));
    }
}

static void test_redis_target_password_file(void **state)
{
    (void)state;
    char path[] = "/tmp/test_redis_target_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "pass word\r\nrest\n", 16), 16);
    struct redis_settings s = {.url = "redis://a", .password_file = path};
    assert_int_equal(redis_target_read(&s, &target, &err), ST_OK);
    assert_string_equal(target.password, "pass word");
    s.password = "x";
    assert_int_equal(redis_target_read(&s, &target, &err), ST_INVAL);
    s.password = NULL;
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(redis_target_read(&s, &target, &err), ST_INVAL);
    close(fd);
    unlink(path);
    assert_int_equal(redis_target_read(&s, &target, &err), ST_NOTFOUND);
}

/* Values of the Redis Cluster specification and of redis-cli CLUSTER KEYSLOT. */
static void test_redis_target_slots(void **state)
{
    (void)state;
    assert_int_equal(redis_slot("123456789"), 0x31c3);
    assert_int_equal(redis_slot("foo"), 12182);
    assert_int_equal(redis_slot("{foo}bar"), 12182);
    assert_int_equal(redis_slot("x{foo}{bar}"), 12182);
    assert_int_equal(redis_slot("mr:{b000}:hwm"), redis_slot("b000"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_redis_target_forms),           cmocka_unit_test(test_redis_target_refusals),
        cmocka_unit_test(test_redis_target_password_in_url), cmocka_unit_test(test_redis_target_password_file),
        cmocka_unit_test(test_redis_target_slots),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
