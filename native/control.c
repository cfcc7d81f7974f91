#include "connection.h"

#include "cleanup.h"
#include "init.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>

/* So that nobody inside can keep the engine out. */
#define INSIDE_MAX (CLIENTS_MAX / 2)
#define WAITING_MAX 128 /* the listening socket's backlog; the kernel lets one more in */
#define PATIENCE 5000   /* milliseconds that M_QUIESCE waits for younger holders */

#ifndef SERAC_BUILD
#define SERAC_BUILD "unnamed"
#endif

static struct source door; /* the listening socket */
static int spare = -1;     /* a descriptor to accept and refuse with when there are no more */
static struct connection *quiescing;
static bool quiet;            /* nobody has come since M_QUIESCE */
static int64_t patience = -1; /* until then it waits for younger holders; -1: no longer */

static void greet(struct connection *connection) {
    static const char hello[] = "build=" SERAC_BUILD;
    struct message head = {.type = M_HELLO, .session = PROTOCOL_VERSION, .length = sizeof hello};
    connection_send(connection, &head, hello);
}

static size_t all_connections(void) {
    size_t count = connection_count(false);
    for (size_t place = 0; place < session_places; place++)
        count += session_at(place) ? session_at(place)->guests : 0;
    return count;
}

static void refuse(int fd) {
    struct message head = {.type = M_ERROR, .offset = EAGAIN, .length = sizeof "connections" - 1};
    struct iovec parts[] = {{&head, sizeof head}, {"connections", head.length}};
    struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};
    if (fd >= 0 && sendmsg(fd, &packet, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        shutdown(fd, SHUT_RDWR);
}

/* Out of descriptors, a waiting connection would wake the loop for ever. */
static void accept_with_spare(void) {
    close(spare);
    int fd = accept4(door.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    refuse(fd);
    close_at_exit(&fd);
    spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void knock(struct source *source, uint32_t events) {
    (void)events;
    struct ucred peer;
    socklen_t size = sizeof peer;
    autoclose int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE)
            accept_with_spare();
        return;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return;
    bool inside = peer.pid != 0;
    if (all_connections() >= CLIENTS_MAX || (inside && connection_count(true) >= INSIDE_MAX)) {
        refuse(fd);
        return;
    }
    struct connection *connection = connection_new(steal_fd(&fd));
    if (!connection)
        return;
    connection->inside = inside;
    connection->pid = peer.pid;
    connection->trusted = !inside || peer.uid == 0;
    greet(connection);
    if (quiet && !inside) {
        question_renew();
        lease_renew();
    }
    quiet &= inside;
}

int control_open(int listener) {
    door = (struct source){.fd = listener, .ready = knock};
    spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (fcntl(listener, F_SETFD, FD_CLOEXEC) < 0 || fcntl(listener, F_SETFL, O_NONBLOCK) < 0 ||
        listen(listener, WAITING_MAX) < 0)
        return -1;
    return loop_watch(&door, EPOLLIN);
}

static void reply_status(struct connection *connection, const struct session *session, struct message head) {
    struct writer status = {0};
    session_status(session, &status, CHUNK_MAX - 32);
    if (session->spec.input)
        record_number(&status, "taken", (long long)session->taken);
    head.session = session->id;
    head.length = (uint32_t)status.size;
    if (status.failed)
        connection_fail(connection, ENOMEM, "status");
    else
        connection_send(connection, &head, status.bytes);
    free(status.bytes);
}

static void hand_over(struct connection *connection, struct session *session, uint64_t offset, bool started) {
    if (holder_view(session, connection->source.fd, offset, started) < 0) {
        connection_fail(connection, errno, "terminal");
        return;
    }
    connection->handed = connection->broken = true;
    connection_wait(connection);
}

static void start(struct connection *connection, struct packet *packet) {
    struct spec spec;
    const char *what = "spec";
    if (spec_parse(&spec, steal_pointer(&packet->payload), packet->head.length) < 0) {
        int why = errno;
        spec_free(&spec);
        connection_error(connection, why, what);
    } else if (init_ending()) {
        spec_free(&spec);
        connection_error(connection, ESHUTDOWN, "job");
    } else if (spec_lend(&spec, packet->files) < 0) {
        spec_free(&spec);
        connection_error(connection, EINVAL, what);
    } else if (session_start(connection, &spec, &what) < 0) {
        connection_error(connection, errno, what);
    }
}

void control_started(struct connection *connection, struct session *session) {
    char pid[32];
    struct message head = {.type = M_STARTED, .session = session->id, .time = session->started};
    head.length = (uint32_t)snprintf(pid, sizeof pid, "pid=%d", session->pid) + 1;
    connection_send(connection, &head, pid);
    if (session->spec.attach && !session->spec.terminal) { /* broken too: the input ends when it is closed */
        session->feeder = session->spec.input ? connection : NULL;
        session->reader = connection;
        connection_attach(connection, session, OFFSET_BEGIN);
    } else if (session->spec.attach && !connection->broken) {
        hand_over(connection, session, OFFSET_BEGIN, true);
    } else {
        connection_wait(connection);
    }
}

static void attach(struct connection *connection, const struct packet *packet) {
    struct session *session = session_find(packet->head.session);
    if (!session || session->state == STARTING) {
        connection_error(connection, ESRCH, "session");
    } else if (session->spec.terminal) {
        hand_over(connection, session, packet->head.offset, false);
    } else {
        struct message head = {.type = M_ATTACHED, .offset = log_place(&session->log, packet->head.offset)};
        reply_status(connection, session, head);
        connection_attach(connection, session, head.offset);
    }
}

void control_list(struct connection *connection) {
    const struct message last = {.type = M_LISTED, .session = UINT32_MAX};
    const struct session *session = NULL;
    while ((size_t)connection->listing < session_places && !session) {
        session = session_at((size_t)connection->listing++);
        if (session && session->state != RUNNING)
            session = NULL;
    }
    if (session) {
        reply_status(connection, session, (struct message){.type = M_LISTED});
        return;
    }
    connection->listing = -1;
    connection_send(connection, &last, NULL);
}

static void signal_session(struct connection *connection, const struct packet *packet) {
    struct session *session = session_find(packet->head.session);
    errno = ESRCH;
    if (!session || session_signal(session, packet->head.stream) < 0)
        connection_error(connection, errno, "signal");
    else
        connection_send(connection, &(struct message){.type = M_OK}, NULL);
}

/* Whether a start is under way: who asked for it is still to hear how it went. */
static bool starting(void) {
    for (size_t place = 0; place < session_places; place++)
        if (session_at(place) && session_at(place)->state == STARTING && !session_at(place)->spec.lent)
            return true;
    return false;
}

static void close_others(void) {
    for (size_t place = 0; place < CLIENTS_MAX; place++) {
        struct connection *other = connection_at(place);
        if (other && other->inside)
            connection_take_wish(other);
        /* Who asks from inside gets the answer after the pause: that is what it waits for. A lease outlives it too. */
        if (other && other != quiescing && !((other->asking || other->lease) && other->inside))
            connection_close(other, true);
    }
}

/* Whether anything of the session leads out of the job still; if so, an end is made of it. */
static bool leads_out(struct session *session) {
    if ((session->guests || session->loud) && !session->unquiet)
        holder_quiet(session);
    if (session_lends(session))
        kill(session->state == STARTING ? session->pid : -session->group, SIGKILL);
    return session->guests || session_lends(session);
}

/* Not for ever: a holder that somebody in the job holds back spoils a checkpoint at worst. */
static bool renewing(const struct session *session) {
    return patience >= 0 && (session->loud || session->unquiet || session->former);
}

/* Those who wait to be let in are let in and out again: nothing of theirs may hang on the socket.  All are in before the
 * first one is out, for that one wakes at once and knocks again, and would be turned away until it gave up. */
static void turn_away(void) {
    int waiting[WAITING_MAX + 1];
    bool all;
    do {
        size_t count = 0;
        while (count <= WAITING_MAX && (waiting[count] = accept4(door.fd, NULL, NULL, SOCK_CLOEXEC)) >= 0)
            count++;
        all = count == 0 || (count <= WAITING_MAX && errno == EAGAIN);
        while (count > 0)
            close(waiting[--count]);
    } while (!all);
}

void control_quiet(void) {
    if (!quiescing || quiescing->broken)
        return;
    if (clock_left(patience) == 0)
        patience = -1;
    if (starting()) {
        patience = clock_steady() + PATIENCE;
        return;
    }
    close_others();
    unsigned left = 0;
    for (size_t place = 0; place < session_places; place++)
        left += session_at(place) && (leads_out(session_at(place)) || renewing(session_at(place)));
    if (left > 0)
        return;
    turn_away();
    connection_send(quiescing, &(struct message){.type = M_OK}, NULL);
    quiet = true;
    /* Not shut down before it is closed: when the peer hears that, the descriptor is gone. */
    quiescing->handed = quiescing->broken = true;
    connection_wait(quiescing);
}

static void quiesce(struct connection *connection) {
    if (quiescing) {
        connection_error(connection, EBUSY, "quiesce");
        return;
    }
    quiescing = connection;
    patience = clock_steady() + PATIENCE;
    for (size_t place = 0; place < session_places; place++)
        if (session_at(place))
            session_at(place)->loud = session_at(place)->holder != 0;
    loop_watch(&door, 0);
}

int64_t control_deadline(void) {
    return patience;
}

void control_left(struct connection *connection) {
    if (quiescing != connection)
        return;
    quiescing = NULL;
    patience = -1;
    loop_watch(&door, EPOLLIN);
}

void control_message(struct connection *connection, struct packet *packet) {
    uint8_t type = packet->head.type;
    if (connection->asking || (!connection->trusted && type != M_ASK && type != M_AWAKE)) {
        connection_fail(connection, connection->asking ? EPROTO : EPERM, "packet");
        return;
    }
    switch (type) {
    case M_START:
        start(connection, packet);
        return;
    case M_ATTACH:
        attach(connection, packet);
        return;
    case M_LIST:
        connection->listing = 0;
        return;
    case M_SIGNAL:
        signal_session(connection, packet);
        return;
    case M_ASK:
        question_ask(connection, packet);
        return;
    case M_ANSWER:
        question_answer(connection, packet);
        return;
    case M_WATCH:
        question_watch(connection);
        return;
    case M_AWAKE:
        lease_hold(connection, packet);
        return;
    case M_QUIESCE:
        quiesce(connection);
        return;
    default:
        connection_fail(connection, EPROTO, "packet");
    }
}
