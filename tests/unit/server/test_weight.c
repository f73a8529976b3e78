/* What a balancer is told: each bound by hand, and the weight that does not follow each request. */
#include "tests/unit/unit.h"

#include "server/power/weight.h"

#include <math.h>

static const struct weight_inputs idle = {true, 1, INFINITY, 60, 0, 1000, NAN, NAN};

static void test_weight_by_hand(void **state)
{
    (void)state;
    static const struct {
        struct weight_inputs inputs;
        double weight;
    } rows[] = {
        {{true, 1, INFINITY, 60, 0, 1000, NAN, NAN}, 100},    {{false, 1, INFINITY, 60, 0, 1000, NAN, NAN}, 0},
        {{true, 0.4, INFINITY, 60, 100, 1000, NAN, NAN}, 40}, {{true, 0.4, 18, 60, 100, 1000, NAN, NAN}, 30},
        {{true, 0.4, 18, 60, 800, 1000, NAN, NAN}, 20},       {{true, 1, 0, 60, 0, 1000, NAN, NAN}, 0},
        {{true, 1, 90, 60, 0, 1000, NAN, NAN}, 100},          {{true, 1, INFINITY, 60, 2000, 1000, NAN, NAN}, 0},
        {{true, 1, INFINITY, 60, 5, 0, NAN, NAN}, 100},       {{true, 1, 5, 0, 0, 0, NAN, NAN}, 100},
        {{true, NAN, INFINITY, 60, 0, 1000, NAN, NAN}, 0},    {{true, 1, NAN, 60, 0, 1000, NAN, NAN}, 0},
        {{true, 0.8, INFINITY, 60, 0, 1000, 0.6, 0.3}, 40},   {{true, 0.8, INFINITY, 60, 0, 1000, 0.2, 0.3}, 80},
        {{true, 0.8, INFINITY, 60, 0, 1000, -0.1, 0.3}, 80},  {{true, 0.8, INFINITY, 60, 0, 1000, 9, 0.3}, 20},
        {{true, 0.8, INFINITY, 60, 0, 1000, 0.6, NAN}, 80},   {{true, 0.8, INFINITY, 60, 0, 1000, NAN, 0.3}, 80},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_true(fabs(weight_compute(&rows[i].inputs) - rows[i].weight) < 1e-9);
}

static void test_weight_waits_for_a_tenth(void **state)
{
    (void)state;
    assert_true(weight_tell(-1, 73) == 73);
    assert_true(weight_tell(50, 54.9) == 50 && weight_tell(50, 45.1) == 50);
    assert_true(weight_tell(50, 55.1) == 55.1 && weight_tell(50, 44.9) == 44.9);
    assert_true(weight_tell(95, 100) == 100 && weight_tell(0.5, 0) == 0); /* the ends are always told */
    assert_true(weight_tell(0, 3) == 3);
    struct weight_inputs inputs = idle;
    double told = -1;
    int changes = 0;
    for (int i = 0; i < 1000; i++) { /* a queue that comes and goes, request by request */
        inputs.queue = 400 + (i % 2 ? 20 : -20);
        double next = weight_tell(told, weight_compute(&inputs));
        changes += next != told;
        told = next;
    }
    assert_int_equal(changes, 1);
}

static void test_weight_of_what_can_wait(void **state)
{
    (void)state;
    static const struct {
        double weight, green_w, watts, work_w, told;
    } rows[] = {
        {100, NAN, 50, 60, 100}, /* nobody tells */
        {100, 80, 50, 60, 50},   /* half of its work */
        {30, 80, 50, 60, 30},    /* no room for it */
        {100, 50, 50, 60, 0},    {100, 0, 50, 60, 0},
        {100, 500, 50, 60, 100}, {100, 80, 50, 0, 100}, /* what it draws at full work is not known */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_true(fabs(weight_deferrable(rows[i].weight, rows[i].green_w, rows[i].watts, rows[i].work_w) -
                         rows[i].told) < 1e-9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weight_of_what_can_wait),
        cmocka_unit_test(test_weight_by_hand),
        cmocka_unit_test(test_weight_waits_for_a_tenth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
