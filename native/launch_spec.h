/* The launch spec (protocol.h), parsed.  All text points into one buffer that lives as long as the process. */
#pragma once
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pair {
    char *key;
    char *value; /* NULL in lists of plain strings */
};

struct list {
    struct pair *at;
    size_t count;
};

enum net { NET_PRIVATE = 1, NET_HOST, NET_GIVEN };

enum call_group {
    GROUP_ALWAYS, /* no word lifts it */
    GROUP_IO_URING,
    GROUP_LANDLOCK,
    GROUP_USERFAULTFD,
    GROUP_PERF,
    GROUP_BPF,
    GROUP_KEYRING,
    GROUP_NAMESPACES,
    GROUP_FANOTIFY,
    GROUP_MEMFD_SECRET,
    GROUP_DEVICES,
    GROUP_COUNT,
};

struct spec {
    char *version, *cgroup, *stage, *upper, *work, *hostname, *listen, *init;
    struct list metas, blobs, targets; /* as many of each */
    char *kdat, *program, *pidfile, *preload;
    struct list cgroup1, trees, lowers, overlay, binds, rlimits, writes, args, guests, warm;
    uint32_t first, count; /* id range; count 0: the host's user namespace */
    enum net net;
    int images_fd, tasks_fd, door_fd, group_fd, status_fd;
    int net_fd, uts_fd, hold_fd, init_fd, keep_fd, std_fd[3]; /* -1: not given */
    struct in_addr address, netmask, gateway;                 /* address 0: not given */
    bool has_address, has_gateway, has_shm;
    bool up, lock, close, detach;
    long long shm;
    uint32_t allow; /* bits by enum call_group */
};

enum verb { VERB_RUN = 1, VERB_MOUNT = 2, VERB_UNMOUNT = 4, VERB_CRIU = 8, VERB_NETWORK = 16, VERB_PAGES = 32 };

/*
 * Read the head of a spec from descriptor 0, up to the empty record that ends it, or all of it where there is none; check
 * what it says, not yet what it lacks but for the keys that a launch begins with.  0, or -1 with errno and *about the key
 * at fault (EINVAL: unknown, malformed, repeated, missing, too late, over a limit; EBADF: a descriptor that isn't open).
 */
int spec_head(struct spec *spec, enum verb verb, const char **about);

/* Whether there is a body to wait for. */
bool spec_divided(void);

/* Wait for the body, to the end of descriptor 0, and take it too: the spec is whole then.  As above. */
int spec_body(struct spec *spec, enum verb verb, const char **about);

/* In a process that was forked after the head, when the one that forked it has the body: take that as well. */
int spec_body_again(struct spec *spec, enum verb verb, const char **about);
