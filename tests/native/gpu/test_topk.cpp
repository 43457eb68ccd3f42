/* What sampling needs of the logits, against a sort and sums in double; the penalties of sample.c.
 */
#include <algorithm>

#include "device.h"

static bool before(const std::vector<float> &x, int a, int b) {
    float left = x[(size_t)a], right = x[(size_t)b];
    if (std::isnan(left) || std::isnan(right))
        return std::isnan(left) == std::isnan(right) ? a < b : std::isnan(right);
    return left > right || (left == right && a < b);
}

/* Beyond k and beyond the row there are -1 and -infinity. */
static void check_best(const top_result &got, const std::vector<float> &x, int k) {
    std::vector<int> order(x.size());
    for (size_t i = 0; i < x.size(); i++) order[i] = (int)i;
    std::sort(order.begin(), order.end(), [&](int a, int b) { return before(x, a, b); });
    for (int i = 0; i < TOP_MOST; i++) {
        bool there = i < k && i < (int)x.size();
        int id = there ? order[(size_t)i] : -1;
        float logit = there ? x[(size_t)id] : -INFINITY;
        CHECK(got.id[i] == id, "place %d of %d: %d, not %d", i, k, got.id[i], id);
        CHECK(!std::memcmp(&got.logit[i], &logit, sizeof logit), "place %d of %d: %g, not %g", i, k,
              (double)got.logit[i], (double)logit);
    }
}

static void check_sums(const top_result &got, const std::vector<float> &x, float temperature) {
    double sum = 0;
    float top = -INFINITY;
    int bad = -1;
    for (size_t i = 0; i < x.size(); i++) {
        if (std::isfinite(x[i])) top = std::fmax(top, x[i]);
        else if (bad < 0) bad = (int)i;
    }
    for (float each : x)
        if (std::isfinite(each)) sum += std::exp(((double)each - top) / temperature);
    CHECK(got.bad == bad, "bad %d, not %d", got.bad, bad);
    CHECK(got.top == top, "top %g, not %g", (double)got.top, (double)top);
    CHECK(std::fabs(got.sum - sum) <= 2e-6 * sum, "sum %g, not %g", (double)got.sum, sum);
}

static std::vector<float> some_logits(Random *r, size_t n) {
    static const float special[] = {NAN, -NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e38f, -1e38f};
    std::vector<float> x = r->floats(n, r->below(2) ? 20 : 1e-3f);
    int kind = r->below(6);
    for (float &each : x) {
        if (kind == 1) each = std::round(each / 8) * 8; /* ties */
        if (kind == 2 && r->below(4) == 0) each = special[r->below(8)];
        if (kind == 3) each = special[r->below(4)];
        if (kind == 5) each = special[4 + r->below(2)]; /* zeros */
    }
    if (kind == 4) std::sort(x.begin(), x.end()); /* all the best in one block */
    return x;
}

static void test_top(Random *r, int n_vocab, int warps) {
    int rows = 1 + r->below(2), k = r->below(2) ? TOP_MOST : 1 + r->below(TOP_MOST);
    float temperature = r->below(2) ? 1 : 0.6f;
    std::vector<float> x = some_logits(r, (size_t)(rows * n_vocab));
    std::vector<top_result> first;
    for (int seed = 0; seed < 2; seed++) {
        Device device((uint64_t)seed + r->bits());
        Array<float> logits(device, x);
        Array<top_part> parts(device, (size_t)rows * TOP_BLOCKS);
        Array<top_result> results(device, (size_t)rows);
        top_args args = {logits, parts, results, n_vocab, k, temperature};
        int shared = warps * (int)sizeof(top_part);
        device.run(KERNEL_top_parts, {TOP_BLOCKS, rows, 1, 32 * warps, shared}, args);
        device.run(KERNEL_top_merge, {1, rows, 1, 32 * warps, shared}, args);
        for (int row = 0; row < rows && !seed; row++) {
            std::vector<float> own(x.begin() + row * n_vocab, x.begin() + (row + 1) * n_vocab);
            check_best(results[row], own, k);
            check_sums(results[row], own, temperature);
        }
        if (seed) CHECK(same_bits(results.read(), first), "the order of threads shows");
        first = results.read();
    }
}

static void test_penalties(Random *r) {
    int n_vocab = 50 + r->below(200), n = 1 + r->below(50), n_generated = r->below(n + 1);
    float repetition = 1 + r->uniform() / 2, presence = r->uniform();
    std::vector<float> x = r->floats((size_t)n_vocab, 5), wanted = x;
    std::vector<int> ids;
    for (int i = 0; i < n; i++) ids.push_back((i * 37 + 5) % 50); /* each once */
    for (int i = 0; i < n; i++) {
        float *logit = &wanted[(size_t)ids[(size_t)i]];
        *logit = *logit > 0 ? *logit / repetition : *logit * repetition;
        if (i < n_generated) *logit -= presence;
    }
    Device device(r->bits());
    Array<float> logits(device, x);
    Array<int> dids(device, ids);
    penalize_args args = {logits, dids, n, n_generated, repetition, presence};
    device.run(KERNEL_penalize, {(n + 31) / 32, 1, 1, 32, 0}, args);
    CHECK(same_bits(logits.read(), wanted), "%d ids, %d generated", n, n_generated);
}

int main() {
    Random r{5};
    for (int i = 0; i < 30; i++) test_penalties(&r);
    for (int n : {1, 31, 64, 65, 1000, 4096, 4097, 9000}) test_top(&r, n, 1);
    for (int warps : {2, 4}) test_top(&r, 1 + r.below(9000), warps);
    return finish();
}
