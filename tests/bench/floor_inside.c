/*
 * What the kernel has to do for the first process of a job: its namespaces, its mounts, its privileges.  What it makes
 * is what a job of serac has; native/launch_mounts.c, launch_sandbox.c and launch_seccomp.c say why each is there.
 */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NAME "floor"
#define IO "/run/serac"
#define EMPTY "/.empty"
#define SEALED (MS_NOSUID | MS_NODEV | MS_NOEXEC)
#define CAPS                                                                                                           \
    (1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FSETID | 1u << CAP_FOWNER | 1u << CAP_MKNOD |                \
     1u << CAP_NET_RAW | 1u << CAP_SETGID | 1u << CAP_SETUID | 1u << CAP_SETFCAP | 1u << CAP_SETPCAP |                 \
     1u << CAP_NET_BIND_SERVICE | 1u << CAP_SYS_CHROOT | 1u << CAP_KILL | 1u << CAP_AUDIT_WRITE)

/* Mounts */

static int tree_copy(const char *path) {
    return open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
}

static void tree_put(int tree, const char *path) {
    must(move_mount(tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH), path);
    close(tree);
}

/* Not every kernel has each of these files. */
static void path_mask(const char *path) {
    int null = must(tree_copy("/dev/null"), "/dev/null");
    if (move_mount(null, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0 && errno != ENOENT)
        must(-1, path);
    close(null);
}

static int tree_sealed(const char *path) {
    struct mount_attr sealed = {.attr_set =
                                    MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC};
    int tree = must(tree_copy(path), path);
    must(mount_setattr(tree, "", AT_EMPTY_PATH, &sealed, sizeof sealed), path);
    return tree;
}

static void kernel_hide(void) {
    static const char *const masked[] = {"/proc/kcore", "/proc/keys", "/proc/sysrq-trigger", "/proc/timer_list"};
    static const char *const readonly[] = {"/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq"};
    for (int i = 0; i < 4; i++)
        path_mask(masked[i]);
    for (int i = 0; i < 4; i++)
        tree_put(tree_sealed(readonly[i]), readonly[i]);
    must(mkdir(EMPTY, 0555), EMPTY);
    tree_put(tree_sealed(EMPTY), "/sys/firmware");
}

/* A user namespace gets a proc and a sysfs only while it sees those of the host, so these come before that one goes.
 * Inherited mounts are locked, which pivot_root refuses: the root is bound on itself. */
static void root_enter(void) {
    must(unshare(CLONE_NEWNS), "mount namespace");
    int io = must(tree_copy(VIEW "/io"), "io");
    tree_put(must(tree_copy(VIEW "/root"), "root"), VIEW "/root");
    must(chdir(VIEW "/root"), "root");
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(mount("proc", "/proc", "proc", SEALED, NULL), "/proc");
    must(mount("sysfs", "/sys", "sysfs", SEALED | MS_RDONLY, NULL), "/sys");
    must(mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"), "pts");
    must(mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=64m"), "/dev/shm");
    kernel_hide();
    tree_put(io, IO);
    must(umount2(".", MNT_DETACH), "the host's root");
    must(chdir("/"), "/");
}

/* Privileges */

static void capabilities_drop(void) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct caps[2] = {{.effective = CAPS, .permitted = CAPS}};
    for (unsigned long cap = 0; cap < 64; cap++)
        if ((cap >= 32 || !(CAPS & 1u << cap)) && prctl(PR_CAPBSET_DROP, cap) < 0)
            break; /* this kernel has no more */
    must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "capabilities");
    must(syscall(SYS_capset, &head, caps), "capabilities");
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
}

#if defined(__x86_64__)
static const unsigned architectures[] = {AUDIT_ARCH_X86_64, AUDIT_ARCH_I386};
#else
static const unsigned architectures[] = {AUDIT_ARCH_AARCH64, AUDIT_ARCH_ARM};
#endif
/* clang-format off */
static const unsigned denied[] = {
    SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register, SYS_landlock_create_ruleset,
    SYS_landlock_add_rule, SYS_landlock_restrict_self, SYS_userfaultfd, SYS_perf_event_open, SYS_fanotify_init,
    SYS_memfd_secret, SYS_bpf, SYS_add_key, SYS_keyctl, SYS_request_key, SYS_clone3, SYS_setns, SYS_mount,
    SYS_umount2, SYS_pivot_root, SYS_move_mount, SYS_open_tree, SYS_fsopen, SYS_fsconfig, SYS_fsmount,
    SYS_fspick, SYS_mount_setattr, SYS_acct, SYS_clock_adjtime, SYS_clock_settime, SYS_init_module,
    SYS_finit_module, SYS_delete_module, SYS_get_mempolicy, SYS_set_mempolicy, SYS_mbind, SYS_migrate_pages,
    SYS_move_pages, SYS_kexec_load, SYS_kexec_file_load, SYS_lookup_dcookie, SYS_nfsservctl,
    SYS_open_by_handle_at, SYS_quotactl, SYS_quotactl_fd, SYS_reboot, SYS_settimeofday, SYS_swapon, SYS_swapoff,
    SYS_syslog, SYS_vhangup, SYS_unshare, SYS_personality,
};
/* clang-format on */
#define DENIED (sizeof denied / sizeof *denied)

/* Instructions for the size's sake: 215, where serac's filter has 277.  The kernel's work at its loading is what counts
 * here, so the second architecture, whose numbers are others, gets the first one's. */
static void filter_load(void) {
    static struct sock_filter program[2 * (DENIED * 2 + 3) + 1];
    size_t at = 0;
    for (int i = 0; i < 2; i++) {
        program[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
        /* a conditional jump reaches 255 instructions */
        program[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, architectures[i], 0, DENIED * 2 + 1);
        program[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
        for (size_t call = 0; call < DENIED; call++) {
            program[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, denied[call], 0, 1);
            program[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
        }
    }
    program[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    const struct sock_fprog filter = {(unsigned short)at, program};
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter), "seccomp");
}

static void identity_take(void) {
    must(setgroups(0, NULL), "groups");
    must(setresgid(0, 0, 0), "group");
    must(setresuid(0, 0, 0), "user");
    must(setsid(), "session");
    umask(022);
}

/* The program is init's to start. criu carries only what lies among the job's files, so init does too. */
static _Noreturn void init_execute(int link, char **words) {
    standard_close();
    must(dup2(link, 3), "link");
    execv(words[0], words);
    _exit(127);
}

void job(int link, char **words) {
    hear(link); /* ids are mapped */
    identity_take();
    must(unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS), "namespaces");
    loopback_raise();
    hear(link); /* the root is mounted, the limits are set */
    root_enter();
    mark("inside");
    must(sethostname(NAME, strlen(NAME)), "name");
    capabilities_drop();
    filter_load();
    mark("sandbox");
    init_execute(link, words);
}
