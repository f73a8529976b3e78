/* See deadline.h.
 *
 * A job waits in the heap of its mode, is in the list of released ones that have not started, or has started. Its work
 * stands in due_all, while it waits also in due_wait, at the slot of its deadline ("bucket"; one that has passed counts
 * as this slot's). Both are rings over absolute slot numbers, longer than what can be ahead. ONLY and FLEX jobs are in
 * neither: the first are never forced, the others go before all. */
#include "scheduler/deadline.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "scheduler/heap.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    RING = 1024,
    ARRIVALS_SLOTS = 96,
    ARRIVALS_KNOWN = 16,
    LEARN_JOBS_MIN = 16,
    SMOOTH_SLOTS = 6,
    KNOWN_WEIGHT = 6,
    SERIAL_BITS = 20
};
_Static_assert(RING > DEADLINE_SLOTS_MAX + 1, "what is ahead fits into the ring");

static const int64_t DEADLINE_MS_MAX = (INT64_C(1) << 43) - 1; /* the year 2248; with the serial it fits the heap */
static const double EPSILON = 1e-9;                            /* of the work compared: sums are kept in doubles */
static const double LEARN_DECAY = 0.995;                       /* of what earlier jobs taught, by each one that ends */
static const double USED_SHARE_MIN = 0.05;

enum state { UNUSED, WAITING, RELEASED, STARTED };

struct item {
    double left, bound;
    int64_t deadline_ms, bucket;
    uint64_t key;            /* EDF, then as they came */
    uint32_t previous, next; /* in the list of RELEASED; next also in that of unused ones */
    uint8_t mode, state, why;
};

struct sum {
    double work;
    uint32_t jobs;
};

struct price {
    double price;
    uint32_t slot;
};

struct deadline {
    struct deadline_config config;
    struct item *items;
    uint32_t serial;
    uint32_t unused;                        /* head of the list */
    uint32_t released_first, released_last; /* not started, in the order of their release */
    struct heap waits[DEADLINE_MODES];
    struct heap ends; /* all held, by deadline */
    struct sum due_all[RING], due_wait[RING];
    int64_t first; /* the slot that is now */
    struct deadline_slot slots[DEADLINE_SLOTS_MAX];
    int64_t slots_first;
    uint32_t slots_count;
    struct price prices[DEADLINE_SLOTS_MAX]; /* of the priced ones, rising */
    uint32_t prices_count;
    double arrived[DEADLINE_SLOTS_MAX + 1];  /* bounds that came in this slot, by slots until they are due */
    double arrivals[DEADLINE_SLOTS_MAX + 1]; /* in a slot, on average */
    uint32_t arrivals_in[2];                 /* the least and the most slots of these */
    int64_t arrivals_slots;                  /* that is learnt from */
    double cheap_total;            /* work of this slot, done or not, while its price is among the cheap ones */
    bool cheap_known, cheap_whole; /* computed; it is all that the rest of the slot can do */
    enum deadline_policy policy;
    bool hold;
    uint32_t waiting, released, started;
    struct sum flex, let_go; /* FLEX jobs; released and started ones of all modes */
    double work_waiting, need, spent;
    double learnt_used, learnt_bound;
    uint32_t learnt_jobs;
};

enum status deadline_create(const struct deadline_config *config, struct deadline **out, struct error *err)
{
    if (!config->jobs_max || config->slot_ms <= 0 || config->margin_slots >= DEADLINE_SLOTS_MAX)
        return error_set(err, ST_INVAL,
                         "a plan needs room for jobs, slots that last, and a margin within what it sees");
    struct deadline *d = mem_alloc(1, sizeof *d);
    if (!d) return error_set(err, ST_NOMEM, "no memory for the plan of deferrable work");
    d->config = *config;
    d->items = mem_alloc(config->jobs_max, sizeof *d->items);
    bool full = d->items != NULL;
    for (int mode = 0; mode < DEADLINE_MODES && full; mode++)
        full = heap_init(&d->waits[mode], config->jobs_max) == ST_OK;
    if (!full || heap_init(&d->ends, config->jobs_max) != ST_OK) {
        deadline_destroy(d);
        return error_set(err, ST_NOMEM, "no memory for %u deferrable jobs", config->jobs_max);
    }
    for (uint32_t i = 0; i < config->jobs_max; i++) d->items[i].next = i + 1 < config->jobs_max ? i + 1 : DEADLINE_NONE;
    d->released_first = d->released_last = DEADLINE_NONE;
    *out = d;
    return ST_OK;
}

void deadline_destroy(struct deadline *d)
{
    if (!d) return;
    for (int mode = 0; mode < DEADLINE_MODES; mode++) heap_free(&d->waits[mode]);
    heap_free(&d->ends);
    mem_free(d->items);
    mem_free(d);
}

/* ---- slots ---- */

static struct deadline_slot slot_at(const struct deadline *d, int64_t slot)
{
    int64_t idx = slot - d->slots_first;
    return idx < 0 || idx >= d->slots_count ? (struct deadline_slot){0} : d->slots[idx];
}

/* Of the slot that is now, what share is still ahead. */
static double rest_share(const struct deadline *d, int64_t now_ms)
{
    double share = (double)((d->first + 1) * d->config.slot_ms - now_ms) / (double)d->config.slot_ms;
    return fmin(fmax(share, 0), 1);
}

static void sum_add(struct sum *sum, double work)
{
    sum->work += work;
    sum->jobs++;
}

static void sum_take(struct sum *sum, double work)
{
    CHECK(sum->jobs > 0);
    sum->work = --sum->jobs ? fmax(sum->work - work, 0) : 0;
}

static struct sum *sum_of(struct sum *ring, int64_t slot)
{
    return &ring[(uint64_t)slot % RING];
}

static double due(const struct sum *ring, int64_t slot)
{
    return ring[(uint64_t)slot % RING].work;
}

/* A slot's arrivals are over, and those of `over` - 1 empty ones. */
static void learn_arrivals(struct deadline *d, int64_t over)
{
    if (!d->first) return;
    d->arrivals_slots = d->arrivals_slots + over < ARRIVALS_SLOTS ? d->arrivals_slots + over : ARRIVALS_SLOTS;
    double keep = fmax(1 - (double)over / (double)d->arrivals_slots, 0);
    d->arrivals_in[0] = d->arrivals_in[1] = 0;
    for (uint32_t in = 0; in <= DEADLINE_SLOTS_MAX; in++) {
        d->arrivals[in] = keep * d->arrivals[in] + d->arrived[in] / (double)d->arrivals_slots;
        d->arrived[in] = 0;
        if (d->arrivals[in] <= 0) continue;
        d->arrivals_in[0] = d->arrivals_in[1] ? d->arrivals_in[0] : in;
        d->arrivals_in[1] = in;
    }
}

/* Time goes on: what was due in slots that are over is due in this one. */
static void slide(struct deadline *d, int64_t now_ms)
{
    int64_t first = now_ms / d->config.slot_ms;
    if (first <= d->first) return; /* the clock was set back: the plan stays where it is */
    learn_arrivals(d, first - d->first);
    d->cheap_known = false;
    struct sum *rings[] = {d->due_all, d->due_wait};
    int64_t until = first - d->first < RING ? first : d->first + RING;
    for (int i = 0; i < 2; i++) {
        struct sum over = {0};
        for (int64_t slot = d->first; slot < until; slot++) {
            over.work += sum_of(rings[i], slot)->work;
            over.jobs += sum_of(rings[i], slot)->jobs;
            *sum_of(rings[i], slot) = (struct sum){0};
        }
        sum_of(rings[i], first)->work += over.work;
        sum_of(rings[i], first)->jobs += over.jobs;
    }
    d->first = first;
    d->spent = 0;
}

static int64_t bucket_of(const struct deadline *d, const struct item *item)
{
    return item->bucket > d->first ? item->bucket : d->first;
}

static int by_price(const void *a, const void *b)
{
    const struct price *x = a, *y = b;
    if (x->price != y->price) return x->price < y->price ? -1 : 1;
    return (x->slot > y->slot) - (x->slot < y->slot);
}

/* What a slot's price is taken for: of forecasts a mean around it, by Epanechnikov's kernel. Alone, the lowest of many
 * would be the one that is most wrong (the optimizer's curse: Smith and Winkler 2006), and work would wait for a price
 * that does not come. A price that is known says more than one that is told ahead: it halves the error of the next
 * hour, on which it hangs whether to run now (0.036 to 0.021 at a mean price of 0.4). */
static double price_thought(const struct deadline *d, uint32_t slot)
{
    if (!d->slots[slot].forecast) return d->slots[slot].price;
    double sum = 0, weights = 0;
    for (uint32_t i = slot > SMOOTH_SLOTS ? slot - SMOOTH_SLOTS : 0; i <= slot + SMOOTH_SLOTS && i < d->slots_count;
         i++) {
        double far = ((double)i - slot) / (SMOOTH_SLOTS + 1), weight = 1 - far * far;
        if (!d->slots[i].priced) continue;
        if (!d->slots[i].forecast) weight *= KNOWN_WEIGHT;
        sum += weight * d->slots[i].price;
        weights += weight;
    }
    return sum / weights;
}

static void rank_prices(struct deadline *d)
{
    d->prices_count = 0;
    for (uint32_t i = 0; i < d->slots_count; i++)
        if (d->slots[i].priced) d->prices[d->prices_count++] = (struct price){price_thought(d, i), i};
    qsort(d->prices, d->prices_count, sizeof *d->prices, by_price);
}

void deadline_profile(struct deadline *d, int64_t now_ms, const struct deadline_slot *slots, uint32_t count,
                      enum deadline_policy policy, bool hold)
{
    CHECK(count > 0 && count <= DEADLINE_SLOTS_MAX);
    slide(d, now_ms);
    memcpy(d->slots, slots, count * sizeof *slots);
    d->slots_count = count;
    d->slots_first = d->first;
    d->policy = policy;
    d->hold = hold;
    rank_prices(d);
    d->cheap_known = false;
}

void deadline_hold(struct deadline *d, bool hold)
{
    d->hold = hold;
}

/* ---- jobs ---- */

static bool is_bound(const struct item *item) /* by D1 and D2 */
{
    return item->mode == DEADLINE_ANY || item->mode == DEADLINE_PREFER;
}

static double used_share(const struct deadline *d)
{
    if (d->learnt_jobs < LEARN_JOBS_MIN || d->learnt_bound <= 0) return 1;
    return fmin(fmax(d->learnt_used / d->learnt_bound, USED_SHARE_MIN), 1);
}

static void list_add(struct deadline *d, uint32_t idx)
{
    struct item *item = &d->items[idx];
    item->previous = d->released_last;
    item->next = DEADLINE_NONE;
    if (d->released_last != DEADLINE_NONE)
        d->items[d->released_last].next = idx;
    else
        d->released_first = idx;
    d->released_last = idx;
}

static void list_remove(struct deadline *d, uint32_t idx)
{
    struct item *item = &d->items[idx];
    if (item->previous != DEADLINE_NONE)
        d->items[item->previous].next = item->next;
    else
        d->released_first = item->next;
    if (item->next != DEADLINE_NONE)
        d->items[item->next].previous = item->previous;
    else
        d->released_last = item->previous;
}

static void enter_state(struct deadline *d, uint32_t idx, enum state state)
{
    struct item *item = &d->items[idx];
    item->state = (uint8_t)state;
    if (state == WAITING) {
        heap_set(&d->waits[item->mode], idx, item->key);
        if (is_bound(item)) sum_add(sum_of(d->due_wait, bucket_of(d, item)), item->left);
        d->work_waiting += item->left;
        d->waiting++;
        return;
    }
    sum_add(&d->let_go, item->left);
    if (state == RELEASED) {
        list_add(d, idx);
        d->released++;
    } else
        d->started++;
}

static void leave_state(struct deadline *d, uint32_t idx)
{
    struct item *item = &d->items[idx];
    CHECK(item->state != UNUSED);
    if (item->state == WAITING) {
        heap_remove(&d->waits[item->mode], idx);
        if (is_bound(item)) sum_take(sum_of(d->due_wait, bucket_of(d, item)), item->left);
        d->work_waiting = --d->waiting ? fmax(d->work_waiting - item->left, 0) : 0;
        return;
    }
    sum_take(&d->let_go, item->left);
    if (item->state == RELEASED) {
        list_remove(d, idx);
        d->released--;
    } else
        d->started--;
}

/* Its left work leaves the sums that do not ask for its state, and comes back into them. */
static void hold_work(struct deadline *d, const struct item *item)
{
    if (is_bound(item)) sum_add(sum_of(d->due_all, bucket_of(d, item)), item->left);
    if (item->mode == DEADLINE_FLEX) sum_add(&d->flex, item->left);
}

static void drop_work(struct deadline *d, const struct item *item)
{
    if (is_bound(item)) sum_take(sum_of(d->due_all, bucket_of(d, item)), item->left);
    if (item->mode == DEADLINE_FLEX) sum_take(&d->flex, item->left);
}

static bool job_can_be(const struct deadline_job *job)
{
    return isfinite(job->work) && job->work > 0 && job->deadline_ms > 0 && job->deadline_ms <= DEADLINE_MS_MAX &&
           job->span_ms >= 0 && job->span_ms <= job->deadline_ms && job->mode < DEADLINE_MODES;
}

static int64_t job_bucket(const struct deadline *d, const struct deadline_job *job)
{
    int64_t bucket = (job->deadline_ms - job->span_ms) / d->config.slot_ms, most = d->first + DEADLINE_SLOTS_MAX;
    return bucket < most ? bucket : most;
}

enum status deadline_enter(struct deadline *d, const struct deadline_job *job, int64_t now_ms, uint32_t *out)
{
    slide(d, now_ms);
    if (!job_can_be(job)) return ST_INVAL;
    if (d->unused == DEADLINE_NONE) return ST_AGAIN;
    uint32_t idx = d->unused;
    struct item *item = &d->items[idx];
    d->unused = item->next;
    *item = (struct item){.left = job->work,
                          .bound = job->work,
                          .deadline_ms = job->deadline_ms,
                          .bucket = job_bucket(d, job),
                          .key = (uint64_t)job->deadline_ms << SERIAL_BITS | (d->serial++ & ((1u << SERIAL_BITS) - 1)),
                          .mode = (uint8_t)job->mode};
    if (is_bound(item)) d->arrived[bucket_of(d, item) - d->first] += item->left;
    d->cheap_known = false;
    hold_work(d, item);
    enter_state(d, idx, WAITING);
    heap_set(&d->ends, idx, item->key);
    *out = idx;
    return ST_OK;
}

void deadline_start(struct deadline *d, uint32_t idx)
{
    CHECK(d->items[idx].state == RELEASED);
    leave_state(d, idx);
    enter_state(d, idx, STARTED);
    if (d->items[idx].mode == DEADLINE_FLEX) heap_remove(&d->ends, idx);
}

void deadline_left(struct deadline *d, uint32_t idx, double left)
{
    struct item *item = &d->items[idx];
    if (!(left < item->left)) return;
    enum state state = item->state;
    double before = item->left;
    leave_state(d, idx);
    drop_work(d, item);
    item->left = fmax(left, 0);
    hold_work(d, item);
    enter_state(d, idx, state);
    d->spent += before - item->left;
}

void deadline_again(struct deadline *d, uint32_t idx, double work)
{
    struct item *item = &d->items[idx];
    leave_state(d, idx);
    drop_work(d, item);
    item->left = item->bound = work;
    hold_work(d, item);
    enter_state(d, idx, WAITING);
    heap_set(&d->ends, idx, item->key);
}

void deadline_remove(struct deadline *d, uint32_t idx, bool ended_well)
{
    struct item *item = &d->items[idx];
    leave_state(d, idx);
    drop_work(d, item);
    heap_remove(&d->ends, idx);
    d->cheap_known = false;
    if (ended_well) {
        d->learnt_used = d->learnt_used * LEARN_DECAY + item->bound - item->left;
        d->learnt_bound = d->learnt_bound * LEARN_DECAY + item->bound;
        d->learnt_jobs += d->learnt_jobs < LEARN_JOBS_MIN;
    }
    *item = (struct item){.next = d->unused};
    d->unused = idx;
}

/* ---- D1 ---- */

/* Walks over the deadlines D, by slots, with the capacity before D - m and the work due by D. */
struct walk {
    int64_t slot, last;
    double capacity, work;
    int64_t counted; /* slots before this one are in the capacity */
};

static struct walk walk_begin(const struct deadline *d)
{
    return (struct walk){.slot = d->first - 1, .last = d->first + DEADLINE_SLOTS_MAX, .counted = d->first};
}

/* first_share: what of this slot counts. */
static bool walk_next(const struct deadline *d, struct walk *walk, const struct sum *ring, double first_share)
{
    if (++walk->slot > walk->last) return false;
    walk->work += due(ring, walk->slot);
    for (; walk->counted < walk->slot - d->config.margin_slots; walk->counted++)
        walk->capacity += slot_at(d, walk->counted).capacity * (walk->counted == d->first ? first_share : 1);
    return true;
}

static bool fits(double work, double capacity)
{
    return work <= capacity + EPSILON * fmax(work, capacity);
}

/* Flex goes before all: what is due later must still fit, and it must itself fit into a slot's length from now. What is
 * due within the margin runs already, so this slot's rest counts for it. */
static bool flex_fits(const struct deadline *d, double work, int64_t now_ms)
{
    double share = rest_share(d, now_ms), here = slot_at(d, d->first).capacity * share;
    double more = d->flex.work + work;
    if (!fits(more, here + slot_at(d, d->first + 1).capacity * (1 - share))) return false;
    for (struct walk walk = walk_begin(d); walk_next(d, &walk, d->due_all, share);)
        if (due(d->due_all, walk.slot) > 0 && !fits(walk.work + more, fmax(walk.capacity, here))) return false;
    return true;
}

/* The first slot with a deadline that D1 would accept; past the last: there is none. */
static int64_t first_feasible(const struct deadline *d, double work, int64_t now_ms)
{
    int64_t feasible = d->first + DEADLINE_SLOTS_MAX + 1;
    double share = rest_share(d, now_ms);
    bool fit = false; /* at all slots since `feasible` */
    for (struct walk walk = walk_begin(d); walk_next(d, &walk, d->due_all, share);) {
        bool fits_here = fits(walk.work + d->flex.work + work, walk.capacity);
        if (fits_here && !fit) feasible = walk.slot;
        fit = fits_here;
    }
    return fit ? feasible : d->first + DEADLINE_SLOTS_MAX + 1;
}

enum status deadline_admit(struct deadline *d, const struct deadline_job *job, int64_t now_ms, uint32_t *idx,
                           int64_t *earliest_ms)
{
    *earliest_ms = 0;
    if (!job_can_be(job) || job->deadline_ms <= now_ms) return ST_INVAL;
    slide(d, now_ms);
    if (job->mode == DEADLINE_FLEX) {
        if (d->hold || !flex_fits(d, job->work, now_ms)) {
            *earliest_ms = (d->first + 1) * d->config.slot_ms;
            return ST_LIMIT;
        }
    } else if (job->mode != DEADLINE_ONLY) {
        int64_t feasible = first_feasible(d, job->work, now_ms);
        if (job_bucket(d, job) < feasible) {
            if (feasible <= d->first + DEADLINE_SLOTS_MAX) *earliest_ms = feasible * d->config.slot_ms + job->span_ms;
            return ST_LIMIT;
        }
    }
    return deadline_enter(d, job, now_ms, idx);
}

double deadline_shortfall(const struct deadline *d, int64_t now_ms)
{
    double worst = 0, share = rest_share(d, now_ms);
    for (struct walk walk = walk_begin(d); walk_next(d, &walk, d->due_all, share);)
        if (!fits(walk.work, walk.capacity)) worst = fmax(worst, walk.work - walk.capacity);
    return worst;
}

/* ---- D2 ---- */

static double need_of(const struct deadline *d, int64_t now_ms)
{
    double need = 0;
    double over = fmax(d->let_go.work - slot_at(d, d->first).capacity * rest_share(d, now_ms), 0);
    for (struct walk walk = walk_begin(d); walk_next(d, &walk, d->due_wait, 0);) {
        if (walk.work <= 0 || fits(walk.work + over, walk.capacity)) continue;
        need = fmax(need, fmin(walk.work, walk.work + over - walk.capacity));
    }
    return need;
}

/* ---- D3: the cheapest slots ---- */

/* Work held that the cheapest slots take, each as far as the work reaches that may still run in it.
 * chosen: [DEADLINE_SLOTS_MAX]. */
static void choose_cheapest(const struct deadline *d, int64_t now_ms, double *chosen)
{
    double usable[DEADLINE_SLOTS_MAX] = {0}; /* what may still run in the slot or later */
    double later = 0;
    for (int64_t due_in = DEADLINE_SLOTS_MAX; due_in >= 0; due_in--) {
        int64_t last = due_in - d->config.margin_slots - 1; /* the last slot before D - m */
        later += due(d->due_all, d->first + due_in);
        if (last >= 0) usable[last] = later;
    }
    usable[0] = later; /* what is late may run now */
    memset(chosen, 0, DEADLINE_SLOTS_MAX * sizeof *chosen);
    for (uint32_t i = 0; i < d->prices_count; i++) {
        int64_t slot = d->slots_first + d->prices[i].slot - d->first;
        if (slot < 0) continue; /* it is over */
        double most = slot_at(d, d->first + slot).likely * (slot ? 1 : rest_share(d, now_ms));
        for (int64_t k = 0; k <= slot; k++) most = usable[k] < most ? usable[k] : most;
        for (int64_t k = 0; k <= slot; k++) usable[k] -= most;
        chosen[slot] = most;
    }
}

/* How much work EDF gets done in the slots that are cheaper than this one, and in `here` of this one. What will arrive
 * is thought to be as what came lately: without it, work would wait for cheap slots that later work fills. */
static double rank_of(const struct deadline *d, double share, double price, double here)
{
    const int64_t margin = d->config.margin_slots + 1, past = d->first - d->slots_first;
    double left[RING] = {0}, room[DEADLINE_SLOTS_MAX] = {0}, done = 0; /* left: by the last slot that it may run in */
    int64_t low = 0, count = 0; /* of slots up to the last one with a price: what may wait beyond them is left out */
    for (int64_t in = 0; in <= DEADLINE_SLOTS_MAX; in++)
        left[in > margin ? in - margin : 0] += share * due(d->due_all, d->first + in);
    for (uint32_t i = 0; i < d->prices_count; i++) {
        int64_t k = d->prices[i].slot - past;
        if (k >= count) count = k + 1;
        if (k > 0 && d->prices[i].price < price) room[k] = d->slots[d->prices[i].slot].likely;
    }
    room[0] = here;
    for (int64_t k = 0; k < count; k++) {
        bool come = k && d->arrivals_slots >= ARRIVALS_KNOWN;
        for (int64_t in = d->arrivals_in[0]; come && in <= d->arrivals_in[1] && in + k <= count; in++) {
            if (in < margin) continue;
            left[k + in - margin] += share * d->arrivals[in];
            if (d->arrivals[in] > 0 && k + in - margin < low) low = k + in - margin;
        }
        if (low < k) low = k;
        while (room[k] > 0 && low < RING) {
            double part = left[low] < room[k] ? left[low] : room[k];
            left[low] -= part;
            room[k] -= part;
            done += part;
            if (left[low] <= 0) low++;
        }
    }
    return done;
}

/* What of the rest of this slot belongs to the cheapest slots: what the rank grows by it. */
static double cheap_part(const struct deadline *d, double share, double here)
{
    for (uint32_t i = 0; i < d->prices_count; i++) {
        double price = d->prices[i].price;
        if (d->prices[i].slot != d->first - d->slots_first) continue;
        double without = rank_of(d, share, price, 0), part = rank_of(d, share, price, here) - without;
        return part > EPSILON * without ? part : 0; /* sums round: a job would start for it */
    }
    return 0;
}

static double cheap_here(struct deadline *d, int64_t now_ms, double share)
{
    if (!d->cheap_known) {
        double here = slot_at(d, d->first).likely * rest_share(d, now_ms), part = cheap_part(d, share, here);
        d->cheap_total = d->spent + part;
        d->cheap_whole = fits(here, part);
        d->cheap_known = true;
    }
    return d->cheap_total - d->spent;
}

/* ---- the choice ---- */

struct choice {
    struct deadline *d;
    deadline_news_fn tell;
    void *state;
    uint32_t told;
};

static void tell(struct choice *choice, uint32_t idx, bool released)
{
    choice->told++;
    choice->tell(choice->state, &(struct deadline_news){idx, released});
}

static void let_go(struct choice *choice, uint32_t idx, enum deadline_why why)
{
    struct deadline *d = choice->d;
    leave_state(d, idx);
    enter_state(d, idx, RELEASED);
    d->items[idx].why = (uint8_t)why;
    tell(choice, idx, true);
}

static void take_back(struct choice *choice, uint32_t idx)
{
    leave_state(choice->d, idx);
    enter_state(choice->d, idx, WAITING);
    tell(choice, idx, false);
}

/* Of these modes, the waiting job with the earliest deadline. */
static uint32_t earliest(const struct deadline *d, uint32_t modes)
{
    uint32_t best = DEADLINE_NONE;
    for (uint32_t mode = 0; mode < DEADLINE_MODES; mode++) {
        uint32_t top = heap_top(&d->waits[mode]);
        if (!(modes >> mode & 1) || top == HEAP_NONE) continue;
        if (best == DEADLINE_NONE || d->items[top].key < d->items[best].key) best = top;
    }
    return best;
}

enum {
    ANY_MODE = 1 << DEADLINE_ANY,
    BOUND_MODES = ANY_MODE | 1 << DEADLINE_PREFER,
    ALL_MODES = BOUND_MODES | 1 << DEADLINE_ONLY
};

/* Work that may be out with the engines, by what jobs use of their bounds: a slot's worth, so that they are never
 * short of it. */
static double room_ahead(const struct deadline *d)
{
    return slot_at(d, d->first).likely - used_share(d) * d->let_go.work;
}

/* What the green or cheap part of this slot still takes. */
static double room_wanted(struct deadline *d, int64_t now_ms)
{
    double share = used_share(d);
    if (d->policy == DEADLINE_GREEN) return slot_at(d, d->first).green - d->spent - share * d->let_go.work;
    double cheap = cheap_here(d, now_ms, share);
    if (d->cheap_whole) return room_ahead(d); /* all of the slot: engines may not run short at its end */
    return cheap - share * d->let_go.work;
}

static void run_wanted(struct choice *choice, int64_t now_ms)
{
    struct deadline *d = choice->d;
    bool green = d->policy == DEADLINE_GREEN;
    double room = room_wanted(d, now_ms), share = used_share(d);
    for (uint32_t idx = d->released_last; idx != DEADLINE_NONE;) {
        struct item *item = &d->items[idx];
        uint32_t previous = item->previous;
        double work = share * item->left;
        if ((item->why == DEADLINE_BY_GREEN || item->why == DEADLINE_BY_PRICE) && room + work <= 0) {
            room += work;
            take_back(choice, idx);
        }
        idx = previous;
    }
    for (uint32_t modes = BOUND_MODES | (green ? 1 << DEADLINE_ONLY : 0); room > 0 && room_ahead(d) > 0;) {
        uint32_t idx = earliest(d, modes);
        if (idx == DEADLINE_NONE) return;
        if (d->items[idx].mode == DEADLINE_ONLY && d->items[idx].left > room) { /* all of it, or none */
            modes &= ~(1u << DEADLINE_ONLY);
            continue;
        }
        room -= share * d->items[idx].left;
        let_go(choice, idx, green ? DEADLINE_BY_GREEN : DEADLINE_BY_PRICE);
    }
}

static void run_freely(struct choice *choice, uint32_t modes)
{
    struct deadline *d = choice->d;
    for (uint32_t idx; room_ahead(d) > 0 && (idx = earliest(d, modes)) != DEADLINE_NONE;)
        let_go(choice, idx, DEADLINE_BY_CAPACITY);
}

static void stop_for_event(struct choice *choice)
{
    struct deadline *d = choice->d;
    for (uint32_t idx = d->released_first; idx != DEADLINE_NONE;) {
        uint32_t next = d->items[idx].next;
        if (d->items[idx].why != DEADLINE_BY_NEED) take_back(choice, idx);
        idx = next;
    }
}

uint32_t deadline_choose(struct deadline *d, int64_t now_ms, deadline_news_fn news, void *state)
{
    struct choice choice = {d, news, state, 0};
    slide(d, now_ms);
    if (d->hold)
        stop_for_event(&choice);
    else
        for (uint32_t idx; (idx = earliest(d, 1 << DEADLINE_FLEX)) != DEADLINE_NONE;)
            let_go(&choice, idx, DEADLINE_BY_CAPACITY);
    double need = d->need = need_of(d, now_ms); /* D2 */
    for (uint32_t idx; need > 0 && (idx = earliest(d, BOUND_MODES)) != DEADLINE_NONE;) {
        /* Engines that have a slot's work already would take more in their own order, not in that of deadlines. */
        bool now = bucket_of(d, &d->items[idx]) - d->config.margin_slots <= d->first;
        if (!now && d->let_go.work >= slot_at(d, d->first).likely) break;
        need -= d->items[idx].left;
        let_go(&choice, idx, DEADLINE_BY_NEED);
    }
    if (d->hold) return choice.told; /* D4 */
    if (d->policy != DEADLINE_FREE) run_wanted(&choice, now_ms);
    run_freely(&choice, d->policy == DEADLINE_FREE ? ALL_MODES : ANY_MODE);
    return choice.told;
}

/* ---- queries ---- */

uint32_t deadline_expired(const struct deadline *d, int64_t now_ms)
{
    uint32_t idx = heap_top(&d->ends);
    return idx == HEAP_NONE || d->items[idx].deadline_ms > now_ms ? DEADLINE_NONE : idx;
}

bool deadline_is_released(const struct deadline *d, uint32_t idx)
{
    return d->items[idx].state >= RELEASED;
}

bool deadline_is_started(const struct deadline *d, uint32_t idx)
{
    return d->items[idx].state == STARTED;
}

int64_t deadline_end_ms(const struct deadline *d, uint32_t idx)
{
    return d->items[idx].deadline_ms;
}

double deadline_bound(const struct deadline *d, uint32_t idx)
{
    return d->items[idx].bound;
}

double deadline_work(const struct deadline *d, uint32_t idx)
{
    return d->items[idx].left;
}

enum deadline_why deadline_reason(const struct deadline *d, uint32_t idx)
{
    const struct item *item = &d->items[idx];
    if (item->state != WAITING) return item->why;
    if (d->hold) return DEADLINE_WAITS_EVENT;
    if (item->mode == DEADLINE_ONLY && d->policy != DEADLINE_FREE) return DEADLINE_WAITS_GREEN;
    if (item->mode != DEADLINE_PREFER || d->policy == DEADLINE_FREE) return DEADLINE_WAITS_CAPACITY;
    return d->policy == DEADLINE_GREEN ? DEADLINE_WAITS_GREEN : DEADLINE_WAITS_PRICE;
}

/* When D2 would ask for it, if nothing of what is due before it were run until then. */
static int64_t forced_ms(const struct deadline *d, const struct item *item, int64_t now_ms)
{
    int64_t slot = bucket_of(d, item) - d->config.margin_slots;
    double before = 0, capacity = 0;
    for (int64_t k = d->first; k <= bucket_of(d, item); k++) before += due(d->due_wait, k);
    while (slot > d->first && !(before <= capacity)) capacity += slot_at(d, --slot).capacity;
    return slot <= d->first ? now_ms : slot * d->config.slot_ms;
}

/* When so much work has been taken by what the policy takes, slot by slot; 0: never. */
static int64_t wanted_ms(const struct deadline *d, const struct item *item, double before, int64_t now_ms)
{
    double chosen[DEADLINE_SLOTS_MAX], taken = -d->spent;
    bool free = d->policy == DEADLINE_FREE || item->mode == DEADLINE_ANY || item->mode == DEADLINE_FLEX;
    if (!free && d->policy == DEADLINE_PRICE) {
        if (item->mode == DEADLINE_ONLY) return 0;
        choose_cheapest(d, now_ms, chosen);
    }
    if (free) taken = 0;
    for (uint32_t i = 0; i < DEADLINE_SLOTS_MAX; i++) {
        struct deadline_slot slot = slot_at(d, d->first + i);
        double likely = slot.likely * (i ? 1 : rest_share(d, now_ms));
        double more = free ? likely : d->policy == DEADLINE_GREEN ? fmin(slot.green, likely) : chosen[i];
        if (more <= 0) continue;
        taken += more;
        if (taken > before) return i ? (d->first + i) * d->config.slot_ms : now_ms;
    }
    return 0;
}

int64_t deadline_expected_ms(const struct deadline *d, uint32_t idx, int64_t now_ms)
{
    const struct item *item = &d->items[idx];
    double before = d->let_go.work;
    for (int64_t k = d->first; k < bucket_of(d, item); k++) before += due(d->due_wait, k);
    if (item->state != WAITING) return now_ms;
    int64_t forced = is_bound(item) ? forced_ms(d, item, now_ms) : 0;
    if (d->hold && forced) return forced;
    int64_t wanted = wanted_ms(d, item, before * used_share(d), now_ms);
    if (!wanted || !forced) return wanted ? wanted : forced;
    return wanted < forced ? wanted : forced;
}

/* Takes up to `work` off what is due, earliest first. Returns what there was. */
static double consume(double work, double *left, uint32_t count)
{
    double taken = 0;
    for (uint32_t k = 0; k < count && taken < work; k++) {
        double part = fmin(left[k], work - taken);
        left[k] -= part;
        taken += part;
    }
    return taken;
}

/* D2 for a slot ahead, over what would be left then. */
static double need_ahead(const struct deadline *d, uint32_t slot, const double *left)
{
    double capacity = 0, work = 0, need = 0;
    uint32_t counted = slot + 1;
    for (uint32_t k = 0; k <= DEADLINE_SLOTS_MAX; k++) {
        work += left[k];
        for (; counted + d->config.margin_slots < k; counted++) capacity += slot_at(d, d->first + counted).capacity;
        if (work > 0 && !fits(work, capacity)) need = fmax(need, work - capacity);
    }
    return need;
}

void deadline_look_ahead(const struct deadline *d, int64_t now_ms, struct deadline_outlook *slots, uint32_t count)
{
    double left[DEADLINE_SLOTS_MAX + 1], chosen[DEADLINE_SLOTS_MAX] = {0};
    for (uint32_t k = 0; k <= DEADLINE_SLOTS_MAX; k++) left[k] = due(d->due_all, d->first + k);
    if (d->policy == DEADLINE_PRICE) choose_cheapest(d, now_ms, chosen);
    for (uint32_t i = 0; i < count; i++) {
        struct deadline_slot slot = slot_at(d, d->first + i);
        struct deadline_outlook *out = &slots[i];
        double room = slot.likely * (i ? 1 : rest_share(d, now_ms));
        *out = (struct deadline_outlook){.t0_ms = (d->first + i) * d->config.slot_ms};
        out->need = consume(need_ahead(d, i, left), left, DEADLINE_SLOTS_MAX + 1);
        room = fmax(room - out->need, 0);
        if (d->hold && i == 0) continue; /* how long an event lasts is its own matter: slots tell their shed level */
        if (d->policy == DEADLINE_FREE) out->free = consume(room, left, DEADLINE_SLOTS_MAX + 1);
        if (d->policy == DEADLINE_GREEN) {
            double green = slot.green - (i ? 0 : d->spent) - out->need;
            out->green = consume(fmin(room, fmax(green, 0)), left, DEADLINE_SLOTS_MAX + 1);
        }
        if (d->policy == DEADLINE_PRICE)
            out->cheap = consume(fmin(room, fmax(chosen[i] - out->need, 0)), left, DEADLINE_SLOTS_MAX + 1);
    }
}

void deadline_read_sums(const struct deadline *d, struct deadline_sums *sums)
{
    *sums = (struct deadline_sums){.waiting = d->waiting,
                                   .released = d->released + d->started,
                                   .started = d->started,
                                   .work_waiting = d->work_waiting,
                                   .work_released = d->let_go.work,
                                   .need = d->need,
                                   .spent = d->spent,
                                   .used_share = used_share(d)};
}
