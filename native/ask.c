#include "ask.h"

#include "cleanup.h"
#include "protocol.h"
#include "records.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

static const char socket_path[] = "/run/serac/init.sock";

static int say(const char *what) {
    fprintf(stderr, "serac-init ask: %s: %s\n", what, strerror(errno));
    return 2;
}

static int dial(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, socket_path, sizeof socket_path);
    autoclose int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -1;
    return steal_fd(&fd);
}

static int send_question(int fd, int argc, char **argv) {
    struct writer records = {0};
    record_put(&records, "reason", argc > 2 ? argv[2] : "");
    if (argc > 3)
        record_put(&records, "state", argv[3]);
    autofree char *owned = records.bytes;
    struct message head = {.type = M_ASK, .length = (uint32_t)records.size};
    struct iovec parts[] = {{&head, sizeof head}, {owned, records.size}};
    if (records.failed || records.size > CHUNK_MAX) {
        errno = E2BIG;
        return -1;
    }
    return writev(fd, parts, 2) < 0 ? -1 : 0;
}

/* The next message that is not a greeting: its type, -1 with errno. */
static int receive(int fd, struct message *head, char payload[CHUNK_MAX + 1]) {
    do {
        struct iovec parts[] = {{head, sizeof *head}, {payload, CHUNK_MAX}};
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

static int print_answer(char *payload, size_t size) {
    struct reader reader = {payload, payload + size};
    char *key, *value;
    int result = 2;
    while (record_next(&reader, &key, &value) == 1) {
        printf("%s=%s\n", key, value);
        if (strcmp(key, "outcome") == 0)
            result = strcmp(value, "refused") == 0;
    }
    return fflush(stdout) == 0 ? result : 2;
}

int ask_main(int argc, char **argv) {
    static char payload[CHUNK_MAX + 1];
    struct message head;
    if (argc > 4) {
        errno = E2BIG;
        return say("arguments");
    }
    autoclose int fd = dial();
    if (fd < 0)
        return say(socket_path);
    if (send_question(fd, argc, argv) < 0 || receive(fd, &head, payload) != M_ANSWER)
        return say("no answer");
    return print_answer(payload, head.length);
}
