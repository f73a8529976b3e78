/* The turn between devices: one holder at a time, shares of time that do not depend on the length of steps, no cost
 * alone. How long a step "lasted" is told, not slept, and a step ends only when the others are seen to wait: so each
 * run gives the same shares. The .c is included to see who waits. */
#include "tests/unit/unit.h"

#include "runtime/device/turn.c"

#include <pthread.h>
#include <sched.h>

enum { MEMBERS_MAX = 3 };

struct shared {
    struct turn *turn;
    _Atomic uint32_t inside, mistakes, ended;
    uint32_t members;
    uint64_t until_ns;                     /* the first to have used this much ends the contest */
    uint64_t used_ns[MEMBERS_MAX];         /* the holder's to write */
    uint64_t used_at_the_end[MEMBERS_MAX]; /* copied by who ends the contest */
};

struct contender {
    struct shared *shared;
    uint32_t idx, member;
    uint64_t step_ns;
    uint64_t steps;
};

static void contest(struct contender *own)
{
    struct shared *shared = own->shared;
    bool holds = false;
    while (!atomic_load(&shared->ended) || holds) {
        if (!holds) turn_take(shared->turn, own->member);
        if (atomic_fetch_add(&shared->inside, 1) != 0) atomic_fetch_add(&shared->mistakes, 1);
        while (!atomic_load(&shared->ended) &&
               __builtin_popcount(waiting_of(atomic_load(&shared->turn->state))) + 1 < (int)shared->members)
            sched_yield();
        own->steps++;
        shared->used_ns[own->idx] += own->step_ns;
        if (!atomic_load(&shared->ended) && shared->used_ns[own->idx] >= shared->until_ns) {
            memcpy(shared->used_at_the_end, shared->used_ns, sizeof shared->used_ns);
            atomic_store(&shared->ended, 1);
        }
        atomic_fetch_sub(&shared->inside, 1);
        if (atomic_load(&shared->ended)) {
            turn_give(shared->turn, own->member);
            return;
        }
        holds = turn_keep(shared->turn, own->member, own->step_ns);
    }
}

static void *contest_thread(void *state)
{
    contest(state);
    return NULL;
}

static void check_shares(const uint64_t *steps_ns, uint32_t members)
{
    struct shared shared = {.members = members, .until_ns = UINT64_C(4000000000)};
    struct contender contenders[MEMBERS_MAX];
    pthread_t threads[MEMBERS_MAX];
    uint64_t longest_ns = 0;
    assert_int_equal(turn_create(&shared.turn), ST_OK);
    for (uint32_t i = 0; i < members; i++) {
        contenders[i] = (struct contender){&shared, i, 0, steps_ns[i], 0};
        assert_int_equal(turn_join(shared.turn, &contenders[i].member), ST_OK);
        if (steps_ns[i] > longest_ns) longest_ns = steps_ns[i];
    }
    for (uint32_t i = 0; i < members; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, contest_thread, &contenders[i]), 0);
    for (uint32_t i = 0; i < members; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(shared.mistakes, 0);
    uint64_t bound_ns = longest_ns + 2 * TURN_SLICE_NS; /* of deficit round robin: a slice and the longest step */
    for (uint32_t i = 0; i < members; i++)
        if (shared.used_at_the_end[i] + bound_ns < shared.until_ns ||
            shared.used_at_the_end[i] > shared.until_ns + bound_ns)
            fail_msg("member %u has used %llu ns where another has used %llu", i,
                     (unsigned long long)shared.used_at_the_end[i], (unsigned long long)shared.until_ns);
    for (uint32_t i = 0; i < members; i++) turn_leave(shared.turn, contenders[i].member);
    turn_destroy(shared.turn);
}

static void test_turn_shares_are_of_time(void **state)
{
    (void)state;
    static const uint64_t cases[][MEMBERS_MAX] = {
        {1000000, 1000000, 0}, {12000000, 12000000, 0}, {80000000, 3000000, 0}, {80000000, 3000000, 700000}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_shares(cases[i], cases[i][2] ? 3 : 2);
}

static void test_turn_alone_keeps_it(void **state)
{
    (void)state;
    struct turn *turn = NULL;
    uint32_t member = 0, other = 0;
    assert_int_equal(turn_create(&turn), ST_OK);
    assert_int_equal(turn_join(turn, &member), ST_OK);
    assert_int_equal(turn_join(turn, &other), ST_OK); /* is there and does nothing */
    assert_int_not_equal(member, other);
    for (int round = 0; round < 3; round++) {
        turn_take(turn, member);
        for (int step = 0; step < 100; step++) assert_true(turn_keep(turn, member, 5 * TURN_SLICE_NS));
        turn_give(turn, member);
        turn_take(turn, other);
        turn_give(turn, other);
    }
    turn_leave(turn, member);
    turn_leave(turn, other);
    turn_destroy(turn);
}

/* In two parts, as who runs a step ahead keeps it: due when the slice is used up and another waits, handed on later. */
static void *take_and_give(void *state)
{
    struct shared *shared = state;
    turn_take(shared->turn, 1);
    atomic_fetch_add(&shared->inside, 1);
    turn_give(shared->turn, 1);
    return NULL;
}

static void test_turn_is_due_before_it_is_passed(void **state)
{
    (void)state;
    struct shared shared = {.members = 2};
    uint32_t members[2] = {0};
    pthread_t thread;
    assert_int_equal(turn_create(&shared.turn), ST_OK);
    for (int i = 0; i < 2; i++) assert_int_equal(turn_join(shared.turn, &members[i]), ST_OK);
    turn_take(shared.turn, members[0]);
    for (int i = 0; i < 9; i++) assert_false(turn_charge(shared.turn, members[0], TURN_SLICE_NS)); /* alone */
    assert_int_equal(pthread_create(&thread, NULL, take_and_give, &shared), 0);
    while (!waiting_of(atomic_load(&shared.turn->state))) sched_yield();
    assert_false(turn_charge(shared.turn, members[0], TURN_SLICE_NS / 2));
    assert_true(turn_charge(shared.turn, members[0], TURN_SLICE_NS / 2));
    assert_true(turn_charge(shared.turn, members[0], TURN_SLICE_NS / 2)); /* the step that was under way */
    assert_int_equal(shared.inside, 0);
    assert_int_equal(holder_of(atomic_load(&shared.turn->state)), members[0] + 1);
    assert_false(turn_pass(shared.turn, members[0]));
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(shared.inside, 1);
    assert_int_equal(shared.turn->members[members[0]].credit_ns, -(int64_t)TURN_SLICE_NS / 2); /* it owes that step */
    for (int i = 0; i < 2; i++) turn_leave(shared.turn, members[i]);
    turn_destroy(shared.turn);
}

static void test_turn_places_are_bounded_and_used_again(void **state)
{
    (void)state;
    struct turn *turn = NULL;
    uint32_t members[TURN_MEMBERS_MAX] = {0}, more = 0;
    assert_int_equal(turn_create(&turn), ST_OK);
    for (uint32_t i = 0; i < TURN_MEMBERS_MAX; i++) assert_int_equal(turn_join(turn, &members[i]), ST_OK);
    assert_int_equal(turn_join(turn, &more), ST_LIMIT);
    turn_leave(turn, members[7]);
    assert_int_equal(turn_join(turn, &more), ST_OK);
    assert_int_equal(more, members[7]);
    for (uint32_t i = 0; i < TURN_MEMBERS_MAX; i++) turn_leave(turn, members[i]);
    turn_destroy(turn);
}

/* Engines are made on one thread and ended on others: a place that two writers lose is never free again, or twice. */
static void *come_and_go(void *state)
{
    struct turn *turn = state;
    for (int round = 0; round < 20000; round++) {
        uint32_t members[2] = {0};
        for (int i = 0; i < 2; i++)
            if (turn_join(turn, &members[i]) != ST_OK) return turn;
        if (members[0] == members[1]) return turn;
        for (int i = 0; i < 2; i++) turn_leave(turn, members[i]);
    }
    return NULL;
}

static void test_turn_threads_join_and_leave_at_once(void **state)
{
    (void)state;
    struct turn *turn = NULL;
    pthread_t threads[4];
    assert_int_equal(turn_create(&turn), ST_OK);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, come_and_go, turn), 0);
    for (int i = 0; i < 4; i++) {
        void *failed = NULL;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    turn_destroy(turn); /* checks that no place is taken */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_turn_shares_are_of_time),
                                       cmocka_unit_test(test_turn_alone_keeps_it),
                                       cmocka_unit_test(test_turn_is_due_before_it_is_passed),
                                       cmocka_unit_test(test_turn_places_are_bounded_and_used_again),
                                       cmocka_unit_test(test_turn_threads_join_and_leave_at_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
