#include "iodir.h"
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define ENDED_KEPT 64

void session_retire(uint32_t id) {
    static uint32_t kept[ENDED_KEPT];
    static size_t count;
    static const char *const suffixes[] = {".spec", ".status", ".log", ".log.old"};
    if (id == 0) /* the job's own command */
        return;
    uint32_t earlier = kept[count % ENDED_KEPT];
    kept[count++ % ENDED_KEPT] = id;
    for (size_t at = 0; at < 4 && earlier && earlier != id && !session_find(earlier); at++)
        iodir_remove(session_file(earlier, suffixes[at]).text);
}

size_t session_outcome(const struct session *session, char out[32]) {
    bool killed = WIFSIGNALED(session->status);
    return (size_t)snprintf(out, 32, "%s=%d", killed ? "signal" : "exit",
                            killed ? WTERMSIG(session->status) : WEXITSTATUS(session->status)) +
           1;
}

void session_status(const struct session *session, struct writer *writer, size_t most) {
    const struct spec *spec = &session->spec;
    if (session->pid)
        record_number(writer, "pid", session->pid);
    record_number(writer, "started", (long long)session->started);
    if (session->state == ENDED) {
        bool killed = WIFSIGNALED(session->status);
        record_number(writer, killed ? "signal" : "exit",
                      killed ? WTERMSIG(session->status) : WEXITSTATUS(session->status));
        record_number(writer, "ended", (long long)session->ended);
    } else {
        record_put(writer, "running", "1");
    }
    if (session->state != ENDED && session->step < spec->steps.count)
        record_put(writer, "step", spec->steps.items[session->step]);
    for (size_t at = 0; at < spec->done.count; at++)
        if (writer->size + strlen(spec->done.items[at]) + sizeof "done=" <= most)
            record_put(writer, "done", spec->done.items[at]);
}

void session_write_status(const struct session *session) {
    if (session->spec.lent)
        return;
    struct writer writer = {0};
    session_status(session, &writer, SIZE_MAX);
    if (!writer.failed)
        iodir_replace(session_file(session->id, ".status").text, writer.bytes, writer.size);
    free(writer.bytes);
}
