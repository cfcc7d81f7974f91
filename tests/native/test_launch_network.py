"""serac-launch network on real namespaces: a job's, and the rest of the world at the other end of a veth pair."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM

import launches
import pytest
from holds import LIMIT, holding
from initjob import settle
from launches import Record
from namespaces import Namespace

pytestmark = pytest.mark.root

CRIU_MARK = 0xC114
GUEST = "10.77.88.99"
JOB, WORLD = "192.0.2.1", "192.0.2.2"
JOB6, WORLD6 = "2001:db8::1", "2001:db8::2"
KEPT: list[Record] = [("lock", "1"), ("guest", GUEST), ("close", "1")]


@pytest.fixture
def job() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


@pytest.fixture
def world(job: Namespace) -> Iterator[Namespace]:
    """The namespace at the other end of ``job``'s eth0."""
    with Namespace() as made:
        peer = ["peer", "name", "eth0", "netns", str(made.pid)]
        job.ip("link", "add", "eth0", "type", "veth", *peer)
        for where, addresses in ((job, (JOB, JOB6)), (made, (WORLD, WORLD6))):
            where.ip("addr", "add", f"{addresses[0]}/24", "dev", "eth0")
            where.ip("addr", "add", f"{addresses[1]}/64", "dev", "eth0", "nodad")
            where.ip("link", "set", "eth0", "up")
        yield made


Pair = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def connected(
    near: Namespace, far: Namespace, address: str, *, kind: int | None = None, mark: int = 0
) -> Iterator[Pair]:
    """A TCP connection from ``near`` to ``address`` in ``far``; ``kind``: the family of the near end's socket."""
    family = AF_INET6 if ":" in address else AF_INET
    with far.new_socket(family, SOCK_STREAM) as server, near.new_socket(kind or family, SOCK_STREAM) as client:
        server.bind((address, 0))
        for each in (server, client):
            each.settimeout(LIMIT)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        server.listen()
        client.connect((f"::ffff:{address}" if kind == AF_INET6 != family else address, server.getsockname()[1]))
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            yield client, accepted


def unsent(end: socket.socket) -> int:
    """Bytes that the other end has not acknowledged."""
    return int(struct.unpack("i", fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)))[0])


def received(end: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (more := end.recv(count)):
        got += more
    return got


def nothing_came(end: socket.socket) -> bool:
    return select.select([end], [], [], 0)[0] == []


def addresses(where: Namespace) -> str:
    argv = ["nsenter", "-t", str(where.pid), "-n", "ip", "-o", "addr"]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def untouched(where: Namespace) -> bool:
    return where.nft("list", "ruleset") == "" and GUEST not in addresses(where)


def packets(where: Namespace) -> int:
    """The IPv4 packets that have come, be they dropped or not."""
    lines = Path(f"/proc/{where.pid}/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Ip: "))
    return int(values[names.index("InReceives")])


def test_what_is_done_and_said(job: Namespace, program: Path) -> None:
    job.ip("link", "set", "lo", "down")
    with holding(program, job, [*KEPT, ("up", "1")]) as held:
        assert held.report[-1] == ("ready", "1")
        took = dict(value.split(":") for key, value in held.report if key == "took")
        assert set(took) == {"network", "lock"}
        assert job.nft("list", "tables") == "table inet serac\n"
        with job.new_socket(AF_INET, SOCK_STREAM) as bound:
            bound.bind((GUEST, 0))
        assert held.end() == 0
    assert untouched(job)
    with connected(job, job, "127.0.0.1") as (one, other):
        one.sendall(b"up")
        assert received(other, 2) == b"up"


def test_without_words_nothing_is_locked(job: Namespace, program: Path) -> None:
    with holding(program, job, []) as held:
        assert untouched(job)
        assert held.end() == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_connections_within_stand_still_and_lose_nothing(job: Namespace, program: Path, address: str) -> None:
    text = bytes(range(256)) * 100
    with connected(job, job, address) as (one, other):
        with holding(program, job, KEPT) as held:
            one.sendall(text)
            assert unsent(one) == len(text)
            assert nothing_came(other)
            assert held.end() == 0
        assert received(other, len(text)) == text


@pytest.mark.parametrize(("family", "address"), [(AF_INET, "127.0.0.1"), (AF_INET6, "::1")])
def test_criu_alone_is_let_pass(job: Namespace, program: Path, family: int, address: str) -> None:
    with (
        job.new_socket(family, SOCK_DGRAM) as one,
        job.new_socket(family, SOCK_DGRAM) as other,
        contextlib.ExitStack() as stack,
    ):
        other.bind((address, 0))
        other.settimeout(LIMIT)
        held = stack.enter_context(holding(program, job, KEPT))
        for mark in (0, 1, CRIU_MARK + 1, CRIU_MARK << 8):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            with pytest.raises(PermissionError):
                one.sendto(b"lost", other.getsockname())
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, CRIU_MARK)
        one.sendto(b"criu", other.getsockname())
        assert other.recv(100) == b"criu"
        with connected(job, job, address, mark=CRIU_MARK) as (client, server):
            client.sendall(b"too")
            assert received(server, 3) == b"too"
        held.end()


def test_what_comes_from_outside_is_dropped(job: Namespace, world: Namespace, program: Path) -> None:
    with job.new_socket(AF_INET, SOCK_DGRAM) as inside, world.new_socket(AF_INET, SOCK_DGRAM) as outside:
        inside.bind((JOB, 0))
        inside.settimeout(LIMIT)
        outside.sendto(b"before", inside.getsockname())
        assert inside.recv(100) == b"before"
        with holding(program, job, KEPT) as held:
            came = packets(job)
            outside.sendto(b"meanwhile", inside.getsockname())
            settle(lambda: packets(job) > came)
            held.end()
        outside.sendto(b"after", inside.getsockname())
        assert inside.recv(100) == b"after"


def test_killed_it_leaves_no_lock(job: Namespace, program: Path) -> None:
    with holding(program, job, [("lock", "1")]) as held:
        held.process.kill()
        held.process.wait()
        assert untouched(job)


def test_end_of_file_gives_up(job: Namespace, world: Namespace, program: Path) -> None:
    with connected(job, world, WORLD) as (inside, outside):
        with holding(program, job, KEPT) as held:
            assert dict(held.finish()) == {"step": "network", "errno": f"{errno.ECANCELED}", "path": "hold"}
            assert held.process.returncode == 1
        assert untouched(job)
        inside.sendall(b"on")
        assert received(outside, 2) == b"on"


def test_one_lock_at_a_time(job: Namespace, program: Path) -> None:
    with holding(program, job, [("lock", "1")]) as first:
        with holding(program, job, KEPT) as second:
            assert second.failure == ("lock", errno.EPERM, "nf_tables")
            assert second.process.wait() == 1
        assert job.nft("list", "tables") == "table inet serac\n"
        first.end()
    assert untouched(job)


def test_guest_that_is_there_already(job: Namespace, program: Path) -> None:
    job.ip("addr", "add", "10.1.1.1/32", "dev", "lo")
    with holding(program, job, [*KEPT, ("guest", "10.1.1.1")]) as held:
        assert held.failure == ("network", errno.EEXIST, "10.1.1.1")
    assert untouched(job)
    assert "10.1.1.1" in addresses(job)


def test_kernel_without_nf_tables(job: Namespace, programs: dict[str, Path], tmp_path: Path) -> None:
    bare = launches.compile_c(tmp_path / "bare.so", [launches.PROBES / "launch_bare.c"], "-shared", "-fPIC")
    with holding(programs["dynamic"], job, KEPT, env={"LD_PRELOAD": os.fspath(bare)}) as held:
        assert held.failure == ("lock", errno.EPROTONOSUPPORT, "nf_tables")
    assert untouched(job)


@pytest.mark.parametrize(
    ("kind", "address"), [(AF_INET, WORLD), (AF_INET6, WORLD6), (AF_INET6, WORLD)], ids=["IPv4", "IPv6", "mapped"]
)
def test_connections_to_the_outside_end(
    job: Namespace, world: Namespace, program: Path, kind: int, address: str
) -> None:
    with connected(job, world, address, kind=kind) as (inside, outside):
        with holding(program, job, KEPT) as held:
            assert held.end() == 1
        with pytest.raises(ConnectionAbortedError):
            inside.recv(1)
        assert nothing_came(outside)  # no reset


def test_connections_from_the_outside_end(job: Namespace, world: Namespace, program: Path) -> None:
    with connected(world, job, JOB) as (_, inside), holding(program, job, KEPT) as held:
        assert held.end() == 1
        with pytest.raises(ConnectionAbortedError):
            inside.recv(1)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", JOB, JOB6])
def test_connections_within_stay(job: Namespace, world: Namespace, program: Path, address: str) -> None:
    assert world.pid
    with connected(job, job, address) as (one, other):
        with holding(program, job, KEPT) as held:
            assert held.end() == 0
        one.sendall(b"on")
        assert received(other, 2) == b"on"


def test_listening_sockets_stay(job: Namespace, world: Namespace, program: Path) -> None:
    with job.new_socket(AF_INET, SOCK_STREAM) as server:
        server.bind(("", 0))
        server.listen()
        server.settimeout(LIMIT)
        with holding(program, job, KEPT) as held:
            assert held.end() == 0
        with world.new_socket(AF_INET, SOCK_STREAM) as client:
            client.settimeout(LIMIT)
            client.connect((JOB, server.getsockname()[1]))
            server.accept()[0].close()


def test_connections_of_a_guest_end_with_it(job: Namespace, program: Path) -> None:
    job.ip("addr", "add", f"{GUEST}/32", "dev", "lo")
    with connected(job, job, GUEST) as (one, other):
        job.ip("addr", "del", f"{GUEST}/32", "dev", "lo")
        with holding(program, job, KEPT) as held:
            assert held.end() == 2
        for end in (one, other):
            with pytest.raises(ConnectionAbortedError):
                end.recv(1)


def test_connection_that_is_being_made_ends(job: Namespace, world: Namespace, program: Path) -> None:
    world.nft("add", "table", "inet", "silent")
    world.nft("add", "chain", "inet", "silent", "input", "{ type filter hook input priority 0; policy drop; }")
    with job.new_socket(AF_INET, SOCK_STREAM) as client:
        client.setblocking(False)
        assert client.connect_ex((WORLD, 9)) == errno.EINPROGRESS
        with holding(program, job, KEPT) as held:
            assert held.end() == 1
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED


def test_no_connection_of_many_is_left_out(job: Namespace, world: Namespace, program: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(world.new_socket(AF_INET, SOCK_STREAM))
        server.bind((WORLD, 0))
        server.listen(300)
        clients = [stack.enter_context(job.new_socket(AF_INET, SOCK_STREAM)) for _ in range(300)]
        for client in clients:
            client.connect(server.getsockname())
        held = stack.enter_context(holding(program, job, KEPT))
        assert held.end() == len(clients)
        assert {client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for client in clients} == {errno.ECONNABORTED}


def test_address_of_the_uplink(job: Namespace, world: Namespace, program: Path) -> None:
    job.ip("addr", "flush", "dev", "eth0")
    job.ip("link", "set", "eth0", "down")
    with holding(program, job, [*KEPT, ("address", "192.0.2.7/24"), ("gateway", WORLD)]) as held:
        held.end()
    with connected(job, world, WORLD) as (inside, _):
        assert inside.getsockname()[0] == "192.0.2.7"


@pytest.mark.parametrize(
    ("gateway", "failure"), [(None, (errno.ENODEV, "eth0")), ("203.0.113.1", (errno.ENETUNREACH, "gateway"))]
)
def test_uplink_that_cannot_be_set(
    job: Namespace, program: Path, gateway: str | None, failure: tuple[int, str]
) -> None:
    if gateway:
        job.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")
    job.ip("link", "set", "lo", "down")
    before = addresses(job)
    address = [("address", "192.0.2.7/24"), *([("gateway", gateway)] if gateway else [])]
    with holding(program, job, [*KEPT, *address, ("up", "1")]) as held:
        assert held.failure == ("network", *failure)
    assert untouched(job)
    assert addresses(job) == before


@pytest.mark.parametrize(
    ("records", "about"),
    [
        ([("lock", "0")], "lock"),
        ([("lock", "1"), ("lock", "1")], "lock"),
        ([("up", "")], "up"),
        ([("close", "yes")], "close"),
        ([("guest", "::1")], "guest"),
        ([("guest", "10.0.0.1/32")], "guest"),
        ([("guest", "10.0.0.1")] * 65, "guest"),
        ([("gateway", "10.0.0.1")], "gateway"),
        ([("address", "10.0.0.1")], "address"),
        ([("cgroup", "/x")], "cgroup"),
        ([("hold", "0")], "hold"),
    ],
)
def test_spec_that_is_refused(job: Namespace, program: Path, records: list[Record], about: str) -> None:
    with holding(program, job, records) as held:
        assert held.failure == ("spec", errno.EINVAL, about)


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([("net", "private")], (errno.EINVAL, "net")),
        ([("net", "host")], (errno.EINVAL, "net")),
        ([("net", "fd:77")], (errno.EBADF, "net")),
        ([("up", "1")], (errno.EINVAL, "net")),
        ([("net", "fd:0"), ("lock", "1")], (errno.EINVAL, "hold")),
        ([("net", "fd:0"), ("close", "1")], (errno.EINVAL, "hold")),
        ([("net", "fd:0"), ("guest", GUEST)], (errno.EINVAL, "hold")),
    ],
)
def test_spec_without_what_it_needs(program: Path, records: list[Record], why: tuple[int, str]) -> None:
    spec = launches.encode([("serac-launch", "1"), *records])
    done = subprocess.run([program, "network"], input=spec, capture_output=True, check=False, timeout=LIMIT)
    found = dict(launches.decode(done.stdout))
    assert (done.returncode, found["step"], int(found["errno"]), found["path"]) == (1, "spec", *why)
