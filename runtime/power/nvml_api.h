/* NVML, the library of NVIDIA's driver that tells of a GPU's power and hardware errors: a table of functions, filled by
 * dlopen of libnvidia-ml.so.1. The binary is never linked against it: a machine without a GPU has none.
 *
 * What is declared here is the little of its C interface that we call, in our own words: nvmlReturn_t is int, handles
 * point to structs nobody defines, constants carry the library's values. tests/fake_nvml/test_nvml_api.c holds it
 * against the real header where one is found. The table is read-only once made; any thread. Source: nvml.h of CUDA 13.
 */
#ifndef RUNTIME_POWER_NVML_API_H
#define RUNTIME_POWER_NVML_API_H

#include "runtime/base/status.h"

struct nvml_device; /* nvmlDevice_t, nvmlEventSet_t point to them */
struct nvml_events;
struct nvml_event { /* nvmlEventData_t */
    struct nvml_device *device;
    unsigned long long type, data; /* data: the XID of a critical error */
    unsigned gpu_instance, compute_instance;
};
struct nvml_field { /* nvmlFieldValue_t */
    unsigned id, scope;
    long long timestamp, latency_microseconds;
    int value_type, result;
    union {
        double d;
        unsigned u32;
        unsigned long long u64;
    } value;
};

enum {
    NVML_OK = 0,
    NVML_NOT_SUPPORTED = 3,
    NVML_TIMED_OUT = 10,
    NVML_GPU_LOST = 15,
    NVML_TYPE_U32 = 1,                /* NVML_VALUE_TYPE_UNSIGNED_INT */
    NVML_FIELD_POWER_INSTANT = 186,   /* NVML_FI_DEV_POWER_INSTANT: milliwatts; scope 0: the GPU alone */
    NVML_FIELD_RECOVERY_ACTION = 230, /* NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: 0 = none */
    NVML_EVENT_ECC_DOUBLE = 2,        /* nvmlEventTypeDoubleBitEccError */
    NVML_EVENT_XID = 8                /* nvmlEventTypeXidCriticalError */
};

/* X(needed, member, symbol, result, parameters); without a symbol that is not needed its pointer is NULL. Milliwatts,
 * and millijoules since the driver was loaded. */
#define NVML_MAP(X)                                                                                                    \
    X(1, init, nvmlInit_v2, int, (void))                                                                               \
    X(1, shutdown, nvmlShutdown, int, (void))                                                                          \
    X(1, error_string, nvmlErrorString, const char *, (int result))                                                    \
    X(1, devices, nvmlDeviceGetCount_v2, int, (unsigned *count))                                                       \
    X(1, device_by_idx, nvmlDeviceGetHandleByIndex_v2, int, (unsigned idx, struct nvml_device **device))               \
    X(1, device_by_pci, nvmlDeviceGetHandleByPciBusId_v2, int, (const char *pci, struct nvml_device **device))         \
    X(1, fields, nvmlDeviceGetFieldValues, int, (struct nvml_device * device, int count, struct nvml_field *fields))   \
    X(1, power_mw, nvmlDeviceGetPowerUsage, int, (struct nvml_device * device, unsigned *mw))                          \
    X(0, energy_mj, nvmlDeviceGetTotalEnergyConsumption, int, (struct nvml_device * device, unsigned long long *mj))   \
    X(0, limit_mw, nvmlDeviceGetEnforcedPowerLimit, int, (struct nvml_device * device, unsigned *mw))                  \
    X(0, limits_mw, nvmlDeviceGetPowerManagementLimitConstraints, int,                                                 \
      (struct nvml_device * device, unsigned *least_mw, unsigned *most_mw))                                            \
    X(1, events_create, nvmlEventSetCreate, int, (struct nvml_events * *events))                                       \
    X(1, events_free, nvmlEventSetFree, int, (struct nvml_events * events))                                            \
    X(1, events_supported, nvmlDeviceGetSupportedEventTypes, int,                                                      \
      (struct nvml_device * device, unsigned long long *types))                                                        \
    X(1, events_register, nvmlDeviceRegisterEvents, int,                                                               \
      (struct nvml_device * device, unsigned long long types, struct nvml_events *events))                             \
    X(1, events_wait, nvmlEventSetWait_v2, int,                                                                        \
      (struct nvml_events * events, struct nvml_event * event, unsigned wait_ms))

struct nvml_table {
#define NVML_MEMBER(needed, name, symbol, result, parameters) result(*name) parameters;
    NVML_MAP(NVML_MEMBER)
#undef NVML_MEMBER
};

/* Opens the library once for the life of the process: nvmlInit and nvmlShutdown are the caller's, in pairs.
 * ST_NOTFOUND: err says in one line that the library or which symbol is missing. Any thread. */
NODISCARD enum status nvml_api_open(const struct nvml_table **table, struct error *err);

#endif
