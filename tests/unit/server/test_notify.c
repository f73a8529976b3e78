/* What systemd is told: environments that are good and bad, and what is said when. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "server/notify.h"

#include <unistd.h>

static void test_notify_environments(void **state)
{
    (void)state;
    char long_path[200];
    memset(long_path, '/', sizeof long_path - 1);
    long_path[sizeof long_path - 1] = '\0';
    const struct {
        const char *socket, *us, *pid;
        enum status status;
        uint64_t beat_ns;
    } cases[] = {
        {NULL, NULL, NULL, ST_OK, 0},
        {NULL, "x", "y", ST_OK, 0}, /* nobody listens */
        {"/run/x", NULL, NULL, ST_OK, 0},
        {"@x", "3000000", NULL, ST_OK, NS_PER_S},
        {"/run/x", "3000000", "42", ST_OK, NS_PER_S},
        {"/run/x", "3000000", "43", ST_OK, 0},
        {"/run/x", "3000000", "4x", ST_INVAL, 0},
        {"/run/x", "0", NULL, ST_INVAL, 0},
        {"/run/x", "-1", NULL, ST_INVAL, 0},
        {"/run/x", "18446744073709551616", NULL, ST_INVAL, 0},
        {"/run/x", "18446744073709551615", NULL, ST_INVAL, 0},
        {"", NULL, NULL, ST_INVAL, 0},
        {"/", NULL, NULL, ST_INVAL, 0},
        {"run/x", NULL, NULL, ST_INVAL, 0},
        {"vsock:2:1", NULL, NULL, ST_INVAL, 0},
        {long_path, NULL, NULL, ST_INVAL, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct notify notify;
        struct error err = {""};
        const struct notify_environment environment = {cases[i].socket, cases[i].us, cases[i].pid, 42};
        assert_int_equal(notify_open(&environment, &notify, &err), cases[i].status);
        assert_int_equal(notify.beat_ns, cases[i].beat_ns);
        assert_int_equal(strlen(err.message) > 0, cases[i].status != ST_OK);
        notify_close(&notify);
    }
}

static void expect(struct notify *notify, enum notify_phase phase, bool alive, uint64_t ms, const char *text)
{
    char said[NOTIFY_TEXT_BYTES];
    struct notify next;
    bool any = notify_look(notify, phase, alive, ms * NS_PER_MS, said, &next);
    assert_string_equal(said, text);
    assert_int_equal(any, *text != '\0');
    *notify = next;
}

#define EXTEND "EXTEND_TIMEOUT_USEC=30000000\n"

static void test_notify_says_each_thing_when_it_is_so(void **state)
{
    (void)state;
    struct notify notify = {.fd = -1, .beat_ns = NS_PER_S};
    expect(&notify, NOTIFY_LOADING, true, 500, "STATUS=loading\n" EXTEND);
    expect(&notify, NOTIFY_LOADING, true, 600, "");
    expect(&notify, NOTIFY_LOADING, true, 1000, "WATCHDOG=1\n");
    expect(&notify, NOTIFY_LOADING, true, 5400, "WATCHDOG=1\n");
    expect(&notify, NOTIFY_LOADING, true, 5500, EXTEND);
    expect(&notify, NOTIFY_READY, true, 5600, "READY=1\nSTATUS=serving\n");
    expect(&notify, NOTIFY_READY, true, 6400, "WATCHDOG=1\n");
    expect(&notify, NOTIFY_READY, false, 60000, ""); /* N2 */
    expect(&notify, NOTIFY_READY, true, 60100, "WATCHDOG=1\n");
    notify.reloading = true;
    expect(&notify, NOTIFY_READY, true, 60200, "READY=1\nSTATUS=serving\n");
    expect(&notify, NOTIFY_READY, true, 60300, "");
    notify.reloading = true; /* and then the end: it is not ready again */
    expect(&notify, NOTIFY_STOPPING, true, 60400, "STOPPING=1\nSTATUS=draining\n" EXTEND);
    expect(&notify, NOTIFY_STOPPING, false, 61200, "");
    expect(&notify, NOTIFY_STOPPING, false, 65400, EXTEND);
    struct notify early = {.fd = -1}; /* told to end before it was ever ready */
    expect(&early, NOTIFY_STOPPING, true, 1, "STOPPING=1\nSTATUS=draining\n" EXTEND);
}

/* N3: a full socket, then one that is gone. */
static void test_notify_says_it_again(void **state)
{
    (void)state;
    char folder[] = "/tmp/millrace-notify-XXXXXX", path[64], text[512];
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/socket", folder);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof address), 0);
    struct notify notify;
    struct error err = {""};
    assert_int_equal(notify_open(&(struct notify_environment){path, "3000", NULL, 1}, &notify, &err), ST_OK);
    uint64_t ms = 10;
    for (int i = 0; i < 100000 && notify.beaten_ns == (i ? ms++ : 0) * NS_PER_MS; i++)
        notify_turn(&notify, NOTIFY_LOADING, true, ms * NS_PER_MS);
    assert_true(ms < 90000); /* the kernel's queue is full: what was not taken is not said */
    notify_turn(&notify, NOTIFY_READY, true, ms * NS_PER_MS);
    assert_int_equal(notify.told, NOTIFY_LOADING);
    while (recv(fd, text, sizeof text, 0) > 0) continue;
    notify_turn(&notify, NOTIFY_READY, true, ms * NS_PER_MS);
    assert_int_equal(notify.told, NOTIFY_READY);
    ssize_t length = recv(fd, text, sizeof text - 1, 0);
    assert_true(length > 8);
    assert_memory_equal(text, "READY=1\n", 8);
    assert_int_equal(close(fd), 0);
    notify_turn(&notify, NOTIFY_READY, true, (ms + 100) * NS_PER_MS);
    assert_int_equal(notify.fd, -1);
    notify_turn(&notify, NOTIFY_STOPPING, true, (ms + 200) * NS_PER_MS);
    notify_close(&notify);
    (void)unlink(path);
    (void)rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_notify_environments),
        cmocka_unit_test(test_notify_says_each_thing_when_it_is_so),
        cmocka_unit_test(test_notify_says_it_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
