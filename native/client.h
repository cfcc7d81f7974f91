/* What a program of the job needs to talk to init: the commands of ask.c and awake.c. */
#pragma once
#include "protocol.h"
#include "records.h"

/* Connects to the job's init as *fd (-1: it couldn't), sends a message that these records are the payload of, which are
 * freed, and gives the first reply as client_receive does; errno is E2BIG for a message that is too long. */
int client_request(int *fd, uint8_t type, struct writer *records, long long patience, struct message *head,
                   char payload[CHUNK_MAX + 1]);

/* The next message that is no greeting, within so many milliseconds (-1: no limit): its type, or -1 with errno,
 * ETIMEDOUT among them.  The payload ends with a NUL. */
int client_receive(int fd, long long patience, struct message *head, char payload[CHUNK_MAX + 1]);

/* 90, 90s, 15m, 2h or 1d: seconds, or -1. */
long long client_seconds(const char *text);
