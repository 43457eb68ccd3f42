/* fingerprint.c - see fingerprint.h. */
#include "fingerprint.h"

#include <string.h>

#include "model.h"

/* ---- hash ------------------------------------------------------------------------ */

/* Independent of each other, so that the latency of a multiplication is no limit. */
enum { LANES = 8, BLOCK = LANES * 8 };

/* One to one in either argument. The shift lets high bits take part in later products. */
static inline uint64_t mix(uint64_t h, uint64_t word) {
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

static inline void mix_block(uint64_t lane[LANES], const uint8_t *block) {
    uint64_t word[LANES];
    memcpy(word, block, BLOCK);
    for (int i = 0; i < LANES; i++) lane[i] = mix(lane[i], word[i]);
}

uint64_t hash_bytes(const void *bytes, size_t n, uint64_t seed) {
    const uint8_t *p = bytes;
    uint8_t last[BLOCK] = {0};
    uint64_t lane[LANES], h = mix(seed, n);
    for (int i = 0; i < LANES; i++) lane[i] = mix(h, (uint64_t)i);
    size_t left = n;
    for (; left >= BLOCK; left -= BLOCK, p += BLOCK) mix_block(lane, p);
    if (left) {
        memcpy(last, p, left);
        mix_block(lane, last);
    }
    for (int i = 0; i < LANES; i++) h = mix(h, lane[i]);
    return h;
}

/* ---- models ---------------------------------------------------------------------- */

enum { PIECE = 256, PIECES = 16 };

static uint64_t hash_tensor(const qwen3_tensor *t, uint64_t h) {
    uint64_t form[] = {t->type, t->shape[0], t->shape[1], t->shape[2], t->shape[3]};
    h = hash_bytes(t->name.data, t->name.len, h);
    h = hash_bytes(form, sizeof form, h);
    if (t->bytes <= PIECE * PIECES) return hash_bytes(t->data, t->bytes, h);
    for (uint64_t i = 0; i < PIECES; i++) /* from the first bytes to the last */
        h = hash_bytes(t->data + (t->bytes - PIECE) / (PIECES - 1) * i, PIECE, h);
    return h;
}

uint64_t model_fingerprint(const qwen3_model *m) {
    const qwen3_config *c = &m->config;
    int32_t figures[] = {c->n_layers, c->n_embd, c->n_heads, c->n_kv_heads, c->head_dim, c->n_ff,
                         c->n_vocab, c->n_experts, c->n_experts_used, c->n_ff_expert,
                         c->yarn_original_ctx, c->norm_topk};
    float numbers[] = {c->rope_theta, c->rms_eps, c->yarn_factor};
    uint64_t h = hash_bytes(numbers, sizeof numbers, hash_bytes(figures, sizeof figures, 0));
    for (size_t i = 0; i < qwen3_file_n_tensors(m->file); i++)
        h = hash_tensor(qwen3_file_tensor(m->file, i), h);
    return h;
}
