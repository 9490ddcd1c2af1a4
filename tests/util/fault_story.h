/* A small model from the first call to the last token and back: what walks over faults repeat. */
#ifndef TESTS_UTIL_FAULT_STORY_H
#define TESTS_UTIL_FAULT_STORY_H

#include "fulgur/model.h"
#include "fulgur/session.h"
#include "util/fault_vulkan.h"

enum { STORY_TOKENS = 12 };

typedef struct story_text {
    int32_t tokens[STORY_TOKENS];
    int count;
} story_text;

typedef struct story {
    /* ---- how it goes ---- */
    ful_alloc *alloc;     /* NULL: libc's */
    fault_vulkan *faults; /* NULL: no books */
    const char *caps;     /* mask */
    bool wide; /* kernels as on a GPU; tokens are drawn on the device, ahead of the host */
    bool selftest;
    bool incoherent;        /* as if host writes had to be flushed */
    const char *cache_dir;  /* NULL: no cache */
    const char *watched;    /* NULL, or what a warning should say */
    const story_text *want; /* NULL: not known yet */

    /* ---- how it went ---- */
    bool unified; /* host and device share memory */
    ful_result result;
    const char *stage; /* that failed; NULL: none */
    char line[512];    /* the error's */
    story_text text;   /* handed out before it */
    bool went_on;      /* the same session gave the right text later */
    char warning[400]; /* the log's last */
    int warnings;
    bool seen; /* what was watched */
} story;

/* Fails the running test where a text is wrong, an object or an allocation is left, or validation
 * complains. Whatever fails, all is destroyed; a session that is left tries again with the faults
 * over. */
void story_run(story *s);

#endif
