/* Products with many columns, against scalar. */
#include <algorithm>
#include <memory>

#include "device.h"

extern "C" {
#include "decode.h"
}

struct Kernel {
    uint32_t type;
    bool same;        /* the sums are in the order of the CPU's, to the bit */
    double tolerance; /* otherwise */
    std::vector<int> halves; /* where a block has its f16 */
};

static const Kernel kernels[] = {
    {TYPE_F32, false, 5e-4, {}},
    {TYPE_F16, false, 5e-4, {0}},
    {TYPE_BF16, false, 5e-4, {}},
    {TYPE_Q8_0, true, 0, {0}},
    {TYPE_Q4_0, true, 0, {0}},
    {TYPE_Q4_1, true, 0, {0, 2}},
    {TYPE_Q5_0, true, 0, {0}},
    {TYPE_Q5_1, true, 0, {0, 2}},
    {TYPE_IQ4_NL, true, 0, {0}},
    {TYPE_Q2_K, true, 0, {80, 82}},
    {TYPE_Q3_K, true, 0, {108}},
    {TYPE_Q4_K, true, 0, {0, 2}},
    {TYPE_Q5_K, true, 0, {0, 2}},
    {TYPE_Q6_K, false, 1e-6, {208}},
    {TYPE_IQ4_XS, true, 0, {0}},
};

/* Rows of random bits; floats are in [-1, 1) times a power of two for every 16. */
static std::vector<uint8_t> random_weights(Random *r, const Kernel &k, int n_in, int n_out) {
    const weight_type *type = weight_type_of(k.type);
    size_t count = (size_t)n_in * (size_t)n_out;
    std::vector<uint8_t> w(count / (size_t)type->block * (size_t)type->bytes);
    if (type->block == 1) {
        float size = 1;
        for (size_t i = 0; i < count; i++) {
            if (i % 16 == 0) size = std::ldexp(1.0f, r->below(8) - 20);
            float x = r->uniform() * size;
            uint32_t bits;
            std::memcpy(&bits, &x, 4);
            f16_t half = k.type == TYPE_F16 ? f32_to_f16(x) : (f16_t)(bits >> 16);
            if (k.type == TYPE_F32) std::memcpy(&w[4 * i], &bits, 4);
            else std::memcpy(&w[2 * i], &half, 2);
        }
        return w;
    }
    for (uint8_t &byte : w) byte = (uint8_t)r->bits();
    for (size_t at = 0; at < w.size(); at += (size_t)type->bytes)
        for (int half : k.halves) {
            f16_t d = f32_to_f16(r->uniform());
            std::memcpy(&w[at + (size_t)half], &d, 2);
        }
    return w;
}

/* Activations of the CPU and of the device, rows of n. */
struct Activations {
    int n;
    std::vector<float> floats;
    std::vector<act_unit> units;
    std::vector<act_group> groups;

    Activations(const std::vector<float> &x, int row) : n(row), floats(x) {
        size_t of_row = act_bytes(n) / sizeof(act_unit);
        units.resize(x.size() / (size_t)n * of_row);
        for (size_t i = 0; i < x.size() / (size_t)n; i++) {
            act_unit *u = &units[i * of_row];
            backend_scalar.quantize(&x[i * (size_t)n], u, n, 0, n);
            for (int g = 0; g < n / 32; g++) {
                act_group group = {u[g / GROUPS].d[g % GROUPS], u[g / GROUPS].s[g % GROUPS], {}};
                std::memcpy(group.q, u[g / GROUPS].q + g % GROUPS * 32, 32);
                groups.push_back(group);
            }
        }
    }
};

/* W x of chosen rows of x. */
static std::vector<float> multiply(const Kernel &k, const std::vector<uint8_t> &w, int n_out,
                                   const Activations &x, const std::vector<int32_t> &rows) {
    std::vector<float> y((size_t)n_out * rows.size());
    matmul_args args = {};
    args.type = k.type;
    args.n_in = x.n;
    args.w = w.data();
    args.row_bytes = w.size() / (size_t)n_out;
    args.x = type_takes_float(k.type) ? (const void *)x.floats.data() : x.units.data();
    args.x_stride = type_takes_float(k.type) ? (size_t)x.n * 4 : act_bytes(x.n);
    args.x_index = rows.data();
    args.y = y.data();
    args.y_stride = (size_t)n_out;
    args.n_cols = (int)rows.size();
    backend_scalar.matmul(&args, 0, n_out);
    return y;
}

static std::vector<int32_t> counted(int n) {
    std::vector<int32_t> rows((size_t)n);
    for (int i = 0; i < n; i++) rows[(size_t)i] = i;
    return rows;
}

static void compare(const Kernel &k, const char *what, const std::vector<float> &y,
                    const std::vector<float> &wanted) {
    const char *name = weight_type_of(k.type)->name;
    if (k.same) CHECK(same_bits(y, wanted), "%s of %s: %g", what, name, distance(y, wanted));
    else CHECK(distance(y, wanted) < k.tolerance, "%s of %s: %g", what, name, distance(y, wanted));
}

static int some_length(Random *r, const Kernel &k) {
    int block = weight_type_of(k.type)->block;
    return block == 256 ? 256 * (1 + r->below(2)) : 32 * (1 + r->below(5));
}

/* One matrix: stored, or added to what is there. */
static void test_product(Random *r, const Kernel &k, int n_out, int n_columns) {
    int n_in = some_length(r, k), add = r->below(2);
    std::vector<uint8_t> w = random_weights(r, k, n_in, n_out);
    std::vector<float> values = r->floats((size_t)(n_in * n_columns), 3);
    if (k.same) values[(size_t)r->below((int)values.size())] = NAN;
    Activations x(values, n_in);
    std::vector<float> start = r->floats((size_t)(n_out * n_columns), 1), first;
    std::vector<float> wanted = multiply(k, w, n_out, x, counted(n_columns));
    for (size_t i = 0; add && i < wanted.size(); i++) wanted[i] = start[i] + wanted[i];
    for (int seed = 0; seed < 2; seed++) {
        Device device((uint64_t)seed + r->bits());
        Array<uint8_t> dw(device, w);
        Array<float> floats(device, x.floats), y(device, start);
        Array<act_group> groups(device, x.groups);
        gemm_args args = {};
        args.w = dw;
        args.x = type_takes_float(k.type) ? (const void *)(float *)floats : (act_group *)groups;
        args.y = y;
        args.n_in = n_in;
        args.n_out = n_out;
        args.n_columns = n_columns;
        args.add = add;
        device.run(gemm_kernel(k.type), {(n_out + 127) / 128, (n_columns + 127) / 128, 1, 256, GEMM_SHARED}, args);
        if (seed) CHECK(same_bits(y.read(), first), "the order of threads shows");
        first = y.read();
        if (n_out * n_columns > 4000) break;
    }
    compare(k, add ? "sum" : "product", first, wanted);
}

/* Gate, up and SwiGLU, or one matrix, of experts with gathered columns: of which some have none, some no place. */
static void test_experts(Random *r, const Kernel &k, int n_out, int many, bool gated) {
    int n_in = some_length(r, k), n_tokens = 5 + r->below(20), n_experts = 4;
    Activations x(r->floats((size_t)(n_in * n_tokens), 1), n_in);
    std::vector<int32_t> start = {0}, token;
    for (int e = 0; e < n_experts; e++) {
        int n = e == 1 ? 0 : e == 3 ? many : 1 + r->below(40);
        for (int i = 0; i < n; i++) token.push_back(r->below(n_tokens));
        start.push_back((int32_t)token.size());
    }
    int absent = r->below(2) * 2; /* the first, which then keeps what was there, or the third */
    Device device(r->bits());
    std::vector<std::unique_ptr<Array<uint8_t>>> memory;
    std::vector<const uint8_t *> gates, ups;
    std::vector<float> old = r->floats(token.size() * (size_t)n_out, 1), wanted = old;
    for (int e = 0; e < n_experts; e++) {
        std::vector<uint8_t> gate = random_weights(r, k, n_in, n_out);
        std::vector<uint8_t> up = random_weights(r, k, n_in, n_out);
        for (auto *w : {&gate, &up})
            memory.push_back(std::make_unique<Array<uint8_t>>(device, *w));
        gates.push_back(e == absent ? nullptr : (uint8_t *)*memory[memory.size() - 2]);
        ups.push_back((uint8_t *)*memory.back());
        if (e == absent) continue;
        std::vector<int32_t> rows(token.begin() + start[(size_t)e],
                                  token.begin() + start[(size_t)e + 1]);
        std::vector<float> y = multiply(k, gate, n_out, x, rows);
        std::vector<float> other = multiply(k, up, n_out, x, rows);
        if (gated) backend_scalar.swiglu(y.data(), other.data(), (int)y.size());
        std::copy(y.begin(), y.end(), wanted.begin() + start[(size_t)e] * n_out);
    }
    Array<const uint8_t *> dgates(device, gates), dups(device, ups);
    Array<int32_t> dstart(device, start), dtoken(device, token);
    Array<float> floats(device, x.floats), y(device, old);
    std::vector<act_group> no_groups = Activations(old, n_out).groups;
    Array<act_group> groups(device, x.groups), act(device, no_groups);
    gemm_args args = {};
    args.expert_w = dgates;
    args.expert_up = gated ? (const uint8_t **)dups : nullptr;
    args.start = dstart;
    args.token = dtoken;
    args.x = type_takes_float(k.type) ? (const void *)(float *)floats : (act_group *)groups;
    args.y = y;
    args.act = act;
    args.n_in = n_in;
    args.n_out = n_out;
    device.run(gemm_kernel(k.type), {(n_out + 63) / 64, 2, n_experts, 256, GEMM_SHARED}, args);
    compare(k, "experts", y.read(), wanted);
    if (gated)
        CHECK(same_bits(act.read(), Activations(y.read(), n_out).groups), "groups of experts");
}

int main() {
    Random r{1};
    for (const Kernel &k : kernels) {
        bool large = k.type == TYPE_Q8_0 || k.type == TYPE_F16; /* more than a block has */
        test_product(&r, k, 1 + r.below(40), 9 + r.below(20));
        if (large) test_product(&r, k, 128 + r.below(60), 129 + r.below(20));
        test_experts(&r, k, 32 * (1 + r.below(2)) + large * 32, large ? 130 : 3,
                     k.type != TYPE_Q4_0);
    }
    return finish();
}
