/*
 * What criu's images say of a process's memory that can be brought in while it runs: pagemap-PID.img, mm-PID.img and
 * pages-N.img (criu's images/pagemap.proto, mm.proto; the pages lie one after the other, in the order of the pagemap).
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

static inline uint64_t page_size(void) {
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Memory that isn't there yet.  It is within one mapping; of each mapping one range is `first`.  `wiped`: a child gets zeros. */
struct range {
    uint64_t start, end;
    uint64_t offset; /* in the file of pages */
    bool first, wiped;
};

/* Sorted by address, nothing twice: at[low] .. at[high - 1]. */
struct memory {
    struct range *at;
    size_t low, high, room;
};

/* The memory of process `pid` (its number in the job), and its file of pages.  -1: EINVAL when the images are damaged. */
int memory_read(int images, int pid, struct memory *memory, int *pages);

int memory_copy(const struct memory *from, struct memory *to);

/* The range that holds `address`, or NULL. */
const struct range *memory_find(const struct memory *memory, uint64_t address);

/* The first range that ends after `address`, or NULL. */
const struct range *memory_next(const struct memory *memory, uint64_t address);

/* Forget what there is in [start, end). */
int memory_remove(struct memory *memory, uint64_t start, uint64_t end);

/* What is in [from, from + length) is at `to` from now on, where nothing is. */
int memory_move(struct memory *memory, uint64_t from, uint64_t to, uint64_t length);

static inline bool memory_empty(const struct memory *memory) {
    return memory->low == memory->high;
}
