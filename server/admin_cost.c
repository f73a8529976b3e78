/* The admin call about money; see serve_parts.h.
 *
 *   GET /admin/cost   what a million tokens have cost since the start, part by part, with the formula and its numbers;
 *                     the same of the last hour, the last day and each quarter of an hour of it; joules by model and
 *                     tier, and joules and CO2 by tenant (of requests that have ended)
 *
 * The same books, terms and formula as mr_cost_per_million_tokens. Without a price or tokens "cost" is null and
 * "cost_missing" says why; the joules are told all the same. */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/json.h"

#include <inttypes.h>
#include <string.h>

enum { COST_TENANTS_MAX = 1000 /* told in an answer */ };

struct cost_span cost_span_now(const struct server *server, const struct power_usage *usage)
{
    struct cost_span span = {.seconds = usage->seconds,
                             .meter_uj = usage->books.meter_uj,
                             .prefill_uj = usage->books.prefill_uj,
                             .decode_uj = usage->books.decode_uj,
                             .door_kwh = usage->door_kwh,
                             .paid_kwh = usage->paid_kwh,
                             .paid = usage->paid};
    for (uint32_t i = 0; i < server->models.count; i++) {
        span.prompt_tokens += server->models.items[i]->metrics.recorded_in;
        span.output_tokens += server->models.items[i]->metrics.recorded_out;
    }
    return span;
}

static void append_cost(const struct server *server, const struct cost_live *live, struct buf *out)
{
    const struct cost *cost = &live->cost;
    struct buf text;
    buf_append_format(out,
                      "{\"currency\":\"%s\",\"per_million_tokens\":%.9g,\"per_million_output_tokens\":%.9g,"
                      "\"per_million_input_part\":%.9g,\"per_million_output_part\":%.9g,\"parts\":{",
                      server->cost_terms.currency, cost->million_all, cost->million_output, cost->million_input_part,
                      cost->million_output_part);
    for (int part = 0; part < COST_PARTS; part++)
        buf_append_format(out, "%s\"%s\":%.9g", part ? "," : "", cost_part_name((enum cost_part)part),
                          1e6 * cost->hour[part] / cost->tokens_hour);
    buf_append_format(out,
                      "},\"price_kwh\":%.9g,\"priced_share\":%.6g,\"pue\":%.6g,\"kwh_per_million_tokens\":%.9g,"
                      "\"joules_per_token\":%.9g,\"energy_of_running\":%.6g,\"energy_of_all\":%.6g,"
                      "\"input_tokens\":%.0f,\"output_tokens\":%.0f,\"seconds\":%.9g,\"explain\":",
                      cost->price_kwh, live->priced_share, live->terms.pue, cost->million_kwh, cost->joules_token,
                      cost->energy_of_running, cost->energy_of_all, live->load.prompt_tokens, live->load.output_tokens,
                      live->load.seconds);
    buf_init(&text, 0);
    cost_explain(&live->terms, &live->load, cost, server->cost_terms.currency, &text);
    buf_append_json_string(out, buf_ok(&text) && text.data ? text.data : "", buf_ok(&text) ? text.length : 0);
    buf_free(&text);
    buf_append_char(out, '}');
}

static void append_models(const struct power_usage *usage, struct buf *out)
{
    static const char *const tiers[CLASS_COUNT] = {"priority", "default", "flex", "batch"};
    for (uint32_t i = 0; i < usage->count; i++)
        for (uint32_t tier = 0; tier < CLASS_COUNT; tier++) {
            const struct energy_group *group = &usage->groups[i][tier];
            if (i + tier > 0) buf_append_char(out, ',');
            buf_append_text(out, "{\"model\":");
            buf_append_json_string(out, usage->models[i], strlen(usage->models[i]));
            buf_append_format(out, ",\"tier\":\"%s\",\"prefill_uj\":%" PRIu64 ",\"decode_uj\":%" PRIu64 "}",
                              tiers[tier], group->prefill_uj, group->decode_uj);
        }
}

static void append_tenants(struct power *power, struct buf *out)
{
    struct tenant_energy tenant;
    for (uint32_t next = 0, told = 0; told < COST_TENANTS_MAX && power_tenant(power, &next, &tenant); told++) {
        buf_append_text(out, told ? ",{\"tenant\":" : "{\"tenant\":");
        buf_append_json_string(out, tenant.name, strlen(tenant.name));
        buf_append_format(out,
                          ",\"requests\":%" PRIu64 ",\"prefill_uj\":%" PRIu64 ",\"decode_uj\":%" PRIu64
                          ",\"idle_share_uj\":%" PRIu64 ",\"green_uj\":%" PRIu64 ",\"ugco2_location\":%" PRIu64
                          ",\"ugco2_market\":%" PRIu64 "}",
                          tenant.requests, tenant.prefill_uj, tenant.decode_uj, tenant.idle_share_uj,
                          tenant.carbon.green_uj, tenant.carbon.location_ug, tenant.carbon.market_ug);
    }
}

static void append_books(const struct energy_books *books, struct buf *out)
{
    buf_append_format(
        out,
        "{\"meter_uj\":%" PRIu64 ",\"prefill_uj\":%" PRIu64 ",\"decode_uj\":%" PRIu64 ",\"idle_uj\":%" PRIu64
        ",\"paced_uj\":%" PRIu64 ",\"unattributed_uj\":%" PRIu64 ",\"green_uj\":%" PRIu64 ",\"ugco2_location\":%" PRIu64
        ",\"ugco2_market\":%" PRIu64 ",\"ugco2_marginal\":%" PRIu64 "}",
        books->meter_uj, books->prefill_uj, books->decode_uj, books->idle_uj, books->paced_uj, books->unattributed_uj,
        books->carbon.green_uj, books->carbon.location_ug, books->carbon.market_ug, books->carbon.marginal_ug);
}

/* Of a part of the time, or all of it: the cost, or why there is none. */
static void append_span(const struct server *server, const struct cost_span *span, const char *name, struct buf *out)
{
    struct cost_live live;
    struct error err;
    buf_append_format(out, "\"%scost\":", name);
    if (cost_live_compute(&server->cost_terms, span, &live, &err) == ST_OK) {
        append_cost(server, &live, out);
    } else {
        buf_append_format(out, "null,\"%scost_missing\":", name);
        buf_append_json_string(out, err.message, strlen(err.message));
    }
}

static void append_windows(const struct server *server, struct buf *out)
{
    int64_t now_ms = clock_unix_ms(clock_system());
    struct cost_span hour = history_minutes_since(&server->history, now_ms - 60 * HISTORY_MINUTE_MS);
    struct cost_span day = history_slots_since(&server->history, now_ms - HISTORY_SLOTS * (int64_t)HISTORY_SLOT_MS);
    append_span(server, &hour, "hour_", out);
    buf_append_char(out, ',');
    append_span(server, &day, "day_", out);
    buf_append_text(out, ",\"slots\":[");
    for (uint32_t i = 0; i < history_held(server->history.slots_count, HISTORY_SLOTS); i++) {
        const struct history_entry *slot = history_slot(&server->history, i);
        const struct cost_span *span = &slot->span;
        buf_append_format(out,
                          "%s{\"t\":%" PRId64 ",\"input_tokens\":%" PRIu64 ",\"output_tokens\":%" PRIu64
                          ",\"meter_uj\":%" PRIu64 ",\"green_uj\":%" PRIu64 ",\"ugco2_location\":%" PRIu64
                          ",\"ugco2_market\":%" PRIu64 ",\"price_kwh\":",
                          i ? "," : "", slot->t0_ms / 1000, span->prompt_tokens, span->output_tokens, span->meter_uj,
                          slot->green_uj, slot->location_ug, slot->market_ug);
        if (span->paid_kwh > 0)
            buf_append_format(out, "%.9g,", span->paid / span->paid_kwh);
        else
            buf_append_text(out, "null,");
        append_span(server, span, "", out);
        buf_append_char(out, '}');
    }
    buf_append_char(out, ']');
}

void admin_cost_request(struct server *server, struct http_conn *conn)
{
    struct power *power = server->models.power;
    struct buf body;
    if (!power) {
        struct api_error error;
        api_error_set(&error, 409, "invalid_request_error", "no_power_meter", NULL,
                      "This server has no meter of watts, so it keeps no account of joules: see --power-sensor.");
        reply_error(conn, &error, NULL, false);
        return;
    }
    power_read_usage(power, &server->power_usage);
    buf_init(&body, 0);
    struct cost_span span = cost_span_now(server, &server->power_usage);
    buf_append_text(&body, "{\"object\":\"cost\",");
    append_span(server, &span, "", &body);
    buf_append_char(&body, ',');
    append_windows(server, &body);
    buf_append_text(&body, ",\"energy\":");
    append_books(&server->power_usage.books, &body);
    buf_append_text(&body, ",\"models\":[");
    append_models(&server->power_usage, &body);
    buf_append_text(&body, "],\"tenants\":[");
    append_tenants(power, &body);
    buf_append_text(&body, "]}");
    http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &body});
    buf_free(&body);
}
