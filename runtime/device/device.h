/* A device: holds the packed weights and the KV blocks, and turns a batch into tokens. device_cpu.c, later
 * device_cuda.c; tests bring a null device (ids from a hash) and faulty ones. Called on the engine's thread; a step
 * allocates nothing.
 *
 * A device of its own processor runs one step ahead of the host, so that it never waits for it: the host launches a
 * step while the one before still runs, and reads results one step late.
 *
 *   launch 1, launch 2, collect 1, launch 3, collect 2, ...   at most LAUNCHED_MAX are launched and not collected
 *
 * L1. Steps run in the order of their launches: a step finds all KV that earlier ones write, and a block that changes
 *     hands is written by its new sequence only after the old one's last step.
 * L2. launch reads the batch and all it points to (tables, params, bias, allowed, seen, banned) before it returns;
 *     nothing of it is looked at later: the batch is rewritten, requests may end and their memory go.
 * L3. An id travels on the device from the row that chooses it to the TOKEN_OF_ROW of the next step; with `pending` it
 *     also counts as output in that row's penalties (batch.h). Every other input of a row is known without it: bans of
 *     min_tokens follow from counts, bias and allowed ids from the request. What the host must work out from the id
 *     itself (a grammar's mask) cannot run ahead: that sequence sits a step out.
 * L4. Rows may turn out not to be needed: their sequence ended with the id that they continue. They are computed like
 *     others, into blocks that stay theirs until the step is collected, and ignored. The same goes for a row that
 *     continues one with flags (ROW_NOT_FINITE, ROW_NO_CHOICE): the device takes any id of the vocabulary for it.
 * L5. When either call gives ST_DEVICE the device is lost and so are all steps that are not collected: nothing more is
 *     launched or collected, and the device touches neither batches nor results again. */
#ifndef RUNTIME_DEVICE_DEVICE_H
#define RUNTIME_DEVICE_DEVICE_H

#include "kernels/cpu_path.h"
#include "runtime/base/status.h"
#include "runtime/batch.h"
#include "runtime/model/model.h"

#include <stddef.h>
#include <stdint.h>

struct device;
struct comm;

struct device_info {
    char name[64]; /* "cpu avx512, 2 threads" */
    uint32_t vocab;
    uint32_t kv_blocks;    /* ids 0 .. kv_blocks-1 */
    size_t kv_block_bytes; /* over all layers */
    size_t weights_bytes;  /* packed */
    size_t scratch_bytes;  /* activations, logits and the like */
    uint32_t tokens_max, seqs_max, rows_max;
};

/* Where the time of steps goes: ticks of the processor's time-stamp counter (nanoseconds where there is none), summed
 * over threads and steps. Shares are what they are for. */
enum device_phase {
    PHASE_EMBED,     /* embedding and RoPE's angles */
    PHASE_PREPARE,   /* norms, activations to int8 */
    PHASE_QKV,       /* Q, K, V, RoPE, KV write */
    PHASE_ATTENTION, /* over the paged KV */
    PHASE_O,         /* output projection, residual */
    PHASE_GATED,     /* gate, up, GLU */
    PHASE_DOWN,      /* down projection, residual */
    PHASE_HEAD,      /* lm_head */
    PHASE_SAMPLE,    /* refinement and sampling of rows */
    PHASE_WAIT,      /* at barriers */
    PHASE_RANKS,     /* sums over ranks and what else passes between them, waiting included */
    PHASE_COUNT
};

enum { LAUNCHED_MAX = 2 /* steps that are launched and not collected */ };

/* A device has step, or launch and collect, or all three. */
struct device_ops {
    /* Runs one step: writes the KV of all its tokens and result->rows[0 .. rows_count). ST_DEVICE: the device is lost
     * and the step must be discarded whole. ST_INVAL: the batch breaks the contract (our bug, found before anything
     * ran). */
    enum status (*step)(struct device *device, const struct batch *batch, struct batch_result *result);
    void (*destroy)(struct device *device);
    /* Gives the memory of the KV blocks back to the system; what they held is lost. The device takes steps again
     * afterwards. With no step under way; NULL: nothing to give back. */
    void (*empty_kv)(struct device *device);
    /* Begins a step and returns: L1-L5 above. ST_INVAL: the batch breaks the contract or LAUNCHED_MAX are under way
     * (our bug): nothing was launched. ST_DEVICE: L5. NULL: the device runs one step at a time. */
    enum status (*launch)(struct device *device, const struct batch *batch);
    /* Waits for the oldest step that is launched and not collected, and writes its result->rows[0 .. rows_count).
     * ST_DEVICE: L5. ST_INVAL: there is none (our bug). NULL with launch. */
    enum status (*collect)(struct device *device, struct batch_result *result);
    /* Whether the device is lost although no call has said so yet (a rank's process has ended, a GPU has fallen off the
     * bus): then L5 holds. Asked between steps, also when there is nothing to do. NULL: only calls tell. */
    bool (*is_lost)(struct device *device);
};

struct device { /* the first member of every implementation */
    const struct device_ops *ops;
    struct device_info info;
    uint64_t phase_ticks[PHASE_COUNT]; /* so far; written at the end of a step */
};

struct device_config {
    enum cpu_path path;
    enum numerics numerics;
    bool kv_int8;         /* KV in int8 instead of BF16, half the bytes; fast numerics only */
    uint32_t threads;     /* >= 1, the engine's own thread included */
    size_t kv_bytes;      /* memory for KV blocks; kv_blocks = kv_bytes / block, at least one sequence's worth */
    uint32_t tokens_max;  /* tokens a step */
    uint32_t seqs_max;    /* sequences a step */
    uint32_t rows_max;    /* rows with logits a step */
    uint32_t context_max; /* positions a sequence may reach */
    struct comm
        *comm; /* of a model's part (model_shard.h) among the ranks of all parts, which it outlives; else NULL */
    struct comm *stages; /* the same among the stages of its layers (model_stage.h) */
};

/* Called while weights are packed, with bytes done and in all. The caller's thread. */
typedef void (*device_progress_fn)(void *state, size_t done_bytes, size_t total_bytes);

/* Packs the model's weights with all threads and takes all memory the device will ever need. The model's file may be
 * released afterwards. ST_NOMEM, ST_INVAL (err names the tensor or setting). The caller owns the device.
 *
 * A device of a part runs every step together with those of the other parts, which are given the same batches in the
 * same order and have as many KV blocks. Rows are chosen by rank 0 of stage 0; others leave results as they are and
 * look at no params. When the comm fails the device is lost: ST_DEVICE, for this step and all after it. */
NODISCARD enum status device_cpu_create(const struct model *model, const struct device_config *config,
                                        device_progress_fn progress, void *progress_state, struct device **device,
                                        struct error *err);

/* Bytes of one block of 16 tokens over all layers, as device_cpu_create will take them. */
size_t device_cpu_kv_block_bytes(const struct model_spec *spec, enum numerics numerics, bool kv_int8);

static inline bool device_runs_ahead(const struct device *device)
{
    return device->ops->launch != NULL;
}
static inline enum status device_launch(struct device *device, const struct batch *batch)
{
    return device->ops->launch(device, batch);
}
static inline enum status device_collect(struct device *device, struct batch_result *result)
{
    return device->ops->collect(device, result);
}
/* One step, waited for. With none under way; no token is a TOKEN_OF_ROW. */
static inline enum status device_step(struct device *device, const struct batch *batch, struct batch_result *result)
{
    if (device->ops->step) return device->ops->step(device, batch, result);
    TRY(device_launch(device, batch));
    return device_collect(device, result);
}
static inline void device_empty_kv(struct device *device)
{
    if (device->ops->empty_kv) device->ops->empty_kv(device);
}
static inline bool device_is_lost(struct device *device)
{
    return device->ops->is_lost && device->ops->is_lost(device);
}
static inline void device_destroy(struct device *device)
{
    if (device) device->ops->destroy(device);
}

#endif
