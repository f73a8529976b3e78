/* The device built-ins of CUDA as plain C++, for every compiler but nvcc. Included by kernels/warp.cuh alone.
 *
 * threadIdx and its kin are thread-local variables of CUDA's types that the engine (cusim.cpp) rewrites at each switch
 * of fibers; what needs other threads (barriers, shuffles, votes, matrices, asynchronous copies) calls the engine with
 * the caller's file and line, so that a fault can be named; the rest is a formula. Names are CUDA's where a kernel uses
 * them, cs:: where only warp.cuh and vec.cuh do. */
#ifndef TESTS_EMULATOR_CUSIM_H
#define TESTS_EMULATOR_CUSIM_H

#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <math.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>
#include <stdio.h>
#include <algorithm>
#include <type_traits>
#include <utility>

#undef __launch_bounds__
#define __launch_bounds__(...)
// Plain __shared__ would silently become a per-thread local in host mode: make it a compile error.
#undef __shared__
#define __shared__ static_assert(false, "use KX_SHARED / KX_SHARED_DYN, not __shared__");
#undef __trap
// ---- built-in variables: real TLS objects of the CUDA types, rewritten by the engine at each fiber switch
#define CS_TLS __attribute__((tls_model("initial-exec")))
extern __thread uint3 threadIdx CS_TLS;
extern __thread uint3 blockIdx CS_TLS;
extern __thread dim3 blockDim CS_TLS;
extern __thread dim3 gridDim CS_TLS;
static constexpr int warpSize = 32;

namespace cs
{
struct Loc {
    const char *file;
    int line;
};
// Two plain default arguments: inside braces gcc 12 would give the line of this header instead of the caller's.
#define CS_LOC  const char *cs_f = __builtin_FILE(), int cs_l = __builtin_LINE()
#define CS_HERE cs::here(cs_f, cs_l)
inline Loc here(const char *file, int line)
{
    return Loc{file, line};
}

// engine entry points (cusim.cpp)
void barrier(int id, int nthreads, Loc loc); // nthreads 0 = whole block
void barrier_arrive(int id, int nthreads, Loc loc);
int barrier_red(int op, int pred, Loc loc); // 0 count, 1 and, 2 or
void syncwarp(unsigned mask, Loc loc);
enum WarpOp {
    SHFL,
    SHFL_UP,
    SHFL_DOWN,
    SHFL_XOR,
    BALLOT,
    MATCH_ANY,
    RED_ADD,
    RED_MIN_S,
    RED_MAX_S,
    RED_MIN_U,
    RED_MAX_U,
    RED_AND,
    RED_OR,
    RED_XOR,
    LDMATRIX_X2,
    LDMATRIX_X2_T,
    LDMATRIX_X4,
    LDMATRIX_X4_T,
    MMA_BF16,
    MMA_F16,
    MMA_BF16_TILE
};
void warp_op(WarpOp op, unsigned mask, const void *in, void *out, int size, int a, int b, Loc loc);
unsigned active_mask();
unsigned lane_id();
void *shared_static(const void *key, size_t size, size_t align, Loc loc);
void *shared_dyn(Loc loc);
void *shared_carve(unsigned char **at, size_t stride, size_t size, Loc loc);
void cp_async(void *dst, const void *src, int bytes, int src_bytes, Loc loc);
void cp_async_commit();
void cp_async_wait(int n);
void fence();                            // __threadfence*
void atomic_pre(const volatile void *p); // ordering hooks for the race detector
void atomic_post(const volatile void *p);
void yield(Loc loc);
/* counted accesses of global or shared memory (vec.cuh); free of cost until a test asks for counts */
enum AccessKind { READ, WRITE };
extern bool counting;
void count_slow(const volatile void *p, size_t n, AccessKind kind, Loc loc);
inline void count_access(const volatile void *p, size_t n, AccessKind kind, Loc loc)
{
    if (__builtin_expect(counting, 0)) count_slow(p, n, kind, loc);
}
uint64_t device_ns();
[[noreturn]] void fail(Loc loc, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const void *check_shared(const void *p, size_t n, Loc loc);
inline void ldmatrix(uint32_t *r, int matrices, bool trans, const void *row, Loc loc)
{
    /* an ordinary, instrumented 16-byte read by the lane that names the row; other lanes' addresses are ignored */
    uint4 v = make_uint4(0, 0, 0, 0);
    if ((int)lane_id() < matrices * 8) v = *(const uint4 *)check_shared(row, 16, loc);
    count_access(row, (int)lane_id() < matrices * 8 ? 16 : 0, READ, loc);
    const WarpOp op = matrices == 4 ? (trans ? LDMATRIX_X4_T : LDMATRIX_X4) : (trans ? LDMATRIX_X2_T : LDMATRIX_X2);
    warp_op(op, 0xffffffffu, &v, r, 16, 0, 0, loc);
}
inline void mma(WarpOp op, float *d, const uint32_t *a, const uint32_t *b, Loc loc)
{
    const uint32_t in[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    warp_op(op, 0xffffffffu, in, d, 24, 0, 0, loc);
}
/* ks x rt x nt of them; a lane's a [ks][rt][4], b [ks][nt][2], d [rt][nt][4] */
struct MmaTile {
    const uint32_t *a, *b;
    float *d;
};
inline void mma_tile(int ks, int rt, int nt, float *d, const uint32_t *a, const uint32_t *b, Loc loc)
{
    const MmaTile tile = {a, b, d};
    warp_op(MMA_BF16_TILE, 0xffffffffu, &tile, d, sizeof tile, ks << 16 | rt << 8 | nt, 0, loc);
}
/* For TSan: a release publishes what the thread wrote before it, an acquire that saw its value receives that. */
inline void store_release(uint32_t *flag, uint32_t value)
{
    __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}
inline uint32_t load_acquire(const uint32_t *flag)
{
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

// kernel registration: type-erased call thunk + argument layout
struct KernelDesc {
    void (*thunk)(const void *fn, void *const *args);
    int nargs;
    const uint32_t *size;
    const uint8_t *isptr;
};
void register_kernel(const void *fn, const KernelDesc *d);
template <class... A> struct KernelOf {
    template <size_t... I> static void call(const void *fn, void *const *a, std::index_sequence<I...>)
    {
        ((void (*)(A...))fn)(*(std::remove_reference_t<A> *)a[I]...);
    }
    static void thunk(const void *fn, void *const *a) { call(fn, a, std::index_sequence_for<A...>{}); }
    static const KernelDesc *desc()
    {
        static const uint32_t sz[] = {(uint32_t)sizeof(A)..., 0};
        static const uint8_t ip[] = {(uint8_t)std::is_pointer<A>::value..., 0};
        static const KernelDesc d = {thunk, (int)sizeof...(A), sz, ip};
        return &d;
    }
};
} // namespace cs

// ---- synchronisation
inline void __syncthreads(CS_LOC)
{
    cs::barrier(0, 0, CS_HERE);
}
inline int __syncthreads_count(int p, CS_LOC)
{
    return cs::barrier_red(0, p, CS_HERE);
}
inline int __syncthreads_and(int p, CS_LOC)
{
    return cs::barrier_red(1, p, CS_HERE);
}
inline int __syncthreads_or(int p, CS_LOC)
{
    return cs::barrier_red(2, p, CS_HERE);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CS_LOC)
{
    cs::syncwarp(mask, CS_HERE);
}
inline void __threadfence()
{
    cs::fence();
}
inline void __threadfence_block()
{
    cs::fence();
}
inline void __threadfence_system()
{
    cs::fence();
}
inline void __nanosleep(unsigned, CS_LOC)
{
    cs::yield(CS_HERE);
}
inline void __trap(CS_LOC)
{
    cs::fail(CS_HERE, "__trap()");
}

// ---- warp collectives
template <class T> inline T cs_shfl(cs::WarpOp op, unsigned m, T v, int a, int w, cs::Loc loc)
{
    static_assert((sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8), "shfl type");
    T out;
    cs::warp_op(op, m, &v, &out, sizeof(T), a, w, loc);
    return out;
}
template <class T> inline T __shfl_sync(unsigned m, T v, int lane, int w = 32, CS_LOC)
{
    return cs_shfl(cs::SHFL, m, v, lane, w, CS_HERE);
}
template <class T> inline T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32, CS_LOC)
{
    return cs_shfl(cs::SHFL_UP, m, v, (int)d, w, CS_HERE);
}
template <class T> inline T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32, CS_LOC)
{
    return cs_shfl(cs::SHFL_DOWN, m, v, (int)d, w, CS_HERE);
}
template <class T> inline T __shfl_xor_sync(unsigned m, T v, int x, int w = 32, CS_LOC)
{
    return cs_shfl(cs::SHFL_XOR, m, v, x, w, CS_HERE);
}
inline unsigned __ballot_sync(unsigned m, int p, CS_LOC)
{
    unsigned o;
    p = !!p;
    cs::warp_op(cs::BALLOT, m, &p, &o, 4, 0, 0, CS_HERE);
    return o;
}
inline int __any_sync(unsigned m, int p, CS_LOC)
{
    unsigned o;
    p = !!p;
    cs::warp_op(cs::BALLOT, m, &p, &o, 4, 1, 0, CS_HERE);
    return o != 0;
}
inline int __all_sync(unsigned m, int p, CS_LOC)
{
    unsigned o;
    p = !!p;
    cs::warp_op(cs::BALLOT, m, &p, &o, 4, 2, 0, CS_HERE);
    return o == m;
}
inline unsigned __activemask()
{
    return cs::active_mask();
}
template <class T> inline unsigned __match_any_sync(unsigned m, T v, CS_LOC)
{
    unsigned o;
    cs::warp_op(cs::MATCH_ANY, m, &v, &o, sizeof(T), 0, 0, CS_HERE);
    return o;
}
#define CS_RED(name, T, OP)                                                                                            \
    inline T name(unsigned m, T v, CS_LOC)                                                                             \
    {                                                                                                                  \
        T o;                                                                                                           \
        cs::warp_op(cs::OP, m, &v, &o, 4, 0, 0, CS_HERE);                                                              \
        return o;                                                                                                      \
    }
CS_RED(__reduce_add_sync, unsigned, RED_ADD)
CS_RED(__reduce_add_sync, int, RED_ADD)
CS_RED(__reduce_min_sync, unsigned, RED_MIN_U) CS_RED(__reduce_min_sync, int, RED_MIN_S)
    CS_RED(__reduce_max_sync, unsigned, RED_MAX_U) CS_RED(__reduce_max_sync, int, RED_MAX_S)
        CS_RED(__reduce_and_sync, unsigned, RED_AND) CS_RED(__reduce_or_sync, unsigned, RED_OR)
            CS_RED(__reduce_xor_sync, unsigned, RED_XOR)

    // ---- atomics (relaxed on the GPU; the hooks tell the race detector about fence+atomic patterns)
    template <class T, class F>
    inline T cs_rmw(T *p, F f)
{
    using U = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
    cs::atomic_pre(p);
    U *q = (U *)p, old = __atomic_load_n(q, __ATOMIC_RELAXED), nw;
    T o, n;
    do {
        memcpy(&o, &old, sizeof o);
        n = f(o);
        memcpy(&nw, &n, sizeof n);
    } while (!__atomic_compare_exchange_n(q, &old, nw, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    cs::atomic_post(p);
    return o;
}
template <class T> using cs_id = typename std::common_type<T>::type;
template <class T> inline T atomicAdd(T *p, cs_id<T> v)
{
    return cs_rmw(p, [v](T o) { return (T)(o + v); });
}
template <class T> inline T atomicSub(T *p, cs_id<T> v)
{
    return cs_rmw(p, [v](T o) { return (T)(o - v); });
}
template <class T> inline T atomicMax(T *p, cs_id<T> v)
{
    return cs_rmw(p, [v](T o) { return o > v ? o : v; });
}
template <class T> inline T atomicMin(T *p, cs_id<T> v)
{
    return cs_rmw(p, [v](T o) { return o < v ? o : v; });
}
template <class T> inline T atomicOr(T *p, cs_id<T> v)
{
    return cs_rmw(p, [v](T o) { return (T)(o | v); });
}
template <class T> inline T atomicAnd(T *p, cs_id<T> v)
{
    return cs_rmw(p, [v](T o) { return (T)(o & v); });
}
template <class T> inline T atomicXor(T *p, cs_id<T> v)
{
    return cs_rmw(p, [v](T o) { return (T)(o ^ v); });
}
template <class T> inline T atomicExch(T *p, cs_id<T> v)
{
    return cs_rmw(p, [v](T) { return v; });
}
template <class T> inline T atomicCAS(T *p, cs_id<T> c, cs_id<T> v)
{
    return cs_rmw(p, [c, v](T o) { return o == c ? v : o; });
}
inline unsigned atomicInc(unsigned *p, unsigned lim)
{
    return cs_rmw(p, [lim](unsigned o) { return o >= lim ? 0u : o + 1; });
}

// ---- cache-hinted loads and stores
template <class T> inline T __ldg(const T *p, CS_LOC)
{
    cs::count_access(p, sizeof(T), cs::READ, CS_HERE);
    return *p;
}
template <class T> inline T __ldcg(const T *p, CS_LOC)
{
    cs::count_access(p, sizeof(T), cs::READ, CS_HERE);
    return *p;
}
template <class T> inline T __ldcs(const T *p, CS_LOC)
{
    cs::count_access(p, sizeof(T), cs::READ, CS_HERE);
    return *p;
}
template <class T> inline T __ldca(const T *p, CS_LOC)
{
    cs::count_access(p, sizeof(T), cs::READ, CS_HERE);
    return *p;
}
template <class T> inline void __stcs(T *p, T v, CS_LOC)
{
    cs::count_access(p, sizeof(T), cs::WRITE, CS_HERE);
    *p = v;
}
template <class T> inline void __stcg(T *p, T v, CS_LOC)
{
    cs::count_access(p, sizeof(T), cs::WRITE, CS_HERE);
    *p = v;
}

// ---- arithmetic intrinsics
inline float __expf(float x)
{
    return expf(x);
}
inline float __logf(float x)
{
    return logf(x);
}
inline float __log2f(float x)
{
    return log2f(x);
}
inline float __exp2f(float x)
{
    return exp2f(x);
}
inline float __sinf(float x)
{
    return sinf(x);
}
inline float __cosf(float x)
{
    return cosf(x);
}
inline float __powf(float x, float y)
{
    return powf(x, y);
}
inline float __fdividef(float a, float b)
{
    return a / b;
}
inline float __frcp_rn(float a)
{
    return 1.0f / a;
}
inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
inline float __fmul_rn(float a, float b)
{
    volatile float r = a * b;
    return r;
}
inline float __fadd_rn(float a, float b)
{
    volatile float r = a + b;
    return r;
}
inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
inline float rsqrtf(float a)
{
    return 1.0f / sqrtf(a);
}
inline float __saturatef(float a)
{
    return a < 0 ? 0.0f : a > 1 ? 1.0f : a;
}
inline int __float2int_rn(float a)
{
    return (int)nearbyintf(a);
}
inline int __float2int_rz(float a)
{
    return (int)a;
}
inline unsigned __float_as_uint(float f)
{
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
inline int __float_as_int(float f)
{
    int u;
    memcpy(&u, &f, 4);
    return u;
}
inline float __uint_as_float(unsigned u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}
inline float __int_as_float(int u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}
inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}
inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
inline unsigned __brev(unsigned x)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= ((x >> i) & 1u) << (31 - i);
    return r;
}
inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)(((uint64_t)a * b) >> 32);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s)
{
    uint64_t v = a | ((uint64_t)b << 32);
    unsigned r = 0;
    for (int i = 0; i < 4; i++) r |= (unsigned)((v >> (8 * ((s >> (4 * i)) & 7))) & 0xff) << (8 * i);
    return r;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s)
{
    return (unsigned)(((((uint64_t)hi << 32) | lo) << (s & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned s)
{
    return (unsigned)((((uint64_t)hi << 32) | lo) >> (s & 31));
}
inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++) c += (int)(int8_t)(a >> (8 * i)) * (int)(int8_t)(b >> (8 * i));
    return c;
}
using std::max;
using std::min;

// bf16 / fp16 functions the toolkit headers give to device code only
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c)
{
    return __float2bfloat16_rn(fmaf(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
inline __half __hfma(__half a, __half b, __half c)
{
    return __float2half_rn(fmaf(__half2float(a), __half2float(b), __half2float(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c)
{
    __nv_bfloat162 r;
    r.x = __hfma(a.x, b.x, c.x);
    r.y = __hfma(a.y, b.y, c.y);
    return r;
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c)
{
    __half2 r;
    r.x = __hfma(a.x, b.x, c.x);
    r.y = __hfma(a.y, b.y, c.y);
    return r;
}
inline __nv_bfloat16 hexp(__nv_bfloat16 a)
{
    return __float2bfloat16_rn(expf(__bfloat162float(a)));
}
inline __half hexp(__half a)
{
    return __float2half_rn(expf(__half2float(a)));
}

// The toolkit's C++ convenience overload (cudaFuncSetAttribute(T*)) exists only for nvcc
template <class... A> inline cudaError_t cudaFuncSetAttribute(void (*fn)(A...), enum cudaFuncAttribute at, int v)
{
    return ::cudaFuncSetAttribute((const void *)fn, at, v);
}

#endif
