/* The node's table of deferrable jobs: news, ids, planning anew, what it learns. Virtual time. */
#include "tests/unit/unit.h"

#include "server/power/plan.h"

#include <math.h>

enum { MINUTE_MS = 60000 };
static const int64_t START_MS = INT64_C(2000000) * PLAN_SLOT_MS;

struct world {
    struct plan *plan;
    struct plan_now now;
    double green_w, cap_w;
    bool tells_green;
};

static void over_slot(void *state, int64_t unix_ms, int64_t now_ms, struct power_slot *slot)
{
    const struct world *w = state;
    (void)now_ms;
    *slot = (struct power_slot){.t0_ms = unix_ms, .dur_s = 900};
    if (w->tells_green) slot->have |= SLOT_GREEN;
    slot->green_w = w->green_w;
    if (isfinite(w->cap_w)) slot->have |= SLOT_CAP;
    slot->cap_w = isfinite(w->cap_w) ? w->cap_w : 0;
}

static void world_make(struct world *w, bool tells_green)
{
    struct error err;
    *w = (struct world){.cap_w = INFINITY, .tells_green = tells_green};
    const struct plan_config config = {.jobs_max = 100, .over_slot = over_slot, .state = w};
    assert_int_equal(plan_create(&config, &w->plan, &err), ST_OK);
    w->now = (struct plan_now){
        .now_ms = START_MS, .metered = true, .idle_w = 100, .full_w = 1100, .cap_w = INFINITY, .target_w = INFINITY};
    plan_look(w->plan, &w->now);
}

static void pass(struct world *w, int64_t ms)
{
    w->now.now_ms += ms;
    plan_look(w->plan, &w->now);
}

static struct plan_job job(uint64_t id, double work, int64_t hours)
{
    return (struct plan_job){.id = id,
                             .work = work,
                             .deadline_ms = START_MS + hours * 3600000,
                             .green = PLAN_GREEN_PREFER,
                             .tier = PLAN_BATCH};
}

static enum status admit(struct world *w, const struct plan_job *one)
{
    int64_t earliest_ms;
    return plan_admit(w->plan, one, w->now.now_ms, &earliest_ms);
}

/* Waits without green, is released with it, taken back, expires; deferral is counted once. */
static void test_plan_life_of_a_job(void **state)
{
    (void)state;
    struct world w;
    struct plan_news news;
    struct plan_explanation why;
    struct plan_totals totals;
    world_make(&w, true);
    struct plan_job one = job(7, 60, 24);
    assert_int_equal(admit(&w, &one), ST_OK);
    assert_int_equal(admit(&w, &one), ST_INVAL); /* the id is taken */
    assert_false(plan_take(w.plan, &news, w.now.now_ms));
    assert_true(plan_explain(w.plan, 7, w.now.now_ms, &why));
    assert_string_equal(why.state, "waiting");
    assert_string_equal(why.why, "green");
    assert_true(why.expected_ms > w.now.now_ms && why.expected_ms < one.deadline_ms);
    w.green_w = 600;
    pass(&w, MINUTE_MS);
    assert_true(plan_take(w.plan, &news, w.now.now_ms));
    assert_int_equal(news.kind, PLAN_RELEASED);
    assert_int_equal(news.id, 7);
    assert_false(news.forced);
    w.green_w = 0;
    pass(&w, MINUTE_MS);
    assert_true(plan_take(w.plan, &news, w.now.now_ms));
    assert_int_equal(news.kind, PLAN_TAKEN_BACK);
    pass(&w, 22 * 60 * MINUTE_MS); /* there is still room for it later */
    assert_false(plan_take(w.plan, &news, w.now.now_ms));
    pass(&w, 118 * MINUTE_MS);
    assert_true(plan_take(w.plan, &news, w.now.now_ms));
    assert_int_equal(news.kind, PLAN_EXPIRED);
    assert_false(plan_take(w.plan, &news, w.now.now_ms));
    assert_false(plan_explain(w.plan, 7, w.now.now_ms, &why));
    plan_read_totals(w.plan, &totals);
    assert_int_equal(totals.deferrals, 1);
    assert_true(fabs(totals.deferral_s - 60) < 1e-9);
    assert_int_equal(totals.misses[PLAN_CAUSE_LATE], 1);
    plan_destroy(w.plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_life_of_a_job),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
