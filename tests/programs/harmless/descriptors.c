#include "families.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static bool pipe_full(void) {
    int pipes[2];
    return pipe(pipes) == 0 && write(pipes[1], "kept", 4) == 4;
}

static bool fifo(void) {
    return mkfifo("/tmp/fifo", 0600) == 0 && open("/tmp/fifo", O_RDWR) >= 0;
}

static bool counter(void) {
    int fd = eventfd(7, EFD_NONBLOCK);
    return fd >= 0 && eventfd_write(fd, 0xfffffff0) == 0;
}

/* What is waited for has another number by now. */
static bool epoll_moved(void) {
    int poll = epoll_create1(0), pipes[2];
    struct epoll_event event = {.events = EPOLLIN};
    if (poll < 0 || pipe(pipes) < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, pipes[0], &event) < 0)
        return false;
    return dup(pipes[0]) >= 0 && close(pipes[0]) == 0;
}

static bool signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    return sigprocmask(SIG_BLOCK, &set, NULL) == 0 && signalfd(-1, &set, 0) >= 0 && raise(SIGUSR2) == 0;
}

static bool timer(void) {
    struct itimerspec in_a_while = {.it_value.tv_sec = 100000};
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    return fd >= 0 && timerfd_settime(fd, 0, &in_a_while, NULL) == 0;
}

static bool watch(void) {
    int fd = inotify_init1(IN_NONBLOCK);
    return fd >= 0 && inotify_add_watch(fd, "/etc", IN_CREATE) >= 0;
}

static bool memory(void) {
    int fd = (int)syscall(SYS_memfd_create, "memory", 0);
    return fd >= 0 && ftruncate(fd, 8192) == 0 && mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED;
}

static bool path_only(void) {
    return open("/etc/passwd", O_PATH) >= 0 && open("/tmp", O_PATH | O_DIRECTORY) >= 0;
}

static bool nameless(void) {
    int fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    return fd >= 0 && write(fd, "kept", 4) == 4;
}

static bool deleted(void) {
    int fd = open("/tmp/deleted", O_RDWR | O_CREAT, 0600);
    return fd >= 0 && write(fd, "kept", 4) == 4 && unlink("/tmp/deleted") == 0;
}

/* Large by its size alone. */
static bool deleted_sparse(void) {
    int fd = open("/tmp/sparse", O_RDWR | O_CREAT, 0600);
    return fd >= 0 && ftruncate(fd, 2l << 30) == 0 && unlink("/tmp/sparse") == 0;
}

static bool directory(void) {
    return open("/tmp", O_RDONLY | O_DIRECTORY) >= 0;
}

static bool directory_deleted(void) {
    return mkdir("/tmp/gone", 0700) == 0 && chdir("/tmp/gone") == 0 && rmdir("/tmp/gone") == 0;
}

static bool devices(void) {
    return open("/dev/null", O_RDWR) >= 0 && open("/dev/zero", O_RDONLY) >= 0 && open("/dev/urandom", O_RDONLY) >= 0;
}

static bool terminal(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    return master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0 &&
           open(ptsname(master), O_RDWR | O_NOCTTY) >= 0;
}

static bool log_file(void) {
    int fd = open("/tmp/log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    return fd >= 0 && write(fd, "kept\n", 5) == 5;
}

static bool lock(void) {
    int fd = open("/tmp/lock", O_RDWR | O_CREAT, 0600);
    return fd >= 0 && flock(fd, LOCK_EX) == 0;
}

static bool kernel_files(void) {
    return open("/proc/self/status", O_RDONLY) >= 0 && open("/proc", O_RDONLY | O_DIRECTORY) >= 0;
}

static bool shared_memory(void) {
    int id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
    return id >= 0 && shmat(id, NULL, 0) != (void *)-1;
}

static bool shared_file(void) {
    int fd = open("/dev/shm/shared", O_RDWR | O_CREAT, 0600);
    return fd >= 0 && ftruncate(fd, 4096) == 0;
}

static bool shared_anonymous(void) {
    return mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
}

static bool asynchronous(void) {
    aio_context_t context = 0;
    return syscall(SYS_io_setup, 4, &context) == 0;
}

static bool process_handle(void) {
    return syscall(SYS_pidfd_open, getpid(), 0) >= 0;
}

static bool process_handle_dead(void) {
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    return syscall(SYS_pidfd_open, pid, 0) >= 0 && waitpid(pid, NULL, 0) == pid;
}

const struct kind descriptor_kinds[] = {
    {"pipe-full", pipe_full},
    {"fifo", fifo},
    {"counter", counter},
    {"epoll-moved", epoll_moved},
    {"signals", signals},
    {"timer", timer},
    {"watch", watch},
    {"memory", memory},
    {"path-only", path_only},
    {"nameless", nameless},
    {"deleted", deleted},
    {"deleted-sparse", deleted_sparse},
    {"directory", directory},
    {"directory-deleted", directory_deleted},
    {"devices", devices},
    {"terminal", terminal},
    {"log-file", log_file},
    {"lock", lock},
    {"kernel-files", kernel_files},
    {"shared-memory", shared_memory},
    {"shared-file", shared_file},
    {"shared-anonymous", shared_anonymous},
    {"asynchronous", asynchronous},
    {"process-handle", process_handle},
    {"process-handle-dead", process_handle_dead},
    {NULL, NULL},
};
