#include "copy.h"

#include "pack.h"
#include "unpack.h"

#include <stdio.h>
#include <string.h>

static int usage(void) {
    fputs("usage: pack [--one-file-system] PATH | unpack [--owner] PATH\n", stderr);
    return 1;
}

int copy_main(int argc, char **argv) {
    bool one = argc == 3 && !strcmp(argv[1], "--one-file-system");
    if (argc == 2 + one && !strcmp(argv[0], "pack"))
        return pack(argv[argc - 1], one) < 0;
    bool owner = argc == 3 && !strcmp(argv[1], "--owner");
    if (argc == 2 + owner && !strcmp(argv[0], "unpack"))
        return unpack(argv[argc - 1], owner) < 0;
    return usage();
}
