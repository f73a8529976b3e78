/* This machine's own meters during a load: mean watts between the first and the last move that a meter shows, times the
 * load's seconds. Windows of a meter do not begin and end with the load; its mean does, but for one window at each end,
 * so a load should be many windows (of about 100 ms) long. One thread. */
#ifndef SERVER_BENCH_BENCH_METER_H
#define SERVER_BENCH_BENCH_METER_H

#include "runtime/power/sensor.h"

#include <stdbool.h>
#include <stdint.h>

enum { BENCH_METERS_MAX = 2, BENCH_METER_MS = 20, BENCH_METER_MOVES_MIN = 5 };

struct bench_meter {
    uint32_t count;
    struct {
        struct sensor *sensor; /* owned */
        struct sensor_reading first, last;
        bool read;
    } meters[BENCH_METERS_MAX]; /* they add up: devices and host */
    struct error failed;        /* the last reading that failed since the start; empty: none */
};

/* "nvml", "rapl" or "nvml+rapl": this machine's GPUs, its CPUs, both added up. ST_INVAL: no such meter; else as the
 * sensor's constructor. */
NODISCARD enum status bench_meter_open(struct bench_meter *meter, const char *names, struct error *err);
void bench_meter_close(struct bench_meter *meter);
/* What was read before counts no more. */
void bench_meter_start(struct bench_meter *meter);
/* Reads. At least every BENCH_METER_MS while a load runs. */
void bench_meter_tick(void *meter, uint64_t now_ns);
/* Joules of a load of so many seconds since the start, added up. ST_AGAIN: a meter moved less than
 * BENCH_METER_MOVES_MIN times, or lost joules on the way; ST_DEVICE: it failed. err says which. */
NODISCARD enum status bench_meter_joules(const struct bench_meter *meter, double seconds, double *joules,
                                         struct error *err);

#endif
