/* What an exchange pays: its charges, its holds before the engine sees it, more while it runs, and its end when nothing
 * is left; see exchange.h (E8) and billing/lease.h.
 *
 *   prepared -> [hold for each request] -> submit          HOLD_TOKENS of output a choice, or what the package still
 * has |            \-> waits for the ledger's answer (exchanges_answered) -> again
 *                 \-> 402, 403, 503
 *   running: half of the held output is used -> hold more -> engine_raise;  nothing left and every choice at its limit:
 *            engine_cancel with QUOTA_END or ACCOUNT_STOP, which ends it well; in an outage PLATFORM_CANCEL */
#include "server/exchange_parts.h"

#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "server/billing/billing.h"
#include "server/billing/prices.h"
#include "server/budget_link.h"

#include <string.h>

enum { FINISHED = UINT32_MAX, BEGIN_WAIT_MS = 5000 };

struct billed {
    struct metered metered;
    struct request *request;
    uint64_t input_units; /* at most: all of the prompt at the dearer weight */
    uint64_t token_units; /* of one id of each choice */
    uint32_t out_limit;   /* as the engine was told; 0: no limit is needed any more */
    uint32_t raise_to;    /* the engine's ring was full: to be told */
    bool held, asking, ending;
    uint64_t stopped_ns;        /* since when choices that have begun stand at their limits; 0: they do not */
    enum lease_verdict verdict; /* of the last asking */
    struct lease_ask ask;
    struct budget_wish wish;   /* of the present asking */
    struct budget_hold budget; /* of the key's budget; nothing: it has none */
    uint64_t budgeted;         /* units of the present asking that the budget has given; 0: not yet */
    uint32_t *told;            /* [choices]: ids told by events that came here, FINISHED */
};

static void fill_charge(const struct exchange *exchange, uint32_t part, struct charge *charge)
{
    memcpy(charge->charge_id, api_call_uuid(exchange->call), sizeof charge->charge_id);
    uint8_t digest[32];
    sha256(exchange->request_id, strlen(exchange->request_id), digest);
    memcpy(charge->request_id, digest, sizeof charge->request_id);
    charge->part = part;
    charge->account = exchange->caller.account;
    charge->key = exchange->caller.key;
    char far[MODEL_NAME_MAX + 1] = "", *far_names[] = {far};
    if (exchange->relay) strncpy(far, exchange_relay_model(exchange), sizeof far - 1);
    char *const *names = exchange->relay ? far_names : exchange->served->names.items;
    uint32_t names_count = exchange->relay ? 1 : exchange->served->names.count;
    memcpy(charge->tenant, exchange->caller.tenant_name, sizeof charge->tenant);
    strncpy(charge->model, names[0], sizeof charge->model - 1);
    if (exchange->admission.has_key)
        memcpy(charge->idempotency, exchange->admission.digest, sizeof charge->idempotency);
    prices_fill(exchange->set->prices, prices_find(exchange->set->prices, names, names_count), charge);
}

static uint32_t least_of(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Without packages there is nothing to hold, and no limit to raise. */
static uint32_t first_tokens(const struct exchange *exchange, const struct request *request)
{
    if (request->given) return request->given->count;
    if (exchange->relay) return request->max_tokens; /* U3: an upstream cannot be paused */
    return meter_enforces(exchange->set->billing->meter) ? least_of(request->max_tokens, HOLD_TOKENS)
                                                         : request->max_tokens;
}

bool exchange_bill_begin(struct exchange *exchange)
{
    if (!exchange->set->billing || exchange->prepaid) return true;
    uint32_t choices = 0;
    for (uint32_t i = 0; i < exchange->requests_count; i++) choices += exchange->requests[i].choices_count;
    exchange->billed = mem_alloc(exchange->requests_count, sizeof *exchange->billed);
    exchange->billed_counts = mem_alloc(choices, sizeof *exchange->billed_counts);
    exchange->billed_choices = mem_alloc(choices, sizeof *exchange->billed_choices);
    if (!exchange->billed || !exchange->billed_counts || !exchange->billed_choices) return false;
    uint32_t before = 0;
    for (uint32_t i = 0; i < exchange->requests_count; i++) {
        struct billed *billed = &exchange->billed[i];
        struct request *request = billed->request = &exchange->requests[i];
        struct charge *charge = &billed->metered.charge;
        fill_charge(exchange, i, charge);
        billed->metered.choices = exchange->billed_choices + before;
        billed->told = exchange->billed_counts + before;
        before += request->choices_count;
        billed->token_units = charge->weight_out_ppm * request->choices_count;
        uint64_t weight_in =
            charge->weight_in_ppm > charge->weight_hit_ppm ? charge->weight_in_ppm : charge->weight_hit_ppm;
        uint64_t input = weight_in * request->prompt_count;
        uint64_t first = first_tokens(exchange, request);
        billed->input_units = input;
        billed->ask = (struct lease_ask){.least = input + (first ? billed->token_units : 0),
                                         .most = input + first * billed->token_units};
        if (request->given) billed->ask.least = billed->ask.most; /* all of it is there: none is cut off */
        if (billed->ask.most > UNITS_MAX) billed->ask.most = UNITS_MAX;
        if (billed->ask.least == 0) billed->ask.least = billed->ask.most = 1; /* free, and the account must be open */
        request->charge = charge;
    }
    return true;
}

/* How many ids of each choice a first hold pays for. */
static void set_first_limit(const struct exchange *exchange, struct billed *billed, uint64_t got)
{
    struct request *request = billed->request;
    uint64_t tokens = billed->token_units ? (got - billed->input_units) / billed->token_units : request->max_tokens;
    billed->out_limit = tokens < request->max_tokens ? (uint32_t)tokens : 0;
    request->out_limit = billed->out_limit;
    if (exchange->relay) billed->out_limit = 0; /* it asks for so much and no more: exchange_relay_submit */
}

/* First of the key's budget, then as much, or less, of the account's packages. */
static enum lease_verdict hold(struct exchange *exchange, struct billed *billed, uint64_t *got)
{
    struct budget_link *budgets = exchange->set->budgets;
    uint64_t key = exchange->caller.key;
    if (!billed->budgeted) {
        enum lease_verdict verdict = budget_link_hold(budgets, key, billed->ask.least, billed->ask.most, &billed->wish,
                                                      &billed->budget, &billed->budgeted);
        exchange->budget_empty = verdict == LEASE_EMPTY;
        if (verdict != LEASE_WAITS) billed->wish = (struct budget_wish){0};
        if (verdict != LEASE_HELD) return verdict;
        billed->ask.most = billed->budgeted;
    }
    enum lease_verdict verdict = meter_hold(exchange->set->billing->meter, &billed->metered, &billed->ask, got);
    if (verdict == LEASE_WAITS) return verdict;
    uint64_t unused = billed->budgeted - (verdict == LEASE_HELD ? *got : 0);
    budget_link_less(budgets, key, &billed->budget, unused);
    billed->budgeted = 0;
    return verdict;
}

enum lease_verdict exchange_bill_hold(struct exchange *exchange)
{
    if (!exchange->billed) return LEASE_HELD;
    for (uint32_t i = 0; i < exchange->requests_count; i++) {
        struct billed *billed = &exchange->billed[i];
        uint64_t got;
        if (billed->held) continue;
        enum lease_verdict verdict = hold(exchange, billed, &got);
        if (verdict != LEASE_HELD) return verdict;
        billed->held = true;
        set_first_limit(exchange, billed, got);
    }
    return LEASE_HELD;
}

void exchange_bill_drop(struct exchange *exchange)
{
    if (!exchange->billed) return;
    for (uint32_t i = 0; i < exchange->requests_count; i++) {
        struct billed *billed = &exchange->billed[i];
        meter_drop(exchange->set->billing->meter, &billed->metered);
        budget_link_settle(exchange->set->budgets, exchange->caller.key, &billed->budget, 0);
    }
}

void exchange_bill_free(struct exchange *exchange)
{
    mem_free(exchange->billed);
    mem_free(exchange->billed_counts);
    mem_free(exchange->billed_choices);
}

/* ---- while it runs ---- */

static void raise_limit(struct exchange *exchange, struct billed *billed)
{
    if (billed->raise_to && engine_raise(exchange->served->engine, billed->request->id, billed->raise_to))
        billed->raise_to = 0;
}

/* No choice can go on. One that has not begun may find no room as long as the others keep theirs: it is waited for, but
 * not without end. */
static bool at_limit(struct billed *billed)
{
    bool stopped = false, all = true;
    for (uint32_t i = 0; i < billed->request->choices_count; i++) {
        uint32_t told = billed->told[i];
        if (told > 0 && told < billed->out_limit) {
            billed->stopped_ns = 0;
            return false;
        }
        if (told == 0) all = false;
        if (told >= billed->out_limit && told != FINISHED) stopped = true;
    }
    if (!stopped) return false;
    if (!billed->stopped_ns) billed->stopped_ns = clock_ns();
    return all || clock_ns() - billed->stopped_ns >= BEGIN_WAIT_MS * NS_PER_MS;
}

static enum cause end_cause(const struct billed *billed)
{
    return billed->verdict == LEASE_EMPTY    ? CAUSE_QUOTA_END
           : billed->verdict == LEASE_CLOSED ? CAUSE_ACCOUNT_STOP
                                             : CAUSE_PLATFORM_CANCEL;
}

/* It may end by itself before the engine hears of this: what the client is told is decided by how it did end
 * (take_end). */
static void end_request(struct exchange *exchange, struct billed *billed)
{
    billed->ending = engine_cancel(exchange->served->engine, billed->request->id, end_cause(billed));
}

/* Without a ledger the call cannot go on: none of its prompts. */
static void take_end(struct exchange *exchange, const struct billed *billed)
{
    if (!billed->ending || exchange->failed || end_cause(billed) != CAUSE_PLATFORM_CANCEL ||
        billed->request->usage.cause != CAUSE_PLATFORM_CANCEL)
        return;
    refusal_error(REFUSE_BILLING, RETRY_AFTER_MS_MIN, &exchange->error);
    exchange_cancel(exchange, CAUSE_PLATFORM_CANCEL);
    exchange_fail(exchange, &exchange->error);
}

static void ask_more(struct exchange *exchange, struct billed *billed)
{
    uint64_t got;
    if (!billed->asking) {
        uint32_t more = least_of(billed->request->max_tokens - billed->out_limit, HOLD_TOKENS);
        billed->ask =
            (struct lease_ask){.least = billed->token_units, .most = more * billed->token_units, .running = true};
    }
    billed->verdict = hold(exchange, billed, &got);
    billed->asking = billed->verdict == LEASE_WAITS;
    if (billed->verdict == LEASE_HELD) {
        billed->stopped_ns = 0;
        billed->out_limit += (uint32_t)(got / billed->token_units);
        billed->raise_to = billed->out_limit;
        raise_limit(exchange, billed);
        if (billed->out_limit >= billed->request->max_tokens) billed->out_limit = 0;
    } else if (billed->verdict != LEASE_WAITS && at_limit(billed)) {
        end_request(exchange, billed);
    }
}

static void look_after(struct exchange *exchange, struct billed *billed)
{
    if (!billed->request->owner || billed->ending) return; /* it has ended, or will */
    raise_limit(exchange, billed);
    if (!billed->out_limit) return;
    uint32_t most = 0;
    for (uint32_t i = 0; i < billed->request->choices_count; i++)
        if (billed->told[i] != FINISHED && billed->told[i] > most) most = billed->told[i];
    if (billed->asking || most + HOLD_TOKENS / 2 >= billed->out_limit) ask_more(exchange, billed);
}

void exchange_bill_event(struct exchange *exchange, const struct event *event)
{
    if (!exchange->billed) return;
    struct billed *billed = &exchange->billed[event->request - exchange->requests];
    if (event->kind == REQUEST_DONE) {
        budget_link_settle(exchange->set->budgets, exchange->caller.key, &billed->budget, billed->metered.units);
        take_end(exchange, billed);
    }
    if (event->kind != CHOICE_TOKENS) return;
    billed->told[event->choice] = event->finish == FINISH_NONE ? event->output_count : FINISHED;
    if (!billed->asking) look_after(exchange, billed);
}

void exchange_bill_tick(struct exchange *exchange)
{
    if (!exchange->billed || exchange->alive == 0) return;
    for (uint32_t i = 0; i < exchange->requests_count; i++) look_after(exchange, &exchange->billed[i]);
}
