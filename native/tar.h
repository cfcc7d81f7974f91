/* The tar format, as POSIX.1-2001 has it (pax), without any I/O. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TAR_BLOCK 512u
#define TAR_NAME_MAX (64u << 10)    /* of an entry's whole name, with its NUL */
#define TAR_EXTENDED_MAX (1u << 20) /* of all pax records of an entry */
#define TAR_XATTR "SCHILY.xattr."

struct tar_header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100];
    char magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155], rest[12];
};
_Static_assert(sizeof(struct tar_header) == TAR_BLOCK, "a header is one block");

struct tar_records { /* pax records: `LENGTH KEY=VALUE\n`, LENGTH counting all of it */
    size_t size;
    char bytes[TAR_EXTENDED_MAX];
};

struct tar_record { /* within the bytes of tar_records, not ended by NUL */
    const char *key, *value;
    size_t key_size, value_size;
};

/* Fill magic, version and, last of all, the checksum. */
void tar_seal(struct tar_header *header);
bool tar_sealed(const struct tar_header *header);

/* Write a number in octal: false, and zero is written, when it doesn't fit. */
bool tar_put(char *field, size_t size, int64_t number);

/* A number in octal or base 256: 0, or -1 with errno EINVAL or ERANGE. */
int tar_get(const char *field, size_t size, int64_t *number);

/* Append a record: 0, or -1 with errno EOVERFLOW. */
int tar_record_put(struct tar_records *records, const char *key, const void *value, size_t size);

/* The record at *at, which moves on: 1, 0 at the end, -1 with errno EINVAL when it is malformed. */
int tar_record_next(const struct tar_records *records, size_t *at, struct tar_record *record);

bool tar_record_is(const struct tar_record *record, const char *key);

/* `[-]SECONDS[.FRACTION]`, or -1 with errno EINVAL; *nanoseconds is within 0 .. 999999999. */
int tar_decimal(const char *text, size_t size, int64_t *seconds, long *nanoseconds);

static inline uint64_t tar_padding(uint64_t size) {
    return -size % TAR_BLOCK;
}
