/* args.h - what kernels are given: structs that C, C++ and the dialect lay out alike.
 *
 * Pointers lead into the device's memory. Sizes are in elements, strides in bytes where a row is
 * made of blocks. All matrices and vectors are dense unless a stride says otherwise.
 */
#ifndef QWEN3_GPU_ARGS_H
#define QWEN3_GPU_ARGS_H

#ifndef QWEN3_GPU_DIALECT_H
#include <stddef.h>
#define GLOBAL /* the host's C: an address that only the device reads */
#endif

enum { GROUP_SIZE = 32 };

/* 32 activations as int8: x = d q; s = d times the sum of q, for weights with minima.
 * The rule of rounding is that of backend.h. */
typedef struct {
    float d, s;
    int q[GROUP_SIZE / 4];
} act_group;

/* x[n] of each row (block of the grid) normalized: y = x / sqrt(mean(x^2) + eps) * w, as floats,
 * as groups (n a multiple of 32), or both: NULL leaves one out. */
typedef struct {
    GLOBAL const float *x, *w;
    GLOBAL float *y;
    GLOBAL act_group *act;
    int n;
    float eps;
} norm_args;

/* Rows of the embedding matrix as floats: y[n][n_embd] from those of the ids. One that is not in
 * [0, n_vocab) gives zeros. */
typedef struct {
    GLOBAL const unsigned char *table;
    GLOBAL const int *ids;
    GLOBAL float *y;
    unsigned type; /* of blocks.h */
    int n_embd, n_vocab;
    size_t row_bytes;
} embed_args;

/* ---- the router ---- */

enum { EXPERTS_MOST = 256, USED_MOST = 32, PARTS_MOST = 3 };

/* Of n tokens the experts, the most probable first, and their weights: [n][n_used], up to USED_MOST
 * each. */
typedef struct {
    GLOBAL const float *logits; /* [n][n_experts] */
    GLOBAL int *experts;
    GLOBAL float *weights;
    int n, n_experts, n_used;
    int renormalize; /* the weights of a token add up to 1 */
} route_args;

/* n entries (token, slot), n_used of a token, sorted by expert, each expert's in their order:
 * those of expert e are [start[e], start[e + 1]). */
typedef struct {
    GLOBAL const int *experts;   /* [n] */
    GLOBAL const float *weights; /* [n] */
    GLOBAL int *start;           /* [n_experts + 1] */
    GLOBAL int *token;           /* [n] of a sorted entry */
    GLOBAL float *weight;        /* [n] likewise */
    GLOBAL int *position;        /* [n] where an entry was sorted to */
    int n, n_experts, n_used;
} group_args;

/* Where n experts have their matrices: matrix p of slot s from part[p] + s * stride[p] on. */
typedef struct {
    GLOBAL const int *experts; /* [n], in any order and more than once; < 0: none */
    GLOBAL const int *slot_of; /* [experts of the layer]; -1: in none */
    GLOBAL const unsigned char *part[PARTS_MOST];
    GLOBAL const unsigned char *GLOBAL *matrices; /* [n_parts][n]; NULL: in no slot */
    size_t stride[PARTS_MOST];
    int n, n_parts;
} locate_args;

/* ---- sampling ---- */

enum { TOP_MOST = 64, TOP_BLOCKS = 64 };

/* A token in the order of the logits: a NaN's rank is 0, the largest number's is the highest. */
typedef struct {
    unsigned rank;
    int id;
} ranked;

/* What a block saw of a row of logits. */
typedef struct {
    ranked best[TOP_MOST]; /* sorted */
    float top, sum;        /* of its finite logits, as in top_result */
    int bad;
} top_part;

/* The k largest of a row, of equal ones the lower id first; NaN comes last. Beyond the row's end
 * ids are -1. */
typedef struct {
    int id[TOP_MOST];
    float logit[TOP_MOST];
    float top; /* the largest finite logit; without one -infinity, and a sum of 0 */
    float sum; /* of e^((logit - top) / temperature) over all finite logits of the row */
    int bad;   /* the first id whose logit is not finite; -1: there is none */
} top_result;

typedef struct {
    GLOBAL const float *logits; /* [n][n_vocab] */
    GLOBAL top_part *parts;     /* [n][TOP_BLOCKS] that top_parts leaves to top_merge */
    GLOBAL top_result *results; /* [n] */
    int n_vocab, k;             /* 1 to TOP_MOST */
    float temperature;          /* > 0 */
} top_args;

/* The logits of n different ids less likely: repetition divides or multiplies all of them, after
 * that presence is subtracted from the first n_generated. */
typedef struct {
    GLOBAL float *logits;
    GLOBAL const int *ids;
    int n, n_generated;
    float repetition, presence;
} penalize_args;

/* A product with the columns of another one. */
typedef struct {
    GLOBAL const unsigned char *w;
    GLOBAL float *y;
    int n_out;
} matvec_output;

enum { MORE_OUTPUTS = 2 };

/* Products of a matrix with columns, up to 8 at a time: y[c][r] = W[r] . x[c]; or, with a second
 * matrix, up, y = silu(W x) * (up x). Or of entries, of one column each, with a matrix for every
 * entry. */
typedef struct {
    /* Rows of n_in weights, a matrix 16-aligned; up: NULL for one matrix. */
    GLOBAL const unsigned char *w, *up;
    /* [entries]: what stands in place of w and up. The output of an entry without a matrix is left
     * alone. NULL: none. */
    GLOBAL const unsigned char *GLOBAL const *entry_w;
    GLOBAL const unsigned char *GLOBAL const *entry_up;
    GLOBAL const void *x; /* columns of act_group for quantized weights, of float for others */
    GLOBAL float *y;      /* [columns or entries][n_out] */
    GLOBAL act_group *act; /* y as groups, or NULL; two matrices only, and then y may be NULL */
    int n_in, n_out;       /* n_in a multiple of 32, as n_out is for act */
    int n_columns;         /* not of entries */
    int entries_per_x;     /* so many entries in a row have the same x */
    int n_pairs;           /* a block's, of rows 2i and 2i + 1, or of gate's and up's row i: 32
                              for act */
    int add;               /* y += in place of y =; one matrix only */
    matvec_output more[MORE_OUTPUTS]; /* of one matrix each, as w */
} matvec_args;

/* y[token] += the sum of weight * x over the token's entries. */
typedef struct {
    GLOBAL const float *x;       /* [tokens][n_used][n] */
    GLOBAL const int *experts;   /* [tokens][n_used], different ones of a token; < 0: left out */
    GLOBAL const float *weights; /* likewise */
    GLOBAL const int *position;  /* likewise: an entry's row of x; NULL: in this order */
    GLOBAL float *y;             /* [tokens][n] */
    int n, n_used;
} add_experts_args;

/* A token of a step: the caches of its sequence, laid out as in native/kv.h, and its position
 * there. Caches hold F16 or Q8_0, head_dim is a multiple of 32. */
typedef struct {
    GLOBAL unsigned char *kv; /* 32-aligned */
    size_t stream;            /* bytes of the keys, or values, of a head */
    int pos;
} token_place;

/* Heads of q [n][n_heads][head_dim] and k, normalized with the weights q_norm and k_norm, turned
 * by the angles pos * freq[head_dim / 2]. q is left times q_scale; k and v go into the caches of
 * the layer. */
typedef struct {
    GLOBAL float *q;
    GLOBAL const float *k, *v, *q_norm, *k_norm, *freq;
    GLOBAL const token_place *tokens;
    int n_heads, n_kv_heads, head_dim, layer, q8; /* q8: caches are Q8_0 */
    float eps, rope_scale, q_scale;
} rope_args;

/* Attention of q [n][n_heads][head_dim], as the kernel rope leaves it, over the positions up to
 * each token's own: y of the same shape, as floats, as groups, or both. */
typedef struct {
    GLOBAL const float *q;
    GLOBAL const token_place *tokens;
    GLOBAL float *parts; /* [n][n_heads][ATTEND_PARTS][head_dim + 2], of decoding alone */
    GLOBAL float *y;
    GLOBAL act_group *act;
    int n, n_heads, n_kv_heads, head_dim, layer;
} attention_args;

/* Decoding cuts the positions of a token into parts: as many rounds of ATTEND_ROUND for each as
 * make at most ATTEND_PARTS of them. The rule sees nothing but the token's position. */
enum { ATTEND_PARTS = 64, ATTEND_ROUND = 128, ATTEND_HEAD_DIM = 128 /* at most */ };

/* Prefill: rows of a block, a row for each token and query of a K/V head. */
enum { PREFILL_ROWS = 64, PREFILL_THREADS = 128, PREFILL_SHARED = 19456 };

/* Products of a matrix with many columns: y[c][r] = W[r] . x[c]; or, with a second matrix, up,
 * y = silu(W x) * (up x). Of several experts each has a z of the grid, and its own columns: the
 * entries [start[e], start[e + 1]). */
typedef struct {
    GLOBAL const unsigned char *w, *up; /* rows of n_in weights; up: NULL for one matrix */
    /* [experts]: what stands in place of w and up. An expert without w is left out. NULL: none. */
    GLOBAL const unsigned char *GLOBAL const *expert_w;
    GLOBAL const unsigned char *GLOBAL const *expert_up;
    GLOBAL const int *start; /* [experts + 1]; of experts only */
    GLOBAL const int *token; /* column c multiplies x[token[c]]; NULL: x[c] */
    GLOBAL const void *x;    /* rows of act_group for quantized weights, of float for others */
    GLOBAL float *y;         /* [columns][n_out] */
    GLOBAL act_group *act;   /* y as groups, or NULL; two matrices only, and then y may be NULL */
    int n_in, n_out;         /* n_in a multiple of 32, as n_out is for act */
    int n_columns;           /* of one matrix or two; of experts start says it */
    int add;                 /* y += in place of y =; one matrix only */
} gemm_args;

enum { GEMM_ROWS = 128, GEMM_COLUMNS = 128, GEMM_THREADS = 256, GEMM_SHARED = 26624 };

/* ---- what a device can do ---- */

enum { PROBE_THREADS = 256, PROBE_PIECE = 16384, PROBE_TILES = 8 };

/* n pieces of PROBE_PIECE bytes, each read once: sums[warp of the grid] is the exclusive or of what
 * the warp's lanes read, word by word. */
typedef struct {
    GLOBAL const void *from; /* 16-aligned */
    GLOBAL int *sums;
    int n, n_blocks; /* of the grid */
} probe_read_args;

/* In every warp so many rounds of PROBE_TILES products of tiles, of numbers from all over their
 * range: sums[warp of the grid] is the sum of what comes out. */
typedef struct {
    GLOBAL float *sums;
    int rounds;
} probe_products_args;

#endif
