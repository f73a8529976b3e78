/* The rules of deferrable work (D1-D4) by hand and against plain computations. Deterministic; seeds are printed. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "scheduler/deadline.h"

#include <math.h>

enum { SLOT_MS = 900000, JOBS = 64 };
static const int64_t START_MS = INT64_C(2000000) * SLOT_MS;

struct news {
    uint32_t released[JOBS], back[JOBS], released_count, back_count;
};

static void note(void *state, const struct deadline_news *news)
{
    struct news *all = state;
    if (news->released)
        all->released[all->released_count++] = news->job;
    else
        all->back[all->back_count++] = news->job;
}

static struct deadline *make(uint32_t jobs, uint32_t margin)
{
    struct deadline *d;
    struct error err;
    const struct deadline_config config = {jobs, margin, SLOT_MS};
    assert_int_equal(deadline_create(&config, &d, &err), ST_OK);
    return d;
}

static void flat(struct deadline *d, int64_t now_ms, uint32_t count, double capacity, double green,
                 enum deadline_policy policy, bool hold)
{
    static struct deadline_slot slots[DEADLINE_SLOTS_MAX];
    for (uint32_t i = 0; i < count; i++)
        slots[i] = (struct deadline_slot){.capacity = capacity, .likely = capacity, .green = green};
    deadline_profile(d, now_ms, slots, count, policy, hold);
}

static struct deadline_job job(double work, int64_t in_slots, enum deadline_mode mode)
{
    return (struct deadline_job){.work = work, .deadline_ms = START_MS + in_slots * SLOT_MS, .mode = mode};
}

/* D1 by hand: 10 a slot, two in reserve, so a job due in 6 slots has 40. */
static void test_deadline_admits_what_fits_before_the_margin(void **state)
{
    (void)state;
    struct deadline *d = make(JOBS, 2);
    uint32_t idx;
    int64_t earliest_ms;
    flat(d, START_MS, 100, 10, 0, DEADLINE_GREEN, false);
    struct deadline_job fits = job(40, 6, DEADLINE_PREFER), more = job(1, 6, DEADLINE_PREFER),
                        earlier = job(1, 5, DEADLINE_PREFER);
    assert_int_equal(deadline_admit(d, &fits, START_MS, &idx, &earliest_ms), ST_OK);
    assert_int_equal(deadline_admit(d, &more, START_MS, &idx, &earliest_ms), ST_LIMIT);
    assert_int_equal(earliest_ms, START_MS + 7 * SLOT_MS);
    assert_int_equal(deadline_admit(d, &earlier, START_MS, &idx, &earliest_ms),
                     ST_LIMIT); /* it would make `fits` late */
    more.deadline_ms = earliest_ms;
    assert_int_equal(deadline_admit(d, &more, START_MS, &idx, &earliest_ms), ST_OK);
    more.deadline_ms = START_MS; /* passed */
    assert_int_equal(deadline_admit(d, &more, START_MS, &idx, &earliest_ms), ST_INVAL);
    more.work = NAN;
    assert_int_equal(deadline_enter(d, &more, START_MS, &idx), ST_INVAL);
    deadline_destroy(d);
}

/* Half of the slot is over: half of its capacity counts. */
static void test_deadline_counts_the_rest_of_this_slot(void **state)
{
    (void)state;
    struct deadline *d = make(JOBS, 0);
    uint32_t idx;
    int64_t earliest_ms, now_ms = START_MS + SLOT_MS / 2;
    flat(d, now_ms, 4, 10, 0, DEADLINE_GREEN, false);
    struct deadline_job five = job(5, 1, DEADLINE_PREFER), one = job(1, 1, DEADLINE_PREFER);
    assert_int_equal(deadline_admit(d, &five, now_ms, &idx, &earliest_ms), ST_OK);
    assert_int_equal(deadline_admit(d, &one, now_ms, &idx, &earliest_ms), ST_LIMIT);
    assert_int_equal(earliest_ms, START_MS + 2 * SLOT_MS);
    one.work = 1000; /* beyond all that is known */
    assert_int_equal(deadline_admit(d, &one, now_ms, &idx, &earliest_ms), ST_LIMIT);
    assert_int_equal(earliest_ms, 0);
    deadline_destroy(d);
}

/* D2: nothing green; what cannot wait starts, and no more. */
static void test_deadline_starts_what_is_needed(void **state)
{
    (void)state;
    struct deadline *d = make(JOBS, 2);
    struct news news = {0};
    uint32_t early, late;
    int64_t earliest_ms;
    flat(d, START_MS, 100, 10, 0, DEADLINE_GREEN, false);
    struct deadline_job a = job(10, 4, DEADLINE_PREFER), b = job(1, 50, DEADLINE_PREFER);
    assert_int_equal(deadline_admit(d, &a, START_MS, &early, &earliest_ms), ST_OK);
    assert_int_equal(deadline_admit(d, &b, START_MS, &late, &earliest_ms), ST_OK);
    assert_int_equal(deadline_choose(d, START_MS, note, &news), 0); /* the next slot has room for all of it */
    int64_t next_ms = START_MS + SLOT_MS;
    assert_int_equal(deadline_expected_ms(d, early, START_MS), next_ms);
    flat(d, next_ms, 100, 10, 0, DEADLINE_GREEN, true); /* even in an event (D4) */
    assert_int_equal(deadline_choose(d, next_ms, note, &news), 1);
    assert_int_equal(news.released[0], early);
    assert_int_equal(deadline_reason(d, early), DEADLINE_BY_NEED);
    assert_int_equal(deadline_reason(d, late), DEADLINE_WAITS_EVENT);
    deadline_destroy(d);
}

/* D3: green work on offer in EDF order, and only so much; what was done counts against it. */
static void test_deadline_follows_green_in_edf_order(void **state)
{
    (void)state;
    struct deadline *d = make(JOBS, 2);
    struct news news = {0};
    uint32_t idx[4];
    int64_t earliest_ms;
    flat(d, START_MS, 100, 10, 5, DEADLINE_GREEN, false);
    static const int64_t ends[4] = {40, 30, 20, 25};
    for (int i = 0; i < 4; i++) {
        struct deadline_job one = job(2.5, ends[i], DEADLINE_PREFER);
        assert_int_equal(deadline_admit(d, &one, START_MS, &idx[i], &earliest_ms), ST_OK);
    }
    assert_int_equal(deadline_choose(d, START_MS, note, &news), 2);
    assert_int_equal(news.released[0], idx[2]);
    assert_int_equal(news.released[1], idx[3]);
    deadline_start(d, idx[2]);
    deadline_left(d, idx[2], 0);
    deadline_remove(d, idx[2], true);
    assert_int_equal(deadline_choose(d, START_MS, note, &news), 0); /* 2.5 of 5 are done, 2.5 are out */
    deadline_start(d, idx[3]);
    deadline_remove(d, idx[3], true); /* ended at once: its green is there again */
    assert_int_equal(deadline_choose(d, START_MS, note, &news), 1);
    assert_int_equal(news.released[2], idx[1]);
    flat(d, START_MS, 100, 10, 0, DEADLINE_GREEN, false); /* the wind is gone before it has started */
    assert_int_equal(deadline_choose(d, START_MS, note, &news), 1);
    assert_int_equal(news.back[0], idx[1]);
    assert_int_equal(deadline_reason(d, idx[1]), DEADLINE_WAITS_GREEN);
    deadline_destroy(d);
}

static void test_deadline_modes_and_events(void **state)
{
    (void)state;
    struct deadline *d = make(JOBS, 2);
    struct news news = {0};
    uint32_t any, only, flex, idx;
    int64_t earliest_ms;
    flat(d, START_MS, 100, 10, 0, DEADLINE_GREEN, false);
    struct deadline_job a = job(1, 40, DEADLINE_ANY), o = job(1, 4, DEADLINE_ONLY), f = job(1, 96, DEADLINE_FLEX);
    assert_int_equal(deadline_admit(d, &a, START_MS, &any, &earliest_ms), ST_OK);
    assert_int_equal(deadline_admit(d, &o, START_MS, &only, &earliest_ms), ST_OK);
    assert_int_equal(deadline_admit(d, &f, START_MS, &flex, &earliest_ms), ST_OK);
    f.work = 10; /* more than a slot's length takes */
    assert_int_equal(deadline_admit(d, &f, START_MS, &idx, &earliest_ms), ST_LIMIT);
    assert_int_equal(earliest_ms, START_MS + SLOT_MS);
    assert_int_equal(deadline_expected_ms(d, only, START_MS), 0); /* no green ahead */
    assert_int_equal(deadline_choose(d, START_MS, note, &news), 2);
    assert_true(deadline_is_released(d, any) && deadline_is_released(d, flex) && !deadline_is_released(d, only));
    deadline_start(d, any);
    deadline_hold(d, true);
    assert_int_equal(deadline_choose(d, START_MS, note, &news), 1); /* what has started is the engine's to hold */
    assert_int_equal(news.back[0], flex);
    f.work = 1;
    assert_int_equal(deadline_admit(d, &f, START_MS, &idx, &earliest_ms), ST_LIMIT);
    assert_int_equal(deadline_enter(d, &a, START_MS, &idx), ST_OK);
    assert_int_equal(deadline_choose(d, START_MS, note, &news), 0); /* D4 */
    deadline_remove(d, idx, false);
    deadline_hold(d, false);
    assert_int_equal(deadline_choose(d, START_MS, note, &news), 1);
    deadline_start(d, flex);
    int64_t late_ms = START_MS + 4 * SLOT_MS;
    assert_int_equal(deadline_expired(d, late_ms - 1), DEADLINE_NONE);
    assert_int_equal(deadline_expired(d, late_ms), only);
    deadline_remove(d, only, false);
    assert_int_equal(deadline_expired(d, START_MS + 39 * SLOT_MS), DEADLINE_NONE);
    assert_int_equal(deadline_expired(d, START_MS + 1000 * (int64_t)SLOT_MS), any);
    deadline_remove(d, any, false);
    assert_int_equal(deadline_expired(d, START_MS + 1000 * (int64_t)SLOT_MS), DEADLINE_NONE); /* flex that runs */
    deadline_destroy(d);
}

/* EDF holds over the modes together, and not within each. */
static void test_deadline_orders_all_modes_by_deadline(void **state)
{
    (void)state;
    struct deadline *d = make(JOBS, 2);
    struct news news = {0};
    uint32_t idx[4];
    static const int64_t ends[4] = {40, 20, 10, 30};
    static const enum deadline_mode modes[4] = {DEADLINE_ANY, DEADLINE_PREFER, DEADLINE_ANY, DEADLINE_ONLY};
    flat(d, START_MS, 100, 10, 0, DEADLINE_FREE, false);
    for (int i = 0; i < 4; i++) {
        struct deadline_job one = job(1, ends[i], modes[i]);
        assert_int_equal(deadline_enter(d, &one, START_MS, &idx[i]), ST_OK);
    }
    assert_int_equal(deadline_choose(d, START_MS, note, &news), 4);
    static const int order[4] = {2, 1, 3, 0};
    for (int i = 0; i < 4; i++) assert_int_equal(news.released[i], idx[order[i]]);
    deadline_destroy(d);
}

/* A cheaper slot ahead has room for all that is there. Where work has come in each slot so far, later work will fill
 * it, and a job runs now at a middling price; where none has come, it waits. */
static void test_deadline_leaves_cheap_slots_to_later_work(void **state)
{
    (void)state;
    static struct deadline_slot slots[60];
    for (int come = 0; come < 2; come++) {
        struct deadline *d = make(JOBS, 2);
        struct news news = {0};
        uint32_t idx;
        int64_t now_ms = START_MS;
        for (int slot = 0; slot < 20; slot++, now_ms += SLOT_MS) {
            flat(d, now_ms, 60, 10, 0, DEADLINE_GREEN, false);
            struct deadline_job one = job(10, slot + 20, DEADLINE_PREFER);
            if (!come) continue;
            assert_int_equal(deadline_enter(d, &one, now_ms, &idx), ST_OK);
            deadline_remove(d, idx, false);
        }
        for (int i = 0; i < 60; i++)
            slots[i] = (struct deadline_slot){.capacity = 10,
                                              .likely = 10,
                                              .priced = true,
                                              .price = i == 0   ? 2
                                                       : i == 3 ? 1
                                                                : 3};
        deadline_profile(d, now_ms, slots, 60, DEADLINE_PRICE, false);
        struct deadline_job held = job(5, 40, DEADLINE_PREFER);
        assert_int_equal(deadline_enter(d, &held, now_ms, &idx), ST_OK);
        assert_int_equal(deadline_choose(d, now_ms, note, &news), come);
        deadline_destroy(d);
    }
}

/* Forecasts of 2.0 for the slots 1 to 6 stand beside a known price of 3.0 and one another of 2.2: by what is around
 * them, slot 7 is the cheapest (2.11); alone it would be slot 1, and so it would by forecasts only (2.01). */
static void test_deadline_weighs_forecasts_by_what_is_known(void **state)
{
    (void)state;
    static struct deadline_slot slots[30];
    struct deadline_outlook ahead[30];
    struct deadline *d = make(JOBS, 2);
    uint32_t idx;
    for (int i = 0; i < 30; i++)
        slots[i] = (struct deadline_slot){.capacity = 10,
                                          .likely = 10,
                                          .priced = true,
                                          .forecast = i > 0,
                                          .price = i == 0  ? 3
                                                   : i < 7 ? 2
                                                           : 2.2};
    deadline_profile(d, START_MS, slots, 30, DEADLINE_PRICE, false);
    struct deadline_job held = job(5, 28, DEADLINE_PREFER);
    assert_int_equal(deadline_enter(d, &held, START_MS, &idx), ST_OK);
    deadline_look_ahead(d, START_MS, ahead, 30);
    for (int i = 0; i < 30; i++) assert_true(ahead[i].cheap == (i == 7 ? 5 : 0));
    deadline_destroy(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deadline_admits_what_fits_before_the_margin),
        cmocka_unit_test(test_deadline_counts_the_rest_of_this_slot),
        cmocka_unit_test(test_deadline_starts_what_is_needed),
        cmocka_unit_test(test_deadline_follows_green_in_edf_order),
        cmocka_unit_test(test_deadline_modes_and_events),
        cmocka_unit_test(test_deadline_orders_all_modes_by_deadline),
        cmocka_unit_test(test_deadline_leaves_cheap_slots_to_later_work),
        cmocka_unit_test(test_deadline_weighs_forecasts_by_what_is_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
