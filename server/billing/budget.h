/* A key's budget: the most that a key may use of what its account pays for, in a day, in a month or at all. An account
 * may give its keys more than it has: packages end requests first.
 *
 *   directory line of the key: "budget": units, "budget_period": "day", "month" or "total"
 *
 * For a key and period the ledger keeps how many units each node (producer) has taken of it: what it has used, what its
 * running requests hold, and a reserve, so that most requests need not ask. Their sum is never raised above the budget.
 *
 * B1  What a node says of itself is absolute (`have`): a question that is asked twice takes nothing twice.
 * B2  A node lowers its own number first and tells the ledger then, so a lost answer never gives units twice.
 * B3  A process that has just begun does not know what the one before it used: all that was taken counts as used. A
 *     kill costs the key at most the node's reserve and holds until the period ends; a drained node costs nothing.
 * B4  The ledger's clock says which period it is, and it never goes back; days and months are those of bills (UTC
 *     offset). A request counts in the period in which it has held units last.
 *
 * This file: the data and the rule of the ledger in the process; its twin is mr_budget of ledger.lua. Pure. */
#ifndef SERVER_BILLING_BUDGET_H
#define SERVER_BILLING_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

enum budget_period { BUDGET_NONE, BUDGET_DAY, BUDGET_MONTH, BUDGET_TOTAL };

#define BUDGET_UNITS_MAX UINT64_C(9007199254740991) /* what JSON and Lua carry exactly: 9e9 tokens of weight 1 */

struct key_budget {
    uint64_t units; /* 0 with BUDGET_NONE, else at most BUDGET_UNITS_MAX */
    enum budget_period period;
};

const char *budget_period_name(enum budget_period period); /* "day", "month", "total"; "" of BUDGET_NONE */
bool budget_period_parse(const char *text, enum budget_period *period);
/* Days since 1970, a month as 202611, or 0: grows with time. */
uint64_t budget_period_number(enum budget_period period, int64_t unix_s, int32_t utc_offset_s);

struct budget_ask {
    uint64_t key, producer;
    struct key_budget budget;
    int32_t utc_offset_s;
    bool look;       /* tells what is there and changes nothing; what follows is then not read */
    bool known;      /* have and number are: not for a process that has just begun (B3) */
    uint64_t number; /* the period that have is of */
    uint64_t have;   /* used and held by this producer; all below BUDGET_UNITS_MAX */
    uint64_t want, reserve;
    bool release; /* what was taken beyond have goes back (B2) */
};

struct budget_answer {
    uint64_t number; /* the period it is */
    uint64_t base;   /* of this producer: `have` as the ledger counts it (B3) */
    uint64_t taken;  /* of this producer, now: at least base */
    uint64_t others; /* taken by all others */
};

/* What the producer has now, given what it and others had taken before in this period: want as far as there is room,
 * and of the reserve at most an eighth of what then is left, so that near the end nobody keeps much from others. */
void budget_decide(const struct budget_ask *ask, uint64_t before, uint64_t others, struct budget_answer *answer);

#endif
