/* Guards of ledger.c that a test takes out one at a time, to show that tests/ledger/ finds each of them missing. Works
 * as scheduler/planted.h does: a normal build has all guards, PLANTED_LEDGER is the constant false there. The build of
 * tests/ledger with MILLRACE_PLANTED chooses one at run time (mutations.py). */
#ifndef SERVER_BILLING_LEDGER_PLANTED_H
#define SERVER_BILLING_LEDGER_PLANTED_H

enum ledger_planted {
    LEDGER_PLANTED_NONE,
    LEDGER_PLANTED_UUID,         /* another ledger's records are taken */
    LEDGER_PLANTED_FENCE,        /* an older epoch is taken */
    LEDGER_PLANTED_DUPLICATE,    /* a record at or below the mark is applied again */
    LEDGER_PLANTED_SAME_HASH,    /* another record under the last number passes as a duplicate */
    LEDGER_PLANTED_GAP,          /* a record beyond the next is applied */
    LEDGER_PLANTED_CHAIN,        /* a record of another past is applied */
    LEDGER_PLANTED_ROOM,         /* a counter may leave int64 */
    LEDGER_PLANTED_LEASE_FIRST,  /* free units pay before leases */
    LEDGER_PLANTED_CLASS,        /* any package pays any model class */
    LEDGER_PLANTED_LIVE,         /* an expired or future package pays */
    LEDGER_PLANTED_OVERAGE,      /* what nobody pays is forgotten */
    LEDGER_PLANTED_CLOSED,       /* a closed account gets grants */
    LEDGER_PLANTED_LEAST,        /* a grant below its least is given */
    LEDGER_PLANTED_LEASE_CAP,    /* leases of a producer may pass 2^53 */
    LEDGER_PLANTED_RENEW,        /* a grant that adds nothing does not renew */
    LEDGER_PLANTED_GRANT_CLASS,  /* a grant's answer counts leases of other classes */
    LEDGER_PLANTED_BACK_EXPIRED, /* a lease on an expired package comes back free */
    LEDGER_PLANTED_ORDER_DUP,    /* a repeated order counts again */
    LEDGER_PLANTED_ORDER_TERMS,  /* a repeated order with other terms is DUP */
    LEDGER_PLANTED_EXISTS,       /* an existing package is added again */
    LEDGER_PLANTED_LIMIT,        /* a package may pass its limit */
    LEDGER_PLANTED_INC_EXPIRED,  /* an expired package is increased */
    LEDGER_PLANTED_ORDER_OF_USE, /* packages are used as they came */
    LEDGER_PLANTED_VOID_EXPIRY,  /* a voided package may come back */
    LEDGER_PLANTED_REAP_GRACE,   /* leases are reaped at once */
    LEDGER_PLANTED_UNSETTLE,     /* an increased package stays settled */
    LEDGER_PLANTED_COUNT
};

#ifdef MILLRACE_PLANTED
extern enum ledger_planted ledger_planted_bug;
#define PLANTED_LEDGER(bug) (ledger_planted_bug == LEDGER_PLANTED_##bug)
#else
#define PLANTED_LEDGER(bug) (LEDGER_PLANTED_##bug == LEDGER_PLANTED_NONE)
#endif

#endif
