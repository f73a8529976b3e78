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
    uint32_t row, rows, col, cols, col_begin, col_end; /* the last two: of all pieces of these rows */
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
    case ZEROS_S8:
        return (int8_t)matrix->zeros[row / matrix->block_rows * matrix->zero_stride_row + offset] +
               (1 << (matrix->bits - 1));
    case ZEROS_AWQ: place = awq_nibble[place]; break;
    case ZEROS_WORDS: break;
    }
    uint32_t word = load_u32(matrix->zeros + (row / per_word * matrix->zero_stride_row + offset) * 4);
    return (int32_t)((word + matrix->zero_add) >> place * matrix->bits & mask);
}

/* The eight nibbles of a word as bytes of a u64, in the same order. */
static inline uint64_t spread_nibbles(uint32_t word)
{
    uint64_t x = word;
    x = (x | x << 16) & 0x0000ffff0000ffff;
    x = (x | x << 8) & 0x00ff00ff00ff00ff;
    return (x | x << 4) & 0x0f0f0f0f0f0f0f0f;
}

static inline void put_u64(uint8_t *p, uint64_t u)
{
    memcpy(p, &u, sizeof u);
}

static void read_nibbles(const struct quant_matrix *matrix, struct piece *piece)
{
    for (uint32_t r = 0; r < piece->rows; r++) { /* a row is whole words */
        const uint8_t *from = matrix->codes + (piece->row + r) * matrix->stride_bytes + piece->col / 2;
        for (uint32_t k = 0; k < piece->cols; k += 8)
            put_u64(piece->codes[r] + k, spread_nibbles(load_u32(from + k / 2)));
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

/* A word is four or eight inputs of one output. */
static void read_down(const struct quant_matrix *matrix, struct piece *piece)
{
    uint32_t per_word = 32 / matrix->bits;
    for (uint32_t k = 0; k < piece->cols; k += per_word) {
        const uint8_t *from = matrix->codes + (piece->col + k) / per_word * matrix->stride_bytes + piece->row * 4ull;
        for (uint32_t r = 0; r < piece->rows; r++) {
            uint32_t word = load_u32(from + r * 4ull);
            if (per_word == 8)
                put_u64(piece->codes[r] + k, spread_nibbles(word));
            else
                memcpy(piece->codes[r] + k, &word, sizeof word);
        }
    }
}

/* Bytes i of x[j] and j of x[i] change places: 1, 2, then 4 apart. */
static inline void transpose_bytes(uint64_t x[8])
{
    static const uint64_t masks[3] = {0x00ff00ff00ff00ff, 0x0000ffff0000ffff, 0x00000000ffffffff};
    for (unsigned step = 0; step < 3; step++)
        for (unsigned i = 0, apart = 1u << step; i < 8; i++) {
            if (i & apart) continue;
            uint64_t change = ((x[i] >> (8 * apart)) ^ x[i + apart]) & masks[step];
            x[i] ^= change << (8 * apart);
            x[i + apart] ^= change;
        }
}

/* A word is one input of eight outputs: eight inputs at a time, so that a place of the file is read once for all rows.
 */
static void read_across(const struct quant_matrix *matrix, struct piece *piece)
{
    static const uint8_t output[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    for (uint32_t k = 0; k < piece->cols; k += 8) {
        const uint8_t *from = matrix->codes + (piece->col + k) * matrix->stride_bytes;
        uint32_t inputs = piece->cols - k < 8 ? piece->cols - k : 8;
        for (uint32_t word = piece->row / 8; word * 8 < piece->row + piece->rows; word++) {
            uint64_t x[8] = {0};
            for (uint32_t i = 0; i < inputs; i++)
                x[i] = spread_nibbles(load_u32(from + i * matrix->stride_bytes + word * 4ull));
            transpose_bytes(x);
            for (uint32_t i = 0; i < 8; i++) {
                uint32_t r = word * 8 + output[i] - piece->row; /* wraps for rows before the piece */
                if (r < piece->rows) put_u64(piece->codes[r] + k, x[i]);
            }
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

/* What the blocks of a row have in common while they lie in one group. */
struct head {
    uint16_t d, m; /* F16 */
    uint8_t shift; /* to codes, for Q5_0 */
};

static void make_heads(const struct quant_matrix *matrix, const struct piece *piece, uint32_t group, struct head *heads)
{
    for (uint32_t r = 0; r < piece->rows; r++) {
        float scale = quant_scale(matrix, piece->row + r, group);
        int32_t zero = quant_zero(matrix, piece->row + r, group);
        heads[r] = (struct head){f32_to_f16(scale), 0, (uint8_t)(16 - zero)};
        if (matrix->type == TENSOR_Q4_1) heads[r].m = f32_to_f16((float)-zero * scale);
    }
}

static inline void put_nibbles(uint8_t *to, const uint8_t *codes)
{
    for (int i = 0; i < 16; i++) to[i] = (uint8_t)((codes[i] & 15) | codes[i + 16] << 4);
}

static void write_q5_0(const uint8_t *codes, uint8_t shift, uint8_t *block)
{
    uint8_t shifted[32];
    uint64_t x[4];
    for (int i = 0; i < 32; i++) shifted[i] = (uint8_t)(codes[i] + shift);
    memcpy(x, shifted, sizeof x);
    for (int i = 0; i < 4; i++) /* the fifth bits of eight bytes, side by side in the product's highest byte */
        block[2 + i] = (uint8_t)(((x[i] >> 4 & 0x0101010101010101) * 0x0102040810204080) >> 56);
    put_nibbles(block + 6, shifted);
}

/* A block of 32 inputs with one scale and one zero point; quant_view.c has seen that the type holds it. */
static inline void write_block(enum tensor_type type, const uint8_t *codes, const struct head *head, uint8_t *block)
{
    put_u16(block, head->d);
    if (type == TENSOR_Q8_0) {
        for (int i = 0; i < 32; i++) block[2 + i] = codes[i] ^ 0x80;
    } else if (type == TENSOR_Q5_0) {
        write_q5_0(codes, head->shift, block);
    } else {
        if (type == TENSOR_Q4_1) put_u16(block + 2, head->m);
        put_nibbles(block + (type == TENSOR_Q4_0 ? 2 : 4), codes);
    }
}

static void make_blocks(const struct quant_matrix *matrix, struct piece *piece, uint8_t *rows, size_t row_bytes)
{
    size_t block_bytes = tensor_type_info(matrix->type)->block_bytes;
    struct head heads[PIECE_ROWS];
    uint32_t current = UINT32_MAX;
    for (uint32_t col = piece->col_begin; col < piece->col_end; col += PIECE_COLS) {
        uint32_t group = group_of(matrix, col);
        piece->col = col;
        piece->cols = PIECE_COLS;
        read_codes(matrix, piece);
        if (group != current) make_heads(matrix, piece, current = group, heads);
        for (uint32_t r = 0; r < piece->rows; r++)
            write_block(matrix->type, piece->codes[r], &heads[r],
                        rows + r * row_bytes + (col - piece->col_begin) / PIECE_COLS * block_bytes);
    }
}

/* F8: codes as they are, with their scale before each block of them. */
static void make_f8_blocks(const struct quant_matrix *matrix, const struct piece *piece, uint8_t *rows,
                           size_t row_bytes)
{
    const struct tensor_type_info *info = tensor_type_info(TENSOR_F8);
    for (uint32_t r = 0; r < piece->rows; r++) {
        const uint8_t *codes = matrix->codes + (piece->row + r) * matrix->stride_bytes;
        uint8_t *block = rows + r * row_bytes;
        for (uint32_t col = piece->col_begin; col < piece->col_end; col += info->block_items) {
            float scale = quant_scale(matrix, piece->row + r, col / matrix->group_size);
            memcpy(block, &scale, sizeof scale);
            memcpy(block + sizeof scale, codes + col, info->block_items);
            block += info->block_bytes;
        }
    }
}

static void put_values(enum tensor_type type, const float *values, uint32_t col, uint32_t count, uint8_t *row)
{
    if (type == TENSOR_F32) memcpy(row + col * 4ull, values, count * 4ull);
    if (type == TENSOR_F32) return;
    for (uint32_t k = 0; k < count; k++)
        put_u16(row + (col + k) * 2ull, type == TENSOR_BF16 ? f32_to_bf16(values[k]) : f32_to_f16(values[k]));
}

/* Inputs in the plain order of groups: runs of one scale. fp8: what codes mean, or NULL. */
static void make_floats(const struct quant_matrix *matrix, struct piece *piece, const float *fp8, uint8_t *rows,
                        size_t row_bytes)
{
    float values[PIECE_COLS];
    for (uint32_t col = piece->col_begin, end; col < piece->col_end; col = end) {
        uint32_t group = col / matrix->group_size;
        piece->col = col;
        piece->cols = piece->col_end - col < PIECE_COLS ? piece->col_end - col : PIECE_COLS;
        end = col + piece->cols;
        read_codes(matrix, piece);
        for (uint32_t r = 0; r < piece->rows; r++) {
            const uint8_t *codes = piece->codes[r];
            for (uint32_t k = 0, run = group; k < piece->cols; run++) {
                uint64_t next = (uint64_t)(run + 1) * matrix->group_size;
                uint32_t run_end = next < end ? (uint32_t)next - col : piece->cols;
                float scale = quant_scale(matrix, piece->row + r, run);
                int32_t zero = fp8 ? 0 : quant_zero(matrix, piece->row + r, run);
                if (fp8)
                    for (; k < run_end; k++) values[k] = fp8[codes[k]] * scale;
                else
                    for (; k < run_end; k++) values[k] = (float)((int32_t)codes[k] - zero) * scale;
            }
            put_values(matrix->type, values, col - piece->col_begin, piece->cols, rows + r * row_bytes);
        }
    }
}

/* Inputs in any order of groups: a piece's scales are looked up in a table of a row's, as far as it reaches. */
enum { TABLE_GROUPS = 512 };

static void make_ordered_floats(const struct quant_matrix *matrix, struct piece *piece, uint8_t *rows, size_t row_bytes)
{
    float scales[PIECE_ROWS][TABLE_GROUPS], values[PIECE_COLS];
    uint8_t zeros[PIECE_ROWS][TABLE_GROUPS];
    uint32_t known = matrix->groups < TABLE_GROUPS ? matrix->groups : TABLE_GROUPS;
    for (uint32_t r = 0; r < piece->rows; r++)
        for (uint32_t group = 0; group < known; group++) {
            scales[r][group] = quant_scale(matrix, piece->row + r, group);
            zeros[r][group] = (uint8_t)quant_zero(matrix, piece->row + r, group);
        }
    for (uint32_t col = piece->col_begin; col < piece->col_end; col += PIECE_COLS) {
        const uint32_t *order = matrix->group_of + col;
        piece->col = col;
        piece->cols = piece->col_end - col < PIECE_COLS ? piece->col_end - col : PIECE_COLS;
        read_codes(matrix, piece);
        for (uint32_t r = 0; r < piece->rows; r++) {
            for (uint32_t k = 0; k < piece->cols; k++) {
                uint32_t group = order[k];
                bool at_hand = group < known;
                float scale = at_hand ? scales[r][group] : quant_scale(matrix, piece->row + r, group);
                int32_t zero = at_hand ? zeros[r][group] : quant_zero(matrix, piece->row + r, group);
                values[k] = (float)((int32_t)piece->codes[r][k] - zero) * scale;
            }
            put_values(matrix->type, values, col - piece->col_begin, piece->cols, rows + r * row_bytes);
        }
    }
}

void quant_make(const struct tensor_recipe *recipe, struct tensor_area area, void *rows)
{
    const struct quant_matrix *matrix = (const struct quant_matrix *)(const void *)recipe;
    const struct tensor_type_info *info = tensor_type_info(matrix->type);
    size_t row_bytes = tensor_row_bytes(info, area.col_end - area.col_begin);
    const bool fp8 = matrix->layout == CODES_FP8;
    float table[256];
    CHECK(area.row_begin <= area.row_end && area.row_end <= matrix->rows);
    CHECK(area.col_begin <= area.col_end && area.col_end <= matrix->cols);
    for (int code = 0; fp8 && code < 256; code++) table[code] = f8_to_f32((uint8_t)code);
    for (uint32_t row = area.row_begin; row < area.row_end; row += PIECE_ROWS) {
        uint32_t left = area.row_end - row;
        struct piece piece = {.row = row,
                              .rows = left < PIECE_ROWS ? left : PIECE_ROWS,
                              .col_begin = area.col_begin,
                              .col_end = area.col_end};
        uint8_t *to = (uint8_t *)rows + (row - area.row_begin) * row_bytes;
        if (info->block_items == PIECE_COLS)
            make_blocks(matrix, &piece, to, row_bytes);
        else if (matrix->type == TENSOR_F8)
            make_f8_blocks(matrix, &piece, to, row_bytes);
        else if (matrix->group_of)
            make_ordered_floats(matrix, &piece, to, row_bytes);
        else
            make_floats(matrix, &piece, fp8 ? table : NULL, to, row_bytes);
    }
}
