// bind_machine.cpp - what the machine has and can do: instruction sets, GPUs, probes, in Python.

#include "bind.h"
#include "device.h"
#include "probe.h"

namespace {

struct Probe {
    qwen3_probe *probe;
    Probe(nb::handle of, size_t bytes) {
        qwen3_model *model = model_of(of);
        qwen3_error err;
        {
            nb::gil_scoped_release release;
            probe = qwen3_probe_new(model, bytes, &err);
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

nb::list isas() {
    nb::list names;
    const char *name;
    for (size_t i = 0; (name = qwen3_isa(i)); i++) names.append(name);
    return names;
}

nb::dict device_at(int index) {
    qwen3_device d;
    qwen3_error err;
    qwen3_status status;
    {
        nb::gil_scoped_release release;
        status = qwen3_device_describe(index, &d, &err);
    }
    if (status != QWEN3_OK) raise(err);
    nb::dict all;
    all["backend"] = d.backend;
    all["name"] = to_text({d.name, std::strlen(d.name)});
    all["total_bytes"] = d.total_bytes;
    all["free_bytes"] = d.free_bytes;
    all["n_units"] = d.n_units;
    all["unified"] = d.unified;
    return all;
}

nb::tuple devices() {
    qwen3_error why = {QWEN3_OK, ""};
    int n;
    {
        nb::gil_scoped_release release;
        n = qwen3_n_devices(&why);
    }
    if (n == 0 && why.status != QWEN3_ERR_UNSUPPORTED) raise(why);
    nb::list all;
    for (int i = 0; i < n; i++) all.append(device_at(i));
    return nb::make_tuple(all, to_text({why.text, n ? 0 : std::strlen(why.text)}));
}

nb::dict probe_device(int index) {
    qwen3_gpu_rates rates;
    qwen3_error err;
    qwen3_status status;
    {
        nb::gil_scoped_release release;
        status = qwen3_device_probe(index, &rates, &err);
    }
    if (status != QWEN3_OK) raise(err);
    nb::dict all;
    all["read"] = rates.read;
    all["upload"] = rates.upload;
    all["download"] = rates.download;
    all["f16"] = rates.f16;
    all["int8"] = rates.int8;
    return all;
}

} // namespace

void bind_machine(nb::module_ &m) {
    nb::class_<Probe>(m, "Probe")
        .def(nb::init<nb::handle, size_t>(), "model"_a, "bytes"_a, nb::keep_alive<1, 2>())
        .def("read", &Probe::rate<qwen3_probe_read>)
        .def("int8", &Probe::rate<qwen3_probe_int8>)
        .def("f32", &Probe::rate<qwen3_probe_f32>);

    m.def("isas", &isas);
    m.def("devices", &devices);
    m.def("probe_device", &probe_device, "index"_a);
}
