/* What a program of the job needs to talk to init: the commands of ask.c and awake.c. */
#pragma once
#include "protocol.h"
#include "records.h"

/* A connection to the job's init, or -1. */
int client_dial(void);

/* Sends a message that these records are the payload of, which are freed.  -1 with errno, E2BIG when it is too long. */
int client_send(int fd, uint8_t type, struct writer *records);

/* The next message that is no greeting, within so many milliseconds (-1: no limit): its type, or -1 with errno,
 * ETIMEDOUT among them.  The payload ends with a NUL. */
int client_receive(int fd, long long patience, struct message *head, char payload[CHUNK_MAX + 1]);

/* 90, 90s, 15m, 2h or 1d: seconds, or -1. */
long long client_seconds(const char *text);
