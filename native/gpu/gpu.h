/* gpu.h - a device as the engine sees it: memory, copies, launches.
 *
 * A backend (CUDA, Metal, the emulation of the tests) is a table of these functions. CUDA's is in
 * a shared object of its own, found at run time: see load.h. Whatever fails fills the error and
 * says so in its result; work that was queued tells with the next sync of its stream. A device is
 * used by one thread at a time.
 */
#ifndef QWEN3_GPU_H
#define QWEN3_GPU_H

#include <stdbool.h>

#include "kernels.h"
#include "qwen3.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gpu gpu;             /* an open device */
typedef struct gpu_graph gpu_graph; /* launches that are queued as one */

typedef struct {
    char name[256];
    uint64_t total_bytes, free_bytes; /* of its memory; free: when it was asked */
    int n_units;                      /* multiprocessors, cores */
    int shared_bytes;                 /* most of a block */
    int unified;                      /* the host's memory is the device's */
} gpu_info;

typedef struct {
    int x, y, z; /* blocks, y and z below 65536; a 0: there is nothing to do */
    int threads; /* of a block: a multiple of 32, up to 1024 */
    int shared;  /* bytes of a block */
} gpu_grid;

enum { GPU_STREAMS = 2, GPU_COMPUTE = 0, GPU_COPY = 1 };

typedef struct {
    int version; /* GPU_API_VERSION, or it is not to be used */
    const char *name;
    int (*count)(qwen3_error *why); /* devices; 0: why, such as a driver that is missing */
    gpu *(*open)(int index, qwen3_error *err);
    void (*close)(gpu *);
    qwen3_status (*describe)(gpu *, gpu_info *, qwen3_error *err);

    /* NULL: QWEN3_ERR_MEMORY, and the device is as usable as before. 256-aligned. */
    void *(*alloc)(gpu *, size_t bytes, qwen3_error *err);
    void (*release)(gpu *, void *);
    /* Host memory from which copies run beside the computation. Others go through a buffer of the
     * driver: slower, and the caller may wait for them. */
    void *(*alloc_pinned)(gpu *, size_t bytes, qwen3_error *err);
    void (*release_pinned)(gpu *, void *);
    /* Makes writable memory of the host, whole pages of it, such memory until unpin. Its pages must
     * stay what they are. False: this device cannot, or not so much. */
    bool (*pin)(gpu *, void *, size_t bytes);
    void (*unpin)(gpu *, void *);
    /* Host memory that the device reads where it lies, until unmap: its address on the device.
     * NULL: this device cannot, or not as much at once; upload a copy. */
    void *(*map)(gpu *, const void *, size_t bytes);
    void (*unmap)(gpu *, void *);

    /* Queued on a stream, in its order. Host memory must stay until the stream has come there. */
    qwen3_status (*upload)(gpu *, int stream, void *to, const void *from, size_t, qwen3_error *err);
    qwen3_status (*download)(gpu *, int stream, void *to, const void *from, size_t,
                             qwen3_error *err);
    qwen3_status (*launch)(gpu *, int stream, kernel_id, gpu_grid, const void *args, size_t,
                           qwen3_error *err);
    /* What is queued on `stream` from now on waits for what is queued on `other` until now. */
    qwen3_status (*wait)(gpu *, int stream, int other, qwen3_error *err);
    /* Until all of a stream is done. */
    qwen3_status (*sync)(gpu *, int stream, qwen3_error *err);

    /* The step that decoding repeats: what is launched on the stream from capture_begin to
     * capture_end is kept, not run, and replay queues it all at once. Meanwhile nothing but launch
     * may be called. Grids and arguments stay what they were: what changes from step to step,
     * kernels read from the device's memory. After an error, too, capture_end must be called. */
    qwen3_status (*capture_begin)(gpu *, int stream, qwen3_error *err);
    gpu_graph *(*capture_end)(gpu *, int stream, qwen3_error *err);
    qwen3_status (*replay)(gpu *, int stream, gpu_graph *, qwen3_error *err);
    void (*release_graph)(gpu *, gpu_graph *);
} gpu_api;

enum { GPU_API_VERSION = 2 };

#ifdef __cplusplus
}
#endif

#endif
