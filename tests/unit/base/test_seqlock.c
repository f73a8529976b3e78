/* A reader never sees half of a change, and values never go back. */
#include "tests/unit/unit.h"

#include "runtime/base/seqlock.h"

#include <pthread.h>
#include <sched.h>

enum { WORDS = 24, WRITES = 50000, READERS = 2 };

struct shared {
    struct seqlock lock;
    _Atomic uint64_t words[WORDS];
    _Atomic uint32_t done; /* readers that have seen the last value */
};

static void *reader(void *state)
{
    struct shared *s = state;
    uint64_t value[WORDS] = {0}, last = 0;
    const char *fault = NULL;
    while (!fault && last < WRITES) {
        uint64_t sequence = seqlock_read(&s->lock, s->words, value, WORDS);
        for (uint32_t i = 1; i < WORDS; i++)
            if (value[i] != value[0]) fault = "halves of two values";
        if (value[0] < last) fault = "an older value";
        if (sequence != 2 * value[0]) fault = "another value's sequence";
        last = value[0];
    }
    atomic_fetch_add(&s->done, 1);
    return (void *)(uintptr_t)fault;
}

static void test_seqlock_gives_whole_values(void **state)
{
    (void)state;
    static struct shared s;
    pthread_t threads[READERS];
    uint64_t value[WORDS];
    for (uint32_t i = 0; i < READERS; i++) assert_int_equal(pthread_create(&threads[i], NULL, reader, &s), 0);
    for (uint64_t n = 1; n <= WRITES; n++) {
        for (uint32_t i = 0; i < WORDS; i++) value[i] = n;
        seqlock_write(&s.lock, s.words, value, WORDS);
        if (n % 1000 == 0) sched_yield();
    }
    for (uint32_t i = 0; i < READERS; i++) {
        void *fault = NULL;
        assert_int_equal(pthread_join(threads[i], &fault), 0);
        if (fault) fail_msg("%s", (const char *)fault);
    }
    assert_int_equal(atomic_load(&s.done), READERS);
    assert_int_equal(seqlock_sequence(&s.lock), 2 * WRITES);
}

struct paused {
    struct seqlock lock;
    _Atomic uint64_t words[2];
    _Atomic bool begun;
    uint64_t value[2], sequence;
};

static void *read_paused(void *state)
{
    struct paused *p = state;
    atomic_store(&p->begun, true);
    p->sequence = seqlock_read(&p->lock, p->words, p->value, 2);
    return NULL;
}

/* A writer that is stopped halfway keeps readers waiting. */
static void test_seqlock_waits_for_the_end_of_a_change(void **state)
{
    (void)state;
    static struct paused p;
    pthread_t thread;
    atomic_store(&p.words[0], 7);
    atomic_store(&p.lock.sequence, 5);
    assert_int_equal(pthread_create(&thread, NULL, read_paused, &p), 0);
    while (!atomic_load(&p.begun)) sched_yield();
    for (int i = 0; i < 1000; i++) sched_yield();
    atomic_store(&p.words[1], 7);
    atomic_store(&p.lock.sequence, 6);
    pthread_join(thread, NULL);
    assert_int_equal(p.value[0], 7);
    assert_int_equal(p.value[1], 7);
    assert_int_equal(p.sequence, 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_seqlock_gives_whole_values),
        cmocka_unit_test(test_seqlock_waits_for_the_end_of_a_change),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
