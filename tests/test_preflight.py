"""The preflight names what can't be carried, with the process that holds it, and refuses nothing else."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from kinds import Stood, armed, connected, kinds, standing

from engine import Engine
from engine.checkpoint import REASONS, judge
from engine.checkpoint.obstacles import PREFLIGHT
from engine.checkpoint.seen import Descriptor, Process, Seen
from engine.checkpoint.trees import Member, without_leader
from engine.errors import CannotCheckpoint
from engine.kernel.procfs import InetSocket
from engine.kernel.sockstat import LISTEN, TcpState
from engine.model import DENIALS, JobState, Net

__all__ = ["armed"]

SEEN = {
    "deleted-attributes": "deleted-attributes",
    "deleted-large": "large-deleted-file",
    "eventfd-large": "eventfd",
    "eventfd-semaphore": "eventfd",
    "inotify-unread": "unread-events",
    "io-uring": "io-uring",
    "landlock-ruleset": "landlock",
    "leaderless": "leaderless",
    "long-path": "long-path",
    "memfd-program": "memfd-program",
    "memfd-secret": "memfd-secret",
    "message-queue": "message-queue",
    "mptcp": "mptcp",
    "nested-network": "namespace",
    "nested-pid": "namespace",
    "nested-user": "namespace",
    "netlink-unread": "unread-datagrams",
    "packet-unread": "unread-datagrams",
    "perf-event": "perf-event",
    "process-directory": "process-directory",
    "raw-unread": "unread-datagrams",
    "seccomp-listener": "seccomp-listener",
    "session-adopted": "session",
    "session-lost": "session",
    "shared-directories": "shared-directories",
    "shared-memory": "shared-memory",
    "tcp-connecting": "tcp-in-flight",
    "tcp-unaccepted": "tcp-in-flight",
    "tcp-unsent": "tcp-in-flight",
    "thread-directories": "thread-apart",
    "thread-files": "thread-apart",
    "thread-timer": "thread-timer",
    "traced": "traced",
    "udp-unread": "unread-datagrams",
    "userfaultfd": "userfaultfd",
    "vforked": "shared-memory",
    "xdp": "socket",
}
"""kind -> the reason that the preflight gives"""

OF_THE_JOB = {"multicast": "multicast", "multicast6": "multicast"}
"""kind -> reason, of those that no process can be named for"""

ON_THE_HOST = {"device": "device", "other-user": "other-user"}
"""kind -> reason, in a job without a user namespace"""

TOLD = {
    "epoll-elsewhere": ("epoll", ()),
    "inotify-unlinked": ("watch", ()),
    "io-uring-mapped": ("io-uring", ("io_uring",)),
    "memfd-secret-mapped": ("memfd-secret", ("memfd_secret",)),
    "terminal-held": ("terminal", ()),
    "udp-corked": ("unread-datagrams", ()),
    "unix-credentials": ("unix-in-flight", ()),
    "unix-unaccepted": ("unix-in-flight", ()),
}
"""kind -> the reason that criu's log gives"""

VISITED = {"unix-outside": "outside-socket", "unix-client": "outside-socket", "lent-file": "outside-file"}
"""kind -> reason, of those that have to do with somebody outside"""


def test_every_kind_is_tested() -> None:
    tested = [*SEEN, *OF_THE_JOB, *ON_THE_HOST, *TOLD, *VISITED]
    assert sorted(tested) == sorted(kinds("unsupported"))
    assert len(kinds("harmless")) >= 40


@pytest.mark.root
def test_each_is_named_with_its_process(armed: Engine) -> None:
    with standing(armed, None, allow=DENIALS) as stood:
        kind_of = {stood.start("unsupported", kind): kind for kind in SEEN}
        named: dict[str, set[str]] = {}
        for obstacle in judge(stood.seen(), userns="private", net="none", capable=False):
            match = re.match(r"process (\d+) \(", obstacle.detail)
            assert match, obstacle
            named.setdefault(kind_of.get(int(match[1]), obstacle.detail), set()).add(obstacle.reason)
        # The first process of the nested pid namespace is in one as well.
        named = {kind: reasons for kind, reasons in named.items() if not kind.endswith(REASONS["namespace"].what)}
        assert named == {kind: {reason} for kind, reason in SEEN.items()}


@pytest.mark.root
@pytest.mark.parametrize("kind", OF_THE_JOB)
def test_named_without_a_process(armed: Engine, kind: str) -> None:
    with standing(armed, kind) as stood:
        found = judge(stood.seen(), userns="private", net="none", capable=False)
        assert [obstacle.reason for obstacle in found] == [OF_THE_JOB[kind]]


@pytest.mark.root
@pytest.mark.parametrize("kind", ON_THE_HOST)
def test_named_in_the_hosts_user_namespace(armed: Engine, kind: str) -> None:
    with standing(armed, kind, userns="host", allow=("devices",)) as stood:
        found = judge(stood.seen(), userns="host", net="none", capable=False)
        assert [obstacle.reason for obstacle in found] == [ON_THE_HOST[kind]]
        assert f"process {stood.pid} (" in found[0].detail


@pytest.mark.root
def test_another_user_with_the_capability(armed: Engine) -> None:
    with standing(armed, "other-user", userns="host") as stood:
        assert judge(stood.seen(), userns="host", net="none", capable=True) == ()


@pytest.mark.root
@pytest.mark.parametrize("kind", TOLD)
def test_told_by_criu_and_the_job_runs_on(armed: Engine, kind: str) -> None:
    reason, allow = TOLD[kind]
    with standing(armed, kind, allow=allow) as stood:
        assert judge(stood.seen(), userns="private", net="none", capable=False) == ()
        refused(stood, reason)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["traced", "session-lost", "tcp-unaccepted"])
def test_a_pause_refuses_and_the_job_runs_on(armed: Engine, kind: str) -> None:
    with standing(armed, kind) as stood:
        refused(stood, SEEN[kind])


def refused(stood: Stood, reason: str) -> None:
    before = set(stood.pids())
    with pytest.raises(CannotCheckpoint) as failure:
        stood.engine.pause(stood.job, mode="process")
    assert failure.value.reason == reason
    assert stood.engine.job(stood.job).state is JobState.RUNNING
    assert set(stood.pids()) == before


@pytest.mark.root
def test_a_client_from_outside(armed: Engine) -> None:
    with contextlib.ExitStack() as stack:

        def visit(stood: Stood) -> None:
            connected(stood, stack)

        stood = stack.enter_context(standing(armed, "unix-outside", visit=visit))
        found = judge(stood.seen(), userns="private", net="none", capable=False)
        assert [obstacle.reason for obstacle in found] == ["outside-socket"]
        assert f"process {stood.pid} (" in found[0].detail


@pytest.mark.root
def test_a_server_outside(armed: Engine) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server, contextlib.ExitStack() as stack:

        def serve(stood: Stood) -> None:
            place = armed.config.root / "jobs" / stood.job / "io" / "outside"
            server.bind(str(place))
            place.chmod(0o666)
            server.listen()

        stood = stack.enter_context(standing(armed, None, visit=serve))
        stood.pid = stood.start("unsupported", "unix-client")
        stack.enter_context(server.accept()[0])
        assert judge(stood.seen(), userns="private", net="none", capable=False) == ()
        refused(stood, "outside-socket")


@pytest.mark.root
def test_a_file_from_outside(armed: Engine, tmp_path: Path) -> None:
    (tmp_path / "lent").write_text("the host's")

    def lend(stood: Stood) -> None:
        with contextlib.ExitStack() as stack, (tmp_path / "lent").open() as file:
            socket.send_fds(connected(stood, stack), [b"x"], [file.fileno()])

    with standing(armed, "lent-file", visit=lend) as stood:
        found = judge(stood.seen(), userns="private", net="none", capable=False)
        assert [obstacle.reason for obstacle in found] == ["outside-file"]
        assert f"process {stood.pid} (" in found[0].detail


@pytest.mark.root
def test_nothing_else_is_refused(armed: Engine) -> None:
    with standing(armed, None) as stood:
        for kind in kinds("harmless"):
            stood.start("harmless", kind)
        seen = stood.seen()
        assert len(seen.processes) > len(kinds("harmless"))
        assert judge(seen, userns="private", net="none", capable=False) == ()
        stood.engine.pause(stood.job, mode="process")
        stood.engine.resume(stood.job)
        assert len(stood.seen().processes) == len(seen.processes)
        stood.engine._root.await_removals()


INIT = Process(
    pid=1,
    name="init",
    parent=0,
    session=1,
    state="S",
    threads=1,
    tracer=0,
    users=frozenset("0"),
    program="/.serac/init",
    directory="/",
    namespaces=("net:[1]",),
    shares=None,
    apart=False,
    thread_timers=False,
    descriptors=(),
)


def verdict(*held: Descriptor, net: Net = "none", allow: tuple[str, ...] = (), **seen: Any) -> list[str]:
    what = Seen(processes=(INIT._replace(descriptors=held),), mounts=frozenset({7}), **seen)
    return [obstacle.reason for obstacle in judge(what, userns="private", net=net, capable=False, allow=allow)]


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("anon_inode:bpf-map", "bpf"),
        ("anon_inode:bpf-prog", "bpf"),
        ("anon_inode:[userfaultfd]", "userfaultfd"),
        ("anon_inode:kvm-vm", "descriptor"),
        ("anon_inode:[of-next-year]", "descriptor"),
    ],
)
def test_what_no_job_here_can_hold(link: str, reason: str) -> None:
    assert verdict(Descriptor(3, link)) == [reason]


@pytest.mark.parametrize("group", ["landlock", "keyring"])
def test_what_is_allowed_and_can_not_be_seen(group: str) -> None:
    assert verdict(allow=(group,)) == [group]
    assert verdict(allow=("perf",)) == []


def test_the_hosts_network() -> None:
    assert verdict(net="host") == ["host-network"]
    assert verdict(net="bridge") == []


def test_what_comes_from_outside_is_not_waited_for() -> None:
    inside, outside = b"\x0a\0\0\x02", b"\x0a\0\0\x09"
    listener = Descriptor(3, "socket:[50]", protocol="TCP", tcp=TcpState(LISTEN, 1))
    listens = InetSocket("tcp", inside, 80, bytes(4), 0, LISTEN, 0, 1, 50)
    waits = InetSocket("tcp", inside, 80, outside, 999, 1, 0, 0, 0)
    assert verdict(listener, net="bridge", sockets=(listens, waits)) == []
    assert verdict(listener, net="bridge", sockets=(listens, waits._replace(remote=inside))) == ["tcp-in-flight"]
    datagram = Descriptor(4, "socket:[51]", protocol="UDP")
    unread = InetSocket("udp", bytes(4), 53, bytes(4), 0, 7, 0, 8, 51)
    assert verdict(datagram, net="bridge", sockets=(unread,)) == []
    assert verdict(datagram, net="none", sockets=(unread,)) == ["unread-datagrams"]
    assert verdict(datagram, net="bridge", sockets=(unread._replace(local=b"\x7f\0\0\x01"),)) == ["unread-datagrams"]


def test_groups_that_the_kernel_joins() -> None:
    own = {"ff020000000000000000000000000001", "ff010000000000000000000000000001", "ff0200000000000000000001ff1b2c3d"}
    assert verdict(groups=frozenset({bytes((224, 0, 0, 1)), *map(bytes.fromhex, own)})) == []


def test_what_will_not_pass_comes_first() -> None:
    found = verdict(Descriptor(3, "anon_inode:inotify", unread=16), Descriptor(4, "anon_inode:[perf_event]"))
    assert found == ["perf-event", "unread-events"]


def test_a_name_that_obeys_no_terminal() -> None:
    hostile = INIT._replace(name="\x1b[2J\n\udcff", tracer=1)
    (found,) = judge(Seen(processes=(hostile,), mounts=frozenset()), userns="private", net="none", capable=False)
    assert found.detail == "process 1 (?[2J??) is being traced"


TREES: dict[str, tuple[list[Member], set[int]]] = {
    "leader and its child": ([Member(2, 1, 2), Member(3, 2, 2)], set()),
    "orphans of init": ([Member(3, 1, 2), Member(4, 1, 2), Member(5, 4, 2)], set()),
    "born before its parent's session": ([Member(2, 1, 2), Member(3, 2, 3), Member(4, 3, 2)], set()),
    "the same, without the leader": ([Member(3, 1, 3), Member(4, 3, 2)], {4}),
    "an orphan that init didn't adopt": ([Member(2, 1, 2), Member(4, 2, 3)], {4}),
    "its parent is an orphan of the same session": ([Member(3, 1, 2), Member(4, 3, 4), Member(5, 4, 2)], set()),
    "two sessions at once": (
        [Member(2, 1, 2), Member(3, 2, 3), Member(4, 3, 4), Member(5, 4, 2), Member(6, 4, 3)],
        {6},
    ),
    "a leader outside": ([Member(2, 1, 0)], {2}),
}


@pytest.mark.parametrize("name", TREES)
def test_sessions_that_can_be_made_again(name: str) -> None:
    members, lost = TREES[name]
    assert without_leader([Member(1, 0, 1), *members]) == lost


def test_reasons_are_all_given() -> None:
    given = {*SEEN.values(), *OF_THE_JOB.values(), *ON_THE_HOST.values(), *VISITED.values()}
    assert given | {"bpf", "descriptor", "keyring", "host-network"} == set(PREFLIGHT)
