#if !defined(_WIN32) && !defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#endif

#include "base/process.h"

#if defined(_WIN32)

#include <windows.h>

uint32_t process_id(void)
{
    return (uint32_t)GetCurrentProcessId();
}

bool process_other_runs(uint32_t id)
{
    DWORD code = 0;
    HANDLE process = id != 0 && id != process_id()
                         ? OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, FALSE, id)
                         : NULL;
    if (process == NULL)
        return false;
    bool runs = GetExitCodeProcess(process, &code) && code == STILL_ACTIVE;
    CloseHandle(process);
    return runs;
}

#else

#include <errno.h>
#include <signal.h>
#include <unistd.h>

uint32_t process_id(void)
{
    return (uint32_t)getpid();
}

bool process_other_runs(uint32_t id)
{
    if (id == 0 || id > INT32_MAX || id == process_id())
        return false;
    /* Another user's may not be signalled, but is there. */
    return kill((pid_t)id, 0) == 0 || errno == EPERM;
}

#endif
