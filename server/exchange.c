/* See exchange.h for the life of an exchange and the rules E1-E7. */
#include "server/exchange.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/http_route.h"

#include <string.h>

enum { RETRY_AFTER_MS_MIN = 1000, RETRY_AFTER_MS_MAX = 60000 };

/* E6; values: serving design, section 11. */
enum { COALESCE_WRITES_PER_S = 5000, COALESCE_TOKENS = 8, COALESCE_MS = 20, COALESCE_WINDOW_MS = 100 };

struct exchange {
    struct exchanges *set;
    struct exchange *previous, *next;
    struct exchange *next_touched;
    struct http_conn *conn; /* NULL: gone, or answered */
    enum exchange_kind kind;
    uint32_t tenant;
    const char *tenant_name;
    struct buf body;          /* until the pool has read it for a model that is ready; counted for C8 */
    struct served *served;    /* whom the call is for, used (E7); NULL: not known, or not ready */
    struct served *waits_for; /* pinned: asleep, to be woken */
    struct served *candidates[MODELS_MAX];
    const struct api_model *candidate_models[MODELS_MAX];
    bool candidate_ready[MODELS_MAX];
    struct api_models models; /* of the candidates; what the body named */
    uv_work_t work;
    bool in_pool, prepared, touched, streaming, head_sent, failed, bytes_sent, has_tokens;
    bool cancel_wanted; /* not all requests of it have been told */
    enum cause cancel_cause;
    struct api_call *call;
    struct request *requests;
    uint32_t requests_count, submitted, alive, scheduled;
    uint64_t *last_token_ns; /* [choices over all requests], for the gap between tokens */
    uint64_t arrived_ns;
    uint64_t sent_ns;       /* when tokens were last written */
    uint32_t tokens_held;   /* events of tokens since then */
    uint64_t written_ns;    /* virtual: when the stream last got bytes, or was accepted */
    struct api_error error; /* failed: what the client gets */
    struct buf answer;      /* tokenize, detokenize */
    int answer_status;
    char request_id[HTTP_REQUEST_ID_MAX + 1];
};

static uint64_t clock_ns(void)
{
    return clock_now_ns(clock_system());
}

/* ---- the end ---- */

static void write_usage(struct exchange *exchange)
{
    if (exchange->scheduled == 0) return; /* E4 */
    struct usage_record record = {.unseen = !exchange->bytes_sent};
    strncpy(record.call_id, api_call_id(exchange->call), sizeof record.call_id - 1);
    strncpy(record.request_id, exchange->request_id, sizeof record.request_id - 1);
    strncpy(record.tenant, exchange->tenant_name, sizeof record.tenant - 1);
    strncpy(record.model, exchange->served->names.items[0], sizeof record.model - 1);
    for (uint32_t i = 0; i < exchange->submitted; i++)
        if (exchange->requests[i].scheduled_ns) usage_record_add(&record, &exchange->requests[i].usage);
    if (record.requests == 0) return;
    record.unseen = record.unseen && record.sum.cause == CAUSE_CLIENT_GONE;
    struct buf line;
    buf_init(&line, 0);
    usage_record_print(&record, &line);
    buf_append_char(&line, '\0');
    if (buf_ok(&line)) log_line(LOG_INFO, "usage", "%s", line.data);
    buf_free(&line);
    metrics_usage(&exchange->served->metrics, &record);
}

static void drop_body(struct exchange *exchange)
{
    http_server_body_freed(exchange->set->http, exchange->body.length);
    buf_free(&exchange->body);
}

static void destroy(struct exchange *exchange)
{
    struct exchanges *set = exchange->set;
    if (exchange->previous)
        exchange->previous->next = exchange->next;
    else
        set->all = exchange->next;
    if (exchange->next) exchange->next->previous = exchange->previous;
    set->count--;
    if (exchange->call) api_call_destroy(exchange->call);
    drop_body(exchange);
    buf_free(&exchange->answer);
    mem_free(exchange->last_token_ns);
    if (exchange->served) served_leave(exchange->served);
    mem_free(exchange);
    if (set->count == 0 && set->emptied) set->emptied(set->state);
}

/* E1 */
static bool may_end(const struct exchange *exchange)
{
    return !exchange->in_pool && exchange->alive == 0 && !exchange->touched && !exchange->waits_for;
}

/* Gives the model that it waits for back to the caller, with the pin. Waiting it counts as being prepared. */
static struct served *stop_waiting(struct exchange *exchange)
{
    struct served *served = exchange->waits_for;
    if (served) exchange->set->preparing--;
    exchange->waits_for = NULL;
    return served;
}

static void wait_no_more(struct exchange *exchange)
{
    struct served *served = stop_waiting(exchange);
    if (served) served_unpin(served);
}

static void reply_error(struct exchange *exchange, const struct api_error *error)
{
    struct http_conn *conn = exchange->conn;
    if (!conn) return;
    exchange->conn = NULL;
    struct buf body;
    buf_init(&body, 0);
    api_error_body(error, &body);
    http_conn_reply(conn, &(struct http_reply){.status = error->http_status,
                                               .body = &body,
                                               .retry_after_ms = error->retry_after_ms,
                                               .close = exchange->set->aborting});
    buf_free(&body);
}

/* The client's side of a failure; the engine's side may still be running. */
static void fail(struct exchange *exchange, const struct api_error *error)
{
    exchange->failed = true;
    if (!exchange->conn) return;
    if (!exchange->head_sent) {
        reply_error(exchange, error);
        return;
    }
    struct http_conn *conn = exchange->conn;
    exchange->conn = NULL;
    api_call_fail(exchange->call, error, http_conn_out(conn));
    http_conn_send(conn);
    http_conn_stream_end(conn, false);
}

static void try_cancel(struct exchange *exchange)
{
    exchange->cancel_wanted = false;
    for (uint32_t i = 0; i < exchange->submitted; i++) {
        struct request *request = &exchange->requests[i];
        if (request->owner && !engine_cancel(exchange->served->engine, request->id, exchange->cancel_cause))
            exchange->cancel_wanted = true; /* E5 */
    }
}

static void cancel(struct exchange *exchange, enum cause cause)
{
    if (exchange->alive == 0) return;
    exchange->cancel_cause = cause;
    try_cancel(exchange);
}

/* Between 1 and 60 s, spread by the request's id so that refused clients do not come back together. */
static uint32_t retry_after(uint64_t wait_ns, const char *id)
{
    uint64_t wait_ms = wait_ns / NS_PER_MS;
    if (wait_ms < RETRY_AFTER_MS_MIN) wait_ms = RETRY_AFTER_MS_MIN;
    if (wait_ms > RETRY_AFTER_MS_MAX) wait_ms = RETRY_AFTER_MS_MAX;
    wait_ms += wait_ms / 5 * (hash_bytes(id, strlen(id), 0) % 1000) / 1000;
    return wait_ms > RETRY_AFTER_MS_MAX ? RETRY_AFTER_MS_MAX : (uint32_t)wait_ms;
}

bool exchanges_have_room(struct exchanges *set, const char *request_id, uint32_t *retry_after_ms)
{
    const struct models *models = set->models;
    struct served *full = NULL;
    uint64_t wait_ns = UINT64_MAX;
    bool others = set->preparing < set->queue_max; /* that sleep, or come up meanwhile */
    for (uint32_t i = 0; i < models->count; i++) {
        struct served *served = models->items[i];
        struct engine_stats stats;
        if (served->life.state != MODEL_READY) continue;
        engine_stats_read(served->engine, &stats);
        if ((uint64_t)stats.waiting + set->preparing < set->queue_max) return true;
        if (stats.queue_wait_estimate_ns >= wait_ns) continue;
        wait_ns = stats.queue_wait_estimate_ns;
        full = served;
    }
    if (others && models_serving(models) > models_in(models, MODEL_READY)) return true;
    if (full) full->metrics.rejected_requests++;
    *retry_after_ms = retry_after(full ? wait_ns : 0, request_id);
    return false;
}

/* ---- the pool's part ---- */

static void work_in_pool(uv_work_t *work)
{
    struct exchange *exchange = work->data;
    const char *body = exchange->body.data ? exchange->body.data : "";
    size_t length = exchange->body.length;
    if (exchange->kind == EXCHANGE_TOKENIZE) {
        exchange->answer_status = api_tokenize(&exchange->models, body, length, &exchange->answer);
        return;
    }
    if (exchange->kind == EXCHANGE_DETOKENIZE) {
        exchange->answer_status = api_detokenize(&exchange->models, body, length, &exchange->answer);
        return;
    }
    uint64_t now_ns = clock_ns();
    struct api_context context = {
        .models = &exchange->models,
        .tenant = exchange->tenant,
        .tenant_name = exchange->tenant_name,
        .now_unix_s = clock_unix_us(clock_system()) / 1000000,
        .now_ns = now_ns,
        .deadline_ns = exchange->arrived_ns + limits.request_deadline_ms * NS_PER_MS,
    };
    enum api_kind kind = exchange->kind == EXCHANGE_CHAT ? API_CHAT : API_COMPLETIONS;
    exchange->prepared = api_call_create(kind, body, length, &context, &exchange->call, &exchange->error) &&
                         api_call_prepare(exchange->call, &exchange->error);
}

/* E7 */
static void take_candidates(struct exchange *exchange)
{
    const struct models *models = exchange->set->models;
    for (uint32_t i = 0; i < models->count; i++) {
        struct served *served = models->items[i];
        exchange->candidates[i] = served;
        exchange->candidate_models[i] = &served->model;
        exchange->candidate_ready[i] = served->life.state == MODEL_READY;
        if (exchange->candidate_ready[i])
            served_use(served);
        else
            served_pin(served);
    }
    exchange->models = (struct api_models){.items = exchange->candidate_models,
                                           .count = models->count,
                                           .ready = exchange->candidate_ready,
                                           .picked = models->count};
}

/* Lets go of all but the one that the body named, which becomes exchange->served or, not ready, *asleep with a pin. */
static void drop_candidates(struct exchange *exchange, struct served **asleep)
{
    uint32_t picked = exchange->models.picked;
    *asleep = NULL;
    for (uint32_t i = 0; i < exchange->models.count; i++) {
        struct served *served = exchange->candidates[i];
        if (i == picked && exchange->candidate_ready[i])
            exchange->served = served;
        else if (i == picked)
            *asleep = served;
        else if (exchange->candidate_ready[i])
            served_leave(served);
        else
            served_unpin(served);
    }
    exchange->models.count = 0;
}

static void work_done(uv_work_t *work, int status);

static bool enter_pool(struct exchange *exchange)
{
    struct exchanges *set = exchange->set;
    take_candidates(exchange);
    exchange->in_pool = true;
    if (uv_queue_work(set->loop, &exchange->work, work_in_pool, work_done) == 0) return true;
    struct served *asleep;
    exchange->in_pool = false;
    drop_candidates(exchange, &asleep); /* it has picked none */
    return false;
}

static void refuse(struct exchange *exchange, enum refusal refusal, uint64_t wait_ns)
{
    refusal_error(refusal, retry_after(wait_ns, exchange->request_id), &exchange->error);
    fail(exchange, &exchange->error);
}

/* Once more into the pool: its model was not ready before. */
static void go_on(struct exchange *exchange)
{
    buf_clear(&exchange->answer);
    if (exchange->failed || !exchange->conn) return;
    if (enter_pool(exchange))
        exchange->set->preparing++;
    else
        refuse(exchange, REFUSE_NO_MEMORY, 0);
}

/* A call for a model that was not ready when the pool read it; takes over the pin. */
static void await(struct exchange *exchange, struct served *served)
{
    struct models *models = exchange->set->models;
    struct error err;
    enum model_verdict verdict;
    uint64_t left_ns = model_life_wake_estimate_ns(&served->life, clock_ns());
    switch (model_life_answer(&served->life, exchange->set->auto_wake)) {
    case MODEL_SERVES: go_on(exchange); break;
    case MODEL_WAKES:
        if (models->stopping) {
            refuse(exchange, REFUSE_DRAINING, 0);
        } else if (models_wake(served, &verdict, &err) == ST_OK) {
            exchange->waits_for = served;
            exchange->set->preparing++;
            return;
        } else {
            refuse(exchange, REFUSE_MODEL_MEMORY, 0);
        }
        break;
    case MODEL_SLEEPS: refuse(exchange, REFUSE_MODEL_ASLEEP, left_ns); break;
    case MODEL_LOADS: refuse(exchange, REFUSE_LOADING, left_ns); break;
    case MODEL_LEAVES: refuse(exchange, REFUSE_MODEL_LEAVING, 0); break;
    case MODEL_HAS_FAILED: refuse(exchange, REFUSE_MODEL_FAILED, 0); break;
    }
    served_unpin(served);
}

void exchanges_settled(struct exchanges *set, struct served *served)
{
    for (struct exchange *exchange = set->all, *next; exchange; exchange = next) {
        next = exchange->next;
        if (exchange->waits_for != served) continue;
        await(exchange, stop_waiting(exchange));
        if (may_end(exchange) && !exchange->conn) destroy(exchange);
    }
}

void exchanges_cut(struct exchanges *set, const struct served *served)
{
    struct api_error error;
    refusal_error(REFUSE_MODEL_LEAVING, RETRY_AFTER_MS_MIN, &error);
    for (struct exchange *exchange = set->all, *next; exchange; exchange = next) {
        next = exchange->next;
        if (exchange->served != served || exchange->failed) continue;
        cancel(exchange, CAUSE_PLATFORM_CANCEL);
        fail(exchange, &error);
        if (may_end(exchange)) destroy(exchange);
    }
}

static void submit_all(struct exchange *exchange)
{
    struct exchanges *set = exchange->set;
    exchange->requests = api_call_requests(exchange->call, &exchange->requests_count);
    exchange->streaming = api_call_streams(exchange->call);
    uint32_t choices = 0;
    for (uint32_t i = 0; i < exchange->requests_count; i++) choices += exchange->requests[i].choices_count;
    exchange->last_token_ns = mem_alloc(choices, sizeof *exchange->last_token_ns);
    enum status status = exchange->last_token_ns ? ST_OK : ST_NOMEM;
    for (uint32_t i = 0; i < exchange->requests_count && status == ST_OK; i++) {
        struct request *request = &exchange->requests[i];
        request->id = ++set->next_request_id;
        request->owner = exchange;
        status = engine_submit(exchange->served->engine, request);
        if (status == ST_OK) {
            exchange->submitted++;
            exchange->alive++;
        }
    }
    if (status == ST_OK) return;
    struct engine_stats stats;
    engine_stats_read(exchange->served->engine, &stats);
    refusal_error(status == ST_NOMEM ? REFUSE_NO_MEMORY : REFUSE_OVERLOADED,
                  retry_after(stats.queue_wait_estimate_ns, exchange->request_id), &exchange->error);
    exchange->served->metrics.rejected_requests++;
    cancel(exchange, CAUSE_PLATFORM_CANCEL);
    fail(exchange, &exchange->error);
}

static void reply_answer(struct exchange *exchange)
{
    struct http_conn *conn = exchange->conn;
    if (!conn) return;
    exchange->conn = NULL;
    bool ok = buf_ok(&exchange->answer);
    if (ok) {
        http_conn_reply(conn, &(struct http_reply){.status = exchange->answer_status, .body = &exchange->answer});
        return;
    }
    exchange->conn = conn;
    refusal_error(REFUSE_NO_MEMORY, RETRY_AFTER_MS_MIN, &exchange->error);
    reply_error(exchange, &exchange->error);
}

static void work_done(uv_work_t *work, int status)
{
    struct exchange *exchange = work->data;
    struct exchanges *set = exchange->set;
    struct served *asleep;
    exchange->in_pool = false;
    set->preparing--;
    drop_candidates(exchange, &asleep);
    if (!asleep || !exchange->conn || exchange->failed) drop_body(exchange);
    if (status == UV_ECANCELED || !exchange->conn || exchange->failed) {
        if (asleep) served_unpin(asleep); /* nobody waits for it any more */
    } else if (asleep) {
        await(exchange, asleep);
    } else if (exchange->kind == EXCHANGE_TOKENIZE || exchange->kind == EXCHANGE_DETOKENIZE) {
        reply_answer(exchange);
    } else if (!exchange->prepared) {
        fail(exchange, &exchange->error);
    } else {
        submit_all(exchange);
    }
    if (may_end(exchange)) destroy(exchange);
}

void exchange_start(struct exchanges *set, enum exchange_kind kind, struct http_conn *conn, uint32_t tenant,
                    const char *tenant_name)
{
    struct exchange *exchange = mem_alloc(1, sizeof *exchange);
    struct http_request *request = http_conn_request(conn);
    if (exchange) {
        exchange->set = set;
        exchange->kind = kind;
        exchange->conn = conn;
        exchange->tenant = tenant;
        exchange->tenant_name = tenant_name;
        exchange->arrived_ns = clock_ns();
        exchange->written_ns = UINT64_MAX; /* the next tick says when */
        http_conn_take_body(conn, &exchange->body);
        buf_init(&exchange->answer, (size_t)limits.api_request_memory_bytes);
        memcpy(exchange->request_id, request->id, sizeof exchange->request_id);
        exchange->work.data = exchange;
        exchange->next = set->all;
        if (exchange->next) exchange->next->previous = exchange;
        set->all = exchange;
        set->count++;
        http_conn_user_set(conn, exchange);
        if (enter_pool(exchange)) {
            set->preparing++;
            return;
        }
        exchange->conn = NULL;
        destroy(exchange);
    }
    struct api_error error;
    refusal_error(REFUSE_NO_MEMORY, RETRY_AFTER_MS_MIN, &error);
    struct buf body;
    buf_init(&body, 0);
    api_error_body(&error, &body);
    http_conn_reply(
        conn, &(struct http_reply){.status = error.http_status, .body = &body, .retry_after_ms = error.retry_after_ms});
    buf_free(&body);
}

/* ---- events and rendering ---- */

static void begin_stream(struct exchange *exchange)
{
    http_conn_stream_begin(exchange->conn);
    exchange->head_sent = true;
}

static void finish(struct exchange *exchange)
{
    struct http_conn *conn = exchange->conn;
    exchange->conn = NULL;
    exchange->bytes_sent = true;
    if (exchange->streaming) {
        if (!exchange->head_sent) http_conn_stream_begin(conn);
        api_call_finish(exchange->call, http_conn_out(conn));
        http_conn_stream_end(conn, true);
        return;
    }
    struct buf body;
    buf_init(&body, 0);
    api_call_finish(exchange->call, &body);
    if (buf_ok(&body)) {
        http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &body});
    } else {
        exchange->conn = conn;
        refusal_error(REFUSE_NO_MEMORY, RETRY_AFTER_MS_MIN, &exchange->error);
        reply_error(exchange, &exchange->error);
    }
    buf_free(&body);
}

/* E6: counts a write, and decides anew in each window. */
static void count_write(struct exchanges *set, uint64_t now_ns)
{
    uint64_t passed_ms = (now_ns - set->window_ns) / NS_PER_MS;
    if (passed_ms >= COALESCE_WINDOW_MS) {
        set->coalescing = (uint64_t)set->window_writes * 1000 / passed_ms > COALESCE_WRITES_PER_S;
        set->window_ns = now_ns;
        set->window_writes = 0;
    }
    set->window_writes++;
}

static bool hold_back(const struct exchange *exchange, uint64_t now_ns)
{
    return exchange->set->coalescing && exchange->head_sent && exchange->tokens_held < COALESCE_TOKENS &&
           now_ns - exchange->sent_ns < COALESCE_MS * NS_PER_MS;
}

/* Everything that is known and not yet sent, if the connection can take it. */
static void render(struct exchange *exchange)
{
    if (!exchange->conn || exchange->failed || !exchange->call) return;
    if (exchange->alive == 0) {
        if (!exchange->streaming || http_conn_writable(exchange->conn)) finish(exchange);
        return;
    }
    if (!exchange->streaming || !http_conn_writable(exchange->conn)) return; /* C2: later, by exchange_writable */
    if (!exchange->head_sent && !exchange->has_tokens) return;               /* E3 */
    uint64_t now_ns = clock_ns();
    if (hold_back(exchange, now_ns)) return;
    if (!exchange->head_sent) begin_stream(exchange);
    exchange->tokens_held = 0;
    exchange->sent_ns = now_ns;
    count_write(exchange->set, now_ns);
    struct buf *out = http_conn_out(exchange->conn);
    size_t before = out->length;
    api_call_render(exchange->call, out);
    if (out->length > before) {
        exchange->bytes_sent = true;
        exchange->written_ns = UINT64_MAX; /* the next tick says when */
    }
    http_conn_send(exchange->conn);
}

/* With a slow reader the answer outlives the engine's requests: the exchange stays until all is rendered. */
static void settle(struct exchange *exchange)
{
    render(exchange);
    if (may_end(exchange) && (!exchange->conn || exchange->failed)) destroy(exchange);
}

static uint64_t *token_clock(struct exchange *exchange, const struct event *event)
{
    uint32_t idx = event->choice;
    for (struct request *request = exchange->requests; request != event->request; request++)
        idx += request->choices_count;
    return &exchange->last_token_ns[idx];
}

static void count_tokens(struct exchange *exchange, const struct event *event, uint64_t now_ns)
{
    struct metrics *metrics = &exchange->served->metrics;
    uint64_t *last_ns = token_clock(exchange, event);
    if (event->output_count == 0) return;
    exchange->has_tokens = true;
    exchange->tokens_held++;
    if (*last_ns)
        metrics_observe(metrics, HISTOGRAM_INTER_TOKEN, (double)(now_ns - *last_ns) / 1e9);
    else if (event->choice == 0)
        metrics_observe(metrics, HISTOGRAM_TIME_TO_FIRST_TOKEN, (double)(now_ns - exchange->arrived_ns) / 1e9);
    *last_ns = now_ns;
}

static void take_refusal(struct exchange *exchange, const struct event *event)
{
    struct metrics *metrics = &exchange->served->metrics;
    if (event->status == ST_LIMIT) metrics->rejected_requests++;
    if (event->status == ST_QUOTA) metrics->rate_limited++;
    if (exchange->failed) return;
    struct engine_stats stats;
    engine_stats_read(exchange->served->engine, &stats);
    api_error_from_status(event->status, retry_after(stats.queue_wait_estimate_ns, exchange->request_id),
                          &exchange->error);
    cancel(exchange, CAUSE_PLATFORM_CANCEL);
    fail(exchange, &exchange->error);
}

static void take_event(struct exchange *exchange, const struct event *event, uint64_t now_ns)
{
    if (event->kind == REQUEST_REFUSED || event->kind == REQUEST_DONE) {
        CHECK(exchange->alive > 0);
        exchange->alive--;
        event->request->owner = NULL;
    }
    if (event->kind == REQUEST_REFUSED) {
        take_refusal(exchange, event);
        if (exchange->alive == 0) write_usage(exchange); /* another prompt of the call may have run */
        return;
    }
    api_call_event(exchange->call, event);
    if (event->kind == REQUEST_SCHEDULED) exchange->scheduled++;
    if (event->kind == CHOICE_TOKENS) count_tokens(exchange, event, now_ns);
    if (event->kind != REQUEST_DONE) return;
    if (event->request->scheduled_ns) metrics_request_done(&exchange->served->metrics, event->request);
    if (event->status != ST_OK && !exchange->failed && event->status != ST_CANCELED) {
        api_error_from_status(event->status, RETRY_AFTER_MS_MIN, &exchange->error);
        cancel(exchange, CAUSE_PLATFORM_CANCEL);
        fail(exchange, &exchange->error);
    }
    if (exchange->alive == 0) write_usage(exchange);
}

/* The events of one engine; puts the exchanges they touched in front of *touched. */
static void poll_engine(struct served *served, uint64_t now_ns, struct exchange **touched)
{
    struct engine_stats stats;
    struct event event;
    while (engine_poll(served->engine, &event)) {
        struct exchange *exchange = event.request->owner;
        CHECK(exchange != NULL && exchange->served == served);
        take_event(exchange, &event, now_ns);
        if (!exchange->touched) {
            exchange->touched = true;
            exchange->next_touched = *touched;
            *touched = exchange;
        }
    }
    engine_stats_read(served->engine, &stats);
    if (stats.steps != served->steps_seen)
        metrics_observe(&served->metrics, HISTOGRAM_ITERATION, stats.last_step_tokens);
    served->steps_seen = stats.steps;
}

void exchanges_poll(struct exchanges *set)
{
    struct exchange *touched = NULL;
    uint64_t now_ns = clock_ns();
    for (uint32_t i = 0; i < set->models->count; i++)
        if (set->models->items[i]->engine) poll_engine(set->models->items[i], now_ns, &touched);
    while (touched) { /* E2 */
        struct exchange *exchange = touched;
        touched = exchange->next_touched;
        exchange->touched = false;
        settle(exchange);
    }
}

void exchange_writable(struct exchange *exchange)
{
    if (!exchange->touched) settle(exchange);
}

void exchange_gone(struct exchange *exchange)
{
    exchange->conn = NULL;
    wait_no_more(exchange);
    if (exchange->in_pool) (void)uv_cancel((uv_req_t *)&exchange->work); /* if it has begun, work_done finds nobody */
    cancel(exchange, CAUSE_CLIENT_GONE);
    if (may_end(exchange)) destroy(exchange);
}

/* ---- time ---- */

void exchanges_tick(struct exchanges *set, uint64_t now_ns)
{
    for (struct exchange *exchange = set->all, *next; exchange; exchange = next) {
        next = exchange->next;
        if (exchange->cancel_wanted) try_cancel(exchange);
        if (exchange->written_ns == UINT64_MAX) exchange->written_ns = now_ns;
        if (!exchange->conn || !exchange->streaming || exchange->alive == 0) continue;
        if (exchange->head_sent && exchange->tokens_held > 0) render(exchange);
        uint64_t quiet_ns = now_ns - exchange->written_ns;
        if (!exchange->head_sent && quiet_ns > set->head_after_ns) {
            begin_stream(exchange);
            http_conn_send(exchange->conn);
            exchange->written_ns = now_ns;
        } else if (exchange->head_sent && quiet_ns > set->keep_alive_ns && http_conn_writable(exchange->conn)) {
            buf_append_text(http_conn_out(exchange->conn), ": keep-alive\n\n");
            http_conn_send(exchange->conn);
            exchange->written_ns = now_ns;
        }
    }
}

void exchanges_abort(struct exchanges *set)
{
    set->aborting = true;
    struct api_error error;
    refusal_error(REFUSE_DRAINING, RETRY_AFTER_MS_MIN, &error);
    for (struct exchange *exchange = set->all, *next; exchange; exchange = next) {
        next = exchange->next;
        if (exchange->failed) continue;
        wait_no_more(exchange);
        if (exchange->in_pool) (void)uv_cancel((uv_req_t *)&exchange->work);
        cancel(exchange, CAUSE_PLATFORM_CANCEL);
        fail(exchange, &error);
        if (may_end(exchange)) destroy(exchange);
    }
}

void exchanges_free(struct exchanges *set)
{
    set->emptied = NULL;
    while (set->all) {
        CHECK(!set->all->in_pool);
        wait_no_more(set->all);
        destroy(set->all);
    }
}
