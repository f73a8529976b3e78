/* The GGUF reader on sound files: what was written is what is read. Files that are not sound: tests/model_files. */
#include "tests/unit/runtime/gguf_writer.h"

#include "runtime/model/gguf.h"

#include <math.h>
#include <unistd.h>

static struct writer writer;

static struct gguf *open_written(void **copy)
{
    struct gguf *file = NULL;
    struct error err = {""};
    writer_finish(&writer);
    *copy = exact_copy(writer.data, writer.length);
    if (gguf_open_memory(*copy, writer.length, &file, &err) != ST_OK) fail_msg("%s", err.message);
    return file;
}

static void test_gguf_round_trip(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        void *copy;
        tiny_model(&writer, "llama");
        writer.version = version;
        struct gguf *file = open_written(&copy);
        assert_int_equal(gguf_version(file), version);
        assert_int_equal(gguf_alignment(file), 32);
        assert_int_equal(gguf_keys(file), writer.keys_count);
        assert_int_equal(gguf_tensors(file), writer.tensors_count);
        for (size_t i = 0; i < writer.keys_count; i++) {
            const struct gguf_key *key = gguf_key_at(file, i);
            assert_int_equal(key->name_length, strlen(writer.keys[i].name));
            assert_memory_equal(key->name, writer.keys[i].name, key->name_length);
            assert_int_equal(key->value_bytes, writer.keys[i].value_bytes);
            assert_memory_equal(key->value, writer.keys[i].value, key->value_bytes);
            assert_ptr_equal(gguf_find_key(file, writer.keys[i].name), key);
        }
        for (size_t i = 0; i < writer.tensors_count; i++) {
            const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
            assert_string_equal(tensor->name, writer.tensors[i].name);
            assert_int_equal(tensor->bytes, writer_tensor_bytes(&writer.tensors[i]));
            assert_int_equal((uintptr_t)tensor->data % 32, 0);
            assert_ptr_equal(gguf_find_tensor(file, writer.tensors[i].name), tensor);
        }
        assert_null(gguf_find_key(file, "general.architectur"));
        assert_null(gguf_find_key(file, "general.architecturee"));
        assert_null(gguf_find_tensor(file, "blk.7.attn_q.weight"));
        gguf_close(file);
        free(copy);
    }
}

static void test_gguf_alignments(void **state)
{
    (void)state;
    for (uint32_t alignment = 8; alignment <= 1024; alignment *= 2) {
        void *copy;
        tiny_model(&writer, "llama");
        writer.alignment = alignment;
        writer_u32(&writer, "general.alignment", alignment);
        struct gguf *file = open_written(&copy);
        assert_int_equal(gguf_alignment(file), alignment);
        for (size_t i = 0; i < gguf_tensors(file); i++)
            assert_int_equal(gguf_tensor_at(file, i)->offset % alignment, 0);
        gguf_close(file);
        free(copy);
    }
}

static void test_gguf_integers(void **state)
{
    (void)state;
    static const struct {
        uint32_t type, bytes;
        uint64_t raw;
        bool good;
        uint32_t value;
    } rows[] = {
        {GGUF_U8, 1, 255, true, 255},
        {GGUF_I8, 1, 127, true, 127},
        {GGUF_I8, 1, 0x80, false, 0},
        {GGUF_U16, 2, 65535, true, 65535},
        {GGUF_I16, 2, 0x8000, false, 0},
        {GGUF_U32, 4, UINT32_MAX, true, UINT32_MAX},
        {GGUF_I32, 4, INT32_MAX, true, INT32_MAX},
        {GGUF_I32, 4, UINT32_MAX, false, 0},
        {GGUF_U64, 8, UINT32_MAX, true, UINT32_MAX},
        {GGUF_U64, 8, UINT64_C(1) << 32, false, 0},
        {GGUF_I64, 8, 7, true, 7},
        {GGUF_I64, 8, UINT64_MAX, false, 0},
        {GGUF_I64, 8, UINT64_C(1) << 63, false, 0},
        {GGUF_BOOL, 1, 1, false, 0},
        {GGUF_F32, 4, 0, false, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        void *copy;
        struct error err = {""};
        uint32_t value = 12345;
        tiny_model(&writer, "llama");
        writer_put(writer_reset(&writer, "test.number", rows[i].type), &rows[i].raw, rows[i].bytes);
        struct gguf *file = open_written(&copy);
        enum status status = gguf_get_u32(file, "test.number", &value, &err);
        assert_int_equal(status, rows[i].good ? ST_OK : ST_INVAL);
        assert_int_equal(value, rows[i].good ? rows[i].value : 12345);
        assert_int_equal(strlen(err.message) > 0, !rows[i].good);
        gguf_close(file);
        free(copy);
    }
}

static void test_gguf_getters(void **state)
{
    (void)state;
    void *copy;
    struct error err = {""};
    struct vocab_string text, items[TINY_VOCAB];
    const struct gguf_key *array = NULL;
    float number;
    bool truth;
    tiny_model(&writer, "llama");
    writer_f32(&writer, "test.nan", NAN);
    writer_put(writer_reset(&writer, "test.double", GGUF_F64), &(double){2.5}, 8);
    writer_put(writer_reset(&writer, "test.huge", GGUF_F64), &(double){1e300}, 8);
    struct gguf *file = open_written(&copy);
    assert_int_equal(gguf_get_text(file, "general.name", &text, &err), ST_OK);
    assert_int_equal(text.length, 4);
    assert_memory_equal(text.text, "tiny", 4);
    assert_int_equal(gguf_get_f32(file, "llama.rope.freq_base", &number, &err), ST_OK);
    assert_true(number == 10000.0f);
    assert_int_equal(gguf_get_f32(file, "test.double", &number, &err), ST_OK);
    assert_true(number == 2.5f);
    assert_int_equal(gguf_get_f32(file, "test.nan", &number, &err), ST_INVAL);
    assert_int_equal(gguf_get_f32(file, "test.huge", &number, &err), ST_INVAL);
    assert_int_equal(gguf_get_f32(file, "general.name", &number, &err), ST_INVAL);
    assert_int_equal(gguf_get_bool(file, "tokenizer.ggml.add_bos_token", &truth, &err), ST_OK);
    assert_false(truth);
    assert_int_equal(gguf_get_bool(file, "llama.block_count", &truth, &err), ST_INVAL);
    assert_int_equal(gguf_get_text(file, "absent", &text, &err), ST_NOTFOUND);
    assert_non_null(strstr(err.message, "absent"));
    assert_int_equal(gguf_get_array(file, "tokenizer.ggml.tokens", GGUF_TEXT, &array, &err), ST_OK);
    assert_int_equal(array->count, TINY_VOCAB);
    gguf_array_texts(array, items);
    assert_int_equal(items[11].length, 4);
    assert_memory_equal(items[11].text, "abcd", 4);
    assert_int_equal(gguf_get_array(file, "tokenizer.ggml.tokens", GGUF_I32, &array, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "array of text"));
    gguf_close(file);
    free(copy);
}

static void test_gguf_paths(void **state)
{
    (void)state;
    struct gguf *file = NULL;
    struct error err = {""};
    assert_int_equal(gguf_open("/nonexistent/model.gguf", &file, &err), ST_NOTFOUND);
    assert_int_equal(gguf_open("/", &file, &err), ST_IO);
    assert_non_null(strstr(err.message, "regular file"));
    assert_int_equal(gguf_open("/dev/null", &file, &err), ST_IO);
    char path[] = "/tmp/test_gguf_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(gguf_open(path, &file, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "empty"));
    tiny_model(&writer, "llama");
    writer_finish(&writer);
    assert_int_equal(write(fd, writer.data, writer.length), (ssize_t)writer.length);
    close(fd);
    assert_int_equal(gguf_open(path, &file, &err), ST_OK);
    assert_int_equal(gguf_bytes(file), writer.length);
    gguf_close(file);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf_round_trip), cmocka_unit_test(test_gguf_alignments),
        cmocka_unit_test(test_gguf_integers),   cmocka_unit_test(test_gguf_getters),
        cmocka_unit_test(test_gguf_paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
