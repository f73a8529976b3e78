/* Stages of a model: together they have its layers once and in order, each describes its own, and their bytes are as
 * even as whole layers allow; with ranks, each is that stage of the rank's part. */
#include "tests/unit/unit.h"

#include "runtime/model/model_stage.h"
#include "tests/unit/runtime/tiny_model.h"

enum { L = TINY_LAYERS_MAX };

static struct model_spec spec_of(uint32_t vocab)
{
    return (struct model_spec){.arch = "tiny",
                               .layers = L,
                               .width = 64,
                               .heads = 6,
                               .kv_heads = 2,
                               .head_size = 16,
                               .ff_width = 224,
                               .vocab = vocab,
                               .rope_size = 16,
                               .window = 21,
                               .has_window_rope = true,
                               .experts = 4,
                               .experts_used = 2,
                               .expert_width = 64,
                               .layer_flags = {0, LAYER_WINDOWED, LAYER_EXPERTS, LAYER_WINDOWED | LAYER_EXPERTS, 0}};
}

static void check_spec(const struct model *whole, const struct model *part)
{
    const struct model_spec *w = &whole->spec, *p = &part->spec;
    uint8_t flags = 0;
    for (uint32_t l = 0; l < p->layers; l++) {
        assert_int_equal(p->layer_flags[l], w->layer_flags[part->part.layers_begin + l]);
        flags |= p->layer_flags[l];
    }
    for (uint32_t l = p->layers; l < MODEL_LAYERS_MAX; l++) assert_int_equal(p->layer_flags[l], 0);
    assert_int_equal(p->window, flags & LAYER_WINDOWED ? w->window : 0);
    assert_int_equal(p->has_window_rope, (flags & LAYER_WINDOWED) != 0);
    assert_int_equal(p->experts, flags & LAYER_EXPERTS ? w->experts : 0);
    assert_int_equal(p->experts_used, flags & LAYER_EXPERTS ? w->experts_used : 0);
    assert_int_equal(!p->expert_width, !(flags & LAYER_EXPERTS));
    assert_int_equal(part->part.experts_end > 0, (flags & LAYER_EXPERTS) != 0);
}

static void check_same(const struct tensor_view *a, const struct tensor_view *b)
{
    assert_ptr_equal(a->data, b->data);
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->rows, b->rows);
    assert_int_equal(a->cols, b->cols);
}

/* The stages of a rank against its part of all layers. */
static void check_stages(const struct model *whole, uint32_t rank, uint32_t ranks, uint32_t stages)
{
    struct model *all = NULL;
    uint32_t next = 0;
    assert_int_equal(model_shard(whole, rank, ranks, &all, NULL), ST_OK);
    for (uint32_t stage = 0; stage < stages; stage++) {
        struct model *part = NULL;
        struct error err = {""};
        uint32_t begin, end;
        struct model_place place = {rank, ranks, stage, stages};
        if (model_divide(whole, place, &part, &err) != ST_OK) fail_msg("%s", err.message);
        model_stage_layers(whole, stage, stages, &begin, &end);
        assert_int_equal(begin, next);
        assert_true(end > begin);
        next = end;
        assert_int_equal(part->part.layers_begin, begin);
        assert_int_equal(part->spec.layers, end - begin);
        assert_int_equal(part->part.stage, stage);
        assert_int_equal(part->part.stages, stages);
        assert_int_equal(part->part.rank, rank);
        assert_int_equal(part->part.ranks, ranks);
        assert_ptr_equal(part->part.whole, whole);
        check_spec(whole, part);
        bool has_head = stage == 0;
        assert_int_equal(part->weights.embed.data != NULL, has_head);
        assert_int_equal(part->weights.head.data != NULL, has_head);
        assert_int_equal(part->weights.final_norm.data != NULL, has_head);
        assert_int_equal(part->weights.rope_factors.data != NULL, true);
        if (has_head) check_same(&part->weights.embed, &all->weights.embed);
        if (has_head) check_same(&part->weights.head, &all->weights.head);
        for (uint32_t l = begin; l < end; l++) {
            const struct layer_weights *a = &part->weights.layers[l - begin], *b = &all->weights.layers[l];
            check_same(&a->attn_norm, &b->attn_norm);
            check_same(&a->q, &b->q);
            check_same(&a->o, &b->o);
            check_same(&a->down, &b->down);
            assert_int_equal(!a->experts, !b->experts);
            for (uint32_t x = 0; a->experts && x < whole->spec.experts; x++)
                check_same(&a->experts[x].down, &b->experts[x].down);
        }
        model_close(part);
    }
    assert_int_equal(next, whole->spec.layers);
    model_close(all);
}

static void test_model_stage_parts(void **state)
{
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        static struct tiny_model tiny;
        struct model_spec spec = spec_of(597);
        spec.tied_head = tied;
        tiny_make_layers(&tiny, &spec, L, TENSOR_Q8_0, false, true);
        for (uint32_t stages = 1; stages <= L; stages++)
            for (uint32_t ranks = 1; ranks <= 3; ranks++)
                for (uint32_t rank = 0; rank < ranks; rank++) check_stages(&tiny.model, rank, ranks, stages);
        tiny_free(&tiny);
    }
}

static void expect_layers(const struct model *whole, uint32_t stages, const uint32_t *counts)
{
    for (uint32_t stage = 0; stage < stages; stage++) {
        uint32_t begin, end;
        model_stage_layers(whole, stage, stages, &begin, &end);
        if (end - begin != counts[stage])
            fail_msg("stage %u of %u has %u layers, not %u", stage, stages, end - begin, counts[stage]);
    }
}

/* A layer's seven matrices of Q8_0 make 63,104 bytes, a row of the vocabulary 68. */
static void test_model_stage_balance(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    struct model_spec spec = spec_of(16);
    memset(spec.layer_flags, 0, sizeof spec.layer_flags);
    spec.tied_head = true;
    tiny_make_layers(&tiny, &spec, L, TENSOR_Q8_0, false, true);
    expect_layers(&tiny.model, 1, (const uint32_t[]){5});
    expect_layers(&tiny.model, 2, (const uint32_t[]){2, 3}); /* a small embedding decides between 2 and 3 */
    expect_layers(&tiny.model, 4, (const uint32_t[]){1, 1, 2, 1});
    expect_layers(&tiny.model, 5, (const uint32_t[]){1, 1, 1, 1, 1});
    tiny_free(&tiny);
    spec.vocab = 960; /* a few bytes more than a layer */
    tiny_make_layers(&tiny, &spec, L, TENSOR_Q8_0, false, true);
    expect_layers(&tiny.model, 2, (const uint32_t[]){2, 3});
    expect_layers(&tiny.model, 3, (const uint32_t[]){1, 2, 2});
    tiny_free(&tiny);
    spec.tied_head = false; /* and twice as many */
    tiny_make_layers(&tiny, &spec, L, TENSOR_Q8_0, false, true);
    expect_layers(&tiny.model, 2, (const uint32_t[]){1, 4});
    tiny_free(&tiny);
    spec.vocab = 50000; /* more than all the layers: each stage still has one */
    tiny_make_layers(&tiny, &spec, L, TENSOR_Q8_0, false, true);
    expect_layers(&tiny.model, 2, (const uint32_t[]){1, 4});
    expect_layers(&tiny.model, 3, (const uint32_t[]){1, 2, 2});
    expect_layers(&tiny.model, 5, (const uint32_t[]){1, 1, 1, 1, 1});
    tiny_free(&tiny);
}

static void test_model_stage_refuses(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    struct model_spec spec = spec_of(597);
    tiny_make_layers(&tiny, &spec, L, TENSOR_Q8_0, false, true);
    static const struct {
        uint32_t ranks, stages;
        const char *words;
    } refused[] = {
        {1, 6, "1-5 do"}, {1, 0, "0 stages"}, {7, 2, "1-4 do"}, {33, 2, "at most 64"}, {1u << 31, 2, "at most"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct model *part = NULL;
        struct error err = {""};
        struct model_place place = {0, refused[i].ranks, 0, refused[i].stages};
        assert_int_equal(model_divide(&tiny.model, place, &part, &err), ST_INVAL);
        assert_null(part);
        if (!strstr(err.message, refused[i].words)) fail_msg("no \"%s\": %s", refused[i].words, err.message);
    }
    tiny_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_stage_parts),
        cmocka_unit_test(test_model_stage_balance),
        cmocka_unit_test(test_model_stage_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
