/* The per-thread error line. */
#ifndef FULGUR_BASE_STATUS_H
#define FULGUR_BASE_STATUS_H

#include "fulgur/fulgur.h"

#if defined(__GNUC__)
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define PRINTF_LIKE(fmt, args)
#endif

/* Sets this thread's error line and returns `result`, so that `return fail(...)` reads well. */
ful_result fail(ful_result result, const char *format, ...) PRINTF_LIKE(2, 3);

/* Puts "context: " in front of the present error line; keeps `result`. */
ful_result fail_context(ful_result result, const char *format, ...) PRINTF_LIKE(2, 3);

/* Returns from the calling function if `expr` failed. */
#define TRY(expr)                                                                                  \
    do {                                                                                           \
        ful_result try_result_ = (expr);                                                           \
        if (try_result_ != FUL_OK)                                                                 \
            return try_result_;                                                                    \
    } while (0)

#endif
