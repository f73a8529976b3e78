/* See power_replay.h. */
#include "tests/support/power_replay.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "scheduler/heap.h"
#include "scheduler/sched.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    VOCAB = 64,
    END_ID = 63,
    ROWS = 16,
    PROMPT = 8,
    COMPUTED = PROMPT - 1, /* and one for each token of the answer: the last one is not computed with */
    OUT_MAX = 64,
    CONTEXT = 128,
    POOL = 8192,
    PLAN_MS = 60000,
    SLOTS_PER_DAY = 96,
    RECENT_MINUTES = 10,
    FORECAST_SLOTS = 192
};

static const double TOKENS_PER_S = 8, STEP_TOKENS_LEAST = 4; /* a step of fewer tokens takes as long as these */
static const int64_t START_MS = INT64_C(2000000) * REPLAY_SLOT_MS;
static const double LAST_DAY_WEIGHT = 0.8; /* as of 15 minutes of 0.1 each (server/power/plan.c) */
static const double PI = 3.14159265358979323846;

/* A job or an interactive request of the seed. */
struct work {
    int64_t arrival_ms, deadline_ms;
    uint32_t out_max, out; /* bound and true */
    enum { INTERACTIVE, BATCH, FLEX } kind;
    uint32_t idx; /* of the plan's job */
    bool admitted, started, ended;
    uint32_t told;    /* tokens that events have told */
    uint64_t request; /* the scheduler's id of it, while it is there */
};

/* What the scheduler holds of one. */
struct running {
    struct request request;
    struct choice choice;
    uint32_t tokens[PROMPT + OUT_MAX];
    uint32_t work, next_free;
};

struct replay {
    const struct replay_config *config;
    struct replay_result *result;
    struct work *works; /* by arrival */
    uint32_t works_count, arrived;
    struct running *pool;
    uint32_t pool_free;
    struct sched *sched;
    uint64_t requests; /* ids given */
    struct batch_result *results;
    struct deadline *plan;
    uint32_t *work_of_job; /* by the plan's number */
    int64_t now_ms, planned_ms;
    double now_part_ms;                                                 /* of steps that end between milliseconds */
    double interactive[REPLAY_SLOTS_MAX], deferrable[REPLAY_SLOTS_MAX]; /* tokens */
    double forecast[REPLAY_SLOTS_MAX];                         /* factor of the price as told before its slot */
    double interactive_p95, interactive_of_day[SLOTS_PER_DAY]; /* tokens a slot, by the days before */
    double last_day[SLOTS_PER_DAY];                            /* the last 96 slots */
    uint32_t learnt;                                           /* slots that these hold */
    double interactive_now, interactive_all, interactive_seen; /* a slot's tokens by the last minutes; tokens */
};

static struct sched_text texts[VOCAB];
static const uint32_t end_ids[1] = {END_ID};

bool replay_add_trace(const char *path, double scale, double out[REPLAY_SLOTS_MAX])
{
    char line[128];
    uint32_t rows = 0;
    FILE *file = fopen(path, "r");
    if (!file) return false;
    bool good = fgets(line, sizeof line, file) != NULL; /* its head */
    while (good && fgets(line, sizeof line, file)) {
        char *comma = strchr(line, ','), *end = comma;
        double value = comma ? strtod(comma + 1, &end) : 0;
        good = comma && end != comma + 1 && *end == '\n' && rows < REPLAY_SLOTS_MAX;
        if (good) out[rows++] += scale * value;
    }
    (void)fclose(file);
    return good && rows == REPLAY_SLOTS_MAX;
}

/* ---- the work of a seed ---- */

static double slot_tokens(void)
{
    return TOKENS_PER_S * REPLAY_SLOT_MS / 1e3;
}

static double draw(uint64_t *rng)
{
    return random_next_uniform(rng);
}

/* Requests of a kind come in a Poisson stream whose rate follows the hour, if `daily`. */
static void draw_kind(struct replay *r, uint64_t *rng, uint32_t kind, double share, bool daily, double hours_min,
                      double hours_max)
{
    const struct replay_config *config = r->config;
    double mean_out =
        config->exact_lengths ? OUT_MAX : (OUT_MAX + 2.0) / 4 + 0.5; /* bounds are uniform, so are lengths */
    int64_t end_ms = START_MS + (int64_t)config->slots * REPLAY_SLOT_MS;
    double at_ms = (double)START_MS,
           gap_ms = share > 0 ? 1e3 * (COMPUTED + mean_out) / (share * TOKENS_PER_S) : INFINITY;
    for (;;) {
        at_ms += -log(1 - draw(rng)) * gap_ms / (daily ? 2 : 1);
        double hour = fmod((at_ms - (double)START_MS) / 3.6e6, 24), rate = 0.5 - 0.5 * cos(2 * PI * (hour - 3) / 24);
        if (at_ms >= (double)end_ms) return;
        if (daily && draw(rng) > rate) continue; /* thinned: most at three in the afternoon */
        double hours = floor(hours_min + draw(rng) * (hours_max - hours_min + 1));
        struct work work = {.arrival_ms = (int64_t)at_ms, .kind = kind};
        work.deadline_ms = work.arrival_ms + (int64_t)hours * 3600000;
        work.out_max = config->exact_lengths ? OUT_MAX : 2 + (uint32_t)(draw(rng) * (OUT_MAX - 1));
        work.out = config->exact_lengths ? OUT_MAX : 1 + (uint32_t)(draw(rng) * work.out_max);
        if (kind != INTERACTIVE && work.deadline_ms > end_ms) continue; /* the replay ends before it must be done */
        r->works = mem_resize(r->works, r->works_count + 1, sizeof work);
        CHECK(r->works);
        r->works[r->works_count++] = work;
    }
}

static int by_arrival(const void *a, const void *b)
{
    const struct work *x = a, *y = b;
    if (x->arrival_ms != y->arrival_ms) return x->arrival_ms < y->arrival_ms ? -1 : 1;
    return (x->kind > y->kind) - (x->kind < y->kind);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile_95(const double day[SLOTS_PER_DAY])
{
    double sorted[SLOTS_PER_DAY];
    memcpy(sorted, day, sizeof sorted);
    qsort(sorted, SLOTS_PER_DAY, sizeof *sorted, by_value);
    return sorted[SLOTS_PER_DAY * 95 / 100];
}

/* The plan has seen a day before the replay, as no node is new each week. */
static void draw_day_before(struct replay *r)
{
    struct replay_config config = *r->config;
    config.slots = SLOTS_PER_DAY;
    struct replay day = {.config = &config};
    uint64_t rng = config.seed * 7919 + 2;
    draw_kind(&day, &rng, INTERACTIVE, config.interactive, true, 0, 0);
    for (uint32_t i = 0; i < day.works_count; i++) {
        const struct work *work = &day.works[i];
        r->last_day[(work->arrival_ms - START_MS) / REPLAY_SLOT_MS] += COMPUTED + work->out;
    }
    memcpy(r->interactive_of_day, r->last_day, sizeof r->last_day);
    r->interactive_p95 = percentile_95(r->last_day);
    mem_free(day.works);
}

/* Slots that are over. */
static void learn_interactive(struct replay *r, uint32_t slot)
{
    for (; r->learnt < slot && r->learnt < r->config->slots; r->learnt++) {
        uint32_t of_day = r->learnt % SLOTS_PER_DAY;
        r->last_day[of_day] = r->interactive[r->learnt];
        r->interactive_of_day[of_day] += LAST_DAY_WEIGHT * (r->last_day[of_day] - r->interactive_of_day[of_day]);
    }
    r->interactive_p95 = percentile_95(r->last_day);
}

static void draw_works(struct replay *r)
{
    const struct replay_config *config = r->config;
    uint64_t rng = config->seed * 7919 + 1;
    draw_kind(r, &rng, INTERACTIVE, config->interactive, true, 0, 0);
    draw_kind(r, &rng, BATCH, config->batch, false, config->hours_min, config->hours_max);
    draw_kind(r, &rng, FLEX, config->flex, false, 24, 24);
    qsort(r->works, r->works_count, sizeof *r->works, by_arrival);
    for (uint32_t i = 0; i < config->slots; i++) {
        double normal = sqrt(-2 * log(1 - draw(&rng))) * cos(2 * PI * draw(&rng));
        r->forecast[i] = fmax(1 + config->price_error * normal, 0);
    }
}

/* ---- the plan ---- */

static uint32_t slot_now(const struct replay *r)
{
    return (uint32_t)((r->now_ms - START_MS) / REPLAY_SLOT_MS);
}

static double speed_at(const struct replay *r, uint32_t slot)
{
    const struct replay_config *config = r->config;
    bool lost = slot >= config->loss_slot && slot < config->loss_slot + config->loss_slots;
    return config->speed * (lost ? 1 - config->loss : 1);
}

static void submit(struct replay *r, uint32_t idx, enum service_class class)
{
    struct work *work = &r->works[idx];
    CHECK(r->pool_free != UINT32_MAX);
    struct running *running = &r->pool[r->pool_free];
    r->pool_free = running->next_free;
    uint64_t rng = idx;
    running->work = idx;
    work->request = ++r->requests;
    for (uint32_t i = 0; i < PROMPT; i++) running->tokens[i] = (uint32_t)(random_next(&rng) % END_ID);
    running->choice = (struct choice){.tokens = running->tokens, .seed = PROMPT + work->out - 1}; /* where it ends */
    running->request =
        (struct request){.id = work->request,
                         .owner = running,
                         .tenant = idx % 8,
                         .service_class = class,
                         .prompt = running->tokens,
                         .prompt_count = PROMPT,
                         .choices = &running->choice,
                         .choices_count = 1,
                         .params = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1},
                         .max_tokens = work->out_max};
    CHECK(sched_submit(r->sched, &running->request, (uint64_t)r->now_ms * 1000000) == ST_OK);
    sched_events_taken(r->sched);
}

static void on_news(void *state, const struct deadline_news *news)
{
    struct replay *r = state;
    uint32_t idx = r->work_of_job[news->job];
    if (!news->released) { /* it still waits in the scheduler */
        CHECK(sched_cancel(r->sched, r->works[idx].request, CAUSE_PLATFORM_CANCEL));
        return;
    }
    submit(r, idx, r->works[idx].kind == FLEX ? CLASS_FLEX : CLASS_BATCH);
}

static void start_released(struct replay *r)
{
    if (!r->config->at_once) (void)deadline_choose(r->plan, r->now_ms, on_news, r);
}

/* What interactive requests will take of this slot: what they have, and for the rest what they took lately. */
static double interactive_here(struct replay *r, uint32_t slot)
{
    double minutes = (double)(r->now_ms - r->planned_ms) / PLAN_MS, per_slot = (double)REPLAY_SLOT_MS / PLAN_MS;
    double rest = 1 - (double)((r->now_ms - START_MS) % REPLAY_SLOT_MS) / REPLAY_SLOT_MS;
    if (minutes > 0) {
        double rate = (r->interactive_all - r->interactive_seen) / minutes * per_slot;
        r->interactive_now += fmin(minutes / RECENT_MINUTES, 1) * (rate - r->interactive_now);
        r->interactive_seen = r->interactive_all;
    }
    return (slot < r->config->slots ? r->interactive[slot] : 0) + rest * r->interactive_now;
}

static void make_plan(struct replay *r)
{
    const struct replay_config *config = r->config;
    static struct deadline_slot slots[FORECAST_SLOTS];
    uint32_t first = slot_now(r), count = 0;
    double here = interactive_here(r, first);
    if (first > r->learnt) learn_interactive(r, first);
    for (uint32_t i = first; count < FORECAST_SLOTS; i++, count++) {
        struct deadline_slot *slot = &slots[count];
        double interactive = i == first ? here : r->interactive_of_day[i % SLOTS_PER_DAY];
        *slot = (struct deadline_slot){
            .capacity = fmax(slot_tokens() * config->speed - fmax(r->interactive_p95, count < 2 ? here : 0), 0),
            .likely = fmax(slot_tokens() * config->speed - interactive, 0)};
        if (i >= config->slots) continue;
        if (config->green) slot->green = fmax(config->green[i] * slot_tokens() - interactive, 0);
        slot->priced = config->price != NULL;
        slot->forecast = i != first && config->price_error > 0;
        if (config->price) slot->price = config->price[i] * (i == first ? 1 : r->forecast[i]);
    }
    deadline_profile(r->plan, r->now_ms, slots, count, config->price ? DEADLINE_PRICE : DEADLINE_GREEN, false);
    r->planned_ms = r->now_ms;
}

static void arrive(struct replay *r, uint32_t idx)
{
    struct work *work = &r->works[idx];
    struct deadline_job job = {.work = COMPUTED + work->out_max,
                               .deadline_ms = work->deadline_ms,
                               .span_ms = (int64_t)(work->out_max * 1e3 * ROWS / (TOKENS_PER_S * r->config->speed)),
                               .mode = work->kind == FLEX ? DEADLINE_FLEX : DEADLINE_PREFER};
    int64_t earliest_ms;
    r->result->jobs += work->kind == BATCH;
    r->result->flex_jobs += work->kind == FLEX;
    if (work->kind == INTERACTIVE || r->config->at_once) {
        work->admitted = true;
        submit(r, idx, work->kind == INTERACTIVE ? CLASS_DEFAULT : CLASS_BATCH);
        return;
    }
    work->admitted = deadline_admit(r->plan, &job, r->now_ms, &work->idx, &earliest_ms) == ST_OK;
    if (work->admitted) r->work_of_job[work->idx] = idx;
    r->result->refused += !work->admitted && work->kind == BATCH;
}

/* ---- a step ---- */

static void count_tokens(struct replay *r, struct work *work, uint32_t tokens)
{
    uint32_t slot = slot_now(r), more = tokens - work->told;
    work->told = tokens;
    if (slot >= r->config->slots) return; /* the last step may end after the replay */
    (work->kind == INTERACTIVE ? r->interactive : r->deferrable)[slot] += more;
    if (work->kind == INTERACTIVE) r->interactive_all += more;
    if (work->kind != INTERACTIVE && r->config->price) r->result->cost += more * r->config->price[slot];
    if (work->kind != INTERACTIVE && !r->config->at_once)
        deadline_left(r->plan, work->idx, COMPUTED + work->out_max - (double)tokens);
}

static void note_start(struct replay *r, struct work *work)
{
    double waited_s = (double)(r->now_ms - work->arrival_ms) / 1e3;
    work->started = true;
    if (work->kind == INTERACTIVE) r->result->interactive_wait_s = fmax(r->result->interactive_wait_s, waited_s);
    if (work->kind != FLEX) return;
    r->result->flex_wait_s_max = fmax(r->result->flex_wait_s_max, waited_s);
    r->result->flex_late += waited_s > 900;
}

static void end_work(struct replay *r, struct work *work)
{
    CHECK(work->told == COMPUTED + work->out);
    work->ended = true;
    if (work->kind == BATCH) r->result->misses += r->now_ms > work->deadline_ms;
    if (work->kind != INTERACTIVE && !r->config->at_once) deadline_remove(r->plan, work->idx, true);
}

static void take_event(struct replay *r, const struct event *event)
{
    struct running *running = event->request->owner;
    struct work *work = &r->works[running->work];
    bool back = event->kind == REQUEST_REFUSED; /* taken back */
    CHECK(!back || event->status == ST_CANCELED);
    if (event->kind == REQUEST_SCHEDULED && !work->started) {
        if (!r->config->at_once && work->kind != INTERACTIVE) deadline_start(r->plan, work->idx);
        note_start(r, work);
    }
    if (event->kind == CHOICE_TOKENS) count_tokens(r, work, COMPUTED + event->output_count);
    if (event->kind == REQUEST_DONE) end_work(r, work);
    if (event->kind != REQUEST_DONE && !back) return;
    running->next_free = r->pool_free;
    r->pool_free = (uint32_t)(running - r->pool);
}

/* Runs a step, if there is something to run. */
static bool step(struct replay *r)
{
    const struct batch *batch = sched_plan(r->sched, (uint64_t)r->now_ms * 1000000);
    uint32_t count;
    const struct event *events;
    if (batch->tokens_count) {
        double tokens = fmax(batch->tokens_count, STEP_TOKENS_LEAST);
        for (uint32_t i = 0; i < batch->rows_count; i++) {
            bool last = batch->rows[i].position >= batch->rows[i].seed;
            r->results->rows[i] = (struct row_result){.id = last ? END_ID : i % END_ID};
        }
        r->now_part_ms += 1e3 * tokens / (TOKENS_PER_S * speed_at(r, slot_now(r)));
        r->now_ms += (int64_t)r->now_part_ms;
        r->now_part_ms -= floor(r->now_part_ms);
        r->result->steps++;
        sched_commit(r->sched, r->results, (uint64_t)r->now_ms * 1000000);
    }
    bool ran = batch->tokens_count > 0;
    events = sched_events(r->sched, &count);
    for (uint32_t i = 0; i < count; i++) take_event(r, &events[i]);
    sched_events_taken(r->sched);
    return ran;
}

/* ---- what it is held against ---- */

/* EDF over capacity[slot] for work with its true lengths: how much of it is filled. Ends are by slots, rounded in the
 * optimum's favour. */
static double fill(const struct replay *r, const double *capacity, struct heap *heap, double *left)
{
    double filled = 0;
    uint32_t next = 0;
    while (heap->count) heap_remove(heap, heap_top(heap));
    for (uint32_t slot = 0; slot < r->config->slots; slot++) {
        int64_t begin_ms = START_MS + (int64_t)slot * REPLAY_SLOT_MS;
        for (; next < r->works_count && r->works[next].arrival_ms < begin_ms + REPLAY_SLOT_MS; next++) {
            const struct work *work = &r->works[next];
            if (!work->admitted || work->kind == INTERACTIVE) continue;
            left[next] = COMPUTED + work->out;
            heap_set(heap, next, (uint64_t)work->deadline_ms);
        }
        for (double room = capacity[slot]; room > 0;) {
            uint32_t idx = heap_top(heap);
            if (idx == HEAP_NONE) break;
            if (r->works[idx].deadline_ms <= begin_ms) { /* dropped */
                heap_remove(heap, idx);
                continue;
            }
            double part = fmin(room, left[idx]);
            room -= part;
            filled += part;
            if ((left[idx] -= part) <= 0) heap_remove(heap, idx);
        }
    }
    return filled;
}

struct priced {
    double price;
    uint32_t slot;
};

static int by_price(const void *a, const void *b)
{
    const struct priced *x = a, *y = b;
    if (x->price != y->price) return x->price < y->price ? -1 : 1;
    return (x->slot > y->slot) - (x->slot < y->slot);
}

static double cheapest(const struct replay *r, const double *room, double all, struct heap *heap, double *left)
{
    static double capacity[REPLAY_SLOTS_MAX];
    static struct priced order[REPLAY_SLOTS_MAX];
    double cost = 0, rank = 0;
    uint32_t slots = r->config->slots;
    memset(capacity, 0, sizeof capacity);
    for (uint32_t i = 0; i < slots; i++) order[i] = (struct priced){r->config->price[i], i};
    qsort(order, slots, sizeof *order, by_price);
    for (uint32_t i = 0; i < slots && rank < all; i++) {
        uint32_t slot = order[i].slot;
        capacity[slot] = room[slot];
        double grown = fill(r, capacity, heap, left);
        capacity[slot] = grown - rank;
        cost += (grown - rank) * order[i].price;
        rank = grown;
    }
    CHECK(rank >= all - 0.5); /* all of it can be done */
    return cost;
}

static void hold_against_optimum(struct replay *r)
{
    const struct replay_config *config = r->config;
    struct replay_result *result = r->result;
    double room[REPLAY_SLOTS_MAX], green[REPLAY_SLOTS_MAX];
    struct heap heap;
    double *left = mem_alloc(r->works_count + 1, sizeof *left);
    CHECK(left && heap_init(&heap, r->works_count + 1) == ST_OK);
    for (uint32_t i = 0; i < config->slots; i++) {
        room[i] = fmax(slot_tokens() * speed_at(r, i) - r->interactive[i], 0);
        green[i] = config->green ? fmin(fmax(config->green[i] * slot_tokens() - r->interactive[i], 0), room[i]) : 0;
        result->tokens += r->deferrable[i];
        result->green_tokens += fmin(r->deferrable[i], green[i]);
    }
    if (config->green) result->green_optimum = fill(r, green, &heap, left);
    if (config->price) result->cost_optimum = cheapest(r, room, result->tokens, &heap, left);
    heap_free(&heap);
    mem_free(left);
}

/* ---- a run ---- */

static void open(struct replay *r)
{
    const struct sched_config config = {.context_max = CONTEXT,
                                        .running_max = ROWS,
                                        .step_tokens_max = 2 * ROWS,
                                        .rows_max = ROWS,
                                        .kv_blocks = ROWS * CONTEXT / KV_BLOCK_TOKENS,
                                        .queue_requests_max = POOL,
                                        .queue_tokens_max = 1u << 24,
                                        .tenants_max = 8,
                                        .tenant_share_percent = 100,
                                        .think_start_id = UINT32_MAX,
                                        .think_end_id = UINT32_MAX,
                                        .texts = texts,
                                        .texts_count = VOCAB,
                                        .end_ids = end_ids,
                                        .end_ids_count = 1};
    const struct deadline_config plan = {
        .jobs_max = 100000, .margin_slots = r->config->margin_slots, .slot_ms = REPLAY_SLOT_MS};
    struct error err;
    r->pool = mem_alloc(POOL, sizeof *r->pool);
    r->work_of_job = mem_alloc(plan.jobs_max, sizeof *r->work_of_job);
    CHECK(r->pool && r->work_of_job);
    for (uint32_t i = 0; i < POOL; i++) r->pool[i].next_free = i + 1 < POOL ? i + 1 : UINT32_MAX;
    CHECK(sched_create(&config, &r->sched, &err) == ST_OK);
    CHECK(batch_result_create(ROWS, &r->results) == ST_OK);
    CHECK(deadline_create(&plan, &r->plan, &err) == ST_OK);
}

static void close(struct replay *r)
{
    deadline_destroy(r->plan);
    sched_end_all(r->sched, CAUSE_PLATFORM_CANCEL, ST_CANCELED, (uint64_t)r->now_ms * 1000000);
    sched_destroy(r->sched);
    batch_result_destroy(r->results);
    mem_free(r->work_of_job);
    mem_free(r->pool);
    mem_free(r->works);
}

void replay_run(const struct replay_config *config, struct replay_result *result)
{
    struct replay r = {.config = config, .result = result, .now_ms = START_MS};
    int64_t end_ms = START_MS + (int64_t)config->slots * REPLAY_SLOT_MS;
    CHECK(config->slots > 0 && config->slots <= REPLAY_SLOTS_MAX);
    *result = (struct replay_result){0};
    open(&r);
    draw_works(&r);
    draw_day_before(&r);
    r.interactive_now = r.interactive_of_day[0];
    r.planned_ms = r.now_ms;
    make_plan(&r);
    while (r.now_ms < end_ms) {
        if (r.now_ms - r.planned_ms >= PLAN_MS || slot_now(&r) != (r.planned_ms - START_MS) / REPLAY_SLOT_MS)
            make_plan(&r);
        while (r.arrived < r.works_count && r.works[r.arrived].arrival_ms <= r.now_ms) arrive(&r, r.arrived++);
        start_released(&r);
        if (step(&r)) continue;
        int64_t next_ms = r.planned_ms + PLAN_MS;
        if (r.arrived < r.works_count && r.works[r.arrived].arrival_ms < next_ms)
            next_ms = r.works[r.arrived].arrival_ms;
        r.now_ms = next_ms > r.now_ms ? next_ms : r.now_ms + 1;
    }
    for (uint32_t i = 0; i < r.works_count; i++) {
        const struct work *work = &r.works[i];
        result->admitted += work->kind == BATCH && work->admitted;
        result->flex_admitted += work->kind == FLEX && work->admitted;
        result->misses += work->kind == BATCH && work->admitted && !work->ended;
        result->flex_late += work->kind == FLEX && work->admitted && !work->started;
    }
    hold_against_optimum(&r);
    close(&r);
}
