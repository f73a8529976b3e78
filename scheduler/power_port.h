/* Between an engine and the thread that holds the node's watts: orders in, records of steps and of who was in them out.
 * Neither side waits.
 *
 *   power thread --power_port_order--> words under a sequence number --power_port_begin--> joule bucket,
 * sched_set_power power thread <--power_port_take--- ring of step records <--------power_port_stepped--- engine thread
 *
 * An order holds until the next one; before the first there is no limit. A record that finds the ring full is counted,
 * and its joules belong to nobody. An engine whose bucket is empty sleeps; its doorbell still wakes it.
 *
 * A step is paid twice over: as it is planned, by the energy model, for its room; and once it has run, by how long it
 * took, for the difference. Its duration is known, and the watts of a step lie between narrow bounds; the joules that a
 * model predicts for a new mix of tokens were seen 60 % off, and the meter tells so 0.1 to 0.3 s later. Over steps that
 * last a third to three times as long as the usual one, means of a second are off by 0.5 % this way, by up to 56 % the
 * other (tests/unit/server/test_power_loop.c).
 *
 * W1. Without a limit a step costs one atomic load, two stores and a record. W2. Who has created a port frees it, after
 * its engine has stopped. W3. What a step pays in the end depends on how long it took, not on
 * what was predicted. W4. While the bucket is in debt, interactive work goes on within the overdraft, and flex and
 * batch wait until it is paid: a prompt of 64 tokens then need not wait for watts that a batch has just used. W5.
 * Priority's own work may be ahead by much more under a soft target (throttle_ahead), in an account of its own: flex
 * and batch wait until that is paid, and default has three quarters of the watts meanwhile. Without it one request's
 * full power for a tenth of a second had to be saved up first: the time to the first token at a target of -40 % was 1.5
 * times that of no limit at p99. Init, free: one thread. */
#ifndef SCHEDULER_POWER_PORT_H
#define SCHEDULER_POWER_PORT_H

#include "runtime/base/ring.h"
#include "runtime/base/seqlock.h"
#include "runtime/power/draw_model.h"
#include "scheduler/sched.h"
#include "scheduler/throttle.h"

/* Records between two looks of the power thread; 32768 shares are 500 steps of 64 sequences. */
enum { POWER_STEPS_MAX = 4096, POWER_SHARES_MAX = 32768 };

struct power_order {
    double allowance_w;     /* of work above idle; infinity: no limit */
    double idle_w, range_w; /* as in sched_power */
    double overdraft_j;     /* that interactive work may be ahead (W4) */
    double ahead_j;         /* that priority's may (W5) */
    struct draw_model draw; /* 0: steps cost what was predicted */
    struct energy_model model;
    uint64_t holds_deferrable, paces_default; /* 0 or 1 */
    uint64_t caps_rows, rows_most, step_ms;   /* as in sched_power */
};

struct power_step {
    uint64_t start_ns, end_ns; /* on the device */
    struct energy_work work;
    double joules; /* above idle, as paid: first as predicted, then for as long as it has taken */
    double urgent; /* share of it that is priority's */
    /* the port's: */
    uint64_t shares_end; /* shares told with this step and before it, of all time */
    uint32_t shares;     /* of this step; 0: they did not fit */
    struct power_missed {
        uint64_t start_ns, end_ns;
        struct energy_work work; /* steps 0: none */
    } missed;                    /* steps before this one whose records did not fit, together */
};

enum { POWER_ORDER_WORDS = sizeof(struct power_order) / sizeof(uint64_t) };
_Static_assert(sizeof(struct power_order) % sizeof(uint64_t) == 0, "copied in words");

struct power_port {
    struct seqlock lock;
    _Atomic uint64_t words[POWER_ORDER_WORDS];
    struct ring steps;
    _Atomic uint64_t busy_ns;  /* when the device began with the oldest step under way; 0: there is none */
    _Atomic uint64_t paced_ns; /* slept with work there, for power; of all time */
    _Atomic uint64_t lost;     /* steps whose record, or whose shares, found the ring full */
    struct ring shares;
    uint64_t shares_taken; /* power thread */
    /* engine thread */
    uint64_t shares_told;
    struct power_missed missed;
    struct power_order order;
    uint64_t order_sequence;
    struct joule_bucket bucket;
};

NODISCARD enum status power_port_init(struct power_port *port); /* ST_NOMEM */
void power_port_free(struct power_port *port);

/* ---- power thread ---- */

void power_port_order(struct power_port *port, const struct power_order *order);
bool power_port_take(struct power_port *port, struct power_step *step); /* the next record; false: none */
/* The shares of the record that was taken last, once; shares has room for POWER_SHARES_MAX. Returns how many. */
uint32_t power_port_shares(struct power_port *port, const struct power_step *step, struct energy_share *shares);

/* ---- engine thread ---- */

/* Before a plan: tells the scheduler what it may take. Returns 0 when there is room, else for how long there is none;
 * at most 20 ms, as orders change. */
uint64_t power_port_begin(struct power_port *port, struct sched *sched, uint64_t now_ns);
/* Whether the last order limits anything. */
bool power_port_limits(const struct power_port *port);
/* A planned step goes to the device; fills the port's members of its record. */
void power_port_launched(struct power_port *port, uint64_t now_ns, struct power_step *step,
                         const struct energy_share *shares, uint32_t count);
/* It has run: what it drew by the draw model is paid in place of what was predicted. next_ns: when the device began
 * with the one after it, 0: there is none. */
void power_port_stepped(struct power_port *port, struct power_step *step, uint64_t next_ns);

#endif
