/* Times and memory of a session, for people. */
#ifndef FULGUR_SAMPLES_PRINT_STATS_H
#define FULGUR_SAMPLES_PRINT_STATS_H

#include "cli.h"

/* first_ns: from program start to the first token; 0 = there was none. */
void print_stats(const cli_model *m, uint64_t first_ns);

#endif
