/* The layers of a step, as each thread runs them.
 *
 *   embed, angles | per layer:  (norm, acts |) Q K V, bias, norm, RoPE, KV | attention (| acts) | O, residual |
 *                               (norm, acts |) gate, up, GLU, acts | down, residual |
 *
 * A bar is a barrier; those in brackets fall away at PRIVATE_ROWS_MAX tokens and fewer, where every thread prepares all
 * activations for itself. The last layer goes on after K and V with the tokens alone that have logits. Gate and up are
 * made for 16 tokens and UNIT_PANELS panels at a time, and become activations of down while they are in the cache. A
 * token that met a NaN or an infinity is marked in bad[] by whoever meets it. */
#include "runtime/device/device_cpu_parts.h"

#include "kernels/glu.h"
#include "kernels/rmsnorm.h"

#include <math.h>
#include <string.h>

/* Several threads may meet a token's NaN. */
void device_cpu_mark_bad(struct device_cpu *cpu, uint32_t token)
{
    __atomic_store_n(&cpu->bad[token], 1, __ATOMIC_RELAXED);
}

const uint8_t *device_cpu_prepare(struct device_cpu *cpu, uint32_t thread_idx, const struct act_set *set, uint32_t M,
                                  uint32_t K, struct act_source source, const float *norm)
{
    struct cpu_thread *own = &cpu->threads[thread_idx];
    bool alone = M <= PRIVATE_ROWS_MAX;
    struct span rows = alone ? (struct span){0, M} : span_of(M, thread_idx, cpu->threads_count);
    uint8_t *base = alone ? own->acts : cpu->acts;
    size_t slot_bytes = alone ? cpu->act_private_slot_bytes : cpu->act_slot_bytes;
    for (uint32_t m = rows.begin; m < rows.end; m++) {
        const float *row = source.x + (size_t)(source.indices ? source.indices[m] : m) * K;
        if (norm) {
            rmsnorm(cpu->path, own->row, row, norm, K, cpu->spec.norm_eps);
            row = own->row;
        }
        for (uint32_t i = 0; i < set->count; i++) { /* stride 0: the row stands for every m */
            bool finite = matmul_prepare(cpu->path, set->kinds[i], row, 0, M, K, m, m + 1, base + i * slot_bytes);
            if (!finite) device_cpu_mark_bad(cpu, source.tokens ? source.tokens[m] : m);
        }
    }
    if (alone) {
        phase_end(cpu, thread_idx, PHASE_PREPARE);
    } else {
        phase_meet(cpu, thread_idx, PHASE_PREPARE);
    }
    return base;
}

/* Asks for the beginning of a thread's panels of the next matrix before it waits for the others: with few rows a step
 * is as long as reading the weights takes, and memory would stand idle at barriers. */
static void fetch_ahead(const struct matrix *matrix, struct span panels, uint32_t rows)
{
    enum { AHEAD_BYTES = 24576 };
    if (rows > PRIVATE_ROWS_MAX) return;
    const uint8_t *first = matrix->data + panels.begin * matrix->panel_bytes;
    size_t bytes = (panels.end - panels.begin) * matrix->panel_bytes;
    for (size_t i = 0; i < bytes && i < AHEAD_BYTES; i += 64) __builtin_prefetch(first + i, 0, 2);
}

static float *angles_of(const struct device_cpu *cpu, uint32_t token, uint32_t rope)
{
    return cpu->angles + ((size_t)token * cpu->ropes + rope) * 2 * cpu->spec.rope_size;
}

static void embed(struct device_cpu *cpu, uint32_t token)
{
    const struct model_spec *s = &cpu->spec;
    float *x = cpu->x + (size_t)token * s->width;
    uint32_t row = cpu->batch->tokens[token] - cpu->vocab_begin; /* of another rank, before or after, it is too large */
    if (row < s->vocab)
        matmul_unpack_row(&cpu->embed, row, x);
    else
        memset(x, 0, s->width * sizeof *x);
    for (uint32_t e = 0; s->embedding_scale != 1 && e < s->width; e++) x[e] *= s->embedding_scale;
    cpu->bad[token] = 0;
}

/* The residual stream that the layers here begin with, and RoPE's angles. */
static void begin(struct device_cpu *cpu, uint32_t thread_idx)
{
    const struct model_spec *s = &cpu->spec;
    const struct batch *batch = cpu->batch;
    struct span rows = span_of(batch->tokens_count, thread_idx, cpu->threads_count);
    enum rope_pairs pairs = s->rope == ROPE_INTERLEAVED ? ROPE_PAIRS_INTERLEAVED : ROPE_PAIRS_HALVES;
    for (uint32_t n = rows.begin; n < rows.end; n++) {
        if (cpu->has_head) embed(cpu, n);
        for (uint32_t i = 0; i < cpu->ropes; i++) {
            float *angles = angles_of(cpu, n, i), magnitude = i ? s->rope_window.magnitude : s->rope_main.magnitude;
            rope_angles(angles, angles + s->rope_size, pairs, s->rope_size, cpu->frequencies[i], magnitude,
                        batch->positions[n]);
        }
    }
    if (thread_idx == 0 && !cpu->has_head) {
        phase_end(cpu, thread_idx, PHASE_EMBED);
        device_cpu_take_rows(cpu);
        phase_end(cpu, thread_idx, PHASE_RANKS);
    }
    phase_meet(cpu, thread_idx, PHASE_EMBED);
    if (cpu->comm && cpu->has_head)
        device_cpu_sum_ranks(cpu, thread_idx, cpu->x, (size_t)batch->tokens_count * s->width);
}

static void add(float *restrict x, const float *restrict y, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) x[i] = x[i] + y[i];
}

/* Bias, norm and rotation of heads [begin, end) of one token's Q or K. */
static void finish_heads(const struct device_cpu *cpu, float *heads, struct span span, const float *bias,
                         const float *norm, const float *angles)
{
    const struct model_spec *s = &cpu->spec;
    enum rope_pairs pairs = s->rope == ROPE_INTERLEAVED ? ROPE_PAIRS_INTERLEAVED : ROPE_PAIRS_HALVES;
    for (uint32_t h = span.begin; h < span.end; h++) {
        float *x = heads + (size_t)h * s->head_size;
        if (bias) add(x, bias + (size_t)h * s->head_size, s->head_size);
        if (norm) rmsnorm(cpu->path, x, x, norm, s->head_size, s->norm_eps);
        rope(cpu->path, x, angles, angles + s->rope_size, pairs, s->rope_size);
    }
}

static struct span panels_of_heads(const struct model_spec *s, struct span heads)
{
    return (struct span){heads.begin * s->head_size / MATMUL_PANEL_ROWS,
                         (heads.end * s->head_size + MATMUL_PANEL_ROWS - 1) / MATMUL_PANEL_ROWS};
}

static void multiply_heads(const struct device_cpu *cpu, const struct matrix *matrix, struct span heads,
                           const struct act_set *set, const uint8_t *acts, float *out)
{
    const struct model_spec *s = &cpu->spec;
    uint32_t M = cpu->batch->tokens_count, stride = (s->heads + 2 * s->kv_heads) * s->head_size;
    if (heads.begin == heads.end) return;
    struct span panels = panels_of_heads(s, heads);
    matmul(cpu->path, matrix, panels.begin, panels.end, act_of(cpu, acts, set, matrix->act, M), M, out, stride);
}

static void phase_qkv(struct device_cpu *cpu, uint32_t thread_idx, uint32_t l)
{
    const struct model_spec *s = &cpu->spec;
    const struct cpu_thread *own = &cpu->threads[thread_idx];
    const struct cpu_layer *layer = &cpu->layers[l];
    const struct batch *batch = cpu->batch;
    uint32_t D = s->head_size, stride = (s->heads + 2 * s->kv_heads) * D, N = batch->tokens_count;
    float *q = cpu->qkv, *k = q + s->heads * D, *v = k + s->kv_heads * D;
    const uint8_t *acts = device_cpu_prepare(cpu, thread_idx, &layer->qkv_acts, N, s->width,
                                             (struct act_source){cpu->x, NULL, NULL}, layer->attn_norm);
    multiply_heads(cpu, &layer->q, own->q_heads, &layer->qkv_acts, acts, q);
    multiply_heads(cpu, &layer->k, own->kv_heads, &layer->qkv_acts, acts, k);
    multiply_heads(cpu, &layer->v, own->kv_heads, &layer->qkv_acts, acts, v);
    for (uint32_t n = 0; n < N; n++) {
        const float *angles = angles_of(cpu, n, layer->windowed && s->has_window_rope);
        uint32_t position = batch->positions[n], slot = position % KV_TOKENS;
        block_id block = batch->block_table[batch->seq_of_token[n]][position / KV_TOKENS];
        float *k_n = k + (size_t)n * stride, *v_n = v + (size_t)n * stride;
        finish_heads(cpu, q + (size_t)n * stride, own->q_heads, layer->q_bias, layer->q_norm, angles);
        finish_heads(cpu, k_n, own->kv_heads, layer->k_bias, layer->k_norm, angles);
        for (uint32_t h = own->kv_heads.begin; h < own->kv_heads.end; h++) {
            if (layer->v_bias) add(v_n + (size_t)h * D, layer->v_bias + (size_t)h * D, D);
            kv_write(cpu->path, &cpu->kv_layout, kv_head_of(cpu, l, h, block), slot, k_n + (size_t)h * D,
                     v_n + (size_t)h * D);
        }
    }
    fetch_ahead(&layer->o, own->o, N);
    phase_meet(cpu, thread_idx, PHASE_QKV);
}

/* O, added to the residual stream; in the last layer that of the live rows, gathered first. */
static void phase_o(struct device_cpu *cpu, uint32_t thread_idx, const struct cpu_layer *layer,
                    const struct live_rows *live)
{
    const struct cpu_thread *own = &cpu->threads[thread_idx];
    uint32_t E = cpu->spec.width, M = live->count;
    const uint8_t *acts = device_cpu_prepare(cpu, thread_idx, &layer->o_acts, M, layer->o.K,
                                             (struct act_source){cpu->attended, live->tokens, live->tokens}, NULL);
    uint32_t begin = own->o.begin * MATMUL_PANEL_ROWS, end = own->o.end * MATMUL_PANEL_ROWS;
    if (end > E) end = E;
    for (uint32_t m = 0; live->tokens && m < M && begin < end; m++) {
        memcpy(live->x + (size_t)m * E + begin, cpu->x + (size_t)live->tokens[m] * E + begin,
               (end - begin) * sizeof(float));
    }
    acts = act_of(cpu, acts, &layer->o_acts, layer->o.act, M);
    if (cpu->apart) {
        matmul(cpu->path, &layer->o, own->o.begin, own->o.end, acts, M, cpu->y, E);
    } else {
        matmul_add(cpu->path, &layer->o, own->o.begin, own->o.end, acts, M, live->x, E);
    }
    if (!layer->experts) {
        fetch_ahead(&layer->gate, own->ff, M);
        fetch_ahead(&layer->up, own->ff, M);
    }
    phase_meet(cpu, thread_idx, PHASE_O);
}

void device_cpu_sum_ranks(struct device_cpu *cpu, uint32_t thread_idx, float *data, size_t count)
{
    if (thread_idx == 0) cpu->lost = comm_all_reduce(cpu->comm, data, count, COMM_F32, NULL) != ST_OK;
    phase_end(cpu, thread_idx, PHASE_RANKS);
    phase_meet(cpu, thread_idx, PHASE_RANKS);
}

/* Adds y, which all threads have written, summed over ranks, to the residual stream. Rows belong to the thread that
 * prepares them next, unless each thread prepares all, or `meet` says that others come: then it ends with a barrier. */
static void settle(struct device_cpu *cpu, uint32_t thread_idx, const struct live_rows *live, const float *norm,
                   bool meet)
{
    const struct model_spec *s = &cpu->spec;
    struct span rows = span_of(live->count, thread_idx, cpu->threads_count);
    if (cpu->comm) device_cpu_sum_ranks(cpu, thread_idx, cpu->y, (size_t)live->count * s->width);
    if (cpu->lost) return;
    for (uint32_t m = rows.begin; m < rows.end; m++) {
        float *x = live->x + (size_t)m * s->width, *y = cpu->y + (size_t)m * s->width;
        if (norm) rmsnorm(cpu->path, y, y, norm, s->width, s->norm_eps);
        for (uint32_t e = 0; s->residual_scale != 1 && e < s->width; e++) y[e] *= s->residual_scale;
        add(x, y, s->width);
    }
    if (meet || live->count <= PRIVATE_ROWS_MAX) {
        phase_meet(cpu, thread_idx, PHASE_PREPARE);
    } else {
        phase_end(cpu, thread_idx, PHASE_PREPARE);
    }
}

/* A tile of rows for the columns of panels [p, p_end), of which the tile's rows leave room in the buffers. A tile's
 * results never leave the cache. */
static void gated_tile(struct device_cpu *cpu, const struct gated *g, uint32_t p, uint32_t p_end, uint32_t first)
{
    enum { ITEMS = MATMUL_TILE_ROWS * UNIT_PANELS * MATMUL_PANEL_ROWS };
    _Alignas(64) float gate[ITEMS], up[ITEMS];
    uint32_t M = g->M, F = g->down->K, rows = M - first < MATMUL_TILE_ROWS ? M - first : MATMUL_TILE_ROWS;
    uint32_t stride = (p_end - p) * MATMUL_PANEL_ROWS;
    uint32_t k_begin = p * MATMUL_PANEL_ROWS, k_end = p_end * MATMUL_PANEL_ROWS;
    if (k_end > F) k_end = F;
    enum glu_kind kind = cpu->spec.activation == ACTIVATION_SILU ? GLU_SILU : GLU_GELU_TANH;
    matmul_tile(cpu->path, g->gate, p, p_end, g->gate_act, M, first, gate, stride);
    matmul_tile(cpu->path, g->up, p, p_end, g->up_act, M, first, up, stride);
    if (k_end - k_begin == stride) {
        glu(cpu->path, kind, gate, gate, up, rows * stride);
    } else {
        for (uint32_t m = 0; m < rows; m++) {
            glu(cpu->path, kind, gate + m * stride, gate + m * stride, up + m * stride, k_end - k_begin);
        }
    }
    if (matmul_prepare_columns(cpu->path, g->down->act, gate, stride, M, F, first, first + rows, k_begin, k_end,
                               g->down_acts)) {
        return;
    }
    for (uint32_t m = 0; m < rows; m++) {
        for (uint32_t k = k_begin; k < k_end; k++) {
            if (!isfinite(gate[m * stride + k - k_begin]))
                device_cpu_mark_bad(cpu, g->tokens ? g->tokens[first + m] : first + m);
        }
    }
}

void device_cpu_gated(struct device_cpu *cpu, const struct gated *gated, struct span panels)
{
    uint32_t M = gated->M, unit = M <= PRIVATE_ROWS_MAX ? UNIT_PANELS_FEW_ROWS : UNIT_PANELS;
    for (uint32_t begin = 0; begin < M; begin += ROWS_IN_CACHE) {
        uint32_t end = M - begin < ROWS_IN_CACHE ? M : begin + ROWS_IN_CACHE;
        for (uint32_t p = panels.begin; p < panels.end; p += unit) {
            uint32_t p_end = panels.end - p < unit ? panels.end : p + unit;
            for (uint32_t m = begin; m < end; m += MATMUL_TILE_ROWS) gated_tile(cpu, gated, p, p_end, m);
        }
    }
}

static void phase_gated(struct device_cpu *cpu, uint32_t thread_idx, const struct cpu_layer *layer,
                        const struct live_rows *live)
{
    uint32_t M = live->count;
    const uint8_t *acts = device_cpu_prepare(cpu, thread_idx, &layer->ff_acts, M, cpu->spec.width,
                                             (struct act_source){live->x, NULL, live->tokens}, layer->ffn_norm);
    struct gated gated = {.gate = &layer->gate,
                          .up = &layer->up,
                          .down = &layer->down,
                          .gate_act = act_of(cpu, acts, &layer->ff_acts, layer->gate.act, M),
                          .up_act = act_of(cpu, acts, &layer->ff_acts, layer->up.act, M),
                          .down_acts = cpu->down_acts,
                          .M = M,
                          .tokens = live->tokens};
    device_cpu_gated(cpu, &gated, cpu->threads[thread_idx].ff);
    fetch_ahead(&layer->down, cpu->threads[thread_idx].down, M);
    phase_meet(cpu, thread_idx, PHASE_GATED);
}

static void phase_down(struct device_cpu *cpu, uint32_t thread_idx, const struct cpu_layer *layer,
                       const struct live_rows *live)
{
    const struct cpu_thread *own = &cpu->threads[thread_idx];
    uint32_t E = cpu->spec.width;
    if (cpu->apart) {
        matmul(cpu->path, &layer->down, own->down.begin, own->down.end, cpu->down_acts, live->count, cpu->y, E);
    } else {
        matmul_add(cpu->path, &layer->down, own->down.begin, own->down.end, cpu->down_acts, live->count, live->x, E);
    }
    if (layer == &cpu->layers[cpu->spec.layers - 1]) {
        fetch_ahead(&cpu->head, own->head, live->count);
    } else {
        fetch_ahead(&layer[1].q, panels_of_heads(&cpu->spec, own->q_heads), live->count);
    }
    phase_meet(cpu, thread_idx, PHASE_DOWN);
}

void device_cpu_run_layers(struct device_cpu *cpu, uint32_t thread_idx)
{
    begin(cpu, thread_idx);
    for (uint32_t l = 0; l < cpu->spec.layers && !cpu->lost; l++) {
        const struct cpu_layer *layer = &cpu->layers[l];
        const struct live_rows *live = l == cpu->last_layer ? &cpu->last : &cpu->all;
        phase_qkv(cpu, thread_idx, l);
        if (live->count == 0) break;
        device_cpu_attend(cpu, thread_idx, l);
        phase_meet(cpu, thread_idx, PHASE_ATTENTION);
        phase_o(cpu, thread_idx, layer, live);
        if (cpu->apart) settle(cpu, thread_idx, live, layer->attn_post_norm, false);
        if (cpu->lost) return;
        if (layer->experts) {
            device_cpu_run_experts(cpu, thread_idx, layer, live);
        } else {
            phase_gated(cpu, thread_idx, layer, live);
            phase_down(cpu, thread_idx, layer, live);
        }
        bool last = l + 1 == cpu->spec.layers;
        if (cpu->apart || layer->experts) settle(cpu, thread_idx, live, layer->ffn_post_norm, last);
    }
}
