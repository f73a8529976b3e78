/* A source that is told by the grid: an OpenADR 3 client (VEN) of a server (VTN). It takes a token, makes itself known,
 * and reads all events each period; what they say replaces what it said before, so that a deleted event ends.
 *
 *   openadr:URL,ven=NAME,user=CLIENT_ID,secret_env=NAME[,version=3.0][,token_url=URL][,program=ID][,plan=WATTS] ..
 *
 * An event that asks for reports gets one each REPORT_S while it lasts. Its own timing of them (startInterval,
 * frequency, repeat) is not followed: a report a minute tells more than most ask for and needs no memory of intervals.
 * A report that is refused is counted and does not slow the polls down.
 *
 * A page that cannot be read, or an answer that does not come, changes nothing: half a list of events would end the
 * others. Where the store refuses one of the slots (an impossible value) the others are added and none is forgotten. */
#include "server/power/signal_providers.h"

#include "runtime/base/mem.h"
#include "server/power/feed_client.h"
#include "server/power/openadr.h"
#include "server/power/openadr_report.h"

#include <stdio.h>
#include <string.h>

enum { PAGES_MAX = 20, REPORT_S = 60 };

struct signal_ven {
    const struct signal_ear *ear;
    struct feed_client client;
    bool opened, known; /* known: the VTN has us in its list, or does not let us put us there */
    struct openadr_config config;
    const char *base;
    char host[256], token_url[SIGNAL_PLACE_BYTES + 16];
    struct openadr_events *events, *before; /* of this look and of the last good one */
    struct openadr_events pages[2];
    int64_t reported_ms; /* Unix time of the last reports */
    struct buf report;
    struct feed feed;
};

static void ven_close(void *state)
{
    struct signal_ven *ven = state;
    if (ven->opened) feed_client_close(&ven->client);
    buf_free(&ven->report);
    mem_free(ven);
}

/* Names go into URLs and documents as they are. */
static bool is_plain(const char *text)
{
    return strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == strlen(text);
}

static enum status check(const struct signal_spec *spec, enum openadr_version *version, struct error *err)
{
    if (strcmp(spec->version, "3.0") == 0)
        *version = OPENADR_3_0;
    else if (!spec->version[0] || strcmp(spec->version, "3.1") == 0)
        *version = OPENADR_3_1;
    else
        return error_set(err, ST_INVAL, "version=%.16s must be 3.0 or 3.1", spec->version);
    if (!spec->ven[0]) return error_set(err, ST_INVAL, "it needs ven=, our name at the server");
    if (!is_plain(spec->ven) || !is_plain(spec->program))
        return error_set(err, ST_INVAL, "ven= and program= have letters, digits, '.', '_' and '-'");
    return ST_OK;
}

static enum status open_client(struct signal_ven *ven, struct error *err)
{
    const struct signal_spec *spec = ven->ear->spec;
    const char *path;
    size_t length = strlen(spec->place);
    TRY(check(spec, &ven->config.version, err));
    TRY(feed_split_url(spec->place, ven->host, sizeof ven->host, &path, err));
    if (strpbrk(path, "?#")) return error_set(err, ST_INVAL, "the URL must end where /events begins");
    while (length > 0 && spec->place[length - 1] == '/') length--;
    (void)snprintf(ven->token_url, sizeof ven->token_url, "%.*s/auth/token", (int)length, spec->place);
    const struct feed_client_config config = {
        .auth = FEED_AUTH_OAUTH,
        .url = ven->host,
        .secret_env = spec->secret_env,
        .secret_file = spec->secret_file,
        .user = spec->user,
        .scope = spec->scope,
        .token_url = spec->token_url[0] ? spec->token_url : ven->token_url,
        .ca_file = spec->ca_file,
        .period_ms = spec->period_ms,
        .clock = ven->ear->setup->clock,
        .stop = ven->ear->stop,
    };
    TRY(feed_client_open(&ven->client, &config, err));
    ven->opened = true;
    return ST_OK;
}

static enum status ven_open(const struct signal_ear *ear, void **feed, struct error *err)
{
    const struct signal_spec *spec = ear->spec;
    struct signal_ven *ven = mem_alloc(1, sizeof *ven);
    struct error reason = {""};
    if (!ven) return error_set(err, ST_NOMEM, "no memory for a source of power signals");
    ven->ear = ear;
    buf_init(&ven->report, 0);
    ven->base = spec->place;
    ven->config.ven = spec->ven;
    ven->config.currency = spec->currency[0] ? spec->currency : NULL;
    ven->config.plan_w = spec->plan_w;
    ven->events = &ven->pages[0];
    ven->before = &ven->pages[1];
    enum status status = open_client(ven, &reason);
    if (status == ST_OK) {
        *feed = ven;
    } else {
        (void)error_set(err, status, "--power-signal openadr: %.400s", reason.message);
        ven_close(ven);
    }
    return status;
}

/* One call below the server's URL. The answer's base is the host alone in messages. */
static enum status call(struct signal_ven *ven, const char *what, const char *body, int *http_status,
                        enum signal_why *why, struct error *err)
{
    char path[SIGNAL_PLACE_BYTES + 512];
    const char *root = ven->base + strlen(ven->host);
    size_t length = strlen(root);
    while (length > 0 && root[length - 1] == '/') length--;
    (void)snprintf(path, sizeof path, "%.*s%s", (int)length, root, what);
    return feed_client_run(&ven->client, ven->host, path, body, http_status, why, err);
}

/* Is there a VEN of our name in the list that was answered? */
static bool is_listed(const struct signal_ven *ven, bool *readable)
{
    struct json *root;
    bool listed = false;
    *readable = json_read(ven->client.answer.data, ven->client.answer.length, &root, NULL) == ST_OK;
    if (!*readable) return false;
    *readable = json_kind(root) == JSON_KIND_LIST;
    for (size_t i = 0; i < json_length(root); i++) {
        const char *name = json_to_text(json_member(json_at(root, i), "venName"), NULL);
        listed |= name && strcmp(name, ven->config.ven) == 0;
    }
    json_release(root);
    return listed;
}

/* A server may keep its list to itself (403, 404) or have us already (409): then its answer is told once, and events
 * are read all the same. */
static enum status introduce(struct signal_ven *ven, enum signal_why *why, struct error *err)
{
    char what[512];
    bool readable = true;
    int http_status;
    (void)snprintf(what, sizeof what, "/vens?venName=%s", ven->config.ven);
    enum status status = call(ven, what, NULL, &http_status, why, err);
    if (status == ST_OK && is_listed(ven, &readable)) {
        ven->known = true;
        return ST_OK;
    }
    if (status == ST_OK && !readable) {
        *why = SIGNAL_UNREADABLE;
        return error_set(err, ST_INVAL, "%.128s: its list of VENs cannot be read", ven->host);
    }
    if (status == ST_OK) {
        (void)snprintf(what, sizeof what, "{\"objectType\":\"%s\",\"venName\":\"%s\"}",
                       ven->config.version == OPENADR_3_0 ? "VEN" : "VEN_VEN_REQUEST", ven->config.ven);
        status = call(ven, "/vens", what, &http_status, why, err);
    }
    ven->known = status == ST_OK || (http_status >= 400 && http_status <= 499 && http_status != 429);
    if (status != ST_OK && ven->known && http_status != 401) {
        if (http_status != 409) signal_failed(ven->ear->signals, ven->ear->source, *why, err->message);
        status = ST_OK;
    }
    return status;
}

static enum status read_pages(struct signal_ven *ven, int64_t now_ms, enum signal_why *why, struct error *err)
{
    const char *program = ven->ear->spec->program;
    uint32_t on_page = OPENADR_PAGE_EVENTS, page = 0;
    feed_clear(&ven->feed);
    openadr_clear(ven->events);
    for (; on_page >= OPENADR_PAGE_EVENTS && page < PAGES_MAX; page++) {
        char what[512];
        int http_status;
        (void)snprintf(what, sizeof what, "/events?%s%s%sskip=%u&limit=%d%s", *program ? "programID=" : "", program,
                       *program ? "&" : "", page * OPENADR_PAGE_EVENTS, OPENADR_PAGE_EVENTS,
                       ven->config.version == OPENADR_3_1 ? "&active=true" : "");
        TRY(call(ven, what, NULL, &http_status, why, err));
        *why = SIGNAL_UNREADABLE;
        TRY(openadr_read(&ven->config, ven->client.answer.data, ven->client.answer.length, now_ms, ven->before,
                         ven->events, &ven->feed, &on_page, err));
    }
    if (on_page >= OPENADR_PAGE_EVENTS) feed_refuse(&ven->feed, "more than %u events", page * OPENADR_PAGE_EVENTS);
    return ST_OK;
}

static void tell(struct signal_ven *ven, int64_t now_ms)
{
    struct signals *signals = ven->ear->signals;
    struct feed *feed = &ven->feed;
    uint16_t source = ven->ear->source;
    struct openadr_events *read = ven->events;
    openadr_compose(read, now_ms, feed);
    ven->events = ven->before;
    ven->before = read;
    if (!signal_replace(signals, source, feed->slots, feed->count, now_ms))
        (void)signal_offer(signals, source, feed->slots, feed->count, now_ms);
    for (uint32_t i = 0; i < feed->refused; i++) signal_failed(signals, source, SIGNAL_UNREADABLE, feed->first.message);
}

/* After a good poll: ven->before is what it gave. */
static void report(struct signal_ven *ven, int64_t now_ms)
{
    const struct signal_setup *setup = ven->ear->setup;
    const struct openadr_events *events = ven->before;
    struct signal_demand demand;
    int64_t since_ms = now_ms - ven->reported_ms;
    if (events->requests_count == 0 || (since_ms >= 0 && since_ms < REPORT_S * 1000)) return;
    if (!setup->demand || !setup->demand(setup->demand_state, &demand)) return;
    ven->reported_ms = now_ms;
    for (uint32_t i = 0; i < events->requests_count; i++) {
        const struct openadr_request *request = &events->requests[i];
        struct error err = {""};
        enum signal_why why;
        int http_status;
        if (now_ms < request->t0_ms || now_ms >= request->t1_ms) continue;
        buf_clear(&ven->report);
        openadr_report(&ven->config, request, &demand, now_ms, REPORT_S, &ven->report);
        if (!buf_ok(&ven->report)) continue;
        enum status status = call(ven, "/reports", ven->report.data, &http_status, &why, &err);
        if (status == ST_CANCELED) return;
        if (status != ST_OK) signal_failed(ven->ear->signals, ven->ear->source, why, err.message);
    }
}

static uint32_t ven_look(void *state, int64_t now_ms)
{
    struct signal_ven *ven = state;
    struct error err = {""};
    enum signal_why why = SIGNAL_UNREACHABLE;
    feed_client_begin(&ven->client);
    enum status status = ven->known ? ST_OK : introduce(ven, &why, &err);
    if (status == ST_OK) status = read_pages(ven, now_ms, &why, &err);
    if (status == ST_OK) {
        tell(ven, now_ms);
        report(ven, now_ms);
    } else if (status != ST_CANCELED) {
        signal_failed(ven->ear->signals, ven->ear->source, why, err.message);
        ven->known = false; /* a server that comes back may have forgotten us, and shows events to those it knows */
    }
    return feed_client_end(&ven->client, status == ST_OK);
}

const struct signal_provider signal_openadr = {.limits = true, .open = ven_open, .look = ven_look, .close = ven_close};
