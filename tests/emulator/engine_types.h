/* The engine's structures, for its own files only: fibers, warps, blocks, grids, workers. */
#ifndef TESTS_EMULATOR_ENGINE_TYPES_H
#define TESTS_EMULATOR_ENGINE_TYPES_H

#include "tests/emulator/engine.h"
#include <atomic>
#include <vector>

namespace cs
{
enum {
    THREADS_MAX = 1024,  /* of a block */
    COPIES_MAX = 256,    /* cp.async in flight in a thread */
    SHARED_MAX = 232448, /* 227 KiB: sm_90, sm_100 */
    SHARED_STATIC_MAX = 48 * 1024,
    ARENA_BYTES = 512 * 1024, /* shared memory of a block with its guard zones */
    GUARD_BYTES = 64,
    PENDING_MAX = 8 /* warp operations of disjoint masks under way in one warp */
};
constexpr unsigned char GUARD_BYTE = 0xa5;

struct Block;
struct Warp;
struct WarpLog; /* counters.cpp */

struct Copy {
    void *target;
    const void *source;
    int bytes, source_bytes;
    unsigned group;
};

/* One CUDA thread. */
struct Fiber {
    void *sp;
    Warp *warp;
    Block *block;
    uint3 thread;
    uint8_t lane;
    bool started, fenced;
    Loc at; /* where it waits, and in what: for messages */
    const char *waits_in;
    unsigned copy_group, copy_head, copy_tail;
    Copy *copies;
    const volatile void *last_atomic;
    void *tsan, *tsan_odd_even[2], *stack;
    size_t stack_bytes;
};

/* A warp operation that waits for lanes of its mask. */
struct Pending {
    WarpOp op;
    unsigned mask, arrived;
    int size;
    Loc loc;
    bool used, sync; /* sync: __syncwarp */
    int generation;
};

struct Warp {
    unsigned ready, exited, present, yielded;
    int pending_count, generation;
    bool queued;
    Block *block;
    Fiber *fibers;      /* 32 */
    const void *in[32]; /* operands of the pending operations, by lane */
    void *out[32];
    int a[32], b[32];
    Pending pending[PENDING_MAX];
    char *sync;
    WarpLog *log;
};

struct Barrier {
    int arrived, expected;
    unsigned phase;
    Loc loc;
    int op, accumulated, result;
    unsigned waiting[THREADS_MAX / 32];
};

struct Grid {
    Launch launch;
    uint64_t serial, blocks;
    std::atomic<uint64_t> next{0}, left{0};
    char *start_sync, *end_sync;
    size_t shared_static = 0;
};

/* A part of shared memory: key is the variable, or for a carved part its place in the contiguous dynamic bytes. */
struct SharedPart {
    const void *key;
    unsigned char *at;
    size_t bytes, front; /* front: bytes of guard before it */
    Loc loc;
    bool carved;
};

struct Block {
    Grid *grid;
    uint64_t serial, round;
    uint3 index;
    int threads, live, warp_count, guarded;
    Fiber *fibers;
    Warp warps[THREADS_MAX / 32];
    Barrier barriers[16];
    unsigned char *arena, *dynamic;
    size_t arena_used;
    std::vector<SharedPart> parts;
    char *start_sync, *sync;
    Loc dynamic_loc;
};

/* An operating-system thread that runs fibers. */
struct Worker {
    void *main_sp = nullptr;
    std::vector<Warp *> queue;
    size_t head = 0;
    std::vector<Block *> free_blocks, live_blocks, ended;
    void *tsan_main = nullptr;
    const void *main_stack = nullptr;
    size_t main_stack_bytes = 0;
    uint32_t rng = 1;
    uint64_t yields = 0; /* since something else happened */

    unsigned random()
    {
        rng ^= rng << 13;
        rng ^= rng >> 17;
        rng ^= rng << 5;
        return rng;
    }
};

struct EngineConfig {
    int threads = env_int("CUSIM_THREADS", 1);
    int seed = env_int("CUSIM_SEED", 0);
    int copy_mode = env_int("CUSIM_CPASYNC", 0);
    int trace = env_int("CUSIM_TRACE", 0);
    int stack_kb = env_int("CUSIM_STACK_KB", 0);
};
extern EngineConfig config;
extern __thread Worker *worker CS_TLS;
extern __thread Fiber *current CS_TLS;

/* warp_ops.cpp: what the last lane to arrive does for all of them */
void warp_execute(Warp *w, Pending &p);
const char *warp_op_name(int op, bool sync);

/* counters.cpp */
void counters_grid_begin(Grid *g);

void counters_warp_end(Warp *w);
void counters_mma(Warp *w, unsigned n);
} // namespace cs
#endif
