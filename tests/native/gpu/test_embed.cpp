/* Rows of the embedding matrix have the bits of the decoders. */
#include "device.h"

static void test_type(Random *r, uint32_t type, int threads) {
    const weight_type *t = weight_type_of(type);
    int n_embd = t->block * (t->block < 32 ? 32 * (1 + r->below(9)) : 1 + r->below(4));
    int n_vocab = 1 + r->below(20), n = 1 + r->below(5);
    size_t row_bytes = (size_t)(n_embd / t->block * t->bytes);
    std::vector<unsigned char> table((size_t)n_vocab * row_bytes);
    for (unsigned char &byte : table) byte = (unsigned char)r->bits();
    std::vector<int> ids;
    std::vector<float> wanted((size_t)(n * n_embd)), first;
    for (int i = 0; i < n; i++) {
        ids.push_back(r->below(n_vocab + 2) - 1); /* some are none */
        int id = ids.back();
        if (id >= 0 && id < n_vocab)
            t->decode(table.data() + (size_t)id * row_bytes, &wanted[(size_t)(i * n_embd)],
                      (size_t)n_embd);
    }
    Device device(r->bits());
    Array<unsigned char> dtable(device, table);
    Array<int> dids(device, ids);
    Array<float> y(device, wanted.size());
    embed_args args = {dtable, dids, y, type, n_embd, n_vocab, row_bytes};
    device.run(KERNEL_embed_rows, {n, 1, 1, threads, 0}, args);
    for (size_t i = 0; i < wanted.size(); i++)
        CHECK(!std::memcmp(&y[i], &wanted[i], 4) || (std::isnan(y[i]) && std::isnan(wanted[i])),
              "%s: value %zu of row %d: %g, not %g", t->name, i % (size_t)n_embd,
              ids[i / (size_t)n_embd], (double)y[i], (double)wanted[i]);
}

int main() {
    Random r{3};
    for (uint32_t type = 0; type < TYPE_COUNT; type++)
        for (int i = 0; weight_type_of(type) && i < 5; i++) test_type(&r, type, 32 << i % 3);
    return finish();
}
