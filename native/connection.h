/* Connections to init, as protocol.h describes them.
 *
 *   connection.c  packets in and out, and what an attached connection may do     init and holders
 *   control.c     the listener, and what a connection may do that isn't attached  init
 *   question.c    M_ASK, M_ANSWER and M_WATCH                                     init
 *   lease.c       M_AWAKE                                                         init
 */
#pragma once
#include "loop.h"
#include "protocol.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct session;

struct connection {
    struct source source;
    bool inside;  /* the peer lives in this pid namespace */
    bool trusted; /* it may send everything */
    bool broken;  /* to be closed at its next turn */
    bool handed;  /* a holder has it now, or it is closed without more ado */

    struct session *view;     /* attached to it */
    struct session *starting; /* waits for it to start */
    uint64_t cursor;          /* in the view's log */
    bool told;                /* the last message was M_EXIT */
    size_t fed;               /* bytes of the M_INPUT at the head of its queue that were taken */
    bool stuck;               /* the rest of that waits for room */
    bool gone;                /* the peer has closed; what it sent is still to be taken, all of it */
    bool asking;              /* its question is open, or waits for its turn */
    char *question;           /* while it is asking: the records of M_ASK */
    size_t question_size;
    uint64_t number, since; /* of its question: which one, and when it came */
    bool watching;          /* is told of questions */
    char *lease;            /* while it keeps the job awake: the records of M_AWAKE */
    size_t lease_size;
    uint64_t until; /* of its lease */
    int listing;    /* place in the table of sessions, -1: not listing */
    pid_t pid;      /* the peer, 0: outside */
};

struct packet {
    struct message head;
    char *payload; /* head.length bytes and a NUL; may be stolen */
    int files[3];  /* that came with M_START, or -1; may be stolen */
};

/* Takes the descriptor over; NULL without room. */
struct connection *connection_new(int fd);
struct connection *connection_at(size_t place);
size_t connection_count(bool inside_only);

/* A message without waiting: a peer that doesn't read what it asked for loses its connection. */
void connection_send(struct connection *connection, const struct message *head, const void *payload);
void connection_error(struct connection *connection, int error, const char *what);
/* An error, and that was all. */
void connection_fail(struct connection *connection, int error, const char *what);

/* Closed at its next turn, so that whoever uses it just now needn't know. */
void connection_part(struct connection *connection);

/* Watches the session from that place of its log on. */
void connection_attach(struct connection *connection, struct session *session, uint64_t offset);

/* Waits for what it can go on with. */
void connection_wait(struct connection *connection);

/* Takes the M_ASK or M_AWAKE that it has sent, if that is what comes next. */
void connection_take_wish(struct connection *connection);

/* Lets it go; `quietly`: what it feeds is not at its end by that, unless the peer has closed it, and takes what it has
 * room for of what was sent. */
void connection_close(struct connection *connection, bool quietly);

/* Every connection that watches the session has something to do; its input has room again. */
void connections_changed(const struct session *session);
void connections_writable(const struct session *session);

/* In a forked holder: none of init's connections is here. */
void connections_forget(void);

/* control.c */
int control_open(int listener);
void control_message(struct connection *connection, struct packet *packet);
void control_list(struct connection *connection);
void control_started(struct connection *connection, struct session *session);
/* Goes on with M_QUIESCE, after whatever happened, and when (clock_steady) though nothing did; -1: never. */
void control_quiet(void);
int64_t control_deadline(void);
void control_left(struct connection *connection);

/* question.c */
void question_ask(struct connection *connection, struct packet *packet);
void question_answer(struct connection *connection, struct packet *packet);
void question_watch(struct connection *connection);
void question_left(struct connection *connection);
/* The files that it keeps are written again: init has another directory, perhaps, since it was restored. */
void question_renew(void);
void question_forget(void);

/* lease.c */
void lease_hold(struct connection *connection, struct packet *packet);
void lease_left(struct connection *connection);
/* As question_renew; without a lease the file goes. */
void lease_renew(void);
