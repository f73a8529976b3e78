/* e^x with the bits of the CPU's lanes_exp (kernels/lanes.h), so that sampling and routing to experts choose what the
 * CPU chooses. The same coefficients and operations in the same order; every product with its sum is a fused one, so a
 * compiler has nothing left to contract. */
#ifndef KERNELS_EXP_AS_CPU_CUH
#define KERNELS_EXP_AS_CPU_CUH

#include "kernels/warp.cuh"

namespace kx
{

/* For -87 <= x <= 88 and NaN. lanes_exp gives 0 below. */
__device__ __forceinline__ float exp_as_cpu(float x)
{
    const float t = fmaf(x, 1.44269504088896341f, 12582912.0f), n = t - 12582912.0f;
    const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
    float p = fmaf(1.9875691500e-4f, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, __fmul_rn(r, r), r) + 1.0f;
    return p * __uint_as_float((__float_as_uint(t) << 23) + 0x3f800000u);
}

} // namespace kx
#endif
