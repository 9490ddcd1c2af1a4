/* jansson, with errors that name the file and the place. */
#ifndef FULGUR_FORMAT_JSON_H
#define FULGUR_FORMAT_JSON_H

#include <jansson.h>

#include "base/file.h"

/* Parses `bytes` of text. `path` is used in error lines only ("path:line:column: message"). */
ful_result json_parse(const char *path, const char *text, size_t bytes, json_t **out);
ful_result json_load_path(const ful_alloc *a, const char *path, uint64_t max_bytes, json_t **out);

#endif
