/* cuda.cpp - the device on CUDA's runtime: what libqwen3_cuda.so holds beside the kernels. */
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>

#include "load.h"

extern "C" {
#include "error.h"
}

extern const void *const kernel_functions[N_KERNELS]; /* kernels.cu */

struct gpu {
    int index;
    int records; /* the stream whose launches are recorded, or -1 */
    cudaStream_t streams[GPU_STREAMS];
    cudaEvent_t events[GPU_STREAMS]; /* how far each stream has come, for others to wait */
    const char *latest[GPU_STREAMS]; /* what was launched last */
    int shared[N_KERNELS];           /* bytes that a block of the kernel may have */
};

namespace {

/* What every device grants without being asked. */
enum { PLAIN_SHARED = 48 << 10 };

struct kernel_info {
    const char *name;
    size_t args;
};

const kernel_info kernels[N_KERNELS] = {
#define X(name, args) {#name, sizeof(args)},
    KERNELS(X)
#undef X
};

/* ---- errors ----------------------------------------------------------------------------- */

/* Where nobody is told: what is really broken will say so again. */
void ignore(cudaError_t code) {
    if (code != cudaSuccess) (void)cudaGetLastError();
}

std::string version(int n) {
    return std::to_string(n / 1000) + "." + std::to_string(n % 1000 / 10);
}

std::string driver_advice() {
    int has = 0;
    ignore(cudaDriverGetVersion(&has));
    if (has == 0) return "there is no NVIDIA driver here (libcuda.so.1)";
    return "the NVIDIA driver is for CUDA " + version(has) + ", this build of qwen3 needs one " +
           "for " + version(CUDART_VERSION) + ": update it";
}

std::string access_advice() {
    if (access("/dev/nvidiactl", R_OK | W_OK) != 0 && errno == EACCES)
        return "no permission for /dev/nvidiactl: join the group that owns it";
    if (std::getenv("CUDA_VISIBLE_DEVICES"))
        return "CUDA_VISIBLE_DEVICES is set: does it name a GPU of this machine?";
    return "nvidia-smi may know more";
}

struct verdict {
    qwen3_status status;
    std::string advice; /* what a user can do, if anything */
};

verdict judge(cudaError_t code) {
    switch (code) {
    case cudaErrorMemoryAllocation:
        return {QWEN3_ERR_MEMORY, "fewer layers or experts on the GPU, or a shorter context, need "
                "less"};
    case cudaErrorInsufficientDriver:
        return {QWEN3_ERR_UNSUPPORTED, driver_advice()};
    case cudaErrorNoDevice:
    case cudaErrorOperatingSystem:
    case cudaErrorNotPermitted:
        return {QWEN3_ERR_UNSUPPORTED, access_advice()};
    case cudaErrorSystemDriverMismatch:
        return {QWEN3_ERR_UNSUPPORTED, "the driver was updated while it ran: restart the machine"};
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
        return {QWEN3_ERR_UNSUPPORTED, "this build of qwen3 has no code for this GPU; the oldest "
                "that it can have it for is of compute capability 7.5"};
    case cudaErrorUnsupportedPtxVersion:
        return {QWEN3_ERR_UNSUPPORTED, "this GPU is newer than this build of qwen3: update the "
                "driver"};
    case cudaErrorDevicesUnavailable:
        return {QWEN3_ERR_IO, "another process has the GPU for itself"};
    case cudaErrorInitializationError:
        return {QWEN3_ERR_IO, "a process cannot use CUDA when the one it was forked from did"};
    case cudaErrorInvalidValue:
    case cudaErrorInvalidDevice:
    case cudaErrorInvalidConfiguration:
    case cudaErrorLaunchOutOfResources:
        return {QWEN3_ERR_ARG, ""};
    case cudaErrorECCUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
        return {QWEN3_ERR_IO, "this process can no longer use the GPU"};
    default:
        return {QWEN3_ERR_IO, ""};
    }
}

/* `what` says which call it was, and on what. */
__attribute__((format(printf, 3, 4))) qwen3_status failed(qwen3_error *err, cudaError_t code,
                                                          const char *what, ...) {
    ignore(code); /* it is told here, no later call shall tell it again */
    char text[256];
    va_list args;
    va_start(args, what);
    std::vsnprintf(text, sizeof text, what, args);
    va_end(args);
    verdict v = judge(code);
    return fail(err, v.status, "%s: %s (CUDA error %d)%s%s", text, cudaGetErrorString(code),
                (int)code, v.advice.empty() ? "" : ": ", v.advice.c_str());
}

/* Before every call: devices are chosen per thread. */
qwen3_status use(gpu *g, const char *call, qwen3_error *err) {
    if (g->records >= 0)
        return fail(err, QWEN3_ERR_ARG, "%s while launches are recorded", call);
    cudaError_t code = cudaSetDevice(g->index);
    return code == cudaSuccess ? QWEN3_OK
                               : failed(err, code, "cudaSetDevice(%d) for %s", g->index, call);
}

/* ---- devices ---------------------------------------------------------------------------- */

int count(qwen3_error *why) {
    int n = 0;
    cudaError_t code = cudaGetDeviceCount(&n);
    if (code == cudaSuccess && n == 0) code = cudaErrorNoDevice;
    if (code == cudaSuccess) return n;
    failed(why, code, "cudaGetDeviceCount");
    return 0;
}

void close(gpu *g) {
    if (!g) return;
    ignore(cudaSetDevice(g->index));
    for (int i = 0; i < GPU_STREAMS; i++) {
        if (g->streams[i]) {
            ignore(cudaStreamSynchronize(g->streams[i]));
            ignore(cudaStreamDestroy(g->streams[i]));
        }
        if (g->events[i]) ignore(cudaEventDestroy(g->events[i]));
    }
    delete g;
}

qwen3_status prepare(gpu *g, qwen3_error *err) {
    qwen3_status status = use(g, "open", err);
    for (int i = 0; i < GPU_STREAMS && status == QWEN3_OK; i++) {
        cudaError_t code = cudaStreamCreateWithFlags(&g->streams[i], cudaStreamNonBlocking);
        if (code != cudaSuccess) return failed(err, code, "cudaStreamCreateWithFlags");
        code = cudaEventCreateWithFlags(&g->events[i], cudaEventDisableTiming);
        if (code != cudaSuccess) return failed(err, code, "cudaEventCreateWithFlags");
    }
    /* Kernels are loaded when they are first asked for. Now: not within a token, nor while a graph
     * is recorded, and a GPU that this build has no code for says so. */
    for (int id = 0; id < N_KERNELS && status == QWEN3_OK; id++) {
        cudaFuncAttributes attributes;
        cudaError_t code = cudaFuncGetAttributes(&attributes, kernel_functions[id]);
        if (code != cudaSuccess)
            return failed(err, code, "cudaFuncGetAttributes of %s", kernels[id].name);
        g->shared[id] = PLAIN_SHARED;
    }
    return status;
}

gpu *open(int index, qwen3_error *err) {
    gpu *g = new (std::nothrow) gpu{};
    if (!g) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory for a GPU's state");
        return nullptr;
    }
    g->index = index;
    g->records = -1;
    if (prepare(g, err) == QWEN3_OK) return g;
    close(g);
    return nullptr;
}

qwen3_status describe(gpu *g, gpu_info *info, qwen3_error *err) {
    qwen3_status status = use(g, "describe", err);
    if (status != QWEN3_OK) return status;
    cudaDeviceProp device;
    cudaError_t code = cudaGetDeviceProperties(&device, g->index);
    if (code != cudaSuccess) return failed(err, code, "cudaGetDeviceProperties");
    size_t free = 0, total = 0;
    code = cudaMemGetInfo(&free, &total);
    if (code != cudaSuccess) return failed(err, code, "cudaMemGetInfo");
    *info = {};
    std::snprintf(info->name, sizeof info->name, "%s", device.name);
    info->total_bytes = total;
    info->free_bytes = free;
    info->n_units = device.multiProcessorCount;
    info->shared_bytes = (int)device.sharedMemPerBlockOptin;
    info->unified = device.integrated;
    return QWEN3_OK;
}

/* ---- memory ----------------------------------------------------------------------------- */

void *allocate(gpu *g, size_t bytes, qwen3_error *err) {
    void *at = nullptr;
    if (use(g, "alloc", err) != QWEN3_OK) return nullptr;
    cudaError_t code = cudaMalloc(&at, bytes ? bytes : 1); /* of 0 it would be NULL */
    if (code == cudaSuccess) return at;
    failed(err, code, "cudaMalloc of %zu bytes", bytes);
    return nullptr;
}

void release(gpu *g, void *at) {
    ignore(cudaSetDevice(g->index));
    ignore(cudaFree(at));
}

void *allocate_pinned(gpu *g, size_t bytes, qwen3_error *err) {
    void *at = nullptr;
    if (use(g, "alloc_pinned", err) != QWEN3_OK) return nullptr;
    cudaError_t code = cudaHostAlloc(&at, bytes ? bytes : 1, cudaHostAllocDefault);
    if (code == cudaSuccess) return at;
    failed(err, code, "cudaHostAlloc of %zu bytes of RAM", bytes);
    return nullptr;
}

void release_pinned(gpu *g, void *at) {
    ignore(cudaSetDevice(g->index));
    ignore(cudaFreeHost(at));
}

bool pin(gpu *g, void *at, size_t bytes) {
    qwen3_error why;
    if (use(g, "pin", &why) != QWEN3_OK) return false;
    cudaError_t code = cudaHostRegister(at, bytes, cudaHostRegisterDefault);
    ignore(code);
    return code == cudaSuccess;
}

void unpin(gpu *g, void *at) {
    ignore(cudaSetDevice(g->index));
    ignore(cudaHostUnregister(at));
}

/* A kernel would read through PCIe, each time. */
void *map(gpu *, const void *, size_t) { return nullptr; }

void unmap(gpu *, void *) {}

qwen3_status copy(gpu *g, int stream, void *to, const void *from, size_t n, cudaMemcpyKind kind,
                  const char *call, qwen3_error *err) {
    qwen3_status status = use(g, call, err);
    if (status != QWEN3_OK) return status;
    cudaError_t code = cudaMemcpyAsync(to, from, n, kind, g->streams[stream]);
    return code == cudaSuccess ? QWEN3_OK
                               : failed(err, code, "cudaMemcpyAsync, %s of %zu bytes", call, n);
}

qwen3_status upload(gpu *g, int stream, void *to, const void *from, size_t n, qwen3_error *err) {
    return copy(g, stream, to, from, n, cudaMemcpyHostToDevice, "upload", err);
}

qwen3_status download(gpu *g, int stream, void *to, const void *from, size_t n, qwen3_error *err) {
    return copy(g, stream, to, from, n, cudaMemcpyDeviceToHost, "download", err);
}

/* ---- work ------------------------------------------------------------------------------- */

/* More shared memory than every device grants is granted when it is asked for. */
cudaError_t grant_shared(gpu *g, kernel_id id, int bytes) {
    if (bytes <= g->shared[id]) return cudaSuccess;
    cudaError_t code = cudaFuncSetAttribute(kernel_functions[id],
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (code == cudaSuccess) g->shared[id] = bytes;
    return code;
}

qwen3_status launch(gpu *g, int stream, kernel_id id, gpu_grid grid, const void *args, size_t n,
                    qwen3_error *err) {
    const kernel_info &kernel = kernels[id];
    if (n != kernel.args)
        return fail(err, QWEN3_ERR_ARG, "%s: arguments of %zu bytes, not %zu", kernel.name, n,
                    kernel.args);
    if (!grid.x || !grid.y || !grid.z) return QWEN3_OK; /* CUDA would refuse it */
    cudaError_t code = cudaSetDevice(g->index);
    if (code != cudaSuccess)
        return failed(err, code, "cudaSetDevice(%d) for %s", g->index, kernel.name);
    code = grant_shared(g, id, grid.shared);
    if (code != cudaSuccess)
        return failed(err, code, "cudaFuncSetAttribute of %s: %d bytes of shared memory",
                      kernel.name, grid.shared);
    void *all[] = {const_cast<void *>(args)};
    dim3 blocks((unsigned)grid.x, (unsigned)grid.y, (unsigned)grid.z);
    code = cudaLaunchKernel(kernel_functions[id], blocks, dim3((unsigned)grid.threads), all,
                            (size_t)grid.shared, g->streams[stream]);
    if (code != cudaSuccess)
        return failed(err, code, "cudaLaunchKernel of %s, %d x %d x %d blocks of %d threads and %d "
                      "bytes", kernel.name, grid.x, grid.y, grid.z, grid.threads, grid.shared);
    g->latest[stream] = kernel.name;
    return QWEN3_OK;
}

qwen3_status wait(gpu *g, int stream, int other, qwen3_error *err) {
    qwen3_status status = use(g, "wait", err);
    if (status != QWEN3_OK) return status;
    cudaError_t code = cudaEventRecord(g->events[other], g->streams[other]);
    if (code != cudaSuccess) return failed(err, code, "cudaEventRecord");
    code = cudaStreamWaitEvent(g->streams[stream], g->events[other], 0);
    return code == cudaSuccess ? QWEN3_OK : failed(err, code, "cudaStreamWaitEvent");
}

qwen3_status sync(gpu *g, int stream, qwen3_error *err) {
    qwen3_status status = use(g, "sync", err);
    if (status != QWEN3_OK) return status;
    cudaError_t code = cudaStreamSynchronize(g->streams[stream]);
    if (code == cudaSuccess) return QWEN3_OK;
    const char *latest = g->latest[stream];
    return failed(err, code, "cudaStreamSynchronize%s%s", latest ? ", launched last: " : "",
                  latest ? latest : "");
}

/* ---- graphs: a gpu_graph is a cudaGraphExec_t ------------------------------------------- */

qwen3_status capture_begin(gpu *g, int stream, qwen3_error *err) {
    qwen3_status status = use(g, "capture_begin", err);
    if (status != QWEN3_OK) return status;
    cudaError_t code = cudaStreamBeginCapture(g->streams[stream], cudaStreamCaptureModeThreadLocal);
    if (code != cudaSuccess) return failed(err, code, "cudaStreamBeginCapture");
    g->records = stream;
    return QWEN3_OK;
}

gpu_graph *capture_end(gpu *g, int stream, qwen3_error *err) {
    if (g->records != stream) {
        fail(err, QWEN3_ERR_ARG, "capture_end: no launches of this stream are recorded");
        return nullptr;
    }
    g->records = -1;
    if (use(g, "capture_end", err) != QWEN3_OK) return nullptr;
    cudaGraph_t graph = nullptr;
    cudaError_t code = cudaStreamEndCapture(g->streams[stream], &graph);
    if (code != cudaSuccess) {
        failed(err, code, "cudaStreamEndCapture");
        return nullptr;
    }
    cudaGraphExec_t ready = nullptr;
    code = cudaGraphInstantiateWithFlags(&ready, graph, 0);
    ignore(cudaGraphDestroy(graph));
    if (code != cudaSuccess) {
        failed(err, code, "cudaGraphInstantiateWithFlags");
        return nullptr;
    }
    return reinterpret_cast<gpu_graph *>(ready);
}

qwen3_status replay(gpu *g, int stream, gpu_graph *graph, qwen3_error *err) {
    qwen3_status status = use(g, "replay", err);
    if (status != QWEN3_OK) return status;
    cudaError_t code = cudaGraphLaunch(reinterpret_cast<cudaGraphExec_t>(graph),
                                       g->streams[stream]);
    if (code != cudaSuccess) return failed(err, code, "cudaGraphLaunch");
    g->latest[stream] = "a graph";
    return QWEN3_OK;
}

void release_graph(gpu *g, gpu_graph *graph) {
    if (!graph) return;
    ignore(cudaSetDevice(g->index));
    ignore(cudaGraphExecDestroy(reinterpret_cast<cudaGraphExec_t>(graph)));
}

const gpu_api api = {
    GPU_API_VERSION, "CUDA", count, open, close, describe, allocate, release, allocate_pinned,
    release_pinned, pin, unpin, map, unmap, upload, download, launch, wait, sync, capture_begin,
    capture_end, replay, release_graph,
};

} // namespace

extern "C" __attribute__((visibility("default"))) gpu_entry qwen3_gpu;

const gpu_api *qwen3_gpu(void) { return &api; }
