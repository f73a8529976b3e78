/* Sources that tell the carbon of electricity over HTTP: Electricity Maps, the Carbon Aware SDK, WattTime. One URL a
 * source, asked each period, with the ETag of the last answer that could be read.
 *
 *   electricity-maps:URL,secret_env=NAME    the secret is sent as auth-token
 *   carbon-aware:URL[,secret_env=NAME]      as bearer
 *   watttime:URL,user=NAME,secret_env=NAME  token_url=, else /login of the same host, gives a bearer for half an hour
 *
 * What cannot be read is counted by the store (mr_signal_rejected_total) and changes nothing. */
#include "server/power/signal_providers.h"

#include "runtime/base/mem.h"
#include "server/power/feed_carbon.h"
#include "server/power/feed_client.h"

#include <stdio.h>
#include <string.h>

struct signal_http {
    const struct signal_ear *ear;
    struct feed_client client;
    bool opened;
    enum feed_kind kind;
    bool marginal;
    const char *path; /* in the spec's place */
    char base[256], token_url[SIGNAL_TEXT_BYTES + 16], etag[HTTP_CALL_ETAG_BYTES];
    struct feed feed;
};

static void http_close(void *state)
{
    struct signal_http *http = state;
    if (http->opened) feed_client_close(&http->client);
    mem_free(http);
}

static enum feed_auth auth_of(const struct signal_spec *spec)
{
    bool secret = spec->secret_env[0] || spec->secret_file[0];
    switch (spec->kind) {
    case SIGNAL_KIND_ELECTRICITY_MAPS: return secret ? FEED_AUTH_HEADER : FEED_AUTH_NONE;
    case SIGNAL_KIND_WATTTIME: return FEED_AUTH_LOGIN;
    default: return secret ? FEED_AUTH_BEARER : FEED_AUTH_NONE;
    }
}

static enum status http_open(const struct signal_ear *ear, void **feed, struct error *err)
{
    const struct signal_spec *spec = ear->spec;
    struct signal_http *http = mem_alloc(1, sizeof *http);
    struct error reason = {""};
    if (!http) return error_set(err, ST_NOMEM, "no memory for a source of power signals");
    http->ear = ear;
    http->kind = spec->kind == SIGNAL_KIND_ELECTRICITY_MAPS ? FEED_ELECTRICITY_MAPS
                 : spec->kind == SIGNAL_KIND_CARBON_AWARE   ? FEED_CARBON_AWARE
                                                            : FEED_WATTTIME;
    http->marginal = spec->marginal == SIGNAL_UNSAID ? spec->kind != SIGNAL_KIND_ELECTRICITY_MAPS : spec->marginal != 0;
    enum status status = feed_split_url(spec->place, http->base, sizeof http->base, &http->path, &reason);
    (void)snprintf(http->token_url, sizeof http->token_url, "%s%s", spec->token_url[0] ? spec->token_url : http->base,
                   spec->token_url[0] ? "" : "/login");
    const struct feed_client_config config = {.auth = auth_of(spec),
                                              .url = http->base,
                                              .secret_env = spec->secret_env,
                                              .secret_file = spec->secret_file,
                                              .user = spec->user,
                                              .token_url = http->token_url,
                                              .ca_file = spec->ca_file,
                                              .period_ms = spec->period_ms,
                                              .clock = ear->setup->clock,
                                              .stop = ear->stop};
    if (status == ST_OK) status = feed_client_open(&http->client, &config, &reason);
    http->opened = status == ST_OK;
    if (status == ST_OK) {
        *feed = http;
    } else {
        (void)error_set(err, status, "--power-signal %.32s: %.400s", signal_kind_text(spec->kind), reason.message);
        http_close(http);
    }
    return status;
}

/* Slots that the store does not keep are not offered: a history reaches further back, a forecast further ahead. */
static void cut(struct feed *feed, int64_t now_ms)
{
    int64_t from_ms = now_ms - (SIGNAL_SLOTS_PAST - 1) * (int64_t)SIGNAL_SLOT_MS;
    int64_t until_ms = now_ms + (SIGNAL_SLOTS - SIGNAL_SLOTS_PAST - 1) * (int64_t)SIGNAL_SLOT_MS;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < feed->count; i++) {
        const struct power_slot *slot = &feed->slots[i];
        if (slot->t0_ms >= from_ms && slot->t0_ms < until_ms) feed->slots[kept++] = *slot;
    }
    feed->count = kept;
}

static void tell(struct signal_http *http, int64_t now_ms)
{
    struct signals *signals = http->ear->signals;
    struct feed *feed = &http->feed;
    cut(feed, now_ms);
    if (feed->count == 0)
        signal_beat(signals, http->ear->source, now_ms);
    else
        (void)signal_offer(signals, http->ear->source, feed->slots, feed->count, now_ms);
    for (uint32_t i = 0; i < feed->refused; i++)
        signal_failed(signals, http->ear->source, SIGNAL_UNREADABLE, feed->first.message);
}

static uint32_t http_look(void *state, int64_t now_ms)
{
    struct signal_http *http = state;
    struct feed_client *client = &http->client;
    struct error err = {""};
    enum signal_why why;
    int http_status;
    feed_client_begin(client);
    client->call.etag = http->etag[0] ? http->etag : NULL;
    enum status status = feed_client_run(client, http->base, http->path, NULL, &http_status, &why, &err);
    if (status == ST_OK && http_status == 304) {
        signal_beat(http->ear->signals, http->ear->source, now_ms);
    } else if (status == ST_OK) {
        why = SIGNAL_UNREADABLE;
        status = feed_read_carbon(http->kind, client->answer.data, client->answer.length, http->marginal, now_ms,
                                  &http->feed, &err);
        if (status == ST_OK) {
            memcpy(http->etag, client->call.answer_etag, sizeof http->etag);
            tell(http, now_ms);
        }
    }
    if (status != ST_OK && status != ST_CANCELED)
        signal_failed(http->ear->signals, http->ear->source, why, err.message);
    return feed_client_end(client, status == ST_OK);
}

const struct signal_provider signal_http = {.open = http_open, .look = http_look, .close = http_close};
