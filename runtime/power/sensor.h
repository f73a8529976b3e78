/* A meter of a device's or a node's electricity: a table of functions, one object a meter.
 *
 *   sensor_nvml.c        GPUs: the energy counter, else instant power, else the mean over a second
 *   sensor_rapl.c        CPU packages through powercap
 *   sensor_simulated.c   plant.h driven by the work of real steps: what a node without a meter shows, as an estimate
 *
 * A reading is the last that the meter published. Who reads forms windows between two readings whose `changes` differ:
 * a counter read at its own pace shows nothing, then double. One thread. */
#ifndef RUNTIME_POWER_SENSOR_H
#define RUNTIME_POWER_SENSOR_H

#include "runtime/base/status.h"

#include <stdint.h>

enum sensor_flag {
    SENSOR_ESTIMATED = 1, /* no meter: computed from the work */
    SENSOR_MEAN_1S = 2,   /* the watts are a mean over the last second */
    SENSOR_INTEGRATED = 4 /* the joules are watts times time, not a counter */
};

struct sensor_reading {
    uint64_t energy_uj;    /* since the sensor was opened: wraps and resets of the meter are taken out */
    uint64_t published_ns; /* when the meter moved, as well as can be told */
    uint64_t changes;      /* how often it has moved */
    uint32_t flags;
};

struct sensor;

struct sensor_ops {
    enum status (*read)(struct sensor *sensor, uint64_t now_ns, struct sensor_reading *reading, struct error *err);
    /* seconds passed in which steps did so many joules of work; NULL where the meter is real. */
    void (*work)(struct sensor *sensor, double seconds, double joules);
    void (*close)(struct sensor *sensor);
};

struct sensor { /* the first member of every implementation */
    const struct sensor_ops *ops;
    char name[64];        /* "NVML, 8 GPUs" */
    double idle_w, full_w; /* what the meter's device draws, as far as it tells; 0: unknown */
};

/* ST_DEVICE: this reading failed, a later one may not; err says why. A meter that went backwards gives no joules for
 * that time: energy_uj stays, changes moves, and the next window starts there. */
NODISCARD static inline enum status sensor_read(struct sensor *sensor, uint64_t now_ns, struct sensor_reading *reading,
                                                struct error *err)
{
    return sensor->ops->read(sensor, now_ns, reading, err);
}
static inline void sensor_work(struct sensor *sensor, double seconds, double joules)
{
    if (sensor->ops->work) sensor->ops->work(sensor, seconds, joules);
}
/* NULL is fine. */
static inline void sensor_close(struct sensor *sensor)
{
    if (sensor) sensor->ops->close(sensor);
}

#endif
