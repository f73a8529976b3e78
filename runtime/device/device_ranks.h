/* A CPU device of several processes (tensor parallelism, stages of layers, or both: model_stage.h): each has a part of
 * the model, rank 0 is the caller's.
 *
 *   engine thread       step -> STEP to all ranks, the batch by comm -> own part of the step -> results
 *   supervisor thread   starts the ranks, hears their beats, sees their ends; says once who was lost and why, ends what
 *                       waits for the lost rank, and the other ranks
 *
 * R1. A rank that ends, falls silent for RANKS_SILENT_MS or gives up is noticed by the supervisor, whatever the engine
 *     does: the comm is aborted, a step in hand gives ST_DEVICE, and so does every later one; is_lost tells without a
 *     step. The device is not mended: its owner ends its process and a supervisor outside starts it again.
 * R2. No rank outlives this process: its socket closes, and the kernel kills it (PR_SET_PDEATHSIG; it goes by the
 * thread that started it, which is why the supervisor does, and lives as long as the device). device_destroy waits for
 *     their ends, by force after a while.
 * R3. KV blocks have one id on all ranks. kv_bytes is the sum over ranks, as are the bytes that info tells.
 *
 * The engine knows nothing of this. Threads of device_config are those of each rank. */
#ifndef RUNTIME_DEVICE_DEVICE_RANKS_H
#define RUNTIME_DEVICE_DEVICE_RANKS_H

#include "runtime/device/device.h"

enum { RANKS_SILENT_MS = 4000 /* of a beat each second; reported within 5 s */ };

struct device_ranks_config {
    struct device_config device; /* of each rank, but for kv_bytes; its comm is not looked at */
    uint32_t ranks;              /* of a stage */
    uint32_t stages;             /* 0: 1. stages * ranks processes, 2 to MODEL_RANKS_MAX */
    const char *model_path;      /* other ranks open the model again */
    uint64_t deadline_ns;        /* of a wait of one rank for the others in a step; 0: a minute */
    /* Starts a rank that serves the socket (rank_worker_run), which becomes its own; gives its process, or 0 where it
     * has none, as in tests. NULL: this program again, as "rank-worker 3" with the socket as fd 3. The supervisor
     * thread. */
    enum status (*start)(void *state, uint32_t rank, int socket, int32_t *pid);
    void *start_state;
    uint32_t silent_ms; /* 0: RANKS_SILENT_MS */
};

/* Divides the model, starts the ranks and waits until all have packed their parts. whole: the model at model_path,
 * open; its file may be released afterwards. ST_INVAL: the model does not divide so; others as device_cpu_create, on
 * any rank: err says which. */
NODISCARD enum status device_ranks_create(const struct model *whole, const struct device_ranks_config *config,
                                          device_progress_fn progress, void *progress_state, struct device **device,
                                          struct error *err);

/* Bytes of one block of 16 tokens over all layers and ranks: KV heads that ranks share count for each. 0: the model
 * does not divide into so many parts, err says why. One rank: as device_cpu_kv_block_bytes. */
size_t device_ranks_kv_block_bytes(const struct model *whole, uint32_t ranks, uint32_t stages, enum numerics numerics,
                                   bool kv_int8, struct error *err);

#endif
