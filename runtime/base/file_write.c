/* Files appear under their names whole: written beside, then renamed. */
#include "base/file_os.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static ful_result write_all(const char *path, int fd, const void *data, size_t bytes, bool to_disk)
{
    const char *p = data;
    while (bytes > 0) {
        int64_t n = os_write(fd, p, bytes);
        if (n <= 0)
            return file_io_fail(path, "cannot write");
        p += n;
        bytes -= (size_t)n;
    }
    return !to_disk || os_sync(fd) == 0 ? FUL_OK : file_io_fail(path, "cannot write to disk");
}

/* Creates a file beside `path`; *fd is -1 on failure. */
static ful_result temp_create(const char *path, char *temp, int *fd)
{
    static atomic_uint serial;
    *fd = -1;
    /* A crashed process of the same number may have left its file: try the next name. */
    for (int attempt = 0; *fd < 0 && attempt < 100; attempt++) {
        int n = snprintf(temp, PATH_BYTES, "%s.%lu-%u.tmp", path, os_process(),
                         atomic_fetch_add(&serial, 1));
        if (n < 0 || n >= PATH_BYTES) {
            temp[0] = '\0';
            return fail(FUL_ERR_ARGUMENT, "path of %zu bytes is longer than the limit of %d",
                        strlen(path), PATH_BYTES);
        }
        *fd = os_open(temp, true);
        if (*fd < 0 && errno != EEXIST)
            break;
    }
    if (*fd >= 0)
        return FUL_OK;
    ful_result result = file_io_fail(temp, "cannot create");
    temp[0] = '\0';
    return result;
}

static ful_result write_beside(const char *path, const void *data, size_t bytes, bool to_disk)
{
    char temp[PATH_BYTES];
    int fd;
    TRY(temp_create(path, temp, &fd));
    ful_result result = write_all(temp, fd, data, bytes, to_disk);
    if (os_close(fd) != 0 && result == FUL_OK)
        result = file_io_fail(temp, "cannot write");
    if (result == FUL_OK && os_replace(temp, path) != 0)
        result = file_io_fail(path, "cannot replace");
    if (result != FUL_OK)
        os_remove(temp);
    else if (to_disk)
        os_sync_folder(path);
    return result;
}

ful_result file_write_atomic(const char *path, const void *data, size_t bytes)
{
    return write_beside(path, data, bytes, true);
}

ful_result file_write_quick(const char *path, const void *data, size_t bytes)
{
    return write_beside(path, data, bytes, false);
}

/* ---- piece by piece ---- */

struct file_writer {
    ful_alloc alloc;
    char *path;
    int fd;
    char temp[PATH_BYTES];
};

static ful_result exists_fail(const char *path)
{
    return fail(FUL_ERR_IO, "%s: exists already and is not overwritten", path);
}

ful_result file_writer_open(const ful_alloc *a, const char *path, file_writer **out)
{
    *out = NULL;
    if (file_exists(path))
        return exists_fail(path);
    file_writer *w = mem_zalloc(a, 1, sizeof *w);
    if (!w)
        return mem_fail(sizeof *w, path);
    w->alloc = mem_functions(a);
    w->fd = -1;
    w->path = mem_strdup(a, path);
    ful_result result =
        w->path ? temp_create(path, w->temp, &w->fd) : mem_fail(strlen(path), "a file's path");
    if (result == FUL_OK)
        *out = w;
    else
        file_writer_cancel(&w);
    return result;
}

ful_result file_writer_put(file_writer *w, const void *data, size_t bytes)
{
    return write_all(w->temp, w->fd, data, bytes, false);
}

ful_result file_writer_finish(file_writer **writer)
{
    file_writer *w = *writer;
    ful_result result = write_all(w->temp, w->fd, NULL, 0, true);
    if (os_close(w->fd) != 0 && result == FUL_OK)
        result = file_io_fail(w->temp, "cannot write");
    w->fd = -1;
    if (result == FUL_OK && os_rename_new(w->temp, w->path) != 0)
        result = errno == EEXIST ? exists_fail(w->path) : file_io_fail(w->path, "cannot rename to");
    if (result == FUL_OK) {
        os_sync_folder(w->path);
        w->temp[0] = '\0';
    }
    file_writer_cancel(writer);
    return result;
}

void file_writer_cancel(file_writer **writer)
{
    if (!writer || !*writer)
        return;
    file_writer *w = *writer;
    if (w->fd >= 0)
        os_close(w->fd);
    if (w->temp[0])
        os_remove(w->temp);
    ful_alloc a = w->alloc;
    mem_free(&a, w->path);
    mem_free(&a, w);
    *writer = NULL;
}
