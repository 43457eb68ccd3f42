/* The way of queries, keys and values from the products to attention, against scalar. */
#include "cache.h"

struct Shape {
    int n_heads, n_kv_heads, hd, n;
    bool q8;
};

static std::vector<float> frequencies(int hd) {
    std::vector<float> freq;
    for (int i = 0; i < hd / 2; i++) freq.push_back(1 / std::pow(1e6f, (float)(2 * i) / (float)hd));
    return freq;
}

/* As native/graph.c and native/attention.c do it. */
static void norm_and_rotate(float *x, const float *w, int hd, int pos, float scale,
                            const std::vector<float> &freq) {
    std::vector<float> c, s;
    for (float f : freq) {
        c.push_back(std::cos((float)pos * f) * scale);
        s.push_back(std::sin((float)pos * f) * scale);
    }
    backend_scalar.rmsnorm(x, x, w, hd, 1e-6f);
    backend_scalar.rope(x, c.data(), s.data(), hd);
}

/* Tokens of two sequences. Keys also stand among the queries, from where they are read back:
 * what the cache holds of them is the same to the last bit. */
static void test_rope(Random *r, bool strange) {
    const int hds[] = {32, 64, 96, 128};
    int n_kv_heads = 1 + r->below(3);
    Shape s = {n_kv_heads * (1 + r->below(3)), n_kv_heads, hds[r->below(4)], 1 + r->below(5),
               r->below(2) == 1};
    int warps = 1 + r->below(4), layer = r->below(2), heads = s.n_heads + 2 * n_kv_heads;
    const float rope_scale = 1.25f;
    size_t hd = (size_t)s.hd, n_q = (size_t)(s.n * s.n_heads) * hd,
           n_k = (size_t)(s.n * n_kv_heads) * hd;
    std::vector<float> q = r->floats(n_q, 5), k(n_k), v = r->floats(n_k, 5);
    if (strange) v[(size_t)r->below((int)n_k)] = r->below(2) ? NAN : INFINITY;
    if (strange) std::fill_n(v.begin(), 32, 1e-35f);
    for (int t = 0; t < s.n; t++)
        std::memcpy(&k[(size_t)(t * n_kv_heads) * hd], &q[(size_t)(t * s.n_heads) * hd],
                    (size_t)n_kv_heads * hd * sizeof(float));
    std::vector<float> w = r->floats(hd, 2), freq = frequencies(s.hd), first;
    Cache caches[2] = {{2, n_kv_heads, s.hd, 40, s.q8}, {2, n_kv_heads, s.hd, 70, s.q8}};
    int start[2] = {r->below(30), r->below(60)};

    for (int seed = 0; seed < 2; seed++) {
        Device device((uint64_t)seed + r->bits());
        Array<uint8_t> kv0(device, caches[0].copy()), kv1(device, caches[1].copy());
        std::vector<token_place> places;
        for (int t = 0; t < s.n; t++)
            places.push_back({t % 2 ? kv1 : kv0, caches[t % 2].stream, start[t % 2] + t});
        Array<float> dq(device, q), dk(device, k), dv(device, v), dw(device, w), df(device, freq);
        Array<token_place> tokens(device, places);
        rope_args args = {dq, dk, dv, dw, dw, df, tokens, s.n_heads, n_kv_heads, s.hd, layer, s.q8,
                          1e-6f, rope_scale, 1.0f};
        device.run(KERNEL_rope, {(heads + warps - 1) / warps, s.n, 1, 32 * warps,
                                 warps * s.hd * (int)sizeof(float)}, args);
        std::vector<float> got = dq.read(), wanted = q;
        for (int i = 0; i < s.n * s.n_heads; i++)
            norm_and_rotate(&wanted[(size_t)i * hd], w.data(), s.hd,
                            places[(size_t)(i / s.n_heads)].pos, rope_scale, freq);
        CHECK(distance(got, wanted) < 1e-6, "hd %d: %g", s.hd, distance(got, wanted));
        for (int t = 0; t < s.n; t++)
            for (int h = 0; h < n_kv_heads; h++)
                caches[t % 2].store(layer, h, places[(size_t)t].pos,
                                    &got[(size_t)(t * s.n_heads + h) * hd],
                                    &v[(size_t)(t * n_kv_heads + h) * hd]);
        if (!strange || s.q8) {
            CHECK(same_bits(kv0.read(), caches[0].copy()), "the cache, hd %d, q8 %d", s.hd, s.q8);
            CHECK(same_bits(kv1.read(), caches[1].copy()), "the cache, hd %d, q8 %d", s.hd, s.q8);
        }
        if (seed) CHECK(same_bits(got, first), "the order of threads shows: hd %d", s.hd);
        first = got;
    }
}

/* The angles of long contexts: pairs (1, 0) are turned, normalized to (sqrt(2), 0), so that cos
 * and sin come back. */
static void test_angles(Random *r) {
    enum { N = 64, HD = 64 };
    std::vector<float> q((size_t)N * HD), w(HD, 1), freq = frequencies(HD);
    for (int i = 0; i < N * HD; i++) q[(size_t)i] = i % HD < HD / 2;
    Cache cache(1, 1, HD, 16, false);
    Device device(r->bits());
    Array<uint8_t> kv(device, cache.copy().size() * 8193);
    std::vector<token_place> places;
    for (int t = 0; t < N; t++) {
        int pos = t < 8 ? t : 131072 - r->below(t < 32 ? 32 : 131072);
        places.push_back({kv, cache.stream * 8193, pos});
    }
    Array<float> dq(device, q), dw(device, w), df(device, freq);
    Array<float> zero(device, std::vector<float>((size_t)N * HD));
    Array<token_place> tokens(device, places);
    rope_args args = {dq, zero, zero, dw, dw, df, tokens, 1, 1, HD, 0, 0, 1e-12f, 1.0f, 1.0f};
    device.run(KERNEL_rope, {1, N, 1, 96, 3 * HD * 4}, args);
    std::vector<float> got = dq.read();
    double most = 0;
    for (int t = 0; t < N; t++)
        for (int i = 0; i < HD / 2; i++) {
            double x = std::sqrt(2.0), angle = (float)places[(size_t)t].pos * freq[(size_t)i];
            const float *y = &got[(size_t)(t * HD + i)];
            most = std::fmax(most, std::fabs(y[0] - x * std::cos(angle)));
            most = std::fmax(most, std::fabs(y[HD / 2] - x * std::sin(angle)));
        }
    CHECK(most < 3e-7, "%g", most);
}

int main() {
    Random r{1};
    for (int i = 0; i < 25; i++) test_rope(&r, i % 5 == 0);
    test_angles(&r);
    return finish();
}
