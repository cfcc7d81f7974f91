/*
 * A job's init that answers questions, for test_launch.py.  Each argument is one; each answer goes to standard output,
 * ended by a NUL.  What a call returns is a number, negative for an errno.
 *   read PATH | link PATH | write PATH | stat PATH | call N ARGS.. | call32 N ARGS.. | fds | loopback | listen | wait
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void answer(const char *bytes, size_t size) {
    if (write(1, bytes, size) < 0 || write(1, "", 1) < 0)
        _exit(9);
}

static void answer_number(long number) {
    char text[32];
    answer(text, (size_t)snprintf(text, sizeof text, "%ld", number < 0 ? -(long)errno : number));
}

static void ask_read(const char *path) {
    static char bytes[1 << 16];
    ssize_t size = 0, got = 0;
    int fd = open(path, O_RDONLY);
    while (fd >= 0 && (got = read(fd, bytes + size, sizeof bytes - (size_t)size)) > 0)
        size += got;
    if (fd < 0 || got < 0)
        answer_number(-1);
    else
        answer(bytes, (size_t)size);
    close(fd);
}

static void ask_link(const char *path) {
    char target[4096];
    ssize_t size = readlink(path, target, sizeof target);
    if (size < 0)
        answer_number(-1);
    else
        answer(target, (size_t)size);
}

static void ask_write(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    answer_number(fd < 0 ? -1 : write(fd, "written", 7));
    close(fd);
}

static void ask_stat(const char *path) {
    struct stat status;
    char text[128];
    if (lstat(path, &status) < 0) {
        answer_number(-1);
        return;
    }
    answer(text, (size_t)snprintf(text, sizeof text, "%o %u %u %lx", status.st_mode, status.st_uid, status.st_gid,
                                  (unsigned long)status.st_rdev));
}

static void ask_call(char *words, int narrow) {
    long n[7] = {0};
    for (int i = 0; i < 7 && *words; i++)
        n[i] = (long)strtoull(words, &words, 0);
    if (!narrow) {
        answer_number(syscall(n[0], n[1], n[2], n[3], n[4], n[5], n[6]));
        return;
    }
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(n[0]), "b"(n[1]), "c"(n[2]), "d"(n[3]) : "memory", "r8", "r9", "r10", "r11");
    errno = result < 0 ? (int)-result : 0;
    answer_number((int)result);
#endif
}

static void ask_fds(void) {
    char all[4096] = "", path[64], target[256];
    for (int fd = 0; fd < 1024; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t size = readlink(path, target, sizeof target);
        if (size >= 0)
            snprintf(all + strlen(all), sizeof all - strlen(all), "%d=%.*s ", fd, (int)size, target);
    }
    answer(all, strlen(all));
}

static void ask_loopback(void) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof name;
    char byte = 0;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&name, size) < 0 || getsockname(fd, (struct sockaddr *)&name, &size) < 0 ||
        sendto(fd, "x", 1, 0, (struct sockaddr *)&name, size) < 0)
        answer_number(-1);
    else
        answer_number(recv(fd, &byte, 1, 0));
    close(fd);
}

/* Is descriptor 3 a listening socket of packets? */
static void ask_listen(void) {
    int on = 0, type = 0;
    socklen_t size = sizeof on;
    if (getsockopt(3, SOL_SOCKET, SO_ACCEPTCONN, &on, &size) < 0 || getsockopt(3, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
        answer_number(-1);
    else
        answer_number(on && type == SOCK_SEQPACKET);
}

int main(int count, char **words) {
    for (int i = 1; i < count; i++) {
        char *verb = strsep(&words[i], " "), *rest = words[i] ? words[i] : "", byte;
        if (!strcmp(verb, "read"))
            ask_read(rest);
        else if (!strcmp(verb, "link"))
            ask_link(rest);
        else if (!strcmp(verb, "write"))
            ask_write(rest);
        else if (!strcmp(verb, "stat"))
            ask_stat(rest);
        else if (!strncmp(verb, "call", 4))
            ask_call(rest, verb[4] != 0);
        else if (!strcmp(verb, "fds"))
            ask_fds();
        else if (!strcmp(verb, "loopback"))
            ask_loopback();
        else if (!strcmp(verb, "listen"))
            ask_listen();
        else if (!strcmp(verb, "wait"))
            answer_number(read(0, &byte, 1));
        else
            return 8;
    }
    return 0;
}
