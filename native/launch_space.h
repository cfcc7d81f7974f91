/* The memory of one process, which is brought in by its userfaultfd. */
#pragma once
#include "launch_pagemap.h"
#include "launch_pager.h"

struct space {
    struct source source; /* its userfaultfd */
    struct memory memory; /* what is missing */
    int pages;
    uint64_t *asked; /* addresses of pages that somebody waits for */
    size_t count, room;
    bool gone;
};

/* A process that criu has restored, by its number in the job and its userfaultfd, which is taken over: 0 or -1. */
int space_open(struct pager *pager, int pid, int fd);
void space_free(struct pager *pager, struct space *space);

/*
 * Before anything runs.  criu leaves out a mapping that it needn't move into place, and what is missing there would read
 * as zeros: a page of each mapping must come in.  What a child is not to see (MADV_WIPEONFORK) comes in as a whole.
 */
int space_prepare(struct pager *pager, struct space *space);

/* Bring in what is asked for: 0, or -1; what has to wait stays asked for. */
int space_serve(struct pager *pager, struct space *space);

/* Bring in some more: how much, 0: none now, or -1. */
int64_t space_fill(struct pager *pager, struct space *space);
