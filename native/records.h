/* `key=value` records ended by NUL: the form of launch specs, reports, session specs and status files (protocol.h). */
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct reader {
    char *at, *end;
};

struct writer {
    char *bytes;
    size_t size, room;
    bool failed; /* out of memory, or a value that holds a NUL: checked once, at the end */
};

/* The next record, split in place: 1 and *key, *value; 0 at the end; -1 when it is malformed (errno EINVAL). */
int record_next(struct reader *reader, char **key, char **value);

/* Whether all of it are records of these keys (NULL ends them), each at most once; the bytes stay as they are. */
bool records_known(char *bytes, size_t size, const char *const *keys);

void record_put(struct writer *writer, const char *key, const char *value);
void record_number(struct writer *writer, const char *key, long long value);

/* A whole decimal number within [low, high]: 0, or -1 with errno EINVAL or ERANGE. */
int number_parse(const char *text, long long low, long long high, long long *out);
