/*
 * The job's mounts.  Proc and sysfs are made before the root is entered, because the kernel gives them to a user namespace
 * only while it sees one that nothing covers.  Where they go is looked up when the host's tree has been let go: until then
 * it lies on top of "/", where a "/.." in a symbolic link of the job's finds it.
 */
#include "launch.h"
#include "launch_fs.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#define EMPTY "/.serac/empty"

static int binds_copy(struct launch *launch) {
    const struct list *binds = &launch->spec.binds;
    launch->binds = calloc(binds->count + 1, sizeof *launch->binds);
    if (!launch->binds)
        return fail(launch, "bind");
    for (size_t i = 0; i < binds->count; i++)
        if ((launch->binds[i] = fs_copy(binds->at[i].key)) < 0)
            return fail(launch, binds->at[i].key);
    return 0;
}

/* The null device that covers what a job is not to see: its own, which travels with it; the host's only where the job's
 * has become something else. */
static int null_choose(struct launch *launch) {
    const struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
    struct stat status;
    autoclose int own = (int)syscall(SYS_openat2, AT_FDCWD, STAGE_ROOT "/dev/null", &how, sizeof how);
    if (own >= 0 && fstat(own, &status) == 0 && S_ISCHR(status.st_mode) && status.st_rdev == makedev(1, 3))
        launch->null = steal_fd(&own);
    else
        launch->null = open("/dev/null", O_PATH | O_CLOEXEC);
    return launch->null < 0 ? fail(launch, "/dev/null") : 0;
}

static int masks_make(struct launch *launch) {
    for (size_t i = 0; i < MASKS; i++)
        if ((launch->masks[i] = open_tree(launch->null, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)) < 0)
            return fail(launch, "/dev/null");
    return 0;
}

static int kernel_make(struct launch *launch) {
    bool lent = launch->spec.count && launch->spec.net != NET_PRIVATE;
    launch->proc = fs_mount("proc", NULL, 0, SEALED, NULL);
    if (launch->proc < 0)
        return fail(launch, "/proc");
    launch->sys = lent ? fs_copy(STAGE_SYSFS) : fs_mount("sysfs", NULL, 0, SEALED | MOUNT_ATTR_RDONLY, NULL);
    return launch->sys < 0 ? fail(launch, "/sys") : 0;
}

/* Mounts that were inherited across user namespaces are locked, which pivot_root refuses: the root is bound on itself.
 * pivot_root leaves the host's tree on top of the new root, where "." finds it. */
int root_enter(struct launch *launch) {
    if (unshare(CLONE_NEWNS) < 0)
        return fail(launch, "mount namespace");
    if (binds_copy(launch) < 0 || kernel_make(launch) < 0)
        return -1;
    autoclose int root = fs_copy(STAGE_ROOT);
    if (root < 0 || fs_attach(root, STAGE_ROOT) < 0)
        return fail(launch, "root");
    if (null_choose(launch) < 0 || masks_make(launch) < 0)
        return -1;
    if (chdir(STAGE_ROOT) < 0)
        return fail(launch, "root");
    if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return fail(launch, "pivot_root");
    return 0;
}

static int kernel_mount(struct launch *launch, const char *path, const char *type, const struct pair *options,
                        size_t count, unsigned attributes) {
    autoclose int mount = fs_mount(type, options, count, attributes, NULL);
    return mount < 0 || fs_attach(mount, path) < 0 ? fail(launch, path) : 0;
}

static int kernel_mounts(struct launch *launch) {
    char size[24];
    snprintf(size, sizeof size, "%lld", launch->spec.shm);
    const struct pair pts[] = {{"newinstance", NULL}, {"ptmxmode", "0666"}, {"mode", "0620"}};
    const struct pair shm[] = {{"mode", "1777"}, {"size", size}};
    if (fs_attach(launch->proc, "/proc") < 0)
        return fail(launch, "/proc");
    if (fs_attach(launch->sys, "/sys") < 0)
        return fail(launch, "/sys");
    if (kernel_mount(launch, "/dev/pts", "devpts", pts, 3, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC) < 0 ||
        kernel_mount(launch, "/dev/shm", "tmpfs", shm, 2, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV) < 0)
        return -1;
    return 0;
}

/* What this kernel doesn't have needs no cover. */
static int covered(struct launch *launch, int done, const char *path) {
    return done < 0 && errno != ENOENT ? fail(launch, path) : 0;
}

static int path_protect(struct launch *launch, const char *path) {
    autoclose int mount = fs_copy_inside(path);
    if (mount < 0)
        return covered(launch, -1, path);
    if (fs_attributes(mount, SEALED | MOUNT_ATTR_RDONLY) < 0 || fs_attach(mount, path) < 0)
        return fail(launch, path);
    return 0;
}

/* An empty directory of the job's own: a tmpfs would cost every checkpoint a run of tar.  Read-only roots have one. */
static int empty_open(struct launch *launch) {
    const struct pair options[] = {{"mode", "0555"}, {"size", "4k"}};
    if (!launch->spec.upper)
        return fs_mount("tmpfs", options, 2, 0, NULL);
    if ((mkdir("/.serac", 0755) < 0 && errno != EEXIST) || (mkdir(EMPTY, 0555) < 0 && errno != EEXIST))
        return -1;
    return fs_copy_inside(EMPTY);
}

static int firmware_hide(struct launch *launch) {
    autoclose int mount = empty_open(launch);
    if (mount < 0 || fs_attributes(mount, SEALED | MOUNT_ATTR_RDONLY) < 0)
        return fail(launch, EMPTY);
    return covered(launch, fs_attach(mount, "/sys/firmware"), "/sys/firmware");
}

static int kernel_hide(struct launch *launch) {
    static const char *const masked[MASKS] = {"/proc/kcore", "/proc/keys", "/proc/sysrq-trigger", "/proc/timer_list"};
    static const char *const readonly[] = {"/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq"};
    for (size_t i = 0; i < MASKS; i++)
        if (covered(launch, fs_attach(launch->masks[i], masked[i]), masked[i]) < 0)
            return -1;
    for (size_t i = 0; i < sizeof readonly / sizeof *readonly; i++)
        if (path_protect(launch, readonly[i]) < 0)
            return -1;
    return firmware_hide(launch);
}

int mounts_make(struct launch *launch) {
    const struct list *binds = &launch->spec.binds;
    if (kernel_mounts(launch) < 0 || kernel_hide(launch) < 0)
        return -1;
    for (size_t i = 0; i < binds->count; i++)
        if (fs_attach(launch->binds[i], binds->at[i].value) < 0)
            return fail(launch, binds->at[i].value);
    return 0;
}
