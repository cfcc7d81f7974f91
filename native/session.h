/* Sessions: what init keeps of each process that it was asked to start.
 *
 *   session.c   the table, starting, steps, the end                      init
 *   status.c    what is told of a session, in messages and its file      init
 *   stream.c    what goes in and out of a session's process              init for pipes, the holder for a terminal
 *   holder.c    the process that holds a session's terminal, both sides  init and the holder
 *
 * A terminal's master lives in a process of its own, its holder, which runs the same loop with that one session.  CRIU
 * wants the owner of /dev/tty to come before whoever has the master among init's children, in the order of their
 * births: so a holder is forked after the session's process, and has itself born again after each later step's, and
 * before every checkpoint: criu restores children in an order of its own.
 */
#pragma once
#include "log.h"
#include "loop.h"
#include "records.h"
#include "spawn.h"

enum state { STARTING, RUNNING, ENDED };

struct connection;

struct session {
    uint32_t id;
    enum state state;
    struct spec spec;
    pid_t pid;     /* its process, or the running step's; 0: none just now */
    size_t step;   /* which of spec.steps runs */
    int cancelled; /* a signal that came between two steps */
    pid_t group;   /* with lent files: nobody of this process group outlives the session */
    uint64_t started, ended;
    int status; /* as wait(2) gives it */

    struct source output[2]; /* standard output and error, or the terminal's master */
    struct source input;     /* where M_INPUT goes: its standard input, or the master again */
    int ends[3];             /* the other ends, kept while steps follow; of a terminal only [0], until it is held */
    struct source report;    /* of the exec, while it is STARTING */
    struct log log;          /* with a terminal: the holder's */

    struct connection *starter; /* waits for M_STARTED */
    struct connection *feeder;  /* whose M_INPUT standard input takes */
    uint64_t taken;             /* bytes of M_INPUT, of a session of pipes */
    char *rest;                 /* the last of its input: what a feeder that has gone sent and found no room for */
    size_t rest_size, rest_at;
    struct connection *reader; /* who started it and stays: for this one alone the session waits, when it lags */
    bool held;                 /* it waits for its reader */
    unsigned views;            /* connections that watch it, in this process */

    pid_t holder;
    pid_t former;          /* its holder before, until it is reaped */
    struct source channel; /* to the holder, in the holder to init */
    unsigned guests;       /* connections that the holder was given and hasn't closed */
    unsigned unmarked;     /* step marks that the holder hasn't logged */
    bool loud;             /* M_QUIESCE came, and the holder is still to be asked to be quiet */
    bool unquiet;          /* the holder was asked to close its connections and be younger, and hasn't answered */
};

/* The session with that id, or NULL; and by place in the table, up to session_places. */
struct session *session_find(int64_t id);
struct session *session_at(size_t place);
extern const size_t session_places;

/* Numbers from here on are free. */
void sessions_number_from(int64_t id);

/* Starts a session for a connection, which is told how it went once its exec is known to have worked or not.  Takes
 * the spec over.  -1 with errno, and *what is where it failed. */
int session_start(struct connection *starter, struct spec *spec, const char **what);

/* A child of init was reaped. */
void session_child_ended(pid_t pid, int status);

/* The holder has logged the marks of a step's end: the next one may begin. */
void session_marked(struct session *session);

/* To its process group: 0, or -1 with errno. */
int session_signal(struct session *session, int number);

/* Nobody watches it any more: it goes, if it has ended. */
void session_unwatched(struct session *session);

/* A session has ended.  The files of the last ones are kept, those of earlier ones removed. */
void session_retire(uint32_t id);

/* Whether a process with its lent files may still be there. */
bool session_lends(const struct session *session);

/* After children were reaped: sessions go of which the last process is gone. */
void sessions_settle(void);

/* How many haven't ended, and whether any is still in the table. */
unsigned sessions_live(void);
bool sessions_linger(void);

/* status.c */

/* The records of its status file; what doesn't fit into `most` bytes is left out, `done` first. */
void session_status(const struct session *session, struct writer *writer, size_t most);

/* exit=N or signal=N, and how long that is. */
size_t session_outcome(const struct session *session, char out[32]);

/* Replaces its status file. */
void session_write_status(const struct session *session);

/* stream.c */
int stream_watch(struct session *session);
/* Its reader has caught up, or is gone. */
void stream_go_on(struct session *session);
void stream_drain(struct session *session);
void stream_close(struct session *session);
/* Takes bytes for its input: how many, 0 when there is no room just now (stream_writable follows). */
size_t stream_feed(struct session *session, const char *bytes, size_t size);
/* Keeps bytes until there is room, 0 when there is no memory; with the last of them its input is at its end. */
size_t stream_keep(struct session *session, const char *bytes, size_t size);
void stream_input_end(struct session *session);

/* holder.c, in init */
int holder_start(struct session *session);
int holder_view(struct session *session, int fd, uint64_t offset, bool started);
void holder_mark(struct session *session, uint8_t outcome, const char *step);
void holder_end(struct session *session);
void holder_quiet(struct session *session);
/* A step's process is born: the holder must be younger. */
void holder_renew(struct session *session);
void holder_reaped(struct session *session, pid_t pid);

/* holder.c, in the holder */
bool holder_here(void);
void holder_signal(int number);
void holder_closed_one(const struct session *session);
