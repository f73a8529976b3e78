/* Watts of a device at work: found from windows, told apart by what the windows did, and never beyond the range. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "runtime/power/draw_model.h"

#include <math.h>

static void test_draw_model_finds_both(void **state)
{
    (void)state;
    struct draw_model model;
    uint64_t rng = 3;
    draw_model_init(&model, 60);
    assert_true(model.prompts_w == 60 && model.decode_w == 60);
    for (uint32_t i = 0; i < 400; i++) {
        double prompts_s = 0.1 * random_next_uniform(&rng), decode_s = (i / 50) % 2 ? 0.1 - prompts_s : 0.02;
        double noise = 1 + 0.1 * (random_next_uniform(&rng) - 0.5);
        draw_model_observe(&model, prompts_s, decode_s, (50 * prompts_s + 20 * decode_s) * noise);
    }
    print_message("prompts %.2f W, decode %.2f W\n", model.prompts_w, model.decode_w);
    assert_true(fabs(model.prompts_w - 50) < 2 && fabs(model.decode_w - 20) < 2);
    struct energy_work work = {.steps = 1, .prefill_tokens = 30, .decode_rows = 10};
    assert_true(fabs(draw_model_watts(&model, &work) - (0.75 * model.prompts_w + 0.25 * model.decode_w)) < 1e-9);
    assert_true(draw_prompts_share(&(struct energy_work){.steps = 1}) == 0);
}

static void test_draw_model_keeps_bounds(void **state)
{
    (void)state;
    struct draw_model model;
    draw_model_init(&model, 60);
    for (uint32_t i = 0; i < 100; i++) draw_model_observe(&model, 0.1, 0, 1e6);
    assert_true(model.prompts_w == 60 && model.decode_w == 60);
    for (uint32_t i = 0; i < 100; i++) draw_model_observe(&model, 0, 0.1, -1e6);
    assert_true(model.prompts_w == 60 && fabs(model.decode_w - 3) < 1e-12);
    struct draw_model before = model;
    draw_model_observe(&model, 0, 0, 5);
    draw_model_observe(&model, 0.1, 0.1, NAN);
    draw_model_observe(&model, NAN, 0.1, 5);
    assert_memory_equal(&model, &before, sizeof model);
    assert_true(draw_model_watts(&(struct draw_model){0}, &(struct energy_work){.prefill_tokens = 5}) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_draw_model_finds_both),
        cmocka_unit_test(test_draw_model_keeps_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
