/* load.c - see load.h. */
#include "load.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"

static const gpu_api *found;
static qwen3_error reason; /* where none is */

#if defined(__APPLE__) && defined(__arm64__)

#include "metal.h"

static void find(void) {
    if (gpu_metal.count(&reason) > 0) found = &gpu_metal;
}

#else

static const char LIBRARY[] = "libqwen3_cuda.so";

/* The file beside the code that runs. */
static bool beside(char path[PATH_MAX]) {
    Dl_info self;
    if (!dladdr((void *)gpu_find, &self) || !self.dli_fname) return false;
    const char *name = strrchr(self.dli_fname, '/');
    if (!name) return false; /* a program found by PATH: never take what is in the current folder */
    int folder = (int)(name - self.dli_fname);
    return snprintf(path, PATH_MAX, "%.*s/%s", folder, self.dli_fname, LIBRARY) < PATH_MAX;
}

static const gpu_api *open_backend(const char *path, const char *advice, qwen3_error *why) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fail(why, QWEN3_ERR_IO, "the GPU backend does not load: %s: %s", dlerror(), advice);
        return NULL;
    }
    gpu_entry *entry = (gpu_entry *)dlsym(library, "qwen3_gpu");
    const gpu_api *api = entry ? entry() : NULL;
    if (!api)
        fail(why, QWEN3_ERR_FORMAT, "%s is no GPU backend of qwen3: %s", path, advice);
    else if (api->version != GPU_API_VERSION)
        fail(why, QWEN3_ERR_FORMAT, "%s is of another version of qwen3 (interface %d, not %d): %s",
             path, api->version, GPU_API_VERSION, advice);
    else if (api->count(why) > 0)
        return api;
    return NULL; /* it stays loaded: a driver's library may have threads by now */
}

static void find(void) {
    char path[PATH_MAX];
    const char *forced = getenv("QWEN3_GPU_LIBRARY");
    if (forced && *forced) {
        found = open_backend(forced, "QWEN3_GPU_LIBRARY names this file", &reason);
    } else if (!beside(path) || access(path, F_OK) != 0) {
        fail(&reason, QWEN3_ERR_UNSUPPORTED, "this installation of qwen3 has no GPU backend: "
             "where it was built there was no GPU, or no nvcc, CUDA's compiler");
    } else {
        found = open_backend(path, "install qwen3 anew", &reason);
    }
}

#endif

const gpu_api *gpu_find(qwen3_error *why) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find);
    if (!found && why) *why = reason;
    return found;
}
