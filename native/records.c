#include "records.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool key_ok(const char *key) {
    return *key && !key[strspn(key, "abcdefghijklmnopqrstuvwxyz0123456789._-")];
}

int record_next(struct reader *reader, char **key, char **value) {
    if (reader->at == reader->end)
        return 0;
    char *stop = memchr(reader->at, 0, (size_t)(reader->end - reader->at));
    char *equals = stop ? strchr(reader->at, '=') : NULL;
    if (!equals) {
        errno = EINVAL;
        return -1;
    }
    *equals = 0;
    if (!key_ok(reader->at)) {
        errno = EINVAL;
        return -1;
    }
    *key = reader->at;
    *value = equals + 1;
    reader->at = stop + 1;
    return 1;
}

bool records_known(char *bytes, size_t size, const char *const *keys) {
    struct reader reader = {bytes, bytes + size};
    char *key, *value;
    unsigned seen = 0;
    int result;
    while ((result = record_next(&reader, &key, &value)) == 1) {
        int at = 0;
        while (keys[at] && strcmp(keys[at], key) != 0)
            at++;
        value[-1] = '=';
        if (!keys[at] || seen & 1u << at)
            return false;
        seen |= 1u << at;
    }
    return result == 0;
}

static bool writer_room(struct writer *writer, size_t more) {
    if (writer->size + more <= writer->room)
        return true;
    size_t room = (writer->size + more) * 2;
    char *bytes = writer->failed ? NULL : realloc(writer->bytes, room);
    if (!bytes) {
        writer->failed = true;
        return false;
    }
    writer->bytes = bytes;
    writer->room = room;
    return true;
}

void record_put(struct writer *writer, const char *key, const char *value) {
    size_t klen = strlen(key), vlen = strlen(value);
    if (!writer_room(writer, klen + vlen + 2))
        return;
    char *at = writer->bytes + writer->size;
    memcpy(at, key, klen);
    at[klen] = '=';
    memcpy(at + klen + 1, value, vlen + 1);
    writer->size += klen + vlen + 2;
}

void record_number(struct writer *writer, const char *key, long long value) {
    char text[24];
    snprintf(text, sizeof text, "%lld", value);
    record_put(writer, key, text);
}

int number_parse(const char *text, long long low, long long high, long long *out) {
    char *end;
    errno = 0;
    if (*text != '-' && (*text < '0' || *text > '9')) {
        errno = EINVAL;
        return -1;
    }
    long long value = strtoll(text, &end, 10);
    if (errno == ERANGE || (!*end && (value < low || value > high))) {
        errno = ERANGE;
        return -1;
    }
    if (*end) {
        errno = EINVAL;
        return -1;
    }
    *out = value;
    return 0;
}
