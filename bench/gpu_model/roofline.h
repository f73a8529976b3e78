/* How long a step of a model takes on GPUs, from the bytes and floating-point operations of each of its kernels:
 *
 *   node = max(bytes / (bandwidth * share), flops / (peak * share)) + gap        step = sum over nodes, layer by layer
 *
 * Nodes, what is fused into them and what they read are those of runtime/device/cuda. Shares of bandwidth and peak are
 * the goals that kernels are held to (or measurements, once there are some); the gap is what a kernel costs beyond its
 * work: start, ramp, drain. It was fitted to one public figure and held against another (main.c, `check`). A figure of
 * this model is a prediction, never a measurement. Williams, Waterman, Patterson, "Roofline", CACM 2009. Pure. */
#ifndef BENCH_GPU_MODEL_ROOFLINE_H
#define BENCH_GPU_MODEL_ROOFLINE_H

#include "bench/gpu_model/step_shape.h"
#include "runtime/model/model_spec.h"

struct gpu {
    const char *name;
    double bytes_per_s, bf16_per_s, fp8_per_s; /* vendor's peaks, dense; fp8 0: none */
    double memory_bytes;
};
extern const struct gpu gpus[];
extern const uint32_t gpus_count;
const struct gpu *gpu_named(const char *name); /* NULL: none */

struct roofline_shares { /* of the GPU's peaks */
    double matmul_bytes, matmul_flops, attention_bytes, attention_flops, other_bytes;
};
extern const struct roofline_shares roofline_goals;

struct roofline {
    const struct gpu *gpu;
    struct model_spec spec;
    uint32_t ranks;      /* tensor parallelism */
    double weight_bytes; /* a value of a matrix, scales included: 2 (BF16), 1 (FP8), 0.625 (4-bit and pairs) */
    double kv_bytes;     /* a value of KV */
    bool fp8_flops;      /* matmuls multiply in FP8 */
    struct roofline_shares shares;
    double gap_s;        /* of each kernel */
    bool own_all_reduce; /* fused one-shot, else NCCL */
};

enum roofline_node {
    NODE_EMBED,
    NODE_NORM,
    NODE_QKV,
    NODE_ROPE,
    NODE_ATTENTION,
    NODE_O,
    NODE_GATE_UP,
    NODE_DOWN,
    NODE_EXPERTS,
    NODE_ALL_REDUCE,
    NODE_HEAD,
    NODE_SAMPLE,
    NODE_COUNT
};
extern const char *const roofline_node_names[NODE_COUNT];

struct roofline_row { /* of all layers together, a rank */
    double bytes, flops, seconds;
    uint32_t launches;
};

/* Seconds of a step; rows (NODE_COUNT) or NULL. */
double roofline_step(const struct roofline *model, const struct step_shape *step, struct roofline_row *rows);
/* Bytes of weights that a rank holds. */
double roofline_weight_bytes(const struct roofline *model);
/* Blocks of 16 tokens that fit beside the weights into `utilization` of a GPU. 0: not even the weights. */
uint32_t roofline_kv_blocks(const struct roofline *model, double utilization);

#endif
