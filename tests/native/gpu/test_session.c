/* Sessions of models of which the emulated device has a share: what a session can do it can do
 * there, too, wherever its layers are. */
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compare.h"
#include "streams.h"
#include "gpu/use.h"
#include "probe.h"
#include "importance.h"
#include "session.h"
#include "snapshot.h"
#include "together.h"

enum { N_CTX = 64, N_LAYERS = 3, N_VOCAB = 269, N = 21 };
static const char dense[] = "tests/data/tiny-gpu.gguf", moe[] = "tests/data/tiny-gpu-moe.gguf";
static char folder[] = P_tmpdir "/qwen3-gpu-XXXXXX", path[2][64];
static const double MOST_KL = 5e-3; /* random weights: roundings move more than in a real model */
static qwen3_error err;

#define WORKS(call) CHECK((call) == QWEN3_OK, "%s", err.text)

/* ---- a device that fails --------------------------------------------------------------- */

enum { NEVER, ALLOC, UPLOAD, LAUNCH, SYNC };

static struct {
    int call, until;       /* so many calls of this kind succeed from now on */
    qwen3_session *cancel; /* by the next upload */
    int held;              /* allocations */
    int launches;
} device;

static bool fails(int call, qwen3_error *e) {
    if (device.call != call || device.until-- > 0) return false;
    if (e) *e = (qwen3_error){call == ALLOC ? QWEN3_ERR_MEMORY : QWEN3_ERR_IO, "it fails"};
    return true;
}

static void *alloc(gpu *g, size_t n, qwen3_error *e) {
    void *at = fails(ALLOC, e) ? NULL : gpu_streamed.alloc(g, n, e);
    device.held += at != NULL;
    return at;
}

static void release(gpu *g, void *at) {
    device.held--;
    gpu_streamed.release(g, at);
}

static qwen3_status upload(gpu *g, int stream, void *to, const void *from, size_t n,
                           qwen3_error *e) {
    if (device.cancel) qwen3_session_cancel(device.cancel);
    device.cancel = NULL;
    return fails(UPLOAD, e) ? QWEN3_ERR_IO : gpu_streamed.upload(g, stream, to, from, n, e);
}

static qwen3_status launch(gpu *g, int stream, kernel_id id, gpu_grid grid, const void *args,
                           size_t n, qwen3_error *e) {
    device.launches++;
    return fails(LAUNCH, e) ? QWEN3_ERR_IO
                            : gpu_streamed.launch(g, stream, id, grid, args, n, e);
}

static qwen3_status sync_stream(gpu *g, int stream, qwen3_error *e) {
    qwen3_status status = gpu_streamed.sync(g, stream, e); /* what fails is over, too */
    return fails(SYNC, e) ? QWEN3_ERR_IO : status;
}

static void *map_nothing(gpu *g, const void *at, size_t n) {
    (void)g, (void)at, (void)n;
    return NULL;
}

static gpu_api failing(void) {
    gpu_api api = gpu_streamed;
    api.alloc = api.alloc_pinned = alloc;
    api.release = api.release_pinned = release;
    api.upload = upload;
    api.launch = launch;
    api.sync = sync_stream;
    return api;
}

/* ---- models and sessions ------------------------------------------------------------------ */

static qwen3_model *open_model(const char *file, const gpu_api *api, int n_layers) {
    qwen3_model *m = qwen3_model_open(file, 2, 0, &err);
    qwen3_gpu_share share = {.n_layers = n_layers};
    if (!m) abort();
    if (n_layers) WORKS(model_use_device(m, api, &share, &err));
    return m;
}

static qwen3_session *new_session(qwen3_model *m, int n_ctx, qwen3_kv_type kv) {
    qwen3_session *s = qwen3_session_new(m, n_ctx, kv, &err);
    CHECK(s, "%s", err.text);
    if (!s) abort();
    return s;
}

static int32_t token(int text, int i) { return (i * 31 + (i < 9 ? 0 : 11 * text)) % N_VOCAB; }

static void sync_to(qwen3_session *s, int text, int n) {
    int32_t ids[N_CTX];
    for (int i = 0; i < n; i++) ids[i] = token(text, i);
    CHECK(qwen3_sync(s, ids, (size_t)n, &err) >= 0, "%s", err.text);
}

static void extend(qwen3_session *s, int32_t id) { WORKS(qwen3_extend(s, &id, 1, &err)); }

static bool same_bits(const qwen3_session *a, const float *b) {
    const float *logits = qwen3_session_logits(a);
    return logits && b && !memcmp(logits, b, N_VOCAB * sizeof *b);
}

/* The logits of the same tokens by the CPU. */
static void as_the_cpu(const char *what, const char *file, const qwen3_session *s,
                       qwen3_kv_type kv) {
    qwen3_model *m = open_model(file, NULL, 0);
    qwen3_session *host = new_session(m, N_CTX, kv);
    CHECK(qwen3_sync(host, qwen3_session_ids(s), qwen3_session_len(s), &err) >= 0, "%s", err.text);
    const float *logits = qwen3_session_logits(s);
    CHECK(logits, "%s: no logits", what);
    if (logits) compare_logits(what, qwen3_session_logits(host), logits, 1, N_VOCAB, MOST_KL);
    qwen3_session_free(host);
    qwen3_model_close(m);
}

/* ---- tests --------------------------------------------------------------------------------- */

static void test_tokens(const char *file, int n_layers, qwen3_kv_type kv) {
    qwen3_model *m = open_model(file, &gpu_streamed, n_layers), *host = open_model(file, NULL, 0);
    qwen3_session *s = new_session(m, N_CTX, kv), *wanted = new_session(host, N_CTX, kv);
    CHECK(qwen3_session_kv_bytes(s) == qwen3_session_kv_bytes(wanted), "the caches differ");
    CHECK(s->kv.bytes == qwen3_session_kv_bytes(wanted) / N_LAYERS * (size_t)(N_LAYERS - n_layers),
          "the host has a cache for the device's layers");
    sync_to(s, 1, N);
    as_the_cpu("a prompt", file, s, kv);
    for (int i = 0; i < 2; i++) extend(s, token(1, N + i));
    as_the_cpu("decoded", file, s, kv);
    sync_to(s, 2, N - 2);
    as_the_cpu("another text with the same beginning", file, s, kv);
    sync_to(s, 2, 9);

    enum { ROWS = 10 };
    float got[ROWS * N_VOCAB], all[ROWS * N_VOCAB];
    int32_t ids[ROWS];
    for (int i = 0; i < ROWS; i++) ids[i] = token(3, i);
    WORKS(qwen3_extend_logits(s, ids, ROWS, got, &err));
    sync_to(wanted, 2, 9);
    WORKS(qwen3_extend_logits(wanted, ids, ROWS, all, &err));
    compare_logits("of every token", all, got, ROWS, N_VOCAB, MOST_KL);
    CHECK(same_bits(s, got + (ROWS - 1) * N_VOCAB), "the last ones are the session's");
    sync_to(s, 0, 0);
    CHECK(!qwen3_session_logits(s) && qwen3_session_len(s) == 0, "an empty session");
    qwen3_session_free(wanted);
    qwen3_session_free(s);
    qwen3_model_close(host);
    qwen3_model_close(m);
}

static void test_replay(const char *file, int n_layers) {
    gpu_api plain = gpu_streamed;
    plain.capture_begin = NULL;
    plain.map = map_nothing;
    qwen3_model *m = open_model(file, &gpu_streamed, n_layers);
    qwen3_model *launches = open_model(file, &plain, n_layers);
    qwen3_session *s = new_session(m, N_CTX, QWEN3_KV_F16);
    qwen3_session *same = new_session(launches, N_CTX, QWEN3_KV_F16);
    sync_to(s, 1, 3);
    sync_to(same, 1, 3);
    for (int i = 0; i < 2; i++) {
        extend(s, token(1, 3 + i));
        extend(same, token(1, 3 + i));
        CHECK(same_bits(s, qwen3_session_logits(same)), "a step that is replayed has other bits");
    }
    CHECK(s->gpu->step && !same->gpu->step, "one replays, one launches");
    qwen3_session_free(same);
    qwen3_session_free(s);
    qwen3_model_close(launches);
    qwen3_model_close(m);
}

static void test_snapshots(int n_layers, qwen3_kv_type kv) {
    qwen3_model *m = open_model(dense, &gpu_streamed, n_layers);
    qwen3_session *s = new_session(m, N_CTX, kv), *small = new_session(m, 40, kv);
    float before[N_VOCAB], after[N_VOCAB];
    for (int start = 0; start < N; start += 20) {
        sync_to(s, 1, N);
        qwen3_snapshot *x = qwen3_session_snapshot(s, (size_t)start, &err);
        CHECK(x, "%s", err.text);
        memcpy(before, qwen3_session_logits(s), sizeof before);
        extend(s, 5);
        memcpy(after, qwen3_session_logits(s), sizeof after);
        qwen3_session *to[] = {s, small}; /* where the streams lie elsewhere */
        for (int i = start == 0; i < 2; i++) {
            sync_to(to[i], 1, start);
            extend(to[i], 77);
            WORKS(qwen3_session_restore(to[i], x, &err));
            CHECK(same_bits(to[i], before), "restored from %d", start);
            extend(to[i], 5);
            CHECK(same_bits(to[i], after), "and goes on");
        }
        qwen3_snapshot_free(x);
    }
    qwen3_session_free(small);
    qwen3_session_free(s);
    qwen3_model_close(m);
}

static size_t read_file(const char *name, uint8_t *to, size_t most) {
    FILE *f = fopen(name, "rb");
    size_t n = f ? fread(to, 1, most, f) : 0;
    CHECK(f && fclose(f) == 0 && n && n < most, "%s is not read", name);
    return n;
}

/* What was saved is the same file after a load, wherever the layers are. */
static void test_files(qwen3_kv_type kv) {
    static uint8_t first[1 << 18], later[1 << 18];
    for (int from = 0; from <= 2; from += 2) {
        qwen3_model *m = open_model(dense, &gpu_streamed, from);
        qwen3_session *s = new_session(m, N_CTX, kv);
        sync_to(s, 1, N);
        WORKS(qwen3_session_save(s, path[0], &err));
        size_t n = read_file(path[0], first, sizeof first);
        extend(s, 5);
        for (int to = 0; to <= N_LAYERS; to += N_LAYERS) {
            qwen3_model *other = open_model(dense, &gpu_streamed, to);
            qwen3_session *loaded = new_session(other, 40, kv);
            sync_to(loaded, 2, 12);
            WORKS(qwen3_session_load(loaded, path[0], &err));
            WORKS(qwen3_session_save(loaded, path[1], &err));
            CHECK(read_file(path[1], later, sizeof later) == n && !memcmp(first, later, n),
                  "from %d layers on the device to %d", from, to);
            extend(loaded, 5);
            compare_logits("loaded", qwen3_session_logits(s), qwen3_session_logits(loaded), 1,
                           N_VOCAB, MOST_KL);
            qwen3_session_free(loaded);
            qwen3_model_close(other);
        }
        qwen3_session_free(s);
        qwen3_model_close(m);
    }
}

/* Of different lengths, contexts and kinds of cache. */
static void test_together(const char *file, int n_layers, bool mixed) {
    enum { MANY = 3 };
    static const int n_ctx[MANY] = {30, N_CTX, 200}, prompt[MANY] = {1, 3};
    qwen3_model *m = open_model(file, &gpu_streamed, n_layers);
    qwen3_session *all[MANY], *alone[MANY];
    for (int i = 0; i < MANY; i++) {
        qwen3_kv_type kv = mixed && i ? QWEN3_KV_Q8 : QWEN3_KV_F16;
        all[i] = new_session(m, n_ctx[i], kv);
        alone[i] = new_session(m, n_ctx[i], kv);
        for (int k = 0; k < 2; k++) {
            qwen3_session *s = k ? alone[i] : all[i];
            if (prompt[i]) sync_to(s, i, prompt[i]);
            else WORKS(qwen3_session_fill(s, 150, &err)); /* attention in parts */
        }
    }
    int32_t ids[MANY] = {5, 66, 177};
    WORKS(qwen3_extend_together(all, ids, MANY, &err));
    for (int i = 0; i < MANY; i++) {
        extend(alone[i], ids[i]);
        CHECK(same_bits(all[i], qwen3_session_logits(alone[i])), "session %d of %s", i, file);
    }
    qwen3_session_cancel(all[2]);
    CHECK(qwen3_extend_together(all, ids, MANY, &err) == QWEN3_ERR_CANCELLED &&
          qwen3_session_len(all[0]) == 2, "none has its token");
    for (int i = 0; i < MANY; i++) {
        qwen3_session_free(all[i]);
        qwen3_session_free(alone[i]);
    }
    qwen3_model_close(m);
}

static void test_cancel(int n_layers) {
    gpu_api api = failing();
    qwen3_model *m = open_model(dense, &api, n_layers);
    qwen3_session *s = new_session(m, N_CTX, QWEN3_KV_F16);
    int32_t id = 7;
    sync_to(s, 1, N);
    qwen3_session_cancel(s);
    CHECK(qwen3_extend(s, &id, 1, &err) == QWEN3_ERR_CANCELLED, "what comes next is cancelled");
    device.cancel = s; /* while it computes */
    CHECK(qwen3_extend(s, &id, 1, &err) == QWEN3_ERR_CANCELLED && strstr(err.text, "cancelled"),
          "what runs is cancelled");
    CHECK(qwen3_session_len(s) == N && !qwen3_session_logits(s), "what was computed stays");
    int32_t ids[N] = {0};
    device.launches = 0;
    device.cancel = s;
    CHECK(qwen3_extend(s, ids, N, &err) == QWEN3_ERR_CANCELLED, "a prompt, too");
    int cut = device.launches;
    WORKS(qwen3_extend(s, ids, N, &err));
    CHECK(n_layers == 1 || 2 * cut < device.launches - cut, "behind a layer: %d launches", cut);
    extend(s, id);
    as_the_cpu("after a cancel", dense, s, QWEN3_KV_F16);
    qwen3_session_free(s);
    qwen3_model_close(m);
}

static void test_refusals(void) {
    qwen3_model *m = open_model(dense, NULL, 0);
    qwen3_gpu_share share = {.n_layers = N_LAYERS + 1};
    CHECK(model_use_device(m, &gpu_streamed, &share, &err) == QWEN3_ERR_ARG &&
          strstr(err.text, "1 to 3"), "%s", err.text);
    share = (qwen3_gpu_share){.device = 3, .n_layers = 1};
    CHECK(model_use_device(m, &gpu_streamed, &share, &err) == QWEN3_ERR_ARG, "another device");
    share.device = 0;
    qwen3_session *s = new_session(m, 8, QWEN3_KV_F32);
    CHECK(model_use_device(m, &gpu_streamed, &share, &err) == QWEN3_ERR_ARG &&
          strstr(err.text, "sessions"), "%s", err.text);
    qwen3_session_free(s);
    WORKS(model_use_device(m, &gpu_streamed, &share, &err));
    CHECK(model_use_device(m, &gpu_streamed, &share, &err) == QWEN3_ERR_ARG, "twice");
    CHECK(!qwen3_session_new(m, 8, QWEN3_KV_F32, &err) && err.status == QWEN3_ERR_ARG &&
          strstr(err.text, "f16 or q8"), "%s", err.text);
    s = new_session(m, 8, QWEN3_KV_F16);
    qwen3_importance *im = qwen3_importance_new(m, &err);
    CHECK(qwen3_session_observe(s, im, &err) == QWEN3_ERR_ARG && strstr(err.text, "GPU"), "%s",
          err.text);
    qwen3_importance_free(im);
    qwen3_session_free(s);
    qwen3_model_close(m);
}

static void test_fill(int n_layers) {
    qwen3_model *m = open_model(dense, &gpu_streamed, n_layers);
    qwen3_session *s = new_session(m, N_CTX, QWEN3_KV_Q8);
    WORKS(qwen3_session_fill(s, 40, &err));
    extend(s, 3);
    const float *logits = qwen3_session_logits(s);
    float sum = 0;
    for (int i = 0; i < N_VOCAB; i++) sum += logits[i];
    CHECK(isfinite(sum) && qwen3_session_len(s) == 41, "a filled session decodes");
    qwen3_session_free(s);
    qwen3_model_close(m);
}

/* Whichever allocation fails: the model is the CPU's, and takes the device later. */
static void test_out_of_memory(const char *file) {
    gpu_api api = failing();
    api.map = map_nothing;
    qwen3_gpu_share share = {.n_layers = 2};
    qwen3_model *m = open_model(file, NULL, 0);
    qwen3_status status = QWEN3_ERR_MEMORY;
    int k = 0;
    for (device.call = ALLOC; status != QWEN3_OK; k++) {
        device.until = k;
        status = model_use_device(m, &api, &share, &err);
        CHECK(status == QWEN3_OK || (status == QWEN3_ERR_MEMORY && device.held == 0 && !m->gpu),
              "allocation %d: %s", k, err.text);
        if (status == QWEN3_OK || k % 9) continue;
        qwen3_session *s = new_session(m, N_CTX, QWEN3_KV_F16);
        sync_to(s, 1, 4);
        qwen3_session_free(s);
    }
    CHECK(k > 20, "there are many allocations");
    qwen3_session *s = NULL;
    for (k = 0; !s; k++) {
        device.until = k;
        s = qwen3_session_new(m, N_CTX, QWEN3_KV_F16, &err);
        CHECK(s || (err.status == QWEN3_ERR_MEMORY && strstr(err.text, "64 tokens")), "%s",
              err.text);
    }
    device.call = NEVER;
    CHECK(k == 3, "device and pinned memory");
    sync_to(s, 1, 12);
    as_the_cpu("after all", file, s, QWEN3_KV_F16);
    qwen3_session_free(s);
    qwen3_model_close(m);
    CHECK(device.held == 0, "%d allocations are left", device.held);
}

/* Any other call that fails is an error of the computation, and none of the next. */
static void test_failures(int n_layers) {
    gpu_api api = failing();
    qwen3_model *m = open_model(dense, &api, n_layers);
    qwen3_session *s = new_session(m, N_CTX, QWEN3_KV_F16);
    int32_t id = 9;
    for (int call = UPLOAD; call <= SYNC; call++)
        for (int k = 0, done = 0; !done; k = 3 * k + 1) {
            device.call = NEVER;
            sync_to(s, 1, 2);
            device.call = call;
            device.until = k;
            done = qwen3_extend(s, &id, 1, &err) == QWEN3_OK;
            bool here = qwen3_session_logits(s) != NULL;
            CHECK(done || (err.status == QWEN3_ERR_IO && !here), "%s", err.text);
            CHECK(qwen3_session_len(s) == (size_t)(2 + done), "it has the token or not");
        }
    device.call = NEVER;
    sync_to(s, 1, N);
    as_the_cpu("after failures", dense, s, QWEN3_KV_F16);
    qwen3_session_free(s);
    qwen3_model_close(m);
}

int main(int argc, char **argv) {
    gpu_streamed_seed(argc > 1 ? strtoull(argv[1], NULL, 10) : 1);
    if (!mkdtemp(folder)) return 2;
    for (int i = 0; i < 2; i++) snprintf(path[i], sizeof path[i], "%s/%d", folder, i);
    test_tokens(dense, 1, QWEN3_KV_F16);
    test_tokens(moe, 2, QWEN3_KV_Q8);
    test_replay(moe, 2);
    test_together(dense, 1, true);
    test_together(moe, 1, false);
    test_cancel(N_LAYERS);
    test_fill(2);
    test_snapshots(2, QWEN3_KV_Q8);
    test_files(QWEN3_KV_F16);
    test_refusals();
    test_out_of_memory(dense);
    test_out_of_memory(moe);
    test_failures(2);
    for (int i = 0; i < 2; i++) unlink(path[i]);
    rmdir(folder);
    return failures != 0;
}
