#include "unstream.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define INPUT_SIZE (128u << 10)

struct names { /* that GNU's `L` and `K` or pax records give to the entry that follows */
    char name[TAR_NAME_MAX], link[TAR_NAME_MAX];
};

static char input[INPUT_SIZE];
static size_t input_at, input_end;
static struct names names;
static struct tar_records records;

const char *unstream_why;

static int malformed(const char *why) {
    unstream_why = why;
    errno = EBADMSG;
    return -1;
}

/* At least one byte to take, at input + input_at: how many, 0 at the end of file, -1. */
static ssize_t input_fill(void) {
    while (input_at == input_end) {
        ssize_t n = read(STDIN_FILENO, input, sizeof input);
        if (n == 0 || (n < 0 && errno != EINTR))
            return n;
        input_at = 0;
        input_end = n > 0 ? (size_t)n : 0;
    }
    return (ssize_t)(input_end - input_at);
}

/* Hand `size` bytes on to a buffer, a file, or (neither) nowhere. */
static int input_take(char *to, int fd, uint64_t size) {
    while (size) {
        ssize_t n = input_fill();
        if (n <= 0)
            return n ? -1 : malformed("it ends too early");
        if ((uint64_t)n > size)
            n = (ssize_t)size;
        if (to)
            to = mempcpy(to, input + input_at, (size_t)n);
        else if (fd >= 0 && (n = write(fd, input + input_at, (size_t)n)) < 0) {
            if (errno != EINTR)
                return -1;
            n = 0;
        }
        input_at += (size_t)n;
        size -= (uint64_t)n;
    }
    return 0;
}

static int input_drain(void) {
    ssize_t n;
    while ((n = input_fill()) > 0)
        input_at = input_end;
    return (int)n;
}

static bool is_zero(const struct tar_header *header) {
    static const struct tar_header zero;
    return !memcmp(header, &zero, sizeof zero);
}

/* The payload of an extended header, up to `room` bytes. */
static int take_extended(int64_t size, char *to, size_t room) {
    if ((uint64_t)size > room)
        return malformed("an extended header is too long");
    return input_take(to, -1, (uint64_t)size) < 0 ? -1 : input_take(NULL, -1, tar_padding((uint64_t)size));
}

static int take_long_name(int64_t size, char *to) {
    memset(to, 0, TAR_NAME_MAX);
    return take_extended(size, to, TAR_NAME_MAX - 1);
}

static int copy_name(char *to, const struct tar_record *record) {
    if (record->value_size >= TAR_NAME_MAX || memchr(record->value, 0, record->value_size))
        return malformed("a name is too long or holds a NUL");
    memcpy(to, record->value, record->value_size);
    to[record->value_size] = 0;
    return 0;
}

static int read_number(const struct tar_record *record, int64_t *number) {
    long fraction;
    if (tar_decimal(record->value, record->value_size, number, &fraction) < 0 || fraction)
        return malformed("a number in a pax header is none");
    return 0;
}

static int apply_record(struct entry *entry, const struct tar_record *record) {
    if (tar_record_is(record, "path"))
        return copy_name(names.name, record);
    if (tar_record_is(record, "linkpath"))
        return copy_name(names.link, record);
    if (tar_record_is(record, "size"))
        return read_number(record, &entry->size);
    if (tar_record_is(record, "uid"))
        return read_number(record, &entry->uid);
    if (tar_record_is(record, "gid"))
        return read_number(record, &entry->gid);
    if (record->key_size > 11 && !memcmp(record->key, "GNU.sparse.", 11))
        return malformed("sparse files in GNU's form are not supported");
    if (!tar_record_is(record, "mtime"))
        return 0;
    int64_t seconds;
    if (tar_decimal(record->value, record->value_size, &seconds, &entry->mtime.tv_nsec) < 0)
        return malformed("a time in a pax header is none");
    entry->mtime.tv_sec = seconds;
    return 0;
}

static int apply_records(struct entry *entry) {
    struct tar_record record;
    int more;
    for (size_t at = 0; (more = tar_record_next(&records, &at, &record)) > 0;)
        if (apply_record(entry, &record) < 0)
            return -1;
    return more < 0 ? malformed("a pax header is malformed") : 0;
}

/* ustar splits a name of up to 256 bytes in two. */
static void header_name(const struct tar_header *header) {
    char *at = names.name;
    size_t prefix = memcmp(header->magic, "ustar", 6) ? 0 : strnlen(header->prefix, sizeof header->prefix);
    if (prefix) {
        at = mempcpy(at, header->prefix, prefix);
        *at++ = '/';
    }
    size_t size = strnlen(header->name, sizeof header->name);
    memcpy(at, header->name, size);
    at[size] = 0;
}

static int read_header(const struct tar_header *header, struct entry *entry) {
    int64_t mode, mtime, major, minor;
    if (!tar_sealed(header))
        return malformed("a header's checksum is wrong");
    if (tar_get(header->mode, sizeof header->mode, &mode) < 0 ||
        tar_get(header->uid, sizeof header->uid, &entry->uid) < 0 ||
        tar_get(header->gid, sizeof header->gid, &entry->gid) < 0 ||
        tar_get(header->size, sizeof header->size, &entry->size) < 0 ||
        tar_get(header->mtime, sizeof header->mtime, &mtime) < 0 ||
        tar_get(header->major, sizeof header->major, &major) < 0 ||
        tar_get(header->minor, sizeof header->minor, &minor) < 0)
        return malformed("a number in a header is none");
    if (entry->size < 0)
        return malformed("a size is negative");
    entry->type = header->type ? header->type : '0';
    entry->mode = (unsigned)mode & 07777;
    entry->mtime = (struct timespec){.tv_sec = mtime};
    entry->major = (unsigned)major;
    entry->minor = (unsigned)minor;
    return 0;
}

/* Headers that only say something of the next one: 1 when this was such a one, and is taken. */
static int take_prefix(const struct entry *entry, bool *named, bool *linked) {
    switch (entry->type) {
    case 'x':
        records.size = (size_t)entry->size;
        return take_extended(entry->size, records.bytes, sizeof records.bytes) < 0 ? -1 : 1;
    case 'L':
        *named = true;
        return take_long_name(entry->size, names.name) < 0 ? -1 : 1;
    case 'K':
        *linked = true;
        return take_long_name(entry->size, names.link) < 0 ? -1 : 1;
    case 'g':
    case 'V':
        if ((uint64_t)entry->size > INT64_MAX - TAR_BLOCK)
            return malformed("a size is absurd");
        return input_take(NULL, -1, (uint64_t)entry->size + tar_padding((uint64_t)entry->size)) < 0 ? -1 : 1;
    default:
        return 0;
    }
}

static int settle(struct entry *entry) {
    if (apply_records(entry) < 0)
        return -1;
    if (entry->size < 0 || entry->size > INT64_MAX - TAR_BLOCK || !*names.name)
        return malformed("an entry has no name or an absurd size");
    if (entry->uid < 0 || entry->uid >= UINT32_MAX || entry->gid < 0 || entry->gid >= UINT32_MAX)
        return malformed("an owner is out of range");
    if (!strchr("01234567", entry->type))
        return malformed("an entry's type is not supported");
    if (entry->type == '7')
        entry->type = '0';
    if (entry->type == '0' && names.name[strlen(names.name) - 1] == '/')
        entry->type = '5';
    entry->name = names.name;
    entry->link = names.link;
    entry->records = &records;
    return 1;
}

int unstream_next(struct entry *entry) {
    bool named = false, linked = false;
    records.size = 0;
    for (;;) {
        struct tar_header header;
        if (input_take((char *)&header, -1, sizeof header) < 0)
            return -1;
        if (is_zero(&header))
            return named || linked || records.size ? malformed("it ends too early") : input_drain();
        if (read_header(&header, entry) < 0)
            return -1;
        int taken = take_prefix(entry, &named, &linked);
        if (taken < 0)
            return -1;
        if (taken)
            continue;
        if (!named)
            header_name(&header);
        if (!linked) {
            memcpy(names.link, header.link, sizeof header.link);
            names.link[sizeof header.link] = 0;
        }
        return settle(entry);
    }
}

int unstream_contents(const struct entry *entry, int fd) {
    uint64_t size = (uint64_t)entry->size;
    return input_take(NULL, fd, size) < 0 ? -1 : input_take(NULL, -1, tar_padding(size));
}
