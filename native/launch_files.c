/*
 * Files that the launch puts into the job.  All of it happens inside the job's root, whose links lead nowhere else, so
 * a job that prepared its paths deceives itself alone.
 */
#include "launch.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static int parents_make(const char *path) {
    char parent[PATH_MAX];
    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(parent, sizeof parent, "%.*s", (int)(slash - path), path);
        if (mkdir(parent, 0755) < 0 && errno != EEXIST)
            return -1;
    }
    return 0;
}

/* Beside `path`, under a name that the job could not have taken before. */
static int aside_open(const char *path, char aside[PATH_MAX]) {
    unsigned long long salt;
    if (getrandom(&salt, sizeof salt, 0) != (ssize_t)sizeof salt)
        return -1;
    if (snprintf(aside, PATH_MAX, "%s.%016llx", path, salt) >= PATH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return open(aside, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
}

static int aside_rename(int fd, const char *aside, const char *path, mode_t mode) {
    if (fchmod(fd, mode) == 0 && rename(aside, path) == 0)
        return 0;
    int saved = errno;
    unlink(aside);
    errno = saved;
    return -1;
}

static bool holds(const char *path, const char *content) {
    struct stat status;
    char piece[4096];
    ssize_t size;
    autoclose int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_size != (off_t)strlen(content))
        return false;
    while ((size = read(fd, piece, sizeof piece)) > 0 && !strncmp(piece, content, (size_t)size))
        content += size;
    return size == 0 && !*content;
}

static int content_put(int fd, const char *content) {
    for (ssize_t wrote; *content; content += wrote)
        if ((wrote = write(fd, content, strlen(content))) < 0)
            return -1;
    return 0;
}

static int file_write(const char *path, const char *content) {
    char aside[PATH_MAX];
    if (holds(path, content))
        return 0;
    if (parents_make(path) < 0)
        return -1;
    autoclose int fd = aside_open(path, aside);
    if (fd < 0)
        return -1;
    if (content_put(fd, content) < 0) {
        unlink(aside);
        return -1;
    }
    return aside_rename(fd, aside, path, 0644);
}

int files_write(struct launch *launch) {
    const struct list *writes = &launch->spec.writes;
    for (size_t i = 0; i < writes->count; i++)
        if (file_write(writes->at[i].key, writes->at[i].value) < 0)
            return fail(launch, writes->at[i].key);
    return 0;
}

static int program_copy(int from, int to, off_t size) {
    off_t at = 0;
    while (at < size) {
        ssize_t sent = sendfile(to, from, &at, (size_t)(size - at));
        if (sent == 0)
            errno = EIO;
        if (sent <= 0)
            return -1;
    }
    return 0;
}

/* Byte for byte: the job can write what it was given before. */
static bool program_same(int wanted, const char *path, off_t size) {
    char one[16384], other[sizeof one];
    struct stat status;
    ssize_t piece;
    autoclose int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_size != size)
        return false;
    for (off_t at = 0; at < size; at += piece)
        if ((piece = pread(wanted, one, sizeof one, at)) <= 0 || pread(fd, other, (size_t)piece, at) != piece ||
            memcmp(one, other, (size_t)piece) != 0)
            return false;
    return true;
}

int init_copy(struct launch *launch) {
    const char *path = launch->spec.init;
    char aside[PATH_MAX];
    struct stat wanted;
    if (fstat(launch->spec.init_fd, &wanted) < 0)
        return fail(launch, "init");
    if (program_same(launch->spec.init_fd, path, wanted.st_size))
        return 0;
    autoclose int fd = parents_make(path) < 0 ? -1 : aside_open(path, aside);
    if (fd < 0)
        return fail(launch, path);
    if (program_copy(launch->spec.init_fd, fd, wanted.st_size) < 0) {
        fail(launch, path);
        unlink(aside);
        return -1;
    }
    return aside_rename(fd, aside, path, 0755) < 0 ? fail(launch, path) : 0;
}

int socket_listen(struct launch *launch) {
    const char *path = launch->spec.listen;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    if (!path)
        return 0;
    snprintf(name.sun_path, sizeof name.sun_path, "%s", path);
    launch->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (launch->listener < 0 || (unlink(path) < 0 && errno != ENOENT))
        return fail(launch, path);
    mode_t usual = umask(0111);
    int bound = bind(launch->listener, (struct sockaddr *)&name, sizeof name);
    umask(usual);
    return bound < 0 || listen(launch->listener, 64) < 0 ? fail(launch, path) : 0;
}
