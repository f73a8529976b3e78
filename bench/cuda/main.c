/* Speed of the CUDA device on this machine's first GPU: kernels alone, then decode of whole random models.
 *
 *   bench_cuda [--out FILE.json] [--shape llama3-8b|llama3.2-1b|tiny] [--weights bf16|fp8] [--eager] [--quick]
 *
 * Prints tables and one JSON object. --quick runs tiny shapes, which shows that the program works and measures nothing:
 * tests run it so under tests/emulator. */
#include "bench/cuda/bench_cuda.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    const char *out = NULL, *shape = NULL, *weights = "bf16";
    struct bench_cuda bench = {0};
    bool eager = false;
    for (int i = 1; i < argc; i++) {
        bool has_value = i + 1 < argc;
        if (!strcmp(argv[i], "--quick"))
            bench.quick = true;
        else if (!strcmp(argv[i], "--eager"))
            eager = true;
        else if (!strcmp(argv[i], "--out") && has_value)
            out = argv[++i];
        else if (!strcmp(argv[i], "--shape") && has_value)
            shape = argv[++i];
        else if (!strcmp(argv[i], "--weights") && has_value)
            weights = argv[++i];
        else
            return fprintf(stderr, "bench_cuda: unknown option %s\n", argv[i]), 2;
    }
    struct cudaDeviceProp properties;
    int driver = 0, runtime = 0, sms = 0;
    if (!bench_cuda_ok(cudaSetDevice(0), "the first GPU") ||
        !bench_cuda_ok(cudaGetDeviceProperties(&properties, 0), "the first GPU") ||
        !bench_cuda_ok(cudaDriverGetVersion(&driver), "driver") ||
        !bench_cuda_ok(cudaRuntimeGetVersion(&runtime), "runtime") ||
        !bench_cuda_ok(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0), "the first GPU"))
        return 1;
    bench.sms = (uint32_t)sms;
    struct buf json;
    buf_init(&json, 0);
    bench.json = &json;
    buf_append_format(&json, "{\"gpu\":\"%s\",\"sms\":%d,\"driver\":%d,\"runtime\":%d,\"quick\":%s", properties.name,
                      sms, driver, runtime, bench.quick ? "true" : "false");
    printf("%s, %d multiprocessors, driver %d, runtime %d%s\n", properties.name, sms, driver, runtime,
           bench.quick ? ": quick, nothing here is a measurement" : "");
    if (!shape) shape = bench.quick ? "tiny" : "llama3-8b";
    bool good = bench_cuda_kernels(&bench) && bench_cuda_engine(&bench, shape, weights, !eager);
    buf_append_text(&json, "}\n");
    if (good && buf_ok(&json)) {
        FILE *file = out ? fopen(out, "w") : stdout;
        good = file && fwrite(json.data, 1, json.length, file) == json.length;
        if (out && file) good = fclose(file) == 0 && good;
        if (!good) fprintf(stderr, "bench_cuda: cannot write %s\n", out ? out : "to standard output");
    }
    buf_free(&json);
    return good ? 0 : 1;
}
