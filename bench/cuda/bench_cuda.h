/* What the parts of bench_cuda share: options, the GPU's bandwidth, and where results go. */
#ifndef BENCH_CUDA_BENCH_CUDA_H
#define BENCH_CUDA_BENCH_CUDA_H

#include "runtime/base/buf.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

struct bench_cuda {
    bool quick; /* shapes so small that the emulator runs them: shows that the program works, measures nothing */
    double bytes_per_s; /* that a copy inside the GPU's memory reaches: reads and writes together */
    uint32_t sms;
    struct buf *json; /* members of the result, each with a comma before it */
};

/* Each prints a table and appends its results. False after an error, which it has printed. */
bool bench_cuda_kernels(struct bench_cuda *bench);
bool bench_cuda_engine(struct bench_cuda *bench, const char *shape, const char *dtype, bool graphs);

bool bench_cuda_ok(cudaError_t error, const char *what);

#endif
