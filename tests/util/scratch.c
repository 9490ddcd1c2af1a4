#define _XOPEN_SOURCE 700 /* nftw */

#include "util/scratch.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(_WIN32)
#include <direct.h>
#endif

static char dir[256];

static void die(const char *what, const char *path)
{
    fprintf(stderr, "scratch: cannot %s %s\n", what, path);
    abort();
}

static bool make_dir(const char *path)
{
#if defined(_WIN32)
    return _mkdir(path) == 0;
#else
    return mkdir(path, 0777) == 0;
#endif
}

bool scratch_make(char *path, size_t room)
{
#if defined(_WIN32)
    const char *base = getenv("TEMP");
    for (unsigned i = 0; i < 1000; i++) {
        if (snprintf(path, room, "%s/fulgur-test-%d-%u", base ? base : ".", (int)getpid(), i) >=
            (int)room)
            return false;
        for (char *c = path; *c; c++)
            *c = *c == '\\' ? '/' : *c;
        if (make_dir(path))
            return true;
    }
    return false;
#else
    const char *base = getenv("TMPDIR");
    if (!base || strlen(base) > 200)
        base = "/tmp";
    return snprintf(path, room, "%s/fulgur-test-XXXXXX", base) < (int)room && mkdtemp(path);
#endif
}

void scratch_begin(void)
{
    if (!scratch_make(dir, sizeof dir))
        die("create", dir);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *walk)
{
    (void)st;
    (void)kind;
    (void)walk;
    return remove(path);
}

static void remove_tree(const char *path)
{
#if defined(_WIN32)
    /* The walk below knows no names outside the code page. */
    char command[1100];
    snprintf(command, sizeof command, "rmdir /s /q \"%s\"", path);
    for (char *c = command + 12; *c; c++)
        *c = *c == '/' ? '\\' : *c;
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode) && system(command) == 0)
        return;
#endif
    nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

void scratch_end(void)
{
    if (dir[0])
        remove_tree(dir);
    dir[0] = '\0';
}

const char *scratch_dir(void)
{
    return dir;
}

const char *scratch_path(const char *name)
{
    static char paths[8][1024];
    static unsigned turn;
    char *path = paths[turn++ % 8];
    int n = snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= sizeof paths[0])
        die("name", name);
    return path;
}

const char *scratch_write(const char *name, const void *data, size_t bytes)
{
    const char *path = scratch_path(name);
    char part[1024];
    for (const char *p = path + strlen(dir) + 1; (p = strchr(p, '/')); p++) {
        memcpy(part, path, (size_t)(p - path));
        part[p - path] = '\0';
        make_dir(part);
    }
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f) != 0)
        die("write", path);
    return path;
}

const char *scratch_text(const char *name, const char *text)
{
    return scratch_write(name, text, strlen(text));
}

void scratch_remove(const char *name)
{
    remove_tree(scratch_path(name));
}
