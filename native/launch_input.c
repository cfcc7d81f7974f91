#include "launch_input.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

struct input *input_open(void) {
    void *memory = mmap(NULL, sizeof(struct input), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

/* 1 when more may come, 0 at the end, -1. */
static int input_more(struct input *input) {
    ssize_t got = read(STDIN_FILENO, input->bytes + input->size, sizeof input->bytes - input->size);
    if (got > 0)
        input->size += (size_t)got;
    if (got == 0 && input->size == sizeof input->bytes) {
        errno = EINVAL;
        return -1;
    }
    return got < 0 ? -1 : got > 0;
}

static size_t head_find(const struct input *input, size_t from) {
    for (size_t at = from; at < input->size; at++)
        if (!input->bytes[at] && (at == 0 || !input->bytes[at - 1]))
            return at;
    return input->size;
}

int input_head(struct input *input) {
    int more = 1;
    while (more > 0 && input->head == input->size) {
        size_t before = input->size;
        more = input_more(input);
        input->head = head_find(input, before);
    }
    return more < 0 ? -1 : 0;
}

int input_rest(struct input *input) {
    int more = 1;
    while (more > 0)
        more = input_more(input);
    return more < 0 ? -1 : 0;
}
