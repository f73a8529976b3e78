/* Joules and windows of one meter and of a sum, over plants in virtual time and over what meters do wrong: freeze,
 * dropout, spike, wrap, reset, glitch, jumps of the clock. The plant knows what was really drawn. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/power/meter.h"

#include <math.h>

static const struct meter_config gpu = {875, 0, false};
static const uint64_t FROM_NS = 1000 * NS_PER_S, POLL_NS = 20 * NS_PER_MS;

static double joules(const struct meter *meter)
{
    return (double)meter->energy_uj / 1e6;
}

/* A counter of 300 W that moves each period_ms, polled from FROM_NS on. */
struct source {
    struct meter meter;
    uint64_t now_ns, period_ms, phase_ms;
    double watts;
};

static struct source source_make(const struct meter_config *config, uint64_t period_ms, uint64_t phase_ms)
{
    struct source source = {.now_ns = FROM_NS, .period_ms = period_ms, .phase_ms = phase_ms, .watts = 300};
    meter_init(&source.meter, config);
    return source;
}

static uint64_t shown_uj(const struct source *source)
{
    uint64_t ms = source->now_ns / NS_PER_MS - source->phase_ms;
    return (uint64_t)(source->watts * 1000) * (ms - ms % source->period_ms);
}

static void poll_for(struct source *source, uint64_t ms)
{
    for (uint64_t until = source->now_ns + ms * NS_PER_MS; source->now_ns < until; source->now_ns += POLL_NS)
        meter_counter(&source->meter, source->now_ns, shown_uj(source));
}

/* The windows of counters of odd periods and phases have the right watts though the polls see them late. */
static void test_meter_finds_when_the_counter_moved(void **state)
{
    const uint64_t periods[] = {20, 47, 97, 100, 103, 250};
    double worst_of_all = 0; /* seconds that a window is too long or short */
    (void)state;
    for (uint32_t p = 0; p < 6; p++) {
        for (uint64_t phase = 0; phase < 100; phase += 7) {
            struct source source = source_make(&gpu, periods[p], phase);
            poll_for(&source, 60 * periods[p]); /* learns the phase */
            double worst = 0;
            for (uint32_t i = 0; i < 500; i++) {
                struct meter before = source.meter;
                poll_for(&source, 20);
                if (source.meter.changes == before.changes) continue;
                double seconds = (double)(source.meter.published_ns - before.published_ns) / 1e9;
                worst = fmax(worst, fabs((joules(&source.meter) - joules(&before)) / 300 - seconds));
            }
            worst_of_all = fmax(worst_of_all, worst);
            assert_true(worst < 0.008);
            assert_int_equal(source.meter.breaks, 0);
        }
    }
    print_message("moves found to %.1f ms\n", worst_of_all * 1e3);
}

/* What was drawn since the first poll, less what the counter has not shown yet. */
static void assert_exact(const struct source *source, uint64_t first_uj)
{
    assert_int_equal(source->meter.energy_uj, shown_uj(source) - first_uj);
}

/* A frozen counter moves once when it goes on, with all joules; a reader that stood still breaks the window alone. */
static void test_meter_freeze_and_dropout(void **state)
{
    (void)state;
    struct source source = source_make(&gpu, 100, 13);
    uint64_t first_uj = shown_uj(&source);
    poll_for(&source, 2000);
    struct meter before = source.meter;
    uint64_t frozen_uj = shown_uj(&source);
    for (uint32_t i = 0; i < 150; i++, source.now_ns += POLL_NS) meter_counter(&source.meter, source.now_ns, frozen_uj);
    assert_int_equal(source.meter.changes, before.changes);
    poll_for(&source, 100);
    assert_in_range(source.meter.changes, before.changes + 1, before.changes + 2);
    assert_int_equal(source.meter.breaks, 0);
    source.now_ns += 4 * NS_PER_S; /* no poll */
    poll_for(&source, 1000);
    assert_int_equal(source.meter.breaks, 0);
    source.now_ns += 6 * NS_PER_S;
    poll_for(&source, 1000);
    assert_int_equal(source.meter.breaks, 1);
    source.now_ns -= POLL_NS;
    assert_exact(&source, first_uj);
}

/* Ten times a window's joules for one move, then the truth again; and a glitch down. Nothing is lost, nothing added. */
static void test_meter_glitches_cost_nothing(void **state)
{
    (void)state;
    struct source source = source_make(&gpu, 100, 0);
    uint64_t first_uj = shown_uj(&source);
    const int64_t glitches[] = {300000000, -300000000, -1, INT64_MIN};
    for (uint32_t g = 0; g < 4; g++) {
        poll_for(&source, 1000);
        uint64_t changes = source.meter.changes, energy_uj = source.meter.energy_uj;
        for (uint32_t i = 0; i < 5; i++, source.now_ns += POLL_NS) {
            uint64_t uj = glitches[g] == INT64_MIN ? 0 : source.meter.raw_uj + (uint64_t)glitches[g];
            meter_counter(&source.meter, source.now_ns, uj);
        }
        assert_true(source.meter.changes == changes && source.meter.energy_uj == energy_uj);
        poll_for(&source, 200);
        assert_int_equal(source.meter.breaks, 0);
        source.now_ns -= POLL_NS;
        assert_exact(&source, first_uj);
        source.now_ns += POLL_NS;
    }
}

/* A glitch that was over is forgotten: a second one like it does not go on from it. */
static void test_meter_glitches_do_not_add_up(void **state)
{
    (void)state;
    struct source source = source_make(&gpu, 100, 0);
    poll_for(&source, 1000);
    uint64_t raw_uj = source.meter.raw_uj, energy_uj = source.meter.energy_uj;
    const uint64_t shown_uj[] = {raw_uj + 1000000000, raw_uj, raw_uj + 1000000001, raw_uj};
    for (uint32_t i = 0; i < 4; i++, source.now_ns += POLL_NS) meter_counter(&source.meter, source.now_ns, shown_uj[i]);
    assert_true(source.meter.energy_uj == energy_uj && source.meter.breaks == 0);
}

/* Set back to 0, or forward for good: one break, at most two windows' joules missing, none twice. */
static void test_meter_resets_lose_a_window(void **state)
{
    (void)state;
    for (uint32_t forward = 0; forward < 2; forward++) {
        struct source source = source_make(&gpu, 100, 0);
        poll_for(&source, 3000);
        uint64_t base_uj = shown_uj(&source), from_ns = source.now_ns;
        double before = joules(&source.meter);
        for (; source.now_ns < from_ns + 3 * NS_PER_S; source.now_ns += POLL_NS) {
            uint64_t uj = shown_uj(&source);
            meter_counter(&source.meter, source.now_ns, forward ? uj + UINT64_C(50000000000) : uj - base_uj);
        }
        assert_int_equal(source.meter.breaks, 1);
        double counted = joules(&source.meter) - before;
        assert_true(counted <= 900 && counted >= 900 - 2 * 30 - 1);
    }
}

/* A spike that stays and does not move is not believed by waiting. */
static void test_meter_waits_for_a_strange_value_to_go_on(void **state)
{
    (void)state;
    struct source source = source_make(&gpu, 100, 0);
    poll_for(&source, 1000);
    uint64_t energy_uj = source.meter.energy_uj, spike_uj = source.meter.raw_uj + 1000000000;
    for (uint32_t i = 0; i < 200; i++, source.now_ns += POLL_NS) meter_counter(&source.meter, source.now_ns, spike_uj);
    assert_int_equal(source.meter.energy_uj, energy_uj);
    meter_counter(&source.meter, source.now_ns, spike_uj + 1000000);
    assert_true(source.meter.energy_uj == energy_uj + 1000000 && source.meter.breaks == 1);
}

static void test_meter_wraps(void **state)
{
    (void)state;
    const struct meter_config package = {5000, UINT64_C(262143328850), true};
    struct source source = source_make(&package, 1, 0);
    uint64_t first_uj = shown_uj(&source), period_uj = package.wrap_uj + 1;
    for (; source.now_ns < FROM_NS + 3000 * NS_PER_S; source.now_ns += NS_PER_S / 2)
        meter_counter(&source.meter, source.now_ns, shown_uj(&source) % period_uj);
    source.now_ns -= NS_PER_S / 2;
    assert_int_equal(source.meter.breaks, 0);
    assert_true(shown_uj(&source) / period_uj > first_uj / period_uj + 2);
    assert_exact(&source, first_uj);
    source.meter.config.wrap_uj = 1000; /* a wrap below where it stood is none */
    meter_counter(&source.meter, source.now_ns + 1, 5);
    assert_exact(&source, first_uj);
}

/* The clock goes back an hour and forth two: a break each, not one joule more or less. */
static void test_meter_clock_jumps(void **state)
{
    (void)state;
    struct source source = source_make(&gpu, 100, 0);
    uint64_t first_uj = shown_uj(&source), truth_ns = source.now_ns;
    int64_t off_ns = 0;
    const int64_t jumps[] = {0, -3600, 7200, -1};
    for (uint32_t j = 0; j < 4; j++) {
        off_ns += jumps[j] * (int64_t)NS_PER_S;
        for (uint32_t i = 0; i < 100; i++) {
            source.now_ns = truth_ns += POLL_NS;
            meter_counter(&source.meter, truth_ns + (uint64_t)off_ns, shown_uj(&source));
        }
        assert_int_equal(source.meter.breaks, j);
        assert_true(source.meter.published_ns <= truth_ns + (uint64_t)off_ns);
    }
    assert_exact(&source, first_uj);
    meter_counter(&source.meter, FROM_NS / 2, source.meter.raw_uj + UINT64_C(100000000000)); /* 100 kJ at a jump back */
    assert_exact(&source, first_uj);
}

/* ---- watts ---- */

static void test_meter_integrates_watts(void **state)
{
    (void)state;
    struct meter meter;
    uint64_t now_ns = FROM_NS;
    meter_init(&meter, &gpu);
    for (uint32_t i = 0; i <= 500; i++, now_ns += POLL_NS) meter_watts(&meter, now_ns, i % 10 < 5 ? 100 : 500);
    assert_true(fabs(joules(&meter) / 3000 - 1) < 0.02);
    struct meter before = meter;
    for (uint32_t i = 0; i < 50; i++, now_ns += POLL_NS) meter_watts(&meter, now_ns, 500); /* frozen, or steady */
    assert_in_range(meter.changes, before.changes, before.changes + 1);
    meter_watts(&meter, now_ns, 5000); /* a spike x 10 */
    meter_watts(&meter, now_ns, NAN);
    meter_watts(&meter, now_ns += POLL_NS, 499);
    assert_true(fabs(joules(&meter) - joules(&before) - 51 * 10) < 11);
    before = meter;
    meter_watts(&meter, now_ns - 3600 * NS_PER_S, 400); /* joules of an unknown time are none */
    assert_true(meter.energy_uj == before.energy_uj && meter.breaks == 1);
    meter_watts(&meter, now_ns, 300);
    assert_true(meter.energy_uj == before.energy_uj && meter.breaks == 2);
    meter_watts(&meter, now_ns + POLL_NS, 200);
    assert_true(fabs(joules(&meter) - joules(&before) - 6) < 1e-3 && meter.breaks == 2);
}

/* ---- sums ---- */

/* Eight GPUs of different watts, paces and phases: the sum's windows are right, and its joules those of the parts. */
static void test_meter_sum_of_meters_apart(void **state)
{
    (void)state;
    enum { GPUS = 8 };
    struct meter meters[GPUS];
    struct source sources[GPUS];
    struct meter_sum sum = {0};
    struct sensor_reading last = {0};
    double watts = 0, worst = 0;
    for (uint32_t g = 0; g < GPUS; g++) {
        meter_init(&meters[g], &gpu);
        sources[g] = source_make(&gpu, 97 + g, g * 12 + 3);
        sources[g].watts = 70 + g * 90;
        watts += sources[g].watts;
    }
    for (uint64_t now_ns = FROM_NS; now_ns < FROM_NS + 60 * NS_PER_S; now_ns += POLL_NS) {
        uint64_t parts_uj = 0;
        for (uint32_t g = 0; g < GPUS; g++) {
            sources[g].now_ns = now_ns;
            meter_counter(&meters[g], now_ns, shown_uj(&sources[g]));
            parts_uj += meters[g].energy_uj;
        }
        meter_sum_move(&sum, meters, GPUS);
        if (sum.reading.changes == last.changes) continue;
        assert_int_equal(sum.reading.energy_uj, parts_uj);
        double seconds = (double)(sum.reading.published_ns - last.published_ns) / 1e9;
        if (now_ns > FROM_NS + 10 * NS_PER_S)
            worst = fmax(worst, fabs((double)(sum.reading.energy_uj - last.energy_uj) / 1e6 / seconds / watts - 1));
        last = sum.reading;
    }
    assert_in_range(last.changes, 560, 600);
    print_message("sum of %d: worst window %.2f %%\n", (int)GPUS, worst * 100);
    assert_true(worst < 0.03);
}

/* M3, and the least time between two moves. */
static void test_meter_sum_waits_for_all(void **state)
{
    (void)state;
    const struct meter_config fluent = {5000, 0, true};
    struct meter meters[2];
    struct meter_sum sum = {0};
    for (uint32_t i = 0; i < 2; i++) meter_init(&meters[i], &fluent);
    uint64_t now_ns = FROM_NS;
    for (uint32_t i = 0; i <= 100; i++, now_ns += POLL_NS) {
        for (uint32_t m = 0; m < 2; m++) meter_counter(&meters[m], now_ns, UINT64_C(1000000) * i);
        meter_sum_move(&sum, meters, 2);
    }
    assert_int_equal(sum.reading.changes, 20); /* each 0.1 s */
    uint64_t changes = sum.reading.changes;
    for (uint32_t i = 0; i <= 100; i++, now_ns += POLL_NS) {
        meter_counter(&meters[0], now_ns, UINT64_C(1000000) * (101 + i));
        meter_counter(&meters[1], now_ns, UINT64_C(100000000)); /* frozen */
        meter_sum_move(&sum, meters, 2);
    }
    assert_in_range(sum.reading.changes, changes, changes + 1);
    now_ns -= 3600 * NS_PER_S; /* the clock went back: the sum goes on, over a break */
    changes = sum.reading.changes;
    for (uint32_t i = 0; i <= 100; i++, now_ns += POLL_NS) {
        for (uint32_t m = 0; m < 2; m++) meter_counter(&meters[m], now_ns, UINT64_C(1000000) * (202 + i));
        meter_sum_move(&sum, meters, 2);
    }
    assert_in_range(sum.reading.changes, changes + 19, changes + 21);
    assert_true(sum.reading.breaks > 0 && sum.reading.published_ns < now_ns);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_meter_finds_when_the_counter_moved),
        cmocka_unit_test(test_meter_freeze_and_dropout),
        cmocka_unit_test(test_meter_glitches_cost_nothing),
        cmocka_unit_test(test_meter_glitches_do_not_add_up),
        cmocka_unit_test(test_meter_resets_lose_a_window),
        cmocka_unit_test(test_meter_waits_for_a_strange_value_to_go_on),
        cmocka_unit_test(test_meter_wraps),
        cmocka_unit_test(test_meter_clock_jumps),
        cmocka_unit_test(test_meter_integrates_watts),
        cmocka_unit_test(test_meter_sum_of_meters_apart),
        cmocka_unit_test(test_meter_sum_waits_for_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
