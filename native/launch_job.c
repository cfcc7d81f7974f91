/*
 * The job's first process, from the clone to the exec of init.  It never outlives the launcher while it waits for it,
 * and its last wait comes right before the exec: a launcher that was killed leaves nothing behind.
 */
#include "launch.h"

#include <grp.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>

int launcher_tell(struct launch *launch) {
    struct note note = {.failure = launch->failure};
    for (int step = 0; step < STEP_COUNT; step++) {
        note.took[step] = launch->took[step];
        launch->took[step] = 0;
    }
    return send(launch->link, &note, sizeof note, MSG_NOSIGNAL) < 0 ? fail(launch, "link") : 0;
}

int launcher_await(struct launch *launch) {
    char byte;
    if (recv(launch->link, &byte, 1, 0) != 1)
        _exit(1);
    return 0;
}

/* Directories of the host's, to which a link of the job's would lead through /proc/self/fd. */
static void host_forget(struct launch *launch) {
    close_at_exit(&launch->host.namespace);
    close_at_exit(&launch->host.root);
    close_at_exit(&launch->cgroup);
}

/* Root in the job, without the groups and the session that were inherited from the host. */
static int identity_take(struct launch *launch) {
    if (setgroups(0, NULL) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0 || setsid() < 0)
        return fail(launch, "identity");
    umask(022);
    return 0;
}

static int body_take(struct launch *launch) {
    const char *about = "";
    return spec_body_again(&launch->spec, launch->verb, &about) < 0 ? fail(launch, about) : 0;
}

static int init_execute(struct launch *launch) {
    const struct list *args = &launch->spec.args;
    autofree char **words = calloc(args->count + 2, sizeof *words);
    char *environment[] = {NULL};
    if (!words)
        return fail(launch, "arguments");
    words[0] = launch->spec.init;
    for (size_t i = 0; i < args->count; i++)
        words[i + 1] = args->at[i].key;
    execve(launch->spec.init, words, environment);
    return fail(launch, launch->spec.init);
}

void job_main(struct launch *launch) {
    /* A line is a phase: what comes between two words to or from the other side. */
    /* clang-format off */
    static const struct action actions[] = {
        WAIT(CLONE, launcher_tell), /* it lives */
        WAIT(CLONE, launcher_await), /* ids are mapped */
        RUN(CLONE, identity_take), RUN(NETWORK, network_make),
        WAIT(CLONE, launcher_tell), /* the pid can be reported, the network be filled */
        WAIT(CLONE, launcher_await), /* the root is mounted */
        RUN(SPEC, body_take), RUN(MOUNTS, root_enter), RUN(MOUNTS, mounts_make),
        WAIT(CLONE, launcher_await), /* the network is filled */
        RUN(NETWORK, address_set),
        RUN(FILES, files_write), RUN(FILES, init_copy), RUN(FILES, socket_listen),
        RUN(SANDBOX, hostname_set), RUN(SANDBOX, descriptors_place), RUN(SANDBOX, signals_reset),
        RUN(SANDBOX, keyring_make), RUN(SANDBOX, privileges_drop),
        WAIT(CLONE, launcher_tell),
        WAIT(CLONE, launcher_await), /* cgroups are joined, limits are set */
        RUN(SANDBOX, filter_load), RUN(EXEC, init_execute),
    };
    /* clang-format on */
    launch->pid = 0;
    host_forget(launch);
    for (int step = 0; step < STEP_COUNT; step++)
        launch->took[step] = 0;
    actions_run(launch, actions, sizeof actions / sizeof *actions);
    launcher_tell(launch);
    _exit(1);
}
