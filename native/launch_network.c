#include "launch.h"

#include <fcntl.h>
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

static int link_up(int fd, const char *name) {
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
        return -1;
    request.ifr_flags |= IFF_UP;
    return ioctl(fd, SIOCSIFFLAGS, &request);
}

int network_make(struct launch *launch) {
    bool private = launch->spec.net == NET_PRIVATE;
    if (unshare(CLONE_NEWIPC | CLONE_NEWUTS | (private ? CLONE_NEWNET : 0)) < 0)
        return fail(launch, "namespaces");
    autoclose int fd = private ? socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0) : -1;
    if (private && (fd < 0 || link_up(fd, "lo") < 0))
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
        address_give(fd, SIOCSIFNETMASK, spec->netmask) < 0 || link_up(fd, UPLINK) < 0)
        return fail(launch, UPLINK);
    return spec->has_gateway && route_add(fd, spec->gateway) < 0 ? fail(launch, "gateway") : 0;
}
