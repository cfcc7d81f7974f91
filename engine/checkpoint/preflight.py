"""The preflight: look at the frozen processes of a job, and judge whether criu can carry them.

`look` reads /proc and says what there is; `judge` is pure. What only criu finds out, `explain` reads from its log.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.checkpoint.obstacles import REASONS, Obstacle, obstacle
from engine.checkpoint.trees import Member, without_leader
from engine.kernel import procfs, statfs
from engine.kernel.statx import Statx, statx
from engine.model import Net, UserNs, Value

GHOST_LIMIT = 512 << 20
"""bytes of a deleted file that still goes into the image"""

_QUEUES = 0x19800202
"""MQUEUE_MAGIC of linux/ipc.h"""
_LISTEN = 10
_LOOPBACK = (b"\x7f", bytes(15) + b"\1", bytes(10) + b"\xff\xff\x7f")
"""what addresses of this machine begin with"""

_ANONYMOUS = {
    "[io_uring]": "io-uring",
    "[userfaultfd]": "userfaultfd",
    "[perf_event]": "perf-event",
    "[fanotify]": "fanotify",
    "[landlock-ruleset]": "landlock",
    "bpf-map": "bpf",
    "bpf-prog": "bpf",
    "bpf_link": "bpf",
    "btf": "bpf",
    "seccomp notify": "seccomp-listener",
    "[eventfd]": None,
    "[eventpoll]": None,
    "[signalfd]": None,
    "[timerfd]": None,
    "[pidfd]": None,
    "inotify": None,
}
"""anon_inode: -> why not, None = criu carries it"""

_PROTOCOLS = frozenset(
    {"TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "RAW", "RAWv6", "PING", "PINGv6"}
    | {"UNIX", "UNIX-STREAM", "NETLINK", "PACKET"}
)
_DEVICES = {1: frozenset({3, 5, 7, 8, 9}), 5: frozenset({0, 2}), 136: None}
"""major number -> minor ones that criu knows, None = all: memory devices, /dev/tty and ptmx, pseudo-terminals"""


class Descriptor(NamedTuple):
    number: int
    link: str
    protocol: str = ""
    """of a socket"""
    file: Statx | None = None
    """of what has a path"""
    queue: bool = False
    """whether it is a POSIX message queue"""


class Process(NamedTuple):
    pid: int
    """in the job"""
    name: str
    parent: int
    """in the job; 0 for init"""
    session: int
    """in the job; 0 when its leader isn't in the job"""
    depth: int
    """how many pid namespaces it is in, the host's included"""
    tracer: int
    users: frozenset[str]
    """its real, effective and saved ids, users and groups, as the host numbers them"""
    namespaces: tuple[str, ...]
    """as `procfs.namespaces`; empty for a zombie"""
    descriptors: tuple[Descriptor, ...]


class Seen(Value, frozen=True, kw_only=True):
    """What `look` found."""

    processes: tuple[Process, ...]
    """init first"""
    mounts: frozenset[int]
    """ids of the mounts that init sees"""
    sockets: tuple[procfs.InetSocket, ...]
    memory: int
    """bytes of the processes' own pages"""

    @property
    def connections(self) -> bool:
        """Whether there are TCP connections."""
        return any(socket.table.startswith("tcp") and socket.state != _LISTEN for socket in self.sockets)


def look(pids: Sequence[int]) -> Seen:
    """See what a frozen job consists of; ``pids`` are the host's numbers of all its processes."""
    found = {pid: procfs.status(pid) for pid in pids}
    inside = {pid: int(lines["NSpid"].split()[-1]) for pid, lines in found.items()}
    order = sorted(pids, key=lambda pid: inside[pid])
    processes = tuple(_process(pid, found[pid], inside) for pid in order)
    return Seen(
        processes=processes,
        mounts=procfs.mount_ids(order[0]),
        sockets=tuple(_sockets(order[0], processes)),
        memory=sum(_kilobytes(lines, "RssAnon") + _kilobytes(lines, "RssShmem") for lines in found.values()) << 10,
    )


def _process(pid: int, lines: dict[str, str], inside: dict[int, int]) -> Process:
    depth = lines["NSpid"].split()
    return Process(
        pid=inside[pid],
        name=lines["Name"],
        parent=inside.get(int(lines["PPid"]), 0),
        session=int(lines["NSsid"].split()[-1]),
        depth=len(depth),
        tracer=int(lines["TracerPid"]),
        users=frozenset(lines["Uid"].split()[:3] + lines["Gid"].split()[:3]),
        namespaces=procfs.namespaces(pid),
        descriptors=tuple(_descriptors(pid)),
    )


def _kilobytes(lines: dict[str, str], key: str) -> int:
    return int(lines.get(key, "0").split()[0])


def _descriptors(pid: int) -> Iterator[Descriptor]:
    for number, link in procfs.descriptors(pid).items():
        path = procfs.descriptor(pid, number)
        if link.startswith("socket:"):
            yield Descriptor(number, link, protocol=procfs.protocol(pid, number))
        elif link.startswith("/"):
            yield Descriptor(number, link, file=statx(path), queue=link.count("/") == 1 and _is_queue(path))
        elif not link.startswith("pipe:"):
            yield Descriptor(number, link)


def _is_queue(path: str) -> bool:
    return statfs.type_of(Path(path)) == _QUEUES


def _sockets(init: int, processes: Sequence[Process]) -> Iterator[procfs.InetSocket]:
    protocols = {descriptor.protocol for process in processes for descriptor in process.descriptors}
    kinds = {name[:3].lower() for name in protocols} & {"tcp", "udp"}
    for table in (name + version for name in sorted(kinds) for version in ("", "6")):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            yield from procfs.inet_sockets(init, [table])


def judge(seen: Seen, *, userns: UserNs, net: Net, capable: bool, allow: Collection[str] = ()) -> tuple[Obstacle, ...]:
    """What stands in the way of a checkpoint, most telling first; () = nothing that can be seen.

    ``capable``: whether serac has CAP_SYS_RESOURCE; ``allow``: as in `JobSpec`."""
    found: list[Obstacle] = []
    if net == "host":
        found.append(obstacle("host-network", "the job is in the host's network"))
    if "landlock" in allow:
        found.append(obstacle("landlock", "the job may use Landlock, and what it forbade itself can't be seen"))
    for process in seen.processes:
        reasons = [*_of_process(process, seen.processes[0], other_users=userns == "private" or capable)]
        reasons += [pair for held in process.descriptors for pair in _of_descriptor(held, seen)]
        found += [_about(process, reason, where) for reason, where in reasons]
    members = [Member(process.pid, process.parent, process.session) for process in seen.processes]
    lost = without_leader(members)
    found += [_about(process, "session", "") for process in seen.processes if process.pid in lost]
    return tuple(found)


def _about(process: Process, reason: str, where: str) -> Obstacle:
    return obstacle(reason, f"process {process.pid} ({process.name}) {REASONS[reason].what}{where}")


def _of_process(process: Process, init: Process, *, other_users: bool) -> Iterator[tuple[str, str]]:
    if process.tracer:
        yield "traced", ""
    if (process.namespaces and process.namespaces != init.namespaces) or process.depth != init.depth:
        yield "namespace", ""
    if not other_users and process.users != {"0"}:
        yield "other-user", ""


def _of_descriptor(held: Descriptor, seen: Seen) -> Iterator[tuple[str, str]]:
    reason = _reason(held, seen)
    if reason is not None:
        yield reason, f" (descriptor {held.number}, {held.protocol or held.link})"


def _reason(held: Descriptor, seen: Seen) -> str | None:
    kind, _, name = held.link.partition(":")
    if kind == "anon_inode":
        return _ANONYMOUS.get(name, "descriptor")
    if held.protocol:
        return "mptcp" if held.protocol.startswith("MPTCP") else None if held.protocol in _PROTOCOLS else "socket"
    return None if held.file is None else _reason_of_file(held, held.file, seen)


def _reason_of_file(held: Descriptor, file: Statx, seen: Seen) -> str | None:
    if held.queue:
        return "message-queue"
    if held.link.startswith("/secretmem"):
        return "memfd-secret"
    if not file.links and file.blocks * 512 > GHOST_LIMIT and not held.link.startswith("/memfd:"):
        return "large-deleted-file"
    if stat.S_ISBLK(file.mode) or (stat.S_ISCHR(file.mode) and not _known_device(file.device)):
        return "device"
    if file.mount not in seen.mounts and not held.link.startswith("/memfd:"):
        return "outside-file"
    return None


def _known_device(device: tuple[int, int]) -> bool:
    minors = _DEVICES.get(device[0], frozenset())
    return minors is None or device[1] in minors
