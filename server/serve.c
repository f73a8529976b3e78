/* See serve.h. This file answers what needs no engine, decides who may use it, and runs the process's life. */
#include "server/serve.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/auth.h"
#include "server/exchange.h"
#include "server/http_conn.h"
#include "server/http_route.h"
#include "server/metrics.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    EXIT_CLEAN = 0,
    EXIT_START = 1,
    EXIT_ENGINE = 3,
    DESCRIPTORS_RESERVED = 16, /* model file, key file, log, accept itself */
    CLOSE_WAIT_MS = 3000,      /* for last answers to be read before connections are cut */
    STUCK_AFTER_S = 60,        /* a step that takes longer than this is taken for a hang */
    RETRY_LOADING_MS = 2000,
    RETRY_DRAINING_MS = 1000,
    MODEL_ID_BYTES_MAX = 512,
    SIGNALS = 3
};

enum phase { LOADING, READY, DRAINING, REFUSING, CLOSING };

struct server {
    const struct serve_setup *setup;
    const struct config *config;
    uv_loop_t loop;
    struct http_server *http;
    struct auth *auth;
    struct engine *engine;
    struct loaded loaded;
    struct api_model model;
    const char *default_name[1];
    char name_buffer[256];
    struct metrics metrics;
    struct exchanges exchanges;
    enum phase phase;
    int exit_code;
    bool http_closed, handles_closed, aborted;
    uint64_t start_ns, drain_ns, closing_ns;
    uv_thread_t loader;
    bool loader_running;
    enum status load_status; /* the loader's, read after its async */
    struct error load_error;
    uv_async_t loaded_async, engine_async;
    uv_timer_t tick;
    uv_signal_t signals[SIGNALS];
};

/* ---- answers without the engine ---- */

static void reply_text(struct http_conn *conn, int status, const char *content_type, const char *text, size_t length)
{
    struct buf body;
    buf_init(&body, 0);
    buf_append(&body, text, length);
    http_conn_reply(conn, &(struct http_reply){.status = status, .content_type = content_type, .body = &body});
    buf_free(&body);
}

static void reply_refusal(struct server *server, struct http_conn *conn, enum refusal refusal, uint32_t retry_after_ms,
                          const char *allow)
{
    struct api_error error;
    struct buf body;
    refusal_error(refusal, retry_after_ms, &error);
    buf_init(&body, 0);
    api_error_body(&error, &body);
    http_conn_reply(conn, &(struct http_reply){.status = error.http_status,
                                               .body = &body,
                                               .allow = allow,
                                               .retry_after_ms = error.retry_after_ms,
                                               .authenticate = error.http_status == 401,
                                               .close = refusal == REFUSE_DRAINING || server->phase == CLOSING});
    buf_free(&body);
}

/* What keeps requests from the engine, if anything does. */
static bool engine_refusal(const struct server *server, enum refusal *refusal, uint32_t *retry_after_ms)
{
    struct engine_stats stats;
    *retry_after_ms = RETRY_DRAINING_MS;
    if (server->phase >= REFUSING) return *refusal = REFUSE_DRAINING, true;
    if (!server->engine) {
        *retry_after_ms = RETRY_LOADING_MS;
        return *refusal = REFUSE_LOADING, true;
    }
    engine_stats_read(server->engine, &stats);
    if (stats.device_lost) return *refusal = REFUSE_ENGINE_LOST, true;
    return false;
}

/* Whether the engine is in a step that does not end. Asleep it may have an old beat. */
static bool engine_stuck(const struct server *server)
{
    struct engine_stats stats;
    if (!server->engine) return false;
    engine_stats_read(server->engine, &stats);
    uint64_t now_ns = clock_now_ns(clock_system());
    return stats.running > 0 && now_ns > stats.beat_ns && now_ns - stats.beat_ns > STUCK_AFTER_S * NS_PER_S;
}

static void reply_health(struct server *server, struct http_conn *conn, enum route_id route)
{
    static const char ok[] = "{\"status\":\"ok\"}";
    enum refusal refusal;
    uint32_t retry_after_ms;
    bool refused = engine_refusal(server, &refusal, &retry_after_ms);
    if (route == ROUTE_READYZ && server->phase >= DRAINING) refused = true, refusal = REFUSE_DRAINING;
    if (route != ROUTE_READYZ && refused && refusal == REFUSE_DRAINING) refused = false;
    if (route == ROUTE_LIVEZ) refused = refused && refusal == REFUSE_ENGINE_LOST; /* loading is being alive */
    if (!refused && engine_stuck(server)) refused = true, refusal = REFUSE_STUCK;
    if (refused)
        reply_refusal(server, conn, refusal, retry_after_ms, NULL);
    else
        reply_text(conn, 200, NULL, ok, sizeof ok - 1);
}

static uint64_t cpu_ns(const struct rusage *usage)
{
    uint64_t seconds = (uint64_t)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec);
    return seconds * NS_PER_S + (uint64_t)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) * 1000;
}

static void reply_metrics(struct server *server, struct http_conn *conn)
{
    struct engine_stats stats;
    struct rusage io = {0}, process = {0};
    if (server->engine) engine_stats_read(server->engine, &stats);
    (void)getrusage(RUSAGE_THREAD, &io);
    (void)getrusage(RUSAGE_SELF, &process);
    struct metrics_now now = {
        .engine = server->engine ? &stats : NULL,
        .ready = server->phase == READY,
        .connections = http_server_connections(server->http),
        .preparing = server->exchanges.preparing,
        .answers = server->exchanges.count,
        .log_lines_dropped = log_lines_dropped(),
        .prefix_cache = server->config->enable_prefix_caching,
        .io_cpu_ns = cpu_ns(&io),
        .process_cpu_ns = cpu_ns(&process),
        .io_switches_own = (uint64_t)io.ru_nvcsw,
        .io_switches_forced = (uint64_t)io.ru_nivcsw,
    };
    struct buf body;
    buf_init(&body, 0);
    metrics_print(&server->metrics, &now, &body);
    http_conn_reply(
        conn,
        &(struct http_reply){.status = 200, .content_type = "text/plain; version=0.0.4; charset=utf-8", .body = &body});
    buf_free(&body);
}

static void reply_load(struct server *server, struct http_conn *conn)
{
    struct engine_stats stats = {0};
    if (server->engine) engine_stats_read(server->engine, &stats);
    struct buf body;
    buf_init(&body, 0);
    buf_append_format(&body,
                      "{\"server_load\":%u,\"connections\":%u,\"running\":%u,\"waiting\":%u,\"kv_blocks_used\":%u,"
                      "\"kv_blocks_cached\":%u,\"kv_blocks_total\":%u}",
                      server->exchanges.count, http_server_connections(server->http), stats.running, stats.waiting,
                      stats.kv_blocks_used, stats.kv_blocks_cached, stats.kv_blocks_total);
    http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &body});
    buf_free(&body);
}

static int hex_digit(char c)
{
    const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c >= 'A' && c <= 'F' ? c + 'a' - 'A' : c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* A model's id from a path: percent-decoded, slashes kept (clients send names such as "org/name" as they are). */
static void path_argument(const char *text, size_t length, char out[MODEL_ID_BYTES_MAX])
{
    size_t used = 0;
    for (size_t i = 0; i < length && used + 1 < MODEL_ID_BYTES_MAX; i++) {
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

static void reply_models(struct server *server, struct http_conn *conn, const struct http_request *request,
                         const struct route *route)
{
    char id[MODEL_ID_BYTES_MAX];
    size_t skip = strlen(route->path);
    struct buf body;
    buf_init(&body, 0);
    if (route->id == ROUTE_MODEL) path_argument(http_request_target(request) + skip, request->path_length - skip, id);
    int status = api_models(&server->model, route->id == ROUTE_MODEL ? id : NULL, &body);
    http_conn_reply(conn, &(struct http_reply){.status = status, .body = &body});
    buf_free(&body);
}

/* ---- requests ---- */

static bool authenticate(struct server *server, struct http_conn *conn, struct http_request *request)
{
    uint32_t bearer_count, key_count;
    const char *bearer = http_request_header(request, "authorization", &bearer_count);
    const char *key = http_request_header(request, "x-api-key", &key_count);
    enum auth_result result = AUTH_WRONG;
    if (bearer_count <= 1 && key_count <= 1) result = auth_check(server->auth, bearer, key, &request->tenant);
    if (result == AUTH_OK) return true;
    reply_refusal(server, conn, result == AUTH_MISSING ? REFUSE_KEY_MISSING : REFUSE_KEY_WRONG, 0, NULL);
    return false;
}

/* Everything that can be decided without the body, in order of cost. */
static void on_head(void *state, struct http_conn *conn, struct http_request *request)
{
    struct server *server = state;
    const struct route *route = NULL;
    const char *allow = NULL;
    enum route_match match =
        route_find(request->method, http_request_target(request), request->path_length, &route, &allow);
    bool open =
        match != ROUTE_NO_PATH && route->open && (route->id != ROUTE_METRICS || !server->config->metrics_need_key);
    if (!open && !authenticate(server, conn, request)) return;
    if (match != ROUTE_FOUND) {
        reply_refusal(server, conn, match == ROUTE_NO_PATH ? REFUSE_UNKNOWN_URL : REFUSE_METHOD, 0, allow);
        return;
    }
    request->route = route;
    enum refusal refusal;
    uint32_t retry_after_ms;
    if (route->needs_engine && engine_refusal(server, &refusal, &retry_after_ms)) {
        reply_refusal(server, conn, refusal, retry_after_ms, NULL);
        return;
    }
    if (!route->post || !route->needs_engine) return;
    if (!media_type_is_json(http_request_header(request, "content-type", NULL)))
        reply_refusal(server, conn, REFUSE_MEDIA_TYPE, 0, NULL);
    else if (!request->has_body)
        reply_refusal(server, conn, REFUSE_NO_BODY, 0, NULL);
    else if (!exchanges_have_room(&server->exchanges, request->id, &retry_after_ms))
        reply_refusal(server, conn, REFUSE_OVERLOADED, retry_after_ms, NULL);
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
    exchange_start(&server->exchanges, kind, conn, request->tenant, auth_tenant_name(server->auth, request->tenant));
}

static void on_request(void *state, struct http_conn *conn, struct http_request *request)
{
    static const char version[] = "{\"version\":\"" MILLRACE_VERSION "\"}";
    struct server *server = state;
    const struct route *route = request->route;
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
    }
}

static void on_writable(void *state, struct http_conn *conn)
{
    (void)state;
    exchange_writable(http_conn_user(conn));
}

static void on_gone(void *state, struct http_conn *conn)
{
    (void)state;
    exchange_gone(http_conn_user(conn));
}

static void on_replied(void *state, const struct http_request *request, int http_status)
{
    struct server *server = state;
    metrics_reply(&server->metrics, http_status);
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
    uv_close((uv_handle_t *)&server->loaded_async, NULL);
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
    server->http_closed = true;
    close_handles(server);
}

/* No new request, no new connection; what is being answered is answered. */
static void begin_closing(struct server *server)
{
    if (server->phase == CLOSING) return;
    server->phase = CLOSING;
    server->closing_ns = http_server_now_ns(server->http);
    http_server_close(server->http);
    close_handles(server);
}

static void abort_calls(struct server *server)
{
    if (server->aborted) return;
    server->aborted = true;
    if (server->exchanges.count > 0)
        log_line(LOG_WARN, "serve", "cut calls=%u reason=\"shutdown time is over\"", server->exchanges.count);
    exchanges_abort(&server->exchanges);
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
        http_server_close_now(server->http);
    }
}

static void begin_drain(struct server *server, int signal_number)
{
    server->drain_ns = http_server_now_ns(server->http);
    log_line(LOG_INFO, "serve", "drain signal=%d calls=%u", signal_number, server->exchanges.count);
    http_server_close_after_reply(server->http);
    if (server->phase == LOADING) { /* there is nothing to finish */
        begin_closing(server);
        return;
    }
    server->phase = DRAINING;
    drain_tick(server); /* without a delay the next request is refused already */
}

static void on_signal(uv_signal_t *handle, int signal_number)
{
    struct server *server = handle->data;
    if (signal_number == SIGHUP) {
        struct error err = {""};
        if (auth_reload(server->auth, server->config, &err) == ST_OK)
            log_line(LOG_INFO, "serve", "keys reloaded");
        else
            log_line(LOG_ERROR, "serve", "keys kept reason=\"%s\"", err.message); /* F16 */
        return;
    }
    if (server->phase == LOADING || server->phase == READY) {
        begin_drain(server, signal_number);
        return;
    }
    log_line(LOG_INFO, "serve", "stop now signal=%d calls=%u", signal_number, server->exchanges.count);
    abort_calls(server);
    begin_closing(server);
    http_server_close_now(server->http);
}

static void on_tick(uv_timer_t *timer)
{
    struct server *server = timer->data;
    struct engine_stats stats;
    http_server_tick(server->http);
    if (server->engine) {
        exchanges_tick(&server->exchanges, http_server_now_ns(server->http));
        engine_stats_read(server->engine, &stats);
        if (stats.device_lost && server->phase < REFUSING) { /* its requests have ended with errors (F11) */
            log_line(LOG_ERROR, "serve", "the device is lost; stopping");
            server->exit_code = EXIT_ENGINE;
            server->phase = REFUSING;
            server->drain_ns = http_server_now_ns(server->http);
            http_server_close_after_reply(server->http);
            http_server_stop_listening(server->http);
            if (server->exchanges.count == 0) begin_closing(server);
        }
    }
    if (server->phase >= DRAINING) drain_tick(server);
}

/* ---- the start ---- */

static void wake_loop(void *state) /* engine thread */
{
    struct server *server = state;
    (void)uv_async_send(&server->engine_async);
}

static void on_engine_events(uv_async_t *async)
{
    struct server *server = async->data;
    if (server->engine) exchanges_poll(&server->exchanges);
}

static void load_on_thread(void *state)
{
    struct server *server = state;
    server->load_status = server->setup->load(server->config, &server->loaded, &server->load_error);
    (void)uv_async_send(&server->loaded_async);
}

static void describe_model(struct server *server)
{
    const struct config *config = server->config;
    struct api_model *model = &server->model;
    if (config->served_names.count > 0) {
        model->names = (const char *const *)config->served_names.items;
        model->names_count = config->served_names.count;
    } else { /* the file's name without folder and suffix: no path is told to clients */
        const char *slash = config->model ? strrchr(config->model, '/') : NULL;
        const char *base = slash ? slash + 1 : config->model ? config->model : "model";
        size_t length = strlen(base);
        if (length > 5 && strcmp(base + length - 5, ".gguf") == 0) length -= 5;
        if (length >= sizeof server->name_buffer) length = sizeof server->name_buffer - 1;
        memcpy(server->name_buffer, base, length);
        server->default_name[0] = server->name_buffer;
        model->names = server->default_name;
        model->names_count = 1;
    }
    model->created_unix_s = clock_unix_us(clock_system()) / 1000000;
    model->trust_request_chat_template = config->trust_request_chat_template;
    random_fill(model->cache_secret, sizeof model->cache_secret);
}

/* What makes answers comparable: version, model and numerics. */
static void make_fingerprint(struct server *server)
{
    struct buf text;
    uint8_t digest[32];
    buf_init(&text, 0);
    buf_append_format(&text, "%s|%s|%s|%zu|%u|%s", MILLRACE_VERSION, server->model.names[0],
                      server->loaded.device->info.name, server->loaded.device->info.weights_bytes,
                      server->loaded.device->info.vocab, server->config->numerics ? server->config->numerics : "");
    sha256(text.data, text.length, digest);
    buf_free(&text);
    (void)snprintf(server->model.fingerprint, sizeof server->model.fingerprint, "fp_%02x%02x%02x%02x%02x", digest[0],
                   digest[1], digest[2], digest[3], digest[4]);
}

static enum status start_engine(struct server *server, struct error *err)
{
    const struct config *config = server->config;
    struct api_model *model = &server->model;
    const struct device_info *info = &server->loaded.device->info;
    model->tokenizer = server->loaded.tokenizer;
    model->chat_template = server->loaded.chat_template;
    model->context_max = server->loaded.context_max;
    model->defaults = server->loaded.model ? server->loaded.model->defaults : sampling_defaults_none();
    model->think_start_id = tokenizer_special_id(model->tokenizer, "<think>");
    model->think_end_id = tokenizer_special_id(model->tokenizer, "</think>");
    make_fingerprint(server);
    uint64_t queue_max = config->max_num_queued_reqs ? config->max_num_queued_reqs : limits.queue_requests;
    struct engine_config settings = {
        .context_max = server->loaded.context_max,
        .running_max = info->seqs_max,
        .step_tokens_max = info->tokens_max,
        .queue_requests_max = (uint32_t)queue_max,
        .queue_tokens_max = limits.queue_prompt_tokens,
        .tenants_max = AUTH_TENANTS_MAX,
        .tenant_share_percent = (uint32_t)limits.queue_tenant_share_percent,
        .itl_target_ns = config->itl_target_ms * NS_PER_MS,
        .prefix_cache = config->enable_prefix_caching,
        .think_start_id = model->think_start_id,
        .think_end_id = model->think_end_id,
        .clock = clock_system(),
        .wake = wake_loop,
        .wake_state = server,
    };
    TRY(engine_create(&settings, server->loaded.device, model->tokenizer, &server->engine, err));
    metrics_init(&server->metrics, model->names[0], model->context_max);
    server->exchanges.engine = server->engine;
    server->exchanges.queue_max = (uint32_t)queue_max;
    return ST_OK;
}

static void on_loaded(uv_async_t *async)
{
    struct server *server = async->data;
    if (!server->loader_running) return;
    (void)uv_thread_join(&server->loader);
    server->loader_running = false;
    if (server->phase == CLOSING) return; /* told to stop meanwhile; what was loaded is freed at the end */
    enum status status = server->load_status;
    if (status == ST_OK) status = start_engine(server, &server->load_error);
    if (status != ST_OK) {
        log_line(LOG_ERROR, "serve", "%s", server->load_error.message);
        server->exit_code = EXIT_START;
        begin_closing(server);
        return;
    }
    server->phase = READY;
    uint64_t ready_ns = clock_now_ns(clock_system()) - server->start_ns;
    log_line(LOG_INFO, "serve", "ready url=http://%s%s%s:%u model=\"%s\" context=%u after_ms=%llu",
             strchr(server->config->host, ':') ? "[" : "", server->config->host,
             strchr(server->config->host, ':') ? "]" : "", http_server_port(server->http), server->model.names[0],
             server->model.context_max, (unsigned long long)(ready_ns / NS_PER_MS));
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
    int failed = uv_async_init(&server->loop, &server->loaded_async, on_loaded);
    failed |= uv_async_init(&server->loop, &server->engine_async, on_engine_events);
    failed |= uv_timer_init(&server->loop, &server->tick);
    failed |= uv_timer_start(&server->tick, on_tick, HTTP_TICK_MS, HTTP_TICK_MS);
    server->loaded_async.data = server->engine_async.data = server->tick.data = server;
    for (int i = 0; i < SIGNALS; i++) {
        failed |= uv_signal_init(&server->loop, &server->signals[i]);
        failed |= uv_signal_start(&server->signals[i], on_signal, numbers[i]);
        server->signals[i].data = server;
    }
    CHECK(failed == 0); /* before anything is served: only a machine without descriptors gets here */
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    (void)sigaction(SIGPIPE, &ignore, NULL);
}

static void server_free(struct server *server)
{
    if (server->engine) {
        engine_stop(server->engine);
        exchanges_poll(&server->exchanges);
    }
    exchanges_free(&server->exchanges);
    engine_destroy(server->engine);
    if (server->load_status == ST_OK) server->setup->unload(&server->loaded);
    http_server_destroy(server->http);
    auth_destroy(server->auth);
    mem_free(server);
}

static enum status open_server(struct server *server, struct error *err)
{
    const struct config *config = server->config;
    TRY(auth_create(config, &server->auth, err));
    struct http_handler handler = {.state = server,
                                   .head = on_head,
                                   .request = on_request,
                                   .writable = on_writable,
                                   .gone = on_gone,
                                   .replied = on_replied,
                                   .closed = on_http_closed};
    TRY(http_server_create(&server->loop, config->host, config->port, connections_allowed(), &handler, &server->http,
                           err));
    server->exchanges.http = server->http;
    server->loader_running = uv_thread_create(&server->loader, load_on_thread, server) == 0;
    if (!server->loader_running) return error_set(err, ST_NOMEM, "cannot start the loader's thread");
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
    server->config = setup->config;
    server->start_ns = clock_now_ns(clock_system());
    server->load_status = ST_AGAIN;
    server->exchanges = (struct exchanges){
        .loop = &server->loop,
        .model = &server->model,
        .metrics = &server->metrics,
        .head_after_ns = setup->stream_head_after_ns ? setup->stream_head_after_ns : 10 * NS_PER_S,
        .keep_alive_ns = setup->stream_keep_alive_ns ? setup->stream_keep_alive_ns : 15 * NS_PER_S,
        .emptied = on_emptied,
        .state = server,
    };
    describe_model(server);
    metrics_init(&server->metrics, server->model.names[0], server->config->max_model_len);
    open_handles(server);
    struct error err = {""};
    if (open_server(server, &err) != ST_OK) {
        log_line(LOG_ERROR, "serve", "%s", err.message);
        server->exit_code = EXIT_START;
        server->phase = CLOSING;
        if (server->http)
            http_server_close(server->http);
        else
            server->http_closed = true;
        close_handles(server);
    } else {
        log_line(LOG_INFO, "serve", "listening host=%s port=%u version=%s", server->config->host,
                 http_server_port(server->http), MILLRACE_VERSION);
    }
    (void)uv_run(&server->loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&server->loop) == 0);
    int exit_code = server->exit_code;
    if (server->loader_running) return exit_code; /* stopped while loading: the process's end ends the loader too */
    server_free(server);
    if (exit_code != EXIT_START) log_line(LOG_INFO, "serve", "stopped code=%d", exit_code);
    return exit_code;
}
