/* What the files of the serving process share: its one struct, and the steps between them.
 *
 *   serve.c          life of the process: start, phases, signals, drain, end
 *   serve_answers.c  what is answered without a model: health, metrics, load, the list of models; and refusals
 *   admin.c          admin calls: load, unload, sleep, wake
 *   admin_power.c    the admin call about watts
 *   admin_cost.c     the admin call about money, and joules by tenant
 *   admin_plan.c     the plan of deferrable jobs: what it is told, and the admin call about it
 *   admin_balancer.c  what balancers are told of this node
 *   serve_upstream.c  models of other servers
 *   billing_calls.c  /v1/usage, and the admin calls of billing
 *   budget_link.c    budgets of keys
 *   directory_watch.c  accounts and keys of a billing server, kept up to date
 *   key_recall.c     Idempotency-Keys of an earlier process
 *
 * io thread only. */
#ifndef SERVER_SERVE_PARTS_H
#define SERVER_SERVE_PARTS_H

#include "server/agent_port.h"
#include "server/audit.h"
#include "server/auth.h"
#include "server/balancer.h"
#include "server/batch/batches.h"
#include "server/billing/billing.h"
#include "server/billing/billing_stats.h"
#include "server/billing/ledger_client.h"
#include "server/exchange.h"
#include "server/http_conn.h"
#include "server/http_route.h"
#include "server/models.h"
#include "server/notify.h"
#include "server/power/plan.h"
#include "server/power/cost_live.h"
#include "server/power/history.h"
#include "server/power/signal_feed.h"
#include "server/serve.h"

#include <pthread.h>

enum { SIGNALS = 3, RETRY_LOADING_MS = 2000, RETRY_DRAINING_MS = 1000, PATH_ARGUMENT_BYTES_MAX = 512 };

enum phase { LOADING, READY, DRAINING, REFUSING, CLOSING };

struct admin_wait;
struct billing_call;
struct pool;
struct pool_work;

/* directory_watch.c's: what the pool has read, and what is in force. */
struct directory_watch {
    uv_work_t work;
    bool running, loaded; /* in the pool; one is in force */
    uint64_t version, version_read, looked_ns;
    uint64_t reap_next, reaping; /* an account that had nothing left, 0: none */
    struct directory *read;
    enum status status;
    struct error err, told;
};

struct server {
    const struct serve_setup *setup;
    const struct config *config;
    uv_loop_t loop;
    struct http_server *http;
    struct http_server *admin_http;   /* --admin-port; NULL: none */
    struct agent_port *agents[2];     /* --agent-port, --agent-deferrable-port; NULL: none */
    uint32_t http_open;               /* of the four, those that have not closed */
    double weight_deferrable;         /* as told last */
    enum balancer_word balancer_hand; /* up, drain or maint, by an operator */
    struct auth *auth;
    struct notify notify;                /* of systemd */
    struct audit *audit;                 /* --audit-log; NULL: none */
    struct billing *billing;             /* NULL: nothing is billed */
    uint64_t answers_seen;               /* of the ledger, by billing */
    struct plan *plan;                   /* of deferrable jobs */
    struct plan_now plan_now, plan_last; /* what it was told; sums of the engines as they were then */
    int64_t plan_looked_ms;
    struct signal_feeds *signal_feeds; /* --power-signal; the store is in models.signals */
    struct batches *batches;           /* NULL: --batch-dir was not given */
    struct pool *pool;                 /* --pool; NULL: none */
    struct pool_work *pool_work;       /* with it */
    int64_t pool_looked_ms;
    struct models models;
    struct metrics_process metrics;
    struct power_usage power_usage; /* as last read for /metrics */
    struct cost_live_terms cost_terms;
    struct history history; /* io thread */
    double weight;          /* that a balancer is told */
    struct exchanges exchanges;
    struct admin_wait *admin_waits;     /* admin calls that wait for a model to arrive somewhere */
    struct ledger_client ledger;        /* calls NULL: this server does not bill */
    struct billing_stats billing_stats; /* printed when it does */
    struct billing_call *billing_calls; /* first in, first out */
    bool billing_running;               /* the first one is in the pool */
    struct directory_watch directory;
    _Atomic bool recall_stop; /* key_recall.c's pool is to come to its end */
    enum phase phase;
    int exit_code;
    bool http_closed, handles_closed, aborted;
    uint64_t start_ns, drain_ns, closing_ns;
    uv_async_t engine_async;
    pthread_mutex_t wake_mutex; /* guards wake_over, books_over */
    bool wake_over;             /* meter and emitter outlive the loop: libuv aborts when a closed one is woken */
    bool books_over;            /* a loader that hangs leaves the power thread running when the journal is closed */
    uv_timer_t tick;
    uv_signal_t signals[SIGNALS];
};

/* ---- serve_answers.c ---- */

void reply_text(struct http_conn *conn, int status, const char *content_type, const char *text, size_t length);
void reply_refusal(struct server *server, struct http_conn *conn, enum refusal refusal, uint32_t retry_after_ms,
                   const char *allow);
/* What keeps all requests away, if anything does. */
bool engine_refusal(const struct server *server, enum refusal *refusal, uint32_t *retry_after_ms);
/* Whether an engine is in a step that does not end. Asleep it may have an old beat. */
bool engine_stuck(const struct server *server);

void reply_health(struct server *server, struct http_conn *conn, enum route_id route);
void reply_metrics(struct server *server, struct http_conn *conn);
void reply_load(struct server *server, struct http_conn *conn);
/* A file of the console, 304 for one that the browser has, or the way there from "/". */
void reply_console(struct server *server, struct http_conn *conn, struct http_request *request, enum route_id route);
void reply_models(struct server *server, struct http_conn *conn, const struct http_request *request,
                  const struct route *route);
/* An argument of a path or a query, percent-decoded; cut at PATH_ARGUMENT_BYTES_MAX - 1. */
void path_argument(const char *text, size_t length, char out[PATH_ARGUMENT_BYTES_MAX]);

/* ---- admin.c ---- */

/* A call to an admin route, its key checked. Replies now, or when the model has arrived where the call sends it. */
void admin_request(struct server *server, struct http_conn *conn, struct http_request *request, enum route_id route);
/* A model has arrived: answers the calls that wait for it. */
void admin_settled(struct server *server, const struct served *served);
/* The connection of a waiting admin call is gone; false: it is not of one. What it began goes on. */
bool admin_gone(struct server *server, const struct http_conn *conn);
/* The end: all waiting calls get 503. */
void admin_abort(struct server *server);

/* ---- admin_power.c ---- */

/* GET and POST /admin/power, the key checked. */
void admin_power_request(struct server *server, struct http_conn *conn, const struct http_request *request);

/* serve.c: whether a line may begin: as a call's head decides it, without a client. state: the server. */
bool may_run_lines(void *state);
void wake_loop(void *state); /* any thread */

/* ---- serve_pool.c; nothing without --pool ---- */

NODISCARD enum status pool_start(struct server *server, struct error *err);
void pool_settled(struct server *server); /* a model has arrived somewhere */
void pool_turn(struct server *server);    /* each tick, and when the pool has news */
void pool_print_metrics(const struct server *server, struct buf *out);

/* ---- serve_upstream.c; nothing without --upstreams ---- */

NODISCARD enum status upstream_start(struct server *server, struct error *err);
void upstream_close(struct server *server); /* its handles; no call is left */
void upstream_free(struct server *server);  /* before the meter's end */

/* ---- admin_plan.c ---- */

NODISCARD enum status plan_open(struct server *server, struct error *err);
void plan_turn(struct server *server); /* each tick */
/* GET /admin/power/plan, the key checked. */
void admin_plan_request(struct server *server, struct http_conn *conn, const struct http_request *request);

/* ---- admin_cost.c ---- */

/* GET /admin/cost, the key checked. */
void admin_cost_request(struct server *server, struct http_conn *conn);
/* All tokens and joules since the start. */
struct cost_span cost_span_now(const struct server *server, const struct power_usage *usage);

/* ---- admin_history.c ---- */

void history_turn(struct server *server); /* each tick */
/* GET /admin/history, the key checked. */
void admin_history_request(struct server *server, struct http_conn *conn);

/* ---- admin_balancer.c ---- */

/* The agent ports that the configuration has; closed: when one of them has closed. Errors as of agent_port_create. */
NODISCARD enum status balancer_open(struct server *server, void (*closed)(void *state), struct error *err);
void balancer_tick(struct server *server);
void balancer_close(struct server *server); /* again: nothing */
void balancer_destroy(struct server *server);
void balancer_append_load(void *state, const char *format, struct buf *out); /* as balancer_load_header */
/* GET and POST /admin/balancer, the key checked. */
void admin_balancer_request(struct server *server, struct http_conn *conn, const struct http_request *request);

/* ---- billing_calls.c ---- */

/* /v1/usage, and calls to billing's admin routes, keys checked. Answered from the pool: the ledger may be far away. */
void billing_request(struct server *server, struct http_conn *conn, struct http_request *request,
                     const struct route *route);
/* The connection of such a call is gone; false: it is not of one. What the call changes goes on. */
bool billing_gone(struct server *server, const struct http_conn *conn);
/* Whoever used the ledger's client is done with it. */
void billing_calls_go_on(struct server *server);
/* The value of a name in the query, percent-decoded; false: it is not there. */
bool query_value(const struct http_request *request, const char *name, char out[PATH_ARGUMENT_BYTES_MAX]);

/* ---- directory_watch.c ---- */

/* Reads it for the first time, before anything is served. Without a ledger these do nothing. */
void directory_watch_start(struct server *server);
void directory_watch_tick(struct server *server, uint64_t now_ns);
/* Another directory holds from now on; who may not go on is ended. */
void directory_take(struct server *server, struct directory *directory, uint64_t version);

/* ---- key_recall.c ---- */

void key_recall_start(struct server *server); /* before anything is served; goes on in the pool */

#endif
