/* Queue, windows and accounts; see attribution.h.
 *
 *   attribution_step --> spans (ring) + shares (ring)     joules by the model, not yet the meter's
 *   attribution_meter --> one open window [begin, end), which grows until known_ns reaches its end
 *   close_window       spans that it covers --> weights of touched accounts --> apportion --> accounts, books
 *
 * Invariants: books.meter = prefill + decode + idle + paced + unattributed after every call; spans are in order and do
 * not overlap; an account's `queued` counts its shares in the ring, and one that has ended is done when it is 0. */
#include "runtime/power/attribution.h"

#include "runtime/base/check.h"
#include "runtime/base/id_table.h"
#include "runtime/base/mem.h"
#include "runtime/power/apportion.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

enum { NONE = UINT32_MAX, LIMIT_MAX = 1 << 19 };
/* FULL_MARGIN: a meter that is read every 20 ms may be dated that much too early or late, of 100 ms.
 * WINDOW_UJ_MAX: what no window can hold, 36 GJ. */
static const double FULL_MARGIN = 1.5;
#define WINDOW_UJ_MAX (UINT64_C(1) << 55)
/* A reading dated so far before the last one: that one was dated wrong. */
#define CLOCK_JUMP_NS UINT64_C(1000000000)

struct span {                               /* a step or a pause */
    uint64_t start_ns, end_ns, duration_ns; /* what is left of it, and how long it was */
    uint32_t shares;
    bool pause, overflow;
    double lost_j;
};

struct share {
    uint32_t account;
    double prefill_j, decode_j;
};

struct account {
    struct energy_account open;
    uint32_t queued, touched; /* touched: its place in this window's list, or NONE */
    uint32_t next;            /* of the free ones, or of the done ones */
    uint32_t group;
    bool ended;
};

struct attribution {
    struct attribution_config config;
    struct account *accounts;
    struct id_table ids;
    uint32_t free_first, done_first, done_last;
    struct span *spans;
    struct share *shares;
    uint32_t span_first, span_count, share_first, share_count;
    uint64_t told_ns, known_ns; /* end of the last span; nothing is to come before known_ns */
    /* the meter */
    bool metered;
    uint64_t reading_uj, changes, begin_ns, end_ns;
    double idle_w;
    uint32_t window_flags;
    struct energy_books books;
    struct energy_group *groups;
    struct carbon_rates rates;
    struct carbon_rest carbon_rest;
    /* of a window: touched accounts; two parties each, and nobody */
    uint32_t *touched, touched_count;
    double *weights;
    uint64_t *parts, *remainders;
};

static uint32_t account_find(const struct attribution *at, uint64_t id)
{
    return id_table_find(&at->ids, id);
}

static uint32_t account_add(struct attribution *at, uint64_t id, uint32_t group)
{
    uint32_t idx = at->free_first;
    if (idx == NONE) return NONE;
    at->free_first = at->accounts[idx].next;
    at->accounts[idx] = (struct account){.open.request_id = id, .touched = NONE, .next = NONE, .group = group};
    id_table_add(&at->ids, id, idx);
    return idx;
}

static void account_remove(struct attribution *at, uint32_t idx)
{
    id_table_remove(&at->ids, at->accounts[idx].open.request_id);
    at->accounts[idx].next = at->free_first;
    at->free_first = idx;
}

static void account_done(struct attribution *at, uint32_t idx)
{
    at->accounts[idx].next = NONE;
    if (at->done_first == NONE)
        at->done_first = idx;
    else
        at->accounts[at->done_last].next = idx;
    at->done_last = idx;
}

static enum status lists_create(struct attribution *at, struct error *err)
{
    const struct attribution_config *c = &at->config;
    const size_t parties = 2 * (size_t)c->accounts_max + 1;
    at->accounts = mem_alloc(c->accounts_max, sizeof *at->accounts);
    at->spans = mem_alloc(c->steps_max, sizeof *at->spans);
    at->shares = mem_alloc(c->shares_max, sizeof *at->shares);
    at->touched = mem_alloc(c->accounts_max, sizeof *at->touched);
    at->weights = mem_alloc(parties, sizeof *at->weights);
    at->parts = mem_alloc(parties, sizeof *at->parts);
    at->remainders = mem_alloc(parties, sizeof *at->remainders);
    at->groups = mem_alloc(c->groups_max + 1, sizeof *at->groups); /* the last: of those in none */
    if (id_table_init(&at->ids, c->accounts_max) != ST_OK || !at->accounts || !at->spans || !at->shares ||
        !at->touched || !at->weights || !at->parts || !at->remainders || !at->groups)
        return error_set(err, ST_NOMEM, "no memory for the energy of %u requests", (unsigned)c->accounts_max);
    at->free_first = 0;
    for (uint32_t i = 0; i < c->accounts_max; i++) at->accounts[i].next = i + 1 < c->accounts_max ? i + 1 : NONE;
    at->done_first = at->done_last = NONE;
    return ST_OK;
}

enum status attribution_create(const struct attribution_config *config, struct attribution **out, struct error *err)
{
    if (config->accounts_max < 1 || config->accounts_max > LIMIT_MAX || config->steps_max < 1 ||
        config->steps_max > LIMIT_MAX || config->shares_max < 1 || config->shares_max > LIMIT_MAX ||
        config->groups_max > LIMIT_MAX)
        return error_set(err, ST_INVAL, "the limits of energy accounts are 1 to %d", (int)LIMIT_MAX);
    struct attribution *at = mem_alloc(1, sizeof *at);
    if (!at) return error_set(err, ST_NOMEM, "no memory for energy accounts");
    at->config = *config;
    enum status status = lists_create(at, err);
    if (status != ST_OK) {
        attribution_destroy(at);
        return status;
    }
    *out = at;
    return ST_OK;
}

void attribution_destroy(struct attribution *at)
{
    if (!at) return;
    mem_free(at->accounts);
    id_table_free(&at->ids);
    mem_free(at->spans);
    mem_free(at->shares);
    mem_free(at->touched);
    mem_free(at->weights);
    mem_free(at->parts);
    mem_free(at->remainders);
    mem_free(at->groups);
    mem_free(at);
}

/* A window that is closed: meter, steps, accounts. */

static struct span *span_at(struct attribution *at, uint32_t idx)
{
    return &at->spans[(at->span_first + idx) % at->config.steps_max];
}

static void touch(struct attribution *at, const struct share *share, double fraction)
{
    struct account *account = &at->accounts[share->account];
    account->open.open_j -= fmin(account->open.open_j, (share->prefill_j + share->decode_j) * fraction);
    if (account->touched == NONE) {
        account->touched = at->touched_count;
        at->touched[at->touched_count++] = share->account;
        at->weights[2 * (size_t)account->touched] = at->weights[2 * (size_t)account->touched + 1] = 0;
    }
    at->weights[2 * (size_t)account->touched] += share->prefill_j * fraction;
    at->weights[2 * (size_t)account->touched + 1] += share->decode_j * fraction;
}

/* The oldest span is behind us: its requests have one share less to wait for. */
static void span_pop(struct attribution *at)
{
    const struct span *span = span_at(at, 0);
    for (uint32_t i = 0; i < span->shares; i++) {
        uint32_t idx = at->shares[at->share_first].account;
        at->share_first = (at->share_first + 1) % at->config.shares_max;
        at->share_count--;
        struct account *account = &at->accounts[idx];
        CHECK(account->queued > 0);
        if (--account->queued == 0) account->open.open_j = 0; /* and not what doubles have left */
        if (account->queued == 0 && account->ended) account_done(at, idx);
    }
    at->span_first = (at->span_first + 1) % at->config.steps_max;
    at->span_count--;
}

struct covered { /* what the spans of a window come to */
    uint64_t step_ns, pause_ns;
    double lost_j;
    bool steps;
};

/* The oldest span's part in the window. What was before the meter's first window costs nobody anything. */
static void span_cover(struct attribution *at, struct span *span, struct covered *sum)
{
    uint64_t from = span->start_ns > at->begin_ns ? span->start_ns : at->begin_ns;
    uint64_t until = span->end_ns < at->end_ns ? span->end_ns : at->end_ns;
    bool early = span->start_ns < at->begin_ns;
    double fraction = 0;
    if (span->duration_ns == 0)
        fraction = early ? 0 : 1;
    else if (until > from)
        fraction = (double)(until - from) / (double)span->duration_ns;
    if (span->pause) {
        if (until > from) sum->pause_ns += until - from;
        return;
    }
    if (until > from) sum->step_ns += until - from;
    if (fraction > 0) sum->steps = true;
    sum->lost_j += span->lost_j * fraction;
    for (uint32_t i = 0; i < span->shares; i++) {
        const struct share *share = &at->shares[(at->share_first + i) % at->config.shares_max];
        if (early) at->accounts[share->account].open.flags |= ENERGY_PARTIAL;
        if (fraction > 0) touch(at, share, fraction);
    }
}

static void cover(struct attribution *at, struct covered *sum)
{
    while (at->span_count > 0) {
        struct span *span = span_at(at, 0);
        if (span->start_ns >= at->end_ns) break;
        span_cover(at, span, sum);
        if (span->end_ns > at->end_ns) {
            span->start_ns = at->end_ns;
            break;
        }
        span_pop(at);
    }
}

/* Rule 1: {idle, paced, steps}. */
static void split_time(const struct attribution *at, const struct covered *sum, uint64_t uj, uint64_t parts[3])
{
    double window_s = (double)(at->end_ns - at->begin_ns) * 1e-9, mean_w = (double)uj * 1e-6 / window_s;
    double base_w = sum->steps && at->idle_w < mean_w ? at->idle_w : mean_w;
    uint64_t busy_ns = sum->step_ns + sum->pause_ns, window_ns = at->end_ns - at->begin_ns;
    double idle_j = base_w * (double)(window_ns > busy_ns ? window_ns - busy_ns : 0) * 1e-9;
    double paced_j = base_w * (double)sum->pause_ns * 1e-9;
    double weights[3] = {idle_j, paced_j, sum->steps ? (double)uj * 1e-6 - idle_j - paced_j : 0};
    uint64_t remainders[3];
    parts[0] = parts[1] = parts[2] = 0;
    if (!apportion(uj, weights, 3, parts, remainders)) parts[2] = uj;
}

/* The full-cost column: the window's idle and paced joules over the requests in it. */
static void share_idle(struct attribution *at, uint64_t uj)
{
    uint32_t count = at->touched_count;
    if (!apportion(uj, at->weights, count, at->parts, at->remainders)) return;
    for (uint32_t i = 0; i < count; i++) at->accounts[at->touched[i]].open.idle_share_uj += at->parts[i];
    at->books.idle_shared_uj += count > 0 ? uj : 0;
}

/* One column of the window's CO2, into the member of the accounts that lies there. */
static void share_column(struct attribution *at, uint64_t whole, size_t member)
{
    uint32_t count = at->touched_count;
    if (!apportion(whole, at->weights, count + 1, at->parts, at->remainders)) return;
    for (uint32_t i = 0; i < count; i++) {
        char *carbon = (char *)&at->accounts[at->touched[i]].open.carbon;
        *(uint64_t *)(void *)(carbon + member) += at->parts[i];
        *(uint64_t *)(void *)((char *)&at->books.carbon_requests + member) += at->parts[i];
    }
}

/* The window's green energy and CO2: over its requests by their joules, and what is nobody's. */
static void share_carbon(struct attribution *at, const struct carbon *carbon, uint64_t rest_uj)
{
    at->weights[at->touched_count] = (double)rest_uj;
    share_column(at, carbon->green_uj, offsetof(struct carbon, green_uj));
    share_column(at, carbon->location_ug, offsetof(struct carbon, location_ug));
    share_column(at, carbon->market_ug, offsetof(struct carbon, market_ug));
    share_column(at, carbon->marginal_ug, offsetof(struct carbon, marginal_ug));
}

/* What an account was given in the window, as parts 2 i and 2 i + 1 say. */
static uint64_t credit(struct attribution *at, uint32_t i)
{
    struct account *account = &at->accounts[at->touched[i]];
    uint64_t prefill_uj = at->parts[2 * (size_t)i], decode_uj = at->parts[2 * (size_t)i + 1];
    struct energy_group *group =
        &at->groups[account->group < at->config.groups_max ? account->group : at->config.groups_max];
    account->open.prefill_uj += prefill_uj;
    account->open.decode_uj += decode_uj;
    account->open.flags |= at->window_flags;
    group->prefill_uj += prefill_uj;
    group->decode_uj += decode_uj;
    at->books.prefill_uj += prefill_uj;
    at->books.decode_uj += decode_uj;
    return prefill_uj + decode_uj;
}

/* Rules 2 to 4. */
static void split_steps(struct attribution *at, const struct covered *sum, uint64_t uj, uint64_t idle_uj,
                        uint64_t beyond_uj, const struct carbon *carbon)
{
    size_t parties = 2 * (size_t)at->touched_count + 1;
    at->weights[parties - 1] = sum->lost_j;
    if (!apportion(uj, at->weights, (uint32_t)parties, at->parts, at->remainders)) {
        at->books.unattributed_uj += uj;
    } else {
        uint64_t lost_uj = at->parts[parties - 1];
        at->books.unattributed_uj += lost_uj;
        for (uint32_t i = 0; i < at->touched_count; i++) at->weights[i] = (double)credit(at, i);
        if (at->touched_count > 0) {
            share_idle(at, idle_uj);
            share_carbon(at, carbon, idle_uj + lost_uj + beyond_uj);
        }
    }
    for (uint32_t i = 0; i < at->touched_count; i++) at->accounts[at->touched[i]].touched = NONE;
    at->touched_count = 0;
}

/* Joules that the meter has counted, in so long. */
static struct carbon add_meter(struct attribution *at, uint64_t uj, uint64_t duration_ns)
{
    struct carbon carbon = carbon_of(&at->rates, uj, duration_ns, &at->carbon_rest);
    at->books.meter_uj += uj;
    if (at->rates.green_w > 0) at->books.offered_j += at->rates.green_w * (double)duration_ns * 1e-9;
    carbon_add(&at->books.carbon, &carbon);
    return carbon;
}

static void close_window(struct attribution *at)
{
    struct covered sum = {0};
    uint64_t uj = at->books.pending_uj, most = WINDOW_UJ_MAX, parts[3];
    double full_uj = at->config.full_w * FULL_MARGIN * (double)(at->end_ns - at->begin_ns) * 1e-3;
    if (at->config.full_w > 0 && full_uj < (double)most) most = (uint64_t)full_uj;
    struct carbon carbon = add_meter(at, uj, at->end_ns - at->begin_ns);
    uint64_t beyond_uj = uj > most ? uj - most : 0;
    at->books.pending_uj = 0;
    at->books.windows++;
    at->books.unattributed_uj += beyond_uj;
    uj -= beyond_uj;
    cover(at, &sum);
    split_time(at, &sum, uj, parts);
    at->books.idle_uj += parts[0];
    at->books.paced_uj += parts[1];
    split_steps(at, &sum, parts[2], parts[0] + parts[1], beyond_uj, &carbon);
    at->begin_ns = at->end_ns;
    at->window_flags = 0;
}

static void close_if_known(struct attribution *at)
{
    if (at->metered && at->end_ns > at->begin_ns && at->known_ns >= at->end_ns) close_window(at);
}

/* What is told. */

static struct span *span_push(struct attribution *at, uint64_t start_ns, uint64_t end_ns)
{
    if (start_ns < at->told_ns) start_ns = at->told_ns;
    if (end_ns < start_ns) end_ns = start_ns;
    at->told_ns = end_ns;
    struct span *last = at->span_count > 0 ? span_at(at, at->span_count - 1) : NULL;
    if (last && last->overflow) { /* the last place grows until a window closes over it */
        last->end_ns = end_ns;
        last->duration_ns = end_ns - last->start_ns;
        return last;
    }
    struct span *span = span_at(at, at->span_count++);
    *span = (struct span){.start_ns = start_ns, .end_ns = end_ns, .duration_ns = end_ns - start_ns};
    span->overflow = at->span_count == at->config.steps_max;
    return span;
}

static void share_push(struct attribution *at, struct span *span, const struct energy_share *share, double prefill_j,
                       double decode_j)
{
    uint32_t idx = account_find(at, share->request_id);
    if (idx == NONE) idx = account_add(at, share->request_id, share->group);
    if (idx != NONE && at->accounts[idx].ended) idx = NONE;
    if (idx == NONE) {
        span->lost_j += prefill_j + decode_j;
        at->books.steps_lost++;
        return;
    }
    uint32_t place = (at->share_first + at->share_count++) % at->config.shares_max;
    at->shares[place] = (struct share){idx, prefill_j, decode_j};
    struct energy_account *open = &at->accounts[idx].open;
    open->open_j += prefill_j + decode_j;
    open->prefill_tokens += share->prefill_tokens;
    open->decode_rows += share->decode_rows;
    at->accounts[idx].queued++;
    span->shares++;
}

static void mark_partial(struct attribution *at, const struct energy_share *shares, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t idx = account_find(at, shares[i].request_id);
        if (idx != NONE) at->accounts[idx].open.flags |= ENERGY_PARTIAL;
    }
}

void attribution_step(struct attribution *at, const struct energy_model *model, uint64_t start_ns, uint64_t end_ns,
                      const struct energy_share *shares, uint32_t count)
{
    struct span *span = span_push(at, start_ns, end_ns);
    bool fits = !span->overflow && count <= at->config.shares_max - at->share_count;
    double sequences = 0;
    for (uint32_t i = 0; i < count; i++) sequences += shares[i].sequences > 0 ? shares[i].sequences : 1;
    double fixed_j = count > 0 ? energy_model_term(model, 0) / sequences : 0; /* of a sequence */
    if (!fits) at->books.steps_lost++, mark_partial(at, shares, count);
    for (uint32_t i = 0; i < count; i++) {
        const struct energy_share *share = &shares[i];
        double prefill_j =
            energy_model_term(model, 1) * share->prefill_tokens + energy_model_term(model, 2) * share->prefill_pairs;
        double decode_j =
            energy_model_term(model, 3) * share->decode_rows + energy_model_term(model, 4) * share->decode_context;
        *(share->decode_rows > 0 ? &decode_j : &prefill_j) += fixed_j * (share->sequences > 0 ? share->sequences : 1);
        if (fits)
            share_push(at, span, share, prefill_j, decode_j);
        else
            span->lost_j += prefill_j + decode_j;
    }
    attribution_known(at, at->told_ns);
}

void attribution_lost(struct attribution *at, uint64_t start_ns, uint64_t end_ns, double joules)
{
    struct span *span = span_push(at, start_ns, end_ns);
    if (isfinite(joules) && joules > 0) span->lost_j += joules;
    at->books.steps_lost++;
    attribution_known(at, at->told_ns);
}

void attribution_pause(struct attribution *at, uint64_t start_ns, uint64_t end_ns)
{
    struct span *span = span_push(at, start_ns, end_ns);
    if (!span->overflow) span->pause = true;
    attribution_known(at, at->told_ns);
}

void attribution_known(struct attribution *at, uint64_t until_ns)
{
    if (until_ns > at->known_ns) at->known_ns = until_ns;
    close_if_known(at);
}

/* What is pending is nobody's; the next window begins here. */
static void restart(struct attribution *at, uint64_t now_ns)
{
    (void)add_meter(at, at->books.pending_uj, 0);
    at->books.unattributed_uj += at->books.pending_uj;
    at->books.pending_uj = 0;
    at->window_flags = 0;
    at->begin_ns = at->end_ns = now_ns;
}

void attribution_meter(struct attribution *at, const struct sensor_reading *reading, double idle_w)
{
    if (reading->changes == 0 || (at->metered && reading->changes == at->changes)) return;
    uint64_t before_uj = at->reading_uj, uj = reading->energy_uj > before_uj ? reading->energy_uj - before_uj : 0;
    at->reading_uj = reading->energy_uj;
    at->changes = reading->changes;
    at->idle_w = isfinite(idle_w) && idle_w > 0 ? idle_w : 0;
    if (!at->metered) {
        at->metered = true;
        at->begin_ns = at->end_ns = reading->published_ns;
        return;
    }
    if (reading->energy_uj < before_uj) at->books.meter_backwards++;
    if (reading->flags & SENSOR_ESTIMATED) at->window_flags |= ENERGY_ESTIMATED;
    if (reading->published_ns <= at->end_ns) { /* joules of no time that we know */
        at->books.meter_backwards++;
        (void)add_meter(at, uj, 0);
        at->books.unattributed_uj += uj;
        if (at->end_ns - reading->published_ns > CLOCK_JUMP_NS) restart(at, reading->published_ns);
        return;
    }
    at->books.pending_uj += uj;
    at->end_ns = reading->published_ns;
    close_if_known(at);
}

/* Ends and answers. */

bool attribution_end(struct attribution *at, uint64_t request_id)
{
    uint32_t idx = account_find(at, request_id);
    if (idx == NONE || at->accounts[idx].ended) return false;
    at->accounts[idx].ended = true;
    if (at->accounts[idx].queued == 0) account_done(at, idx);
    return true;
}

bool attribution_take(struct attribution *at, struct energy_account *account)
{
    uint32_t idx = at->done_first;
    if (idx == NONE) return false;
    at->done_first = at->accounts[idx].next;
    *account = at->accounts[idx].open;
    account_remove(at, idx);
    return true;
}

bool attribution_look(const struct attribution *at, uint64_t request_id, struct energy_account *account)
{
    uint32_t idx = account_find(at, request_id);
    if (idx == NONE) return false;
    *account = at->accounts[idx].open;
    return true;
}

void attribution_flush(struct attribution *at)
{
    while (at->span_count > 0) {
        const struct span *span = span_at(at, 0);
        for (uint32_t i = 0; i < span->shares; i++) {
            uint32_t idx = at->shares[(at->share_first + i) % at->config.shares_max].account;
            at->accounts[idx].open.flags |= ENERGY_PARTIAL;
        }
        span_pop(at);
    }
    restart(at, at->end_ns);
    at->metered = false;
}

void attribution_rates(struct attribution *at, const struct carbon_rates *rates)
{
    at->rates = *rates;
}

void attribution_group(const struct attribution *at, uint32_t idx, struct energy_group *group)
{
    CHECK(idx < at->config.groups_max);
    *group = at->groups[idx];
}

void attribution_books(const struct attribution *at, struct energy_books *books)
{
    *books = at->books;
}
