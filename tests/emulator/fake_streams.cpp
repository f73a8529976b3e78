/* Streams and events. Streams are pulled, not pushed: an operation runs only when something that the program waits for
 * needs it (CUSIM_STREAMS=lazy), as soon as it can (eager), or at random; so a missing wait shows as a wrong result
 * and, under TSan, as a race, whatever the machine's speed.
 *
 * drive(s, n) runs stream s up to its n-th operation: first what that depends on, then the operation, by the calling
 * thread, with the lock released. An operation that cannot start yet (a collective whose peers are missing, a stream
 * that another thread drives) waits for the state to change; a time without any progress ends the program with names.
 * While a kernel only spins, Beside::stalled runs other streams' operations beside it. */
#include "tests/emulator/fakes.h"
#include <algorithm>

namespace fk
{
static const std::chrono::milliseconds PATIENCE(20);

CUstream_st *new_stream(int device, bool blocking, bool legacy, int priority)
{
    CUstream_st *s = new CUstream_st();
    s->device = device;
    s->blocking = blocking;
    s->legacy = legacy;
    s->priority = priority;
    s->id = state().next_id++;
    state().devices[(size_t)device].streams.push_back(s);
    return s;
}

CUstream_st *stream_of(cudaStream_t s)
{
    if (s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread) {
        Device &d = state().devices[(size_t)current_device_id];
        if (!d.legacy) d.legacy = new_stream(current_device_id, true, true, 0);
        return d.legacy;
    }
    if (!s->alive) cs::die("use of a destroyed stream");
    return s;
}

int stream_device(cudaStream_t s)
{
    Lock l(state().mutex);
    return stream_of(s)->device;
}

/* Calls that synchronise or allocate: illegal during a capture in global mode from any thread, in thread-local mode
 * from the capturing thread, in relaxed mode legal. */
bool illegal_in_capture()
{
    bool bad = false;
    if (!state().capturing) return false;
    for (Device &d : state().devices)
        for (CUstream_st *s : d.streams)
            if (s->capture && s->capture_origin == s &&
                (s->capture_mode == cudaStreamCaptureModeGlobal ||
                 (s->capture_mode == cudaStreamCaptureModeThreadLocal &&
                  pthread_equal(s->capture_thread, pthread_self()))))
                s->capture_bad = bad = true;
    return bad;
}

static bool broken(const CUstream_st *s)
{
    return state().devices[(size_t)s->device].sticky != cudaSuccess;
}

/* What a broken device had still to do is lost. */
static void break_device(int device, cudaError_t error)
{
    Device &d = state().devices[(size_t)device];
    d.sticky = error;
    for (CUstream_st *s : d.streams) {
        for (auto &op : s->queue) {
            if (op->gate) op->gate->hangs = true; /* its peers wait until they abort */
            if (cs::have_tsan()) state().graveyard.push_back(op);
        }
        s->queue.clear();
        s->done = s->pushed;
    }
}

static void note_progress()
{
    state().ops++;
    state().progress_ms = now_ms();
    state().changed.notify_all();
}

/* Waits for any change; names what hangs when nothing has happened for too long. */
static void wait_change(Lock &l, const std::string &what)
{
    State &g = state();
    if (g.changed.wait_for(l, PATIENCE) != std::cv_status::timeout || g.running || g.faults.hangs) return;
    if (now_ms() - g.progress_ms > g.timeout_s * 1e3) cs::die("%s", what.c_str());
}

/* ---- running one operation */
static void op_acquire(Op &op)
{
    cs::order_acquire(&op.sync);
    for (void *p : op.acquires) cs::order_acquire(p);
    if (op.gate) cs::order_acquire(&op.gate->sync);
}

static void op_release(Op &op)
{
    for (void *p : op.releases) cs::order_release(p);
}

static void op_run_fn(void *p)
{
    Op *op = (Op *)p;
    op_acquire(*op);
    if (op->work.fn) op->work.fn();
    op_release(*op);
}

struct OpGrid {
    Op *op;
    cs::Grid *grid;
};

static void op_kernel_begin(void *p)
{
    op_acquire(*((OpGrid *)p)->op);
    cs::grid_begin(((OpGrid *)p)->grid);
}

static void op_kernel_end(void *p)
{
    cs::grid_end(((OpGrid *)p)->grid);
    op_release(*((OpGrid *)p)->op);
}

static void op_done(CUstream_st *s)
{
    /* Freeing a closure here would look like a race with the operation: under TSan it stays. */
    if (cs::have_tsan() && !s->queue.empty()) state().graveyard.push_back(s->queue.front());
    if (!s->queue.empty()) { /* empty after the device broke */
        s->queue.pop_front();
        s->done++;
    }
    s->driving = false;
    note_progress();
}

static void check_arguments(const CUstream_st *s, const Call &call)
{
    const cs::KernelDesc *d = call.launch.desc;
    for (int i = 0; i < d->nargs; i++) {
        void *p = d->isptr[i] ? *(void **)call.pointers[(size_t)i] : nullptr;
        if (!p) continue;
        char what[200];
        snprintf(what, sizeof what, "%s: argument %d", cs::kernel_name(call.launch.kernel), i);
        check_range(s->device, p, 1, what);
    }
}

static bool kernel_faults(CUstream_st *s, Op &op)
{
    Faults &f = state().faults;
    if (fault_strikes(&f.sticky)) {
        break_device(s->device, (cudaError_t)f.sticky_error);
        return true;
    }
    if (fault_strikes(&f.hang_kernel)) op.hangs = true;
    return false;
}

/* Whether everything that op waits for on other streams has happened. */
static bool dependencies_done(const Op &op)
{
    for (const Dependency &d : op.dependencies)
        if (d.stream->done < d.count) return false;
    return true;
}

/* The gates that complete together with gate; false when one is not posted yet. */
static bool gate_set(Gate *gate, std::vector<Gate *> &set)
{
    set.assign(1, gate);
    for (size_t i = 0; i < set.size(); i++) {
        std::vector<Gate *> peers;
        if (set[i]->hangs || !set[i]->peers(peers)) return false;
        for (Gate *p : peers)
            if (std::find(set.begin(), set.end(), p) == set.end()) set.push_back(p);
    }
    return true;
}

struct GateRun {
    std::vector<Gate *> *set;
    Gate *gate;
};

static void gate_complete(void *p)
{
    GateRun *run = (GateRun *)p;
    for (Gate *g : *run->set)
        for (void *a : g->acquires) cs::order_acquire(a);
    run->gate->complete(*run->set);
    for (Gate *g : *run->set) {
        g->fired = true;
        cs::order_release(&g->sync);
    }
}

static void gate_fire(Gate *gate, std::vector<Gate *> &set)
{
    GateRun run{&set, gate};
    Opened opened;
    cs::run_alone(gate_complete, &run);
    note_progress();
}

/* A kernel and, while it spins, other streams' work. The first's stream goes on when the first has ended, not when all
 * that was started beside it has: that may wait for what is next in the stream. */
struct Beside : cs::Others {
    struct Started {
        cs::Grid *grid;
        CUstream_st *stream;
        std::shared_ptr<Op> op;
    };
    Lock &l;
    std::vector<Started> started;
    cs::Grid *const first;
    Beside(Lock &lock, CUstream_st *s, std::shared_ptr<Op> op, cs::Grid *grid) : l(lock), first(grid)
    {
        started.push_back({grid, s, op});
    }

    cs::Grid *start(CUstream_st *s)
    {
        std::shared_ptr<Op> op = s->queue.front();
        if (kernel_faults(s, *op) || op->hangs) return nullptr;
        check_arguments(s, *op->work.call);
        cs::Grid *grid = cs::grid_create(op->work.call->launch);
        s->driving = true;
        s->driver = pthread_self();
        OpGrid both{op.get(), grid};
        cs::run_alone(op_kernel_begin, &both);
        started.push_back({grid, s, op});
        return grid;
    }

    /* Lets the head of one stream happen, if it can; *grid when that is a kernel. */
    bool advance(CUstream_st *s, cs::Grid **grid)
    {
        if (s->driving || s->queue.empty() || broken(s)) return false;
        std::shared_ptr<Op> op = s->queue.front();
        if (op->hangs || !dependencies_done(*op)) return false;
        if (op->work.call) {
            *grid = start(s);
            return *grid != nullptr;
        }
        if (op->gate && !op->gate->fired) {
            std::vector<Gate *> set;
            if (!gate_set(op->gate.get(), set)) return false;
            for (Gate *g : set)
                if (g->stream->done != g->index) return false;
            gate_fire(op->gate.get(), set);
        }
        s->driving = true;
        s->driver = pthread_self();
        if (op->work.check) op->work.check();
        l.unlock();
        cs::run_alone(op_run_fn, op.get());
        l.lock();
        op_done(s);
        return true;
    }

    cs::Grid *stalled(const cs::Launch &spinning) override
    {
        l.lock();
        cs::Grid *grid = nullptr;
        bool advanced = false;
        for (Device &d : state().devices)
            for (CUstream_st *s : std::vector<CUstream_st *>(d.streams))
                if (!advanced) advanced = advance(s, &grid);
        if (!advanced) {
            state().running--;
            wait_change(
                l, std::string("kernel ") + cs::kernel_name(spinning.kernel) +
                       " spins for ever: what it waits for is not launched, or its blocks are not resident together "
                       "(launch_cooperative)");
            state().running++;
        }
        l.unlock();
        return grid;
    }

    void finished(cs::Grid *grid) override
    {
        auto i = std::find_if(started.begin(), started.end(), [&](const Started &x) { return x.grid == grid; });
        if (i == started.end()) return;
        OpGrid both{i->op.get(), grid};
        cs::run_alone(op_kernel_end, &both);
        l.lock();
        op_done(i->stream);
        l.unlock();
        if (grid != first) cs::grid_destroy(grid);
        started.erase(i);
    }
};

static void run_kernel(CUstream_st *s, std::shared_ptr<Op> op, Lock &l)
{
    cs::Grid *grid = cs::grid_create(op->work.call->launch);
    OpGrid both{op.get(), grid};
    Beside beside(l, s, op, grid);
    state().running++;
    l.unlock();
    cs::run_alone(op_kernel_begin, &both);
    cs::grid_run(grid, &beside);
    beside.finished(grid);
    cs::grid_destroy(grid);
    l.lock();
    state().running--;
}

/* False only without wait, when a peer is not there yet. */
static bool run_gate(CUstream_st *s, Op &op, bool wait, Lock &l)
{
    while (!op.gate->fired && !broken(s)) {
        std::vector<Gate *> set;
        if (!gate_set(op.gate.get(), set)) {
            if (!wait) return false;
            wait_change(l, "collective hang: device " + std::to_string(s->device) + " stream " + std::to_string(s->id) +
                               " waits in " + op.gate->describe() + ": a peer never posted its side");
            continue;
        }
        auto behind = std::find_if(set.begin(), set.end(),
                                   [&](const Gate *g) { return g != op.gate.get() && g->stream->done < g->index; });
        if (behind == set.end())
            gate_fire(op.gate.get(), set);
        else if (!drive((*behind)->stream, (*behind)->index, wait, l)) /* another thread may fire and free the set */
            return false;
    }
    return true;
}

/* Waits until the head of s, which this thread drives, can start; false only without wait. */
static bool head_ready(CUstream_st *s, Op &op, bool wait, Lock &l)
{
    if (op.gate && !run_gate(s, op, wait, l)) return false;
    if (broken(s) || (op.work.call && !op.hangs && kernel_faults(s, op))) return true;
    while (op.hangs && !broken(s)) {
        if (!wait) return false;
        if (!state().faults.hangs) {
            op.hangs = false;
            break;
        }
        state().changed.wait_for(l, PATIENCE);
    }
    return true;
}

static void run_head(CUstream_st *s, std::shared_ptr<Op> op, Lock &l)
{
    if (!broken(s)) {
        if (state().verbose) fprintf(stderr, "cusim: run device %d stream %d: %s\n", s->device, s->id, op->work.name);
        if (op->work.check) op->work.check();
        if (op->work.call) {
            check_arguments(s, *op->work.call);
            run_kernel(s, op, l);
            return;
        }
        if (op->work.fn || cs::have_tsan()) {
            state().running++;
            l.unlock();
            cs::run_alone(op_run_fn, op.get());
            l.lock();
            state().running--;
        }
    }
    op_done(s);
}

/* Runs s until count operations are done; false only without wait, when something is not ready. */
bool drive(CUstream_st *s, uint64_t count, bool wait, Lock &l)
{
    if (s->done >= count) return true;
    if (!state().running) state().progress_ms = now_ms();
    Opened opened; /* one change of permissions a wait, not one an operation */
    while (s->done < count) {
        if (s->driving) {
            if (!wait) return false;
            if (pthread_equal(s->driver, pthread_self()))
                cs::die("deadlock: stream %d of device %d waits for itself (collectives or events in different orders "
                        "on two ranks?)",
                        s->id, s->device);
            wait_change(l, "stream " + std::to_string(s->id) + " of device " + std::to_string(s->device) +
                               " makes no progress");
            continue;
        }
        if (s->queue.empty()) cs::die("internal: stream empty");
        std::shared_ptr<Op> op = s->queue.front();
        /* Not ahead of need: the launching thread may have the peer of a joint launch still to launch. */
        if (!wait && op->work.call && op->work.call->launch.cooperative) return false;
        if (!dependencies_done(*op)) { /* not driving s: what runs beside them may need the head, once they are done */
            for (const Dependency &d : op->dependencies)
                if (!drive(d.stream, d.count, wait, l)) return false;
            continue;
        }
        s->driving = true;
        s->driver = pthread_self();
        if (!head_ready(s, *op, wait, l)) {
            s->driving = false;
            state().changed.notify_all();
            return false;
        }
        run_head(s, op, l);
    }
    return true;
}

void push(CUstream_st *s, std::shared_ptr<Op> op, bool graph_part)
{
    Device &d = state().devices[(size_t)s->device];
    if (!graph_part) {
        op->acquires.push_back(&s->sync);
        op->releases.push_back(&s->sync);
    }
    auto after = [&](CUstream_st *other) {
        if (!other->pushed) return;
        op->dependencies.push_back({other, other->pushed});
        op->acquires.push_back(&other->sync);
    };
    if (s->legacy) {
        for (CUstream_st *other : d.streams)
            if (other != s && other->blocking) after(other);
    } else if (s->blocking && d.legacy) {
        after(d.legacy);
    }
    cs::order_release(&op->sync);
    s->queue.push_back(op);
    s->pushed++;
    if (op->gate) { /* complete from here on: a peer may fire it before its own stream is driven */
        op->gate->stream = s;
        op->gate->index = s->pushed - 1;
        op->gate->acquires = op->acquires;
        op->gate->acquires.push_back(&op->sync);
    }
    state().changed.notify_all();
}

/* Eager and random modes: runs some of what could run. */
void nudge(CUstream_st *s, Lock &l)
{
    State &g = state();
    if (in_host_function || g.mode == LAZY) return;
    if (g.mode == EAGER) {
        drive(s, s->pushed, false, l);
        return;
    }
    if (!(g.random() & 1)) return;
    std::vector<CUstream_st *> candidates;
    for (Device &d : g.devices)
        for (CUstream_st *x : d.streams)
            if (x->done < x->pushed && !x->driving) candidates.push_back(x);
    if (candidates.empty()) return;
    CUstream_st *x = candidates[g.random() % candidates.size()];
    drive(x, x->done + 1 + g.random() % (x->pushed - x->done), false, l);
}

cudaError_t submit(CUstream_st *s, Work work, Lock &l)
{
    if (in_host_function) cs::die("%s called from a host function", work.name);
    if (broken(s)) return state().devices[(size_t)s->device].sticky;
    if (s->capture) {
        s->capture->nodes.push_back({std::move(work), s->capture_dependencies});
        s->capture_dependencies.assign(1, (int)s->capture->nodes.size() - 1);
        return cudaSuccess;
    }
    if (s->legacy && illegal_in_capture()) return cudaErrorStreamCaptureImplicit;
    if (s->device != current_device_id && work.call) return cudaErrorInvalidResourceHandle;
    auto op = std::make_shared<Op>();
    if (work.make_gate) op->gate = work.make_gate();
    op->work = std::move(work);
    push(s, op);
    nudge(s, l);
    return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t stream, Work work)
{
    Lock l(state().mutex);
    return submit(stream_of(stream), std::move(work), l);
}
} // namespace fk

using namespace fk;

/* ---- streams */
API cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority)
{
    ENTER_CURRENT;
    *s = new_stream(current_device_id, !(flags & cudaStreamNonBlocking), false, std::min(0, std::max(-5, priority)));
    return cudaSuccess;
}
API cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    return cudaStreamCreateWithPriority(s, flags, 0);
}
API cudaStreamCreate(cudaStream_t *s)
{
    return cudaStreamCreateWithPriority(s, 0, 0);
}
API cudaStreamGetPriority(cudaStream_t stream, int *priority)
{
    Lock l(state().mutex);
    *priority = stream_of(stream)->priority;
    return cudaSuccess;
}
API cudaStreamSynchronize(cudaStream_t stream)
{
    Lock l(state().mutex);
    CUstream_st *s = stream_of(stream);
    if (broken(s)) return remember(state().devices[(size_t)s->device].sticky);
    if (in_host_function) cs::die("cudaStreamSynchronize from a host function");
    const bool illegal = illegal_in_capture();
    if (s->capture) s->capture_bad = true;
    if (illegal || s->capture) return remember(cudaErrorStreamCaptureUnsupported);
    drive(s, s->pushed, true, l);
    cs::order_acquire(&s->sync);
    return remember(state().devices[(size_t)s->device].sticky);
}
API cudaStreamDestroy(cudaStream_t stream)
{
    Lock l(state().mutex);
    CUstream_st *s = stream_of(stream);
    if (!broken(s)) drive(s, s->pushed, true, l);
    s->alive = false;
    return cudaSuccess;
}
API cudaStreamQuery(cudaStream_t stream)
{
    Lock l(state().mutex);
    CUstream_st *s = stream_of(stream);
    if (broken(s)) return remember(state().devices[(size_t)s->device].sticky);
    if (s->done != s->pushed) {
        drive(s, s->done + 1, false, l);
        return broken(s) ? remember(state().devices[(size_t)s->device].sticky) : cudaErrorNotReady;
    }
    cs::order_acquire(&s->sync);
    return cudaSuccess;
}
API cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument)
{
    Work work;
    work.name = "hostFunc";
    work.fn = [=] {
        in_host_function = true;
        function(argument);
        in_host_function = false;
    };
    return remember(enqueue(stream, std::move(work)));
}

/* ---- events */
API cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    ENTER_CURRENT;
    *event = new CUevent_st();
    (*event)->flags = flags;
    (*event)->device = current_device_id;
    return cudaSuccess;
}
API cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, 0);
}
API cudaEventDestroy(cudaEvent_t event)
{
    Lock l(state().mutex);
    if (event->stream && !broken(event->stream)) drive(event->stream, event->count, true, l);
    if (!cs::have_tsan()) delete event; /* with its memory TSan would forget the order that later waits rely on */
    return cudaSuccess;
}
API cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    Lock l(state().mutex);
    CUstream_st *s = stream_of(stream);
    if (broken(s)) return remember(state().devices[(size_t)s->device].sticky);
    if (s->capture) {
        event->capture = s->capture;
        event->capture_dependencies = s->capture_dependencies;
        return cudaSuccess;
    }
    if (event->device != s->device) return remember(cudaErrorInvalidResourceHandle);
    auto op = std::make_shared<Op>();
    op->work.name = "eventRecord";
    op->work.check = [event] { event->at_ms = now_ms(); };
    op->releases.push_back(&event->sync);
    push(s, op);
    event->stream = s;
    event->count = s->pushed;
    event->capture = nullptr;
    nudge(s, l);
    return cudaSuccess;
}
API cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned)
{
    return cudaEventRecord(event, stream);
}

static cudaError_t join_capture(CUstream_st *s, cudaEvent_t event)
{
    if (!s->capture) {
        s->capture = event->capture;
        s->capture_dependencies.clear();
        s->capture_origin = nullptr;
        for (Device &d : state().devices)
            for (CUstream_st *origin : d.streams)
                if (origin->capture == event->capture && origin->capture_origin == origin) s->capture_origin = origin;
    } else if (s->capture != event->capture) {
        return cudaErrorStreamCaptureMerge;
    }
    std::vector<int> &to = s->capture_dependencies;
    for (int d : event->capture_dependencies)
        if (std::find(to.begin(), to.end(), d) == to.end()) to.push_back(d);
    return cudaSuccess;
}

API cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    Lock l(state().mutex);
    CUstream_st *s = stream_of(stream);
    if (broken(s)) return remember(state().devices[(size_t)s->device].sticky);
    if (event->capture) return remember(join_capture(s, event));
    if (s->capture) return remember(cudaErrorStreamCaptureIsolation);
    if (!event->stream) return cudaSuccess; /* never recorded: no wait, as in CUDA */
    auto op = std::make_shared<Op>();
    op->work.name = "waitEvent";
    op->dependencies.push_back({event->stream, event->count});
    op->acquires.push_back(&event->sync);
    push(s, op);
    nudge(s, l);
    return cudaSuccess;
}
API cudaEventSynchronize(cudaEvent_t event)
{
    Lock l(state().mutex);
    if (event->stream && broken(event->stream)) return remember(state().devices[(size_t)event->device].sticky);
    if (illegal_in_capture()) return remember(cudaErrorStreamCaptureUnsupported);
    if (!event->stream) return cudaSuccess;
    drive(event->stream, event->count, true, l);
    cs::order_acquire(&event->sync);
    return remember(state().devices[(size_t)event->device].sticky);
}
API cudaEventQuery(cudaEvent_t event)
{
    Lock l(state().mutex);
    if (!event->stream) return cudaSuccess;
    if (!broken(event->stream) && event->stream->done < event->count) {
        drive(event->stream, event->stream->done + 1, false, l);
        if (!broken(event->stream)) return cudaErrorNotReady;
    }
    if (broken(event->stream)) return remember(state().devices[(size_t)event->device].sticky);
    cs::order_acquire(&event->sync);
    return cudaSuccess;
}
API cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    Lock l(state().mutex);
    if (!from->stream || !to->stream || (from->flags | to->flags) & cudaEventDisableTiming)
        return remember(cudaErrorInvalidResourceHandle);
    if (from->stream->done < from->count || to->stream->done < to->count) return remember(cudaErrorNotReady);
    *ms = (float)(to->at_ms - from->at_ms);
    return cudaSuccess;
}
