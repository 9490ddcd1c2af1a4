/* What differs between systems where files are concerned. Paths are UTF-8 everywhere; failures are
 * told by errno. */
#ifndef FULGUR_BASE_FILE_OS_H
#define FULGUR_BASE_FILE_OS_H

#include <sys/stat.h>

#include "base/file.h"

enum { PATH_BYTES = 4096 };

typedef enum file_kind { KIND_NONE, KIND_FILE, KIND_DIR, KIND_OTHER } file_kind;

#if defined(_WIN32)
#define IS_SEPARATOR(c) ((c) == '/' || (c) == '\\')
typedef struct __stat64 os_stat;
#else
#define IS_SEPARATOR(c) ((c) == '/')
typedef struct stat os_stat;
#endif

int os_open(const char *path, bool create); /* create: for writing, and it must not exist */
int64_t os_read(int fd, void *p, size_t bytes);
int64_t os_write(int fd, const void *p, size_t bytes);
int os_fstat(int fd, os_stat *st);
int os_stat_path(const char *path, os_stat *st);
file_kind os_kind(const os_stat *st);
int os_sync(int fd);
int os_close(int fd);
void os_remove(const char *path);
int os_replace(const char *from, const char *to);
int os_rename_new(const char *from, const char *to); /* EEXIST if `to` exists */
int os_mkdir(const char *path);
unsigned long os_process(void);
void *os_map(int fd, size_t bytes);
void os_unmap(void *p, size_t bytes);
void os_sync_folder(const char *path); /* of a file */

bool os_each_name(const char *dir, path_name_fn fn, void *ctx); /* false: it can't be read */

/* FUL_ERR_IO with errno's text. */
ful_result file_io_fail(const char *path, const char *what);

#endif
