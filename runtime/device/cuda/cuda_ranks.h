/* The CUDA device's threads as the engine's thread sees them: one a rank (cuda_rank.c), which does what it is told in
 * order, and NVML's (cuda_watch.c). Private to the device; cuda_parts.h has the structs and rules G1-G4. */
#ifndef RUNTIME_DEVICE_CUDA_CUDA_RANKS_H
#define RUNTIME_DEVICE_CUDA_CUDA_RANKS_H

#include "runtime/device/cuda/cuda_parts.h"

/* Whether its comms are sound: ST_DEVICE. Any thread, once they are open. */
NODISCARD enum status cuda_rank_check(const struct cuda_rank *rank, struct error *err);
NODISCARD enum status cuda_ranks_start(struct device_cuda *cuda, struct error *err);
/* Tells all ranks; cuda_ranks_wait waits until they have done all they were told, or ST_TIMEOUT after deadline_ns
 * (UINT64_MAX: none; while waiting, `idle` is called every 100 ms), or the device is lost. */
void cuda_ranks_tell(struct device_cuda *cuda, enum rank_command command, uint32_t generation);
NODISCARD enum status cuda_ranks_wait(struct device_cuda *cuda, uint64_t deadline_ns, void (*idle)(void *state),
                                      void *state);
/* Waits up to a second for threads to end; false: some did not. */
bool cuda_ranks_end(struct device_cuda *cuda);

/* ---- NVML ---- */

NODISCARD enum status cuda_watch_start(struct device_cuda *cuda, struct error *err);
void cuda_watch_stop(struct device_cuda *cuda);

#endif
