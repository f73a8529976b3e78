/* What the files of an exchange share: its inside, and the steps of its end; see exchange.h.
 *
 *   exchange_enter.c   room, the pool, which model, waiting for a wake, submission
 *   exchange.c         events, rendering, time, the end
 *   exchange_admit.c   Idempotency-Key, rate limits
 *   exchange_plan.c    tiers that wait
 *   exchange_measure.c what calls of a batch will take
 *   exchange_bill.c    charges, holds, the end of a package
 *   exchange_energy.c  joules
 *   exchange_relay.c   calls that an upstream answers
 *
 * io thread only. */
#ifndef SERVER_EXCHANGE_PARTS_H
#define SERVER_EXCHANGE_PARTS_H

#include "runtime/base/clock.h"
#include "server/exchange.h"
#include "server/http_route.h"
#include "server/idempotency.h"
#include "server/pool/pool_entry.h"
#include "server/rate.h"

static inline uint64_t clock_ns(void)
{
    return clock_now_ns(clock_system());
}

enum { RETRY_AFTER_MS_MIN = 1000, RETRY_AFTER_MS_MAX = 60000 };

/* exchange_admit.c's part of an exchange. */
struct admission {
    bool passed;
    bool has_key, broken;            /* an Idempotency-Key; not all of the answer's bytes could be kept */
    bool counted;                    /* by the rate limits, with `tokens` */
    struct idempotency_entry *entry; /* its own, while it runs; NULL: none */
    uint64_t tokens;                 /* estimated */
    uint8_t digest[IDEMPOTENCY_DIGEST_BYTES], print[IDEMPOTENCY_PRINT_BYTES];
};

/* exchange_plan.c's part of an exchange. */
struct deferral {
    bool passed, waiting, released, forced;
    uint64_t plan_id;  /* 0: not in the plan */
    const char *cause; /* of the deadline that has passed; static */
    uint64_t asked_ns; /* when the plan promised it */
    uint64_t held_ms;  /* from its acceptance until it might run */
};

struct exchange {
    struct exchanges *set;
    struct exchange *previous, *next;
    struct exchange *next_touched;
    struct http_conn *conn; /* NULL: gone, answered, or inner */
    bool inner, prepaid;    /* E11 */
    void (*answer_inner)(void *state, int http_status, uint32_t retry_after_ms, const struct buf *body);
    void *inner_state;               /* with answer_inner, which is NULL once it was called */
    const struct pool_result *given; /* E13 */
    uint64_t deadline_ns;            /* monotonic */
    enum exchange_kind kind;
    struct caller caller;
    struct buf body;          /* until the pool has read it for a model that is ready; counted for C8 */
    struct served *served;    /* whom the call is for, used (E7); NULL: not known, or not ready */
    struct served *waits_for; /* pinned: asleep, to be woken */
    struct served *candidates[MODELS_MAX];
    const struct api_model *candidate_models[MODELS_MAX];
    bool candidate_ready[MODELS_MAX];
    struct api_models models; /* of the candidates; what the body named */
    struct relay *relay;      /* E14: instead of `served` */
    uv_work_t work;
    bool in_pool, prepared, touched, streaming, head_sent, failed, bytes_sent, has_tokens;
    bool broken;        /* E10: we have cancelled it; `error` is for the client unless it ended by itself before */
    bool cancel_wanted; /* not all requests of it have been told */
    enum cause cancel_cause;
    struct api_call *call;
    struct request *requests;
    uint32_t requests_count, submitted, alive, scheduled;
    double joules;           /* of its requests that have ended, provisional */
    uint64_t *last_token_ns; /* [choices over all requests], for the gap between tokens */
    uint64_t arrived_ns;
    uint64_t sent_ns;        /* when tokens were last written */
    uint32_t tokens_held;    /* events of tokens since then */
    uint64_t written_ns;     /* virtual: when the stream last got bytes, or was accepted */
    struct billed *billed;   /* [requests_count], NULL: not billed */
    bool budget_empty;       /* it was the key's budget that had nothing left */
    uint32_t *billed_counts; /* what those count in, and what the meter counts in */
    struct metered_choice *billed_choices;
    bool holding;        /* waits for the ledger, or for the first with its key, before it is submitted */
    uint64_t holding_ns; /* since when it waits for the ledger; 0: it has not */
    struct admission admission;
    struct deferral deferral;
    struct api_error error; /* failed, broken: what the client gets */
    struct buf answer;      /* tokenize, detokenize */
    int answer_status;
    char request_id[HTTP_REQUEST_ID_MAX + 1];
};

static inline bool exchange_listens(const struct exchange *exchange)
{
    return exchange->conn || exchange->answer_inner;
}

/* The client's side of a failure; the engine's side may still be running. */
void exchange_fail(struct exchange *exchange, const struct api_error *error);
void exchange_reply_error(struct exchange *exchange, const struct api_error *error); /* no byte of a stream was sent */
void exchange_cancel(struct exchange *exchange, enum cause cause);                   /* the engine's side */

void exchange_answer_inner(struct exchange *exchange, int http_status, uint32_t retry_after_ms, const struct buf *body);

void exchange_finish_text(struct exchange *exchange, struct buf *out); /* the rest of the answer */
bool exchange_may_end(const struct exchange *exchange);                /* E1 */
void exchange_destroy(struct exchange *exchange);
void exchange_drop_body(struct exchange *exchange);
void exchange_ask_again(struct exchange *exchange); /* while it is `holding`; may be its end */

/* Gives the model that it waits for back to the caller, with the pin; NULL: it waits for none. */
struct served *exchange_stop_waiting(struct exchange *exchange);
void exchange_wait_no_more(struct exchange *exchange); /* and lets go of the pin */

/* exchange_admit.c. take_key: once, io thread; print_body: in the pool, while the body is there. */
void exchange_take_key(struct exchange *exchange, const struct http_request *request);
void exchange_print_body(struct exchange *exchange);
enum admission_verdict { ADMITTED, ADMISSION_WAITS, ADMISSION_OVER /* answered or refused */ };
enum admission_verdict exchange_admit(struct exchange *exchange);
bool exchange_is_kept(const struct exchange *exchange); /* goes on without its client */
/* Bytes of the answer from that length of out on; the answer is whole; all of it that is not yet rendered. */
void exchange_keep(struct exchange *exchange, const struct buf *out, size_t from);
void exchange_kept(struct exchange *exchange);
void exchange_keep_rest(struct exchange *exchange);
void exchange_admission_end(struct exchange *exchange); /* at its end, whatever it was */

/* exchange_plan.c. admit: false: it waits (holding), or is answered. */
bool exchange_plan_admit(struct exchange *exchange);
void exchange_plan_tick(struct exchange *exchange, uint64_t now_ns);
void exchange_plan_end(struct exchange *exchange); /* at its end, whatever it was */

/* exchange_bill.c; all do nothing when the call is not billed. */
NODISCARD bool exchange_bill_begin(struct exchange *exchange); /* false: no memory */
/* Takes the holds that are still missing; anything but LEASE_HELD: not yet, or never. */
enum lease_verdict exchange_bill_hold(struct exchange *exchange);
void exchange_bill_drop(struct exchange *exchange); /* what is left in hold goes back */
void exchange_bill_free(struct exchange *exchange);
void exchange_bill_event(struct exchange *exchange, const struct event *event); /* raises limits as tokens come */
void exchange_bill_tick(struct exchange *exchange);

/* exchange_energy.c; both do nothing without a meter of watts. Before a request is submitted; at its last event, or
 * where it could not be. */
void exchange_energy_begin(struct exchange *exchange, const struct request *request);
void exchange_energy_end(struct exchange *exchange, const struct request *request);

/* exchange_relay.c. prepare: in the pool, when the body names a far model; false: error is set. */
NODISCARD bool exchange_relay_prepare(struct exchange *exchange, enum api_kind kind, const struct api_context *context);
const char *exchange_relay_model(const struct exchange *exchange);
void exchange_relay_submit(struct exchange *exchange); /* may fail it instead */
void exchange_relay_cancel(struct exchange *exchange); /* by its cancel_cause */
void exchange_relay_go_on(struct exchange *exchange);  /* nobody's slowness holds it up any more; else nothing */
void exchange_relay_render(struct exchange *exchange, struct buf *out);
void exchange_relay_finish(struct exchange *exchange, struct buf *out);
void exchange_relay_free(struct exchange *exchange);
/* The next event of what is relayed; false: none now. */
bool exchange_relay_next(struct exchanges *set, struct event *event);

/* Between 1 and 60 s, spread by the request's id so that refused clients do not come back together. */
uint32_t exchange_retry_after(uint64_t wait_ns, const char *id);

#endif
