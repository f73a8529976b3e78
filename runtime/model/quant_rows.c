/* Rows of a quantised matrix as blocks of the type that was chosen for it; see quant.h for what a weight is worth.
 *
 * A piece is 32 inputs of up to 16 rows: a reader fills its codes from the file's layout, a writer makes a block of
 * each row. So each of the seven layouts and seven types is written once. Layouts that run down the inputs (AWQ, GPTQ)
 * give a piece from 32 or fewer places of the file, 16 rows being a cache line of GPTQ and 8 bytes of AWQ. */
#include "runtime/model/quant_matrix.h"

#include "kernels/dequantize.h"
#include "runtime/base/check.h"

#include <math.h>
#include <string.h>

enum { PIECE_ROWS = 16, PIECE_COLS = 32 };

struct piece {
    uint32_t row, rows, col, cols;
    uint8_t codes[PIECE_ROWS][PIECE_COLS];
};

/* Output n of eight in a word of AWQ is in this nibble: the inverse of the order 0 2 4 6 1 3 5 7. */
static const uint8_t awq_nibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

static inline uint32_t load_u32(const uint8_t *p)
{
    uint32_t u;
    memcpy(&u, p, sizeof u);
    return u;
}

static inline uint16_t load_u16(const uint8_t *p)
{
    uint16_t u;
    memcpy(&u, p, sizeof u);
    return u;
}

float quant_scale(const struct quant_matrix *matrix, uint32_t row, uint32_t group)
{
    size_t item = row / matrix->block_rows * matrix->scale_stride_row + group * matrix->scale_stride_group;
    float x;
    switch (matrix->scale_type) {
    case SCALE_F32: memcpy(&x, matrix->scales + item * 4, sizeof x); return x;
    case SCALE_F16: return f16_to_f32(load_u16(matrix->scales + item * 2));
    case SCALE_BF16: return bf16_to_f32(load_u16(matrix->scales + item * 2));
    case SCALE_E8M0: return matrix->scales[item] == 255 ? NAN : ldexpf(1.0f, matrix->scales[item] - 127);
    }
    return NAN;
}

int32_t quant_zero(const struct quant_matrix *matrix, uint32_t row, uint32_t group)
{
    uint32_t per_word = 32 / matrix->bits, place = row % per_word, mask = (1u << matrix->bits) - 1;
    size_t offset = group * matrix->zero_stride_group;
    switch (matrix->zero_layout) {
    case ZEROS_FIXED: return matrix->zero_fixed;
    case ZEROS_S8: return (int8_t)matrix->zeros[row * matrix->zero_stride_row + offset] + (1 << (matrix->bits - 1));
    case ZEROS_AWQ: place = awq_nibble[place]; break;
    case ZEROS_WORDS: break;
    }
    uint32_t word = load_u32(matrix->zeros + (row / per_word * matrix->zero_stride_row + offset) * 4);
    return (int32_t)((word + matrix->zero_add) >> place * matrix->bits & mask);
}

static void read_nibbles(const struct quant_matrix *matrix, struct piece *piece)
{
    for (uint32_t r = 0; r < piece->rows; r++) {
        const uint8_t *from = matrix->codes + (piece->row + r) * matrix->stride_bytes + piece->col / 2;
        for (uint32_t i = 0; i < (piece->cols + 1) / 2; i++) {
            piece->codes[r][2 * i] = from[i] & 15;
            piece->codes[r][2 * i + 1] = from[i] >> 4;
        }
    }
}

static void read_bytes(const struct quant_matrix *matrix, struct piece *piece)
{
    uint8_t flip = matrix->layout == CODES_S8 ? 0x80 : 0;
    for (uint32_t r = 0; r < piece->rows; r++) {
        const uint8_t *from = matrix->codes + (piece->row + r) * matrix->stride_bytes + piece->col;
        for (uint32_t k = 0; k < piece->cols; k++) piece->codes[r][k] = from[k] ^ flip;
    }
}

/* A word is `per_word` inputs of one output. */
static void read_down(const struct quant_matrix *matrix, struct piece *piece)
{
    uint32_t bits = matrix->bits, per_word = 32 / bits, mask = (1u << bits) - 1;
    for (uint32_t k = 0; k < piece->cols; k += per_word) {
        const uint8_t *from = matrix->codes + (piece->col + k) / per_word * matrix->stride_bytes + piece->row * 4ull;
        for (uint32_t r = 0; r < piece->rows; r++) {
            uint32_t word = load_u32(from + r * 4ull);
            for (uint32_t i = 0; i < per_word; i++) piece->codes[r][k + i] = (uint8_t)(word >> i * bits & mask);
        }
    }
}

/* A word is one input of eight outputs. */
static void read_across(const struct quant_matrix *matrix, struct piece *piece)
{
    for (uint32_t k = 0; k < piece->cols; k++) {
        const uint8_t *from = matrix->codes + (piece->col + k) * matrix->stride_bytes;
        for (uint32_t r = 0; r < piece->rows; r++) {
            uint32_t n = piece->row + r;
            piece->codes[r][k] = load_u32(from + n / 8 * 4ull) >> 4 * awq_nibble[n % 8] & 15;
        }
    }
}

static void read_codes(const struct quant_matrix *matrix, struct piece *piece)
{
    switch (matrix->layout) {
    case CODES_NIBBLES: read_nibbles(matrix, piece); break;
    case CODES_BYTES:
    case CODES_S8:
    case CODES_FP8: read_bytes(matrix, piece); break;
    case CODES_DOWN4:
    case CODES_DOWN8: read_down(matrix, piece); break;
    case CODES_ACROSS: read_across(matrix, piece); break;
    }
}

static uint32_t group_of(const struct quant_matrix *matrix, uint32_t col)
{
    return matrix->group_of ? matrix->group_of[col] : col / matrix->group_size;
}

static void put_u16(uint8_t *p, uint16_t u)
{
    memcpy(p, &u, sizeof u);
}

/* A block of 32 inputs with one scale and one zero point; quant_view.c has seen that the type holds it. */
static void write_block(enum tensor_type type, const uint8_t *codes, float scale, int32_t zero, uint8_t *block)
{
    put_u16(block, f32_to_f16(scale));
    if (type == TENSOR_Q8_0) {
        for (int i = 0; i < 32; i++) block[2 + i] = codes[i] ^ 0x80;
        return;
    }
    uint8_t shifted[32];
    uint32_t high = 0;
    if (type == TENSOR_Q4_1) put_u16(block + 2, f32_to_f16((float)-zero * scale));
    if (type == TENSOR_Q5_0) {
        for (int i = 0; i < 32; i++) shifted[i] = (uint8_t)(codes[i] + 16 - zero);
        for (int i = 0; i < 32; i++) high |= (uint32_t)(shifted[i] >> 4) << i;
        memcpy(block + 2, &high, sizeof high);
        codes = shifted;
    }
    uint8_t *nibbles = block + (type == TENSOR_Q4_0 ? 2 : type == TENSOR_Q4_1 ? 4 : 6);
    for (int i = 0; i < 16; i++) nibbles[i] = (uint8_t)((codes[i] & 15) | codes[i + 16] << 4);
}

/* E4M3: sign, 4 bits of exponent biased by 7, 3 of fraction; no infinities, 0x7f is NaN. */
static void make_fp8_table(float table[256])
{
    for (int code = 0; code < 128; code++) {
        int exponent = code >> 3, fraction = code & 7;
        float x = exponent ? (float)(8 + fraction) * 0x1p-10f * (float)(1 << exponent) : (float)fraction * 0x1p-9f;
        if (code == 127) x = NAN;
        table[code] = x;
        table[code + 128] = -x;
    }
}

/* A quarter of a block of F8: its codes, and with the first its scale. */
static void write_f8(const struct quant_matrix *matrix, const struct piece *piece, uint32_t r, uint8_t *row)
{
    const struct tensor_type_info *info = tensor_type_info(TENSOR_F8);
    uint32_t at = piece->col % info->block_items;
    uint8_t *block = row + piece->col / info->block_items * (size_t)info->block_bytes;
    float scale = quant_scale(matrix, piece->row + r, group_of(matrix, piece->col));
    if (at == 0) memcpy(block, &scale, sizeof scale);
    memcpy(block + sizeof scale + at, piece->codes[r], piece->cols);
}

static void write_floats(const struct quant_matrix *matrix, const struct piece *piece, uint32_t r, const float *table,
                         uint8_t *row)
{
    float values[PIECE_COLS], scale = 0;
    int32_t zero = 0;
    uint32_t current = UINT32_MAX;
    for (uint32_t k = 0; k < piece->cols; k++) {
        uint32_t group = group_of(matrix, piece->col + k), code = piece->codes[r][k];
        if (group != current) {
            scale = quant_scale(matrix, piece->row + r, group);
            zero = table ? 0 : quant_zero(matrix, piece->row + r, group);
            current = group;
        }
        values[k] = (table ? table[code] : (float)((int32_t)code - zero)) * scale;
    }
    if (matrix->type == TENSOR_F32)
        memcpy(row + piece->col * 4ull, values, piece->cols * 4ull);
    else
        for (uint32_t k = 0; k < piece->cols; k++)
            put_u16(row + (piece->col + k) * 2ull,
                    matrix->type == TENSOR_BF16 ? f32_to_bf16(values[k]) : f32_to_f16(values[k]));
}

void quant_make_rows(const struct tensor_recipe *recipe, uint32_t row_begin, uint32_t row_end, void *rows)
{
    const struct quant_matrix *matrix = (const struct quant_matrix *)(const void *)recipe;
    const struct tensor_type_info *info = tensor_type_info(matrix->type);
    const bool blocks = info->block_items == PIECE_COLS;
    size_t row_bytes = tensor_row_bytes(info, matrix->cols);
    float fp8[256];
    CHECK(row_begin <= row_end && row_end <= matrix->rows);
    if (matrix->layout == CODES_FP8) make_fp8_table(fp8);
    for (uint32_t row = row_begin; row < row_end; row += PIECE_ROWS) {
        struct piece piece = {.row = row, .rows = row_end - row < PIECE_ROWS ? row_end - row : PIECE_ROWS};
        uint8_t *to = (uint8_t *)rows + (row - row_begin) * row_bytes;
        for (uint32_t col = 0; col < matrix->cols; col += PIECE_COLS) {
            piece.col = col;
            piece.cols = matrix->cols - col < PIECE_COLS ? matrix->cols - col : PIECE_COLS;
            read_codes(matrix, &piece);
            for (uint32_t r = 0; r < piece.rows; r++)
                if (blocks) {
                    uint32_t group = group_of(matrix, col);
                    write_block(matrix->type, piece.codes[r], quant_scale(matrix, row + r, group),
                                quant_zero(matrix, row + r, group),
                                to + r * row_bytes + (size_t)(col / PIECE_COLS) * info->block_bytes);
                } else if (matrix->type == TENSOR_F8) {
                    write_f8(matrix, &piece, r, to + r * row_bytes);
                } else
                    write_floats(matrix, &piece, r, matrix->layout == CODES_FP8 ? fp8 : NULL, to + r * row_bytes);
        }
    }
}
