// bind_files.cpp - GGUF files in Python: their metadata, tensors and rows, and the codecs.

#include "bind.h"
#include "check.h"
#include "rows.h"

namespace {

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

} // namespace

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

namespace {

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

void bind_files(nb::module_ &m) {
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

    m.def("quantize", &quantize_rows, "type"_a, "rows"_a, "weights"_a = nb::none());
    m.def("dequantize", &dequantize_values, "type"_a, "data"_a, "n"_a);
    m.def("type_bytes",
          [](const string &type, size_t n) { return qwen3_type_bytes(type_of(type), n); },
          "type"_a, "n"_a);
}
