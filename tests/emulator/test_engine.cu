/* The emulator's own promises: kernels of two devices wait for each other, guard zones, counts that are known by hand.
 */
#include "kernels/vec.cuh"
#include "tests/emulator/check.h"
#include "tests/emulator/counters.h"
#include <thread>

/* ---- joint launches: each rank adds its peer's numbers to its own, as a one-shot all-reduce does */
__global__ void k_exchange(int *mine, int *inbox, int *peer_inbox, uint32_t *flag, uint32_t *peer_flag, uint32_t turn)
{
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    peer_inbox[i] = mine[i];
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        kx::store_release_system(&peer_flag[blockIdx.x], turn);
        while (kx::load_acquire_system(&flag[blockIdx.x]) != turn) __nanosleep(50);
        __threadfence_system();
    }
    __syncthreads();
    mine[i] += inbox[i];
}

struct Rank {
    int *mine, *inbox;
    uint32_t *flag;
    cudaStream_t stream;
};
enum { BLOCKS = 3, THREADS = 64, N = BLOCKS * THREADS };

static void rank_create(Rank *r, int device, int peer)
{
    int first[N];
    NEED(cudaSetDevice(device));
    const cudaError_t error = cudaDeviceEnablePeerAccess(peer, 0);
    if (error != cudaErrorPeerAccessAlreadyEnabled) NEED(error);
    NEED(cudaMalloc((void **)&r->mine, sizeof first));
    NEED(cudaMalloc((void **)&r->inbox, sizeof first));
    NEED(cudaMalloc((void **)&r->flag, BLOCKS * 4));
    NEED(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking));
    for (int i = 0; i < N; i++) first[i] = (device + 1) * 1000 + i;
    NEED(cudaMemcpyAsync(r->mine, first, sizeof first, cudaMemcpyHostToDevice, r->stream));
    NEED(cudaMemsetAsync(r->flag, 0, BLOCKS * 4, r->stream));
    NEED(cudaStreamSynchronize(r->stream));
}

static void rank_launch(Rank *r, Rank *peer, uint32_t turn)
{
    NEED(kx::launch_cooperative(k_exchange, BLOCKS, THREADS, 0, r->stream, r->mine, r->inbox, peer->inbox, r->flag,
                                peer->flag, turn));
}

static void rank_check(Rank *r)
{
    int got[N];
    NEED(cudaMemcpyAsync(got, r->mine, sizeof got, cudaMemcpyDeviceToHost, r->stream));
    NEED(cudaStreamSynchronize(r->stream));
    int wrong = 0;
    for (int i = 0; i < N; i++) wrong += got[i] != 3000 + 2 * i;
    CHECK_EQUAL(wrong, 0);
}

static void test_joint_from_one_thread()
{
    Rank ranks[2];
    for (int d = 0; d < 2; d++) rank_create(&ranks[d], d, 1 - d);
    for (int d = 0; d < 2; d++) {
        NEED(cudaSetDevice(d));
        rank_launch(&ranks[d], &ranks[1 - d], 1);
    }
    for (int d = 0; d < 2; d++) {
        NEED(cudaSetDevice(d));
        rank_check(&ranks[d]);
    }
}

static void test_joint_from_two_threads()
{
    Rank ranks[2];
    for (int d = 0; d < 2; d++) rank_create(&ranks[d], d, 1 - d);
    std::thread second([&] {
        NEED(cudaSetDevice(1));
        rank_launch(&ranks[1], &ranks[0], 1);
        rank_check(&ranks[1]);
    });
    NEED(cudaSetDevice(0));
    rank_launch(&ranks[0], &ranks[1], 1);
    rank_check(&ranks[0]);
    second.join();
}

/* ---- counts */
__global__ void k_count(uint4 *out, const uint4 *in, const uint16_t *scattered)
{
    KX_SHARED(uint4, tile, [32]);
    KX_SHARED(uint32_t, column, [32][32]);
    const int lane = kx::lane();
    const uint4 v = kx::load_once(in + lane);           /* 512 bytes in 16 sectors */
    const uint4 w = kx::load(in + 32 + (lane & 1));     /* 2 vectors, one sector */
    const uint16_t x = kx::load(scattered + lane * 64); /* a sector a lane */
    kx::cp_async16(&tile[lane], in + 64 + lane);        /* 16 sectors; shared: 4 wavefronts */
    kx::cp_async_commit();
    kx::cp_async_wait<0>();
    kx::store(&column[lane][0], 1u); /* one bank: 32 wavefronts, 31 conflicts */
    __syncwarp();
    kx::store(out + blockIdx.x * 32 + lane,
              make_uint4(v.x + x, v.y, w.x, tile[31 - lane].x + column[31 - lane][0])); /* 16 sectors */
}

static void test_counts()
{
    uint4 *in, *out;
    uint16_t *scattered;
    cudaStream_t stream;
    NEED(cudaSetDevice(0));
    NEED(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    NEED(cudaMalloc((void **)&in, 96 * 16));
    NEED(cudaMalloc((void **)&out, 64 * 16));
    NEED(cudaMalloc((void **)&scattered, 32 * 128));
    NEED(cudaMemsetAsync(in, 1, 96 * 16, stream));
    NEED(cudaMemsetAsync(scattered, 1, 32 * 128, stream));
    counters_start();
    counters_watch("in", in, 96 * 16);
    NEED(kx::launch(k_count, 2, 32, 0, stream, out, (const uint4 *)in, (const uint16_t *)scattered));
    NEED(cudaStreamSynchronize(stream));
    counters_stop();
    struct kernel_counts k;
    struct range_counts r;
    CHECK_TRUE(counters_kernel("k_count", &k));
    CHECK_TRUE(!counters_kernel("nothing", &k));
    CHECK_TRUE(counters_kernel("k_count", &k));
    CHECK_TRUE(counters_range("in", &r));
    CHECK_EQUAL(k.launches, 1);
    CHECK_EQUAL(k.read_sectors, 2 * (16 + 1 + 32 + 16));
    CHECK_EQUAL(k.read_bytes, 2 * (512 + 512 + 64 + 512));
    CHECK_EQUAL(k.read_requests, 2 * 4);
    CHECK_EQUAL(k.written_sectors, 2 * 16);
    CHECK_EQUAL(k.shared_wavefronts, 2 * (4 + 32));
    CHECK_EQUAL(k.shared_conflicts, 2 * 31);
    CHECK_EQUAL(r.read_sectors, 2 * 33);
    CHECK_EQUAL(r.sectors_touched, 33);
    CHECK_EQUAL(r.written_sectors, 0);
}

/* A strided loop whose lanes leave at different turns: turns, not lanes, make the requests. */
__global__ void k_count_loop(float *out, const float *in, int n)
{
    float sum = 0.0f;
    for (int i = kx::lane(); i < n; i += 32) sum += kx::load(in + i);
    kx::store(out + kx::lane(), sum);
}

static void test_counts_of_loops()
{
    float *in, *out;
    cudaStream_t stream;
    NEED(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    NEED(cudaMalloc((void **)&in, 1000 * 4));
    NEED(cudaMalloc((void **)&out, 32 * 4));
    NEED(cudaMemsetAsync(in, 0, 1000 * 4, stream));
    counters_start();
    NEED(kx::launch(k_count_loop, 1, 32, 0, stream, out, (const float *)in, 1000));
    NEED(cudaStreamSynchronize(stream));
    counters_stop();
    struct kernel_counts k;
    CHECK_TRUE(counters_kernel("k_count_loop", &k));
    CHECK_EQUAL(k.read_sectors, 125);
    CHECK_EQUAL(k.read_requests, 32);
    CHECK_EQUAL(k.read_bytes, 4000);
    CHECK_EQUAL(k.written_sectors, 4);
}

/* ---- dynamic shared memory in parts */
__global__ void k_carve(int *out)
{
    KX_SHARED_DYN(pool);
    int *a = kx::carve<int>(pool, 33);
    uint4 *b = kx::carve<uint4>(pool, 8);
    float *c = kx::carve<float>(pool, 5);
    const int t = (int)threadIdx.x;
    if (t < 33) a[t] = t;
    if (t < 8) b[t] = make_uint4(100u + (unsigned)t, 0, 0, 0);
    if (t < 5) c[t] = 0.5f;
    __syncthreads();
    out[t] = (t < 33 ? a[32 - t] : 0) + (t < 8 ? (int)b[7 - t].x : 0) + (t < 5 ? (int)(2 * c[4 - t]) : 0);
}

static void test_carve()
{
    const size_t bytes = kx::carve_bytes<int>(33) + kx::carve_bytes<uint4>(8) + kx::carve_bytes<float>(5);
    int *out, got[64], wrong = 0;
    cudaStream_t stream;
    NEED(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    NEED(cudaMalloc((void **)&out, sizeof got));
    NEED(kx::launch(k_carve, 1, 64, bytes, stream, out));
    NEED(cudaMemcpyAsync(got, out, sizeof got, cudaMemcpyDeviceToHost, stream));
    NEED(cudaStreamSynchronize(stream));
    for (int t = 0; t < 64; t++) wrong += got[t] != (t < 33 ? 32 - t : 0) + (t < 8 ? 107 - t : 0) + (t < 5 ? 1 : 0);
    CHECK_EQUAL(wrong, 0);
    CHECK_EQUAL(bytes, 144 + 128 + 32);
}

int main()
{
    test_joint_from_one_thread();
    test_joint_from_two_threads();
    test_counts();
    test_counts_of_loops();
    test_carve();
    return checks_failed();
}
