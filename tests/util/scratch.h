/* A folder for a test's files, removed afterwards. */
#ifndef TESTS_UTIL_SCRATCH_H
#define TESTS_UTIL_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>

/* Creates the folder under TMPDIR or /tmp; aborts the test program if that fails. */
void scratch_begin(void);
void scratch_end(void); /* removes it with all that it holds */

const char *scratch_dir(void);
/* Full path of `name` in the folder. Eight results are kept; the ninth call overwrites the first.
 */
const char *scratch_path(const char *name);
/* Writes the file (and missing folders of `name`) and returns its path, as scratch_path. */
const char *scratch_write(const char *name, const void *data, size_t bytes);
const char *scratch_text(const char *name, const char *text);
void scratch_remove(const char *name);
/* Creates a folder of a new name, which is put into path; the caller removes it. */
bool scratch_make(char *path, size_t room);

#endif
