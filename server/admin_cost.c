/* The admin call about money; see serve_parts.h.
 *
 *   GET /admin/cost   what a million tokens have cost since the start, part by part, with the formula and its numbers;
 *                     joules by model and tier, and joules and CO2 by tenant (of requests that have ended)
 *
 * The same books, terms and formula as mr_cost_per_million_tokens. Without a price or tokens "cost" is null and
 * "cost_missing" says why; the joules are told all the same. */
#include "server/serve_parts.h"

#include "runtime/base/json.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { COST_TENANTS_MAX = 1000 /* told in an answer */ };

enum status cost_now(struct server *server, const struct power_usage *usage, struct cost_live *live, struct error *err)
{
    uint64_t prompt_tokens = 0, output_tokens = 0;
    for (uint32_t i = 0; i < server->models.count; i++) {
        prompt_tokens += server->models.items[i]->metrics.recorded_in;
        output_tokens += server->models.items[i]->metrics.recorded_out;
    }
    return cost_live_compute(&server->cost_terms, usage, prompt_tokens, output_tokens, live, err);
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

void admin_cost_request(struct server *server, struct http_conn *conn)
{
    struct power *power = server->models.power;
    struct cost_live live;
    struct error err;
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
    buf_append_text(&body, "{\"object\":\"cost\",\"cost\":");
    if (cost_now(server, &server->power_usage, &live, &err) == ST_OK) {
        append_cost(server, &live, &body);
    } else {
        buf_append_text(&body, "null,\"cost_missing\":");
        buf_append_json_string(&body, err.message, strlen(err.message));
    }
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
