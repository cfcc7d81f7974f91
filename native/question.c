#include "cleanup.h"
#include "connection.h"
#include "iodir.h"
#include "records.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

static struct connection *asker; /* whose question is open: the file `ask` is there as long */
static uint64_t asked;           /* questions so far */

static void append(struct writer *writer, const char *bytes, size_t size) {
    struct reader reader = {(char *)bytes, (char *)bytes + size};
    char *key, *value;
    while (record_next(&reader, &key, &value) == 1) {
        record_put(writer, key, value);
        value[-1] = '=';
    }
}

static bool describe(const struct connection *connection, struct writer *writer) {
    append(writer, connection->question, connection->question_size);
    record_number(writer, "pid", connection->pid);
    record_number(writer, "id", (long long)connection->number);
    record_number(writer, "since", (long long)connection->since);
    return !writer->failed;
}

static int publish(void) {
    struct writer file = {0};
    int result = describe(asker, &file) ? iodir_replace("ask", file.bytes, file.size) : -1;
    free(file.bytes);
    return result;
}

static void tell(struct connection *watcher) {
    struct message head = {.type = M_ASK, .offset = asker->number};
    connection_send(watcher, &head, NULL);
}

static struct connection *oldest(void) {
    struct connection *found = NULL;
    for (size_t place = 0; place < CLIENTS_MAX; place++) {
        struct connection *other = connection_at(place);
        if (other && other->asking && (!found || other->number < found->number))
            found = other;
    }
    return found;
}

static void forget(struct connection *connection) {
    connection->asking = false;
    free(steal_pointer(&connection->question));
}

/* One question is open at a time; others wait for their turn. */
static void open_next(void) {
    while (!asker && (asker = oldest())) {
        if (publish() < 0) {
            struct connection *failed = asker;
            asker = NULL;
            forget(failed);
            connection_error(failed, errno, "ask");
        }
    }
    for (size_t place = 0; asker && place < CLIENTS_MAX; place++)
        if (connection_at(place) && connection_at(place)->watching)
            tell(connection_at(place));
}

/* The records of one answer in the file `answers`: its question's reason, and then what M_ANSWER has. */
struct block {
    char *reason, *rest, *end;
};

/* The next of the blocks from *at on, each of which begins with a reason; false when there is none that could be one. */
static bool next_block(char **at, char *end, struct block *block) {
    if (*at == end || strncmp(*at, "reason=", 7) != 0)
        return false;
    block->reason = *at;
    block->rest = *at + strlen(*at) + 1;
    for (*at = block->rest; *at < end && strncmp(*at, "reason=", 7) != 0;)
        *at += strlen(*at) + 1;
    block->end = *at;
    return block->end - block->rest <= CHUNK_MAX;
}

static bool same_reason(const struct connection *connection, const struct block *block) {
    const char *at =
        memmem(connection->question, connection->question_size, block->reason, (size_t)(block->rest - block->reason));
    return at && (at == connection->question || !at[-1]);
}

/* Answers that came while no process lived, for who asks again: each once in init's life. */
static bool answered_before(struct connection *connection) {
    static uint64_t given;
    static char bytes[ANSWERS_MAX + 1];
    autoclose int fd = iodir_file("answers", O_RDONLY);
    ssize_t size = fd < 0 ? -1 : read(fd, bytes, ANSWERS_MAX);
    if (size <= 0 || bytes[size - 1])
        return false;
    struct block block;
    char *at = bytes;
    for (int place = 0; place < 64 && next_block(&at, bytes + size, &block); place++) {
        if (given & 1ull << place || !same_reason(connection, &block))
            continue;
        given |= 1ull << place;
        forget(connection);
        struct message head = {.type = M_ANSWER, .length = (uint32_t)(block.end - block.rest)};
        connection_send(connection, &head, block.rest);
        return true;
    }
    return false;
}

void question_ask(struct connection *connection, struct packet *packet) {
    static const char *const keys[] = {"reason", "state", NULL};
    if (!records_known(packet->payload, packet->head.length, keys)) {
        connection_fail(connection, EINVAL, "ask");
        return;
    }
    connection->question = steal_pointer(&packet->payload);
    connection->question_size = packet->head.length;
    connection->number = ++asked;
    connection->since = clock_real();
    connection->asking = true;
    if (!answered_before(connection) && !asker)
        open_next();
}

void question_answer(struct connection *connection, struct packet *packet) {
    static const char *const keys[] = {"outcome", "text", "state", NULL};
    if (!records_known(packet->payload, packet->head.length, keys)) {
        connection_fail(connection, EINVAL, "answer");
        return;
    }
    if (!asker || (packet->head.offset && packet->head.offset != asker->number)) {
        connection_error(connection, ENOENT, "ask");
        return;
    }
    struct connection *answered = asker;
    question_left(answered);
    struct message head = {.type = M_ANSWER, .length = packet->head.length};
    connection_send(answered, &head, packet->payload);
    connection_send(connection, &(struct message){.type = M_OK}, NULL);
}

void question_watch(struct connection *connection) {
    connection->watching = true;
    connection_send(connection, &(struct message){.type = M_OK}, NULL);
    if (asker)
        tell(connection);
}

void question_left(struct connection *connection) {
    if (!connection->asking)
        return;
    forget(connection);
    if (asker != connection)
        return;
    asker = NULL;
    iodir_remove("ask");
    open_next();
}

void question_renew(void) {
    if (asker)
        publish();
}

void question_forget(void) {
    iodir_remove("ask");
}
