/* Preparing and multiplying: splits the work into tiles of 16 rows and hands them to the path.
 *
 * Up to 16 rows go through all panels in one call, so that the weights are one long stream. Above, each panel meets all
 * tiles of at most 256 rows while it is in L1, and the 256 rows' activations stay in L2. The lines of the results, far
 * from one another, are asked for before a tile is multiplied. */
#include "kernels/matmul.h"

#include "kernels/matmul_panel.h"
#include "runtime/base/check.h"

#include <string.h>

enum { ROWS_AT_ONCE = 256, ADD_PANELS = 4, ADD_COLUMNS = ADD_PANELS * MATMUL_PANEL_ROWS };

static const matmul_tile_fn tile_fns[CPU_PATH_COUNT] = {matmul_tile_scalar, matmul_tile_avx2, matmul_tile_avxvnni,
                                                        matmul_tile_avx512, matmul_tile_avx512};
static const matmul_quantise_fn quantise_fns[CPU_PATH_COUNT] = {[CPU_PATH_SCALAR] = matmul_quantise_scalar,
                                                                [CPU_PATH_AVX2] = matmul_quantise_avx2,
                                                                [CPU_PATH_AVX512] = matmul_quantise_avx512};
static const matmul_tile_fn bf16_tile_fns[CPU_PATH_COUNT] = {matmul_tile_bf16_scalar, matmul_tile_bf16_avx2,
                                                             matmul_tile_bf16_avx2, matmul_tile_bf16_avx512,
                                                             matmul_tile_bf16_avx512bf16};
static const matmul_round_fn round_fns[CPU_PATH_COUNT] = {matmul_round_scalar, matmul_round_avx2, matmul_round_avx2,
                                                          matmul_round_avx512, matmul_round_avx512bf16};

size_t matmul_act_bytes(enum act_kind kind, uint32_t M, uint32_t K)
{
    return (M * act_row_bytes(kind, K) + 63) / 64 * 64;
}

/* Values of rows [r_begin, r_end) of a tile in f32; false when one holds a NaN or an infinity, and is zeros. */
static bool copy_rows(const float *x, size_t stride_m, uint32_t K, uint8_t *tile, uint32_t R, uint32_t r_begin,
                      uint32_t r_end)
{
    bool finite = true;
    for (uint32_t r = r_begin; r < r_end; r++, x += stride_m) {
        uint32_t bits_max = 0;
        for (uint32_t k = 0; k < K; k++) {
            uint32_t bits;
            memcpy(&bits, x + k, 4);
            memcpy(tile + ((size_t)k * R + r) * 4, &bits, 4);
            bits &= 0x7fffffffu;
            bits_max = bits > bits_max ? bits : bits_max;
        }
        if (bits_max < 0x7f800000u) continue;
        for (uint32_t k = 0; k < K; k++) memset(tile + ((size_t)k * R + r) * 4, 0, 4);
        finite = false;
    }
    return finite;
}

static void zero_blocks(uint32_t blocks, uint8_t *tile, uint32_t R, uint32_t r)
{
    for (uint32_t b = 0; b < blocks; b++, tile += (size_t)R * ACT_BLOCK_BYTES) {
        memset(tile + (size_t)r * 32, 0, 32);
        for (unsigned i = 32; i < ACT_BLOCK_BYTES; i += 4) memset(tile + (size_t)R * i + r * 4, 0, 4);
    }
}

/* Values of rows [r_begin, r_end) of a tile in BF16; false at a NaN or an infinity, whose row becomes zeros. */
static bool round_rows(enum cpu_path path, const float *x, size_t stride_m, uint32_t K, uint8_t *tile, uint32_t R,
                       uint32_t r_begin, uint32_t r_end)
{
    bool finite = true;
    for (uint32_t r = r_begin; r < r_end; r++, x += stride_m) {
        if (round_fns[path](x, K, tile, R, r)) continue;
        for (uint32_t k = 0; k < K; k += PANEL_BLOCK)
            memset(tile + ((size_t)k / PANEL_BLOCK * R + r) * ACT_BF16_BYTES, 0, ACT_BF16_BYTES);
        finite = false;
    }
    return finite;
}

bool matmul_prepare_columns(enum cpu_path path, enum act_kind kind, const float *x, size_t stride_m, uint32_t M,
                            uint32_t K, uint32_t row_begin, uint32_t row_end, uint32_t k_begin, uint32_t k_end,
                            void *act)
{
    bool finite = true;
    CHECK(row_begin <= row_end && row_end <= M);
    CHECK(k_begin % PANEL_BLOCK == 0 && k_begin <= k_end && k_end <= K && (k_end == K || k_end % PANEL_BLOCK == 0));
    CHECK(kind < ACT_KIND_COUNT);
    const uint32_t block = k_begin / PANEL_BLOCK, count = k_end - k_begin;
    const uint32_t blocks = (k_end == K ? 2 * panel_groups(K) : k_end / PANEL_BLOCK) - block;
    for (uint32_t m = row_begin, m_end; m < row_end; x += (m_end - m) * stride_m, m = m_end) {
        const uint32_t first = m / MATMUL_TILE_ROWS * MATMUL_TILE_ROWS;
        const uint32_t R = M - first < MATMUL_TILE_ROWS ? M - first : MATMUL_TILE_ROWS;
        uint8_t *tile = (uint8_t *)act + first * act_row_bytes(kind, K);
        m_end = row_end < first + R ? row_end : first + R;
        if (kind == ACT_F32) {
            tile += (size_t)k_begin * R * 4;
            if (!copy_rows(x, stride_m, count, tile, R, m - first, m_end - first)) finite = false;
            continue;
        }
        if (kind == ACT_BF16) {
            tile += (size_t)block * R * ACT_BF16_BYTES;
            if (!round_rows(path, x, stride_m, count, tile, R, m - first, m_end - first)) finite = false;
            continue;
        }
        tile += (size_t)block * R * ACT_BLOCK_BYTES;
        const uint32_t bad_rows =
            quantise_fns[cpu_path_base(path)](kind, x, stride_m, count, blocks, tile, R, m - first, m_end - first);
        if (!bad_rows) continue;
        for (uint32_t r = m - first; r < m_end - first; r++)
            if (bad_rows >> r & 1) zero_blocks(blocks, tile, R, r);
        finite = false;
    }
    return finite;
}

bool matmul_prepare(enum cpu_path path, enum act_kind kind, const float *x, size_t stride_m, uint32_t M, uint32_t K,
                    uint32_t row_begin, uint32_t row_end, void *act)
{
    return matmul_prepare_columns(path, kind, x + row_begin * stride_m, stride_m, M, K, row_begin, row_end, 0, K, act);
}

/* F8: each 128 inputs by the path's BF16 tile, then scaled and added. Written without lanes: it is a tenth of the work.
 */
static void tile_f8(enum cpu_path path, const struct matrix *matrix, const uint8_t *panel, uint32_t panels,
                    const uint8_t *act, uint32_t R, float *out, size_t stride_m)
{
    const struct matrix segment = {.type = TENSOR_BF16, .K = F8_INPUTS};
    for (uint32_t p = 0; p < panels; p++, panel += matrix->panel_bytes, out += 16) {
        _Alignas(64) float part[MATMUL_TILE_ROWS][16], F[MATMUL_TILE_ROWS][16] = {{0}}, scale[16];
        const uint8_t *codes = panel, *a = act;
        for (uint32_t k = 0; k < matrix->K; k += F8_INPUTS, codes += F8_SEGMENT_BYTES) {
            bf16_tile_fns[path](&segment, codes, 1, a, R, part[0], 16);
            memcpy(scale, codes + F8_CODES_BYTES, sizeof scale);
            for (uint32_t m = 0; m < R; m++)
                for (unsigned r = 0; r < 16; r++) F[m][r] = F[m][r] + part[m][r] * scale[r];
            a += (size_t)(F8_INPUTS / PANEL_BLOCK) * R * ACT_BF16_BYTES;
        }
        for (uint32_t m = 0; m < R; m++) memcpy(out + m * stride_m, F[m], sizeof F[m]);
    }
}

static void tile_panels(enum cpu_path path, const struct matrix *matrix, const uint8_t *panel, uint32_t panels,
                        const uint8_t *act, uint32_t R, float *out, size_t stride_m)
{
    if (matrix->act != ACT_BF16) {
        tile_fns[path](matrix, panel, panels, act, R, out, stride_m);
    } else if (matrix->type == TENSOR_F8) {
        tile_f8(path, matrix, panel, panels, act, R, out, stride_m);
    } else {
        bf16_tile_fns[path](matrix, panel, panels, act, R, out, stride_m);
    }
}

/* One tile against some panels; out is that of the first panel. The last panel of a matrix may be part full: it goes
 * through a buffer. */
static void tile(enum cpu_path path, const struct matrix *matrix, uint32_t panel_begin, uint32_t panel_end,
                 const uint8_t *act, uint32_t R, float *out, size_t stride_m)
{
    const uint32_t whole = matrix->N / MATMUL_PANEL_ROWS;
    const uint32_t end = panel_end < whole ? panel_end : whole;
    if (panel_begin < end)
        tile_panels(path, matrix, matrix->data + panel_begin * matrix->panel_bytes, end - panel_begin, act, R, out,
                    stride_m);
    if (panel_end <= whole) return;
    float part[MATMUL_TILE_ROWS * MATMUL_PANEL_ROWS];
    tile_panels(path, matrix, matrix->data + whole * matrix->panel_bytes, 1, act, R, part, MATMUL_PANEL_ROWS);
    const size_t left = matrix->N % MATMUL_PANEL_ROWS;
    for (uint32_t m = 0; m < R; m++)
        memcpy(out + m * stride_m + (size_t)(whole - panel_begin) * MATMUL_PANEL_ROWS, part + m * MATMUL_PANEL_ROWS,
               left * sizeof *part);
}

/* One tile against some panels, added to out: ADD_PANELS at a time through a buffer. */
static void tile_add(enum cpu_path path, const struct matrix *matrix, uint32_t panel_begin, uint32_t panel_end,
                     const uint8_t *act, uint32_t R, float *out, size_t stride_m)
{
    float sums[MATMUL_TILE_ROWS * ADD_COLUMNS];
    for (uint32_t p = panel_begin; p < panel_end; p += ADD_PANELS, out += ADD_COLUMNS) {
        const uint32_t end = panel_end - p < ADD_PANELS ? panel_end : p + ADD_PANELS;
        const uint32_t n_end = end * MATMUL_PANEL_ROWS < matrix->N ? end * MATMUL_PANEL_ROWS : matrix->N;
        const uint32_t columns = n_end - p * MATMUL_PANEL_ROWS;
        tile(path, matrix, p, end, act, R, sums, ADD_COLUMNS);
        for (uint32_t m = 0; m < R; m++) {
            float *restrict row = out + m * stride_m;
            for (uint32_t n = 0; n < columns; n++) row[n] = row[n] + sums[m * ADD_COLUMNS + n];
        }
    }
}

typedef void range_fn(enum cpu_path path, const struct matrix *matrix, uint32_t panel_begin, uint32_t panel_end,
                      const uint8_t *act, uint32_t R, float *out, size_t stride_m);

static void multiply(range_fn *range, enum cpu_path path, const struct matrix *matrix, uint32_t panel_begin,
                     uint32_t panel_end, const uint8_t *act, uint32_t M, float *out, size_t stride_m)
{
    const size_t row_bytes = act_row_bytes(matrix->act, matrix->K);
    CHECK(panel_begin <= panel_end && panel_end <= matrix->panels);
    if (!M || panel_begin == panel_end) return;
    if (M <= MATMUL_TILE_ROWS) {
        range(path, matrix, panel_begin, panel_end, act, M, out + (size_t)panel_begin * MATMUL_PANEL_ROWS, stride_m);
        return;
    }
    for (uint32_t m0 = 0; m0 < M; m0 += ROWS_AT_ONCE) {
        const uint32_t m1 = M - m0 < ROWS_AT_ONCE ? M : m0 + ROWS_AT_ONCE;
        for (uint32_t p = panel_begin; p < panel_end; p++)
            for (uint32_t m = m0; m < m1; m += MATMUL_TILE_ROWS) {
                const uint32_t R = m1 - m < MATMUL_TILE_ROWS ? m1 - m : MATMUL_TILE_ROWS;
                float *target = out + m * stride_m + p * MATMUL_PANEL_ROWS;
                for (uint32_t r = 0; r < R; r++) __builtin_prefetch(target + r * stride_m, 1);
                range(path, matrix, p, p + 1, act + m * row_bytes, R, target, stride_m);
            }
    }
}

void matmul(enum cpu_path path, const struct matrix *matrix, uint32_t panel_begin, uint32_t panel_end, const void *act,
            uint32_t M, float *out, size_t stride_m)
{
    multiply(tile, path, matrix, panel_begin, panel_end, act, M, out, stride_m);
}

void matmul_add(enum cpu_path path, const struct matrix *matrix, uint32_t panel_begin, uint32_t panel_end,
                const void *act, uint32_t M, float *out, size_t stride_m)
{
    multiply(tile_add, path, matrix, panel_begin, panel_end, act, M, out, stride_m);
}

void matmul_tile(enum cpu_path path, const struct matrix *matrix, uint32_t panel_begin, uint32_t panel_end,
                 const void *act, uint32_t M, uint32_t row_begin, float *out, size_t stride_m)
{
    CHECK(panel_begin <= panel_end && panel_end <= matrix->panels);
    CHECK(row_begin % MATMUL_TILE_ROWS == 0 && row_begin < M);
    const uint32_t R = M - row_begin < MATMUL_TILE_ROWS ? M - row_begin : MATMUL_TILE_ROWS;
    tile(path, matrix, panel_begin, panel_end, (const uint8_t *)act + row_begin * act_row_bytes(matrix->act, matrix->K),
         R, out, stride_m);
}
