/* The writing half of copy.h. */
#pragma once

int pack(const char *path); /* 0, or -1 after a line on standard error */
