/*
 * `serac-launch criu`: what criu sees is this program's own mount namespace.  A tmpfs on /run holds its cache of the
 * kernel's features (criu trusts it nowhere else) and, for a restore, the job's root and the trees that it binds; they
 * are put there while criu loads its libraries.  For a restore it is born in the job's cgroup, and so is all that it
 * makes.
 */
#include "launch.h"
#include "launch_fs.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define VIEW "/run"

/* A process that does nothing but have a user namespace, until its maps are written and it is held open. */
int userns_make(struct launch *launch) {
    pid_t criu = launch->pid, own = getpid();
    if (!launch->spec.count)
        return 0;
    launch->pid = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
    if (launch->pid == 0) {
        die_with(own);
        for (;;)
            pause();
    }
    int mapped = launch->pid < 0 ? fail(launch, "user namespace") : ids_map(launch);
    if (launch->pid > 0) {
        kill(launch->pid, SIGKILL);
        waitpid(launch->pid, NULL, 0);
    }
    launch->pid = criu;
    return mapped;
}

int layers_mount(struct launch *launch) {
    return launch->spec.lowers.count ? root_mount(launch) : 0;
}

int cache_open(struct launch *launch) {
    const char *path = launch->spec.kdat;
    launch->kdat = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    return path && launch->kdat < 0 && errno != ENOENT ? fail(launch, path) : 0;
}

/*
 * A criu in the middle of a dump must not die with the engine: it holds the job's processes.  Who comes later finds it
 * by its pid file, which is locked as long as criu lives, and takes the engine's part through the descriptor named there.
 */
int pidfile_open(struct launch *launch) {
    const char *path = launch->spec.pidfile;
    if (!path)
        return 0;
    launch->pidfile = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600); /* stays open in criu */
    return launch->pidfile < 0 ? fail(launch, path) : 0;
}

static int pidfile_write(struct launch *launch) {
    char words[32];
    int fd = launch->pidfile;
    if (fd < 0)
        return 0;
    int size = snprintf(words, sizeof words, "%d %d\n", getpid(), launch->spec.keep_fd);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 || write(fd, words, (size_t)size) != size)
        return fail(launch, launch->spec.pidfile);
    return 0;
}

/* In the launcher: the lock is criu's alone. */
int pidfile_leave(struct launch *launch) {
    close_at_exit(&launch->pidfile);
    launch->pidfile = -1;
    return 0;
}

static int cache_fill(int from) {
    struct stat status;
    autoclose int to = open(VIEW "/criu.kdat", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0 || fstat(from, &status) < 0)
        return -1;
    return sendfile(to, from, NULL, (size_t)status.st_size) == status.st_size ? 0 : -1;
}

int view_mount(struct launch *launch) {
    const struct pair options[] = {{"mode", "0711"}, {"size", "1m"}};
    autoclose int mount = fs_mount("tmpfs", options, 2, SEALED, NULL);
    if (mount < 0 || fs_attach(mount, VIEW) < 0)
        return fail(launch, VIEW);
    return launch->kdat >= 0 && cache_fill(launch->kdat) < 0 ? fail(launch, launch->spec.kdat) : 0;
}

static int tree_show(struct launch *launch, const char *source, const char *target) {
    autoclose int mount = fs_copy(source);
    if (mount < 0 || mkdir(target, 0755) < 0 || fs_attach(mount, target) < 0)
        return fail(launch, target);
    return 0;
}

/* A job's /dev/shm, empty: the engine fills it before criu restores what has files of it open. */
static int shm_show(struct launch *launch) {
    char size[24], owner[16];
    if (!launch->spec.has_shm)
        return 0;
    snprintf(size, sizeof size, "%lld", launch->spec.shm);
    snprintf(owner, sizeof owner, "%u", launch->spec.count ? launch->spec.first : 0);
    const struct pair options[] = {{"mode", "1777"}, {"size", size}, {"uid", owner}, {"gid", owner}};
    autoclose int mount = fs_mount("tmpfs", options, 4, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, NULL);
    if (mount < 0 || mkdir(VIEW "/shm", 0755) < 0 || fs_attach(mount, VIEW "/shm") < 0)
        return fail(launch, VIEW "/shm");
    return 0;
}

int view_fill(struct launch *launch) {
    const struct list *binds = &launch->spec.binds;
    if (launch->spec.lowers.count && tree_show(launch, STAGE_ROOT, VIEW "/root") < 0)
        return -1;
    for (size_t i = 0; i < binds->count; i++)
        if (tree_show(launch, binds->at[i].key, binds->at[i].value) < 0)
            return -1;
    return shm_show(launch);
}

int standard_close(void) {
    autoclose int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (null < 0 || dup2(null, fd) < 0)
            return -1;
    return 0;
}

static int program_execute(struct launch *launch) {
    const struct list *args = &launch->spec.args;
    autofree char **words = calloc(args->count + 2, sizeof *words);
    if (!words || standard_close() < 0)
        return fail(launch, "arguments");
    words[0] = launch->spec.program;
    for (size_t i = 0; i < args->count; i++)
        words[i + 1] = args->at[i].key;
    if (launch->spec.pidfile)
        prctl(PR_SET_PDEATHSIG, 0);
    if (launch->spec.preload && setenv("LD_PRELOAD", launch->spec.preload, 1) < 0)
        return fail(launch, launch->spec.preload);
    execv(launch->spec.program, words);
    return fail(launch, launch->spec.program);
}

void criu_main(struct launch *launch) {
    /* clang-format off */
    static const struct action actions[] = {
        WAIT(CLONE, launcher_tell), /* it lives */
        RUN(FILES, pidfile_write), RUN(EXEC, program_execute),
    };
    /* clang-format on */
    launch->pid = 0;
    for (int step = 0; step < STEP_COUNT; step++)
        launch->took[step] = 0;
    die_with(launch->own);
    actions_run(launch, actions, sizeof actions / sizeof *actions);
    launcher_tell(launch);
    _exit(1);
}

/* The launcher stays, as criu's parent, and ends as criu does. */
int criu_await(struct launch *launch) {
    siginfo_t end = {0};
    close(STDOUT_FILENO);
    if (waitid(P_PID, (id_t)launch->pid, &end, WEXITED) < 0)
        return fail(launch, "criu");
    _exit(end.si_code == CLD_EXITED ? end.si_status : 128 + end.si_status);
}
