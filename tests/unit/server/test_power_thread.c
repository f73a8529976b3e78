/* The power thread with its real thread and the simulated meter: two engines' ports, requests of both, a port that is
 * closed right after its last step. Whatever the times were, every joule is somebody's or nobody's, once. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "server/power/power_thread.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

enum { REQUESTS = 40, WAIT_ROUNDS = 2000 };

struct noted {
    _Atomic uint32_t count;
    _Atomic uint64_t uj, part[2 * REQUESTS + 2];
};

static void note(void *state, const struct energy_note *note)
{
    struct noted *noted = state;
    assert_null(record_energy_wrong(&note->energy));
    uint64_t uj = record_energy_uj(&note->energy);
    atomic_fetch_add(&noted->part[note->part], uj);
    atomic_fetch_add(&noted->uj, uj);
    atomic_fetch_add(&noted->count, 1);
}

static void nap(uint64_t ns)
{
    nanosleep(&(struct timespec){.tv_nsec = (long)ns}, NULL);
}

/* A step of 2 ms of one request, in real time. */
static void step(struct power_port *port, uint64_t id, uint32_t class)
{
    const struct energy_share share = {
        .request_id = id, .decode_rows = 1, .decode_context = 50, .sequences = 1, .group = class};
    uint64_t start_ns = clock_now_ns(clock_system());
    struct power_step record = {.work = {1, 0, 0, 1, 50}, .joules = 1};
    power_port_launched(port, start_ns, &record, &share, 1);
    nap(2 * NS_PER_MS);
    record.start_ns = start_ns;
    record.end_ns = clock_now_ns(clock_system());
    power_port_stepped(port, &record, 0);
}

static void begin(struct power *power, uint64_t id)
{
    struct charge charge = {.account = 1, .part = (uint32_t)id};
    power_request_begin(power, id, &(struct request_energy_who){.tenant = 1, .tenant_name = "t", .charge = &charge});
}

static struct power_usage settled(struct power *power, uint64_t ended)
{
    struct power_usage usage;
    for (uint32_t i = 0; i < WAIT_ROUNDS; i++) {
        power_read_usage(power, &usage);
        if (usage.requests.ended + usage.requests.unbooked == ended) return usage;
        nap(10 * NS_PER_MS);
    }
    fail_msg("only %u of %u requests were booked", (unsigned)usage.requests.ended, (unsigned)ended);
    return usage;
}

static void test_power_thread_books_requests(void **state)
{
    (void)state;
    static struct noted noted;
    struct power *power;
    struct power_port *a, *b;
    struct error err;
    const struct power_config config = {.sensor = "simulated",
                                        .idle_w = 40,
                                        .full_w = 100,
                                        .note = note,
                                        .note_state = &noted,
                                        .clock = clock_system()};
    assert_int_equal(power_create(&config, &power, &err), ST_OK);
    assert_int_equal(power_open_port(power, "one", &a), ST_OK);
    assert_int_equal(power_open_port(power, "two", &b), ST_OK);
    nap(150 * NS_PER_MS); /* the meter's first move: what is before it is nobody's */
    for (uint64_t id = 1; id <= REQUESTS; id++) {
        begin(power, id);
        for (uint32_t i = 0; i < 4; i++) step(id % 2 ? a : b, id, id % 3 ? CLASS_DEFAULT : CLASS_BATCH);
        assert_true(power_request_joules(power, id, 0, 4, 1) > 0); /* whatever is told of it by now */
        power_request_end(power, id, 0);
    }
    begin(power, REQUESTS + 1); /* refused: it has no step */
    power_request_end(power, REQUESTS + 1, 0);
    power_close_port(power, b); /* with what it has told in it */
    struct power_usage usage = settled(power, REQUESTS + 1);
    const struct energy_books *books = &usage.books;
    assert_int_equal(usage.requests.ended, REQUESTS);
    assert_int_equal(usage.count, 2);
    assert_string_equal(usage.models[1], "two");
    uint64_t groups_uj = 0;
    for (uint32_t model = 0; model < 2; model++) {
        assert_true(usage.groups[model][CLASS_DEFAULT].decode_uj > 0 && usage.groups[model][CLASS_BATCH].decode_uj > 0);
        for (uint32_t class = 0; class < CLASS_COUNT; class ++) groups_uj += usage.groups[model][class].decode_uj;
    }
    assert_int_equal(groups_uj, books->decode_uj);
    assert_int_equal(books->meter_uj,
                     books->decode_uj + books->prefill_uj + books->idle_uj + books->paced_uj + books->unattributed_uj);
    assert_int_equal(atomic_load(&noted.count), REQUESTS);
    assert_int_equal(atomic_load(&noted.uj), books->decode_uj);
    for (uint32_t id = 1; id <= REQUESTS; id++) assert_true(atomic_load(&noted.part[id]) > 0);
    struct power_state shown;
    power_read_state(power, &shown);
    assert_int_equal(shown.steps_lost, 0);
    begin(power, REQUESTS + 2); /* its last window is closed by nobody any more: it is told what it has */
    step(a, REQUESTS + 2, CLASS_DEFAULT);
    nap(250 * NS_PER_MS);
    power_request_end(power, REQUESTS + 2, 0);
    power_close_port(power, a);
    power_destroy(power);
    assert_int_equal(atomic_load(&noted.count), REQUESTS + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_power_thread_books_requests)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
