/* The loop over a simulated meter in virtual time: an engine of one thread whose steps last as long as they do, and a
 * bucket like the real engine's. Figures that depend on nothing but the seed of the plant. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/power/sensors.h"
#include "server/power/power_loop.h"

#include <math.h>

enum { IDLE_W = 40, FULL_W = 100 };

struct rig {
    struct sensor *sensor;
    struct power_loop *loop;
    struct power_order order;
    struct power_port port;
    uint64_t rng;
    double stretch; /* steps last up to so much longer, or shorter, than the load's; 1: as they are */
    uint64_t now_ns, looked_ns, paced_ns, free_ns;
    double step_s, prefill, rows; /* of the load's steps */
    bool shareless;               /* nobody knows who was in them */
    double energy_j, second_j;    /* drawn since the start, by the plant's own account; in this second */
};

static void rig_start(struct rig *rig)
{
    struct plant_config plant = {
        .idle_w = IDLE_W, .range_w = FULL_W - IDLE_W, .gain = 1, .lag_s = 0.030, .publish_s = 0.1, .noise = 0.01};
    struct error err;
    *rig = (struct rig){.now_ns = NS_PER_S, .looked_ns = NS_PER_S, .free_ns = NS_PER_S, .step_s = 0.008, .rows = 4};
    rig->rng = 7;
    rig->stretch = 1;
    assert_int_equal(power_port_init(&rig->port), ST_OK);
    assert_int_equal(sensor_simulated_open(&plant, rig->now_ns, &rig->sensor, &err), ST_OK);
    rig->loop = mem_alloc(1, sizeof *rig->loop);
    power_loop_init(rig->loop, rig->sensor, 0, rig->now_ns);
    const struct attribution_config books = {.accounts_max = 2, .steps_max = 512, .shares_max = 1024};
    assert_int_equal(attribution_create(&books, &rig->loop->books, &err), ST_OK);
    power_loop_order(rig->loop, rig->now_ns, 1, &rig->order);
}

static void rig_stop(struct rig *rig)
{
    sensor_close(rig->sensor);
    power_port_free(&rig->port);
    attribution_destroy(rig->loop->books);
    mem_free(rig->loop);
}

static void look(struct rig *rig)
{
    rig->looked_ns += 20 * NS_PER_MS;
    power_loop_read(rig->loop, rig->looked_ns, rig->looked_ns, rig->paced_ns);
    power_loop_order(rig->loop, rig->looked_ns, 1, &rig->order);
}

/* The engine's next step, or a pause; and the looks of the thread that fall into it. */
static void go_on(struct rig *rig)
{
    struct joule_bucket *bucket = &rig->port.bucket;
    double room_j = joule_bucket_room(bucket, rig->order.allowance_w, 0.030, rig->now_ns);
    uint64_t start_ns = rig->now_ns;
    if (room_j <= 0) {
        uint64_t wait_ns = joule_bucket_wait_ns(bucket, rig->order.allowance_w);
        if (wait_ns > 20 * NS_PER_MS) wait_ns = 20 * NS_PER_MS;
        rig->paced_ns += wait_ns;
        rig->now_ns += wait_ns;
    } else {
        struct energy_work work = {1, rig->prefill, 0, rig->rows, rig->rows * 100};
        double joules = fmax(0, energy_model_joules(&rig->order.model, &work) - rig->order.idle_w * rig->step_s);
        struct energy_share shares[2] = {{.request_id = 2,
                                          .decode_rows = (uint32_t)rig->rows,
                                          .decode_context = work.decode_context,
                                          .sequences = (uint32_t)rig->rows}};
        uint32_t count = rig->shareless ? 0 : 1 + (rig->prefill > 0);
        if (rig->prefill > 0)
            shares[1] = (struct energy_share){.request_id = 1, .prefill_tokens = (uint32_t)rig->prefill};
        struct power_step step = {.start_ns = start_ns, .work = work, .joules = joules};
        rig->port.order = rig->order;
        power_port_launched(&rig->port, start_ns, &step, shares, count);
        double stretch = pow(rig->stretch, 2 * random_next_uniform(&rig->rng) - 1);
        rig->now_ns += (uint64_t)(rig->step_s * stretch * 1e9);
        step.end_ns = rig->now_ns;
        power_port_stepped(&rig->port, &step, 0);
        assert_true(power_port_take(&rig->port, &step));
        assert_int_equal(power_port_shares(&rig->port, &step, shares), count);
        power_loop_step(rig->loop, &step, shares, count);
    }
    while (rig->looked_ns + 20 * NS_PER_MS <= rig->now_ns) look(rig);
}

/* Means of a second, each against goal_w: the highest and the lowest share. */
static void run(struct rig *rig, uint32_t seconds, double goal_w, double *highest, double *lowest)
{
    *highest = -INFINITY, *lowest = INFINITY;
    for (uint32_t i = 0; i < seconds; i++) {
        struct sensor_reading before, after;
        struct error err;
        assert_int_equal(sensor_read(rig->sensor, rig->now_ns, &before, &err), ST_OK);
        for (uint64_t end_ns = rig->now_ns + NS_PER_S; rig->now_ns < end_ns;) go_on(rig);
        assert_int_equal(sensor_read(rig->sensor, rig->now_ns, &after, &err), ST_OK);
        double watts =
            (double)(after.energy_uj - before.energy_uj) * 1e3 / (double)(after.published_ns - before.published_ns);
        *highest = fmax(*highest, watts / goal_w - 1);
        *lowest = fmin(*lowest, watts / goal_w - 1);
    }
}

/* Under a cap between prefill and decode storms. */
static void test_power_loop_holds(void **state)
{
    (void)state;
    struct rig rig;
    double highest, lowest, worst = -INFINITY;
    rig_start(&rig);
    run(&rig, 5, FULL_W, &highest, &lowest); /* no limit: decode draws 40 + 0.55 * 60 */
    assert_true(fabs(highest + 0.27) < 0.02 && fabs(lowest + 0.27) < 0.02);
    assert_true(isinf(rig.order.allowance_w));
    power_loop_goal(rig.loop, &(struct power_goal){.cap_w = 60, .target_w = INFINITY}, rig.now_ns);
    power_loop_order(rig.loop, rig.now_ns, 1, &rig.order);
    run(&rig, 1, 60, &highest, &lowest);
    for (uint32_t storm = 0; storm < 20; storm++) {
        rig.prefill = storm % 2 ? 0 : 128;
        rig.rows = storm % 2 ? 8 : 1;
        rig.step_s = storm % 2 ? 0.010 : 0.028;
        run(&rig, 3, 60, &highest, &lowest);
        if (storm >= 4) worst = fmax(worst, highest);
        if (storm >= 4) assert_true(lowest > -0.08);
    }
    print_message("highest mean of a second above the cap: %.2f %%\n", 100 * worst);
    assert_true(worst < 0.01);
    assert_true(rig.paced_ns > 0 && rig.loop->windows > 400 && rig.loop->steps_lost == 0);
    rig_stop(&rig);
}

/* Steps that last three times as long as they were to, or a third, in long runs of either: a machine with other work,
 * and a cost model that is wrong for a while. The meter tells 0.1 s later; what a step has drawn is paid at its end. */
static void test_power_loop_holds_when_steps_stretch(void **state)
{
    (void)state;
    struct rig rig;
    double highest, lowest, worst = -INFINITY, least = INFINITY;
    rig_start(&rig);
    rig.prefill = 128;
    rig.rows = 0;
    rig.step_s = 0.012;
    run(&rig, 5, FULL_W, &highest, &lowest);
    power_loop_goal(rig.loop, &(struct power_goal){.cap_w = INFINITY, .target_w = 60}, rig.now_ns);
    power_loop_order(rig.loop, rig.now_ns, 1, &rig.order);
    run(&rig, 2, 60, &highest, &lowest);
    for (uint32_t i = 0; i < 40; i++) {
        rig.stretch = i % 2 ? 1.5 : 1;
        rig.step_s = i % 4 < 2 ? 0.012 : 0.004;
        run(&rig, 2, 60, &highest, &lowest);
        worst = fmax(worst, highest);
        least = fmin(least, lowest);
    }
    print_message("means of a second against the target: %.2f %% .. %.2f %%\n", 100 * least, 100 * worst);
    assert_true(worst < 0.03 && least > -0.03);
    rig_stop(&rig);
}

/* Shed levels, the floor, and what a cap below idle means. */
static void test_power_loop_goals(void **state)
{
    (void)state;
    struct rig rig;
    struct power_order order;
    rig_start(&rig);
    struct power_goal goal = {INFINITY, INFINITY, 1};
    power_loop_goal(rig.loop, &goal, rig.now_ns);
    power_loop_order(rig.loop, rig.now_ns, 1, &order);
    assert_true(isinf(order.allowance_w) && order.holds_deferrable && !order.paces_default);
    goal.shed_level = 2;
    power_loop_goal(rig.loop, &goal, rig.now_ns);
    power_loop_order(rig.loop, rig.now_ns, 1, &order);
    assert_true(isinf(order.allowance_w) && order.holds_deferrable && order.paces_default);
    goal.shed_level = 3;
    power_loop_goal(rig.loop, &goal, rig.now_ns);
    power_loop_order(rig.loop, rig.now_ns, 1, &order);
    assert_true(fabs(order.allowance_w - 6) < 1e-9 && order.paces_default); /* the floor, a tenth */
    power_loop_order(rig.loop, rig.now_ns, 2, &order);
    assert_true(fabs(order.allowance_w - 3) < 1e-9); /* two engines share it */
    power_loop_order(rig.loop, rig.now_ns, 1, &order);
    goal = (struct power_goal){INFINITY, 20, 0};
    power_loop_goal(rig.loop, &goal, rig.now_ns);
    power_loop_order(rig.loop, rig.now_ns, 1, &order);
    assert_true(fabs(order.allowance_w - 6) < 1e-9 && !order.holds_deferrable); /* a target stays above it */
    assert_true(fabs(order.ahead_j - 1.2 * 46) < 1e-9);                         /* W5 */
    power_loop_order(rig.loop, rig.now_ns, 2, &order);
    assert_true(fabs(order.ahead_j - 0.6 * 46) < 1e-9);
    power_loop_order(rig.loop, rig.now_ns + NS_PER_S, 1, &order); /* the meter is silent */
    assert_true(rig.loop->alarm == THROTTLE_SILENT && order.ahead_j == 0);
    goal.shed_level = 2;
    power_loop_goal(rig.loop, &goal, rig.now_ns);
    power_loop_order(rig.loop, rig.now_ns, 1, &order);
    assert_true(order.ahead_j == 0);
    goal.shed_level = 0;
    goal.cap_w = 20;
    power_loop_goal(rig.loop, &goal, rig.now_ns);
    power_loop_order(rig.loop, rig.now_ns, 1, &order);
    assert_true(order.allowance_w == 0 && order.ahead_j == 0); /* a cap does not */
    goal.cap_w = NAN;
    power_loop_goal(rig.loop, &goal, rig.now_ns);
    assert_true(rig.loop->goal.cap_w == 20); /* and what cannot be changes nothing */
    rig_stop(&rig);
}

/* A meter that shows what it is told to. */
struct told_sensor {
    struct sensor sensor;
    struct sensor_reading reading;
};

static enum status told_read(struct sensor *sensor, uint64_t now_ns, struct sensor_reading *reading, struct error *err)
{
    (void)now_ns, (void)err;
    *reading = ((struct told_sensor *)sensor)->reading;
    return ST_OK;
}

/* A step that is still under way keeps its window open, but not for ever: its joules are not those of others. */
static void test_power_loop_waits_for_steps(void **state)
{
    (void)state;
    static const struct sensor_ops ops = {.read = told_read};
    struct told_sensor told = {.sensor = {.ops = &ops, .idle_w = IDLE_W, .full_w = FULL_W}};
    struct power_loop *loop = mem_alloc(1, sizeof *loop);
    power_loop_init(loop, &told.sensor, 0, NS_PER_S);
    told.reading = (struct sensor_reading){.published_ns = NS_PER_S};
    power_loop_read(loop, NS_PER_S, NS_PER_S, 0);
    told.reading = (struct sensor_reading){8000000, 1100 * NS_PER_MS, .changes = 1, .flags = 0};
    power_loop_read(loop, 1110 * NS_PER_MS, 1050 * NS_PER_MS, 0); /* a step runs since 50 ms */
    assert_int_equal(loop->windows, 0);
    struct power_step step = {
        .start_ns = 1050 * NS_PER_MS, .end_ns = 1150 * NS_PER_MS, .work = {1, 64, 0, 0, 0}, .joules = 4};
    power_loop_step(loop, &step, NULL, 0);
    power_loop_read(loop, 1160 * NS_PER_MS, 1160 * NS_PER_MS, 0);
    assert_int_equal(loop->windows, 1);
    assert_true(fabs(loop->watts - 80) < 1e-9 && fabs(loop->throttle.lagged_w - 20) < 2); /* half of the step's 4 J */
    assert_int_equal(loop->queue_count, 1);                                               /* its other half comes */
    told.reading = (struct sensor_reading){14000000, 1200 * NS_PER_MS, .changes = 2, .flags = 0};
    power_loop_read(loop, 1300 * NS_PER_MS, 1160 * NS_PER_MS, 0);
    assert_int_equal(loop->windows, 1);
    power_loop_read(loop, 1400 * NS_PER_MS, 1160 * NS_PER_MS, 0); /* a step hangs */
    assert_int_equal(loop->windows, 2);
    assert_int_equal(loop->queue_count, 0);
    told.reading.changes = 3; /* the meter broke off */
    told.reading.breaks = 1;
    told.reading.published_ns = 1500 * NS_PER_MS;
    told.reading.energy_uj = 15000000;
    power_loop_read(loop, 1500 * NS_PER_MS, 1500 * NS_PER_MS, 0);
    assert_int_equal(loop->windows, 2);
    assert_true(fabs(loop->meter_j - 15) < 1e-9 && fabs(loop->meter_s - 0.5) < 1e-9); /* its joules are joules */
    mem_free(loop);
}

/* Every joule of the meter stands in the books once: prompts, decode, idle time and pauses, each where it was. */
static void test_power_loop_keeps_books(void **state)
{
    (void)state;
    struct rig rig;
    struct energy_books books, before = {0};
    double highest, lowest;
    rig_start(&rig);
    run(&rig, 5, FULL_W, &highest, &lowest);
    attribution_books(rig.loop->books, &books);
    assert_true(books.decode_uj > 0 && books.prefill_uj == 0 && books.paced_uj == 0 && books.unattributed_uj == 0);
    rig.prefill = 64;
    run(&rig, 5, FULL_W, &highest, &lowest);
    attribution_books(rig.loop->books, &before);
    assert_true(before.prefill_uj > 0 && before.paced_uj == 0);
    power_loop_goal(rig.loop, &(struct power_goal){IDLE_W + 0.3 * (FULL_W - IDLE_W), INFINITY, 0}, rig.now_ns);
    run(&rig, 10, FULL_W, &highest, &lowest);
    attribution_books(rig.loop->books, &books);
    assert_int_equal(books.prefill_uj + books.decode_uj + books.idle_uj + books.paced_uj + books.unattributed_uj,
                     books.meter_uj);
    assert_true(books.paced_uj > before.paced_uj + (uint64_t)(IDLE_W * 1e6)); /* more than a second of ten */
    assert_int_equal(books.unattributed_uj, 0);
    double told_j = (double)(books.meter_uj + books.pending_uj) * 1e-6;
    struct sensor_reading shown;
    struct error err;
    assert_int_equal(sensor_read(rig.sensor, rig.now_ns, &shown, &err), ST_OK);
    assert_true(fabs(told_j / ((double)shown.energy_uj * 1e-6) - 1) <
                0.02); /* but for what was before the first move */
    const struct energy_share row = {.request_id = 2, .decode_rows = 4, .sequences = 4};
    const struct power_step after_lost = {.start_ns = rig.now_ns + 8 * NS_PER_MS,
                                          .end_ns = rig.now_ns + 16 * NS_PER_MS,
                                          .work = {1, 0, 0, 4, 400},
                                          .missed = {rig.now_ns, rig.now_ns + 8 * NS_PER_MS, {1, 0, 0, 4, 400}}};
    power_loop_step(rig.loop, &after_lost, &row, 1); /* half of the time was a step whose record was lost */
    rig.now_ns += 16 * NS_PER_MS;
    run(&rig, 1, FULL_W, &highest, &lowest);
    attribution_books(rig.loop->books, &before);
    assert_true(before.unattributed_uj > 8 * 50000 && before.unattributed_uj < 8 * 200000); /* 50 to 200 W */
    rig.shareless = true;
    run(&rig, 2, FULL_W, &highest, &lowest);
    attribution_books(rig.loop->books, &books);
    assert_true(books.unattributed_uj > before.unattributed_uj && books.steps_lost > before.steps_lost);
    assert_true(books.decode_uj + books.prefill_uj < before.decode_uj + before.prefill_uj + 20 * 1000000);
    assert_int_equal(books.prefill_uj + books.decode_uj + books.idle_uj + books.paced_uj + books.unattributed_uj,
                     books.meter_uj);
    rig_stop(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_power_loop_keeps_books),
        cmocka_unit_test(test_power_loop_holds),
        cmocka_unit_test(test_power_loop_holds_when_steps_stretch),
        cmocka_unit_test(test_power_loop_goals),
        cmocka_unit_test(test_power_loop_waits_for_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
