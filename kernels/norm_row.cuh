/* One row of add_rmsnorm.cu and all_reduce.cu, by a block:
 *
 *   x += residual_scale * (post_weight ? rmsnorm(y, post_weight) : y);  out = rmsnorm(x) * weight
 *
 * A thread owns UNITS groups of four consecutive values, threads apart, and keeps them in registers from the one read
 * of x and y to the one write of out. Four and not eight: a warp then touches whole sectors with every instruction, 512
 * bytes of f32 or 256 of bf16, while two 16-byte loads of neighbours would each fetch half of 32 sectors. Weights are
 * asked for before the sum that they wait for.
 *
 * Order of a sum: each thread over its units in rising order, then the lanes of a warp, then the warps. It depends on E
 * alone (norm_row_shape), so a row's bits are the same in any batch. E up to 16384: 512 threads of 8 units, 32 values
 * of x and 32 of y or weight in registers. A loop over longer rows, which would read x twice, was left out: no model
 * comes near. Included by .cu files alone. */
#ifndef KERNELS_NORM_ROW_CUH
#define KERNELS_NORM_ROW_CUH

#include "kernels/cuda_ops.h"
#include "kernels/vec.cuh"

constexpr uint32_t NORM_E_MAX = 16384, NORM_THREADS_MAX = 512;
constexpr float E4M3_MAX = 448.0f;
/* Rows and heads whose highest magnitude is below get codes and scale 0: 448 / amax stays finite. */
constexpr float E4M3_LEAST = 0x1p-100f;

struct norm_row_shape {
    uint32_t units, threads; /* of a thread, and of a block */
};
inline norm_row_shape norm_row_shape_of(uint32_t E)
{
    const uint32_t groups = E / 4;
    uint32_t units = 1;
    while (units * NORM_THREADS_MAX < groups) units *= 2;
    return {units, ((groups + units - 1) / units + 31) / 32 * 32};
}

struct norm_row_numbers { /* by value to kernels: no pointers */
    uint32_t E;
    float residual_scale, eps;
};
struct norm_row { /* made inside a kernel from its arguments */
    float *x;     /* the row */
    float *x_out; /* where the changed row goes: x, elsewhere, or NULL */
    const float *post_weight, *weight;
    void *out;     /* the row of out */
    float *scale;  /* where E4M3's scale goes, or NULL: out is bf16 */
    uint32_t *bad; /* of the row */
    bool added;    /* there is a y */
    norm_row_numbers n;
};

/* The sum over the block, or its largest value (none is below 0), in every thread. partial: 16 floats that nothing else
 * uses in this row. */
enum norm_row_op { NORM_ROW_SUM, NORM_ROW_MAX };
template <norm_row_op OP> __device__ __forceinline__ float norm_row_reduce(float v, float *partial)
{
    const uint32_t warps = blockDim.x / 32;
    v = OP == NORM_ROW_SUM ? kx::warp_sum(v) : kx::warp_max(v);
    if (kx::lane() == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    v = (uint32_t)kx::lane() < warps ? partial[kx::lane()] : 0.0f;
    return OP == NORM_ROW_SUM ? kx::warp_sum(v) : kx::warp_max(v);
}

/* The first value of a thread's unit u; rows have E / 4 of them. */
__device__ __forceinline__ uint32_t norm_row_group(int u)
{
    return threadIdx.x + (uint32_t)u * blockDim.x;
}

template <int UNITS> __device__ __forceinline__ float norm_row_squares(const float4 (&v)[UNITS], float *partial)
{
    float squares = 0.0f;
    KX_UNROLL
    for (int u = 0; u < UNITS; u++) {
        squares = fmaf(v[u].x, v[u].x, squares);
        squares = fmaf(v[u].y, v[u].y, squares);
        squares = fmaf(v[u].z, v[u].z, squares);
        squares = fmaf(v[u].w, v[u].w, squares);
    }
    return norm_row_reduce<NORM_ROW_SUM>(squares, partial);
}

/* Units beyond the row are 0. */
template <int UNITS> __device__ __forceinline__ void norm_row_load(float4 (&v)[UNITS], const float *source, uint32_t E)
{
    KX_UNROLL
    for (int u = 0; u < UNITS; u++) {
        const uint32_t group = norm_row_group(u);
        v[u] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (group < E / 4) v[u] = kx::load((const float4 *)source + group);
    }
}

__device__ __forceinline__ float4 norm_row_scale(const float4 &v, float k, const float4 &w)
{
    return make_float4(v.x * k * w.x, v.y * k * w.y, v.z * k * w.z, v.w * k * w.w);
}

/* Codes of a normed row, with one scale. sound: the row is finite. */
template <int UNITS>
__device__ __forceinline__ void norm_row_store_e4m3(const norm_row &r, const float4 (&v)[UNITS], bool sound,
                                                    float *partial)
{
    float amax = 0.0f;
    KX_UNROLL
    for (int u = 0; u < UNITS; u++) {
        amax = fmaxf(amax, fmaxf(fmaxf(fabsf(v[u].x), fabsf(v[u].y)), fmaxf(fabsf(v[u].z), fabsf(v[u].w))));
    }
    amax = norm_row_reduce<NORM_ROW_MAX>(amax, partial);
    const bool live = amax >= E4M3_LEAST && amax <= 0x1.fffffep127f;
    const float inverse = live ? E4M3_MAX / amax : 0.0f;
    if (threadIdx.x == 0) *r.scale = !sound ? __uint_as_float(0x7fc00000u) : live ? amax / E4M3_MAX : 0.0f;
    KX_UNROLL
    for (int u = 0; u < UNITS; u++) {
        const uint32_t group = norm_row_group(u);
        if (group >= r.n.E / 4) break;
        const uint32_t codes = kx::e4m3x4_pack(v[u].x * inverse, v[u].y * inverse, v[u].z * inverse, v[u].w * inverse);
        kx::store((uint32_t *)r.out + group, live ? codes : 0u);
    }
}

/* y: the values to add, where r.added; changed. All threads of the block call it, and barriers part two calls. */
template <int UNITS> __device__ __forceinline__ void norm_row_finish(const norm_row &r, float4 (&y)[UNITS])
{
    KX_SHARED(float, partial, [3][16]);
    const uint32_t groups = r.n.E / 4;
    float4 x[UNITS];
    norm_row_load(x, r.x, r.n.E);
    if (r.added) {
        float k = r.n.residual_scale;
        if (r.post_weight) {
            float4 w[UNITS];
            norm_row_load(w, r.post_weight, r.n.E);
            const float inverse = 1.0f / sqrtf(norm_row_squares(y, partial[0]) / (float)r.n.E + r.n.eps);
            KX_UNROLL
            for (int u = 0; u < UNITS; u++) y[u] = norm_row_scale(y[u], inverse, w[u]);
        }
        KX_UNROLL
        for (int u = 0; u < UNITS; u++) {
            x[u].x = fmaf(y[u].x, k, x[u].x);
            x[u].y = fmaf(y[u].y, k, x[u].y);
            x[u].z = fmaf(y[u].z, k, x[u].z);
            x[u].w = fmaf(y[u].w, k, x[u].w);
            if (r.x_out && norm_row_group(u) < groups) kx::store((float4 *)r.x_out + norm_row_group(u), x[u]);
        }
    } else if (r.x_out && r.x_out != r.x) {
        KX_UNROLL
        for (int u = 0; u < UNITS; u++) {
            if (norm_row_group(u) < groups) kx::store((float4 *)r.x_out + norm_row_group(u), x[u]);
        }
    }
    if (r.weight) norm_row_load(y, r.weight, r.n.E);
    const float squares = norm_row_squares(x, partial[1]);
    const bool sound = squares <= 0x1.fffffep127f;
    if (!sound && threadIdx.x == 0) kx::store(r.bad, 1u);
    if (!r.weight) return;
    const float inverse = 1.0f / sqrtf(squares / (float)r.n.E + r.n.eps);
    KX_UNROLL
    for (int u = 0; u < UNITS; u++) x[u] = norm_row_scale(x[u], inverse, y[u]);
    if (r.scale) {
        norm_row_store_e4m3(r, x, sound, partial[2]);
        return;
    }
    KX_UNROLL
    for (int u = 0; u < UNITS; u++) {
        if (norm_row_group(u) >= groups) break;
        const uint2 packed = make_uint2(kx::bf16x2_pack(x[u].x, x[u].y), kx::bf16x2_pack(x[u].z, x[u].w));
        kx::store((uint2 *)r.out + norm_row_group(u), packed);
    }
}

#endif
