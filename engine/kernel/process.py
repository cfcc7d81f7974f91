"""What /proc tells of a process, see proc_pid_stat(5)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_PIDFD_GETFD = 438
"""the same number on every architecture"""


def start_time(pid: int) -> int:
    """Clock ticks since boot at which the process began: with the pid it names a process for one boot.

    Raises ProcessLookupError when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError as error:
        raise ProcessLookupError(f"no process {pid}") from error
    # The second field is the command in parentheses and may hold anything, parentheses too.
    return int(stat.rpartition(b") ")[2].split()[19])


def working_directory(pid: int) -> str:
    """The process's working directory as it sees it, from its own root; raises OSError when it is gone."""
    return os.readlink(f"/proc/{pid}/cwd")


def id_map(pid: int) -> tuple[tuple[int, int, int], ...]:
    """The user ids of a process's user namespace: first one inside, first one seen from here, count."""
    lines = Path(f"/proc/{pid}/uid_map").read_text(encoding="ascii").splitlines()
    return tuple((int(inside), int(here), int(count)) for inside, here, count in map(str.split, lines))


def namespace_pid(pid: int) -> int:
    """The pid that the process has in the innermost pid namespace it belongs to."""
    for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise OSError(f"/proc/{pid}/status has no NSpid")


def boot_id() -> str:
    """Thirty-six characters that no other boot of any machine has."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@contextlib.contextmanager
def opened(pid: int) -> Iterator[int]:
    """A pidfd. Raises ProcessLookupError."""
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def descriptor(pidfd: int, number: int) -> int:
    """A copy of a descriptor of another process: pidfd_getfd(2). Raises OSError."""
    fd = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


@contextlib.contextmanager
def namespace(pid: int, kind: str) -> Iterator[int]:
    """A descriptor of a namespace of a process: ``net``, ``user`` ... Raises OSError."""
    fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def has_capability(pid: int, number: int) -> bool:
    """Whether it is in the process's effective set; the numbers are those of linux/capability.h."""
    text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    effective = next(line.split()[1] for line in text.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> number & 1)


@contextlib.contextmanager
def inside(pid: int, *names: str) -> Iterator[int]:
    """A descriptor of the directory ``names`` below the process's root; a name that is a link is an error.
    Raises OSError."""
    with contextlib.ExitStack() as stack:
        fd = _directory(f"/proc/{pid}/root", None, stack)
        for name in names:
            fd = _directory(name, fd, stack, os.O_NOFOLLOW)
        yield fd


def _directory(name: str, below: int | None, stack: contextlib.ExitStack, flags: int = 0) -> int:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | flags, dir_fd=below)
    stack.callback(os.close, fd)
    return fd


def foreign_sockets(pid: int) -> frozenset[int]:
    """Inodes of the unix sockets of a process, which has no others, that are of another network namespace: one that is
    accepted is of the namespace of who connected."""
    fds = f"/proc/{pid}/fd"
    links = [os.readlink(f"{fds}/{number}") for number in os.listdir(fds)]
    held = {int(link[8:-1]) for link in links if link.startswith("socket:[")}
    with open(f"/proc/{pid}/net/unix", "rb") as table:
        return frozenset(held - {int(line.split()[6]) for line in table.readlines()[1:]})
