/* Counts of memory traffic (counters.h). Lanes run one after the other here, so each access is logged by its place in
 * the source and by how often the lane has passed there; entries with the same place and turn are one request of the
 * warp. Logs are kept per warp and summed when all lanes have come, or at the block's end. */
#include "tests/emulator/counters.h"
#include "tests/emulator/engine_types.h"
#include <algorithm>
#include <mutex>
#include <string>

namespace cs
{
bool counting;

struct Request {
    unsigned lanes;
    uintptr_t address[32];
    uint8_t bytes[32];
};

/* A place in the source; requests[i] is turn first + i. */
struct Site {
    Loc loc;
    AccessKind kind;
    bool shared;
    uint32_t turns[32], first;
    std::vector<Request> requests;
};

struct WarpLog {
    std::vector<Site> sites;
    uint64_t mma;
};

struct Kernel {
    std::string name;
    struct kernel_counts n;
};

struct Range {
    std::string name;
    uintptr_t at;
    size_t bytes;
    struct range_counts n;
    std::vector<uint8_t> touched; /* by sector: 1 read, 2 written */
};

static std::mutex counters_mutex;
static std::vector<Kernel> kernels;
static std::vector<Range> ranges;

static Kernel &kernel_of(const Grid *g)
{
    const char *name = kernel_name(g->launch.kernel);
    for (Kernel &k : kernels)
        if (k.name == name) return k;
    kernels.push_back({name, {}});
    return kernels.back();
}

static void touch(uintptr_t address, size_t bytes, AccessKind kind)
{
    for (Range &r : ranges) {
        if (address + bytes <= r.at || address >= r.at + r.bytes) continue;
        const uintptr_t from = std::max(address, r.at), to = std::min(address + bytes, r.at + r.bytes);
        (kind == READ ? r.n.read_bytes : r.n.written_bytes) += to - from;
    }
}

static void touch_sector(uintptr_t sector, AccessKind kind)
{
    for (Range &r : ranges) {
        if (sector + 32 <= r.at || sector >= r.at + r.bytes) continue;
        const size_t i = (std::max(sector, r.at) - r.at) / 32;
        const uint8_t bit = kind == READ ? 1 : 2;
        (kind == READ ? r.n.read_sectors : r.n.written_sectors)++;
        if (!(r.touched[i] & bit)) (kind == READ ? r.n.sectors_touched : r.n.sectors_touched_written)++;
        r.touched[i] |= bit;
    }
}

static void global_request(Kernel &k, const Request &q, AccessKind kind)
{
    uintptr_t sectors[64];
    int n = 0;
    for (unsigned m = q.lanes; m; m &= m - 1) {
        const int lane = __builtin_ctz(m);
        (kind == READ ? k.n.read_bytes : k.n.written_bytes) += q.bytes[lane];
        touch(q.address[lane], q.bytes[lane], kind);
        const uintptr_t last = (q.address[lane] + q.bytes[lane] - 1) / 32;
        for (uintptr_t s = q.address[lane] / 32; s <= last; s++) sectors[n++] = s * 32;
    }
    std::sort(sectors, sectors + n);
    n = (int)(std::unique(sectors, sectors + n) - sectors);
    for (int i = 0; i < n; i++) touch_sector(sectors[i], kind);
    (kind == READ ? k.n.read_sectors : k.n.written_sectors) += (uint64_t)n;
    (kind == READ ? k.n.read_requests : k.n.write_requests)++;
}

static void shared_request(Kernel &k, const Request &q)
{
    int widest = 4;
    for (unsigned m = q.lanes; m; m &= m - 1) widest = std::max(widest, (int)q.bytes[__builtin_ctz(m)]);
    const int phase_lanes = 128 / widest;
    k.n.shared_requests++;
    for (int start = 0; start < 32; start += phase_lanes) {
        uintptr_t words[32][32];
        int count[32] = {0}, worst = 0;
        for (int lane = start; lane < start + phase_lanes; lane++) {
            if (!(q.lanes >> lane & 1)) continue;
            for (uintptr_t w = q.address[lane] / 4; w <= (q.address[lane] + q.bytes[lane] - 1) / 4; w++) {
                const int bank = (int)(w % 32);
                bool known = false;
                for (int i = 0; i < count[bank]; i++) known |= words[bank][i] == w;
                if (!known) words[bank][count[bank]++] = w;
                worst = std::max(worst, count[bank]);
            }
        }
        k.n.shared_wavefronts += (uint64_t)worst;
        if (worst > 1) k.n.shared_conflicts += (uint64_t)(worst - 1);
    }
}

static void close_request(const Grid *g, const Site &s, const Request &q)
{
    std::lock_guard<std::mutex> l(counters_mutex);
    Kernel &k = kernel_of(g);
    if (s.shared)
        shared_request(k, q);
    else
        global_request(k, q, s.kind);
}

static Site &site_of(WarpLog *log, Loc loc, AccessKind kind, bool shared)
{
    for (Site &s : log->sites)
        if (s.loc.line == loc.line && s.loc.file == loc.file && s.kind == kind && s.shared == shared) return s;
    log->sites.push_back({loc, kind, shared, {}, 0, {}});
    return log->sites.back();
}

static void count_in_log(Fiber *f, const volatile void *p, size_t bytes, AccessKind kind, Loc loc)
{
    Warp *w = f->warp;
    if (!w->log) w->log = new WarpLog();
    const unsigned char *at = (const unsigned char *)p;
    const bool shared = at >= f->block->arena && at < f->block->arena + ARENA_BYTES;
    Site &s = site_of(w->log, loc, kind, shared);
    const uint32_t turn = s.turns[f->lane]++;
    while (turn - s.first >= s.requests.size()) s.requests.push_back({});
    Request &q = s.requests[turn - s.first];
    q.lanes |= 1u << f->lane;
    q.address[f->lane] = (uintptr_t)p;
    q.bytes[f->lane] = (uint8_t)bytes;
    if (q.lanes != w->present || turn != s.first) return;
    size_t whole = 0;
    while (whole < s.requests.size() && s.requests[whole].lanes == w->present)
        close_request(f->block->grid, s, s.requests[whole++]);
    s.requests.erase(s.requests.begin(), s.requests.begin() + (long)whole);
    s.first += (uint32_t)whole;
}

/* The logs belong to the worker: TSan would take memory that passes between two CUDA threads for a race of theirs. */
void count_slow(const volatile void *p, size_t bytes, AccessKind kind, Loc loc)
{
    Fiber *f = current;
    if (!f || !bytes) return;
    if (worker->tsan_main) tsan_enter(worker->tsan_main);
    count_in_log(f, p, bytes, kind, loc);
    if (worker->tsan_main) tsan_enter(f->tsan);
}

void counters_mma(Warp *w, unsigned n)
{
    if (__builtin_expect(!counting, 1)) return;
    if (worker->tsan_main) tsan_enter(worker->tsan_main);
    if (!w->log) w->log = new WarpLog();
    w->log->mma += n;
    if (worker->tsan_main) tsan_enter(current->tsan);
}

void counters_warp_end(Warp *w)
{
    if (!w->log) return;
    for (const Site &s : w->log->sites)
        for (const Request &q : s.requests)
            if (q.lanes) close_request(w->block->grid, s, q);
    {
        std::lock_guard<std::mutex> l(counters_mutex);
        kernel_of(w->block->grid).n.mma += w->log->mma;
    }
    delete w->log;
    w->log = nullptr;
}

void counters_grid_begin(Grid *g)
{
    std::lock_guard<std::mutex> l(counters_mutex);
    kernel_of(g).n.launches++;
}
} // namespace cs

extern "C" void counters_start(void)
{
    std::lock_guard<std::mutex> l(cs::counters_mutex);
    cs::kernels.clear();
    cs::ranges.clear();
    cs::counting = true;
}

extern "C" void counters_stop(void)
{
    cs::counting = false;
}

extern "C" void counters_watch(const char *name, const void *p, size_t bytes)
{
    std::lock_guard<std::mutex> l(cs::counters_mutex);
    cs::ranges.push_back({name, (uintptr_t)p, bytes, {}, std::vector<uint8_t>(bytes / 32 + 2)});
}

extern "C" bool counters_kernel(const char *prefix, struct kernel_counts *counts)
{
    std::lock_guard<std::mutex> l(cs::counters_mutex);
    bool found = false;
    *counts = {};
    for (const cs::Kernel &k : cs::kernels) {
        if (k.name.compare(0, strlen(prefix), prefix) != 0) continue;
        found = true;
        const uint64_t *from = (const uint64_t *)&k.n;
        uint64_t *to = (uint64_t *)counts;
        for (size_t i = 0; i < sizeof *counts / sizeof *to; i++) to[i] += from[i];
    }
    return found;
}

extern "C" bool counters_range(const char *name, struct range_counts *counts)
{
    std::lock_guard<std::mutex> l(cs::counters_mutex);
    for (const cs::Range &r : cs::ranges)
        if (r.name == name) {
            *counts = r.n;
            return true;
        }
    return false;
}

extern "C" void counters_print(void)
{
    std::lock_guard<std::mutex> l(cs::counters_mutex);
    typedef unsigned long long ull;
    for (const cs::Kernel &k : cs::kernels)
        fprintf(
            stderr,
            "counters: %-40s launches %llu, read %llu B in %llu sectors, written %llu B in %llu sectors, shared %llu "
            "wavefronts (%llu conflicts), mma %llu\n",
            k.name.c_str(), (ull)k.n.launches, (ull)k.n.read_bytes, (ull)k.n.read_sectors, (ull)k.n.written_bytes,
            (ull)k.n.written_sectors, (ull)k.n.shared_wavefronts, (ull)k.n.shared_conflicts, (ull)k.n.mma);
    for (const cs::Range &r : cs::ranges)
        fprintf(stderr, "counters: %-40s %zu B: read %llu B in %llu sectors (%llu different), written %llu B in %llu\n",
                r.name.c_str(), r.bytes, (ull)r.n.read_bytes, (ull)r.n.read_sectors, (ull)r.n.sectors_touched,
                (ull)r.n.written_bytes, (ull)r.n.written_sectors);
}
