/* A rank's memory besides weights: the work space of the largest step, pinned memory of two steps, and KV blocks, which
 * take what --gpu-memory-utilization leaves.
 *
 *   weights | work space | (graphs, and what the driver takes for kernels: SPARE_BYTES) | KV blocks
 *
 * The graphs hold addresses of KV blocks, so they are captured after these were taken, out of the spare bytes: a node
 * is about a KB, 15 graphs of 32 layers are 5 MB. Ranks agree on the smallest number of blocks. */
#include "runtime/base/mem.h"
#include "runtime/device/cuda/cuda_parts.h"

#include <string.h>

enum { SPACE_ALIGNMENT = 256 };
static const size_t SPARE_BYTES = (size_t)256 << 20;
static const size_t ONE_SHOT_BYTES = (size_t)512 << 10; /* beyond, NCCL's rings win: to be tuned on GPUs */

static size_t aligned(size_t bytes)
{
    return (bytes + SPACE_ALIGNMENT - 1) & ~(size_t)(SPACE_ALIGNMENT - 1);
}

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void place_experts(struct cuda_rank *rank, uint8_t *base, size_t *used)
{
    const struct model_spec *spec = &rank->spec;
    struct cuda_space *s = &rank->space;
    size_t N = rank->device->device.info.tokens_max, items = N * spec->experts_used;
    struct cuda_moe *moe = &s->moe;
#define TAKE(pointer, bytes) ((pointer) = base ? (void *)(base + *used) : NULL, *used += aligned(bytes))
    *moe = (struct cuda_moe){.X = spec->experts,
                             .used = spec->experts_used,
                             .first = rank->experts_begin,
                             .count = rank->experts_end - rank->experts_begin,
                             .normed = spec->experts_normed};
    TAKE(s->router_logits, N * spec->experts * sizeof(float));
    TAKE(s->expert_act, items * spec->expert_width * sizeof(uint16_t));
    TAKE(s->expert_y, items * spec->width * sizeof(uint16_t));
    TAKE(moe->chosen, items * sizeof *moe->chosen);
    TAKE(moe->weights, items * sizeof *moe->weights);
    TAKE(moe->begins, (spec->experts + 1) * sizeof *moe->begins);
    TAKE(moe->places, items * sizeof *moe->places);
    TAKE(moe->place_of, items * sizeof *moe->place_of);
#undef TAKE
    moe->router_logits = s->router_logits;
}

/* Of the largest step. */
static size_t step_bytes(const struct device_cuda *cuda)
{
    const struct batch_bounds *b = &cuda->bounds.batch;
    return cuda_step_bytes_max(&cuda->bounds, cuda_step_room_for(cuda, b->tokens_max, b->seqs_max, b->rows_max).items);
}

static bool needs_gu(const struct cuda_rank *rank)
{
    for (uint32_t l = 0; l < rank->spec.layers; l++) {
        const struct cuda_layer *layer = &rank->weights.layers[l];
        if (!layer->expert_gated && (layer->gated_parts == 2 || rank->library)) return true;
    }
    return false;
}

/* Values that a rank's part of a one-shot sum has room for. */
static size_t slot_values_of(const struct cuda_rank *rank)
{
    const struct device_cuda_config *config = &rank->device->config;
    size_t E = rank->spec.width, logit_rows = config->rows_max < LOGIT_ROWS ? config->rows_max : LOGIT_ROWS;
    size_t rows = largest(config->tokens_max, logit_rows);
    size_t bytes = config->one_shot_bytes ? config->one_shot_bytes : ONE_SHOT_BYTES;
    if (!config->deterministic && rows > bytes / (E * sizeof(uint16_t))) rows = bytes / (E * sizeof(uint16_t));
    return rows * E;
}

/* Lays out the work space; run twice, first with base NULL to measure. Gives the bytes used. */
static size_t place_space(struct cuda_rank *rank, uint8_t *base)
{
    const struct model_spec *spec = &rank->spec;
    const struct device_cuda *cuda = rank->device;
    const struct device_info *info = &cuda->device.info;
    struct cuda_space *s = &rank->space;
    size_t N = info->tokens_max, R = info->rows_max, used = 0;
    size_t logit_rows = R < LOGIT_ROWS ? R : LOGIT_ROWS, head_rows = rank->vocab_stride;
    size_t heads = spec->heads, kv_heads = spec->kv_heads, D = spec->head_size;
#define TAKE(pointer, bytes) ((pointer) = base ? (void *)(base + used) : NULL, used += aligned(bytes))
    TAKE(s->x, N * spec->width * sizeof(float));
    TAKE(s->h, largest(N, logit_rows) * spec->width * sizeof(uint16_t));
    TAKE(s->qkv, N * (heads + 2 * kv_heads) * D * sizeof(uint16_t));
    TAKE(s->attended, N * heads * D * sizeof(uint16_t));
    TAKE(s->y, N * spec->width * sizeof(uint16_t));
    if (needs_gu(rank)) TAKE(s->gu, N * 2 * spec->ff_width * sizeof(uint16_t));
    size_t widest = largest(spec->ff_width, largest(spec->width, heads * D)); /* of any product's input */
    TAKE(s->act, largest(N, logit_rows) * widest * sizeof(uint16_t));
    TAKE(s->bad, N * sizeof *s->bad);
    uint32_t ranks = cuda_ranks_of_stage(cuda);
    bool has_head = rank->stage == 0;
    TAKE(s->logits, has_head ? logit_rows * head_rows * sizeof(float) : 0);
    s->all_logits = s->logits;
    if (ranks > 1 && has_head) {
        TAKE(s->gathered, ranks * logit_rows * head_rows * sizeof(float));
        TAKE(s->all_logits, ranks * logit_rows * head_rows * sizeof(float));
    }
    if (ranks > 1 && cuda->stages_here) {
        rank->reduce.slot_values = slot_values_of(rank);
        TAKE(s->parts, 2 * ranks * rank->reduce.slot_values * sizeof *s->parts);
        TAKE(s->part_flags, CUDA_ALL_REDUCE_BLOCKS * CUDA_RANKS_MAX * sizeof *s->part_flags);
        TAKE(s->part_epochs, CUDA_ALL_REDUCE_BLOCKS * sizeof *s->part_epochs);
    }
    TAKE(s->ids, R * sizeof *s->ids);
    TAKE(s->previous, R * sizeof *s->previous);
    TAKE(s->results, R * sizeof *s->results);
    TAKE(s->step, step_bytes(cuda));
    TAKE(s->attention, cuda_attention_scratch_bytes((uint32_t)N, cuda->config.context_max, spec->heads, spec->kv_heads,
                                                    spec->head_size, rank->attention_config.grid));
    TAKE(s->matmul, cuda_matmul_scratch_bytes(rank->sms));
    TAKE(s->sample, has_head ? cuda_sample_scratch_bytes((uint32_t)logit_rows, cuda->spec.vocab) : 0);
    if (rank->library) {
        TAKE(s->panel, MATMUL_PANEL_BYTES);
        TAKE(s->cublaslt, MATMUL_WORKSPACE_BYTES);
    }
    if (spec->experts) place_experts(rank, base, &used);
#undef TAKE
    return used;
}

static enum status take_generations(struct cuda_rank *rank, struct error *err)
{
    const struct device_cuda *cuda = rank->device;
    if (cuda_ranks_of_stage(cuda) > 1) {
        CUDA_TRY(cudaHostAlloc((void **)&rank->stop, sizeof *rank->stop, cudaHostAllocMapped | cudaHostAllocPortable),
                 "taking pinned memory", err);
        *rank->stop = 0;
    }
    for (uint32_t g = 0; g < GENERATIONS; g++) {
        struct cuda_generation *own = &rank->generations[g];
        CUDA_TRY(cudaHostAlloc((void **)&own->host, step_bytes(cuda), cudaHostAllocPortable),
                 "taking pinned memory for a step", err);
        CUDA_TRY(cudaHostAlloc((void **)&own->results, cuda->device.info.rows_max * sizeof *own->results,
                               cudaHostAllocPortable),
                 "taking pinned memory for results", err);
        CUDA_TRY(cudaEventCreateWithFlags(&own->done, cudaEventDisableTiming | cudaEventBlockingSync),
                 "making an event", err);
    }
    return ST_OK;
}

size_t cuda_memory_block_bytes(const struct model_spec *spec, bool fp8)
{
    return (size_t)spec->layers * spec->kv_heads * cuda_kv_piece_bytes(spec->head_size, fp8);
}

enum status cuda_memory_fit_kv(struct cuda_rank *rank, struct error *err)
{
    const struct device_cuda *cuda = rank->device;
    size_t free_bytes, total_bytes;
    CUDA_TRY(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for free memory", err);
    rank->block_bytes = cuda_memory_block_bytes(&rank->spec, cuda->config.kv_fp8);
    size_t ours = (size_t)((double)total_bytes * cuda->config.memory_utilization), used = total_bytes - free_bytes;
    size_t left = ours > used ? ours - used : 0,
           spare = cuda->config.spare_bytes ? cuda->config.spare_bytes : SPARE_BYTES;
    left = left > spare ? left - spare : 0;
    size_t blocks = left / rank->block_bytes;
    uint32_t least = kv_blocks_for(cuda->config.context_max);
    if (blocks < least) {
        return error_set(
            err, ST_NOMEM,
            "KV of one sequence of %u tokens needs %zu MiB, and %zu of %zu MiB are left beside %zu MiB "
            "of weights and %zu MiB of work space: lower --max-model-len or --max-num-batched-tokens, raise "
            "--gpu-memory-utilization, or use more GPUs",
            cuda->config.context_max, (least * rank->block_bytes) >> 20, left >> 20, total_bytes >> 20,
            rank->weights.bytes >> 20, rank->space_bytes >> 20);
    }
    if (blocks > CUDA_TOKEN_OF_ROW) blocks = CUDA_TOKEN_OF_ROW;
    rank->kv_blocks_fit = (uint32_t)blocks;
    return ST_OK;
}

enum status cuda_memory_take_space(struct cuda_rank *rank, struct error *err)
{
    rank->space_bytes = place_space(rank, NULL);
    if (cudaMalloc((void **)&rank->space_memory, rank->space_bytes) != cudaSuccess) {
        size_t free_bytes = 0, total_bytes = 0;
        (void)cudaMemGetInfo(&free_bytes, &total_bytes);
        return error_set(err, ST_NOMEM,
                         "the work space of a step needs %zu MiB, %zu of %zu MiB are free: lower "
                         "--max-num-batched-tokens",
                         rank->space_bytes >> 20, free_bytes >> 20, total_bytes >> 20);
    }
    place_space(rank, rank->space_memory);
    CUDA_TRY(cudaMemsetAsync(rank->space_memory, 0, rank->space_bytes, rank->stream), "clearing memory", err);
    TRY(take_generations(rank, err));
    CUDA_TRY(cudaStreamSynchronize(rank->stream), "clearing memory", err);
    return ST_OK;
}

enum status cuda_memory_take_kv(struct cuda_rank *rank, uint32_t blocks, struct error *err)
{
    rank->kv_bytes = blocks * rank->block_bytes;
    void *base = NULL;
    if (cudaMalloc(&base, rank->kv_bytes) != cudaSuccess)
        return error_set(err, ST_NOMEM, "no %zu MiB for KV blocks: lower --gpu-memory-utilization",
                         rank->kv_bytes >> 20);
    rank->kv = (struct cuda_kv){.base = base,
                                .layers = rank->spec.layers,
                                .blocks = blocks,
                                .kv_heads = rank->spec.kv_heads,
                                .head_size = rank->spec.head_size,
                                .fp8 = rank->device->config.kv_fp8};
    return ST_OK;
}

void cuda_memory_free(struct cuda_rank *rank)
{
    for (uint32_t g = 0; g < GENERATIONS; g++) {
        struct cuda_generation *own = &rank->generations[g];
        if (own->done) (void)cudaEventDestroy(own->done);
        if (own->results) (void)cudaFreeHost(own->results);
        if (own->host) (void)cudaFreeHost(own->host);
    }
    if (rank->stop) (void)cudaFreeHost(rank->stop);
    rank->stop = NULL;
    if (rank->kv.base) (void)cudaFree(rank->kv.base);
    if (rank->space_memory) (void)cudaFree(rank->space_memory);
    rank->kv.base = rank->space_memory = NULL;
}
