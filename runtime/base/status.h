/* The per-thread error line. */
#ifndef FULGUR_BASE_STATUS_H
#define FULGUR_BASE_STATUS_H

#include "fulgur/fulgur.h"

#if defined(__MINGW32__)
/* Checked as mingw-w64's own printf takes it, which knows %zu, not as Windows'. */
#define PRINTF_LIKE(fmt, args) __attribute__((format(gnu_printf, fmt, args)))
#elif defined(__GNUC__)
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define PRINTF_LIKE(fmt, args)
#endif

/* Sets this thread's error line and returns `result`, so that `return fail(...)` reads well. */
ful_result fail(ful_result result, const char *format, ...) PRINTF_LIKE(2, 3);

/* Puts "context: " in front of the present error line; keeps `result`. */
ful_result fail_context(ful_result result, const char *format, ...) PRINTF_LIKE(2, 3);

/* Copies a caller's params struct of any age into `out` (of the library's size), the rest zero;
 * params NULL: all zero. Every such struct begins with its struct_size, which must not be 0. `what`
 * is the struct's name. */
ful_result params_copy(void *out, size_t out_bytes, const void *params, const char *what);

/* Returns from the calling function if `expr` failed. */
#define TRY(expr)                                                                                  \
    do {                                                                                           \
        ful_result try_result_ = (expr);                                                           \
        if (try_result_ != FUL_OK)                                                                 \
            return try_result_;                                                                    \
    } while (0)

#endif
