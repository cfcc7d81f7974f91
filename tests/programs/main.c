/* PROGRAM KIND: see kinds.h. */
#include "kinds.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

pid_t holder;

void stand(void) {
    for (;;)
        pause();
}

pid_t child(bool (*prepare)(void)) {
    int pipes[2];
    char done = 0;
    if (pipe2(pipes, O_CLOEXEC) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        done = !prepare || prepare();
        if (!done || write(pipes[1], &done, 1) != 1)
            _exit(1);
        close(pipes[0]);
        close(pipes[1]);
        stand();
    }
    close(pipes[1]);
    bool said = read(pipes[0], &done, 1) == 1;
    close(pipes[0]);
    return said ? pid : -1;
}

static const struct kind *find(const char *name) {
    for (size_t i = 0; families[i]; i++)
        for (const struct kind *kind = families[i]; kind->name; kind++)
            if (strcmp(kind->name, name) == 0)
                return kind;
    return NULL;
}

int main(int argc, char **argv) {
    const struct kind *kind = argc == 2 ? find(argv[1]) : NULL;
    if (!kind)
        return 2;
    if (!kind->set_up()) {
        perror(argv[1]);
        return 1;
    }
    printf("READY %d\n", holder ? holder : getpid());
    fflush(stdout);
    stand();
}
