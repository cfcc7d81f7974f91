#include "launch.h"
#include "launch_netlink.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/route.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define UPLINK "eth0"

/* The launcher goes in before the clone: the namespace isn't the job's, whose rights would not do. */
int network_enter(struct launch *launch) {
    if (launch->spec.net != NET_GIVEN)
        return 0;
    return setns(launch->spec.net_fd, CLONE_NEWNET) < 0 ? fail(launch, "net") : 0;
}

static int link_turn(int fd, const char *name, bool up) {
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
        return -1;
    request.ifr_flags = (short)(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
    return ioctl(fd, SIOCSIFFLAGS, &request);
}

int network_make(struct launch *launch) {
    bool private = launch->spec.net == NET_PRIVATE;
    if (unshare(CLONE_NEWIPC | CLONE_NEWUTS | (private ? CLONE_NEWNET : 0)) < 0)
        return fail(launch, "namespaces");
    autoclose int fd = private ? socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0) : -1;
    if (private && (fd < 0 || link_turn(fd, "lo", true) < 0))
        return fail(launch, "lo");
    return 0;
}

static void address_fill(struct sockaddr *to, struct in_addr address) {
    struct sockaddr_in inet = {.sin_family = AF_INET, .sin_addr = address};
    memcpy(to, &inet, sizeof inet);
}

static int address_give(int fd, unsigned long what, struct in_addr address) {
    struct ifreq request = {.ifr_name = UPLINK};
    address_fill(&request.ifr_addr, address);
    return ioctl(fd, what, &request);
}

static int route_add(int fd, struct in_addr gateway) {
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    struct in_addr any = {INADDR_ANY};
    address_fill(&route.rt_dst, any);
    address_fill(&route.rt_genmask, any);
    address_fill(&route.rt_gateway, gateway);
    return ioctl(fd, SIOCADDRT, &route);
}

int address_set(struct launch *launch) {
    const struct spec *spec = &launch->spec;
    if (!spec->has_address)
        return 0;
    autoclose int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || address_give(fd, SIOCSIFADDR, spec->address) < 0 ||
        address_give(fd, SIOCSIFNETMASK, spec->netmask) < 0 || link_turn(fd, UPLINK, true) < 0)
        return fail(launch, UPLINK);
    return spec->has_gateway && route_add(fd, spec->gateway) < 0 ? fail(launch, "gateway") : 0;
}

/* In a namespace that lives on, an interface that can't be set as a whole is left as it was found. */
int uplink_set(struct launch *launch) {
    if (address_set(launch) == 0)
        return 0;
    autoclose int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    (void)address_give(fd, SIOCSIFADDR, (struct in_addr){INADDR_ANY});
    (void)link_turn(fd, UPLINK, false);
    return -1;
}

int loopback_raise(struct launch *launch) {
    if (!launch->spec.up)
        return 0;
    autoclose int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return fd < 0 || link_turn(fd, "lo", true) < 0 ? fail(launch, "lo") : 0;
}

static int guest_change(const char *guest, uint16_t what, uint16_t flags) {
    struct ifaddrmsg head = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = if_nametoindex("lo")};
    struct request request = {0};
    struct in_addr address;
    inet_pton(AF_INET, guest, &address); /* checked with the spec */
    message_begin(&request, what, NLM_F_ACK | flags, &head, sizeof head);
    attribute_put(&request, IFA_LOCAL, &address, sizeof address);
    attribute_put(&request, IFA_ADDRESS, &address, sizeof address);
    autoclose int fd = netlink_open(NETLINK_ROUTE);
    return fd < 0 ? -1 : netlink_ask(fd, &request);
}

int guests_put(struct launch *launch) {
    const struct list *guests = &launch->spec.guests;
    for (; launch->guests < guests->count; launch->guests++)
        if (guest_change(guests->at[launch->guests].key, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL) < 0)
            return fail(launch, guests->at[launch->guests].key);
    return 0;
}

static int guest_drop(struct launch *launch) {
    return guest_change(launch->spec.guests.at[--launch->guests].key, RTM_DELADDR, 0);
}

int guests_drop(struct launch *launch) {
    while (launch->guests)
        if (guest_drop(launch) < 0)
            return fail(launch, launch->spec.guests.at[launch->guests].key);
    return 0;
}

/* After a failure, which is what is told. */
void guests_abandon(struct launch *launch) {
    while (launch->guests)
        (void)guest_drop(launch);
}
