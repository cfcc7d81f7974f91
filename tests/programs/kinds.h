/*
 * Programs that each hold one thing: in unsupported/ what a checkpoint can't carry, in harmless/ what it does.  A kind
 * sets its thing up, by which it returns true; the program then says READY and the pid of who holds it, and stands.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct kind {
    const char *name;
    bool (*set_up)(void);
};

/* Arrays of kinds, each with an empty one at its end; the last array is NULL. */
extern const struct kind *const families[];

/* The process that holds the thing; 0 stands for the one that set it up. */
extern pid_t holder;

_Noreturn void stand(void);

/* A child that has done `prepare` (or nothing) when this returns, and stands; -1 when it couldn't. */
pid_t child(bool (*prepare)(void));
