/* cuda_runtime_api.h - as much of CUDA's runtime as cuda.cpp calls, with no device behind it: for
 * tests of what it does when a call fails. That it is called as the real one wants to be called,
 * the build with nvcc tells. */
#ifndef FAKE_CUDA_RUNTIME_API_H
#define FAKE_CUDA_RUNTIME_API_H

#include <cstddef>
#include <cstdlib>
#include <cstring>

#define CUDART_VERSION 13020

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorDevicesUnavailable = 46,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorECCUncorrectable = 214,
    cudaErrorUnsupportedPtxVersion = 222,
    cudaErrorOperatingSystem = 304,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorLaunchTimeout = 702,
    cudaErrorHardwareStackError = 714,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorInvalidPc = 718,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotPermitted = 800,
    cudaErrorSystemDriverMismatch = 803,
};

/* The call that is to fail, and what is left behind. */
struct fake_cuda {
    int calls = 0, fails = -1; /* the call of this number */
    cudaError_t with = cudaErrorLaunchFailure;
    const char *failed = nullptr; /* its name */
    cudaError_t last = cudaSuccess;
    int live = 0; /* allocations, streams, events, graphs */
    int devices = 1, driver = CUDART_VERSION;
    int launches = 0, grants = 0; /* of shared memory */
    int device = -1;
};
inline fake_cuda fake;

inline cudaError_t fake_call(const char *name) {
    if (fake.calls++ != fake.fails) return cudaSuccess;
    fake.failed = name;
    return fake.last = fake.with;
}

/* Makes an object, unless this is the call to fail. */
inline cudaError_t fake_make(const char *name, void **object, size_t bytes = 1) {
    cudaError_t code = fake_call(name);
    if (code != cudaSuccess) return code;
    *object = std::malloc(bytes);
    fake.live++;
    return code;
}

/* Even when it tells of an error, one of before. */
inline cudaError_t fake_unmake(const char *name, void *object) {
    fake.live -= object != nullptr;
    std::free(object);
    return fake_call(name);
}

struct fake_stream;
struct fake_event;
struct fake_graph;
struct fake_exec;
using cudaStream_t = fake_stream *;
using cudaEvent_t = fake_event *;
using cudaGraph_t = fake_graph *;
using cudaGraphExec_t = fake_exec *;

struct dim3 {
    unsigned x, y, z;
    explicit dim3(unsigned a, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct cudaDeviceProp {
    char name[256];
    size_t sharedMemPerBlockOptin;
    int multiProcessorCount, integrated;
};
struct cudaFuncAttributes {
    int unused;
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum { cudaStreamNonBlocking, cudaEventDisableTiming, cudaHostAllocDefault,
       cudaHostRegisterDefault };

inline const char *cudaGetErrorString(cudaError_t) { return "what CUDA says"; }

inline cudaError_t cudaGetLastError() {
    cudaError_t last = fake.last;
    fake.last = cudaSuccess;
    return last;
}

inline cudaError_t cudaDriverGetVersion(int *version) {
    *version = fake.driver;
    return cudaSuccess;
}

inline cudaError_t cudaGetDeviceCount(int *n) {
    *n = fake.devices;
    return fake_call("cudaGetDeviceCount");
}

inline cudaError_t cudaSetDevice(int device) {
    fake.device = device;
    return fake_call("cudaSetDevice");
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *device, int) {
    *device = {"fake", 99 << 10, 46, 0};
    return fake_call("cudaGetDeviceProperties");
}

inline cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *free = 1 << 20;
    *total = 2 << 20;
    return fake_call("cudaMemGetInfo");
}

inline cudaError_t cudaMalloc(void **at, size_t n) { return fake_make("cudaMalloc", at, n); }
inline cudaError_t cudaFree(void *at) { return fake_unmake("cudaFree", at); }
inline cudaError_t cudaHostAlloc(void **at, size_t n, unsigned) {
    return fake_make("cudaHostAlloc", at, n);
}
inline cudaError_t cudaFreeHost(void *at) { return fake_unmake("cudaFreeHost", at); }

inline cudaError_t cudaHostRegister(void *, size_t, unsigned) {
    cudaError_t code = fake_call("cudaHostRegister");
    fake.live += code == cudaSuccess;
    return code;
}
inline cudaError_t cudaHostUnregister(void *) {
    fake.live--;
    return fake_call("cudaHostUnregister");
}

inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind,
                                   cudaStream_t) {
    std::memcpy(to, from, n);
    return fake_call("cudaMemcpyAsync");
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    return fake_make("cudaStreamCreateWithFlags", reinterpret_cast<void **>(stream));
}
inline cudaError_t cudaStreamDestroy(cudaStream_t s) { return fake_unmake("cudaStreamDestroy", s); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return fake_call("cudaStreamSynchronize");
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
    return fake_call("cudaStreamWaitEvent");
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    return fake_make("cudaEventCreateWithFlags", reinterpret_cast<void **>(event));
}
inline cudaError_t cudaEventDestroy(cudaEvent_t e) { return fake_unmake("cudaEventDestroy", e); }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    return fake_call("cudaEventRecord");
}

inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, const void *) {
    return fake_call("cudaFuncGetAttributes");
}
inline cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) {
    fake.grants++;
    return fake_call("cudaFuncSetAttribute");
}
inline cudaError_t cudaLaunchKernel(const void *, dim3, dim3, void **, size_t, cudaStream_t) {
    fake.launches++;
    return fake_call("cudaLaunchKernel");
}

inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    return fake_call("cudaStreamBeginCapture");
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    return fake_make("cudaStreamEndCapture", reinterpret_cast<void **>(graph));
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return fake_unmake("cudaGraphDestroy", graph);
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t,
                                                 unsigned long long) {
    return fake_make("cudaGraphInstantiateWithFlags", reinterpret_cast<void **>(exec));
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
    return fake_call("cudaGraphLaunch");
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    return fake_unmake("cudaGraphExecDestroy", exec);
}

#endif
