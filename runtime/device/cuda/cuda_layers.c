/* The layers of a step, as kernels on a rank's stream.
 *
 *   ids of the step before | embed (| sum) | per layer:  norm | Q K V | RoPE, KV | attention | O (| sum)
 *                                                        norm | gate, up, GLU | down (| sum) | norm of wanted rows |
 *   per group of rows:  head (| gather) | sample
 *
 * Every norm first adds what came before it to the residual stream: a layer's first norm what the feed-forward of the
 * layer before gave, the last one for the wanted rows alone. Sums in brackets are over the ranks. With stages of layers
 * (model/model_stage.h) only stage 0 embeds and has rows: the others take x from the stage before, and all pass it on.
 * The same calls run a step at once and are captured into a graph: what differs from step to step is read on the
 * device. */
#include "runtime/device/cuda/cuda_parts.h"

struct run {
    struct cuda_rank *rank;
    const struct cuda_step *step;
    uint32_t M, R;
    const uint32_t *live;      /* tokens that live, on the device */
    const uint16_t *pending;   /* y that is not added to x yet, or NULL */
    const float *pending_norm; /* and what norms it before, or NULL */
    bool apart;                /* what is pending is this rank's part of a sum */
    struct error *err;
};

/* Adds what is pending to x and norms it into h, the tokens of `rows` alone unless that is NULL: with one GPU, or after
 * sum(), by add_rmsnorm; small sums over the ranks by the kernel that does all of it. */
static enum status add_norm(const struct run *run, const float *weight, const uint32_t *rows, const uint32_t *live,
                            uint32_t M)
{
    struct cuda_rank *rank = run->rank;
    struct cuda_norm norm = {.x = rank->space.x,
                             .y = run->apart ? NULL : run->pending,
                             .post_weight = run->pending_norm,
                             .residual_scale = rank->spec.residual_scale,
                             .weight = weight,
                             .out = rank->space.h,
                             .rows = rows,
                             .bad = rank->space.bad,
                             .E = rank->spec.width,
                             .eps = rank->spec.norm_eps};
    cudaError_t error = run->apart ? cuda_all_reduce_rmsnorm(&rank->reduce, run->pending, &norm, live, M, rank->stream)
                                   : cuda_add_rmsnorm(&norm, live, M, rank->stream);
    return cuda_result(error, run->apart ? "all_reduce_rmsnorm" : "add_rmsnorm", run->err);
}

/* What the ranks have, added up; the same on all. */
static enum status sum(const struct run *run, void *values, size_t count, enum comm_type type)
{
    struct cuda_rank *rank = run->rank;
    if (!rank->comm) return ST_OK;
    enum status status = comm_all_reduce(rank->comm, values, count, type, rank->stream);
    return status == ST_OK ? ST_OK : error_set(run->err, ST_DEVICE, "adding over the GPUs: %s", status_text(status));
}

/* y, this rank's part of a sum, is for the next norm to add; large sums are made here. */
static enum status leave_pending(struct run *run, const float *post_norm)
{
    struct cuda_rank *rank = run->rank;
    run->pending = rank->space.y;
    run->pending_norm = post_norm;
    run->apart = rank->comm && cuda_sums_in_one_shot(rank, run->M) &&
                 cuda_sums_in_one_shot(rank, run->R < LOGIT_ROWS ? run->R : LOGIT_ROWS);
    return run->apart ? ST_OK : sum(run, rank->space.y, (size_t)run->M * rank->spec.width, COMM_BF16);
}

static enum status embed(struct run *run)
{
    struct cuda_rank *rank = run->rank;
    const struct cuda_space *s = &rank->space;
    uint32_t rows_max = rank->device->device.info.rows_max;
    CUDA_TRY(cudaMemcpyAsync(s->previous, s->ids, rows_max * sizeof *s->ids, cudaMemcpyDeviceToDevice, rank->stream),
             "keeping ids", run->err);
    struct cuda_embedding embedding = {.x = s->x,
                                       .bad = s->bad,
                                       .table = &rank->weights.embed,
                                       .vocab_first = rank->vocab_begin,
                                       .scale = rank->spec.embedding_scale,
                                       .previous = s->previous};
    CUDA_TRY(cuda_embed(&embedding, run->step, run->M, rank->stream), "embed", run->err);
    return sum(run, s->x, (size_t)run->M * rank->spec.width, COMM_F32);
}

/* Of all tokens; then nothing is pending. */
static enum status norm(struct run *run, const float *weight)
{
    TRY(add_norm(run, weight, NULL, run->live, run->M));
    run->apart = false;
    run->pending = NULL;
    run->pending_norm = NULL;
    return ST_OK;
}

static enum status multiply(const struct run *run, const struct cuda_weight *weight, const uint16_t *x, uint16_t *y,
                            uint32_t y_stride)
{
    struct cuda_product product = {.weight = weight, .x = x, .y = y, .y_stride = y_stride, .live = run->live};
    CUDA_TRY(cuda_multiply(run->rank, &product, run->M), "matmul", run->err);
    return ST_OK;
}

static enum status attend(struct run *run, uint32_t l)
{
    struct cuda_rank *rank = run->rank;
    const struct model_spec *spec = &rank->spec;
    const struct cuda_space *s = &rank->space;
    const struct cuda_layer *layer = &rank->weights.layers[l];
    const struct attention_plan_config *config = &rank->attention_config;
    uint32_t width = (spec->heads + 2 * spec->kv_heads) * spec->head_size, place = 0;
    for (uint32_t i = 0; i < layer->qkv_parts; i++) {
        TRY(multiply(run, &layer->qkv[i], s->h, s->qkv + place, width));
        place += layer->qkv[i].N;
    }
    bool own_rope = layer->windowed && spec->has_window_rope;
    struct cuda_rope rope = {.qkv = s->qkv,
                             .q_norm = layer->q_norm,
                             .k_norm = layer->k_norm,
                             .eps = spec->norm_eps,
                             .turns = rank->weights.turns[own_rope],
                             .magnitude = own_rope ? spec->rope_window.magnitude : spec->rope_main.magnitude,
                             .rope_size = spec->rope_size,
                             .interleaved = spec->rope == ROPE_INTERLEAVED,
                             .H = spec->heads,
                             .KH = spec->kv_heads,
                             .D = spec->head_size,
                             .layer = l,
                             .kv = rank->kv};
    CUDA_TRY(cuda_rope_kv_write(&rope, run->step, run->M, rank->stream), "rope_kv_write", run->err);
    struct cuda_attention attention = {
        .out = s->attended,
        .qkv = s->qkv,
        .kv = rank->kv,
        .H = spec->heads,
        .KH = spec->kv_heads,
        .D = spec->head_size,
        .layer = l,
        .scale = spec->attention_scale,
        .window = layer->windowed ? spec->window : 0,
        .scratch = s->attention,
        .partials = cuda_attention_partials(config->tokens_max, config->context_max, config->H, config->KH, config->D)};
    CUDA_TRY(cuda_attention(&attention, run->step, rank->attention_config.grid, rank->stream), "attention", run->err);
    TRY(multiply(run, &layer->o, s->attended, s->y, 0));
    return leave_pending(run, layer->attn_post_norm);
}

/* Gate, up and GLU into act. */
static enum status gate(const struct run *run, const struct cuda_layer *layer)
{
    const struct cuda_rank *rank = run->rank;
    const struct cuda_space *s = &rank->space;
    if (layer->gated_parts == 1) return multiply(run, &layer->gated[0], s->h, s->act, 0);
    uint32_t F = layer->gated[0].N;
    TRY(multiply(run, &layer->gated[0], s->h, s->gu, 2 * F));
    TRY(multiply(run, &layer->gated[1], s->h, s->gu + F, 2 * F));
    bool gelu = rank->spec.activation == ACTIVATION_GELU_TANH;
    CUDA_TRY(cuda_glu(s->act, s->gu, F, gelu, false, run->live, run->M, rank->stream), "glu", run->err);
    return ST_OK;
}

static enum status mix_experts(const struct run *run, const struct cuda_layer *layer)
{
    struct cuda_rank *rank = run->rank;
    const struct cuda_space *s = &rank->space;
    const struct cuda_weight *gated = layer->expert_gated + rank->experts_begin;
    const struct cuda_weight *down = layer->expert_down + rank->experts_begin;
    bool gelu = rank->spec.activation == ACTIVATION_GELU_TANH;
    struct cuda_product router = {
        .weight = &layer->router, .x = s->h, .y = s->router_logits, .y_f32 = true, .live = run->live};
    CUDA_TRY(cuda_multiply(rank, &router, run->M), "router", run->err);
    CUDA_TRY(cuda_moe_route(&s->moe, run->live, run->M, rank->stream), "moe_route", run->err);
    CUDA_TRY(cuda_moe_matmul(&s->moe, gated, s->h, s->moe.places, s->expert_act, gelu, run->M, rank->sms, rank->stream),
             "moe_matmul", run->err);
    CUDA_TRY(cuda_moe_matmul(&s->moe, down, s->expert_act, NULL, s->expert_y, gelu, run->M, rank->sms, rank->stream),
             "moe_matmul", run->err);
    CUDA_TRY(cuda_moe_combine(s->y, &s->moe, s->expert_y, rank->spec.width, run->live, run->M, rank->stream),
             "moe_combine", run->err);
    return ST_OK;
}

static enum status feed_forward(struct run *run, const struct cuda_layer *layer)
{
    const struct cuda_space *s = &run->rank->space;
    if (layer->expert_gated) {
        TRY(mix_experts(run, layer));
    } else {
        TRY(gate(run, layer));
        TRY(multiply(run, &layer->down, s->act, s->y, 0));
    }
    return leave_pending(run, layer->ffn_post_norm);
}

/* The logits of all ranks' rows of the head side by side, from (ranks, R, V of a rank). */
static enum status gather_logits(const struct run *run, uint32_t R)
{
    struct cuda_rank *rank = run->rank;
    const struct cuda_space *s = &rank->space;
    if (!rank->comm) return ST_OK;
    size_t row_bytes = rank->vocab_stride * sizeof(float), part_bytes = R * row_bytes;
    enum status status = comm_gather(rank->comm, s->logits, part_bytes, s->gathered, COMM_ALL, rank->stream);
    if (status != ST_OK) return error_set(run->err, ST_DEVICE, "gathering logits: %s", status_text(status));
    uint32_t ranks = cuda_ranks_of_stage(rank->device);
    for (uint32_t r = 0; r < ranks; r++) {
        CUDA_TRY(cudaMemcpy2DAsync(s->all_logits + r * (size_t)rank->vocab_stride, ranks * row_bytes,
                                   (const uint8_t *)s->gathered + r * part_bytes, row_bytes, row_bytes, R,
                                   cudaMemcpyDeviceToDevice, rank->stream),
                 "putting logits together", run->err);
    }
    return ST_OK;
}

static enum status choose(const struct run *run, uint32_t group, uint32_t R)
{
    struct cuda_rank *rank = run->rank;
    const struct cuda_space *s = &rank->space;
    struct cuda_step step = cuda_step_group(run->step, LOGIT_ROWS, group);
    size_t first = (size_t)group * LOGIT_ROWS;
    TRY(add_norm(run, rank->weights.final_norm, step.row_tokens, &step.header->rows, R));
    struct cuda_product head = {.weight = &rank->weights.head,
                                .x = s->h,
                                .y = s->logits,
                                .y_stride = rank->vocab_stride,
                                .y_f32 = true,
                                .live = &step.header->rows};
    CUDA_TRY(cuda_multiply(rank, &head, R), "head", run->err);
    TRY(gather_logits(run, R));
    struct cuda_sample sample = {.logits = s->all_logits,
                                 .stride = cuda_ranks_of_stage(rank->device) * rank->vocab_stride,
                                 .V = rank->device->spec.vocab,
                                 .logit_scale = rank->spec.logit_scale,
                                 .bad = s->bad,
                                 .previous = s->previous,
                                 .ids = s->ids + first,
                                 .results = s->results + first,
                                 .scratch = s->sample};
    CUDA_TRY(cuda_sample(&sample, &step, R, rank->stream), "sample", run->err);
    return ST_OK;
}

/* From stage `from` to the next: this rank's side of it. */
static enum status pass(const struct run *run, uint32_t from, void *values, size_t row_bytes)
{
    struct cuda_rank *rank = run->rank;
    uint32_t to = (from + 1) % rank->device->stages;
    enum status status = comm_pass(rank->line, values, run->M * row_bytes, from, to, rank->stream);
    return status == ST_OK ? ST_OK : error_set(run->err, ST_DEVICE, "passing rows on: %s", status_text(status));
}

static enum status pass_marks(const struct run *run, uint32_t from)
{
    return pass(run, from, run->rank->space.bad, sizeof *run->rank->space.bad);
}

static enum status pass_rows(const struct run *run, uint32_t from)
{
    return pass(run, from, run->rank->space.x, run->rank->spec.width * sizeof *run->rank->space.x);
}

/* Marks of tokens that are not finite go first, as they are after the layers here; then the residual stream, to which
 * what is pending was added by a norm whose result nobody reads. Stage 0 then takes what the last one gives. */
static enum status pass_on(struct run *run)
{
    struct cuda_rank *rank = run->rank;
    uint32_t last = rank->device->stages - 1;
    TRY(pass_marks(run, rank->stage));
    TRY(norm(run, rank->weights.layers[0].attn_norm));
    TRY(pass_rows(run, rank->stage));
    if (rank->stage == 0) TRY(pass_marks(run, last));
    return rank->stage == 0 ? pass_rows(run, last) : ST_OK;
}

/* What the layers here begin with. */
static enum status begin(struct run *run)
{
    uint32_t stage = run->rank->stage;
    if (stage == 0) return embed(run);
    TRY(pass_marks(run, stage - 1));
    return pass_rows(run, stage - 1);
}

enum status cuda_run_layers(struct cuda_rank *rank, const struct cuda_step_layout *layout, uint32_t M, uint32_t R,
                            struct error *err)
{
    struct cuda_step step = cuda_step_at(layout, rank->space.step);
    struct run run = {.rank = rank, .step = &step, .M = M, .R = R, .live = &step.header->tokens, .err = err};
    TRY(begin(&run));
    for (uint32_t l = 0; l < rank->spec.layers; l++) {
        const struct cuda_layer *layer = &rank->weights.layers[l];
        TRY(norm(&run, layer->attn_norm));
        TRY(attend(&run, l));
        TRY(norm(&run, layer->ffn_norm));
        TRY(feed_forward(&run, layer));
    }
    if (rank->line) TRY(pass_on(&run));
    for (uint32_t first = 0; rank->stage == 0 && first < R; first += LOGIT_ROWS) {
        TRY(choose(&run, first / LOGIT_ROWS, R - first < LOGIT_ROWS ? R - first : LOGIT_ROWS));
    }
    return ST_OK;
}
