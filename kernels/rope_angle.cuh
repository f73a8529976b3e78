/* The angles of rotary positions on a GPU.
 *
 * A frequency comes as a fraction of a turn in 2^-64 (cuda_rope_turn); times the position, modulo 2^64, it is the angle
 * within a turn, exactly. The nearest quarter turn is taken off, and two polynomials on [-pi/4, pi/4] give sine and
 * cosine: within 1.1e-7 of the double's at any position (test_rope_angle.cu prints it), half a unit in the last place
 * of f32 being 6e-8. Rejected:
 *   - frequencies in f32 radians: off by 0.003 at position 131072, which bf16 shows (2^-9 = 0.002);
 *   - sinf of large angles, whose slow path lies in local memory;
 *   - a table of all positions: 64 MB for 131072 positions of 64 pairs; or a table of each step: a launch more, and as
 *     many bytes read as a head has, in each layer. */
#ifndef KERNELS_ROPE_ANGLE_CUH
#define KERNELS_ROPE_ANGLE_CUH

#include "kernels/warp.cuh"

/* Cosine and sine of a fraction of a turn in 2^-64. Polynomials: Cephes, sinf.c and cosf.c. */
__device__ __forceinline__ float2 rope_cos_sin(uint64_t turn)
{
    const uint32_t fraction = (uint32_t)(turn >> 32);
    const uint32_t quarter = (fraction + 0x20000000u) >> 30;
    const float t = (float)(int32_t)(fraction - (quarter << 30)) * 1.4629180792671596e-9f; /* 2 pi / 2^32 */
    const float t2 = t * t;
    const float p = fmaf(fmaf(-1.9515295891e-4f, t2, 8.3321608736e-3f), t2, -1.6666654611e-1f);
    const float q = fmaf(fmaf(2.443315711809948e-5f, t2, -1.388731625493765e-3f), t2, 4.166664568298827e-2f);
    const float sine = fmaf(p * t2, t, t), cosine = fmaf(q * t2, t2, fmaf(-0.5f, t2, 1.0f));
    const float c = quarter & 1 ? sine : cosine, s = quarter & 1 ? cosine : sine;
    return make_float2((quarter + 1) & 2 ? -c : c, quarter & 2 ? -s : s);
}

#endif
