"""Look at the frozen processes of a job, in /proc. Reads much and judges nothing; `engine.checkpoint.preflight` does.

It is in the way of every pause, so each thing is read once, and only where it can be. Not read are the mappings, which
take long in large processes: what criu can't carry of them it says at once, and `explain` knows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.kernel import kcmp, procfs, statfs
from engine.kernel.statx import Statx, statx
from engine.model import Value

LISTEN = 10
"""the state of a listening TCP socket: tcp_states.h"""
_LEVEL = 1
"""of the job's pid namespace, right below the one that /proc shows; a job's processes may have made others below"""
_MESSAGE_QUEUES = 0x19800202
"""MQUEUE_MAGIC"""


class Descriptor(NamedTuple):
    number: int
    link: str
    protocol: str = ""
    """of a socket"""
    file: Statx | None = None
    """of what has a path"""
    queue: bool = False
    """whether it is a POSIX message queue"""

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
    unread: Mapping[int, int] = {}
    """inode -> bytes to read, of netlink and packet sockets"""
    groups: frozenset[bytes] = frozenset()
    """multicast groups that are joined in the job's network"""
    memory: int = 0
    """bytes of the processes' own pages"""

    @property
    def connections(self) -> bool:
        """Whether there are TCP connections."""
        return any(socket.table.startswith("tcp") and socket.state != LISTEN for socket in self.sockets)


def look(pids: Sequence[int]) -> Seen:
    """See what a frozen job consists of; ``pids`` are the host's numbers of all its processes."""
    lines = {pid: procfs.status(pid) for pid in pids}
    inside = {pid: int(found["NSpid"].split()[_LEVEL]) for pid, found in lines.items()}
    order = sorted(pids, key=lambda pid: inside[pid])
    processes = tuple(_process(pid, lines[pid], inside) for pid in order)
    protocols = {held.protocol.lower()[:3] for process in processes for held in process.descriptors}
    return Seen(
        processes=processes,
        mounts=procfs.mount_ids(order[0]),
        sockets=tuple(_inet_sockets(order[0], protocols)),
        unread=_unread(order[0], protocols),
        groups=procfs.groups(order[0]) if protocols & {"udp", "raw"} else frozenset(),
        memory=sum(_kilobytes(found, "RssAnon") + _kilobytes(found, "RssShmem") for found in lines.values()) << 10,
    )


def _process(pid: int, lines: Mapping[str, str], inside: Mapping[int, int]) -> Process:
    parent, state, threads = int(lines["PPid"]), lines["State"][0], int(lines["Threads"])
    lives = state not in "ZX"
    return Process(
        pid=inside[pid],
        name=lines["Name"],
        parent=inside.get(parent, 0),
        session=int(lines["NSsid"].split()[_LEVEL]),
        state=state,
        threads=threads,
        tracer=int(lines["TracerPid"]),
        users=frozenset(lines["Uid"].split()[:3] + lines["Gid"].split()[:3]),
        program=procfs.program(pid),
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
    for number, link in procfs.descriptors(pid).items():
        path = procfs.descriptor(pid, number)
        if link.startswith("socket:"):
            yield Descriptor(number, link, protocol=procfs.protocol(pid, number))
        elif link.startswith("/"):
            # A queue's name has no second slash; only then is it worth a call to ask.
            yield Descriptor(number, link, file=statx(path), queue="/" not in link[1:] and _is_queue(path))
        elif not link.startswith("pipe:"):
            yield Descriptor(number, link)


def _is_queue(path: str) -> bool:
    return statfs.type_of(Path(path)) == _MESSAGE_QUEUES


def _inet_sockets(pid: int, protocols: set[str]) -> Iterator[procfs.InetSocket]:
    for protocol in sorted(protocols & {"tcp", "udp", "raw"}):
        yield from procfs.inet_sockets(pid, protocol)
        yield from procfs.inet_sockets(pid, f"{protocol}6")


def _unread(pid: int, protocols: set[str]) -> dict[int, int]:
    tables = {"net": "netlink", "pac": "packet"}
    found: dict[int, int] = {}
    for protocol in protocols & tables.keys():
        found |= procfs.unread(pid, tables[protocol])
    return found
