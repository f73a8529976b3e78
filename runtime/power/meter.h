/* Joules and windows from what a device's meter shows, poll by poll: between the raw reading and sensor.h.
 *
 *   a counter   it moves now and then, is polled more often, may wrap, be set back, spike or freeze
 *   watts       integrated over the polls, each value held until the next
 *   a sum       of several meters that move each at its own time
 *
 * M1. A value that the device cannot have drawn since the last is believed only when the next move goes on from it:
 * a glitch costs nothing, a reset one window's joules, and both count none twice. M2. Joules are those of the counter,
 * whatever the clock does; a poll that is GAP late or earlier than the last only makes a break. M3. A sum moves when
 * every meter has: a window of one device's new joules and another's old ones is none.
 *
 * Pure; now_ns is of the monotonic clock, but may jump. One thread. */
#ifndef RUNTIME_POWER_METER_H
#define RUNTIME_POWER_METER_H

#include "runtime/power/sensor.h"

#include <stdbool.h>
#include <stdint.h>

struct meter_config {
    double watts_max; /* more cannot be */
    uint64_t wrap_uj; /* the counter's highest value, 0 follows; 0: it never wraps */
    bool fluent;      /* the counter moves far more often than it is polled: what it shows is of now */
};

struct meter {
    struct meter_config config;
    uint64_t energy_uj, published_ns, changes, breaks; /* as in sensor_reading */
    /* of the implementation */
    bool started, strange, jumped;
    uint64_t raw_uj, strange_uj; /* the last value believed; one not yet believed */
    uint64_t polled_ns;
    double watts, held_uj; /* the last of meter_watts; joules since it moved */
    double period_s;       /* of the counter's moves; 0: not known yet */
    uint64_t summed;       /* changes, when the sum last moved */
};

void meter_init(struct meter *meter, const struct meter_config *config);
/* A poll. The first tells where the counter stands and counts nothing. Several moves between two polls are one. */
void meter_counter(struct meter *meter, uint64_t now_ns, uint64_t raw_uj);
/* The same for a meter of watts. One that shows the very same value has not moved. */
void meter_watts(struct meter *meter, uint64_t now_ns, double watts);

struct meter_sum {
    struct sensor_reading reading; /* flags are the owner's */
};

/* After the polls of all: moves if every meter has since the last time and SUM_LEAST_S have passed. Its time is the
 * mean of the meters', weighted with their joules, so that the window's watts are right though they move apart. */
void meter_sum_move(struct meter_sum *sum, struct meter *meters, uint32_t count);

#endif
