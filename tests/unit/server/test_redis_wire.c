/* Tests of server/billing/redis_wire.c: bounds of time, and a peer that is gone. TLS: tests/redis/test_connect.py. */
#include "runtime/base/clock.h"
#include "server/billing/redis_wire.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

static struct redis_address address;
static const struct redis_tls no_tls;
static int listener;

static int listen_at_path(void **state)
{
    (void)state;
    char folder[] = "/tmp/test_redis_wire_XXXXXX";
    assert_non_null(mkdtemp(folder));
    snprintf(address.path, sizeof address.path, "%s/s", folder);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    memcpy(a.sun_path, address.path, sizeof a.sun_path);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(listener, 4), 0);
    return 0;
}

static int close_path(void **state)
{
    (void)state;
    close(listener);
    unlink(address.path);
    *strrchr(address.path, '/') = '\0';
    rmdir(address.path);
    return 0;
}

/* A write to a peer that has gone is an error, and no signal ends the process. */
static void test_redis_wire_peer_gone(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_DFL);
    const struct redis_wire *wire = redis_wire_system();
    void *c = NULL;
    struct error err;
    assert_int_equal(wire->open(wire->state, &address, &no_tls, 1000, &c, &err), ST_OK);
    close(accept(listener, NULL, NULL));
    assert_int_equal(wire->send(wire->state, c, "x", 1, 1000, &err), ST_IO);
    char byte;
    size_t length;
    assert_int_equal(wire->receive(wire->state, c, &byte, 1, 1000, &length, &err), ST_IO);
    wire->close(wire->state, c);
}

/* A peer that reads nothing and says nothing. */
static void test_redis_wire_silent_peer(void **state)
{
    (void)state;
    const struct redis_wire *wire = redis_wire_system();
    void *c = NULL;
    struct error err;
    assert_int_equal(wire->open(wire->state, &address, &no_tls, 1000, &c, &err), ST_OK);
    int peer = accept(listener, NULL, NULL);
    char byte;
    size_t length;
    assert_int_equal(wire->receive(wire->state, c, &byte, 1, 0, &length, &err), ST_TIMEOUT);
    assert_int_equal(wire->receive(wire->state, c, &byte, 1, 20, &length, &err), ST_TIMEOUT);
    static char much[1 << 20];
    enum status status = ST_OK;
    for (int i = 0; i < 64 && status == ST_OK; i++) status = wire->send(wire->state, c, much, sizeof much, 20, &err);
    assert_int_equal(status, ST_TIMEOUT);
    close(peer);
    wire->close(wire->state, c);
}

static void test_redis_wire_nobody(void **state)
{
    (void)state;
    const struct redis_wire *wire = redis_wire_system();
    void *c = NULL;
    struct error err = {""};
    struct redis_address nowhere = {.path = "/nowhere/s"}, unknown = {.host = "no-such-host.invalid", .port = 1};
    assert_int_equal(wire->open(wire->state, &nowhere, &no_tls, 1000, &c, &err), ST_IO);
    assert_non_null(strstr(err.message, "/nowhere/s"));
    assert_int_equal(wire->open(wire->state, &unknown, &no_tls, 1000, &c, &err), ST_IO);
    assert_null(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_redis_wire_peer_gone),
        cmocka_unit_test(test_redis_wire_silent_peer),
        cmocka_unit_test(test_redis_wire_nobody),
    };
    return cmocka_run_group_tests(tests, listen_at_path, close_path);
}
