/* From the tensors of a quantised module to a view: which tensors there are, that they are as they must be, and the
 * type that rows are made of.
 *
 * A reader a format (AWQ, GPTQ, codes of rows) fills a quant_matrix; what follows is common: one pass over all scales
 * and zero points refuses what is not finite and gathers what decides about the type. */
#include "runtime/model/quant.h"

#include "kernels/dequantize.h"
#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/model/quant_matrix.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define FP8_MAX 448.0f

/* The module that is looked at, and what its functions share. */
struct lookup {
    const struct quant_scheme *scheme;
    const struct quant_group *group;
    quant_find_fn find;
    void *state;
    struct arena *arena;
    const char *module;
    uint32_t rows, cols;
    const char *codes_name, *scales_name, *zeros_name; /* suffixes, for messages */
    struct error *err;
};

static bool has(const struct lookup *at, const char *suffix, struct raw_tensor *tensor)
{
    char name[QUANT_NAME_MAX + 32];
    snprintf(name, sizeof name, "%s.%s", at->module, suffix);
    return at->find(at->state, name, tensor);
}

static enum status need(const struct lookup *at, const char *suffix, struct raw_tensor *tensor)
{
    if (has(at, suffix, tensor)) return ST_OK;
    return error_set(at->err, ST_INVAL, "tensor %s.%s is missing: %s weights need it", at->module, suffix,
                     quant_method_name(at->scheme->method));
}

static bool is_dtype(const struct raw_tensor *tensor, const char *dtype)
{
    return strcmp(tensor->dtype, dtype) == 0;
}

static enum status refuse_dtype(const struct lookup *at, const char *suffix, const struct raw_tensor *tensor,
                                const char *expected)
{
    return error_set(at->err, ST_INVAL, "tensor %s.%s is %.16s, expected %s", at->module, suffix, tensor->dtype,
                     expected);
}

/* A tensor of this dtype and of shape (d0, d1), or (d0) when d1 is 0. */
static enum status check(const struct lookup *at, const char *suffix, const struct raw_tensor *tensor,
                         const char *dtype, size_t item_bytes, uint64_t d0, uint64_t d1)
{
    uint32_t count = d1 ? 2 : 1;
    size_t bytes;
    if (!is_dtype(tensor, dtype)) return refuse_dtype(at, suffix, tensor, dtype);
    if (tensor->dims_count != count || tensor->dims[0] != d0 || (d1 && tensor->dims[1] != d1))
        return error_set(at->err, ST_INVAL,
                         "tensor %s.%s has another shape than [%" PRIu64 ", %" PRIu64 "], which a matrix of %" PRIu32
                         " outputs and %" PRIu32 " inputs needs",
                         at->module, suffix, d0, d1 ? d1 : 1, at->rows, at->cols);
    if (checked_mul(d0, d1 ? d1 : 1, &bytes) && checked_mul(bytes, item_bytes, &bytes) && bytes == tensor->size_bytes)
        return ST_OK;
    return error_set(at->err, ST_INVAL, "tensor %s.%s has %zu bytes, which is not its shape's size", at->module, suffix,
                     tensor->size_bytes);
}

static uint32_t divide_up(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

/* The type and the size of scales. dims are the caller's business. */
static enum status take_scales(const struct lookup *at, const struct raw_tensor *tensor, struct quant_matrix *matrix)
{
    static const struct {
        const char *dtype;
        enum scale_type type;
        size_t item_bytes;
    } types[] = {{"F32", SCALE_F32, 4},
                 {"F16", SCALE_F16, 2},
                 {"BF16", SCALE_BF16, 2},
                 {"F8_E8M0", SCALE_E8M0, 1},
                 {"U8", SCALE_E8M0, 1}}; /* how E8M0 is stored where a library lacks the type */
    uint64_t items = 1;
    for (uint32_t i = 0; i < tensor->dims_count; i++)
        if (__builtin_mul_overflow(items, tensor->dims[i], &items)) items = UINT64_MAX / 4;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (!is_dtype(tensor, types[i].dtype)) continue;
        if (types[i].type == SCALE_E8M0 && !at->group->is_float) break;
        if (items > SIZE_MAX / 4 || items * types[i].item_bytes != tensor->size_bytes)
            return error_set(at->err, ST_INVAL, "tensor %s.%s has %zu bytes, which is not its shape's size", at->module,
                             at->scales_name, tensor->size_bytes);
        matrix->scale_type = types[i].type;
        matrix->scales = tensor->data;
        return ST_OK;
    }
    return refuse_dtype(at, at->scales_name, tensor, "F32, F16 or BF16");
}

/* Scales by outputs, then groups: one for all, one an output, or a grid of blocks. */
static enum status place_scales(const struct lookup *at, const struct raw_tensor *tensor, struct quant_matrix *matrix)
{
    uint64_t d0 = tensor->dims_count > 0 ? tensor->dims[0] : 1, d1 = tensor->dims_count > 1 ? tensor->dims[1] : 1;
    uint32_t block_rows = at->group->block_rows, block_cols = at->group->block_cols;
    if (tensor->dims_count > 2)
        return error_set(at->err, ST_INVAL, "tensor %s.%s has more than two dims", at->module, at->scales_name);
    if (!block_rows && d0 && at->rows % d0 == 0) block_rows = (uint32_t)(at->rows / d0);
    if (!block_cols && d1 && at->cols % d1 == 0) block_cols = (uint32_t)(at->cols / d1);
    if (block_cols > at->cols) block_cols = at->cols;
    if (d0 == 1 && d1 == 1) { /* of the tensor, whatever the configuration calls it */
        block_rows = at->rows;
        block_cols = at->cols;
    } else if (d0 == at->rows && d1 == 1 && (block_rows == 1 || !at->group->block_rows)) {
        block_rows = 1;
        if (!at->group->block_cols) block_cols = at->cols;
    }
    if (!block_rows || !block_cols || d0 != divide_up(at->rows, block_rows) || d1 != divide_up(at->cols, block_cols))
        return error_set(at->err, ST_INVAL,
                         "tensor %s.%s has shape [%" PRIu64 ", %" PRIu64 "], which does not fit a matrix of %" PRIu32
                         " outputs and %" PRIu32 " inputs in blocks of %" PRIu32 " by %" PRIu32,
                         at->module, at->scales_name, d0, d1, at->rows, at->cols, block_rows, block_cols);
    matrix->block_rows = block_rows;
    matrix->group_size = block_cols;
    matrix->groups = (uint32_t)d1;
    matrix->scale_stride_row = d1;
    matrix->scale_stride_group = 1;
    return take_scales(at, tensor, matrix);
}

/* Which group each input is in, copied, so that it stays what was checked; left out where it is the plain order. */
static enum status read_order(const struct lookup *at, const char *suffix, struct quant_matrix *matrix)
{
    struct raw_tensor tensor;
    bool plain = true;
    if (!has(at, suffix, &tensor)) {
        if (!at->scheme->has_order) return ST_OK;
        return error_set(at->err, ST_INVAL, "tensor %s.%s is missing: desc_act needs it", at->module, suffix);
    }
    TRY(check(at, suffix, &tensor, "I32", 4, at->cols, 0));
    uint32_t *order = arena_alloc(at->arena, at->cols, sizeof *order);
    if (!order) return error_set(at->err, ST_NOMEM, "no memory for tensor %s.%s", at->module, suffix);
    memcpy(order, tensor.data, at->cols * sizeof *order);
    for (uint32_t k = 0; k < at->cols; k++) {
        if (order[k] >= matrix->groups)
            return error_set(at->err, ST_INVAL,
                             "tensor %s.%s puts input %" PRIu32 " into group %" PRId32 ", but there are %" PRIu32,
                             at->module, suffix, k, (int32_t)order[k], matrix->groups);
        if (order[k] != k / matrix->group_size) plain = false;
    }
    if (!plain) matrix->group_of = order;
    return ST_OK;
}

/* AWQ and GPTQ have scales by groups, then outputs, and words of zero points likewise. */
static enum status read_columns(struct lookup *at, const struct raw_tensor *codes, struct quant_matrix *matrix)
{
    struct raw_tensor scales, zeros;
    const bool awq = at->scheme->method == QUANT_AWQ;
    uint32_t bits = at->group->bits, per_word = 32 / bits;
    uint32_t asked = at->group->block_cols, group_size = asked && asked < at->cols ? asked : at->cols;
    uint32_t groups = divide_up(at->cols, group_size);
    at->scales_name = "scales";
    at->zeros_name = "qzeros";
    if (at->rows % per_word || (!awq && at->cols % per_word) || (awq && at->cols % group_size))
        return error_set(at->err, ST_INVAL,
                         "tensor %s.qweight: %" PRIu32 " outputs and %" PRIu32 " inputs are not whole words of %" PRIu32
                         " codes and whole groups of %" PRIu32,
                         at->module, at->rows, at->cols, per_word, group_size);
    TRY(check(at, at->codes_name, codes, "I32", 4, awq ? at->cols : at->cols / per_word,
              awq ? at->rows / per_word : at->rows));
    TRY(need(at, at->scales_name, &scales));
    TRY(need(at, at->zeros_name, &zeros));
    TRY(check(at, at->zeros_name, &zeros, "I32", 4, groups, at->rows / per_word));
    TRY(take_scales(at, &scales, matrix));
    if (scales.dims_count != 2 || scales.dims[0] != groups || scales.dims[1] != at->rows)
        return error_set(at->err, ST_INVAL,
                         "tensor %s.scales has another shape than [%" PRIu32 ", %" PRIu32 "]: groups of %" PRIu32
                         " of %" PRIu32 " inputs, outputs",
                         at->module, groups, at->rows, group_size, at->cols);
    matrix->layout = awq ? CODES_ACROSS : bits == 4 ? CODES_DOWN4 : CODES_DOWN8;
    matrix->stride_bytes = (size_t)codes->dims[1] * 4;
    matrix->scale_stride_row = 1;
    matrix->scale_stride_group = at->rows;
    matrix->block_rows = 1;
    matrix->group_size = group_size;
    matrix->groups = groups;
    matrix->zero_layout = awq ? ZEROS_AWQ : ZEROS_WORDS;
    matrix->zeros = zeros.data;
    matrix->zero_stride_row = 1;
    matrix->zero_stride_group = at->rows / per_word;
    if (at->scheme->zeros_less_one) matrix->zero_add = bits == 4 ? 0x11111111 : 0x01010101;
    return awq ? ST_OK : read_order(at, "g_idx", matrix);
}

/* Zero points of compressed-tensors: in words down the outputs, where codes are packed and there is one an output or
 * more; else s8 like the scales. */
static enum status read_zeros(struct lookup *at, bool packed, struct quant_matrix *matrix)
{
    struct raw_tensor zeros;
    uint32_t per_word = 32 / matrix->bits;
    at->zeros_name = "weight_zero_point";
    if (at->group->symmetric && !has(at, at->zeros_name, &zeros)) return ST_OK;
    TRY(need(at, at->zeros_name, &zeros));
    matrix->zeros = zeros.data;
    if (packed && is_dtype(&zeros, "I32")) {
        if (matrix->block_rows != 1)
            return error_set(at->err, ST_INVAL, "tensor %s.%s is packed, but scales are not one an output", at->module,
                             at->zeros_name);
        matrix->zero_layout = ZEROS_WORDS;
        matrix->zero_stride_row = matrix->groups;
        matrix->zero_stride_group = 1;
        return check(at, at->zeros_name, &zeros, "I32", 4, divide_up(at->rows, per_word), matrix->groups);
    }
    if (!is_dtype(&zeros, "I8")) return refuse_dtype(at, at->zeros_name, &zeros, packed ? "I32 or I8" : "I8");
    if (zeros.size_bytes != (size_t)divide_up(at->rows, matrix->block_rows) * matrix->groups)
        return error_set(at->err, ST_INVAL, "tensor %s.%s has another size than the scales", at->module,
                         at->zeros_name);
    matrix->zero_layout = ZEROS_S8;
    matrix->zero_stride_row = matrix->groups;
    matrix->zero_stride_group = 1;
    return ST_OK;
}

static enum status read_packed(struct lookup *at, const struct raw_tensor *codes, struct quant_matrix *matrix)
{
    struct raw_tensor shape, scales;
    uint32_t bits = at->group->bits, words = divide_up(at->cols, 32 / bits);
    uint64_t dims[2];
    TRY(check(at, at->codes_name, codes, "I32", 4, at->rows, words));
    if (at->group->is_float)
        return error_set(at->err, ST_INVAL, "tensor %s.weight_packed: packed float weights are not supported",
                         at->module);
    TRY(need(at, "weight_shape", &shape));
    if (is_dtype(&shape, "I32")) {
        int32_t narrow[2];
        TRY(check(at, "weight_shape", &shape, "I32", 4, 2, 0));
        memcpy(narrow, shape.data, sizeof narrow);
        dims[0] = (uint64_t)narrow[0];
        dims[1] = (uint64_t)narrow[1];
    } else {
        TRY(check(at, "weight_shape", &shape, "I64", 8, 2, 0));
        memcpy(dims, shape.data, sizeof dims);
    }
    if (dims[0] != at->rows || dims[1] != at->cols)
        return error_set(at->err, ST_INVAL,
                         "tensor %s.weight_shape says [%" PRIu64 ", %" PRIu64 "], the model needs [%" PRIu32
                         ", %" PRIu32 "]",
                         at->module, dims[0], dims[1], at->rows, at->cols);
    matrix->layout = bits == 4 ? CODES_NIBBLES : CODES_BYTES;
    matrix->stride_bytes = words * (size_t)4;
    TRY(need(at, at->scales_name, &scales));
    TRY(place_scales(at, &scales, matrix));
    TRY(read_zeros(at, true, matrix));
    return read_order(at, "weight_g_idx", matrix);
}

/* compressed-tensors and FP8: codes by rows, in words or in bytes. */
static enum status read_rows(struct lookup *at, const struct raw_tensor *codes, struct quant_matrix *matrix)
{
    struct raw_tensor scales;
    bool fp8 = is_dtype(codes, "F8_E4M3");
    at->scales_name = "weight_scale";
    matrix->zero_layout = ZEROS_FIXED;
    matrix->zero_fixed = 1 << (matrix->bits - 1);
    if (strcmp(at->codes_name, "weight_packed") == 0) return read_packed(at, codes, matrix);
    if (fp8 != at->group->is_float)
        return refuse_dtype(at, at->codes_name, codes, fp8 ? "I8 by its config group" : "F8_E4M3 by its config group");
    matrix->bits = 8; /* also where they hold codes of four */
    matrix->zero_fixed = 128;
    TRY(check(at, at->codes_name, codes, fp8 ? "F8_E4M3" : "I8", 1, at->rows, at->cols));
    matrix->layout = fp8 ? CODES_FP8 : CODES_S8;
    matrix->stride_bytes = at->cols;
    if (at->scheme->method == QUANT_FP8 && has(at, "weight_scale_inv", &scales))
        at->scales_name = "weight_scale_inv";
    else
        TRY(need(at, at->scales_name, &scales));
    TRY(place_scales(at, &scales, matrix));
    return fp8 ? ST_OK : read_zeros(at, false, matrix);
}

/* The tensor with the codes, if the module is quantised. */
static bool find_codes(struct lookup *at, struct raw_tensor *codes)
{
    switch (at->scheme->method) {
    case QUANT_NONE: return false;
    case QUANT_AWQ:
    case QUANT_GPTQ: at->codes_name = "qweight"; return has(at, at->codes_name, codes);
    case QUANT_FP8: at->codes_name = "weight"; return has(at, at->codes_name, codes) && is_dtype(codes, "F8_E4M3");
    case QUANT_COMPRESSED_TENSORS: break;
    }
    at->codes_name = "weight_packed";
    if (has(at, at->codes_name, codes)) return true;
    at->codes_name = "weight";
    return has(at, at->codes_name, codes) && (is_dtype(codes, "I8") || is_dtype(codes, "F8_E4M3"));
}

/* What all scales and zero points have in common. */
struct facts {
    bool with_digits; /* asked for: the digits too */
    bool scales_fit_f16;
    bool zeros_in_the_middle;
    bool minima_fit_f16; /* zero point * scale */
    uint32_t digits_max; /* of a scale's significand, in bits from the first to the last 1 */
    int low_exponent;    /* of the last 1 of any scale */
    float scale_max;     /* largest magnitude */
};

static bool fits_f16(float x)
{
    return f16_to_f32(f32_to_f16(x)) == x;
}

static void note_digits(struct facts *facts, float scale)
{
    uint32_t u;
    memcpy(&u, &scale, sizeof u);
    uint32_t exponent = u >> 23 & 255, fraction = u & 0x7fffff;
    if (exponent) fraction |= 0x800000;
    if (!fraction) return;
    uint32_t zeros = (uint32_t)__builtin_ctz(fraction), digits = 32 - (uint32_t)__builtin_clz(fraction) - zeros;
    int low = (exponent ? (int)exponent - 150 : -149) + (int)zeros;
    if (digits > facts->digits_max) facts->digits_max = digits;
    if (low < facts->low_exponent) facts->low_exponent = low;
}

static enum status note_scale(const struct lookup *at, const struct quant_matrix *matrix, struct facts *facts,
                              uint32_t row, uint32_t group, float *scale)
{
    float limit = 3.4e38f / (at->group->is_float ? FP8_MAX : 256.0f);
    *scale = quant_scale(matrix, row, group);
    float magnitude = fabsf(*scale);
    if (!(magnitude <= limit))
        return error_set(at->err, ST_INVAL,
                         "tensor %s.%s: the scale of output %" PRIu32 ", group %" PRIu32
                         " is %g, which makes weights that are not finite",
                         at->module, at->scales_name, row, group, (double)*scale);
    if (magnitude > facts->scale_max) facts->scale_max = magnitude;
    if (facts->scales_fit_f16 && matrix->scale_type != SCALE_F16 && !fits_f16(*scale)) facts->scales_fit_f16 = false;
    if (facts->with_digits) note_digits(facts, *scale);
    return ST_OK;
}

static enum status note_zero(const struct lookup *at, const struct quant_matrix *matrix, struct facts *facts,
                             uint32_t row, uint32_t group, float scale)
{
    int32_t zero = quant_zero(matrix, row, group), middle = 1 << (matrix->bits - 1);
    if (zero < 0 || zero >= 2 * middle)
        return error_set(at->err, ST_INVAL,
                         "tensor %s.%s: the zero point of output %" PRIu32 ", group %" PRIu32 " is %" PRId32
                         ", which codes of %" PRIu32 " bits do not have",
                         at->module, at->zeros_name, row, group, zero - middle, matrix->bits);
    if (zero != middle) facts->zeros_in_the_middle = false;
    if (facts->minima_fit_f16 && zero == middle) /* a power of two times a scale that fits */
        facts->minima_fit_f16 = fabsf(scale) * (float)middle < 0x1p15f;
    else if (facts->minima_fit_f16)
        facts->minima_fit_f16 = fits_f16((float)-zero * scale);
    return ST_OK;
}

/* All of them, in the order in which they lie. */
static enum status gather(const struct lookup *at, const struct quant_matrix *matrix, bool with_digits,
                          struct facts *facts)
{
    bool by_rows = matrix->scale_stride_group == 1 && matrix->scale_stride_row != 1;
    bool has_zeros = matrix->zero_layout != ZEROS_FIXED;
    uint32_t step = has_zeros ? 1 : matrix->block_rows;
    uint32_t outer = by_rows ? matrix->rows : matrix->groups, inner = by_rows ? matrix->groups : matrix->rows;
    float scale = 0;
    *facts = (struct facts){with_digits, true, true, true, 0, INT32_MAX, 0};
    for (uint32_t i = 0; i < outer; i += by_rows ? step : 1)
        for (uint32_t j = 0; j < inner; j += by_rows ? 1 : step) {
            uint32_t row = by_rows ? i : j, group = by_rows ? j : i;
            TRY(note_scale(at, matrix, facts, row, group, &scale));
            if (has_zeros) TRY(note_zero(at, matrix, facts, row, group, scale));
        }
    return ST_OK;
}

/* Products of codes and scales as floating point: digits of both together, and the place of the last. */
static enum tensor_type choose_float(const struct quant_matrix *matrix, const struct facts *facts)
{
    bool fp8 = matrix->layout == CODES_FP8;
    uint32_t code_digits = fp8 ? 4 : matrix->bits;
    uint32_t digits = facts->digits_max <= 1 ? code_digits : code_digits + facts->digits_max;
    int low = facts->digits_max ? facts->low_exponent + (fp8 ? -9 : 0) : 0;
    float largest = facts->scale_max * (fp8 ? FP8_MAX : (float)(1 << matrix->bits));
    if (digits <= 8 && low >= -133 && largest < 0x1p127f) return TENSOR_BF16;
    if (digits <= 11 && low >= -24 && largest < 0x1p15f) return TENSOR_F16;
    return TENSOR_F32;
}

/* Does every block of 32 inputs lie in one group? */
static bool has_whole_blocks(const struct quant_matrix *matrix)
{
    if (matrix->cols % 32) return false;
    if (!matrix->group_of) return matrix->groups == 1 || matrix->group_size % 32 == 0;
    for (uint32_t k = 0; k < matrix->cols; k++)
        if (matrix->group_of[k] != matrix->group_of[k / 32 * 32]) return false;
    return true;
}

/* BF16 is as small as F8 in a device's memory, and faster; the others are neither. */
static enum tensor_type choose_fp8(const struct quant_matrix *matrix, const struct facts *facts)
{
    enum tensor_type type = choose_float(matrix, facts);
    bool blocks = matrix->cols % 128 == 0 && (matrix->groups == 1 || matrix->group_size % 128 == 0);
    return type != TENSOR_BF16 && blocks ? TENSOR_F8 : type;
}

/* The type that holds all values, and the checks of all scales and zero points. */
static enum status choose_type(const struct lookup *at, struct quant_matrix *matrix)
{
    struct facts facts;
    bool blocks = matrix->layout != CODES_FP8 && has_whole_blocks(matrix);
    TRY(gather(at, matrix, !blocks, &facts));
    if (matrix->bits == 8 && !facts.zeros_in_the_middle) blocks = false;
    if (blocks && facts.scales_fit_f16) {
        matrix->type = matrix->bits == 8           ? TENSOR_Q8_0
                       : facts.zeros_in_the_middle ? TENSOR_Q4_0
                       : facts.minima_fit_f16      ? TENSOR_Q4_1
                                                   : TENSOR_Q5_0;
        return ST_OK;
    }
    if (!facts.with_digits) TRY(gather(at, matrix, true, &facts));
    matrix->type = matrix->layout == CODES_FP8 ? choose_fp8(matrix, &facts) : choose_float(matrix, &facts);
    return ST_OK;
}

static enum status finish(const struct lookup *at, struct quant_matrix *matrix, struct tensor_view *view)
{
    char name[QUANT_NAME_MAX + 32];
    TRY(choose_type(at, matrix));
    struct quant_matrix *kept = arena_alloc(at->arena, 1, sizeof *kept);
    int length = snprintf(name, sizeof name, "%s.%s", at->module, at->codes_name);
    char *kept_name = arena_strdup(at->arena, name, (size_t)length);
    if (!kept || !kept_name) return error_set(at->err, ST_NOMEM, "no memory for tensor %s", name);
    *kept = *matrix;
    *view = (struct tensor_view){.data = matrix->codes,
                                 .type = matrix->type,
                                 .rows = matrix->rows,
                                 .cols = matrix->cols,
                                 .name = kept_name,
                                 .recipe = &kept->recipe};
    return ST_OK;
}

enum status quant_view(const struct quant_scheme *scheme, quant_find_fn find, void *state, struct arena *arena,
                       const char *module, uint32_t rows, uint32_t cols, struct tensor_view *view, struct error *err)
{
    struct lookup at = {.scheme = scheme,
                        .find = find,
                        .state = state,
                        .arena = arena,
                        .module = module,
                        .rows = rows,
                        .cols = cols,
                        .zeros_name = "",
                        .err = err};
    struct raw_tensor codes;
    CHECK(rows > 0 && cols > 0);
    if (strlen(module) > QUANT_NAME_MAX)
        return error_set(err, ST_LIMIT, "module %.64s... has a name of more than %d bytes", module, QUANT_NAME_MAX);
    if (!find_codes(&at, &codes)) return ST_NOTFOUND;
    TRY(quant_scheme_group(scheme, module, &at.group, err));
    struct quant_matrix matrix = {
        .recipe = {quant_make}, .rows = rows, .cols = cols, .bits = at.group->bits, .codes = codes.data};
    bool by_columns = scheme->method == QUANT_AWQ || scheme->method == QUANT_GPTQ;
    TRY(by_columns ? read_columns(&at, &codes, &matrix) : read_rows(&at, &codes, &matrix));
    return finish(&at, &matrix, view);
}

struct cut {
    struct tensor_recipe recipe;
    const struct tensor_recipe *whole;
    uint32_t row_begin;
};

static void make_cut(const struct tensor_recipe *recipe, struct tensor_area area, void *rows)
{
    const struct cut *cut = (const struct cut *)(const void *)recipe;
    area.row_begin += cut->row_begin;
    area.row_end += cut->row_begin;
    cut->whole->make(cut->whole, area, rows);
}

enum status quant_cut_rows(const struct tensor_view *view, uint32_t row_begin, uint32_t rows, struct arena *arena,
                           struct tensor_view *cut)
{
    CHECK(row_begin <= view->rows && rows <= view->rows - row_begin);
    struct tensor_view made = *view;
    made.rows = rows;
    if (view->recipe) {
        struct cut *kept = arena_alloc(arena, 1, sizeof *kept);
        if (!kept) return ST_NOMEM;
        *kept = (struct cut){{make_cut}, view->recipe, row_begin};
        made.recipe = &kept->recipe;
    } else {
        made.data =
            (const uint8_t *)view->data + row_begin * tensor_row_bytes(tensor_type_info(view->type), view->cols);
    }
    *cut = made;
    return ST_OK;
}
