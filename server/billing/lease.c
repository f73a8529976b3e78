/* Leases and holds; see lease.h for the rules H1-H6.
 *
 *   account: held (all classes), rate          pot: one class of it
 *
 *   leased - since - held = headroom           since: charged after the grant that `leased` answers
 *
 *            lease_next_wish        lease_sent             lease_answered
 *   resting ----------------> wished ---------> under way ---------------> resting (leased, since, valid)
 *      ^                         |  no answer in answer_ns, ledger came back  |
 *      +-------------------------+--------------------------------------------+  its demand is asked for again
 *
 * Grants are numbered as they are wished. A question (struct lease_ask) carries the number of the next one; the answer
 * to that or a younger one decides it (H5). When a lease ends, `leased` shrinks to what is charged and held (H3), so
 * that the one sum above holds at all times; in an outage the window W is added to it.
 *
 * Pots with a demand wait in a queue. What needs time to pass (renewal, idle accounts, lost answers) is found by a walk
 * over the table every second or so. Rejected: a timer heap (a second of delay does not matter there), one headroom for
 * all classes (a package of one class would then pay for another). */
#include "server/billing/lease.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "server/billing/record.h"

#include <string.h>

enum { BUCKETS_MIN = 64, QUEUE_LOOKS = 64, ANSWERS_WAITED = 6 };

struct account;

struct pot {
    struct pot *next; /* of the account */
    struct account *account;
    struct pot *queue_next;
    uint8_t mclass;
    bool queued, under_way, sent;
    bool dry;   /* the last answer gave less than was wanted */
    bool broke; /* ... nothing at all: no credit (H4) */
    uint64_t leased, since, valid_until_ns;
    uint64_t renew_ns;                  /* half of its time has passed */
    uint64_t demand_most, demand_least; /* of questions since the last wish; 0: none */
    /* the grant under way */
    uint64_t number, wished_ns, sent_ns, pseq, since_sent, want, expected, asked_most, asked_least;
    uint64_t answered_number, answered_ns;
};

struct account {
    struct account *next; /* of the bucket */
    uint64_t number;
    struct pot *pots;
    uint64_t held, used_ns;
    uint64_t window_ns, charged, charged_before; /* rate: since window_ns, and in the window before */
    bool open;
    uint64_t releasing_ns; /* a release is wished, not yet sent; 0: none */
};

struct leases {
    struct lease_config config;
    struct account **buckets;
    uint32_t buckets_count, accounts_count, cursor; /* cursor: of the walk; buckets_count: at its end */
    struct pot *first, *last;                       /* the queue */
    uint32_t queue_length;
    uint64_t grants, now_ns, walk_ns, credit; /* credit: given in outages */
    bool reachable, refuses, draining;
};

static uint64_t less(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t minus(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

/* Never 0, which stands for "not yet". */
static void see_time(struct leases *leases, uint64_t now_ns)
{
    if (now_ns > leases->now_ns) leases->now_ns = now_ns;
}

/* ---- the table ---- */

enum status leases_create(const struct lease_config *config, struct leases **leases)
{
    struct leases *made = mem_alloc(1, sizeof *made);
    struct account **buckets = mem_alloc(BUCKETS_MIN, sizeof *buckets);
    if (!made || !buckets) {
        mem_free(made);
        mem_free(buckets);
        return ST_NOMEM;
    }
    made->config = *config;
    made->now_ns = 1;
    made->buckets = buckets;
    made->buckets_count = made->cursor = BUCKETS_MIN;
    *leases = made;
    return ST_OK;
}

static void account_free(struct account *account)
{
    for (struct pot *pot = account->pots, *next; pot; pot = next) {
        next = pot->next;
        mem_free(pot);
    }
    mem_free(account);
}

void leases_destroy(struct leases *leases)
{
    if (!leases) return;
    for (uint32_t i = 0; i < leases->buckets_count; i++)
        for (struct account *account = leases->buckets[i], *next; account; account = next) {
            next = account->next;
            account_free(account);
        }
    mem_free(leases->buckets);
    mem_free(leases);
}

static struct account **bucket_of(const struct leases *leases, uint64_t number)
{
    return &leases->buckets[hash_bytes(&number, sizeof number, 0) % leases->buckets_count];
}

static struct account *find(const struct leases *leases, uint64_t number)
{
    struct account *account = *bucket_of(leases, number);
    while (account && account->number != number) account = account->next;
    return account;
}

static struct pot *find_pot(const struct account *account, uint8_t mclass)
{
    struct pot *pot = account->pots;
    while (pot && pot->mclass != mclass) pot = pot->next;
    return pot;
}

/* Without memory the table stays as it is: slower, not wrong. */
static void grow(struct leases *leases)
{
    struct account **old = leases->buckets;
    uint32_t old_count = leases->buckets_count;
    struct account **buckets = mem_alloc((size_t)old_count * 2, sizeof *buckets);
    if (!buckets) return;
    leases->buckets = buckets;
    leases->buckets_count = leases->cursor = old_count * 2; /* the walk begins again at its time */
    for (uint32_t i = 0; i < old_count; i++)
        for (struct account *account = old[i], *next; account; account = next) {
            next = account->next;
            struct account **bucket = bucket_of(leases, account->number);
            account->next = *bucket;
            *bucket = account;
        }
    mem_free(old);
}

static struct pot *find_or_make(struct leases *leases, uint64_t number, uint8_t mclass)
{
    struct account *account = find(leases, number);
    struct pot *pot = account ? find_pot(account, mclass) : NULL;
    if (pot) return pot;
    pot = mem_alloc(1, sizeof *pot);
    if (!pot) return NULL;
    if (!account) {
        if (leases->accounts_count >= leases->buckets_count && leases->buckets_count <= UINT32_MAX / 4) grow(leases);
        account = mem_alloc(1, sizeof *account);
        if (!account) {
            mem_free(pot);
            return NULL;
        }
        account->number = number;
        account->open = true; /* until the ledger says otherwise */
        account->window_ns = leases->now_ns;
        struct account **bucket = bucket_of(leases, number);
        account->next = *bucket;
        *bucket = account;
        leases->accounts_count++;
    }
    pot->mclass = mclass;
    pot->account = account;
    pot->next = account->pots;
    account->pots = pot;
    return pot;
}

/* ---- sums ---- */

/* H3: a lease that has ended covers what is charged and held, and no more. */
static void expire(struct pot *pot, uint64_t now_ns)
{
    uint64_t taken = pot->since + pot->account->held;
    if (now_ns >= pot->valid_until_ns && pot->leased > taken) pot->leased = taken;
}

/* May be negative: in an outage, or when charges of another class count here (H6). */
static int64_t headroom(const struct pot *pot)
{
    if (pot->account->releasing_ns) return 0;
    return (int64_t)pot->leased - (int64_t)pot->since - (int64_t)pot->account->held;
}

static void turn_window(const struct leases *leases, struct account *account)
{
    uint64_t window_ns = leases->config.rate_window_ns;
    uint64_t passed_ns = minus(leases->now_ns, account->window_ns);
    if (passed_ns < window_ns) return;
    account->charged_before = passed_ns < 2 * window_ns ? account->charged : 0;
    account->charged = 0;
    account->window_ns = leases->now_ns;
}

/* Units of one rate window: what the current one has, and of the one before the part that is not yet a window old. */
static uint64_t rate(const struct leases *leases, struct account *account)
{
    turn_window(leases, account);
    if (leases->config.rate_window_ns < 1000) return account->charged;
    uint64_t passed = minus(leases->now_ns, account->window_ns) / (leases->config.rate_window_ns / 1000);
    return less(account->charged + account->charged_before / 1000 * minus(1000, passed), UNITS_MAX);
}

/* ---- questions ---- */

static void enqueue(struct leases *leases, struct pot *pot)
{
    if (pot->queued || pot->under_way) return; /* its answer brings it here */
    pot->queued = true;
    pot->queue_next = NULL;
    if (leases->last)
        leases->last->queue_next = pot;
    else
        leases->first = pot;
    leases->last = pot;
    leases->queue_length++;
}

static void demand(struct pot *pot, uint64_t most, uint64_t least)
{
    if (!most) return;
    pot->demand_most = less(pot->demand_most + most, UNITS_MAX);
    pot->demand_least = pot->demand_least ? less(pot->demand_least, least) : least;
}

static enum lease_verdict wait_for(struct leases *leases, struct pot *pot, struct lease_ask *ask)
{
    if (!ask->ticket) {
        ask->ticket = leases->grants + 1;
        demand(pot, ask->most, ask->least);
    }
    enqueue(leases, pot);
    return LEASE_WAITS;
}

/* While the ledger is there: H2. */
static enum lease_verdict wait_for_answer(struct leases *leases, struct pot *pot, struct lease_ask *ask)
{
    if (leases->now_ns - ask->asked_ns >= ANSWERS_WAITED * leases->config.answer_ns) return LEASE_OUTAGE;
    return wait_for(leases, pot, ask);
}

static enum lease_verdict take(struct pot *pot, uint64_t units, uint64_t *held)
{
    pot->account->held += units;
    *held = units;
    return LEASE_HELD;
}

/* H4 */
static enum lease_verdict hold_in_outage(struct leases *leases, struct pot *pot, struct lease_ask *ask, uint64_t *held)
{
    const struct lease_config *config = &leases->config;
    if (!pot->account->open) return LEASE_CLOSED;
    int64_t leased = headroom(pot), left = leased;
    if (config->outage == OUTAGE_CONTINUE && !pot->broke) left += (int64_t)less(config->window_units, UNITS_MAX);
    if (left >= (int64_t)ask->least) {
        uint64_t units = less((uint64_t)left, ask->most);
        leases->credit += minus(units, leased > 0 ? (uint64_t)leased : 0);
        return take(pot, units, held);
    }
    if (config->outage == OUTAGE_RETRY_REJECT && leases->now_ns - ask->asked_ns < config->retry_ns)
        return wait_for(leases, pot, ask);
    return LEASE_OUTAGE;
}

enum lease_verdict lease_hold(struct leases *leases, uint64_t account, uint8_t mclass, struct lease_ask *ask,
                              uint64_t now_ns, uint64_t *held)
{
    CHECK(ask->least > 0 && ask->least <= ask->most && ask->most <= UNITS_MAX);
    *held = 0;
    see_time(leases, now_ns);
    struct pot *pot = find_or_make(leases, account, mclass);
    if (!pot) return LEASE_OUTAGE;
    if (!ask->asked_ns) ask->asked_ns = leases->now_ns;
    pot->account->used_ns = leases->now_ns;
    expire(pot, leases->now_ns);
    if (leases->refuses) return ask->running ? take(pot, ask->most, held) : LEASE_OUTAGE;
    if (!leases->reachable) return hold_in_outage(leases, pot, ask, held);
    bool decided = ask->ticket && pot->answered_number >= ask->ticket;
    if (!pot->account->open) return decided ? LEASE_CLOSED : wait_for_answer(leases, pot, ask);
    int64_t left = headroom(pot);
    if (left >= (int64_t)ask->most) return take(pot, ask->most, held);
    if (!decided) return wait_for_answer(leases, pot, ask);
    if (left >= (int64_t)ask->least) return take(pot, (uint64_t)left, held);
    if (pot->dry) return LEASE_EMPTY;
    ask->ticket = 0; /* the ledger gave what was wanted, and others have taken it: once more */
    return wait_for_answer(leases, pot, ask);
}

void lease_drop(struct leases *leases, uint64_t account, uint8_t mclass, uint64_t units)
{
    (void)mclass; /* H6 */
    lease_charged(leases, account, mclass, 0, units);
}

void lease_charged(struct leases *leases, uint64_t account, uint8_t mclass, uint64_t units, uint64_t held)
{
    (void)mclass; /* H6 */
    struct account *at = find(leases, account);
    CHECK(held == 0 || (at && at->held >= held));
    if (!at) return; /* of an earlier life of the process */
    at->held -= held;
    for (struct pot *pot = at->pots; pot; pot = pot->next) {
        pot->since += units;
        pot->since_sent += units;
    }
    turn_window(leases, at);
    at->charged += units;
}

/* ---- wishes ---- */

static void wish_grant(struct leases *leases, struct pot *pot, struct grant_wish *wish)
{
    /* what was charged beyond the lease has gone to other units: it is not asked for again */
    int64_t left = (int64_t)minus(pot->leased, pot->since) - (int64_t)pot->account->held;
    uint64_t target = pot->demand_most, per_window = rate(leases, pot->account);
    if (per_window > target) target = per_window;
    int64_t want = (int64_t)target - left, least = (int64_t)pot->demand_least - left;
    pot->under_way = true;
    pot->sent = false;
    pot->number = ++leases->grants;
    pot->wished_ns = leases->now_ns;
    pot->want = want > 0 ? less((uint64_t)want, UNITS_MAX) : 0;
    pot->asked_most = pot->demand_most;
    pot->asked_least = pot->demand_least;
    pot->demand_most = pot->demand_least = 0;
    *wish = (struct grant_wish){.account = pot->account->number,
                                .mclass = pot->mclass,
                                .want = pot->want,
                                .least = pot->asked_least && least > 0 ? less((uint64_t)least, pot->want) : 0,
                                .valid_ms = leases->config.valid_ns / NS_PER_MS};
}

/* The answer will not come: what it was to bring is wanted again. */
static void lose(struct leases *leases, struct pot *pot)
{
    pot->under_way = pot->sent = false;
    demand(pot, pot->asked_most, pot->asked_least);
    enqueue(leases, pot);
}

static bool wish_from_queue(struct leases *leases, struct grant_wish *wish)
{
    uint32_t looks = leases->queue_length < QUEUE_LOOKS ? leases->queue_length : QUEUE_LOOKS;
    for (; looks > 0; looks--) {
        struct pot *pot = leases->first;
        leases->first = pot->queue_next;
        if (!leases->first) leases->last = NULL;
        leases->queue_length--;
        pot->queued = false;
        if (pot->under_way) continue;
        if (pot->account->releasing_ns || (pot->dry && leases->now_ns - pot->answered_ns < leases->config.dry_ns)) {
            enqueue(leases, pot); /* H5: later */
            continue;
        }
        expire(pot, leases->now_ns);
        wish_grant(leases, pot, wish);
        return true;
    }
    return false;
}

static bool is_idle(const struct leases *leases, const struct account *account)
{
    if (account->held > 0) return false;
    for (const struct pot *pot = account->pots; pot; pot = pot->next)
        if (pot->under_way || pot->queued || pot->demand_most) return false;
    return leases->draining || leases->now_ns - account->used_ns >= leases->config.idle_ns;
}

static bool wish_release(struct leases *leases, struct account *account, struct grant_wish *wish)
{
    for (const struct pot *pot = account->pots; pot; pot = pot->next) {
        if (pot->leased <= pot->since) continue;
        account->releasing_ns = leases->now_ns;
        *wish = (struct grant_wish){.account = account->number, .mclass = pot->mclass, .release = true};
        return true;
    }
    return false;
}

/* Renewal in time, renewal in size, a lost answer. */
static bool wish_of_pot(struct leases *leases, struct pot *pot, struct grant_wish *wish)
{
    uint64_t now_ns = leases->now_ns;
    expire(pot, now_ns);
    if (pot->under_way) {
        if (now_ns - pot->wished_ns >= leases->config.answer_ns) lose(leases, pot);
        return false;
    }
    if (leases->draining || pot->queued || pot->leased <= pot->since || now_ns >= pot->valid_until_ns) return false;
    int64_t half = (int64_t)(rate(leases, pot->account) / 2);
    bool late = now_ns >= pot->renew_ns, small = !pot->dry && headroom(pot) < half;
    if (late || small) wish_grant(leases, pot, wish);
    return late || small;
}

/* One account of the walk. *gone: it had nothing left to remember, and is freed. */
static bool wish_of_account(struct leases *leases, struct account *account, struct grant_wish *wish, bool *gone)
{
    *gone = false;
    if (account->releasing_ns) {
        if (leases->now_ns - account->releasing_ns >= leases->config.answer_ns) account->releasing_ns = 0;
        return false;
    }
    if (!is_idle(leases, account)) {
        for (struct pot *pot = account->pots; pot; pot = pot->next)
            if (wish_of_pot(leases, pot, wish)) return true;
        return false;
    }
    for (struct pot *pot = account->pots; pot; pot = pot->next) expire(pot, leases->now_ns);
    if (wish_release(leases, account, wish)) return true;
    for (const struct pot *pot = account->pots; pot; pot = pot->next)
        if (pot->broke || pot->leased != pot->since) return false; /* H4 */
    *gone = true;
    return false;
}

static bool wish_from_walk(struct leases *leases, struct grant_wish *wish)
{
    const struct lease_config *config = &leases->config;
    uint64_t pause_ns = less(less(config->valid_ns / 64, config->idle_ns / 8), config->answer_ns / 4);
    if (leases->cursor >= leases->buckets_count) {
        if (!leases->draining && leases->now_ns - leases->walk_ns < pause_ns) return false;
        leases->cursor = 0;
        leases->walk_ns = leases->now_ns;
    }
    for (; leases->cursor < leases->buckets_count; leases->cursor++) {
        for (struct account **link = &leases->buckets[leases->cursor]; *link;) {
            struct account *account = *link;
            bool gone;
            if (wish_of_account(leases, account, wish, &gone)) return true; /* and this bucket once more */
            if (gone) {
                *link = account->next;
                account_free(account);
                leases->accounts_count--;
            } else {
                link = &account->next;
            }
        }
    }
    return false;
}

bool lease_next_wish(struct leases *leases, uint64_t now_ns, struct grant_wish *wish)
{
    see_time(leases, now_ns);
    if (!leases->reachable || leases->refuses) return false;
    return wish_from_queue(leases, wish) || wish_from_walk(leases, wish);
}

void lease_sent(struct leases *leases, const struct grant_wish *wish, uint64_t pseq, uint64_t now_ns)
{
    struct account *account = find(leases, wish->account);
    if (!account) return;
    if (wish->release) {
        account->releasing_ns = 0;
        for (struct pot *pot = account->pots; pot; pot = pot->next) pot->leased = pot->since = pot->valid_until_ns = 0;
        return;
    }
    struct pot *pot = find_pot(account, wish->mclass);
    if (!pot || !pot->under_way || pot->sent) return; /* it took longer than answer_ns to write */
    pot->sent = true;
    pot->pseq = pseq;
    pot->sent_ns = now_ns;
    pot->since_sent = 0;
    pot->expected = minus(pot->leased, pot->since) + pot->want;
}

void lease_answered(struct leases *leases, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open,
                    uint64_t now_ns)
{
    see_time(leases, now_ns);
    struct account *at = find(leases, account);
    struct pot *pot = at ? find_pot(at, mclass) : NULL;
    if (!pot || !pot->sent || pot->pseq != pseq) return;
    pot->under_way = pot->sent = false;
    pot->leased = less(leased, UNITS_MAX);
    pot->since = pot->since_sent;
    pot->valid_until_ns = pot->sent_ns + leases->config.valid_ns;
    pot->renew_ns = pot->sent_ns + leases->config.valid_ns / 2;
    pot->dry = pot->want > 0 && leased < pot->expected;
    if (pot->want > 0 || leased > 0) pot->broke = leased == 0;
    pot->answered_number = pot->number;
    pot->answered_ns = leases->now_ns;
    at->open = open;
    if (pot->demand_most) enqueue(leases, pot);
}

void lease_ledger_state(struct leases *leases, bool reachable, bool refuses, uint64_t now_ns)
{
    see_time(leases, now_ns);
    bool back = reachable && !leases->reachable;
    leases->reachable = reachable;
    leases->refuses = refuses;
    if (!back) return;
    for (uint32_t i = 0; i < leases->buckets_count; i++)
        for (struct account *account = leases->buckets[i]; account; account = account->next)
            for (struct pot *pot = account->pots; pot; pot = pot->next) {
                if (pot->under_way) lose(leases, pot);
                if (pot->leased > 0 || pot->demand_most || account->held > 0) enqueue(leases, pot);
            }
}

void lease_release_all(struct leases *leases)
{
    leases->draining = true;
    leases->cursor = leases->buckets_count;
}

bool lease_look(const struct leases *leases, uint64_t account, uint8_t mclass, uint64_t now_ns, struct lease_view *view)
{
    const struct account *at = find(leases, account);
    const struct pot *pot = at ? find_pot(at, mclass) : NULL;
    if (!pot) return false;
    bool valid = now_ns < pot->valid_until_ns;
    uint64_t taken = pot->since + at->held;
    *view = (struct lease_view){.leased = pot->leased,
                                .held = at->held,
                                .headroom = valid ? minus(pot->leased, taken) : 0,
                                .outage_spent = minus(taken, pot->leased),
                                .valid = valid,
                                .open = at->open};
    return true;
}

void leases_sum(const struct leases *leases, uint64_t now_ns, struct lease_sums *sums)
{
    *sums = (struct lease_sums){.credit = leases->credit};
    for (uint32_t i = 0; i < leases->buckets_count; i++)
        for (const struct account *account = leases->buckets[i]; account; account = account->next) {
            bool has_lease = false;
            sums->held += account->held;
            for (const struct pot *pot = account->pots; pot; pot = pot->next) {
                if (now_ns >= pot->valid_until_ns || pot->leased <= pot->since) continue;
                has_lease = true;
                sums->leased += pot->leased - pot->since;
                sums->headroom += minus(pot->leased, pot->since + account->held);
            }
            sums->accounts += has_lease;
        }
}
