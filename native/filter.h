/* The system call filter of jobs, as the program that the kernel takes: an array of struct sock_filter. */
#pragma once
#include "launch_spec.h"

#include <stdint.h>

/* Write the program to a file; `allow` has the groups that are lifted, as bits by enum call_group.  -1 with errno. */
int filter_write(uint32_t allow, int fd);
