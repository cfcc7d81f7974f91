#include "launch_pager.h"

#include "cleanup.h"
#include "descriptor.h"
#include "launch_space.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define FINISHED 0x52535446 /* criu's word */
#define EVENTS 32

int pager_fail(struct pager *pager, const char *what) {
    snprintf(pager->why, sizeof pager->why, "%s%s%s", what, errno ? ": " : "", errno ? strerror(errno) : "");
    return -1;
}

int pager_say(struct pager *pager, const char *what) {
    errno = 0;
    return pager_fail(pager, what);
}

int source_add(struct pager *pager, struct source *source) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};
    return epoll_ctl(pager->epoll, EPOLL_CTL_ADD, source->fd, &event) < 0 ? pager_fail(pager, "epoll") : 0;
}

void source_drop(struct pager *pager, struct source *source) {
    if (source->fd < 0)
        return;
    epoll_ctl(pager->epoll, EPOLL_CTL_DEL, source->fd, NULL);
    close(source->fd);
    source->fd = -1;
}

static int all_restored(struct pager *pager) {
    for (size_t i = 0; i < pager->count; i++)
        if (space_prepare(pager, pager->spaces[i]) < 0)
            return -1;
    pager->restored = true;
    source_drop(pager, &pager->tasks);
    source_drop(pager, &pager->door);
    if (send(pager->hold.fd, "", 1, MSG_NOSIGNAL) != 1)
        return pager_fail(pager, "the engine");
    source_drop(pager, &pager->hold);
    return 0;
}

static int criu_ready(struct pager *pager, struct source *source) {
    int32_t word;
    ssize_t size = recv(source->fd, &word, sizeof word, MSG_WAITALL);
    if (pager->restored) {
        source_drop(pager, source);
        return 0;
    }
    if (size != (ssize_t)sizeof word)
        return pager_say(pager, "criu ended before everything was restored");
    if (word == FINISHED)
        return all_restored(pager);
    if (word < 0)
        return 0;
    errno = EPROTO;
    int fd = descriptor_take(source->fd);
    return fd < 0 ? pager_fail(pager, "criu") : space_open(pager, word, fd);
}

static int tasks_ready(struct pager *pager, struct source *source) {
    if (pager->criu.fd >= 0)
        return pager_say(pager, "a second criu");
    pager->criu = (struct source){accept4(source->fd, NULL, NULL, SOCK_CLOEXEC), criu_ready};
    return pager->criu.fd < 0 ? pager_fail(pager, "criu") : source_add(pager, &pager->criu);
}

/* Who asks is criu in a process that it is about to turn into one of the job's (userfaultfd.c). */
static int door_ready(struct pager *pager, struct source *source) {
    autoclose int client = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC);
    if (client < 0 || (descriptor_give(client, pager->device) < 0 && errno != EPIPE))
        return pager_fail(pager, "door");
    return 0;
}

static int hold_ready(struct pager *pager, struct source *source) {
    (void)source;
    return pager_say(pager, "the engine went away");
}

static int guard_ready(struct pager *pager, struct source *source) {
    (void)source;
    return pager_say(pager, "its guard was killed");
}

static int sources_add(struct pager *pager) {
    struct source *sources[] = {&pager->tasks, &pager->door, &pager->hold, &pager->guard};
    pager->tasks.ready = tasks_ready;
    pager->door.ready = door_ready;
    pager->hold.ready = hold_ready;
    pager->guard.ready = guard_ready;
    pager->criu.fd = -1;
    for (size_t i = 0; i < sizeof sources / sizeof *sources; i++)
        if (sources[i]->fd >= 0 && source_add(pager, sources[i]) < 0)
            return -1;
    return 0;
}

/* One round with every process, and for the first one a chunk: whether more could be done at once, or -1. */
static int spaces_serve(struct pager *pager) {
    int64_t filled = 0;
    for (size_t i = 0; i < pager->count; i++)
        if (space_serve(pager, pager->spaces[i]) < 0)
            return -1;
    for (size_t i = 0; pager->restored && i < pager->count && !filled; i++)
        if ((filled = space_fill(pager, pager->spaces[i])) < 0)
            return -1;
    return filled > 0;
}

/* Those that have all, or are no more.  The last to close a userfaultfd frees who waits there. */
static void spaces_sweep(struct pager *pager) {
    size_t kept = 0;
    for (size_t i = 0; i < pager->count; i++) {
        struct space *space = pager->spaces[i];
        if (space->gone || (pager->restored && memory_empty(&space->memory)))
            space_free(pager, space);
        else
            pager->spaces[kept++] = space;
    }
    pager->count = kept;
}

int pager_run(struct pager *pager) {
    struct epoll_event events[EVENTS];
    int patience = -1;
    pager->epoll = epoll_create1(EPOLL_CLOEXEC);
    pager->buffer = aligned_alloc(page_size(), CHUNK);
    if (pager->epoll < 0 || !pager->buffer)
        return pager_fail(pager, "start");
    if (sources_add(pager) < 0)
        return -1;
    while (!pager->restored || pager->count) {
        int count = epoll_wait(pager->epoll, events, EVENTS, patience);
        for (int i = 0; i < count; i++) {
            struct source *source = events[i].data.ptr;
            if (source->fd >= 0 && source->ready(pager, source) < 0)
                return -1;
        }
        int more = spaces_serve(pager);
        if (more < 0)
            return -1;
        spaces_sweep(pager);
        /* What has to wait does so for a step of another process, which nothing tells. */
        patience = more ? 0 : 1;
    }
    return 0;
}
