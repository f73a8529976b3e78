/* The OpenAI API as pure functions: bytes of a request in, engine requests out; engine events in, bytes of an answer
 * out. No sockets, no threads, no clock: the same code runs in the server, in tests and in fuzzers.
 *
 *   body --api_call_create--> struct api_call --api_call_prepare--> struct request [..]   (engine)
 *                                   |                                     |
 *                  api_call_render / api_call_finish  <--api_call_event-- events
 *
 * An api_call owns one arena (bounded by api_request_memory_bytes) with everything of its request, including the arrays
 * that the engine writes to; it must not be destroyed while one of its engine requests is alive. Used by one thread at
 * a time: the io thread, and a pool thread during prepare. */
#ifndef SERVER_API_H
#define SERVER_API_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/text/chat_template.h"
#include "runtime/model/sampling_defaults.h"
#include "runtime/text/tokenizer.h"
#include "scheduler/request.h"

#include <stdbool.h>
#include <stdint.h>

/* A refusal in OpenAI's terms; api_error_body makes {"error":{message,type,param,code}} of it, all four always present.
 */
struct api_error {
    int http_status;
    const char *type; /* "invalid_request_error", ... static */
    const char *code; /* static, or NULL */
    char param[64];   /* the field's name, "" = null */
    char message[512];
    uint32_t retry_after_ms; /* 0: no Retry-After */
};

/* Fills an error; returns http_status. */
int api_error_set(struct api_error *error, int http_status, const char *type, const char *code, const char *param,
                  const char *format, ...) PRINTF_LIKE(6, 7);
void api_error_body(const struct api_error *error, struct buf *out);

/* What answers tell about a served model, and what requests are checked against. Names never change; the rest only
 * while no request uses the model; `state` belongs to the io thread. */
struct api_model {
    const char *const *names; /* served-model-name and its aliases: names[0] is shown */
    uint32_t names_count;
    const char *state; /* "ready", "loading", "asleep", ... for the list of models; NULL: it is not told */
    const struct tokenizer *tokenizer;
    const struct chat_template *chat_template; /* NULL: chat is refused with a clear 400 */
    uint32_t context_max;                      /* prompt + output tokens; 0: not known yet */
    uint32_t think_start_id, think_end_id;     /* VOCAB_NO_ID without reasoning markers */
    int64_t created_unix_s;
    char fingerprint[32];     /* system_fingerprint */
    uint8_t cache_secret[32]; /* of this node; prefix-cache domains derive from it and the tenant */
    bool trust_request_chat_template;
    struct sampling_defaults defaults; /* of what a request does not say */
};

/* A model that another server serves through this one (server/upstream). */
struct api_far {
    const char *name, *owner;
    uint32_t context_max; /* 0: not known */
    int64_t created_unix_s;
};

/* All models of a server, in the order in which they are listed, and which of them a body named. */
struct api_models {
    const struct api_model *const *items;
    uint32_t count;
    const struct api_far *far; /* [far_count]; of one name a model of this server comes first */
    uint32_t far_count;
    uint32_t far_picked; /* out, when none of the items was picked: index + 1 of a far one, or 0 */
    const bool *ready; /* [count], NULL: all are. Of one that is not ready nothing but its names is looked at */
    uint32_t picked;   /* out: index, or count: the body named none. Without "model" it is the only one there is */
};

enum api_kind { API_CHAT, API_COMPLETIONS };

struct api_context {
    struct api_models *models;
    uint32_t tenant;         /* index, for fairness and queue shares */
    const char *tenant_name; /* for the cache domain */
    int64_t now_unix_s, now_unix_ms;
    uint64_t now_ns;      /* monotonic, for deadlines */
    uint64_t deadline_ns; /* default deadline of a request, 0 = none */
    bool batch;           /* of tier batch, whatever the body says */
};

struct api_call;

/* What a request says about when it may run; green as enum plan_green (server/power/plan.h). */
struct api_wish {
    enum service_class service_class;
    int64_t deadline_unix_s; /* 0: none was given */
    int green;
};

/* Parses and validates a body (pool thread; a few microseconds a KiB). On failure returns false and fills error.
 * A model that is served and not ready is a failure with models->picked set; the error then is only the caller's to
 * replace. Ids are made with random_fill: "chatcmpl-" / "cmpl-" and the 32 hex digits of a UUIDv7. */
NODISCARD bool api_call_create(enum api_kind kind, const char *body, size_t length, const struct api_context *context,
                               struct api_call **call, struct api_error *error);
void api_call_destroy(struct api_call *call);

/* A call for a far model, prepared: one request that no engine may see, with prompt_max for its prompt's tokens. Nothing
 * of api_call_event, _render and _finish may be asked of it. False: no memory. */
struct api_relayed {
    enum api_kind kind;
    bool stream;
    uint32_t choices, max_tokens, prompt_max;
};
NODISCARD bool api_call_create_relayed(const struct api_relayed *what, const struct api_context *context,
                                       struct api_call **call, struct api_error *error);

/* Template, tokens, limits, engine requests (pool thread). False: error is filled and the call is only to be destroyed.
 */
NODISCARD bool api_call_prepare(struct api_call *call, struct api_error *error);

/* The engine requests to submit: one a prompt. Their `id` and `owner` are the server's to set before submitting. */
struct request *api_call_requests(struct api_call *call, uint32_t *count);

struct api_wish api_call_wish(const struct api_call *call);
bool api_call_streams(const struct api_call *call);
const char *api_call_id(const struct api_call *call);
const uint8_t *api_call_uuid(const struct api_call *call); /* 16 bytes: those of its id, and of its charges */

/* What `usage` tells of its joules, provisional; without a call it tells nothing of them. */
void api_call_energy(struct api_call *call, double joules);

/* Takes an event of one of its requests (any kind but REQUEST_REFUSED). Only counts; nothing is rendered. */
void api_call_event(struct api_call *call, const struct event *event);

/* Streams only: appends the SSE events for everything that events have told and that has not been rendered yet, as few
 * events as possible (all new text of a choice is one chunk; with logprobs one a token). Holds back incomplete UTF-8.
 * May append nothing. Called when the socket is writable: a slow reader's tokens wait here as 4-byte ids. */
void api_call_render(struct api_call *call, struct buf *out);

/* All requests are done: streams get their remaining events, usage if asked, and "data: [DONE]"; otherwise the whole
 * JSON body. */
void api_call_finish(struct api_call *call, struct buf *out);

/* A stream that failed after its first byte: usage if asked, then an error event, and no [DONE]. */
void api_call_fail(struct api_call *call, const struct api_error *error, struct buf *out);

/* Sum over its requests, valid once all are done. */
struct usage api_call_usage(const struct api_call *call);

/* Whole answers without the engine. Each appends a JSON body to out and returns the HTTP status; a failure's body is
 * the error object. */
int api_models(const struct api_models *models, const char *id_or_null, struct buf *out);
int api_tokenize(struct api_models *models, const char *body, size_t length, struct buf *out);
int api_detokenize(struct api_models *models, const char *body, size_t length, struct buf *out);

/* 404 model_not_found; the message lists the names that are served. Returns false. */
bool api_refuse_model(const struct api_models *models, const char *name, struct api_error *error);

/* How an engine's refusal or failure reads to a client. status: of the event. retry_after_ms: the engine's estimate. */
void api_error_from_status(enum status status, uint32_t retry_after_ms, struct api_error *error);

#endif
