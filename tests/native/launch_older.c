/*
 * LD_PRELOAD for a dynamically linked serac-launch: an older kernel, as far as its two fallbacks go.  No CLONE_INTO_CGROUP
 * (before 5.7) and no `lowerdir+` (before 6.8).
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>

int fsconfig(int fd, unsigned command, const char *key, const void *value, int aux) {
    int (*real)(int, unsigned, const char *, const void *, int) = dlsym(RTLD_NEXT, "fsconfig");
    if (!key || strcmp(key, "lowerdir+"))
        return real(fd, command, key, value, aux);
    errno = EINVAL;
    return -1;
}

long syscall(long number, ...) {
    long (*real)(long, ...) = dlsym(RTLD_NEXT, "syscall"), a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (number != SYS_clone3)
        return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    errno = EINVAL;
    return -1;
}
