/* The directory that init shares with the engine (/run/serac inside, JOB/io outside).  The job's root can write it
 * too, so nothing found there is trusted: names are opened without following links and must be regular files. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* Opens the directory that the listening socket was bound in; its address must be an absolute path.  Returns the
 * highest session number that files in it bear, or -1; calls `ended` for each session that a former init left there. */
int64_t iodir_open(int listener, void (*ended)(uint32_t id));

int iodir_fd(void);

/* openat(2) in it, never following a link nor waiting for a fifo's other end; EINVAL unless a regular file. */
int iodir_file(const char *name, int flags);

/* The file NAME gets this content by rename; where there is no space for a second file, in place. */
int iodir_replace(const char *name, const char *bytes, size_t size);

int iodir_rename(const char *from, const char *to);
void iodir_remove(const char *name);

#define SESSION_ID_MAX 999999999

/* The name of a session's file: "N" + suffix. */
struct filename {
    char text[32];
};
struct filename session_file(uint32_t id, const char *suffix);
