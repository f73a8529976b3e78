/* Rings of minutes and slots under a clock that is told: they add up to the totals, forget what is old, and take a
 * clock that jumps. */
#include "tests/unit/unit.h"

#include "server/power/history.h"

#include <string.h>

#define T0_MS INT64_C(1763892000000) /* a whole quarter of an hour */

static struct history history;

static struct history_now after(int64_t seconds)
{
    uint64_t s = (uint64_t)seconds;
    return (struct history_now){.unix_ms = T0_MS + seconds * 1000,
                                .span = {.seconds = (double)seconds,
                                         .meter_uj = 50000000 * s,
                                         .prefill_uj = 3 * s,
                                         .decode_uj = 5 * s,
                                         .door_kwh = (double)seconds * 0.5,
                                         .paid_kwh = (double)seconds * 0.25,
                                         .paid = (double)seconds * 2,
                                         .prompt_tokens = 11 * s,
                                         .output_tokens = 7 * s},
                                .green_uj = 13 * s,
                                .location_ug = 17 * s,
                                .market_ug = 19 * s,
                                .computed_prompt_tokens = 23 * s,
                                .generated_tokens = 29 * s,
                                .running = 2,
                                .kv_share = 0.5,
                                .setpoint_w = (double)seconds};
}

static void look(int64_t seconds)
{
    struct history_now now = after(seconds);
    history_look(&history, &now);
}

static void test_history_adds_up(void **state)
{
    (void)state;
    memset(&history, 0, sizeof history);
    for (int64_t s = 1; s <= 2000; s++) look(s);
    assert_int_equal(history.minutes_count, 34);
    assert_int_equal(history.slots_count, 3);
    const struct history_entry *first = history_minute(&history, 0), *full = history_minute(&history, 1);
    assert_int_equal(first->t0_ms, T0_MS);
    assert_int_equal(first->span.prompt_tokens, 59 * 11);
    assert_true(full->t0_ms == T0_MS + 60000 && full->looks == 60 && full->seen_ms == 60000);
    assert_true(full->span.seconds == 60 && full->span.meter_uj == 3000000000 && full->span.paid == 120);
    assert_true(full->span.prefill_uj == 180 && full->span.decode_uj == 300 && full->span.output_tokens == 420);
    assert_true(full->span.door_kwh == 30 && full->span.paid_kwh == 15 && full->green_uj == 780);
    assert_true(full->location_ug == 1020 && full->market_ug == 1140 && full->running == 120);
    assert_true(full->computed_prompt_tokens == 1380 && full->generated_tokens == 1740 && full->setpoint_w == 119);
    struct cost_span minutes = history_minutes_since(&history, 0), slots = history_slots_since(&history, 0);
    assert_true(minutes.meter_uj == slots.meter_uj && slots.meter_uj == after(2000).span.meter_uj);
    assert_true(minutes.prompt_tokens == 22000 && slots.paid == 4000 && slots.seconds == 2000);
    struct cost_span late = history_minutes_since(&history, T0_MS + 31 * 60000);
    assert_int_equal(late.prompt_tokens, (2000 - 32 * 60 + 1) * 11); /* from the look of second 1920 on */
}

static void test_history_forgets(void **state)
{
    (void)state;
    memset(&history, 0, sizeof history);
    for (int64_t s = 0; s <= 2 * 86400; s += 10) look(s);
    assert_int_equal(history_held(history.minutes_count, HISTORY_MINUTES), 180);
    assert_int_equal(history_held(history.slots_count, HISTORY_SLOTS), 96);
    assert_int_equal(history_minute(&history, 179)->t0_ms, T0_MS + 2 * 86400000);
    assert_int_equal(history_minute(&history, 0)->t0_ms, T0_MS + 2 * 86400000 - 179 * 60000);
    assert_int_equal(history_slot(&history, 0)->t0_ms, T0_MS + 2 * 86400000 - 95 * 900000);
    struct cost_span day = history_slots_since(&history, T0_MS + 86400000 - 1);
    assert_int_equal(day.prompt_tokens, (95 * 900 + 10) * 11); /* the first look of the oldest covers 10 s before it */
}

/* Nothing is lost or counted twice by a clock that goes back, or by hours without a look. */
static void test_history_clock_jumps(void **state)
{
    (void)state;
    memset(&history, 0, sizeof history);
    look(0);
    look(100);
    struct history_now back = after(110);
    back.unix_ms = T0_MS - 5000000;
    history_look(&history, &back);
    assert_int_equal(history.minutes_count, 2);
    assert_int_equal(history_minute(&history, 1)->span.prompt_tokens, 110 * 11);
    assert_int_equal(history_minute(&history, 1)->seen_ms, 100000);
    look(90000);
    assert_int_equal(history.minutes_count, 3);
    assert_int_equal(history_minutes_since(&history, 0).prompt_tokens, 90000 * 11);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_history_adds_up),
        cmocka_unit_test(test_history_forgets),
        cmocka_unit_test(test_history_clock_jumps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
