/* What this node may still use of keys' budgets: the node's side of budget.h, as lease.h is of packages.
 *
 *   taken (by the ledger's last answer) - used - held = left
 *
 * A request takes a hold of what is left and asks nobody; when little is left, the ledger is asked for more, a question
 * at a time. "Nothing left" is said only after the answer to a question that was asked later than the request came; a
 * key that has nothing asks once every dry_ns. Without the ledger: what is left, then what `outage` says.
 *
 * Pure: times go in, verdicts and questions come out. One thread. */
#ifndef SERVER_BILLING_BUDGETS_H
#define SERVER_BILLING_BUDGETS_H

#include "runtime/base/status.h"
#include "server/billing/budget.h"
#include "server/billing/lease.h"

struct budgets_config {
    uint64_t producer;
    int32_t utc_offset_s;
    uint64_t idle_ns;      /* a key without holds gives its reserve back after this long: 60 s */
    uint64_t dry_ns;       /* 50 ms */
    uint64_t ask_again_ns; /* after a failure: 1 s */
    uint64_t retry_ns;     /* OUTAGE_RETRY_REJECT waits this long */
    uint64_t window_units; /* OUTAGE_CONTINUE: credit of a key on this node */
    enum outage_policy outage;
};

/* What a request waits for; zero at first, then as it was. */
struct budget_wish {
    uint64_t ticket, asked_ns;
};

/* What a request holds; zero at first. */
struct budget_hold {
    uint64_t units, number; /* number: the period's */
};

struct budget_time {
    uint64_t now_ns; /* monotonic */
    int64_t unix_s;
};

struct budgets;

NODISCARD enum status budgets_create(const struct budgets_config *config, struct budgets **budgets);
void budgets_destroy(struct budgets *budgets);

/* Adds *got of least to most units to the hold, or says why not (*got 0): LEASE_WAITS, LEASE_EMPTY, LEASE_OUTAGE.
 * budget: as the directory has it now. */
enum lease_verdict budgets_hold(struct budgets *budgets, uint64_t key, const struct key_budget *budget, uint64_t least,
                                uint64_t most, struct budget_time time, struct budget_wish *wish,
                                struct budget_hold *hold, uint64_t *got);
/* `units` of a hold go back. */
void budgets_less(struct budgets *budgets, uint64_t key, struct budget_hold *hold, uint64_t units);
/* All of it goes back but what was used, which may be more than was held. */
void budgets_settle(struct budgets *budgets, uint64_t key, struct budget_hold *hold, uint64_t used);

/* The next question, if there is one and none is under way; to be followed by budgets_answered. */
bool budgets_next(struct budgets *budgets, struct budget_time time, struct budget_ask *ask);
/* NULL: no answer. Who waits asks again. */
void budgets_answered(struct budgets *budgets, const struct budget_answer *answer, uint64_t now_ns);
/* From here every reserve goes back as soon as nothing is held: at the end. */
void budgets_give_back(struct budgets *budgets);

#endif
