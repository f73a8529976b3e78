/* NCCL among the threads of one process, a rank a thread and a device; or, with CUSIM_NCCL, of several processes
 * (nccl_processes.h: collectives, and between two ranks sends). A collective is a gate (fakes.h) of its stream:
 * it completes when every rank's stream has reached its side, and whoever waits first moves the data of all. Ranks that
 * disagree about kind, count or type, that post in different orders or never, end the program with a message.
 *
 * Sums round at every hop in rank order, as a ring does, in the type of the data. The C interface of NCCL 2.28 is
 * declared here by itself: a toolkit from PyPI has no nccl.h. */
#include "tests/emulator/fakes.h"
#include "tests/emulator/nccl_processes.h"
#include <algorithm>
#include <unistd.h>

namespace
{
enum { SUCCESS = 0, UNHANDLED_CUDA_ERROR = 1, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 };
enum { INT8 = 0, UINT8, INT32, UINT32, INT64, UINT64, FLOAT16, FLOAT32, FLOAT64, BFLOAT16, E4M3, E5M2 };
enum { SUM = 0, PROD, MAX, MIN, AVG };
enum Kind { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, SEND, RECEIVE };
const char *const names[] = {"ncclAllReduce", "ncclAllGather", "ncclReduceScatter",
                             "ncclBroadcast", "ncclSend",      "ncclRecv"};
const unsigned CONFIG_MAGIC = 0xcafebeef;

struct UniqueId {
    char bytes[128];
};
struct Config { /* the beginning of ncclConfig_t */
    size_t size;
    unsigned magic, version;
    int blocking;
};
} // namespace

struct ncclComm;
namespace
{
struct CollectiveGate;
struct Slot { /* one side of a collective: which gate, which of its calls */
    CollectiveGate *gate;
    int call;
};
struct Clique {
    uint64_t id;
    int ranks;
    std::vector<ncclComm *> comms;
    std::vector<std::vector<Slot>> collectives;     /* by sequence number, then rank */
    std::vector<std::vector<Slot>> sends, receives; /* by from * ranks + to */
    nccl_processes::Shared *shared = nullptr;       /* ranks are of several processes */
};
struct Call {
    Kind kind;
    const void *send;
    void *receive;
    size_t count;
    int type, op, peer;
    ncclComm *comm;
    cudaStream_t stream;
    uint64_t sequence;
};
std::vector<Clique *> &cliques = *new std::vector<Clique *>(); /* reachable to the very end */
uint64_t next_id = 1;
__thread int group_depth;
thread_local std::vector<Call> group;
} // namespace

struct ncclComm {
    Clique *clique;
    int rank, device;
    uint64_t posted;
    bool aborted, ready;
    int async_error;
};

namespace
{
size_t type_bytes(int type)
{
    static const size_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return type >= 0 && type <= E5M2 ? bytes[type] : 0;
}

double get(const void *p, int type, size_t i)
{
    switch (type) {
    case FLOAT32: return ((const float *)p)[i];
    case FLOAT64: return ((const double *)p)[i];
    case FLOAT16: return __half2float(((const __half *)p)[i]);
    case BFLOAT16: return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
    case INT32: return ((const int32_t *)p)[i];
    case UINT32: return ((const uint32_t *)p)[i];
    case INT64: return (double)((const int64_t *)p)[i];
    case UINT64: return (double)((const uint64_t *)p)[i];
    case UINT8: return ((const uint8_t *)p)[i];
    case INT8: return ((const int8_t *)p)[i];
    default: cs::die("nccl: sums of type %d", type);
    }
}

double rounded(int type, double v)
{
    switch (type) {
    case FLOAT32: return (double)(float)v;
    case FLOAT16: return __half2float(__float2half_rn((float)v));
    case BFLOAT16: return __bfloat162float(__float2bfloat16_rn((float)v));
    default: return v;
    }
}

void set(void *p, int type, size_t i, double v)
{
    switch (type) {
    case FLOAT32: ((float *)p)[i] = (float)v; break;
    case FLOAT64: ((double *)p)[i] = v; break;
    case FLOAT16: ((__half *)p)[i] = __float2half_rn((float)v); break;
    case BFLOAT16: ((__nv_bfloat16 *)p)[i] = __float2bfloat16_rn((float)v); break;
    case INT32: ((int32_t *)p)[i] = (int32_t)v; break;
    case UINT32: ((uint32_t *)p)[i] = (uint32_t)v; break;
    case INT64: ((int64_t *)p)[i] = (int64_t)v; break;
    case UINT64: ((uint64_t *)p)[i] = (uint64_t)v; break;
    default: ((uint8_t *)p)[i] = (uint8_t)v;
    }
}

double combine(int op, double a, double b)
{
    return op == MAX ? std::max(a, b) : op == MIN ? std::min(a, b) : op == PROD ? a * b : a + b;
}

void read_range(const Call &c, const void *p, size_t bytes)
{
    if (!bytes) return;
    fk::check_range(c.comm->device, p, bytes, names[c.kind]);
    cs::access_read(p, bytes);
}

void write_range(const Call &c, void *p, size_t bytes)
{
    if (!bytes) return;
    fk::check_range(c.comm->device, p, bytes, names[c.kind]);
    cs::access_write(p, bytes);
}

void do_broadcast(const std::vector<Call *> &sides)
{
    Call *root = sides[(size_t)sides[0]->peer];
    const size_t bytes = root->count * type_bytes(root->type);
    read_range(*root, root->send, bytes);
    for (Call *side : sides) {
        write_range(*side, side->receive, bytes);
        memmove(side->receive, root->send, bytes);
    }
}

void do_all_gather(const std::vector<Call *> &sides)
{
    const size_t bytes = sides[0]->count * type_bytes(sides[0]->type);
    std::vector<char> all(bytes * sides.size());
    for (size_t r = 0; r < sides.size(); r++) {
        read_range(*sides[r], sides[r]->send, bytes);
        if (bytes) memcpy(&all[r * bytes], sides[r]->send, bytes);
    }
    for (Call *side : sides) {
        write_range(*side, side->receive, all.size());
        if (bytes) memcpy(side->receive, all.data(), all.size());
    }
}

void do_reduce(const std::vector<Call *> &sides)
{
    const Call &first = *sides[0];
    const size_t ranks = sides.size(), bytes = type_bytes(first.type);
    const bool scatter = first.kind == REDUCE_SCATTER;
    const size_t total = scatter ? first.count * ranks : first.count;
    std::vector<double> sums(total);
    for (size_t r = 0; r < ranks; r++) {
        read_range(*sides[r], sides[r]->send, total * bytes);
        for (size_t i = 0; i < total; i++) {
            const double v = get(sides[r]->send, first.type, i);
            sums[i] = r ? rounded(first.type, combine(first.op, sums[i], v)) : v;
        }
    }
    for (size_t r = 0; r < ranks; r++) {
        write_range(*sides[r], sides[r]->receive, first.count * bytes);
        for (size_t i = 0; i < first.count; i++) {
            const double v = sums[(scatter ? r * first.count : 0) + i];
            set(sides[r]->receive, first.type, i, first.op == AVG ? v / (double)ranks : v);
        }
    }
}

size_t sent_bytes(const Call &c)
{
    return c.count * type_bytes(c.type) * (c.kind == REDUCE_SCATTER ? (size_t)c.comm->clique->ranks : 1);
}

/* This rank's part of a collective of several processes, when all have sent theirs. */
void receive_shared(const Call &c)
{
    const nccl_processes::Shared *shared = c.comm->clique->shared;
    const int ranks = c.comm->clique->ranks;
    const size_t bytes = c.count * type_bytes(c.type);
    const bool gather = c.kind == ALL_GATHER;
    write_range(c, c.receive, gather ? bytes * (size_t)ranks : bytes);
    if (c.kind == BROADCAST) memcpy(c.receive, nccl_processes::part(shared, c.peer, c.sequence), bytes);
    for (int r = 0; r < ranks && gather; r++)
        memcpy((char *)c.receive + (size_t)r * bytes, nccl_processes::part(shared, r, c.sequence), bytes);
    if (gather || c.kind == BROADCAST) return;
    const size_t first = c.kind == REDUCE_SCATTER ? (size_t)c.comm->rank * c.count : 0;
    for (size_t i = 0; i < c.count; i++) {
        double sum = 0;
        for (int r = 0; r < ranks; r++) {
            const double v = get(nccl_processes::part(shared, r, c.sequence), c.type, first + i);
            sum = r ? rounded(c.type, combine(c.op, sum, v)) : v;
        }
        set(c.receive, c.type, i, c.op == AVG ? sum / ranks : sum);
    }
}

/* All calls of one group on one stream. */
struct CollectiveGate : fk::Gate {
    std::vector<Call> calls;
    bool sent = false; /* of several processes: what this rank sends lies in the file */

    std::string describe() override
    {
        const Call &c = calls[0];
        char text[160];
        snprintf(text, sizeof text, "%s #%llu (rank %d of %d, count %zu)", names[c.kind],
                 (unsigned long long)c.sequence, c.comm->rank, c.comm->clique->ranks, c.count);
        return text;
    }

    static Slot counterpart(const Call &c)
    {
        const Clique *q = c.comm->clique;
        const int rank = c.comm->rank, n = q->ranks;
        const std::vector<Slot> &all =
            c.kind == SEND ? q->receives[(size_t)(rank * n + c.peer)] : q->sends[(size_t)(c.peer * n + rank)];
        return c.sequence < all.size() ? all[c.sequence] : Slot{nullptr, 0};
    }

    static void compare(const Call &a, const Call &b)
    {
        const bool op_matters = a.kind == ALL_REDUCE || a.kind == REDUCE_SCATTER;
        if (a.kind == b.kind && a.count == b.count && a.type == b.type && (!op_matters || a.op == b.op) &&
            (a.kind != BROADCAST || a.peer == b.peer))
            return;
        cs::die("collective #%llu differs between ranks: rank %d %s count %zu type %d, rank %d %s count %zu type %d",
                (unsigned long long)a.sequence, a.comm->rank, names[a.kind], a.count, a.type, b.comm->rank,
                names[b.kind], b.count, b.type);
    }

    /* The gate is at the head of its stream: what it sends is there. */
    bool all_sent()
    {
        const Call &c = calls[0];
        nccl_processes::Shared *shared = c.comm->clique->shared;
        const nccl_processes::Said said = {c.kind, c.type, c.op, c.peer, c.count};
        if (c.kind >= SEND || calls.size() > 1) cs::die("CUSIM_NCCL: only single collectives between processes");
        if (!sent) {
            fk::Opened opened;
            read_range(c, c.send, sent_bytes(c));
            nccl_processes::send(shared, c.comm->rank, c.sequence, said, c.send, sent_bytes(c));
            sent = true;
        }
        const std::vector<ncclComm *> &local = c.comm->clique->comms;
        const bool alone = std::count(local.begin(), local.end(), nullptr) + 1 == c.comm->clique->ranks;
        for (int turns = alone ? 200 : 10; turns > 0 && !nccl_processes::all_sent(shared, c.sequence); turns--) usleep(100);
        if (!nccl_processes::all_sent(shared, c.sequence)) return false;
        for (int r = 0; r < c.comm->clique->ranks; r++)
            if (memcmp(&said, &nccl_processes::said(shared, r, c.sequence), sizeof said) != 0)
                cs::die("collective #%llu differs between ranks %d and %d of several processes",
                        (unsigned long long)c.sequence, c.comm->rank, r);
        return true;
    }

    bool peers(std::vector<fk::Gate *> &out) override
    {
        if (calls[0].comm->clique->shared) return all_sent();
        for (const Call &c : calls) {
            if (c.kind >= SEND) {
                const Slot other = counterpart(c);
                if (!other.gate) return false;
                const Call &o = other.gate->calls[(size_t)other.call];
                if (o.count * type_bytes(o.type) != c.count * type_bytes(c.type))
                    cs::die("ncclSend/ncclRecv size mismatch between ranks %d and %d: %zu and %zu elements",
                            c.comm->rank, c.peer, c.count, o.count);
                out.push_back(other.gate);
                continue;
            }
            for (const Slot &other : c.comm->clique->collectives[c.sequence]) {
                if (!other.gate) return false;
                compare(c, other.gate->calls[(size_t)other.call]);
                out.push_back(other.gate);
            }
        }
        return true;
    }

    static void move(const Call &c)
    {
        Clique *q = c.comm->clique;
        if (c.kind == SEND) {
            const Slot other = counterpart(c);
            const Call &o = other.gate->calls[(size_t)other.call];
            const size_t bytes = c.count * type_bytes(c.type);
            read_range(c, c.send, bytes);
            write_range(o, o.receive, bytes);
            memcpy(o.receive, c.send, bytes);
        } else if (c.kind != RECEIVE && c.comm->rank == 0) { /* rank 0's call does the work of the collective */
            std::vector<Call *> sides;
            for (const Slot &s : q->collectives[c.sequence]) sides.push_back(&s.gate->calls[(size_t)s.call]);
            if (c.kind == BROADCAST)
                do_broadcast(sides);
            else if (c.kind == ALL_GATHER)
                do_all_gather(sides);
            else
                do_reduce(sides);
        }
    }

    void complete(const std::vector<fk::Gate *> &all) override
    {
        if (calls[0].comm->clique->shared) {
            for (const Call &c : calls) receive_shared(c);
            return;
        }
        for (fk::Gate *other : all) {
            CollectiveGate *g = (CollectiveGate *)other;
            if (g->fired) continue;
            for (const Call &c : g->calls) move(c);
        }
        for (fk::Gate *other : all) ((CollectiveGate *)other)->forget();
    }

    /* Where the call was posted, if it was. */
    static Slot *place(const Call &c)
    {
        Clique *q = c.comm->clique;
        const int rank = c.comm->rank, n = q->ranks;
        if (c.kind < SEND)
            return c.sequence < q->collectives.size() ? &q->collectives[c.sequence][(size_t)rank] : nullptr;
        std::vector<Slot> &all =
            c.kind == SEND ? q->sends[(size_t)(rank * n + c.peer)] : q->receives[(size_t)(c.peer * n + rank)];
        return c.sequence < all.size() ? &all[c.sequence] : nullptr;
    }

    void forget()
    {
        for (const Call &c : calls) {
            Slot *slot = place(c);
            if (slot && slot->gate == this) slot->gate = nullptr;
        }
    }

    /* Before it has completed when its device broke. */
    ~CollectiveGate() override { forget(); }
};

/* Gives the gate's calls their places among the other ranks'; for a captured graph at every launch. Locked. */
void post(const std::shared_ptr<CollectiveGate> &gate)
{
    fk::Faults &faults = fk::state().faults;
    for (size_t i = 0; i < gate->calls.size(); i++) {
        Call &c = gate->calls[i];
        Clique *q = c.comm->clique;
        const size_t pair =
            (size_t)(c.kind == RECEIVE ? c.peer * q->ranks + c.comm->rank : c.comm->rank * q->ranks + c.peer);
        const Slot slot{gate.get(), (int)i};
        if (c.comm->aborted || c.comm->rank == faults.absent_rank) {
            gate->hangs = !c.comm->aborted;
            gate->fired = c.comm->aborted;
            return;
        }
        if (fk::fault_strikes(&faults.hang_collective)) gate->hangs = true;
        if (fk::fault_strikes(&faults.nccl_async)) {
            gate->hangs = true;
            c.comm->async_error = faults.nccl_async_result;
        }
        if (c.kind == SEND || c.kind == RECEIVE) {
            std::vector<Slot> &all = c.kind == SEND ? q->sends[pair] : q->receives[pair];
            c.sequence = all.size();
            all.push_back(slot);
            continue;
        }
        c.sequence = c.comm->posted++;
        if (q->shared) continue;
        if (q->collectives.size() <= c.sequence)
            q->collectives.resize(c.sequence + 1, std::vector<Slot>((size_t)q->ranks, Slot{nullptr, 0}));
        q->collectives[c.sequence][(size_t)c.comm->rank] = slot;
    }
}

int flush_group()
{
    std::vector<Call> rest;
    rest.swap(group);
    while (!rest.empty()) {
        std::vector<Call> same, later;
        for (const Call &c : rest) (c.stream == rest[0].stream ? same : later).push_back(c);
        const int device = fk::stream_device(same[0].stream);
        for (const Call &c : same)
            if (c.comm->device != device) return INVALID_ARGUMENT;
        fk::Work work;
        work.name = names[same[0].kind];
        work.make_gate = [same]() -> std::shared_ptr<fk::Gate> {
            auto gate = std::make_shared<CollectiveGate>();
            gate->calls = same;
            post(gate);
            return gate;
        };
        if (fk::enqueue(same[0].stream, std::move(work)) != cudaSuccess) return UNHANDLED_CUDA_ERROR;
        rest.swap(later);
    }
    return SUCCESS;
}

int add(const Call &call)
{
    if (!call.comm || !type_bytes(call.type)) return INVALID_ARGUMENT;
    {
        fk::Lock l(fk::state().mutex);
        fk::Faults &faults = fk::state().faults;
        if (fk::fault_strikes(&faults.nccl_call)) return faults.nccl_call_result;
        if (call.comm->aborted || !call.comm->ready) return INVALID_USAGE;
        if (call.comm->async_error) return call.comm->async_error;
    }
    group.push_back(call);
    return group_depth ? SUCCESS : flush_group();
}

bool is_of_two_processes(const ncclComm *comm)
{
    return comm && comm->clique->shared && comm->clique->ranks == 2;
}

/* The clique is complete: all its communicators are ready. */
void join(Clique *q)
{
    if (q->shared) return; /* see ncclCommGetAsyncError */
    for (ncclComm *c : q->comms)
        if (!c) return;
    for (ncclComm *c : q->comms) c->ready = true;
    fk::state().changed.notify_all();
}

int init_rank(ncclComm **out, int ranks, UniqueId id, int rank, bool blocking)
{
    fk::Lock l(fk::state().mutex);
    uint64_t key;
    memcpy(&key, id.bytes, 8);
    const bool of_processes = id.bytes[0] == '/';
    for (size_t i = 8; of_processes && i < sizeof id.bytes; i++) key = (key ^ (unsigned char)id.bytes[i]) * 0x100000001b3u;
    if (rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
    auto i = std::find_if(cliques.begin(), cliques.end(), [&](Clique *c) { return c->id == key; });
    Clique *q = i == cliques.end() ? nullptr : *i;
    if (!q) {
        q = new Clique{key, ranks, std::vector<ncclComm *>((size_t)ranks), {}, {}, {}};
        q->sends.resize((size_t)(ranks * ranks));
        q->receives.resize((size_t)(ranks * ranks));
        cliques.push_back(q);
    }
    if (of_processes) q->shared = nccl_processes::join(id.bytes, rank, ranks);
    if (q->ranks != ranks || q->comms[(size_t)rank]) return INVALID_USAGE;
    for (const ncclComm *c : q->comms)
        if (c && c->device == fk::current_device_id) return INVALID_USAGE; /* two ranks on one GPU: NCCL refuses */
    *out = new ncclComm{q, rank, fk::current_device_id, 0, false, false, 0};
    if (fk::state().faults.absent_rank != rank) {
        q->comms[(size_t)rank] = *out;
        join(q);
    }
    if (!blocking) return IN_PROGRESS;
    const double start = fk::now_ms();
    while (!(*out)->ready && !(*out)->aborted) {
        fk::state().changed.wait_for(l, std::chrono::milliseconds(20));
        if (fk::now_ms() - start > fk::state().timeout_s * 1e3 && !fk::state().faults.hangs)
            cs::die("ncclCommInitRank: not all %d ranks arrived", ranks);
    }
    return SUCCESS;
}
} // namespace

extern "C" {
const char *ncclGetErrorString(int result)
{
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return result >= 0 && result <= IN_PROGRESS ? texts[result] : "unknown result code";
}
int ncclGetVersion(int *version)
{
    *version = 22800;
    return SUCCESS;
}
int ncclGetUniqueId(UniqueId *id)
{
    fk::Lock l(fk::state().mutex);
    memset(id, 0, sizeof *id);
    if (nccl_processes::make(id->bytes, sizeof id->bytes)) return SUCCESS;
    memcpy(id->bytes, &next_id, 8);
    next_id++;
    return SUCCESS;
}
int ncclCommInitRankConfig(ncclComm **comm, int ranks, UniqueId id, int rank, const Config *config)
{
    if (config && (config->magic != CONFIG_MAGIC || config->size < sizeof(size_t) + 12)) return INVALID_ARGUMENT;
    return init_rank(comm, ranks, id, rank, !config || config->blocking != 0);
}
int ncclCommInitRank(ncclComm **comm, int ranks, UniqueId id, int rank)
{
    return init_rank(comm, ranks, id, rank, group_depth == 0);
}
int ncclCommInitAll(ncclComm **comms, int ranks, const int *devices)
{
    UniqueId id;
    ncclGetUniqueId(&id);
    const int before = fk::current_device_id;
    int result = SUCCESS;
    for (int i = 0; i < ranks && result == SUCCESS; i++) {
        cudaSetDevice(devices ? devices[i] : i);
        result = init_rank(&comms[i], ranks, id, i, false);
        if (result == IN_PROGRESS) result = SUCCESS;
    }
    cudaSetDevice(before);
    return result;
}
int ncclCommGetAsyncError(ncclComm *comm, int *error)
{
    fk::Lock l(fk::state().mutex);
    if (comm->clique->shared && !comm->ready) comm->ready = nccl_processes::all_joined(comm->clique->shared);
    *error = comm->async_error ? comm->async_error : comm->ready || comm->aborted ? SUCCESS : IN_PROGRESS;
    return SUCCESS;
}
/* Everything of this rank that has not happened yet ends without moving data; its peers go on waiting for it. */
int ncclCommAbort(ncclComm *comm)
{
    fk::Lock l(fk::state().mutex);
    comm->aborted = true;
    auto drop = [&](Slot &s) {
        if (!s.gate || s.gate->fired || s.gate->calls[(size_t)s.call].comm != comm) return;
        s.gate->fired = true;
        s.gate = nullptr;
    };
    for (auto &all : comm->clique->collectives)
        for (Slot &s : all) drop(s);
    for (auto *lists : {&comm->clique->sends, &comm->clique->receives})
        for (auto &all : *lists)
            for (Slot &s : all) drop(s);
    for (fk::Device &d : fk::state().devices) /* gates that were never posted (an absent rank) */
        for (CUstream_st *s : d.streams)
            for (auto &op : s->queue) {
                CollectiveGate *g = dynamic_cast<CollectiveGate *>(op->gate.get());
                if (g && g->calls[0].comm == comm) g->fired = true;
            }
    fk::state().changed.notify_all();
    return SUCCESS;
}
int ncclCommFinalize(ncclComm *)
{
    return SUCCESS;
}
/* Communicators stay reachable from their clique: late peers may still look. */
int ncclCommDestroy(ncclComm *)
{
    return SUCCESS;
}
int ncclCommCount(const ncclComm *comm, int *count)
{
    *count = comm->clique->ranks;
    return SUCCESS;
}
int ncclCommUserRank(const ncclComm *comm, int *rank)
{
    *rank = comm->rank;
    return SUCCESS;
}
int ncclCommCuDevice(const ncclComm *comm, int *device)
{
    *device = comm->device;
    return SUCCESS;
}
/* No symmetric memory here: success without a window, as NCCL answers where the hardware has none. */
int ncclCommWindowRegister(ncclComm *, void *, size_t, void **window, int)
{
    *window = nullptr;
    return SUCCESS;
}
int ncclCommWindowDeregister(ncclComm *, void *)
{
    return SUCCESS;
}
int ncclMemAlloc(void **p, size_t bytes)
{
    return cudaMalloc(p, bytes) == cudaSuccess ? SUCCESS : UNHANDLED_CUDA_ERROR;
}
int ncclMemFree(void *p)
{
    return cudaFree(p) == cudaSuccess ? SUCCESS : UNHANDLED_CUDA_ERROR;
}
int ncclGroupStart(void)
{
    group_depth++;
    return SUCCESS;
}
int ncclGroupEnd(void)
{
    if (group_depth <= 0) return INVALID_USAGE;
    return --group_depth ? SUCCESS : flush_group();
}
int ncclAllReduce(const void *send, void *receive, size_t count, int type, int op, ncclComm *comm, cudaStream_t stream)
{
    return add({ALL_REDUCE, send, receive, count, type, op, 0, comm, stream, 0});
}
int ncclAllGather(const void *send, void *receive, size_t count, int type, ncclComm *comm, cudaStream_t stream)
{
    return add({ALL_GATHER, send, receive, count, type, SUM, 0, comm, stream, 0});
}
int ncclReduceScatter(const void *send, void *receive, size_t count, int type, int op, ncclComm *comm,
                      cudaStream_t stream)
{
    return add({REDUCE_SCATTER, send, receive, count, type, op, 0, comm, stream, 0});
}
int ncclBroadcast(const void *send, void *receive, size_t count, int type, int root, ncclComm *comm,
                  cudaStream_t stream)
{
    return add({BROADCAST, send, receive, count, type, SUM, root, comm, stream, 0});
}
int ncclSend(const void *send, size_t count, int type, int peer, ncclComm *comm, cudaStream_t stream)
{
    if (is_of_two_processes(comm)) /* both are at it: a broadcast */
        return add({BROADCAST, send, (void *)send, count, type, SUM, comm->rank, comm, stream, 0});
    return add({SEND, send, nullptr, count, type, SUM, peer, comm, stream, 0});
}
int ncclRecv(void *receive, size_t count, int type, int peer, ncclComm *comm, cudaStream_t stream)
{
    if (is_of_two_processes(comm)) return add({BROADCAST, receive, receive, count, type, SUM, peer, comm, stream, 0});
    return add({RECEIVE, nullptr, receive, count, type, SUM, peer, comm, stream, 0});
}
}
