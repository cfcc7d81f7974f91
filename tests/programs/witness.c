/*
 * A witness of what is done to a job: processes that notice when something of theirs is lost.
 *
 *   witness FILE CHILDREN KIB
 *
 * Ten milliseconds apart, by a timer of the kernel's, a round is made: a number goes over TCP on loopback to a process
 * that answers with its own count of rounds and of its alarms; and once through a ring of CHILDREN processes, joined
 * by pipes, each of which compares it with its own count and looks through its KIB kibibytes of memory.  One of the
 * processes holds a file whose name is gone and that still has another one.  FILE has the count of rounds and of
 * alarms and the time of birth, and in the end what is wrong.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int report;
static volatile sig_atomic_t alarms;

struct answer {
    uint64_t rounds, alarms;
};

static void wrong(const char *what) {
    char line[160];
    int size = snprintf(line, sizeof line, "wrong: %s: %s\n", what, strerror(errno));
    if (pwrite(report, line, (size_t)size, 0) < 0)
        perror(what);
    kill(0, SIGKILL);
}

static void get(int fd, void *to, size_t size, const char *what) {
    for (size_t done = 0; done < size;) {
        ssize_t got = read(fd, (char *)to + done, size - done);
        if (got <= 0 && errno != EINTR)
            wrong(what);
        done += got > 0 ? (size_t)got : 0;
    }
}

static void put(int fd, const void *from, size_t size, const char *what) {
    if (write(fd, from, size) != (ssize_t)size)
        wrong(what);
}

static void alarm_count(int number) {
    (void)number;
    alarms++;
}

static void serve(int listener) {
    struct itimerval often = {{0, 20000}, {0, 20000}};
    struct sigaction action = {.sa_handler = alarm_count, .sa_flags = SA_RESTART};
    int peer = accept(listener, NULL, NULL);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    for (uint64_t rounds = 1, asked;; rounds++) {
        get(peer, &asked, sizeof asked, "the server's connection");
        if (asked != rounds)
            wrong("the server's count");
        struct answer answer = {rounds, (uint64_t)alarms};
        put(peer, &answer, sizeof answer, "the server's connection");
    }
}

static void pass_on(int from, int to, uint64_t place, size_t size) {
    unsigned char *memory = malloc(size + 1);
    memset(memory, (int)place, size);
    for (uint64_t rounds = 1, token;; rounds++) {
        get(from, &token, sizeof token, "a pipe");
        for (size_t i = 0; i < size; i++)
            if (memory[i] != (unsigned char)place)
                wrong("memory");
        if (token++ != rounds + place)
            wrong("a child's count");
        put(to, &token, sizeof token, "a pipe");
    }
}

static pid_t child(void) {
    pid_t pid = fork();
    if (pid < 0)
        wrong("fork");
    return pid;
}

static int connect_server(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&here, size) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&here, &size) < 0)
        wrong("listen");
    if (child() == 0) {
        close(client);
        serve(listener);
    }
    close(listener);
    if (connect(client, (struct sockaddr *)&here, size) < 0)
        wrong("connect");
    return client;
}

static int ring(int last, int children, size_t size) {
    for (int place = 0; place < children; place++) {
        int ends[2];
        if (pipe(ends) < 0)
            wrong("pipe");
        if (child() == 0)
            pass_on(last, ends[1], (uint64_t)place, size);
        close(last);
        close(ends[1]);
        last = ends[0];
    }
    return last;
}

/* Without its first name, with another: criu makes it a new one while it is restored. */
static int file_hold(void) {
    unlink("/held.2"); /* of a life before */
    int fd = open("/held.1", O_RDWR | O_CREAT, 0600);
    if (fd < 0 || write(fd, "held", 4) != 4 || link("/held.1", "/held.2") < 0 || unlink("/held.1") < 0)
        wrong("hold");
    return fd;
}

static void file_look(int fd) {
    char word[5] = "";
    if (pread(fd, word, 4, 0) != 4 || strcmp(word, "held") != 0)
        wrong("the held file");
}

int main(int count, char **words) {
    struct itimerspec often = {{0, 10000000}, {0, 10000000}};
    int children = count > 2 ? atoi(words[2]) : 0, ends[2];
    struct timespec born;
    clock_gettime(CLOCK_REALTIME, &born);
    size_t size = count > 3 ? (size_t)atoi(words[3]) << 10 : 0;
    if (count < 2 || (report = open(words[1], O_RDWR | O_CREAT, 0644)) < 0)
        return 2;
    int held = file_hold(), server = connect_server(), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    if (pipe(ends) < 0 || timerfd_settime(timer, 0, &often, NULL) < 0)
        wrong("timer");
    int last = ring(ends[0], children, size);
    for (uint64_t rounds = 1, ticks, token;; rounds++) {
        struct answer answer;
        char line[96];
        get(timer, &ticks, sizeof ticks, "the timer");
        put(server, &rounds, sizeof rounds, "the client's connection");
        get(server, &answer, sizeof answer, "the client's connection");
        if (answer.rounds != rounds)
            wrong("the client's count");
        token = rounds;
        put(ends[1], &token, sizeof token, "the ring");
        get(last, &token, sizeof token, "the ring");
        if (token != rounds + (uint64_t)children)
            wrong("the ring's count");
        file_look(held);
        int length = snprintf(line, sizeof line, "%llu %llu %lld%09ld\n", (unsigned long long)rounds,
                              (unsigned long long)answer.alarms, (long long)born.tv_sec, born.tv_nsec);
        if (pwrite(report, line, (size_t)length, 0) != length)
            wrong("the report");
    }
}
