/* metal_graph.m - launches that are kept and encoded again: encoding them costs Metal little. */
#include "metal_device.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    kernel_id kernel;
    gpu_grid grid;
    size_t bytes;
    union {
#define X(name, args) args name;
        KERNELS(X)
#undef X
    } args;
} recorded;

struct gpu_graph {
    recorded *launches;
    int n, room;
};

qwen3_status metal_record(gpu_graph *graph, kernel_id kernel, gpu_grid grid, const void *args,
                          size_t bytes, qwen3_error *err) {
    recorded each = {.kernel = kernel, .grid = grid, .bytes = bytes};
    if (bytes > sizeof each.args)
        return fail(err, QWEN3_ERR_ARG, "arguments of %zu bytes are no kernel's", bytes);
    if (graph->n == graph->room) {
        int room = graph->room ? 2 * graph->room : 256;
        recorded *more = realloc(graph->launches, (size_t)room * sizeof *more);
        if (!more) return fail(err, QWEN3_ERR_MEMORY, "out of memory for a graph");
        graph->launches = more;
        graph->room = room;
    }
    memcpy(&each.args, args, bytes);
    graph->launches[graph->n++] = each;
    return QWEN3_OK;
}

qwen3_status metal_capture_begin(gpu *g, int stream, qwen3_error *err) {
    QWDevice *d = device_of(g);
    if (d->records) return fail(err, QWEN3_ERR_ARG, "capture_begin while launches are recorded");
    d->records = calloc(1, sizeof *d->records);
    d->recorded = stream;
    return d->records ? QWEN3_OK : fail(err, QWEN3_ERR_MEMORY, "out of memory for a graph");
}

gpu_graph *metal_capture_end(gpu *g, int stream, qwen3_error *err) {
    QWDevice *d = device_of(g);
    gpu_graph *graph = d->records;
    if (!graph || d->recorded != stream) {
        fail(err, QWEN3_ERR_ARG, "capture_end: no launches of this stream are recorded");
        return NULL;
    }
    d->records = NULL;
    return graph;
}

qwen3_status metal_replay(gpu *g, int stream, gpu_graph *graph, qwen3_error *err) {
    QWDevice *d = device_of(g);
    if (d->records) return fail(err, QWEN3_ERR_ARG, "replay while launches are recorded");
    @autoreleasepool {
        for (int i = 0; i < graph->n; i++) {
            const recorded *each = &graph->launches[i];
            metal_encode(d, stream, each->kernel, each->grid, &each->args, each->bytes);
        }
    }
    return QWEN3_OK;
}

void metal_release_graph(gpu *g, gpu_graph *graph) {
    (void)g;
    if (graph) free(graph->launches);
    free(graph);
}
