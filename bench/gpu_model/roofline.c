/* See roofline.h. */
#include "bench/gpu_model/roofline.h"

#include <math.h>
#include <string.h>

/* Data sheets: NVIDIA A100 80GB SXM (2021), H100 SXM (2023), H200 SXM (2024); dense, without sparsity. */
const struct gpu gpus[] = {
    {"a100", 2.039e12, 312e12, 0, 80e9},
    {"h100", 3.35e12, 989e12, 1979e12, 80e9},
    {"h200", 4.8e12, 989e12, 1979e12, 141e9},
};
const uint32_t gpus_count = sizeof gpus / sizeof *gpus;

const struct gpu *gpu_named(const char *name)
{
    for (uint32_t i = 0; i < gpus_count; i++) {
        if (strcmp(gpus[i].name, name) == 0) return &gpus[i];
    }
    return NULL;
}

const struct roofline_shares roofline_goals = {0.88, 0.66, 0.80, 0.33, 0.70};

const char *const roofline_node_names[NODE_COUNT] = {"embed",     "add, norm",  "qkv",           "rope, kv write",
                                                     "attention", "o",          "gate, up, glu", "down",
                                                     "experts",   "all-reduce", "head",          "sample"};

struct nodes {
    const struct roofline *model;
    struct roofline_row rows[NODE_COUNT];
};

static void add(struct nodes *nodes, enum roofline_node node, double bytes, double flops, double bytes_share,
                double flops_share)
{
    const struct roofline *m = nodes->model;
    double peak = m->fp8_flops && node != NODE_ATTENTION ? m->gpu->fp8_per_s : m->gpu->bf16_per_s;
    struct roofline_row *row = &nodes->rows[node];
    row->bytes += bytes;
    row->flops += flops;
    row->launches++;
    row->seconds += fmax(bytes / (m->gpu->bytes_per_s * bytes_share), flops / (peak * flops_share)) + m->gap_s;
}

static void add_matmul(struct nodes *nodes, enum roofline_node node, double M, double N, double K, double out_bytes)
{
    const struct roofline *m = nodes->model;
    add(nodes, node, N * K * m->weight_bytes + M * (2 * K + out_bytes * N), 2 * M * N * K, m->shares.matmul_bytes,
        m->shares.matmul_flops);
}

static void add_other(struct nodes *nodes, enum roofline_node node, double bytes)
{
    add(nodes, node, bytes, 0, nodes->model->shares.other_bytes, 1);
}

/* Microseconds of an all-reduce of so many bytes over 4 GPUs with NVLink: FlashInfer #5178 (fused, 10 and 655 KB), vLLM
 * #24532 (0.5, 1, 2 MB), vLLM #42324 (8 MiB); straight lines between, the last slope beyond. */
static double all_reduce_s(double bytes, bool own)
{
    static const double at[] = {1e4, 6.55e5, 1.05e6, 2.1e6, 8.4e6};
    static const double own_us[] = {4.1, 7.7, 14, 23, 76}, nccl_us[] = {21, 21, 23, 28, 76};
    const double *us = own ? own_us : nccl_us;
    uint32_t i = 1;
    if (bytes <= at[0]) return us[0] * 1e-6;
    while (i < 4 && bytes > at[i]) i++;
    return (us[i - 1] + (us[i] - us[i - 1]) * (bytes - at[i - 1]) / (at[i] - at[i - 1])) * 1e-6;
}

static void add_all_reduce(struct nodes *nodes, double M)
{
    const struct roofline *m = nodes->model;
    struct roofline_row *row = &nodes->rows[NODE_ALL_REDUCE];
    if (m->ranks < 2) return;
    row->bytes += M * m->spec.width * 2;
    row->launches++;
    row->seconds += all_reduce_s(M * m->spec.width * 2, m->own_all_reduce);
}

static void add_norm(struct nodes *nodes, double M)
{
    add_other(nodes, NODE_NORM, M * nodes->model->spec.width * (4 + 4 + 2 + 2)); /* x in and out, y, h */
}

static void add_attention(struct nodes *nodes, const struct step_shape *step, bool windowed)
{
    const struct roofline *m = nodes->model;
    const struct model_spec *s = &m->spec;
    double kv_heads = fmax((double)s->kv_heads / m->ranks, 1), heads = (double)s->heads / m->ranks, D = s->head_size;
    double kv = windowed ? step->kv_tokens_windowed : step->kv_tokens;
    double pairs = windowed ? step->pairs_windowed : step->pairs;
    add(nodes, NODE_ATTENTION, kv * kv_heads * 2 * D * m->kv_bytes + step->tokens * heads * D * 4,
        4 * pairs * heads * D, m->shares.attention_bytes, m->shares.attention_flops);
}

/* Experts that M tokens touch, if every choice is as likely. */
static double experts_touched(const struct model_spec *s, double M)
{
    return s->experts * (1 - pow(1 - (double)s->experts_used / s->experts, M));
}

static void add_feed_forward(struct nodes *nodes, double M, bool experts)
{
    const struct roofline *m = nodes->model;
    const struct model_spec *s = &m->spec;
    if (!experts) {
        double F = (double)s->ff_width / m->ranks;
        add_matmul(nodes, NODE_GATE_UP, M, 2 * F, s->width, 1); /* GLU leaves half of it */
        add_matmul(nodes, NODE_DOWN, M, s->width, F, 2);
        return;
    }
    double F = (double)s->expert_width / m->ranks, items = M * s->experts_used, touched = experts_touched(s, M);
    for (int down = 0; down < 2; down++) {
        double weights = touched * (down ? 1 : 2) * F * s->width * m->weight_bytes;
        add(nodes, NODE_EXPERTS, weights + items * 2 * (s->width + F), items * 2 * (down ? 1 : 2) * F * s->width,
            m->shares.matmul_bytes, m->shares.matmul_flops);
    }
    add_other(nodes, NODE_EXPERTS, M * s->experts * 4);         /* routing */
    add_other(nodes, NODE_EXPERTS, (items + M) * s->width * 2); /* combining */
}

double roofline_step(const struct roofline *model, const struct step_shape *step, struct roofline_row *rows)
{
    struct nodes nodes = {.model = model};
    const struct model_spec *s = &model->spec;
    double M = step->tokens, E = s->width, D = s->head_size, ranks = model->ranks;
    double kv_heads = fmax(s->kv_heads / ranks, 1), qkv = (s->heads / ranks + 2 * kv_heads) * D;
    add_other(&nodes, NODE_EMBED, M * E * (4 + model->weight_bytes));
    for (uint32_t l = 0; l < s->layers; l++) {
        add_norm(&nodes, M);
        add_matmul(&nodes, NODE_QKV, M, qkv, E, 2);
        add_other(&nodes, NODE_ROPE, M * qkv * (2 + 2));
        add_attention(&nodes, step, s->layer_flags[l] & LAYER_WINDOWED);
        add_matmul(&nodes, NODE_O, M, E, s->heads / ranks * D, 2);
        add_all_reduce(&nodes, M);
        add_norm(&nodes, M);
        add_feed_forward(&nodes, M, s->layer_flags[l] & LAYER_EXPERTS);
        add_all_reduce(&nodes, M);
    }
    add_norm(&nodes, step->rows);
    add_matmul(&nodes, NODE_HEAD, step->rows, s->vocab / ranks, E, 4);
    add_other(&nodes, NODE_SAMPLE, step->rows * s->vocab / ranks * 4);
    double seconds = 0;
    for (uint32_t i = 0; i < NODE_COUNT; i++) {
        seconds += nodes.rows[i].seconds;
        if (rows) rows[i] = nodes.rows[i];
    }
    return seconds;
}

double roofline_weight_bytes(const struct roofline *m)
{
    const struct model_spec *s = &m->spec;
    double kv_heads = fmax((double)s->kv_heads / m->ranks, 1), D = s->head_size, E = s->width, values = 0;
    for (uint32_t l = 0; l < s->layers; l++) {
        bool experts = s->layer_flags[l] & LAYER_EXPERTS;
        values += (2.0 * s->heads / m->ranks + 2 * kv_heads) * D * E;
        values += 3.0 * E * (experts ? (double)s->expert_width * s->experts : s->ff_width) / m->ranks;
    }
    return (values + (s->tied_head ? 1.0 : 2.0) * s->vocab * E / m->ranks) * m->weight_bytes;
}

uint32_t roofline_kv_blocks(const struct roofline *m, double utilization)
{
    const struct model_spec *s = &m->spec;
    double kv_heads = fmax((double)s->kv_heads / m->ranks, 1);
    double block = s->layers * kv_heads * 2 * KV_BLOCK_TOKENS * s->head_size * m->kv_bytes;
    double left = m->gpu->memory_bytes * utilization - roofline_weight_bytes(m) - 1.5e9; /* work space, graphs */
    return left > 0 ? (uint32_t)(left / block) : 0;
}
