/* What the node did of late, for a console; see serve_parts.h and power/history.h.
 *
 *   GET /admin/history   per minute, the oldest first, up to 180: tokens a second by direction, queue, running, KV
 * share, watts, budget, green share, cost per million tokens; the last minute is under way
 *
 * Looked at once a second, from the same counters as /metrics; the io thread alone writes it. The balancer's weight is
 * computed at the same looks (power/weight.h). */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "server/power/weight.h"

#include <inttypes.h>
#include <math.h>

enum { LOOK_MS = 1000 };

static void sum_engines(const struct server *server, struct history_now *now, double *kv_free)
{
    *kv_free = 1; /* of the fullest model */
    for (uint32_t i = 0; i < server->models.count; i++) {
        const struct served *served = server->models.items[i];
        struct engine_stats stats;
        served_stats(served, &stats);
        now->computed_prompt_tokens += stats.computed_prompt_tokens;
        now->generated_tokens += stats.generation_tokens;
        now->running += stats.running;
        now->waiting += stats.waiting + served->waiting;
        if (stats.kv_blocks_total == 0) continue;
        double used = (double)stats.kv_blocks_used / stats.kv_blocks_total;
        now->kv_share = fmax(now->kv_share, used);
        *kv_free = 1 - now->kv_share;
    }
}

/* What a kWh usually costs here: of the tariff, else the option. */
static double usual_price(const struct cost_live_terms *terms)
{
    return terms->tariff.count ? tariff_mean(&terms->tariff) : terms->price_kwh;
}

static void weigh(struct server *server, const struct history_now *now, const struct power_state *power, double kv_free)
{
    const struct config *config = server->config;
    bool metered = server->models.power != NULL;
    double queue_max = (double)(config->max_num_queued_reqs ? config->max_num_queued_reqs : limits.queue_requests);
    struct weight_inputs inputs = {.ready = server->phase == READY,
                                   .kv_free = kv_free,
                                   .allowance_w = metered ? power->allowance_w : INFINITY,
                                   .work_w = metered ? power->full_w - power->idle_w : 0,
                                   .queue = now->waiting,
                                   .queue_max = queue_max,
                                   .price_kwh = metered ? server->power_usage.price_kwh : NAN,
                                   .usual_price = usual_price(&server->cost_terms)};
    server->weight = weight_tell(server->history.begun ? server->weight : -1, weight_compute(&inputs));
}

void history_turn(struct server *server)
{
    struct history *history = &server->history;
    struct history_now now = {.unix_ms = clock_unix_ms(clock_system()), .setpoint_w = INFINITY};
    struct power_state power = {.watts = 0};
    int64_t passed_ms = now.unix_ms - history->last.unix_ms;
    double kv_free;
    if (history->begun && passed_ms >= 0 && passed_ms < LOOK_MS) return;
    if (server->models.power) {
        struct power_usage *usage = &server->power_usage;
        power_read_state(server->models.power, &power);
        power_read_usage(server->models.power, usage);
        now.setpoint_w = power.setpoint_w;
        now.green_uj = usage->books.carbon.green_uj;
        now.location_ug = usage->books.carbon.location_ug;
        now.market_ug = usage->books.carbon.market_ug;
    }
    now.span = cost_span_now(server, &server->power_usage); /* without a meter: tokens alone */
    sum_engines(server, &now, &kv_free);
    weigh(server, &now, &power, kv_free);
    now.weight = server->weight;
    history_look(history, &now);
}

static void append_or_null(struct buf *out, const char *name, bool known, double value)
{
    if (known && isfinite(value))
        buf_append_format(out, ",\"%s\":%.6g", name, value);
    else
        buf_append_format(out, ",\"%s\":null", name);
}

static void append_minute(const struct server *server, const struct history_entry *entry, struct buf *out)
{
    const struct cost_span *span = &entry->span;
    double seconds = (double)entry->seen_ms * 1e-3, looks = entry->looks;
    struct cost_live live;
    struct error err;
    bool costs = cost_live_compute(&server->cost_terms, span, &live, &err) == ST_OK;
    buf_append_format(out,
                      "{\"t\":%" PRId64 ",\"prompt_tokens\":%" PRIu64 ",\"output_tokens\":%" PRIu64
                      ",\"meter_uj\":%" PRIu64 ",\"green_uj\":%" PRIu64,
                      entry->t0_ms / 1000, entry->computed_prompt_tokens, entry->generated_tokens, span->meter_uj,
                      entry->green_uj);
    append_or_null(out, "prompt_tokens_s", seconds > 0, (double)entry->computed_prompt_tokens / seconds);
    append_or_null(out, "output_tokens_s", seconds > 0, (double)entry->generated_tokens / seconds);
    append_or_null(out, "queue", true, entry->waiting / looks);
    append_or_null(out, "running", true, entry->running / looks);
    append_or_null(out, "kv_share", true, entry->kv_share / looks);
    append_or_null(out, "watts", span->seconds > 0, (double)span->meter_uj * 1e-6 / span->seconds);
    append_or_null(out, "budget_w", true, entry->setpoint_w);
    append_or_null(out, "green_share", span->door_kwh > 0, (double)entry->green_uj * 1e-6 / (span->door_kwh * 3.6e6));
    append_or_null(out, "cost_per_million", costs, costs ? live.cost.million_all : 0);
    append_or_null(out, "weight", true, entry->weight);
    buf_append_char(out, '}');
}

void admin_history_request(struct server *server, struct http_conn *conn)
{
    struct buf body;
    buf_init(&body, 0);
    buf_append_format(&body, "{\"object\":\"history\",\"period_s\":%d,\"currency\":\"%s\",\"minutes\":[",
                      HISTORY_MINUTE_MS / 1000, server->cost_terms.currency);
    uint32_t count = history_held(server->history.minutes_count, HISTORY_MINUTES);
    for (uint32_t i = 0; i < count; i++) {
        if (i > 0) buf_append_char(&body, ',');
        append_minute(server, history_minute(&server->history, i), &body);
    }
    buf_append_text(&body, "]}");
    http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &body});
    buf_free(&body);
}
