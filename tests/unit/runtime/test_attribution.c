/* The books of the meter: every microjoule stands in one account, whatever meter and steps do; what requests are told
 * is what a plain computation in doubles gives; and it is close to the Shapley value where dividing by tokens is not.
 */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/power/attribution.h"

#include <math.h>

#define MS UINT64_C(1000000)
#define S  (1000 * MS)

static const struct energy_model device = {.joules = {4.0, 0.12, 3e-6, 0.35, 1.5e-4}};
static const struct attribution_config roomy = {
    .groups_max = 3, .accounts_max = 64, .steps_max = 256, .shares_max = 4096};

static struct attribution *make(const struct attribution_config *config)
{
    struct attribution *at;
    struct error err = {""};
    assert_int_equal(attribution_create(config, &at, &err), ST_OK);
    return at;
}

static void meter(struct attribution *at, uint64_t ns, uint64_t uj, double idle_w)
{
    static uint64_t changes;
    attribution_meter(at, &(struct sensor_reading){.energy_uj = uj, .published_ns = ns, .changes = ++changes}, idle_w);
}

static struct energy_books books_of(const struct attribution *at)
{
    struct energy_books books;
    attribution_books(at, &books);
    assert_int_equal(books.prefill_uj + books.decode_uj + books.idle_uj + books.paced_uj + books.unattributed_uj,
                     books.meter_uj);
    assert_true(books.idle_shared_uj <= books.idle_uj + books.paced_uj);
    return books;
}

/* Two windows of a second at 300 J, 100 W base; a step of a prefill (4 + 12 + 24 J by the model) from 0.2 to 0.6 s, a
 * pause to 0.7 s, then one of two decode rows (2 + 0.35 + 0.15 J and 2 + 0.35 + 0.45 J) from 0.9 to 1.1 s. */
static void test_attribution_by_hand(void **state)
{
    (void)state;
    struct attribution *at = make(&roomy);
    const struct energy_share prompt = {1, 100, 0, 8e6, 0, 0, 0};
    const struct energy_share rows[2] = {{1, 0, 1, 0, 1000, 0, 0}, {2, 0, 1, 0, 3000, 0, 0}};
    struct energy_account account;
    meter(at, 0, 5000000, 100);
    attribution_step(at, &device, 200 * MS, 600 * MS, &prompt, 1);
    attribution_pause(at, 600 * MS, 700 * MS);
    meter(at, 1 * S, 305000000, 100);
    assert_int_equal(books_of(at).meter_uj, 0); /* a step may be under way */
    assert_int_equal(books_of(at).pending_uj, 300000000);
    attribution_step(at, &device, 900 * MS, 1100 * MS, rows, 2);
    struct energy_books books = books_of(at);
    assert_int_equal(books.meter_uj, 300000000);
    assert_int_equal(books.idle_uj, 40000000); /* 0.2 s and 0.2 s */
    assert_int_equal(books.paced_uj, 10000000);
    /* 250 J over 40 J and half of 5.3 J */
    double prefill = 250e6 * 40 / 42.65, first = 250e6 * 1.25 / 42.65, second = 250e6 * 1.4 / 42.65;
    assert_true(attribution_look(at, 1, &account));
    assert_true(fabs((double)account.prefill_uj - prefill) <= 1);
    assert_true(fabs((double)account.decode_uj - first) <= 1);
    assert_true(fabs((double)account.idle_share_uj - 50e6 * (40 + 1.25) / 42.65) <= 1);
    assert_true(attribution_look(at, 2, &account));
    assert_true(fabs((double)account.decode_uj - second) <= 1);
    assert_int_equal(books.idle_shared_uj, 50000000);
    assert_true(attribution_end(at, 1));
    assert_false(attribution_end(at, 1));
    assert_false(attribution_end(at, 3));
    assert_false(attribution_take(at, &account)); /* half of its last step is in a window to come */
    meter(at, 2 * S, 605000000, 100);
    assert_false(attribution_take(at, &account));
    attribution_known(at, 2 * S);
    assert_true(attribution_take(at, &account));
    assert_int_equal(account.request_id, 1);
    assert_int_equal(account.flags, 0);
    assert_true(fabs((double)account.decode_uj - first - 210e6 * 1.25 / 2.65) <= 2);
    assert_false(attribution_look(at, 1, &account));
    assert_int_equal(books_of(at).idle_uj, 130000000);
    attribution_destroy(at);
}

/* Without steps all is idle, more or less than was thought; a base power above the mean is not believed. */
static void test_attribution_idle(void **state)
{
    (void)state;
    struct attribution *at = make(&roomy);
    const struct sensor_reading unmoved = {.energy_uj = 9};
    attribution_meter(at, &unmoved, 100); /* a meter that has told nothing yet: no window begins */
    meter(at, 50 * S, 0, 100);
    attribution_meter(at, &unmoved, 100);
    meter(at, 51 * S, 0, 100);
    attribution_known(at, 51 * S);
    assert_int_equal(books_of(at).windows, 1);
    assert_int_equal(books_of(at).meter_backwards, 0);
    attribution_flush(at);
    attribution_destroy(at);
    at = make(&roomy);
    meter(at, 0, 0, 100);
    attribution_known(at, 1 * S);
    meter(at, 1 * S, 130000000, 100);
    assert_int_equal(books_of(at).idle_uj, 130000000);
    attribution_pause(at, 1 * S, 1250 * MS);
    attribution_known(at, 2 * S);
    meter(at, 2 * S, 210000000, 100);
    assert_int_equal(books_of(at).idle_uj, 190000000);
    assert_int_equal(books_of(at).paced_uj, 20000000);
    const struct energy_share row = {1, 0, 1, 0, 1000, 0, 0};
    attribution_step(at, &device, 2 * S, 2500 * MS, &row, 1);
    attribution_known(at, 3 * S);
    meter(at, 3 * S, 260000000, 100); /* 50 J in a second */
    assert_int_equal(books_of(at).idle_uj, 215000000);
    assert_int_equal(books_of(at).decode_uj, 25000000);
    const struct energy_model nothing = {.joules = {0}}; /* a model that knows of no cost gives no reason to charge */
    attribution_step(at, &nothing, 3 * S, 4 * S, &row, 1);
    meter(at, 4 * S, 460000000, 100);
    assert_int_equal(books_of(at).unattributed_uj, 200000000);
    attribution_destroy(at);
}

/* A share of several sequences bears the fixed part of so many: as if each had its own. */
static void test_attribution_sequences(void **state)
{
    (void)state;
    struct attribution *at = make(&roomy);
    const struct energy_share together[2] = {{1, 50, 0, 0, 0, 0, 0}, {2, 0, 3, 0, 900, 3, 0}};
    struct energy_account prompt, rows;
    meter(at, 0, 0, 0);
    attribution_step(at, &device, 0, 1 * S, together, 2);
    meter(at, 1 * S, 100000000, 0);
    assert_true(attribution_look(at, 1, &prompt) && attribution_look(at, 2, &rows));
    double all = 4 + 50 * 0.12 + 3 * 0.35 + 900 * 1.5e-4; /* one of four sequences, and three */
    assert_true(fabs((double)prompt.prefill_uj - 100e6 * (1 + 6) / all) <= 1);
    assert_true(fabs((double)rows.decode_uj - 100e6 * (3 + 1.05 + 0.135) / all) <= 1);
    attribution_destroy(at);
}

/* What is nobody's: a spike, a clock that stands, steps that were lost, and what did not fit. */
static void test_attribution_nobodys(void **state)
{
    (void)state;
    const struct attribution_config small = {.accounts_max = 2, .steps_max = 3, .shares_max = 4, .full_w = 1000};
    struct attribution *at = make(&small);
    const struct energy_share rows[5] = {
        {1, 0, 1, 0, 0, 0, 0}, {2, 0, 1, 0, 0, 0, 0}, {3, 0, 1, 0, 0, 0, 0}, {4, 0, 1, 0, 0, 0, 0}};
    struct energy_account account;
    meter(at, 0, 0, 0);
    attribution_step(at, &device, 0, 1 * S, rows, 2);
    meter(at, 1 * S, 10000000000, 0);
    assert_int_equal(books_of(at).unattributed_uj, 10000000000 - 1500000000);
    meter(at, 1 * S, 10000000000 + 7, 0);
    assert_int_equal(books_of(at).unattributed_uj, 8500000007);
    meter(at, 500 * MS, 9000000000, 0); /* backwards in both */
    assert_int_equal(books_of(at).unattributed_uj, 8500000007);
    assert_int_equal(books_of(at).meter_backwards, 3);
    attribution_lost(at, 1 * S, 2 * S, 12);
    meter(at, 2 * S, 9100000000, 0);
    assert_int_equal(books_of(at).unattributed_uj, 8600000007);
    attribution_step(at, &device, 2 * S, 2500 * MS, rows, 4); /* two accounts are no place for four: half is nobody's */
    attribution_step(at, &device, 2500 * MS, 3 * S, rows, 5); /* nor are the shares left for five */
    meter(at, 3 * S, 9200000000, 0);
    assert_true(attribution_look(at, 2, &account) && account.flags == ENERGY_PARTIAL);
    struct energy_books books = books_of(at);
    double step = 4 + 4 * 0.35, lost = step / 2 + 4 + 4 * 0.35;
    assert_true(fabs((double)(books.unattributed_uj - 8600000007) - 100e6 * lost / (2 * step)) <= 2);
    for (uint32_t i = 0; i < 10; i++) /* spans that do not fit become one */
        attribution_step(at, &device, 3 * S + i * 100 * MS, 3 * S + (i + 1) * 100 * MS, rows, 1);
    meter(at, 4 * S, 9300000000, 0);
    struct energy_books after = books_of(at);
    assert_int_equal(after.decode_uj - books.decode_uj, 20000000);
    assert_int_equal(after.unattributed_uj - books.unattributed_uj, 80000000);
    assert_true(attribution_end(at, 1));
    assert_true(attribution_take(at, &account));
    attribution_step(at, &device, 4 * S, 4500 * MS, &rows[2], 1); /* its place is free again */
    attribution_step(at, &device, 4500 * MS, 5 * S, &rows[1], 1);
    meter(at, 5 * S + 1, 9400000000, 0);
    assert_true(attribution_end(at, 3) && attribution_end(at, 2));
    assert_false(attribution_take(at, &account));
    attribution_flush(at);
    assert_int_equal(books_of(at).pending_uj, 0);
    assert_int_equal(books_of(at).meter_uj, 10000000007 + 400000000);
    assert_true(attribution_take(at, &account) && account.request_id == 3 && account.flags == ENERGY_PARTIAL);
    assert_true(attribution_take(at, &account) && account.request_id == 2);
    attribution_step(at, &device, 6 * S, 8 * S, &rows[3], 1); /* half of it before the first window: 50 J of 100 W */
    meter(at, 7 * S, 77, 0);
    meter(at, 8 * S, 50000077, 0);
    assert_true(attribution_end(at, 4) && attribution_take(at, &account));
    assert_int_equal(account.decode_uj, 50000000);
    assert_int_equal(account.flags, ENERGY_PARTIAL);
    attribution_destroy(at);
}

/* A meter's time that jumps forth and back costs two windows, not the rest of the day. */
static void test_attribution_clock_jump(void **state)
{
    (void)state;
    struct attribution *at = make(&roomy);
    const struct energy_share row = {1, 0, 1, 0, 1000, 0, 0};
    meter(at, 0, 0, 0);
    attribution_known(at, 2 * S);
    meter(at, 3600 * S, 100000000, 0);
    assert_int_equal(books_of(at).pending_uj, 100000000);
    meter(at, 1 * S, 200000000, 0);
    assert_int_equal(books_of(at).unattributed_uj, 200000000);
    assert_int_equal(books_of(at).pending_uj, 0);
    attribution_step(at, &device, 2 * S, 3 * S, &row, 1);
    meter(at, 3 * S, 300000000, 0);
    assert_int_equal(books_of(at).decode_uj, 100000000);
    attribution_destroy(at);
}

/* A device that runs ahead: its steps' times overlap, and no time counts twice. A row that is told for a request whose
 * end was told is nobody's, and opens no account that nobody would end. */
static void test_attribution_ahead(void **state)
{
    (void)state;
    struct attribution *at = make(&roomy);
    const struct energy_share row = {1, 0, 1, 0, 1000, 0, 0};
    struct energy_account account;
    meter(at, 0, 0, 100);
    attribution_step(at, &device, 0, 300 * MS, &row, 1);
    attribution_step(at, &device, 200 * MS, 500 * MS, &row, 1);
    attribution_step(at, &device, 450 * MS, 400 * MS, &row, 1); /* of no time */
    attribution_known(at, 1 * S);
    meter(at, 1 * S, 300000000, 100);
    assert_int_equal(books_of(at).idle_uj, 50000000);
    assert_int_equal(books_of(at).decode_uj, 250000000);
    attribution_step(at, &device, 1 * S, 1500 * MS, &row, 1);
    assert_true(attribution_end(at, 1));
    attribution_step(at, &device, 1500 * MS, 2 * S, &row, 1);
    meter(at, 2 * S, 400000000, 100);
    assert_int_equal(books_of(at).unattributed_uj, 50000000);
    assert_true(attribution_take(at, &account));
    assert_int_equal(account.decode_uj, 300000000);
    assert_false(attribution_look(at, 1, &account));
    attribution_destroy(at);
}

/* A server in virtual time: requests come and go, steps, pauses and idle time; a meter with every fault. Beside it the
 * same in doubles, from all steps and windows kept. */
enum { LIVE = 12, STEPS = 4000, WINDOWS = 1200, REQUESTS = 1500, ROUNDS = 24, GROUPS = 3 };

struct kept_step {
    uint64_t start_ns, end_ns;
    uint32_t count, ids[LIVE];
    double joules[LIVE];
};

struct world {
    struct attribution *at;
    uint64_t rng, now_ns, meter_uj, told_uj, reading_ns, fed_uj, next_id;
    double exact_j; /* drawn */
    bool faults;
    uint32_t live_count, live[LIVE], left[LIVE];
    struct kept_step *steps;
    uint32_t step_count, window_count;
    uint64_t window_ns[WINDOWS], window_uj[WINDOWS];
    uint64_t told[REQUESTS];
    uint64_t taken_uj, taken_idle_uj;
    uint64_t taken_groups_uj[GROUPS + 1];
    struct carbon taken_carbon;
};

/* The books at any time: nothing over, nothing negative, and accounts are what the books say. */
static void check_books(struct world *w)
{
    struct energy_books books = books_of(w->at);
    struct energy_account account;
    uint64_t requests_uj = w->taken_uj, idle_uj = w->taken_idle_uj, groups_uj[GROUPS + 1];
    struct carbon carbon = w->taken_carbon;
    memcpy(groups_uj, w->taken_groups_uj, sizeof groups_uj);
    for (uint64_t id = 1; id < w->next_id; id++) {
        if (!attribution_look(w->at, id, &account)) continue;
        requests_uj += account.prefill_uj + account.decode_uj;
        idle_uj += account.idle_share_uj;
        groups_uj[id % (GROUPS + 1)] += account.prefill_uj + account.decode_uj;
        carbon_add(&carbon, &account.carbon);
    }
    for (uint32_t i = 0; i < GROUPS; i++) { /* the last is none of the books' */
        struct energy_group group;
        attribution_group(w->at, i, &group);
        assert_int_equal(group.prefill_uj + group.decode_uj, groups_uj[i]);
    }
    assert_memory_equal(&carbon, &books.carbon_requests, sizeof carbon);
    assert_true(carbon.location_ug <= books.carbon.location_ug && carbon.green_uj <= books.carbon.green_uj);
    assert_int_equal(requests_uj, books.prefill_uj + books.decode_uj);
    assert_int_equal(idle_uj, books.idle_shared_uj);
    assert_int_equal(books.meter_uj + books.pending_uj, w->fed_uj);
    const uint64_t parts[] = {books.idle_uj, books.paced_uj, books.unattributed_uj, books.prefill_uj, books.decode_uj};
    for (uint32_t i = 0; i < 5; i++) assert_true(parts[i] <= books.meter_uj);
}

static void take(struct world *w)
{
    struct energy_account account;
    while (attribution_take(w->at, &account)) {
        uint64_t uj = account.prefill_uj + account.decode_uj;
        assert_true(uj < INT64_MAX && account.idle_share_uj < INT64_MAX);
        w->told[account.request_id] = uj;
        w->taken_uj += uj;
        w->taken_idle_uj += account.idle_share_uj;
        w->taken_groups_uj[account.request_id % (GROUPS + 1)] += uj;
        carbon_add(&w->taken_carbon, &account.carbon);
    }
}

/* The meter moves; with faults it may freeze, be lost for long, repeat, spike, jump back, or stand in time. */
static void move_meter(struct world *w)
{
    static uint64_t changes;
    double kind = w->faults ? random_next_uniform(&w->rng) : 1;
    uint64_t uj = (uint64_t)(w->exact_j * 1e6), published_ns = w->now_ns, delta = uj - w->meter_uj;
    if (kind < 0.05) return;
    w->meter_uj = uj;
    if (kind < 0.08) delta *= 10;
    if (kind >= 0.08 && kind < 0.11) delta = 0; /* a wrap or reset, as sensor.h tells it */
    if (kind >= 0.11 && kind < 0.13 && w->reading_ns > 0) published_ns = w->reading_ns - random_next(&w->rng) % 1000;
    if (kind >= 0.13 && kind < 0.14) { /* a sensor that breaks its word */
        w->told_uj -= w->told_uj / 2;
        delta = 0;
    }
    w->told_uj += delta;
    if (w->reading_ns) w->fed_uj += delta;
    attribution_meter(
        w->at, &(struct sensor_reading){.energy_uj = w->told_uj, .published_ns = published_ns, .changes = ++changes},
        100);
    if (published_ns > w->reading_ns) w->reading_ns = published_ns;
    if (w->window_count < WINDOWS) {
        w->window_ns[w->window_count] = published_ns;
        w->window_uj[w->window_count++] = delta;
    }
    attribution_meter(
        w->at, &(struct sensor_reading){.energy_uj = w->told_uj + 5, .published_ns = w->now_ns + 5, .changes = changes},
        100); /* unmoved */
}

static void run_step(struct world *w, uint64_t ns)
{
    struct energy_share shares[LIVE];
    struct kept_step *kept = &w->steps[w->step_count++];
    *kept = (struct kept_step){.start_ns = w->now_ns, .end_ns = w->now_ns + ns, .count = w->live_count};
    double joules = device.joules[0];
    for (uint32_t i = 0; i < w->live_count; i++) {
        bool prefill = random_next_uniform(&w->rng) < 0.2;
        double context = floor(random_next_uniform(&w->rng) * 4000);
        shares[i] = prefill ? (struct energy_share){w->live[i], 100, 0, context * 100, 0, 0, w->live[i] % (GROUPS + 1)}
                            : (struct energy_share){w->live[i], 0, 1, 0, context, 0, w->live[i] % (GROUPS + 1)};
        kept->ids[i] = w->live[i];
        kept->joules[i] =
            device.joules[0] / w->live_count + (prefill ? device.joules[1] * 100 + device.joules[2] * context * 100
                                                        : device.joules[3] + device.joules[4] * context);
        joules += kept->joules[i] - device.joules[0] / w->live_count;
    }
    w->now_ns += ns;
    w->exact_j += joules * (0.8 + 0.4 * random_next_uniform(&w->rng));
    if (w->faults && random_next_uniform(&w->rng) < 0.02)
        attribution_lost(w->at, kept->start_ns, kept->end_ns, joules);
    else
        attribution_step(w->at, &device, kept->start_ns, kept->end_ns, shares, w->live_count);
    for (uint32_t i = 0; i < w->live_count; i++) {
        if (--w->left[i] > 0) continue;
        attribution_end(w->at, w->live[i]);
        w->live[i] = w->live[--w->live_count];
        w->left[i] = w->left[w->live_count];
        i--;
    }
}

static void run_world(struct world *w)
{
    uint64_t next_ns = 100 * MS;
    while (w->step_count < STEPS / 2 && w->window_count < WINDOWS) {
        while (w->live_count < LIVE && w->next_id < REQUESTS && random_next_uniform(&w->rng) < 0.3) {
            w->live[w->live_count] = (uint32_t)w->next_id++;
            w->left[w->live_count++] = 1 + (uint32_t)(random_next(&w->rng) % 60);
        }
        uint64_t ns = 1 + random_next(&w->rng) % (random_next_uniform(&w->rng) < 0.01 ? 900 * MS : 40 * MS);
        if (w->live_count > 0 && random_next_uniform(&w->rng) < 0.8) {
            run_step(w, ns);
        } else {
            bool paced = w->live_count > 0 && random_next_uniform(&w->rng) < 0.5;
            if (paced) attribution_pause(w->at, w->now_ns, w->now_ns + ns);
            w->now_ns += ns;
            w->exact_j += 100e-9 * (double)ns;
            attribution_known(w->at, w->now_ns);
        }
        if (w->now_ns >= next_ns) {
            move_meter(w);
            next_ns = w->now_ns + 60 * MS + random_next(&w->rng) % (80 * MS);
        }
        take(w);
        if (w->step_count % 16 == 0) check_books(w);
    }
    for (uint32_t i = 0; i < w->live_count; i++) attribution_end(w->at, w->live[i]);
    check_books(w);
}

static void world_init(struct world *w, uint64_t seed, const struct attribution_config *config, bool faults)
{
    *w = (struct world){.rng = seed, .faults = faults, .next_id = 1};
    w->at = make(config);
    attribution_rates(w->at, &(struct carbon_rates){.pue = 1.25, .green_w = 200, .mean_g = 360, .residual_g = 180});
    w->steps = calloc(STEPS, sizeof *w->steps);
}

static void world_free(struct world *w)
{
    attribution_destroy(w->at);
    free(w->steps);
}

/* At 360 g and PUE 1.25, 125 ug a joule by location; half of that by market where nothing is green. */
static void check_carbon(const struct energy_books *books)
{
    double joules = (double)books->meter_uj * 1e-6;
    assert_true(fabs((double)books->carbon.location_ug - 125 * joules) < 2);
    double grey_j = 1.25 * joules - (double)books->carbon.green_uj * 1e-6;
    assert_true(books->carbon.green_uj > 0 && grey_j > 0 && fabs((double)books->carbon.market_ug - 50 * grey_j) < 100);
    assert_int_equal(books->carbon.marginal_ug, 0);
    double share = (double)(books->prefill_uj + books->decode_uj) / (double)books->meter_uj;
    assert_true(fabs((double)books->carbon_requests.location_ug / (double)books->carbon.location_ug - share) < 0.01);
}

/* P15: with every fault, and with too little room, the residual is 0 at every look, and no account is negative. */
static void test_attribution_books_close(void **state)
{
    (void)state;
    static struct world w;
    for (uint64_t seed = 1; seed <= ROUNDS; seed++) {
        struct attribution_config config = roomy;
        if (seed % 3 == 0) config = (struct attribution_config){5, 9, 30, 0, GROUPS};
        if (seed % 2 == 0) config.full_w = 2000;
        world_init(&w, seed, &config, true);
        run_world(&w);
        attribution_flush(w.at);
        take(&w);
        check_books(&w);
        struct energy_books books = books_of(w.at);
        assert_int_equal(books.meter_uj, w.fed_uj);
        assert_int_equal(w.taken_uj, books.prefill_uj + books.decode_uj); /* every account was handed out */
        assert_true(books.prefill_uj > 0 && books.decode_uj > 0 && books.idle_uj > 0 && books.paced_uj > 0);
        assert_true(books.meter_backwards > 0 && books.unattributed_uj > 0);
        check_carbon(&books);
        world_free(&w);
    }
}

/* The window's joules over everything in it, in doubles. */
static void plain_window(const struct world *w, uint64_t begin, uint64_t end, uint64_t uj, double *requests)
{
    double weight = 0, busy_s = 0, window_s = (double)(end - begin) * 1e-9, base = 100;
    for (uint32_t pass = 0; pass < 2; pass++) {
        double steps_uj = (double)uj - base * (window_s - busy_s) * 1e6;
        for (uint32_t s = 0; s < w->step_count; s++) {
            const struct kept_step *step = &w->steps[s];
            uint64_t from = step->start_ns > begin ? step->start_ns : begin;
            uint64_t until = step->end_ns < end ? step->end_ns : end;
            if (until <= from) continue;
            double part = (double)(until - from) / (double)(step->end_ns - step->start_ns);
            if (pass == 0) busy_s += (double)(until - from) * 1e-9;
            for (uint32_t i = 0; i < step->count; i++) {
                if (pass == 0) weight += step->joules[i] * part;
                if (pass == 1) requests[step->ids[i]] += steps_uj * step->joules[i] * part / weight;
            }
        }
        if (pass == 0 && (double)uj * 1e-6 / window_s < base) base = (double)uj * 1e-6 / window_s;
    }
}

static void test_attribution_matches_plain(void **state)
{
    (void)state;
    static struct world w;
    static double requests[REQUESTS];
    for (uint64_t seed = 1; seed <= ROUNDS / 4; seed++) {
        memset(requests, 0, sizeof requests);
        world_init(&w, seed, &roomy, false);
        run_world(&w);
        take(&w);
        for (uint32_t i = 1; i < w.window_count; i++)
            plain_window(&w, w.window_ns[i - 1], w.window_ns[i], w.window_uj[i], requests);
        uint32_t compared = 0;
        for (uint32_t id = 1; id < w.next_id; id++) {
            struct energy_account live;
            if (attribution_look(w.at, id, &live)) continue;
            double error = fabs((double)w.told[id] - requests[id]);
            assert_true(error <= 2 * 60 + requests[id] * 1e-6); /* a microjoule a window and column */
            compared++;
        }
        assert_true(compared > 50);
        assert_int_equal(books_of(w.at).unattributed_uj, 0);
        world_free(&w);
    }
}

static void test_attribution_allocates_nothing(void **state)
{
    (void)state;
    static struct world w;
    world_init(&w, 77, &roomy, true);
    uint64_t before = mem_allocations();
    run_world(&w);
    assert_int_equal(mem_allocations(), before);
    world_free(&w);
    struct attribution *at;
    struct error err = {""};
    const struct attribution_config none = {0, 1, 1, 0, 0}, huge = {1, 1, UINT32_MAX, 0, 0};
    assert_int_equal(attribution_create(&none, &at, &err), ST_INVAL);
    assert_int_equal(attribution_create(&huge, &at, &err), ST_INVAL);
}

/* P16. Steps on a roofline: the weights are read once a step, the cache a row; the time is that of memory or of
 * arithmetic, whichever is longer. The Shapley value of a sequence: what it adds to a step's joules, meant over orders
 * in which the sequences come. */
enum { BATCH = 8, ORDERS = 2000, BATCHES = 1500 };

static double roofline_j(const struct energy_share *shares, const uint32_t *order, uint32_t count)
{
    double bytes = 16e9, flops = 0;
    if (count == 0) return 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct energy_share *s = &shares[order[i]];
        double tokens = s->prefill_tokens + s->decode_rows, pairs = s->prefill_pairs + s->decode_context;
        flops += 16e9 * tokens + 5e5 * pairs;
        bytes += 131072 * (s->decode_rows ? s->decode_context : s->prefill_tokens);
    }
    double memory_s = bytes / 2.7e12, compute_s = flops / 5e14, seconds = memory_s > compute_s ? memory_s : compute_s;
    return 150 * (seconds + 0.001) + 60e-12 * bytes + 0.5e-12 * flops;
}

static void shapley(const struct energy_share *shares, uint32_t count, uint64_t *rng, double *values)
{
    uint32_t order[BATCH];
    for (uint32_t i = 0; i < count; i++) order[i] = i, values[i] = 0;
    for (uint32_t n = 0; n < ORDERS; n++) {
        double before = 0;
        for (uint32_t i = count; i-- > 1;) {
            uint32_t k = (uint32_t)(random_next(rng) % (i + 1)), swap = order[i];
            order[i] = order[k];
            order[k] = swap;
        }
        for (uint32_t i = 0; i < count; i++) {
            double joules = roofline_j(shares, order, i + 1);
            values[order[i]] += (joules - before) / ORDERS;
            before = joules;
        }
    }
}

static uint32_t batch_make(struct energy_share *shares, uint64_t *rng)
{
    uint32_t count = 1 + (uint32_t)(random_next(rng) % BATCH);
    for (uint32_t i = 0; i < count; i++) {
        double context = 100 + floor(random_next_uniform(rng) * 3900),
               chunk = 64 + floor(random_next_uniform(rng) * 448);
        shares[i] = random_next_uniform(rng) < 0.15
                        ? (struct energy_share){i + 1, (uint32_t)chunk, 0, chunk * (context + chunk) / 2, 0, 0, 0}
                        : (struct energy_share){i + 1, 0, 1, 0, context, 0, 0};
    }
    return count;
}

static double batch_joules(const struct energy_share *shares, uint32_t count)
{
    uint32_t order[BATCH];
    for (uint32_t i = 0; i < count; i++) order[i] = i;
    return roofline_j(shares, order, count);
}

static void batch_learn(struct energy_model *model, uint64_t *rng)
{
    struct energy_share shares[BATCH];
    energy_model_init(model, 700);
    for (uint32_t n = 0; n < 3000; n++) {
        uint32_t count = batch_make(shares, rng);
        struct energy_work work = {.steps = 1};
        for (uint32_t i = 0; i < count; i++) {
            work.prefill_tokens += shares[i].prefill_tokens;
            work.prefill_pairs += shares[i].prefill_pairs;
            work.decode_rows += shares[i].decode_rows;
            work.decode_context += shares[i].decode_context;
        }
        energy_model_observe(model, &work, batch_joules(shares, count));
    }
}

static void test_attribution_near_shapley(void **state)
{
    (void)state;
    struct energy_model model;
    struct energy_share shares[BATCH];
    double values[BATCH], deviation = 0, flat_deviation = 0, sum = 0;
    uint64_t rng = 16, ns = 0, uj = 0;
    batch_learn(&model, &rng);
    struct attribution *at = make(&roomy);
    meter(at, 0, 0, 0);
    for (uint32_t n = 0; n < BATCHES; n++) {
        uint32_t count = batch_make(shares, &rng);
        double joules = batch_joules(shares, count), tokens = 0;
        shapley(shares, count, &rng, values);
        attribution_step(at, &model, ns, ns + 10 * MS, shares, count);
        ns += 10 * MS;
        uj += (uint64_t)(joules * 1e6);
        meter(at, ns, uj, 0);
        for (uint32_t i = 0; i < count; i++) tokens += shares[i].prefill_tokens + shares[i].decode_rows;
        for (uint32_t i = 0; i < count; i++) {
            struct energy_account account;
            assert_true(attribution_end(at, i + 1) && attribution_take(at, &account));
            double told = (double)(account.prefill_uj + account.decode_uj) * 1e-6;
            double flat = joules * (shares[i].prefill_tokens + shares[i].decode_rows) / tokens;
            deviation += fabs(told - values[i]);
            flat_deviation += fabs(flat - values[i]);
            sum += values[i];
        }
    }
    print_message("deviation from the Shapley value: %.2f %%, by tokens %.2f %%\n", 100 * deviation / sum,
                  100 * flat_deviation / sum);
    assert_true(deviation <= 0.05 * sum);
    assert_true(flat_deviation >= 3 * deviation);
    attribution_destroy(at);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attribution_by_hand),           cmocka_unit_test(test_attribution_idle),
        cmocka_unit_test(test_attribution_sequences),         cmocka_unit_test(test_attribution_nobodys),
        cmocka_unit_test(test_attribution_clock_jump),        cmocka_unit_test(test_attribution_ahead),
        cmocka_unit_test(test_attribution_books_close),       cmocka_unit_test(test_attribution_matches_plain),
        cmocka_unit_test(test_attribution_allocates_nothing), cmocka_unit_test(test_attribution_near_shapley),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
