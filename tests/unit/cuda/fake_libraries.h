/* The emulator's cuBLASLt and NCCL as the tables that the CUDA device calls by, and an NVML of our own in which tests
 * plant events. For tests. */
#ifndef TESTS_UNIT_CUDA_FAKE_LIBRARIES_H
#define TESTS_UNIT_CUDA_FAKE_LIBRARIES_H

#include "runtime/device/cuda/cuda_api.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define FAKE_DECLARE(name, symbol, result, parameters) extern result symbol parameters;
#define FAKE_ENTRY(name, symbol, result, parameters)   .name = symbol,
CUBLASLT_MAP(FAKE_DECLARE)
NCCL_MAP(FAKE_DECLARE)
static const struct cublaslt_table fake_cublaslt = {CUBLASLT_MAP(FAKE_ENTRY)};
static const struct nccl_table fake_nccl = {NCCL_MAP(FAKE_ENTRY)};

/* An NVML of a few GPUs that are in order until a test says otherwise. */
static _Atomic unsigned long long fake_nvml_xid; /* the next event; 0: none */
static _Atomic unsigned fake_nvml_recovery;
static atomic_int fake_nvml_open, fake_nvml_result; /* calls of init less shutdown; what events_wait gives */

static inline int fake_nvml_init(void)
{
    atomic_fetch_add(&fake_nvml_open, 1);
    return NVML_OK;
}
static inline int fake_nvml_shutdown(void)
{
    atomic_fetch_sub(&fake_nvml_open, 1);
    return NVML_OK;
}
static inline int fake_nvml_by_pci(const char *pci, struct nvml_device **device)
{
    static char gpu;
    (void)pci;
    *device = (struct nvml_device *)(void *)&gpu;
    return NVML_OK;
}
static inline int fake_nvml_events_create(struct nvml_events **events)
{
    static char set;
    *events = (struct nvml_events *)(void *)&set;
    return NVML_OK;
}
static inline int fake_nvml_events_free(struct nvml_events *events)
{
    (void)events;
    return NVML_OK;
}
static inline int fake_nvml_supported(struct nvml_device *device, unsigned long long *types)
{
    (void)device;
    *types = NVML_EVENT_XID | NVML_EVENT_ECC_DOUBLE | 16;
    return NVML_OK;
}
static inline int fake_nvml_register(struct nvml_device *device, unsigned long long types, struct nvml_events *events)
{
    (void)device, (void)events;
    return types == (NVML_EVENT_XID | NVML_EVENT_ECC_DOUBLE) ? NVML_OK : 2;
}
static inline int fake_nvml_wait(struct nvml_events *events, struct nvml_event *event, unsigned wait_ms)
{
    struct timespec pause = {0, 2000000};
    (void)events, (void)wait_ms;
    event->data = atomic_exchange(&fake_nvml_xid, 0);
    event->type = event->data == 1 ? NVML_EVENT_ECC_DOUBLE : NVML_EVENT_XID;
    (void)fake_nvml_by_pci("", &event->device);
    if (event->data) return NVML_OK;
    (void)nanosleep(&pause, NULL);
    return atomic_load(&fake_nvml_result) ? atomic_load(&fake_nvml_result) : NVML_TIMED_OUT;
}
static inline int fake_nvml_fields(struct nvml_device *device, int count, struct nvml_field *fields)
{
    (void)device, (void)count;
    fields->result = NVML_OK;
    fields->value.u32 = fields->id == NVML_FIELD_RECOVERY_ACTION ? atomic_load(&fake_nvml_recovery) : 0;
    return NVML_OK;
}
static const struct nvml_table fake_nvml = {.init = fake_nvml_init,
                                            .shutdown = fake_nvml_shutdown,
                                            .device_by_pci = fake_nvml_by_pci,
                                            .events_create = fake_nvml_events_create,
                                            .events_free = fake_nvml_events_free,
                                            .events_supported = fake_nvml_supported,
                                            .events_register = fake_nvml_register,
                                            .events_wait = fake_nvml_wait,
                                            .fields = fake_nvml_fields};

static const struct cuda_libraries fake_libraries = {&fake_cublaslt, &fake_nccl, &fake_nvml};

#endif
