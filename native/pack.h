/* The writing half of copy.h. */
#pragma once
#include <stdbool.h>

int pack(const char *path, bool one_filesystem); /* 0, or -1 after a line on standard error */
