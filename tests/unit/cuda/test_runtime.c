/* The fake CUDA runtime as the device's C sees it: memory, copies, streams, events. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <cuda_runtime_api.h>

static void test_copies_go_there_and_back(void **state)
{
    (void)state;
    uint32_t in[64], out[64];
    for (uint32_t i = 0; i < 64; i++) in[i] = i * 3 + 1;
    memset(out, 0, sizeof out);
    void *device;
    cudaStream_t stream;
    assert_int_equal(cudaMalloc(&device, sizeof in), cudaSuccess);
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(device, in, sizeof in, cudaMemcpyHostToDevice, stream), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(out, device, sizeof in, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_memory_equal(in, out, sizeof in);
    assert_int_equal(cudaFree(device), cudaSuccess);
    assert_int_equal(cudaStreamDestroy(stream), cudaSuccess);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies_go_there_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
