#include "launch.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* Kernel files take what they are given in one write or not at all. */
static int file_put(struct launch *launch, int dir, const char *path, const char *text) {
    autoclose int fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        return fail(launch, path);
    return 0;
}

int cgroup_open(struct launch *launch) {
    if (!launch->spec.cgroup)
        return 0;
    launch->cgroup = open(launch->spec.cgroup, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return launch->cgroup < 0 ? fail(launch, launch->spec.cgroup) : 0;
}

static void cgroup_drop(struct launch *launch) {
    close_at_exit(&launch->cgroup);
    launch->cgroup = -1;
}

/* Both ends above the descriptors that the program will have, so that none of them lies in the way later. */
static int link_make(struct launch *launch) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -1;
    autoclose int ours = pair[0], theirs = pair[1];
    launch->link = fcntl(ours, F_DUPFD_CLOEXEC, 10);
    launch->link_job = fcntl(theirs, F_DUPFD_CLOEXEC, 10);
    return launch->link < 0 || launch->link_job < 0 ? -1 : 0;
}

/* A parent that died before the call sends no signal. */
void die_with(pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
}

/* Since 5.7 the job is born in its cgroup; else it waits in ours until it is moved. */
static long clone_job(struct launch *launch, unsigned long flags) {
    struct clone_args args = {
        .flags = flags | CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)launch->cgroup};
    long pid = -1;
    errno = EINVAL;
    if (launch->cgroup >= 0)
        pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid >= 0 || (errno != EINVAL && errno != E2BIG && errno != ENOSYS))
        return pid;
    cgroup_drop(launch);
    return syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
}

/* 1 when the job's first process has said that it lives, 0 when it was killed before, or -1. */
static int job_bear(struct launch *launch) {
    unsigned long flags = 0;
    if (launch->verb == VERB_RUN)
        flags = CLONE_NEWPID | (launch->spec.count ? CLONE_NEWUSER : 0);
    if (link_make(launch) < 0)
        return fail(launch, "link");
    launch->own = getpid();
    long pid = clone_job(launch, flags);
    if (pid < 0)
        return fail(launch, launch->spec.cgroup);
    close_at_exit(pid ? &launch->link_job : &launch->link);
    if (pid == 0) {
        launch->link = launch->link_job;
        launch->verb == VERB_RUN    ? job_main(launch)
        : launch->verb == VERB_CRIU ? criu_main(launch)
                                    : pages_main(launch);
    }
    launch->pid = (pid_t)pid;
    return note_take(launch);
}

/*
 * Since cgroup.kill counts its calls (6.14 and stable kernels of early 2025) a process that is born in a cgroup is
 * killed at once when that one's count differs from its parent's cgroup's: the kernel compares the wrong two.
 */
int job_clone(struct launch *launch) {
    int born = job_bear(launch);
    if (born == 0 && launch->cgroup >= 0) {
        cgroup_drop(launch);
        job_kill(launch);
        born = job_bear(launch);
    }
    return born == 0 ? job_lost(launch) : born;
}

static int cgroup_join(struct launch *launch, const char *cgroup) {
    char path[PATH_MAX + 16], pid[16];
    snprintf(path, sizeof path, "%s/cgroup.procs", cgroup);
    snprintf(pid, sizeof pid, "%d", launch->pid);
    return file_put(launch, AT_FDCWD, path, pid);
}

/* A thread's own view of the launch: what it does wrong is told when it is joined. */
struct mover {
    pthread_t thread;
    struct launch launch;
};

static void *mover_run(void *argument) {
    struct launch *launch = &((struct mover *)argument)->launch;
    const struct list *cgroups = &launch->spec.cgroup1;
    int joined = launch->spec.cgroup && launch->cgroup < 0 ? cgroup_join(launch, launch->spec.cgroup) : 0;
    for (size_t i = 0; i < cgroups->count && joined == 0; i++)
        joined = cgroup_join(launch, cgroups->at[i].key);
    return NULL;
}

/*
 * Moving a process waits for an RCU grace period, some 15 ms, in which the rest of the launch gets done.  Until the
 * end the process moved is only the job's first, which has started nothing.
 */
int cgroups_join(struct launch *launch) {
    static struct mover mover;
    if ((launch->cgroup >= 0 || !launch->spec.cgroup) && !launch->spec.cgroup1.count)
        return 0;
    mover.launch = *launch;
    errno = pthread_create(&mover.thread, NULL, mover_run, &mover);
    if (errno)
        return fail(launch, "thread");
    launch->mover = &mover;
    return 0;
}

int cgroups_joined(struct launch *launch) {
    if (!launch->mover)
        return 0;
    pthread_join(launch->mover->thread, NULL);
    launch->failure = launch->mover->launch.failure;
    return launch->failure.error ? -1 : 0;
}

int ids_map(struct launch *launch) {
    char path[32], map[64];
    if (!launch->spec.count)
        return 0;
    snprintf(path, sizeof path, "/proc/%d", launch->pid);
    autoclose int dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return fail(launch, path);
    snprintf(map, sizeof map, "0 %u %u", launch->spec.first, launch->spec.count);
    if (file_put(launch, dir, "uid_map", map) < 0 || file_put(launch, dir, "gid_map", map) < 0)
        return -1;
    launch->userns = openat(dir, "ns/user", O_RDONLY | O_CLOEXEC);
    return launch->userns < 0 ? fail(launch, "ns/user") : 0;
}

/* From here and last of all: raising a limit needs the host's rights, and a low one would break the job's own steps. */
int limits_set(struct launch *launch) {
    const struct list *limits = &launch->spec.rlimits;
    for (size_t i = 0; i < limits->count; i++) {
        int resource;
        unsigned long long soft, hard;
        if (limit_parse(limits->at[i].key, &resource, &soft, &hard) < 0)
            return fail(launch, limits->at[i].key);
        struct rlimit limit = {soft, hard};
        if (prlimit(launch->pid, resource, &limit, NULL) < 0)
            return fail(launch, limits->at[i].key);
    }
    return 0;
}

/* PID 1 of its namespace: whatever it started dies with it. */
void job_kill(struct launch *launch) {
    if (!launch->pid)
        return;
    kill(launch->pid, SIGKILL);
    waitpid(launch->pid, NULL, 0);
    launch->pid = 0;
    close_at_exit(&launch->link);
}
