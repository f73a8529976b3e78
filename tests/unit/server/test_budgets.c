/* Keys' budgets: the ledger's rule, its book, the node's table by itself, then nodes against one ledger under random
 * load, lost answers and kills. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "server/billing/budget_book.h"
#include "server/billing/budgets.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MS UINT64_C(1000000)
enum { NOVEMBER_24 = 1795478400 }; /* 2026-11-24T00:00:00Z */

static const struct key_budget monthly = {.units = 6400, .period = BUDGET_MONTH};

/* ---- the rule ---- */

static void test_periods(void **state)
{
    (void)state;
    assert_int_equal(budget_period_number(BUDGET_MONTH, NOVEMBER_24, 0), 202611);
    assert_int_equal(budget_period_number(BUDGET_DAY, NOVEMBER_24, 0), NOVEMBER_24 / 86400);
    assert_int_equal(budget_period_number(BUDGET_DAY, NOVEMBER_24 - 1, 8 * 3600), NOVEMBER_24 / 86400);
    assert_int_equal(budget_period_number(BUDGET_MONTH, NOVEMBER_24 + 7 * 86400 - 1, 0), 202611);
    assert_int_equal(budget_period_number(BUDGET_MONTH, NOVEMBER_24 + 7 * 86400 - 1, 3600), 202612);
    assert_int_equal(budget_period_number(BUDGET_TOTAL, NOVEMBER_24, 0), 0);
    enum budget_period period;
    assert_true(budget_period_parse("total", &period));
    assert_int_equal(period, BUDGET_TOTAL);
    assert_false(budget_period_parse("", &period));
    assert_false(budget_period_parse("week", &period));
}

static uint64_t decide(bool known, uint64_t have, uint64_t want, uint64_t reserve, bool release, uint64_t before,
                       uint64_t others)
{
    const struct budget_ask ask = {.budget = {1000, BUDGET_DAY},
                                   .known = known,
                                   .have = have,
                                   .want = want,
                                   .reserve = reserve,
                                   .release = release};
    struct budget_answer answer;
    budget_decide(&ask, before, others, &answer);
    assert_int_equal(answer.base, known ? have : before);
    assert_int_equal(answer.others, others);
    return answer.taken;
}

static void test_rule(void **state)
{
    (void)state;
    assert_int_equal(decide(false, 0, 100, 0, false, 0, 0), 100);
    assert_int_equal(decide(false, 0, 100, 50, false, 0, 0), 150);
    assert_int_equal(decide(false, 0, 100, 500, false, 0, 0), 100 + 900 / 8); /* of the reserve an eighth of the rest */
    assert_int_equal(decide(false, 7, 100, 0, false, 300, 0), 400);           /* B3: what is not known counts as used */
    assert_int_equal(decide(true, 200, 100, 0, false, 300, 0), 300);
    assert_int_equal(decide(true, 200, 100, 0, false, 300, 0), 300); /* B1 */
    assert_int_equal(decide(true, 200, 900, 0, false, 300, 500), 500);
    assert_int_equal(decide(true, 200, 900, 9, false, 300, 1200), 300); /* never less than was told */
    assert_int_equal(decide(true, 200, 0, 0, true, 300, 0), 200);
    assert_int_equal(decide(true, 1500, 10, 10, false, 300, 0), 1500); /* what was used was used */
}

/* ---- the book ---- */

struct folder {
    char path[64];
};

static void folder_make(struct folder *folder)
{
    strcpy(folder->path, "/tmp/millrace-budget-XXXXXX");
    assert_non_null(mkdtemp(folder->path));
}

static void folder_remove(struct folder *folder)
{
    char file[96];
    (void)snprintf(file, sizeof file, "%s/budgets", folder->path);
    (void)unlink(file);
    assert_int_equal(rmdir(folder->path), 0);
}

static struct budget_answer book(const struct folder *folder, struct budget_ask ask, int64_t unix_s)
{
    struct budget_answer answer;
    struct error err;
    assert_int_equal(budget_book_ask(disk_system(), folder->path, unix_s, &ask, &answer, &err), ST_OK);
    return answer;
}

static void test_book(void **state)
{
    (void)state;
    struct folder folder;
    folder_make(&folder);
    struct budget_ask ask = {.key = 0xabc, .producer = 1, .budget = monthly, .want = 100};
    assert_int_equal(book(&folder, ask, NOVEMBER_24).taken, 100);
    ask.producer = 0xfedcba9876543210;
    ask.want = 6350;
    struct budget_answer answer = book(&folder, ask, NOVEMBER_24);
    assert_int_equal(answer.taken, 6300);
    assert_int_equal(answer.others, 100);
    assert_int_equal(answer.number, 202611);
    ask.look = true;
    assert_int_equal(book(&folder, ask, NOVEMBER_24).taken, 6300);
    ask.key = 7; /* another key's are its own */
    assert_int_equal(book(&folder, ask, NOVEMBER_24).taken + book(&folder, ask, NOVEMBER_24).others, 0);
    ask.key = 0xabc;
    assert_int_equal(book(&folder, ask, NOVEMBER_24 + 7 * 86400).taken, 0); /* the next month, only looked at */
    ask.look = false;
    ask.known = true;
    ask.number = 202611;
    ask.have = 6300;
    answer = book(&folder, ask, NOVEMBER_24 + 7 * 86400);
    assert_int_equal(answer.number, 202612);
    assert_int_equal(answer.base, 0); /* that was another month's */
    assert_int_equal(answer.taken, 6350);
    answer = book(&folder, ask, NOVEMBER_24); /* B4: a clock that goes back */
    assert_int_equal(answer.number, 202612);
    assert_int_equal(answer.taken, 6350);
    ask.budget.period = BUDGET_TOTAL; /* another kind begins anew */
    ask.known = false;
    ask.want = 1;
    assert_int_equal(book(&folder, ask, NOVEMBER_24).taken, 1);
    folder_remove(&folder);
}

static void test_damaged_book(void **state)
{
    (void)state;
    static const char *const lines[] = {"x",
                                        "\n",
                                        "0000000000000abc month 202611 0000000000000001 100", /* no end */
                                        "0000000000000abc month 202611 0000000000000001 100 \n",
                                        "0000000000000abc week 202611 0000000000000001 100\n",
                                        "0000000000000abc month 202611 0000000000000001 -1\n",
                                        "0000000000000abc month 202611 0000000000000001 9999999999999999999999\n",
                                        "00000000000000000abc month 202611 0000000000000001 1\n",
                                        "0000000000000abc month 202611 0000000000000001 9007199254740992\n"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct folder folder;
        struct budget_answer answer;
        struct error err;
        const struct budget_ask ask = {.key = 0xabc, .producer = 1, .budget = monthly, .want = 100};
        char file[96];
        folder_make(&folder);
        (void)snprintf(file, sizeof file, "%s/budgets", folder.path);
        FILE *out = fopen(file, "wb");
        assert_non_null(out);
        assert_true(fputs(lines[i], out) >= 0 && fclose(out) == 0);
        assert_int_equal(budget_book_ask(disk_system(), folder.path, NOVEMBER_24, &ask, &answer, &err), ST_INVAL);
        assert_non_null(strstr(err.message, "line 1"));
        folder_remove(&folder);
    }
}

/* ---- a node ---- */

static const struct budgets_config plain = {.producer = 1,
                                            .idle_ns = 60000 * MS,
                                            .dry_ns = 50 * MS,
                                            .ask_again_ns = 1000 * MS,
                                            .retry_ns = 10000 * MS,
                                            .window_units = 500,
                                            .outage = OUTAGE_REJECT};

static struct budgets *node(enum outage_policy outage)
{
    struct budgets_config config = plain;
    struct budgets *budgets;
    config.outage = outage;
    assert_int_equal(budgets_create(&config, &budgets), ST_OK);
    return budgets;
}

static struct budget_time at(uint64_t ms)
{
    return (struct budget_time){ms * MS, NOVEMBER_24 + (int64_t)(ms / 1000)};
}

struct asker {
    struct budget_wish wish;
    struct budget_hold hold;
    uint64_t got;
};

static enum lease_verdict hold(struct budgets *budgets, struct asker *asker, uint64_t least, uint64_t most, uint64_t ms)
{
    return budgets_hold(budgets, 7, &monthly, least, most, at(ms), &asker->wish, &asker->hold, &asker->got);
}

static struct budget_ask answer(struct budgets *budgets, uint64_t base, uint64_t taken, uint64_t ms)
{
    struct budget_ask ask;
    assert_true(budgets_next(budgets, at(ms), &ask));
    budgets_answered(budgets, &(struct budget_answer){.number = 202611, .base = base, .taken = taken}, ms * MS);
    return ask;
}

static void test_node(void **state)
{
    (void)state;
    struct budgets *budgets = node(OUTAGE_REJECT);
    struct budget_ask ask;
    struct asker one = {0}, two = {0}, three = {0};
    assert_int_equal(hold(budgets, &one, 10, 100, 0), LEASE_WAITS);
    assert_int_equal(hold(budgets, &one, 10, 100, 0), LEASE_WAITS);
    ask = answer(budgets, 40, 240, 1);
    assert_int_equal(ask.want, 100); /* asked once, not twice */
    assert_int_equal(ask.reserve, 100);
    assert_false(ask.known);
    assert_int_equal(hold(budgets, &one, 10, 100, 2), LEASE_HELD);
    assert_int_equal(one.got, 100);
    assert_int_equal(hold(budgets, &two, 10, 100, 2), LEASE_HELD); /* of the reserve */
    budgets_settle(budgets, 7, &one.hold, 30);
    ask = answer(budgets, 170, 170 + 70, 3); /* that was the last of it: it asks in time */
    assert_int_equal(ask.have, 40 + 30 + 100);
    assert_int_equal(hold(budgets, &three, 10, 1000, 4), LEASE_WAITS);
    ask = answer(budgets, 170, 200, 100); /* nearly nothing is left: what there is */
    assert_int_equal(hold(budgets, &three, 10, 1000, 101), LEASE_HELD);
    assert_int_equal(three.got, 30);
    struct asker four = {0};
    assert_int_equal(hold(budgets, &four, 10, 10, 102), LEASE_WAITS);
    assert_false(budgets_next(budgets, at(103), &ask)); /* it was asked a moment ago */
    ask = answer(budgets, 200, 200, 160);
    assert_int_equal(hold(budgets, &four, 10, 10, 161), LEASE_EMPTY);
    budgets_less(budgets, 7, &two.hold, 50); /* what another request gives back is there */
    four = (struct asker){0};
    assert_int_equal(hold(budgets, &four, 10, 10, 162), LEASE_HELD);
    budgets_settle(budgets, 7, &two.hold, 0);
    budgets_settle(budgets, 7, &three.hold, 0);
    budgets_settle(budgets, 7, &four.hold, 10);
    assert_false(budgets_next(budgets, at(1000), &ask));
    assert_true(budgets_next(budgets, at(61000), &ask)); /* idle: it goes back */
    assert_true(ask.release);
    assert_int_equal(ask.have, 80);
    budgets_answered(budgets, NULL, 61000 * MS);
    one = (struct asker){0};
    assert_int_equal(hold(budgets, &one, 1, 1, 61001), LEASE_OUTAGE); /* B2: it is not ours any more */
    budgets_destroy(budgets);
}

static void test_next_month(void **state)
{
    (void)state;
    struct budgets *budgets = node(OUTAGE_REJECT);
    struct asker one = {0}, two = {0};
    uint64_t december = 7 * 86400 * UINT64_C(1000);
    assert_int_equal(hold(budgets, &one, 10, 100, december - 1000), LEASE_WAITS);
    (void)answer(budgets, 0, 6400, december - 1000);
    assert_int_equal(hold(budgets, &one, 10, 100, december - 999), LEASE_HELD);
    assert_int_equal(hold(budgets, &two, 10, 100, december + 1), LEASE_WAITS);
    struct budget_ask ask;
    assert_true(budgets_next(budgets, at(december + 1), &ask));
    assert_int_equal(ask.number, 202611);
    budgets_answered(budgets, &(struct budget_answer){.number = 202612, .taken = 200}, (december + 2) * MS);
    assert_int_equal(hold(budgets, &two, 10, 100, december + 2), LEASE_HELD);
    budgets_settle(budgets, 7, &one.hold, 100); /* November's */
    struct asker three = {0};
    assert_int_equal(hold(budgets, &three, 100, 100, december + 3), LEASE_HELD);
    budgets_destroy(budgets);
}

static void test_outage(void **state)
{
    (void)state;
    struct budget_ask ask;
    struct budgets *budgets = node(OUTAGE_CONTINUE);
    struct asker one = {0};
    assert_int_equal(hold(budgets, &one, 10, 400, 0), LEASE_WAITS);
    assert_true(budgets_next(budgets, at(0), &ask));
    budgets_answered(budgets, NULL, 0);
    assert_int_equal(hold(budgets, &one, 10, 400, 1), LEASE_HELD); /* on credit */
    struct asker two = {0};
    assert_int_equal(hold(budgets, &two, 10, 400, 2), LEASE_HELD);
    assert_int_equal(one.got + two.got, 500); /* all of the window, and no more */
    struct asker three = {0};
    assert_int_equal(hold(budgets, &three, 10, 400, 3), LEASE_OUTAGE);
    budgets_settle(budgets, 7, &one.hold, 400);
    (void)answer(budgets, 300, 1100, 2000); /* 300 of an earlier life; what went on credit counts, too */
    assert_int_equal(hold(budgets, &three, 10, 400, 2001), LEASE_HELD);
    assert_int_equal(three.got, 300);
    budgets_destroy(budgets);
}

static void test_outage_waits(void **state)
{
    (void)state;
    struct budget_ask ask;
    struct budgets *budgets = node(OUTAGE_RETRY_REJECT);
    struct asker one = {0};
    assert_int_equal(hold(budgets, &one, 10, 400, 1), LEASE_WAITS);
    assert_true(budgets_next(budgets, at(1), &ask));
    budgets_answered(budgets, NULL, MS);
    assert_int_equal(hold(budgets, &one, 10, 400, 2), LEASE_WAITS);
    assert_false(budgets_next(budgets, at(500), &ask));
    assert_true(budgets_next(budgets, at(1002), &ask)); /* again after a second */
    budgets_answered(budgets, NULL, 1002 * MS);
    assert_int_equal(hold(budgets, &one, 10, 400, 10001), LEASE_OUTAGE);
    (void)answer(budgets, 0, 400, 10500);
    one = (struct asker){0};
    assert_int_equal(hold(budgets, &one, 10, 400, 10501), LEASE_HELD);
    budgets_destroy(budgets);
}

/* ---- nodes and a ledger ---- */

enum { NODES = 3, ASKERS = 8, STEPS = 4000 };

/* A ledger of a few lines: budget.c's rule over what each node has taken. */
struct few {
    uint64_t taken[NODES];
};

static struct budget_answer few_ask(struct few *ledger, const struct budget_ask *ask)
{
    struct budget_answer answer = {.number = 202611};
    uint64_t others = 0;
    for (uint64_t i = 0; i < NODES; i++)
        if (i != ask->producer) others += ledger->taken[i];
    budget_decide(ask, ledger->taken[ask->producer], others, &answer);
    ledger->taken[ask->producer] = answer.taken;
    return answer;
}

static uint64_t below(uint64_t *random, uint64_t bound)
{
    return random_next(random) % bound;
}

static void one_world(uint64_t seed)
{
    struct budgets *nodes[NODES];
    struct asker askers[NODES][ASKERS];
    struct few ledger = {{0}};
    uint64_t used = 0, refused_with = UINT64_MAX;
    uint32_t kills = 0;
    memset(askers, 0, sizeof askers);
    uint64_t random = seed;
    for (uint64_t i = 0; i < NODES; i++) {
        struct budgets_config config = plain;
        config.producer = i;
        assert_int_equal(budgets_create(&config, &nodes[i]), ST_OK);
    }
    for (uint64_t ms = 0; ms < STEPS; ms++) {
        uint64_t i = below(&random, NODES);
        struct asker *asker = &askers[i][below(&random, ASKERS)];
        struct budget_ask ask;
        if (asker->hold.units > 0) {
            uint64_t part = below(&random, asker->hold.units + 1);
            used += part;
            budgets_settle(nodes[i], 7, &asker->hold, part);
            *asker = (struct asker){0};
        } else if (hold(nodes[i], asker, 1, 1 + below(&random, 40), ms * 10) == LEASE_EMPTY) {
            uint64_t taken = 0;
            for (uint64_t k = 0; k < NODES; k++) taken += ledger.taken[k];
            if (monthly.units - taken < refused_with) refused_with = monthly.units - taken;
            *asker = (struct asker){0};
        }
        if (below(&random, 3) && budgets_next(nodes[i], at(ms * 10), &ask)) {
            bool arrives = below(&random, 10) > 0, comes_back = arrives && below(&random, 10) > 0;
            struct budget_answer told = {0};
            if (arrives) told = few_ask(&ledger, &ask);
            budgets_answered(nodes[i], comes_back ? &told : NULL, ms * 10 * MS);
        }
        if (below(&random, 1000) == 0 && kills < 3) { /* what ran is waived, its holds are gone */
            struct budgets_config config = plain;
            config.producer = i;
            kills++;
            budgets_destroy(nodes[i]);
            assert_int_equal(budgets_create(&config, &nodes[i]), ST_OK);
            memset(askers[i], 0, sizeof askers[i]);
        }
        uint64_t held = 0, taken = 0;
        for (uint64_t k = 0; k < NODES; k++) {
            taken += ledger.taken[k];
            for (uint64_t n = 0; n < ASKERS; n++) held += askers[k][n].hold.units;
        }
        assert_true(used + held <= taken && taken <= monthly.units);
    }
    assert_true(refused_with == UINT64_MAX || refused_with < 64);
    uint64_t taken = 0;
    for (uint64_t i = 0; i < NODES; i++) {
        struct budget_ask ask;
        for (uint64_t n = 0; n < ASKERS; n++) budgets_settle(nodes[i], 7, &askers[i][n].hold, 0);
        budgets_give_back(nodes[i]);
        while (budgets_next(nodes[i], at(STEPS * 10 + 2000), &ask)) {
            struct budget_answer told = few_ask(&ledger, &ask);
            budgets_answered(nodes[i], &told, (STEPS * 10 + 2000) * MS);
        }
        taken += ledger.taken[i];
        budgets_destroy(nodes[i]);
    }
    if (kills == 0) assert_true(taken >= used); /* lost first answers cost a reserve; nothing else does */
    assert_true(used > monthly.units / 2);
}

static void test_nodes_and_a_ledger(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) one_world(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_periods),
        cmocka_unit_test(test_rule),
        cmocka_unit_test(test_book),
        cmocka_unit_test(test_damaged_book),
        cmocka_unit_test(test_node),
        cmocka_unit_test(test_next_month),
        cmocka_unit_test(test_outage),
        cmocka_unit_test(test_outage_waits),
        cmocka_unit_test(test_nodes_and_a_ledger),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
