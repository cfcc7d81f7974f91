/*
 * serac-launch run | criu | pages | network | mount | unmount: spec on standard input, report on standard output (protocol.h).
 *
 * `run` works in a private mount namespace, so whatever becomes of it, the kernel takes its mounts away; until the last
 * byte that lets it go, the job's first process ends when the launcher does.  The two work side by side.  With the head
 * of its spec a launch does all that needs no layers, and waits for the body then: a slot, kept ready for a job.
 */
#include "launch.h"

#include "protocol.h"
#include "records.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

static const char *const step_names[STEP_COUNT] = {
    [STEP_SPEC] = "spec",       [STEP_CGROUP] = "cgroup",   [STEP_USERNS] = "userns",   [STEP_TREES] = "trees",
    [STEP_OVERLAY] = "overlay", [STEP_CLONE] = "clone",     [STEP_NETWORK] = "network", [STEP_MOUNTS] = "mounts",
    [STEP_FILES] = "files",     [STEP_SANDBOX] = "sandbox", [STEP_EXEC] = "exec",       [STEP_MOUNT] = "mount",
    [STEP_UNMOUNT] = "unmount", [STEP_LOCK] = "lock",       [STEP_CLOSE] = "close",     [STEP_PAGES] = "pages",
};

int fail(struct launch *launch, const char *path) {
    launch->failure.error = errno;
    snprintf(launch->failure.path, sizeof launch->failure.path, "%s", path);
    return -1;
}

static unsigned since(const struct timespec *start) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (unsigned)((now.tv_sec - start->tv_sec) * 1000000 + (now.tv_nsec - start->tv_nsec) / 1000);
}

int actions_run(struct launch *launch, const struct action *actions, size_t count) {
    struct timespec start;
    for (size_t i = 0; i < count; i++) {
        clock_gettime(CLOCK_MONOTONIC, &start);
        if (actions[i].run(launch) < 0) {
            if (launch->failure.step == STEP_NONE)
                launch->failure.step = actions[i].step;
            return -1;
        }
        if (!actions[i].waits)
            launch->took[actions[i].step] += since(&start);
    }
    return 0;
}

static int report_send(struct writer *report) {
    size_t sent = 0;
    ssize_t wrote = report->failed ? -1 : 0;
    while (wrote >= 0 && sent < report->size)
        if ((wrote = write(STDOUT_FILENO, report->bytes + sent, report->size - sent)) > 0)
            sent += (size_t)wrote;
    free(report->bytes);
    return wrote < 0 ? -1 : 0;
}

static int pid_report(struct launch *launch) {
    struct writer report = {0};
    record_number(&report, "pid", launch->pid);
    return report_send(&report) < 0 ? fail(launch, "standard output") : 0;
}

/* All that needs no body is done, and can be told from what died. */
static int begun_report(struct launch *launch) {
    struct writer report = {0};
    if (!spec_divided())
        return 0;
    record_number(&report, "begun", 1);
    return report_send(&report) < 0 ? fail(launch, "standard output") : 0;
}

static int success_report(struct launch *launch) {
    struct writer report = {0};
    for (int step = STEP_NONE + 1; step < STEP_COUNT; step++) {
        char text[64];
        snprintf(text, sizeof text, "%s:%u", step_names[step], launch->took[step]);
        if (launch->took[step])
            record_put(&report, "took", text);
    }
    record_number(&report, "ready", 1);
    return report_send(&report) < 0 ? fail(launch, "standard output") : 0;
}

static void failure_report(const struct failure *failure) {
    struct writer report = {0};
    record_put(&report, "step", step_names[failure->step]);
    record_number(&report, "errno", failure->error);
    record_put(&report, "path", failure->path);
    if (report_send(&report) < 0)
        fprintf(stderr, "serac-launch: %s: %s: %s\n", step_names[failure->step], failure->path,
                strerror(failure->error));
}

/* A first process that went away without a word was killed from outside; the memory limit does that too. */
int job_lost(struct launch *launch) {
    siginfo_t end = {0};
    char words[64] = "the job's first process ended";
    if (waitid(P_PID, (id_t)launch->pid, &end, WEXITED | WNOWAIT) == 0 && end.si_code != CLD_EXITED)
        snprintf(words, sizeof words, "the job's first process was killed by signal %d", end.si_status);
    launch->failure.step = STEP_CLONE;
    errno = ECHILD;
    return fail(launch, words);
}

/* A word that the job left unread when it died is told first, as ECONNRESET; what it said itself comes after. */
int note_take(struct launch *launch) {
    struct note note;
    ssize_t size = recv(launch->link, &note, sizeof note, 0);
    if (size < 0 && errno == ECONNRESET)
        size = recv(launch->link, &note, sizeof note, 0);
    if (size == 0)
        return 0;
    if (size != (ssize_t)sizeof note)
        return fail(launch, "link");
    for (int step = 0; step < STEP_COUNT; step++)
        launch->took[step] += note.took[step];
    launch->failure = note.failure;
    return note.failure.error ? -1 : 1;
}

static int job_hear(struct launch *launch) {
    int taken = note_take(launch);
    return taken == 0 ? job_lost(launch) : taken;
}

static int job_tell(struct launch *launch) {
    return send(launch->link, "", 1, MSG_NOSIGNAL) == 1 ? 0 : job_hear(launch);
}

/* Until the job has its namespaces.  A body that is there sooner isn't kept waiting: mounts are made beside them. */
static int namespaces_or_body_await(struct launch *launch) {
    struct pollfd wait[2] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = launch->link, .events = POLLIN}};
    if (poll(wait, 2, -1) < 0)
        return fail(launch, "link");
    if (wait[0].revents)
        return 0;
    launch->heard = true;
    return job_hear(launch) < 0 ? -1 : begun_report(launch);
}

static int namespaces_await(struct launch *launch) {
    return launch->heard ? 0 : job_hear(launch);
}

/* Until the engine has put the network in; a job that is killed meanwhile is noticed. */
static int hold_wait(struct launch *launch) {
    struct pollfd wait[2] = {{.fd = launch->spec.hold_fd, .events = POLLIN}, {.fd = launch->link, .events = POLLIN}};
    char byte;
    if (launch->spec.hold_fd < 0)
        return 0;
    if (poll(wait, 2, -1) < 0)
        return fail(launch, "hold");
    if (!wait[0].revents)
        return job_hear(launch);
    ssize_t got = read(launch->spec.hold_fd, &byte, 1);
    if (got == 0)
        errno = ECANCELED;
    return got == 1 ? 0 : fail(launch, "hold");
}

static int body_await(struct launch *launch) {
    const char *about = "";
    return spec_body(&launch->spec, launch->verb, &about) < 0 ? fail(launch, about) : 0;
}

/* The link closes by itself when the exec succeeds. */
static int exec_await(struct launch *launch) {
    return note_take(launch);
}

static int job_run(struct launch *launch) {
    /* A line is a phase: what comes between two words to or from the other side. */
    /* clang-format off */
    static const struct action actions[] = {
        RUN(TREES, stage_mount), RUN(NETWORK, network_enter), RUN(CGROUP, cgroup_open),
        RUN(CLONE, job_clone), RUN(CGROUP, cgroups_join), RUN(USERNS, ids_map),
        WAIT(CLONE, job_tell), /* it takes its identity and makes its namespaces */
        RUN(TREES, layers_warm), WAIT(CLONE, namespaces_or_body_await), WAIT(SPEC, body_await),
        RUN(TREES, trees_attach), RUN(TREES, sysfs_lend), RUN(OVERLAY, root_mount),
        WAIT(CLONE, namespaces_await), WAIT(CLONE, job_tell), /* it takes the body too, and enters its root */
        RUN(CLONE, pid_report), WAIT(NETWORK, hold_wait),
        WAIT(CLONE, job_tell), /* it finishes its network, files and sandbox */
        WAIT(CLONE, job_hear), /* only the filter is missing */
        RUN(CGROUP, cgroups_joined), RUN(SANDBOX, limits_set),
        WAIT(CLONE, job_tell), /* it executes init */
        RUN(EXEC, exec_await), WAIT(EXEC, success_report),
    };
    /* clang-format on */
    return actions_run(launch, actions, sizeof actions / sizeof *actions);
}

static int criu_run(struct launch *launch) {
    /* clang-format off */
    static const struct action actions[] = {
        RUN(FILES, cache_open), RUN(FILES, pidfile_open), RUN(TREES, stage_mount), RUN(MOUNTS, view_mount),
        RUN(CGROUP, cgroup_open), RUN(CLONE, job_clone), RUN(FILES, pidfile_leave), RUN(CGROUP, cgroups_join),
        RUN(USERNS, userns_make), RUN(TREES, layers_warm), RUN(CLONE, begun_report),
        WAIT(SPEC, body_await), /* while criu starts */
        RUN(TREES, trees_attach), RUN(OVERLAY, layers_mount), RUN(MOUNTS, view_fill),
        RUN(CGROUP, cgroups_joined), RUN(CLONE, pid_report),
        RUN(EXEC, exec_await), WAIT(EXEC, success_report), WAIT(EXEC, criu_await),
    };
    /* clang-format on */
    return actions_run(launch, actions, sizeof actions / sizeof *actions);
}

/* Afterwards nothing holds the pages to the engine but the other end of `hold`. */
static int pages_run(struct launch *launch) {
    static const struct action actions[] = {
        RUN(CGROUP, cgroup_open),    RUN(CLONE, job_clone),  RUN(CGROUP, cgroups_join), WAIT(CLONE, job_hear),
        RUN(CGROUP, cgroups_joined), RUN(CLONE, pid_report), WAIT(CLONE, job_tell),     WAIT(PAGES, success_report),
    };
    return actions_run(launch, actions, sizeof actions / sizeof *actions);
}

static int end_report(struct launch *launch) {
    struct writer report = {0};
    char text[64];
    snprintf(text, sizeof text, "%s:%u", step_names[STEP_CLOSE], launch->took[STEP_CLOSE]);
    if (launch->took[STEP_CLOSE])
        record_put(&report, "took", text);
    record_number(&report, "closed", launch->closed);
    return report_send(&report) < 0 ? fail(launch, "standard output") : 0;
}

/* Locked first and unlocked last, so that no packet goes where an address is missing. */
static int network_run(struct launch *launch) {
    static const struct action actions[] = {
        RUN(NETWORK, network_enter), RUN(LOCK, network_lock),      RUN(NETWORK, guests_put),
        RUN(NETWORK, uplink_set),    RUN(NETWORK, loopback_raise), WAIT(NETWORK, success_report),
        WAIT(NETWORK, hold_wait),    RUN(NETWORK, guests_drop),    RUN(CLOSE, outside_close),
        RUN(LOCK, network_unlock),   RUN(SANDBOX, uts_enter),      RUN(SANDBOX, hostname_set),
        WAIT(NETWORK, end_report),
    };
    int done = actions_run(launch, actions, sizeof actions / sizeof *actions);
    if (done < 0)
        guests_abandon(launch);
    return done;
}

static int verb_run(struct launch *launch, enum verb verb) {
    static const struct action mount[] = {RUN(MOUNT, images_mount), WAIT(MOUNT, success_report)};
    static const struct action unmount[] = {RUN(UNMOUNT, images_unmount), WAIT(UNMOUNT, success_report)};
    if (verb == VERB_RUN)
        return job_run(launch);
    if (verb == VERB_CRIU)
        return criu_run(launch);
    if (body_await(launch) < 0) {
        launch->failure.step = STEP_SPEC;
        return -1;
    }
    if (verb == VERB_PAGES)
        return pages_run(launch);
    if (verb == VERB_NETWORK)
        return network_run(launch);
    return actions_run(launch, verb == VERB_MOUNT ? mount : unmount, 2);
}

static enum verb verb_find(int count, char **words) {
    static const char *const names[] = {[VERB_RUN] = "run",   [VERB_MOUNT] = "mount",     [VERB_UNMOUNT] = "unmount",
                                        [VERB_CRIU] = "criu", [VERB_NETWORK] = "network", [VERB_PAGES] = "pages"};
    for (size_t i = 0; count == 2 && i < sizeof names / sizeof *names; i++)
        if (names[i] && !strcmp(words[1], names[i]))
            return (enum verb)i;
    return 0;
}

/* A standard descriptor that the caller left closed must not be what the first open returns. */
static int standard_open(void) {
    int fd;
    do
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd < 0)
        return -1;
    close(fd);
    return 0;
}

/* Whether nobody is left who could read the report. */
static bool unread(void) {
    struct pollfd report = {.fd = STDOUT_FILENO};
    return poll(&report, 1, 0) == 1 && report.revents & POLLERR;
}

int main(int count, char **words) {
    static struct launch launch = {.link = -1,
                                   .link_job = -1,
                                   .cgroup = -1,
                                   .userns = -1,
                                   .host = {-1, -1},
                                   .null = -1,
                                   .kdat = -1,
                                   .pidfile = -1,
                                   .lock = -1,
                                   .listener = -1};
    enum verb verb = verb_find(count, words);
    const char *about = "";
    if (!verb || standard_open() < 0) {
        fputs("usage: serac-launch run|criu|pages|network|mount|unmount <SPEC >REPORT (the engine calls it)\n", stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    launch.engine = getppid();
    die_with(launch.engine); /* not inherited by the job */
    if (unread())
        return 1; /* it had died before, and that is somebody else's pid */
    launch.verb = verb;
    if (spec_head(&launch.spec, verb, &about) < 0) {
        fail(&launch, about);
        launch.failure.step = STEP_SPEC;
    } else if (verb_run(&launch, verb) == 0)
        return 0;
    job_kill(&launch);
    failure_report(&launch.failure);
    return 1;
}
