#include "launch_netlink.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* The last message grows by as much; NULL when there is no room. */
static void *room_take(struct request *request, size_t size) {
    size_t whole = NLMSG_ALIGN(size);
    if (request->full || sizeof request->bytes - request->size < whole) {
        request->full = true;
        return NULL;
    }
    char *at = request->bytes + request->size;
    memset(at, 0, whole);
    request->size += whole;
    return at;
}

static void length_set(struct request *request) {
    ((struct nlmsghdr *)(request->bytes + request->message))->nlmsg_len = (uint32_t)(request->size - request->message);
}

void message_begin(struct request *request, uint16_t type, uint16_t flags, const void *body, size_t size) {
    size_t begin = request->size;
    struct nlmsghdr *head = room_take(request, NLMSG_HDRLEN + size);
    if (!head)
        return;
    *head = (struct nlmsghdr){.nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags};
    memcpy(NLMSG_DATA(head), body, size);
    request->message = begin;
    length_set(request);
}

void attribute_put(struct request *request, uint16_t type, const void *value, size_t size) {
    struct nlattr *head = room_take(request, NLA_HDRLEN + size);
    if (!head)
        return;
    *head = (struct nlattr){.nla_len = (uint16_t)(NLA_HDRLEN + size), .nla_type = type};
    if (size)
        memcpy((char *)head + NLA_HDRLEN, value, size);
    length_set(request);
}

size_t nest_begin(struct request *request, uint16_t type) {
    size_t nest = request->size;
    attribute_put(request, type | NLA_F_NESTED, NULL, 0);
    return nest;
}

void nest_end(struct request *request, size_t nest) {
    if (!request->full)
        ((struct nlattr *)(request->bytes + nest))->nla_len = (uint16_t)(request->size - nest);
}

int netlink_open(int protocol) {
    return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
}

static int request_send(int fd, const struct request *request) {
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    if (request->full) {
        errno = EMSGSIZE;
        return -1;
    }
    return sendto(fd, request->bytes, request->size, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0 ? -1 : 0;
}

static int error_take(const struct nlmsghdr *message) {
    const struct nlmsgerr *answer = NLMSG_DATA(message);
    errno = message->nlmsg_len < NLMSG_LENGTH(sizeof answer->error) ? EBADMSG : -answer->error;
    return errno ? -1 : 0;
}

/* 1 when the answer goes on, 0 when it is complete, -1 when it is an error. */
static int message_take(const struct nlmsghdr *message, int (*take)(void *, const struct nlmsghdr *), void *context) {
    if (message->nlmsg_type == NLMSG_ERROR)
        return error_take(message);
    if (message->nlmsg_type == NLMSG_DONE)
        return 0;
    return take && take(context, message) < 0 ? -1 : 1;
}

/* The kernel has answered by the time that a request is sent: an error comes before any acknowledgement. */
static int answer_read(int fd, int (*take)(void *, const struct nlmsghdr *), void *context) {
    _Alignas(NLMSG_ALIGNTO) char bytes[32 << 10]; /* no dump has longer packets */
    for (;;) {
        ssize_t got = recv(fd, bytes, sizeof bytes, 0);
        if (got < 0)
            return -1;
        const struct nlmsghdr *message = (const struct nlmsghdr *)bytes;
        for (int more; NLMSG_OK(message, (size_t)got); message = NLMSG_NEXT(message, got))
            if ((more = message_take(message, take, context)) <= 0)
                return more;
    }
}

int netlink_ask(int fd, const struct request *request) {
    return request_send(fd, request) < 0 ? -1 : answer_read(fd, NULL, NULL);
}

int netlink_dump(int fd, const struct request *request, int (*take)(void *, const struct nlmsghdr *), void *context) {
    return request_send(fd, request) < 0 ? -1 : answer_read(fd, take, context);
}
