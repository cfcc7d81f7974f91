#include "log.h"

#include "cleanup.h"
#include "iodir.h"
#include "loop.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEAD sizeof(struct log_head)
#define MARK_EVERY (LOG_TAIL / 4)
#define WINDOW (4 * (sizeof(struct message) + CHUNK_MAX))

enum { CURRENT, OLD };
static const char *const suffixes[] = {".log", ".log.old"};

bool log_message_ok(const struct log *log, const struct message *message, uint64_t offset) {
    return (message->type == M_OUTPUT || message->type == M_STEP || message->type == M_EXIT) && !message->zero &&
           !message->zero2 && message->session == log->session && message->offset == offset &&
           message->length <= CHUNK_MAX;
}

static void mark(struct log *log, uint64_t offset) {
    uint64_t latest = log->marked ? log->marks[(log->marked - 1) % LOG_MARKS] : 0;
    if (!log->marked || offset >= latest + MARK_EVERY)
        log->marks[log->marked++ % LOG_MARKS] = offset;
}

/* A part of a file, for those who read on and on a little. */
struct part {
    int fd;
    uint64_t start;
    size_t size;
    char bytes[4096];
};

/* The head of a message at a place in the file; false at its end. */
static bool part_read(struct part *part, uint64_t place, struct message *message) {
    if (place < part->start || place + sizeof *message > part->start + part->size) {
        ssize_t size = pread(part->fd, part->bytes, sizeof part->bytes, (off_t)place);
        part->start = place;
        part->size = size < 0 ? 0 : (size_t)size;
    }
    if (place + sizeof *message > part->start + part->size)
        return false;
    memcpy(message, part->bytes + (place - part->start), sizeof *message);
    return true;
}

/* Where the whole messages from offset `at` on end. */
static uint64_t walk(struct log *log, int fd, uint64_t base, uint64_t at, uint64_t size) {
    struct part part = {.fd = fd};
    struct message message;
    while (part_read(&part, at - base + HEAD, &message) && log_message_ok(log, &message, at) &&
           at - base + HEAD + sizeof message + message.length <= size) {
        mark(log, at);
        log->last = message.type;
        at += sizeof message + message.length;
    }
    return at;
}

/* As `walk` over the whole file, but from the first message within the last few: a long log costs no more. */
static bool walk_tail(struct log *log, int fd, uint64_t base, uint64_t size, uint64_t *end) {
    autofree char *window = size > HEAD + WINDOW ? malloc(WINDOW) : NULL;
    if (!window || pread(fd, window, WINDOW, (off_t)(size - WINDOW)) != (ssize_t)WINDOW)
        return false;
    uint64_t start = size - WINDOW - HEAD + base;
    for (size_t at = 0; at + sizeof(struct message) <= WINDOW / 2; at++) {
        struct message message;
        memcpy(&message, window + at, sizeof message);
        if (!log_message_ok(log, &message, start + at))
            continue;
        log->marked = 0;
        *end = walk(log, fd, base, start + at, size);
        if (size - HEAD + base - *end < sizeof message + CHUNK_MAX)
            return true;
    }
    log->marked = 0;
    return false;
}

/* What one file holds: its base and its end, -1 when it is not a log of this session. */
static int extent(struct log *log, int which, uint64_t *base, uint64_t *end) {
    struct filename name = session_file(log->session, suffixes[which]);
    autoclose int fd = iodir_file(name.text, O_RDONLY);
    struct log_head head;
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0 || pread(fd, &head, HEAD, 0) != (ssize_t)HEAD)
        return -1;
    if (memcmp(head.magic, LOG_MAGIC, sizeof head.magic) != 0 || head.version != LOG_VERSION ||
        head.session != log->session || head.base > UINT64_MAX / 2)
        return -1;
    uint64_t size = (uint64_t)status.st_size;
    *base = head.base;
    if (!walk_tail(log, fd, *base, size, end))
        *end = walk(log, fd, *base, *base, size);
    return 0;
}

/* A new file beside N.log, with its head. */
static int create(const struct log *log) {
    struct log_head head = {.version = LOG_VERSION, .session = log->session, .base = log->end};
    memcpy(head.magic, LOG_MAGIC, sizeof head.magic);
    struct filename beside = session_file(log->session, ".log.new");
    autoclose int fd = iodir_file(beside.text, O_WRONLY | O_APPEND | O_CREAT | O_TRUNC);
    if (fd < 0 || write(fd, &head, HEAD) != (ssize_t)HEAD) {
        iodir_remove(beside.text);
        return -1;
    }
    return steal_fd(&fd);
}

/* Begins a new N.log at the end; what was N.log becomes N.log.old. */
static void begin_file(struct log *log) {
    struct filename current = session_file(log->session, suffixes[CURRENT]);
    struct filename old = session_file(log->session, suffixes[OLD]);
    struct filename beside = session_file(log->session, ".log.new");
    autoclose int fd = create(log);
    if (fd < 0)
        return;
    log_rest(log);
    if (log->end > log->base && iodir_rename(current.text, old.text) == 0)
        log->old_base = log->base;
    if (iodir_rename(beside.text, current.text) < 0)
        return;
    if (log->fd >= 0)
        close(log->fd);
    log->base = log->end;
    log->fd = steal_fd(&fd);
}

/* Opens the current file for writing, cut to its whole messages. */
static int append_to(const struct log *log) {
    struct filename name = session_file(log->session, suffixes[CURRENT]);
    autoclose int fd = iodir_file(name.text, O_WRONLY | O_APPEND);
    if (fd < 0 || ftruncate(fd, (off_t)(log->end - log->base + HEAD)) < 0)
        return -1;
    return steal_fd(&fd);
}

void log_open(struct log *log, uint32_t session, uint8_t voice) {
    *log = (struct log){.session = session, .voice = voice, .fd = -1, .reading = {-1, -1}};
    uint64_t old_base, old_end;
    bool old = extent(log, OLD, &old_base, &old_end) == 0;
    log->marked = 0;
    if (extent(log, CURRENT, &log->base, &log->end) == 0) {
        log->old_base = old && old_end == log->base ? old_base : log->base;
        log->fd = append_to(log);
    } else if (old) {
        log->old_base = old_base;
        log->base = log->end = old_end;
    }
    if (log->fd < 0)
        begin_file(log);
    log->begin = log->end;
}

void log_close(struct log *log) {
    log_rest(log);
    if (log->fd >= 0)
        close(log->fd);
    log->fd = -1;
}

static bool room_for(struct log *log, size_t size) {
    if (log->fd < 0 || (log->end > log->base && log->end - log->base + HEAD + size > LOG_LIMIT / 2))
        begin_file(log);
    return log->fd >= 0;
}

static bool put(struct log *log, uint8_t type, uint8_t stream, const void *bytes, size_t size) {
    struct message message = {.type = type, .stream = stream, .session = log->session, .length = (uint32_t)size};
    if (!room_for(log, sizeof message + size))
        return false;
    message.offset = log->end;
    message.time = clock_real();
    struct iovec parts[] = {{&message, sizeof message}, {(void *)bytes, size}};
    ssize_t wrote = writev(log->fd, parts, 2);
    if (wrote != (ssize_t)(sizeof message + size)) {
        /* Without this the next message would follow half a one. */
        if (wrote > 0 && ftruncate(log->fd, (off_t)(log->end - log->base + HEAD)) < 0) {
            close(log->fd);
            log->fd = -1;
        }
        return false;
    }
    mark(log, log->end);
    log->end += sizeof message + size;
    log->last = type;
    return true;
}

static bool say_lost(struct log *log) {
    char text[96];
    if (!log->lost)
        return true;
    int size = snprintf(text, sizeof text, "\n[serac: %llu bytes of output were lost: no space on disk]\n",
                        (unsigned long long)log->lost);
    if (!put(log, M_OUTPUT, log->voice, text, (size_t)size))
        return false;
    log->lost = 0;
    return true;
}

void log_append(struct log *log, uint8_t type, uint8_t stream, const void *bytes, size_t size) {
    if ((!say_lost(log) || !put(log, type, stream, bytes, size)) && type == M_OUTPUT)
        log->lost += size;
}

uint64_t log_place(const struct log *log, uint64_t offset) {
    uint64_t place = offset == OFFSET_BEGIN ? log->begin : offset > log->end ? log->end : offset;
    if (offset == OFFSET_TAIL) {
        unsigned kept = log->marked < LOG_MARKS ? log->marked : LOG_MARKS;
        place = kept ? log->marks[(log->marked - kept) % LOG_MARKS] : log->end;
        for (unsigned at = log->marked - kept; at < log->marked; at++)
            if (log->marks[at % LOG_MARKS] + LOG_TAIL <= log->end)
                place = log->marks[at % LOG_MARKS];
    }
    return place < log->old_base ? log->old_base : place;
}

static int reading(struct log *log, int which) {
    if (log->reading[which] < 0)
        log->reading[which] = iodir_file(session_file(log->session, suffixes[which]).text, O_RDONLY);
    return log->reading[which];
}

ssize_t log_read(struct log *log, uint64_t *cursor, void *buffer, size_t size) {
    if (*cursor < log->old_base)
        *cursor = log->old_base;
    if (*cursor >= log->end)
        return 0;
    int which = *cursor < log->base ? OLD : CURRENT;
    uint64_t base = which == OLD ? log->old_base : log->base;
    uint64_t stop = which == OLD ? log->base : log->end;
    int fd = reading(log, which);
    if (fd < 0)
        return -1;
    size_t want = stop - *cursor < size ? (size_t)(stop - *cursor) : size;
    return pread(fd, buffer, want, (off_t)(*cursor - base + HEAD));
}

void log_rest(struct log *log) {
    for (int which = CURRENT; which <= OLD; which++) {
        if (log->reading[which] >= 0)
            close(log->reading[which]);
        log->reading[which] = -1;
    }
}
