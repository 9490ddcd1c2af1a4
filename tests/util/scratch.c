#define _XOPEN_SOURCE 700 /* nftw */

#include "util/scratch.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[256];

static void die(const char *what, const char *path)
{
    fprintf(stderr, "scratch: cannot %s %s\n", what, path);
    abort();
}

void scratch_begin(void)
{
    const char *base = getenv("TMPDIR");
    if (!base || strlen(base) > 200)
        base = "/tmp";
    snprintf(dir, sizeof dir, "%s/fulgur-test-XXXXXX", base);
    if (!mkdtemp(dir))
        die("create", dir);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *walk)
{
    (void)st;
    (void)kind;
    (void)walk;
    return remove(path);
}

void scratch_end(void)
{
    if (dir[0])
        nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
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
        mkdir(part, 0777);
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
    nftw(scratch_path(name), remove_one, 8, FTW_DEPTH | FTW_PHYS);
}
