/* error.c - see error.h. */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>

qwen3_status fail(qwen3_error *err, qwen3_status status, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        err->status = status;
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
    }
    return status;
}
