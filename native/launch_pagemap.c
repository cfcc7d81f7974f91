#include "launch_pagemap.h"

#include "cleanup.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define IMAGE_MAGIC 0x54564319
#define PAGEMAP_MAGIC 0x56084025
#define MM_MAGIC 0x57492820
#define IMAGE_MAX (1ll << 30)

enum { PAGES_LAZY = 2, PAGES_PRESENT = 4 }; /* flags of an entry */

static int damaged(void) {
    errno = EINVAL;
    return -1;
}

struct bytes {
    const uint8_t *at, *end;
};

/* A field of a protobuf message: `value` of a number, `inner` of a message. */
struct field {
    uint64_t number, value;
    struct bytes inner;
};

static int varint_next(struct bytes *bytes, uint64_t *value) {
    *value = 0;
    for (unsigned shift = 0; shift < 64 && bytes->at < bytes->end; shift += 7) {
        uint8_t byte = *bytes->at++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return 0;
    }
    return damaged();
}

/* 1, or 0 at the end, or -1 for what is no message. */
static int field_next(struct bytes *bytes, struct field *field) {
    uint64_t key;
    if (bytes->at == bytes->end)
        return 0;
    if (varint_next(bytes, &key) < 0 || varint_next(bytes, &field->value) < 0)
        return -1;
    field->number = key >> 3;
    if ((key & 7) == 0)
        return 1;
    if ((key & 7) != 2 || field->value > (uint64_t)(bytes->end - bytes->at))
        return damaged();
    field->inner = (struct bytes){bytes->at, bytes->at + field->value};
    bytes->at = field->inner.end;
    return 1;
}

static int word_next(struct bytes *bytes, uint32_t *word) {
    if ((size_t)(bytes->end - bytes->at) < sizeof *word)
        return damaged();
    memcpy(word, bytes->at, sizeof *word);
    bytes->at += sizeof *word;
    return 0;
}

/* 1 and the next message of an image, or 0 at the end, or -1. */
static int entry_next(struct bytes *image, struct bytes *entry) {
    uint32_t size;
    if (image->at == image->end)
        return 0;
    if (word_next(image, &size) < 0 || size > (size_t)(image->end - image->at))
        return damaged();
    *entry = (struct bytes){image->at, image->at + size};
    image->at += size;
    return 1;
}

/* A whole file; *content is the caller's to free. */
static int file_read(int dir, const char *name, uint8_t **content, size_t *size) {
    struct stat status;
    autoclose int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return -1;
    if (status.st_size > IMAGE_MAX)
        return damaged();
    autofree uint8_t *bytes = malloc((size_t)status.st_size + 1);
    if (!bytes)
        return -1;
    ssize_t got = 1;
    for (*size = 0; got > 0 && *size < (size_t)status.st_size; *size += (size_t)got)
        if ((got = read(fd, bytes + *size, (size_t)status.st_size - *size)) < 0)
            return -1;
    *content = steal_pointer(&bytes);
    return 0;
}

static int image_read(int dir, const char *kind, int pid, uint32_t magic, uint8_t **content, struct bytes *image) {
    char name[48];
    size_t size;
    uint32_t common, own;
    snprintf(name, sizeof name, "%s-%d.img", kind, pid);
    if (file_read(dir, name, content, &size) < 0)
        return -1;
    *image = (struct bytes){*content, *content + size};
    if (word_next(image, &common) < 0 || word_next(image, &own) < 0)
        return -1;
    return common == IMAGE_MAGIC && own == magic ? 0 : damaged();
}

static int memory_room(struct memory *memory) {
    if (memory->high < memory->room)
        return 0;
    size_t room = memory->room ? 2 * memory->room : 64;
    struct range *at = reallocarray(memory->at, room, sizeof *at);
    if (!at)
        return -1;
    memory->at = at;
    memory->room = room;
    return 0;
}

static int memory_insert(struct memory *memory, size_t index, struct range range) {
    if (memory_room(memory) < 0)
        return -1;
    memmove(memory->at + index + 1, memory->at + index, (memory->high++ - index) * sizeof range);
    memory->at[index] = range;
    return 0;
}

/* Of the ranges that don't end at or before `address`, the first. */
static size_t memory_after(const struct memory *memory, uint64_t address) {
    size_t low = memory->low, high = memory->high;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (memory->at[middle].end <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct range *memory_next(const struct memory *memory, uint64_t address) {
    size_t index = memory_after(memory, address);
    return index < memory->high ? &memory->at[index] : NULL;
}

const struct range *memory_find(const struct memory *memory, uint64_t address) {
    const struct range *next = memory_next(memory, address);
    return next && next->start <= address ? next : NULL;
}

/* No range lies across `address` any more; *index: the first that begins there or later. */
static int memory_split(struct memory *memory, uint64_t address, size_t *index) {
    *index = memory_after(memory, address);
    if (*index == memory->high || memory->at[*index].start >= address)
        return 0;
    struct range *lower = &memory->at[*index], upper = *lower;
    upper.offset += address - upper.start;
    upper.start = address;
    upper.first = false;
    lower->end = address;
    return memory_insert(memory, ++*index, upper);
}

static void memory_cut(struct memory *memory, size_t low, size_t high) {
    if (low == memory->low) {
        memory->low = high;
        return;
    }
    memmove(memory->at + low, memory->at + high, (memory->high - high) * sizeof *memory->at);
    memory->high -= high - low;
}

int memory_remove(struct memory *memory, uint64_t start, uint64_t end) {
    size_t low, high;
    if (memory_split(memory, start, &low) < 0 || memory_split(memory, end, &high) < 0)
        return -1;
    memory_cut(memory, low, high);
    return 0;
}

int memory_move(struct memory *memory, uint64_t from, uint64_t to, uint64_t length) {
    size_t low, high;
    if (memory_split(memory, from, &low) < 0 || memory_split(memory, from + length, &high) < 0)
        return -1;
    size_t count = high - low;
    if (!count)
        return 0;
    autofree struct range *moved = calloc(count, sizeof *moved);
    if (!moved)
        return -1;
    memcpy(moved, memory->at + low, count * sizeof *moved);
    memory_cut(memory, low, high);
    for (size_t i = 0; i < count; i++) {
        moved[i].start += to - from;
        moved[i].end += to - from;
        if (memory_insert(memory, memory_after(memory, moved[i].start), moved[i]) < 0)
            return -1;
    }
    return 0;
}

int memory_copy(const struct memory *from, struct memory *to) {
    size_t count = from->high - from->low;
    *to = (struct memory){.high = count, .room = count};
    if (!count)
        return 0;
    to->at = calloc(count, sizeof *to->at);
    if (!to->at)
        return -1;
    memcpy(to->at, from->at + from->low, count * sizeof *to->at);
    return 0;
}

/* The process's mappings, walked along with the pagemap: both are sorted. */
struct mappings {
    struct bytes entry;
    uint64_t start, end;
    bool wiped;
    bool fresh; /* no range of this one yet */
};

static int mapping_next(struct mappings *mappings) {
    struct field field, part;
    int more;
    while ((more = field_next(&mappings->entry, &field)) > 0 && field.number != 14)
        ;
    if (more <= 0)
        return damaged();
    uint64_t values[10] = {0};
    while ((more = field_next(&field.inner, &part)) > 0)
        if (part.number < 10)
            values[part.number] = part.value;
    mappings->start = values[1];
    mappings->end = values[2];
    mappings->wiped = values[9] >> MADV_WIPEONFORK & 1;
    mappings->fresh = true;
    return more < 0 ? -1 : 0;
}

/* A run of pages, cut where one mapping ends and the next begins. */
static int run_add(struct memory *memory, struct mappings *mappings, uint64_t start, uint64_t end, uint64_t offset) {
    while (start < end) {
        while (mappings->end <= start)
            if (mapping_next(mappings) < 0)
                return -1;
        uint64_t until = end < mappings->end ? end : mappings->end;
        struct range range = {start, until, offset, mappings->fresh, mappings->wiped};
        if (mappings->start > start || (memory->high && memory->at[memory->high - 1].end > start))
            return damaged();
        if (memory_insert(memory, memory->high, range) < 0)
            return -1;
        mappings->fresh = false;
        offset += until - start;
        start = until;
    }
    return 0;
}

struct run {
    uint64_t start, size;
    unsigned flags;
};

static int run_read(struct bytes entry, struct run *run) {
    uint64_t values[6] = {0};
    struct field field;
    int more;
    while ((more = field_next(&entry, &field)) > 0)
        if (field.number < 6)
            values[field.number] = field.value;
    uint64_t count = values[5] ? values[5] : values[2];
    if (more < 0 || !count || count > (1ull << 40) || values[1] % page_size() ||
        values[1] + count * page_size() < values[1])
        return damaged();
    *run = (struct run){values[1], count * page_size(), (unsigned)values[4]};
    return 0;
}

/* Every run, and in the end how many bytes the file of pages has to have. */
static int runs_read(struct bytes *image, struct mappings *mappings, struct memory *memory, uint64_t *offset) {
    struct bytes entry;
    struct run run;
    int more;
    for (*offset = 0; (more = entry_next(image, &entry)) > 0;) {
        if (run_read(entry, &run) < 0)
            return -1;
        bool lazy = run.flags & PAGES_LAZY, present = run.flags & PAGES_PRESENT;
        if (!present)
            return damaged();
        if (lazy && run_add(memory, mappings, run.start, run.start + run.size, *offset) < 0)
            return -1;
        *offset += run.size;
    }
    return more;
}

static int pages_open(int images, uint64_t number, uint64_t size) {
    char name[48];
    struct stat status;
    snprintf(name, sizeof name, "pages-%llu.img", (unsigned long long)number);
    autoclose int fd = openat(images, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return -1;
    if ((uint64_t)status.st_size < size)
        return damaged();
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    return steal_fd(&fd);
}

int memory_read(int images, int pid, struct memory *memory, int *pages) {
    autofree uint8_t *mm = NULL, *pagemap = NULL;
    struct bytes mm_image, image, head;
    struct mappings mappings = {0};
    struct field id;
    uint64_t size;
    *memory = (struct memory){0};
    if (image_read(images, "mm", pid, MM_MAGIC, &mm, &mm_image) < 0 ||
        image_read(images, "pagemap", pid, PAGEMAP_MAGIC, &pagemap, &image) < 0)
        return -1;
    if (entry_next(&mm_image, &mappings.entry) <= 0 || entry_next(&image, &head) <= 0 || field_next(&head, &id) <= 0)
        return damaged();
    if (runs_read(&image, &mappings, memory, &size) < 0) {
        free(memory->at);
        return -1;
    }
    *pages = pages_open(images, id.value, size);
    if (*pages < 0)
        free(memory->at);
    return *pages < 0 ? -1 : 0;
}
