/* See model_shard.h. A cut is planned from the spec and the types of the matrices; then every view is cut by it. */
#include "runtime/model/model_shard.h"

#include "kernels/dequantize.h"
#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/model/quant.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    SHARE_UNIT = 32,        /* inputs of feed-forwards are cut at its multiples: blocks of activations */
    EXPERT_SHARE_MIN = 128, /* below it whole experts do better: rows of matrices get too short */
    HEAD_UNIT = 8,          /* struct tensor_area */
};

struct span {
    uint32_t begin, end;
};

struct cut {
    struct span heads, kv_heads, ff, expert_ff, experts, vocab;
    uint32_t vocab_stride;
};

static struct span share(uint32_t count, uint32_t rank, uint32_t ranks)
{
    return (struct span){(uint32_t)((uint64_t)count * rank / ranks), (uint32_t)((uint64_t)count * (rank + 1) / ranks)};
}

static uint32_t ceil_div(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

static uint32_t block_of(const struct tensor_view *view)
{
    return tensor_type_info(view->type)->block_items;
}

static enum status cut_heads(const struct model_spec *s, uint32_t rank, uint32_t ranks, struct cut *cut,
                             struct error *err)
{
    uint32_t KH = s->kv_heads, G = s->heads / KH;
    if (s->head_size % HEAD_UNIT)
        return error_set(err, ST_INVAL, "heads of %" PRIu32 " values are no multiple of %d", s->head_size, HEAD_UNIT);
    if (KH >= ranks) {
        cut->kv_heads = share(KH, rank, ranks);
        cut->heads = (struct span){cut->kv_heads.begin * G, cut->kv_heads.end * G};
        return ST_OK;
    }
    if (ceil_div(ranks, KH) > G)
        return error_set(err, ST_INVAL, "%" PRIu32 " query heads, %" PRIu32 " of each of %" PRIu32 " KV heads",
                         s->heads, G, KH);
    uint32_t kv = (uint32_t)((uint64_t)rank * KH / ranks); /* shared by ranks [first, end) */
    uint32_t first = ceil_div(kv * ranks, KH), end = ceil_div((kv + 1) * ranks, KH);
    struct span own = share(G, rank - first, end - first);
    cut->kv_heads = (struct span){kv, kv + 1};
    cut->heads = (struct span){kv * G + own.begin, kv * G + own.end};
    return ST_OK;
}

/* The largest block among the down matrices of dense layers, or of experts: powers of two, so that all divide it. 0:
 * there are none. */
static uint32_t down_block(const struct model *whole, bool experts)
{
    uint32_t most = 0;
    for (uint32_t l = 0; l < whole->spec.layers; l++) {
        const struct layer_weights *layer = &whole->weights.layers[l];
        bool has_experts = whole->spec.layer_flags[l] & LAYER_EXPERTS;
        if (has_experts != experts) continue;
        for (uint32_t x = 0; x < (experts ? whole->spec.experts : 1); x++) {
            uint32_t block = block_of(experts ? &layer->experts[x].down : &layer->down);
            if (block > most) most = block;
        }
    }
    return most;
}

static struct span share_of_units(uint32_t count, uint32_t unit, uint32_t rank, uint32_t ranks)
{
    struct span span = share(ceil_div(count, unit), rank, ranks);
    uint32_t end = span.end * unit;
    return (struct span){span.begin * unit, end < count ? end : count};
}

static uint32_t unit_of(uint32_t block)
{
    return block > SHARE_UNIT ? block : SHARE_UNIT;
}

static enum status cut_ff(const struct model *whole, uint32_t rank, uint32_t ranks, struct cut *cut, struct error *err)
{
    const struct model_spec *s = &whole->spec;
    uint32_t block = down_block(whole, false), expert_block = down_block(whole, true);
    cut->ff = (struct span){0, s->ff_width};
    cut->expert_ff = (struct span){0, s->expert_width};
    cut->experts = (struct span){0, s->experts};
    if (block) {
        uint32_t units = ceil_div(s->ff_width, unit_of(block));
        if (units < ranks)
            return error_set(err, ST_INVAL, "a feed-forward width of %" PRIu32 " is %" PRIu32 " blocks of %" PRIu32,
                             s->ff_width, units, unit_of(block));
        cut->ff = share_of_units(s->ff_width, unit_of(block), rank, ranks);
    }
    if (expert_block) {
        uint32_t units = ceil_div(s->expert_width, unit_of(expert_block));
        bool wide = units >= ranks && s->expert_width / ranks >= EXPERT_SHARE_MIN;
        if (!wide && s->experts >= ranks)
            cut->experts = share(s->experts, rank, ranks);
        else if (units >= ranks)
            cut->expert_ff = share_of_units(s->expert_width, unit_of(expert_block), rank, ranks);
        else
            return error_set(err, ST_INVAL,
                             "%" PRIu32 " experts, whose width of %" PRIu32 " is %" PRIu32 " blocks of %" PRIu32,
                             s->experts, s->expert_width, units, unit_of(expert_block));
    }
    return ST_OK;
}

static enum status cut_vocab(const struct model_spec *s, uint32_t rank, uint32_t ranks, struct cut *cut,
                             struct error *err)
{
    static const uint32_t units[] = {64, 16};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        uint32_t stride = ceil_div(ceil_div(s->vocab, ranks), units[i]) * units[i];
        if ((uint64_t)(ranks - 1) * stride >= s->vocab) continue;
        uint32_t begin = rank * stride, left = s->vocab - begin;
        cut->vocab = (struct span){begin, begin + (left < stride ? left : stride)};
        cut->vocab_stride = stride;
        return ST_OK;
    }
    return error_set(err, ST_INVAL, "a vocabulary of %" PRIu32, s->vocab);
}

static enum status plan(const struct model *whole, uint32_t rank, uint32_t ranks, struct cut *cut, struct error *err)
{
    *cut = (struct cut){0};
    TRY(cut_heads(&whole->spec, rank, ranks, cut, err));
    TRY(cut_ff(whole, rank, ranks, cut, err));
    return cut_vocab(&whole->spec, rank, ranks, cut, err);
}

bool model_shard_fits(const struct model *whole, uint32_t ranks)
{
    struct cut cut;
    return ranks >= 1 && ranks <= MODEL_RANKS_MAX && plan(whole, 0, ranks, &cut, NULL) == ST_OK;
}

/* "1-6, 9" */
static void list_counts(const struct model *whole, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (uint32_t n = 1, end; n <= MODEL_RANKS_MAX; n = end + 1) {
        end = n;
        if (!model_shard_fits(whole, n)) continue;
        while (model_shard_fits(whole, end + 1)) end++;
        int length = snprintf(text + used, size - used, end > n ? "%s%" PRIu32 "-%" PRIu32 : "%s%" PRIu32,
                              used ? ", " : "", n, end);
        if (length < 0 || (size_t)length >= size - used) break;
        used += (size_t)length;
    }
}

/* --- views --- */

struct part_of { /* columns from col_begin on of another view */
    struct tensor_recipe recipe;
    struct tensor_view from;
    uint32_t col_begin;
};

static void make_part(const struct tensor_recipe *recipe, struct tensor_area area, void *rows)
{
    const struct part_of *part = (const struct part_of *)(const void *)recipe;
    area.col_begin += part->col_begin;
    area.col_end += part->col_begin;
    tensor_area_copy(&part->from, area, rows);
}

/* As F32, since the part begins or ends inside a block: block by block, of which some lie only partly in the area. */
static void make_f32_part(const struct tensor_recipe *recipe, struct tensor_area area, void *rows)
{
    enum { BLOCK_ITEMS = 256, BLOCK_BYTES = 256 };
    const struct part_of *part = (const struct part_of *)(const void *)recipe;
    const struct tensor_type_info *info = tensor_type_info(part->from.type);
    uint8_t block[BLOCK_BYTES];
    float values[BLOCK_ITEMS], *to = rows;
    CHECK(info->block_items <= BLOCK_ITEMS && info->block_bytes <= BLOCK_BYTES);
    uint32_t begin = area.col_begin + part->col_begin, end = area.col_end + part->col_begin;
    for (uint32_t row = area.row_begin; row < area.row_end; row++) {
        for (uint32_t col = begin; col < end;) {
            uint32_t first = col / info->block_items * info->block_items, next = first + info->block_items;
            uint32_t count = (next < end ? next : end) - col;
            tensor_area_copy(&part->from, (struct tensor_area){row, row + 1, first, next}, block);
            dequantize_row(part->from.type, block, values, info->block_items);
            memcpy(to, values + (col - first), count * sizeof *to);
            to += count;
            col += count;
        }
    }
}

static enum status cut_cols(struct arena *arena, const struct tensor_view *view, struct span cols,
                            struct tensor_view *cut)
{
    if (cols.begin == 0 && cols.end == view->cols) {
        *cut = *view;
        return ST_OK;
    }
    bool whole_blocks = cols.begin % block_of(view) == 0 && cols.end % block_of(view) == 0;
    struct part_of *part = arena_alloc(arena, 1, sizeof *part);
    if (!part) return ST_NOMEM;
    *part = (struct part_of){{whole_blocks ? make_part : make_f32_part}, *view, cols.begin};
    *cut = *view;
    cut->cols = cols.end - cols.begin;
    cut->recipe = &part->recipe;
    if (!whole_blocks) cut->type = TENSOR_F32;
    return ST_OK;
}

static enum status cut_rows(struct arena *arena, const struct tensor_view *view, struct span rows,
                            struct tensor_view *cut)
{
    return quant_cut_rows(view, rows.begin, rows.end - rows.begin, arena, cut);
}

static void cut_vector(struct tensor_view *view, struct span span)
{
    if (!view->data) return;
    view->data = (const float *)view->data + span.begin;
    view->cols = span.end - span.begin;
}

static enum status cut_gated(struct arena *arena, struct span ff, struct tensor_view *gate, struct tensor_view *up,
                             struct tensor_view *down)
{
    TRY(cut_rows(arena, gate, ff, gate));
    TRY(cut_rows(arena, up, ff, up));
    return cut_cols(arena, down, ff, down);
}

static struct span times(struct span span, uint32_t factor)
{
    return (struct span){span.begin * factor, span.end * factor};
}

static enum status cut_layer(const struct model_spec *whole, bool has_experts, const struct cut *cut,
                             struct arena *arena, const struct layer_weights *from, struct layer_weights *layer)
{
    struct span q = times(cut->heads, whole->head_size), kv = times(cut->kv_heads, whole->head_size);
    *layer = *from;
    TRY(cut_rows(arena, &from->q, q, &layer->q));
    TRY(cut_rows(arena, &from->k, kv, &layer->k));
    TRY(cut_rows(arena, &from->v, kv, &layer->v));
    TRY(cut_cols(arena, &from->o, q, &layer->o));
    cut_vector(&layer->q_bias, q);
    cut_vector(&layer->k_bias, kv);
    cut_vector(&layer->v_bias, kv);
    if (!has_experts) return cut_gated(arena, cut->ff, &layer->gate, &layer->up, &layer->down);
    layer->experts = arena_alloc(arena, whole->experts, sizeof *layer->experts);
    if (!layer->experts) return ST_NOMEM;
    for (uint32_t x = cut->experts.begin; x < cut->experts.end; x++) {
        struct expert_weights *expert = &layer->experts[x];
        *expert = from->experts[x];
        TRY(cut_gated(arena, cut->expert_ff, &expert->gate, &expert->up, &expert->down));
    }
    return ST_OK;
}

static enum status cut_weights(const struct model *whole, const struct cut *cut, struct model *part)
{
    struct model_weights *weights = &part->weights;
    *weights = whole->weights;
    weights->layers = arena_alloc(&part->arena, whole->spec.layers, sizeof *weights->layers);
    if (!weights->layers) return ST_NOMEM;
    TRY(cut_rows(&part->arena, &whole->weights.embed, cut->vocab, &weights->embed));
    weights->head = weights->embed;
    if (!whole->spec.tied_head) TRY(cut_rows(&part->arena, &whole->weights.head, cut->vocab, &weights->head));
    for (uint32_t l = 0; l < whole->spec.layers; l++)
        TRY(cut_layer(&whole->spec, whole->spec.layer_flags[l] & LAYER_EXPERTS, cut, &part->arena,
                      &whole->weights.layers[l], &weights->layers[l]));
    return ST_OK;
}

static void describe(const struct model *whole, uint32_t rank, uint32_t ranks, const struct cut *cut,
                     struct model *part)
{
    part->spec = whole->spec;
    part->spec.heads = cut->heads.end - cut->heads.begin;
    part->spec.kv_heads = cut->kv_heads.end - cut->kv_heads.begin;
    part->spec.ff_width = cut->ff.end - cut->ff.begin;
    part->spec.expert_width = cut->expert_ff.end - cut->expert_ff.begin;
    part->spec.vocab = cut->vocab.end - cut->vocab.begin;
    part->defaults = whole->defaults;
    part->file_bytes = whole->file_bytes;
    part->part = (struct model_part){.whole = whole,
                                     .rank = rank,
                                     .ranks = ranks,
                                     .heads_begin = cut->heads.begin,
                                     .kv_heads_begin = cut->kv_heads.begin,
                                     .ff_begin = cut->ff.begin,
                                     .expert_ff_begin = cut->expert_ff.begin,
                                     .experts_begin = cut->experts.begin,
                                     .experts_end = cut->experts.end,
                                     .vocab_begin = cut->vocab.begin,
                                     .vocab_stride = cut->vocab_stride,
                                     .vocab = whole->spec.vocab};
}

enum status model_shard(const struct model *whole, uint32_t rank, uint32_t ranks, struct model **out, struct error *err)
{
    struct cut cut;
    struct error why = {""};
    CHECK(ranks == 0 || rank < ranks);
    if (ranks == 0 || ranks > MODEL_RANKS_MAX)
        return error_set(err, ST_INVAL, "%" PRIu32 " ranks: must be 1 to %d", ranks, MODEL_RANKS_MAX);
    if (plan(whole, rank, ranks, &cut, &why) != ST_OK) {
        char counts[160];
        list_counts(whole, counts, sizeof counts);
        return error_set(err, ST_INVAL, "the model (%s) does not divide into %" PRIu32 " parts: it has %s; %s do",
                         whole->spec.arch, ranks, why.message, counts);
    }
    struct model *part = mem_alloc(1, sizeof *part);
    if (!part) return error_set(err, ST_NOMEM, "no memory for a part of the model");
    arena_init(&part->arena, 0);
    describe(whole, rank, ranks, &cut, part);
    if (cut_weights(whole, &cut, part) != ST_OK) {
        model_close(part);
        return error_set(err, ST_NOMEM, "no memory for a part of the model");
    }
    *out = part;
    return ST_OK;
}
