/* The thread team: everybody runs every job, nobody passes a barrier early, more threads than processors or not, after
 * rests long enough to sleep. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/device/thread_team.h"

#include <stdatomic.h>
#include <unistd.h>

enum { THREADS_MAX = 9, ROUNDS = 200, BARRIERS = 5 };

struct shared {
    struct thread_team *team;
    uint32_t threads;
    uint32_t cells[THREADS_MAX]; /* plain memory: barriers must order it */
    _Atomic uint32_t mistakes;
};

static void meet(void *state, uint32_t thread_idx)
{
    struct shared *shared = state;
    for (uint32_t round = 0; round < BARRIERS; round++) {
        shared->cells[thread_idx]++;
        team_barrier(shared->team, thread_idx);
        for (uint32_t i = 0; i < shared->threads; i++) {
            if (shared->cells[i] != shared->cells[thread_idx]) atomic_fetch_add(&shared->mistakes, 1);
        }
        team_barrier(shared->team, thread_idx);
    }
}

static void test_thread_team_meets_at_barriers(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= THREADS_MAX; threads += threads < 4 ? 1 : 5) {
        struct shared shared = {.threads = threads};
        assert_int_equal(team_create(threads, &shared.team), ST_OK);
        assert_int_equal(team_threads(shared.team), threads);
        uint64_t before = mem_allocations();
        for (uint32_t round = 0; round < ROUNDS; round++) {
            if (round % 50 == 49) usleep(2000); /* workers fall asleep */
            team_run(shared.team, meet, &shared);
        }
        assert_int_equal(mem_allocations() - before, 0);
        assert_int_equal(shared.mistakes, 0);
        for (uint32_t i = 0; i < threads; i++) assert_int_equal(shared.cells[i], ROUNDS * BARRIERS);
        team_destroy(shared.team);
    }
}

static void test_thread_team_refuses_sizes(void **state)
{
    (void)state;
    struct thread_team *team = NULL;
    assert_int_equal(team_create(0, &team), ST_INVAL);
    assert_int_equal(team_create(TEAM_THREADS_MAX + 1, &team), ST_INVAL);
    assert_null(team);
    assert_int_equal(team_create(3, &team), ST_OK); /* never used, destroyed at once */
    team_destroy(team);
    team_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_thread_team_meets_at_barriers),
                                       cmocka_unit_test(test_thread_team_refuses_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
