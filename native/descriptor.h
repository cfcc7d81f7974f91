/* Descriptors that go from process to process with a byte of no meaning, as criu sends its own. */
#pragma once
#include <string.h>
#include <sys/socket.h>

union descriptor_room {
    struct cmsghdr head;
    char bytes[CMSG_SPACE(sizeof(int))];
};

/* The next one that comes, -1 when there is none. */
static inline int descriptor_take(int from) {
    char byte;
    union descriptor_room room;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
    int fd = -1;
    if (recvmsg(from, &message, MSG_CMSG_CLOEXEC) != 1)
        return -1;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head && head->cmsg_type == SCM_RIGHTS && head->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(head), sizeof fd);
    return fd;
}

static inline int descriptor_give(int to, int fd) {
    union descriptor_room room = {
        .head = {.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec part = {"", 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
    memcpy(CMSG_DATA(&room.head), &fd, sizeof fd);
    return sendmsg(to, &message, MSG_NOSIGNAL) < 0 ? -1 : 0;
}
