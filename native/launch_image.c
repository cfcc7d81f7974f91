/* An EROFS image on the host: metadata and data are files, mounted as they lie there (Linux 6.12), no loop device. */
#include "launch.h"
#include "launch_fs.h"

int image_mount(struct launch *launch) {
    const struct spec *spec = &launch->spec;
    const struct pair options[] = {{"source", spec->meta}, {"device", spec->blob}, {"ro", NULL}};
    char words[256];
    autoclose int mount = fs_mount("erofs", options, 3, MOUNT_ATTR_RDONLY, words);
    if (mount < 0)
        return fail(launch, *words ? words : spec->meta);
    return fs_attach(mount, spec->target) < 0 ? fail(launch, spec->target) : 0;
}

int image_unmount(struct launch *launch) {
    return umount2(launch->spec.target, UMOUNT_NOFOLLOW) < 0 ? fail(launch, launch->spec.target) : 0;
}
