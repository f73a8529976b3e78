/* The sources over HTTP as wholes: a --power-signal as typed, a server on the loopback, the store. Providers are looked
 * at by the test, not by their threads. */
#include "tests/unit/unit.h"

#include "server/power/signal_providers.h"
#include "tests/support/http_stub.h"

#include <stdlib.h>

/* 2026-11-23T10:00:00Z */
#define TEN    INT64_C(1795428000000)
#define MINUTE INT64_C(60000)

static struct world {
    int status, vens_status, token_status;
    const char *headers, *body, *vens;
    int tokens, posts, gets;
    char key[64], tag[64], path[512], posted[1024], authorization[256];
    int reports, reports_status;
    char report[2048];
    int pages; /* of 50 events each but the last, which has one */
} world;

static struct http_stub stub;
static struct signals *signals;
static struct signal_spec spec;
static struct signal_setup setup;
static struct signal_ear ear;
static _Atomic bool stop;
static void *feed;
static const struct signal_provider *provider;
static struct error err;
static uint64_t now_ns;
static int64_t now_ms;

static uint64_t test_now_ns(void *state)
{
    (void)state;
    return now_ns;
}
static int64_t test_unix_us(void *state)
{
    (void)state;
    return now_ms * 1000;
}
static const struct clock test_clock = {test_now_ns, test_unix_us, NULL};

static void answer_page(struct world *w, int fd)
{
    static char text[60000];
    size_t at = 0;
    unsigned skip = 0;
    (void)sscanf(strstr(w->path, "skip="), "skip=%u", &skip);
    unsigned count = (int)(skip / 50) < w->pages - 1 ? 50 : 1;
    for (unsigned i = 0; i < count; i++)
        at += (size_t)snprintf(
            text + at, sizeof text - at,
            "%s{\"id\":\"e%u\",\"programID\":\"p\",\"intervalPeriod\":{\"start\":\"2026-11-23T10:00:00Z\","
            "\"duration\":\"PT1H\"},\"intervals\":[{\"id\":0,\"payloads\":[{\"type\":"
            "\"IMPORT_CAPACITY_LIMIT\",\"values\":[%u]}]}]}",
            i ? "," : "[", skip + i, 1000 - skip - i);
    (void)snprintf(text + at, sizeof text - at, "]");
    http_stub_reply(fd, 200, "", text);
}

static void answer(void *state, const struct http_stub_request *request, int fd)
{
    struct world *w = state;
    if (strstr(request->path, "/auth/token") || strcmp(request->path, "/login") == 0) {
        w->tokens++;
        http_stub_header(request, "Authorization:", w->authorization, sizeof w->authorization);
        http_stub_reply(fd, w->token_status, "", "{\"access_token\":\"t\",\"token_type\":\"bearer\",\"token\":\"t\"}");
        return;
    }
    if (strstr(request->path, "/vens")) {
        bool post = strcmp(request->method, "POST") == 0;
        if (post) w->posts++;
        if (post) (void)snprintf(w->posted, sizeof w->posted, "%.1023s", request->body);
        http_stub_reply(fd, post && w->vens_status == 200 ? 201 : w->vens_status, "", post ? "{}" : w->vens);
        return;
    }
    if (strcmp(request->path, "/openadr3/reports") == 0) {
        w->reports++;
        (void)snprintf(w->report, sizeof w->report, "%.2047s", request->body);
        http_stub_reply(fd, w->reports_status, "", "{}");
        return;
    }
    w->gets++;
    (void)snprintf(w->path, sizeof w->path, "%s", request->path);
    http_stub_header(request, "auth-token:", w->key, sizeof w->key);
    http_stub_header(request, "If-None-Match:", w->tag, sizeof w->tag);
    http_stub_header(request, "Authorization:", w->authorization, sizeof w->authorization);
    if (w->pages)
        answer_page(w, fd);
    else
        http_stub_reply(fd, w->status, w->headers, w->body);
}

static enum status try_open(const char *form)
{
    static char text[1000];
    const struct signal_config none = {.default_cap_w = 0};
    const char *mark = strstr(form, "URL");
    (void)snprintf(text, sizeof text, "%.*s%s%s", (int)(mark - form), form, stub.url, mark + 3);
    err.message[0] = '\0';
    enum status status = signal_spec_read(text, 0, &spec, &err);
    if (status != ST_OK) return status;
    provider = spec.kind == SIGNAL_KIND_OPENADR ? &signal_openadr : &signal_http;
    assert_int_equal(signal_create(&none, &signals, &err), ST_OK);
    const struct signal_source source = {
        .name = "s", .period_ms = spec.period_ms, .share = spec.share, .limits = provider->limits};
    setup.clock = &test_clock;
    ear = (struct signal_ear){signals, 0, &spec, &setup, &stop};
    assert_int_equal(signal_register(signals, &source, &ear.source, &err), ST_OK);
    status = provider->open(&ear, &feed, &err);
    if (status == ST_OK) return status;
    signal_destroy(signals);
    signals = NULL;
    return status;
}

static void open_source(const char *form)
{
    if (try_open(form) != ST_OK) fail_msg("%s", err.message);
}

static uint32_t look(void)
{
    http_stub_sync(&stub);
    uint32_t wait_ms = provider->look(feed, now_ms);
    http_stub_sync(&stub);
    return wait_ms;
}

static struct power_slot at(int64_t unix_ms)
{
    struct power_slot node;
    signal_at(signals, unix_ms, now_ms, &node);
    return node;
}

static struct signal_state state_of(void)
{
    struct signal_state state;
    signal_read_state(signals, ear.source, now_ms, &state);
    return state;
}

static int set_up(void **state)
{
    (void)state;
    memset(&world, 0, sizeof world);
    world.status = world.vens_status = world.token_status = 200;
    world.headers = "";
    world.body = world.vens = "[]";
    now_ms = TEN;
    now_ns = 1;
    setenv("TEST_SIGNAL_SECRET", "s3cret", 1);
    return http_stub_start(&stub, answer, &world) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    if (signals) provider->close(feed);
    signal_destroy(signals);
    signals = NULL;
    http_stub_stop(&stub);
    return 0;
}

#define OPENADR "openadr:URL/openadr3,ven=hub-7,user=ven-1,secret_env=TEST_SIGNAL_SECRET"
#define LIMIT(kw)                                                                                                      \
    "[{\"id\":\"e\",\"programID\":\"p\",\"intervalPeriod\":{\"start\":\"2026-11-23T10:00:00Z\",\"duration\":\"PT1H\"}" \
    ","                                                                                                                \
    "\"intervals\":[{\"id\":0,\"payloads\":[{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[" kw "]}]}]}]"

static void test_signal_http_electricity_maps(void **state)
{
    (void)state;
    open_source("electricity-maps:URL/v3/carbon-intensity/latest?zone=DE,secret_env=TEST_SIGNAL_SECRET,period=60");
    world.body = "{\"carbonIntensity\":302,\"datetime\":\"2026-11-23T10:00:00Z\",\"isEstimated\":true}";
    world.headers = "ETag: \"v1\"\r\n";
    assert_int_equal(look(), 60000);
    assert_string_equal(world.key, "s3cret");
    assert_string_equal(world.path, "/v3/carbon-intensity/latest?zone=DE");
    assert_int_equal(at(TEN).have, SLOT_CO2);
    assert_true(at(TEN).gco2_kwh == 302 && at(TEN).quality == SLOT_ESTIMATED && !at(TEN).co2_marginal);
    /* nothing new: heard, and nothing more */
    world.status = 304;
    now_ms += 10 * MINUTE;
    assert_int_equal(look(), 60000);
    assert_string_equal(world.tag, "\"v1\"");
    assert_int_equal(state_of().heard_ms, now_ms);
    assert_int_equal(state_of().taken, 1);
}

static void test_signal_http_what_cannot_be_read_changes_nothing(void **state)
{
    (void)state;
    open_source("carbon-aware:URL/emissions/bylocation?location=eastus,period=60");
    world.body = "[{\"time\":\"2026-11-23T10:00:00+00:00\",\"rating\":70}]";
    assert_int_equal(look(), 60000);
    assert_true(at(TEN).gco2_kwh == 70 && at(TEN).co2_marginal);
    static const char *const bad[] = {"<html>", "[", "{\"rating\":1}", ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        world.body = bad[i];
        assert_true(look() >= 60000);
        assert_int_equal(state_of().rejected[SIGNAL_UNREADABLE], i + 1);
        assert_true(at(TEN).gco2_kwh == 70);
    }
    world.body = "[{\"time\":\"2026-11-23T10:00:00+00:00\",\"rating\":-5},"
                 "{\"time\":\"2026-11-23T10:15:00+00:00\",\"rating\":90},{}]";
    assert_int_equal(look(), 60000); /* good again: no more waiting than the period */
    assert_int_equal(state_of().rejected[SIGNAL_UNREADABLE], 6);
    assert_non_null(strstr(state_of().message, "rating is -5"));
    assert_true(at(TEN).gco2_kwh == 70 && at(TEN + 15 * MINUTE).gco2_kwh == 90);
    world.status = 503;
    world.headers = "Retry-After: 900\r\n";
    assert_int_equal(look(), 900000);
    assert_int_equal(state_of().rejected[SIGNAL_UNREACHABLE], 1);
    world.status = 401;
    world.headers = "";
    (void)look();
    assert_int_equal(state_of().rejected[SIGNAL_DENIED], 1);
    assert_non_null(strstr(state_of().message, "401"));
}

static void test_signal_http_watttime_logs_in(void **state)
{
    (void)state;
    open_source(
        "watttime:URL/v3/forecast?region=CAISO_NORTH&signal_type=co2_moer,user=me,secret_env=TEST_SIGNAL_SECRET");
    world.body =
        "{\"meta\":{\"signal_type\":\"co2_moer\",\"units\":\"lbs_co2_per_mwh\",\"data_point_period_seconds\":900},"
        "\"data\":[{\"point_time\":\"2026-11-23T10:00:00+00:00\",\"value\":1000}]}";
    assert_int_equal(look(), 300000);
    assert_int_equal(world.tokens, 1);
    assert_string_equal(world.authorization, "Bearer t");
    assert_true(at(TEN).co2_marginal && at(TEN).gco2_kwh > 453 && at(TEN).gco2_kwh < 454);
    now_ns += 1800 * NS_PER_S; /* half an hour on, the token is over */
    (void)look();
    assert_int_equal(world.tokens, 2);
}

static void test_signal_http_offers_only_what_is_kept(void **state)
{
    (void)state;
    open_source("electricity-maps:URL/v3/carbon-intensity/history");
    world.body = "{\"history\":[{\"carbonIntensity\":1,\"datetime\":\"2026-11-22T11:00:00Z\"},"
                 "{\"carbonIntensity\":2,\"datetime\":\"2026-11-23T10:00:00Z\"},"
                 "{\"carbonIntensity\":3,\"datetime\":\"2026-12-23T10:00:00Z\"}]}";
    (void)look();
    assert_int_equal(state_of().taken, 1);
    assert_string_equal(state_of().message, "");
}

static void test_signal_http_options_that_do_not_fit(void **state)
{
    static const struct {
        const char *form, *says;
    } cases[] = {
        {"electricity-maps:URL,secret_env=TEST_SIGNAL_NOTHING", "TEST_SIGNAL_NOTHING"},
        {"electricity-maps:ftp://URL", "http"},
        {"carbon-aware:URL,marginal=2", "marginal"},
        {"watttime:URL,secret_env=TEST_SIGNAL_SECRET", "user="},
        {"watttime:URL,user=me", "secret"},
        {"openadr:URL,user=me,secret_env=TEST_SIGNAL_SECRET", "ven="},
        {"openadr:URL,ven=a b,user=me,secret_env=TEST_SIGNAL_SECRET", "ven="},
        {"openadr:URL,ven=v,user=me,secret_env=TEST_SIGNAL_SECRET,version=2.0b", "3.0 or 3.1"},
        {"openadr:URL/x?y,ven=v,user=me,secret_env=TEST_SIGNAL_SECRET", "events"},
        {"openadr:URL,ven=v,secret_env=TEST_SIGNAL_SECRET", "user="},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(try_open(cases[i].form), ST_INVAL);
        if (!strstr(err.message, cases[i].says)) fail_msg("%s: %s", cases[i].form, err.message);
        assert_null(strstr(err.message, "s3cret"));
    }
    open_source("carbon-aware:URL/emissions?a=1,2,b=3,period=7"); /* a URL may have commas */
    (void)look();
    assert_string_equal(world.path, "/emissions?a=1,2,b=3");
}

static void test_signal_openadr_polls(void **state)
{
    static const char *const versions[] = {"3.0", "3.1"};
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        char form[300];
        (void)snprintf(form, sizeof form, OPENADR ",period=1,version=%s", versions[i]);
        world.posts = world.gets = world.tokens = 0;
        open_source(form);
        world.body = LIMIT("50");
        assert_int_equal(look(), 1000);
        assert_string_equal(world.posted, i ? "{\"objectType\":\"VEN_VEN_REQUEST\",\"venName\":\"hub-7\"}"
                                            : "{\"objectType\":\"VEN\",\"venName\":\"hub-7\"}");
        assert_string_equal(world.path,
                            i ? "/openadr3/events?skip=0&limit=50&active=true" : "/openadr3/events?skip=0&limit=50");
        assert_string_equal(world.authorization, "Bearer t");
        assert_true(at(TEN).have == SLOT_CAP && at(TEN).cap_w == 50000 && at(TEN).cap_hard);
        world.body = LIMIT("30"); /* changed */
        now_ms += 1000;
        (void)look();
        assert_true(at(now_ms).cap_w == 30000);
        world.body = "[]"; /* deleted */
        now_ms += 1000;
        (void)look();
        assert_int_equal(at(now_ms).have, 0);
        assert_int_equal(world.posts, 1);
        assert_int_equal(world.gets, 3);
        assert_int_equal(world.tokens, 1);
        provider->close(feed);
        signal_destroy(signals);
        signals = NULL;
    }
}

static void test_signal_openadr_failures_keep_what_was_told(void **state)
{
    static const struct {
        int status;
        const char *body;
        enum signal_why why;
    } cases[] = {{500, "{}", SIGNAL_UNREACHABLE},       {200, "{\"title\":\"oops\"}", SIGNAL_UNREADABLE},
                 {200, "[{]", SIGNAL_UNREADABLE},       {403, "{}", SIGNAL_DENIED},
                 {302, "[]", SIGNAL_UNREADABLE},        {200, LIMIT("\"ten\""), SIGNAL_UNREADABLE},
                 {200, LIMIT("1e9"), SIGNAL_UNREADABLE}};
    (void)state;
    open_source(OPENADR ",period=1");
    world.body = LIMIT("50");
    (void)look();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct signal_state before = state_of();
        world.status = cases[i].status;
        world.body = cases[i].body;
        (void)look();
        struct signal_state after = state_of();
        if (after.rejected[cases[i].why] != before.rejected[cases[i].why] + 1 || at(TEN).cap_w != 50000)
            fail_msg("%zu: %s, %g W", i, after.message, at(TEN).cap_w);
    }
    world.status = 200;
    world.body = "[]";
    (void)look();
    assert_int_equal(at(TEN).have, 0);
}

static void test_signal_openadr_reads_all_pages_or_none(void **state)
{
    (void)state;
    open_source(OPENADR);
    world.pages = 3;
    (void)look();
    assert_int_equal(world.gets, 3);
    assert_true(at(TEN).cap_w == 900000); /* the 101st event has the lowest limit */
    world.pages = 30;
    (void)look();
    assert_int_equal(world.gets, 3 + 20);
    assert_non_null(strstr(state_of().message, "more than 1000 events"));
}

static void test_signal_openadr_introduces_itself(void **state)
{
    (void)state;
    open_source(OPENADR);
    world.vens = "[{\"id\":\"1\",\"venName\":\"hub-7\"}]";
    world.body = LIMIT("50");
    (void)look();
    assert_int_equal(world.posts, 0); /* it is there already */
    provider->close(feed);
    signal_destroy(signals);
    open_source(OPENADR);
    world.vens_status = 403; /* a server that keeps its list to itself is told of, and its events count */
    (void)look();
    assert_true(at(TEN).cap_w == 50000);
    (void)look();
    provider->close(feed);
    signal_destroy(signals);
    open_source(OPENADR);
    world.vens_status = 500; /* one that fails is asked again */
    world.gets = 0;
    assert_true(look() >= 5000);
    assert_int_equal(world.gets, 0);
    assert_int_equal(state_of().rejected[SIGNAL_UNREACHABLE], 1);
    world.vens_status = 200;
    (void)look();
    assert_int_equal(world.gets, 1);
    world.vens = "[]"; /* one that was away may have forgotten us */
    world.posts = 0;
    world.status = 502;
    (void)look();
    assert_int_equal(world.posts, 0);
    world.status = 200;
    (void)look();
    assert_int_equal(world.posts, 1);
    (void)look();
    assert_int_equal(world.posts, 1);
}

/* The store has room for so many limits with borders inside a quarter of an hour: it takes what fits and says so. */
static void test_signal_openadr_more_limits_than_the_store_keeps(void **state)
{
    static char text[20000];
    size_t at_byte = (size_t)snprintf(text, sizeof text, "[");
    (void)state;
    open_source(OPENADR);
    for (int i = 0; i < 30; i++)
        at_byte += (size_t)snprintf(text + at_byte, sizeof text - at_byte,
                                    "%s{\"id\":\"e%d\",\"programID\":\"p\",\"intervalPeriod\":{\"start\":"
                                    "\"2026-11-23T10:%02d:00Z\",\"duration\":\"PT30S\"},\"intervals\":[{\"id\":0,"
                                    "\"payloads\":[{\"type\":\"IMPORT_CAPACITY_LIMIT\",\"values\":[%d]}]}]}",
                                    i ? "," : "", i, i, 10 + i);
    (void)snprintf(text + at_byte, sizeof text - at_byte, "]");
    world.body = text;
    (void)look();
    assert_true(state_of().rejected[SIGNAL_FULL] > 0);
    assert_true(at(TEN).cap_w == 10000 && at(TEN + 5 * MINUTE).cap_w == 15000);
}

static bool tell_demand(void *state, struct signal_demand *demand)
{
    *demand = (struct signal_demand){.watts = 71250, .down_w = 40000, .curtailed = true};
    return *(bool *)state;
}

static void test_signal_openadr_reports_once_a_minute_while_it_is_asked_to(void **state)
{
    bool metered = true;
    (void)state;
    setup.demand = tell_demand;
    setup.demand_state = &metered;
    open_source(OPENADR ",period=1,version=3.0");
    world.reports_status = 201;
    world.body = "[{\"id\":\"e\",\"programID\":\"p\",\"intervalPeriod\":{\"start\":\"2026-11-23T10:00:00Z\","
                 "\"duration\":\"PT10M\"},\"reportDescriptors\":[{\"payloadType\":\"DEMAND\"},"
                 "{\"payloadType\":\"OPERATING_STATE\"},{\"payloadType\":\"DOWN_REGULATION_AVAILABLE\"}],"
                 "\"intervals\":[{\"id\":0,\"payloads\":[{\"type\":\"SIMPLE\",\"values\":[1]}]}]}]";
    (void)look();
    assert_string_equal(
        world.report,
        "{\"objectType\":\"REPORT\",\"programID\":\"p\",\"eventID\":\"e\",\"clientName\":\"hub-7\","
        "\"reportName\":\"hub-7_1795428000000\",\"payloadDescriptors\":["
        "{\"objectType\":\"REPORT_PAYLOAD_DESCRIPTOR\",\"payloadType\":\"DEMAND\",\"readingType\":\"DIRECT_READ\","
        "\"units\":\"KW\"},{\"objectType\":\"REPORT_PAYLOAD_DESCRIPTOR\",\"payloadType\":\"OPERATING_STATE\"},"
        "{\"objectType\":\"REPORT_PAYLOAD_DESCRIPTOR\",\"payloadType\":\"DOWN_REGULATION_AVAILABLE\","
        "\"readingType\":\"DIRECT_READ\",\"units\":\"KW\"}],\"resources\":[{\"resourceName\":\"hub-7\","
        "\"intervalPeriod\":{\"start\":\"2026-11-23T09:59:00.000Z\",\"duration\":\"PT60S\"},\"intervals\":[{\"id\":0,"
        "\"payloads\":[{\"type\":\"DEMAND\",\"values\":[71.25]},{\"type\":\"OPERATING_STATE\",\"values\":["
        "\"RUNNING_CURTAILED\"]},{\"type\":\"DOWN_REGULATION_AVAILABLE\",\"values\":[40]}]}]}]}");
    now_ms += 59 * 1000;
    (void)look();
    assert_int_equal(world.reports, 1);
    now_ms += 1000;
    world.reports_status = 403; /* refused: counted, and the polls go on as they were */
    assert_int_equal(look(), 1000);
    assert_int_equal(world.reports, 2);
    assert_int_equal(state_of().rejected[SIGNAL_DENIED], 1);
    metered = false; /* nothing to tell */
    now_ms += 60 * 1000;
    (void)look();
    metered = true;
    now_ms += 10 * MINUTE; /* the event is over */
    (void)look();
    assert_int_equal(world.reports, 2);
    /* 3.1: no programID; an event may ask for reports and nothing else */
    provider->close(feed);
    signal_destroy(signals);
    now_ms = TEN;
    open_source(OPENADR ",period=1");
    world.body =
        "[{\"id\":\"e\",\"programID\":\"p\",\"intervalPeriod\":{\"start\":\"0001-01-01\",\"duration\":\"P9999Y\"},"
        "\"reportDescriptors\":[{\"payloadType\":\"DEMAND\"}]}]";
    (void)look();
    assert_int_equal(world.reports, 3);
    assert_ptr_equal(strstr(world.report, "{\"eventID\":\"e\",\"clientName\":\"hub-7\","), world.report);
    setup.demand = NULL;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_signal_http_electricity_maps),
        TEST(test_signal_http_what_cannot_be_read_changes_nothing),
        TEST(test_signal_http_watttime_logs_in),
        TEST(test_signal_http_offers_only_what_is_kept),
        TEST(test_signal_http_options_that_do_not_fit),
        TEST(test_signal_openadr_polls),
        TEST(test_signal_openadr_failures_keep_what_was_told),
        TEST(test_signal_openadr_reads_all_pages_or_none),
        TEST(test_signal_openadr_introduces_itself),
        TEST(test_signal_openadr_more_limits_than_the_store_keeps),
        TEST(test_signal_openadr_reports_once_a_minute_while_it_is_asked_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
