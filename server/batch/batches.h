/* Files and batches of a server: POST /v1/files and /v1/batches with what belongs to them, and the running of their
 * lines.
 *
 *   upload -> file -> batch: validating -> in_progress -> finalizing -> completed
 *                       |  \-> failed          |\-> (deadline) finalizing -> expired
 *                       \-> cancelling <-------/ -> cancelled
 *   a line:  todo -> read (pool) -> exchange_start_inner -> answer -> log, fdatasync (pool) -> done
 *
 * J1  A client is told of a file or a batch when it is durable, and of a result in the counts when that is.
 * J2  A line whose result is durable never runs again. One that was under way at an end of the process runs again under
 *     the same digest (idempotency.h); if the journal has it charged, without a charge.
 * J3  Lines are released in the order of their batches' deadlines, at most `concurrency` at a time. What the server
 *     cannot do at the moment (429, 5xx) goes back to todo and is tried again until the deadline; 500 three times.
 * J4  At the deadline nothing more is begun, what runs is broken off and not billed, and what has no result becomes an
 *     error line. What is cancelled ends the lines that run by themselves.
 * J5  Of another account's files and batches nothing can be seen: 404.
 * J6  A key that is revoked, and an account that is closed, gives its lines their error.
 * J7  An object has one job in the pool at a time (struct batch_job).
 * J8  The plan (power/plan.h) has a batch as up to BATCH_PARTS_MAX jobs, each of as many lines, all with its deadline.
 *     They are promised together when it is validated, or the batch fails with deadline_infeasible; a line runs when
 * its job was let go.
 * J9  With a pool, lines of a part that waits for green power are offered to other servers. They stay this one's: it
 *     writes and bills their results, takes them back when the plan lets the part go, and can do without the pool.
 *
 * io thread, but for jobs. Nothing of a file, a line or a result is logged. */
#ifndef SERVER_BATCH_BATCHES_H
#define SERVER_BATCH_BATCHES_H

#include "server/auth.h"
#include "server/exchange.h"

struct batches;
struct plan;
struct plan_news;
struct pool;
struct pool_news;
struct route;

struct batches_config {
    uv_loop_t *loop;
    struct http_server *http;
    struct exchanges *exchanges;
    struct auth *auth;
    const char *folder; /* outlives them */
    uint32_t concurrency;
    struct plan *plan;            /* power/plan.h */
    struct pool *pool;            /* J9; NULL: there is none */
    bool (*may_run)(void *state); /* whether calls are taken at all at the moment */
    void *state;
};

/* Opens the folder and takes up what an earlier process left. ST_IO, ST_INVAL (damage), ST_NOMEM: err says what. */
NODISCARD enum status batches_create(const struct batches_config *config, struct batches **batches, struct error *err);
void batches_stop(struct batches *batches); /* releases nothing more, and long work in the pool ends; NULL is fine */
void batches_over(struct batches *batches); /* the loop has ended: answers that still come are dropped */
void batches_destroy(struct batches *batches);
void batches_tick(struct batches *batches); /* every HTTP_TICK_MS */

/* J2: charges of an earlier process, each, and then that they are all. Until then nothing is released. */
void batches_recall(struct batches *batches, const uint8_t digest[16]);
void batches_recalled(struct batches *batches);
void batches_await_recall(struct batches *batches);
int64_t batches_oldest_s(const struct batches *batches); /* when the first that has not ended was made; 0: none */

/* The head of an upload, its key checked; and the body as it comes. Ends in batches_request. */
void batches_head(struct batches *batches, struct http_conn *conn, struct http_request *request);
void batches_body(struct batches *batches, struct http_conn *conn);
/* A call to one of the four routes, read as a whole. */
void batches_request(struct batches *batches, struct http_conn *conn, struct http_request *request,
                     const struct route *route);
void batches_news(struct batches *batches, const struct plan_news *news); /* of the plan, about a job of theirs */
void batches_pool_news(struct batches *batches, struct pool_news *news);  /* of the pool, about a line of theirs */
bool batches_writable(struct batches *batches, struct http_conn *conn);   /* false: it is not of a download */
bool batches_gone(struct batches *batches, const struct http_conn *conn); /* false: it is of none of its calls */

uint64_t batches_pool_misfits(const struct batches *batches); /* results of the pool that could not be used */
/* For /metrics, in Prometheus' text form; nothing without them. */
void batches_print_metrics(const struct batches *batches, struct buf *out);

#endif
