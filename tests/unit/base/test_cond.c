/* A wait ends by the monotonic clock: not before its time, and then by itself. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/base/cond.h"

static void test_cond_waits_until_the_time(void **state)
{
    (void)state;
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition;
    assert_true(cond_init(&condition));
    uint64_t until_ns = clock_now_ns(clock_system()) + 5 * NS_PER_MS;
    pthread_mutex_lock(&mutex);
    while (cond_wait_until(&condition, &mutex, until_ns)) continue; /* woken for nothing */
    assert_true(clock_now_ns(clock_system()) >= until_ns);
    assert_false(cond_wait_until(&condition, &mutex, until_ns)); /* it has passed */
    pthread_mutex_unlock(&mutex);
    pthread_cond_destroy(&condition);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cond_waits_until_the_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
