/*
 * A long chain that nobody has used for a while isn't in memory, and the overlay reads it from the disk one directory
 * after the other: the lowers' when it is mounted, their roots' when a name is first looked up.  Some threads look at
 * them as soon as the head is there, so that the disk has several to read at a time.  It matters to nobody what they find.
 */
#include "launch.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <sys/syscall.h>

#define THREADS_MAX 8
#define EACH 4  /* layers that make a thread worth it */
#define SHORT 8 /* a chain for which it isn't worth it */

struct warmer {
    const struct list *layers;
    size_t first, step;
};

/* What a launch looks up in the root, and for which it has to look in all lowers.  A job made them: no link is followed. */
static void layer_look(const char *layer) {
    static const char *const names[] = {"proc", "dev/pts", "etc/hosts", ".serac/empty"};
    struct open_how how = {.flags = O_PATH | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV};
    autoclose int root = open(layer, O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < sizeof names / sizeof *names && root >= 0; i++) {
        autoclose int found = (int)syscall(SYS_openat2, root, names[i], &how, sizeof how);
    }
}

static void *warmer_run(void *argument) {
    const struct warmer *warmer = argument;
    for (size_t i = warmer->first; i < warmer->layers->count; i += warmer->step)
        layer_look(warmer->layers->at[i].key);
    return NULL;
}

/* They end by themselves, or with the launcher, which starts nobody any more: a child would have their locks, not them. */
int layers_warm(struct launch *launch) {
    static struct warmer warmers[THREADS_MAX];
    const struct list *layers = &launch->spec.warm;
    size_t count = layers->count / EACH < THREADS_MAX ? layers->count / EACH : THREADS_MAX;
    for (size_t i = 0; i < count && layers->count >= SHORT; i++) {
        pthread_t thread;
        warmers[i] = (struct warmer){layers, i, count};
        if (pthread_create(&thread, NULL, warmer_run, &warmers[i]) == 0)
            pthread_detach(thread);
    }
    return 0;
}
