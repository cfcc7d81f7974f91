#include "launch_space.h"

#include "cleanup.h"

#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>

#define CLUSTER (64ull << 10) /* brought in with a page that is asked for */
#define MESSAGES 32

void space_free(struct pager *pager, struct space *space) {
    source_drop(pager, &space->source);
    close_at_exit(&space->pages);
    free(space->memory.at);
    free(space->asked);
    free(space);
}

static int space_ready(struct pager *pager, struct source *source);

/* Takes `space` over. */
static int space_add(struct pager *pager, struct space *space) {
    struct space **spaces = reallocarray(pager->spaces, pager->count + 1, sizeof *spaces);
    if (spaces)
        pager->spaces = spaces;
    space->source.ready = space_ready;
    if (!spaces || source_add(pager, &space->source) < 0) {
        space_free(pager, space);
        return spaces ? -1 : pager_fail(pager, "memory");
    }
    pager->spaces[pager->count++] = space;
    return 0;
}

int space_open(struct pager *pager, int pid, int fd) {
    struct space *space = calloc(1, sizeof *space);
    if (!space)
        return pager_fail(pager, "memory");
    *space = (struct space){.source.fd = fd, .pages = -1};
    if (memory_read(pager->images, pid, &space->memory, &space->pages) == 0)
        return space_add(pager, space);
    char what[64];
    snprintf(what, sizeof what, "the image of process %d", pid);
    pager_fail(pager, what);
    space_free(pager, space);
    return -1;
}

/* The child lacks what the parent lacks: until the parent's fork was read, the kernel lets nothing be brought in there. */
static int space_fork(struct pager *pager, const struct space *parent, int fd) {
    struct space *space = calloc(1, sizeof *space);
    if (!space)
        return pager_fail(pager, "memory");
    *space = (struct space){.source.fd = fd, .pages = dup(parent->pages)};
    if (space->pages >= 0 && memory_copy(&parent->memory, &space->memory) == 0)
        return space_add(pager, space);
    pager_fail(pager, "fork");
    space_free(pager, space);
    return -1;
}

static int space_ask(struct pager *pager, struct space *space, uint64_t address) {
    if (space->count == space->room) {
        size_t room = space->room ? 2 * space->room : 16;
        uint64_t *asked = reallocarray(space->asked, room, sizeof *asked);
        if (!asked)
            return pager_fail(pager, "memory");
        space->asked = asked;
        space->room = room;
    }
    space->asked[space->count++] = address & ~(page_size() - 1);
    return 0;
}

static int message_take(struct pager *pager, struct space *space, const struct uffd_msg *message) {
    int done = 0;
    switch (message->event) {
    case UFFD_EVENT_PAGEFAULT:
        return space_ask(pager, space, message->arg.pagefault.address);
    case UFFD_EVENT_FORK:
        return space_fork(pager, space, (int)message->arg.fork.ufd);
    case UFFD_EVENT_REMAP:
        done = memory_move(&space->memory, message->arg.remap.from, message->arg.remap.to, message->arg.remap.len);
        break;
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
        done = memory_remove(&space->memory, message->arg.remove.start, message->arg.remove.end);
        break;
    }
    return done < 0 ? pager_fail(pager, "memory") : 0;
}

static int space_ready(struct pager *pager, struct source *source) {
    struct space *space = (struct space *)source;
    struct uffd_msg messages[MESSAGES];
    ssize_t size = read(source->fd, messages, sizeof messages);
    if (size < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : pager_fail(pager, "userfaultfd");
    for (size_t i = 0; i < (size_t)size / sizeof *messages; i++)
        if (message_take(pager, space, &messages[i]) < 0)
            return -1;
    return 0;
}

/* Wake who waits for a page that is there, or never will be: it looks again. */
static void space_wake(const struct space *space, uint64_t address) {
    struct uffdio_range range = {.start = address, .len = page_size()};
    ioctl(space->source.fd, UFFDIO_WAKE, &range);
}

/* What became of bringing pages in, by errno. */
enum outcome { LATER, SMALLER, NEEDLESS, OVER, WRONG };

static enum outcome judge(const struct pager *pager, int error, uint64_t length) {
    switch (error) {
    case EAGAIN: /* the mappings change, which is told first */
        return LATER;
    case ENOENT: /* not within one mapping: parts of it have got other rights, say; or there is none */
        return length > page_size() ? SMALLER : pager->restored ? NEEDLESS : WRONG;
    case EEXIST:
        return NEEDLESS;
    case ESRCH: /* the process is no more */
    case ENOSPC:
        return OVER;
    default:
        return WRONG;
    }
}

/* Put `length` bytes of the buffer at `address`: how much is dealt with, 0: none now, or -1. */
static int64_t pages_put(struct pager *pager, struct space *space, uint64_t address, uint64_t length) {
    for (;;) {
        struct uffdio_copy copy = {.dst = address, .src = (uintptr_t)pager->buffer, .len = length};
        if (ioctl(space->source.fd, UFFDIO_COPY, &copy) == 0)
            return (int64_t)length;
        if (copy.copy > 0)
            return copy.copy;
        switch (judge(pager, errno, length)) {
        case LATER:
            return 0;
        case SMALLER:
            length = length / page_size() / 2 * page_size();
            continue;
        case NEEDLESS:
            space_wake(space, address);
            return (int64_t)page_size();
        case OVER:
            space->gone = true;
            return 0;
        case WRONG:
            return pager_fail(pager, "bringing pages in");
        }
    }
}

/* Bring in [start, start + length), which lies in `range`: how much is dealt with, 0: none now, or -1. */
static int64_t pages_bring(struct pager *pager, struct space *space, const struct range *range, uint64_t start,
                           uint64_t length) {
    uint64_t offset = range->offset + (start - range->start);
    ssize_t got = pread(space->pages, pager->buffer, length, (off_t)offset);
    if (got != (ssize_t)length) {
        if (got >= 0)
            errno = EIO;
        return pager_fail(pager, "reading pages");
    }
    int64_t done = pages_put(pager, space, start, length);
    if (done > 0 && memory_remove(&space->memory, start, start + (uint64_t)done) < 0)
        return pager_fail(pager, "memory");
    return done;
}

/* A page that is in no image was never written: 1 when it is dealt with, 0: not now, or -1. */
static int64_t zero_put(struct pager *pager, struct space *space, uint64_t address) {
    struct uffdio_zeropage zero = {.range = {.start = address, .len = page_size()}};
    if (ioctl(space->source.fd, UFFDIO_ZEROPAGE, &zero) == 0)
        return 1;
    switch (judge(pager, errno, page_size())) {
    case LATER:
        return 0;
    case OVER:
        space->gone = true;
        return 0;
    case WRONG:
        return pager_fail(pager, "bringing a page in");
    default:
        space_wake(space, address);
        return 1;
    }
}

static int64_t page_serve(struct pager *pager, struct space *space, uint64_t address) {
    const struct range *range = memory_find(&space->memory, address);
    if (!range)
        return zero_put(pager, space, address);
    uint64_t length = range->end - address;
    return pages_bring(pager, space, range, address, length < CLUSTER ? length : CLUSTER);
}

int space_serve(struct pager *pager, struct space *space) {
    size_t kept = 0;
    for (size_t i = 0; i < space->count && !space->gone; i++) {
        int64_t done = page_serve(pager, space, space->asked[i]);
        if (done < 0)
            return -1;
        if (!done)
            space->asked[kept++] = space->asked[i];
    }
    space->count = kept;
    return 0;
}

int64_t space_fill(struct pager *pager, struct space *space) {
    if (memory_empty(&space->memory))
        return 0;
    const struct range *range = &space->memory.at[space->memory.low];
    uint64_t length = range->end - range->start;
    return pages_bring(pager, space, range, range->start, length < CHUNK ? length : CHUNK);
}

int space_prepare(struct pager *pager, struct space *space) {
    const struct range *next;
    for (uint64_t at = 0; (next = memory_next(&space->memory, at));) {
        uint64_t start = next->start, end = next->wiped ? next->end : start + page_size();
        at = next->end;
        while (start < end && (next->first || next->wiped)) {
            uint64_t length = end - start < CHUNK ? end - start : CHUNK;
            int64_t done = pages_bring(pager, space, next, start, length);
            if (done <= 0)
                return done < 0 ? -1 : pager_say(pager, "a process was lost");
            start += (uint64_t)done;
            if (start < end)
                next = memory_next(&space->memory, start);
        }
    }
    return 0;
}
