/* The cuBLASLt calls that the device needs, on the host, in stream order. */
#include "tests/emulator/fakes.h"
#include <cublas_v2.h>
#include <cublasLt.h>
#include <stdlib.h>

struct cublasContext {
    cudaStream_t st;
    int dev;
    cublasPointerMode_t pm;
};
namespace
{
struct Mat {
    const void *p;
    cudaDataType t;
    int64_t ld, stride;
    bool tr;
};
size_t tsize(cudaDataType t)
{
    switch (t) {
    case CUDA_R_32F: return 4;
    case CUDA_R_16F:
    case CUDA_R_16BF: return 2;
    case CUDA_R_8F_E4M3:
    case CUDA_R_8F_E5M2: return 1;
    default: return 0;
    }
}
float get(const void *p, cudaDataType t, int64_t i)
{
    switch (t) {
    case CUDA_R_32F: return ((const float *)p)[i];
    case CUDA_R_16F: return __half2float(((const __half *)p)[i]);
    case CUDA_R_16BF: {
        uint32_t u = (uint32_t)((const uint16_t *)p)[i] << 16;
        float f;
        memcpy(&f, &u, 4);
        return f;
    }
    case CUDA_R_8F_E4M3: return (float)((const __nv_fp8_e4m3 *)p)[i];
    default: return (float)((const __nv_fp8_e5m2 *)p)[i];
    }
}
void put(void *p, cudaDataType t, int64_t i, float v)
{
    switch (t) {
    case CUDA_R_32F: ((float *)p)[i] = v; break;
    case CUDA_R_16F: ((__half *)p)[i] = __float2half_rn(v); break;
    case CUDA_R_16BF: ((__nv_bfloat16 *)p)[i] = __float2bfloat16_rn(v); break;
    case CUDA_R_8F_E4M3: ((__nv_fp8_e4m3 *)p)[i] = __nv_fp8_e4m3(v); break;
    default: ((__nv_fp8_e5m2 *)p)[i] = __nv_fp8_e5m2(v);
    }
}
struct Gemm {
    int dev;
    int64_t m, n, k;
    Mat a, b;
    const void *c;
    void *d;
    cudaDataType ct, dt;
    int64_t ldc, ldd, sc, sd;
    int batch;
    float alpha, beta;
    const float *sa, *sb;
    const void *bias;
    cudaDataType bias_t;
    int epi;
};
#ifdef __clang__
#define FAST
#else
#define FAST __attribute__((optimize("O3", "fast-math")))
#endif
FAST float dot(const float *x, const float *y, int64_t n)
{
    float s = 0;
    for (int64_t i = 0; i < n; i++) s += x[i] * y[i];
    return s;
}
// n contiguous elements to float; the bf16 and fp32 cases vectorise
FAST void row(float *o, const void *p, cudaDataType t, int64_t at, int64_t n)
{
    if (t == CUDA_R_16BF) {
        const uint16_t *q = (const uint16_t *)p + at;
        uint32_t *u = (uint32_t *)o;
        for (int64_t i = 0; i < n; i++) u[i] = (uint32_t)q[i] << 16;
    } else if (t == CUDA_R_32F) {
        const float *q = (const float *)p + at;
        for (int64_t i = 0; i < n; i++) o[i] = q[i];
    } else
        for (int64_t i = 0; i < n; i++) o[i] = get(p, t, at + i);
}
void run(const Gemm &g)
{
    auto span = [](int64_t rows, int64_t cols, int64_t ld, int64_t stride, int batch) {
        return stride * (batch - 1) + ld * (cols - 1) + rows;
    };
    struct R {
        const void *p;
        size_t n;
    };
    R ra{g.a.p, (size_t)span(g.a.tr ? g.k : g.m, g.a.tr ? g.m : g.k, g.a.ld, g.a.stride, g.batch) * tsize(g.a.t)},
        rb{g.b.p, (size_t)span(g.b.tr ? g.n : g.k, g.b.tr ? g.k : g.n, g.b.ld, g.b.stride, g.batch) * tsize(g.b.t)};
    size_t nd = (size_t)span(g.m, g.n, g.ldd, g.sd, g.batch) * tsize(g.dt);
    fk::check_range(g.dev, ra.p, ra.n, "gemm A");
    fk::check_range(g.dev, rb.p, rb.n, "gemm B");
    fk::check_range(g.dev, g.d, nd, "gemm D");
    cs::acc_read(ra.p, ra.n);
    cs::acc_read(rb.p, rb.n);
    for (int64_t j = 0; j < g.n * g.batch; j++)
        cs::acc_write((char *)g.d + (j / g.n * g.sd + j % g.n * g.ldd) * tsize(g.dt), g.m * tsize(g.dt));
    float s = g.alpha * (g.sa ? *g.sa : 1) * (g.sb ? *g.sb : 1);
    std::vector<float> B((size_t)g.n * g.k), A(g.k);
    for (int z = 0; z < g.batch; z++) {
        for (int64_t j = 0; j < g.n; j++)
            if (!g.b.tr)
                row(&B[j * g.k], g.b.p, g.b.t, z * g.b.stride + j * g.b.ld, g.k);
            else
                for (int64_t l = 0; l < g.k; l++)
                    B[j * g.k + l] = get(g.b.p, g.b.t, z * g.b.stride + (g.b.tr ? j + l * g.b.ld : l + j * g.b.ld));
        for (int64_t i = 0; i < g.m; i++) {
            if (g.a.tr)
                row(A.data(), g.a.p, g.a.t, z * g.a.stride + i * g.a.ld, g.k);
            else
                for (int64_t l = 0; l < g.k; l++)
                    A[l] = get(g.a.p, g.a.t, z * g.a.stride + (g.a.tr ? l + i * g.a.ld : i + l * g.a.ld));
            for (int64_t j = 0; j < g.n; j++) {
                float v = s * dot(A.data(), &B[j * g.k], g.k);
                if (g.beta != 0) v += g.beta * get(g.c, g.ct, z * g.sc + i + j * g.ldc);
                if (g.bias) v += get(g.bias, g.bias_t, i);
                if (g.epi & CUBLASLT_EPILOGUE_RELU) v = v > 0 ? v : 0;
                if (g.epi & CUBLASLT_EPILOGUE_GELU)
                    v = 0.5f * v * (1 + tanhf(0.79788456f * (v + 0.044715f * v * v * v)));
                put(g.d, g.dt, z * g.sd + i + j * g.ldd, v);
            }
        }
    }
}
cublasStatus_t submit(cudaStream_t st, Gemm g)
{
    if (g.m <= 0 || g.n <= 0 || g.k <= 0 || g.batch <= 0)
        return g.m < 0 || g.n < 0 || g.k < 0 ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
    if (!tsize(g.a.t) || !tsize(g.b.t) || !tsize(g.dt)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (g.a.ld < (g.a.tr ? g.k : g.m) || g.b.ld < (g.b.tr ? g.n : g.k) || g.ldd < g.m)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (tsize(g.a.t) == 1 && (!g.a.tr || g.b.tr || g.m % 16 || g.k % 16 || g.a.ld % 16 || g.b.ld % 16))
        return CUBLAS_STATUS_NOT_SUPPORTED; // as on sm_89/90
    g.dev = fk::stream_device(st);
    return fk::enqueue(st, "gemm", [g] { run(g); }) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                                   : CUBLAS_STATUS_EXECUTION_FAILED;
}
} // namespace
extern "C" {
cublasStatus_t cublasCreate_v2(cublasHandle_t *h)
{
    *h = new cublasContext{nullptr, fk::current_device(), CUBLAS_POINTER_MODE_HOST};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t h)
{
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t s)
{
    h->st = s;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t)
{
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void *, size_t)
{
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                                          int k, const void *alpha, const void *A, cudaDataType at, int lda,
                                          long long sa, const void *B, cudaDataType bt, int ldb, long long sb,
                                          const void *beta, void *C, cudaDataType ct, int ldc, long long sc, int batch,
                                          cublasComputeType_t, cublasGemmAlgo_t)
{
    Gemm g{};
    g.m = m;
    g.n = n;
    g.k = k;
    g.a = {A, at, lda, sa, ta != CUBLAS_OP_N};
    g.b = {B, bt, ldb, sb, tb != CUBLAS_OP_N};
    g.c = C;
    g.d = C;
    g.ct = g.dt = ct;
    g.ldc = g.ldd = ldc;
    g.sc = g.sd = sc;
    g.batch = batch;
    g.alpha = *(const float *)alpha;
    g.beta = *(const float *)beta;
    return submit(h->st, g);
}
cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *alpha, const void *A, cudaDataType at, int lda, const void *B, cudaDataType bt,
                            int ldb, const void *beta, void *C, cudaDataType ct, int ldc, cublasComputeType_t comp,
                            cublasGemmAlgo_t al)
{
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, A, at, lda, 0, B, bt, ldb, 0, beta, C, ct, ldc, 0, 1,
                                      comp, al);
}
// ---- cuBLASLt
struct LtDesc {
    cublasOperation_t ta, tb;
    const float *sa, *sb;
    const void *bias;
    int bias_t, epi;
    cudaDataType scale;
};
struct LtLayout {
    cudaDataType t;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch;
    int64_t stride;
};
cublasStatus_t cublasLtCreate(cublasLtHandle_t *h)
{
    *h = (cublasLtHandle_t)malloc(64);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    free(h);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t, cudaDataType_t sc)
{
    auto *x = new LtDesc();
    x->ta = x->tb = CUBLAS_OP_N;
    x->epi = CUBLASLT_EPILOGUE_DEFAULT;
    x->bias_t = -1;
    x->scale = sc;
    *d = (cublasLtMatmulDesc_t)x;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    delete (LtDesc *)d;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, const void *b,
                                              size_t n)
{
    auto *x = (LtDesc *)d;
    auto set = [&](void *p, size_t sz) {
        if (n < sz) return CUBLAS_STATUS_INVALID_VALUE;
        memcpy(p, b, sz);
        return CUBLAS_STATUS_SUCCESS;
    };
    switch (a) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return set(&x->ta, 4);
    case CUBLASLT_MATMUL_DESC_TRANSB: return set(&x->tb, 4);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return set(&x->epi, 4);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return set(&x->bias, 8);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return set(&x->bias_t, 4);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER: return set(&x->sa, 8);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER: return set(&x->sb, 8);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM: return CUBLAS_STATUS_SUCCESS;
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType t, uint64_t r, uint64_t c, int64_t ld)
{
    *l = (cublasLtMatrixLayout_t) new LtLayout{t, r, c, ld, 1, 0};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    delete (LtLayout *)l;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t a,
                                                const void *b, size_t)
{
    auto *x = (LtLayout *)l;
    if (a == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT)
        memcpy(&x->batch, b, 4);
    else if (a == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET)
        memcpy(&x->stride, b, 8);
    else
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    *p = (cublasLtMatmulPreference_t)calloc(1, 64);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    free(p);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
                                                    const void *, size_t)
{
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int req, cublasLtMatmulHeuristicResult_t *r,
                                              int *n)
{
    *n = 0;
    if (req < 1) return CUBLAS_STATUS_INVALID_VALUE;
    if (!tsize(((LtLayout *)a)->t)) return CUBLAS_STATUS_NOT_SUPPORTED;
    memset((void *)r, 0, sizeof *r);
    r->state = CUBLAS_STATUS_SUCCESS;
    r->wavesCount = 1;
    *n = 1;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t dd, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t la, const void *B, cublasLtMatrixLayout_t lb, const void *beta,
                              const void *C, cublasLtMatrixLayout_t lc, void *D, cublasLtMatrixLayout_t ld,
                              const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t st)
{
    auto *d = (LtDesc *)dd;
    auto *a = (LtLayout *)la, *b = (LtLayout *)lb, *c = (LtLayout *)lc, *o = (LtLayout *)ld;
    Gemm g{};
    bool ta = d->ta != CUBLAS_OP_N, tb = d->tb != CUBLAS_OP_N;
    g.m = o->rows;
    g.n = o->cols;
    g.k = ta ? a->rows : a->cols;
    if ((int64_t)(ta ? a->cols : a->rows) != g.m || (int64_t)(tb ? b->cols : b->rows) != g.k ||
        (int64_t)(tb ? b->rows : b->cols) != g.n)
        return CUBLAS_STATUS_INVALID_VALUE;
    g.a = {A, a->t, a->ld, a->stride, ta};
    g.b = {B, b->t, b->ld, b->stride, tb};
    g.c = C;
    g.d = D;
    g.ct = c->t;
    g.dt = o->t;
    g.ldc = c->ld;
    g.ldd = o->ld;
    g.sc = c->stride;
    g.sd = o->stride;
    g.batch = o->batch;
    g.alpha = *(const float *)alpha;
    g.beta = *(const float *)beta;
    g.sa = d->sa;
    g.sb = d->sb;
    g.epi = d->epi & (CUBLASLT_EPILOGUE_RELU | CUBLASLT_EPILOGUE_GELU);
    if (d->epi & CUBLASLT_EPILOGUE_BIAS) {
        g.bias = d->bias;
        g.bias_t = d->bias_t < 0 ? o->t : (cudaDataType)d->bias_t;
    }
    return submit(st, g);
}
}
