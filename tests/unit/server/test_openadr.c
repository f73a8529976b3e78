/* Events of OpenADR 3.0 and 3.1, written after the OpenAPI documents and the user guides; the rules are of openadr.h.
 */
#include "tests/unit/unit.h"

#include "server/power/openadr.h"

#include <inttypes.h>
#include <math.h>

/* 2026-11-23T10:00:00Z */
#define TEN          INT64_C(1795428000000)
#define MINUTE       INT64_C(60000)
#define UNTIL        (TEN + OPENADR_AHEAD_MS)
#define PERIOD       "\"intervalPeriod\":{\"start\":\"2026-11-23T10:00:00Z\",\"duration\":\"PT30M\"}"
#define ID(id)       "{\"id\":\"" id "\",\"programID\":\"program-1\","
#define ONE(payload) "\"intervals\":[{\"id\":0,\"payloads\":[" payload "]}]}"

#define assert_near(a, b, within)                                                                                      \
    do {                                                                                                               \
        double a_ = (a), b_ = (b);                                                                                     \
        if (!(fabs(a_ - b_) <= (within))) fail_msg(#a " is %.9g, not %.9g", a_, b_);                                   \
    } while (0)

static struct feed feed;
static struct openadr_events pages[2], *events = &pages[0], *before;
static struct openadr_config config;
static struct error err;
static uint32_t on_page;

static enum status read_more(const char *text, int64_t now_ms)
{
    err.message[0] = '\0';
    return openadr_read(&config, text, strlen(text), now_ms, before, events, &feed, &on_page, &err);
}

static void read_at(const char *text, int64_t now_ms)
{
    feed_clear(&feed);
    openadr_clear(events);
    if (read_more(text, now_ms) != ST_OK) fail_msg("%s: %s", text, err.message);
    openadr_compose(events, now_ms, &feed);
}

static int set_up(void **state)
{
    (void)state;
    config = (struct openadr_config){.version = OPENADR_3_1, .ven = "hub-7", .plan_w = 40000};
    events = &pages[0];
    before = NULL;
    return 0;
}

static const struct power_slot *slot_of(uint32_t idx, uint32_t have, int64_t t0_ms, int64_t t1_ms)
{
    const struct power_slot *slot = &feed.slots[idx];
    if (idx >= feed.count) fail_msg("%u slots; %u refused: %s", feed.count, feed.refused, feed.first.message);
    if (slot->have != have || slot->t0_ms != t0_ms || slot->t0_ms + slot->dur_s * INT64_C(1000) != t1_ms)
        fail_msg("slot %u has %u, from %+" PRId64 " s for %d s", idx, slot->have, (slot->t0_ms - TEN) / 1000,
                 slot->dur_s);
    return slot;
}

static void test_openadr_payloads(void **state)
{
    static const struct {
        const char *payload, *units;
        uint32_t field;
        double value;
    } cases[] = {
        {"\"type\":\"SIMPLE\",\"values\":[2]", "X", SLOT_SHED, 2},
        {"\"type\":\"PRICE\",\"values\":[0.17]", "KWH", SLOT_PRICE, 0.17},
        {"\"type\":\"PRICE\",\"values\":[-25]", "MWH", SLOT_PRICE, -0.025},
        {"\"type\":\"GHG\",\"values\":[412.5]", "GHG", SLOT_CO2, 412.5},
        {"\"type\":\"DISPATCH_SETPOINT\",\"values\":[12.5]", "KW", SLOT_TARGET, 12500},
        {"\"type\":\"DISPATCH_SETPOINT_RELATIVE\",\"values\":[-10]", "KW", SLOT_TARGET, 30000},
        {"\"type\":\"DISPATCH_SETPOINT_RELATIVE\",\"values\":[-100]", "KW", SLOT_TARGET, 0},
        {"\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[9000]", "W", SLOT_CAP, 9000},
        {"\"type\":\"CONTROL_LEVEL_OFFSET_PERCENT\",\"values\":[0.25]", "PERCENT", SLOT_TARGET, 30000},
        {"\"type\":\"OLS\",\"values\":[0.5]", "PERCENT", SLOT_TARGET, 20000},
        {"\"type\":\"ALERT_GRID_EMERGENCY\",\"values\":[\"rolling outages\"]", "X", SLOT_SHED, 3},
        {"\"type\":\"ALERT_FLEX_ALERT\",\"values\":[\"hot evening\"]", "X", SLOT_SHED, 1},
    };
    (void)state;
    for (int version = 0; version < 2; version++) {
        config.version = version ? OPENADR_3_1 : OPENADR_3_0;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            char text[1000], type[64];
            (void)sscanf(cases[i].payload, "\"type\":\"%63[A-Z_]", type);
            (void)snprintf(text, sizeof text,
                           "[" ID("event-1") "\"objectType\":\"EVENT\",\"eventName\":null,\"priority\":null,"
                                             "\"targets\":null,\"payloadDescriptors\":[{\"payloadType\":\"%s\","
                                             "\"units\":\"%s\"}]," PERIOD "," ONE("{%s}") "]",
                           type, cases[i].units, cases[i].payload);
            read_at(text, TEN);
            if (feed.count != 1 || feed.refused) fail_msg("%s: %u, %s", type, feed.count, feed.first.message);
            const struct power_slot *slot = slot_of(0, cases[i].field, TEN, TEN + 30 * MINUTE);
            double value = slot->cap_w + slot->target_w + slot->price_kwh + slot->gco2_kwh + slot->shed_level;
            assert_near(value, cases[i].value, 1e-9);
            assert_int_equal(slot->cap_hard, cases[i].field == SLOT_CAP);
        }
    }
    assert_int_equal(on_page, 1);
}

static void test_openadr_refuses_values(void **state)
{
    static const char *const bad[] = {
        "{\"type\":\"SIMPLE\",\"values\":[4]}",
        "{\"type\":\"SIMPLE\",\"values\":[1.5]}",
        "{\"type\":\"SIMPLE\",\"values\":[1,2]}",
        "{\"type\":\"SIMPLE\",\"values\":[]}",
        "{\"type\":\"SIMPLE\"}",
        "{\"type\":\"PRICE\",\"values\":[\"0.17\"]}",
        "{\"type\":\"PRICE\",\"values\":[1e7]}",
        "{\"type\":\"GHG\",\"values\":[-1]}",
        "{\"type\":\"DISPATCH_SETPOINT\",\"values\":[-0.1]}",
        "{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[-1]}",
        "{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[{\"x\":1,\"y\":2}]}",
        "{\"type\":\"CONTROL_LEVEL_OFFSET_PERCENT\",\"values\":[25]}",
        "{\"type\":\"OLS\",\"values\":[1.1]}",
        "{\"values\":[1]}",
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[1000];
        (void)snprintf(text, sizeof text,
                       "[" ID("event-1") PERIOD "," ONE("%s,{\"type\":\"GHG\",\"values\":[100]}") "]", bad[i]);
        read_at(text, TEN);
        if (feed.refused != 1 || feed.count != 1 || !feed.first.message[0])
            fail_msg("%s: %u refused, %u taken", bad[i], feed.refused, feed.count);
        (void)slot_of(0, SLOT_CO2, TEN, TEN + 30 * MINUTE); /* the rest of the event stays */
    }
    config.plan_w = 0;
    read_at("[" ID("e") PERIOD "," ONE("{\"type\":\"OLS\",\"values\":[0.5]}") "]", TEN);
    assert_non_null(strstr(feed.first.message, "plan="));
    config.currency = "EUR";
    read_at("[" ID("e") "\"payloadDescriptors\":[{\"payloadType\":\"PRICE\",\"currency\":\"USD\"}]," PERIOD
                        "," ONE("{\"type\":\"PRICE\",\"values\":[0.5]}") "]",
            TEN);
    assert_int_equal(feed.refused, 1);
    read_at(
        "[" ID("e") "\"payloadDescriptors\":[{\"payloadType\":\"IMPORT_CAPACITY_LIMIT\",\"units\":\"AMPS\"}]," PERIOD
                    "," ONE("{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[5]}") "]",
        TEN);
    assert_int_equal(feed.refused, 1);
    assert_int_equal(feed.count, 0);
    /* what is not ours is no fault */
    read_at("[" ID("e") PERIOD
            "," ONE("{\"type\":\"CHARGE_STATE_SETPOINT\",\"values\":[5]},{\"type\":\"private\",\"values\":[]}") "]",
            TEN);
    assert_int_equal(feed.refused, 0);
    assert_int_equal(feed.count, 0);
}

static void test_openadr_intervals_follow_each_other(void **state)
{
    (void)state;
    read_at("[" ID("e") PERIOD ",\"intervals\":["
                               "{\"id\":0,\"payloads\":[{\"type\":\"PRICE\",\"values\":[0.1]}]},"
                               "{\"id\":1,\"payloads\":[{\"type\":\"PRICE\",\"values\":[0.2]}]},"
                               "{\"id\":2,\"intervalPeriod\":{\"start\":\"0001-01-01\",\"duration\":\"PT1H\"},"
                               "\"payloads\":[{\"type\":\"PRICE\",\"values\":[0.3]}]},"
                               "{\"id\":3,\"intervalPeriod\":{\"start\":\"2026-11-23T14:00:00Z\"},"
                               "\"payloads\":[{\"type\":\"PRICE\",\"values\":[0.4]}]}]}]",
            TEN + 10 * MINUTE);
    assert_int_equal(feed.count, 4);
    assert_near(slot_of(0, SLOT_PRICE, TEN, TEN + 30 * MINUTE)->price_kwh, 0.1, 0);
    assert_near(slot_of(1, SLOT_PRICE, TEN + 30 * MINUTE, TEN + 60 * MINUTE)->price_kwh, 0.2, 0);
    assert_near(slot_of(2, SLOT_PRICE, TEN + 60 * MINUTE, TEN + 120 * MINUTE)->price_kwh, 0.3, 0);
    assert_near(slot_of(3, SLOT_PRICE, TEN + 240 * MINUTE, TEN + 270 * MINUTE)->price_kwh, 0.4, 0);
    assert_int_equal(feed.slots[0].quality, SLOT_MEASURED);
    assert_int_equal(feed.slots[1].quality, SLOT_FORECAST);
}

static void test_openadr_many_values_part_an_interval(void **state)
{
    const char *text = "[" ID("e") PERIOD "," ONE("{\"type\":\"PRICE\",\"values\":[0.17,0.03,0.11]}") "]";
    (void)state;
    read_at(text, TEN);
    assert_int_equal(feed.count, 3);
    assert_near(slot_of(1, SLOT_PRICE, TEN + 10 * MINUTE, TEN + 20 * MINUTE)->price_kwh, 0.03, 0);
    config.version = OPENADR_3_0;
    read_at(text, TEN);
    assert_int_equal(feed.refused, 1);
    read_at("[" ID("e") PERIOD "," ONE("{\"type\":\"OLS\",\"values\":[0.5,1]}") "]", TEN);
    assert_int_equal(feed.count, 2);
    assert_near(slot_of(0, SLOT_TARGET, TEN, TEN + 15 * MINUTE)->target_w, 20000, 0);
}

static void test_openadr_now_and_for_ever(void **state)
{
    static const char *const now[] = {
        "\"intervalPeriod\":{\"start\":\"0001-01-01\",\"duration\":\"P9999Y\"},",
        "\"intervalPeriod\":{\"start\":\"0001-01-01T00:00:00Z\"},",
        "\"intervalPeriod\":{\"start\":\"0000-00-00T00:00:00Z\",\"duration\":\"P9999Y\"},",
        "\"intervalPeriod\":{\"start\":\"2020-01-01T00:00:00Z\",\"duration\":\"P9999Y\"},",
    };
    char text[600];
    (void)state;
    for (size_t i = 0; i < sizeof now / sizeof *now; i++) {
        (void)snprintf(text, sizeof text,
                       "[" ID("e") "%s" ONE("{\"type\":\"ALERT_GRID_EMERGENCY\",\"values\":[\"x\"]}") "]", now[i]);
        read_at(text, TEN);
        assert_int_equal(feed.refused, 0);
        assert_int_equal(slot_of(0, SLOT_SHED, TEN, UNTIL)->shed_level, 3);
    }
    /* for an hour from the moment it was last changed */
    read_at(
        "[" ID("e") "\"createdDateTime\":\"2026-11-23T08:00:00Z\",\"modificationDateTime\":\"2026-11-23T09:30:00Z\","
                    "\"intervalPeriod\":{\"start\":\"0001-01-01\",\"duration\":\"PT1H\"}," ONE(
                        "{\"type\":\"SIMPLE\",\"values\":[1]}") "]",
        TEN);
    (void)slot_of(0, SLOT_SHED, TEN, TEN + 30 * MINUTE);
    /* or, where that is not told, from the moment it was first seen */
    const char *seen = "[" ID("e") "\"intervalPeriod\":{\"start\":\"0001-01-01\",\"duration\":\"PT1H\"}," ONE(
        "{\"type\":\"SIMPLE\",\"values\":[1]}") "]";
    read_at(seen, TEN);
    (void)slot_of(0, SLOT_SHED, TEN, TEN + 60 * MINUTE);
    before = events;
    events = &pages[1];
    read_at(seen, TEN + 45 * MINUTE);
    (void)slot_of(0, SLOT_SHED, TEN + 45 * MINUTE, TEN + 60 * MINUTE);
    before = events;
    events = &pages[0];
    read_at(seen, TEN + 75 * MINUTE); /* it is over, and does not begin anew */
    assert_int_equal(feed.count, 0);
}

static void test_openadr_canceled(void **state)
{
    const char *both = "[" ID("e") "\"intervalPeriod\":{\"start\":\"0001-01-01\",\"duration\":\"PT0S\"}," ONE(
        "{\"type\":\"SIMPLE\",\"values\":[3]}") "]";
    const char *zero = "[" ID("e") "\"intervalPeriod\":{\"start\":\"2026-11-23T10:00:00Z\",\"duration\":\"PT0S\"}," ONE(
        "{\"type\":\"SIMPLE\",\"values\":[3]}") "]";
    (void)state;
    read_at(both, TEN);
    assert_int_equal(feed.count + feed.refused, 0);
    read_at(zero, TEN);
    assert_int_equal(feed.count + feed.refused, 0);
    assert_int_equal(events->count, 0); /* it takes no room */
    config.version = OPENADR_3_0;
    read_at(both, TEN);
    assert_int_equal(feed.count + feed.refused, 0);
    read_at(zero, TEN); /* 3.0's default duration: for ever */
    (void)slot_of(0, SLOT_SHED, TEN, UNTIL);
    read_at("[]", TEN);
    assert_int_equal(feed.count + feed.refused, 0);
}

#define TARIFF                                                                                                         \
    "[" ID("e") "\"duration\":\"%s\",\"intervalPeriod\":{\"start\":\"2026-11-23T00:00:00Z\","                          \
                "\"duration\":\"PT12H\"},\"intervals\":["                                                              \
                "{\"id\":0,\"payloads\":[{\"type\":\"PRICE\",\"values\":[0.1]}]},"                                     \
                "{\"id\":1,\"payloads\":[{\"type\":\"PRICE\",\"values\":[0.2]}]}]}]"
static void test_openadr_event_duration_cuts_and_repeats(void **state)
{
    char text[1000];
    (void)state;
    (void)snprintf(text, sizeof text, TARIFF, "PT13H");
    read_at(text, TEN);
    assert_int_equal(feed.count, 2);
    assert_near(slot_of(1, SLOT_PRICE, TEN + 120 * MINUTE, TEN + 180 * MINUTE)->price_kwh, 0.2, 0);
    (void)snprintf(text, sizeof text, TARIFF, "P9999Y");
    read_at(text, TEN + 3 * 24 * 60 * MINUTE); /* the fourth day of the tariff */
    int64_t ten = TEN + 3 * 24 * 60 * MINUTE;
    assert_int_equal(feed.count, 5);
    assert_near(slot_of(0, SLOT_PRICE, ten, ten + 120 * MINUTE)->price_kwh, 0.1, 0);
    assert_near(slot_of(1, SLOT_PRICE, ten + 120 * MINUTE, ten + 840 * MINUTE)->price_kwh, 0.2, 0);
    (void)slot_of(4, SLOT_PRICE, ten + 2280 * MINUTE, ten + OPENADR_AHEAD_MS);
    (void)snprintf(text, sizeof text, TARIFF, "P2D");
    read_at(text, ten);
    assert_int_equal(feed.count, 0); /* two days, and over */
    (void)snprintf(text, sizeof text, TARIFF, "soon");
    read_at(text, TEN);
    assert_int_equal(feed.refused, 1);
    config.version = OPENADR_3_0; /* which has no such thing */
    (void)snprintf(text, sizeof text, TARIFF, "P9999Y");
    read_at(text, ten);
    assert_int_equal(feed.count, 0);
}

static void test_openadr_random_start_is_the_same_at_each_poll(void **state)
{
    const char *text = "[" ID("e") "\"intervalPeriod\":{\"start\":\"2026-11-23T12:00:00Z\",\"duration\":\"PT1H\","
                                   "\"randomizeStart\":\"PT10M\"}," ONE("{\"type\":\"SIMPLE\",\"values\":[1]}") "]";
    int64_t least = INT64_MAX, most = INT64_MIN;
    (void)state;
    for (int i = 0; i < 100; i++) {
        char ven[16];
        (void)snprintf(ven, sizeof ven, "ven-%d", i);
        config.ven = ven;
        read_at(text, TEN);
        int64_t start = events->pieces[0].t0_ms - TEN - 120 * MINUTE;
        assert_int_equal(events->pieces[0].t1_ms - events->pieces[0].t0_ms, 60 * MINUTE);
        read_at(text, TEN + 7 * MINUTE);
        assert_int_equal(events->pieces[0].t0_ms - TEN - 120 * MINUTE, start);
        if (start < least) least = start;
        if (start > most) most = start;
    }
    assert_in_range(-least, 7 * MINUTE, 10 * MINUTE);
    assert_in_range(most, 7 * MINUTE, 10 * MINUTE);
}

static void test_openadr_priority_decides(void **state)
{
    (void)state;
    read_at("[" ID("a") "\"priority\":5," PERIOD "," ONE(
                "{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[10]},"
                "{\"type\":\"SIMPLE\",\"values\":[2]}") "," ID("b") "\"priority\":1,\"intervalPeriod\":{\"start\":"
                                                                    "\"2026-11-23T10:15:00Z\",\"duration\":\"PT30M\"}"
                                                                    "," ONE("{\"type\":\"IMPORT_CAPACITY_LIMIT\","
                                                                            "\"values\":[20]},{\"type\":\"SIMPLE\","
                                                                            "\"values\":[0]}") "," ID("c") PERIOD
            "," ONE("{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[5]}") "]",
            TEN);
    uint32_t both = SLOT_CAP | SLOT_SHED;
    assert_int_equal(feed.count, 2);
    assert_near(slot_of(0, both, TEN, TEN + 15 * MINUTE)->cap_w, 10000, 0); /* c has no priority */
    assert_near(slot_of(1, both, TEN + 15 * MINUTE, TEN + 45 * MINUTE)->cap_w, 20000, 0);
    assert_int_equal(feed.slots[0].shed_level, 2);
    assert_int_equal(feed.slots[1].shed_level, 0);
}

static void test_openadr_equals_and_alerts(void **state)
{
    (void)state;
    read_at(
        "[" ID("a") PERIOD
        "," ONE("{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[10]},{\"type\":\"SIMPLE\",\"values\":[1]}") "," ID("b")
            PERIOD
        "," ONE("{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[8]},{\"type\":\"SIMPLE\",\"values\":[2]}") "," ID("c")
            PERIOD "," ONE("{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[9]}") "]",
        TEN);
    assert_int_equal(feed.count, 1);
    assert_near(feed.slots[0].cap_w, 8000, 0);
    assert_int_equal(feed.slots[0].shed_level, 2);
    read_at("[" ID("a") "\"priority\":0," PERIOD "," ONE("{\"type\":\"SIMPLE\",\"values\":[0]}") "," ID(
                "b") "\"priority\":9," PERIOD
                     "," ONE("{\"type\":\"ALERT_GRID_EMERGENCY\",\"values\":[\"\"]}") "," ID(
                         "c") "\"priority\":1," PERIOD "," ONE("{\"type\":\"ALERT_FLEX_ALERT\",\"values\":[\"\"]}") "]",
            TEN);
    assert_int_equal(slot_of(0, SLOT_SHED, TEN, TEN + 30 * MINUTE)->shed_level, 3);
}

static void test_openadr_garbage_does_not_lift_a_limit(void **state)
{
    const char *good = "[" ID("a") PERIOD "," ONE("{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[10]}") "]";
    const char *bad =
        "[" ID("a") PERIOD "," ONE("{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[\"ten\"]}") "," ID("b") PERIOD
        "," ONE("{\"type\":\"SIMPLE\",\"values\":[1]}") "]";
    (void)state;
    read_at(good, TEN);
    before = events;
    events = &pages[1];
    read_at(bad, TEN + MINUTE);
    assert_int_equal(feed.refused, 1);
    assert_near(slot_of(0, SLOT_CAP | SLOT_SHED, TEN, TEN + 30 * MINUTE)->cap_w, 10000, 0);
    before = events;
    events = &pages[0];
    read_at("[]", TEN + 2 * MINUTE); /* deleted is another thing */
    assert_int_equal(feed.count, 0);
}

#define FOR_VEN                                                                                                        \
    "[" ID("a") "\"targets\":[{\"type\":\"GROUP\",\"values\":[\"g\"]},"                                                \
                "{\"type\":\"VEN_NAME\",\"values\":[\"hub-6\",\"%s\"]}]," PERIOD                                       \
                "," ONE("{\"type\":\"SIMPLE\",\"values\":[1]}") "]"
static void test_openadr_targets(void **state)
{
    const char *of_3_1 =
        "[" ID("a") "\"targets\":[\"group-1\"]," PERIOD "," ONE("{\"type\":\"SIMPLE\",\"values\":[1]}") "]";
    char text[600];
    (void)state;
    read_at(of_3_1, TEN);
    assert_int_equal(feed.count, 1);
    (void)snprintf(text, sizeof text, FOR_VEN, "hub-7");
    read_at(text, TEN);
    assert_int_equal(feed.count, 0);
    assert_non_null(strstr(feed.first.message, "3.0"));
    config.version = OPENADR_3_0;
    read_at(text, TEN);
    assert_int_equal(feed.count, 1);
    (void)snprintf(text, sizeof text, FOR_VEN, "hub-8");
    read_at(text, TEN);
    assert_int_equal(feed.count + feed.refused, 0);
    read_at(of_3_1, TEN);
    assert_non_null(strstr(feed.first.message, "3.1"));
}

static void test_openadr_refuses_events_and_documents(void **state)
{
    static const char *const bad[] = {
        "7",
        "{}",
        "{\"id\":7}",
        ID("e") "\"priority\":-1," PERIOD "}",
        ID("e") "\"intervalPeriod\":{\"start\":\"noon\"}," ONE(""),
        ID("e") "\"intervalPeriod\":{\"start\":\"2026-11-23T10:00:00Z\",\"duration\":\"1h\"}," ONE(""),
        ID("e") "\"intervalPeriod\":{\"start\":\"2026-11-23T10:00:00Z\",\"randomizeStart\":5}," ONE(""),
        ID("e") "\"intervalPeriod\":{\"duration\":\"PT1H\"}," ONE(""),
        ID("e") PERIOD ",\"intervals\":[{\"id\":0}]}",
        ID("e") PERIOD ",\"intervals\":[0]}",
    };
    static char text[4000];
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        (void)snprintf(text, sizeof text, "[%s," ID("f") PERIOD "," ONE("{\"type\":\"SIMPLE\",\"values\":[1]}") "]",
                       bad[i]);
        read_at(text, TEN);
        if (feed.refused != 1 || feed.count != 1) fail_msg("%s: %u refused, %u", bad[i], feed.refused, feed.count);
    }
    assert_int_equal(read_more("{\"title\":\"Forbidden\",\"status\":403}", TEN), ST_INVAL);
    assert_int_equal(read_more("<html>", TEN), ST_INVAL);
    assert_int_equal(read_more("", TEN), ST_INVAL);
}

static void test_openadr_more_pieces_than_there_is_room_for(void **state)
{
    static char text[200000];
    int at = snprintf(text, sizeof text,
                      "[" ID("e") "\"duration\":\"P9999Y\",\"intervalPeriod\":{\"start\":\"2026-11-23T10:00:00Z\","
                                  "\"duration\":\"PT1S\"},\"intervals\":[");
    (void)state;
    for (int i = 0; i <= OPENADR_PIECES_MAX; i++)
        at += snprintf(text + at, sizeof text - (size_t)at,
                       "%s{\"id\":%d,\"payloads\":[{\"type\":\"PRICE\",\"values\":[%d]}]}", i ? "," : "", i, i);
    (void)snprintf(text + at, sizeof text - (size_t)at, "]}]");
    read_at(text, TEN);
    assert_true(feed.refused >= 1);
    assert_int_equal(events->count, OPENADR_PIECES_MAX);
    assert_int_equal(feed.count, FEED_SLOTS_MAX);
}

static void test_openadr_requests_for_reports(void **state)
{
    (void)state;
    read_at(
        "[" ID(
            "e") "\"reportDescriptors\":[{\"payloadType\":\"DEMAND\",\"readingType\":\"DIRECT_READ\",\"units\":\"KW\"},"
                 "{\"payloadType\":\"OPERATING_STATE\"},{\"payloadType\":\"STORAGE_CHARGE_LEVEL\"}]," PERIOD
                 "," ONE("{\"type\":\"SIMPLE\",\"values\":[1]}") "]",
        TEN);
    assert_int_equal(events->requests_count, 1);
    assert_int_equal(events->requests[0].reports, OPENADR_DEMAND | OPENADR_OPERATING_STATE);
    assert_string_equal(events->requests[0].event, "e");
    assert_string_equal(events->requests[0].program, "program-1");
    assert_int_equal(events->requests[0].t1_ms, TEN + 30 * MINUTE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_openadr_payloads, set_up),
        cmocka_unit_test_setup(test_openadr_refuses_values, set_up),
        cmocka_unit_test_setup(test_openadr_intervals_follow_each_other, set_up),
        cmocka_unit_test_setup(test_openadr_many_values_part_an_interval, set_up),
        cmocka_unit_test_setup(test_openadr_now_and_for_ever, set_up),
        cmocka_unit_test_setup(test_openadr_canceled, set_up),
        cmocka_unit_test_setup(test_openadr_event_duration_cuts_and_repeats, set_up),
        cmocka_unit_test_setup(test_openadr_random_start_is_the_same_at_each_poll, set_up),
        cmocka_unit_test_setup(test_openadr_priority_decides, set_up),
        cmocka_unit_test_setup(test_openadr_equals_and_alerts, set_up),
        cmocka_unit_test_setup(test_openadr_garbage_does_not_lift_a_limit, set_up),
        cmocka_unit_test_setup(test_openadr_targets, set_up),
        cmocka_unit_test_setup(test_openadr_refuses_events_and_documents, set_up),
        cmocka_unit_test_setup(test_openadr_more_pieces_than_there_is_room_for, set_up),
        cmocka_unit_test_setup(test_openadr_requests_for_reports, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
