/* P17, the self-use rule (of a plant's output 60 % used, of the demand 30 % covered): an hourly excerpt of a week of
 * sun and wind, looped to a month, over the real planner of deferrable work and the real account of green energy. The
 * ratio is what doubles say, and better than that of a node that runs its work as it comes; nothing is late. */
#include "tests/unit/unit.h"

#include "runtime/power/carbon.h"
#include "scheduler/deadline.h"

#include <math.h>

enum { WEEK = 168, SLOT_MS = 900000, SLOTS = 30 * 96, AHEAD = 192, JOBS = 2000 };

/* Per mille of the installed power, means of hours. From SimBench 1.6.3 (www.simbench.net: University of Kassel, TU
 * Dortmund, RWTH Aachen University, Fraunhofer IEE and contributors), RESProfile.csv, PV4 and WP7, 8 to 14 April 2016;
 * a derived database, under the Open Database License 1.0 as its source. */
static const uint16_t sun[WEEK] = {
    0, 0, 0, 0, 0, 0, 41, 150, 249, 370, 510, 554, 568, 538, 443, 305, 147, 58, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0,  0,   0,   20,  55,  79,  95,  66,  76,  45,  0,   0,  0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0,  0,   19,  90,  145, 128, 131, 139, 157, 171, 140, 57, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0,  0,   30,  138, 214, 168, 254, 389, 317, 230, 136, 56, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 42, 142, 204, 217, 229, 270, 366, 455, 330, 212, 105, 47, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0,  0,   25,  238, 543, 569, 567, 510, 355, 227, 121, 57, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 43, 143, 235, 375, 481, 486, 529, 491, 344, 248, 135, 59, 0, 0, 0, 0, 0, 0};
static const uint16_t wind[WEEK] = {
    101, 190, 324, 419, 560, 714, 660, 396, 366, 516, 572, 741, 919, 913, 789, 596, 440, 593, 678, 592, 631,
    571, 455, 465, 543, 674, 680, 654, 695, 717, 716, 683, 759, 766, 807, 837, 884, 935, 974, 861, 677, 605,
    469, 508, 697, 758, 733, 736, 745, 826, 862, 867, 874, 858, 879, 930, 906, 875, 849, 744, 764, 863, 947,
    974, 944, 921, 923, 946, 957, 933, 924, 912, 889, 887, 884, 847, 814, 777, 764, 838, 928, 990, 991, 989,
    989, 990, 990, 990, 991, 990, 991, 991, 984, 956, 932, 918, 823, 696, 600, 480, 426, 481, 523, 323, 140,
    163, 114, 81,  101, 97,  76,  54,  23,  8,   2,   18,  72,  103, 84,  73,  47,  21,  10,  7,   8,   9,
    8,   12,  13,  14,  12,  11,  13,  9,   6,   6,   3,   0,   0,   3,   7,   4,   5,   9,   9,   7,   11,
    18,  25,  24,  23,  25,  31,  31,  43,  48,  68,  97,  114, 79,  28,  11,  19,  55,  89,  59,  109, 226};

/* Watts at a slot of the month. */
static double green_w(uint32_t slot)
{
    uint32_t hour = slot / 4 % WEEK;
    return 3.0 * sun[hour] + 0.4 * wind[hour];
}

struct month {
    struct carbon carbon;
    struct carbon_rest rest;
    double exact_j, offered_j, drawn_j;
};

static void draw(struct month *month, uint32_t slot, double joules)
{
    double on_offer_j = green_w(slot) * SLOT_MS * 1e-3;
    struct carbon_rates rates = {.pue = 1, .green_w = green_w(slot)};
    struct carbon one = carbon_of(&rates, (uint64_t)(joules * 1e6), (uint64_t)SLOT_MS * 1000000, &month->rest);
    carbon_add(&month->carbon, &one);
    month->exact_j += fmin(joules, on_offer_j);
    month->offered_j += on_offer_j;
    month->drawn_j += joules;
}

/* Interactive work is always there; a job comes with each slot and has a day. */
static const double INTERACTIVE_J = 150.0 * 900, JOB_J = 300.0 * 900, CAPACITY_J = 1200.0 * 900;

static void tell(void *state, const struct deadline_news *news)
{
    uint32_t *released = state;
    assert_true(news->released && released[0] < JOBS);
    released[++released[0]] = news->job;
}

static void profile(struct deadline *d, uint32_t slot, int64_t now_ms)
{
    static struct deadline_slot slots[AHEAD];
    for (uint32_t i = 0; i < AHEAD; i++) /* no forecast: what is on offer now, and nothing is known of later */
        slots[i] = (struct deadline_slot){.capacity = CAPACITY_J,
                                          .likely = CAPACITY_J,
                                          .green = i ? 0 : fmax(0, green_w(slot) * SLOT_MS * 1e-3 - INTERACTIVE_J)};
    deadline_profile(d, now_ms, slots, AHEAD, DEADLINE_GREEN, false);
}

static void controlled(struct month *month)
{
    static uint32_t released[JOBS + 1];
    struct deadline *d;
    struct error err;
    assert_int_equal(
        deadline_create(&(struct deadline_config){.jobs_max = JOBS, .margin_slots = 2, .slot_ms = SLOT_MS}, &d, &err),
        ST_OK);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        int64_t now_ms = (int64_t)(slot + 1000) * SLOT_MS, earliest_ms;
        uint32_t idx;
        double joules = INTERACTIVE_J;
        profile(d, slot, now_ms);
        struct deadline_job job = {.work = JOB_J, .deadline_ms = now_ms + 96 * SLOT_MS, .mode = DEADLINE_PREFER};
        assert_int_equal(deadline_admit(d, &job, now_ms, &idx, &earliest_ms), ST_OK);
        released[0] = 0;
        (void)deadline_choose(d, now_ms, tell, released);
        for (uint32_t i = 1; i <= released[0]; i++) {
            assert_true(deadline_end_ms(d, released[i]) >= now_ms + SLOT_MS); /* none late */
            deadline_start(d, released[i]);
            deadline_left(d, released[i], 0);
            deadline_remove(d, released[i], true);
            joules += JOB_J;
        }
        draw(month, slot, joules);
    }
    deadline_destroy(d);
}

static double ratio(const struct month *month)
{
    double used_j = (double)month->carbon.green_uj * 1e-6;
    assert_true(fabs(used_j - month->exact_j) < 1e-3 + 1e-9 * month->exact_j);
    return used_j / month->offered_j;
}

static void test_self_use(void **state)
{
    (void)state;
    struct month plain = {.exact_j = 0}, planned = {.exact_j = 0};
    for (uint32_t slot = 0; slot < SLOTS; slot++) draw(&plain, slot, INTERACTIVE_J + JOB_J);
    controlled(&planned);
    double covered = (double)planned.carbon.green_uj * 1e-6 / planned.drawn_j;
    print_message("self-use %.1f %% planned, %.1f %% as it comes; demand covered %.1f %%\n", 100 * ratio(&planned),
                  100 * ratio(&plain), 100 * covered);
    assert_true(planned.drawn_j > 0.95 * plain.drawn_j); /* the last day's jobs may still wait */
    assert_true(ratio(&planned) > ratio(&plain) + 0.05);
    assert_true(ratio(&planned) >= 0.6 && covered >= 0.3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_self_use)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
