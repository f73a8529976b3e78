/* Parts of models put together again are the whole, byte for byte: every format, 1 to 9 ranks, shares that are even,
 * uneven and inside blocks, experts split and whole; and what is refused. */
#include "tests/unit/unit.h"

#include "runtime/model/model_shard.h"
#include "tests/unit/runtime/tiny_model.h"

enum { RANKS_TRIED = 9 };

static const enum tensor_type types[] = {
#define X(name, id, items, bytes) TENSOR_##name,
    TENSOR_TYPE_MAP(X)
#undef X
};

/* An area of a view as f32 where a part was made F32, else as the file's bytes. */
static uint8_t *bytes_of(const struct tensor_view *view, struct tensor_area area, bool as_f32, size_t *bytes)
{
    const struct tensor_type_info *info = tensor_type_info(view->type);
    uint32_t rows = area.row_end - area.row_begin;
    size_t row_bytes = tensor_row_bytes(info, view->cols), f32_bytes = (area.col_end - area.col_begin) * sizeof(float);
    if (!as_f32) {
        *bytes = rows * tensor_row_bytes(info, area.col_end - area.col_begin);
        uint8_t *out = mem_alloc(*bytes, 1);
        tensor_area_copy(view, area, out);
        return out;
    }
    uint8_t *row = mem_alloc(row_bytes, 1), *out = mem_alloc(rows, f32_bytes);
    float *values = mem_alloc(view->cols, sizeof *values);
    for (uint32_t r = 0; r < rows; r++) {
        tensor_area_copy(view, (struct tensor_area){area.row_begin + r, area.row_begin + r + 1, 0, view->cols}, row);
        dequantize_row(view->type, row, values, view->cols);
        memcpy(out + r * f32_bytes, values + area.col_begin, f32_bytes);
    }
    mem_free(values);
    mem_free(row);
    *bytes = rows * f32_bytes;
    return out;
}

/* The part is the whole's rows from row_begin on and columns from col_begin on; rows are made in two goes. */
static void same(const struct tensor_view *whole, const struct tensor_view *part, uint32_t row_begin,
                 uint32_t col_begin)
{
    bool as_f32 = part->type != whole->type;
    size_t expected_bytes, row_bytes = tensor_row_bytes(tensor_type_info(part->type), part->cols);
    uint8_t *rows = mem_alloc(part->rows, row_bytes);
    uint8_t *expected =
        bytes_of(whole, (struct tensor_area){row_begin, row_begin + part->rows, col_begin, col_begin + part->cols},
                 as_f32, &expected_bytes);
    assert_true(!as_f32 || part->type == TENSOR_F32);
    assert_int_equal(expected_bytes, part->rows * row_bytes);
    for (uint32_t begin = 0, end = part->rows / 3; begin < part->rows; begin = end, end = part->rows) {
        const void *made = tensor_rows(part, begin, end, rows);
        if (memcmp(made, expected + begin * row_bytes, (end - begin) * row_bytes) != 0)
            fail_msg("%s: rows %u to %u of the part differ from the whole's", part->name, begin, end);
    }
    assert_string_equal(whole->name, part->name);
    mem_free(expected);
    mem_free(rows);
}

static void same_vector(const struct tensor_view *whole, const struct tensor_view *part, uint32_t begin, uint32_t count)
{
    assert_int_equal(!whole->data, !part->data);
    if (!whole->data) return;
    assert_int_equal(part->cols, count);
    assert_memory_equal(part->data, (const float *)whole->data + begin, count * sizeof(float));
}

static void same_gated(const struct tensor_view *whole, const struct tensor_view *part, uint32_t begin)
{
    same(&whole[0], &part[0], begin, 0);
    same(&whole[1], &part[1], begin, 0);
    same(&whole[2], &part[2], 0, begin);
}

static void same_layer(const struct model *whole, const struct model *part, uint32_t l)
{
    const struct layer_weights *w = &whole->weights.layers[l], *p = &part->weights.layers[l];
    uint32_t D = whole->spec.head_size, E = whole->spec.width, q = part->part.heads_begin * D,
             kv = part->part.kv_heads_begin * D;
    same(&w->q, &p->q, q, 0);
    same(&w->k, &p->k, kv, 0);
    same(&w->v, &p->v, kv, 0);
    same(&w->o, &p->o, 0, q);
    same_vector(&w->q_bias, &p->q_bias, q, part->spec.heads * D);
    same_vector(&w->k_bias, &p->k_bias, kv, part->spec.kv_heads * D);
    same_vector(&w->v_bias, &p->v_bias, kv, part->spec.kv_heads * D);
    same_vector(&w->q_norm, &p->q_norm, 0, D);
    same_vector(&w->attn_norm, &p->attn_norm, 0, E);
    same_vector(&w->ffn_norm, &p->ffn_norm, 0, E);
    assert_int_equal(p->q.rows, part->spec.heads * D);
    assert_int_equal(p->k.rows, part->spec.kv_heads * D);
    assert_int_equal(p->o.cols, part->spec.heads * D);
    if (!(whole->spec.layer_flags[l] & LAYER_EXPERTS)) {
        assert_int_equal(p->down.cols, part->spec.ff_width);
        same_gated(&w->gate, &p->gate, part->part.ff_begin);
        return;
    }
    same(&w->router, &p->router, 0, 0);
    for (uint32_t x = 0; x < whole->spec.experts; x++) {
        bool own = x >= part->part.experts_begin && x < part->part.experts_end;
        assert_int_equal(own, p->experts[x].gate.data != NULL);
        assert_int_equal(own, p->experts[x].down.data != NULL);
        if (own) assert_int_equal(p->experts[x].down.cols, part->spec.expert_width);
        if (own) same_gated(&w->experts[x].gate, &p->experts[x].gate, part->part.expert_ff_begin);
    }
}

/* How often each thing of the whole is in a part. */
struct coverage {
    uint32_t heads[64], ff[4096], vocab[4096], experts[TINY_EXPERTS_MAX], expert_ff[4096], kv_heads[64];
};

static void cover(uint32_t *counts, uint32_t begin, uint32_t count)
{
    for (uint32_t i = begin; i < begin + count; i++) counts[i]++;
}

static void check_once(const uint32_t *counts, uint32_t count, uint32_t times, const char *what)
{
    for (uint32_t i = 0; i < count; i++)
        if (counts[i] != times) fail_msg("%s %u is in %u parts, not in %u", what, i, counts[i], times);
}

static void check_parts(const struct model *whole, uint32_t ranks)
{
    struct coverage *seen = mem_alloc(1, sizeof *seen);
    const struct model_spec *s = &whole->spec;
    bool whole_experts = false;
    for (uint32_t rank = 0; rank < ranks; rank++) {
        struct model *part = NULL;
        struct error err = {""};
        if (model_shard(whole, rank, ranks, &part, &err) != ST_OK) fail_msg("%u of %u: %s", rank, ranks, err.message);
        const struct model_part *at = &part->part;
        assert_true(part->spec.heads >= 1 && part->spec.heads % part->spec.kv_heads == 0);
        assert_int_equal(at->rank, rank);
        assert_int_equal(at->ranks, ranks);
        assert_int_equal(at->vocab, s->vocab);
        assert_int_equal(at->vocab_begin, rank * at->vocab_stride);
        assert_true(at->vocab_stride % 16 == 0 && part->spec.vocab >= 1 && part->spec.vocab <= at->vocab_stride);
        /* the query heads are those of the part's KV heads */
        uint32_t G = s->heads / s->kv_heads;
        assert_int_equal(at->heads_begin / G, at->kv_heads_begin);
        assert_int_equal((at->heads_begin + part->spec.heads - 1) / G, at->kv_heads_begin + part->spec.kv_heads - 1);
        cover(seen->heads, at->heads_begin, part->spec.heads);
        cover(seen->kv_heads, at->kv_heads_begin, part->spec.kv_heads);
        cover(seen->ff, at->ff_begin, part->spec.ff_width);
        cover(seen->vocab, at->vocab_begin, part->spec.vocab);
        cover(seen->experts, at->experts_begin, at->experts_end - at->experts_begin);
        cover(seen->expert_ff, at->expert_ff_begin, part->spec.expert_width);
        if (part->spec.expert_width == s->expert_width && s->experts) whole_experts = true;
        same(&whole->weights.embed, &part->weights.embed, at->vocab_begin, 0);
        same(&whole->weights.head, &part->weights.head, at->vocab_begin, 0);
        same_vector(&whole->weights.final_norm, &part->weights.final_norm, 0, s->width);
        for (uint32_t l = 0; l < s->layers; l++) same_layer(whole, part, l);
        model_close(part);
    }
    bool dense = false;
    for (uint32_t l = 0; l < s->layers; l++) dense |= !(s->layer_flags[l] & LAYER_EXPERTS);
    check_once(seen->heads, s->heads, 1, "head");
    if (s->kv_heads >= ranks) check_once(seen->kv_heads, s->kv_heads, 1, "KV head");
    check_once(seen->ff, s->ff_width, dense ? 1 : ranks, "input of the feed-forward");
    check_once(seen->vocab, s->vocab, 1, "row of the vocabulary");
    check_once(seen->experts, s->experts, whole_experts ? 1 : ranks, "expert");
    if (s->experts) check_once(seen->expert_ff, s->expert_width, whole_experts ? ranks : 1, "input of an expert");
    mem_free(seen);
}

static struct model_spec spec_of(uint32_t heads, uint32_t kv_heads, uint32_t head_size, uint32_t ff, uint32_t vocab)
{
    return (struct model_spec){.arch = "tiny",
                               .layers = TINY_LAYERS,
                               .width = 256,
                               .heads = heads,
                               .kv_heads = kv_heads,
                               .head_size = head_size,
                               .ff_width = ff,
                               .vocab = vocab,
                               .rope_size = head_size,
                               .has_qkv_bias = true,
                               .has_qk_norm = true};
}

static void test_model_shard_formats(void **state)
{
    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        uint32_t block = tensor_type_info(types[t])->block_items;
        /* O's 12 heads of 64 are whole blocks of 256 and of 128; parts of 3, 4, 6, 8 ranks are not */
        struct model_spec spec = spec_of(12, 4, 64, 9 * (block > 32 ? block : 32), 1000);
        struct tiny_model tiny;
        spec.tied_head = t % 2;
        tiny_make(&tiny, &spec, types[t], false, false);
        for (uint32_t ranks = 1; ranks <= RANKS_TRIED; ranks++) check_parts(&tiny.model, ranks);
        tiny_free(&tiny);
    }
}

/* SmolLM2's heads, over the types of its file, with more ranks than KV heads. */
static void test_model_shard_uneven(void **state)
{
    (void)state;
    struct model_spec spec = spec_of(9, 3, 64, 1536, 997);
    struct tiny_model tiny;
    tiny_make(&tiny, &spec, TENSOR_Q4_1, true, false);
    static const uint32_t heads[4][9] = {
        {9}, {3, 6}, {3, 3, 3}, {1, 2, 3, 3}}; /* ranks 0 and 1 of four share a KV head */
    for (uint32_t ranks = 1; ranks <= 9; ranks++) check_parts(&tiny.model, ranks);
    for (uint32_t ranks = 1; ranks <= 4; ranks++)
        for (uint32_t rank = 0; rank < ranks; rank++) {
            struct model *part = NULL;
            assert_int_equal(model_shard(&tiny.model, rank, ranks, &part, NULL), ST_OK);
            assert_int_equal(part->spec.heads, heads[ranks - 1][rank]);
            model_close(part);
        }
    tiny_free(&tiny);
}

/* Inside a block O becomes F32, and only there. */
static void test_model_shard_inside_blocks(void **state)
{
    (void)state;
    struct model_spec spec = spec_of(8, 8, 64, 2048, 512);
    struct tiny_model tiny;
    tiny_make(&tiny, &spec, TENSOR_Q4_K, false, false);
    for (uint32_t ranks = 1; ranks <= 8; ranks *= 2) {
        struct model *part = NULL;
        assert_int_equal(model_shard(&tiny.model, ranks - 1, ranks, &part, NULL), ST_OK);
        assert_int_equal(part->weights.layers[0].o.type, ranks <= 2 ? TENSOR_Q4_K : TENSOR_F32);
        assert_int_equal(part->weights.layers[0].down.type, TENSOR_Q4_K);
        model_close(part);
    }
    tiny_free(&tiny);
}

static void test_model_shard_experts(void **state)
{
    (void)state;
    static const uint32_t widths[] = {1024, 512, 64};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        for (int mixed = 0; mixed < 2; mixed++) {
            struct model_spec spec = spec_of(8, 4, 32, 512, 600);
            struct tiny_model tiny;
            spec.experts = 8;
            spec.experts_used = 2;
            spec.expert_width = widths[i];
            spec.layer_flags[0] = mixed ? 0 : LAYER_EXPERTS;
            spec.layer_flags[1] = LAYER_EXPERTS;
            tiny_make(&tiny, &spec, TENSOR_Q8_0, true, false);
            for (uint32_t ranks = 1; ranks <= 8; ranks++) {
                struct model *part = NULL;
                check_parts(&tiny.model, ranks);
                assert_int_equal(model_shard(&tiny.model, 0, ranks, &part, NULL), ST_OK);
                bool split = widths[i] / ranks >= 128;
                assert_int_equal(part->part.experts_end, split ? 8 : 8 / ranks);
                model_close(part);
            }
            tiny_free(&tiny);
        }
}

static void expect_refusal(const struct model_spec *spec, enum tensor_type type, uint32_t ranks, const char *why,
                           const char *counts)
{
    struct tiny_model tiny;
    struct model *part = NULL;
    struct error err = {""};
    tiny_make(&tiny, spec, type, false, false);
    assert_int_equal(model_shard(&tiny.model, 0, ranks, &part, &err), ST_INVAL);
    assert_null(part);
    if (!strstr(err.message, why) || !strstr(err.message, counts))
        fail_msg("expected \"%s\" and \"%s\": %s", why, counts, err.message);
    assert_false(model_shard_fits(&tiny.model, ranks));
    tiny_free(&tiny);
}

static void test_model_shard_refuses(void **state)
{
    (void)state;
    struct model_spec spec = spec_of(9, 3, 64, 1536, 4000);
    expect_refusal(&spec, TENSOR_Q4_1, 10, "9 query heads, 3 of each of 3 KV heads", "10 parts");
    expect_refusal(&spec, TENSOR_Q4_1, 10, "", "; 1-9 do");
    expect_refusal(&spec, TENSOR_Q4_1, 0, "0 ranks", "1 to 64");
    expect_refusal(&spec, TENSOR_Q4_1, 65, "65 ranks", "1 to 64");
    spec = spec_of(32, 8, 32, 768, 4000);
    expect_refusal(&spec, TENSOR_Q6_K, 4, "width of 768 is 3 blocks of 256", "; 1-3 do");
    spec = spec_of(32, 8, 32, 1536, 100);
    expect_refusal(&spec, TENSOR_Q4_1, 8, "a vocabulary of 100", "; 1-4, 7 do");
    spec = spec_of(4, 4, 20, 1536, 1000);
    expect_refusal(&spec, TENSOR_F32, 2, "heads of 20 values", "8");
    spec = spec_of(32, 32, 32, 1536, 1000);
    spec.experts = 3;
    spec.experts_used = 2;
    spec.expert_width = 96;
    spec.layer_flags[0] = spec.layer_flags[1] = LAYER_EXPERTS;
    expect_refusal(&spec, TENSOR_Q4_1, 4, "3 experts, whose width of 96 is 3 blocks of 32", "; 1-3 do");
}

/* Every allocation fails once: the error is said, and nothing is left. */
static uint32_t allocations_left;

static bool fail_at(void *state, size_t bytes)
{
    (void)state;
    (void)bytes;
    return allocations_left-- != 0;
}

static void test_model_shard_no_memory(void **state)
{
    (void)state;
    struct model_spec spec = spec_of(9, 3, 64, 1536, 997);
    struct tiny_model tiny;
    tiny_make(&tiny, &spec, TENSOR_Q4_1, true, false);
    struct model *part = NULL;
    enum status status = ST_NOMEM;
    uint32_t failed = 0;
    for (; status != ST_OK; failed++) {
        struct error err = {""};
        allocations_left = failed;
        mem_hook_set(fail_at, NULL);
        status = model_shard(&tiny.model, 1, 2, &part, &err);
        mem_hook_set(NULL, NULL);
        assert_true(status == ST_OK || (status == ST_NOMEM && !part && strstr(err.message, "no memory")));
    }
    assert_true(failed > 1);
    model_close(part);
    tiny_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_shard_formats),       cmocka_unit_test(test_model_shard_uneven),
        cmocka_unit_test(test_model_shard_inside_blocks), cmocka_unit_test(test_model_shard_experts),
        cmocka_unit_test(test_model_shard_refuses),       cmocka_unit_test(test_model_shard_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
