/* Limits of time: on an emulated processor they are multiplied by FULGUR_TEST_SLOWNESS. */
#ifndef TESTS_UTIL_SLOWNESS_H
#define TESTS_UTIL_SLOWNESS_H

#include <stdlib.h>

/* 1 on a real processor. */
static inline double test_slowness(void)
{
    const char *text = getenv("FULGUR_TEST_SLOWNESS");
    double factor = text != NULL ? strtod(text, NULL) : 1.0;
    return factor >= 1.0 ? factor : 1.0;
}

#endif
