/* NCCL among the threads of one process: a collective completes when every rank's stream reaches it. */
#include "tests/emulator/fakes.h"
#include <nccl.h>
#include <mutex>
#include <condition_variable>
#include <stdlib.h>

namespace
{
enum Kind { ALLREDUCE, ALLGATHER, REDUCESCATTER, BROADCAST, SEND, RECV };
const char *names[] = {"ncclAllReduce", "ncclAllGather", "ncclReduceScatter", "ncclBroadcast", "ncclSend", "ncclRecv"};
struct NGate;
struct Slot {
    NGate *g;
    int prim;
};
struct Clique {
    uint64_t id;
    int n;
    std::vector<ncclComm *> rank;
    std::vector<std::vector<Slot>> coll;
    uint64_t coll_base = 0;
    std::vector<std::vector<Slot>> send, recv;
    std::vector<size_t> nsend, nrecv;
};
struct Prim {
    Kind k;
    const void *s;
    void *r;
    size_t n;
    ncclDataType_t t;
    ncclRedOp_t op;
    int peer;
    ncclComm_t c;
    cudaStream_t st;
    uint64_t seq;
};
std::vector<Clique *> cliques;
std::mutex im;
std::condition_variable icv;
uint64_t next_id = 1;
__thread int depth;
thread_local std::vector<Prim> pend;
size_t tsz(ncclDataType_t t)
{
    switch (t) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2: return 1;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    default: return 8;
    }
}
} // namespace
struct ncclComm {
    Clique *q;
    int rank, dev;
    uint64_t seq = 0;
};
namespace
{
double ld(const void *p, ncclDataType_t t, size_t i)
{
    switch (t) {
    case ncclFloat32: return ((const float *)p)[i];
    case ncclFloat64: return ((const double *)p)[i];
    case ncclFloat16: return __half2float(((const __half *)p)[i]);
    case ncclBfloat16: return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
    case ncclInt32: return ((const int *)p)[i];
    case ncclInt64: return (double)((const int64_t *)p)[i];
    case ncclUint8: return ((const uint8_t *)p)[i];
    default: fk::die("nccl: reduction type %d", t);
    }
}
double rnd(ncclDataType_t t, double v)
{
    switch (t) {
    case ncclFloat32: return (float)v;
    case ncclFloat16: return __half2float(__float2half_rn((float)v));
    case ncclBfloat16: return __bfloat162float(__float2bfloat16_rn((float)v));
    default: return v;
    }
}
void sto(void *p, ncclDataType_t t, size_t i, double v)
{
    switch (t) {
    case ncclFloat32: ((float *)p)[i] = (float)v; break;
    case ncclFloat64: ((double *)p)[i] = v; break;
    case ncclFloat16: ((__half *)p)[i] = __float2half_rn((float)v); break;
    case ncclBfloat16: ((__nv_bfloat16 *)p)[i] = __float2bfloat16_rn((float)v); break;
    case ncclInt32: ((int *)p)[i] = (int)v; break;
    case ncclInt64: ((int64_t *)p)[i] = (int64_t)v; break;
    default: ((uint8_t *)p)[i] = (uint8_t)v;
    }
}
struct NGate : fk::Gate {
    std::vector<Prim> p;
    std::string describe() override
    {
        char b[160];
        snprintf(b, sizeof b, "%s #%llu (rank %d of %d, count %zu)", names[p[0].k], (unsigned long long)p[0].seq,
                 p[0].c->rank, p[0].c->q->n, p[0].n);
        return b;
    }
    static Slot p2p(const std::vector<Slot> &v, uint64_t i) { return i < v.size() ? v[i] : Slot{nullptr, 0}; }
    bool peers(std::vector<fk::Gate *> &out) override
    {
        for (auto &x : p) {
            Clique *q = x.c->q;
            if (x.k >= SEND) {
                Slot o = x.k == SEND ? p2p(q->recv[x.c->rank * q->n + x.peer], x.seq)
                                     : p2p(q->send[x.peer * q->n + x.c->rank], x.seq);
                if (!o.g) return false;
                Prim &y = o.g->p[o.prim];
                if (y.n * tsz(y.t) != x.n * tsz(x.t))
                    fk::die("ncclSend/ncclRecv size mismatch between ranks %d and %d: %zu and %zu elements", x.c->rank,
                            x.peer, x.n, y.n);
                out.push_back(o.g);
            } else
                for (int r = 0; r < q->n; r++) {
                    Slot o = q->coll[x.seq][r];
                    if (!o.g) return false;
                    Prim &y = o.g->p[o.prim];
                    if (y.k != x.k || y.n != x.n || y.t != x.t ||
                        (x.k != ALLGATHER && x.k != BROADCAST && y.op != x.op) ||
                        (x.k == BROADCAST && y.peer != x.peer))
                        fk::die("collective #%llu differs between ranks: rank %d %s count %zu type %d, rank %d %s "
                                "count %zu type %d",
                                (unsigned long long)x.seq, x.c->rank, names[x.k], x.n, x.t, r, names[y.k], y.n, y.t);
                    out.push_back(o.g);
                }
        }
        return true;
    }
    static void rd(ncclComm_t c, const void *p, size_t n, const char *w)
    {
        fk::check_range(c->dev, p, n, w);
        cs::acc_read(p, n);
    }
    static void wr(ncclComm_t c, void *p, size_t n, const char *w)
    {
        fk::check_range(c->dev, p, n, w);
        cs::acc_write(p, n);
    }
    void complete(const std::vector<fk::Gate *> &all) override
    {
        for (auto *gg : all) {
            auto *g = (NGate *)gg;
            if (g->fired) continue;
            for (auto &x : g->p) {
                Clique *q = x.c->q;
                size_t e = tsz(x.t);
                if (x.k == RECV) continue;
                if (x.k == SEND) {
                    Slot o = q->recv[x.c->rank * q->n + x.peer][x.seq];
                    Prim &y = o.g->p[o.prim];
                    rd(x.c, x.s, x.n * e, "ncclSend");
                    wr(y.c, y.r, x.n * e, "ncclRecv");
                    memcpy(y.r, x.s, x.n * e);
                    continue;
                }
                if (x.c->rank != 0) continue; // rank 0's gate does the work of the collective
                std::vector<Prim *> v;
                for (int r = 0; r < q->n; r++) {
                    Slot o = q->coll[x.seq][r];
                    v.push_back(&o.g->p[o.prim]);
                }
                if (x.k == BROADCAST) {
                    Prim *s = v[x.peer];
                    rd(s->c, s->s, x.n * e, "ncclBroadcast");
                    for (auto *y : v) {
                        wr(y->c, y->r, x.n * e, "ncclBroadcast");
                        memmove(y->r, s->s, x.n * e);
                    }
                } else if (x.k == ALLGATHER) {
                    std::vector<char> t(x.n * e * q->n);
                    for (int r = 0; r < q->n; r++) {
                        rd(v[r]->c, v[r]->s, x.n * e, "ncclAllGather");
                        memcpy(&t[r * x.n * e], v[r]->s, x.n * e);
                    }
                    for (auto *y : v) {
                        wr(y->c, y->r, t.size(), "ncclAllGather");
                        memcpy(y->r, t.data(), t.size());
                    }
                } else {
                    size_t tot = x.k == REDUCESCATTER ? x.n * q->n : x.n;
                    std::vector<double> acc(tot);
                    for (int r = 0; r < q->n; r++) {
                        rd(v[r]->c, v[r]->s, tot * e, names[x.k]);
                        for (size_t i = 0; i < tot; i++) {
                            double z = ld(v[r]->s, x.t, i);
                            acc[i] = !r                 ? z
                                     : x.op == ncclMax  ? (z > acc[i] ? z : acc[i])
                                     : x.op == ncclMin  ? (z < acc[i] ? z : acc[i])
                                     : x.op == ncclProd ? rnd(x.t, acc[i] * z)
                                                        : rnd(x.t, acc[i] + z);
                        } // rounds at every hop, as a ring does
                    }
                    for (int r = 0; r < q->n; r++) {
                        wr(v[r]->c, v[r]->r, x.n * e, names[x.k]);
                        size_t o = x.k == REDUCESCATTER ? r * x.n : 0;
                        for (size_t i = 0; i < x.n; i++)
                            sto(v[r]->r, x.t, i, x.op == ncclAvg ? acc[o + i] / q->n : acc[o + i]);
                    }
                }
            }
        }
    }
};
ncclResult_t flush()
{
    std::vector<Prim> w;
    w.swap(pend);
    while (!w.empty()) {
        std::vector<Prim> same, rest;
        for (auto &x : w) (x.st == w[0].st ? same : rest).push_back(x);
        int dev = fk::stream_device(same[0].st);
        for (auto &x : same)
            if (x.c->dev != dev) return ncclInvalidArgument;
        auto mk = [same]()
            -> std::shared_ptr<fk::Gate> { // runs when the operation is posted; for a captured graph, at every launch
            auto g = std::make_shared<NGate>();
            g->p = same;
            for (size_t i = 0; i < g->p.size(); i++) {
                Prim &x = g->p[i];
                Clique *q = x.c->q;
                Slot s{g.get(), (int)i};
                if (x.k == SEND) {
                    auto &v = q->send[x.c->rank * q->n + x.peer];
                    x.seq = v.size();
                    v.push_back(s);
                } else if (x.k == RECV) {
                    auto &v = q->recv[x.peer * q->n + x.c->rank];
                    x.seq = v.size();
                    v.push_back(s);
                } else {
                    x.seq = x.c->seq++;
                    if (q->coll.size() <= x.seq) q->coll.resize(x.seq + 1, std::vector<Slot>(q->n, Slot{nullptr, 0}));
                    q->coll[x.seq][x.c->rank] = s;
                }
            }
            return g;
        };
        if (fk::enqueue(same[0].st, names[same[0].k], nullptr, mk) != cudaSuccess) return ncclUnhandledCudaError;
        w.swap(rest);
    }
    return ncclSuccess;
}
ncclResult_t add(Prim p)
{
    if (!p.c) return ncclInvalidArgument;
    pend.push_back(p);
    return depth ? ncclSuccess : flush();
}
} // namespace
extern "C" {
const char *ncclGetErrorString(ncclResult_t r)
{
    return r == ncclSuccess ? "no error" : r == ncclInvalidArgument ? "invalid argument" : "error";
}
ncclResult_t ncclGetVersion(int *v)
{
    *v = NCCL_VERSION_CODE;
    return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *u)
{
    std::lock_guard<std::mutex> l(im);
    memset(u, 0, sizeof *u);
    uint64_t id = next_id++;
    memcpy(u->internal, &id, 8);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t *out, int n, ncclUniqueId u, int rank)
{
    uint64_t id;
    memcpy(&id, u.internal, 8);
    if (rank < 0 || rank >= n) return ncclInvalidArgument;
    std::unique_lock<std::mutex> l(im);
    Clique *q = nullptr;
    for (auto *c : cliques)
        if (c->id == id) q = c;
    if (!q) {
        q = new Clique();
        q->id = id;
        q->n = n;
        q->rank.resize(n);
        q->send.resize(n * n);
        q->recv.resize(n * n);
        cliques.push_back(q);
    }
    if (q->n != n || q->rank[rank]) return ncclInvalidUsage;
    auto *c = new ncclComm();
    c->q = q;
    c->rank = rank;
    c->dev = fk::current_device();
    q->rank[rank] = c;
    *out = c;
    icv.notify_all();
    for (int r = 0; r < n; r++)
        if (q->rank[r] && r != rank && q->rank[r]->dev == c->dev)
            return ncclInvalidUsage; // two ranks on one GPU: NCCL refuses
    if (!depth && !icv.wait_for(l, std::chrono::seconds(20), [&] {
            for (auto *r : q->rank)
                if (!r) return false;
            return true;
        }))
        fk::die("ncclCommInitRank: not all %d ranks arrived", n);
    return ncclSuccess;
}
ncclResult_t ncclCommInitAll(ncclComm_t *c, int n, const int *devs)
{
    ncclUniqueId u;
    ncclGetUniqueId(&u);
    int d0 = fk::current_device();
    depth++;
    for (int i = 0; i < n; i++) {
        cudaSetDevice(devs ? devs[i] : i);
        ncclResult_t r = ncclCommInitRank(&c[i], n, u, i);
        if (r != ncclSuccess) {
            depth--;
            return r;
        }
    }
    depth--;
    cudaSetDevice(d0);
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t)
{
    return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t)
{
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t)
{
    return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t c, int *n)
{
    *n = c->q->n;
    return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t c, int *r)
{
    *r = c->rank;
    return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *e)
{
    *e = ncclSuccess;
    return ncclSuccess;
}
ncclResult_t ncclGroupStart()
{
    depth++;
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd()
{
    if (depth <= 0) return ncclInvalidUsage;
    return --depth ? ncclSuccess : flush();
}
ncclResult_t ncclAllReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, ncclComm_t c,
                           cudaStream_t st)
{
    return add({ALLREDUCE, s, r, n, t, o, 0, c, st, 0});
}
ncclResult_t ncclAllGather(const void *s, void *r, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t st)
{
    return add({ALLGATHER, s, r, n, t, ncclSum, 0, c, st, 0});
}
ncclResult_t ncclReduceScatter(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, ncclComm_t c,
                               cudaStream_t st)
{
    return add({REDUCESCATTER, s, r, n, t, o, 0, c, st, 0});
}
ncclResult_t ncclBroadcast(const void *s, void *r, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t st)
{
    return add({BROADCAST, s, r, n, t, ncclSum, root, c, st, 0});
}
ncclResult_t ncclSend(const void *s, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t st)
{
    return add({SEND, s, nullptr, n, t, ncclSum, peer, c, st, 0});
}
ncclResult_t ncclRecv(void *r, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t st)
{
    return add({RECV, nullptr, r, n, t, ncclSum, peer, c, st, 0});
}
}
