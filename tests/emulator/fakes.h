/* The fake CUDA runtime's state, for its own files and the fake libraries above it.
 *
 * One lock guards everything here; it is released while an operation runs, so two ranks' threads run side by side. */
#ifndef TESTS_EMULATOR_FAKES_H
#define TESTS_EMULATOR_FAKES_H

#include "tests/emulator/engine.h"
#include <condition_variable>
#include <cuda_runtime_api.h>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <string>
#include <vector>

struct CUstream_st;

namespace fk
{
using Lock = std::unique_lock<std::mutex>;
using Fn = std::function<void()>;

/* A stream operation that completes together with operations of other ranks: a collective. */
struct Gate {
    CUstream_st *stream = nullptr;
    uint64_t index = 0;
    bool fired = false, hangs = false;
    char sync = 0;
    std::vector<void *> acquires;
    virtual ~Gate() {}
    virtual bool peers(std::vector<Gate *> &out) = 0;          /* false: a counterpart is not posted yet */
    virtual void complete(const std::vector<Gate *> &all) = 0; /* moves the data of the whole connected set */
    virtual std::string describe() = 0;
};
using MakeGate = std::function<std::shared_ptr<Gate>()>;

/* A kernel with a copy of its arguments. */
struct Call {
    cs::Launch launch;
    std::vector<std::vector<uint64_t>> values;
    std::vector<void *> pointers;
};

/* What an operation does: check, with the lock and by the thread that drives the stream, then one of fn, call,
 * make_gate without the lock (a gate's complete() with it). Under TSan fn runs as a thread of its own: it must not take
 * the lock, whose order with the host's threads would hide their races with the device. */
struct Work {
    const char *name = "";
    Fn check, fn;
    std::shared_ptr<Call> call;
    MakeGate make_gate;
};
} // namespace fk

struct CUgraph_st {
    struct Node {
        fk::Work work;
        std::vector<int> dependencies;
    };
    std::vector<Node> nodes;
    std::vector<struct CUgraphNode_st *> handles;
    ~CUgraph_st();
};
struct CUgraphNode_st {
    CUgraph_st *graph;
    int index;
};

namespace fk
{
struct Dependency {
    CUstream_st *stream;
    uint64_t count;
};
struct Op {
    Work work;
    std::shared_ptr<Gate> gate;
    std::vector<Dependency> dependencies;
    std::vector<void *> acquires, releases;
    char sync = 0;
    bool hangs = false;
};
} // namespace fk

struct CUstream_st {
    int device, id, priority;
    bool blocking, legacy, alive = true, driving = false;
    std::deque<std::shared_ptr<fk::Op>> queue;
    uint64_t pushed = 0, done = 0;
    pthread_t driver;
    char sync = 0;
    /* capture */
    CUgraph_st *capture = nullptr;
    CUstream_st *capture_origin = nullptr;
    std::vector<int> capture_dependencies;
    bool capture_bad = false;
    int capture_mode = 0;
    pthread_t capture_thread;
};

struct CUevent_st {
    unsigned flags;
    int device;
    CUstream_st *stream = nullptr;
    uint64_t count = 0;
    double at_ms = 0;
    CUgraph_st *capture = nullptr;
    std::vector<int> capture_dependencies;
    char sync = 0;
};

namespace fk
{
struct Allocation {
    uintptr_t base;
    size_t bytes;
    int device; /* -1: pinned host memory */
    bool freed, registered;
};
struct Device {
    char *base = nullptr;
    size_t reserved = 0, used = 0, live_bytes = 0;
    CUstream_st *legacy = nullptr;
    std::vector<CUstream_st *> streams;
    unsigned peers = 0;
    cudaError_t sticky = cudaSuccess;
};
struct Function {
    const void *kernel;
    int dynamic_max;
};
enum StreamMode { LAZY, EAGER, RANDOM };

/* Planted faults (faults.h): each counts down to 0. */
struct Faults {
    uint64_t allocation = 0, sticky = 0, launch = 0, hang_kernel = 0, hang_collective = 0, nccl_call = 0,
             nccl_async = 0;
    bool allocation_keep = false, hangs = false;
    int sticky_error = 0, launch_error = 0, nccl_call_result = 0, nccl_async_result = 0, absent_rank = -1;
    int no_device = 0;
    uint64_t struck = 0;
};

struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<Device> devices;
    std::vector<Allocation> allocations; /* by address; not std::map, whose code in libstdc++.so MSan does not know */
    std::vector<Function> functions;
    std::vector<std::shared_ptr<Op>> graveyard;
    std::vector<void *> pinned;
    Faults faults;
    int open = 0, next_id = 1, capturing = 0, running = 0;
    uint32_t rng = 12345;
    uint64_t ops = 0;
    double progress_ms = 0;
    int arch, guard, timeout_s, verbose, sms;
    size_t device_bytes;
    StreamMode mode;

    unsigned random()
    {
        rng ^= rng << 13;
        rng ^= rng >> 17;
        rng ^= rng << 5;
        return rng;
    }
};
State &state();
extern __thread int current_device_id;
extern __thread bool in_host_function;

/* Every API call: the lock, and the device's sticky error if it has one. */
cudaError_t remember(cudaError_t error);
double now_ms();

/* True when a countdown that was planted reaches its end with this event. Locked. */
bool fault_strikes(uint64_t *countdown);

/* Memory. Locked. */
Allocation *find_allocation(const void *p);
void add_allocation(const void *p, size_t bytes, int device);
void memory_open(bool on);
struct Opened { /* device memory is reachable from here to its end */
    Opened()
    {
        if (state().open++ == 0) memory_open(true);
    }
    ~Opened()
    {
        if (--state().open == 0) memory_open(false);
    }
};
/* p..p+bytes must lie in one live allocation that device may reach; ends the program otherwise. */
void check_range(int device, const void *p, size_t bytes, const char *what);
void free_device_memory(void *p); /* locked */

/* Streams. Locked; drive releases the lock while operations run. */
CUstream_st *stream_of(cudaStream_t s);
CUstream_st *new_stream(int device, bool blocking, bool legacy, int priority);
bool drive(CUstream_st *s, uint64_t count, bool wait, Lock &l);
void push(CUstream_st *s, std::shared_ptr<Op> op, bool graph_part = false);
void nudge(CUstream_st *s, Lock &l);
bool illegal_in_capture();
cudaError_t submit(CUstream_st *s, Work work, Lock &l);
std::shared_ptr<Call> copy_call(const cs::Launch &launch, void **arguments);

/* For the libraries above: takes the lock. */
cudaError_t enqueue(cudaStream_t s, Work work);
int stream_device(cudaStream_t s);
} // namespace fk

#define API extern "C" __attribute__((visibility("default"))) cudaError_t CUDARTAPI
/* Takes the lock as l and refuses work on a broken device. */
#define ENTER(device)                                                                                                  \
    fk::Lock l(fk::state().mutex);                                                                                     \
    if (fk::state().devices[(size_t)(device)].sticky) return fk::remember(fk::state().devices[(size_t)(device)].sticky)
#define ENTER_CURRENT ENTER(fk::current_device_id)
#endif
