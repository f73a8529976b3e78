/* Hugging Face folders opened whole: what config.json says becomes the spec, tensors find their places in every form
 * that files bring them in, and the vocabulary fits the embedding. Logits of every family: tests/families. */
#include "tests/unit/runtime/hf_writer.h"

#include "runtime/base/arena.h"
#include "runtime/base/mem.h"
#include "runtime/model/hf_config.h"
#include "runtime/model/inspect.h"
#include "runtime/model/model.h"
#include "runtime/model/model_shard.h"

#include <math.h>

static struct hf_writer writer;

static struct model *must_open(void)
{
    struct model *model = NULL;
    struct error err = {""};
    hf_close_header(&writer);
    hf_write(&writer);
    if (model_open(writer.folder.path, &model, &err) != ST_OK) fail_msg("%s", err.message);
    return model;
}

static void must_refuse(enum status wanted, const char *word)
{
    struct model *model = NULL;
    struct error err = {""};
    hf_close_header(&writer);
    hf_write(&writer);
    enum status status = model_open(writer.folder.path, &model, &err);
    if (status != wanted || !strstr(err.message, word)) fail_msg("%s: %s", status_name(status), err.message);
    tiny_folder_destroy(&writer.folder);
}

static void close_and_remove(struct model *model)
{
    model_close(model);
    tiny_folder_destroy(&writer.folder);
}

static void test_hf_folder_opens(void **state)
{
    (void)state;
    hf_tiny(&writer);
    struct model *model = must_open();
    const struct model_spec *s = &model->spec;
    assert_string_equal(s->arch, "llama");
    assert_non_null(strstr(writer.folder.path, s->name));
    assert_int_equal(s->layers, HF_LAYERS);
    assert_int_equal(s->width, HF_E);
    assert_int_equal(s->ff_width, HF_F);
    assert_int_equal(s->heads, HF_H);
    assert_int_equal(s->kv_heads, HF_KH);
    assert_int_equal(s->head_size, HF_D);
    assert_int_equal(s->rope_size, HF_D);
    assert_int_equal(s->vocab, HF_V);
    assert_int_equal(s->context_max, 128);
    assert_int_equal(s->rope, ROPE_HALVES);
    assert_true(s->tied_head && !s->window && !s->experts && !s->has_qkv_bias && !s->has_qk_norm);
    assert_true(s->attention_scale == 0.25f && s->embedding_scale == 1 && s->logit_scale == 1);
    assert_true(s->rope_main.base == 10000 && s->rope_main.scale == 1 && s->rope_main.magnitude == 1);
    assert_true(fabs((double)s->norm_eps - 1e-5) < 1e-12);
    assert_int_equal(s->parameters, HF_V * HF_E + HF_E + HF_LAYERS * (2 * HF_E + 3 * 32 * 32 + 3 * 32 * HF_F));
    const struct layer_weights *layer = &model->weights.layers[1];
    assert_string_equal(layer->k.name, "model.layers.1.self_attn.k_proj.weight");
    assert_int_equal(layer->k.rows, HF_KH * HF_D);
    assert_int_equal(layer->down.cols, HF_F);
    assert_int_equal(layer->down.type, TENSOR_BF16);
    assert_int_equal(layer->ffn_norm.type, TENSOR_F32);
    assert_ptr_equal(model->weights.head.data, model->weights.embed.data);
    const float *norm = model->weights.final_norm.data; /* hf_tensor's values from the one of index 32 % 7 on */
    assert_true(norm[0] == -0.125f && norm[1] == 0.5f);
    assert_int_equal(model->vocab.count, 261);
    assert_int_equal(model->vocab.eos_id, 259);
    assert_null(model->file);
    model_forget_rows(model, &layer->q, 0, 32);
    model_forget_rows(model, &layer->ffn_norm, 0, 1); /* not of the file: stays as it is */
    assert_true(((const float *)layer->ffn_norm.data)[0] == norm[0]);
    model_release_file(model);
    assert_null(model->shards);
    assert_null(model->weights.layers);
    assert_int_equal(model->vocab.tokens['a'].length, 1);
    close_and_remove(model);
}

/* --- the head --- */

static void test_hf_folder_heads(void **state)
{
    (void)state;
    hf_tiny(&writer);
    hf_set(writer.config, "tie_word_embeddings", "false");
    hf_tensor(&writer, "lm_head.weight", HF_V, HF_E);
    struct model *model = must_open();
    assert_false(model->spec.tied_head);
    assert_ptr_not_equal(model->weights.head.data, model->weights.embed.data);
    close_and_remove(model);

    hf_tiny(&writer); /* a copy of the embedding */
    hf_tensor(&writer, "lm_head.weight", HF_V, HF_E);
    uint64_t parameters = 0;
    model = must_open();
    assert_true(model->spec.tied_head);
    assert_ptr_equal(model->weights.head.data, model->weights.embed.data);
    parameters = model->spec.parameters;
    close_and_remove(model);

    hf_tiny(&writer); /* another one, although config.json says that it is tied */
    hf_tensor(&writer, "lm_head.weight", HF_V, HF_E);
    writer.data[writer.data_bytes - 1] ^= 1;
    model = must_open();
    assert_false(model->spec.tied_head);
    assert_int_equal(model->spec.parameters, parameters + HF_V * HF_E);
    close_and_remove(model);

    hf_tiny(&writer);
    hf_tensor(&writer, "lm_head.weight", HF_V - 1, HF_E);
    must_refuse(ST_INVAL, "lm_head.weight has 2 dimensions");
}

/* --- tensors in other forms --- */

static void test_hf_folder_ignores_by_name(void **state)
{
    (void)state;
    hf_tiny(&writer);
    hf_tensor(&writer, "model.layers.0.self_attn.rotary_emb.inv_freq", HF_D / 2, 0);
    hf_tensor(&writer, "model.rotary_emb.inv_freq", HF_D / 2, 0);
    close_and_remove(must_open());
    hf_tiny(&writer);
    hf_tensor(&writer, "model.layers.0.self_attn.rotary_emb.inv_freq_too", HF_D / 2, 0);
    must_refuse(ST_INVAL, "inv_freq_too has no place");
    hf_tiny(&writer); /* scales of activations say nothing without quantisation: then they are not known */
    hf_tensor(&writer, "model.layers.0.self_attn.k_proj.input_scale", 1, 0);
    must_refuse(ST_INVAL, "input_scale has no place");
    hf_tiny(&writer); /* the part that sees images, of a model that sees none */
    hf_tensor(&writer, "vision_tower.patch.weight", 4, 4);
    must_refuse(ST_INVAL, "vision_tower.patch.weight has no place");
}

static void test_hf_folder_biases(void **state)
{
    (void)state;
    static const char *const names[] = {"q_proj", "k_proj", "v_proj", "o_proj"};
    for (int zero = 0; zero < 2; zero++) {
        hf_tiny(&writer);
        hf_set(writer.config, "attention_bias", "true");
        for (int l = 0; l < HF_LAYERS; l++)
            for (int i = 0; i < 4; i++) {
                char name[96];
                snprintf(name, sizeof name, "model.layers.%d.self_attn.%s.bias", l, names[i]);
                hf_tensor(&writer, name, i == 1 || i == 2 ? HF_KH * HF_D : HF_E, 0);
            }
        /* each bias of the last layer is the last of its kind: make behind attention's zero */
        size_t o_bytes = 2 * HF_E, layer_bytes = 2 * (2 * HF_E + 2 * HF_KH * HF_D);
        memset(writer.data + writer.data_bytes - o_bytes, 0, o_bytes);
        if (zero) memset(writer.data + writer.data_bytes - layer_bytes - o_bytes, 0, o_bytes);
        if (!zero) {
            must_refuse(ST_INVAL, "model.layers.0.self_attn.o_proj.bias has no place");
            continue;
        }
        struct model *model = must_open();
        assert_true(model->spec.has_qkv_bias);
        assert_int_equal(model->weights.layers[0].k_bias.cols, HF_KH * HF_D);
        assert_int_equal(model->weights.layers[0].k_bias.type, TENSOR_F32);
        close_and_remove(model);
    }
}

/* All data one byte further: no matrix is aligned any more. */
static void test_hf_folder_misaligned(void **state)
{
    (void)state;
    hf_tiny(&writer);
    hf_close_header(&writer);
    hf_append(writer.header, " ");
    struct model *model = NULL, *plain = NULL;
    struct error err = {""};
    hf_write(&writer);
    if (model_open(writer.folder.path, &model, &err) != ST_OK) fail_msg("%s", err.message);
    const struct tensor_view *v = &model->weights.layers[0].v;
    assert_non_null(v->recipe);
    assert_non_null(model->weights.head.recipe);
    uint16_t rows[2][HF_E];
    assert_ptr_equal(tensor_rows(v, 5, 7, rows), rows);
    uint16_t first[2][HF_E];
    memcpy(first, rows, sizeof rows);
    model_forget_rows(model, v, 0, 16);
    writer.header[strlen(writer.header) - 1] = 0;
    struct hf_writer *again = &writer;
    hf_finish(again);
    tiny_folder_write(&again->folder, "model.safetensors", (const char *)again->file, again->file_bytes);
    if (model_open(writer.folder.path, &plain, &err) != ST_OK) fail_msg("%s", err.message);
    assert_null(plain->weights.layers[0].v.recipe);
    assert_memory_equal(tensor_rows(&plain->weights.layers[0].v, 5, 7, NULL), first, sizeof first);
    assert_memory_equal(plain->weights.layers[1].attn_norm.data, model->weights.layers[1].attn_norm.data, HF_E * 4);
    model_close(plain);
    close_and_remove(model);
}

/* --- the vocabulary --- */

static void test_hf_folder_vocabulary_smaller(void **state)
{
    (void)state;
    hf_tiny(&writer); /* rows without tokens */
    hf_replace(writer.tokenizer, ",{\"id\":260,\"content\":\"<think>\",\"special\":false,\"normalized\":false}", "");
    struct model *model = must_open();
    assert_int_equal(model->vocab.count, 260);
    assert_int_equal(model->spec.vocab, 261);
    close_and_remove(model);
}

static void test_hf_folder_vocabulary_larger(void **state)
{
    (void)state;
    hf_tiny(&writer); /* a token without a row */
    hf_replace(writer.tokenizer, "\"special\":false,\"normalized\":false}",
               "\"special\":false,\"normalized\":false},{\"id\":261,\"content\":\"<image>\",\"special\":true}");
    hf_replace(writer.generation, "[259]", "[259, 261]");
    struct model *model = must_open();
    assert_int_equal(model->vocab.count, 261);
    assert_int_equal(model->vocab.pipeline->added_count, 3);
    for (uint32_t i = 0; i < model->vocab.end_ids_count; i++) assert_true(model->vocab.end_ids[i] < 261);
    close_and_remove(model);

    hf_tiny(&writer); /* one that merges make */
    hf_replace(writer.tokenizer, "\"special\":false,\"normalized\":false}",
               "\"special\":false,\"normalized\":false},{\"id\":261,\"content\":\"<image>\",\"special\":true}");
    hf_replace(writer.tokenizer, "\"hel\":257", "\"hel\":257,\"hell\":262");
    hf_replace(writer.tokenizer, "[\"he\",\"l\"]", "[\"he\",\"l\"],[\"hel\",\"l\"]");
    must_refuse(ST_INVAL, "tokenizer.json: token 262, part of a merge, has no row");
}

/* --- config.json alone --- */

static void read_config(const char *text, struct hf_config *config, struct arena *arena)
{
    struct tiny_folder folder;
    struct error err = {""};
    tiny_folder_create(&folder);
    tiny_folder_write(&folder, "config.json", text, strlen(text));
    arena_init(arena, 0);
    enum status status = hf_config_read(folder.path, arena, config, &err);
    tiny_folder_destroy(&folder);
    if (status != ST_OK) fail_msg("%s", err.message);
}

static void free_config(struct hf_config *config, struct arena *arena)
{
    hf_config_free(config);
    arena_free(arena);
}

#define SIZES                                                                                                          \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":4,\"num_attention_heads\":4,"                   \
    "\"num_key_value_heads\":2,\"vocab_size\":100,\"max_position_embeddings\":256,\"rms_norm_eps\":1e-6"

static uint32_t windowed_layers(const struct model_spec *spec)
{
    uint32_t mask = 0;
    for (uint32_t l = 0; l < spec->layers; l++) mask |= (uint32_t)(spec->layer_flags[l] & LAYER_WINDOWED) << l;
    return mask;
}

static void test_hf_folder_windows(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t window, layers;
    } cases[] = {
        {"\"model_type\":\"mistral\",\"sliding_window\":32", 32, 15},
        {"\"model_type\":\"mistral\",\"sliding_window\":null", 0, 0},
        {"\"model_type\":\"mistral\",\"sliding_window\":32,\"use_sliding_window\":false", 32, 15}, /* not its key */
        {"\"model_type\":\"mistral\",\"sliding_window\":256", 0, 0}, /* as long as the context */
        {"\"model_type\":\"mistral\"", 0, 0},                        /* transformers assumes 4096 */
        {"\"model_type\":\"mixtral\",\"num_local_experts\":4,\"num_experts_per_tok\":2,\"sliding_window\":16", 16, 15},
        {"\"model_type\":\"phi3\",\"sliding_window\":17", 17, 15},
        {"\"model_type\":\"qwen2\",\"sliding_window\":32,\"use_sliding_window\":true,\"max_window_layers\":3", 32, 8},
        {"\"model_type\":\"qwen2\",\"sliding_window\":32,\"use_sliding_window\":false,\"max_window_layers\":3", 0, 0},
        {"\"model_type\":\"qwen2\",\"sliding_window\":32,\"max_window_layers\":0", 0, 0},
        {"\"model_type\":\"qwen2\",\"sliding_window\":32,\"use_sliding_window\":true", 0, 0}, /* from layer 28 on */
        {"\"model_type\":\"qwen3\",\"sliding_window\":32,\"use_sliding_window\":true,\"layer_types\":"
         "[\"full_attention\",\"sliding_attention\",\"full_attention\",\"sliding_attention\"]",
         32, 10},
        {"\"model_type\":\"gemma3_text\",\"sliding_window\":32,\"sliding_window_pattern\":2", 32, 5},
        {"\"model_type\":\"gemma3_text\",\"sliding_window\":32", 32, 15}, /* each sixth sees all */
        {"\"model_type\":\"gemma3_text\",\"sliding_window\":512", 512,
         15}, /* windowed layers have a RoPE of their own */
        {"\"model_type\":\"llama\"", 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct hf_config config;
        struct arena arena;
        char text[1024];
        snprintf(text, sizeof text, "{%s,%s}", SIZES, cases[i].text);
        read_config(text, &config, &arena);
        if (config.spec.window != cases[i].window || windowed_layers(&config.spec) != cases[i].layers)
            fail_msg("%s: window %u of layers %#x", cases[i].text, config.spec.window, windowed_layers(&config.spec));
        free_config(&config, &arena);
    }
}

static void test_hf_folder_experts(void **state)
{
    (void)state;
    struct hf_config config;
    struct arena arena;
    read_config("{" SIZES
                ",\"architectures\":[\"MixtralForCausalLM\"],\"num_local_experts\":8,\"num_experts_per_tok\":2}",
                &config, &arena);
    assert_int_equal(config.spec.experts, 8);
    assert_int_equal(config.spec.expert_width, 96);
    assert_true(config.spec.experts_normed && config.spec.rope_main.base == 1000000);
    assert_int_equal(config.expert_names, HF_EXPERTS_BLOCK_SPARSE);
    free_config(&config, &arena);
    read_config(
        "{" SIZES ",\"architectures\":[\"Qwen3MoeForCausalLM\"],\"num_experts\":16,\"num_experts_per_tok\":4,"
        "\"moe_intermediate_size\":32,\"decoder_sparse_step\":2,\"mlp_only_layers\":[3],\"max_window_layers\":48}",
        &config, &arena);
    assert_int_equal(config.spec.experts, 16);
    assert_int_equal(config.spec.experts_used, 4);
    assert_int_equal(config.spec.expert_width, 32);
    assert_false(config.spec.experts_normed);
    for (uint32_t l = 0; l < 4; l++) assert_int_equal(config.spec.layer_flags[l], l == 1 ? LAYER_EXPERTS : 0);
    free_config(&config, &arena);
}

static void test_hf_folder_rope(void **state)
{
    (void)state;
    struct hf_config config;
    struct arena arena;
    const struct model_spec *s = &config.spec;
    read_config("{" SIZES ",\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4},"
                "\"rope_theta\":5000}",
                &config, &arena);
    assert_true(s->rope_main.scale == 0.25f && s->rope_main.base == 5000 && !config.rope_factors.factors);
    free_config(&config, &arena);
    read_config("{" SIZES ",\"model_type\":\"llama\",\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8,"
                "\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64,"
                "\"rope_theta\":10000.0}}",
                &config, &arena);
    assert_true(config.rope_factors.factors[0] == 1 && config.rope_factors.factors[7] == 8);
    free_config(&config, &arena);
    read_config("{" SIZES ",\"model_type\":\"qwen2\",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,"
                "\"original_max_position_embeddings\":64}}",
                &config, &arena);
    assert_true(fabs((double)s->rope_main.magnitude - (0.1 * log(4) + 1)) < 1e-6);
    assert_true(config.rope_factors.factors[0] == 1 && config.rope_factors.factors[7] == 4);
    free_config(&config, &arena);
    read_config("{" SIZES
                ",\"model_type\":\"phi3\",\"original_max_position_embeddings\":64,\"partial_rotary_factor\":0.75,"
                "\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,1,1,1,1,2],\"long_factor\":[1,2,3,4,5,6]}}",
                &config, &arena);
    assert_int_equal(s->rope_size, 12);
    assert_int_equal(s->rope_switch, 64);
    assert_true(fabs((double)s->rope_main.magnitude - sqrt(1 + log(4) / log(64))) < 1e-6);
    assert_true(config.rope_factors.factors[5] == 2 && config.rope_factors.factors_long[5] == 6);
    assert_true(config.fused);
    free_config(&config, &arena);
    read_config(
        "{" SIZES ",\"model_type\":\"gemma3_text\",\"rope_local_base_freq\":20000,\"rope_theta\":500000,"
        "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8},\"query_pre_attn_scalar\":64,\"head_dim\":32}",
        &config, &arena);
    assert_true(s->rope_main.base == 500000 && s->rope_main.scale == 0.125f && s->rope_window.base == 20000);
    assert_true(s->has_window_rope && s->rope_window.scale == 1 && s->attention_scale == 0.125f);
    assert_true(s->embedding_scale == 8 && s->tied_head && s->has_post_norms && config.norms_plus_one);
    assert_int_equal(s->activation, ACTIVATION_GELU_TANH);
    free_config(&config, &arena);
    read_config("{" SIZES ",\"model_type\":\"gemma3_text\",\"rope_parameters\":{\"full_attention\":{\"rope_type\":"
                "\"default\",\"rope_theta\":700000.0},\"sliding_attention\":null}}",
                &config, &arena);
    assert_true(s->rope_main.base == 700000 && s->rope_window.base == 10000);
    assert_int_equal(s->head_size, 256); /* of the class */
    free_config(&config, &arena);
}

static void test_hf_folder_scales(void **state)
{
    (void)state;
    struct hf_config config;
    struct arena arena;
    read_config("{" SIZES ",\"model_type\":\"granite\",\"embedding_multiplier\":12,\"logits_scaling\":8.0,"
                "\"residual_multiplier\":0.22,\"attention_multiplier\":0.0625}",
                &config, &arena);
    assert_true(config.spec.embedding_scale == 12 && config.spec.logit_scale == 0.125f);
    assert_true(config.spec.residual_scale == 0.22f && config.spec.attention_scale == 0.0625f);
    free_config(&config, &arena);
    read_config("{" SIZES ",\"model_type\":\"granite\"}", &config, &arena);
    assert_true(config.spec.attention_scale == 1); /* of the class, not 1/sqrt(D) */
    free_config(&config, &arena);
}

/* Gemma 3 with a part that sees images: keys inside text_config, with the class's defaults for most. */
static void test_hf_folder_text_config(void **state)
{
    (void)state;
    struct hf_config config;
    struct arena arena;
    read_config(
        "{\"architectures\":[\"Gemma3ForConditionalGeneration\"],\"model_type\":\"gemma3\",\"vision_config\":{},"
        "\"text_config\":{\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":7,\"model_type\":"
        "\"gemma3_text\",\"sliding_window\":1024,\"rope_scaling\":{\"factor\":8.0,\"rope_type\":\"linear\"}}}",
        &config, &arena);
    assert_true(config.has_images && config.spec.tied_head);
    assert_int_equal(config.spec.vocab, 262208);
    assert_int_equal(config.spec.heads, 8);
    assert_int_equal(config.spec.kv_heads, 4);
    assert_int_equal(config.spec.context_max, 131072);
    assert_int_equal(windowed_layers(&config.spec), 0x5f);
    free_config(&config, &arena);
}

/* The same tensors under Gemma's names, behind a prefix, with a tensor of the part that sees images beside. */
static void make_gemma(const char *prefix, const char *image)
{
    static const char *const norms[] = {"pre_feedforward_layernorm", "post_feedforward_layernorm"};
    char plain[HF_TEXT_BYTES], name[128];
    hf_tiny(&writer);
    snprintf(writer.config, sizeof writer.config,
             "{\"architectures\":[\"Gemma3ForConditionalGeneration\"],\"text_config\":{\"hidden_size\":32,"
             "\"intermediate_size\":48,\"num_hidden_layers\":2,\"num_attention_heads\":2,\"num_key_value_heads\":1,"
             "\"head_dim\":16,\"vocab_size\":261,\"max_position_embeddings\":128,\"sliding_window\":8}}");
    for (int l = 0; l < HF_LAYERS; l++) {
        for (int i = 0; i < 2; i++) {
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, norms[i]);
            hf_tensor(&writer, name, HF_E, 0);
            snprintf(name, sizeof name, "model.layers.%d.self_attn.%c_norm.weight", l, "qk"[i]);
            hf_tensor(&writer, name, HF_D, 0);
        }
    }
    memcpy(plain, writer.header, sizeof plain);
    writer.header[0] = 0;
    for (const char *from = plain, *at; *from; from = at + 7) {
        at = strstr(from, "\"model.");
        size_t length = at ? (size_t)(at - from) : strlen(from), used = strlen(writer.header);
        memcpy(writer.header + used, from, length);
        writer.header[used + length] = 0;
        if (!at) break;
        hf_append(writer.header, "\"");
        hf_append(writer.header, prefix);
    }
    hf_tensor(&writer, image, 4, 4);
}

static void test_hf_folder_images(void **state)
{
    (void)state;
    static const char *const names[][2] = {{"language_model.model.", "vision_tower.patch.weight"},
                                           {"model.language_model.", "model.multi_modal_projector.weight"}};
    for (int i = 0; i < 2; i++) {
        make_gemma(names[i][0], names[i][1]);
        struct model *model = must_open();
        assert_string_equal(model->spec.arch, "gemma3_text");
        assert_non_null(model->weights.layers[1].ffn_post_norm.data);
        const float *norm = model->weights.layers[0].attn_post_norm.data; /* stored less 1 */
        assert_true(norm[0] == 0.875f && norm[1] == 1.5f);
        close_and_remove(model);
    }
    make_gemma("model.", "vision_tower.patch.weight");
    must_refuse(ST_INVAL, "model.language_model.embed_tokens.weight is missing");
}

static void test_hf_folder_inspect(void **state)
{
    (void)state;
    struct buf out;
    struct error err = {""};
    hf_tiny(&writer);
    hf_close_header(&writer);
    hf_write(&writer);
    buf_init(&out, 0);
    assert_int_equal(model_inspect(writer.folder.path, &out, &err), ST_OK);
    buf_append_char(&out, 0);
    assert_non_null(strstr(out.data, "Hugging Face folder, 1 safetensors file"));
    assert_non_null(strstr(out.data, "architecture  llama"));
    assert_non_null(strstr(out.data, "32 x 261            BF16"));
    buf_clear(&out);
    assert_int_equal(model_inspect_json(writer.folder.path, &out, &err), ST_OK);
    buf_append_char(&out, 0);
    assert_non_null(strstr(out.data, "{\"format\":\"safetensors\",\"files\":1,"));
    assert_non_null(strstr(out.data, "\"servable\":true"));
    assert_non_null(strstr(out.data, "\"file\":\"model.safetensors\""));
    hf_set(writer.config, "hidden_act", "\"relu\"");
    hf_write(&writer);
    buf_clear(&out);
    assert_int_equal(model_inspect(writer.folder.path, &out, &err), ST_OK);
    buf_append_char(&out, 0);
    assert_non_null(strstr(out.data, "CANNOT BE SERVED: "));
    assert_non_null(strstr(out.data, "key hidden_act is \"relu\""));
    buf_free(&out);
    tiny_folder_destroy(&writer.folder);
}

static bool fail_nth(void *state, size_t size_bytes)
{
    (void)size_bytes;
    return (*(int *)state)-- != 0;
}

static void test_hf_folder_fails_allocations(void **state)
{
    (void)state;
    hf_tiny(&writer);
    hf_close_header(&writer);
    hf_write(&writer);
    int n = 0;
    for (;; n++) {
        struct model *model = NULL;
        struct error err = {""};
        int left = n;
        mem_hook_set(fail_nth, &left);
        enum status status = model_open(writer.folder.path, &model, &err);
        mem_hook_set(NULL, NULL);
        if (status == ST_OK) {
            model_close(model);
            break;
        }
        assert_null(model);
        assert_int_equal(status, ST_NOMEM);
        assert_true(err.message[0]);
        assert_in_range(n, 0, 1000);
    }
    print_message("%d allocations\n", n);
    tiny_folder_destroy(&writer.folder);
}

/* Columns [begin, ..) of the whole's rows are the part's rows. */
static void same_columns(const struct tensor_view *whole, const struct tensor_view *part, uint32_t begin)
{
    static uint8_t expected[1 << 16], rows[1 << 16];
    struct tensor_area area = {0, whole->rows, begin, begin + part->cols};
    size_t bytes = whole->rows * tensor_row_bytes(tensor_type_info(part->type), part->cols);
    assert_true(bytes > 0 && bytes <= sizeof rows);
    tensor_area_copy(whole, area, expected);
    assert_memory_equal(tensor_rows(part, 0, part->rows, rows), expected, bytes);
}

/* Parts for tensor parallelism, of tensors that stand at even and odd places of the file. */
static void test_hf_folder_parts(void **state)
{
    (void)state;
    for (int pad = 0; pad < 2; pad++) {
        hf_tiny(&writer);
        hf_close_header(&writer);
        if (pad) hf_append(writer.header, " ");
        struct model *model = NULL;
        struct error err = {""};
        hf_write(&writer);
        if (model_open(writer.folder.path, &model, &err) != ST_OK) fail_msg("%s", err.message);
        assert_int_equal(model->weights.layers[0].o.recipe != NULL, pad);
        for (uint32_t rank = 0; rank < 2; rank++) {
            struct model *part = NULL;
            assert_int_equal(model_shard(model, rank, 2, &part, &err), ST_OK);
            const struct layer_weights *whole = &model->weights.layers[1], *cut = &part->weights.layers[1];
            same_columns(&whole->o, &cut->o, rank * HF_D);
            same_columns(&whole->down, &cut->down, rank * 32);
            assert_int_equal(cut->o.cols, HF_D);
            assert_int_equal(cut->down.cols, rank ? HF_F - 32 : 32);
            assert_int_equal(cut->k.rows, HF_D); /* one KV head, copied */
            model_close(part);
        }
        close_and_remove(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hf_folder_opens),
        cmocka_unit_test(test_hf_folder_heads),
        cmocka_unit_test(test_hf_folder_ignores_by_name),
        cmocka_unit_test(test_hf_folder_biases),
        cmocka_unit_test(test_hf_folder_misaligned),
        cmocka_unit_test(test_hf_folder_vocabulary_smaller),
        cmocka_unit_test(test_hf_folder_vocabulary_larger),
        cmocka_unit_test(test_hf_folder_windows),
        cmocka_unit_test(test_hf_folder_experts),
        cmocka_unit_test(test_hf_folder_rope),
        cmocka_unit_test(test_hf_folder_scales),
        cmocka_unit_test(test_hf_folder_text_config),
        cmocka_unit_test(test_hf_folder_images),
        cmocka_unit_test(test_hf_folder_inspect),
        cmocka_unit_test(test_hf_folder_fails_allocations),
        cmocka_unit_test(test_hf_folder_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
