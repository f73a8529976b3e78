/* The states of a model: every event in every state, and what the times say. */
#include "tests/unit/unit.h"

#include "server/model_life.h"

enum { T0 = 1000 };

/* A life in that state, reached by its edges. level: of ASLEEP and WAKING; of DRAINING where it leads. */
static struct model_life life_in(enum model_state state, uint32_t level)
{
    struct model_life life;
    model_life_begin(&life, T0);
    if (state == MODEL_LOADING) return life;
    if (state == MODEL_FAILED) {
        model_life_failed(&life, T0 + 10);
        return life;
    }
    model_life_loaded(&life, T0 + 500);
    if (state == MODEL_READY) return life;
    assert_int_equal(level ? model_life_sleep(&life, level, T0 + 600, 50) : model_life_unload(&life, T0 + 600, 50),
                     MODEL_BEGUN);
    if (state == MODEL_DRAINING) return life;
    model_life_emptied(&life, T0 + 620);
    if (state == MODEL_WAKING) assert_int_equal(model_life_wake(&life, T0 + 700), MODEL_BEGUN);
    assert_int_equal(life.state, state);
    return life;
}

static const struct {
    enum model_state state;
    uint32_t level;
    enum model_verdict sleep_kv, sleep_all, unload, wake;
    enum model_answer answer, answer_no_wake;
} rows[] = {
    {MODEL_LOADING, 0, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_LOADS, MODEL_LOADS},
    {MODEL_READY, 0, MODEL_BEGUN, MODEL_BEGUN, MODEL_BEGUN, MODEL_ALREADY, MODEL_SERVES, MODEL_SERVES},
    {MODEL_DRAINING, 0, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_ALREADY, MODEL_CONFLICT, MODEL_LEAVES, MODEL_LEAVES},
    {MODEL_DRAINING, 1, MODEL_ALREADY, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_LEAVES, MODEL_LEAVES},
    {MODEL_DRAINING, 2, MODEL_CONFLICT, MODEL_ALREADY, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_LEAVES, MODEL_LEAVES},
    {MODEL_ASLEEP, 1, MODEL_ALREADY, MODEL_BEGUN, MODEL_BEGUN, MODEL_BEGUN, MODEL_WAKES, MODEL_SLEEPS},
    {MODEL_ASLEEP, 2, MODEL_ALREADY, MODEL_ALREADY, MODEL_BEGUN, MODEL_BEGUN, MODEL_WAKES, MODEL_SLEEPS},
    {MODEL_WAKING, 1, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_ALREADY, MODEL_WAKES, MODEL_SLEEPS},
    {MODEL_WAKING, 2, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_ALREADY, MODEL_WAKES, MODEL_SLEEPS},
    {MODEL_FAILED, 0, MODEL_CONFLICT, MODEL_CONFLICT, MODEL_BEGUN, MODEL_BEGUN, MODEL_HAS_FAILED, MODEL_HAS_FAILED},
};

/* The verdict, and that nothing but BEGUN changes anything. */
static void check(size_t row, enum model_verdict (*event)(struct model_life *), enum model_verdict expected,
                  enum model_state next)
{
    struct model_life life = life_in(rows[row].state, rows[row].level), before = life;
    assert_int_equal(event(&life), expected);
    if (expected == MODEL_BEGUN)
        assert_int_equal(life.state, next);
    else
        assert_memory_equal(&life, &before, sizeof life);
}

static enum model_verdict sleep_kv(struct model_life *life)
{
    return model_life_sleep(life, MODEL_SLEEP_KV, T0 + 900, 0);
}
static enum model_verdict sleep_all(struct model_life *life)
{
    return model_life_sleep(life, MODEL_SLEEP_ALL, T0 + 900, 0);
}
static enum model_verdict unload(struct model_life *life)
{
    return model_life_unload(life, T0 + 900, 0);
}
static enum model_verdict wake(struct model_life *life)
{
    return model_life_wake(life, T0 + 900);
}

static void test_model_life_every_event_in_every_state(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check(i, sleep_kv, rows[i].sleep_kv, MODEL_DRAINING);
        check(i, sleep_all, rows[i].sleep_all, MODEL_DRAINING);
        check(i, unload, rows[i].unload, MODEL_DRAINING);
        check(i, wake, rows[i].wake, MODEL_WAKING);
        struct model_life life = life_in(rows[i].state, rows[i].level);
        assert_int_equal(model_life_answer(&life, true), rows[i].answer);
        assert_int_equal(model_life_answer(&life, false), rows[i].answer_no_wake);
        assert_true(strlen(model_state_name(life.state)) > 3);
    }
}

static void test_model_life_drains_to_where_it_was_sent(void **state)
{
    (void)state;
    for (uint32_t level = 0; level <= MODEL_SLEEP_ALL; level++) {
        struct model_life life = life_in(MODEL_DRAINING, level);
        assert_int_equal(life.drain_until_ns, T0 + 650);
        model_life_emptied(&life, T0 + 800);
        assert_int_equal(life.state, level ? MODEL_ASLEEP : MODEL_GONE);
        assert_int_equal(life.sleep_level, level);
    }
    struct model_life life = life_in(MODEL_READY, 0);
    assert_int_equal(model_life_unload(&life, T0, UINT64_MAX), MODEL_BEGUN);
    assert_int_equal(life.drain_until_ns, UINT64_MAX); /* no wrap */
}

static void test_model_life_times(void **state)
{
    (void)state;
    struct model_life life;
    model_life_begin(&life, T0);
    assert_int_equal(model_life_wake_estimate_ns(&life, T0), 0); /* nothing is known */
    model_life_loaded(&life, T0 + 500);
    assert_int_equal(life.load_ns, 500);
    assert_int_equal(model_life_wake_estimate_ns(&life, T0 + 501), 500); /* as from level 2 */
    assert_int_equal(model_life_sleep(&life, MODEL_SLEEP_KV, T0 + 600, 0), MODEL_BEGUN);
    model_life_emptied(&life, T0 + 601);
    assert_int_equal(model_life_wake_estimate_ns(&life, T0 + 700), 0); /* level 1 was never left yet */
    assert_int_equal(model_life_wake(&life, T0 + 700), MODEL_BEGUN);
    model_life_loaded(&life, T0 + 703);
    assert_int_equal(life.wake_ns, 3);
    assert_int_equal(life.load_ns, 500); /* of the file alone */
    assert_int_equal(model_life_sleep(&life, MODEL_SLEEP_ALL, T0 + 800, 0), MODEL_BEGUN);
    model_life_emptied(&life, T0 + 801);
    assert_int_equal(model_life_wake_estimate_ns(&life, T0 + 900), 500);
    assert_int_equal(model_life_wake(&life, T0 + 1000), MODEL_BEGUN);
    assert_int_equal(model_life_wake_estimate_ns(&life, T0 + 1100), 400); /* what is left */
    assert_int_equal(model_life_wake_estimate_ns(&life, T0 + 9000), 0);
    model_life_loaded(&life, T0 + 1350);
    assert_int_equal(life.wake_ns, 350);
    assert_int_equal(model_life_wake_estimate_ns(&life, T0 + 1400), 350); /* the last wake, no longer the load */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_model_life_every_event_in_every_state),
                                       cmocka_unit_test(test_model_life_drains_to_where_it_was_sent),
                                       cmocka_unit_test(test_model_life_times)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
