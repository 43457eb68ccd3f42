// bind_grammar.cpp - grammars and matchers in Python.

#include "bind.h"

namespace {

struct Trie {
    qwen3_trie *trie;
    explicit Trie(nb::handle tokenizer) {
        qwen3_error err;
        trie = qwen3_trie_new(tokenizer_of(tokenizer), &err);
        if (!trie) raise(err);
    }
    Trie(const Trie &) = delete;
    ~Trie() { qwen3_trie_free(trie); }
};

struct Grammar {
    qwen3_grammar *grammar;
    Grammar(const Trie &trie, const nb::bytes &code, const nb::bytes &sets, int32_t start,
            const std::vector<int32_t> &end) {
        if (code.size() % sizeof(qwen3_instruction) || sets.size() % 32)
            throw nb::value_error("code is int32[n, 5] and sets are uint8[n, 32]");
        // Bytes of Python are aligned for any type: they lie behind the head of their object.
        qwen3_program program = {
            reinterpret_cast<const qwen3_instruction *>(code.c_str()),
            code.size() / sizeof(qwen3_instruction),
            reinterpret_cast<const uint8_t(*)[32]>(sets.c_str()), sets.size() / 32, start};
        qwen3_error err;
        grammar = qwen3_grammar_new(trie.trie, &program, end.data(), end.size(), &err);
        if (!grammar) raise(err);
    }
    Grammar(const Grammar &) = delete;
    ~Grammar() { qwen3_grammar_free(grammar); }
};

struct Matcher {
    qwen3_matcher *matcher;
    explicit Matcher(const Grammar &g) {
        qwen3_error err;
        matcher = qwen3_matcher_new(g.grammar, &err);
        if (!matcher) raise(err);
    }
    Matcher(const Matcher &) = delete;
    ~Matcher() { qwen3_matcher_free(matcher); }

    void accept(int32_t token) {
        qwen3_error err;
        if (qwen3_matcher_accept(matcher, token, &err) != QWEN3_OK) raise(err);
    }
    nb::ndarray<nb::numpy, bool, nb::ndim<1>> mask() {
        qwen3_error err;
        size_t n;
        const uint64_t *mask = qwen3_matcher_mask(matcher, &n, &err);
        if (!mask) raise(err);
        bool *allowed = new bool[n];
        nb::capsule owner = owner_of(allowed);
        for (size_t i = 0; i < n; i++) allowed[i] = mask[i / 64] >> i % 64 & 1;
        return {allowed, {n}, owner};
    }
};

} // namespace

qwen3_matcher *matcher_of(nb::handle matcher) { return nb::cast<Matcher &>(matcher).matcher; }

void bind_grammar(nb::module_ &m) {
    nb::class_<Trie>(m, "Trie").def(nb::init<nb::handle>(), "tokenizer"_a, nb::keep_alive<1, 2>());

    nb::class_<Grammar>(m, "Grammar")
        .def(nb::init<const Trie &, const nb::bytes &, const nb::bytes &, int32_t,
                      const std::vector<int32_t> &>(),
             "trie"_a, "code"_a, "sets"_a, "start"_a, "end"_a, nb::keep_alive<1, 2>());

    nb::class_<Matcher>(m, "Matcher")
        .def(nb::init<const Grammar &>(), "grammar"_a, nb::keep_alive<1, 2>())
        .def("accept", &Matcher::accept, "token"_a)
        .def("mask", &Matcher::mask)
        .def_prop_ro("complete", [](const Matcher &x) { return qwen3_matcher_complete(x.matcher); })
        .def_prop_ro("finished",
                     [](const Matcher &x) { return qwen3_matcher_finished(x.matcher); });
}
