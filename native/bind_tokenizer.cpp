// bind_tokenizer.cpp - tokenizers in Python.

#include <memory>

#include "bind.h"

namespace {

nb::bytes to_bytes(qwen3_str s) { return nb::bytes(s.data, (size_t)s.len); }

struct Tokenizer { // copies what it needs of a file
    qwen3_tokenizer *tokenizer;
    explicit Tokenizer(const nb::bytes &path) {
        qwen3_error err;
        qwen3_file *file = qwen3_file_open(path_of(path).c_str(), &err);
        tokenizer = file ? qwen3_tokenizer_new(file, &err) : nullptr;
        qwen3_file_close(file);
        if (!tokenizer) raise(err);
    }
    explicit Tokenizer(const qwen3_file *file) {
        qwen3_error err;
        tokenizer = qwen3_tokenizer_new(file, &err);
        if (!tokenizer) raise(err);
    }
    Tokenizer(const Tokenizer &) = delete;
    ~Tokenizer() { qwen3_tokenizer_free(tokenizer); }

    std::vector<int32_t> encode(nb::bytes text, bool parse_added) const {
        qwen3_error err;
        int32_t *ids = nullptr;
        int64_t n;
        {
            nb::gil_scoped_release release;
            n = qwen3_encode(tokenizer, text.c_str(), text.size(), parse_added, &ids, &err);
        }
        if (n < 0) raise(err);
        std::unique_ptr<int32_t, void (*)(void *)> guard(ids, qwen3_free);
        return std::vector<int32_t>(ids, ids + n);
    }
    nb::bytes join(const std::vector<int32_t> &tokens, bool skip_control) const {
        string out;
        for (int32_t token : tokens) {
            if (skip_control && qwen3_token_kind(tokenizer, token) == 2) continue;
            qwen3_str piece = qwen3_token_bytes(tokenizer, token);
            if (piece.len) out.append(piece.data, (size_t)piece.len);
        }
        return nb::bytes(out.data(), out.size());
    }
};

} // namespace

nb::object new_tokenizer(const qwen3_file *file) {
    return nb::cast(new Tokenizer(file), nb::rv_policy::take_ownership);
}

const qwen3_tokenizer *tokenizer_of(nb::handle tokenizer) {
    return nb::cast<Tokenizer &>(tokenizer).tokenizer;
}

void bind_tokenizer(nb::module_ &m) {
    nb::class_<Tokenizer>(m, "Tokenizer")
        .def(nb::init<const nb::bytes &>(), "path"_a)
        .def_prop_ro("n_tokens",
                     [](const Tokenizer &t) { return qwen3_tokenizer_n_tokens(t.tokenizer); })
        .def("encode", &Tokenizer::encode, "text"_a, "parse_added"_a = false)
        .def("token_bytes",
             [](const Tokenizer &t, int32_t id) {
                 return to_bytes(qwen3_token_bytes(t.tokenizer, id));
             },
             "token"_a)
        .def("added",
             [](const Tokenizer &t) {
                 nb::dict out;
                 int32_t n = (int32_t)qwen3_tokenizer_n_tokens(t.tokenizer);
                 for (int32_t id = 0; id < n; id++)
                     if (qwen3_token_kind(t.tokenizer, id))
                         out[to_text(qwen3_token_bytes(t.tokenizer, id))] = id;
                 return out;
             })
        .def("join", &Tokenizer::join, "tokens"_a, "skip_control"_a = false);
}
