/* What a device asks of the others when it is the part of a larger one that one process holds, and the other parts are
 * other processes' (device_nodes.h): which ranks it has, and what must be agreed on. A device that takes part hands a
 * struct of these to nobody; it only calls them. */
#ifndef RUNTIME_DEVICE_DEVICE_SHARE_H
#define RUNTIME_DEVICE_DEVICE_SHARE_H

#include "runtime/base/status.h"

#include <stdint.h>

enum { DEVICE_SHARE_ID_BYTES = 128 /* an ncclUniqueId */ };

struct device_share {
    uint32_t rank_first, ranks_all;    /* this process's first rank, above 0 for those that follow process 0: they take
                                          a TOKEN_OF_ROW of the step before even when they have collected that one,
                                          which process 0 has not; ranks of all processes */
    uint8_t id[DEVICE_SHARE_ID_BYTES]; /* of the communicator, made by process 0 */
    /* Called once while creating: blocks that fit here become the smallest number of all processes. Waits for them. */
    enum status (*agree)(void *state, uint32_t *kv_blocks, struct error *err);
    /* ST_DEVICE: another process is gone, err says which: the device is lost. Called again and again while it waits;
     * the thread that uses the device. */
    enum status (*check)(void *state, struct error *err);
    void *state;
};

#endif
