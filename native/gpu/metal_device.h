/* metal_device.h - within the Metal backend: its device, its streams and its memory. */
#ifndef QWEN3_GPU_METAL_DEVICE_H
#define QWEN3_GPU_METAL_DEVICE_H

#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include "error.h"
#include "metal.h"

enum { COPY_BYTES = N_KERNELS, COPY_VECTORS, N_PIPELINES }; /* beside those of KERNELS */

/* Memory that host and device see, each at its own address. */
@interface QWMemory : NSObject {
  @public
    id<MTLBuffer> buffer;
    char *host;
    uint64_t address;
    size_t bytes;
}
@end

@interface QWStream : NSObject {
  @public
    id<MTLCommandQueue> queue;
    id<MTLEvent> event;
    uint64_t turn; /* of the event: what the last command buffer signals */
    id<MTLCommandBuffer> commands;
    id<MTLComputeCommandEncoder> encoder;
    int launches; /* in commands */
    NSMutableArray<id<MTLCommandBuffer>> *running;
    NSMutableArray<void (^)(void)> *arrivals; /* downloads, to be done by the host */
    NSError *error;
}
@end

@interface QWDevice : NSObject {
  @public
    id<MTLDevice> metal;
    id<MTLResidencySet> resident;
    id<MTLComputePipelineState> pipelines[N_PIPELINES];
    NSMutableArray<QWMemory *> *memories;
    QWStream *streams[GPU_STREAMS];
    gpu_graph *records; /* what is launched on a stream now, see metal_graph.m */
    int recorded;       /* the stream */
}
@end

static inline QWDevice *device_of(gpu *g) { return (__bridge QWDevice *)g; }

/* For the next kernel of the stream, which sees what those before it wrote. */
id<MTLComputeCommandEncoder> metal_encoder(QWStream *);
/* One was given to the encoder. */
void metal_launched(QWStream *);
/* Waits for all of the stream; an error stays in it. */
void metal_finish(QWStream *);

/* A launch that was found valid. */
void metal_encode(QWDevice *, int stream, kernel_id, gpu_grid, const void *args, size_t bytes);
/* Keeps it for a replay. */
qwen3_status metal_record(gpu_graph *, kernel_id, gpu_grid, const void *args, size_t bytes,
                          qwen3_error *err);

/* Of gpu_api. */
void *metal_alloc(gpu *, size_t bytes, qwen3_error *err);
void metal_release(gpu *, void *);
void *metal_alloc_pinned(gpu *, size_t bytes, qwen3_error *err);
void metal_release_pinned(gpu *, void *);
bool metal_pin(gpu *, void *, size_t bytes);
void *metal_map(gpu *, const void *, size_t bytes);
qwen3_status metal_upload(gpu *, int stream, void *to, const void *from, size_t, qwen3_error *err);
qwen3_status metal_download(gpu *, int stream, void *to, const void *from, size_t,
                            qwen3_error *err);
qwen3_status metal_capture_begin(gpu *, int stream, qwen3_error *err);
gpu_graph *metal_capture_end(gpu *, int stream, qwen3_error *err);
qwen3_status metal_replay(gpu *, int stream, gpu_graph *, qwen3_error *err);
void metal_release_graph(gpu *, gpu_graph *);

#endif
