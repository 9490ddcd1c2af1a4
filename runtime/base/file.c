#if !defined(_WIN32) && !defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#endif

#include "base/file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <direct.h>
#include <fcntl.h>
#include <io.h>
#include <process.h>
#include <sys/stat.h>
#include <wchar.h>
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

enum { PATH_BYTES = 4096 };

typedef enum file_kind { KIND_NONE, KIND_FILE, KIND_DIR, KIND_OTHER } file_kind;

/* ---- what differs between systems: paths are UTF-8 everywhere ---- */

#if defined(_WIN32)

#define IS_SEPARATOR(c) ((c) == '/' || (c) == '\\')
typedef struct __stat64 os_stat;

static bool wide(const char *path, wchar_t *out)
{
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, out, PATH_BYTES) > 0)
        return true;
    errno = ENAMETOOLONG;
    return false;
}

static int os_open(const char *path, bool create)
{
    wchar_t w[PATH_BYTES];
    int flags = create ? _O_WRONLY | _O_CREAT | _O_EXCL : _O_RDONLY;
    return wide(path, w) ? _wopen(w, flags | _O_BINARY | _O_NOINHERIT, _S_IREAD | _S_IWRITE) : -1;
}

static int64_t os_read(int fd, void *p, size_t bytes)
{
    return _read(fd, p, bytes > INT32_MAX ? INT32_MAX : (unsigned)bytes);
}

static int64_t os_write(int fd, const void *p, size_t bytes)
{
    return _write(fd, p, bytes > INT32_MAX ? INT32_MAX : (unsigned)bytes);
}

static int os_fstat(int fd, os_stat *st)
{
    return _fstat64(fd, st);
}

static int os_stat_path(const char *path, os_stat *st)
{
    wchar_t w[PATH_BYTES];
    return wide(path, w) ? _wstat64(w, st) : -1;
}

static file_kind os_kind(const os_stat *st)
{
    if ((st->st_mode & _S_IFMT) == _S_IFREG)
        return KIND_FILE;
    return (st->st_mode & _S_IFMT) == _S_IFDIR ? KIND_DIR : KIND_OTHER;
}

static int os_sync(int fd)
{
    return _commit(fd);
}

static int os_close(int fd)
{
    return _close(fd);
}

static void os_remove(const char *path)
{
    wchar_t w[PATH_BYTES];
    if (wide(path, w))
        _wremove(w);
}

static int os_replace(const char *from, const char *to)
{
    wchar_t wf[PATH_BYTES], wt[PATH_BYTES];
    if (!wide(from, wf) || !wide(to, wt))
        return -1;
    if (MoveFileExW(wf, wt, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH))
        return 0;
    errno = EACCES;
    return -1;
}

static int os_mkdir(const char *path)
{
    wchar_t w[PATH_BYTES];
    return wide(path, w) ? _wmkdir(w) : -1;
}

static unsigned long os_process(void)
{
    return (unsigned long)_getpid();
}

static void *os_map(int fd, size_t bytes)
{
    (void)bytes;
    HANDLE h = CreateFileMappingW((HANDLE)_get_osfhandle(fd), NULL, PAGE_READONLY, 0, 0, NULL);
    void *p = h ? MapViewOfFile(h, FILE_MAP_READ, 0, 0, 0) : NULL;
    if (h)
        CloseHandle(h);
    if (!p)
        errno = ENOMEM;
    return p;
}

static void os_unmap(void *p, size_t bytes)
{
    (void)bytes;
    UnmapViewOfFile(p);
}

static void os_sync_folder(const char *path)
{
    (void)path;
}

/* getenv would give the path in the system's code page. */
char *path_from_environment(const ful_alloc *a, const char *name)
{
    wchar_t key[64];
    char path[PATH_BYTES];
    if (MultiByteToWideChar(CP_UTF8, 0, name, -1, key, 64) <= 0)
        return NULL;
    const wchar_t *value = _wgetenv(key);
    int n = value ? WideCharToMultiByte(CP_UTF8, 0, value, -1, path, PATH_BYTES, NULL, NULL) : 0;
    return n > 1 ? mem_strdup(a, path) : NULL;
}

#else

#define IS_SEPARATOR(c) ((c) == '/')
typedef struct stat os_stat;

static int os_open(const char *path, bool create)
{
    int fd;
    do
        fd = open(path, (create ? O_WRONLY | O_CREAT | O_EXCL : O_RDONLY) | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    return fd;
}

static int64_t os_read(int fd, void *p, size_t bytes)
{
    ssize_t n;
    do
        n = read(fd, p, bytes);
    while (n < 0 && errno == EINTR);
    return n;
}

static int64_t os_write(int fd, const void *p, size_t bytes)
{
    ssize_t n;
    do
        n = write(fd, p, bytes);
    while (n < 0 && errno == EINTR);
    return n;
}

static int os_fstat(int fd, os_stat *st)
{
    return fstat(fd, st);
}

static int os_stat_path(const char *path, os_stat *st)
{
    return stat(path, st);
}

static file_kind os_kind(const os_stat *st)
{
    if (S_ISREG(st->st_mode))
        return KIND_FILE;
    return S_ISDIR(st->st_mode) ? KIND_DIR : KIND_OTHER;
}

static int os_sync(int fd)
{
    return fsync(fd);
}

static int os_close(int fd)
{
    return close(fd);
}

static void os_remove(const char *path)
{
    unlink(path);
}

static int os_replace(const char *from, const char *to)
{
    return rename(from, to);
}

static int os_mkdir(const char *path)
{
    return mkdir(path, 0777);
}

static unsigned long os_process(void)
{
    return (unsigned long)getpid();
}

static void *os_map(int fd, size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void os_unmap(void *p, size_t bytes)
{
    munmap(p, bytes);
}

/* The rename itself must reach the disk too; a folder that can't be opened or synced is no error.
 */
static void os_sync_folder(const char *path)
{
    char dir[PATH_BYTES];
    size_t n = strlen(path);
    while (n > 0 && !IS_SEPARATOR(path[n - 1]))
        n--;
    if (n >= sizeof dir)
        return;
    memcpy(dir, path, n);
    dir[n] = '\0';
    int fd = os_open(n ? dir : ".", false);
    if (fd >= 0) {
        (void)os_sync(fd);
        os_close(fd);
    }
}

char *path_from_environment(const ful_alloc *a, const char *name)
{
    const char *value = getenv(name);
    return value && value[0] ? mem_strdup(a, value) : NULL;
}

#endif

/* ---- the same everywhere ---- */

static ful_result io_fail(const char *path, const char *what)
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
                      : io_fail(path, "cannot open");
    }
    ful_result result = FUL_OK;
    if (os_fstat(*fd, st) != 0)
        result = io_fail(path, "cannot read its size");
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
            result = io_fail(path, "cannot map");
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
            result = io_fail(path, "cannot read");
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

static ful_result write_all(const char *path, int fd, const void *data, size_t bytes, bool to_disk)
{
    const char *p = data;
    while (bytes > 0) {
        int64_t n = os_write(fd, p, bytes);
        if (n <= 0)
            return io_fail(path, "cannot write");
        p += n;
        bytes -= (size_t)n;
    }
    return !to_disk || os_sync(fd) == 0 ? FUL_OK : io_fail(path, "cannot write to disk");
}

static ful_result write_beside(const char *path, const void *data, size_t bytes, bool to_disk)
{
    static atomic_uint serial;
    char temp[PATH_BYTES];
    int fd = -1;
    /* A crashed process of the same number may have left its file: try the next name. */
    for (int attempt = 0; fd < 0 && attempt < 100; attempt++) {
        int n = snprintf(temp, sizeof temp, "%s.%lu-%u.tmp", path, os_process(),
                         atomic_fetch_add(&serial, 1));
        if (n < 0 || n >= PATH_BYTES)
            return fail(FUL_ERR_ARGUMENT, "path of %zu bytes is longer than the limit of %d",
                        strlen(path), PATH_BYTES);
        fd = os_open(temp, true);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    if (fd < 0)
        return io_fail(temp, "cannot create");
    ful_result result = write_all(temp, fd, data, bytes, to_disk);
    if (os_close(fd) != 0 && result == FUL_OK)
        result = io_fail(temp, "cannot write");
    if (result == FUL_OK && os_replace(temp, path) != 0)
        result = io_fail(path, "cannot replace");
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
    return io_fail(path, "cannot create the folder");
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
