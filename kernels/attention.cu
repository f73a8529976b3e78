/* Attention over paged KV: one kernel for prefill, decode and any mixture. See kernels/README.md for the reasons.
 *
 *   s[p] = scale * sum_d q[d] K[p][d],  p = first .. position of the row;  out = sum_p softmax(s)[p] V[p]
 *
 * What a row's bits are, whatever batch, plan or chunk of prefill it comes in:
 *   - positions come in chunks of 512 and, inside, tiles of T (64; 32 at D = 256), both at absolute multiples
 *   - a score is a chain of mma over rising d; times scale * log2 e (E4M3: first the scale of its K)
 *   - the chunk's running maximum m rises from tile to tile; p = 2^(s - m); sums, and out, shrink by 2^(old - new)
 *   - p is rounded to BF16 for the product with V, a chain of mma over rising p. The sum adds the rounded p; with E4M3
 *     the p before it takes the scale of its V: a lane of the quad adds its pairs of each quarter tile in one of four
 *     sums; at the chunk's end ((0 + 1) + (2 + 3)), then the quad (0 + 1) + (2 + 3)
 *   - chunks merge in rising order: M' = max(M, m), x = 2^(M - M'), y = 2^(m - M'); L = fma(L, x, l * y), out alike
 *   - out * (1 / L) + 0 in BF16. What a row does not see adds exact zeros; its slots are never read as numbers
 *
 * A block takes an item: rows of one KV head and chunks of one sequence. K and V of a tile go through a ring of shared
 * memory slots, K and V by turns, by cp.async, the block's four warps a KV block each. Up to 16 rows (decode) all warps
 * share the rows: a warp computes the scores of a quarter of the tile, and the outputs of a quarter of the columns,
 * maxima and p being exchanged through shared memory. With more (prefill), each warp has 16 rows of its own.
 *
 * E4M3 codes become BF16 exactly, in registers. There the inner index of q K is renamed so that a lane's word of four
 * codes is four neighbours, and V's columns likewise (d = 16 i + 4 t + ..). */
#include "kernels/cuda_ops.h"
#include "kernels/vec.cuh"
#include "kernels/warp.cuh"

namespace
{

constexpr int WARPS = 4, THREADS = WARPS * 32, ROWS = CUDA_ATTENTION_ROWS, CHUNK = CUDA_ATTENTION_CHUNK;
constexpr int WARP_ROWS = 16;
constexpr int FLIGHT_BYTES = 32 * 1024; /* of a block's ring that loads may fill ahead */

template <int D, bool FP8> struct shape {
    static constexpr int T = D <= 128 ? 64 : 32; /* positions of a tile */
    static constexpr int ROW_BYTES = D * (FP8 ? 1 : 2), PIECES = ROW_BYTES / 16;
    static constexpr int CODES = T * ROW_BYTES, SLOT = CODES + (FP8 ? T * 4 : 0);
    static constexpr int SLOTS = 1 + (FLIGHT_BYTES + CODES - 1) / CODES;
    static constexpr int STEPS = D / 16;                  /* of an mma over d */
    static constexpr int TILES = T / 8, STRIPES = T / 16; /* score tiles of 8 positions; mma steps over positions */
    static constexpr int UNIT_TILES = FP8 ? 2 : 1;        /* output tiles of 8 columns that one load of V gives */
    static constexpr int UNITS = D / 8 / UNIT_TILES;      /* of a row */
    static constexpr int SPREAD_UNITS = (UNITS + 3) / 4;  /* of a warp when the columns are shared out */
    static constexpr size_t RING_BYTES = (size_t)SLOTS * SLOT, STATE = (size_t)ROWS * D / 4; /* float4 */
};

/* What warps exchange when they share rows; lies where the running state of prefill would. */
template <int T> struct exchange {
    unsigned char p[WARP_ROWS * T * 2];
    float maxima[WARPS][WARP_ROWS];
    float sums[WARPS][32][2];
};

struct sizes { /* of the launch */
    uint32_t H, KH, window, partials;
    float scale_log2;
};

/* An item, for one KV head. */
struct work {
    struct attention_item item;
    uint32_t G, head, first_token, base; /* position of the sequence's first token of the step */
    uint32_t low, high;                  /* positions that any row sees */
    uint32_t tile_begin, tile_end;
};

/* 16-byte unit c of row r of a tile: without bank conflicts for ldmatrix and for rows that are written whole. */
template <int ROW_BYTES> __device__ __forceinline__ unsigned char *at(unsigned char *tile, int r, int c)
{
    const int swizzle = ROW_BYTES % 128 == 0 ? r & 7 : ROW_BYTES % 128 == 64 ? (r >> 1) & 3 : (r >> 2) & 1;
    return tile + r * ROW_BYTES + ((c ^ swizzle) << 4);
}

/* Four codes to four BF16, exactly. */
__device__ __forceinline__ void widen(uint32_t codes, float (&f)[4])
{
    kx::e4m3x4_unpack(codes, f);
}

/* ---- loading: the ring of K and V by turns */

template <int D, bool FP8> struct loader {
    using S = shape<D, FP8>;
    const unsigned char *layer;
    const uint32_t *table;
    unsigned char *ring;
    uint32_t head, KH, low, high, tile, tile_end, id, id_next;
    int slot, value; /* next to fill; whether it is of V */

    /* The block of which this warp loads a part of the tile, 0 where no row sees it. */
    __device__ __forceinline__ uint32_t block_of(uint32_t of_tile) const
    {
        const uint32_t warp = threadIdx.x / 32, block = of_tile * (S::T / 16) + (S::T == 64 ? warp : warp / 2);
        return block * 16 < high && block * 16 + 16 > low ? __ldg(table + block) : 0;
    }
    __device__ __forceinline__ void start(const work &w, const unsigned char *kv_layer, const uint32_t *kv_table,
                                          unsigned char *slots, uint32_t kv_heads)
    {
        layer = kv_layer;
        table = kv_table;
        ring = slots;
        head = w.head;
        KH = kv_heads;
        low = w.low;
        high = w.high;
        tile = w.tile_begin;
        tile_end = w.tile_end;
        slot = value = 0;
        id = block_of(tile);
        id_next = 0;
    }
    /* One commit each call, also when there is nothing left. */
    __device__ __forceinline__ void issue()
    {
        if (tile < tile_end) {
            constexpr int WARP_POSITIONS = S::T / WARPS;
            const int warp = threadIdx.x / 32, lane = kx::lane();
            unsigned char *const target = ring + (size_t)slot * S::SLOT;
            const unsigned char *const piece = layer + cuda_kv_piece_at(id, head, KH, D, FP8);
            const int first = warp * WARP_POSITIONS % 16; /* of the block */
            const unsigned char *const source = piece + (value * 16 + first) * S::ROW_BYTES;
            KX_UNROLL
            for (int k = 0; k < WARP_POSITIONS * S::PIECES / 32; k++) {
                const int i = lane + 32 * k, row = warp * WARP_POSITIONS + i / S::PIECES;
                const uint32_t position = tile * S::T + row;
                const bool seen = position >= low && position < high;
                kx::cp_async16(at<S::ROW_BYTES>(target, row, i % S::PIECES), source + i * 16, seen ? 16 : 0);
            }
            if (FP8 && lane < WARP_POSITIONS) {
                const int row = warp * WARP_POSITIONS + lane;
                const uint32_t position = tile * S::T + row;
                const bool seen = position >= low && position < high;
                kx::cp_async4(target + S::CODES + row * 4, piece + 2 * 16 * D + (value * 16 + first + lane) * 4,
                              seen ? 4 : 0);
            }
            if (value) {
                tile++;
                id = id_next;
            } else if (tile + 1 < tile_end) {
                id_next = block_of(tile + 1);
            }
            value ^= 1;
            slot = slot + 1 == S::SLOTS ? 0 : slot + 1;
        }
        kx::cp_async_commit();
    }
};

/* ---- products */

/* s[n] = q K^T of NT tiles of 8 positions, from `first` on. */
template <int D, bool FP8, int NT>
__device__ __forceinline__ void scores(float (&s)[1][NT][4], const uint32_t (&q)[D / 16][1][4], unsigned char *slot,
                                       int first)
{
    using S = shape<D, FP8>;
    constexpr int KS = FP8 && D % 64 == 0 ? 4 : 2; /* mma steps a turn */
    const int lane = kx::lane();
    KX_UNROLL
    for (int n = 0; n < NT; n++) s[0][n][0] = s[0][n][1] = s[0][n][2] = s[0][n][3] = 0.0f;
    KX_UNROLL
    for (int k0 = 0; k0 < S::STEPS; k0 += KS) {
        uint32_t a[KS][1][4], b[KS][NT][2];
        KX_UNROLL
        for (int k = 0; k < KS; k++) {
            KX_UNROLL
            for (int i = 0; i < 4; i++) a[k][0][i] = q[k0 + k][0][i];
        }
        KX_UNROLL
        for (int n = 0; n < NT; n++) {
            const int row = first + n * 8 + lane % 8;
            if constexpr (!FP8) {
                uint32_t r[4];
                kx::ldmatrix_x4(r, at<S::ROW_BYTES>(slot, row, k0 * 2 + lane / 8));
                b[0][n][0] = r[0];
                b[0][n][1] = r[1];
                b[1][n][0] = r[2];
                b[1][n][1] = r[3];
            } else {
                uint32_t r[KS];
                if constexpr (KS == 4) {
                    kx::ldmatrix_x4(r, at<S::ROW_BYTES>(slot, row, k0 + lane / 8));
                } else {
                    kx::ldmatrix_x2(r, at<S::ROW_BYTES>(slot, row, k0 + lane / 8 % 2));
                }
                KX_UNROLL
                for (int k = 0; k < KS; k++) {
                    float f[4];
                    widen(r[k], f);
                    b[k][n][0] = kx::bf16x2_pack(f[0], f[1]);
                    b[k][n][1] = kx::bf16x2_pack(f[2], f[3]);
                }
            }
        }
        kx::mma_bf16_tile(s, a, b);
    }
}

/* o[u] += P V of NU units of columns, unit0, unit0 + step, ...; those past the row are skipped. */
template <int D, bool FP8, int NU>
__device__ __forceinline__ void values(float (&o)[NU * shape<D, FP8>::UNIT_TILES][4],
                                       const uint32_t (&p)[shape<D, FP8>::STRIPES][1][4], unsigned char *slot,
                                       int unit0, int step)
{
    using S = shape<D, FP8>;
    constexpr int MOST = 4 / S::UNIT_TILES, TURN = NU % MOST == 0 ? MOST : NU % 3 == 0 ? 3 : NU % 2 == 0 ? 2 : 1;
    constexpr int TILES = TURN * S::UNIT_TILES;
    const int lane = kx::lane();
    KX_UNROLL
    for (int u0 = 0; u0 < NU; u0 += TURN) {
        uint32_t b[S::STRIPES][TILES][2];
        float d[1][TILES][4];
        KX_UNROLL
        for (int u = 0; u < TURN; u++) {
            int unit = unit0 + (u0 + u) * step;
            if (unit >= S::UNITS) unit = S::UNITS - 1; /* computed and not used */
            KX_UNROLL
            for (int k = 0; k < S::STRIPES; k += 2) {
                uint32_t r[4];
                kx::ldmatrix_x4_trans(r, at<S::ROW_BYTES>(slot, k * 16 + lane, unit));
                if constexpr (!FP8) {
                    b[k][u][0] = r[0];
                    b[k][u][1] = r[1];
                    b[k + 1][u][0] = r[2];
                    b[k + 1][u][1] = r[3];
                } else {
                    KX_UNROLL
                    for (int i = 0; i < 4; i++) {
                        float f[4];
                        widen(r[i], f);
                        b[k + i / 2][2 * u][i % 2] = kx::bf16x2_pack(f[0], f[2]);
                        b[k + i / 2][2 * u + 1][i % 2] = kx::bf16x2_pack(f[1], f[3]);
                    }
                }
            }
        }
        KX_UNROLL
        for (int n = 0; n < TILES; n++) {
            KX_UNROLL
            for (int e = 0; e < 4; e++) d[0][n][e] = o[u0 * S::UNIT_TILES + n][e];
        }
        kx::mma_bf16_tile(d, p, b);
        KX_UNROLL
        for (int n = 0; n < TILES; n++) {
            KX_UNROLL
            for (int e = 0; e < 4; e++) o[u0 * S::UNIT_TILES + n][e] = d[0][n][e];
        }
    }
}

/* ---- softmax. Each lane has rows g and g + 8 of its warp's 16 (i = 0, 1). Operations are spelled out, so that both
 * ways through a tile round alike. */

__device__ __forceinline__ float finite_or_0(float m)
{
    return m == -INFINITY ? 0.0f : m;
}

/* A chunk's result joins the running one. */
__device__ __forceinline__ void fold(float &M, float &L, float m, float l, float &x, float &y)
{
    const float top = fmaxf(M, m), from = finite_or_0(top);
    x = kx::ex2(__fadd_rn(M, -from));
    y = kx::ex2(__fadd_rn(m, -from));
    M = top;
    L = __fmaf_rn(L, x, __fmul_rn(l, y));
}
__device__ __forceinline__ float folded(float A, float x, float a, float y)
{
    return __fmaf_rn(A, x, __fmul_rn(a, y));
}

__device__ __forceinline__ float quad_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(kx::FULL_MASK, v, 1));
    return fmaxf(v, __shfl_xor_sync(kx::FULL_MASK, v, 2));
}

/* Positions that the lane's two rows see, [first, end); rows beyond the item see none. */
struct sight {
    uint32_t first[2], end[2];
};

/* Scales, and hides what the rows do not see; gives each row's maximum over this lane's share. */
template <int NT, bool FP8>
__device__ __forceinline__ void hide(float (&s)[1][NT][4], float (&top)[2], const float *k_scales, float scale_log2,
                                     uint32_t position, const sight &see, bool all)
{
    const int t = kx::lane() % 4;
    top[0] = top[1] = -INFINITY;
    KX_UNROLL
    for (int n = 0; n < NT; n++) {
        KX_UNROLL
        for (int e = 0; e < 4; e++) {
            float &x = s[0][n][e];
            const int i = e / 2, in_tile = n * 8 + t * 2 + e % 2;
            if (FP8) x = __fmul_rn(x, k_scales[in_tile]);
            x = __fmul_rn(x, scale_log2);
            const uint32_t here = position + in_tile;
            if (!all && !(here >= see.first[i] && here < see.end[i])) x = -INFINITY;
            top[i] = fmaxf(top[i], x);
        }
    }
}

/* p in place of s, packed for the product with V; l[n / PER] takes the sums. */
template <int NT, int PER, bool FP8>
__device__ __forceinline__ void weigh(const float (&s)[1][NT][4], uint32_t (&p)[NT][2], float (&l)[NT / PER][2],
                                      const float (&m)[2], const float (&shrink)[2], const float *v_scales)
{
    const int t = kx::lane() % 4;
    KX_UNROLL
    for (int i = 0; i < 2; i++) {
        const float from = finite_or_0(m[i]);
        KX_UNROLL
        for (int q = 0; q < NT / PER; q++) {
            float sum = 0.0f;
            KX_UNROLL
            for (int n = q * PER; n < (q + 1) * PER; n++) {
                float a = kx::ex2(__fadd_rn(s[0][n][2 * i], -from));
                float b = kx::ex2(__fadd_rn(s[0][n][2 * i + 1], -from));
                if (FP8) {
                    sum = __fadd_rn(sum, __fadd_rn(a, b));
                    a = __fmul_rn(a, v_scales[n * 8 + t * 2]);
                    b = __fmul_rn(b, v_scales[n * 8 + t * 2 + 1]);
                }
                p[n][i] = kx::bf16x2_pack(a, b);
                if (!FP8) {
                    const float2 rounded = kx::bf16x2_unpack(p[n][i]);
                    sum = __fadd_rn(sum, __fadd_rn(rounded.x, rounded.y));
                }
            }
            l[q][i] = __fmaf_rn(l[q][i], shrink[i], sum);
        }
    }
}

/* The factor of what was summed below the old maximum. */
__device__ __forceinline__ float shrinking(float old, float now)
{
    return kx::ex2(__fadd_rn(old, -finite_or_0(now)));
}

/* ---- what all of an item's code shares */

template <int D, bool FP8> struct context {
    using S = shape<D, FP8>;
    uint16_t *out;
    const uint16_t *qkv;
    float *partial_values; /* (partials, KH, D) */
    float2 *partial_sums;  /* (partials, KH): maximum, sum */
    sizes n;
    work w;
    unsigned char *ring;
    float4 *state;
    loader<D, FP8> load;
    int slot; /* next to read */

    __device__ __forceinline__ unsigned char *take()
    {
        unsigned char *const taken = ring + (size_t)slot * S::SLOT;
        slot = slot + 1 == S::SLOTS ? 0 : slot + 1;
        return taken;
    }
    /* The next slot's copies, of all threads, can be read, and the slot read before it is free and filled again. */
    __device__ __forceinline__ unsigned char *next()
    {
        kx::cp_async_wait<S::SLOTS - 2>();
        __syncthreads();
        load.issue();
        return take();
    }
    __device__ __forceinline__ uint32_t position_of(uint32_t row) const { return w.base + (w.item.row + row) / w.G; }
    __device__ __forceinline__ uint32_t first_of(uint32_t position) const
    {
        return n.window && position >= n.window ? position + 1 - n.window : 0;
    }
    __device__ __forceinline__ sight sight_of(uint32_t row0) const
    {
        sight see;
        KX_UNROLL
        for (int i = 0; i < 2; i++) {
            const uint32_t row = row0 + 8 * i, position = position_of(row);
            see.end[i] = row < w.item.rows ? position + 1 : 0;
            see.first[i] = first_of(position);
        }
        return see;
    }
    /* Values of a row in out, or of its query. */
    __device__ __forceinline__ size_t out_at(uint32_t row) const
    {
        const uint32_t r = w.item.row + row;
        return ((size_t)(w.first_token + r / w.G) * n.H + (size_t)w.head * w.G + r % w.G) * D;
    }
    __device__ __forceinline__ void load_query(uint32_t (&q)[D / 16][1][4], uint32_t row0) const
    {
        const int t = kx::lane() % 4;
        KX_UNROLL
        for (int i = 0; i < 2; i++) {
            const uint32_t row = row0 + 8 * i, r = w.item.row + row;
            const uint16_t *const from =
                qkv + (size_t)(w.first_token + r / w.G) * (n.H + 2 * n.KH) * D + ((size_t)w.head * w.G + r % w.G) * D;
            const bool live = row < w.item.rows;
            KX_UNROLL
            for (int k = 0; k < D / 16; k++) {
                if (FP8) {
                    const uint2 v = live ? kx::load((const uint2 *)(from + k * 16 + t * 4)) : make_uint2(0, 0);
                    q[k][0][i] = v.x;
                    q[k][0][2 + i] = v.y;
                } else {
                    q[k][0][i] = live ? kx::load((const uint32_t *)(from + k * 16 + t * 2)) : 0;
                    q[k][0][2 + i] = live ? kx::load((const uint32_t *)(from + k * 16 + t * 2 + 8)) : 0;
                }
            }
        }
    }
    __device__ __forceinline__ size_t partial_of(uint32_t chunk, uint32_t row) const
    {
        return ((size_t)w.item.partial + (size_t)(chunk - w.item.group_begin) * w.item.rows + row) * n.KH + w.head;
    }
    /* Unit u's values of row i of the lane (o: the lane's tiles): as f32 into a partial, or as BF16 into out. */
    __device__ __forceinline__ void put_partial(float *row, int unit, const float (*o)[4], int i) const
    {
        const int t = kx::lane() % 4;
        if constexpr (FP8) {
            kx::store((float4 *)(row + unit * 16 + t * 4),
                      make_float4(o[0][2 * i], o[1][2 * i], o[0][2 * i + 1], o[1][2 * i + 1]));
        } else {
            kx::store((float2 *)(row + unit * 8 + t * 2), make_float2(o[0][2 * i], o[0][2 * i + 1]));
        }
    }
    __device__ __forceinline__ void put_out(uint16_t *row, int unit, const float (*o)[4], int i, float inverse) const
    {
        const int t = kx::lane() % 4;
        if constexpr (FP8) {
            kx::store((uint2 *)(row + unit * 16 + t * 4),
                      make_uint2(kx::bf16x2_pack(normal(o[0][2 * i], inverse), normal(o[1][2 * i], inverse)),
                                 kx::bf16x2_pack(normal(o[0][2 * i + 1], inverse), normal(o[1][2 * i + 1], inverse))));
        } else {
            kx::store((uint32_t *)(row + unit * 8 + t * 2),
                      kx::bf16x2_pack(normal(o[0][2 * i], inverse), normal(o[0][2 * i + 1], inverse)));
        }
    }
    /* Without a negative zero, which would tell whether an empty chunk was merged. */
    static __device__ __forceinline__ float normal(float o, float inverse)
    {
        return __fadd_rn(__fmul_rn(o, inverse), 0.0f);
    }
};

/* ---- up to 16 rows: the warps share them */

template <int D, bool FP8> __device__ __forceinline__ void few_rows(context<D, FP8> &c)
{
    using S = shape<D, FP8>;
    constexpr int NU = S::SPREAD_UNITS, NO = NU * S::UNIT_TILES, NT = S::TILES / WARPS;
    const int warp = threadIdx.x / 32, lane = kx::lane(), g = lane / 4, t = lane % 4;
    exchange<S::T> &x = *(exchange<S::T> *)c.state;
    uint32_t q[D / 16][1][4];
    float o[NO][4], run[NO][4], m[2], l[1][2], M[2], L[2];
    c.load_query(q, g);
    const sight see = c.sight_of(g);
    KX_UNROLL
    for (int n = 0; n < NO; n++) {
        KX_UNROLL
        for (int e = 0; e < 4; e++) o[n][e] = run[n][e] = 0.0f;
    }
    KX_UNROLL
    for (int i = 0; i < 2; i++) {
        m[i] = M[i] = -INFINITY;
        l[0][i] = L[i] = 0.0f;
    }
    const uint32_t low_of_last = c.first_of(c.w.high - 1), end_of_first = c.position_of(0) + 1;

    for (uint32_t tile = c.w.tile_begin; tile < c.w.tile_end; tile++) {
        const uint32_t position = tile * S::T + warp * NT * 8;
        unsigned char *const k_slot = c.next();
        float s[1][NT][4], top[2] = {-INFINITY, -INFINITY};
        const bool any = position < c.w.high && position + NT * 8 > c.w.low;
        if (any) {
            const bool all = c.w.item.rows == WARP_ROWS && position >= low_of_last && position + NT * 8 <= end_of_first;
            scores<D, FP8, NT>(s, q, k_slot, warp * NT * 8);
            hide<NT, FP8>(s, top, (const float *)(k_slot + S::CODES) + warp * NT * 8, c.n.scale_log2, position, see,
                          all);
            KX_UNROLL
            for (int i = 0; i < 2; i++) top[i] = quad_max(top[i]);
        } else {
            KX_UNROLL
            for (int n = 0; n < NT; n++) s[0][n][0] = s[0][n][1] = s[0][n][2] = s[0][n][3] = -INFINITY;
        }
        if (t < 2) x.maxima[warp][g + 8 * t] = t ? top[1] : top[0];
        unsigned char *const v_slot = c.next();

        float shrink[2];
        KX_UNROLL
        for (int i = 0; i < 2; i++) {
            float now = m[i];
            KX_UNROLL
            for (int w = 0; w < WARPS; w++) now = fmaxf(now, x.maxima[w][g + 8 * i]);
            shrink[i] = shrinking(m[i], now);
            m[i] = now;
        }
        uint32_t p[NT][2];
        weigh<NT, NT, FP8>(s, p, l, m, shrink, (const float *)(v_slot + S::CODES) + warp * NT * 8);
        KX_UNROLL
        for (int n = 0; n < NT; n++) {
            KX_UNROLL
            for (int i = 0; i < 2; i++) *(uint32_t *)(at<S::T * 2>(x.p, g + 8 * i, warp * NT + n) + t * 4) = p[n][i];
        }
        __syncthreads();

        uint32_t a[S::STRIPES][1][4];
        KX_UNROLL
        for (int k = 0; k < S::STRIPES; k++) kx::ldmatrix_x4(a[k][0], at<S::T * 2>(x.p, lane % 16, k * 2 + lane / 16));
        KX_UNROLL
        for (int n = 0; n < NO; n++) {
            KX_UNROLL
            for (int e = 0; e < 4; e++) o[n][e] = __fmul_rn(o[n][e], shrink[e / 2]);
        }
        values<D, FP8, NU>(o, a, v_slot, warp, WARPS);

        if ((tile + 1) * S::T % CHUNK != 0 && tile + 1 != c.w.tile_end) continue;
        const uint32_t chunk = tile * S::T / CHUNK;
        x.sums[warp][lane][0] = l[0][0];
        x.sums[warp][lane][1] = l[0][1];
        __syncthreads();
        KX_UNROLL
        for (int i = 0; i < 2; i++) {
            float quad[4];
            KX_UNROLL
            for (int j = 0; j < 4; j++) {
                const int from = g * 4 + j;
                quad[j] = __fadd_rn(__fadd_rn(x.sums[0][from][i], x.sums[1][from][i]),
                                    __fadd_rn(x.sums[2][from][i], x.sums[3][from][i]));
            }
            const float sum = __fadd_rn(__fadd_rn(quad[0], quad[1]), __fadd_rn(quad[2], quad[3]));
            const uint32_t row = g + 8 * i;
            if (c.w.item.pieces > 1) {
                if (row < c.w.item.rows) {
                    const size_t partial = c.partial_of(chunk, row);
                    KX_UNROLL
                    for (int u = 0; u < NU; u++) {
                        if (warp + u * WARPS < S::UNITS)
                            c.put_partial(c.partial_values + partial * D, warp + u * WARPS, &o[u * S::UNIT_TILES], i);
                    }
                    if (warp == 0 && t == 0) c.partial_sums[partial] = make_float2(m[i], sum);
                }
            } else {
                float old, now;
                fold(M[i], L[i], m[i], sum, old, now);
                KX_UNROLL
                for (int n = 0; n < NO; n++) {
                    KX_UNROLL
                    for (int e = 2 * i; e < 2 * i + 2; e++) run[n][e] = folded(run[n][e], old, o[n][e], now);
                }
            }
            m[i] = -INFINITY;
            l[0][i] = 0.0f;
        }
        KX_UNROLL
        for (int n = 0; n < NO; n++) {
            KX_UNROLL
            for (int e = 0; e < 4; e++) o[n][e] = 0.0f;
        }
    }
    if (c.w.item.pieces > 1) return;
    KX_UNROLL
    for (int i = 0; i < 2; i++) {
        const uint32_t row = g + 8 * i;
        if (row >= c.w.item.rows) continue;
        const float inverse = __frcp_rn(L[i]);
        KX_UNROLL
        for (int u = 0; u < NU; u++) {
            if (warp + u * WARPS < S::UNITS)
                c.put_out(c.out + c.out_at(row), warp + u * WARPS, &run[u * S::UNIT_TILES], i, inverse);
        }
    }
}

/* ---- more rows: 16 a warp. The running result of earlier chunks lies in shared memory, each lane's own. */

template <int D, bool FP8> __device__ __forceinline__ void many_rows(context<D, FP8> &c)
{
    using S = shape<D, FP8>;
    constexpr int NO = D / 8, NT = S::TILES, PER = NT / 4;
    const int warp = threadIdx.x / 32, lane = kx::lane(), g = lane / 4, t = lane % 4;
    const uint32_t row0 = warp * WARP_ROWS, rows = c.w.item.rows;
    const bool live = row0 < rows;
    uint32_t q[D / 16][1][4];
    float o[NO][4], m[2], l[4][2], M[2], L[2];
    float4 *const run = c.state + (size_t)warp * NO * 32 + lane;
    c.load_query(q, row0 + g);
    const sight see = c.sight_of(row0 + g);
    const uint32_t row_last = live ? min(row0 + WARP_ROWS, rows) - 1 : row0;
    const uint32_t low = c.first_of(c.position_of(row0)), high = c.position_of(row_last) + 1;
    const uint32_t low_of_last = c.first_of(high - 1), end_of_first = c.position_of(row0) + 1;
    const bool full = row0 + WARP_ROWS <= rows;
    bool begun = false; /* a chunk is in run */
    KX_UNROLL
    for (int n = 0; n < NO; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
    KX_UNROLL
    for (int i = 0; i < 2; i++) {
        m[i] = M[i] = -INFINITY;
        l[0][i] = l[1][i] = l[2][i] = l[3][i] = L[i] = 0.0f;
    }

    for (uint32_t tile = c.w.tile_begin; tile < c.w.tile_end; tile++) {
        const uint32_t position = tile * S::T;
        const bool any = live && position < high && position + S::T > low;
        unsigned char *const k_slot = c.next();
        uint32_t p[NT][2];
        float s[1][NT][4], top[2], shrink[2];
        if (any) {
            scores<D, FP8, NT>(s, q, k_slot, 0);
            hide<NT, FP8>(s, top, (const float *)(k_slot + S::CODES), c.n.scale_log2, position, see,
                          full && position >= low_of_last && position + S::T <= end_of_first);
            KX_UNROLL
            for (int i = 0; i < 2; i++) {
                const float now = fmaxf(m[i], quad_max(top[i]));
                shrink[i] = shrinking(m[i], now);
                m[i] = now;
            }
        }
        unsigned char *const v_slot = c.next();
        if (any) {
            weigh<NT, PER, FP8>(s, p, l, m, shrink, (const float *)(v_slot + S::CODES));
            uint32_t a[S::STRIPES][1][4];
            KX_UNROLL
            for (int k = 0; k < S::STRIPES; k++) {
                KX_UNROLL
                for (int i = 0; i < 4; i++) a[k][0][i] = p[2 * k + i / 2][i % 2];
            }
            KX_UNROLL
            for (int n = 0; n < NO; n++) {
                KX_UNROLL
                for (int e = 0; e < 4; e++) o[n][e] = __fmul_rn(o[n][e], shrink[e / 2]);
            }
            values<D, FP8, S::UNITS>(o, a, v_slot, 0, 1);
        }

        if ((tile + 1) * S::T % CHUNK != 0 && tile + 1 != c.w.tile_end) continue;
        if (!live) continue;
        const uint32_t chunk = tile * S::T / CHUNK;
        float old[2], now[2];
        KX_UNROLL
        for (int i = 0; i < 2; i++) {
            float sum = __fadd_rn(__fadd_rn(l[0][i], l[1][i]), __fadd_rn(l[2][i], l[3][i]));
            sum = __fadd_rn(sum, __shfl_xor_sync(kx::FULL_MASK, sum, 1));
            sum = __fadd_rn(sum, __shfl_xor_sync(kx::FULL_MASK, sum, 2));
            const uint32_t row = row0 + g + 8 * i;
            if (c.w.item.pieces > 1 && row < rows) {
                const size_t partial = c.partial_of(chunk, row);
                KX_UNROLL
                for (int u = 0; u < S::UNITS; u++)
                    c.put_partial(c.partial_values + partial * D, u, &o[u * S::UNIT_TILES], i);
                if (t == 0) c.partial_sums[partial] = make_float2(m[i], sum);
            }
            fold(M[i], L[i], m[i], sum, old[i], now[i]);
            m[i] = -INFINITY;
            l[0][i] = l[1][i] = l[2][i] = l[3][i] = 0.0f;
        }
        if (c.w.item.pieces == 1) {
            const bool last = tile + 1 == c.w.tile_end;
            KX_UNROLL
            for (int n = 0; n < NO; n++) {
                const float4 r = begun ? run[n * 32] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                o[n][0] = folded(r.x, old[0], o[n][0], now[0]);
                o[n][1] = folded(r.y, old[0], o[n][1], now[0]);
                o[n][2] = folded(r.z, old[1], o[n][2], now[1]);
                o[n][3] = folded(r.w, old[1], o[n][3], now[1]);
                if (!last) run[n * 32] = make_float4(o[n][0], o[n][1], o[n][2], o[n][3]);
            }
            begun = true;
            if (last) break;
        }
        KX_UNROLL
        for (int n = 0; n < NO; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
    }
    if (c.w.item.pieces > 1) return;
    KX_UNROLL
    for (int i = 0; i < 2; i++) {
        const uint32_t row = row0 + g + 8 * i;
        if (row >= rows) continue;
        const float inverse = __frcp_rn(L[i]);
        KX_UNROLL
        for (int u = 0; u < S::UNITS; u++) c.put_out(c.out + c.out_at(row), u, &o[u * S::UNIT_TILES], i, inverse);
    }
}

/* ---- a group that was cut: who finishes last merges its chunks */

template <int D, bool FP8> __device__ __forceinline__ void merge(const context<D, FP8> &c, uint32_t *tickets)
{
    KX_SHARED(uint32_t, last, [1]);
    uint32_t *const ticket = tickets + (size_t)c.w.item.ticket * c.n.KH + c.w.head;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last[0] = atomicAdd(ticket, 1u) == c.w.item.pieces - 1u;
        __threadfence(); /* by who saw the ticket, before the barrier that tells the others */
    }
    __syncthreads();
    if (!last[0]) return;
    const uint32_t rows = c.w.item.rows;
    for (uint32_t i = threadIdx.x; i < rows * (D / 4); i += THREADS) {
        const uint32_t row = i / (D / 4), d = i % (D / 4) * 4;
        float M = -INFINITY, L = 0.0f;
        float4 A = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (uint32_t chunk = c.w.item.group_begin; chunk < c.w.item.group_end; chunk++) {
            const size_t partial = c.partial_of(chunk, row);
            const float2 sums = __ldcg(c.partial_sums + partial);
            const float4 a = __ldcg((const float4 *)(c.partial_values + partial * D + d));
            float x, y;
            fold(M, L, sums.x, sums.y, x, y);
            A.x = folded(A.x, x, a.x, y);
            A.y = folded(A.y, x, a.y, y);
            A.z = folded(A.z, x, a.z, y);
            A.w = folded(A.w, x, a.w, y);
        }
        const float inverse = __frcp_rn(L);
        kx::store((uint2 *)(c.out + c.out_at(row) + d),
                  make_uint2(kx::bf16x2_pack(c.normal(A.x, inverse), c.normal(A.y, inverse)),
                             kx::bf16x2_pack(c.normal(A.z, inverse), c.normal(A.w, inverse))));
    }
    if (threadIdx.x == 0) atomicExch(ticket, 0u);
}

__device__ __forceinline__ work work_of(const attention_item &item, const sizes &n, uint32_t head, int T,
                                        const uint32_t *q_start, const uint32_t *kv_len)
{
    work w;
    w.item = item;
    w.G = n.H / n.KH;
    w.head = head;
    w.first_token = __ldg(q_start + item.seq);
    w.base = __ldg(kv_len + item.seq) - (__ldg(q_start + item.seq + 1) - w.first_token);
    const uint32_t position = w.base + item.row / w.G;
    w.low = n.window && position >= n.window ? position + 1 - n.window : 0;
    w.high = w.base + (item.row + item.rows - 1) / w.G + 1;
    w.tile_begin = max(w.low, (uint32_t)item.chunk_begin * CHUNK) / T;
    w.tile_end = (min(w.high, (uint32_t)item.chunk_end * CHUNK) + T - 1) / T;
    return w;
}

template <int D, bool FP8>
__global__ void __launch_bounds__(THREADS, 2)
    attention_kernel(uint16_t *out, const uint16_t *qkv, const unsigned char *layer, uint32_t *tickets,
                     float *partial_values, float2 *partial_sums, const uint32_t *items_count,
                     const attention_item *items, const uint32_t *q_start, const uint32_t *kv_len,
                     const uint32_t *table_start, const uint32_t *table, sizes n)
{
    using S = shape<D, FP8>;
    KX_SHARED_DYN(pool);
    context<D, FP8> c;
    c.ring = kx::carve<unsigned char>(pool, S::RING_BYTES);
    c.state = kx::carve<float4>(pool, S::STATE);
    c.out = out;
    c.qkv = qkv;
    c.partial_values = partial_values;
    c.partial_sums = partial_sums;
    c.n = n;
    const uint32_t count = __ldg(items_count), pairs = cuda_attention_workers(gridDim.x, n.KH) * n.KH;
    for (uint32_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
        for (uint32_t index = pair / n.KH; index < count;) {
            const attention_item item = items[index];
            c.w = work_of(item, n, pair % n.KH, S::T, q_start, kv_len);
            __syncthreads(); /* the item before no longer needs the shared memory */
            c.load.start(c.w, layer, table + __ldg(table_start + item.seq), c.ring, n.KH);
            c.slot = 0;
            KX_UNROLL
            for (int i = 0; i < S::SLOTS - 1; i++) c.load.issue();
            if (item.rows <= WARP_ROWS) {
                few_rows(c);
            } else {
                many_rows(c);
            }
            if (item.pieces > 1) merge(c, tickets);
            if (!item.next) break;
            index = item.next;
        }
    }
}

template <int D, bool FP8>
cudaError_t launch(const struct cuda_attention *a, const struct cuda_step *step, uint32_t grid, cudaStream_t stream)
{
    using S = shape<D, FP8>;
    static_assert(sizeof(exchange<S::T>) <= S::STATE * sizeof(float4), "exchange lies in the state");
    const size_t shared = kx::carve_bytes<unsigned char>(S::RING_BYTES) + kx::carve_bytes<float4>(S::STATE);
    unsigned char *const scratch = (unsigned char *)a->scratch;
    float *const partial_values = (float *)(scratch + cuda_attention_ticket_bytes(grid, a->KH));
    const sizes n = {a->H, a->KH, a->window, a->partials, a->scale * 1.44269504f};
    const int plan = a->window ? 1 : 0;
    return kx::launch(attention_kernel<D, FP8>, grid, THREADS, shared, stream, a->out, a->qkv,
                      (const unsigned char *)a->kv.base + a->layer * cuda_kv_layer_bytes(a->kv.blocks, a->KH, D, FP8),
                      (uint32_t *)scratch, partial_values, (float2 *)(partial_values + (size_t)a->partials * a->KH * D),
                      &step->header->items[plan], step->items[plan], step->q_start, step->kv_len, step->table_start,
                      step->table, n);
}

} // namespace

extern "C" cudaError_t cuda_attention(const struct cuda_attention *a, const struct cuda_step *step, uint32_t grid,
                                      cudaStream_t stream)
{
    const bool fp8 = a->kv.fp8;
    if (!grid || !a->KH || a->H % a->KH != 0) return cudaErrorInvalidValue;
    switch (a->D) {
    case 64: return fp8 ? launch<64, true>(a, step, grid, stream) : launch<64, false>(a, step, grid, stream);
    case 96: return fp8 ? launch<96, true>(a, step, grid, stream) : launch<96, false>(a, step, grid, stream);
    case 128: return fp8 ? launch<128, true>(a, step, grid, stream) : launch<128, false>(a, step, grid, stream);
    case 256: return fp8 ? launch<256, true>(a, step, grid, stream) : launch<256, false>(a, step, grid, stream);
    default: return cudaErrorInvalidValue;
    }
}
