/* See pool_work.h. */
#include "server/pool/pool_work.h"

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/http_response.h"
#include "server/pool/pool_plan.h"
#include "server/power/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { PAUSE_MS = 5000, KEEP_RESULT_MS = 3600000, TTL_MS_MAX = 1209600000 /* 14 days */ };

static const double LEARN = 0.2; /* of a job, in what jobs are like */

struct pool_job {
    struct pool_job *next;
    struct pool_work *work;
    struct exchange *exchange; /* NULL: its answer has come */
    uint8_t id[POOL_ID_BYTES];
    char entry[POOL_ENTRY_NAME_MAX + 1];
    char request_id[HTTP_REQUEST_ID_MAX + 1];
    struct caller caller;
    uint64_t plan_id;
    int64_t deadline_ms;
    uint32_t input, output; /* computed */
    bool lost;
};

struct pool_work {
    struct pool_work_config config;
    struct pool_job *jobs;
    double job_s, job_tokens; /* as pulled so far; 0: none yet */
    uint64_t pause_ns;
    bool over;
    struct pool_work_stats stats;
};

enum status pool_work_create(const struct pool_work_config *config, struct pool_work **out, struct error *err)
{
    struct pool_work *work = mem_alloc(1, sizeof *work);
    if (!work) return error_set(err, ST_NOMEM, "no memory for the pool");
    work->config = *config;
    *out = work;
    return ST_OK;
}

static void job_free(struct pool_job *job)
{
    struct pool_work *work = job->work;
    struct pool_job **at = &work->jobs;
    while (*at != job) at = &(*at)->next;
    *at = job->next;
    work->stats.running--;
    mem_free(job);
}

void pool_work_over(struct pool_work *work)
{
    if (work) work->over = true;
}

void pool_work_destroy(struct pool_work *work)
{
    if (!work) return;
    while (work->jobs) job_free(work->jobs);
    mem_free(work);
}

static struct pool_job *find(struct pool_work *work, const uint8_t id[POOL_ID_BYTES])
{
    struct pool_job *job = work->jobs;
    while (job && memcmp(job->id, id, POOL_ID_BYTES) != 0) job = job->next;
    return job;
}

static void waste(struct pool_work *work, const struct pool_job *job)
{
    work->stats.wasted++;
    work->stats.wasted_tokens += (uint64_t)job->input + job->output;
}

/* ---- answers ---- */

static void leave_plan(struct pool_job *job, bool done)
{
    struct plan *plan = job->work->config.plan;
    struct plan_request was = {.prompt_tokens = job->input, .output_tokens = job->output, .choices = 1};
    plan_remove(plan, job->plan_id, done ? PLAN_DONE : PLAN_CANCELED, job->output ? plan_work(plan, &was) : -1);
}

static void count_computed(struct pool_job *job)
{
    uint32_t count;
    const struct request *requests = exchange_inner_requests(job->exchange, &count);
    for (uint32_t i = 0; requests && i < count; i++) {
        if (!requests[i].scheduled_ns) continue;
        job->input += requests[i].usage.in_total - requests[i].usage.in_hit;
        job->output += requests[i].usage.out;
    }
}

/* Whether its answer is all in its ids. */
static bool can_be_given(const struct request *request, uint32_t count)
{
    const struct choice *choice = request->choices;
    return count == 1 && request->choices_count == 1 && !choice->logprobs && !request->score_prompt &&
           (choice->finish == FINISH_STOP || choice->finish == FINISH_LENGTH) && choice->output_count > 0 &&
           request->usage.out == choice->output_count;
}

static bool give(struct pool_job *job)
{
    uint32_t count;
    const struct request *request = exchange_inner_requests(job->exchange, &count);
    if (!request || !can_be_given(request, count)) return false;
    const struct choice *choice = request->choices;
    struct pool_result result = {.in_total = request->prompt_count,
                                 .answer = {.ids = choice->tokens + request->prompt_count,
                                            .count = choice->output_count,
                                            .in_hit = request->usage.in_hit,
                                            .text_bytes = choice->text_bytes,
                                            .reasoning_count = request->usage.out_reasoning,
                                            .trimmed_count = request->usage.out_trimmed,
                                            .finish = choice->finish,
                                            .stop_id = choice->stop_id,
                                            .stop_string = choice->stop_string}};
    struct buf bytes;
    int64_t left_ms = job->deadline_ms - clock_unix_ms(clock_system());
    random_fill(result.run, sizeof result.run);
    pool_prompt_hash(request->prompt, request->prompt_count, result.prompt);
    buf_init(&bytes, (size_t)limits.pool_result_bytes);
    pool_result_print(&result, &bytes);
    if (!buf_ok(&bytes)) {
        buf_free(&bytes);
        return false;
    }
    if (left_ms > TTL_MS_MAX) left_ms = TTL_MS_MAX;
    uint64_t ttl_ms = (uint64_t)(left_ms > 0 ? left_ms : 0) + KEEP_RESULT_MS;
    return pool_finish(job->work->config.pool, job->entry, job->id, &bytes, ttl_ms);
}

static void on_answer(void *state, int http_status, uint32_t retry_after_ms, const struct buf *body)
{
    struct pool_job *job = state;
    struct pool_work *work = job->work;
    (void)retry_after_ms, (void)body;
    if (work->over) return; /* freed with the rest */
    count_computed(job);
    leave_plan(job, http_status == 200);
    bool given = http_status == 200 && !job->lost && give(job);
    job->exchange = NULL;
    if (given) return; /* POOL_FINISHED comes */
    if (job->output > 0) waste(work, job);
    bool again = http_status == 429 || http_status >= 500; /* W3 */
    if (again) work->pause_ns = clock_now_ns(clock_system()) + PAUSE_MS * NS_PER_MS;
    if (!job->lost) pool_return(work->config.pool, job->entry, job->id, again);
    job_free(job);
}

/* ---- pulled ---- */

/* W1. ST_AGAIN: there is no room for it now. */
static enum status enter_plan(struct pool_work *work, struct pool_job *job, const struct pool_entry *entry)
{
    struct plan *plan = work->config.plan;
    struct plan_request request = {
        .prompt_tokens = entry->prompt_tokens, .output_tokens = entry->output_tokens, .choices = 1};
    struct plan_job own = {.id = exchanges_plan_id(work->config.exchanges),
                           .work = plan_work(plan, &request),
                           .deadline_ms = entry->deadline_ms,
                           .span_ms = plan_span_ms(plan, &request),
                           .green = PLAN_GREEN_ANY,
                           .tier = PLAN_BATCH};
    double tokens = (double)entry->prompt_tokens + entry->output_tokens;
    work->job_s = work->job_s > 0 ? work->job_s + LEARN * (own.work - work->job_s) : own.work;
    work->job_tokens = work->job_tokens > 0 ? work->job_tokens + LEARN * (tokens - work->job_tokens) : tokens;
    if (plan_surplus(plan, clock_unix_ms(clock_system())) <= 0) return ST_AGAIN;
    TRY(plan_enter(plan, &own, clock_unix_ms(clock_system())));
    exchanges_plan_news(work->config.exchanges);
    if (!plan_released(plan, own.id)) {
        plan_remove(plan, own.id, PLAN_CANCELED, -1);
        return ST_AGAIN;
    }
    plan_started(plan, own.id);
    job->plan_id = own.id;
    return ST_OK;
}

static bool begin(struct pool_work *work, struct pool_job *job, const struct pool_entry *entry)
{
    struct buf body;
    int64_t left_ms = entry->deadline_ms - clock_unix_ms(clock_system());
    if (left_ms > TTL_MS_MAX) left_ms = TTL_MS_MAX;
    buf_init(&body, (size_t)limits.http_body_bytes);
    buf_append(&body, entry->body, entry->body_length);
    if (!buf_ok(&body)) {
        buf_free(&body);
        return false;
    }
    /* W2 */
    job->caller.account = entry->account;
    (void)snprintf(job->caller.tenant_name, sizeof job->caller.tenant_name, "pool:%016" PRIx64, entry->account);
    memcpy(job->caller.account_name, job->caller.tenant_name, sizeof job->caller.account_name);
    http_response_make_id(job->request_id);
    struct inner_call call = {.kind = entry->chat ? EXCHANGE_CHAT : EXCHANGE_COMPLETIONS,
                              .caller = &job->caller,
                              .request_id = job->request_id,
                              .digest = job->id,
                              .prepaid = true, /* O1 */
                              .deadline_ns = clock_now_ns(clock_system()) + (uint64_t)left_ms * NS_PER_MS,
                              .answer = on_answer,
                              .state = job};
    job->exchange = exchange_start_inner(work->config.exchanges, &call, &body);
    return job->exchange != NULL;
}

static void pulled(struct pool_work *work, const struct pool_news *news)
{
    struct pool_entry entry;
    struct error err = {""};
    enum status status = pool_entry_read(news->bytes.data, news->bytes.length, &entry, &err);
    if (status != ST_OK) log_line(LOG_WARN, "pool", "refused reason=\"%s\"", err.message);
    struct pool_job *job = status == ST_OK ? mem_alloc(1, sizeof *job) : NULL;
    bool too_late = status == ST_OK && entry.deadline_ms <= clock_unix_ms(clock_system());
    if (!job || too_late || work->over || !work->config.may_run(work->config.state)) {
        mem_free(job);
        pool_return(work->config.pool, news->entry, news->id, status == ST_OK && !too_late);
        return;
    }
    job->work = work;
    job->deadline_ms = entry.deadline_ms;
    memcpy(job->id, news->id, sizeof job->id);
    memcpy(job->entry, news->entry, sizeof job->entry);
    job->next = work->jobs;
    work->jobs = job;
    work->stats.running++;
    status = enter_plan(work, job, &entry);
    if (status == ST_OK && begin(work, job, &entry)) return;
    if (status == ST_OK) leave_plan(job, false);
    pool_return(work->config.pool, job->entry, job->id, status != ST_INVAL);
    work->pause_ns = clock_now_ns(clock_system()) + PAUSE_MS * NS_PER_MS;
    job_free(job);
}

static void finished(struct pool_work *work, struct pool_job *job, bool counts)
{
    if (counts) {
        work->stats.done++;
        work->stats.output_tokens += job->output;
    } else {
        waste(work, job);
    }
    job_free(job);
}

bool pool_work_news(struct pool_work *work, struct pool_news *news)
{
    struct api_error error;
    if (news->kind == POOL_PULLED) {
        pulled(work, news);
        return true;
    }
    if (news->kind != POOL_LOST && news->kind != POOL_FINISHED) return false;
    struct pool_job *job = find(work, news->id);
    if (!job) return true;
    if (news->kind == POOL_FINISHED) {
        finished(work, job, news->counts);
    } else if (job->exchange && !job->lost) {
        job->lost = true;
        api_error_from_status(ST_CANCELED, 0, &error);
        exchange_break_inner(job->exchange, &error);
    }
    return true;
}

/* ---- how much ---- */

void pool_work_tick(struct pool_work *work, bool came)
{
    const struct models *models = work->config.exchanges->models;
    struct engine_stats engine;
    if (!came || work->over || !pool_serves(work->config.pool) || !work->config.may_run(work->config.state)) return;
    if (models->count != 1 || !models->items[0]->engine || clock_now_ns(clock_system()) < work->pause_ns) return;
    engine_stats_read(models->items[0]->engine, &engine);
    uint32_t blocks =
        engine.kv_blocks_total > engine.kv_blocks_used ? engine.kv_blocks_total - engine.kv_blocks_used : 0;
    const struct pool_room room = {.surplus_s = plan_surplus(work->config.plan, clock_unix_ms(clock_system())),
                                   .job_s = work->job_s,
                                   .running = work->stats.running,
                                   .running_max = work->config.concurrency,
                                   .kv_tokens = blocks * KV_BLOCK_TOKENS,
                                   .job_tokens = (uint32_t)work->job_tokens,
                                   .queued = engine.waiting};
    uint32_t count = pool_pulls(&room);
    if (count > 0) pool_want(work->config.pool, count);
}

void pool_work_read_stats(const struct pool_work *work, struct pool_work_stats *stats)
{
    *stats = work->stats;
}
