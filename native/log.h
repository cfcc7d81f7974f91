/* A session's output on disk: N.log and N.log.old, in the form of protocol.h (LOG).  One process writes a log; all
 * who watch the session are served from it. */
#pragma once
#include "protocol.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#ifndef LOG_LIMIT
#define LOG_LIMIT (256u << 20)
#endif
#define LOG_TAIL (64u << 10)
#define LOG_MARKS 8
#define OFFSET_LIVE UINT64_MAX
#define OFFSET_TAIL (UINT64_MAX - 1)
#define OFFSET_BEGIN (UINT64_MAX - 2) /* where the log ended when it was opened; what START with attach=1 means */

struct log {
    uint32_t session;
    uint8_t voice;     /* the stream that its own remarks go to */
    uint8_t last;      /* type of the last message, 0: none */
    int fd;            /* -1: could not be opened, tried again at the next message */
    uint64_t base;     /* logical offset of the first byte of N.log behind its head */
    uint64_t old_base; /* the same of N.log.old; `base` when there is none */
    uint64_t begin;    /* where it ended when it was opened */
    uint64_t end;
    uint64_t lost;             /* bytes of output that found no room since the last message */
    int reading[2];            /* N.log and N.log.old, open while somebody is being served */
    uint64_t marks[LOG_MARKS]; /* where some of the latest messages begin, at least LOG_TAIL back in all */
    unsigned marked;
};

/* Goes on with the log that is there, less a message that was cut by a kill, or begins one.  Never fails: without
 * room on disk the output is counted as lost until there is some. */
void log_open(struct log *log, uint32_t session, uint8_t voice);
void log_close(struct log *log);

void log_append(struct log *log, uint8_t type, uint8_t stream, const void *bytes, size_t size);

/* The place that one of these, or an offset, means. */
uint64_t log_place(const struct log *log, uint64_t offset);

/* Bytes from *cursor on, which first moves up to the oldest byte that is kept: their count, 0 at the end, -1. */
ssize_t log_read(struct log *log, uint64_t *cursor, void *buffer, size_t size);

/* Whether this can be the head of the log's message at that offset. */
bool log_message_ok(const struct log *log, const struct message *message, uint64_t offset);

/* Nobody is being served for now. */
void log_rest(struct log *log);
