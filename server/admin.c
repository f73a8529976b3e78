/* Admin calls: what an operator does with the models of a running server; see serve_parts.h.
 *
 *   GET  /models                                                    every model: state, memory, times
 *   POST /models/load    {"model": NAME or [NAMES], "path": PATH, "kv_cache_memory_bytes": N}    (name as llama.cpp)
 *   POST /models/unload?drain=SECONDS  {"model": NAME}              (name as llama.cpp)
 *   POST /sleep?level=1|2&drain=SECONDS&model=NAME                  (name and level as vLLM)
 *   POST /wake_up?model=NAME    GET /is_sleeping?model=NAME         (names as vLLM)
 *
 * Without a name the only model is meant. Calls that take time are answered when the model has arrived: with its row of
 * the list, or with the error that it met. A caller that leaves stops nothing.
 *
 * A1  Paths come from the folders of --model-dir, or are those of the start; both are compared after symbolic links
 *     are resolved, and what lies elsewhere is refused the same way whether it exists or not. A link inside a model's
 *     folder is followed when the model is opened, and a path may become another between check and opening: whoever
 *     can write below --model-dir is trusted.
 * A2  Bodies here are read on the io thread: they are small (ADMIN_BODY_BYTES_MAX) and rare. */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { ADMIN_BODY_BYTES_MAX = 65536, DRAIN_SECONDS_MAX = 86400 };

/* A call that waits for a model. */
struct admin_wait {
    struct admin_wait *next;
    struct http_conn *conn;
    const struct served *served;
    enum model_state wanted;
    bool due; /* its model has arrived: it is answered by the loop that said so */
};

/* What a call asks for, read from query and body. Strings of the body live as long as root. */
struct admin_call {
    struct json *root;                  /* NULL: no body */
    char name[PATH_ARGUMENT_BYTES_MAX]; /* "": none given */
    uint64_t drain_ns;
    uint32_t level;
};

/* ---- answers ---- */

static void append_seconds(struct buf *out, const char *name, uint64_t ns)
{
    if (ns)
        buf_append_format(out, ",\"%s\":%.6f", name, (double)ns / 1e9);
    else
        buf_append_format(out, ",\"%s\":null", name);
}

static void append_row(const struct served *served, struct buf *out)
{
    const struct model_life *life = &served->life;
    struct engine_stats stats;
    served_stats(served, &stats);
    buf_append_text(out, "{\"id\":");
    buf_append_json_string(out, served->names.items[0], strlen(served->names.items[0]));
    buf_append_text(out, ",\"object\":\"model\",\"aliases\":[");
    for (uint32_t i = 1; i < served->names.count; i++) {
        if (i > 1) buf_append_char(out, ',');
        buf_append_json_string(out, served->names.items[i], strlen(served->names.items[i]));
    }
    buf_append_text(out, "],\"path\":");
    buf_append_json_string(out, served->path, strlen(served->path));
    buf_append_format(out, ",\"state\":\"%s\",\"sleep_level\":%" PRIu32 ",\"reason\":", model_state_name(life->state),
                      life->state == MODEL_ASLEEP || life->state == MODEL_WAKING ? life->sleep_level : 0);
    if (life->state == MODEL_FAILED)
        buf_append_json_string(out, served->fail_reason.message, strlen(served->fail_reason.message));
    else
        buf_append_text(out, "null");
    buf_append_format(out,
                      ",\"max_model_len\":%" PRIu32 ",\"weights_bytes\":%" PRIu64 ",\"kv_bytes\":%" PRIu64
                      ",\"scratch_bytes\":%" PRIu64 ",\"calls\":%" PRIu32 ",\"running\":%" PRIu32
                      ",\"waiting\":%" PRIu32,
                      served->model.context_max, served->memory.weights_bytes, served->memory.kv_bytes,
                      served->memory.scratch_bytes, served->users, stats.running, stats.waiting);
    append_seconds(out, "load_seconds", life->load_ns);
    append_seconds(out, "wake_seconds", life->wake_ns);
    append_seconds(out, "wake_estimate_seconds", model_life_wake_estimate_ns(life, clock_now_ns(clock_system())));
    buf_append_char(out, '}');
}

static void reply_buf(struct http_conn *conn, struct buf *body)
{
    http_conn_reply(conn, &(struct http_reply){.status = 200, .body = body});
    buf_free(body);
}

static void reply_row(struct http_conn *conn, const struct served *served)
{
    struct buf body;
    buf_init(&body, 0);
    append_row(served, &body);
    reply_buf(conn, &body);
}

static void reply_list(const struct server *server, struct http_conn *conn)
{
    const struct models *models = &server->models;
    struct buf body;
    buf_init(&body, 0);
    buf_append_format(
        &body, "{\"object\":\"list\",\"memory_limit_bytes\":%" PRIu64 ",\"memory_used_bytes\":%" PRIu64 ",\"data\":[",
        models->memory_limit_bytes, models_memory_used(models));
    for (uint32_t i = 0; i < models->count; i++) {
        if (i) buf_append_char(&body, ',');
        append_row(models->items[i], &body);
    }
    buf_append_text(&body, "]}");
    reply_buf(conn, &body);
}

static void reply_invalid(struct http_conn *conn, const char *param, const char *message)
{
    struct api_error error;
    api_error_set(&error, 400, "invalid_request_error", NULL, param, "%s", message);
    reply_error(conn, &error, NULL, false);
}

static void reply_conflict(struct http_conn *conn, const struct served *served)
{
    struct api_error error;
    api_error_set(&error, 409, "invalid_request_error", "model_state_conflict", "model",
                  "The model is %s: this cannot be done now.", model_state_name(served->life.state));
    reply_error(conn, &error, NULL, false);
}

/* Why a model could not be loaded, to the operator who asked for it. */
static void reply_status(struct http_conn *conn, enum status status, const char *message)
{
    struct api_error error;
    if (status == ST_NOMEM)
        api_error_set(&error, 409, "invalid_request_error", "insufficient_memory", NULL, "%s", message);
    else if (status == ST_AGAIN || status == ST_LIMIT)
        api_error_set(&error, 409, "invalid_request_error", "model_state_conflict", "model", "%s", message);
    else if (status == ST_NOTFOUND)
        api_error_set(&error, 404, "not_found_error", NULL, "path", "%s", message);
    else
        api_error_set(&error, 400, "invalid_request_error", "model_failed", "path", "%s", message);
    reply_error(conn, &error, NULL, false);
}

/* ---- waiting ---- */

static void wait_for(struct server *server, struct http_conn *conn, const struct served *served,
                     enum model_state wanted)
{
    struct admin_wait *wait = mem_alloc(1, sizeof *wait);
    if (!wait) {
        reply_refusal(server, conn, REFUSE_NO_MEMORY, RETRY_LOADING_MS, NULL);
        return;
    }
    *wait = (struct admin_wait){.next = server->admin_waits, .conn = conn, .served = served, .wanted = wanted};
    server->admin_waits = wait;
    http_conn_user_set(conn, wait);
}

/* Out of the list; NULL: none is due. */
static struct admin_wait *take_due(struct server *server, const struct served *served)
{
    for (struct admin_wait **at = &server->admin_waits; *at; at = &(*at)->next) {
        struct admin_wait *wait = *at;
        if (wait->served != served || !wait->due) continue;
        *at = wait->next;
        return wait;
    }
    return NULL;
}

/* An answer lets the connection's next request in, which may change the list and the model: so who is answered, and
 * where the model has arrived, is settled before the first answer. */
void admin_settled(struct server *server, const struct served *served)
{
    enum model_state arrived = served->life.state;
    for (struct admin_wait *wait = server->admin_waits; wait; wait = wait->next)
        if (wait->served == served) wait->due = true;
    for (struct admin_wait *wait; (wait = take_due(server, served)) != NULL;) {
        http_conn_user_set(wait->conn, NULL);
        if (arrived == MODEL_FAILED)
            reply_status(wait->conn, served->fail_status, served->fail_reason.message);
        else if (arrived == wait->wanted)
            reply_row(wait->conn, served);
        else
            reply_conflict(wait->conn, served);
        mem_free(wait);
    }
}

bool admin_gone(struct server *server, const struct http_conn *conn)
{
    for (struct admin_wait **at = &server->admin_waits; *at; at = &(*at)->next) {
        struct admin_wait *wait = *at;
        if (wait->conn != conn) continue;
        *at = wait->next;
        mem_free(wait);
        return true;
    }
    return false;
}

void admin_abort(struct server *server)
{
    while (server->admin_waits) {
        struct admin_wait *wait = server->admin_waits;
        server->admin_waits = wait->next;
        http_conn_user_set(wait->conn, NULL);
        reply_refusal(server, wait->conn, REFUSE_DRAINING, RETRY_DRAINING_MS, NULL);
        mem_free(wait);
    }
}

/* ---- what is asked for ---- */

bool query_value(const struct http_request *request, const char *name, char out[PATH_ARGUMENT_BYTES_MAX])
{
    const char *at = http_request_target(request) + request->path_length;
    size_t name_length = strlen(name);
    while (*at == '?' || *at == '&') {
        at++;
        size_t length = strcspn(at, "&");
        if (length > name_length && at[name_length] == '=' && strncmp(at, name, name_length) == 0) {
            path_argument(at + name_length + 1, length - name_length - 1, out);
            return true;
        }
        at += length;
    }
    return false;
}

/* Seconds with a fraction, as drain=0.5. */
static bool read_seconds(const char *text, uint64_t *ns)
{
    char *end;
    if (*text < '0' || *text > '9') return false;
    double seconds = strtod(text, &end);
    if (*end || !(seconds >= 0 && seconds <= DRAIN_SECONDS_MAX)) return false;
    *ns = (uint64_t)(seconds * 1e9);
    return true;
}

static bool read_query(const struct server *server, struct http_conn *conn, const struct http_request *request,
                       struct admin_call *call)
{
    char value[PATH_ARGUMENT_BYTES_MAX];
    call->level = MODEL_SLEEP_KV;
    if (query_value(request, "level", value)) {
        if (strcmp(value, "1") != 0 && strcmp(value, "2") != 0) {
            reply_invalid(conn, "level", "level must be 1 (the KV cache's memory) or 2 (the weights' too).");
            return false;
        }
        call->level = (uint32_t)(value[0] - '0');
    }
    if (query_value(request, "mode", value)) { /* vLLM's word for it */
        if (strcmp(value, "wait") != 0 && strcmp(value, "abort") != 0) {
            reply_invalid(conn, "mode", "mode must be wait or abort.");
            return false;
        }
        if (value[0] == 'w') call->drain_ns = server->config->shutdown_timeout_ms * NS_PER_MS;
    }
    if (query_value(request, "drain", value) && !read_seconds(value, &call->drain_ns)) {
        reply_invalid(conn, "drain", "drain must be seconds, from 0 to 86400.");
        return false;
    }
    if (!query_value(request, "model", call->name)) call->name[0] = '\0';
    return true;
}

/* The body, if there is one. With `named` its "model" is the name; else the call reads it. */
static bool read_body(struct http_conn *conn, const struct http_request *request, bool named, struct admin_call *call)
{
    struct error err;
    if (!request->has_body) return true;
    if (request->body.length > ADMIN_BODY_BYTES_MAX) {
        reply_invalid(conn, NULL, "The body of an admin call has at most 65536 bytes.");
        return false;
    }
    if (json_read(request->body.data ? request->body.data : "", request->body.length, &call->root, &err) != ST_OK ||
        json_kind(call->root) != JSON_KIND_OBJECT) {
        reply_invalid(conn, NULL, "The body must be a JSON object.");
        return false;
    }
    const struct json *model = json_member(call->root, "model");
    if (!named || json_kind(model) == JSON_KIND_NULL) return true;
    size_t length = 0;
    const char *name = json_to_text(model, &length);
    if (!name || length == 0 || length >= sizeof call->name) { /* no model has it; none must not be meant */
        reply_invalid(conn, "model", "\"model\" must be the name of a model.");
        return false;
    }
    memcpy(call->name, name, length + 1);
    return true;
}

/* The model that a call is about; NULL: it has been refused. */
static struct served *named(struct server *server, struct http_conn *conn, const struct admin_call *call)
{
    struct api_error error;
    const struct api_model *items[MODELS_MAX];
    struct models *models = &server->models;
    struct served *served = call->name[0]        ? models_find(models, call->name)
                            : models->count == 1 ? models->items[0]
                                                 : NULL;
    if (served) return served;
    for (uint32_t i = 0; i < models->count; i++) items[i] = &models->items[i]->model;
    struct api_models all = {.items = items, .count = models->count};
    (void)api_refuse_model(&all, call->name, &error);
    if (!call->name[0])
        api_error_set(&error, 400, "invalid_request_error", "missing_required_parameter", "model",
                      "Name the model: ?model=NAME, or \"model\" in the body.");
    reply_error(conn, &error, NULL, false);
    return NULL;
}

/* ---- A1 ---- */

static bool lies_in(const char *path, const char *folder)
{
    size_t length = strlen(folder);
    while (length > 1 && folder[length - 1] == '/') length--;
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || (length == 1 && folder[0] == '/'));
}

/* The path without links, if it may be loaded. */
static bool resolve_path(const struct config *config, const char *path, char resolved[PATH_MAX])
{
    char other[PATH_MAX];
    if (!realpath(path, resolved)) return false;
    for (uint32_t i = 0; i < config->model_dirs.count; i++)
        if (realpath(config->model_dirs.items[i], other) && lies_in(resolved, other)) return true;
    for (uint32_t i = 0; i < config->models.count; i++)
        if (realpath(config->models.items[i], other) && strcmp(resolved, other) == 0) return true;
    return false;
}

/* ---- the calls ---- */

static enum status read_names(const struct admin_call *call, struct model_names *names, struct error *err)
{
    const struct json *model = json_member(call->root, "model");
    if (json_kind(model) == JSON_KIND_TEXT) return model_names_add(names, json_to_text(model, NULL), false, err);
    if (json_kind(model) != JSON_KIND_LIST || json_length(model) == 0)
        return error_set(err, ST_INVAL, "\"model\" must be the name to serve it under, or a list of names");
    for (size_t i = 0; i < json_length(model); i++) {
        const char *name = json_to_text(json_at(model, i), NULL);
        if (!name || model_names_have(names, name))
            return error_set(err, ST_INVAL, "\"model\" must hold names, each once");
        TRY(model_names_add(names, name, false, err));
    }
    return ST_OK;
}

static void load(struct server *server, struct http_conn *conn, const struct admin_call *call)
{
    char resolved[PATH_MAX];
    struct model_names names = {.count = 0};
    struct served *served;
    struct error err = {""};
    const char *path = json_to_text(json_member(call->root, "path"), NULL);
    const struct json *kv = json_member(call->root, "kv_cache_memory_bytes");
    if (!path) {
        reply_invalid(conn, "path", "\"path\" must be the model's file or folder.");
        return;
    }
    if (json_kind(kv) != JSON_KIND_NULL && (json_kind(kv) != JSON_KIND_INT || json_to_int(kv) <= 0)) {
        reply_invalid(conn, "kv_cache_memory_bytes", "kv_cache_memory_bytes must be a whole number above 0.");
        return;
    }
    if (!resolve_path(server->config, path, resolved)) {
        struct api_error error;
        api_error_set(&error, 403, "permission_error", "path_not_allowed", "path",
                      "There is no such model below a --model-dir folder, nor among those given at the start.");
        reply_error(conn, &error, NULL, false);
        return;
    }
    enum status status = read_names(call, &names, &err);
    if (status != ST_OK)
        reply_invalid(conn, "model", err.message);
    else if ((status = models_load(&server->models, resolved, &names, (uint64_t)json_to_int(kv), &served, &err)) !=
             ST_OK)
        reply_status(conn, status, err.message);
    else
        wait_for(server, conn, served, MODEL_READY);
    model_names_free(&names);
}

/* After a verdict: waits, answers at once, or refuses. */
static void follow(struct server *server, struct http_conn *conn, const struct served *served,
                   enum model_verdict verdict, enum model_state wanted)
{
    if (verdict == MODEL_CONFLICT)
        reply_conflict(conn, served);
    else if (served->life.state == wanted)
        reply_row(conn, served);
    else
        wait_for(server, conn, served, wanted);
}

static void wake(struct server *server, struct http_conn *conn, struct served *served)
{
    struct error err = {""};
    enum model_verdict verdict;
    enum status status = models_wake(served, &verdict, &err);
    if (status != ST_OK)
        reply_status(conn, status, err.message);
    else
        follow(server, conn, served, verdict, MODEL_READY);
}

static void reply_is_sleeping(struct http_conn *conn, const struct served *served)
{
    struct buf body;
    buf_init(&body, 0);
    buf_append_format(&body, "{\"is_sleeping\":%s}", served->life.state == MODEL_ASLEEP ? "true" : "false");
    reply_buf(conn, &body);
}

static void run(struct server *server, struct http_conn *conn, enum route_id route, const struct admin_call *call)
{
    if (route == ROUTE_ADMIN_LOAD) {
        load(server, conn, call);
        return;
    }
    struct served *served = named(server, conn, call);
    if (!served) return;
    switch (route) {
    case ROUTE_ADMIN_UNLOAD: follow(server, conn, served, models_unload(served, call->drain_ns), MODEL_GONE); break;
    case ROUTE_ADMIN_SLEEP:
        follow(server, conn, served, models_sleep(served, call->level, call->drain_ns), MODEL_ASLEEP);
        break;
    case ROUTE_ADMIN_WAKE: wake(server, conn, served); break;
    default: reply_is_sleeping(conn, served); break;
    }
}

void admin_request(struct server *server, struct http_conn *conn, struct http_request *request, enum route_id route)
{
    struct admin_call call = {.root = NULL};
    if (route == ROUTE_ADMIN_MODELS) {
        reply_list(server, conn);
        return;
    }
    if (server->phase >= DRAINING && route != ROUTE_ADMIN_IS_SLEEPING) {
        reply_refusal(server, conn, REFUSE_DRAINING, RETRY_DRAINING_MS, NULL);
        return;
    }
    if (read_query(server, conn, request, &call) && read_body(conn, request, route != ROUTE_ADMIN_LOAD, &call))
        run(server, conn, route, &call);
    json_release(call.root);
}
