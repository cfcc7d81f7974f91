/* What a scope gives back when it is left. */
#pragma once
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static inline void close_at_exit(int *fd) {
    int why = errno;
    if (*fd >= 0)
        close(*fd);
    errno = why;
}

static inline void free_at_exit(void *pointer) {
    free(*(void **)pointer);
}

#define autoclose __attribute__((cleanup(close_at_exit)))
#define autofree __attribute__((cleanup(free_at_exit)))

/* Hands the descriptor over to the caller. */
static inline int steal_fd(int *fd) {
    int taken = *fd;
    *fd = -1;
    return taken;
}

static inline void *steal_pointer(void *pointer) {
    void *taken = *(void **)pointer;
    *(void **)pointer = NULL;
    return taken;
}
