/* Life of jobs and sequences: create, submit, cancel, end, count. Plans are in sched_plan.c and sched_admit.c, results
 * in sched_commit.c; see sched.h. */
#include "scheduler/sched.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/model/vocab.h"
#include "scheduler/sched_internal.h"

#include <math.h>
#include <string.h>

static const uint64_t class_limits_ns[CLASS_COUNT] = {10 * NS_PER_S, 10 * NS_PER_S, 900 * NS_PER_S, 3600 * NS_PER_S};

/* ---- creation ---- */

static enum status config_check(const struct sched_config *c, struct error *err)
{
    if (!c->context_max || !c->running_max || !c->kv_blocks || !c->tenants_max || !c->queue_requests_max)
        return error_set(err, ST_INVAL,
                         "scheduler: context, running sequences, KV blocks, tenants and queue must be > 0");
    if (c->running_max > 1u << 20 || c->queue_requests_max > 1u << 22 || c->tenants_max > 1u << 24)
        return error_set(err, ST_INVAL, "scheduler: more than 2^20 sequences, 2^22 waiting requests or 2^24 tenants");
    if (c->step_tokens_max < KV_BLOCK_TOKENS || c->step_tokens_max < c->running_max)
        return error_set(err, ST_INVAL, "scheduler: a step of %u tokens is too small for %u sequences (at least 16)",
                         c->step_tokens_max, c->running_max);
    if (c->rows_max < c->running_max)
        return error_set(err, ST_INVAL, "scheduler: %u rows a step are fewer than %u sequences", c->rows_max,
                         c->running_max);
    if (!c->tenant_share_percent || c->tenant_share_percent > 100)
        return error_set(err, ST_INVAL, "scheduler: a tenant's share of the queue is 1..100 percent");
    return ST_OK;
}

/* Arrays that are mostly untouched: pages are committed where a slot is used. */
static bool map_rows(void **rows, size_t *bytes, uint32_t slots, uint32_t stride, size_t item_bytes)
{
    size_t items;
    if (!checked_mul(slots, stride ? stride : 1, &items) || !checked_mul(items, item_bytes, bytes)) return false;
    *rows = mem_map(*bytes);
    return *rows != NULL;
}

static bool create_arrays(struct sched *s)
{
    const struct sched_config *c = &s->config;
    s->stop_strings = (uint32_t)limits.api_stop_strings;
    s->stop_entries = (uint32_t)(limits.api_stop_strings * limits.api_stop_string_bytes);
    s->ban_stride = (uint32_t)limits.api_stop_token_ids + c->end_ids_count;
    s->table_stride = kv_blocks_for(c->context_max);
    s->hot = mem_alloc(c->running_max, sizeof *s->hot);
    s->seqs = mem_alloc(s->slots_max, sizeof *s->seqs);
    s->jobs = mem_alloc(s->jobs_max, sizeof *s->jobs);
    s->scratch = mem_alloc(c->running_max, sizeof *s->scratch);
    s->tenants = mem_alloc(c->tenants_max, sizeof *s->tenants);
    s->hits = mem_alloc(s->table_stride, sizeof *s->hits);
    /* A plan ends each job at most once and starts at most running_max; a commit brings one event a row and more ends.
     */
    s->events_max = s->jobs_max + 2 * c->running_max + 3 * SCHED_SUBMITS_MAX + 16;
    s->events = mem_alloc(s->events_max, sizeof *s->events);
    return s->hot && s->seqs && s->jobs && s->scratch && s->tenants && s->hits && s->events &&
           id_table_init(&s->ids, s->jobs_max) == ST_OK &&
           map_rows((void **)&s->tables, &s->tables_bytes, s->slots_max, s->table_stride, sizeof *s->tables) &&
           map_rows((void **)&s->stop_failure, &s->stop_failure_bytes, s->slots_max, s->stop_entries, 2) &&
           map_rows((void **)&s->stop_state, &s->stop_state_bytes, s->slots_max, s->stop_strings, 2) &&
           map_rows((void **)&s->bans, &s->bans_bytes, s->slots_max, s->ban_stride, sizeof *s->bans);
}

static void evict(void *state, block_id block)
{
    struct sched *s = state;
    prefix_cache_remove(&s->cache, block);
}

static bool create_parts(struct sched *s)
{
    const struct sched_config *c = &s->config;
    uint32_t entries = s->jobs_max + s->slots_max;
    return block_pool_init(&s->pool, c->kv_blocks, evict, s) == ST_OK &&
           prefix_cache_init(&s->cache, c->kv_blocks) == ST_OK &&
           fair_init(&s->fair, c->tenants_max, entries) == ST_OK && heap_init(&s->deadlines, s->jobs_max) == ST_OK &&
           heap_init(&s->ageing, entries) == ST_OK;
}

static bool create_steps(struct sched *s)
{
    const struct sched_config *c = &s->config;
    for (uint32_t i = 0; i < SCHED_STEPS_MAX; i++) {
        struct planned_step *step = &s->steps[i];
        step->parts = mem_alloc(c->running_max, sizeof *step->parts);
        if (c->tells_shares && !(step->shares = mem_alloc(c->running_max, sizeof *step->shares))) return false;
        if (!step->parts || batch_create(c->step_tokens_max, c->running_max, c->rows_max, &step->batch) != ST_OK)
            return false;
    }
    return true;
}

enum status sched_create(const struct sched_config *config, struct sched **sched, struct error *err)
{
    TRY(config_check(config, err));
    struct sched *s = mem_alloc(1, sizeof *s);
    if (!s) return error_set(err, ST_NOMEM, "scheduler: no memory");
    s->config = *config;
    /* Preempted sequences keep their slot, so there are more slots than may run. */
    s->slots_max = 2 * config->running_max;
    s->jobs_max = config->queue_requests_max + 2 * s->slots_max;
    if (!create_arrays(s) || !create_parts(s) || !create_steps(s)) {
        sched_destroy(s);
        return error_set(err, ST_NOMEM, "scheduler: no memory for %u sequences of %u positions", config->running_max,
                         config->context_max);
    }
    for (uint32_t i = 0; i < CLASS_COUNT; i++)
        if (!s->config.class_limit_ns[i]) s->config.class_limit_ns[i] = class_limits_ns[i];
    for (uint32_t i = 0; i < s->slots_max; i++) s->seqs[i].next = i + 1 < s->slots_max ? i + 1 : SLOT_NONE;
    for (uint32_t i = 0; i < s->jobs_max; i++) s->jobs[i].next_free = i + 1 < s->jobs_max ? i + 1 : SLOT_NONE;
    s->slots_free = s->slots_max;
    s->cancels = s->blocked_entry = SLOT_NONE;
    s->stats.kv_blocks_total = config->kv_blocks;
    s->power.room_j = INFINITY;
    cost_model_init(&s->cost, config->weights_bytes, !config->itl_target_ns);
    *sched = s;
    return ST_OK;
}

void sched_destroy(struct sched *s)
{
    if (!s) return;
    for (uint32_t i = 0; i < SCHED_STEPS_MAX; i++) {
        batch_destroy(s->steps[i].batch);
        mem_free(s->steps[i].parts);
        mem_free(s->steps[i].shares);
    }
    heap_free(&s->ageing);
    heap_free(&s->deadlines);
    fair_free(&s->fair);
    prefix_cache_free(&s->cache);
    block_pool_free(&s->pool);
    mem_unmap(s->bans, s->bans_bytes);
    mem_unmap(s->stop_state, s->stop_state_bytes);
    mem_unmap(s->stop_failure, s->stop_failure_bytes);
    mem_unmap(s->tables, s->tables_bytes);
    mem_free(s->events);
    mem_free(s->hits);
    mem_free(s->tenants);
    mem_free(s->scratch);
    id_table_free(&s->ids);
    mem_free(s->jobs);
    mem_free(s->seqs);
    mem_free(s->hot);
    mem_free(s);
}

/* ---- submission ---- */

static bool is_valid(const struct sched *s, const struct request *request)
{
    const struct sched_config *c = &s->config;
    if (!request->id || request->tenant >= c->tenants_max || (uint32_t)request->service_class >= CLASS_COUNT)
        return false;
    if (!request->prompt_count || !request->choices_count || request->choices_count > UINT16_MAX) return false;
    if (!request->max_tokens && !request->score_prompt) return false;
    uint64_t positions = (uint64_t)request->prompt_count + request->max_tokens;
    if (positions > c->context_max) return false;
    /* The last id of a sequence needs no KV. */
    if (kv_blocks_for((uint32_t)positions - (request->max_tokens > 0)) > c->kv_blocks) return false;
    if (request->stop_ids_count + c->end_ids_count > s->ban_stride || request->stops_count > s->stop_strings)
        return false;
    if (!stop_match_fits(request->stops, request->stops_count, s->stop_entries)) return false;
    for (uint32_t i = 0; i < request->prompt_count; i++)
        if (request->prompt[i] >= c->texts_count) return false;
    return id_table_find(&s->ids, request->id) == ID_NONE;
}

static enum status admission(const struct sched *s, const struct request *request, uint64_t now_ns)
{
    const struct sched_config *c = &s->config;
    if (!is_valid(s, request)) return ST_INVAL;
    if (request->deadline_ns && request->deadline_ns <= now_ns) return ST_TIMEOUT;
    uint64_t tokens = s->stats.waiting_tokens + request->prompt_count;
    if (s->stats.waiting >= c->queue_requests_max || tokens > c->queue_tokens_max || s->job_free_first == SLOT_NONE)
        return ST_LIMIT; /* R18 */
    const struct tenant_queue *own = &s->tenants[request->tenant];
    if (s->stats.waiting == own->requests) return ST_OK; /* nobody else waits */
    uint64_t requests_max = (uint64_t)c->queue_requests_max * c->tenant_share_percent / 100;
    uint64_t tokens_max = c->queue_tokens_max / 100 * c->tenant_share_percent;
    if (own->requests >= (requests_max ? requests_max : 1)) return ST_QUOTA;
    return own->requests && own->tokens + request->prompt_count > tokens_max ? ST_QUOTA : ST_OK;
}

static void prepare_choices(struct request *request)
{
    for (uint32_t i = 0; i < request->choices_count; i++) {
        struct choice *choice = &request->choices[i];
        choice->output_count = choice->text_bytes = choice->reasoning_count = choice->trimmed_count = 0;
        choice->finish = FINISH_NONE;
        choice->stop_id = VOCAB_NO_ID;
        choice->stop_string = STOP_STRING_NONE;
    }
    request->scheduled_ns = request->first_token_ns = request->done_ns = 0;
    request->usage = (struct usage){.choices = request->choices_count};
}

/* When a waiting entry of this request ranks up: its class limit, for a batch with a deadline so early that it can
 * still run (at one step an id). */
static uint64_t age_at_ns(const struct sched *s, const struct request *request, uint64_t now_ns)
{
    if (request->service_class != CLASS_BATCH || !request->deadline_ns)
        return now_ns + s->config.class_limit_ns[request->service_class];
    struct cost_step step = {.bytes = s->config.weights_bytes, .tokens = 1, .rows = 1};
    uint64_t run_ns = cost_model_predict_ns(&s->cost, &step) * request->max_tokens;
    return request->deadline_ns > now_ns + run_ns ? request->deadline_ns - run_ns : now_ns;
}

void entry_queue(struct sched *s, uint32_t entry, uint32_t tenant, uint32_t rank, enum fair_group group,
                 const struct request *request, uint64_t order, uint64_t now_ns)
{
    fair_push(&s->fair, entry, tenant, rank, group, request->priority, order);
    if (rank == (uint32_t)request->service_class + 1) heap_set(&s->ageing, entry, age_at_ns(s, request, now_ns));
}

/* The chain's start. With the cache off the choices of one request still share its prompt, under a root nobody else
 * has. */
static void job_root(struct sched *s, struct job *job)
{
    uint8_t secret[32] = {0};
    if (s->config.prefix_cache) {
        if (!PLANTED(SHARE_DOMAINS)) memcpy(secret, job->request->cache_domain, sizeof secret);
    } else {
        memcpy(secret, &job->order, sizeof job->order); /* never reused: serial of submission */
    }
    job->private_domain = !s->config.prefix_cache;
    job->indexes = s->config.prefix_cache || job->request->choices_count > 1;
    if (job->indexes) job->root = prefix_cache_root(secret, s->config.cache_epoch);
}

void sched_refuse(struct sched *s, struct request *request, enum status status, uint64_t now_ns)
{
    prepare_choices(request);
    request->submitted_ns = request->done_ns = now_ns;
    s->stats.requests_refused++;
    *event_add(s) = (struct event){.kind = REQUEST_REFUSED, .status = status, .request = request};
}

static bool given_fits(const struct sched *s, const struct request *request)
{
    const struct given_answer *given = request->given;
    if (!is_valid(s, request) || request->choices_count != 1 || request->choices[0].logprobs || request->score_prompt)
        return false;
    if (!given->count || given->count > request->max_tokens || given->in_hit >= request->prompt_count) return false;
    if (given->reasoning_count > given->count || given->trimmed_count > given->count) return false;
    for (uint32_t i = 0; i < given->count; i++)
        if (given->ids[i] >= s->config.texts_count) return false;
    return given->finish == FINISH_STOP || given->finish == FINISH_LENGTH;
}

/* All of its events at once. It takes no place in any queue, and nothing of it was computed here. */
static enum status give(struct sched *s, struct request *request, uint64_t now_ns)
{
    const struct given_answer *given = request->given;
    struct choice *choice = request->choices;
    if (!given_fits(s, request)) {
        sched_refuse(s, request, ST_INVAL, now_ns);
        return ST_INVAL;
    }
    prepare_choices(request);
    memcpy(choice->tokens + request->prompt_count, given->ids, given->count * sizeof *given->ids);
    choice->output_count = given->count;
    choice->text_bytes = given->text_bytes;
    choice->reasoning_count = given->reasoning_count;
    choice->trimmed_count = given->trimmed_count;
    choice->finish = given->finish;
    choice->stop_id = given->stop_id;
    choice->stop_string = given->stop_string;
    request->usage = (struct usage){.cause = given->finish == FINISH_STOP ? CAUSE_STOP : CAUSE_LENGTH,
                                    .in_total = request->prompt_count,
                                    .in_hit = given->in_hit,
                                    .out = given->count,
                                    .out_reasoning = given->reasoning_count,
                                    .out_trimmed = given->trimmed_count,
                                    .choices = 1};
    request->submitted_ns = request->scheduled_ns = request->first_token_ns = request->done_ns = now_ns;
    s->stats.requests_done++;
    *event_add(s) = (struct event){.kind = REQUEST_SCHEDULED, .request = request};
    *event_add(s) = (struct event){.kind = CHOICE_TOKENS,
                                   .request = request,
                                   .output_count = choice->output_count,
                                   .text_bytes = choice->text_bytes,
                                   .reasoning_count = choice->reasoning_count,
                                   .finish = choice->finish};
    *event_add(s) = (struct event){.kind = REQUEST_DONE, .request = request};
    return ST_OK;
}

enum status sched_submit(struct sched *s, struct request *request, uint64_t now_ns)
{
    if (request->given) return give(s, request, now_ns);
    enum status status = admission(s, request, now_ns);
    if (status != ST_OK) {
        sched_refuse(s, request, status, now_ns);
        return status;
    }
    prepare_choices(request);
    request->submitted_ns = now_ns;
    uint32_t job_idx = s->job_free_first;
    struct job *job = &s->jobs[job_idx];
    s->job_free_first = job->next_free;
    *job = (struct job){.request = request,
                        .order = ++s->order_last,
                        .seqs = SLOT_NONE,
                        .cancel_next = SLOT_NONE,
                        .state = JOB_WAITING,
                        .out_limit = request->out_limit ? request->out_limit : UINT32_MAX,
                        .rank = (uint8_t)(request->service_class + 1)};
    job_root(s, job);
    s->jobs_count++;
    s->priority_jobs += request->service_class == CLASS_PRIORITY;
    id_table_add(&s->ids, request->id, job_idx);
    s->stats.waiting++;
    s->stats.waiting_tokens += request->prompt_count;
    s->tenants[request->tenant].requests++;
    s->tenants[request->tenant].tokens += request->prompt_count;
    if (request->deadline_ns) heap_set(&s->deadlines, job_idx, request->deadline_ns);
    entry_queue(s, job_idx, request->tenant, job->rank, FAIR_NEW, request, job->order, now_ns);
    return ST_OK;
}

bool sched_cancel(struct sched *s, uint64_t request_id, enum cause cause)
{
    if (!request_id) return false;
    uint32_t job_idx = id_table_find(&s->ids, request_id);
    if (job_idx == ID_NONE) return false;
    struct job *job = &s->jobs[job_idx];
    if (job->canceled) return true;
    job->canceled = true;
    job->cancel_cause = cause;
    job->cancel_next = s->cancels;
    s->cancels = job_idx;
    return true;
}

bool sched_raise(struct sched *s, uint64_t request_id, uint32_t out_limit)
{
    if (!request_id) return false;
    uint32_t job_idx = id_table_find(&s->ids, request_id);
    if (job_idx == ID_NONE) return false;
    struct job *job = &s->jobs[job_idx];
    if (out_limit <= job->out_limit) return true;
    job->out_limit = out_limit;
    for (uint32_t slot = job->seqs; slot != SLOT_NONE; slot = s->seqs[slot].next) {
        const struct seq *seq = &s->seqs[slot];
        if (seq->state != SEQ_RUNNING) continue;
        s->hot[seq->hot].length_max = length_max_of(job, seq);
        s->touched++;
    }
    return true;
}

/* ---- ends ---- */

/* Tails first, so that a prefix outlives what follows it in the cached list. */
void sequence_release_blocks(struct sched *s, struct hot *hot)
{
    const block_id *table = table_of(s, hot->slot);
    for (uint32_t i = hot->blocks; i-- > 0;) block_pool_release(&s->pool, table[i]);
    hot->blocks = 0;
}

static void slot_free(struct sched *s, uint32_t slot)
{
    s->seqs[slot].state = SEQ_FREE;
    s->seqs[slot].next = s->slot_free_first;
    s->slot_free_first = slot;
    s->slots_free++;
    s->touched++;
}

void sequence_leave(struct sched *s, uint32_t slot)
{
    const block_id *table = table_of(s, slot);
    for (uint32_t i = s->seqs[slot].blocks_left; i-- > 0;) block_pool_release(&s->pool, table[i]);
    s->leaving_count--;
    slot_free(s, slot);
}

void sequence_end(struct sched *s, uint32_t slot, enum finish finish)
{
    struct seq *seq = &s->seqs[slot];
    struct job *job = &s->jobs[seq->job];
    if (seq->choice->finish == FINISH_NONE) seq->choice->finish = finish;
    if (seq->state == SEQ_RUNNING) {
        struct hot *hot = &s->hot[seq->hot];
        if (PLANTED(LEAK_ON_CANCEL) && finish == FINISH_CANCELED && hot->blocks) hot->blocks--;
        if (hot->under_way == 0 || PLANTED(FREE_UNDER_WAY)) sequence_release_blocks(s, hot); /* R22 */
        seq->blocks_left = hot->blocks;
        seq->steps_left = hot->under_way;
        hot->slot = SLOT_NONE;
        fair_run_end(&s->fair, seq->tenant, seq->rank);
    } else {
        seq->steps_left = 0; /* nobody is preempted while a step is under way */
        fair_remove(&s->fair, s->jobs_max + slot);
        heap_remove(&s->ageing, s->jobs_max + slot);
    }
    if (seq->output_count) job->positions_out += seq->position_last + 1 - seq->prompt_count;
    if (seq->previous != SLOT_NONE)
        s->seqs[seq->previous].next = seq->next;
    else
        job->seqs = seq->next;
    if (seq->next != SLOT_NONE) s->seqs[seq->next].previous = seq->previous;
    job->choices_ended++;
    if (seq->steps_left == 0) {
        slot_free(s, slot);
    } else {
        seq->state = SEQ_LEAVING;
        s->leaving_count++;
    }
}

/* Blocks that only this request could ever use again. */
static void forget_private(struct sched *s, const struct job *job)
{
    struct prefix_key key = job->root;
    const struct request *request = job->request;
    for (uint32_t i = 0; i + KV_BLOCK_TOKENS <= request->prompt_count; i += KV_BLOCK_TOKENS) {
        key = prefix_cache_key(key, request->prompt + i);
        block_id block = prefix_cache_holder(&s->cache, key);
        if (block == BLOCK_NONE) continue;
        prefix_cache_remove(&s->cache, block);
        block_pool_index(&s->pool, block, false);
    }
}

static void job_free(struct sched *s, uint32_t job_idx)
{
    struct job *job = &s->jobs[job_idx];
    if (job->canceled) { /* still on the list when it ends by itself in the same step */
        uint32_t *link = &s->cancels;
        while (*link != SLOT_NONE && *link != job_idx) link = &s->jobs[*link].cancel_next;
        if (*link == job_idx) *link = job->cancel_next;
    }
    if (s->blocked_entry == job_idx) s->blocked_entry = SLOT_NONE;
    heap_remove(&s->deadlines, job_idx);
    id_table_remove(&s->ids, job->request->id);
    job->state = JOB_FREE;
    job->next_free = s->job_free_first;
    s->job_free_first = job_idx;
    s->jobs_count--;
    s->priority_jobs -= job->request->service_class == CLASS_PRIORITY;
    s->touched++;
}

/* The three counts of output: the scheduler's, the choices', the batch positions'. Metering design, section 2.1. */
static void count_output(struct sched *s, const struct job *job)
{
    struct request *request = job->request;
    struct usage *usage = &request->usage;
    uint64_t choices_out = 0;
    for (uint32_t i = 0; i < request->choices_count; i++) {
        choices_out += request->choices[i].output_count;
        usage->out_reasoning += request->choices[i].reasoning_count;
        usage->out_trimmed += request->choices[i].trimmed_count;
    }
    uint64_t lowest = job->out < choices_out ? job->out : choices_out;
    if (job->positions_out < lowest) lowest = job->positions_out;
    usage->mismatch = job->out != choices_out || job->out != job->positions_out;
    if (usage->mismatch) s->stats.mismatches++;
    usage->out = (uint32_t)lowest;
    if (usage->out_reasoning > usage->out) usage->out_reasoning = usage->out; /* parts of it, also when they disagree */
    if (usage->out_trimmed > usage->out) usage->out_trimmed = usage->out;
}

void job_done(struct sched *s, uint32_t job_idx, enum cause cause, enum status status, uint64_t now_ns)
{
    struct job *job = &s->jobs[job_idx];
    struct request *request = job->request;
    CHECK(job->state == JOB_STARTED && job->seqs == SLOT_NONE);
    if (job->private_domain && job->indexes) forget_private(s, job);
    count_output(s, job);
    request->usage.cause = cause;
    request->done_ns = now_ns;
    s->stats.requests_done++;
    *event_add(s) = (struct event){.kind = REQUEST_DONE, .status = status, .request = request};
    job_free(s, job_idx);
}

void job_end(struct sched *s, uint32_t job_idx, enum finish finish, enum cause cause, enum status status,
             uint64_t now_ns)
{
    struct job *job = &s->jobs[job_idx];
    struct request *request = job->request;
    CHECK(job->state != JOB_FREE);
    for (uint32_t i = job->choices_started; i < request->choices_count; i++) request->choices[i].finish = finish;
    fair_remove(&s->fair, job_idx);
    heap_remove(&s->ageing, job_idx);
    if (job->state == JOB_STARTED) {
        while (job->seqs != SLOT_NONE) sequence_end(s, job->seqs, finish);
        job_done(s, job_idx, cause, status, now_ns);
        return;
    }
    s->stats.waiting--;
    s->stats.waiting_tokens -= request->prompt_count;
    s->tenants[request->tenant].requests--;
    s->tenants[request->tenant].tokens -= request->prompt_count;
    s->stats.requests_refused++;
    request->usage.cause = cause;
    request->done_ns = now_ns;
    *event_add(s) = (struct event){.kind = REQUEST_REFUSED, .status = status, .request = request};
    job_free(s, job_idx);
}

/* Takes the records of ended sequences out, keeping the order of admission. */
void hot_sweep(struct sched *s)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        if (s->hot[i].slot == SLOT_NONE) continue;
        if (kept != i) {
            s->hot[kept] = s->hot[i];
            s->seqs[s->hot[kept].slot].hot = kept;
        }
        kept++;
    }
    s->touched += s->hot_count;
    s->hot_count = kept;
}

/* Whole, as if they had not been planned; for who goes on only when nobody does. */
static void discard_steps(struct sched *s)
{
    for (uint32_t i = 0; i < s->steps_open; i++) {
        const struct planned_step *step = &s->steps[(s->step_oldest + i) % SCHED_STEPS_MAX];
        for (uint32_t p = 0; p < step->batch->seqs_count; p++) {
            struct seq *seq = &s->seqs[step->parts[p].slot];
            if (seq->state != SEQ_LEAVING)
                s->hot[seq->hot].under_way--;
            else if (--seq->steps_left == 0)
                sequence_leave(s, step->parts[p].slot);
        }
    }
    s->steps_open = 0;
}

void sched_end_all(struct sched *s, enum cause cause, enum status status, uint64_t now_ns)
{
    discard_steps(s); /* R14 */
    enum finish finish = status == ST_CANCELED ? FINISH_CANCELED : FINISH_ERROR;
    for (uint32_t i = 0; i < s->jobs_max && s->jobs_count; i++)
        if (s->jobs[i].state != JOB_FREE) job_end(s, i, finish, cause, status, now_ns);
    hot_sweep(s);
    fair_settle(&s->fair);
}

/* ---- queries ---- */

const struct event *sched_events(const struct sched *s, uint32_t *count)
{
    *count = s->events_count;
    return s->events;
}

void sched_events_taken(struct sched *s)
{
    s->events_count = 0;
}

uint32_t sched_steps_open(const struct sched *s)
{
    return s->steps_open;
}

bool sched_has_work(const struct sched *s)
{
    return s->jobs_count > 0;
}

void sched_stats_read(const struct sched *s, struct sched_stats *stats)
{
    *stats = s->stats;
    stats->running = s->jobs_count ? s->hot_count : 0; /* the records of the last to end are swept by the next plan */
    stats->kv_blocks_used = s->pool.used_count;
    stats->kv_blocks_cached = s->pool.cached_count;
    stats->touched = s->touched + s->pool.touched + s->deadlines.touched + s->ageing.touched + fair_touched(&s->fair);
}

uint64_t sched_queue_wait_ns(const struct sched *s)
{
    double wait_ns = (double)s->stats.waiting_tokens * s->ns_per_token;
    return wait_ns < 1e18 ? (uint64_t)wait_ns : (uint64_t)1e18;
}
