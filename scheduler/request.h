/* One request as server, scheduler and engine share it: plain data, no methods.
 *
 * The server fills a `struct request` in its own arena and hands it over with engine_submit; from then until it has
 * taken the request's REQUEST_DONE (or REQUEST_REFUSED) event, the engine may read everything and writes only the
 * members marked "engine:". Generated ids are not copied through the event ring: the engine appends them to
 * choice->tokens, and an event says how many are there. The ring's release/acquire makes them visible; the server never
 * reads past the count an event has told it.
 *
 *   submit -> waiting -> running <-> waiting (preempted) -> done       every request ends in exactly one DONE or
 * REFUSED (R7)
 */
#ifndef SCHEDULER_REQUEST_H
#define SCHEDULER_REQUEST_H

#include "runtime/base/status.h"
#include "runtime/batch.h"

#include <stdbool.h>
#include <stdint.h>

enum service_class { CLASS_PRIORITY, CLASS_DEFAULT, CLASS_FLEX, CLASS_BATCH, CLASS_COUNT };

/* Why a choice ended. The first two are OpenAI's finish_reason "stop" and "length". */
enum finish {
    FINISH_NONE,     /* still running */
    FINISH_STOP,     /* an end id, a stop id or a stop string: see stop_id, stop_string */
    FINISH_LENGTH,   /* max_tokens or the context's end */
    FINISH_QUOTA,    /* stopped at its output limit: the package is used up. "length" with a detail */
    FINISH_ACCOUNT,  /* stopped because the account or key was closed. "length" with a detail */
    FINISH_CANCELED, /* engine_cancel for any other cause */
    FINISH_ERROR     /* row not finite, nothing to choose from, device lost, deadline */
};

/* Why a request ended, for its usage record (metering.md 2.2). */
enum cause {
    CAUSE_STOP,            /* every choice ended by itself, the last one by a stop */
    CAUSE_LENGTH,          /* ... the last one by length */
    CAUSE_QUOTA_END,       /* ended at its output limit: the account's package is used up */
    CAUSE_ACCOUNT_STOP,    /* the account or the key was closed */
    CAUSE_CLIENT_GONE,     /* cancelled: the client left or was too slow */
    CAUSE_PLATFORM_CANCEL, /* cancelled: drain, deadline */
    CAUSE_PLATFORM_ERROR,  /* device failure, not-finite row */
    CAUSE_NODE_CRASH       /* the process died; written by the journal's recovery alone */
};
enum { CAUSES = CAUSE_NODE_CRASH + 1 };

enum { STOP_STRING_NONE = UINT32_MAX, TOP_LOGPROBS_STRIDE_MAX = LOGPROBS_MAX };

struct stop_string {
    const char *bytes; /* length >= 1 */
    uint32_t length;
};

/* Log-probabilities of one position. */
struct token_logprobs {
    float logprob; /* of the token itself */
    uint32_t rank; /* 1 = the most likely */
    uint32_t top_count;
    uint32_t top_ids[LOGPROBS_MAX];
    float top_logprobs[LOGPROBS_MAX];
};

struct choice {
    uint32_t *tokens;                /* prompt, copied by the server, then room for max_tokens outputs */
    struct token_logprobs *logprobs; /* [max_tokens], or NULL; engine: written beside each token */
    uint64_t seed;
    /* engine: valid up to what the last event said */
    uint32_t output_count; /* ids after the prompt, with the terminal stop token or id */
    uint32_t text_bytes;   /* bytes of output text (special tokens left out unless kept) that may be shown: what could
                              still become a stop string, and what a stop string cut off, is not in it */
    enum finish finish;
    uint32_t stop_id;         /* FINISH_STOP by an id: which, else VOCAB_NO_ID */
    uint32_t stop_string;     /* FINISH_STOP by a string: its index, else STOP_STRING_NONE */
    uint32_t reasoning_count; /* of output_count: ids between the model's reasoning markers, markers included */
    uint32_t trimmed_count;   /* of output_count: ids whose text a stop string withheld completely */
};

/* Token counts of a finished request: metering.md 2.1, the only source of `usage` and of the bill. */
struct usage {
    enum cause cause;
    bool mismatch;     /* the counts of scheduler, choices and batch positions disagreed: the lowest was taken */
    bool estimated;    /* relayed (server/upstream) and broken off: counts are the least they can have been */
    uint32_t in_total; /* prompt ids, once, not per choice; fixed at first schedule */
    uint32_t in_hit;   /* of these, from the prefix cache at first schedule; < in_total */
    uint32_t out;      /* accepted output ids of all choices, terminal stop ids included */
    uint32_t out_reasoning, out_trimmed;
    uint32_t choices;
    uint32_t recomputed; /* ids prefilled again after preemption: never charged */
    uint32_t preemptions;
};

/* An answer that another server computed for this very prompt: told as if it had run, without a step. Of requests with
 * one choice and no log-probabilities; the caller has checked that ids are of the vocabulary and counts fit. */
struct given_answer {
    const uint32_t *ids;
    uint32_t count; /* 1 .. max_tokens */
    uint32_t in_hit, text_bytes, reasoning_count, trimmed_count;
    enum finish finish; /* STOP or LENGTH */
    uint32_t stop_id, stop_string;
};

struct charge; /* the biller's (server/billing/record.h); the scheduler only hands it through */

struct request {
    uint64_t id;                      /* unique while alive; never 0 */
    void *owner;                      /* the server's, handed back in events */
    struct charge *charge;            /* who pays; NULL: nobody */
    const struct given_answer *given; /* NULL: it is to be computed */
    bool unseen;                      /* the server's, before it cancels: not a byte of the answer has been sent */
    uint32_t tenant;                  /* small index; fairness and queue shares are per tenant */
    enum service_class service_class;
    enum service_class books_as; /* flex or batch that runs as a better class since it is due; else 0 */
    int32_t priority;            /* within class and tenant: lower first (vLLM's `priority`) */
    uint8_t cache_domain[32];    /* prefix cache sharing: secret of the tenant; equal domains share blocks */
    uint64_t deadline_ns;        /* monotonic; 0: none */

    const uint32_t *prompt; /* [prompt_count], >= 1 */
    uint32_t prompt_count;
    struct choice *choices; /* [choices_count], >= 1 */
    uint32_t choices_count;
    struct sampling_params params;
    uint32_t max_tokens; /* per choice; 0 only with score_prompt. prompt_count + max_tokens <= context_max */
    /* Ids a choice may have before it pauses and waits for engine_raise, or for its end: what is paid for so far. 0: no
     * limit. */
    uint32_t out_limit;
    uint32_t min_tokens; /* end ids, stop ids and stop strings do not count before this many */
    bool ignore_eos;     /* the model's end ids do not stop */
    bool keep_special;   /* special tokens are part of the text (skip_special_tokens = false) */
    bool include_stop;   /* text_bytes includes the stop string that ended the choice */
    const uint32_t *stop_ids;
    uint32_t stop_ids_count;
    const struct stop_string *stops;
    uint32_t stops_count;
    bool score_prompt; /* echo with logprobs: prompt_logprobs are wanted; the prefix cache is not read */
    struct token_logprobs *prompt_logprobs; /* [prompt_count] (entry 0 unused), or NULL; engine: written */

    /* engine: */
    uint64_t submitted_ns, scheduled_ns, first_token_ns, done_ns; /* monotonic; 0 = did not happen */
    struct usage usage;                                           /* valid at REQUEST_DONE */
};

enum event_kind {
    REQUEST_REFUSED,   /* never admitted: `status` says why. No usage record */
    REQUEST_SCHEDULED, /* entered its first step: in_total and in_hit are fixed */
    CHOICE_TOKENS,     /* choice `choice` now has output_count ids and text_bytes of text; finish when it ended */
    REQUEST_DONE       /* all choices ended, usage is final; the last event of a request */
};

struct event {
    enum event_kind kind;
    enum status
        status; /* REFUSED: ST_LIMIT (node queue full), ST_QUOTA (tenant's share full), ST_INVAL (can never fit),
                   ST_TIMEOUT (deadline), ST_CANCELED; DONE: ST_OK, or why it failed (ST_DEVICE, ST_TIMEOUT, ...) */
    struct request *request;
    uint32_t choice;
    uint32_t output_count, text_bytes, reasoning_count;
    enum finish finish;
};

#endif
