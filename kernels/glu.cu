/* The gated activation: cuda_glu of cuda_ops.h, where no matmul has done it. 16-byte loads, f32 inside:
 *
 *   SiLU        act(g) = g / (1 + e^-g)
 *   GELU, tanh  act(g) = g / (1 + e^-2u), u = sqrt(2/pi) (g + 0.044715 g^3), which is 0.5 g (1 + tanh u)
 *
 * e^x is 2^(x log2 e) by the hardware's ex2: below 2^-17 relative where the result is not yet lost to the 1 beside it,
 * against 2^-9 of the bf16 that is written. NaN and infinity pass into the output and are met by the next norm. */
#include "kernels/cuda_ops.h"
#include "kernels/vec.cuh"

constexpr uint32_t GLU_THREADS = 128;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float GELU_LINEAR = -1.5957691216057308f; /* -2 sqrt(2/pi), and that times 0.044715 */
constexpr float GELU_CUBIC = -0.07135481627159852f;

template <bool GELU> __device__ __forceinline__ float glu_gated(float gate, float up)
{
    const float exponent = GELU ? gate * fmaf(gate * gate, GELU_CUBIC, GELU_LINEAR) : -gate;
    return gate / (1.0f + kx::ex2(exponent * LOG2_E)) * up;
}

/* Gate and up apart: a thread has eight values of each. */
template <bool GELU>
__global__ void __launch_bounds__(GLU_THREADS) glu(uint16_t *out, const uint16_t *gu, const uint32_t *live, uint32_t F)
{
    const uint32_t m = blockIdx.x, group = blockIdx.y * GLU_THREADS + threadIdx.x;
    if (m >= kx::load(live) || group >= F / 8) return;
    const uint4 *row = (const uint4 *)(gu + (size_t)m * 2 * F);
    float gate[8], up[8];
    kx::bf16x8_unpack(kx::load(row + group), gate);
    kx::bf16x8_unpack(kx::load(row + F / 8 + group), up);
    KX_UNROLL
    for (int i = 0; i < 8; i++) gate[i] = glu_gated<GELU>(gate[i], up[i]);
    kx::store((uint4 *)(out + (size_t)m * F) + group, kx::bf16x8_pack(gate));
}

/* In eights: an even lane reads eight gates, the odd one beside it their ups; they swap halves, and each has four
 * values. Both loads by one lane would fetch every sector twice. */
template <bool GELU>
__global__ void __launch_bounds__(GLU_THREADS)
    glu_alternating(uint16_t *out, const uint16_t *gu, const uint32_t *live, uint32_t F)
{
    const uint32_t m = blockIdx.x, group = blockIdx.y * GLU_THREADS + threadIdx.x;
    if (m >= kx::load(live)) return; /* the whole block */
    const bool inside = group < F / 4, odd = threadIdx.x & 1;
    uint4 own = make_uint4(0u, 0u, 0u, 0u);
    if (inside) own = kx::load((const uint4 *)(gu + (size_t)m * 2 * F) + group);
    const uint32_t low = __shfl_xor_sync(kx::FULL_MASK, odd ? own.x : own.z, 1);
    const uint32_t high = __shfl_xor_sync(kx::FULL_MASK, odd ? own.y : own.w, 1);
    if (!inside) return;
    const float2 g0 = kx::bf16x2_unpack(odd ? low : own.x), g1 = kx::bf16x2_unpack(odd ? high : own.y);
    const float2 u0 = kx::bf16x2_unpack(odd ? own.z : low), u1 = kx::bf16x2_unpack(odd ? own.w : high);
    const uint2 packed = make_uint2(kx::bf16x2_pack(glu_gated<GELU>(g0.x, u0.x), glu_gated<GELU>(g0.y, u0.y)),
                                    kx::bf16x2_pack(glu_gated<GELU>(g1.x, u1.x), glu_gated<GELU>(g1.y, u1.y)));
    kx::store((uint2 *)(out + (size_t)m * F) + group, packed);
}

/* Grid: rows by eights of F, or by fours. */
extern "C" cudaError_t cuda_glu(uint16_t *out, const uint16_t *gu, uint32_t F, bool gelu, bool alternating,
                                const uint32_t *live, uint32_t M, cudaStream_t stream)
{
    if (F == 0 || F % 8) return cudaErrorInvalidValue;
    if (M == 0) return cudaSuccess;
    const uint32_t groups = F / (alternating ? 4 : 8);
    const auto kernel = alternating ? gelu ? glu_alternating<true> : glu_alternating<false>
                        : gelu ? glu<true>
                                    : glu<false>;
    return kx::launch(kernel, dim3(M, (groups + GLU_THREADS - 1) / GLU_THREADS), GLU_THREADS, 0, stream, out, gu, live,
                      F);
}
