/* The instance's log. */
#ifndef FULGUR_BASE_LOG_H
#define FULGUR_BASE_LOG_H

#include "base/status.h"

typedef struct log_sink {
    ful_log_fn fn; /* NULL: silent */
    void *ctx;
    ful_log_level level; /* most verbose level that is passed on */
} log_sink;

void log_write(const log_sink *sink, ful_log_level level, const char *format, ...)
    PRINTF_LIKE(3, 4);

#endif
