#include "connection.h"
#include "iodir.h"
#include "records.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Of two leases, whether the first is the one that keeps the job awake for longer. */
static bool outlasts(const struct connection *one, const struct connection *other) {
    return other->until && (!one->until || one->until > other->until);
}

/* The file says the longest of all that are held; without one it isn't there. */
static int publish(void) {
    const struct connection *longest = NULL;
    for (size_t place = 0; place < CLIENTS_MAX; place++) {
        const struct connection *other = connection_at(place);
        if (other && other->lease && (!longest || outlasts(other, longest)))
            longest = other;
    }
    if (longest)
        return iodir_replace("awake", longest->lease, longest->lease_size);
    iodir_remove("awake");
    return 0;
}

/* Takes the payload over where it is a lease. */
static int take(struct connection *connection, struct packet *packet) {
    static const char *const keys[] = {"until", "reason", NULL};
    long long until = -1;
    char *key, *value;
    if (!records_known(packet->payload, packet->head.length, keys))
        return -1;
    struct reader reader = {packet->payload, packet->payload + packet->head.length};
    while (record_next(&reader, &key, &value) == 1) {
        if (strcmp(key, "until") == 0 && number_parse(value, 0, LLONG_MAX, &until) < 0)
            return -1;
        value[-1] = '=';
    }
    if (until < 0)
        return -1;
    free(connection->lease);
    connection->lease = packet->payload;
    packet->payload = NULL;
    connection->lease_size = packet->head.length;
    connection->until = (uint64_t)until;
    return 0;
}

void lease_hold(struct connection *connection, struct packet *packet) {
    if (take(connection, packet) < 0)
        connection_fail(connection, EINVAL, "awake");
    else if (publish() < 0)
        connection_fail(connection, errno, "awake");
    else
        connection_send(connection, &(struct message){.type = M_OK}, NULL);
}

void lease_left(struct connection *connection) {
    if (!connection->lease)
        return;
    free(connection->lease);
    connection->lease = NULL;
    publish();
}

void lease_renew(void) {
    publish();
}
