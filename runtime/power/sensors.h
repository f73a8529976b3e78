/* The meters there are. Each constructor gives a sensor (sensor.h) that the caller closes with sensor_close. */
#ifndef RUNTIME_POWER_SENSORS_H
#define RUNTIME_POWER_SENSORS_H

#include "runtime/power/plant.h"
#include "runtime/power/sensor.h"

/* No meter at all: a plant driven by sensor_work, whose time is the sum of the seconds told there; published_ns counts
 * it from now_ns on. So the reader tells of idle time too, with 0 joules. Readings are SENSOR_ESTIMATED. ST_INVAL:
 * a number of the plant that cannot be; ST_NOMEM. */
NODISCARD enum status sensor_simulated_open(const struct plant_config *config, uint64_t now_ns, struct sensor **sensor,
                                            struct error *err);

#endif
