#include "cleanup.h"
#include "connection.h"
#include "iodir.h"
#include "kernel.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Between init and a holder: packets of a `struct message` and `length` bytes. */
enum {
    H_VIEW = 1, /* to the holder: a connection; offset: where it begins, stream 1: it has heard M_STARTED; status */
    H_MARK,     /* to the holder: an M_STEP for the log; back when it is there, with the terminal for who begins */
    H_END,      /* to the holder: the process has ended; the records of M_EXIT */
    H_QUIET,    /* to the holder: close every connection and be younger; H_RENEW comes, and this when that is done */
    H_RENEW,    /* to the holder: be younger than the step's process; back with offset: the pid from now on */
    H_CLOSED,   /* to init: a connection is gone */
    H_SIGNAL,   /* to init: from a connection, for the session */
};

static struct session *held; /* in a holder: its session */

bool holder_here(void) {
    return held != NULL;
}

static int channel_send(struct session *session, struct message head, const void *payload, int fd) {
    struct iovec parts[] = {{&head, sizeof head}, {(void *)payload, head.length}};
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};
    if (fd >= 0) {
        packet.msg_control = &control;
        packet.msg_controllen = sizeof control;
        control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET};
        control.head.cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    }
    /* Init waits for nobody; a holder may wait for init. */
    int flags = MSG_NOSIGNAL | (held ? 0 : MSG_DONTWAIT);
    return sendmsg(session->channel.fd, &packet, flags) < 0 ? -1 : 0;
}

/* Its size, 0 at the end, -1 when there is none; *fd is what came with it, or -1. */
static ssize_t channel_receive(struct session *session, struct message *head, char payload[CHUNK_MAX], int *fd) {
    struct iovec parts[] = {{head, sizeof *head}, {payload, CHUNK_MAX}};
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = &control};
    packet.msg_controllen = sizeof control;
    ssize_t size = recvmsg(session->channel.fd, &packet, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    *fd = -1;
    if (size > 0 && packet.msg_controllen >= CMSG_LEN(sizeof *fd))
        memcpy(fd, CMSG_DATA(&control.head), sizeof *fd);
    return size;
}

/* In the holder. */

static void finish_if_unwatched(void) {
    if (held->state == ENDED && !held->views)
        _exit(0);
}

void holder_signal(int number) {
    channel_send(held, (struct message){.type = H_SIGNAL, .stream = (uint8_t)number}, NULL, -1);
}

void holder_closed_one(const struct session *session) {
    channel_send(held, (struct message){.type = H_CLOSED}, NULL, -1);
    if (!session->views)
        log_rest(&held->log);
    finish_if_unwatched();
}

static void take_view(const struct message *head, const char *status, int fd) {
    struct connection *connection = fd < 0 ? NULL : connection_new(fd);
    if (!connection) {
        channel_send(held, (struct message){.type = H_CLOSED}, NULL, -1);
        return;
    }
    connection->trusted = true;
    connection_attach(connection, held, head->offset);
    if (head->stream)
        return;
    struct message reply = {.type = M_ATTACHED, .session = held->id, .length = head->length};
    reply.offset = connection->cursor;
    connection_send(connection, &reply, status);
}

static void take_end(const struct message *head, const char *outcome) {
    stream_drain(held);
    stream_close(held);
    log_append(&held->log, M_EXIT, 0, outcome, head->length);
    held->state = ENDED;
    held->status = (int)head->offset;
    held->ended = head->time;
    connections_changed(held);
    finish_if_unwatched();
}

static void close_all(void) {
    for (size_t place = 0; place < CLIENTS_MAX; place++)
        if (connection_at(place))
            connection_close(connection_at(place), true);
}

/* The child is this process, connections, log, epoll instance and all, but younger.  Where none can be had, nothing is
 * lost but a checkpoint while the step holds /dev/tty. */
static void renew(void) {
    int gate[2];
    if (gate_open(gate) < 0)
        return;
    long pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
    if (pid > 0) {
        channel_send(held, (struct message){.type = H_RENEW, .offset = (uint64_t)pid}, NULL, -1);
        _exit(0);
    }
    gate_pass(gate);
}

static void from_init(struct source *source, uint32_t events) {
    (void)source, (void)events;
    static char payload[CHUNK_MAX];
    struct message head = {0};
    int fd, lent = -1;
    ssize_t size = channel_receive(held, &head, payload, &fd);
    if (size == 0)
        _exit(0); /* init has gone on without its terminals: the job is over */
    if (size < 0)
        return;
    switch (head.type) {
    case H_VIEW:
        take_view(&head, payload, fd);
        return;
    case H_MARK:
        if (head.stream != 0)
            stream_drain(held);
        else
            lent = held->ends[0];
        log_append(&held->log, M_STEP, head.stream, payload, head.length);
        connections_changed(held);
        break;
    case H_END:
        take_end(&head, payload);
        return;
    case H_RENEW:
        renew();
        return;
    case H_QUIET:
        close_all();
        renew();
    }
    channel_send(held, (struct message){.type = head.type}, NULL, lent);
}

/* Everything of init's is closed but what is named here, and its copy of the directory. */
static void keep_only(int *kept, int count) {
    unsigned from = 3;
    for (int at = 0; at < count; at++)
        for (int other = at + 1; other < count; other++)
            if (kept[other] < kept[at]) {
                int swap = kept[at];
                kept[at] = kept[other];
                kept[other] = swap;
            }
    for (int at = 0; at < count; at++) {
        if ((unsigned)kept[at] > from)
            close_range(from, (unsigned)kept[at] - 1, 0);
        from = (unsigned)kept[at] + 1;
    }
    close_range(from, ~0u, 0);
}

static _Noreturn void hold(struct session *session, int slave, int channel) {
    int kept[] = {session->output[0].fd, slave, channel, iodir_fd()};
    keep_only(kept, 4);
    prctl(PR_SET_NAME, "serac-terminal");
    connections_forget();
    held = session;
    const struct source none = {.fd = -1};
    session->report = session->input = none;
    session->views = 0;
    session->starter = NULL;
    session->state = RUNNING;
    session->channel = (struct source){.fd = channel, .ready = from_init};
    session->ends[0] = slave; /* held open: a master whose other end is closed is always ready, with an error */
    session->input.fd = fcntl(session->output[0].fd, F_DUPFD_CLOEXEC, 3);
    log_open(&session->log, session->id, 1);
    if (session->step < session->spec.steps.count) {
        const char *step = session->spec.steps.items[session->step];
        log_append(&session->log, M_STEP, 0, step, strlen(step));
    }
    if (session->input.fd < 0 || loop_start() < 0 || loop_watch(&session->channel, EPOLLIN) < 0 ||
        stream_watch(session) < 0)
        _exit(1);
    for (;;)
        loop_turn(-1);
}

/* In init. */

static void take_mark(struct session *session, int terminal) {
    if (terminal >= 0) {
        if (session->ends[0] >= 0)
            close(session->ends[0]);
        session->ends[0] = terminal;
    }
    if (session->unmarked > 0) {
        session->unmarked--;
        session_marked(session);
    }
}

/* Takes one message: 1, 0 when there is none, -1 when none will come. */
static int hear(struct session *session) {
    static char payload[CHUNK_MAX];
    struct message head = {0};
    int fd;
    ssize_t size = channel_receive(session, &head, payload, &fd);
    if (size <= 0)
        return size == 0 ? -1 : 0;
    if (head.type == H_CLOSED && session->guests > 0)
        session->guests--;
    if (head.type == H_SIGNAL)
        session_signal(session, head.stream);
    if (head.type == H_RENEW && head.offset > 1 && head.offset <= INT32_MAX) {
        session->former = session->holder;
        session->holder = (pid_t)head.offset;
    }
    if (head.type == H_MARK)
        take_mark(session, steal_fd(&fd));
    if (fd >= 0)
        close(fd);
    if (head.type == H_QUIET)
        session->unquiet = false;
    return 1;
}

/* What a holder does at the end, where there is none any more. */
static void log_exit(struct session *session) {
    char outcome[32];
    size_t size = session_outcome(session, outcome);
    log_open(&session->log, session->id, 1);
    if (session->log.last != M_EXIT)
        log_append(&session->log, M_EXIT, 0, outcome, size);
    log_close(&session->log);
}

static void gone(struct session *session) {
    loop_drop(&session->channel);
    session->holder = 0;
    session->guests = session->unmarked = 0;
    session->loud = session->unquiet = false;
    if (session->state == ENDED) {
        log_exit(session);
        session_unwatched(session);
    } else {
        session_marked(session);
    }
}

static void from_holder(struct source *source, uint32_t events) {
    (void)events;
    struct session *session = OWNER(source, struct session, channel);
    if (hear(session) < 0) {
        session->former = session->holder;
        gone(session);
    }
}

void holder_reaped(struct session *session, pid_t pid) {
    while (hear(session) > 0)
        ; /* what it sent before it ended, perhaps who goes on in its place */
    if (session->former == pid)
        session->former = 0;
    else if (session->holder == pid)
        gone(session);
}

int holder_start(struct session *session) {
    int pair[2], gate[2];
    autoclose int slave = steal_fd(&session->ends[0]);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -1;
    autoclose int theirs = pair[1];
    session->channel = (struct source){.fd = pair[0], .ready = from_holder};
    if (loop_watch(&session->channel, EPOLLIN) < 0 || gate_open(gate) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0)
        hold(session, slave, theirs);
    gate_pass(gate);
    if (pid < 0)
        return -1;
    session->holder = pid;
    close(steal_fd(&session->output[0].fd));
    return 0;
}

/* A holder that doesn't take what it must hear (somebody in the job stopped it) is as good as none. */
static void send_or_kill(struct session *session, struct message head, const void *payload) {
    if (session->holder && channel_send(session, head, payload, -1) < 0)
        kill(session->holder, SIGKILL);
}

int holder_view(struct session *session, int fd, uint64_t offset, bool started) {
    struct writer status = {0};
    session_status(session, &status, CHUNK_MAX);
    struct message head = {.type = H_VIEW, .stream = started, .offset = offset, .length = (uint32_t)status.size};
    int result = -1;
    errno = session->holder ? ENOMEM : EPIPE;
    if (session->holder && !status.failed)
        result = channel_send(session, head, status.bytes, fd);
    free(status.bytes);
    if (result == 0)
        session->guests++;
    return result;
}

void holder_mark(struct session *session, uint8_t outcome, const char *step) {
    session->unmarked += session->holder != 0;
    send_or_kill(session, (struct message){.type = H_MARK, .stream = outcome, .length = (uint32_t)strlen(step)}, step);
}

void holder_quiet(struct session *session) {
    session->loud = false;
    session->unquiet = true;
    kill(session->holder, SIGCONT); /* stopped with everything else, by somebody in the job */
    send_or_kill(session, (struct message){.type = H_QUIET}, NULL);
}

void holder_renew(struct session *session) {
    send_or_kill(session, (struct message){.type = H_RENEW}, NULL);
}

void holder_end(struct session *session) {
    char outcome[32];
    struct message head = {.type = H_END, .length = (uint32_t)session_outcome(session, outcome)};
    head.offset = (uint64_t)session->status;
    head.time = session->ended;
    if (session->holder)
        send_or_kill(session, head, outcome);
    else
        log_exit(session);
}
