/* cuBLASLt on the host, in stream order: matrix products of f32, BF16, FP16 and FP8 with f32 sums, batches, scales and
 * epilogues. It has the library's C interface, declared here by itself: a toolkit from PyPI has no cublasLt.h.
 *
 * A heuristic query gives up to three algorithms that cut K into 1, 2 and 4 slices: their results differ in the last
 * places, as the real ones' do, and the later two need a workspace. An algorithm that no query gave, a workspace that
 * is too small or a shape that the library refuses on sm_90 gives its error. */
#include "tests/emulator/fakes.h"
#include "tests/emulator/faults.h"
#include <immintrin.h>
#include <stdlib.h>

namespace
{
enum { TYPE_F32 = 0, TYPE_F16 = 2, TYPE_BF16 = 14, TYPE_E4M3 = 28, TYPE_E5M2 = 29 };
enum { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { ORDER_COLUMN = 0, ORDER_ROW = 1 };
enum { EPILOGUE_DEFAULT = 1, EPILOGUE_RELU = 2, EPILOGUE_BIAS = 4, EPILOGUE_GELU = 32 };
enum {
    DESC_POINTER_MODE = 2,
    DESC_TRANSA = 3,
    DESC_TRANSB = 4,
    DESC_EPILOGUE = 7,
    DESC_BIAS_POINTER = 8,
    DESC_SM_COUNT_TARGET = 15,
    DESC_A_SCALE_POINTER = 17,
    DESC_B_SCALE_POINTER = 18,
    DESC_D_SCALE_POINTER = 20,
    DESC_FAST_ACCUM = 25,
    DESC_BIAS_DATA_TYPE = 26,
    DESC_A_SCALE_MODE = 31,
    DESC_B_SCALE_MODE = 32
};
enum { SCALE_ONE = 0, SCALE_OUTER = 3 };
enum { LAYOUT_ORDER = 1, LAYOUT_ROWS, LAYOUT_COLS, LAYOUT_LD, LAYOUT_BATCHES, LAYOUT_STRIDE };
enum { PREFERENCE_WORKSPACE = 1 };
const uint64_t ALGORITHM_MAGIC = 0x6d756c61746f7231;
const size_t SLICE_WORKSPACE = 1 << 20;

struct Algorithm { /* cublasLtMatmulAlgo_t */
    uint64_t data[8];
};
struct Heuristic { /* cublasLtMatmulHeuristicResult_t */
    Algorithm algorithm;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};
struct Desc {
    int trans_a, trans_b, epilogue, bias_type, a_scale_mode, b_scale_mode;
    const void *bias;
    const float *a_scale, *b_scale, *d_scale;
};
struct Layout {
    int type, order;
    uint64_t rows, cols;
    int64_t ld, stride;
    int32_t batches;
};
struct Preference {
    uint64_t workspace_bytes;
};
struct Handle {
    int device;
};

/* An operand after transposition: element (i, k) of batch z at z * batch + i * outer + k * inner. */
struct Operand {
    const char *at;
    int type;
    int64_t outer, inner, batch;
};
struct Product {
    int device, slices, batches;
    int64_t m, n, k;
    Operand a, b, c, d;
    float alpha, beta;
    Desc desc;
};

size_t type_bytes(int type)
{
    return type == TYPE_F32                         ? 4
           : type == TYPE_F16 || type == TYPE_BF16  ? 2
           : type == TYPE_E4M3 || type == TYPE_E5M2 ? 1
                                                    : 0;
}

float element(const void *p, int type, int64_t i)
{
    switch (type) {
    case TYPE_F32: return ((const float *)p)[i];
    case TYPE_F16: return _cvtsh_ss(((const uint16_t *)p)[i]);
    case TYPE_BF16: return __uint_as_float((uint32_t)((const uint16_t *)p)[i] << 16);
    case TYPE_E4M3: return (float)((const __nv_fp8_e4m3 *)p)[i];
    default: return (float)((const __nv_fp8_e5m2 *)p)[i];
    }
}

void set_element(void *p, int type, int64_t i, float v)
{
    switch (type) {
    case TYPE_F32: ((float *)p)[i] = v; break;
    case TYPE_F16: ((__half *)p)[i] = __float2half_rn(v); break;
    case TYPE_BF16: ((__nv_bfloat16 *)p)[i] = __float2bfloat16_rn(v); break;
    case TYPE_E4M3: ((__nv_fp8_e4m3 *)p)[i] = __nv_fp8_e4m3(v); break;
    default: ((__nv_fp8_e5m2 *)p)[i] = __nv_fp8_e5m2(v);
    }
}

/* n values along K as floats; padded with zeros to a multiple of 8. */
void widen(float *to, const Operand &o, int64_t row, int64_t batch, int64_t n)
{
    const int64_t at = batch * o.batch + row * o.outer;
    int64_t i = 0;
    if (o.inner == 1 && o.type == TYPE_BF16) {
        const uint16_t *from = (const uint16_t *)o.at + at;
        for (; i + 8 <= n; i += 8) {
            const __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(from + i)));
            _mm256_storeu_ps(to + i, _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)));
        }
    } else if (o.inner == 1 && o.type == TYPE_F16) {
        const uint16_t *from = (const uint16_t *)o.at + at;
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
    } else if (o.inner == 1 && (o.type == TYPE_E4M3 || o.type == TYPE_E5M2)) {
        static float table[2][256];
        static const bool filled = [] {
            for (int c = 0; c < 256; c++) {
                const uint8_t code = (uint8_t)c;
                table[0][c] = element(&code, TYPE_E4M3, 0);
                table[1][c] = element(&code, TYPE_E5M2, 0);
            }
            return true;
        }();
        (void)filled;
        const uint8_t *from = (const uint8_t *)o.at + at;
        const float *values = table[o.type == TYPE_E5M2];
        for (; i < n; i++) to[i] = values[from[i]];
    }
    for (; i < n; i++) to[i] = element(o.at, o.type, at + i * o.inner);
    for (; i % 8; i++) to[i] = 0.0f;
}

float sum_of(__m256 v)
{
    const __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 t = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}

/* Sums of one row of A with columns b[0..count) (4 at most), k a multiple of 8. */
template <int COUNT> void dots(float *sums, const float *a, const float *b, int64_t stride, int64_t k)
{
    __m256 s[COUNT][2];
    for (int j = 0; j < COUNT; j++) s[j][0] = s[j][1] = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
        const __m256 x = _mm256_loadu_ps(a + i), y = _mm256_loadu_ps(a + i + 8);
        for (int j = 0; j < COUNT; j++) {
            s[j][0] = _mm256_fmadd_ps(x, _mm256_loadu_ps(b + j * stride + i), s[j][0]);
            s[j][1] = _mm256_fmadd_ps(y, _mm256_loadu_ps(b + j * stride + i + 8), s[j][1]);
        }
    }
    if (i < k) {
        const __m256 x = _mm256_loadu_ps(a + i);
        for (int j = 0; j < COUNT; j++) s[j][0] = _mm256_fmadd_ps(x, _mm256_loadu_ps(b + j * stride + i), s[j][0]);
    }
    for (int j = 0; j < COUNT; j++) sums[j] += sum_of(_mm256_add_ps(s[j][0], s[j][1]));
}

float finish(const Product &p, float v, int64_t i, int64_t j, int64_t z)
{
    float scale = p.alpha;
    if (p.desc.a_scale) scale *= p.desc.a_scale[p.desc.a_scale_mode == SCALE_OUTER ? i : 0];
    if (p.desc.b_scale) scale *= p.desc.b_scale[p.desc.b_scale_mode == SCALE_OUTER ? j : 0];
    v *= scale;
    if (p.beta != 0.0f) v += p.beta * element(p.c.at, p.c.type, z * p.c.batch + i * p.c.outer + j * p.c.inner);
    if (p.desc.epilogue & EPILOGUE_BIAS)
        v += element(p.desc.bias, p.desc.bias_type < 0 ? p.d.type : p.desc.bias_type, i);
    if (p.desc.epilogue & EPILOGUE_RELU) v = v > 0.0f ? v : 0.0f;
    if (p.desc.epilogue & EPILOGUE_GELU) v = 0.5f * v * (1.0f + tanhf(0.79788456f * (v + 0.044715f * v * v * v)));
    return p.desc.d_scale ? v * *p.desc.d_scale : v;
}

size_t span_bytes(const Operand &o, int64_t rows, int64_t cols, int batches)
{
    return (size_t)(o.batch * (batches - 1) + o.outer * (rows - 1) + o.inner * (cols - 1) + 1) * type_bytes(o.type);
}

void check(const Product &p)
{
    fk::check_range(p.device, p.a.at, span_bytes(p.a, p.m, p.k, p.batches), "cublasLtMatmul A");
    fk::check_range(p.device, p.b.at, span_bytes(p.b, p.n, p.k, p.batches), "cublasLtMatmul B");
    fk::check_range(p.device, p.d.at, span_bytes(p.d, p.m, p.n, p.batches), "cublasLtMatmul D");
    if (p.beta != 0.0f) fk::check_range(p.device, p.c.at, span_bytes(p.c, p.m, p.n, p.batches), "cublasLtMatmul C");
    if (p.desc.a_scale)
        fk::check_range(p.device, p.desc.a_scale, p.desc.a_scale_mode == SCALE_OUTER ? (size_t)p.m * 4 : 4, "A scale");
    if (p.desc.b_scale)
        fk::check_range(p.device, p.desc.b_scale, p.desc.b_scale_mode == SCALE_OUTER ? (size_t)p.n * 4 : 4, "B scale");
}

/* What the sanitizers shall see of the product. */
void announce(const Product &p)
{
    const size_t d = type_bytes(p.d.type);
    cs::access_read(p.a.at, span_bytes(p.a, p.m, p.k, p.batches));
    cs::access_read(p.b.at, span_bytes(p.b, p.n, p.k, p.batches));
    for (int z = 0; z < p.batches; z++) {
        const bool columns = p.d.outer == 1;
        for (int64_t j = 0; j < (columns ? p.n : p.m); j++)
            cs::access_write((char *)p.d.at + (size_t)(z * p.d.batch + j * (columns ? p.d.inner : p.d.outer)) * d,
                             (size_t)(columns ? p.m : p.n) * d);
    }
}

void multiply(const Product &p)
{
    announce(p);
    const int64_t stride = (p.k + 7) / 8 * 8;
    std::vector<float> b((size_t)(p.n * stride)), a((size_t)stride), sums((size_t)p.n);
    const int64_t slice = (p.k + p.slices * 8 - 1) / (p.slices * 8) * 8;
    for (int z = 0; z < p.batches; z++) {
        for (int64_t j = 0; j < p.n; j++) widen(&b[(size_t)(j * stride)], p.b, j, z, p.k);
        for (int64_t i = 0; i < p.m; i++) {
            widen(a.data(), p.a, i, z, p.k);
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (int64_t from = 0; from < p.k; from += slice) {
                const int64_t n = std::min(slice, stride - from);
                int64_t j = 0;
                for (; j + 4 <= p.n; j += 4)
                    dots<4>(&sums[(size_t)j], a.data() + from, &b[(size_t)(j * stride + from)], stride, n);
                for (; j < p.n; j++)
                    dots<1>(&sums[(size_t)j], a.data() + from, &b[(size_t)(j * stride + from)], stride, n);
            }
            for (int64_t j = 0; j < p.n; j++)
                set_element((void *)p.d.at, p.d.type, z * p.d.batch + i * p.d.outer + j * p.d.inner,
                            finish(p, sums[(size_t)j], i, j, z));
        }
    }
}

/* rows x cols of a layout, the first index being the operand's own (M or N) and the second K, or as it stands for C, D.
 */
Operand operand(const void *at, const Layout &l, bool transposed)
{
    int64_t by_row = l.order == ORDER_ROW ? l.ld : 1, by_col = l.order == ORDER_ROW ? 1 : l.ld;
    if (transposed) std::swap(by_row, by_col);
    return {(const char *)at, l.type, by_row, by_col, l.stride};
}

/* SUCCESS, or why the library would refuse. */
int plan(Product &p, const Desc &desc, const Layout &a, const Layout &b, const Layout &c, const Layout &d)
{
    const bool ta = desc.trans_a != 0, tb = desc.trans_b != 0;
    p.desc = desc;
    p.m = (int64_t)d.rows;
    p.n = (int64_t)d.cols;
    p.k = (int64_t)(ta ? a.rows : a.cols);
    p.batches = d.batches;
    if (!type_bytes(a.type) || !type_bytes(b.type) || !type_bytes(d.type)) return NOT_SUPPORTED;
    if ((int64_t)(ta ? a.cols : a.rows) != p.m || (int64_t)(tb ? b.cols : b.rows) != p.k ||
        (int64_t)(tb ? b.rows : b.cols) != p.n || c.rows != d.rows || c.cols != d.cols)
        return INVALID_VALUE;
    for (const Layout *l : {&a, &b, &c, &d})
        if (l->ld < (int64_t)(l->order == ORDER_ROW ? l->cols : l->rows) || l->batches != d.batches)
            return INVALID_VALUE;
    const bool fp8 = type_bytes(a.type) == 1;
    if (fp8 != (type_bytes(b.type) == 1)) return NOT_SUPPORTED;
    if (fp8 && (!ta || tb || p.m % 16 || p.k % 16 || a.ld % 16 || b.ld % 16)) return NOT_SUPPORTED; /* sm_89, sm_90 */
    if (!fp8 && a.type != b.type) return NOT_SUPPORTED;
    p.a = operand(nullptr, a, ta);
    p.b = operand(nullptr, b, !tb);
    p.c = operand(nullptr, c, false);
    p.d = operand(nullptr, d, false);
    return SUCCESS;
}
} // namespace

extern "C" {
size_t cublasLtGetVersion(void)
{
    return 130000;
}
int cublasLtCreate(Handle **handle)
{
    fk::Lock l(fk::state().mutex);
    if (fk::fault_strikes(&fk::state().faults.allocation)) return 3; /* CUBLAS_STATUS_ALLOC_FAILED */
    *handle = new Handle{fk::current_device_id};
    return SUCCESS;
}
int cublasLtDestroy(Handle *handle)
{
    delete handle;
    return SUCCESS;
}
int cublasLtMatmulDescCreate(Desc **desc, int, int)
{
    *desc = new Desc{};
    (*desc)->epilogue = EPILOGUE_DEFAULT;
    (*desc)->bias_type = -1;
    return SUCCESS;
}
int cublasLtMatmulDescDestroy(Desc *desc)
{
    delete desc;
    return SUCCESS;
}
int cublasLtMatmulDescSetAttribute(Desc *desc, int attribute, const void *value, size_t bytes)
{
    auto set = [&](void *to, size_t n) {
        if (bytes != n) return (int)INVALID_VALUE;
        memcpy(to, value, n);
        return (int)SUCCESS;
    };
    switch (attribute) {
    case DESC_TRANSA: return set(&desc->trans_a, 4);
    case DESC_TRANSB: return set(&desc->trans_b, 4);
    case DESC_EPILOGUE: return set(&desc->epilogue, 4);
    case DESC_BIAS_POINTER: return set(&desc->bias, 8);
    case DESC_BIAS_DATA_TYPE: return set(&desc->bias_type, 4);
    case DESC_A_SCALE_POINTER: return set(&desc->a_scale, 8);
    case DESC_B_SCALE_POINTER: return set(&desc->b_scale, 8);
    case DESC_D_SCALE_POINTER: return set(&desc->d_scale, 8);
    case DESC_A_SCALE_MODE: return set(&desc->a_scale_mode, 4);
    case DESC_B_SCALE_MODE: return set(&desc->b_scale_mode, 4);
    case DESC_FAST_ACCUM: return bytes == 1 ? SUCCESS : INVALID_VALUE;
    case DESC_SM_COUNT_TARGET:
    case DESC_POINTER_MODE: return bytes == 4 ? SUCCESS : INVALID_VALUE;
    default: return NOT_SUPPORTED;
    }
}
int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t cols, int64_t ld)
{
    *layout = new Layout{type, ORDER_COLUMN, rows, cols, ld, 0, 1};
    return SUCCESS;
}
int cublasLtMatrixLayoutDestroy(Layout *layout)
{
    delete layout;
    return SUCCESS;
}
int cublasLtMatrixLayoutSetAttribute(Layout *layout, int attribute, const void *value, size_t bytes)
{
    auto set = [&](void *to, size_t n) {
        if (bytes != n) return (int)INVALID_VALUE;
        memcpy(to, value, n);
        return (int)SUCCESS;
    };
    switch (attribute) {
    case LAYOUT_ORDER: return set(&layout->order, 4);
    case LAYOUT_ROWS: return set(&layout->rows, 8);
    case LAYOUT_COLS: return set(&layout->cols, 8);
    case LAYOUT_LD: return set(&layout->ld, 8);
    case LAYOUT_BATCHES: return set(&layout->batches, 4);
    case LAYOUT_STRIDE: return set(&layout->stride, 8);
    default: return NOT_SUPPORTED;
    }
}
int cublasLtMatmulPreferenceCreate(Preference **preference)
{
    *preference = new Preference{0};
    return SUCCESS;
}
int cublasLtMatmulPreferenceDestroy(Preference *preference)
{
    delete preference;
    return SUCCESS;
}
int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value, size_t bytes)
{
    if (attribute == PREFERENCE_WORKSPACE) {
        if (bytes != 8) return INVALID_VALUE;
        memcpy(&preference->workspace_bytes, value, 8);
    }
    return SUCCESS;
}
int cublasLtMatmulAlgoGetHeuristic(Handle *, Desc *desc, Layout *a, Layout *b, Layout *c, Layout *d,
                                   Preference *preference, int wanted, Heuristic *results, int *found)
{
    Product p = {};
    *found = 0;
    if (wanted < 1) return INVALID_VALUE;
    const int status = plan(p, *desc, *a, *b, *c, *d);
    if (status != SUCCESS) return status;
    for (int i = 0; i < 3 && *found < wanted; i++) {
        const size_t need = i ? SLICE_WORKSPACE * (size_t)i : 0;
        if (need > (preference ? preference->workspace_bytes : 0)) continue;
        Heuristic &r = results[(*found)++];
        memset((void *)&r, 0, sizeof r);
        r.algorithm.data[0] = ALGORITHM_MAGIC;
        r.algorithm.data[1] = 1ull << i;
        r.workspace_bytes = need;
        r.waves = 1.0f / (float)(1 << i);
    }
    return SUCCESS;
}
int cublasLtMatmulAlgoCheck(Handle *, Desc *desc, Layout *a, Layout *b, Layout *c, Layout *d,
                            const Algorithm *algorithm, Heuristic *result)
{
    Product p = {};
    const int status = plan(p, *desc, *a, *b, *c, *d);
    if (status != SUCCESS) return status;
    if (algorithm->data[0] != ALGORITHM_MAGIC || algorithm->data[1] > 4) return INVALID_VALUE;
    memset((void *)result, 0, sizeof *result);
    result->algorithm = *algorithm;
    result->workspace_bytes = algorithm->data[1] / 2 * SLICE_WORKSPACE;
    return SUCCESS;
}
/* Without an algorithm the library asks its heuristic; alpha and beta are f32 on the host. */
int cublasLtMatmul(Handle *, Desc *desc, const void *alpha, const void *a, Layout *a_layout, const void *b,
                   Layout *b_layout, const void *beta, const void *c, Layout *c_layout, void *d, Layout *d_layout,
                   const Algorithm *algorithm, void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    Product p = {};
    const int status = plan(p, *desc, *a_layout, *b_layout, *c_layout, *d_layout);
    if (status != SUCCESS) return status;
    if (p.m == 0 || p.n == 0 || p.k == 0 || p.batches == 0) return SUCCESS;
    p.slices = 1;
    if (algorithm) {
        if (algorithm->data[0] != ALGORITHM_MAGIC || !algorithm->data[1] || algorithm->data[1] > 4)
            return NOT_SUPPORTED;
        p.slices = (int)algorithm->data[1];
        if (workspace_bytes < (size_t)(p.slices / 2) * SLICE_WORKSPACE) return INVALID_VALUE;
    }
    if (((uintptr_t)a | (uintptr_t)b | (uintptr_t)d) % 16) return NOT_SUPPORTED;
    p.a.at = (const char *)a;
    p.b.at = (const char *)b;
    p.c.at = (const char *)c;
    p.d.at = (const char *)d;
    memcpy(&p.alpha, alpha, 4);
    memcpy(&p.beta, beta, 4);
    p.device = fk::stream_device(stream);
    fk::Work work;
    work.name = "cublasLtMatmul";
    const size_t need = (size_t)(p.slices / 2) * SLICE_WORKSPACE;
    work.check = [=] {
        check(p);
        if (need) fk::check_range(p.device, workspace, need, "cublasLtMatmul workspace");
    };
    work.fn = [=] {
        if (need) cs::access_write(workspace, need); /* two products must not share it at one time */
        multiply(p);
    };
    return fk::enqueue(stream, std::move(work)) == cudaSuccess ? SUCCESS : EXECUTION_FAILED;
}
const char *cublasLtGetStatusString(int status)
{
    return status == SUCCESS         ? "CUBLAS_STATUS_SUCCESS"
           : status == NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED"
                                     : "CUBLAS_STATUS_ERROR";
}
}
