/*
 * Prints the filter of jobs for which nothing is lifted, in C, for the build: libseccomp needs half a millisecond for
 * it, which a resume would spend.
 */
#include "filter.h"

#include <linux/filter.h>
#include <stdio.h>

int main(void) {
    struct sock_filter line;
    FILE *program = tmpfile();
    if (!program || filter_write(0, fileno(program)) < 0) {
        perror("filter");
        return 1;
    }
    rewind(program);
    while (fread(&line, sizeof line, 1, program) == 1)
        printf("{%u, %u, %u, %uu},\n", line.code, line.jt, line.jf, line.k);
    return fclose(program) || fflush(stdout) ? 1 : 0;
}
