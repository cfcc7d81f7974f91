/* A session's process: forked, made the leader of a session of its own, and executed. */
#pragma once
#include "spec.h"

/* What a child reports through the pipe before it gives up; nothing when its exec succeeded. */
struct spawn_error {
    int error;
    char step[12]; /* session files terminal limits cwd user exec */
};

/* A gate is passed when every other process that was forked while it was open has let go of its descriptors: what
 * leads out of the job is held by those alone that mean to, at any moment that somebody may look. */
int gate_open(int gate[2]);
void gate_pass(const int gate[2]);

/* To be called once, early: raises init's own limit of open files, and remembers the one that children get. */
void spawn_limits(void);

/* Starts argv (NULL: a process that ends with 0 at once) with these descriptors as 0, 1 and 2; ends[0] of -1 is
 * /dev/null; of a terminal all three are its slave.  `report`, when not -1, gets the spawn_error; without it the child
 * says it on its standard error and ends with 127 (not found) or 126.  Returns the pid, -1. */
pid_t spawn(const struct spec *spec, char *const argv[], const int ends[3], int report);

/* A new terminal of that size: the master doesn't block, the slave is nobody's controlling terminal yet. */
int terminal_open(uint16_t rows, uint16_t columns, int *master, int *slave);
int terminal_resize(int master, uint16_t rows, uint16_t columns);
