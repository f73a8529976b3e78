/* quantization_config: what is read, which group a module belongs to, and what is refused. */
#include "runtime/model/quant.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct json *parse(const char *text)
{
    struct json *json = NULL;
    struct error err = {""};
    if (json_read(text, strlen(text), &json, &err) != ST_OK) fail_msg("%s: %s", text, err.message);
    return json;
}

/* The scheme of a quantization_config; the document stays for as long as the scheme is used. */
static struct json *read_scheme(const char *quantization, struct quant_scheme *scheme)
{
    char text[4096];
    struct error err = {""};
    snprintf(text, sizeof text, "{\"quantization_config\": %s}", quantization);
    struct json *json = parse(text);
    if (quant_scheme_read(json, scheme, &err) != ST_OK) fail_msg("%s: %s", quantization, err.message);
    return json;
}

static void expect_refusal(const char *quantization, const char *part)
{
    char text[4096];
    struct quant_scheme scheme;
    struct error err = {""};
    snprintf(text, sizeof text, "{\"quantization_config\": %s}", quantization);
    struct json *json = parse(text);
    enum status status = quant_scheme_read(json, &scheme, &err);
    if (status == ST_OK || !strstr(err.message, part))
        fail_msg("%s: expected \"%s\", got %s \"%s\"", quantization, part, status_name(status), err.message);
    json_release(json);
}

static void test_quant_scheme_none(void **state)
{
    (void)state;
    static const char *const texts[] = {"{}", "{\"quantization_config\": null}"};
    for (size_t i = 0; i < 2; i++) {
        struct quant_scheme scheme = {.method = QUANT_GPTQ};
        struct json *json = parse(texts[i]);
        assert_int_equal(quant_scheme_read(json, &scheme, NULL), ST_OK);
        assert_int_equal(scheme.method, QUANT_NONE);
        json_release(json);
    }
}

static void test_quant_scheme_awq(void **state)
{
    (void)state;
    struct quant_scheme scheme;
    struct json *json =
        read_scheme("{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 64, \"zero_point\": true, "
                    "\"version\": \"gemm\", \"modules_to_not_convert\": [\"gate\"]}",
                    &scheme);
    assert_int_equal(scheme.method, QUANT_AWQ);
    assert_int_equal(scheme.groups_count, 1);
    assert_int_equal(scheme.groups[0].bits, 4);
    assert_int_equal(scheme.groups[0].block_cols, 64);
    json_release(json);
    json = read_scheme("{\"quant_method\": \"awq\", \"w_bit\": 4, \"q_group_size\": -1}", &scheme);
    assert_int_equal(scheme.groups[0].block_cols, UINT32_MAX);
    json_release(json);
    expect_refusal("{\"quant_method\": \"awq\", \"bits\": 8}", "AWQ of 8 bits");
    expect_refusal("{\"quant_method\": \"awq\", \"bits\": \"4\"}", "bits must be an integer");
    expect_refusal("{\"quant_method\": \"awq\", \"version\": \"gemv\"}", "version \"gemv\"");
    expect_refusal("{\"quant_method\": \"awq\", \"group_size\": 0}", "group_size is 0");
    expect_refusal("{\"quant_method\": \"awq\", \"group_size\": -2}", "group_size must be");
}

static void test_quant_scheme_gptq(void **state)
{
    (void)state;
    struct quant_scheme scheme;
    struct json *json =
        read_scheme("{\"quant_method\": \"gptq\", \"bits\": 8, \"group_size\": 128, \"desc_act\": true, "
                    "\"is_marlin_format\": false, \"dynamic\": {}, \"meta\": {\"damp\": 0.1}}",
                    &scheme);
    assert_int_equal(scheme.method, QUANT_GPTQ);
    assert_int_equal(scheme.groups[0].bits, 8);
    assert_true(scheme.has_order && scheme.zeros_less_one);
    json_release(json);
    json = read_scheme("{\"quant_method\": \"gptq\", \"bits\": 4, \"checkpoint_format\": \"gptq_v2\"}", &scheme);
    assert_true(!scheme.has_order && !scheme.zeros_less_one);
    json_release(json);
    expect_refusal("{\"quant_method\": \"gptq\", \"bits\": 3}", "GPTQ of 3 bits");
    expect_refusal("{\"quant_method\": \"gptq\"}", "GPTQ of 0 bits");
    expect_refusal("{\"quant_method\": \"gptq\", \"bits\": 4, \"checkpoint_format\": \"marlin\"}", "\"marlin\"");
    expect_refusal("{\"quant_method\": \"gptq\", \"bits\": 4, \"pack_dtype\": \"int16\"}", "\"int16\"");
    expect_refusal("{\"quant_method\": \"gptq\", \"bits\": 4, \"is_marlin_format\": true}", "is_marlin_format");
    expect_refusal("{\"quant_method\": \"gptq\", \"bits\": 4, \"dynamic\": {\"-:x\": {}}}", "dynamic");
}

static void test_quant_scheme_fp8(void **state)
{
    (void)state;
    struct quant_scheme scheme;
    struct json *json = read_scheme("{\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", \"weight_block_size\": [128, 64], "
                                    "\"activation_scheme\": \"dynamic\"}",
                                    &scheme);
    assert_int_equal(scheme.method, QUANT_FP8);
    assert_int_equal(scheme.groups[0].block_rows, 128);
    assert_int_equal(scheme.groups[0].block_cols, 64);
    assert_true(scheme.groups[0].is_float);
    json_release(json);
    expect_refusal("{\"quant_method\": \"fp8\", \"fmt\": \"e5m2\"}", "fmt \"e5m2\"");
    expect_refusal("{\"quant_method\": \"fp8\", \"weight_block_size\": [128]}", "two positive integers");
    expect_refusal("{\"quant_method\": \"fp8\", \"weight_block_size\": [0, 128]}", "two positive integers");
    expect_refusal("{\"quant_method\": \"fp8\", \"weight_block_size\": 128}", "two positive integers");
    expect_refusal("{\"quant_method\": \"fp8\", \"expert_dtype\": \"fp4\"}", "expert_dtype \"fp4\"");
    expect_refusal("{\"quant_method\": \"modelopt\", \"quant_algo\": \"NVFP4\"}", "quant_algo \"NVFP4\"");
    expect_refusal("{\"quant_method\": \"modelopt\"}", "quant_algo");
}

#define GROUP(targets, weights) "{\"targets\": [" targets "], \"weights\": {" weights "}}"
#define COMPRESSED(groups)      "{\"quant_method\": \"compressed-tensors\", \"config_groups\": {" groups "}}"
#define INT4                    "\"num_bits\": 4, \"type\": \"int\", \"strategy\": \"group\", \"group_size\": 32"

static void test_quant_scheme_compressed_tensors(void **state)
{
    (void)state;
    struct quant_scheme scheme;
    const struct quant_group *group = NULL;
    struct error err = {""};
    struct json *json = read_scheme(
        COMPRESSED("\"a\": " GROUP(
            "\"Linear\"",
            INT4) ", "
                  "\"b\": " GROUP(
                      "\"re:.*down_proj\", \"re:.*\\\\.9\\\\..*\"",
                      "\"num_bits\": 8, \"symmetric\": "
                      "false") ", \"c\": " GROUP("\"m.layers.1.down_proj\"",
                                                 "\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"block\", "
                                                 "\"block_structure\": [16, 32]")),
        &scheme);
    assert_int_equal(scheme.groups_count, 3);
    assert_int_equal(quant_scheme_group(&scheme, "m.layers.0.up_proj", &group, &err), ST_OK);
    assert_int_equal(group->bits, 4);
    assert_int_equal(group->block_cols, 32);
    assert_true(group->symmetric);
    assert_int_equal(quant_scheme_group(&scheme, "m.layers.0.down_proj", &group, &err), ST_OK);
    assert_true(group == &scheme.groups[1] && !group->symmetric && group->bits == 8);
    assert_int_equal(quant_scheme_group(&scheme, "m.layers.9.up_proj", &group, &err), ST_OK);
    assert_ptr_equal(group, &scheme.groups[1]);
    assert_int_equal(quant_scheme_group(&scheme, "m.layers.1.down_proj", &group, &err), ST_OK);
    assert_true(group->is_float && group->block_rows == 16 && group->block_cols == 32);
    assert_int_equal(quant_scheme_group(&scheme, "m.embed_tokens", &group, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "m.embed_tokens"));
    json_release(json);
}

static void test_quant_scheme_compressed_tensors_refused(void **state)
{
    (void)state;
    expect_refusal("{\"quant_method\": \"compressed-tensors\"}", "config_groups is missing");
    expect_refusal(COMPRESSED(""), "config_groups is missing or empty");
    expect_refusal(COMPRESSED("\"W4A16\": [\"Linear\"]"), "no list of targets");
    expect_refusal(COMPRESSED("\"g\": {\"targets\": [\"Linear\"]}"), "has no weights");
    expect_refusal(COMPRESSED("\"g\": {\"targets\": [\"Linear\"], \"weights\": null}"), "has no weights");
    expect_refusal(COMPRESSED("\"g\": " GROUP("\"re:(?!x)\"", INT4)), "\"re:(?!x)\"");
    expect_refusal(COMPRESSED("\"g\": " GROUP("1", INT4)), "integer");
    expect_refusal(COMPRESSED("\"g\": " GROUP("\"Linear\"", "\"num_bits\": 3")), "int with 3 bits");
    expect_refusal(COMPRESSED("\"g\": " GROUP("\"Linear\"", "\"num_bits\": 4, \"type\": \"float\"")),
                   "float with 4 bits");
    expect_refusal(COMPRESSED("\"g\": " GROUP("\"Linear\"", "\"type\": \"float\", \"symmetric\": false")),
                   "zero points");
    expect_refusal(COMPRESSED("\"g\": " GROUP("\"Linear\"", "\"strategy\": \"tensor_group\"")), "\"tensor_group\"");
    expect_refusal(COMPRESSED("\"g\": " GROUP("\"Linear\"", "\"dynamic\": true")), "dynamic");
    expect_refusal(COMPRESSED("\"g\": " GROUP("\"Linear\"", "\"strategy\": \"block\", \"block_structure\": \"2x4\"")),
                   "block_structure");
    expect_refusal("{\"quant_method\": \"compressed-tensors\", \"format\": \"marlin-24\"}", "\"marlin-24\"");
    expect_refusal("{\"quant_method\": \"compressed-tensors\", \"format\": \"nvfp4-pack-quantized\"}", "\"nvfp4");
    expect_refusal("{\"quant_method\": \"compressed-tensors\", \"transform_config\": {\"u\": 1}}", "transform_config");
    expect_refusal("{\"quant_method\": \"compressed-tensors\", \"sparsity_config\": {\"format\": \"sparse-bitmask\"}}",
                   "\"sparse-bitmask\"");
}

static void test_quant_scheme_unknown_methods(void **state)
{
    (void)state;
    expect_refusal("{}", "no quant_method");
    expect_refusal("[]", "no quant_method");
    expect_refusal("{\"quant_method\": 4}", "no quant_method");
    expect_refusal("{\"quant_method\": \"bitsandbytes\"}", "\"bitsandbytes\" is not supported; known are awq");
}

static void test_quant_scheme_activation_scales(void **state)
{
    (void)state;
    assert_true(quant_is_activation_scale("model.layers.0.mlp.up_proj.input_scale"));
    assert_true(quant_is_activation_scale("model.layers.0.self_attn.k_scale"));
    assert_false(quant_is_activation_scale("model.layers.0.mlp.up_proj.weight_scale"));
    assert_false(quant_is_activation_scale("model.layers.0.mlp.up_proj.input_scales"));
    assert_false(quant_is_activation_scale(".k_scale"));
    assert_false(quant_is_activation_scale(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quant_scheme_none),
        cmocka_unit_test(test_quant_scheme_awq),
        cmocka_unit_test(test_quant_scheme_gptq),
        cmocka_unit_test(test_quant_scheme_fp8),
        cmocka_unit_test(test_quant_scheme_compressed_tensors),
        cmocka_unit_test(test_quant_scheme_compressed_tensors_refused),
        cmocka_unit_test(test_quant_scheme_unknown_methods),
        cmocka_unit_test(test_quant_scheme_activation_scales),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
