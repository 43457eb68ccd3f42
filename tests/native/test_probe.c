/* test_probe.c - the probe of the machine on every backend, and sessions filled without
 * computing. No figure is judged: how fast a machine is, is not a matter of a test. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "probe.h"

enum { N_CTX = 256, DEPTH = 200 };
static const char path[] = "tests/data/tiny-moe.gguf";

static void expect(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "probe: %s\n", what);
    exit(1);
}

static qwen3_model *open_model(int threads) {
    qwen3_error err;
    qwen3_model *m = qwen3_model_open(path, threads, 0, &err);
    expect(m != NULL, "the model opens");
    return m;
}

static bool sane(double rate) { return isfinite(rate) && rate > 0; }

static void probes(int threads) {
    qwen3_error err;
    qwen3_model *m = open_model(threads);
    qwen3_probe *p = qwen3_probe_new(m, 5000001, &err);
    expect(p != NULL, "the machine is probed");
    expect(sane(qwen3_probe_read(p)), "memory is read");
    expect(sane(qwen3_probe_int8(p)) && sane(qwen3_probe_f32(p)), "numbers are multiplied");
    qwen3_probe_free(p);
    expect(!qwen3_probe_new(m, 100, &err) && err.status == QWEN3_ERR_ARG, "too small a probe");
    qwen3_model_close(m);
}

/* The logits of a token behind DEPTH filled positions; the caller frees them. */
static float *filled_logits(int threads, qwen3_kv_type kv) {
    qwen3_error err;
    qwen3_model *m = open_model(threads);
    qwen3_session *s = qwen3_session_new(m, N_CTX, kv, &err);
    expect(s != NULL, "a session begins");
    expect(qwen3_session_fill(s, N_CTX + 1, &err) == QWEN3_ERR_CONTEXT, "more than fits");
    expect(qwen3_session_fill(s, DEPTH, &err) == QWEN3_OK, "the session is filled");
    expect(qwen3_session_len(s) == DEPTH && !qwen3_session_logits(s), "tokens without logits");
    int32_t token = 7;
    expect(qwen3_extend(s, &token, 1, &err) == QWEN3_OK, "a token behind them is computed");
    size_t n = (size_t)qwen3_model_config(m)->n_vocab;
    float *copy = malloc(n * sizeof *copy);
    expect(copy != NULL, "memory");
    memcpy(copy, qwen3_session_logits(s), n * sizeof *copy);
    for (size_t i = 0; i < n; i++) expect(isfinite(copy[i]), "its logits are finite");
    int32_t again[] = {7, 8, 9};
    expect(qwen3_sync(s, again, 3, &err) == 0, "a filled session goes on with other tokens");
    qwen3_session_free(s);
    qwen3_model_close(m);
    return copy;
}

int main(void) {
    const char *isa;
    for (size_t i = 0; (isa = qwen3_isa(i)); i++) {
        setenv("QWEN3_ISA", isa, 1);
        for (int threads = 1; threads <= 3; threads++) probes(threads);
        for (int kv = QWEN3_KV_F16; kv <= QWEN3_KV_F32; kv++) {
            float *one = filled_logits(1, (qwen3_kv_type)kv);
            float *three = filled_logits(3, (qwen3_kv_type)kv);
            expect(memcmp(one, three, 16 * sizeof *one) == 0, "the same for any threads");
            free(one);
            free(three);
        }
    }
    puts("probe: ok");
    return 0;
}
