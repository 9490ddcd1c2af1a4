/* What the tests use of POSIX and mingw-w64 lacks; included before every test source on Windows. */
#ifndef TESTS_UTIL_WINDOWS_H
#define TESTS_UTIL_WINDOWS_H

#include <stdlib.h>

/* cmocka.h says of its functions that they format as Microsoft's library does; ours
 * (tools/target-deps) formats as C says. */
#define __printf__ __gnu_printf__

static inline int setenv(const char *name, const char *value, int overwrite)
{
    return overwrite || !getenv(name) ? _putenv_s(name, value) : 0;
}

static inline int unsetenv(const char *name)
{
    return _putenv_s(name, "");
}

#endif
