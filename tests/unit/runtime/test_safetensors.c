/* The safetensors reader: what a sound file says, shards and their index. Broken files: tests/model_files. */
#include "tests/unit/runtime/gguf_writer.h"
#include "tests/unit/runtime/hf_writer.h"

#include "runtime/base/mem.h"
#include "runtime/model/safetensors.h"

static struct hf_writer writer;

static struct safetensors *must_open(const char *header, const void *data, size_t data_bytes, void **copy)
{
    uint8_t bytes[4096];
    uint64_t length = strlen(header);
    struct safetensors *set = NULL;
    struct error err = {""};
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, length);
    memcpy(bytes + 8 + length, data, data_bytes);
    *copy = exact_copy(bytes, 8 + length + data_bytes);
    if (safetensors_open_memory(*copy, 8 + length + data_bytes, &set, &err) != ST_OK) fail_msg("%s", err.message);
    return set;
}

static void test_safetensors_reads_tensors(void **state)
{
    (void)state;
    void *copy;
    struct safetensors *set = must_open("{\"b\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[1,9]},"
                                        "\"__metadata__\":{\"format\":\"pt\"},"
                                        "\"a\":{\"shape\":[],\"data_offsets\":[0,1],\"dtype\":\"U8\"},"
                                        "\"none\":{\"dtype\":\"I64\",\"shape\":[3,0,5],\"data_offsets\":[9,9]}}   ",
                                        "\x07\0\0\x80\x3f\0\0\0\x40", 9, &copy);
    assert_int_equal(safetensors_tensors(set), 3);
    assert_int_equal(safetensors_shards(set), 1);
    assert_string_equal(safetensors_tensor_at(set, 0)->name, "a");
    const struct safetensors_tensor *a = safetensors_find(set, "a"), *b = safetensors_find(set, "b");
    const struct safetensors_tensor *none = safetensors_find(set, "none");
    float values[2];
    assert_int_equal(a->dims_count, 0);
    assert_int_equal(a->dims[0], 1);
    assert_int_equal(a->dtype, SAFETENSORS_U8);
    assert_int_equal(*(const uint8_t *)a->data, 7);
    memcpy(values, b->data, sizeof values); /* at an odd byte */
    assert_true(values[0] == 1 && values[1] == 2);
    assert_int_equal(b->dims[0], 1);
    assert_int_equal(b->dims[1], 2);
    assert_int_equal(b->bytes, 8);
    assert_int_equal(b->offset + 8, safetensors_bytes(set));
    assert_int_equal(none->bytes, 0);
    assert_int_equal(safetensors_index_of(set, none), 2);
    assert_null(safetensors_find(set, "__metadata__"));
    assert_string_equal(safetensors_dtype_name(b->dtype), "F32");
    safetensors_close(set);
    free(copy);
    safetensors_close(must_open("{}", "", 0, &copy));
    free(copy);
}

static void test_safetensors_dtypes(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int bytes;
    } dtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1},
                  {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},     {"U32", 4},
                  {"F32", 4},  {"I64", 8}, {"U64", 8}, {"F64", 8}};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        char header[128];
        uint8_t data[24] = {0};
        void *copy;
        snprintf(header, sizeof header, "{\"x\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%d]}}",
                 dtypes[i].name, 3 * dtypes[i].bytes);
        struct safetensors *set = must_open(header, data, 3 * (size_t)dtypes[i].bytes, &copy);
        const struct safetensors_tensor *x = safetensors_find(set, "x");
        assert_string_equal(safetensors_dtype_name(x->dtype), dtypes[i].name);
        safetensors_close(set);
        free(copy);
    }
    assert_int_equal(sizeof dtypes / sizeof *dtypes, SAFETENSORS_DTYPES);
}

/* A second file of one tensor, beside the writer's. */
static void write_second(const char *name, const char *tensor)
{
    char bytes[256];
    int length = snprintf(bytes + 8, sizeof bytes - 8,
                          "{\"%s\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}", tensor);
    uint64_t header = (uint64_t)length;
    memcpy(bytes, &header, 8);
    memset(bytes + 8 + length, 0, 4);
    tiny_folder_write(&writer.folder, name, bytes, 8 + (size_t)length + 4);
}

static void make_shards(const char *map)
{
    hf_tiny(&writer);
    writer.file_name = "part-1.safetensors";
    snprintf(writer.index, sizeof writer.index, "{\"metadata\":{\"total_size\":1},\"weight_map\":{%s}}", map);
    hf_close_header(&writer);
    hf_write(&writer);
    write_second("part-2.safetensors", "extra");
}

static void test_safetensors_shards(void **state)
{
    (void)state;
    struct safetensors *set = NULL;
    struct error err = {""};
    make_shards("\"model.norm.weight\":\"part-1.safetensors\",\"extra\":\"part-2.safetensors\"");
    if (safetensors_open_folder(writer.folder.path, &set, &err) != ST_OK) fail_msg("%s", err.message);
    assert_int_equal(safetensors_shards(set), 2);
    assert_int_equal(safetensors_tensors(set), 2 + 9 * HF_LAYERS + 1);
    const struct safetensors_tensor *extra = safetensors_find(set, "extra");
    assert_string_equal(safetensors_shard_name(set, extra->shard), "part-2.safetensors");
    const struct safetensors_tensor *norm = safetensors_find(set, "model.norm.weight");
    uint16_t first;
    memcpy(&first, norm->data, 2);
    safetensors_forget(set, norm->data, norm->bytes);
    safetensors_forget(set, &first, sizeof first); /* not of the files: nothing happens */
    uint16_t again;
    memcpy(&again, norm->data, 2);
    assert_int_equal(first, again);
    safetensors_close(set);
    tiny_folder_destroy(&writer.folder);
}

static void refuse_shards(const char *map, enum status status, const char *word)
{
    struct safetensors *set = NULL;
    struct error err = {""};
    make_shards(map);
    assert_int_equal(safetensors_open_folder(writer.folder.path, &set, &err), status);
    if (!strstr(err.message, word)) fail_msg("\"%s\" does not say \"%s\"", err.message, word);
    tiny_folder_destroy(&writer.folder);
}

static void test_safetensors_refuses_indexes(void **state)
{
    (void)state;
    refuse_shards("", ST_INVAL, "weight_map is missing");
    refuse_shards("\"extra\":\"../part-2.safetensors\"", ST_INVAL, "no plain name");
    refuse_shards("\"extra\":\"/etc/passwd\"", ST_INVAL, "no plain name");
    refuse_shards("\"extra\":\".safetensors\"", ST_INVAL, "no plain name");
    refuse_shards("\"extra\":\".hidden.safetensors\"", ST_INVAL, "no plain name");
    refuse_shards("\"extra\":\"part-2.bin\"", ST_INVAL, "no plain name");
    refuse_shards("\"extra\":\"\"", ST_INVAL, "no plain name");
    refuse_shards("\"extra\":7", ST_INVAL, "no plain name");
    refuse_shards("\"extra\":\"part-3.safetensors\"", ST_NOTFOUND, "part-3.safetensors");
    refuse_shards("\"extra\":\"part-1.safetensors\"", ST_INVAL, "should be in part-1.safetensors");
    refuse_shards("\"more\":\"part-2.safetensors\"", ST_INVAL, "tensor more should be in part-2.safetensors");
    refuse_shards("\"extra\":\"part-2.safetensors\",\"extra\":\"part-1.safetensors\"", ST_INVAL, "invalid JSON");
}

static void test_safetensors_refuses_a_tensor_in_two_files(void **state)
{
    (void)state;
    struct safetensors *set = NULL;
    struct error err = {""};
    make_shards("\"a\":\"part-1.safetensors\",\"b\":\"part-2.safetensors\"");
    write_second("part-2.safetensors", "model.norm.weight");
    assert_int_equal(safetensors_open_folder(writer.folder.path, &set, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "model.norm.weight lies in part-1.safetensors and in part-2.safetensors"));
    tiny_folder_destroy(&writer.folder);
}

static bool fail_nth(void *state, size_t size_bytes)
{
    (void)size_bytes;
    return (*(int *)state)-- != 0;
}

static void test_safetensors_fails_allocations(void **state)
{
    (void)state;
    make_shards("\"model.norm.weight\":\"part-1.safetensors\",\"extra\":\"part-2.safetensors\"");
    for (int n = 0;; n++) {
        struct safetensors *set = NULL;
        struct error err = {""};
        int left = n;
        mem_hook_set(fail_nth, &left);
        enum status status = safetensors_open_folder(writer.folder.path, &set, &err);
        mem_hook_set(NULL, NULL);
        safetensors_close(set);
        if (status == ST_OK) break;
        assert_int_equal(status, ST_NOMEM);
        assert_true(err.message[0]);
        assert_in_range(n, 0, 200);
    }
    tiny_folder_destroy(&writer.folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_reads_tensors),
        cmocka_unit_test(test_safetensors_dtypes),
        cmocka_unit_test(test_safetensors_shards),
        cmocka_unit_test(test_safetensors_refuses_indexes),
        cmocka_unit_test(test_safetensors_refuses_a_tensor_in_two_files),
        cmocka_unit_test(test_safetensors_fails_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
