/* What each built-in and wrapper must do, against plain formulas. Runs under the emulator in every test run and,
 * unchanged, on a GPU whenever one is at hand: that is what ties the emulation to the hardware. */
#include "kernels/vec.cuh"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>
#include <functional>
#define CK(x)                                                                                                          \
    do {                                                                                                               \
        cudaError_t e_ = (x);                                                                                          \
        if (e_ != cudaSuccess) {                                                                                       \
            printf("FAIL %s: %s\n", #x, cudaGetErrorString(e_));                                                       \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
static int npass, nfail;
static cudaStream_t st;
static void ok(const char *n, bool c)
{
    c ? npass++ : nfail++;
    if (!c) printf("FAIL %s\n", n);
}
template <class T> struct Buf {
    T *d;
    std::vector<T> h;
    Buf(size_t n) : h(n)
    {
        CK(cudaMalloc((void **)&d, n * sizeof(T)));
        CK(cudaMemsetAsync(d, 0, n * sizeof(T), st));
    }
    void up() { CK(cudaMemcpyAsync(d, h.data(), h.size() * sizeof(T), cudaMemcpyHostToDevice, st)); }
    std::vector<T> &down()
    {
        CK(cudaMemcpyAsync(h.data(), d, h.size() * sizeof(T), cudaMemcpyDeviceToHost, st));
        CK(cudaStreamSynchronize(st));
        return h;
    }
};

__global__ void k_warp(int *o)
{
    int t = threadIdx.x, *r = o + t * 24;
    r[0] = __shfl_sync(~0u, t * 3, 5);
    r[1] = __shfl_sync(~0u, t, t + 1, 8);
    r[2] = __shfl_up_sync(~0u, t, 3);
    r[3] = __shfl_up_sync(~0u, t, 3, 16);
    r[4] = __shfl_down_sync(~0u, t, 2);
    r[5] = __shfl_down_sync(~0u, t, 2, 4);
    r[6] = __shfl_xor_sync(~0u, t, 9);
    r[7] = __shfl_xor_sync(~0u, t, 5, 8);
    r[8] = (int)__ballot_sync(~0u, t % 3 == 0);
    r[9] = __any_sync(~0u, t == 7);
    r[10] = __all_sync(~0u, t < 31);
    r[11] = (int)__match_any_sync(~0u, t % 4);
    r[12] = __reduce_add_sync(~0u, t);
    r[13] = __reduce_min_sync(~0u, t - 5);
    r[14] = (int)__reduce_max_sync(~0u, (unsigned)t * 2u);
    r[15] = (int)__reduce_xor_sync(~0u, 1u << t);
    if (t < 16)
        r[16] = __shfl_xor_sync(0x0000ffffu, t, 1);
    else
        r[16] = __shfl_xor_sync(0xffff0000u, t, 2); // two halves, two masks
    r[17] = (int)(__shfl_xor_sync(~0u, (unsigned long long)t << 40, 1) >> 40);
    r[18] = __float_as_int(__shfl_down_sync(~0u, (float)t, 1));
}
__global__ void k_block(int *o, int *cnt)
{
    int t = threadIdx.x;
    o[t] = __syncthreads_count(t % 5 == 0);
    o[96 + t] = __syncthreads_or(t == 95);
    o[192 + t] = __syncthreads_and(t != 3);
    o[288 + t] = (int)(threadIdx.y * 1000 + blockIdx.x * 100 + blockDim.x);
    atomicAdd(cnt, t);
    atomicMax(cnt + 1, t);
    atomicMin(cnt + 2, -t);
    atomicOr((unsigned *)cnt + 3, 1u << (t % 32));
    atomicInc((unsigned *)cnt + 4, 9);
    if (t == 0) {
        atomicCAS(cnt + 5, 0, 42);
        atomicExch(cnt + 6, 7);
    }
    atomicAdd((float *)cnt + 7, 0.5f);
}
// warp-specialised producer and consumer with named barriers and a two-slot ring
__global__ void k_named(int *o)
{
    KX_SHARED(int, ring, [2][32]);
    int w = threadIdx.x / 32, l = threadIdx.x % 32;
    for (int i = 0; i < 6; i++) {
        int s = i & 1;
        if (w == 0) {
            if (i >= 2) kx::bar_sync(3 + s, 64);
            ring[s][l] = i * 100 + l;
            kx::bar_arrive(1 + s, 64);
        } else {
            kx::bar_sync(1 + s, 64);
            o[i * 32 + l] = ring[s][31 - l];
            if (i < 4) kx::bar_arrive(3 + s, 64);
        }
    }
}
// grid-wide barrier: only legal in a cooperative launch
__global__ void k_grid(int *o, unsigned *bar)
{
    if (threadIdx.x == 0) o[blockIdx.x] = blockIdx.x + 1;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(bar, 1u);
        while (atomicAdd(bar, 0u) < gridDim.x) __nanosleep(20);
        __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int s = 0;
        for (unsigned i = 0; i < gridDim.x; i++) s += o[i];
        o[gridDim.x + blockIdx.x] = s;
    }
}
__global__ void k_mma(const uint16_t *a, const uint16_t *b, float *d, uint32_t *frag)
{ // a 16x16 row major, b [n][k]
    KX_SHARED(uint16_t, sa, [16][16]);
    KX_SHARED(uint16_t, sb, [16][16]);
    int l = threadIdx.x;
    for (int i = l; i < 256; i += 32) {
        sa[i / 16][i % 16] = a[i];
        sb[i / 16][i % 16] = b[i];
    }
    __syncwarp();
    uint32_t fa[4], fb[4], ft[4];
    float c[4] = {1, 2, 3, 4}, e[4] = {0, 0, 0, 0};
    kx::ldmatrix_x4(fa, &sa[l % 16][l / 16 * 8]);
    kx::ldmatrix_x4(fb, &sb[l / 16 * 8 + l % 8][l / 8 % 2 * 8]);
    kx::ldmatrix_x4_trans(ft, &sa[l % 16][l / 16 * 8]);
    const uint32_t b0[2] = {fb[0], fb[1]}, b1[2] = {fb[2], fb[3]};
    kx::mma_bf16(c, fa, b0);
    kx::mma_bf16(e, fa, b1);
    for (int i = 0; i < 4; i++) {
        d[l * 8 + i] = c[i];
        d[l * 8 + 4 + i] = e[i];
        frag[l * 8 + i] = fa[i];
        frag[l * 8 + 4 + i] = ft[i];
    }
}
/* Halves that differ, results that are BF16: codes below 128 less 8, and powers of two times small numbers. */
__global__ void k_bf16x2(uint32_t *out)
{
    const uint32_t i = threadIdx.x;
    out[i] = kx::bf16x2_sub(0x43004300u | i | (127 - i) << 16, 0x43084308u);
    out[128 + i] = kx::bf16x2_mul(i << 4 | (127 - i) << 20, 0x7b80fb80u);
}
/* A tile of products against its mmas one by one: bits, with fragments that differ in every place. */
__global__ void k_mma_tile(uint32_t *wrong)
{
    const uint32_t l = threadIdx.x;
    uint32_t a[2][2][4], b[2][3][2];
    float d[2][3][4], e[2][3][4];
    for (uint32_t k = 0; k < 2; k++) {
        for (uint32_t i = 0; i < 8; i++) a[k][i / 4][i % 4] = 0x3f803f80u + (l * 37 + i * 101 + k * 59) % 97 * 0x10007u;
        for (uint32_t i = 0; i < 6; i++) b[k][i / 2][i % 2] = 0xbf004000u + (l * 41 + i * 103 + k * 61) % 89 * 0x10003u;
    }
    for (uint32_t i = 0; i < 24; i++)
        d[i / 12][i / 4 % 3][i % 4] = e[i / 12][i / 4 % 3][i % 4] = (float)(i + l) * 0.37f;
    kx::mma_bf16_tile<2, 2, 3>(d, a, b);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < 6; i++) kx::mma_bf16(e[i / 3][i % 3], a[k][i / 3], b[k][i % 3]);
    wrong[l] = 0;
    for (int i = 0; i < 24; i++)
        wrong[l] += __float_as_uint(d[i / 12][i / 4 % 3][i % 4]) != __float_as_uint(e[i / 12][i / 4 % 3][i % 4]);
}
__global__ void k_cp(uint4 *o, const uint4 *in)
{
    KX_SHARED_DYN(sm);
    uint4 *s = kx::carve<uint4>(sm, 64);
    int t = threadIdx.x;
    kx::cp_async16(s + t, in + t);
    kx::cp_async_commit();
    kx::cp_async16(s + 32 + t, in + 32 + t, t % 2 ? 16 : 4);
    kx::cp_async_commit();
    kx::cp_async_wait<1>();
    __syncthreads();
    o[t] = s[31 - t];
    kx::cp_async_wait<0>();
    __syncthreads();
    o[32 + t] = s[32 + t];
}
__global__ void k_types(float *o, const float *in)
{
    int t = threadIdx.x;
    __nv_bfloat16 b = __float2bfloat16_rn(in[t]);
    __half h = __float2half_rn(in[t]);
    __nv_fp8_e4m3 q(in[t]);
    __nv_fp8_e5m2 q5(in[t]);
    o[t * 8] = __bfloat162float(b);
    o[t * 8 + 1] = __half2float(h);
    o[t * 8 + 2] = (float)q;
    o[t * 8 + 3] = (float)q5;
    o[t * 8 + 4] = __bfloat162float(__hfma(b, b, b));
    o[t * 8 + 5] = __half2float(__hadd(h, h));
    o[t * 8 + 6] = kx::ex2(in[t]);
    o[t * 8 + 7] = rsqrtf(fabsf(in[t]) + 1);
}
static uint16_t bf(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static void test_warps()
{
    Buf<int> o(32 * 24);
    CK(kx::launch(k_warp, 1, 32, 0, st, o.d));
    auto &h = o.down();
    bool c[20];
    for (auto &x : c) x = true;
    for (int t = 0; t < 32; t++) {
        int *r = &h[t * 24];
        unsigned bal = 0, mat = 0;
        for (int i = 0; i < 32; i++) {
            if (i % 3 == 0) bal |= 1u << i;
            if (i % 4 == t % 4) mat |= 1u << i;
        }
        int e[20] = {15,
                     t / 8 * 8 + (t + 1) % 8,
                     t < 3 ? t : t - 3,
                     t % 16 < 3 ? t : t - 3,
                     t > 29 ? t : t + 2,
                     t % 4 > 1 ? t : t + 2,
                     t ^ 9,
                     t ^ 5,
                     (int)bal,
                     1,
                     0,
                     (int)mat,
                     496,
                     -5,
                     62,
                     -1,
                     t < 16 ? t ^ 1 : t ^ 2,
                     t ^ 1,
                     0,
                     0};
        float f = t == 31 ? 31.f : t + 1.f;
        memcpy(&e[18], &f, 4);
        for (int i = 0; i < 20; i++) c[i] &= r[i] == e[i];
    }
    for (int i = 0; i < 20; i++) {
        char b[32];
        snprintf(b, sizeof b, "warp builtin %d", i);
        ok(b, c[i]);
    }
}

static void test_blocks()
{
    Buf<int> o(96 * 4), n(8);
    CK(kx::launch(k_block, 1, 96, 0, st, o.d, n.d));
    auto &h = o.down();
    auto &k = n.down();
    bool c = true;
    for (int t = 0; t < 96; t++) c &= h[t] == 20 && h[96 + t] && !h[192 + t] && h[288 + t] == 96;
    ok("block votes", c);
    float f;
    memcpy(&f, &k[7], 4);
    ok("atomics", k[0] == 95 * 48 && k[1] == 95 && k[2] == -95 && k[3] == -1 && k[4] == 96 % 10 && k[5] == 42 &&
                      k[6] == 7 && f == 48.f);
}

static void test_named_barriers()
{
    Buf<int> o(192);
    CK(kx::launch(k_named, 1, 64, 0, st, o.d));
    auto &h = o.down();
    bool c = true;
    for (int i = 0; i < 192; i++) c &= h[i] == i / 32 * 100 + 31 - i % 32;
    ok("named barriers, producer and consumer warps", c);
}

static void test_grid_barrier()
{
    Buf<int> o(24);
    Buf<unsigned> b(1);
    CK(kx::launch_cooperative(k_grid, 12, 64, 0, st, o.d, b.d));
    auto &h = o.down();
    bool c = true;
    for (int i = 0; i < 12; i++) c &= h[12 + i] == 78;
    ok("cooperative grid barrier", c);
}

/* Codes of FP8 by their definition (OCP 8-bit Floating Point Specification 1.0): sign, exponent, mantissa. */
static double fp8_value(unsigned code, int exponent_bits, int mantissa_bits, int bias)
{
    const unsigned mantissa = code & ((1u << mantissa_bits) - 1),
                   exponent = code >> mantissa_bits & ((1u << exponent_bits) - 1);
    const double value = exponent ? ldexp(1.0 + ldexp((double)mantissa, -mantissa_bits), (int)exponent - bias)
                                  : ldexp((double)mantissa, 1 - bias - mantissa_bits);
    return code & 0x80 ? -value : value;
}
__global__ void k_fp8(float *values, uint32_t *codes, const float *in)
{
    const unsigned t = threadIdx.x;
    float f[4];
    kx::e4m3x4_unpack(t * 0x01010101u, f);
    values[t] = f[t % 4];
    kx::e5m2x4_unpack(t * 0x01010101u, f);
    values[256 + t] = f[t % 4];
    values[512 + t] = kx::e4m3_to_f32((uint8_t)t);
    codes[t] = kx::e4m3x4_pack(in[t], -in[t], in[t] * 3.0f, in[t] * 1e4f);
    codes[256 + t] = kx::f32_to_e4m3(in[t]);
    codes[512 + t] = kx::e5m2x4_pack(in[t], -in[t], in[t] * 3.0f, in[t] * 1e9f);
}
/* The nearest of all finite codes; ties to the even one. */
static unsigned nearest(double v, int exponent_bits, int mantissa_bits, int bias, unsigned largest)
{
    unsigned best = 0;
    for (unsigned code = 0; code <= largest; code++) {
        const double d = fabs(fp8_value(code, exponent_bits, mantissa_bits, bias) - fabs(v));
        const double b = fabs(fp8_value(best, exponent_bits, mantissa_bits, bias) - fabs(v));
        if (d < b || (d == b && code % 2 == 0)) best = code;
    }
    return best | (signbit(v) ? 0x80 : 0);
}
static void test_fp8()
{
    Buf<float> in(256), values(768);
    Buf<uint32_t> codes(768);
    for (int i = 0; i < 256; i++) in.h[i] = (float)(ldexp(1.0 + (i * 37 % 64) / 64.0, i % 19 - 10) * (i % 2 ? 1 : -1));
    in.h[0] = 0.0f;
    in.up();
    CK(kx::launch(k_fp8, 1, 256, 0, st, values.d, codes.d, (const float *)in.d));
    auto &v = values.down();
    auto &c = codes.down();
    bool e4 = true, e5 = true, p4 = true, p5 = true;
    for (unsigned t = 0; t < 256; t++) {
        const bool nan4 = (t & 0x7f) == 0x7f, top5 = (t & 0x7f) >= 0x7c;
        e4 &= nan4 ? v[t] != v[t] && v[512 + t] != v[512 + t]
                   : (double)v[t] == fp8_value(t, 4, 3, 7) && v[512 + t] == v[t];
        e5 &= top5 ? !isfinite(v[256 + t]) : (double)v[256 + t] == fp8_value(t, 5, 2, 15);
        const double x = in.h[t], scaled[4] = {x, -x, (double)(in.h[t] * 3.0f), (double)(in.h[t] * 1e4f)};
        for (int i = 0; i < 4; i++) p4 &= (c[t] >> 8 * i & 255) == nearest(scaled[i], 4, 3, 7, 0x7e);
        p4 &= c[256 + t] == nearest(x, 4, 3, 7, 0x7e);
        for (int i = 0; i < 3; i++) p5 &= (c[512 + t] >> 8 * i & 255) == nearest(scaled[i], 5, 2, 15, 0x7b);
        p5 &= (c[512 + t] >> 24) == nearest((double)(in.h[t] * 1e9f), 5, 2, 15, 0x7b);
    }
    ok("e4m3 to float", e4);
    ok("e5m2 to float", e5);
    ok("float to e4m3", p4);
    ok("float to e5m2", p5);
}

__global__ void k_mma_f16(const uint16_t *a, const uint16_t *b, float *d)
{
    KX_SHARED(uint16_t, sa, [16][16]);
    KX_SHARED(uint16_t, sb, [8][16]);
    const int l = threadIdx.x;
    for (int i = l; i < 256; i += 32) sa[i / 16][i % 16] = a[i];
    for (int i = l; i < 128; i += 32) sb[i / 16][i % 16] = b[i];
    __syncwarp();
    uint32_t fa[4], fb[2], ft[2];
    float c[4] = {0.5f, 0.5f, 0.5f, 0.5f};
    kx::ldmatrix_x4(fa, &sa[l % 16][l / 16 * 8]);
    kx::ldmatrix_x2(fb, &sb[l % 8][l / 8 % 2 * 8]);
    kx::ldmatrix_x2_trans(ft, &sa[l % 16][0]);
    kx::mma_f16(c, fa, fb);
    for (int i = 0; i < 4; i++) d[l * 6 + i] = c[i];
    for (int i = 0; i < 2; i++) d[l * 6 + 4 + i] = __uint_as_float(ft[i]);
}
static uint16_t f16(float f)
{
    return __half_as_ushort(__float2half_rn(f));
}
static uint32_t bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static void test_f16_matrices()
{
    Buf<uint16_t> a(256), b(128);
    Buf<float> d(32 * 6);
    double A[16][16], B[8][16];
    for (int i = 0; i < 256; i++) a.h[i] = f16((float)(A[i / 16][i % 16] = i * 7 % 13 - 6));
    for (int i = 0; i < 128; i++) b.h[i] = f16((float)(B[i / 16][i % 16] = i * 5 % 11 - 5));
    a.up();
    b.up();
    CK(kx::launch(k_mma_f16, 1, 32, 0, st, (const uint16_t *)a.d, (const uint16_t *)b.d, d.d));
    auto &h = d.down();
    bool product = true, trans = true;
    for (int l = 0; l < 32; l++) {
        for (int i = 0; i < 4; i++) {
            const int row = l / 4 + i / 2 * 8, col = l % 4 * 2 + i % 2;
            double want = 0.5;
            for (int k = 0; k < 16; k++) want += A[row][k] * B[col][k];
            product &= want == (double)h[l * 6 + i];
        }
        for (int i = 0; i < 2; i++) { /* matrix i: rows 8i.., element [2t][g] and [2t+1][g] */
            const int r = i * 8 + l % 4 * 2, c = l / 4;
            trans &= bits(h[l * 6 + 4 + i]) == (a.h[r * 16 + c] | (uint32_t)a.h[(r + 1) * 16 + c] << 16);
        }
    }
    ok("mma m16n8k16 f16", product);
    ok("ldmatrix x2 trans", trans);
}

static void test_matrices()
{
    Buf<uint16_t> a(256), b(256);
    Buf<float> d(256);
    Buf<uint32_t> fr(256);
    float A[16][16], B[16][16];
    for (int i = 0; i < 256; i++) {
        A[i / 16][i % 16] = (float)(i * 7 % 13) - 6;
        B[i / 16][i % 16] = (float)(i * 5 % 11) - 5;
        a.h[i] = bf(A[i / 16][i % 16]);
        b.h[i] = bf(B[i / 16][i % 16]);
    }
    a.up();
    b.up();
    CK(kx::launch(k_mma, 1, 32, 0, st, (const uint16_t *)a.d, (const uint16_t *)b.d, d.d, fr.d));
    auto &h = d.down();
    auto &f = fr.down();
    bool c = true, fa = true, ft = true;
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 8; i++) {
            int row = l / 4 + (i % 4 / 2) * 8, col = l % 4 * 2 + i % 2 + (i / 4) * 8;
            float e = i < 4 ? (float)(i + 1) : 0;
            for (int k = 0; k < 16; k++) e += A[row][k] * B[col][k];
            c &= e == h[l * 8 + i];
        }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            int r = l / 4 + (i & 1) * 8, q = l % 4 * 2 + (i >> 1) * 8;
            fa &= f[l * 8 + i] == (bf(A[r][q]) | (uint32_t)bf(A[r][q + 1]) << 16);
            int tr = l % 4 * 2 + (i & 1) * 8, tc = l / 4 + (i >> 1) * 8;
            ft &= f[l * 8 + 4 + i] == (bf(A[tr][tc]) | (uint32_t)bf(A[tr + 1][tc]) << 16);
        }
    ok("mma m16n8k16 bf16", c);
    ok("ldmatrix x4", fa);
    CK(kx::launch(k_bf16x2, 1, 128, 0, st, fr.d));
    bool halves = true;
    auto &pairs = fr.down();
    for (uint32_t k = 0; k < 128; k++)
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t j = half ? 127 - k : k;
            uint32_t bits = j << 20;
            float magnitude;
            memcpy(&magnitude, &bits, 4);
            magnitude *= 0x1p120f; /* exact: subnormals too */
            halves &= (pairs[k] >> 16 * half & 0xffff) == bf((float)j - 8);
            halves &= (pairs[128 + k] >> 16 * half & 0xffff) == bf(half ? magnitude : -magnitude);
        }
    ok("bf16 pairs less and times", halves);
    CK(kx::launch(k_mma_tile, 1, 32, 0, st, fr.d));
    bool tile = true;
    auto &wrong = fr.down();
    for (int l = 0; l < 32; l++) tile &= wrong[l] == 0;
    ok("mma tile", tile);
    ok("ldmatrix x4 trans", ft);
}

static void test_copies()
{
    Buf<uint4> i(64), o(64);
    for (unsigned k = 0; k < 64; k++) i.h[k] = make_uint4(k, k + 100, k + 200, k + 300);
    i.up();
    CK(kx::launch(k_cp, 1, 32, 1024, st, o.d, (const uint4 *)i.d));
    auto &h = o.down();
    bool c = true;
    for (unsigned k = 0; k < 32; k++) {
        c &= h[k].y == 31 - k + 100 && h[32 + k].x == 32 + k && h[32 + k].w == (k % 2 ? 32 + k + 300 : 0);
    }
    ok("cp.async groups and zero fill", c);
}

static void test_types()
{
    Buf<float> i(32), o(256);
    for (int k = 0; k < 32; k++) i.h[k] = (k - 16) * 0.37f;
    i.up();
    CK(kx::launch(k_types, 1, 32, 0, st, o.d, (const float *)i.d));
    auto &h = o.down();
    bool c = true;
    for (int k = 0; k < 32; k++) {
        float x = i.h[k], b = __bfloat162float(__float2bfloat16_rn(x));
        c &= h[k * 8] == b && h[k * 8 + 2] == (float)__nv_fp8_e4m3(x) && h[k * 8 + 3] == (float)__nv_fp8_e5m2(x) &&
             fabsf(h[k * 8 + 6] - exp2f(x)) <= 2e-6f * exp2f(x) &&
             fabsf(h[k * 8 + 4] - (b * b + b)) <= 0.01f * fabsf(b * b + b) + 1e-3f;
    }
    ok("number types", c);
}

int main()
{
    CK(cudaStreamCreateWithFlags(&st, cudaStreamNonBlocking));
    test_warps();
    test_blocks();
    test_named_barriers();
    test_grid_barrier();
    test_matrices();
    test_copies();
    test_types();
    test_fp8();
    test_f16_matrices();
    printf("%d passed, %d failed\n", npass, nfail);
    return nfail != 0;
}
