/* What a CUDA kernel is written with: shared memory, lanes, collectives, tensor cores, asynchronous copies, barriers,
 * fences, launch. With vec.cuh it holds all PTX of the project, and it is all that a kernel includes.
 *
 * Each wrapper has two halves. nvcc sees PTX; any other C++ compiler sees calls of tests/emulator/cusim.h, which runs the
 * same source thread by thread on the CPU. A wrapper that lands here brings both halves and a case in
 * tests/emulator/test_semantics.cu. Rules for who writes kernels: kernels/README.md, E1..E8.
 *
 *   KX_SHARED(float, part, [4][32]);          shared memory of fixed size; a bare __shared__ does not compile
 *   KX_SHARED_DYN(pool);                      the launch's dynamic bytes, split by hand:
 *   float *a = kx::carve<float>(pool, 256);   takes 256 floats, 16-byte aligned; carve_bytes<float>(256) is what the
 *                                             launcher adds up. The emulator puts a guard zone behind each part.
 *   kx::launch(kernel, grid, block, shared_bytes, stream, arguments...)        returns cudaError_t
 *
 * Fixed-size arrays by reference (uint32_t (&r)[4]) make a fragment of the wrong size a compile error. */
#ifndef KERNELS_WARP_CUH
#define KERNELS_WARP_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <stdint.h>

#ifdef __CUDACC__
#define KX_SHARED(T, name, ...) __shared__ __align__(16) T name __VA_ARGS__
#define KX_SHARED_DYN(name)                                                                                            \
    extern __shared__ __align__(128) unsigned char kx_shared_dynamic[];                                                \
    kx::shared_pool name = {kx_shared_dynamic}
#define KX_UNROLL _Pragma("unroll")
#define KX_LOC
#define KX_HERE
#else
#include "tests/emulator/cusim.h"
#define KX_SHARED(T, name, ...)                                                                                        \
    typedef T name##_type __VA_ARGS__;                                                                                 \
    static const char name##_key = 0;                                                                                  \
    name##_type &name = *(name##_type *)cs::shared_static(&name##_key, sizeof(name##_type), 16, cs::here(__FILE__, __LINE__))
#define KX_SHARED_DYN(name) kx::shared_pool name = {(unsigned char *)cs::shared_dyn(cs::here(__FILE__, __LINE__))}
#define KX_UNROLL
#define KX_LOC , CS_LOC
#define KX_HERE CS_HERE
#endif

namespace kx
{

constexpr uint32_t FULL_MASK = 0xffffffffu;

/* ---- dynamic shared memory */
/* What is left of the launch's dynamic shared memory. All threads of the block carve the same parts in one order. */
struct shared_pool {
    unsigned char *at;
};
template <class T> __host__ __device__ constexpr size_t carve_bytes(size_t n)
{
    return (n * sizeof(T) + 15) / 16 * 16;
}
/* n elements of T, aligned to 16 bytes (the first part to 128). Undefined contents. */
template <class T> __device__ __forceinline__ T *carve(shared_pool &pool, size_t n KX_LOC)
{
    static_assert(alignof(T) <= 16, "alignment");
#ifdef __CUDACC__
    T *const part = reinterpret_cast<T *>(pool.at);
    pool.at += carve_bytes<T>(n);
    return part;
#else
    return (T *)cs::shared_carve(&pool.at, carve_bytes<T>(n), n * sizeof(T), KX_HERE);
#endif
}

__device__ __forceinline__ int lane()
{
#ifdef __CUDACC__
    return (int)(threadIdx.x & 31);
#else
    return (int)cs::lane_id();
#endif
}

/* v, of which the compiler no longer knows where it comes from: what is computed from it in a loop is computed there,
 * and not kept in registers from one round to the next. */
__device__ __forceinline__ int opaque(int v)
{
#ifdef __CUDACC__
    asm volatile("" : "+r"(v));
#endif
    return v;
}

/* ---- cp.async: 16 (or 4, 8) bytes from global to shared memory without registers.
 * source_bytes below the size fills the rest with zeros; 0 reads nothing (the address must still be valid to form).
 * The bytes may be read after cp_async_wait by the same thread, by others only after a barrier that follows it. */
#ifdef __CUDACC__
__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}
__device__ __forceinline__ void cp_async16(void *target, const void *source, int source_bytes = 16)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(target)), "l"(source),
                 "r"(source_bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async8(void *target, const void *source, int source_bytes = 8)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(shared_address(target)), "l"(source),
                 "r"(source_bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async4(void *target, const void *source, int source_bytes = 4)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(target)), "l"(source),
                 "r"(source_bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit()
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int N> __device__ __forceinline__ void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}
#else
inline void cp_async16(void *target, const void *source, int source_bytes = 16, CS_LOC)
{
    cs::cp_async(target, source, 16, source_bytes, CS_HERE);
}
inline void cp_async8(void *target, const void *source, int source_bytes = 8, CS_LOC)
{
    cs::cp_async(target, source, 8, source_bytes, CS_HERE);
}
inline void cp_async4(void *target, const void *source, int source_bytes = 4, CS_LOC)
{
    cs::cp_async(target, source, 4, source_bytes, CS_HERE);
}
inline void cp_async_commit()
{
    cs::cp_async_commit();
}
/* Waits until at most N of the thread's committed groups are still under way. */
template <int N> inline void cp_async_wait()
{
    cs::cp_async_wait(N);
}
#endif

/* ---- ldmatrix: 8x8 matrices of 16-bit elements. Lane 8k+i names row i (16 bytes, aligned) of matrix k; afterwards
 * lane 4g+t holds of matrix k the elements [g][2t] and [g][2t+1] (trans: [2t][g] and [2t+1][g]) in r[k].
 * The x2 form takes the addresses of lanes 0..15, the x1 form of lanes 0..7; the other lanes' are ignored. */
#ifdef __CUDACC__
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
#else
inline void ldmatrix_x4(uint32_t (&r)[4], const void *row, CS_LOC)
{
    cs::ldmatrix(r, 4, false, row, CS_HERE);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row, CS_LOC)
{
    cs::ldmatrix(r, 4, true, row, CS_HERE);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void *row, CS_LOC)
{
    cs::ldmatrix(r, 2, false, row, CS_HERE);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row, CS_LOC)
{
    cs::ldmatrix(r, 2, true, row, CS_HERE);
}
#endif

/* ---- mma m16n8k16: D (16x8, f32) += A (16x16) * B (16x8), 16-bit inputs. With g = lane/4, t = lane%4:
 *   a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..]      (two elements a word)
 *   b[0] = B[2t..][g], b[1] = B[2t+8..][g]
 *   d[0], d[1] = D[g][2t], D[g][2t+1];  d[2], d[3] = D[g+8][2t], D[g+8][2t+1]
 * Source: PTX ISA, "Matrix Fragments for mma.m16n8k16". */
#ifdef __CUDACC__
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CS_LOC)
{
    cs::mma(cs::MMA_BF16, d, a, b, CS_HERE);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CS_LOC)
{
    cs::mma(cs::MMA_F16, d, a, b, CS_HERE);
}
#endif

/* KS x RT x NT of mma_bf16: d[r][n] += a[k][r] * b[k][n] for k in rising order. Under the emulator one meeting of the
 * lanes does for all of them, which is where its time goes. */
template <int KS, int RT, int NT>
__device__ __forceinline__ void mma_bf16_tile(float (&d)[RT][NT][4], const uint32_t (&a)[KS][RT][4],
                                              const uint32_t (&b)[KS][NT][2] KX_LOC)
{
#ifdef __CUDACC__
    KX_UNROLL
    for (int k = 0; k < KS; k++)
        KX_UNROLL
    for (int n = 0; n < NT; n++)
        KX_UNROLL
    for (int r = 0; r < RT; r++) mma_bf16(d[r][n], a[k][r], b[k][n]);
#else
    cs::mma_tile(KS, RT, NT, &d[0][0][0], &a[0][0][0], &b[0][0][0], KX_HERE);
#endif
}

/* ---- named barriers (ids 1..15) of a part of the block: threads is a multiple of 32 and counts syncs and arrivals. */
#ifdef __CUDACC__
__device__ __forceinline__ void bar_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void bar_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
#else
inline void bar_sync(int id, int threads, CS_LOC)
{
    cs::barrier(id, threads, CS_HERE);
}
inline void bar_arrive(int id, int threads, CS_LOC)
{
    cs::barrier_arrive(id, threads, CS_HERE);
}
#endif

/* ---- flags between GPUs (joint launches): a release store is seen by an acquire load together with all that the storing
 * thread wrote, or saw written, before it. System scope: works on a peer's memory. */
__device__ __forceinline__ void store_release_system(uint32_t *flag, uint32_t value)
{
#ifdef __CUDACC__
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
#else
    cs::store_release(flag, value);
#endif
}
__device__ __forceinline__ uint32_t load_acquire_system(const uint32_t *flag)
{
#ifdef __CUDACC__
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
#else
    return cs::load_acquire(flag);
#endif
}
/* Nanoseconds of the device's clock, for limits of spins. */
__device__ __forceinline__ uint64_t device_ns()
{
#ifdef __CUDACC__
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
#else
    return cs::device_ns();
#endif
}

/* 2^x, relative error 2^-22; 2^-inf = 0. */
__device__ __forceinline__ float ex2(float x)
{
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

/* ---- sums and maxima over the warp, by all 32 lanes, result in every lane, in one fixed order */
__device__ __forceinline__ float warp_sum(float v)
{
    KX_UNROLL
    for (int offset = 16; offset; offset >>= 1) v += __shfl_xor_sync(FULL_MASK, v, offset);
    return v;
}
__device__ __forceinline__ float warp_max(float v)
{
    KX_UNROLL
    for (int offset = 16; offset; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL_MASK, v, offset));
    return v;
}

/* ---- launch: the same C++ for both compilers. Cooperative: all blocks are resident together and may wait for each other
 * (the launch fails if they do not fit). More than 48 KiB of dynamic shared memory is asked for by itself. */
struct launch_options {
    bool cooperative = false;
};
template <class... P, class... A>
inline cudaError_t launch_with(launch_options options, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                               cudaStream_t stream, A &&...arguments)
{
#ifndef __CUDACC__
    cs::register_kernel((const void *)kernel, cs::KernelOf<P...>::desc());
#endif
    if (shared_bytes > 48 * 1024) {
        const cudaError_t error =
            cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
        if (error != cudaSuccess) return error;
    }
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = options.cooperative ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, static_cast<A &&>(arguments)...);
}
template <class... P, class... A>
inline cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          A &&...arguments)
{
    return launch_with(launch_options(), kernel, grid, block, shared_bytes, stream, static_cast<A &&>(arguments)...);
}
template <class... P, class... A>
inline cudaError_t launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                                      cudaStream_t stream, A &&...arguments)
{
    launch_options options;
    options.cooperative = true;
    return launch_with(options, kernel, grid, block, shared_bytes, stream, static_cast<A &&>(arguments)...);
}

} // namespace kx
#endif
