/* Options, sources and hand merged; and what follows in the loop (in virtual time) and in the thread (in real time). */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/power/sensors.h"
#include "server/power/power_goal.h"
#include "server/power/power_thread.h"

#include <math.h>
#include <time.h>

#define T0_MS INT64_C(1763892000000)
enum { IDLE_W = 40, FULL_W = 100, FLOOR_W = 46, SLOT = SIGNAL_SLOT_MS };

static void test_power_goal_merges(void **state)
{
    (void)state;
    const struct power_goal options = {90, 85, 0}, none = {INFINITY, INFINITY, 0};
    struct power_slot told = {.have = 0, .cap_w = 1, .target_w = 1, .shed_level = 3};
    struct power_goal goal = power_goal_merge(&options, &told, NULL, FLOOR_W);
    assert_true(goal.cap_w == 90 && goal.target_w == 85 && goal.shed_level == 0); /* nothing told */
    told = (struct power_slot){.have = 127, .cap_w = 95, .target_w = 88, .shed_level = 1};
    goal = power_goal_merge(&options, &told, NULL, FLOOR_W);
    assert_true(goal.cap_w == 90 && goal.target_w == 88 && goal.shed_level == 1); /* a higher cap raises nothing */
    told.cap_w = 60;
    goal = power_goal_merge(&none, &told, NULL, FLOOR_W);
    assert_true(goal.cap_w == 60 && goal.target_w == 88);
    told.cap_w = 10;
    assert_true(power_goal_merge(&none, &told, NULL, FLOOR_W).cap_w == FLOOR_W); /* a soft one leaves the floor */
    told.cap_hard = true;
    assert_true(power_goal_merge(&none, &told, NULL, FLOOR_W).cap_w == 10);
    struct power_goal hand = {70, INFINITY, 0};
    told.cap_w = 75;
    goal = power_goal_merge(&options, &told, &hand, FLOOR_W);
    assert_true(goal.cap_w == 70 && goal.target_w == 88 && goal.shed_level == 1);
    hand = (struct power_goal){99, 50, 2};
    goal = power_goal_merge(&options, &told, &hand, FLOOR_W);
    assert_true(goal.cap_w == 75 && goal.target_w == 50 && goal.shed_level == 2);
}

/* P14: under a plan of 80 W an event of 50 W ends; a full load waits. No mean of 15 min passes the plan, and the way
 * up takes the time of the ramp. */
static void test_power_goal_event_ends(void **state)
{
    (void)state;
    struct plant_config plant = {
        .idle_w = IDLE_W, .range_w = FULL_W - IDLE_W, .gain = 1, .lag_s = 0.030, .publish_s = 0.1, .noise = 0.01};
    struct signal_config config = {.default_cap_w = 0};
    struct signal_source source = {"grid", 0, 10000, 1, true};
    struct sensor *sensor;
    struct signals *signals;
    struct power_loop *loop = mem_alloc(1, sizeof *loop);
    struct power_order order;
    struct joule_bucket bucket = {0};
    struct error err;
    uint16_t index;
    const struct power_goal options = {INFINITY, INFINITY, 0};
    enum { SECONDS = 2400, EVENT_BEGINS_S = 600, EVENT_ENDS_S = 1230 }; /* inside of quarters, not at their borders */
    static double seconds_j[SECONDS];
    assert_int_equal(signal_create(&config, &signals, &err), ST_OK);
    assert_int_equal(signal_register(signals, &source, &index, &err), ST_OK);
    uint64_t start_ns = NS_PER_S, now_ns = start_ns, looked_ns = start_ns, paced_ns = 0;
    assert_int_equal(sensor_simulated_open(&plant, now_ns, &sensor, &err), ST_OK);
    power_loop_init(loop, sensor, 0, now_ns);
    power_loop_order(loop, now_ns, 1, &order);
    struct power_slot slots[2] = {{.t0_ms = T0_MS, .dur_s = 7200, .have = SLOT_CAP, .cap_w = 80},
                                  {.t0_ms = T0_MS + EVENT_BEGINS_S * 1000,
                                   .dur_s = EVENT_ENDS_S - EVENT_BEGINS_S,
                                   .have = SLOT_CAP,
                                   .cap_w = 50}};
    double begun_s = 0, arrived_s = 0, before_j = 0;
    uint32_t second = 0;
    assert_true(signal_replace(signals, index, slots, 2, T0_MS));
    while (second < SECONDS) {
        double room_j = joule_bucket_room(&bucket, order.allowance_w, 0.020, now_ns);
        uint64_t begin_ns = now_ns;
        if (room_j <= 0) {
            paced_ns += 5 * NS_PER_MS;
            now_ns += 5 * NS_PER_MS;
        } else { /* always a prompt there */
            struct energy_work work = {1, 128, 0, 1, 100};
            double joules = fmax(0, energy_model_joules(&order.model, &work) - order.idle_w * 0.020);
            if (isfinite(order.allowance_w)) joule_bucket_pay(&bucket, joules);
            now_ns += 20 * NS_PER_MS;
            power_loop_step(
                loop, &(struct power_step){.start_ns = begin_ns, .end_ns = now_ns, .work = work, .joules = joules},
                NULL, 0);
        }
        while (looked_ns + 20 * NS_PER_MS <= now_ns) {
            looked_ns += 20 * NS_PER_MS;
            int64_t unix_ms = T0_MS + (int64_t)((looked_ns - start_ns) / NS_PER_MS);
            double at_s = (double)(looked_ns - start_ns) * 1e-9;
            struct power_slot told;
            signal_beat(signals, index, unix_ms);
            signal_at(signals, unix_ms, unix_ms, &told);
            struct power_goal goal = power_goal_merge(&options, &told, NULL, loop->floor_w);
            if (goal.cap_w != loop->goal.cap_w) power_loop_goal(loop, &goal, looked_ns);
            power_loop_read(loop, looked_ns, looked_ns, paced_ns);
            power_loop_order(loop, looked_ns, 1, &order);
            if (at_s >= EVENT_ENDS_S && begun_s == 0 && loop->throttle.goal_w > 51) begun_s = at_s;
            if (begun_s > 0 && arrived_s == 0 && loop->throttle.goal_w > 77) arrived_s = at_s;
        }
        for (; second < SECONDS && now_ns >= start_ns + (second + 1) * NS_PER_S; second++) {
            struct sensor_reading reading;
            assert_int_equal(sensor_read(sensor, now_ns, &reading, &err), ST_OK);
            seconds_j[second] = (double)reading.energy_uj * 1e-6 - before_j;
            before_j = (double)reading.energy_uj * 1e-6;
        }
    }
    double quarter_j = 0, most_w = 0, event_j = 0;
    for (uint32_t i = 0; i < SECONDS; i++) {
        quarter_j += seconds_j[i] - (i >= 900 ? seconds_j[i - 900] : 0);
        if (i >= 899) most_w = fmax(most_w, quarter_j / 900);
        if (i >= EVENT_BEGINS_S + 1 && i < EVENT_ENDS_S) event_j += seconds_j[i];
    }
    double event_w = event_j / (EVENT_ENDS_S - EVENT_BEGINS_S - 1);
    print_message("event %.2f W of 50, highest mean of 15 min %.2f W of 80, from 51 to 77 W in %.2f s\n", event_w,
                  most_w, arrived_s - begun_s);
    assert_true(event_w < 50 && event_w > 45);
    assert_true(most_w < 80 && most_w > 60);
    assert_true(begun_s >= EVENT_ENDS_S && begun_s < EVENT_ENDS_S + 1);
    assert_true(arrived_s - begun_s > 0.9 * 26 / (0.2 * (FULL_W - IDLE_W))); /* a fifth of the range a second */
    signal_destroy(signals);
    sensor_close(sensor);
    mem_free(loop);
}

static void wait_ms(long ms)
{
    struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

/* P13, through the thread: an emergency of a source is in the order for the engines; it ends; a hand's goal has its end
 * and lifts nothing that others hold. */
static void test_power_goal_thread(void **state)
{
    (void)state;
    struct signal_config config = {.default_cap_w = 0};
    struct signal_source source = {"grid", 0, 10000, 1, true};
    struct signals *signals;
    struct power *power;
    struct power_port *port;
    struct power_state shown;
    struct error err;
    uint16_t index;
    assert_int_equal(signal_create(&config, &signals, &err), ST_OK);
    assert_int_equal(signal_register(signals, &source, &index, &err), ST_OK);
    struct power_config settings = {.sensor = "simulated",
                                    .idle_w = IDLE_W,
                                    .full_w = FULL_W,
                                    .cap_w = 95,
                                    .signals = signals,
                                    .clock = clock_system()};
    assert_int_equal(power_create(&settings, &power, &err), ST_OK);
    assert_int_equal(power_open_port(power, "model", &port), ST_OK);
    for (int i = 0; i < 500 && atomic_load(&port->words[0]) == 0; i++) wait_ms(10); /* the first order */
    int64_t now_ms = clock_unix_us(clock_system()) / 1000;
    struct power_slot shed = {.t0_ms = now_ms - 1, .dur_s = 3600, .have = SLOT_SHED, .shed_level = 3};
    struct power_slot above = {.t0_ms = now_ms, .dur_s = 900, .have = SLOT_CAP, .cap_w = 10.5 * FULL_W};
    assert_int_equal(signal_offer(signals, index, &above, 1, now_ms), 0); /* the meter's full power is the nameplate */
    uint64_t told_ns = clock_now_ns(clock_system()), acted_ns = 0;
    assert_int_equal(signal_offer(signals, index, &shed, 1, now_ms), 1);
    for (int i = 0; i < 50000 && !acted_ns; i++) {
        double allowance_w;
        uint64_t word = atomic_load(&port->words[0]);
        memcpy(&allowance_w, &word, sizeof allowance_w);
        if (allowance_w <= FLOOR_W - IDLE_W + 1e-9) acted_ns = clock_now_ns(clock_system());
        if (!acted_ns) nanosleep(&(struct timespec){0, 100000}, NULL);
    }
    assert_true(acted_ns > 0);
    print_message("an emergency is in the engines' order after %.2f ms\n", (double)(acted_ns - told_ns) * 1e-6);
    power_read_state(power, &shown);
    assert_true(shown.goal.shed_level == 3 && shown.goal.cap_w == 95 && shown.told.shed_level == 3);
    struct power_goal hand = {60, 55, 1};
    uint64_t until_ms = (uint64_t)clock_unix_us(clock_system()) / 1000 + 300;
    assert_int_equal(power_set_goal(power, &hand, until_ms, &err), ST_OK);
    power_read_state(power, &shown);
    assert_true(shown.goal.shed_level == 3 && shown.goal.cap_w == 60 && shown.goal.target_w == 55); /* lifts nothing */
    assert_true(shown.hand.shed_level == 1 && shown.until_unix_ms == until_ms);
    assert_true(signal_replace(signals, index, NULL, 0, now_ms + 1));
    for (int i = 0; i < 500 && shown.goal.cap_w != 95; i++) {
        wait_ms(10);
        power_read_state(power, &shown);
    }
    assert_true(shown.goal.cap_w == 95 && shown.goal.shed_level == 0 && isinf(shown.goal.target_w));
    assert_true(shown.until_unix_ms == 0 && isinf(shown.hand.cap_w));
    power_close_port(power, port);
    power_destroy(power);
    signal_destroy(signals);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_power_goal_merges),
                                       cmocka_unit_test(test_power_goal_event_ends),
                                       cmocka_unit_test(test_power_goal_thread)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
