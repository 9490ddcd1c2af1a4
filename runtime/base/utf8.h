/* UTF-8 in what files and callers give. */
#ifndef FULGUR_BASE_UTF8_H
#define FULGUR_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* True if the whole text is UTF-8; else *offset is where the first bad sequence starts. */
bool utf8_valid(const char *text, size_t bytes, size_t *offset);

#endif
