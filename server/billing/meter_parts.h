/* What the meter's files share: its inside.
 *
 *   meter.c         life, thread, ports, rounds
 *   meter_events.c  what an event becomes in the journal
 *   meter_energy.c  energy notes, from any thread to the journal
 *   meter_ledger.c  what a durable record does to the ledger in the process; its client; leases
 *
 * Everything is behind `work` but for what says otherwise. */
#ifndef SERVER_BILLING_METER_PARTS_H
#define SERVER_BILLING_METER_PARTS_H

#include "runtime/base/doorbell.h"
#include "runtime/base/ring.h"
#include "server/billing/energy_record.h"
#include "server/billing/ledger_store.h"
#include "server/billing/meter.h"

#include <pthread.h>
#include <stdatomic.h>

enum {
    PORT_EVENTS = 8192,     /* room of a port's ring, and of what waits for a commit */
    STEP_COUNTS_MAX = 4096, /* of one STEP frame */
    ROUND_IDLE_MS = 100,    /* no events: how long until time is looked at */
    ACK_EVERY_MS = 1000,    /* marks that changed are noted in the journal this often */
    RETIRE_EVERY_MS = 60000,
    ENERGY_NOTES_MAX = 16384 /* that wait for a round */
};

struct meter_port {
    struct meter *meter;
    struct engine *engine; /* NULL: io tells, by `in` */
    struct ring in;        /* io -> meter, without an engine */
    struct ring out;       /* meter -> io */
    uint32_t waiting; /* of this port in meter->pending */
    struct meter_port *next;
};

/* Notes that wait; one to be filled and one to be written, so that the writer holds no mutex. */
struct meter_notes {
    struct energy_note *items;
    uint32_t count, capacity;
};

/* An event that may go out when the journal is durable up to lsn; before its commit lsn is UINT64_MAX. */
struct pending_event {
    struct meter_port *port;
    struct event event;
    uint64_t lsn;
};

struct meter_ack {
    uint64_t hwm, noted;
    char hash8[HASH8_CHARS + 1];
};

struct meter {
    struct meter_config config;
    pthread_mutex_t work;
    struct journal *journal;
    struct ledger_store *store; /* NULL: remote */
    struct meter_port *ports;
    struct pending_event *pending;
    uint32_t pending_count, pending_capacity;
    uint64_t round;  /* the present one's number */
    bool busy;       /* it has let something out before its commit */
    bool ledger_due; /* a frame that the ledger follows was written */
    struct {
        uint64_t lsn;
        enum ledger_answer answer;
        uint32_t leases, packages;
    } order; /* the answer to the last ORDER or ACCOUNT frame */
    struct step_count steps[STEP_COUNTS_MAX];
    uint32_t steps_count;
    uint64_t acked_ns, retired_ns, committed_lsn;

    pthread_mutex_t leases_mutex;
    struct leases *leases; /* NULL: nothing is enforced; under leases_mutex */

    pthread_mutex_t acks_mutex;
    struct meter_ack acks[PARTITIONS]; /* under acks_mutex */

    pthread_mutex_t energy_mutex;
    struct meter_notes noted;   /* under energy_mutex */
    struct meter_notes writing; /* under work */

    pthread_t thread, spare_thread;
    bool stopped; /* io: both are joined */
    _Atomic bool stop, failed, let_go, accepts;
    _Atomic(const char *) why_not;
    _Atomic uint64_t answers, durable_lsn;
    void (*durable)(void *state, uint64_t lsn);
    void *durable_state;

    struct doorbell doorbell;
    pthread_mutex_t spare_mutex;
    pthread_cond_t spare_condition;
    bool spare_wanted, spare_made; /* under spare_mutex */
};

/* meter_events.c: writes what the event tells into the journal's memory. *counted: what it tells is in a commit of an
 * earlier round, so it may go out now. ST_NOMEM: as a failed commit. */
NODISCARD enum status meter_note_event(struct meter *meter, const struct event *event, bool *counted);
NODISCARD enum status meter_flush_steps(struct meter *meter);
/* meter_energy.c: what was noted since the last round, into the journal's memory. ST_NOMEM: as a failed commit. */
NODISCARD enum status meter_write_energy(struct meter *meter);
void meter_drop_energy(struct meter *meter); /* `failed` is set: what waits is in no book */
void meter_energy_free(struct meter *meter);
/* meter_ledger.c */
NODISCARD enum status meter_send_wishes(struct meter *meter, uint64_t now_ns);
/* What became durable, to the ledger in the process. */
NODISCARD enum status meter_follow(struct meter *meter);
void meter_save_ledger(struct meter *meter, bool at_end); /* when a snapshot is due, or at the end */

#endif
