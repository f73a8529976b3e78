/* Answers that need no model: health, metrics, load, the list of models, the console, and refusals; see serve_parts.h.
 */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "server/console.h"
#include "server/power/signal_show.h"
#include "server/upstream/upstreams.h"

#include <string.h>
#include <sys/resource.h>

enum { STUCK_AFTER_S = 60 /* a step that takes longer than this is taken for a hang */ };

void reply_text(struct http_conn *conn, int status, const char *content_type, const char *text, size_t length)
{
    struct buf body;
    buf_init(&body, 0);
    buf_append(&body, text, length);
    http_conn_reply(conn, &(struct http_reply){.status = status, .content_type = content_type, .body = &body});
    buf_free(&body);
}

void reply_refusal(struct server *server, struct http_conn *conn, enum refusal refusal, uint32_t retry_after_ms,
                   const char *allow)
{
    struct api_error error;
    refusal_error(refusal, retry_after_ms, &error);
    reply_error(conn, &error, allow, refusal == REFUSE_DRAINING || server->phase == CLOSING);
}

bool engine_refusal(const struct server *server, enum refusal *refusal, uint32_t *retry_after_ms)
{
    *retry_after_ms = RETRY_DRAINING_MS;
    if (server->phase >= REFUSING) return *refusal = REFUSE_DRAINING, true;
    for (uint32_t i = 0; i < server->models.count; i++) {
        struct engine_stats stats;
        if (!server->models.items[i]->engine) continue;
        engine_stats_read(server->models.items[i]->engine, &stats);
        if (stats.device_lost) return *refusal = REFUSE_ENGINE_LOST, true;
    }
    if (server->phase == LOADING && models_serving(&server->models) == 0) {
        *retry_after_ms = RETRY_LOADING_MS;
        return *refusal = REFUSE_LOADING, true;
    }
    return false;
}

bool engine_stuck(const struct server *server)
{
    uint64_t now_ns = clock_now_ns(clock_system());
    for (uint32_t i = 0; i < server->models.count; i++) {
        struct engine_stats stats;
        if (!server->models.items[i]->engine) continue;
        engine_stats_read(server->models.items[i]->engine, &stats);
        if (stats.running > 0 && now_ns > stats.beat_ns && now_ns - stats.beat_ns > STUCK_AFTER_S * NS_PER_S)
            return true;
    }
    return false;
}

static void reply_states(struct server *server, struct http_conn *conn)
{
    struct buf body;
    buf_init(&body, 0);
    buf_append_text(&body, "{\"status\":\"ok\",\"models\":{");
    for (uint32_t i = 0; i < server->models.count; i++) {
        const struct served *served = server->models.items[i];
        if (i) buf_append_char(&body, ',');
        buf_append_json_string(&body, served->names.items[0], strlen(served->names.items[0]));
        buf_append_format(&body, ":\"%s\"", model_state_name(served->life.state));
    }
    buf_append_text(&body, "}}");
    http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &body});
    buf_free(&body);
}

/* Alive from the start; healthy when a model has come up, whatever an operator has unloaded since: a supervisor must
 * not start the process again for that; ready when all models of the start have been. */
void reply_health(struct server *server, struct http_conn *conn, enum route_id route)
{
    enum refusal refusal;
    uint32_t retry_after_ms;
    bool refused = engine_refusal(server, &refusal, &retry_after_ms);
    if (route == ROUTE_READYZ && !refused && server->phase == LOADING) {
        refused = true, refusal = REFUSE_LOADING, retry_after_ms = RETRY_LOADING_MS;
    }
    if (route == ROUTE_READYZ && server->phase >= DRAINING) refused = true, refusal = REFUSE_DRAINING;
    if (route != ROUTE_READYZ && refused && refusal == REFUSE_DRAINING) refused = false;
    if (route == ROUTE_LIVEZ) refused = refused && refusal == REFUSE_ENGINE_LOST; /* loading is being alive */
    if (!refused && engine_stuck(server)) refused = true, refusal = REFUSE_STUCK;
    if (refused)
        reply_refusal(server, conn, refusal, retry_after_ms, NULL);
    else
        reply_states(server, conn);
}

static uint64_t cpu_ns(const struct rusage *usage)
{
    uint64_t seconds = (uint64_t)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec);
    return seconds * NS_PER_S + (uint64_t)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) * 1000;
}

static void count_leases(struct server *server)
{
    struct lease_sums sums;
    struct billing_stats *stats = &server->billing_stats;
    meter_leases_sum(server->billing->meter, &sums);
    billing_stats_set(&stats->lease_accounts, sums.accounts);
    billing_stats_set(&stats->lease_units, sums.leased);
    billing_stats_set(&stats->lease_held_units, sums.held);
    billing_stats_set(&stats->lease_headroom_units, sums.headroom);
    billing_stats_set(&stats->outage_units, sums.credit);
}

void reply_metrics(struct server *server, struct http_conn *conn)
{
    struct engine_stats stats[MODELS_MAX];
    struct metrics_model models[MODELS_MAX];
    struct rusage io = {0}, process = {0};
    uint64_t now_ns = clock_now_ns(clock_system());
    for (uint32_t i = 0; i < server->models.count; i++) {
        const struct served *served = server->models.items[i];
        const struct model_life *life = &served->life;
        served_stats(served, &stats[i]);
        models[i] = (struct metrics_model){
            .metrics = &served->metrics,
            .engine = &stats[i],
            .ready = server->phase <= READY && life->state == MODEL_READY,
            .sleep_level = life->state == MODEL_ASLEEP || life->state == MODEL_WAKING ? life->sleep_level : 0,
            .preparing = served->waiting + (i == 0 ? server->exchanges.preparing : 0),
            .prefix_cache = server->config->enable_prefix_caching,
            .weights_bytes = served->memory.weights_bytes,
            .kv_bytes = served->memory.kv_bytes,
            .scratch_bytes = served->memory.scratch_bytes,
            .load_ns = life->load_ns,
            .wake_ns = life->wake_ns,
            .wake_estimate_ns = model_life_wake_estimate_ns(life, now_ns),
        };
    }
    (void)getrusage(RUSAGE_THREAD, &io);
    (void)getrusage(RUSAGE_SELF, &process);
    struct metrics_process *own = &server->metrics;
    own->connections = http_server_connections(server->http);
    own->answers = server->exchanges.count;
    own->log_lines_dropped = log_lines_dropped();
    own->has_audit = server->audit != NULL;
    if (server->audit) own->audit_lines = audit_lines(server->audit), own->audit_failures = audit_failures(server->audit);
    own->memory_limit_bytes = server->models.memory_limit_bytes;
    own->io_cpu_ns = cpu_ns(&io);
    own->process_cpu_ns = cpu_ns(&process);
    own->weight = server->weight;
    own->io_switches_own = (uint64_t)io.ru_nvcsw;
    own->io_switches_forced = (uint64_t)io.ru_nivcsw;
    if (server->models.power) {
        struct power_state state;
        power_read_state(server->models.power, &state);
        own->power = (struct metrics_power){.is_on = true,
                                            .estimated = state.estimated,
                                            .watts = state.watts,
                                            .setpoint_w = state.setpoint_w,
                                            .error_ratio = state.error_ratio,
                                            .shed_level = state.goal.shed_level,
                                            .alarm = (uint32_t)state.alarm,
                                            .meter_j = state.meter_j,
                                            .meter_s = state.meter_s,
                                            .windows = state.windows,
                                            .read_failures = state.read_failures,
                                            .steps_lost = state.steps_lost,
                                            .usage = &server->power_usage};
        power_read_usage(server->models.power, &server->power_usage);
        struct error err;
        struct cost_span span = cost_span_now(server, &server->power_usage);
        own->power.has_cost = cost_live_compute(&server->cost_terms, &span, &own->power.cost, &err) == ST_OK;
        own->power.currency = server->cost_terms.currency;
    }
    struct buf body;
    buf_init(&body, 0);
    metrics_print(models, server->models.count, own, &body);
    plan_print_metrics(server->plan, &body);
    batches_print_metrics(server->batches, &body);
    pool_print_metrics(server, &body);
    upstreams_print_metrics(server->exchanges.upstreams, &body);
    signal_print_metrics(server->models.signals, clock_unix_ms(clock_system()), &body);
    if (server->billing) count_leases(server);
    if (server->ledger.calls) billing_stats_print(&server->billing_stats, now_ns, &body);
    http_conn_reply(
        conn,
        &(struct http_reply){.status = 200, .content_type = "text/plain; version=0.0.4; charset=utf-8", .body = &body});
    buf_free(&body);
}

/* Sums over all models. */
void reply_load(struct server *server, struct http_conn *conn)
{
    struct engine_stats sum = {0};
    for (uint32_t i = 0; i < server->models.count; i++) {
        struct engine_stats stats;
        served_stats(server->models.items[i], &stats);
        sum.running += stats.running;
        sum.waiting += stats.waiting;
        sum.kv_blocks_used += stats.kv_blocks_used;
        sum.kv_blocks_cached += stats.kv_blocks_cached;
        sum.kv_blocks_total += stats.kv_blocks_total;
    }
    struct buf body;
    buf_init(&body, 0);
    buf_append_format(&body,
                      "{\"server_load\":%u,\"connections\":%u,\"running\":%u,\"waiting\":%u,\"kv_blocks_used\":%u,"
                      "\"kv_blocks_cached\":%u,\"kv_blocks_total\":%u}",
                      server->exchanges.count, http_server_connections(server->http), sum.running, sum.waiting,
                      sum.kv_blocks_used, sum.kv_blocks_cached, sum.kv_blocks_total);
    http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &body});
    buf_free(&body);
}

void reply_console(struct server *server, struct http_conn *conn, struct http_request *request, enum route_id route)
{
    struct buf body;
    if (route == ROUTE_ROOT) {
        buf_append_text(&request->answer_headers, "location: console\r\n");
        http_conn_reply(conn, &(struct http_reply){.status = 303, .content_type = "text/plain"});
        return;
    }
    const struct console_file *file = console_find(http_request_target(request), request->path_length);
    if (!file) {
        reply_refusal(server, conn, REFUSE_UNKNOWN_URL, 0, NULL);
        return;
    }
    console_print_headers(file, &request->answer_headers);
    if (console_is_kept(file, http_request_header(request, "if-none-match", NULL))) {
        http_conn_reply(conn, &(struct http_reply){.status = 304});
        return;
    }
    buf_init(&body, 0);
    buf_append(&body, (const char *)file->data, file->length);
    http_conn_reply(conn, &(struct http_reply){.status = 200, .content_type = file->content_type, .body = &body});
    buf_free(&body);
}

static int hex_digit(char c)
{
    const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c >= 'A' && c <= 'F' ? c + 'a' - 'A' : c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* Slashes are kept: clients send names such as "org/name" as they are. */
void path_argument(const char *text, size_t length, char out[PATH_ARGUMENT_BYTES_MAX])
{
    size_t used = 0;
    for (size_t i = 0; i < length && used + 1 < PATH_ARGUMENT_BYTES_MAX; i++) {
        int high = text[i] == '%' && i + 2 < length ? hex_digit(text[i + 1]) : -1;
        int low = high >= 0 ? hex_digit(text[i + 2]) : -1;
        if (low >= 0 && (high > 0 || low > 0)) {
            out[used++] = (char)(high * 16 + low);
            i += 2;
        } else
            out[used++] = text[i];
    }
    out[used] = '\0';
}

void reply_models(struct server *server, struct http_conn *conn, const struct http_request *request,
                  const struct route *route)
{
    char id[PATH_ARGUMENT_BYTES_MAX];
    const struct api_model *items[MODELS_MAX];
    size_t skip = strlen(route->path);
    struct buf body;
    buf_init(&body, 0);
    for (uint32_t i = 0; i < server->models.count; i++) items[i] = &server->models.items[i]->model;
    const struct upstreams *upstreams = server->exchanges.upstreams;
    struct api_models models = {.items = items,
                                .count = server->models.count,
                                .far = upstreams ? upstreams->far : NULL,
                                .far_count = upstreams ? upstreams->models_count : 0};
    if (route->id == ROUTE_MODEL) path_argument(http_request_target(request) + skip, request->path_length - skip, id);
    int status = api_models(&models, route->id == ROUTE_MODEL ? id : NULL, &body);
    http_conn_reply(conn, &(struct http_reply){.status = status, .body = &body});
    buf_free(&body);
}
