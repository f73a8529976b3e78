/* The comms of CPU ranks that divide matrices, layers, or both. A rank's number is stage * ranks + rank.
 *
 *              rank 0   rank 1        a row has a comm (sums, logits), a column has another (rows of the residual
 *   stage 0       0        1          stream), and all have a third (batches)
 *   stage 1       2        3
 *
 * They lie one behind the other in one shared memory: | all | stage 0 | stage 1 | .. | rank 0 | rank 1 | .. |. With one
 * stage, or one rank a stage, the first serves for the others, which are not there. Who gives up ends them all, since
 * others may be waiting in any of them. */
#ifndef RUNTIME_DEVICE_RANK_COMMS_H
#define RUNTIME_DEVICE_RANK_COMMS_H

#include "runtime/device/comm_local.h"

struct rank_comms {
    void *memory; /* borrowed; NULL: not joined */
    uint32_t ranks, stages;
    size_t slot_bytes;
    struct comm *all;   /* its rank is the number */
    struct comm *peers; /* of the stage; NULL: it has one rank */
    struct comm *line;  /* of the rank in all stages; NULL: there is one stage */
};

size_t rank_comms_bytes(uint32_t ranks, uint32_t stages, size_t slot_bytes);
/* As comm_local_prepare. */
void rank_comms_prepare(void *memory, uint32_t ranks, uint32_t stages, size_t slot_bytes);
/* As comm_local_join: config's ranks are all, its rank the number; they are a multiple of stages. Nothing is held on
 * failure. */
NODISCARD enum status rank_comms_join(void *memory, const struct comm_local_config *config, uint32_t stages,
                                      struct rank_comms *comms);
/* Any thread, from join to leave. */
void rank_comms_abort(const struct rank_comms *comms);
/* Fine on zeroed ones. */
void rank_comms_leave(struct rank_comms *comms);

#endif
