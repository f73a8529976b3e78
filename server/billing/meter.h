/* The meter: the thread that stands between the engines and the io thread and commits what passes.
 *
 *   engines --event rings--> [ frames -> journal_commit -> ledger in the process ] --rings--> io thread
 *                                                    \--> emitter (behind the durable LSN)
 *
 * An event comes out of a port only when the journal holds what it tells: a token's STEP (J3), a request's FINAL (J4).
 * So the io thread need not know the journal: it renders what it gets. While a commit is under way the engines go on;
 * their next events are one commit more. Full rings stop an engine, not lose anything.
 *
 * Steps are counted one ahead: OPEN counts the first id of each choice, the STEP of an id the one after it. That commit
 * runs while the device computes, so a token that comes is already on disk and leaves at once; only a request's end
 * waits for its own commit. The journal is never behind what was sent, and before it by at most one step; FINAL has the
 * exact count.
 *
 * The journal, the ledger in the process and the leases are behind one mutex (`work` for the first two, `leases` for
 * the third, in this order). io takes only `leases`, which is never held over a system call.
 *
 * A commit that fails for good (journal.h) ends the service: nothing more comes out of the ports until the io thread
 * has failed its calls and says so (meter_let_go). */
#ifndef SERVER_BILLING_METER_H
#define SERVER_BILLING_METER_H

#include "scheduler/engine.h"
#include "server/billing/billing_stats.h"
#include "server/billing/journal.h"
#include "server/billing/lease.h"
#include "server/billing/ledger_client.h"

#include <stdbool.h>
#include <stdint.h>

struct energy_note;
struct meter;
struct meter_port;

struct metered_choice {
    uint32_t told;    /* ids that events have told */
    uint32_t counted; /* ids that STEPs have counted: one more while it runs */
    uint64_t round;   /* of the meter, in which that was last raised */
};

/* What a billed request's `charge` points into: filled by io before engine_submit, then the meter's until REQUEST_DONE.
 */
struct metered {
    struct charge charge;           /* first: request->charge is this */
    uint64_t held;                  /* units, under the leases' mutex; the functions below change it */
    uint64_t units;                 /* what its FINAL charges; io may read it after REQUEST_DONE */
    struct metered_choice *choices; /* [choices_count], zero; io's memory */
    /* meter: */
    bool open;
    uint32_t handle;
    struct open_counts opened;
};

struct meter_config {
    struct journal_config journal;
    const struct clock *clock;
    bool enforce;               /* packages: holds are taken from leases; else every hold is granted */
    bool remote;                /* the ledger is Redis: an emitter answers grants */
    struct lease_config leases; /* of enforce */
    bool unseen_waived;
    struct billing_stats *stats; /* borrowed */
    uint64_t keep_ms;            /* of segments that the ledger has confirmed */
    void (*wake)(void *state);   /* any thread: events or answers are there for io */
    void *wake_state;
};

/* Opens the journal (which recovers) and the ledger, and starts the thread. As journal_open and ledger_store_open. */
NODISCARD enum status meter_create(const struct meter_config *config, struct meter **meter,
                                   struct journal_report *report, struct error *err);
/* Ends the thread; from here meter_poll does its work on the caller's thread, so that engines stopped after this call
 * can still be emptied (order: meter_stop, engine_stop, meter_poll until empty, meter_port_close, meter_finish,
 * meter_destroy). */
void meter_stop(struct meter *meter);
/* All ports are closed: gives leases back and commits. After it nothing more becomes durable. */
void meter_finish(struct meter *meter);
void meter_destroy(struct meter *meter);

/* One engine's events. io thread. close: before engine_stop of an engine that others outlive; nothing may be in it. */
NODISCARD enum status meter_port_open(struct meter *meter, struct engine *engine, struct meter_port **port);
void meter_port_close(struct meter_port *port);
/* A port without an engine: io tells it the events of requests that other servers answer, in an engine's order, and
 * takes them out by meter_poll. tell: all of them or, when there is no room, none and false. io thread. */
NODISCARD enum status meter_port_open_told(struct meter *meter, struct meter_port **port);
NODISCARD bool meter_tell(struct meter_port *port, const struct event *events, uint32_t count);
void meter_wake(struct meter *meter); /* an engine has events: engine_config.wake, with the meter as state's target */
bool meter_poll(struct meter_port *port, struct event *event); /* io thread */

bool meter_enforces(const struct meter *meter); /* packages: holds are taken */

/* J5: whether a new request may start; why_not: static, for the log and for 503's message. Any thread. */
bool meter_accepts(struct meter *meter, const char **why_not);
/* The journal has failed for good (exit code 3); let_go: calls are failed, pass events on without it. io thread. */
bool meter_failed(const struct meter *meter);
void meter_let_go(struct meter *meter);

/* What a charge used in a price slot, for the next round's commit; billing_note_energy says the rest. Any thread. */
NODISCARD enum status meter_note_energy(struct meter *meter, const struct energy_note *note);

/* Holds (lease.h): lease_hold under the mutex. HELD: metered->held has grown by *got. WAITS: ask again when
 * meter_answers has changed. Without enforcement always HELD, with all of ask->most. io thread. */
enum lease_verdict meter_hold(struct meter *meter, struct metered *metered, struct lease_ask *ask, uint64_t *got);
void meter_drop(struct meter *meter, struct metered *metered); /* never scheduled: the hold goes back */
uint64_t meter_answers(const struct meter *meter);             /* changes with each answer of the ledger. Any thread */
void meter_leases_sum(struct meter *meter, struct lease_sums *sums); /* zero without enforcement */
void meter_release_leases(struct meter *meter);                      /* at drain */

/* The emitter's side; its thread. */
uint64_t meter_durable_lsn(const struct meter *meter);
void meter_durable_hook(struct meter *meter, void (*durable)(void *state, uint64_t lsn),
                        void *state); /* before ports */
void meter_granted(struct meter *meter, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open);
void meter_ledger_state(struct meter *meter, bool reachable, bool refuses);
void meter_applied(struct meter *meter, uint16_t partition, uint64_t hwm, const char *hash8);

/* The ledger in this process, for admin calls and /v1/usage (not when `remote`). Its calls may wait for a commit: any
 * thread but io's, one at a time or many. Valid as long as the meter. */
void meter_ledger_client(struct meter *meter, struct ledger_client *client);

#endif
