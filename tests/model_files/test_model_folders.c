/* Mutated Hugging Face folders against the reader; see README.md beside this file. */
#include "tests/unit/runtime/gguf_writer.h"
#include "tests/unit/runtime/hf_writer.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/model/model.h"
#include "runtime/model/safetensors.h"

#include <sys/stat.h>

static struct hf_writer writer;
static size_t refused, harmless, asked_bytes; /* the first two over the whole program */

static bool count_bytes(void *state, size_t size_bytes)
{
    (void)state;
    asked_bytes += size_bytes;
    return true;
}

static void check_refusal(enum status status, const struct error *err)
{
    refused++;
    assert_true(status == ST_INVAL || status == ST_LIMIT || status == ST_NOTFOUND || status == ST_IO);
    assert_in_range(strlen(err->message), 10, sizeof err->message - 1);
    for (const char *c = err->message; *c; c++) assert_false((unsigned char)*c < 0x20 || *c == 0x7f);
}

/* Opens what is written and checks what holds for every folder, good or bad. */
static enum status try_open(struct error *err)
{
    struct model *model = NULL;
    asked_bytes = 0;
    err->message[0] = 0;
    mem_hook_set(count_bytes, NULL);
    enum status status = model_open(writer.folder.path, &model, err);
    mem_hook_set(NULL, NULL);
    if (status == ST_OK) {
        harmless++;
    } else {
        assert_null(model);
        check_refusal(status, err);
        assert_non_null(strstr(err->message, writer.folder.path));
    }
    size_t folder_bytes = writer.file_bytes + strlen(writer.config) + strlen(writer.tokenizer);
    assert_in_range(asked_bytes, 0, 262144 + 64 * folder_bytes);
    model_close(model);
    return status;
}

/* The weights' file alone, in memory that ends where the file does: what is read past it, a sanitizer sees. */
static enum status try_memory(const void *bytes, size_t length, struct error *err)
{
    struct safetensors *set = NULL;
    void *copy = exact_copy(bytes, length);
    err->message[0] = 0;
    enum status status = safetensors_open_memory(copy, length, &set, err);
    if (status != ST_OK) check_refusal(status, err);
    safetensors_close(set);
    free(copy);
    return status;
}

static void expect(const char *name, enum status wanted, const char *word)
{
    struct error err;
    enum status status = try_open(&err);
    if (status != wanted)
        fail_msg("%s: %s (%s), wanted %s", name, status_name(status), err.message, status_name(wanted));
    if (!strstr(err.message, word)) fail_msg("%s: \"%s\" does not say \"%s\"", name, err.message, word);
}

/* A tiny folder, as yet unwritten. */
static void begin(void)
{
    hf_tiny(&writer);
}

static void end(void)
{
    tiny_folder_destroy(&writer.folder);
}

/* --- the weights, by hand --- */

struct header_edit {
    const char *find, *replace;
    enum status status;
    const char *word;
};

#define EMBED "\"model.embed_tokens.weight\":"
#define NORM  "\"model.norm.weight\":"
static const struct header_edit header_edits[] = {
    {"{\"model", "[\"model", ST_INVAL, "no safetensors file"},
    {"{\"model", " {\"model", ST_INVAL, "no safetensors file"},
    {"{\"model", "\xef\xbb\xbf{\"model", ST_INVAL, "no safetensors file"},
    {"{\"model", "{{\"model", ST_INVAL, "invalid JSON"},
    {"{\"model", "{,\"model", ST_INVAL, "invalid JSON"},
    {"{\"model", "{\"\xff\":1,\"model", ST_INVAL, "invalid UTF-8"},
    {"{\"model", "{\"a\\u0000b\":1,\"model", ST_INVAL, "invalid JSON"},
    {"{\"model", "{\"x\":1,\"model", ST_INVAL, "tensor x is described by JSON of kind integer"},
    {"{\"model", "{\"x\":null,\"model", ST_INVAL, "kind null"},
    {"{\"model", "{\"x\":\"y\",\"model", ST_INVAL, "kind string"},
    {"{\"model", "{\"x\":[],\"model", ST_INVAL, "kind array"},
    {"{\"model", "{\"x\":{},\"model", ST_INVAL, "dtype is missing"},
    {"{\"model", "{\"\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"model", ST_INVAL, "name of 0 bytes"},
    {"{\"model", "{\"x\":{\"dtype\":\"U8\",\"shape\":[0]},\"model", ST_INVAL, "dtype, shape and data_offsets"},
    {"{\"model", "{\"x\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]},\"model", ST_INVAL, "dtype, shape and data_offsets"},
    {"{\"model", "{\"x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"model", ST_INVAL, "tensor x has no"},
    {"{\"model", "{\"lm_head.bias\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"model", ST_INVAL,
     "no place"},
    {"{\"model",
     "{\"model.layers.2.input_layernorm.weight\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
     "\"model",
     ST_INVAL, "model.layers.2.input_layernorm.weight has no place"},
    {"{\"model",
     "{\"model.layers.0.self_attn.q_proj.bias\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
     "\"model",
     ST_INVAL, "q_proj.bias has no place"},
    {"{\"model", "{\"model.layers.00.self_attn.x\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},\"model",
     ST_INVAL, "layers.00.self_attn.x has no place"},
    {"{\"format\":\"pt\"}", "[]", ST_INVAL, "__metadata__ must be an object"},
    {"{\"format\":\"pt\"}", "\"pt\"", ST_INVAL, "__metadata__ must be an object"},
    {"{\"format\":\"pt\"}", "null", ST_INVAL, "__metadata__ must be an object"},
    {"{\"format\":\"pt\"}", "{\"format\":1}", ST_INVAL, "format is no text"},
    {"{\"format\":\"pt\"}", "{\"format\":{\"a\":\"b\"}}", ST_INVAL, "format is no text"},
    {"{\"format\":\"pt\"}", "{\"a\":\"b\",\"a\":\"c\"}", ST_INVAL, "duplicate"},
    {"{\"format\":\"pt\"}}", "{\"format\":\"pt\"}}}", ST_INVAL, "invalid JSON"},
    {"{\"format\":\"pt\"}}", "{\"format\":\"pt\"}} x", ST_INVAL, "invalid JSON"},
    {"{\"format\":\"pt\"}}", "{\"format\":\"pt\"}", ST_INVAL, "invalid JSON"},
    {"{\"format\":\"pt\"}}", "{\"format\":\"pt\"},}", ST_INVAL, "invalid JSON"},
    {EMBED, "\"model.norm.weight\":", ST_INVAL, "duplicate"},
    {EMBED, "\"model.layers.0.mlp.up_proj.weight\":", ST_INVAL, "duplicate"},
    {EMBED, "\"embed_tokens.weight\":", ST_INVAL, "model.embed_tokens.weight is missing"},
    {EMBED, "\"model.embed_tokens.weight \":", ST_INVAL, "model.embed_tokens.weight is missing"},
    {EMBED, "\"model.embed_tokens\":", ST_INVAL, "model.embed_tokens.weight is missing"},
    {"self_attn.q_proj.weight", "self_attn.Q_proj.weight", ST_INVAL, "self_attn.q_proj.weight is missing"},
    {"self_attn.q_proj.weight", "self_attn.qkv_proj.weight", ST_INVAL, "self_attn.q_proj.weight is missing"},
    {"mlp.up_proj.weight", "mlp.gate_up_proj.weight", ST_INVAL, "mlp.up_proj.weight is missing"},
    {"self_attn.o_proj.weight", "self_attn.o_proj.qweight", ST_INVAL, "o_proj.weight is missing"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":\"I16\"", ST_INVAL, "of dtype I16"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":\"U16\"", ST_INVAL, "of dtype U16"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":\"bf16\"", ST_INVAL, "\"bf16\", which this version does not know"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":\"\"", ST_INVAL, "does not know"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":\"F4\"", ST_INVAL, "does not know"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":\"C64\"", ST_INVAL, "does not know"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":1", ST_INVAL, "dtype is missing or no text"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":null", ST_INVAL, "dtype is missing or no text"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":[\"BF16\"]", ST_INVAL, "dtype is missing or no text"},
    {EMBED "{\"dtype\":\"BF16\",", EMBED "{", ST_INVAL, "dtype is missing or no text"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":\"BF16\",\"dtype\":\"F16\"", ST_INVAL, "duplicate"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":\"BF16\",\"strides\":[32,1]", ST_INVAL, "nothing else"},
    {EMBED "{\"dtype\":\"BF16\"", EMBED "{\"dtype\":\"BF16\",\"data_offset\":0", ST_INVAL, "nothing else"},
    {"[261,32]", "[32,261]", ST_INVAL, "model.embed_tokens.weight has 2 dimensions, (32, 261"},
    {"[261,32]", "[8352]", ST_INVAL, "has 1 dimensions"},
    {"[261,32]", "[261,32,1]", ST_INVAL, "has 3 dimensions"},
    {"[261,32]", "[1,261,32]", ST_INVAL, "has 3 dimensions"},
    {"[261,32]", "[261,16,2]", ST_INVAL, "has 3 dimensions"},
    {"[261,32]", "[1,1,1,1,1,1,261,32]", ST_INVAL, "has 8 dimensions"},
    {"[261,32]", "[1,1,1,1,1,1,1,261,32]", ST_INVAL, "at most 8 integers"},
    {"[261,32]", "[261,32.0]", ST_INVAL, "dimension 1 of its shape"},
    {"[261,32]", "[\"261\",32]", ST_INVAL, "dimension 0 of its shape"},
    {"[261,32]", "[261,null]", ST_INVAL, "dimension 1 of its shape"},
    {"[261,32]", "[261,true]", ST_INVAL, "dimension 1 of its shape"},
    {"[261,32]", "[[261],32]", ST_INVAL, "dimension 0 of its shape"},
    {"[261,32]", "261", ST_INVAL, "its shape must be an array"},
    {"[261,32]", "{\"0\":261}", ST_INVAL, "its shape must be an array"},
    {"[261,32]", "null", ST_INVAL, "its shape must be an array"},
    {"[261,32]", "[4294967296,4294967296]", ST_INVAL, "more values than 64 bits"},
    {"[261,32]", "[4611686018427387905,4]", ST_INVAL, "more values than 64 bits"},
    {"[261,32]", "[9223372036854775807,2]", ST_INVAL, "more bytes than 64 bits"},
    {"[261,32]", "[9223372036854775807,3]", ST_INVAL, "more values than 64 bits"},
    {"[261,32]", "[9223372036854775808,32]", ST_INVAL, "invalid JSON"},
    {"[261,32]", "[18446744073709551616,32]", ST_INVAL, "invalid JSON"},
    {"[261,32]", "[0,9223372036854775807]", ST_INVAL, "ask for 0"},
    {"[0,16704]", "[0]", ST_INVAL, "two integers"},
    {"[0,16704]", "[0,16704,16704]", ST_INVAL, "two integers"},
    {"[0,16704]", "[]", ST_INVAL, "two integers"},
    {"[0,16704]", "16704", ST_INVAL, "two integers"},
    {"[0,16704]", "null", ST_INVAL, "two integers"},
    {"[0,16704]", "{\"0\":0,\"1\":16704}", ST_INVAL, "two integers"},
    {"[0,16704]", "[\"0\",16704]", ST_INVAL, "two integers"},
    {"[0,16704]", "[0,16704.0]", ST_INVAL, "two integers"},
    {"[0,16704]", "[0.5,16704]", ST_INVAL, "two integers"},
    {"[0,16704]", "[-2,16702]", ST_INVAL, "two integers"},
    {"[0,16704]", "[-16704,0]", ST_INVAL, "two integers"},
    {"[0,16704]", "[16704,0]", ST_INVAL, "two integers"},
    {"[0,16704]", "[2,16706]", ST_INVAL, "hole"},
    {"[0,16704]", "[0,16706]", ST_INVAL, "ask for 16704"},
    {"[0,16704]", "[0,16702]", ST_INVAL, "ask for 16704"},
    {"[0,16704]", "[0,9223372036854775807]", ST_INVAL, "which has only"},
    {"[0,16704]", "[9223372036854759103,9223372036854775807]", ST_INVAL, "which has only"},
    {"[0,16704]", "[16704,33408]", ST_INVAL, "begins at byte"},
    {"[0,16704]", "[1,16705]", ST_INVAL, "hole"},
};

static void test_model_folders_header_by_hand(void **state)
{
    (void)state;
    size_t count = sizeof header_edits / sizeof *header_edits;
    for (size_t i = 0; i < count; i++) {
        const struct header_edit *edit = &header_edits[i];
        struct error err;
        begin();
        hf_close_header(&writer);
        hf_replace(writer.header, edit->find, edit->replace);
        hf_write(&writer);
        expect(edit->replace, edit->status, edit->word);
        (void)try_memory(writer.file, writer.file_bytes, &err);
        end();
    }
    print_message("%zu headers by hand\n", count);
}

/* --- the weights, systematically --- */

/* Every tensor's dtype, shape and offsets, each set to values that cannot be right. */
static void test_model_folders_header_fields(void **state)
{
    (void)state;
    static const char *const dtypes[] = {"F64", "F8_E4M3", "I32", "BOOL", "U64", "I16", "nonsense"};
    static const int64_t wild[] = {0, 1, 7, 31, 65536, INT32_MAX, (INT64_C(1) << 42) + 1, INT64_MAX, -1, INT64_MIN};
    struct hf_writer *w = &writer;
    char was[HF_TEXT_BYTES], with[64], found[64];
    size_t tried = 0;
    struct error err;
    begin();
    hf_close_header(w);
    memcpy(was, w->header, sizeof was);
    for (char *entry = strstr(was, "\"dtype\""); entry; entry = strstr(entry + 1, "\"dtype\"")) {
        size_t at = (size_t)(entry - was);
        unsigned long long rows = 0, cols = 0, from = 0, to = 0;
        if (sscanf(entry, "\"dtype\":\"BF16\",\"shape\":[%llu,%llu],\"data_offsets\":[%llu,%llu]", &rows, &cols, &from,
                   &to) != 4)
            assert_int_equal(
                sscanf(entry, "\"dtype\":\"BF16\",\"shape\":[%llu],\"data_offsets\":[%llu,%llu]", &rows, &from, &to),
                3);
        for (size_t v = 0; v < sizeof dtypes / sizeof *dtypes; v++, tried++) {
            memcpy(w->header, was, sizeof was);
            hf_replace(w->header + at, "BF16", dtypes[v]);
            hf_write(w);
            assert_int_equal(try_open(&err), ST_INVAL);
        }
        for (size_t v = 0; v < 4 * sizeof wild / sizeof *wild; v++) {
            int64_t value = wild[v / 4];
            unsigned long long numbers[] = {rows, cols, from, to};
            if ((int64_t)numbers[v % 4] == value || (v % 4 == 1 && !cols)) continue;
            snprintf(found, sizeof found,
                     v % 4 == 0   ? "[%llu"
                     : v % 4 == 1 ? ",%llu]"
                     : v % 4 == 2 ? "[%llu,"
                                  : ",%llu]",
                     numbers[v % 4]);
            snprintf(with, sizeof with,
                     v % 4 == 0   ? "[%" PRId64
                     : v % 4 == 2 ? "[%" PRId64 ","
                                  : ",%" PRId64 "]",
                     value);
            memcpy(w->header, was, sizeof was);
            hf_replace(strstr(w->header + at, v % 4 < 2 ? "shape" : "offsets"), found, with);
            hf_write(w);
            if (try_open(&err) == ST_OK) fail_msg("%s in place of %s was taken: %.100s", with, found, entry);
            assert_int_not_equal(try_memory(w->file, w->file_bytes, &err), ST_OK);
            tried++;
        }
    }
    print_message("%zu fields of headers\n", tried);
    assert_true(tried > 500);
    end();
}

static void test_model_folders_header_lengths(void **state)
{
    (void)state;
    struct hf_writer *w = &writer;
    struct error err;
    begin();
    hf_close_header(w);
    uint64_t length = strlen(w->header);
    const uint64_t lengths[] = {1,
                                2,
                                length - 8,
                                length - 1,
                                length + 1,
                                length + 8,
                                w->data_bytes + length,
                                w->data_bytes + length + 1,
                                limits.safetensors_header_bytes,
                                limits.safetensors_header_bytes + 1,
                                UINT32_MAX,
                                INT64_MAX,
                                (uint64_t)INT64_MAX + 1,
                                UINT64_MAX - 7,
                                UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        w->header_claimed = lengths[i];
        hf_write(w);
        assert_int_equal(try_open(&err), lengths[i] > limits.safetensors_header_bytes ? ST_LIMIT : ST_INVAL);
        assert_non_null(strstr(err.message, "model.safetensors: "));
        assert_int_not_equal(try_memory(w->file, w->file_bytes, &err), ST_OK);
    }
    end();
}

static void test_model_folders_weights_cut(void **state)
{
    (void)state;
    struct hf_writer *w = &writer;
    struct error err;
    size_t tried = 0;
    begin();
    hf_close_header(w);
    hf_write(w);
    assert_int_equal(try_open(&err), ST_OK);
    assert_int_equal(try_memory(w->file, w->file_bytes, &err), ST_OK);
    size_t header = 8 + strlen(w->header), whole = w->file_bytes;
    for (size_t length = 0; length < whole; length += length < header + 64 || length + 64 > whole ? 1 : 61, tried++)
        if (try_memory(w->file, length, &err) == ST_OK) fail_msg("cut to %zu of %zu bytes it was taken", length, whole);
    for (size_t length = 0; length < whole; length += 997, tried++) {
        tiny_folder_write(&w->folder, w->file_name, (const char *)w->file, length);
        if (try_open(&err) == ST_OK) fail_msg("cut to %zu of %zu bytes it was taken", length, whole);
    }
    w->file[whole] = 0; /* a byte too much */
    assert_int_equal(try_memory(w->file, whole + 1, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "the file has"));
    print_message("%zu cut files of weights\n", tried);
    end();
}

/* --- config.json --- */

struct config_edit {
    const char *key, *value; /* value NULL: the key goes */
    enum status status;
    const char *word;
};

static const struct config_edit config_edits[] = {
    {"architectures", "[\"GPT2LMHeadModel\"]", ST_INVAL,
     "\"GPT2LMHeadModel\" (key architectures) is not supported, known are: Llama"},
    {"architectures", "[\"llamaforcausallm\"]", ST_INVAL, "MixtralForCausalLM"},
    {"architectures", "[\"MistralForCausalLM\"]", ST_INVAL, "model_type is \"llama\""},
    {"architectures", "[\"LlamaForCausalLM\", \"MistralForCausalLM\"]", ST_INVAL, "an array of one name"},
    {"architectures", "[]", ST_INVAL, "an array of one name"},
    {"architectures", "[1]", ST_INVAL, "an array of one name"},
    {"architectures", "\"LlamaForCausalLM\"", ST_INVAL, "an array of one name"},
    {"architectures", "{}", ST_INVAL, "an array of one name"},
    {"architectures", "[\"Gemma3ForConditionalGeneration\"]", ST_INVAL, "text_config is missing"},
    {"model_type", "1", ST_INVAL, "model_type is of kind integer"},
    {"model_type", "\"gpt2\"", ST_INVAL, "one is wrong"},
    {"model_type", "[\"llama\"]", ST_INVAL, "kind array"},
    {"hidden_size", NULL, ST_INVAL, "hidden_size is missing"},
    {"hidden_size", "null", ST_INVAL, "hidden_size is missing"},
    {"hidden_size", "0", ST_INVAL, "possible are 1 to"},
    {"hidden_size", "-32", ST_INVAL, "is -32"},
    {"hidden_size", "32.0", ST_INVAL, "must be an integer"},
    {"hidden_size", "\"32\"", ST_INVAL, "must be an integer"},
    {"hidden_size", "[32]", ST_INVAL, "must be an integer"},
    {"hidden_size", "true", ST_INVAL, "must be an integer"},
    {"hidden_size", "31", ST_INVAL, "head_dim is missing"},
    {"hidden_size", "64", ST_INVAL, "model.embed_tokens.weight has"},
    {"hidden_size", "131073", ST_INVAL, "possible are 1 to 131072"},
    {"hidden_size", "9223372036854775807", ST_INVAL, "possible are"},
    {"hidden_size", "9223372036854775808", ST_INVAL, "config.json"},
    {"hidden_size", "1e400", ST_INVAL, "config.json"},
    {"hidden_size", "NaN", ST_INVAL, "config.json"},
    {"intermediate_size", NULL, ST_INVAL, "intermediate_size is missing"},
    {"intermediate_size", "0", ST_INVAL, "possible are 1 to"},
    {"intermediate_size", "47", ST_INVAL, "mlp.gate_proj.weight has"},
    {"intermediate_size", "4294967295", ST_INVAL, "possible are 1 to"},
    {"intermediate_size", "[48, 48]", ST_INVAL, "must be an integer"},
    {"num_hidden_layers", NULL, ST_INVAL, "num_hidden_layers is missing"},
    {"num_hidden_layers", "0", ST_INVAL, "possible are 1 to 512"},
    {"num_hidden_layers", "1", ST_INVAL, "model.layers.1.input_layernorm.weight has no place"},
    {"num_hidden_layers", "3", ST_INVAL, "model.layers.2.input_layernorm.weight is missing"},
    {"num_hidden_layers", "512", ST_INVAL, "512 layers, the files only 20 tensors"},
    {"num_hidden_layers", "513", ST_INVAL, "possible are 1 to 512"},
    {"num_hidden_layers", "-1", ST_INVAL, "possible are 1 to 512"},
    {"num_hidden_layers", "2.5", ST_INVAL, "must be an integer"},
    {"num_attention_heads", NULL, ST_INVAL, "num_attention_heads is missing"},
    {"num_attention_heads", "0", ST_INVAL, "possible are 1 to 1024"},
    {"num_attention_heads", "1", ST_INVAL, "k_proj.weight has"},
    {"num_attention_heads", "3", ST_INVAL, "head_dim is missing"},
    {"num_attention_heads", "4", ST_INVAL, "k_proj.weight has"},
    {"num_attention_heads", "1025", ST_INVAL, "possible are 1 to 1024"},
    {"num_key_value_heads", NULL, ST_INVAL, "k_proj.weight has"},
    {"num_key_value_heads", "null", ST_INVAL, "k_proj.weight has"},
    {"num_key_value_heads", "0", ST_INVAL, "possible are 1 to"},
    {"num_key_value_heads", "2", ST_INVAL, "k_proj.weight has"},
    {"num_key_value_heads", "3", ST_INVAL, "do not divide among 3 KV heads"},
    {"num_key_value_heads", "\"1\"", ST_INVAL, "must be an integer"},
    {"head_dim", "0", ST_INVAL, "head_dim is 0"},
    {"head_dim", "8", ST_INVAL, "q_proj.weight has"},
    {"head_dim", "17", ST_INVAL, "values of a head's 17 rotate"},
    {"head_dim", "131072", ST_LIMIT, "wider than the limit"},
    {"head_dim", "16.0", ST_INVAL, "must be an integer"},
    {"max_position_embeddings", NULL, ST_INVAL, "max_position_embeddings is missing"},
    {"max_position_embeddings", "0", ST_INVAL, "possible are 1 to"},
    {"max_position_embeddings", "-1", ST_INVAL, "possible are 1 to"},
    {"max_position_embeddings", "2147483648", ST_INVAL, "possible are 1 to 2147483647"},
    {"max_position_embeddings", "1e3", ST_INVAL, "must be an integer"},
    {"vocab_size", NULL, ST_INVAL, "vocab_size is missing"},
    {"vocab_size", "0", ST_INVAL, "possible are 1 to"},
    {"vocab_size", "260", ST_INVAL, "model.embed_tokens.weight has"},
    {"vocab_size", "262", ST_INVAL, "model.embed_tokens.weight has"},
    {"vocab_size", "2097153", ST_INVAL, "possible are 1 to 2097152"},
    {"vocab_size", "\"261\"", ST_INVAL, "must be an integer"},
    {"rms_norm_eps", NULL, ST_INVAL, "rms_norm_eps is missing"},
    {"rms_norm_eps", "-1e-5", ST_INVAL, "possible are 0 to 0.1"},
    {"rms_norm_eps", "1", ST_INVAL, "possible are 0 to 0.1"},
    {"rms_norm_eps", "\"1e-5\"", ST_INVAL, "must be a number"},
    {"hidden_act", "\"gelu\"", ST_INVAL, "the activations silu and gelu_pytorch_tanh"},
    {"hidden_act", "\"relu2\"", ST_INVAL, "relu2"},
    {"hidden_act", "1", ST_INVAL, "must be a text"},
    {"tie_word_embeddings", "false", ST_INVAL, "lm_head.weight is missing"},
    {"tie_word_embeddings", "1", ST_INVAL, "must be true or false"},
    {"tie_word_embeddings", "\"true\"", ST_INVAL, "must be true or false"},
    {"attention_bias", "true", ST_INVAL, "q_proj.bias is missing"},
    {"attention_bias", "0", ST_INVAL, "must be true or false"},
    {"mlp_bias", "true", ST_INVAL, "mlp_bias asks for"},
    {"rope_theta", "0", ST_INVAL, "rope_theta is 0"},
    {"rope_theta", "1", ST_INVAL, "rope_theta is 1"},
    {"rope_theta", "-10000.0", ST_INVAL, "rope_theta is -10000"},
    {"rope_theta", "1e300", ST_INVAL, "rope_theta is 1e+300"},
    {"rope_theta", "\"10000\"", ST_INVAL, "must be a number"},
    {"rope_scaling", "[]", ST_INVAL, "rope_scaling must be an object"},
    {"rope_scaling", "\"linear\"", ST_INVAL, "rope_scaling must be an object"},
    {"rope_scaling", "{\"type\": \"dynamic\", \"factor\": 2.0}", ST_INVAL, "rope_scaling.rope_type is \"dynamic\""},
    {"rope_scaling", "{\"rope_type\": \"ntk\"}", ST_INVAL, "\"ntk\": of the RoPE scalings default, linear"},
    {"rope_scaling", "{\"rope_type\": 1}", ST_INVAL, "rope_scaling.rope_type is of kind integer"},
    {"rope_scaling", "{\"type\": \"linear\"}", ST_INVAL, "rope_scaling.factor is missing"},
    {"rope_scaling", "{\"type\": \"linear\", \"factor\": 0}", ST_INVAL, "rope_scaling.factor is 0"},
    {"rope_scaling", "{\"type\": \"linear\", \"factor\": -2}", ST_INVAL, "rope_scaling.factor is -2"},
    {"rope_scaling", "{\"type\": \"linear\", \"factor\": \"2\"}", ST_INVAL, "must be a number"},
    {"rope_scaling", "{\"type\": \"linear\", \"factor\": 2, \"beta_fast\": 32}", ST_INVAL, "beta_fast is not known"},
    {"rope_scaling", "{\"rope_type\": \"default\", \"factor\": 2}", ST_INVAL, "factor is not known for this kind"},
    {"rope_scaling", "{\"rope_type\": \"default\", \"mrope_section\": [1, 1]}", ST_INVAL, "mrope_section is not known"},
    {"rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1}", ST_INVAL,
     "high_freq_factor is missing"},
    {"rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4}",
     ST_INVAL, "must be below high_freq_factor"},
    {"rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": 0.5, \"low_freq_factor\": 1, \"high_freq_factor\": 4}",
     ST_INVAL, "factor is 0.5"},
    {"rope_scaling",
     "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4, "
     "\"original_max_position_embeddings\": 0}",
     ST_INVAL, "original_max_position_embeddings is 0"},
    {"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 0.5}", ST_INVAL, "factor is 0.5"},
    {"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4, \"truncate\": false}", ST_INVAL, "truncate is false"},
    {"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4, \"attention_factor\": 0}", ST_INVAL, "attention_factor"},
    {"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4, \"beta_slow\": -1}", ST_INVAL, "beta_slow is -1"},
    {"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4, \"short_factor\": [1]}", ST_INVAL,
     "short_factor is not"},
    {"rope_scaling", "{\"rope_type\": \"longrope\"}", ST_INVAL, "short_factor must be an array of 8 numbers"},
    {"rope_scaling", "{\"rope_type\": \"longrope\", \"short_factor\": [1,1,1,1,1,1,1], \"long_factor\": []}", ST_INVAL,
     "short_factor must be an array of 8 numbers"},
    {"rope_scaling", "{\"rope_type\": \"longrope\", \"short_factor\": [1,1,1,1,1,1,1,0]}", ST_INVAL, "item 7 is 0"},
    {"rope_scaling", "{\"rope_type\": \"longrope\", \"short_factor\": [1,1,1,\"1\",1,1,1,1]}", ST_INVAL, "item 3 is 0"},
    {"rope_scaling", "{\"rope_type\": \"longrope\", \"short_factor\": [1,1,1,1,1,1,1,1]}", ST_INVAL,
     "long_factor must"},
    {"rope_scaling", "{\"rope_type\": \"default\", \"partial_rotary_factor\": 0.5}", ST_INVAL, "rotates whole heads"},
    {"rope_parameters", "{\"full_attention\": {\"rope_type\": \"default\"}}", ST_INVAL, "full_attention is not known"},
    {"rope_parameters", "7", ST_INVAL, "rope_parameters must be an object"},
    {"partial_rotary_factor", "0.5", ST_INVAL, "partial_rotary_factor asks for"},
    {"layer_types", "[\"full_attention\"]", ST_INVAL, "one name for each of 2 layers"},
    {"layer_types", "[\"full_attention\", \"sliding_attention\"]", ST_INVAL, "layer 1 is sliding_attention"},
    {"layer_types", "[\"full_attention\", \"chunked_attention\"]", ST_INVAL, "layer 1 is \"chunked_attention\""},
    {"layer_types", "[\"full_attention\", 1]", ST_INVAL, "layer 1 is \"integer\""},
    {"layer_types", "\"full_attention\"", ST_INVAL, "layer_types must be an array"},
    {"sliding_window", "64", ST_INVAL, "sliding_window asks for"},
    {"attn_logit_softcapping", "50.0", ST_INVAL, "attn_logit_softcapping asks for"},
    {"final_logit_softcapping", "30.0", ST_INVAL, "final_logit_softcapping asks for"},
    {"clip_qkv", "8.0", ST_INVAL, "clip_qkv asks for"},
    {"attention_multiplier", "0.5", ST_INVAL, "attention_multiplier asks for"},
    {"embedding_multiplier", "12", ST_INVAL, "embedding_multiplier asks for"},
    {"logits_scaling", "8.0", ST_INVAL, "logits_scaling asks for"},
    {"logit_scale", "0.0625", ST_INVAL, "logit_scale asks for"},
    {"num_experts", "4", ST_INVAL, "num_experts asks for"},
    {"num_local_experts", "8", ST_INVAL, "num_local_experts asks for"},
    {"moe_intermediate_size", "32", ST_INVAL, "moe_intermediate_size asks for"},
    {"shared_expert_intermediate_size", "32", ST_INVAL, "shared_expert_intermediate_size asks for"},
    {"no_rope_layers", "[1, 0]", ST_INVAL, "no_rope_layers asks for"},
    {"use_qk_norm", "true", ST_INVAL, "use_qk_norm asks for"},
    {"use_bidirectional_attention", "true", ST_INVAL, "use_bidirectional_attention asks for"},
    {"is_encoder_decoder", "true", ST_INVAL, "is_encoder_decoder asks for"},
    {"query_pre_attn_scalar", "256", ST_INVAL, "query_pre_attn_scalar asks for"},
    {"use_parallel_residual", "true", ST_INVAL, "use_parallel_residual asks for"},
    {"position_embedding_type", "\"alibi\"", ST_INVAL, "position_embedding_type asks for"},
    {"quantization_config", "{\"quant_method\": \"nonsense\"}", ST_INVAL, "nonsense"},
    {"quantization_config", "7", ST_INVAL, "quantization_config"},
    {"vocab_size\": 261, \"vocab_size", "261", ST_INVAL, "duplicate"},
};

/* Applied to the tiny model these change nothing. */
static const struct config_edit harmless_edits[] = {
    {"architectures", NULL, ST_OK, ""},
    {"architectures", "null", ST_OK, ""},
    {"model_type", NULL, ST_OK, ""},
    {"hidden_act", NULL, ST_OK, ""},
    {"hidden_act", "\"gelu_pytorch_tanh\"", ST_OK, ""},
    {"rope_theta", NULL, ST_OK, ""},
    {"rope_scaling", NULL, ST_OK, ""},
    {"rope_scaling", "{}", ST_OK, ""},
    {"rope_scaling", "{\"type\": \"linear\", \"factor\": 2}", ST_OK, ""},
    {"rope_scaling", "{\"type\": \"default\", \"original_max_position_embeddings\": 64}", ST_OK, ""},
    {"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4.0, \"mscale\": 0.7, \"mscale_all_dim\": 0.7}", ST_OK, ""},
    {"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 1}", ST_OK, ""},
    {"head_dim", "16", ST_OK, ""},
    {"head_dim", "null", ST_OK, ""},
    {"layer_types", "[\"full_attention\", \"full_attention\"]", ST_OK, ""},
    {"sliding_window", "null", ST_OK, ""},
    {"attention_multiplier", "1.0", ST_OK, ""},
    {"final_logit_softcapping", "null", ST_OK, ""},
    {"partial_rotary_factor", "1.0", ST_OK, ""},
    {"quantization_config", "null", ST_OK, ""},
    {"auto_map", "{\"AutoConfig\": \"configuration_phi3.Phi3Config\"}", ST_OK, ""},
    {"_attn_implementation", "\"sdpa\"", ST_OK, ""},
    {"unsloth_fixed", "true", ST_OK, ""},
    {"attention_dropout", "0.1", ST_OK, ""},
    {"pretraining_tp", "2", ST_OK, ""},
    {"some_tool", "{\"a\": [1, 2, 3]}", ST_OK, ""},
};

static void edit_config(const struct config_edit *edit)
{
    char quoted[128];
    snprintf(quoted, sizeof quoted, "  \"%s\": ", edit->key);
    if (!strstr(writer.config, quoted)) {
        hf_add(writer.config, edit->key, edit->value);
    } else if (edit->value) {
        hf_set(writer.config, edit->key, edit->value);
    } else {
        hf_set(writer.config, edit->key, "0");
        snprintf(quoted, sizeof quoted, "  \"%s\": 0,\n", edit->key);
        if (strstr(writer.config, quoted)) {
            hf_replace(writer.config, quoted, "");
        } else { /* the last key */
            snprintf(quoted, sizeof quoted, ",\n  \"%s\": 0", edit->key);
            hf_replace(writer.config, quoted, "");
        }
    }
}

static void run_config_edits(const struct config_edit *edits, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char name[256];
        begin();
        hf_close_header(&writer);
        edit_config(&edits[i]);
        hf_write(&writer);
        snprintf(name, sizeof name, "%s: %s", edits[i].key, edits[i].value ? edits[i].value : "absent");
        expect(name, edits[i].status, edits[i].word);
        end();
    }
}

static void test_model_folders_config_by_hand(void **state)
{
    (void)state;
    size_t count = sizeof config_edits / sizeof *config_edits;
    run_config_edits(config_edits, count);
    run_config_edits(harmless_edits, sizeof harmless_edits / sizeof *harmless_edits);
    print_message("%zu keys of config.json by hand, %zu of them harmless\n",
                  count + sizeof harmless_edits / sizeof *harmless_edits,
                  sizeof harmless_edits / sizeof *harmless_edits);
}

/* Every key of config.json set to every kind of value: whatever is said, it is said cleanly. */
static void test_model_folders_config_fields(void **state)
{
    (void)state;
    static const char *const wild[] = {
        "null",  "true", "false", "-1", "0",      "1",          "3", "1e308", "4294967296", "9223372036854775807",
        "0.001", "\"\"", "[]",    "{}", "[null]", "\"\\u0007\""};
    struct error err;
    begin();
    hf_close_header(&writer);
    char was[HF_TEXT_BYTES], key[64];
    memcpy(was, writer.config, sizeof was);
    size_t tried = 0;
    for (const char *line = strchr(was, '\n'); line; line = strchr(line + 1, '\n')) {
        if (sscanf(line, "\n \"%63[^\"]\"", key) != 1) continue;
        for (size_t v = 0; v < sizeof wild / sizeof *wild; v++, tried++) {
            memcpy(writer.config, was, sizeof was);
            hf_set(writer.config, key, wild[v]);
            hf_write(&writer);
            (void)try_open(&err);
        }
    }
    print_message("%zu values of keys\n", tried);
    assert_true(tried > 200);
    end();
}

/* Each text of the folder cut at every byte, and with each byte of some changed. */
static void cut_text(char *text, const char *name)
{
    static char was[HF_TEXT_BYTES];
    struct error err;
    size_t whole = strlen(text), step = whole > 2000 ? 37 : 1;
    memcpy(was, text, sizeof was);
    for (size_t length = 0; length < whole; length += step) {
        tiny_folder_write(&writer.folder, name, was, length);
        if (try_open(&err) == ST_OK) fail_msg("%s cut to %zu of %zu bytes was taken", name, length, whole);
    }
    tiny_folder_write(&writer.folder, name, was, whole);
    assert_int_equal(try_open(&err), ST_OK);
}

static void test_model_folders_texts_cut(void **state)
{
    (void)state;
    begin();
    hf_close_header(&writer);
    hf_write(&writer);
    cut_text(writer.config, "config.json");
    cut_text(writer.generation, "generation_config.json");
    cut_text(writer.tokenizer, "tokenizer.json");
    end();
}

static void test_model_folders_bytes_changed(void **state)
{
    (void)state;
    uint64_t seed = 20261123;
    struct error err;
    print_message("seed %" PRIu64 "\n", seed);
    begin();
    hf_close_header(&writer);
    hf_write(&writer);
    for (int i = 0; i < 600; i++) { /* may be harmless; may not crash */
        char *text = i % 3 == 0 ? writer.config : i % 3 == 1 ? writer.header : writer.index;
        if (text == writer.index && !*text)
            snprintf(writer.index, sizeof writer.index,
                     "{\"weight_map\":{\"model.norm.weight\":\"model.safetensors\"}}");
        size_t at = random_next(&seed) % strlen(text);
        char old = text[at], changed = (char)(1 + random_next(&seed) % 255);
        writer.file_name = text == writer.index ? "part.safetensors" : "model.safetensors";
        text[at] = changed;
        hf_write(&writer);
        (void)try_open(&err);
        text[at] = old;
        if (text == writer.index) hf_write_text(&writer, "part.safetensors", "");
    }
    end();
}

/* --- the folder --- */

static void test_model_folders_files(void **state)
{
    (void)state;
    struct model *model = NULL;
    struct error err = {""};
    char path[256];
    begin();
    hf_close_header(&writer);
    hf_write(&writer);
    snprintf(path, sizeof path, "%s/model.safetensors", writer.folder.path);
    assert_int_equal(model_open(path, &model, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "give the folder"));
    hf_write_text(&writer, "model.safetensors", "");
    expect("no weights", ST_NOTFOUND, "neither model.safetensors nor model.safetensors.index.json");
    assert_int_equal(mkdir(path, 0700), 0);
    expect("a folder for weights", ST_IO, "model.safetensors: this is not a regular file");
    rmdir(path);
    hf_write_text(&writer, "model.safetensors.index.json", "[1]");
    expect("an index that is a list", ST_INVAL, "model.safetensors.index.json: the file holds JSON of kind array");
    hf_write_text(&writer, "model.safetensors.index.json", "{\"weight_map\":[]}");
    expect("a map that is a list", ST_INVAL, "weight_map is missing, empty or no object");
    hf_write_text(&writer, "model.safetensors.index.json", "{\"weight_map\":{\"a\":\"b.safetensors\"}}");
    expect("a missing shard", ST_NOTFOUND, "b.safetensors is missing from the folder");
    hf_write_text(&writer, "model.safetensors.index.json", "");
    hf_write_text(&writer, "model.safetensors", " ");
    expect("a file of one byte", ST_INVAL, "model.safetensors: the file ends at byte 1");
    hf_write(&writer);
    hf_write_text(&writer, "tokenizer.json", "");
    expect("no tokenizer", ST_NOTFOUND, "tokenizer.json");
    hf_write_text(&writer, "config.json", "");
    expect("no config", ST_NOTFOUND, "config.json is missing");
    hf_write_text(&writer, "config.json", "{}");
    expect("an empty config", ST_INVAL, "architectures and model_type are missing");
    hf_write_text(&writer, "config.json", "[]");
    expect("a list as config", ST_INVAL, "config.json: the file holds JSON of kind array");
    end();
}

static void test_model_folders_limits(void **state)
{
    (void)state;
    begin();
    hf_close_header(&writer);
    hf_write(&writer);
    uint64_t was = limits.safetensors_tensors;
    limits.safetensors_tensors = 19;
    expect("tensors", ST_LIMIT, "20 tensors, more than the limit of 19 (safetensors_tensors)");
    limits.safetensors_tensors = 20;
    expect("tensors", ST_OK, "");
    limits.safetensors_tensors = was;
    was = limits.model_json_bytes;
    limits.model_json_bytes = strlen(writer.config) - 1;
    expect("config", ST_LIMIT, "model_json_bytes");
    limits.model_json_bytes = was;
    was = limits.safetensors_header_bytes;
    limits.safetensors_header_bytes = strlen(writer.header) - 1;
    expect("header", ST_LIMIT, "safetensors_header_bytes");
    limits.safetensors_header_bytes = was;
    was = limits.safetensors_shards;
    hf_write_text(&writer, "model.safetensors", "");
    hf_write_text(&writer, "model.safetensors.index.json",
                  "{\"weight_map\":{\"a\":\"a.safetensors\",\"b\":\"b.safetensors\"}}");
    limits.safetensors_shards = 1;
    expect("shards", ST_LIMIT, "2 files, more than the limit of 1 (safetensors_shards)");
    limits.safetensors_shards = was;
    end();
}

static int print_totals(void **state)
{
    (void)state;
    print_message("%zu folders and files refused, %zu taken\n", refused, harmless);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_folders_header_by_hand), cmocka_unit_test(test_model_folders_header_fields),
        cmocka_unit_test(test_model_folders_header_lengths), cmocka_unit_test(test_model_folders_weights_cut),
        cmocka_unit_test(test_model_folders_config_by_hand), cmocka_unit_test(test_model_folders_config_fields),
        cmocka_unit_test(test_model_folders_texts_cut),      cmocka_unit_test(test_model_folders_bytes_changed),
        cmocka_unit_test(test_model_folders_files),          cmocka_unit_test(test_model_folders_limits),
    };
    return cmocka_run_group_tests(tests, NULL, print_totals);
}
