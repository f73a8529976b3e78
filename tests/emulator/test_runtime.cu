/* The fake CUDA runtime against the manual: memory, copies, events, graphs, errors; and the faults that tests plant. */
#include "kernels/vec.cuh"
#include "tests/emulator/check.h"
#include "tests/emulator/faults.h"
#include <atomic>
#include <thread>

static cudaStream_t stream;

__global__ void k_add(int *to, int v)
{
    to[threadIdx.x] += v;
}

static void test_copies_of_rows()
{
    int host[4][8], back[4][3], *device;
    for (int i = 0; i < 32; i++) host[i / 8][i % 8] = i;
    NEED(cudaMalloc((void **)&device, 4 * 5 * 4));
    NEED(cudaMemset2DAsync(device, 20, 0xff, 20, 4, stream));
    NEED(cudaMemcpy2DAsync(device, 20, host, 32, 12, 4, cudaMemcpyHostToDevice, stream));
    NEED(cudaMemcpy2DAsync(back, 12, device, 20, 12, 4, cudaMemcpyDeviceToHost, stream));
    NEED(cudaStreamSynchronize(stream));
    for (int i = 0; i < 12; i++) CHECK_EQUAL(back[i / 3][i % 3], host[i / 3][i % 3]);
    CHECK_EQUAL(cudaMemcpy2DAsync(device, 8, host, 32, 12, 4, cudaMemcpyHostToDevice, stream), cudaErrorInvalidValue);
    CHECK_EQUAL(cudaGetLastError(), cudaErrorInvalidValue);
    CHECK_EQUAL(cudaGetLastError(), cudaSuccess);
    NEED(cudaFree(device));
}

static void test_mapped_memory()
{
    int *host, *mapped;
    NEED(cudaHostAlloc((void **)&host, 128, cudaHostAllocMapped));
    for (int i = 0; i < 32; i++) host[i] = i;
    NEED(cudaHostGetDevicePointer((void **)&mapped, host, 0));
    NEED(kx::launch(k_add, 1, 32, 0, stream, mapped, 100));
    NEED(cudaStreamSynchronize(stream));
    for (int i = 0; i < 32; i++) CHECK_EQUAL(host[i], 100 + i);
    struct cudaPointerAttributes attributes;
    NEED(cudaPointerGetAttributes(&attributes, host));
    CHECK_EQUAL(attributes.type, cudaMemoryTypeHost);
    NEED(cudaFreeHost(host));
}

static void test_memory_info()
{
    size_t free_before, free_after, total;
    void *p, *q;
    NEED(cudaMemGetInfo(&free_before, &total));
    NEED(cudaMalloc(&p, 1 << 20));
    NEED(cudaMemGetInfo(&free_after, &total));
    CHECK_EQUAL(free_before - free_after, 1 << 20);
    CHECK_EQUAL(cudaMalloc(&q, free_after + 1), cudaErrorMemoryAllocation);
    CHECK_TRUE(q == nullptr);
    NEED(cudaGetLastError() == cudaErrorMemoryAllocation ? 0 : 1);
    NEED(cudaFree(p));
    NEED(cudaMemGetInfo(&free_after, &total));
    CHECK_EQUAL(free_before, free_after);
}

static void test_attributes()
{
    int value, least, greatest, blocks;
    NEED(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0));
    CHECK_TRUE(value > 0);
    NEED(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    CHECK_EQUAL(value, 232448);
    NEED(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    CHECK_TRUE(greatest < least);
    cudaStream_t urgent;
    NEED(cudaStreamCreateWithPriority(&urgent, cudaStreamNonBlocking, greatest - 7));
    NEED(cudaStreamGetPriority(urgent, &value));
    CHECK_EQUAL(value, greatest);
    NEED(cudaStreamDestroy(urgent));
    NEED(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, (const void *)k_add, 1024, 0));
    CHECK_EQUAL(blocks, 2);
    NEED(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, (const void *)k_add, 128, 100 * 1024));
    CHECK_EQUAL(blocks, 2);
    CHECK_EQUAL(cudaDeviceDisablePeerAccess(1), cudaErrorPeerAccessNotEnabled);
    NEED(cudaDeviceEnablePeerAccess(1, 0));
    CHECK_EQUAL(cudaDeviceEnablePeerAccess(1, 0), cudaErrorPeerAccessAlreadyEnabled);
    NEED(cudaDeviceDisablePeerAccess(1));
    (void)cudaGetLastError();
}

static void test_launch_limits()
{
    int *p;
    NEED(cudaMalloc((void **)&p, 4096));
    CHECK_EQUAL(kx::launch(k_add, 1, 1025, 0, stream, p, 1), cudaErrorInvalidConfiguration);
    CHECK_EQUAL(kx::launch(k_add, dim3(1, 65536), 32, 0, stream, p, 1), cudaErrorInvalidConfiguration);
    CHECK_EQUAL(kx::launch(k_add, 0, 32, 0, stream, p, 1), cudaErrorInvalidConfiguration);
    CHECK_EQUAL(kx::launch(k_add, 1, 32, 232449, stream, p, 1), cudaErrorInvalidValue);
    CHECK_EQUAL(kx::launch_cooperative(k_add, 1000, 1024, 0, stream, p, 1), cudaErrorCooperativeLaunchTooLarge);
    (void)cudaGetLastError();
    NEED(cudaFree(p));
}

static void add_one(void *p)
{
    ++*(int *)p;
}

static void test_events_and_host_functions()
{
    cudaEvent_t from, to;
    float ms = -1.0f;
    int called = 0, *p;
    NEED(cudaEventCreate(&from));
    NEED(cudaEventCreate(&to));
    NEED(cudaMalloc((void **)&p, 128));
    NEED(cudaMemsetAsync(p, 0, 128, stream));
    NEED(cudaEventRecord(from, stream));
    NEED(kx::launch(k_add, 1, 32, 0, stream, p, 1));
    NEED(cudaLaunchHostFunc(stream, add_one, &called));
    NEED(cudaEventRecord(to, stream));
    while (cudaEventQuery(to) == cudaErrorNotReady) {
    }
    CHECK_EQUAL(called, 1);
    NEED(cudaEventElapsedTime(&ms, from, to));
    CHECK_TRUE(ms >= 0.0f);
    NEED(cudaEventDestroy(from));
    NEED(cudaEventDestroy(to));
    NEED(cudaFree(p));
}

/* What waits for an event goes on doing so when the event is destroyed. */
static void test_event_destroyed_while_waited_for()
{
    cudaStream_t other;
    cudaEvent_t event;
    int *p, back = 0;
    NEED(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    NEED(cudaMalloc((void **)&p, 128));
    NEED(cudaMemsetAsync(p, 0, 128, stream));
    NEED(kx::launch(k_add, 1, 32, 0, stream, p, 1));
    NEED(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    NEED(cudaEventRecord(event, stream));
    NEED(cudaStreamWaitEvent(other, event, 0));
    NEED(kx::launch(k_add, 1, 32, 0, other, p, 10));
    NEED(cudaEventDestroy(event));
    NEED(cudaMemcpyAsync(&back, p, 4, cudaMemcpyDeviceToHost, other));
    NEED(cudaStreamSynchronize(other));
    CHECK_EQUAL(back, 11);
    NEED(cudaStreamDestroy(other));
    NEED(cudaFree(p));
}

static void test_graphs_take_new_parameters()
{
    int *p, *q, back[2];
    cudaGraph_t graph, second;
    cudaGraphExec_t exec;
    cudaGraphNode_t nodes[4];
    size_t count = 4;
    NEED(cudaMalloc((void **)&p, 128));
    NEED(cudaMalloc((void **)&q, 128));
    NEED(cudaMemsetAsync(p, 0, 128, stream));
    NEED(cudaMemsetAsync(q, 0, 128, stream));
    NEED(cudaStreamSynchronize(stream));
    NEED(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    NEED(kx::launch(k_add, 1, 32, 0, stream, p, 1));
    NEED(cudaStreamEndCapture(stream, &graph));
    NEED(cudaGraphGetNodes(graph, nodes, &count));
    CHECK_EQUAL(count, 1);
    NEED(cudaGraphInstantiate(&exec, graph, 0));
    NEED(cudaGraphLaunch(exec, stream));
    struct cudaKernelNodeParams params;
    NEED(cudaGraphKernelNodeGetParams(nodes[0], &params));
    int ten = 10;
    void *arguments[2] = {&q, &ten};
    params.kernelParams = arguments;
    NEED(cudaGraphExecKernelNodeSetParams(exec, nodes[0], &params));
    NEED(cudaGraphLaunch(exec, stream));
    NEED(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    NEED(kx::launch(k_add, 1, 32, 0, stream, q, 100));
    NEED(cudaStreamEndCapture(stream, &second));
    cudaGraphExecUpdateResultInfo info;
    NEED(cudaGraphExecUpdate(exec, second, &info));
    CHECK_EQUAL(info.result, cudaGraphExecUpdateSuccess);
    NEED(cudaGraphLaunch(exec, stream));
    NEED(cudaMemcpyAsync(&back[0], p, 4, cudaMemcpyDeviceToHost, stream));
    NEED(cudaMemcpyAsync(&back[1], q, 4, cudaMemcpyDeviceToHost, stream));
    NEED(cudaStreamSynchronize(stream));
    CHECK_EQUAL(back[0], 1);
    CHECK_EQUAL(back[1], 110);
    NEED(cudaGraphExecDestroy(exec));
    NEED(cudaGraphDestroy(graph));
    NEED(cudaGraphDestroy(second));
    NEED(cudaFree(p));
    NEED(cudaFree(q));
}

/* ---- planted faults */
static void test_allocations_fail_one_by_one()
{
    void *p[3];
    for (int k = 1; k <= 3; k++) {
        fault_allocation((uint64_t)k, 0);
        for (int i = 0; i < 3; i++) {
            const cudaError_t error = i < 2 ? cudaMalloc(&p[i], 64) : cudaHostAlloc(&p[i], 64, 0);
            CHECK_EQUAL(error, i + 1 == k ? cudaErrorMemoryAllocation : cudaSuccess);
        }
        for (int i = 0; i < 2; i++) NEED(cudaFree(p[i]));
        NEED(cudaFreeHost(p[2]));
        CHECK_EQUAL(faults_struck(), 1);
        faults_clear();
    }
    fault_allocation(1, 1);
    CHECK_EQUAL(cudaMalloc(&p[0], 64), cudaErrorMemoryAllocation);
    CHECK_EQUAL(cudaMalloc(&p[0], 64), cudaErrorMemoryAllocation);
    faults_clear();
    (void)cudaGetLastError();
}

static void test_launch_is_refused_once()
{
    int *p;
    NEED(cudaMalloc((void **)&p, 128));
    fault_launch(cudaErrorLaunchFailure, 2);
    CHECK_EQUAL(kx::launch(k_add, 1, 32, 0, stream, p, 1), cudaSuccess);
    CHECK_EQUAL(kx::launch(k_add, 1, 32, 0, stream, p, 1), cudaErrorLaunchFailure);
    CHECK_EQUAL(kx::launch(k_add, 1, 32, 0, stream, p, 1), cudaSuccess);
    CHECK_EQUAL(cudaStreamSynchronize(stream), cudaSuccess);
    faults_clear();
    (void)cudaGetLastError();
    NEED(cudaFree(p));
}

/* A stream that hangs: queries say so, another thread goes on, and the fault's end lets it go. */
static void test_kernel_hangs_until_cleared()
{
    int *p, back = 0;
    cudaEvent_t event;
    NEED(cudaMalloc((void **)&p, 128));
    NEED(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    NEED(cudaMemsetAsync(p, 0, 128, stream));
    NEED(cudaStreamSynchronize(stream));
    fault_hang_kernel(2);
    for (int i = 0; i < 2; i++) NEED(kx::launch(k_add, 1, 32, 0, stream, p, 1));
    NEED(cudaEventRecord(event, stream));
    for (int i = 0; i < 20; i++) CHECK_EQUAL(cudaEventQuery(event), cudaErrorNotReady);
    std::atomic<bool> ended{false};
    std::thread waiter([&] {
        NEED(cudaEventSynchronize(event));
        ended = true;
    });
    CHECK_TRUE(!ended);
    CHECK_EQUAL(faults_struck(), 1);
    faults_clear();
    waiter.join();
    NEED(cudaMemcpyAsync(&back, p, 4, cudaMemcpyDeviceToHost, stream));
    NEED(cudaStreamSynchronize(stream));
    CHECK_EQUAL(back, 2);
    NEED(cudaEventDestroy(event));
    NEED(cudaFree(p));
}

/* The device is lost, everything on it says why; the other one lives; a reset brings it back. */
static void test_sticky_error()
{
    int *p, device_count;
    void *q;
    cudaStream_t own;
    NEED(cudaSetDevice(1));
    NEED(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking));
    NEED(cudaMalloc((void **)&p, 128));
    NEED(cudaMemsetAsync(p, 0, 128, own));
    NEED(cudaStreamSynchronize(own));
    fault_sticky(cudaErrorIllegalAddress, 2);
    NEED(kx::launch(k_add, 1, 32, 0, own, p, 1));
    NEED(cudaStreamSynchronize(own));
    const cudaError_t launched = kx::launch(k_add, 1, 32, 0, own, p, 1); /* in eager mode it has struck already */
    CHECK_TRUE(launched == cudaSuccess || launched == cudaErrorIllegalAddress);
    CHECK_EQUAL(cudaStreamSynchronize(own), cudaErrorIllegalAddress);
    CHECK_EQUAL(cudaMalloc(&q, 64), cudaErrorIllegalAddress);
    CHECK_EQUAL(cudaMemsetAsync(p, 0, 128, own), cudaErrorIllegalAddress);
    CHECK_EQUAL(cudaGetLastError(), cudaErrorIllegalAddress);
    CHECK_EQUAL(cudaGetLastError(), cudaErrorIllegalAddress);
    CHECK_EQUAL(cudaGetDeviceCount(&device_count), cudaSuccess);
    NEED(cudaSetDevice(0));
    NEED(cudaMalloc(&q, 64));
    NEED(cudaFree(q));
    CHECK_EQUAL(cudaSetDevice(1), cudaErrorIllegalAddress);
    NEED(cudaDeviceReset());
    NEED(cudaMalloc(&q, 64));
    NEED(cudaFree(q));
    NEED(cudaSetDevice(0));
    faults_clear();
}

static void test_no_device()
{
    int count = 7;
    fault_no_device(cudaErrorInsufficientDriver);
    CHECK_EQUAL(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
    CHECK_EQUAL(count, 0);
    faults_clear();
    NEED(cudaGetDeviceCount(&count));
    CHECK_TRUE(count >= 2);
    (void)cudaGetLastError();
}

__global__ void k_wait_and_set(unsigned *wait_for, unsigned *set)
{
    while (wait_for && kx::load_acquire_system(wait_for) == 0) __nanosleep(20);
    if (set) kx::store_release_system(set, 1);
}

/* Kernels of three streams spin for each other's: what runs beside a kernel outlives it and waits for what follows it
   in its stream; right behind it, or (by_event) behind an event of it in a stream of its own. */
static void test_streams_go_on_under_spinning_kernels(bool by_event)
{
    cudaStream_t a, b, c, follows;
    cudaEvent_t event;
    unsigned *flags;
    NEED(cudaMalloc((void **)&flags, 2 * sizeof *flags));
    NEED(cudaMemset(flags, 0, 2 * sizeof *flags));
    NEED(cudaDeviceSynchronize());
    for (cudaStream_t *s : {&a, &b, &c, &follows}) NEED(cudaStreamCreateWithFlags(s, cudaStreamNonBlocking));
    NEED(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    kx::launch_cooperative(k_wait_and_set, dim3(1), dim3(1), 0, a, flags, (unsigned *)nullptr);
    NEED(cudaEventRecord(event, a));
    if (by_event) NEED(cudaStreamWaitEvent(follows, event, 0));
    kx::launch_cooperative(k_wait_and_set, dim3(1), dim3(1), 0, by_event ? follows : a, (unsigned *)nullptr, flags + 1);
    kx::launch_cooperative(k_wait_and_set, dim3(1), dim3(1), 0, b, flags + 1, (unsigned *)nullptr);
    kx::launch_cooperative(k_wait_and_set, dim3(1), dim3(1), 0, c, (unsigned *)nullptr, flags);
    NEED(cudaStreamSynchronize(by_event ? follows : a));
    for (cudaStream_t s : {a, b, c, follows}) NEED(cudaStreamDestroy(s));
    NEED(cudaEventDestroy(event));
    NEED(cudaFree(flags));
}

int main()
{
    NEED(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    test_copies_of_rows();
    test_mapped_memory();
    test_memory_info();
    test_attributes();
    test_launch_limits();
    test_events_and_host_functions();
    test_event_destroyed_while_waited_for();
    test_streams_go_on_under_spinning_kernels(false);
    test_streams_go_on_under_spinning_kernels(true);
    test_graphs_take_new_parameters();
    test_allocations_fail_one_by_one();
    test_launch_is_refused_once();
    test_kernel_hangs_until_cleared();
    test_sticky_error();
    test_no_device();
    return checks_failed();
}
