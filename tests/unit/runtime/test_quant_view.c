/* Quantised weights against golden values that tests/formats/make_golden.py made and held against the reference
 * implementations: every format, bit for bit, whole and in ranges of rows; and what is refused. */
#include "runtime/model/quant.h"

#include "kernels/dequantize.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/model/quant_matrix.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MODULE "model.layers.3.mlp.up_proj"
enum { CASE_TENSORS_MAX = 8, NAME_MAX_BYTES = 128 };

/* The tensors of one case, copied so that a test may spoil them; each copy ends where its allocation ends. */
struct tensor {
    char name[NAME_MAX_BYTES], dtype[16];
    struct raw_tensor raw;
    void *copy;
};

struct golden {
    char *file;
    struct json *header, *meta; /* of the file, of the case */
    const char *name;
    struct tensor tensors[CASE_TENSORS_MAX];
    uint32_t count, rows, cols;
    float *values;
    struct quant_scheme scheme;
    struct arena arena;
};

static const struct json *golden_header(struct golden *golden)
{
    if (golden->header) return golden->header;
    struct error err = {""};
    uint64_t length;
    FILE *stream = fopen(TESTS_DIR "/formats/golden.safetensors", "rb");
    if (!stream) fail_msg("tests/formats/golden.safetensors is missing");
    fseek(stream, 0, SEEK_END);
    size_t bytes = (size_t)ftell(stream);
    rewind(stream);
    golden->file = malloc(bytes);
    assert_int_equal(fread(golden->file, 1, bytes, stream), bytes);
    fclose(stream);
    memcpy(&length, golden->file, sizeof length);
    if (json_read(golden->file + 8, length, &golden->header, &err) != ST_OK) fail_msg("%s", err.message);
    return golden->header;
}

static void copy_tensor(struct golden *golden, const char *suffix, const struct json *entry)
{
    uint64_t length;
    const struct json *shape = json_member(entry, "shape"), *offsets = json_member(entry, "data_offsets");
    memcpy(&length, golden->file, sizeof length);
    assert_true(golden->count < CASE_TENSORS_MAX);
    struct tensor *tensor = &golden->tensors[golden->count++];
    snprintf(tensor->name, sizeof tensor->name, "%s", suffix);
    snprintf(tensor->dtype, sizeof tensor->dtype, "%s", json_to_text(json_member(entry, "dtype"), NULL));
    size_t begin = (size_t)json_to_int(json_at(offsets, 0)), bytes = (size_t)json_to_int(json_at(offsets, 1)) - begin;
    tensor->raw = (struct raw_tensor){.dtype = tensor->dtype, .dims_count = (uint32_t)json_length(shape)};
    for (uint32_t i = 0; i < tensor->raw.dims_count; i++)
        tensor->raw.dims[i] = (uint64_t)json_to_int(json_at(shape, i));
    tensor->copy = malloc(bytes + 1); /* one off: nothing may count on alignment */
    memcpy((char *)tensor->copy + 1, golden->file + 8 + length + begin, bytes);
    tensor->raw.data = (char *)tensor->copy + 1;
    tensor->raw.size_bytes = bytes;
}

/* Opens a case by its name. */
static void golden_open(struct golden *golden, const char *name)
{
    struct error err = {""};
    const char *key, *config;
    const struct json *entry, *header = golden_header(golden);
    void *iterator = NULL;
    size_t prefix = strlen(name), length;
    golden->name = name;
    golden->count = 0;
    while (json_iterate(header, &iterator, &key, &entry)) {
        if (strncmp(key, name, prefix) != 0 || key[prefix] != '/') continue;
        copy_tensor(golden, key + prefix + 1, entry);
        if (strcmp(key + prefix + 1, "values") != 0) continue;
        const struct tensor *values = &golden->tensors[--golden->count];
        golden->rows = (uint32_t)values->raw.dims[0];
        golden->cols = (uint32_t)values->raw.dims[1];
        golden->values = malloc(values->raw.size_bytes);
        memcpy(golden->values, values->raw.data, values->raw.size_bytes);
        free(values->copy);
    }
    config = json_to_text(json_member(json_member(header, "__metadata__"), name), &length);
    assert_non_null(config);
    if (json_read(config, length, &golden->meta, &err) != ST_OK) fail_msg("%s: %s", name, err.message);
    if (quant_scheme_read(json_member(golden->meta, "config"), &golden->scheme, &err) != ST_OK)
        fail_msg("%s: %s", name, err.message);
    arena_init(&golden->arena, 0);
}

static void golden_close(struct golden *golden)
{
    for (uint32_t i = 0; i < golden->count; i++) free(golden->tensors[i].copy);
    free(golden->values);
    json_release(golden->meta);
    arena_free(&golden->arena);
    golden->count = 0;
}

static void golden_end(struct golden *golden)
{
    json_release(golden->header);
    free(golden->file);
    *golden = (struct golden){0};
}

static bool find(void *state, const char *name, struct raw_tensor *tensor)
{
    struct golden *golden = state;
    for (uint32_t i = 0; i < golden->count; i++)
        if (strcmp(golden->tensors[i].name, name) == 0) {
            *tensor = golden->tensors[i].raw;
            return true;
        }
    return false;
}

static struct tensor *tensor_of(struct golden *golden, const char *suffix)
{
    char name[NAME_MAX_BYTES];
    snprintf(name, sizeof name, MODULE ".%s", suffix);
    for (uint32_t i = 0; i < golden->count; i++)
        if (strcmp(golden->tensors[i].name, name) == 0) return &golden->tensors[i];
    fail_msg("%s has no %s", golden->name, suffix);
    return NULL;
}

static struct tensor_view open_view(struct golden *golden)
{
    struct tensor_view view = {0};
    struct error err = {""};
    if (quant_view(&golden->scheme, find, golden, &golden->arena, MODULE, golden->rows, golden->cols, &view, &err) !=
        ST_OK)
        fail_msg("%s: %s", golden->name, err.message);
    return view;
}

/* Rows [begin, end) of the view are the golden values (from golden row `from` on). */
static void check_rows(const struct golden *golden, const struct tensor_view *view, uint32_t begin, uint32_t end,
                       uint32_t from)
{
    size_t row_bytes = tensor_row_bytes(tensor_type_info(view->type), view->cols);
    uint8_t *rows = malloc((end - begin) * row_bytes + 1);
    float *values = malloc(view->cols * sizeof *values);
    rows[(end - begin) * row_bytes] = 0xa5;
    assert_ptr_equal(tensor_rows(view, begin, end, rows), rows);
    assert_int_equal(rows[(end - begin) * row_bytes], 0xa5);
    for (uint32_t r = begin; r < end; r++) {
        dequantize_row(view->type, rows + (r - begin) * row_bytes, values, view->cols);
        for (uint32_t k = 0; k < view->cols; k++) {
            float expected = golden->values[(size_t)(from + r - begin) * view->cols + k];
            if (values[k] != expected)
                fail_msg("%s: weight (%u, %u) is %.9g, expected %.9g", golden->name, r, k, (double)values[k],
                         (double)expected);
        }
    }
    free(values);
    free(rows);
}

/* Any columns on whole blocks are made as they stand in whole rows. */
static void check_columns(const struct golden *golden, const struct tensor_view *view)
{
    const struct tensor_type_info *info = tensor_type_info(view->type);
    uint32_t unit = info->block_items > 8 ? info->block_items : 8, rows = view->rows < 20 ? view->rows : 20;
    size_t row_bytes = tensor_row_bytes(info, view->cols);
    uint8_t *whole = malloc(rows * row_bytes), *part = malloc(rows * row_bytes);
    tensor_area_copy(view, (struct tensor_area){0, rows, 0, view->cols}, whole);
    for (uint32_t begin = 0; begin < view->cols; begin += unit)
        for (uint32_t end = begin + unit; end - begin <= 5 * unit; end += unit) {
            struct tensor_area area = {1, rows, begin, end < view->cols ? end : view->cols};
            size_t offset = tensor_row_bytes(info, begin), bytes = tensor_row_bytes(info, area.col_end - begin);
            part[(rows - 1) * bytes] = 0xa5;
            tensor_area_copy(view, area, part);
            assert_int_equal(part[(rows - 1) * bytes], 0xa5);
            for (uint32_t r = 1; r < rows; r++)
                if (memcmp(part + (r - 1) * bytes, whole + r * row_bytes + offset, bytes) != 0)
                    fail_msg("%s: row %u, columns %u to %u differ from the whole row's", golden->name, r, begin,
                             area.col_end);
        }
    free(part);
    free(whole);
}

static void test_quant_view_golden(void **state)
{
    (void)state;
    struct golden golden = {0};
    const char *name;
    const struct json *unused;
    void *iterator = NULL;
    uint32_t cases = 0;
    while (json_iterate(json_member(golden_header(&golden), "__metadata__"), &iterator, &name, &unused)) {
        golden_open(&golden, name);
        struct tensor_view view = open_view(&golden);
        const char *type = json_to_text(json_member(golden.meta, "type"), NULL);
        if (strcmp(tensor_type_info(view.type)->name, type) != 0)
            fail_msg("%s: became %s, expected %s", name, tensor_type_info(view.type)->name, type);
        assert_int_equal(view.rows, golden.rows);
        assert_int_equal(view.cols, golden.cols);
        assert_memory_equal(view.name, MODULE ".", strlen(MODULE) + 1);
        check_rows(&golden, &view, 0, golden.rows, 0);
        for (uint32_t begin = 0; begin < golden.rows; begin++)
            check_rows(&golden, &view, begin, begin + 3 < golden.rows ? begin + 3 : golden.rows, begin);
        struct tensor_view cut;
        uint32_t half = golden.rows / 2;
        assert_int_equal(quant_cut_rows(&view, half, golden.rows - half, &golden.arena, &cut), ST_OK);
        assert_int_equal(cut.rows, golden.rows - half);
        check_rows(&golden, &cut, 1, golden.rows - half, half + 1);
        check_columns(&golden, &view);
        golden_close(&golden);
        cases++;
    }
    assert_int_equal(cases, 42);
    golden_end(&golden);
}

/* A view that must be refused with a message that has `part`. */
static void expect_refusal(struct golden *golden, const char *part)
{
    struct tensor_view view = {0};
    struct error err = {""};
    enum status status =
        quant_view(&golden->scheme, find, golden, &golden->arena, MODULE, golden->rows, golden->cols, &view, &err);
    if (status == ST_OK || status == ST_NOTFOUND || !strstr(err.message, part))
        fail_msg("%s: expected \"%s\", got %s \"%s\"", golden->name, part, status_name(status), err.message);
    assert_null(view.data);
}

static void drop(struct golden *golden, const char *suffix)
{
    struct tensor *tensor = tensor_of(golden, suffix);
    free(tensor->copy);
    *tensor = golden->tensors[--golden->count];
    for (uint32_t i = 0; i < golden->count; i++) golden->tensors[i].raw.dtype = golden->tensors[i].dtype;
}

static const struct {
    const char *name, *tensors[6]; /* the first: without it the module is not quantised */
} formats[] = {
    {"awq_g32", {"qweight", "qzeros", "scales"}},
    {"gptq_v1", {"qweight", "qzeros", "scales"}},
    {"gptq_desc_act", {"qweight", "qzeros", "scales", "g_idx"}},
    {"packed_g64_asymmetric", {"weight_packed", "weight_scale", "weight_zero_point", "weight_shape"}},
    {"int8_asymmetric", {"weight", "weight_scale", "weight_zero_point"}},
    {"fp8_blocks", {"weight", "weight_scale_inv"}},
    {"fp8_tensor", {"weight", "weight_scale"}},
    {"float8_block", {"weight", "weight_scale"}},
};

static void test_quant_view_missing_tensors(void **state)
{
    (void)state;
    struct golden golden = {0};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++)
        for (size_t i = 0; i < 6 && formats[f].tensors[i]; i++) {
            struct tensor_view view = {0};
            golden_open(&golden, formats[f].name);
            drop(&golden, formats[f].tensors[i]);
            char part[64];
            snprintf(part, sizeof part, "%s is missing",
                     strcmp(formats[f].tensors[i], "weight_scale_inv") == 0 ? "weight_scale" : formats[f].tensors[i]);
            if (i)
                expect_refusal(&golden, part);
            else
                assert_int_equal(quant_view(&golden.scheme, find, &golden, &golden.arena, MODULE, golden.rows,
                                            golden.cols, &view, NULL),
                                 ST_NOTFOUND);
            golden_close(&golden);
        }
    golden_end(&golden);
}

static void test_quant_view_wrong_dtypes_and_shapes(void **state)
{
    (void)state;
    struct golden golden = {0};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++)
        for (size_t i = 0; i < 6 && formats[f].tensors[i]; i++)
            for (uint32_t how = 0; how < 6; how++) {
                golden_open(&golden, formats[f].name);
                struct tensor *tensor = tensor_of(&golden, formats[f].tensors[i]);
                struct raw_tensor *raw = &tensor->raw;
                bool decides = i == 0 && strcmp(formats[f].tensors[i], "weight") == 0; /* plain by its dtype */
                if ((how == 0 && decides) || (how > 0 && how < 3 && raw->dims_count == 0)) {
                    golden_close(&golden);
                    continue;
                }
                if (how == 0) raw->dtype = "F64";
                if (how == 1) raw->dims[0]++;
                if (how == 2) raw->dims[raw->dims_count - 1] = UINT64_MAX / 2;
                if (how == 3) {
                    raw->dims_count = 3;
                    raw->dims[2] = 1;
                }
                if (how == 4) raw->size_bytes--;
                if (how == 5) raw->size_bytes = 0;
                if (how == 3 && strcmp(tensor->name, MODULE ".weight_zero_point") == 0 && raw->dtype[1] == '8') {
                    golden_close(&golden); /* s8 zero points are held to their size */
                    continue;
                }
                if ((how == 1 || how == 2) && strcmp(formats[f].tensors[i], "weight_zero_point") == 0 &&
                    raw->dtype[1] == '8') {
                    golden_close(&golden);
                    continue;
                }
                expect_refusal(&golden, formats[f].tensors[i]);
                golden_close(&golden);
            }
    golden_end(&golden);
}

static void test_quant_view_other_model_shape(void **state)
{
    (void)state;
    struct golden golden = {0};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++)
        for (uint32_t how = 0; how < 5; how++) {
            golden_open(&golden, formats[f].name);
            uint32_t rows = golden.rows, cols = golden.cols;
            golden.rows = how == 0 ? rows + 8 : how == 1 ? rows - 1 : how == 2 ? UINT32_MAX : rows;
            golden.cols = how == 3 ? cols * 2 : how == 4 ? UINT32_MAX : cols;
            expect_refusal(&golden, MODULE);
            golden_close(&golden);
        }
    golden_end(&golden);
}

static void spoil_scale(const char *name, const char *suffix, uint32_t item_bytes, uint32_t bits)
{
    struct golden golden = {0};
    golden_open(&golden, name);
    struct tensor *tensor = tensor_of(&golden, suffix);
    memcpy((char *)tensor->copy + 1 + tensor->raw.size_bytes - item_bytes, &bits, item_bytes);
    expect_refusal(&golden, "not finite");
    golden_close(&golden);
    golden_end(&golden);
}

static void test_quant_view_scales_not_finite(void **state)
{
    (void)state;
    spoil_scale("awq_g32", "scales", 2, 0x7e00);
    spoil_scale("gptq_v1", "scales", 2, 0xfc00);
    spoil_scale("gptq_bf16", "scales", 2, 0x7f80);
    spoil_scale("packed_g32", "weight_scale", 2, 0x7fc0);
    spoil_scale("packed_f32_scales", "weight_scale", 4, 0x7f7fffff); /* finite, but not times 15 */
    spoil_scale("fp8_blocks", "weight_scale_inv", 4, 0xffc00000);
    spoil_scale("fp8_tensor", "weight_scale", 4, 0x7e800000);
    spoil_scale("fp8_blocks_e8m0", "weight_scale_inv", 1, 255);
}

static void test_quant_view_groups_outside(void **state)
{
    (void)state;
    static const int32_t bad[] = {3, -1, INT32_MIN, INT32_MAX};
    struct golden golden = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        golden_open(&golden, "gptq_desc_act");
        memcpy((char *)tensor_of(&golden, "g_idx")->copy + 1 + 4 * 95, &bad[i], 4);
        expect_refusal(&golden, "puts input 95 into group");
        golden_close(&golden);
    }
    golden_open(&golden, "packed_g32");
    memset((char *)tensor_of(&golden, "weight_shape")->copy + 1, 1, 8);
    expect_refusal(&golden, "weight_shape says");
    golden_close(&golden);
    golden_end(&golden);
}

/* A scale that F16 does not hold turns a matrix to a wider type, not to a wrong one: 2^-26 in BF16. */
static void test_quant_view_scale_outside_f16(void **state)
{
    (void)state;
    struct golden golden = {0};
    uint16_t tiny = (127 - 26) << 7;
    golden_open(&golden, "packed_g32");
    memcpy((char *)tensor_of(&golden, "weight_scale")->copy + 1, &tiny, 2);
    struct tensor_view view = open_view(&golden);
    assert_int_equal(view.type, TENSOR_F32);
    uint32_t word;
    memcpy(&word, (char *)tensor_of(&golden, "weight_packed")->copy + 1, 4);
    for (uint32_t k = 0; k < 8; k++) golden.values[k] = (float)((int)(word >> 4 * k & 15) - 8) * 0x1p-26f;
    float row[64];
    memcpy(row, tensor_rows(&view, 0, 1, row), sizeof row);
    for (uint32_t k = 0; k < 8; k++) assert_true(row[k] == golden.values[k]);
    for (uint32_t k = 32; k < 64; k++) assert_true(row[k] == golden.values[k]);
    golden_close(&golden);
    golden_end(&golden);
}

/* One scale and one zero point for a whole tensor, and for blocks of 16 x 32: no byte behind them is read. */
static void test_quant_view_zero_points_of_blocks(void **state)
{
    (void)state;
    enum { ROWS = 33, COLS = 64 };
    static const struct {
        uint64_t dims[2];
        const char *strategy;
    } cases[] = {{{1, 1}, "\"tensor\""}, {{3, 2}, "\"block\",\"block_structure\":[16,32]"}};
    static int8_t codes[ROWS * COLS];
    static float row[COLS];
    for (int i = 0; i < ROWS * COLS; i++) codes[i] = (int8_t)(i * 29 % 256 - 128);
    for (size_t c = 0; c < 2; c++) {
        struct golden golden = {.count = 3, .rows = ROWS, .cols = COLS};
        struct error err = {""};
        struct json *config;
        struct tensor_view view;
        char text[512];
        uint64_t blocks = cases[c].dims[0] * cases[c].dims[1];
        float *scales = malloc(4 * blocks);
        int8_t *zeros = malloc(blocks); /* ends where its allocation ends */
        for (uint64_t i = 0; i < blocks; i++) scales[i] = 0.25f * (float)(i + 1), zeros[i] = (int8_t)(3 * i - 5);
        golden.tensors[0] =
            (struct tensor){.name = MODULE ".weight", .raw = {"I8", 2, {ROWS, COLS}, codes, sizeof codes}};
        golden.tensors[1] =
            (struct tensor){.name = MODULE ".weight_scale",
                            .raw = {"F32", 2, {cases[c].dims[0], cases[c].dims[1]}, scales, 4 * blocks}};
        golden.tensors[2] = (struct tensor){.name = MODULE ".weight_zero_point",
                                            .raw = {"I8", 2, {cases[c].dims[0], cases[c].dims[1]}, zeros, blocks}};
        snprintf(
            text, sizeof text,
            "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"int-quantized\","
            "\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"],\"weights\":{\"num_bits\":8,\"type\":\"int\","
            "\"symmetric\":false,\"strategy\":%s}}}}}",
            cases[c].strategy);
        if (json_read(text, strlen(text), &config, &err) != ST_OK) fail_msg("%s", err.message);
        if (quant_scheme_read(config, &golden.scheme, &err) != ST_OK) fail_msg("%s", err.message);
        arena_init(&golden.arena, 0);
        if (quant_view(&golden.scheme, find, &golden, &golden.arena, MODULE, ROWS, COLS, &view, &err) != ST_OK)
            fail_msg("%s", err.message);
        uint8_t *made = malloc(tensor_row_bytes(tensor_type_info(view.type), COLS));
        for (uint32_t n = 0; n < ROWS; n++) {
            dequantize_row(view.type, tensor_rows(&view, n, n + 1, made), row, COLS);
            for (uint32_t k = 0; k < COLS; k++) {
                uint64_t block = blocks == 1 ? 0 : n / 16 * 2 + k / 32;
                assert_true(row[k] == (float)(codes[n * COLS + k] - zeros[block]) * scales[block]);
            }
        }
        free(made);
        free(scales);
        free(zeros);
        json_release(config);
        arena_free(&golden.arena);
    }
}

/* 128 inputs or more a scale: the codes stay as they are. Scales a row, a block of 16 x 128, a tensor. */
static void test_quant_view_fp8_blocks_of_128(void **state)
{
    (void)state;
    enum { ROWS = 33, COLS = 384 };
    static uint8_t codes[ROWS * COLS];
    static float scales[3 * 3 * ROWS], row[COLS];
    static const struct {
        uint64_t dims[2];
        const char *config;
    } cases[] = {
        {{3, 3}, "{\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[16,128]}}"},
        {{1, 1}, "{\"quantization_config\":{\"quant_method\":\"fp8\"}}"},
    };
    for (int i = 0; i < ROWS * COLS; i++) codes[i] = (uint8_t)(i * 37 % 251 & 0xfe); /* no NaN */
    for (int i = 0; i < 9 * ROWS; i++) scales[i] = 0.001f * (float)(i + 1);
    for (size_t c = 0; c < 2; c++) {
        struct golden golden = {.count = 2, .rows = ROWS, .cols = COLS};
        struct error err = {""};
        struct json *config;
        struct tensor_view view;
        uint64_t blocks = cases[c].dims[0] * cases[c].dims[1];
        golden.tensors[0] =
            (struct tensor){.name = MODULE ".weight", .raw = {"F8_E4M3", 2, {ROWS, COLS}, codes, sizeof codes}};
        golden.tensors[1] =
            (struct tensor){.name = MODULE ".weight_scale_inv",
                            .raw = {"F32", 2, {cases[c].dims[0], cases[c].dims[1]}, scales, 4 * blocks}};
        assert_int_equal(json_read(cases[c].config, strlen(cases[c].config), &config, &err), ST_OK);
        if (quant_scheme_read(config, &golden.scheme, &err) != ST_OK) fail_msg("%s", err.message);
        arena_init(&golden.arena, 0);
        if (quant_view(&golden.scheme, find, &golden, &golden.arena, MODULE, ROWS, COLS, &view, &err) != ST_OK)
            fail_msg("%s", err.message);
        assert_int_equal(view.type, TENSOR_F8);
        size_t row_bytes = tensor_row_bytes(tensor_type_info(view.type), COLS);
        uint8_t *made = malloc(ROWS * row_bytes);
        const uint8_t *rows = tensor_rows(&view, 0, 5, made);
        assert_ptr_equal(rows, made);
        (void)tensor_rows(&view, 5, ROWS, made + 5 * row_bytes);
        for (uint32_t n = 0; n < ROWS; n++) {
            dequantize_row(view.type, made + n * row_bytes, row, COLS);
            for (uint32_t k = 0; k < COLS; k++) {
                float scale = scales[blocks == 1 ? 0 : n / 16 * 3 + k / 128];
                assert_true(row[k] == f8_to_f32(codes[n * COLS + k]) * scale);
            }
        }
        free(made);
        json_release(config);
        arena_free(&golden.arena);
    }
}

static void test_quant_view_plain_modules(void **state)
{
    (void)state;
    struct golden golden = {0};
    struct tensor_view view = {0};
    golden_open(&golden, "float8_block");
    tensor_of(&golden, "weight")->raw.dtype = "BF16";
    struct error err = {""};
    assert_int_equal(
        quant_view(&golden.scheme, find, &golden, &golden.arena, MODULE, golden.rows, golden.cols, &view, &err),
        ST_NOTFOUND);
    assert_string_equal(err.message, "");
    golden.scheme = (struct quant_scheme){.method = QUANT_NONE};
    assert_int_equal(
        quant_view(&golden.scheme, find, &golden, &golden.arena, MODULE, golden.rows, golden.cols, &view, &err),
        ST_NOTFOUND);
    golden_close(&golden);
    golden_end(&golden);
}

/* No allocation of the arena may be lost or written over: with limits from nothing on, views fail cleanly or are right.
 */
static void test_quant_view_out_of_memory(void **state)
{
    (void)state;
    struct golden golden = {0};
    golden_open(&golden, "gptq_desc_act");
    uint32_t refused = 0, made = 0;
    for (size_t limit = 16; limit < 8192; limit += 16) {
        struct tensor_view view = {0};
        struct error err = {""};
        arena_free(&golden.arena);
        arena_init(&golden.arena, limit);
        enum status status =
            quant_view(&golden.scheme, find, &golden, &golden.arena, MODULE, golden.rows, golden.cols, &view, &err);
        assert_true(status == ST_OK || status == ST_NOMEM);
        if (status == ST_OK) check_rows(&golden, &view, 0, golden.rows, 0);
        status == ST_OK ? made++ : refused++;
    }
    assert_true(made > 0 && refused > 0);
    golden_close(&golden);
    golden_end(&golden);
}

static uint64_t seed = 20261123;

static uint64_t random_below(uint64_t count)
{
    return random_next(&seed) % count;
}

/* One thing of a case is not as it was: a dtype, a dim, a size, bytes of the content, or what the group says. */
static void spoil(struct golden *golden)
{
    static const char *const dtypes[] = {"F32", "F16", "BF16", "I8", "U8", "I32", "I64", "F8_E4M3", "F8_E8M0", "BOOL"};
    static const uint64_t sizes[] = {0, 1, 2, 3, 7, 8, 16, 31, 32, 33, 4096, UINT32_MAX, 1ull << 33, UINT64_MAX};
    struct tensor *tensor = &golden->tensors[random_below(golden->count)];
    struct quant_group *group = &golden->scheme.groups[random_below(golden->scheme.groups_count)];
    uint64_t size = sizes[random_below(sizeof sizes / sizeof *sizes)];
    switch (random_below(7)) {
    case 0: tensor->raw.dtype = dtypes[random_below(sizeof dtypes / sizeof *dtypes)]; break;
    case 1: tensor->raw.dims[random_below(QUANT_DIMS_MAX)] = size; break;
    case 2: tensor->raw.dims_count = (uint32_t)random_below(QUANT_DIMS_MAX + 1); break;
    case 3:
        if (size < tensor->raw.size_bytes) tensor->raw.size_bytes = size;
        break;
    case 4:
        for (uint32_t i = 0; i < 8 && tensor->raw.size_bytes; i++)
            ((uint8_t *)tensor->copy)[1 + random_below(tensor->raw.size_bytes)] ^= (uint8_t)(1u << random_below(8));
        break;
    case 5:
        if (random_below(2))
            group->block_rows = (uint32_t)size;
        else
            group->block_cols = size ? (uint32_t)size : UINT32_MAX;
        break;
    default:
        if (random_below(2))
            group->symmetric = !group->symmetric;
        else
            golden->scheme.has_order = !golden->scheme.has_order;
    }
}

/* Whatever is written into a case, a view is refused with a message, or its rows can be made. Under ASan nothing is
 * read that is not a tensor's. */
static void test_quant_view_random(void **state)
{
    (void)state;
    struct golden golden = {0};
    const char *name;
    const struct json *unused;
    void *iterator = NULL;
    uint32_t made = 0, refused = 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    while (json_iterate(json_member(golden_header(&golden), "__metadata__"), &iterator, &name, &unused))
        for (uint32_t i = 0; i < 300; i++) {
            golden_open(&golden, name);
            for (uint64_t times = 1 + random_below(3); times; times--) spoil(&golden);
            if (random_below(8) == 0) golden.rows = (uint32_t)(1 + random_below(48));
            if (random_below(8) == 0) golden.cols = (uint32_t)(1 + random_below(160));
            struct tensor_view view = {0};
            struct error err = {""};
            enum status status =
                quant_view(&golden.scheme, find, &golden, &golden.arena, MODULE, golden.rows, golden.cols, &view, &err);
            if (status == ST_OK) {
                uint8_t *rows = malloc(golden.rows * tensor_row_bytes(tensor_type_info(view.type), view.cols));
                tensor_rows(&view, 0, golden.rows, rows);
                free(rows);
                made++;
            } else if (status != ST_NOTFOUND) {
                assert_true(err.message[0] != 0);
                refused++;
            }
            golden_close(&golden);
        }
    print_message("%u made, %u refused\n", made, refused);
    assert_true(made > 1000 && refused > 1000);
    golden_end(&golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quant_view_golden),
        cmocka_unit_test(test_quant_view_missing_tensors),
        cmocka_unit_test(test_quant_view_wrong_dtypes_and_shapes),
        cmocka_unit_test(test_quant_view_other_model_shape),
        cmocka_unit_test(test_quant_view_scales_not_finite),
        cmocka_unit_test(test_quant_view_groups_outside),
        cmocka_unit_test(test_quant_view_scale_outside_f16),
        cmocka_unit_test(test_quant_view_zero_points_of_blocks),
        cmocka_unit_test(test_quant_view_fp8_blocks_of_128),
        cmocka_unit_test(test_quant_view_plain_modules),
        cmocka_unit_test(test_quant_view_out_of_memory),
        cmocka_unit_test(test_quant_view_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
