#include "spec.h"

#include "cleanup.h"
#include "iodir.h"
#include "records.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

bool strings_add(struct strings *strings, char *item) {
    if (strings->count + 2 > strings->room) {
        size_t room = strings->room ? strings->room * 2 : 8;
        char **items = realloc(strings->items, room * sizeof *items);
        if (!items)
            return false;
        strings->items = items;
        strings->room = room;
    }
    strings->items[strings->count++] = item;
    strings->items[strings->count] = NULL;
    return true;
}

bool strings_have(const struct strings *strings, const char *item) {
    for (size_t at = 0; at < strings->count; at++)
        if (strcmp(strings->items[at], item) == 0)
            return true;
    return false;
}

static int wrong(void) {
    errno = EINVAL;
    return -1;
}

static int set_flag(const char *value, bool *flag) {
    *flag = true;
    return strcmp(value, "1") == 0 ? 0 : wrong();
}

static int set_octal(const char *value, int64_t *out) {
    if (!*value || strlen(value) > 4 || value[strspn(value, "01234567")])
        return wrong();
    *out = strtol(value, NULL, 8);
    return *out <= 0777 ? 0 : wrong();
}

static int set_number(const char *value, int64_t low, int64_t high, int64_t *out) {
    long long number;
    if (number_parse(value, low, high, &number) < 0)
        return -1;
    *out = number;
    return 0;
}

static int set_terminal(struct spec *spec, char *value) {
    char *cross = strchr(value, 'x');
    int64_t rows, columns;
    if (!cross)
        return wrong();
    *cross = 0;
    int result = set_number(value, 0, UINT16_MAX, &rows) < 0 || set_number(cross + 1, 0, UINT16_MAX, &columns) < 0;
    *cross = 'x';
    if (result)
        return -1;
    spec->rows = (uint16_t)rows;
    spec->columns = (uint16_t)columns;
    spec->terminal = true;
    return 0;
}

static int add(struct strings *strings, char *value) {
    return strings_add(strings, value) ? 0 : -1;
}

static int set_id(struct spec *spec, int64_t id) {
    if (spec->id >= 0)
        return wrong();
    spec->id = id;
    return 0;
}

static int set_main(struct spec *spec, const char *value) {
    bool main;
    return set_flag(value, &main) < 0 ? -1 : set_id(spec, 0);
}

static int set_other_id(struct spec *spec, const char *value) {
    int64_t id;
    return set_number(value, 1, SESSION_ID_MAX, &id) < 0 ? -1 : set_id(spec, id);
}

static int set_step(struct spec *spec, char *value) {
    bool in_pairs = spec->steps.count == spec->scripts.count, new = !strings_have(&spec->steps, value);
    return in_pairs && new &&*value &&strlen(value) <= STEP_NAME_MAX ? add(&spec->steps, value) : wrong();
}

static int set_script(struct spec *spec, char *value) {
    return spec->steps.count != spec->scripts.count + 1 ? wrong() : add(&spec->scripts, value);
}

static int set_directory(struct spec *spec, char *value) {
    spec->cwd = value;
    return *value == '/' ? 0 : wrong();
}

static int set(struct spec *spec, const char *key, char *value) {
    const int64_t id_max = UINT32_MAX - 1;
    return !strcmp(key, "arg")      ? add(&spec->argv, value)
           : !strcmp(key, "env")    ? (strchr(value, '=') ? add(&spec->env, value) : wrong())
           : !strcmp(key, "step")   ? set_step(spec, value)
           : !strcmp(key, "script") ? set_script(spec, value)
           : !strcmp(key, "done")   ? add(&spec->done, value)
           : !strcmp(key, "cwd")    ? set_directory(spec, value)
           : !strcmp(key, "umask")  ? set_octal(value, &spec->umask)
           : !strcmp(key, "uid")    ? set_number(value, 0, id_max, &spec->uid)
           : !strcmp(key, "gid")    ? set_number(value, 0, id_max, &spec->gid)
           : !strcmp(key, "tty")    ? set_terminal(spec, value)
           : !strcmp(key, "main")   ? set_main(spec, value)
           : !strcmp(key, "id")     ? set_other_id(spec, value)
           : !strcmp(key, "attach") ? set_flag(value, &spec->attach)
           : !strcmp(key, "stdin")  ? set_flag(value, &spec->input)
           : !strcmp(key, "keep")   ? set_flag(value, &spec->keep)
                                    : wrong();
}

/* A command or steps, not both; a terminal is its own input, and a pipe is fed by who stays attached. */
static bool sound(const struct spec *spec) {
    bool command = spec->argv.count > 0, steps = spec->steps.count > 0 || spec->done.count > 0;
    return command != steps && spec->steps.count == spec->scripts.count && !(spec->input && spec->terminal) &&
           (!spec->input || spec->attach) && (!command || *spec->argv.items[0]);
}

int spec_parse(struct spec *spec, char *payload, size_t size) {
    *spec = (struct spec){
        .payload = payload, .size = size, .id = -1, .umask = -1, .uid = -1, .gid = -1, .files = {-1, -1, -1}};
    struct reader reader = {payload, payload + size};
    char *key, *value;
    int result;
    while ((result = record_next(&reader, &key, &value)) == 1) {
        if (set(spec, key, value) < 0)
            return -1;
        value[-1] = '='; /* the payload is kept as it came, for N.spec */
    }
    if (result < 0)
        return -1;
    return sound(spec) ? 0 : wrong();
}

int spec_lend(struct spec *spec, int files[3]) {
    spec->lent = files[0] >= 0;
    for (int at = 0; at < 3; at++)
        spec->files[at] = steal_fd(&files[at]);
    bool plain = !spec->terminal && !spec->input && !spec->keep && spec->id != 0 && spec->argv.count > 0;
    return !spec->lent || (plain && spec->attach) ? 0 : wrong();
}

void spec_free(struct spec *spec) {
    for (int at = 0; at < 3; at++)
        close_at_exit(&spec->files[at]);
    free(spec->argv.items);
    free(spec->env.items);
    free(spec->steps.items);
    free(spec->scripts.items);
    free(spec->done.items);
    free(spec->payload);
    *spec = (struct spec){.files = {-1, -1, -1}};
}
