/* The fakes of cuBLASLt and NCCL: products against double sums for every type and layout, collectives against formulas,
 * communicators that fail, hang and are aborted. */
#include "kernels/vec.cuh"
#include "tests/emulator/check.h"
#include "tests/emulator/faults.h"
#include <cmath>
#include <thread>
#include <vector>

extern "C" {
struct Handle;
struct Desc;
struct Layout;
struct Preference;
struct Comm;
struct Algorithm {
    uint64_t data[8];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};
struct UniqueId {
    char bytes[128];
};
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
};
int cublasLtCreate(Handle **);
int cublasLtDestroy(Handle *);
int cublasLtMatmulDescCreate(Desc **, int, int);
int cublasLtMatmulDescDestroy(Desc *);
int cublasLtMatmulDescSetAttribute(Desc *, int, const void *, size_t);
int cublasLtMatrixLayoutCreate(Layout **, int, uint64_t, uint64_t, int64_t);
int cublasLtMatrixLayoutDestroy(Layout *);
int cublasLtMatrixLayoutSetAttribute(Layout *, int, const void *, size_t);
int cublasLtMatmulPreferenceCreate(Preference **);
int cublasLtMatmulPreferenceDestroy(Preference *);
int cublasLtMatmulPreferenceSetAttribute(Preference *, int, const void *, size_t);
int cublasLtMatmulAlgoGetHeuristic(Handle *, Desc *, Layout *, Layout *, Layout *, Layout *, Preference *, int,
                                   Heuristic *, int *);
int cublasLtMatmul(Handle *, Desc *, const void *, const void *, Layout *, const void *, Layout *, const void *,
                   const void *, Layout *, void *, Layout *, const Algorithm *, void *, size_t, cudaStream_t);
int ncclGetUniqueId(UniqueId *);
int ncclCommInitRankConfig(Comm **, int, UniqueId, int, const Config *);
int ncclCommGetAsyncError(Comm *, int *);
int ncclCommAbort(Comm *);
int ncclGroupStart(void);
int ncclGroupEnd(void);
int ncclAllReduce(const void *, void *, size_t, int, int, Comm *, cudaStream_t);
int ncclAllGather(const void *, void *, size_t, int, Comm *, cudaStream_t);
int ncclReduceScatter(const void *, void *, size_t, int, int, Comm *, cudaStream_t);
int ncclBroadcast(const void *, void *, size_t, int, int, Comm *, cudaStream_t);
int ncclSend(const void *, size_t, int, int, Comm *, cudaStream_t);
int ncclRecv(void *, size_t, int, int, Comm *, cudaStream_t);
}
enum { F32 = 0, F16 = 2, BF16 = 14, E4M3 = 28, E5M2 = 29 };
enum { NCCL_F32 = 7, NCCL_BF16 = 9, IN_PROGRESS = 7 };

static uint32_t seed = 1;
static float number()
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(int)(seed >> 16 & 63) / 16.0f - 2.0f; /* exact in every type but E5M2 */
}

/* ---- a matrix on the device: what was stored, as doubles too */
static size_t bytes_of(int type)
{
    return type == F32 ? 4 : type == F16 || type == BF16 ? 2 : 1;
}
static double put(void *p, int type, size_t i, float v)
{
    switch (type) {
    case F32: ((float *)p)[i] = v; return v;
    case F16: ((uint16_t *)p)[i] = kx::f32_to_f16(v); return kx::f16_to_f32(((uint16_t *)p)[i]);
    case BF16: ((uint16_t *)p)[i] = kx::f32_to_bf16(v); return kx::bf16_to_f32(((uint16_t *)p)[i]);
    case E4M3: ((uint8_t *)p)[i] = kx::f32_to_e4m3(v); return kx::e4m3_to_f32(((uint8_t *)p)[i]);
    default: {
        float f[4];
        ((uint8_t *)p)[i] = (uint8_t)kx::e5m2x4_pack(v, 0, 0, 0);
        kx::e5m2x4_unpack(((uint8_t *)p)[i], f);
        return f[0];
    }
    }
}
static double get(const void *p, int type, size_t i)
{
    return type == F32   ? ((const float *)p)[i]
           : type == F16 ? kx::f16_to_f32(((const uint16_t *)p)[i])
                         : kx::bf16_to_f32(((const uint16_t *)p)[i]);
}
struct Matrix {
    std::vector<char> host;
    std::vector<double> values;
    void *device;
    Matrix(int type, size_t n, cudaStream_t stream) : host(n * bytes_of(type)), values(n)
    {
        for (size_t i = 0; i < n; i++) values[i] = put(host.data(), type, i, number());
        NEED(cudaMalloc(&device, host.size() + 16));
        NEED(cudaMemcpyAsync(device, host.data(), host.size(), cudaMemcpyHostToDevice, stream));
    }
    ~Matrix() { NEED(cudaFree(device)); }
};

struct Shape {
    int type, out_type;
    size_t m, n, k;
    int batches;
    bool bias, scales, row_major;
};

/* D = A^T B: weights (K x M, ld K), tokens (K x N), as the device calls it; row_major takes A as M x K rows instead. */
static void matmul_case(Handle *handle, const Shape &s, int algorithm, cudaStream_t stream)
{
    Matrix a(s.type, s.m * s.k * (size_t)s.batches, stream), b(s.type, s.n * s.k * (size_t)s.batches, stream);
    Matrix d(s.out_type, s.m * s.n * (size_t)s.batches, stream), bias(s.out_type, s.m, stream), scales(F32, 2, stream);
    Desc *desc;
    Layout *la, *lb, *ld;
    Preference *preference;
    Heuristic found[4];
    void *workspace;
    const int t = 1, n = 0, epilogue = 4, row = 1, compute = 68;
    int count = 0;
    const uint64_t workspace_bytes = 4 << 20;
    const int64_t strides[3] = {(int64_t)(s.m * s.k), (int64_t)(s.n * s.k), (int64_t)(s.m * s.n)};
    const float *scale[2] = {(const float *)scales.device, (const float *)scales.device + 1};
    const float alpha = 0.5f, beta = 0.0f;
    NEED(cudaMalloc(&workspace, workspace_bytes));
    NEED(cublasLtMatmulDescCreate(&desc, compute, F32));
    NEED(cublasLtMatmulDescSetAttribute(desc, 3, s.row_major ? &n : &t, 4));
    NEED(cublasLtMatrixLayoutCreate(&la, s.type, s.row_major ? s.m : s.k, s.row_major ? s.k : s.m, (int64_t)s.k));
    if (s.row_major) NEED(cublasLtMatrixLayoutSetAttribute(la, 1, &row, 4));
    NEED(cublasLtMatrixLayoutCreate(&lb, s.type, s.k, s.n, (int64_t)s.k));
    NEED(cublasLtMatrixLayoutCreate(&ld, s.out_type, s.m, s.n, (int64_t)s.m));
    Layout *layouts[3] = {la, lb, ld};
    for (int i = 0; i < 3; i++) {
        NEED(cublasLtMatrixLayoutSetAttribute(layouts[i], 5, &s.batches, 4));
        NEED(cublasLtMatrixLayoutSetAttribute(layouts[i], 6, &strides[i], 8));
    }
    if (s.bias) {
        NEED(cublasLtMatmulDescSetAttribute(desc, 7, &epilogue, 4));
        NEED(cublasLtMatmulDescSetAttribute(desc, 8, &bias.device, 8));
    }
    if (s.scales)
        for (int i = 0; i < 2; i++) NEED(cublasLtMatmulDescSetAttribute(desc, 17 + i, &scale[i], 8));
    NEED(cublasLtMatmulPreferenceCreate(&preference));
    NEED(cublasLtMatmulPreferenceSetAttribute(preference, 1, &workspace_bytes, 8));
    NEED(cublasLtMatmulAlgoGetHeuristic(handle, desc, la, lb, ld, ld, preference, 4, found, &count));
    CHECK_EQUAL(count, 3);
    NEED(cublasLtMatmul(handle, desc, &alpha, a.device, la, b.device, lb, &beta, d.device, ld, d.device, ld,
                        &found[algorithm].algorithm, workspace, found[algorithm].workspace_bytes, stream));
    NEED(cudaMemcpyAsync(d.host.data(), d.device, d.host.size(), cudaMemcpyDeviceToHost, stream));
    NEED(cudaStreamSynchronize(stream));
    double worst = 0.0;
    for (size_t z = 0; z < (size_t)s.batches; z++)
        for (size_t j = 0; j < s.n; j++)
            for (size_t i = 0; i < s.m; i++) {
                double want = 0.0;
                for (size_t k = 0; k < s.k; k++)
                    want += a.values[z * s.m * s.k + i * s.k + k] * b.values[z * s.n * s.k + j * s.k + k];
                want *= 0.5 * (s.scales ? scales.values[0] * scales.values[1] : 1.0);
                if (s.bias) want += bias.values[i];
                const double got = get(d.host.data(), s.out_type, z * s.m * s.n + j * s.m + i);
                worst = fmax(worst, fabs(got - want) / (1.0 + fabs(want)));
            }
    CHECK_TRUE(worst < (s.out_type == F32 ? 1e-5 : s.out_type == F16 ? 1e-3 : 5e-3));
    if (count > 2) /* too small a workspace, and an algorithm that no query gave */
        CHECK_TRUE(cublasLtMatmul(handle, desc, &alpha, a.device, la, b.device, lb, &beta, d.device, ld, d.device, ld,
                                  &found[2].algorithm, workspace, 16, stream) != 0);
    memset(&found[0].algorithm, 1, sizeof found[0].algorithm);
    CHECK_TRUE(cublasLtMatmul(handle, desc, &alpha, a.device, la, b.device, lb, &beta, d.device, ld, d.device, ld,
                              &found[0].algorithm, workspace, workspace_bytes, stream) != 0);
    for (Layout *l : layouts) NEED(cublasLtMatrixLayoutDestroy(l));
    NEED(cublasLtMatmulPreferenceDestroy(preference));
    NEED(cublasLtMatmulDescDestroy(desc));
    NEED(cudaFree(workspace));
}

static void test_products()
{
    static const Shape shapes[] = {
        {BF16, BF16, 48, 1, 64, 1, false, false, false},  {BF16, F32, 17, 5, 37, 1, true, false, false},
        {F16, F16, 33, 9, 129, 1, false, false, true},    {F32, F32, 5, 6, 7, 3, false, false, false},
        {E4M3, BF16, 32, 3, 48, 1, false, true, false},   {E5M2, F32, 16, 16, 16, 2, true, true, false},
        {BF16, BF16, 128, 31, 576, 1, true, false, true},
    };
    Handle *handle;
    cudaStream_t stream;
    NEED(cublasLtCreate(&handle));
    NEED(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (const Shape &s : shapes)
        for (int algorithm = 0; algorithm < 3; algorithm++) matmul_case(handle, s, algorithm, stream);
    NEED(cublasLtDestroy(handle));
}

/* ---- collectives */
struct Rank {
    Comm *comm;
    cudaStream_t stream;
    float *x, *y, host[8];
};
enum { RANKS = 2, N = 8 };

static void wait_ready(Comm *comm)
{
    int error = IN_PROGRESS;
    while (error == IN_PROGRESS) {
        NEED(ncclCommGetAsyncError(comm, &error));
        std::this_thread::yield();
    }
    CHECK_EQUAL(error, 0);
}

static void rank_create(Rank *r, int rank, UniqueId id, bool wait)
{
    const Config config = {sizeof config, 0xcafebeef, 21400, 0};
    NEED(cudaSetDevice(rank));
    NEED(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking));
    NEED(cudaMalloc((void **)&r->x, sizeof r->host));
    NEED(cudaMalloc((void **)&r->y, RANKS * sizeof r->host));
    for (int i = 0; i < N; i++) r->host[i] = (float)(rank * 100 + i);
    NEED(cudaMemcpyAsync(r->x, r->host, sizeof r->host, cudaMemcpyHostToDevice, r->stream));
    CHECK_EQUAL(ncclCommInitRankConfig(&r->comm, RANKS, id, rank, &config), IN_PROGRESS);
    if (wait) wait_ready(r->comm);
}

static void check_floats(Rank *r, const float *device, int n, double (*want)(int rank, int i), int rank)
{
    float got[RANKS * N];
    NEED(cudaMemcpyAsync(got, device, (size_t)n * 4, cudaMemcpyDeviceToHost, r->stream));
    NEED(cudaStreamSynchronize(r->stream));
    int wrong = 0;
    for (int i = 0; i < n; i++) wrong += (double)got[i] != want(rank, i);
    CHECK_EQUAL(wrong, 0);
}

static void rank_collectives(int rank, UniqueId id)
{
    Rank r;
    rank_create(&r, rank, id, true);
    NEED(ncclAllReduce(r.x, r.y, N, NCCL_F32, 0, r.comm, r.stream));
    check_floats(
        &r, r.y, N, [](int, int i) { return 100.0 + 2 * i; }, rank);
    NEED(ncclAllGather(r.x, r.y, N, NCCL_F32, r.comm, r.stream));
    check_floats(
        &r, r.y, RANKS * N, [](int, int i) { return i / N * 100.0 + i % N; }, rank);
    NEED(ncclReduceScatter(r.x, r.y, N / 2, NCCL_F32, 2, r.comm, r.stream));
    check_floats(
        &r, r.y, N / 2, [](int k, int i) { return 100.0 + k * N / 2 + i; }, rank);
    NEED(ncclBroadcast(r.x, r.y, N, NCCL_F32, 1, r.comm, r.stream));
    check_floats(
        &r, r.y, N, [](int, int i) { return 100.0 + i; }, rank);
    NEED(ncclGroupStart());
    NEED(ncclSend(r.x, N, NCCL_F32, 1 - rank, r.comm, r.stream));
    NEED(ncclRecv(r.y, N, NCCL_F32, 1 - rank, r.comm, r.stream));
    NEED(ncclGroupEnd());
    check_floats(
        &r, r.y, N, [](int k, int i) { return (1 - k) * 100.0 + i; }, rank);
}

static void both(void (*body)(int, UniqueId))
{
    UniqueId id;
    NEED(ncclGetUniqueId(&id));
    std::thread second(body, 1, id);
    body(0, id);
    second.join();
}

/* The second rank's collective is posted but not driven when the first rank's thread completes it for both: what the
   second rank's stream did before is ordered before the collective all the same. */
static void test_completed_by_the_peer()
{
    UniqueId id;
    Rank r[RANKS];
    NEED(ncclGetUniqueId(&id));
    for (int k = 0; k < RANKS; k++) rank_create(&r[k], k, id, false);
    for (int k = RANKS - 1; k >= 0; k--) {
        wait_ready(r[k].comm);
        NEED(cudaSetDevice(k));
        NEED(ncclAllReduce(r[k].x, r[k].y, N, NCCL_F32, 0, r[k].comm, r[k].stream));
    }
    for (int k = 0; k < RANKS; k++) {
        NEED(cudaSetDevice(k));
        check_floats(
            &r[k], r[k].y, N, [](int, int i) { return 100.0 + 2 * i; }, k);
    }
}

__global__ void k_nothing() {}

/* A device breaks with its side of a collective posted: the peer gets nothing, and waits until it aborts. */
static void test_broken_beside_a_collective()
{
    UniqueId id;
    Rank r[RANKS];
    cudaEvent_t event;
    cudaStream_t other;
    NEED(ncclGetUniqueId(&id));
    for (int k = 0; k < RANKS; k++) rank_create(&r[k], k, id, false);
    for (int k = 0; k < RANKS; k++) wait_ready(r[k].comm);
    NEED(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    NEED(ncclAllReduce(r[1].x, r[1].y, N, NCCL_F32, 0, r[1].comm, r[1].stream));
    fault_sticky(cudaErrorIllegalAddress, 1);
    (void)kx::launch(k_nothing, 1, 32, 0, other);
    CHECK_EQUAL(cudaStreamSynchronize(other), cudaErrorIllegalAddress);
    CHECK_EQUAL(cudaStreamSynchronize(r[1].stream), cudaErrorIllegalAddress);
    NEED(cudaSetDevice(0));
    NEED(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    NEED(ncclAllReduce(r[0].x, r[0].y, N, NCCL_F32, 0, r[0].comm, r[0].stream));
    NEED(cudaEventRecord(event, r[0].stream));
    for (int i = 0; i < 5; i++) CHECK_EQUAL(cudaEventQuery(event), cudaErrorNotReady);
    for (int k = 0; k < RANKS; k++) NEED(ncclCommAbort(r[k].comm));
    NEED(cudaEventSynchronize(event));
    NEED(cudaEventDestroy(event));
    CHECK_EQUAL(cudaSetDevice(1), cudaErrorIllegalAddress);
    NEED(cudaDeviceReset());
    faults_clear();
}

/* One rank's collective never comes: both streams wait until both have aborted. */
static void rank_hangs(int rank, UniqueId id)
{
    Rank r;
    cudaEvent_t event;
    rank_create(&r, rank, id, true);
    NEED(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    NEED(ncclAllReduce(r.x, r.y, N, NCCL_F32, 0, r.comm, r.stream));
    NEED(cudaEventRecord(event, r.stream));
    for (int i = 0; i < 5; i++) CHECK_EQUAL(cudaEventQuery(event), cudaErrorNotReady);
    std::thread watchdog([&] { NEED(ncclCommAbort(r.comm)); });
    NEED(cudaEventSynchronize(event));
    watchdog.join();
    NEED(cudaEventDestroy(event));
    CHECK_TRUE(ncclAllReduce(r.x, r.y, N, NCCL_F32, 0, r.comm, r.stream) != 0);
}

static void test_failures()
{
    fault_hang_collective(1);
    both(rank_hangs);
    faults_clear();
    UniqueId id;
    Rank r;
    int error = 0;
    NEED(ncclGetUniqueId(&id)); /* a peer that never comes: not ready, then aborted */
    rank_create(&r, 0, id, false);
    NEED(ncclCommGetAsyncError(r.comm, &error));
    CHECK_EQUAL(error, IN_PROGRESS);
    CHECK_TRUE(ncclAllReduce(r.x, r.y, N, NCCL_F32, 0, r.comm, r.stream) != 0);
    NEED(ncclCommAbort(r.comm));
}

static void rank_errors(int rank, UniqueId id)
{
    Rank r;
    int error = 0;
    rank_create(&r, rank, id, true);
    if (rank == 0) {
        fault_nccl_call(2, 1);
        CHECK_EQUAL(ncclAllReduce(r.x, r.y, N, NCCL_F32, 0, r.comm, r.stream), 2);
        fault_nccl_async(6, 1);
        NEED(ncclAllReduce(r.x, r.y, N, NCCL_F32, 0, r.comm, r.stream));
        NEED(ncclCommGetAsyncError(r.comm, &error));
        CHECK_EQUAL(error, 6);
        NEED(ncclCommAbort(r.comm));
        NEED(cudaStreamSynchronize(r.stream));
    }
}

int main()
{
    test_products();
    both(rank_collectives);
    test_completed_by_the_peer();
    test_broken_beside_a_collective();
    test_failures();
    both(rank_errors);
    faults_clear();
    return checks_failed();
}
