/* One step: ends first, then decode rows, then prefill chunks, then admission; then the batch is written. See sched.h
 * and the design's section 2.
 *
 * The prompt's blocks are all taken at admission, not chunk by chunk: two half-done prefills can then never wait for
 * each other's blocks, and only decode rows ask for blocks later (a page crossing, one step in 16). */
#include "runtime/base/check.h"
#include "scheduler/sched_internal.h"

#include <math.h>

/* ---- ends and ageing ---- */

/* A good end from outside: everything accepted so far is the answer. */
static void job_stop(struct sched *s, uint32_t job_idx, enum cause cause, uint64_t now_ns)
{
    for (uint32_t slot = s->jobs[job_idx].seqs; slot != SLOT_NONE; slot = s->seqs[slot].next)
        s->seqs[slot].choice->text_bytes = s->seqs[slot].match.text_bytes;
    job_end(s, job_idx, cause == CAUSE_QUOTA_END ? FINISH_QUOTA : FINISH_ACCOUNT, cause, ST_OK, now_ns);
}

static void take_cancels(struct sched *s, uint64_t now_ns)
{
    while (s->cancels != SLOT_NONE) {
        uint32_t job_idx = s->cancels;
        struct job *job = &s->jobs[job_idx];
        s->cancels = job->cancel_next;
        job->cancel_next = SLOT_NONE;
        bool well = job->cancel_cause == CAUSE_QUOTA_END || job->cancel_cause == CAUSE_ACCOUNT_STOP;
        if (well && job->state == JOB_STARTED)
            job_stop(s, job_idx, job->cancel_cause, now_ns);
        else
            job_end(s, job_idx, FINISH_CANCELED, job->cancel_cause, ST_CANCELED, now_ns);
    }
}

static void take_deadlines(struct sched *s, uint64_t now_ns)
{
    for (uint32_t j; (j = heap_top(&s->deadlines)) != HEAP_NONE && s->deadlines.keys[j] <= now_ns;)
        job_end(s, j, FINISH_ERROR, CAUSE_PLATFORM_CANCEL, ST_TIMEOUT, now_ns);
}

/* R17: past its limit a waiting entry ranks one class up, once. */
static void take_ageing(struct sched *s, uint64_t now_ns)
{
    for (uint32_t e; (e = heap_top(&s->ageing)) != HEAP_NONE && s->ageing.keys[e] <= now_ns;) {
        heap_remove(&s->ageing, e);
        if (PLANTED(NO_AGEING)) continue;
        struct fair_entry old = s->fair.entries[e];
        CHECK(old.waiting && old.rank > 0);
        uint32_t rank = old.rank - 1u;
        fair_remove(&s->fair, e);
        fair_push(&s->fair, e, old.tenant, rank, old.group, old.priority, old.order);
        if (e < s->jobs_max)
            s->jobs[e].rank = (uint8_t)rank;
        else
            s->seqs[e - s->jobs_max].rank = (uint8_t)rank;
    }
}

/* ---- preemption ---- */

/* Whether a should give way rather than b: lower class; then not yet preempted three times; then the tenant that has
 * had more; then the younger. Design, section 5. */
static bool gives_way(const struct sched *s, const struct hot *a, const struct hot *b)
{
    if (a->rank != b->rank) return a->rank > b->rank;
    bool a_protected = s->seqs[a->slot].preemptions >= PREEMPTIONS_PROTECT;
    bool b_protected = s->seqs[b->slot].preemptions >= PREEMPTIONS_PROTECT;
    if (a_protected != b_protected) return b_protected;
    if (a->tenant != b->tenant) {
        uint64_t a_counter = fair_account(&s->fair, a->tenant, a->rank)->counter;
        uint64_t b_counter = fair_account(&s->fair, b->tenant, b->rank)->counter;
        if (a_counter != b_counter) return a_counter > b_counter;
    }
    return a->order > b->order;
}

/* The oldest sequence of the highest class is never a victim (R6), so somebody always gets on. */
static struct hot *victim(struct sched *s)
{
    struct hot *oldest = NULL, *chosen = NULL;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        struct hot *hot = &s->hot[i];
        if (hot->slot == SLOT_NONE) continue;
        if (!oldest || hot->rank < oldest->rank || (hot->rank == oldest->rank && hot->order < oldest->order))
            oldest = hot;
    }
    for (uint32_t i = 0; i < s->hot_count; i++) {
        struct hot *hot = &s->hot[i];
        if (hot->slot == SLOT_NONE || hot == oldest) continue;
        if (!chosen || gives_way(s, hot, chosen)) chosen = hot;
    }
    s->touched += 2 * s->hot_count;
    return chosen;
}

/* By recompute: its blocks go (the indexed ones stay cached while room lasts), its ids stay, it queues first. */
static void preempt(struct sched *s, struct hot *hot, uint64_t now_ns)
{
    uint32_t slot = hot->slot;
    struct seq *seq = &s->seqs[slot];
    struct request *request = s->jobs[seq->job].request;
    request->usage.preemptions++;
    if (hot->planned) s->decodes_planned--;
    sequence_release_blocks(s, hot);
    hot->slot = SLOT_NONE;
    hot->planned = 0;
    seq->state = SEQ_PREEMPTED;
    if (seq->preemptions < UINT8_MAX) seq->preemptions++;
    s->stats.preemptions++;
    s->preempted = true;
    /* Queued before it stops running: its account must not look idle in between. */
    entry_queue(s, s->jobs_max + slot, seq->tenant, seq->rank, FAIR_PREEMPTED, request, seq->order, now_ns);
    fair_run_end(&s->fair, seq->tenant, seq->rank);
}

/* ---- decode rows ---- */

static void plan_decode(struct sched *s, struct hot *hot, uint64_t now_ns)
{
    if (hot->slot == SLOT_NONE) return;                      /* it gave way to an earlier row */
    while (hot->computed == hot->blocks * KV_BLOCK_TOKENS) { /* a page crossing */
        block_id block = block_pool_take(&s->pool);
        if (block != BLOCK_NONE) {
            table_of(s, hot->slot)[hot->blocks++] = block;
            break;
        }
        if (s->steps_open && !PLANTED(PREEMPT_UNDER_WAY)) { /* a victim's blocks would not be free before its commit */
            s->must_wait = true;
            return;
        }
        struct hot *out = victim(s);
        CHECK(out != NULL); /* one sequence alone always fits: is_valid */
        preempt(s, out, now_ns);
        if (out == hot) return;
    }
    hot->planned = 1;
    hot->rows = 1;
    s->decodes_planned++;
}

static bool decodes_before(const struct sched *s, uint32_t a_idx, uint32_t b_idx)
{
    const struct hot *a = &s->hot[a_idx], *b = &s->hot[b_idx];
    if (a->rank != b->rank) return a->rank < b->rank;
    uint64_t a_counter = fair_account(&s->fair, a->tenant, a->rank)->counter;
    uint64_t b_counter = fair_account(&s->fair, b->tenant, b->rank)->counter;
    if (a_counter != b_counter) return a_counter < b_counter;
    if (a->last_token_ns != b->last_token_ns) return a->last_token_ns < b->last_token_ns;
    return a->order < b->order;
}

/* Heapsort: in place, no allocation (qsort may allocate), the same everywhere. */
void sort_decodes(const struct sched *s, uint32_t *items, uint32_t count)
{
    for (uint32_t start = count / 2, end = count; end > 1;) {
        if (start > 0) {
            start--;
        } else {
            uint32_t swap = items[--end];
            items[end] = items[0];
            items[0] = swap;
        }
        for (uint32_t at = start;;) {
            uint32_t child = 2 * at + 1;
            if (child >= end) break;
            if (child + 1 < end && decodes_before(s, items[child], items[child + 1])) child++;
            if (!decodes_before(s, items[at], items[child])) break;
            uint32_t swap = items[at];
            items[at] = items[child];
            items[child] = swap;
            at = child;
        }
    }
}

/* How many rows were tried. */
static uint32_t try_decodes(struct sched *s, uint64_t now_ns)
{
    uint32_t count = 0, limit = s->config.step_tokens_max;
    if (limit > s->config.rows_max) limit = s->config.rows_max;
    if (PLANTED(PREFILL_FIRST) && limit > s->hot_count / 2 + 1) limit = s->hot_count / 2 + 1;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        struct hot *hot = &s->hot[i];
        hot->planned = 0;
        hot->rows = 0;
        if (hot->pending) hot->flags |= HOT_DECODE;
        if (hot->flags & HOT_DECODE && !is_at_limit(hot)) s->scratch[count++] = i;
    }
    if (count > limit) {
        sort_decodes(s, s->scratch, count);
        count = limit;
    }
    if (s->power_plan.limited) count = power_take_decodes(s, s->scratch, count, now_ns);
    for (uint32_t i = 0; i < count && !s->must_wait; i++) plan_decode(s, &s->hot[s->scratch[i]], now_ns);
    s->touched += s->hot_count + count;
    return count;
}

/* Where watts leave but few rows, these may give way for lack of blocks before one is planned: then it is the others'
 * turn (R6). Each try preempts one at least. */
static void plan_decodes(struct sched *s, uint64_t now_ns)
{
    while (try_decodes(s, now_ns) > 0 && s->decodes_planned == 0 && !s->must_wait) {
        hot_sweep(s);
        (void)power_begin(s);
    }
}

/* ---- prefill chunks ---- */

/* Rows that computing [from, end) needs: prompt positions to score, and one to choose the next id at the end. */
static uint32_t rows_for(const struct seq *seq, const struct hot *hot, uint32_t from, uint32_t end)
{
    uint32_t rows = 0;
    if (is_leader_scoring(hot)) {
        uint32_t first = from > seq->scored ? from : seq->scored, last = seq->prompt_count - 1;
        if (last > end) last = end;
        if (last > first) rows = last - first;
    }
    return rows + (end == hot->length && seq->max_tokens > 0);
}

bool is_prefilling(const struct hot *hot)
{
    return !(hot->flags & HOT_DECODE) && !is_at_limit(hot) && hot->computed < hot->length;
}

static bool is_long(const struct sched *s, const struct hot *hot)
{
    return hot->length - hot->computed > PREFILL_LONG_STEPS * s->prefill_share;
}

/* What the next `tokens` of a sequence take of the prefill share: later tokens have more to attend to. */
static double share_of(const struct sched *s, const struct hot *hot, double tokens)
{
    uint32_t middle = hot->computed + (uint32_t)tokens / 2;
    double weight = s->config.itl_target_ns ? cost_model_weight(&s->cost, middle) : 1;
    if (s->power_plan.limited) weight = fmax(weight, power_weight(s, middle));
    return tokens * weight;
}

/* The most tokens of a sequence that share_max pays for. */
static uint32_t tokens_for(const struct sched *s, const struct hot *hot, int64_t share_max)
{
    uint32_t left = hot->length - hot->computed;
    if (share_max < 0) share_max = 0;
    double tokens = left < share_max ? left : (double)share_max;
    double share = share_of(s, hot, tokens); /* of that many the mean is a little dearer than of fewer */
    if (share > (double)share_max) tokens *= (double)share_max / share;
    if (tokens < KV_BLOCK_TOKENS && s->share_left == s->prefill_share) tokens = KV_BLOCK_TOKENS;
    return tokens < s->tokens_left ? (uint32_t)tokens : s->tokens_left;
}

void plan_chunk(struct sched *s, struct hot *hot, int64_t share_max)
{
    const struct seq *seq = &s->seqs[hot->slot];
    if (is_at_limit(hot)) return; /* a preempted one that is back: its last position would give an id */
    uint32_t tokens_max = tokens_for(s, hot, share_max);
    uint32_t left = hot->length - hot->computed, rows_max = s->rows_left < UINT16_MAX ? s->rows_left : UINT16_MAX;
    uint32_t end = hot->computed + (tokens_max < left ? tokens_max : left);
    uint32_t aligned = (end + KV_BLOCK_TOKENS / 2) / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS; /* the nearest border */
    if (aligned > hot->computed + s->tokens_left) aligned -= KV_BLOCK_TOKENS;
    if (end < hot->length && aligned > hot->computed)
        end = aligned < hot->length ? aligned : hot->length;
    else if (end < hot->length)
        return;
    while (end > hot->computed && rows_for(seq, hot, hot->computed, end) > rows_max) {
        /* Fewer rows than wanted: as many scored positions as there are rows, on a block's border if that leaves any.
         */
        uint32_t over = rows_for(seq, hot, hot->computed, end) - rows_max;
        end -= over < end - hot->computed ? over : end - hot->computed;
        aligned = end / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS;
        if (aligned > hot->computed)
            end = aligned;
        else if (!is_leader_scoring(hot))
            return;
    }
    hot->planned = end - hot->computed;
    hot->rows = (uint16_t)rows_for(seq, hot, hot->computed, end);
    int64_t share = (int64_t)share_of(s, hot, hot->planned);
    s->tokens_left -= hot->planned;
    s->share_left -= share;
    if (share && is_long(s, hot)) s->long_left = 0;
    s->rows_left -= hot->rows;
}

/* With the decode rows planned: the tokens that fit the step, and the share of it that the gap target leaves. */
static void set_prefill_budget(struct sched *s)
{
    const struct sched_config *c = &s->config;
    struct cost_step step = {.bytes = c->weights_bytes, .tokens = s->decodes_planned, .rows = s->decodes_planned};
    s->prefilling = 0;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        const struct hot *hot = &s->hot[i];
        if (hot->slot == SLOT_NONE) continue;
        s->prefilling += is_prefilling(hot);
        step.bytes += hot->blocks * c->kv_block_bytes;
        step.pairs += hot->planned ? hot->computed : 0;
    }
    s->touched += s->hot_count;
    s->rows_left = c->rows_max - s->decodes_planned;
    s->tokens_left = c->step_tokens_max - s->decodes_planned;
    s->prefill_share = s->tokens_left;
    if (c->itl_target_ns) {
        int64_t room = cost_model_room(&s->cost, &step, c->itl_target_ns);
        if (room < PREFILL_SHARE_MIN) room = PREFILL_SHARE_MIN;
        if (room < s->prefill_share) s->prefill_share = room;
    }
    if (s->power_plan.limited) {
        int64_t room = power_prefill_room(s, &step, s->tokens_left);
        if (room < PREFILL_SHARE_MIN) room = PREFILL_SHARE_MIN;
        if (room < s->prefill_share) s->prefill_share = room;
    }
    s->share_left = s->prefill_share;
    s->long_left = s->prefill_share / 2;
}

int64_t chunk_max(const struct sched *s, const struct hot *hot)
{
    bool halved = is_long(s, hot) && (s->prefilling > 1 || s->fair.waiting_count);
    return halved && s->long_left < s->share_left ? s->long_left : s->share_left;
}

/* What nobody has used goes to prompts that got nothing (long ones), then to those that got something. */
static void plan_leftovers(struct sched *s, bool again, uint64_t now_ns)
{
    if (!prefill_left(s) || !s->prefilling) return;
    for (uint32_t i = 0; i < s->hot_count && prefill_left(s); i++) {
        struct hot *hot = &s->hot[i];
        if (hot->slot == SLOT_NONE || !is_prefilling(hot) || hot->computed + hot->planned == hot->length) continue;
        if ((hot->planned && !again) || !power_admits(s, hot, now_ns)) continue;
        s->tokens_left += hot->planned;
        s->share_left += (int64_t)share_of(s, hot, hot->planned);
        s->rows_left += hot->rows;
        hot->planned = hot->rows = 0;
        plan_chunk(s, hot, s->share_left);
    }
    s->touched += s->hot_count;
}

static void plan_prompts(struct sched *s, uint64_t now_ns)
{
    if (s->prefilling) {
        for (uint32_t i = 0; i < s->hot_count && prefill_left(s); i++) {
            struct hot *hot = &s->hot[i];
            if (hot->slot == SLOT_NONE || !is_prefilling(hot) || !power_admits(s, hot, now_ns)) continue;
            plan_chunk(s, hot, chunk_max(s, hot));
        }
        s->touched += s->hot_count;
    }
    if (!s->preempted || PLANTED(ADMIT_PREEMPTED)) admit_waiting(s, now_ns); /* R8 */
    plan_leftovers(s, false, now_ns);
    plan_leftovers(s, true, now_ns);
}

static void plan_prefills(struct sched *s, uint64_t now_ns)
{
    set_prefill_budget(s);
    plan_prompts(s, now_ns);
    while (s->power_plan.limited && power_turn_next(s)) plan_prompts(s, now_ns);
}

/* ---- the batch ---- */

/* Where the next token, sequence and row go: kept out of the batch while it is written, in registers. */
struct batch_end {
    uint32_t token, seq, row;
};

static inline void write_row(const struct batch *batch, uint32_t row, const struct seq *seq, const struct hot *hot,
                             uint32_t token, uint32_t position, bool score)
{
    bool banned = !score && seq->output_count + hot->pending < seq->min_tokens;
    batch->rows[row] = (struct batch_row){.token = token,
                                          .params = seq->params,
                                          .seed = seq->seed,
                                          .position = position + 1,
                                          .seen = hot->tokens,
                                          .seen_prompt = seq->prompt_count,
                                          .seen_count = hot->length - hot->pending,
                                          .banned = banned ? seq->banned : NULL,
                                          .banned_count = banned ? seq->banned_count : 0,
                                          .pending = hot->pending,
                                          .score_only = score,
                                          .target = score ? hot->tokens[position + 1] : 0};
}

/* The positions that [hot->computed, end) adds to a scored prompt. Returns the row after them. */
static uint32_t write_scores(const struct batch *batch, struct batch_end at, const struct seq *seq,
                             const struct hot *hot, uint32_t end)
{
    uint32_t begin = hot->computed, first = begin > seq->scored ? begin : seq->scored;
    for (uint32_t p = first; p < end && p + 1 < seq->prompt_count; p++)
        write_row(batch, at.row++, seq, hot, at.token + p - begin, p, true);
    return at.row;
}

static inline void write_token(const struct batch *batch, struct batch_end at, uint32_t token, uint32_t position)
{
    batch->tokens[at.token] = token;
    batch->positions[at.token] = position;
    batch->seq_of_token[at.token] = at.seq;
}

static inline void write_tokens(const struct batch *batch, struct batch_end at, const struct hot *hot, uint32_t end)
{
    if (hot->pending) {
        DCHECK(hot->pending == 1 && hot->planned == 1 && end == hot->length);
        uint32_t row = PLANTED(ROW_OF_NEXT) ? at.row : hot->row; /* R24 */
        write_token(batch, at, TOKEN_OF_ROW | row, hot->computed);
        return;
    }
    for (uint32_t p = hot->computed; p < end; p++, at.token++) write_token(batch, at, hot->tokens[p], p);
}

/* From here on its tokens count as computed and its next id as there, though pending. */
static inline struct batch_end write_sequence(struct sched *s, const struct planned_step *step, struct batch_end at,
                                              uint32_t hot_idx)
{
    const struct batch *batch = step->batch;
    struct hot *hot = &s->hot[hot_idx];
    const struct seq *seq = &s->seqs[hot->slot];
    uint32_t end = hot->computed + hot->planned, token_end = at.token + hot->planned, row_end = at.row;
    write_tokens(batch, at, hot, end);
    batch->q_start[at.seq + 1] = token_end;
    batch->kv_len[at.seq] = end;
    batch->block_table[at.seq] = table_of(s, hot->slot);
    step->parts[at.seq] = (struct step_part){.slot = hot->slot, .hot = hot_idx, .row = at.row, .rows = hot->rows};
    if (is_leader_scoring(hot)) row_end = write_scores(batch, at, seq, hot, end);
    hot->computed = end;
    hot->under_way++;
    if (end == hot->length && seq->max_tokens) {
        write_row(batch, row_end, seq, hot, token_end - 1, end - 1, false);
        hot->row = row_end++;
        hot->length++;
        hot->pending++;
    }
    DCHECK(row_end - at.row == hot->rows);
    return (struct batch_end){token_end, at.seq + 1, row_end};
}

/* What a planned sequence does in the step, for its bill of joules. */
static void write_share(const struct sched *s, const struct hot *hot, uint64_t seen, struct energy_share *share)
{
    const struct seq *seq = &s->seqs[hot->slot];
    bool decode = hot->flags & HOT_DECODE;
    *share = (struct energy_share){.request_id = seq->request_id,
                                   .prefill_tokens = decode ? 0 : hot->planned,
                                   .prefill_pairs = decode ? 0 : (double)seen,
                                   .decode_rows = decode,
                                   .decode_context = decode ? (double)seen : 0,
                                   .sequences = 1,
                                   .group = seq->service_class};
}

static void write_batch(struct sched *s, struct planned_step *step)
{
    struct batch *batch = step->batch;
    struct batch_end at = {0, 0, 0};
    uint64_t kv_blocks = 0, pairs = 0, context = 0;
    uint32_t decodes = 0;
    batch->q_start[0] = 0;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        const struct hot *hot = &s->hot[i];
        if (i + 8 < s->hot_count) { /* as in sched_commit */
            __builtin_prefetch(&s->seqs[hot[8].slot]);
            __builtin_prefetch((const char *)&s->seqs[hot[8].slot] + 64);
            __builtin_prefetch(hot[8].tokens + hot[8].computed);
        }
        if (!hot->planned) continue;
        kv_blocks += hot->blocks;
        uint64_t seen = (uint64_t)hot->planned * (hot->computed + hot->planned / 2);
        pairs += seen;
        if (hot->flags & HOT_DECODE) {
            decodes++;
            context += seen;
        }
        if (step->shares) write_share(s, hot, seen, &step->shares[at.seq]);
        at = write_sequence(s, step, at, i);
    }
    s->touched += s->hot_count;
    batch->tokens_count = at.token;
    batch->seqs_count = at.seq;
    batch->rows_count = at.row;
    CHECK(at.token <= s->config.step_tokens_max && at.row <= s->config.rows_max); /* R4 */
    step->cost = (struct cost_step){.bytes = s->config.weights_bytes + kv_blocks * s->config.kv_block_bytes,
                                    .tokens = at.token,
                                    .rows = at.row,
                                    .pairs = pairs};
    step->work = (struct energy_work){.steps = 1,
                                      .prefill_tokens = at.token - decodes,
                                      .prefill_pairs = (double)(pairs - context),
                                      .decode_rows = decodes,
                                      .decode_context = (double)context};
}

const struct batch *sched_plan(struct sched *s, uint64_t now_ns)
{
    CHECK(s->steps_open < SCHED_STEPS_MAX);
    struct planned_step *step = &s->steps[(s->step_oldest + s->steps_open) % SCHED_STEPS_MAX];
    struct batch *batch = step->batch;
    batch->tokens_count = batch->seqs_count = batch->rows_count = 0;
    s->preempted = s->must_wait = false;
    s->decodes_planned = 0;
    take_cancels(s, now_ns);
    take_deadlines(s, now_ns);
    take_ageing(s, now_ns);
    fair_settle(&s->fair);
    hot_sweep(s);
    bool may_plan = power_begin(s);
    if (may_plan) plan_decodes(s, now_ns);
    if (may_plan && !s->must_wait) {
        plan_prefills(s, now_ns);
        hot_sweep(s); /* the preempted; after this no record is empty until results come */
        write_batch(s, step);
    }
    s->stats.step_tokens = batch->tokens_count;
    s->stats.step_rows = batch->rows_count;
    s->steps_open += batch->tokens_count > 0;
    return batch;
}
