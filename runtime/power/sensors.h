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

/* GPUs through NVML, summed: each by its energy counter, else its instant power, else its mean over a second. pci names
 * them as CUDA does ("0000:17:00.0"); count 0: all that NVML sees. full_w is the sum of the limits enforced when it was
 * opened, 0 where one is not told. A GPU that no longer answers fails each reading: the others alone would look like
 * room. ST_NOTFOUND: there is no such sensor here, err says why (library, symbol, driver, GPU); ST_LIMIT: more GPUs
 * than NVML_GPUS_MAX; ST_NOMEM. */
enum { NVML_GPUS_MAX = 64 };
NODISCARD enum status sensor_nvml_open(const char *const *pci, uint32_t count, struct sensor **sensor,
                                       struct error *err);

/* CPU packages through Linux' powercap (RAPL), summed: root/intel-rapl:N whose name is package-..., which AMD's have
 * too. Cores, memory and the platform are parts or wholes of them and left out. root is RAPL_ROOT but in tests. full_w
 * is the sum of the long-term limits, 0 where one is not told. ST_NOTFOUND: there is no such sensor here, err says why
 * (often: only root may read it); ST_LIMIT: more packages than RAPL_PACKAGES_MAX; ST_NOMEM. */
#define RAPL_ROOT "/sys/class/powercap"
enum { RAPL_PACKAGES_MAX = 16 };
NODISCARD enum status sensor_rapl_open(const char *root, struct sensor **sensor, struct error *err);

#endif
