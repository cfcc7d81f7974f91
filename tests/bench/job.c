/*
 * What runs in the jobs that are measured, under serac, under its peers and on the floor.
 *
 *   job hold MEGABYTES PROCESSES [FILE [DIRECTORY STEP]]
 *                                         fill memory, be that many processes, say "ready", and sleep.  When it begins, and
 *                                         whenever it was brought back by criu, it reads all of its memory, and the files
 *                                         of DIRECTORY, and writes FILE: REALTIME-NANOSECONDS of its first instruction, of
 *                                         its last page, of its last file, and 1 if the memory is as it was
 *   job read DIRECTORY STEP               read the files 0, STEP, 2 * STEP .. as far as there are any
 *   job init PROGRAM ARG..                start it, and be its parent and that of whatever it leaves
 *   job answer                            write a byte to descriptor 3, and sleep
 *   job write FILE BYTES                  a file that doesn't compress
 *   job files DIRECTORY COUNT             small files, a thousand a directory
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define CHUNK (1 << 20)

static int must(long done, const char *what) {
    if (done >= 0)
        return (int)done;
    fprintf(stderr, "job: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void noise(void *memory, size_t size, uint64_t *state) {
    uint64_t *words = memory;
    for (size_t i = 0; i < size / sizeof *words; i++)
        words[i] = next(state);
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static uint64_t sum(const volatile uint64_t *memory, size_t size) {
    uint64_t total = 0;
    for (size_t i = 0; i < size / sizeof *memory; i += PAGE / sizeof *memory)
        total += memory[i];
    return total;
}

static void tell(const char *file, const long long moments[3], int same) {
    char aside[4096];
    snprintf(aside, sizeof aside, "%s.aside", file);
    FILE *stream = fopen(aside, "w");
    if (!stream)
        must(-1, aside);
    fprintf(stream, "%lld %lld %lld %d\n", moments[0], moments[1], moments[2], same);
    fclose(stream);
    must(rename(aside, file), file);
}

static void sleep_on(void) {
    for (;;)
        pause();
}

/* How long the system has stood, as the job sees it: a restore takes its clock back. */
static long long stood(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return now() - (time.tv_sec * 1000000000LL + time.tv_nsec);
}

/* Until it was brought back: criu ends the call at once, but for when it caught the job outside of it. */
static void sleep_until_restored(void) {
    const struct timespec tick = {.tv_nsec = 50000000};
    long long before = stood();
    while (stood() - before < 1000000)
        nanosleep(&tick, NULL);
}

static void *filled(size_t size) {
    uint64_t state = 88172645463325252ull;
    if (!size)
        return NULL;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory == MAP_FAILED ? -1 : 0, "memory");
    noise(memory, size, &state);
    return memory;
}

static void read_files(const char *directory, long step) {
    static char buffer[CHUNK];
    char path[4096];
    for (long i = 0;; i += step) {
        snprintf(path, sizeof path, "%s/%ld", directory, i);
        int fd = open(path, O_RDONLY);
        if (fd < 0 && i && errno == ENOENT)
            return;
        must(fd, path);
        while (must(read(fd, buffer, sizeof buffer), path) > 0)
            ;
        close(fd);
    }
}

/* `words`: FILE, DIRECTORY, STEP, as far as they are given. */
static void hold(long megabytes, long processes, char **words, long long first) {
    size_t size = (size_t)megabytes << 20;
    for (long i = 1; i < processes; i++)
        if (must(fork(), "fork") == 0)
            sleep_on();
    const uint64_t *memory = filled(size);
    uint64_t wanted = sum(memory, size), found = wanted;
    puts("ready");
    fflush(stdout);
    for (;;) {
        long long last = now();
        if (words[0] && words[1])
            read_files(words[1], atol(words[2]));
        if (words[0])
            tell(words[0], (const long long[]){first, last, now()}, found == wanted);
        sleep_until_restored();
        first = now();
        found = sum(memory, size);
    }
}

static void write_file(const char *file, long long bytes) {
    static char buffer[CHUNK];
    uint64_t state = 88172645463325252ull ^ (uint64_t)now();
    int fd = must(open(file, O_WRONLY | O_CREAT | O_TRUNC, 0644), file);
    while (bytes > 0) {
        size_t size = bytes < CHUNK ? (size_t)bytes : CHUNK;
        noise(buffer, sizeof buffer, &state);
        bytes -= must(write(fd, buffer, size), file);
    }
    close(fd);
}

static void write_files(const char *directory, long count) {
    char path[4096], content[128];
    must(mkdir(directory, 0755), directory);
    for (long i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%ld", directory, i / 1000);
        if (i % 1000 == 0)
            must(mkdir(path, 0755), path);
        snprintf(path, sizeof path, "%s/%ld/%ld", directory, i / 1000, i);
        int size = snprintf(content, sizeof content, "file %ld of %ld\n", i, count);
        int fd = must(open(path, O_WRONLY | O_CREAT, 0644), path);
        must(write(fd, content, (size_t)size), path);
        close(fd);
    }
}

static void init(char **program) {
    if (must(fork(), "fork") == 0) {
        must(setsid(), "session");
        execv(program[0], program);
        must(-1, program[0]);
    }
    while (wait(NULL) > 0)
        ;
}

int main(int count, char **words) {
    long long begun = now();
    const char *verb = count > 1 ? words[1] : "";
    if (!strcmp(verb, "answer")) {
        must(write(3, "", 1), "descriptor 3");
        sleep_on();
    } else if (count > 2 && !strcmp(verb, "init")) {
        init(words + 2);
    } else if (count > 3 && count != 6 && !strcmp(verb, "hold")) {
        hold(atol(words[2]), atol(words[3]), words + 4, begun);
    } else if (count > 3 && !strcmp(verb, "read")) {
        read_files(words[2], atol(words[3]));
    } else if (count > 3 && !strcmp(verb, "write")) {
        write_file(words[2], atoll(words[3]));
    } else if (count > 3 && !strcmp(verb, "files")) {
        write_files(words[2], atol(words[3]));
    } else {
        fputs("usage: job hold MEGABYTES PROCESSES [FILE [DIRECTORY STEP]] | init PROGRAM ARG.. | answer | read "
              "DIRECTORY STEP"
              " | write FILE BYTES | files DIRECTORY COUNT\n",
              stderr);
        return 2;
    }
    return 0;
}
