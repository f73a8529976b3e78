/* The fit finds a machine's speed from its steps; the largest T is what the prediction says; frozen stays frozen. */
#include "tests/unit/unit.h"

#include "scheduler/cost_model.h"

/* A machine with 20 GB/s and 2 us a token. */
static uint64_t machine_ns(const struct cost_step *step)
{
    double by_bytes = (double)step->bytes / 20, by_tokens = step->tokens * 2000.0;
    return (uint64_t)((by_bytes > by_tokens ? by_bytes : by_tokens) + 10e3 + step->rows * 1e3);
}

static void test_cost_model_fits(void **state)
{
    (void)state;
    struct cost_model model;
    cost_model_init(&model, 100000000, false);
    for (uint32_t i = 0; i < 400; i++) {
        struct cost_step step = {.bytes = 100000000, .tokens = i % 4 ? 8 : 8000, .rows = 8};
        cost_model_observe(&model, &step, machine_ns(&step));
    }
    for (uint32_t tokens = 8; tokens <= 8000; tokens += 7992) {
        struct cost_step step = {.bytes = 100000000, .tokens = tokens, .rows = 8};
        uint64_t predicted = cost_model_predict_ns(&model, &step), real = machine_ns(&step);
        assert_in_range(predicted, real - real / 50, real + real / 50);
    }
    uint32_t most = cost_model_tokens_max(&model, 100000000, 8, 20000000);
    struct cost_step at = {.bytes = 100000000, .tokens = most, .rows = 8}, above = at;
    above.tokens = most + 2;
    assert_true(cost_model_predict_ns(&model, &at) <= 20000000);
    assert_true(cost_model_predict_ns(&model, &above) > 20000000);
    assert_int_equal(cost_model_tokens_max(&model, 100000000, 8, 1000), 0); /* reading alone takes longer */
}

static void test_cost_model_frozen(void **state)
{
    (void)state;
    struct cost_model model;
    cost_model_init(&model, 1000000, true);
    struct cost_step step = {.bytes = 1000000, .tokens = 10, .rows = 1};
    uint64_t before = cost_model_predict_ns(&model, &step);
    for (uint32_t i = 0; i < 50; i++) cost_model_observe(&model, &step, 999999999);
    assert_int_equal(cost_model_predict_ns(&model, &step), before);
}

static void test_cost_model_odd_step(void **state)
{
    (void)state;
    struct cost_model model;
    cost_model_init(&model, 1000000, false);
    struct cost_step step = {.bytes = 1000000, .tokens = 1, .rows = 1};
    for (uint32_t i = 0; i < 50; i++) cost_model_observe(&model, &step, 500000);
    uint64_t before = cost_model_predict_ns(&model, &step);
    cost_model_observe(&model, &step, 1000000); /* one step of twice the time */
    assert_in_range(cost_model_predict_ns(&model, &step), before, before + before / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cost_model_fits), cmocka_unit_test(test_cost_model_frozen),
                                       cmocka_unit_test(test_cost_model_odd_step)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
