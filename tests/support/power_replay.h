/* A node with deferrable work, replayed in virtual time: the real scheduler (scheduler/sched.h) takes every token's
 * step, the real plan (scheduler/deadline.h) says which jobs may enter it, and nobody knows in advance when an answer
 * ends.
 *
 *   jobs of a seed --admit--> deadline --release--> sched: plan, step of virtual time, commit --tokens--> deadline
 *   interactive requests ------------------------> sched
 *
 * Work is counted in tokens, prompts and outputs alike, and a step takes its tokens over the node's speed. A job's
 * bound is its prompt and max_tokens; it ends by an end id, anywhere from its first token on. What a run is held
 * against is computed from the same jobs with their true lengths, over the capacity that interactive requests really
 * left:
 *
 * - green: EDF over green capacity only, expired units dropped, which fills as much as can be filled (each unit of work
 *   is an interval of slots; Glover 1967).
 * - price: sets of slot units that can all be filled are a transversal matroid with that EDF as its rank, so slots
 * taken by rising price, each by what the rank grows, are the cheapest that do all the work (Edmonds 1971): the value
 * of a min-cost flow, without its solver.
 *
 * What interactive requests will take the plan has learnt from the day before the replay, and learns from each slot
 * that is over, with the weight that server/power/plan.c gives to a day.
 *
 * One thread. Deterministic by the seed. */
#ifndef TESTS_SUPPORT_POWER_REPLAY_H
#define TESTS_SUPPORT_POWER_REPLAY_H

#include "scheduler/deadline.h"

#include <stdbool.h>
#include <stdint.h>

enum { REPLAY_SLOTS_MAX = 672, REPLAY_SLOT_MS = 900000 };

struct replay_config {
    uint64_t seed;
    uint32_t slots;                 /* of 15 minutes, up to REPLAY_SLOTS_MAX */
    const double *green;            /* [slots] share of the node's full work on offer; NULL: none */
    const double *price;            /* [slots]; NULL: green is followed */
    double price_error;             /* of forecasts: standard deviation, as a share */
    double interactive, flex;       /* share of the node's full work, on average */
    double batch;                   /* the same, in true lengths */
    double speed;                   /* of the node under its cap, known to the plan: 1 is full */
    uint32_t loss_slot, loss_slots; /* when some of it is lost, unforeseen */
    double loss;                    /* how much */
    uint32_t margin_slots;
    uint32_t hours_min, hours_max; /* to the deadline of a batch job */
    bool exact_lengths;            /* jobs use all of their bounds */
    bool at_once;                  /* the control: no plan */
};

struct replay_result {
    uint32_t jobs, admitted, refused, misses; /* batch */
    uint32_t flex_jobs, flex_admitted, flex_late;
    double flex_wait_s_max;
    double tokens, green_tokens, green_optimum; /* of batch and flex; optimum: of those that were admitted */
    double cost, cost_optimum;
    double interactive_wait_s; /* the longest */
    uint64_t steps;
};

/* The second column of a trace, times scale, added to out. False: it is not there, or has another form. */
bool replay_add_trace(const char *path, double scale, double out[REPLAY_SLOTS_MAX]);
/* Aborts when there is no memory. */
void replay_run(const struct replay_config *config, struct replay_result *result);

#endif
