/* Tiny models of each family opened whole: spec, weights, vocabulary, release; failing allocations; and the real model.
 */
#include "tests/unit/runtime/gguf_writer.h"

#include "runtime/base/mem.h"
#include "runtime/model/model.h"

#include <math.h>
#include <unistd.h>

static struct writer writer;

static enum status open_written(struct model **model, void **copy, struct error *err)
{
    writer_finish(&writer);
    *copy = exact_copy(writer.data, writer.length);
    return model_open_memory(*copy, writer.length, model, err);
}

static struct model *must_open(void **copy)
{
    struct model *model = NULL;
    struct error err = {""};
    if (open_written(&model, copy, &err) != ST_OK) fail_msg("%s", err.message);
    return model;
}

static void test_model_families(void **state)
{
    (void)state;
    static const char *const archs[] = {"llama", "qwen2", "qwen3"};
    for (int i = 0; i < 3; i++) {
        void *copy;
        tiny_model(&writer, archs[i]);
        struct model *model = must_open(&copy);
        const struct model_spec *s = &model->spec;
        assert_string_equal(s->arch, archs[i]);
        assert_string_equal(s->name, "tiny");
        assert_int_equal(s->layers, TINY_LAYERS);
        assert_int_equal(s->head_size, TINY_HEAD);
        assert_int_equal(s->rope, i == 0 ? ROPE_INTERLEAVED : ROPE_HALVES);
        assert_int_equal(s->has_qkv_bias, i == 1);
        assert_int_equal(s->has_qk_norm, i == 2);
        assert_true(s->tied_head);
        assert_true(s->attention_scale == 0.25f && s->rope_main.scale == 1.0f);
        const struct layer_weights *layer = &model->weights.layers[1];
        assert_string_equal(layer->k.name, "blk.1.attn_k.weight");
        assert_int_equal(layer->k.rows, TINY_KV_HEADS * TINY_HEAD);
        assert_int_equal(layer->k.cols, TINY_WIDTH);
        assert_int_equal(layer->down.type, TENSOR_BF16);
        assert_int_equal(layer->q_bias.data != NULL, i == 1);
        assert_int_equal(layer->q_norm.data != NULL, i == 2);
        assert_ptr_equal(model->weights.head.data, model->weights.embed.data);
        assert_null(model->weights.rope_factors.data);
        model_close(model);
        free(copy);
    }
}

/* The layers of Gemma 3 that see a window keep their RoPE where the window is no bound. */
static void test_model_windows(void **state)
{
    (void)state;
    static const uint32_t windows[] = {0, 16, 128, 4096};
    for (int i = 0; i < 4; i++) {
        void *copy;
        tiny_model(&writer, "gemma3");
        if (windows[i]) writer_u32(&writer, "gemma3.attention.sliding_window", windows[i]);
        writer_u32(&writer, "gemma3.attention.sliding_window_pattern", 2);
        struct model *model = must_open(&copy);
        const struct model_spec *s = &model->spec;
        assert_int_equal(s->window, windows[i]);
        assert_int_equal(s->has_window_rope, i > 0);
        assert_true(s->rope_main.base == 10000.0f && s->rope_window.base == 10000.0f && s->embedding_scale == sqrtf(TINY_WIDTH));
        for (uint32_t l = 0; l < TINY_LAYERS; l++)
            assert_int_equal(s->layer_flags[l], i > 0 && l % 2 == 0 ? LAYER_WINDOWED : 0);
        assert_true(s->has_post_norms && model->weights.layers[1].ffn_post_norm.data != NULL);
        model_close(model);
        free(copy);
    }
    void *copy;
    tiny_model(&writer, "llama");
    writer_u32(&writer, "llama.attention.sliding_window", 16); /* Mistral's: every layer */
    struct model *model = must_open(&copy);
    assert_int_equal(model->spec.window, 16);
    assert_int_equal(model->spec.layer_flags[0], LAYER_WINDOWED);
    assert_false(model->spec.has_window_rope);
    model_close(model);
    free(copy);
}

static void test_model_options(void **state)
{
    (void)state;
    void *copy;
    tiny_model(&writer, "llama");
    writer_add_tensor(&writer, "output.weight", TENSOR_F16, TINY_WIDTH, TINY_VOCAB);
    writer_add_tensor(&writer, "rope_freqs.weight", TENSOR_F32, TINY_HEAD / 2, 0);
    writer_text(&writer, "llama.rope.scaling.type", "linear");
    writer_f32(&writer, "llama.rope.scaling.factor", 4.0f);
    writer_f32(&writer, "llama.attention.scale", 0.5f);
    writer_u32(&writer, "llama.attention.sliding_window", 128); /* the whole context: changes nothing */
    writer_u32(&writer, "llama.expert_count", 0);
    writer_bool(&writer, "llama.attention.causal", 1);
    struct model *model = must_open(&copy);
    assert_false(model->spec.tied_head);
    assert_int_equal(model->weights.head.type, TENSOR_F16);
    assert_int_equal(model->weights.rope_factors.cols, TINY_HEAD / 2);
    assert_true(((const float *)model->weights.rope_factors.data)[3] == 0.25f);
    assert_true(model->spec.rope_main.scale == 0.25f && model->spec.attention_scale == 0.5f);
    model_close(model);
    free(copy);
}

/* A llama file with biases, a head size that is not width / heads, and KV heads left out. */
static void test_model_shapes(void **state)
{
    (void)state;
    void *copy;
    tiny_model(&writer, "llama");
    writer.tensors_count = 0;
    tiny_tensors(&writer, true, false, false);
    writer_drop(&writer, "llama.attention.head_count_kv");
    writer_u32(&writer, "llama.attention.head_count", 1);
    writer_u32(&writer, "llama.attention.key_length", 32);
    writer_u32(&writer, "llama.attention.value_length", 32);
    for (int layer = 0; layer < TINY_LAYERS; layer++) {
        char name[64];
        static const char *const names[] = {"k.weight", "v.weight", "k.bias", "v.bias"};
        for (int i = 0; i < 4; i++) {
            snprintf(name, sizeof name, "blk.%d.attn_%s", layer, names[i]);
            writer_tensor(&writer, name)->dims[i < 2] = 32;
        }
    }
    struct model *model = must_open(&copy);
    assert_int_equal(model->spec.kv_heads, 1);
    assert_int_equal(model->spec.head_size, 32);
    assert_int_equal(model->spec.rope_size, TINY_HEAD); /* part of a head rotates */
    assert_true(model->spec.has_qkv_bias);
    assert_non_null(model->weights.layers[0].v_bias.data);
    model_close(model);
    free(copy);
}

static void test_model_vocab(void **state)
{
    (void)state;
    void *copy;
    tiny_model(&writer, "llama");
    writer_u32(&writer, "tokenizer.ggml.eot_token_id", 5);
    struct writer_key *scores = writer_array(&writer, "tokenizer.ggml.scores", GGUF_F32);
    for (int i = 0; i < TINY_VOCAB; i++, scores->count++) writer_put(scores, &(float){-(float)i}, 4);
    struct model *model = must_open(&copy);
    model_release_file(model); /* all that follows must outlive the file */
    memset(copy, 0xdd, writer.length);
    assert_null(model->file);
    const struct vocab *v = &model->vocab;
    assert_string_equal(v->model, "gpt2");
    assert_string_equal(v->pre, "smollm");
    assert_int_equal(v->count, TINY_VOCAB);
    assert_memory_equal(v->tokens[11].text, "abcd", v->tokens[11].length);
    assert_int_equal(v->kinds[16], VOCAB_CONTROL);
    assert_int_equal(v->kinds[3], VOCAB_NORMAL);
    assert_true(v->scores[7] == -7.0f);
    assert_int_equal(v->merges_count, 3);
    assert_memory_equal(v->merges[2].text, "ab cd", v->merges[2].length);
    assert_int_equal(v->bos_id, 1);
    assert_int_equal(v->end_ids_count, 3); /* eos, eot, and <|eot_id|> by its name; not <|endoftext|> */
    assert_int_equal(v->end_ids[0], 2);
    assert_int_equal(v->end_ids[1], 5);
    assert_int_equal(v->end_ids[2], 16);
    assert_false(v->add_bos || v->add_eos || v->add_space_prefix);
    assert_non_null(strstr(model->chat_template, "messages"));
    assert_int_equal(strlen(model->chat_template), model->chat_template_length);
    model_close(model);
    free(copy);
}

static void test_model_vocab_defaults(void **state)
{
    (void)state;
    void *copy;
    tiny_model(&writer, "llama");
    static const char *const gone[] = {
        "tokenizer.ggml.bos_token_id",     "tokenizer.ggml.eos_token_id",     "tokenizer.ggml.pre",
        "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.merges",           "tokenizer.ggml.token_type",       "tokenizer.chat_template"};
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++) writer_drop(&writer, gone[i]);
    writer_text(&writer, "tokenizer.ggml.model", "llama");
    struct model *model = must_open(&copy);
    assert_int_equal(model->vocab.bos_id, 1);
    assert_int_equal(model->vocab.eos_id, 2);
    assert_int_equal(model->vocab.unknown_id, 0);
    assert_int_equal(model->vocab.padding_id, VOCAB_NO_ID);
    assert_true(model->vocab.add_bos && model->vocab.add_space_prefix);
    assert_string_equal(model->vocab.pre, "");
    assert_null(model->chat_template);
    assert_null(model->vocab.scores);
    model_close(model);
    free(copy);

    writer_text(&writer, "tokenizer.ggml.model", "gpt2");
    model = must_open(&copy);
    assert_int_equal(model->vocab.bos_id, VOCAB_NO_ID);
    assert_int_equal(model->vocab.end_ids_count, 0); /* no kinds, so no name counts as a control token */
    assert_false(model->vocab.add_bos);
    model_close(model);
    free(copy);
}

static int allocations_left;
static bool fail_at(void *state, size_t size_bytes)
{
    (void)state;
    (void)size_bytes;
    return allocations_left-- != 0;
}

/* The k-th allocation fails, for every k: ST_NOMEM with a message, and (under asan) no leak. */
static void test_model_no_memory(void **state)
{
    (void)state;
    tiny_model(&writer, "qwen3");
    enum status status = ST_NOMEM;
    int k = 0;
    for (; status != ST_OK; k++) {
        void *copy;
        struct model *model = NULL;
        struct error err = {""};
        allocations_left = k;
        mem_hook_set(fail_at, NULL);
        status = open_written(&model, &copy, &err);
        mem_hook_set(NULL, NULL);
        assert_true(status == ST_OK || (status == ST_NOMEM && err.message[0]));
        model_close(model);
        free(copy);
    }
    assert_in_range(k, 10, 100);
    print_message("%d allocations\n", k - 1);
}

static const char *real_model(void)
{
    const char *path = getenv("MILLRACE_TEST_MODEL");
    if (!path) path = TESTS_DIR "/../models/SmolLM2-135M-Instruct.Q4_1.gguf";
    return access(path, R_OK) == 0 ? path : NULL;
}

static void test_model_real(void **state)
{
    (void)state;
    struct model *model = NULL;
    struct error err = {""};
    if (!real_model()) skip();
    if (model_open(real_model(), &model, &err) != ST_OK) fail_msg("%s", err.message);
    const struct model_spec *s = &model->spec;
    assert_int_equal(s->layers, 30);
    assert_int_equal(s->width, 576);
    assert_int_equal(s->heads, 9);
    assert_int_equal(s->kv_heads, 3);
    assert_int_equal(s->vocab, 49152);
    assert_int_equal(s->parameters, 134515008);
    assert_true(s->rope_main.base == 100000.0f && s->attention_scale == 0.125f && s->tied_head);
    assert_int_equal(model->weights.embed.type, TENSOR_Q8_0);
    assert_int_equal(model->weights.layers[29].down.type, TENSOR_Q4_1);
    assert_int_equal(model->vocab.merges_count, 48900);
    assert_int_equal(model->vocab.end_ids_count, 1);
    assert_int_equal(model->vocab.end_ids[0], 2);
    assert_memory_equal(model->vocab.tokens[2].text, "<|im_end|>", 10);
    model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_families),  cmocka_unit_test(test_model_windows),
        cmocka_unit_test(test_model_options),   cmocka_unit_test(test_model_shapes),
        cmocka_unit_test(test_model_vocab),     cmocka_unit_test(test_model_vocab_defaults),
        cmocka_unit_test(test_model_no_memory), cmocka_unit_test(test_model_real),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
