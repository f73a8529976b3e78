/* The fast loop and the bucket against a plant in virtual time: eight GPUs' worth of watts, steps of 20 ms whose work
 * comes in bursts, a counter that moves every 100 ms, a gain that is wrong. Deterministic; the seed is printed. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "runtime/power/plant.h"
#include "scheduler/throttle.h"

#include <math.h>

static const double IDLE_W = 900, RANGE_W = 4200, STEP_S = 0.020, SLICE_S = 0.001;
enum { SEEDS = 24, SECONDS_MAX = 130 };

struct world {
    struct plant plant;
    struct throttle throttle;
    struct joule_bucket bucket;
    uint64_t rng;
    double now_s, sampled_s, sampled_j, work_j; /* of the window */
    double demand;                              /* share of the range that traffic would take */
    bool limited;
    double joules_at[SECONDS_MAX * 1000 + 1000]; /* the plant's energy after each millisecond */
    uint32_t slices;
};

static bool near(double a, double b)
{
    return fabs(a - b) < 1e-6;
}

static uint64_t ns(double seconds)
{
    return (uint64_t)llround(seconds * 1e9);
}

static void world_make(struct world *w, uint64_t seed, double gain, double idle_off, double curve)
{
    const struct plant_config plant = {IDLE_W * (1 + idle_off), RANGE_W, gain, curve, 0.030, 0.1, 0.01, seed};
    const struct throttle_config config = {IDLE_W, IDLE_W + RANGE_W, 0, 0.030, 0.2, 0.5, 10};
    memset(w, 0, sizeof *w);
    plant_init(&w->plant, &plant);
    throttle_init(&w->throttle, &config, 0);
    w->rng = seed * 7919 + 1;
    w->demand = 1.05 / gain; /* more than full power, whatever the gain */
}

/* What the engine's power thread does whenever the counter has moved. */
static void read_meter(struct world *w)
{
    double second, joules = (double)plant_counter_uj(&w->plant, &second) / 1e6;
    if (second <= w->sampled_s) return;
    (void)!throttle_sample(&w->throttle, ns(w->now_s), second - w->sampled_s, joules - w->sampled_j, w->work_j,
                           w->limited);
    w->sampled_s = second;
    w->sampled_j = joules;
    w->work_j = 0;
    w->limited = false;
}

static void pass(struct world *w, double seconds, double work_w)
{
    for (double left = seconds; left > 1e-9; left -= SLICE_S) {
        plant_run(&w->plant, SLICE_S, work_w);
        w->work_j += work_w * SLICE_S;
        w->now_s += SLICE_S;
        w->joules_at[w->slices++] = w->plant.energy_j;
        read_meter(w);
    }
}

/* Prefill bursts: the work of a step is up to 6 % off its mean, for some 200 ms. */
static double burst(struct world *w)
{
    return 1 + 0.06 * (2 * random_next_uniform(&w->rng) - 1);
}

static void run_until(struct world *w, double until_s)
{
    while (w->now_s < until_s - 1e-9) {
        enum throttle_alarm alarm;
        double allowed = throttle_allowance(&w->throttle, ns(w->now_s), &alarm);
        double room = joule_bucket_room(&w->bucket, allowed, STEP_S, ns(w->now_s));
        double work = w->demand * RANGE_W * STEP_S * burst(w);
        if (room <= 0) {
            w->limited = true;
            pass(w, SLICE_S, 0);
            continue;
        }
        if (work > room) w->limited = true;
        if (work > room) work = room;
        joule_bucket_pay(&w->bucket, work);
        pass(w, STEP_S, work / STEP_S);
    }
}

static double mean_w(const struct world *w, double from_s, double to_s)
{
    uint32_t from = (uint32_t)llround(from_s / SLICE_S), to = (uint32_t)llround(to_s / SLICE_S);
    return (w->joules_at[to - 1] - w->joules_at[from - 1]) / (to_s - from_s);
}

static void goal(struct world *w, double share)
{
    struct throttle_goal goal = {INFINITY, IDLE_W + share * RANGE_W};
    assert_true(throttle_set_goal(&w->throttle, goal, ns(w->now_s)));
}

static double goal_watts(double share)
{
    return IDLE_W + share * RANGE_W;
}

/* The lowest and highest mean of any window of so many seconds, relative to watts. */
static void extremes(const struct world *w, double from_s, double to_s, double window_s, double watts, double *low,
                     double *high)
{
    *low = 1e9;
    *high = -1e9;
    for (double at = from_s; at + window_s <= to_s + 1e-9; at += 0.01) {
        double ratio = mean_w(w, at, at + window_s) / watts - 1;
        if (ratio < *low) *low = ratio;
        if (ratio > *high) *high = ratio;
    }
}

/* Down to 60 % at once, up to 90 % by the ramp; the gain is 15 % off, then learnt. */
static void test_throttle_follows(void **state)
{
    static struct world w;
    double worst_low = 0, worst_high = 0, worst_hold = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        double low, high;
        world_make(&w, seed, seed % 2 ? 1.15 : 0.85, 0, 0);
        goal(&w, 1);
        run_until(&w, 10);
        goal(&w, 0.6);
        run_until(&w, 30);
        extremes(&w, 10.5, 30, 0.5, goal_watts(0.6), &low, &high);
        if (low < worst_low) worst_low = low;
        if (high > worst_high) worst_high = high;
        goal(&w, 0.9);
        run_until(&w, 60);
        extremes(&w, 33, 60, 1, goal_watts(0.9), &low, &high);
        worst_hold = fmax(worst_hold, fmax(-low, high));
    }
    print_message(
        "%d seeds: 0.5 s means from 0.5 s after a step down %+.2f..%+.2f %%, 1 s means at rest within %.2f %%\n", SEEDS,
        100 * worst_low, 100 * worst_high, 100 * worst_hold);
    assert_true(worst_low > -0.03 && worst_high < 0.02);
    assert_true(worst_hold < 0.025);
}

/* As above, to within 2 s, with a gain that is far off, an idle power that is not what it says, and a curved plant. */
static void test_throttle_learns(void **state)
{
    static const struct {
        double gain, idle_off, curve, settle_s, undershoot;
    } cases[] = {{0.5, 0, 0, 2, 0.03},    {1.75, 0, 0, 2, 0.03},   {1, 0.2, 0, 2, 0.03},    {1, -0.2, 0, 2, 0.03},
                 {1.75, 0.2, 0, 2, 0.03}, {0.5, -0.2, 0, 2, 0.03}, {1, 0, 0.25, 2.5, 0.05}, {1, 0, -0.25, 2.5, 0.12}};
    static struct world w;
    (void)state;
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double low, high, undershoot, ignored;
        world_make(&w, i + 1, cases[i].gain, cases[i].idle_off, cases[i].curve);
        goal(&w, 1);
        run_until(&w, 10);
        goal(&w, 0.6);
        run_until(&w, 40);
        extremes(&w, 10 + cases[i].settle_s, 40, 1, goal_watts(0.6), &low, &high);
        extremes(&w, 10.2, 40, 0.3, goal_watts(0.6), &undershoot, &ignored);
        print_message("gain %.2f, idle %+.0f %%, curve %+.2f: 1 s means %+.2f..%+.2f %%, lowest 0.3 s %+.2f %%\n",
                      cases[i].gain, 100 * cases[i].idle_off, cases[i].curve, 100 * low, 100 * high, 100 * undershoot);
        assert_true(low > -0.02 && high < 0.02);
        assert_true(undershoot > -cases[i].undershoot);
    }
}

/* A cap over bursty work with traffic that comes and goes: one mean of a second in a thousand may be above it. */
static void test_throttle_cap(void **state)
{
    static struct world w;
    uint32_t above = 0, windows = 0;
    double worst = -1;
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        world_make(&w, seed, seed % 2 ? 1.15 : 0.85, 0, 0);
        const double cap_w = goal_watts(0.7), full = w.demand;
        struct throttle_goal goal = {cap_w, INFINITY};
        assert_true(throttle_set_goal(&w.throttle, goal, 0));
        while (w.now_s < 120) {
            w.demand = full * (random_next(&w.rng) % 3 ? 1 : 0.2);
            run_until(&w, w.now_s + 1 + (double)(random_next(&w.rng) % 40) / 10);
        }
        for (double at = 5; at + 1 <= 120; at += 0.1, windows++) {
            double ratio = mean_w(&w, at, at + 1) / cap_w - 1;
            if (ratio > 0) above++;
            if (ratio > worst) worst = ratio;
        }
    }
    print_message("%u of %u means of 1 s above the cap, worst %+.2f %%\n", above, windows, 100 * worst);
    assert_true(above * 1000 <= windows);
    assert_true(worst < 0.05);
}

/* A meter that falls silent, shows nonsense or a spike never gives more than before (T2). */
static void test_throttle_bad_meter(void **state)
{
    static struct world w;
    enum throttle_alarm alarm;
    (void)state;
    world_make(&w, 3, 1, 0, 0);
    goal(&w, 0.6);
    run_until(&w, 10);
    const struct throttle known = w.throttle;
    const uint64_t now = known.sampled_ns;
    const double allowed = throttle_allowance(&w.throttle, now, &alarm);
    assert_int_equal(alarm, THROTTLE_FINE);
    const double bad[][3] = {{0, 1, 1},    {-1, 1, 1},      {0.1, NAN, 1},  {0.1, INFINITY, 1},
                             {0.1, -5, 1}, {0.1, 300, NAN}, {0.1, 300, -1}, {NAN, 300, 1}};
    for (uint32_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(throttle_sample(&w.throttle, now + 1, bad[i][0], bad[i][1], bad[i][2], true));
    for (uint32_t i = 0; i < 3; i++) /* ten times what it can be: three are dropped, a fourth is how it is now */
        assert_false(throttle_sample(&w.throttle, now + 1, 0.1, 10 * 3420 * 0.1, 0.6 * RANGE_W * 0.1, true));
    assert_true(near(throttle_allowance(&w.throttle, now, &alarm), allowed));
    assert_true(near(throttle_allowance(&w.throttle, now + ns(0.6), &alarm), 0.95 * allowed));
    assert_int_equal(alarm, THROTTLE_SILENT);
    assert_true(near(throttle_allowance(&w.throttle, now + ns(10.1), &alarm), 0.85 * allowed));
    assert_int_equal(alarm, THROTTLE_LOST);
    throttle_resume(&w.throttle, now + ns(11)); /* a jump of the clock: what was learnt stays */
    assert_true(near(throttle_allowance(&w.throttle, now + ns(11), &alarm), allowed));
    assert_true(throttle_sample(&w.throttle, now + ns(11.1), 0.1, 10 * 3420 * 0.1, 0, true) == false);
}

/* Down at once, up by the ramp, and none at all when the goal is lifted (T1). */
static void test_throttle_goal(void **state)
{
    const struct throttle_config config = {IDLE_W, IDLE_W + RANGE_W, 0, 0.030, 0.2, 0.5, 10};
    struct throttle throttle;
    enum throttle_alarm alarm;
    (void)state;
    throttle_init(&throttle, &config, 0);
    assert_true(isinf(throttle_allowance(&throttle, ns(1), &alarm)));
    assert_int_equal(alarm, THROTTLE_SILENT); /* nothing heard yet */
    throttle_resume(&throttle, ns(1));
    assert_true(throttle_set_goal(&throttle, (struct throttle_goal){INFINITY, goal_watts(0.5)}, ns(1)));
    assert_true(near(throttle_allowance(&throttle, ns(1), &alarm), 0.5 * RANGE_W));
    assert_false(throttle_set_goal(&throttle, (struct throttle_goal){NAN, 100}, ns(1)));
    assert_false(throttle_set_goal(&throttle, (struct throttle_goal){100, -1}, ns(1)));
    assert_true(near(throttle_allowance(&throttle, ns(1), &alarm), 0.5 * RANGE_W));
    assert_true(throttle_set_goal(&throttle, (struct throttle_goal){INFINITY, 0}, ns(1)));
    assert_true(throttle_allowance(&throttle, ns(1), &alarm) == 0); /* below idle: nothing, not less */
    assert_true(throttle_set_goal(&throttle, (struct throttle_goal){goal_watts(0.5), goal_watts(1)}, ns(1)));
    assert_true(throttle_allowance(&throttle, ns(1), &alarm) == 0);
    assert_true(throttle_allowance(&throttle, ns(2), &alarm) == 0); /* a fifth of the range is still below idle */
    throttle_resume(&throttle, ns(2));
    (void)throttle_allowance(&throttle, ns(2), &alarm);
    assert_true(near(throttle_allowance(&throttle, ns(2.4), &alarm), 0.28 * RANGE_W - IDLE_W));
    for (double at = 2.5; at < 9; at += 0.1) (void)throttle_allowance(&throttle, ns(at), &alarm);
    throttle_resume(&throttle, ns(9)); /* the cap less its margin of 2 % */
    assert_true(near(throttle_allowance(&throttle, ns(9), &alarm), 0.98 * goal_watts(0.5) - IDLE_W));
    assert_true(throttle_set_goal(&throttle, (struct throttle_goal){INFINITY, INFINITY}, ns(9)));
    throttle_resume(&throttle, ns(9));
    double before = throttle_allowance(&throttle, ns(9), &alarm);
    assert_true(near(throttle_allowance(&throttle, ns(9.1), &alarm), before + 0.02 * RANGE_W));
    for (double at = 9.1; at < 14; at += 0.1) (void)throttle_allowance(&throttle, ns(at), &alarm);
    assert_true(isinf(throttle_allowance(&throttle, ns(14), &alarm)));
}

/* Interactive work may be ahead of a target by 1 % of a second, of a cap by nothing. */
static void test_throttle_overdraft(void **state)
{
    const struct throttle_config config = {IDLE_W, IDLE_W + RANGE_W, 0, 0.030, 0.2, 0.5, 10};
    struct throttle throttle;
    struct joule_bucket bucket = {.credit_j = -10};
    (void)state;
    throttle_init(&throttle, &config, 0);
    assert_true(throttle_overdraft(&throttle) == 0);
    assert_true(throttle_set_goal(&throttle, (struct throttle_goal){INFINITY, 2000}, 0));
    assert_true(near(throttle_overdraft(&throttle), 20));
    assert_true(throttle_set_goal(&throttle, (struct throttle_goal){2000, INFINITY}, 0));
    assert_true(throttle_overdraft(&throttle) == 0);
    assert_true(throttle_set_goal(&throttle, (struct throttle_goal){2000, 1950}, 0));
    assert_true(near(throttle_overdraft(&throttle), 10)); /* up to 1960 */
    assert_true(joule_bucket_overdraft(&bucket, 100, 0.03, 10) == 0);
    assert_true(near(joule_bucket_overdraft(&bucket, 100, 0.03, 12), 5));
}

/* Priority's work may be ahead of a target by 2 % of a minute, of a cap by what a second has room for. */
static void test_throttle_ahead(void **state)
{
    const struct throttle_config config = {IDLE_W, IDLE_W + RANGE_W, 0, 0.030, 0.2, 0.5, 10};
    struct throttle throttle;
    (void)state;
    throttle_init(&throttle, &config, 0);
    assert_true(throttle_ahead(&throttle) == 0);
    assert_true(throttle_set_goal(&throttle, (struct throttle_goal){INFINITY, 2000}, 0));
    assert_true(near(throttle_ahead(&throttle), 2400));
    assert_true(throttle_set_goal(&throttle, (struct throttle_goal){2000, INFINITY}, 0));
    assert_true(throttle_ahead(&throttle) == 0);
    assert_true(throttle_set_goal(&throttle, (struct throttle_goal){2000, 1700}, 0));
    assert_true(near(throttle_ahead(&throttle), 260)); /* up to 1960 */
}

/* The debt of priority's work is apart, bounded, and paid by a quarter of what comes in and by what is over. */
static void test_joule_bucket_urgent(void **state)
{
    struct joule_bucket bucket = {.credit_j = 1};
    (void)state;
    assert_true(joule_bucket_urgent(&bucket, 100, 0.03, 0) == 0);
    assert_true(near(joule_bucket_urgent(&bucket, 100, 0.03, 10), 13));
    joule_bucket_pay_urgent(&bucket, 5, 10);
    assert_true(near(bucket.credit_j, 0) && near(bucket.ahead_j, 4));
    joule_bucket_pay_urgent(&bucket, -1, 10);
    assert_true(near(bucket.credit_j, 0) && near(bucket.ahead_j, 3));
    joule_bucket_pay_urgent(&bucket, 9, 10);
    assert_true(near(bucket.credit_j, -2) && near(bucket.ahead_j, 10)); /* the bound */
    assert_true(joule_bucket_urgent(&bucket, 100, 0.03, 10) == 0);
    joule_bucket_pay_urgent(&bucket, -11, 10);
    assert_true(near(bucket.credit_j, -1) && near(bucket.ahead_j, 0));
    bucket = (struct joule_bucket){.credit_j = -3, .ahead_j = 10};
    assert_in_range(joule_bucket_wait_ns(&bucket, 100), ns(0.04), ns(0.04) + 10);
    assert_true(joule_bucket_room(&bucket, 100, 0.03, ns(0.04)) == 0);
    assert_true(near(bucket.credit_j, 0) && near(bucket.ahead_j, 9));
    assert_true(joule_bucket_room(&bucket, 100, 0.03, ns(0.08)) > 0);
    assert_true(near(bucket.credit_j, 2) && near(bucket.ahead_j, 7)); /* 3 came in beside 1, 1 too many */
    assert_true(joule_bucket_room(&bucket, 100, 0.03, ns(1)) > 0);
    assert_true(near(bucket.credit_j, 2) && near(bucket.ahead_j, 0));
}

static void test_joule_bucket(void **state)
{
    struct joule_bucket bucket = {.credit_j = 0};
    (void)state;
    assert_true(isinf(joule_bucket_room(&bucket, INFINITY, 0.02, ns(1))));
    assert_true(joule_bucket_room(&bucket, 100, 0.02, ns(1)) == 0);
    double room = joule_bucket_room(&bucket, 100, 0.02, ns(5)); /* saved: 20 ms of it, whatever time has passed */
    assert_true(near(room, 0.02 * (100 + 2 / 0.2)));
    joule_bucket_pay(&bucket, 12);
    assert_true(joule_bucket_room(&bucket, 100, 0.02, ns(5)) == 0);
    assert_in_range(joule_bucket_wait_ns(&bucket, 100), ns(0.1), ns(0.1) + 10);
    assert_true(joule_bucket_wait_ns(&bucket, 0) == UINT64_MAX);
    assert_true(joule_bucket_room(&bucket, 100, 0.02, ns(5.1) + 10) > 0);
    assert_true(joule_bucket_wait_ns(&bucket, 100) == 0);
    double paid = 0; /* T3: over ten seconds of steps of 30 ms */
    bucket = (struct joule_bucket){.credit_j = 0};
    for (double at = 0; at < 10; at += 0.03) {
        double step = joule_bucket_room(&bucket, 100, 0.03, ns(at));
        joule_bucket_pay(&bucket, step);
        paid += step;
    }
    assert_true(paid > 970 && paid <= 100 * (10 + 0.02) + 3.3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_throttle_follows),    cmocka_unit_test(test_throttle_learns),
        cmocka_unit_test(test_throttle_cap),        cmocka_unit_test(test_throttle_bad_meter),
        cmocka_unit_test(test_throttle_goal),       cmocka_unit_test(test_joule_bucket),
        cmocka_unit_test(test_throttle_overdraft),  cmocka_unit_test(test_throttle_ahead),
        cmocka_unit_test(test_joule_bucket_urgent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
