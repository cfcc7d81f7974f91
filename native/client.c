#include "client.h"

#include "cleanup.h"
#include "loop.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

static const char socket_path[] = "/run/serac/init.sock";

int client_dial(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, socket_path, sizeof socket_path);
    autoclose int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -1;
    return steal_fd(&fd);
}

int client_send(int fd, uint8_t type, struct writer *records) {
    autofree char *owned = records->bytes;
    struct message head = {.type = type, .length = (uint32_t)records->size};
    struct iovec parts[] = {{&head, sizeof head}, {owned, records->size}};
    struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};
    if (records->failed || records->size > CHUNK_MAX) {
        errno = E2BIG;
        return -1;
    }
    return sendmsg(fd, &packet, MSG_NOSIGNAL) < 0 ? -1 : 0;
}

/* A pause in between doesn't count: the clock stands still with the job. */
static int wait_readable(int fd, int64_t deadline) {
    struct pollfd wanted = {.fd = fd, .events = POLLIN};
    int ready;
    do
        ready = poll(&wanted, 1, deadline < 0 ? -1 : clock_left(deadline));
    while (ready < 0 && errno == EINTR);
    if (ready == 0)
        errno = ETIMEDOUT;
    return ready == 1 ? 0 : -1;
}

int client_receive(int fd, long long patience, struct message *head, char payload[CHUNK_MAX + 1]) {
    int64_t deadline = patience < 0 ? -1 : clock_steady() + patience;
    do {
        struct iovec parts[] = {{head, sizeof *head}, {payload, CHUNK_MAX}};
        if (wait_readable(fd, deadline) < 0)
            return -1;
        ssize_t size = readv(fd, parts, 2);
        if (size < (ssize_t)sizeof *head || (size_t)size != sizeof *head + head->length) {
            errno = size < 0 ? errno : ECONNRESET;
            return -1;
        }
        payload[head->length] = 0;
    } while (head->type == M_HELLO);
    if (head->type == M_ERROR) {
        errno = (int)head->offset;
        return -1;
    }
    return head->type;
}

long long client_seconds(const char *text) {
    static const struct {
        char letter;
        int seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}};
    char digits[16];
    size_t length = strspn(text, "0123456789");
    long long number;
    int unit = text[length] ? 0 : 1;
    for (size_t at = 0; at < sizeof units / sizeof *units; at++)
        if (text[length] == units[at].letter && !text[length + 1])
            unit = units[at].seconds;
    if (!unit || length >= sizeof digits)
        return -1;
    memcpy(digits, text, length);
    digits[length] = 0;
    return number_parse(digits, 0, INT_MAX / 1000 / unit, &number) < 0 ? -1 : number * unit;
}
