/* Collective operations of CPU ranks on one machine, over memory that they share: processes by a memfd, threads as they
 * are.
 *
 *   | header: sizes, abort word, barrier | notes [2][ranks] | slots [2][ranks][slot_bytes] |
 *
 * An operation is taken in pieces of slot_bytes. A rank writes its piece to its slot, all meet, and each reads what it
 * wants: one barrier a piece, since slots alternate between two sets. (Who writes set 0 again has met everybody at a
 * piece of set 1, so everybody has read set 0.) Beside each slot stands what its owner thinks is being done; ranks that
 * disagree find out there instead of adding up each other's garbage.
 *
 * Waiting spins for a while, where the ranks have processors for that, and then sleeps in a futex. Rejected: pipes (two
 * copies and a system call a rank for each sum); reduce-scatter first (two barriers, and sums of some KB are short).
 *
 * The memory is trusted: it is shared with processes of our own binary and user. */
#ifndef RUNTIME_DEVICE_COMM_LOCAL_H
#define RUNTIME_DEVICE_COMM_LOCAL_H

#include "runtime/base/clock.h"
#include "runtime/device/comm.h"

struct comm_local_config {
    uint32_t rank, ranks;
    size_t slot_bytes;    /* as comm_local_prepare was told; a multiple of 64 */
    uint64_t deadline_ns; /* of each wait */
    uint64_t spin_ns;     /* of each wait, before it sleeps; 0 where ranks have more threads than processors */
    const struct clock *clock;
};

/* Bytes of the shared memory. */
size_t comm_local_bytes(uint32_t ranks, size_t slot_bytes);
/* Makes it ready; by one rank, before any joins. memory: zeroed, of comm_local_bytes, aligned to 64. */
void comm_local_prepare(void *memory, uint32_t ranks, size_t slot_bytes);
/* A rank's comm over the memory, which must outlive it and is not unmapped by destroy. ST_NOMEM; ST_INVAL: the memory
 * was not prepared for such ranks and sizes. */
NODISCARD enum status comm_local_join(void *memory, const struct comm_local_config *config, struct comm **comm);

/* As comm_abort, for all who have joined the memory; of who is none of them. Any thread. */
void comm_local_abort(void *memory);

/* Shared memory that can be passed to another process: a memfd of the size, zeroed and mapped. ST_NOMEM. Release with
 * comm_memory_unmap; fd is the caller's. */
NODISCARD enum status comm_memory_create(size_t size_bytes, int *fd, void **memory);
/* Maps what another process made. ST_IO: fd is no such memory, or of another size. */
NODISCARD enum status comm_memory_map(int fd, size_t size_bytes, void **memory);
void comm_memory_unmap(void *memory, size_t size_bytes);

#endif
