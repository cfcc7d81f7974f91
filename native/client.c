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
#include <time.h>
#include <unistd.h>

#define TRIES 100 /* of one request, each lost to another pause */

static const char socket_path[] = "/run/serac/init.sock";

static int dial(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, socket_path, sizeof socket_path);
    autoclose int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -1;
    return steal_fd(&fd);
}

static int send_records(int fd, uint8_t type, const struct writer *records) {
    struct message head = {.type = type, .length = (uint32_t)records->size};
    struct iovec parts[] = {{&head, sizeof head}, {records->bytes, records->size}};
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

static int64_t deadline_of(long long patience) {
    return patience < 0 ? -1 : clock_steady() + patience;
}

static int receive(int fd, int64_t deadline, struct message *head, char payload[CHUNK_MAX + 1]) {
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

int client_receive(int fd, long long patience, struct message *head, char payload[CHUNK_MAX + 1]) {
    return receive(fd, deadline_of(patience), head, payload);
}

/* Init closes its door for a pause, and hangs up on whoever comes just then: whoever knocks again is let in after it. */
int client_request(int *fd, uint8_t type, struct writer *records, long long patience, struct message *head,
                   char payload[CHUNK_MAX + 1]) {
    autofree char *owned = records->bytes;
    int64_t deadline = deadline_of(patience);
    const struct timespec moment = {.tv_nsec = 20 * 1000000};
    int reply = -1;
    for (int tries = 0; tries < TRIES; tries++) {
        *fd = dial();
        if (*fd >= 0 && send_records(*fd, type, records) == 0)
            reply = receive(*fd, deadline, head, payload);
        if (*fd < 0 || reply >= 0 || (errno != ECONNRESET && errno != EPIPE))
            break;
        close(steal_fd(fd));
        nanosleep(&moment, NULL);
    }
    return reply;
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
