/* A tiny Llama as a Hugging Face folder on disk, whose files are texts and bytes that a test may edit before they are
 * written: 2 layers of width 32, 2 query heads over 1 KV head of 16, feed-forward 48, tied embedding of 261 rows, BF16.
 */
#ifndef TESTS_UNIT_RUNTIME_HF_WRITER_H
#define TESTS_UNIT_RUNTIME_HF_WRITER_H

#include "tests/unit/runtime/tiny_folder.h"
#include "tests/unit/unit.h"

#include <inttypes.h>

enum { HF_LAYERS = 2, HF_E = 32, HF_H = 2, HF_KH = 1, HF_D = 16, HF_F = 48, HF_V = 261 };
enum { HF_TEXT_BYTES = 65536, HF_DATA_BYTES = 1 << 17 };

struct hf_writer {
    struct tiny_folder folder;
    char config[HF_TEXT_BYTES], header[HF_TEXT_BYTES], generation[HF_TEXT_BYTES];
    char index[HF_TEXT_BYTES]; /* "" : no such file, as for the texts above */
    char tokenizer[HF_TEXT_BYTES];
    const char *file_name; /* of the weights */
    uint8_t data[HF_DATA_BYTES];
    size_t data_bytes;
    uint64_t header_claimed; /* 0: its real length */
    uint8_t file[8 + HF_TEXT_BYTES + HF_DATA_BYTES];
    size_t file_bytes;
};

static inline void hf_append(char *text, const char *more)
{
    size_t length = strlen(text), count = strlen(more);
    assert_true(length + count < HF_TEXT_BYTES);
    memcpy(text + length, more, count + 1);
}

/* Adds a tensor of BF16 values that repeat from a list; cols 0: a vector. */
static inline void hf_tensor(struct hf_writer *w, const char *name, uint32_t rows, uint32_t cols)
{
    static const uint16_t values[] = {0x3f80, 0xbf00, 0x3e80, 0x3dcd, 0xbe00, 0x3f00, 0x3c00};
    char entry[256], shape[48];
    size_t begin = w->data_bytes, count = (size_t)rows * (cols ? cols : 1);
    assert_true(begin + 2 * count <= HF_DATA_BYTES);
    for (size_t i = 0; i < count; i++) memcpy(w->data + begin + 2 * i, &values[(i + rows) % 7], 2);
    w->data_bytes += 2 * count;
    snprintf(shape, sizeof shape, cols ? "%" PRIu32 ",%" PRIu32 : "%" PRIu32, rows, cols);
    snprintf(entry, sizeof entry, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
             strlen(w->header) > 1 ? "," : "", name, shape, begin, w->data_bytes);
    hf_append(w->header, entry);
}

static inline void hf_layer(struct hf_writer *w, int layer)
{
    static const struct {
        const char *name;
        uint32_t rows, cols;
    } tensors[] = {
        {"input_layernorm.weight", HF_E, 0},
        {"self_attn.q_proj.weight", HF_H * HF_D, HF_E},
        {"self_attn.k_proj.weight", HF_KH * HF_D, HF_E},
        {"self_attn.v_proj.weight", HF_KH * HF_D, HF_E},
        {"self_attn.o_proj.weight", HF_E, HF_H * HF_D},
        {"post_attention_layernorm.weight", HF_E, 0},
        {"mlp.gate_proj.weight", HF_F, HF_E},
        {"mlp.up_proj.weight", HF_F, HF_E},
        {"mlp.down_proj.weight", HF_E, HF_F},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.%s", layer, tensors[i].name);
        hf_tensor(w, name, tensors[i].rows, tensors[i].cols);
    }
}

/* Makes the folder and its texts; the header is left open for more tensors until hf_write or hf_close_header. */
static inline void hf_tiny(struct hf_writer *w)
{
    struct buf text;
    memset(w, 0, sizeof *w);
    tiny_folder_create(&w->folder);
    w->file_name = "model.safetensors";
    hf_append(
        w->config,
        "{\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"attention_bias\": false,\n  \"bos_token_id\": 258,\n"
        "  \"dtype\": \"bfloat16\",\n  \"eos_token_id\": 259,\n  \"hidden_act\": \"silu\",\n"
        "  \"hidden_size\": 32,\n  \"intermediate_size\": 48,\n  \"max_position_embeddings\": 128,\n"
        "  \"mlp_bias\": false,\n  \"model_type\": \"llama\",\n  \"num_attention_heads\": 2,\n"
        "  \"num_hidden_layers\": 2,\n  \"num_key_value_heads\": 1,\n  \"rms_norm_eps\": 1e-05,\n"
        "  \"rope_scaling\": null,\n  \"rope_theta\": 10000.0,\n  \"tie_word_embeddings\": true,\n"
        "  \"transformers_version\": \"4.51.0\",\n  \"use_cache\": true,\n  \"vocab_size\": 261\n}");
    hf_append(w->generation, "{\"bos_token_id\": 258, \"eos_token_id\": [259]}");
    buf_init(&text, 0);
    tiny_json_write(&(struct tiny_json){0}, &text);
    assert_true(text.length < HF_TEXT_BYTES);
    memcpy(w->tokenizer, text.data, text.length);
    buf_free(&text);
    hf_append(w->header, "{");
    hf_tensor(w, "model.embed_tokens.weight", HF_V, HF_E);
    for (int l = 0; l < HF_LAYERS; l++) hf_layer(w, l);
    hf_tensor(w, "model.norm.weight", HF_E, 0);
}

static inline void hf_close_header(struct hf_writer *w)
{
    size_t length = strlen(w->header);
    if (!length || w->header[length - 1] != '}' || w->header[length - 2] != '}')
        hf_append(w->header, length > 1 ? ",\"__metadata__\":{\"format\":\"pt\"}}" : "}");
    while (strlen(w->header) % 8) hf_append(w->header, " ");
}

/* The weights' file, from header and data. */
static inline void hf_finish(struct hf_writer *w)
{
    size_t length = strlen(w->header);
    uint64_t claimed = w->header_claimed ? w->header_claimed : length;
    memcpy(w->file, &claimed, 8);
    memcpy(w->file + 8, w->header, length);
    memcpy(w->file + 8 + length, w->data, w->data_bytes);
    w->file_bytes = 8 + length + w->data_bytes;
}

static inline void hf_write_text(const struct hf_writer *w, const char *name, const char *text)
{
    char path[512];
    if (*text) {
        tiny_folder_write(&w->folder, name, text, strlen(text));
    } else {
        snprintf(path, sizeof path, "%s/%s", w->folder.path, name);
        unlink(path);
    }
}

static inline void hf_write(struct hf_writer *w)
{
    hf_finish(w);
    hf_write_text(w, "config.json", w->config);
    hf_write_text(w, "generation_config.json", w->generation);
    hf_write_text(w, "tokenizer.json", w->tokenizer);
    hf_write_text(w, "model.safetensors.index.json", w->index);
    tiny_folder_write(&w->folder, w->file_name, (const char *)w->file, w->file_bytes);
}

/* The first `find` in a text becomes `replace`. */
static inline void hf_replace(char *text, const char *find, const char *replace)
{
    char *at = strstr(text, find);
    if (!at) fail_msg("\"%s\" is not in the text", find);
    size_t found = strlen(find), put = strlen(replace), rest = strlen(at + found) + 1;
    assert_true(strlen(text) - found + put < HF_TEXT_BYTES);
    memmove(at + put, at + found, rest);
    memcpy(at, replace, put);
}

/* The value of a key, to the comma or the end of its line, becomes `value`. */
static inline void hf_set(char *text, const char *key, const char *value)
{
    char quoted[96], line[512];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char *at = strstr(text, quoted);
    if (!at) fail_msg("key %s is not in the text", key);
    const char *end = strchr(at, '\n');
    size_t length = (size_t)(end - at) - (end[-1] == ',');
    assert_true(length < sizeof line);
    memcpy(line, at, length);
    line[length] = 0;
    char with[1024];
    snprintf(with, sizeof with, "%s%s", quoted, value);
    hf_replace(text, line, with);
}

/* A further key, first in the object. */
static inline void hf_add(char *text, const char *key, const char *value)
{
    char with[1024];
    snprintf(with, sizeof with, "{\n  \"%s\": %s,", key, value);
    hf_replace(text, "{", with);
}

#endif
