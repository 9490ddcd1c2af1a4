#include "base/file_os.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

ful_result file_io_fail(const char *path, const char *what)
{
    return fail(FUL_ERR_IO, "%s: %s: %s", path, what, strerror(errno));
}

static ful_result open_checked(const char *path, int *fd, os_stat *st)
{
    *fd = os_open(path, false);
    if (*fd < 0) {
        /* Windows does not open folders and says that permission is missing. */
        int error = errno;
        bool folder = path_is_dir(path);
        errno = error;
        return folder ? fail(FUL_ERR_IO, "%s: is a folder, not a file", path)
                      : file_io_fail(path, "cannot open");
    }
    ful_result result = FUL_OK;
    if (os_fstat(*fd, st) != 0)
        result = file_io_fail(path, "cannot read its size");
    else if (os_kind(st) == KIND_DIR)
        result = fail(FUL_ERR_IO, "%s: is a folder, not a file", path);
    if (result != FUL_OK)
        os_close(*fd);
    return result;
}

ful_result file_map_open(const char *path, file_map *out)
{
    int fd;
    os_stat st;
    *out = (file_map){0};
    TRY(open_checked(path, &fd, &st));
    ful_result result = FUL_OK;
    uint64_t bytes = st.st_size > 0 ? (uint64_t)st.st_size : 0;
    if (os_kind(&st) != KIND_FILE) {
        result = fail(FUL_ERR_IO, "%s: not a regular file, cannot be mapped", path);
    } else if (bytes > SIZE_MAX) {
        result = fail(FUL_ERR_IO, "%s: %" PRIu64 " bytes do not fit this process's address space",
                      path, bytes);
    } else if (bytes > 0) {
        out->data = os_map(fd, (size_t)bytes);
        if (out->data)
            out->bytes = bytes;
        else
            result = file_io_fail(path, "cannot map");
    }
    os_close(fd);
    return result;
}

void file_map_close(file_map *map)
{
    if (!map)
        return;
    if (map->data)
        os_unmap((void *)(uintptr_t)map->data, (size_t)map->bytes);
    *map = (file_map){0};
}

static ful_result read_all(const ful_alloc *a, const char *path, int fd, size_t expected,
                           uint64_t max_bytes, char **out, size_t *bytes)
{
    void *buffer = NULL;
    size_t capacity = 0, used = 0;
    ful_result result = FUL_OK;
    /* One byte more than the file says: a file of the expected size is then read, and its end seen,
     * without growing. Files that have no size (pipes) grow as they come. */
    size_t need = expected + 2;
    for (;;) {
        if (!mem_grow(a, &buffer, &capacity, need, 1)) {
            result = mem_fail(need, path);
            break;
        }
        int64_t n = os_read(fd, (char *)buffer + used, capacity - used - 1);
        if (n < 0) {
            result = file_io_fail(path, "cannot read");
            break;
        }
        if (n == 0)
            break;
        used += (size_t)n;
        if (used > max_bytes) {
            result =
                fail(FUL_ERR_IO, "%s: more than the limit of %" PRIu64 " bytes", path, max_bytes);
            break;
        }
        if (capacity - used < 2)
            need = capacity + 1;
    }
    if (result != FUL_OK) {
        mem_free(a, buffer);
        return result;
    }
    ((char *)buffer)[used] = '\0';
    *out = buffer;
    *bytes = used;
    return FUL_OK;
}

ful_result file_read(const ful_alloc *a, const char *path, uint64_t max_bytes, char **out,
                     size_t *bytes)
{
    int fd;
    os_stat st;
    *out = NULL;
    *bytes = 0;
    TRY(open_checked(path, &fd, &st));
    uint64_t size = st.st_size > 0 && os_kind(&st) == KIND_FILE ? (uint64_t)st.st_size : 0;
    ful_result result;
    if (size > max_bytes || size > SIZE_MAX - 2)
        result = fail(FUL_ERR_IO, "%s: %" PRIu64 " bytes, more than the limit of %" PRIu64, path,
                      size, max_bytes);
    else
        result = read_all(a, path, fd, (size_t)size, max_bytes, out, bytes);
    os_close(fd);
    return result;
}

bool file_exists(const char *path)
{
    os_stat st;
    return os_stat_path(path, &st) == 0;
}

bool path_is_dir(const char *path)
{
    os_stat st;
    return os_stat_path(path, &st) == 0 && os_kind(&st) == KIND_DIR;
}

ful_result path_each_name(const char *dir, path_name_fn fn, void *ctx)
{
    return os_each_name(dir, fn, ctx) ? FUL_OK : file_io_fail(dir, "cannot list the folder");
}

char *path_join(const ful_alloc *a, const char *dir, const char *name)
{
    size_t n = strlen(dir), m = strlen(name);
    bool separator = n > 0 && !IS_SEPARATOR(dir[n - 1]);
    char *path = mem_alloc(a, n + separator + m + 1);
    if (!path)
        return NULL;
    memcpy(path, dir, n);
    if (separator)
        path[n] = '/';
    memcpy(path + n + separator, name, m + 1);
    return path;
}

static ful_result make_dir(const char *path)
{
    if (os_mkdir(path) == 0 || path_is_dir(path))
        return FUL_OK;
    return file_io_fail(path, "cannot create the folder");
}

ful_result path_make_dirs(const char *path)
{
    char part[PATH_BYTES];
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof part)
        return fail(FUL_ERR_ARGUMENT, "path of %zu bytes is empty or longer than the limit of %d",
                    n, PATH_BYTES);
    for (size_t i = 1; i < n; i++) {
        if (!IS_SEPARATOR(path[i]) || IS_SEPARATOR(path[i - 1]) || path[i - 1] == ':')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        /* An existing parent may forbid creating beside it: only a missing one is made. */
        if (!path_is_dir(part))
            TRY(make_dir(part));
    }
    return make_dir(path);
}
