#include "init.h"

#include "ask.h"
#include "connection.h"
#include "copy.h"
#include "iodir.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define LISTENER 3
#define FLUSH 2000 /* milliseconds that slow watchers get when the job ends */

static const int forwarded[] = {SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2};

static bool stopping;   /* SIGTERM to a job without a session 0 */
static bool main_ended; /* session 0 is over */
static int exit_code;
static int64_t deadline = -1;

void init_main_ended(int status) {
    main_ended = true;
    exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    deadline = clock_steady() + FLUSH;
}

bool init_ending(void) {
    return main_ended || stopping;
}

static void reap(void) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0;)
        session_child_ended(pid, status);
    sessions_settle();
}

static void forward(int number) {
    struct session *main = session_find(0);
    if (main) {
        session_signal(main, number);
        return;
    }
    stopping |= number == SIGTERM;
    for (size_t place = 0; place < session_places; place++)
        if (session_at(place) && session_at(place)->state != ENDED)
            session_signal(session_at(place), number);
}

static void signals_ready(struct source *source, uint32_t events) {
    (void)events;
    struct signalfd_siginfo info;
    if (read(source->fd, &info, sizeof info) != sizeof info)
        return;
    if (info.ssi_signo == SIGCHLD)
        reap();
    else
        forward((int)info.ssi_signo);
}

static int watch_signals(void) {
    static struct source signals = {.ready = signals_ready};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    for (size_t at = 0; at < sizeof forwarded / sizeof *forwarded; at++)
        sigaddset(&set, forwarded[at]);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a log that meets the job's limit on file size is one without room */
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return -1;
    signals.fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return signals.fd < 0 ? -1 : loop_watch(&signals, EPOLLIN);
}

static int open_standard_files(void) {
    int fd;
    do
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= 2 && fcntl(fd, F_SETFD, 0) == 0);
    return fd < 0 ? -1 : close(fd);
}

/* Where programs of the job find the commands, whichever init runs; a job that is in the way goes without. */
static void name_commands(void) {
    static const char place[] = "/.serac/";
    static const char *const names[] = {"/.serac/ask", "/.serac/awake"};
    char own[PATH_MAX], now[PATH_MAX], beside[32];
    ssize_t size = readlink("/proc/self/exe", own, sizeof own - 1);
    if (size < 0 || strncmp(own, place, sizeof place - 1) != 0)
        return;
    own[size] = 0;
    const char *program = own + sizeof place - 1;
    for (size_t at = 0; at < sizeof names / sizeof *names; at++) {
        ssize_t length = readlink(names[at], now, sizeof now);
        if (length == (ssize_t)strlen(program) && strncmp(now, program, (size_t)length) == 0)
            continue;
        snprintf(beside, sizeof beside, "%s.new", names[at]);
        unlink(beside);
        if (symlink(program, beside) == 0 && rename(beside, names[at]) < 0)
            unlink(beside);
    }
}

static int set_up(void) {
    setsid(); /* fails for who leads one already */
    /* The listener first: with 0 to 2 closed a new descriptor would otherwise become one of them. */
    if (fcntl(LISTENER, F_GETFD) < 0 || open_standard_files() < 0)
        return -1;
    int64_t highest = iodir_open(LISTENER, session_retire);
    if (highest < 0)
        return -1;
    spawn_limits();
    sessions_number_from(highest + 1);
    question_forget();
    lease_renew();
    name_commands();
    return loop_start() < 0 || watch_signals() < 0 || control_open(LISTENER) < 0 ? -1 : 0;
}

/* Session 0's watchers are waited for, for a moment; in a job without it, everybody's. */
static bool over(void) {
    if (stopping && !main_ended && sessions_live() == 0 && deadline < 0)
        deadline = clock_steady() + FLUSH;
    if (deadline < 0)
        return false;
    return clock_left(deadline) == 0 || (main_ended ? !session_find(0) : !sessions_linger());
}

static int patience(void) {
    int64_t next = control_deadline();
    if (next < 0 || (deadline >= 0 && deadline < next))
        next = deadline;
    return next < 0 ? -1 : clock_left(next);
}

static int serve(void) {
    if (set_up() < 0) {
        fprintf(stderr, "serac-init: %s (descriptor 3 must be a bound unix socket)\n", strerror(errno));
        return 125;
    }
    while (!over()) {
        loop_turn(patience());
        control_quiet();
    }
    question_forget();
    iodir_remove("awake");
    return exit_code;
}

int main(int argc, char **argv) {
    const char *name = strrchr(argv[0], '/');
    name = name ? name + 1 : argv[0];
    if (strcmp(name, "ask") == 0)
        return ask_main(argc, argv);
    if (strcmp(name, "awake") == 0)
        return awake_main(argc, argv);
    if (argc > 1 && strcmp(argv[1], "ask") == 0)
        return ask_main(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "awake") == 0)
        return awake_main(argc - 1, argv + 1);
    if (argc > 1 && (strcmp(argv[1], "pack") == 0 || strcmp(argv[1], "unpack") == 0))
        return copy_main(argc - 1, argv + 1);
    if (argc > 1) {
        fputs("usage: serac-init | serac-init ask|awake|pack|unpack ...\n", stderr);
        return 2;
    }
    return serve();
}
