/* Joules of a load from meters that move at their own times. */
#include "tests/unit/unit.h"

#include "server/bench/bench_meter.h"

#include <math.h>

struct fake {
    struct sensor sensor;
    double watts;
    uint64_t breaks, step_ns, opened_ns;
    bool fails, closed;
};

static enum status fake_read(struct sensor *sensor, uint64_t now_ns, struct sensor_reading *reading, struct error *err)
{
    struct fake *fake = (struct fake *)(void *)sensor;
    if (fake->fails) return error_set(err, ST_DEVICE, "the GPU is gone");
    uint64_t moves = now_ns / fake->step_ns;
    if (fake->opened_ns == 0) fake->opened_ns = now_ns;
    if (moves == fake->opened_ns / fake->step_ns) { /* not since it was opened */
        *reading = (struct sensor_reading){0};
        return ST_OK;
    }
    *reading = (struct sensor_reading){
        .energy_uj = (uint64_t)((double)(moves * fake->step_ns - fake->opened_ns / fake->step_ns * fake->step_ns) *
                                1e-3 * fake->watts),
        .published_ns = moves * fake->step_ns,
        .changes = moves,
        .breaks = fake->breaks};
    return ST_OK;
}

static void fake_close(struct sensor *sensor)
{
    ((struct fake *)(void *)sensor)->closed = true;
}

static const struct sensor_ops ops = {.read = fake_read, .close = fake_close};

static void run(struct bench_meter *meter, double from_s, double seconds)
{
    bench_meter_start(meter);
    for (double at = 0; at < seconds; at += 0.02) bench_meter_tick(meter, (uint64_t)((from_s + at) * 1e9));
}

static void test_bench_meter_adds_up(void **state)
{
    (void)state;
    struct fake gpu = {.sensor = {&ops, "GPU", 0, 0}, .watts = 300, .step_ns = 100000000};
    struct fake host = {.sensor = {&ops, "host", 0, 0}, .watts = 50, .step_ns = 1000000};
    struct bench_meter meter = {.count = 2};
    struct error err = {""};
    double joules = 0;
    meter.meters[0].sensor = &gpu.sensor;
    meter.meters[1].sensor = &host.sensor;
    run(&meter, 10.05, 3.33);
    assert_int_equal(bench_meter_joules(&meter, 3.33, &joules, &err), ST_OK);
    assert_true(fabs(joules - 350 * 3.33) < 0.01);
    run(&meter, 20.01, 0.3); /* the first run counts no more, and this one is short */
    assert_int_equal(bench_meter_joules(&meter, 0.3, &joules, &err), ST_AGAIN);
    assert_non_null(strstr(err.message, "GPU moved less than 5 times"));
    run(&meter, 30, 1);
    gpu.breaks = 1;
    bench_meter_tick(&meter, 31000000000);
    assert_int_equal(bench_meter_joules(&meter, 1, &joules, &err), ST_AGAIN);
    run(&meter, 40, 1);
    assert_int_equal(bench_meter_joules(&meter, 1, &joules, &err), ST_OK);
    host.fails = true;
    bench_meter_tick(&meter, 41000000000);
    assert_int_equal(bench_meter_joules(&meter, 1, &joules, &err), ST_DEVICE);
    assert_non_null(strstr(err.message, "the GPU is gone"));
    run(&meter, 50, 1);
    assert_int_equal(bench_meter_joules(&meter, 1, &joules, &err), ST_DEVICE);
    bench_meter_close(&meter);
    assert_true(gpu.closed && host.closed);
}

static void test_bench_meter_names(void **state)
{
    (void)state;
    struct bench_meter meter;
    struct error err = {""};
    static const char *const none[] = {"", "x", "nvm", "nvmlx", "+", "nvml+x"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        enum status status = bench_meter_open(&meter, none[i], &err);
        if (status != ST_INVAL && status != ST_NOTFOUND) fail_msg("\"%s\" is taken", none[i]);
        assert_int_equal(meter.count, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bench_meter_adds_up),
        cmocka_unit_test(test_bench_meter_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
