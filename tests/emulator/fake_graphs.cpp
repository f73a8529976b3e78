/* Launches, captures and graphs. A graph replays in one legal topological order, which the seed chooses; under TSan its
 * nodes are ordered by their edges alone, so a missing edge shows as a race. */
#include "tests/emulator/counters.h"
#include "tests/emulator/fakes.h"
#include <algorithm>
#include <atomic>

static std::atomic<uint64_t> graphs_launched;

extern "C" uint64_t counters_graphs(void)
{
    return graphs_launched;
}

struct CUgraphExec_st {
    std::vector<CUgraph_st::Node> nodes;
    std::vector<int> order;
    std::vector<std::unique_ptr<char>> sync; /* one a node, and one for the end */
    CUstream_st *busy = nullptr;
    uint64_t busy_count = 0;
};

CUgraph_st::~CUgraph_st()
{
    for (CUgraphNode_st *handle : handles) delete handle;
}

namespace fk
{
std::shared_ptr<Call> copy_call(const cs::Launch &launch, void **arguments)
{
    auto call = std::make_shared<Call>();
    const cs::KernelDesc *d = launch.desc;
    for (int i = 0; i < d->nargs; i++) {
        call->values.emplace_back((d->size[i] + 7) / 8);
        memcpy(call->values.back().data(), arguments[i], d->size[i]);
    }
    for (auto &value : call->values) call->pointers.push_back(value.data());
    call->launch = launch;
    call->launch.args = call->pointers.data();
    return call;
}

static int dynamic_limit(const void *kernel)
{
    for (const Function &f : state().functions)
        if (f.kernel == kernel) return f.dynamic_max;
    return 49152;
}

static cudaError_t check_launch(const cs::Launch &launch)
{
    if (!launch.desc) return cudaErrorInvalidDeviceFunction;
    const dim3 g = launch.grid, b = launch.block;
    const size_t threads = (size_t)b.x * b.y * b.z;
    const uint64_t blocks = (uint64_t)g.x * g.y * g.z;
    if (!threads || threads > 1024 || b.z > 64 || !blocks || g.x > 2147483647u || g.y > 65535 || g.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (launch.shared_bytes > (size_t)dynamic_limit(launch.kernel)) return cudaErrorInvalidValue;
    if (launch.cooperative) {
        int resident = 0;
        const size_t shared = launch.shared_bytes + cs::kernel_static_shared(launch.kernel) + 1024;
        resident = (int)std::min<size_t>({32, 2048 / ((threads + 31) / 32 * 32), 233472 / shared});
        if (blocks > (uint64_t)resident * (uint64_t)state().sms) return cudaErrorCooperativeLaunchTooLarge;
    }
    return cudaSuccess;
}

static void push_graph(CUgraphExec_st *x, CUstream_st *s)
{
    if (x->busy && x->busy != s && x->busy->done < x->busy_count) { /* a graph runs once at a time */
        auto op = std::make_shared<Op>();
        op->work.name = "graphSerialize";
        op->dependencies.push_back({x->busy, x->busy_count});
        op->acquires.push_back(&x->busy->sync);
        push(s, op);
    }
    for (int i : x->order) {
        const CUgraph_st::Node &node = x->nodes[(size_t)i];
        auto op = std::make_shared<Op>();
        op->work = node.work;
        if (node.work.make_gate) op->gate = node.work.make_gate();
        if (node.dependencies.empty()) op->acquires.push_back(&s->sync);
        for (int d : node.dependencies) op->acquires.push_back(x->sync[(size_t)d].get());
        op->releases.push_back(x->sync[(size_t)i].get());
        op->releases.push_back(x->sync.back().get());
        push(s, op, true);
    }
    auto op = std::make_shared<Op>();
    op->work.name = "graphEnd";
    op->acquires.push_back(x->sync.back().get());
    push(s, op);
    x->busy = s;
    x->busy_count = s->pushed;
}

static void choose_order(CUgraphExec_st *x)
{
    const size_t n = x->nodes.size();
    const int seed = cs::env_int("CUSIM_SEED", 0);
    std::vector<char> done(n, 0);
    for (size_t k = 0; k < n; k++) {
        std::vector<int> ready;
        for (size_t i = 0; i < n; i++) {
            const std::vector<int> &d = x->nodes[i].dependencies;
            if (!done[i] && std::all_of(d.begin(), d.end(), [&](int j) { return done[(size_t)j]; }))
                ready.push_back((int)i);
        }
        const int next = seed == 0 ? ready.back() : seed < 0 ? ready.front() : ready[state().random() % ready.size()];
        done[(size_t)next] = 1;
        x->order.push_back(next);
    }
}
} // namespace fk

using namespace fk;

/* ---- launches */
API cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **arguments)
{
    Lock l(state().mutex);
    CUstream_st *s = stream_of(config->stream);
    cs::Launch launch{kernel,           cs::find_kernel(kernel),  nullptr, config->gridDim,
                      config->blockDim, config->dynamicSmemBytes, false};
    for (unsigned i = 0; i < config->numAttrs; i++)
        if (config->attrs[i].id == cudaLaunchAttributeCooperative)
            launch.cooperative = config->attrs[i].val.cooperative;
    const cudaError_t error = check_launch(launch);
    if (error != cudaSuccess) return remember(error);
    if (fault_strikes(&state().faults.launch)) return remember((cudaError_t)state().faults.launch_error);
    Work work;
    work.name = cs::kernel_name(kernel);
    work.call = copy_call(launch, arguments);
    return remember(submit(s, std::move(work), l));
}
API cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                     cudaStream_t stream)
{
    cudaLaunchConfig_t config;
    memset((void *)&config, 0, sizeof config);
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelExC(&config, kernel, arguments);
}
API cudaLaunchCooperativeKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                                cudaStream_t stream)
{
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config;
    memset((void *)&attribute, 0, sizeof attribute);
    memset((void *)&config, 0, sizeof config);
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelExC(&config, kernel, arguments);
}

/* ---- captures */
API cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    Lock l(state().mutex);
    CUstream_st *s = stream_of(stream);
    if (s->legacy) return remember(cudaErrorStreamCaptureUnsupported);
    if (s->capture) return remember(cudaErrorIllegalState);
    s->capture = new CUgraph_st();
    s->capture_origin = s;
    s->capture_dependencies.clear();
    s->capture_bad = false;
    s->capture_mode = mode;
    s->capture_thread = pthread_self();
    state().capturing++;
    return cudaSuccess;
}
API cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    Lock l(state().mutex);
    const CUstream_st *s = stream_of(stream);
    *status = !s->capture      ? cudaStreamCaptureStatusNone
              : s->capture_bad ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

/* Every node must lead to the end of the stream that began the capture. */
static bool all_joined(const CUgraph_st *g, std::vector<int> todo)
{
    std::vector<char> seen(g->nodes.size(), 0);
    while (!todo.empty()) {
        const int i = todo.back();
        todo.pop_back();
        if (seen[(size_t)i]) continue;
        seen[(size_t)i] = 1;
        for (int d : g->nodes[(size_t)i].dependencies) todo.push_back(d);
    }
    return std::all_of(seen.begin(), seen.end(), [](char c) { return c; });
}

API cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    Lock l(state().mutex);
    CUstream_st *s = stream_of(stream);
    *out = nullptr;
    if (!s->capture || s->capture_origin != s) return remember(cudaErrorStreamCaptureUnmatched);
    CUgraph_st *g = s->capture;
    const bool joined = all_joined(g, s->capture_dependencies);
    bool bad = s->capture_bad;
    for (Device &d : state().devices)
        for (CUstream_st *other : d.streams) {
            if (other->capture != g) continue;
            bad |= other->capture_bad;
            other->capture = nullptr;
            other->capture_origin = nullptr;
            other->capture_dependencies.clear();
            other->capture_bad = false;
        }
    state().capturing--;
    if (bad || !joined) {
        delete g;
        return remember(bad ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined);
    }
    for (size_t i = 0; i < g->nodes.size(); i++) g->handles.push_back(new CUgraphNode_st{g, (int)i});
    *out = g;
    return cudaSuccess;
}

/* ---- graphs */
API cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long)
{
    ENTER_CURRENT;
    *out = nullptr;
    if (fault_strikes(&state().faults.allocation)) return remember(cudaErrorMemoryAllocation);
    CUgraphExec_st *x = new CUgraphExec_st();
    x->nodes = g->nodes;
    choose_order(x);
    for (size_t i = 0; i <= x->nodes.size(); i++) x->sync.emplace_back(new char(0));
    *out = x;
    return cudaSuccess;
}
API cudaGraphInstantiateWithFlags(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long flags)
{
    return cudaGraphInstantiate(out, g, flags);
}
API cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *count)
{
    Lock l(state().mutex);
    if (nodes)
        for (size_t i = 0; i < *count; i++) nodes[i] = i < g->handles.size() ? g->handles[i] : nullptr;
    *count = g->nodes.size();
    return cudaSuccess;
}
API cudaGraphNodeGetType(cudaGraphNode_t node, enum cudaGraphNodeType *type)
{
    Lock l(state().mutex);
    const Work &work = node->graph->nodes[(size_t)node->index].work;
    *type = work.call                        ? cudaGraphNodeTypeKernel
            : !strcmp(work.name, "memcpy")   ? cudaGraphNodeTypeMemcpy
            : !strcmp(work.name, "memset")   ? cudaGraphNodeTypeMemset
            : !strcmp(work.name, "hostFunc") ? cudaGraphNodeTypeHost
                                             : cudaGraphNodeTypeEmpty;
    return cudaSuccess;
}
API cudaGraphKernelNodeGetParams(cudaGraphNode_t node, struct cudaKernelNodeParams *params)
{
    Lock l(state().mutex);
    const Work &work = node->graph->nodes[(size_t)node->index].work;
    if (!work.call) return remember(cudaErrorInvalidValue);
    const cs::Launch &launch = work.call->launch;
    params->func = (void *)launch.kernel;
    params->gridDim = launch.grid;
    params->blockDim = launch.block;
    params->sharedMemBytes = (unsigned)launch.shared_bytes;
    params->kernelParams = work.call->pointers.data();
    params->extra = nullptr;
    return cudaSuccess;
}
/* For launches from now on; the kernel may not change. */
API cudaGraphExecKernelNodeSetParams(cudaGraphExec_t x, cudaGraphNode_t node, const struct cudaKernelNodeParams *params)
{
    ENTER_CURRENT;
    Work &work = x->nodes[(size_t)node->index].work;
    if (!work.call || params->func != work.call->launch.kernel) return remember(cudaErrorInvalidValue);
    cs::Launch launch = work.call->launch;
    launch.grid = params->gridDim;
    launch.block = params->blockDim;
    launch.shared_bytes = params->sharedMemBytes;
    const cudaError_t error = check_launch(launch);
    if (error != cudaSuccess) return remember(error);
    work.call = copy_call(launch, params->kernelParams);
    return cudaSuccess;
}
/* Takes over all parameters of a graph of the same shape. */
API cudaGraphExecUpdate(cudaGraphExec_t x, cudaGraph_t g, cudaGraphExecUpdateResultInfo *info)
{
    ENTER_CURRENT;
    memset((void *)info, 0, sizeof *info);
    bool same = x->nodes.size() == g->nodes.size();
    for (size_t i = 0; same && i < g->nodes.size(); i++) {
        const CUgraph_st::Node &a = x->nodes[i], &b = g->nodes[i];
        same = a.dependencies == b.dependencies && !a.work.call == !b.work.call && !strcmp(a.work.name, b.work.name);
    }
    info->result = same ? cudaGraphExecUpdateSuccess : cudaGraphExecUpdateErrorTopologyChanged;
    if (!same) return remember(cudaErrorGraphExecUpdateFailure);
    x->nodes = g->nodes;
    return cudaSuccess;
}
API cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    return cudaSuccess;
}
API cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t stream)
{
    Lock l(state().mutex);
    CUstream_st *s = stream_of(stream);
    const cudaError_t sticky = state().devices[(size_t)s->device].sticky;
    if (sticky) return remember(sticky);
    if (s->capture) return remember(cudaErrorStreamCaptureUnsupported);
    if (fault_strikes(&state().faults.launch)) return remember((cudaError_t)state().faults.launch_error);
    graphs_launched++;
    push_graph(x, s);
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
    Lock l(state().mutex);
    if (x->busy && !state().devices[(size_t)x->busy->device].sticky) drive(x->busy, x->busy_count, true, l);
    delete x;
    return cudaSuccess;
}
