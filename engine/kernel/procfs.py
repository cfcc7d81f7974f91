"""What /proc tells of a process and of its network namespace: proc_pid_status(5), proc_pid_fd(5), proc_pid_net(5).

Everything raises ProcessLookupError or FileNotFoundError when the process is gone."""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import NamedTuple

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

TOO_LONG = "(longer than PATH_MAX)"
"""what stands for a link that the kernel doesn't print"""

LEVEL = 1
"""where ``NSpid`` and the like have the number in a job's pid namespace, which is right below the one that /proc shows;
a job's processes may have made others below"""

_STATUS = re.compile(
    rb"^(Name|State|PPid|TracerPid|Uid|Gid|NSpid|NSsid|RssAnon|RssShmem|Threads):\t(.*)$", re.MULTILINE
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
    return _lines_of(f"/proc/{pid}/status")


def _lines_of(path: str) -> dict[str, str]:
    found = _STATUS.findall(read(path))
    return {key.decode(): value.decode(errors="replace") for key, value in found}


def descriptors(pid: int) -> dict[int, str]:
    """Descriptor -> what its link says, such as ``/etc/passwd`` or ``socket:[4711]``."""
    fd = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return {int(name): _link(name, fd) for name in os.listdir(fd)}
    finally:
        os.close(fd)


def _link(name: str, fd: int | None = None) -> str:
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return TOO_LONG


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


def threads(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def number_in_job(pid: int, thread: int) -> int:
    """What a thread is called in the pid namespace right below the one that /proc shows; 0 for one that isn't in it."""
    numbers = _lines_of(f"/proc/{pid}/task/{thread}/status")["NSpid"].split()
    return int(numbers[LEVEL]) if len(numbers) > LEVEL else 0


def program(pid: int) -> str:
    """What the process executes, such as ``/bin/sh``; empty for a zombie."""
    try:
        return _link(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return ""


def directory(pid: int) -> str:
    """The process's working directory, from this process's root; empty for a zombie."""
    try:
        return _link(f"/proc/{pid}/cwd")
    except FileNotFoundError:
        return ""


def counter(pid: int, number: int) -> tuple[int, bool]:
    """What an eventfd counts, and whether it is a semaphore: proc_pid_fdinfo(5)."""
    found = dict(line.split(b":", 1) for line in read(f"/proc/{pid}/fdinfo/{number}").splitlines())
    return int(found[b"eventfd-count"], 16), found.get(b"eventfd-semaphore", b"").strip() == b"1"


def timers(pid: int) -> bytes:
    """The process's POSIX timers, five lines for each (CONFIG_CHECKPOINT_RESTORE)."""
    return read(f"/proc/{pid}/timers")


class InetSocket(NamedTuple):
    """A line of /proc/PID/net/tcp and its like."""

    table: str
    """``tcp``, ``tcp6``, ``udp`` ..."""
    local: bytes
    """address, 4 or 16 bytes in network order"""
    local_port: int
    remote: bytes
    remote_port: int
    state: int
    """as in the kernel's tcp_states.h"""
    unsent: int
    """bytes in its send queue"""
    unread: int
    """bytes in its receive queue; of a listening socket, the connections that wait to be accepted"""
    inode: int
    """0: no descriptor leads to it"""


def inet_sockets(pid: int, table: str) -> list[InetSocket]:
    """The sockets in the network namespace of a process; a kernel without such sockets has none."""
    return [_inet_socket(table, line.split()) for line in _lines(pid, table)]


def _inet_socket(table: str, fields: list[bytes]) -> InetSocket:
    unsent, unread = (int(field, 16) for field in fields[4].split(b":"))
    return InetSocket(
        table, *_address(fields[1]), *_address(fields[2]), int(fields[3], 16), unsent, unread, int(fields[9])
    )


def _address(field: bytes) -> tuple[bytes, int]:
    """Address and port."""
    text, _, port = field.partition(b":")
    return _plain(text), int(port, 16)


def _plain(text: bytes) -> bytes:
    """The kernel prints addresses as 32-bit numbers in the machine's own order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return b"".join(word.to_bytes(4, sys.byteorder) for word in words)


def unix_sockets(pid: int) -> frozenset[int]:
    """The inodes of the unix sockets of its network namespace. One that is accepted is of the namespace of who
    connected."""
    return frozenset(int(line.split()[6]) for line in _lines(pid, "unix"))


def accepted_sockets(pid: int, path: str) -> frozenset[int]:
    """The inodes of the unix sockets in the network namespace of a process that were accepted by one that was bound to
    ``path``, whoever holds them."""
    lines = (line.split() for line in _lines(pid, "unix"))
    wanted = [b"03", os.fsencode(path)]  # SS_CONNECTED
    return frozenset(int(fields[6]) for fields in lines if [fields[5], *fields[7:8]] == wanted)


def orphans(pid: int) -> int:
    """TCP connections that were closed with data left, anywhere on this machine: proc_pid_net(5), sockstat."""
    words = read(f"/proc/{pid}/net/sockstat").split()
    return int(words[words.index(b"orphan") + 1])


def unread(pid: int, table: str) -> dict[int, int]:
    """Inode -> bytes to read, of the ``netlink`` or ``packet`` sockets in the network namespace of a process."""
    return {
        int(fields[-1]): int(fields[4 if table == "netlink" else 6]) for fields in map(bytes.split, _lines(pid, table))
    }


def groups(pid: int) -> frozenset[bytes]:
    """The multicast groups, 4 or 16 bytes, that are joined in the network namespace of a process."""
    found = {_plain(fields[0]) for fields in map(bytes.split, _lines(pid, "igmp")) if len(fields[0]) == 8}
    found |= {bytes.fromhex(fields[2].decode()) for fields in map(bytes.split, _rows(pid, "igmp6"))}
    return frozenset(found)


def _lines(pid: int, table: str) -> list[bytes]:
    """Of /proc/PID/net/TABLE, without its heading."""
    return _rows(pid, table)[1:]


def _rows(pid: int, table: str) -> list[bytes]:
    try:
        return read(f"/proc/{pid}/net/{table}").splitlines()
    except FileNotFoundError:
        return []
