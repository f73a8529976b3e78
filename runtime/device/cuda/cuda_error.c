/* What CUDA's errors mean to us, and losing a device.
 *
 * An error of a kernel is sticky: the context is gone, and every later call gives the same. What an error code that we
 * do not know means cannot be known either, so all but a few at start mean that the device is lost: the step is
 * discarded and no further CUDA call is made. Source: driver_types.h of CUDA 13.0. */
#include "runtime/base/log.h"
#include "runtime/device/cuda/cuda_parts.h"

#include <stdarg.h>
#include <stdio.h>

enum status cuda_result(cudaError_t error, const char *what, struct error *err)
{
    if (error == cudaSuccess) return ST_OK;
    enum status status = ST_DEVICE;
    if (error == cudaErrorMemoryAllocation) status = ST_NOMEM;
    if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver || error == cudaErrorInvalidDevice)
        status = ST_NOTFOUND;
    return error_set(err, status, "%s: CUDA error %d (%s)", what, (int)error, cudaGetErrorString(error));
}

void device_cuda_lose(struct device_cuda *cuda, enum status status, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    pthread_mutex_lock(&cuda->mutex);
    bool first = !cuda->lost;
    if (first) {
        cuda->lost = true;
        cuda->failure = error_set(&cuda->reason, status, "%s", text);
        atomic_store(&cuda->lost_now, true);
        pthread_cond_broadcast(&cuda->to_ranks);
        pthread_cond_broadcast(&cuda->to_host);
    }
    pthread_mutex_unlock(&cuda->mutex);
    if (!first) return;
    if (status == ST_DEVICE) log_line(LOG_ERROR, "cuda", "event=device_lost reason=\"%s\"", cuda->reason.message);
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        if (cuda->ranks[r].stop) __atomic_store_n(cuda->ranks[r].stop, CUDA_ALL_REDUCE_ABORT, __ATOMIC_RELEASE);
        struct comm *comms[] = {cuda->ranks[r].comm, cuda->ranks[r].line, cuda->ranks[r].all};
        for (uint32_t i = 0; i < sizeof comms / sizeof *comms; i++)
            if (comms[i]) comm_abort(comms[i]);
    }
}
