/* See random_model.h. */
#include "bench/cuda/random_model.h"

#include "kernels/dequantize.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <math.h>
#include <stdio.h>

struct random_rows {
    struct tensor_recipe recipe; /* first */
    uint64_t seed;
    uint32_t cols;
    float scale;
};

enum { MATRICES = 7, NAMES_BYTES = 32 };

/* Uniform values whose variance is 1 / K, so that activations keep their size; four values from the seed, their row and
 * column. */
static void make_area(const struct tensor_recipe *recipe, struct tensor_area area, void *rows)
{
    const struct random_rows *r = (const struct random_rows *)(const void *)recipe;
    uint16_t *out = rows;
    for (uint32_t row = area.row_begin; row < area.row_end; row++) {
        for (uint32_t k = area.col_begin; k < area.col_end; k += 4) {
            uint64_t state = r->seed + (uint64_t)row * r->cols + k, bits = random_next(&state);
            for (uint32_t i = 0; i < 4 && k + i < area.col_end; i++) {
                float unit = (float)(int16_t)(bits >> 16 * i) / 32768.0f;
                *out++ = f32_to_bf16(unit * r->scale);
            }
        }
    }
}

static struct tensor_view matrix(struct arena *arena, const char *name, uint32_t rows, uint32_t cols, uint64_t seed)
{
    struct random_rows *recipe = arena_alloc(arena, 1, sizeof *recipe);
    if (!recipe) return (struct tensor_view){0};
    *recipe = (struct random_rows){{make_area}, seed << 40, cols, sqrtf(3.0f / (float)cols)};
    return (struct tensor_view){
        .data = recipe, .type = TENSOR_BF16, .rows = rows, .cols = cols, .name = name, .recipe = &recipe->recipe};
}

static struct tensor_view ones(struct arena *arena, const char *name, uint32_t cols)
{
    float *values = arena_alloc(arena, cols, sizeof *values);
    for (uint32_t i = 0; values && i < cols; i++) values[i] = 1;
    return (struct tensor_view){.data = values, .type = TENSOR_F32, .rows = 1, .cols = cols, .name = name};
}

static bool make_layer(struct arena *arena, const struct model_spec *s, uint32_t l, struct layer_weights *layer)
{
    uint32_t E = s->width, D = s->head_size, F = s->ff_width;
    uint64_t seed = (uint64_t)l * MATRICES + 3;
    *layer = (struct layer_weights){.attn_norm = ones(arena, "attn_norm", E),
                                    .q = matrix(arena, "q", s->heads * D, E, seed),
                                    .k = matrix(arena, "k", s->kv_heads * D, E, seed + 1),
                                    .v = matrix(arena, "v", s->kv_heads * D, E, seed + 2),
                                    .o = matrix(arena, "o", E, s->heads * D, seed + 3),
                                    .ffn_norm = ones(arena, "ffn_norm", E),
                                    .gate = matrix(arena, "gate", F, E, seed + 4),
                                    .up = matrix(arena, "up", F, E, seed + 5),
                                    .down = matrix(arena, "down", E, F, seed + 6)};
    return layer->attn_norm.data && layer->q.data && layer->k.data && layer->v.data && layer->o.data &&
           layer->ffn_norm.data && layer->gate.data && layer->up.data && layer->down.data;
}

enum status random_model_create(const struct random_shape *shape, struct model **model)
{
    struct model *m = mem_alloc(1, sizeof *m);
    if (!m) return ST_NOMEM;
    arena_init(&m->arena, 0);
    m->spec = (struct model_spec){.layers = shape->layers,
                                  .width = shape->width,
                                  .heads = shape->heads,
                                  .kv_heads = shape->kv_heads,
                                  .head_size = shape->head_size,
                                  .ff_width = shape->ff_width,
                                  .vocab = shape->vocab,
                                  .context_max = shape->context_max,
                                  .norm_eps = 1e-5f,
                                  .rope = ROPE_HALVES,
                                  .rope_size = shape->head_size,
                                  .rope_main = {500000.0f, 1, 1},
                                  .attention_scale = 1 / sqrtf((float)shape->head_size),
                                  .embedding_scale = 1,
                                  .residual_scale = 1,
                                  .logit_scale = 1};
    snprintf(m->spec.arch, sizeof m->spec.arch, "llama");
    snprintf(m->spec.name, sizeof m->spec.name, "%s", shape->name);
    struct model_weights *w = &m->weights;
    w->embed = matrix(&m->arena, "embed", shape->vocab, shape->width, 1);
    w->head = matrix(&m->arena, "head", shape->vocab, shape->width, 2);
    w->final_norm = ones(&m->arena, "final_norm", shape->width);
    w->layers = arena_alloc(&m->arena, shape->layers, sizeof *w->layers);
    bool good = w->embed.data && w->head.data && w->final_norm.data && w->layers;
    for (uint32_t l = 0; good && l < shape->layers; l++) good = make_layer(&m->arena, &m->spec, l, &w->layers[l]);
    if (!good) {
        random_model_destroy(m);
        return ST_NOMEM;
    }
    *model = m;
    return ST_OK;
}

void random_model_destroy(struct model *model)
{
    if (!model) return;
    arena_free(&model->arena);
    mem_free(model);
}
