/* The matmul with AVX-VNNI: vpdpbusd on 256-bit halves of a panel. It has no broadcast operand, so an activation dword
 * is broadcast to a register and used for both sides; a code register serves four rows. Eight sums are in flight, which
 * hides a latency of four at two dots a cycle. What else a path has to supply is the AVX2 one's.
 *
 * The same instruction exists in AVX-512 VNNI + VL under another encoding. Compiled for those instead, this source runs
 * on CPUs that lack AVX-VNNI: tests and the benchmark do that, under another name for the function. */
#include "kernels/matmul_half.h"

#if defined(__AVXVNNI__)
#define VPDPBUSD "%{vex%} vpdpbusd"
#else
#define VPDPBUSD "vpdpbusd"
#endif

INLINE uint32_t pass_rows(enum tensor_type type)
{
    return panel_halves(type) ? 2 : 4;
}
INLINE int code_planes(enum tensor_type type)
{
    (void)type;
    return 1;
}

INLINE __m256i dot(__m256i sum, __m256i codes, __m256i q)
{
    __asm__ volatile(VPDPBUSD " %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(q));
    return sum;
}

INLINE void dots(enum tensor_type type, const int R, const struct block *block, const uint8_t *q, const uint8_t *init,
                 const uint8_t *last, pass_sums S)
{
    const unsigned halves = panel_halves(type) ? 2 : 1, quads = 8 / halves;
    UNROLL for (unsigned h = 0; h < halves; h++) UNROLL for (int r = 0; r < R; r++)
    {
        const uint8_t *start = (h ? last : init) + 4 * r;
        S[h][r][0] = panel_zero_point(type) ? broadcast_once(start) : _mm256_setzero_si256();
        S[h][r][1] = S[h][r][0];
    }
    UNROLL for (unsigned i = 0; i < quads; i++) UNROLL for (unsigned h = 0; h < halves; h++)
    {
        const unsigned quad_idx = h * quads + i;
        const __m256i codes[2] = {block_codes(type, block, 0, quad_idx, 0), block_codes(type, block, 0, quad_idx, 1)};
        UNROLL for (int r = 0; r < R; r++)
        {
            const __m256i a = broadcast_once(q + r * 32 + 4 * quad_idx);
            UNROLL for (int side = 0; side < 2; side++) S[h][r][side] = dot(S[h][r][side], codes[side], a);
        }
    }
}

void matmul_tile_avxvnni(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                         uint32_t R, float *out, size_t stride_m)
{
    if (matrix->act == ACT_F32)
        matmul_tile_avx2(matrix, panel, panels, act, R, out, stride_m);
    else
        panels_multiply(matrix, panel, panels, act, R, out, stride_m);
}
