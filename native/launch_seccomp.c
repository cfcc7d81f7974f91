/*
 * The system call filter, loaded last; it was written by the build (filter_print.c).  Where something is lifted, each group
 * that isn't is loaded by itself: of all filters the kernel takes the strictest answer.
 */
#include "launch.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>

#define FILTER(...)                                                                                                    \
    {                                                                                                                  \
        sizeof((struct sock_filter[]){__VA_ARGS__}) / sizeof(struct sock_filter), (struct sock_filter[]) {             \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    }
#include "filter_ready.h"

static int filter_set(const struct sock_fprog *filter) {
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, filter);
}

int filter_load(struct launch *launch) {
    uint32_t allow = launch->spec.allow;
    if (!allow)
        return filter_set(&whole) < 0 ? fail(launch, "seccomp") : 0;
    for (unsigned group = 0; group < GROUP_COUNT; group++)
        if (!(allow & 1u << group) && filter_set(&groups[group]) < 0)
            return fail(launch, "seccomp");
    return 0;
}
