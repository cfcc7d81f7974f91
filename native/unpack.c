#include "unpack.h"

#include "cleanup.h"
#include "unstream.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

struct level { /* a directory on the way to the entry at hand; the first one is where everything goes */
    int fd;
    size_t length; /* of its name in `here` */
    bool made;     /* by us: what follows is set when it is left, after its last entry */
    mode_t mode;
    uid_t uid;
    gid_t gid;
    struct timespec mtime;
};

static struct level *levels;
static size_t depth, levels_room;
static char here[TAR_NAME_MAX]; /* the innermost level's name */
static char name[TAR_NAME_MAX]; /* of the entry at hand, made plain: no empty components, no `.`, no `..` */
static bool keep_owner;

/* Where PATH is not a directory yet, the stream's one top entry becomes it. */
static char renamed[NAME_MAX + 1];
static char top[NAME_MAX + 1]; /* what the stream calls that entry; empty: `.` */
static bool top_known, slash_given;

static int refuse(int why) {
    errno = why;
    return -1;
}

static int fail(const char *subject) {
    const char *why = errno == EBADMSG ? unstream_why : strerror(errno);
    char text[512];
    snprintf(text, sizeof text, "%s", subject);
    for (char *at = text; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 127)
            *at = '?';
    fprintf(stderr, "unpack: %s: %s\n", *text ? text : "the stream", why);
    return -1;
}

static int malformed(const char *why) {
    unstream_why = why;
    return refuse(EBADMSG);
}

/* A name without its empty and `.` components; the rest must stay below where it starts. */
static int plain(const char *from, char to[static TAR_NAME_MAX]) {
    size_t used = 0;
    if (*from == '/')
        return malformed("its name is absolute");
    for (size_t size; *from; from += size + (from[size] == '/')) {
        size = strcspn(from, "/");
        if (!size || (size == 1 && *from == '.'))
            continue;
        if (size == 2 && !memcmp(from, "..", 2))
            return malformed("its name leads upwards");
        if (size > NAME_MAX)
            return refuse(ENAMETOOLONG);
        if (used)
            to[used++] = '/';
        memcpy(to + used, from, size);
        used += size;
    }
    to[used] = 0;
    return 0;
}

/* Put `renamed` in the place of the top entry's name. */
static int rename_top(char to[static TAR_NAME_MAX]) {
    size_t old = strlen(top), new = strlen(renamed), size = strlen(to);
    if (strncmp(to, top, old) != 0 || (old && to[old] && to[old] != '/'))
        return malformed("the stream has several top entries, and the place for them is not a directory");
    bool joined = !old && size; /* `.` had no name to replace */
    if (size - old + new + joined >= TAR_NAME_MAX)
        return refuse(ENAMETOOLONG);
    memmove(to + new + joined, to + old, size - old + 1);
    memcpy(to, renamed, new);
    if (joined)
        to[new] = '/';
    return 0;
}

static int place(const char *from, char to[static TAR_NAME_MAX]) {
    if (plain(from, to) < 0)
        return -1;
    return *renamed ? rename_top(to) : 0;
}

static int learn_top(const struct entry *entry) {
    if (slash_given && entry->type != '5')
        return refuse(ENOTDIR);
    if (plain(entry->name, name) < 0)
        return -1;
    snprintf(top, sizeof top, "%.*s", (int)strcspn(name, "/"), name);
    top_known = true;
    return 0;
}

static int leave(void) {
    struct level *level = &levels[--depth];
    autoclose int fd = level->fd;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, level->mtime};
    if (!level->made)
        return 0;
    if (keep_owner && fchown(fd, level->uid, level->gid) < 0)
        return -1;
    return fchmod(fd, level->mode) < 0 ? -1 : futimens(fd, times);
}

static int push(int fd, size_t length, bool made) {
    autoclose int held = fd;
    if (depth == levels_room) {
        size_t room = levels_room * 2 + 16;
        struct level *grown = realloc(levels, room * sizeof *levels);
        if (!grown)
            return -1;
        levels = grown;
        levels_room = room;
    }
    levels[depth++] = (struct level){
        .fd = steal_fd(&held), .length = length, .made = made, .mode = 0755, .mtime = {.tv_nsec = UTIME_OMIT}};
    return 0;
}

static int descend(const char *component, size_t length) {
    int parent = levels[depth - 1].fd;
    bool made = mkdirat(parent, component, 0700) == 0;
    if (!made && errno != EEXIST)
        return -1;
    int fd = openat(parent, component, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -1 : push(fd, length, made);
}

/* Make the first `length` bytes of `name` the innermost level. */
static int enter(size_t length) {
    for (size_t end = levels[depth - 1].length; depth > 1; end = levels[depth - 1].length) {
        if (end <= length && !memcmp(here, name, end) && (end == length || name[end] == '/'))
            break;
        if (leave() < 0)
            return -1;
    }
    for (size_t end = levels[depth - 1].length; end < length; end = levels[depth - 1].length) {
        char component[NAME_MAX + 1];
        size_t start = end + (end > 0), size = strcspn(name + start, "/");
        snprintf(component, sizeof component, "%.*s", (int)size, name + start);
        if (descend(component, start + size) < 0)
            return -1;
        memcpy(here + end, name + end, start + size - end);
    }
    return 0;
}

/* The directory that `name` lies in, and its last component. */
static int enter_parent(const char **last) {
    const char *slash = strrchr(name, '/');
    if (!*name)
        return refuse(EISDIR);
    *last = slash ? slash + 1 : name;
    if (enter(slash ? (size_t)(slash - name) : 0) < 0)
        return -1;
    return levels[depth - 1].fd;
}

static int apply_xattrs(const struct entry *entry, int fd) {
    struct tar_record record;
    for (size_t at = 0, prefix = strlen(TAR_XATTR); tar_record_next(entry->records, &at, &record) > 0;) {
        char key[XATTR_NAME_MAX + 1];
        if (record.key_size <= prefix || memcmp(record.key, TAR_XATTR, prefix) != 0)
            continue;
        if (record.key_size - prefix >= sizeof key)
            return malformed("an extended attribute's name is too long");
        snprintf(key, sizeof key, "%.*s", (int)(record.key_size - prefix), record.key + prefix);
        if (strncmp(key, "user.", 5) != 0 && (!keep_owner || strcmp(key, "security.capability") != 0))
            continue;
        if (fsetxattr(fd, key, record.value, record.value_size, 0) < 0 && errno != EOPNOTSUPP)
            return -1;
    }
    return 0;
}

static mode_t permitted(const struct entry *entry) {
    return entry->mode & (keep_owner ? 07777 : 01777);
}

static int unpack_directory(const struct entry *entry) {
    if (enter(strlen(name)) < 0)
        return -1;
    struct level *level = &levels[depth - 1];
    if (!level->made)
        return 0;
    level->mode = permitted(entry);
    level->uid = (uid_t)entry->uid;
    level->gid = (gid_t)entry->gid;
    level->mtime = entry->mtime;
    return apply_xattrs(entry, level->fd);
}

static int unpack_file(const struct entry *entry, int parent, const char *last) {
    autoclose int fd = openat(parent, last, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, entry->mtime};
    if (fd < 0 || unstream_contents(entry, fd) < 0)
        return -1;
    if (keep_owner && fchown(fd, (uid_t)entry->uid, (gid_t)entry->gid) < 0)
        return -1;
    if (apply_xattrs(entry, fd) < 0 || fchmod(fd, permitted(entry)) < 0)
        return -1;
    return futimens(fd, times);
}

/* The file that a hard link is to, without following any link on the way. */
static int unpack_link(const struct entry *entry, int parent, const char *last) {
    static char target[TAR_NAME_MAX];
    if (place(entry->link, target) < 0)
        return -1;
    autoclose int directory = fcntl(levels[0].fd, F_DUPFD_CLOEXEC, 0);
    char *at = target;
    for (char *slash; directory >= 0 && (slash = strchr(at, '/')); at = slash + 1) {
        *slash = 0;
        int next = openat(directory, at, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        close(directory);
        directory = next;
    }
    return directory < 0 ? -1 : linkat(directory, at, parent, last, 0);
}

static int unpack_special(const struct entry *entry, int parent, const char *last) {
    mode_t type = entry->type == '3' ? S_IFCHR : entry->type == '4' ? S_IFBLK : S_IFIFO;
    return mknodat(parent, last, type | permitted(entry), makedev(entry->major, entry->minor));
}

static int unpack_node(const struct entry *entry, int parent, const char *last) {
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, entry->mtime};
    if (entry->type == '2' ? symlinkat(entry->link, parent, last) < 0 : unpack_special(entry, parent, last) < 0)
        return -1;
    if (keep_owner && fchownat(parent, last, (uid_t)entry->uid, (gid_t)entry->gid, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    return utimensat(parent, last, times, AT_SYMLINK_NOFOLLOW);
}

static int unpack_entry(const struct entry *entry) {
    if (*renamed && !top_known && learn_top(entry) < 0)
        return -1;
    if (place(entry->name, name) < 0)
        return -1;
    if (entry->type == '5')
        return unpack_directory(entry);
    const char *last;
    int parent = enter_parent(&last);
    if (parent < 0 || (unlinkat(parent, last, 0) < 0 && errno != ENOENT))
        return -1;
    if (entry->type == '0')
        return unpack_file(entry, parent, last);
    return entry->type == '1' ? unpack_link(entry, parent, last) : unpack_node(entry, parent, last);
}

/* PATH itself when it is a directory, else the directory it shall be in. */
static int open_target(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 || (errno != ENOENT && errno != ENOTDIR))
        return fd;
    size_t end = strlen(path);
    slash_given = end && path[end - 1] == '/';
    while (end && path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start && path[start - 1] != '/')
        start--;
    size_t size = end - start;
    if (size > NAME_MAX || start >= PATH_MAX)
        return refuse(ENAMETOOLONG);
    if (size <= 2 && !memcmp(path + start, "..", size))
        return refuse(ENOENT);
    snprintf(renamed, sizeof renamed, "%.*s", (int)size, path + start);
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%.*s", start ? (int)start : 1, start ? path : ".");
    return open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int unpack_all(void) {
    struct entry entry;
    int more = 0, result = 0;
    while (!result && (more = unstream_next(&entry)) > 0)
        if (unpack_entry(&entry) < 0)
            result = fail(entry.name);
    if (more < 0)
        result = fail("");
    while (depth)
        if (leave() < 0 && !result)
            result = fail(here);
    return result;
}

int unpack(const char *path, bool owner) {
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max; /* one for each level of the tree */
        setrlimit(RLIMIT_NOFILE, &files);
    }
    umask(0);
    keep_owner = owner;
    int target = open_target(path);
    if (target < 0 || push(target, 0, false) < 0)
        return fail(path);
    return unpack_all();
}
