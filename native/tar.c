#include "tar.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int refuse(int why) {
    errno = why;
    return -1;
}

static unsigned sum(const struct tar_header *header) {
    const unsigned char *bytes = (const unsigned char *)header;
    size_t first = offsetof(struct tar_header, checksum), after = first + sizeof header->checksum;
    unsigned total = ' ' * sizeof header->checksum;
    for (size_t i = 0; i < TAR_BLOCK; i++)
        total += i >= first && i < after ? 0 : bytes[i];
    return total;
}

void tar_seal(struct tar_header *header) {
    memcpy(header->magic, "ustar", 6);
    memcpy(header->version, "00", 2);
    snprintf(header->checksum, sizeof header->checksum, "%06o", sum(header));
    header->checksum[7] = ' ';
}

bool tar_sealed(const struct tar_header *header) {
    int64_t said;
    return tar_get(header->checksum, sizeof header->checksum, &said) == 0 && said == sum(header);
}

bool tar_put(char *field, size_t size, int64_t number) {
    bool fits = number >= 0 && number < (int64_t)1 << 3 * (size - 1);
    char digits[24];
    snprintf(digits, sizeof digits, "%0*llo", (int)size - 1, fits ? (unsigned long long)number : 0);
    memcpy(field, digits, size);
    return fits;
}

static int get_binary(const unsigned char *field, size_t size, int64_t *number) {
    bool negative = field[0] == 0xff;
    if (!negative && field[0] != 0x80)
        return refuse(ERANGE);
    int64_t value = negative ? -1 : 0;
    for (size_t i = 1; i < size; i++)
        if (__builtin_mul_overflow(value, 256, &value) || __builtin_add_overflow(value, field[i], &value))
            return refuse(ERANGE);
    *number = value;
    return 0;
}

int tar_get(const char *field, size_t size, int64_t *number) {
    if (field[0] & 0x80)
        return get_binary((const unsigned char *)field, size, number);
    size_t at = 0;
    while (at < size && field[at] == ' ')
        at++;
    int64_t value = 0;
    for (; at < size && field[at] >= '0' && field[at] <= '7'; at++)
        value = value * 8 + (field[at] - '0');
    for (; at < size; at++)
        if (field[at] && field[at] != ' ')
            return refuse(EINVAL);
    *number = value;
    return 0;
}

int tar_record_put(struct tar_records *records, const char *key, const void *value, size_t size) {
    size_t rest = 1 + strlen(key) + 1 + size + 1, length = rest;
    /* The length counts its own digits. */
    for (size_t before = 0; before != length;) {
        before = length;
        length = rest + (size_t)snprintf(NULL, 0, "%zu", before);
    }
    if (length >= TAR_EXTENDED_MAX - records->size)
        return refuse(EOVERFLOW);
    char *at = records->bytes + records->size;
    at += sprintf(at, "%zu %s=", length, key);
    memcpy(at, value, size);
    at[size] = '\n';
    records->size += length;
    return 0;
}

int tar_record_next(const struct tar_records *records, size_t *at, struct tar_record *record) {
    const char *start = records->bytes + *at, *limit = records->bytes + records->size, *here = start;
    if (start == limit)
        return 0;
    size_t length = 0;
    for (; here < limit && *here >= '0' && *here <= '9' && length <= TAR_EXTENDED_MAX; here++)
        length = length * 10 + (size_t)(*here - '0');
    if (here == limit || *here != ' ' || length > (size_t)(limit - start) || length < (size_t)(here - start) + 2)
        return refuse(EINVAL);
    const char *end = start + length - 1, *equals = memchr(here + 1, '=', (size_t)(end - here - 1));
    if (*end != '\n' || !equals)
        return refuse(EINVAL);
    *record = (struct tar_record){.key = here + 1, .value = equals + 1};
    record->key_size = (size_t)(equals - record->key);
    record->value_size = (size_t)(end - record->value);
    *at += length;
    return 1;
}

bool tar_record_is(const struct tar_record *record, const char *key) {
    return record->key_size == strlen(key) && !memcmp(record->key, key, record->key_size);
}

int tar_decimal(const char *text, size_t size, int64_t *seconds, long *nanoseconds) {
    size_t at = size && *text == '-';
    bool negative = at;
    int64_t whole = 0;
    long part = 0, unit = 100000000;
    if (at == size)
        return refuse(EINVAL);
    for (; at < size && text[at] >= '0' && text[at] <= '9'; at++)
        if (__builtin_mul_overflow(whole, 10, &whole) || __builtin_add_overflow(whole, text[at] - '0', &whole))
            return refuse(EINVAL);
    if (at < size && text[at++] != '.')
        return refuse(EINVAL);
    for (; at < size && text[at] >= '0' && text[at] <= '9'; at++, unit /= 10)
        part += unit * (text[at] - '0');
    if (at != size)
        return refuse(EINVAL);
    *seconds = negative ? -whole - (part > 0) : whole;
    *nanoseconds = negative && part ? 1000000000 - part : part;
    return 0;
}
