/* metal.m - see metal.h.
 *
 * A device's pointer is an MTLBuffer's gpuAddress: structs of arguments hold such pointers and go
 * to the kernel as they are. A residency set keeps every buffer where kernels may follow pointers.
 * Metal knows nothing of what they read and write, so the order is said in full: a barrier between
 * the kernels of a command buffer, an event between command buffers.
 */
#include "metal_device.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LAUNCHES = 64 }; /* of a command buffer: the GPU starts before a step is all encoded */

static const char source[] = {
#include "kernels.metal.inc"
};

static NSString *const names[N_PIPELINES] = {
#define X(name, args) @#name,
    KERNELS(X)
#undef X
    [COPY_BYTES] = @"copy_bytes", [COPY_VECTORS] = @"copy_vectors",
};

@implementation QWStream
@end
@implementation QWDevice
@end

static const char *text_of(NSError *error) {
    return error ? error.localizedDescription.UTF8String : "no reason given";
}

/* ---- the device ------------------------------------------------------------------------- */

static id<MTLDevice> find_device(void) {
    if (@available(macOS 15.0, *)) {
        id<MTLDevice> metal = MTLCreateSystemDefaultDevice();
        if ([metal supportsFamily:MTLGPUFamilyApple7]) return metal;
    }
    return nil;
}

static int count(qwen3_error *why) {
    @autoreleasepool {
        if (find_device()) return 1;
        fail(why, QWEN3_ERR_UNSUPPORTED, "the GPU needs Apple Silicon and macOS 15");
        return 0;
    }
}

/* Where compiled kernels are kept: another source, device or system has another file. */
static NSURL *cache_file(id<MTLDevice> metal) {
    NSString *caches =
        NSSearchPathForDirectoriesInDomains(NSCachesDirectory, NSUserDomainMask, YES).firstObject;
    NSString *folder = [caches stringByAppendingPathComponent:@"qwen3"];
    if (!folder ||
        ![NSFileManager.defaultManager createDirectoryAtPath:folder
                                 withIntermediateDirectories:YES
                                                  attributes:nil
                                                       error:nil])
        return nil;
    uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */
    for (size_t i = 0; i < sizeof source; i++) hash = (hash ^ (uint8_t)source[i]) * 0x100000001b3;
    NSString *name = [NSString stringWithFormat:@"%@ %@ %016llx.metal", metal.name,
                               NSProcessInfo.processInfo.operatingSystemVersionString,
                               (unsigned long long)hash];
    return [NSURL fileURLWithPath:[folder stringByAppendingPathComponent:name]];
}

/* A cache that cannot be written costs time, nothing else. */
static void save(id<MTLBinaryArchive> archive, NSURL *file) {
    NSURL *part = [file URLByAppendingPathExtension:@(getpid()).stringValue];
    if (![archive serializeToURL:part error:nil] ||
        rename(part.fileSystemRepresentation, file.fileSystemRepresentation))
        unlink(part.fileSystemRepresentation);
}

/* Of the largest block that is launched, where a kernel's registers could leave fewer; 0: they
 * leave at least the 256 that all others have. */
static NSUInteger threads_of(int kernel) {
    return kernel == KERNEL_embed_rows || kernel == KERNEL_rms_norm ? 1024 : 0;
}

static qwen3_status compile(QWDevice *d, qwen3_error *err) {
    NSError *error = nil;
    MTLCompileOptions *options = [MTLCompileOptions new];
    options.languageVersion = MTLLanguageVersion3_2;
    options.mathMode = MTLMathModeSafe;
    options.mathFloatingPointFunctions = MTLMathFloatingPointFunctionsPrecise;
    NSString *text = [[NSString alloc] initWithBytes:source
                                              length:sizeof source
                                            encoding:NSUTF8StringEncoding];
    id<MTLLibrary> library = [d->metal newLibraryWithSource:text options:options error:&error];
    if (!library)
        return fail(err, QWEN3_ERR_UNSUPPORTED, "Metal cannot compile the kernels: %s",
                    text_of(error));
    NSURL *file = cache_file(d->metal);
    MTLBinaryArchiveDescriptor *stored = [MTLBinaryArchiveDescriptor new];
    stored.url = file;
    id<MTLBinaryArchive> archive = [d->metal newBinaryArchiveWithDescriptor:stored error:nil];
    bool found = file && archive;
    if (!found) {
        stored.url = nil;
        archive = [d->metal newBinaryArchiveWithDescriptor:stored error:nil];
    }
    for (int i = 0; i < N_PIPELINES; i++) {
        MTLComputePipelineDescriptor *wanted = [MTLComputePipelineDescriptor new];
        wanted.computeFunction = [library newFunctionWithName:names[i]];
        if (!wanted.computeFunction)
            return fail(err, QWEN3_ERR_UNSUPPORTED, "there is no kernel %s", names[i].UTF8String);
        wanted.maxTotalThreadsPerThreadgroup = threads_of(i);
        if (archive && !found) [archive addComputePipelineFunctionsWithDescriptor:wanted error:nil];
        if (archive) wanted.binaryArchives = @[ archive ];
        d->pipelines[i] = [d->metal newComputePipelineStateWithDescriptor:wanted
                                                                  options:MTLPipelineOptionNone
                                                               reflection:nil
                                                                    error:&error];
        if (!d->pipelines[i])
            return fail(err, QWEN3_ERR_UNSUPPORTED, "Metal cannot compile %s: %s",
                        names[i].UTF8String, text_of(error));
        if (d->pipelines[i].threadExecutionWidth != 32)
            return fail(err, QWEN3_ERR_UNSUPPORTED, "%s runs in warps of %d lanes, not 32",
                        names[i].UTF8String, (int)d->pipelines[i].threadExecutionWidth);
    }
    if (archive && file && !found) save(archive, file);
    return QWEN3_OK;
}

static gpu *open_device(int index, qwen3_error *err) {
    @autoreleasepool {
        QWDevice *d = [QWDevice new];
        d->metal = index == 0 ? find_device() : nil;
        if (!d->metal) {
            fail(err, QWEN3_ERR_ARG, "there is no device %d", index);
            return NULL;
        }
        NSError *error = nil;
        d->resident = [d->metal newResidencySetWithDescriptor:[MTLResidencySetDescriptor new]
                                                        error:&error];
        if (!d->resident) {
            fail(err, QWEN3_ERR_MEMORY, "Metal has no residency set: %s", text_of(error));
            return NULL;
        }
        d->memories = [NSMutableArray new];
        for (int i = 0; i < GPU_STREAMS; i++) {
            QWStream *s = d->streams[i] = [QWStream new];
            s->queue = [d->metal newCommandQueue];
            s->event = [d->metal newEvent];
            if (!s->queue || !s->event) {
                fail(err, QWEN3_ERR_MEMORY, "Metal has no command queue");
                return NULL;
            }
            [s->queue addResidencySet:d->resident];
            s->running = [NSMutableArray new];
            s->arrivals = [NSMutableArray new];
        }
        if (compile(d, err)) return NULL;
        return (__bridge_retained gpu *)d;
    }
}

static qwen3_status describe(gpu *g, gpu_info *info, qwen3_error *err) {
    (void)err;
    @autoreleasepool {
        id<MTLDevice> metal = device_of(g)->metal;
        uint64_t total = metal.recommendedMaxWorkingSetSize, used = metal.currentAllocatedSize;
        memset(info, 0, sizeof *info);
        snprintf(info->name, sizeof info->name, "%s", metal.name.UTF8String);
        info->total_bytes = total;
        info->free_bytes = used < total ? total - used : 0;
        info->n_units = 16; /* Metal does not tell: Macs have 7 to 80 */
        info->shared_bytes = (int)metal.maxThreadgroupMemoryLength;
        info->unified = 1;
        return QWEN3_OK;
    }
}

/* ---- streams ---------------------------------------------------------------------------- */

static id<MTLCommandBuffer> commands_of(QWStream *s) {
    if (!s->commands) {
        s->commands = [s->queue commandBuffer];
        [s->commands encodeWaitForEvent:s->event value:s->turn];
    }
    return s->commands;
}

id<MTLComputeCommandEncoder> metal_encoder(QWStream *s) {
    if (s->encoder) [s->encoder memoryBarrierWithScope:MTLBarrierScopeBuffers];
    else
        s->encoder =
            [commands_of(s) computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
    return s->encoder;
}

/* In place of a command buffer that failed, whose own signal does not come. */
static void signal_for(id<MTLCommandBuffer> failed, id<MTLEvent> event, uint64_t turn) {
    @autoreleasepool {
        id<MTLCommandBuffer> other = [[failed.device newCommandQueue] commandBuffer];
        [other encodeSignalEvent:event value:turn];
        [other commit];
    }
}

static void commit(QWStream *s) {
    if (!s->commands) return;
    id<MTLEvent> event = s->event;
    uint64_t turn = ++s->turn;
    [s->encoder endEncoding];
    [s->commands encodeSignalEvent:event value:turn];
    [s->commands addCompletedHandler:^(id<MTLCommandBuffer> done) {
        if (done.status == MTLCommandBufferStatusError) signal_for(done, event, turn);
    }];
    [s->commands commit];
    [s->running addObject:s->commands];
    s->commands = nil;
    s->encoder = nil;
    s->launches = 0;
}

void metal_launched(QWStream *s) {
    if (++s->launches == LAUNCHES) commit(s);
}

void metal_finish(QWStream *s) {
    commit(s);
    for (id<MTLCommandBuffer> each in s->running) {
        [each waitUntilCompleted];
        if (each.status == MTLCommandBufferStatusError && !s->error) s->error = each.error;
    }
    [s->running removeAllObjects];
    for (void (^arrive)(void) in s->arrivals) arrive();
    [s->arrivals removeAllObjects];
}

static void close_device(gpu *g) {
    @autoreleasepool {
        QWDevice *d = (__bridge_transfer QWDevice *)g;
        for (int i = 0; i < GPU_STREAMS; i++) metal_finish(d->streams[i]);
    }
}

static qwen3_status wait_for(gpu *g, int stream, int other, qwen3_error *err) {
    (void)err;
    @autoreleasepool {
        QWStream *s = device_of(g)->streams[stream], *first = device_of(g)->streams[other];
        commit(first);
        commit(s);
        [commands_of(s) encodeWaitForEvent:first->event value:first->turn];
        return QWEN3_OK;
    }
}

static qwen3_status sync_stream(gpu *g, int stream, qwen3_error *err) {
    @autoreleasepool {
        QWDevice *d = device_of(g);
        QWStream *s = d->streams[stream];
        for (int i = 0; i < GPU_STREAMS; i++) commit(d->streams[i]); /* to run beside the host */
        metal_finish(s);
        NSError *error = s->error;
        s->error = nil;
        if (!error) return QWEN3_OK;
        bool memory = error.code == MTLCommandBufferErrorOutOfMemory;
        return fail(err, memory ? QWEN3_ERR_MEMORY : QWEN3_ERR_IO, "the GPU gave up: %s",
                    text_of(error));
    }
}

void metal_encode(QWDevice *d, int stream, kernel_id kernel, gpu_grid grid, const void *args,
                  size_t bytes) {
    QWStream *s = d->streams[stream];
    NSUInteger memory = grid.shared > 16 ? ((NSUInteger)grid.shared + 15) / 16 * 16 : 16;
    id<MTLComputeCommandEncoder> encoder = metal_encoder(s);
    [encoder setComputePipelineState:d->pipelines[kernel]];
    [encoder setBytes:args length:bytes atIndex:0];
    [encoder setThreadgroupMemoryLength:memory atIndex:0];
    [encoder dispatchThreadgroups:MTLSizeMake((NSUInteger)grid.x, (NSUInteger)grid.y,
                                              (NSUInteger)grid.z)
            threadsPerThreadgroup:MTLSizeMake((NSUInteger)grid.threads, 1, 1)];
    metal_launched(s);
}

static qwen3_status launch(gpu *g, int stream, kernel_id kernel, gpu_grid grid, const void *args,
                           size_t bytes, qwen3_error *err) {
    @autoreleasepool {
        QWDevice *d = device_of(g);
        const char *name = names[kernel].UTF8String;
        int threads = (int)d->pipelines[kernel].maxTotalThreadsPerThreadgroup;
        int shared = (int)d->metal.maxThreadgroupMemoryLength;
        if (grid.threads < 32 || grid.threads % 32 || grid.threads > threads)
            return fail(err, QWEN3_ERR_ARG, "%s: blocks of %d threads, at most %d", name,
                        grid.threads, threads);
        if (grid.shared > shared)
            return fail(err, QWEN3_ERR_ARG, "%s: %d shared bytes, at most %d", name, grid.shared,
                        shared);
        if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return QWEN3_OK;
        if (d->records && stream == d->recorded)
            return metal_record(d->records, kernel, grid, args, bytes, err);
        metal_encode(d, stream, kernel, grid, args, bytes);
        return QWEN3_OK;
    }
}

const gpu_api gpu_metal = {
    .version = GPU_API_VERSION,
    .name = "metal",
    .count = count,
    .open = open_device,
    .close = close_device,
    .describe = describe,
    .alloc = metal_alloc,
    .release = metal_release,
    .alloc_pinned = metal_alloc_pinned,
    .release_pinned = metal_release_pinned,
    .pin = metal_pin,
    .unpin = metal_release_pinned,
    .map = metal_map,
    .unmap = metal_release,
    .upload = metal_upload,
    .download = metal_download,
    .launch = launch,
    .wait = wait_for,
    .sync = sync_stream,
    .capture_begin = metal_capture_begin,
    .capture_end = metal_capture_end,
    .replay = metal_replay,
    .release_graph = metal_release_graph,
};
