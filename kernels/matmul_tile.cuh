/* The inner part of a matmul that is bound by its weights: y[m][n] = sum over k of weight[n][k] x[m][k], for a block of
 * 128 rows n, up to 64 tokens m and a run of chunks of 128 inputs k. matmul_skinny.cu spreads a weight over the GPU
 * with it, matmul_tiled.cu walks any number of tokens; both add in the same order, so their bits are equal.
 *
 * Weights are operand A of mma m16n8k16, tokens operand B: 1..8 tokens cost one instruction. A warp owns 32 rows (two
 * tiles of 16) and copies its own weights, 16 bytes a lane, by cp.async into a ring that only it reads: lane (g, t) of
 * eight and four takes t's quarter of rows g, g + 8, g + 16, g + 24, and reads back what it copied itself. K slots of
 * an mma are renamed alike in both operands so that those bytes are the lane's fragment: no ldmatrix, no transposition.
 *
 *   format  inputs a step   of lane t in a row                       mmas of a step, a tile and 8 tokens
 *   BF16    32              8 t ..                                   2
 *   E4M3    64              16 t ..                                  4, scaled after 128 inputs
 *   Q4      128             8 t .. of each of four blocks of 32      2 a block, scaled and raised by the minimum
 *   Q8      64              4 t .., 16 + 4 t .. of each of two       1 a half block, scaled
 *
 * Activations of a chunk are shared by the block, [block of 32 inputs][token][32], copied by the same cp.async groups,
 * so a barrier a chunk is all that warps wait for; 16-byte places are exchanged (swap) so that no two lanes of a read
 * meet in a bank. Tokens beyond M and inputs beyond K are zeros. Codes become BF16 exactly; scales act on f32 sums.
 *
 * Rejected: splitting K over the warps of a block (activations would travel M / 32 as often as weights); one block a
 * tile and slice (a fixed grid that shares chunks evenly leaves no ragged last wave). */
#ifndef KERNELS_MATMUL_TILE_CUH
#define KERNELS_MATMUL_TILE_CUH

#include "kernels/cuda_weight.cuh"

namespace kx
{

constexpr uint32_t MATMUL_WARPS = 4, MATMUL_THREADS = 32 * MATMUL_WARPS;
constexpr uint32_t MATMUL_WARP_ROWS = 32, MATMUL_ROWS = MATMUL_WARPS * MATMUL_WARP_ROWS, MATMUL_CHUNK = 128;

/* What a kernel multiplies. Lives in registers: kernels take its members one by one. */
struct matmul_operands {
    const uint16_t *x;
    const uint8_t *codes;
    const void *scales;
    weight_shape w;
    uint32_t M, first;              /* tokens of x, and the first of the block's */
    const uint32_t *rows = nullptr; /* which row of x is token m; nullptr: m */
};

template <int NT>
using matmul_sums = float[2][NT][4]; /* of a lane: [tile][8 tokens] rows g, g + 8, tokens 2t, 2t + 1 */

__device__ __forceinline__ uint32_t word_of(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* ---- formats: how a step is copied and multiplied. Steps of the ring hold 128 uint4 of codes a warp and WORDS words.
 */

struct matmul_bf16 {
    static constexpr uint32_t INPUTS = 32, STEPS = 4, WORDS = 0;
    static constexpr bool SHARED_WORDS = false, MINIMUM = false;
    template <int NT> struct state {
    };
    static __device__ __forceinline__ uint32_t swap(uint32_t, uint32_t) { return 0; }
    static __device__ __forceinline__ void copy(const matmul_operands &o, uint4 *ring, uint32_t *, uint32_t row0,
                                                uint32_t k)
    {
        const uint32_t lane = kx::lane(), g = lane / 4, t = lane % 4;
        KX_UNROLL
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = row0 + 8 * i + g;
            const bool live = row < o.w.N && k + 8 * t < o.w.K;
            cp_async16(ring + 32 * i + lane, o.codes + (live ? ((size_t)row * o.w.K + k + 8 * t) * 2 : 0),
                       live ? 16 : 0);
        }
    }
    template <int NT>
    static __device__ __forceinline__ void multiply(const matmul_operands &, const uint4 *ring, const uint32_t *,
                                                    const uint4 *x, const float *, uint32_t step, state<NT> &,
                                                    matmul_sums<NT> &sums)
    {
        const uint32_t lane = kx::lane(), g = lane / 4, t = lane % 4;
        uint32_t a[2][2][4], b[2][NT][2];
        KX_UNROLL
        for (int i = 0; i < 4; i++) {
            const uint4 v = load(ring + 32 * i + lane);
            a[0][i / 2][i % 2] = v.x;
            a[0][i / 2][i % 2 + 2] = v.y;
            a[1][i / 2][i % 2] = v.z;
            a[1][i / 2][i % 2 + 2] = v.w;
        }
        KX_UNROLL
        for (int n = 0; n < NT; n++) {
            const uint4 v = load(x + (step * NT * 8 + n * 8 + g) * 4 + t);
            b[0][n][0] = v.x;
            b[0][n][1] = v.y;
            b[1][n][0] = v.z;
            b[1][n][1] = v.w;
        }
        mma_bf16_tile<2, 2, NT>(sums, a, b);
    }
};

struct matmul_e4m3 {
    static constexpr uint32_t INPUTS = 64, STEPS = 2, WORDS = 32;
    static constexpr bool SHARED_WORDS = true, MINIMUM = false;
    template <int NT> struct state {
        matmul_sums<NT> chunk;
    };
    static __device__ __forceinline__ uint32_t swap(uint32_t block, uint32_t) { return block & 1; }
    static __device__ __forceinline__ void copy(const matmul_operands &o, uint4 *ring, uint32_t *words, uint32_t row0,
                                                uint32_t k)
    {
        const uint32_t lane = kx::lane(), g = lane / 4, t = lane % 4;
        KX_UNROLL
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = row0 + 8 * i + g;
            const bool live = row < o.w.N && k + 16 * t < o.w.K;
            cp_async16(ring + 32 * i + lane, o.codes + (live ? (size_t)row * o.w.K + k + 16 * t : 0), live ? 16 : 0);
        }
        if (k % MATMUL_CHUNK == 0) return;
        /* with the chunk's last step: its scales, one a row */
        const uint32_t row = row0 + lane;
        const size_t at = (o.w.scale_cols ? k / o.w.scale_cols : 0) * (size_t)o.w.scale_stride;
        const float *const scale = (const float *)o.scales + at + (o.w.scale_rows ? row / o.w.scale_rows : 0);
        const bool live = row < o.w.N;
        cp_async4(words + lane, live ? (const void *)scale : o.scales, live ? 4 : 0);
    }
    template <int NT>
    static __device__ __forceinline__ void multiply(const matmul_operands &, const uint4 *ring, const uint32_t *words,
                                                    const uint4 *x, const float *, uint32_t step, state<NT> &s,
                                                    matmul_sums<NT> &sums)
    {
        const uint32_t lane = kx::lane(), g = lane / 4, t = lane % 4;
        uint32_t a[4][2][4], b[4][NT][2];
        KX_UNROLL
        for (int i = 0; i < 4; i++) {
            const uint4 v = load(ring + 32 * i + lane);
            KX_UNROLL
            for (int j = 0; j < 4; j++) e4m3x4_to_bf16(word_of(v, j), a[j][i / 2][i % 2], a[j][i / 2][i % 2 + 2]);
        }
        KX_UNROLL
        for (int n = 0; n < NT; n++) KX_UNROLL
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t block = 2 * step + t / 2, place = (t % 2 * 2 + i) ^ swap(block, 0);
            const uint4 v = load(x + (block * NT * 8 + n * 8 + g) * 4 + place);
            b[2 * i][n][0] = v.x;
            b[2 * i][n][1] = v.y;
            b[2 * i + 1][n][0] = v.z;
            b[2 * i + 1][n][1] = v.w;
        }
        if (step == 0) KX_UNROLL
        for (int i = 0; i < 8 * NT; i++) s.chunk[i / (4 * NT)][i / 4 % NT][i % 4] = 0.0f;
        mma_bf16_tile<4, 2, NT>(s.chunk, a, b);
        if (step == 0) return;
        KX_UNROLL
        for (int i = 0; i < 4; i++) {
            const float scale = __uint_as_float(load(words + 8 * i + g));
            KX_UNROLL
            for (int n = 0; n < NT; n++) KX_UNROLL
            for (int j = 0; j < 2; j++)
                sums[i / 2][n][i % 2 * 2 + j] =
                    fmaf(scale, s.chunk[i / 2][n][i % 2 * 2 + j], sums[i / 2][n][i % 2 * 2 + j]);
        }
    }
};

/* What the packed types have in common. Q8: 64 inputs a step, else 128. */
template <bool Q8> struct matmul_packed {
    static constexpr uint32_t INPUTS = Q8 ? 64 : 128, STEPS = Q8 ? 2 : 1, BLOCKS = INPUTS / 32, WORDS = 32 * BLOCKS;
    static constexpr bool SHARED_WORDS = true, MINIMUM = true;
    template <int NT> struct state {
    };
    static __device__ __forceinline__ void copy(const matmul_operands &o, uint4 *ring, uint32_t *words, uint32_t row0,
                                                uint32_t k)
    {
        const uint32_t lane = kx::lane(), g = lane / 4, t = lane % 4, spans = weight_spans(o.w.type, o.w.K);
        const bool inside = k < o.w.K;
        KX_UNROLL
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = row0 + 8 * i + g;
            const bool live = inside && row < o.w.N;
            cp_async16(ring + 32 * i + lane, o.codes + (live ? weight_piece(row, k / INPUTS, spans) * 64 + 16 * t : 0),
                       live ? 16 : 0);
        }
        /* a lane copies the words of one row (Q4) or two (Q8) */
        constexpr uint32_t ROWS = 4 / BLOCKS;
        if (lane * ROWS >= MATMUL_WARP_ROWS) return;
        const uint32_t row = row0 + lane * ROWS, rows = row >= o.w.N ? 0 : o.w.N - row < ROWS ? o.w.N - row : ROWS;
        const bool live = inside && rows;
        cp_async16(words + 4 * lane,
                   (const uint32_t *)o.scales + (live ? weight_piece(row, k / INPUTS, spans) * BLOCKS : 0),
                   live ? (int)(rows * BLOCKS * 4) : 0);
    }
};

struct matmul_q4 : matmul_packed<false> {
    static __device__ __forceinline__ uint32_t swap(uint32_t, uint32_t) { return 0; }
    template <int NT>
    static __device__ __forceinline__ void multiply(const matmul_operands &o, const uint4 *ring, const uint32_t *words,
                                                    const uint4 *x, const float *x_sums, uint32_t, state<NT> &,
                                                    matmul_sums<NT> &sums)
    {
        constexpr int GROUP = NT < 2 ? NT : 2; /* of 8 tokens, so that registers suffice */
        const uint32_t lane = kx::lane(), g = lane / 4, t = lane % 4;
        /* 0x4300 is 128: a code in its lowest bits is 128 + code */
        const uint32_t less = o.w.type == CUDA_TYPE_Q4_0 ? 0x43084308u : 0x43004300u;
        const bool has_minimum = weight_has_minimum(o.w.type);
        uint4 codes[4], row_words[4]; /* whole: parts of 16 bytes would meet in banks */
        KX_UNROLL
        for (int i = 0; i < 4; i++) {
            codes[i] = load(ring + 32 * i + lane);
            row_words[i] = load((const uint4 *)words + 8 * i + g);
        }
        KX_UNROLL
        for (int block = 0; block < 4; block++) {
            uint32_t a[2][2][4];
            block_scale scale[4];
            KX_UNROLL
            for (int i = 0; i < 4; i++) {
                const uint32_t c = word_of(codes[i], block);
                KX_UNROLL
                for (int j = 0; j < 4; j++)
                    a[j / 2][i / 2][i % 2 + j % 2 * 2] = bf16x2_sub((c >> 4 * j & 0x000f000fu) | 0x43004300u, less);
                const uint32_t even = word_of(row_words[i], block & 2), odd = word_of(row_words[i], block | 1);
                scale[i] = weight_block_scale<false>(o.w.type, block & 1 ? odd : even, even, odd);
            }
            KX_UNROLL
            for (int n0 = 0; n0 < NT; n0 += GROUP) {
                uint32_t b[2][GROUP][2];
                float products[2][GROUP][4] = {};
                KX_UNROLL
                for (int n = 0; n < GROUP; n++) {
                    const uint4 v = load(x + (block * NT * 8 + (n0 + n) * 8 + g) * 4 + t);
                    b[0][n][0] = v.x;
                    b[0][n][1] = v.y;
                    b[1][n][0] = v.z;
                    b[1][n][1] = v.w;
                }
                mma_bf16_tile<2, 2, GROUP>(products, a, b);
                KX_UNROLL
                for (int n = 0; n < GROUP; n++) {
                    float2 raised = make_float2(0.0f, 0.0f);
                    if (has_minimum) raised = load((const float2 *)(x_sums + block * NT * 8 + (n0 + n) * 8 + 2 * t));
                    KX_UNROLL
                    for (int i = 0; i < 4; i++) {
                        float *const at = sums[i / 2][n0 + n] + i % 2 * 2;
                        at[0] = fmaf(scale[i].low, products[i / 2][n][i % 2 * 2], at[0]);
                        at[1] = fmaf(scale[i].low, products[i / 2][n][i % 2 * 2 + 1], at[1]);
                        if (!has_minimum) continue;
                        at[0] = fmaf(scale[i].minimum, raised.x, at[0]);
                        at[1] = fmaf(scale[i].minimum, raised.y, at[1]);
                    }
                }
            }
        }
    }
};

struct matmul_q8 : matmul_packed<true> {
    static __device__ __forceinline__ uint32_t swap(uint32_t, uint32_t token) { return token & 2; }
    /* Two codes + 128, in the low bytes of the halves, less 128: bit 7 chooses what to take from 128 + the other bits.
     */
    static __device__ __forceinline__ uint32_t unpack(uint32_t pair)
    {
        return bf16x2_sub((pair & 0x007f007fu) | 0x43004300u, (pair & 0x00800080u) ^ 0x43804380u);
    }
    template <int NT>
    static __device__ __forceinline__ void multiply(const matmul_operands &o, const uint4 *ring, const uint32_t *words,
                                                    const uint4 *x, const float *x_sums, uint32_t step, state<NT> &,
                                                    matmul_sums<NT> &sums)
    {
        constexpr int GROUP = NT < 2 ? NT : 2;
        const uint32_t lane = kx::lane(), g = lane / 4, t = lane % 4;
        const bool has_minimum = weight_has_minimum(o.w.type);
        uint4 codes[4];
        uint2 row_words[4];
        KX_UNROLL
        for (int i = 0; i < 4; i++) {
            codes[i] = load(ring + 32 * i + lane);
            row_words[i] = load((const uint2 *)words + 8 * i + g);
        }
        KX_UNROLL
        for (int block = 0; block < 2; block++) {
            uint32_t a[2][1][2][4]; /* [half] */
            block_scale scale[4];
            KX_UNROLL
            for (int i = 0; i < 4; i++) {
                const uint2 c = make_uint2(word_of(codes[i], 2 * block), word_of(codes[i], 2 * block + 1));
                a[0][0][i / 2][i % 2] = unpack(__byte_perm(c.x, 0, 0x4140));
                a[0][0][i / 2][i % 2 + 2] = unpack(__byte_perm(c.x, 0, 0x4342));
                a[1][0][i / 2][i % 2] = unpack(__byte_perm(c.y, 0, 0x4140));
                a[1][0][i / 2][i % 2 + 2] = unpack(__byte_perm(c.y, 0, 0x4342));
                const uint2 pair = row_words[i];
                scale[i] = weight_block_scale<true>(o.w.type, block ? pair.y : pair.x, pair.x, pair.y);
            }
            KX_UNROLL
            for (int n0 = 0; n0 < NT; n0 += GROUP) {
                float products[2][2][GROUP][4] = {}; /* [half] */
                KX_UNROLL
                for (uint32_t half = 0; half < 2; half++) {
                    uint32_t b[1][GROUP][2];
                    KX_UNROLL
                    for (int n = 0; n < GROUP; n++) {
                        const uint32_t token = (n0 + n) * 8 + g, place = (2 * half + t / 2) ^ swap(0, token);
                        const uint4 *const at = x + ((2 * step + block) * NT * 8 + token) * 4 + place;
                        const uint2 v = load((const uint2 *)at + t % 2);
                        b[0][n][0] = v.x;
                        b[0][n][1] = v.y;
                    }
                    mma_bf16_tile<1, 2, GROUP>(products[half], a[half], b);
                }
                KX_UNROLL
                for (int n = 0; n < GROUP; n++) {
                    float2 raised = make_float2(0.0f, 0.0f);
                    if (has_minimum)
                        raised = load((const float2 *)(x_sums + (2 * step + block) * NT * 8 + (n0 + n) * 8 + 2 * t));
                    KX_UNROLL
                    for (int i = 0; i < 4; i++) KX_UNROLL
                    for (int j = 0; j < 2; j++) {
                        float &at = sums[i / 2][n0 + n][i % 2 * 2 + j];
                        at = fmaf(scale[i].low, products[0][i / 2][n][i % 2 * 2 + j], at);
                        at = fmaf(scale[i].high, products[1][i / 2][n][i % 2 * 2 + j], at);
                        if (has_minimum) at = fmaf(scale[i].minimum, j ? raised.y : raised.x, at);
                    }
                }
            }
        }
    }
};

/* ---- the pipeline */

/* Stages of the ring, buffers of activations, and bytes of shared memory of a block: two blocks an SM must fit. */
template <class F, int NT> struct matmul_plan {
    static constexpr uint32_t TOKENS = NT * 8, STAGES = NT <= 2 ? 5 : 4;
    /* A copy goes out STAGES - 1 steps ahead, into the buffer of a chunk that all warps have left. */
    static constexpr uint32_t BUFFERS = (STAGES - 1 + F::STEPS - 1) / F::STEPS + 1;
    static constexpr uint32_t RING = MATMUL_WARPS * STAGES * 128, WORDS = MATMUL_WARPS * STAGES * F::WORDS;
    static constexpr uint32_t X = BUFFERS * TOKENS * 16, X_SUMS = F::MINIMUM ? 4 * TOKENS : 0;
    static constexpr size_t bytes()
    {
        return carve_bytes<uint4>(RING) + carve_bytes<uint32_t>(WORDS) + carve_bytes<uint4>(X) +
               carve_bytes<float>(X_SUMS);
    }
};

/* Activations of a chunk, [block of 32][token][32], 16 bytes a copy; eight lanes fill 128 bytes of shared memory. */
template <class F, int NT> __device__ __forceinline__ void matmul_copy_x(const matmul_operands &o, uint4 *x, uint32_t k)
{
    for (uint32_t i = threadIdx.x; i < NT * 8 * 16; i += MATMUL_THREADS) {
        const uint32_t block = i / (NT * 32), token = i / 4 % (NT * 8), at = k + block * 32 + i % 4 * 8;
        const bool live = o.first + token < o.M && at < o.w.K;
        const uint32_t row = live && o.rows ? load(o.rows + o.first + token) : o.first + token;
        cp_async16(x + (i & ~3u) + (i % 4 ^ F::swap(block, token)), o.x + (live ? (size_t)row * o.w.K + at : 0),
                   live ? 16 : 0);
    }
}

/* The sum of each 32 activations of a chunk, for types with a minimum: four lanes a sum, added in one order. */
template <class F, int NT> __device__ __forceinline__ void matmul_sum_x(const uint4 *x, float *x_sums)
{
    for (uint32_t i = threadIdx.x; i < NT * 8 * 16; i += MATMUL_THREADS) { /* [block][token][8 inputs] */
        float v[8], sum = 0.0f;
        bf16x8_unpack(load(x + (i & ~3u) + (i % 4 ^ F::swap(i / (NT * 32), i / 4 % (NT * 8)))), v);
        KX_UNROLL
        for (int j = 0; j < 8; j++) sum += v[j];
        sum += __shfl_xor_sync(FULL_MASK, sum, 1);
        sum += __shfl_xor_sync(FULL_MASK, sum, 2);
        if (i % 4 == 0) store(x_sums + i / 4, sum);
    }
}

/* Multiplies units [begin, end), a unit being a chunk of 128 inputs of a group of 128 rows, groups outermost, and calls
 * done(unit) after each with the sums of what was added since the last time that done cleared them. All threads of the
 * block; done may hold barriers. */
template <class F, int NT, class Done>
__device__ __forceinline__ void matmul_run(const matmul_operands &o, uint32_t chunks, uint32_t begin, uint32_t end,
                                           matmul_sums<NT> &sums, Done done)
{
    using plan = matmul_plan<F, NT>;
    constexpr uint32_t STAGES = plan::STAGES, BUFFERS = plan::BUFFERS;
    KX_SHARED_DYN(pool);
    uint4 *const rings = carve<uint4>(pool, plan::RING);
    uint32_t *const all_words = F::WORDS ? carve<uint32_t>(pool, plan::WORDS) : nullptr;
    uint4 *const xs = carve<uint4>(pool, plan::X);
    float *const x_sums = F::MINIMUM ? carve<float>(pool, plan::X_SUMS) : nullptr;
    const uint32_t warp = threadIdx.x / 32;
    uint4 *const ring = rings + warp * STAGES * 128;
    uint32_t *const words = all_words + warp * STAGES * F::WORDS;
    const bool minimum = F::MINIMUM && weight_has_minimum(o.w.type);
    typename F::template state<NT> state;

    uint32_t ahead = begin, ahead_step = 0, ahead_stage = 0,
             ahead_buffer = 0; /* what the next copy is of, and goes to */
    uint32_t row0 = begin / chunks * MATMUL_ROWS + warp * MATMUL_WARP_ROWS, chunk = begin % chunks;
    const auto copy = [&]() {
        if (ahead < end) {
            const uint32_t k = chunk * MATMUL_CHUNK;
            F::copy(o, ring + ahead_stage * 128, words + ahead_stage * F::WORDS, row0, k + ahead_step * F::INPUTS);
            if (ahead_step == 0) matmul_copy_x<F, NT>(o, xs + ahead_buffer * NT * 8 * 16, k);
            if (++ahead_step == F::STEPS) {
                ahead_step = 0;
                ahead++;
                ahead_buffer = ahead_buffer + 1 == BUFFERS ? 0 : ahead_buffer + 1;
                if (++chunk == chunks) {
                    chunk = 0;
                    row0 += MATMUL_ROWS;
                }
            }
        }
        ahead_stage = ahead_stage + 1 == STAGES ? 0 : ahead_stage + 1;
        cp_async_commit();
    };
    for (uint32_t i = 0; i + 1 < STAGES; i++) copy();

    uint32_t stage = 0, buffer = 0;
    for (uint32_t unit = begin; unit < end; unit++) {
        const uint4 *const x = xs + buffer * NT * 8 * 16;
        KX_UNROLL
        for (uint32_t step = 0; step < F::STEPS; step++) {
            cp_async_wait<(int)STAGES - 2>();
            if (step == 0) {
                __syncthreads(); /* this chunk's activations are there, and all have left the one before */
                if (minimum) {
                    matmul_sum_x<F, NT>(x, x_sums);
                    __syncthreads();
                }
            } else if (F::SHARED_WORDS) {
                __syncwarp(); /* words are read by other lanes than copied them */
            }
            F::template multiply<NT>(o, ring + stage * 128, words + stage * F::WORDS, x, x_sums, step, state, sums);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            copy();
        }
        buffer = buffer + 1 == BUFFERS ? 0 : buffer + 1;
        done(unit);
    }
}

/* ---- how a weight is cut for a GPU: chunks are dealt evenly to a fixed number of blocks, in order */

struct matmul_slicing {
    uint32_t groups, chunks, blocks;
};
inline matmul_slicing matmul_slices(const weight_shape &w, uint32_t sms)
{
    const uint32_t groups = (w.N + MATMUL_ROWS - 1) / MATMUL_ROWS, chunks = (w.K + MATMUL_CHUNK - 1) / MATMUL_CHUNK;
    /* two blocks an SM, none with less than about 32 KB: 64 KB of BF16 (to be tuned) */
    const uint32_t least = w.type == CUDA_TYPE_BF16 ? 2 : weight_is_q4(w.type) ? 3 : 2;
    const uint64_t blocks = ((uint64_t)groups * chunks + least - 1) / least;
    return {groups, chunks, blocks < 2 * sms ? (uint32_t)blocks : 2 * sms};
}
/* First unit of a block, and the block that has a unit. */
__device__ __forceinline__ uint32_t matmul_begin(const matmul_slicing &s, uint32_t block)
{
    return (uint32_t)((uint64_t)block * s.groups * s.chunks / s.blocks);
}
__device__ __forceinline__ uint32_t matmul_block_of(const matmul_slicing &s, uint32_t unit)
{
    return (uint32_t)((((uint64_t)unit + 1) * s.blocks - 1) / ((uint64_t)s.groups * s.chunks));
}

/* ---- results */

struct matmul_output {
    uint32_t stride;
    bool f32, gelu, alternating;
};

__device__ __forceinline__ float matmul_glu(float gate, float up, bool gelu)
{
    if (!gelu) return gate / (1.0f + __expf(-gate)) * up;
    const float z = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
    return gate / (1.0f + __expf(-2.0f * z)) * up; /* 0.5 (1 + tanh z) = 1 / (1 + e^-2z) */
}

__device__ __forceinline__ void matmul_put(void *y, const matmul_output &out, uint32_t token, uint32_t n, float value)
{
    const size_t at = (size_t)token * out.stride + n;
    if (out.f32)
        store((float *)y + at, value);
    else
        store((uint16_t *)y + at, f32_to_bf16(value));
}

/* Writes the block's sums of a group of rows: bias, GLU, the output's type. */
template <int NT>
__device__ __forceinline__ void matmul_finish(const matmul_operands &o, uint32_t group, const matmul_sums<NT> &sums,
                                              const uint16_t *bias, void *y, const matmul_output &out)
{
    const uint32_t g = kx::lane() / 4, t = kx::lane() % 4;
    const uint32_t row0 = group * MATMUL_ROWS + threadIdx.x / 32 * MATMUL_WARP_ROWS + g;
    KX_UNROLL
    for (int tile = 0; tile < 2; tile++) {
        const uint32_t low = row0 + 16 * tile, high = low + 8;
        const float low_bias = bias && low < o.w.N ? bf16_to_f32(load(bias + low)) : 0.0f;
        const float high_bias = bias && high < o.w.N ? bf16_to_f32(load(bias + high)) : 0.0f;
        KX_UNROLL
        for (int i = 0; i < 2 * NT; i++) {
            const uint32_t token = o.first + i / 2 * 8 + 2 * t + i % 2;
            const float a = sums[tile][i / 2][i % 2] + low_bias, b = sums[tile][i / 2][i % 2 + 2] + high_bias;
            if (token >= o.M) continue;
            if (out.alternating) {
                if (high < o.w.N) matmul_put(y, out, token, low / 16 * 8 + g, matmul_glu(a, b, out.gelu));
                continue;
            }
            if (low < o.w.N) matmul_put(y, out, token, low, a);
            if (high < o.w.N) matmul_put(y, out, token, high, b);
        }
    }
}

} // namespace kx
#endif
