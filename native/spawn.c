#include "spawn.h"

#include "cleanup.h"
#include "kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static struct rlimit files;

void spawn_limits(void) {
    getrlimit(RLIMIT_NOFILE, &files);
    struct rlimit all = {files.rlim_max, files.rlim_max};
    setrlimit(RLIMIT_NOFILE, &all);
}

int gate_open(int gate[2]) {
    return pipe2(gate, O_CLOEXEC);
}

void gate_pass(const int gate[2]) {
    char nothing;
    close(gate[1]);
    while (read(gate[0], &nothing, 1) < 0 && errno == EINTR)
        ;
    close(gate[0]);
}

static int fail(struct spawn_error *error, const char *step) {
    error->error = errno;
    snprintf(error->step, sizeof error->step, "%s", step);
    return -1;
}

/* Descriptors 0, 1 and 2 as given, 3 the report; nothing else of init's is held while a directory or a program on a
 * slow filesystem is waited for. */
static int arrange_files(const int ends[3], int *report) {
    int in = ends[0] >= 0 ? ends[0] : open("/dev/null", O_RDWR | O_CLOEXEC);
    int given[] = {in, ends[1], ends[2], *report >= 0 ? *report : in};
    /* Moved up first: one of them may lie where another has to go. */
    for (int at = 0; at < 4; at++)
        if (given[at] < 0 || (given[at] = fcntl(given[at], F_DUPFD_CLOEXEC, 10)) < 0)
            return -1;
    for (int at = 0; at < 4; at++)
        if (dup3(given[at], at, at < 3 ? 0 : O_CLOEXEC) < 0)
            return -1;
    if (*report >= 0)
        *report = 3;
    return close_range(*report >= 0 ? 4 : 3, ~0u, 0);
}

static void reset_signals(void) {
    struct sigaction standard = {.sa_handler = SIG_DFL};
    for (int number = 1; number < NSIG; number++)
        sigaction(number, &standard, NULL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static int become_user(const struct spec *spec) {
    if (spec->uid < 0 && spec->gid < 0)
        return 0;
    if ((spec->uid > 0 || spec->gid > 0) && setgroups(0, NULL) < 0)
        return -1;
    if (spec->gid >= 0 && setresgid((gid_t)spec->gid, (gid_t)spec->gid, (gid_t)spec->gid) < 0)
        return -1;
    return spec->uid >= 0 ? setresuid((uid_t)spec->uid, (uid_t)spec->uid, (uid_t)spec->uid) : 0;
}

static int prepare(const struct spec *spec, const int ends[3], int *report, struct spawn_error *error) {
    if (setsid() < 0)
        return fail(error, "session");
    if (arrange_files(ends, report) < 0)
        return fail(error, "files");
    if (spec->terminal && ioctl(0, TIOCSCTTY, 0) < 0)
        return fail(error, "terminal");
    if (spec->terminal && spec->uid > 0 && fchown(0, (uid_t)spec->uid, (gid_t)-1) < 0)
        return fail(error, "terminal");
    if (setrlimit(RLIMIT_NOFILE, &files) < 0)
        return fail(error, "limits");
    umask(spec->umask >= 0 ? (mode_t)spec->umask : 022);
    if (chdir(spec->cwd ? spec->cwd : "/") < 0)
        return fail(error, "cwd");
    if (become_user(spec) < 0)
        return fail(error, "user");
    return 0;
}

static const char *search_path(char *const env[]) {
    for (; *env; env++)
        if (strncmp(*env, "PATH=", 5) == 0)
            return *env + 5;
    return DEFAULT_PATH;
}

/* As execvpe(3), but by the PATH in `env`, and a file that the kernel can't run is an error, not a shell script. */
static int execute(char *const argv[], char *const env[]) {
    if (strchr(argv[0], '/'))
        return execve(argv[0], argv, env);
    int why = ENOENT;
    const char *part = search_path(env);
    for (const char *end;; part = end + 1) {
        end = strchrnul(part, ':');
        char path[PATH_MAX];
        int size = snprintf(path, sizeof path, "%.*s%s%s", (int)(end - part), part, end > part ? "/" : "", argv[0]);
        errno = ENOENT;
        if (size < (int)sizeof path)
            execve(path, argv, env);
        if (errno == EACCES)
            why = EACCES;
        else if (errno != ENOENT && errno != ENOTDIR)
            return -1;
        if (!*end)
            break;
    }
    errno = why;
    return -1;
}

static _Noreturn void give_up(const struct spawn_error *error, const char *name, int report) {
    if (report >= 0) {
        if (write(report, error, sizeof *error) < 0)
            _exit(125); /* init is gone, and with it this namespace */
    } else {
        dprintf(2, "serac: %s: %s: %s\n", error->step, name, strerror(error->error));
    }
    _exit(error->error == ENOENT ? 127 : 126);
}

pid_t spawn(const struct spec *spec, char *const argv[], const int ends[3], int report) {
    int gate[2];
    if (gate_open(gate) < 0)
        return -1;
    pid_t pid = fork();
    if (pid) {
        int why = errno;
        gate_pass(gate);
        errno = why;
        return pid;
    }
    struct spawn_error error = {0};
    if (prepare(spec, ends, &report, &error) == 0) {
        reset_signals();
        if (!argv)
            _exit(0);
        execute(argv, spec->env.items ? spec->env.items : (char *[]){NULL});
        fail(&error, "exec");
    }
    give_up(&error, argv ? argv[0] : "", report);
}

int terminal_resize(int master, uint16_t rows, uint16_t columns) {
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    return ioctl(master, TIOCSWINSZ, &size);
}

int terminal_open(uint16_t rows, uint16_t columns, int *master, int *slave) {
    const int flags = O_RDWR | O_NOCTTY | O_CLOEXEC;
    autoclose int own = open("/dev/ptmx", flags | O_NONBLOCK);
    if (own < 0)
        own = open("/dev/pts/ptmx", flags | O_NONBLOCK);
    int unlock = 0;
    if (own < 0 || ioctl(own, TIOCSPTLCK, &unlock) < 0 || terminal_resize(own, rows, columns) < 0)
        return -1;
    int other = ioctl(own, TIOCGPTPEER, flags);
    if (other < 0)
        return -1;
    *slave = other;
    *master = steal_fd(&own);
    return 0;
}
