/* Files: mapped for reading, replaced atomically when written. Every error line names the path. */
#ifndef FULGUR_BASE_FILE_H
#define FULGUR_BASE_FILE_H

#include "base/alloc.h"

typedef struct file_map {
    const uint8_t *data; /* NULL if bytes == 0 */
    uint64_t bytes;
} file_map;

ful_result file_map_open(const char *path, file_map *out);
void file_map_close(file_map *map); /* zeroes *map; a zero map is allowed */

/* Whole file in memory with a zero byte behind it (not counted). FUL_ERR_IO if larger than
 * max_bytes. */
ful_result file_read(const ful_alloc *a, const char *path, uint64_t max_bytes, char **out,
                     size_t *bytes);

/* Writes a temporary file beside `path` and renames it over `path`. */
ful_result file_write_atomic(const char *path, const void *data, size_t bytes);
/* Without waiting for the disk: whole for every process from now on, but if the machine stops in
 * the next moments, what is found may be the file before, an empty one or a part. */
ful_result file_write_quick(const char *path, const void *data, size_t bytes);

/* Writes a new file piece by piece. It lies beside `path` under another name until it is finished;
 * a process that is killed leaves that one only. */
typedef struct file_writer file_writer;
/* FUL_ERR_IO if `path` exists. */
ful_result file_writer_open(const ful_alloc *a, const char *path, file_writer **out);
ful_result file_writer_put(file_writer *w, const void *data, size_t bytes);
/* To the disk, and to its name unless one of that name has come since. Both free the writer. */
ful_result file_writer_finish(file_writer **w);
void file_writer_cancel(file_writer **w); /* leaves nothing; NULL allowed */

bool file_exists(const char *path);
bool path_is_dir(const char *path);
typedef void (*path_name_fn)(void *ctx, const char *name);
/* Calls fn with the name of everything in the folder, in no order. */
ful_result path_each_name(const char *dir, path_name_fn fn, void *ctx);
/* "dir/name", from mem_alloc. */
char *path_join(const ful_alloc *a, const char *dir, const char *name);
/* An environment variable as UTF-8, from mem_alloc; NULL if it is not set, empty or too long. */
char *path_from_environment(const ful_alloc *a, const char *name);
/* Creates the folder and its parents. */
ful_result path_make_dirs(const char *path);

#endif
