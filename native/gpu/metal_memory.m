/* metal_memory.m - the memory of the Metal backend, and copies.
 *
 * Host and device share it. A copy is a kernel all the same, so that it comes in the order of its
 * stream; host memory that is no buffer is copied through one.
 */
#include "metal_device.h"

#include <string.h>
#include <unistd.h>

enum { ALIGNMENT = 256 };

@implementation QWMemory
@end

static QWMemory *at_address(QWDevice *d, const void *at) {
    for (QWMemory *m in d->memories)
        if ((uint64_t)at - m->address < m->bytes) return m;
    return nil;
}

static QWMemory *at_host(QWDevice *d, const void *at, size_t bytes) {
    for (QWMemory *m in d->memories) {
        size_t offset = (size_t)((uintptr_t)at - (uintptr_t)m->host);
        if (offset < m->bytes && bytes <= m->bytes - offset) return m;
    }
    return nil;
}

/* The first usable byte is `offset` bytes behind the buffer's first. */
static QWMemory *remember(QWDevice *d, id<MTLBuffer> buffer, size_t offset, size_t bytes) {
    QWMemory *m = [QWMemory new];
    m->buffer = buffer;
    m->host = (char *)buffer.contents + offset;
    m->address = buffer.gpuAddress + offset;
    m->bytes = bytes;
    [d->memories addObject:m];
    [d->resident addAllocation:buffer];
    [d->resident commit];
    return m;
}

static void forget(QWDevice *d, QWMemory *m) {
    if (!m) return;
    for (int i = 0; i < GPU_STREAMS; i++) metal_finish(d->streams[i]); /* a kernel may still be there */
    [d->resident removeAllocation:m->buffer];
    [d->resident commit];
    [d->memories removeObjectIdenticalTo:m];
}

static MTLResourceOptions options(void) {
    return MTLResourceStorageModeShared | MTLResourceHazardTrackingModeUntracked;
}

/* For one more buffer: beyond the working set kernels would fail later, all that are queued. */
static bool has_room(id<MTLDevice> metal, size_t bytes) {
    uint64_t total = metal.recommendedMaxWorkingSetSize, used = metal.currentAllocatedSize;
    return bytes <= metal.maxBufferLength && used < total && bytes < total - used;
}

static QWMemory *allocate(gpu *g, size_t bytes, qwen3_error *err) {
    id<MTLDevice> metal = device_of(g)->metal;
    id<MTLBuffer> buffer = nil;
    if (has_room(metal, bytes + ALIGNMENT))
        buffer = [metal newBufferWithLength:bytes + ALIGNMENT options:options()];
    if (buffer) return remember(device_of(g), buffer, -buffer.gpuAddress % ALIGNMENT, bytes);
    fail(err, QWEN3_ERR_MEMORY, "the GPU has no %zu bytes left", bytes);
    return nil;
}

void *metal_alloc(gpu *g, size_t bytes, qwen3_error *err) {
    @autoreleasepool {
        QWMemory *m = allocate(g, bytes, err);
        return m ? (void *)m->address : NULL;
    }
}

void *metal_alloc_pinned(gpu *g, size_t bytes, qwen3_error *err) {
    @autoreleasepool {
        QWMemory *m = allocate(g, bytes, err);
        return m ? m->host : NULL;
    }
}

void metal_release(gpu *g, void *at) {
    @autoreleasepool {
        forget(device_of(g), at_address(device_of(g), at));
    }
}

void metal_release_pinned(gpu *g, void *at) {
    @autoreleasepool {
        forget(device_of(g), at_host(device_of(g), at, 1));
    }
}

/* A buffer that is the host's memory: whole pages, as Metal has it. */
static QWMemory *in_place(QWDevice *d, const void *at, size_t bytes) {
    size_t page = (size_t)getpagesize(), offset = (uintptr_t)at % page;
    size_t length = (offset + bytes + page - 1) / page * page;
    if (!has_room(d->metal, length)) return nil;
    id<MTLBuffer> buffer = [d->metal newBufferWithBytesNoCopy:(char *)at - offset
                                                       length:length
                                                      options:options()
                                                  deallocator:nil];
    return buffer ? remember(d, buffer, offset, bytes) : nil;
}

bool metal_pin(gpu *g, void *at, size_t bytes) {
    @autoreleasepool {
        return in_place(device_of(g), at, bytes) != nil;
    }
}

void *metal_map(gpu *g, const void *at, size_t bytes) {
    @autoreleasepool {
        QWMemory *m = in_place(device_of(g), at, bytes);
        return m ? (void *)m->address : NULL;
    }
}

/* Copies as kernels, which need no order of their own. */
static void copy(QWDevice *d, QWStream *s, id<MTLBuffer> to, size_t to_offset, id<MTLBuffer> from,
                 size_t from_offset, size_t bytes) {
    while (bytes) {
        bool vectors = (to_offset | from_offset) % 16 == 0 && bytes >= 16;
        size_t size = vectors ? 16 : 1, items = bytes / size, most = (size_t)1 << 30;
        uint32_t n = (uint32_t)(items < most ? items : most);
        id<MTLComputeCommandEncoder> encoder = metal_encoder(s);
        [encoder setComputePipelineState:d->pipelines[vectors ? COPY_VECTORS : COPY_BYTES]];
        [encoder setBuffer:from offset:from_offset atIndex:0];
        [encoder setBuffer:to offset:to_offset atIndex:1];
        [encoder setBytes:&n length:sizeof n atIndex:2];
        [encoder dispatchThreadgroups:MTLSizeMake((n + 255) / 256, 1, 1)
                threadsPerThreadgroup:MTLSizeMake(256, 1, 1)];
        metal_launched(s);
        to_offset += n * size;
        from_offset += n * size;
        bytes -= n * size;
    }
}

/* Where the device reads or writes the host's memory: there, or in a buffer made for it. */
static id<MTLBuffer> staged(QWDevice *d, const void *at, size_t bytes, bool fill, size_t *offset) {
    QWMemory *m = at_host(d, at, bytes);
    *offset = m ? (size_t)((const char *)at - (const char *)m->buffer.contents) : 0;
    if (m) return m->buffer;
    return fill ? [d->metal newBufferWithBytes:at length:bytes options:options()]
                : [d->metal newBufferWithLength:bytes options:options()];
}

qwen3_status metal_upload(gpu *g, int stream, void *to, const void *from, size_t bytes,
                          qwen3_error *err) {
    @autoreleasepool {
        QWDevice *d = device_of(g);
        QWMemory *m = at_address(d, to);
        if (!bytes) return QWEN3_OK;
        if (!m) return fail(err, QWEN3_ERR_ARG, "an upload to what is not the GPU's memory");
        size_t offset;
        id<MTLBuffer> stage = staged(d, from, bytes, true, &offset);
        if (!stage) return fail(err, QWEN3_ERR_MEMORY, "no memory for an upload");
        copy(d, d->streams[stream], m->buffer, (uint64_t)to - m->buffer.gpuAddress, stage, offset,
             bytes);
        return QWEN3_OK;
    }
}

qwen3_status metal_download(gpu *g, int stream, void *to, const void *from, size_t bytes,
                            qwen3_error *err) {
    @autoreleasepool {
        QWDevice *d = device_of(g);
        QWStream *s = d->streams[stream];
        QWMemory *m = at_address(d, from);
        if (!bytes) return QWEN3_OK;
        if (!m) return fail(err, QWEN3_ERR_ARG, "a download of what is not the GPU's memory");
        size_t offset;
        id<MTLBuffer> stage = staged(d, to, bytes, false, &offset);
        if (!stage) return fail(err, QWEN3_ERR_MEMORY, "no memory for a download");
        copy(d, s, stage, offset, m->buffer, (uint64_t)from - m->buffer.gpuAddress, bytes);
        if (stage.contents != (char *)to - offset) /* a buffer of its own */
            [s->arrivals addObject:[^{ memcpy(to, stage.contents, bytes); } copy]];
        return QWEN3_OK;
    }
}
