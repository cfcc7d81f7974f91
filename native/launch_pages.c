/*
 * `serac-launch pages`: memory is brought in while a job's processes run, by two processes that outlive the engine.
 *
 * When the last descriptor of a userfaultfd is closed, what is missing reads as zeros and nobody knows.  So the pager,
 * which serves, and the guard, its parent, have one table of descriptors: whichever dies, the other keeps all of them open,
 * those of processes that were forked meanwhile too, until it has killed the job and seen the last of it go.
 */
#include "launch.h"
#include "launch_pager.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* By which the job is killed, and is seen to go.  Opened while there is room: who runs out of descriptors needs them. */
static int job_order = -1, job_events = -1;

static int job_open(struct launch *launch) {
    job_order = openat(launch->spec.group_fd, "cgroup.kill", O_WRONLY | O_CLOEXEC);
    if (job_order < 0)
        return fail(launch, "cgroup.kill");
    job_events = openat(launch->spec.group_fd, "cgroup.events", O_RDONLY | O_CLOEXEC);
    return job_events < 0 ? fail(launch, "cgroup.events") : 0;
}

/* Kill all of the job, and wait until nothing of it is left that could read a page. */
static void job_end(void) {
    char text[256] = "";
    if (write(job_order, "1", 1) != 1)
        return;
    while (pread(job_events, text, sizeof text - 1, 0) > 0 && !strstr(text, "populated 0")) {
        struct pollfd changed = {.fd = job_events, .events = POLLPRI};
        poll(&changed, 1, -1);
    }
}

static void status_write(struct launch *launch, const char *word, const char *why) {
    char line[512];
    int size = snprintf(line, sizeof line, "%s%s%s\n", word, *why ? ": " : "", why);
    if (pwrite(launch->spec.status_fd, line, (size_t)size, 0) != size)
        _exit(1);
}

static _Noreturn void pager_main(struct launch *launch, int guard) {
    static struct pager pager;
    const struct spec *spec = &launch->spec;
    pager = (struct pager){.images = spec->images_fd,
                           .device = launch->device,
                           .tasks.fd = spec->tasks_fd,
                           .door.fd = spec->door_fd,
                           .hold.fd = spec->hold_fd,
                           .guard.fd = guard};
    prctl(PR_SET_NAME, "serac-pager");
    if (pager_run(&pager) == 0)
        _exit(0);
    job_end();
    status_write(launch, "failed", pager.why);
    _exit(1);
}

/* The guard does nothing but wait.  A pager that fails says why itself; one that is killed can't. */
static void pager_await(struct launch *launch, pid_t pager) {
    char why[64];
    int status;
    while (waitpid(pager, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        status_write(launch, "done", "");
        return;
    }
    if (WIFEXITED(status))
        return;
    snprintf(why, sizeof why, "the pager was killed by signal %d", WTERMSIG(status));
    job_end();
    status_write(launch, "failed", why);
}

/* Where it is allowed: whoever is short of memory, killing these two costs a job. */
static void memory_protect(void) {
    autoclose int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "-1000", 5) < 0)
        errno = 0;
}

static int host_detach(struct launch *launch) {
    struct rlimit limit;
    memory_protect();
    if (setsid() < 0 || chdir("/") < 0 || standard_close() < 0)
        return fail(launch, "session");
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    return 0;
}

static int device_open(struct launch *launch) {
    launch->device = -1;
    if (launch->spec.door_fd < 0)
        return 0;
    launch->device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    return launch->device < 0 ? fail(launch, "/dev/userfaultfd") : 0;
}

/* Its end of the link closes with it, or when it has been let go: by then nothing can fail that the engine doesn't hear of. */
static int pager_start(struct launch *launch) {
    close_at_exit(&launch->link);
    prctl(PR_SET_NAME, "serac-guard");
    int guard = (int)syscall(SYS_pidfd_open, getpid(), 0);
    pid_t pager = guard < 0 ? -1 : (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
    if (pager < 0)
        _exit(1);
    if (pager == 0)
        pager_main(launch, guard);
    pager_await(launch, pager);
    _exit(0);
}

void pages_main(struct launch *launch) {
    /* clang-format off */
    static const struct action actions[] = {
        WAIT(CLONE, launcher_tell), /* it lives */
        RUN(PAGES, device_open), RUN(PAGES, job_open), RUN(PAGES, host_detach),
        WAIT(CLONE, launcher_tell), /* it is ready */
        WAIT(CLONE, launcher_await), /* it is in its cgroup */
        RUN(PAGES, pager_start),
    };
    /* clang-format on */
    launch->pid = 0;
    actions_run(launch, actions, sizeof actions / sizeof *actions);
    launcher_tell(launch);
    _exit(1);
}
