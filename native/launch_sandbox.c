#include "launch.h"

#include "kernel.h"
#include "records.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define LISTENER 3

/* What containers usually keep: enough to install packages and serve ports, nothing that reaches the kernel itself. */
#define CAPS_KEPT                                                                                                      \
    (1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FSETID | 1u << CAP_FOWNER | 1u << CAP_MKNOD |                \
     1u << CAP_NET_RAW | 1u << CAP_SETGID | 1u << CAP_SETUID | 1u << CAP_SETFCAP | 1u << CAP_SETPCAP |                 \
     1u << CAP_NET_BIND_SERVICE | 1u << CAP_SYS_CHROOT | 1u << CAP_KILL | 1u << CAP_AUDIT_WRITE)

int uts_enter(struct launch *launch) {
    int fd = launch->spec.uts_fd;
    return fd >= 0 && setns(fd, CLONE_NEWUTS) < 0 ? fail(launch, "uts") : 0;
}

int hostname_set(struct launch *launch) {
    const char *name = launch->spec.hostname;
    return name && sethostname(name, strlen(name)) < 0 ? fail(launch, name) : 0;
}

static int null_open(struct launch *launch) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", launch->null);
    return open(path, O_RDWR | O_CLOEXEC);
}

/* All sources first go above every target, so that none is overwritten before it was copied. */
int descriptors_place(struct launch *launch) {
    int wanted[LISTENER + 1] = {launch->spec.std_fd[0], launch->spec.std_fd[1], launch->spec.std_fd[2],
                                launch->listener};
    autoclose int null = null_open(launch);
    if (null < 0)
        return fail(launch, "/dev/null");
    for (int fd = 0; fd <= LISTENER; fd++) {
        int from = wanted[fd] < 0 && fd < LISTENER ? null : wanted[fd];
        wanted[fd] = from < 0 ? -1 : fcntl(from, F_DUPFD_CLOEXEC, 10);
        if (from >= 0 && wanted[fd] < 0)
            return fail(launch, "descriptors");
    }
    for (int fd = 0; fd <= LISTENER; fd++)
        if (wanted[fd] >= 0 && dup2(wanted[fd], fd) < 0)
            return fail(launch, "descriptors");
    unsigned first = launch->listener < 0 ? LISTENER : LISTENER + 1;
    steal_fd(&null);
    return close_range(first, ~0u, CLOSE_RANGE_CLOEXEC) < 0 ? fail(launch, "descriptors") : 0;
}

int signals_reset(struct launch *launch) {
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    return sigprocmask(SIG_SETMASK, &none, NULL) < 0 ? fail(launch, "signals") : 0;
}

/* What the host's session has keys for is not the job's.  Only who may ask for keys needs one of its own: a user has no more
 * than some two hundred. */
int keyring_make(struct launch *launch) {
    if (!(launch->spec.allow & 1u << GROUP_KEYRING))
        return 0;
    return syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 ? fail(launch, "keyring") : 0;
}

static int bounding_cut(void) {
    for (unsigned long cap = 0; cap < 64; cap++) {
        if (cap < 32 && (CAPS_KEPT & 1u << cap))
            continue;
        if (prctl(PR_CAPBSET_DROP, cap) < 0)
            return errno == EINVAL ? 0 : -1;
    }
    return 0;
}

int privileges_drop(struct launch *launch) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct caps[2] = {{.effective = CAPS_KEPT, .permitted = CAPS_KEPT}};
    if (bounding_cut() < 0 || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 ||
        syscall(SYS_capset, &head, caps) < 0)
        return fail(launch, "capabilities");
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? fail(launch, "no_new_privs") : 0;
}

static const struct {
    const char *name;
    int resource;
} limits[] = {
    {"as", RLIMIT_AS},           {"core", RLIMIT_CORE},         {"cpu", RLIMIT_CPU},
    {"data", RLIMIT_DATA},       {"fsize", RLIMIT_FSIZE},       {"locks", RLIMIT_LOCKS},
    {"memlock", RLIMIT_MEMLOCK}, {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE},
    {"nofile", RLIMIT_NOFILE},   {"nproc", RLIMIT_NPROC},       {"rss", RLIMIT_RSS},
    {"rtprio", RLIMIT_RTPRIO},   {"rttime", RLIMIT_RTTIME},     {"sigpending", RLIMIT_SIGPENDING},
    {"stack", RLIMIT_STACK},
};

static int bound_parse(const char *text, unsigned long long *bound) {
    long long number;
    if (!strcmp(text, "unlimited")) {
        *bound = RLIM_INFINITY;
        return 0;
    }
    if (number_parse(text, 0, LLONG_MAX, &number) < 0)
        return -1;
    *bound = (unsigned long long)number;
    return 0;
}

/* NAME:SOFT:HARD; 0, or -1 with errno EINVAL or ERANGE. */
int limit_parse(const char *text, int *resource, unsigned long long *soft, unsigned long long *hard) {
    char name[16], low[24], high[24];
    int end = 0;
    if (sscanf(text, "%15[a-z]:%23[0-9a-z]:%23[0-9a-z]%n", name, low, high, &end) == 3 && end && !text[end])
        for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
            if (!strcmp(name, limits[i].name)) {
                *resource = limits[i].resource;
                return bound_parse(low, soft) < 0 || bound_parse(high, hard) < 0 ? -1 : 0;
            }
    errno = EINVAL;
    return -1;
}
