/* The router, the sorting by expert, and the lookup of slots, against what moe.c does. */
#include <algorithm>

#include "device.h"

struct choice {
    std::vector<int> experts;
    std::vector<float> weights;
};

static choice choose(const std::vector<float> &logits, int n, int n_experts, int n_used,
                     bool renormalize) {
    choice c;
    for (int t = 0; t < n; t++) {
        const float *x = logits.data() + t * n_experts;
        std::vector<float> p((size_t)n_experts);
        float top = *std::max_element(x, x + n_experts), sum = 0, chosen = 0;
        for (int e = 0; e < n_experts; e++) sum += p[(size_t)e] = std::exp(x[e] - top);
        for (int slot = 0; slot < n_used; slot++) {
            auto best = std::max_element(p.begin(), p.end()); /* the first of equal ones */
            c.experts.push_back((int)(best - p.begin()));
            c.weights.push_back(*best / sum);
            chosen += *best / sum;
            *best = -1;
        }
        for (auto w = c.weights.end() - n_used; renormalize && w < c.weights.end(); ++w)
            *w /= chosen;
    }
    return c;
}

/* Floats of few values, so that there are ties; with infinities, which softmax makes 0. */
static std::vector<float> router_logits(Random *r, size_t n) {
    std::vector<float> x = r->floats(n, 8);
    int kind = r->below(3);
    for (float &each : x) {
        if (kind) each = std::round(each);
        if (kind == 2 && r->below(4) == 0) each = -INFINITY;
    }
    return x;
}

static void test_choice(Random *r) {
    int n = 1 + r->below(7), n_experts = 1 + r->below(EXPERTS_MOST), threads = 32 << r->below(3);
    int n_used = 1 + r->below(std::min(n_experts, 32)), warps = threads / 32;
    bool renormalize = r->below(2);
    std::vector<float> x = router_logits(r, (size_t)(n * n_experts));
    for (int t = 0; t < n; t++) x[(size_t)(t * n_experts)] = 1; /* one is finite */
    choice wanted = choose(x, n, n_experts, n_used, renormalize);
    std::vector<float> first;
    for (int seed = 0; seed < 2; seed++) {
        Device device((uint64_t)seed + r->bits());
        Array<float> dx(device, x), weights(device, (size_t)(n * n_used));
        Array<int> experts(device, (size_t)(n * n_used));
        route_args args = {dx, experts, weights, n, n_experts, n_used, renormalize};
        device.run(KERNEL_route_experts, {(n + warps - 1) / warps, 1, 1, threads, 0}, args);
        CHECK(experts.read() == wanted.experts, "%d of %d experts", n_used, n_experts);
        CHECK(distance(weights.read(), wanted.weights) < 1e-6, "%d of %d: %g", n_used, n_experts,
              distance(weights.read(), wanted.weights));
        if (seed) CHECK(same_bits(weights.read(), first), "the order of threads shows");
        first = weights.read();
    }
}

/* Experts stay experts, and the weights tell. */
static void test_nan() {
    Device device(1);
    std::vector<float> x(2 * 48, 1);
    for (int e = 0; e < 48; e++) x[(size_t)e] = NAN;
    x[48 + 40] = NAN;
    Array<float> dx(device, x), weights(device, 16);
    Array<int> experts(device, 16);
    route_args args = {dx, experts, weights, 2, 48, 8, 1};
    device.run(KERNEL_route_experts, {2, 1, 1, 32, 0}, args);
    for (int e : experts.read()) CHECK(e >= 0 && e < 48, "expert %d", e);
    for (float w : weights.read()) CHECK(std::isnan(w), "weight %g", (double)w);
}

/* Experts of n tokens, n_used of each; a few of them are the favourites. */
static std::vector<int> some_experts(Random *r, int n, int n_experts, int n_used) {
    std::vector<int> experts, all((size_t)n_experts);
    for (int e = 0; e < n_experts; e++) all[(size_t)e] = e;
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < n_used; i++)
            std::swap(all[(size_t)i], all[(size_t)(i + r->below(n_experts - i))]);
        experts.insert(experts.end(), all.begin(), all.begin() + n_used);
    }
    return experts;
}

static void test_groups(Random *r) {
    int tokens = 1 + r->below(90), n_experts = 1 + r->below(20), threads = 32 << r->below(3);
    int n_used = 1 + r->below(std::min(n_experts, 8)), n = tokens * n_used;
    std::vector<int> experts = some_experts(r, tokens, n_experts, n_used), order;
    std::vector<float> weights = r->floats((size_t)n, 1);
    for (int i = 0; i < n; i++) order.push_back(i);
    std::sort(order.begin(), order.end(), [&](int a, int b) {
        int left = experts[(size_t)a], right = experts[(size_t)b];
        return left < right || (left == right && a < b);
    });
    Device device(r->bits());
    Array<int> dexperts(device, experts), start(device, (size_t)n_experts + 1);
    Array<int> token(device, (size_t)n), position(device, (size_t)n);
    Array<float> dweights(device, weights), weight(device, (size_t)n);
    group_args args = {dexperts, dweights, start, token, weight, position, n, n_experts, n_used};
    device.run(KERNEL_group_entries, {n_experts, 1, 1, threads, 128}, args);
    for (int i = 0; i < n; i++) {
        int from = order[(size_t)i];
        CHECK(token[i] == from / n_used, "entry %d of %d: token %d", i, n, token[i]);
        CHECK(weight[i] == weights[(size_t)from], "weight of entry %d", i);
        CHECK(position[from] == i, "entry %d is at %d, not at %d", from, position[from], i);
    }
    for (int e = 0, at = 0; e <= n_experts; e++) {
        CHECK(start[e] == at, "expert %d starts at %d, not at %d", e, start[e], at);
        at += (int)std::count(experts.begin(), experts.end(), e);
    }
}

static void test_slots(Random *r) {
    int n_experts = 1 + r->below(EXPERTS_MOST), n = 1 + r->below(300), n_parts = 1 + r->below(PARTS_MOST);
    int threads = 32 * (1 + r->below(4));
    std::vector<int> experts, slot_of((size_t)n_experts, -1);
    for (int i = 0; i < n; i++) experts.push_back(r->below(n_experts + 1) - 1);
    for (int e = 0; e < n_experts; e++)
        if (r->below(2)) slot_of[(size_t)e] = n_experts - 1 - e;
    Device device(r->bits());
    Array<int> dexperts(device, experts), dslot_of(device, slot_of);
    Array<unsigned char> slots(device, (size_t)n_experts * 10);
    Array<const unsigned char *> matrices(device, (size_t)(n_parts * n));
    locate_args args = {dexperts, dslot_of, {slots, slots + 3, slots + 7}, matrices, {10, 7, 3},
                        n, n_parts};
    device.run(KERNEL_locate_experts, {(n + threads - 1) / threads, 1, 1, threads, 0}, args);
    for (int i = 0; i < n_parts * n; i++) {
        int expert = experts[(size_t)(i % n)], slot = expert < 0 ? -1 : slot_of[(size_t)expert];
        const unsigned char *matrix =
            slot < 0 ? nullptr : args.part[i / n] + (size_t)slot * args.stride[i / n];
        CHECK(matrices[i] == matrix, "matrix %d of %d entries", i, n);
    }
}

int main() {
    Random r{8};
    for (int i = 0; i < 30; i++) {
        test_choice(&r);
        test_groups(&r);
        test_slots(&r);
    }
    test_nan();
    return finish();
}
