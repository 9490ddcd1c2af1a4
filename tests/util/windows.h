/* What the tests use of POSIX and mingw-w64 lacks; included before every test source on Windows. */
#ifndef TESTS_UTIL_WINDOWS_H
#define TESTS_UTIL_WINDOWS_H

#include <stdlib.h>

static inline int setenv(const char *name, const char *value, int overwrite)
{
    return overwrite || !getenv(name) ? _putenv_s(name, value) : 0;
}

static inline int unsetenv(const char *name)
{
    return _putenv_s(name, "");
}

#endif
