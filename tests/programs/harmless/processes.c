#include "families.h"

#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void *thread_body(void *unused) {
    (void)unused;
    stand();
}

static bool threads(void) {
    pthread_t thread;
    for (int i = 0; i < 20; i++)
        if (pthread_create(&thread, NULL, thread_body, NULL) != 0)
            return false;
    return true;
}

static bool children(void) {
    return child(NULL) > 0 && child(NULL) > 0;
}

static bool zombie(void) {
    siginfo_t end;
    pid_t pid = fork();
    if (pid == 0)
        _exit(3);
    return waitid(P_PID, (id_t)pid, &end, WEXITED | WNOWAIT) == 0;
}

/* Two processes that init adopts, in a session whose leader is gone. */
static bool daemon_pair(void) {
    pid_t leader = fork();
    if (leader == 0) {
        setsid();
        _exit(!(child(NULL) > 0 && child(NULL) > 0));
    }
    return waitpid(leader, NULL, 0) == leader;
}

static bool group_without_leader(void) {
    pid_t leader = fork();
    if (leader == 0) {
        setpgid(0, 0);
        _exit(child(NULL) < 0);
    }
    return waitpid(leader, NULL, 0) == leader;
}

/* A child that was born before its parent took a session of its own, whose leader lives. */
static bool take_session(void) {
    return child(NULL) > 0 && setsid() > 0;
}

static bool session_taken(void) {
    return child(take_session) > 0;
}

static bool other_user(void) {
    return setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0;
}

static bool other_root(void) {
    return mkdir("/tmp/root", 0755) == 0 && chroot("/tmp/root") == 0 && chdir("/") == 0;
}

static int shared_body(void *unused) {
    (void)unused;
    stand();
}

static bool shared_descriptors(void) {
    char *stack = malloc(65536);
    return stack && clone(shared_body, stack + 65536, CLONE_FILES | SIGCHLD, NULL) > 0;
}

static bool stop(void) {
    return true;
}

static bool stopped(void) {
    siginfo_t info;
    pid_t pid = child(stop);
    return pid > 0 && kill(pid, SIGSTOP) == 0 && waitid(P_PID, (id_t)pid, &info, WSTOPPED | WNOWAIT) == 0;
}

static bool timers(void) {
    struct itimerval alarm = {.it_value.tv_sec = 100000};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    timer_t timer;
    return setitimer(ITIMER_REAL, &alarm, NULL) == 0 && timer_create(CLOCK_MONOTONIC, &event, &timer) == 0;
}

const struct kind process_kinds[] = {
    {"threads", threads},
    {"children", children},
    {"zombie", zombie},
    {"daemon-pair", daemon_pair},
    {"group-without-leader", group_without_leader},
    {"session-taken", session_taken},
    {"other-user", other_user},
    {"other-root", other_root},
    {"shared-descriptors", shared_descriptors},
    {"stopped", stopped},
    {"timers", timers},
    {NULL, NULL},
};
