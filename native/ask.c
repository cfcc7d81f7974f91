#include "ask.h"

#include "cleanup.h"
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { ANSWERED = 0, REFUSED = 1, FAILED = 2, LATE = 3 };

struct question {
    const char *reason, *state;
    long long patience; /* milliseconds, -1: no limit */
};

static int say(const char *what) {
    fprintf(stderr, "serac ask: %s: %s\n", what, strerror(errno));
    return FAILED;
}

/* A file's content, as far as it fits into a message: longer, or with a NUL in it, it is refused. */
static char *read_state(const char *path) {
    static char content[CHUNK_MAX + 1];
    size_t size = 0;
    ssize_t part = 0;
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && size < sizeof content && (part = read(fd, content + size, sizeof content - size)) > 0)
        size += (size_t)part;
    if (fd < 0 || part < 0)
        return NULL;
    if (size == sizeof content || memchr(content, 0, size)) {
        errno = size == sizeof content ? E2BIG : EINVAL;
        return NULL;
    }
    return content;
}

static bool parse(int argc, char **argv, struct question *question) {
    static const struct option options[] = {
        {"reason", required_argument, NULL, 'r'},
        {"state", required_argument, NULL, 's'},
        {"timeout", required_argument, NULL, 't'},
        {0},
    };
    long long seconds;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (option) {
        case 'r':
            question->reason = optarg;
            break;
        case 's':
            question->state = optarg;
            break;
        case 't':
            seconds = client_seconds(optarg);
            question->patience = seconds * 1000;
            if (seconds < 0)
                return false;
            break;
        default:
            return false;
        }
    return optind == argc;
}

/* One line: what became of it, and the answer. */
static int print_answer(char *payload, size_t size) {
    struct reader reader = {payload, payload + size};
    const char *outcome = "", *state = "null";
    char *key, *value;
    while (record_next(&reader, &key, &value) == 1) {
        if (strcmp(key, "outcome") == 0)
            outcome = value;
        else if (strcmp(key, "state") == 0)
            state = value;
    }
    if (printf("%s %s\n", outcome, state) < 0 || fflush(stdout) != 0)
        return FAILED;
    return strcmp(outcome, "refused") == 0 ? REFUSED : ANSWERED;
}

int ask_main(int argc, char **argv) {
    static char payload[CHUNK_MAX + 1];
    struct question question = {.reason = "", .patience = -1};
    struct message head;
    if (!parse(argc, argv, &question)) {
        fputs("usage: ask [--reason TEXT] [--state JSON|@FILE] [--timeout TIME]\n", stderr);
        return FAILED;
    }
    if (question.state && *question.state == '@' && !(question.state = read_state(question.state + 1)))
        return say("state");
    struct writer records = {0};
    record_put(&records, "reason", question.reason);
    if (question.state)
        record_put(&records, "state", question.state);
    autoclose int fd = -1;
    if (client_request(&fd, M_ASK, &records, question.patience, &head, payload) != M_ANSWER) {
        say(fd < 0 ? "no init" : "no answer");
        return errno == ETIMEDOUT ? LATE : FAILED;
    }
    return print_answer(payload, head.length);
}
