/* What this node may still spend of its accounts: leases from the ledger, holds of running requests, outages.
 *
 *   ledger --lease (absolute, with the pseq of the grant it answers)--> headroom = lease - own later records - holds
 *
 * An admission takes a hold from the headroom and never asks anybody; when the headroom runs low a grant is wanted,
 * which the caller writes to the journal and sends. So a request waits for the ledger only when its account has no
 * lease that is large enough yet. Terms: 3GPP TS 32.291 (reserve, quota validity, threshold). Rules:
 *
 * H1  A hold covers all input at its weight and HOLD_TOKENS of output a choice; further HOLD_TOKENS while it runs,
 *     before they are used. What a record charges comes out of its hold first. Near the end of a package a hold may be
 *     smaller than asked for, so that the last units can be used.
 * H2  At most one grant of an account and class is under way. Its answer counts from the pseq it was written at: what
 *     is written later is taken off it. An answer that does not come within answer_ns is asked for anew; a question
 *     that got nothing in six times that ends as in an outage, though the ledger is there (its partition may stand).
 * H3  A lease is spent only while it is valid (monotonic clock, counted from sending). Renewed at half its time, or
 *     when less than half a rate window is left; given back when the account was idle for idle_ns, or at drain. When it
 *     ends before that, what is charged and held stays covered; what was free is lost.
 * H4  Without the ledger: leases as long as they are valid, then what `outage` says. No credit for an account that had
 *     nothing when the ledger last answered: else each short outage would give it the window again.
 * H5  "Nothing left" is said only after the answer to a grant that was made after the question. So a top-up counts at
 *     once; an account without anything asks its ledger once every dry_ns, however often its clients come.
 * H6  Classes of one account share its holds and charges: packages may pay for several classes, so units that one class
 *     has taken are gone for all of them until the ledger says otherwise. Never too much, at times too little.
 *
 * Pure: times go in, verdicts and wishes come out. The caller serialises calls (one mutex; they take microseconds). */
#ifndef SERVER_BILLING_LEASE_H
#define SERVER_BILLING_LEASE_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { HOLD_TOKENS = 512 };

enum outage_policy { OUTAGE_REJECT, OUTAGE_CONTINUE, OUTAGE_RETRY_REJECT };

struct lease_config {
    uint64_t valid_ns;       /* asked for: 120 s */
    uint64_t rate_window_ns; /* a grant asks for this much of the account's rate: 30 s */
    uint64_t idle_ns;        /* 60 s */
    uint64_t retry_ns;       /* OUTAGE_RETRY_REJECT waits this long: 10 s */
    uint64_t answer_ns;      /* H2: 5 s */
    uint64_t dry_ns;         /* H5: 50 ms */
    uint64_t window_units;   /* W: credit of an account on this node in an outage; 0: none */
    enum outage_policy outage;
};

enum lease_verdict {
    LEASE_HELD,   /* the hold is taken */
    LEASE_WAITS,  /* a grant is under way or wanted: ask again when its answer is there, or at the deadline */
    LEASE_EMPTY,  /* the ledger gives no more: 402 insufficient_quota, or the end of a running request (QUOTA_END) */
    LEASE_CLOSED, /* the account is closed */
    LEASE_OUTAGE  /* no ledger, and the policy gives nothing: 503 with Retry-After */
};

struct leases;

NODISCARD enum status leases_create(const struct lease_config *config, struct leases **leases);
void leases_destroy(struct leases *leases);

/* A question for units; the asker keeps it while the answer is LEASE_WAITS, and asks again with the same. */
struct lease_ask {
    uint64_t least,
        most;     /* 0 < least <= most <= UNITS_MAX: most, or near a package's end what there is down to least */
    bool running; /* for a request that is under way: goes on where new ones are refused (`refuses`) */
    /* own; zero at the first time */
    uint64_t ticket, asked_ns;
};

/* Takes a hold for a request of the account's class, *held of units, or says why not (*held 0). ST_ does not apply:
 * memory that is not there is LEASE_OUTAGE. */
enum lease_verdict lease_hold(struct leases *leases, uint64_t account, uint8_t mclass, struct lease_ask *ask,
                              uint64_t now_ns, uint64_t *held);
/* Gives a hold back that no record was written for (never scheduled), or the unused part of one. */
void lease_drop(struct leases *leases, uint64_t account, uint8_t mclass, uint64_t units);
/* A record was written: `units` of it, `held` in hold for it until now. */
void lease_charged(struct leases *leases, uint64_t account, uint8_t mclass, uint64_t units, uint64_t held);

struct grant_wish {
    uint64_t account;
    uint8_t mclass;
    bool release; /* a release of everything the node leases on the account, instead of a grant */
    uint64_t want, least, valid_ms;
};
/* What to write next, if anything; the caller writes the record and calls lease_sent with its pseq, in the same order
 * as records of the account are written. A wish that was not sent comes again after answer_ns. Call it after each
 * commit and every few ms, until it is false. */
bool lease_next_wish(struct leases *leases, uint64_t now_ns, struct grant_wish *wish);
void lease_sent(struct leases *leases, const struct grant_wish *wish, uint64_t pseq, uint64_t now_ns);
/* The ledger's answer to the grant of that pseq; that of an older one is ignored. open: the account is. After it, who
 * waits for the account asks again. */
void lease_answered(struct leases *leases, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open,
                    uint64_t now_ns);
/* Whether the ledger answers at all (at first: no); from false to true all grants under way are asked for anew: after
 * each lost connection, too. Who waits asks again. refuses: it answers and must not
 * be used (another ledger, lost history): no new request. */
void lease_ledger_state(struct leases *leases, bool reachable, bool refuses, uint64_t now_ns);
/* Everything goes back as soon as nothing is held of it: at drain. */
void lease_release_all(struct leases *leases);

struct lease_view {
    uint64_t leased, held, headroom; /* units; held: of all classes */
    uint64_t outage_spent;           /* of the window, charged or held */
    bool valid, open;
};
/* Over all accounts, for metrics: takes as long as a walk over them. */
struct lease_sums {
    uint64_t accounts;               /* with a lease */
    uint64_t leased, held, headroom; /* units; leased and headroom of valid leases */
    uint64_t credit;                 /* given in outages, since the start */
};
void leases_sum(const struct leases *leases, uint64_t now_ns, struct lease_sums *sums);
bool lease_look(const struct leases *leases, uint64_t account, uint8_t mclass, uint64_t now_ns,
                struct lease_view *view);

#endif
