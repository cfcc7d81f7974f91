/*
 * serac-launch: what its parts share.  A launch is two processes, the launcher and the job's first process, and each
 * runs a list of actions (launch.c, launch_job.c); an action belongs to a step, and a step is what a report names.
 *
 *   launch.c           the verbs, the launcher's actions, the report
 *   launch_spec.c      the launch spec (protocol.h), checked as a whole before anything is done with it
 *   launch_input.c     where it comes from, in two parts
 *   launch_clone.c     the job's first process is born: cgroups, id maps, limits
 *   launch_layers.c    trees, idmaps, the overlay
 *   launch_warm.c      a long chain, read side by side
 *   launch_fs.c        the kernel's mount interface, by descriptors
 *   launch_job.c       the actions of the job's first process, up to the exec of init
 *   launch_mounts.c    what is mounted inside, pivot_root
 *   launch_network.c   loopback, addresses, route
 *   launch_lock.c      a network that stands still
 *   launch_close.c     the end of connections that lead outside
 *   launch_netlink.c   what both say to the kernel
 *   launch_files.c     files put into the job: `write`, `init`, `listen`
 *   launch_sandbox.c   descriptors, capabilities, hostname
 *   launch_seccomp.c   the system call filter (filter.c), loaded
 *   launch_image.c     `mount` and `unmount` of EROFS images
 *   launch_criu.c      `criu`: what criu sees of the host and of the job
 *   launch_pages.c     `pages`: memory that comes in while the job runs, and who watches over that
 *   launch_pager.c     who asks for it, by userfaultfd
 *   launch_space.c     bringing it into one process
 *   launch_pagemap.c   which memory, and where it lies in criu's images
 */
#pragma once
#include "cleanup.h"
#include "launch_spec.h"

#include <errno.h>
#include <limits.h>
#include <sys/types.h>
#include <unistd.h>

enum step {
    STEP_NONE,
    STEP_SPEC,
    STEP_CGROUP,
    STEP_USERNS,
    STEP_TREES,
    STEP_OVERLAY,
    STEP_CLONE,
    STEP_NETWORK,
    STEP_MOUNTS,
    STEP_FILES,
    STEP_SANDBOX,
    STEP_EXEC,
    STEP_MOUNT,
    STEP_UNMOUNT,
    STEP_LOCK,
    STEP_CLOSE,
    STEP_PAGES,
    STEP_COUNT,
};

/* Why a step did not succeed; `path` is what it was about: a path, a key of the spec, or the kernel's own words. */
struct failure {
    enum step step;
    int error;
    char path[1024];
};

/* What the job's first process tells the launcher: one packet. */
struct note {
    struct failure failure;
    unsigned took[STEP_COUNT];
};

#define MASKS 4 /* files of proc that a job doesn't see */

/* A mount namespace and the root directory in it; -1: not opened. */
struct world {
    int namespace, root;
};

struct launch {
    struct spec spec;
    struct failure failure;
    unsigned took[STEP_COUNT]; /* microseconds */
    enum verb verb;
    pid_t pid;    /* the job's first process; 0 before it is born and in itself */
    pid_t own;    /* the launcher's, of which that is a child */
    pid_t engine; /* of which the launcher is one */
    int link;     /* to the other side: a SOCK_SEQPACKET pair */
    int link_job; /* its other end, until the clone */
    bool heard;   /* that its namespaces are there */
    int cgroup;
    int kdat, pidfile;
    int device;        /* /dev/userfaultfd */
    int userns;        /* the job's user namespace; -1: the host's */
    struct world host; /* that the launcher came from */
    int *binds;        /* detached copies of the trees in `spec.binds` */
    int null;          /* the null device inside, or the host's where the job broke its own */
    int masks[MASKS];  /* detached copies of it */
    int proc, sys;     /* detached mounts */
    int listener;
    int lock;      /* the socket that owns the table; -1: none */
    size_t guests; /* of `spec.guests`, how many are on lo */
    long long closed;
    struct mover *mover;
};

struct action {
    enum step step;
    int (*run)(struct launch *launch);
    bool waits; /* for another process: the time isn't the step's */
};
#define RUN(name, function)                                                                                            \
    { STEP_##name, function, false }
#define WAIT(name, function)                                                                                           \
    { STEP_##name, function, true }

/* Run the actions in order and time them; -1 at the first that fails, with launch->failure filled in. */
int actions_run(struct launch *launch, const struct action *actions, size_t count);

/* Note errno and what it was about; always -1, so that a step can `return fail(launch, path)`. */
int fail(struct launch *launch, const char *path);

/* launch.c: the next note of the job: 1, or 0 when it closed the link, or -1; why a closed link is a failure. */
int note_take(struct launch *launch);
int job_lost(struct launch *launch);

/* launch_clone.c */
void die_with(pid_t parent);
int cgroup_open(struct launch *launch);
int job_clone(struct launch *launch);
int cgroups_join(struct launch *launch);
int cgroups_joined(struct launch *launch);
int ids_map(struct launch *launch);
int limits_set(struct launch *launch);
void job_kill(struct launch *launch);

/* launch_layers.c */
int stage_mount(struct launch *launch);
int trees_attach(struct launch *launch);
int layers_warm(struct launch *launch); /* launch_warm.c */
int sysfs_lend(struct launch *launch);
int root_mount(struct launch *launch);
#define STAGE_ROOT ".root" /* names of trees have no dot */
#define STAGE_SYSFS ".sysfs"

/* launch_job.c: the job's first process, which does not return; its words with the launcher. */
_Noreturn void job_main(struct launch *launch);
int launcher_tell(struct launch *launch);
int launcher_await(struct launch *launch);

/* launch_criu.c: the process that becomes criu, which does not return; what it sees; and its end. */
_Noreturn void criu_main(struct launch *launch);
int cache_open(struct launch *launch);
int pidfile_open(struct launch *launch);
int pidfile_leave(struct launch *launch);
int view_mount(struct launch *launch);
int userns_make(struct launch *launch);
int layers_mount(struct launch *launch);
int view_fill(struct launch *launch);
int criu_await(struct launch *launch);
int standard_close(void);

/* launch_pages.c: the process that becomes the guard and starts the pager, which does not return. */
_Noreturn void pages_main(struct launch *launch);

/* launch_mounts.c */
int root_enter(struct launch *launch);
int mounts_make(struct launch *launch);

/* launch_network.c */
int network_enter(struct launch *launch);
int network_make(struct launch *launch);
int address_set(struct launch *launch);
int uplink_set(struct launch *launch);
int loopback_raise(struct launch *launch);
int guests_put(struct launch *launch);
int guests_drop(struct launch *launch);
void guests_abandon(struct launch *launch);

/* launch_lock.c */
int network_lock(struct launch *launch);
int network_unlock(struct launch *launch);

/* launch_close.c */
int outside_close(struct launch *launch);

/* launch_files.c */
int files_write(struct launch *launch);
int init_copy(struct launch *launch);
int socket_listen(struct launch *launch);

/* launch_sandbox.c */
int uts_enter(struct launch *launch);
int hostname_set(struct launch *launch);
int descriptors_place(struct launch *launch);
int signals_reset(struct launch *launch);
int keyring_make(struct launch *launch);
int privileges_drop(struct launch *launch);
int limit_parse(const char *text, int *resource, unsigned long long *soft, unsigned long long *hard);

/* launch_seccomp.c */
int filter_load(struct launch *launch);

/* launch_image.c */
int images_mount(struct launch *launch);
int images_unmount(struct launch *launch);
