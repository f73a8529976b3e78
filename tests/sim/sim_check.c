/* The rules, checked from outside: block contents and domains from the batches, references by walking all tables,
 * service and counts from events, output against what each choice yields alone. */
#include "tests/sim/sim.h"

#include "runtime/base/clock.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void sim_violation(struct sim *sim, const char *rule, const char *format, ...)
{
    if (sim->violated) return;
    sim->violated = rule;
    va_list args;
    va_start(args, format);
    vsnprintf(sim->detail, sizeof sim->detail, format, args);
    va_end(args);
}

struct sim_request *sim_owner(const struct request *request)
{
    return request->owner;
}

/* ---- plans ---- */

void sim_check_before(const struct sim *sim, struct sim_before *before)
{
    const struct sched *s = sim->sched;
    before->count = 0;
    before->preemptions = s->stats.preemptions;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        if (s->hot[i].slot == SLOT_NONE) continue; /* ended in the last commit */
        before->running[before->count].slot = s->hot[i].slot;
        before->running[before->count].order = s->hot[i].order;
        before->running[before->count++].rank = s->hot[i].rank;
    }
}

static void check_preemption(struct sim *sim, const struct sim_before *before)
{
    const struct sched *s = sim->sched;
    uint32_t oldest = UINT32_MAX;
    for (uint32_t i = 0; i < before->count; i++) { /* of those that did not end */
        const struct seq *seq = &s->seqs[before->running[i].slot];
        if (seq->state == SEQ_FREE || seq->state == SEQ_LEAVING || seq->order != before->running[i].order) continue;
        if (oldest == UINT32_MAX || before->running[i].rank < before->running[oldest].rank ||
            (before->running[i].rank == before->running[oldest].rank &&
             before->running[i].order < before->running[oldest].order))
            oldest = i;
    }
    if (oldest != UINT32_MAX)
        SIM_HOLD(sim, "R6", s->seqs[before->running[oldest].slot].state == SEQ_RUNNING, "the oldest was preempted");
    if (s->stats.preemptions == before->preemptions) return;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        bool was = false;
        for (uint32_t k = 0; k < before->count; k++)
            was |= before->running[k].slot == s->hot[i].slot && before->running[k].order == s->hot[i].order;
        SIM_HOLD(sim, "R8", was, "slot %u was admitted in a step that preempted", s->hot[i].slot);
    }
}

static bool is_overdue(const struct sim *sim, const struct hot *hot)
{
    return hot->rank > RANK_INTERACTIVE_MAX &&
           sim->now_ns > hot->last_token_ns + sim->config.class_limit_ns[hot->rank - 1];
}

/* R27: until when a row of default may wait at most: the time of a step with all decode rows since its last token. The
 * plan has counted what it takes as computed: a tenth and a millisecond cover that. 0: it may not wait. */
static uint64_t pace_ns(const struct sim *sim, const struct hot *of)
{
    const struct sched *s = sim->sched;
    struct cost_step cost = {.bytes = sim->config.weights_bytes};
    bool priority = false;
    if (of->rank != RANK_INTERACTIVE_MAX) return 0;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        const struct hot *hot = &s->hot[i];
        priority = priority || hot->rank < RANK_INTERACTIVE_MAX;
        if (!(hot->flags & HOT_DECODE) || is_at_limit(hot)) continue;
        cost.tokens++;
        cost.rows++;
        cost.pairs += hot->computed;
        cost.bytes += hot->blocks * sim->config.kv_block_bytes;
    }
    if (!sim->power.paces_default && !(priority && isfinite(sim->power.room_j))) return 0;
    return cost_model_predict_ns(&s->cost, &cost);
}

static bool may_be_paced(const struct sim *sim, const struct hot *hot)
{
    uint64_t pace = pace_ns(sim, hot);
    return pace > 0 && (hot->pending || sim->now_ns < hot->last_token_ns + pace + pace / 10 + NS_PER_MS);
}

/* For power: there is no joule, or all that runs and waits is deferrable and held. */
static bool may_be_empty(const struct sim *sim)
{
    const struct sched *s = sim->sched;
    if (!sim->powered) return false;
    if (sim->power.room_j <= 0) return true;
    bool holds = sim->power.holds_deferrable || sim->power.caps_rows;
    if (!holds && !sim->power.paces_default) return false;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        const struct hot *hot = &s->hot[i];
        bool paced = sim->power.paces_default && hot->flags & HOT_DECODE && may_be_paced(sim, hot);
        bool behind = sim->power.paces_default && hot->rank == RANK_INTERACTIVE_MAX && !(hot->flags & HOT_DECODE);
        if (paced || behind) continue; /* a prompt of default waits for the rows of it that are held */
        if (hot->rank <= RANK_INTERACTIVE_MAX || is_overdue(sim, hot)) return false;
        if (!holds && !sim->power.paces_default) return false;
    }
    return true; /* a waiting interactive request may lack the blocks that the held ones have */
}

static void check_paced(struct sim *sim, const struct hot *hot)
{
    uint64_t pace = pace_ns(sim, hot);
    if (!sim->power.paces_default || !pace || !(hot->flags & HOT_DECODE) || !hot->planned || hot->planned > 1) return;
    SIM_HOLD(sim, "R27", hot->pending <= 1 && sim->now_ns >= hot->last_token_ns + pace / 5,
             "slot %u has a row before it is due", hot->slot);
}

/* R28. Without room, prompts of priority and rows that may not wait are all there is. */
static void check_ahead(struct sim *sim, const struct hot *hot, bool decodes, bool may_wait)
{
    if (sim->power.room_j > 0 || !hot->planned) return;
    bool paced = hot->rank == RANK_INTERACTIVE_MAX; /* when it is due is known to a tenth only */
    SIM_HOLD(sim, "R28", decodes ? paced || !may_wait : sim->sched->seqs[hot->slot].service_class == CLASS_PRIORITY,
             "slot %u of rank %u is planned without a joule", hot->slot, hot->rank);
}

/* R25 to R28, with the plan's rows counted here. */
static void check_power(struct sim *sim, const struct batch *batch)
{
    const struct sched *s = sim->sched;
    const struct energy_model *model = &sim->power.model;
    struct energy_work due = {.steps = 1}, work;
    uint32_t rows = 0, left_out = 0, tokens = 0, urgent_tokens = 0, capped_rows = 0, capped_prompts = 0;
    bool is_ahead = sim->power.urgent_j > sim->power.room_j && s->priority_jobs > 0;
    if (!batch->tokens_count) return;
    SIM_HOLD(sim, "R25", is_ahead || sim->power.room_j > 0, "%u tokens are planned without a joule",
             batch->tokens_count);
    for (uint32_t i = 0; i < s->hot_count; i++) {
        const struct hot *hot = &s->hot[i];
        bool decodes = hot->flags & HOT_DECODE, deferrable = hot->rank > RANK_INTERACTIVE_MAX;
        bool may_wait = deferrable ? !is_overdue(sim, hot) : decodes && may_be_paced(sim, hot);
        rows += decodes && hot->planned;
        tokens += hot->planned;
        left_out += !hot->planned && !is_at_limit(hot);
        if (decodes && !may_wait && !hot->planned && !is_at_limit(hot))
            sim_violation(sim, hot->rank == RANK_INTERACTIVE_MAX ? "R27" : "R26", "slot %u of rank %u is left out",
                          hot->slot, hot->rank);
        SIM_HOLD(sim, "R26", !sim->power.holds_deferrable || !deferrable || !may_wait || !hot->planned,
                 "slot %u is not held", hot->slot);
        capped_rows += deferrable && decodes && may_wait && hot->planned;
        capped_prompts += deferrable && !decodes && may_wait && hot->planned;
        check_paced(sim, hot);
        check_ahead(sim, hot, decodes, may_wait);
        if (!decodes && s->seqs[hot->slot].service_class == CLASS_PRIORITY) urgent_tokens += hot->planned;
        if (!decodes || may_wait || !hot->planned) continue;
        due.decode_rows++;
        due.decode_context += hot->computed;
    }
    if (sim->power.caps_rows)
        SIM_HOLD(sim, "R26",
                 capped_rows <= sim->power.rows_most && (capped_rows < sim->power.rows_most || !capped_prompts),
                 "%u rows and %u prompts of flex and batch, %u rows at most", capped_rows, capped_prompts,
                 sim->power.rows_most);
    double joules = sched_plan_joules(s, &work), others_j = sim->power.room_j;
    double room_j = is_ahead ? sim->power.urgent_j : others_j;
    SIM_HOLD(sim, "R25", work.decode_rows == rows && work.prefill_tokens == tokens - rows && work.steps == 1,
             "%g rows and %g tokens of prompts are told, %u and %u are planned", work.decode_rows, work.prefill_tokens,
             rows, tokens - rows);
    double floor_j = energy_model_joules(model, &due), longest = SIM_CONTEXT_MAX;
    /* A block, and half of one by which a chunk's end moves to a border; or one row of a class that may wait. */
    double slack_j = 24 * (model->joules[1] + longest * model->joules[2]) + model->joules[3] +
                     longest * model->joules[4] + sim->power.idle_w * 0.001;
    SIM_HOLD(sim, "R25", joules <= (room_j > floor_j ? room_j : floor_j) + slack_j,
             "%.3f J planned, room %.3f, of those that are due %.3f", joules, room_j, floor_j);
    sim->plans_cut += left_out > 0 && isfinite(others_j);
    if (!is_ahead) return;
    work.prefill_tokens -= urgent_tokens;
    work.prefill_pairs = 0;
    SIM_HOLD(sim, "R28", energy_model_joules(model, &work) <= (others_j > floor_j ? others_j : floor_j) + slack_j,
             "without the prompts of priority %.3f J are planned, room %.3f", energy_model_joules(model, &work),
             others_j);
}

void sim_check_plan(struct sim *sim, const struct sim_before *before, const struct batch *batch)
{
    const struct sched *s = sim->sched;
    const struct sched_config *c = &sim->config;
    SIM_HOLD(sim, "R4", batch->tokens_count <= c->step_tokens_max, "%u tokens", batch->tokens_count);
    SIM_HOLD(sim, "R4", batch->rows_count <= c->rows_max, "%u rows", batch->rows_count);
    SIM_HOLD(sim, "R4", batch->seqs_count <= c->running_max && s->hot_count <= c->running_max, "%u running",
             s->hot_count);
    bool pauses = false; /* who is paused may hold what the others wait for */
    for (uint32_t i = 0; i < s->hot_count; i++) pauses = pauses || is_at_limit(&s->hot[i]);
    SIM_HOLD(sim, "R6",
             batch->tokens_count || pauses || sim->under_way_count || !sched_has_work(s) || may_be_empty(sim),
             "nothing is planned, %u jobs are there", s->jobs_count);
    for (uint32_t i = 0; i < s->hot_count; i++) {
        const struct hot *hot = &s->hot[i];
        SIM_HOLD(sim, "R11", hot->computed < hot->length || !s->seqs[hot->slot].max_tokens,
                 "slot %u has nothing to compute", hot->slot);
        if (!(hot->flags & HOT_DECODE) || is_at_limit(hot) || hot->planned || !batch->tokens_count) continue;
        for (uint32_t k = 0; k < s->hot_count; k++)
            SIM_HOLD(sim, "R5",
                     s->hot[k].flags & HOT_DECODE || !s->hot[k].planned || s->hot[k].rank < hot->rank ||
                         is_overdue(sim, &s->hot[k]),
                     "prefill of slot %u while slot %u waits for its row", s->hot[k].slot, hot->slot);
    }
    check_preemption(sim, before);
    if (sim->powered) check_power(sim, batch);
}

/* ---- state ---- */

static void check_blocks(struct sim *sim)
{
    const struct sched *s = sim->sched;
    uint32_t holders[SIM_BLOCKS_MAX] = {0}, listed = 0, used = 0, cached = 0;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        if (s->hot[i].slot == SLOT_NONE) continue;
        for (uint32_t b = 0; b < s->hot[i].blocks; b++) holders[table_of(s, s->hot[i].slot)[b]]++;
    }
    for (uint32_t slot = 0; slot < s->slots_max; slot++) {
        if (s->seqs[slot].state != SEQ_LEAVING) continue;
        for (uint32_t b = 0; b < s->seqs[slot].blocks_left; b++) holders[table_of(s, slot)[b]]++;
    }
    for (uint32_t b = 0; b < sim->config.kv_blocks; b++) {
        const struct block_record *record = &s->pool.records[b];
        SIM_HOLD(sim, "R2", record->references == holders[b], "block %u: count %u, held by %u", b, record->references,
                 holders[b]);
        used += holders[b] > 0;
        cached += !holders[b] && record->indexed;
        listed += record->indexed;
        if (!record->indexed) continue;
        const struct sim_block *block = &sim->blocks[b];
        SIM_HOLD(sim, "R10", block->written == 0xffff, "block %u is indexed with positions missing", b);
        SIM_HOLD(sim, "R10", !block->poisoned, "block %u is indexed after a bad row", b);
        SIM_HOLD(sim, "R10", memcmp(block->ids, s->cache.entries[b].ids, sizeof block->ids) == 0,
                 "block %u: ids differ", b);
    }
    SIM_HOLD(sim, "R1", s->pool.free_count + used + cached == sim->config.kv_blocks, "free %u used %u cached %u",
             s->pool.free_count, used, cached);
    SIM_HOLD(sim, "R1", used == s->pool.used_count && cached == s->pool.cached_count, "used %u/%u cached %u/%u", used,
             s->pool.used_count, cached, s->pool.cached_count);
    SIM_HOLD(sim, "R2", listed == s->cache.count, "%u blocks are marked, %u are in the index", listed, s->cache.count);
}

static void check_sequences(struct sim *sim)
{
    const struct sched *s = sim->sched;
    uint32_t running = 0, alive = 0, waiting_jobs = 0;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        if (s->hot[i].slot == SLOT_NONE) continue;
        alive++;
        SIM_HOLD(sim, "R3", s->seqs[s->hot[i].slot].hot == i, "slot %u is not where it says", s->hot[i].slot);
    }
    for (uint32_t i = 0; i < s->slots_max; i++) {
        bool waits = s->fair.entries[s->jobs_max + i].waiting;
        running += s->seqs[i].state == SEQ_RUNNING;
        SIM_HOLD(sim, "R3", waits == (s->seqs[i].state == SEQ_PREEMPTED), "slot %u: state %u, waiting %d", i,
                 s->seqs[i].state, waits);
    }
    SIM_HOLD(sim, "R3", running == alive, "%u running, %u records", running, alive);
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < s->jobs_max; i++) {
        const struct job *job = &s->jobs[i];
        if (job->state != JOB_WAITING) continue;
        waiting_jobs++;
        tokens += job->request->prompt_count;
        SIM_HOLD(sim, "R3", s->fair.entries[i].waiting, "a waiting request is in no queue");
        const struct request *request = job->request;
        uint64_t limit_ns = sim->config.class_limit_ns[request->service_class];
        if (request->service_class == CLASS_BATCH && request->deadline_ns) continue; /* ages by its deadline */
        SIM_HOLD(sim, "R17",
                 sim->now_ns - request->submitted_ns <= limit_ns + 20000000 || job->rank <= request->service_class,
                 "request %llu has waited %llu ns in its class", (unsigned long long)request->id,
                 (unsigned long long)(sim->now_ns - request->submitted_ns));
    }
    SIM_HOLD(sim, "R18", waiting_jobs == s->stats.waiting && waiting_jobs <= sim->config.queue_requests_max,
             "%u waiting", waiting_jobs);
    SIM_HOLD(sim, "R18", tokens == s->stats.waiting_tokens && tokens <= sim->config.queue_tokens_max, "waiting tokens");
}

void sim_check_state(struct sim *sim)
{
    check_blocks(sim);
    check_sequences(sim);
    sim_check_under_way(sim);
}

/* ---- events ---- */

static void check_choice_end(struct sim *sim, const struct sim_request *r, uint32_t c)
{
    const struct choice *choice = &r->choices[c];
    const struct sim_choice *want = &r->sim[c];
    SIM_HOLD(sim, "R12", choice->finish == want->expected_finish, "finish %d, alone %d", choice->finish,
             want->expected_finish);
    SIM_HOLD(sim, "R12", choice->output_count == want->expected_count, "%u ids, alone %u", choice->output_count,
             want->expected_count);
    SIM_HOLD(sim, "R12", choice->text_bytes == want->expected_text, "%u bytes, alone %u", choice->text_bytes,
             want->expected_text);
    SIM_HOLD(sim, "R12", choice->stop_id == want->expected_stop_id && choice->stop_string == want->expected_stop_string,
             "stopped by %u/%u, alone %u/%u", choice->stop_id, choice->stop_string, want->expected_stop_id,
             want->expected_stop_string);
    SIM_HOLD(sim, "R12", choice->reasoning_count == want->expected_reasoning, "%u reasoning ids, alone %u",
             choice->reasoning_count, want->expected_reasoning);
    SIM_HOLD(sim, "R12", choice->trimmed_count == want->expected_trimmed, "%u trimmed ids, alone %u",
             choice->trimmed_count, want->expected_trimmed);
}

static void check_tokens(struct sim *sim, struct sim_request *r, const struct event *event)
{
    struct sim_choice *mine = &r->sim[event->choice];
    const uint32_t *output = mine->tokens + r->request.prompt_count;
    SIM_HOLD(sim, "R7", r->scheduled && !r->ended && mine->told_finish == FINISH_NONE,
             "ids outside of a request's life");
    SIM_HOLD(sim, "R12", event->output_count <= mine->expected_count, "%u ids, alone %u", event->output_count,
             mine->expected_count);
    SIM_HOLD(sim, "R12", event->text_bytes <= mine->expected_text && event->text_bytes >= mine->told_text,
             "%u bytes shown after %u, alone %u", event->text_bytes, mine->told_text, mine->expected_text);
    SIM_HOLD(sim, "R21", !r->out_limit || event->output_count <= r->out_limit, "%u ids, limit %u", event->output_count,
             r->out_limit);
    SIM_HOLD(sim, "R14", event->output_count > mine->told_count || !r->request.max_tokens, "no new id");
    if (event->output_count <= mine->expected_count)
        SIM_HOLD(sim, "R12", memcmp(output, mine->expected, event->output_count * sizeof *output) == 0,
                 "other ids than alone");
    sim->told += event->output_count - mine->told_count;
    sim->service[r->request.tenant] += FAIR_OUTPUT_WEIGHT * (event->output_count - mine->told_count);
    mine->told_count = event->output_count;
    mine->told_text = event->text_bytes;
    mine->told_finish = event->finish;
    if (event->finish != FINISH_NONE) check_choice_end(sim, r, event->choice);
}

static void check_scores(struct sim *sim, const struct sim_request *r)
{
    if (!r->request.score_prompt) return;
    for (uint32_t p = 1; p < r->request.prompt_count; p++)
        SIM_HOLD(sim, "R12", r->prompt_logprobs[p].rank == 1 && r->prompt_logprobs[p].top_ids[0] == r->prompt[p],
                 "prompt position %u is not scored", p);
}

static void check_done(struct sim *sim, const struct sim_request *r, const struct event *event)
{
    const struct usage *usage = &r->request.usage;
    uint32_t out = 0, told = 0;
    for (uint32_t c = 0; c < r->request.choices_count; c++) {
        out += r->choices[c].output_count;
        told += r->sim[c].told_count;
        SIM_HOLD(sim, "R7", r->choices[c].finish != FINISH_NONE, "a choice has not ended");
        if (event->status == ST_OK && r->choices[c].finish != FINISH_QUOTA) check_choice_end(sim, r, c);
    }
    SIM_HOLD(sim, "R13", usage->in_total == r->request.prompt_count && usage->in_hit == r->in_hit, "in_hit %u, was %u",
             usage->in_hit, r->in_hit);
    SIM_HOLD(sim, "R13", usage->out == out && out == told && !usage->mismatch, "out %u, choices %u, told %u",
             usage->out, out, told);
    SIM_HOLD(sim, "R14", !r->canceled || usage->out == r->out_when_canceled, "ids were counted after the cancel");
    SIM_HOLD(sim, "R13", usage->preemptions || !usage->recomputed, "recomputed without a preemption");
    if (event->status == ST_OK && usage->cause == CAUSE_QUOTA_END) {
        SIM_HOLD(sim, "R21", r->quota_end && r->canceled, "ended at a limit by nobody");
    } else if (event->status == ST_OK) {
        bool stop = usage->cause == CAUSE_STOP, length = usage->cause == CAUSE_LENGTH;
        SIM_HOLD(sim, "R7", stop || length, "cause %d", usage->cause);
        check_scores(sim, r);
    } else if (event->status == ST_CANCELED) {
        SIM_HOLD(sim, "R7", r->canceled, "canceled by nobody");
    } else if (event->status == ST_TIMEOUT) {
        SIM_HOLD(sim, "R7", r->request.deadline_ns && r->request.deadline_ns <= sim->now_ns,
                 "timed out before its deadline");
    } else {
        SIM_HOLD(sim, "R7", r->fails || sim->fail_step, "failed without a fault: %s", status_name(event->status));
    }
}

void sim_check_event(struct sim *sim, const struct event *event)
{
    struct sim_request *r = sim_owner(event->request);
    SIM_HOLD(sim, "R7", r->submitted && !r->ended, "event %d after the end of request %llu", event->kind,
             (unsigned long long)r->request.id);
    switch (event->kind) {
    case REQUEST_SCHEDULED:
        SIM_HOLD(sim, "R7", r->accepted && !r->scheduled, "scheduled twice");
        r->scheduled = true;
        r->in_hit = r->request.usage.in_hit;
        SIM_HOLD(sim, "R11", r->in_hit < r->request.prompt_count, "in_hit %u of %u", r->in_hit,
                 r->request.prompt_count);
        SIM_HOLD(sim, "R11", !r->in_hit || (sim->config.prefix_cache && !r->request.score_prompt),
                 "a hit without a cache");
        sim->service[r->request.tenant] += r->request.prompt_count - r->in_hit;
        break;
    case CHOICE_TOKENS: check_tokens(sim, r, event); break;
    case REQUEST_REFUSED:
    case REQUEST_DONE:
        SIM_HOLD(sim, "R7", (event->kind == REQUEST_DONE) == r->scheduled, "wrong kind of end");
        if (event->kind == REQUEST_DONE) check_done(sim, r, event);
        r->ended = true;
        r->end_kind = event->kind;
        r->end_status = event->status;
        sim->ended++;
        break;
    }
}

/* R16: while both tenants have requests that wait, their service differs by at most the bound of Sheng et al. */
void sim_check_fairness(struct sim *sim)
{
    if (sim->mode != SIM_FAIR) return;
    bool waits[2] = {false, false};
    for (uint32_t i = 0; i < sim->requests_count; i++) {
        const struct sim_request *r = &sim->requests[i];
        if (r->accepted && !r->scheduled && !r->ended) waits[r->request.tenant] = true;
    }
    if (!waits[0] || !waits[1]) return;
    uint64_t bound = 2 * 2 * (uint64_t)sim->config.kv_blocks * KV_BLOCK_TOKENS;
    uint64_t a = sim->service[0], b = sim->service[1], apart = a > b ? a - b : b - a;
    SIM_HOLD(sim, "R16", apart <= bound, "service %llu and %llu", (unsigned long long)a, (unsigned long long)b);
}

void sim_check_end(struct sim *sim)
{
    const struct sched *s = sim->sched;
    SIM_HOLD(sim, "R7", sim->ended == sim->submitted, "%u of %u requests ended", sim->ended, sim->submitted);
    SIM_HOLD(sim, "R19", !s->hot_count && !s->jobs_count && s->slots_free == s->slots_max && !s->leaving_count,
             "records are left");
    SIM_HOLD(sim, "R23", s->stats.generation_tokens == sim->told, "%llu ids are counted, %llu were told",
             (unsigned long long)s->stats.generation_tokens, (unsigned long long)sim->told);
    SIM_HOLD(sim, "R19", !s->pool.used_count && s->pool.cached_count == s->cache.count, "blocks are left");
    SIM_HOLD(sim, "R19", sim->config.prefix_cache || !s->pool.cached_count, "%u private blocks are left",
             s->pool.cached_count);
    SIM_HOLD(sim, "R19", !s->fair.waiting_count && !s->deadlines.count && !s->ageing.count,
             "timers or queues are left");
    for (uint32_t r = 0; r < FAIR_RANKS; r++)
        SIM_HOLD(sim, "R19", !s->fair.active[r].count && !s->fair.waiting[r].count, "a tenant is still active");
    SIM_HOLD(sim, "R19", s->events_count == 0 && s->cancels == SLOT_NONE, "events are left");
}
