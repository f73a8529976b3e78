/* A started thread runs, has all signals blocked, and leaves its parent's mask as it was. */
#include "tests/unit/unit.h"

#include "runtime/base/thread.h"

#include <signal.h>

static void *look(void *state)
{
    pthread_sigmask(SIG_SETMASK, NULL, state);
    return state;
}

static void test_thread_takes_no_signals(void **state)
{
    (void)state;
    sigset_t before, seen, after;
    pthread_t thread;
    void *result = NULL;
    sigemptyset(&before);
    sigaddset(&before, SIGUSR1);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
    sigemptyset(&seen);
    assert_int_equal(thread_start(&thread, look, &seen), ST_OK);
    assert_int_equal(pthread_join(thread, &result), 0);
    assert_ptr_equal(result, &seen);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &after), 0);
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD, SIGPIPE, SIGALRM};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        assert_int_equal(sigismember(&seen, signals[i]), 1);
        assert_int_equal(sigismember(&after, signals[i]), signals[i] == SIGUSR1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thread_takes_no_signals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
