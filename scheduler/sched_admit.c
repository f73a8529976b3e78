/* Admission: the next entry of the queues becomes a running sequence, with the blocks its prompt needs and those the
 * prefix index has. Strictly in order: an entry that does not fit stops admission, so that nobody overtakes a long
 * prompt for ever. What was found out about an entry that does not fit is kept (blocked_entry), so that waiting costs
 * nothing. */
#include "runtime/base/check.h"
#include "runtime/model/vocab.h"
#include "scheduler/sched_internal.h"

#include <string.h>

/* A sequence about to be admitted: a preempted one (slot) or the next choice of a job. */
struct candidate {
    uint32_t entry, job, slot;
    const uint32_t *tokens;
    uint32_t length, hits;
    bool leader, returns;
};

/* Slots can run out while preempted sequences hold them; then the best of those goes first. Rare, so a scan will do. */
static uint32_t preempted_first(const struct sched *s)
{
    uint32_t best = FAIR_NONE;
    for (uint32_t i = 0; i < s->slots_max; i++) {
        const struct seq *seq = &s->seqs[i];
        if (seq->state != SEQ_PREEMPTED) continue;
        if (best == FAIR_NONE || seq->rank < s->seqs[best].rank ||
            (seq->rank == s->seqs[best].rank && seq->order < s->seqs[best].order))
            best = i;
    }
    return best == FAIR_NONE ? FAIR_NONE : s->jobs_max + best;
}

static bool next_candidate(const struct sched *s, struct candidate *c)
{
    uint32_t entry = fair_top(&s->fair);
    if (entry == FAIR_NONE) return false;
    if (entry < s->jobs_max && !s->slots_free) entry = preempted_first(s);
    if (entry == FAIR_NONE) return false;
    *c = (struct candidate){.entry = entry, .slot = SLOT_NONE};
    if (entry >= s->jobs_max) {
        const struct seq *seq = &s->seqs[entry - s->jobs_max];
        c->slot = entry - s->jobs_max;
        c->job = seq->job;
        c->tokens = seq->choice->tokens;
        c->length = seq->prompt_count + seq->output_count;
        c->leader = seq->leader;
        c->returns = true;
    } else {
        const struct job *job = &s->jobs[entry];
        c->job = entry;
        c->tokens = job->request->choices[job->choices_started].tokens;
        c->length = job->request->prompt_count;
        c->leader = job->choices_started == 0;
    }
    return true;
}

/* Leading blocks in the index: at least one id is left to compute (R11). */
static void find_hits(struct sched *s, struct candidate *c)
{
    const struct job *job = &s->jobs[c->job];
    s->hit_chain = job->root;
    s->hit_serial = PREFIX_SERIAL_ROOT;
    if (!job->indexes || (c->leader && job->request->score_prompt)) return;
    if (job->private_domain && c->leader && !c->returns) return; /* nothing can be there yet */
    for (uint32_t limit = (c->length - 1) / KV_BLOCK_TOKENS; c->hits < limit; c->hits++) {
        const uint32_t *ids = c->tokens + (size_t)c->hits * KV_BLOCK_TOKENS;
        struct prefix_key key = prefix_cache_key(s->hit_chain, ids);
        block_id block = prefix_cache_find(
            &s->cache, &(struct prefix_content){.key = key, .root = job->root, .parent = s->hit_serial, .ids = ids});
        if (block == BLOCK_NONE) break;
        s->hits[c->hits] = block;
        s->hit_chain = key;
        s->hit_serial = s->cache.entries[block].serial;
    }
}

/* Afterwards free + evictable blocks must cover the next page crossing of every running sequence. With nothing running
 * any request fits, because larger ones were refused. */
static bool has_blocks(const struct sched *s, const struct candidate *c)
{
    uint32_t available = block_pool_available(&s->pool), need = kv_blocks_for(c->length) - c->hits;
    for (uint32_t i = 0; i < c->hits; i++) need += !s->pool.records[s->hits[i]].references;
    if (!s->hot_count && !s->leaving_count) {
        CHECK(need <= available);
        return true;
    }
    return (uint64_t)need + s->hot_count + 1 <= available;
}

/* ---- a new sequence ---- */

static bool starts_thinking(const struct sched *s, const struct request *request)
{
    if (s->config.think_start_id == VOCAB_NO_ID) return false;
    for (uint32_t i = request->prompt_count; i-- > 0;) {
        if (request->prompt[i] == s->config.think_start_id) return true;
        if (request->prompt[i] == s->config.think_end_id) return false;
    }
    return false;
}

/* End ids and stop ids, which may not be chosen below min_tokens. */
static void set_bans(struct sched *s, uint32_t slot, const struct request *request)
{
    struct seq *seq = &s->seqs[slot];
    uint32_t *bans = s->bans + (size_t)slot * s->ban_stride;
    seq->banned = bans;
    seq->banned_count = 0;
    if (!request->min_tokens) return;
    if (!request->ignore_eos) {
        for (uint32_t i = 0; i < s->config.end_ids_count; i++) bans[seq->banned_count++] = s->config.end_ids[i];
    }
    for (uint32_t i = 0; i < request->stop_ids_count; i++) bans[seq->banned_count++] = request->stop_ids[i];
}

static uint32_t sequence_start(struct sched *s, uint32_t job_idx)
{
    struct job *job = &s->jobs[job_idx];
    const struct request *request = job->request;
    uint32_t slot = s->slot_free_first, choice_idx = job->choices_started++;
    struct seq *seq = &s->seqs[slot];
    s->slot_free_first = seq->next;
    s->slots_free--;
    *seq = (struct seq){.choice = &request->choices[choice_idx],
                        .params = &request->params,
                        .request_id = request->id,
                        .seed = request->choices[choice_idx].seed,
                        .job = job_idx,
                        .choice_idx = choice_idx,
                        .prompt_count = request->prompt_count,
                        .max_tokens = request->max_tokens,
                        .min_tokens = request->min_tokens,
                        .ignore_eos = request->ignore_eos,
                        .keep_special = request->keep_special,
                        .leader = choice_idx == 0,
                        .next = job->seqs,
                        .previous = SLOT_NONE,
                        .order = ++s->seq_order_last,
                        .tenant = request->tenant,
                        .rank = job->rank,
                        .service_class = (uint8_t)(request->books_as ? request->books_as : request->service_class),
                        .thinking = starts_thinking(s, request)};
    if (job->seqs != SLOT_NONE) s->seqs[job->seqs].previous = slot;
    job->seqs = slot;
    stop_match_init(&seq->match, request->stops, request->stops_count, s->stop_failure + (size_t)slot * s->stop_entries,
                    s->stop_state + (size_t)slot * s->stop_strings);
    set_bans(s, slot, request);
    return slot;
}

/* The request's first step: input counts are fixed here for good (R13). */
static void job_start(struct sched *s, struct job *job, uint32_t hit_tokens, uint64_t now_ns)
{
    struct request *request = job->request;
    job->state = JOB_STARTED;
    s->stats.waiting--;
    s->stats.waiting_tokens -= request->prompt_count;
    s->tenants[request->tenant].requests--;
    s->tenants[request->tenant].tokens -= request->prompt_count;
    request->scheduled_ns = now_ns;
    request->usage.in_total = request->prompt_count;
    request->usage.in_hit = hit_tokens;
    s->stats.prompt_tokens += request->prompt_count;
    s->stats.cached_tokens += hit_tokens;
    if (job->indexes && !request->score_prompt) {
        s->stats.prefix_queries_tokens += request->prompt_count;
        s->stats.prefix_hits_tokens += hit_tokens;
    }
    *event_add(s) = (struct event){.kind = REQUEST_SCHEDULED, .status = ST_OK, .request = request};
}

static void admit(struct sched *s, struct candidate *c, uint64_t now_ns)
{
    struct job *job = &s->jobs[c->job];
    uint32_t hit_tokens = c->hits * KV_BLOCK_TOKENS;
    if (!c->returns) c->slot = sequence_start(s, c->job);
    struct seq *seq = &s->seqs[c->slot];
    fair_run_begin(&s->fair, seq->tenant, seq->rank); /* before it leaves the queue: the account stays active */
    if (c->returns || c->leader || job->choices_started == job->request->choices_count) {
        fair_remove(&s->fair, c->entry);
        heap_remove(&s->ageing, c->entry);
    }
    if (c->leader && !c->returns) job_start(s, job, hit_tokens, now_ns);
    if (PLANTED(REFREEZE_INPUT) && c->returns) job->request->usage.in_hit = hit_tokens;
    if (!c->returns) fair_charge(&s->fair, seq->tenant, seq->rank, c->length - hit_tokens);
    fair_settle(&s->fair);
    uint8_t flags = seq->service_class == CLASS_PRIORITY ? HOT_PRIORITY : 0;
    if (c->leader && job->request->score_prompt) flags |= HOT_SCORE;
    struct hot *hot = &s->hot[s->hot_count];
    *hot = (struct hot){.slot = c->slot,
                        .tenant = seq->tenant,
                        .computed = hit_tokens,
                        .length = c->length,
                        .length_max = length_max_of(job, seq),
                        .rank = seq->rank,
                        .order = seq->order,
                        .last_token_ns = now_ns,
                        .tokens = seq->choice->tokens,
                        .flags = flags};
    block_id *table = table_of(s, c->slot);
    for (uint32_t i = 0; i < c->hits; i++) {
        block_pool_share(&s->pool, s->hits[i]);
        table[hot->blocks++] = s->hits[i];
    }
    for (uint32_t need = kv_blocks_for(c->length); hot->blocks < need;) {
        block_id block = block_pool_take(&s->pool);
        CHECK(block != BLOCK_NONE);
        table[hot->blocks++] = block;
    }
    seq->state = SEQ_RUNNING;
    seq->hot = s->hot_count++;
    seq->indexed = c->hits;
    seq->chain = s->hit_chain;
    seq->chain_serial = s->hit_serial;
    seq->chain_broken = false;
    if (hit_tokens > seq->high_water) seq->high_water = hit_tokens;
    s->prefilling++;
    plan_chunk(s, hot, chunk_max(s, hot));
}

void admit_waiting(struct sched *s, uint64_t now_ns)
{
    struct candidate c;
    while (s->hot_count < s->config.running_max && prefill_left(s) && s->rows_left && next_candidate(s, &c)) {
        uint32_t rank = c.returns ? s->seqs[c.slot].rank : s->jobs[c.job].rank;
        uint32_t service_class = s->jobs[c.job].request->service_class;
        if (s->power_plan.limited && !power_admits_rank(s, rank, service_class)) return;
        uint32_t available = block_pool_available(&s->pool);
        if (s->hot_count && c.entry == s->blocked_entry && available <= s->blocked_available) return;
        find_hits(s, &c);
        uint32_t left = c.length - c.hits * KV_BLOCK_TOKENS;
        if (prefill_left(s) < KV_BLOCK_TOKENS && left > prefill_left(s)) return;
        if (!has_blocks(s, &c)) {
            s->blocked_entry = c.entry;
            s->blocked_available = available;
            return;
        }
        admit(s, &c, now_ns);
    }
}
