#include "cleanup.h"
#include "connection.h"
#include "session.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TERMINAL_DRAIN (1u << 20)
#define LAG_MAX (8u << 20) /* bytes that a reader may lag behind; far below what the log keeps */

/* Moves what one read gives to the log: its size, 0 when there is nothing more. */
static size_t pump(struct session *session, int which, size_t most) {
    static char chunk[CHUNK_MAX];
    ssize_t size = read(session->output[which].fd, chunk, most < sizeof chunk ? most : sizeof chunk);
    if (size > 0) {
        log_append(&session->log, M_OUTPUT, (uint8_t)(which + 1), chunk, (size_t)size);
        connections_changed(session);
        return (size_t)size;
    }
    if (size == 0 || (errno != EAGAIN && errno != EINTR))
        loop_drop(&session->output[which]);
    return 0;
}

static bool lags(const struct session *session, uint64_t most) {
    return session->reader && session->log.end > session->reader->cursor + most;
}

static void output_ready(struct session *session, int which) {
    pump(session, which, CHUNK_MAX);
    session->held = lags(session, LAG_MAX);
    for (int at = 0; at < 2 && session->held; at++)
        if (session->output[at].fd >= 0)
            loop_watch(&session->output[at], 0);
}

static void first_ready(struct source *source, uint32_t events) {
    (void)events;
    output_ready(OWNER(source, struct session, output[0]), 0);
}

static void second_ready(struct source *source, uint32_t events) {
    (void)events;
    output_ready(OWNER(source, struct session, output[1]), 1);
}

static void input_ready(struct source *source, uint32_t events) {
    (void)events;
    struct session *session = OWNER(source, struct session, input);
    loop_watch(source, 0);
    if (!session->rest) {
        connections_writable(session);
        return;
    }
    size_t left = session->rest_size - session->rest_at;
    size_t took = stream_feed(session, session->rest + session->rest_at, left);
    session->rest_at += took;
    if (took == left)
        stream_input_end(session);
}

int stream_watch(struct session *session) {
    session->output[0].ready = first_ready;
    session->output[1].ready = second_ready;
    session->input.ready = input_ready;
    for (int which = 0; which < 2; which++)
        if (session->output[which].fd >= 0 && loop_watch(&session->output[which], EPOLLIN) < 0)
            return -1;
    return 0;
}

void stream_go_on(struct session *session) {
    if (session->held && !lags(session, LAG_MAX / 2)) {
        session->held = false;
        stream_watch(session);
    }
}

void stream_drain(struct session *session) {
    for (int which = 0; which < 2; which++) {
        /* What lies in the pipe now; a process in the background that goes on writing is not waited for. */
        int there = TERMINAL_DRAIN;
        if (session->output[which].fd < 0 ||
            (!session->spec.terminal && ioctl(session->output[which].fd, FIONREAD, &there) < 0))
            continue;
        for (size_t left = (size_t)there, size; left > 0 && session->output[which].fd >= 0; left -= size)
            if ((size = pump(session, which, left)) == 0)
                break;
    }
}

void stream_input_end(struct session *session) {
    free(steal_pointer(&session->rest));
    session->rest_size = session->rest_at = 0;
    loop_drop(&session->input);
    connections_writable(session);
}

void stream_close(struct session *session) {
    loop_drop(&session->output[0]);
    loop_drop(&session->output[1]);
    stream_input_end(session);
    for (int end = 0; end < 3; end++) {
        if (session->ends[end] >= 0)
            close(session->ends[end]);
        session->ends[end] = -1;
    }
}

size_t stream_feed(struct session *session, const char *bytes, size_t size) {
    ssize_t took = write(session->input.fd, bytes, size);
    if (took < 0 && errno != EAGAIN && errno != EINTR) {
        stream_input_end(session); /* nobody reads it any more */
        return size;
    }
    if (took < (ssize_t)size)
        loop_watch(&session->input, EPOLLOUT);
    return took > 0 ? (size_t)took : 0;
}

size_t stream_keep(struct session *session, const char *bytes, size_t size) {
    char *rest = realloc(session->rest, session->rest_size + size);
    if (!rest)
        return 0;
    memcpy(rest + session->rest_size, bytes, size);
    session->rest = rest;
    session->rest_size += size;
    return size;
}
