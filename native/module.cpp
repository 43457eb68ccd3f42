// module.cpp - the engine as a Python module, of the parts that bind.h lists.

#include "bind.h"

NB_MODULE(qwen3_native, m) {
    nb::set_leak_warnings(false); // a session that lives until exit is no fault of its user
    bind_errors(m);
    bind_files(m);
    bind_tokenizer(m);
    bind_grammar(m);
    bind_models(m);
    bind_machine(m);
}
