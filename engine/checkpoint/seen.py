"""Look at the frozen processes of a job, in /proc. Reads much and judges nothing; `engine.checkpoint.preflight` does.

It is in the way of every pause, so each thing is read once, and only where it can be. Not read are the mappings, which
take long in large processes: what criu can't carry of them it says at once, and `explain` knows it.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
import termios
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.checkpoint.placing import placements
from engine.kernel import kcmp, process, procfs, statfs
from engine.kernel.sockstat import LISTEN, TcpState, tcp_state
from engine.kernel.statx import Statx, statx
from engine.model import Placement, Value

_CLOSED = 7
_TABLES = {"TCP": "tcp", "TCPv6": "tcp6", "UDP": "udp", "UDPv6": "udp6", "RAW": "raw", "RAWv6": "raw6"}
_MESSAGE_QUEUES = 0x19800202
"""MQUEUE_MAGIC"""


class Descriptor(NamedTuple):
    number: int
    link: str
    protocol: str = ""
    """of a socket"""
    tcp: TcpState | None = None
    file: Statx | None = None
    """of what has a path"""
    queue: bool = False
    """whether it is a POSIX message queue"""
    attributes: bool = False
    """whether it is a deleted file with extended attributes"""
    counter: tuple[int, bool] = (0, False)
    """as `procfs.counter`, of an eventfd"""
    unread: int = 0
    """bytes of events to read, of inotify"""

    @property
    def inode(self) -> int:
        """Of a socket; 0 of anything else."""
        return int(self.link[len("socket:[") : -1]) if self.protocol else 0


class Process(NamedTuple):
    pid: int
    """in the job"""
    name: str
    parent: int
    """in the job; 0 for init"""
    session: int
    """in the job; 0 when its leader isn't of the job"""
    state: str
    """a letter as in proc_pid_status(5)"""
    threads: int
    tracer: int
    users: frozenset[str]
    """its real, effective and saved ids, users and groups, as the host numbers them"""
    program: str
    directory: str
    namespaces: tuple[str, ...]
    """as `procfs.namespaces`"""
    shares: str | None
    """what it has in common with its parent, though it is a process: ``memory`` or ``directories``"""
    apart: bool
    """whether a thread of it has descriptors or directories of its own"""
    thread_timers: bool
    """whether it has timers that signal one thread"""
    descriptors: tuple[Descriptor, ...]


class Seen(Value, frozen=True, kw_only=True):
    """What `look` found."""

    processes: tuple[Process, ...]
    """init first"""
    mounts: frozenset[int]
    """ids of the mounts that init sees"""
    sockets: tuple[procfs.InetSocket, ...] = ()
    """all datagram and raw ones; the TCP ones where there may be some without a descriptor that matter"""
    unread: Mapping[int, int] = {}
    """inode -> bytes to read, of netlink and packet sockets"""
    groups: frozenset[bytes] = frozenset()
    """multicast groups that are joined in the job's network"""
    unix: frozenset[int] = frozenset()
    """inodes of the unix sockets of the job's network"""
    placements: tuple[Placement, ...] = ()
    """for `place`, after a restore"""
    memory: int = 0
    """bytes of the processes' own pages"""

    @property
    def connections(self) -> bool:
        """Whether there are TCP connections."""
        states = {held.tcp.state for one in self.processes for held in one.descriptors if held.tcp}
        return bool(states - {_CLOSED, LISTEN})


def look(pids: Sequence[int]) -> Seen:
    """See what a frozen job consists of; ``pids`` are the host's numbers of all its processes."""
    lines = {pid: procfs.status(pid) for pid in pids}
    inside = {pid: int(found["NSpid"].split()[procfs.LEVEL]) for pid, found in lines.items()}
    order = sorted(pids, key=lambda pid: inside[pid])
    processes = tuple(_process(pid, lines[pid], inside) for pid in order)
    sockets = [held for one in processes for held in one.descriptors if held.protocol]
    return Seen(
        processes=processes,
        mounts=procfs.mount_ids(order[0]),
        sockets=tuple(_inet_sockets(order[0], sockets)),
        unread=_unread(order[0], {held.protocol for held in sockets}),
        unix=procfs.unix_sockets(order[0]) if sockets else frozenset(),
        groups=procfs.groups(order[0]) if any(held.protocol[:3] in ("UDP", "RAW") for held in sockets) else frozenset(),
        placements=placements(order),
        memory=sum(_kilobytes(found, "RssAnon") + _kilobytes(found, "RssShmem") for found in lines.values()) << 10,
    )


def _process(pid: int, lines: Mapping[str, str], inside: Mapping[int, int]) -> Process:
    parent, state, threads = int(lines["PPid"]), lines["State"][0], int(lines["Threads"])
    lives = state not in "ZX"
    return Process(
        pid=inside[pid],
        name=lines["Name"],
        parent=inside.get(parent, 0),
        session=int(lines["NSsid"].split()[procfs.LEVEL]),
        state=state,
        threads=threads,
        tracer=int(lines["TracerPid"]),
        users=frozenset(lines["Uid"].split()[:3] + lines["Gid"].split()[:3]),
        program=procfs.program(pid),
        directory=procfs.directory(pid),
        namespaces=procfs.namespaces(pid),
        shares=_shared(pid, parent) if lives and parent in inside else None,
        apart=lives and threads > 1 and _apart(pid),
        thread_timers=lives and b"/tid." in procfs.timers(pid),
        descriptors=tuple(_descriptors(pid)) if lives else (),
    )


def _kilobytes(lines: Mapping[str, str], key: str) -> int:
    return int(lines.get(key, "0").split()[0])


def _shared(pid: int, parent: int) -> str | None:
    if kcmp.shared(pid, parent, kcmp.VM):
        return "memory"
    return "directories" if kcmp.shared(pid, parent, kcmp.FS) else None


def _apart(pid: int) -> bool:
    return not all(
        kcmp.shared(pid, thread, kcmp.FILES) and kcmp.shared(pid, thread, kcmp.FS) for thread in procfs.threads(pid)
    )


def _descriptors(pid: int) -> Iterator[Descriptor]:
    with process.opened(pid) as pidfd:
        for number, link in procfs.descriptors(pid).items():
            kind = link.partition(":")[0]
            if kind == "socket":
                yield _socket(pid, pidfd, number, link)
            elif kind == "anon_inode":
                yield _anonymous(pid, pidfd, number, link)
            elif kind != "pipe":
                yield _file(pid, number, link)


def _socket(pid: int, pidfd: int, number: int, link: str) -> Descriptor:
    protocol = procfs.protocol(pid, number)
    tcp = tcp_state(process.descriptor(pidfd, number)) if protocol in ("TCP", "TCPv6") else None
    return Descriptor(number, link, protocol=protocol, tcp=tcp)


def _anonymous(pid: int, pidfd: int, number: int, link: str) -> Descriptor:
    if link == "anon_inode:[eventfd]":
        return Descriptor(number, link, counter=procfs.counter(pid, number))
    if link == "anon_inode:inotify":
        return Descriptor(number, link, unread=_waiting(process.descriptor(pidfd, number)))
    return Descriptor(number, link)


def _waiting(fd: int) -> int:
    """Bytes to read from a descriptor, which is closed."""
    size = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, size)
    finally:
        os.close(fd)
    return size[0]


def _file(pid: int, number: int, link: str) -> Descriptor:
    if not link.startswith("/"):
        return Descriptor(number, link)
    path = procfs.descriptor(pid, number)
    file = statx(path)
    # A queue's name has no second slash: only then is it worth a call to ask.
    queue = "/" not in link[1:] and statfs.type_of(Path(path)) == _MESSAGE_QUEUES
    attributes = not file.links and stat.S_ISREG(file.mode) and _has_attributes(path)
    return Descriptor(number, link, file=file, queue=queue, attributes=attributes)


def _has_attributes(path: str) -> bool:
    try:
        return any(name.startswith(("user.", "system.")) for name in os.listxattr(path))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return False


def _inet_sockets(pid: int, sockets: Sequence[Descriptor]) -> Iterator[procfs.InetSocket]:
    """The kernel searches its whole table for a list of the TCP sockets, which takes milliseconds."""
    tcp = any(held.tcp and held.tcp.waiting for held in sockets)
    tcp = tcp or (any(held.tcp for held in sockets) and procfs.orphans(pid) > 0)
    for protocol in {held.protocol for held in sockets}:
        if protocol in _TABLES and (tcp or not protocol.startswith("TCP")):
            yield from procfs.inet_sockets(pid, _TABLES[protocol])


def _unread(pid: int, protocols: set[str]) -> dict[int, int]:
    found: dict[int, int] = {}
    for protocol in protocols & {"NETLINK", "PACKET"}:
        found |= procfs.unread(pid, protocol.lower())
    return found
