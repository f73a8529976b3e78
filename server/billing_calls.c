/* /v1/usage and the admin calls of billing; see serve_parts.h. What they answer is billing_http.c's.
 *
 *   request -> queue -> first one: uv pool, billing_http_run (may block on a far ledger) -> loop: reply -> next
 *
 * One call runs at a time, because a ledger's client takes one thread at a time; operators and holders of keys who look
 * at their bill are few. The queue is bounded; /v1/usage fills at most half of it, so that operators get through. */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "server/billing/bill_text.h"
#include "server/billing/billing_http.h"
#include "server/billing/directory_load.h"

#include <string.h>

enum { CALLS_MAX = 64, OWN_CALLS_MAX = CALLS_MAX / 2, RETRY_BUSY_MS = 1000 };

struct billing_call {
    struct billing_call *next;
    struct server *server;
    struct http_conn *conn; /* NULL: gone */
    struct billing_ask ask;
    char *body;
    struct buf out;
    struct api_error error;
    bool good;
    uv_work_t work;
    struct directory *directory; /* a new one, if the call has changed it: in force before the call is answered */
    uint64_t version;
};

static void call_free(struct billing_call *call)
{
    if (call->body) memset(call->body, 0, call->ask.body_length);
    if (call->out.data) memset(call->out.data, 0, call->out.capacity); /* a new key may be in it */
    mem_free(call->body);
    buf_free(&call->out);
    mem_free(call);
}

static void run(uv_work_t *work)
{
    struct billing_call *call = work->data;
    struct server *server = call->server;
    enum billing_ask_kind kind = call->ask.kind;
    call->good = billing_http_run(&server->ledger, &call->ask, &call->out, &call->error);
    bool changes = kind == BILLING_ACCOUNT_CHANGE || kind == BILLING_KEY_CHANGE || kind == BILLING_DIRECTORY_PUT;
    call->version = server->directory.version;
    if (!call->good || !changes) return;
    if (directory_load(&server->ledger, !server->directory.loaded, &call->version, &call->directory, NULL) != ST_OK)
        call->directory = NULL; /* directory_watch.c tries again, and says why */
}

static void start_first(struct server *server);

static void on_done(uv_work_t *work, int uv_status)
{
    struct billing_call *call = work->data;
    struct server *server = call->server;
    struct http_conn *conn = call->conn;
    server->billing_calls = call->next;
    server->billing_running = false;
    if (call->directory) directory_take(server, call->directory, call->version);
    directory_watch_tick(server, http_server_now_ns(server->http)); /* its turn: calls may come without end */
    if (conn) {
        http_conn_user_set(conn, NULL);
        if (uv_status != 0)
            reply_refusal(server, conn, REFUSE_DRAINING, RETRY_DRAINING_MS, NULL);
        else if (call->good)
            http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &call->out});
        else
            reply_error(conn, &call->error, NULL, false);
    }
    call_free(call);
    start_first(server);
}

static void start_first(struct server *server)
{
    struct billing_call *call = server->billing_calls;
    if (!call || server->billing_running || server->directory.running) return; /* none, or somebody has the ledger */
    call->work.data = call;
    server->billing_running = true;
    if (uv_queue_work(&server->loop, &call->work, run, on_done) != 0) on_done(&call->work, UV_ECANCELED);
}

void billing_calls_go_on(struct server *server)
{
    start_first(server);
}

bool billing_gone(struct server *server, const struct http_conn *conn)
{
    for (struct billing_call *call = server->billing_calls; call; call = call->next) {
        if (call->conn != conn) continue;
        call->conn = NULL;
        return true;
    }
    return false;
}

/* ---- what is asked for ---- */

static enum billing_ask_kind kind_of(enum route_id route, bool post)
{
    switch (route) {
    case ROUTE_BILLING_LEDGER: return post ? BILLING_LEDGER_INIT : BILLING_LEDGER;
    case ROUTE_BILLING_ORDERS: return BILLING_ORDER;
    case ROUTE_BILLING_ACCOUNTS: return post ? BILLING_ACCOUNT_CHANGE : BILLING_ACCOUNTS;
    case ROUTE_BILLING_ACCOUNT: return BILLING_ACCOUNT;
    case ROUTE_BILLING_KEYS: return post ? BILLING_KEY_CHANGE : BILLING_KEYS;
    case ROUTE_BILLING_USAGE: return BILLING_USAGE;
    case ROUTE_BILLING_REAP: return BILLING_REAP;
    case ROUTE_BILLING_MARKS: return BILLING_MARKS;
    case ROUTE_BILLING_DIRECTORY: return post ? BILLING_DIRECTORY_PUT : BILLING_DIRECTORY;
    default: return BILLING_OWN_USAGE;
    }
}

static bool query_text(const struct http_request *request, const char *name, char *out, size_t size)
{
    char value[PATH_ARGUMENT_BYTES_MAX];
    if (!query_value(request, name, value)) return true;
    if (strlen(value) >= size) return false;
    memcpy(out, value, strlen(value) + 1);
    return true;
}

/* A query of /v1/usage names a month at most: whoever asks for something else must not get another answer than meant.
 */
static bool only_month(const struct http_request *request)
{
    const char *query = http_request_target(request) + request->path_length;
    return !*query || (strncmp(query, "?month=", 7) == 0 && !strchr(query, '&'));
}

static void refuse(struct http_conn *conn, int status, const char *type, const char *code, const char *message)
{
    struct api_error error;
    api_error_set(&error, status, type, code, NULL, "%s", message);
    reply_error(conn, &error, NULL, false);
}

/* Whose usage /v1/usage tells: the account behind the key of this request. */
static void own_account(const struct http_request *request, struct billing_ask *ask)
{
    memcpy(ask->own_name, request->caller.account_name, sizeof request->caller.account_name);
    ask->own_account = request->caller.account;
}

static bool read_ask(const struct server *server, const struct http_request *request, const struct route *route,
                     struct billing_call *call)
{
    char argument[PATH_ARGUMENT_BYTES_MAX] = "";
    struct billing_ask *ask = &call->ask;
    size_t skip = strlen(route->path);
    ask->kind = kind_of(route->id, strcmp(request->method, "POST") == 0);
    ask->now_us = clock_unix_us(clock_system());
    if (bill_parse_offset(server->config->bill_utc_offset, &ask->utc_offset_s, NULL) != ST_OK) ask->utc_offset_s = 0;
    if (ask->kind == BILLING_OWN_USAGE) own_account(request, ask);
    if (route->prefix) path_argument(http_request_target(request) + skip, request->path_length - skip, argument);
    if (strlen(argument) >= sizeof ask->argument) return false;
    memcpy(ask->argument, argument, strlen(argument) + 1);
    if (ask->kind == BILLING_OWN_USAGE && !only_month(request)) return false;
    return query_text(request, "account", ask->account, sizeof ask->account) &&
           query_text(request, "month", ask->month, sizeof ask->month) &&
           query_text(request, "partition", ask->partition, sizeof ask->partition);
}

static bool copy_body(const struct http_request *request, struct billing_call *call)
{
    if (!request->has_body) return true;
    call->body = mem_strdup(request->body.data ? request->body.data : "", request->body.length);
    call->ask.body = call->body;
    call->ask.body_length = request->body.length;
    return call->body;
}

void billing_request(struct server *server, struct http_conn *conn, struct http_request *request,
                     const struct route *route)
{
    uint32_t waiting = 0;
    struct billing_call **end = &server->billing_calls;
    if (!server->ledger.calls) {
        refuse(conn, 404, "not_found_error", "billing_off", "This server does not bill; its operator can tell why.");
        return;
    }
    for (; *end; end = &(*end)->next) waiting++;
    if (request->body.length > BILLING_BODY_BYTES_MAX) {
        refuse(conn, 413, "invalid_request_error", NULL, "The body of a billing call has at most 65536 bytes.");
        return;
    }
    struct billing_call *call =
        waiting < (route->billing ? CALLS_MAX : OWN_CALLS_MAX) ? mem_alloc(1, sizeof *call) : NULL;
    if (!call) {
        reply_refusal(server, conn, REFUSE_OVERLOADED, RETRY_BUSY_MS, NULL);
        return;
    }
    call->server = server;
    call->conn = conn;
    buf_init(&call->out, 0);
    if (!read_ask(server, request, route, call)) {
        call_free(call);
        refuse(conn, 400, "invalid_request_error", NULL,
               route->billing ? "A value of the query or the path is longer than any that there is."
                              : "This call takes ?month=YYYY-MM or nothing; it tells of the asking key's own account.");
    } else if (!copy_body(request, call)) {
        call_free(call);
        reply_refusal(server, conn, REFUSE_NO_MEMORY, RETRY_BUSY_MS, NULL);
    } else {
        *end = call;
        http_conn_user_set(conn, call);
        start_first(server);
    }
}
