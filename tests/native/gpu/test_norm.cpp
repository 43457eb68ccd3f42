/* RMSNorm and the quantization of activations, against scalar. */
#include "device.h"

static void test_norm(Random *r) {
    int n = 32 * (1 + r->below(70)), rows = 1 + r->below(3), threads = 32 << r->below(6);
    std::vector<float> x = r->floats((size_t)(n * rows), 3), w = r->floats((size_t)n, 2);
    for (int extreme = r->below(3); extreme > 0; extreme--) {
        const float values[] = {0, 1e-38f, 1e18f, -1e18f, INFINITY, NAN};
        x[(size_t)r->below(n * rows)] = values[r->below(6)];
    }
    std::vector<float> wanted(x.size()), first;
    for (int i = 0; i < rows; i++)
        backend_scalar.rmsnorm(wanted.data() + i * n, x.data() + i * n, w.data(), n, 1e-6f);
    for (int seed = 0; seed < 2; seed++) {
        Device device((uint64_t)seed + r->bits());
        Array<float> dx(device, x), dw(device, w), dy(device, x.size());
        Array<act_group> act(device, x.size() / 32);
        norm_args args = {dx, dw, dy, act, n, 1e-6f};
        device.run(KERNEL_rms_norm, {rows, 1, 1, threads, 128}, args);
        std::vector<float> y = dy.read();
        CHECK(distance(y, wanted) < 1e-6, "n %d: %g", n, distance(y, wanted));
        CHECK(same_bits(act.read(), groups_of(y, n)), "groups of n %d", n);
        if (seed) CHECK(same_bits(y, first), "the order of threads shows: n %d", n);
        first = y;
    }
}

int main() {
    Random r{1};
    for (int i = 0; i < 30; i++) test_norm(&r);
    return finish();
}
