/* The parts of the CUDA device, shared by its files alone: device_cuda.c (life, launch and collect), cuda_rank.c (a
 * GPU's thread), cuda_weights.c (loading), cuda_memory.c (work space, KV), cuda_layers.c (the layers of a step),
 * cuda_matmul.c (which matmul), cuda_graph.c (graphs), cuda_error.c, cuda_watch.c (NVML). README.md draws a step.
 *
 * G1. CUDA is called by rank threads alone, one a GPU; the engine's thread checks and fills the step, tells the ranks
 *     and waits for them, with a deadline. A GPU or a driver that hangs so hangs a rank's thread, never the engine's.
 * G2. Everything is taken in device_cuda_create; a step only reads and writes it.
 * G3. One stream a rank carries all of its work: a step's copy in, its kernels, its copy out. So a step finds all that
 *     the step before has written, ids included.
 * G4. When the device is lost, no thread begins another CUDA call.
 * Shape letters as in kernels/README.md; H, KH, F are this rank's. */
#ifndef RUNTIME_DEVICE_CUDA_CUDA_PARTS_H
#define RUNTIME_DEVICE_CUDA_CUDA_PARTS_H

#include "kernels/cuda_ops.h"
#include "runtime/device/comm.h"
#include "runtime/device/cuda/attention_plan.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda/cuda_step_buffer.h"
#include "runtime/device/cuda/matmul_library.h"
#include "runtime/device/device_cuda.h"

#include <pthread.h>
#include <stdatomic.h>

enum {
    GRAPH_BUCKETS = 15,
    GENERATIONS = LAUNCHED_MAX, /* steps whose pinned memory is in use */
    LOGIT_ROWS = 256,           /* rows that the head is multiplied with and sampled at a time */
    RANK_COMMANDS = 4,          /* told to a rank and not done: two launches and a collect at most */
    ROPES_MAX = 2,              /* of all layers, of windowed ones */
    QKV_PARTS = 3
};

/* ---- weights ---- */

struct cuda_layer {
    struct cuda_weight qkv[QKV_PARTS]; /* one of all rows, or Q, K, V of several types side by side */
    struct cuda_weight o, down, router;
    struct cuda_weight gated[2]; /* one of alternating rows, or gate and up */
    uint32_t qkv_parts, gated_parts;
    struct cuda_weight *expert_gated, *expert_down; /* (X), with experts: then no gated and down. This rank's experts
                                                       alone are there */
    bool windowed;
    float *attn_norm, *ffn_norm;           /* (E) */
    float *attn_post_norm, *ffn_post_norm; /* (E) or NULL */
    float *q_norm, *k_norm;                /* (D) or NULL */
};

struct cuda_weights {
    uint8_t *memory;
    size_t bytes, vectors_bytes;    /* all; the part at the beginning that vectors take */
    struct cuda_layer *layers;      /* (L) */
    struct cuda_weight *experts;    /* (L, 2, X), host memory of the layers' */
    struct cuda_weight embed, head; /* one and the same codes when tied */
    float *final_norm;              /* (E) */
    uint64_t *turns[ROPES_MAX];     /* (rope_size / 2) cuda_rope_turn */
};

/* ---- work space: what the kernels of a step hand each other ---- */

struct cuda_space {
    float *x;                                     /* (N, E) residual stream */
    uint16_t *h;                                  /* (N, E) normed; in the end (R, E) of wanted rows */
    uint16_t *qkv;                                /* (N, (H + 2 KH) D) */
    uint16_t *attended;                           /* (N, H D) */
    uint16_t *y;                                  /* (N, E) what attention or feed-forward gives */
    uint16_t *gu;                                 /* (N, 2 F) gate and up where the matmul does not make the GLU */
    uint16_t *act;                                /* (N, F) */
    uint32_t *bad;                                /* (N) */
    float *logits;                                /* (LOGIT_ROWS, V); ranks > 1: of this rank's rows of the head */
    float *gathered;                              /* ranks > 1: (ranks, LOGIT_ROWS, V of a rank) */
    float *all_logits;                            /* ranks > 1: (LOGIT_ROWS, V); else the same as logits */
    uint32_t *ids, *previous;                     /* (R) chosen in this step and in the one before */
    struct row_result *results;                   /* (R) */
    uint8_t *step;                                /* the step buffer */
    void *attention, *matmul, *sample, *cublaslt; /* scratch of attention, matmuls, sampling, the library */
    uint16_t *panel;                              /* rows of a weight unpacked for cuBLASLt */
    struct cuda_moe moe;
    uint16_t *parts; /* ranks > 1: what the one-shot sums of the peers are pushed into */
    uint32_t *part_flags, *part_epochs;
    float *router_logits;            /* (N, X) */
    uint16_t *expert_act, *expert_y; /* (N used, F), (N used, E) */
};

/* ---- a rank ---- */

enum rank_command { RANK_OPEN, RANK_LOAD, RANK_PREPARE, RANK_LAUNCH, RANK_COLLECT, RANK_CLOSE };

/* A step that is launched and not collected, or was. */
struct cuda_generation {
    uint8_t *host;              /* pinned: the step buffer as it travels */
    struct row_result *results; /* pinned: (R) as they come back */
    cudaEvent_t done;           /* after the copy of the results */
    struct cuda_step_layout layout;
    size_t bytes; /* of host that are used */
    uint32_t tokens, rows;
    uint32_t bucket; /* index of its graph; GRAPH_BUCKETS: none */
};

struct cuda_graph {
    cudaGraphExec_t exec; /* NULL: not captured */
    uint32_t tokens;      /* of the bucket */
    struct cuda_step_layout layout;
};

struct device_cuda;

struct cuda_rank {
    struct device_cuda *device;
    uint32_t rank; /* among all processes' */
    int gpu;
    const struct model *model;           /* this rank's part; NULL once loaded */
    struct model *part;                  /* the same where it had to be made */
    struct model_spec spec;              /* of the part */
    uint32_t stage;                      /* of the layers; stage 0 has embedding and head too */
    uint32_t vocab_begin, vocab_stride;  /* of this rank's rows of embedding and head */
    uint32_t experts_begin, experts_end; /* this rank's, or all where each is split */

    char label[16]; /* "GPU 1: " before its messages where there are several */
    char name[256]; /* of the GPU */
    char pci[16];   /* where it is, for NVML */
    uint32_t sms;   /* multiprocessors */
    struct attention_plan_config attention_config;
    struct attention_plan *attention;
    cudaStream_t stream;
    struct matmul_library *library; /* cuBLASLt's products; NULL: our own kernels */
    struct cuda_weights weights;
    struct cuda_space space;
    uint8_t *space_memory;
    size_t space_bytes;
    struct cuda_kv kv;
    size_t kv_bytes, block_bytes;
    uint32_t kv_blocks_fit; /* what this GPU has room for */
    struct cuda_generation generations[GENERATIONS];
    struct cuda_graph graphs[GRAPH_BUCKETS];
    struct comm *comm;             /* of the stage's ranks, if it has several */
    struct comm *line;             /* of the stages, if there are several: those of ranks in the same place */
    struct comm *all;              /* of all ranks, where both are there: it has handed on their ids */
    struct cuda_all_reduce reduce; /* the same; slot_values 0: NCCL alone */
    uint32_t *stop;                /* mapped: reduce.stop */
    bool reaches_peers;

    pthread_t thread;
    bool started;
    /* guarded by device->mutex */
    struct {
        enum rank_command command;
        uint32_t generation;
    } ring[RANK_COMMANDS];
    uint32_t told, done; /* commands so far */
    bool ended;
    atomic_size_t loaded_bytes;
};

struct device_cuda {
    struct device device; /* first */
    struct device_cuda_config config;
    const struct model *model; /* while creating */
    struct model_spec spec;    /* of the whole model */
    struct cuda_libraries libraries;
    struct cuda_step_bounds bounds;
    struct nccl_id nccl_id;
    uint32_t ranks_count;           /* of this process */
    uint32_t rank_first, ranks_all; /* its first, and how many all processes have */
    uint32_t stages;                /* of layers; rank_comms.h numbers their ranks */
    bool stages_here;               /* no stage is divided over processes */
    struct cuda_rank *ranks;
    uint8_t *row_marks; /* scratch of batch_check */
    bool windowed;      /* some layers have a window: attention has a second plan */

    /* steps, of the engine's thread */
    uint64_t launched, collected;
    uint64_t launch_ns[GENERATIONS], finished_ns;
    uint64_t step_ns, token_ns; /* what a step takes, by what they took */

    pthread_mutex_t mutex; /* guards the ranks' rings and what follows */
    pthread_cond_t to_ranks, to_host;
    bool lost;
    enum status failure;
    struct error reason;  /* of the first failure */
    atomic_bool lost_now; /* the same as lost, for those who look without the mutex */

    struct cuda_watch *watch;
    struct device_cuda *abandoned_next;
};

static inline uint32_t cuda_ranks_of_stage(const struct device_cuda *cuda)
{
    return cuda->ranks_all / cuda->stages;
}

static inline uint32_t cuda_buckets(uint32_t idx)
{
    static const uint32_t buckets[GRAPH_BUCKETS] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512};
    return buckets[idx];
}

/* ---- errors ---- */

/* ST_OK, or what the error means: ST_NOMEM, ST_NOTFOUND, else ST_DEVICE; err says what was being done. */
NODISCARD enum status cuda_result(cudaError_t error, const char *what, struct error *err);
#define CUDA_TRY(call, what, err) TRY(cuda_result((call), (what), (err)))

/* The device is lost: wakes everybody, aborts the communicators. The first reason stays. Any thread. */
void device_cuda_lose(struct device_cuda *cuda, enum status status, const char *format, ...) PRINTF_LIKE(3, 4);

/* ---- a rank's work; all on its thread, with its GPU current ---- */

NODISCARD enum status cuda_weights_load(struct cuda_rank *rank, struct error *err);
void cuda_weights_free(struct cuda_rank *rank);

/* Takes the work space of the largest step, pinned memory and events; fit_kv tells how many KV blocks fit beside. */
NODISCARD enum status cuda_memory_take_space(struct cuda_rank *rank, struct error *err);
NODISCARD enum status cuda_memory_fit_kv(struct cuda_rank *rank, struct error *err);
NODISCARD enum status cuda_memory_take_kv(struct cuda_rank *rank, uint32_t blocks, struct error *err);
void cuda_memory_free(struct cuda_rank *rank);
size_t cuda_memory_block_bytes(const struct model_spec *spec, bool fp8);

/* y = x times weight, M rows. y_stride 0: as the weight gives. */
struct cuda_product {
    const struct cuda_weight *weight;
    const uint16_t *x;
    void *y;
    uint32_t y_stride;
    bool y_f32;
    const uint32_t *live; /* rows that live, for the GLU of an alternating weight */
};
NODISCARD cudaError_t cuda_multiply(struct cuda_rank *rank, const struct cuda_product *product, uint32_t M);
NODISCARD enum status cuda_matmul_open(struct cuda_rank *rank, struct error *err);
/* Chooses cuBLASLt's algorithms for all products; the work space stands, what it holds is lost. */
NODISCARD enum status cuda_matmul_prepare(struct cuda_rank *rank, struct error *err);
void cuda_matmul_close(struct cuda_rank *rank);

/* Enqueues the kernels of a step that lies in the step buffer, for so many tokens and rows. */
NODISCARD enum status cuda_run_layers(struct cuda_rank *rank, const struct cuda_step_layout *layout, uint32_t M,
                                      uint32_t R, struct error *err);

/* Captures a graph for every bucket that the bounds allow. */
NODISCARD enum status cuda_graphs_capture(struct cuda_rank *rank, struct error *err);
void cuda_graphs_free(struct cuda_rank *rank);
/* The bucket of a step, or GRAPH_BUCKETS: run without. Pure; the same on all ranks. */
uint32_t cuda_graph_bucket(const struct device_cuda *cuda, const struct batch *batch);
/* Room for a step of so many tokens, sequences and rows on every rank. */
struct cuda_step_room cuda_step_room_for(const struct device_cuda *cuda, uint32_t tokens, uint32_t seqs, uint32_t rows);

/* Does a sum of so many rows go by the kernel that norms its result too? The same on all ranks. */
static inline bool cuda_sums_in_one_shot(const struct cuda_rank *rank, uint32_t M)
{
    return (size_t)M * rank->spec.width <= rank->reduce.slot_values;
}

#endif
