/* Events, rendering, time and the end of an exchange; see exchange.h for its life and the rules E1-E7. */
#include "server/exchange_parts.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <string.h>

/* E6; values: serving design, section 11. */
enum { COALESCE_WRITES_PER_S = 5000, COALESCE_TOKENS = 8, COALESCE_MS = 20, COALESCE_WINDOW_MS = 100 };

/* ---- the end ---- */

static void write_usage(struct exchange *exchange)
{
    if (exchange->scheduled == 0) return; /* E4 */
    struct usage_record record = {.unseen = !exchange->bytes_sent};
    strncpy(record.call_id, api_call_id(exchange->call), sizeof record.call_id - 1);
    strncpy(record.request_id, exchange->request_id, sizeof record.request_id - 1);
    strncpy(record.tenant, exchange->caller.tenant_name, sizeof record.tenant - 1);
    strncpy(record.model, exchange->relay ? exchange_relay_model(exchange) : exchange->served->names.items[0],
            sizeof record.model - 1);
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
    if (exchange->served) metrics_usage(&exchange->served->metrics, &record);
}

void exchange_drop_body(struct exchange *exchange)
{
    if (!exchange->inner) http_server_body_freed(exchange->set->http, exchange->body.length);
    buf_free(&exchange->body);
}

void exchange_destroy(struct exchange *exchange)
{
    struct exchanges *set = exchange->set;
    if (exchange->previous)
        exchange->previous->next = exchange->next;
    else
        set->all = exchange->next;
    if (exchange->next) exchange->next->previous = exchange->previous;
    set->count--;
    exchange_admission_end(exchange);
    exchange_plan_end(exchange);
    if (exchange->call) api_call_destroy(exchange->call);
    exchange_drop_body(exchange);
    buf_free(&exchange->answer);
    mem_free(exchange->last_token_ns);
    exchange_bill_drop(exchange);
    exchange_bill_free(exchange);
    exchange_relay_free(exchange);
    if (exchange->served) served_leave(exchange->served);
    mem_free(exchange);
    if (set->count == 0 && set->emptied) set->emptied(set->state);
}

/* E1 */
bool exchange_may_end(const struct exchange *exchange)
{
    return !exchange->in_pool && exchange->alive == 0 && !exchange->touched && !exchange->waits_for &&
           !exchange->holding;
}

struct served *exchange_stop_waiting(struct exchange *exchange)
{
    struct served *served = exchange->waits_for;
    if (served) served->waiting--;
    exchange->waits_for = NULL;
    return served;
}

void exchange_wait_no_more(struct exchange *exchange)
{
    struct served *served = exchange_stop_waiting(exchange);
    if (served) served_unpin(served);
}

void reply_error(struct http_conn *conn, const struct api_error *error, const char *allow, bool close)
{
    struct buf body;
    buf_init(&body, 0);
    api_error_body(error, &body);
    http_conn_reply(conn, &(struct http_reply){.status = error->http_status,
                                               .body = &body,
                                               .allow = allow,
                                               .retry_after_ms = error->retry_after_ms,
                                               .authenticate = error->http_status == 401,
                                               .close = close});
    buf_free(&body);
}

void exchange_answer_inner(struct exchange *exchange, int http_status, uint32_t retry_after_ms, const struct buf *body)
{
    void (*answer)(void *, int, uint32_t, const struct buf *) = exchange->answer_inner;
    exchange->answer_inner = NULL;
    answer(exchange->inner_state, http_status, retry_after_ms, body);
}

static void answer_error(struct exchange *exchange, const struct api_error *error)
{
    struct buf body;
    buf_init(&body, 0);
    api_error_body(error, &body);
    exchange_answer_inner(exchange, error->http_status, error->retry_after_ms, &body);
    buf_free(&body);
}

void exchange_reply_error(struct exchange *exchange, const struct api_error *error)
{
    struct http_conn *conn = exchange->conn;
    if (exchange->answer_inner) answer_error(exchange, error);
    if (!conn) return;
    exchange->conn = NULL;
    reply_error(conn, error, NULL, exchange->set->aborting);
}

void exchange_fail(struct exchange *exchange, const struct api_error *error)
{
    exchange->failed = true;
    if (!exchange_listens(exchange)) return;
    if (!exchange->head_sent) {
        exchange_reply_error(exchange, error);
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
    if (exchange->relay) {
        exchange_relay_cancel(exchange);
        return;
    }
    for (uint32_t i = 0; i < exchange->submitted; i++) {
        struct request *request = &exchange->requests[i];
        if (request->owner && !engine_cancel(exchange->served->engine, request->id, exchange->cancel_cause))
            exchange->cancel_wanted = true; /* E5 */
    }
}

void exchange_cancel(struct exchange *exchange, enum cause cause)
{
    if (exchange->alive == 0) return;
    exchange->cancel_cause = cause;
    try_cancel(exchange);
}

uint32_t exchange_retry_after(uint64_t wait_ns, const char *id)
{
    uint64_t wait_ms = wait_ns / NS_PER_MS;
    if (wait_ms < RETRY_AFTER_MS_MIN) wait_ms = RETRY_AFTER_MS_MIN;
    if (wait_ms > RETRY_AFTER_MS_MAX) wait_ms = RETRY_AFTER_MS_MAX;
    wait_ms += wait_ms / 5 * (hash_bytes(id, strlen(id), 0) % 1000) / 1000;
    return wait_ms > RETRY_AFTER_MS_MAX ? RETRY_AFTER_MS_MAX : (uint32_t)wait_ms;
}

/* ---- events and rendering ---- */

static void begin_stream(struct exchange *exchange)
{
    http_conn_stream_begin(exchange->conn);
    exchange->head_sent = true;
}

void exchange_finish_text(struct exchange *exchange, struct buf *out)
{
    if (exchange->relay)
        exchange_relay_finish(exchange, out);
    else
        api_call_finish(exchange->call, out);
}

static void finish(struct exchange *exchange)
{
    struct http_conn *conn = exchange->conn;
    exchange->conn = NULL;
    exchange->bytes_sent = true;
    if (exchange->streaming) {
        if (!exchange->head_sent) http_conn_stream_begin(conn);
        struct buf *out = http_conn_out(conn);
        size_t before = out->length;
        exchange_finish_text(exchange, out);
        exchange_keep(exchange, out, before);
        exchange_kept(exchange);
        http_conn_stream_end(conn, true);
        return;
    }
    struct buf body;
    buf_init(&body, 0);
    exchange_finish_text(exchange, &body);
    if (buf_ok(&body) && exchange->inner) {
        exchange_answer_inner(exchange, 200, 0, &body);
    } else if (buf_ok(&body)) {
        exchange_keep(exchange, &body, 0);
        exchange_kept(exchange);
        http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &body});
    } else {
        exchange->conn = conn;
        refusal_error(REFUSE_NO_MEMORY, RETRY_AFTER_MS_MIN, &exchange->error);
        exchange_reply_error(exchange, &exchange->error);
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
    if (!exchange_listens(exchange) && !exchange->failed && exchange->alive == 0) exchange_keep_rest(exchange); /* E9 */
    if (!exchange_listens(exchange) || exchange->failed || !exchange->call || exchange->holding) return;
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
    if (exchange->relay)
        exchange_relay_render(exchange, out);
    else
        api_call_render(exchange->call, out);
    exchange_keep(exchange, out, before);
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
    if (exchange_may_end(exchange) && (!exchange_listens(exchange) || exchange->failed)) exchange_destroy(exchange);
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
    if (exchange->failed || exchange->broken) return;
    struct engine_stats stats;
    engine_stats_read(exchange->served->engine, &stats);
    api_error_from_status(event->status, exchange_retry_after(stats.queue_wait_estimate_ns, exchange->request_id),
                          &exchange->error);
    if (exchange->cancel_cause == CAUSE_ACCOUNT_STOP) refusal_error(REFUSE_ACCOUNT_CLOSED, 0, &exchange->error);
    exchange_cancel(exchange, CAUSE_PLATFORM_CANCEL);
    exchange_fail(exchange, &exchange->error);
}

/* E10 */
static void break_off(struct exchange *exchange, const struct api_error *error)
{
    exchange_cancel(exchange, CAUSE_PLATFORM_CANCEL);
    if (exchange->alive == 0) {
        exchange_fail(exchange, error);
    } else {
        exchange->error = *error;
        exchange->broken = true;
    }
}

static void end_broken(struct exchange *exchange)
{
    if (!exchange->broken || exchange->failed || exchange->alive > 0) return;
    bool whole = true;
    for (uint32_t i = 0; i < exchange->submitted; i++) {
        const struct request *request = &exchange->requests[i];
        whole = whole && request->scheduled_ns && request->usage.cause < CAUSE_PLATFORM_CANCEL;
    }
    if (!whole) exchange_fail(exchange, &exchange->error);
}

/* E14: of one that the journal holds, or that nobody bills. */
static void take_relayed(struct exchange *exchange, const struct event *event)
{
    if (event->kind != REQUEST_DONE) return;
    CHECK(exchange->alive > 0);
    exchange->alive--;
    exchange->scheduled++;
    event->request->owner = NULL;
    exchange_bill_event(exchange, event);
    if (!exchange->failed && event->request->usage.cause == CAUSE_ACCOUNT_STOP) {
        refusal_error(REFUSE_ACCOUNT_CLOSED, 0, &exchange->error);
        exchange_fail(exchange, &exchange->error);
    }
    end_broken(exchange);
    write_usage(exchange);
}

static void take_event(struct exchange *exchange, const struct event *event, uint64_t now_ns)
{
    if (exchange->relay) {
        take_relayed(exchange, event);
        return;
    }
    if (event->kind == REQUEST_REFUSED || event->kind == REQUEST_DONE) {
        CHECK(exchange->alive > 0);
        exchange->alive--;
        event->request->owner = NULL;
        if (!event->request->given) exchange_energy_end(exchange, event->request);
    }
    if (event->kind == REQUEST_REFUSED) {
        take_refusal(exchange, event);
        end_broken(exchange);
        if (exchange->alive == 0) write_usage(exchange); /* another prompt of the call may have run */
        return;
    }
    api_call_event(exchange->call, event);
    if (event->kind == REQUEST_SCHEDULED) exchange->scheduled++;
    if (event->kind == CHOICE_TOKENS) count_tokens(exchange, event, now_ns);
    exchange_bill_event(exchange, event);
    if (event->kind != REQUEST_DONE) return;
    if (event->request->scheduled_ns) metrics_request_done(&exchange->served->metrics, event->request);
    if (event->status != ST_OK && !exchange->failed && event->status != ST_CANCELED) {
        api_error_from_status(event->status, RETRY_AFTER_MS_MIN, &exchange->error);
        exchange_cancel(exchange, CAUSE_PLATFORM_CANCEL);
        exchange_fail(exchange, &exchange->error);
    }
    end_broken(exchange);
    if (exchange->alive == 0) write_usage(exchange);
}

static void touch(struct exchange *exchange, struct exchange **touched)
{
    if (exchange->touched) return;
    exchange->touched = true;
    exchange->next_touched = *touched;
    *touched = exchange;
}

/* The events of one engine; puts the exchanges they touched in front of *touched. */
static void poll_engine(struct served *served, uint64_t now_ns, struct exchange **touched)
{
    struct engine_stats stats;
    struct event event;
    while (served_poll(served, &event)) {
        struct exchange *exchange = event.request->owner;
        CHECK(exchange != NULL && exchange->served == served);
        take_event(exchange, &event, now_ns);
        touch(exchange, touched);
    }
    engine_stats_read(served->engine, &stats);
    if (stats.steps != served->steps_seen)
        metrics_observe(&served->metrics, HISTOGRAM_ITERATION, stats.last_step_tokens);
    served->steps_seen = stats.steps;
}

/* E9: those that wait for one that has ended. */
static void wake_joins(struct exchanges *set)
{
    if (!set->joins_due) return;
    set->joins_due = false;
    exchanges_answered(set);
}

void exchanges_poll(struct exchanges *set)
{
    struct exchange *touched = NULL;
    uint64_t now_ns = clock_ns();
    for (uint32_t i = 0; i < set->models->count; i++)
        if (set->models->items[i]->engine) poll_engine(set->models->items[i], now_ns, &touched);
    struct event event;
    while (exchange_relay_next(set, &event)) {
        struct exchange *exchange = event.request->owner;
        CHECK(exchange != NULL && exchange->relay);
        take_event(exchange, &event, now_ns);
        if (event.kind == REQUEST_DONE) touch(exchange, &touched);
    }
    while (touched) { /* E2 */
        struct exchange *exchange = touched;
        touched = exchange->next_touched;
        exchange->touched = false;
        settle(exchange);
    }
    wake_joins(set);
}

void exchange_writable(struct exchange *exchange)
{
    if (!exchange->touched) settle(exchange);
}

void exchange_gone(struct exchange *exchange)
{
    exchange->conn = NULL;
    exchange_wait_no_more(exchange);
    exchange->holding = false;
    if (exchange->in_pool) (void)uv_cancel((uv_req_t *)&exchange->work); /* if it has begun, work_done finds nobody */
    for (uint32_t i = 0; i < exchange->submitted && !exchange->bytes_sent; i++) exchange->requests[i].unseen = true;
    exchange_relay_go_on(exchange);
    if (!exchange_is_kept(exchange))
        exchange_cancel(exchange, CAUSE_CLIENT_GONE);
    else if (exchange->submitted > 0 && exchange->alive == 0 && !exchange->failed)
        exchange_keep_rest(exchange); /* E9: it had ended, and its client was still reading */
    if (exchange_may_end(exchange)) exchange_destroy(exchange);
}

/* ---- time ---- */

/* A wake that takes longer than a request may: true, and the exchange is gone. */
static bool end_late_wait(struct exchange *exchange)
{
    if (exchange->deferral.waiting || clock_ns() - exchange->arrived_ns < limits.request_deadline_ms * NS_PER_MS)
        return false;
    exchange_wait_no_more(exchange);
    exchange->holding = false;
    api_error_from_status(ST_TIMEOUT, 0, &exchange->error);
    exchange_fail(exchange, &exchange->error);
    exchange_destroy(exchange);
    return true;
}

void exchanges_tick(struct exchanges *set, uint64_t now_ns)
{
    wake_joins(set);
    if (set->relays_over) set->models->listener.wake(set->models->listener.state);
    if (set->idempotency) idempotency_tick(set->idempotency, clock_ns());
    for (struct exchange *exchange = set->all, *next; exchange; exchange = next) {
        next = exchange->next;
        if (exchange->cancel_wanted) try_cancel(exchange);
        if ((exchange->waits_for || exchange->holding) && end_late_wait(exchange)) continue;
        if (exchange->holding) {
            exchange_plan_tick(exchange, now_ns);
            exchange_ask_again(exchange); /* a policy's time may be over, without an answer */
            continue;
        }
        exchange_bill_tick(exchange);
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

void exchange_break_inner(struct exchange *exchange, const struct api_error *error)
{
    exchange_wait_no_more(exchange);
    exchange->holding = false;
    break_off(exchange, error);
    if (exchange_may_end(exchange)) exchange_destroy(exchange);
}

void exchanges_cut(struct exchanges *set, const struct served *served)
{
    struct api_error error;
    refusal_error(REFUSE_MODEL_LEAVING, RETRY_AFTER_MS_MIN, &error);
    for (struct exchange *exchange = set->all, *next; exchange; exchange = next) {
        next = exchange->next;
        if (exchange->served != served || exchange->failed) continue;
        exchange->holding = false;
        break_off(exchange, &error);
        if (exchange_may_end(exchange)) exchange_destroy(exchange);
    }
}

void exchanges_stop(struct exchanges *set, bool (*stopped)(void *state, const struct caller *caller), void *state)
{
    struct api_error error;
    refusal_error(REFUSE_ACCOUNT_CLOSED, 0, &error);
    for (struct exchange *exchange = set->all, *next; exchange; exchange = next) {
        next = exchange->next;
        if (exchange->failed || !stopped(state, &exchange->caller)) continue;
        if (exchange->alive > 0) {
            exchange_cancel(exchange, CAUSE_ACCOUNT_STOP); /* ends well: what there is is the answer */
            continue;
        }
        if (exchange->submitted > 0) continue; /* has ended, and is being read */
        exchange_wait_no_more(exchange);
        exchange->holding = false;
        exchange_fail(exchange, &error);
        if (exchange_may_end(exchange)) exchange_destroy(exchange);
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
        exchange_wait_no_more(exchange);
        exchange->holding = false;
        if (exchange->in_pool) (void)uv_cancel((uv_req_t *)&exchange->work);
        break_off(exchange, &error);
        if (exchange_may_end(exchange)) exchange_destroy(exchange);
    }
}

void exchanges_free(struct exchanges *set)
{
    set->emptied = NULL;
    while (set->all) {
        CHECK(!set->all->in_pool);
        exchange_wait_no_more(set->all);
        set->all->holding = false;
        exchange_destroy(set->all);
    }
}
