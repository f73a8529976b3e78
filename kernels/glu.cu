/* The gated activation: cuda_glu of cuda_ops.h, where no matmul has done it. Eight values a thread, 16-byte accesses,
 * f32 inside:
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

template <bool GELU>
__global__ void __launch_bounds__(GLU_THREADS)
    glu(uint16_t *out, const uint16_t *gu, const uint32_t *live, uint32_t F, bool alternating)
{
    const uint32_t m = blockIdx.x, group = blockIdx.y * GLU_THREADS + threadIdx.x;
    if (m >= kx::load(live) || group >= F / 8) return;
    const uint4 *row = (const uint4 *)(gu + (size_t)m * 2 * F);
    const uint4 gate_bits = kx::load(row + (alternating ? 2 * group : group));
    const uint4 up_bits = kx::load(row + (alternating ? 2 * group + 1 : F / 8 + group));
    float gate[8], up[8];
    kx::bf16x8_unpack(gate_bits, gate);
    kx::bf16x8_unpack(up_bits, up);
    KX_UNROLL
    for (int i = 0; i < 8; i++) gate[i] = glu_gated<GELU>(gate[i], up[i]);
    kx::store((uint4 *)(out + (size_t)m * F) + group, kx::bf16x8_pack(gate));
}

/* Grid: rows by eights of F. */
extern "C" cudaError_t cuda_glu(uint16_t *out, const uint16_t *gu, uint32_t F, bool gelu, bool alternating,
                                const uint32_t *live, uint32_t M, cudaStream_t stream)
{
    if (F == 0 || F % 8) return cudaErrorInvalidValue;
    if (M == 0) return cudaSuccess;
    const dim3 grid(M, (F / 8 + GLU_THREADS - 1) / GLU_THREADS);
    return kx::launch(gelu ? glu<true> : glu<false>, grid, GLU_THREADS, 0, stream, out, gu, live, F, alternating);
}
