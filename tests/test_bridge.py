"""Jobs and the network: what each kind of it gives a job, seen from inside, and what the host has of it, from outside.

The far ends are real servers on the host: a job reaches them by the address of its own gateway."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from plays import called
from roots import empty, inside, shell, until
from scenes import SCENES
from test_races import by_another, meanwhile

from engine import Engine, JobSpec
from engine.base import DirSource
from engine.errors import Damaged
from engine.network import IP_FORWARD, STATE

pytestmark = pytest.mark.root

SERVED = b"from the host\n"
NAME_SERVER = "10.77.53.53"
ANSWER = "192.0.2.99"


def test_a_job_reaches_the_host_by_its_gateway(engine: Engine) -> None:
    job = engine.run(JobSpec(base="small", name="a", net="bridge"))
    assert job.address is not None
    with serving(job.address.gateway) as (port, peers):
        assert inside(engine, "a", f"nc {job.address.gateway} {port} < /dev/null") == SERVED.decode()
    assert peers == [job.address.job]
    assert inside(engine, "a", "ip -4 -o addr show eth0").split()[3] == f"{job.address.job}/{job.address.prefix}"
    assert inside(engine, "a", "hostname -i").split() == [job.address.job]


def test_the_pair_of_a_job_that_is_gone_keeps_nothing_up(root_directory: Path, small_tree: Path) -> None:
    """The engine died when it had removed the job, and the kernel is slow to take the job's namespace apart."""
    with Engine(root_directory, timeout=30) as engine:
        engine.base_build("small", DirSource(path=small_tree))
        engine.run(JobSpec(base="small", name="a", net="bridge"))
    done = called(engine, SCENES["remove"], fault="remove.commit:after")
    assert done.returncode == -signal.SIGKILL
    slow = f"sr{engine.config.name[:6]}x"
    subprocess.run(["ip", "link", "add", slow, "type", "veth", "peer", f"{slow}y"], check=True)
    try:
        with Engine(root_directory, timeout=30) as after:
            empty(after)
        assert f"table inet serac_{engine.config.name}" not in leftovers.nft_tables()
        assert slow not in os.listdir("/sys/class/net")
        assert not STATE.exists()
    finally:
        subprocess.run(["ip", "link", "delete", slow], check=False, stderr=subprocess.DEVNULL)


def test_names_are_resolved_by_the_configured_server(root_directory: Path, small_tree: Path) -> None:
    (root_directory / "config.json").write_text(f'{{"dns": ["{NAME_SERVER}"], "archive": "never"}}')
    with Engine(root_directory, timeout=30) as engine, on_loopback(NAME_SERVER), naming(NAME_SERVER) as asked:
        try:
            engine.base_build("small", DirSource(path=small_tree))
            engine.run(JobSpec(base="small", name="a", net="bridge"))
            assert inside(engine, "a", "cat /etc/resolv.conf") == f"nameserver {NAME_SERVER}\n"
            assert ANSWER in inside(engine, "a", "nslookup -type=a build.example")
            assert b"\x05build\x07example\x00" in asked[0]
        finally:
            empty(engine)


def test_two_jobs_do_not_reach_each_other(engine: Engine) -> None:
    jobs = [engine.run(JobSpec(base="small", name=name, net="bridge")) for name in ("a", "b")]
    a, b = (job.address for job in jobs)
    assert a is not None
    assert b is not None
    assert a.job != b.job
    inside(engine, "b", "nc -l -p 7000 -e cat > /dev/null 2>&1 &")
    answer = f"echo hello | nc -w {{}} {b.job} 7000 || echo refused"
    assert inside(engine, "b", f"until netstat -lnt | grep -q :7000; do :; done; {answer.format(30)}") == "hello\n"
    inside(engine, "b", "nc -l -p 7000 -e cat > /dev/null 2>&1 &")
    assert inside(engine, "a", answer.format(1)) == "refused\n"


def test_a_fork_that_fails_takes_its_interface_away(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.run(JobSpec(base="small", name="a", net="bridge"))
    snapshot = engine.pause("a", mode="process").snapshot
    idle = leftovers.count()
    monkeypatch.setattr("engine.kernel.process.id_map", lambda _pid: ())
    with pytest.raises(Damaged):
        engine.fork(snapshot, name="b")
    assert leftovers.difference(idle, leftovers.settled(idle)) == []


def test_a_pause_gives_the_interface_back_and_a_resume_the_address(engine: Engine) -> None:
    idle, forward = leftovers.count(), IP_FORWARD.read_text()
    job = engine.run(JobSpec(base="small", name="a", net="bridge"))
    assert job.address is not None
    assert job.address.interface in interfaces()
    assert IP_FORWARD.read_text().strip() == "1"
    engine.pause("a", mode="filesystem")
    assert leftovers.difference(idle, leftovers.settled(idle)) == []
    assert (IP_FORWARD.read_text(), STATE.exists()) == (forward, False)
    other = engine.run(JobSpec(base="small", name="b", net="bridge"))
    engine.resume("a")
    assert engine.job("a").address == job.address
    assert other.address not in (None, job.address)
    with serving(job.address.gateway) as (port, peers):
        assert inside(engine, "a", f"nc {job.address.gateway} {port} < /dev/null") == SERVED.decode()
    assert peers == [job.address.job]


def test_a_fork_has_an_address_of_its_own(engine: Engine) -> None:
    job = engine.run(JobSpec(base="small", name="a", net="bridge"))
    snapshot = engine.pause("a", mode="filesystem").snapshot
    engine.fork(snapshot, name="b")
    address = engine.job("b").address
    assert address not in (None, job.address)
    assert inside(engine, "b", "hostname -i").split() == [address.job]


@pytest.mark.parametrize("keep", [True, False])
def test_a_connection_to_the_outside_is_kept_or_closed(engine: Engine, keep: bool) -> None:
    with connected(engine, "a") as outside:
        engine.pause("a", mode="process")
        engine.resume("a", keep_tcp=keep)
        if keep:
            outside.sendall(b"after\n")
        until(engine, "a", b"after\n" if keep else b"ended")
        outside.setblocking(False)
        with pytest.raises(BlockingIOError):  # nothing came, neither an end nor a reset
            outside.recv(1)


def test_a_forks_connections_from_the_old_address_are_closed(engine: Engine) -> None:
    with connected(engine, "a") as outside:
        snapshot = engine.pause("a", mode="process").snapshot
        engine.fork(snapshot, name="b", keep_tcp=True)
        until(engine, "b", b"ended")
        assert job_address(engine, "b") != job_address(engine, "a")
        assert inside(engine, "b", "hostname; hostname -i").split() == ["b", job_address(engine, "b")]
        assert job_address(engine, "a") not in inside(engine, "b", "ip -4 address")
        engine.resume("a", keep_tcp=True)
        outside.sendall(b"after\n")
        until(engine, "a", b"after\n")


def job_address(engine: Engine, name: str) -> str:
    address = engine.job(name).address
    assert address is not None
    return address.job


@contextlib.contextmanager
def connected(engine: Engine, name: str) -> Iterator[socket.socket]:
    """A job with a connection to a server on the host, which it prints what comes from, and ``ended`` at the end."""
    client = "mkfifo /hold; sleep 1000 > /hold & nc $(ip route | sed -n 's/default via //; s/ .*//; 1p') PORT < /hold"
    with socket.create_server(("0.0.0.0", 0)) as server:
        script = client.replace("PORT", str(server.getsockname()[1])) + "; echo ended; sleep 1000"
        engine.run(shell(script, name=name, net="bridge"))
        server.settimeout(30)
        outside, _ = server.accept()
        with outside:
            outside.sendall(b"before\n")
            until(engine, name, b"before\n")
            yield outside


def test_the_last_job_takes_all_of_it_away(engine: Engine) -> None:
    idle, forward = leftovers.count(), IP_FORWARD.read_text()
    for name in ("a", "b"):
        engine.run(JobSpec(base="small", name=name, net="bridge"))
    engine.remove("a", force=True)
    assert IP_FORWARD.read_text().strip() == "1"
    assert set(leftovers.count()["nft tables"]) > set(idle["nft tables"])
    engine.remove("b", force=True)
    assert leftovers.difference(idle, leftovers.settled(idle)) == []
    assert (IP_FORWARD.read_text(), STATE.exists()) == (forward, False)


def test_a_removal_leaves_the_next_job_with_that_address_its_network(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.run(JobSpec(base="small", name="a", net="bridge"))
    before = engine.job("a").address
    bridged = JobSpec(base="small", name="b", net="bridge")
    moment = meanwhile(
        monkeypatch, "engine.lifecycle.processes._disconnect", by_another(engine, lambda other: other.run(bridged))
    )
    engine.remove("a", force=True)
    assert moment.came
    assert before is not None
    assert engine.job("b").address == before
    assert before.interface in interfaces()
    with serving(before.gateway) as (port, _):
        assert inside(engine, "b", f"nc {before.gateway} {port} < /dev/null") == SERVED.decode()


def test_a_job_that_ends_by_itself_leaves_nothing(engine: Engine) -> None:
    idle = leftovers.count()
    engine.run(JobSpec(base="small", name="a", net="bridge", argv=("true",)))
    assert engine.wait("a", timeout=30).status == 0
    assert leftovers.difference(idle, leftovers.settled(idle)) == []


@pytest.mark.parametrize("userns", ["private", "host"])
def test_the_hosts_network_is_the_hosts(engine: Engine, userns: str) -> None:
    engine.run(JobSpec(base="small", name="a", net="host", userns=userns))  # type: ignore[arg-type]
    assert set(inside(engine, "a", "ls /sys/class/net; tail -n +3 /proc/net/dev | cut -d: -f1").split()) == interfaces()
    with serving("127.0.0.1") as (port, _):
        assert inside(engine, "a", f"nc 127.0.0.1 {port} < /dev/null") == SERVED.decode()


def test_no_network_is_loopback_alone_and_up(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    assert inside(engine, "a", "tail -n +3 /proc/net/dev | cut -d: -f1").split() == ["lo"]
    script = "nc -l -p 7000 -e echo up & until netstat -lnt | grep -q :7000; do :; done; nc 127.0.0.1 7000"
    assert inside(engine, "a", script) == "up\n"
    assert inside(engine, "a", "ip route; nc -w 1 192.0.2.1 80 < /dev/null 2>&1 || true").count("unreachable") == 1


def interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


@contextlib.contextmanager
def serving(address: str) -> Iterator[tuple[int, list[str]]]:
    """A TCP server that says the same to everyone; its port, and the addresses of those who came."""
    peers: list[str] = []
    with socket.create_server((address, 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # shut down
                while True:
                    connection, peer = server.accept()
                    with connection:
                        peers.append(peer[0])
                        connection.sendall(SERVED)

        with in_a_thread(serve, server):
            yield server.getsockname()[1], peers


@contextlib.contextmanager
def naming(address: str) -> Iterator[list[bytes]]:
    """A name server that knows one address for all names; the questions."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))

        def serve() -> None:
            while True:
                question, peer = server.recvfrom(512)
                if not peer:  # shut down
                    return
                asked.append(question)
                server.sendto(answer_to(question), peer)

        with in_a_thread(serve, server):
            yield asked


@contextlib.contextmanager
def in_a_thread(serve: object, server: socket.socket) -> Iterator[None]:
    thread = threading.Thread(target=serve)  # type: ignore[arg-type]
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # an unconnected datagram socket is shut down none the less
            server.shutdown(socket.SHUT_RDWR)
        thread.join()


def answer_to(question: bytes) -> bytes:
    """RFC 1035, 4.1: the header with one answer, the question again, the answer's name as a pointer to it."""
    end = question.index(b"\x00", 12) + 5
    header = question[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
    record = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(ANSWER)
    return header + question[12:end] + record


@contextlib.contextmanager
def on_loopback(address: str) -> Iterator[None]:
    """One address more of the host."""
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "address", "delete", f"{address}/32", "dev", "lo"], check=True)
