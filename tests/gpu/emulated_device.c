/* The CUDA device of `millrace_emulated` and `bench_cuda_emulated`: the real one, with the emulator's libraries in
 * place of cuBLASLt, NCCL and NVML. Who creates it is compiled with the name of this call in place of the device's own.
 *
 * MILLRACE_EMULATED_FAULT=ERROR:K in the environment: the K-th kernel after the device was made leaves that sticky CUDA
 * error. */
#include "runtime/device/device_cuda.h"
#include "tests/emulator/faults.h"
#include "tests/unit/cuda/fake_libraries.h"

#include <stdio.h>
#include <stdlib.h>

enum status emulated_device_cuda_create(const struct model *model, const struct device_cuda_config *config,
                                        device_progress_fn progress, void *progress_state, struct device **device,
                                        struct error *err);
enum status emulated_device_cuda_nccl_id(const struct cuda_libraries *libraries, uint8_t id[DEVICE_SHARE_ID_BYTES],
                                         struct error *err);

enum status emulated_device_cuda_nccl_id(const struct cuda_libraries *libraries, uint8_t id[DEVICE_SHARE_ID_BYTES],
                                         struct error *err)
{
    (void)libraries;
    return device_cuda_nccl_id(&fake_libraries, id, err);
}

enum status emulated_device_cuda_create(const struct model *model, const struct device_cuda_config *config,
                                        device_progress_fn progress, void *progress_state, struct device **device,
                                        struct error *err)
{
    struct device_cuda_config emulated = *config;
    const char *fault = getenv("MILLRACE_EMULATED_FAULT");
    int error;
    unsigned long k;
    emulated.libraries = &fake_libraries;
    emulated.step_deadline_ns = UINT64_C(60000000000); /* the emulator is slow */
    TRY(device_cuda_create(model, &emulated, progress, progress_state, device, err));
    if (fault && sscanf(fault, "%d:%lu", &error, &k) == 2) fault_sticky(error, k);
    return ST_OK;
}
