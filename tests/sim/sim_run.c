/* Virtual time over one scheduler and one hashing device. */
#include "tests/sim/sim.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <string.h>

static void trace(struct sim *sim, uint64_t value)
{
    sim->trace = (sim->trace ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    sim->trace ^= sim->trace >> 31;
}

static void trace_batch(struct sim *sim, const struct batch *batch)
{
    trace(sim, batch->tokens_count);
    for (uint32_t i = 0; i < batch->tokens_count; i++)
        trace(sim, (uint64_t)batch->tokens[i] << 32 | batch->positions[i]);
    for (uint32_t i = 0; i < batch->seqs_count; i++) {
        for (uint32_t b = 0; b < kv_blocks_for(batch->kv_len[i]); b++) trace(sim, batch->block_table[i][b]);
    }
    for (uint32_t r = 0; r < batch->rows_count; r++)
        trace(sim, (uint64_t)batch->rows[r].token << 32 | batch->rows[r].position);
}

static void take_events(struct sim *sim)
{
    uint32_t count;
    const struct event *events = sched_events(sim->sched, &count);
    for (uint32_t i = 0; i < count; i++) {
        trace(sim, events[i].request->id << 32 | (uint64_t)events[i].kind << 24 | (uint64_t)events[i].choice << 16 |
                       events[i].output_count);
        trace(sim, (uint64_t)events[i].text_bytes << 32 | (uint64_t)events[i].status << 8 | events[i].finish);
        if (sim->verbose)
            fprintf(stderr, "%10llu event %d request %llu choice %u count %u text %u finish %d status %s\n",
                    (unsigned long long)sim->now_ns, events[i].kind, (unsigned long long)events[i].request->id,
                    events[i].choice, events[i].output_count, events[i].text_bytes, events[i].finish,
                    status_name(events[i].status));
        sim_check_event(sim, &events[i]);
    }
    sched_events_taken(sim->sched);
}

static void submit(struct sim *sim, struct sim_request *r)
{
    const struct sched *s = sim->sched;
    uint32_t free = s->pool.free_count, cached = s->pool.cached_count, jobs = s->jobs_count, waiting = s->stats.waiting;
    r->submitted = true;
    sim->submitted++;
    r->accepted = sched_submit(sim->sched, &r->request, sim->now_ns) == ST_OK;
    if (!r->accepted)
        SIM_HOLD(sim, "R18",
                 free == s->pool.free_count && cached == s->pool.cached_count && jobs == s->jobs_count &&
                     waiting == s->stats.waiting,
                 "a refusal holds something");
}

static void cancel_noted(struct sim_request *r)
{
    r->canceled = true;
    for (uint32_t c = 0; c < r->request.choices_count; c++) r->out_when_canceled += r->choices[c].output_count;
}

static void cancel(struct sim *sim, struct sim_request *r)
{
    if (r->canceled || r->ended || !r->accepted) return;
    if (!sched_cancel(sim->sched, r->request.id, CAUSE_CLIENT_GONE)) return;
    cancel_noted(r);
}

static void arrivals(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->requests_count; i++) {
        struct sim_request *r = &sim->requests[i];
        if (!r->submitted && r->arrival_ns <= sim->now_ns) submit(sim, r);
    }
}

/* odd: those that arrive between plan and commit. */
static void cancels(struct sim *sim, bool odd)
{
    for (uint32_t i = 0; i < sim->requests_count; i++) {
        struct sim_request *r = &sim->requests[i];
        if (r->cancel_ns && r->cancel_ns <= sim->now_ns && (r->cancel_ns & 1) == odd) cancel(sim, r);
    }
}

static bool pauses(const struct sim_request *r)
{
    if (!r->out_limit || !r->scheduled || r->ended || r->canceled) return false;
    for (uint32_t c = 0; c < r->request.choices_count; c++)
        if (r->choices[c].finish == FINISH_NONE && r->choices[c].output_count >= r->out_limit) return true;
    return false;
}

/* What io would do: some time after a choice has reached its limit it may go on, or the request ends there. */
static void raises(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->requests_count; i++) {
        struct sim_request *r = &sim->requests[i];
        if (!pauses(r)) continue;
        if (!r->raise_ns) r->raise_ns = sim->now_ns + sim_random(sim, 5 * NS_PER_MS);
        if (r->raise_ns > sim->now_ns) continue;
        r->raise_ns = 0;
        if (r->quota_end) {
            if (sched_cancel(sim->sched, r->request.id, CAUSE_QUOTA_END)) cancel_noted(r);
            continue;
        }
        r->out_limit += 1 + (uint32_t)sim_random(sim, 12);
        SIM_HOLD(sim, "R21", sched_raise(sim->sched, r->request.id, r->out_limit), "the request is not known");
    }
}

/* To the next arrival or the next raise; false when there is none. */
static bool skip_time(struct sim *sim)
{
    uint64_t next_ns = UINT64_MAX;
    for (uint32_t i = 0; i < sim->requests_count; i++) {
        const struct sim_request *r = &sim->requests[i];
        if (!r->submitted && r->arrival_ns < next_ns) next_ns = r->arrival_ns;
        if (pauses(r) && r->raise_ns && r->raise_ns < next_ns) next_ns = r->raise_ns;
    }
    if (next_ns == UINT64_MAX) return false;
    sim->now_ns = next_ns;
    return true;
}

static bool lose_device(struct sim *sim)
{
    sim->under_way_count = 0;
    sched_end_all(sim->sched, CAUSE_PLATFORM_ERROR, ST_DEVICE, sim->now_ns);
    take_events(sim);
    return false;
}

/* The next step, if there is one to plan now. */
static bool plan(struct sim *sim)
{
    struct sim_before before;
    sim_check_before(sim, &before);
    sim_draw_power(sim);
    const struct batch *batch = sched_plan(sim->sched, sim->now_ns);
    trace_batch(sim, batch);
    take_events(sim);
    sim_check_plan(sim, &before, batch);
    sim_check_state(sim);
    if (!batch->tokens_count || sim->violated) return false;
    sim_step_planned(sim, batch);
    if (sim->ahead && !sim->violated)
        SIM_HOLD(sim, "R4", device_launch(sim->device, batch) == ST_OK, "the batch breaks the device's contract");
    return true;
}

/* The oldest step under way comes back. */
static bool commit(struct sim *sim)
{
    struct sim_step *step = &sim->under_way[0];
    cancels(sim, true);
    enum status status =
        sim->ahead ? device_collect(sim->device, sim->result) : device_step(sim->device, step->batch, sim->result);
    SIM_HOLD(sim, "R4", status == ST_OK, "the batch breaks the device's contract");
    if (sim->violated) return false;
    sim_check_under_way(sim);
    uint64_t step_ns = step->step_ns;
    if (sim->now_ns < step->done_ns) sim->now_ns = step->done_ns;
    sim_step_ran(sim);
    if (sim->violated) return false;
    sim->steps++;
    if (sim->steps == sim->fail_step) return lose_device(sim);
    sched_commit(sim->sched, sim->result, sim->now_ns);
    sched_observe(sim->sched, step_ns);
    sim_check_state(sim);
    take_events(sim);
    sim_check_fairness(sim);
    return !sim->violated;
}

/* One turn, as the engine's; false when everything has ended or the device is lost. */
static bool turn(struct sim *sim)
{
    arrivals(sim);
    cancels(sim, false);
    raises(sim);
    uint32_t depth = sim->ahead ? SCHED_STEPS_MAX : 1;
    bool lets_go = sim->ahead && sim->under_way_count && sim_chance(sim, 5); /* the cores go to another engine */
    bool planned = !lets_go && plan(sim);
    if (sim->violated) return false;
    if (sim->under_way_count == depth || (sim->under_way_count && !planned)) return commit(sim);
    if (!planned && sim->powered && sched_has_work(sim->sched)) { /* for power, perhaps: the engine sleeps */
        sim->now_ns += NS_PER_MS;
        return true;
    }
    return planned || skip_time(sim);
}

static bool create(struct sim *sim)
{
    const struct sched_config *c = &sim->config;
    struct null_device_config device = {.vocab = SIM_VOCAB,
                                        .kv_blocks = c->kv_blocks,
                                        .tokens_max = c->step_tokens_max,
                                        .seqs_max = c->running_max,
                                        .rows_max = c->rows_max,
                                        .verify = true,
                                        .ahead = sim->ahead};
    struct error err;
    return sched_create(c, &sim->sched, &err) == ST_OK && null_device_create(&device, &sim->device) == ST_OK &&
           batch_result_create(c->rows_max, &sim->result) == ST_OK;
}

bool sim_run(struct sim *sim, uint64_t seed, bool ahead, struct sim_request *requests, bool verbose)
{
    memset(sim, 0, sizeof *sim);
    sim->seed = sim->rng = seed;
    sim->ahead = ahead;
    sim->requests = requests;
    sim->verbose = verbose;
    sim_load(sim);
    if (!create(sim)) sim_violation(sim, "memory", "no memory");
    uint64_t tokens = 0;
    for (uint32_t i = 0; !sim->violated && i < sim->requests_count; i++) {
        sim_expect(sim, &requests[i]);
        tokens += (requests[i].request.prompt_count + requests[i].request.max_tokens) *
                  (uint64_t)requests[i].request.choices_count;
    }
    while (!sim->violated && turn(sim))
        if (sim->steps > 1000 + 20 * tokens)
            sim_violation(sim, "R7", "no end after %llu steps", (unsigned long long)sim->steps);
    if (!sim->violated) {
        struct null_device_counts counts;
        null_device_counts(sim->device, &counts);
        SIM_HOLD(sim, "R12", !counts.kv_mismatches, "%llu rows read KV of other ids",
                 (unsigned long long)counts.kv_mismatches);
        sim_check_end(sim);
    }
    batch_result_destroy(sim->result);
    device_destroy(sim->device);
    sched_destroy(sim->sched);
    return !sim->violated;
}
