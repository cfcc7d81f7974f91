"""The preflight: what of a frozen job criu can't carry, or would lose without a word. Pure.

What only criu finds out, at the cost of a dump that fails, `engine.checkpoint.explain` reads from its log.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterator

from engine.checkpoint.obstacles import REASONS, Obstacle, obstacle
from engine.checkpoint.seen import Descriptor, Process, Seen, look
from engine.checkpoint.trees import Member, without_leader
from engine.kernel.procfs import TOO_LONG, InetSocket
from engine.kernel.sockstat import LISTEN
from engine.kernel.statx import Statx
from engine.model import Net, UserNs

__all__ = ["Seen", "judge", "look"]

GHOST_LIMIT = 512 << 20
"""bytes on disk of a deleted file that still goes into the image"""

_ANONYMOUS = {
    "[io_uring]": "io-uring",
    "[userfaultfd]": "userfaultfd",
    "[perf_event]": "perf-event",
    "[landlock-ruleset]": "landlock",
    "bpf-map": "bpf",
    "bpf-prog": "bpf",
    "bpf_link": "bpf",
    "btf": "bpf",
    "seccomp notify": "seccomp-listener",
    "[eventfd]": None,
    "[eventpoll]": None,
    "[fanotify]": None,
    "[pidfd]": None,
    "[signalfd]": None,
    "[timerfd]": None,
    "inotify": None,
}
"""what follows ``anon_inode:`` in a descriptor's link -> why not; None = criu carries it, or says why not"""

_PROTOCOLS = frozenset(
    {"TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "RAW", "RAWv6", "PING", "PINGv6"}
    | {"UNIX", "UNIX-STREAM", "NETLINK", "PACKET"}
)
_PROCESS = re.compile(r"/proc/\d+")
_COUNTER_MAX = (1 << 32) - 1
_DEVICES = {1: frozenset({3, 5, 7, 8, 9}), 5: frozenset({0, 2}), 136: None}
"""major number -> minor ones that criu knows, None = all: memory devices, /dev/tty and ptmx, pseudo-terminals"""

_UNSEEN = {
    "landlock": "the job may use Landlock: what a process forbade itself can't be seen, and would be allowed",
    "keyring": "the job may use keyrings: they can't be seen, and would be empty",
}
"""groups of system calls that, once allowed, leave what neither shows nor survives"""

_LOOPBACK = (b"\x7f", bytes(10) + b"\xff\xff\x7f", bytes(15) + b"\1")
_EVERY_HOST = (
    bytes((224, 0, 0, 1)),
    *(bytes((255, scope)) + bytes(13) + b"\1" for scope in (1, 2)),
    bytes((255, 2)) + bytes(9) + b"\1\xff",
)
"""what the multicast groups begin with that the kernel joins by itself: all hosts, solicited nodes"""

_ESTABLISHED, _SYN_SENT, _SYN_RECEIVED, _FIN_WAIT1, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 1, 2, 3, 4, 8, 9, 11


def judge(seen: Seen, *, userns: UserNs, net: Net, capable: bool, allow: Collection[str] = ()) -> tuple[Obstacle, ...]:
    """What stands in the way of a checkpoint, first what will not pass by itself; () = nothing that can be seen.

    ``capable``: whether serac has CAP_SYS_RESOURCE; ``allow``: as in `JobSpec`."""
    found = [obstacle(group, why) for group, why in _UNSEEN.items() if group in allow]
    if net == "host":
        found.append(obstacle("host-network", f"the job {REASONS['host-network'].what}"))
    init = seen.processes[0]
    members = [Member(process.pid, process.parent, process.session) for process in seen.processes]
    lost = without_leader(members)
    for process in seen.processes:
        reasons = _of_process(process, init, lost=process.pid in lost, others=userns == "private" or capable)
        found += [_about(process, reason) for reason in reasons]
        found += [
            _about(process, reason, held) for held in process.descriptors if (reason := _of_descriptor(held, seen))
        ]
    found += _of_network(seen, net)
    return tuple(sorted(found, key=lambda one: REASONS[one.reason].passing))


def _about(process: Process, reason: str, held: Descriptor | None = None) -> Obstacle:
    where = f" (descriptor {held.number}, {plain(held.protocol or held.link)})" if held else ""
    return obstacle(reason, f"process {process.pid} ({plain(process.name)}) {REASONS[reason].what}{where}")


def plain(text: str) -> str:
    """Text that a job chose, on one line and without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])


def _of_process(process: Process, init: Process, *, lost: bool, others: bool) -> Iterator[str]:
    if process.tracer:
        yield "traced"
    if process.state in "ZX" and process.threads > 1:
        yield "leaderless"
    if process.namespaces and process.namespaces != init.namespaces:
        yield "namespace"
    if not others and process.users != {"0"}:
        yield "other-user"
    if process.shares:
        yield f"shared-{process.shares}"
    if process.apart:
        yield "thread-apart"
    if process.thread_timers:
        yield "thread-timer"
    if process.program.startswith("/memfd:"):
        yield "memfd-program"
    if process.directory == TOO_LONG:
        yield "long-path"
    if _PROCESS.fullmatch(process.directory):
        yield "process-directory"
    if lost:
        yield "session"


def _of_descriptor(held: Descriptor, seen: Seen) -> str | None:
    kind, _, name = held.link.partition(":")
    if kind == "anon_inode":
        lost = held.counter[0] > _COUNTER_MAX or held.counter[1]
        return "eventfd" if lost else "unread-events" if held.unread else _ANONYMOUS.get(name, "descriptor")
    if held.protocol:
        return _of_socket(held, seen)
    if held.link == TOO_LONG:
        return "long-path"
    return None if held.file is None else _of_file(held, held.file, seen)


def _of_socket(held: Descriptor, seen: Seen) -> str | None:
    if held.protocol.startswith("MPTCP"):
        return "mptcp"
    if held.protocol not in _PROTOCOLS:
        return "socket"
    if held.protocol.startswith("UNIX") and held.inode not in seen.unix:
        return "outside-socket"
    if held.tcp and held.tcp.state == _SYN_SENT:
        return "tcp-in-flight"
    return "unread-datagrams" if seen.unread.get(held.inode) else None


def _of_file(held: Descriptor, file: Statx, seen: Seen) -> str | None:
    if held.queue:
        return "message-queue"
    if held.link.startswith("/secretmem"):
        return "memfd-secret"
    if held.link.startswith("/memfd:"):
        return None
    if not file.links and file.blocks * 512 > GHOST_LIMIT:
        return "large-deleted-file"
    if held.attributes:
        return "deleted-attributes"
    if _PROCESS.fullmatch(held.link):
        return "process-directory"
    if stat.S_ISBLK(file.mode) or (stat.S_ISCHR(file.mode) and not _known(file.device)):
        return "device"
    return None if file.mount in seen.mounts else "outside-file"


def _known(device: tuple[int, int]) -> bool:
    minors = _DEVICES.get(device[0], frozenset())
    return minors is None or device[1] in minors


def _of_network(seen: Seen, net: Net) -> Iterator[Obstacle]:
    for group in sorted(seen.groups):
        if not group.startswith(_EVERY_HOST):
            yield obstacle("multicast", f"a socket of the job {REASONS['multicast'].what} {_written(group)}")
    for socket in seen.sockets:
        reason = _of_inet_socket(socket, net)
        holder = _holder(socket, seen) if reason else None
        if reason and holder:
            yield _about(holder[0], reason, holder[1])


def _written(address: bytes) -> str:
    if len(address) == 4:
        return ".".join(map(str, address))
    return ":".join(address[at : at + 2].hex() for at in range(0, 16, 2))


def _of_inet_socket(socket: InetSocket, net: Net) -> str | None:
    """Who isn't of the job loses its connections, and its datagrams in flight, at every pause anyway."""
    own = net == "none" or socket.remote.startswith(_LOOPBACK)
    if not socket.table.startswith("tcp"):
        own = own or socket.local.startswith(_LOOPBACK)
        return "unread-datagrams" if own and socket.unread and socket.inode else None
    own = own or socket.remote == socket.local
    if not own or socket.inode or socket.state == LISTEN:
        return None
    waiting = socket.state in (_ESTABLISHED, _SYN_RECEIVED, _CLOSE_WAIT)
    unsent = socket.state in (_FIN_WAIT1, _LAST_ACK, _CLOSING) and socket.unsent
    return "tcp-in-flight" if waiting or unsent else None


def _holder(socket: InetSocket, seen: Seen) -> tuple[Process, Descriptor] | None:
    """Who holds the socket, or else one that has to do with it: that listens for it, or is its peer."""
    holders = {held.inode: (process, held) for process in seen.processes for held in process.descriptors}
    if socket.inode:
        return holders.get(socket.inode)
    near = [other for other in seen.sockets if other.inode in holders and _near(other, socket)]
    return holders[near[0].inode] if near else None


def _near(other: InetSocket, socket: InetSocket) -> bool:
    if other.state == LISTEN:
        return other.local_port == socket.local_port
    return (other.local_port, other.remote_port) == (socket.remote_port, socket.local_port)
