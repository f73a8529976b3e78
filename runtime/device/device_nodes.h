/* One device over several processes, on one machine or more: process 0 leads, the others follow.
 *
 *   engine -> device of process 0 -> launch: own part, and the batch as a frame to the others
 *                                    collect: own part. What must be summed passes between the parts themselves
 *   follower                         a frame -> launch of its own part, one step ahead as process 0's is; results are
 *                                    thrown away: every part chooses the same ids from the same logits
 *
 *   meeting     rendezvous.h: who is there, the communicator's id, beats. START when all have the same settings
 *   creating    every process loads its part; BLOCKS to 0, the smallest number AGREED; READY to 0
 *   running     STEP frames of process 0 (node_link.h); FAILED with a reason from whoever gives up
 *   the end     goodbye by process 0: followers return ST_OK. Anything else is a loss, for all
 *
 * F1. A process that ends, gives up, falls silent, does not take a frame or whose part is lost is noticed by every
 * other within RENDEZVOUS's lost_ms: its calls give ST_DEVICE, and is_lost tells without a call. F2. A part is any
 * device with launch and collect that makes its sums with the others by itself; it calls device_share.check while it
 * waits, so that nothing waits for a process that is gone. F3. What comes over the wire is checked here and by the part
 * (batch_wire.h, batch_rows_wire.h): a frame that is no step ends the follower, not its memory's order. */
#ifndef RUNTIME_DEVICE_DEVICE_NODES_H
#define RUNTIME_DEVICE_DEVICE_NODES_H

#include "runtime/device/device.h"
#include "runtime/device/device_share.h"
#include "runtime/device/rendezvous.h"

struct device_nodes_config {
    struct rendezvous_config meeting;                            /* but for what this sets: blob, on_end, channels */
    uint32_t ranks;                                              /* of this process; all have as many */
    uint32_t tokens_max, seqs_max, rows_max, context_max, vocab; /* of a step */
    uint8_t id[DEVICE_SHARE_ID_BYTES];                           /* process 0's */
    /* Makes this process's part. The share lives as long as the device. */
    enum status (*create)(void *state, const struct device_share *share, struct device **device, struct error *err);
    void *state;
    uint32_t take_ms;          /* node_link.h; 0: its own */
    bool (*stop)(void *state); /* followers: asked between steps: leave now? NULL: never */
};

/* Process 0: meets the others and returns when all parts are ready. ST_TIMEOUT, ST_INVAL, ST_IO: rendezvous_open's;
 * ST_DEVICE: another process gave up; what create gives. err is one line. The caller owns the device. */
NODISCARD enum status device_nodes_lead(const struct device_nodes_config *config, struct device **device,
                                        struct error *err);

/* The others: meets process 0, makes its part and runs its steps. ready, when the part is, may be NULL. ST_OK: process
 * 0 has said goodbye. ST_CANCELED: stop said so, the others lose this process. ST_DEVICE: another process or this part
 * is lost. Before ready also what device_nodes_lead gives. */
NODISCARD enum status device_nodes_follow(const struct device_nodes_config *config,
                                          void (*ready)(void *state, const struct device_info *info),
                                          struct error *err);

#endif
