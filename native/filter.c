/*
 * The system call filter: all is allowed but the list.  EPERM is what containers usually answer to what a job has no
 * business with; ENOSYS, as from a kernel without it, to what no checkpoint can carry or would lose in silence, so that
 * programs fall back to what can be carried.
 */
#include "filter.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static const unsigned namespace_flags[] = {CLONE_NEWNS,   CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC,
                                           CLONE_NEWUSER, CLONE_NEWPID,    CLONE_NEWNET, CLONE_NEWTIME};
#define NAMESPACE_FLAGS (sizeof namespace_flags / sizeof *namespace_flags)

static const struct denial {
    int call;
    enum call_group group;
    int error;
} denials[] = {
    {SCMP_SYS(io_uring_setup), GROUP_IO_URING, ENOSYS},
    {SCMP_SYS(io_uring_enter), GROUP_IO_URING, ENOSYS},
    {SCMP_SYS(io_uring_register), GROUP_IO_URING, ENOSYS},
    {SCMP_SYS(landlock_create_ruleset), GROUP_LANDLOCK, ENOSYS},
    {SCMP_SYS(landlock_add_rule), GROUP_LANDLOCK, ENOSYS},
    {SCMP_SYS(landlock_restrict_self), GROUP_LANDLOCK, ENOSYS},
    {SCMP_SYS(userfaultfd), GROUP_USERFAULTFD, ENOSYS},
    {SCMP_SYS(perf_event_open), GROUP_PERF, ENOSYS},
    {SCMP_SYS(fanotify_init), GROUP_FANOTIFY, ENOSYS},
    {SCMP_SYS(memfd_secret), GROUP_MEMFD_SECRET, ENOSYS},
    {SCMP_SYS(bpf), GROUP_BPF, EPERM},
    {SCMP_SYS(add_key), GROUP_KEYRING, EPERM},
    {SCMP_SYS(keyctl), GROUP_KEYRING, EPERM},
    {SCMP_SYS(request_key), GROUP_KEYRING, EPERM},
    /* clone3 hides its flags in memory: without it, libc falls back to clone */
    {SCMP_SYS(clone3), GROUP_NAMESPACES, ENOSYS},
    {SCMP_SYS(setns), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(mount), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(umount), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(umount2), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(pivot_root), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(move_mount), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(open_tree), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(fsopen), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(fsconfig), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(fsmount), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(fspick), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(mount_setattr), GROUP_NAMESPACES, EPERM},
    {SCMP_SYS(acct), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(clock_adjtime), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(clock_adjtime64), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(clock_settime), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(clock_settime64), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(create_module), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(delete_module), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(finit_module), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(get_kernel_syms), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(get_mempolicy), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(init_module), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(ioperm), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(iopl), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(kexec_file_load), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(kexec_load), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(lookup_dcookie), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(mbind), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(migrate_pages), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(move_pages), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(nfsservctl), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(open_by_handle_at), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(query_module), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(quotactl), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(quotactl_fd), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(reboot), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(set_mempolicy), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(settimeofday), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(stime), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(swapoff), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(swapon), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(_sysctl), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(sysfs), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(syslog), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(uselib), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(ustat), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(vhangup), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(vm86), GROUP_ALWAYS, EPERM},
    {SCMP_SYS(vm86old), GROUP_ALWAYS, EPERM},
};

static bool meant(uint32_t groups, enum call_group group) {
    return groups & 1u << group;
}

static int denials_add(scmp_filter_ctx filter, uint32_t groups) {
    for (size_t i = 0; i < sizeof denials / sizeof *denials; i++) {
        const struct denial *denial = &denials[i];
        if (!meant(groups, denial->group))
            continue;
        int added = seccomp_rule_add(filter, SCMP_ACT_ERRNO((uint16_t)denial->error), denial->call, 0);
        if (added < 0)
            return added;
    }
    return 0;
}

/* The kernel looks at 32 bits of these arguments; whoever sets the others must not slip through. */
static int bits_deny(scmp_filter_ctx filter, int call, unsigned argument, unsigned mask, unsigned value, int error) {
    struct scmp_arg_cmp match = {argument, SCMP_CMP_MASKED_EQ, mask, value};
    return seccomp_rule_add_array(filter, SCMP_ACT_ERRNO((uint16_t)error), call, 1, &match);
}

static int namespaces_deny(scmp_filter_ctx filter) {
    int added = 0;
    for (size_t i = 0; i < NAMESPACE_FLAGS && added >= 0; i++) {
        unsigned flag = namespace_flags[i];
        added = bits_deny(filter, SCMP_SYS(unshare), 0, flag, flag, EPERM);
        if (added >= 0 && flag != CLONE_NEWTIME) /* in clone this bit belongs to the exit signal */
            added = bits_deny(filter, SCMP_SYS(clone), 0, flag, flag, EPERM);
    }
    return added;
}

/* In the host's user namespace a node would be the host's device; a whiteout, of number 0, is nobody's. */
static int node_deny(scmp_filter_ctx filter, int call, unsigned mode, unsigned type) {
    const struct scmp_arg_cmp match[] = {{mode, SCMP_CMP_MASKED_EQ, S_IFMT, type}, {mode + 1, SCMP_CMP_NE, 0, 0}};
    return seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), call, 2, match);
}

static int devices_deny(scmp_filter_ctx filter) {
    static const unsigned types[] = {S_IFBLK, S_IFCHR};
    int added = 0;
    for (size_t i = 0; i < sizeof types / sizeof *types && added >= 0; i++) {
        added = node_deny(filter, SCMP_SYS(mknod), 1, types[i]);
        if (added >= 0)
            added = node_deny(filter, SCMP_SYS(mknodat), 2, types[i]);
    }
    return added;
}

static int arguments_deny(scmp_filter_ctx filter) {
    int added = bits_deny(filter, SCMP_SYS(ioctl), 1, UINT32_MAX, TIOCSTI, EPERM);
    if (added >= 0)
        added = bits_deny(filter, SCMP_SYS(ioctl), 1, UINT32_MAX, TIOCLINUX, EPERM);
    if (added >= 0) /* vsock knows no network namespaces: it would reach the host from any job */
        added = bits_deny(filter, SCMP_SYS(socket), 0, UINT32_MAX, AF_VSOCK, EAFNOSUPPORT);
    return added;
}

/*
 * 32-bit programs get the same rules.  x32 isn't in the filter: what is in none of its architectures is answered as by
 * a kernel without it, and so is x32.
 */
static const struct architecture {
    uint32_t token; /* SCMP_ARCH_* are the kernel's AUDIT_ARCH_* */
    uint32_t personality;
} architectures[] = {
#if defined(__x86_64__)
    {SCMP_ARCH_X86_64, 135},
    {SCMP_ARCH_X86, 136},
#elif defined(__aarch64__)
    {SCMP_ARCH_AARCH64, 92},
    {SCMP_ARCH_ARM, 136},
#else
#error "which system call numbers does this machine have?"
#endif
};
#define ARCHITECTURES (sizeof architectures / sizeof *architectures)

static int architectures_set(scmp_filter_ctx filter) {
    for (size_t i = 1; i < ARCHITECTURES; i++) {
        int added = seccomp_arch_add(filter, architectures[i].token);
        if (added < 0)
            return added;
    }
    return seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ERRNO(ENOSYS));
}

/*
 * personality(2) may ask (all ones) and mix the two flags that containers know, UNAME26 and PER_LINUX32.  libseccomp
 * needs 60 rules and a millisecond to say so; this goes before its program and falls through to it.
 */
static int personality_write(int fd) {
    for (size_t i = 0; i < ARCHITECTURES; i++) {
        const struct sock_filter check[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, architectures[i].token, 0, 6),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, architectures[i].personality, 0, 4),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])), /* little-endian: low half */
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, UINT32_MAX, 2, 0),
            BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, ~(UNAME26 | PER_LINUX32), 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        };
        if (write(fd, check, sizeof check) != sizeof check)
            return -errno;
    }
    return 0;
}

int filter_write(uint32_t groups, int fd) {
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    int added = filter ? architectures_set(filter) : -ENOMEM;
    if (added >= 0)
        added = denials_add(filter, groups);
    if (added >= 0 && meant(groups, GROUP_DEVICES))
        added = devices_deny(filter);
    if (added >= 0 && meant(groups, GROUP_NAMESPACES))
        added = namespaces_deny(filter);
    if (added >= 0 && meant(groups, GROUP_ALWAYS))
        added = arguments_deny(filter);
    if (added >= 0 && meant(groups, GROUP_ALWAYS))
        added = personality_write(fd);
    if (added >= 0)
        added = seccomp_export_bpf(filter, fd);
    seccomp_release(filter);
    errno = -added;
    return added < 0 ? -1 : 0;
}
