/* What the rates of a device are measured with computes what it is taken for; the measuring itself
 * ends with numbers, or says why not. */
#include "gpu/dialect.h"

#include "device.h"
#include "gpu/kernels.h"
#include "gpu/kernels/probe.h"
#include "gpu/rates.h"

enum { WARPS = PROBE_THREADS / 32 };

/* Every block writes a sum for each warp. */
template <typename Args>
static void run(gpu_emulated_kernel *kernel, int blocks, const Args &args) {
    qwen3_error err;
    gpu_grid grid = {blocks, 1, 1, PROBE_THREADS, 0};
    bool done = gpu_emulated_run(kernel, grid, &args, &err) == QWEN3_OK;
    CHECK(done, "%s", err.text);
}

static void test_read(Random *r) {
    int n = 1 + r->below(9), blocks = 1 + r->below(4), wanted = 0, got = 0;
    std::vector<int4> data((size_t)n * PROBE_PIECE / sizeof(int4));
    for (int4 &v : data) {
        v = {(int)r->bits(), (int)r->bits(), (int)r->bits(), (int)r->bits()};
        wanted ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    std::vector<int> sums((size_t)(blocks * WARPS));
    run(probe_read, blocks, probe_read_args{data.data(), sums.data(), n, blocks});
    for (int sum : sums) got ^= sum;
    CHECK(got == wanted, "%d pieces, %d blocks: %x, not %x", n, blocks, (unsigned)got,
          (unsigned)wanted);
}

template <bool int8> static double value(int word, int i) {
    return int8 ? (int8_t)(word >> 8 * i) : to_float(bits_to_f16((ushort)(word >> 16 * i)));
}

/* Of a round: values of rows and of columns meet when they lie at the same place of a word of
 * lanes that agree in lane % 4. */
template <bool int8> static double products_of_a_round() {
    double sum = 0;
    for (int m = 0; m < PROBE_ROWS; m++)
        for (int j = 0; j < PROBE_COLUMNS; j++)
            for (int at = 0; at < 4 * 2 * (int8 ? 4 : 2); at++) {
                int k = at % 4, part = at / 4 % 2, i = at / 8;
                double rows = 0, columns = 0;
                for (int lane = k; lane < 32; lane += 4) {
                    for (int half = 0; half < 2; half++)
                        rows += value<int8>(probe_word<int8>(lane, m * 4 + 2 * part + half), i);
                    columns += value<int8>(probe_word<int8>(lane, 16 + j * 2 + part), i);
                }
                sum += rows * columns;
            }
    return sum;
}

template <bool int8> static void test_products(Random *r, gpu_emulated_kernel *kernel) {
    int rounds = r->below(4), blocks = 1 + r->below(2);
    std::vector<float> sums((size_t)(blocks * WARPS), NAN);
    run(kernel, blocks, probe_products_args{sums.data(), rounds});
    double wanted = rounds * products_of_a_round<int8>();
    for (float sum : sums)
        CHECK(std::fabs(sum - wanted) <= (int8 ? 0 : 0.02), "%d rounds: %g, not %g", rounds,
              (double)sum, wanted);
}

/* ---- measuring ------------------------------------------------------------------------ */

static size_t largest; /* of an allocation that the device grants */

static void *grant(gpu *g, size_t bytes, qwen3_error *err) {
    if (bytes <= largest) return gpu_emulated.alloc(g, bytes, err);
    err->status = QWEN3_ERR_MEMORY;
    return nullptr;
}

static gpu_api granting(size_t most) {
    gpu_api api = gpu_emulated;
    largest = most;
    api.alloc = grant;
    return api;
}

static void test_measuring(size_t most) {
    gpu_api api = granting(most);
    qwen3_gpu_rates rates;
    qwen3_error err = {};
    bool done = gpu_measure(&api, 0, &rates, &err) == QWEN3_OK;
    CHECK(done, "%zu bytes at once: %s", most, err.text);
    if (!done) return;
    for (double rate : {rates.read, rates.upload, rates.download, rates.f16, rates.int8})
        CHECK(std::isfinite(rate) && rate > 0, "a rate of %g", rate);
}

static void test_failure(gpu_api api, int index, qwen3_status wanted) {
    qwen3_gpu_rates rates = {1, 2, 3, 4, 5};
    qwen3_error err = {};
    qwen3_status status = gpu_measure(&api, index, &rates, &err);
    CHECK(status == wanted && err.status == wanted, "status %d: %s", status, err.text);
    CHECK(rates.read == 1 && rates.int8 == 5, "rates of a failure");
}

int main() {
    Random r{11};
    for (int i = 0; i < 6; i++) {
        test_read(&r);
        test_products<false>(&r, probe_f16);
        test_products<true>(&r, probe_int8);
    }
    test_measuring(SIZE_MAX);
    test_measuring((size_t)16 << 20); /* half of what it wants of 1 GB */
    test_failure(granting(((size_t)16 << 20) - 1), 0, QWEN3_ERR_MEMORY);
    test_failure(granting(0), 0, QWEN3_ERR_MEMORY);
    test_failure(gpu_emulated, 7, QWEN3_ERR_ARG);
    gpu_api broken = gpu_emulated;
    broken.sync = [](gpu *, int, qwen3_error *err) { return err->status = QWEN3_ERR_IO; };
    test_failure(broken, 0, QWEN3_ERR_IO);
    return finish();
}
