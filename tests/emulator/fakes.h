/* What the fake CUDA runtime gives the fake libraries above it. */
#ifndef TESTS_EMULATOR_FAKES_H
#define TESTS_EMULATOR_FAKES_H
#include "tests/emulator/engine.h"
#include <functional>
#include <memory>
#include <vector>
#include <string>
#include <cuda_runtime_api.h>

struct CUstream_st;
namespace fk
{
// A gate is a stream operation that completes together with operations of other ranks (a collective).
struct Gate {
    CUstream_st *stream = nullptr;
    uint64_t idx = 0;
    bool fired = false;
    char sync = 0;
    std::vector<void *> acq;
    virtual ~Gate() {}
    virtual bool peers(std::vector<Gate *> &out) = 0;          // false: a counterpart is not posted yet
    virtual void complete(const std::vector<Gate *> &all) = 0; // move the data for the whole connected set
    virtual std::string describe() = 0;
};
using Fn = std::function<void()>;
using MkGate = std::function<std::shared_ptr<Gate>()>;
cudaError_t enqueue(cudaStream_t s, const char *name, Fn fn, MkGate mk = nullptr);
// Pointer check at execution time: p..p+n must lie in one live allocation visible to device dev.
void check_range(int dev, const void *p, size_t n, const char *what);
int stream_device(cudaStream_t s);
int current_device();
void lock();
void unlock();
[[noreturn]] void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
} // namespace fk
#endif
