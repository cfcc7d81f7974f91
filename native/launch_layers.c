/*
 * The layers, all inside one tmpfs in the private mount namespace: STAGE/NAME for each tree, STAGE/.root for the root.
 * The working directory is STAGE, so that paths are short and nothing outside of it has to be reachable for the job.
 */
#include "launch.h"
#include "launch_fs.h"

#include <fcntl.h>
#include <linux/securebits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>

static int world_open(struct world *world) {
    world->namespace = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    world->root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return world->namespace < 0 || world->root < 0 ? -1 : 0;
}

static int world_enter(const struct world *world) {
    if (setns(world->namespace, CLONE_NEWNS) < 0 || fchdir(world->root) < 0)
        return -1;
    return chroot(".");
}

int stage_mount(struct launch *launch) {
    const struct pair options[] = {{"mode", "0755"}, {"size", "1m"}, {"nr_inodes", "2k"}};
    const char *stage = launch->spec.stage;
    if (world_open(&launch->host) < 0 || unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return fail(launch, "mount namespace");
    autoclose int mount = fs_mount("tmpfs", options, 3, 0, NULL);
    if (mount < 0 || fs_attach(mount, stage) < 0 || chdir(stage) < 0)
        return fail(launch, stage);
    return 0;
}

static int directory_attach(int mount, const char *name) {
    if (mount < 0 || mkdir(name, 0755) < 0)
        return -1;
    return fs_attach(mount, name);
}

static int tree_copy(struct launch *launch, const char *path) {
    autoclose int mount = fs_copy(path);
    if (mount < 0 || (launch->userns >= 0 && fs_idmap(mount, launch->userns) < 0))
        return fail(launch, path);
    return steal_fd(&mount);
}

/* As the host has them now: what was mounted there since the stage was made is not in our namespace. */
static int trees_copy(struct launch *launch, int *copies) {
    const struct list *trees = &launch->spec.trees;
    for (size_t i = 0; i < trees->count; i++)
        if ((copies[i] = tree_copy(launch, trees->at[i].value)) < 0)
            return -1;
    return 0;
}

/* A failed launch ends, so that what is left open needs no care.  A thread of ours may share its directories with us. */
int trees_attach(struct launch *launch) {
    const struct list *trees = &launch->spec.trees;
    autofree int *copies = calloc(trees->count + 1, sizeof *copies);
    autoclose int stage = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct world own;
    if (!copies || stage < 0 || world_open(&own) < 0 || unshare(CLONE_FS) < 0 || world_enter(&launch->host) < 0)
        return fail(launch, "mount namespace");
    if (trees_copy(launch, copies) < 0)
        return -1;
    if (world_enter(&own) < 0 || fchdir(stage) < 0)
        return fail(launch, "mount namespace");
    close_at_exit(&own.namespace);
    close_at_exit(&own.root);
    for (size_t i = 0; i < trees->count; i++) {
        autoclose int mount = copies[i];
        if (directory_attach(mount, trees->at[i].key) < 0)
            return fail(launch, trees->at[i].value);
    }
    return 0;
}

/*
 * The kernel lets only the owner of the network namespace mount a sysfs.  A job in its own user namespace doesn't own
 * the network that it was given, so the launcher, which does, mounts one for it.
 */
int sysfs_lend(struct launch *launch) {
    if (!launch->spec.count || launch->spec.net == NET_PRIVATE)
        return 0;
    autoclose int mount = fs_mount("sysfs", NULL, 0, SEALED | MOUNT_ATTR_RDONLY, NULL);
    return directory_attach(mount, STAGE_SYSFS) < 0 ? fail(launch, "sysfs") : 0;
}

static size_t options_fill(const struct spec *spec, struct pair *options) {
    size_t count = 0;
    for (size_t i = 0; i < spec->lowers.count; i++)
        options[count++] = (struct pair){"lowerdir+", spec->lowers.at[i].key};
    if (spec->upper) {
        options[count++] = (struct pair){"upperdir", spec->upper};
        options[count++] = (struct pair){"workdir", spec->work};
    }
    for (size_t i = 0; i < spec->overlay.count; i++)
        options[count++] = spec->overlay.at[i];
    return count;
}

static void data_add(char **at, const char *end, const char *separator, const char *key, const char *value) {
    int size = snprintf(*at, (size_t)(end - *at), "%s%s%s%s", separator, key, value ? "=" : "", value ? value : "");
    *at = size < end - *at ? *at + size : (char *)end;
}

/* mount(2) takes one page of options: some 300 layers with names as short as the engine's. */
static int overlay_mount_data(const struct spec *spec, const struct pair *options, size_t count) {
    char data[4096], *at = data, *end = data + sizeof data;
    for (size_t i = 0; i < count; i++)
        if (i >= spec->lowers.count)
            data_add(&at, end, ",", options[i].key, options[i].value);
        else if (i == 0)
            data_add(&at, end, "", "lowerdir", options[i].value);
        else
            data_add(&at, end, ":", options[i].value, NULL);
    if (at == end) {
        errno = E2BIG;
        return -1;
    }
    if (mkdir(STAGE_ROOT, 0755) < 0)
        return -1;
    return mount("overlay", STAGE_ROOT, "overlay", 0, data);
}

/* Kernels before 6.8 answer EINVAL to `lowerdir+`, at once or when the filesystem is made. */
static int overlay_attach(const struct spec *spec, char words[256]) {
    struct pair options[spec->lowers.count + spec->overlay.count + 2];
    size_t count = options_fill(spec, options);
    autoclose int mount = fs_mount("overlay", options, count, 0, words);
    if (mount < 0 && errno == EINVAL)
        return overlay_mount_data(spec, options, count);
    return directory_attach(mount, STAGE_ROOT);
}

/* Without an upper an overlay wants two lowers; one alone is simply shown, read-only. */
static int single_attach(const char *lower) {
    autoclose int mount = fs_copy(lower);
    if (mount < 0 || fs_attributes(mount, MOUNT_ATTR_RDONLY) < 0)
        return -1;
    return directory_attach(mount, STAGE_ROOT);
}

/* The overlay makes files as whoever mounted it, so that must be an id that the layers' idmap knows. */
static int mounter_become(uint32_t id, unsigned long securebits) {
    if (prctl(PR_SET_SECUREBITS, securebits) < 0)
        return -1;
    setfsgid(id);
    setfsuid(id);
    return (uint32_t)setfsuid(UINT32_MAX) == id ? 0 : -1;
}

static int overlay_attach_as(const struct launch *launch, char words[256]) {
    const struct spec *spec = &launch->spec;
    if (!spec->count)
        return overlay_attach(spec, words);
    if (mounter_become(spec->first, SECBIT_NO_SETUID_FIXUP) < 0)
        return -1;
    int attached = overlay_attach(spec, words);
    int saved = errno;
    if (mounter_become(0, SECBIT_NO_SETUID_FIXUP) < 0 || prctl(PR_SET_SECUREBITS, 0) < 0)
        return -1;
    die_with(launch->engine); /* which the kernel forgets about when an fsuid changes */
    errno = saved;
    return attached;
}

/* An overlay that can't make its work directory becomes read-only without a word. */
static int writable_check(struct launch *launch) {
    struct statfs status;
    if (statfs(STAGE_ROOT, &status) < 0)
        return fail(launch, launch->spec.upper);
    errno = EROFS;
    return status.f_flags & ST_RDONLY ? fail(launch, launch->spec.upper) : 0;
}

int root_mount(struct launch *launch) {
    const struct spec *spec = &launch->spec;
    char words[256] = "";
    if (!spec->upper && spec->lowers.count == 1)
        return single_attach(spec->lowers.at[0].key) < 0 ? fail(launch, spec->lowers.at[0].key) : 0;
    if (overlay_attach_as(launch, words) < 0)
        return fail(launch, *words ? words : spec->upper ? spec->upper : spec->lowers.at[0].key);
    return spec->upper ? writable_check(launch) : 0;
}
