/* The node's table of deferrable jobs: news, ids, planning anew, what it learns. Virtual time. */
#include "tests/unit/unit.h"

#include "runtime/base/json.h"
#include "runtime/base/random.h"
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

/* Green power to spare: the next quarter of an hour's, less all own work, none without green, without word of it or in
 * an event. */
static void test_plan_surplus(void **state)
{
    (void)state;
    struct world w;
    world_make(&w, true);
    assert_true(plan_surplus(w.plan, w.now.now_ms) == 0);
    w.green_w = 1100; /* pays for all of the device */
    pass(&w, MINUTE_MS);
    double all = plan_surplus(w.plan, w.now.now_ms);
    assert_true(all > 300 && all <= 900);
    assert_true(fabs(plan_surplus(w.plan, w.now.now_ms + 5 * MINUTE_MS) - all) < 300); /* the next slot counts too */
    struct plan_job one = job(7, 100, 24);
    assert_int_equal(admit(&w, &one), ST_OK);
    assert_true(fabs(all - 100 - plan_surplus(w.plan, w.now.now_ms)) < 1e-6); /* own work comes first */
    plan_remove(w.plan, 7, PLAN_CANCELED, -1);
    w.now.shed_level = 1;
    pass(&w, 1000);
    assert_true(plan_surplus(w.plan, w.now.now_ms) == 0);
    plan_destroy(w.plan);
    world_make(&w, false);
    assert_true(plan_surplus(w.plan, w.now.now_ms) == 0);
    plan_destroy(w.plan);
}

/* A lowered cap takes capacity at once, not with the next minute; the cause of a miss is told. */
static void test_plan_a_cap_counts_at_once(void **state)
{
    (void)state;
    struct world w;
    struct plan_news news;
    struct plan_totals totals;
    int64_t earliest_ms;
    world_make(&w, true);
    struct plan_job one = job(1, 8000, 4), two = job(2, 8000, 8),
                    more = job(3, 100, 8); /* 0.75 of the device is left */
    assert_int_equal(admit(&w, &one), ST_OK);
    w.now.cap_w = 600; /* half of the range */
    pass(&w, 1);
    assert_int_equal(plan_admit(w.plan, &two, w.now.now_ms, &earliest_ms), ST_LIMIT);
    assert_true(earliest_ms > two.deadline_ms);
    two.deadline_ms = earliest_ms;
    assert_int_equal(plan_admit(w.plan, &two, w.now.now_ms, &earliest_ms), ST_OK);
    w.now.cap_w = 100; /* nothing above idle */
    pass(&w, 1);
    assert_int_equal(admit(&w, &more), ST_LIMIT);
    pass(&w, 5 * 60 * MINUTE_MS);
    assert_true(plan_take(w.plan, &news, w.now.now_ms));
    assert_int_equal(news.kind, PLAN_EXPIRED);
    assert_int_equal(news.cause, PLAN_CAUSE_CAP);
    plan_read_totals(w.plan, &totals);
    assert_int_equal(totals.misses[PLAN_CAUSE_CAP], 1);
    assert_int_equal(totals.refused, 2);
    plan_destroy(w.plan);
}

/* An event takes back what has not started, refuses flex, and lets go what its deadline asks for. */
static void test_plan_an_event_holds_all_but_what_must(void **state)
{
    (void)state;
    struct world w;
    struct plan_news news;
    struct plan_explanation why;
    world_make(&w, false);
    struct plan_job later = job(1, 60, 24), flex = job(3, 1, 24);
    flex.tier = PLAN_FLEX;
    assert_int_equal(admit(&w, &later), ST_OK);
    assert_true(plan_take(w.plan, &news, w.now.now_ms)); /* nobody tells of green: it may run */
    assert_int_equal(news.kind, PLAN_RELEASED);
    assert_false(news.forced);
    w.now.shed_level = 1;
    pass(&w, 1);
    assert_true(plan_take(w.plan, &news, w.now.now_ms));
    assert_int_equal(news.kind, PLAN_TAKEN_BACK);
    assert_int_equal(admit(&w, &flex), ST_LIMIT);
    assert_true(plan_explain(w.plan, 1, w.now.now_ms, &why));
    assert_string_equal(why.why, "event");
    pass(&w, (23 * 60 + 40) * MINUTE_MS);
    assert_true(plan_take(w.plan, &news, w.now.now_ms));
    assert_int_equal(news.kind, PLAN_RELEASED);
    assert_true(news.forced);
    w.now.shed_level = 0;
    pass(&w, 1);
    assert_int_equal(admit(&w, &flex), ST_OK);
    plan_destroy(w.plan);
}

/* What steps cost is learnt, and what interactive requests take: an idle device has more to promise than a busy one. */
static void test_plan_learns_cost_and_interactive_work(void **state)
{
    (void)state;
    struct world w;
    struct plan_totals totals;
    world_make(&w, true);
    const struct plan_request request = {100, 100, 1};
    for (int minute = 0; minute < 120; minute++) { /* steps of 20 rows, 50 ms; half of the device */
        for (int second = 0; second < 60; second++) {
            w.now.busy_s += 0.5;
            w.now.steps += 10;
            w.now.output_tokens += 200 - second;
            w.now.prompt_tokens += 100 + 7 * second;
            w.now.work_j += 400 * 0.5;
            pass(&w, 1000);
        }
    }
    plan_read_totals(w.plan, &totals);
    assert_true(fabs(totals.interactive - 0.5) < 0.02);
    double work = plan_work(w.plan, &request);
    assert_true(work > 0.1 && work < 2); /* 100 of rows that share steps of 50 ms by some 17, and a prompt */
    assert_true(plan_span_ms(w.plan, &request) > 3000 && plan_span_ms(w.plan, &request) < 8000);
    struct plan_job much = job(1, 21.5 * 3600 * 0.52, 24),
                    less = job(2, 21.5 * 3600 * 0.48, 24); /* two hours are over, and two slots kept */
    assert_int_equal(admit(&w, &much), ST_LIMIT);
    assert_int_equal(admit(&w, &less), ST_OK);
    plan_destroy(w.plan);
}

/* Ids come and go in any order; the table agrees with a list. */
static void test_plan_finds_ids(void **state)
{
    (void)state;
    struct world w;
    bool held[300] = {false};
    uint32_t count = 0;
    uint64_t rng = 11;
    world_make(&w, true);
    for (int i = 0; i < 20000; i++) {
        uint64_t id = 1 + random_next(&rng) % 299;
        struct plan_job one = job(id, 0.001, 20);
        if (held[id]) {
            assert_int_equal(plan_enter(w.plan, &one, w.now.now_ms), ST_INVAL);
            plan_remove(w.plan, id, PLAN_CANCELED, -1);
            held[id] = false;
            count--;
        } else {
            assert_int_equal(plan_enter(w.plan, &one, w.now.now_ms), count < 100 ? ST_OK : ST_AGAIN);
            held[id] = count < 100;
            count += held[id];
        }
        struct plan_explanation why;
        uint64_t other = 1 + random_next(&rng) % 299;
        assert_int_equal(plan_explain(w.plan, other, w.now.now_ms, &why), held[other]);
    }
    plan_destroy(w.plan);
}

/* A used-up job of an earlier life is entered without proof; what it used is given back at its end. */
static void test_plan_progress_and_a_second_life(void **state)
{
    (void)state;
    struct world w;
    struct plan_news news;
    struct plan_totals totals;
    world_make(&w, true);
    w.green_w = 1100;
    pass(&w, MINUTE_MS);
    struct plan_job big = job(5, 1e6, 2);
    assert_int_equal(admit(&w, &big), ST_LIMIT);
    assert_int_equal(plan_enter(w.plan, &big, w.now.now_ms), ST_OK);
    assert_true(plan_take(w.plan, &news, w.now.now_ms));
    assert_true(plan_released(w.plan, 5));
    plan_started(w.plan, 5);
    plan_progress(w.plan, 5, 1e6 - 30);
    plan_progress(w.plan, 5, 2e6); /* never more than before */
    plan_read_totals(w.plan, &totals);
    assert_true(fabs(totals.sums.spent - 30) < 1e-6);
    plan_again(w.plan, 5, 1e6); /* its engine is gone */
    assert_false(plan_released(w.plan, 5));
    plan_remove(w.plan, 5, PLAN_DONE, -1);
    plan_remove(w.plan, 5, PLAN_DONE, -1); /* not known: nothing */
    plan_read_totals(w.plan, &totals);
    assert_int_equal(totals.done, 1);
    assert_int_equal(totals.sums.waiting + totals.sums.released, 0);
    plan_destroy(w.plan);
}

static void test_plan_is_shown(void **state)
{
    (void)state;
    struct world w;
    struct buf out;
    struct json *root;
    struct error err;
    world_make(&w, true);
    for (uint64_t id = 1; id <= 5; id++) {
        struct plan_job one = job(id, 100, 10 - (int64_t)id);
        assert_int_equal(admit(&w, &one), ST_OK);
    }
    buf_init(&out, 0);
    plan_print(w.plan, w.now.now_ms, 3, &out);
    assert_int_equal(json_read(out.data, out.length, &root, &err), ST_OK);
    const struct json *jobs = json_member(root, "jobs");
    assert_int_equal(json_length(jobs), 3);
    assert_int_equal(json_to_int(json_member(json_at(jobs, 0), "deadline")), START_MS / 1000 + 5 * 3600);
    assert_int_equal(json_to_int(json_member(root, "waiting")), 5);
    double planned = 0;
    const struct json *slots = json_member(root, "slots");
    for (size_t i = 0; i < json_length(slots); i++)
        planned += json_to_number(json_member(json_member(json_at(slots, i), "planned_s"), "deadline"));
    assert_true(fabs(planned - 500) < 1e-3); /* all of it, as there is no green */
    json_release(root);
    buf_clear(&out);
    plan_print_metrics(w.plan, &out);
    buf_append_char(&out, '\0');
    assert_non_null(strstr(out.data, "mr_deferred_jobs{engine=\"0\",state=\"waiting\"} 5\n"));
    buf_free(&out);
    plan_destroy(w.plan);
}

/* A node that has just started under a low target knows nothing of its interactive requests: they are paced like all,
 * and what there is is not taken for theirs alone. */
static void test_plan_promises_what_a_low_target_leaves(void **state)
{
    (void)state;
    struct world w;
    world_make(&w, false);
    w.now.target_w = 300; /* a fifth of the work */
    pass(&w, 1000);
    struct plan_job fits = job(1, 3600, 24), too_much = job(2, 5 * 3600, 24);
    assert_int_equal(admit(&w, &fits), ST_OK);
    assert_int_equal(admit(&w, &too_much), ST_LIMIT);
    plan_destroy(w.plan);
}

/* Released and taken back before it was told: nothing is told. */
static void test_plan_tells_no_news_that_cancel_out(void **state)
{
    (void)state;
    struct world w;
    struct plan_news news;
    world_make(&w, true);
    struct plan_job one = job(1, 60, 20), two = job(2, 60, 24);
    assert_int_equal(admit(&w, &one), ST_OK);
    assert_int_equal(admit(&w, &two), ST_OK);
    w.green_w = 800;
    pass(&w, MINUTE_MS);
    assert_true(plan_take(w.plan, &news, w.now.now_ms));
    assert_int_equal(news.id, 1);
    assert_true(plan_released(w.plan, 2)); /* not told yet */
    w.green_w = 0;
    pass(&w, MINUTE_MS);
    assert_true(plan_take(w.plan, &news, w.now.now_ms));
    assert_int_equal(news.id, 1);
    assert_int_equal(news.kind, PLAN_TAKEN_BACK);
    assert_false(plan_take(w.plan, &news, w.now.now_ms));
    plan_destroy(w.plan);
}

/* Its deadline lets it go, but there is no event: it goes to the engine as what it is. */
static void test_plan_forces_only_in_an_event(void **state)
{
    (void)state;
    for (int event = 0; event < 2; event++) {
        struct world w;
        struct plan_news news;
        struct plan_explanation why;
        world_make(&w, true);
        struct plan_job one = job(1, 60, 4);
        assert_int_equal(admit(&w, &one), ST_OK);
        w.now.shed_level = (uint32_t)event;
        pass(&w, 220 * MINUTE_MS);
        assert_true(plan_take(w.plan, &news, w.now.now_ms));
        assert_int_equal(news.kind, PLAN_RELEASED);
        assert_true(plan_explain(w.plan, 1, w.now.now_ms, &why));
        assert_string_equal(why.why, "deadline");
        assert_int_equal(news.forced, event);
        plan_destroy(w.plan);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_life_of_a_job),
        cmocka_unit_test(test_plan_surplus),
        cmocka_unit_test(test_plan_a_cap_counts_at_once),
        cmocka_unit_test(test_plan_an_event_holds_all_but_what_must),
        cmocka_unit_test(test_plan_learns_cost_and_interactive_work),
        cmocka_unit_test(test_plan_finds_ids),
        cmocka_unit_test(test_plan_progress_and_a_second_life),
        cmocka_unit_test(test_plan_is_shown),
        cmocka_unit_test(test_plan_promises_what_a_low_target_leaves),
        cmocka_unit_test(test_plan_tells_no_news_that_cancel_out),
        cmocka_unit_test(test_plan_forces_only_in_an_event),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
