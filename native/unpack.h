/* The reading half of copy.h. */
#pragma once
#include <stdbool.h>

int unpack(const char *path, bool owner); /* 0, or -1 after a line on standard error */
