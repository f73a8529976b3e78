/* A rank's weights: planned, placed in one piece of GPU memory, and brought there in the form that kernels read.
 *
 *   file (mapped, or made by a recipe) -> pinned slot -> slot on the GPU -> repacked where it stays
 *
 * Slots form a ring, so reading the file, copying and repacking go on at the same time; the GPU does the repacking.
 * Vectors (norms in f32, biases in BF16, frequencies) are few: they are made on the host and go in one copy. Matrices
 * that share an input lie together where their types allow it: Q, K and V as one, gate and up in alternating eights,
 * so that both meet in one lane for the GLU. A tied embedding is the head's copy.
 * Rejected: repacking on the host (a minute for 16 GB on one core, and memory for both forms). */
#include "kernels/dequantize.h"
#include "kernels/rope.h"
#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/device/cuda/cuda_parts.h"

#include <string.h>

enum { SLOTS = 4, ROWS_TOGETHER = 128 /* chunks of a matrix are whole multiples */, WEIGHT_ALIGNMENT = 256 };
static const size_t SLOT_BYTES_MAX = (size_t)64 << 20;

struct slot {
    uint8_t *host, *device;
    cudaEvent_t free;
};

struct loading {
    struct cuda_rank *rank;
    const struct model *model;
    struct error *err;
    uint8_t *vectors;              /* host image of the memory's beginning */
    size_t slot_bytes, used_bytes; /* of a slot; placed so far */
    struct slot slots[SLOTS];
    uint32_t slots_used;
};

static size_t aligned(size_t bytes)
{
    return (bytes + WEIGHT_ALIGNMENT - 1) & ~(size_t)(WEIGHT_ALIGNMENT - 1);
}

/* ---- what there is, and in which type ---- */

static uint32_t inputs_together(enum cuda_type type)
{
    return type == CUDA_TYPE_BF16 ? 8 : type == CUDA_TYPE_E4M3 ? 16 : 32;
}

/* The type that a matrix takes: the file's, or --dtype's. Embedding, head and router are never quantised here. */
static enum cuda_type type_of(const struct loading *load, const struct tensor_view *view, bool quantised)
{
    enum cuda_dtype dtype = load->rank->device->config.dtype;
    enum cuda_type type = cuda_type_of(view->type);
    if (dtype == CUDA_DTYPE_BF16) type = CUDA_TYPE_BF16;
    if (dtype == CUDA_DTYPE_FP8 && quantised && view->cols % inputs_together(CUDA_TYPE_E4M3) == 0)
        type = CUDA_TYPE_E4M3;
    return view->cols % inputs_together(type) == 0 ? type : CUDA_TYPE_BF16;
}

static enum status plan_matrix(struct loading *load, const struct tensor_view *view, uint32_t N, uint32_t K,
                               bool quantised, struct cuda_weight *weight)
{
    TRY(tensor_view_check(view, N, K, load->err));
    *weight = (struct cuda_weight){.type = type_of(load, view, quantised), .N = N, .K = K};
    if (K % inputs_together(weight->type))
        return error_set(load->err, ST_INVAL, "tensor %s has %u inputs: the CUDA device takes multiples of %u",
                         view->name, K, inputs_together(weight->type));
    if (weight->type == CUDA_TYPE_E4M3) {
        weight->scale_rows = 1;
        weight->scale_cols = 128;
    }
    return ST_OK;
}

/* Two matrices of one input and type become one of both their rows. */
static bool joins(const struct cuda_weight *a, const struct cuda_weight *b)
{
    return a->type == b->type && a->K == b->K;
}

static enum status plan_qkv(struct loading *load, const struct layer_weights *from, struct cuda_layer *layer)
{
    const struct model_spec *s = &load->rank->spec;
    uint32_t kv_rows = s->kv_heads * s->head_size;
    TRY(plan_matrix(load, &from->q, s->heads * s->head_size, s->width, true, &layer->qkv[0]));
    TRY(plan_matrix(load, &from->k, kv_rows, s->width, true, &layer->qkv[1]));
    TRY(plan_matrix(load, &from->v, kv_rows, s->width, true, &layer->qkv[2]));
    layer->qkv_parts = QKV_PARTS;
    if (joins(&layer->qkv[0], &layer->qkv[1]) && joins(&layer->qkv[0], &layer->qkv[2])) {
        layer->qkv[0].N += 2 * kv_rows;
        layer->qkv_parts = 1;
    }
    return ST_OK;
}

static enum status plan_gated(struct loading *load, const struct layer_weights *from, struct cuda_layer *layer)
{
    const struct model_spec *s = &load->rank->spec;
    TRY(plan_matrix(load, &from->gate, s->ff_width, s->width, true, &layer->gated[0]));
    TRY(plan_matrix(load, &from->up, s->ff_width, s->width, true, &layer->gated[1]));
    layer->gated_parts = 2;
    if (joins(&layer->gated[0], &layer->gated[1]) && s->ff_width % 8 == 0) {
        layer->gated[0].N *= 2;
        layer->gated[0].alternating = true;
        layer->gated_parts = 1;
    }
    return plan_matrix(load, &from->down, s->width, s->ff_width, true, &layer->down);
}

/* This rank's experts of a layer are multiplied by one kernel: where their types differ they become BF16. */
static enum status plan_experts(struct loading *load, const struct layer_weights *from, struct cuda_layer *layer)
{
    const struct model_spec *s = &load->rank->spec;
    uint32_t begin = load->rank->experts_begin, end = load->rank->experts_end;
    bool alike = true;
    if (s->expert_width % 8)
        return error_set(load->err, ST_INVAL, "expert width %u: the CUDA device takes multiples of 8", s->expert_width);
    TRY(plan_matrix(load, &from->router, s->experts, s->width, false, &layer->router));
    for (uint32_t x = begin; x < end; x++) {
        struct cuda_weight up, *gated = &layer->expert_gated[x], *down = &layer->expert_down[x];
        TRY(plan_matrix(load, &from->experts[x].gate, s->expert_width, s->width, true, gated));
        TRY(plan_matrix(load, &from->experts[x].up, s->expert_width, s->width, true, &up));
        TRY(plan_matrix(load, &from->experts[x].down, s->width, s->expert_width, true, down));
        alike = alike && gated->type == up.type && gated->type == layer->expert_gated[begin].type &&
                down->type == layer->expert_down[begin].type;
        gated->N *= 2;
        gated->alternating = true;
    }
    for (uint32_t x = begin; !alike && x < end; x++) {
        layer->expert_gated[x].type = layer->expert_down[x].type = CUDA_TYPE_BF16;
    }
    return ST_OK;
}

static enum status plan_layer(struct loading *load, const struct layer_weights *from, struct cuda_layer *layer)
{
    const struct model_spec *s = &load->rank->spec;
    uint32_t q_rows = s->heads * s->head_size, kv_rows = s->kv_heads * s->head_size;
    TRY(plan_qkv(load, from, layer));
    TRY(plan_matrix(load, &from->o, s->width, q_rows, true, &layer->o));
    TRY(layer->expert_gated ? plan_experts(load, from, layer) : plan_gated(load, from, layer));
    TRY(tensor_view_check(&from->attn_norm, 1, s->width, load->err));
    TRY(tensor_view_check(&from->ffn_norm, 1, s->width, load->err));
    if (s->has_post_norms) {
        TRY(tensor_view_check(&from->attn_post_norm, 1, s->width, load->err));
        TRY(tensor_view_check(&from->ffn_post_norm, 1, s->width, load->err));
    }
    if (s->has_qkv_bias) {
        TRY(tensor_view_check(&from->q_bias, 1, q_rows, load->err));
        TRY(tensor_view_check(&from->k_bias, 1, kv_rows, load->err));
        TRY(tensor_view_check(&from->v_bias, 1, kv_rows, load->err));
    }
    if (s->has_qk_norm) {
        TRY(tensor_view_check(&from->q_norm, 1, s->head_size, load->err));
        TRY(tensor_view_check(&from->k_norm, 1, s->head_size, load->err));
    }
    return ST_OK;
}

static enum status plan(struct loading *load)
{
    const struct model_spec *s = &load->rank->spec;
    const struct model_weights *from = &load->model->weights;
    struct cuda_weights *w = &load->rank->weights;
    if (load->rank->stage == 0) {
        TRY(plan_matrix(load, &from->embed, s->vocab, s->width, false, &w->embed));
        TRY(plan_matrix(load, s->tied_head ? &from->embed : &from->head, s->vocab, s->width, false, &w->head));
        TRY(tensor_view_check(&from->final_norm, 1, s->width, load->err));
    }
    if (from->rope_factors.data) TRY(tensor_view_check(&from->rope_factors, 1, s->rope_size / 2, load->err));
    if (from->rope_factors_long.data) TRY(tensor_view_check(&from->rope_factors_long, 1, s->rope_size / 2, load->err));
    for (uint32_t l = 0; l < s->layers; l++) TRY(plan_layer(load, &from->layers[l], &w->layers[l]));
    return ST_OK;
}

/* ---- where ---- */

static void *take(struct loading *load, size_t bytes)
{
    uint8_t *memory = load->rank->weights.memory;
    void *at = memory ? memory + load->used_bytes : NULL;
    load->used_bytes += aligned(bytes);
    return at;
}

static void place_matrix(struct loading *load, struct cuda_weight *weight)
{
    size_t codes_bytes, scales_bytes;
    if (weight->N == 0) return;
    cuda_weight_bytes(weight->type, weight->N, weight->K, &codes_bytes, &scales_bytes);
    weight->codes = take(load, codes_bytes);
    weight->scales = scales_bytes ? take(load, scales_bytes) : NULL;
}

static void place_vectors(struct loading *load)
{
    const struct model_spec *s = &load->rank->spec;
    struct cuda_weights *w = &load->rank->weights;
    size_t norm_bytes = s->width * sizeof(float), head_bytes = s->head_size * sizeof(float);
    w->final_norm = load->rank->stage == 0 ? take(load, norm_bytes) : NULL;
    for (uint32_t i = 0; i < (s->has_window_rope ? 2 : 1); i++)
        w->turns[i] = take(load, s->rope_size / 2 * sizeof(uint64_t));
    for (uint32_t l = 0; l < s->layers; l++) {
        struct cuda_layer *layer = &w->layers[l];
        layer->attn_norm = take(load, norm_bytes);
        layer->ffn_norm = take(load, norm_bytes);
        layer->attn_post_norm = s->has_post_norms ? take(load, norm_bytes) : NULL;
        layer->ffn_post_norm = s->has_post_norms ? take(load, norm_bytes) : NULL;
        layer->q_norm = s->has_qk_norm ? take(load, head_bytes) : NULL;
        layer->k_norm = s->has_qk_norm ? take(load, head_bytes) : NULL;
        for (uint32_t i = 0; s->has_qkv_bias && i < layer->qkv_parts; i++)
            layer->qkv[i].bias = take(load, layer->qkv[i].N * sizeof(uint16_t));
    }
    w->vectors_bytes = load->used_bytes;
}

/* Gives everything its place; run twice, first to measure. */
static void place(struct loading *load)
{
    const struct model_spec *s = &load->rank->spec;
    struct cuda_weights *w = &load->rank->weights;
    load->used_bytes = 0;
    place_vectors(load);
    place_matrix(load, &w->head);
    if (s->tied_head) {
        w->embed = w->head;
    } else {
        place_matrix(load, &w->embed);
    }
    for (uint32_t l = 0; l < s->layers; l++) {
        struct cuda_layer *layer = &w->layers[l];
        for (uint32_t i = 0; i < layer->qkv_parts; i++) place_matrix(load, &layer->qkv[i]);
        place_matrix(load, &layer->o);
        for (uint32_t i = 0; i < layer->gated_parts; i++) place_matrix(load, &layer->gated[i]);
        place_matrix(load, &layer->down);
        place_matrix(load, &layer->router);
        for (uint32_t x = 0; layer->expert_gated && x < s->experts; x++) place_matrix(load, &layer->expert_gated[x]);
        for (uint32_t x = 0; layer->expert_gated && x < s->experts; x++) place_matrix(load, &layer->expert_down[x]);
    }
    w->bytes = load->used_bytes;
}

/* ---- vectors ---- */

/* Where a vector's bytes lie in the host's image. */
static void *image_of(const struct loading *load, const void *device)
{
    size_t at = (size_t)((const uint8_t *)device - load->rank->weights.memory);
    CHECK(at < load->rank->weights.vectors_bytes);
    return load->vectors + at;
}

static void put_norm(const struct loading *load, float *device, const struct tensor_view *view)
{
    if (device) dequantize_row(view->type, view->data, image_of(load, device), view->cols);
}

static void put_bias(const struct loading *load, const uint16_t *device, uint32_t first, const struct tensor_view *view)
{
    uint16_t *image = (uint16_t *)image_of(load, device) + first;
    const float *values = view->data; /* vectors are F32 */
    for (uint32_t i = 0; i < view->cols; i++) image[i] = f32_to_bf16(values[i]);
}

static enum status put_turns(const struct loading *load, uint64_t *device, const struct rope_spec *rope,
                             const float *factors)
{
    uint32_t size = load->rank->spec.rope_size;
    double *frequencies = mem_alloc(size / 2 + 1, sizeof *frequencies);
    if (!frequencies) return error_set(load->err, ST_NOMEM, "no memory for frequencies");
    rope_frequencies(frequencies, size, (double)rope->base, (double)rope->scale, factors);
    uint64_t *image = image_of(load, device);
    for (uint32_t i = 0; i < size / 2; i++) image[i] = cuda_rope_turn(frequencies[i]);
    mem_free(frequencies);
    return ST_OK;
}

static void put_layer_vectors(const struct loading *load, uint32_t l)
{
    const struct layer_weights *from = &load->model->weights.layers[l];
    const struct cuda_layer *layer = &load->rank->weights.layers[l];
    put_norm(load, layer->attn_norm, &from->attn_norm);
    put_norm(load, layer->ffn_norm, &from->ffn_norm);
    put_norm(load, layer->attn_post_norm, &from->attn_post_norm);
    put_norm(load, layer->ffn_post_norm, &from->ffn_post_norm);
    put_norm(load, layer->q_norm, &from->q_norm);
    put_norm(load, layer->k_norm, &from->k_norm);
    if (!load->rank->spec.has_qkv_bias) return;
    const struct tensor_view *biases[QKV_PARTS] = {&from->q_bias, &from->k_bias, &from->v_bias};
    for (uint32_t i = 0, first = 0; i < QKV_PARTS; i++) {
        bool joined = layer->qkv_parts == 1;
        put_bias(load, layer->qkv[joined ? 0 : i].bias, joined ? first : 0, biases[i]);
        first += biases[i]->cols;
    }
}

static enum status load_vectors(struct loading *load)
{
    struct cuda_rank *rank = load->rank;
    const struct model_spec *s = &rank->spec;
    const struct model_weights *from = &load->model->weights;
    put_norm(load, rank->weights.final_norm, &from->final_norm);
    bool beyond = s->rope_switch && rank->device->config.context_max > s->rope_switch;
    const struct tensor_view *factors = beyond ? &from->rope_factors_long : &from->rope_factors;
    TRY(put_turns(load, rank->weights.turns[0], &s->rope_main, factors->data));
    if (s->has_window_rope) TRY(put_turns(load, rank->weights.turns[1], &s->rope_window, NULL));
    for (uint32_t l = 0; l < s->layers; l++) put_layer_vectors(load, l);
    CUDA_TRY(cudaMemcpyAsync(rank->weights.memory, load->vectors, rank->weights.vectors_bytes, cudaMemcpyHostToDevice,
                             rank->stream),
             "copying vectors", load->err);
    return ST_OK;
}

/* ---- matrices ---- */

/* The longest chunk that any matrix wants of a slot, up to SLOT_BYTES_MAX. */
static size_t slot_bytes_of(const struct model *model)
{
    size_t most = 0, widest = 0;
    const struct tensor_view *embed = &model->weights.embed;
    const struct model_spec *s = &model->spec;
    widest = s->heads * s->head_size > s->ff_width ? s->heads * s->head_size : s->ff_width;
    if (s->width > widest) widest = s->width;
    if (s->expert_width > widest) widest = s->expert_width;
    size_t rows = embed->rows > ROWS_TOGETHER ? embed->rows : ROWS_TOGETHER;
    if (!checked_mul(rows, widest * sizeof(float), &most) || most > SLOT_BYTES_MAX) most = SLOT_BYTES_MAX;
    size_t least = ROWS_TOGETHER * widest * sizeof(float);
    return aligned(most > least ? most : least);
}

static enum status take_slots(struct loading *load)
{
    for (uint32_t i = 0; i < SLOTS; i++) {
        struct slot *slot = &load->slots[i];
        CUDA_TRY(cudaHostAlloc((void **)&slot->host, load->slot_bytes, cudaHostAllocDefault),
                 "taking pinned memory to load weights", load->err);
        CUDA_TRY(cudaMalloc((void **)&slot->device, load->slot_bytes), "taking memory to load weights", load->err);
        CUDA_TRY(cudaEventCreateWithFlags(&slot->free, cudaEventDisableTiming), "making an event", load->err);
        CUDA_TRY(cudaEventRecord(slot->free, load->rank->stream), "recording an event", load->err);
    }
    return ST_OK;
}

static void free_slots(struct loading *load)
{
    for (uint32_t i = 0; i < SLOTS; i++) {
        struct slot *slot = &load->slots[i];
        if (slot->free) (void)cudaEventDestroy(slot->free);
        if (slot->device) (void)cudaFree(slot->device);
        if (slot->host) (void)cudaFreeHost(slot->host);
    }
}

/* BF16 rows that stay as they are go straight to their place. */
static bool goes_straight(const struct cuda_weight *weight, const struct tensor_view *view)
{
    return weight->type == CUDA_TYPE_BF16 && view->type == TENSOR_BF16 && !weight->alternating;
}

static enum status load_chunk(struct loading *load, const struct cuda_weight *weight, const struct tensor_view *view,
                              struct tensor_area rows, uint32_t first, uint32_t part)
{
    cudaStream_t stream = load->rank->stream;
    struct slot *slot = &load->slots[load->slots_used++ % SLOTS];
    size_t row_bytes = tensor_row_bytes(tensor_type_info(view->type), view->cols);
    uint32_t count = rows.row_end - rows.row_begin;
    size_t bytes = count * row_bytes;
    CUDA_TRY(cudaEventSynchronize(slot->free), "loading weights", load->err);
    tensor_area_copy(view, rows, slot->host);
    model_forget_rows(load->model, view, rows.row_begin, rows.row_end);
    bool straight = goes_straight(weight, view);
    uint8_t *target =
        straight ? (uint8_t *)(uintptr_t)weight->codes + (first + rows.row_begin) * row_bytes : slot->device;
    CUDA_TRY(cudaMemcpyAsync(target, slot->host, bytes, cudaMemcpyHostToDevice, stream), "copying weights", load->err);
    if (!straight) {
        CUDA_TRY(cuda_repack_rows(weight, view->type, slot->device, first + rows.row_begin, count, part, stream),
                 "repacking weights", load->err);
    }
    CUDA_TRY(cudaEventRecord(slot->free, stream), "loading weights", load->err);
    atomic_fetch_add_explicit(&load->rank->loaded_bytes, bytes, memory_order_relaxed);
    return ST_OK;
}

/* Brings a matrix to rows [first, first + its rows) of a weight, or of its part of an alternating one. */
static enum status load_matrix(struct loading *load, const struct cuda_weight *weight, const struct tensor_view *view,
                               uint32_t first, uint32_t part)
{
    size_t row_bytes = tensor_row_bytes(tensor_type_info(view->type), view->cols);
    uint32_t step = (uint32_t)(load->slot_bytes / row_bytes) / ROWS_TOGETHER * ROWS_TOGETHER;
    CHECK(step > 0);
    for (uint32_t row = 0; row < view->rows; row += step) {
        struct tensor_area area = {.row_begin = row,
                                   .row_end = view->rows - row < step ? view->rows : row + step,
                                   .col_begin = 0,
                                   .col_end = view->cols};
        if (atomic_load(&load->rank->device->lost_now)) return error_set(load->err, ST_CANCELED, "another GPU failed");
        TRY(load_chunk(load, weight, view, area, first, part));
    }
    return ST_OK;
}

static enum status load_layer(struct loading *load, const struct layer_weights *from, const struct cuda_layer *layer)
{
    const struct tensor_view *qkv[QKV_PARTS] = {&from->q, &from->k, &from->v};
    for (uint32_t i = 0, first = 0; i < QKV_PARTS; i++) {
        bool joined = layer->qkv_parts == 1;
        TRY(load_matrix(load, &layer->qkv[joined ? 0 : i], qkv[i], joined ? first : 0, 0));
        first += qkv[i]->rows;
    }
    TRY(load_matrix(load, &layer->o, &from->o, 0, 0));
    if (!layer->expert_gated) {
        bool joined = layer->gated_parts == 1;
        TRY(load_matrix(load, &layer->gated[0], &from->gate, 0, 0));
        TRY(load_matrix(load, &layer->gated[joined ? 0 : 1], &from->up, 0, joined));
        return load_matrix(load, &layer->down, &from->down, 0, 0);
    }
    TRY(load_matrix(load, &layer->router, &from->router, 0, 0));
    for (uint32_t x = load->rank->experts_begin; x < load->rank->experts_end; x++) {
        TRY(load_matrix(load, &layer->expert_gated[x], &from->experts[x].gate, 0, 0));
        TRY(load_matrix(load, &layer->expert_gated[x], &from->experts[x].up, 0, 1));
        TRY(load_matrix(load, &layer->expert_down[x], &from->experts[x].down, 0, 0));
    }
    return ST_OK;
}

static enum status load_all(struct loading *load)
{
    struct cuda_rank *rank = load->rank;
    const struct model_weights *from = &load->model->weights;
    const struct model_spec *s = &rank->spec;
    TRY(load_vectors(load));
    TRY(take_slots(load));
    bool has_head = rank->stage == 0;
    if (has_head) TRY(load_matrix(load, &rank->weights.head, s->tied_head ? &from->embed : &from->head, 0, 0));
    if (has_head && !s->tied_head) TRY(load_matrix(load, &rank->weights.embed, &from->embed, 0, 0));
    for (uint32_t l = 0; l < s->layers; l++) TRY(load_layer(load, &from->layers[l], &rank->weights.layers[l]));
    CUDA_TRY(cudaStreamSynchronize(rank->stream), "loading weights", load->err);
    return ST_OK;
}

static enum status take_memory(struct loading *load)
{
    struct cuda_weights *w = &load->rank->weights;
    size_t free_bytes = 0, total_bytes = 0, bytes = w->bytes;
    void *memory = NULL;
    if (cudaMalloc(&memory, bytes) == cudaSuccess) {
        w->memory = memory;
        return ST_OK;
    }
    (void)cudaMemGetInfo(&free_bytes, &total_bytes);
    return error_set(load->err, ST_NOMEM,
                     "the weights need %zu MiB, %zu of %zu MiB are free: use more GPUs, or --dtype fp8", bytes >> 20,
                     free_bytes >> 20, total_bytes >> 20);
}

enum status cuda_weights_load(struct cuda_rank *rank, struct error *err)
{
    const struct model_spec *s = &rank->spec;
    struct cuda_weights *w = &rank->weights;
    struct loading load = {.rank = rank, .model = rank->model, .err = err};
    w->layers = mem_alloc(s->layers, sizeof *w->layers);
    w->experts = mem_alloc((size_t)s->layers * s->experts * 2, sizeof *w->experts);
    if (!w->layers || !w->experts) return error_set(err, ST_NOMEM, "no memory for the device");
    for (uint32_t l = 0; l < s->layers; l++) {
        w->layers[l].windowed = s->layer_flags[l] & LAYER_WINDOWED;
        if (!(s->layer_flags[l] & LAYER_EXPERTS)) continue;
        w->layers[l].expert_gated = w->experts + (size_t)l * s->experts * 2;
        w->layers[l].expert_down = w->layers[l].expert_gated + s->experts;
    }
    TRY(plan(&load));
    place(&load);
    TRY(take_memory(&load));
    place(&load);
    load.slot_bytes = slot_bytes_of(load.model);
    enum status status = ST_OK;
    CUDA_TRY(cudaHostAlloc((void **)&load.vectors, w->vectors_bytes, cudaHostAllocDefault),
             "taking pinned memory to load weights", err);
    memset(load.vectors, 0, w->vectors_bytes);
    status = load_all(&load);
    if (status != ST_DEVICE) { /* else no further call */
        (void)cudaStreamSynchronize(rank->stream);
        free_slots(&load);
        (void)cudaFreeHost(load.vectors);
    }
    return status;
}

void cuda_weights_free(struct cuda_rank *rank)
{
    struct cuda_weights *w = &rank->weights;
    if (w->memory) (void)cudaFree(w->memory);
    w->memory = NULL;
    mem_free(w->experts);
    mem_free(w->layers);
    w->experts = NULL;
    w->layers = NULL;
}
