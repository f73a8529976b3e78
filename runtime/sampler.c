/* Sampling of one row; see sampler.h for the order of things and S1-S4. */
#include "runtime/sampler.h"

#include "runtime/base/random.h"

#include <float.h>
#include <math.h>
#include <string.h>

static size_t aligned(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

size_t sampler_bytes(uint32_t V)
{
    return 3 * aligned((size_t)V * 4) + 3 * aligned((size_t)V * 8) + 2 * aligned(sample_units(V) * sizeof(float));
}

void sampler_init(struct sampler *sampler, enum cpu_path path, uint32_t V, void *memory)
{
    uint8_t *at = memory;
    *sampler = (struct sampler){.path = path, .V = V, .masked.V = V};
#define TAKE(pointer, bytes) ((pointer) = (void *)at, at += aligned(bytes))
    TAKE(sampler->masked.logits, (size_t)V * 4);
    TAKE(sampler->masked.highest, sample_units(V) * sizeof(float));
    TAKE(sampler->highest, sample_units(V) * sizeof(float));
    TAKE(sampler->changes, (size_t)V * sizeof *sampler->changes);
    TAKE(sampler->weights, (size_t)V * 4);
    TAKE(sampler->marks, (size_t)V * 4);
    TAKE(sampler->keys, (size_t)V * 8);
    TAKE(sampler->spare, (size_t)V * 8);
#undef TAKE
}

#define MARK_CHANGED 0x80000000u

/* Candidates in order, band by band (S1). */
struct walk {
    struct sampler *sampler;
    const struct logit_row *logits;
    struct logit_weights weights;
    float width;    /* of the next band, from the peak */
    float reached;  /* all logits from here on are in keys */
    uint32_t bands; /* taken so far */
    uint32_t count; /* keys and weights so far */
    bool done;      /* nothing is left below */
};

static struct walk walk_start(struct sampler *sampler, const struct logit_row *logits, float peak, float temperature,
                              float lowest)
{
    struct walk walk = {.sampler = sampler, .logits = logits, .reached = INFINITY};
    walk.weights = (struct logit_weights){peak, temperature, lowest};
    walk.width = 3 * (temperature > 0.01f ? temperature : 0.01f);
    return walk;
}

/* Takes in the next band; a band twice as wide follows. After eight of them comes all the rest. */
static void walk_more(struct walk *walk)
{
    struct sampler *s = walk->sampler;
    float low = walk->weights.peak - walk->width;
    bool rest = walk->bands++ == 8 || !(low > -FLT_MAX);
    if (rest) low = -FLT_MAX; /* -infinity means masked, and is never a candidate */
    uint32_t found = sample_gather(s->path, walk->logits, low, walk->reached, s->keys + walk->count);
    sample_sort(s->keys + walk->count, s->spare, found);
    sample_weigh(s->path, s->keys + walk->count, found, &walk->weights, s->weights + walk->count);
    walk->count += found;
    walk->reached = low;
    walk->width *= 2;
    walk->done = rest;
}

/* Whether there is a candidate i; its weight is sampler->weights[i]. */
static bool walk_has(struct walk *walk, uint32_t i)
{
    while (i >= walk->count && !walk->done) walk_more(walk);
    return i < walk->count;
}

static bool below_min_p(const struct walk *walk, uint32_t i)
{
    float z = (sample_key_logit(walk->sampler->keys[i]) - walk->weights.peak) / walk->weights.temperature;
    return z < walk->weights.lowest;
}

/* How many candidates are left after min_p and top_k (UINT32_MAX: not limited by top_k), and the sum of their weights.
 */
static uint32_t limit_k(struct walk *walk, uint32_t top_k, double *sum)
{
    struct sampler *s = walk->sampler;
    if (top_k == 0 || top_k >= s->V) {
        *sum = sample_weight_sum(s->path, walk->logits, &walk->weights);
        return UINT32_MAX;
    }
    uint32_t n = 0;
    *sum = 0;
    while (n < top_k && walk_has(walk, n) && !below_min_p(walk, n)) *sum += (double)s->weights[n++];
    return n;
}

/* The shortest run of at most n candidates that holds `share` of sum; its own sum replaces sum. */
static uint32_t limit_p(struct walk *walk, uint32_t n, float share, double *sum)
{
    double goal = (double)share * *sum, running = 0;
    uint32_t i = 0;
    while (i < n && walk_has(walk, i) && !below_min_p(walk, i)) {
        running += (double)walk->sampler->weights[i++];
        if (running >= goal) break;
    }
    *sum = running;
    return i;
}

static uint32_t draw(struct sampler *s, const struct logit_row *logits, float peak, const struct batch_row *row)
{
    const struct sampling_params *params = row->params;
    float lowest = params->min_p > 0 ? (float)log((double)params->min_p) : -INFINITY;
    struct walk walk = walk_start(s, logits, peak, params->temperature, lowest);
    double sum, running = 0;
    uint32_t n = limit_k(&walk, params->top_k, &sum), last = 0;
    if (params->top_p < 1) n = limit_p(&walk, n, params->top_p, &sum);
    double goal = random_uniform(row->seed, row->position) * sum;
    for (uint32_t i = 0; i < n && walk_has(&walk, i) && !below_min_p(&walk, i); i++) {
        running += (double)s->weights[i];
        if (s->weights[i] > 0) last = i;
        if (running > goal) return sample_key_id(s->keys[i]);
    }
    return sample_key_id(s->keys[last]); /* rounding left the goal beyond the last sum */
}

static bool changes_logits(const struct batch_row *row)
{
    const struct sampling_params *p = row->params;
    return p->allowed || row->banned_count || p->bias_count || p->repetition_penalty != 1 ||
           p->frequency_penalty != 0 || p->presence_penalty != 0;
}

/* Changes a logit for this row; the first time, notes what it was. */
static void change(struct sampler *s, const struct logit_row *logits, uint32_t id, float value)
{
    if (!(s->marks[id] & MARK_CHANGED)) {
        s->marks[id] |= MARK_CHANGED;
        s->changes[s->changes_count++] = (struct logit_change){id, logits->logits[id]};
    }
    sample_set(s->path, logits, id, value);
}

static void apply_penalties(struct sampler *s, const struct logit_row *logits, const struct batch_row *row)
{
    const struct sampling_params *p = row->params;
    bool repetition = p->repetition_penalty != 1;
    if (!repetition && p->frequency_penalty == 0 && p->presence_penalty == 0) return;
    for (uint32_t i = repetition ? 0 : row->seen_prompt; i < row->seen_count; i++) {
        if (row->seen[i] < s->V) s->marks[row->seen[i]] += i < row->seen_prompt ? 0 : 2;
        if (row->seen[i] < s->V) s->marks[row->seen[i]] |= 1;
    }
    for (uint32_t i = repetition ? 0 : row->seen_prompt; i < row->seen_count; i++) {
        uint32_t id = row->seen[i];
        if (id >= s->V || !(s->marks[id] & ~MARK_CHANGED)) continue; /* done already */
        float l = logits->logits[id], times = (float)((s->marks[id] & ~MARK_CHANGED) / 2);
        l = l > 0 ? l / p->repetition_penalty : l * p->repetition_penalty;
        if (times > 0) l = l - times * p->frequency_penalty - p->presence_penalty;
        s->marks[id] &= MARK_CHANGED;
        change(s, logits, id, l);
    }
}

static const struct logit_row *masked_row(struct sampler *s)
{
    if (!s->masked_ready) {
        for (uint32_t id = 0; id < s->V; id++) s->masked.logits[id] = -INFINITY;
        for (uint32_t unit = 0; unit < sample_units(s->V); unit++) s->masked.highest[unit] = -INFINITY;
        s->masked_ready = true;
    }
    return &s->masked;
}

/* The row as this request wants it, until restore. */
static const struct logit_row *changed_logits(struct sampler *s, const struct logit_row *raw,
                                              const struct batch_row *row)
{
    const struct sampling_params *p = row->params;
    const struct logit_row *logits = p->allowed ? masked_row(s) : raw;
    memcpy(s->highest, logits->highest, sample_units(s->V) * sizeof *s->highest);
    for (uint32_t i = 0; p->allowed && i < p->allowed_count; i++) {
        if (p->allowed[i] < s->V) change(s, logits, p->allowed[i], raw->logits[p->allowed[i]]);
    }
    for (uint32_t i = 0; i < row->banned_count; i++) {
        if (row->banned[i] < s->V) change(s, logits, row->banned[i], -INFINITY);
    }
    for (uint32_t i = 0; i < p->bias_count; i++) {
        uint32_t id = p->bias[i].id;
        if (id < s->V) change(s, logits, id, logits->logits[id] + p->bias[i].bias);
    }
    apply_penalties(s, logits, row);
    return logits;
}

static void restore(struct sampler *s, const struct logit_row *logits)
{
    for (; s->changes_count > 0; s->changes_count--) {
        const struct logit_change *last = &s->changes[s->changes_count - 1];
        logits->logits[last->id] = last->before;
        s->marks[last->id] = 0; /* S4 */
    }
    memcpy(logits->highest, s->highest, sample_units(s->V) * sizeof *s->highest);
}

/* Log-probabilities and rank from the raw logits. */
static void score(struct sampler *s, const struct logit_row *logits, float peak, int32_t wanted,
                  struct row_result *result)
{
    struct walk walk = walk_start(s, logits, peak, 1, -INFINITY);
    double log_sum = log(sample_weight_sum(s->path, logits, &walk.weights));
    double base = (double)peak + log_sum;
    float logit = logits->logits[result->id];
    result->logprob = (float)((double)logit - base);
    result->rank = 1 + sample_count_before(s->path, logits, logit, result->id);
    uint32_t top = wanted < LOGPROBS_MAX ? (uint32_t)wanted : LOGPROBS_MAX;
    while (result->top_count < top && walk_has(&walk, result->top_count)) {
        uint64_t key = s->keys[result->top_count];
        result->top_ids[result->top_count] = sample_key_id(key);
        result->top_logprobs[result->top_count++] = (float)((double)sample_key_logit(key) - base);
    }
}

static uint32_t choose(struct sampler *s, const struct logit_row *logits, const struct batch_row *row,
                       const struct logit_peak *peak, uint32_t *id)
{
    if (!peak->finite) return peak->value > 0 ? ROW_NOT_FINITE : ROW_NO_CHOICE;
    *id = row->params->temperature > 0 ? draw(s, logits, peak->value, row) : peak->id;
    return 0;
}

void sampler_row(struct sampler *sampler, const struct logit_row *logits, const struct batch_row *row,
                 struct row_result *result)
{
    result->id = result->flags = result->rank = result->top_count = 0;
    result->logprob = 0;
    struct logit_peak raw = sample_peak(sampler->path, logits);
    if (!raw.finite) {
        result->flags = ROW_NOT_FINITE;
        return;
    }
    if (row->score_only) {
        result->id = row->target;
    } else if (changes_logits(row)) {
        const struct logit_row *changed = changed_logits(sampler, logits, row);
        struct logit_peak peak = sample_peak(sampler->path, changed);
        result->flags = choose(sampler, changed, row, &peak, &result->id);
        restore(sampler, changed);
    } else {
        result->flags = choose(sampler, logits, row, &raw, &result->id);
    }
    if (result->flags) return;
    if (row->params->logprobs >= 0) score(sampler, logits, raw.value, row->params->logprobs, result);
}
