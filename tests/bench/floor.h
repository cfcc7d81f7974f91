/* The floor's two parts: floor.c, its verbs and the host's side; floor_inside.c, what a job's first process does. */
#pragma once

#define VIEW "/run" /* where the trees and the root of a job are, in a mount namespace of the floor's own */

int must(long done, const char *what);
void mark(const char *step);
void put(const char *directory, const char *name, const char *text);
void standard_close(void);
void loopback_raise(void);

/* One byte each, over the socket to the other side. */
void hear(int link);
void tell(int link);

_Noreturn void job(int link, char **words);
