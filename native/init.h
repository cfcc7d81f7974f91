/* serac-init: PID 1 of a job (protocol.h, SESSIONS). */
#pragma once
#include <stdbool.h>

/* Session 0 ended with this wait status: so does the job, as soon as its watchers have heard. */
void init_main_ended(int status);

/* No session is started any more. */
bool init_ending(void);
