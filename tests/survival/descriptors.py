"""Pipes and the kernel's small objects behind a descriptor."""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import struct
import threading
import time

from survival import Probe, holds, libc, same
from survival.processes import Child

SIZE = fcntl.F_GETPIPE_SZ
DATA = bytes(range(256)) * 200


def pipe_with_data() -> Probe:
    read, write = os.pipe2(os.O_NONBLOCK)
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
    for _ in range(4):
        os.write(write, DATA)
    flags = fcntl.fcntl(read, fcntl.F_GETFL), fcntl.fcntl(read, fcntl.F_GETFD)
    yield
    same((fcntl.fcntl(read, fcntl.F_GETFL), fcntl.fcntl(read, fcntl.F_GETFD)), flags, "flags")
    same(fcntl.fcntl(read, SIZE), 1 << 20, "size of the pipe")
    os.close(write)
    same(os.read(read, 1 << 20), DATA * 4, "what was in it")
    same(os.read(read, 1), b"", "its end")


def pipe_that_is_full() -> Probe:
    """A writer that waits for room, and a reader that waits for data, at the time of the pause."""
    read, write = os.pipe()
    total = 4 << 20
    pid = os.fork()
    if pid == 0:
        left = memoryview(DATA * (total // len(DATA) + 1))[:total]
        while left:
            left = left[os.write(write, left) :]
        os._exit(0)
    os.close(write)
    buffer = array.array("i", [0])
    while buffer[0] < 65536:
        fcntl.ioctl(read, 0x541B, buffer)  # FIONREAD
    yield
    with open(read, "rb") as stream:
        got = stream.read()
    same((len(got), got == (DATA * (total // len(DATA) + 1))[:total]), (total, True), "what came through")
    os.waitpid(pid, 0)


def pipe_closed_at_one_end() -> Probe:
    read, write = os.pipe()
    os.write(write, b"last")
    os.close(write)
    other_read, other_write = os.pipe()
    os.close(other_read)
    yield
    same((os.read(read, 9), os.read(read, 9)), (b"last", b""))
    try:
        os.write(other_write, b"x")
    except BrokenPipeError:
        return
    holds(False, "a write without readers is a broken pipe")


def fifo() -> Probe:
    os.mkfifo("/tmp/fifo")
    read = os.open("/tmp/fifo", os.O_RDONLY | os.O_NONBLOCK)
    write = os.open("/tmp/fifo", os.O_WRONLY)
    os.write(write, DATA)
    yield
    os.write(os.open("/tmp/fifo", os.O_WRONLY), b"more")
    same(os.read(read, 1 << 16), DATA + b"more")


def fifo_removed() -> Probe:
    os.mkfifo("/tmp/gone")
    read = os.open("/tmp/gone", os.O_RDONLY | os.O_NONBLOCK)
    write = os.open("/tmp/gone", os.O_WRONLY)
    os.unlink("/tmp/gone")
    os.write(write, DATA)
    yield
    same(os.read(read, 1 << 16), DATA)
    holds(not os.path.exists("/tmp/gone"), "its name is gone")


def eventfds() -> Probe:
    plain = os.eventfd(0)
    os.eventfd_write(plain, (1 << 32) - 1)
    unblocked = os.eventfd(3, os.EFD_NONBLOCK)
    yield
    same(os.eventfd_read(plain), (1 << 32) - 1)
    same(os.eventfd_read(unblocked), 3)
    same(select.select([plain, unblocked], [], [], 0)[0], [], "those that are still readable")


def signalfds() -> Probe:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN])
    fd = libc.call("signalfd", -1, libc.sigset(signal.SIGUSR1, signal.SIGRTMIN), 0)
    libc.sigqueue(os.getpid(), signal.SIGRTMIN, 5)
    yield
    os.kill(os.getpid(), signal.SIGUSR1)
    found = [struct.unpack_from("I", os.read(fd, 128))[0] for _ in range(2)]
    same(sorted(found), [signal.SIGUSR1, signal.SIGRTMIN])


def epolls() -> Probe:
    """Level and edge triggered, one-shot that has shot, what each registration carries, one in another."""
    level, edge, once = os.eventfd(1), os.eventfd(0), os.eventfd(1)
    inner, outer = select.epoll(), select.epoll()
    inner.register(level, select.EPOLLIN)
    inner.register(edge, select.EPOLLIN | select.EPOLLET)
    inner.register(once, select.EPOLLIN | select.EPOLLONESHOT)
    same(len(inner.poll(0)), 2, "events before")
    outer.register(inner.fileno(), select.EPOLLIN)
    yield
    same(outer.poll(0), [(inner.fileno(), select.EPOLLIN)], "the outer one")
    events = sorted(inner.poll(0))
    same(events, [(level, select.EPOLLIN)], "events")
    os.eventfd_write(edge, 1)
    same(sorted(inner.poll(0)), [(level, select.EPOLLIN), (edge, select.EPOLLIN)], "events after a write")
    inner.modify(once, select.EPOLLIN)
    holds((once, select.EPOLLIN) in inner.poll(0), "the one-shot shoots again when it is armed")


def epoll_waited_on() -> Probe:
    """A thread that is in epoll_wait."""
    poller, wake = select.epoll(), os.eventfd(0)
    poller.register(wake, select.EPOLLIN)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(poller.poll()))
    thread.start()
    yield
    os.eventfd_write(wake, 1)
    thread.join()
    same(found, [(wake, select.EPOLLIN)])


def timerfds() -> Probe:
    """One that has expired before and wasn't read, one not yet, one not armed."""
    expired = libc.timerfd(time.CLOCK_MONOTONIC, libc.itimerspec(0.001))
    select.select([expired], [], [])
    later = libc.timerfd(time.CLOCK_MONOTONIC, libc.itimerspec(5000, 7))
    unarmed = libc.timerfd(time.CLOCK_MONOTONIC, libc.itimerspec(0))
    yield
    same(os.read(expired, 8), struct.pack("Q", 1), "expirations")
    left, interval = libc.timerfd_left(later)
    holds(0 < left <= 5000, f"it will expire in its time, not in {left}")
    same((interval, libc.timerfd_left(unarmed)), (7.0, (0.0, 0.0)))
    libc.call("timerfd_settime", later, 0, libc.itimerspec(0.001), None)
    same(os.read(later, 8), struct.pack("Q", 1))


def memfds() -> Probe:
    """Contents, name, offset, seals; and shared with a child."""
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    sealed = os.memfd_create("kept", os.MFD_ALLOW_SEALING)
    os.write(sealed, DATA)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, seals)
    os.lseek(sealed, 100, os.SEEK_SET)
    child = Child(lambda: lambda: os.pwrite(sealed, b"child", 0))
    yield
    same(fcntl.fcntl(sealed, fcntl.F_GET_SEALS), seals, "seals")
    same(os.readlink(f"/proc/self/fd/{sealed}"), "/memfd:kept (deleted)", "name")
    same(os.read(sealed, len(DATA)), DATA[100:], "contents")
    child.ask()
    same(os.pread(sealed, 6, 0), b"child" + DATA[5:6], "what the child wrote")


def duplicates() -> Probe:
    """Numbers, flags, one offset for what was duplicated and for what was inherited."""
    path = "/tmp/duplicates"
    one = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.write(one, DATA)
    os.dup2(one, 900)
    apart = os.open(path, os.O_RDONLY)
    child = Child(lambda: lambda: os.lseek(one, 1000, os.SEEK_SET))
    yield
    child.ask()
    same((os.lseek(one, 0, 1), os.lseek(900, 0, 1), os.lseek(apart, 0, 1)), (1000, 1000, 0), "offsets")
    same((os.get_inheritable(one), os.get_inheritable(900)), (False, True), "inherited by programs")


def owners() -> Probe:
    """F_SETOWN and F_SETSIG: who is told of input, and how."""
    read, write = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN + 2])
    fcntl.fcntl(read, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(read, fcntl.F_SETSIG, signal.SIGRTMIN + 2)
    fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    yield
    same((fcntl.fcntl(read, fcntl.F_GETOWN), fcntl.fcntl(read, fcntl.F_GETSIG)), (os.getpid(), signal.SIGRTMIN + 2))
    os.write(write, b"x")
    same(libc.take_signal(signal.SIGRTMIN + 2)[0], signal.SIGRTMIN + 2, "signal for input")


def pidfds() -> Probe:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(1)
    fd = os.pidfd_open(child)
    yield
    signal.pidfd_send_signal(fd, signal.SIGTERM)
    same(os.waitid(os.P_PIDFD, fd, os.WEXITED).si_status, signal.SIGTERM)  # type: ignore[union-attr]


def devices() -> Probe:
    names = ("null", "zero", "full", "random", "urandom")
    opened = {name: os.open(f"/dev/{name}", os.O_RDWR if name != "random" else os.O_RDONLY) for name in names}
    yield
    same((os.read(opened["zero"], 3), os.read(opened["null"], 3)), (bytes(3), b""))
    holds(os.read(opened["urandom"], 16) != os.read(opened["random"], 16), "they are random")
    same(os.write(opened["null"], b"xyz"), 3)


def of_proc() -> Probe:
    """Files of /proc about oneself and about the machine."""
    own = os.open("/proc/self/status", os.O_RDONLY)
    limits = os.open(f"/proc/{os.getpid()}/limits", os.O_RDONLY)
    stat = os.open("/proc/stat", os.O_RDONLY)
    yield
    holds(f"Pid:\t{os.getpid()}".encode() in os.read(own, 4096), "it is of this process")
    holds(os.read(limits, 4096).startswith(b"Limit"), "limits can be read")
    holds(os.read(stat, 4096).startswith(b"cpu"), "the machine's can be read")


def unread_waiter() -> Probe:
    """A thread in poll(2), without a limit of time, over several kinds of descriptors."""
    wake = os.eventfd(0)
    read, _write = os.pipe()
    poller = select.poll()
    for fd in (wake, read):
        poller.register(fd, select.POLLIN)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(poller.poll()))
    thread.start()
    yield
    os.eventfd_write(wake, 1)
    thread.join()
    same(found, [(wake, select.POLLIN)])
