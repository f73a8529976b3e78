/* A meter of a device's or a node's electricity: a table of functions, one object a meter.
 *
 * A reading is the last that the meter published. Who reads, about every 20 ms, forms windows between two readings
 * whose `changes` differ: a counter read at its own pace shows nothing, then double. Where `breaks` differ as well, the
 * window's watts mean nothing (throttle_resume), but its joules still count.
 *
 * S1. energy_uj never falls and counts no joule of the meter twice, whatever the meter and the clock do. One thread. */
#ifndef RUNTIME_POWER_SENSOR_H
#define RUNTIME_POWER_SENSOR_H

#include "runtime/base/status.h"

#include <stdint.h>

enum sensor_flag {
    SENSOR_ESTIMATED = 1,  /* no meter: computed from the work */
    SENSOR_MEAN_1S = 2,    /* the watts are a mean over the last second */
    SENSOR_INTEGRATED = 4, /* the joules are watts times time, not a counter */
    SENSOR_DISPUTED = 8    /* an alarm: the device's own two meters have long told different watts */
};

struct sensor_reading {
    uint64_t energy_uj;    /* since the sensor was opened: wraps, resets and spikes of the meter are taken out */
    uint64_t published_ns; /* when the meter moved, as well as can be told */
    uint64_t changes;      /* how often it has moved; 0: not since the sensor was opened */
    uint64_t breaks;       /* how often joules were lost or seconds are not known; a real meter's first move is one */
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
    char name[64];         /* "NVML, 8 GPUs" */
    double idle_w, full_w; /* what the meter's device draws, as far as it tells; 0: unknown */
};

/* now_ns: of the monotonic clock. ST_DEVICE: this reading failed, a later one may not; err says why, *reading stays. */
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
