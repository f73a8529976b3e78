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
    hot->tokens[hot->length - hot->pending--] = row->id;
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
    if (PLANTED(INDEX_PARTIAL) && finite == seq->prompt_count) full = kv_blocks_for(finite);
    if (!job->indexes || seq->chain_broken) return;
    const block_id *table = table_of(s, hot->slot);
    for (; seq->indexed < full; seq->indexed++) {
        const uint32_t *ids = hot->tokens + (size_t)seq->indexed * KV_BLOCK_TOKENS;
        struct prefix_content content = {
            .key = prefix_cache_key(seq->chain, ids), .root = job->root, .parent = seq->chain_serial, .ids = ids};
        block_id block = table[seq->indexed], holder = prefix_cache_insert(&s->cache, block, &content);
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
static void forget_blocks(struct sched *s, uint32_t slot, uint32_t blocks)
{
    const block_id *table = table_of(s, slot);
    for (uint32_t i = 0; i < blocks; i++) {
        if (!s->pool.records[table[i]].indexed) continue;
        prefix_cache_remove(&s->cache, table[i]);
        block_pool_index(&s->pool, table[i], false);
    }
}

/* ---- one sequence ---- */

static void count_computed(struct sched *s, uint32_t from, uint32_t end, struct seq *seq, struct request *request)
{
    if (from < seq->high_water) {
        uint32_t again = (end < seq->high_water ? end : seq->high_water) - from;
        s->stats.recomputed_tokens += again;
        request->usage.recomputed += again;
        from += again;
    }
    if (from < seq->prompt_count)
        s->stats.computed_prompt_tokens += (end < seq->prompt_count ? end : seq->prompt_count) - from;
    if (end > seq->high_water) seq->high_water = end;
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
    *event_add(s) = (struct event){.kind = CHOICE_TOKENS,
                                   .status = ST_OK,
                                   .request = request,
                                   .choice = seq->choice_idx,
                                   .output_count = choice->output_count,
                                   .text_bytes = choice->text_bytes,
                                   .reasoning_count = choice->reasoning_count,
                                   .finish = choice->finish};
}

/* The first bad row of a sequence; NULL when all are good. */
static const struct row_result *bad_row(const struct sched *s, const struct step_part *part,
                                        const struct batch_result *result)
{
    for (uint32_t r = part->row; r < part->row + part->rows; r++)
        if (result->rows[r].flags || result->rows[r].id >= s->config.texts_count) return &result->rows[r];
    return NULL;
}

static void commit_rows(struct sched *s, struct hot *hot, const struct planned_step *step, const struct step_part *part,
                        const struct batch_result *result, uint64_t now_ns)
{
    struct seq *seq = &s->seqs[part->slot];
    uint32_t job_idx = seq->job;
    struct job *job = &s->jobs[job_idx];
    struct request *request = job->request;
    const struct row_result *bad = bad_row(s, part, result);
    if (bad) {
        if (!PLANTED(INDEX_NOT_FINITE)) forget_blocks(s, part->slot, hot->blocks);
        enum status status = bad->flags == ROW_NO_CHOICE ? ST_INVAL : ST_DEVICE;
        job_end(s, job_idx, FINISH_ERROR, CAUSE_PLATFORM_ERROR, status, now_ns);
        return;
    }
    const struct batch_row *rows = step->batch->rows;
    uint32_t last = part->row + part->rows - 1;
    for (uint32_t r = part->row; rows[r].score_only; r++) {
        seq->scored = rows[r].position;
        if (request->prompt_logprobs) copy_logprobs(&request->prompt_logprobs[rows[r].position], &result->rows[r]);
        if (r == last) break;
    }
    index_blocks(s, hot, seq, job, PLANTED(INDEX_UNDER_WAY) ? hot->computed : rows[last].position);
    if (rows[last].score_only) return;
    hot->flags |= HOT_DECODE;
    enum finish finish = accept(s, hot, seq, request, &result->rows[last], rows[last].position);
    job->out++;
    s->stats.generation_tokens++;
    hot->last_token_ns = now_ns;
    if (!request->first_token_ns) request->first_token_ns = now_ns;
    fair_charge(&s->fair, hot->tenant, hot->rank, PLANTED(FLAT_FAIRNESS) ? 0 : FAIR_OUTPUT_WEIGHT);
    seq->choice->finish = finish;
    choice_event(s, seq, request);
    if (request->choices_count > 1 && seq->leader) queue_choices(s, job_idx, now_ns);
    if (finish != FINISH_NONE) choice_ended(s, hot, finish, now_ns);
}

/* With many sequences their records do not fit the caches; what part i + 8 (and then i + 4) needs is asked for early.
 * A record that has moved since the plan only makes this useless. */
static void prefetch(const struct sched *s, const struct planned_step *step, uint32_t i)
{
    if (i + 8 < step->batch->seqs_count) {
        const struct step_part *part = &step->parts[i + 8];
        const char *seq = (const char *)&s->seqs[part->slot];
        for (uint32_t line = 0; line < sizeof(struct seq); line += 64) __builtin_prefetch(seq + line, 1);
        __builtin_prefetch(s->hot[part->hot].tokens + step->batch->kv_len[i + 8], 1);
    }
    if (i + 4 < step->batch->seqs_count) {
        const struct seq *seq = &s->seqs[step->parts[i + 4].slot];
        const char *job = (const char *)&s->jobs[seq->job];
        __builtin_prefetch(job, 1);
        __builtin_prefetch(job + 64, 1);
        __builtin_prefetch(seq->choice, 1);
        __builtin_prefetch((const char *)seq->choice + 60, 1);
    }
}

/* What a step computed for a sequence that nobody waits for: it is in no count, and only a bad row means something. */
static void drop(struct sched *s, const struct step_part *part, uint32_t blocks, const struct batch_result *result)
{
    if (PLANTED(COUNT_DROPPED)) s->stats.generation_tokens++;
    if (part->rows && bad_row(s, part, result)) forget_blocks(s, part->slot, blocks);
}

static void commit_part(struct sched *s, const struct planned_step *step, uint32_t idx,
                        const struct batch_result *result, uint64_t now_ns)
{
    const struct step_part *part = &step->parts[idx];
    const struct batch *batch = step->batch;
    uint32_t end = batch->kv_len[idx], begin = end - (batch->q_start[idx + 1] - batch->q_start[idx]);
    struct seq *seq = &s->seqs[part->slot];
    if (seq->state == SEQ_LEAVING) { /* R23 */
        drop(s, part, seq->blocks_left, result);
        if (--seq->steps_left == 0) sequence_leave(s, part->slot);
        return;
    }
    struct hot *hot = &s->hot[part->hot]; /* most often still there, and asked for before seq has come */
    if (part->hot >= s->hot_count || hot->slot != part->slot) hot = &s->hot[seq->hot];
    hot->under_way--;
    uint32_t job_idx = seq->job;
    struct job *job = &s->jobs[job_idx];
    if (job->canceled && !PLANTED(COUNT_CANCELLED)) { /* R14: the next plan ends it */
        drop(s, part, hot->blocks, result);
        return;
    }
    count_computed(s, begin, end, seq, job->request);
    if (part->rows) commit_rows(s, hot, step, part, result, now_ns);
    if (seq->state != SEQ_RUNNING || seq->max_tokens || end < seq->prompt_count) return;
    /* Scored to its end, and nothing to generate. */
    seq->choice->finish = FINISH_LENGTH;
    choice_event(s, seq, job->request);
    queue_choices(s, job_idx, now_ns);
    choice_ended(s, hot, FINISH_LENGTH, now_ns);
}

void sched_commit(struct sched *s, const struct batch_result *result, uint64_t now_ns)
{
    CHECK(s->steps_open > 0);
    const struct planned_step *step = &s->steps[s->step_oldest];
    for (uint32_t i = 0; i < step->batch->seqs_count; i++) {
        prefetch(s, step, i);
        commit_part(s, step, i, result, now_ns);
    }
    s->touched += step->batch->seqs_count;
    s->committed = step->cost;
    s->steps_open--;
    s->step_oldest =
        s->steps_open ? (s->step_oldest + 1) % SCHED_STEPS_MAX : 0; /* one at a time: always in the same one */
    fair_settle(&s->fair);
}

void sched_observe(struct sched *s, uint64_t step_ns)
{
    if (!s->committed.tokens) return;
    cost_model_observe(&s->cost, &s->committed, step_ns);
    double per_token = (double)step_ns / s->committed.tokens;
    s->ns_per_token = s->ns_per_token > 0 ? s->ns_per_token + (per_token - s->ns_per_token) / 16 : per_token;
}
