/* rates.c - see rates.h.
 *
 * Work is queued, twice as much each time, until it takes so long by the host's clock that what a
 * launch and a sync take no longer counts; then the best of some more is the rate.
 */
#include "rates.h"

#include <string.h>
#include <time.h>

#include "error.h"

static const double LEAST_SECONDS = 0.01;
enum {
    TIMES = 3,
    BLOCKS = 4, /* of a multiprocessor: its registers have room for so many */
    WARPS = PROBE_THREADS / 32,
};
/* To read: caches have a 250th of a device's memory at most, and what fits them would be read
 * from there. */
enum { MEMORY_SHARE = 32 };
static const uint64_t MOST_BYTES = (uint64_t)1 << 30, LEAST_BYTES = 1 << 20;
static const size_t COPIED_BYTES = 1 << 24; /* at once */

typedef struct {
    const gpu_api *api;
    gpu *device;
    int n_blocks;
    unsigned char *memory, *pinned;
    size_t n_memory, n_pinned; /* bytes; the first a multiple of PROBE_PIECE */
    void *sums;
    qwen3_status status; /* the first that was not QWEN3_OK */
    qwen3_error *err;
} probe;

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- work -------------------------------------------------------------------------- */

/* Queues `amount` of it, of whatever its rate counts. */
typedef void work(probe *, uint64_t amount);

static void launch(probe *p, kernel_id id, const void *args, size_t n) {
    gpu_grid grid = {p->n_blocks, 1, 1, PROBE_THREADS, 0};
    if (p->status == QWEN3_OK)
        p->status = p->api->launch(p->device, GPU_COMPUTE, id, grid, args, n, p->err);
}

static void read_bytes(probe *p, uint64_t amount) {
    for (uint64_t n; amount; amount -= n) {
        n = amount < p->n_memory ? amount : p->n_memory;
        probe_read_args args = {p->memory, p->sums, (int)(n / PROBE_PIECE), p->n_blocks};
        launch(p, KERNEL_probe_read, &args, sizeof args);
    }
}

static void copy_bytes(probe *p, uint64_t amount, bool up) {
    for (uint64_t n; amount && p->status == QWEN3_OK; amount -= n) {
        n = amount < p->n_pinned ? amount : p->n_pinned;
        p->status = up ? p->api->upload(p->device, GPU_COMPUTE, p->memory, p->pinned, n, p->err)
                       : p->api->download(p->device, GPU_COMPUTE, p->pinned, p->memory, n, p->err);
    }
}

static void upload_bytes(probe *p, uint64_t amount) { copy_bytes(p, amount, true); }
static void download_bytes(probe *p, uint64_t amount) { copy_bytes(p, amount, false); }

/* The products of a round of the kernels, on 16 x 8 of a tile as many as its words hold values. */
static uint64_t round_of(const probe *p, int values) {
    return (uint64_t)p->n_blocks * WARPS * PROBE_TILES * 16 * 8 * (uint64_t)values;
}

static void multiply_f16(probe *p, uint64_t amount) {
    probe_products_args args = {p->sums, (int)(amount / round_of(p, 16))};
    launch(p, KERNEL_probe_f16, &args, sizeof args);
}

static void multiply_int8(probe *p, uint64_t amount) {
    probe_products_args args = {p->sums, (int)(amount / round_of(p, 32))};
    launch(p, KERNEL_probe_int8, &args, sizeof args);
}

static double rate(probe *p, work *queue, uint64_t amount) {
    double best = 0;
    for (int done = 0; done < TIMES && p->status == QWEN3_OK;) {
        double start = seconds();
        queue(p, amount);
        if (p->status == QWEN3_OK) p->status = p->api->sync(p->device, GPU_COMPUTE, p->err);
        double taken = seconds() - start;
        if (done == 0 && taken < LEAST_SECONDS) {
            amount *= 2;
            continue;
        }
        best = (double)amount / taken > best ? (double)amount / taken : best;
        done++;
    }
    return best;
}

/* ---- life ---------------------------------------------------------------------------- */

/* Half of what it wants where that is all there is; with less it would measure a cache. */
static void take_memory(probe *p, const gpu_info *info) {
    p->n_memory = MOST_BYTES;
    while (p->n_memory > info->total_bytes / MEMORY_SHARE && p->n_memory > LEAST_BYTES)
        p->n_memory /= 2;
    p->memory = p->api->alloc(p->device, p->n_memory, p->err);
    if (!p->memory) {
        p->n_memory /= 2;
        p->memory = p->api->alloc(p->device, p->n_memory, p->err);
    }
    p->n_pinned = p->n_memory < COPIED_BYTES ? p->n_memory : COPIED_BYTES;
    if (p->memory) p->pinned = p->api->alloc_pinned(p->device, p->n_pinned, p->err);
    if (p->pinned)
        p->sums = p->api->alloc(p->device, (size_t)p->n_blocks * WARPS * sizeof(float), p->err);
    if (!p->sums) p->status = p->err->status;
}

/* What is measured reads nothing that was not written. */
static void fill_memory(probe *p) {
    if (p->status == QWEN3_OK) memset(p->pinned, 0x5a, p->n_pinned);
    for (size_t at = 0; at < p->n_memory && p->status == QWEN3_OK; at += p->n_pinned)
        p->status = p->api->upload(p->device, GPU_COMPUTE, p->memory + at, p->pinned, p->n_pinned,
                                   p->err);
}

static void release(probe *p) {
    if (p->sums) p->api->release(p->device, p->sums);
    if (p->pinned) p->api->release_pinned(p->device, p->pinned);
    if (p->memory) p->api->release(p->device, p->memory);
    p->api->close(p->device);
}

qwen3_status gpu_measure(const gpu_api *api, int index, qwen3_gpu_rates *rates, qwen3_error *err) {
    qwen3_error why = {0};
    gpu_info info = {0};
    probe p = {.api = api, .device = api->open(index, &why), .err = &why};
    if (!p.device) return fail(err, why.status, "%s", why.text);
    p.status = api->describe(p.device, &info, &why);
    p.n_blocks = BLOCKS * info.n_units;
    if (p.status == QWEN3_OK) take_memory(&p, &info);
    fill_memory(&p);
    qwen3_gpu_rates measured;
    /* Products first: a device that was idle has raised its clocks by then. */
    measured.f16 = rate(&p, multiply_f16, round_of(&p, 16));
    measured.int8 = rate(&p, multiply_int8, round_of(&p, 32));
    measured.read = rate(&p, read_bytes, LEAST_BYTES);
    measured.upload = rate(&p, upload_bytes, LEAST_BYTES);
    measured.download = rate(&p, download_bytes, LEAST_BYTES);
    release(&p);
    if (p.status != QWEN3_OK) return fail(err, p.status, "%s", why.text);
    *rates = measured;
    return QWEN3_OK;
}
