/* Every backend against scalar, and scalar against double precision: random shapes, random
 * bits in random blocks, extreme scales and activations, unaligned rows, gather and scatter.
 * Buffers end where the data end, so that a sanitizer sees each byte read too many. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend.h"
#include "codec.h"
#include "cpu/unpack.h"

static int failures;

#define CHECK(condition, ...)                                                     \
    do {                                                                          \
        if (!(condition) && failures++ < 20) {                                    \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);       \
            fprintf(stderr, __VA_ARGS__);                                         \
            fputc('\n', stderr);                                                  \
        }                                                                         \
    } while (0)

/* ---- random data ------------------------------------------------------------------ */

static uint64_t state = 1;

static uint32_t random_bits(void) { /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (uint32_t)(z >> 32);
}

static int below(int n) {
    return (int)(random_bits() % (uint32_t)n);
}

static float uniform(void) { /* in [-1, 1) */
    return (float)(int32_t)random_bits() * 0x1p-31f;
}

static void *allocate(size_t align, size_t size) {
    void *p = aligned_alloc(align, (size + align - 1) / align * align);
    if (!p) abort();
    return p;
}

static float *random_floats(int n, float size) {
    float *x = malloc((size_t)n * sizeof *x + 1);
    if (!x) abort();
    for (int i = 0; i < n; i++) x[i] = uniform() * size;
    return x;
}

static const uint32_t types[] = {
    TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_Q4_0, TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1, TYPE_Q8_0,
    TYPE_Q2_K, TYPE_Q3_K, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_IQ4_NL, TYPE_IQ4_XS,
};
enum { N_TYPES = sizeof types / sizeof types[0] };

/* Where a block holds its f16 scales; -1: no more. */
static void scale_offsets(uint32_t type, int at[2]) {
    at[0] = at[1] = -1;
    switch (type) {
    case TYPE_Q4_0: case TYPE_Q5_0: case TYPE_Q8_0: case TYPE_IQ4_NL: case TYPE_IQ4_XS:
        at[0] = 0;
        break;
    case TYPE_Q4_1: case TYPE_Q5_1: case TYPE_Q4_K: case TYPE_Q5_K:
        at[0] = 0, at[1] = 2;
        break;
    case TYPE_Q2_K: at[0] = offsetof(block_q2_K, d), at[1] = offsetof(block_q2_K, dmin); break;
    case TYPE_Q3_K: at[0] = offsetof(block_q3_K, d); break;
    case TYPE_Q6_K: at[0] = offsetof(block_q6_K, d); break;
    }
}

static f16_t random_scale(void) {
    switch (below(16)) {
    case 0: return 0;
    case 1: return (f16_t)(1 + below(1023));       /* subnormal */
    case 2: return f32_to_f16(below(2) ? 65504 : -65504);
    default: return f32_to_f16(uniform() * 0.05f);
    }
}

static void random_row(uint32_t type, uint8_t *row, int n) {
    const weight_type *t = weight_type_of(type);
    int blocks = n / t->block, at[2], fill = below(8);
    size_t bytes = (size_t)blocks * (size_t)t->bytes;
    if (type_takes_float(type)) {
        for (int i = 0; i < n; i++) {
            float f = uniform();
            uint32_t bits;
            f16_t h = f32_to_f16(f);
            memcpy(&bits, &f, sizeof bits);
            uint16_t b = (uint16_t)(bits >> 16);
            memcpy(row + i * t->bytes,
                   type == TYPE_F32 ? (void *)&f : type == TYPE_F16 ? (void *)&h : (void *)&b,
                   (size_t)t->bytes);
        }
        return;
    }
    for (size_t i = 0; i < bytes; i++) {
        uint8_t extreme = type == TYPE_Q8_0 ? 0x80 : 0xff;
        row[i] = fill == 0 ? extreme : fill == 1 ? 0 : (uint8_t)random_bits();
    }
    scale_offsets(type, at);
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < 2 && at[i] >= 0; i++) {
            f16_t d = random_scale();
            memcpy(row + b * t->bytes + at[i], &d, sizeof d);
        }
}

/* A quantized activation row: of random floats, or saturated. */
static void random_act(void *row, int n) {
    float *x = random_floats(n, below(8) ? 3.0f : 1e4f);
    int kind = below(4);
    for (int i = 0; i < n; i++)
        if (kind == 0) x[i] = x[i] < 0 ? -2.0f : 2.0f;
        else if (kind == 1 && i / 32 % 2) x[i] = 0;
        else if (kind == 2) x[i] = -5;
    backend_scalar.quantize(x, row, n, 0, n);
    free(x);
}

/* ---- matrix products ----------------------------------------------------------------- */

typedef struct {
    matmul_args a;
    void *w, *x;
    float *y;
    int32_t *x_index, *y_index;
    int n_rows, row0, row1, x_rows, y_rows;
} product;

static void new_product(product *p, uint32_t type) {
    const weight_type *t = weight_type_of(type);
    int n = t->block == 256 ? 256 * (1 + below(4)) : t->block == 32 ? 32 * (1 + below(26))
                                                                    : 1 + below(300);
    size_t bytes = (size_t)(n / t->block) * (size_t)t->bytes, gap = (size_t)below(4);
    p->n_rows = 1 + below(below(4) ? 30 : 100);
    p->row0 = below(p->n_rows);
    p->row1 = p->row0 + below(p->n_rows - p->row0 + 1);
    int n_cols = below(8) ? 1 + below(9) : 1 + below(80);
    p->x_rows = n_cols + below(3);
    p->y_rows = n_cols + below(3);
    size_t x_bytes = type_takes_float(type) ? (size_t)n * sizeof(float) : act_bytes(n);

    size_t odd = (size_t)below(4), row_bytes = bytes + gap;
    p->w = malloc(odd + (size_t)p->n_rows * row_bytes - gap);
    p->x = allocate(64, (size_t)p->x_rows * x_bytes);
    p->y = random_floats(p->y_rows * p->n_rows, 1);
    p->x_index = below(2) ? malloc((size_t)n_cols * sizeof(int32_t)) : NULL;
    p->y_index = below(2) ? malloc((size_t)n_cols * sizeof(int32_t)) : NULL;
    if (!p->w) abort();
    for (int r = 0; r < p->n_rows; r++)
        random_row(type, (uint8_t *)p->w + odd + (size_t)r * row_bytes, n);
    for (int i = 0; i < p->x_rows; i++)
        if (type_takes_float(type))
            for (int k = 0; k < n; k++) ((float *)p->x)[i * n + k] = uniform() * 4;
        else
            random_act((char *)p->x + (size_t)i * x_bytes, n);
    for (int c = 0; p->x_index && c < n_cols; c++) p->x_index[c] = below(p->x_rows);
    for (int c = 0; p->y_index && c < n_cols; c++) p->y_index[c] = p->y_rows - 1 - c;
    p->a = (matmul_args){.type = type, .n_in = n, .w = (uint8_t *)p->w + odd,
                         .row_bytes = row_bytes, .x = p->x, .x_stride = x_bytes,
                         .x_index = p->x_index, .y = p->y, .y_stride = (size_t)p->n_rows,
                         .y_index = p->y_index, .n_cols = n_cols};
}

static void free_product(product *p) {
    free(p->w);
    free(p->x);
    free(p->y);
    free(p->x_index);
    free(p->y_index);
}

/* The product in double precision, and a bound on the sizes that are added up in it. */
static double exact(const product *p, int r, int c, double *size) {
    const matmul_args *a = &p->a;
    const weight_type *t = weight_type_of(a->type);
    bool floats = type_takes_float(a->type);
    const void *x = column_x(a, c);
    const act_unit *act = x;
    float *w = malloc((size_t)a->n_in * sizeof *w);
    double y = 0;
    unit u;
    *size = 0;
    if (!w) abort();
    t->decode(row_w(a, r), w, (size_t)a->n_in);
    for (int i = 0; i < a->n_in; i++) {
        double xi = floats ? (double)((const float *)x)[i]
                           : (double)act[i / UNIT].d[i % UNIT / 32] * act[i / UNIT].q[i % UNIT];
        y += (double)w[i] * xi;
        *size += fabs((double)w[i] * xi);
        if (floats) continue;
        /* Minima: the weight is a small difference of what is really added. */
        const unpacker *type = unpacker_of(a->type);
        if (i % UNIT == 0)
            type->unpack(row_w(a, r) + (size_t)(i / UNIT) * unit_bytes(a->type),
                         groups_at(i, a->n_in), &u);
        *size += 2 * fabs((double)u.min[i % UNIT / 16] * xi);
    }
    free(w);
    return y;
}

static void test_scalar_product(uint32_t type) {
    product p;
    new_product(&p, type);
    float *before = malloc((size_t)(p.y_rows * p.n_rows) * sizeof(float));
    if (!before) abort();
    memcpy(before, p.y, (size_t)(p.y_rows * p.n_rows) * sizeof(float));
    backend_scalar.matmul(&p.a, p.row0, p.row1);
    for (int c = 0; c < p.a.n_cols; c++)
        for (int r = p.row0; r < p.row1; r++) {
            double size, want = exact(&p, r, c, &size);
            float *got = column_y(&p.a, c) + r;
            CHECK(fabs(*got - want) <= 1e-5 * size, "%s n %d: %.9g, exactly %.9g",
                  weight_type_of(type)->name, p.a.n_in, (double)*got, want);
            *got = before[got - p.y];
        }
    CHECK(memcmp(before, p.y, (size_t)(p.y_rows * p.n_rows) * sizeof(float)) == 0,
          "%s: wrote outside its rows and columns", weight_type_of(type)->name);
    free(before);
    free_product(&p);
}

/* A backend's product: quantized to the bit; floats up to the order of the sum; a column
 * alone as among others. */
static void test_product(const backend *b, uint32_t type) {
    product p;
    new_product(&p, type);
    int n_y = p.y_rows * p.n_rows;
    float *y = p.y, *want = malloc((size_t)n_y * sizeof(float));
    if (!want) abort();
    memcpy(want, y, (size_t)n_y * sizeof(float));
    b->matmul(&p.a, p.row0, p.row1);
    p.a.y = want;
    backend_scalar.matmul(&p.a, p.row0, p.row1);
    if (!type_takes_float(type))
        CHECK(memcmp(y, want, (size_t)n_y * sizeof(float)) == 0, "%s %s n %d, %d cols, %d rows",
              b->name, weight_type_of(type)->name, p.a.n_in, p.a.n_cols, p.row1 - p.row0);
    else
        for (int c = 0; c < p.a.n_cols; c++)
            for (int r = p.row0; r < p.row1; r++) {
                double size, w = exact(&p, r, c, &size);
                size_t at = (size_t)(column_y(&p.a, c) - want) + (size_t)r;
                CHECK(fabs(y[at] - w) <= 1e-5 * size, "%s %s n %d: %.9g, exactly %.9g", b->name,
                      weight_type_of(type)->name, p.a.n_in, (double)y[at], w);
            }
    int c = below(p.a.n_cols), mid = p.row0 + below(p.row1 - p.row0 + 1);
    int32_t from = p.x_index ? p.x_index[c] : c, to = p.y_index ? p.y_index[c] : c;
    matmul_args one = p.a;
    one.x_index = &from, one.y_index = &to, one.n_cols = 1;
    if (below(2)) { /* fetching ahead changes nothing */
        one.ahead = row_w(&one, p.row0);
        one.ahead_bytes = (size_t)(p.row1 - p.row0) * one.row_bytes;
    }
    memcpy(want, y, (size_t)n_y * sizeof(float));
    b->matmul(&one, p.row0, mid);
    b->matmul(&one, mid, p.row1);
    CHECK(memcmp(y, want, (size_t)n_y * sizeof(float)) == 0,
          "%s %s: column %d of %d alone is another", b->name, weight_type_of(type)->name, c,
          p.a.n_cols);
    free(want);
    free_product(&p);
}

/* ---- activations ----------------------------------------------------------------------- */

static void test_quantize(const backend *b) {
    int n = 32 * (1 + below(20)), whole = (n + UNIT - 1) / UNIT * UNIT;
    float *x = random_floats(n, below(4) ? 10.0f : ldexpf(1, below(250) - 125));
    for (int i = 0; i < n; i += 32) {
        int kind = below(12), at = i + below(32);
        if (kind == 0) memset(x + i, 0, 32 * sizeof *x);
        if (kind == 1) x[at] = NAN;
        if (kind == 2) x[at] = -INFINITY;
        if (kind == 3) x[at] = 0x1p127f;
        if (kind == 4) for (int k = 0; k < 32; k++) x[i + k] = 0x1p-130f;
        if (kind == 5) for (int k = 0; k < 32; k++) x[i + k] = (float)(below(255) - 127) / 2;
        if (kind == 5) x[at] = 127; /* ties */
    }
    size_t bytes = act_bytes(n);
    act_unit *want = allocate(64, bytes), *got = allocate(64, bytes);
    memset(want, 0x55, bytes);
    memset(got, 0xaa, bytes);
    backend_scalar.quantize(x, want, n, 0, n);
    int cut = below(n / 32 + 1) * 32; /* in two parts, the last one first */
    b->quantize(x, got, n, cut, n);
    b->quantize(x, got, n, 0, cut);
    CHECK(memcmp(want, got, bytes) == 0, "%s quantize n %d", b->name, n);
    for (int i = 0; i < whole; i++) {
        const act_unit *u = want + i / UNIT;
        int at = i % UNIT, sum = 0;
        float d = u->d[at / 32], top = 0;
        if (i >= n) CHECK(u->q[at] == 0 && d == 0 && u->s[at / 32] == 0, "filling at %d", i);
        for (int k = at / 16 * 16; k < at / 16 * 16 + 16; k++) sum += u->q[k];
        CHECK(act_sum16(u, at / 16) == sum, "sum at %d", i);
        CHECK(u->start32[at / 32] ==
                  u->start16[at / 16] - ACT_START + u->start16[at / 16 ^ 1], "sums at %d", i);
        CHECK(u->q[at] >= -127, "q at %d", i);
        if (i >= n) continue;
        for (int k = i / 32 * 32; k < i / 32 * 32 + 32; k++)
            top = isfinite(x[k]) && top < INFINITY ? fmaxf(top, fabsf(x[k])) : INFINITY;
        if (top == INFINITY) CHECK(isnan(d) && u->q[at] == 0, "not finite at %d", i);
        else CHECK(fabsf(d * u->q[at] - x[i]) <= 0.5001f * d || top < 0x1p-100f,
                   "%g became %g", (double)x[i], (double)(d * u->q[at]));
    }
    free(x);
    free(want);
    free(got);
}

static void test_rmsnorm(const backend *b) {
    int n = 1 + below(300);
    float size = below(4) ? 3.0f : 1e-6f, eps = 1e-6f;
    float *x = random_floats(n, size), *w = random_floats(n, 2), *y = malloc((size_t)n * sizeof *y);
    double squares = 0;
    if (!y) abort();
    for (int i = 0; i < n; i++) squares += (double)x[i] * x[i];
    double scale = 1 / sqrt(squares / n + (double)eps);
    b->rmsnorm(y, x, w, n, eps);
    for (int i = 0; i < n; i++) {
        double want = x[i] * scale * w[i];
        CHECK(fabs(y[i] - want) <= 3e-6 * fabs(want), "%s: %g, exactly %g", b->name, (double)y[i],
              want);
    }
    b->rmsnorm(x, x, w, n, eps);
    CHECK(memcmp(x, y, (size_t)n * sizeof *x) == 0, "%s in place", b->name);
    free(x);
    free(w);
    free(y);
}

static void test_rope(const backend *b) {
    int half_n = 1 + below(70);
    float *x = random_floats(2 * half_n, 4), *angle = random_floats(half_n, 100);
    float *cosines = malloc((size_t)half_n * sizeof(float));
    float *sines = malloc((size_t)half_n * sizeof(float));
    float *y = malloc(2 * (size_t)half_n * sizeof(float));
    if (!cosines || !sines || !y) abort();
    for (int i = 0; i < half_n; i++) cosines[i] = cosf(angle[i]), sines[i] = sinf(angle[i]);
    memcpy(y, x, 2 * (size_t)half_n * sizeof(float));
    b->rope(y, cosines, sines, 2 * half_n);
    for (int i = 0; i < half_n; i++) {
        double p = x[i], q = x[i + half_n], c = cosines[i], s = sines[i];
        CHECK(fabs(y[i] - (p * c - q * s)) <= 1e-6 * (fabs(p) + fabs(q)), "%s at %d", b->name, i);
        CHECK(fabs(y[i + half_n] - (p * s + q * c)) <= 1e-6 * (fabs(p) + fabs(q)), "%s at %d",
              b->name, i);
    }
    free(x);
    free(angle);
    free(cosines);
    free(sines);
    free(y);
}

static void test_swiglu(const backend *b) {
    static const float sizes[] = {1, 10, 100, 1e4f, 1e-4f};
    int n = 1 + below(200);
    float *gate = random_floats(n, sizes[below(5)]), *up = random_floats(n, 3);
    float *y = malloc((size_t)n * sizeof(float));
    if (!y) abort();
    gate[below(n)] = NAN;
    memcpy(y, gate, (size_t)n * sizeof(float));
    b->swiglu(y, up, n);
    for (int i = 0; i < n; i++) {
        double want = gate[i] / (1 + exp(-(double)gate[i])) * up[i];
        CHECK(isnan(gate[i]) ? isnan(y[i]) : fabs(y[i] - want) <= 1e-6 * fabs(want) + 1e-30,
              "%s: silu(%g) %g, exactly %g", b->name, (double)gate[i], (double)y[i], want);
    }
    free(gate);
    free(up);
    free(y);
}

static void test_axpy(const backend *b) {
    int n = 1 + below(200);
    float *x = random_floats(n, 5), *y = random_floats(n, 5), a = uniform() * 3;
    float *got = malloc((size_t)n * sizeof(float));
    if (!got) abort();
    memcpy(got, y, (size_t)n * sizeof(float));
    b->axpy(got, a, x, n);
    for (int i = 0; i < n; i++)
        CHECK(fabs(got[i] - ((double)y[i] + (double)a * x[i])) <=
                  2e-7 * (fabs((double)y[i]) + fabs((double)a * x[i])), "%s at %d", b->name, i);
    memcpy(x, y, (size_t)n * sizeof(float)); /* in two parts: the same bits */
    int cut = below(n + 1);
    for (int i = 0; i < n; i++) x[i] = uniform();
    memcpy(got, y, (size_t)n * sizeof(float));
    b->axpy(got, a, x, n);
    b->axpy(y, a, x, cut);
    b->axpy(y + cut, a, x + cut, n - cut);
    CHECK(memcmp(got, y, (size_t)n * sizeof(float)) == 0, "%s in two parts", b->name);
    free(x);
    free(y);
    free(got);
}

static void test_to_f16(const backend *b) {
    int n = 1 + below(100);
    float *x = random_floats(n, 1);
    f16_t *got = malloc((size_t)n * sizeof *got);
    if (!got) abort();
    for (int i = 0; i < n; i++) {
        uint32_t bits = random_bits();
        if (below(2)) memcpy(x + i, &bits, sizeof bits);
        else x[i] = ldexpf(x[i], below(40) - 22);
    }
    b->to_f16(x, got, n);
    for (int i = 0; i < n; i++)
        CHECK(isnan(x[i]) ? isnan(f16_to_f32(got[i])) : got[i] == f32_to_f16(x[i]),
              "%s: %a became %04x", b->name, (double)x[i], got[i]);
    free(x);
    free(got);
}

/* ---- attention ---------------------------------------------------------------------------- */

/* A cache of n positions, and what it stands for. */
typedef struct {
    uint32_t type;
    int dim, n;
    double *key, *value; /* [n][dim] */
    uint8_t *k, *v;      /* whole tiles; all ones, which are NaN, where nothing was stored */
} cache;

static uint8_t *new_tiles(uint32_t type, int dim, int n) {
    size_t bytes = (size_t)((n + KV_TILE - 1) / KV_TILE) * kv_tile_bytes(type, dim);
    return memset(allocate(32, bytes), 0xff, bytes);
}

/* Stores x as item i of a position, at its place in the layout; returns what is read back. */
static double store_item(const cache *c, bool key, int t, int i, float x, f16_t scale) {
    int in_tile = t % KV_TILE, width = kv_width(c->dim);
    uint8_t *tile = (key ? c->k : c->v) + (size_t)(t / KV_TILE) * kv_tile_bytes(c->type, c->dim);
    int at = key ? i * KV_TILE + in_tile : in_tile * width + i;
    if (c->type == TYPE_F32) {
        memcpy(tile + (size_t)at * sizeof x, &x, sizeof x);
        return x;
    }
    if (c->type == TYPE_F16) {
        f16_t h = f32_to_f16(x);
        memcpy(tile + (size_t)at * sizeof h, &h, sizeof h);
        return f16_to_f32(h);
    }
    int8_t q = (int8_t)(below(255) - 127);
    tile[at] = (uint8_t)q;
    memcpy(tile + width * KV_TILE + (i / 32 * KV_TILE + in_tile) * 2, &scale, sizeof scale);
    return (double)q * f16_to_f32(scale);
}

static cache new_cache(int n, float size) {
    static const uint32_t cache_types[] = {TYPE_F32, TYPE_F16, TYPE_Q8_0};
    static const int dims[] = {2, 16, 24, 30, 80, 32, 64, 96, 128}, n_dims = 9, n_odd = 5;
    cache c = {.type = cache_types[below(3)], .n = n};
    c.dim = dims[c.type == TYPE_Q8_0 ? n_odd + below(n_dims - n_odd) : below(n_dims)];
    c.key = malloc((size_t)(n * c.dim) * sizeof *c.key);
    c.value = malloc((size_t)(n * c.dim) * sizeof *c.value);
    if (!c.key || !c.value) abort();
    c.k = new_tiles(c.type, c.dim, n);
    c.v = new_tiles(c.type, c.dim, n);
    bool equal = below(8) == 0; /* all keys alike, so all scores */
    for (int t = 0; t < n; t++) {
        uint64_t before = state;
        if (equal) state = 7;
        f16_t scale = 0;
        for (int i = 0; i < c.dim; i++) {
            if (i % 32 == 0) scale = below(9) ? f32_to_f16(fabsf(uniform()) * size / 64) : 0;
            c.key[t * c.dim + i] = store_item(&c, true, t, i, uniform() * size, scale);
        }
        if (equal) state = before;
        for (int i = 0; i < c.dim; i++) {
            if (i % 32 == 0) scale = f32_to_f16(uniform() * 0.05f);
            c.value[t * c.dim + i] = store_item(&c, false, t, i, uniform() * 3, scale);
        }
    }
    return c;
}

static void free_cache(cache *c) {
    free(c->key);
    free(c->value);
    free(c->k);
    free(c->v);
}

/* The sums of all parts of the rows; the blocks are computed from the last to the first. */
static void attend_all(const backend *b, const attend_args *a, float *sums) {
    int n_blocks = (a->n_kv[a->n_rows - 1] + KV_BLOCK - 1) / KV_BLOCK;
    size_t part = attend_part(a->head_dim), size = (size_t)a->n_rows * part;
    float *parts = random_floats(n_blocks * (int)size, 1);
    for (int k = n_blocks - 1; k >= 0; k--) b->attend(a, k, parts + (size_t)k * size);
    memcpy(sums, parts, size * sizeof *sums);
    for (int k = 1; k < n_blocks; k++)
        for (int r = 0; r < a->n_rows; r++)
            if (a->n_kv[r] > k * KV_BLOCK)
                b->merge(sums + (size_t)r * part, parts + (size_t)k * size + (size_t)r * part,
                         a->head_dim);
    free(parts);
}

static void check_row(const backend *b, const attend_args *a, const cache *c, int r,
                      const float *sums) {
    int n = a->n_kv[r], dim = c->dim;
    const float *sum = sums + (size_t)r * attend_part(dim);
    double *p = malloc((size_t)n * sizeof *p), top = -INFINITY, total = 0, size = 0;
    if (!p) abort();
    for (int t = 0; t < n; t++) {
        double parts = 0;
        p[t] = 0;
        for (int i = 0; i < dim; i++) {
            double product = a->q[i * ATTEND_ROWS + r] * c->key[t * dim + i];
            p[t] += product;
            parts += fabs(product);
        }
        top = fmax(top, p[t]);
        size = fmax(size, parts);
    }
    for (int t = 0; t < n; t++) total += p[t] = exp(p[t] - top);
    for (int i = 0; i < dim; i++) {
        double want = 0, got = sum[i] / sum[kv_width(dim) + 1];
        for (int t = 0; t < n; t++) want += p[t] / total * c->value[t * dim + i];
        /* a score that is off by e changes its weight by a factor 1 + e */
        CHECK(fabs(got - want) <= 7 * (1e-6 + 4e-6 * size),
              "%s: type %d, row %d of %d of %d, %d positions: %g, exactly %g", b->name,
              (int)c->type, r, a->n_rows, dim, n, got, want);
    }
    free(p);
}

/* Rows [first, last) alone: the same bits as among the others. */
static void check_alone(const backend *b, const attend_args *a, int first, int last,
                        const float *sums) {
    size_t part = attend_part(a->head_dim);
    attend_args some = *a;
    some.n_rows = last - first;
    some.n_kv += first;
    some.q += first;
    float *alone = random_floats(some.n_rows * (int)part, 1);
    attend_all(b, &some, alone);
    for (int r = first; r < last; r++) {
        const float *x = alone + (size_t)(r - first) * part, *y = sums + (size_t)r * part;
        int width = kv_width(a->head_dim);
        CHECK(memcmp(x, y, (size_t)a->head_dim * sizeof *x) == 0 &&
                  memcmp(x + width, y + width, 2 * sizeof *x) == 0,
              "%s: row %d of %d, among rows %d to %d", b->name, r, a->n_rows, first, last);
    }
    free(alone);
}

static void test_attend(const backend *b) {
    bool large = below(20) == 0;
    int group = 1 + below(16), n_rows = 1 + below(large ? ATTEND_ROWS : 20);
    int n_queries = (n_rows + group - 1) / group, n = n_queries + below(large ? 700 : 50);
    cache c = new_cache(n, below(4) ? 3.0f : 60.0f);
    float *q = random_floats(c.dim * ATTEND_ROWS, 1), *sums, *scratch;
    int32_t n_kv[ATTEND_ROWS];
    for (int r = 0; r < n_rows; r++) n_kv[r] = n - n_queries + 1 + r / group;
    sums = random_floats(n_rows * (int)attend_part(c.dim), 1);
    scratch = allocate(64, attend_scratch(c.dim) * sizeof *scratch);
    attend_args a = {.type = c.type, .head_dim = c.dim, .n_rows = n_rows, .q = q, .n_kv = n_kv,
                     .k = c.k, .v = c.v, .scratch = scratch};
    attend_all(b, &a, sums);
    check_row(b, &a, &c, 0, sums);
    check_row(b, &a, &c, n_rows - 1, sums);
    int first = below(n_rows), last = first + 1 + below(n_rows - first);
    check_alone(b, &a, first, last, sums);
    check_alone(b, &a, first, first + 1, sums);
    if (c.type == TYPE_F32 && n_kv[0] < n) { /* what a row does not see does not touch it */
        for (int i = 0; i < c.dim; i++) {
            store_item(&c, true, n - 1, i, NAN, 0);
            store_item(&c, false, n - 1, i, INFINITY, 0);
        }
        attend_all(b, &a, sums);
        check_row(b, &a, &c, 0, sums);
        CHECK(isnan(sums[(size_t)(n_rows - 1) * attend_part(c.dim)]), "%s: a NaN is lost", b->name);
    }
    free_cache(&c);
    free(q);
    free(sums);
    free(scratch);
}

/* A part counts by its largest score: parts far apart, parts alike. */
static void test_merge(const backend *b) {
    int dim = 1 + below(130), width = kv_width(dim);
    size_t size = attend_part(dim);
    float *sum = random_floats((int)size, 5), *part = random_floats((int)size, 5);
    float *got = malloc(size * sizeof *got);
    if (!got) abort();
    sum[width] = uniform() * 100, sum[width + 1] = 1 + below(100);
    part[width] = below(3) ? uniform() * 100 : sum[width], part[width + 1] = 1 + below(100);
    memcpy(got, sum, size * sizeof *got);
    b->merge(got, part, dim);
    double top = fmax(sum[width], part[width]);
    double old = exp(sum[width] - top), new = exp(part[width] - top);
    double total = old * sum[width + 1] + new * part[width + 1];
    CHECK((double)got[width] == top, "%s: top", b->name);
    CHECK(fabs(got[width + 1] - total) <= 1e-6 * total, "%s: sum %g, exactly %g", b->name,
          (double)got[width + 1], total);
    for (int i = 0; i < dim; i++)
        CHECK(fabs(got[i] - (old * sum[i] + new * part[i])) <= 5e-6, "%s at %d", b->name, i);
    free(sum);
    free(part);
    free(got);
}

/* ---- the choice of a backend ------------------------------------------------------------------ */

static void test_pick(void) {
    CHECK(backend_all()[0] == &backend_scalar, "the first is scalar");
    CHECK(backend_pick("scalar") == &backend_scalar, "scalar by name");
    CHECK(backend_pick("") == NULL && backend_pick("mmx") == NULL, "unknown names");
    const backend *best = backend_pick(NULL);
    CHECK(best && best->available(), "one is always there");
    for (const backend *const *b = backend_all(); *b; b++)
        if ((*b)->available()) CHECK(backend_pick((*b)->name) == *b, "%s by name", (*b)->name);
}

int main(int argc, char **argv) {
    int cases = argc > 1 ? atoi(argv[1]) : 2000; /* of each operation and backend */
    test_pick();
    for (int i = 0; i < cases; i++) test_scalar_product(types[i % N_TYPES]);
    for (const backend *const *b = backend_all(); *b; b++) {
        if (!(*b)->available()) {
            printf("kernels: %s is not available here\n", (*b)->name);
            continue;
        }
        for (int i = 0; i < cases; i++) {
            test_product(*b, types[i % N_TYPES]);
            test_quantize(*b);
            test_rmsnorm(*b);
            test_rope(*b);
            test_swiglu(*b);
            test_axpy(*b);
            test_to_f16(*b);
            test_merge(*b);
            test_attend(*b);
        }
        printf("kernels: %s, %d cases of each operation\n", (*b)->name, cases);
    }
    if (!failures) puts("kernels: ok");
    return failures != 0;
}
