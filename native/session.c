#include "session.h"

#include "cleanup.h"
#include "connection.h"
#include "init.h"
#include "iodir.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Live ones, and ended ones that connections still read: each of these has a connection at least. */
static struct session *table[SESSIONS_MAX + CLIENTS_MAX];
const size_t session_places = sizeof table / sizeof *table;

static int64_t next_id = 1;
static unsigned live;

struct session *session_at(size_t place) {
    return place < session_places ? table[place] : NULL;
}

static struct session **place_of(int64_t id) {
    for (size_t place = 0; place < session_places; place++)
        if (table[place] && table[place]->id == id)
            return &table[place];
    return NULL;
}

struct session *session_find(int64_t id) {
    struct session **place = place_of(id);
    return place ? *place : NULL;
}

void sessions_number_from(int64_t id) {
    if (id > next_id)
        next_id = id;
}

unsigned sessions_live(void) {
    return live;
}

bool sessions_linger(void) {
    for (size_t place = 0; place < session_places; place++)
        if (table[place])
            return true;
    return false;
}

static void session_free(struct session *session) {
    if (session->state != ENDED)
        live--;
    stream_close(session);
    loop_drop(&session->report);
    loop_drop(&session->channel);
    log_close(&session->log);
    *place_of(session->id) = NULL;
    spec_free(&session->spec);
    free(session);
}

bool session_lends(const struct session *session) {
    return session->spec.lent && (session->state != ENDED || kill(-session->group, 0) == 0);
}

void sessions_settle(void) {
    for (size_t place = 0; place < session_places; place++)
        if (table[place] && table[place]->spec.lent)
            session_unwatched(table[place]);
}

void session_unwatched(struct session *session) {
    if (session->state == ENDED && !session->views && !session->holder && !session_lends(session))
        session_free(session);
    else
        log_rest(&session->log);
}

int session_signal(struct session *session, int number) {
    if (number < 1 || number >= NSIG) {
        errno = EINVAL;
        return -1;
    }
    if (holder_here()) {
        holder_signal(number);
        return 0;
    }
    if (session->state == ENDED) {
        errno = ESRCH;
        return -1;
    }
    if (!session->pid)
        session->cancelled = number;
    else if (kill(-session->pid, number) < 0 && kill(session->pid, number) < 0) /* before its setsid */
        return -1;
    return 0;
}

static void end(struct session *session, int status) {
    char outcome[32];
    session->state = ENDED;
    session->status = status;
    session->ended = clock_real();
    live--;
    if (session->spec.terminal) {
        session_write_status(session);
        holder_end(session);
        stream_close(session);
    } else {
        stream_drain(session);
        stream_close(session);
        if (!session->spec.lent)
            log_append(&session->log, M_EXIT, 0, outcome, session_outcome(session, outcome));
        session_write_status(session);
    }
    if (!session->spec.lent)
        session_retire(session->id);
    connections_changed(session);
    if (session->id == 0)
        init_main_ended(status);
    if (session->spec.lent)
        kill(-session->group, SIGKILL);
    session_unwatched(session);
}

static void mark(struct session *session, uint8_t outcome) {
    const char *step = session->spec.steps.items[session->step];
    if (session->spec.terminal) {
        holder_mark(session, outcome, step);
        return;
    }
    if (outcome != 0) /* what is there when a step begins it may have written itself */
        stream_drain(session);
    log_append(&session->log, M_STEP, outcome, step, strlen(step));
    connections_changed(session);
}

static pid_t spawn_process(struct session *session, int report) {
    const struct spec *spec = &session->spec;
    char *script = session->step < spec->steps.count ? spec->scripts.items[session->step] : NULL;
    char *const step[] = {"/bin/sh", "-e", "-c", script, NULL};
    int ends[] = {session->ends[0], session->ends[1], session->ends[2]};
    if (spec->terminal)
        ends[1] = ends[2] = ends[0];
    if (spec->terminal && ends[0] < 0) { /* it went with its holder */
        errno = EIO;
        return -1;
    }
    return spawn(spec, spec->argv.count ? spec->argv.items : script ? step : NULL, ends, report);
}

/* When the last process has been started nothing else writes there; a terminal is lent anew to each step. */
static void close_ends(struct session *session) {
    bool last = session->step + 1 >= session->spec.steps.count;
    for (int at = 0; at < 3 && (last || session->spec.terminal); at++) {
        if (session->ends[at] >= 0)
            close(session->ends[at]);
        session->ends[at] = -1;
    }
}

static void next_step(struct session *session) {
    if (session->cancelled) {
        end(session, session->cancelled);
        return;
    }
    session->pid = spawn_process(session, -1);
    if (session->pid < 0) {
        session->pid = 0;
        end(session, 126 << 8);
        return;
    }
    close_ends(session);
    if (session->spec.terminal)
        holder_renew(session);
    session_write_status(session);
}

/* Skips what is completed already. */
static void find_step(struct session *session) {
    const struct spec *spec = &session->spec;
    while (session->step < spec->steps.count && strings_have(&spec->done, spec->steps.items[session->step]))
        session->step++;
}

static void step_ended(struct session *session, int status) {
    struct spec *spec = &session->spec;
    mark(session, status == 0 ? 1 : 2);
    if (status == 0 && !strings_add(&spec->done, spec->steps.items[session->step]))
        status = 126 << 8;
    if (status == 0)
        find_step(session);
    if (status != 0 || session->step == spec->steps.count) {
        end(session, status);
        return;
    }
    session_write_status(session);
    mark(session, 0);
    if (!session->unmarked)
        next_step(session);
}

void session_marked(struct session *session) {
    if (!session->unmarked && session->state == RUNNING && !session->pid)
        next_step(session);
}

/* The process's own ends: two pipes and perhaps a third, or a terminal. */
static int open_ends(struct session *session) {
    int pipe_out[2], pipe_in[2];
    for (int at = 0; at < 3; at++)
        session->ends[at] = steal_fd(&session->spec.files[at]);
    if (session->spec.lent)
        return 0;
    if (session->spec.terminal)
        return terminal_open(session->spec.rows, session->spec.columns, &session->output[0].fd, &session->ends[0]);
    for (int which = 0; which < 2; which++) {
        if (pipe2(pipe_out, O_CLOEXEC) < 0)
            return -1;
        session->output[which].fd = pipe_out[0];
        session->ends[which + 1] = pipe_out[1];
        if (fcntl(pipe_out[0], F_SETFL, O_NONBLOCK) < 0)
            return -1;
    }
    if (!session->spec.input)
        return 0;
    if (pipe2(pipe_in, O_CLOEXEC) < 0)
        return -1;
    session->ends[0] = pipe_in[0];
    session->input.fd = pipe_in[1];
    return fcntl(pipe_in[1], F_SETFL, O_NONBLOCK);
}

static void refuse(struct session *session, int error, const char *what) {
    struct connection *starter = session->starter;
    iodir_remove(session_file(session->id, ".spec.new").text);
    session_free(session);
    if (!starter)
        return;
    starter->starting = NULL;
    connection_error(starter, error, what);
    connection_wait(starter);
}

static int open_up(struct session *session) {
    if (session->spec.lent)
        return 0;
    if (session->spec.terminal)
        return holder_start(session);
    log_open(&session->log, session->id, 2);
    return stream_watch(session);
}

/* The exec worked: from here on it is a session. */
static void begin(struct session *session) {
    if (open_up(session) < 0) {
        int why = errno;
        session_signal(session, SIGKILL);
        refuse(session, why, "output");
        return;
    }
    close_ends(session);
    session->state = RUNNING;
    if (!session->spec.lent)
        iodir_rename(session_file(session->id, ".spec.new").text, session_file(session->id, ".spec").text);
    session_write_status(session);
    if (session->step < session->spec.steps.count && !session->spec.terminal)
        mark(session, 0);
    if (session->starter) {
        session->starter->starting = NULL;
        control_started(session->starter, session);
        session->starter = NULL;
    } else {
        stream_input_end(session);
    }
}

static void report_ready(struct source *source, uint32_t events) {
    (void)events;
    struct session *session = OWNER(source, struct session, report);
    struct spawn_error error;
    ssize_t size = read(source->fd, &error, sizeof error);
    loop_drop(source);
    if (size == sizeof error)
        refuse(session, error.error, error.step);
    else
        begin(session);
}

static struct session *session_new(int64_t id) {
    size_t place = 0;
    while (place < session_places && table[place])
        place++;
    struct session *session = place < session_places ? calloc(1, sizeof *session) : NULL;
    if (!session)
        return NULL;
    const struct source none = {.fd = -1};
    session->id = (uint32_t)id;
    session->output[0] = session->output[1] = session->input = session->report = session->channel = none;
    session->ends[0] = session->ends[1] = session->ends[2] = -1;
    session->log = (struct log){.fd = -1, .reading = {-1, -1}};
    live++;
    return table[place] = session;
}

static int start_process(struct session *session, const char **what) {
    int report[2];
    *what = "files";
    const struct spec *spec = &session->spec;
    if ((!spec->lent && iodir_replace(session_file(session->id, ".spec.new").text, spec->payload, spec->size) < 0) ||
        open_ends(session) < 0 || pipe2(report, O_CLOEXEC) < 0)
        return -1;
    session->report = (struct source){.fd = report[0], .ready = report_ready};
    autoclose int told = report[1];
    session->started = clock_real();
    if (loop_watch(&session->report, EPOLLIN) < 0)
        return -1;
    *what = "fork";
    session->pid = session->group = spawn_process(session, told);
    return session->pid < 0 ? -1 : 0;
}

static int new_id(const struct spec *spec, int64_t *id, const char **what) {
    *what = "sessions";
    *id = spec->id >= 0 ? spec->id : next_id;
    errno = live >= SESSIONS_MAX || *id > SESSION_ID_MAX ? EAGAIN : 0;
    if (!errno && session_find(*id)) {
        *what = "id";
        errno = EEXIST;
    }
    return errno ? -1 : 0;
}

int session_start(struct connection *starter, struct spec *spec, const char **what) {
    int64_t id;
    struct session *session = new_id(spec, &id, what) < 0 ? NULL : session_new(id);
    if (!session) {
        spec_free(spec);
        return -1;
    }
    session->spec = *spec;
    find_step(session);
    if (start_process(session, what) < 0) {
        int why = errno;
        iodir_remove(session_file(session->id, ".spec.new").text);
        session_free(session);
        errno = why;
        return -1;
    }
    sessions_number_from(id + 1);
    session->starter = starter;
    starter->starting = session;
    return 0;
}

static void process_ended(struct session *session, int status) {
    bool steps = session->spec.steps.count > session->step;
    session->pid = 0;
    if (steps)
        step_ended(session, status);
    else
        end(session, status);
}

void session_child_ended(pid_t pid, int status) {
    for (size_t place = 0; place < session_places; place++) {
        struct session *session = table[place];
        if (session && (session->holder == pid || session->former == pid)) {
            holder_reaped(session, pid);
            return;
        }
        if (!session || session->pid != pid || session->state == ENDED)
            continue;
        if (session->state == STARTING)
            report_ready(&session->report, 0);
        if (table[place] == session)
            process_ended(session, status);
        return;
    }
}
