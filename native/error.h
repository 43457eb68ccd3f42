/* error.h - fills a qwen3_error and returns its status. */
#ifndef QWEN3_ERROR_H
#define QWEN3_ERROR_H

#include "qwen3.h"

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
qwen3_status fail(qwen3_error *err, qwen3_status status, const char *format, ...);

#endif
