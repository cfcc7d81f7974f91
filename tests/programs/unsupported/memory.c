#include "families.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096

static int ring(void) {
    struct io_uring_params parameters = {0};
    return (int)syscall(SYS_io_uring_setup, 4, &parameters);
}

static bool io_uring(void) {
    return ring() >= 0;
}

static bool io_uring_mapped(void) {
    int fd = ring();
    return fd >= 0 && mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, IORING_OFF_SQ_RING) != MAP_FAILED && close(fd) == 0;
}

static bool userfault(void) {
    struct uffdio_api api = {.api = UFFD_API};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    return fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0;
}

static int secret(void) {
    int fd = (int)syscall(SYS_memfd_secret, 0);
    return fd >= 0 && ftruncate(fd, PAGE) == 0 ? fd : -1;
}

static bool memfd_secret_open(void) {
    return secret() >= 0;
}

static bool memfd_secret_mapped(void) {
    int fd = secret();
    char *memory = fd < 0 ? MAP_FAILED : mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return false;
    *memory = 's';
    return close(fd) == 0;
}

const struct kind memory_kinds[] = {
    {"io-uring", io_uring},
    {"io-uring-mapped", io_uring_mapped},
    {"userfaultfd", userfault},
    {"memfd-secret", memfd_secret_open},
    {"memfd-secret-mapped", memfd_secret_mapped},
    {NULL, NULL},
};
