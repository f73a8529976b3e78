/* Collective operations among the ranks of one model (tensor parallelism, or the stages of its layers): a table of
 * operations, one object a rank.
 *
 *   comm_local.c   CPU ranks: processes, or threads, over shared memory
 *   (CUDA ranks bring their own, which enqueue on a stream and report errors at the next wait)
 *
 * C1. All ranks call the same operations with the same sizes in the same order.
 * C2. A sum is taken in rank order, rank 0's value first, and has the same bits on every rank.
 * C3. Nobody waits for ever: an operation that makes no progress within the deadline gives ST_TIMEOUT, one whose comm
 *     was aborted, by any rank, ST_CANCELED. Either way, and after ST_PROTO (ranks disagree about the operation), the
 *     comm is aborted for all ranks, every later call gives ST_CANCELED, and what an operation has written is void.
 *
 * One thread a rank at a time; abort may come from any thread. */
#ifndef RUNTIME_DEVICE_COMM_H
#define RUNTIME_DEVICE_COMM_H

#include "runtime/base/status.h"

#include <stddef.h>
#include <stdint.h>

#define COMM_ALL UINT32_MAX /* as the root of a gather: every rank */

enum comm_type { COMM_F32, COMM_BF16 };

struct comm;

struct comm_ops {
    enum status (*all_reduce)(struct comm *comm, void *data, size_t count, enum comm_type type, void *stream);
    enum status (*gather)(struct comm *comm, const void *part, size_t part_bytes, void *all, uint32_t root,
                          void *stream);
    enum status (*broadcast)(struct comm *comm, void *data, size_t size_bytes, uint32_t root, void *stream);
    enum status (*pass)(struct comm *comm, void *data, size_t size_bytes, uint32_t from, uint32_t to, void *stream);
    enum status (*barrier)(struct comm *comm);
    void (*give_up)(struct comm *comm);
    void (*destroy)(struct comm *comm);
};

struct comm { /* the first member of every implementation */
    const struct comm_ops *ops;
    uint32_t rank, ranks;
};

/* data[i], over all ranks, becomes their sum on every rank (C2). stream: a queue of the device, or NULL. ST_INVAL: a
 * type that the implementation does not add. */
static inline enum status comm_all_reduce(struct comm *comm, void *data, size_t count, enum comm_type type,
                                          void *stream)
{
    return comm->ops->all_reduce(comm, data, count, type, stream);
}
/* all[rank * part_bytes ..] becomes each rank's part, on the root or with COMM_ALL everywhere. Elsewhere all may be
 * NULL. part_bytes is the same on all ranks. */
static inline enum status comm_gather(struct comm *comm, const void *part, size_t part_bytes, void *all, uint32_t root,
                                      void *stream)
{
    return comm->ops->gather(comm, part, part_bytes, all, root, stream);
}
/* data becomes the root's on every rank. */
static inline enum status comm_broadcast(struct comm *comm, void *data, size_t size_bytes, uint32_t root, void *stream)
{
    return comm->ops->broadcast(comm, data, size_bytes, root, stream);
}
/* data becomes from's on the rank `to`. All ranks call it (C1); of the others data may be NULL. */
static inline enum status comm_pass(struct comm *comm, void *data, size_t size_bytes, uint32_t from, uint32_t to,
                                    void *stream)
{
    return comm->ops->pass(comm, data, size_bytes, from, to, stream);
}
/* Returns when all ranks are here. */
static inline enum status comm_barrier(struct comm *comm)
{
    return comm->ops->barrier(comm);
}
/* Ends every operation of every rank, now and later (C3). Any thread, also while its own rank is in an operation. */
static inline void comm_abort(struct comm *comm)
{
    comm->ops->give_up(comm);
}
/* Does not end the other ranks' operations: abort first where they may be waiting. NULL is fine. */
static inline void comm_destroy(struct comm *comm)
{
    if (comm) comm->ops->destroy(comm);
}

#endif
