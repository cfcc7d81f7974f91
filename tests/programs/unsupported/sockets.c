#include "families.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_in loopback = {.sin_family = AF_INET};

static int bound(int type, int protocol) {
    socklen_t size = sizeof loopback;
    int fd = socket(AF_INET, type, protocol);
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (void *)&loopback, size) < 0 || getsockname(fd, (void *)&loopback, &size) < 0)
        return -1;
    return fd;
}

static int connected(int type, int protocol) {
    int fd = socket(AF_INET, type, protocol);
    return fd >= 0 && connect(fd, (void *)&loopback, sizeof loopback) == 0 ? fd : -1;
}

static bool says(int fd, const char *text) {
    return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

static int listening(int backlog) {
    int fd = bound(SOCK_STREAM, 0);
    return fd >= 0 && listen(fd, backlog) == 0 ? fd : -1;
}

static bool tcp_unaccepted(void) {
    return listening(4) >= 0 && says(connected(SOCK_STREAM, 0), "hello");
}

/* Nobody accepts, and there is room for one. */
static bool tcp_connecting(void) {
    if (listening(0) < 0 || connected(SOCK_STREAM, 0) < 0)
        return false;
    return connected(SOCK_STREAM | SOCK_NONBLOCK, 0) < 0;
}

/* Closed with more to send than the peer, which doesn't read, has room for. */
static bool tcp_unsent(void) {
    static const char text[1 << 16];
    int server = listening(4), client = connected(SOCK_STREAM, 0), accepted = accept(server, NULL, NULL);
    if (client < 0 || accepted < 0)
        return false;
    while (send(accepted, text, sizeof text, MSG_DONTWAIT) > 0) {
    }
    return close(accepted) == 0 && close(server) == 0;
}

static bool mptcp(void) {
    int fd = bound(SOCK_STREAM, IPPROTO_MPTCP);
    return fd >= 0 && listen(fd, 4) == 0;
}

static bool udp_unread(void) {
    return bound(SOCK_DGRAM, 0) >= 0 && says(connected(SOCK_DGRAM, 0), "hello");
}

static bool udp_corked(void) {
    int on = 1, client = bound(SOCK_DGRAM, 0) < 0 ? -1 : connected(SOCK_DGRAM, 0);
    return client >= 0 && setsockopt(client, IPPROTO_UDP, UDP_CORK, &on, sizeof on) == 0 && says(client, "hello");
}

static bool raw_unread(void) {
    int fd = socket(AF_INET, SOCK_RAW, 253);
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return fd >= 0 && sendto(fd, "hello", 5, 0, (void *)&loopback, sizeof loopback) == 5;
}

static bool packet_unread(void) {
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)), server = bound(SOCK_DGRAM, 0);
    char text[8];
    return fd >= 0 && says(connected(SOCK_DGRAM, 0), "hello") && read(server, text, sizeof text) == 5;
}

static bool netlink_unread(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct {
        struct nlmsghdr head;
        struct rtgenmsg body;
    } ask = {{sizeof ask, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {AF_UNSPEC}};
    return fd >= 0 && send(fd, &ask, sizeof ask, 0) == sizeof ask;
}

static bool multicast(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ip_mreq group = {{inet_addr("224.0.0.251")}, {htonl(INADDR_LOOPBACK)}};
    return fd >= 0 && setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) == 0;
}

static bool multicast6(void) {
    int fd = socket(AF_INET6, SOCK_DGRAM, 0);
    struct ipv6_mreq group = {.ipv6mr_interface = 1};
    inet_pton(AF_INET6, "ff02::fb", &group.ipv6mr_multiaddr);
    return fd >= 0 && setsockopt(fd, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &group, sizeof group) == 0;
}

static bool xdp(void) {
    return socket(44 /* AF_XDP */, SOCK_RAW, 0) >= 0;
}

static struct sockaddr_un named = {.sun_family = AF_UNIX, .sun_path = "/tmp/socket"};

static int unix_listening(void) {
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd >= 0 && bind(fd, (void *)&named, sizeof named) == 0 && listen(fd, 4) == 0 ? fd : -1;
}

static bool unix_unaccepted(void) {
    int client = unix_listening() < 0 ? -1 : socket(AF_UNIX, SOCK_STREAM, 0);
    return client >= 0 && connect(client, (void *)&named, sizeof named) == 0 && says(client, "hello");
}

/* Serves who comes from outside. */
static bool unix_outside(void) {
    return accept(unix_listening(), NULL, NULL) >= 0;
}

/* Is a client of who listens outside. */
static bool unix_client(void) {
    struct sockaddr_un outside = {.sun_family = AF_UNIX, .sun_path = "/run/serac/outside"};
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(client, (void *)&outside, sizeof outside) == 0;
}

/* Takes a descriptor from who comes from outside. */
static bool lent_file(void) {
    char control[CMSG_SPACE(sizeof(int))], text;
    struct iovec data = {&text, 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    int fd = accept(unix_listening(), NULL, NULL);
    return recvmsg(fd, &message, 0) == 1 && message.msg_controllen > 0 && close(fd) == 0;
}

static bool unix_credentials(void) {
    int pair[2], on = 1;
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0)
        return false;
    return setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0 && says(pair[0], "hello");
}

const struct kind socket_kinds[] = {
    {"tcp-unaccepted", tcp_unaccepted},
    {"tcp-connecting", tcp_connecting},
    {"tcp-unsent", tcp_unsent},
    {"mptcp", mptcp},
    {"udp-unread", udp_unread},
    {"udp-corked", udp_corked},
    {"raw-unread", raw_unread},
    {"packet-unread", packet_unread},
    {"netlink-unread", netlink_unread},
    {"multicast", multicast},
    {"multicast6", multicast6},
    {"xdp", xdp},
    {"unix-unaccepted", unix_unaccepted},
    {"unix-credentials", unix_credentials},
    {"unix-outside", unix_outside},
    {"unix-client", unix_client},
    {"lent-file", lent_file},
    {NULL, NULL},
};
