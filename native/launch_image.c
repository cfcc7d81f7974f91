/* EROFS images on the host: metadata and data are files, mounted as they lie there (Linux 6.12), no loop device. */
#include "launch.h"
#include "launch_fs.h"

static int image_mount(struct launch *launch, const char *meta, const char *blob, const char *target) {
    const struct pair options[] = {{"source", (char *)meta}, {"device", (char *)blob}, {"ro", NULL}};
    char words[256];
    autoclose int mount = fs_mount("erofs", options, 3, MOUNT_ATTR_RDONLY, words);
    if (mount < 0)
        return fail(launch, *words ? words : meta);
    return fs_attach(mount, target) < 0 ? fail(launch, target) : 0;
}

int images_mount(struct launch *launch) {
    const struct spec *spec = &launch->spec;
    for (size_t i = 0; i < spec->targets.count; i++)
        if (image_mount(launch, spec->metas.at[i].key, spec->blobs.at[i].key, spec->targets.at[i].key) < 0)
            return -1;
    return 0;
}

int images_unmount(struct launch *launch) {
    const struct list *targets = &launch->spec.targets;
    int flags = UMOUNT_NOFOLLOW | (launch->spec.detach ? MNT_DETACH : 0);
    for (size_t i = 0; i < targets->count; i++)
        if (umount2(targets->at[i].key, flags) < 0)
            return fail(launch, targets->at[i].key);
    return 0;
}
