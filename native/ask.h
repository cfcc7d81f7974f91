/* `serac-init ask [REASON [STATE]]`: asks, from inside a job, for a pause; STATE is JSON and becomes the job's state.
 * Waits for the answer and prints its records, one a line.  Exit status 0: resumed or forked, 1: refused, 2: it could
 * not be asked. */
#pragma once

int ask_main(int argc, char **argv);
