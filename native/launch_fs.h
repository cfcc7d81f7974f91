/* Mounts by descriptor: fsopen(2), open_tree(2), mount_setattr(2), move_mount(2); all return what they say or -1. */
#pragma once
#include "kernel.h"
#include "launch_spec.h"

#define SEALED (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)

/*
 * A new filesystem as a detached mount.  `options` as fsconfig(2) takes them, a NULL value for a flag.  Where the
 * kernel says in words what it dislikes, they are left in `words` (else an empty string); NULL when nobody asks.
 */
int fs_mount(const char *type, const struct pair *options, size_t count, unsigned attributes, char words[256]);

/* A detached copy of the mount at `path`, from there downwards, without the mounts on top of it. */
int fs_copy(const char *path);

/* The same of a path of the job's, whose symbolic links are followed but for those of /proc. */
int fs_copy_inside(const char *path);

int fs_attributes(int mount, unsigned attributes);

/* Show the ids of a detached copy through a user namespace. */
int fs_idmap(int mount, int userns);

/* Put a detached mount at `path`, whose symbolic links are followed but for those of /proc. */
int fs_attach(int mount, const char *path);
