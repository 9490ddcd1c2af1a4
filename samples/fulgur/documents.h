/* Texts of many documents, which a line ends. */
#ifndef FULGUR_SAMPLES_DOCUMENTS_H
#define FULGUR_SAMPLES_DOCUMENTS_H

#include "cli.h"

extern const char document_mark[]; /* the line, if nothing is said */

/* Takes the next document off *text, without white space around it; false when there is none. mark:
 * "" = the text is one. */
bool document_next(const char **text, const char *end, const char *mark, const char **first,
                   const char **last);
/* Tokens of the longest document: what a session must be able to hold. False after printing the
 * error. */
bool document_longest(const ful_tokenizer *t, const char *text, size_t bytes, const char *mark,
                      size_t *most);

#endif
