/* Hardware errors as NVML reports them, on a thread of its own: an XID tells what a CUDA error, if one comes at all,
 * does not, and comes while kernels still run.
 *
 * What an application itself brings about (a bad address, a page fault) shows as a CUDA error of the step and is only
 * logged here. Errors that the GPU contained or corrected are logged. Everything else loses the device.
 * Source: NVIDIA's XID catalogue (docs.nvidia.com/deploy/xid-errors); numbers that it does not list lose the device. */
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/device/cuda/cuda_ranks.h"

#include <string.h>

enum { WAIT_MS = 200 };

struct cuda_watch {
    struct device_cuda *cuda;
    const struct nvml_table *nvml;
    struct nvml_events *events;
    struct nvml_device *gpus[CUDA_RANKS_MAX];
    pthread_t thread;
    atomic_bool stop;
};

enum xid_meaning { XID_OF_STEP, XID_HARMLESS, XID_FATAL };

static enum xid_meaning meaning_of(unsigned long long xid)
{
    switch (xid) {
    case 13: /* graphics engine exception: a kernel's bad access */
    case 31: /* MMU fault */
    case 43: /* a channel was reset after an application's error */
    case 45: /* preemptive removal: what follows another error, or the end of a process */
    case 137: /* NVLink access fault of a kernel */ return XID_OF_STEP;
    case 63: /* a page or row will be retired or remapped */
    case 92: /* many corrected errors */ return XID_HARMLESS;
    default: return XID_FATAL;
    }
}

static int gpu_of(const struct cuda_watch *watch, const struct nvml_device *device)
{
    for (uint32_t r = 0; r < watch->cuda->ranks_count; r++) {
        if (watch->gpus[r] == device) return watch->cuda->ranks[r].gpu;
    }
    return -1;
}

static void judge(struct cuda_watch *watch, const struct nvml_event *event)
{
    int gpu = gpu_of(watch, event->device);
    if (event->type == NVML_EVENT_ECC_DOUBLE) {
        device_cuda_lose(watch->cuda, ST_DEVICE, "GPU %d: memory error that ECC cannot correct", gpu);
        return;
    }
    if (event->type != NVML_EVENT_XID) return;
    enum xid_meaning meaning = meaning_of(event->data);
    if (meaning == XID_FATAL) {
        device_cuda_lose(watch->cuda, ST_DEVICE, "GPU %d: XID %llu", gpu, event->data);
    } else {
        log_line(LOG_WARN, "cuda", "event=xid gpu=%d xid=%llu meaning=%s", gpu, event->data,
                 meaning == XID_OF_STEP ? "a_step_s_own" : "harmless");
    }
}

static void *watch_main(void *state)
{
    struct cuda_watch *watch = state;
    while (!atomic_load(&watch->stop)) {
        struct nvml_event event;
        memset(&event, 0, sizeof event);
        int result = watch->nvml->events_wait(watch->events, &event, WAIT_MS);
        if (result == NVML_OK) {
            judge(watch, &event);
        } else if (result != NVML_TIMED_OUT) {
            if (result == NVML_GPU_LOST) device_cuda_lose(watch->cuda, ST_DEVICE, "NVML: a GPU is lost");
            break; /* events cannot be had: steps go on and show errors themselves */
        }
    }
    return NULL;
}

/* Refuses a GPU that must be reset first, and asks for its events. Old drivers know neither. */
static enum status add_gpu(struct cuda_watch *watch, uint32_t r, struct error *err)
{
    const struct cuda_rank *rank = &watch->cuda->ranks[r];
    struct nvml_device **gpu = &watch->gpus[r];
    if (watch->nvml->device_by_pci(rank->pci, gpu) != NVML_OK) {
        *gpu = NULL;
        return ST_OK;
    }
    struct nvml_field field = {.id = NVML_FIELD_RECOVERY_ACTION};
    if (watch->nvml->fields(*gpu, 1, &field) == NVML_OK && field.result == NVML_OK && field.value.u32 != 0) {
        return error_set(err, ST_DEVICE, "GPU %d must be reset or its machine rebooted first (NVML recovery action %u)",
                         rank->gpu, field.value.u32);
    }
    unsigned long long supported = 0, wanted = NVML_EVENT_XID | NVML_EVENT_ECC_DOUBLE;
    if (watch->nvml->events_supported(*gpu, &supported) != NVML_OK) return ST_OK;
    if (supported & wanted) (void)watch->nvml->events_register(*gpu, supported & wanted, watch->events);
    return ST_OK;
}

enum status cuda_watch_start(struct device_cuda *cuda, struct error *err)
{
    const struct nvml_table *nvml = cuda->libraries.nvml;
    if (!nvml || nvml->init() != NVML_OK) return ST_OK;
    struct cuda_watch *watch = mem_alloc(1, sizeof *watch);
    if (!watch) return error_set(err, ST_NOMEM, "no memory for the device");
    watch->cuda = cuda;
    watch->nvml = nvml;
    enum status status = nvml->events_create(&watch->events) == NVML_OK ? ST_OK : ST_NOTFOUND;
    for (uint32_t r = 0; status == ST_OK && r < cuda->ranks_count; r++) status = add_gpu(watch, r, err);
    if (status == ST_OK && pthread_create(&watch->thread, NULL, watch_main, watch)) status = ST_NOTFOUND;
    if (status == ST_OK) {
        cuda->watch = watch;
        return ST_OK;
    }
    if (watch->events) (void)nvml->events_free(watch->events);
    (void)nvml->shutdown();
    mem_free(watch);
    return status == ST_NOTFOUND ? ST_OK : status;
}

void cuda_watch_stop(struct device_cuda *cuda)
{
    struct cuda_watch *watch = cuda->watch;
    if (!watch) return;
    atomic_store(&watch->stop, true);
    (void)pthread_join(watch->thread, NULL);
    (void)watch->nvml->events_free(watch->events);
    (void)watch->nvml->shutdown();
    mem_free(watch);
    cuda->watch = NULL;
}
