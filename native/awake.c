#include "ask.h"

#include "cleanup.h"
#include "client.h"
#include "loop.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FAILED = 125 };

struct lease {
    const char *reason;
    long long seconds; /* -1: as long as it is held */
    char **command;    /* NULL: none */
};

static volatile sig_atomic_t child;

static void pass_on(int number) {
    if (child > 0)
        kill(child, number);
}

static int say(const char *what) {
    fprintf(stderr, "serac awake: %s: %s\n", what, strerror(errno));
    return FAILED;
}

static bool parse(int argc, char **argv, struct lease *lease) {
    static const struct option options[] = {
        {"reason", required_argument, NULL, 'r'},
        {"for", required_argument, NULL, 'f'},
        {0},
    };
    for (int option; (option = getopt_long(argc, argv, "+", options, NULL)) != -1;)
        if (option == 'r')
            lease->reason = optarg;
        else if (option != 'f' || (lease->seconds = client_seconds(optarg)) < 0)
            return false;
    lease->command = optind < argc ? argv + optind : NULL;
    return true;
}

/* The connection that holds it, or -1. */
static int hold(const struct lease *lease) {
    static char payload[CHUNK_MAX + 1];
    struct writer records = {0};
    struct message head;
    long long until = lease->seconds < 0 ? 0 : (long long)clock_real() + lease->seconds * 1000000000;
    record_number(&records, "until", until);
    record_put(&records, "reason", lease->reason);
    autoclose int fd = -1;
    return client_request(&fd, M_AWAKE, &records, -1, &head, payload) == M_OK ? steal_fd(&fd) : -1;
}

/* Signals that are meant for the command, whoever they are sent to, are left to it. */
static int stay_with(char **command) {
    static const int passed[] = {SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};
    struct sigaction passing = {.sa_handler = pass_on, .sa_flags = SA_RESTART}, ignore = {.sa_handler = SIG_IGN};
    sigset_t held, usual;
    int status;
    sigfillset(&held);
    sigprocmask(SIG_BLOCK, &held, &usual);
    pid_t pid = fork();
    if (pid == 0) {
        sigprocmask(SIG_SETMASK, &usual, NULL);
        execvp(command[0], command);
        int why = errno;
        fprintf(stderr, "serac awake: %s: %s\n", command[0], strerror(why));
        _exit(why == ENOENT ? 127 : 126);
    }
    child = pid;
    for (size_t at = 0; at < sizeof passed / sizeof *passed; at++)
        sigaction(passed[at], &passing, NULL);
    sigaction(SIGINT, &ignore, NULL); /* a terminal's keys reach both */
    sigaction(SIGQUIT, &ignore, NULL);
    sigprocmask(SIG_SETMASK, &usual, NULL);
    if (pid < 0)
        return say("fork");
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return say("wait");
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int awake_main(int argc, char **argv) {
    static char payload[CHUNK_MAX + 1];
    struct lease lease = {.reason = "", .seconds = -1};
    struct message head;
    if (!parse(argc, argv, &lease)) {
        fputs("usage: awake [--for TIME] [--reason TEXT] [-- COMMAND [ARG ...]]\n", stderr);
        return FAILED;
    }
    autoclose int fd = hold(&lease);
    if (fd < 0)
        return say("lease");
    if (lease.command)
        return stay_with(lease.command);
    client_receive(fd, lease.seconds < 0 ? -1 : lease.seconds * 1000, &head, payload);
    return errno == ETIMEDOUT ? 0 : say("lease");
}
