/* See budgets.h. Keys that have a question wait in a queue; keys that are idle are found by a walk over the table. */
#include "server/billing/budgets.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/mem.h"

#include <string.h>

enum { BUCKETS = 1024, QUEUE_LOOKS = 64, RESERVE_PART = 64 };

struct budget {
    struct budget *next, *queue_next;
    uint64_t key;
    struct key_budget terms;
    bool known;          /* the ledger has answered for `number` */
    bool dry;            /* its last answer gave less than was wanted */
    bool asked_for_once; /* asked_for holds */
    bool queued;
    uint64_t number, asked_for; /* the ledger's period; the one of our clock at the last question */
    uint64_t taken, used, held;
    uint64_t demand; /* of those who wait */
    uint64_t used_ns, answered_ns, answered_ticket;
};

struct budgets {
    struct budgets_config config;
    struct budget *buckets[BUCKETS];
    struct budget *first, *last;
    uint32_t queue_length, cursor; /* cursor: of the walk; BUCKETS: it rests */
    uint64_t walk_ns, asks, ask_after_ns;
    bool lost, ending; /* lost: the last question had no answer */
    /* the question under way */
    struct budget *asking;
    struct budget_ask ask;
    uint64_t asked_demand;
};

static uint64_t less(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

enum status budgets_create(const struct budgets_config *config, struct budgets **budgets)
{
    struct budgets *made = mem_alloc(1, sizeof *made);
    if (!made) return ST_NOMEM;
    made->config = *config;
    made->cursor = BUCKETS;
    *budgets = made;
    return ST_OK;
}

void budgets_destroy(struct budgets *budgets)
{
    if (!budgets) return;
    for (uint32_t i = 0; i < BUCKETS; i++)
        for (struct budget *at = budgets->buckets[i], *next; at; at = next) {
            next = at->next;
            mem_free(at);
        }
    mem_free(budgets);
}

static struct budget **bucket_of(struct budgets *budgets, uint64_t key)
{
    return &budgets->buckets[hash_bytes(&key, sizeof key, 0) % BUCKETS];
}

static struct budget *find(struct budgets *budgets, uint64_t key)
{
    struct budget *at = *bucket_of(budgets, key);
    while (at && at->key != key) at = at->next;
    return at;
}

/* With the terms of now: another kind of period begins anew, as it does in the ledger. */
static struct budget *find_or_make(struct budgets *budgets, uint64_t key, const struct key_budget *terms)
{
    struct budget *at = find(budgets, key);
    if (!at) {
        at = mem_alloc(1, sizeof *at);
        if (!at) return NULL;
        struct budget **bucket = bucket_of(budgets, key);
        at->key = key;
        at->next = *bucket;
        *bucket = at;
    } else if (at->terms.period != terms->period) {
        at->known = at->dry = at->asked_for_once = false;
        at->number = at->taken = at->used = at->held = 0;
    }
    at->terms = *terms;
    return at;
}

/* May be negative: on credit, after more was used than held, or with the budget of another period. */
static int64_t left_of(const struct budget *at)
{
    return (int64_t)at->taken - (int64_t)at->used - (int64_t)at->held;
}

static uint64_t reserve_of(const struct budget *at)
{
    return at->terms.units / RESERVE_PART;
}

static uint64_t number_now(const struct budgets *budgets, const struct budget *at, struct budget_time time)
{
    return budget_period_number(at->terms.period, time.unix_s, budgets->config.utc_offset_s);
}

/* Our clock tells of a period that the ledger was not asked about. */
static bool is_stale(const struct budgets *budgets, const struct budget *at, struct budget_time time)
{
    uint64_t now = number_now(budgets, at, time);
    return !at->known || (now > at->number && !(at->asked_for_once && at->asked_for == now));
}

static void enqueue(struct budgets *budgets, struct budget *at)
{
    if (at->queued) return;
    at->queued = true;
    at->queue_next = NULL;
    if (budgets->last)
        budgets->last->queue_next = at;
    else
        budgets->first = at;
    budgets->last = at;
    budgets->queue_length++;
}

static struct budget *dequeue(struct budgets *budgets)
{
    struct budget *at = budgets->first;
    budgets->first = at->queue_next;
    if (!budgets->first) budgets->last = NULL;
    budgets->queue_length--;
    at->queued = false;
    return at;
}

static enum lease_verdict wait_for(struct budgets *budgets, struct budget *at, uint64_t most, struct budget_wish *wish)
{
    if (!wish->ticket) {
        wish->ticket = budgets->asks + 1;
        at->demand = less(at->demand + most, BUDGET_UNITS_MAX / 4);
    }
    enqueue(budgets, at);
    return LEASE_WAITS;
}

static enum lease_verdict take(struct budget *at, uint64_t units, struct budget_hold *hold, uint64_t *got)
{
    if (hold->number != at->number) *hold = (struct budget_hold){.number = at->number}; /* B4 */
    hold->units += units;
    at->held += units;
    *got = units;
    return LEASE_HELD;
}

static enum lease_verdict hold_in_outage(struct budgets *budgets, struct budget *at, uint64_t least, uint64_t most,
                                         uint64_t now_ns, struct budget_wish *wish, struct budget_hold *hold,
                                         uint64_t *got)
{
    const struct budgets_config *config = &budgets->config;
    int64_t left = left_of(at);
    if (config->outage == OUTAGE_CONTINUE && !at->dry) left += (int64_t)config->window_units;
    if (left >= (int64_t)least) {
        enqueue(budgets, at);
        return take(at, less((uint64_t)left, most), hold, got);
    }
    (void)wait_for(budgets, at, most, wish); /* the question that finds it there again */
    bool waits = config->outage == OUTAGE_RETRY_REJECT && now_ns - wish->asked_ns < config->retry_ns;
    return waits ? LEASE_WAITS : LEASE_OUTAGE;
}

enum lease_verdict budgets_hold(struct budgets *budgets, uint64_t key, const struct key_budget *budget, uint64_t least,
                                uint64_t most, struct budget_time time, struct budget_wish *wish,
                                struct budget_hold *hold, uint64_t *got)
{
    CHECK(least > 0 && least <= most && budget->period != BUDGET_NONE);
    *got = 0;
    struct budget *at = find_or_make(budgets, key, budget);
    if (!at) return LEASE_OUTAGE;
    if (!wish->asked_ns) wish->asked_ns = time.now_ns ? time.now_ns : 1;
    at->used_ns = time.now_ns;
    if (!at->known && !at->held) at->number = number_now(budgets, at, time);
    if (budgets->lost) return hold_in_outage(budgets, at, least, most, time.now_ns, wish, hold, got);
    if (is_stale(budgets, at, time)) return wait_for(budgets, at, most, wish);
    int64_t left = left_of(at);
    bool decided = wish->ticket && at->answered_ticket >= wish->ticket;
    if (left < (int64_t)most && !decided) return wait_for(budgets, at, most, wish);
    if (left >= (int64_t)least) {
        enum lease_verdict verdict = take(at, less((uint64_t)left, most), hold, got);
        if (!at->dry && left_of(at) < (int64_t)(reserve_of(at) / 2)) enqueue(budgets, at);
        return verdict;
    }
    if (at->dry) return LEASE_EMPTY;
    wish->ticket = 0; /* the ledger gave what was wanted, and other requests have taken it: once more */
    return wait_for(budgets, at, most, wish);
}

void budgets_less(struct budgets *budgets, uint64_t key, struct budget_hold *hold, uint64_t units)
{
    struct budget *at = find(budgets, key);
    CHECK(units <= hold->units);
    hold->units -= units;
    if (at && at->number == hold->number && at->held >= units) at->held -= units;
}

void budgets_settle(struct budgets *budgets, uint64_t key, struct budget_hold *hold, uint64_t used)
{
    struct budget *at = find(budgets, key);
    if (hold->units == 0) return;
    if (at && at->number == hold->number && at->held >= hold->units) {
        at->held -= hold->units;
        at->used += used;
    }
    hold->units = 0;
}

/* ---- questions ---- */

static bool ask_for(struct budgets *budgets, struct budget *at, struct budget_time time, bool release,
                    struct budget_ask *ask)
{
    int64_t left = left_of(at);
    uint64_t have = at->used + at->held, free = left > 0 ? (uint64_t)left : 0;
    if (release) at->taken = have; /* B2 */
    uint64_t want = release ? 0 : at->demand > free ? at->demand : free;
    budgets->asking = at;
    budgets->asks++;
    budgets->asked_demand = at->demand;
    at->demand = 0;
    at->asked_for = number_now(budgets, at, time);
    at->asked_for_once = true;
    *ask = budgets->ask = (struct budget_ask){.key = at->key,
                                              .producer = budgets->config.producer,
                                              .budget = at->terms,
                                              .utc_offset_s = budgets->config.utc_offset_s,
                                              .known = at->known,
                                              .number = at->number,
                                              .have = at->known ? have : 0,
                                              .want = want,
                                              .reserve = release ? 0 : reserve_of(at),
                                              .release = release};
    return true;
}

static bool ask_from_queue(struct budgets *budgets, struct budget_time time, struct budget_ask *ask)
{
    uint32_t looks = budgets->queue_length < QUEUE_LOOKS ? budgets->queue_length : QUEUE_LOOKS;
    for (; looks > 0; looks--) {
        struct budget *at = dequeue(budgets);
        if (!at->dry || time.now_ns - at->answered_ns >= budgets->config.dry_ns)
            return ask_for(budgets, at, time, false, ask);
        enqueue(budgets, at); /* later */
    }
    return false;
}

static bool is_idle(const struct budgets *budgets, const struct budget *at, uint64_t now_ns)
{
    return at->held == 0 && !at->queued && at->known && at->taken > at->used &&
           (budgets->ending || now_ns - at->used_ns >= budgets->config.idle_ns);
}

static bool ask_from_walk(struct budgets *budgets, struct budget_time time, struct budget_ask *ask)
{
    if (budgets->cursor == BUCKETS && (budgets->ending || time.now_ns - budgets->walk_ns >= NS_PER_S)) {
        budgets->walk_ns = time.now_ns;
        budgets->cursor = 0;
    }
    for (; budgets->cursor < BUCKETS; budgets->cursor++)
        for (struct budget *at = budgets->buckets[budgets->cursor]; at; at = at->next)
            if (is_idle(budgets, at, time.now_ns)) return ask_for(budgets, at, time, true, ask);
    return false;
}

bool budgets_next(struct budgets *budgets, struct budget_time time, struct budget_ask *ask)
{
    if (budgets->asking || (budgets->lost && time.now_ns < budgets->ask_after_ns)) return false;
    return (!budgets->ending && ask_from_queue(budgets, time, ask)) || ask_from_walk(budgets, time, ask);
}

void budgets_answered(struct budgets *budgets, const struct budget_answer *answer, uint64_t now_ns)
{
    struct budget *at = budgets->asking;
    CHECK(at != NULL);
    budgets->asking = NULL;
    budgets->lost = answer == NULL;
    if (!answer) {
        budgets->ask_after_ns = now_ns + budgets->config.ask_again_ns;
        at->demand = less(at->demand + budgets->asked_demand, BUDGET_UNITS_MAX / 4);
        at->asked_for_once = false;
        if (!budgets->ask.release) enqueue(budgets, at);
        return;
    }
    if (at->terms.period != budgets->ask.budget.period) return; /* changed meanwhile: who waits asks anew */
    if (at->number != answer->number) at->used = at->held = 0;  /* what ran meanwhile was of the period before */
    if (!at->known) at->used += answer->base;
    at->known = true;
    at->number = answer->number;
    at->taken = answer->taken;
    at->dry = !budgets->ask.release && answer->taken < answer->base + budgets->ask.want;
    at->answered_ticket = budgets->asks;
    at->answered_ns = now_ns;
}

void budgets_give_back(struct budgets *budgets)
{
    budgets->ending = true;
    budgets->cursor = BUCKETS;
}
