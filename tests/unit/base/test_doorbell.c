/* A ring is never missed, whether it comes before the sleep, while it begins or in it. A missed one is a test that
 * hangs for an hour, which its time limit ends. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/base/doorbell.h"

enum { TURNS = 20000 };

static const uint64_t hour_ns = 3600 * NS_PER_S;

static void test_doorbell_hears_what_rang_before_the_sleep(void **state)
{
    (void)state;
    struct doorbell bell;
    doorbell_init(&bell);
    uint32_t heard = doorbell_rings(&bell);
    doorbell_ring(&bell);
    doorbell_ring(&bell);
    doorbell_sleep(&bell, heard, hour_ns);
    assert_int_equal(doorbell_rings(&bell), heard + 2);
    doorbell_sleep(&bell, doorbell_rings(&bell), 1); /* nobody rings: no longer than that */
    doorbell_free(&bell);
}

struct pair {
    struct doorbell bells[2];
    _Atomic uint32_t turn;
};

/* Player 0 plays even turns, player 1 odd ones. */
static void play(struct pair *pair, uint32_t player)
{
    for (uint32_t turn = player; turn < TURNS; turn += 2) {
        for (;;) {
            uint32_t heard = doorbell_rings(&pair->bells[player]);
            if (atomic_load(&pair->turn) == turn) break;
            doorbell_sleep(&pair->bells[player], heard, hour_ns);
        }
        atomic_store(&pair->turn, turn + 1);
        doorbell_ring(&pair->bells[!player]);
    }
}

static void *second_player(void *state)
{
    play(state, 1);
    return NULL;
}

static void test_doorbell_two_threads_wake_each_other(void **state)
{
    (void)state;
    struct pair pair = {.turn = 0};
    pthread_t thread;
    for (int i = 0; i < 2; i++) doorbell_init(&pair.bells[i]);
    assert_int_equal(pthread_create(&thread, NULL, second_player, &pair), 0);
    play(&pair, 0);
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&pair.turn), TURNS);
    for (int i = 0; i < 2; i++) doorbell_free(&pair.bells[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_doorbell_hears_what_rang_before_the_sleep),
        cmocka_unit_test(test_doorbell_two_threads_wake_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
