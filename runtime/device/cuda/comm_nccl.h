/* Collective operations among GPUs by NCCL (comm.h): enqueued on a CUDA stream, also while it is captured.
 *
 * An operation returns when it is enqueued; what went wrong later shows when the stream is waited for: comm_nccl_check.
 * Sums are NCCL's own: the same bits on every rank, but their order is the library's choice (comm.h's C2 holds for one
 * build of it and one number of ranks). Barriers are not offered: a step needs none. The communicator is made and asked
 * without blocking, so that a rank that never comes costs a deadline and not the process. */
#ifndef RUNTIME_DEVICE_CUDA_COMM_NCCL_H
#define RUNTIME_DEVICE_CUDA_COMM_NCCL_H

#include "runtime/device/comm.h"
#include "runtime/device/cuda/cuda_api.h"

#include <stdatomic.h>

/* The communicator of this rank, on the calling thread's GPU; returns when all ranks have come. ST_DEVICE: NCCL fails,
 * ranks are missing for 120 s, or *stop was set; err. Caller owns the comm; comm_destroy and every operation are of the
 * same thread, comm_abort of any. */
NODISCARD enum status comm_nccl_create(const struct nccl_table *nccl, const struct nccl_id *id, uint32_t rank,
                                       uint32_t ranks, const atomic_bool *stop, struct comm **comm, struct error *err);
/* ST_DEVICE: an operation failed since; err is what NCCL says. Any thread, while the comm lives. */
NODISCARD enum status comm_nccl_check(struct comm *comm, struct error *err);

#endif
