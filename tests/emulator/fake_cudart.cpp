/* A CUDA runtime whose devices are host memory and whose kernels are fibers.
 *
 * Streams are pulled, not pushed: an operation runs only when something that the program waits for needs it (lazy), or as
 * soon as it could (eager), or at random. */
#include "tests/emulator/fakes.h"
#include <deque>
#include <mutex>
#include <condition_variable>
#include <algorithm>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

using cs::hb_acquire;
using cs::hb_release;
struct CUstream_st;
struct CUevent_st;
struct Op {
    const char *name;
    fk::Fn fn;
    std::shared_ptr<fk::Gate> gate;
    std::vector<std::pair<CUstream_st *, uint64_t>> deps;
    std::vector<void *> acq, rel;
    char sync = 0;
};
struct Node {
    const char *name;
    fk::Fn fn;
    fk::MkGate mk;
    std::vector<int> deps;
};
struct CUgraph_st {
    std::vector<Node> n;
};
struct CUgraphExec_st {
    std::vector<Node> n;
    std::vector<int> order;
    std::vector<std::unique_ptr<char>> sync;
    uint64_t launches = 0;
    CUstream_st *busy = nullptr;
    uint64_t busy_n = 0;
};
struct CUstream_st {
    int dev, id;
    bool blocking, legacy, alive = true;
    std::deque<std::shared_ptr<Op>> q;
    uint64_t pushed = 0, done = 0;
    bool driving = false;
    pthread_t driver;
    char sync = 0;
    CUgraph_st *cap = nullptr;
    CUstream_st *cap_origin = nullptr;
    std::vector<int> cap_deps;
    bool cap_bad = false;
    int cap_mode = 0;
    pthread_t cap_thread;
};
struct CUevent_st {
    unsigned flags;
    int dev;
    CUstream_st *s = nullptr;
    uint64_t n = 0;
    double t = 0;
    CUgraph_st *cap = nullptr;
    std::vector<int> cap_deps;
    char sync = 0;
};

namespace
{
struct Alloc {
    uintptr_t base;
    size_t n;
    int dev;
    bool freed;
}; // dev -1: pinned host
// Sorted vectors, not std::map: the tree code of libstdc++.so is not instrumented, which MSan would report.
struct Device {
    char *base = nullptr;
    size_t cap = 0, used = 0, bytes = 0;
    CUstream_st *legacy = nullptr;
    std::vector<CUstream_st *> streams;
    unsigned peers = 0;
};
int env_int(const char *n, int d)
{
    const char *v = getenv(n);
    return v && *v ? atoi(v) : d;
}
struct State {
    std::recursive_mutex m;
    std::condition_variable_any cv;
    std::vector<Device> dev;
    std::vector<Alloc> al;
    int depth = 0, next_id = 1;
    int arch = env_int("CUSIM_ARCH", 90), guard = env_int("CUSIM_HOSTGUARD", 1), timeout = env_int("CUSIM_TIMEOUT", 20),
        verbose = env_int("CUSIM_API", 0);
    int mode = 0;
    uint32_t rng = 12345;
    int capturing = 0;
    std::vector<std::shared_ptr<Op>> graveyard;
    std::vector<std::pair<const void *, int>> dynsmem;
    uint64_t ops = 0;
    State()
    {
        dev.resize(env_int("CUSIM_DEVICES", 2));
        const char *s = getenv("CUSIM_STREAMS");
        mode = !s ? 0 : !strcmp(s, "eager") ? 1 : !strncmp(s, "rand", 4) ? 2 : 0;
        rng += 7919u * env_int("CUSIM_SEED", 0);
    }
    unsigned rnd()
    {
        rng ^= rng << 13;
        rng ^= rng >> 17;
        rng ^= rng << 5;
        return rng;
    }
};
void on_segv(int, siginfo_t *si, void *);
State &G()
{
    static State *g = [] {
        State *s = new State();
        if (s->guard) {
            struct sigaction a;
            memset(&a, 0, sizeof a);
            a.sa_sigaction = on_segv;
            a.sa_flags = SA_SIGINFO | SA_RESETHAND;
            sigaction(SIGSEGV, &a, nullptr);
        }
        return s;
    }();
    return *g;
}
__thread int cur_dev, last_err;
__thread bool in_hostfunc;
typedef std::unique_lock<std::recursive_mutex> Lk;
cudaError_t ret(cudaError_t e)
{
    if (e != cudaSuccess) last_err = e;
    return e;
}
double now()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}
CUstream_st *new_stream(int d, bool blocking, bool legacy)
{
    auto *s = new CUstream_st();
    s->dev = d;
    s->blocking = blocking;
    s->legacy = legacy;
    s->id = G().next_id++;
    G().dev[d].streams.push_back(s);
    return s;
}
CUstream_st *S(cudaStream_t s)
{
    if (s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread) {
        auto &d = G().dev[cur_dev];
        if (!d.legacy) d.legacy = new_stream(cur_dev, true, true);
        return d.legacy;
    }
    if (!s->alive) fk::die("use of a destroyed stream");
    return s;
}
// device memory: one address range per device, inaccessible to host code while nothing executes
void map_device(Device &d)
{
    if (d.base) return;
    d.cap = (size_t)env_int("CUSIM_DEVMEM_MB", 2048) << 20;
    d.base = (char *)mmap(nullptr, d.cap, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (d.base == MAP_FAILED) {
        perror("cusim: device memory");
        abort();
    }
    madvise(d.base, d.cap, MADV_HUGEPAGE); // cheap permission changes
}
void access(bool on)
{
    auto &g = G();
    if (!g.guard) return;
    for (auto &d : g.dev)
        if (d.used) mprotect(d.base, (d.used + 4095) & ~(size_t)4095, on ? PROT_READ | PROT_WRITE : PROT_NONE);
}
struct Exec {
    Exec()
    {
        if (G().depth++ == 0) access(true);
    }
    ~Exec()
    {
        if (--G().depth == 0) access(false);
    }
};
Alloc *find(const void *p, uintptr_t *base)
{
    auto &m = G().al;
    auto i = std::upper_bound(m.begin(), m.end(), (uintptr_t)p, [](uintptr_t a, const Alloc &b) { return a < b.base; });
    if (i == m.begin()) return nullptr;
    --i;
    if ((uintptr_t)p >= i->base + std::max<size_t>(i->n, 1)) return nullptr;
    if (base) *base = i->base;
    return &*i;
}
void add_alloc(void *p, size_t n, int dev)
{
    auto &m = G().al;
    auto i = std::upper_bound(m.begin(), m.end(), (uintptr_t)p, [](uintptr_t a, const Alloc &b) { return a < b.base; });
    m.insert(i, Alloc{(uintptr_t)p, n, dev, false});
}
void on_segv(int, siginfo_t *si, void *)
{
    char b[256];
    int n = 0;
    auto &g = G();
    for (size_t d = 0; d < g.dev.size(); d++)
        if ((char *)si->si_addr >= g.dev[d].base && (char *)si->si_addr < g.dev[d].base + g.dev[d].cap && g.dev[d].base)
            n = snprintf(b, sizeof b, "cusim: error: host code dereferenced device memory: address %p, device %zu\n",
                         si->si_addr, d);
    if (n && write(2, b, n)) {
    }
    raise(SIGSEGV);
}
bool drive(CUstream_st *s, uint64_t n, bool wait, Lk &l);
bool run_gate(Op &op, CUstream_st *s, bool wait, Lk &l)
{
    auto &g = G();
    double t0 = now();
    while (!op.gate->fired) {
        std::vector<fk::Gate *> set{op.gate.get()};
        bool posted = true;
        for (size_t i = 0; i < set.size() && posted; i++) {
            std::vector<fk::Gate *> p;
            if (!set[i]->peers(p)) posted = false;
            for (auto *x : p)
                if (std::find(set.begin(), set.end(), x) == set.end()) set.push_back(x);
        }
        if (!posted) {
            if (!wait) return false;
            if (g.cv.wait_for(l, std::chrono::milliseconds(200)) == std::cv_status::timeout &&
                now() - t0 > g.timeout * 1e3)
                fk::die("collective hang: device %d stream %d waits in %s: a peer never posted its side", s->dev, s->id,
                        op.gate->describe().c_str());
            continue;
        }
        bool ok = true;
        for (auto *x : set)
            if (x != op.gate.get() && !x->fired && x->stream->done < x->idx) {
                if (!drive(x->stream, x->idx, wait, l)) {
                    ok = false;
                    break;
                }
            }
        if (!ok) {
            if (!wait) return false;
            continue;
        }
        if (op.gate->fired) break;
        struct A {
            std::vector<fk::Gate *> *set;
            fk::Gate *g;
        } a{&set, op.gate.get()};
        Exec e;
        cs::run_alone(
            [](void *p) {
                A *a = (A *)p;
                for (auto *x : *a->set)
                    for (auto *y : x->acq) hb_acquire(y);
                a->g->complete(*a->set);
                for (auto *x : *a->set) {
                    x->fired = true;
                    hb_release(&x->sync);
                }
            },
            &a);
        g.cv.notify_all();
    }
    return true;
}
// run s until n operations are complete; false only if !wait and something is not ready
bool drive(CUstream_st *s, uint64_t n, bool wait, Lk &l)
{
    if (s->done >= n) return true;
    auto &g = G();
    double t0 = now();
    Exec open; // one permission change per wait, not per operation
    while (s->done < n) {
        if (s->driving) {
            if (pthread_equal(s->driver, pthread_self()))
                fk::die("deadlock: stream %d of device %d waits for itself (collectives or events in different orders "
                        "on two ranks?)",
                        s->id, s->dev);
            if (!wait) return false;
            if (g.cv.wait_for(l, std::chrono::milliseconds(200)) == std::cv_status::timeout &&
                now() - t0 > g.timeout * 1e3)
                fk::die("stream %d of device %d makes no progress", s->id, s->dev);
            continue;
        }
        if (s->q.empty()) fk::die("internal: stream empty");
        auto op = s->q.front();
        s->driving = true;
        s->driver = pthread_self();
        bool ok = true;
        for (auto &d : op->deps)
            if (!drive(d.first, d.second, wait, l)) {
                ok = false;
                break;
            }
        if (ok && op->gate) {
            op->gate->acq = op->acq;
            op->gate->acq.push_back(&op->sync);
            ok = run_gate(*op, s, wait, l);
        }
        if (ok) {
            if (g.verbose) fprintf(stderr, "cusim: run dev %d stream %d: %s\n", s->dev, s->id, op->name);
            auto body = [](void *p) {
                Op *o = (Op *)p;
                hb_acquire(&o->sync);
                for (auto *a : o->acq) hb_acquire(a);
                if (o->gate) hb_acquire(&o->gate->sync);
                if (o->fn) o->fn();
                for (auto *a : o->rel) hb_release(a);
            };
            if (op->fn) {
                Exec e;
                cs::run_alone(body, op.get());
            } else if (cs::have_tsan())
                cs::run_alone(body, op.get());
            // freeing the closure here would look like a race with the operation: under TSan keep it
            if (cs::have_tsan()) g.graveyard.push_back(op);
            s->q.pop_front();
            s->done++;
            g.ops++;
        }
        s->driving = false;
        g.cv.notify_all();
        if (!ok) return false;
    }
    return true;
}
void push(CUstream_st *s, std::shared_ptr<Op> op, bool graph_part = false)
{
    auto &g = G();
    if (!graph_part) {
        op->acq.push_back(&s->sync);
        op->rel.push_back(&s->sync);
    }
    if (s->legacy) {
        for (auto *o : g.dev[s->dev].streams)
            if (o != s && o->blocking && o->pushed) {
                op->deps.push_back({o, o->pushed});
                op->acq.push_back(&o->sync);
            }
    } else if (s->blocking) {
        auto *L = g.dev[s->dev].legacy;
        if (L && L->pushed) {
            op->deps.push_back({L, L->pushed});
            op->acq.push_back(&L->sync);
        }
    }
    hb_release(&op->sync);
    s->q.push_back(op);
    s->pushed++;
    if (op->gate) {
        op->gate->stream = s;
        op->gate->idx = s->pushed - 1;
    }
    g.cv.notify_all();
}
void nudge(CUstream_st *s, Lk &l)
{ // eager and random modes: run some of what could run
    auto &g = G();
    if (g.depth || in_hostfunc) return;
    if (g.mode == 1)
        drive(s, s->pushed, false, l);
    else if (g.mode == 2 && (g.rnd() & 1)) {
        std::vector<CUstream_st *> c;
        for (auto &d : g.dev)
            for (auto *x : d.streams)
                if (x->done < x->pushed && !x->driving) c.push_back(x);
        if (!c.empty()) {
            auto *x = c[g.rnd() % c.size()];
            drive(x, x->done + 1 + g.rnd() % (x->pushed - x->done), false, l);
        }
    }
}
// Calls that synchronise or allocate: illegal during a capture in global mode from any thread, in thread-local mode
// from the capturing thread, in relaxed mode legal.
bool api_bad_in_capture(cudaError_t *e)
{
    auto &g = G();
    bool bad = false;
    if (!g.capturing) return false;
    for (auto &d : g.dev)
        for (auto *s : d.streams)
            if (s->cap && s->cap_origin == s)
                if (s->cap_mode == cudaStreamCaptureModeGlobal ||
                    (s->cap_mode == cudaStreamCaptureModeThreadLocal && pthread_equal(s->cap_thread, pthread_self())))
                    s->cap_bad = bad = true;
    *e = cudaErrorStreamCaptureUnsupported;
    return bad;
}
} // namespace

namespace fk
{
void die(const char *fmt, ...)
{
    va_list a;
    va_start(a, fmt);
    fprintf(stderr, "cusim: error: ");
    vfprintf(stderr, fmt, a);
    fprintf(stderr, "\n");
    fflush(stderr);
    abort();
}
void lock()
{
    G().m.lock();
}
void unlock()
{
    G().m.unlock();
}
int current_device()
{
    return cur_dev;
}
int stream_device(cudaStream_t s)
{
    Lk l(G().m);
    return S(s)->dev;
}
void check_range(int dev, const void *p, size_t n, const char *what)
{
    uintptr_t b;
    Alloc *a = find(p, &b);
    if (!a) die("%s: %p (+%zu bytes) is not device or pinned memory", what, p, n);
    if (a->freed) die("%s: %p was freed", what, p);
    if (a->dev >= 0 && a->dev != dev && !(G().dev[dev].peers >> a->dev & 1))
        die("%s: %p belongs to device %d, but the operation runs on device %d", what, p, a->dev, dev);
    if ((uintptr_t)p + n > b + a->n)
        die("%s: range %p+%zu leaves its allocation of %zu bytes by %zu", what, p, n, a->n,
            (size_t)((uintptr_t)p + n - b - a->n));
}
cudaError_t enqueue(cudaStream_t st, const char *name, Fn fn, MkGate mk)
{
    Lk l(G().m);
    CUstream_st *s = S(st);
    if (in_hostfunc) die("%s called from a host function", name);
    if (s->cap) {
        s->cap->n.push_back({name, fn, mk, s->cap_deps});
        s->cap_deps.assign(1, (int)s->cap->n.size() - 1);
        return cudaSuccess;
    }
    if (s->legacy) {
        cudaError_t e;
        if (api_bad_in_capture(&e)) return cudaErrorStreamCaptureImplicit;
    }
    if (s->dev != cur_dev && !s->legacy && fn && !mk && strncmp(name, "event", 5) && strncmp(name, "memcpy", 6))
        return cudaErrorInvalidResourceHandle;
    auto op = std::make_shared<Op>();
    op->name = name;
    op->fn = fn;
    if (mk) op->gate = mk();
    push(s, op);
    nudge(s, l);
    return cudaSuccess;
}
} // namespace fk

#define API extern "C" __attribute__((visibility("default"))) cudaError_t CUDARTAPI
// ------------------------------------------------------------------ devices and errors
API cudaGetDeviceCount(int *n)
{
    *n = (int)G().dev.size();
    return cudaSuccess;
}
API cudaSetDevice(int d)
{
    if (d < 0 || d >= (int)G().dev.size()) return ret(cudaErrorInvalidDevice);
    cur_dev = d;
    return cudaSuccess;
}
API cudaGetDevice(int *d)
{
    *d = cur_dev;
    return cudaSuccess;
}
API cudaGetLastError()
{
    int e = last_err;
    last_err = 0;
    return (cudaError_t)e;
}
API cudaPeekAtLastError()
{
    return (cudaError_t)last_err;
}
extern "C" const char *cudaGetErrorName(cudaError_t e)
{
    switch (e) {
#define N(x)                                                                                                           \
    case x: return #x;
        N(cudaSuccess)
        N(cudaErrorInvalidValue) N(cudaErrorMemoryAllocation) N(cudaErrorInvalidDevice) N(cudaErrorInvalidConfiguration)
            N(cudaErrorNotReady) N(cudaErrorInvalidResourceHandle) N(cudaErrorStreamCaptureUnsupported)
                N(cudaErrorStreamCaptureInvalidated) N(cudaErrorStreamCaptureUnjoined) N(cudaErrorStreamCaptureImplicit)
                    N(cudaErrorStreamCaptureUnmatched) N(cudaErrorInvalidDeviceFunction)
#undef N
                        default : return "cudaErrorUnknown";
    }
}
extern "C" const char *cudaGetErrorString(cudaError_t e)
{
    return cudaGetErrorName(e);
}
API cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int)
{
    switch (a) {
    case cudaDevAttrComputeCapabilityMajor: *v = G().arch / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *v = G().arch % 10; break;
    case cudaDevAttrMultiProcessorCount: *v = 4; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = G().arch == 80 ? 166912 : 232448; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    default: return ret(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
API cudaGetDeviceProperties(struct cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "cusim sm_%d", G().arch);
    p->major = G().arch / 10;
    p->minor = G().arch % 10;
    p->multiProcessorCount = 4;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = G().arch == 80 ? 166912 : 232448;
    p->totalGlobalMem = (size_t)env_int("CUSIM_DEVMEM_MB", 2048) << 20;
    return cudaSuccess;
}
API cudaDeviceCanAccessPeer(int *c, int, int)
{
    *c = 1;
    return cudaSuccess;
}
API cudaDeviceEnablePeerAccess(int d, unsigned)
{
    G().dev[cur_dev].peers |= 1u << d;
    return cudaSuccess;
}
API cudaMemGetInfo(size_t *f, size_t *t)
{
    auto &d = G().dev[cur_dev];
    *t = (size_t)env_int("CUSIM_DEVMEM_MB", 2048) << 20;
    *f = *t - d.bytes;
    return cudaSuccess;
}
API cudaDeviceSynchronize()
{
    Lk l(G().m);
    cudaError_t e;
    if (api_bad_in_capture(&e)) return ret(e);
    auto v = G().dev[cur_dev].streams;
    for (auto *s : v) {
        drive(s, s->pushed, true, l);
        hb_acquire(&s->sync);
    }
    return cudaSuccess;
}
// ------------------------------------------------------------------ memory
static cudaError_t do_malloc(void **p, size_t n)
{
    auto &g = G();
    auto &d = g.dev[cur_dev];
    map_device(d);
    size_t o = (d.used + 511) & ~(size_t)511, end = o + n + 512; // 512-byte red zone
    if (end > d.cap) {
        *p = nullptr;
        return cudaErrorMemoryAllocation;
    }
    size_t np = (end + 4095) & ~(size_t)4095, op = (d.used + 4095) & ~(size_t)4095;
    if (np > op) mprotect(d.base + op, np - op, PROT_READ | PROT_WRITE);
    Exec e;
    cs::poison(d.base + o, n + 512);
    cs::unpoison(d.base + o, n);
    memset(d.base + o, 0xff, std::min<size_t>(n, 1 << 20));
    cs::mark_uninit(d.base + o, n);
    d.used = end;
    d.bytes += n;
    add_alloc(d.base + o, n, cur_dev);
    *p = d.base + o;
    return cudaSuccess;
}
API cudaMalloc(void **p, size_t n)
{
    Lk l(G().m);
    cudaError_t e;
    if (api_bad_in_capture(&e)) return ret(e);
    return ret(do_malloc(p, n));
}
static void do_free(void *p)
{
    uintptr_t b;
    Alloc *a = find(p, &b);
    if (!a || b != (uintptr_t)p || a->dev < 0) fk::die("cudaFree(%p): not an allocation", p);
    if (a->freed) fk::die("cudaFree(%p): double free", p);
    a->freed = true;
    G().dev[a->dev].bytes -= a->n;
    cs::poison(p, a->n); // addresses are never reused: use after free is always caught
}
API cudaFree(void *p)
{
    Lk l(G().m);
    if (!p) return cudaSuccess;
    cudaError_t e;
    if (api_bad_in_capture(&e)) return ret(e);
    cudaDeviceSynchronize();
    do_free(p);
    return cudaSuccess;
}
API cudaMallocAsync(void **p, size_t n, cudaStream_t)
{
    Lk l(G().m);
    return ret(do_malloc(p, n));
}
API cudaFreeAsync(void *p, cudaStream_t s)
{
    return ret(fk::enqueue(s, "freeAsync", [p] { do_free(p); }));
}
API cudaHostAlloc(void **p, size_t n, unsigned)
{
    Lk l(G().m);
    if (posix_memalign(p, 256, n ? n : 1)) return ret(cudaErrorMemoryAllocation);
    add_alloc(*p, n, -1);
    return cudaSuccess;
}
extern "C" cudaError_t cudaMallocHost(void **p, size_t n)
{
    return cudaHostAlloc(p, n, 0);
}
API cudaFreeHost(void *p)
{
    Lk l(G().m);
    cudaDeviceSynchronize();
    uintptr_t b;
    Alloc *a = find(p, &b);
    if (!a || b != (uintptr_t)p || a->dev >= 0) fk::die("cudaFreeHost(%p): not a pinned allocation", p);
    G().al.erase(G().al.begin() + (a - &G().al[0]));
    free(p);
    return cudaSuccess;
}
API cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    Lk l(G().m);
    memset(a, 0, sizeof *a);
    Alloc *x = find(p, nullptr);
    a->type = !x ? cudaMemoryTypeUnregistered : x->dev < 0 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    a->device = x && x->dev >= 0 ? x->dev : 0;
    a->devicePointer = x ? (void *)p : nullptr;
    return cudaSuccess;
}
static void *(*volatile copy_fn)(void *, const void *, size_t) = memcpy; // through libc, so that sanitizers see it
static void *(*volatile set_fn)(void *, int, size_t) = memset;
static cudaError_t do_copy(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t st, bool sync)
{
    Lk l(G().m);
    if (!n) return cudaSuccess;
    Alloc *ad = find(d, nullptr), *as = find(s, nullptr);
    bool dd = ad && ad->dev >= 0, sd = as && as->dev >= 0;
    if (k != cudaMemcpyDefault && (dd != (k == cudaMemcpyHostToDevice || k == cudaMemcpyDeviceToDevice) ||
                                   sd != (k == cudaMemcpyDeviceToHost || k == cudaMemcpyDeviceToDevice))) {
        fprintf(stderr, "cusim: error: cudaMemcpy kind %d does not fit dst %p (%s) and src %p (%s)\n", k, d,
                dd ? "device" : "host", s, sd ? "device" : "host");
        return ret(cudaErrorInvalidValue);
    }
    if (sync) {
        cudaError_t e;
        if (api_bad_in_capture(&e)) return ret(e);
    }
    int ddev = dd ? ad->dev : -1, sdev = sd ? as->dev : -1;
    std::shared_ptr<std::vector<char>> tmp;
    CUstream_st *S_ = S(st);
    if (!as && !S_->cap) {
        tmp = std::make_shared<std::vector<char>>((const char *)s, (const char *)s + n);
    } // pageable source: read now, as the driver's staging does
    cudaError_t e = fk::enqueue(st, "memcpy", [=] {
        if (dd) fk::check_range(ddev, d, n, "memcpy dst");
        if (sd) fk::check_range(sdev, s, n, "memcpy src");
        copy_fn(d, tmp ? tmp->data() : s, n);
    });
    if (e == cudaSuccess && !S_->cap && (sync || (!ad && !dd))) {
        drive(S_, S_->pushed, true, l);
        hb_acquire(&S_->sync);
    }
    return ret(e);
}
API cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t st)
{
    return do_copy(d, s, n, k, st, false);
}
API cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k)
{
    return do_copy(d, s, n, k, nullptr, true);
}
API cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t st)
{
    int dev = fk::stream_device(st);
    return ret(fk::enqueue(st, "memset", [=] {
        fk::check_range(dev, p, n, "memset");
        set_fn(p, v, n);
    }));
}
API cudaMemset(void *p, int v, size_t n)
{
    return cudaMemsetAsync(p, v, n, nullptr);
}
// ------------------------------------------------------------------ streams and events
API cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int)
{
    Lk l(G().m);
    *s = new_stream(cur_dev, !(f & cudaStreamNonBlocking), false);
    return cudaSuccess;
}
API cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f)
{
    return cudaStreamCreateWithPriority(s, f, 0);
}
API cudaStreamCreate(cudaStream_t *s)
{
    return cudaStreamCreateWithPriority(s, 0, 0);
}
API cudaStreamSynchronize(cudaStream_t st)
{
    Lk l(G().m);
    CUstream_st *s = S(st);
    cudaError_t e;
    if (api_bad_in_capture(&e)) return ret(e);
    if (s->cap) {
        s->cap_bad = true;
        return ret(cudaErrorStreamCaptureUnsupported);
    }
    if (in_hostfunc) fk::die("cudaStreamSynchronize from a host function");
    drive(s, s->pushed, true, l);
    hb_acquire(&s->sync);
    return cudaSuccess;
}
API cudaStreamDestroy(cudaStream_t st)
{
    Lk l(G().m);
    CUstream_st *s = S(st);
    drive(s, s->pushed, true, l);
    s->alive = false;
    return cudaSuccess;
}
API cudaStreamQuery(cudaStream_t st)
{
    Lk l(G().m);
    CUstream_st *s = S(st);
    if (s->done == s->pushed) {
        hb_acquire(&s->sync);
        return cudaSuccess;
    }
    drive(s, s->done + 1, false, l);
    return cudaErrorNotReady;
}
API cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f)
{
    *e = new CUevent_st();
    (*e)->flags = f;
    (*e)->dev = cur_dev;
    return cudaSuccess;
}
API cudaEventCreate(cudaEvent_t *e)
{
    return cudaEventCreateWithFlags(e, 0);
}
API cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}
API cudaEventRecord(cudaEvent_t e, cudaStream_t st)
{
    Lk l(G().m);
    CUstream_st *s = S(st);
    if (s->cap) {
        e->cap = s->cap;
        e->cap_deps = s->cap_deps;
        return cudaSuccess;
    }
    if (e->dev != s->dev) return ret(cudaErrorInvalidResourceHandle);
    auto op = std::make_shared<Op>();
    op->name = "eventRecord";
    op->fn = [e] { e->t = now(); };
    op->rel.push_back(&e->sync);
    push(s, op);
    e->s = s;
    e->n = s->pushed;
    e->cap = nullptr;
    nudge(s, l);
    return cudaSuccess;
}
API cudaStreamWaitEvent(cudaStream_t st, cudaEvent_t e, unsigned)
{
    Lk l(G().m);
    CUstream_st *s = S(st);
    if (e->cap) {
        if (!s->cap) {
            s->cap = e->cap;
            s->cap_deps.clear();
            s->cap_origin = nullptr;
            for (auto &d : G().dev)
                for (auto *o : d.streams)
                    if (o->cap == e->cap && o->cap_origin == o) s->cap_origin = o;
        } else if (s->cap != e->cap)
            return ret(cudaErrorStreamCaptureMerge);
        for (int d : e->cap_deps)
            if (std::find(s->cap_deps.begin(), s->cap_deps.end(), d) == s->cap_deps.end()) s->cap_deps.push_back(d);
        return cudaSuccess;
    }
    if (s->cap) return ret(cudaErrorStreamCaptureIsolation);
    if (!e->s) return cudaSuccess; // never recorded: no wait, as in CUDA
    auto op = std::make_shared<Op>();
    op->name = "waitEvent";
    op->deps.push_back({e->s, e->n});
    op->acq.push_back(&e->sync);
    push(s, op);
    nudge(s, l);
    return cudaSuccess;
}
API cudaEventSynchronize(cudaEvent_t e)
{
    Lk l(G().m);
    cudaError_t x;
    if (api_bad_in_capture(&x)) return ret(x);
    if (e->s) {
        drive(e->s, e->n, true, l);
        hb_acquire(&e->sync);
    }
    return cudaSuccess;
}
API cudaEventQuery(cudaEvent_t e)
{
    Lk l(G().m);
    if (!e->s || e->s->done >= e->n) {
        if (e->s) hb_acquire(&e->sync);
        return cudaSuccess;
    }
    drive(e->s, e->s->done + 1, false, l);
    return cudaErrorNotReady;
}
API cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    Lk l(G().m);
    if (!a->s || !b->s || (a->flags | b->flags) & cudaEventDisableTiming) return ret(cudaErrorInvalidResourceHandle);
    if (a->s->done < a->n || b->s->done < b->n) return ret(cudaErrorNotReady);
    *ms = (float)(b->t - a->t);
    return cudaSuccess;
}
API cudaLaunchHostFunc(cudaStream_t st, cudaHostFn_t f, void *u)
{
    return ret(fk::enqueue(st, "hostFunc", [=] {
        in_hostfunc = true;
        f(u);
        in_hostfunc = false;
    }));
}
// ------------------------------------------------------------------ kernels
API cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v)
{
    Lk l(G().m);
    if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (v > (G().arch == 80 ? 166912 : 232448)) return ret(cudaErrorInvalidValue);
        for (auto &x : G().dynsmem)
            if (x.first == f) {
                x.second = v;
                return cudaSuccess;
            }
        G().dynsmem.push_back({f, v});
    }
    return cudaSuccess;
}
API cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **args)
{
    Lk l(G().m);
    const cs::KernelDesc *d = cs::find_kernel(f);
    if (!d) return ret(cudaErrorInvalidDeviceFunction);
    size_t th = (size_t)c->blockDim.x * c->blockDim.y * c->blockDim.z;
    uint64_t gb = (uint64_t)c->gridDim.x * c->gridDim.y * c->gridDim.z;
    if (!th || th > 1024 || !gb || c->gridDim.y > 65535 || c->gridDim.z > 65535)
        return ret(cudaErrorInvalidConfiguration);
    int lim = 49152;
    for (auto &x : G().dynsmem)
        if (x.first == f) lim = x.second;
    if (c->dynamicSmemBytes > (size_t)lim) return ret(cudaErrorInvalidValue);
    bool coop = false;
    for (unsigned i = 0; i < c->numAttrs; i++)
        if (c->attrs[i].id == cudaLaunchAttributeCooperative) coop = c->attrs[i].val.cooperative;
    struct Call {
        std::vector<std::vector<uint64_t>> v;
        std::vector<void *> p;
    };
    auto k = std::make_shared<Call>();
    for (int i = 0; i < d->nargs; i++) {
        k->v.emplace_back((d->size[i] + 7) / 8);
        memcpy(k->v.back().data(), args[i], d->size[i]);
    }
    for (auto &x : k->v) k->p.push_back(x.data());
    dim3 g = c->gridDim, b = c->blockDim;
    size_t sm = c->dynamicSmemBytes;
    int dev = S(c->stream)->dev;
    return ret(fk::enqueue(c->stream, cs::kernel_name(f), [=] {
        for (int i = 0; i < d->nargs; i++)
            if (d->isptr[i] && *(void **)k->p[i]) {
                char w[200];
                snprintf(w, sizeof w, "%s: argument %d", cs::kernel_name(f), i);
                fk::check_range(dev, *(void **)k->p[i], 1, w);
            }
        cs::run_grid(f, d, k->p.data(), g, b, sm, coop);
    }));
}
API cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t sm, cudaStream_t s)
{
    cudaLaunchConfig_t c;
    c = cudaLaunchConfig_t{};
    c.gridDim = g;
    c.blockDim = b;
    c.dynamicSmemBytes = sm;
    c.stream = s;
    return cudaLaunchKernelExC(&c, f, a);
}
// ------------------------------------------------------------------ graphs
API cudaStreamBeginCapture(cudaStream_t st, enum cudaStreamCaptureMode m)
{
    Lk l(G().m);
    CUstream_st *s = S(st);
    if (s->legacy) return ret(cudaErrorStreamCaptureUnsupported);
    if (s->cap) return ret(cudaErrorIllegalState);
    s->cap = new CUgraph_st();
    s->cap_origin = s;
    s->cap_deps.clear();
    s->cap_bad = false;
    s->cap_mode = m;
    s->cap_thread = pthread_self();
    G().capturing++;
    return cudaSuccess;
}
API cudaStreamIsCapturing(cudaStream_t st, enum cudaStreamCaptureStatus *o)
{
    Lk l(G().m);
    CUstream_st *s = S(st);
    *o = !s->cap      ? cudaStreamCaptureStatusNone
         : s->cap_bad ? cudaStreamCaptureStatusInvalidated
                      : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
API cudaStreamEndCapture(cudaStream_t st, cudaGraph_t *out)
{
    Lk l(G().m);
    CUstream_st *s = S(st);
    *out = nullptr;
    if (!s->cap || s->cap_origin != s) return ret(cudaErrorStreamCaptureUnmatched);
    CUgraph_st *g = s->cap;
    std::vector<char> anc(g->n.size(), 0);
    std::vector<int> w = s->cap_deps;
    while (!w.empty()) {
        int i = w.back();
        w.pop_back();
        if (anc[i]) continue;
        anc[i] = 1;
        for (int d : g->n[i].deps) w.push_back(d);
    }
    bool joined = std::all_of(anc.begin(), anc.end(), [](char c) { return c; }), bad = s->cap_bad;
    for (auto &d : G().dev)
        for (auto *o : d.streams)
            if (o->cap == g) {
                bad |= o->cap_bad;
                o->cap = nullptr;
                o->cap_origin = nullptr;
                o->cap_deps.clear();
                o->cap_bad = false;
            }
    G().capturing--;
    if (bad) {
        delete g;
        return ret(cudaErrorStreamCaptureInvalidated);
    }
    if (!joined) {
        delete g;
        return ret(cudaErrorStreamCaptureUnjoined);
    }
    *out = g;
    return cudaSuccess;
}
API cudaGraphInstantiate(cudaGraphExec_t *o, cudaGraph_t g, unsigned long long)
{
    Lk l(G().m);
    auto *x = new CUgraphExec_st();
    x->n = g->n;
    size_t n = x->n.size();
    std::vector<char> done(n, 0);
    int seed = env_int("CUSIM_SEED", 0);
    for (size_t k = 0; k < n; k++) { // one legal topological order; the seed chooses which
        std::vector<int> r;
        for (size_t i = 0; i < n; i++)
            if (!done[i] && std::all_of(x->n[i].deps.begin(), x->n[i].deps.end(), [&](int d) { return done[d]; }))
                r.push_back((int)i);
        int p = seed == 0 ? r.back() : seed < 0 ? r.front() : r[G().rnd() % r.size()];
        done[p] = 1;
        x->order.push_back(p);
    }
    for (size_t i = 0; i <= n; i++) x->sync.emplace_back(new char(0));
    *o = x;
    return cudaSuccess;
}
API cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *, size_t *n)
{
    *n = g->n.size();
    return cudaSuccess;
}
API cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    return cudaSuccess;
}
API cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t st)
{
    Lk l(G().m);
    CUstream_st *s = S(st);
    if (s->cap) return ret(cudaErrorStreamCaptureUnsupported);
    if (x->busy && x->busy != s && x->busy->done < x->busy_n) {
        auto op = std::make_shared<Op>();
        op->name = "graphSerialize";
        op->deps.push_back({x->busy, x->busy_n});
        op->acq.push_back(&x->busy->sync);
        push(s, op);
    }
    for (int i : x->order) {
        auto &nd = x->n[i];
        auto op = std::make_shared<Op>();
        op->name = nd.name;
        op->fn = nd.fn;
        if (nd.mk) op->gate = nd.mk();
        if (nd.deps.empty())
            op->acq.push_back(&s->sync);
        else
            for (int d : nd.deps) op->acq.push_back(x->sync[d].get());
        op->rel.push_back(x->sync[i].get());
        op->rel.push_back(x->sync.back().get());
        push(s, op, true);
    }
    auto op = std::make_shared<Op>();
    op->name = "graphEnd";
    op->acq.push_back(x->sync.back().get());
    push(s, op);
    x->busy = s;
    x->busy_n = s->pushed;
    x->launches++;
    nudge(s, l);
    return cudaSuccess;
}
API cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    return cudaSuccess;
}
API cudaGraphExecDestroy(cudaGraphExec_t x)
{
    Lk l(G().m);
    if (x->busy) drive(x->busy, x->busy_n, true, l);
    delete x;
    return cudaSuccess;
}
