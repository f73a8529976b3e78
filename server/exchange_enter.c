/* From a complete request to the engine: room, the pool, the model that the body names, its wake; see exchange.h. */
#include "server/exchange_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "server/billing/billing.h"
#include "server/upstream/upstreams.h"

#include <string.h>

/* A ledger that is there and does not answer: what OUTAGE_RETRY_REJECT waits, and its own time-outs, are shorter. */
enum { HOLD_WAIT_MS = 30000 };

bool exchanges_have_room(struct exchanges *set, const char *request_id, uint32_t *retry_after_ms)
{
    const struct models *models = set->models;
    struct served *full = NULL;
    uint64_t wait_ns = UINT64_MAX;
    bool others = set->preparing < set->queue_max; /* for what is not ready: the pool finds the answer */
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
    if (others && (!full || set->upstreams || models_serving(models) > models_in(models, MODEL_READY))) return true;
    if (full) full->metrics.rejected_requests++;
    *retry_after_ms = exchange_retry_after(full ? wait_ns : 0, request_id);
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
        .tenant = exchange->caller.tenant,
        .tenant_name = exchange->caller.tenant_name,
        .now_unix_s = clock_unix_us(clock_system()) / 1000000,
        .now_unix_ms = clock_unix_ms(clock_system()),
        .now_ns = now_ns,
        .deadline_ns = exchange->deadline_ns,
        .batch = exchange->inner,
    };
    exchange_print_body(exchange);
    enum api_kind kind = exchange->kind == EXCHANGE_CHAT ? API_CHAT : API_COMPLETIONS;
    exchange->prepared = api_call_create(kind, body, length, &context, &exchange->call, &exchange->error) &&
                         api_call_prepare(exchange->call, &exchange->error);
    if (!exchange->call && exchange->models.far_picked && !exchange->inner)
        exchange->prepared = exchange_relay_prepare(exchange, kind, &context);
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
    const struct upstreams *upstreams = exchange->set->upstreams;
    if (upstreams) {
        exchange->models.far = upstreams->far;
        exchange->models.far_count = upstreams->models_count;
    }
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
    refusal_error(refusal, exchange_retry_after(wait_ns, exchange->request_id), &exchange->error);
    exchange_fail(exchange, &exchange->error);
}

/* Once more into the pool: its model was not ready before. */
static void go_on(struct exchange *exchange)
{
    buf_clear(&exchange->answer);
    if (exchange->failed || !exchange_listens(exchange)) return;
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
        } else if (served->waiting >= exchange->set->queue_max) {
            served->metrics.rejected_requests++;
            refuse(exchange, REFUSE_OVERLOADED, left_ns);
        } else if (models_wake(served, &verdict, &err) == ST_OK) {
            exchange->waits_for = served;
            served->waiting++;
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
        await(exchange, exchange_stop_waiting(exchange));
        if (exchange_may_end(exchange) && !exchange_listens(exchange)) exchange_destroy(exchange);
    }
}

static void fail_refused(struct exchange *exchange, enum refusal refusal)
{
    struct billing_stats *stats = exchange->set->billing->stats;
    billing_stats_add(refusal == REFUSE_QUOTA            ? &stats->refused_quota
                      : refusal == REFUSE_BUDGET         ? &stats->refused_budget
                      : refusal == REFUSE_ACCOUNT_CLOSED ? &stats->refused_closed
                                                         : &stats->refused_outage,
                      1);
    refuse(exchange, refusal, 0);
    exchange_bill_drop(exchange);
}

static void submit_all(struct exchange *exchange);

/* The holds of a call that the pool has prepared, then the engine; E8. */
static void hold_and_submit(struct exchange *exchange)
{
    exchange->holding = false;
    switch (exchange_bill_hold(exchange)) {
    case LEASE_HELD: submit_all(exchange); break;
    case LEASE_WAITS:
        exchange->holding = true;
        if (!exchange->holding_ns) exchange->holding_ns = clock_ns();
        break;
    case LEASE_EMPTY:
        fail_refused(exchange, exchange->budget_empty ? REFUSE_BUDGET : REFUSE_QUOTA);
        if (!exchange->budget_empty) exchange->set->used_up(exchange->set->state, exchange->caller.account);
        break;
    case LEASE_CLOSED: fail_refused(exchange, REFUSE_ACCOUNT_CLOSED); break;
    case LEASE_OUTAGE: fail_refused(exchange, REFUSE_BILLING); break;
    }
}

/* E13. false: it was refused. */
static bool take_given(struct exchange *exchange)
{
    struct request *request = exchange->requests;
    uint8_t prompt[POOL_PROMPT_BYTES];
    if (!exchange->given) return true;
    pool_prompt_hash(request->prompt, request->prompt_count, prompt);
    if (exchange->requests_count == 1 && request->prompt_count == exchange->given->in_total &&
        memcmp(prompt, exchange->given->prompt, sizeof prompt) == 0) {
        request->given = &exchange->given->answer;
        return true;
    }
    api_error_set(&exchange->error, 503, "server_error", "pool_mismatch", NULL,
                  "The answer of another server is for another prompt.");
    exchange_fail(exchange, &exchange->error);
    return false;
}

static void begin_charges(struct exchange *exchange)
{
    exchange->requests = api_call_requests(exchange->call, &exchange->requests_count);
    if (!take_given(exchange)) return;
    for (uint32_t i = 0; exchange->set->billing && i < exchange->requests_count; i++) {
        const struct request *request = &exchange->requests[i];
        if (charge_fits(request->prompt_count, request->choices_count, request->max_tokens)) continue;
        refuse(exchange, REFUSE_TOKENS, 0);
        return;
    }
    if (exchange_bill_begin(exchange))
        hold_and_submit(exchange);
    else
        refuse(exchange, REFUSE_NO_MEMORY, 0);
}

/* A prepared call, for the first time or after a wait. */
static void enter_engine(struct exchange *exchange)
{
    exchange->holding = false;
    enum admission_verdict verdict = exchange_admit(exchange);
    if (verdict == ADMISSION_WAITS) exchange->holding = true;
    if (verdict != ADMITTED) return;
    if (!exchange_plan_admit(exchange)) return;
    if (exchange->requests)
        hold_and_submit(exchange);
    else
        begin_charges(exchange);
}

void exchange_ask_again(struct exchange *exchange)
{
    if (exchange->holding_ns && clock_ns() - exchange->holding_ns > HOLD_WAIT_MS * NS_PER_MS) {
        exchange->holding = false;
        fail_refused(exchange, REFUSE_BILLING);
    } else {
        enter_engine(exchange);
    }
    if (exchange_may_end(exchange) && !exchange_listens(exchange)) exchange_destroy(exchange);
}

void exchanges_answered(struct exchanges *set)
{
    for (struct exchange *exchange = set->all, *next; exchange; exchange = next) {
        next = exchange->next;
        exchange_bill_tick(exchange);
        if (exchange->holding) exchange_ask_again(exchange);
    }
}

static void submit_all(struct exchange *exchange)
{
    struct exchanges *set = exchange->set;
    exchange->streaming = api_call_streams(exchange->call);
    if (exchange->relay) {
        exchange_relay_submit(exchange);
        return;
    }
    uint32_t choices = 0;
    for (uint32_t i = 0; i < exchange->requests_count; i++) choices += exchange->requests[i].choices_count;
    exchange->last_token_ns = mem_alloc(choices, sizeof *exchange->last_token_ns);
    enum status status = exchange->last_token_ns ? ST_OK : ST_NOMEM;
    for (uint32_t i = 0; i < exchange->requests_count && status == ST_OK; i++) {
        struct request *request = &exchange->requests[i];
        request->id = ++set->next_request_id;
        request->owner = exchange;
        if (!request->given) exchange_energy_begin(exchange, request);
        if (exchange->deferral.forced) {
            request->books_as = request->service_class;
            request->service_class = CLASS_DEFAULT;
        }
        status = engine_submit(exchange->served->engine, request);
        if (status != ST_OK && !request->given) exchange_energy_end(exchange, request);
        if (status == ST_OK) {
            exchange->submitted++;
            exchange->alive++;
        }
    }
    if (status == ST_OK) return;
    struct engine_stats stats;
    engine_stats_read(exchange->served->engine, &stats);
    refusal_error(status == ST_NOMEM ? REFUSE_NO_MEMORY : REFUSE_OVERLOADED,
                  exchange_retry_after(stats.queue_wait_estimate_ns, exchange->request_id), &exchange->error);
    exchange->served->metrics.rejected_requests++;
    exchange_cancel(exchange, CAUSE_PLATFORM_CANCEL);
    exchange_fail(exchange, &exchange->error);
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
    exchange_reply_error(exchange, &exchange->error);
}

static void work_done(uv_work_t *work, int status)
{
    struct exchange *exchange = work->data;
    struct exchanges *set = exchange->set;
    struct served *asleep;
    exchange->in_pool = false;
    set->preparing--;
    drop_candidates(exchange, &asleep);
    if (!asleep || !exchange_listens(exchange) || exchange->failed) exchange_drop_body(exchange);
    if (status == UV_ECANCELED || !exchange_listens(exchange) || exchange->failed) {
        if (asleep) served_unpin(asleep); /* nobody waits for it any more */
    } else if (asleep) {
        await(exchange, asleep);
    } else if (exchange->kind == EXCHANGE_TOKENIZE || exchange->kind == EXCHANGE_DETOKENIZE) {
        reply_answer(exchange);
    } else if (!exchange->prepared) {
        exchange_fail(exchange, &exchange->error);
    } else {
        enter_engine(exchange);
    }
    if (exchange_may_end(exchange)) exchange_destroy(exchange);
}

static struct exchange *exchange_make(struct exchanges *set, enum exchange_kind kind, const struct caller *caller,
                                      const char *request_id)
{
    struct exchange *exchange = mem_alloc(1, sizeof *exchange);
    if (!exchange) return NULL;
    exchange->set = set;
    exchange->kind = kind;
    exchange->caller = *caller;
    exchange->arrived_ns = clock_ns();
    exchange->deadline_ns = exchange->arrived_ns + limits.request_deadline_ms * NS_PER_MS;
    exchange->written_ns = UINT64_MAX; /* the next tick says when */
    buf_init(&exchange->answer, (size_t)limits.api_request_memory_bytes);
    memcpy(exchange->request_id, request_id, strlen(request_id) + 1);
    exchange->work.data = exchange;
    exchange->next = set->all;
    if (exchange->next) exchange->next->previous = exchange;
    set->all = exchange;
    set->count++;
    return exchange;
}

void exchange_start(struct exchanges *set, enum exchange_kind kind, struct http_conn *conn, const struct caller *caller)
{
    struct http_request *request = http_conn_request(conn);
    struct exchange *exchange = exchange_make(set, kind, caller, request->id);
    if (exchange) {
        exchange->conn = conn;
        exchange_take_key(exchange, request);
        http_conn_take_body(conn, &exchange->body);
        http_conn_user_set(conn, exchange);
        if (enter_pool(exchange)) {
            set->preparing++;
            return;
        }
        exchange->conn = NULL;
        exchange_destroy(exchange);
    }
    struct api_error error;
    refusal_error(REFUSE_NO_MEMORY, RETRY_AFTER_MS_MIN, &error);
    reply_error(conn, &error, NULL, false);
}

struct exchange *exchange_start_inner(struct exchanges *set, const struct inner_call *call, struct buf *body)
{
    struct exchange *exchange = exchange_make(set, call->kind, call->caller, call->request_id);
    if (!exchange) {
        buf_free(body);
        return NULL;
    }
    exchange->inner = true;
    exchange->prepaid = call->prepaid;
    exchange->deferral.forced = call->forced;
    exchange->deferral.held_ms = call->held_ms;
    exchange->deadline_ns = call->deadline_ns;
    exchange->given = call->given;
    exchange->body = *body;
    buf_init(body, 0);
    exchange->admission.has_key = true;
    memcpy(exchange->admission.digest, call->digest, sizeof exchange->admission.digest);
    if (enter_pool(exchange)) {
        set->preparing++;
        exchange->answer_inner = call->answer;
        exchange->inner_state = call->state;
        return exchange;
    }
    exchange_destroy(exchange);
    return NULL;
}

const struct request *exchange_inner_requests(const struct exchange *exchange, uint32_t *count)
{
    *count = exchange->requests_count;
    return exchange->requests;
}
