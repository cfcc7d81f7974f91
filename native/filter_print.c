/*
 * Prints the filters of jobs in C, for the build: `whole` for those for which nothing is lifted, and `groups`, what there
 * is to lift, each by itself.  libseccomp would need half a millisecond for it, which a resume would spend.
 */
#include "filter.h"

#include <linux/filter.h>
#include <stdio.h>

static int print_program(uint32_t groups) {
    struct sock_filter line;
    FILE *program = tmpfile();
    if (!program || filter_write(groups, fileno(program)) < 0)
        return -1;
    rewind(program);
    printf("FILTER(");
    while (fread(&line, sizeof line, 1, program) == 1)
        printf("{%u, %u, %u, %uu},\n", line.code, line.jt, line.jf, line.k);
    printf(")");
    return fclose(program);
}

int main(void) {
    printf("static const struct sock_fprog whole = ");
    int printed = print_program((1u << GROUP_COUNT) - 1);
    printf(", groups[GROUP_COUNT] = {");
    for (unsigned group = 0; group < GROUP_COUNT && printed >= 0; group++) {
        printf("[%u] = ", group);
        printed = print_program(1u << group);
        printf(",\n");
    }
    printf("};\n");
    if (printed < 0 || fflush(stdout) < 0) {
        perror("filter");
        return 1;
    }
    return 0;
}
