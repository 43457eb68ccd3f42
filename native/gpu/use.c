/* use.c - see use.h and device.h. */
#include "use.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "error.h"
#include "load.h"
#include "probe.h"
#include "rates.h"

int qwen3_n_devices(qwen3_error *why) {
    const gpu_api *api = gpu_find(why);
    return api ? api->count(why) : 0;
}

static const gpu_api *backend_with(int index, qwen3_error *err) {
    const gpu_api *api = gpu_find(err);
    int n = api ? api->count(err) : 0;
    if (n == 0) return NULL;
    if (index >= 0 && index < n) return api;
    fail(err, QWEN3_ERR_ARG, "there is no GPU %d: the last one is %d", index, n - 1);
    return NULL;
}

qwen3_status qwen3_device_describe(int index, qwen3_device *d, qwen3_error *err) {
    gpu_info info;
    qwen3_error why;
    const gpu_api *api = backend_with(index, &why);
    gpu *device = api ? api->open(index, &why) : NULL;
    if (!device) return fail(err, why.status, "%s", why.text);
    qwen3_status status = api->describe(device, &info, err);
    api->close(device);
    if (status != QWEN3_OK) return status;
    *d = (qwen3_device){.total_bytes = info.total_bytes, .free_bytes = info.free_bytes,
                        .n_units = info.n_units, .unified = info.unified};
    snprintf(d->backend, sizeof d->backend, "%s", api->name);
    for (char *c = d->backend; *c; c++) *c = (char)tolower((unsigned char)*c);
    snprintf(d->name, sizeof d->name, "%s", info.name);
    return QWEN3_OK;
}

static void release(resident_model *m) {
    const gpu_api *api = m->api;
    gpu *device = m->device;
    resident_close(m);
    api->close(device);
    free(m);
}

static qwen3_status check(const qwen3_model *m, qwen3_error *err) {
    if (m->gpu) return fail(err, QWEN3_ERR_ARG, "the model uses a GPU already");
    if (atomic_load(&m->n_sessions))
        return fail(err, QWEN3_ERR_ARG, "the model has sessions: let it use the GPU before them");
    return QWEN3_OK;
}

enum { PROBED = 64 << 20 }; /* bytes of memory, more than caches hold */

/* So many are copied anyway, for the slots to follow what is used. */
static const float LEAST_SHARE = 0.125f;

/* See tier.h: by what both can do at this moment, in quarters, so that it hardly differs from one
 * opening to the next: the bits of an answer depend on who computed an expert. Without a store the
 * CPU gathers what is copied, which takes it longer than computing. */
static qwen3_status measure_copy_share(qwen3_model *m, const gpu_api *api,
                                       const qwen3_gpu_share *share, float *copy_share,
                                       qwen3_error *err) {
    qwen3_gpu_rates rates;
    *copy_share = LEAST_SHARE;
    if (!m->offload.experts || !tier_is_needed(m, share->n_layers, share->expert_bytes))
        return QWEN3_OK;
    qwen3_status status = gpu_measure(api, share->device, &rates, err);
    if (status != QWEN3_OK) return status;
    qwen3_probe *probe = qwen3_probe_new(m, PROBED, err);
    if (!probe) return err->status;
    double read = qwen3_probe_read(probe);
    qwen3_probe_free(probe);
    float quarters = roundf(4 * (float)(rates.upload / (rates.upload + read))) / 4;
    *copy_share = fmaxf(quarters, LEAST_SHARE);
    return QWEN3_OK;
}

qwen3_status model_use_device(qwen3_model *m, const gpu_api *api, const qwen3_gpu_share *share,
                              qwen3_error *err) {
    qwen3_error why = {0};
    if (check(m, &why) != QWEN3_OK) return fail(err, why.status, "%s", why.text);
    resident_model *there = malloc(sizeof *there);
    if (!there) return fail(err, QWEN3_ERR_MEMORY, "out of memory");
    float copy_share;
    gpu *device = NULL;
    if (measure_copy_share(m, api, share, &copy_share, &why) == QWEN3_OK)
        device = api->open(share->device, &why);
    if (device && resident_open(there, api, device, m, share, copy_share, &why) == QWEN3_OK) {
        m->gpu = there;
        m->gpu_release = release;
        m->n_host_layers = m->config.n_layers - share->n_layers;
        return QWEN3_OK;
    }
    if (device) api->close(device);
    free(there);
    return fail(err, why.status, "%s", why.text);
}

qwen3_status qwen3_model_use_gpu(qwen3_model *m, const qwen3_gpu_share *share, qwen3_error *err) {
    qwen3_error why;
    const gpu_api *api = backend_with(share->device, &why);
    return api ? model_use_device(m, api, share, err) : fail(err, why.status, "%s", why.text);
}

qwen3_gpu_stats qwen3_model_gpu_stats(const qwen3_model *m) {
    return m->gpu ? m->gpu->stats : (qwen3_gpu_stats){0};
}

qwen3_status qwen3_device_probe(int index, qwen3_gpu_rates *rates, qwen3_error *err) {
    qwen3_error why;
    const gpu_api *api = backend_with(index, &why);
    return api ? gpu_measure(api, index, rates, err) : fail(err, why.status, "%s", why.text);
}
