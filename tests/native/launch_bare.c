/* LD_PRELOAD for a dynamically linked serac-launch: a kernel that has no nf_tables. */
#include <dlfcn.h>
#include <errno.h>
#include <linux/netlink.h>
#include <sys/socket.h>

int socket(int family, int type, int protocol) {
    int (*real)(int, int, int) = dlsym(RTLD_NEXT, "socket");
    if (family != AF_NETLINK || protocol != NETLINK_NETFILTER)
        return real(family, type, protocol);
    errno = EPROTONOSUPPORT;
    return -1;
}
