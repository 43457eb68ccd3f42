/* Quantized weights as the device reads them, and their products with vectors, against scalar. */
#include <algorithm>
#include <memory>

#include "gpu/kernels/blocks.h"

#include "device.h"

extern "C" {
#include "decode.h"
}

/* ---- random weights --------------------------------------------------------------- */

static f16_t random_scale(Random *r) {
    switch (r->below(16)) {
    case 0: return 0;
    case 1: return (f16_t)(1 + r->below(1023)); /* subnormal */
    case 2: return f32_to_f16(r->below(2) ? 65504.0f : -65504.0f);
    default: return f32_to_f16(r->uniform() * 0.05f);
    }
}

/* Where a block holds its f16 scales; -1: no second one. */
static void scale_offsets(uint32_t type, int at[2]) {
    at[0] = 0, at[1] = -1;
    switch (type) {
    case TYPE_Q4_1: case TYPE_Q5_1: case TYPE_Q4_K: case TYPE_Q5_K: at[1] = 2; break;
    case TYPE_Q2_K: at[0] = offsetof(block_q2_K, d), at[1] = offsetof(block_q2_K, dmin); break;
    case TYPE_Q3_K: at[0] = offsetof(block_q3_K, d); break;
    case TYPE_Q6_K: at[0] = offsetof(block_q6_K, d); break;
    }
}

/* Rows of n weights: random bits, or all of them set, or none. */
static std::vector<uint8_t> random_weights(Random *r, uint32_t type, int n, int rows) {
    const weight_type *t = weight_type_of(type);
    std::vector<uint8_t> w((size_t)rows * (size_t)(n / t->block * t->bytes));
    if (type_takes_float(type)) {
        for (size_t i = 0; i < w.size(); i += (size_t)t->bytes) {
            float f = r->uniform();
            f16_t h = f32_to_f16(f);
            uint16_t b = (uint16_t)(float_to_bits(f) >> 16);
            const void *from = type == TYPE_F32   ? (const void *)&f
                               : type == TYPE_F16 ? (const void *)&h
                                                  : (const void *)&b;
            std::memcpy(&w[i], from, (size_t)t->bytes);
        }
        return w;
    }
    int fill = r->below(8), at[2];
    for (uint8_t &byte : w)
        byte = fill == 0 ? (type == TYPE_Q8_0 ? 0x80 : 0xff) : fill == 1 ? 0 : (uint8_t)r->bits();
    scale_offsets(type, at);
    for (size_t b = 0; b < w.size(); b += (size_t)t->bytes)
        for (int i = 0; i < 2 && at[i] >= 0; i++) {
            f16_t d = random_scale(r);
            std::memcpy(&w[b + (size_t)at[i]], &d, sizeof d);
        }
    return w;
}

/* ---- reading ---------------------------------------------------------------------- */

template <typename Type> static void test_read(Random *r, uint32_t type) {
    const weight_type *t = weight_type_of(type);
    int n = t->block * (1 + r->below(4)), rows = 3, row_bytes = n / t->block * t->bytes;
    Device device(r->bits());
    Array<uint8_t> w(device, random_weights(r, type, n, rows));
    std::vector<float> wanted((size_t)n);
    CHECK(Type::bytes == t->bytes && 32 * Type::groups == t->block, "%s", t->name);
    for (int row = 0; row < rows; row++) {
        t->decode(w + row * row_bytes, wanted.data(), (size_t)n);
        for (int i = 0; i < n; i++) {
            weights got;
            Type::read(w + row * row_bytes, i / 32, got);
            int half = i % 32 / 16, q = (int8_t)(got.q[i % 32 / 4] >> i % 4 * 8);
            float product = got.scale[half] * (float)q, min = got.min[half];
            float size = std::fabs(product) + std::fabs(min);
            CHECK(std::fabs(product - min - wanted[(size_t)i]) <= 1e-6f * size,
                  "%s, weight %d: %g - %g, not %g", t->name, i, product, min, wanted[(size_t)i]);
            CHECK(Type::run == 16 || got.scale[0] == got.scale[1], "%s", t->name);
            CHECK(Type::minima || min == 0, "%s", t->name);
        }
    }
}

/* ---- products --------------------------------------------------------------------- */

/* Vectors as products take them, and as floats for bounds. */
struct Vectors {
    bool quantized;
    int n;
    std::vector<float> f;
    std::vector<act_unit> units;
    std::vector<act_group> groups;

    Vectors(uint32_t type, std::vector<float> x, int n_in)
        : quantized(!type_takes_float(type)), n(n_in), f(std::move(x)) {
        if (!quantized) return;
        size_t per_row = act_bytes(n) / sizeof(act_unit), rows = f.size() / (size_t)n;
        units.resize(rows * per_row);
        for (size_t i = 0; i < rows; i++)
            backend_scalar.quantize(f.data() + i * (size_t)n, &units[i * per_row], n, 0, n);
        groups = groups_of(f, n);
    }
    const void *on_cpu() const {
        return quantized ? (const void *)units.data() : (const void *)f.data();
    }
    size_t stride() const { return quantized ? act_bytes(n) : (size_t)n * sizeof(float); }
};

/* On the device. */
struct DeviceVectors {
    Array<float> f;
    Array<act_group> groups;
    bool quantized;

    DeviceVectors(gpu *g, const Vectors &x)
        : f(g, x.f), groups(g, x.groups), quantized(x.quantized) {}
    const void *get() const {
        return quantized ? (const void *)(act_group *)groups : (const void *)(float *)f;
    }
};

static std::vector<float> random_vectors(Random *r, size_t n) {
    std::vector<float> x = r->floats(n, r->below(8) ? 3.0f : 1e4f);
    if (r->below(8) == 0) x[(size_t)r->below((int)n)] = r->below(2) ? INFINITY : NAN;
    return x;
}

/* y[n_columns][n_out] by scalar; size: what the terms of each sum to without their signs. */
static std::vector<float> multiplied(uint32_t type, const std::vector<uint8_t> &w, int n_out,
                                     const Vectors &x, std::vector<double> *size) {
    int n_columns = (int)x.f.size() / x.n;
    const weight_type *t = weight_type_of(type);
    size_t row_bytes = w.size() / (size_t)n_out, n = (size_t)x.n;
    std::vector<float> y((size_t)(n_columns * n_out)), row(n);
    matmul_args a = {type, x.n, w.data(), row_bytes, x.on_cpu(), x.stride(), nullptr, y.data(),
                     (size_t)n_out, nullptr, n_columns, nullptr, 0};
    backend_scalar.matmul(&a, 0, n_out);
    size->assign(y.size(), 0);
    for (int r = 0; r < n_out; r++) {
        t->decode(w.data() + (size_t)r * row_bytes, row.data(), n);
        float most = 0; /* of its 256: a small weight may be the difference of large terms */
        for (size_t i = 0; i < n; i++) {
            if (i % 256 == 0) most = 0;
            for (size_t k = i; i % 256 == 0 && k < i + 256 && k < n; k++)
                most = std::fmax(most, std::fabs(row[k]));
            for (size_t c = 0; c < (size_t)n_columns; c++)
                (*size)[c * (size_t)n_out + (size_t)r] += std::fabs((double)most * x.f[c * n + i]);
        }
    }
    return y;
}

/* What is not finite must be the same. */
static bool close(float got, float wanted, double bound) {
    if (std::isnan(wanted)) return std::isnan(got);
    if (std::isinf(wanted)) return got == wanted;
    return std::fabs((double)got - wanted) <= bound;
}

static int width_of(uint32_t type, Random *r) {
    int block = weight_type_of(type)->block;
    return block == 256 ? 256 * (1 + r->below(5)) : 32 * (1 + r->below(40));
}

/* y: entries, or blocks of 8 columns. */
static gpu_grid grid_for(Random *r, int n_columns, int n_blocks, int y) {
    int columns = std::min(n_columns, 8);
    return {n_blocks, y, 1, 32 << r->below(columns > 4 ? 3 : 4), 128 * columns};
}

static void test_product(Random *r, uint32_t type) {
    const char *name = weight_type_of(type)->name;
    int n_in = width_of(type, r), n_out = 1 + r->below(21), n_columns = 1 + r->below(12);
    int add = r->below(2);
    std::vector<uint8_t> w = random_weights(r, type, n_in, n_out);
    Vectors x(type, random_vectors(r, (size_t)(n_columns * n_in)), n_in);
    std::vector<float> before = r->floats((size_t)(n_columns * n_out), 1), first;
    std::vector<double> size;
    std::vector<float> wanted = multiplied(type, w, n_out, x, &size);
    for (int seed = 0; seed < 3; seed++) {
        Device device((uint64_t)seed + r->bits());
        int columns = seed == 2 ? 1 + r->below(n_columns) : n_columns; /* fewer: the same bits */
        Array<uint8_t> dw(device, w);
        DeviceVectors dx(device, x);
        Array<float> y(device, before);
        int n_pairs = 1 + r->below(8), blocks = ((n_out + 1) / 2 + n_pairs - 1) / n_pairs;
        matvec_args a = {dw, nullptr, nullptr, nullptr, dx.get(), y, nullptr, n_in, n_out,
                         columns, 1, n_pairs, add, {}};
        device.run(matvec_kernel(type, columns), grid_for(r, columns, blocks, (columns + 7) / 8), a);
        std::vector<float> got = y.read();
        size_t n = (size_t)(columns * n_out);
        for (size_t i = 0; seed == 0 && i < n; i++)
            CHECK(close(got[i], add ? before[i] + wanted[i] : wanted[i], 3e-6 * (size[i] + 1)),
                  "%s, %d x %d, %zu: %g, not %g", name, n_in, n_out, i, got[i], wanted[i]);
        if (seed)
            CHECK(!std::memcmp(got.data(), first.data(), n * sizeof(float)),
                  "%s: threads or columns show", name);
        for (size_t i = n; i < got.size(); i++) CHECK(got[i] == before[i], "%s: beyond", name);
        if (seed == 0) first = got;
    }
}

/* Of several matrices in a launch each has what it has alone, and nothing behind that. */
static void test_alike(Random *r, uint32_t type) {
    enum { MATRICES = 1 + MORE_OUTPUTS };
    int n_in = width_of(type, r), n_columns = 1 + r->below(10), n_out[MATRICES], most = 0;
    int n_pairs = 1 + r->below(8), blocks_of_columns = (n_columns + 7) / 8;
    Device device(r->bits());
    DeviceVectors x(device, Vectors(type, random_vectors(r, (size_t)(n_columns * n_in)), n_in));
    std::vector<std::unique_ptr<Array<uint8_t>>> w;
    std::vector<std::unique_ptr<Array<float>>> alone, together;
    matvec_args all = {nullptr, nullptr, nullptr, nullptr, x.get(), nullptr, nullptr, n_in, 0,
                       n_columns, 1, n_pairs, 0, {}};
    for (int i = 0; i < MATRICES; i++) {
        n_out[i] = 1 + r->below(30);
        most = std::max(most, n_out[i]);
        std::vector<float> before = r->floats((size_t)(n_columns * n_out[i]) + 3, 1);
        w.push_back(std::make_unique<Array<uint8_t>>(device, random_weights(r, type, n_in, n_out[i])));
        alone.push_back(std::make_unique<Array<float>>(device, before));
        together.push_back(std::make_unique<Array<float>>(device, before));
        matvec_args a = all;
        a.w = *w[i], a.y = *alone[i], a.n_out = n_out[i];
        int blocks = ((n_out[i] + 1) / 2 + n_pairs - 1) / n_pairs;
        device.run(matvec_kernel(type, n_columns),
                   grid_for(r, n_columns, blocks, blocks_of_columns), a);
    }
    all.w = *w[0], all.y = *together[0], all.n_out = n_out[0];
    for (int i = 1; i < MATRICES; i++) all.more[i - 1] = {*w[i], *together[i], n_out[i]};
    gpu_grid grid = grid_for(r, n_columns, ((most + 1) / 2 + n_pairs - 1) / n_pairs,
                             blocks_of_columns);
    grid.z = MATRICES;
    device.run(matvec_kernel(type, n_columns), grid, all);
    for (int i = 0; i < MATRICES; i++)
        CHECK(same_bits(together[i]->read(), alone[i]->read()), "%s: matrix %d",
              weight_type_of(type)->name, i);
}

/* silu(gate) * up, within what the errors of both make of it. */
static void check_hidden(const char *name, float got, float gate, float up, double gate_size,
                         double up_size) {
    float g = gate;
    backend_scalar.swiglu(&g, &up, 1);
    CHECK(close(got, g, 3e-6 * (1.2 * (gate_size + 1) * (std::fabs((double)up) + 1) +
                                (std::fabs((double)gate) + 1) * (up_size + 1))),
          "%s: %g, not %g", name, got, g);
}

static void test_gate_and_up(Random *r, uint32_t type) {
    const char *name = weight_type_of(type)->name;
    int n_in = width_of(type, r), n_out = 32 * (1 + r->below(2)), n_columns = 1 + r->below(10);
    std::vector<uint8_t> w[2] = {random_weights(r, type, n_in, n_out),
                                 random_weights(r, type, n_in, n_out)};
    Vectors x(type, random_vectors(r, (size_t)(n_columns * n_in)), n_in);
    std::vector<double> gate_size, up_size;
    std::vector<float> gate = multiplied(type, w[0], n_out, x, &gate_size), first;
    std::vector<float> up = multiplied(type, w[1], n_out, x, &up_size);
    for (int seed = 0; seed < 2; seed++) {
        Device device((uint64_t)seed + r->bits());
        Array<uint8_t> dw(device, w[0]), du(device, w[1]);
        DeviceVectors dx(device, x);
        Array<float> y(device, gate.size());
        Array<act_group> act(device, gate.size() / 32);
        matvec_args a = {dw, du, nullptr, nullptr, dx.get(), y, act, n_in, n_out, n_columns, 1, 32,
                         0, {}};
        device.run(matvec_kernel(type, n_columns),
                   grid_for(r, n_columns, n_out / 32, (n_columns + 7) / 8), a);
        std::vector<float> got = y.read();
        for (size_t i = 0; seed == 0 && i < got.size(); i++)
            check_hidden(name, got[i], gate[i], up[i], gate_size[i], up_size[i]);
        CHECK(same_bits(act.read(), groups_of(got, n_out)), "%s: groups", name);
        if (seed) CHECK(same_bits(got, first), "%s: threads show", name);
        first = got;
    }
}

/* ---- experts ---------------------------------------------------------------------- */

/* Entries of two tokens with a matrix each, some without one, then their sum. */
static void test_experts(Random *r, uint32_t type) {
    enum { TOKENS = 2, USED = 3, ENTRIES = TOKENS * USED, EXPERTS = 5 };
    const char *name = weight_type_of(type)->name;
    int n_in = width_of(type, r), n_out = 1 + r->below(9);
    bool own = r->below(2) != 0; /* each entry its x, as in down; else each token, as in gate */
    size_t n = (size_t)n_out, columns = own ? ENTRIES : TOKENS;
    std::vector<uint8_t> w = random_weights(r, type, n_in, EXPERTS * n_out);
    size_t bytes = w.size() / EXPERTS;
    Vectors x(type, random_vectors(r, columns * (size_t)n_in), n_in);
    std::vector<double> size;
    std::vector<float> all = multiplied(type, w, EXPERTS * n_out, x, &size);
    std::vector<float> before = r->floats(ENTRIES * n, 1);
    Device device(r->bits());
    Array<uint8_t> dw(device, w);
    DeviceVectors dx(device, x);
    Array<float> y(device, before);
    std::vector<const uint8_t *> entry_w;
    std::vector<int> experts;
    for (int e = 0; e < ENTRIES; e++) {
        experts.push_back((r->below(2) + 2 * (e % USED)) % EXPERTS);
        if (e % USED == 2 && experts.back() == experts[(size_t)e - 2]) experts.back() = 4;
        entry_w.push_back(r->below(4) ? (uint8_t *)dw + (size_t)experts.back() * bytes : nullptr);
    }
    Array<const uint8_t *> matrices(device, entry_w);
    matvec_args a = {nullptr, nullptr, matrices, nullptr, dx.get(), y, nullptr, n_in, n_out, 1,
                     own ? 1 : USED, 2, 0, {}};
    device.run(matvec_kernel(type, 1), grid_for(r, 1, (n_out + 3) / 4, ENTRIES), a);
    std::vector<float> got = y.read();
    for (size_t e = 0; e < ENTRIES; e++)
        for (size_t i = 0; i < n; i++) {
            size_t column = own ? e : e / USED;
            size_t at = (column * EXPERTS + (size_t)experts[e]) * n + i;
            if (entry_w[e])
                CHECK(close(got[e * n + i], all[at], 3e-6 * (size[at] + 1)),
                      "%s, entry %zu: %g, not %g", name, e, got[e * n + i], all[at]);
            else CHECK(got[e * n + i] == before[e * n + i], "%s: no matrix", name);
        }

    experts[(size_t)r->below(ENTRIES)] = -1;
    std::vector<float> weights = r->floats(ENTRIES, 1), sum = r->floats(TOKENS * n, 1);
    Array<int> dexperts(device, experts);
    Array<float> dweights(device, weights), dsum(device, sum);
    device.run(KERNEL_add_experts, {(n_out + 31) / 32, TOKENS, 1, 32, 0},
               add_experts_args{y, dexperts, dweights, nullptr, dsum, n_out, USED});
    for (int expert = 0; expert < EXPERTS; expert++)
        for (size_t e = 0; e < ENTRIES; e++)
            if (experts[e] == expert)
                backend_scalar.axpy(&sum[e / USED * n], weights[e], &got[e * n], n_out);
    std::vector<float> added = dsum.read();
    for (size_t i = 0; i < sum.size(); i++)
        CHECK(close(added[i], sum[i], 0), "%s: sum %g, not %g", name, added[i], sum[i]);
}

static void test_hidden_experts(Random *r) {
    enum { ENTRIES = 3, N_OUT = 32 };
    uint32_t type = r->below(2) ? TYPE_Q4_K : TYPE_Q8_0;
    int n_in = width_of(type, r);
    std::vector<uint8_t> w = random_weights(r, type, n_in, 2 * N_OUT);
    Vectors x(type, random_vectors(r, (size_t)n_in), n_in);
    std::vector<double> size;
    std::vector<float> wanted = multiplied(type, w, 2 * N_OUT, x, &size);
    Device device(r->bits());
    Array<uint8_t> dw(device, w);
    DeviceVectors dx(device, x);
    const uint8_t *gate = dw, *up = gate + w.size() / 2;
    Array<const uint8_t *> gates(device, {gate, nullptr, up}), ups(device, {up, nullptr, gate});
    std::vector<float> before = r->floats(ENTRIES * N_OUT, 1);
    Array<float> y(device, before);
    std::vector<act_group> no(ENTRIES);
    Array<act_group> act(device, no);
    matvec_args a = {nullptr, nullptr, gates, ups, dx.get(), y, act, n_in, N_OUT, 1, ENTRIES, 32,
                     0, {}};
    device.run(matvec_kernel(type, 1), grid_for(r, 1, 1, ENTRIES), a);
    std::vector<float> got = y.read();
    std::vector<act_group> groups = groups_of(got, N_OUT), got_groups = act.read();
    groups[1] = no[1];
    CHECK(same_bits(got_groups, groups), "the experts' groups");
    for (size_t i = 0; i < N_OUT; i++) {
        check_hidden("expert", got[i], wanted[i], wanted[N_OUT + i], size[i], size[N_OUT + i]);
        CHECK(got[N_OUT + i] == before[N_OUT + i], "no matrix");
        check_hidden("expert", got[2 * N_OUT + i], wanted[N_OUT + i], wanted[i], size[N_OUT + i],
                     size[i]);
    }
}

int main() {
    Random r{1};
    for (int i = 0; i < 20; i++) {
        test_read<q8_0>(&r, TYPE_Q8_0);
        test_read<q4_0>(&r, TYPE_Q4_0);
        test_read<q4_1>(&r, TYPE_Q4_1);
        test_read<q5_0>(&r, TYPE_Q5_0);
        test_read<q5_1>(&r, TYPE_Q5_1);
        test_read<iq4_nl>(&r, TYPE_IQ4_NL);
        test_read<q2_k>(&r, TYPE_Q2_K);
        test_read<q3_k>(&r, TYPE_Q3_K);
        test_read<q4_k>(&r, TYPE_Q4_K);
        test_read<q5_k>(&r, TYPE_Q5_K);
        test_read<q6_k>(&r, TYPE_Q6_K);
        test_read<iq4_xs>(&r, TYPE_IQ4_XS);
    }
    const uint32_t types[] = {
        TYPE_F32,  TYPE_F16,  TYPE_BF16, TYPE_Q8_0, TYPE_Q4_0, TYPE_Q4_1,   TYPE_Q5_0, TYPE_Q5_1,
        TYPE_Q2_K, TYPE_Q3_K, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_IQ4_NL, TYPE_IQ4_XS,
    };
    for (uint32_t type : types) {
        for (int i = 0; i < 3; i++) test_product(&r, type);
        test_gate_and_up(&r, type);
        test_alike(&r, type);
        test_experts(&r, type);
    }
    for (int i = 0; i < 4; i++) test_hidden_experts(&r);
    return finish();
}
