/* See model_stage.h. A stage is made of a rank's part by leaving out what others have. */
#include "runtime/model/model_stage.h"

#include "runtime/base/check.h"

#include <inttypes.h>
#include <string.h>

static uint64_t matrix_bytes(const struct tensor_view *view)
{
    return view->data ? (uint64_t)view->rows * tensor_row_bytes(tensor_type_info(view->type), view->cols) : 0;
}

static uint64_t layer_bytes(const struct model *whole, uint32_t l)
{
    const struct layer_weights *w = &whole->weights.layers[l];
    const struct tensor_view *matrices[] = {&w->q, &w->k, &w->v, &w->o, &w->gate, &w->up, &w->down, &w->router};
    uint64_t sum = 0;
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) sum += matrix_bytes(matrices[i]);
    for (uint32_t x = 0; w->experts && x < whole->spec.experts; x++)
        sum += matrix_bytes(&w->experts[x].gate) + matrix_bytes(&w->experts[x].up) + matrix_bytes(&w->experts[x].down);
    return sum;
}

/* Each stage takes layers as long as that brings it nearer to the mean of what is left. */
void model_stage_layers(const struct model *whole, uint32_t stage, uint32_t stages, uint32_t *begin, uint32_t *end)
{
    const struct model_weights *weights = &whole->weights;
    uint32_t layers = whole->spec.layers, first = 0, next = 0;
    CHECK(stage < stages && stages <= layers);
    uint64_t own = matrix_bytes(&weights->embed) + (whole->spec.tied_head ? 0 : matrix_bytes(&weights->head));
    uint64_t left = own;
    for (uint32_t l = 0; l < layers; l++) left += layer_bytes(whole, l);
    for (uint32_t s = 0; s <= stage; s++, own = 0) {
        uint32_t stages_left = stages - s, most = layers - (stages_left - 1); /* a layer for each that follows */
        first = next;
        do {
            own += layer_bytes(whole, next++);
        } while (next < most && (stages_left == 1 || (own + layer_bytes(whole, next) / 2) * stages_left <= left));
        left -= own;
    }
    *begin = first;
    *end = next;
}

static void keep_layers(struct model *part, uint32_t begin, uint32_t end)
{
    struct model_spec *s = &part->spec;
    uint8_t flags = 0;
    s->layers = end - begin;
    memmove(s->layer_flags, s->layer_flags + begin, s->layers);
    memset(s->layer_flags + s->layers, 0, sizeof s->layer_flags - s->layers);
    for (uint32_t l = 0; l < s->layers; l++) flags |= s->layer_flags[l];
    if (!(flags & LAYER_WINDOWED)) {
        s->window = 0;
        s->has_window_rope = false;
    }
    if (!(flags & LAYER_EXPERTS)) {
        s->experts = s->experts_used = s->expert_width = 0;
        part->part.experts_begin = part->part.experts_end = part->part.expert_ff_begin = 0;
    }
    part->weights.layers += begin; /* the arena keeps them all: a view is small */
}

enum status model_divide(const struct model *whole, struct model_place place, struct model **part, struct error *err)
{
    CHECK(place.stages == 0 || place.stage < place.stages);
    if (place.stages == 0 || place.stages > whole->spec.layers)
        return error_set(err, ST_INVAL,
                         "the model (%s) does not divide into %" PRIu32 " stages: it has %" PRIu32 " layers, 1-%" PRIu32
                         " do",
                         whole->spec.arch, place.stages, whole->spec.layers, whole->spec.layers);
    if (place.ranks * (uint64_t)place.stages > MODEL_RANKS_MAX)
        return error_set(err, ST_INVAL, "%" PRIu32 " stages of %" PRIu32 " ranks: at most %d ranks in all",
                         place.stages, place.ranks, MODEL_RANKS_MAX);
    TRY(model_shard(whole, place.rank, place.ranks, part, err));
    struct model_part *at = &(*part)->part;
    at->stage = place.stage;
    at->stages = place.stages;
    if (place.stages == 1) return ST_OK;
    uint32_t end;
    model_stage_layers(whole, place.stage, place.stages, &at->layers_begin, &end);
    keep_layers(*part, at->layers_begin, end);
    if (place.stage == 0) return ST_OK;
    struct model_weights *weights = &(*part)->weights;
    weights->embed = weights->head = weights->final_norm = (struct tensor_view){0};
    return ST_OK;
}
