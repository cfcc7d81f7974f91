/*
 * The floor: what the kernel and criu must do for a resume and for a pause, and nothing else.  No catalog, no locks, no
 * flush, no report of an error but a word, no cleaning up after one: serac is measured beside this.
 *
 *   floor restore KEY=VALUE.. -- CRIU ARG..     cgroup, mount namespace, idmapped trees, overlay; criu until it has ended
 *   floor run KEY=VALUE.. -- INIT ARG..         the same, then a world and INIT, until its child writes to descriptor 3
 *   floor stop KEY=VALUE.. [-- CRIU ARG..]      freeze, criu until it has ended, kill, cgroup
 *
 * Keys: cgroup=DIR (v2; made, and removed by stop)  base=DIR layers=DIR io=DIR (trees)  layer=DIR (made, for upper and work)
 * overlay=OPTIONS (of mount(2), relative to a directory that holds base/ and layers/)  ids=FIRST:COUNT  kdat=FILE (criu's
 * knowledge of the kernel)  pid=FILE (where criu writes the number of the first process).  On standard output a line for
 * each step: its name and microseconds.
 *
 * A run gives the job the world that a job of serac has (floor_inside.c): user, pid, mount, network, ipc and uts
 * namespaces, loopback up, /proc, /sys, /dev/pts, /dev/shm, the io directory, paths masked and read-only, a host name,
 * limits, few capabilities, a filter of system calls, and an init that the program is a child of.  A restore has all that
 * from criu, but for loopback.
 *
 * Left out are serac's own choices.  Of a run: a control socket, /etc/hosts and /etc/hostname, sessions.  Of a restore:
 * notifications, the lock on the network, names, placing threads.  Of a stop: looking at the processes, copies of
 * /dev/shm and logs.
 */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *const keys[] = {"cgroup", "base", "layers", "io", "layer", "overlay", "ids", "kdat", "pid"};
enum key { CGROUP, BASE, LAYERS, IO, LAYER, OVERLAY, IDS, KDAT, PID, KEYS };
static const char *given[KEYS];

/* Shared with the children, so that a step may begin in one process and end in another. */
static struct timespec *last;

int must(long done, const char *what) {
    if (done >= 0)
        return (int)done;
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static long micros(const struct timespec *start, const struct timespec *end) {
    return (end->tv_sec - start->tv_sec) * 1000000 + (end->tv_nsec - start->tv_nsec) / 1000;
}

void mark(const char *step) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    dprintf(STDOUT_FILENO, "%s %ld\n", step, micros(last, &now));
    *last = now;
}

void put(const char *directory, const char *name, const char *text) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = must(open(path, O_WRONLY | O_CLOEXEC), path);
    must(write(fd, text, strlen(text)), path);
    close(fd);
}

static int wait_for(pid_t pid) {
    int status;
    must(waitpid(pid, &status, 0), "wait");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Cgroups */

static pid_t born(unsigned long long flags) {
    must(mkdir(given[CGROUP], 0755), given[CGROUP]);
    int group = must(open(given[CGROUP], O_PATH | O_DIRECTORY | O_CLOEXEC), given[CGROUP]);
    struct clone_args args = {
        .flags = flags | CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (unsigned long long)group};
    pid_t pid = must(syscall(SYS_clone3, &args, sizeof args), "clone");
    close(group);
    return pid;
}

static void group_await(int events, const char *line) {
    char text[256];
    for (;;) {
        ssize_t size = must(pread(events, text, sizeof text - 1, 0), "cgroup.events");
        text[size] = 0;
        if (strstr(text, line))
            return;
        struct pollfd wait = {.fd = events, .events = POLLPRI};
        must(poll(&wait, 1, -1), "poll");
    }
}

/* Mounts */

static void ids_map(pid_t pid) {
    char directory[32], map[64];
    unsigned first, count;
    if (sscanf(given[IDS], "%u:%u", &first, &count) != 2)
        must(-1, given[IDS]);
    snprintf(directory, sizeof directory, "/proc/%d", pid);
    snprintf(map, sizeof map, "0 %u %u", first, count);
    put(directory, "uid_map", map);
    put(directory, "gid_map", map);
}

static int userns_open(pid_t pid) {
    char path[48];
    ids_map(pid);
    snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
    return must(open(path, O_RDONLY | O_CLOEXEC), path);
}

/* A user namespace that nobody is in, for the idmap of a restore. */
static int userns_make(void) {
    pid_t pid = must(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL), "user namespace");
    if (pid == 0)
        for (;;)
            pause();
    int userns = userns_open(pid);
    kill(pid, SIGKILL);
    wait_for(pid);
    return userns;
}

static int tree_open(const char *path, int userns) {
    struct mount_attr idmap = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (unsigned long long)userns};
    int tree = must(open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), path);
    must(mount_setattr(tree, "", AT_EMPTY_PATH, &idmap, sizeof idmap), path);
    return tree;
}

static void tree_attach(int tree, const char *name) {
    must(mkdir(name, 0755), name);
    must(move_mount(tree, "", AT_FDCWD, name, MOVE_MOUNT_F_EMPTY_PATH), name);
    close(tree);
}

static void view_mount(void) {
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
    must(mount("tmpfs", VIEW, "tmpfs", 0, "mode=0711"), VIEW);
    must(chdir(VIEW), VIEW);
}

/* criu trusts its cache on a tmpfs only; `kdat` was opened before the view hid it. */
static void cache_put(int kdat) {
    if (kdat < 0)
        return;
    struct stat status;
    must(fstat(kdat, &status), given[KDAT]);
    int copy = must(open("criu.kdat", O_WRONLY | O_CREAT | O_CLOEXEC, 0600), "criu.kdat");
    must(sendfile(copy, kdat, NULL, (size_t)status.st_size), "criu.kdat");
    close(copy);
    close(kdat);
}

static void layer_make(void) {
    char path[4096];
    must(mkdir(given[LAYER], 0755), given[LAYER]);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", given[LAYER], i ? "work" : "upper");
        must(mkdir(path, 0755), path);
    }
}

/* The overlay makes files as who mounted it, so that has to be an id which the idmap knows. */
static void root_mount(void) {
    unsigned first = (unsigned)strtoul(given[IDS], NULL, 10);
    must(mkdir("root", 0755), "root");
    must(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP), "securebits");
    setfsgid(first);
    setfsuid(first);
    must(mount("overlay", "root", "overlay", 0, given[OVERLAY]), given[OVERLAY]);
    setfsuid(0);
    setfsgid(0);
    must(prctl(PR_SET_SECUREBITS, 0), "securebits");
}

static void trees_mount(int userns) {
    int base = tree_open(given[BASE], userns), layers = tree_open(given[LAYERS], userns);
    int io = tree_open(given[IO], userns);
    layer_make();
    view_mount();
    tree_attach(base, "base");
    tree_attach(layers, "layers");
    tree_attach(io, "io");
    root_mount();
    close(userns);
}

static void shm_mount(void) {
    char options[64];
    snprintf(options, sizeof options, "mode=1777,uid=%lu", strtoul(given[IDS], NULL, 10));
    must(mkdir("shm", 0755), "shm");
    must(mount("tmpfs", "shm", "tmpfs", MS_NOSUID | MS_NODEV, options), "shm");
}

/* Verbs */

void standard_close(void) {
    int null = must(open("/dev/null", O_RDWR | O_CLOEXEC), "/dev/null");
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        must(dup2(null, fd), "standard files");
}

static void execute(char **words) {
    standard_close();
    execv(words[0], words);
    _exit(127);
}

void loopback_raise(void) {
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "lo");
    must(ioctl(fd, SIOCSIFFLAGS, &lo), "lo");
    close(fd);
}

/* criu leaves what it was told to empty as the kernel made it. */
static void network_finish(void) {
    char path[48];
    pid_t pid = 0;
    FILE *file = fopen(given[PID], "re");
    must(file && fscanf(file, "%d", &pid) == 1 ? 0 : -1, given[PID]);
    fclose(file);
    snprintf(path, sizeof path, "/proc/%d/ns/net", pid);
    must(setns(must(open(path, O_RDONLY | O_CLOEXEC), path), CLONE_NEWNET), path);
    loopback_raise();
}

static int restore(char **words) {
    pid_t pid = born(CLONE_NEWNS);
    if (pid == 0) {
        mark("cgroup");
        int kdat = open(given[KDAT], O_RDONLY | O_CLOEXEC);
        trees_mount(userns_make());
        cache_put(kdat);
        shm_mount();
        mark("mounts");
        execute(words);
    }
    int status = wait_for(pid);
    mark("criu");
    if (status)
        return status;
    network_finish();
    mark("network");
    return 0;
}

void hear(int link) {
    char byte;
    must(read(link, &byte, 1) == 1 ? 0 : -1, "the other side");
}

void tell(int link) {
    must(write(link, "", 1), "the other side");
}

/* As high as this process may, and no core dumps: raising one takes the host's rights. */
static void limits_set(pid_t pid) {
    const struct rlimit none = {0, 0};
    struct rlimit limit;
    must(getrlimit(RLIMIT_NOFILE, &limit), "limits");
    limit.rlim_cur = limit.rlim_max;
    must(prlimit(pid, RLIMIT_NOFILE, &limit, NULL), "limits");
    must(getrlimit(RLIMIT_MEMLOCK, &limit), "limits");
    must(prlimit(pid, RLIMIT_MEMLOCK, &limit, NULL), "limits");
    must(prlimit(pid, RLIMIT_CORE, &none, NULL), "limits");
}

static int run(char **words) {
    int pair[2], link[2];
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "link");
    for (int i = 0; i < 2; i++) { /* out of the way of what the program will have */
        link[i] = must(fcntl(pair[i], F_DUPFD_CLOEXEC, 10), "link");
        close(pair[i]);
    }
    must(unshare(CLONE_NEWNS), "mount namespace");
    pid_t pid = born(CLONE_NEWUSER | CLONE_NEWPID);
    if (pid == 0)
        job(link[1], words);
    close(link[1]);
    mark("cgroup");
    int userns = userns_open(pid);
    tell(link[0]);
    trees_mount(userns);
    limits_set(pid);
    mark("mounts"); /* the next two are the other side's */
    tell(link[0]);
    hear(link[0]);
    mark("answer");
    return 0;
}

static void dump(char **words) {
    pid_t pid = must(fork(), "fork");
    if (pid == 0) {
        int kdat = open(given[KDAT], O_RDONLY | O_CLOEXEC);
        must(unshare(CLONE_NEWNS), "mount namespace");
        view_mount();
        cache_put(kdat);
        execute(words);
    }
    int status = wait_for(pid);
    mark("criu");
    if (status)
        exit(status);
}

static int stop(char **words) {
    char path[4096];
    snprintf(path, sizeof path, "%s/cgroup.events", given[CGROUP]);
    int events = must(open(path, O_RDONLY | O_CLOEXEC), path);
    put(given[CGROUP], "cgroup.freeze", "1");
    group_await(events, "frozen 1");
    mark("freeze");
    if (words[0])
        dump(words);
    put(given[CGROUP], "cgroup.kill", "1");
    group_await(events, "populated 0");
    must(rmdir(given[CGROUP]), given[CGROUP]);
    mark("kill");
    return 0;
}

static char **options_read(char **words) {
    for (; *words && strcmp(*words, "--"); words++) {
        size_t length = strcspn(*words, "=");
        for (int key = 0; key < KEYS; key++)
            if (strlen(keys[key]) == length && !strncmp(*words, keys[key], length))
                given[key] = *words + length + 1;
    }
    return *words ? words + 1 : words;
}

int main(int count, char **words) {
    if (count < 2) {
        fputs("usage: floor restore|run|stop KEY=VALUE.. [-- PROGRAM ARG..]\n", stderr);
        return 2;
    }
    last = mmap(NULL, sizeof *last, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(last == MAP_FAILED ? -1 : 0, "memory");
    clock_gettime(CLOCK_MONOTONIC, last);
    char **rest = options_read(words + 2);
    if (!strcmp(words[1], "restore"))
        return restore(rest);
    return !strcmp(words[1], "run") ? run(rest) : stop(rest);
}
