/* The engine: runs the blocks of a grid as fibers, one fiber a CUDA thread, on the thread that drives the stream.
 *
 *   grid_run -> worker_loop: takes warps from a queue -> resumes a ready lane -> the lane runs until it waits for
 * others (barrier, warp operation, __nanosleep) and hands over to the next ready lane of its warp, or back to the loop.
 *
 * The last thread to arrive at a barrier or a warp operation completes it and goes on; the others become ready. So each
 * operation costs one switch a thread, and every disagreement (masks, places, exits) is seen by whoever arrives second.
 * A block without a ready thread is a deadlock and is named thread by thread.
 *
 * Blocks run one after the other, a cooperative grid all together. Where the running threads only yield (a spin on a
 * flag), the loop asks its host (struct Others) for another grid, of another stream or device, and runs that beside it:
 * so kernels of two ranks may wait for each other.
 *
 * Not instrumented in plain, ASan and TSan programs; built with -fsanitize=memory in MSan programs. */
#include "tests/emulator/engine_types.h"
#include <condition_variable>
#include <mutex>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <thread>
#include <time.h>

__thread uint3 threadIdx CS_TLS;
__thread uint3 blockIdx CS_TLS;
__thread dim3 blockDim CS_TLS;
__thread dim3 gridDim CS_TLS;

/* cs_switch(&save, to): keeps the callee-saved registers on the stack. Lanes of a warp wait at the same place, so call
 * and ret stay paired for the processor's return stack: to leave by a jump instead was slower. */
extern "C" void cs_switch(void **save, void *to);
asm(R"(
.text
.globl cs_switch
.hidden cs_switch
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
int env_int(const char *name, int otherwise)
{
    const char *value = getenv(name);
    return value && *value ? atoi(value) : otherwise;
}
EngineConfig config;
__thread Worker *worker CS_TLS;
__thread Fiber *current CS_TLS;

/* Every logical synchronisation has an address of its own that is never used again: reuse would leave stale orders. */
static char *fresh_sync(int n)
{
    static char *base =
        (char *)mmap(nullptr, (size_t)1 << 32, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    static std::atomic<uint64_t> next{0};
    return base + 8 * (next.fetch_add((uint64_t)n) & ((1ull << 29) - 1));
}

/* ---- messages */
const char *file_base(const char *path)
{
    const char *slash = path ? strrchr(path, '/') : nullptr;
    return slash ? slash + 1 : path ? path : "?";
}

void die(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "cusim: error: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    fflush(stderr);
    abort();
}

void fail(Loc loc, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "cusim: error: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n  at %s:%d", file_base(loc.file), loc.line);
    if (current) {
        const uint3 b = current->block->index, t = current->thread;
        fprintf(stderr, " in %s block (%u,%u,%u) thread (%u,%u,%u)", kernel_name(current->block->grid->launch.kernel),
                b.x, b.y, b.z, t.x, t.y, t.z);
    }
    fprintf(stderr, "\n");
    fflush(stderr);
    abort();
}

static void report_deadlock(const std::vector<Block *> &blocks)
{
    for (Block *b : blocks) {
        if (!b->live) continue;
        fprintf(stderr, "cusim: error: deadlock in %s block (%u,%u,%u), %d of %d threads alive\n",
                kernel_name(b->grid->launch.kernel), b->index.x, b->index.y, b->index.z, b->live, b->threads);
        struct Group {
            Loc at;
            const char *waits_in;
            int count, first;
        };
        std::vector<Group> groups;
        for (int i = 0; i < b->threads; i++) {
            Fiber *f = &b->fibers[i];
            if (f->warp->exited >> f->lane & 1) continue;
            bool found = false;
            for (Group &g : groups)
                if (g.at.line == f->at.line && g.at.file == f->at.file) {
                    g.count++;
                    found = true;
                }
            if (!found) groups.push_back({f->at, f->waits_in, 1, i});
        }
        for (const Group &g : groups)
            fprintf(stderr, "  %d threads (first %d) wait in %s at %s:%d\n", g.count, g.first, g.waits_in,
                    file_base(g.at.file), g.at.line);
    }
    fflush(stderr);
    abort();
}

/* ---- switching */
static inline void enter_fiber_variables(Fiber *to)
{
    threadIdx = to->thread;
    blockIdx = to->block->index;
    blockDim = to->block->grid->launch.block;
    gridDim = to->block->grid->launch.grid;
}

/* to == nullptr: the worker's loop. */
static inline void jump(void **save, Fiber *to)
{
    void *fake = nullptr;
    if (__sanitizer_start_switch_fiber) {
        if (to)
            __sanitizer_start_switch_fiber(&fake, to->stack, to->stack_bytes);
        else
            __sanitizer_start_switch_fiber(&fake, worker->main_stack, worker->main_stack_bytes);
    }
    if (worker->tsan_main) tsan_enter(to ? to->tsan : worker->tsan_main);
    current = to;
    cs_switch(save, to ? to->sp : worker->main_sp);
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}

static inline int pick(unsigned mask)
{
    if (config.seed == 0) return __builtin_ctz(mask);
    if (config.seed < 0) return 31 - __builtin_clz(mask);
    int skip = (int)(worker->random() % (unsigned)__builtin_popcount(mask));
    while (skip--) mask &= mask - 1;
    return __builtin_ctz(mask);
}

static void enqueue(Warp *w)
{
    if (!w->queued && w->ready) {
        w->queued = true;
        worker->queue.push_back(w);
    }
}

/* Gives the processor to the next ready lane of the warp, or to the loop. */
static inline void hand_over(Fiber *f)
{
    Warp *w = f->warp;
    if (!w->ready) {
        jump(&f->sp, nullptr);
        return;
    }
    const int lane = pick(w->ready);
    w->ready &= ~(1u << lane);
    Fiber *to = &w->fibers[lane];
    if (to == f) return;
    threadIdx = to->thread;
    jump(&f->sp, to);
}

void yield(Loc loc)
{
    Fiber *f = current;
    if (!f) return;
    f->at = loc;
    f->waits_in = "a loop with __nanosleep";
    worker->yields++;
    f->warp->yielded |= 1u << f->lane; /* ready again when the loop has left this warp */
    hand_over(f);
}

/* ---- warp operations */
static void pending_complete(Warp *w, Pending &p)
{
    if (!p.sync) warp_execute(w, p);
    p.used = false;
    w->pending_count--;
    w->ready |= p.arrived;
}

/* A lane has exited: the operation may now be complete. */
static void pending_try(Warp *w, Pending &p)
{
    const unsigned need = p.mask & w->present & ~w->exited;
    if (!need || p.arrived != need) return;
    if (!p.sync && p.op >= LDMATRIX_X2 && need != 0xffffffffu)
        fail(p.loc, "%s: lanes 0x%08x exited instead of taking part", warp_op_name(p.op, false), ~need);
    pending_complete(w, p);
    enqueue(w);
}

/* Finds the operation that this lane joins, or opens one; every disagreement ends here. */
static Pending *pending_find(Warp *w, unsigned bit, WarpOp op, bool sync, unsigned mask, int size, Loc loc)
{
    Pending *found = nullptr, *unused = nullptr;
    for (Pending &p : w->pending) {
        if (!p.used) {
            if (!unused) unused = &p;
            continue;
        }
        if (p.mask == mask && p.op == op && p.sync == sync && p.size == size && !(p.arrived & bit))
            found = &p;
        else if ((p.mask & bit) && (p.arrived & mask)) /* they wait for this lane there, it would wait for them here */
            fail(loc,
                 "lanes of one warp disagree: lane %d runs %s mask 0x%08x, while lanes 0x%08x wait for it in %s mask "
                 "0x%08x at %s:%d",
                 __builtin_ctz(bit), warp_op_name(op, sync), mask, p.arrived, warp_op_name(p.op, p.sync), p.mask,
                 file_base(p.loc.file), p.loc.line);
    }
    if (found) return found;
    if (!unused) fail(loc, "too many warp operations in flight");
    *unused = Pending{op, mask, 0, size, loc, true, sync, w->generation++};
    w->pending_count++;
    return unused;
}

static void warp_check(Warp *w, unsigned bit, WarpOp op, bool sync, unsigned mask, int width, Loc loc)
{
    if (!(mask & bit))
        fail(loc, "%s: lane %d is not in its own mask 0x%08x", warp_op_name(op, sync), __builtin_ctz(bit), mask);
    if (!sync && op >= LDMATRIX_X2 && (w->present != 0xffffffffu || w->exited))
        fail(loc, "%s needs 32 live lanes (present 0x%08x, exited 0x%08x)", warp_op_name(op, sync), w->present,
             w->exited);
    if (!sync && op <= SHFL_XOR && (width <= 0 || width > 32 || (width & (width - 1))))
        fail(loc, "shuffle width %d", width);
}

static int warp_arrive(WarpOp op, bool sync, unsigned mask, const void *in, void *out, int size, int a, int b, Loc loc)
{
    Fiber *f = current;
    if (!f) fail(loc, "%s outside a kernel", warp_op_name(op, sync));
    Warp *w = f->warp;
    const int lane = f->lane;
    const unsigned bit = 1u << lane;
    warp_check(w, bit, op, sync, mask, b, loc);
    mask &= w->present; /* a partial last warp */
    Pending *p = &w->pending[0];
    if (w->pending_count != 1 || !p->used || p->mask != mask || p->op != op || p->sync != sync || p->size != size ||
        (p->arrived & bit))
        p = pending_find(w, bit, op, sync, mask, size, loc);
    if (!sync && op >= LDMATRIX_X2 && p->loc.line != loc.line)
        fail(loc, "divergent %s: other lanes are at %s:%d", warp_op_name(op, sync), file_base(p->loc.file),
             p->loc.line);
    w->in[lane] = in;
    w->out[lane] = out;
    w->a[lane] = a;
    w->b[lane] = b;
    f->at = loc;
    f->waits_in = warp_op_name(op, sync);
    p->arrived |= bit;
    const int generation = p->generation;
    if (sync) order_release(w->sync + 8 * (generation & 3));
    if (p->arrived == (p->mask & ~w->exited)) {
        pending_complete(w, *p);
        w->ready &= ~bit;
        if (config.seed > 0) {
            w->ready |= bit;
            hand_over(f);
        }
    } else {
        hand_over(f);
    }
    return generation;
}

void warp_op(WarpOp op, unsigned mask, const void *in, void *out, int size, int a, int b, Loc loc)
{
    warp_arrive(op, false, mask, in, out, size, a, b, loc);
}

void syncwarp(unsigned mask, Loc loc)
{
    Fiber *f = current;
    const int generation = warp_arrive(BALLOT, true, mask, nullptr, nullptr, 0, 0, 0, loc);
    order_acquire(f->warp->sync + 8 * (generation & 3));
}

unsigned active_mask()
{
    return current->warp->present & ~current->warp->exited;
}

unsigned lane_id()
{
    return current->lane;
}

/* ---- block barriers */
enum { BARRIER_COUNT, BARRIER_AND, BARRIER_OR, BARRIER_PLAIN };

static void barrier_check(Block *b, Barrier &r, int id, int threads, int op, Loc loc, const char *name)
{
    if (threads & 31) fail(loc, "barrier thread count %d is not a multiple of 32", threads);
    if (!threads && b->live != b->threads)
        fail(loc, "%s: %d of %d threads of the block have exited", name, b->threads - b->live, b->threads);
    const int expected = threads ? threads : b->threads;
    if (!r.arrived) {
        r.expected = expected;
        r.loc = loc;
        r.op = op;
        r.accumulated = op == BARRIER_AND ? 1 : 0;
        return;
    }
    if (r.expected != expected || r.op != op)
        fail(loc, "barrier %d used with different counts or kinds (%d at %s:%d, here %d)", id, r.expected,
             file_base(r.loc.file), r.loc.line, expected);
    if (!threads && (r.loc.line != loc.line || r.loc.file != loc.file))
        fail(loc, "divergent %s: other threads of the block wait at %s:%d", name, file_base(r.loc.file), r.loc.line);
}

static void barrier_complete(Fiber *f, Block *b, Barrier &r, bool waits)
{
    r.result = r.accumulated;
    r.arrived = 0;
    r.phase++;
    worker->yields = 0;
    const unsigned me = waits ? 1u << f->lane : 0;
    for (int i = 0; i < b->warp_count; i++) {
        Warp *w = &b->warps[i];
        if (!r.waiting[i]) continue;
        w->ready |= w == f->warp ? r.waiting[i] & ~me : r.waiting[i];
        r.waiting[i] = 0;
        if (w != f->warp) enqueue(w);
    }
    if (waits && config.seed > 0) {
        f->warp->ready |= me;
        enqueue(f->warp);
        jump(&f->sp, nullptr);
    }
}

static int barrier_arrive_at(int id, int threads, int op, int predicate, Loc loc, const char *name, bool waits)
{
    Fiber *f = current;
    if (!f) fail(loc, "%s outside a kernel", name);
    if (id < 0 || id > 15) fail(loc, "barrier id %d", id);
    Block *b = f->block;
    Barrier &r = b->barriers[id];
    barrier_check(b, r, id, threads, op, loc, name);
    if (op == BARRIER_COUNT) r.accumulated += !!predicate;
    if (op == BARRIER_AND) r.accumulated &= !!predicate;
    if (op == BARRIER_OR) r.accumulated |= !!predicate;
    const unsigned phase = r.phase;
    char *sync = b->sync + 16 * id + 8 * (phase & 1);
    order_release(sync);
    if (waits) r.waiting[f->warp - b->warps] |= 1u << f->lane;
    f->at = loc;
    f->waits_in = name;
    if (++r.arrived == r.expected)
        barrier_complete(f, b, r, waits);
    else if (!waits)
        return 0;
    else
        hand_over(f);
    if (waits) order_acquire(sync);
    return r.result;
}

void barrier_arrive(int id, int threads, Loc loc)
{
    barrier_arrive_at(id, threads, BARRIER_PLAIN, 0, loc, "bar.arrive", false);
}

void barrier(int id, int threads, Loc loc)
{
    barrier_arrive_at(id, threads, BARRIER_PLAIN, 0, loc, threads ? "bar.sync" : "__syncthreads", true);
}

int barrier_red(int op, int predicate, Loc loc)
{
    return barrier_arrive_at(0, 0, op, predicate, loc, "__syncthreads_count/and/or", true);
}

/* ---- shared memory: every object lies in the block's arena with a guard zone behind it. The zone is poisoned for
 * ASan, and holds a pattern that is compared when the block ends, so that a plain build finds a stray write too. */
static SharedPart arena_take(Block *b, size_t bytes, size_t alignment, size_t phase)
{
    const size_t offset = ((b->arena_used + alignment - 1) & ~(alignment - 1)) + phase;
    const size_t rounded = (bytes + 7) & ~(size_t)7, front = offset - b->arena_used;
    b->arena_used = offset + rounded + GUARD_BYTES;
    if (b->arena_used > ARENA_BYTES) fail(Loc{}, "shared memory arena exhausted");
    unsigned char *p = b->arena + offset;
    fill(p - front, GUARD_BYTE, front);
    fill(p + bytes, GUARD_BYTE, rounded - bytes + GUARD_BYTES);
    unpoison(p, rounded);
    poison(p + rounded, GUARD_BYTES);
    if (rounded > bytes) {
        poison(p, rounded);
        unpoison(p, bytes);
    }
    fill(p, 0xff, bytes);
    mark_uninitialised(p, bytes);
    SharedPart part = {};
    part.at = p;
    part.bytes = bytes;
    part.front = front;
    return part;
}

static void guards_check(Block *b)
{
    for (const SharedPart &part : b->parts) {
        const unsigned char *end = part.at + part.bytes;
        long stray = -1;
        for (size_t i = 0; i < GUARD_BYTES && stray < 0; i++)
            if (end[i] != GUARD_BYTE) stray = (long)i;
        for (size_t i = 1; i <= part.front && stray < 0; i++)
            if (part.at[-(long)i] != GUARD_BYTE) stray = -(long)(part.bytes + i);
        if (stray >= 0 || stray < -1)
            die("stray write in %s: byte %ld of the %zu that are %s at %s:%d", kernel_name(b->grid->launch.kernel),
                stray >= 0 ? (long)part.bytes + stray : stray + (long)part.bytes, part.bytes,
                part.carved ? "carved" : "declared", file_base(part.loc.file), part.loc.line);
    }
}

void *shared_static(const void *key, size_t bytes, size_t alignment, Loc loc)
{
    Block *b = current->block;
    for (const SharedPart &part : b->parts)
        if (part.key == key) return part.at;
    size_t total = bytes;
    for (const SharedPart &part : b->parts)
        if (!part.carved && part.key != b) total += part.bytes;
    if (total > SHARED_STATIC_MAX || total + b->grid->launch.shared_bytes > SHARED_MAX)
        fail(loc, "too much shared memory: %zu static + %zu dynamic bytes", total, b->grid->launch.shared_bytes);
    if (total > b->grid->shared_static) b->grid->shared_static = total;
    SharedPart part = arena_take(b, bytes, alignment < 16 ? 16 : alignment, 0);
    part.key = key;
    part.loc = loc;
    b->parts.push_back(part);
    return part.at;
}

void *shared_dyn(Loc loc)
{
    Block *b = current->block;
    if (!b->grid->launch.shared_bytes) fail(loc, "kernel uses dynamic shared memory but was launched with none");
    b->dynamic_loc = loc;
    return b->dynamic;
}

/* A part of the dynamic bytes: it is accounted in the contiguous region at which *at points; its bytes lie apart, with
 * a guard zone behind them, at an address of the same banks. */
void *shared_carve(unsigned char **at, size_t stride, size_t bytes, Loc loc)
{
    Block *b = current->block;
    unsigned char *const key = *at;
    const size_t offset = (size_t)(key - b->dynamic), limit = b->grid->launch.shared_bytes;
    if (key < b->dynamic || offset + stride > limit)
        fail(loc, "carve of %zu bytes at %zu: the launch gave %zu bytes of dynamic shared memory", bytes, offset,
             limit);
    *at += stride;
    for (const SharedPart &part : b->parts) {
        if (!part.carved || part.key != key) continue;
        if (part.bytes != bytes)
            fail(loc, "carve: %zu bytes at %zu, but %s:%d carves %zu there", bytes, offset, file_base(part.loc.file),
                 part.loc.line, part.bytes);
        return part.at;
    }
    SharedPart part = arena_take(b, bytes, 128, offset % 128);
    part.key = key;
    part.loc = loc;
    part.carved = true;
    b->parts.push_back(part);
    return part.at;
}

const void *check_shared(const void *p, size_t bytes, Loc loc)
{
    Block *b = current->block;
    if ((uintptr_t)p % bytes) fail(loc, "misaligned shared address %p for a %zu-byte access", p, bytes);
    if ((const unsigned char *)p < b->arena || (const unsigned char *)p + bytes > b->arena + ARENA_BYTES)
        fail(loc, "address %p is not in this block's shared memory", p);
    return p;
}

/* ---- cp.async: the destination belongs to the copy from issue to wait */
static void copy_land(const Copy &c)
{
    access_read(c.source, (size_t)c.source_bytes);
    access_write(c.target, (size_t)c.bytes);
    memcpy(c.target, c.source, (size_t)c.source_bytes);
    memset((char *)c.target + c.source_bytes, 0, (size_t)(c.bytes - c.source_bytes));
}

void cp_async(void *target, const void *source, int bytes, int source_bytes, Loc loc)
{
    Fiber *f = current;
    check_shared(target, (size_t)bytes, loc);
    if ((uintptr_t)source % (size_t)bytes) fail(loc, "cp.async: misaligned global address %p", source);
    if (source_bytes < 0 || source_bytes > bytes) fail(loc, "cp.async: source_bytes %d", source_bytes);
    if (source_bytes) count_access(source, (size_t)source_bytes, READ, loc);
    count_access(target, (size_t)bytes, WRITE, loc);
    const Copy c{target, source, bytes, source_bytes, f->copy_group};
    if (have_tsan()) access_write(target, (size_t)bytes);
    if (config.copy_mode == 1 || (config.copy_mode == 2 && (worker->random() & 1))) {
        copy_land(c);
        if (!have_tsan()) return;
    }
    if (f->copy_tail - f->copy_head == COPIES_MAX)
        fail(loc, "more than %d cp.async in flight in one thread", COPIES_MAX);
    f->copies[f->copy_tail++ % COPIES_MAX] = c;
}

void cp_async_commit()
{
    current->copy_group++;
}

void cp_async_wait(int groups)
{
    Fiber *f = current;
    while (f->copy_head != f->copy_tail && (int)(f->copy_group - f->copies[f->copy_head % COPIES_MAX].group) > groups)
        copy_land(f->copies[f->copy_head++ % COPIES_MAX]);
}

/* ---- fences, atomics and flags (for the race detector; the memory of x86 is strong enough for the rest) */
void fence()
{
    Fiber *f = current;
    if (!f || !have_tsan()) return;
    f->fenced = true;
    if (f->last_atomic) order_acquire((void *)f->last_atomic);
}

void atomic_pre(const volatile void *p)
{
    Fiber *f = current;
    if (f && f->fenced && have_tsan()) order_release((void *)p);
}

void atomic_post(const volatile void *p)
{
    Fiber *f = current;
    if (!f) return;
    f->last_atomic = p;
    atomic_pre(p);
}

uint64_t device_ns()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- fibers and blocks */
static void fiber_main()
{
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
    for (;;) {
        Fiber *f = current;
        Block *b = f->block;
        Grid *g = b->grid;
        order_acquire(g->start_sync);
        order_acquire(b->start_sync);
        g->launch.desc->thunk(g->launch.kernel, g->launch.args);
        while (f->copy_head != f->copy_tail) copy_land(f->copies[f->copy_head++ % COPIES_MAX]);
        order_release(g->end_sync);
        Warp *w = f->warp;
        w->exited |= 1u << f->lane;
        if (!--b->live) worker->ended.push_back(b);
        if (b->barriers[0].arrived)
            fail(b->barriers[0].loc, "thread (%u,%u,%u) exits while %d threads wait at this barrier", f->thread.x,
                 f->thread.y, f->thread.z, b->barriers[0].arrived);
        if (w->pending_count)
            for (Pending &p : w->pending)
                if (p.used) pending_try(w, p);
        hand_over(f);
    }
}

static size_t stack_bytes()
{
    int kb = config.stack_kb;
    if (!kb) kb = have_asan() || have_tsan() || have_msan() ? 128 : 64;
    return (size_t)kb * 1024;
}

static void fiber_prepare(Fiber *f, int i)
{
    /* Tops are coloured: at equal offsets all stacks would fall into the same cache sets. */
    uintptr_t top = (uintptr_t)f->stack + f->stack_bytes - (size_t)(i % 32) * 192 - 64;
    top &= ~(uintptr_t)15;
    void **s = (void **)top;
    *--s = nullptr;
    *--s = (void *)fiber_main;
    for (int k = 0; k < 6; k++) *--s = nullptr;
    f->sp = s;
    f->started = true;
}

static void *map_pages(size_t bytes, void *fixed = nullptr)
{
    void *p = mmap(fixed, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (fixed ? MAP_FIXED : 0), -1, 0);
    if (p == MAP_FAILED) die("no memory for %zu bytes of stacks", bytes);
    return p;
}

static Block *block_new()
{
    Block *b = new Block();
    b->fibers = new Fiber[THREADS_MAX]();
    const size_t each = stack_bytes();
    char *stacks = (char *)map_pages(each * THREADS_MAX);
    Copy *copies = (Copy *)map_pages(sizeof(Copy) * COPIES_MAX * THREADS_MAX);
    b->parts.reserve(256);
    for (int i = 0; i < THREADS_MAX; i++) {
        Fiber *f = &b->fibers[i];
        f->copies = copies + (size_t)i * COPIES_MAX;
        f->stack = stacks + each * (size_t)i;
        f->stack_bytes = each;
        f->block = b;
    }
    b->arena = (unsigned char *)map_pages(ARENA_BYTES);
    return b;
}

/* Under TSan a block gets a fresh arena, fresh stacks and fresh contexts: no false report against an earlier block, and
 * no order with it that hides a race. Contexts alternate over two sets, so only odd and even blocks stay unordered. */
static void block_fresh(Block *b, Grid *g)
{
    if (b->serial != g->serial) {
        b->serial = g->serial;
        b->round = 0;
        for (int i = 0; i < THREADS_MAX; i++)
            for (void *&context : b->fibers[i].tsan_odd_even) {
                tsan_delete(context);
                context = nullptr;
            }
    }
    map_pages(ARENA_BYTES, b->arena);
    map_pages(b->fibers[0].stack_bytes * (size_t)b->threads, b->fibers[0].stack);
    b->start_sync = fresh_sync(1);
    b->sync = fresh_sync(32);
    for (int i = 0; i < b->warp_count; i++) b->warps[i].sync = fresh_sync(4);
}

/* A guard page below each stack that is used for the first time (under TSan stacks are mapped anew for each block).
 * Each divides a mapping into three, and Linux gives a process 65,530 (vm.max_map_count): where many blocks of joint
 * launches are resident at a time, the later ones go without. */
static void stacks_guard(Block *b)
{
    enum { GUARDS_MAX = 20000 };
    static std::atomic<int> guards;
    for (; b->guarded < b->threads; b->guarded++) {
        Fiber *f = &b->fibers[b->guarded];
        if (guards.fetch_add(1) >= GUARDS_MAX) continue;
        mprotect(f->stack, 4096, PROT_NONE);
        f->stack = (char *)f->stack + 4096;
        f->stack_bytes -= 4096;
    }
}

static void block_start(Block *b, Grid *g, uint64_t index)
{
    const dim3 n = g->launch.grid, t = g->launch.block;
    b->grid = g;
    b->threads = b->live = (int)(t.x * t.y * t.z);
    b->warp_count = (b->threads + 31) / 32;
    b->index.x = (unsigned)(index % n.x);
    b->index.y = (unsigned)(index / n.x % n.y);
    b->index.z = (unsigned)(index / n.x / n.y);
    fill(b->barriers, 0, sizeof b->barriers);
    b->parts.clear();
    const bool tsan = have_tsan();
    if (tsan)
        block_fresh(b, g);
    else
        stacks_guard(b);
    poison(b->arena, ARENA_BYTES);
    b->arena_used = 1024;
    b->dynamic = nullptr;
    if (g->launch.shared_bytes) {
        SharedPart all = arena_take(b, g->launch.shared_bytes, 1024, 0);
        all.key = b;
        all.loc = Loc{"KX_SHARED_DYN", 0};
        b->parts.push_back(all);
        b->dynamic = all.at;
    }
    order_release(b->start_sync);
    for (int i = 0; i < b->threads; i++) {
        Fiber *f = &b->fibers[i];
        f->warp = &b->warps[i / 32];
        f->lane = i & 31;
        f->fenced = false;
        f->last_atomic = nullptr;
        f->copy_group = f->copy_head = f->copy_tail = 0;
        f->thread.x = (unsigned)i % t.x;
        f->thread.y = (unsigned)i / t.x % t.y;
        f->thread.z = (unsigned)i / t.x / t.y;
        if (tsan) {
            void *&context = f->tsan_odd_even[b->round & 1];
            if (!context) context = tsan_new();
            f->tsan = context;
            f->started = false;
        }
        if (!f->started) fiber_prepare(f, i);
    }
    b->round++;
    for (int i = 0; i < b->warp_count; i++) {
        Warp *w = &b->warps[i];
        const int lanes = std::min(32, b->threads - i * 32);
        w->present = w->ready = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
        w->exited = w->yielded = 0;
        w->queued = false;
        w->block = b;
        w->fibers = b->fibers + i * 32;
        w->generation = w->pending_count = 0;
        for (Pending &p : w->pending) p.used = false;
    }
}

/* ---- grids */
Grid *grid_create(const Launch &launch)
{
    static std::atomic<uint64_t> serial{0};
    Grid *g = new Grid();
    g->launch = launch;
    g->serial = ++serial;
    g->blocks = (uint64_t)launch.grid.x * launch.grid.y * launch.grid.z;
    g->left = g->blocks;
    g->start_sync = fresh_sync(1);
    g->end_sync = fresh_sync(1);
    if (counting) counters_grid_begin(g);
    return g;
}

void grid_begin(Grid *g)
{
    order_release(g->start_sync);
}

void grid_end(Grid *g)
{
    order_acquire(g->end_sync);
}

static bool block_next(Worker *w, Grid *g)
{
    uint64_t index = g->next++;
    if (index >= g->blocks) return false;
    if (config.seed < 0) index = g->blocks - 1 - index;
    if (w->free_blocks.empty()) w->free_blocks.push_back(block_new());
    Block *b = w->free_blocks.back();
    w->free_blocks.pop_back();
    block_start(b, g, index);
    w->live_blocks.push_back(b);
    for (int i = 0; i < b->warp_count; i++) enqueue(&b->warps[config.seed < 0 ? b->warp_count - 1 - i : i]);
    w->yields = 0;
    return true;
}

/* Starts what may run together: all blocks of a cooperative grid, else one a worker. */
static void grid_admit(Worker *w, Grid *g)
{
    if (!g->launch.cooperative) {
        block_next(w, g);
        return;
    }
    while (block_next(w, g)) {
    }
}

/* Returns the number of grids that ended. */
static void blocks_reap(Worker *w, Others *others, Grid *first)
{
    while (!w->ended.empty()) {
        Block *b = w->ended.back();
        w->ended.pop_back();
        guards_check(b);
        if (counting)
            for (int i = 0; i < b->warp_count; i++) counters_warp_end(&b->warps[i]);
        Grid *g = b->grid;
        w->live_blocks.erase(std::find(w->live_blocks.begin(), w->live_blocks.end(), b));
        w->free_blocks.push_back(b);
        w->yields = 0;
        if (!g->launch.cooperative) block_next(w, g);
        if (g->left.fetch_sub(1) == 1 && g != first) others->finished(g);
    }
}

static void worker_stalled(Worker *w, Others *others, Grid *first)
{
    w->yields = 0;
    Fiber *spinner = nullptr;
    for (Block *b : w->live_blocks)
        for (int i = 0; i < b->warp_count && !spinner; i++)
            if (b->warps[i].ready) spinner = &b->warps[i].fibers[__builtin_ctz(b->warps[i].ready)];
    if (!others || !spinner) {
        sched_yield();
        return;
    }
    if (!first->left) others->finished(first); /* what spins may wait for what follows it */
    Grid *more = others->stalled(spinner->block->grid->launch);
    if (more) grid_admit(w, more);
}

static void worker_loop(Worker *w, Others *others, Grid *first)
{
    for (;;) {
        blocks_reap(w, others, first);
        if (w->live_blocks.empty()) return;
        if (w->head == w->queue.size()) report_deadlock(w->live_blocks);
        if (config.seed > 0)
            std::swap(w->queue[w->head], w->queue[w->head + w->random() % (w->queue.size() - w->head)]);
        Warp *warp = w->queue[w->head++];
        warp->queued = false;
        if (w->head > 1 << 14) {
            w->queue.erase(w->queue.begin(), w->queue.begin() + (long)w->head);
            w->head = 0;
        }
        /* A bound, so that a spinning warp does not keep the others out. */
        for (int budget = 64; warp->ready && budget; budget--) {
            const int lane = pick(warp->ready);
            warp->ready &= ~(1u << lane);
            enter_fiber_variables(&warp->fibers[lane]);
            jump(&w->main_sp, &warp->fibers[lane]);
        }
        warp->ready |= warp->yielded;
        warp->yielded = 0;
        enqueue(warp);
        if (w->yields > 64 + 8 * w->queue.size() - 8 * w->head) worker_stalled(w, others, first);
    }
}

static Worker *worker_of_thread()
{
    static __thread Worker *mine CS_TLS;
    static std::mutex m;
    static auto *all = new std::vector<Worker *>(); /* keeps them reachable after their thread has ended */
    if (!mine) {
        mine = new Worker();
        mine->queue.reserve(1 << 16);
        mine->live_blocks.reserve(1024);
        mine->free_blocks.reserve(1024);
        mine->ended.reserve(1024);
        std::lock_guard<std::mutex> l(m);
        all->push_back(mine);
    }
    return mine;
}

static void worker_run(Grid *g, Others *others)
{
    Worker *w = worker_of_thread();
    worker = w;
    w->tsan_main = tsan_current();
    w->rng = 2654435761u * (unsigned)(config.seed + 1) | 1;
    w->yields = 0;
    if (__sanitizer_start_switch_fiber && !w->main_stack) {
        pthread_attr_t attributes;
        void *stack;
        pthread_getattr_np(pthread_self(), &attributes);
        pthread_attr_getstack(&attributes, &stack, &w->main_stack_bytes);
        pthread_attr_destroy(&attributes);
        w->main_stack = stack;
    }
    const uint3 saved_thread = threadIdx, saved_block = blockIdx;
    const dim3 saved_block_dim = blockDim, saved_grid_dim = gridDim;
    w->queue.clear();
    w->head = 0;
    grid_admit(w, g);
    worker_loop(w, others, g);
    threadIdx = saved_thread;
    blockIdx = saved_block;
    blockDim = saved_block_dim;
    gridDim = saved_grid_dim;
    worker = nullptr;
}

/* Threads beside the driving one (CUSIM_THREADS); they help one grid at a time. */
struct Pool {
    std::mutex m;
    std::condition_variable work, done;
    Grid *grid = nullptr;
    uint64_t generation = 0;
    int busy = 0;
    std::atomic<bool> taken{false};

    Pool()
    {
        for (int i = 1; i < config.threads; i++) std::thread([this] { help(); }).detach();
    }
    void help()
    {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> l(m);
        for (;;) {
            work.wait(l, [&] { return generation != seen; });
            seen = generation;
            Grid *g = grid;
            l.unlock();
            worker_run(g, nullptr);
            l.lock();
            if (!--busy) done.notify_all();
        }
    }
    void start(Grid *g)
    {
        std::lock_guard<std::mutex> l(m);
        grid = g;
        generation++;
        busy = config.threads - 1;
        work.notify_all();
    }
    void join()
    {
        std::unique_lock<std::mutex> l(m);
        done.wait(l, [&] { return busy == 0; });
        taken = false;
    }
};

static Pool &pool()
{
    static Pool *p = new Pool();
    return *p;
}

static std::mutex registry_mutex;
struct Registered {
    const void *kernel;
    const KernelDesc *desc;
    size_t shared_static;
};
static std::vector<Registered> &registry()
{
    static auto *r = new std::vector<Registered>();
    return *r;
}

void grid_run(Grid *g, Others *others)
{
    const uint64_t start_ns = config.trace ? device_ns() : 0;
    const bool parallel = config.threads > 1 && g->blocks > 1 && !g->launch.cooperative && !pool().taken.exchange(true);
    if (parallel) pool().start(g);
    worker_run(g, others);
    if (parallel) pool().join();
    if (config.trace) {
        const Launch &l = g->launch;
        fprintf(stderr, "cusim: %-40.40s grid %u,%u,%u block %u,%u shared %zu  %.3f ms\n", kernel_name(l.kernel),
                l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y, l.shared_bytes,
                (double)(device_ns() - start_ns) * 1e-6);
    }
}

void grid_destroy(Grid *g)
{
    {
        std::lock_guard<std::mutex> l(registry_mutex);
        for (Registered &r : registry())
            if (r.kernel == g->launch.kernel && g->shared_static > r.shared_static) r.shared_static = g->shared_static;
    }
    delete g;
}

/* ---- kernels */
const KernelDesc *find_kernel(const void *kernel)
{
    std::lock_guard<std::mutex> l(registry_mutex);
    for (const Registered &r : registry())
        if (r.kernel == kernel) return r.desc;
    return nullptr;
}

void register_kernel(const void *kernel, const KernelDesc *desc)
{
    if (find_kernel(kernel)) return;
    std::lock_guard<std::mutex> l(registry_mutex);
    registry().push_back({kernel, desc, 0});
}

size_t kernel_static_shared(const void *kernel)
{
    std::lock_guard<std::mutex> l(registry_mutex);
    for (const Registered &r : registry())
        if (r.kernel == kernel) return r.shared_static;
    return 0;
}

/* ---- stream operations as threads of their own, for TSan */
struct Alone {
    void (*fn)(void *);
    void *arg, *sp, *back, *context, *main;
};
static __thread Alone *alone_current CS_TLS;

static void alone_main()
{
    Alone *a = alone_current;
    a->fn(a->arg);
    tsan_enter(a->main);
    cs_switch(&a->sp, a->back);
    abort();
}

void run_alone(void (*fn)(void *), void *arg)
{
    if (!have_tsan()) {
        fn(arg);
        return;
    }
    const size_t bytes = 512 * 1024;
    char *stack = (char *)map_pages(bytes);
    Alone a{fn, arg, nullptr, nullptr, tsan_new(), tsan_current()}, *outer = alone_current;
    void **s = (void **)(stack + bytes - 64);
    *--s = nullptr;
    *--s = (void *)alone_main;
    for (int k = 0; k < 6; k++) *--s = nullptr;
    alone_current = &a;
    tsan_enter(a.context);
    cs_switch(&a.back, s);
    alone_current = outer;
    munmap(stack, bytes);
    tsan_delete(a.context);
}
} // namespace cs
