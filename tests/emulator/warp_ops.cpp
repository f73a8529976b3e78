/* Warp operations: what the last lane to arrive computes for all lanes of a mask.
 *
 * Shuffles, votes and reductions follow the CUDA C++ Programming Guide, "Warp Shuffle Functions" and its neighbours;
 * the layout of fragments follows the PTX ISA (ldmatrix, mma.m16n8k16). An mma adds its 16 products to each sum one
 * after the other in f32: a tensor core adds them in another order and cuts bits, so results may differ in the last
 * places. */
#include "tests/emulator/engine_types.h"
#include <immintrin.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace cs
{
template <class F> static void each_lane(unsigned mask, F f)
{
    for (; mask; mask &= mask - 1) f(__builtin_ctz(mask));
}

static void execute_shuffle(Warp *w, const Pending &p)
{
    each_lane(p.arrived, [&](int lane) {
        const int width = w->b[lane], segment = lane & ~(width - 1), a = w->a[lane];
        int source = lane;
        switch (p.op) {
        case SHFL: source = segment + (a & (width - 1)); break;
        case SHFL_UP: source = lane - a < segment ? lane : lane - a; break;
        case SHFL_DOWN: source = lane + a >= segment + width ? lane : lane + a; break;
        default: source = ((lane ^ a) & ~(width - 1)) > segment ? lane : lane ^ a; break;
        }
        if (!(p.arrived >> source & 1))
            fail(p.loc, "warp shuffle: lane %d reads lane %d, which does not take part (mask 0x%08x, exited 0x%08x)",
                 lane, source, p.mask, w->exited);
        if (p.size == 4)
            *(uint32_t *)w->out[lane] = *(const uint32_t *)w->in[source];
        else if (p.size == 8)
            *(uint64_t *)w->out[lane] = *(const uint64_t *)w->in[source];
        else
            *(uint16_t *)w->out[lane] = *(const uint16_t *)w->in[source];
    });
}

static void execute_match(Warp *w, const Pending &p)
{
    each_lane(p.arrived, [&](int i) {
        unsigned same = 0;
        each_lane(p.arrived, [&](int j) {
            bool equal = true;
            for (int z = 0; z < p.size; z++) equal &= ((const char *)w->in[i])[z] == ((const char *)w->in[j])[z];
            if (equal) same |= 1u << j;
        });
        *(unsigned *)w->out[i] = same;
    });
}

static uint32_t reduce_two(WarpOp op, uint32_t r, uint32_t v)
{
    switch (op) {
    case RED_ADD: return r + v;
    case RED_AND: return r & v;
    case RED_OR: return r | v;
    case RED_XOR: return r ^ v;
    case RED_MIN_S: return (int)v < (int)r ? v : r;
    case RED_MAX_S: return (int)v > (int)r ? v : r;
    case RED_MIN_U: return v < r ? v : r;
    default: return v > r ? v : r;
    }
}

static void execute_reduce(Warp *w, const Pending &p)
{
    bool first = true;
    uint32_t r = 0;
    each_lane(p.arrived, [&](int lane) {
        const uint32_t v = *(const uint32_t *)w->in[lane];
        r = first ? v : reduce_two(p.op, r, v);
        first = false;
    });
    each_lane(p.arrived, [&](int lane) { *(uint32_t *)w->out[lane] = r; });
}

/* Matrix k takes its 8 rows from lanes 8k..8k+7. */
static void execute_ldmatrix(Warp *w, const Pending &p)
{
    const int matrices = p.op >= LDMATRIX_X4 ? 4 : 2;
    const bool trans = p.op == LDMATRIX_X2_T || p.op == LDMATRIX_X4_T;
    uint16_t t[4][8][8];
    for (int lane = 0; lane < 8 * matrices; lane++) memcpy(t[lane >> 3][lane & 7], w->in[lane], 16);
    for (int lane = 0; lane < 32; lane++) {
        const int r = lane >> 2, c = (lane & 3) * 2;
        for (int k = 0; k < matrices; k++)
            ((uint32_t *)w->out[lane])[k] =
                trans ? t[k][c][r] | (uint32_t)t[k][c + 1][r] << 16 : t[k][r][c] | (uint32_t)t[k][r][c + 1] << 16;
    }
}

/* Fragments of 32 lanes to matrices and back (kernels/warp.cuh draws the layout). Four words hold eight numbers: low
 * and high halves become floats and are paired again. */
typedef void (*WidenFn)(__m128i words, __m128 &first, __m128 &second);
static inline void widen_bf16(__m128i words, __m128 &first, __m128 &second)
{
    const __m128 low = _mm_castsi128_ps(_mm_slli_epi32(words, 16));
    const __m128 high = _mm_castsi128_ps(_mm_and_si128(words, _mm_set1_epi32((int)0xffff0000)));
    first = _mm_unpacklo_ps(low, high);
    second = _mm_unpackhi_ps(low, high);
}
static inline void widen_f16(__m128i words, __m128 &first, __m128 &second)
{
    first = _mm_cvtph_ps(words);
    second = _mm_cvtph_ps(_mm_unpackhi_epi64(words, words));
}
template <WidenFn widen> static inline void gather_a(float (&a)[16][16], int lane, const uint32_t *w)
{
    const int g = lane >> 2, t = (lane & 3) * 2;
    __m128 first, second;
    widen(_mm_loadu_si128((const __m128i *)w), first, second);
    _mm_storel_pi((__m64 *)&a[g][t], first);
    _mm_storeh_pi((__m64 *)&a[g + 8][t], first);
    _mm_storel_pi((__m64 *)&a[g][t + 8], second);
    _mm_storeh_pi((__m64 *)&a[g + 8][t + 8], second);
}
/* Into columns[n][k]. */
template <WidenFn widen> static inline void gather_b(float (&columns)[8][16], int lane, const uint32_t *w)
{
    const int g = lane >> 2, t = (lane & 3) * 2;
    __m128 first, second;
    widen(_mm_loadl_epi64((const __m128i *)w), first, second);
    _mm_storel_pi((__m64 *)&columns[g][t], first);
    _mm_storeh_pi((__m64 *)&columns[g][t + 8], first);
}
/* rows[k] = the k-th of eight columns */
static inline void transpose(__m256 (&rows)[16], const float (&columns)[8][16])
{
    for (int half = 0; half < 16; half += 8) {
        __m256 c[8], p[8];
        for (int i = 0; i < 8; i++) c[i] = _mm256_load_ps(columns[i] + half);
        for (int i = 0; i < 4; i++) {
            p[2 * i] = _mm256_unpacklo_ps(c[2 * i], c[2 * i + 1]);
            p[2 * i + 1] = _mm256_unpackhi_ps(c[2 * i], c[2 * i + 1]);
        }
        for (int i = 0; i < 2; i++) {
            c[4 * i] = _mm256_shuffle_ps(p[4 * i], p[4 * i + 2], 0x44);
            c[4 * i + 1] = _mm256_shuffle_ps(p[4 * i], p[4 * i + 2], 0xee);
            c[4 * i + 2] = _mm256_shuffle_ps(p[4 * i + 1], p[4 * i + 3], 0x44);
            c[4 * i + 3] = _mm256_shuffle_ps(p[4 * i + 1], p[4 * i + 3], 0xee);
        }
        for (int i = 0; i < 4; i++) {
            rows[half + i] = _mm256_permute2f128_ps(c[i], c[i + 4], 0x20);
            rows[half + i + 4] = _mm256_permute2f128_ps(c[i], c[i + 4], 0x31);
        }
    }
}
static inline void gather_d(float (&d)[16][8], int lane, const float *from)
{
    memcpy(&d[lane >> 2][(lane & 3) * 2], from, 8);
    memcpy(&d[(lane >> 2) + 8][(lane & 3) * 2], from + 2, 8);
}
static inline void scatter_d(float *to, int lane, const float (&d)[16][8])
{
    memcpy(to, &d[lane >> 2][(lane & 3) * 2], 8);
    memcpy(to + 2, &d[(lane >> 2) + 8][(lane & 3) * 2], 8);
}

/* Products of BF16 and FP16 are exact in f32, so the fused operation rounds as two would. */
static inline void multiply(float (&d)[16][8], const float (&a)[16][16], const __m256 (&b)[16])
{
    for (int i = 0; i < 16; i += 8) {
        __m256 s[8];
        for (int r = 0; r < 8; r++) s[r] = _mm256_load_ps(d[i + r]);
        for (int k = 0; k < 16; k++)
            for (int r = 0; r < 8; r++) s[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(&a[i + r][k]), b[k], s[r]);
        for (int r = 0; r < 8; r++) _mm256_store_ps(d[i + r], s[r]);
    }
}

template <WidenFn widen> static void execute_mma(Warp *w)
{
    alignas(32) float a[16][16], columns[8][16], d[16][8];
    __m256 b[16];
    for (int lane = 0; lane < 32; lane++) {
        const uint32_t *in = (const uint32_t *)w->in[lane];
        gather_a<widen>(a, lane, in);
        gather_b<widen>(columns, lane, in + 4);
        gather_d(d, lane, (const float *)w->out[lane]);
    }
    transpose(b, columns);
    multiply(d, a, b);
    for (int lane = 0; lane < 32; lane++) scatter_d((float *)w->out[lane], lane, d);
    counters_mma(w, 1);
}

/* ks x rt x nt products (mma_bf16_tile): the sums stay here from the first k to the last. */
static void execute_tile(Warp *w, const Pending &p)
{
    const int ks = w->a[0] >> 16, rt = w->a[0] >> 8 & 255, nt = w->a[0] & 255;
    const MmaTile *tiles[32];
    for (int lane = 0; lane < 32; lane++) {
        tiles[lane] = (const MmaTile *)w->in[lane];
        if (w->a[lane] != w->a[0]) fail(p.loc, "lanes disagree about the shape of a tile of mma");
    }
    alignas(32) float a[16][16], columns[8][16];
    __m256 b[16];
    /* Mapped once for the largest shape: TSan would take growth by one fiber for a race with another's use. */
    static __thread float(*sums)[16][8] CS_TLS;
    if (!sums) {
        void *map = mmap(nullptr, sizeof *sums * 256 * 256, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED) fail(p.loc, "no memory for sums of a tile of mma");
        sums = (float(*)[16][8])map;
    }
    for (int i = 0; i < rt * nt; i++)
        for (int lane = 0; lane < 32; lane++) gather_d(sums[i], lane, tiles[lane]->d + i * 4);
    for (int k = 0; k < ks; k++)
        for (int n = 0; n < nt; n++) {
            for (int lane = 0; lane < 32; lane++)
                gather_b<widen_bf16>(columns, lane, tiles[lane]->b + (k * nt + n) * 2);
            transpose(b, columns);
            for (int r = 0; r < rt; r++) {
                for (int lane = 0; lane < 32; lane++) gather_a<widen_bf16>(a, lane, tiles[lane]->a + (k * rt + r) * 4);
                multiply(sums[r * nt + n], a, b);
            }
        }
    for (int i = 0; i < rt * nt; i++)
        for (int lane = 0; lane < 32; lane++) scatter_d(tiles[lane]->d + i * 4, lane, sums[i]);
    counters_mma(w, (unsigned)(ks * rt * nt));
}

void warp_execute(Warp *w, Pending &p)
{
    switch (p.op) {
    case SHFL:
    case SHFL_UP:
    case SHFL_DOWN:
    case SHFL_XOR: execute_shuffle(w, p); break;
    case BALLOT: {
        unsigned votes = 0;
        each_lane(p.arrived, [&](int lane) { votes |= *(const int *)w->in[lane] ? 1u << lane : 0; });
        each_lane(p.arrived, [&](int lane) { *(unsigned *)w->out[lane] = votes; });
        break;
    }
    case MATCH_ANY: execute_match(w, p); break;
    case LDMATRIX_X2:
    case LDMATRIX_X2_T:
    case LDMATRIX_X4:
    case LDMATRIX_X4_T: execute_ldmatrix(w, p); break;
    case MMA_BF16: execute_mma<widen_bf16>(w); break;
    case MMA_F16: execute_mma<widen_f16>(w); break;
    case MMA_BF16_TILE: execute_tile(w, p); break;
    default: execute_reduce(w, p); break;
    }
}

const char *warp_op_name(int op, bool sync)
{
    static const char *const names[] = {
        "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",  "__shfl_xor_sync",   "__ballot/any/all_sync",
        "__match_any_sync",  "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_min_sync",
        "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync", "ldmatrix.x2",
        "ldmatrix.x2.trans", "ldmatrix.x4",       "ldmatrix.x4.trans", "mma.sync bf16",     "mma.sync f16",
        "mma.sync bf16 tile"};
    return sync ? "__syncwarp" : names[op];
}
} // namespace cs
