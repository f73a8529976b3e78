/* Vectors of memory and number formats for CUDA kernels: 16-byte access, packing, conversion.
 *
 * A kernel reads and writes device memory through load<T>/store<T> (T of 1, 2, 4, 8 or 16 bytes): one instruction on a
 * GPU, and under tests/emulator a call that checks alignment and that the access counters see, lane by lane, so that a
 * test can hold a kernel to "every byte once, in whole 32-byte sectors". Plain pointers work too, but count nothing.
 *
 *   load<uint4>(p)         ld.global.v4            store<uint4>(p, v)        st.global.v4
 *   load_once<uint4>(p)    the same, read-only and not kept in L1: for weights and what is read once
 *   bf16x8_unpack(v, f)    8 BF16 of a uint4 to 8 floats; bf16x8_pack the way back, rounding to nearest even
 *   e4m3x4_unpack(u, f)    4 FP8 codes of a word to floats; e4m3x4_pack saturates to +-448 and keeps NaN
 *
 * A conversion has one definition for both compilers wherever CUDA's headers have it for the host as well: then the
 * emulator and the GPU agree by construction. Included by kernels (*.cu) only. */
#ifndef KERNELS_VEC_CUH
#define KERNELS_VEC_CUH

#include "kernels/warp.cuh"
#ifndef __CUDACC__
#include <immintrin.h>
#endif

namespace kx
{

/* A generic load and store. T is trivially copyable; the address is aligned to sizeof(T). */
template <class T> __device__ __forceinline__ T load(const T *p KX_LOC)
{
    static_assert(sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0, "1, 2, 4, 8 or 16 bytes");
#ifndef __CUDACC__
    cs::count_access(p, sizeof(T), cs::READ, KX_HERE);
#endif
    return *p;
}

template <class T> __device__ __forceinline__ void store(T *p, T v KX_LOC)
{
    static_assert(sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0, "1, 2, 4, 8 or 16 bytes");
#ifndef __CUDACC__
    cs::count_access(p, sizeof(T), cs::WRITE, KX_HERE);
#endif
    *p = v;
}

/* For bytes that one launch reads once and never writes: the read-only path, first to leave L1. */
template <class T> __device__ __forceinline__ T load_once(const T *p KX_LOC)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "4, 8 or 16 bytes");
#ifdef __CUDACC__
    union {
        uint32_t w[sizeof(T) / 4];
        T v;
    } r;
    if (sizeof(T) == 16)
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r.w[0]), "=r"(r.w[1 % (sizeof(T) / 4)]), "=r"(r.w[2 % (sizeof(T) / 4)]),
                       "=r"(r.w[3 % (sizeof(T) / 4)])
                     : "l"(p));
    else if (sizeof(T) == 8)
        asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
                     : "=r"(r.w[0]), "=r"(r.w[1 % (sizeof(T) / 4)])
                     : "l"(p));
    else
        asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(r.w[0]) : "l"(p));
    return r.v;
#else
    cs::count_access(p, sizeof(T), cs::READ, KX_HERE);
    return *p;
#endif
}

/* ---- BF16 */
__device__ __forceinline__ float bf16_to_f32(uint16_t bits)
{
    return __uint_as_float((uint32_t)bits << 16);
}
__device__ __forceinline__ uint16_t f32_to_bf16(float f)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(f));
}
/* Two floats to a word, the first in the low half. */
__device__ __forceinline__ uint32_t bf16x2_pack(float low, float high)
{
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return (uint32_t)__bfloat16_as_ushort(v.x) | (uint32_t)__bfloat16_as_ushort(v.y) << 16;
}
__device__ __forceinline__ float2 bf16x2_unpack(uint32_t w)
{
    return make_float2(__uint_as_float(w << 16), __uint_as_float(w & 0xffff0000u));
}
/* a - b and a * b of both halves, for values whose result is a BF16 (what the emulator does not round). */
#ifdef __CUDACC__
union bf16x2_word {
    uint32_t w;
    __nv_bfloat162 v;
};
#endif
__device__ __forceinline__ uint32_t bf16x2_sub(uint32_t a, uint32_t b)
{
#ifdef __CUDACC__
    bf16x2_word x = {a}, y = {b};
    x.v = __hsub2(x.v, y.v);
    return x.w;
#else
    const float2 x = bf16x2_unpack(a), y = bf16x2_unpack(b);
    return __float_as_uint(x.x - y.x) >> 16 | (__float_as_uint(x.y - y.y) & 0xffff0000u);
#endif
}
__device__ __forceinline__ uint32_t bf16x2_mul(uint32_t a, uint32_t b)
{
#ifdef __CUDACC__
    bf16x2_word x = {a}, y = {b};
    x.v = __hmul2(x.v, y.v);
    return x.w;
#else
    const float2 x = bf16x2_unpack(a), y = bf16x2_unpack(b);
    return __float_as_uint(x.x * y.x) >> 16 | (__float_as_uint(x.y * y.y) & 0xffff0000u);
#endif
}
__device__ __forceinline__ void bf16x8_unpack(const uint4 &v, float (&f)[8])
{
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
    KX_UNROLL
    for (int i = 0; i < 4; i++) {
        const float2 p = bf16x2_unpack(w[i]);
        f[2 * i] = p.x;
        f[2 * i + 1] = p.y;
    }
}
__device__ __forceinline__ uint4 bf16x8_pack(const float (&f)[8])
{
    return make_uint4(bf16x2_pack(f[0], f[1]), bf16x2_pack(f[2], f[3]), bf16x2_pack(f[4], f[5]), bf16x2_pack(f[6], f[7]));
}

/* ---- FP16 */
__device__ __forceinline__ float f16_to_f32(uint16_t bits)
{
#ifdef __CUDACC__
    return __half2float(__ushort_as_half(bits));
#else
    return _cvtsh_ss(bits); /* the header's own takes ten times as long */
#endif
}
__device__ __forceinline__ uint16_t f32_to_f16(float f)
{
    return __half_as_ushort(__float2half_rn(f));
}
__device__ __forceinline__ uint32_t f16x2_pack(float low, float high)
{
    return (uint32_t)f32_to_f16(low) | (uint32_t)f32_to_f16(high) << 16;
}
__device__ __forceinline__ float2 f16x2_unpack(uint32_t w)
{
    return make_float2(f16_to_f32((uint16_t)w), f16_to_f32((uint16_t)(w >> 16)));
}

/* ---- FP8. Every code is exact in FP16. sm_80 has no conversion instruction: the toolkit's header then computes it. */
__device__ __forceinline__ uint32_t e4m3x2_to_f16x2(uint16_t codes)
{
    const __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)codes, __NV_E4M3);
    return (uint32_t)h.x | (uint32_t)h.y << 16;
}
__device__ __forceinline__ uint32_t e5m2x2_to_f16x2(uint16_t codes)
{
    const __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)codes, __NV_E5M2);
    return (uint32_t)h.x | (uint32_t)h.y << 16;
}
__device__ __forceinline__ void e4m3x4_unpack(uint32_t codes, float (&f)[4])
{
    const float2 a = f16x2_unpack(e4m3x2_to_f16x2((uint16_t)codes));
    const float2 b = f16x2_unpack(e4m3x2_to_f16x2((uint16_t)(codes >> 16)));
    f[0] = a.x;
    f[1] = a.y;
    f[2] = b.x;
    f[3] = b.y;
}
__device__ __forceinline__ void e5m2x4_unpack(uint32_t codes, float (&f)[4])
{
    const float2 a = f16x2_unpack(e5m2x2_to_f16x2((uint16_t)codes));
    const float2 b = f16x2_unpack(e5m2x2_to_f16x2((uint16_t)(codes >> 16)));
    f[0] = a.x;
    f[1] = a.y;
    f[2] = b.x;
    f[3] = b.y;
}
/* Rounds to nearest even; beyond +-448 the largest code; NaN stays NaN (0x7f). */
__device__ __forceinline__ uint8_t f32_to_e4m3(float f)
{
    return (uint8_t)__nv_cvt_float_to_fp8(f, __NV_SATFINITE, __NV_E4M3);
}
__device__ __forceinline__ float e4m3_to_f32(uint8_t code)
{
    return __half2float(__half(__nv_cvt_fp8_to_halfraw((__nv_fp8_storage_t)code, __NV_E4M3)));
}
__device__ __forceinline__ uint32_t e4m3x4_pack(float a, float b, float c, float d)
{
    const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
    const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
    return low | high << 16;
}
__device__ __forceinline__ uint32_t e5m2x4_pack(float a, float b, float c, float d)
{
    const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E5M2);
    const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E5M2);
    return low | high << 16;
}

} // namespace kx
#endif
