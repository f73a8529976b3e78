/* The rings between an engine and the power thread when they are full: nothing waits, what is lost is counted and told
 * by the next record, and shares never come with the wrong step. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "scheduler/power_port.h"

static void step(struct power_port *port, uint64_t id, uint32_t count, bool ends)
{
    static struct energy_share shares[POWER_SHARES_MAX];
    struct power_step record = {.start_ns = 10 * id, .end_ns = 10 * id + 5, .work = {1, 2, 3, 4, 5}};
    for (uint32_t i = 0; i < count; i++) shares[i] = (struct energy_share){.request_id = id, .sequences = i};
    power_port_launched(port, 10 * id, &record, shares, count);
    if (ends) power_port_stepped(port, &record, 0);
}

static void expect(struct power_port *port, uint64_t id, uint32_t count)
{
    static struct energy_share shares[POWER_SHARES_MAX];
    struct power_step record;
    assert_true(power_port_take(port, &record));
    assert_int_equal(record.start_ns, 10 * id);
    assert_int_equal(power_port_shares(port, &record, shares), count);
    for (uint32_t i = 0; i < count; i++) assert_true(shares[i].request_id == id && shares[i].sequences == i);
    assert_int_equal(power_port_shares(port, &record, shares), 0); /* once */
}

/* A step that was launched and never ran leaves shares behind. */
static void test_power_port_shares(void **state)
{
    (void)state;
    struct power_port port;
    assert_int_equal(power_port_init(&port), ST_OK);
    step(&port, 1, 3, true);
    step(&port, 2, 7, false);
    step(&port, 3, 1, true);
    expect(&port, 1, 3);
    expect(&port, 3, 1);
    step(&port, 4, POWER_SHARES_MAX - 1, true);
    step(&port, 5, 2, true); /* no room for both: it has none */
    step(&port, 6, 1, true);
    assert_int_equal(atomic_load(&port.lost), 1);
    expect(&port, 4, POWER_SHARES_MAX - 1);
    expect(&port, 5, 0);
    expect(&port, 6, 1);
    power_port_free(&port);
}

static void test_power_port_missed(void **state)
{
    (void)state;
    struct power_port port;
    struct power_step record;
    struct energy_share shares[4];
    assert_int_equal(power_port_init(&port), ST_OK);
    for (uint64_t id = 1; id <= POWER_STEPS_MAX + 3; id++) step(&port, id, 1, true);
    assert_int_equal(atomic_load(&port.lost), 3);
    for (uint64_t id = 1; id <= POWER_STEPS_MAX; id++) expect(&port, id, 1);
    assert_false(power_port_take(&port, &record));
    step(&port, 9000, 2, true);
    assert_true(power_port_take(&port, &record));
    assert_true(record.missed.work.steps == 3 && record.missed.work.prefill_pairs == 9);
    assert_int_equal(record.missed.start_ns, 10 * (POWER_STEPS_MAX + 1));
    assert_int_equal(record.missed.end_ns, 10 * (POWER_STEPS_MAX + 3) + 5);
    assert_int_equal(power_port_shares(&port, &record, shares), 2);
    assert_int_equal(shares[0].request_id, 9000);
    step(&port, 9001, 1, true);
    assert_true(power_port_take(&port, &record) && record.missed.work.steps == 0); /* told once */
    power_port_free(&port);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_power_port_shares),
        cmocka_unit_test(test_power_port_missed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
