"""What /proc tells of a process and of its network namespace: proc_pid_status(5), proc_pid_fd(5), proc_pid_net(5).

Everything raises ProcessLookupError or FileNotFoundError when the process is gone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

_STATUS = re.compile(
    rb"^(Name|State|PPid|TracerPid|Uid|Gid|NSpid|NSsid|VmPin|RssAnon|RssShmem|Threads):\t(.*)$", re.MULTILINE
)


def read(path: str) -> bytes:
    """A file of /proc, whose size can't be told beforehand."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, 64 << 10):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status that serac has a use for; a kernel thread or a zombie has fewer."""
    found = _STATUS.findall(read(f"/proc/{pid}/status"))
    return {key.decode(): value.decode(errors="replace") for key, value in found}


def descriptors(pid: int) -> dict[int, str]:
    """Descriptor -> what its link says, such as ``/etc/passwd`` or ``socket:[4711]``."""
    fd = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return {int(name): os.readlink(name, dir_fd=fd) for name in os.listdir(fd)}
    finally:
        os.close(fd)


def descriptor(pid: int, number: int) -> str:
    """The path that leads to what a descriptor is open on, whatever its link says."""
    return f"/proc/{pid}/fd/{number}"


def protocol(pid: int, number: int) -> str:
    """A socket's protocol as the kernel names it: ``TCP``, ``TCPv6``, ``UDP``, ``UNIX-STREAM``, ``NETLINK`` ..."""
    return os.getxattr(descriptor(pid, number), "system.sockprotoname").rstrip(b"\0").decode()


def namespaces(pid: int) -> tuple[str, ...]:
    """One link for each of ``NAMESPACES``, such as ``net:[4026531840]``; empty for a zombie, which has none."""
    fd = os.open(f"/proc/{pid}/ns", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return tuple(os.readlink(name, dir_fd=fd) for name in NAMESPACES)
    except FileNotFoundError:
        return ()
    finally:
        os.close(fd)


def mount_ids(pid: int) -> frozenset[int]:
    """The ids of the mounts that a process sees."""
    lines = read(f"/proc/{pid}/mountinfo").splitlines()
    return frozenset(int(line.split(b" ", 1)[0]) for line in lines)


class InetSocket(NamedTuple):
    """A line of /proc/PID/net/tcp and its like."""

    table: str
    """``tcp``, ``tcp6``, ``udp`` ..."""
    local: bytes
    """address, 4 or 16 bytes in network order"""
    remote: bytes
    state: int
    """as in the kernel's tcp_states.h"""
    unread: int
    """bytes in its receive queue; of a listening socket, the connections that wait to be accepted"""
    inode: int
    """0: no descriptor leads to it yet"""


def inet_sockets(pid: int, tables: Sequence[str]) -> Iterator[InetSocket]:
    """The sockets in the network namespace of a process."""
    for table in tables:
        for line in read(f"/proc/{pid}/net/{table}").splitlines()[1:]:
            fields = line.split()
            local, remote = (_address(field) for field in fields[1:3])
            yield InetSocket(
                table, local, remote, int(fields[3], 16), int(fields[4].split(b":")[1], 16), int(fields[9])
            )


def _address(field: bytes) -> bytes:
    """The kernel prints addresses as 32-bit numbers in the machine's own order."""
    text = field.split(b":")[0]
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return b"".join(word.to_bytes(4, "little") for word in words)


def foreign_sockets(pid: int) -> frozenset[int]:
    """Inodes of the unix sockets of a process, which has no others, that are of another network namespace: a socket
    that is accepted is of the namespace of who connected."""
    held = {int(link[8:-1]) for link in descriptors(pid).values() if link.startswith("socket:[")}
    return frozenset(held - {int(line.split()[6]) for line in read(f"/proc/{pid}/net/unix").splitlines()[1:]})
