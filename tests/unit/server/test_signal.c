/* The slot store: what is taken and refused, how it ages, and how sources are merged. Times are arguments; T is the
 * begin of a quarter of an hour. */
#include "tests/unit/unit.h"

#include "server/power/signal.h"

#include <math.h>
#include <pthread.h>

#define T INT64_C(1763892000000)
enum { SLOT = SIGNAL_SLOT_MS, PERIOD = 60000, FULL_W = 100 };

static struct signals *open_store(double default_cap_w)
{
    struct signals *signals;
    struct error err;
    struct signal_config config = {.default_cap_w = default_cap_w,
                                   .constants = {.have = SLOT_PRICE | SLOT_PUE, .price_kwh = 0.5, .pue = 1.2}};
    assert_int_equal(signal_create(&config, &signals, &err), ST_OK);
    signal_set_nameplate(signals, FULL_W);
    return signals;
}

static uint16_t add(struct signals *signals, const char *name, uint32_t rank, double share, bool limits)
{
    uint16_t index;
    struct error err;
    struct signal_source source = {name, rank, PERIOD, share, limits};
    assert_int_equal(signal_register(signals, &source, &index, &err), ST_OK);
    return index;
}

static struct power_slot cap(int64_t t0_ms, int32_t dur_s, double watts)
{
    return (struct power_slot){.t0_ms = t0_ms, .dur_s = dur_s, .have = SLOT_CAP, .cap_w = watts};
}

static struct power_slot at(struct signals *signals, int64_t unix_ms, int64_t now_ms)
{
    struct power_slot node;
    signal_at(signals, unix_ms, now_ms, &node);
    return node;
}

static double cap_at(struct signals *signals, int64_t unix_ms, int64_t now_ms)
{
    struct power_slot node = at(signals, unix_ms, now_ms);
    return node.have & SLOT_CAP ? node.cap_w : INFINITY;
}

static uint32_t offer(struct signals *signals, uint16_t source, struct power_slot slot, int64_t now_ms)
{
    return signal_offer(signals, source, &slot, 1, now_ms);
}

static void assert_near(double value, double wanted)
{
    if (!(fabs(value - wanted) < 1e-9)) fail_msg("%.12g is not %.12g", value, wanted);
}

static void test_signal_slots(void **state)
{
    (void)state;
    struct signals *signals = open_store(0);
    uint16_t grid = add(signals, "grid", 0, 0.5, true);
    struct power_slot hour = {.t0_ms = T,
                              .dur_s = 3600,
                              .have = SLOT_CAP | SLOT_GREEN | SLOT_PRICE | SLOT_CO2 | SLOT_TARGET | SLOT_SHED,
                              .cap_w = 160,
                              .target_w = 140,
                              .green_w = 60,
                              .price_kwh = -0.1,
                              .gco2_kwh = 400,
                              .shed_level = 1,
                              .cap_hard = true,
                              .co2_marginal = true};
    assert_int_equal(offer(signals, grid, hour, T), 1);
    for (int64_t t = T; t < T + 4 * SLOT; t += SLOT / 3) {
        struct power_slot node = at(signals, t, T);
        assert_int_equal(node.have, 127); /* PUE is the constant */
        assert_near(node.cap_w, 80);      /* half of the hub's */
        assert_near(node.target_w, 70);
        assert_near(node.green_w, 30);
        assert_near(node.price_kwh, -0.1);
        assert_near(node.gco2_kwh, 400);
        assert_near(node.pue, 1.2);
        assert_true(node.cap_hard && node.co2_marginal && node.shed_level == 1 && node.source == grid);
        assert_int_equal(node.t0_ms, t - t % SLOT);
    }
    struct power_slot after = at(signals, T + 4 * SLOT, T);
    assert_int_equal(after.have & (SLOT_CAP | SLOT_TARGET | SLOT_GREEN | SLOT_SHED), 0);
    assert_near(after.price_kwh, -0.1); /* the last, for an hour: a source that is late */
    assert_int_equal(after.quality, SLOT_ESTIMATED);
    assert_near(at(signals, T + 8 * SLOT, T).price_kwh, 0.5); /* then the constant */
    /* Another offer begins a field anew and leaves the others. */
    assert_int_equal(offer(signals, grid, cap(T, 900, 100), T + 1000), 1);
    assert_near(cap_at(signals, T + 5000, T + 5000), 50);
    assert_near(at(signals, T, T + 5000).green_w, 30);
    assert_near(cap_at(signals, T + SLOT, T + 5000), 80);
    signal_destroy(signals);
}

/* Pieces of a quarter of an hour that one offer tells are averaged by time; caps of it keep their exact times. */
static void test_signal_pieces(void **state)
{
    (void)state;
    struct signals *signals = open_store(0);
    uint16_t grid = add(signals, "grid", 0, 1, true);
    struct power_slot pieces[3], node;
    for (int i = 0; i < 3; i++)
        pieces[i] = (struct power_slot){.t0_ms = T + i * 300000,
                                        .dur_s = i == 2 ? 600 : 300, /* the last goes on into the next quarter */
                                        .have = SLOT_CO2 | SLOT_CAP,
                                        .gco2_kwh = 100.0 * (i + 1),
                                        .cap_w = 60.0 + i};
    assert_int_equal(signal_offer(signals, grid, pieces, 3, T), 3);
    assert_near(at(signals, T, T).gco2_kwh, 200);
    assert_near(at(signals, T + SLOT, T).gco2_kwh, 300);
    for (int i = 0; i < 4; i++) assert_near(cap_at(signals, T + i * 300000 + 299999, T), i == 3 ? 62 : 60 + i);
    assert_true(isinf(cap_at(signals, T + SLOT + 300000, T)));
    signal_over_slot(signals, T + 899999, T, &node);
    assert_near(node.cap_w, 60); /* the lowest that comes up in it */
    signal_over_slot(signals, T + SLOT + 899999, T, &node);
    assert_near(node.cap_w, 62);
    /* An event on top of a plan: the lower cap, the event's target, and for its own time only. */
    struct power_slot plan = {.t0_ms = T, .dur_s = 1800, .have = SLOT_CAP | SLOT_TARGET, .cap_w = 90, .target_w = 50};
    struct power_slot event = {
        .t0_ms = T + 60000, .dur_s = 120, .have = SLOT_CAP | SLOT_TARGET, .cap_w = 95, .target_w = 70};
    assert_true(signal_replace(signals, grid, &plan, 1, T));
    assert_int_equal(offer(signals, grid, event, T), 1);
    assert_near(at(signals, T + 59999, T).target_w, 50);
    assert_near(at(signals, T + 60000, T).target_w, 70);
    assert_near(at(signals, T + 60000, T).cap_w, 90);
    assert_near(at(signals, T + 180000, T).target_w, 50);
    signal_destroy(signals);
}

/* Every reason, and that what is refused changes nothing. */
static void test_signal_refusals(void **state)
{
    (void)state;
    struct signals *signals = open_store(0);
    uint16_t grid = add(signals, "grid", 0, 1, true);
    int64_t now = T + 1000;
    assert_int_equal(offer(signals, grid, cap(T, 3600, 70), now), 1);
    struct power_slot before = at(signals, now, now), after;
    const struct power_slot base = {.t0_ms = T, .dur_s = 3600};
    struct {
        struct power_slot slot;
        enum signal_why why;
    } cases[40];
    uint32_t count = 0;
#define CASE(reason, ...)                                                                                              \
    do {                                                                                                               \
        struct power_slot slot = base;                                                                                 \
        __VA_ARGS__;                                                                                                   \
        cases[count].slot = slot;                                                                                      \
        cases[count++].why = reason;                                                                                   \
    } while (0)
    CASE(SIGNAL_NAN, slot.have = SLOT_CAP, slot.cap_w = NAN);
    CASE(SIGNAL_NAN, slot.have = SLOT_PRICE, slot.price_kwh = NAN);
    CASE(SIGNAL_INFINITE, slot.have = SLOT_CAP, slot.cap_w = INFINITY);
    CASE(SIGNAL_INFINITE, slot.have = SLOT_PRICE, slot.price_kwh = -INFINITY);
    CASE(SIGNAL_NEGATIVE, slot.have = SLOT_TARGET, slot.target_w = -1);
    CASE(SIGNAL_NEGATIVE, slot.have = SLOT_GREEN, slot.green_w = -1);
    CASE(SIGNAL_NEGATIVE, slot.have = SLOT_CO2, slot.gco2_kwh = -1);
    CASE(SIGNAL_NEGATIVE, slot.have = SLOT_PUE, slot.pue = -1.1);
    CASE(SIGNAL_NAMEPLATE, slot.have = SLOT_CAP, slot.cap_w = 10.01 * FULL_W);
    CASE(SIGNAL_NAMEPLATE, slot.have = SLOT_GREEN, slot.green_w = 10.01 * FULL_W);
    CASE(SIGNAL_IMPOSSIBLE, slot.have = SLOT_PUE, slot.pue = 0.9);
    CASE(SIGNAL_IMPOSSIBLE, slot.have = SLOT_CO2, slot.gco2_kwh = 20000);
    CASE(SIGNAL_IMPOSSIBLE, slot.have = SLOT_PRICE, slot.price_kwh = 2e6);
    CASE(SIGNAL_IMPOSSIBLE, slot.have = SLOT_SHED, slot.shed_level = 4);
    CASE(SIGNAL_IMPOSSIBLE, slot.have = SLOT_CAP, slot.dur_s = 0);
    CASE(SIGNAL_IMPOSSIBLE, slot.have = SLOT_CAP, slot.t0_ms = -1);
    CASE(SIGNAL_IMPOSSIBLE, slot.have = SLOT_CAP, slot.t0_ms = INT64_MAX);
    CASE(SIGNAL_IMPOSSIBLE, slot.have = 128 | SLOT_CAP);
    CASE(SIGNAL_CLOCK, slot.have = SLOT_CO2, slot.t0_ms = T + 3 * SLOT); /* measured, and not yet */
    CASE(SIGNAL_CLOCK, slot.have = SLOT_CAP, slot.received_ms = now + SLOT + 1);
    CASE(SIGNAL_CLOCK, slot.have = SLOT_CAP, slot.t0_ms = T - 30 * SLOT);
    CASE(SIGNAL_OLD, slot.have = SLOT_CAP, slot.cap_w = 20, slot.received_ms = now - 1);
#undef CASE
    uint64_t counted[SIGNAL_WHYS] = {0};
    struct signal_state shown;
    for (uint32_t i = 0; i < count; i++) {
        print_message("case %u: %s\n", i, signal_why_text(cases[i].why));
        assert_int_equal(offer(signals, grid, cases[i].slot, now), 0);
        assert_false(signal_replace(signals, grid, &cases[i].slot, 1, now));
        counted[cases[i].why] += 2;
        signal_read_state(signals, grid, now, &shown);
        assert_memory_equal(shown.rejected, counted, sizeof counted);
        assert_non_null(strstr(shown.message, signal_why_text(cases[i].why)));
        after = at(signals, now, now);
        assert_memory_equal(&before, &after, sizeof before);
    }
    assert_int_equal(shown.taken, 1);
    /* A good slot beside a bad one is taken by an offer, and by no replacement. */
    struct power_slot two[2] = {cap(T, 900, 60), cap(T + SLOT, 900, -60)};
    assert_false(signal_replace(signals, grid, two, 2, now));
    assert_near(cap_at(signals, T, now), 70);
    assert_int_equal(signal_offer(signals, grid, two, 2, now), 1);
    assert_near(cap_at(signals, T, now), 60);
    assert_near(cap_at(signals, T + SLOT, now), 70);
    /* What has no bit is not looked at. */
    assert_int_equal(offer(signals, grid, (struct power_slot){.t0_ms = T, .dur_s = 900, .cap_w = NAN}, now), 1);
    signal_destroy(signals);
}

/* Messages that overtake each other (P6): the newest word holds, in whatever order they come. */
static void test_signal_reordered(void **state)
{
    (void)state;
    for (int order = 0; order < 2; order++) {
        struct signals *signals = open_store(0);
        uint16_t grid = add(signals, "grid", 0, 1, true);
        struct power_slot old = cap(T, 1800, 80), new = cap(T, 900, 60);
        struct power_slot old_event = cap(T + 1000, 100, 50), new_event = cap(T + 1000, 100, 40);
        old.received_ms = old_event.received_ms = T + 10;
        new.received_ms = new_event.received_ms = T + 20;
        assert_int_equal(offer(signals, grid, order ? new : old, T + 30), 1);
        assert_int_equal(offer(signals, grid, order ? old : new, T + 40), order ? 0 : 1);
        assert_int_equal(offer(signals, grid, order ? new_event : old_event, T + 50), 1);
        assert_int_equal(offer(signals, grid, order ? old_event : new_event, T + 60), order ? 0 : 1);
        assert_near(cap_at(signals, T, T + 60), 60);
        assert_near(cap_at(signals, T + 1000, T + 60), 40);
        struct power_slot whole = cap(T, 900, 30), late = cap(T, 900, 90);
        whole.received_ms = T + 70;
        late.received_ms = T + 65;
        assert_true(signal_replace(signals, grid, &whole, 1, T + 80));
        assert_false(signal_replace(signals, grid, &late, 1, T + 90));
        late.t0_ms = T + 8 * SLOT; /* nothing is held of that time, but the word is older than the last whole one */
        assert_false(signal_replace(signals, grid, &late, 1, T + 90));
        assert_near(cap_at(signals, T, T + 100), 30);
        signal_destroy(signals);
    }
}

/* Silent (P6): fresh for three periods, stale for 15 min, gone; power never rises by it. */
static void test_signal_silence(void **state)
{
    (void)state;
    for (int with_default = 0; with_default < 3; with_default++) {
        double default_cap_w = with_default == 0 ? 0 : with_default == 1 ? 45 : 200, held = with_default == 1 ? 45 : 60;
        struct signals *signals = open_store(default_cap_w);
        uint16_t grid = add(signals, "grid", 0, 1, true);
        struct power_slot plan[2];
        for (int i = 0; i < 2; i++)
            plan[i] = (struct power_slot){.t0_ms = T + i * SLOT,
                                          .dur_s = i ? 3600 : 900,
                                          .have = SLOT_CAP | SLOT_TARGET | SLOT_GREEN | SLOT_PRICE | SLOT_SHED,
                                          .quality = SLOT_FORECAST,
                                          .cap_w = i ? 90 : 60,
                                          .target_w = i ? 40 : 50,
                                          .green_w = 33,
                                          .price_kwh = i ? 0.3 : 0.2,
                                          .shed_level = i ? 0 : 2};
        assert_true(signal_replace(signals, grid, plan, 2, T));
        struct signal_state shown;
        int64_t heard = T + 13 * 60000, stale = heard + 3 * PERIOD + 1, gone = heard + 3 * PERIOD + SIGNAL_GONE_MS + 1;
        signal_beat(signals, grid, heard);
        struct power_slot node = at(signals, stale - 1, stale - 1);
        signal_read_state(signals, grid, stale - 1, &shown);
        assert_true(shown.age == SIGNAL_FRESH && shown.heard_ms == heard && node.green_w == 33);
        assert_near(node.cap_w, 90); /* a source that is heard raises it by its plan */
        /* The same, unheard since 11 min earlier: the cap of the first quarter goes on. */
        signal_destroy(signals);
        signals = open_store(default_cap_w);
        grid = add(signals, "grid", 0, 1, true);
        assert_true(signal_replace(signals, grid, plan, 2, T + 60000));
        stale = T + 60000 + 3 * PERIOD + 1;
        node = at(signals, stale, stale);
        signal_read_state(signals, grid, stale, &shown);
        assert_int_equal(shown.age, SIGNAL_STALE);
        assert_near(node.cap_w, 60);
        assert_near(node.target_w, 50);
        assert_near(node.green_w, 0);
        assert_true(node.have & SLOT_GREEN);
        assert_near(node.price_kwh, 0.2);
        assert_int_equal(node.shed_level, 2);
        node = at(signals, T + SLOT, T + SLOT); /* plan: cap 90, target 40, price 0.3, nothing shed */
        assert_near(node.cap_w, 60);
        assert_near(node.target_w, 40);
        assert_near(node.price_kwh, 0.2);
        assert_int_equal(node.quality, SLOT_FORECAST);
        assert_int_equal(node.shed_level, 0); /* its end has come */
        gone = T + 60000 + 3 * PERIOD + SIGNAL_GONE_MS + 1;
        signal_read_state(signals, grid, gone, &shown);
        assert_int_equal(shown.age, SIGNAL_GONE);
        node = at(signals, gone, gone);
        assert_near(node.cap_w, held); /* never above what was held */
        assert_near(node.target_w, 40);
        assert_near(node.price_kwh, 0.3);
        node = at(signals, T + 400 * (int64_t)SLOT, T + 400 * (int64_t)SLOT); /* days later */
        assert_near(node.cap_w, held);
        assert_near(node.target_w, 50);
        assert_near(node.price_kwh, 0.5); /* the constant */
        signal_beat(signals, grid, T + 400 * (int64_t)SLOT);
        assert_true(isinf(cap_at(signals, T + 400 * (int64_t)SLOT, T + 400 * (int64_t)SLOT)));
        signal_destroy(signals);
    }
}

/* Over random plans, offers and silences: while nothing is heard, the cap never rises above what was in force when the
 * source was heard last, unless it was told to while it was fresh. */
static void test_signal_never_upwards(void **state)
{
    (void)state;
    uint64_t random = 88172645463325252u;
    for (int round = 0; round < 300; round++) {
        struct signals *signals = open_store(round % 3 ? 55 : 0);
        uint16_t grid = add(signals, "grid", 0, 1, true);
        struct power_slot slots[12];
        uint32_t count = 0;
        for (int64_t t = T; count < 12;) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            int32_t dur_s = random % 3 ? 900 : 60 * (int32_t)(1 + random / 3 % 20);
            if (random >> 40 & 3) slots[count++] = cap(t, dur_s, 20 + (double)(random >> 20 & 63));
            t += dur_s * 1000;
        }
        assert_true(signal_replace(signals, grid, slots, count, T));
        int64_t heard = T + (int64_t)(random >> 8 & 1023) * 1000;
        signal_beat(signals, grid, heard);
        double last = cap_at(signals, heard + 3 * PERIOD, heard + 3 * PERIOD);
        for (int64_t now = heard + 3 * PERIOD + 1; now < T + 20 * (int64_t)SLOT; now += 61000) {
            double watts = cap_at(signals, now, now);
            if (watts > last) fail_msg("round %d: %g W after %g W", round, watts, last);
        }
        signal_destroy(signals);
    }
}

/* A source of caps that was never heard holds the default; one of prices does not. */
static void test_signal_never_heard(void **state)
{
    (void)state;
    struct signals *signals = open_store(45);
    (void)add(signals, "carbon", 0, 1, false);
    assert_true(isinf(cap_at(signals, T, T)));
    uint16_t grid = add(signals, "grid", 1, 1, true);
    assert_near(cap_at(signals, T, T), 45);
    signal_failed(signals, grid, SIGNAL_UNREACHABLE, "no answer");
    assert_near(cap_at(signals, T, T), 45);
    assert_true(signal_replace(signals, grid, NULL, 0, T));
    assert_true(isinf(cap_at(signals, T, T)));
    struct signal_state shown;
    signal_read_state(signals, grid, T, &shown);
    assert_int_equal(shown.rejected[SIGNAL_UNREACHABLE], 1);
    assert_string_equal(shown.message, "");
    signal_destroy(signals);
}

/* Two sources disagree (P6). */
static void test_signal_two_disagree(void **state)
{
    (void)state;
    struct signals *signals = open_store(0);
    uint16_t site = add(signals, "site", 5, 1, true), grid = add(signals, "grid", 1, 1, true);
    struct power_slot node;
    struct power_slot of_site = {.t0_ms = T,
                                 .dur_s = 7200,
                                 .have = SLOT_CAP | SLOT_TARGET | SLOT_PRICE | SLOT_SHED | SLOT_GREEN,
                                 .cap_w = 60,
                                 .target_w = 40,
                                 .price_kwh = 0.9,
                                 .green_w = 20,
                                 .shed_level = 3};
    struct power_slot of_grid = {.t0_ms = T,
                                 .dur_s = 7200,
                                 .have = SLOT_CAP | SLOT_TARGET | SLOT_PRICE | SLOT_SHED | SLOT_GREEN,
                                 .cap_w = 80,
                                 .target_w = 50,
                                 .price_kwh = 0.1,
                                 .green_w = 30,
                                 .shed_level = 1};
    assert_int_equal(offer(signals, site, of_site, T), 1);
    assert_int_equal(offer(signals, grid, of_grid, T), 1);
    node = at(signals, T, T);
    assert_near(node.cap_w, 60); /* the lowest */
    assert_int_equal(node.source, site);
    assert_near(node.target_w, 50); /* of the better rank */
    assert_near(node.price_kwh, 0.1);
    assert_near(node.green_w, 30);
    assert_int_equal(node.shed_level, 3); /* an emergency is not hidden by rank */
    /* The grid falls silent: its target is kept, prices and green power come from who is heard. */
    int64_t later = T + 600000;
    signal_beat(signals, site, later);
    node = at(signals, later, later);
    assert_near(node.cap_w, 60);
    assert_near(node.target_w, 50);
    assert_near(node.price_kwh, 0.9);
    assert_near(node.green_w, 20);
    /* Overlapping caps: the one that ends first uncovers the other. */
    of_site.have = SLOT_CAP;
    of_site.dur_s = 1000;
    signal_beat(signals, grid, later);
    assert_true(signal_replace(signals, site, &of_site, 1, later));
    assert_near(cap_at(signals, T + 999999, later), 60);
    assert_near(cap_at(signals, T + 1000000, later), 80);
    assert_int_equal(at(signals, T + 1000000, later).source, grid);
    signal_destroy(signals);
}

/* An emergency: at once, to its exact end, heard or not; taken back by a whole word. */
static void test_signal_emergency(void **state)
{
    (void)state;
    struct signals *signals = open_store(0);
    uint16_t grid = add(signals, "grid", 0, 1, true);
    int64_t now = T + 123456;
    struct power_slot event = {.t0_ms = now, .dur_s = 3000, .have = SLOT_SHED, .shed_level = 3};
    assert_int_equal(offer(signals, grid, event, now), 1);
    assert_int_equal(at(signals, now - 1, now).have & SLOT_SHED, 0);
    assert_int_equal(at(signals, now, now).shed_level, 3);
    assert_int_equal(at(signals, now + 2999999, now + 2999999).shed_level, 3); /* stale, then gone: it holds */
    assert_int_equal(at(signals, now + 3000000, now + 3000000).have & SLOT_SHED, 0);
    event.dur_s = 10; /* told again, shorter: the same begin is the same event */
    assert_int_equal(offer(signals, grid, event, now + 5000), 1);
    assert_int_equal(at(signals, now + 10000, now + 10000).have & SLOT_SHED, 0);
    event.dur_s = 3000;
    assert_int_equal(offer(signals, grid, event, now + 5000), 1);
    assert_true(signal_replace(signals, grid, NULL, 0, now + 6000));
    assert_int_equal(at(signals, now + 6000, now + 6000).have & SLOT_SHED, 0);
    /* Room for so many events, and what has ended makes room. */
    event.dur_s = 60;
    for (int i = 0; i < SIGNAL_EVENTS_MAX; i++, event.t0_ms += 60000)
        assert_int_equal(offer(signals, grid, event, now + 7000), 1);
    struct signal_state shown;
    assert_int_equal(offer(signals, grid, event, now + 7000), 0);
    signal_read_state(signals, grid, now, &shown);
    assert_int_equal(shown.rejected[SIGNAL_FULL], 1);
    assert_int_equal(offer(signals, grid, event, now + 61000), 1);
    signal_destroy(signals);
}

/* The clock is set back: nothing that was heard counts as fresh for longer by it. */
static void test_signal_clock_back(void **state)
{
    (void)state;
    struct signals *signals = open_store(0);
    uint16_t grid = add(signals, "grid", 0, 1, true);
    struct signal_state shown;
    struct power_slot slot = {.t0_ms = T, .dur_s = 900, .have = SLOT_GREEN | SLOT_CAP, .green_w = 50, .cap_w = 30};
    assert_int_equal(offer(signals, grid, slot, T), 1);
    int64_t back = T - 2 * SLOT;
    signal_read_state(signals, grid, back, &shown);
    assert_int_equal(shown.age, SIGNAL_STALE);
    assert_near(at(signals, back, back).green_w, 0);
    assert_near(at(signals, T, back).green_w, 0);
    assert_near(cap_at(signals, T, back), 30);
    slot.t0_ms = back;
    assert_true(signal_replace(signals, grid, &slot, 1, back)); /* a new word is taken: the one held is of no past */
    assert_near(at(signals, back, back).green_w, 50);
    signal_destroy(signals);
}

static void test_signal_register_refuses(void **state)
{
    (void)state;
    struct signals *signals = open_store(0);
    struct error err;
    uint16_t index;
    const struct signal_source bad[] = {{"", 0, 1000, 1, true},    {"a", 0, 0, 1, true},
                                        {"a", 0, 1000, 0, true},   {"a", 0, 1000, 1.1, true},
                                        {"a", 0, 1000, NAN, true}, {"a", 0, 43200001, 1, true}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(signal_register(signals, &bad[i], &index, &err), ST_INVAL);
    (void)add(signals, "a", 0, 1, true);
    assert_int_equal(signal_register(signals, &(struct signal_source){"a", 0, 1000, 1, true}, &index, &err), ST_INVAL);
    for (int i = 1; i < SIGNAL_SOURCES_MAX; i++) (void)add(signals, (char[]){(char)('a' + i), 0}, 0, 1, true);
    assert_int_equal(signal_sources(signals), SIGNAL_SOURCES_MAX);
    assert_int_equal(signal_register(signals, &(struct signal_source){"z", 0, 1000, 1, true}, &index, &err), ST_LIMIT);
    signal_destroy(signals);
    struct signal_config config = {.constants = {.have = SLOT_PUE, .pue = 0.5}};
    assert_int_equal(signal_create(&config, &signals, &err), ST_INVAL);
    config = (struct signal_config){.default_cap_w = NAN};
    assert_int_equal(signal_create(&config, &signals, &err), ST_INVAL);
}

/* Readers and a source at once: a view is of one word, never half of it. (Also for tsan.) */
static void *tell(void *state)
{
    for (int i = 0; i < 2000; i++) {
        double watts = i % 2 ? 40 : 80;
        struct power_slot slot = {
            .t0_ms = T, .dur_s = 900, .have = SLOT_CAP | SLOT_TARGET, .cap_w = watts, .target_w = watts / 2};
        if (!signal_replace(state, 0, &slot, 1, T)) return state;
    }
    return NULL;
}

static void test_signal_threads(void **state)
{
    (void)state;
    struct signals *signals = open_store(0);
    pthread_t thread;
    void *result;
    (void)add(signals, "grid", 0, 1, true);
    assert_int_equal(pthread_create(&thread, NULL, tell, signals), 0);
    for (int i = 0; i < 2000; i++) {
        struct power_slot node = at(signals, T, T);
        if (node.have & SLOT_CAP) assert_near(node.cap_w, 2 * node.target_w);
    }
    assert_int_equal(pthread_join(thread, &result), 0);
    assert_null(result);
    signal_destroy(signals);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signal_slots),
        cmocka_unit_test(test_signal_pieces),
        cmocka_unit_test(test_signal_refusals),
        cmocka_unit_test(test_signal_reordered),
        cmocka_unit_test(test_signal_silence),
        cmocka_unit_test(test_signal_never_upwards),
        cmocka_unit_test(test_signal_never_heard),
        cmocka_unit_test(test_signal_two_disagree),
        cmocka_unit_test(test_signal_emergency),
        cmocka_unit_test(test_signal_clock_back),
        cmocka_unit_test(test_signal_register_refuses),
        cmocka_unit_test(test_signal_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
