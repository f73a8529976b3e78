/* The layers of a step, as each thread runs them.
 *
 *   embed, angles | per layer:  (norm, acts |) Q K V, bias, norm, RoPE, KV | attention (| acts) | O, residual
 *                               (norm, acts |) gate, up, GLU (| acts) | down, residual |
 *
 * A bar is a barrier; those in brackets fall away at PRIVATE_ROWS_MAX tokens and fewer, where every thread prepares all
 * activations for itself. Outputs of O, gate, up and down are made TILE_COLUMNS at a time and used while they are in
 * the cache. A token that met a NaN or an infinity is marked in bad[] by the thread that prepared its row. */
#include "runtime/device/device_cpu_parts.h"

#include "kernels/glu.h"
#include "kernels/rmsnorm.h"

#include <string.h>

const uint8_t *device_cpu_prepare(struct device_cpu *cpu, uint32_t thread_idx, const struct act_set *set, uint32_t M,
                                  uint32_t K, const float *source, const float *norm, const uint32_t *tokens)
{
    struct cpu_thread *own = &cpu->threads[thread_idx];
    bool alone = M <= PRIVATE_ROWS_MAX;
    struct span rows = alone ? (struct span){0, M} : span_of(M, thread_idx, cpu->threads_count);
    uint8_t *base = alone ? own->acts : cpu->acts;
    size_t slot_bytes = alone ? cpu->act_private_slot_bytes : cpu->act_slot_bytes;
    for (uint32_t m = rows.begin; m < rows.end; m++) {
        uint32_t token = tokens ? tokens[m] : m;
        const float *row = source + (size_t)token * K;
        if (norm) {
            rmsnorm(cpu->path, own->row, row, norm, K, cpu->spec.norm_eps);
            row = own->row;
        }
        for (uint32_t i = 0; i < set->count; i++) { /* stride 0: the row stands for every m */
            bool finite = matmul_prepare(cpu->path, set->kinds[i], row, 0, M, K, m, m + 1, base + i * slot_bytes);
            if (!finite && (!alone || thread_idx == 0)) cpu->bad[token] = 1;
        }
    }
    if (alone) {
        phase_end(cpu, thread_idx, PHASE_PREPARE);
    } else {
        phase_meet(cpu, thread_idx, PHASE_PREPARE);
    }
    return base;
}

static void embed(struct device_cpu *cpu, uint32_t thread_idx)
{
    const struct model_spec *s = &cpu->spec;
    const struct batch *batch = cpu->batch;
    struct span rows = span_of(batch->tokens_count, thread_idx, cpu->threads_count);
    enum rope_pairs pairs = s->rope == ROPE_INTERLEAVED ? ROPE_PAIRS_INTERLEAVED : ROPE_PAIRS_HALVES;
    for (uint32_t n = rows.begin; n < rows.end; n++) {
        float *angles = cpu->angles + (size_t)n * 2 * s->rope_size;
        matmul_unpack_row(&cpu->embed, batch->tokens[n], cpu->x + (size_t)n * s->width);
        rope_angles(angles, angles + s->rope_size, pairs, s->rope_size, cpu->frequencies, batch->positions[n]);
        cpu->bad[n] = 0;
    }
    phase_meet(cpu, thread_idx, PHASE_EMBED);
}

static uint8_t *kv_head_of(const struct device_cpu *cpu, uint32_t layer, uint32_t kv_head, block_id block)
{
    return cpu->kv + block * cpu->device.info.kv_block_bytes + layer * cpu->layer_bytes +
           kv_head * cpu->kv_layout.head_bytes;
}

static void add(float *restrict x, const float *restrict y, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) x[i] = x[i] + y[i];
}

/* The same with a constant count, which the compiler turns into vectors; not inlined, for there it forgets `restrict`.
 */
static __attribute__((noinline)) void add_tile(float *restrict x, const float *restrict y)
{
    for (uint32_t i = 0; i < TILE_COLUMNS; i++) x[i] = x[i] + y[i];
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

static void multiply_heads(const struct device_cpu *cpu, const struct matrix *matrix, struct span heads,
                           const struct act_set *set, const uint8_t *acts, float *out)
{
    const struct model_spec *s = &cpu->spec;
    uint32_t M = cpu->batch->tokens_count, D = s->head_size, stride = (s->heads + 2 * s->kv_heads) * D;
    if (heads.begin == heads.end) return;
    matmul(cpu->path, matrix, heads.begin * D / MATMUL_PANEL_ROWS,
           (heads.end * D + MATMUL_PANEL_ROWS - 1) / MATMUL_PANEL_ROWS, act_of(cpu, acts, set, matrix->act, M), M, out,
           stride);
}

static void phase_qkv(struct device_cpu *cpu, uint32_t thread_idx, uint32_t l)
{
    const struct model_spec *s = &cpu->spec;
    const struct cpu_thread *own = &cpu->threads[thread_idx];
    const struct cpu_layer *layer = &cpu->layers[l];
    const struct batch *batch = cpu->batch;
    uint32_t D = s->head_size, stride = (s->heads + 2 * s->kv_heads) * D, N = batch->tokens_count;
    float *q = cpu->qkv, *k = q + s->heads * D, *v = k + s->kv_heads * D;
    const uint8_t *acts =
        device_cpu_prepare(cpu, thread_idx, &layer->qkv_acts, N, s->width, cpu->x, layer->attn_norm, NULL);
    multiply_heads(cpu, &layer->q, own->q_heads, &layer->qkv_acts, acts, q);
    multiply_heads(cpu, &layer->k, own->kv_heads, &layer->qkv_acts, acts, k);
    multiply_heads(cpu, &layer->v, own->kv_heads, &layer->qkv_acts, acts, v);
    for (uint32_t n = 0; n < N; n++) {
        const float *angles = cpu->angles + (size_t)n * 2 * s->rope_size;
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
    phase_meet(cpu, thread_idx, PHASE_QKV);
}

/* Items from the last: a prompt's last rows have most to read, and long items should not come at the end. */
static void phase_attention(struct device_cpu *cpu, uint32_t thread_idx, uint32_t l)
{
    const struct model_spec *s = &cpu->spec;
    const struct batch *batch = cpu->batch;
    uint32_t items = cpu->tiles_count * s->kv_heads, G = s->heads / s->kv_heads, D = s->head_size;
    size_t stride = (size_t)(s->heads + 2 * s->kv_heads) * D;
    for (;;) {
        uint32_t item = atomic_fetch_add_explicit(&cpu->next_item[l], 1, memory_order_relaxed);
        if (item >= items) break;
        item = items - 1 - item;
        const struct attention_tile *tile = &cpu->tiles[item / s->kv_heads];
        uint32_t kv_head = item % s->kv_heads;
        struct attention_args args = {
            .layout = cpu->kv_layout,
            .kv = kv_head_of(cpu, l, kv_head, 0),
            .kv_block_bytes = cpu->device.info.kv_block_bytes,
            .blocks = batch->block_table[tile->seq],
            .q = cpu->qkv + tile->token * stride + (size_t)kv_head * G * D,
            .out = cpu->attended + (size_t)tile->token * s->heads * D + (size_t)kv_head * G * D,
            .q_stride = stride,
            .out_stride = (size_t)s->heads * D,
            .rows = tile->rows,
            .G = G,
            .position = batch->positions[tile->token],
            .scale = s->attention_scale,
            .scratch = cpu->threads[thread_idx].attention,
        };
        attention(cpu->path, &args);
    }
    phase_meet(cpu, thread_idx, PHASE_ATTENTION);
}

/* Panels [begin, begin + TILE_COLUMNS / 16) of a matrix, as far as `end`, against all tokens: tile (N, TILE_COLUMNS).
 * Gives the number of columns. */
static uint32_t multiply_tile(const struct device_cpu *cpu, const struct matrix *matrix, uint32_t begin, uint32_t end,
                              const uint8_t *act, float *tile)
{
    struct matrix part = *matrix;
    uint32_t panels = end - begin < TILE_COLUMNS / MATMUL_PANEL_ROWS ? end - begin : TILE_COLUMNS / MATMUL_PANEL_ROWS;
    uint32_t rest = matrix->N - begin * MATMUL_PANEL_ROWS;
    part.data = matrix->data + begin * matrix->panel_bytes;
    part.panels = panels;
    part.N = rest < panels * MATMUL_PANEL_ROWS ? rest : panels * MATMUL_PANEL_ROWS;
    matmul(cpu->path, &part, 0, panels, act, cpu->batch->tokens_count, tile, TILE_COLUMNS);
    return part.N;
}

/* x += matrix * source, for the panels of the thread. */
static void phase_residual(struct device_cpu *cpu, uint32_t thread_idx, const struct matrix *matrix, struct span panels,
                           const struct act_set *set, const float *source, enum device_phase phase)
{
    uint32_t N = cpu->batch->tokens_count, E = cpu->spec.width;
    const uint8_t *acts = device_cpu_prepare(cpu, thread_idx, set, N, matrix->K, source, NULL, NULL);
    const uint8_t *act = act_of(cpu, acts, set, matrix->act, N);
    float *tile = cpu->threads[thread_idx].tiles[0];
    for (uint32_t p = panels.begin; p < panels.end; p += TILE_COLUMNS / MATMUL_PANEL_ROWS) {
        uint32_t columns = multiply_tile(cpu, matrix, p, panels.end, act, tile);
        for (uint32_t n = 0; n < N; n++) {
            float *x = cpu->x + (size_t)n * E + (size_t)p * MATMUL_PANEL_ROWS;
            if (columns == TILE_COLUMNS) {
                add_tile(x, tile + (size_t)n * TILE_COLUMNS);
            } else {
                add(x, tile + (size_t)n * TILE_COLUMNS, columns);
            }
        }
    }
    phase_meet(cpu, thread_idx, phase);
}

static void phase_gated(struct device_cpu *cpu, uint32_t thread_idx, const struct cpu_layer *layer)
{
    const struct model_spec *s = &cpu->spec;
    struct cpu_thread *own = &cpu->threads[thread_idx];
    uint32_t N = cpu->batch->tokens_count;
    const uint8_t *acts =
        device_cpu_prepare(cpu, thread_idx, &layer->ff_acts, N, s->width, cpu->x, layer->ffn_norm, NULL);
    const uint8_t *gate_act = act_of(cpu, acts, &layer->ff_acts, layer->gate.act, N);
    const uint8_t *up_act = act_of(cpu, acts, &layer->ff_acts, layer->up.act, N);
    enum glu_kind kind = s->activation == ACTIVATION_SILU ? GLU_SILU : GLU_GELU_TANH;
    for (uint32_t p = own->ff.begin; p < own->ff.end; p += TILE_COLUMNS / MATMUL_PANEL_ROWS) {
        uint32_t columns = multiply_tile(cpu, &layer->gate, p, own->ff.end, gate_act, own->tiles[0]);
        multiply_tile(cpu, &layer->up, p, own->ff.end, up_act, own->tiles[1]);
        for (uint32_t n = 0; n < N; n++) {
            glu(cpu->path, kind, cpu->gated + (size_t)n * s->ff_width + (size_t)p * MATMUL_PANEL_ROWS,
                own->tiles[0] + (size_t)n * TILE_COLUMNS, own->tiles[1] + (size_t)n * TILE_COLUMNS, columns);
        }
    }
    phase_meet(cpu, thread_idx, PHASE_GATED);
}

void device_cpu_run_layers(struct device_cpu *cpu, uint32_t thread_idx)
{
    const struct cpu_thread *own = &cpu->threads[thread_idx];
    embed(cpu, thread_idx);
    for (uint32_t l = 0; l < cpu->spec.layers; l++) {
        const struct cpu_layer *layer = &cpu->layers[l];
        phase_qkv(cpu, thread_idx, l);
        phase_attention(cpu, thread_idx, l);
        phase_residual(cpu, thread_idx, &layer->o, own->o, &layer->o_acts, cpu->attended, PHASE_O);
        phase_gated(cpu, thread_idx, layer);
        phase_residual(cpu, thread_idx, &layer->down, own->down, &layer->down_acts, cpu->gated, PHASE_DOWN);
    }
}
