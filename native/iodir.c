#include "iodir.h"

#include "cleanup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int directory = -1;

static int64_t scan_sessions(void (*ended)(uint32_t id)) {
    int copy = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = copy < 0 ? NULL : fdopendir(copy);
    if (!list)
        return -1;
    int64_t highest = 0;
    for (struct dirent *entry; (entry = readdir(list));) {
        char *end;
        unsigned long id = strtoul(entry->d_name, &end, 10);
        if (end == entry->d_name || *end != '.' || id > SESSION_ID_MAX)
            continue;
        if ((int64_t)id > highest)
            highest = (int64_t)id;
        if (!strcmp(end, ".status"))
            ended((uint32_t)id);
    }
    closedir(list);
    return highest;
}

int64_t iodir_open(int listener, void (*ended)(uint32_t id)) {
    struct sockaddr_un address = {0};
    socklen_t size = sizeof address - 1;
    if (getsockname(listener, (struct sockaddr *)&address, &size) < 0)
        return -1;
    char *slash = strrchr(address.sun_path, '/');
    if (address.sun_family != AF_UNIX || address.sun_path[0] != '/' || slash == address.sun_path) {
        errno = ENOTSOCK;
        return -1;
    }
    *slash = 0;
    directory = open(address.sun_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return directory < 0 ? -1 : scan_sessions(ended);
}

int iodir_fd(void) {
    return directory;
}

int iodir_file(const char *name, int flags) {
    autoclose int fd = openat(directory, name, flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0600);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0)
        return -1;
    if (!S_ISREG(status.st_mode)) {
        errno = EINVAL;
        return -1;
    }
    return steal_fd(&fd);
}

static int write_whole(int fd, const char *bytes, size_t size) {
    ssize_t wrote = pwrite(fd, bytes, size, 0);
    if (wrote >= 0 && (size_t)wrote != size)
        errno = ENOSPC;
    return wrote == (ssize_t)size ? 0 : -1;
}

static int write_beside(const char *name, const char *bytes, size_t size) {
    char beside[64];
    snprintf(beside, sizeof beside, "%s.new", name);
    autoclose int fd = iodir_file(beside, O_WRONLY | O_CREAT | O_TRUNC);
    if (fd >= 0 && write_whole(fd, bytes, size) == 0 && renameat(directory, beside, directory, name) == 0)
        return 0;
    int why = errno;
    iodir_remove(beside);
    errno = why;
    return -1;
}

int iodir_replace(const char *name, const char *bytes, size_t size) {
    if (write_beside(name, bytes, size) == 0)
        return 0;
    if (errno != ENOSPC && errno != EDQUOT)
        return -1;
    /* The blocks of the file that is there are ours already; a torn status beats one that never says `exit`. */
    autoclose int fd = iodir_file(name, O_WRONLY);
    return fd < 0 || write_whole(fd, bytes, size) < 0 ? -1 : ftruncate(fd, (off_t)size);
}

int iodir_rename(const char *from, const char *to) {
    return renameat(directory, from, directory, to);
}

void iodir_remove(const char *name) {
    unlinkat(directory, name, 0);
}

struct filename session_file(uint32_t id, const char *suffix) {
    struct filename name;
    snprintf(name.text, sizeof name.text, "%u%s", id, suffix);
    return name;
}
