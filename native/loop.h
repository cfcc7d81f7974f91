/* The event loop: one epoll instance, served one event at a time, so that a handler may drop any source it likes. */
#pragma once
#include <stdint.h>
#include <sys/epoll.h>

struct source {
    int fd;          /* -1: none */
    uint32_t events; /* what is waited for; 0: not in the loop */
    void (*ready)(struct source *source, uint32_t events);
};

#define OWNER(source, type, member) ((type *)((char *)(source) - __builtin_offsetof(type, member)))

/* Makes the epoll instance; a forked process that goes on as something else calls it again. */
int loop_start(void);

/* Waits for these events from now on; 0 takes the source out of the loop. */
int loop_watch(struct source *source, uint32_t events);

/* Takes the source out of the loop and closes it. */
void loop_drop(struct source *source);

/* Serves the next event; returns when none came within the time (milliseconds, -1: no limit). */
void loop_turn(int timeout);

/* CLOCK_REALTIME in nanoseconds, and CLOCK_MONOTONIC in milliseconds. */
uint64_t clock_real(void);
int64_t clock_steady(void);

/* Milliseconds from now to a time of clock_steady, not below 0. */
int clock_left(int64_t deadline);
