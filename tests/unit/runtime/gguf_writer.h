/* A GGUF file as an editable document, for tests: set keys and tensors, change them at will, then lay the bytes out.
 *
 * writer_finish records where every length, count, type, dimension and offset stands, so that a suite can mutate each.
 * The tiny models (2 layers, 20 tokens, about 20 KB) are complete: model_open takes them. Everything is fixed-size; the
 * writer aborts through cmocka when a test asks for too much. */
#ifndef TESTS_UNIT_RUNTIME_GGUF_WRITER_H
#define TESTS_UNIT_RUNTIME_GGUF_WRITER_H

#include "tests/unit/unit.h"

#include "kernels/tensor_type.h"
#include "runtime/model/gguf.h"

enum { WRITER_KEYS = 64, WRITER_TENSORS = 64, WRITER_FIELDS = 2048, WRITER_VALUE_BYTES = 1024, WRITER_BYTES = 1 << 18 };

struct writer_key {
    char name[96];
    uint32_t type, item_type;
    uint64_t count;
    uint8_t value[WRITER_VALUE_BYTES];
    size_t value_bytes;
};

struct writer_tensor {
    char name[96];
    uint32_t dims_count;
    uint64_t dims[8];
    uint32_t type;
    uint64_t offset; /* UINT64_MAX: the next free place */
};

enum field_kind {
    FIELD_MAGIC,
    FIELD_VERSION,
    FIELD_TENSORS,
    FIELD_KEYS,
    FIELD_NAME_LENGTH,
    FIELD_TYPE,
    FIELD_ITEM_TYPE,
    FIELD_COUNT,
    FIELD_TEXT_LENGTH,
    FIELD_VALUE,
    FIELD_DIMS_COUNT,
    FIELD_DIM,
    FIELD_TENSOR_TYPE,
    FIELD_OFFSET
};

struct writer_field {
    enum field_kind kind;
    size_t at;
    uint32_t bytes;
    char owner[96]; /* the key or tensor it belongs to */
};

struct writer {
    uint32_t version, alignment;
    uint64_t keys_claimed, tensors_claimed; /* UINT64_MAX: the true counts */
    struct writer_key keys[WRITER_KEYS];
    size_t keys_count;
    struct writer_tensor tensors[WRITER_TENSORS];
    size_t tensors_count;
    struct writer_field fields[WRITER_FIELDS];
    size_t fields_count;
    uint8_t data[WRITER_BYTES];
    size_t length, header_bytes;
};

/* --- editing --- */

static inline struct writer_key *writer_key(struct writer *w, const char *name)
{
    for (size_t i = 0; i < w->keys_count; i++)
        if (strcmp(w->keys[i].name, name) == 0) return &w->keys[i];
    return NULL;
}

static inline struct writer_key *writer_add(struct writer *w, const char *name, uint32_t type)
{
    assert_true(w->keys_count < WRITER_KEYS);
    struct writer_key *key = &w->keys[w->keys_count++];
    *key = (struct writer_key){.type = type, .item_type = type, .count = 1};
    snprintf(key->name, sizeof key->name, "%s", name);
    return key;
}

/* The key of that name, emptied; new when there is none. */
static inline struct writer_key *writer_reset(struct writer *w, const char *name, uint32_t type)
{
    struct writer_key *key = writer_key(w, name);
    if (!key) return writer_add(w, name, type);
    key->type = key->item_type = type;
    key->count = 1;
    key->value_bytes = 0;
    return key;
}

static inline void writer_put(struct writer_key *key, const void *bytes, size_t length)
{
    assert_true(key->value_bytes + length <= WRITER_VALUE_BYTES);
    memcpy(key->value + key->value_bytes, bytes, length);
    key->value_bytes += length;
}

static inline void writer_put_text(struct writer_key *key, const char *text)
{
    uint64_t length = strlen(text);
    writer_put(key, &length, 8);
    writer_put(key, text, length);
}

static inline void writer_u32(struct writer *w, const char *name, uint32_t value)
{
    writer_put(writer_reset(w, name, GGUF_U32), &value, 4);
}
static inline void writer_i32(struct writer *w, const char *name, int32_t value)
{
    writer_put(writer_reset(w, name, GGUF_I32), &value, 4);
}
static inline void writer_u64(struct writer *w, const char *name, uint64_t value)
{
    writer_put(writer_reset(w, name, GGUF_U64), &value, 8);
}
static inline void writer_f32(struct writer *w, const char *name, float value)
{
    writer_put(writer_reset(w, name, GGUF_F32), &value, 4);
}
static inline void writer_bool(struct writer *w, const char *name, uint8_t value)
{
    writer_put(writer_reset(w, name, GGUF_BOOL), &value, 1);
}
static inline void writer_text(struct writer *w, const char *name, const char *text)
{
    writer_put_text(writer_reset(w, name, GGUF_TEXT), text);
}
static inline struct writer_key *writer_array(struct writer *w, const char *name, uint32_t item_type)
{
    struct writer_key *key = writer_reset(w, name, GGUF_ARRAY);
    key->item_type = item_type;
    key->count = 0;
    return key;
}

static inline void writer_drop(struct writer *w, const char *name)
{
    struct writer_key *key = writer_key(w, name);
    assert_non_null(key);
    *key = w->keys[--w->keys_count];
}

static inline struct writer_tensor *writer_tensor(struct writer *w, const char *name)
{
    for (size_t i = 0; i < w->tensors_count; i++)
        if (strcmp(w->tensors[i].name, name) == 0) return &w->tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static inline struct writer_tensor *writer_add_tensor(struct writer *w, const char *name, uint32_t type, uint64_t cols,
                                                      uint64_t rows)
{
    assert_true(w->tensors_count < WRITER_TENSORS);
    struct writer_tensor *tensor = &w->tensors[w->tensors_count++];
    *tensor =
        (struct writer_tensor){.dims_count = rows ? 2 : 1, .dims = {cols, rows}, .type = type, .offset = UINT64_MAX};
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    return tensor;
}

static inline void writer_drop_tensor(struct writer *w, const char *name)
{
    struct writer_tensor *tensor = writer_tensor(w, name);
    *tensor = w->tensors[--w->tensors_count];
}

/* --- laying out --- */

static inline void writer_bytes(struct writer *w, const void *bytes, size_t length)
{
    assert_true(w->length + length <= WRITER_BYTES);
    memcpy(w->data + w->length, bytes, length);
    w->length += length;
}

static inline void writer_field(struct writer *w, enum field_kind kind, const char *owner, const void *bytes,
                                uint32_t length)
{
    assert_true(w->fields_count < WRITER_FIELDS);
    struct writer_field *field = &w->fields[w->fields_count++];
    *field = (struct writer_field){.kind = kind, .at = w->length, .bytes = length};
    snprintf(field->owner, sizeof field->owner, "%s", owner);
    writer_bytes(w, bytes, length);
}

static inline void writer_name(struct writer *w, const char *name)
{
    uint64_t length = strlen(name);
    writer_field(w, FIELD_NAME_LENGTH, name, &length, 8);
    writer_bytes(w, name, length);
}

static inline void writer_finish_key(struct writer *w, const struct writer_key *key)
{
    writer_name(w, key->name);
    writer_field(w, FIELD_TYPE, key->name, &key->type, 4);
    if (key->type == GGUF_ARRAY) {
        writer_field(w, FIELD_ITEM_TYPE, key->name, &key->item_type, 4);
        writer_field(w, FIELD_COUNT, key->name, &key->count, 8);
    }
    if (key->item_type != GGUF_TEXT) {
        if (key->value_bytes <= 8)
            writer_field(w, FIELD_VALUE, key->name, key->value, (uint32_t)key->value_bytes);
        else
            writer_bytes(w, key->value, key->value_bytes);
        return;
    }
    for (size_t at = 0; at < key->value_bytes;) { /* texts: their lengths are fields */
        uint64_t length;
        memcpy(&length, key->value + at, 8);
        writer_field(w, FIELD_TEXT_LENGTH, key->name, key->value + at, 8);
        writer_bytes(w, key->value + at + 8, length);
        at += 8 + length;
    }
}

static inline uint64_t writer_tensor_bytes(const struct writer_tensor *tensor)
{
    const struct tensor_type_info *info = tensor_type_info(tensor->type);
    uint64_t bytes = info ? tensor_row_bytes(info, tensor->dims[0]) : 64;
    for (uint32_t d = 1; d < tensor->dims_count && d < 8; d++) bytes *= tensor->dims[d];
    return bytes < 65536 ? bytes : 64; /* a mutated shape must not make the writer lay out gigabytes */
}

/* Bytes of the whole file into w->data; tensor data is a pattern of small positive floats or plain bytes. */
static inline void writer_finish(struct writer *w)
{
    uint64_t tensors = w->tensors_claimed == UINT64_MAX ? w->tensors_count : w->tensors_claimed;
    uint64_t keys = w->keys_claimed == UINT64_MAX ? w->keys_count : w->keys_claimed, offset = 0;
    w->length = w->fields_count = 0;
    writer_field(w, FIELD_MAGIC, "magic", "GGUF", 4);
    writer_field(w, FIELD_VERSION, "version", &w->version, 4);
    writer_field(w, FIELD_TENSORS, "tensors", &tensors, 8);
    writer_field(w, FIELD_KEYS, "keys", &keys, 8);
    for (size_t i = 0; i < w->keys_count; i++) writer_finish_key(w, &w->keys[i]);
    for (size_t i = 0; i < w->tensors_count; i++) {
        struct writer_tensor *t = &w->tensors[i];
        uint64_t place = t->offset == UINT64_MAX ? offset : t->offset;
        writer_name(w, t->name);
        writer_field(w, FIELD_DIMS_COUNT, t->name, &t->dims_count, 4);
        for (uint32_t d = 0; d < t->dims_count && d < 8; d++) writer_field(w, FIELD_DIM, t->name, &t->dims[d], 8);
        writer_field(w, FIELD_TENSOR_TYPE, t->name, &t->type, 4);
        writer_field(w, FIELD_OFFSET, t->name, &place, 8);
        offset += (writer_tensor_bytes(t) + w->alignment - 1) / w->alignment * w->alignment;
    }
    w->header_bytes = w->length;
    while (w->length % w->alignment) writer_bytes(w, "", 1);
    for (size_t i = 0; i < w->tensors_count; i++) {
        float pattern = 0.25f;
        for (uint64_t at = 0; at < writer_tensor_bytes(&w->tensors[i]); at += 4) writer_bytes(w, &pattern, 4);
        if (i + 1 < w->tensors_count) /* no padding after the last tensor: cutting one byte must be seen */
            while (w->length % w->alignment) writer_bytes(w, "", 1);
    }
}

/* --- tiny models --- */

enum {
    TINY_LAYERS = 2,
    TINY_WIDTH = 32,
    TINY_HEADS = 2,
    TINY_KV_HEADS = 1,
    TINY_HEAD = 16,
    TINY_FF = 64,
    TINY_VOCAB = 20
};

static inline void tiny_vocab(struct writer *w)
{
    static const char *const tokens[TINY_VOCAB] = {"<|endoftext|>",
                                                   "<|im_start|>",
                                                   "<|im_end|>",
                                                   "a",
                                                   "b",
                                                   "c",
                                                   "d",
                                                   "e",
                                                   "f",
                                                   "ab",
                                                   "cd",
                                                   "abcd",
                                                   "g",
                                                   "h",
                                                   "i",
                                                   "j",
                                                   "<|eot_id|>",
                                                   "k",
                                                   "l",
                                                   "m"};
    struct writer_key *key = writer_array(w, "tokenizer.ggml.tokens", GGUF_TEXT);
    for (int i = 0; i < TINY_VOCAB; i++, key->count++) writer_put_text(key, tokens[i]);
    key = writer_array(w, "tokenizer.ggml.token_type", GGUF_I32);
    for (int32_t i = 0; i < TINY_VOCAB; i++, key->count++) writer_put(key, &(int32_t){i < 3 || i == 16 ? 3 : 1}, 4);
    key = writer_array(w, "tokenizer.ggml.merges", GGUF_TEXT);
    static const char *const merges[] = {"a b", "c d", "ab cd"};
    for (int i = 0; i < 3; i++, key->count++) writer_put_text(key, merges[i]);
    writer_text(w, "tokenizer.ggml.model", "gpt2");
    writer_text(w, "tokenizer.ggml.pre", "smollm");
    writer_u32(w, "tokenizer.ggml.bos_token_id", 1);
    writer_u32(w, "tokenizer.ggml.eos_token_id", 2);
    writer_u32(w, "tokenizer.ggml.unknown_token_id", 0);
    writer_u32(w, "tokenizer.ggml.padding_token_id", 2);
    writer_bool(w, "tokenizer.ggml.add_bos_token", 0);
    writer_text(w, "tokenizer.chat_template", "{% for m in messages %}{{ m['content'] }}\n{% endfor %}");
}

/* A key of the architecture: "<arch>.<suffix>", in a buffer that lives until the next call. */
static inline const char *arch_key(const char *arch, const char *suffix)
{
    static char name[96];
    snprintf(name, sizeof name, "%s.%s", arch, suffix);
    return name;
}

static inline void tiny_tensors(struct writer *w, bool bias, bool qk_norm, bool post_norms)
{
    static const struct {
        const char *name;
        uint32_t type, cols, rows;
        int when; /* 1: bias, 2: qk_norm, 3: post_norms */
    } rows[] = {
        {"attn_norm.weight", TENSOR_F32, TINY_WIDTH, 0, 0},
        {"attn_q.weight", TENSOR_Q4_1, TINY_WIDTH, TINY_HEADS * TINY_HEAD, 0},
        {"attn_k.weight", TENSOR_Q4_1, TINY_WIDTH, TINY_KV_HEADS * TINY_HEAD, 0},
        {"attn_v.weight", TENSOR_F16, TINY_WIDTH, TINY_KV_HEADS * TINY_HEAD, 0},
        {"attn_output.weight", TENSOR_Q5_0, TINY_HEADS * TINY_HEAD, TINY_WIDTH, 0},
        {"attn_q.bias", TENSOR_F32, TINY_HEADS * TINY_HEAD, 0, 1},
        {"attn_k.bias", TENSOR_F32, TINY_KV_HEADS * TINY_HEAD, 0, 1},
        {"attn_v.bias", TENSOR_F32, TINY_KV_HEADS * TINY_HEAD, 0, 1},
        {"attn_q_norm.weight", TENSOR_F32, TINY_HEAD, 0, 2},
        {"attn_k_norm.weight", TENSOR_F32, TINY_HEAD, 0, 2},
        {"post_attention_norm.weight", TENSOR_F32, TINY_WIDTH, 0, 3},
        {"ffn_norm.weight", TENSOR_F32, TINY_WIDTH, 0, 0},
        {"post_ffw_norm.weight", TENSOR_F32, TINY_WIDTH, 0, 3},
        {"ffn_gate.weight", TENSOR_Q4_0, TINY_WIDTH, TINY_FF, 0},
        {"ffn_up.weight", TENSOR_Q8_0, TINY_WIDTH, TINY_FF, 0},
        {"ffn_down.weight", TENSOR_BF16, TINY_FF, TINY_WIDTH, 0},
    };
    writer_add_tensor(w, "token_embd.weight", TENSOR_Q8_0, TINY_WIDTH, TINY_VOCAB);
    writer_add_tensor(w, "output_norm.weight", TENSOR_F32, TINY_WIDTH, 0);
    for (int layer = 0; layer < TINY_LAYERS; layer++)
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            char name[96];
            const bool there[] = {true, bias, qk_norm, post_norms};
            if (!there[rows[i].when]) continue;
            snprintf(name, sizeof name, "blk.%d.%s", layer, rows[i].name);
            writer_add_tensor(w, name, rows[i].type, rows[i].cols, rows[i].rows);
        }
}

/* A complete tied model of one of the known families; call writer_finish after the last edit. */
static inline void tiny_model(struct writer *w, const char *arch)
{
    w->version = 3;
    w->alignment = 32;
    w->keys_claimed = w->tensors_claimed = UINT64_MAX;
    w->keys_count = w->tensors_count = w->fields_count = w->length = 0;
    writer_text(w, "general.architecture", arch);
    writer_text(w, "general.name", "tiny");
    writer_u32(w, arch_key(arch, "block_count"), TINY_LAYERS);
    writer_u32(w, arch_key(arch, "context_length"), 128);
    writer_u32(w, arch_key(arch, "embedding_length"), TINY_WIDTH);
    writer_u32(w, arch_key(arch, "feed_forward_length"), TINY_FF);
    writer_u32(w, arch_key(arch, "attention.head_count"), TINY_HEADS);
    writer_u32(w, arch_key(arch, "attention.head_count_kv"), TINY_KV_HEADS);
    writer_f32(w, arch_key(arch, "attention.layer_norm_rms_epsilon"), 1e-5f);
    writer_f32(w, arch_key(arch, "rope.freq_base"), 10000.0f);
    writer_u32(w, arch_key(arch, "rope.dimension_count"), TINY_HEAD);
    writer_u32(w, arch_key(arch, "vocab_size"), TINY_VOCAB);
    tiny_vocab(w);
    bool gemma = strcmp(arch, "gemma3") == 0;
    tiny_tensors(w, strcmp(arch, "qwen2") == 0, gemma || strcmp(arch, "qwen3") == 0, gemma);
}

/* A copy of length bytes that ends where its allocation ends, so that a sanitizer sees the first byte read past it. */
static inline void *exact_copy(const void *bytes, size_t length)
{
    void *copy = NULL;
    assert_int_equal(posix_memalign(&copy, 64, length ? length : 1), 0);
    memcpy(copy, bytes, length);
    return copy;
}

#endif
