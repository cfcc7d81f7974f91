/*
 * The system call filter, loaded last.  That of a job for which something is lifted is written by the launcher, while the
 * job makes its network; the two share the memory that it is in.
 */
#include "filter.h"
#include "launch.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static struct sock_filter ready[] = {
#include "filter_ready.h"
};

int filter_open(struct launch *launch) {
    if (!launch->spec.allow)
        return 0;
    launch->program = memfd_create("seccomp", MFD_CLOEXEC);
    return launch->program < 0 ? fail(launch, "seccomp") : 0;
}

int filter_build(struct launch *launch) {
    if (!launch->spec.allow)
        return 0;
    return filter_write(launch->spec.allow, launch->program) < 0 ? fail(launch, "seccomp") : 0;
}

static int filter_set(struct sock_filter *program, size_t size) {
    const struct sock_fprog filter = {(unsigned short)(size / sizeof *program), program};
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter);
}

int filter_load(struct launch *launch) {
    static struct sock_filter program[BPF_MAXINSNS];
    if (!launch->spec.allow)
        return filter_set(ready, sizeof ready) < 0 ? fail(launch, "seccomp") : 0;
    ssize_t size = pread(launch->program, program, sizeof program, 0);
    return size <= 0 || filter_set(program, (size_t)size) < 0 ? fail(launch, "seccomp") : 0;
}
