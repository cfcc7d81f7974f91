#include "launch_fs.h"

#include "launch.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

/* One line a read, "e text" for an error; the first is the most telling. */
static void words_read(int fs, char words[256]) {
    int saved = errno;
    ssize_t size = read(fs, words, 255);
    words[size > 0 ? size : 0] = 0;
    if (words[0] == 'e' && words[1] == ' ')
        memmove(words, words + 2, strlen(words + 2) + 1);
    words[strcspn(words, "\n")] = 0;
    errno = saved;
}

static int option_set(int fs, const struct pair *option) {
    if (!option->value)
        return fsconfig(fs, FSCONFIG_SET_FLAG, option->key, NULL, 0);
    return fsconfig(fs, FSCONFIG_SET_STRING, option->key, option->value, 0);
}

static int fs_configure(int fs, const struct pair *options, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (option_set(fs, &options[i]) < 0)
            return -1;
    return fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
}

int fs_mount(const char *type, const struct pair *options, size_t count, unsigned attributes, char words[256]) {
    if (words)
        words[0] = 0;
    autoclose int fs = fsopen(type, FSOPEN_CLOEXEC);
    if (fs < 0)
        return -1;
    if (fs_configure(fs, options, count) < 0) {
        if (words)
            words_read(fs, words);
        return -1;
    }
    return fsmount(fs, FSMOUNT_CLOEXEC, attributes);
}

int fs_copy(const char *path) {
    return open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
}

int fs_attributes(int mount, unsigned attributes) {
    struct mount_attr change = {.attr_set = attributes};
    return mount_setattr(mount, "", AT_EMPTY_PATH, &change, sizeof change);
}

int fs_idmap(int mount, int userns) {
    struct mount_attr change = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)userns};
    return mount_setattr(mount, "", AT_EMPTY_PATH, &change, sizeof change);
}

static int path_find(const char *path) {
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
}

int fs_copy_inside(const char *path) {
    autoclose int found = path_find(path);
    if (found < 0)
        return -1;
    return open_tree(found, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
}

int fs_attach(int mount, const char *path) {
    autoclose int target = path_find(path);
    if (target < 0)
        return -1;
    return move_mount(mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}
