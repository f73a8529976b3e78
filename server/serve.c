/* See serve.h. This file decides who may use the models, and runs the process's life. */
#include "server/serve_parts.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/billing/prices.h"
#include "server/budget_link.h"
#include "server/pool/pool_work.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    EXIT_CLEAN = 0,
    EXIT_START = 1,
    EXIT_ENGINE = 3,
    FORM_BYTES_MAX = 65536,    /* of an upload, around the file */
    DESCRIPTORS_RESERVED = 16, /* model file, key file, log, accept itself */
    CLOSE_WAIT_MS = 3000       /* for last answers to be read before connections are cut */
};

/* ---- requests ---- */

static struct audit_call audit_view(struct http_conn *conn, const struct http_request *request,
                                    char from[HTTP_PEER_BYTES])
{
    http_conn_peer(conn, from);
    return (struct audit_call){.who = *request->caller.tenant_name ? request->caller.tenant_name : NULL,
                               .from = from,
                               .request = request->id,
                               .method = request->method,
                               .target = http_request_target(request),
                               .body = request->body.length ? request->body.data : NULL,
                               .body_length = request->body.length};
}

/* D1: whether it may begin. */
static bool audited(struct server *server, struct http_conn *conn, struct http_request *request)
{
    struct error err = {""};
    char from[HTTP_PEER_BYTES];
    const struct route *route = request->route;
    if (!server->audit || !route->admin || strcmp(request->method, "GET") == 0 || strcmp(request->method, "HEAD") == 0)
        return true;
    struct audit_call call = audit_view(conn, request, from);
    if (audit_call(server->audit, clock_unix_ms(clock_system()), &call, &request->audit_n, &err) == ST_OK) return true;
    log_line(LOG_ERROR, "audit", "request=%s refused reason=\"%s\"", request->id, err.message);
    reply_refusal(server, conn, REFUSE_AUDIT, RETRY_LOADING_MS, NULL);
    return false;
}

static bool authenticate(struct server *server, struct http_conn *conn, struct http_request *request, bool admin)
{
    uint32_t bearer_count, key_count;
    const char *bearer = http_request_header(request, "authorization", &bearer_count);
    const char *key = http_request_header(request, "x-api-key", &key_count);
    const char *name = NULL;
    enum auth_result result = AUTH_WRONG;
    if (bearer_count <= 1 && key_count <= 1)
        result = admin ? auth_check_admin(server->auth, bearer, key, &name)
                       : auth_check(server->auth, bearer, key, &request->caller);
    static const enum refusal refusals[] = {
        [AUTH_MISSING] = REFUSE_KEY_MISSING,   [AUTH_WRONG] = REFUSE_KEY_WRONG,
        [AUTH_OFF] = REFUSE_ADMIN_OFF,         [AUTH_REVOKED] = REFUSE_KEY_REVOKED,
        [AUTH_CLOSED] = REFUSE_ACCOUNT_CLOSED, [AUTH_NOT_YET] = REFUSE_NO_DIRECTORY};
    if (name) (void)snprintf(request->caller.tenant_name, sizeof request->caller.tenant_name, "%s", name);
    if (result == AUTH_OK) return true;
    if (admin && server->audit) {
        struct api_error error;
        char from[HTTP_PEER_BYTES];
        struct audit_call call = audit_view(conn, request, from);
        refusal_error(refusals[result], 0, &error);
        audit_refused(server->audit, clock_unix_ms(clock_system()), &call, error.http_status);
    }
    reply_refusal(server, conn, refusals[result], RETRY_LOADING_MS, NULL);
    return false;
}

/* Admin calls have the admin port for themselves, if there is one; billing's have no other. Elsewhere they do not
 * exist, and nor do others there, but for the console, which can ask its own port alone, and what it needs. */
static bool is_elsewhere(const struct server *server, bool admin_port, const struct route *route)
{
    bool on_both = (route->id >= ROUTE_ROOT && route->id <= ROUTE_CONSOLE_FILE) || route->id == ROUTE_METRICS;
    if (admin_port) return !route->admin && !on_both;
    return route->billing || (route->admin && server->admin_http);
}

static bool is_batch_route(const struct route *route)
{
    return route->id >= ROUTE_FILES && route->id <= ROUTE_BATCH;
}

/* Bodies of uploads, which stream to disk, may be larger: the file, and the form around it. */
static uint64_t body_max(void *state, const struct http_request *request)
{
    struct server *server = state;
    const struct route *route;
    const char *allow;
    bool uploads = server->batches && strcmp(request->method, "POST") == 0 &&
                   route_find(request->method, http_request_target(request), request->path_length, &route, &allow) ==
                       ROUTE_FOUND &&
                   route->id == ROUTE_FILES;
    return uploads ? limits.batch_file_bytes + FORM_BYTES_MAX : limits.http_body_bytes;
}

static void on_body(void *state, struct http_conn *conn, struct http_request *request)
{
    struct server *server = state;
    (void)request;
    batches_body(server->batches, conn);
}

/* Everything that can be decided without the body, in order of cost. */
static void take_head(struct server *server, bool admin_port, struct http_conn *conn, struct http_request *request)
{
    const struct route *route = NULL;
    const char *allow = NULL;
    enum route_match match =
        route_find(request->method, http_request_target(request), request->path_length, &route, &allow);
    if (match != ROUTE_NO_PATH && is_elsewhere(server, admin_port, route)) match = ROUTE_NO_PATH;
    bool open =
        match != ROUTE_NO_PATH && route->open && (route->id != ROUTE_METRICS || !server->config->metrics_need_key);
    bool admin = admin_port || (match != ROUTE_NO_PATH && route->admin);
    if (!open && !authenticate(server, conn, request, admin)) return;
    if (match != ROUTE_FOUND) {
        reply_refusal(server, conn, match == ROUTE_NO_PATH ? REFUSE_UNKNOWN_URL : REFUSE_METHOD, 0, allow);
        return;
    }
    request->route = route;
    if (!open && !admin) exchanges_tell_limits(&server->exchanges, request);
    enum refusal refusal;
    struct api_error error;
    uint32_t retry_after_ms;
    if (route->needs_engine && engine_refusal(server, &refusal, &retry_after_ms)) {
        reply_refusal(server, conn, refusal, retry_after_ms, NULL);
        return;
    }
    const char *why_not;
    if (route->needs_engine && server->billing && !meter_accepts(server->billing->meter, &why_not)) {
        billing_stats_add(&server->billing_stats.refused_journal, 1);
        reply_refusal(server, conn, REFUSE_JOURNAL, RETRY_LOADING_MS, NULL);
        return;
    }
    if (is_batch_route(route)) {
        if (!server->batches)
            reply_refusal(server, conn, REFUSE_BATCHES_OFF, 0, NULL);
        else if (server->phase >= REFUSING)
            reply_refusal(server, conn, REFUSE_DRAINING, RETRY_DRAINING_MS, NULL);
        else if (route->id == ROUTE_FILES && strcmp(request->method, "POST") == 0)
            batches_head(server->batches, conn, request);
    }
    if (!route->post || !route->needs_engine) return;
    if (!media_type_is_json(http_request_header(request, "content-type", NULL)))
        reply_refusal(server, conn, REFUSE_MEDIA_TYPE, 0, NULL);
    else if (!request->has_body)
        reply_refusal(server, conn, REFUSE_NO_BODY, 0, NULL);
    else if (!exchange_key_of(request, &error) && error.http_status)
        reply_error(conn, &error, NULL, false);
    else if (!exchanges_have_room(&server->exchanges, request->id, &retry_after_ms))
        reply_refusal(server, conn, REFUSE_OVERLOADED, retry_after_ms, NULL);
}

static void on_head(void *state, struct http_conn *conn, struct http_request *request)
{
    take_head(state, false, conn, request);
}

static void on_admin_head(void *state, struct http_conn *conn, struct http_request *request)
{
    take_head(state, true, conn, request);
}

static void start_exchange(struct server *server, struct http_conn *conn, const struct http_request *request,
                           enum exchange_kind kind)
{
    enum refusal refusal;
    uint32_t retry_after_ms;
    if (engine_refusal(server, &refusal, &retry_after_ms)) { /* the body may have taken its time */
        reply_refusal(server, conn, refusal, retry_after_ms, NULL);
        return;
    }
    if (auth_has_stopped(server->auth, &request->caller)) { /* and the key, or its account, may be gone meanwhile */
        reply_refusal(server, conn, REFUSE_ACCOUNT_CLOSED, 0, NULL);
        return;
    }
    exchange_start(&server->exchanges, kind, conn, &request->caller);
}

static void on_request(void *state, struct http_conn *conn, struct http_request *request)
{
    static const char version[] = "{\"version\":\"" MILLRACE_VERSION "\"}";
    struct server *server = state;
    const struct route *route = request->route;
    if (!audited(server, conn, request)) return;
    switch (route->id) {
    case ROUTE_CHAT: start_exchange(server, conn, request, EXCHANGE_CHAT); break;
    case ROUTE_COMPLETIONS: start_exchange(server, conn, request, EXCHANGE_COMPLETIONS); break;
    case ROUTE_TOKENIZE: start_exchange(server, conn, request, EXCHANGE_TOKENIZE); break;
    case ROUTE_DETOKENIZE: start_exchange(server, conn, request, EXCHANGE_DETOKENIZE); break;
    case ROUTE_MODELS:
    case ROUTE_MODEL: reply_models(server, conn, request, route); break;
    case ROUTE_HEALTH:
    case ROUTE_PING:
    case ROUTE_LIVEZ:
    case ROUTE_READYZ: reply_health(server, conn, route->id); break;
    case ROUTE_METRICS: reply_metrics(server, conn); break;
    case ROUTE_VERSION: reply_text(conn, 200, NULL, version, sizeof version - 1); break;
    case ROUTE_LOAD: reply_load(server, conn); break;
    case ROUTE_ROOT:
    case ROUTE_CONSOLE:
    case ROUTE_CONSOLE_FILE: reply_console(server, conn, request, route->id); break;
    case ROUTE_ADMIN_MODELS:
    case ROUTE_ADMIN_LOAD:
    case ROUTE_ADMIN_UNLOAD:
    case ROUTE_ADMIN_SLEEP:
    case ROUTE_ADMIN_WAKE:
    case ROUTE_ADMIN_IS_SLEEPING: admin_request(server, conn, request, route->id); break;
    case ROUTE_ADMIN_COST: admin_cost_request(server, conn); break;
    case ROUTE_ADMIN_POWER: admin_power_request(server, conn, request); break;
    case ROUTE_ADMIN_HISTORY: admin_history_request(server, conn); break;
    case ROUTE_ADMIN_BALANCER: admin_balancer_request(server, conn, request); break;
    case ROUTE_ADMIN_PLAN: admin_plan_request(server, conn, request); break;
    case ROUTE_FILES:
    case ROUTE_FILE:
    case ROUTE_BATCHES:
    case ROUTE_BATCH: batches_request(server->batches, conn, request, route); break;
    case ROUTE_USAGE:
    case ROUTE_BILLING_LEDGER:
    case ROUTE_BILLING_ORDERS:
    case ROUTE_BILLING_ACCOUNTS:
    case ROUTE_BILLING_ACCOUNT:
    case ROUTE_BILLING_KEYS:
    case ROUTE_BILLING_USAGE:
    case ROUTE_BILLING_REAP:
    case ROUTE_BILLING_MARKS:
    case ROUTE_BILLING_DIRECTORY: billing_request(server, conn, request, route); break;
    }
}

static void on_writable(void *state, struct http_conn *conn)
{
    struct server *server = state;
    if (!batches_writable(server->batches, conn)) exchange_writable(http_conn_user(conn));
}

static void on_gone(void *state, struct http_conn *conn)
{
    struct server *server = state;
    if (!admin_gone(server, conn) && !billing_gone(server, conn) && !batches_gone(server->batches, conn))
        exchange_gone(http_conn_user(conn));
}

static void on_replied(void *state, const struct http_request *request, int http_status)
{
    struct server *server = state;
    metrics_reply(&server->metrics, http_status);
    if (request->audit_n) audit_answer(server->audit, clock_unix_ms(clock_system()), request->audit_n, http_status);
    if (log_level_get() >= LOG_DEBUG)
        log_line(LOG_DEBUG, "http", "request=%s method=%s status=%d", request->id,
                 request->method ? request->method : "-", http_status);
}

/* ---- the end ---- */

static void close_handles(struct server *server)
{
    if (server->handles_closed || !server->http_closed || server->exchanges.count > 0 || server->phase != CLOSING)
        return;
    server->handles_closed = true;
    models_close(&server->models);
    upstream_close(server);
    pthread_mutex_lock(&server->wake_mutex);
    server->wake_over = true;
    pthread_mutex_unlock(&server->wake_mutex);
    uv_close((uv_handle_t *)&server->engine_async, NULL);
    uv_close((uv_handle_t *)&server->tick, NULL);
    for (int i = 0; i < SIGNALS; i++) uv_close((uv_handle_t *)&server->signals[i], NULL);
    /* A signal that comes now, after the last answer, must not turn a clean end into a killed process. */
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGTERM, &ignore, NULL);
    sigaction(SIGINT, &ignore, NULL);
}

static void on_http_closed(void *state)
{
    struct server *server = state;
    server->http_closed = --server->http_open == 0;
    close_handles(server);
}

/* What /readyz and /livez say. */
static void notify_systemd(struct server *server)
{
    enum refusal refusal;
    uint32_t retry_after_ms;
    bool lost = engine_refusal(server, &refusal, &retry_after_ms) && refusal == REFUSE_ENGINE_LOST;
    enum notify_phase phase = server->phase == LOADING ? NOTIFY_LOADING
                              : server->phase == READY ? NOTIFY_READY
                                                       : NOTIFY_STOPPING;
    notify_turn(&server->notify, phase, !lost && !engine_stuck(server), clock_now_ns(clock_system()));
}

/* No new request, no new connection; what is being answered is answered. */
static void begin_closing(struct server *server)
{
    if (server->phase == CLOSING) return;
    server->phase = CLOSING;
    notify_systemd(server); /* there may be no more tick */
    server->closing_ns = http_server_now_ns(server->http);
    models_stop(&server->models);
    batches_stop(server->batches);
    server->recall_stop = true;
    admin_abort(server);
    http_server_close(server->http);
    if (server->admin_http) http_server_close(server->admin_http);
    balancer_close(server);
    close_handles(server);
}

static void close_now(struct server *server)
{
    http_server_close_now(server->http);
    if (server->admin_http) http_server_close_now(server->admin_http);
}

static void abort_calls(struct server *server)
{
    if (server->aborted) return;
    server->aborted = true;
    if (server->exchanges.count > 0)
        log_line(LOG_WARN, "serve", "cut calls=%u reason=\"shutdown time is over\"", server->exchanges.count);
    exchanges_abort(&server->exchanges);
}

static void on_used_up(void *state, uint64_t account)
{
    struct server *server = state;
    if (server->config->redis) server->directory.reap_next = account;
}

static void on_emptied(void *state)
{
    struct server *server = state;
    if (server->phase == REFUSING) begin_closing(server);
    close_handles(server);
}

static void drain_tick(struct server *server)
{
    uint64_t passed_ms = (http_server_now_ns(server->http) - server->drain_ns) / NS_PER_MS;
    if (server->phase == DRAINING && passed_ms >= server->config->drain_delay_ms) {
        server->phase = REFUSING; /* still listening: a clear 503 beats a refused connection */
        if (server->exchanges.count == 0) begin_closing(server);
    }
    if ((server->phase == DRAINING || server->phase == REFUSING) && passed_ms >= server->config->shutdown_timeout_ms &&
        passed_ms >= server->config->drain_delay_ms) {
        abort_calls(server);
        begin_closing(server);
    }
    if (server->phase == CLOSING && http_server_now_ns(server->http) - server->closing_ns > CLOSE_WAIT_MS * NS_PER_MS) {
        abort_calls(server);
        close_now(server);
    }
}

static void begin_drain(struct server *server, int signal_number)
{
    server->drain_ns = http_server_now_ns(server->http);
    log_line(LOG_INFO, "serve", "drain signal=%d calls=%u", signal_number, server->exchanges.count);
    http_server_close_after_reply(server->http);
    if (server->admin_http) http_server_close_after_reply(server->admin_http);
    if (server->phase == LOADING && models_serving(&server->models) == 0) { /* there is nothing to finish */
        begin_closing(server);
        return;
    }
    server->phase = DRAINING;
    exchanges_refuse_waiting(&server->exchanges);
    batches_stop(server->batches); /* lines that run end; the others stay for the next start */
    drain_tick(server);            /* without a delay the next request is refused already */
}

/* Requests that run keep the price they began with. */
static void reload_prices(struct server *server)
{
    struct error err = {""};
    struct prices *prices = NULL;
    if (!server->config->prices) return;
    enum status status = prices_read(server->config->prices, &prices, &err);
    if (status == ST_OK) status = prices_follow(server->exchanges.prices, prices, &err);
    if (status != ST_OK) {
        prices_destroy(prices);
        log_line(LOG_ERROR, "serve", "prices kept version=%u reason=\"%s\"", prices_version(server->exchanges.prices),
                 err.message); /* F16 */
        return;
    }
    prices_destroy(server->exchanges.prices);
    server->exchanges.prices = prices;
    log_line(LOG_INFO, "serve", "prices reloaded version=%u", prices_version(prices));
}

static void on_signal(uv_signal_t *handle, int signal_number)
{
    struct server *server = handle->data;
    if (signal_number == SIGHUP) {
        struct error err = {""};
        notify_reloading(&server->notify, clock_now_ns(clock_system()));
        if (server->audit && audit_reopen(server->audit, &err) != ST_OK)
            log_line(LOG_ERROR, "audit", "kept reason=\"%s\"", err.message);
        bool reloaded = auth_reload(server->auth, server->config, &err) == ST_OK;
        if (reloaded)
            log_line(LOG_INFO, "serve", "keys reloaded");
        else
            log_line(LOG_ERROR, "serve", "keys kept reason=\"%s\"", err.message); /* F16 */
        if (server->audit)
            audit_event(server->audit, clock_unix_ms(clock_system()), "keys", reloaded ? "reloaded" : "kept");
        reload_prices(server);
        return;
    }
    if (server->phase == LOADING || server->phase == READY) {
        begin_drain(server, signal_number);
        return;
    }
    log_line(LOG_INFO, "serve", "stop now signal=%d calls=%u", signal_number, server->exchanges.count);
    abort_calls(server);
    begin_closing(server);
    close_now(server);
}

/* Its requests have ended with errors (F11). Whatever else is served: a supervisor starts the whole again. */
static void end_with_lost_device(struct server *server, const struct served *served)
{
    log_line(LOG_ERROR, "serve", "the device of model=\"%s\" is lost; stopping", served->names.items[0]);
    server->exit_code = EXIT_ENGINE;
    server->phase = REFUSING;
    batches_stop(server->batches);
    server->drain_ns = http_server_now_ns(server->http);
    http_server_close_after_reply(server->http);
    http_server_stop_listening(server->http);
    if (server->exchanges.count == 0) begin_closing(server);
}

/* The process ends; what ran is closed by the next start's recovery, from what was durable. */
static void end_with_lost_journal(struct server *server)
{
    if (server->exit_code == EXIT_ENGINE) return;
    server->exit_code = EXIT_ENGINE;
    log_line(LOG_ERROR, "serve", "the billing journal is lost; stopping");
    abort_calls(server);
    meter_let_go(server->billing->meter);
    begin_closing(server);
}

static void on_tick(uv_timer_t *timer)
{
    struct server *server = timer->data;
    http_server_tick(server->http);
    if (server->admin_http) http_server_tick(server->admin_http);
    balancer_tick(server);
    exchanges_tick(&server->exchanges, http_server_now_ns(server->http));
    models_tick(&server->models);
    plan_turn(server);
    history_turn(server);
    exchanges_plan_news(&server->exchanges);
    pool_turn(server);
    batches_tick(server->batches);
    directory_watch_tick(server, http_server_now_ns(server->http));
    budget_link_tick(server->exchanges.budgets);
    for (uint32_t i = 0; i < server->models.count && server->phase < REFUSING; i++) {
        struct engine_stats stats;
        if (!server->models.items[i]->engine) continue;
        engine_stats_read(server->models.items[i]->engine, &stats);
        if (stats.device_lost) end_with_lost_device(server, server->models.items[i]);
    }
    notify_systemd(server);
    if (server->phase >= DRAINING) drain_tick(server);
}

/* ---- the start ---- */

static void on_budget_answered(void *state)
{
    exchanges_answered(&((struct server *)state)->exchanges);
}

void wake_loop(void *state) /* engine threads */
{
    struct server *server = state;
    pthread_mutex_lock(&server->wake_mutex);
    if (!server->wake_over) (void)uv_async_send(&server->engine_async);
    pthread_mutex_unlock(&server->wake_mutex);
}

static void on_engine_events(uv_async_t *async)
{
    struct server *server = async->data;
    exchanges_poll(&server->exchanges);
    pool_turn(server);
    if (!server->billing) return;
    uint64_t answers = meter_answers(server->billing->meter);
    if (answers != server->answers_seen) exchanges_answered(&server->exchanges);
    server->answers_seen = answers;
    if (meter_failed(server->billing->meter)) end_with_lost_journal(server);
}

/* "a", "b" of all models, for the log. */
static void tell_ready(struct server *server)
{
    struct buf names;
    const char *host = server->config->host;
    bool brackets = strchr(host, ':') != NULL;
    buf_init(&names, 0);
    for (uint32_t i = 0; i < server->models.count; i++) {
        const struct served *served = server->models.items[i];
        buf_append_format(&names, " model=\"%s\" context=%u", served->names.items[0], served->model.context_max);
    }
    buf_append_char(&names, '\0');
    uint64_t ready_ns = clock_now_ns(clock_system()) - server->start_ns;
    log_line(LOG_INFO, "serve", "ready url=http://%s%s%s:%u%s after_ms=%llu", brackets ? "[" : "", host,
             brackets ? "]" : "", http_server_port(server->http), buf_ok(&names) ? names.data : "",
             (unsigned long long)(ready_ns / NS_PER_MS));
    buf_free(&names);
}

/* A model has arrived somewhere. One of the start that failed ends the process. */
static void on_settled(void *state, struct served *served)
{
    struct server *server = state;
    const struct model_life *life = &served->life;
    if (server->phase == CLOSING) return; /* told to stop meanwhile; what was loaded is freed at the end */
    if (life->state == MODEL_FAILED && served->at_start && server->phase == LOADING) {
        server->exit_code = EXIT_START;
        begin_closing(server);
        return;
    }
    exchanges_settled(&server->exchanges, served);
    pool_settled(server);
    admin_settled(server, served);
    if (server->phase != LOADING)
        log_line(LOG_INFO, "serve", "model=\"%s\" state=%s level=%u ms=%llu", served->names.items[0],
                 model_state_name(life->state), life->state == MODEL_ASLEEP ? life->sleep_level : 0,
                 (unsigned long long)((life->wake_ns ? life->wake_ns : life->load_ns) / NS_PER_MS));
    else if (models_in(&server->models, MODEL_LOADING) == 0) {
        server->phase = READY;
        tell_ready(server);
    }
}

static void on_cut(void *state, struct served *served)
{
    struct server *server = state;
    exchanges_cut(&server->exchanges, served);
}

/* Raises the soft limit to the hard one and says how many connections that allows (C7). */
static uint32_t connections_allowed(void)
{
    struct rlimit nofile;
    if (getrlimit(RLIMIT_NOFILE, &nofile) != 0) return UINT32_MAX;
    if (nofile.rlim_cur < nofile.rlim_max) {
        nofile.rlim_cur = nofile.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &nofile) != 0) (void)getrlimit(RLIMIT_NOFILE, &nofile);
    }
    int lowest_free = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (lowest_free >= 0) (void)close(lowest_free);
    uint64_t taken = (uint64_t)(lowest_free > 0 ? lowest_free : 0) + DESCRIPTORS_RESERVED;
    if (nofile.rlim_cur <= taken) return 1;
    uint64_t room = nofile.rlim_cur - taken;
    return room > UINT32_MAX ? UINT32_MAX : (uint32_t)room;
}

static void open_handles(struct server *server)
{
    static const int numbers[SIGNALS] = {SIGTERM, SIGINT, SIGHUP};
    int failed = uv_async_init(&server->loop, &server->engine_async, on_engine_events);
    failed |= uv_timer_init(&server->loop, &server->tick);
    failed |= uv_timer_start(&server->tick, on_tick, HTTP_TICK_MS, HTTP_TICK_MS);
    server->engine_async.data = server->tick.data = server;
    for (int i = 0; i < SIGNALS; i++) {
        failed |= uv_signal_init(&server->loop, &server->signals[i]);
        failed |= uv_signal_start(&server->signals[i], on_signal, numbers[i]);
        server->signals[i].data = server;
    }
    CHECK(failed == 0); /* before anything is served: only a machine without descriptors gets here */
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    (void)sigaction(SIGPIPE, &ignore, NULL);
    (void)sigaction(SIGXFSZ, &ignore, NULL); /* a limit on the size of files is a full disk, not an end */
}

/* The engines have stopped. */
static void take_last_events(void *state)
{
    struct server *server = state;
    exchanges_poll(&server->exchanges);
    exchanges_free(&server->exchanges);
}

static void server_free(struct server *server)
{
    signal_feeds_stop(server->signal_feeds); /* a source's news may wake the power thread */
    models_free(&server->models, take_last_events, server);
    upstream_free(server);
    batches_destroy(server->batches);
    pool_work_destroy(server->pool_work);
    pool_close(server->pool);
    if (!server->models.loader_running) {
        power_destroy(server->models.power);
        signal_feeds_destroy(server->signal_feeds);
    }
    plan_destroy(server->plan);
    pthread_mutex_lock(&server->wake_mutex);
    server->books_over = true;
    pthread_mutex_unlock(&server->wake_mutex);
    budget_link_close(server->exchanges.budgets);
    billing_close(server->billing);
    http_server_destroy(server->http);
    http_server_destroy(server->admin_http);
    balancer_destroy(server);
    exchanges_forget_all(&server->exchanges);
    prices_destroy(server->exchanges.prices);
    if (server->audit) audit_event(server->audit, clock_unix_ms(clock_system()), "stop", NULL);
    audit_close(server->audit);
    notify_close(&server->notify);
    auth_destroy(server->auth);
    if (server->models.loader_running) return; /* it still works in it, and so may the power thread */
    pthread_mutex_destroy(&server->wake_mutex);
    mem_free(server);
}

static void note_energy(void *state, const struct energy_note *note) /* power thread */
{
    struct server *server = state;
    pthread_mutex_lock(&server->wake_mutex);
    enum status status = server->books_over ? ST_IO : billing_note_energy(server->billing, note);
    pthread_mutex_unlock(&server->wake_mutex);
    if (status != ST_OK)
        log_line(LOG_DEBUG, "power", "the energy of a request is in no record"); /* billing counts it */
}

/* For the grid that asks; a thread of a source, after open_power has begun it. */
static bool tell_demand(void *state, struct signal_demand *demand)
{
    struct power *power = ((struct server *)state)->models.power;
    struct power_state now;
    if (!power) return false;
    power_read_state(power, &now);
    demand->watts = now.watts;
    demand->down_w = now.watts > now.floor_w ? now.watts - now.floor_w : 0;
    demand->curtailed = now.goal.shed_level > 0 || isfinite(now.setpoint_w);
    return now.windows > 0;
}

static enum status open_power(struct server *server, struct error *err)
{
    const struct config *config = server->config;
    const struct redis_settings redis = {.url = config->redis,
                                         .password = config->redis_password,
                                         .password_file = config->redis_password_file,
                                         .ca_file = config->redis_ca_file,
                                         .cert_file = config->redis_cert_file,
                                         .key_file = config->redis_key_file};
    struct signal_setup signals = {.specs = (const char *const *)config->power_signals.items,
                                   .specs_count = config->power_signals.count,
                                   .default_cap_w = config->power_default_cap_w,
                                   .redis = &redis,
                                   .clock = clock_system(),
                                   .demand = tell_demand,
                                   .demand_state = server};
    struct power_state state;
    TRY(cost_live_read(config->power_cost, &server->cost_terms, err));
    TRY(signal_feeds_create(&signals, &server->signal_feeds, err));
    server->models.signals = signal_feeds_store(server->signal_feeds);
    struct power_config settings = {.sensor = config->power_sensor ? config->power_sensor : "none",
                                    .idle_w = config->power_idle_w,
                                    .full_w = config->power_full_w,
                                    .floor_w = config->power_floor_w,
                                    .cap_w = config->power_cap_w,
                                    .target_w = config->power_target_w,
                                    .signals = server->models.signals,
                                    .tariff = server->cost_terms.tariff.count ? &server->cost_terms.tariff : NULL,
                                    .itl_limit_s = config->slo_itl_ms * 1e-3,
                                    .residual_g = config->power_residual_g,
                                    .note = note_energy,
                                    .note_state = server,
                                    .clock = clock_system()};
    TRY(power_create(&settings, &server->models.power, err));
    TRY(signal_feeds_start(server->signal_feeds, err));
    if (!server->models.power && config->power_signals.count > 0)
        log_line(LOG_WARN, "power",
                 "signals=%u note=\"no meter: what --power-signal tells of watts and shed levels holds nothing back; "
                 "see --power-sensor, or give an estimate with --power-full\"",
                 config->power_signals.count);
    if (!server->models.power) return ST_OK;
    power_read_state(server->models.power, &state);
    log_line(LOG_INFO, "power", "meter=\"%s\" idle_w=%g full_w=%g cap_w=%g target_w=%g%s", state.sensor, state.idle_w,
             state.full_w, config->power_cap_w, config->power_target_w,
             state.estimated ? " note=\"no meter: watts are an estimate from the work done\"" : "");
    return ST_OK;
}

bool may_run_lines(void *state)
{
    const struct server *server = state;
    enum refusal refusal;
    uint32_t retry_after_ms;
    const char *why_not;
    return server->phase == READY && !engine_refusal(server, &refusal, &retry_after_ms) &&
           (!server->billing || meter_accepts(server->billing->meter, &why_not));
}

static void on_batch_news(void *state, const struct plan_news *news)
{
    struct server *server = state;
    if (server->batches) batches_news(server->batches, news);
}

static const char *power_word(void *state)
{
    const struct server *server = state;
    struct power_state now;
    if (server->plan_now.shed_level > 0) return "event";
    if (!server->models.power) return "normal";
    power_read_state(server->models.power, &now);
    return isfinite(now.allowance_w) ? "paced" : "normal";
}

static enum status open_batches(struct server *server, struct error *err)
{
    if (!server->config->batch_dir) return ST_OK;
    struct batches_config config = {.loop = &server->loop,
                                    .http = server->http,
                                    .exchanges = &server->exchanges,
                                    .auth = server->auth,
                                    .folder = server->config->batch_dir,
                                    .concurrency = server->config->batch_concurrency,
                                    .plan = server->plan,
                                    .pool = server->pool,
                                    .may_run = may_run_lines,
                                    .state = server};
    return batches_create(&config, &server->batches, err);
}

static enum status open_server(struct server *server, struct error *err)
{
    const struct config *config = server->config;
    const struct notify_environment environment = {getenv("NOTIFY_SOCKET"), getenv("WATCHDOG_USEC"),
                                                   getenv("WATCHDOG_PID"), getpid()};
    struct error why = {""};
    if (notify_open(&environment, &server->notify, &why) != ST_OK)
        log_line(LOG_WARN, "notify", "systemd is not told all reason=\"%s\"", why.message);
    TRY(auth_create(config, &server->auth, err));
    if (config->audit_log) {
        TRY(audit_open(config->audit_log, &server->audit, err));
        audit_event(server->audit, clock_unix_ms(clock_system()), "start", MILLRACE_VERSION);
    }
    struct http_handler handler = {.state = server,
                                   .head = on_head,
                                   .body_max = body_max,
                                   .bodies_max = limits.http_body_bytes,
                                   .body = on_body,
                                   .request = on_request,
                                   .writable = on_writable,
                                   .gone = on_gone,
                                   .replied = on_replied,
                                   .closed = on_http_closed};
    if (config->batch_dir && limits.batch_file_bytes + FORM_BYTES_MAX > handler.bodies_max)
        handler.bodies_max = limits.batch_file_bytes + FORM_BYTES_MAX;
    uint32_t connections = connections_allowed();
    enum status status =
        http_server_create(&server->loop, config->host, config->port, connections, &handler, &server->http, err);
    server->http_open += server->http != NULL;
    TRY(status);
    if (config->admin_port) {
        handler.head = on_admin_head;
        handler.body_max = NULL;
        status = http_server_create(&server->loop, config->admin_host, config->admin_port, connections, &handler,
                                    &server->admin_http, err);
        server->http_open += server->admin_http != NULL;
        TRY(status);
    }
    TRY(balancer_open(server, on_http_closed, err));
    server->exchanges.http = server->http;
    TRY(billing_open(config, &server->billing_stats, wake_loop, server, &server->billing, err));
    if (server->billing) server->ledger = server->billing->ledger;
    TRY(prices_read(config->prices, &server->exchanges.prices, err));
    server->exchanges.billing = server->billing;
    if (server->billing && meter_enforces(server->billing->meter))
        TRY(budget_link_open(&server->loop, server->billing, server->auth, on_budget_answered, server,
                             &server->exchanges.budgets, err));
    server->models.meter = server->billing ? server->billing->meter : NULL;
    TRY(upstream_start(server, err));
    TRY(open_power(server, err));
    TRY(plan_open(server, err));
    server->exchanges.plan = server->plan;
    TRY(pool_start(server, err));
    TRY(open_batches(server, err));
    directory_watch_start(server);
    key_recall_start(server);
    models_start(&server->models);
    notify_systemd(server); /* before a small model is ready */
    return ST_OK;
}

int serve_run(const struct serve_setup *setup)
{
    struct server *server = mem_alloc(1, sizeof *server);
    if (!server || uv_loop_init(&server->loop) != 0) {
        log_line(LOG_ERROR, "serve", "out of memory or descriptors");
        mem_free(server);
        return EXIT_START;
    }
    server->setup = setup;
    pthread_mutex_init(&server->wake_mutex, NULL);
    server->config = setup->config;
    server->start_ns = clock_now_ns(clock_system());
    server->notify.fd = -1;
    server->exchanges = (struct exchanges){
        .loop = &server->loop,
        .models = &server->models,
        .auto_wake = setup->config->auto_wake,
        .usage_extras = setup->config->usage_extras,
        .queue_max =
            setup->config->max_num_queued_reqs ? setup->config->max_num_queued_reqs : (uint32_t)limits.queue_requests,
        .head_after_ns = setup->stream_head_after_ns ? setup->stream_head_after_ns : 10 * NS_PER_S,
        .keep_alive_ns = setup->stream_keep_alive_ns ? setup->stream_keep_alive_ns : 15 * NS_PER_S,
        .emptied = on_emptied,
        .used_up = on_used_up,
        .other_news = on_batch_news,
        .power_word = power_word,
        .append_load = balancer_append_load,
        .state = server,
    };
    const struct models_listener listener = {server, wake_loop, on_settled, on_cut};
    struct error err = {""};
    open_handles(server);
    enum status status = models_init(&server->models, &server->loop, server->config, &setup->hooks, &listener, &err);
    if (status == ST_OK) status = open_server(server, &err);
    if (status != ST_OK) {
        log_line(LOG_ERROR, "serve", "%s", err.message);
        server->exit_code = EXIT_START;
        server->phase = CLOSING;
        models_stop(&server->models);
        server->http_closed = server->http_open == 0;
        if (server->http) http_server_close(server->http);
        if (server->admin_http) http_server_close(server->admin_http);
        balancer_close(server);
        close_handles(server);
    } else {
        log_line(LOG_INFO, "serve", "listening host=%s port=%u version=%s", server->config->host,
                 http_server_port(server->http), MILLRACE_VERSION);
    }
    (void)uv_run(&server->loop, UV_RUN_DEFAULT);
    batches_over(server->batches);
    pool_work_over(server->pool_work);
    CHECK(uv_loop_close(&server->loop) == 0);
    int exit_code = server->exit_code;
    server_free(server);
    if (exit_code != EXIT_START) log_line(LOG_INFO, "serve", "stopped code=%d", exit_code);
    return exit_code;
}
