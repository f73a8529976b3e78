/* The simulated meter: what it publishes of told work, when, and that the loop holds a goal over it. Virtual time. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/power/sensors.h"
#include "scheduler/throttle.h"

#include <math.h>

static const struct plant_config node = {900, 4200, 1, 0, 0.030, 0.1, 0.01, 7};

static struct sensor_reading read_now(struct sensor *sensor, uint64_t now_ns)
{
    struct sensor_reading reading;
    struct error err;
    assert_int_equal(sensor_read(sensor, now_ns, &reading, &err), ST_OK);
    return reading;
}

/* 60 s of steps and pauses: the joules told, base power added, are those read; changes come every 0.1 s alone. */
static void test_sensor_simulated_publishes_the_work(void **state)
{
    struct sensor *sensor;
    struct error err;
    double told = 0;
    (void)state;
    assert_int_equal(sensor_simulated_open(&node, 5 * NS_PER_S, &sensor, &err), ST_OK);
    assert_true(sensor->idle_w == 900 && sensor->full_w == 5100);
    struct sensor_reading before = read_now(sensor, 0), now = before;
    assert_true(before.changes == 0 && before.energy_uj == 0 && before.published_ns == 5 * NS_PER_S);
    for (uint32_t ms = 1; ms <= 60000; ms += 1) {
        double joules = ms % 700 < 300 ? 3 : 0;
        sensor_work(sensor, 0.001, joules);
        told += joules + 0.9;
        now = read_now(sensor, 0);
        assert_true(now.flags == SENSOR_ESTIMATED && now.breaks == 0);
        if (now.changes != before.changes) {
            assert_int_equal(now.changes, before.changes + 1);
            assert_true(fabs((double)(now.published_ns - before.published_ns) - 1e8) < 1e4);
            assert_true(now.energy_uj > before.energy_uj);
            before = now;
        } else {
            assert_true(now.energy_uj == before.energy_uj && now.published_ns == before.published_ns);
        }
    }
    assert_in_range(now.changes, 599, 600);
    assert_true(fabs((double)now.energy_uj / 1e6 / told - 1) <
                0.003); /* a window's noise, and what the lag still holds */
    sensor_close(sensor);
}

/* What a thread does that reads every 20 ms, over steps that the bucket pays for. */
static void test_sensor_simulated_closes_the_loop(void **state)
{
    struct sensor *sensor;
    struct error err;
    struct plant_config wrong = node;
    const struct throttle_config config = {900, 5100, 0, 0.030, 0.2, 0.5, 10};
    struct throttle throttle;
    struct joule_bucket bucket = {.credit_j = 0};
    struct sensor_reading last = {0}, now;
    double work_j = 0, held_j = 0;
    (void)state;
    wrong.gain = 1.15; /* the model's joules are 15 % short */
    assert_int_equal(sensor_simulated_open(&wrong, 0, &sensor, &err), ST_OK);
    throttle_init(&throttle, &config, 0);
    assert_true(throttle_set_goal(&throttle, (struct throttle_goal){INFINITY, 900 + 0.6 * 4200}, 0));
    for (uint64_t tick = 1; tick <= 1000; tick++) {
        uint64_t now_ns = tick * 20 * NS_PER_MS;
        enum throttle_alarm alarm;
        double allowed = throttle_allowance(&throttle, now_ns, &alarm);
        double step = fmin(joule_bucket_room(&bucket, allowed, 0.020, now_ns), 84);
        joule_bucket_pay(&bucket, step);
        sensor_work(sensor, 0.020, step);
        work_j += step;
        now = read_now(sensor, now_ns);
        assert_int_equal(alarm, THROTTLE_FINE);
        if (now.changes == last.changes) continue;
        if (last.changes)
            (void)!throttle_sample(&throttle, now_ns, (double)(now.published_ns - last.published_ns) / 1e9,
                                   (double)(now.energy_uj - last.energy_uj) / 1e6, work_j, true);
        work_j = 0;
        if (now_ns > 10 * NS_PER_S && now_ns <= 20 * NS_PER_S) held_j += (double)(now.energy_uj - last.energy_uj) / 1e6;
        last = now;
    }
    assert_true(fabs(held_j / 10 / (900 + 0.6 * 4200) - 1) < 0.01);
    sensor_close(sensor);
}

static void test_sensor_simulated_refuses_what_cannot_be(void **state)
{
    struct sensor *sensor = NULL;
    struct error err;
    (void)state;
    const double bad[] = {-1, NAN, INFINITY};
    for (uint32_t field = 0; field < 7; field++) {
        for (uint32_t i = 0; i < 3; i++) {
            struct plant_config config = node;
            double *fields[] = {&config.idle_w, &config.range_w,   &config.gain, &config.curve,
                                &config.lag_s,  &config.publish_s, &config.noise};
            *fields[field] = field == 3 && i == 0 ? -2 : bad[i];
            assert_int_equal(sensor_simulated_open(&config, 0, &sensor, &err), ST_INVAL);
        }
    }
    assert_null(sensor);
    assert_int_equal(sensor_simulated_open(&node, 0, &sensor, &err), ST_OK);
    const double odd[][2] = {{0, 1}, {-1, 1}, {NAN, 1}, {INFINITY, 1}, {1e18, 1}, {1, -1}, {1, NAN}, {1, INFINITY}};
    for (uint32_t i = 0; i < 8; i++) sensor_work(sensor, odd[i][0], odd[i][1]);
    struct sensor_reading reading = read_now(sensor, 0);
    assert_true(reading.changes == 0 && reading.energy_uj == 0);
    sensor_close(sensor);
    sensor_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sensor_simulated_publishes_the_work),
        cmocka_unit_test(test_sensor_simulated_closes_the_loop),
        cmocka_unit_test(test_sensor_simulated_refuses_what_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
