/* An exchange: one API call over one connection, from its complete request to its last byte.
 *
 *   exchange_start -> [pool: parse, template, tokens] -> engine_submit -> events -> render when writable -> end
 *        |                    |                                |                           |
 *      refused              refused (400, 404)        refused (429, 503, 504)      client gone: engine_cancel
 *                             asleep: waits for the wake, then once more through the pool
 *
 * E1  An exchange is destroyed when it is out of the pool and every engine request of it has ended, whether or not its
 *     client is still there: until then the engine may write into its arena.
 * E2  Events only count (api_call_event). Text is made when the connection can take it, once for all events of a poll.
 * E3  Headers of a stream go out with its first token, or after head_after_ns; before that a failure is an HTTP error.
 * E4  Every call of which a request was scheduled gives one usage record, whatever became of its client.
 * E5  A client that is gone cancels its requests in the same turn of the loop; while the engine's ring is full, again
 *     at each tick.
 * E6  Below COALESCE_WRITES_PER_S each step's tokens go out at once. Above it a stream is written at 8 tokens or 20 ms,
 *     its first and last always at once: a send costs more than rendering a token.
 *
 * E7  Which model a call is for stands in its body, which only the pool reads. So a call holds the records of all
 * models while it is in the pool (served_pin), and may use those that were ready when it entered (served_use); out of
 * it it keeps the one it is for, until it is destroyed.
 *
 * E8  A billed call is submitted when its holds are taken; while the ledger is asked it waits, at most as long as a
 *     request may take. What it holds and was not used goes back when it ends.
 *
 * E9  A call with an Idempotency-Key goes on when its client leaves; a later one with the same key waits for it, and
 *     gets the same bytes at once when it has ended, a stream too. It is billed once.
 *
 * E10 A call that we break off (shutdown, its model leaves) is told so when the engine has ended it. If it ended by
 *     itself before, its client gets the answer that it is charged for.
 *
 * E11 A call of a batch has no connection: its answer goes to a sink, once, whatever became of it; later than the
 * start. It is of class batch, never streams, and is billed under its own digest, which no client can have chosen.
 *
 * E12 A call of the tiers flex and batch starts when the plan lets it go (server/power/plan.h); until then nothing is
 * held or billed for it. One that the plan lets go by its deadline alone goes to the engine as class default.
 *
 * E13 A call of a batch may come with its answer, which another server computed for the same prompt (server/pool): it
 * is admitted, held for, billed and rendered like one that runs, but the engine tells its ids at once. One whose prompt
 * is another here fails with 503 pool_mismatch, and is not billed.
 *
 * E14 A call for a model of an upstream (server/upstream) has no `served`: `relay` stands in the engine's place, and
 * one request without ids in that of its requests. It is admitted, held for and billed like any other.
 *
 * /tokenize and /detokenize are exchanges too that never meet the engine: a large text must not hold up the loop.
 * io thread only, but for the work in the pool. */
#ifndef SERVER_EXCHANGE_H
#define SERVER_EXCHANGE_H

#include "server/http_conn.h"
#include "server/models.h"

#include <uv.h>

#include <stdbool.h>
#include <stdint.h>

struct billing;
struct budget_link;
struct exchange;
struct idempotency;
struct plan;
struct plan_news;
struct pool_result;
struct prices;
struct rates;
struct relay_link;
struct upstreams;

enum exchange_kind { EXCHANGE_CHAT, EXCHANGE_COMPLETIONS, EXCHANGE_TOKENIZE, EXCHANGE_DETOKENIZE };

/* All exchanges of a process, and what they need. Filled by serve.c. */
struct exchanges {
    uv_loop_t *loop;
    struct http_server *http;
    struct models *models;
    struct billing *billing;     /* NULL: nothing is billed */
    struct prices *prices;       /* with billing */
    struct budget_link *budgets; /* with --enforce prepaid; else NULL */
    struct upstreams *upstreams; /* NULL: none; with it: */
    struct relay_link *relay_link;
    struct meter_port *relay_port; /* with billing */
    bool auto_wake;
    bool usage_extras;                              /* usage tells more than OpenAI's: energy_joules */
    uint64_t head_after_ns;                         /* E3: 10 s */
    uint64_t keep_alive_ns;                         /* a comment line on an idle stream: 15 s */
    uint32_t queue_max;                             /* waiting requests of a model, those in the pool included */
    void (*emptied)(void *state);                   /* the last exchange is gone */
    void (*used_up)(void *state, uint64_t account); /* a call was refused: nothing is left for the account */
    struct plan *plan;                              /* E12; NULL: nothing waits */
    void (*other_news)(void *state, const struct plan_news *news); /* of jobs that are no exchange's */
    const char *(*power_word)(void *state);                        /* x-mr-power: normal, paced, event */
    /* The ORCA header, to who asks by endpoint-load-metrics-format. */
    void (*append_load)(void *state, const char *format, struct buf *out);
    void *state;
    /* own */
    uint64_t last_plan_id;
    struct exchange *relays_over; /* whose end is to be told to the meter, or taken */
    struct exchange *all;
    uint32_t count, preparing; /* preparing: in the pool; who waits for a wake counts in its model's `waiting` */
    uint64_t next_request_id;
    struct rates *rates;             /* NULL: no key has limits yet */
    struct idempotency *idempotency; /* NULL: no request had a key yet */
    bool recalling;                  /* keys of an earlier life are being read: calls with a key wait */
    bool joins_due;                  /* one with a key has ended: others may wait for it */
    bool aborting;
    bool coalescing;    /* E6 */
    uint64_t window_ns; /* start of the window that writes are counted in */
    uint32_t window_writes;
};

/* Whether one more call may start: for some model that is ready, or to learn what its model does instead; else the
 * refusal's milliseconds until a retry makes sense, and false. Looked at before the body is read. */
bool exchanges_have_room(struct exchanges *set, const char *request_id, uint32_t *retry_after_ms);

/* Takes the connection's current request. Replies itself, now or later. */
void exchange_start(struct exchanges *set, enum exchange_kind kind, struct http_conn *conn,
                    const struct caller *caller);

/* E11. body: taken over, also on failure. digest: idempotency's, for the charge. prepaid: an earlier process was paid
 * for this call, and its answer was lost: not billed. deadline_ns: monotonic. NULL: no memory, and no answer comes. */
struct inner_call {
    enum exchange_kind kind; /* CHAT or COMPLETIONS */
    const struct caller *caller;
    const char *request_id;
    const uint8_t *digest; /* [16] */
    bool prepaid;
    bool forced; /* class default in the engine: E12 */
    uint64_t deadline_ns;
    uint64_t held_ms; /* since it was accepted: for the account of its energy */
    /* E13; borrowed until the answer. NULL: it is computed here. */
    const struct pool_result *given;
    void (*answer)(void *state, int http_status, uint32_t retry_after_ms, const struct buf *body);
    void *state;
};
struct exchange *exchange_start_inner(struct exchanges *set, const struct inner_call *call, struct buf *body);
/* Within its answer with 200: what was computed, and its counts. */
const struct request *exchange_inner_requests(const struct exchange *exchange, uint32_t *count);
/* What bodies of such calls will take: tokens of their prompts, and the most that may be answered, of all choices, as
 * they would be today. begin, end: io thread; holds the models meanwhile (E7); NULL: no memory. body: in the pool, one
 * at a time; state is the measure; false: it cannot be a call now (wrong, or its model is not ready). */
struct measure;
struct measure *measure_begin(struct exchanges *set, enum exchange_kind kind, const struct caller *caller);
bool measure_body(void *state, const struct buf *body, uint32_t *prompt_tokens, uint32_t *output_tokens);
void measure_end(struct measure *measure); /* NULL is fine */

/* E10 for one such call that has not been answered yet: its answer is the error, unless it ends by itself before. */
void exchange_break_inner(struct exchange *exchange, const struct api_error *error);

/* An error as the whole answer to a call. allow: of a 405, else NULL; close: the connection, after it. */
void reply_error(struct http_conn *conn, const struct api_error *error, const char *allow, bool close);

void exchange_writable(struct exchange *exchange);
void exchange_gone(struct exchange *exchange); /* its connection is about to be freed */

/* Takes all events of the engines, then renders each exchange they touched. After each wake of the engine. */
void exchanges_poll(struct exchanges *set);
/* Late headers, tokens held back, keep-alive comments, cancels that found the ring full. Every HTTP_TICK_MS. */
void exchanges_tick(struct exchanges *set, uint64_t now_ns);

/* E12: an id for a job of the plan; and all news that the plan has. Each tick, and after each change of it. */
uint64_t exchanges_plan_id(struct exchanges *set);
void exchanges_plan_news(struct exchanges *set);
void exchanges_refuse_waiting(struct exchanges *set); /* a drain begins: 503 to those that have not been let go */

/* A model has become READY, ASLEEP, FAILED or GONE: calls that wait for it go on, or end with an error. */
void exchanges_settled(struct exchanges *set, struct served *served);
/* Headers that tell a limited key what it has left, for whatever answer the request gets. */
void exchanges_tell_limits(struct exchanges *set, struct http_request *request);
/* Its Idempotency-Key; NULL: none, or error->http_status is set. */
const char *exchange_key_of(const struct http_request *request, struct api_error *error);
/* Ends the calls of all callers that `stopped` names: ACCOUNT_STOP. */
void exchanges_stop(struct exchanges *set, bool (*stopped)(void *state, const struct caller *caller), void *state);
/* Keys that an earlier process was billed for are in the journal; age_ns: since then. Until recalled, calls with a key
 * wait. */
void exchanges_recall(struct exchanges *set, const uint8_t digest[16], const char *call_id, uint64_t age_ns);
void exchanges_recalled(struct exchanges *set);
/* Rate limits and kept answers. After the last call. */
void exchanges_forget_all(struct exchanges *set);
/* The ledger has answered, or its state has changed: calls that wait for a hold, or for more, ask again. */
void exchanges_answered(struct exchanges *set);
/* Ends the calls that use the model: usage, and an error for their clients. */
void exchanges_cut(struct exchanges *set, const struct served *served);

/* The end of a drain: cancels everything that is left; its clients get 503 or an error event. */
void exchanges_abort(struct exchanges *set);
/* Frees what is left, after the engine has stopped and its events are taken, and the pool is idle. */
void exchanges_free(struct exchanges *set);

#endif
