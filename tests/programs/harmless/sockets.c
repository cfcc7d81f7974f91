#include "families.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_in loopback = {.sin_family = AF_INET};
static struct sockaddr_in6 loopback6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};

static int bound(int type) {
    socklen_t size = sizeof loopback;
    int fd = socket(AF_INET, type, 0);
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (void *)&loopback, size) < 0 || getsockname(fd, (void *)&loopback, &size) < 0)
        return -1;
    return fd;
}

static int connected(int type) {
    int fd = socket(AF_INET, type, 0);
    return fd >= 0 && connect(fd, (void *)&loopback, sizeof loopback) == 0 ? fd : -1;
}

static bool tcp_listening(void) {
    int fd = bound(SOCK_STREAM);
    return fd >= 0 && listen(fd, 4) == 0;
}

/* With bytes that nobody read. */
static bool tcp_connected(void) {
    int server = bound(SOCK_STREAM);
    if (server < 0 || listen(server, 4) < 0)
        return false;
    int client = connected(SOCK_STREAM);
    return accept(server, NULL, NULL) >= 0 && write(client, "kept", 4) == 4;
}

static bool tcp_half_closed(void) {
    int server = bound(SOCK_STREAM);
    if (server < 0 || listen(server, 4) < 0)
        return false;
    int client = connected(SOCK_STREAM);
    return accept(server, NULL, NULL) >= 0 && shutdown(client, SHUT_WR) == 0;
}

static bool tcp6_connected(void) {
    socklen_t size = sizeof loopback6;
    int server = socket(AF_INET6, SOCK_STREAM, 0), client = socket(AF_INET6, SOCK_STREAM, 0);
    if (bind(server, (void *)&loopback6, size) < 0 || getsockname(server, (void *)&loopback6, &size) < 0)
        return false;
    if (listen(server, 4) < 0 || connect(client, (void *)&loopback6, size) < 0)
        return false;
    return accept(server, NULL, NULL) >= 0;
}

static bool tcp_unused(void) {
    return socket(AF_INET, SOCK_STREAM, 0) >= 0;
}

static bool udp_connected(void) {
    return bound(SOCK_DGRAM) >= 0 && connected(SOCK_DGRAM) >= 0;
}

static bool udp6(void) {
    struct sockaddr_in6 any = {.sin6_family = AF_INET6};
    int fd = socket(AF_INET6, SOCK_DGRAM, 0);
    return fd >= 0 && bind(fd, (void *)&any, sizeof any) == 0;
}

static bool raw(void) {
    return socket(AF_INET, SOCK_RAW, 253) >= 0;
}

static bool packet(void) {
    return socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ARP)) >= 0;
}

static bool netlink(void) {
    struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    return fd >= 0 && bind(fd, (void *)&name, sizeof name) == 0;
}

static bool pair(int type) {
    int fds[2];
    return socketpair(AF_UNIX, type, 0, fds) == 0 && write(fds[0], "kept", 4) == 4;
}

static bool unix_stream(void) {
    return pair(SOCK_STREAM);
}

static bool unix_datagram(void) {
    return pair(SOCK_DGRAM);
}

static bool unix_packets(void) {
    return pair(SOCK_SEQPACKET);
}

/* A descriptor on its way. */
static bool unix_rights(void) {
    int fds[2];
    char control[CMSG_SPACE(sizeof(int))] = {0}, text = 'x';
    struct iovec data = {&text, 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
        return false;
    *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(head), fds, sizeof(int));
    return sendmsg(fds[0], &message, 0) == 1;
}

/* Not accepted, and without a byte. */
static bool unix_waiting(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/tmp/waiting"};
    int server = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(server, (void *)&name, sizeof name) < 0 || listen(server, 4) < 0)
        return false;
    return connect(client, (void *)&name, sizeof name) == 0;
}

static bool unix_abstract(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "\0abstract"};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    return fd >= 0 && bind(fd, (void *)&name, sizeof name) == 0;
}

const struct kind socket_kinds[] = {
    {"tcp-listening", tcp_listening},
    {"tcp-connected", tcp_connected},
    {"tcp-half-closed", tcp_half_closed},
    {"tcp6-connected", tcp6_connected},
    {"tcp-unused", tcp_unused},
    {"udp-connected", udp_connected},
    {"udp6", udp6},
    {"raw", raw},
    {"packet", packet},
    {"netlink", netlink},
    {"unix-stream", unix_stream},
    {"unix-datagram", unix_datagram},
    {"unix-packets", unix_packets},
    {"unix-rights", unix_rights},
    {"unix-waiting", unix_waiting},
    {"unix-abstract", unix_abstract},
    {NULL, NULL},
};
