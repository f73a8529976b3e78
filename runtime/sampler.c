/* Sampling of one row; see sampler.h for the order of things and S1-S4. */
#include "runtime/sampler.h"

#include "kernels/sample.h"
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
    return 3 * aligned((size_t)V * 4) + 2 * aligned((size_t)V * 8);
}

void sampler_init(struct sampler *sampler, enum cpu_path path, uint32_t V, void *memory)
{
    uint8_t *at = memory;
    size_t four = aligned((size_t)V * 4), eight = aligned((size_t)V * 8);
    *sampler = (struct sampler){.path = path, .V = V};
    sampler->work = (void *)at;
    sampler->weights = (void *)(at + four);
    sampler->marks = (void *)(at + 2 * four);
    sampler->keys = (void *)(at + 3 * four);
    sampler->spare = (void *)(at + 3 * four + eight);
}

/* Candidates in order, band by band (S1). */
struct walk {
    struct sampler *sampler;
    const float *logits;
    struct logit_weights weights;
    float width;    /* of the next band, from the peak */
    float reached;  /* all logits from here on are in keys */
    uint32_t bands; /* taken so far */
    uint32_t count; /* keys and weights so far */
    bool done;      /* nothing is left below */
};

static struct walk walk_start(struct sampler *sampler, const float *logits, float peak, float temperature, float lowest)
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
    uint32_t found = sample_gather(s->path, walk->logits, s->V, low, walk->reached, s->keys + walk->count);
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
        *sum = sample_weight_sum(s->path, walk->logits, s->V, &walk->weights);
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

static uint32_t draw(struct sampler *s, const float *logits, float peak, const struct batch_row *row)
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

static void apply_penalties(struct sampler *s, float *work, const struct batch_row *row)
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
        if (id >= s->V || !s->marks[id]) continue; /* done already */
        float l = work[id], times = (float)(s->marks[id] / 2);
        l = l > 0 ? l / p->repetition_penalty : l * p->repetition_penalty;
        if (times > 0) l = l - times * p->frequency_penalty - p->presence_penalty;
        work[id] = l;
        s->marks[id] = 0; /* S4 */
    }
}

static const float *changed_logits(struct sampler *s, const float *logits, const struct batch_row *row)
{
    const struct sampling_params *p = row->params;
    float *work = s->work;
    if (p->allowed) {
        for (uint32_t id = 0; id < s->V; id++) work[id] = -INFINITY;
        for (uint32_t i = 0; i < p->allowed_count; i++) {
            if (p->allowed[i] < s->V) work[p->allowed[i]] = logits[p->allowed[i]];
        }
    } else {
        memcpy(work, logits, s->V * sizeof *work);
    }
    for (uint32_t i = 0; i < row->banned_count; i++) {
        if (row->banned[i] < s->V) work[row->banned[i]] = -INFINITY;
    }
    for (uint32_t i = 0; i < p->bias_count; i++) {
        if (p->bias[i].id < s->V) work[p->bias[i].id] += p->bias[i].bias;
    }
    apply_penalties(s, work, row);
    return work;
}

/* Log-probabilities and rank from the raw logits. */
static void score(struct sampler *s, const float *logits, float peak, int32_t wanted, struct row_result *result)
{
    struct walk walk = walk_start(s, logits, peak, 1, -INFINITY);
    double log_sum = log(sample_weight_sum(s->path, logits, s->V, &walk.weights));
    double base = (double)peak + log_sum;
    float logit = logits[result->id];
    result->logprob = (float)((double)logit - base);
    result->rank = 1 + sample_count_before(s->path, logits, s->V, logit, result->id);
    uint32_t top = wanted < LOGPROBS_MAX ? (uint32_t)wanted : LOGPROBS_MAX;
    while (result->top_count < top && walk_has(&walk, result->top_count)) {
        uint64_t key = s->keys[result->top_count];
        result->top_ids[result->top_count] = sample_key_id(key);
        result->top_logprobs[result->top_count++] = (float)((double)sample_key_logit(key) - base);
    }
}

void sampler_row(struct sampler *sampler, const float *logits, const struct batch_row *row, struct row_result *result)
{
    result->id = result->flags = result->rank = result->top_count = 0;
    result->logprob = 0;
    struct logit_peak raw = sample_peak(sampler->path, logits, sampler->V, false);
    if (!raw.finite) {
        result->flags = ROW_NOT_FINITE;
        return;
    }
    if (row->score_only) {
        result->id = row->target;
    } else {
        struct logit_peak peak = raw;
        const float *changed = logits;
        if (changes_logits(row)) {
            changed = changed_logits(sampler, logits, row);
            peak = sample_peak(sampler->path, changed, sampler->V, true);
            if (!peak.finite) {
                result->flags = peak.value > 0 ? ROW_NOT_FINITE : ROW_NO_CHOICE;
                return;
            }
        }
        result->id = row->params->temperature > 0 ? draw(sampler, changed, peak.value, row) : peak.id;
    }
    if (row->params->logprobs >= 0) score(sampler, logits, raw.value, row->params->logprobs, result);
}
