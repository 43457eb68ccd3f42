/* The nano models with a share on the emulated device, against the CPU.
 * test_gpu_forward [PROMPT]: of so many tokens, more than FEW_COLUMNS; the emulation is slow. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "streams.h"
#include "gpu/sequence.h"
#include "gpu/use.h"

#include "compare.h"

enum { TOGETHER = 2, MOST = 64 };

static int prompt = 20;

/* All of the prompt at once, then a token, then a few: logits[n][n_vocab]. */
static void run(const char *path, const qwen3_gpu_share *share, qwen3_kv_type kv,
                const int32_t *ids, float *logits) {
    qwen3_error err = {0};
    qwen3_model *m = qwen3_model_open(path, 1, 0, &err);
    CHECK(m, "%s", err.text);
    if (share) CHECK(!model_use_device(m, &gpu_streamed, share, &err), "%s", err.text);
    qwen3_session *s = qwen3_session_new(m, MOST, kv, &err);
    CHECK(s, "%s", err.text);
    int n[] = {prompt, 1, TOGETHER};
    for (int i = 0, pos = 0; i < 3; pos += n[i++])
        CHECK(!qwen3_extend_logits(s, ids + pos, (size_t)n[i],
                                   logits + (size_t)pos * (size_t)m->config.n_vocab, &err),
              "%s", err.text);
    qwen3_session_free(s);
    qwen3_model_close(m);
}

static void test_model(const char *path, int n_layers, qwen3_kv_type kv) {
    enum { N_VOCAB = 4224 };
    int n = prompt + 1 + TOGETHER;
    int32_t ids[MOST];
    for (int i = 0; i < n; i++) ids[i] = (i * 7919 + 13) % N_VOCAB;
    float *wanted = malloc((size_t)n * N_VOCAB * sizeof *wanted);
    float *got = malloc((size_t)n * N_VOCAB * sizeof *got);
    if (!wanted || !got) abort();
    gpu_streamed_seed(7);
    run(path, NULL, kv, ids, wanted);
    run(path, &(qwen3_gpu_share){.n_layers = n_layers}, kv, ids, got);
    compare_logits(path, wanted, got, n, N_VOCAB, 1e-4);
    free(wanted);
    free(got);
}

int main(int argc, char **argv) {
    if (argc > 1) prompt = atoi(argv[1]);
    if (prompt <= FEW_COLUMNS || prompt + 1 + TOGETHER > MOST) return 2;
    test_model("qwen3cli/models/nano-dense-q8_0.gguf", 4, QWEN3_KV_F16);
    test_model("qwen3cli/models/nano-moe-q8_0.gguf", 2, QWEN3_KV_Q8);
    return failures != 0;
}
