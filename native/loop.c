#include "loop.h"

#include <time.h>
#include <unistd.h>

static int epoll = -1;

int loop_start(void) {
    epoll = epoll_create1(EPOLL_CLOEXEC);
    return epoll < 0 ? -1 : 0;
}

int loop_watch(struct source *source, uint32_t events) {
    if (events == source->events)
        return 0;
    int operation = !source->events ? EPOLL_CTL_ADD : !events ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;
    struct epoll_event event = {.events = events, .data.ptr = source};
    if (epoll_ctl(epoll, operation, source->fd, &event) < 0)
        return -1;
    source->events = events;
    return 0;
}

void loop_drop(struct source *source) {
    if (source->fd < 0)
        return;
    /* Never left to close(): a child between fork and exec may still hold the open file, and epoll would go on. */
    loop_watch(source, 0);
    close(source->fd);
    source->fd = -1;
}

void loop_turn(int timeout) {
    struct epoll_event event;
    if (epoll_wait(epoll, &event, 1, timeout) == 1) {
        struct source *source = event.data.ptr;
        source->ready(source, event.events);
    }
}

uint64_t clock_real(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int64_t clock_steady(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int clock_left(int64_t deadline) {
    int64_t left = deadline - clock_steady();
    return left > 0 ? (int)left : 0;
}
