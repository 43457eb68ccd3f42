/* scalar.c - the backend in plain C: the oracle that the others are tested against. */
#include "codec.h"
#include "unpack.h"

enum { TILE = 16 }; /* columns that share an unpacked unit */

static int always(void) {
    return 1;
}

/* ---- matrix products -------------------------------------------------------- */

/* Adds n_groups terms to the lanes of one row and column, see unpack.h. */
static void add_unit(unit_kind kind, const unit *u, int n_groups, act x, float lane[GROUPS]) {
    for (int g = 0; g < n_groups; g++) {
        int32_t a = 0, b = 0;
        for (int i = 2 * g; i < 2 * g + 2; i++) {
            int32_t dot = 0;
            for (int k = 16 * i; k < 16 * i + 16; k++) dot += u->q[k] * x.q[k];
            a += u->scale[i] * dot;
            b += u->bias[i] * x.sum[i];
        }
        float scale = u->d[g] * x.d[g];
        if (kind == MINIMUM)
            lane[g] += (float)a * scale - (float)b * (u->dmin[g] * x.d[g]);
        else
            lane[g] += (float)(a - b) * scale;
    }
}

static float sum_lanes(float lane[8]) {
    for (int step = 4; step; step /= 2)
        for (int i = 0; i < step; i++) lane[i] += lane[i + step];
    return lane[0];
}

static void matmul_quantized(const matmul_args *a, int row0, int row1) {
    const unpacker *type = unpacker_of(a->type);
    unit u;
    for (int first = 0; first < a->n_cols; first += TILE) {
        int last = first + TILE < a->n_cols ? first + TILE : a->n_cols;
        for (int r = row0; r < row1; r++) {
            const uint8_t *w = row_w(a, r);
            float lane[TILE][GROUPS] = {{0}};
            for (int i = 0; i < a->n_in; i += UNIT, w += type->bytes) {
                int n_groups = groups_at(i, a->n_in);
                unpack(type, w, n_groups, &u);
                for (int c = first; c < last; c++)
                    add_unit(type->kind, &u, n_groups, act_at(column_x(a, c), a->n_in, i),
                             lane[c - first]);
            }
            for (int c = first; c < last; c++) column_y(a, c)[r] = sum_lanes(lane[c - first]);
        }
    }
}

/* Float weights: eight interleaved sums, added by halves. */
static void matmul_float(const matmul_args *a, int row0, int row1) {
    const weight_type *type = weight_type_of(a->type);
    for (int r = row0; r < row1; r++) {
        const uint8_t *w = row_w(a, r);
        for (int c = 0; c < a->n_cols; c++) {
            const float *x = column_x(a, c);
            float lane[8] = {0}, buffer[UNIT];
            for (int i = 0; i < a->n_in; i += UNIT) {
                int n = a->n_in - i < UNIT ? a->n_in - i : UNIT;
                type->decode(w + (size_t)i * (size_t)type->bytes, buffer, (size_t)n);
                for (int k = 0; k < n; k++) lane[k % 8] += buffer[k] * x[i + k];
            }
            column_y(a, c)[r] = sum_lanes(lane);
        }
    }
}

static void matmul(const matmul_args *a, int row0, int row1) {
    if (type_takes_float(a->type))
        matmul_float(a, row0, row1);
    else
        matmul_quantized(a, row0, row1);
}

/* ---- activations -------------------------------------------------------------- */

static void quantize(const float *x, void *row, int n, int first, int last) {
    int8_t *q = row;
    float *d = (float *)(void *)(q + n);
    int16_t *sum = (int16_t *)(void *)(d + n / 32);
    for (int i = first; i < last; i += 32) {
        uint32_t top_bits = 0;
        for (int k = i; k < i + 32; k++) {
            uint32_t bits;
            memcpy(&bits, x + k, sizeof bits);
            bits &= 0x7fffffff;
            top_bits = bits > top_bits ? bits : top_bits;
        }
        float factor;
        bool some = act_scale(top_bits, &d[i / 32], &factor);
        sum[i / 16] = sum[i / 16 + 1] = 0;
        for (int k = i; k < i + 32; k++) {
            /* 1.5 * 2^23 leaves no bits for a fraction: the addition rounds. */
            q[k] = some ? (int8_t)(x[k] * factor + 0x1.8p23f - 0x1.8p23f) : 0;
            sum[k / 16] = (int16_t)(sum[k / 16] + q[k]);
        }
    }
}

static void rmsnorm(float *y, const float *x, const float *w, int n, float eps) {
    float lane[8] = {0};
    for (int i = 0; i < n; i++) lane[i % 8] += x[i] * x[i];
    float scale = 1 / sqrtf(sum_lanes(lane) / (float)n + eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
}

static void rope(float *x, const float *cos, const float *sin, int n) {
    for (int i = 0; i < n / 2; i++) {
        float a = x[i], b = x[i + n / 2];
        x[i] = a * cos[i] - b * sin[i];
        x[i + n / 2] = a * sin[i] + b * cos[i];
    }
}

static void swiglu(float *gate, const float *up, int n) {
    for (int i = 0; i < n; i++) gate[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

static void axpy(float *y, float a, const float *x, int n) {
    for (int i = 0; i < n; i++) y[i] += a * x[i];
}

static void to_f16(const float *x, f16_t *y, int n) {
    for (int i = 0; i < n; i++) y[i] = f32_to_f16(x[i]);
}

/* ---- attention ------------------------------------------------------------------ */

/* Item i of the key (value) of position t. */
static float kv_item(const attend_args *a, const void *kv, bool key, int t, int i) {
    int width = kv_width(a->head_dim), in_tile = t % KV_TILE;
    const uint8_t *tile = (const uint8_t *)kv +
                          (size_t)(t / KV_TILE) * kv_tile_bytes(a->type, a->head_dim);
    int at = key ? i * KV_TILE + in_tile : in_tile * width + i;
    if (a->type == TYPE_F32) return ((const float *)(const void *)tile)[at];
    if (a->type == TYPE_F16) return half(((const f16_t *)(const void *)tile)[at]);
    const f16_t *scales = (const f16_t *)(const void *)(tile + KV_TILE * width);
    return (float)((const int8_t *)tile)[at] * half(scales[i / 32 * KV_TILE + in_tile]);
}

static void attend(const attend_args *a, int block, float *parts) {
    int start = block * KV_BLOCK, width = kv_width(a->head_dim);
    for (int r = 0; r < a->n_rows; r++) {
        int end = a->n_kv[r] < start + KV_BLOCK ? a->n_kv[r] : start + KV_BLOCK;
        float *out = parts + (size_t)r * attend_part(a->head_dim), *p = a->scratch;
        if (end <= start) continue;
        float top = -INFINITY, sum = 0;
        for (int t = start; t < end; t++) {
            float dot = 0;
            for (int i = 0; i < a->head_dim; i++)
                dot += a->q[i * ATTEND_ROWS + r] * kv_item(a, a->k, true, t, i);
            p[t - start] = dot;
            top = fmaxf(top, dot);
        }
        for (int t = start; t < end; t++) sum += p[t - start] = expf(p[t - start] - top);
        for (int i = 0; i < width; i++) out[i] = 0;
        for (int t = start; t < end; t++)
            for (int i = 0; i < a->head_dim; i++)
                out[i] += p[t - start] * kv_item(a, a->v, false, t, i);
        out[width] = top;
        out[width + 1] = sum;
    }
}

static void merge(float *sum, const float *part, int head_dim) {
    int width = kv_width(head_dim);
    float top = fmaxf(sum[width], part[width]);
    float old = expf(sum[width] - top), new = expf(part[width] - top);
    for (int i = 0; i < head_dim; i++) sum[i] = sum[i] * old + part[i] * new;
    sum[width] = top;
    sum[width + 1] = sum[width + 1] * old + part[width + 1] * new;
}

const backend backend_scalar = {
    .name = "scalar",
    .available = always,
    .matmul = matmul,
    .quantize = quantize,
    .rmsnorm = rmsnorm,
    .rope = rope,
    .swiglu = swiglu,
    .axpy = axpy,
    .attend = attend,
    .merge = merge,
    .to_f16 = to_f16,
};
