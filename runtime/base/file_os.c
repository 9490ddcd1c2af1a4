#if !defined(_WIN32) && !defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#endif

#include "base/file_os.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <direct.h>
#include <fcntl.h>
#include <io.h>
#include <process.h>
#include <wchar.h>
#include <windows.h>
#else
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#if defined(_WIN32)

static bool wide(const char *path, wchar_t *out)
{
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, out, PATH_BYTES) > 0)
        return true;
    errno = ENAMETOOLONG;
    return false;
}

int os_open(const char *path, bool create)
{
    wchar_t w[PATH_BYTES];
    int flags = create ? _O_WRONLY | _O_CREAT | _O_EXCL : _O_RDONLY;
    return wide(path, w) ? _wopen(w, flags | _O_BINARY | _O_NOINHERIT, _S_IREAD | _S_IWRITE) : -1;
}

int64_t os_read(int fd, void *p, size_t bytes)
{
    return _read(fd, p, bytes > INT32_MAX ? INT32_MAX : (unsigned)bytes);
}

int64_t os_write(int fd, const void *p, size_t bytes)
{
    return _write(fd, p, bytes > INT32_MAX ? INT32_MAX : (unsigned)bytes);
}

int os_fstat(int fd, os_stat *st)
{
    return _fstat64(fd, st);
}

int os_stat_path(const char *path, os_stat *st)
{
    wchar_t w[PATH_BYTES];
    return wide(path, w) ? _wstat64(w, st) : -1;
}

file_kind os_kind(const os_stat *st)
{
    if ((st->st_mode & _S_IFMT) == _S_IFREG)
        return KIND_FILE;
    return (st->st_mode & _S_IFMT) == _S_IFDIR ? KIND_DIR : KIND_OTHER;
}

int os_sync(int fd)
{
    return _commit(fd);
}

int os_close(int fd)
{
    return _close(fd);
}

void os_remove(const char *path)
{
    wchar_t w[PATH_BYTES];
    if (wide(path, w))
        _wremove(w);
}

int os_replace(const char *from, const char *to)
{
    wchar_t wf[PATH_BYTES], wt[PATH_BYTES];
    if (!wide(from, wf) || !wide(to, wt))
        return -1;
    if (MoveFileExW(wf, wt, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH))
        return 0;
    errno = EACCES;
    return -1;
}

int os_rename_new(const char *from, const char *to)
{
    wchar_t wf[PATH_BYTES], wt[PATH_BYTES];
    if (!wide(from, wf) || !wide(to, wt))
        return -1;
    if (MoveFileExW(wf, wt, MOVEFILE_WRITE_THROUGH))
        return 0;
    errno = GetLastError() == ERROR_ALREADY_EXISTS ? EEXIST : EACCES;
    return -1;
}

bool os_each_name(const char *dir, path_name_fn fn, void *ctx)
{
    char pattern[PATH_BYTES], name[PATH_BYTES];
    wchar_t w[PATH_BYTES];
    WIN32_FIND_DATAW found;
    int n = snprintf(pattern, sizeof pattern, "%s/*", dir);
    if (n < 0 || n >= PATH_BYTES || !wide(pattern, w))
        return false;
    HANDLE h = FindFirstFileW(w, &found);
    if (h == INVALID_HANDLE_VALUE) {
        errno = ENOENT;
        return false;
    }
    bool more = true;
    while (more) {
        if (WideCharToMultiByte(CP_UTF8, 0, found.cFileName, -1, name, PATH_BYTES, NULL, NULL) > 0)
            fn(ctx, name);
        more = FindNextFileW(h, &found);
    }
    FindClose(h);
    return true;
}

int os_mkdir(const char *path)
{
    wchar_t w[PATH_BYTES];
    return wide(path, w) ? _wmkdir(w) : -1;
}

unsigned long os_process(void)
{
    return (unsigned long)_getpid();
}

void *os_map(int fd, size_t bytes)
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

void os_unmap(void *p, size_t bytes)
{
    (void)bytes;
    UnmapViewOfFile(p);
}

void os_sync_folder(const char *path)
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

int os_open(const char *path, bool create)
{
    int fd;
    do
        fd = open(path, (create ? O_WRONLY | O_CREAT | O_EXCL : O_RDONLY) | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    return fd;
}

int64_t os_read(int fd, void *p, size_t bytes)
{
    ssize_t n;
    do
        n = read(fd, p, bytes);
    while (n < 0 && errno == EINTR);
    return n;
}

int64_t os_write(int fd, const void *p, size_t bytes)
{
    ssize_t n;
    do
        n = write(fd, p, bytes);
    while (n < 0 && errno == EINTR);
    return n;
}

int os_fstat(int fd, os_stat *st)
{
    return fstat(fd, st);
}

int os_stat_path(const char *path, os_stat *st)
{
    return stat(path, st);
}

file_kind os_kind(const os_stat *st)
{
    if (S_ISREG(st->st_mode))
        return KIND_FILE;
    return S_ISDIR(st->st_mode) ? KIND_DIR : KIND_OTHER;
}

int os_sync(int fd)
{
    return fsync(fd);
}

int os_close(int fd)
{
    return close(fd);
}

void os_remove(const char *path)
{
    unlink(path);
}

int os_replace(const char *from, const char *to)
{
    return rename(from, to);
}

/* A link fails where the name exists; file systems without links leave a moment between the look
 * and the rename. */
int os_rename_new(const char *from, const char *to)
{
    if (link(from, to) == 0) {
        unlink(from);
        return 0;
    }
    if (errno == EEXIST)
        return -1;
    struct stat st;
    if (lstat(to, &st) == 0) {
        errno = EEXIST;
        return -1;
    }
    return rename(from, to);
}

bool os_each_name(const char *dir, path_name_fn fn, void *ctx)
{
    DIR *d = opendir(dir);
    if (!d)
        return false;
    for (struct dirent *entry; (entry = readdir(d)) != NULL;)
        fn(ctx, entry->d_name);
    closedir(d);
    return true;
}

int os_mkdir(const char *path)
{
    return mkdir(path, 0777);
}

unsigned long os_process(void)
{
    return (unsigned long)getpid();
}

void *os_map(int fd, size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

void os_unmap(void *p, size_t bytes)
{
    munmap(p, bytes);
}

/* The rename itself must reach the disk too; a folder that can't be opened or synced is no error.
 */
void os_sync_folder(const char *path)
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
