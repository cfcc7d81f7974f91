/*
 * Bringing memory in while processes run: userfaultfd(2), spoken with criu as its own `criu lazy-pages` does.
 *
 * criu connects to `tasks` and sends for each process its number in the job (32 bits) and then its userfaultfd; a negative
 * number is a zombie's; FINISHED says that all is restored.  What a process touches is brought in at once, and from
 * FINISHED on all the rest, too.  A process that forks meanwhile, or moves or drops memory, says so through its userfaultfd.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#define CHUNK (256ull << 10) /* brought in between two looks at what is asked for; the size of the buffer */

struct pager;
struct space;

/* What the pager waits for; `ready` is told when there is something, 0 or -1. */
struct source {
    int fd;
    int (*ready)(struct pager *pager, struct source *source);
};

struct pager {
    int images;
    int device; /* /dev/userfaultfd, given to who asks at `door`; -1: none */
    struct source tasks, door, hold, guard;
    struct source criu; /* accepted from `tasks` */
    int epoll;
    bool restored; /* criu has come to its end */
    struct space **spaces;
    size_t count;
    void *buffer;
    char why[256]; /* what went wrong */
};

/*
 * Serve until all memory is in or nobody is there to need it.  One byte to `hold` says that everything was handed over
 * and the processes may run; before that, the end of `hold` is an error, and afterwards nothing.  `guard` is a pidfd: the
 * end of that process is an error.  0, or -1 with `why` filled in.
 */
int pager_run(struct pager *pager);

/* Note what failed, with errno or without; always -1. */
int pager_fail(struct pager *pager, const char *what);
int pager_say(struct pager *pager, const char *what);

int source_add(struct pager *pager, struct source *source);
void source_drop(struct pager *pager, struct source *source);
