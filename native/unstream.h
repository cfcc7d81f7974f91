/* Reads the entries of a tar stream from standard input, and trusts none of it. */
#pragma once
#include "tar.h"

#include <time.h>

struct entry {
    char type; /* as in ustar; 0 is '0', and `name/` is '5' */
    unsigned mode;
    int64_t uid, gid, size;
    struct timespec mtime;
    unsigned major, minor;
    const char *name, *link;           /* as they stand in the stream; valid until the next entry */
    const struct tar_records *records; /* with the extended attributes */
};

extern const char *unstream_why; /* after a failure with errno EBADMSG: what is wrong with the stream */

/* The next entry: 1; 0 at the end, when all was read; -1. The contents of the one before must have been taken. */
int unstream_next(struct entry *entry);

/* Write the entry's contents to a file: 0 or -1. */
int unstream_contents(const struct entry *entry, int fd);
