/* Tests of server/billing/redis_reply.c: replies whole and in pieces, hostile ones, and what error texts mean. */
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "server/billing/redis_reply.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

/* Feeds the text `step` bytes at a time; the last status. */
static enum status feed(const char *text, size_t length, size_t step, struct redis_reply **reply, struct error *err)
{
    struct redis_reader *reader = NULL;
    assert_int_equal(redis_reader_create(&reader), ST_OK);
    enum status status = ST_AGAIN;
    for (size_t at = 0; at < length && status == ST_AGAIN; at += step) {
        status = redis_reader_feed(reader, text + at, length - at < step ? length - at : step, err);
        if (status == ST_OK) status = redis_reader_next(reader, reply, err);
    }
    redis_reader_destroy(reader);
    return status;
}

static void test_redis_reply_pieces(void **state)
{
    (void)state;
    const char *text = "*5\r\n$2\r\nOK\r\n:-7\r\n$-1\r\n*2\r\n+a\r\n-ERR b\r\n$0\r\n\r\n";
    for (size_t step = 1; step <= strlen(text); step++) {
        struct redis_reply *reply = NULL;
        struct error err;
        assert_int_equal(feed(text, strlen(text), step, &reply, &err), ST_OK);
        assert_int_equal(reply->count, 5);
        assert_string_equal(redis_reply_text_at(reply, 0), "OK");
        assert_int_equal(reply->items[1]->integer, -7);
        assert_int_equal(reply->items[2]->type, REDIS_NIL);
        assert_null(redis_reply_text_at(reply, 1));
        assert_null(redis_reply_text_at(reply, 5));
        assert_int_equal(reply->items[3]->items[1]->type, REDIS_ERROR);
        assert_true(redis_reply_is(reply->items[4], ""));
        redis_reply_free(reply);
    }
}

static size_t allocated_most;
static bool note_size(void *state, size_t bytes)
{
    (void)state;
    if (bytes > allocated_most) allocated_most = bytes;
    return true;
}

static void test_redis_reply_hostile(void **state)
{
    (void)state;
    char deep[1024] = "";
    for (int i = 0; i < 100; i++) strcat(deep, "*1\r\n");
    const char *texts[] = {
        "*1000000000\r\n",
        "*65537\r\n",
        "*-2\r\n",
        "*2147483648\r\n",
        "$-2\r\n",
        "$99999999999999999999\r\n",
        deep,
        "hello\r\n",
        "?1\r\n",
        ":12x\r\n",
        "*1\r\n%0\r\n",
        "\r\n",
        "_\r\n",
    };
    mem_hook_set(note_size, NULL);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (size_t step = 1; step < 64; step += 31) {
            struct redis_reply *reply = NULL;
            struct error err = {""};
            assert_int_equal(feed(texts[i], strlen(texts[i]), step, &reply, &err), ST_PROTO);
            assert_int_not_equal(strlen(err.message), 0);
        }
    assert_in_range(allocated_most, 0, limits.redis_reply_values * sizeof(void *));
    mem_hook_set(NULL, NULL);
}

/* A length that is only promised takes no memory; bytes beyond the limit end it. */
static void test_redis_reply_bulk_limit(void **state)
{
    (void)state;
    struct redis_reader *reader = NULL;
    struct redis_reply *reply = NULL;
    struct error err;
    assert_int_equal(redis_reader_create(&reader), ST_OK);
    assert_int_equal(redis_reader_feed(reader, "$1073741824\r\n", 13, &err), ST_OK);
    assert_int_equal(redis_reader_next(reader, &reply, &err), ST_AGAIN);
    static char zeros[16384];
    uint64_t fed = 13;
    enum status status = ST_AGAIN;
    while (status == ST_AGAIN) {
        assert_int_equal(redis_reader_feed(reader, zeros, sizeof zeros, &err), ST_OK);
        fed += sizeof zeros;
        status = redis_reader_next(reader, &reply, &err);
    }
    assert_int_equal(status, ST_PROTO);
    assert_in_range(fed, limits.redis_reply_bytes, limits.redis_reply_bytes + sizeof zeros);
    redis_reader_destroy(reader);
}

/* Many whole replies in one read are no reply that is too long. */
static void test_redis_reply_pipeline(void **state)
{
    (void)state;
    struct redis_reader *reader = NULL;
    struct error err;
    assert_int_equal(redis_reader_create(&reader), ST_OK);
    size_t count = 2 * limits.redis_reply_bytes / 5;
    char *text = mem_alloc(count, 5);
    for (size_t i = 0; i < count; i++) memcpy(text + i * 5, "+OK\r\n", 5);
    assert_int_equal(redis_reader_feed(reader, text, count * 5, &err), ST_OK);
    for (size_t i = 0; i < count; i++) {
        struct redis_reply *reply = NULL;
        assert_int_equal(redis_reader_next(reader, &reply, &err), ST_OK);
        redis_reply_free(reply);
    }
    mem_free(text);
    redis_reader_destroy(reader);
}

static bool fail_kth(void *state, size_t bytes)
{
    (void)bytes;
    return (*(int *)state)-- != 0;
}

static void test_redis_reply_no_memory(void **state)
{
    (void)state;
    const char *text = "*3\r\n$2\r\nOK\r\n*1\r\n:5\r\n$-1\r\n";
    for (int k = 0;; k++) {
        int left = k;
        mem_hook_set(fail_kth, &left);
        struct redis_reader *reader = NULL;
        struct redis_reply *reply = NULL;
        struct error err;
        enum status status = redis_reader_create(&reader);
        if (status == ST_OK) status = redis_reader_feed(reader, text, strlen(text), &err);
        if (status == ST_OK) status = redis_reader_next(reader, &reply, &err);
        mem_hook_set(NULL, NULL);
        redis_reader_destroy(reader);
        redis_reply_free(reply);
        if (status == ST_OK) {
            assert_in_range(k, 8, 20);
            break;
        }
        assert_int_equal(status, ST_NOMEM);
    }
}

static void test_redis_reply_faults(void **state)
{
    (void)state;
    const struct {
        const char *text;
        enum redis_fault fault;
    } rows[] = {
        {"-LOADING Redis is loading the dataset in memory\r\n", REDIS_FAULT_WAIT},
        {"-BUSY Redis is busy running a script.\r\n", REDIS_FAULT_WAIT},
        {"-TRYAGAIN Multiple keys request during rehashing of slot\r\n", REDIS_FAULT_WAIT},
        {"-READONLY You can't write against a read only replica.\r\n", REDIS_FAULT_MASTER},
        {"-MOVED 3999 127.0.0.1:6381\r\n", REDIS_FAULT_MOVED},
        {"-ASK 3999 127.0.0.1:6381\r\n", REDIS_FAULT_ASK},
        {"-ERR Function not found\r\n", REDIS_FAULT_FUNCTION},
        {"-NOPERM this user has no permissions\r\n", REDIS_FAULT_RIGHTS},
        {"-ERR something\r\n", REDIS_FAULT_OTHER},
        {"-\r\n", REDIS_FAULT_OTHER},
        {"+OK\r\n", REDIS_NO_FAULT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct redis_reply *reply = NULL;
        struct error err;
        assert_int_equal(feed(rows[i].text, strlen(rows[i].text), 64, &reply, &err), ST_OK);
        assert_int_equal(redis_fault_of(reply), rows[i].fault);
        redis_reply_free(reply);
    }
}

static void test_redis_reply_fault_target(void **state)
{
    (void)state;
    const struct {
        const char *text;
        bool good;
        const char *host;
        uint16_t port;
    } rows[] = {
        {"-MOVED 3999 127.0.0.1:6381\r\n", true, "127.0.0.1", 6381},
        {"-ASK 16383 ::1:7000\r\n", true, "::1", 7000},
        {"-MOVED 1 :7000\r\n", true, "", 7000},
        {"-MOVED 16384 a:1\r\n", false, NULL, 0},
        {"-MOVED x a:1\r\n", false, NULL, 0},
        {"-MOVED 1 a\r\n", false, NULL, 0},
        {"-MOVED 1 a:0\r\n", false, NULL, 0},
        {"-MOVED 1 a:65536\r\n", false, NULL, 0},
        {"-MOVED 1 a:1x\r\n", false, NULL, 0},
        {"-MOVED\r\n", false, NULL, 0},
        {"-MOVED 1 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:1\r\n", false, NULL, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct redis_reply *reply = NULL;
        struct error err;
        assert_int_equal(feed(rows[i].text, strlen(rows[i].text), 64, &reply, &err), ST_OK);
        char host[64];
        uint16_t slot, port;
        assert_int_equal(redis_fault_target(reply, &slot, host, sizeof host, &port), rows[i].good);
        if (rows[i].good) {
            assert_string_equal(host, rows[i].host);
            assert_int_equal(port, rows[i].port);
        }
        redis_reply_free(reply);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_redis_reply_pieces),       cmocka_unit_test(test_redis_reply_hostile),
        cmocka_unit_test(test_redis_reply_bulk_limit),   cmocka_unit_test(test_redis_reply_pipeline),
        cmocka_unit_test(test_redis_reply_no_memory),    cmocka_unit_test(test_redis_reply_faults),
        cmocka_unit_test(test_redis_reply_fault_target),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
