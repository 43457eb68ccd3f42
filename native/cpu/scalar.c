/* scalar.c - the backend in plain C: the oracle that the others are tested against. */
#include "unpack.h"

enum { TILE = 16 }; /* columns that share an unpacked unit */

static int always(void) {
    return 1;
}

/* ---- matrix products -------------------------------------------------------- */

/* Adds the terms of a unit to y, see product.h. */
static float add_unit(const unpacker *type, const unit *u, int n_groups, const act_unit *x,
                      float y) {
    for (int first = 0; first < 32 * n_groups; first += type->run) {
        int32_t dot = 0, sum = 0;
        for (int i = first; i < first + type->run; i++) {
            dot += u->q[i] * x->q[i];
            sum += x->q[i];
        }
        float d = x->d[first / 32];
        y = fmaf((float)dot * u->scale[first / 16], d, y);
        if (type->min) y = fmaf(-u->min[first / 16], d * (float)sum, y);
    }
    return y;
}

static void matmul_quantized(const matmul_args *a, int row0, int row1) {
    const unpacker *type = unpacker_of(a->type);
    unit u;
    for (int first = 0; first < a->n_cols; first += TILE) {
        int last = first + TILE < a->n_cols ? first + TILE : a->n_cols;
        for (int r = row0; r < row1; r++) {
            const uint8_t *w = row_w(a, r);
            float y[TILE] = {0};
            for (int i = 0; i < a->n_in; i += UNIT, w += unit_bytes(a->type)) {
                int n_groups = groups_at(i, a->n_in);
                type->unpack(w, n_groups, &u);
                for (int c = first; c < last; c++) {
                    const act_unit *x = column_x(a, c);
                    y[c - first] = add_unit(type, &u, n_groups, x + i / UNIT, y[c - first]);
                }
            }
            for (int c = first; c < last; c++) column_y(a, c)[r] = y[c - first];
        }
    }
}

static float sum_lanes(float lane[8]) {
    for (int step = 4; step; step /= 2)
        for (int i = 0; i < step; i++) lane[i] += lane[i + step];
    return lane[0];
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

static void quantize(const float *x, act_unit *act, int n, int first, int last) {
    for (int i = first; i < last; i += 32) {
        act_unit *u = act + i / UNIT;
        int g = i % UNIT / 32, sum[2] = {0, 0};
        uint32_t top_bits = 0;
        for (int k = i; k < i + 32; k++) {
            uint32_t bits;
            memcpy(&bits, x + k, sizeof bits);
            bits &= 0x7fffffff;
            top_bits = bits > top_bits ? bits : top_bits;
        }
        float factor;
        bool some = act_scale(top_bits, &u->d[g], &factor);
        for (int k = 0; k < 32; k++) {
            /* 1.5 * 2^23 leaves no bits for a fraction: the addition rounds. */
            int q = some ? (int)(x[i + k] * factor + 0x1.8p23f - 0x1.8p23f) : 0;
            u->q[32 * g + k] = (int8_t)q;
            sum[k / 16] += q;
        }
        act_sums(u, g, sum[0], sum[1]);
    }
    if (last == n) act_fill(act, n);
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

/* ---- the peak ---------------------------------------------------------------------- */

/* As the products above compute: what the compiler makes of plain C. */
static int64_t peak(peak_kind kind, int64_t n) {
    enum { ROW = 256 };
    int8_t w[ROW], x[ROW];
    float wf[ROW], xf[ROW], lane[8] = {0};
    int32_t dot = 0;
    for (int k = 0; k < ROW; k++) {
        w[k] = x[k] = (int8_t)(k % 3 - 1);
        wf[k] = xf[k] = (float)(k % 3 - 1);
    }
    for (int64_t i = 0; i < n; i++) {
        __asm__ volatile("" : : "r"(w), "r"(x), "r"(wf), "r"(xf) : "memory"); /* read them anew */
        if (kind == PEAK_INT8)
            for (int k = 0; k < ROW; k++) dot += w[k] * x[k];
        else
            for (int k = 0; k < ROW; k += 8)
                for (int j = 0; j < 8; j++) lane[j] += wf[k + j] * xf[k + j];
        dot &= 0xffffff;
    }
    __asm__ volatile("" : : "r"(dot), "r"(lane) : "memory");
    return n * ROW;
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
    .peak = peak,
    .encode = &encoders_baseline,
};
