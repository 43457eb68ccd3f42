// bind.cpp - see bind.h.

#include "bind.h"

static PyObject *native_error;

void bind_errors(nb::module_ &m) {
    native_error = PyErr_NewException("qwen3_native.NativeError", PyExc_Exception, nullptr);
    m.attr("NativeError") = nb::handle(native_error);
}

[[noreturn]] void raise(const qwen3_error &err) {
    static const char *names[] = {"ok",          "arg",    "io",      "format",
                                  "unsupported", "memory", "context", "cancelled"};
    PyObject *text = PyUnicode_DecodeUTF8(err.text, (Py_ssize_t)std::strlen(err.text), "replace");
    PyObject *args = Py_BuildValue("(sN)", names[err.status], text);
    if (args) PyErr_SetObject(native_error, args);
    Py_XDECREF(args);
    throw nb::python_error();
}

nb::str to_text(qwen3_str s) {
    return nb::steal<nb::str>(PyUnicode_DecodeUTF8(s.data, (Py_ssize_t)s.len, "replace"));
}

string path_of(const nb::bytes &path) {
    if (std::strlen(path.c_str()) != path.size())
        throw nb::value_error("the path holds a NUL byte");
    return path.c_str();
}
