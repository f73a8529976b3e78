/* The description of a file: what it must say, valid JSON, files that cannot be served, and names that would trick a
 * terminal. */
#include "tests/unit/runtime/gguf_writer.h"

#include "runtime/base/json.h"
#include "runtime/model/inspect.h"

#include <unistd.h>

static struct writer writer;

static enum status inspect(bool json, struct buf *out, struct error *err)
{
    char path[] = "/tmp/test_inspect_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    writer_finish(&writer);
    assert_int_equal(write(fd, writer.data, writer.length), (ssize_t)writer.length);
    close(fd);
    enum status status = json ? model_inspect_json(path, out, err) : model_inspect(path, out, err);
    unlink(path);
    return status;
}

static bool contains(struct buf *out, const char *text)
{
    buf_append_char(out, 0);
    out->length--;
    return strstr(out->data, text) != NULL;
}

static void test_inspect_text(void **state)
{
    (void)state;
    struct buf out;
    struct error err = {""};
    buf_init(&out, 0);
    tiny_model(&writer, "qwen3");
    assert_int_equal(inspect(false, &out, &err), ST_OK);
    static const char *const wanted[] = {"GGUF version 3",
                                         "qwen3",
                                         "2 layers of width 32",
                                         "Q and K normalised",
                                         "halves",
                                         "3 merges",
                                         "20 (16 normal, 4 control)",
                                         "ends at       2 <|im_end|>, 16 <|eot_id|>",
                                         "{% for m in messages %}{{ m['content'] }} ...",
                                         "128 bytes a token",
                                         "16.0 KiB for one sequence",
                                         "blk.1.ffn_down.weight",
                                         "64 x 32"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!contains(&out, wanted[i])) fail_msg("\"%s\" is missing in\n%s", wanted[i], out.data);
    buf_free(&out);
}

static void test_inspect_json(void **state)
{
    (void)state;
    struct buf out;
    struct error err = {""};
    struct json *root = NULL;
    buf_init(&out, 0);
    tiny_model(&writer, "llama");
    writer_text(&writer, "general.name", "quo\"te\n\xff");
    assert_int_equal(inspect(true, &out, &err), ST_OK);
    if (json_read(out.data, out.length, &root, &err) != ST_OK) fail_msg("%s", err.message);
    assert_true(json_to_bool(json_member(root, "servable")));
    const struct json *model = json_member(root, "model");
    assert_int_equal(json_to_int(json_member(model, "heads")), TINY_HEADS);
    assert_int_equal(json_length(json_member(root, "tensors")), writer.tensors_count);
    assert_int_equal(json_to_int(json_at(json_member(json_member(root, "vocabulary"), "end_ids"), 1)), 16);
    assert_int_equal(json_to_int(json_member(json_member(root, "memory"), "kv_bytes_per_token")), 128);
    json_release(root);
    buf_free(&out);
}

static void test_inspect_not_servable(void **state)
{
    (void)state;
    struct buf out;
    struct error err = {""};
    struct json *root = NULL;
    buf_init(&out, 0);
    tiny_model(&writer, "llama");
    writer_text(&writer, "general.architecture", "mamba");
    writer_text(&writer, "general.name", "\033]0;evil\a");
    writer_tensor(&writer, "blk.0.attn_q.weight")->name[0] = '\r';
    assert_int_equal(inspect(false, &out, &err), ST_OK);
    assert_true(contains(&out, "CANNOT BE SERVED"));
    assert_true(contains(&out, "known are: llama, qwen2, qwen3"));
    for (size_t i = 0; i < out.length; i++) assert_true(out.data[i] == '\n' || (unsigned char)out.data[i] >= 0x20);
    buf_clear(&out);
    assert_int_equal(inspect(true, &out, &err), ST_OK);
    if (json_read(out.data, out.length, &root, &err) != ST_OK) fail_msg("%s", err.message);
    assert_false(json_to_bool(json_member(root, "servable")));
    assert_int_equal(json_kind(json_member(root, "model")), JSON_KIND_NULL);
    json_release(root);
    buf_free(&out);
}

static void test_inspect_errors(void **state)
{
    (void)state;
    struct buf out;
    struct error err = {""};
    buf_init(&out, 0);
    assert_int_equal(model_inspect("/nonexistent.gguf", &out, &err), ST_NOTFOUND);
    assert_non_null(strstr(err.message, "/nonexistent.gguf"));
    tiny_model(&writer, "llama");
    writer.version = 9;
    assert_int_equal(inspect(false, &out, &err), ST_INVAL);
    assert_int_equal(out.length, 0);
    struct buf tight;
    buf_init(&tight, 100);
    tiny_model(&writer, "llama");
    assert_int_equal(inspect(false, &tight, &err), ST_NOMEM);
    buf_free(&tight);
    buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inspect_text),
        cmocka_unit_test(test_inspect_json),
        cmocka_unit_test(test_inspect_not_servable),
        cmocka_unit_test(test_inspect_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
