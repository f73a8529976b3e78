/* One deliberate bug a case: the zoo that keeps the emulator honest. `NAME` runs the bug, `NAME ok` the corrected form,
 * which must pass under every tool and schedule; without arguments the names are listed with the tools that must catch
 * them (plain: the engine or a wrong result in one of four schedules; asan: with UBSan; tsan; msan). zoo.py runs them
 * all.
 *
 * Exit status: 0 output right, 3 output wrong, 4 a call gave an error, anything else: a checker stopped the program. */
#include "kernels/vec.cuh"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CK(call)                                                                                                       \
    do {                                                                                                               \
        const int ck_result = (int)(call);                                                                             \
        if (ck_result) {                                                                                               \
            fprintf(stderr, "error: %s gives %d\n", #call, ck_result);                                                 \
            exit(4);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define RUN(kernel, grid, block, ...)                                                                                  \
    do {                                                                                                               \
        CK(kx::launch(kernel, grid, block, 0, st, __VA_ARGS__));                                                       \
        CK(cudaStreamSynchronize(st));                                                                                 \
    } while (0)

static cudaStream_t st;

/* n ints of device memory, each byte fill; fill < 0 leaves them as they come. */
static int *dev(int n, int fill = 0)
{
    int *p;
    CK(cudaMalloc((void **)&p, (size_t)n * 4));
    if (fill >= 0) {
        CK(cudaMemset(p, fill, (size_t)n * 4));
        CK(cudaDeviceSynchronize());
    }
    return p;
}
static int at(const int *p, int i)
{
    int v;
    CK(cudaMemcpy(&v, p + i, 4, cudaMemcpyDeviceToHost));
    return v;
}
static bool ident(const int *p, int n)
{
    for (int i = 0; i < n; i++)
        if (at(p, i) != i) return false;
    return true;
}

/* ---- kernels: B is the bug */
template <bool B> __global__ void k_oob_shared(int *o)
{
    KX_SHARED(int, s, [64]);
    int *volatile sp = s;
    int t = threadIdx.x;
    if (B || t < 63) sp[t + 1] = t;
    __syncthreads();
    if (t == 0) o[0] = sp[1];
}
template <bool B> __global__ void k_oob_row(int *o)
{
    KX_SHARED(int, s, [4][16]);
    int t = threadIdx.x;
    s[t / 16][t % 16] = t;
    __syncthreads();
    volatile int c = B ? 16 : 15;
    if (t == 0) o[0] = s[0][c] != 0 ? 0 : 1;
}
template <bool B> __global__ void k_oob_global(int *o, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (B ? i <= n : i < n) o[i] = 0;
}
template <bool B> __global__ void k_no_barrier(int *o)
{
    KX_SHARED(int, s, [64]);
    int t = threadIdx.x;
    s[t] = t;
    if (!B) __syncthreads();
    o[t] = s[63 - t];
}
template <bool B> __global__ void k_war(int *o)
{
    KX_SHARED(int, s, [64]);
    int t = threadIdx.x, a = 0;
    for (int r = 0; r < 2; r++) {
        s[t] = t + r;
        __syncthreads();
        a += s[63 - t];
        if (!B) __syncthreads();
    }
    o[t] = a;
}
template <bool B> __global__ void k_no_syncwarp(int *o)
{
    KX_SHARED(int, s, [32]);
    int t = threadIdx.x;
    s[t] = t;
    if (!B) __syncwarp();
    o[t] = s[31 - t];
}
template <bool B> __global__ void k_div_barrier(int *o)
{
    int t = threadIdx.x;
    if (B) {
        if (t < 32)
            __syncthreads();
        else {
            o[t] = 1;
            __syncthreads();
        }
    } else
        __syncthreads();
    o[t] = t;
}
template <bool B> __global__ void k_cond_barrier(int *o)
{
    int t = threadIdx.x;
    if (!B || t < 40) __syncthreads();
    o[t] = t;
}
template <bool B> __global__ void k_early_exit(int *o, int n)
{
    int t = threadIdx.x;
    if (B && t >= n) return;
    __syncthreads();
    if (t < n) o[t] = t;
}
template <bool B> __global__ void k_shfl_mask(int *o)
{
    int t = threadIdx.x, v = t;
    if (!B || t < 16) v = __shfl_down_sync(B ? 0x0000ffffu : 0xffffffffu, t, 1);
    o[t] = v == t + 1 || t >= 15 ? t : -1;
}
template <bool B> __global__ void k_shfl_diverged(int *o)
{
    int t = threadIdx.x, v = 0;
    if (!B || t < 31) v = __shfl_xor_sync(0xffffffffu, t, 1);
    o[t] = v >= 0 ? t : -1;
}
template <bool B> __global__ void k_cp_nowait(int *o, const int *in)
{
    KX_SHARED(int, s, [256]);
    int t = threadIdx.x;
    kx::cp_async16(s + t * 4, in + t * 4);
    kx::cp_async_commit();
    if (!B) kx::cp_async_wait<0>();
    __syncthreads();
    o[t] = s[t] == in[t] ? t : -1;
}
template <bool B> __global__ void k_cp_nobarrier(int *o, const int *in)
{
    KX_SHARED(int, s, [256]);
    int t = threadIdx.x;
    kx::cp_async16(s + t * 4, in + t * 4);
    kx::cp_async_commit();
    kx::cp_async_wait<0>();
    if (!B) __syncthreads();
    o[t] = s[(t * 4 + 128) % 256] == in[(t * 4 + 128) % 256] ? t : -1;
}
/* double buffering: the next copy is issued into a tile that other threads may still be reading */
template <bool B> __global__ void k_cp_overwrite(int *o, const int *in)
{
    KX_SHARED(int, s, [2][256]);
    int t = threadIdx.x, a = 0;
    kx::cp_async16(s[0] + t * 4, in + t * 4);
    kx::cp_async_commit();
    for (int j = 0; j < 4; j++) {
        if (j < 3) {
            kx::cp_async16(s[(j + 1) & 1] + t * 4, in + (j + 1) * 256 + t * 4);
            kx::cp_async_commit();
            kx::cp_async_wait<1>();
        } else
            kx::cp_async_wait<0>();
        __syncthreads();
        a += s[j & 1][255 - t];
        if (!B) __syncthreads();
    }
    int e = 0;
    for (int j = 0; j < 4; j++) e += in[j * 256 + 255 - t];
    o[t] = a == e ? t : -1;
}
template <bool B> __global__ void k_no_fence(int *o, int *part, unsigned *cnt)
{
    KX_SHARED(int, last);
    part[blockIdx.x * 64 + threadIdx.x] = 1;
    if (!B) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(cnt, 1u) == gridDim.x - 1;
        if (!B) __threadfence();
    }
    __syncthreads();
    if (!last) return;
    if (threadIdx.x == 0) {
        int s = 0;
        for (unsigned i = 0; i < gridDim.x * 64; i++) s += part[i];
        o[0] = s == (int)gridDim.x * 64 ? 0 : -1;
    }
}
/* a fence by every reader after the barrier is not an acquire pattern: the thread that read the counter must fence */
/* before it */
template <bool B> __global__ void k_late_fence(int *o, int *part, unsigned *cnt)
{
    KX_SHARED(int, last);
    part[blockIdx.x * 64 + threadIdx.x] = 1;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(cnt, 1u) == gridDim.x - 1;
        if (!B) __threadfence();
    }
    __syncthreads();
    if (!last) return;
    if (B) __threadfence();
    if (threadIdx.x == 1) {
        int s = 0;
        for (unsigned i = 0; i < gridDim.x * 64; i++) s += part[i];
        o[0] = s == (int)gridDim.x * 64 ? 0 : -1;
    }
}
template <bool B> __global__ void k_block_race(int *o)
{
    if (threadIdx.x == 0) {
        if (B)
            o[0] = o[0] + 1;
        else
            atomicAdd(o, 1);
    }
}
template <bool B> __global__ void k_uninit_shared(int *o)
{
    KX_SHARED(int, s, [64]);
    int t = threadIdx.x;
    if (!B || t < 60) s[t] = 0;
    __syncthreads();
    int a = 0;
    for (int i = 0; i < 64; i++)
        if (s[i] > 0) a++;
    o[t] = a ? -1 : t;
}
template <bool B> __global__ void k_uninit_global(int *o, int *raw)
{
    int t = threadIdx.x;
    if (!B) raw[t] = 5;
    if (raw[t] > 0)
        o[t] = t;
    else
        o[t] = B ? t * (o[t] + 1) : -1;
}
template <bool B> __global__ void k_misaligned(int *o, const int *in)
{
    volatile int off = B ? 1 : 4;
    uint4 v = *(const uint4 *)(in + off);
    o[threadIdx.x] = v.x == 0 ? (int)threadIdx.x : -1;
}
__global__ void k_set(int *o, int v)
{
    o[threadIdx.x] = v;
}
__global__ void k_copy(int *o, const int *a)
{
    o[threadIdx.x] = a[threadIdx.x];
}
template <bool B> __global__ void k_mma_diverged(float *o)
{
    float d[4] = {0, 0, 0, 0};
    uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
    if (!B || threadIdx.x < 16) kx::mma_bf16(d, a, b);
    o[threadIdx.x] = d[0];
}

/* ---- cases */
template <bool B> static int oob_shared()
{
    int *o = dev(1);
    RUN((k_oob_shared<B>), 1, 64, o);
    return at(o, 0) == 0 ? 0 : 3;
}
template <bool B> static int oob_row()
{
    int *o = dev(1);
    RUN((k_oob_row<B>), 1, 64, o);
    return at(o, 0) == 0 ? 0 : 3;
}
template <bool B> static int oob_global()
{
    int *o = dev(100);
    RUN((k_oob_global<B>), 2, 64, o, 100);
    return 0;
}
template <bool B> static int no_barrier()
{
    int *o = dev(64);
    RUN((k_no_barrier<B>), 1, 64, o);
    for (int i = 0; i < 64; i++)
        if (at(o, i) != 63 - i) return 3;
    return 0;
}
template <bool B> static int war()
{
    int *o = dev(64);
    RUN((k_war<B>), 1, 64, o);
    for (int i = 0; i < 64; i++)
        if (at(o, i) != 2 * (63 - i) + 1) return 3;
    return 0;
}
template <bool B> static int no_syncwarp()
{
    int *o = dev(32);
    RUN((k_no_syncwarp<B>), 1, 32, o);
    for (int i = 0; i < 32; i++)
        if (at(o, i) != 31 - i) return 3;
    return 0;
}
template <bool B> static int div_barrier()
{
    int *o = dev(64);
    RUN((k_div_barrier<B>), 1, 64, o);
    return ident(o, 64) ? 0 : 3;
}
template <bool B> static int cond_barrier()
{
    int *o = dev(64);
    RUN((k_cond_barrier<B>), 1, 64, o);
    return ident(o, 64) ? 0 : 3;
}
template <bool B> static int early_exit()
{
    int *o = dev(64);
    RUN((k_early_exit<B>), 1, 64, o, 50);
    return ident(o, 50) ? 0 : 3;
}
template <bool B> static int shfl_mask()
{
    int *o = dev(32);
    RUN((k_shfl_mask<B>), 1, 32, o);
    return ident(o, 32) ? 0 : 3;
}
template <bool B> static int shfl_diverged()
{
    int *o = dev(32);
    RUN((k_shfl_diverged<B>), 1, 32, o);
    return ident(o, 32) ? 0 : 3;
}
template <bool B> static int mma_diverged()
{
    float *o = (float *)dev(32);
    RUN((k_mma_diverged<B>), 1, 32, o);
    return 0;
}
template <bool B> static int cp_nowait()
{
    int *o = dev(64), *i = dev(256, 1);
    RUN((k_cp_nowait<B>), 1, 64, o, i);
    return ident(o, 64) ? 0 : 3;
}
template <bool B> static int cp_nobarrier()
{
    int *o = dev(64), *i = dev(256, 1);
    RUN((k_cp_nobarrier<B>), 1, 64, o, i);
    return ident(o, 64) ? 0 : 3;
}
template <bool B> static int cp_overwrite()
{
    int *o = dev(64), *i = dev(1024);
    for (int k = 0; k < 1024; k++) CK(cudaMemcpy(i + k, &k, 4, cudaMemcpyHostToDevice));
    RUN((k_cp_overwrite<B>), 1, 64, o, i);
    return ident(o, 64) ? 0 : 3;
}
template <bool B> static int no_fence()
{
    int *o = dev(1), *p = dev(256);
    unsigned *n = (unsigned *)dev(1);
    RUN((k_no_fence<B>), 4, 64, o, p, n);
    return at(o, 0) == 0 ? 0 : 3;
}
template <bool B> static int late_fence()
{
    int *o = dev(1), *p = dev(256);
    unsigned *n = (unsigned *)dev(1);
    RUN((k_late_fence<B>), 4, 64, o, p, n);
    return at(o, 0) == 0 ? 0 : 3;
}
template <bool B> static int block_race()
{
    int *o = dev(1);
    RUN((k_block_race<B>), 8, 32, o);
    return at(o, 0) == 8 ? 0 : 3;
}
template <bool B> static int uninit_shared()
{
    int *o = dev(64);
    RUN((k_uninit_shared<B>), 1, 64, o);
    return ident(o, 64) ? 0 : 3;
}
template <bool B> static int uninit_global()
{
    int *o = dev(64), *r = dev(64, -1);
    RUN((k_uninit_global<B>), 1, 64, o, r);
    return ident(o, 64) ? 0 : 3;
}
template <bool B> static int misaligned()
{
    int *o = dev(32), *i = dev(64);
    RUN((k_misaligned<B>), 1, 32, o, i);
    return ident(o, 32) ? 0 : 3;
}
template <bool B> static int host_deref()
{
    int *o = dev(4);
    volatile int v = B ? *o : at(o, 0);
    return v;
}
template <bool B> static int use_after_free()
{
    int *o = dev(32), *q = dev(32);
    CK(cudaFree(B ? q : o));
    RUN(k_set, 1, 32, q, 1);
    return 0;
}
template <bool B> static int host_pointer()
{
    int h[32];
    int *o = dev(32);
    RUN(k_set, 1, 32, B ? h : o, 1);
    return 0;
}
template <bool B> static int wrong_device()
{
    CK(cudaSetDevice(1));
    int *q = dev(32);
    CK(cudaSetDevice(0));
    int *o = dev(32);
    RUN(k_set, 1, 32, B ? q : o, 1);
    return 0;
}
template <bool B> static int wrong_kind()
{
    int h[4] = {0, 0, 0, 0};
    int *o = dev(4);
    CK(cudaMemcpy(o, h, 16, B ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice));
    return 0;
}
template <bool B> static int no_event()
{ /* a consumer on another stream */
    int *a = dev(32), *o = dev(32);
    cudaStream_t s2;
    cudaEvent_t e;
    CK(cudaStreamCreateWithFlags(&s2, cudaStreamNonBlocking));
    CK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    CK(cudaDeviceSynchronize());
    CK(kx::launch(k_set, 1, 32, 0, st, a, 7));
    CK(cudaEventRecord(e, st));
    if (!B) CK(cudaStreamWaitEvent(s2, e, 0));
    CK(kx::launch(k_copy, 1, 32, 0, s2, o, (const int *)a));
    CK(cudaStreamSynchronize(s2));
    return at(o, 5) == 7 ? 0 : 3;
}
template <bool B> static int no_sync_readback()
{
    int *o = dev(32), *h;
    CK(cudaMallocHost((void **)&h, 128));
    memset(h, 0, 128);
    CK(cudaDeviceSynchronize());
    CK(kx::launch(k_set, 1, 32, 0, st, o, 7));
    CK(cudaMemcpyAsync(h, o, 128, cudaMemcpyDeviceToHost, st));
    if (!B) CK(cudaStreamSynchronize(st));
    int v = h[3];
    CK(cudaStreamSynchronize(st));
    return v == 7 ? 0 : 3;
}
template <bool B> static int reuse_pinned()
{
    int *o = dev(32), *h;
    CK(cudaMallocHost((void **)&h, 128));
    for (int i = 0; i < 32; i++) h[i] = 7;
    CK(cudaDeviceSynchronize());
    CK(cudaMemcpyAsync(o, h, 128, cudaMemcpyHostToDevice, st));
    if (!B) CK(cudaStreamSynchronize(st));
    h[3] = 9;
    CK(cudaStreamSynchronize(st));
    return at(o, 3) == 7 ? 0 : 3;
}
template <bool B> static int smem_attr()
{
    cudaLaunchConfig_t f = {};
    f.gridDim = 1;
    f.blockDim = 32;
    f.dynamicSmemBytes = 64 * 1024;
    f.stream = st;
    int *o = dev(32);
    RUN(k_set, 1, 32, o, 1);
    if (!B) CK(cudaFuncSetAttribute(k_set, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024));
    CK(cudaLaunchKernelEx(&f, k_set, o, 1));
    CK(cudaStreamSynchronize(st));
    return 0;
}
template <bool B> static int zero_grid()
{
    int *o = dev(32);
    int n = B ? 0 : 1;
    RUN(k_set, (n + 31) / 32, 32, o, 1);
    return 0;
}
template <bool B> static int sync_in_capture()
{
    int *o = dev(32);
    cudaGraph_t g;
    CK(cudaDeviceSynchronize());
    CK(cudaStreamBeginCapture(st, cudaStreamCaptureModeThreadLocal));
    CK(kx::launch(k_set, 1, 32, 0, st, o, 1));
    if (B) cudaDeviceSynchronize();
    CK(cudaStreamEndCapture(st, &g));
    return 0;
}
template <bool B> static int unjoined_fork()
{
    int *o = dev(32);
    cudaGraph_t g;
    cudaStream_t s2;
    cudaEvent_t e, j;
    CK(cudaStreamCreateWithFlags(&s2, cudaStreamNonBlocking));
    CK(cudaEventCreate(&e));
    CK(cudaEventCreate(&j));
    CK(cudaDeviceSynchronize());
    CK(cudaStreamBeginCapture(st, cudaStreamCaptureModeThreadLocal));
    CK(cudaEventRecord(e, st));
    CK(cudaStreamWaitEvent(s2, e, 0));
    CK(kx::launch(k_set, 1, 32, 0, s2, o, 1));
    CK(cudaEventRecord(j, s2));
    if (!B) CK(cudaStreamWaitEvent(st, j, 0));
    CK(cudaStreamEndCapture(st, &g));
    return 0;
}
template <bool B> static int graph_missing_dep()
{ /* two branches of a captured graph touch the same buffer */
    int *a = dev(32), *o = dev(32);
    cudaGraph_t g;
    cudaGraphExec_t x;
    cudaStream_t s2;
    cudaEvent_t e, j, k;
    CK(cudaStreamCreateWithFlags(&s2, cudaStreamNonBlocking));
    CK(cudaEventCreate(&e));
    CK(cudaEventCreate(&j));
    CK(cudaEventCreate(&k));
    CK(cudaDeviceSynchronize());
    CK(cudaStreamBeginCapture(st, cudaStreamCaptureModeThreadLocal));
    CK(cudaEventRecord(e, st));
    CK(cudaStreamWaitEvent(s2, e, 0));
    CK(kx::launch(k_set, 1, 32, 0, st, a, 7));
    CK(cudaEventRecord(k, st));
    if (!B) CK(cudaStreamWaitEvent(s2, k, 0));
    CK(kx::launch(k_copy, 1, 32, 0, s2, o, (const int *)a));
    CK(cudaEventRecord(j, s2));
    CK(cudaStreamWaitEvent(st, j, 0));
    CK(cudaStreamEndCapture(st, &g));
    CK(cudaGraphInstantiate(&x, g, 0));
    CK(cudaGraphLaunch(x, st));
    CK(cudaStreamSynchronize(st));
    return at(o, 3) == 7 ? 0 : 3;
}

/* ---- dynamic shared memory in parts */
template <bool B> __global__ void k_carve_overrun(int *o)
{
    KX_SHARED_DYN(pool);
    int *volatile a = kx::carve<int>(pool, 32);
    int *b = kx::carve<int>(pool, 32);
    const int t = (int)threadIdx.x;
    b[t] = 5;
    a[t + (B ? 1 : 0)] = t; /* the last lands where b begins on a GPU */
    __syncthreads();
    o[t] = b[t] == 5 ? t : -1;
}
template <bool B> __global__ void k_carve_underrun(int *o)
{
    KX_SHARED_DYN(pool);
    int *a = kx::carve<int>(pool, 32);
    int *volatile b = kx::carve<int>(pool, 32);
    const int t = (int)threadIdx.x;
    a[t] = t;
    __syncthreads();
    if (t == 0) b[B ? -1 : 0] = 9;
    __syncthreads();
    o[t] = a[t];
}
template <bool B> __global__ void k_carve_uneven(int *o)
{
    KX_SHARED_DYN(pool);
    const int t = (int)threadIdx.x;
    int *a = kx::carve<int>(pool, B && t == 3 ? 24 : 32);
    if (t < 24) a[t] = 0;
    o[t] = t;
}
template <bool B> __global__ void k_carve_too_much(int *o)
{
    KX_SHARED_DYN(pool);
    int *a = kx::carve<int>(pool, B ? 65 : 64);
    a[threadIdx.x] = 0;
    o[threadIdx.x] = (int)threadIdx.x;
}
template <void (*KERNEL)(int *)> static int run_dynamic()
{
    int *o = dev(32);
    CK(kx::launch(KERNEL, 1, 32, 256, st, o));
    CK(cudaStreamSynchronize(st));
    return ident(o, 32) ? 0 : 3;
}
template <bool B> static int carve_overrun()
{
    return run_dynamic<k_carve_overrun<B>>();
}
template <bool B> static int carve_underrun()
{
    return run_dynamic<k_carve_underrun<B>>();
}
template <bool B> static int carve_uneven()
{
    return run_dynamic<k_carve_uneven<B>>();
}
template <bool B> static int carve_too_much()
{
    return run_dynamic<k_carve_too_much<B>>();
}

/* ---- warps and barriers */
template <bool B> __global__ void k_warp_disagrees(int *o)
{
    const int t = (int)threadIdx.x;
    int v;
    if (B && t >= 16)
        v = (int)__ballot_sync(kx::FULL_MASK, 1) ? t : 0;
    else
        v = __shfl_sync(kx::FULL_MASK, t, t);
    o[t] = v;
}
template <bool B> static int warp_disagrees()
{
    int *o = dev(32);
    RUN(k_warp_disagrees<B>, 1, 32, o);
    return ident(o, 32) ? 0 : 3;
}
template <bool B> __global__ void k_named_count(int *o)
{
    const int t = (int)threadIdx.x;
    if (t < 32) kx::bar_sync(1, B ? 64 : 32);
    o[t] = t;
}
template <bool B> static int named_count()
{
    int *o = dev(64);
    RUN(k_named_count<B>, 1, 64, o);
    return ident(o, 64) ? 0 : 3;
}
template <bool B> __global__ void k_lane_order(int *o)
{
    KX_SHARED(int, s, [1]);
    const int t = (int)threadIdx.x;
    if (t == 0) s[0] = 0;
    __syncwarp();
    if (B)
        s[0] = s[0] + 1; /* 32 lanes at one time */
    else
        atomicAdd(&s[0], 1);
    __syncwarp();
    o[t] = s[0] == 32 ? t : -1;
}
template <bool B> static int lane_order()
{
    int *o = dev(32);
    RUN(k_lane_order<B>, 1, 32, o);
    return ident(o, 32) ? 0 : 3;
}
template <bool B> __global__ void k_ldmatrix_address(int *o)
{
    KX_SHARED(uint16_t, s, [8 * 8 * 4 + 8]);
    const int t = (int)threadIdx.x;
    for (int i = t; i < 8 * 8 * 4 + 8; i += 32) s[i] = 0;
    __syncwarp();
    uint32_t r[4];
    kx::ldmatrix_x4(r, &s[t * 8 + (B ? 4 : 0)]); /* rows are 16 bytes, aligned */
    o[t] = r[0] == 0 ? t : -1;
}
template <bool B> static int ldmatrix_address()
{
    int *o = dev(32);
    RUN(k_ldmatrix_address<B>, 1, 32, o);
    return ident(o, 32) ? 0 : 3;
}

/* ---- memory that the engine cannot see in the arguments */
__global__ void k_follow(int **where, int *o)
{
    o[threadIdx.x] = where[0][threadIdx.x] == 0 ? (int)threadIdx.x : -1;
}
template <bool B> static int freed_inside()
{
    int *o = dev(32), *q = dev(32), *keep = dev(32);
    int **where = (int **)dev(2);
    CK(cudaMemcpy(where, &q, sizeof q, cudaMemcpyHostToDevice));
    CK(cudaFree(B ? q : keep));
    RUN(k_follow, 1, 32, where, o);
    return 0;
}
template <bool B> __global__ void k_uninit_part(float *o, const float *in, int n)
{
    KX_SHARED(float, s, [32]);
    const int t = (int)threadIdx.x;
    if (t < n || !B) s[t] = t < n ? in[t] : 0.0f; /* the bug leaves the tail as it comes */
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < 32; i++) sum += s[i];
    o[t] = sum > 0.0f ? 1.0f : 0.0f;
}
template <bool B> static int uninit_tail()
{
    float *o = (float *)dev(32), *in = (float *)dev(32);
    RUN(k_uninit_part<B>, 1, 32, o, (const float *)in, 20);
    return at((int *)o, 0) == 0 ? 0 : 3;
}
template <bool B> static int copy_2d_range()
{
    char host[64] = {0};
    int *o = dev(16);
    CK(cudaMemcpy2DAsync(o, B ? 20 : 16, host, 16, 16, 4, cudaMemcpyHostToDevice, st));
    CK(cudaStreamSynchronize(st));
    return 0;
}
template <bool B> static int stale_graph()
{
    int *o = dev(32), *other = dev(32);
    cudaGraph_t g;
    cudaGraphExec_t x;
    CK(cudaDeviceSynchronize());
    CK(cudaStreamBeginCapture(st, cudaStreamCaptureModeThreadLocal));
    CK(kx::launch(k_set, 1, 32, 0, st, o, 1));
    CK(cudaStreamEndCapture(st, &g));
    CK(cudaGraphInstantiate(&x, g, 0));
    CK(cudaFree(B ? o : other));
    CK(cudaGraphLaunch(x, st));
    CK(cudaStreamSynchronize(st));
    return 0;
}
template <bool B> static int double_free()
{
    int *o = dev(4), *q = dev(4);
    CK(cudaFree(o));
    CK(cudaFree(B ? o : q));
    return 0;
}

/* ---- kernels that wait for each other */
template <bool B> __global__ void k_flag_wait(int *o, const int *data, uint32_t *flag)
{
    if (threadIdx.x == 0)
        while (kx::load_acquire_system(flag) == 0) __nanosleep(50);
    __syncthreads();
    o[threadIdx.x] = data[threadIdx.x] == 7 ? (int)threadIdx.x : -1;
}
template <bool B> __global__ void k_flag_set(int *data, uint32_t *flag)
{
    data[threadIdx.x] = 7;
    if (!B) {
        __threadfence_system();
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        if (B)
            atomicExch(flag, 1u); /* no fence, no barrier: nothing says that the data is there */
        else
            kx::store_release_system(flag, 1u);
    }
}
template <bool B> static int flag_no_fence()
{
    int *o = dev(32), *data = dev(32);
    uint32_t *flag = (uint32_t *)dev(1);
    cudaStream_t s2;
    CK(cudaStreamCreateWithFlags(&s2, cudaStreamNonBlocking));
    CK(kx::launch_cooperative(k_flag_wait<B>, 1, 32, 0, st, o, (const int *)data, flag));
    CK(kx::launch_cooperative(k_flag_set<B>, 1, 32, 0, s2, data, flag));
    CK(cudaStreamSynchronize(st));
    CK(cudaStreamSynchronize(s2));
    return ident(o, 32) ? 0 : 3;
}
template <bool B> static int peer_not_launched()
{
    int *o = dev(32), *data = dev(32, 0);
    uint32_t *flag = (uint32_t *)dev(1);
    cudaStream_t s2;
    CK(cudaStreamCreateWithFlags(&s2, cudaStreamNonBlocking));
    CK(kx::launch_cooperative(k_flag_wait<false>, 1, 32, 0, st, o, (const int *)data, flag));
    if (!B) CK(kx::launch_cooperative(k_flag_set<false>, 1, 32, 0, s2, data, flag));
    CK(cudaStreamSynchronize(st));
    CK(cudaStreamSynchronize(s2));
    return 0;
}
/* The first block waits for the last: only a cooperative launch has both. */
__global__ void k_wait_last(int *o, uint32_t *flag)
{
    if (threadIdx.x == 0) {
        if (blockIdx.x == gridDim.x - 1) kx::store_release_system(flag, 1u);
        while (kx::load_acquire_system(flag) == 0) __nanosleep(50);
        if (blockIdx.x == 0) kx::store_release_system(flag + 1, 1u);
        while (kx::load_acquire_system(flag + 1) == 0) __nanosleep(50);
    }
    __syncthreads();
    o[blockIdx.x * 32 + threadIdx.x] = (int)(blockIdx.x * 32 + threadIdx.x);
}
template <bool B> static int not_resident()
{
    int *o = dev(128);
    uint32_t *flag = (uint32_t *)dev(2);
    if (B)
        CK(kx::launch(k_wait_last, 4, 32, 0, st, o, flag));
    else
        CK(kx::launch_cooperative(k_wait_last, 4, 32, 0, st, o, flag));
    CK(cudaStreamSynchronize(st));
    return ident(o, 128) ? 0 : 3;
}

/* ---- libraries */
extern "C" {
struct Desc;
struct Layout;
struct Comm;
struct UniqueId {
    char bytes[128];
};
int cublasLtCreate(void **);
int cublasLtMatmulDescCreate(Desc **, int, int);
int cublasLtMatmulDescSetAttribute(Desc *, int, const void *, size_t);
int cublasLtMatrixLayoutCreate(Layout **, int, uint64_t, uint64_t, int64_t);
int cublasLtMatmul(void *, Desc *, const void *, const void *, Layout *, const void *, Layout *, const void *,
                   const void *, Layout *, void *, Layout *, const void *, void *, size_t, cudaStream_t);
int ncclGetUniqueId(UniqueId *);
int ncclCommInitRank(Comm **, int, UniqueId, int);
int ncclAllReduce(const void *, void *, size_t, int, int, Comm *, cudaStream_t);
int ncclReduceScatter(const void *, void *, size_t, int, int, Comm *, cudaStream_t);
}
/* A product of f32 4 x 4 matrices into out, in a stream. */
static int product(cudaStream_t stream, int *out, int *in, int ld_out)
{
    void *handle;
    Desc *desc;
    Layout *a, *d;
    const int t = 1;
    const float one = 1.0f, zero = 0.0f;
    CK(cublasLtCreate(&handle));
    CK(cublasLtMatmulDescCreate(&desc, 68, 0));
    CK(cublasLtMatmulDescSetAttribute(desc, 3, &t, sizeof t));
    CK(cublasLtMatrixLayoutCreate(&a, 0, 4, 4, 4));
    CK(cublasLtMatrixLayoutCreate(&d, 0, 4, 4, ld_out));
    return cublasLtMatmul(handle, desc, &one, in, a, in, a, &zero, out, d, out, d, nullptr, nullptr, 0, stream);
}
template <bool B> static int matmul_unordered()
{
    int *in = dev(16), *out = dev(16), *o = dev(16);
    cudaStream_t s2;
    cudaEvent_t e;
    CK(cudaStreamCreateWithFlags(&s2, cudaStreamNonBlocking));
    CK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    CK(cudaMemset(out, 0xff, 64));
    CK(cudaDeviceSynchronize());
    CK(product(st, out, in, 4));
    CK(cudaEventRecord(e, st));
    if (!B) CK(cudaStreamWaitEvent(s2, e, 0));
    CK(kx::launch(k_copy, 1, 16, 0, s2, o, (const int *)out));
    CK(cudaStreamSynchronize(s2));
    return at(o, 5) == 0 ? 0 : 3;
}
template <bool B> static int matmul_range()
{
    int *in = dev(16), *out = dev(16);
    CK(product(st, out, in, B ? 5 : 4));
    CK(cudaStreamSynchronize(st));
    return 0;
}

enum Misuse { COUNT, KIND, MISSING, ORDER, RANGE };
/* Two ranks, each in its thread (not std::thread, which MSan does not know); the second does something else. */
static UniqueId ids[2];
static int ranks_wrong;
template <bool B, Misuse M> static void *collective_rank(void *argument)
{
    const int r = *(const int *)argument;
    const bool bug = B && r == 1;
    Comm *c, *d;
    float *x, host[16];
    cudaStream_t s;
    CK(cudaSetDevice(r));
    CK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CK(ncclCommInitRank(&c, 2, ids[0], r));
    CK(ncclCommInitRank(&d, 2, ids[1], r));
    CK(cudaMalloc((void **)&x, sizeof host));
    for (float &h : host) h = (float)(r + 1);
    CK(cudaMemcpyAsync(x, host, sizeof host, cudaMemcpyHostToDevice, s));
    const size_t n = M == RANGE && B ? 32 : M == COUNT && bug ? 4 : M == KIND ? 8 : 16;
    if (M == KIND && bug)
        CK(ncclReduceScatter(x, x, n, 7, 0, c, s));
    else if (!(M == MISSING && bug))
        CK(ncclAllReduce(x, x, n, 7, 0, M == ORDER && bug ? d : c, s));
    if (M == ORDER) CK(ncclAllReduce(x, x, n, 7, 0, bug ? c : d, s));
    CK(cudaStreamSynchronize(s));
    CK(cudaMemcpyAsync(host, x, 4, cudaMemcpyDeviceToHost, s));
    CK(cudaStreamSynchronize(s));
    if (host[0] != (M == ORDER ? 6.0f : 3.0f)) __atomic_store_n(&ranks_wrong, 1, __ATOMIC_RELAXED);
    return nullptr;
}
template <bool B, Misuse M> static int collective()
{
    int numbers[2] = {0, 1};
    pthread_t second;
    for (UniqueId &id : ids) CK(ncclGetUniqueId(&id));
    CK(pthread_create(&second, nullptr, collective_rank<B, M>, &numbers[1]));
    collective_rank<B, M>(&numbers[0]);
    CK(pthread_join(second, nullptr));
    return __atomic_load_n(&ranks_wrong, __ATOMIC_RELAXED) ? 3 : 0;
}
template <bool B> static int nccl_count()
{
    return collective<B, COUNT>();
}
template <bool B> static int nccl_kind()
{
    return collective<B, KIND>();
}
template <bool B> static int nccl_missing()
{
    return collective<B, MISSING>();
}
template <bool B> static int nccl_order()
{
    return collective<B, ORDER>();
}
template <bool B> static int nccl_range()
{
    return collective<B, RANGE>();
}

struct Case {
    const char *name, *caught_by;
    int (*bug)(), (*right)();
};
#define CASE(name, tools)                                                                                              \
    {                                                                                                                  \
#name, tools, name < true>, name < false>                                                                      \
    }
static const Case cases[] = {
    CASE(oob_shared, "plain asan tsan msan"),
    CASE(oob_row, "asan"),
    CASE(oob_global, "asan"),
    CASE(no_barrier, "plain asan tsan msan"),
    CASE(war, "plain asan tsan msan"),
    CASE(no_syncwarp, "plain asan tsan msan"),
    CASE(div_barrier, "plain asan tsan msan"),
    CASE(cond_barrier, "plain asan tsan msan"),
    CASE(early_exit, "plain asan tsan msan"),
    CASE(shfl_mask, "plain asan tsan msan"),
    CASE(shfl_diverged, "plain asan tsan msan"),
    CASE(mma_diverged, "plain asan tsan msan"),
    CASE(cp_nowait, "plain asan tsan msan"),
    CASE(cp_nobarrier, "plain asan tsan msan"),
    CASE(cp_overwrite, "plain tsan"),
    CASE(no_fence, "tsan"),
    CASE(late_fence, "tsan"),
    CASE(block_race, "tsan"),
    CASE(uninit_shared, "msan"),
    CASE(uninit_global, "msan"),
    CASE(misaligned, "asan"),
    CASE(host_deref, "plain asan tsan msan"),
    CASE(use_after_free, "plain asan tsan msan"),
    CASE(host_pointer, "plain asan tsan msan"),
    CASE(wrong_device, "plain asan tsan msan"),
    CASE(wrong_kind, "plain asan tsan msan"),
    CASE(no_event, "plain asan tsan msan"),
    CASE(no_sync_readback, "plain asan tsan msan"),
    CASE(reuse_pinned, "plain asan tsan msan"),
    CASE(smem_attr, "plain asan tsan msan"),
    CASE(zero_grid, "plain asan tsan msan"),
    CASE(sync_in_capture, "plain asan tsan msan"),
    CASE(unjoined_fork, "plain asan tsan msan"),
    CASE(graph_missing_dep, "plain asan tsan msan"),
    CASE(carve_overrun, "plain asan tsan msan"),
    CASE(carve_underrun, "plain asan tsan msan"),
    CASE(carve_uneven, "plain asan tsan msan"),
    CASE(carve_too_much, "plain asan tsan msan"),
    CASE(warp_disagrees, "plain asan tsan msan"),
    CASE(named_count, "plain asan tsan msan"),
    CASE(lane_order, "tsan"),
    CASE(ldmatrix_address, "plain asan tsan msan"),
    CASE(freed_inside, "asan"),
    CASE(uninit_tail, "msan"),
    CASE(copy_2d_range, "plain asan tsan msan"),
    CASE(stale_graph, "plain asan tsan msan"),
    CASE(double_free, "plain asan tsan msan"),
    CASE(flag_no_fence, "tsan"),
    CASE(peer_not_launched, "plain asan tsan msan"),
    CASE(not_resident, "plain asan tsan msan"),
    CASE(matmul_unordered, "plain asan tsan msan"),
    CASE(matmul_range, "plain asan tsan msan"),
    CASE(nccl_count, "plain asan tsan msan"),
    CASE(nccl_kind, "plain asan tsan msan"),
    CASE(nccl_missing, "plain asan tsan msan"),
    CASE(nccl_order, "plain asan tsan msan"),
    CASE(nccl_range, "plain asan tsan msan"),
};

int main(int count, char **words)
{
    if (count < 2) {
        for (const Case &c : cases) printf("%s: %s\n", c.name, c.caught_by);
        return 0;
    }
    CK(cudaStreamCreateWithFlags(&st, cudaStreamNonBlocking));
    for (const Case &c : cases)
        if (!strcmp(c.name, words[1])) return count > 2 ? c.right() : c.bug();
    fprintf(stderr, "no case %s\n", words[1]);
    return 9;
}
