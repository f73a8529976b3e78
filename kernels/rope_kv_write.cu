/* Rotary positions, norms of heads, and the write of K and V into the paged cache: cuda_rope_kv_write of cuda_ops.h.
 *
 * One launch does Q, K and V. A group of 2^n lanes serves a head, a lane 16 of its values: two runs of UNIT values that
 * are each other's partners, so that a pair turns inside a lane, and the groups of a warp read whole sectors:
 *
 *   halves       runs at u and half + u;     what does not turn is cut into halves of its own
 *   interleaved  runs at u and D / 2 + u;    pairs lie inside a run
 *
 * UNIT is 8 (16-byte accesses) where the shape allows, else 4, else 1. Partners by shuffle were not taken: they need
 * runs of whole lanes as well, and another exchange for each pairing.
 *
 * Angles: rope_angle.cuh. A block makes those of its token once, in shared memory, for all of its heads.
 *
 * Distinct tokens have distinct (block, slot), so blocks of the launch never write the same bytes. Tokens beyond the
 * header's count write nothing: their blocks leave before they read anything else. */
#include "kernels/cuda_ops.h"
#include "kernels/rope_angle.cuh"
#include "kernels/vec.cuh"

constexpr uint32_t ROPE_THREADS = 128, ROPE_D_MAX = 512;
constexpr float E4M3_MAX = 448.0f, E4M3_LEAST = 0x1p-100f; /* as norm_row.cuh */

struct rope_shape {
    uint32_t rope_size, H, KH, D;
    uint32_t lanes; /* of a head, a power of two */
    float magnitude, eps;
    bool interleaved, fp8;
};

/* An infinity as NaN: a score of -infinity would go unnoticed. */
__device__ __forceinline__ float rope_or_nan(float v)
{
    return fabsf(v) <= 0x1.fep127f ? v : __uint_as_float(0x7fc00000u);
}

template <int UNIT> struct rope_run;
template <> struct rope_run<8> {
    static __device__ __forceinline__ void load(float *f, const uint16_t *p)
    {
        float v[8];
        kx::bf16x8_unpack(kx::load((const uint4 *)p), v);
        KX_UNROLL
        for (int i = 0; i < 8; i++) f[i] = v[i];
    }
    static __device__ __forceinline__ void store(uint16_t *p, const float *f)
    {
        kx::store((uint4 *)p, make_uint4(kx::bf16x2_pack(f[0], f[1]), kx::bf16x2_pack(f[2], f[3]),
                                         kx::bf16x2_pack(f[4], f[5]), kx::bf16x2_pack(f[6], f[7])));
    }
    static __device__ __forceinline__ void store_e4m3(uint8_t *p, const float *f)
    {
        kx::store((uint2 *)p,
                  make_uint2(kx::e4m3x4_pack(f[0], f[1], f[2], f[3]), kx::e4m3x4_pack(f[4], f[5], f[6], f[7])));
    }
};
template <> struct rope_run<4> {
    static __device__ __forceinline__ void load(float *f, const uint16_t *p)
    {
        const uint2 bits = kx::load((const uint2 *)p);
        const float2 low = kx::bf16x2_unpack(bits.x), high = kx::bf16x2_unpack(bits.y);
        f[0] = low.x, f[1] = low.y, f[2] = high.x, f[3] = high.y;
    }
    static __device__ __forceinline__ void store(uint16_t *p, const float *f)
    {
        kx::store((uint2 *)p, make_uint2(kx::bf16x2_pack(f[0], f[1]), kx::bf16x2_pack(f[2], f[3])));
    }
    static __device__ __forceinline__ void store_e4m3(uint8_t *p, const float *f)
    {
        kx::store((uint32_t *)p, kx::e4m3x4_pack(f[0], f[1], f[2], f[3]));
    }
};
template <> struct rope_run<1> {
    static __device__ __forceinline__ void load(float *f, const uint16_t *p) { f[0] = kx::bf16_to_f32(kx::load(p)); }
    static __device__ __forceinline__ void store(uint16_t *p, const float *f) { kx::store(p, kx::f32_to_bf16(f[0])); }
    static __device__ __forceinline__ void store_e4m3(uint8_t *p, const float *f)
    {
        kx::store(p, kx::f32_to_e4m3(f[0]));
    }
};

/* Where the two runs of item u begin in a head; an item beyond the head begins at D or beyond. */
template <int UNIT> __device__ __forceinline__ uint2 rope_runs(const rope_shape &s, uint32_t u)
{
    const uint32_t at = u * UNIT;
    if (2 * at >= s.D) return make_uint2(s.D, s.D);
    if (s.interleaved) return make_uint2(at, s.D / 2 + at);
    if (2 * at < s.rope_size) return make_uint2(at, s.rope_size / 2 + at);
    const uint32_t first = s.rope_size / 2 + at;
    return make_uint2(first, first + (s.D - s.rope_size) / 2);
}

/* Turns one item: a at runs.x and b at runs.y. angles: (rope_size / 2) cosine and sine. */
template <int UNIT>
__device__ __forceinline__ void rope_turn(float *a, float *b, uint2 runs, const rope_shape &s, const float2 *angles)
{
    if (!s.interleaved) {
        if (runs.y >= s.rope_size) return;
        KX_UNROLL
        for (int i = 0; i < UNIT; i++) {
            const float2 t = angles[runs.x + i];
            const float first = fmaf(a[i], t.x, -b[i] * t.y);
            b[i] = fmaf(b[i], t.x, a[i] * t.y);
            a[i] = first;
        }
        return;
    }
    KX_UNROLL
    for (int r = 0; r < 2; r++) {
        float *v = r ? b : a;
        const uint32_t at = r ? runs.y : runs.x;
        KX_UNROLL
        for (int i = 0; i + 1 < UNIT; i += 2) {
            if (at + i >= s.rope_size) break;
            const float2 t = angles[(at + i) / 2];
            const float first = fmaf(v[i], t.x, -v[i + 1] * t.y);
            v[i + 1] = fmaf(v[i + 1], t.x, v[i] * t.y);
            v[i] = first;
        }
    }
}

/* A head's 16 values a lane; those of items beyond it are 0. */
template <int UNIT> struct rope_head {
    static constexpr int ITEMS = 8 / UNIT;
    float a[ITEMS * UNIT], b[ITEMS * UNIT];
    uint2 runs[ITEMS];
};

template <int UNIT>
__device__ __forceinline__ void rope_load(rope_head<UNIT> &h, const uint16_t *source, bool live, const rope_shape &s)
{
    const uint32_t lane = (uint32_t)kx::lane() & (s.lanes - 1);
    KX_UNROLL
    for (int k = 0; k < h.ITEMS; k++) {
        h.runs[k] = live ? rope_runs<UNIT>(s, lane + (uint32_t)k * s.lanes) : make_uint2(s.D, s.D);
        KX_UNROLL
        for (int i = 0; i < UNIT; i++) h.a[k * UNIT + i] = h.b[k * UNIT + i] = 0.0f;
        if (h.runs[k].x >= s.D) continue;
        rope_run<UNIT>::load(h.a + k * UNIT, source + h.runs[k].x);
        rope_run<UNIT>::load(h.b + k * UNIT, source + h.runs[k].y);
    }
}

/* RMSNorm over a head's lanes, which all call it. */
template <int UNIT>
__device__ __forceinline__ void rope_norm(rope_head<UNIT> &h, const float *weight, const rope_shape &s)
{
    float squares = 0.0f;
    KX_UNROLL
    for (int i = 0; i < 8; i++) squares = fmaf(h.b[i], h.b[i], fmaf(h.a[i], h.a[i], squares));
    for (uint32_t o = s.lanes / 2; o; o >>= 1) squares += __shfl_xor_sync(kx::FULL_MASK, squares, (int)o);
    if (!weight) return;
    const float inverse = 1.0f / sqrtf(squares / (float)s.D + s.eps);
    KX_UNROLL
    for (int k = 0; k < h.ITEMS; k++) {
        if (h.runs[k].x >= s.D) break;
        KX_UNROLL
        for (int i = 0; i < UNIT; i++) {
            h.a[k * UNIT + i] *= inverse * kx::load(weight + h.runs[k].x + i);
            h.b[k * UNIT + i] *= inverse * kx::load(weight + h.runs[k].y + i);
        }
    }
}

template <int UNIT>
__device__ __forceinline__ void rope_store(uint16_t *target, const rope_head<UNIT> &h, const rope_shape &s)
{
    KX_UNROLL
    for (int k = 0; k < h.ITEMS; k++) {
        if (h.runs[k].x >= s.D) break;
        rope_run<UNIT>::store(target + h.runs[k].x, h.a + k * UNIT);
        rope_run<UNIT>::store(target + h.runs[k].y, h.b + k * UNIT);
    }
}

/* Codes of a head and their scale, by all of its lanes; write: this is K or V of a token. NaN anywhere: the scale is.
 */
template <int UNIT>
__device__ __forceinline__ void rope_store_e4m3(uint8_t *target, float *scale, const rope_head<UNIT> &h, bool write,
                                                const rope_shape &s)
{
    uint32_t most = 0; /* magnitudes order as integers, NaN above all */
    KX_UNROLL
    for (int i = 0; i < 8; i++) {
        most = max(most, __float_as_uint(fabsf(h.a[i])));
        most = max(most, __float_as_uint(fabsf(h.b[i])));
    }
    for (uint32_t o = s.lanes / 2; o; o >>= 1) most = max(most, __shfl_xor_sync(kx::FULL_MASK, most, (int)o));
    if (!write) return;
    const float amax = __uint_as_float(most);
    const bool live = amax >= E4M3_LEAST; /* false with NaN */
    const float inverse = live ? E4M3_MAX / amax : 0.0f;
    if (((uint32_t)kx::lane() & (s.lanes - 1)) == 0)
        kx::store(scale, live ? amax / E4M3_MAX : amax != amax ? amax : 0.0f);
    KX_UNROLL
    for (int k = 0; k < h.ITEMS; k++) {
        if (h.runs[k].x >= s.D) break;
        float a[UNIT], b[UNIT];
        KX_UNROLL
        for (int i = 0; i < UNIT; i++) {
            a[i] = live ? h.a[k * UNIT + i] * inverse : 0.0f;
            b[i] = live ? h.b[k * UNIT + i] * inverse : 0.0f;
        }
        rope_run<UNIT>::store_e4m3(target + h.runs[k].x, a);
        rope_run<UNIT>::store_e4m3(target + h.runs[k].y, b);
    }
}

template <int UNIT>
__global__ void __launch_bounds__(ROPE_THREADS)
    rope_kv_write(uint16_t *qkv, const float *q_norm, const float *k_norm, const uint64_t *turns, uint8_t *kv,
                  const cuda_step_header *header, const uint32_t *positions, const uint32_t *seq_of_token,
                  const uint32_t *table_start, const uint32_t *table, rope_shape s)
{
    KX_SHARED(float2, angles, [ROPE_D_MAX / 2]);
    const uint32_t m = blockIdx.x;
    if (m >= kx::load(&header->tokens)) return;
    const uint32_t position = kx::load(positions + m);
    for (uint32_t i = threadIdx.x; i < s.rope_size / 2; i += ROPE_THREADS) {
        const float2 t = rope_cos_sin(position * kx::load(turns + i));
        angles[i] = make_float2(t.x * s.magnitude, t.y * s.magnitude);
    }
    __syncthreads();
    const uint32_t head = (blockIdx.y * ROPE_THREADS + threadIdx.x) / s.lanes;
    const bool live = head < s.H + 2 * s.KH, is_q = head < s.H, is_v = head >= s.H + s.KH;
    uint16_t *place = qkv + ((size_t)m * (s.H + 2 * s.KH) + (live ? head : 0)) * s.D;
    rope_head<UNIT> h;
    rope_load(h, place, live, s);
    rope_norm(h, is_v ? nullptr : is_q ? q_norm : k_norm, s);
    KX_UNROLL
    for (int k = 0; k < h.ITEMS; k++) {
        if (!is_v && h.runs[k].x < s.D) rope_turn<UNIT>(h.a + k * UNIT, h.b + k * UNIT, h.runs[k], s, angles);
    }
    KX_UNROLL
    for (int i = 0; i < 8; i++) h.a[i] = rope_or_nan(h.a[i]), h.b[i] = rope_or_nan(h.b[i]);
    if (!is_v) rope_store(place, h, s);
    const bool write = live && !is_q;
    const uint32_t block =
        kx::load(table + kx::load(table_start + kx::load(seq_of_token + m)) + position / CUDA_KV_TOKENS);
    const uint32_t kv_head = is_q || !live ? 0 : (head - s.H) % s.KH, slot = position % CUDA_KV_TOKENS;
    const uint32_t row = is_v ? CUDA_KV_TOKENS + slot : slot;
    uint8_t *piece = kv + cuda_kv_piece_at(block, kv_head, s.KH, s.D, s.fp8);
    if (s.fp8) {
        float *scales = (float *)(piece + (size_t)2 * CUDA_KV_TOKENS * s.D);
        rope_store_e4m3(piece + (size_t)row * s.D, scales + row, h, write, s);
    } else if (write) {
        rope_store((uint16_t *)piece + (size_t)row * s.D, h, s);
    }
}

/* The longest run that cuts a head of this shape. */
static uint32_t rope_unit(const struct cuda_rope *rope)
{
    const uint32_t turning = rope->interleaved ? 0 : rope->rope_size / 2, rest = rope->D / 2 - turning;
    for (uint32_t unit = 8; unit > 1; unit /= 2) {
        if (unit != 2 && turning % unit == 0 && rest % unit == 0) return unit;
    }
    return 1;
}

/* Grid: tokens by the heads that a block holds. */
extern "C" cudaError_t cuda_rope_kv_write(const struct cuda_rope *rope, const struct cuda_step *step, uint32_t M,
                                          cudaStream_t stream)
{
    const uint32_t D = rope->D, heads = rope->H + 2 * rope->KH;
    if (D == 0 || D % 8 || D > ROPE_D_MAX || rope->rope_size > D || rope->rope_size % 2) return cudaErrorInvalidValue;
    if (rope->KH == 0 || rope->layer >= rope->kv.layers) return cudaErrorInvalidValue;
    if (rope->kv.kv_heads != rope->KH || rope->kv.head_size != D) return cudaErrorInvalidValue;
    if (M == 0) return cudaSuccess;
    uint32_t lanes = 1;
    while (lanes * 16 < D) lanes *= 2;
    const rope_shape shape = {rope->rope_size, rope->H,   rope->KH,          D,           lanes,
                              rope->magnitude, rope->eps, rope->interleaved, rope->kv.fp8};
    const uint32_t unit = rope_unit(rope), heads_a_block = ROPE_THREADS / lanes;
    const auto kernel = unit == 8 ? rope_kv_write<8> : unit == 4 ? rope_kv_write<4> : rope_kv_write<1>;
    uint8_t *layer =
        (uint8_t *)rope->kv.base + rope->layer * cuda_kv_layer_bytes(rope->kv.blocks, rope->KH, D, rope->kv.fp8);
    return kx::launch(kernel, dim3(M, (heads + heads_a_block - 1) / heads_a_block), ROPE_THREADS, 0, stream, rope->qkv,
                      rope->q_norm, rope->k_norm, rope->turns, layer, step->header, step->positions, step->seq_of_token,
                      step->table_start, step->table, shape);
}
