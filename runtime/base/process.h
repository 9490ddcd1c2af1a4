/* Processes: telling one that still runs from one that is gone. */
#ifndef FULGUR_BASE_PROCESS_H
#define FULGUR_BASE_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

uint32_t process_id(void);
/* True if another process of that number runs. Never of this one: a file with its number was
 * written by an earlier process. */
bool process_other_runs(uint32_t id);

#endif
