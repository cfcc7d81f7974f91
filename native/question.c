#include "cleanup.h"
#include "connection.h"
#include "iodir.h"
#include "records.h"

#include <errno.h>
#include <string.h>

static struct connection *asker; /* waits for M_ANSWER; the file `ask` is there as long */

/* Whether these are records of these keys alone, each at most once; the bytes stay as they are. */
static bool records_ok(struct packet *packet, const char *const *keys) {
    struct reader reader = {packet->payload, packet->payload + packet->head.length};
    char *key, *value;
    unsigned seen = 0;
    int result;
    while ((result = record_next(&reader, &key, &value)) == 1) {
        int at = 0;
        while (keys[at] && strcmp(keys[at], key) != 0)
            at++;
        value[-1] = '=';
        if (!keys[at] || seen & 1u << at)
            return false;
        seen |= 1u << at;
    }
    return result == 0;
}

static int write_file(const struct connection *connection, const struct packet *packet) {
    struct writer pid = {0};
    record_number(&pid, "pid", connection->pid);
    size_t size = packet->head.length + pid.size;
    autofree char *owned = pid.bytes;
    autofree char *bytes = pid.failed ? NULL : malloc(size);
    if (!bytes)
        return -1;
    memcpy(bytes, packet->payload, packet->head.length);
    memcpy(bytes + packet->head.length, owned, pid.size);
    return iodir_replace("ask", bytes, size);
}

void question_ask(struct connection *connection, struct packet *packet) {
    static const char *const keys[] = {"reason", "state", NULL};
    if (!records_ok(packet, keys))
        connection_fail(connection, EINVAL, "ask");
    else if (asker)
        connection_error(connection, EBUSY, "ask");
    else if (write_file(connection, packet) < 0)
        connection_error(connection, errno, "ask");
    else {
        asker = connection;
        connection->asking = true;
    }
}

void question_answer(struct connection *connection, struct packet *packet) {
    static const char *const keys[] = {"outcome", "text", "state", NULL};
    if (!records_ok(packet, keys)) {
        connection_fail(connection, EINVAL, "answer");
        return;
    }
    if (!asker) {
        connection_error(connection, ENOENT, "ask");
        return;
    }
    struct connection *answered = asker;
    question_left(answered);
    struct message head = {.type = M_ANSWER, .length = packet->head.length};
    connection_send(answered, &head, packet->payload);
    connection_send(connection, &(struct message){.type = M_OK}, NULL);
}

void question_left(struct connection *connection) {
    if (asker != connection)
        return;
    asker = NULL;
    connection->asking = false;
    iodir_remove("ask");
}

void question_forget(void) {
    iodir_remove("ask");
}
