#include "connection.h"

#include "cleanup.h"
#include "session.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static struct connection *table[CLIENTS_MAX];

struct connection *connection_at(size_t place) {
    return place < CLIENTS_MAX ? table[place] : NULL;
}

size_t connection_count(bool inside_only) {
    size_t count = 0;
    for (size_t place = 0; place < CLIENTS_MAX; place++)
        count += table[place] && (table[place]->inside || !inside_only);
    return count;
}

void connections_forget(void) {
    memset(table, 0, sizeof table);
}

void connection_part(struct connection *connection) {
    connection->broken = true;
    if (!connection->handed)
        shutdown(connection->source.fd, SHUT_RDWR);
    connection_wait(connection);
}

/* That the peer is gone ends nothing yet: what it sent before comes first. */
static bool peer_gone(void) {
    return errno == EPIPE || errno == ECONNRESET;
}

void connection_send(struct connection *connection, const struct message *head, const void *payload) {
    struct iovec parts[] = {{(void *)head, sizeof *head}, {(void *)payload, head->length}};
    struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};
    if (!connection->broken && sendmsg(connection->source.fd, &packet, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && !peer_gone())
        connection_part(connection);
}

void connection_error(struct connection *connection, int error, const char *what) {
    struct message head = {.type = M_ERROR, .offset = (uint64_t)error, .length = (uint32_t)strlen(what)};
    connection_send(connection, &head, what);
}

void connection_fail(struct connection *connection, int error, const char *what) {
    connection_error(connection, error, what);
    connection_part(connection);
}

void connection_attach(struct connection *connection, struct session *session, uint64_t offset) {
    connection->view = session;
    connection->cursor = log_place(&session->log, offset);
    session->views++;
    connection_wait(connection);
}

static uint32_t wanted(const struct connection *connection) {
    const struct session *view = connection->view;
    if (connection->broken)
        return EPOLLIN | EPOLLOUT;
    if (connection->starting)
        return 0;
    if (connection->listing >= 0)
        return EPOLLOUT;
    uint32_t events = connection->stuck ? 0 : EPOLLIN;
    /* A peer that is gone wants no output, but what it sent is still to be taken. */
    if (view && !connection->gone && (connection->cursor < view->log.end || view->state == ENDED))
        events |= EPOLLOUT;
    return events;
}

void connection_wait(struct connection *connection) {
    if (loop_watch(&connection->source, wanted(connection)) < 0)
        connection->broken = true;
}

static void receive(struct connection *connection);

/* The peer has closed: nothing of its input waits for room here any more. */
static void peer_left(struct connection *connection) {
    connection->gone = true;
    connection->stuck = connection->stuck && connection->view->spec.terminal;
}

/* What was sent to a session before the peer could know: after this nothing can be, the peer is told. */
static void take_rest(struct connection *connection) {
    struct pollfd look = {.fd = connection->source.fd};
    if (!connection->view)
        return;
    if (poll(&look, 1, 0) == 1)
        peer_left(connection);
    if (shutdown(connection->source.fd, SHUT_RD) < 0)
        return;
    while (!connection->broken && !connection->stuck)
        receive(connection);
}

static void leave_view(struct connection *connection, bool quietly) {
    struct session *session = connection->view;
    connection->view = NULL;
    session->views--;
    if (session->reader == connection) {
        session->reader = NULL;
        stream_go_on(session);
    }
    if (session->feeder == connection) {
        session->feeder = NULL;
        if ((!quietly || connection->gone) && !session->rest)
            stream_input_end(session);
    }
    if (holder_here())
        holder_closed_one(session);
    else if (!session->views)
        session_unwatched(session);
}

void connection_close(struct connection *connection, bool quietly) {
    if (quietly)
        take_rest(connection);
    if (connection->starting)
        connection->starting->starter = NULL;
    control_left(connection);
    /* The descriptor may be open in a child that is about to exec: the peer must not wait for that.  What it sent is
     * taken off the queue, else it would hear ECONNRESET before what it was sent. */
    if (!connection->handed && shutdown(connection->source.fd, SHUT_RDWR) == 0)
        while (recv(connection->source.fd, NULL, 0, MSG_TRUNC | MSG_DONTWAIT) > 0)
            ;
    loop_drop(&connection->source);
    for (size_t place = 0; place < CLIENTS_MAX; place++)
        if (table[place] == connection)
            table[place] = NULL;
    question_left(connection);
    lease_left(connection);
    if (connection->view)
        leave_view(connection, quietly);
    free(connection);
}

/* The M_EXIT that found no room in the log. */
static void tell_exit(struct connection *connection) {
    char text[32];
    const struct session *session = connection->view;
    size_t size = session_outcome(session, text);
    struct message head = {.type = M_EXIT, .session = session->id, .length = (uint32_t)size};
    head.offset = session->log.end;
    head.time = session->ended;
    connection_send(connection, &head, text);
}

/* Sends messages as they lie in the log: bytes sent, 0 when the peer takes no more, -1 when the log is not one. */
static ssize_t send_messages(struct connection *connection, const char *bytes, size_t size) {
    size_t sent = 0;
    struct message head;
    while (size - sent >= sizeof head) {
        memcpy(&head, bytes + sent, sizeof head);
        size_t whole = sizeof head + head.length;
        if (!log_message_ok(&connection->view->log, &head, connection->cursor))
            return -1;
        if (whole > size - sent)
            break;
        if (send(connection->source.fd, bytes + sent, whole, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            return errno == EAGAIN || errno == EINTR || peer_gone() ? 0 : -1;
        connection->told = head.type == M_EXIT;
        connection->cursor += whole;
        sent += whole;
    }
    return sent > 0 ? (ssize_t)sent : -1;
}

static void serve(struct connection *connection) {
    static char buffer[2 * (sizeof(struct message) + CHUNK_MAX)];
    struct session *session = connection->view;
    ssize_t size = log_read(&session->log, &connection->cursor, buffer, sizeof buffer);
    if (size > 0 && send_messages(connection, buffer, (size_t)size) >= 0) {
        stream_go_on(session);
        return;
    }
    if (size != 0) {
        connection_fail(connection, EIO, "log");
    } else if (session->state == ENDED) {
        if (!connection->told)
            tell_exit(connection);
        connection_part(connection);
    }
}

/* That the peer left something unread is said once, before what it sent. */
static ssize_t hear(struct connection *connection, struct msghdr *packet, int flags) {
    int all = flags | MSG_DONTWAIT | MSG_CMSG_CLOEXEC;
    ssize_t size = recvmsg(connection->source.fd, packet, all);
    return size < 0 && errno == ECONNRESET ? recvmsg(connection->source.fd, packet, all) : size;
}

/* The next packet's head, left in the queue: 1, 0 when there is none or it was refused. */
static int peek(struct connection *connection, struct message *head) {
    struct iovec part = {head, sizeof *head};
    ssize_t size = hear(connection, &(struct msghdr){.msg_iov = &part, .msg_iovlen = 1}, MSG_PEEK | MSG_TRUNC);
    if (size <= 0) {
        if (size == 0 || (errno != EAGAIN && errno != EINTR))
            connection_part(connection);
        return 0;
    }
    size_t most = head->type == M_START ? MESSAGE_MAX : CHUNK_MAX;
    if ((size_t)size < sizeof *head || (size_t)size != sizeof *head + head->length || head->length > most ||
        head->zero || head->zero2) {
        connection_fail(connection, (size_t)size > sizeof *head + most ? EMSGSIZE : EPROTO, "packet");
        return 0;
    }
    return 1;
}

/* Exactly three descriptors or none; any other number is closed. */
static void take_files(struct packet *packet, struct msghdr *whole) {
    for (struct cmsghdr *part = CMSG_FIRSTHDR(whole); part; part = CMSG_NXTHDR(whole, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        const int *files = (const int *)CMSG_DATA(part);
        if (count == 3)
            memcpy(packet->files, files, sizeof packet->files);
        for (size_t at = 0; at < count && count != 3; at++)
            close(files[at]);
    }
}

static bool take(struct connection *connection, struct packet *packet, int flags) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof packet->files)];
    } control;
    packet->payload = malloc(packet->head.length + 1);
    struct iovec parts[] = {{&packet->head, sizeof packet->head}, {packet->payload, packet->head.length}};
    struct msghdr whole = {.msg_iov = parts, .msg_iovlen = 2};
    if (packet->head.type == M_START && connection->trusted) {
        whole.msg_control = &control;
        whole.msg_controllen = sizeof control;
    }
    if (!packet->payload || hear(connection, &whole, flags) < 0) {
        connection_fail(connection, errno, "packet");
        return false;
    }
    packet->payload[packet->head.length] = 0;
    take_files(packet, &whole);
    return true;
}

/* The packet stays at the head of the peer's queue until all of it found room: no buffer of ours, and the peer waits.
 * Of a peer that has gone it is kept: that waits for nothing, and its connection can't be for a checkpoint. */
static void feed(struct connection *connection, const struct packet *packet) {
    struct session *session = connection->view;
    if (session->input.fd >= 0 && !session->spec.terminal && !session->feeder && !session->rest) {
        session->feeder = connection;
        if (!session->reader)
            session->reader = connection;
    }
    if (session->input.fd >= 0 && !session->spec.terminal && session->feeder != connection) {
        connection_fail(connection, EBUSY, "input");
        return;
    }
    size_t left = packet->head.length - connection->fed, took = left;
    const char *bytes = packet->payload + connection->fed;
    if (session->input.fd >= 0 && left > 0)
        took = session->rest ? 0 : stream_feed(session, bytes, left);
    if (took < left && connection->gone && !session->spec.terminal)
        took += stream_keep(session, bytes + took, left - took);
    connection->fed += took;
    session->taken += took;
    connection->stuck = connection->fed < packet->head.length;
    if (connection->stuck)
        return;
    connection->fed = 0;
    hear(connection, &(struct msghdr){0}, 0);
}

static void resize(struct connection *connection, uint64_t size) {
    struct session *session = connection->view;
    if (size >> 48 || (size & 0xffffffff) >> 16)
        connection_fail(connection, EINVAL, "size");
    else if (session->spec.terminal && session->output[0].fd >= 0)
        terminal_resize(session->output[0].fd, (uint16_t)(size >> 32), (uint16_t)size);
}

static void attached_message(struct connection *connection, const struct packet *packet) {
    struct session *session = connection->view;
    switch (packet->head.type) {
    case M_INPUT:
        feed(connection, packet);
        return;
    case M_INPUT_END:
        if (!session->spec.terminal && !session->rest && (!session->feeder || session->feeder == connection))
            stream_input_end(session);
        return;
    case M_RESIZE:
        resize(connection, packet->head.offset);
        return;
    case M_SIGNAL:
        if (packet->head.session != session->id)
            connection_fail(connection, EINVAL, "session");
        else if (session_signal(session, packet->head.stream) < 0 && errno != ESRCH) /* it has ended: M_EXIT comes */
            connection_error(connection, errno, "signal");
        return;
    default:
        connection_fail(connection, EPROTO, "attached");
    }
}

static void receive(struct connection *connection) {
    struct packet packet = {.files = {-1, -1, -1}};
    if (!peek(connection, &packet.head))
        return;
    bool feeding = connection->view && packet.head.type == M_INPUT;
    if (take(connection, &packet, feeding ? MSG_PEEK : 0)) {
        if (connection->view)
            attached_message(connection, &packet);
        else
            control_message(connection, &packet);
    }
    free(packet.payload);
    for (int at = 0; at < 3; at++)
        close_at_exit(&packet.files[at]);
}

void connection_take_wish(struct connection *connection) {
    struct message head;
    if (!connection->asking && !connection->broken && !connection->view && peek(connection, &head) == 1 &&
        (head.type == M_ASK || head.type == M_AWAKE))
        receive(connection);
}

static void connection_ready(struct source *source, uint32_t events) {
    struct connection *connection = OWNER(source, struct connection, source);
    bool hung_up = events & (EPOLLHUP | EPOLLERR);
    if (hung_up)
        peer_left(connection);
    if (!connection->broken && (events & EPOLLOUT) && connection->listing >= 0)
        control_list(connection);
    else if (!connection->broken && (events & EPOLLOUT) && connection->view && !hung_up) /* what it sent comes first */
        serve(connection);
    if (!connection->broken && (events & EPOLLIN || hung_up) && !connection->stuck && connection->listing < 0)
        receive(connection);
    if (connection->broken)
        connection_close(connection, false);
    else
        connection_wait(connection);
}

struct connection *connection_new(int fd) {
    size_t place = 0;
    while (place < CLIENTS_MAX && table[place])
        place++;
    struct connection *connection = place < CLIENTS_MAX ? calloc(1, sizeof *connection) : NULL;
    if (!connection) {
        close(fd);
        return NULL;
    }
    connection->source = (struct source){.fd = fd, .ready = connection_ready};
    connection->listing = -1;
    table[place] = connection;
    connection_wait(connection);
    return connection;
}

void connections_changed(const struct session *session) {
    if (!session->views)
        return;
    for (size_t place = 0; place < CLIENTS_MAX; place++)
        if (table[place] && table[place]->view == session)
            connection_wait(table[place]);
}

void connections_writable(const struct session *session) {
    if (!session->views)
        return;
    for (size_t place = 0; place < CLIENTS_MAX; place++)
        if (table[place] && table[place]->view == session && table[place]->stuck) {
            table[place]->stuck = false;
            connection_wait(table[place]);
        }
}
