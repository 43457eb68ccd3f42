/* check.c - see check.h.
 *
 * One NaN spreads over all logits of a model within a token. The quants of a block are
 * integers, so that only its f16 scales can be wrong; of F32, F16 and BF16 every value can.
 */
#include "check.h"

#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "blocks.h"
#include "codec.h"
#include "error.h"
#include "gguf.h"

/* ---- blocks -------------------------------------------------------------------- */

/* Where the f16 scales of a block lie; twice the same when there is only one. */
#define TWO(type, first, second) {offsetof(block_##type, first), offsetof(block_##type, second)}
#define ONE(type) TWO(type, d, d)
static const struct { uint8_t first, second; } scales_of[TYPE_COUNT] = {
    [TYPE_Q4_0] = ONE(q4_0),   [TYPE_Q4_1] = TWO(q4_1, d, m),
    [TYPE_Q5_0] = ONE(q5_0),   [TYPE_Q5_1] = TWO(q5_1, d, m),
    [TYPE_Q8_0] = ONE(q8_0),   [TYPE_Q2_K] = TWO(q2_K, d, dmin),
    [TYPE_Q3_K] = ONE(q3_K),   [TYPE_Q4_K] = TWO(q4_K, d, dmin),
    [TYPE_Q6_K] = ONE(q6_K),   [TYPE_Q5_K] = TWO(q5_K, d, dmin),
    [TYPE_IQ4_NL] = ONE(iq4_nl), [TYPE_IQ4_XS] = ONE(iq4_xs),
};

/* NaN and infinity have an exponent of ones: adding one to it carries into the sign bit, which
 * was masked away. The carries of all values are or-ed: loops that compilers vectorize. */
static bool any_f32(const uint8_t *p, size_t n) {
    uint32_t carry = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, p + 4 * i, sizeof bits);
        carry |= (bits & 0x7f800000) + 0x00800000;
    }
    return carry >> 31;
}

static bool any_16(const uint8_t *p, size_t n, unsigned exponent, unsigned one) {
    uint16_t carry = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, p + 2 * i, sizeof bits);
        carry |= (uint16_t)((bits & exponent) + one);
    }
    return carry >> 15;
}

static bool any_scale(const uint8_t *p, size_t n, size_t stride, size_t second) {
    unsigned carry = 0;
    for (size_t i = 0; i < n; i++, p += stride) {
        f16_t a, b;
        memcpy(&a, p, sizeof a);
        memcpy(&b, p + second, sizeof b);
        carry |= ((a & 0x7c00u) + 0x400) | ((b & 0x7c00u) + 0x400);
    }
    return carry >> 15;
}

static bool any_not_finite(uint32_t type, const uint8_t *p, size_t n) {
    switch (type) {
    case TYPE_F32: return any_f32(p, n);
    case TYPE_F16: return any_16(p, n, 0x7c00, 0x400);
    case TYPE_BF16: return any_16(p, n, 0x7f80, 0x80);
    default: break;
    }
    size_t first = scales_of[type].first, second = scales_of[type].second;
    return any_scale(p + first, n, (size_t)weight_type_of(type)->bytes, second - first);
}

size_t find_not_finite(uint32_t type, const void *blocks, size_t n_blocks) {
    const uint8_t *p = blocks;
    size_t i = 0, bytes = (size_t)weight_type_of(type)->bytes;
    if (!any_not_finite(type, p, n_blocks)) return n_blocks;
    while (!any_not_finite(type, p + i * bytes, 1)) i++;
    return i;
}

size_t first_row_not_finite(uint32_t type, const void *rows, size_t n_rows, size_t n_per_row) {
    size_t row_blocks = n_per_row / (size_t)weight_type_of(type)->block;
    return find_not_finite(type, rows, n_rows * row_blocks) / row_blocks;
}

/* ---- files --------------------------------------------------------------------- */

typedef struct {
    const qwen3_file *file;
    bool without_experts;
    _Atomic(uintptr_t) bad; /* the lowest address of a block that is not finite, 0: none */
} scan;

static bool is_expert_tensor(const qwen3_tensor *t) { return t->shape[2] > 1; }

static void report(scan *s, uintptr_t at) {
    uintptr_t lowest = atomic_load(&s->bad);
    while ((!lowest || at < lowest) && !atomic_compare_exchange_weak(&s->bad, &lowest, at))
        continue;
}

/* Every thread reads its share of each tensor. */
static void scan_share(void *arg, int tid, int n_threads) {
    scan *s = arg;
    for (size_t i = 0; i < qwen3_file_n_tensors(s->file); i++) {
        const qwen3_tensor *t = qwen3_file_tensor(s->file, i);
        const weight_type *type = weight_type_of(t->type);
        if (!type || (s->without_experts && is_expert_tensor(t))) continue;
        size_t bytes = (size_t)type->bytes, n = t->bytes / bytes;
        size_t from = n * (size_t)tid / (size_t)n_threads;
        size_t to = n * (size_t)(tid + 1) / (size_t)n_threads;
        size_t bad = from + find_not_finite(t->type, t->data + from * bytes, to - from);
        if (bad < to) report(s, (uintptr_t)(t->data + bad * bytes));
    }
}

/* Names the block at an address that is in one of the tensors. */
static qwen3_status refuse(const qwen3_file *file, uintptr_t at, qwen3_error *err) {
    const qwen3_tensor *t = qwen3_file_tensor(file, 0);
    for (size_t i = 1; at - (uintptr_t)t->data >= t->bytes; i++) /* below it wraps around */
        t = qwen3_file_tensor(file, i);
    const weight_type *type = weight_type_of(t->type);
    uint64_t block = (at - (uintptr_t)t->data) / (uint64_t)type->bytes;
    uint64_t row_blocks = t->shape[0] / (uint64_t)type->block;
    return fail(err, QWEN3_ERR_FORMAT,
                "tensor '%.*s' holds a NaN or an infinity in row %llu, block %llu (%s): the file "
                "is damaged or was badly converted, download or convert it again",
                STR_ARG(t->name), (unsigned long long)(block / row_blocks),
                (unsigned long long)(block % row_blocks), type->name);
}

uint64_t physical_memory(void) {
    return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

qwen3_status check_weights(const qwen3_file *file, uint64_t memory, pool *pool, qwen3_error *err) {
    scan s = {.file = file};
    uint64_t total = 0;
    for (size_t i = 0; i < qwen3_file_n_tensors(file); i++)
        total += qwen3_file_tensor(file, i)->bytes;
    s.without_experts = total > memory / 2;
    pool_run(pool, scan_share, &s);
    uintptr_t bad = atomic_load(&s.bad);
    return bad ? refuse(file, bad, err) : QWEN3_OK;
}
