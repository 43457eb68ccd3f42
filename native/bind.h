// bind.h - what the parts of the Python module share. Each part adds its classes and functions to
// the module (see qwen3_native.pyi). They convert and forward; computations release the GIL.

#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <vector>

#include "grammar.h"

namespace nb = nanobind;
using nb::literals::operator""_a;
using std::string;

void bind_errors(nb::module_ &);
void bind_files(nb::module_ &);     // files, rows of their tensors, codecs
void bind_tokenizer(nb::module_ &);
void bind_grammar(nb::module_ &);   // grammars and matchers
void bind_models(nb::module_ &);    // models, sessions, importances
void bind_machine(nb::module_ &);   // instruction sets, GPUs, probes

// Throws err as a NativeError: (status, text).
[[noreturn]] void raise(const qwen3_error &err);

// Invalid UTF-8 reads as U+FFFD.
nb::str to_text(qwen3_str);
string path_of(const nb::bytes &);

// Values by key; an array longer than max_items (if that is not negative) as its type and count.
nb::dict metadata(const qwen3_file *, int64_t max_items);
// A new qwen3_native.Tokenizer.
nb::object new_tokenizer(const qwen3_file *);
// What a qwen3_native.Tokenizer, .Matcher or .Model holds; a cast error for anything else.
const qwen3_tokenizer *tokenizer_of(nb::handle);
qwen3_matcher *matcher_of(nb::handle);
qwen3_model *model_of(nb::handle);

// Arrays that Python owns.
using OwnedBytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<2>>;
using OwnedFloats = nb::ndarray<nb::numpy, float, nb::ndim<1>>;
using OwnedRows = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

template <typename T> nb::capsule owner_of(T *array) {
    return nb::capsule(array, [](void *p) noexcept { delete[] static_cast<T *>(p); });
}
