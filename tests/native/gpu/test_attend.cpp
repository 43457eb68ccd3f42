/* Attention of decoding and of prefill, against scalar. */
#include <algorithm>

#include "cache.h"

struct Shape {
    int n_kv_heads, group, hd;
    bool q8;
};

static Shape some_shape(Random *r) {
    const int groups[] = {1, 2, 4, 5, 8, 16, 17}, hds[] = {32, 64, 96, 128};
    return {1 + r->below(2), groups[r->below(7)], hds[r->below(4)], r->below(2) == 1};
}

struct Token {
    const Cache *cache;
    int pos;
};

/* y [n][n_heads][hd] of queries in the same shape, as native/attention.c computes it. */
static std::vector<float> attended(const Shape &s, int layer, const std::vector<float> &q,
                                   const std::vector<Token> &tokens) {
    std::vector<float> y(q.size()), columns((size_t)(s.hd * ATTEND_ROWS)),
        scratch(attend_scratch(s.hd)), sum(attend_part(s.hd)), part(attend_part(s.hd));
    for (size_t v = 0; v * (size_t)s.hd < q.size(); v++) {
        int heads = s.n_kv_heads * s.group, head = (int)v % heads / s.group;
        const Token &token = tokens[v / (size_t)heads];
        const Cache *kv = token.cache;
        int32_t n_kv = token.pos + 1;
        for (int i = 0; i < s.hd; i++)
            columns[(size_t)(i * ATTEND_ROWS)] = q[v * (size_t)s.hd + (size_t)i];
        attend_args a = {kv->type, s.hd, 1, columns.data(), &n_kv, kv->keys(layer, head),
                         kv->keys(layer, head) + kv->stream, scratch.data()};
        backend_scalar.attend(&a, 0, sum.data());
        for (int b = 1; b * KV_BLOCK < n_kv; b++) {
            backend_scalar.attend(&a, b, part.data());
            backend_scalar.merge(sum.data(), part.data(), s.hd);
        }
        for (int i = 0; i < s.hd; i++)
            y[v * (size_t)s.hd + (size_t)i] = sum[(size_t)i] / sum[(size_t)s.hd + 1];
    }
    return y;
}

static std::vector<float> queries(Random *r, const Shape &s, int n) {
    return r->floats((size_t)(n * s.n_kv_heads * s.group * s.hd), 4 / std::sqrt((float)s.hd));
}

struct Result {
    std::vector<float> y;
    std::vector<act_group> act;
};

/* Tokens whose caches are on the device already. */
static Result run(Device *device, const Shape &s, int layer, const std::vector<float> &q,
                  const std::vector<token_place> &places, bool decode) {
    int n = (int)places.size(), heads = s.n_kv_heads * s.group, n_ctx = 0;
    for (const token_place &place : places) n_ctx = std::max(n_ctx, place.pos + 1);
    Array<float> dq(*device, q), y(*device, q.size());
    Array<act_group> act(*device, q.size() / 32);
    Array<token_place> tokens(*device, places);
    Array<float> parts(*device, decode ? (size_t)(n * heads * ATTEND_PARTS * (s.hd + 2)) : 1);
    attention_args args = {dq, tokens, parts, y, act, n, heads, s.n_kv_heads, s.hd, layer};
    if (decode) {
        int g = s.group <= 4 ? 4 : s.group <= 8 ? 8 : 16;
        kernel_id ids[2][3] = {{KERNEL_attend_f16_4, KERNEL_attend_f16_8, KERNEL_attend_f16_16},
                               {KERNEL_attend_q8_4, KERNEL_attend_q8_8, KERNEL_attend_q8_16}};
        int n_parts = std::min((n_ctx + ATTEND_ROUND - 1) / ATTEND_ROUND, (int)ATTEND_PARTS);
        int floats = std::max(s.hd * g + 136 * g, 32 * s.hd) + 16 * g;
        int chunks = (s.group + g - 1) / g;
        device->run(ids[s.q8][g / 8], {n_parts, s.n_kv_heads * chunks, n, 256, 4 * floats}, args);
        device->run(KERNEL_attend_merge, {heads, n, 1, s.hd, 4 * ATTEND_PARTS}, args);
    } else {
        device->run(s.q8 ? KERNEL_prefill_q8 : KERNEL_prefill_f16,
                    {(n * s.group + PREFILL_ROWS - 1) / PREFILL_ROWS, s.n_kv_heads, 1,
                     PREFILL_THREADS, PREFILL_SHARED}, args);
    }
    Result result = {y.read(), act.read()};
    for (size_t i = 0; i < result.act.size(); i++) {
        act_unit unit;
        backend_scalar.quantize(&result.y[32 * i], &unit, 32, 0, 32);
        const act_group &got = result.act[i];
        CHECK(!std::memcmp(got.q, unit.q, 32) && !std::memcmp(&got.d, &unit.d, 4), "group %zu", i);
    }
    return result;
}

/* Tokens of two sequences; each of them alone gives the same bits. */
static void test_decode(Random *r, Shape s, int longest, int n) {
    int layer = r->below(2), last[2] = {r->below(longest), longest - 1};
    Cache caches[2] = {{2, s.n_kv_heads, s.hd, last[0] + 1, s.q8},
                       {2, s.n_kv_heads, s.hd, last[1] + 1, s.q8}};
    for (int i = 0; i < 2; i++) caches[i].fill(r, layer, last[i] + 1);
    std::vector<float> q = queries(r, s, n);
    std::vector<Token> tokens;
    for (int t = 0; t < n; t++) {
        int which = t % 2, back = r->below(3);
        tokens.push_back({&caches[which], std::max(last[which] - back, 0)});
    }
    tokens[0].pos = last[0];
    std::vector<float> wanted = attended(s, layer, q, tokens), first;
    for (int seed = 0; seed < 2; seed++) {
        Device device((uint64_t)seed + r->bits());
        Array<uint8_t> kv0(device, caches[0].copy()), kv1(device, caches[1].copy());
        std::vector<token_place> places;
        for (const Token &token : tokens) {
            bool second = token.cache == &caches[1];
            places.push_back({second ? kv1 : kv0, token.cache->stream, token.pos});
        }
        std::vector<float> y = run(&device, s, layer, q, places, true).y;
        CHECK(distance(y, wanted) < 3e-6, "hd %d, group %d, q8 %d, n_kv %d: %g", s.hd, s.group,
              s.q8, longest, distance(y, wanted));
        if (seed) {
            int t = r->below(n), each = s.n_kv_heads * s.group * s.hd;
            std::vector<float> one(q.begin() + t * each, q.begin() + (t + 1) * each);
            std::vector<float> alone = run(&device, s, layer, one, {places[(size_t)t]}, true).y;
            CHECK(same_bits(y, first), "the order of threads shows: hd %d", s.hd);
            CHECK(same_bits(alone, {y.begin() + t * each, y.begin() + (t + 1) * each}),
                  "the batch shows: hd %d", s.hd);
        }
        first = y;
    }
}

/* A prompt behind n_past positions; in two halves it gives the same bits. */
static void test_prefill(Random *r, Shape s, int n_past, int n) {
    int layer = r->below(2);
    Cache cache(2, s.n_kv_heads, s.hd, n_past + n + r->below(20), s.q8);
    cache.fill(r, layer, n_past + n);
    std::vector<float> q = queries(r, s, n);
    std::vector<Token> tokens;
    for (int t = 0; t < n; t++) tokens.push_back({&cache, n_past + t});
    std::vector<float> wanted = attended(s, layer, q, tokens), first;
    for (int seed = 0; seed < 2; seed++) {
        Device device((uint64_t)seed + r->bits());
        Array<uint8_t> kv(device, cache.copy());
        std::vector<token_place> places;
        for (const Token &token : tokens) places.push_back({kv, cache.stream, token.pos});
        std::vector<float> y;
        if (seed) {
            int each = s.n_kv_heads * s.group * s.hd, cut = n / 2, cuts[] = {0, cut, n};
            for (int i = cut == 0; i < 2; i++) {
                int from = cuts[i], to = cuts[i + 1];
                std::vector<float> some(q.begin() + from * each, q.begin() + to * each);
                std::vector<token_place> those(places.begin() + from, places.begin() + to);
                some = run(&device, s, layer, some, those, false).y;
                y.insert(y.end(), some.begin(), some.end());
            }
            CHECK(same_bits(y, first), "threads or the cut show: hd %d, group %d", s.hd, s.group);
        } else {
            y = run(&device, s, layer, q, places, false).y;
            CHECK(distance(y, wanted) < 3e-6, "hd %d, group %d, q8 %d, %d behind %d: %g", s.hd,
                  s.group, s.q8, n, n_past, distance(y, wanted));
        }
        first = y;
    }
}

int main() {
    Random r{1};
    for (int i = 0; i < 10; i++)
        test_decode(&r, some_shape(&r), 1 + r.below(i % 3 ? 40 : 400), 1 + r.below(3));
    test_decode(&r, {1, 2, 32, false}, 8192 + 1 + r.below(300), 1);
    for (int i = 0; i < 10; i++)
        test_prefill(&r, some_shape(&r), r.below(2) ? r.below(60) : 0, 1 + r.below(12));
    test_prefill(&r, {1, 1, 64, false}, 1000, 9); /* sums of many do not drift */
    test_prefill(&r, {1, 1, 64, true}, 1000, 9);
    return finish();
}
