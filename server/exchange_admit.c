/* What stands between a prepared call and its charges: Idempotency-Key, then the key's rate limits; see exchange.h (E9)
 * and idempotency.h, rate.h.
 *
 *   prepared -> key known?  yes: the answer of the first, 409, 422, or waits until the first has ended
 *                  | no, or no key
 *               rate limits -> 429
 *                  | within
 *               charges, holds, engine (exchange_bill.c, exchange_enter.c)
 *
 * A repeated request is looked up first, because it costs nothing and must get its answer however busy its key is. What
 * it is compared by is its bytes, hashed in the pool. Tables are made when the first key asks for them. */
#include "server/exchange_parts.h"

#include "runtime/base/log.h"
#include "server/billing/record.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { RATE_KEYS_MAX = 262144 };

static bool is_limited(const struct caller *caller)
{
    return caller->limits.rpm || caller->limits.tpm || caller->limits.concurrency;
}

static struct rate_limits limits_of(const struct caller *caller)
{
    return (struct rate_limits){
        .rpm = caller->limits.rpm, .tpm = caller->limits.tpm, .concurrency = caller->limits.concurrency};
}

static bool need_rates(struct exchanges *set)
{
    return set->rates || rates_create(RATE_KEYS_MAX, &set->rates) == ST_OK;
}

static bool need_idempotency(struct exchanges *set)
{
    return set->idempotency || idempotency_create(&set->idempotency) == ST_OK;
}

void exchanges_tell_limits(struct exchanges *set, struct http_request *request)
{
    struct rate_view view;
    buf_clear(&request->answer_headers);
    if (set->power_word) buf_append_format(&request->answer_headers, "x-mr-power: %s\r\n", set->power_word(set->state));
    const char *format = http_request_header(request, "endpoint-load-metrics-format", NULL);
    if (format && set->append_load) set->append_load(set->state, format, &request->answer_headers);
    if (!is_limited(&request->caller) || !need_rates(set)) return;
    struct rate_limits own = limits_of(&request->caller);
    rate_look(set->rates, request->caller.key, &own, clock_ns(), &view);
    rate_headers(&view, &request->answer_headers);
}

/* ---- Idempotency-Key ---- */

const char *exchange_key_of(const struct http_request *request, struct api_error *error)
{
    uint32_t count;
    const char *key = http_request_header(request, "idempotency-key", &count);
    *error = (struct api_error){.http_status = 0};
    if (!key || (count == 1 && idempotency_key_ok(key))) return key;
    api_error_set(error, 400, "invalid_request_error", "invalid_idempotency_key", NULL,
                  "The header Idempotency-Key must stand once, with 1 to 255 printable ASCII characters.");
    return NULL;
}

void exchange_take_key(struct exchange *exchange, const struct http_request *request)
{
    struct api_error error;
    const char *key = exchange_key_of(request, &error);
    if (!key || exchange->kind == EXCHANGE_TOKENIZE || exchange->kind == EXCHANGE_DETOKENIZE) return;
    exchange->admission.has_key = true;
    idempotency_digest(exchange->caller.account, key, exchange->admission.digest);
}

void exchange_print_body(struct exchange *exchange)
{
    if (!exchange->admission.has_key || exchange->inner) return;
    idempotency_print("POST", exchange->kind == EXCHANGE_CHAT ? "/v1/chat/completions" : "/v1/completions",
                      exchange->body.data, exchange->body.length, exchange->admission.print);
}

static void reply_again(struct exchange *exchange, const struct idempotency_entry *entry)
{
    bool stream;
    struct http_conn *conn = exchange->conn;
    const struct buf *body = idempotency_answer(entry, &stream);
    exchange->conn = NULL;
    buf_append_text(&http_conn_request(conn)->answer_headers, "idempotent-replayed: true\r\n");
    http_conn_reply(conn, &(struct http_reply){.status = 200,
                                               .content_type = stream ? "text/event-stream; charset=utf-8" : NULL,
                                               .body = body});
}

static enum admission_verdict admit_key(struct exchange *exchange)
{
    struct exchanges *set = exchange->set;
    struct admission *admission = &exchange->admission;
    struct api_error *error = &exchange->error;
    struct idempotency_entry *entry = NULL;
    enum idempotency_verdict verdict = IDEMPOTENCY_FULL;
    if (set->recalling) return ADMISSION_WAITS; /* the keys of an earlier life are not known yet */
    if (need_idempotency(set))
        verdict = idempotency_begin(set->idempotency, admission->digest, admission->print, api_call_id(exchange->call),
                                    clock_ns(), &entry);
    switch (verdict) {
    case IDEMPOTENCY_NEW: admission->entry = entry; return ADMITTED;
    case IDEMPOTENCY_RUNS: return ADMISSION_WAITS;
    case IDEMPOTENCY_DONE: reply_again(exchange, entry); return ADMISSION_OVER;
    case IDEMPOTENCY_GONE:
        api_error_set(
            error, 409, "invalid_request_error", "idempotency_answer_gone", NULL,
            "This Idempotency-Key was used by the request that was answered as \"%s\"; its answer is not kept "
            "any more. It has been billed once; use a new key to ask again.",
            idempotency_id(entry));
        break;
    case IDEMPOTENCY_REUSED:
        api_error_set(error, 422, "invalid_request_error", "idempotency_key_reused", NULL,
                      "This Idempotency-Key was used for another request.");
        break;
    case IDEMPOTENCY_FULL:
        refusal_error(REFUSE_OVERLOADED, exchange_retry_after(0, exchange->request_id), error);
        break;
    }
    exchange_fail(exchange, error);
    return ADMISSION_OVER;
}

void exchanges_recall(struct exchanges *set, const uint8_t digest[16], const char *call_id, uint64_t age_ns)
{
    if (need_idempotency(set)) idempotency_recall(set->idempotency, digest, call_id, age_ns, clock_ns());
}

void exchanges_recalled(struct exchanges *set)
{
    set->recalling = false;
    set->joins_due = true;
}

void exchange_keep(struct exchange *exchange, const struct buf *out, size_t from)
{
    struct admission *admission = &exchange->admission;
    if (!admission->entry) return;
    if (out->length > from)
        idempotency_keep(exchange->set->idempotency, admission->entry, out->data + from, out->length - from);
    if (!buf_ok(out)) admission->broken = true;
}

void exchange_kept(struct exchange *exchange)
{
    struct admission *admission = &exchange->admission;
    if (!admission->entry) return;
    idempotency_done(exchange->set->idempotency, admission->entry, api_call_streams(exchange->call),
                     !admission->broken);
    admission->entry = NULL;
    exchange->set->joins_due = true;
}

/* Its client has left: the rest of the answer, for who comes back for it. */
void exchange_keep_rest(struct exchange *exchange)
{
    struct buf rest;
    if (!exchange->admission.entry) return;
    buf_init(&rest, 0);
    exchange_finish_text(exchange, &rest);
    exchange_keep(exchange, &rest, 0);
    buf_free(&rest);
    exchange_kept(exchange);
}

bool exchange_is_kept(const struct exchange *exchange)
{
    return exchange->admission.entry != NULL;
}

/* ---- rate limits ---- */

static uint64_t estimate(const struct exchange *exchange)
{
    uint32_t count;
    uint64_t tokens = 0;
    const struct request *requests = api_call_requests(exchange->call, &count);
    for (uint32_t i = 0; i < count; i++)
        tokens += requests[i].prompt_count + (uint64_t)requests[i].max_tokens * requests[i].choices_count;
    return tokens;
}

static void refuse_rate(struct exchange *exchange, enum rate_verdict verdict, const struct rate_limits *own,
                        uint32_t retry_ms)
{
    struct api_error *error = &exchange->error;
    if (verdict == RATE_FULL) {
        refusal_error(REFUSE_OVERLOADED, exchange_retry_after(0, exchange->request_id), error);
    } else if (verdict == RATE_CONCURRENCY) {
        api_error_set(error, 429, "requests", "rate_limit_exceeded", NULL,
                      "Rate limit reached: this key may have %" PRIu32 " requests at a time.", own->concurrency);
    } else {
        struct buf wait;
        bool tokens = verdict == RATE_TOKENS;
        buf_init(&wait, 0);
        rate_duration((uint64_t)retry_ms * NS_PER_MS, &wait);
        buf_append_char(&wait, '\0');
        api_error_set(error, 429, tokens ? "tokens" : "requests", "rate_limit_exceeded", NULL,
                      "Rate limit reached for %s: limit %" PRIu64 ", requested %" PRIu64 ". Please try again in %s.",
                      tokens ? "tokens per min (TPM)" : "requests per min (RPM)", tokens ? own->tpm : own->rpm,
                      tokens ? exchange->admission.tokens : 1, buf_ok(&wait) ? wait.data : "a while");
        buf_free(&wait);
    }
    if (!error->retry_after_ms) error->retry_after_ms = retry_ms ? retry_ms : 1;
    if (exchange->served) exchange->served->metrics.rate_limited++;
    exchange_fail(exchange, error);
}

static enum admission_verdict admit_rate(struct exchange *exchange)
{
    struct exchanges *set = exchange->set;
    struct admission *admission = &exchange->admission;
    uint32_t retry_ms = RETRY_AFTER_MS_MIN;
    if (!is_limited(&exchange->caller)) return ADMITTED;
    struct rate_limits own = limits_of(&exchange->caller);
    enum rate_verdict verdict = RATE_FULL;
    admission->tokens = estimate(exchange);
    if (need_rates(set))
        verdict = rate_admit(set->rates, exchange->caller.key, &own, admission->tokens, clock_ns(), &retry_ms);
    if (exchange->conn) exchanges_tell_limits(set, http_conn_request(exchange->conn));
    admission->counted = verdict == RATE_OK;
    if (verdict == RATE_OK) return ADMITTED;
    refuse_rate(exchange, verdict, &own, retry_ms);
    return ADMISSION_OVER;
}

/* ---- the whole ---- */

enum admission_verdict exchange_admit(struct exchange *exchange)
{
    struct admission *admission = &exchange->admission;
    if (admission->passed) return ADMITTED;
    enum admission_verdict verdict = ADMITTED;
    if (admission->has_key && !exchange->inner && !admission->entry) verdict = admit_key(exchange);
    if (verdict == ADMITTED) verdict = admit_rate(exchange);
    admission->passed = verdict == ADMITTED;
    return verdict;
}

/* Whether any of it stays on a bill: then a retry must not run. */
static bool was_billed(const struct exchange *exchange)
{
    for (uint32_t i = 0; i < exchange->submitted; i++)
        if (exchange->requests[i].scheduled_ns && cause_is_charged(exchange->requests[i].usage.cause, false, false))
            return true;
    return false;
}

void exchange_admission_end(struct exchange *exchange)
{
    struct exchanges *set = exchange->set;
    struct admission *admission = &exchange->admission;
    if (admission->entry) {
        if (was_billed(exchange))
            idempotency_done(set->idempotency, admission->entry, false, false);
        else
            idempotency_forget(set->idempotency, admission->entry);
        admission->entry = NULL;
        set->joins_due = true;
    }
    if (!admission->counted) return;
    struct usage usage = exchange->submitted ? api_call_usage(exchange->call) : (struct usage){0};
    rate_end(set->rates, exchange->caller.key, admission->tokens, (uint64_t)usage.in_total + usage.out, clock_ns());
    admission->counted = false;
}

void exchanges_forget_all(struct exchanges *set)
{
    rates_destroy(set->rates);
    idempotency_destroy(set->idempotency);
    set->rates = NULL;
    set->idempotency = NULL;
}
