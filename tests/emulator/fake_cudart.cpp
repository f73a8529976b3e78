/* A CUDA runtime whose devices are host memory: devices, errors, memory, attributes of kernels.
 *
 * Device memory is one range of addresses a device, closed to the host while nothing runs there, so host code that
 * follows a device pointer dies at the place. Addresses are never used again: what was freed stays poisoned. Behind
 * each allocation lie 512 bytes that belong to nobody. */
#include "tests/emulator/fakes.h"
#include "tests/emulator/faults.h"
#include <algorithm>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

namespace fk
{
__thread int current_device_id;
__thread bool in_host_function;
static __thread int last_error;

static void on_fault(int, siginfo_t *info, void *)
{
    char text[256];
    int n = 0;
    for (size_t d = 0; d < state().devices.size(); d++) {
        const Device &device = state().devices[d];
        if (device.base && (char *)info->si_addr >= device.base &&
            (char *)info->si_addr < device.base + device.reserved)
            n = snprintf(text, sizeof text,
                         "cusim: error: host code dereferenced device memory: address %p, device %zu\n", info->si_addr,
                         d);
    }
    if (n && write(2, text, (size_t)n) < 0) return;
    raise(SIGSEGV);
}

static State *new_state()
{
    State *s = new State();
    const char *mode = getenv("CUSIM_STREAMS");
    s->mode = !mode ? LAZY : !strcmp(mode, "eager") ? EAGER : !strncmp(mode, "rand", 4) ? RANDOM : LAZY;
    s->rng += 7919u * (unsigned)cs::env_int("CUSIM_SEED", 0);
    s->devices.resize((size_t)cs::env_int("CUSIM_DEVICES", 2));
    s->arch = cs::env_int("CUSIM_ARCH", 90);
    s->sms = cs::env_int("CUSIM_SMS", 4);
    s->guard = cs::env_int("CUSIM_HOSTGUARD", 1);
    s->timeout_s = cs::env_int("CUSIM_TIMEOUT", 20);
    s->verbose = cs::env_int("CUSIM_API", 0);
    s->device_bytes = (size_t)cs::env_int("CUSIM_DEVMEM_MB", 2048) << 20;
    if (s->guard) {
        struct sigaction a;
        memset(&a, 0, sizeof a);
        a.sa_sigaction = on_fault;
        a.sa_flags = SA_SIGINFO | SA_RESETHAND;
        sigaction(SIGSEGV, &a, nullptr);
    }
    return s;
}

State &state()
{
    static State *s = new_state();
    return *s;
}

cudaError_t remember(cudaError_t error)
{
    if (error != cudaSuccess) last_error = error;
    return error;
}

double now_ms()
{
    return (double)cs::device_ns() * 1e-6;
}

bool fault_strikes(uint64_t *countdown)
{
    if (!*countdown || --*countdown) return false;
    state().faults.struck++;
    return true;
}

/* ---- memory */
static const size_t RED_ZONE = 512, MANY_BYTES = 16 << 20;

static size_t shared_optin()
{
    return state().arch == 80 ? 166912 : 232448;
}

/* Twice the device's memory and more in addresses, since none is used twice. */
static void map_device(Device &d)
{
    if (d.base) return;
    d.reserved = state().device_bytes * 16;
    d.base = (char *)mmap(nullptr, d.reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (d.base == MAP_FAILED) cs::die("no address space for device memory");
    madvise(d.base, d.reserved, MADV_HUGEPAGE); /* makes the changes of permissions cheap */
}

/* A change of permissions costs time by the page: much memory is closed after one wait in sixteen only. Protection keys
 * would cost nothing, but few machines have them. */
void memory_open(bool on)
{
    static bool is_open;
    static unsigned turn;
    size_t used = 0;
    for (const Device &d : state().devices) used += d.used;
    if (!state().guard || on == is_open || (!on && used > MANY_BYTES && ++turn % 16)) return;
    is_open = on;
    for (Device &d : state().devices)
        if (d.used) mprotect(d.base, (d.used + 4095) & ~(size_t)4095, on ? PROT_READ | PROT_WRITE : PROT_NONE);
}

static std::vector<Allocation>::iterator allocation_after(const void *p)
{
    auto &all = state().allocations;
    return std::upper_bound(all.begin(), all.end(), (uintptr_t)p,
                            [](uintptr_t a, const Allocation &b) { return a < b.base; });
}

Allocation *find_allocation(const void *p)
{
    auto i = allocation_after(p);
    if (i == state().allocations.begin()) return nullptr;
    --i;
    return (uintptr_t)p < i->base + std::max<size_t>(i->bytes, 1) ? &*i : nullptr;
}

void add_allocation(const void *p, size_t bytes, int device)
{
    state().allocations.insert(allocation_after(p), Allocation{(uintptr_t)p, bytes, device, false, false});
}

void check_range(int device, const void *p, size_t bytes, const char *what)
{
    const Allocation *a = find_allocation(p);
    if (!a) cs::die("%s: %p (+%zu bytes) is not device or pinned memory", what, p, bytes);
    if (a->freed) cs::die("%s: %p was freed", what, p);
    if (a->device >= 0 && a->device != device && !(state().devices[(size_t)device].peers >> a->device & 1))
        cs::die("%s: %p belongs to device %d, but the operation runs on device %d", what, p, a->device, device);
    if ((uintptr_t)p + bytes > a->base + a->bytes)
        cs::die("%s: range %p+%zu leaves its allocation of %zu bytes by %zu", what, p, bytes, a->bytes,
                (size_t)((uintptr_t)p + bytes - a->base - a->bytes));
}

static bool allocation_fails()
{
    Faults &f = state().faults;
    if (fault_strikes(&f.allocation)) {
        if (f.allocation_keep) f.allocation = 1;
        return true;
    }
    return false;
}

static cudaError_t allocate(void **p, size_t bytes)
{
    Device &d = state().devices[(size_t)current_device_id];
    *p = nullptr;
    if (allocation_fails()) return cudaErrorMemoryAllocation;
    map_device(d);
    const size_t offset = (d.used + 511) & ~(size_t)511, end = offset + bytes + RED_ZONE;
    if (d.live_bytes + bytes > state().device_bytes || end > d.reserved) return cudaErrorMemoryAllocation;
    const size_t pages_before = (d.used + 4095) & ~(size_t)4095, pages = (end + 4095) & ~(size_t)4095;
    if (pages > pages_before) mprotect(d.base + pages_before, pages - pages_before, PROT_READ | PROT_WRITE);
    Opened opened;
    cs::poison(d.base + offset, bytes + RED_ZONE);
    cs::unpoison(d.base + offset, bytes);
    memset(d.base + offset, 0xff, std::min<size_t>(bytes, 1 << 20)); /* NaN in every format: nothing starts at zero */
    cs::mark_uninitialised(d.base + offset, bytes);
    d.used = end;
    d.live_bytes += bytes;
    add_allocation(d.base + offset, bytes, current_device_id);
    *p = d.base + offset;
    return cudaSuccess;
}

void free_device_memory(void *p)
{
    Allocation *a = find_allocation(p);
    if (!a || a->base != (uintptr_t)p || a->device < 0) cs::die("cudaFree(%p): not an allocation", p);
    if (a->freed) cs::die("cudaFree(%p): double free", p);
    a->freed = true;
    state().devices[(size_t)a->device].live_bytes -= a->bytes;
    cs::poison(p, a->bytes);
    const uintptr_t from = (a->base + 4095) & ~(uintptr_t)4095, to = (a->base + a->bytes) & ~(uintptr_t)4095;
    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}
} // namespace fk

using namespace fk;

static void synchronise_device(int device, Lock &l)
{
    const std::vector<CUstream_st *> streams = state().devices[(size_t)device].streams;
    for (CUstream_st *s : streams) {
        drive(s, s->pushed, true, l);
        cs::order_acquire(&s->sync);
    }
}

/* ---- devices and errors */
API cudaGetDeviceCount(int *count)
{
    Lock l(state().mutex);
    *count = 0;
    if (state().faults.no_device) return remember((cudaError_t)state().faults.no_device);
    *count = (int)state().devices.size();
    return cudaSuccess;
}
API cudaSetDevice(int device)
{
    Lock l(state().mutex);
    if (state().faults.no_device) return remember((cudaError_t)state().faults.no_device);
    if (device < 0 || device >= (int)state().devices.size()) return remember(cudaErrorInvalidDevice);
    current_device_id = device;
    return remember(state().devices[(size_t)device].sticky);
}
API cudaInitDevice(int device, unsigned, unsigned)
{
    return cudaSetDevice(device);
}
API cudaSetDeviceFlags(unsigned)
{
    return cudaSuccess;
}
API cudaGetDevice(int *device)
{
    *device = current_device_id;
    return cudaSuccess;
}
API cudaGetLastError()
{
    Lock l(state().mutex);
    const cudaError_t sticky = state().devices[(size_t)current_device_id].sticky;
    if (sticky) return sticky;
    const int error = last_error;
    last_error = 0;
    return (cudaError_t)error;
}
API cudaPeekAtLastError()
{
    Lock l(state().mutex);
    const cudaError_t sticky = state().devices[(size_t)current_device_id].sticky;
    return sticky ? sticky : (cudaError_t)last_error;
}
API cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}
API cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

#define ERRORS(X)                                                                                                      \
    X(cudaSuccess, "no error")                                                                                         \
    X(cudaErrorInvalidValue, "invalid argument")                                                                       \
    X(cudaErrorMemoryAllocation, "out of memory")                                                                      \
    X(cudaErrorInitializationError, "initialization error")                                                            \
    X(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version")                     \
    X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                                         \
    X(cudaErrorInvalidDevice, "invalid device ordinal")                                                                \
    X(cudaErrorInvalidConfiguration, "invalid configuration argument")                                                 \
    X(cudaErrorInvalidDeviceFunction, "invalid device function")                                                       \
    X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                                       \
    X(cudaErrorNotReady, "device not ready")                                                                           \
    X(cudaErrorNotSupported, "operation not supported")                                                                \
    X(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled")                                             \
    X(cudaErrorPeerAccessNotEnabled, "peer access has not been enabled")                                               \
    X(cudaErrorCooperativeLaunchTooLarge, "too many blocks in cooperative launch")                                     \
    X(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered")                                                \
    X(cudaErrorNvlinkUncorrectable, "uncorrectable NVLink error detected during the execution")                        \
    X(cudaErrorContained, "Invalid access of peer GPU memory over nvlink or a hardware error")                         \
    X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                                             \
    X(cudaErrorLaunchTimeout, "the launch timed out and was terminated")                                               \
    X(cudaErrorHardwareStackError, "hardware stack error")                                                             \
    X(cudaErrorIllegalInstruction, "an illegal instruction was encountered")                                           \
    X(cudaErrorMisalignedAddress, "misaligned address")                                                                \
    X(cudaErrorInvalidAddressSpace, "operation not supported on global/shared address space")                          \
    X(cudaErrorInvalidPc, "invalid program counter")                                                                   \
    X(cudaErrorLaunchFailure, "unspecified launch failure")                                                            \
    X(cudaErrorSystemNotReady, "system not yet initialized")                                                           \
    X(cudaErrorIllegalState, "the operation cannot be performed in the present state")                                 \
    X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")                           \
    X(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture")                    \
    X(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences")                  \
    X(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began")                         \
    X(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")                                            \
    X(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream")                      \
    X(cudaErrorStreamCaptureImplicit, "operation would make the legacy stream depend on a capturing blocking stream")  \
    X(cudaErrorGraphExecUpdateFailure,                                                                                 \
      "the graph update was not performed because it included changes which violated constraints")

extern "C" const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
#define NAME(code, text)                                                                                               \
    case code: return #code;
        ERRORS(NAME)
    default: return "unrecognized error code";
    }
}
extern "C" const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
#define TEXT(code, text)                                                                                               \
    case code: return text;
        ERRORS(TEXT)
    default: return "unrecognized error code";
    }
}

API cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int)
{
    State &g = state();
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = g.arch / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = g.arch % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = g.sms; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)shared_optin(); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)shared_optin() + 1024; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
    case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
    case cudaDevAttrClockRate: *value = 1980000; break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 5120; break;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
    case cudaDevAttrEccEnabled:
    case cudaDevAttrIntegrated:
    case cudaDevAttrComputeMode: *value = 0; break;
    case cudaDevAttrAsyncEngineCount: *value = 3; break;
    default: return remember(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
API cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    State &g = state();
    if (device < 0 || device >= (int)g.devices.size()) return remember(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "Emulated sm_%d", g.arch);
    p->uuid.bytes[0] = (char)device;
    p->major = g.arch / 10;
    p->minor = g.arch % 10;
    p->multiProcessorCount = g.sms;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = shared_optin();
    p->sharedMemPerMultiprocessor = shared_optin() + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->totalGlobalMem = g.device_bytes;
    p->l2CacheSize = 50 << 20;
    p->memoryBusWidth = 5120;
    p->cooperativeLaunch = p->concurrentKernels = p->unifiedAddressing = p->canMapHostMemory = 1;
    p->pciBusID = device + 1;
    return cudaSuccess;
}
API cudaDeviceGetPCIBusId(char *text, int length, int device)
{
    snprintf(text, (size_t)length, "0000:%02X:00.0", device + 1);
    return cudaSuccess;
}
API cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}
API cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    *can = device != peer && cs::env_int("CUSIM_PEERS", 1);
    return cudaSuccess;
}
API cudaDeviceEnablePeerAccess(int peer, unsigned)
{
    ENTER_CURRENT;
    Device &d = state().devices[(size_t)current_device_id];
    if (peer < 0 || peer >= (int)state().devices.size() || peer == current_device_id)
        return remember(cudaErrorInvalidDevice);
    if (d.peers >> peer & 1) return remember(cudaErrorPeerAccessAlreadyEnabled);
    d.peers |= 1u << peer;
    return cudaSuccess;
}
API cudaDeviceDisablePeerAccess(int peer)
{
    ENTER_CURRENT;
    Device &d = state().devices[(size_t)current_device_id];
    if (!(d.peers >> peer & 1)) return remember(cudaErrorPeerAccessNotEnabled);
    d.peers &= ~(1u << peer);
    return cudaSuccess;
}
API cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    ENTER_CURRENT;
    *total_bytes = state().device_bytes;
    *free_bytes = *total_bytes - state().devices[(size_t)current_device_id].live_bytes;
    return cudaSuccess;
}
API cudaDeviceSynchronize()
{
    ENTER_CURRENT;
    if (illegal_in_capture()) return remember(cudaErrorStreamCaptureUnsupported);
    synchronise_device(current_device_id, l);
    return remember(state().devices[(size_t)current_device_id].sticky);
}
/* Frees everything of the device and takes a sticky error away. */
API cudaDeviceReset()
{
    Lock l(state().mutex);
    Device &d = state().devices[(size_t)current_device_id];
    if (!d.sticky) synchronise_device(current_device_id, l);
    for (Allocation &a : state().allocations)
        if (a.device == current_device_id && !a.freed) free_device_memory((void *)a.base);
    d.sticky = cudaSuccess;
    d.peers = 0;
    last_error = 0;
    return cudaSuccess;
}

/* ---- memory */
API cudaMalloc(void **p, size_t bytes)
{
    ENTER_CURRENT;
    if (illegal_in_capture()) return remember(cudaErrorStreamCaptureUnsupported);
    return remember(allocate(p, bytes));
}
API cudaFree(void *p)
{
    ENTER_CURRENT;
    if (!p) return cudaSuccess;
    if (illegal_in_capture()) return remember(cudaErrorStreamCaptureUnsupported);
    synchronise_device(current_device_id, l);
    free_device_memory(p);
    return cudaSuccess;
}
API cudaMallocAsync(void **p, size_t bytes, cudaStream_t)
{
    ENTER_CURRENT;
    return remember(allocate(p, bytes));
}
API cudaFreeAsync(void *p, cudaStream_t s)
{
    Work work;
    work.name = "freeAsync";
    work.check = [p] { free_device_memory(p); };
    return remember(enqueue(s, std::move(work)));
}
API cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    ENTER_CURRENT;
    *p = nullptr;
    if (allocation_fails() || posix_memalign(p, 256, bytes ? bytes : 1)) return remember(cudaErrorMemoryAllocation);
    cs::mark_uninitialised(*p, bytes);
    add_allocation(*p, bytes, -1);
    return cudaSuccess;
}
extern "C" cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    return cudaHostAlloc(p, bytes, 0);
}
API cudaFreeHost(void *p)
{
    Lock l(state().mutex);
    if (!p) return cudaSuccess;
    Allocation *a = find_allocation(p);
    if (!a || a->base != (uintptr_t)p || a->device >= 0 || a->registered)
        cs::die("cudaFreeHost(%p): not a pinned allocation", p);
    for (size_t d = 0; d < state().devices.size(); d++)
        if (!state().devices[d].sticky) synchronise_device((int)d, l);
    state().allocations.erase(state().allocations.begin() + (find_allocation(p) - &state().allocations[0]));
    free(p);
    return cudaSuccess;
}
API cudaHostRegister(void *p, size_t bytes, unsigned)
{
    ENTER_CURRENT;
    if (find_allocation(p)) return remember(cudaErrorHostMemoryAlreadyRegistered);
    add_allocation(p, bytes, -1);
    find_allocation(p)->registered = true;
    return cudaSuccess;
}
API cudaHostUnregister(void *p)
{
    Lock l(state().mutex);
    Allocation *a = find_allocation(p);
    if (!a || !a->registered) return remember(cudaErrorHostMemoryNotRegistered);
    state().allocations.erase(state().allocations.begin() + (a - &state().allocations[0]));
    return cudaSuccess;
}
API cudaHostGetDevicePointer(void **device, void *host, unsigned)
{
    ENTER_CURRENT;
    const Allocation *a = find_allocation(host);
    if (!a || a->device >= 0) return remember(cudaErrorInvalidValue);
    *device = host;
    return cudaSuccess;
}
API cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *p)
{
    Lock l(state().mutex);
    memset(attributes, 0, sizeof *attributes);
    const Allocation *a = find_allocation(p);
    attributes->type = !a ? cudaMemoryTypeUnregistered : a->device < 0 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = a && a->device >= 0 ? a->device : 0;
    attributes->devicePointer = a ? (void *)p : nullptr;
    attributes->hostPointer = a && a->device < 0 ? (void *)p : nullptr;
    return cudaSuccess;
}

/* ---- copies. Through libc, so that the sanitizers see them. */
static void *(*volatile copy_bytes)(void *, const void *, size_t) = memcpy;
static void *(*volatile set_bytes)(void *, int, size_t) = memset;

struct Rows {
    char *target;
    const char *source;
    size_t target_pitch, source_pitch, width, height;
};

static bool kind_fits(enum cudaMemcpyKind kind, bool to_device, bool from_device)
{
    if (kind == cudaMemcpyDefault) return true;
    return to_device == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
           from_device == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice);
}

/* A pageable source is read now, as the driver's staging does; a pageable target makes the call wait. */
static cudaError_t copy(Rows r, enum cudaMemcpyKind kind, cudaStream_t stream, bool waits)
{
    ENTER_CURRENT;
    if (!r.width || !r.height) return cudaSuccess;
    if (r.height > 1 && (r.width > r.target_pitch || r.width > r.source_pitch)) return remember(cudaErrorInvalidValue);
    const Allocation *to = find_allocation(r.target), *from = find_allocation(r.source);
    const bool to_device = to && to->device >= 0, from_device = from && from->device >= 0, staged = !from;
    const int target_device = to_device ? to->device : -1, source_device = from_device ? from->device : -1;
    if (!kind_fits(kind, to_device, from_device)) {
        fprintf(stderr, "cusim: error: cudaMemcpy kind %d does not fit target %p (%s) and source %p (%s)\n", kind,
                (void *)r.target, to_device ? "device" : "host", (const void *)r.source,
                from_device ? "device" : "host");
        return remember(cudaErrorInvalidValue);
    }
    if (waits && illegal_in_capture()) return remember(cudaErrorStreamCaptureUnsupported);
    CUstream_st *s = stream_of(stream);
    std::shared_ptr<std::vector<char>> staging;
    if (staged && !s->capture) {
        staging = std::make_shared<std::vector<char>>(r.width * r.height);
        for (size_t i = 0; i < r.height; i++)
            copy_bytes(&(*staging)[i * r.width], r.source + i * r.source_pitch, r.width);
        r.source = staging->data();
        r.source_pitch = r.width;
    }
    Work work;
    work.name = "memcpy";
    const size_t last = r.height - 1;
    work.check = [=] {
        if (to_device) check_range(target_device, r.target, last * r.target_pitch + r.width, "memcpy target");
        if (from_device) check_range(source_device, r.source, last * r.source_pitch + r.width, "memcpy source");
        if (!to_device && to) check_range(0, r.target, last * r.target_pitch + r.width, "memcpy target");
    };
    work.fn = [=] {
        (void)staging; /* lives as long as the operation */
        for (size_t i = 0; i <= last; i++)
            copy_bytes(r.target + i * r.target_pitch, r.source + i * r.source_pitch, r.width);
    };
    cudaError_t error = submit(s, std::move(work), l);
    if (error == cudaSuccess && !s->capture && (waits || (!to && !to_device))) {
        drive(s, s->pushed, true, l);
        cs::order_acquire(&s->sync);
        error = state().devices[(size_t)s->device].sticky;
    }
    return remember(error);
}

API cudaMemcpyAsync(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return copy({(char *)target, (const char *)source, bytes, bytes, bytes, 1}, kind, stream, false);
}
API cudaMemcpy(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind)
{
    return copy({(char *)target, (const char *)source, bytes, bytes, bytes, 1}, kind, nullptr, true);
}
API cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source, size_t source_pitch, size_t width,
                      size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return copy({(char *)target, (const char *)source, target_pitch, source_pitch, width, height}, kind, stream, false);
}
API cudaMemcpy2D(void *target, size_t target_pitch, const void *source, size_t source_pitch, size_t width,
                 size_t height, enum cudaMemcpyKind kind)
{
    return copy({(char *)target, (const char *)source, target_pitch, source_pitch, width, height}, kind, nullptr, true);
}
API cudaMemcpyPeerAsync(void *target, int, const void *source, int, size_t bytes, cudaStream_t stream)
{
    return copy({(char *)target, (const char *)source, bytes, bytes, bytes, 1}, cudaMemcpyDeviceToDevice, stream,
                false);
}
API cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream)
{
    if (!width || !height) return cudaSuccess;
    const int device = stream_device(stream);
    Work work;
    work.name = "memset";
    work.check = [=] { check_range(device, p, (height - 1) * pitch + width, "memset"); };
    work.fn = [=] {
        for (size_t i = 0; i < height; i++) set_bytes((char *)p + i * pitch, value, width);
    };
    return remember(enqueue(stream, std::move(work)));
}
API cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream)
{
    return cudaMemset2DAsync(p, bytes, value, bytes, 1, stream);
}
API cudaMemset(void *p, int value, size_t bytes)
{
    return cudaMemsetAsync(p, value, bytes, nullptr);
}

/* ---- attributes of kernels */
API cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    ENTER_CURRENT;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (size_t)value > shared_optin()) return remember(cudaErrorInvalidValue);
    for (Function &f : state().functions)
        if (f.kernel == kernel) {
            f.dynamic_max = value;
            return cudaSuccess;
        }
    state().functions.push_back({kernel, value});
    return cudaSuccess;
}
API cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel)
{
    ENTER_CURRENT;
    if (!cs::find_kernel(kernel)) return remember(cudaErrorInvalidDeviceFunction);
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 64; /* unknown here: kernels/budget.csv has the truth */
    attributes->sharedSizeBytes = cs::kernel_static_shared(kernel);
    attributes->binaryVersion = attributes->ptxVersion = state().arch;
    attributes->maxDynamicSharedSizeBytes = 49152;
    for (const Function &f : state().functions)
        if (f.kernel == kernel) attributes->maxDynamicSharedSizeBytes = f.dynamic_max;
    return cudaSuccess;
}
API cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int threads, size_t dynamic_bytes)
{
    ENTER_CURRENT;
    if (threads <= 0 || threads > 1024) return remember(cudaErrorInvalidValue);
    const size_t shared = dynamic_bytes + cs::kernel_static_shared(kernel) + 1024, all = shared_optin() + 1024;
    *blocks = (int)std::min<size_t>({32, 2048 / (size_t)((threads + 31) / 32 * 32), all / shared});
    return cudaSuccess;
}
API cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int threads,
                                                           size_t dynamic_bytes, unsigned)
{
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, dynamic_bytes);
}

/* ---- faults.h */
#define FAULT(statement)                                                                                               \
    do {                                                                                                               \
        Lock l(state().mutex);                                                                                         \
        Faults &f = state().faults;                                                                                    \
        statement;                                                                                                     \
        state().changed.notify_all();                                                                                  \
    } while (0)

extern "C" void faults_clear(void)
{
    FAULT(f = Faults());
}
extern "C" uint64_t faults_struck(void)
{
    Lock l(state().mutex);
    return state().faults.struck;
}
extern "C" void fault_allocation(uint64_t k, int keep)
{
    FAULT((f.allocation = k, f.allocation_keep = keep != 0));
}
extern "C" void fault_sticky(int error, uint64_t k)
{
    FAULT((f.sticky = k, f.sticky_error = error));
}
extern "C" void fault_launch(int error, uint64_t k)
{
    FAULT((f.launch = k, f.launch_error = error));
}
extern "C" void fault_hang_kernel(uint64_t k)
{
    FAULT((f.hang_kernel = k, f.hangs = true));
}
extern "C" void fault_hang_collective(uint64_t k)
{
    FAULT((f.hang_collective = k, f.hangs = true));
}
extern "C" void fault_nccl_call(int result, uint64_t k)
{
    FAULT((f.nccl_call = k, f.nccl_call_result = result));
}
extern "C" void fault_nccl_async(int result, uint64_t k)
{
    FAULT((f.nccl_async = k, f.nccl_async_result = result, f.hangs = true));
}
extern "C" void fault_rank_absent(int rank)
{
    FAULT((f.absent_rank = rank, f.hangs = f.hangs || rank >= 0));
}
extern "C" void fault_no_device(int error)
{
    FAULT(f.no_device = error);
}
