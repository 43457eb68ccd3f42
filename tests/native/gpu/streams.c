/* streams.c - see streams.h. */
#include "streams.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

typedef struct {
    gpu *device;
    enum { COPY, LAUNCH, WAIT } kind;
    void *to;
    const void *from;
    size_t n;
    kernel_id id;
    gpu_grid grid;
    int other, until; /* operations of another stream */
    char args[256];
} operation;

static struct {
    operation *queue;
    int n, done;
} streams[GPU_STREAMS];

struct gpu_graph {
    operation *launches;
    int n;
};

static gpu_graph *records; /* what is launched now, */
static int recorded;       /* on this stream */
static bool late;          /* nothing runs before it must */
static qwen3_status failed; /* until the next sync */
static qwen3_error why;
static uint64_t state = 1;
static int fails, copy_fails;
static bool pins = true;
static const char *pinned; /* one piece at a time */
static size_t n_pinned;
static int pinned_copies;

void gpu_streamed_seed(uint64_t seed) {
    state = seed;
    late = seed % 2;
    gpu_emulated_seed(seed);
}

void gpu_streamed_fail(int n) { fails = n; }

void gpu_streamed_fail_copy(int n) { copy_fails = n; }

void gpu_streamed_pins(bool can) { pins = can; }

int gpu_streamed_pinned_copies(void) { return pinned_copies; }

static bool is_pinned(const void *at) {
    return pinned && (uintptr_t)at - (uintptr_t)pinned < n_pinned;
}

static int below(int n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int)((state >> 33) % (uint64_t)n);
}

static void run_one(int stream) {
    operation *o = &streams[stream].queue[streams[stream].done++];
    qwen3_status status = QWEN3_OK;
    switch (o->kind) {
    case COPY: memcpy(o->to, o->from, o->n); break;
    case LAUNCH:
        status = gpu_emulated.launch(o->device, stream, o->id, o->grid, o->args, o->n, &why);
        if (status == QWEN3_OK) status = gpu_emulated.sync(o->device, stream, &why);
        break;
    case WAIT:
        while (streams[o->other].done < o->until) run_one(o->other);
    }
    if (status != QWEN3_OK) failed = status;
}

/* Some of what may run. */
static void run_some(void) {
    if (late) return;
    int stream = below(GPU_STREAMS);
    for (int n = below(3); n > 0 && streams[stream].done < streams[stream].n; n--) run_one(stream);
}

static void append(operation **to, int *n, const operation *o) {
    *to = realloc(*to, (size_t)(*n + 1) * sizeof *o);
    if (!*to) abort();
    (*to)[(*n)++] = *o;
}

static void queue(int stream, const operation *o) {
    run_some();
    append(&streams[stream].queue, &streams[stream].n, o);
}

static qwen3_status sync(gpu *g, int stream, qwen3_error *err) {
    (void)g;
    run_some();
    while (streams[stream].done < streams[stream].n) run_one(stream);
    qwen3_status status = failed;
    failed = QWEN3_OK;
    return status == QWEN3_OK ? QWEN3_OK : fail(err, status, "%s", why.text);
}

static qwen3_status upload(gpu *g, int stream, void *to, const void *from, size_t n,
                           qwen3_error *err) {
    if (copy_fails > 0 && --copy_fails == 0) return fail(err, QWEN3_ERR_IO, "a copy fails");
    pinned_copies += is_pinned(from);
    queue(stream, &(operation){.device = g, .kind = COPY, .to = to, .from = from, .n = n});
    return QWEN3_OK;
}

/* Until then the host reads garbage. */
static qwen3_status download(gpu *g, int stream, void *to, const void *from, size_t n,
                             qwen3_error *err) {
    memset(to, 0x7f, n);
    return upload(g, stream, to, from, n, err);
}

static qwen3_status launch(gpu *g, int stream, kernel_id id, gpu_grid grid, const void *args,
                           size_t n, qwen3_error *err) {
    operation o = {.device = g, .kind = LAUNCH, .n = n, .id = id, .grid = grid};
    if (n > sizeof o.args) return fail(err, QWEN3_ERR_ARG, "arguments of %zu bytes", n);
    memcpy(o.args, args, n);
    if (records && stream == recorded) append(&records->launches, &records->n, &o);
    else queue(stream, &o);
    return QWEN3_OK;
}

static qwen3_status wait(gpu *g, int stream, int other, qwen3_error *err) {
    (void)err;
    operation o = {.device = g, .kind = WAIT, .other = other, .until = streams[other].n};
    queue(stream, &o);
    return QWEN3_OK;
}

static void *allocate(gpu *g, size_t bytes, qwen3_error *err) {
    if (fails > 0 && --fails == 0) fails = -1;
    if (fails >= 0) return gpu_emulated.alloc(g, bytes, err);
    fail(err, QWEN3_ERR_MEMORY, "no room for %zu bytes", bytes);
    return NULL;
}

/* As cudaFree does: behind all that is queued. */
static void release(gpu *g, void *at) {
    qwen3_error err;
    for (int i = 0; i < GPU_STREAMS; i++) (void)sync(g, i, &err);
    gpu_emulated.release(g, at);
}

static gpu *open(int index, qwen3_error *err) { return gpu_emulated.open(index, err); }

static void close(gpu *g) {
    qwen3_error err;
    for (int i = 0; i < GPU_STREAMS; i++) (void)sync(g, i, &err);
    for (int i = 0; i < GPU_STREAMS; i++) {
        free(streams[i].queue);
        streams[i].queue = NULL;
        streams[i].n = streams[i].done = 0;
    }
    gpu_emulated.close(g);
}

static int count(qwen3_error *err) { return gpu_emulated.count(err); }

static qwen3_status describe(gpu *g, gpu_info *info, qwen3_error *err) {
    return gpu_emulated.describe(g, info, err);
}

static bool pin(gpu *g, void *at, size_t bytes) {
    (void)g;
    if (pinned) abort();
    pinned = pins ? at : NULL;
    n_pinned = bytes;
    return pins;
}

static void unpin(gpu *g, void *at) {
    (void)g;
    for (int i = 0; i < GPU_STREAMS; i++)
        for (int k = streams[i].done; k < streams[i].n; k++)
            if (streams[i].queue[k].kind == COPY && is_pinned(streams[i].queue[k].from)) abort();
    if (at != pinned) abort();
    pinned = NULL;
}

static void *map(gpu *g, const void *at, size_t bytes) {
    (void)g;
    (void)at;
    (void)bytes;
    return NULL;
}

static void unmap(gpu *g, void *at) {
    (void)g;
    (void)at;
}

static qwen3_status capture_begin(gpu *g, int stream, qwen3_error *err) {
    (void)g;
    if (records) return fail(err, QWEN3_ERR_ARG, "launches are recorded already");
    records = calloc(1, sizeof *records);
    if (!records) abort();
    recorded = stream;
    return QWEN3_OK;
}

static gpu_graph *capture_end(gpu *g, int stream, qwen3_error *err) {
    (void)g;
    (void)stream;
    (void)err;
    gpu_graph *graph = records;
    records = NULL;
    return graph;
}

static qwen3_status replay(gpu *g, int stream, gpu_graph *graph, qwen3_error *err) {
    (void)g;
    (void)err;
    for (int i = 0; i < graph->n; i++) queue(stream, &graph->launches[i]);
    return QWEN3_OK;
}

static void release_graph(gpu *g, gpu_graph *graph) {
    (void)g;
    free(graph->launches);
    free(graph);
}

const gpu_api gpu_streamed = {
    .version = GPU_API_VERSION, .name = "streamed", .count = count, .open = open, .close = close,
    .describe = describe, .alloc = allocate, .release = release, .alloc_pinned = allocate,
    .release_pinned = release, .pin = pin, .unpin = unpin, .map = map, .unmap = unmap,
    .upload = upload, .download = download, .launch = launch, .wait = wait, .sync = sync,
    .capture_begin = capture_begin, .capture_end = capture_end, .replay = replay,
    .release_graph = release_graph,
};
