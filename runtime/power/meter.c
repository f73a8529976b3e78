/* See meter.h. When a counter moved lies between two polls. It moves by a period of its own, so the guess is the last
 * move and one period, clamped between the polls: after some moves only the true phase is left. Half way between the
 * polls instead put 10 % of noise on windows of 100 ms polled each 20 ms. */
#include "runtime/power/meter.h"

#include <math.h>

/* GAP: a reader that polls each 20 ms has been stopped, or the clock has jumped. SLACK_S: how much later than guessed a
 * counter may have moved. */
static const uint64_t GAP_NS = UINT64_C(5000000000);
static const double SLACK_S = 0.050, PERIOD_RATE = 0.05, SUM_LEAST_S = 0.090, NS = 1e-9;

void meter_init(struct meter *meter, const struct meter_config *config)
{
    *meter = (struct meter){.config = *config};
}

static void start(struct meter *meter, uint64_t now_ns)
{
    meter->started = true;
    meter->published_ns = meter->polled_ns = now_ns;
}

/* M2. */
static void look_at_clock(struct meter *meter, uint64_t now_ns)
{
    bool back = now_ns < meter->polled_ns;
    if (back) meter->published_ns = meter->polled_ns = now_ns;
    if (back || now_ns - meter->polled_ns > GAP_NS) meter->jumped = true;
}

/* M1: the joules from one value to another, if they can have been drawn since the last move. */
static bool drawn(const struct meter *meter, uint64_t from_uj, uint64_t to_uj, uint64_t now_ns, uint64_t *uj)
{
    double seconds = (double)(now_ns - meter->published_ns) * NS + SLACK_S;
    if (meter->jumped || !meter->changes) seconds += (double)GAP_NS * NS; /* how long it was is not known */
    if (to_uj >= from_uj) {
        *uj = to_uj - from_uj;
    } else if (meter->config.wrap_uj >= from_uj) {
        *uj = meter->config.wrap_uj - from_uj + 1 + to_uj;
    } else {
        return false;
    }
    return (double)*uj <= meter->config.watts_max * seconds * 1e6;
}

static uint64_t guess_moved_ns(const struct meter *meter, uint64_t now_ns)
{
    uint64_t earliest = meter->polled_ns, period = (uint64_t)(meter->period_s / NS);
    if (meter->config.fluent) return now_ns;
    if (!period) return earliest + (now_ns - earliest) / 2;
    uint64_t guess = meter->published_ns + period;
    if (guess < earliest) guess = earliest;
    return guess < now_ns ? guess : now_ns;
}

static void learn_period(struct meter *meter, uint64_t moved_ns)
{
    double seconds = (double)(moved_ns - meter->published_ns) * NS;
    if (meter->changes < 2) return; /* the first window began when polling did */
    if (meter->period_s <= 0) {
        meter->period_s = seconds;
    } else {
        meter->period_s += PERIOD_RATE * (fmin(seconds, 2 * meter->period_s) - meter->period_s);
    }
}

static void moved(struct meter *meter, uint64_t moved_ns, uint64_t uj, bool lost)
{
    meter->energy_uj += uj;
    meter->changes++;
    if (lost || meter->jumped) {
        meter->breaks++;
    } else {
        learn_period(meter, moved_ns);
    }
    meter->published_ns = moved_ns;
    meter->jumped = meter->strange = false;
}

/* M1. Of two ways to have come here the one with fewer joules. */
static void judge_value(struct meter *meter, uint64_t now_ns, uint64_t raw_uj)
{
    uint64_t believed_uj, strange_uj;
    if (raw_uj == meter->raw_uj) {
        meter->strange = false; /* it was a glitch */
        return;
    }
    if (meter->strange && raw_uj == meter->strange_uj) return; /* that time passes makes it no better */
    bool from_believed = drawn(meter, meter->raw_uj, raw_uj, now_ns, &believed_uj);
    bool from_strange = meter->strange && drawn(meter, meter->strange_uj, raw_uj, now_ns, &strange_uj);
    if (from_strange && from_believed) from_strange = strange_uj < believed_uj;
    if (from_strange || from_believed) {
        meter->raw_uj = raw_uj;
        moved(meter, guess_moved_ns(meter, now_ns), from_strange ? strange_uj : believed_uj, from_strange);
    } else {
        meter->strange = true;
        meter->strange_uj = raw_uj;
    }
}

void meter_counter(struct meter *meter, uint64_t now_ns, uint64_t raw_uj)
{
    if (!meter->started) {
        start(meter, now_ns);
        meter->raw_uj = raw_uj;
        return;
    }
    look_at_clock(meter, now_ns);
    judge_value(meter, now_ns, raw_uj);
    meter->polled_ns = now_ns;
}

void meter_watts(struct meter *meter, uint64_t now_ns, double watts)
{
    if (!(watts >= 0) || watts > meter->config.watts_max) return; /* the value before is held on */
    if (!meter->started) {
        start(meter, now_ns);
        meter->watts = watts;
        return;
    }
    look_at_clock(meter, now_ns);
    if (!meter->jumped) meter->held_uj += meter->watts * (double)(now_ns - meter->polled_ns) * NS * 1e6;
    meter->polled_ns = now_ns;
    if (watts == meter->watts && !meter->jumped) return;
    uint64_t uj = (uint64_t)meter->held_uj;
    meter->held_uj -= (double)uj;
    meter->watts = watts;
    moved(meter, now_ns, uj, false);
}

static uint64_t mean_ns(const struct meter *meters, uint32_t count, uint64_t base_ns)
{
    double late = 0, joules = 0;
    for (uint32_t i = 0; i < count; i++) {
        double weight = (double)meters[i].energy_uj + 1;
        late += weight * (double)(int64_t)(meters[i].published_ns - base_ns);
        joules += weight;
    }
    return base_ns + (uint64_t)(int64_t)llround(late / joules);
}

void meter_sum_move(struct meter_sum *sum, struct meter *meters, uint32_t count)
{
    uint64_t energy_uj = 0, breaks = 1; /* the first move: nobody saw when its window began */
    for (uint32_t i = 0; i < count; i++) {
        if (meters[i].changes == meters[i].summed) return; /* M3 */
        energy_uj += meters[i].energy_uj;
        breaks += meters[i].breaks;
    }
    uint64_t published_ns = mean_ns(meters, count, meters[0].published_ns);
    bool broken = breaks != sum->reading.breaks;
    double seconds = (double)(int64_t)(published_ns - sum->reading.published_ns) * NS;
    if (sum->reading.changes && !broken && seconds < SUM_LEAST_S) return;
    for (uint32_t i = 0; i < count; i++) meters[i].summed = meters[i].changes;
    sum->reading.energy_uj = energy_uj;
    sum->reading.published_ns = published_ns;
    sum->reading.breaks = breaks;
    sum->reading.changes++;
}
