/* The fast loop and the bucket; see throttle.h. */
#include "scheduler/throttle.h"

#include <math.h>

/* Found in simulation over 24 seeds with the gain 15 % off; tests/unit/scheduler/test_throttle.c holds what they give.
 */
static const double OFFSET_RATE = 0.30, GAIN_RATE = 0.03, IDLE_RATE = 0.05;
static const double OFFSET_MAX = 0.30, GAIN_MIN = 0.3, GAIN_MAX = 3, STRANGE = 0.35, LOADED = 0.05, RESTED = 0.005;
static const double MARGIN = 0.02, SIGMAS = 3, SILENT_SHARE = 0.95, LOST_SHARE = 0.85;
static const double CREDIT_S = 0.020, SPREAD_S = 0.2, OVERDRAFT_S = 0.010;
static const double AHEAD_S = 0.02 * 60, REPAYS = 0.25;
enum { DROPPED_MAX = 3 };

static double clamp(double value, double low, double high)
{
    return value < low ? low : value > high ? high : value;
}

static double seconds_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-9 : 0;
}

void throttle_init(struct throttle *throttle, const struct throttle_config *config, uint64_t now_ns)
{
    *throttle = (struct throttle){.config = *config,
                                  .wanted = {INFINITY, INFINITY},
                                  .range_w = config->full_w - config->idle_w,
                                  .goal_w = INFINITY,
                                  .gain = 1,
                                  .idle_w = config->idle_w,
                                  .sampled_ns = now_ns,
                                  .ramped_ns = now_ns};
}

double throttle_margin(const struct throttle *throttle)
{
    double sum = 0, squares = 0;
    uint32_t count = throttle->residuals_count < THROTTLE_RESIDUALS ? throttle->residuals_count : THROTTLE_RESIDUALS;
    for (uint32_t i = 0; i < count; i++) {
        sum += throttle->residuals[i];
        squares += throttle->residuals[i] * throttle->residuals[i];
    }
    double least = MARGIN * throttle->wanted.cap_w;
    if (count < 2) return least;
    double variance = (squares - sum * sum / count) / (count - 1);
    double spread = SIGMAS * sqrt(variance > 0 ? variance : 0);
    return spread > least ? spread : least;
}

/* T1. A goal that was lifted altogether ramps up to what the device can draw, and is then none. */
static void move_goal(struct throttle *throttle, uint64_t now_ns)
{
    const struct throttle_goal *wanted = &throttle->wanted;
    double capped = isinf(wanted->cap_w) ? INFINITY : wanted->cap_w - throttle_margin(throttle);
    double want = fmin(capped, wanted->target_w);
    double step = throttle->config.ramp_per_s * throttle->range_w * seconds_between(throttle->ramped_ns, now_ns);
    throttle->ramped_ns = now_ns;
    throttle->goal_w = want < throttle->goal_w ? want : fmin(want, throttle->goal_w + step);
    if (isinf(want) && throttle->goal_w > throttle->idle_w + throttle->offset_w + throttle->gain * throttle->range_w)
        throttle->goal_w = INFINITY;
}

bool throttle_set_goal(struct throttle *throttle, struct throttle_goal goal, uint64_t now_ns)
{
    if (isnan(goal.cap_w) || isnan(goal.target_w) || goal.cap_w < 0 || goal.target_w < 0) return false;
    move_goal(throttle, now_ns); /* the time until now goes by the old one */
    throttle->wanted = goal;
    move_goal(throttle, now_ns);
    return true;
}

/* What the meter should have shown above idle: the work through the device's lag, or the sensor's own mean. */
static double seen_work(struct throttle *throttle, double seconds, double work_w)
{
    double lag = throttle->config.sensor_mean_s > 0 ? throttle->config.sensor_mean_s : throttle->config.lag_s;
    double before = throttle->lagged_w, left = lag > 0 ? exp(-seconds / lag) : 0;
    throttle->lagged_w = work_w + (before - work_w) * left;
    if (throttle->config.sensor_mean_s > 0) return throttle->lagged_w;
    return work_w + (before - work_w) * lag / seconds * (1 - left); /* the lag's mean over the window */
}

static void note_residual(struct throttle *throttle, double seconds, double joules, bool limited)
{
    if (!limited || isinf(throttle->goal_w)) {
        throttle->second_s = throttle->second_j = 0;
        return;
    }
    throttle->second_s += seconds;
    throttle->second_j += joules - throttle->goal_w * seconds;
    if (throttle->second_s < 1) return;
    throttle->residuals[throttle->residuals_count++ % THROTTLE_RESIDUALS] = throttle->second_j / throttle->second_s;
    throttle->second_s = throttle->second_j = 0;
}

bool throttle_sample(struct throttle *throttle, uint64_t now_ns, double seconds, double joules, double work_j,
                     bool limited)
{
    if (!(seconds > 0) || !isfinite(joules) || joules < 0 || !isfinite(work_j) || work_j < 0) return false;
    double measured = joules / seconds, work = seen_work(throttle, seconds, work_j / seconds);
    double error = measured - (throttle->idle_w + throttle->gain * work + throttle->offset_w);
    if (fabs(error) > STRANGE * throttle->range_w && throttle->dropped < DROPPED_MAX) {
        throttle->dropped++;
        return false;
    }
    throttle->dropped = 0;
    throttle->sampled_ns = now_ns;
    note_residual(throttle, seconds, joules, limited);
    throttle->offset_w = clamp(throttle->offset_w + OFFSET_RATE * error, -OFFSET_MAX * throttle->range_w,
                               OFFSET_MAX * throttle->range_w);
    if (work > LOADED * throttle->range_w)
        throttle->gain = clamp(throttle->gain + GAIN_RATE * ((measured - throttle->idle_w) / work - throttle->gain),
                               GAIN_MIN, GAIN_MAX);
    if (work_j == 0 && work < RESTED * throttle->range_w) throttle->idle_w += IDLE_RATE * (measured - throttle->idle_w);
    return true;
}

void throttle_resume(struct throttle *throttle, uint64_t now_ns)
{
    throttle->sampled_ns = throttle->ramped_ns = now_ns;
    throttle->dropped = 0;
}

double throttle_allowance(struct throttle *throttle, uint64_t now_ns, enum throttle_alarm *alarm)
{
    double silent_s = seconds_between(throttle->sampled_ns, now_ns);
    *alarm = silent_s > throttle->config.lost_s     ? THROTTLE_LOST
             : silent_s > throttle->config.silent_s ? THROTTLE_SILENT
                                                    : THROTTLE_FINE;
    move_goal(throttle, now_ns);
    if (isinf(throttle->goal_w)) return INFINITY;
    double allowed = (throttle->goal_w - throttle->idle_w - throttle->offset_w) / throttle->gain;
    double share = *alarm == THROTTLE_LOST ? LOST_SHARE : *alarm == THROTTLE_SILENT ? SILENT_SHARE : 1;
    return allowed > 0 ? allowed * share : 0;
}

/* So many seconds of the goal, as far as a second under the cap has room for them. */
static double joules_over_goal(const struct throttle *throttle, double seconds)
{
    const struct throttle_goal *wanted = &throttle->wanted;
    if (isinf(throttle->goal_w)) return 0;
    double most = seconds * throttle->goal_w;
    if (isinf(wanted->cap_w)) return most;
    return clamp(wanted->cap_w - throttle_margin(throttle) - throttle->goal_w, 0, most);
}

double throttle_overdraft(const struct throttle *throttle)
{
    return joules_over_goal(throttle, OVERDRAFT_S);
}

double throttle_ahead(const struct throttle *throttle)
{
    return joules_over_goal(throttle, AHEAD_S);
}

/* ---- the bucket ---- */

double joule_bucket_room(struct joule_bucket *bucket, double allowance_w, double step_s, uint64_t now_ns)
{
    double passed_s = seconds_between(bucket->filled_ns, now_ns);
    bucket->filled_ns = now_ns;
    if (isinf(allowance_w)) {
        bucket->credit_j = bucket->ahead_j = 0;
        return INFINITY;
    }
    double earned_j = allowance_w * passed_s, repaid_j = fmin(bucket->ahead_j, REPAYS * earned_j);
    double credit_j = bucket->credit_j + earned_j - repaid_j;
    bucket->credit_j = fmin(credit_j, allowance_w * CREDIT_S);
    bucket->ahead_j = fmax(0, bucket->ahead_j - repaid_j - (credit_j - bucket->credit_j));
    if (bucket->credit_j <= 0) return 0;
    return step_s * (allowance_w + bucket->credit_j / SPREAD_S);
}

double joule_bucket_overdraft(const struct joule_bucket *bucket, double allowance_w, double step_s, double overdraft_j)
{
    double left_j = bucket->credit_j + overdraft_j;
    return left_j > 0 ? step_s * allowance_w + left_j : 0;
}

double joule_bucket_urgent(const struct joule_bucket *bucket, double allowance_w, double step_s, double ahead_j)
{
    double left_j = ahead_j - bucket->ahead_j;
    return left_j > 0 ? step_s * allowance_w + left_j : 0;
}

void joule_bucket_pay(struct joule_bucket *bucket, double joules)
{
    bucket->credit_j -= joules;
}

void joule_bucket_pay_urgent(struct joule_bucket *bucket, double joules, double ahead_j)
{
    double debt_j = joules < 0 ? fmax(joules, -bucket->ahead_j)
                               : clamp(joules - fmax(0, bucket->credit_j), 0, fmax(0, ahead_j - bucket->ahead_j));
    bucket->ahead_j += debt_j;
    bucket->credit_j -= joules - debt_j;
}

uint64_t joule_bucket_wait_ns(const struct joule_bucket *bucket, double allowance_w)
{
    if (bucket->credit_j > 0) return 0;
    if (!(allowance_w > 0)) return UINT64_MAX;
    double seconds = -bucket->credit_j / (bucket->ahead_j > 0 ? (1 - REPAYS) * allowance_w : allowance_w);
    return seconds > 1e9 ? UINT64_MAX : (uint64_t)(seconds * 1e9) + 1;
}
