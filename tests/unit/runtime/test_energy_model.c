/* The fit finds what a device's steps cost from windows of its meter, with noise, from wrong first values, and after a
 * change; it never predicts less than nothing. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "runtime/power/energy_model.h"

#include <math.h>

static const double device[ENERGY_TERMS] = {4.0, 0.12, 3e-6, 0.35, 1.5e-4};

/* A window of a server: five steps of some rows at some context, and now and then a chunk of a prompt. */
static struct energy_work window_make(uint64_t *rng)
{
    double rows = 1 + floor(random_next_uniform(rng) * 64), context = 100 + random_next_uniform(rng) * 4000;
    double chunk = random_next_uniform(rng) < 0.4 ? 512 * random_next_uniform(rng) : 0,
           at = random_next_uniform(rng) * 3000;
    return (struct energy_work){5, 5 * chunk, 5 * chunk * (at + chunk / 2), 5 * rows, 5 * rows * context};
}

static double device_joules(const struct energy_work *work, double factor)
{
    return factor * (device[0] * work->steps + device[1] * work->prefill_tokens + device[2] * work->prefill_pairs +
                     device[3] * work->decode_rows + device[4] * work->decode_context);
}

/* The mean relative error over 500 windows. */
static double error_of(const struct energy_model *model, uint64_t *rng, double factor)
{
    double error = 0, sum = 0;
    for (uint32_t i = 0; i < 500; i++) {
        struct energy_work work = window_make(rng);
        double joules = device_joules(&work, factor);
        error += fabs(energy_model_joules(model, &work) - joules);
        sum += joules;
    }
    return error / sum;
}

static void learn(struct energy_model *model, uint64_t *rng, uint32_t windows, double factor)
{
    for (uint32_t i = 0; i < windows; i++) {
        struct energy_work work = window_make(rng);
        energy_model_observe(model, &work,
                             device_joules(&work, factor) * (1 + 0.02 * (2 * random_next_uniform(rng) - 1)));
    }
}

static void test_energy_model_fits(void **state)
{
    (void)state;
    struct energy_model model;
    uint64_t rng = 5;
    energy_model_init(&model, 3000);
    learn(&model, &rng, 50, 1);
    assert_true(error_of(&model, &rng, 1) < 0.03); /* five seconds at ten windows a second */
    learn(&model, &rng, 2000, 1);
    assert_true(error_of(&model, &rng, 1) < 0.005);
    for (uint32_t i = 0; i < ENERGY_TERMS; i++) {
        double ratio = energy_model_term(&model, i) / device[i];
        assert_true(ratio > 0.95 && ratio < 1.05);
    }
    learn(&model, &rng, 2000, 0.7); /* lower clocks */
    assert_true(error_of(&model, &rng, 0.7) < 0.02);
}

/* An hour of decode alone tells nothing of prefill: what was known of it stays, and the fit stays sound. */
static void test_energy_model_one_kind(void **state)
{
    (void)state;
    struct energy_model model;
    uint64_t rng = 9;
    energy_model_init(&model, 3000);
    learn(&model, &rng, 1000, 1);
    for (uint32_t i = 0; i < 36000; i++) {
        struct energy_work work = {5, 0, 0, 5 * 32, 5 * 32 * 1000};
        energy_model_observe(&model, &work, device_joules(&work, 1) * (1 + 0.02 * (2 * random_next_uniform(&rng) - 1)));
    }
    assert_true(error_of(&model, &rng, 1) < 0.25);
    learn(&model, &rng, 500, 1);
    assert_true(error_of(&model, &rng, 1) < 0.02);
}

/* Steps that are all alike tell their sum and not its terms: whichever term the noise would make pay, the joules of
 * such a step stay what they are, and none pays. */
static void test_energy_model_alike(void **state)
{
    (void)state;
    uint32_t bounded = 0;
    double worst = 0;
    for (uint64_t seed = 1; seed <= 24; seed++) {
        struct energy_model model;
        uint64_t rng = seed * 7919;
        energy_model_init(&model, 100);
        for (uint32_t i = 0; i < 60; i++) {
            double steps = 2 + random_next_uniform(&rng), tokens = steps * (64 + 8 * random_next_uniform(&rng));
            const struct energy_work work = {steps, tokens, tokens * 300, 0, 0};
            energy_model_observe(&model, &work, 9.9 * (1 + 0.02 * random_next_uniform(&rng)));
        }
        const struct energy_work usual = {2.5, 2.5 * 68, 2.5 * 68 * 300, 0, 0};
        for (uint32_t i = 0; i < ENERGY_TERMS; i++) {
            assert_true(model.joules[i] >= 0);
            bounded += model.fit[i] < 0;
        }
        worst = fmax(worst, fabs(energy_model_joules(&model, &usual) / 10 - 1));
    }
    print_message("%u terms would have paid; joules of a usual window at most %.1f %% off\n", bounded, 100 * worst);
    assert_true(bounded > 0);
    assert_true(worst < 0.15);
}

static void test_energy_model_bad_windows(void **state)
{
    (void)state;
    struct energy_model model, before;
    const struct energy_work work = {5, 100, 1000, 10, 1000}, nothing = {0};
    energy_model_init(&model, 3000);
    before = model;
    energy_model_observe(&model, &work, NAN);
    energy_model_observe(&model, &work, INFINITY);
    energy_model_observe(&model, &work, -1);
    energy_model_observe(&model, &nothing, 100);
    assert_memory_equal(&model, &before, sizeof model);
    assert_true(energy_model_joules(&model, &nothing) == 0);
    for (uint32_t i = 0; i < 100; i++) { /* a meter that contradicts itself cannot make a term pay */
        const struct energy_work more = {5, 200 + i, 1000, 10, 1000};
        energy_model_observe(&model, &more, 1);
        energy_model_observe(&model, &work, 1000);
    }
    for (uint32_t i = 0; i < ENERGY_TERMS; i++) assert_true(energy_model_term(&model, i) >= 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_energy_model_fits),
        cmocka_unit_test(test_energy_model_one_kind),
        cmocka_unit_test(test_energy_model_alike),
        cmocka_unit_test(test_energy_model_bad_windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
