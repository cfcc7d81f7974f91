/* The system call filter of jobs, as programs that the kernel takes: arrays of struct sock_filter. */
#pragma once
#include "launch_spec.h"

#include <stdint.h>

/* Write the program that denies these groups to a file; bits by enum call_group.  -1 with errno. */
int filter_write(uint32_t groups, int fd);
