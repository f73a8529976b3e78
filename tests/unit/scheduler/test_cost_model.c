/* The fit finds a machine's rates from its steps; the room is what the prediction says; frozen stays frozen. */
#include "tests/unit/unit.h"

#include "scheduler/cost_model.h"

/* A machine with 20 GB/s, 2 us a token, 0.7 us a row and 1 ns a pair. */
static uint64_t machine_ns(const struct cost_step *step)
{
    double by_bytes = (double)step->bytes / 20;
    double by_work = step->tokens * 2000.0 + step->rows * 700.0 + (double)step->pairs;
    return (uint64_t)((by_bytes > by_work ? by_bytes : by_work) + 10e3);
}

/* Steps as they come: decode rows at some position, and now and then a chunk of a prompt. */
static struct cost_step step_make(uint64_t *rng)
{
    *rng = *rng * UINT64_C(6364136223846793005) + 1442695040888963407;
    uint32_t rows = 1 + (uint32_t)(*rng >> 33) % 64, chunk = (*rng >> 60) & 1 ? 16 * ((uint32_t)(*rng >> 40) % 16) : 0;
    uint64_t decode_at = (*rng >> 20) % 500, chunk_at = (*rng >> 10) % 4000;
    return (struct cost_step){.bytes = 1000000,
                              .tokens = rows + chunk,
                              .rows = rows,
                              .pairs = rows * decode_at + chunk * (chunk_at + chunk / 2)};
}

static void test_cost_model_fits(void **state)
{
    (void)state;
    struct cost_model model;
    uint64_t rng = 1, real, error = 0, sum = 0;
    cost_model_init(&model, 100000000, false);
    for (uint32_t i = 0; i < 20; i++) { /* one sequence: reading is what takes long */
        struct cost_step step = {.bytes = 100000000, .tokens = 1, .rows = 1};
        cost_model_observe(&model, &step, machine_ns(&step));
        real = machine_ns(&step);
    }
    assert_in_range(cost_model_predict_ns(&model, &(struct cost_step){.bytes = 100000000, .tokens = 1, .rows = 1}),
                    real - real / 50, real + real / 50);
    for (uint32_t i = 0; i < 11000; i++) {
        struct cost_step step = step_make(&rng);
        uint64_t predicted = cost_model_predict_ns(&model, &step);
        real = machine_ns(&step);
        if (i < 10000) {
            cost_model_observe(&model, &step, real);
        } else {
            error += predicted > real ? predicted - real : real - predicted;
            sum += real;
        }
    }
    assert_true(error * 100 < sum * 2); /* within 2 % over the last thousand */
    assert_in_range((uint64_t)model.ns_per_token, 1900, 2100);
    assert_in_range((uint64_t)model.ns_per_row, 600, 800);
    assert_in_range((uint64_t)(model.ns_per_pair * 100), 95, 105);
    assert_in_range((uint64_t)(cost_model_weight(&model, 2000) * 100), 190, 210);
}

static void test_cost_model_room(void **state)
{
    (void)state;
    struct cost_model model;
    cost_model_init(&model, 1000000, false);
    struct cost_step step = {.bytes = 1000000, .tokens = 8, .rows = 8, .pairs = 4000};
    uint64_t target_ns = 3000000;
    uint32_t room = cost_model_room(&model, &step, target_ns);
    struct cost_step at = step, above = step;
    at.tokens += room;
    above.tokens += room + 1;
    assert_true(room > 0);
    assert_true(cost_model_predict_ns(&model, &at) <= target_ns);
    assert_true(cost_model_predict_ns(&model, &above) > target_ns);
    assert_int_equal(cost_model_room(&model, &step, 1000), 0); /* reading alone takes longer */
    assert_int_equal(cost_model_room(&model, &(struct cost_step){.tokens = 10000}, target_ns),
                     0); /* so does the rest */
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
    before = cost_model_predict_ns(&model, &step);
    cost_model_observe(&model, &step, 1000000000); /* one that was held up for a second */
    assert_in_range(cost_model_predict_ns(&model, &step), before, before + before / 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cost_model_fits), cmocka_unit_test(test_cost_model_room),
                                       cmocka_unit_test(test_cost_model_frozen),
                                       cmocka_unit_test(test_cost_model_odd_step)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
