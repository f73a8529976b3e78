/* The NVML sensor through dlopen of a library with NVML's symbols (fake_nvml.c), in virtual time: which meter it takes
 * of a GPU, what is wrong with a meter that can be, and the loop that holds watts over it meanwhile. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/power/sensors.h"
#include "scheduler/throttle.h"
#include "tests/fake_nvml/steer.h"

#include <math.h>
#include <time.h>
#include <unistd.h>

static const double TICK_S = 0.020;
static const uint64_t FROM_NS = 50000 * NS_PER_S;

static int opened(void)
{
    int (*count)(void);
    steer_symbol(FAKE_NVML_OPEN, &count);
    return count();
}

static struct sensor *open_all(void)
{
    struct sensor *sensor = NULL;
    struct error err = {""};
    enum status status = sensor_nvml_open(NULL, 0, &sensor, &err);
    if (status != ST_OK) print_message("%s\n", err.message);
    assert_int_equal(status, ST_OK);
    return sensor;
}

static struct sensor_reading read_ok(struct sensor *sensor, uint64_t now_ns)
{
    struct sensor_reading reading;
    struct error err;
    assert_int_equal(sensor_read(sensor, now_ns, &reading, &err), ST_OK);
    return reading;
}

static double joules(const struct sensor_reading *reading)
{
    return (double)reading->energy_uj / 1e6;
}

static double all_drawn_j(uint32_t gpus)
{
    double sum = 0;
    for (uint32_t g = 0; g < gpus; g++) sum += drawn_j(g);
    return sum;
}

/* ---- what it takes ---- */

static void assert_no_sensor(const char *reason)
{
    struct sensor *sensor = NULL;
    struct error err = {""};
    assert_int_equal(sensor_nvml_open(NULL, 0, &sensor, &err), ST_NOTFOUND);
    assert_non_null(strstr(err.message, reason));
    assert_null(sensor);
    assert_int_equal(opened(), 0);
}

static void test_sensor_nvml_says_why_there_is_none(void **state)
{
    struct sensor *sensor = NULL;
    struct error err = {""};
    const char *pci[] = {"0000:00:00.0", "0000:09:00.0"};
    (void)state;
    steer("gpus 0");
    assert_no_sensor("no GPU");
    steer("gpus 2");
    steer("init_result 9");
    assert_no_sensor("Driver Not Loaded");
    steer("init_result 0");
    steer("energy_result 3");
    steer("field_result 3");
    steer("power_result 3 1");
    assert_no_sensor("GPU 1 has no power meter: NVML: Not Supported");
    assert_int_equal(sensor_nvml_open(pci, 2, &sensor, &err), ST_NOTFOUND);
    assert_non_null(strstr(err.message, pci[1]));
    assert_int_equal(sensor_nvml_open(pci, NVML_GPUS_MAX + 1, &sensor, &err), ST_LIMIT);
    assert_true(!sensor && opened() == 0);
}

/* 60 s of work in storms on four GPUs of different load: the joules of the plants, and each window's watts. */
static void check_source(uint32_t flags, double joules_off, double window_off)
{
    struct sensor *sensor = open_all();
    struct sensor_reading last = {0}, now = {0};
    double truth = 0, worst = 0, error = 0, windows = 0, truths[3001] = {0};
    for (uint32_t tick = 1; tick <= 3000; tick++) {
        for (uint32_t g = 0; g < 4; g++) steer("work %g %u", tick % 500 < 250 ? 100 + 130.0 * g : 40, g);
        steer("pass %g", TICK_S);
        truths[tick] = all_drawn_j(4);
        now = read_ok(sensor, FROM_NS + tick * 20 * NS_PER_MS);
        assert_true(now.flags == flags && now.breaks == (now.changes > 0));
        if (now.changes == last.changes) continue;
        double to = (double)(now.published_ns - FROM_NS) / 2e7, from = (double)(last.published_ns - FROM_NS) / 2e7;
        if (tick > 250 && tick % 500 > 300) { /* no storm begins or ends in it */
            double true_w =
                (truths[(uint32_t)to] - truths[(uint32_t)from]) / (((uint32_t)to - (uint32_t)from) * TICK_S);
            double read_w = (joules(&now) - joules(&last)) / ((double)(now.published_ns - last.published_ns) / 1e9);
            worst = fmax(worst, fabs(read_w / true_w - 1));
            error += fabs(read_w / true_w - 1);
            windows++;
        }
        last = now;
    }
    truth = all_drawn_j(4);
    print_message("flags %u: joules %+.2f %%, windows %.2f %% off, the worst %.2f %%\n", flags,
                  (joules(&now) / truth - 1) * 100, error / windows * 100, worst * 100);
    assert_true(fabs(joules(&now) / truth - 1) < joules_off && error / windows < window_off && worst < 0.6);
    sensor_close(sensor);
    assert_int_equal(opened(), 0);
}

static void test_sensor_nvml_takes_the_best_meter(void **state)
{
    (void)state;
    steer("gpus 4");
    check_source(0, 0.005, 0.005);
    steer("gpus 4");
    steer("energy_result 3");
    check_source(SENSOR_INTEGRATED, 0.005, 0.02);
    steer("gpus 4");
    steer("energy_result 3");
    steer("field_result 3");
    check_source(SENSOR_INTEGRATED | SENSOR_MEAN_1S, 0.02, 0.2);
    steer("gpus 4"); /* each its own */
    steer("energy_result 3 2");
    check_source(SENSOR_INTEGRATED, 0.005, 0.02);
}

static void test_sensor_nvml_names_limits_and_parts(void **state)
{
    const char *pci[] = {"0000:03:00.0", "0000:01:00.0"};
    struct sensor *sensor;
    struct sensor_reading reading = {0};
    struct error err;
    (void)state;
    steer("gpus 8");
    steer("limit 500 3");
    sensor = open_all();
    assert_string_equal(sensor->name, "NVML, 8 GPUs");
    assert_true(sensor->full_w == 7 * 700 + 500 && sensor->idle_w == 0);
    sensor_close(sensor);
    assert_int_equal(sensor_nvml_open(pci, 2, &sensor, &err), ST_OK);
    assert_true(sensor->full_w == 1200);
    steer("work 500 0"); /* not one of the two */
    steer("work 200 1");
    for (uint32_t tick = 1; tick <= 500; tick++) {
        steer("pass 0.02");
        reading = read_ok(sensor, FROM_NS + tick * 20 * NS_PER_MS);
    }
    assert_true(fabs(joules(&reading) / (drawn_j(1) + drawn_j(3)) - 1) < 0.02);
    sensor_close(sensor);
    steer("limit_result 3 5");
    sensor = open_all();
    assert_true(sensor->full_w == 0); /* a part of it would be taken for the whole */
    sensor_close(sensor);
}

/* ---- two meters of one GPU ---- */

static void test_sensor_nvml_disputes_after_5_s(void **state)
{
    (void)state;
    const struct {
        double scale;
        bool disputed;
    } cases[] = {{1, false}, {1.12, false}, {0.9, false}, {1.25, true}, {0.75, true}};
    for (uint32_t c = 0; c < 5; c++) {
        steer("gpus 2");
        steer("duty 0.25");
        steer("pace 0.1");
        struct sensor *sensor = open_all();
        uint32_t first = 0, last = 0;
        for (uint32_t tick = 1; tick <= 2000; tick++) {
            if (tick == 500) steer("scale_watts %g 1", cases[c].scale);
            if (tick == 1250) steer("scale_watts 1");
            steer("work %d", tick % 50 < 25 ? 300 : 200);
            steer("pass 0.02");
            bool disputed = read_ok(sensor, FROM_NS + tick * 20 * NS_PER_MS).flags & SENSOR_DISPUTED;
            if (disputed && !first) first = tick;
            if (disputed) last = tick;
        }
        if (cases[c].disputed) {
            assert_in_range(first, 750, 850);
            assert_in_range(last, 1250, 1400);
        } else {
            assert_int_equal(first, 0);
        }
        sensor_close(sensor);
    }
}

/* Two meters that have been apart for a second have not been for an hour because the clock jumps. */
static void test_sensor_nvml_disputes_by_its_own_time(void **state)
{
    (void)state;
    for (int32_t hours = -1; hours <= 1; hours += 2) {
        int64_t off_ns = 0;
        steer("gpus 1");
        struct sensor *sensor = open_all();
        for (uint32_t tick = 1; tick <= 500; tick++) {
            if (tick == 300) steer("scale_watts 2");
            if (tick == 400) off_ns = hours * 3600 * (int64_t)NS_PER_S;
            steer("pass 0.02");
            uint64_t now_ns = FROM_NS + (uint64_t)((int64_t)(tick * 20 * NS_PER_MS) + off_ns);
            assert_false(read_ok(sensor, now_ns).flags & SENSOR_DISPUTED);
        }
        sensor_close(sensor);
    }
}

/* A limit that is raised later is not taken for a spike. */
static void test_sensor_nvml_believes_up_to_the_highest_limit(void **state)
{
    struct sensor_reading reading = {0};
    (void)state;
    steer("gpus 1");
    steer("limit 200");
    steer("work 600");
    struct sensor *sensor = open_all();
    assert_true(sensor->full_w == 200);
    for (uint32_t tick = 1; tick <= 500; tick++) {
        if (tick == 250) steer("limit 700");
        steer("pass 0.02");
        reading = read_ok(sensor, FROM_NS + tick * 20 * NS_PER_MS);
    }
    assert_true(reading.breaks == 1 && fabs(joules(&reading) / drawn_j(0) - 1) < 0.03);
    sensor_close(sensor);
}

/* ---- faults under the loop: P5 ---- */

enum { GPUS = 4, TICKS = 1500, FAULT_AT = 600 };
enum fault { FREEZE, FREEZE_ONE, DROPOUT, ONE_LOST, SPIKE, WRAP, RESET, CLOCK_BACK, CLOCK_FORTH, FAULTS };
static const char *const names[FAULTS] = {"freeze",   "freeze of one",   "dropout",
                                          "one lost", "spike x 10",      "counter wraps",
                                          "reset",    "clock goes back", "clock jumps forth"};

struct run {
    struct sensor *sensor;
    struct throttle throttle;
    struct joule_bucket bucket;
    struct sensor_reading last;
    int64_t off_ns; /* of the clock */
    double work_j, drawn_j[TICKS + 1];
    uint32_t failures;
};

static void plant_fault(enum fault fault, uint32_t tick, struct run *run)
{
    const bool begins = tick == FAULT_AT, ends = tick == FAULT_AT + 150; /* 3 s */
    if (!begins && !ends && tick != FAULT_AT + 5) return;
    switch (fault) {
    case FREEZE:
    case FREEZE_ONE:
        if (begins || ends) steer("frozen %d %s", begins, fault == FREEZE ? "" : "2");
        break;
    case DROPOUT:
        if (begins || ends) steer("energy_result %d", begins ? 999 : 0);
        break;
    case ONE_LOST:
        if (begins || ends) steer("lost %d 1", begins);
        break;
    case SPIKE: /* of GPU 0, for one move: ten windows' joules */
        if (!ends) steer("off_mj %d 0", begins ? 450000 : 0);
        break;
    case WRAP: /* below where the counters stand */
        if (begins) steer("wrap_mj 3000000");
        break;
    case RESET:
        if (begins) steer("counter_mj 0");
        break;
    case CLOCK_BACK:
        if (begins) run->off_ns -= 3600 * (int64_t)NS_PER_S;
        break;
    case CLOCK_FORTH:
        if (begins) run->off_ns += 7200 * (int64_t)NS_PER_S;
        break;
    default: fail();
    }
}

/* What the power thread does with a reading. */
static void take_reading(struct run *run, uint64_t now_ns)
{
    struct sensor_reading now;
    struct error err;
    if (sensor_read(run->sensor, now_ns, &now, &err) != ST_OK) {
        run->failures++;
        return;
    }
    if (now.changes == run->last.changes) return;
    assert_true(now.energy_uj >= run->last.energy_uj);
    if (now.breaks != run->last.breaks || !run->last.changes) {
        throttle_resume(&run->throttle, now_ns);
    } else {
        assert_true(now.published_ns > run->last.published_ns && now.published_ns <= now_ns);
        (void)!throttle_sample(&run->throttle, now_ns, (double)(now.published_ns - run->last.published_ns) / 1e9,
                               (double)(now.energy_uj - run->last.energy_uj) / 1e6, run->work_j, true);
    }
    run->work_j = 0;
    run->last = now;
}

static void test_sensor_nvml_faults_under_the_loop(void **state)
{
    static struct run run;
    const double idle = GPUS * 90, range = GPUS * 610, goal = idle + 0.6 * range;
    const struct throttle_config config = {idle, idle + range, 0, 0.030, 0.2, 0.5, 10};
    (void)state;
    for (uint32_t f = 0; f < FAULTS; f++) {
        memset(&run, 0, sizeof run);
        steer("gpus %d", GPUS);
        run.sensor = open_all();
        throttle_init(&run.throttle, &config, FROM_NS);
        assert_true(throttle_set_goal(&run.throttle, (struct throttle_goal){INFINITY, goal}, FROM_NS));
        for (uint32_t tick = 1; tick <= TICKS; tick++) {
            uint64_t now_ns = FROM_NS + (uint64_t)((int64_t)(tick * 20 * NS_PER_MS) + run.off_ns);
            enum throttle_alarm alarm;
            plant_fault((enum fault)f, tick, &run);
            double allowed = throttle_allowance(&run.throttle, now_ns, &alarm);
            double step = fmin(joule_bucket_room(&run.bucket, allowed, TICK_S, now_ns), 1.05 * range * TICK_S);
            joule_bucket_pay(&run.bucket, step);
            run.work_j += step;
            steer("work %g", step / TICK_S / GPUS);
            steer("pass %g", TICK_S);
            run.drawn_j[tick] = all_drawn_j(GPUS);
            take_reading(&run, now_ns);
        }
        double high = -1, low = 1, end = (run.drawn_j[TICKS] - run.drawn_j[TICKS - 250]) / 5 / goal - 1;
        for (uint32_t tick = 200; tick <= TICKS; tick++) { /* every second, the fault's own too */
            double watts = run.drawn_j[tick] - run.drawn_j[tick - 50];
            high = fmax(high, watts / goal - 1);
            low = fmin(low, watts / goal - 1);
        }
        double counted = joules(&run.last), drawn = run.drawn_j[TICKS];
        print_message("%s: %+.2f to %+.2f %% of the goal, %+.2f %% at the end; counted %+.2f %%, %d breaks\n", names[f],
                      low * 100, high * 100, end * 100, (counted / drawn - 1) * 100, (int)run.last.breaks - 1);
        assert_true(high < 0.04 && fabs(end) < 0.01);
        assert_true(counted < drawn * 1.001 && counted > drawn * (f == RESET || f == WRAP ? 0.98 : 0.992));
        assert_int_equal(run.last.breaks > 1, f == RESET || f == WRAP || f == CLOCK_BACK || f == CLOCK_FORTH);
        assert_int_equal(run.failures, f == DROPOUT || f == ONE_LOST ? 150 : 0);
        sensor_close(run.sensor);
    }
}

static void test_sensor_nvml_says_which_gpu_is_lost(void **state)
{
    struct sensor_reading reading = {.changes = 77};
    struct error err;
    (void)state;
    steer("gpus 3");
    struct sensor *sensor = open_all();
    steer("lost 1 2");
    assert_int_equal(sensor_read(sensor, FROM_NS, &reading, &err), ST_DEVICE);
    assert_string_equal(err.message, "power of GPU 2: NVML: GPU is lost");
    assert_int_equal(reading.changes, 77);
    sensor_close(sensor);
}

/* P3: a power limit above what decode draws changes nothing; the bucket holds. */
static void test_sensor_nvml_power_limit_alone_cannot_follow(void **state)
{
    double watts[2];
    (void)state;
    steer("gpus 1");
    for (uint32_t i = 0; i < 2; i++) {
        steer("limit %d", i ? 420 : 700); /* 60 % */
        steer("work 160");
        steer("pass 1");
        double before = drawn_j(0);
        steer("pass 5");
        watts[i] = (drawn_j(0) - before) / 5;
    }
    assert_true(fabs(watts[0] - 250) < 1 && fabs(watts[1] - watts[0]) < 1e-6);
    steer("work 600");
    steer("pass 1");
    double before = drawn_j(0);
    steer("pass 5");
    assert_true(fabs((drawn_j(0) - before) / 5 - 420) < 1); /* a ceiling it is */
}

/* Live, steered by a file: what a server under test sees. Ends as soon as it is seen; the bound is for a broken one. */
static void test_sensor_nvml_live_by_file(void **state)
{
    char path[] = "/tmp/fake_nvml_XXXXXX";
    struct sensor_reading reading = {0};
    struct error err;
    (void)state;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    const char text[] = "gpus 2\nwork 300\npublish 0.01\n";
    assert_int_equal(write(fd, text, sizeof text - 1), (ssize_t)sizeof text - 1);
    steer("gpus 0");
    assert_int_equal(setenv("FAKE_NVML_FILE", path, 1), 0);
    struct sensor *sensor = open_all();
    assert_string_equal(sensor->name, "NVML, 2 GPUs");
    for (uint32_t i = 0; i < 1000 && reading.changes < 2; i++) {
        (void)nanosleep(&(struct timespec){0, 20000000}, NULL);
        assert_int_equal(sensor_read(sensor, clock_now_ns(clock_system()), &reading, &err), ST_OK);
    }
    assert_true(reading.changes == 2 && reading.energy_uj > 0);
    sensor_close(sensor);
    assert_int_equal(unsetenv("FAKE_NVML_FILE"), 0);
    close(fd);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sensor_nvml_says_why_there_is_none),
        cmocka_unit_test(test_sensor_nvml_takes_the_best_meter),
        cmocka_unit_test(test_sensor_nvml_names_limits_and_parts),
        cmocka_unit_test(test_sensor_nvml_disputes_after_5_s),
        cmocka_unit_test(test_sensor_nvml_disputes_by_its_own_time),
        cmocka_unit_test(test_sensor_nvml_believes_up_to_the_highest_limit),
        cmocka_unit_test(test_sensor_nvml_faults_under_the_loop),
        cmocka_unit_test(test_sensor_nvml_says_which_gpu_is_lost),
        cmocka_unit_test(test_sensor_nvml_power_limit_alone_cannot_follow),
        cmocka_unit_test(test_sensor_nvml_live_by_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
