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

/* What warps exchange when they share rows; lies where many_rows has its state. */
template <int T> struct exchange {
    unsigned char p[WARP_ROWS * T * 2];
    float maxima[WARPS][WARP_ROWS];
    float sums[WARPS][32][2];
};

struct sizes { /* of the launch */
    uint32_t H, KH, window, partials;
    float scale_log2;
};

/* An item, for one KV head. Lies in shared memory: all threads read it, and it would cost each twenty registers. */
struct work {
    const uint32_t *table;       /* the sequence's blocks */
    const unsigned char *layer;  /* the KV head's pieces of block 0 */
    uint32_t row, rows, partial; /* of the item */
    uint32_t pieces, ticket, group_begin, group_end, next;
    uint32_t G, head, first_token, window;
    uint32_t low, high; /* positions that any row sees */
    uint32_t tile_begin, tile_end;
    uint32_t end[ROWS];  /* behind the row's position; 0: no such row */
    float2 before[ROWS]; /* maximum and sum of the chunks before, where warps have rows of their own */

    /* The first position that a row sees whose own is end - 1. */
    __device__ __forceinline__ uint32_t first_seen(uint32_t own_end) const
    {
        return window && own_end > window ? own_end - window : 0;
    }
};

/* 16-byte unit c of row r of a tile: without bank conflicts for ldmatrix and for rows that are written whole. */
template <int ROW_BYTES> __device__ __forceinline__ unsigned char *at(unsigned char *tile, int r, int c)
{
    const int swizzle = ROW_BYTES % 128 == 0 ? r & 7 : ROW_BYTES % 128 == 64 ? (r >> 1) & 3 : (r >> 2) & 1;
    return tile + r * ROW_BYTES + ((c ^ swizzle) << 4);
}

/* The thread's index and its lane, for the place where they are asked for: what addresses are made of them would
 * otherwise be kept in registers all through the kernel. */
__device__ __forceinline__ int thread_here()
{
    return kx::opaque((int)threadIdx.x);
}
__device__ __forceinline__ int lane_here()
{
    return thread_here() % 32;
}

/* Four codes to four BF16, exactly. */
__device__ __forceinline__ void widen(uint32_t codes, float (&f)[4])
{
    kx::e4m3x4_unpack(codes, f);
}

/* ---- loading: the ring of K and V by turns */

template <int D, bool FP8> struct loader {
    using S = shape<D, FP8>;
    unsigned char *ring;
    uint32_t tile, id, id_next; /* to load next; the blocks of which this warp loads a part, there and in the next */
    int slot, value;            /* to fill next; whether it is for V */

    /* 0 where no row sees the block. */
    __device__ __forceinline__ uint32_t block_of(const work &w, uint32_t of_tile) const
    {
        const uint32_t warp = thread_here() / 32, block = of_tile * (S::T / 16) + (S::T == 64 ? warp : warp / 2);
        return block * 16 < w.high && block * 16 + 16 > w.low ? __ldg(w.table + block) : 0;
    }
    __device__ __forceinline__ void start(const work &w, unsigned char *slots)
    {
        ring = slots;
        tile = w.tile_begin;
        slot = value = 0;
        id = block_of(w, tile);
        id_next = 0;
    }
    /* One commit each call, also when there is nothing left. */
    __device__ __forceinline__ void issue(const work &w, uint32_t KH)
    {
        if (tile < w.tile_end) {
            constexpr int WARP_POSITIONS = S::T / WARPS;
            const int thread = thread_here(), warp = thread / 32, lane = thread % 32;
            unsigned char *const target = ring + (size_t)slot * S::SLOT;
            const unsigned char *const piece = w.layer + cuda_kv_piece_at(id, 0, KH, D, FP8);
            const int first = warp * WARP_POSITIONS % 16; /* of the block */
            const unsigned char *const source = piece + (value * 16 + first) * S::ROW_BYTES + lane * 16;
            const uint32_t position = tile * S::T + warp * WARP_POSITIONS;
            const uint32_t low = max(w.low, position) - position, high = max(w.high, position) - position;
            KX_UNROLL
            for (int k = 0; k < WARP_POSITIONS * S::PIECES / 32; k++) {
                const int i = lane + 32 * k, row = i / S::PIECES;
                kx::cp_async16(at<S::ROW_BYTES>(target, warp * WARP_POSITIONS + row, i % S::PIECES), source + k * 512,
                               (uint32_t)row >= low && (uint32_t)row < high ? 16 : 0);
            }
            if (FP8 && lane < WARP_POSITIONS) {
                kx::cp_async4(target + S::CODES + (warp * WARP_POSITIONS + lane) * 4,
                              piece + 2 * 16 * D + (value * 16 + first + lane) * 4,
                              (uint32_t)lane >= low && (uint32_t)lane < high ? 4 : 0);
            }
            if (value) {
                tile++;
                id = id_next;
            } else if (tile + 1 < w.tile_end) {
                id_next = block_of(w, tile + 1);
            }
            value ^= 1;
            slot = slot + 1 == S::SLOTS ? 0 : slot + 1;
        }
        kx::cp_async_commit();
    }
};

/* ---- products */

/* A lane's part of the queries of its rows. */
template <int D> struct query {
    uint32_t q[D / 16][4];
};

/* s[n] = q K^T of NT tiles of 8 positions, from `first` on. */
template <int D, bool FP8, int NT>
__device__ __forceinline__ void scores(float (&s)[1][NT][4], const query<D> &q, unsigned char *slot, int first)
{
    using S = shape<D, FP8>;
    constexpr int KS = FP8 && D % 64 == 0 && D < 256 ? 4 : 2; /* mma steps a turn; registers are short at 256 */
    const int lane = lane_here();
    KX_UNROLL
    for (int n = 0; n < NT; n++) s[0][n][0] = s[0][n][1] = s[0][n][2] = s[0][n][3] = 0.0f;
    KX_UNROLL
    for (int k0 = 0; k0 < S::STEPS; k0 += KS) {
        uint32_t a[KS][1][4], b[KS][NT][2];
        KX_UNROLL
        for (int k = 0; k < KS; k++) {
            KX_UNROLL
            for (int i = 0; i < 4; i++) a[k][0][i] = q.q[k0 + k][i];
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
template <int D, bool FP8, int NU, int OUTS = NU * shape<D, FP8>::UNIT_TILES, int STRIPES = shape<D, FP8>::STRIPES>
__device__ __forceinline__ void values(float (&o)[OUTS][4], const uint32_t (&p)[STRIPES][1][4], unsigned char *slot,
                                       int unit0, int step)
{
    using S = shape<D, FP8>;
    constexpr int MOST = 4 / S::UNIT_TILES, TURN = NU % MOST == 0 ? MOST : NU % 3 == 0 ? 3 : NU % 2 == 0 ? 2 : 1;
    constexpr int TILES = TURN * S::UNIT_TILES;
    const int lane = lane_here();
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

/* Scales. */
template <int NT, bool FP8>
__device__ __forceinline__ void scale(float (&s)[1][NT][4], const float *k_scales, float scale_log2)
{
    const int t = lane_here() % 4;
    KX_UNROLL
    for (int n = 0; n < NT; n++) {
        KX_UNROLL
        for (int e = 0; e < 4; e++) {
            if (FP8) s[0][n][e] = __fmul_rn(s[0][n][e], k_scales[n * 8 + t * 2 + e % 2]);
            s[0][n][e] = __fmul_rn(s[0][n][e], scale_log2);
        }
    }
}

/* Hides what row `row` and the one 8 further do not see; position: of s[0]. */
template <int NT>
__device__ __forceinline__ void hide(float (&s)[1][NT][4], const work &w, uint32_t row, uint32_t position)
{
    const uint32_t own = position + lane_here() % 4 * 2;
    KX_UNROLL
    for (int i = 0; i < 2; i++) {
        const uint32_t end = w.end[row + 8 * i], first = w.first_seen(end), length = end - first;
        KX_UNROLL
        for (int n = 0; n < NT; n++) {
            KX_UNROLL
            for (int e = 0; e < 2; e++) {
                if (own + (n * 8 + e) - first >= length) s[0][n][2 * i + e] = -INFINITY;
            }
        }
    }
}

template <int NT> __device__ __forceinline__ float top_of(const float (&s)[1][NT][4], int i)
{
    float top = -INFINITY;
    KX_UNROLL
    for (int n = 0; n < NT; n++) top = fmaxf(top, fmaxf(s[0][n][2 * i], s[0][n][2 * i + 1]));
    return quad_max(top);
}

/* p in place of s, packed for the product with V; l[n / PER] takes the sums. */
template <int NT, int PER, bool FP8>
__device__ __forceinline__ void weigh(const float (&s)[1][NT][4], uint32_t (&p)[NT][2], float (&l)[NT / PER][2],
                                      const float (&m)[2], const float (&shrink)[2], const float *v_scales)
{
    const int t = lane_here() % 4;
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
    work &w;
    sizes n;
    float4 *state;
    loader<D, FP8> load;
    int slot; /* next to read */

    __device__ __forceinline__ unsigned char *take()
    {
        unsigned char *const taken = load.ring + (size_t)slot * S::SLOT;
        slot = slot + 1 == S::SLOTS ? 0 : slot + 1;
        return taken;
    }
    /* The next slot's copies, of all threads, can be read, and the slot read before it is free and filled again. */
    __device__ __forceinline__ unsigned char *next()
    {
        kx::cp_async_wait<S::SLOTS - 2>();
        __syncthreads();
        load.issue(w, n.KH);
        return take();
    }
    /* Whether any, or each, of the 16 rows from row0 on sees any, or all, of [begin, end). */
    __device__ __forceinline__ bool any_sees(uint32_t row0, uint32_t begin, uint32_t end) const
    {
        return row0 < w.rows && end > w.first_seen(w.end[row0]) && begin < w.end[min(row0 + WARP_ROWS, w.rows) - 1];
    }
    __device__ __forceinline__ bool all_see(uint32_t row0, uint32_t begin, uint32_t end) const
    {
        const uint32_t last = w.end[row0 + WARP_ROWS - 1];
        return begin >= w.first_seen(last) && end <= w.end[row0] && last != 0;
    }
    __device__ __forceinline__ size_t out_at(uint32_t row) const
    {
        const uint32_t r = w.row + row;
        return ((size_t)(w.first_token + r / w.G) * n.H + (size_t)w.head * w.G + r % w.G) * D;
    }
    __device__ __forceinline__ void load_query(query<D> &q, uint32_t row0) const
    {
        const int t = lane_here() % 4;
        KX_UNROLL
        for (int i = 0; i < 2; i++) {
            const uint32_t row = row0 + 8 * i, r = w.row + row;
            const uint16_t *const from =
                qkv + (size_t)(w.first_token + r / w.G) * (n.H + 2 * n.KH) * D + ((size_t)w.head * w.G + r % w.G) * D;
            const bool live = row < w.rows;
            KX_UNROLL
            for (int k = 0; k < D / 16; k++) {
                if (FP8) {
                    const uint2 v = live ? kx::load((const uint2 *)(from + k * 16 + t * 4)) : make_uint2(0, 0);
                    q.q[k][i] = v.x;
                    q.q[k][2 + i] = v.y;
                } else {
                    q.q[k][i] = live ? kx::load((const uint32_t *)(from + k * 16 + t * 2)) : 0;
                    q.q[k][2 + i] = live ? kx::load((const uint32_t *)(from + k * 16 + t * 2 + 8)) : 0;
                }
            }
        }
    }
    __device__ __forceinline__ size_t partial_of(uint32_t chunk, uint32_t row) const
    {
        return ((size_t)w.partial + (size_t)(chunk - w.group_begin) * w.rows + row) * n.KH + w.head;
    }
    /* Unit u's values of row i of the lane (o: the lane's tiles): as f32 into a partial, or as BF16 into out. */
    __device__ __forceinline__ void put_partial(float *row, int unit, const float (*o)[4], int i) const
    {
        const int t = lane_here() % 4;
        if constexpr (FP8) {
            kx::store((float4 *)(row + unit * 16 + t * 4),
                      make_float4(o[0][2 * i], o[1][2 * i], o[0][2 * i + 1], o[1][2 * i + 1]));
        } else {
            kx::store((float2 *)(row + unit * 8 + t * 2), make_float2(o[0][2 * i], o[0][2 * i + 1]));
        }
    }
    __device__ __forceinline__ void put_out(uint16_t *row, int unit, const float (*o)[4], int i, float inverse) const
    {
        const int t = lane_here() % 4;
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
    const int thread = thread_here(), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    exchange<S::T> &x = *(exchange<S::T> *)c.state;
    query<D> q;
    float o[NO][4], run[NO][4], m[2], l[1][2], M[2], L[2];
    c.load_query(q, g);
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

    for (uint32_t tile = c.w.tile_begin; tile < c.w.tile_end; tile++) {
        const uint32_t position = tile * S::T + warp * NT * 8;
        unsigned char *const k_slot = c.next();
        float s[1][NT][4], top[2] = {-INFINITY, -INFINITY};
        const bool any = position < c.w.high && position + NT * 8 > c.w.low;
        if (any) {
            scores<D, FP8, NT>(s, q, k_slot, warp * NT * 8);
            scale<NT, FP8>(s, (const float *)(k_slot + S::CODES) + warp * NT * 8, c.n.scale_log2);
            if (!c.all_see(0, position, position + NT * 8)) hide<NT>(s, c.w, g, position);
            KX_UNROLL
            for (int i = 0; i < 2; i++) top[i] = top_of<NT>(s, i);
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
            if (c.w.pieces > 1) {
                if (row < c.w.rows) {
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
    if (c.w.pieces > 1) return;
    KX_UNROLL
    for (int i = 0; i < 2; i++) {
        const uint32_t row = g + 8 * i;
        if (row >= c.w.rows) continue;
        const float inverse = __frcp_rn(L[i]);
        KX_UNROLL
        for (int u = 0; u < NU; u++) {
            if (warp + u * WARPS < S::UNITS)
                c.put_out(c.out + c.out_at(row), warp + u * WARPS, &run[u * S::UNIT_TILES], i, inverse);
        }
    }
}

/* ---- more rows: 16 a warp */

/* What a lane has of its rows g and g + 8 in a chunk: outputs, maxima and sums. Those of the chunks before lie in
 * shared memory, the outputs each lane's own. */
template <int NO> struct own_rows {
    float o[NO][4], m[2], l[4][2];

    __device__ __forceinline__ void begin_chunk()
    {
        KX_UNROLL
        for (int n = 0; n < NO; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
        KX_UNROLL
        for (int i = 0; i < 2; i++) {
            m[i] = -INFINITY;
            l[0][i] = l[1][i] = l[2][i] = l[3][i] = 0.0f;
        }
    }
};

/* The chunk that ends with `tile` becomes a partial, or joins those before; with the item's last, o and l[0] are all.
 */
template <int D, bool FP8, int NO>
__device__ __forceinline__ void end_chunk(context<D, FP8> &c, own_rows<NO> &r, uint32_t tile)
{
    using S = shape<D, FP8>;
    const int thread = thread_here(), lane = thread % 32;
    const uint32_t chunk = tile * S::T / CHUNK, row0 = thread / 32 * WARP_ROWS + lane / 4;
    float old[2], now[2], sum[2];
    KX_UNROLL
    for (int i = 0; i < 2; i++) {
        sum[i] = __fadd_rn(__fadd_rn(r.l[0][i], r.l[1][i]), __fadd_rn(r.l[2][i], r.l[3][i]));
        sum[i] = __fadd_rn(sum[i], __shfl_xor_sync(kx::FULL_MASK, sum[i], 1));
        sum[i] = __fadd_rn(sum[i], __shfl_xor_sync(kx::FULL_MASK, sum[i], 2));
    }
    if (c.w.pieces > 1) {
        KX_UNROLL
        for (int i = 0; i < 2; i++) {
            const uint32_t row = row0 + 8 * i;
            if (row >= c.w.rows) continue;
            const size_t partial = c.partial_of(chunk, row);
            KX_UNROLL
            for (int u = 0; u < S::UNITS; u++)
                c.put_partial(c.partial_values + partial * D, u, &r.o[u * S::UNIT_TILES], i);
            if (lane % 4 == 0) c.partial_sums[partial] = make_float2(r.m[i], sum[i]);
        }
        return;
    }
    const bool first = chunk == c.w.tile_begin * S::T / CHUNK, last = tile + 1 == c.w.tile_end;
    float4 *const run = c.state + (size_t)(thread / 32) * NO * 32 + lane;
    KX_UNROLL
    for (int i = 0; i < 2; i++) {
        float2 before = first ? make_float2(-INFINITY, 0.0f) : c.w.before[row0 + 8 * i];
        fold(before.x, before.y, r.m[i], sum[i], old[i], now[i]);
        r.l[0][i] = before.y;
        if (last) continue;
        __syncwarp();
        if (lane % 4 == 0) c.w.before[row0 + 8 * i] = before;
    }
    KX_UNROLL
    for (int n = 0; n < NO; n++) {
        const float4 before = first ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : run[n * 32];
        r.o[n][0] = folded(before.x, old[0], r.o[n][0], now[0]);
        r.o[n][1] = folded(before.y, old[0], r.o[n][1], now[0]);
        r.o[n][2] = folded(before.z, old[1], r.o[n][2], now[1]);
        r.o[n][3] = folded(before.w, old[1], r.o[n][3], now[1]);
        if (!last) run[n * 32] = make_float4(r.o[n][0], r.o[n][1], r.o[n][2], r.o[n][3]);
    }
}

template <int D, bool FP8> __device__ __forceinline__ void many_rows(context<D, FP8> &c)
{
    using S = shape<D, FP8>;
    constexpr int NO = D / 8, NT = S::TILES;
    query<D> q;
    own_rows<NO> r;
    c.load_query(q, thread_here() / 32 * WARP_ROWS + lane_here() / 4);
    r.begin_chunk();
    for (uint32_t tile = c.w.tile_begin; tile < c.w.tile_end; tile++) {
        const uint32_t position = tile * S::T;
        unsigned char *const k_slot = c.next();
        float s[1][NT][4] = {}, shrink[2] = {}; /* on all ways: else they are live from the kernel's beginning */
        const bool any = c.any_sees(thread_here() / 32 * WARP_ROWS, position, position + S::T);
        if (any) {
            const int thread = thread_here(), row0 = thread / 32 * WARP_ROWS;
            scores<D, FP8, NT>(s, q, k_slot, 0);
            scale<NT, FP8>(s, (const float *)(k_slot + S::CODES), c.n.scale_log2);
            if (!c.all_see(row0, position, position + S::T)) hide<NT>(s, c.w, row0 + thread % 32 / 4, position);
            KX_UNROLL
            for (int i = 0; i < 2; i++) {
                const float top = fmaxf(r.m[i], top_of<NT>(s, i));
                shrink[i] = shrinking(r.m[i], top);
                r.m[i] = top;
            }
        }
        unsigned char *const v_slot = c.next();
        if (any) {
            uint32_t p[NT][2];
            weigh<NT, NT / 4, FP8>(s, p, r.l, r.m, shrink, (const float *)(v_slot + S::CODES));
            uint32_t a[S::STRIPES][1][4];
            KX_UNROLL
            for (int k = 0; k < S::STRIPES; k++) {
                KX_UNROLL
                for (int i = 0; i < 4; i++) a[k][0][i] = p[2 * k + i / 2][i % 2];
            }
            KX_UNROLL
            for (int n = 0; n < NO; n++) {
                KX_UNROLL
                for (int e = 0; e < 4; e++) r.o[n][e] = __fmul_rn(r.o[n][e], shrink[e / 2]);
            }
            values<D, FP8, S::UNITS>(r.o, a, v_slot, 0, 1);
        }
        const bool last = tile + 1 == c.w.tile_end;
        if (last || (tile + 1) * S::T % CHUNK == 0) {
            end_chunk(c, r, tile);
            if (!last) r.begin_chunk();
        }
    }
    if (c.w.pieces > 1) return;
    KX_UNROLL
    for (int i = 0; i < 2; i++) {
        const uint32_t row = thread_here() / 32 * WARP_ROWS + lane_here() / 4 + 8 * i;
        if (row >= c.w.rows) continue;
        const float inverse = __frcp_rn(r.l[0][i]);
        KX_UNROLL
        for (int u = 0; u < S::UNITS; u++) c.put_out(c.out + c.out_at(row), u, &r.o[u * S::UNIT_TILES], i, inverse);
    }
}

/* ---- a group that was cut: who finishes last merges its chunks */

template <int D, bool FP8> __device__ __forceinline__ void merge(const context<D, FP8> &c, uint32_t *tickets)
{
    KX_SHARED(uint32_t, last, [1]);
    uint32_t *const ticket = tickets + (size_t)c.w.ticket * c.n.KH + c.w.head;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last[0] = atomicAdd(ticket, 1u) == c.w.pieces - 1u;
        __threadfence(); /* by who saw the ticket, before the barrier that tells the others */
    }
    __syncthreads();
    if (!last[0]) return;
    const uint32_t rows = c.w.rows;
    for (uint32_t i = thread_here(); i < rows * (D / 4); i += THREADS) {
        const uint32_t row = i / (D / 4), d = i % (D / 4) * 4;
        float M = -INFINITY, L = 0.0f;
        float4 A = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (uint32_t chunk = c.w.group_begin; chunk < c.w.group_end; chunk++) {
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

/* By all threads; the caller puts barriers around. */
__device__ __forceinline__ void work_set(work &w, const attention_item &item, const sizes &n, uint32_t head, int T,
                                         const uint32_t *q_start, const uint32_t *kv_len)
{
    const uint32_t G = n.H / n.KH, first_token = __ldg(q_start + item.seq);
    const uint32_t base = __ldg(kv_len + item.seq) - (__ldg(q_start + item.seq + 1) - first_token);
    const int thread = thread_here();
    for (uint32_t row = thread; row < ROWS; row += THREADS) {
        w.end[row] = row < item.rows ? base + (item.row + row) / G + 1 : 0;
    }
    if (threadIdx.x != 0) return;
    w.window = n.window;
    w.row = item.row;
    w.rows = item.rows;
    w.partial = item.partial;
    w.pieces = item.pieces;
    w.ticket = item.ticket;
    w.group_begin = item.group_begin;
    w.group_end = item.group_end;
    w.next = item.next;
    w.G = G;
    w.head = head;
    w.first_token = first_token;
    w.low = w.first_seen(base + item.row / G + 1);
    w.high = base + (item.row + item.rows - 1) / G + 1;
    w.tile_begin = max(w.low, (uint32_t)item.chunk_begin * CHUNK) / T;
    w.tile_end = (min(w.high, (uint32_t)item.chunk_end * CHUNK) + T - 1) / T;
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
    KX_SHARED(work, w, [1]);
    unsigned char *const ring = kx::carve<unsigned char>(pool, S::RING_BYTES);
    float4 *const state = kx::carve<float4>(pool, S::STATE);
    context<D, FP8> c = {out, qkv, partial_values, partial_sums, w[0], n, state, {}, 0};
    uint32_t index = blockIdx.x / n.KH;
    if (index >= min(__ldg(items_count), cuda_attention_workers(gridDim.x, n.KH))) return;
    do {
        __syncthreads(); /* the item before no longer needs the shared memory */
        work_set(w[0], items[index], n, blockIdx.x % n.KH, S::T, q_start, kv_len);
        if (threadIdx.x == 0) {
            w[0].table = table + __ldg(table_start + items[index].seq);
            w[0].layer = layer + cuda_kv_piece_at(0, blockIdx.x % n.KH, n.KH, D, FP8);
        }
        __syncthreads();
        c.load.start(w[0], ring);
        c.slot = 0;
        KX_UNROLL
        for (int i = 0; i < S::SLOTS - 1; i++) c.load.issue(w[0], n.KH);
        if (w[0].rows <= WARP_ROWS) {
            few_rows(c);
        } else {
            many_rows(c);
        }
        if (w[0].pieces > 1) merge(c, tickets);
        index = w[0].next;
    } while (index);
}

template <int D, bool FP8>
cudaError_t launch(const struct cuda_attention *a, const struct cuda_step *step, uint32_t grid, cudaStream_t stream)
{
    using S = shape<D, FP8>;
    static_assert(sizeof(exchange<S::T>) <= S::STATE * sizeof(float4), "the exchange lies in the state");
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
    if (!a->KH || grid < a->KH || a->H % a->KH != 0) return cudaErrorInvalidValue;
    switch (a->D) {
    case 64: return fp8 ? launch<64, true>(a, step, grid, stream) : launch<64, false>(a, step, grid, stream);
    case 96: return fp8 ? launch<96, true>(a, step, grid, stream) : launch<96, false>(a, step, grid, stream);
    case 128: return fp8 ? launch<128, true>(a, step, grid, stream) : launch<128, false>(a, step, grid, stream);
    case 256: return fp8 ? launch<256, true>(a, step, grid, stream) : launch<256, false>(a, step, grid, stream);
    default: return cudaErrorInvalidValue;
    }
}
