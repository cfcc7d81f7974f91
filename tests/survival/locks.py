"""File locks of all three kinds: that they keep others out, that they end with their owner, that waiters wait."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from survival import Probe, holds, same
from survival.files import directory
from survival.processes import Child

OFD_SETLK = 37


def refused(path: Path, kind: int) -> bool:
    """Whether flock by a new descriptor is refused."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def range_refused(path: Path, start: int) -> bool:
    """Whether a POSIX write lock of one byte is refused to another process."""

    def attempt() -> bool:
        fd = os.open(path, os.O_RDWR)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start)
        except (BlockingIOError, PermissionError):
            return True
        return False

    return bool(Child(lambda: attempt).ask())


def whole_file() -> Probe:
    here = directory("flock")
    exclusive = os.open(here / "exclusive", os.O_RDWR | os.O_CREAT)
    shared = os.open(here / "shared", os.O_RDWR | os.O_CREAT)
    fcntl.flock(exclusive, fcntl.LOCK_EX)
    fcntl.flock(shared, fcntl.LOCK_SH)
    yield
    same([refused(here / "exclusive", kind) for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH)], [True, True], "exclusive")
    same([refused(here / "shared", kind) for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH)], [True, False], "shared")
    os.close(exclusive)
    same(refused(here / "exclusive", fcntl.LOCK_EX), False, "exclusive, after its end")


def inherited() -> Probe:
    """A flock that parent and child hold together ends with the last of them."""
    path = directory("inherited") / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    child = Child(lambda: lambda: None)
    yield
    os.close(fd)
    same(refused(path, fcntl.LOCK_EX), True, "while the child has it")
    child.ask()
    same(refused(path, fcntl.LOCK_EX), False, "after the child's end")


def ranges() -> Probe:
    path = directory("posix") / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(1000))
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 100)
    fcntl.lockf(fd, fcntl.LOCK_SH, 10, 200)
    yield
    same([range_refused(path, at) for at in (99, 100, 109, 110, 205)], [False, True, True, False, True], "ranges")
    fcntl.lockf(fd, fcntl.LOCK_UN, 10, 100)
    same(range_refused(path, 100), False, "after its end")


def of_a_description() -> Probe:
    path = directory("ofd") / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    lock = struct.pack("hhxxxxqqixxxx", fcntl.F_WRLCK, os.SEEK_SET, 50, 10, 0)
    fcntl.fcntl(fd, OFD_SETLK, lock)
    child = Child(lambda: lambda: None)
    yield
    other = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(other, OFD_SETLK, lock)
    except BlockingIOError:
        pass
    else:
        holds(False, "another description of the same process is kept out")
    os.close(fd)
    same(range_refused(path, 55), True, "while the child has it")
    child.ask()
    same(range_refused(path, 55), False, "after the child's end")


def waited_for() -> Probe:
    """Processes that wait for a lock get it when it is free, and not before."""
    here = directory("waiting")
    fds = {kind: os.open(here / kind, os.O_RDWR | os.O_CREAT) for kind in ("flock", "posix")}
    fcntl.flock(fds["flock"], fcntl.LOCK_EX)
    fcntl.lockf(fds["posix"], fcntl.LOCK_EX)
    read, write = os.pipe()
    children = [waiter(here / kind, kind, write) for kind in fds]
    waiting = Path("/proc/locks")
    while sum(" -> " in line for line in waiting.read_text().splitlines()) < 2 and not stuck(children):
        os.sched_yield()
    yield
    os.set_blocking(read, False)
    try:
        early = os.read(read, 9)
    except BlockingIOError:
        early = b""
    same(early, b"", "those who got it too early")
    os.set_blocking(read, True)
    fcntl.flock(fds["flock"], fcntl.LOCK_UN)
    fcntl.lockf(fds["posix"], fcntl.LOCK_UN)
    same(sorted(os.read(read, 1) + os.read(read, 1)), sorted(b"fp"), "those who got it")
    for child in children:
        os.waitpid(child, 0)


def waiter(path: Path, kind: str, write: int) -> int:
    child = os.fork()
    if child == 0:
        fd = os.open(path, os.O_RDWR)
        (fcntl.flock if kind == "flock" else fcntl.lockf)(fd, fcntl.LOCK_EX)
        os.write(write, kind[:1].encode())
        os._exit(0)
    return child


def stuck(children: list[int]) -> bool:
    """Whether all of them sleep in the kernel's lock code."""
    calls = [Path(f"/proc/{child}/syscall").read_text().split()[0] for child in children]
    return sorted(calls) == ["72", "73"]
