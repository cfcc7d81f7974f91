#include "launch_spec.h"

#include "launch.h"
#include "launch_input.h"
#include "protocol.h"
#include "records.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define SHM_DEFAULT (64ll << 20)
#define LAYERS_MAX 500 /* the kernel's own limit for an overlay */

static int invalid(void) {
    errno = EINVAL;
    return -1;
}

static int descriptor_parse(const char *text, int *fd) {
    long long number;
    if (number_parse(text, 0, INT_MAX, &number) < 0)
        return invalid();
    if (fcntl((int)number, F_GETFD) < 0)
        return -1;
    *fd = (int)number;
    return 0;
}

static bool absolute(const char *path) {
    return path[0] == '/' && strlen(path) < PATH_MAX;
}

/* The overlay's mount(2) form gives meaning to comma, colon and backslash; no path of a layer needs them. */
static bool relative(const char *path) {
    size_t length = strlen(path);
    if (!length || length >= PATH_MAX || path[0] == '/' || strpbrk(path, ",:\\"))
        return false;
    return strcmp(path, "..") && strncmp(path, "../", 3) && !strstr(path, "/../") &&
           (length < 3 || strcmp(path + length - 3, "/.."));
}

static int check_absolute(struct spec *spec, const struct pair *pair) {
    (void)spec;
    return absolute(pair->key) ? 0 : invalid();
}

static int check_relative(struct spec *spec, const struct pair *pair) {
    (void)spec;
    return relative(pair->key) ? 0 : invalid();
}

static int check_tree(struct spec *spec, const struct pair *pair) {
    (void)spec;
    const char *name = pair->key, *known = "abcdefghijklmnopqrstuvwxyz0123456789";
    return *name && strlen(name) < NAME_MAX && !name[strspn(name, known)] && absolute(pair->value) ? 0 : invalid();
}

static int check_bind(struct spec *spec, const struct pair *pair) {
    (void)spec;
    return relative(pair->key) && absolute(pair->value) ? 0 : invalid();
}

static int check_rlimit(struct spec *spec, const struct pair *pair) {
    (void)spec;
    int resource;
    unsigned long long soft, hard;
    return limit_parse(pair->key, &resource, &soft, &hard);
}

static int check_version(struct spec *spec, const struct pair *pair) {
    (void)spec;
    long long version;
    return number_parse(pair->key, LAUNCH_VERSION, LAUNCH_VERSION, &version) < 0 ? invalid() : 0;
}

static int check_hostname(struct spec *spec, const struct pair *pair) {
    (void)spec;
    return *pair->key && strlen(pair->key) <= HOST_NAME_MAX ? 0 : invalid();
}

static int check_listen(struct spec *spec, const struct pair *pair) {
    (void)spec;
    return absolute(pair->key) && strlen(pair->key) < sizeof((struct sockaddr_un *)0)->sun_path ? 0 : invalid();
}

static int parse_range(struct spec *spec, const struct pair *pair) {
    char *colon = strchr(pair->key, ':');
    long long first, count;
    if (!colon)
        return invalid();
    *colon = 0;
    if (number_parse(pair->key, 1, UINT32_MAX - 1, &first) < 0 || number_parse(colon + 1, 1, UINT32_MAX, &count) < 0 ||
        first + count > UINT32_MAX)
        return invalid();
    spec->first = (uint32_t)first;
    spec->count = (uint32_t)count;
    return 0;
}

static int parse_net(struct spec *spec, const struct pair *pair) {
    if (!strcmp(pair->key, "private"))
        spec->net = NET_PRIVATE;
    else if (!strcmp(pair->key, "host"))
        spec->net = NET_HOST;
    else if (!strncmp(pair->key, "fd:", 3))
        spec->net = NET_GIVEN;
    else
        return invalid();
    return spec->net == NET_GIVEN ? descriptor_parse(pair->key + 3, &spec->net_fd) : 0;
}

static int parse_uts(struct spec *spec, const struct pair *pair) {
    return strncmp(pair->key, "fd:", 3) ? invalid() : descriptor_parse(pair->key + 3, &spec->uts_fd);
}

static int parse_init(struct spec *spec, const struct pair *pair) {
    char *colon = strchr(pair->key, ':');
    if (!colon || !absolute(colon + 1))
        return invalid();
    *colon = 0;
    spec->init = colon + 1;
    return descriptor_parse(pair->key, &spec->init_fd);
}

static int parse_pidfile(struct spec *spec, const struct pair *pair) {
    char *colon = strchr(pair->key, ':');
    if (!colon || !absolute(colon + 1))
        return invalid();
    *colon = 0;
    spec->pidfile = colon + 1;
    return descriptor_parse(pair->key, &spec->keep_fd);
}

static int parse_address(struct spec *spec, const struct pair *pair) {
    char *slash = strchr(pair->key, '/');
    long long length;
    if (!slash)
        return invalid();
    *slash = 0;
    if (inet_pton(AF_INET, pair->key, &spec->address) != 1 || number_parse(slash + 1, 1, 32, &length) < 0)
        return invalid();
    spec->netmask.s_addr = htonl(UINT32_MAX << (32 - length));
    spec->has_address = true;
    return 0;
}

static int parse_gateway(struct spec *spec, const struct pair *pair) {
    spec->has_gateway = true;
    return inet_pton(AF_INET, pair->key, &spec->gateway) == 1 ? 0 : invalid();
}

static int word_parse(const char *text, bool *word) {
    *word = !strcmp(text, "1");
    return *word ? 0 : invalid();
}

static int parse_up(struct spec *spec, const struct pair *pair) {
    return word_parse(pair->key, &spec->up);
}

static int parse_lock(struct spec *spec, const struct pair *pair) {
    return word_parse(pair->key, &spec->lock);
}

static int parse_close(struct spec *spec, const struct pair *pair) {
    return word_parse(pair->key, &spec->close);
}

static int parse_detach(struct spec *spec, const struct pair *pair) {
    return word_parse(pair->key, &spec->detach);
}

static int check_guest(struct spec *spec, const struct pair *pair) {
    (void)spec;
    struct in_addr address;
    return inet_pton(AF_INET, pair->key, &address) == 1 ? 0 : invalid();
}

static int parse_shm(struct spec *spec, const struct pair *pair) {
    spec->has_shm = true;
    return number_parse(pair->key, 4096, LLONG_MAX, &spec->shm) < 0 ? invalid() : 0;
}

static int parse_allow(struct spec *spec, const struct pair *pair) {
    static const char *const names[GROUP_COUNT] = {
        [GROUP_IO_URING] = "io_uring",
        [GROUP_LANDLOCK] = "landlock",
        [GROUP_USERFAULTFD] = "userfaultfd",
        [GROUP_PERF] = "perf",
        [GROUP_BPF] = "bpf",
        [GROUP_KEYRING] = "keyring",
        [GROUP_NAMESPACES] = "namespaces",
        [GROUP_FANOTIFY] = "fanotify",
        [GROUP_MEMFD_SECRET] = "memfd_secret",
        [GROUP_DEVICES] = "devices",
    };
    for (int group = GROUP_ALWAYS + 1; group < GROUP_COUNT; group++)
        if (!strcmp(pair->key, names[group])) {
            spec->allow |= 1u << group;
            return 0;
        }
    return invalid();
}

enum shape {
    ONCE,         /* one value, at most one record */
    DESCRIPTOR,   /* as ONCE, the number of an open descriptor */
    LIST,         /* any number of values */
    LIST_PAIRS,   /* any number of KEY=VALUE */
    LIST_OPTIONS, /* any number of KEY or KEY=VALUE */
    REPEATED,     /* any number, kept by `take` alone */
};

#define AT(field) .offset = offsetof(struct spec, field), .stored = true
static const struct key {
    const char *name;
    int verbs, required; /* bits of enum verb; what may not come late is required of the head */
    enum shape shape;
    size_t max, offset;
    bool stored, late; /* late: may come in the body */
    int (*take)(struct spec *spec, const struct pair *pair);
} keys[] = {
    {"serac-launch", 63, 63, ONCE, 1, AT(version), .take = check_version},
    {"cgroup", 41, 33, ONCE, 1, AT(cgroup), .take = check_absolute},
    {"cgroup1", 9, 0, LIST, 32, AT(cgroup1), .take = check_absolute},
    {"range", 9, 0, ONCE, 1, .take = parse_range},
    {"stage", 9, 9, ONCE, 1, AT(stage), .take = check_absolute},
    {"warm", 9, 0, LIST, LAYERS_MAX, AT(warm), .take = check_absolute},
    {"tree", 9, 1, LIST_PAIRS, LAYERS_MAX + 100, AT(trees), .take = check_tree, .late = true},
    {"lower", 9, 1, LIST, LAYERS_MAX, AT(lowers), .take = check_relative, .late = true},
    {"upper", 9, 0, ONCE, 1, AT(upper), .take = check_relative, .late = true},
    {"work", 9, 0, ONCE, 1, AT(work), .take = check_relative, .late = true},
    {"overlay", 9, 0, LIST_OPTIONS, 32, AT(overlay), .late = true},
    {"bind", 9, 0, LIST_PAIRS, 64, AT(binds), .take = check_bind, .late = true},
    {"net", 17, 17, ONCE, 1, .take = parse_net},
    {"hold", 49, 32, DESCRIPTOR, 1, AT(hold_fd)},
    {"address", 17, 0, ONCE, 1, .take = parse_address, .late = true},
    {"gateway", 17, 0, ONCE, 1, .take = parse_gateway, .late = true},
    {"uts", 16, 0, ONCE, 1, .take = parse_uts},
    {"hostname", 17, 0, ONCE, 1, AT(hostname), .take = check_hostname, .late = true},
    {"rlimit", 1, 0, LIST, 16, AT(rlimits), .take = check_rlimit, .late = true},
    {"shm", 9, 0, ONCE, 1, .take = parse_shm, .late = true},
    {"allow", 1, 0, REPEATED, 64, .take = parse_allow},
    {"write", 1, 0, LIST_PAIRS, 64, AT(writes), .take = check_absolute, .late = true},
    {"init", 1, 1, ONCE, 1, .take = parse_init},
    {"arg", 9, 0, LIST, 4096, AT(args)},
    {"listen", 1, 0, ONCE, 1, AT(listen), .take = check_listen, .late = true},
    {"stdin", 1, 0, DESCRIPTOR, 1, AT(std_fd[0])},
    {"stdout", 1, 0, DESCRIPTOR, 1, AT(std_fd[1])},
    {"stderr", 1, 0, DESCRIPTOR, 1, AT(std_fd[2])},
    {"up", 16, 0, ONCE, 1, .take = parse_up},
    {"guest", 16, 0, LIST, 64, AT(guests), .take = check_guest},
    {"lock", 16, 0, ONCE, 1, .take = parse_lock},
    {"close", 16, 0, ONCE, 1, .take = parse_close},
    {"kdat", 8, 0, ONCE, 1, AT(kdat), .take = check_absolute},
    {"program", 8, 8, ONCE, 1, AT(program), .take = check_absolute},
    {"pidfile", 8, 0, ONCE, 1, .take = parse_pidfile},
    {"preload", 8, 0, ONCE, 1, AT(preload), .take = check_absolute},
    {"images", 32, 32, DESCRIPTOR, 1, AT(images_fd)},
    {"tasks", 32, 32, DESCRIPTOR, 1, AT(tasks_fd)},
    {"door", 32, 0, DESCRIPTOR, 1, AT(door_fd)},
    {"group", 32, 32, DESCRIPTOR, 1, AT(group_fd)},
    {"status", 32, 32, DESCRIPTOR, 1, AT(status_fd)},
    {"meta", 2, 2, LIST, LAYERS_MAX, AT(metas), .take = check_absolute},
    {"blob", 2, 2, LIST, LAYERS_MAX, AT(blobs), .take = check_absolute},
    {"target", 6, 6, LIST, LAYERS_MAX, AT(targets), .take = check_absolute},
    {"detach", 4, 0, ONCE, 1, .take = parse_detach},
};
#define KEYS (sizeof keys / sizeof *keys)
static size_t seen[KEYS];

static const struct key *key_find(const char *name, enum verb verb) {
    for (size_t i = 0; i < KEYS; i++)
        if ((keys[i].verbs & (int)verb) && !strcmp(keys[i].name, name))
            return &keys[i];
    return NULL;
}

static int list_add(struct list *list, const struct pair *pair) {
    struct pair *at = reallocarray(list->at, list->count + 1, sizeof *at);
    if (!at)
        return -1;
    list->at = at;
    list->at[list->count++] = *pair;
    return 0;
}

static int pair_split(enum shape shape, char *text, struct pair *pair) {
    bool split = shape == LIST_PAIRS || shape == LIST_OPTIONS;
    char *equals = split ? strchr(text, '=') : NULL;
    if (shape == LIST_PAIRS && !equals)
        return invalid();
    if (equals)
        *equals = 0;
    *pair = (struct pair){text, equals ? equals + 1 : NULL};
    return 0;
}

static int value_take(struct spec *spec, const struct key *key, char *text) {
    struct pair pair;
    if (pair_split(key->shape, text, &pair) < 0 || (key->take && key->take(spec, &pair) < 0))
        return -1;
    if (!key->stored)
        return 0;
    void *field = (char *)spec + key->offset;
    if (key->shape == DESCRIPTOR)
        return descriptor_parse(pair.key, field);
    if (key->shape != ONCE)
        return list_add(field, &pair);
    *(char **)field = pair.key;
    return 0;
}

static int together(const char **about, bool fine, const char *key) {
    if (fine)
        return 0;
    *about = key;
    return invalid();
}

static int required_check(enum verb verb, bool late, const char **about) {
    for (size_t i = 0; i < KEYS; i++)
        if (keys[i].late == late && together(about, seen[i] || !(keys[i].required & (int)verb), keys[i].name) < 0)
            return -1;
    return 0;
}

static int whole_check(const struct spec *spec, enum verb verb, const char **about) {
    bool network = verb == VERB_NETWORK, kept = spec->lock || spec->close || spec->guests.count;
    bool own = network ? spec->net == NET_GIVEN : spec->net == NET_PRIVATE;
    if (together(about, !spec->upper == !spec->work, "work") < 0 ||
        together(about, verb != VERB_MOUNT || spec->metas.count == spec->targets.count, "meta") < 0 ||
        together(about, verb != VERB_MOUNT || spec->blobs.count == spec->targets.count, "blob") < 0 ||
        together(about, verb != VERB_NETWORK || (spec->uts_fd < 0) == !spec->hostname, "uts") < 0 ||
        together(about, verb != VERB_CRIU || !spec->cgroup || spec->lowers.count, "lower") < 0 ||
        together(about, !network || own, "net") < 0 || together(about, !kept || spec->hold_fd >= 0, "hold") < 0 ||
        together(about, !spec->has_address || own, "address") < 0 ||
        together(about, !spec->has_gateway || spec->has_address, "gateway") < 0)
        return -1;
    return 0;
}

/* Each side of a launch takes the spec apart in a copy of its own. */
static struct input *given;
static char copy[LAUNCH_SPEC_MAX + 1];

static int records_take(struct spec *spec, enum verb verb, size_t from, size_t to, const char **about) {
    char *name, *value;
    int more;
    memcpy(copy + from, given->bytes + from, to - from);
    struct reader reader = {copy + from, copy + to};
    for (bool first = from == 0; (more = record_next(&reader, &name, &value)) > 0; first = false) {
        const struct key *key = key_find(name, verb);
        *about = name;
        if (!key || first != (key == keys) || (from && !key->late) || seen[key - keys]++ == key->max)
            return invalid();
        if (value_take(spec, key, value) < 0)
            return -1;
    }
    *about = "record";
    return more;
}

int spec_head(struct spec *spec, enum verb verb, const char **about) {
    *spec = (struct spec){.images_fd = -1,
                          .tasks_fd = -1,
                          .door_fd = -1,
                          .group_fd = -1,
                          .status_fd = -1,
                          .net_fd = -1,
                          .uts_fd = -1,
                          .hold_fd = -1,
                          .init_fd = -1,
                          .keep_fd = -1,
                          .std_fd = {-1, -1, -1},
                          .shm = SHM_DEFAULT};
    *about = "size";
    given = input_open();
    if (!given || input_head(given) < 0 || records_take(spec, verb, 0, given->head, about) < 0)
        return -1;
    return required_check(verb, false, about);
}

bool spec_divided(void) {
    return given->head < given->size;
}

int spec_body_again(struct spec *spec, enum verb verb, const char **about) {
    return records_take(spec, verb, spec_divided() ? given->head + 1 : given->size, given->size, about);
}

int spec_body(struct spec *spec, enum verb verb, const char **about) {
    *about = "size";
    if (input_rest(given) < 0 || spec_body_again(spec, verb, about) < 0 || required_check(verb, true, about) < 0)
        return -1;
    return whole_check(spec, verb, about);
}
