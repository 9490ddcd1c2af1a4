/* The Split regex of a tokenizer.json, run by PCRE2. */
#ifndef FULGUR_TEXT_PRETOKENIZE_H
#define FULGUR_TEXT_PRETOKENIZE_H

#include "base/alloc.h"

typedef struct splitter splitter;             /* compiled; shared by threads */
typedef struct splitter_match splitter_match; /* one thread's scratch */

/* Takes a pattern in the dialect the reference uses (Oniguruma) as far as both dialects agree;
 * the rest is FUL_ERR_UNSUPPORTED with the construct and its offset. With keep_gaps, text between
 * matches is a piece of its own; else it is dropped. `alloc` must outlive the splitter. */
ful_result splitter_create(const ful_alloc *alloc, const char *pattern, size_t bytes,
                           bool keep_gaps, splitter **out);
void splitter_destroy(splitter **s);

ful_result splitter_match_create(const splitter *s, splitter_match **out);
void splitter_match_destroy(splitter_match **match);

/* The next piece of `text` (valid UTF-8) at or behind *at: [*start, *end), and *at moves to where
 * the search goes on. *start == *end: no piece is left. */
ful_result splitter_next(const splitter *s, splitter_match *match, const char *text, size_t bytes,
                         size_t *at, size_t *start, size_t *end);

#endif
