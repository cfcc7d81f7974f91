/*
 * The end of TCP connections that lead out of a namespace: the kernel destroys the sockets (SOCK_DESTROY), and whoever
 * holds them finds ECONNABORTED.  A connection stays when both its ends are addresses of the namespace's own.
 */
#include "launch.h"
#include "launch_netlink.h"

#include <linux/inet_diag.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/tcp.h>
#include <string.h>

#define ADDRESSES_MAX 4096
#define ROUNDS_MAX 1000

/* All but listening sockets, and those that no process has any more. */
#define STATES                                                                                                         \
    (1u << TCP_ESTABLISHED | 1u << TCP_SYN_SENT | 1u << TCP_SYN_RECV | 1u << TCP_FIN_WAIT1 | 1u << TCP_FIN_WAIT2 |     \
     1u << TCP_CLOSE_WAIT | 1u << TCP_LAST_ACK | 1u << TCP_CLOSING)

struct closing {
    struct in6_addr own[ADDRESSES_MAX];
    size_t count;
    int fd; /* destroys, while another socket lists */
    long long closed;
};

/* IPv4 in the form that a socket of IPv6 gives it. */
static struct in6_addr address_make(int family, const void *bytes) {
    struct in6_addr address = {.s6_addr = {[10] = 0xff, [11] = 0xff}};
    if (family == AF_INET)
        memcpy(address.s6_addr + 12, bytes, sizeof(struct in_addr));
    else
        memcpy(&address, bytes, sizeof address);
    return address;
}

static int own_add(struct closing *closing, struct in6_addr address) {
    if (closing->count == ADDRESSES_MAX) {
        errno = E2BIG;
        return -1;
    }
    closing->own[closing->count++] = address;
    return 0;
}

/* On a link between two points IFA_ADDRESS is the other end's, then there is IFA_LOCAL as well. */
static int own_take(void *context, const struct nlmsghdr *message) {
    const struct ifaddrmsg *head = NLMSG_DATA(message);
    const struct rtattr *found = NULL;
    int left = (int)IFA_PAYLOAD(message);
    if (message->nlmsg_type != RTM_NEWADDR || (head->ifa_family != AF_INET && head->ifa_family != AF_INET6))
        return 0;
    for (const struct rtattr *at = IFA_RTA(head); RTA_OK(at, left); at = RTA_NEXT(at, left))
        if (at->rta_type == IFA_LOCAL || (at->rta_type == IFA_ADDRESS && !found))
            found = at;
    size_t size = head->ifa_family == AF_INET ? sizeof(struct in_addr) : sizeof(struct in6_addr);
    if (!found || RTA_PAYLOAD(found) < size)
        return 0;
    return own_add(context, address_make(head->ifa_family, RTA_DATA(found)));
}

static int own_read(struct closing *closing) {
    struct ifaddrmsg any = {.ifa_family = AF_UNSPEC};
    struct request request = {0};
    autoclose int fd = netlink_open(NETLINK_ROUTE);
    message_begin(&request, RTM_GETADDR, NLM_F_DUMP, &any, sizeof any);
    return fd < 0 ? -1 : netlink_dump(fd, &request, own_take, closing);
}

static bool is_own(const struct closing *closing, const struct in6_addr *address) {
    if (IN6_IS_ADDR_LOOPBACK(address) || (IN6_IS_ADDR_V4MAPPED(address) && address->s6_addr[12] == IN_LOOPBACKNET))
        return true;
    for (size_t i = 0; i < closing->count; i++)
        if (IN6_ARE_ADDR_EQUAL(&closing->own[i], address))
            return true;
    return false;
}

/* A socket that went away by itself is none that was closed here. */
static int socket_destroy(struct closing *closing, const struct inet_diag_msg *found) {
    const struct inet_diag_req_v2 which = {
        .sdiag_family = found->idiag_family, .sdiag_protocol = IPPROTO_TCP, .id = found->id};
    struct request request = {0};
    message_begin(&request, SOCK_DESTROY, NLM_F_ACK, &which, sizeof which);
    if (netlink_ask(closing->fd, &request) < 0)
        return errno == ENOENT ? 0 : -1;
    closing->closed++;
    return 0;
}

static int socket_take(void *context, const struct nlmsghdr *message) {
    const struct inet_diag_msg *found = NLMSG_DATA(message);
    if (message->nlmsg_len < NLMSG_LENGTH(sizeof *found))
        return 0;
    struct in6_addr from = address_make(found->idiag_family, found->id.idiag_src);
    struct in6_addr to = address_make(found->idiag_family, found->id.idiag_dst);
    return is_own(context, &from) && is_own(context, &to) ? 0 : socket_destroy(context, found);
}

static int family_close(struct closing *closing, int family) {
    const struct inet_diag_req_v2 all = {
        .sdiag_family = (uint8_t)family, .sdiag_protocol = IPPROTO_TCP, .idiag_states = STATES};
    struct request request = {0};
    autoclose int fd = netlink_open(NETLINK_SOCK_DIAG);
    message_begin(&request, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &all, sizeof all);
    return fd < 0 ? -1 : netlink_dump(fd, &request, socket_take, closing);
}

/* A list that shrinks while it is read leaves some out, so there are rounds until one finds none. */
static int all_close(struct closing *closing) {
    for (int round = 0; round < ROUNDS_MAX; round++) {
        long long before = closing->closed;
        if (family_close(closing, AF_INET) < 0 || family_close(closing, AF_INET6) < 0)
            return -1;
        if (closing->closed == before)
            return 0;
    }
    errno = EAGAIN;
    return -1;
}

int outside_close(struct launch *launch) {
    static struct closing closing;
    if (!launch->spec.close)
        return 0;
    autoclose int fd = closing.fd = netlink_open(NETLINK_SOCK_DIAG);
    if (fd < 0 || own_read(&closing) < 0 || all_close(&closing) < 0)
        return fail(launch, "sock_diag");
    launch->closed = closing.closed;
    return 0;
}
