/* What is drawn from logits that stay on the device is what the host draws from the same ones.
 * test_gpu_sample [DRAWS]: with so many settings; the emulation is slow. */
#include <string.h>

#include "compare.h"
#include "streams.h"
#include "gpu/use.h"
#include "probe.h"
#include "session.h"

enum { N_CTX = 96, N_VOCAB = 269 };
static qwen3_error err;
static uint64_t state = 5;

static uint32_t bits(void) { /* Numerical Recipes' generator, its high half */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static int below(int n) { return (int)(bits() % (unsigned)n); }
static float uniform(void) { return (float)(bits() >> 7) * 0x1p-24f; }

static qwen3_session *new_session(int n_layers) {
    qwen3_model *m = qwen3_model_open("tests/data/tiny-gpu.gguf", 1, 0, &err);
    qwen3_gpu_share share = {.n_layers = n_layers};
    if (!m || (n_layers && model_use_device(m, &gpu_streamed, &share, &err) != QWEN3_OK)) abort();
    qwen3_session *s = qwen3_session_new(m, N_CTX, QWEN3_KV_F16, &err);
    if (!s) abort();
    return s;
}

static void end(qwen3_session *s) {
    qwen3_model *m = s->model;
    qwen3_session_free(s);
    qwen3_model_close(m);
}

/* Of several kinds: ties, zeros of both signs, and now and then one that is no number. */
static void some_logits(float *x) {
    int kind = below(6);
    for (int i = 0; i < N_VOCAB; i++) {
        x[i] = (uniform() - 0.5f) * (kind == 4 ? 1e-2f : 20);
        if (kind == 1) x[i] = (float)(int)(x[i] / 4) * 4;
        if (kind == 2 && below(3)) x[i] = below(2) ? 0.0f : -0.0f;
        if (kind == 5) x[i] *= 1e37f; /* penalties make infinities of some */
    }
    if (kind == 3) x[below(N_VOCAB)] = below(2) ? NAN : below(2) ? INFINITY : -INFINITY;
}

static qwen3_sampling some_settings(void) {
    qwen3_sampling p = {.temperature = below(4) ? 0.2f + uniform() * 1.5f : 0,
                        .top_k = below(8) ? 1 + below(64) : 64 + below(300),
                        .top_p = below(2) ? 1 : 0.05f + 0.9f * uniform(),
                        .min_p = below(2) ? 0 : uniform() * 0.3f,
                        .repetition_penalty = 1,
                        .seed = bits()};
    if (below(3) == 0) p.presence_penalty = uniform() * 4 - 1;
    if (below(3) == 0) p.repetition_penalty = 0.5f + 2 * uniform();
    return p;
}

/* The session has n tokens, some of them more than once, and these logits. */
static void prepare(qwen3_session *s, const int32_t *ids, size_t n, const float *logits) {
    memcpy(s->ids, ids, n * sizeof *ids);
    s->n = n;
    session_has_logits(s, true);
    if (!s->gpu) {
        memcpy(s->logits, logits, N_VOCAB * sizeof *logits);
        return;
    }
    gpu_streamed.upload(s->model->gpu->device, GPU_COMPUTE, s->gpu->logits, logits,
                        N_VOCAB * sizeof *logits, &err);
    memset(s->logits, 0xff, N_VOCAB * sizeof *logits);
    s->gpu->logits_wait = true;
}

/* How often the device's few were enough. */
static int draw_alike(qwen3_session *host, qwen3_session *there) {
    float logits[N_VOCAB];
    int32_t ids[N_CTX];
    int n = below(N_CTX + 1);
    some_logits(logits);
    for (int i = 0; i < n; i++) ids[i] = below(40);
    prepare(host, ids, (size_t)n, logits);
    prepare(there, ids, (size_t)n, logits);
    int few = 0;
    for (int i = 0; i < 2; i++) { /* the second time from the same logits: penalties left them */
        qwen3_sampling p = some_settings();
        size_t from = (size_t)below(n + 1);
        qwen3_error why[2] = {{0}, {0}};
        int32_t wanted = qwen3_sample(host, &p, from, &why[0]);
        int32_t got = qwen3_sample(there, &p, from, &why[1]);
        CHECK(wanted == got && why[0].status == why[1].status && !strcmp(why[0].text, why[1].text),
              "%d, not %d (k %d, temperature %g, top_p %g, min_p %g) %s", got, wanted, p.top_k,
              (double)p.temperature, (double)p.top_p, (double)p.min_p, why[1].text);
        few += there->gpu->logits_wait;
    }
    const float *all = qwen3_session_logits(there);
    CHECK(all && !memcmp(all, logits, sizeof logits), "the logits are not what they were");
    return few;
}

int main(int argc, char **argv) {
    gpu_streamed_seed(1);
    qwen3_session *host = new_session(0), *there = new_session(1);
    int few = 0, draws = argc > 1 ? atoi(argv[1]) : 120;
    for (int i = 0; i < draws; i += 2) few += draw_alike(host, there);
    CHECK(2 * few > draws, "the device's few were enough only %d times of %d", few, draws);
    end(host);
    end(there);
    return failures != 0;
}
