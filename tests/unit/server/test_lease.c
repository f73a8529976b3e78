/* Leases: the rules of lease.h one by one, then nodes against a ledger of a few lines under random load. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "server/billing/lease.h"
#include "server/billing/record.h"

enum { S = 1000 }; /* a second of the tests' clock, which counts in ms */
#define MS UINT64_C(1000000)

static const struct lease_config plain = {.valid_ns = 120 * S * MS,
                                          .rate_window_ns = 30 * S * MS,
                                          .idle_ns = 60 * S * MS,
                                          .retry_ns = 10 * S * MS,
                                          .answer_ns = 5 * S * MS,
                                          .dry_ns = 50 * MS,
                                          .window_units = 1000,
                                          .outage = OUTAGE_REJECT};

static struct leases *make(enum outage_policy outage)
{
    struct lease_config config = plain;
    struct leases *leases;
    config.outage = outage;
    assert_int_equal(leases_create(&config, &leases), ST_OK);
    lease_ledger_state(leases, true, false, MS);
    return leases;
}

static enum lease_verdict ask(struct leases *leases, uint64_t units, uint64_t now_ms, uint64_t *held)
{
    struct lease_ask question = {.least = units, .most = units};
    return lease_hold(leases, 7, 0, &question, now_ms * MS, held);
}

/* Sends the next wish and answers it with `leased`. */
static struct grant_wish turn(struct leases *leases, uint64_t pseq, uint64_t leased, uint64_t now_ms)
{
    struct grant_wish wish;
    assert_true(lease_next_wish(leases, now_ms * MS, &wish));
    assert_false(wish.release);
    lease_sent(leases, &wish, pseq, now_ms * MS);
    lease_answered(leases, wish.account, wish.mclass, pseq, leased, true, now_ms * MS);
    return wish;
}

static void test_lease_waits_for_a_grant_then_holds(void **state)
{
    (void)state;
    struct leases *leases = make(OUTAGE_REJECT);
    struct lease_ask question = {.least = 10, .most = 100};
    uint64_t held;
    assert_int_equal(lease_hold(leases, 7, 0, &question, S * MS, &held), LEASE_WAITS);
    assert_int_equal(lease_hold(leases, 7, 0, &question, S * MS, &held), LEASE_WAITS);
    struct grant_wish wish = turn(leases, 1, 100, S);
    assert_int_equal(wish.want, 100); /* asked once, not twice */
    assert_int_equal(wish.least, 10);
    assert_int_equal(wish.valid_ms, 120 * S);
    assert_int_equal(lease_hold(leases, 7, 0, &question, S * MS, &held), LEASE_HELD);
    assert_int_equal(held, 100);
    lease_charged(leases, 7, 0, 60, 100);
    struct lease_sums sums;
    leases_sum(leases, S * MS, &sums);
    assert_true(sums.accounts == 1 && sums.leased == 40 && sums.headroom == 40 && sums.held == 0);
    leases_sum(leases, (121 * S) * MS, &sums);
    assert_true(sums.accounts == 0 && sums.leased == 0);
    assert_int_equal(ask(leases, 40, S, &held), LEASE_HELD); /* what was not used came back */
    lease_drop(leases, 7, 0, 40);
    assert_int_equal(ask(leases, 41, S, &held), LEASE_WAITS);
    leases_destroy(leases);
}

static void test_lease_gives_the_last_units_and_then_says_empty(void **state)
{
    (void)state;
    struct leases *leases = make(OUTAGE_REJECT);
    struct lease_ask first = {.least = 10, .most = 100}, second = first;
    uint64_t held;
    assert_int_equal(lease_hold(leases, 7, 0, &first, S * MS, &held), LEASE_WAITS);
    (void)turn(leases, 1, 30, S);
    assert_int_equal(lease_hold(leases, 7, 0, &first, S * MS, &held), LEASE_HELD);
    assert_int_equal(held, 30);
    assert_int_equal(lease_hold(leases, 7, 0, &second, S * MS, &held), LEASE_WAITS);
    struct grant_wish wish;
    assert_false(lease_next_wish(leases, (S + 49) * MS, &wish)); /* H5: not at once, it was dry */
    wish = turn(leases, 2, 30, S + 50);
    assert_int_equal(wish.want, 100);
    assert_int_equal(lease_hold(leases, 7, 0, &second, S * MS, &held), LEASE_EMPTY);
    assert_int_equal(held, 0);
    /* A top-up counts for the next one at once: the old "empty" is not believed. */
    assert_int_equal(ask(leases, 50, S + 51, &held), LEASE_WAITS);
    (void)turn(leases, 3, 80, S + 200);
    assert_int_equal(ask(leases, 50, S + 200, &held), LEASE_HELD);
    leases_destroy(leases);
}

static void test_lease_believes_no_answer_older_than_the_question(void **state)
{
    (void)state;
    struct leases *leases = make(OUTAGE_REJECT);
    struct lease_ask first = {.least = 10, .most = 10}, second = first;
    struct grant_wish wish;
    uint64_t held;
    assert_int_equal(lease_hold(leases, 7, 0, &first, S * MS, &held), LEASE_WAITS);
    assert_true(lease_next_wish(leases, S * MS, &wish));
    assert_int_equal(lease_hold(leases, 7, 0, &second, S * MS, &held), LEASE_WAITS); /* made, not yet sent */
    lease_sent(leases, &wish, 1, S * MS);
    lease_answered(leases, 7, 0, 1, 0, true, S * MS);
    assert_int_equal(lease_hold(leases, 7, 0, &first, S * MS, &held), LEASE_EMPTY);
    assert_int_equal(lease_hold(leases, 7, 0, &second, S * MS, &held), LEASE_WAITS); /* a top-up may lie between */
    assert_true(lease_next_wish(leases, 2 * S * MS, &wish));
    lease_sent(leases, &wish, 2, 2 * S * MS);
    lease_answered(leases, 7, 0, 1, 1000, true, 2 * S * MS); /* late, of another grant */
    assert_int_equal(lease_hold(leases, 7, 0, &second, 2 * S * MS, &held), LEASE_WAITS);
    lease_answered(leases, 7, 0, 2, 10, true, 2 * S * MS);
    assert_int_equal(lease_hold(leases, 7, 0, &second, 2 * S * MS, &held), LEASE_HELD);
    leases_destroy(leases);
}

/* An answer that gave all that was wanted does not say "nothing left", though others have taken it meanwhile. */
static void test_lease_asks_again_for_whom_others_overtook(void **state)
{
    (void)state;
    struct leases *leases = make(OUTAGE_REJECT);
    struct lease_ask first = {.least = 100, .most = 100};
    uint64_t held;
    assert_int_equal(lease_hold(leases, 7, 0, &first, S * MS, &held), LEASE_WAITS);
    (void)turn(leases, 1, 100, S);
    assert_int_equal(ask(leases, 100, S, &held), LEASE_HELD); /* comes later, is served first */
    assert_int_equal(lease_hold(leases, 7, 0, &first, S * MS, &held), LEASE_WAITS);
    assert_int_equal(turn(leases, 2, 200, S).want, 100);
    assert_int_equal(lease_hold(leases, 7, 0, &first, S * MS, &held), LEASE_HELD);
    leases_destroy(leases);
}

static void test_lease_takes_later_records_off_an_answer(void **state)
{
    (void)state;
    struct leases *leases = make(OUTAGE_REJECT);
    struct grant_wish wish;
    uint64_t held;
    assert_int_equal(ask(leases, 100, S, &held), LEASE_WAITS);
    (void)turn(leases, 1, 100, S);
    assert_int_equal(ask(leases, 100, S, &held), LEASE_HELD);
    assert_int_equal(ask(leases, 50, S, &held), LEASE_WAITS);
    assert_true(lease_next_wish(leases, S * MS, &wish));
    lease_sent(leases, &wish, 2, S * MS);
    lease_charged(leases, 7, 0, 100, 100); /* pseq 3: the answer to 2 does not know it */
    lease_answered(leases, 7, 0, 2, 150, true, S * MS);
    struct lease_view view;
    assert_true(lease_look(leases, 7, 0, S * MS, &view));
    assert_int_equal(view.headroom, 50);
    lease_answered(leases, 7, 0, 1, 1000, true, S * MS); /* an old one */
    assert_true(lease_look(leases, 7, 0, S * MS, &view));
    assert_int_equal(view.headroom, 50);
    leases_destroy(leases);
}

static void test_lease_ends_is_renewed_and_given_back(void **state)
{
    (void)state;
    struct leases *leases = make(OUTAGE_REJECT);
    struct grant_wish wish;
    uint64_t held;
    assert_int_equal(ask(leases, 100, S, &held), LEASE_WAITS);
    (void)turn(leases, 1, 100, S);
    assert_int_equal(ask(leases, 40, S, &held), LEASE_HELD);
    assert_false(lease_next_wish(leases, 59 * S * MS, &wish));
    wish = turn(leases, 2, 100, 62 * S); /* at half its time, as somebody holds */
    assert_int_equal(wish.want, 0);
    assert_int_equal(wish.least, 0);
    lease_ledger_state(leases, false, false, 63 * S * MS);
    assert_int_equal(ask(leases, 60, 181 * S, &held), LEASE_HELD);
    lease_drop(leases, 7, 0, 60);
    assert_int_equal(ask(leases, 60, 183 * S, &held), LEASE_OUTAGE); /* H3 */
    lease_drop(leases, 7, 0, 40);
    assert_int_equal(ask(leases, 1, 183 * S, &held), LEASE_OUTAGE); /* nor does what was held come back for use */
    lease_ledger_state(leases, true, false, 184 * S * MS);
    assert_int_equal(ask(leases, 100, 184 * S, &held), LEASE_WAITS);
    (void)turn(leases, 3, 100, 184 * S);
    assert_false(lease_next_wish(leases, 186 * S * MS, &wish));
    assert_true(lease_next_wish(leases, 260 * S * MS, &wish)); /* idle */
    assert_true(wish.release);
    assert_int_equal(ask(leases, 50, 260 * S, &held), LEASE_WAITS); /* it is on its way back */
    lease_sent(leases, &wish, 4, 260 * S * MS);
    wish = turn(leases, 5, 50, 260 * S);
    assert_int_equal(wish.want, 50);
    assert_int_equal(ask(leases, 50, 260 * S, &held), LEASE_HELD);
    lease_release_all(leases);
    assert_false(lease_next_wish(leases, 261 * S * MS, &wish)); /* held */
    lease_drop(leases, 7, 0, 50);
    assert_true(lease_next_wish(leases, 261 * S * MS, &wish));
    assert_true(wish.release);
    leases_destroy(leases);
}

static void test_lease_outage_policies(void **state)
{
    (void)state;
    uint64_t held;
    struct leases *leases = make(OUTAGE_CONTINUE);
    lease_ledger_state(leases, false, false, S * MS);
    assert_int_equal(ask(leases, 600, S, &held), LEASE_HELD);
    struct lease_ask rest = {.least = 100, .most = 600};
    assert_int_equal(lease_hold(leases, 7, 0, &rest, S * MS, &held), LEASE_HELD);
    assert_int_equal(held, 400);
    struct lease_sums sums;
    leases_sum(leases, S * MS, &sums);
    assert_int_equal(sums.credit, 1000);
    assert_int_equal(sums.held, 1000);
    assert_int_equal(sums.accounts, 0);
    assert_int_equal(ask(leases, 1, S, &held), LEASE_OUTAGE);
    lease_charged(leases, 7, 0, 600, 600);
    lease_charged(leases, 7, 0, 400, 400);
    /* The ledger was back for a moment and has nothing: no second window (H4). */
    lease_ledger_state(leases, true, false, 2 * S * MS);
    assert_int_equal(ask(leases, 1, 2 * S, &held), LEASE_WAITS);
    (void)turn(leases, 1, 0, 2 * S);
    lease_ledger_state(leases, false, false, 3 * S * MS);
    assert_int_equal(ask(leases, 1, 3 * S, &held), LEASE_OUTAGE);
    leases_destroy(leases);

    leases = make(OUTAGE_RETRY_REJECT);
    lease_ledger_state(leases, false, false, S * MS);
    struct lease_ask question = {.least = 5, .most = 5};
    assert_int_equal(lease_hold(leases, 7, 0, &question, S * MS, &held), LEASE_WAITS);
    assert_int_equal(lease_hold(leases, 7, 0, &question, 10 * S * MS, &held), LEASE_WAITS);
    lease_ledger_state(leases, true, false, 10 * S * MS);
    (void)turn(leases, 1, 5, 10 * S);
    assert_int_equal(lease_hold(leases, 7, 0, &question, 10 * S * MS, &held), LEASE_HELD);
    lease_ledger_state(leases, false, false, 10 * S * MS);
    struct lease_ask late = {.least = 5, .most = 5};
    assert_int_equal(lease_hold(leases, 7, 0, &late, 10 * S * MS, &held), LEASE_WAITS);
    assert_int_equal(lease_hold(leases, 7, 0, &late, 20 * S * MS, &held), LEASE_OUTAGE);
    leases_destroy(leases);
}

static void test_lease_refused_ledger_and_closed_account(void **state)
{
    (void)state;
    struct leases *leases = make(OUTAGE_CONTINUE);
    struct grant_wish wish;
    uint64_t held;
    lease_ledger_state(leases, true, true, S * MS);
    struct lease_ask question = {.least = 5, .most = 5}, running = {.least = 5, .most = 5, .running = true};
    assert_int_equal(lease_hold(leases, 7, 0, &question, S * MS, &held), LEASE_OUTAGE);
    assert_int_equal(lease_hold(leases, 7, 0, &running, S * MS, &held), LEASE_HELD);
    assert_false(lease_next_wish(leases, S * MS, &wish));
    lease_ledger_state(leases, true, false, S * MS);
    assert_int_equal(lease_hold(leases, 7, 0, &question, S * MS, &held), LEASE_WAITS);
    assert_true(lease_next_wish(leases, S * MS, &wish));
    lease_sent(leases, &wish, 1, S * MS);
    lease_answered(leases, 7, 0, 1, 0, false, S * MS);
    assert_int_equal(lease_hold(leases, 7, 0, &question, S * MS, &held), LEASE_CLOSED);
    struct lease_ask again = {.least = 5, .most = 5};
    assert_int_equal(lease_hold(leases, 7, 0, &again, S * MS, &held), LEASE_WAITS); /* may have been opened */
    assert_true(lease_next_wish(leases, 2 * S * MS, &wish));
    lease_sent(leases, &wish, 2, 2 * S * MS);
    lease_answered(leases, 7, 0, 2, 100, true, 2 * S * MS);
    assert_int_equal(lease_hold(leases, 7, 0, &again, 2 * S * MS, &held), LEASE_HELD);
    leases_destroy(leases);
}

static void test_lease_asks_again_when_an_answer_is_lost(void **state)
{
    (void)state;
    struct leases *leases = make(OUTAGE_REJECT);
    struct grant_wish wish;
    struct lease_ask question = {.least = 5, .most = 5};
    uint64_t held;
    assert_int_equal(lease_hold(leases, 7, 0, &question, S * MS, &held), LEASE_WAITS);
    assert_true(lease_next_wish(leases, S * MS, &wish));
    lease_sent(leases, &wish, 1, S * MS);
    assert_false(lease_next_wish(leases, 5 * S * MS, &wish));
    assert_false(lease_next_wish(leases, 8 * S * MS, &wish)); /* found by the walk ... */
    wish = turn(leases, 2, 5, 8 * S);                         /* ... and wished with its demand */
    assert_int_equal(wish.want, 5);
    lease_answered(leases, 7, 0, 1, 1000, true, 8 * S * MS);
    assert_int_equal(lease_hold(leases, 7, 0, &question, 8 * S * MS, &held), LEASE_HELD);
    assert_int_equal(ask(leases, 1, 8 * S, &held), LEASE_WAITS);
    assert_true(lease_next_wish(leases, 8 * S * MS, &wish));
    lease_sent(leases, &wish, 3, 8 * S * MS);
    lease_ledger_state(leases, false, false, 8 * S * MS);
    lease_ledger_state(leases, true, false, 8 * S * MS); /* the connection was lost: at once */
    wish = turn(leases, 4, 6, 8 * S);
    assert_int_equal(wish.want, 1 + 5 - 5);
    leases_destroy(leases);
}

/* The ledger is there and never answers for this account: its partition has stopped. Nobody waits without an end. */
static void test_lease_waiting_has_an_end(void **state)
{
    (void)state;
    struct leases *leases = make(OUTAGE_REJECT);
    struct lease_ask question = {.least = 10, .most = 10, .running = true};
    struct grant_wish wish;
    uint64_t held, now_ms = S, pseq = 0;
    enum lease_verdict verdict;
    while ((verdict = lease_hold(leases, 7, 0, &question, now_ms * MS, &held)) == LEASE_WAITS) {
        while (lease_next_wish(leases, now_ms * MS, &wish)) lease_sent(leases, &wish, ++pseq, now_ms * MS);
        now_ms += 100;
        assert_true(now_ms < 60 * S);
    }
    assert_int_equal(verdict, LEASE_OUTAGE);
    assert_int_equal(now_ms, 31 * S);
    assert_true(pseq > 1); /* it was asked for anew meanwhile */
    assert_int_equal(ask(leases, 10, now_ms, &held), LEASE_WAITS);
    leases_destroy(leases);
}

static void test_lease_classes_share_what_is_held(void **state)
{
    (void)state;
    struct leases *leases = make(OUTAGE_REJECT);
    struct lease_ask one = {.least = 80, .most = 80}, two = {.least = 80, .most = 80};
    struct lease_view view;
    uint64_t held;
    assert_int_equal(lease_hold(leases, 7, 1, &one, S * MS, &held), LEASE_WAITS);
    assert_int_equal(lease_hold(leases, 7, 2, &two, S * MS, &held), LEASE_WAITS);
    (void)turn(leases, 1, 100, S); /* one package of 100 pays for both classes */
    (void)turn(leases, 2, 100, S);
    assert_int_equal(lease_hold(leases, 7, 1, &one, S * MS, &held), LEASE_HELD);
    assert_int_not_equal(lease_hold(leases, 7, 2, &two, S * MS, &held), LEASE_HELD);
    lease_charged(leases, 7, 1, 80, 80);
    assert_true(lease_look(leases, 7, 2, S * MS, &view));
    assert_int_equal(view.headroom, 20);
    leases_destroy(leases);
}

/* ---- nodes against a ledger ---- */

enum { NODES = 4, ACCOUNTS = 3, REQUESTS = 24, RECORDS = 100000, GRACE_MS = 300 * S };

struct model_account {
    uint64_t granted, free, used, overage;
    uint64_t early; /* reaped from nodes that had spent it and could not say so */
    uint64_t leased[NODES], expires_ms[NODES];
    bool closed;
};

struct model_record {
    char kind; /* F G R */
    uint8_t account;
    uint64_t units, least, valid_ms;
};

struct node {
    struct leases *leases;
    struct model_record *records;
    uint32_t written, applied;
    bool connected, lose_answers;
};

struct flight {
    bool used, running, asking;
    uint8_t node, account;
    struct lease_ask ask;
    uint64_t held, used_units, wanted; /* wanted: in all */
};

struct world {
    uint64_t random, now_ms;
    struct lease_config config;
    struct model_account accounts[ACCOUNTS];
    struct node nodes[NODES];
    struct flight flights[REQUESTS];
    bool outages, top_ups;
    uint64_t held_verdicts, empty_verdicts, outage_verdicts, outages_count, partial;
};

static uint64_t pick(struct world *world, uint64_t below)
{
    return random_next(&world->random) % below;
}

static void model_apply(struct world *world, struct node *node, const struct model_record *record, uint64_t pseq)
{
    struct model_account *account = &world->accounts[record->account];
    size_t idx = (size_t)(node - world->nodes);
    if (record->kind == 'F') {
        uint64_t left = record->units, part = left < account->leased[idx] ? left : account->leased[idx];
        account->leased[idx] -= part;
        left -= part;
        part = left < account->free ? left : account->free;
        account->free -= part;
        account->overage += left - part;
        account->used += record->units;
        return;
    }
    if (record->kind == 'R') {
        account->free += account->leased[idx];
        account->leased[idx] = 0;
        return;
    }
    uint64_t part = record->units < account->free ? record->units : account->free;
    if (account->closed || part < record->least) part = 0;
    account->free -= part;
    account->leased[idx] += part;
    if (account->leased[idx] > 0) account->expires_ms[idx] = world->now_ms + record->valid_ms;
    if (!node->lose_answers)
        lease_answered(node->leases, (uint64_t)record->account + 1, 0, pseq, account->leased[idx], !account->closed,
                       world->now_ms * MS);
}

static void model_reap(struct world *world)
{
    for (int i = 0; i < ACCOUNTS; i++)
        for (int k = 0; k < NODES; k++) {
            struct model_account *account = &world->accounts[i];
            if (account->expires_ms[k] + GRACE_MS > world->now_ms) continue;
            if (world->nodes[k].applied < world->nodes[k].written) account->early += account->leased[k];
            account->free += account->leased[k];
            account->leased[k] = 0;
        }
}

static void write_record(struct node *node, struct model_record record)
{
    assert_true(node->written < RECORDS);
    node->records[node->written++] = record;
}

static void ask_more(struct world *world, struct flight *flight)
{
    struct node *node = &world->nodes[flight->node];
    uint64_t held;
    enum lease_verdict verdict =
        lease_hold(node->leases, (uint64_t)flight->account + 1, 0, &flight->ask, world->now_ms * MS, &held);
    if (verdict == LEASE_WAITS) return;
    flight->asking = false;
    if (verdict == LEASE_HELD) {
        assert_true(held >= flight->ask.least && held <= flight->ask.most);
        world->partial += held < flight->ask.most;
        flight->held += held;
        flight->running = true;
        world->held_verdicts++;
        return;
    }
    assert_int_equal(held, 0);
    world->empty_verdicts += verdict == LEASE_EMPTY;
    world->outage_verdicts += verdict == LEASE_OUTAGE;
    if (!flight->running)
        flight->used = false;
    else
        flight->wanted = flight->used_units; /* ends here */
}

static void end_flight(struct world *world, struct flight *flight)
{
    struct node *node = &world->nodes[flight->node];
    uint64_t units = flight->used_units;
    flight->used = false;
    if (!flight->running) return;
    if (units == 0 && pick(world, 2)) {
        lease_drop(node->leases, (uint64_t)flight->account + 1, 0, flight->held);
        return;
    }
    write_record(node, (struct model_record){.kind = 'F', .account = flight->account, .units = units});
    lease_charged(node->leases, (uint64_t)flight->account + 1, 0, units, flight->held);
}

static void step_flight(struct world *world, struct flight *flight)
{
    if (flight->asking) ask_more(world, flight);
    if (!flight->used || !flight->running) return;
    uint64_t can = flight->held - flight->used_units, more = pick(world, 40);
    flight->used_units += more < can ? more : can;
    if (flight->used_units >= flight->wanted || pick(world, 100) == 0) {
        if (flight->used_units > flight->wanted) flight->used_units = flight->wanted;
        end_flight(world, flight);
        return;
    }
    if (flight->asking || flight->held - flight->used_units > 30) return;
    flight->asking = true;
    flight->ask = (struct lease_ask){.least = 1, .most = 50 + pick(world, 50), .running = true};
}

static void step_node(struct world *world, struct node *node)
{
    struct grant_wish wish;
    while (lease_next_wish(node->leases, world->now_ms * MS, &wish)) {
        write_record(node, (struct model_record){.kind = wish.release ? 'R' : 'G',
                                                 .account = (uint8_t)(wish.account - 1),
                                                 .units = wish.want,
                                                 .least = wish.least,
                                                 .valid_ms = wish.valid_ms});
        lease_sent(node->leases, &wish, node->written, world->now_ms * MS);
    }
    if (!node->connected) return;
    for (uint64_t count = pick(world, 6); count > 0 && node->applied < node->written; count--) {
        node->applied++;
        model_apply(world, node, &node->records[node->applied - 1], node->applied);
    }
}

static void set_connected(struct world *world, struct node *node, bool connected)
{
    if (node->connected && !connected) world->outages_count++;
    node->connected = connected;
    node->lose_answers = false;
    lease_ledger_state(node->leases, connected, false, world->now_ms * MS);
}

static void step_faults(struct world *world)
{
    if (world->top_ups && pick(world, 400) == 0) {
        struct model_account *account = &world->accounts[pick(world, ACCOUNTS)];
        uint64_t units = pick(world, 3000);
        account->granted += units;
        account->free += units;
    }
    struct node *node = &world->nodes[pick(world, NODES)];
    if (pick(world, 300) == 0) { /* a reset in the middle of answers: some were applied, none was seen */
        node->lose_answers = true;
        step_node(world, node);
        bool connected = node->connected;
        set_connected(world, node, false);
        set_connected(world, node, connected);
    }
    if (!world->outages) return;
    if (node->connected ? pick(world, 600) == 0 : pick(world, 300) == 0) set_connected(world, node, !node->connected);
}

static void step_world(struct world *world, bool load)
{
    world->now_ms += pick(world, 20) ? pick(world, 30) : pick(world, 30 * S);
    for (int i = 0; i < REQUESTS; i++) {
        struct flight *flight = &world->flights[i];
        if (flight->used) {
            step_flight(world, flight);
        } else if (load && pick(world, 30) == 0) {
            uint64_t most = 20 + pick(world, 100);
            *flight = (struct flight){.used = true, .asking = true, .wanted = pick(world, 300)};
            flight->node = (uint8_t)pick(world, NODES);
            flight->account = (uint8_t)pick(world, ACCOUNTS);
            flight->ask = (struct lease_ask){.least = 1 + pick(world, most), .most = most};
        }
    }
    for (int i = 0; i < NODES; i++) step_node(world, &world->nodes[i]);
    model_reap(world);
}

/* Everybody is connected, the load has ended: all must come to rest, nothing may be left held or leased. */
static void come_to_rest(struct world *world)
{
    for (int i = 0; i < NODES; i++) set_connected(world, &world->nodes[i], true);
    for (int i = 0; i < 20000; i++) step_world(world, false);
    for (int i = 0; i < REQUESTS; i++) assert_false(world->flights[i].used);
    for (int i = 0; i < NODES; i++) lease_release_all(world->nodes[i].leases);
    for (int i = 0; i < 2000; i++) step_world(world, false);
    for (int k = 0; k < NODES; k++) {
        struct lease_view view;
        assert_int_equal(world->nodes[k].applied, world->nodes[k].written);
        for (int i = 0; i < ACCOUNTS; i++)
            if (lease_look(world->nodes[k].leases, (uint64_t)i + 1, 0, world->now_ms * MS, &view))
                assert_int_equal(view.held, 0);
    }
    for (int i = 0; i < ACCOUNTS; i++) {
        const struct model_account *account = &world->accounts[i];
        for (int k = 0; k < NODES; k++) assert_int_equal(account->leased[k], 0);
        assert_int_equal(account->granted + account->overage, account->free + account->used);
    }
}

static struct world *run_world(uint64_t seed, enum outage_policy outage, bool outages, bool top_ups)
{
    static struct world world;
    memset(&world, 0, sizeof world);
    world.random = seed;
    world.now_ms = S;
    world.config = plain;
    world.config.outage = outage;
    world.outages = outages;
    world.top_ups = top_ups;
    for (int i = 0; i < NODES; i++) {
        static struct model_record records[NODES][RECORDS];
        world.nodes[i].records = records[i];
        assert_int_equal(leases_create(&world.config, &world.nodes[i].leases), ST_OK);
        set_connected(&world, &world.nodes[i], true);
    }
    for (int i = 0; i < ACCOUNTS; i++) world.accounts[i].granted = world.accounts[i].free = pick(&world, 60000);
    for (int i = 0; i < 20000; i++) {
        step_faults(&world);
        step_world(&world, true);
    }
    come_to_rest(&world);
    for (int i = 0; i < NODES; i++) leases_destroy(world.nodes[i].leases);
    return &world;
}

static uint64_t first_seed(void)
{
    const char *given = getenv("MILLRACE_TEST_SEED");
    return given ? strtoull(given, NULL, 10) : 1;
}

/* Lost answers and reconnects at once, but no time without the ledger: no overspend at all, whatever comes. */
static void test_lease_no_overspend_with_the_ledger(void **state)
{
    (void)state;
    uint64_t held = 0, empty = 0, partial = 0;
    for (uint64_t seed = first_seed(); seed < first_seed() + 12; seed++) {
        const struct world *world = run_world(seed, seed % 2 ? OUTAGE_REJECT : OUTAGE_CONTINUE, false, seed % 3 == 0);
        for (int i = 0; i < ACCOUNTS; i++)
            if (world->accounts[i].overage) fail_msg("seed %llu: overspent", (unsigned long long)seed);
        held += world->held_verdicts;
        empty += world->empty_verdicts;
        partial += world->partial;
    }
    print_message("held %llu (partial %llu), empty %llu\n", (unsigned long long)held, (unsigned long long)partial,
                  (unsigned long long)empty);
    assert_true(held > 10000 && empty > 1000 && partial > 100);
}

/* Many outages: at most the window, once a node and account, as no top-up pays for it in between (H4). In those that
 * last longer than a lease and its grace, what was spent of the lease may be gone too. */
static void test_lease_overspend_in_outages_within_the_window(void **state)
{
    (void)state;
    uint64_t overspent = 0, outages = 0;
    for (uint64_t seed = first_seed(); seed < first_seed() + 12; seed++) {
        const struct world *world = run_world(seed, OUTAGE_CONTINUE, true, false);
        outages += world->outages_count;
        for (int i = 0; i < ACCOUNTS; i++) {
            uint64_t overage = world->accounts[i].overage;
            overspent += overage;
            if (overage > NODES * plain.window_units + world->accounts[i].early)
                fail_msg("seed %llu: overspent by %llu", (unsigned long long)seed, (unsigned long long)overage);
        }
    }
    print_message("outages %llu, overspent %llu\n", (unsigned long long)outages, (unsigned long long)overspent);
    assert_true(outages > 100 && overspent > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lease_waits_for_a_grant_then_holds),
        cmocka_unit_test(test_lease_gives_the_last_units_and_then_says_empty),
        cmocka_unit_test(test_lease_believes_no_answer_older_than_the_question),
        cmocka_unit_test(test_lease_asks_again_for_whom_others_overtook),
        cmocka_unit_test(test_lease_takes_later_records_off_an_answer),
        cmocka_unit_test(test_lease_ends_is_renewed_and_given_back),
        cmocka_unit_test(test_lease_outage_policies),
        cmocka_unit_test(test_lease_refused_ledger_and_closed_account),
        cmocka_unit_test(test_lease_asks_again_when_an_answer_is_lost),
        cmocka_unit_test(test_lease_waiting_has_an_end),
        cmocka_unit_test(test_lease_classes_share_what_is_held),
        cmocka_unit_test(test_lease_no_overspend_with_the_ledger),
        cmocka_unit_test(test_lease_overspend_in_outages_within_the_window),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
