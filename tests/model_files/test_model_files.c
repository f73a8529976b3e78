/* Mutated model files against the reader; see README.md beside this file. */
#include "tests/unit/runtime/gguf_writer.h"

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/model/model.h"

#include <fcntl.h>
#include <math.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static struct writer writer;
static size_t opened, refused; /* over the whole program */
static uint64_t slowest_ns;
static size_t asked_bytes;

static bool count_bytes(void *state, size_t size_bytes)
{
    (void)state;
    asked_bytes += size_bytes;
    return true;
}

/* Opens bytes as a model and checks what holds for every file, good or bad. */
static enum status try_open(const void *bytes, size_t length, struct error *err)
{
    struct model *model = NULL;
    void *copy = exact_copy(bytes, length);
    asked_bytes = 0;
    err->message[0] = 0;
    mem_hook_set(count_bytes, NULL);
    uint64_t start_ns = clock_now_ns(clock_system());
    enum status status = model_open_memory(copy, length, &model, err);
    uint64_t took_ns = clock_now_ns(clock_system()) - start_ns;
    mem_hook_set(NULL, NULL);
    if (took_ns > slowest_ns) slowest_ns = took_ns;
    opened++;
    if (status != ST_OK) {
        refused++;
        assert_null(model);
        assert_true(status == ST_INVAL || status == ST_LIMIT);
        assert_in_range(strlen(err->message), 10, sizeof err->message - 1);
        for (const char *c = err->message; *c; c++) assert_false((unsigned char)*c < 0x20 || *c == 0x7f);
    }
    assert_in_range(asked_bytes, 0, 65536 + 64 * length);
    model_close(model);
    free(copy);
    return status;
}

/* --- systematic --- */

static const uint64_t wild[] = {0,
                                1,
                                2,
                                5,
                                31,
                                99,
                                UINT64_C(0x7fffffff),
                                UINT64_C(0x80000000),
                                UINT64_C(0xffffffff),
                                (UINT64_C(1) << 42) + 1,
                                INT64_MAX,
                                (uint64_t)INT64_MAX + 1,
                                UINT64_MAX - 31,
                                UINT64_MAX};

/* May the file stay sound with this value in this field? Only what the format leaves free. */
static bool may_pass(const struct writer_field *field, uint64_t value)
{
    if (field->bytes < 8) value &= (UINT64_C(1) << 8 * field->bytes) - 1;
    switch (field->kind) {
    case FIELD_VALUE: return true;                                                       /* judged by hand below */
    case FIELD_VERSION: return value == 2;                                               /* the same layout */
    case FIELD_TYPE: return value == GGUF_U32 || value == GGUF_I32 || value == GGUF_F32; /* of equal size */
    case FIELD_TENSOR_TYPE:
        return tensor_type_info((uint32_t)value) && value != TENSOR_F32; /* a matrix of fewer bytes */
    default: return false;
    }
}

static void mutate_fields(const char *arch)
{
    static uint8_t bytes[WRITER_BYTES];
    struct error err;
    size_t tried = 0, passed = 0;
    tiny_model(&writer, arch);
    writer_finish(&writer);
    assert_int_equal(try_open(writer.data, writer.length, &err), ST_OK);
    for (size_t f = 0; f < writer.fields_count; f++)
        for (size_t v = 0; v < sizeof wild / sizeof *wild; v++) {
            const struct writer_field *field = &writer.fields[f];
            uint32_t width = field->bytes < 8 ? field->bytes : 8;
            if (field->kind == FIELD_VALUE && width == 0) continue;
            memcpy(bytes, writer.data, writer.length);
            memcpy(bytes + field->at, &wild[v], width);
            if (memcmp(bytes, writer.data, writer.length) == 0) continue; /* the value that stood there */
            tried++;
            enum status status = try_open(bytes, writer.length, &err);
            if (status == ST_OK && !may_pass(field, wild[v]))
                fail_msg("field %d of %s at byte %zu set to %#llx was taken", (int)field->kind, field->owner, field->at,
                         (unsigned long long)wild[v]);
            passed += status == ST_OK;
        }
    print_message("%s: %zu fields, %zu mutations, %zu harmless\n", arch, writer.fields_count, tried, passed);
}

static void test_model_files_fields(void **state)
{
    (void)state;
    mutate_fields("llama");
    mutate_fields("qwen2");
    mutate_fields("qwen3");
}

static void test_model_files_truncation(void **state)
{
    (void)state;
    struct error err;
    tiny_model(&writer, "llama");
    writer_finish(&writer);
    assert_int_equal(try_open(writer.data, writer.length, &err), ST_OK);
    for (size_t length = 0; length < writer.length; length++)
        if (try_open(writer.data, length, &err) == ST_OK)
            fail_msg("a file cut to %zu of %zu bytes was taken", length, writer.length);
    print_message("%zu truncations, %zu of them in the header\n", writer.length, writer.header_bytes);
}

/* --- by hand --- */

static struct writer_tensor *q0(void)
{
    return writer_tensor(&writer, "blk.0.attn_q.weight");
}

static void edit_text_with_nul(const char *name)
{
    struct writer_key *key = writer_key(&writer, name);
    key->value[9] = 0;
}

#define EDIT(name, body)                                                                                               \
    static void edit_##name(void)                                                                                      \
    {                                                                                                                  \
        body;                                                                                                          \
    }

EDIT(version_0, writer.version = 0)
EDIT(version_1, writer.version = 1)
EDIT(version_4, writer.version = 4)
EDIT(version_big_endian, writer.version = 0x03000000)
EDIT(keys_plus, writer.keys_claimed = writer.keys_count + 1)
EDIT(keys_minus, writer.keys_claimed = writer.keys_count - 1)
EDIT(keys_limit, writer.keys_claimed = limits.gguf_keys + 1)
EDIT(keys_at_limit, writer.keys_claimed = limits.gguf_keys)
EDIT(keys_huge, writer.keys_claimed = UINT64_MAX - 1)
EDIT(tensors_plus, writer.tensors_claimed = writer.tensors_count + 1)
EDIT(tensors_minus, writer.tensors_claimed = writer.tensors_count - 1)
EDIT(tensors_limit, writer.tensors_claimed = limits.gguf_tensors + 1)
EDIT(tensors_at_limit, writer.tensors_claimed = limits.gguf_tensors)
EDIT(tensors_huge, writer.tensors_claimed = UINT64_MAX - 1)
EDIT(tensors_none, writer.tensors_claimed = 0)
EDIT(key_twice, writer_u32(&writer, "llama.x", 1);
     snprintf(writer_key(&writer, "llama.x")->name, 96, "llama.block_count"))
EDIT(key_empty, writer_u32(&writer, "x", 1); writer_key(&writer, "x")->name[0] = 0)
EDIT(nested_array, writer_array(&writer, "test.nested", GGUF_ARRAY)->count = 1)
EDIT(array_limit, writer_array(&writer, "test.long", GGUF_U8)->count = limits.gguf_array_items + 1)
EDIT(array_at_limit, writer_array(&writer, "test.long", GGUF_U8)->count = limits.gguf_array_items)
EDIT(array_wraps, writer_array(&writer, "test.long", GGUF_U64)->count = (UINT64_C(1) << 61) + 1)
EDIT(array_texts, writer_array(&writer, "test.long", GGUF_TEXT)->count = 4000000)
EDIT(array_type, writer_array(&writer, "test.odd", 13)->count = 0)
EDIT(key_type_13, writer_reset(&writer, "test.odd", 13))
EDIT(bool_2, writer_bool(&writer, "test.flag", 2))
EDIT(bool_array, struct writer_key *k = writer_array(&writer, "test.flags", GGUF_BOOL); writer_put(k, "\1\0\3", 3);
     k->count = 3)
EDIT(alignment_0, writer_u32(&writer, "general.alignment", 0))
EDIT(alignment_4, writer_u32(&writer, "general.alignment", 4))
EDIT(alignment_33, writer_u32(&writer, "general.alignment", 33))
EDIT(alignment_48, writer_u32(&writer, "general.alignment", 48))
EDIT(alignment_big, writer_u32(&writer, "general.alignment", 131072))
EDIT(alignment_2_31, writer_u32(&writer, "general.alignment", 0x80000000u))
EDIT(alignment_text, writer_text(&writer, "general.alignment", "32"))
EDIT(alignment_other, writer_u32(&writer, "general.alignment", 4096)) /* tensors stand at multiples of 32 */
EDIT(tensor_twice, snprintf(q0()->name, 96, "blk.1.attn_q.weight"))
EDIT(tensor_empty, q0()->name[0] = 0)
EDIT(tensor_long, snprintf(q0()->name, 96, "%065d", 1))
EDIT(dims_0, q0()->dims_count = 0)
EDIT(dims_5, q0()->dims_count = 5; for (int i = 2; i < 5; i++) q0()->dims[i] = 1)
EDIT(dim_zero, q0()->dims[1] = 0)
EDIT(dim_row_zero, q0()->dims[0] = 0)
EDIT(dim_2_42, q0()->dims[0] = (UINT64_C(1) << 42) + 1)
EDIT(dim_2_42_rows, q0()->dims[1] = (UINT64_C(1) << 42) + 1)
EDIT(dim_max_2, q0()->dims[0] = INT64_MAX; q0()->dims[1] = 2)
EDIT(dim_max_2_f32, q0()->type = TENSOR_F32; q0()->dims[0] = INT64_MAX; q0()->dims[1] = 2)
EDIT(dim_wraps_0, q0()->type = TENSOR_F32; q0()->dims[0] = UINT64_C(1) << 32; q0()->dims[1] = UINT64_C(1) << 32)
EDIT(dim_wraps_4, q0()->type = TENSOR_F32; q0()->dims[0] = (UINT64_C(1) << 62) + 1; q0()->dims[1] = 4)
EDIT(dim_negative, q0()->dims[0] = UINT64_MAX - 31)
EDIT(dims_4_wrap, q0()->dims_count = 4; for (int i = 0; i < 4; i++) q0()->dims[i] = 1 << 16)
EDIT(dim_block, q0()->dims[0] = 33)
EDIT(dim_swapped, writer_tensor(&writer, "blk.0.ffn_up.weight")->dims[0] = TINY_FF;
     writer_tensor(&writer, "blk.0.ffn_up.weight")->dims[1] = TINY_WIDTH)
EDIT(dim_third, q0()->dims_count = 3; q0()->dims[1] = 16; q0()->dims[2] = 2)
EDIT(vector_as_matrix, writer_tensor(&writer, "blk.0.attn_norm.weight")->dims_count = 2;
     writer_tensor(&writer, "blk.0.attn_norm.weight")->dims[1] = 2)
EDIT(type_q2_k, q0()->type = 10)
EDIT(type_iq, q0()->type = 23)
EDIT(type_gone, q0()->type = 4)
EDIT(type_99, q0()->type = 99)
EDIT(type_max, q0()->type = UINT32_MAX)
EDIT(norm_f16, writer_tensor(&writer, "blk.0.attn_norm.weight")->type = TENSOR_F16)
EDIT(offset_odd, q0()->offset = 33)
EDIT(offset_overlap, q0()->offset = 32)
EDIT(offset_same, q0()->offset = 0)
EDIT(offset_past, q0()->offset = 1 << 20)
EDIT(offset_wraps, q0()->offset = UINT64_MAX - 31)
EDIT(offset_2_63, q0()->offset = UINT64_C(1) << 63)
EDIT(arch_none, writer_drop(&writer, "general.architecture"))
EDIT(arch_other, writer_text(&writer, "general.architecture", "mamba"))
EDIT(arch_empty, writer_text(&writer, "general.architecture", ""))
EDIT(arch_control, writer_text(&writer, "general.architecture", "lla\nma\033[31m"))
EDIT(arch_number, writer_u32(&writer, "general.architecture", 1))
EDIT(type_adapter, writer_text(&writer, "general.type", "adapter"))
EDIT(split, writer_u32(&writer, "split.count", 3))
EDIT(quantization, writer_u32(&writer, "general.quantization_version", 1))
EDIT(layers_none, writer_drop(&writer, "llama.block_count"))
EDIT(layers_0, writer_u32(&writer, "llama.block_count", 0))
EDIT(layers_1, writer_u32(&writer, "llama.block_count", 1))
EDIT(layers_3, writer_u32(&writer, "llama.block_count", 3))
EDIT(layers_512, writer_u32(&writer, "llama.block_count", 512))
EDIT(layers_513, writer_u32(&writer, "llama.block_count", 513))
EDIT(layers_negative, writer_i32(&writer, "llama.block_count", -1))
EDIT(layers_u64, writer_u64(&writer, "llama.block_count", UINT64_C(1) << 32))
EDIT(layers_float, writer_f32(&writer, "llama.block_count", 2.0f))
EDIT(layers_text, writer_text(&writer, "llama.block_count", "2"))
EDIT(layers_array, struct writer_key *k = writer_array(&writer, "llama.block_count", GGUF_U32);
     writer_put(k, "\2\0\0\0", 4); k->count = 1)
EDIT(width_none, writer_drop(&writer, "llama.embedding_length"))
EDIT(width_0, writer_u32(&writer, "llama.embedding_length", 0))
EDIT(width_64, writer_u32(&writer, "llama.embedding_length", 64))
EDIT(width_limit, writer_u32(&writer, "llama.embedding_length", (uint32_t)limits.model_width + 1))
EDIT(ff_none, writer_drop(&writer, "llama.feed_forward_length"))
EDIT(ff_0, writer_u32(&writer, "llama.feed_forward_length", 0))
EDIT(ff_huge, writer_u32(&writer, "llama.feed_forward_length", UINT32_MAX))
EDIT(context_none, writer_drop(&writer, "llama.context_length"))
EDIT(context_0, writer_u32(&writer, "llama.context_length", 0))
EDIT(context_huge, writer_u32(&writer, "llama.context_length", UINT32_MAX))
EDIT(heads_none, writer_drop(&writer, "llama.attention.head_count"))
EDIT(heads_0, writer_u32(&writer, "llama.attention.head_count", 0))
EDIT(heads_3, writer_u32(&writer, "llama.attention.head_count", 3))
EDIT(heads_limit, writer_u32(&writer, "llama.attention.head_count", (uint32_t)limits.model_heads + 1))
EDIT(kv_heads_0, writer_u32(&writer, "llama.attention.head_count_kv", 0))
EDIT(kv_heads_3, writer_u32(&writer, "llama.attention.head_count_kv", 3))
EDIT(kv_heads_4, writer_u32(&writer, "llama.attention.head_count_kv", 4))
EDIT(kv_heads_per_layer, struct writer_key *k = writer_array(&writer, "llama.attention.head_count_kv", GGUF_U32);
     writer_put(k, "\1\0\0\0\2\0\0\0", 8); k->count = 2)
EDIT(key_length, writer_u32(&writer, "llama.attention.key_length", 32))
EDIT(key_length_0, writer_u32(&writer, "llama.attention.key_length", 0))
EDIT(value_length, writer_u32(&writer, "llama.attention.value_length", 8))
EDIT(eps_none, writer_drop(&writer, "llama.attention.layer_norm_rms_epsilon"))
EDIT(eps_0, writer_f32(&writer, "llama.attention.layer_norm_rms_epsilon", 0))
EDIT(eps_negative, writer_f32(&writer, "llama.attention.layer_norm_rms_epsilon", -1e-5f))
EDIT(eps_nan, writer_f32(&writer, "llama.attention.layer_norm_rms_epsilon", NAN))
EDIT(eps_inf, writer_f32(&writer, "llama.attention.layer_norm_rms_epsilon", INFINITY))
EDIT(eps_big, writer_f32(&writer, "llama.attention.layer_norm_rms_epsilon", 1))
EDIT(base_0, writer_f32(&writer, "llama.rope.freq_base", 0))
EDIT(base_negative, writer_f32(&writer, "llama.rope.freq_base", -1))
EDIT(base_nan, writer_f32(&writer, "llama.rope.freq_base", NAN))
EDIT(base_inf, writer_f32(&writer, "llama.rope.freq_base", INFINITY))
EDIT(rope_odd, writer_u32(&writer, "llama.rope.dimension_count", 15))
EDIT(rope_0, writer_u32(&writer, "llama.rope.dimension_count", 0))
EDIT(rope_wide, writer_u32(&writer, "llama.rope.dimension_count", 18))
EDIT(rope_yarn, writer_text(&writer, "llama.rope.scaling.type", "yarn"))
EDIT(rope_longrope, writer_text(&writer, "llama.rope.scaling.type", "longrope"))
EDIT(rope_factor_0, writer_text(&writer, "llama.rope.scaling.type", "linear");
     writer_f32(&writer, "llama.rope.scaling.factor", 0))
EDIT(rope_factor_nan, writer_f32(&writer, "llama.rope.scaling.factor", NAN))
EDIT(rope_attn_factor, writer_f32(&writer, "llama.rope.scaling.attn_factor", -1.2f))
EDIT(rope_yarn_steep, writer_text(&writer, "llama.rope.scaling.type", "yarn");
     writer_f32(&writer, "llama.rope.scaling.factor", 4);
     writer_f32(&writer, "llama.rope.scaling.yarn_ext_factor", 0.5f))
EDIT(rope_long_alone, writer_add_tensor(&writer, "rope_factors_long.weight", TENSOR_F32, 4, 1))
EDIT(rope_freqs_short, writer_add_tensor(&writer, "rope_freqs.weight", TENSOR_F32, 4, 0))
EDIT(attention_scale_0, writer_f32(&writer, "llama.attention.scale", 0))
EDIT(window_text, writer_text(&writer, "llama.attention.sliding_window", "64"))
EDIT(window_pattern, writer_text(&writer, "llama.attention.sliding_window_pattern", "6"))
EDIT(expert_used, writer_u32(&writer, "llama.expert_count", 8); writer_u32(&writer, "llama.expert_used_count", 9))
EDIT(expert_none_used, writer_u32(&writer, "llama.expert_count", 8))
EDIT(experts, writer_u32(&writer, "llama.expert_count", 8); writer_u32(&writer, "llama.expert_used_count", 2))
EDIT(alibi, writer_f32(&writer, "llama.attention.max_alibi_bias", 8))
EDIT(softcap, writer_f32(&writer, "llama.attn_logit_softcapping", 50))
EDIT(logit_scale, writer_f32(&writer, "llama.logit_scale", 0.5f))
EDIT(not_causal, writer_bool(&writer, "llama.attention.causal", 0))
EDIT(unknown_key, writer_u32(&writer, "llama.attention.brand_new", 1))
EDIT(expert_text, writer_text(&writer, "llama.expert_count", "0"))
EDIT(o_bias, writer_add_tensor(&writer, "blk.0.attn_output.bias", TENSOR_F32, TINY_WIDTH, 0))
EDIT(expert_tensor, writer_add_tensor(&writer, "blk.0.ffn_gate_inp.weight", TENSOR_F32, TINY_WIDTH, 8))
EDIT(layer_2_tensor, writer_add_tensor(&writer, "blk.2.attn_norm.weight", TENSOR_F32, TINY_WIDTH, 0))
EDIT(layer_01_tensor, writer_add_tensor(&writer, "blk.01.attn_norm.weight", TENSOR_F32, TINY_WIDTH, 0))
EDIT(stray_tensor, writer_add_tensor(&writer, "v.patch_embd.weight", TENSOR_F32, TINY_WIDTH, 0))
EDIT(qk_norm_in_llama, writer_add_tensor(&writer, "blk.0.attn_q_norm.weight", TENSOR_F32, TINY_HEAD, 0))
EDIT(half_bias, writer_add_tensor(&writer, "blk.0.attn_q.bias", TENSOR_F32, TINY_WIDTH, 0))
EDIT(no_embed, writer_drop_tensor(&writer, "token_embd.weight"))
EDIT(no_norm, writer_drop_tensor(&writer, "output_norm.weight"))
EDIT(no_down, writer_drop_tensor(&writer, "blk.1.ffn_down.weight"))
EDIT(head_shape, writer_add_tensor(&writer, "output.weight", TENSOR_F16, TINY_WIDTH, TINY_VOCAB + 1))
EDIT(embed_rows, writer_tensor(&writer, "token_embd.weight")->dims[1] = TINY_VOCAB - 1)
EDIT(vocab_key, writer_u32(&writer, "llama.vocab_size", TINY_VOCAB + 1))
EDIT(tokens_none, writer_drop(&writer, "tokenizer.ggml.tokens"))
EDIT(tokens_empty, writer_array(&writer, "tokenizer.ggml.tokens", GGUF_TEXT))
EDIT(tokens_numbers, struct writer_key *k = writer_array(&writer, "tokenizer.ggml.tokens", GGUF_U32);
     writer_put(k, "\1\0\0\0", 4); k->count = 1)
EDIT(tokenizer_none, writer_drop(&writer, "tokenizer.ggml.model"))
EDIT(tokenizer_nul, edit_text_with_nul("tokenizer.ggml.model"))
EDIT(tokenizer_long,
     writer_text(&writer, "tokenizer.ggml.model", "a name that is longer than any name of a tokeniser is"))
EDIT(pre_number, writer_u32(&writer, "tokenizer.ggml.pre", 1))
EDIT(kinds_short, writer_key(&writer, "tokenizer.ggml.token_type")->count--;
     writer_key(&writer, "tokenizer.ggml.token_type")->value_bytes -= 4)
EDIT(kinds_7, writer_key(&writer, "tokenizer.ggml.token_type")->value[4] = 7)
EDIT(kinds_negative, memset(writer_key(&writer, "tokenizer.ggml.token_type")->value, 0xff, 4))
EDIT(scores_short, struct writer_key *k = writer_array(&writer, "tokenizer.ggml.scores", GGUF_F32);
     writer_put(k, "\0\0\0\0", 4); k->count = 1)
EDIT(merge_one_part, struct writer_key *k = writer_key(&writer, "tokenizer.ggml.merges"); writer_put_text(k, "abc");
     k->count++)
EDIT(merge_empty, struct writer_key *k = writer_key(&writer, "tokenizer.ggml.merges"); writer_put_text(k, "");
     k->count++)
EDIT(merge_edge, struct writer_key *k = writer_key(&writer, "tokenizer.ggml.merges"); writer_put_text(k, " ab");
     k->count++)
EDIT(bos_count, writer_u32(&writer, "tokenizer.ggml.bos_token_id", TINY_VOCAB))
EDIT(eos_max, writer_u32(&writer, "tokenizer.ggml.eos_token_id", UINT32_MAX))
EDIT(eot_negative, writer_i32(&writer, "tokenizer.ggml.eot_token_id", -1))
EDIT(padding_big, writer_u64(&writer, "tokenizer.ggml.padding_token_id", UINT64_MAX))
EDIT(add_bos_without, writer_bool(&writer, "tokenizer.ggml.add_bos_token", 1);
     writer_drop(&writer, "tokenizer.ggml.bos_token_id"))
EDIT(add_bos_number, writer_u32(&writer, "tokenizer.ggml.add_bos_token", 1))
EDIT(template_nul, edit_text_with_nul("tokenizer.chat_template"))
EDIT(template_utf8, writer_key(&writer, "tokenizer.chat_template")->value[9] = 0xff)

#define ROW(name, status, word)                                                                                        \
    {                                                                                                                  \
#name, edit_##name, status, word                                                                               \
    }
static const struct {
    const char *name;
    void (*edit)(void);
    enum status status;
    const char *word; /* that the message must contain */
} edits[] = {
    ROW(version_0, ST_INVAL, "version 0"),
    ROW(version_1, ST_INVAL, "version 1"),
    ROW(version_4, ST_INVAL, "version 4"),
    ROW(version_big_endian, ST_INVAL, "big-endian"),
    ROW(keys_plus, ST_INVAL, "damaged"),
    ROW(keys_minus, ST_INVAL, "tensor"),
    ROW(keys_limit, ST_LIMIT, "gguf_keys"),
    ROW(keys_at_limit, ST_INVAL, "do not fit"),
    ROW(keys_huge, ST_LIMIT, "gguf_keys"),
    ROW(tensors_plus, ST_INVAL, ""),
    ROW(tensors_minus, ST_INVAL, ""),
    ROW(tensors_limit, ST_LIMIT, "gguf_tensors"),
    ROW(tensors_at_limit, ST_INVAL, "do not fit"),
    ROW(tensors_huge, ST_LIMIT, "gguf_tensors"),
    ROW(tensors_none, ST_INVAL, "missing"),
    ROW(key_twice, ST_INVAL, "llama.block_count stands twice"),
    ROW(key_empty, ST_INVAL, "empty"),
    ROW(nested_array, ST_INVAL, "array of arrays"),
    ROW(array_limit, ST_LIMIT, "gguf_array_items"),
    ROW(array_at_limit, ST_INVAL, "do not fit"),
    ROW(array_wraps, ST_LIMIT, "gguf_array_items"),
    ROW(array_texts, ST_INVAL, "do not fit"),
    ROW(array_type, ST_INVAL, "type 13"),
    ROW(key_type_13, ST_INVAL, "type 13"),
    ROW(bool_2, ST_INVAL, "bool"),
    ROW(bool_array, ST_INVAL, "bool is 3"),
    ROW(alignment_0, ST_INVAL, "power of two"),
    ROW(alignment_4, ST_INVAL, "power of two"),
    ROW(alignment_33, ST_INVAL, "power of two"),
    ROW(alignment_48, ST_INVAL, "power of two"),
    ROW(alignment_big, ST_INVAL, "power of two"),
    ROW(alignment_2_31, ST_INVAL, "power of two"),
    ROW(alignment_text, ST_INVAL, "integer"),
    ROW(alignment_other, ST_INVAL, "alignment 4096"),
    ROW(tensor_twice, ST_INVAL, "stands twice"),
    ROW(tensor_empty, ST_INVAL, "empty"),
    ROW(tensor_long, ST_LIMIT, "65 bytes"),
    ROW(dims_0, ST_INVAL, "0 dimensions"),
    ROW(dims_5, ST_INVAL, "5 dimensions"),
    ROW(dim_zero, ST_INVAL, "dimension 1"),
    ROW(dim_row_zero, ST_INVAL, "dimension 0"),
    ROW(dim_2_42, ST_INVAL, "block"),
    ROW(dim_2_42_rows, ST_INVAL, "end past"),
    ROW(dim_max_2, ST_INVAL, "block"),
    ROW(dim_max_2_f32, ST_INVAL, "63 bits"),
    ROW(dim_wraps_0, ST_INVAL, "63 bits"),
    ROW(dim_wraps_4, ST_INVAL, "63 bits"),
    ROW(dim_negative, ST_INVAL, "dimension 0"),
    ROW(dims_4_wrap, ST_INVAL, "63 bits"),
    ROW(dim_block, ST_INVAL, "multiple of Q4_1's block"),
    ROW(dim_swapped, ST_INVAL, "blk.0.ffn_up.weight has shape"),
    ROW(dim_third, ST_INVAL, "has shape"),
    ROW(vector_as_matrix, ST_INVAL, "has shape"),
    ROW(type_q2_k, ST_INVAL, "Q2_K"),
    ROW(type_iq, ST_INVAL, "IQ4_XS"),
    ROW(type_gone, ST_INVAL, "unknown type 4"),
    ROW(type_99, ST_INVAL, "unknown type 99"),
    ROW(type_max, ST_INVAL, "unknown type"),
    ROW(norm_f16, ST_INVAL, "must be F32"),
    ROW(offset_odd, ST_INVAL, "multiple of the alignment"),
    ROW(offset_overlap, ST_INVAL, "overlap"),
    ROW(offset_same, ST_INVAL, "overlap"),
    ROW(offset_past, ST_INVAL, "end past"),
    ROW(offset_wraps, ST_INVAL, "end past"),
    ROW(offset_2_63, ST_INVAL, "end past"),
    ROW(arch_none, ST_INVAL, "general.architecture"),
    ROW(arch_other, ST_INVAL, "known are: llama, qwen2, qwen3"),
    ROW(arch_empty, ST_INVAL, "known are"),
    ROW(arch_control, ST_INVAL, "known are"),
    ROW(arch_number, ST_INVAL, "must be text"),
    ROW(type_adapter, ST_INVAL, "adapter"),
    ROW(split, ST_INVAL, "split.count"),
    ROW(quantization, ST_INVAL, "quantization_version"),
    ROW(layers_none, ST_INVAL, "llama.block_count is missing"),
    ROW(layers_0, ST_INVAL, "at least 1"),
    ROW(layers_1, ST_INVAL, "blk.1."),
    ROW(layers_3, ST_INVAL, "blk.2.attn_norm.weight is missing"),
    ROW(layers_512, ST_INVAL, "blk.2.attn_norm.weight is missing"),
    ROW(layers_513, ST_LIMIT, "limit of 512"),
    ROW(layers_negative, ST_INVAL, "-1"),
    ROW(layers_u64, ST_INVAL, "4294967296"),
    ROW(layers_float, ST_INVAL, "must be an integer"),
    ROW(layers_text, ST_INVAL, "must be an integer"),
    ROW(layers_array, ST_INVAL, "array of u32"),
    ROW(width_none, ST_INVAL, "embedding_length is missing"),
    ROW(width_0, ST_INVAL, "at least 1"),
    ROW(width_64, ST_INVAL, "has shape"),
    ROW(width_limit, ST_LIMIT, "embedding_length"),
    ROW(ff_none, ST_INVAL, "feed_forward_length is missing"),
    ROW(ff_0, ST_INVAL, "feed_forward_length"),
    ROW(ff_huge, ST_LIMIT, "feed_forward_length"),
    ROW(context_none, ST_INVAL, "context_length is missing"),
    ROW(context_0, ST_INVAL, "context_length"),
    ROW(context_huge, ST_LIMIT, "context_length"),
    ROW(heads_none, ST_INVAL, "head_count is missing"),
    ROW(heads_0, ST_INVAL, "head_count"),
    ROW(heads_3, ST_INVAL, "key_length"),
    ROW(heads_limit, ST_LIMIT, "head_count"),
    ROW(kv_heads_0, ST_INVAL, "head_count_kv"),
    ROW(kv_heads_3, ST_INVAL, "do not divide"),
    ROW(kv_heads_4, ST_INVAL, "do not divide"),
    ROW(kv_heads_per_layer, ST_INVAL, "array of u32"),
    ROW(key_length, ST_INVAL, "has shape"),
    ROW(key_length_0, ST_INVAL, "key_length"),
    ROW(value_length, ST_INVAL, "different sizes"),
    ROW(eps_none, ST_INVAL, "epsilon is missing"),
    ROW(eps_0, ST_INVAL, "epsilon"),
    ROW(eps_negative, ST_INVAL, "epsilon"),
    ROW(eps_nan, ST_INVAL, "finite"),
    ROW(eps_inf, ST_INVAL, "finite"),
    ROW(eps_big, ST_INVAL, "epsilon"),
    ROW(base_0, ST_INVAL, "freq_base"),
    ROW(base_negative, ST_INVAL, "freq_base"),
    ROW(base_nan, ST_INVAL, "finite"),
    ROW(base_inf, ST_INVAL, "finite"),
    ROW(rope_odd, ST_INVAL, "dimension_count"),
    ROW(rope_0, ST_INVAL, "dimension_count"),
    ROW(rope_wide, ST_INVAL, "dimension_count"),
    ROW(rope_yarn, ST_INVAL, "YaRN"),
    ROW(rope_longrope, ST_INVAL, "LongRoPE"),
    ROW(rope_factor_0, ST_INVAL, "factor"),
    ROW(rope_factor_nan, ST_INVAL, "finite"),
    ROW(rope_attn_factor, ST_INVAL, "attn_factor"),
    ROW(rope_freqs_short, ST_INVAL, "rope_freqs.weight has shape"),
    ROW(attention_scale_0, ST_INVAL, "attention.scale"),
    ROW(rope_yarn_steep, ST_INVAL, "plain frequencies"),
    ROW(rope_long_alone, ST_INVAL, "rope_factors_short"),
    ROW(window_text, ST_INVAL, "sliding_window"),
    ROW(window_pattern, ST_INVAL, "sliding_window_pattern"),
    ROW(expert_used, ST_LIMIT, "expert_used_count"),
    ROW(expert_none_used, ST_INVAL, "expert_used_count"),
    ROW(experts, ST_INVAL, "ffn_gate_inp"),
    ROW(alibi, ST_INVAL, "ALiBi"),
    ROW(softcap, ST_INVAL, "soft-capped"),
    ROW(logit_scale, ST_INVAL, "scaled logits"),
    ROW(not_causal, ST_INVAL, "not causal"),
    ROW(unknown_key, ST_INVAL, "llama.attention.brand_new"),
    ROW(expert_text, ST_INVAL, "expert_count"),
    ROW(o_bias, ST_INVAL, "blk.0.attn_output.bias has no place"),
    ROW(expert_tensor, ST_INVAL, "blk.0.ffn_gate_inp.weight has no place"),
    ROW(layer_2_tensor, ST_INVAL, "blk.2.attn_norm.weight has no place"),
    ROW(layer_01_tensor, ST_INVAL, "blk.01.attn_norm.weight has no place"),
    ROW(stray_tensor, ST_INVAL, "v.patch_embd.weight has no place"),
    ROW(qk_norm_in_llama, ST_INVAL, "blk.0.attn_q_norm.weight has no place"),
    ROW(half_bias, ST_INVAL, "blk.0.attn_k.bias is missing"),
    ROW(no_embed, ST_INVAL, "token_embd.weight is missing"),
    ROW(no_norm, ST_INVAL, "output_norm.weight is missing"),
    ROW(no_down, ST_INVAL, "blk.1.ffn_down.weight is missing"),
    ROW(head_shape, ST_INVAL, "output.weight has shape"),
    ROW(embed_rows, ST_INVAL, "token_embd.weight has shape"),
    ROW(vocab_key, ST_INVAL, "vocab_size"),
    ROW(tokens_none, ST_INVAL, "tokenizer.ggml.tokens is missing"),
    ROW(tokens_empty, ST_INVAL, "0 tokens"),
    ROW(tokens_numbers, ST_INVAL, "array of text"),
    ROW(tokenizer_none, ST_INVAL, "tokenizer.ggml.model is missing"),
    ROW(tokenizer_nul, ST_INVAL, "tokenizer.ggml.model"),
    ROW(tokenizer_long, ST_INVAL, "tokenizer.ggml.model"),
    ROW(pre_number, ST_INVAL, "tokenizer.ggml.pre"),
    ROW(kinds_short, ST_INVAL, "19 items for 20 tokens"),
    ROW(kinds_7, ST_INVAL, "kind 7"),
    ROW(kinds_negative, ST_INVAL, "kind -1"),
    ROW(scores_short, ST_INVAL, "1 items for 20 tokens"),
    ROW(merge_one_part, ST_INVAL, "merge 3"),
    ROW(merge_empty, ST_INVAL, "merge 3"),
    ROW(merge_edge, ST_INVAL, "merge 3"),
    ROW(bos_count, ST_INVAL, "only 20 tokens"),
    ROW(eos_max, ST_INVAL, "only 20 tokens"),
    ROW(eot_negative, ST_INVAL, "-1"),
    ROW(padding_big, ST_INVAL, "padding_token_id"),
    ROW(add_bos_without, ST_INVAL, "bos_token_id is missing"),
    ROW(add_bos_number, ST_INVAL, "must be bool"),
    ROW(template_nul, ST_INVAL, "chat_template"),
    ROW(template_utf8, ST_INVAL, "chat_template"),
};

static void test_model_files_by_hand(void **state)
{
    (void)state;
    struct error err;
    size_t count = sizeof edits / sizeof *edits;
    for (size_t i = 0; i < count; i++) {
        tiny_model(&writer, "llama");
        edits[i].edit();
        writer_finish(&writer);
        enum status status = try_open(writer.data, writer.length, &err);
        if (status != edits[i].status || !strstr(err.message, edits[i].word))
            fail_msg("%s: %s \"%s\", expected %s with \"%s\"", edits[i].name, status_name(status), err.message,
                     status_name(edits[i].status), edits[i].word);
    }
    print_message("%zu edits by hand\n", count);
}

/* Families whose optional parts are needed. */
static void test_model_files_families(void **state)
{
    (void)state;
    struct error err;
    tiny_model(&writer, "qwen2");
    writer_drop_tensor(&writer, "blk.1.attn_v.bias");
    writer_finish(&writer);
    assert_int_equal(try_open(writer.data, writer.length, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "blk.1.attn_v.bias is missing"));
    tiny_model(&writer, "qwen3");
    writer_drop_tensor(&writer, "blk.0.attn_k_norm.weight");
    writer_finish(&writer);
    assert_int_equal(try_open(writer.data, writer.length, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "blk.0.attn_k_norm.weight is missing"));
}

/* What the format leaves free is taken: holes between tensors, data after the last, keys of strangers. */
static void test_model_files_harmless(void **state)
{
    (void)state;
    struct error err;
    tiny_model(&writer, "llama");
    struct writer_tensor *last = &writer.tensors[writer.tensors_count - 1];
    writer_u32(&writer, "somebody.else", 1);
    writer_finish(&writer);
    uint64_t place;
    memcpy(&place, writer.data + writer.fields[writer.fields_count - 1].at, 8);
    last->offset = place + 64;
    writer_finish(&writer);
    memset(writer.data + writer.length, 0xee, 164);
    if (try_open(writer.data, writer.length + 164, &err) != ST_OK) fail_msg("%s", err.message);
}

/* 160 bytes of header that claim as much as every limit allows. */
static void test_model_files_small_file_asks_much(void **state)
{
    (void)state;
    struct error err;
    uint8_t bytes[160] = {'G', 'G', 'U', 'F', 3};
    for (uint64_t tensors = 1; tensors; tensors <<= 3)
        for (uint64_t keys = 1; keys; keys <<= 3) {
            memcpy(bytes + 8, &tensors, 8);
            memcpy(bytes + 16, &keys, 8);
            assert_int_not_equal(try_open(bytes, sizeof bytes, &err), ST_OK);
        }
}

/* --- the real model --- */

static void test_model_files_real(void **state)
{
    (void)state;
    const char *path = getenv("MILLRACE_TEST_MODEL");
    struct error err;
    struct model *model = NULL;
    if (!path) path = TESTS_DIR "/../../models/SmolLM2-135M-Instruct.Q4_1.gguf";
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        print_message("no model file (MILLRACE_TEST_MODEL)\n");
        skip();
    }
    struct stat info;
    assert_int_equal(fstat(fd, &info), 0);
    size_t size = (size_t)info.st_size, header = 2 << 20;
    uint8_t *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    assert_true(data != MAP_FAILED);
    close(fd);
    uint64_t seed = 20240917, start_ns, slowest_real_ns = 0;
    size_t tries = 0;
    for (size_t length = 0; length < size; length = length < 4096 ? length + 1 : length + length / 64 + 1, tries++) {
        start_ns = clock_now_ns(clock_system());
        if (model_open_memory(data, length, &model, &err) == ST_OK) fail_msg("cut to %zu bytes it was taken", length);
        uint64_t took_ns = clock_now_ns(clock_system()) - start_ns;
        if (took_ns > slowest_real_ns) slowest_real_ns = took_ns;
        assert_true(err.message[0]);
    }
    assert_int_not_equal(model_open_memory(data, size - 1, &model, &err), ST_OK);
    for (int i = 0; i < 64; i++, tries++) { /* a flipped byte in the header may be harmless; it may not crash */
        size_t at = random_next(&seed) % (i < 32 ? 2048 : header);
        uint8_t old = data[at];
        data[at] ^= (uint8_t)(1 + random_next(&seed) % 255);
        model = NULL;
        if (model_open_memory(data, size, &model, &err) == ST_OK)
            model_close(model);
        else
            assert_true(err.message[0]);
        data[at] = old;
    }
    munmap(data, size);
    print_message("real model: %zu files, slowest refusal of a cut one %.1f ms\n", tries,
                  (double)slowest_real_ns / 1e6);
}

static int print_totals(void **state)
{
    (void)state;
    print_message("%zu tiny files opened, %zu refused, slowest %.2f ms\n", opened, refused, (double)slowest_ns / 1e6);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_files_fields),   cmocka_unit_test(test_model_files_truncation),
        cmocka_unit_test(test_model_files_by_hand),  cmocka_unit_test(test_model_files_families),
        cmocka_unit_test(test_model_files_harmless), cmocka_unit_test(test_model_files_small_file_asks_much),
        cmocka_unit_test(test_model_files_real),
    };
    return cmocka_run_group_tests(tests, NULL, print_totals);
}
