/* A spec as it comes on standard input, in memory that a process shares with what it forks. */
#pragma once
#include "protocol.h"

#include <stddef.h>

struct input {
    size_t head, size; /* the head ends where the empty record begins, or with all of it */
    char bytes[LAUNCH_SPEC_MAX + 1];
};

/* NULL without memory. */
struct input *input_open(void);

/* Read on until the head is whole, or to the end: 0, or -1 (EINVAL: too long). */
int input_head(struct input *input);
int input_rest(struct input *input);
