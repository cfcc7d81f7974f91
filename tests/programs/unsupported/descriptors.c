#include "families.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static bool perf_event(void) {
    struct perf_event_attr attr = {
        .type = PERF_TYPE_SOFTWARE,
        .size = sizeof attr,
        .config = PERF_COUNT_SW_TASK_CLOCK,
        .exclude_kernel = 1,
        .exclude_hv = 1,
    };
    return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0) >= 0;
}

static bool landlock_ruleset(void) {
    struct landlock_ruleset_attr attr = {.handled_access_fs = LANDLOCK_ACCESS_FS_WRITE_FILE};
    return syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0) >= 0;
}

static bool message_queue(void) {
    struct mq_attr attr = {.mq_maxmsg = 2, .mq_msgsize = 16};
    return mq_open("/queue", O_RDWR | O_CREAT, 0600, &attr) >= 0;
}

static bool seccomp_listener(void) {
    struct sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, allow};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program) >= 0;
}

/* /dev/fuse, made anew: only a job without a user namespace may. */
static bool device(void) {
    return mknod("/tmp/fuse", S_IFCHR | 0600, makedev(10, 229)) == 0 && open("/tmp/fuse", O_RDWR) >= 0;
}

static int deleted_file(off_t size) {
    int fd = open("/tmp/deleted", O_RDWR | O_CREAT, 0600);
    return fd >= 0 && posix_fallocate(fd, 0, size) == 0 && unlink("/tmp/deleted") == 0 ? fd : -1;
}

static bool deleted_large(void) {
    return deleted_file((512 << 20) + 4096) >= 0;
}

static bool deleted_attributes(void) {
    int fd = deleted_file(4096);
    return fd >= 0 && fsetxattr(fd, "user.note", "kept", 4, 0) == 0;
}

static bool eventfd_semaphore(void) {
    return eventfd(3, EFD_SEMAPHORE) >= 0;
}

static bool eventfd_large(void) {
    int fd = eventfd(0, 0);
    return fd >= 0 && eventfd_write(fd, 1ul << 32) == 0;
}

static bool process_directory(void) {
    return open("/proc/self", O_RDONLY | O_DIRECTORY) >= 0;
}

static int watch(void) {
    int events = inotify_init(), fd = open("/tmp/watched", O_RDWR | O_CREAT, 0600);
    return fd >= 0 && inotify_add_watch(events, "/tmp/watched", IN_MODIFY) >= 0 ? fd : -1;
}

static bool inotify_unread(void) {
    int fd = watch();
    return fd >= 0 && write(fd, "new", 3) == 3;
}

static bool inotify_unlinked(void) {
    return watch() >= 0 && unlink("/tmp/watched") == 0;
}

static int pipes[2], events;

static bool leave_events(void) {
    return close(events) == 0;
}

/* What epoll waits for is closed here; that it is open in a child keeps epoll waiting. */
static bool epoll_elsewhere(void) {
    struct epoll_event event = {.events = EPOLLIN};
    events = epoll_create1(0);
    if (events < 0 || pipe(pipes) < 0 || epoll_ctl(events, EPOLL_CTL_ADD, pipes[0], &event) < 0)
        return false;
    return child(leave_events) > 0 && close(pipes[0]) == 0;
}

static int master;

static bool terminal_take(void) {
    return setsid() > 0 && open(ptsname(master), O_RDWR) >= 0 && open("/dev/tty", O_RDWR) >= 0 && close(master) == 0;
}

static bool terminal_held(void) {
    master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0)
        return false;
    return (holder = child(terminal_take)) > 0;
}

/* The directory's path is longer than PATH_MAX. */
static bool long_path(void) {
    char name[201];
    memset(name, 'a', sizeof name);
    name[200] = '\0';
    for (int i = 0; i < 24; i++)
        if (mkdir(name, 0755) < 0 || chdir(name) < 0)
            return false;
    return true;
}

const struct kind descriptor_kinds[] = {
    {"perf-event", perf_event},
    {"landlock-ruleset", landlock_ruleset},
    {"message-queue", message_queue},
    {"seccomp-listener", seccomp_listener},
    {"device", device},
    {"deleted-large", deleted_large},
    {"deleted-attributes", deleted_attributes},
    {"eventfd-semaphore", eventfd_semaphore},
    {"eventfd-large", eventfd_large},
    {"process-directory", process_directory},
    {"inotify-unread", inotify_unread},
    {"inotify-unlinked", inotify_unlinked},
    {"epoll-elsewhere", epoll_elsewhere},
    {"terminal-held", terminal_held},
    {"long-path", long_path},
    {NULL, NULL},
};
