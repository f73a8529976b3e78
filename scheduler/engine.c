/* The engine thread: commands in, steps, events out; see engine.h.
 *
 *   round: hand held events over -> (the turn) -> take commands -> plan, device step, commit -> statistics
 *                                                              \-> (nothing to do: sleep)
 *
 * With a device that runs ahead a round is: plan and launch n+1, hand over what the plan ended and started, collect n,
 * commit n. When nothing can be planned before the commit (or the turn is to be handed on) the round only collects.
 *
 * Under a watt budget (config.power) a plan is given what the joule bucket has, and a step is paid from it as it goes
 * to the device; with an empty bucket the plan only ends what is to be ended, and the engine sleeps until there is
 * credit.
 *
 * Submissions and cancels come through one ring, so that a cancel never overtakes its request. Events are pushed from
 * the scheduler's own list; what does not fit stays there, and no further step is planned until it does. The io thread
 * rings the doorbell after each push. Beside another engine on the same cores (config.turn) a round with work waits for
 * the turn, so that its plan is of the moment it runs, and the turn is given back before every sleep. The cost model
 * sees the step alone: the gap between tokens that a stream sees is then that of both engines' steps.
 *
 * Rejected: one ring for cancels alone (order), a second thread that waits for the device (two owners of the scheduler,
 * and nothing left to hide). */
#include "scheduler/engine.h"

#include "runtime/base/check.h"
#include "runtime/base/doorbell.h"
#include "runtime/base/mem.h"
#include "runtime/base/ring.h"
#include "runtime/base/seqlock.h"
#include "scheduler/sched.h"

#include <pthread.h>
#include <stdatomic.h>

enum { COMMANDS_MIN = 1024, EVENTS_MIN = 4096, IDLE_TURN_MS = 500, EMPTY_PLAN_TURN_MS = 5 };

struct command {
    struct request *request; /* NULL: a cancel or a raise */
    uint64_t request_id;
    uint32_t out_limit; /* 0: a cancel */
    enum cause cause;
};

_Static_assert(sizeof(struct engine_stats) % sizeof(uint64_t) == 0, "copied in words");
enum { STATS_WORDS = sizeof(struct engine_stats) / sizeof(uint64_t) };

_Static_assert((uint32_t)SCHED_STEPS_MAX == (uint32_t)LAUNCHED_MAX, "planned as far ahead as launched");

struct engine {
    struct engine_config config;
    struct device *device;
    struct sched_text *texts;
    struct sched *sched; /* engine thread; after the join the io thread */
    struct batch_result *result;
    struct ring commands, events;
    pthread_t thread;
    bool joined; /* io thread */

    /* of a device that runs ahead */
    struct under_way {
        uint64_t planned_ns, launched_ns; /* when its plan began; when the device had it */
        struct power_step power;
    } under_way[LAUNCHED_MAX]; /* launched and not committed, the oldest first */
    uint32_t under_way_count;
    bool collected; /* the oldest of them is in `result`, with this status, after so long */
    enum status collected_status;
    uint64_t collected_ns, collected_step_ns, committed_ns;

    uint32_t turn_member;
    bool holds_turn, turn_due;
    uint32_t events_given; /* of the scheduler's list, already in the ring */
    bool wake_due, device_lost;
    struct engine_stats stats; /* engine thread's own */
    uint64_t power_wait_ns;    /* of the last plan: no watts for so long; 0: it had some */
    uint64_t accounted_ns;     /* up to here the thread's time is in own, device or idle */

    struct seqlock stats_lock;
    _Atomic uint64_t stats_words[STATS_WORDS];

    _Atomic bool stop;
    struct doorbell doorbell;
    _Atomic uint32_t wants_room; /* the event ring was full */
};

/* ---- statistics ---- */

/* The time since the last call goes to one of own, device and idle. */
static void account(struct engine *e, uint64_t *bucket_ns, uint64_t now_ns)
{
    *bucket_ns += now_ns - e->accounted_ns;
    e->accounted_ns = now_ns;
}

static void stats_publish(struct engine *e, uint64_t now_ns)
{
    struct engine_stats *stats = &e->stats;
    struct sched_stats from;
    sched_stats_read(e->sched, &from);
    stats->prompt_tokens = from.prompt_tokens;
    stats->cached_tokens = from.cached_tokens;
    stats->computed_prompt_tokens = from.computed_prompt_tokens;
    stats->generation_tokens = from.generation_tokens;
    stats->recomputed_tokens = from.recomputed_tokens;
    stats->preemptions = from.preemptions;
    stats->prefix_queries_tokens = from.prefix_queries_tokens;
    stats->prefix_hits_tokens = from.prefix_hits_tokens;
    stats->requests_done = from.requests_done;
    stats->requests_refused = from.requests_refused;
    stats->running = from.running;
    stats->waiting = from.waiting;
    stats->waiting_tokens = from.waiting_tokens;
    stats->kv_blocks_used = from.kv_blocks_used;
    stats->kv_blocks_cached = from.kv_blocks_cached;
    stats->kv_blocks_total = from.kv_blocks_total;
    stats->queue_wait_estimate_ns = sched_queue_wait_ns(e->sched);
    stats->last_step_tokens = from.step_tokens;
    stats->last_step_rows = from.step_rows;
    stats->device_lost = e->device_lost;
    stats->beat_ns = now_ns;
    account(e, &stats->own_ns_total, now_ns);
    seqlock_write(&e->stats_lock, e->stats_words, stats, STATS_WORDS);
}

void engine_stats_read(const struct engine *e, struct engine_stats *stats)
{
    (void)seqlock_read(&e->stats_lock, e->stats_words, stats, STATS_WORDS);
}

/* ---- sleeping ---- */

/* Nothing of this engine runs. */
static void give_turn(struct engine *e)
{
    CHECK(e->under_way_count == e->collected);
    if (e->holds_turn) turn_give(e->config.turn, e->turn_member);
    e->holds_turn = e->turn_due = false;
}

/* Before a round that has something to do: the cores are this engine's. */
static void take_turn(struct engine *e)
{
    if (!e->config.turn || e->holds_turn) return;
    if (!sched_has_work(e->sched) && ring_count(&e->commands) == 0) return;
    account(e, &e->stats.own_ns_total, clock_now_ns(e->config.clock));
    uint64_t idle_ns = e->stats.idle_ns_total;
    turn_take(e->config.turn, e->turn_member);
    e->holds_turn = true;
    account(e, &e->stats.idle_ns_total, clock_now_ns(e->config.clock));
    e->stats.turn_ns_total += e->stats.idle_ns_total - idle_ns;
}

/* Sleeps until the doorbell differs from `heard`, at most so long (so that the beat goes on). */
static void sleep_until_rung(struct engine *e, uint32_t heard, uint64_t most_ns)
{
    give_turn(e);
    account(e, &e->stats.own_ns_total, clock_now_ns(e->config.clock));
    doorbell_sleep(&e->doorbell, heard, most_ns);
    account(e, &e->stats.idle_ns_total, clock_now_ns(e->config.clock));
}

/* ---- commands, events, a step ---- */

/* Moves the scheduler's events to the ring; false when some are left. */
static bool give_events(struct engine *e)
{
    uint32_t count;
    const struct event *events = sched_events(e->sched, &count);
    while (e->events_given < count && ring_push(&e->events, &events[e->events_given])) {
        e->events_given++;
        e->wake_due = true;
    }
    if (e->events_given < count) return false;
    sched_events_taken(e->sched);
    e->events_given = 0;
    return true;
}

static void wake_server(struct engine *e)
{
    if (e->wake_due && e->config.wake) e->config.wake(e->config.wake_state);
    e->wake_due = false;
}

static void take_commands(struct engine *e, uint64_t now_ns)
{
    struct command command;
    for (uint32_t i = 0; i < SCHED_SUBMITS_MAX && ring_pop(&e->commands, &command); i++) {
        if (command.out_limit)
            (void)sched_raise(e->sched, command.request_id, command.out_limit);
        else if (!command.request)
            (void)sched_cancel(e->sched, command.request_id, command.cause);
        else if (e->device_lost)
            sched_refuse(e->sched, command.request, ST_DEVICE, now_ns);
        else
            (void)sched_submit(e->sched, command.request, now_ns); /* a refusal is an event */
    }
}

/* ---- watts ---- */

static const struct batch *plan(struct engine *e, uint64_t now_ns)
{
    if (e->config.power) e->power_wait_ns = power_port_begin(e->config.power, e->sched, now_ns);
    return sched_plan(e->sched, now_ns);
}

/* The planned step goes to the device now. */
static void pay(struct engine *e, struct power_step *step, uint64_t now_ns)
{
    if (!e->config.power) return;
    uint32_t count;
    const struct energy_share *shares = sched_plan_shares(e->sched, &count);
    step->joules = sched_plan_joules(e->sched, &step->work);
    power_port_launched(e->config.power, now_ns, step, shares, count);
}

static void tell_step(struct engine *e, struct power_step *step, uint64_t start_ns, uint64_t end_ns, uint64_t next_ns)
{
    if (!e->config.power) return;
    step->start_ns = start_ns;
    step->end_ns = end_ns;
    power_port_stepped(e->config.power, step, next_ns);
}

static void lose_device(struct engine *e, uint64_t now_ns)
{
    e->device_lost = true;
    e->under_way_count = e->collected = 0;
    if (e->config.power) atomic_store(&e->config.power->busy_ns, 0);
    sched_end_all(e->sched, CAUSE_PLATFORM_ERROR, ST_DEVICE, now_ns);
}

/* Whether a step was made. */
static bool step(struct engine *e)
{
    const struct clock *clock = e->config.clock;
    uint64_t start_ns = clock_now_ns(clock);
    struct power_step power;
    const struct batch *batch = plan(e, start_ns);
    if (!batch->tokens_count) return false;
    if (give_events(e)) wake_server(e); /* of starts and ends: they need not wait for the step */
    uint64_t device_start_ns = clock_now_ns(clock);
    account(e, &e->stats.own_ns_total, device_start_ns);
    pay(e, &power, device_start_ns);
    enum status status = device_step(e->device, batch, e->result);
    uint64_t device_end_ns = clock_now_ns(clock);
    account(e, &e->stats.device_ns_total, device_end_ns);
    tell_step(e, &power, device_start_ns, device_end_ns, 0);
    if (e->holds_turn) e->holds_turn = turn_keep(e->config.turn, e->turn_member, device_end_ns - device_start_ns);
    if (status != ST_OK) {
        lose_device(e, device_end_ns);
    } else {
        sched_commit(e->sched, e->result, device_end_ns);
        sched_observe(e->sched, device_end_ns - device_start_ns);
    }
    e->stats.steps++;
    e->stats.step_ns_total += clock_now_ns(clock) - start_ns;
    return true;
}

/* ---- one step ahead ---- */

/* Whether the device was given a step. */
static bool launch(struct engine *e)
{
    const struct clock *clock = e->config.clock;
    struct under_way *mine = &e->under_way[e->under_way_count];
    mine->planned_ns = clock_now_ns(clock);
    const struct batch *batch = plan(e, mine->planned_ns);
    if (!batch->tokens_count) return false;
    enum status status = device_launch(e->device, batch);
    mine->launched_ns = clock_now_ns(clock);
    pay(e, &mine->power, mine->launched_ns);
    if (status != ST_OK) {
        lose_device(e, mine->launched_ns);
        return false;
    }
    e->stats.steps_ahead += e->under_way_count > 0;
    e->under_way_count++;
    return true;
}

/* Waits for the oldest step under way. The turn goes on when it was the last. */
static void collect(struct engine *e)
{
    if (e->collected) return;
    account(e, &e->stats.own_ns_total, clock_now_ns(e->config.clock));
    e->collected_status = device_collect(e->device, e->result);
    e->collected = true;
    uint64_t now_ns = clock_now_ns(e->config.clock), launched_ns = e->under_way[0].launched_ns;
    account(e, &e->stats.device_ns_total, now_ns);
    uint64_t start_ns = launched_ns > e->collected_ns ? launched_ns : e->collected_ns;
    e->collected_step_ns = now_ns - start_ns;
    e->collected_ns = now_ns;
    tell_step(e, &e->under_way[0].power, start_ns, now_ns, e->under_way_count > 1 ? now_ns : 0);
    if (!e->holds_turn) return;
    if (turn_charge(e->config.turn, e->turn_member, e->collected_step_ns)) e->turn_due = true;
    if (!e->turn_due || e->under_way_count > 1) return;
    e->turn_due = false;
    e->holds_turn = turn_pass(e->config.turn, e->turn_member);
}

static void commit(struct engine *e)
{
    uint64_t begun_ns = e->under_way[0].planned_ns;
    if (e->collected_status != ST_OK) {
        lose_device(e, e->collected_ns);
    } else {
        sched_commit(e->sched, e->result, e->collected_ns);
        sched_observe(e->sched, e->collected_step_ns);
        e->under_way[0] = e->under_way[1];
        e->under_way_count--;
        e->collected = false;
    }
    uint64_t now_ns = clock_now_ns(e->config.clock);
    e->stats.steps++;
    e->stats.step_ns_total += now_ns - (begun_ns > e->committed_ns ? begun_ns : e->committed_ns);
    e->committed_ns = now_ns;
}

/* Whether there was something to do. */
static bool step_ahead(struct engine *e)
{
    bool launched = !e->collected && !e->turn_due && sched_has_work(e->sched) && launch(e);
    if (launched && e->under_way_count < LAUNCHED_MAX) return true; /* the next one at once */
    if (!e->under_way_count) return false;
    if (give_events(e)) wake_server(e); /* of starts and ends: they need not wait for the step */
    collect(e);
    commit(e);
    return true;
}

/* Before the end of the thread: what the device has finished is the requests' own, while events have room. */
static void finish_steps(struct engine *e)
{
    bool commits = true;
    while (e->under_way_count) {
        collect(e);
        commits = commits && give_events(e);
        if (commits) {
            commit(e);
        } else {
            e->under_way_count--;
            e->collected = false;
        }
    }
}

/* ---- a round ---- */

/* Nothing was to be done, or could be done now. */
static void sleep_empty(struct engine *e, uint32_t heard)
{
    bool has_work = sched_has_work(e->sched);
    uint64_t idle_ns = e->stats.idle_ns_total, most_ns = (has_work ? EMPTY_PLAN_TURN_MS : IDLE_TURN_MS) * NS_PER_MS;
    bool paced = has_work && e->config.power && power_port_limits(e->config.power);
    if (paced) {
        uint64_t due_ns = sched_power_wait_ns(e->sched, clock_now_ns(e->config.clock));
        if (e->power_wait_ns)
            most_ns = e->power_wait_ns;
        else if (due_ns < most_ns)
            most_ns = due_ns;
    }
    sleep_until_rung(e, heard, most_ns);
    if (!paced) return;
    uint64_t paced_ns = e->stats.idle_ns_total - idle_ns;
    e->stats.paced_ns_total += paced_ns;
    atomic_fetch_add_explicit(&e->config.power->paced_ns, paced_ns, memory_order_relaxed);
}

static void go_round(struct engine *e)
{
    uint32_t heard = doorbell_rings(&e->doorbell);
    if (!give_events(e)) {
        atomic_store(&e->wants_room, 1);
        wake_server(e);
        if (!give_events(e)) {                  /* it may have polled just before it could see the wish */
            if (e->under_way_count) collect(e); /* its commit waits for room, the turn does not */
            stats_publish(e, clock_now_ns(e->config.clock));
            sleep_until_rung(e, heard, IDLE_TURN_MS * NS_PER_MS);
            return;
        }
    }
    atomic_store(&e->wants_room, 0);
    wake_server(e); /* of what the last round left: the turn may be long in coming */
    take_turn(e);
    take_commands(e, clock_now_ns(e->config.clock));
    if (!e->device_lost && device_is_lost(e->device)) lose_device(e, clock_now_ns(e->config.clock));
    bool stepped = device_runs_ahead(e->device) ? step_ahead(e) : sched_has_work(e->sched) && step(e);
    bool given = give_events(e);
    stats_publish(e, clock_now_ns(e->config.clock));
    wake_server(e);
    if (stepped || !given) return;
    sleep_empty(e, heard);
}

static void *engine_thread(void *state)
{
    struct engine *e = state;
    while (!atomic_load(&e->stop)) go_round(e);
    finish_steps(e);
    give_turn(e);
    uint64_t now_ns = clock_now_ns(e->config.clock);
    sched_end_all(e->sched, CAUSE_PLATFORM_CANCEL, ST_CANCELED, now_ns);
    (void)give_events(e); /* the rest is polled from the scheduler's list after the join */
    stats_publish(e, now_ns);
    wake_server(e);
    return NULL;
}

/* ---- creation ---- */

static enum status make_texts(struct engine *e, const struct tokenizer *tokenizer, uint32_t *texts_count)
{
    uint32_t known = tokenizer_count(tokenizer), count = known > e->device->info.vocab ? known : e->device->info.vocab;
    e->texts = mem_alloc(count, sizeof *e->texts);
    if (!e->texts) return ST_NOMEM;
    for (uint32_t id = 0; id < count; id++) {
        struct sched_text *text = &e->texts[id];
        text->bytes = "";
        if (id >= known) continue; /* rows a model pads its vocabulary with */
        text->bytes = tokenizer_bytes(tokenizer, id, &text->length);
        text->special = tokenizer_is_special(tokenizer, id);
    }
    *texts_count = count;
    return ST_OK;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static enum status make_scheduler(struct engine *e, const struct tokenizer *tokenizer, struct error *err)
{
    const struct engine_config *c = &e->config;
    const struct device_info *info = &e->device->info;
    uint32_t texts_count, end_ids_count;
    if (make_texts(e, tokenizer, &texts_count) != ST_OK)
        return error_set(err, ST_NOMEM, "engine: no memory for token texts");
    const uint32_t *end_ids = tokenizer_end_ids(tokenizer, &end_ids_count);
    struct sched_config config = {.context_max = c->context_max,
                                  .running_max = least(c->running_max, least(info->seqs_max, info->rows_max)),
                                  .step_tokens_max = least(c->step_tokens_max, info->tokens_max),
                                  .rows_max = info->rows_max,
                                  .kv_blocks = info->kv_blocks,
                                  .queue_requests_max = c->queue_requests_max,
                                  .queue_tokens_max = c->queue_tokens_max,
                                  .tenants_max = c->tenants_max,
                                  .tenant_share_percent = c->tenant_share_percent,
                                  .tells_shares = c->power != NULL,
                                  .itl_target_ns = c->itl_target_ns,
                                  .prefix_cache = c->prefix_cache,
                                  .think_start_id = c->think_start_id,
                                  .think_end_id = c->think_end_id,
                                  .texts = e->texts,
                                  .texts_count = texts_count,
                                  .end_ids = end_ids,
                                  .end_ids_count = end_ids_count,
                                  .weights_bytes = info->weights_bytes,
                                  .kv_block_bytes = info->kv_block_bytes};
    TRY(sched_create(&config, &e->sched, err));
    if (batch_result_create(info->rows_max, &e->result) != ST_OK) return error_set(err, ST_NOMEM, "engine: no memory");
    uint32_t commands = c->queue_requests_max > COMMANDS_MIN ? c->queue_requests_max : COMMANDS_MIN;
    uint32_t events = 4 * config.running_max > EVENTS_MIN ? 4 * config.running_max : EVENTS_MIN;
    if (ring_init(&e->commands, commands, sizeof(struct command)) != ST_OK ||
        ring_init(&e->events, events, sizeof(struct event)) != ST_OK)
        return error_set(err, ST_NOMEM, "engine: no memory for its rings");
    return ST_OK;
}

static void engine_free(struct engine *e)
{
    ring_free(&e->events);
    ring_free(&e->commands);
    batch_result_destroy(e->result);
    sched_destroy(e->sched);
    if (e->config.turn) turn_leave(e->config.turn, e->turn_member);
    mem_free(e->texts);
    doorbell_free(&e->doorbell);
    mem_free(e);
}

enum status engine_create(const struct engine_config *config, struct device *device, const struct tokenizer *tokenizer,
                          struct engine **engine, struct error *err)
{
    struct engine *e = mem_alloc(1, sizeof *e);
    if (!e) return error_set(err, ST_NOMEM, "engine: no memory");
    if (config->turn && turn_join(config->turn, &e->turn_member) != ST_OK) {
        mem_free(e);
        return error_set(err, ST_LIMIT, "engine: more than %d engines share these cores", TURN_MEMBERS_MAX);
    }
    e->config = *config;
    e->device = device;
    doorbell_init(&e->doorbell);
    enum status status = make_scheduler(e, tokenizer, err);
    if (status == ST_OK) {
        e->accounted_ns = clock_now_ns(config->clock);
        stats_publish(e, e->accounted_ns);
        if (pthread_create(&e->thread, NULL, engine_thread, e) != 0)
            status = error_set(err, ST_NOMEM, "engine: the system gives no thread");
    }
    if (status != ST_OK) {
        engine_free(e);
        return status;
    }
    *engine = e;
    return ST_OK;
}

void engine_stop(struct engine *e)
{
    if (e->joined) return;
    atomic_store(&e->stop, true);
    doorbell_ring(&e->doorbell);
    CHECK(pthread_join(e->thread, NULL) == 0);
    e->joined = true;
}

void engine_destroy(struct engine *e)
{
    if (!e) return;
    engine_stop(e);
    engine_free(e);
}

/* ---- the io thread's side ---- */

enum status engine_submit(struct engine *e, struct request *request)
{
    /* A quarter of the ring is kept for cancels, which must get through when the server is flooded. */
    if (e->joined || ring_room(&e->commands) <= (e->commands.mask + 1) / 4) return ST_AGAIN;
    struct command command = {.request = request};
    if (!ring_push(&e->commands, &command)) return ST_AGAIN;
    doorbell_ring(&e->doorbell);
    return ST_OK;
}

static bool command(struct engine *e, const struct command *command)
{
    if (e->joined) return true; /* everything has ended */
    if (!ring_push(&e->commands, command)) return false;
    doorbell_ring(&e->doorbell);
    return true;
}

bool engine_cancel(struct engine *e, uint64_t request_id, enum cause cause)
{
    return command(e, &(struct command){.request_id = request_id, .cause = cause});
}

bool engine_raise(struct engine *e, uint64_t request_id, uint32_t out_limit)
{
    CHECK(out_limit > 0);
    return command(e, &(struct command){.request_id = request_id, .out_limit = out_limit});
}

/* After the join: events that had no room in the ring, then submissions that were never taken. */
static bool poll_leftovers(struct engine *e, struct event *event)
{
    for (;;) {
        uint32_t count;
        const struct event *events = sched_events(e->sched, &count);
        if (e->events_given < count) {
            *event = events[e->events_given++];
            return true;
        }
        sched_events_taken(e->sched);
        e->events_given = 0;
        struct command command;
        if (!ring_pop(&e->commands, &command)) return false;
        if (command.request) sched_refuse(e->sched, command.request, ST_CANCELED, clock_now_ns(e->config.clock));
    }
}

bool engine_poll(struct engine *e, struct event *event)
{
    if (!ring_pop(&e->events, event)) return e->joined && poll_leftovers(e, event);
    /* A read-modify-write, so that it comes after the pop's store: the engine sees the room, or we see its wish. */
    if (atomic_fetch_add(&e->wants_room, 0)) doorbell_ring(&e->doorbell);
    return true;
}
