/* Netlink: requests of one or more messages, built in a buffer of fixed size, and what the kernel says to them. */
#pragma once
#include <linux/netlink.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct request {
    _Alignas(NLMSG_ALIGNTO) char bytes[2048];
    size_t size;
    size_t message; /* where the last message begins */
    bool full;      /* something did not fit: checked once, when it is sent */
};

/* A further message; `body` is the fixed head that its protocol wants.  NLM_F_REQUEST goes without saying. */
void message_begin(struct request *request, uint16_t type, uint16_t flags, const void *body, size_t size);

/* Attributes of the last message; those between nest_begin and nest_end, which takes its result, are one's content. */
void attribute_put(struct request *request, uint16_t type, const void *value, size_t size);
size_t nest_begin(struct request *request, uint16_t type);
void nest_end(struct request *request, size_t nest);

/* A socket in the caller's network namespace, or -1. */
int netlink_open(int protocol);

/* Send a request with one NLM_F_ACK, on its last message of weight.  0, or -1 and errno: why the kernel refuses it. */
int netlink_ask(int fd, const struct request *request);

/*
 * Send a request with NLM_F_DUMP and give `take` each message of the answer, until it returns something negative.
 * 0, or -1 and errno.
 */
int netlink_dump(int fd, const struct request *request, int (*take)(void *context, const struct nlmsghdr *message),
                 void *context);
