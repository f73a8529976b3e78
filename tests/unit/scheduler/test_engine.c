/* The engine thread over a device without arithmetic: requests end to end, cancels, a full event ring, a lost device,
 * no allocation in a step. Waits are for events, never for times; a wait without an end is cut off after 60 s. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/device/turn.c" /* to see who waits for the turn */
#include "scheduler/engine.h"
#include "tests/support/null_device.h"
#include "tests/support/plain_tokenizer.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

enum { VOCAB = 64, END_ID = 63, SPECIAL_ID = 62, CONTEXT = 2048, PROMPT_MAX = 512 };

/* ---- a small vocabulary: single characters and two control tokens ---- */

static struct tokenizer *tokenizer_make(void)
{
    struct tokenizer *tokenizer = NULL;
    struct error err = {""};
    if (plain_tokenizer_create(VOCAB, &tokenizer, &err) != ST_OK) fail_msg("tokenizer: %s", err.message);
    return tokenizer;
}

/* ---- a server of one thread ---- */

struct rig {
    struct device *device;
    struct tokenizer *tokenizer;
    struct engine *engine;
    struct engine_config config;
    pthread_mutex_t mutex;
    pthread_cond_t condition;
    uint64_t wakes; /* guarded by mutex */
};

struct job {
    struct request request;
    struct choice choices[4];
    uint32_t tokens[4][CONTEXT];
    uint32_t prompt[PROMPT_MAX];
    uint32_t scheduled, refused, done, ends;
    uint32_t told[4]; /* output_count of the last event */
    enum status status;
};

static void on_wake(void *state)
{
    struct rig *rig = state;
    pthread_mutex_lock(&rig->mutex);
    rig->wakes++;
    pthread_cond_signal(&rig->condition);
    pthread_mutex_unlock(&rig->mutex);
}

/* All tests run twice: with a device that takes one step at a time, and with one that runs ahead. */
static bool ahead;

static struct power_port *power; /* of the next rigs */

static void rig_start(struct rig *rig, const struct null_device_config *device_config, uint32_t running_max, bool cache)
{
    struct null_device_config device = *device_config;
    device.ahead = ahead;
    memset(rig, 0, sizeof *rig);
    pthread_mutex_init(&rig->mutex, NULL);
    pthread_cond_init(&rig->condition, NULL);
    rig->tokenizer = tokenizer_make();
    assert_int_equal(null_device_create(&device, &rig->device), ST_OK);
    rig->config = (struct engine_config){.context_max = CONTEXT,
                                         .running_max = running_max,
                                         .step_tokens_max = 256,
                                         .queue_requests_max = 64,
                                         .queue_tokens_max = 100000,
                                         .tenants_max = 4,
                                         .tenant_share_percent = 50,
                                         .prefix_cache = cache,
                                         .think_start_id = VOCAB_NO_ID,
                                         .think_end_id = VOCAB_NO_ID,
                                         .power = power,
                                         .clock = clock_system(),
                                         .wake = on_wake,
                                         .wake_state = rig};
    struct error err = {{0}};
    if (engine_create(&rig->config, rig->device, rig->tokenizer, &rig->engine, &err) != ST_OK)
        fail_msg("%s", err.message);
}

static const struct null_device_config device_default = {
    .vocab = VOCAB, .kv_blocks = 512, .tokens_max = 256, .seqs_max = 32, .rows_max = 64, .verify = true};

static void rig_stop(struct rig *rig)
{
    engine_destroy(rig->engine);
    device_destroy(rig->device);
    tokenizer_destroy(rig->tokenizer);
    pthread_cond_destroy(&rig->condition);
    pthread_mutex_destroy(&rig->mutex);
}

static void job_make(struct job *job, uint64_t id, uint32_t prompt_count, uint32_t max_tokens, uint32_t choices)
{
    memset(job, 0, sizeof *job);
    for (uint32_t i = 0; i < prompt_count; i++) job->prompt[i] = (uint32_t)(id * 7 + i * i) % END_ID;
    for (uint32_t c = 0; c < choices; c++) {
        memcpy(job->tokens[c], job->prompt, prompt_count * sizeof *job->prompt);
        job->choices[c] = (struct choice){.tokens = job->tokens[c], .seed = id * 100 + c};
    }
    job->request = (struct request){.id = id,
                                    .owner = job,
                                    .service_class = CLASS_DEFAULT,
                                    .prompt = job->prompt,
                                    .prompt_count = prompt_count,
                                    .choices = job->choices,
                                    .choices_count = choices,
                                    .params = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1},
                                    .max_tokens = max_tokens};
}

static bool take(struct rig *rig)
{
    struct event event;
    if (!engine_poll(rig->engine, &event)) return false;
    struct job *job = event.request->owner;
    assert_int_equal(job->ends, 0); /* nothing after the end */
    switch (event.kind) {
    case REQUEST_SCHEDULED: job->scheduled++; break;
    case REQUEST_REFUSED: job->refused++, job->ends++, job->status = event.status; break;
    case REQUEST_DONE: job->done++, job->ends++, job->status = event.status; break;
    case CHOICE_TOKENS:
        assert_true(event.output_count > job->told[event.choice]);
        job->told[event.choice] = event.output_count;
        break;
    }
    return true;
}

/* Polls until *value reaches target. */
static void wait_for(struct rig *rig, const uint32_t *value, uint32_t target)
{
    struct timespec until;
    timespec_get(&until, TIME_UTC);
    until.tv_sec += 60;
    for (;;) {
        pthread_mutex_lock(&rig->mutex);
        uint64_t heard = rig->wakes;
        pthread_mutex_unlock(&rig->mutex);
        while (*value < target && take(rig)) {
        }
        if (*value >= target) return;
        pthread_mutex_lock(&rig->mutex);
        while (rig->wakes == heard)
            if (pthread_cond_timedwait(&rig->condition, &rig->mutex, &until)) fail_msg("no event for 60 s");
        pthread_mutex_unlock(&rig->mutex);
    }
}

/* What the choice yields alone: ids until the end id or max_tokens. */
static uint32_t expect(const struct job *job, uint32_t c, uint32_t *out)
{
    uint32_t ids[CONTEXT], n = job->request.prompt_count, start = n;
    memcpy(ids, job->prompt, n * sizeof *ids);
    while (n - start < job->request.max_tokens) {
        uint32_t id = null_device_next(null_device_prefix(ids, n), job->choices[c].seed, n, VOCAB, NULL, 0);
        ids[n++] = id;
        if (id == END_ID && !job->request.ignore_eos) break;
    }
    memcpy(out, ids + start, (n - start) * sizeof *out);
    return n - start;
}

static void check_choice(const struct job *job, uint32_t c)
{
    uint32_t expected[CONTEXT], count = expect(job, c, expected);
    assert_int_equal(job->choices[c].output_count, count);
    assert_int_equal(job->told[c], count);
    assert_memory_equal(job->tokens[c] + job->request.prompt_count, expected, count * sizeof *expected);
    bool stopped = expected[count - 1] == END_ID && !job->request.ignore_eos;
    assert_int_equal(job->choices[c].finish, stopped ? FINISH_STOP : FINISH_LENGTH);
    uint32_t text = 0;
    for (uint32_t i = 0; i < count; i++) text += expected[i] < SPECIAL_ID;
    assert_int_equal(job->choices[c].text_bytes, text);
}

/* ---- tests ---- */

/* Without watts nothing starts, and a cancel still works; with some, the steps paid for stay below T3. */
static void test_engine_keeps_to_its_watts(void **state)
{
    (void)state;
    enum { WATTS = 50, OUTPUT = 20 };
    struct power_port port;
    struct rig rig;
    assert_int_equal(power_port_init(&port), ST_OK);
    struct power_order order = {.model.joules = {1, 0, 0, 0, 0}};
    power_port_order(&port, &order);
    power = &port;
    rig_start(&rig, &device_default, 32, true);
    power = NULL;
    struct job *jobs = mem_alloc(2, sizeof *jobs);
    for (uint32_t i = 0; i < 2; i++) {
        job_make(&jobs[i], i + 1, 20, OUTPUT, 1);
        jobs[i].request.ignore_eos = true;
        assert_int_equal(engine_submit(rig.engine, &jobs[i].request), ST_OK);
    }
    assert_true(engine_cancel(rig.engine, 2, CAUSE_CLIENT_GONE));
    wait_for(&rig, &jobs[1].refused, 1);
    assert_int_equal(jobs[0].scheduled, 0);
    uint64_t start_ns = clock_now_ns(clock_system());
    order.allowance_w = WATTS;
    power_port_order(&port, &order);
    wait_for(&rig, &jobs[0].done, 1);
    check_choice(&jobs[0], 0);
    double seconds = (double)(clock_now_ns(clock_system()) - start_ns) * 1e-9, joules = 0;
    engine_stop(rig.engine);
    struct engine_stats stats;
    struct power_step step;
    uint32_t steps = 0;
    struct energy_share *shares = mem_alloc(POWER_SHARES_MAX, sizeof *shares);
    uint32_t prompt_tokens = 0, rows = 0;
    for (engine_stats_read(rig.engine, &stats); power_port_take(&port, &step); steps++) {
        assert_true(step.end_ns >= step.start_ns && step.work.steps == 1);
        joules += step.joules;
        double tokens = 0, context = 0;
        for (uint32_t i = 0, count = power_port_shares(&port, &step, shares); i < count; i++) {
            assert_true(shares[i].request_id == 1 && shares[i].group == jobs[0].request.service_class);
            prompt_tokens += shares[i].prefill_tokens;
            rows += shares[i].decode_rows;
            tokens += shares[i].prefill_tokens + shares[i].decode_rows;
            context += shares[i].prefill_pairs + shares[i].decode_context;
        }
        assert_true(tokens == step.work.prefill_tokens + step.work.decode_rows); /* all of it is somebody's */
        assert_true(context == step.work.prefill_pairs + step.work.decode_context);
    }
    mem_free(shares);
    assert_int_equal(prompt_tokens, 20);
    assert_true(rows >= OUTPUT - 1 && rows <= OUTPUT + (uint32_t)ahead);
    assert_int_equal(steps, stats.steps);
    assert_true(joules >= OUTPUT && joules <= WATTS * (seconds + 0.020) + 1 + ahead); /* an id that came to nothing */
    assert_true(stats.paced_ns_total > 0 && stats.paced_ns_total == atomic_load(&port.paced_ns));
    assert_int_equal(atomic_load(&port.busy_ns), 0);
    rig_stop(&rig);
    power_port_free(&port);
    mem_free(jobs);
}

static void test_engine_end_to_end(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, &device_default, 32, true);
    enum { JOBS = 40 };
    struct job *jobs = mem_alloc(JOBS, sizeof *jobs);
    uint32_t out = 0;
    for (uint32_t i = 0; i < JOBS; i++) {
        job_make(&jobs[i], i + 1, 1 + i * 9, 40, 1 + i % 3);
        jobs[i].request.tenant = i % 4;
        assert_int_equal(engine_submit(rig.engine, &jobs[i].request), ST_OK);
        wait_for(&rig, &jobs[i / 2].ends, i % 2); /* some overlap, never more than the queue takes */
    }
    for (uint32_t i = 0; i < JOBS; i++) {
        wait_for(&rig, &jobs[i].ends, 1);
        assert_int_equal(jobs[i].scheduled, 1);
        assert_int_equal(jobs[i].done, 1);
        assert_int_equal(jobs[i].status, ST_OK);
        uint32_t sum = 0;
        for (uint32_t c = 0; c < jobs[i].request.choices_count; c++) {
            check_choice(&jobs[i], c);
            sum += jobs[i].choices[c].output_count;
        }
        assert_int_equal(jobs[i].request.usage.in_total, jobs[i].request.prompt_count);
        assert_int_equal(jobs[i].request.usage.out, sum);
        assert_false(jobs[i].request.usage.mismatch);
        assert_true(jobs[i].request.submitted_ns <= jobs[i].request.scheduled_ns);
        assert_true(jobs[i].request.scheduled_ns <= jobs[i].request.first_token_ns);
        assert_true(jobs[i].request.first_token_ns <= jobs[i].request.done_ns);
        out += sum;
    }
    engine_stop(rig.engine);
    struct engine_stats stats;
    struct null_device_counts counts;
    engine_stats_read(rig.engine, &stats);
    null_device_counts(rig.device, &counts);
    assert_int_equal(stats.requests_done, JOBS);
    assert_int_equal(stats.generation_tokens, out);
    assert_int_equal(stats.kv_blocks_used, 0);
    assert_int_equal(stats.running + stats.waiting, 0);
    assert_int_equal(counts.kv_mismatches, 0);
    assert_int_equal(counts.allocations_in_steps, 0);
    assert_int_equal(stats.steps, counts.steps);
    assert_int_equal(stats.steps_ahead, counts.ahead);
    if (ahead) assert_true(stats.steps_ahead > stats.steps / 2);
    rig_stop(&rig);
    mem_free(jobs);
}

static void test_engine_cancel(void **state)
{
    (void)state;
    struct null_device_config device = device_default;
    device.step_ns = 1000000;
    struct rig rig;
    rig_start(&rig, &device, 8, false);
    struct job *job = mem_alloc(2, sizeof *job);
    job_make(job, 7, 100, 1500, 2);
    job->request.ignore_eos = true;
    assert_int_equal(engine_submit(rig.engine, &job->request), ST_OK);
    wait_for(&rig, &job->told[1], 3);
    assert_true(engine_cancel(rig.engine, 7, CAUSE_CLIENT_GONE));
    assert_true(engine_cancel(rig.engine, 7, CAUSE_CLIENT_GONE));   /* twice is harmless */
    assert_true(engine_cancel(rig.engine, 999, CAUSE_CLIENT_GONE)); /* so is an unknown one */
    wait_for(&rig, &job->done, 1);
    assert_int_equal(job->request.usage.cause, CAUSE_CLIENT_GONE);
    assert_int_equal(job->status, ST_CANCELED);
    assert_int_equal(job->choices[0].finish, FINISH_CANCELED);
    assert_int_equal(job->request.usage.out, job->told[0] + job->told[1]); /* what was told is what is counted */
    assert_false(job->request.usage.mismatch);
    /* At once: submitted and cancelled before the engine looks. */
    job_make(job, 8, 10, 1500, 1);
    assert_int_equal(engine_submit(rig.engine, &job->request), ST_OK);
    assert_true(engine_cancel(rig.engine, 8, CAUSE_PLATFORM_CANCEL));
    wait_for(&rig, &job->ends, 1);
    assert_int_equal(job->status, ST_CANCELED);
    rig_stop(&rig);
    mem_free(job);
}

static void test_engine_stop_ends_everything(void **state)
{
    (void)state;
    struct null_device_config device = device_default;
    device.step_ns = 1000000;
    struct rig rig;
    rig_start(&rig, &device, 2, true);
    enum { JOBS = 30 };
    struct job *jobs = mem_alloc(JOBS, sizeof *jobs);
    for (uint32_t i = 0; i < JOBS; i++) {
        job_make(&jobs[i], i + 1, 20, 1000, 1);
        jobs[i].request.ignore_eos = true;
        assert_int_equal(engine_submit(rig.engine, &jobs[i].request), ST_OK);
    }
    wait_for(&rig, &jobs[0].told[0], 1);
    engine_stop(rig.engine);
    struct engine_stats stats;
    struct null_device_counts counts;
    engine_stats_read(rig.engine, &stats);
    null_device_counts(rig.device, &counts);
    assert_int_equal(stats.steps, counts.steps); /* also the one that was under way counts */
    while (take(&rig)) {
    }
    for (uint32_t i = 0; i < JOBS; i++) {
        assert_int_equal(jobs[i].ends, 1);
        assert_int_equal(jobs[i].status, ST_CANCELED);
        if (jobs[i].done) assert_int_equal(jobs[i].request.usage.cause, CAUSE_PLATFORM_CANCEL);
    }
    assert_int_equal(jobs[0].done, 1);
    assert_int_equal(engine_submit(rig.engine, &jobs[0].request), ST_AGAIN);
    rig_stop(&rig);
    mem_free(jobs);
}

static void test_engine_event_ring_full(void **state)
{
    (void)state;
    struct null_device_config device = device_default;
    device.verify = false;
    struct rig rig;
    rig_start(&rig, &device, 8, true);
    struct job *jobs = mem_alloc(8, sizeof *jobs);
    for (uint32_t i = 0; i < 8; i++) { /* 8 x 1,500 events, the ring takes 4,096 */
        job_make(&jobs[i], i + 1, 20, 1500, 1);
        jobs[i].request.ignore_eos = true;
        assert_int_equal(engine_submit(rig.engine, &jobs[i].request), ST_OK);
    }
    /* Nobody polls: the engine must come to rest with work left. */
    struct engine_stats stats, before = {0};
    for (uint32_t same = 0; same < 10;) {
        engine_stats_read(rig.engine, &stats);
        same = stats.steps && stats.steps == before.steps ? same + 1 : 0;
        before = stats;
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    assert_true(stats.generation_tokens < 8 * 1500);
    for (uint32_t i = 0; i < 8; i++) {
        wait_for(&rig, &jobs[i].done, 1);
        assert_int_equal(jobs[i].told[0], 1500); /* nothing was lost */
        check_choice(&jobs[i], 0);
    }
    rig_stop(&rig);
    mem_free(jobs);
}

/* out: what was committed by then. */
static void lose_device(bool at_launch, uint32_t out)
{
    struct null_device_config device = device_default;
    device.fail_step = 5;
    device.fail_launch = at_launch;
    struct rig rig;
    rig_start(&rig, &device, 8, true);
    struct job *jobs = mem_alloc(2, sizeof *jobs);
    job_make(&jobs[0], 1, 20, 100, 1);
    jobs[0].request.ignore_eos = true;
    assert_int_equal(engine_submit(rig.engine, &jobs[0].request), ST_OK);
    wait_for(&rig, &jobs[0].done, 1);
    assert_int_equal(jobs[0].status, ST_DEVICE);
    assert_int_equal(jobs[0].request.usage.cause, CAUSE_PLATFORM_ERROR);
    assert_int_equal(jobs[0].choices[0].finish, FINISH_ERROR);
    assert_int_equal(jobs[0].request.usage.out, out);
    assert_int_equal(jobs[0].told[0], out);
    job_make(&jobs[1], 2, 20, 100, 1);
    assert_int_equal(engine_submit(rig.engine, &jobs[1].request), ST_OK);
    wait_for(&rig, &jobs[1].refused, 1);
    assert_int_equal(jobs[1].status, ST_DEVICE);
    struct engine_stats stats;
    engine_stop(rig.engine);
    engine_stats_read(rig.engine, &stats);
    assert_true(stats.device_lost);
    assert_int_equal(stats.kv_blocks_used, 0);
    rig_stop(&rig);
    mem_free(jobs);
}

static void test_engine_device_lost(void **state)
{
    (void)state;
    lose_device(false, 4);            /* the failed step counts nothing */
    lose_device(true, ahead ? 3 : 4); /* nor the one that was under way when the next failed */
}

static atomic_bool device_gone;

static bool is_gone(struct device *device)
{
    (void)device;
    return atomic_load(&device_gone);
}

/* The device is lost while no step runs: nobody has to ask for one to find out. */
static void test_engine_device_lost_idle(void **state)
{
    (void)state;
    struct rig rig;
    struct engine_stats stats = {0};
    atomic_store(&device_gone, false);
    rig_start(&rig, &device_default, 8, true);
    engine_destroy(rig.engine);
    struct device_ops ops = *rig.device->ops;
    ops.is_lost = is_gone;
    rig.device->ops = &ops;
    struct error err = {{0}};
    assert_int_equal(engine_create(&rig.config, rig.device, rig.tokenizer, &rig.engine, &err), ST_OK);
    struct job *jobs = mem_alloc(2, sizeof *jobs);
    job_make(&jobs[0], 1, 20, 10, 1);
    assert_int_equal(engine_submit(rig.engine, &jobs[0].request), ST_OK);
    wait_for(&rig, &jobs[0].done, 1);
    assert_int_equal(jobs[0].status, ST_OK);
    atomic_store(&device_gone, true);
    while (!stats.device_lost) engine_stats_read(rig.engine, &stats);
    job_make(&jobs[1], 2, 20, 10, 1);
    assert_int_equal(engine_submit(rig.engine, &jobs[1].request), ST_OK);
    wait_for(&rig, &jobs[1].refused, 1);
    assert_int_equal(jobs[1].status, ST_DEVICE);
    rig_stop(&rig);
    mem_free(jobs);
}

/* Goes on by 1 ns each time it is read. */
static uint64_t ticking_now_ns(void *state)
{
    return atomic_fetch_add((_Atomic uint64_t *)state, 1);
}

/* Every nanosecond of the thread's life is in exactly one of device, own and idle. */
static void test_engine_accounts_its_time(void **state)
{
    (void)state;
    _Atomic uint64_t ticks = 100;
    struct rig rig;
    rig_start(&rig, &device_default, 8, true);
    engine_destroy(rig.engine);
    rig.config.clock = &(struct clock){.now_ns = ticking_now_ns, .state = &ticks};
    struct error err = {{0}};
    assert_int_equal(engine_create(&rig.config, rig.device, rig.tokenizer, &rig.engine, &err), ST_OK);
    struct job *job = mem_alloc(1, sizeof *job);
    struct engine_stats stats = {0};
    for (uint64_t id = 1; stats.idle_ns_total == 0; id++) { /* until it has slept before a job, mostly at the second */
        job_make(job, id, 300, 50, 1);
        job->request.ignore_eos = true;
        assert_int_equal(engine_submit(rig.engine, &job->request), ST_OK);
        wait_for(&rig, &job->done, 1);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        engine_stats_read(rig.engine, &stats);
    }
    engine_stop(rig.engine);
    engine_stats_read(rig.engine, &stats);
    assert_true(stats.steps >= 51);
    assert_int_equal(stats.device_ns_total, stats.steps); /* one reading of the clock to the next */
    assert_true(stats.own_ns_total >= stats.steps);
    assert_int_equal(stats.device_ns_total + stats.own_ns_total + stats.idle_ns_total, stats.beat_ns - 100);
    rig_stop(&rig);
    mem_free(job);
}

static void test_engine_not_finite(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, &device_default, 8, true);
    struct job *jobs = mem_alloc(2, sizeof *jobs);
    job_make(&jobs[0], 1, 40, 100, 1);
    job_make(&jobs[1], 2, 40, 100, 1);
    jobs[0].choices[0].seed = null_device_seed_failing(NULL_FAILURE_NOT_FINITE, 43);
    jobs[0].request.ignore_eos = true;
    for (uint32_t i = 0; i < 2; i++) assert_int_equal(engine_submit(rig.engine, &jobs[i].request), ST_OK);
    for (uint32_t i = 0; i < 2; i++) wait_for(&rig, &jobs[i].done, 1);
    assert_int_equal(jobs[0].choices[0].finish, FINISH_ERROR);
    assert_int_equal(jobs[0].request.usage.out, 3);
    check_choice(&jobs[1], 0); /* its neighbour is untouched */
    rig_stop(&rig);
    mem_free(jobs);
}

/* ---- two engines on the same cores ---- */

/* In front of a null device: a step costs step_ns of its engine's clock, and ends only when the other engine waits for
 * the turn or has ended, so that the order of steps does not hang on the machine. */
struct sharing_device {
    struct device device;
    _Atomic uint32_t under_way;
    struct device *inner;
    struct sharing_device *other;
    struct turn *turn;
    uint64_t step_ns;
    _Atomic uint64_t now_ns; /* the engine's clock */
    uint64_t used_ns;
    _Atomic bool idle;
    _Atomic uint32_t *mistakes;
    _Atomic uint64_t *apart_ns_max; /* how far the two were apart while both had work */
};

static uint64_t sharing_now_ns(void *state)
{
    return atomic_load(&((struct sharing_device *)state)->now_ns);
}

static enum status sharing_launch(struct device *device, const struct batch *batch)
{
    struct sharing_device *d = (struct sharing_device *)device;
    atomic_fetch_add(&d->under_way, 1);
    if (atomic_load(&d->other->under_way)) atomic_fetch_add(d->mistakes, 1);
    return device_launch(d->inner, batch);
}

static enum status sharing_collect(struct device *device, struct batch_result *result)
{
    struct sharing_device *d = (struct sharing_device *)device;
    while (!atomic_load(&d->other->idle) && waiting_of(atomic_load(&d->turn->state)) == 0)
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    enum status status = device_collect(d->inner, result);
    d->used_ns += d->step_ns;
    atomic_fetch_add(&d->now_ns, d->step_ns);
    uint64_t other_ns = d->other->used_ns; /* the turn orders it */
    uint64_t apart_ns = d->used_ns > other_ns ? d->used_ns - other_ns : other_ns - d->used_ns;
    if (!atomic_load(&d->other->idle) && apart_ns > atomic_load(d->apart_ns_max))
        atomic_store(d->apart_ns_max, apart_ns);
    atomic_fetch_sub(&d->under_way, 1);
    return status;
}

static enum status sharing_step(struct device *device, const struct batch *batch, struct batch_result *result)
{
    TRY(sharing_launch(device, batch));
    return sharing_collect(device, result);
}

static void test_engine_two_take_turns(void **state)
{
    (void)state;
    static const struct device_ops one_by_one = {.step = sharing_step},
                                   running_ahead = {.launch = sharing_launch, .collect = sharing_collect};
    static struct rig rigs[2];
    static struct sharing_device devices[2];
    static struct job jobs[2];
    static struct clock clocks[2];
    _Atomic uint32_t mistakes = 0;
    bool runs_ahead = ahead;
    _Atomic uint64_t apart_ns_max = 0;
    struct turn *turn = NULL;
    assert_int_equal(turn_create(&turn), ST_OK);
    for (int i = 0; i < 2; i++) {
        ahead = true; /* the inner one always */
        rig_start(&rigs[i], &device_default, 8, true);
        ahead = runs_ahead;
        engine_destroy(rigs[i].engine); /* once more, with the turn */
        devices[i] =
            (struct sharing_device){.device = {ahead ? &running_ahead : &one_by_one, rigs[i].device->info, {0}},
                                    .inner = rigs[i].device,
                                    .other = &devices[!i],
                                    .turn = turn,
                                    .step_ns = i ? 4000000 : 60000000,
                                    .now_ns = 1,
                                    .mistakes = &mistakes,
                                    .apart_ns_max = &apart_ns_max};
        clocks[i] = (struct clock){sharing_now_ns, clock_system()->unix_us, &devices[i]};
        rigs[i].config.turn = turn;
        rigs[i].config.clock = &clocks[i];
    }
    struct error err = {""};
    for (int i = 0; i < 2; i++)
        assert_int_equal(engine_create(&rigs[i].config, &devices[i].device, rigs[i].tokenizer, &rigs[i].engine, &err),
                         ST_OK);
    for (int i = 0; i < 2; i++) { /* as much work in time for each: 40 x 60 ms, 600 x 4 ms */
        job_make(&jobs[i], (uint64_t)i + 1, 20, i ? 600 : 40, 1);
        jobs[i].request.ignore_eos = true;
        assert_int_equal(engine_submit(rigs[i].engine, &jobs[i].request), ST_OK);
    }
    for (int left = 2; left > 0;) {
        for (int i = 0; i < 2; i++)
            while (take(&rigs[i]))
                if (jobs[i].done && !atomic_exchange(&devices[i].idle, true)) left--;
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
    assert_int_equal(mistakes, 0);
    assert_int_equal(jobs[0].told[0], 40);
    assert_int_equal(jobs[1].told[0], 600);
    if (apart_ns_max > (ahead ? 2 : 1) * UINT64_C(60000000) + 3 * TURN_SLICE_NS) /* T4 */
        fail_msg("%llu ns apart", (unsigned long long)atomic_load(&apart_ns_max));
    struct engine_stats stats;
    engine_stop(rigs[1].engine); /* its events come before its figures */
    engine_stats_read(rigs[1].engine, &stats);
    assert_int_equal(stats.requests_done, 1);
    for (int i = 0; i < 2; i++) rig_stop(&rigs[i]);
    turn_destroy(turn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_two_take_turns),       cmocka_unit_test(test_engine_keeps_to_its_watts),
        cmocka_unit_test(test_engine_end_to_end),           cmocka_unit_test(test_engine_cancel),
        cmocka_unit_test(test_engine_stop_ends_everything), cmocka_unit_test(test_engine_event_ring_full),
        cmocka_unit_test(test_engine_device_lost),          cmocka_unit_test(test_engine_device_lost_idle),
        cmocka_unit_test(test_engine_not_finite),           cmocka_unit_test(test_engine_accounts_its_time),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    ahead = true;
    return failed + cmocka_run_group_tests(tests, NULL, NULL);
}
