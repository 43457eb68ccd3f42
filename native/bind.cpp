// bind.cpp - the engine as a Python module (see qwen3_native.pyi). It converts
// and forwards; computations release the GIL.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <vector>

#include "check.h"
#include "importance.h"
#include "probe.h"
#include "qwen3.h"

namespace nb = nanobind;
using nb::literals::operator""_a;
using std::string;

namespace {

PyObject *native_error;

const char *const kv_names[] = {"f16", "f32", "q8"}; // of qwen3_kv_type

[[noreturn]] void raise(const qwen3_error &err) {
    static const char *names[] = {"ok",          "arg",    "io",      "format",
                                  "unsupported", "memory", "context", "cancelled"};
    PyObject *text = PyUnicode_DecodeUTF8(err.text, (Py_ssize_t)std::strlen(err.text), "replace");
    PyObject *args = Py_BuildValue("(sN)", names[err.status], text);
    if (args) PyErr_SetObject(native_error, args);
    Py_XDECREF(args);
    throw nb::python_error();
}

nb::bytes to_bytes(qwen3_str s) { return nb::bytes(s.data, (size_t)s.len); }

nb::str to_text(qwen3_str s) {
    return nb::steal<nb::str>(PyUnicode_DecodeUTF8(s.data, (Py_ssize_t)s.len, "replace"));
}

template <typename T> T read(const uint8_t *at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// The value at *at as a Python object; moves *at past it.
nb::object next_value(uint32_t type, const uint8_t **at) {
    const uint8_t *p = *at;
    switch (type) {
    case QWEN3_U8: *at += 1; return nb::int_(read<uint8_t>(p));
    case QWEN3_I8: *at += 1; return nb::int_(read<int8_t>(p));
    case QWEN3_U16: *at += 2; return nb::int_(read<uint16_t>(p));
    case QWEN3_I16: *at += 2; return nb::int_(read<int16_t>(p));
    case QWEN3_U32: *at += 4; return nb::int_(read<uint32_t>(p));
    case QWEN3_I32: *at += 4; return nb::int_(read<int32_t>(p));
    case QWEN3_F32: *at += 4; return nb::float_((double)read<float>(p));
    case QWEN3_BOOL: *at += 1; return nb::bool_(*p != 0);
    case QWEN3_U64: *at += 8; return nb::int_(read<uint64_t>(p));
    case QWEN3_I64: *at += 8; return nb::int_(read<int64_t>(p));
    case QWEN3_F64: *at += 8; return nb::float_(read<double>(p));
    default: return to_text(qwen3_next_string(at));
    }
}

nb::dict metadata(const qwen3_file *file, int64_t max_items) {
    static const char *types[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                  "bool", "string", "array", "u64", "i64", "f64"};
    nb::dict out;
    for (size_t i = 0; i < qwen3_file_n_kv(file); i++) {
        const qwen3_kv *kv = qwen3_file_kv(file, i);
        const uint8_t *at = kv->data;
        if (kv->type != QWEN3_ARRAY) {
            out[to_text(kv->key)] = next_value(kv->type, &at);
        } else if (max_items >= 0 && kv->count > (uint64_t)max_items) {
            out[to_text(kv->key)] = nb::make_tuple("array", types[kv->item_type], kv->count);
        } else {
            nb::list items;
            for (uint64_t j = 0; j < kv->count; j++) items.append(next_value(kv->item_type, &at));
            out[to_text(kv->key)] = items;
        }
    }
    return out;
}

nb::dict value_types(const qwen3_file *file) {
    nb::dict out;
    for (size_t i = 0; i < qwen3_file_n_kv(file); i++) {
        const qwen3_kv *kv = qwen3_file_kv(file, i);
        out[to_text(kv->key)] = nb::make_tuple(kv->type, kv->item_type);
    }
    return out;
}

nb::dict data_offsets(const qwen3_file *file) {
    nb::dict out;
    for (size_t i = 0; i < qwen3_file_n_tensors(file); i++) {
        const qwen3_tensor *t = qwen3_file_tensor(file, i);
        out[to_text(t->name)] = t->offset;
    }
    return out;
}

nb::list tensor_table(const qwen3_file *file) {
    nb::list out;
    for (size_t i = 0; i < qwen3_file_n_tensors(file); i++) {
        const qwen3_tensor *t = qwen3_file_tensor(file, i);
        nb::list shape;
        for (uint32_t d = t->n_dims; d-- > 0;) shape.append(t->shape[d]);
        const char *name = qwen3_type_name(t->type);
        string type = name ? name : "type " + std::to_string(t->type);
        out.append(nb::make_tuple(to_text(t->name), nb::tuple(shape), type, t->bytes));
    }
    return out;
}

nb::list shard_numbers(const qwen3_file *file) {
    nb::list out;
    for (size_t i = 0; i < qwen3_file_n_tensors(file); i++)
        out.append(qwen3_file_tensor(file, i)->shard);
    return out;
}

template <typename T> nb::capsule owner_of(T *array) {
    return nb::capsule(array, [](void *p) noexcept { delete[] static_cast<T *>(p); });
}

string path_of(const nb::bytes &path) {
    if (std::strlen(path.c_str()) != path.size()) throw nb::value_error("the path holds a NUL byte");
    return path.c_str();
}

uint32_t type_of(const string &name) {
    for (uint32_t type = 0; type < 256; type++) {
        const char *known = qwen3_type_name(type);
        if (known && name == known) return type;
    }
    throw nb::value_error(("there is no weight type '" + name + "'").c_str());
}

struct File {
    qwen3_file *file;
    explicit File(const nb::bytes &path) {
        qwen3_error err;
        file = qwen3_file_open(path_of(path).c_str(), &err);
        if (!file) raise(err);
    }
    File(const File &) = delete;
    ~File() { qwen3_file_close(file); }
};

struct Tokenizer { // copies what it needs of a file
    qwen3_tokenizer *tokenizer;
    explicit Tokenizer(const nb::bytes &path) : Tokenizer(File(path).file) {}
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

struct Model {
    qwen3_model *model;
    Model(const nb::bytes &path, int threads, uint64_t expert_bytes) {
        qwen3_error err;
        string name = path_of(path);
        {
            nb::gil_scoped_release release;
            model = qwen3_model_open(name.c_str(), threads, expert_bytes, &err);
        }
        if (!model) raise(err);
    }
    Model(const Model &) = delete;
    ~Model() { qwen3_model_close(model); }

    nb::dict config() const {
        const qwen3_config *c = qwen3_model_config(model);
        nb::dict d;
        d["arch"] = c->arch;
        d["n_layers"] = c->n_layers;
        d["n_embd"] = c->n_embd;
        d["n_heads"] = c->n_heads;
        d["n_kv_heads"] = c->n_kv_heads;
        d["head_dim"] = c->head_dim;
        d["n_ff"] = c->n_ff;
        d["n_vocab"] = c->n_vocab;
        d["n_ctx_train"] = c->n_ctx_train;
        d["n_experts"] = c->n_experts;
        d["n_experts_used"] = c->n_experts_used;
        d["n_ff_expert"] = c->n_ff_expert;
        d["rope_theta"] = c->rope_theta;
        d["rms_eps"] = c->rms_eps;
        d["yarn_factor"] = c->yarn_factor;
        d["tied_embedding"] = c->tied_embedding;
        d["kv"] = kv_names[c->default_kv];
        return d;
    }
    void approximate(float prefer, float drop) {
        qwen3_error err;
        if (qwen3_model_approximate(model, {prefer, drop}, &err) != QWEN3_OK) raise(err);
    }
    nb::dict expert_stats() const {
        qwen3_expert_stats s = qwen3_model_expert_stats(model);
        nb::dict d;
        d["budget_bytes"] = s.budget;
        d["used_bytes"] = s.used;
        d["hits"] = s.hits;
        d["misses"] = s.misses;
        d["guesses"] = s.guesses;
        d["right_guesses"] = s.right_guesses;
        d["bytes_read"] = s.bytes_read;
        d["stall_s"] = s.stall_s;
        d["direct"] = s.direct;
        return d;
    }
};

struct Importance {
    qwen3_importance *importance;
    explicit Importance(const Model &m) {
        qwen3_error err;
        importance = qwen3_importance_new(m.model, &err);
        if (!importance) raise(err);
    }
    Importance(const Importance &) = delete;
    ~Importance() { qwen3_importance_free(importance); }

    nb::tuple inputs(size_t index) const {
        if (index >= qwen3_importance_n_matrices(importance)) throw nb::index_error();
        qwen3_inputs in = qwen3_importance_inputs(importance, index);
        size_t n = (size_t)in.n_experts, n_in = (size_t)in.n_in;
        double *sums = new double[n * n_in];
        nb::capsule sums_owner = owner_of(sums);
        int64_t *counts = new int64_t[n];
        nb::capsule counts_owner = owner_of(counts);
        std::memcpy(sums, in.sums, n * n_in * sizeof *sums);
        std::memcpy(counts, in.counts, n * sizeof *counts);
        return nb::make_tuple(
            in.name, nb::ndarray<nb::numpy, double, nb::ndim<2>>(sums, {n, n_in}, sums_owner),
            nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>(counts, {n}, counts_owner));
    }
};

// Without the GIL a second thread could enter a session that computes: it is turned away.
class Turn {
    std::atomic_flag &busy;

  public:
    explicit Turn(std::atomic_flag &flag) : busy(flag) {
        if (busy.test_and_set(std::memory_order_acquire))
            raise({QWEN3_ERR_ARG, "the session is in use by another thread"});
    }
    Turn(const Turn &) = delete;
    ~Turn() { busy.clear(std::memory_order_release); }
};

using OwnedBytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<2>>;
using OwnedFloats = nb::ndarray<nb::numpy, float, nb::ndim<1>>;
using OwnedRows = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

using Routes = nb::ndarray<const int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

struct Session {
    qwen3_session *session;
    size_t n_vocab, n_layers, n_used;
    std::vector<int32_t> forced, forced_guesses;
    mutable std::atomic_flag busy = ATOMIC_FLAG_INIT;
    Session(const Model &m, int32_t n_ctx, const string &kv) {
        const char *const *name = std::find(std::begin(kv_names), std::end(kv_names), kv);
        if (name == std::end(kv_names)) throw nb::value_error("kv is \"f16\", \"f32\" or \"q8\"");
        qwen3_error err;
        session = qwen3_session_new(m.model, n_ctx, (qwen3_kv_type)(name - kv_names), &err);
        if (!session) raise(err);
        n_vocab = (size_t)qwen3_model_config(m.model)->n_vocab;
        n_layers = (size_t)qwen3_model_config(m.model)->n_layers;
        n_used = (size_t)qwen3_model_config(m.model)->n_experts_used;
    }
    Session(const Session &) = delete;
    ~Session() { qwen3_session_free(session); }

    int64_t sync(const std::vector<int32_t> &ids) {
        Turn turn(busy);
        qwen3_error err;
        int64_t reused;
        {
            nb::gil_scoped_release release;
            reused = qwen3_sync(session, ids.data(), ids.size(), &err);
        }
        if (reused < 0) raise(err);
        return reused;
    }
    void extend(const std::vector<int32_t> &ids) {
        Turn turn(busy);
        qwen3_error err;
        qwen3_status status;
        {
            nb::gil_scoped_release release;
            status = qwen3_extend(session, ids.data(), ids.size(), &err);
        }
        if (status != QWEN3_OK) raise(err);
    }
    std::vector<int32_t> copied(const Routes &routes) const {
        if (routes.shape(1) != n_layers || routes.shape(2) != n_used)
            throw nb::value_error("routes are int32[tokens, layers, experts used]");
        return {routes.data(), routes.data() + routes.size()};
    }
    void force_routes(const Routes &routes, const std::optional<Routes> &guesses) {
        Turn turn(busy);
        qwen3_error err;
        std::vector<int32_t> to = copied(routes), guess;
        if (guesses) guess = copied(*guesses);
        if (guesses && guess.size() != to.size())
            throw nb::value_error("there are as many guesses as routes");
        if (qwen3_session_force_routes(session, to.data(), guesses ? guess.data() : nullptr,
                                       routes.shape(0), &err) != QWEN3_OK)
            raise(err);
        forced = std::move(to); // the data stay where they are
        forced_guesses = std::move(guess);
    }
    void observe(const Importance *importance) {
        Turn turn(busy);
        qwen3_error err;
        qwen3_importance *to = importance ? importance->importance : nullptr;
        if (qwen3_session_observe(session, to, &err) != QWEN3_OK) raise(err);
    }
    OwnedRows extend_logits(const std::vector<int32_t> &ids) {
        Turn turn(busy);
        // What does not fit would be an error: no memory is taken for it.
        size_t n = ids.size() > qwen3_session_n_ctx(session) ? 0 : ids.size();
        float *logits = new float[n * n_vocab];
        nb::capsule owner = owner_of(logits);
        qwen3_error err;
        qwen3_status status;
        {
            nb::gil_scoped_release release;
            status = qwen3_extend_logits(session, ids.data(), ids.size(), logits, &err);
        }
        if (status != QWEN3_OK) raise(err);
        return {logits, {n, n_vocab}, owner};
    }
    void fill(size_t n) {
        Turn turn(busy);
        qwen3_error err;
        qwen3_status status;
        {
            nb::gil_scoped_release release;
            status = qwen3_session_fill(session, n, &err);
        }
        if (status != QWEN3_OK) raise(err);
    }
    nb::ndarray<nb::numpy, float, nb::ndim<1>> logits() const {
        Turn turn(busy);
        const float *logits = qwen3_session_logits(session);
        if (!logits)
            raise({QWEN3_ERR_ARG, "there are no logits yet: sync the session first"});
        float *copy = new float[n_vocab];
        nb::capsule owner = owner_of(copy);
        std::memcpy(copy, logits, n_vocab * sizeof *copy);
        return {copy, {n_vocab}, owner};
    }
    int32_t sample(float temperature, int top_k, float top_p, float min_p, float presence,
                   float repetition, uint64_t seed, size_t generated_from) {
        Turn turn(busy);
        qwen3_error err;
        qwen3_sampling how = {temperature, top_k, top_p, min_p, presence, repetition, seed};
        int32_t token = qwen3_sample(session, &how, generated_from, &err);
        if (token < 0) raise(err);
        return token;
    }
    std::vector<int32_t> ids() const {
        Turn turn(busy);
        const int32_t *ids = qwen3_session_ids(session);
        return std::vector<int32_t>(ids, ids + qwen3_session_len(session));
    }
};

struct Probe {
    qwen3_probe *probe;
    Probe(const Model &m, size_t bytes) {
        qwen3_error err;
        {
            nb::gil_scoped_release release;
            probe = qwen3_probe_new(m.model, bytes, &err);
        }
        if (!probe) raise(err);
    }
    Probe(const Probe &) = delete;
    ~Probe() { qwen3_probe_free(probe); }

    template <double (*measure)(qwen3_probe *)> double rate() {
        nb::gil_scoped_release release;
        return measure(probe);
    }
};

using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes1 = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

OwnedBytes quantize_rows(const string &type_name, const Floats2 &rows,
                    const std::optional<Floats1> &weights) {
    uint32_t type = type_of(type_name);
    size_t n_rows = rows.shape(0), n_per_row = rows.shape(1);
    size_t row_bytes = qwen3_type_bytes(type, n_per_row);
    if (row_bytes == 0) throw nb::value_error("rows are not whole blocks of this type");
    if (weights && weights->shape(0) != n_per_row)
        throw nb::value_error("there must be one weight for each value of a row");
    uint8_t *out = new uint8_t[n_rows * row_bytes];
    nb::capsule owner = owner_of(out);
    const float *src = rows.data(), *importance = weights ? weights->data() : nullptr;
    qwen3_error err;
    qwen3_status status;
    {
        nb::gil_scoped_release release;
        status = qwen3_quantize(type, src, out, n_rows * n_per_row, n_per_row, importance, &err);
    }
    if (status != QWEN3_OK) raise(err);
    return {out, {n_rows, row_bytes}, owner};
}

// Rows [start, stop) of a tensor, seen as a matrix of its fastest dimension.
struct Rows {
    uint32_t type;
    size_t n, row_bytes; // of a row
    const uint8_t *data;
};

Rows rows_of(const qwen3_file *file, const string &name, size_t start, size_t stop) {
    const qwen3_tensor *t = nullptr;
    for (size_t i = 0; i < qwen3_file_n_tensors(file) && !t; i++) {
        const qwen3_tensor *each = qwen3_file_tensor(file, i);
        if (string(each->name.data, each->name.len) == name) t = each;
    }
    if (!t) throw nb::key_error(name.c_str());
    size_t n = t->shape[0], n_rows = t->shape[1] * t->shape[2] * t->shape[3];
    size_t row_bytes = qwen3_type_bytes(t->type, n);
    if (row_bytes == 0) raise({QWEN3_ERR_UNSUPPORTED, "the tensor has a type that cannot be read"});
    if (start > stop || stop > n_rows) throw nb::index_error("the tensor has fewer rows");
    return {t->type, n, row_bytes, t->data + start * row_bytes};
}

OwnedRows read_rows(const qwen3_file *file, const string &name, size_t start, size_t stop) {
    Rows rows = rows_of(file, name, start, stop);
    size_t count = (stop - start) * rows.n;
    float *out = new float[count];
    nb::capsule owner = owner_of(out);
    qwen3_error err;
    qwen3_status status;
    {
        nb::gil_scoped_release release;
        status = qwen3_dequantize(rows.type, rows.data, out, count, &err);
    }
    if (status != QWEN3_OK) raise(err);
    return {out, {stop - start, rows.n}, owner};
}

// The first of the rows that holds a NaN or an infinity, None if all are finite.
std::optional<size_t> find_row_not_finite(const qwen3_file *file, const string &name, size_t start,
                                          size_t stop) {
    Rows rows = rows_of(file, name, start, stop);
    nb::gil_scoped_release release;
    size_t row = start + first_row_not_finite(rows.type, rows.data, stop - start, rows.n);
    return row < stop ? std::optional(row) : std::nullopt;
}

OwnedFloats dequantize_values(const string &type_name, const Bytes1 &data, size_t n) {
    uint32_t type = type_of(type_name);
    size_t bytes = qwen3_type_bytes(type, n);
    if (bytes == 0 || data.shape(0) < bytes)
        throw nb::value_error("the data is not that many values of this type");
    float *out = new float[n];
    nb::capsule owner = owner_of(out);
    const uint8_t *src = data.data();
    qwen3_error err;
    qwen3_status status;
    {
        nb::gil_scoped_release release;
        status = qwen3_dequantize(type, src, out, n, &err);
    }
    if (status != QWEN3_OK) raise(err);
    return {out, {n}, owner};
}

} // namespace

NB_MODULE(qwen3_native, m) {
    nb::set_leak_warnings(false); // a session that lives until exit is no fault of its user
    native_error = PyErr_NewException("qwen3_native.NativeError", PyExc_Exception, nullptr);
    m.attr("NativeError") = nb::handle(native_error);

    nb::class_<File>(m, "File")
        .def(nb::init<const nb::bytes &>(), "path"_a)
        .def_prop_ro("version", [](const File &f) { return qwen3_file_version(f.file); })
        .def("metadata", [](const File &f, int64_t max) { return metadata(f.file, max); },
             "max_items"_a = -1)
        .def("value_types", [](const File &f) { return value_types(f.file); })
        .def("tensors", [](const File &f) { return tensor_table(f.file); })
        .def("shards", [](const File &f) { return shard_numbers(f.file); })
        .def("data_offsets", [](const File &f) { return data_offsets(f.file); })
        .def("read_rows",
             [](const File &f, const string &name, size_t start, size_t stop) {
                 return read_rows(f.file, name, start, stop);
             },
             "name"_a, "start"_a, "stop"_a)
        .def("find_row_not_finite",
             [](const File &f, const string &name, size_t start, size_t stop) {
                 return find_row_not_finite(f.file, name, start, stop);
             },
             "name"_a, "start"_a, "stop"_a);

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

    nb::class_<Session>(m, "Session")
        .def_prop_ro("n_ctx", [](const Session &s) { return qwen3_session_n_ctx(s.session); })
        .def_prop_ro("kv_bytes", [](const Session &x) { return qwen3_session_kv_bytes(x.session); })
        .def("__len__", [](const Session &s) { return qwen3_session_len(s.session); })
        .def("ids", &Session::ids)
        .def("sync", &Session::sync, "ids"_a)
        .def("extend", &Session::extend, "ids"_a)
        .def("force_routes", &Session::force_routes, "routes"_a, "guesses"_a = nb::none())
        .def("observe", &Session::observe, "importance"_a.none(), nb::keep_alive<1, 2>())
        .def("extend_logits", &Session::extend_logits, "ids"_a)
        .def("fill", &Session::fill, "n"_a)
        .def("logits", &Session::logits)
        .def("sample", &Session::sample, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
             "presence_penalty"_a, "repetition_penalty"_a, "seed"_a, "generated_from"_a)
        .def("cancel", [](Session &s) { qwen3_session_cancel(s.session); });

    nb::class_<Model>(m, "Model")
        .def(nb::init<const nb::bytes &, int, uint64_t>(), "path"_a, "threads"_a = 0,
             "expert_bytes"_a = 0)
        .def_prop_ro("config", &Model::config)
        .def_prop_ro("threads", [](const Model &x) { return qwen3_model_n_threads(x.model); })
        .def_prop_ro("expert_stats", &Model::expert_stats)
        .def("approximate", &Model::approximate, "prefer"_a, "drop"_a)
        .def("guess",
             [](const Model &x, std::optional<bool> on) {
                 qwen3_model_guess(x.model, !on   ? QWEN3_GUESS_TRY
                                            : *on ? QWEN3_GUESS_ON
                                                  : QWEN3_GUESS_OFF);
             },
             "on"_a.none())
        .def_prop_ro("isa", [](const Model &x) { return qwen3_model_isa(x.model); })
        .def("metadata",
             [](const Model &x, int64_t max) { return metadata(qwen3_model_file(x.model), max); },
             "max_items"_a = -1)
        .def("tokenizer",
             [](const Model &x) { return new Tokenizer(qwen3_model_file(x.model)); })
        .def("session",
             [](const Model &x, int32_t n_ctx, const string &kv) {
                 return new Session(x, n_ctx, kv);
             },
             "n_ctx"_a, "kv"_a, nb::keep_alive<0, 1>());

    nb::class_<Importance>(m, "Importance")
        .def(nb::init<const Model &>(), "model"_a, nb::keep_alive<1, 2>())
        .def("__len__", [](const Importance &x) { return qwen3_importance_n_matrices(x.importance); })
        .def("inputs", &Importance::inputs, "index"_a);

    nb::class_<Probe>(m, "Probe")
        .def(nb::init<const Model &, size_t>(), "model"_a, "bytes"_a, nb::keep_alive<1, 2>())
        .def("read", &Probe::rate<qwen3_probe_read>)
        .def("int8", &Probe::rate<qwen3_probe_int8>)
        .def("f32", &Probe::rate<qwen3_probe_f32>);

    m.def("quantize", &quantize_rows, "type"_a, "rows"_a, "weights"_a = nb::none());
    m.def("dequantize", &dequantize_values, "type"_a, "data"_a, "n"_a);
    m.def("type_bytes",
          [](const string &type, size_t n) { return qwen3_type_bytes(type_of(type), n); },
          "type"_a, "n"_a);
    m.def("isas", [] {
        std::vector<string> names;
        const char *name;
        for (size_t i = 0; (name = qwen3_isa(i)); i++) names.push_back(name);
        return names;
    });
}
