#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void log_write(const log_sink *sink, ful_log_level level, const char *format, ...)
{
    if (!sink || !sink->fn)
        return;
    ful_log_level most = sink->level == FUL_LOG_DEFAULT ? FUL_LOG_INFO : sink->level;
    if (level > most)
        return;
    char text[2048];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0)
        snprintf(text, sizeof text, "%s", format);
    size_t end = strlen(text);
    while (end > 0 && text[end - 1] == '\n')
        text[--end] = '\0';
    sink->fn(sink->ctx, level, text);
}
