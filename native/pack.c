#include "pack.h"

#include "cleanup.h"
#include "tar.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define OUTPUT_SIZE (128u << 10)
#define LINKS_MAX (1u << 16)       /* files with several names that are remembered; any beyond are written in full */
#define LINK_NAMES_MAX (16u << 20) /* bytes of their names */

struct level { /* a directory on the way down */
    int fd;
    off_t next;    /* where reading goes on, for lseek */
    size_t length; /* of its name */
};

struct link {
    dev_t dev;
    ino_t ino;
    size_t name; /* offset in link_names, plus one; 0 = free */
};

static char output[OUTPUT_SIZE];
static size_t output_used;
static char name[TAR_NAME_MAX]; /* of the entry at hand */
static size_t name_length;
static struct level *levels;
static size_t depth, levels_room;
static struct link links[LINKS_MAX * 2];
static unsigned links_used;
static char *link_names;
static size_t link_names_used, link_names_room;
static bool shrank;
static bool one_filesystem;
static dev_t top_filesystem; /* 0: the top is not open yet */

static int fail(void) {
    const char *why = strerror(errno);
    for (char *at = name; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 127)
            *at = '?';
    fprintf(stderr, "pack: %.*s: %s\n", 512, name, why);
    return -1;
}

static int output_flush(void) {
    for (size_t at = 0; at < output_used;) {
        ssize_t n = write(STDOUT_FILENO, output + at, output_used - at);
        if (n < 0 && errno != EINTR)
            return -1;
        at += n > 0 ? (size_t)n : 0;
    }
    output_used = 0;
    return 0;
}

static int output_put(const void *bytes, size_t size) {
    for (const char *at = bytes; size;) {
        size_t piece = OUTPUT_SIZE - output_used < size ? OUTPUT_SIZE - output_used : size;
        memcpy(output + output_used, at, piece);
        output_used += piece;
        at += piece;
        size -= piece;
        if (output_used == OUTPUT_SIZE && output_flush() < 0)
            return -1;
    }
    return 0;
}

static int output_zeros(uint64_t size) {
    static const char zeros[TAR_BLOCK];
    for (; size > sizeof zeros; size -= sizeof zeros)
        if (output_put(zeros, sizeof zeros) < 0)
            return -1;
    return output_put(zeros, size);
}

/* Exactly `size` bytes follow the header, whatever becomes of the file meanwhile. */
static int put_contents(int fd, uint64_t size) {
    for (uint64_t left = size; left;) {
        size_t room = OUTPUT_SIZE - output_used;
        ssize_t n = read(fd, output + output_used, left < room ? (size_t)left : room);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0) {
            shrank = true;
            return output_zeros(left + tar_padding(size));
        }
        output_used += (size_t)n;
        left -= (uint64_t)n;
        if (output_used == OUTPUT_SIZE && output_flush() < 0)
            return -1;
    }
    return output_zeros(tar_padding(size));
}

static int record_number(struct tar_records *records, const char *key, int64_t number) {
    char text[24];
    return tar_record_put(records, key, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)number));
}

static int record_time(struct tar_records *records, struct timespec time) {
    /* Below zero seconds the fraction counts the other way. */
    bool negative = time.tv_sec < 0 && time.tv_nsec;
    long long seconds = negative ? time.tv_sec + 1 : time.tv_sec;
    long part = negative ? 1000000000 - time.tv_nsec : time.tv_nsec;
    char text[48];
    int size = snprintf(text, sizeof text, "%s%lld.%09ld", negative && !seconds ? "-" : "", seconds, part);
    return tar_record_put(records, "mtime", text, (size_t)size);
}

static int record_xattr(struct tar_records *records, int fd, const char *attribute) {
    static char value[XATTR_SIZE_MAX], key[sizeof TAR_XATTR + XATTR_NAME_MAX];
    if (strncmp(attribute, "user.", 5) != 0 && strcmp(attribute, "security.capability") != 0)
        return 0;
    if (strchr(attribute, '=')) /* a key cannot hold it */
        return 0;
    ssize_t size = fgetxattr(fd, attribute, value, sizeof value);
    if (size < 0)
        return errno == ENODATA ? 0 : -1;
    snprintf(key, sizeof key, TAR_XATTR "%.*s", XATTR_NAME_MAX, attribute);
    return tar_record_put(records, key, value, (size_t)size);
}

static int record_xattrs(struct tar_records *records, int fd) {
    static char list[XATTR_LIST_MAX];
    ssize_t size = flistxattr(fd, list, sizeof list);
    if (size < 0)
        return errno == EOPNOTSUPP ? 0 : -1;
    for (const char *at = list; at < list + size; at += strlen(at) + 1)
        if (record_xattr(records, fd, at) < 0)
            return -1;
    return 0;
}

static int put_records(const struct tar_records *records) {
    struct tar_header header = {.name = "pax", .type = 'x'};
    tar_put(header.mode, sizeof header.mode, 0644);
    tar_put(header.size, sizeof header.size, (int64_t)records->size);
    tar_seal(&header);
    if (output_put(&header, sizeof header) < 0 || output_put(records->bytes, records->size) < 0)
        return -1;
    return output_zeros(tar_padding(records->size));
}

static int set_name(struct tar_records *records, char field[100], const char *key, const char *text) {
    size_t size = strlen(text);
    memcpy(field, text, size < 100 ? size : 100);
    return size > 100 ? tar_record_put(records, key, text, size) : 0;
}

static int set_number(struct tar_records *records, char *field, size_t size, const char *key, int64_t number) {
    return tar_put(field, size, number) ? 0 : record_number(records, key, number);
}

/* The header of the entry called `name`. `fd` is the file or directory, to take its attributes from, else -1. */
static int put_header(const struct stat *status, char type, const char *target, int fd) {
    static struct tar_records records;
    struct tar_header header = {.type = type};
    struct timespec time = status->st_mtim;
    records.size = 0;
    tar_put(header.mode, sizeof header.mode, status->st_mode & 07777);
    tar_put(header.major, sizeof header.major, major(status->st_rdev));
    tar_put(header.minor, sizeof header.minor, minor(status->st_rdev));
    if (set_name(&records, header.name, "path", name) < 0 || set_name(&records, header.link, "linkpath", target) < 0 ||
        set_number(&records, header.uid, sizeof header.uid, "uid", status->st_uid) < 0 ||
        set_number(&records, header.gid, sizeof header.gid, "gid", status->st_gid) < 0 ||
        set_number(&records, header.size, sizeof header.size, "size", type == '0' ? status->st_size : 0) < 0)
        return -1;
    if ((!tar_put(header.mtime, sizeof header.mtime, time.tv_sec) || time.tv_nsec) && record_time(&records, time) < 0)
        return -1;
    if (fd >= 0 && record_xattrs(&records, fd) < 0)
        return -1;
    if (records.size && put_records(&records) < 0)
        return -1;
    tar_seal(&header);
    return output_put(&header, sizeof header);
}

static struct link *link_slot(const struct stat *status) {
    uint64_t hash = (status->st_ino ^ status->st_dev << 32) * 0x9e3779b97f4a7c15u;
    for (size_t i = hash >> 40;; i++) {
        struct link *slot = &links[i % (LINKS_MAX * 2)];
        if (!slot->name || (slot->ino == status->st_ino && slot->dev == status->st_dev))
            return slot;
    }
}

static int link_remember(struct link *slot, const struct stat *status) {
    size_t size = name_length + 1;
    if (links_used == LINKS_MAX || link_names_used + size > LINK_NAMES_MAX)
        return 0;
    if (link_names_used + size > link_names_room) {
        size_t room = (link_names_used + size) * 2;
        char *grown = realloc(link_names, room);
        if (!grown)
            return -1;
        link_names = grown;
        link_names_room = room;
    }
    memcpy(link_names + link_names_used, name, size);
    *slot = (struct link){.dev = status->st_dev, .ino = status->st_ino, .name = link_names_used + 1};
    link_names_used += size;
    links_used++;
    return 0;
}

static int pack_file(int directory, const char *last) {
    /* It may have become anything since it was looked at; O_NONBLOCK: even a fifo without a writer. */
    autoclose int fd = openat(directory, last, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0)
        return -1;
    if (!S_ISREG(status.st_mode)) {
        errno = ESTALE;
        return -1;
    }
    if (status.st_nlink > 1) {
        struct link *slot = link_slot(&status);
        if (slot->name)
            return put_header(&status, '1', link_names + slot->name - 1, -1);
        if (link_remember(slot, &status) < 0)
            return -1;
    }
    return put_header(&status, '0', "", fd) < 0 ? -1 : put_contents(fd, (uint64_t)status.st_size);
}

static int pack_link(int directory, const char *last, const struct stat *status) {
    static char target[PATH_MAX + 1];
    ssize_t size = readlinkat(directory, last, target, sizeof target - 1);
    if (size < 0)
        return -1;
    target[size] = 0;
    return put_header(status, '2', target, -1);
}

static int pack_directory(int directory, const char *last) {
    if (depth == levels_room) {
        size_t room = levels_room * 2 + 16;
        struct level *grown = realloc(levels, room * sizeof *levels);
        if (!grown)
            return -1;
        levels = grown;
        levels_room = room;
    }
    autoclose int fd = openat(directory, last, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0)
        return -1;
    if (name_length + 1 >= sizeof name) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(name + name_length++, "/", 2);
    if (put_header(&status, '5', "", fd) < 0)
        return -1;
    if (!top_filesystem)
        top_filesystem = status.st_dev;
    if (one_filesystem && status.st_dev != top_filesystem)
        return 0; /* something is mounted here: only the place is part of the tree */
    levels[depth++] = (struct level){.fd = steal_fd(&fd), .length = name_length};
    return 0;
}

static int pack_entry(int directory, const char *last) {
    struct stat status;
    if (fstatat(directory, last, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    switch (status.st_mode & S_IFMT) {
    case S_IFREG:
        return pack_file(directory, last);
    case S_IFDIR:
        return pack_directory(directory, last);
    case S_IFLNK:
        return pack_link(directory, last, &status);
    case S_IFCHR:
        return put_header(&status, '3', "", -1);
    case S_IFBLK:
        return put_header(&status, '4', "", -1);
    case S_IFIFO:
        return put_header(&status, '6', "", -1);
    default:
        return 0;
    }
}

static int pack_child(const struct level *parent, const char *last) {
    size_t size = strlen(last);
    if (parent->length + size >= sizeof name) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(name + parent->length, last, size + 1);
    name_length = parent->length + size;
    /* What was removed since it was listed is none of the tree. */
    return pack_entry(parent->fd, last) < 0 && errno != ENOENT ? -1 : 0;
}

/* The entries of the innermost directory, until one is a directory itself: 1, or 0 at its end. */
static int pack_children(void) {
    static _Alignas(struct dirent64) char batch[32u << 10];
    size_t here = depth - 1;
    for (;;) {
        ssize_t size = lseek(levels[here].fd, levels[here].next, SEEK_SET) < 0
                           ? -1
                           : getdents64(levels[here].fd, (void *)batch, sizeof batch);
        if (size <= 0)
            return (int)size;
        for (ssize_t at = 0; at < size;) {
            struct dirent64 *child = (struct dirent64 *)(batch + at);
            at += child->d_reclen;
            levels[here].next = child->d_off;
            if (!strcmp(child->d_name, ".") || !strcmp(child->d_name, ".."))
                continue;
            if (pack_child(&levels[here], child->d_name) < 0)
                return -1;
            if (depth > here + 1)
                return 1;
        }
    }
}

static int pack_tree(void) {
    while (depth) {
        int more = pack_children();
        if (more < 0)
            return -1;
        if (!more)
            close(levels[--depth].fd);
    }
    return 0;
}

/* Where PATH's last component lies, and what it is called in the stream. */
static int open_parent(const char *path, const char **last) {
    size_t end = strlen(path);
    bool slash = end && path[end - 1] == '/';
    while (end && path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start && path[start - 1] != '/')
        start--;
    size_t size = end - start;
    bool contents = size <= 2 && !memcmp(path + start, "..", size);
    if (end >= PATH_MAX || !*path) {
        errno = *path ? ENAMETOOLONG : ENOENT;
        return -1;
    }
    memcpy(name, contents ? "." : path + start, contents ? 1 : size);
    name_length = contents ? 1 : size;
    if (contents || slash) {
        *last = ".";
        return open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    }
    static char parent[PATH_MAX];
    memcpy(parent, start ? path : ".", start ? start : 1);
    *last = path + start;
    return open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

int pack(const char *path, bool one) {
    one_filesystem = one;
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max; /* one for each level of the tree */
        setrlimit(RLIMIT_NOFILE, &files);
    }
    const char *last;
    autoclose int parent = open_parent(path, &last);
    if (parent < 0) {
        snprintf(name, sizeof name, "%s", path);
        return fail();
    }
    if (pack_entry(parent, last) < 0 || pack_tree() < 0 || output_zeros(2 * TAR_BLOCK) < 0 || output_flush() < 0)
        return fail();
    if (shrank) {
        fputs("pack: a file became shorter while it was read\n", stderr);
        return -1;
    }
    return 0;
}
