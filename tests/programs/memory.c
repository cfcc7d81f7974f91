/*
 * memory MEGABYTES DEED: fill memory, say READY, and wait to be brought back, which /run/serac/generation tells.  Then at
 * once do the deed, check every page, and say OK.  What a page holds that it shouldn't is written to /wrong.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <pthread.h>
#include <unistd.h>

#define PAGE 4096ul

static uint8_t *memory;
static size_t pages;

static uint64_t pattern(size_t page) {
    return (page + 1) * 0x9e3779b97f4a7c15u;
}

static void fill(size_t page) {
    uint64_t *words = (uint64_t *)(memory + page * PAGE);
    words[0] = words[PAGE / 8 - 1] = pattern(page);
}

static void wrong(const char *what, size_t page, uint64_t found) {
    FILE *file = fopen("/wrong", "a");
    fprintf(file, "%s page %zu holds %lx\n", what, page, (unsigned long)found);
    fclose(file);
    sync();
}

static void check_at(const char *what, const uint8_t *at, size_t page, uint64_t expected) {
    const uint64_t *words = (const uint64_t *)at;
    if (words[0] != expected || words[PAGE / 8 - 1] != expected)
        wrong(what, page, words[0] != expected ? words[0] : words[PAGE / 8 - 1]);
}

/* In an order that no reading ahead foresees. */
static void check(const char *what, size_t from, size_t to) {
    size_t count = to - from, step = 7919;
    for (size_t i = 0, at = 0; i < count; i++, at = (at + step) % count)
        check_at(what, memory + (from + at) * PAGE, from + at, pattern(from + at));
}

static void generation(char text[64]) {
    int fd = open("/run/serac/generation", O_RDONLY);
    memset(text, 0, 64);
    if (fd >= 0 && read(fd, text, 63) < 0)
        abort();
    close(fd);
}

static void await(void) {
    char before[64], now[64];
    generation(before);
    puts("READY");
    do {
        usleep(500);
        generation(now);
    } while (!strcmp(before, now));
}

static void deed_look(void) {
    check("look", 0, pages);
}

/* For ever: the test ends it. */
static void deed_watch(void) {
    for (;;)
        check("watch", 0, pages);
}

static void deed_exit(void) {
    exit(7);
}

/* Children, and theirs, while the parent goes on and writes. */
static void deed_fork(void) {
    int status, failed = 0;
    for (int i = 0; i < 12; i++)
        if (!fork()) {
            if (i % 3 == 0 && !fork()) {
                check("grandchild", pages / 4, pages / 2);
                _exit(0);
            }
            check("child", 0, pages / (1 + (size_t)i));
            while (wait(&status) > 0)
                failed |= status;
            _exit(failed);
        }
    check("parent", 0, pages);
    while (wait(&status) > 0)
        failed |= status;
    if (failed)
        wrong("a child's end", 0, (uint64_t)failed);
}

static void *thread_look(void *argument) {
    (void)argument;
    check("thread", 0, pages);
    return NULL;
}

static void deed_threads(void) {
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        if (pthread_create(&threads[i], NULL, thread_look, NULL))
            abort();
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
}

/* Tenths of the memory: moved, dropped, unmapped and mapped anew, shrunk, given other rights page by page. */
static void deed_move(void) {
    size_t tenth = pages / 10;
    uint8_t *place = mmap(NULL, tenth * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *moved = mremap(memory + tenth * PAGE, tenth * PAGE, tenth * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    madvise(memory + 3 * tenth * PAGE, tenth * PAGE, MADV_DONTNEED);
    munmap(memory + 5 * tenth * PAGE, tenth * PAGE);
    mmap(memory + 5 * tenth * PAGE, tenth * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    mremap(memory + 9 * tenth * PAGE, tenth * PAGE, tenth / 2 * PAGE, 0);
    for (size_t i = 7 * tenth; i < 8 * tenth; i += 3)
        mprotect(memory + i * PAGE, PAGE, PROT_READ);
    for (size_t i = 0; i < tenth; i++) {
        check_at("moved", moved + i * PAGE, i, pattern(tenth + i));
        check_at("dropped", memory + (3 * tenth + i) * PAGE, i, 0);
        check_at("anew", memory + (5 * tenth + i) * PAGE, i, 0);
    }
    check("kept", 0, tenth);
    check("kept", 2 * tenth, 3 * tenth);
    check("kept", 4 * tenth, 5 * tenth);
    check("kept", 6 * tenth, 9 * tenth + tenth / 2);
}

/* The kernel itself reads what is missing, and writes to it. */
static void deed_calls(void) {
    uint64_t words[PAGE / 8];
    int fd = open("/tmp/pages", O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (size_t i = 0; i < pages; i += 97) {
        if (pwrite(fd, memory + i * PAGE, PAGE, 0) != PAGE || pread(fd, words, PAGE, 0) != PAGE)
            abort();
        check_at("written", (uint8_t *)words, i, pattern(i));
        if (pread(fd, memory + (i + 1) % pages * PAGE + 8, 8, 0) != 8)
            abort();
    }
    check("kept", 0, pages);
}

/* A child gets zeros in place of the last half. */
static void deed_wiped(void) {
    int status;
    if (!fork()) {
        for (size_t i = pages / 2; i < pages; i++)
            check_at("wiped", memory + i * PAGE, i, 0);
        _exit(0);
    }
    check("parent", 0, pages);
    if (wait(&status) < 0 || status)
        wrong("the child's end", 0, (uint64_t)status);
}

int main(int count, char **words) {
    static const struct {
        const char *name;
        void (*run)(void);
    } deeds[] = {{"look", deed_look}, {"watch", deed_watch},     {"exit", deed_exit}, {"fork", deed_fork},
                 {"move", deed_move}, {"threads", deed_threads}, {"calls", deed_calls}, {"wiped", deed_wiped}};
    setvbuf(stdout, NULL, _IONBF, 0);
    if (count != 3)
        return 2;
    pages = (size_t)atol(words[1]) * (1 << 20) / PAGE;
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!strcmp(words[2], "wiped"))
        madvise(memory + pages / 2 * PAGE, (pages - pages / 2) * PAGE, MADV_WIPEONFORK);
    for (size_t i = 0; i < pages; i++)
        fill(i);
    await();
    for (size_t i = 0; i < sizeof deeds / sizeof *deeds; i++)
        if (!strcmp(deeds[i].name, words[2]))
            deeds[i].run();
    puts("OK");
    for (;;)
        pause();
}
