/* A session spec (protocol.h), checked as a whole before anything is done. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define STEP_NAME_MAX 255 /* bytes */

/* Strings within the payload, ended by NULL; `items` itself is NULL while there is none. */
struct strings {
    char **items;
    size_t count, room;
};

struct spec {
    char *payload; /* what everything below points into; unchanged when parsing is done */
    size_t size;
    struct strings argv, env, steps, scripts, done; /* steps and scripts in pairs */
    char *cwd;                                      /* NULL: / */
    int64_t id;                                     /* -1: the next free one; 0: main */
    int64_t umask, uid, gid;                        /* -1: as init */
    uint16_t rows, columns;
    bool terminal, attach, input, keep;
    bool lent;    /* its standard files are the starter's: no log, no files of its own, nothing outlives it */
    int files[3]; /* those, until its process has them; else -1 */
};

/* Takes the payload over in any case.  -1 with errno when it is not a spec. */
int spec_parse(struct spec *spec, char *payload, size_t size);
void spec_free(struct spec *spec);

/* Takes over the descriptors that came with the spec, if any.  -1 when it is not one that can be lent them. */
int spec_lend(struct spec *spec, int files[3]);

bool strings_add(struct strings *strings, char *item);
bool strings_have(const struct strings *strings, const char *item);
