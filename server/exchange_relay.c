/* A call that another server answers, as an exchange; rules U1-U8 in server/upstream/README.md.
 *
 *   pool: relay_ask_read -> admitted, held as any call -> submit: relay_call_start -> on_bytes: text, rendered when
 *   writable -> on_ended -> counts of the one request -> [meter: OPEN, FINAL] -> REQUEST_DONE -> usage, end
 *
 * The request that is billed has no engine: what an engine would have told of it is told to the meter when the upstream
 * has told its usage, at the end. A journal's OPEN and FINAL are in one commit, so a crash before it leaves no record,
 * which charges as little as the record of a crash would. */
#include "server/exchange_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/upstream/relay_answer.h"
#include "server/upstream/relay_ask.h"
#include "server/upstream/relay_link.h"

#include <string.h>

enum { ERROR_BYTES_MAX = 16384, MESSAGE_BYTES_MAX = 300 };

struct relay {
    struct relay_ask ask;
    struct relay_answer answer;
    struct relay_call *call; /* under way */
    struct exchange *next_over;
    struct buf error_body; /* of another status than 200 */
    uint64_t begun_ns, first_ns;
};

/* ---- before it is sent ---- */

bool exchange_relay_prepare(struct exchange *exchange, enum api_kind kind, const struct api_context *context)
{
    struct relay *relay = mem_alloc(1, sizeof *relay);
    const struct upstreams *upstreams = exchange->set->upstreams;
    const struct upstream_model *model = &upstreams->models[exchange->models.far_picked - 1];
    if (!relay) {
        refusal_error(REFUSE_NO_MEMORY, RETRY_AFTER_MS_MIN, &exchange->error);
        return false;
    }
    exchange->relay = relay;
    relay_answer_init(&relay->answer);
    buf_init(&relay->error_body, ERROR_BYTES_MAX);
    if (!relay_ask_read(&relay->ask, model, kind, exchange->body.data ? exchange->body.data : "", exchange->body.length,
                        &exchange->error))
        return false;
    const struct relay_ask *ask = &relay->ask;
    struct api_relayed what = {.kind = kind,
                               .stream = ask->stream,
                               .choices = ask->choices,
                               .max_tokens = ask->max_tokens,
                               .prompt_max = ask->prompt_max};
    return api_call_create_relayed(&what, context, &exchange->call, &exchange->error);
}

const char *exchange_relay_model(const struct exchange *exchange)
{
    return exchange->relay->ask.model->name;
}

static struct upstream *upstream_of(const struct exchange *exchange)
{
    return exchange->relay->ask.model->upstream;
}

void exchange_relay_free(struct exchange *exchange)
{
    struct relay *relay = exchange->relay;
    if (!relay) return;
    relay_ask_free(&relay->ask);
    relay_answer_free(&relay->answer);
    buf_free(&relay->error_body);
    mem_free(relay);
    exchange->relay = NULL;
}

/* ---- its end ---- */

/* What it used: as told, at most what was asked for (U4); untold, what was seen of it (U6). */
static void fill_usage(struct exchange *exchange, enum cause cause)
{
    struct relay *relay = exchange->relay;
    struct request *request = exchange->requests;
    const struct relay_counts *counts = &relay->answer.counts;
    uint64_t out_max = (uint64_t)relay->ask.max_tokens * request->choices_count;
    struct usage usage = {.cause = cause, .choices = request->choices_count};
    usage.estimated = !relay->answer.has_usage;
    usage.out = usage.estimated ? relay->answer.deltas : counts->out;
    if (!usage.estimated) {
        usage.in_total = counts->in_total;
        usage.in_hit = counts->in_hit;
        usage.out_reasoning = counts->out_reasoning;
    }
    if (usage.out > out_max) {
        usage.out = (uint32_t)out_max;
        usage.mismatch = true;
        if (usage.out_reasoning > usage.out) usage.out_reasoning = usage.out;
    }
    request->usage = usage;
    request->submitted_ns = request->scheduled_ns = relay->begun_ns;
    request->first_token_ns = relay->first_ns;
    request->done_ns = clock_ns();
}

/* It has a record: REQUEST_DONE comes of it, when that is durable. */
static void give_over(struct exchange *exchange, enum cause cause)
{
    struct exchanges *set = exchange->set;
    fill_usage(exchange, cause);
    exchange->relay->next_over = NULL;
    struct exchange **end = &set->relays_over;
    while (*end) end = &(*end)->relay->next_over;
    *end = exchange;
    set->models->listener.wake(set->models->listener.state);
}

bool exchange_relay_next(struct exchanges *set, struct event *event)
{
    struct exchange *exchange;
    while ((exchange = set->relays_over)) {
        struct request *request = exchange->requests;
        *event = (struct event){.kind = REQUEST_DONE, .request = request};
        const struct event events[] = {
            {.kind = REQUEST_SCHEDULED, .request = request},
            {.kind = CHOICE_TOKENS, .request = request, .output_count = request->usage.out, .finish = FINISH_STOP},
            *event};
        if (request->charge && !meter_tell(set->relay_port, events, 3)) break; /* again at the next tick */
        set->relays_over = exchange->relay->next_over;
        if (!request->charge) return true;
    }
    return set->relay_port && meter_poll(set->relay_port, event);
}

static void count(struct exchange *exchange, enum upstream_outcome outcome)
{
    struct upstream *upstream = upstream_of(exchange);
    exchange->relay->call = NULL;
    upstream->running--;
    upstream->calls++;
    upstream->took_ns += clock_ns() - exchange->relay->begun_ns;
    upstream->outcomes[outcome]++;
}

static void set_error(struct exchange *exchange, enum upstream_outcome outcome, int http_status, int64_t retry_after_s)
{
    static const struct {
        int http_status;
        const char *code, *what;
    } table[UPSTREAM_OUTCOMES] = {
        [UPSTREAM_UNREACHABLE] = {502, "upstream_unreachable", "cannot be reached"},
        [UPSTREAM_TIMEOUT] = {504, "upstream_timeout", "has not answered in time"},
        [UPSTREAM_ERROR] = {502, "upstream_error", "has failed"},
        [UPSTREAM_GARBAGE] = {502, "upstream_garbage", "has answered with something else than the API says"},
        [UPSTREAM_TOO_LONG] = {502, "upstream_too_long", "has answered with more than is relayed"},
        [UPSTREAM_CUT] = {502, "upstream_cut", "has broken off in the midst of its answer"},
        [UPSTREAM_NO_USAGE] = {502, "upstream_no_usage", "has not told what its answer used"},
    };
    struct api_error *error = &exchange->error;
    const char *name = upstream_of(exchange)->name;
    if (outcome == UPSTREAM_REFUSED) {
        char message[MESSAGE_BYTES_MAX];
        const struct buf *body = &exchange->relay->error_body;
        relay_error_message(body->data ? body->data : "", body->length, message, sizeof message);
        api_error_set(error, http_status, "invalid_request_error", "upstream_refused", NULL,
                      "The server '%.100s' that serves this model refuses the request: %s", name,
                      *message ? message : "it does not say why.");
    } else if (outcome == UPSTREAM_ERROR && (http_status == 429 || http_status == 503)) {
        uint64_t wait_s = retry_after_s > 0 && retry_after_s < 3600 ? (uint64_t)retry_after_s : 1;
        api_error_set(error, 503, "server_error", "upstream_busy", NULL,
                      "The server '%.100s' that serves this model is busy. Please try again later.", name);
        error->retry_after_ms = exchange_retry_after(wait_s * NS_PER_S, exchange->request_id);
    } else {
        api_error_set(error, table[outcome].http_status, "server_error", table[outcome].code, NULL,
                      "The server '%.100s' that serves this model %s.", name, table[outcome].what);
    }
}

/* U5: nothing is charged; what was relayed is counted and waived. */
static void end_badly(struct exchange *exchange, enum upstream_outcome outcome, int http_status, int64_t retry_after_s)
{
    struct relay *relay = exchange->relay;
    count(exchange, outcome);
    log_line(LOG_WARN, "upstream", "name=%s outcome=%s status=%d request=%s", upstream_of(exchange)->name,
             upstream_outcome_name(outcome), http_status, exchange->request_id);
    set_error(exchange, outcome, http_status, retry_after_s);
    if (relay->answer.deltas > 0) {
        give_over(exchange, CAUSE_PLATFORM_ERROR);
        if (!exchange->failed) exchange_fail(exchange, &exchange->error);
        return;
    }
    exchange->requests->owner = NULL;
    exchange->alive = 0;
    if (!exchange->failed) exchange_fail(exchange, &exchange->error);
    if (exchange_may_end(exchange)) exchange_destroy(exchange);
}

static enum upstream_outcome outcome_of(enum answer_verdict verdict)
{
    switch (verdict) {
    case ANSWER_FINE: return UPSTREAM_DONE;
    case ANSWER_ERROR: return UPSTREAM_ERROR;
    case ANSWER_TOO_LONG:
    case ANSWER_NO_MEMORY: return UPSTREAM_TOO_LONG;
    case ANSWER_CUT: return UPSTREAM_CUT;
    case ANSWER_NO_USAGE: return UPSTREAM_NO_USAGE;
    case ANSWER_GARBAGE: break;
    }
    return UPSTREAM_GARBAGE;
}

static enum upstream_outcome outcome_of_status(int http_status)
{
    return http_status == 400 || http_status == 413 || http_status == 422 ? UPSTREAM_REFUSED : UPSTREAM_ERROR;
}

static void on_ended(void *state, enum relay_end end, int http_status, int64_t retry_after_s)
{
    struct exchange *exchange = state;
    struct relay_answer *answer = &exchange->relay->answer;
    enum upstream_outcome outcome;
    if (end == RELAY_TIMEOUT)
        outcome = UPSTREAM_TIMEOUT;
    else if (end == RELAY_UNREACHABLE)
        outcome = UPSTREAM_UNREACHABLE;
    else if (http_status != 200)
        outcome = outcome_of_status(http_status);
    else if (end == RELAY_BROKEN && !answer->over)
        outcome = UPSTREAM_CUT;
    else
        outcome = outcome_of(relay_answer_end(answer));
    if (outcome != UPSTREAM_DONE) {
        end_badly(exchange, outcome, http_status, retry_after_s);
        return;
    }
    count(exchange, outcome);
    give_over(exchange, answer->has_length_end ? CAUSE_LENGTH : CAUSE_STOP);
}

/* ---- while it runs ---- */

static void on_bytes(void *state, int http_status, const char *bytes, size_t length)
{
    struct exchange *exchange = state;
    struct relay *relay = exchange->relay;
    struct relay_answer *answer = &relay->answer;
    if (http_status != 200) {
        buf_append(&relay->error_body, bytes, length);
        return;
    }
    enum answer_verdict verdict = relay_answer_feed(answer, bytes, length);
    if (!relay->first_ns && answer->deltas > 0) relay->first_ns = clock_ns();
    if (verdict != ANSWER_FINE) {
        relay_call_cancel(relay->call);
        end_badly(exchange, outcome_of(verdict), http_status, 0);
        return;
    }
    if (!answer->stream || answer->text.length == 0) return;
    exchange->has_tokens = true;
    exchange->tokens_held++;
    exchange_writable(exchange); /* alive: it stays */
    if (exchange->conn && answer->text.length > limits.upstream_ahead_bytes) relay_call_pause(relay->call, true);
}

void exchange_relay_submit(struct exchange *exchange)
{
    struct relay *relay = exchange->relay;
    struct upstream *upstream = upstream_of(exchange);
    struct request *request = exchange->requests;
    bool chat = relay->ask.kind == API_CHAT;
    uint64_t timeout_ms = (uint64_t)upstream->timeout_s * 1000;
    if (upstream->running >= upstream->concurrency) {
        upstream->outcomes[UPSTREAM_FULL]++;
        refusal_error(REFUSE_OVERLOADED, exchange_retry_after(0, exchange->request_id), &exchange->error);
        exchange_fail(exchange, &exchange->error);
        return;
    }
    if (request->out_limit) relay_ask_lower(&relay->ask, request->out_limit); /* U3 */
    request->prompt_count = 0;                                                /* no ids of it are here */
    relay->answer.id = api_call_id(exchange->call);
    relay->answer.model = relay->ask.model->name;
    relay->answer.kind = relay->ask.kind;
    relay->answer.stream = relay->ask.stream;
    relay->answer.include_usage = relay->ask.include_usage;
    relay->answer.created_unix_s = clock_unix_us(clock_system()) / 1000000;
    relay->begun_ns = clock_ns();
    struct relay_wish wish = {.url = upstream->url,
                              .path = chat ? "/chat/completions" : "/completions",
                              .bearer = upstream->key,
                              .ca_file = upstream->ca_file,
                              .body = &relay->ask.body,
                              .timeout_ms =
                                  timeout_ms < limits.request_deadline_ms ? timeout_ms : limits.request_deadline_ms,
                              .state = exchange,
                              .bytes = on_bytes,
                              .ended = on_ended};
    relay->call = relay_call_start(exchange->set->relay_link, &wish);
    if (!relay->call) {
        refusal_error(REFUSE_NO_MEMORY, RETRY_AFTER_MS_MIN, &exchange->error);
        exchange_fail(exchange, &exchange->error);
        return;
    }
    upstream->running++;
    request->id = ++exchange->set->next_request_id;
    request->owner = exchange;
    exchange->submitted = exchange->alive = 1;
}

/* U7: of an answer whose ends have all come only its usage is missing, and that is read. */
void exchange_relay_cancel(struct exchange *exchange)
{
    struct relay *relay = exchange->relay;
    const struct relay_answer *answer = &relay->answer;
    bool client_gone = exchange->cancel_cause == CAUSE_CLIENT_GONE;
    if (!relay->call) return;
    if (client_gone && answer->stream && answer->finished >= exchange->requests->choices_count) {
        relay_call_pause(relay->call, false);
        return;
    }
    relay_call_cancel(relay->call);
    count(exchange, client_gone ? UPSTREAM_CLIENT_GONE : UPSTREAM_CANCELED);
    give_over(exchange, exchange->cancel_cause);
}

void exchange_relay_go_on(struct exchange *exchange)
{
    if (exchange->relay && exchange->relay->call) relay_call_pause(exchange->relay->call, false);
}

void exchange_relay_render(struct exchange *exchange, struct buf *out)
{
    struct buf *text = &exchange->relay->answer.text;
    if (text->length > 0) buf_append(out, text->data, text->length);
    buf_clear(text);
    exchange_relay_go_on(exchange);
}

void exchange_relay_finish(struct exchange *exchange, struct buf *out)
{
    struct usage usage = api_call_usage(exchange->call);
    exchange_relay_render(exchange, out);
    relay_answer_close_text(&exchange->relay->answer, &usage, out);
}
