/* What a step's results mean: ids accepted, choices ended, blocks indexed, everything counted once. See sched.h.
 *
 * A block is indexed only when a finite row at or after its last position has come back (R10): prompt chunks without
 * rows wait for the row of a later chunk, since a NaN in the KV shows in every later row. */
#include "runtime/base/check.h"
#include "runtime/model/vocab.h"
#include "scheduler/sched_internal.h"

#include <string.h>

/* ---- text ---- */

static uint32_t text_length(const struct sched *s, const struct seq *seq, uint32_t id)
{
    const struct sched_text *text = &s->config.texts[id];
    return text->special && !seq->keep_special ? 0 : text->length;
}

/* Ids at the end whose text lies wholly behind text_bytes. */
static uint32_t count_trimmed(const struct sched *s, const struct seq *seq, uint32_t text_bytes)
{
    const uint32_t *output = seq->choice->tokens + seq->prompt_count;
    uint32_t trimmed = 0, end = seq->match.text_bytes;
    for (uint32_t i = seq->output_count; i-- > 0 && end > text_bytes;) {
        uint32_t length = text_length(s, seq, output[i]);
        if (end - length < text_bytes) break;
        if (length) trimmed++;
        end -= length;
    }
    return trimmed;
}

/* ---- one id ---- */

static bool contains(const uint32_t *ids, uint32_t count, uint32_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] == id) return true;
    return false;
}

static bool ends_by_id(const struct sched *s, const struct seq *seq, const struct request *request, uint32_t id)
{
    if (!seq->ignore_eos && contains(s->config.end_ids, s->config.end_ids_count, id)) return true;
    return contains(request->stop_ids, request->stop_ids_count, id);
}

static void count_thinking(const struct sched *s, struct seq *seq, uint32_t id)
{
    if (id == s->config.think_start_id) seq->thinking = true;
    if (seq->thinking) seq->choice->reasoning_count++;
    if (id == s->config.think_end_id) seq->thinking = false;
}

static void copy_logprobs(struct token_logprobs *target, const struct row_result *row)
{
    target->logprob = row->logprob;
    target->rank = row->rank;
    target->top_count = row->top_count < LOGPROBS_MAX ? row->top_count : LOGPROBS_MAX;
    memcpy(target->top_ids, row->top_ids, target->top_count * sizeof *target->top_ids);
    memcpy(target->top_logprobs, row->top_logprobs, target->top_count * sizeof *target->top_logprobs);
}

/* Appends an accepted id; FINISH_NONE while the choice goes on. */
static enum finish accept(struct sched *s, struct hot *hot, struct seq *seq, const struct request *request,
                          const struct row_result *row, uint32_t position)
{
    struct choice *choice = seq->choice;
    hot->tokens[hot->length++] = row->id;
    if (choice->logprobs && seq->params->logprobs >= 0) copy_logprobs(&choice->logprobs[seq->output_count], row);
    choice->output_count = ++seq->output_count;
    seq->position_last = position;
    count_thinking(s, seq, row->id);
    bool armed = seq->output_count > seq->min_tokens;
    if (armed && ends_by_id(s, seq, request, row->id)) {
        choice->stop_id = row->id;
        choice->text_bytes = seq->match.text_bytes; /* the terminal id gives no text */
        return FINISH_STOP;
    }
    struct stop_hit hit;
    const char *bytes = s->config.texts[row->id].bytes;
    if (stop_match_push(&seq->match, bytes, text_length(s, seq, row->id), armed, &hit)) {
        choice->stop_string = hit.index;
        choice->text_bytes = request->include_stop ? hit.end : hit.start;
        choice->trimmed_count = count_trimmed(s, seq, choice->text_bytes);
        return FINISH_STOP;
    }
    choice->text_bytes = seq->match.text_bytes;
    if (seq->output_count >= seq->max_tokens) return FINISH_LENGTH;
    if (!PLANTED(SHOW_HELD)) choice->text_bytes -= stop_match_held(&seq->match);
    return FINISH_NONE;
}

/* ---- the index ---- */

/* Offers the full blocks below `finite` (positions known to be good) to the index. */
static void index_blocks(struct sched *s, const struct hot *hot, struct seq *seq, const struct job *job,
                         uint32_t finite)
{
    if (job->private_domain && finite > seq->prompt_count) finite = seq->prompt_count;
    uint32_t full = finite / KV_BLOCK_TOKENS;
    if (PLANTED(INDEX_PARTIAL) && finite == seq->prompt_count) full = blocks_for(finite);
    if (!job->indexes || seq->chain_broken) return;
    for (; seq->indexed < full; seq->indexed++) {
        const uint32_t *ids = hot->tokens + (size_t)seq->indexed * KV_BLOCK_TOKENS;
        struct prefix_content content = {
            .key = prefix_cache_key(seq->chain, ids), .root = job->root, .parent = seq->chain_serial, .ids = ids};
        block_id block = hot->table[seq->indexed], holder = prefix_cache_insert(&s->cache, block, &content);
        if (holder == BLOCK_NONE) {
            seq->chain_broken = true;
            return;
        }
        if (holder == block) block_pool_index(&s->pool, block, true);
        seq->chain = content.key;
        seq->chain_serial = s->cache.entries[holder].serial;
    }
}

/* A row was not finite: nothing this sequence has read or written may be used again. */
static void forget_blocks(struct sched *s, const struct hot *hot)
{
    for (uint32_t i = 0; i < hot->blocks; i++) {
        if (!s->pool.records[hot->table[i]].indexed) continue;
        prefix_cache_remove(&s->cache, hot->table[i]);
        block_pool_index(&s->pool, hot->table[i], false);
    }
}

/* ---- one sequence ---- */

static void count_computed(struct sched *s, struct hot *hot, struct seq *seq, struct request *request)
{
    uint32_t from = hot->computed, end = from + hot->planned;
    if (from < seq->high_water) {
        uint32_t again = (end < seq->high_water ? end : seq->high_water) - from;
        s->stats.recomputed_tokens += again;
        request->usage.recomputed += again;
        from += again;
    }
    if (from < seq->prompt_count)
        s->stats.computed_prompt_tokens += (end < seq->prompt_count ? end : seq->prompt_count) - from;
    if (end > seq->high_water) seq->high_water = end;
    hot->computed = end;
    hot->planned = 0;
}

/* The prompt stands: the other choices may start and share its blocks. */
static void queue_choices(struct sched *s, uint32_t job_idx, uint64_t now_ns)
{
    struct job *job = &s->jobs[job_idx];
    if (job->choices_queued || job->request->choices_count == 1) return;
    job->choices_queued = true;
    if (job->request->max_tokens == 0) { /* scoring only: they have nothing to do */
        for (uint32_t i = 1; i < job->request->choices_count; i++) job->request->choices[i].finish = FINISH_LENGTH;
        job->choices_started = job->request->choices_count;
        job->choices_ended += job->request->choices_count - 1;
        return;
    }
    entry_queue(s, job_idx, job->request->tenant, job->rank, FAIR_CHOICE, job->request, job->order, now_ns);
}

static void choice_ended(struct sched *s, const struct hot *hot, enum finish finish, uint64_t now_ns)
{
    uint32_t slot = hot->slot, job_idx = s->seqs[slot].job;
    struct job *job = &s->jobs[job_idx];
    sequence_end(s, slot, finish);
    if (job->choices_ended == job->request->choices_count)
        job_done(s, job_idx, finish == FINISH_STOP ? CAUSE_STOP : CAUSE_LENGTH, ST_OK, now_ns);
}

static void choice_event(struct sched *s, const struct seq *seq, struct request *request)
{
    const struct choice *choice = seq->choice;
    event_add(s, &(struct event){.kind = CHOICE_TOKENS,
                                 .status = ST_OK,
                                 .request = request,
                                 .choice = seq->choice_idx,
                                 .output_count = choice->output_count,
                                 .text_bytes = choice->text_bytes,
                                 .reasoning_count = choice->reasoning_count,
                                 .finish = choice->finish});
}

/* The first bad row of a sequence; NULL when all are good. */
static const struct row_result *bad_row(const struct sched *s, const struct hot *hot, const struct batch_result *result)
{
    for (uint32_t r = hot->row; r < hot->row + hot->rows; r++)
        if (result->rows[r].flags || result->rows[r].id >= s->config.texts_count) return &result->rows[r];
    return NULL;
}

static void commit_rows(struct sched *s, struct hot *hot, const struct batch_result *result, uint64_t now_ns)
{
    struct seq *seq = &s->seqs[hot->slot];
    uint32_t job_idx = seq->job;
    struct job *job = &s->jobs[job_idx];
    struct request *request = job->request;
    const struct row_result *bad = bad_row(s, hot, result);
    if (bad) {
        if (!PLANTED(INDEX_NOT_FINITE)) forget_blocks(s, hot);
        enum status status = bad->flags == ROW_NO_CHOICE ? ST_INVAL : ST_DEVICE;
        job_end(s, job_idx, FINISH_ERROR, CAUSE_PLATFORM_ERROR, status, now_ns);
        return;
    }
    const struct batch_row *rows = s->batch->rows;
    uint32_t last = hot->row + hot->rows - 1;
    for (uint32_t r = hot->row; r <= last && rows[r].score_only; r++) {
        seq->scored = rows[r].position;
        if (request->prompt_logprobs) copy_logprobs(&request->prompt_logprobs[rows[r].position], &result->rows[r]);
    }
    index_blocks(s, hot, seq, job, rows[last].position);
    if (hot->computed < hot->length || rows[last].score_only) return;
    hot->flags = (uint8_t)(hot->flags | HOT_DECODE);
    enum finish finish = accept(s, hot, seq, request, &result->rows[last], rows[last].position);
    job->out++;
    s->stats.generation_tokens++;
    hot->last_token_ns = now_ns;
    if (!request->first_token_ns) request->first_token_ns = now_ns;
    if (seq->output_count >= job->out_limit && !PLANTED(PASS_LIMIT)) hot->flags = (uint8_t)(hot->flags | HOT_PAUSED);
    fair_charge(&s->fair, hot->tenant, hot->rank, PLANTED(FLAT_FAIRNESS) ? 0 : FAIR_OUTPUT_WEIGHT);
    seq->choice->finish = finish;
    choice_event(s, seq, request);
    if (seq->leader) queue_choices(s, job_idx, now_ns);
    if (finish != FINISH_NONE) choice_ended(s, hot, finish, now_ns);
}

/* With many sequences their records do not fit the caches; what row i + 8 (and then i + 4) needs is asked for early. */
static void prefetch(const struct sched *s, uint32_t i)
{
    if (i + 8 < s->hot_count && s->hot[i + 8].slot != SLOT_NONE) {
        const char *seq = (const char *)&s->seqs[s->hot[i + 8].slot];
        for (uint32_t line = 0; line < sizeof(struct seq); line += 64) __builtin_prefetch(seq + line, 1);
        __builtin_prefetch(s->hot[i + 8].tokens + s->hot[i + 8].length, 1);
    }
    if (i + 4 < s->hot_count && s->hot[i + 4].slot != SLOT_NONE) {
        const struct seq *seq = &s->seqs[s->hot[i + 4].slot];
        const char *job = (const char *)&s->jobs[seq->job];
        __builtin_prefetch(job, 1);
        __builtin_prefetch(job + 64, 1);
        __builtin_prefetch(seq->choice, 1);
        __builtin_prefetch((const char *)seq->choice + 60, 1);
    }
}

void sched_commit(struct sched *s, const struct batch_result *result, uint64_t now_ns)
{
    CHECK(s->open);
    s->open = false;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        struct hot *hot = &s->hot[i];
        prefetch(s, i);
        if (hot->slot == SLOT_NONE || !hot->planned) continue;
        struct seq *seq = &s->seqs[hot->slot];
        struct job *job = &s->jobs[seq->job];
        if (job->canceled && !PLANTED(COUNT_CANCELLED)) { /* R14: dropped before counting; the next plan ends it */
            if (hot->rows && bad_row(s, hot, result)) forget_blocks(s, hot);
            hot->planned = 0;
            continue;
        }
        count_computed(s, hot, seq, job->request);
        if (hot->rows) commit_rows(s, hot, result, now_ns);
        if (hot->slot == SLOT_NONE || hot->computed < hot->length || seq->max_tokens) continue;
        /* Scored to its end, and nothing to generate. */
        uint32_t job_idx = seq->job;
        seq->choice->finish = FINISH_LENGTH;
        choice_event(s, seq, job->request);
        queue_choices(s, job_idx, now_ns);
        choice_ended(s, hot, FINISH_LENGTH, now_ns);
    }
    s->touched += s->hot_count;
    fair_settle(&s->fair);
}

void sched_observe(struct sched *s, uint64_t step_ns)
{
    struct cost_step step = {.bytes = s->config.weights_bytes + s->step_kv_blocks * s->config.kv_block_bytes,
                             .tokens = s->stats.step_tokens,
                             .rows = s->stats.step_rows,
                             .pairs = s->step_pairs};
    if (!step.tokens) return;
    cost_model_observe(&s->cost, &step, step_ns);
    double per_token = (double)step_ns / step.tokens;
    s->ns_per_token = s->ns_per_token > 0 ? s->ns_per_token + (per_token - s->ns_per_token) / 16 : per_token;
}
