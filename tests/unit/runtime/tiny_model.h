/* A tiny random transformer in memory, and what it means: a forward pass in double over dequantised weights, written
 * from the formulas and sharing no code with the device but dequantize_row. For tests. */
#ifndef TESTS_UNIT_RUNTIME_TINY_MODEL_H
#define TESTS_UNIT_RUNTIME_TINY_MODEL_H

#include "kernels/dequantize.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/model/model.h"

#include <math.h>
#include <string.h>

enum { TINY_LAYERS = 2, TINY_LAYERS_MAX = 5, TINY_EXPERTS_MAX = 9, TINY_TENSORS_MAX = 256, TINY_TOKENS_MAX = 320 };

/* A Llama, in part: a test adds .heads, .head_size, .rope_size, .attention_scale, .ff_width, .vocab, .context_max. */
#define TINY_SPEC TINY_SPEC_OF(TINY_LAYERS)
#define TINY_SPEC_OF(count)                                                                                            \
    .arch = "tiny", .layers = count, .width = 64, .kv_heads = 2, .norm_eps = 1e-5f, .rope = ROPE_INTERLEAVED,          \
    .rope_main = {10000, 1, 1}, .embedding_scale = 1, .residual_scale = 1, .logit_scale = 1, .tied_head = true

/* Layer 0 sees a window and has RoPE of its own, layer 1 sees all; every scale and norm that a family may have. */
static inline struct model_spec tiny_rich(struct model_spec spec, uint32_t window)
{
    spec.rope = ROPE_HALVES;
    spec.layer_flags[0] = LAYER_WINDOWED;
    spec.window = window;
    spec.has_window_rope = true;
    spec.rope_main = (struct rope_spec){100000, 0.125f, 1.1f};
    spec.rope_window = (struct rope_spec){1000, 1, 1};
    spec.has_qk_norm = spec.has_post_norms = true;
    spec.activation = ACTIVATION_GELU_TANH;
    spec.embedding_scale = 8;
    spec.residual_scale = 0.7f;
    spec.logit_scale = 0.25f;
    return spec;
}

/* Experts in both layers, a window in the second. */
static inline struct model_spec tiny_mixture(struct model_spec spec)
{
    spec.layer_flags[0] = LAYER_EXPERTS;
    spec.layer_flags[1] = LAYER_EXPERTS | LAYER_WINDOWED;
    spec.window = 9;
    spec.experts = 9;
    spec.experts_used = 3;
    spec.expert_width = 64;
    return spec;
}

struct tiny_model {
    struct model model;
    struct layer_weights layers[TINY_LAYERS_MAX];
    struct expert_weights experts[TINY_LAYERS_MAX][TINY_EXPERTS_MAX];
    void *owned[TINY_TENSORS_MAX];
    uint32_t owned_count;
    uint64_t seed;
};

static float tiny_uniform(uint64_t *seed, float low, float high)
{
    return low + (high - low) * (float)(random_next(seed) >> 40) * 0x1p-24f;
}

/* Random blocks of type F32, Q8_0 or Q4_1 with values of about +-size. */
static struct tensor_view tiny_tensor(struct tiny_model *tiny, enum tensor_type type, uint32_t rows, uint32_t cols,
                                      float size, const char *name)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    size_t blocks = (size_t)rows * cols / info->block_items;
    uint8_t *data = mem_alloc(blocks, info->block_bytes);
    assert_non_null(data);
    for (size_t b = 0; b < blocks; b++) {
        uint8_t *block = data + b * info->block_bytes;
        for (uint32_t i = 0; i < info->block_bytes; i++) block[i] = (uint8_t)random_next(&tiny->seed);
        float x = tiny_uniform(&tiny->seed, -size, size);
        uint16_t d = f32_to_f16(size / (type == TENSOR_Q8_0 ? 127 : 8)), m = f32_to_f16(-size);
        if (type == TENSOR_F32)
            memcpy(block, &x, 4);
        else
            memcpy(block, &d, 2);
        if (type == TENSOR_Q4_1) memcpy(block + 2, &m, 2);
    }
    assert_true(tiny->owned_count < TINY_TENSORS_MAX);
    tiny->owned[tiny->owned_count++] = data;
    return (struct tensor_view){data, type, rows, cols, name, NULL};
}

static struct tensor_view tiny_vector(struct tiny_model *tiny, uint32_t cols, float low, float high, const char *name)
{
    struct tensor_view view = tiny_tensor(tiny, TENSOR_F32, 1, cols, 1, name);
    for (uint32_t i = 0; i < cols; i++)
        ((float *)tiny->owned[tiny->owned_count - 1])[i] = tiny_uniform(&tiny->seed, low, high);
    return view;
}

/* Fills the weights for tiny->model.spec. type: of matrices; V gets another where q8_v is set, so that a phase has two.
 */
static void tiny_make_layers(struct tiny_model *tiny, const struct model_spec *spec, uint32_t layers,
                             enum tensor_type type, bool q8_v, bool factors)
{
    *tiny = (struct tiny_model){.seed = 18};
    tiny->model.spec = *spec;
    tiny->model.spec.layers = layers;
    struct model_weights *w = &tiny->model.weights;
    uint32_t E = spec->width, Q = spec->heads * spec->head_size, KV = spec->kv_heads * spec->head_size;
    w->layers = tiny->layers;
    w->embed = tiny_tensor(tiny, type, spec->vocab, E, 1, "embed");
    w->head = spec->tied_head ? w->embed : tiny_tensor(tiny, type, spec->vocab, E, 1, "head");
    w->final_norm = tiny_vector(tiny, E, 0.5f, 1.5f, "final_norm");
    if (factors) w->rope_factors = tiny_vector(tiny, spec->rope_size / 2, 1, 8, "rope_factors");
    if (spec->rope_switch) w->rope_factors_long = tiny_vector(tiny, spec->rope_size / 2, 1, 8, "rope_factors_long");
    for (uint32_t l = 0; l < layers; l++) {
        struct layer_weights *layer = &tiny->layers[l];
        layer->attn_norm = tiny_vector(tiny, E, 0.5f, 1.5f, "attn_norm");
        layer->ffn_norm = tiny_vector(tiny, E, 0.5f, 1.5f, "ffn_norm");
        layer->q = tiny_tensor(tiny, type, Q, E, 0.4f, "q");
        layer->k = tiny_tensor(tiny, type, KV, E, 0.4f, "k");
        layer->v = tiny_tensor(tiny, q8_v ? TENSOR_Q8_0 : type, KV, E, 0.3f, "v");
        layer->o = tiny_tensor(tiny, type, E, Q, 0.3f, "o");
        if (spec->layer_flags[l] & LAYER_EXPERTS) {
            layer->router = tiny_tensor(tiny, TENSOR_F32, spec->experts, E, 0.4f, "router");
            layer->experts = tiny->experts[l];
            for (uint32_t x = 0; x < spec->experts; x++) {
                struct expert_weights *expert = &layer->experts[x];
                expert->gate = tiny_tensor(tiny, type, spec->expert_width, E, 0.3f, "gate");
                expert->up = tiny_tensor(tiny, q8_v && x % 2 ? TENSOR_Q8_0 : type, spec->expert_width, E, 0.3f, "up");
                expert->down = tiny_tensor(tiny, type, E, spec->expert_width, 0.3f, "down");
            }
        } else {
            layer->gate = tiny_tensor(tiny, type, spec->ff_width, E, 0.3f, "gate");
            layer->up = tiny_tensor(tiny, type, spec->ff_width, E, 0.3f, "up");
            layer->down = tiny_tensor(tiny, type, E, spec->ff_width, 0.2f, "down");
        }
        if (spec->has_post_norms) {
            layer->attn_post_norm = tiny_vector(tiny, E, 0.5f, 1.5f, "attn_post_norm");
            layer->ffn_post_norm = tiny_vector(tiny, E, 0.5f, 1.5f, "ffn_post_norm");
        }
        if (spec->has_qkv_bias) {
            layer->q_bias = tiny_vector(tiny, Q, -1, 1, "q_bias");
            layer->k_bias = tiny_vector(tiny, KV, -1, 1, "k_bias");
            layer->v_bias = tiny_vector(tiny, KV, -1, 1, "v_bias");
        }
        if (spec->has_qk_norm) {
            layer->q_norm = tiny_vector(tiny, spec->head_size, 0.5f, 1.5f, "q_norm");
            layer->k_norm = tiny_vector(tiny, spec->head_size, 0.5f, 1.5f, "k_norm");
        }
    }
}

static __attribute__((unused)) void tiny_make(struct tiny_model *tiny, const struct model_spec *spec,
                                              enum tensor_type type, bool q8_v, bool factors)
{
    tiny_make_layers(tiny, spec, TINY_LAYERS, type, q8_v, factors);
}

static void tiny_free(struct tiny_model *tiny)
{
    for (uint32_t i = 0; i < tiny->owned_count; i++) mem_free(tiny->owned[i]);
}

static void tiny_row(const struct tensor_view *view, uint32_t row, float *out)
{
    const struct tensor_type_info *info = tensor_type_info(view->type);
    dequantize_row(view->type, (const uint8_t *)view->data + row * tensor_row_bytes(info, view->cols), out, view->cols);
}

static void tiny_multiply(const struct tensor_view *view, const double *x, double *y)
{
    float row[512];
    for (uint32_t n = 0; n < view->rows; n++) {
        tiny_row(view, n, row);
        y[n] = 0;
        for (uint32_t k = 0; k < view->cols; k++) y[n] += (double)row[k] * x[k];
    }
}

static void tiny_add(const struct tensor_view *view, double *y)
{
    for (uint32_t i = 0; view->data && i < view->cols; i++) y[i] += (double)((const float *)view->data)[i];
}

static void tiny_norm(const struct tensor_view *view, const double *x, double *y, double eps)
{
    double squares = 0;
    for (uint32_t i = 0; i < view->cols; i++) squares += x[i] * x[i];
    double scale = 1 / sqrt(squares / view->cols + eps);
    for (uint32_t i = 0; i < view->cols; i++) y[i] = x[i] * scale * (double)((const float *)view->data)[i];
}

/* A test's context is longer than rope_switch where there is one. */
static void tiny_turn(const struct tiny_model *tiny, double *head, uint32_t position, bool windowed)
{
    const struct model_spec *s = &tiny->model.spec;
    const struct model_weights *w = &tiny->model.weights;
    const float *factors = s->rope_switch ? w->rope_factors_long.data : w->rope_factors.data;
    const struct rope_spec *rope = &s->rope_main;
    if (windowed && s->has_window_rope) rope = &s->rope_window, factors = NULL;
    for (uint32_t i = 0; i < s->rope_size / 2; i++) {
        double frequency = pow((double)rope->base, -2.0 * i / s->rope_size) / (factors ? (double)factors[i] : 1);
        double angle = position * (double)rope->scale * frequency, size = (double)rope->magnitude;
        double *a = head + (s->rope == ROPE_INTERLEAVED ? 2 * i : i),
               *b = a + (s->rope == ROPE_INTERLEAVED ? 1 : s->rope_size / 2);
        double x = *a, y = *b;
        *a = size * (x * cos(angle) - y * sin(angle));
        *b = size * (y * cos(angle) + x * sin(angle));
    }
}

/* y += down(act(gate(h)) * up(h)) * share */
static void tiny_gated(const struct model_spec *s, const struct tensor_view *gate_view,
                       const struct tensor_view *up_view, const struct tensor_view *down, const double *h, double share,
                       double *y)
{
    static double gate[512], up[512], out[512];
    tiny_multiply(gate_view, h, gate);
    tiny_multiply(up_view, h, up);
    for (uint32_t f = 0; f < gate_view->rows; f++) {
        double g = gate[f], u = sqrt(2 / 3.14159265358979323846) * (g + 0.044715 * g * g * g);
        gate[f] = up[f] * (s->activation == ACTIVATION_SILU ? g / (1 + exp(-g)) : 0.5 * g * (1 + tanh(u)));
    }
    tiny_multiply(down, gate, out);
    for (uint32_t e = 0; e < s->width; e++) y[e] += share * out[e];
}

static void tiny_experts(const struct model_spec *s, const struct layer_weights *w, const double *h, double *y)
{
    static double logits[512];
    double total = 0, sum = 0;
    tiny_multiply(&w->router, h, logits);
    for (uint32_t x = 0; x < s->experts; x++) total += exp(logits[x]);
    for (int pass = 0; pass < 2; pass++) {
        bool taken[TINY_EXPERTS_MAX] = {false};
        for (uint32_t u = 0; u < s->experts_used; u++) {
            uint32_t best = UINT32_MAX;
            for (uint32_t x = 0; x < s->experts; x++)
                if (!taken[x] && (best == UINT32_MAX || logits[x] > logits[best])) best = x;
            taken[best] = true;
            double share = exp(logits[best]) / total / (pass && s->experts_normed ? sum : 1);
            if (!pass) sum += share;
            const struct expert_weights *expert = &w->experts[best];
            if (pass) tiny_gated(s, &expert->gate, &expert->up, &expert->down, h, share, y);
        }
    }
}

/* x += residual_scale * norm(y) */
static void tiny_settle(const struct model_spec *s, const struct tensor_view *norm, double *y, double *x)
{
    if (s->has_post_norms) tiny_norm(norm, y, y, (double)s->norm_eps);
    for (uint32_t e = 0; e < s->width; e++) x[e] += (double)s->residual_scale * y[e];
}

/* Log-probabilities (count, V) of all positions of one sequence. */
static __attribute__((unused)) void tiny_forward(const struct tiny_model *tiny, const uint32_t *tokens, uint32_t count,
                                                 double *logprobs)
{
    const struct model_spec *s = &tiny->model.spec;
    uint32_t E = s->width, D = s->head_size, V = s->vocab, group = s->heads / s->kv_heads;
    static double x[TINY_TOKENS_MAX][256], q[TINY_TOKENS_MAX][256], k[TINY_TOKENS_MAX][256], v[TINY_TOKENS_MAX][256];
    static double h[512], mixed[512], y[512], scores[TINY_TOKENS_MAX];
    double eps = (double)s->norm_eps;
    for (uint32_t n = 0; n < count; n++) {
        float row[512];
        tiny_row(&tiny->model.weights.embed, tokens[n], row);
        for (uint32_t e = 0; e < E; e++) x[n][e] = (double)row[e] * (double)s->embedding_scale;
    }
    for (uint32_t l = 0; l < s->layers; l++) {
        const struct layer_weights *w = &tiny->layers[l];
        bool windowed = s->layer_flags[l] & LAYER_WINDOWED;
        for (uint32_t n = 0; n < count; n++) {
            tiny_norm(&w->attn_norm, x[n], h, eps);
            tiny_multiply(&w->q, h, q[n]);
            tiny_multiply(&w->k, h, k[n]);
            tiny_multiply(&w->v, h, v[n]);
            tiny_add(&w->q_bias, q[n]);
            tiny_add(&w->k_bias, k[n]);
            tiny_add(&w->v_bias, v[n]);
            for (uint32_t i = 0; i < s->heads + s->kv_heads; i++) {
                double *head = i < s->heads ? q[n] + i * D : k[n] + (i - s->heads) * D;
                if (s->has_qk_norm) tiny_norm(i < s->heads ? &w->q_norm : &w->k_norm, head, head, eps);
                tiny_turn(tiny, head, n, windowed);
            }
        }
        for (uint32_t n = 0; n < count; n++) {
            for (uint32_t i = 0; i < s->heads; i++) {
                double peak = -INFINITY, total = 0;
                uint32_t first = windowed && n >= s->window ? n + 1 - s->window : 0;
                for (uint32_t t = first; t <= n; t++) {
                    scores[t] = 0;
                    for (uint32_t d = 0; d < D; d++) scores[t] += q[n][i * D + d] * k[t][i / group * D + d];
                    scores[t] *= (double)s->attention_scale;
                    peak = fmax(peak, scores[t]);
                }
                for (uint32_t t = first; t <= n; t++) total += scores[t] = exp(scores[t] - peak);
                for (uint32_t d = 0; d < D; d++) {
                    mixed[i * D + d] = 0;
                    for (uint32_t t = first; t <= n; t++)
                        mixed[i * D + d] += scores[t] / total * v[t][i / group * D + d];
                }
            }
            tiny_multiply(&w->o, mixed, y);
            tiny_settle(s, &w->attn_post_norm, y, x[n]);
            tiny_norm(&w->ffn_norm, x[n], h, eps);
            for (uint32_t e = 0; e < E; e++) y[e] = 0;
            if (s->layer_flags[l] & LAYER_EXPERTS) {
                tiny_experts(s, w, h, y);
            } else {
                tiny_gated(s, &w->gate, &w->up, &w->down, h, 1, y);
            }
            tiny_settle(s, &w->ffn_post_norm, y, x[n]);
        }
    }
    for (uint32_t n = 0; n < count; n++) {
        double *out = logprobs + (size_t)n * V, peak = -INFINITY, total = 0;
        tiny_norm(&tiny->model.weights.final_norm, x[n], h, eps);
        tiny_multiply(&tiny->model.weights.head, h, out);
        for (uint32_t i = 0; i < V; i++) out[i] *= (double)s->logit_scale;
        for (uint32_t i = 0; i < V; i++) peak = fmax(peak, out[i]);
        for (uint32_t i = 0; i < V; i++) total += exp(out[i] - peak);
        for (uint32_t i = 0; i < V; i++) out[i] -= peak + log(total);
    }
}

#endif
