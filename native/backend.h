/* backend.h - the operations a CPU backend provides.
 *
 * A backend is one file per instruction set, filled into a table that is picked
 * at run time. scalar.c is the oracle: quantize and the products of quantized
 * weights give the same bits in every backend (cpu/product.h defines them), the
 * rest differs in the order of float summation and in the last bits of e^x.
 * Within a backend an output depends on its own inputs alone, not on how the
 * caller splits rows, columns and vectors. Operations work on what the caller
 * hands them; threads split rows, tokens and heads in front of this table.
 */
#ifndef QWEN3_BACKEND_H
#define QWEN3_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#include "blocks.h"
#include "encode.h"
#include "qwen3.h"

/* Activations for quantized weights: a row of n values (a multiple of 32) is a run of
 * units of 256, the last one filled up with zeros. |q| <= 127. */
enum { UNIT = 256, GROUPS = UNIT / 32 };
typedef struct {
    int8_t q[UNIT];
    float d[GROUPS]; /* x = d q, of each 32 */
    float s[GROUPS]; /* d times the sum of the 32 q */
    /* ACT_START - 128 times the sum of each 32 and of each 16 q: what a sum of products with
     * q + 128 in the place of a weight's q starts from, as the bits of a float: see avx512.c. */
    int32_t start32[GROUPS], start16[UNIT / 16];
} act_unit;
enum { ACT_START = 0x4b400000 }; /* the float 1.5 * 2^23, whose last bit is 1 */

static inline size_t act_bytes(int n) {
    return (size_t)(n + UNIT - 1) / UNIT * sizeof(act_unit);
}

/* F32, F16 and BF16 weights multiply float activations, all others act rows. */
static inline int type_takes_float(uint32_t type) {
    return type == TYPE_F32 || type == TYPE_F16 || type == TYPE_BF16;
}

/* y[c][r] = sum_i W[r][i] x[c][i] for columns c in [0, n_cols). Column c reads the
 * activation row x_index[c] (NULL: c) and writes the output row y_index[c]. */
typedef struct {
    uint32_t type;
    int n_in;            /* row length, whole blocks */
    const void *w;       /* row r starts at w + r * row_bytes, unaligned */
    size_t row_bytes;
    const void *x;       /* float rows or act rows, see type_takes_float */
    size_t x_stride;     /* bytes */
    const int32_t *x_index;
    float *y;
    size_t y_stride;     /* floats */
    const int32_t *y_index;
    int n_cols;
    /* Bytes of w that the caller goes through in one call after another, to be fetched ahead
     * of their use; NULL: none. */
    const void *ahead;
    size_t ahead_bytes;
} matmul_args;

/* ---- attention ----
 * The cache of a head holds its keys in tiles of 16 positions, [head_dim][16], and its values
 * in tiles [16][width], width being head_dim rounded up to 16. A tile of Q8_0 is int8 in this
 * order, then f16 scales [head_dim / 32][16], one for 32 items of a position. */
enum {
    KV_TILE = 16,
    KV_STEP = 32,     /* positions that are multiplied at a time */
    KV_BLOCK = 256,   /* positions of a part, see attend */
    ATTEND_ROWS = 96, /* most queries of a call */
};

static inline int kv_width(int head_dim) { return (head_dim + KV_TILE - 1) / KV_TILE * KV_TILE; }

/* type: TYPE_F16, TYPE_F32, or TYPE_Q8_0 for a head_dim of whole blocks of 32. */
static inline size_t kv_tile_bytes(uint32_t type, int head_dim) {
    size_t width = (size_t)kv_width(head_dim);
    return type == TYPE_F32 ? 64 * width : type == TYPE_F16 ? 32 * width : 17 * width;
}

/* Floats of a row's part: out[width] (not divided by sum), then top, the largest score, and
 * sum, of e^(score - top); the rest is unused. */
static inline size_t attend_part(int head_dim) { return (size_t)kv_width(head_dim) + KV_TILE; }

static inline size_t attend_scratch(int head_dim) {
    return (size_t)kv_width(head_dim) * KV_STEP + (size_t)ATTEND_ROWS * KV_BLOCK;
}

/* Queries that share a K/V head; row r sees the positions [0, n_kv[r]). */
typedef struct {
    uint32_t type;        /* of the cache */
    int head_dim, n_rows; /* 1 to ATTEND_ROWS */
    const float *q;       /* [head_dim][ATTEND_ROWS], already divided by sqrt(head_dim) */
    const int32_t *n_kv;  /* [n_rows], each >= 1, ascending */
    const void *k, *v;    /* tiles, 32-aligned */
    float *scratch;       /* attend_scratch(head_dim) floats */
} attend_args;

/* What peak() multiplies: signed or unsigned bytes summed in 32 bits, or floats. */
typedef enum { PEAK_INT8, PEAK_F32 } peak_kind;

typedef struct backend {
    const char *name; /* "scalar", "avx2", "avxvnni", "avx512", "neon", "i8mm" */
    int (*available)(void);
    /* Rows [row0, row1) of the product. */
    void (*matmul)(const matmul_args *, int row0, int row1);
    /* Values [first, last) of a row of n, multiples of 32, from x into the act row; with the last
     * value of the row comes the filling. A group of 32 that holds a NaN or an infinity makes
     * every product with it NaN. */
    void (*quantize)(const float *x, act_unit *act, int n, int first, int last);
    /* y = x / sqrt(mean(x^2) + eps) * w; y may be x. */
    void (*rmsnorm)(float *y, const float *x, const float *w, int n, float eps);
    /* Rotates the pairs (x[i], x[i + n/2]) by the angle whose cos and sin are given, in place. */
    void (*rope)(float *x, const float *cos, const float *sin, int n);
    /* gate = silu(gate) * up */
    void (*swiglu)(float *gate, const float *up, int n);
    /* y += a * x */
    void (*axpy)(float *y, float a, const float *x, int n);
    /* Softmax attention over the positions [block * KV_BLOCK, + KV_BLOCK) alone. The last
     * row sees some of them; rows that see none keep their part.
     * parts: [n_rows][attend_part(head_dim)]. */
    void (*attend)(const attend_args *, int block, float *parts);
    /* Adds the part of the next block to the sum of those before it. */
    void (*merge)(float *sum, const float *part, int head_dim);
    void (*to_f16)(const float *x, f16_t *y, int n);
    /* Multiplies and adds in registers alone, as fast as the matrix products could at best;
     * n rounds. Returns how many products that were. For probe.h. */
    int64_t (*peak)(peak_kind, int64_t n);
    const encoders *encode; /* the same bytes in every backend */
} backend;

/* The fastest backend of this machine, or the one that is forced; NULL when that
 * name is unknown or not available here. */
const backend *backend_pick(const char *forced);
/* The same, forced by QWEN3_ISA where that is set; the error says so. */
const backend *backend_chosen(qwen3_error *err);
/* Every backend compiled in, ended by NULL; the first is scalar. */
const backend *const *backend_all(void);

extern const backend backend_scalar;
#if defined(__x86_64__)
extern const backend backend_avx2;
extern const backend backend_avxvnni; /* where QWEN3_AVXVNNI is defined */
extern const backend backend_avx512;
#endif
#if defined(__aarch64__)
extern const backend backend_neon;
extern const backend backend_i8mm;
#endif

#endif
