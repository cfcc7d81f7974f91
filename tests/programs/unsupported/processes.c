#include "families.h"

#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static bool traced(void) {
    holder = child(NULL);
    return holder > 0 && ptrace(PTRACE_SEIZE, holder, NULL, NULL) == 0;
}

static bool enter_user(void) {
    return unshare(CLONE_NEWUSER) == 0;
}

static bool enter_network(void) {
    return unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0;
}

static bool nested_user(void) {
    return (holder = child(enter_user)) > 0;
}

static bool nested_network(void) {
    return (holder = child(enter_network)) > 0;
}

/* Its child is the first process of a new pid namespace. */
static bool nested_pid(void) {
    return unshare(CLONE_NEWUSER | CLONE_NEWPID) == 0 && child(NULL) > 0;
}

static bool other_user(void) {
    return setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0;
}

static int shared_body(void *unused) {
    (void)unused;
    stand();
}

static bool shares(int flags) {
    char *stack = malloc(65536);
    holder = clone(shared_body, stack + 65536, flags | SIGCHLD, NULL);
    return holder > 0;
}

static bool shared_memory(void) {
    return shares(CLONE_VM);
}

static bool shared_directories(void) {
    return shares(CLONE_FS);
}

static void *vfork_body(void *unused) {
    (void)unused;
    if (vfork() == 0)
        stand();
    return NULL;
}

/* A thread waits until its child executes something, which it never does. */
static bool vforked(void) {
    char path[64];
    pthread_t thread;
    snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
    if (pthread_create(&thread, NULL, vfork_body, NULL) != 0)
        return false;
    while (!holder) {
        snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid() + 1);
        FILE *children = fopen(path, "r");
        if (children && fscanf(children, "%d", &holder) != 1)
            holder = 0;
        if (children)
            fclose(children);
    }
    return true;
}

static void *thread_body(void *unused) {
    (void)unused;
    stand();
}

static char state(pid_t pid) {
    char path[64], letter = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *stat = fopen(path, "r");
    if (stat && fscanf(stat, "%*d %*s %c", &letter) != 1)
        letter = 0;
    if (stat)
        fclose(stat);
    return letter;
}

/* The first thread of a process ended, another goes on. */
static bool leaderless(void) {
    pthread_t thread;
    holder = fork();
    if (holder == 0) {
        pthread_create(&thread, NULL, thread_body, NULL);
        syscall(SYS_exit, 0);
    }
    while (state(holder) && state(holder) != 'Z')
        sched_yield();
    return state(holder) == 'Z';
}

static int apart;
static pthread_barrier_t reached;

static void *apart_body(void *unused) {
    (void)unused;
    if (unshare(apart) < 0)
        abort();
    pthread_barrier_wait(&reached);
    stand();
}

static bool thread_apart(int what) {
    pthread_t thread;
    apart = what;
    if (pthread_barrier_init(&reached, NULL, 2) != 0 || pthread_create(&thread, NULL, apart_body, NULL) != 0)
        return false;
    pthread_barrier_wait(&reached);
    return true;
}

static bool thread_files(void) {
    return thread_apart(CLONE_FILES);
}

static bool thread_directories(void) {
    return thread_apart(CLONE_FS);
}

static void tick(union sigval unused) {
    (void)unused;
}

static bool thread_timer(void) {
    struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = tick};
    timer_t timer;
    return timer_create(CLOCK_MONOTONIC, &event, &timer) == 0;
}

/* Executes a copy of itself that lies in memory, as a program that stands is: sleep. */
static bool execute_memory(void) {
    int memory = (int)syscall(SYS_memfd_create, "program", MFD_CLOEXEC), fd = open("/bin/busybox", O_RDONLY);
    struct stat status;
    char *argv[] = {"sleep", "1000000", NULL}, *env[] = {NULL};
    if (memory < 0 || fd < 0 || fstat(fd, &status) < 0)
        return false;
    for (off_t left = status.st_size; left > 0;) {
        ssize_t sent = sendfile(memory, fd, NULL, (size_t)left);
        if (sent <= 0)
            return false;
        left -= sent;
    }
    return fexecve(memory, argv, env) == 0;
}

static bool memfd_program(void) {
    char path[64], target[32] = "";
    holder = fork();
    if (holder == 0)
        _exit(!execute_memory());
    snprintf(path, sizeof path, "/proc/%d/exe", holder);
    while (strncmp(target, "/memfd:", 7) != 0)
        if (kill(holder, 0) < 0 || readlink(path, target, sizeof target - 1) < 0)
            return false;
    return true;
}

/* Its parent took a session of its own afterwards, and the leader of the one that it was born in is gone. */
static bool session_lost(void) {
    int pipes[2];
    pid_t leader = pipe(pipes) < 0 ? -1 : fork();
    if (leader == 0) {
        setsid();
        if (fork() == 0) {
            pid_t last = child(NULL);
            setsid();
            if (write(pipes[1], &last, sizeof last) != sizeof last)
                _exit(1);
            stand();
        }
        _exit(0);
    }
    return leader > 0 && read(pipes[0], &holder, sizeof holder) == sizeof holder && waitpid(leader, NULL, 0) == leader;
}

/* An orphan of a session that init doesn't adopt. */
static bool session_adopted(void) {
    int pipes[2];
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t leader = pipe(pipes) < 0 ? -1 : fork();
    if (leader == 0) {
        setsid();
        pid_t last = child(NULL);
        _exit(write(pipes[1], &last, sizeof last) != sizeof last);
    }
    return leader > 0 && read(pipes[0], &holder, sizeof holder) == sizeof holder && waitpid(leader, NULL, 0) == leader;
}

const struct kind process_kinds[] = {
    {"traced", traced},
    {"nested-user", nested_user},
    {"nested-network", nested_network},
    {"nested-pid", nested_pid},
    {"other-user", other_user},
    {"shared-memory", shared_memory},
    {"shared-directories", shared_directories},
    {"vforked", vforked},
    {"leaderless", leaderless},
    {"thread-files", thread_files},
    {"thread-directories", thread_directories},
    {"thread-timer", thread_timer},
    {"memfd-program", memfd_program},
    {"session-lost", session_lost},
    {"session-adopted", session_adopted},
    {NULL, NULL},
};
