#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { LINE_BYTES = 1024 };

static _Thread_local char line[LINE_BYTES];

/* Texts from files (tensor names, JSON values) end up in error lines, so: one line, printable, and
 * no half of a UTF-8 sequence where the text was cut. */
static void line_set(const char *text, bool cut)
{
    static const char mark[] = "...";
    size_t n = strlen(text);
    if (n > LINE_BYTES - 1)
        n = LINE_BYTES - 1;
    if (cut) {
        if (n > LINE_BYTES - sizeof mark)
            n = LINE_BYTES - sizeof mark;
        while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80)
            n--;
    }
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        line[i] = text[i];
        if (c < 0x20 || c == 0x7f)
            line[i] = '?';
    }
    line[n] = '\0';
    if (cut)
        memcpy(line + n, mark, sizeof mark);
}

ful_result fail(ful_result result, const char *format, ...)
{
    /* Not formatted in place: an argument may be the present line. */
    char text[LINE_BYTES];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0)
        snprintf(text, sizeof text, "%s", format);
    line_set(text, n >= LINE_BYTES);
    return result;
}

ful_result fail_context(ful_result result, const char *format, ...)
{
    char text[2 * LINE_BYTES + 2];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, LINE_BYTES, format, args);
    va_end(args);
    if (n < 0)
        snprintf(text, LINE_BYTES, "%s", format);
    size_t at = strlen(text);
    snprintf(text + at, sizeof text - at, ": %s", line);
    line_set(text, strlen(text) > LINE_BYTES - 1);
    return result;
}

const char *ful_last_error(void)
{
    return line;
}

uint32_t ful_version(void)
{
    return FUL_VERSION;
}

const char *ful_result_name(ful_result result)
{
    switch (result) {
    case FUL_OK:
        return "FUL_OK";
    case FUL_ERR_ARGUMENT:
        return "FUL_ERR_ARGUMENT";
    case FUL_ERR_HOST_MEMORY:
        return "FUL_ERR_HOST_MEMORY";
    case FUL_ERR_DEVICE_MEMORY:
        return "FUL_ERR_DEVICE_MEMORY";
    case FUL_ERR_DEVICE_LOST:
        return "FUL_ERR_DEVICE_LOST";
    case FUL_ERR_UNSUPPORTED:
        return "FUL_ERR_UNSUPPORTED";
    case FUL_ERR_IO:
        return "FUL_ERR_IO";
    case FUL_ERR_FORMAT:
        return "FUL_ERR_FORMAT";
    case FUL_ERR_CONTEXT_FULL:
        return "FUL_ERR_CONTEXT_FULL";
    case FUL_ERR_CANCELLED:
        return "FUL_ERR_CANCELLED";
    case FUL_ERR_SELFTEST:
        return "FUL_ERR_SELFTEST";
    case FUL_ERR_STATE_MISMATCH:
        return "FUL_ERR_STATE_MISMATCH";
    case FUL_ERR_NOT_FINITE:
        return "FUL_ERR_NOT_FINITE";
    case FUL_ERR_NO_DEVICE:
        return "FUL_ERR_NO_DEVICE";
    }
    return "FUL_ERR_UNKNOWN";
}

ful_result params_copy(void *out, size_t out_bytes, const void *params, const char *what)
{
    size_t bytes = 0;
    memset(out, 0, out_bytes);
    if (!params)
        return FUL_OK;
    memcpy(&bytes, params, sizeof bytes);
    if (bytes == 0)
        return fail(FUL_ERR_ARGUMENT, "%s: struct_size is 0", what);
    memcpy(out, params, bytes < out_bytes ? bytes : out_bytes);
    return FUL_OK;
}
