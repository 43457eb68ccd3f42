/* The nano models through the emulated device, against the CPU.
 * test_gpu_forward [PROMPT]: of so many tokens, more than FEW_COLUMNS; the emulation is slow. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "gpu/emulated.h"
#include "gpu/forward.h"

enum { TOGETHER = 2, MOST = 64 };

static int prompt = 20, failures;

#define CHECK(condition, ...)                                                 \
    do {                                                                      \
        if (!(condition)) {                                                   \
            failures++;                                                       \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);   \
            fprintf(stderr, __VA_ARGS__);                                     \
            fputc('\n', stderr);                                              \
        }                                                                     \
    } while (0)

/* log of the sum of e^x, and the index of the largest. */
static double log_sum(const float *x, int n, int *best) {
    double sum = 0;
    *best = 0;
    for (int i = 0; i < n; i++)
        if (x[i] > x[*best]) *best = i;
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - x[*best]);
    return x[*best] + log(sum);
}

static double divergence(const float *wanted, const float *got, int n, int *same) {
    int best, best_got;
    double of_wanted = log_sum(wanted, n, &best), of_got = log_sum(got, n, &best_got), kl = 0;
    for (int i = 0; i < n; i++) {
        double p = wanted[i] - of_wanted;
        kl += exp(p) * (p - (got[i] - of_got));
    }
    *same += best == best_got;
    return kl;
}

/* All of the prompt at once, then a token, then a few: logits[n][n_vocab]. */
static qwen3_status run(const qwen3_model *host, uint32_t kv, const int32_t *ids, float *logits,
                        uint64_t seed, qwen3_error *err) {
    size_t n_vocab = (size_t)host->config.n_vocab;
    const gpu_api *api = &gpu_emulated;
    gpu_emulated_seed(seed);
    gpu *device = api->open(0, err);
    if (!device) return err->status;
    resident_model model;
    gpu_sequence sequence;
    qwen3_status status = resident_open(&model, api, device, host, err);
    if (status == QWEN3_OK) {
        int n[] = {prompt, 1, TOGETHER};
        status = gpu_sequence_open(&sequence, &model, MOST, kv, prompt, err);
        for (int i = 0, pos = 0; i < 3 && status == QWEN3_OK; pos += n[i++])
            status = gpu_forward(&sequence, ids + pos, n[i], pos, n[i],
                                 logits + (size_t)pos * n_vocab, err);
        gpu_sequence_close(&sequence);
        resident_close(&model);
    }
    api->close(device);
    return status;
}

static void test_model(const char *path, uint32_t kv, qwen3_kv_type host_kv) {
    qwen3_error err = {0};
    qwen3_model *host = qwen3_model_open(path, 1, 0, &err);
    CHECK(host, "%s", err.text);
    if (!host) return;
    int n_vocab = host->config.n_vocab, n = prompt + 1 + TOGETHER, same = 0;
    size_t bytes = (size_t)n * (size_t)n_vocab * sizeof(float);
    int32_t ids[MOST];
    for (int i = 0; i < n; i++) ids[i] = (i * 7919 + 13) % n_vocab;
    float *wanted = malloc(bytes), *got = malloc(bytes);
    qwen3_session *session = qwen3_session_new(host, MOST, host_kv, &err);
    if (!wanted || !got || !session) abort();
    CHECK(qwen3_extend_logits(session, ids, (size_t)n, wanted, &err) == QWEN3_OK, "%s", err.text);
    CHECK(run(host, kv, ids, got, 7, &err) == QWEN3_OK, "%s", err.text);
    double kl = 0;
    for (int i = 0; i < n; i++) {
        size_t at = (size_t)i * (size_t)n_vocab;
        kl += divergence(wanted + at, got + at, n_vocab, &same) / n;
    }
    printf("%s: KL %.1e\n", path, kl);
    CHECK(kl <= 1e-4 && same == n, "%s: KL %g, the same top in %d of %d", path, kl, same, n);
    qwen3_session_free(session);
    qwen3_model_close(host);
    free(wanted);
    free(got);
}

int main(int argc, char **argv) {
    if (argc > 1) prompt = atoi(argv[1]);
    if (prompt <= FEW_COLUMNS || prompt + 1 + TOGETHER > MOST) return 2;
    test_model("qwen3cli/models/nano-dense-q8_0.gguf", TYPE_F16, QWEN3_KV_F16);
    test_model("qwen3cli/models/nano-moe-q8_0.gguf", TYPE_Q8_0, QWEN3_KV_Q8);
    return failures != 0;
}
