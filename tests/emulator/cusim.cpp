/* The engine: runs the blocks of a grid as fibers on operating-system threads, one fiber a CUDA thread.
 *
 * Built without instrumentation for plain, ASan and TSan programs (the sanitizers' entry points are weak symbols, called
 * where the simulated program touches memory or synchronises); built with -fsanitize=memory for MSan programs. */
#include "tests/emulator/engine.h"
#include <atomic>
#include <mutex>
#include <condition_variable>
#include <thread>
#include <vector>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>
#include <immintrin.h>

__thread uint3 threadIdx CS_TLS;
__thread uint3 blockIdx CS_TLS;
__thread dim3 blockDim CS_TLS;
__thread dim3 gridDim CS_TLS;

extern "C" {
#define WEAK __attribute__((weak))
void __asan_poison_memory_region(void const volatile *, size_t) WEAK;
void __asan_unpoison_memory_region(void const volatile *, size_t) WEAK;
void __asan_loadN(const void *, size_t) WEAK;
void __asan_storeN(void *, size_t) WEAK;
void __sanitizer_start_switch_fiber(void **, const void *, size_t) WEAK;
void __sanitizer_finish_switch_fiber(void *, const void **, size_t *) WEAK;
void *__tsan_get_current_fiber(void) WEAK;
void *__tsan_create_fiber(unsigned) WEAK;
void __tsan_destroy_fiber(void *) WEAK;
void __tsan_switch_to_fiber(void *, unsigned) WEAK;
void __tsan_acquire(void *) WEAK;
void __tsan_release(void *) WEAK;
void __tsan_read_range(void *, unsigned long) WEAK;
void __tsan_write_range(void *, unsigned long) WEAK;
void __msan_poison(const volatile void *, size_t) WEAK;
void __msan_unpoison(const volatile void *, size_t) WEAK;
void cs_switch(void **save, void *to);
}
asm(R"(
.text
.globl cs_switch
.type cs_switch,@function
cs_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cs_switch,.-cs_switch
)");

namespace cs
{
// Never libc memset/memcpy inside the engine: sanitizers intercept them and would record accesses of the simulated
// program.
static inline void fill(void *p, int c, size_t n)
{
#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
    memset(p, c, n);
    return;
#endif
#endif
    asm volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(c) : "memory");
}
// ------------------------------------------------------------------ sanitizer glue
bool have_tsan()
{
    return __tsan_create_fiber != nullptr;
}
void acc_read(const void *p, size_t n)
{
    if (__asan_loadN) __asan_loadN(p, n);
    if (__tsan_read_range) __tsan_read_range((void *)p, n);
}
void acc_write(void *p, size_t n)
{
    if (__asan_storeN) __asan_storeN(p, n);
    if (__tsan_write_range) __tsan_write_range(p, n);
}
void poison(const void *p, size_t n)
{
    if (__asan_poison_memory_region) __asan_poison_memory_region(p, n);
}
void unpoison(const void *p, size_t n)
{
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(p, n);
}
void mark_uninit(void *p, size_t n)
{
    if (__msan_poison) __msan_poison(p, n);
}
void hb_release(void *p)
{
    if (__tsan_release) __tsan_release(p);
}
void hb_acquire(void *p)
{
    if (__tsan_acquire) __tsan_acquire(p);
}
void *tsan_new()
{
    return __tsan_create_fiber ? __tsan_create_fiber(0) : nullptr;
}
void *tsan_cur()
{
    return __tsan_get_current_fiber ? __tsan_get_current_fiber() : nullptr;
}
void tsan_to(void *f)
{
    if (f && __tsan_switch_to_fiber) __tsan_switch_to_fiber(f, 1);
}
void tsan_del(void *f)
{
    if (f && __tsan_destroy_fiber) __tsan_destroy_fiber(f);
}

// Every logical synchronisation gets its own never-reused address, so that no stale ordering leaks between blocks or
// grids.
static char *fresh_sync(int n)
{
    static char *base =
        (char *)mmap(nullptr, (size_t)1 << 32, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    static std::atomic<uint64_t> next{0};
    return base + 8 * (next.fetch_add(n) & ((1ull << 29) - 1));
}
static int env_int(const char *n, int d)
{
    const char *v = getenv(n);
    return v && *v ? atoi(v) : d;
}
struct Cfg {
    int threads = env_int("CUSIM_THREADS", 1);
    int seed = env_int("CUSIM_SEED", 0);       // 0 = ascending lanes and warps; -1 = descending; >0 random
    int cp_mode = env_int("CUSIM_CPASYNC", 0); // 0 = as late as legal, 1 = at issue, 2 = random
    int trace = env_int("CUSIM_TRACE", 0);
    int stack_kb = env_int("CUSIM_STACK_KB", 0);
};
static Cfg &cfg()
{
    static Cfg c;
    return c;
}

enum { CP_MAX = 256, SMEM_MAX = 232448, SMEM_STATIC_MAX = 49152, ARENA = 512 * 1024, MAXT = 1024 };
struct Block;
struct Warp;
struct CpOp {
    void *dst;
    const void *src;
    int bytes, src_bytes;
    unsigned group;
};
enum Wait : uint8_t { W_NONE, W_BAR, W_WARP, W_YIELD };
struct Fiber {
    void *sp;
    Warp *warp;
    Block *blk;
    uint3 tid;
    uint8_t lane;
    Wait wait;
    bool started, fenced;
    Loc wloc;
    const char *wname;
    const void *in;
    void *out;
    int a, b; // operands of the pending warp operation
    unsigned cp_group;
    CpOp *cp;
    unsigned cp_h, cp_t;
    const volatile void *last_atomic;
    void *tsan, *tset[2], *stack;
    size_t stack_size;
};
struct Pending {
    WarpOp op;
    unsigned mask, arrived;
    int size;
    Loc loc;
    bool used, sync;
    int gen;
};
struct Warp {
    unsigned ready, done, present;
    bool queued;
    Block *blk;
    Fiber *f;
    Pending pend[8];
    int gen;
    char *sync;
};
struct Barrier {
    int arrived, expect;
    unsigned phase;
    Loc loc;
    int op, acc, result;
    unsigned wait[MAXT / 32];
};
struct Grid {
    const void *fn;
    const KernelDesc *d;
    void *const *args;
    dim3 grid, block;
    size_t smem;
    bool coop;
    uint64_t serial;
    std::atomic<uint64_t> next{0};
    uint64_t nblocks;
    char *start_sync, *end_sync;
    std::atomic<uint64_t> switches{0};
};
struct SVar {
    const void *key;
    void *p;
    size_t n;
};
struct Block {
    Grid *g;
    uint64_t serial, round;
    uint3 bid;
    int n, live, nwarps;
    Fiber *f;
    Warp warps[MAXT / 32];
    Barrier bar[16];
    unsigned char *arena;
    size_t arena_used;
    void *dyn;
    std::vector<SVar> vars;
    char *start_sync, *sync;
};
struct Worker {
    void *main_sp = nullptr;
    Fiber *cur = nullptr;
    std::vector<Warp *> q;
    size_t qh = 0;
    std::vector<Block *> slots;
    void *tsan_main = nullptr;
    uint64_t switches = 0;
    uint32_t rng = 1;
    const void *mstk = nullptr;
    size_t mstk_n = 0;
    unsigned rnd()
    {
        rng ^= rng << 13;
        rng ^= rng >> 17;
        rng ^= rng << 5;
        return rng;
    }
};
static __thread Worker *W CS_TLS;
static __thread Fiber *F CS_TLS;

// ------------------------------------------------------------------ diagnostics
const char *kernel_name(const void *fn)
{
    Dl_info i;
    static __thread char b[32];
    if (dladdr(fn, &i) && i.dli_sname) return i.dli_sname;
    snprintf(b, sizeof b, "kernel@%p", fn);
    return b;
}
static const char *base(const char *f)
{
    const char *s = f ? strrchr(f, '/') : nullptr;
    return s ? s + 1 : f ? f : "?";
}
void fail(Loc loc, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "cusim: error: ");
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n  at %s:%d", base(loc.file), loc.line);
    if (F)
        fprintf(stderr, " in %s block (%u,%u,%u) thread (%u,%u,%u)", kernel_name(F->blk->g->fn), F->blk->bid.x,
                F->blk->bid.y, F->blk->bid.z, F->tid.x, F->tid.y, F->tid.z);
    fprintf(stderr, "\n");
    fflush(stderr);
    abort();
}

// ------------------------------------------------------------------ switching
static inline void jump(void **save, Fiber *to)
{ // to == nullptr: the worker's main context
    W->switches++;
    void *fake = nullptr;
    if (__sanitizer_start_switch_fiber) {
        if (to)
            __sanitizer_start_switch_fiber(&fake, to->stack, to->stack_size);
        else
            __sanitizer_start_switch_fiber(&fake, W->mstk, W->mstk_n);
    }
    if (W->tsan_main) tsan_to(to ? to->tsan : W->tsan_main);
    W->cur = F = to;
    if (to) {
        threadIdx = to->tid;
        blockIdx = to->blk->bid;
    }
    cs_switch(save, to ? to->sp : W->main_sp);
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}
static int pick(unsigned m)
{
    int s = cfg().seed;
    if (s == 0) return __builtin_ctz(m);
    if (s < 0) return 31 - __builtin_clz(m);
    int k = W->rnd() % __builtin_popcount(m);
    while (k--) m &= m - 1;
    return __builtin_ctz(m);
}
static void enqueue(Warp *w)
{
    if (!w->queued && w->ready) {
        w->queued = true;
        W->q.push_back(w);
    }
}
static void block_current()
{
    Fiber *f = F;
    Warp *w = f->warp;
    if (w->ready) {
        int l = pick(w->ready);
        w->ready &= ~(1u << l);
        if (&w->f[l] == f) return;
        jump(&f->sp, &w->f[l]);
    } else
        jump(&f->sp, nullptr);
}
void yield()
{
    if (!F) return;
    Fiber *f = F;
    f->wait = W_YIELD;
    f->warp->ready |= 1u << f->lane;
    enqueue(f->warp);
    void **sp = &f->sp;
    jump(sp, nullptr);
    f->wait = W_NONE;
}

// ------------------------------------------------------------------ warp collectives
static inline float bf(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
/* The products of all 32 lanes' tiles, as MMA_BF16 below would give them one by one: products of BF16 are exact. */
typedef float v8f __attribute__((vector_size(32)));
static void exec_mma_tile(Fiber *f)
{
    const int ks = f[0].a >> 16, rt = f[0].a >> 8 & 255, nt = f[0].a & 255;
    const MmaTile *lanes[32];
    for (int l = 0; l < 32; l++) {
        lanes[l] = (const MmaTile *)f[l].in;
        if (f[l].a != f[0].a) fail(f[l].wloc, "lanes disagree about the shape of a tile");
    }
    for (int k = 0; k < ks; k++) {
        for (int r = 0; r < rt; r++) {
            alignas(32) float A[16][16];
            for (int l = 0; l < 32; l++) {
                const uint32_t *w = lanes[l]->a + (k * rt + r) * 4;
                const int g = l >> 2, t = (l & 3) * 2;
                for (int i = 0; i < 4; i++) {
                    float *to = &A[g + 8 * (i & 1)][t + 8 * (i >> 1)];
                    to[0] = bf((uint16_t)w[i]);
                    to[1] = bf((uint16_t)(w[i] >> 16));
                }
            }
            for (int n = 0; n < nt; n++) {
                alignas(32) float B[16][8], D[16][8];
                for (int l = 0; l < 32; l++) {
                    const uint32_t *w = lanes[l]->b + (k * nt + n) * 2;
                    const float *d = lanes[l]->d + (r * nt + n) * 4;
                    const int g = l >> 2, t = (l & 3) * 2;
                    for (int i = 0; i < 2; i++) {
                        B[t + 8 * i][g] = bf((uint16_t)w[i]);
                        B[t + 1 + 8 * i][g] = bf((uint16_t)(w[i] >> 16));
                    }
                    memcpy(&D[g][t], d, 8);
                    memcpy(&D[g + 8][t], d + 2, 8);
                }
                for (int half = 0; half < 16; half += 8) {
                    v8f sum[8];
                    for (int i = 0; i < 8; i++) memcpy(&sum[i], D[half + i], 32);
                    for (int j = 0; j < 16; j++) {
                        v8f b;
                        memcpy(&b, B[j], 32);
                        for (int i = 0; i < 8; i++) sum[i] += A[half + i][j] * b;
                    }
                    for (int i = 0; i < 8; i++) memcpy(D[half + i], &sum[i], 32);
                }
                for (int l = 0; l < 32; l++) {
                    float *d = lanes[l]->d + (r * nt + n) * 4;
                    const int g = l >> 2, t = (l & 3) * 2;
                    memcpy(d, &D[g][t], 8);
                    memcpy(d + 2, &D[g + 8][t], 8);
                }
            }
        }
    }
}
static void exec_op(Warp *w, Pending &p)
{
    Fiber *f = w->f;
    unsigned m = p.arrived;
#define EACH(i)                                                                                                        \
    for (unsigned mm = m; mm; mm &= mm - 1)                                                                            \
        if (int i = __builtin_ctz(mm); true)
    switch (p.op) {
    case SHFL:
    case SHFL_UP:
    case SHFL_DOWN:
    case SHFL_XOR: {
        EACH(i)
        {
            int wd = f[i].b, seg = i & ~(wd - 1), src = i, a = f[i].a;
            if (p.op == SHFL)
                src = seg + (a & (wd - 1));
            else if (p.op == SHFL_UP) {
                src = i - a;
                if (src < seg) src = i;
            } else if (p.op == SHFL_DOWN) {
                src = i + a;
                if (src >= seg + wd) src = i;
            } else {
                src = i ^ a;
                if ((src & ~(wd - 1)) > seg) src = i;
            }
            if (!(m >> src & 1))
                fail(p.loc,
                     "warp shuffle: lane %d reads lane %d, which does not take part (mask 0x%08x, exited 0x%08x)", i,
                     src, p.mask, w->done);
            if (p.size == 4)
                *(uint32_t *)f[i].out = *(const uint32_t *)f[src].in;
            else if (p.size == 8)
                *(uint64_t *)f[i].out = *(const uint64_t *)f[src].in;
            else
                *(uint16_t *)f[i].out = *(const uint16_t *)f[src].in;
        }
        break;
    }
    case BALLOT: {
        unsigned r = 0;
        EACH(i) if (*(const int *)f[i].in) r |= 1u << i;
        EACH(i) * (unsigned *)f[i].out = r;
        break;
    }
    case MATCH_ANY:
        EACH(i)
        {
            unsigned r = 0;
            EACH(j)
            {
                bool eq = true;
                for (int z = 0; z < p.size; z++) eq &= ((const char *)f[i].in)[z] == ((const char *)f[j].in)[z];
                if (eq) r |= 1u << j;
            }
            *(unsigned *)f[i].out = r;
        }
        break;
    case RED_ADD:
    case RED_MIN_S:
    case RED_MAX_S:
    case RED_MIN_U:
    case RED_MAX_U:
    case RED_AND:
    case RED_OR:
    case RED_XOR: {
        bool first = true;
        uint32_t r = 0;
        EACH(i)
        {
            uint32_t v = *(const uint32_t *)f[i].in;
            if (first) {
                r = v;
                first = false;
                continue;
            }
            switch (p.op) {
            case RED_ADD: r += v; break;
            case RED_AND: r &= v; break;
            case RED_OR: r |= v; break;
            case RED_XOR: r ^= v; break;
            case RED_MIN_S:
                if ((int)v < (int)r) r = v;
                break;
            case RED_MAX_S:
                if ((int)v > (int)r) r = v;
                break;
            case RED_MIN_U:
                if (v < r) r = v;
                break;
            default:
                if (v > r) r = v;
                break;
            }
        }
        EACH(i) * (uint32_t *)f[i].out = r;
        break;
    }
    case LDMATRIX_X2:
    case LDMATRIX_X2_T:
    case LDMATRIX_X4:
    case LDMATRIX_X4_T: { // matrix k takes its 8 rows from lanes 8k..8k+7
        const int matrices = p.op >= LDMATRIX_X4 ? 4 : 2;
        const bool trans = p.op == LDMATRIX_X2_T || p.op == LDMATRIX_X4_T;
        uint16_t t[4][8][8];
        for (int l = 0; l < 8 * matrices; l++) memcpy(t[l >> 3][l & 7], f[l].in, 16);
        for (int l = 0; l < 32; l++)
            for (int k = 0; k < matrices; k++) {
                int r = l >> 2, c = (l & 3) * 2;
                ((uint32_t *)f[l].out)[k] = trans ? t[k][c][r] | (uint32_t)t[k][c + 1][r] << 16
                                                  : t[k][r][c] | (uint32_t)t[k][r][c + 1] << 16;
            }
        break;
    }
    case MMA_BF16:
    case MMA_F16: { // A 16x16 row, B 16x8 col, C/D 16x8 fp32; fragment layout of the PTX manual
        auto wide = [&](uint16_t h) { return p.op == MMA_BF16 ? bf(h) : __half2float(__ushort_as_half(h)); };
        float A[16][16], B[16][8], D[16][8];
        for (int l = 0; l < 32; l++) {
            const uint16_t *h = (const uint16_t *)f[l].in;
            int g = l >> 2, t = (l & 3) * 2;
            for (int r = 0; r < 4; r++)
                for (int e = 0; e < 2; e++) A[g + 8 * (r & 1)][t + e + 8 * (r >> 1)] = wide(h[2 * r + e]);
            for (int r = 0; r < 2; r++)
                for (int e = 0; e < 2; e++) B[t + e + 8 * r][g] = wide(h[8 + 2 * r + e]);
            const float *d = (const float *)f[l].out;
            D[g][t] = d[0];
            D[g][t + 1] = d[1];
            D[g + 8][t] = d[2];
            D[g + 8][t + 1] = d[3];
        }
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < 16; k++) {
                float a = A[i][k];
                for (int j = 0; j < 8; j++) D[i][j] += a * B[k][j];
            }
        for (int l = 0; l < 32; l++) {
            float *d = (float *)f[l].out;
            int g = l >> 2, t = (l & 3) * 2;
            d[0] = D[g][t];
            d[1] = D[g][t + 1];
            d[2] = D[g + 8][t];
            d[3] = D[g + 8][t + 1];
        }
        break;
    }
    case MMA_BF16_TILE: exec_mma_tile(f); break;
    }
}
static const char *op_name(int op, bool sync)
{
    static const char *n[] = {"__shfl_sync",           "__shfl_up_sync",    "__shfl_down_sync",  "__shfl_xor_sync",
                              "__ballot/any/all_sync", "__match_any_sync",  "__reduce_add_sync", "__reduce_min_sync",
                              "__reduce_max_sync",     "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync",
                              "__reduce_or_sync",      "__reduce_xor_sync", "ldmatrix.x2", "ldmatrix.x2.trans", "ldmatrix.x4", "ldmatrix.x4.trans",
                              "mma.sync bf16",         "mma.sync f16",         "mma.sync bf16 tile"};
    return sync ? "__syncwarp" : n[op];
}
static void op_try(Warp *w, Pending &p)
{ // complete p if every live lane of its mask has arrived
    unsigned need = p.mask & w->present & ~w->done;
    if (!need || p.arrived != need) return;
    if (!p.sync && p.op >= LDMATRIX_X2 && need != 0xffffffffu)
        fail(p.loc, "%s: lanes 0x%08x exited instead of taking part", op_name(p.op, false), ~need);
    if (!p.sync) exec_op(w, p);
    w->ready |= p.arrived;
    p.used = false;
    enqueue(w);
}
static int warp_arrive(WarpOp op, bool sync, unsigned mask, const void *in, void *out, int size, int a, int b, Loc loc)
{
    Fiber *f = F;
    if (!f) fail(loc, "%s outside a kernel", op_name(op, sync));
    Warp *w = f->warp;
    unsigned bit = 1u << f->lane;
    bool aligned = !sync && op >= LDMATRIX_X2;
    if (!(mask & bit)) fail(loc, "%s: lane %d is not in its own mask 0x%08x", op_name(op, sync), f->lane, mask);
    if (mask & ~w->present) mask &= w->present; // partial last warp
    if (aligned && (w->present != 0xffffffffu || w->done))
        fail(loc, "%s needs 32 live lanes (present 0x%08x, exited 0x%08x)", op_name(op, sync), w->present, w->done);
    if (!sync && op <= SHFL_XOR && (b <= 0 || b > 32 || (b & (b - 1)))) fail(loc, "shuffle width %d", b);
    Pending *p = nullptr, *fr = nullptr;
    for (auto &q : w->pend) {
        if (!q.used) {
            if (!fr) fr = &q;
            continue;
        }
        if (q.mask == mask && q.op == op && q.sync == sync && q.size == size && !(q.arrived & bit))
            p = &q;
        else if ((q.mask & bit) && (q.arrived & mask)) // they wait for this lane there, it would wait for them here
            fail(loc,
                 "lanes of one warp disagree: lane %d runs %s mask 0x%08x, while lanes 0x%08x wait for it in %s mask "
                 "0x%08x at %s:%d",
                 f->lane, op_name(op, sync), mask, q.arrived, op_name(q.op, q.sync), q.mask, base(q.loc.file),
                 q.loc.line);
    }
    if (p) {
        if (aligned && p->loc.line != loc.line)
            fail(loc, "divergent %s: other lanes are at %s:%d", op_name(op, sync), base(p->loc.file), p->loc.line);
    } else {
        if (!fr) fail(loc, "too many warp operations in flight");
        *fr = Pending{op, mask, 0, size, loc, true, sync, w->gen++};
        p = fr;
    }
    f->in = in;
    f->out = out;
    f->a = a;
    f->b = b;
    f->wloc = loc;
    f->wname = op_name(op, sync);
    p->arrived |= bit;
    int gen = p->gen;
    if (sync) hb_release(w->sync + 8 * (gen & 3));
    unsigned need = p->mask & ~w->done;
    if (p->arrived == need) {
        if (!sync) exec_op(w, *p);
        p->used = false;
        w->ready |= p->arrived & ~bit;
        if (cfg().seed > 0) {
            w->ready |= bit;
            block_current();
        }
    } else {
        f->wait = W_WARP;
        block_current();
        f->wait = W_NONE;
    }
    return gen;
}
void warp_op(WarpOp op, unsigned mask, const void *in, void *out, int size, int a, int b, Loc loc)
{
    warp_arrive(op, false, mask, in, out, size, a, b, loc);
}
void syncwarp(unsigned mask, Loc loc)
{
    Fiber *f = F;
    int gen = warp_arrive(BALLOT, true, mask, nullptr, nullptr, 0, 0, 0, loc);
    hb_acquire(f->warp->sync + 8 * (gen & 3));
}
unsigned active_mask()
{
    return F->warp->present & ~F->warp->done;
}
unsigned lane_id()
{
    return F->lane;
}

// ------------------------------------------------------------------ block barriers
static int bar_wait(int id, int n, int op, int pred, Loc loc, const char *name, bool block = true)
{
    Fiber *f = F;
    if (!f) fail(loc, "%s outside a kernel", name);
    Block *b = f->blk;
    if (id < 0 || id > 15) fail(loc, "barrier id %d", id);
    Barrier &r = b->bar[id];
    int expect = n ? n : b->n;
    if (n & 31) fail(loc, "barrier thread count %d is not a multiple of 32", n);
    if (!n && b->live != b->n) fail(loc, "%s: %d of %d threads of the block have exited", name, b->n - b->live, b->n);
    if (!r.arrived) {
        r.expect = expect;
        r.loc = loc;
        r.op = op;
        r.acc = op == 1 ? 1 : 0;
    } else {
        if (r.expect != expect || r.op != op)
            fail(loc, "barrier %d used with different counts or kinds (%d at %s:%d, here %d)", id, r.expect,
                 base(r.loc.file), r.loc.line, expect);
        if (!n && (r.loc.line != loc.line || r.loc.file != loc.file))
            fail(loc, "divergent %s: other threads of the block wait at %s:%d", name, base(r.loc.file), r.loc.line);
    }
    if (op == 0)
        r.acc += !!pred;
    else if (op == 1)
        r.acc &= !!pred;
    else if (op == 2)
        r.acc |= !!pred;
    unsigned ph = r.phase;
    hb_release(b->sync + 16 * id + 8 * (ph & 1));
    if (block) r.wait[f->warp - b->warps] |= 1u << f->lane;
    f->wloc = loc;
    f->wname = name;
    if (++r.arrived == r.expect) {
        r.result = r.acc;
        r.arrived = 0;
        r.phase++;
        unsigned me = 1u << f->lane;
        f->warp->ready |= r.wait[f->warp - b->warps] & ~me;
        r.wait[f->warp - b->warps] = 0;
        for (int i = 0; i < b->nwarps; i++)
            if (r.wait[i]) {
                b->warps[i].ready |= r.wait[i];
                r.wait[i] = 0;
                enqueue(&b->warps[i]);
            }
        if (block && cfg().seed > 0) {
            f->warp->ready |= me;
            enqueue(f->warp);
            jump(&f->sp, nullptr);
        }
    } else if (!block)
        return 0;
    else {
        f->wait = W_BAR;
        block_current();
        f->wait = W_NONE;
    }
    if (block) hb_acquire(b->sync + 16 * id + 8 * (ph & 1));
    return r.result;
}
void barrier_arrive(int id, int n, Loc loc)
{
    bar_wait(id, n, 3, 0, loc, "bar.arrive", false);
}
void barrier(int id, int n, Loc loc)
{
    bar_wait(id, n, 3, 0, loc, n ? "bar.sync" : "__syncthreads");
}
int barrier_red(int op, int pred, Loc loc)
{
    return bar_wait(0, 0, op, pred, loc, "__syncthreads_count/and/or");
}

// ------------------------------------------------------------------ shared memory
static void *arena_take(Block *b, size_t n, size_t al)
{
    size_t o = (b->arena_used + al - 1) & ~(al - 1);
    b->arena_used = o + ((n + 7) & ~(size_t)7) + 64; // 64-byte red zone after each object
    if (b->arena_used > ARENA) fail(Loc{}, "shared memory arena exhausted");
    void *p = b->arena + o;
    unpoison(p, n);
    fill(p, 0xff, n);
    mark_uninit(p, n);
    return p;
}
void *shared_static(const void *key, size_t n, size_t al)
{
    Block *b = F->blk;
    for (auto &v : b->vars)
        if (v.key == key) return v.p;
    size_t tot = n;
    for (auto &v : b->vars)
        if ((const char *)v.key < (const char *)b->arena || (const char *)v.key >= (const char *)b->arena + ARENA) tot += v.n;
    if (tot > SMEM_STATIC_MAX || tot + b->g->smem > SMEM_MAX)
        fail(Loc{}, "too much shared memory: %zu static + %zu dynamic bytes", tot, b->g->smem);
    void *p = arena_take(b, n, al < 16 ? 16 : al);
    b->vars.push_back({key, p, n});
    return p;
}
void *shared_dyn()
{
    Block *b = F->blk;
    if (!b->g->smem) fail(Loc{}, "kernel uses dynamic shared memory but was launched with none");
    return b->dyn;
}
// A part of the dynamic bytes: its place is accounted in the contiguous region at which *at points, its bytes lie apart,
// with a guard zone behind them, at an address of the same banks.
void *shared_carve(unsigned char **at, size_t stride, size_t n, Loc loc)
{
    Block *b = F->blk;
    size_t offset = (size_t)(*at - (unsigned char *)b->dyn);
    if (offset + stride > b->g->smem)
        fail(loc, "carve of %zu bytes at %zu: the launch gave %zu bytes of dynamic shared memory", n, offset,
             b->g->smem);
    *at += stride;
    for (auto &v : b->vars)
        if (v.key == (const void *)((uintptr_t)b->dyn + offset)) {
            if (v.n != n) fail(loc, "carve: %zu bytes at %zu, but another thread carved %zu there", n, offset, v.n);
            return v.p;
        }
    b->arena_used = (b->arena_used + 127) / 128 * 128 + offset % 128;
    void *p = arena_take(b, n, 16);
    b->vars.push_back({(const void *)((uintptr_t)b->dyn + offset), p, n});
    return p;
}
const void *check_shared(const void *p, size_t n, Loc loc)
{
    Block *b = F->blk;
    if ((uintptr_t)p % n) fail(loc, "misaligned shared address %p for a %zu-byte access", p, n);
    if ((const unsigned char *)p < b->arena || (const unsigned char *)p + n > b->arena + ARENA)
        fail(loc, "address %p is not in this block's shared memory", p);
    return p;
}

// ------------------------------------------------------------------ clock and counts
uint64_t device_ns()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
bool counting;
void count_slow(const volatile void *, size_t, AccessKind, Loc) {}

// ------------------------------------------------------------------ cp.async
static void cp_do(const CpOp &o)
{
    acc_read(o.src, o.src_bytes);
    acc_write(o.dst, o.bytes);
    memcpy(o.dst, o.src, o.src_bytes);
    memset((char *)o.dst + o.src_bytes, 0, o.bytes - o.src_bytes);
}
void cp_async(void *dst, const void *src, int bytes, int sb, Loc loc)
{
    Fiber *f = F;
    check_shared(dst, bytes, loc);
    if ((uintptr_t)src % bytes) fail(loc, "cp.async: misaligned global address %p", src);
    if (sb < 0 || sb > bytes) fail(loc, "cp.async: src_bytes %d", sb);
    CpOp o{dst, src, bytes, sb, f->cp_group};
    if (have_tsan()) acc_write(dst, bytes); // the destination belongs to the copy from issue to wait
    int m = cfg().cp_mode;
    if (m == 1 || (m == 2 && (W->rnd() & 1))) {
        cp_do(o);
        if (!have_tsan()) return;
    }
    if (f->cp_t - f->cp_h == CP_MAX) fail(loc, "more than %d cp.async in flight in one thread", CP_MAX);
    f->cp[f->cp_t++ % CP_MAX] = o;
}
void cp_async_commit()
{
    F->cp_group++;
}
void cp_async_wait(int n)
{
    Fiber *f = F;
    while (f->cp_h != f->cp_t && (int)(f->cp_group - f->cp[f->cp_h % CP_MAX].group) > n)
        cp_do(f->cp[f->cp_h++ % CP_MAX]);
}

// ------------------------------------------------------------------ fences and atomics (race detector only)
void fence()
{
    Fiber *f = F;
    if (f && have_tsan()) {
        f->fenced = true;
        if (f->last_atomic) hb_acquire((void *)f->last_atomic);
    }
}
void atomic_pre(const volatile void *p)
{
    Fiber *f = F;
    if (f && have_tsan() && f->fenced) hb_release((void *)p);
}
void atomic_post(const volatile void *p)
{
    Fiber *f = F;
    if (f) {
        f->last_atomic = p;
        atomic_pre(p);
    }
} // the atomic access itself is published too

// ------------------------------------------------------------------ running blocks
static void fiber_main()
{
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
    for (;;) {
        Fiber *f = F;
        Block *b = f->blk;
        Grid *g = b->g;
        hb_acquire(g->start_sync);
        hb_acquire(b->start_sync);
        g->d->thunk(g->fn, g->args);
        while (f->cp_h != f->cp_t) cp_do(f->cp[f->cp_h++ % CP_MAX]);
        hb_release(g->end_sync);
        Warp *w = f->warp;
        w->done |= 1u << f->lane;
        b->live--;
        if (b->bar[0].arrived)
            fail(b->bar[0].loc, "thread (%u,%u,%u) exits while %d threads wait at this barrier", f->tid.x, f->tid.y,
                 f->tid.z, b->bar[0].arrived);
        for (auto &p : w->pend)
            if (p.used) op_try(w, p);
        if (w->ready) {
            int l = pick(w->ready);
            w->ready &= ~(1u << l);
            jump(&f->sp, &w->f[l]);
        } else
            jump(&f->sp, nullptr);
    }
}
static size_t stack_bytes()
{
    int kb = cfg().stack_kb;
    if (!kb) kb = (__asan_loadN || have_tsan() || __msan_poison) ? 128 : 64;
    return (size_t)kb * 1024;
}
static void prep_fiber(Fiber *f, int i)
{
    uintptr_t top =
        (uintptr_t)f->stack + f->stack_size - (size_t)(i % 32) * 192 - 64; // colour the stacks: no cache-set pile-up
    top &= ~(uintptr_t)15;
    void **s = (void **)top;
    *--s = nullptr;
    *--s = (void *)fiber_main;
    for (int k = 0; k < 6; k++) *--s = nullptr;
    f->sp = s;
    f->started = true;
}
static Block *new_slot()
{
    Block *b = new Block();
    b->f = new Fiber[MAXT]();
    size_t ss = stack_bytes();
    char *m =
        (char *)mmap(nullptr, ss * MAXT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) {
        perror("cusim: mmap stacks");
        abort();
    }
    CpOp *cp = (CpOp *)mmap(nullptr, sizeof(CpOp) * CP_MAX * MAXT, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    b->vars.reserve(256);
    for (int i = 0; i < MAXT; i++) {
        b->f[i].cp = cp + (size_t)i * CP_MAX;
        b->f[i].stack = m + ss * i;
        b->f[i].stack_size = ss;
        b->f[i].blk = b;
        if (!have_tsan()) {
            mprotect(m + ss * i, 4096, PROT_NONE);
            b->f[i].stack = m + ss * i + 4096;
            b->f[i].stack_size = ss - 4096;
        }
    }
    b->arena = (unsigned char *)mmap(nullptr, ARENA, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return b;
}
static void start_block(Block *b, Grid *g, uint64_t idx)
{
    b->g = g;
    b->n = b->live = g->block.x * g->block.y * g->block.z;
    b->nwarps = (b->n + 31) / 32;
    b->bid.x = idx % g->grid.x;
    b->bid.y = idx / g->grid.x % g->grid.y;
    b->bid.z = idx / g->grid.x / g->grid.y;
    fill(b->bar, 0, sizeof b->bar);
    b->vars.clear();
    bool ts = have_tsan();
    if (ts && b->serial != g->serial) {
        b->serial = g->serial;
        b->round = 0;
        for (int i = 0; i < MAXT; i++)
            for (int k = 0; k < 2; k++)
                if (b->f[i].tset[k]) {
                    tsan_del(b->f[i].tset[k]);
                    b->f[i].tset[k] = nullptr;
                }
    }
    if (ts) { // a fresh arena and fresh stacks: no false reports against earlier blocks, no hidden ordering with them
        mmap(b->arena, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        mmap(b->f[0].stack, b->f[0].stack_size * b->n, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    }
    poison(b->arena, ARENA);
    b->arena_used = 1024;
    b->dyn = g->smem ? arena_take(b, g->smem, 1024) : nullptr;
    if (ts) {
        b->start_sync = fresh_sync(1);
        b->sync = fresh_sync(32);
        for (int i = 0; i < b->nwarps; i++) b->warps[i].sync = fresh_sync(4);
    }
    hb_release(b->start_sync);
    for (int i = 0; i < b->n; i++) {
        Fiber *f = &b->f[i];
        Warp *w = &b->warps[i / 32];
        f->warp = w;
        f->lane = i & 31;
        f->wait = W_NONE;
        f->fenced = false;
        f->last_atomic = nullptr;
        f->cp_group = f->cp_h = f->cp_t = 0;
        f->tid.x = i % g->block.x;
        f->tid.y = i / g->block.x % g->block.y;
        f->tid.z = i / g->block.x / g->block.y;
        if (ts) {
            void *&c = f->tset[b->round & 1];
            if (!c) c = tsan_new();
            f->tsan = c;
            f->started = false;
        } // odd and even blocks stay unordered
        if (!f->started) prep_fiber(f, i);
    }
    b->round++;
    for (int i = 0; i < b->nwarps; i++) {
        Warp *w = &b->warps[i];
        int n = std::min(32, b->n - i * 32);
        w->present = w->ready = n == 32 ? 0xffffffffu : (1u << n) - 1;
        w->done = 0;
        w->queued = false;
        w->blk = b;
        w->f = b->f + i * 32;
        w->gen = 0;
        for (auto &p : w->pend) p.used = false;
    }
}
static void deadlock(std::vector<Block *> &bs)
{
    for (Block *b : bs) {
        if (!b->live) continue;
        fprintf(stderr, "cusim: error: deadlock in %s block (%u,%u,%u), %d of %d threads alive\n",
                kernel_name(b->g->fn), b->bid.x, b->bid.y, b->bid.z, b->live, b->n);
        struct G {
            Loc l;
            const char *n;
            int cnt, first;
        };
        std::vector<G> gs;
        for (int i = 0; i < b->n; i++) {
            Fiber *f = &b->f[i];
            if (f->warp->done >> f->lane & 1) continue;
            bool hit = false;
            for (auto &x : gs)
                if (x.l.line == f->wloc.line && x.l.file == f->wloc.file) {
                    x.cnt++;
                    hit = true;
                }
            if (!hit) gs.push_back({f->wloc, f->wname, 1, i});
        }
        for (auto &x : gs)
            fprintf(stderr, "  %d threads (first %d) wait in %s at %s:%d\n", x.cnt, x.first, x.n, base(x.l.file),
                    x.l.line);
    }
    fflush(stderr);
    abort();
}
static void work(Grid *g)
{
    static __thread Worker *mine CS_TLS;
    if (!mine) {
        mine = new Worker();
        mine->q.reserve(1 << 16);
        mine->slots.reserve(1024);
    }
    W = mine;
    W->tsan_main = tsan_cur();
    W->rng = 2654435761u * (unsigned)(cfg().seed + 1) | 1;
    W->switches = 0;
    if (__sanitizer_start_switch_fiber && !W->mstk) {
        pthread_attr_t a;
        pthread_getattr_np(pthread_self(), &a);
        void *s;
        pthread_attr_getstack(&a, &s, &W->mstk_n);
        W->mstk = s;
        pthread_attr_destroy(&a);
    }
    uint3 st = threadIdx, sb = blockIdx;
    dim3 sd = blockDim, sg = gridDim;
    blockDim = g->block;
    gridDim = g->grid;
    size_t gang = g->coop ? g->nblocks : 1;
    std::vector<Block *> run;
    while (W->slots.size() < gang) W->slots.push_back(new_slot());
    for (;;) {
        run.clear();
        for (size_t i = 0; i < gang; i++) {
            uint64_t k = g->next++;
            if (k >= g->nblocks) break;
            if (cfg().seed < 0) k = g->nblocks - 1 - k;
            start_block(W->slots[i], g, k);
            run.push_back(W->slots[i]);
        }
        if (run.empty()) break;
        W->q.clear();
        W->qh = 0;
        for (Block *b : run)
            for (int i = 0; i < b->nwarps; i++) enqueue(&b->warps[cfg().seed < 0 ? b->nwarps - 1 - i : i]);
        while (W->qh < W->q.size()) {
            if (cfg().seed > 0) std::swap(W->q[W->qh], W->q[W->qh + W->rnd() % (W->q.size() - W->qh)]);
            Warp *w = W->q[W->qh++];
            w->queued = false;
            if (W->qh > 1 << 14) {
                W->q.erase(W->q.begin(), W->q.begin() + W->qh);
                W->qh = 0;
            }
            unsigned budget = 64; // bound spinning warps
            while (w->ready && budget--) {
                int l = pick(w->ready);
                w->ready &= ~(1u << l);
                jump(&W->main_sp, &w->f[l]);
            }
            enqueue(w);
        }
        for (Block *b : run)
            if (b->live) deadlock(run);
    }
    g->switches += W->switches;
    threadIdx = st;
    blockIdx = sb;
    blockDim = sd;
    gridDim = sg;
    W = nullptr;
}
// worker threads
struct Pool {
    std::mutex m;
    std::condition_variable cv, done;
    Grid *g = nullptr;
    uint64_t gen = 0;
    int busy = 0;
    std::vector<std::thread> th;
    Pool()
    {
        for (int i = 1; i < cfg().threads; i++)
            th.emplace_back([this] {
                uint64_t seen = 0;
                std::unique_lock<std::mutex> l(m);
                for (;;) {
                    cv.wait(l, [&] { return gen != seen; });
                    seen = gen;
                    Grid *x = g;
                    if (!x) continue;
                    l.unlock();
                    work(x);
                    l.lock();
                    if (!--busy) done.notify_all();
                }
            });
        for (auto &t : th) t.detach();
    }
};
static Pool &pool()
{
    static Pool *p = new Pool();
    return *p;
}

void run_grid(const void *fn, const KernelDesc *d, void *const *args, dim3 grid, dim3 block, size_t smem, bool coop)
{
    Grid g;
    g.fn = fn;
    g.d = d;
    g.args = args;
    g.grid = grid;
    g.block = block;
    g.smem = smem;
    g.coop = coop;
    static std::atomic<uint64_t> serial{0};
    g.serial = ++serial;
    g.nblocks = (uint64_t)grid.x * grid.y * grid.z;
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    g.start_sync = fresh_sync(1);
    g.end_sync = fresh_sync(1);
    hb_release(g.start_sync);
    bool par = cfg().threads > 1 && g.nblocks > 1 && !coop;
    if (par) {
        Pool &p = pool();
        std::lock_guard<std::mutex> l(p.m);
        p.g = &g;
        p.gen++;
        p.busy = cfg().threads - 1;
        p.cv.notify_all();
    }
    work(&g);
    if (par) {
        Pool &p = pool();
        std::unique_lock<std::mutex> l(p.m);
        p.done.wait(l, [&] { return p.busy == 0; });
    }
    hb_acquire(g.end_sync);
    if (cfg().trace) {
        clock_gettime(CLOCK_MONOTONIC, &t1);
        fprintf(stderr, "cusim: %-40.40s grid %u,%u,%u block %u,%u smem %zu  %.3f ms  %llu switches\n", kernel_name(fn),
                grid.x, grid.y, grid.z, block.x, block.y, smem,
                (t1.tv_sec - t0.tv_sec) * 1e3 + (t1.tv_nsec - t0.tv_nsec) * 1e-6, (unsigned long long)g.switches);
    }
}
// Under TSan a stream operation runs as its own logical thread, on a fresh stack, ordered only by explicit
// acquire/release.
struct Alone {
    void (*fn)(void *);
    void *arg;
    void *sp, *back;
    void *ctx, *main;
};
static __thread Alone *alone_cur CS_TLS;
static void alone_main()
{
    Alone *a = alone_cur;
    a->fn(a->arg);
    tsan_to(a->main);
    cs_switch(&a->sp, a->back);
    abort();
}
void run_alone(void (*fn)(void *), void *arg)
{
    if (!have_tsan()) {
        fn(arg);
        return;
    }
    size_t n = 512 * 1024;
    char *m = (char *)mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    Alone a{fn, arg, nullptr, nullptr, tsan_new(), tsan_cur()}, *prev = alone_cur;
    void **s = (void **)(m + n - 64);
    *--s = nullptr;
    *--s = (void *)alone_main;
    for (int k = 0; k < 6; k++) *--s = nullptr;
    alone_cur = &a;
    tsan_to(a.ctx);
    cs_switch(&a.back, s);
    alone_cur = prev;
    munmap(m, n);
    tsan_del(a.ctx);
}
static std::mutex reg_m;
static std::vector<std::pair<const void *, const KernelDesc *>> &reg()
{
    static auto *r = new std::vector<std::pair<const void *, const KernelDesc *>>();
    return *r;
}
const KernelDesc *find_kernel(const void *fn)
{
    std::lock_guard<std::mutex> l(reg_m);
    for (auto &x : reg())
        if (x.first == fn) return x.second;
    return nullptr;
}
void register_kernel(const void *fn, const KernelDesc *d)
{
    if (find_kernel(fn)) return;
    std::lock_guard<std::mutex> l(reg_m);
    reg().push_back({fn, d});
}
} // namespace cs
