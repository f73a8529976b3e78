/* How much work may be done so that the meter shows the watts it should: the fast loop, and the bucket that steps are
 * paid from.
 *
 *   goal (cap, target) ----> want ----ramp----> goal ----\
 *   meter: joules, seconds ---> offset d, gain g, idle P0 ---> allowance A = (goal - P0 - d) / g    watts of work
 *   steps: joules above idle ---> reference model /             A ----> bucket ----> joules that the next step may take
 *
 * The loop corrects a model, not the error itself: a reading is held against the one that the work really done should
 * have caused, so it neither winds up while traffic is what limits, nor swings by the sensor's delay. A plain integral
 * loop over the same sensor took 0.9 to 5 s to settle. Curvature of work against watts belongs into the energy model.
 *
 * T1. A lowered goal acts at once, a raised one at ramp_per_s of the range a second.
 * T2. No reading, or one that cannot be, never raises the allowance: after silent_s it falls to SILENT_SHARE of what
 * the model gives, after lost_s to LOST_SHARE. T3. Over any time t the steps paid for take at most A * (t + CREDIT_S)
 * joules, plus one step; interactive ones the overdraft more, which the others wait for; priority's what may be
 * ahead more, which flex and batch wait for.
 *
 * Pure; times are nanoseconds of one monotonic clock. One thread. */
#ifndef SCHEDULER_THROTTLE_H
#define SCHEDULER_THROTTLE_H

#include <stdbool.h>
#include <stdint.h>

enum { THROTTLE_RESIDUALS = 64 };

struct throttle_config {
    double idle_w, full_w;   /* first values; the range is their difference */
    double sensor_mean_s;    /* a reading is the mean over so long before it; 0: over its own window, lag_s behind */
    double lag_s;            /* of the draw behind the work: 0.030 */
    double ramp_per_s;       /* of the range, upwards: 0.2 */
    double silent_s, lost_s; /* 0.5 and 10 */
};

/* What the node is told to keep. Infinity where there is none. */
struct throttle_goal {
    double cap_w, target_w;
};

struct throttle {
    struct throttle_config config;
    struct throttle_goal wanted;
    double range_w;
    double goal_w;                        /* after the ramp */
    double offset_w, gain, idle_w;        /* d, g, P0 */
    double lagged_w;                      /* the work of the windows as the meter shows it */
    double residuals[THROTTLE_RESIDUALS]; /* of limited seconds, watts above the goal; for the margin */
    double second_s, second_j;            /* of the second under way */
    uint32_t residuals_count, dropped;
    uint64_t sampled_ns, ramped_ns;
};

enum throttle_alarm { THROTTLE_FINE, THROTTLE_SILENT, THROTTLE_LOST };

void throttle_init(struct throttle *throttle, const struct throttle_config *config, uint64_t now_ns);
/* Not a number, or negative: taken as no limit by neither; the goal stays as it was and false is returned. */
bool throttle_set_goal(struct throttle *throttle, struct throttle_goal goal, uint64_t now_ns);
/* A window of the meter that ended at now_ns: its joules, its length, the joules above idle of the steps in it, and
 * whether any step ran. limited: steps waited for the bucket. False: the reading was not used. */
bool throttle_sample(struct throttle *throttle, uint64_t now_ns, double seconds, double joules, double work_j,
                     bool limited);
/* The clock or the counter jumped: the window is void, what was learnt is kept. */
void throttle_resume(struct throttle *throttle, uint64_t now_ns);
/* Watts of work allowed now, 0 .. work_max; and how well the meter is heard. */
double throttle_allowance(struct throttle *throttle, uint64_t now_ns, enum throttle_alarm *alarm);
/* Watts that are kept below the cap. */
double throttle_margin(const struct throttle *throttle);

/* Joules that interactive work may be ahead of the goal at any time: so many that a mean of a second is OVERDRAFT of
 * the goal above it at most, and never above the cap less its margin; 0 where that is the goal, or none is. */
double throttle_overdraft(const struct throttle *throttle);
/* Joules that priority's work may be ahead of a soft target: so many that a mean of a minute is 2 % above it at most. A
 * cap bounds the mean of a second as above. */
double throttle_ahead(const struct throttle *throttle);

/* ---- the bucket ---- */

struct joule_bucket {
    double credit_j;
    double
        ahead_j; /* priority's debt, apart from the credit: a quarter of what comes in pays it, and all that is over */
    uint64_t filled_ns;
};

/* Joules above idle that a step of about step_s may take now; 0: it must wait. Infinity while nothing limits. */
double joule_bucket_room(struct joule_bucket *bucket, double allowance_w, double step_s, uint64_t now_ns);
/* The same for work that need not wait for the bucket's debts, as long as they stay within overdraft_j; 0: it must. */
double joule_bucket_overdraft(const struct joule_bucket *bucket, double allowance_w, double step_s, double overdraft_j);
/* The same for priority's work; 0: as everybody's. */
double joule_bucket_urgent(const struct joule_bucket *bucket, double allowance_w, double step_s, double ahead_j);
void joule_bucket_pay(struct joule_bucket *bucket, double joules);
/* Priority's work: what the credit does not have is its debt, up to ahead_j. Below 0: it was less than was paid. */
void joule_bucket_pay_urgent(struct joule_bucket *bucket, double joules, double ahead_j);
/* How long until there is room again. UINT64_MAX: never at this allowance. */
uint64_t joule_bucket_wait_ns(const struct joule_bucket *bucket, double allowance_w);

#endif
