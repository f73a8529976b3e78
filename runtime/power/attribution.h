/* Whose joules: the meter's microjoules divided over requests, idle time, pauses and what is nobody's, so that
 *
 *   requests + idle + paced + unattributed = meter          exactly, in integer microjoules, window by window
 *
 * A window lies between two moves of the meter. It is closed when all steps up to its end have been told:
 *
 *   steps  |--a--|    |---b---|--c--|          |----d----|         queued until a window closes over them
 *   meter       ^w0          .           ^w1          .         ^w2
 *   w1:    half of nothing before w0; b and c to their requests; the gap to idle; the first part of d by time
 *
 *   1. Idle time and pauses (with work waiting) cost the base power a second: what the meter reads while nothing runs,
 *      but never more than the window's mean. In a window without steps they take all of it.
 *   2. The rest goes over the steps in proportion to the joules that the energy model says, one that lies in two
 *      windows by time.
 *   3. In a step its fixed part goes in equal shares to its sequences, the others to those that caused them. With a
 *      cost that is linear above a constant this is the Shapley value; prompt tokens out of a cache cost nothing.
 *   4. By largest remainder (apportion.h).
 *
 * What no known request caused is unattributed: steps that were lost or did not fit here, joules of a time that the
 * clock cannot tell, and what is beyond what the device can draw (a meter's spike is nobody's to pay).
 * A second column, idle_share, spreads a window's idle and paced joules over the requests that ran in it, in
 * proportion: what they cost in full. Idle time of windows without requests stays in the books alone.
 *
 * Green energy and CO2 of a window (carbon.h) go over its requests in proportion to their microjoules, and what no
 * request caused keeps its part: requests + the rest = the node's, to the microgram. Groups (a tier, a model) add up
 * what their requests were given, window by window.
 *
 * Memory is taken at the start; nothing fails afterwards. What is full costs precision only: a window that cannot be
 * closed yet grows with the next one. One thread. A second meter (the host's) is a second one of these with the same
 * steps. Rejected: dividing by tokens (53 % off the Shapley value, 4 % this way, on a roofline's steps). */
#ifndef RUNTIME_POWER_ATTRIBUTION_H
#define RUNTIME_POWER_ATTRIBUTION_H

#include "runtime/base/status.h"
#include "runtime/power/carbon.h"
#include "runtime/power/energy_model.h"
#include "runtime/power/sensor.h"

#include <stdbool.h>
#include <stdint.h>

struct attribution;

struct attribution_config {
    uint32_t accounts_max; /* requests that run or wait for their last window */
    uint32_t steps_max;    /* between two moves of the meter, with pauses */
    uint32_t shares_max;   /* sequences of these steps, added up */
    double full_w;         /* the most that the device draws; 0: not known, every reading is believed */
    uint32_t groups_max;   /* 0: none are kept */
};

/* What a sequence did in a step; or several of one account together. */
struct energy_share {
    uint64_t request_id;
    uint32_t prefill_tokens, decode_rows;
    double prefill_pairs, decode_context; /* as in energy_work */
    uint32_t sequences;                   /* that it stands for; 0: one */
    uint32_t group;                       /* of the request; as its first share says. Below groups_max, else in none */
};

enum energy_account_flag {
    ENERGY_ESTIMATED = 1, /* no meter */
    ENERGY_PARTIAL = 2,   /* some of its steps were before the meter's first window, or did not fit */
};

struct energy_account {
    uint64_t request_id;
    uint64_t prefill_uj, decode_uj;
    uint64_t idle_share_uj; /* beside them, not part of them */
    struct carbon carbon;   /* of prefill and decode */
    uint32_t flags;
    double open_j;                        /* of its steps in no closed window, by the model: what is still to come */
    uint64_t prefill_tokens, decode_rows; /* told */
};

struct energy_group {
    uint64_t prefill_uj, decode_uj;
};

/* Since the start. meter = prefill + decode + idle + paced + unattributed; idle_shared <= idle + paced. */
struct energy_books {
    uint64_t meter_uj, prefill_uj, decode_uj, idle_uj, paced_uj, unattributed_uj, idle_shared_uj;
    struct carbon carbon, carbon_requests; /* of all of the meter; of that the requests' */
    double offered_j;                      /* green energy that was on offer in its windows */
    uint64_t pending_uj;                   /* read from the meter, in a window that is not closed */
    uint64_t windows;                      /* closed */
    uint64_t steps_lost;                   /* steps or sequences that did not fit */
    uint64_t meter_backwards;              /* readings below the one before, or not after it in time */
};

/* ST_NOMEM; ST_INVAL: a limit is 0 or too large. */
NODISCARD enum status attribution_create(const struct attribution_config *config, struct attribution **out,
                                         struct error *err);
/* NULL is fine. */
void attribution_destroy(struct attribution *at);

/* A step has ended. In the order of their starts; where one begins before the last has ended (a device that runs ahead)
 * it counts from there. A sequence that is told for a request whose end was told is nobody's. */
void attribution_step(struct attribution *at, const struct energy_model *model, uint64_t start_ns, uint64_t end_ns,
                      const struct energy_share *shares, uint32_t count);
/* Steps of which nobody can tell any more what was in them. joules: what they may have cost. */
void attribution_lost(struct attribution *at, uint64_t start_ns, uint64_t end_ns, double joules);
/* A pause between steps while work waited. In order with the steps. */
void attribution_pause(struct attribution *at, uint64_t start_ns, uint64_t end_ns);
/* No step that ended before until_ns is still to be told, and none that is under way began before it. */
void attribution_known(struct attribution *at, uint64_t until_ns);
/* What the meter shows; nothing happens when it has not moved since, or never. idle_w: base power, as it was last
 * measured. */
void attribution_meter(struct attribution *at, const struct sensor_reading *reading, double idle_w);

/* The request has ended: its steps have all been told. False: it had none. */
bool attribution_end(struct attribution *at, uint64_t request_id);
/* The next request that has ended and whose windows are closed; it is forgotten here. False: none. */
bool attribution_take(struct attribution *at, struct energy_account *account);
/* What a request has so far, in closed windows. False: not known. */
bool attribution_look(const struct attribution *at, uint64_t request_id, struct energy_account *account);
/* The meter is lost, or the end: steps that no window has closed are nobody's (ENERGY_PARTIAL), and what is pending is
 * unattributed. The next reading starts anew. */
void attribution_flush(struct attribution *at);

/* For windows that close from now on. Without a call no CO2 is counted. */
void attribution_rates(struct attribution *at, const struct carbon_rates *rates);
/* Since the start. idx below groups_max. */
void attribution_group(const struct attribution *at, uint32_t idx, struct energy_group *group);

void attribution_books(const struct attribution *at, struct energy_books *books);

#endif
