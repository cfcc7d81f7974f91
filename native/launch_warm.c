/*
 * A long chain that nobody has used for a while isn't in memory, and the overlay reads it from the disk one directory
 * after the other: the lowers' when it is mounted, their roots' when a name is first looked up.  Some threads look at
 * them ahead of it, so that the disk has several to read at a time.  It matters to nobody what they find.
 */
#include "launch.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <sys/syscall.h>

#define THREADS_MAX 8
#define EACH 4  /* lowers that make a thread worth it */
#define SHORT 8 /* a chain for which it isn't worth it */

struct warmer {
    const struct list *lowers;
    size_t first, step;
    int stage;
};

/* What a launch looks up in the root, and for which it has to look in all lowers.  A job made them: no link is followed. */
static void lower_look(int stage, const char *lower) {
    static const char *const names[] = {"proc", "dev/pts", "etc/hosts", ".serac/empty"};
    struct open_how how = {.flags = O_PATH | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV};
    autoclose int root = openat(stage, lower, O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < sizeof names / sizeof *names && root >= 0; i++) {
        autoclose int found = (int)syscall(SYS_openat2, root, names[i], &how, sizeof how);
    }
}

static void *warmer_run(void *argument) {
    const struct warmer *warmer = argument;
    for (size_t i = warmer->first; i < warmer->lowers->count; i += warmer->step)
        lower_look(warmer->stage, warmer->lowers->at[i].key);
    return NULL;
}

/* They end by themselves, or with the launcher. */
int lowers_warm(struct launch *launch) {
    static struct warmer warmers[THREADS_MAX];
    const struct list *lowers = &launch->spec.lowers;
    if (lowers->count < SHORT)
        return 0;
    size_t count = lowers->count / EACH < THREADS_MAX ? lowers->count / EACH : THREADS_MAX;
    int stage = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < count && stage >= 0; i++) {
        pthread_t thread;
        warmers[i] = (struct warmer){lowers, i, count, stage};
        if (pthread_create(&thread, NULL, warmer_run, &warmers[i]) == 0)
            pthread_detach(thread);
    }
    return 0;
}
