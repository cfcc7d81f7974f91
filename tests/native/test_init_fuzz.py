"""Garbage to the sanitized init: it must stay alive, hold no more than before, and serve the next client."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import initjob
import pytest
from initjob import InitJob

from engine import session
from engine.errors import NotFound, WrongState
from engine.model import SessionSpec
from engine.session import Output
from engine.session.protocol import HEAD, Message, Type, encode_records

pytestmark = pytest.mark.root

PACKETS = 10_000
KEYS = [
    "arg",
    "env",
    "step",
    "script",
    "done",
    "cwd",
    "umask",
    "uid",
    "gid",
    "tty",
    "main",
    "id",
    "attach",
    "stdin",
    "keep",
]
KEYS += ["until", "reason", "state", "outcome", "text", "other", "", "ARG"]
VALUES = ["1", "0", "true", "cat", "/no", "24x80", "x", "", "A=b", "/tmp", "-1", "9" * 30, "077", "a" * 300]
SPECS = [
    [("arg", "true")],
    [("arg", "cat"), ("attach", "1"), ("stdin", "1")],
    [("arg", "cat"), ("attach", "1"), ("tty", "10x10")],
    [("step", "a"), ("script", "true"), ("step", "b"), ("script", "false"), ("tty", "1x1")],
    [("step", "a"), ("script", "echo hi"), ("done", "a"), ("attach", "1")],
    [("reason", "why"), ("state", "{}")],
    [("until", "1"), ("reason", "x")],
    [("outcome", "answered"), ("state", "1")],
]


def records(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return encode_records(rng.choice(SPECS))
    pairs = [(rng.choice(KEYS), rng.choice(VALUES)) for _ in range(rng.randrange(8))]
    # A job's own command would end the job with it.
    return encode_records([pair for pair in pairs if pair[0] != "main"])


def payload(rng: random.Random) -> bytes:
    return rng.choice([lambda: b"", lambda: records(rng), lambda: rng.randbytes(rng.randrange(200)),
                       lambda: bytes(rng.randrange(40_000))])()  # fmt: skip


def packet(rng: random.Random) -> bytes:
    kind = rng.choice([*Type, Type.START, Type.ATTACH, Type.INPUT, 0, 22, 255])
    offset = rng.choice([0, 1, 1 << 32 | 5, rng.getrandbits(64), session.LIVE, session.TAIL, rng.randrange(500)])
    stream = rng.choice([0, 1, 2, 9, 15, 255])
    message = Message(type=kind, stream=stream, session=rng.randrange(40), offset=offset, payload=payload(rng))
    raw = bytearray(message.encode())
    if rng.random() < 0.2:
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    if rng.random() < 0.1:
        raw = raw[: rng.randrange(len(raw))]
    return bytes(raw)


def assault(job: InitJob, rng: random.Random) -> None:
    """Send PACKETS packets over a handful of connections; one that init closed is replaced. The last packet
    closes the door on whoever comes next."""
    peers: list[socket.socket] = []
    sent = 0
    while sent < PACKETS:
        if len(peers) < 8:
            peers.append(job.raw())
        peer = rng.choice(peers)
        peer.settimeout(0.01 if rng.random() < 0.05 else 0)
        try:
            peer.send(packet(rng))
            sent += 1
            if rng.random() < 0.5:
                peer.recv(1 << 16)
        except (BlockingIOError, TimeoutError):
            continue
        except (BrokenPipeError, ConnectionResetError):
            peer.close()
        if rng.random() < 0.05:
            peer.close()
        peers = [each for each in peers if each.fileno() >= 0]
    for peer in peers:
        peer.close()
    with job.raw() as peer, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        peer.recv(1 << 16)
        peer.send(Message(type=Type.QUIESCE).encode())


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    with initjob.time_limit(300):
        yield


def end_all(job: InitJob, descriptors: int) -> None:
    """Until init has no more than so many. It may still be taking what closed connections had asked for: sessions come
    while others are killed, and the door closes."""

    def ended() -> bool:
        # A QUIESCE that comes to its turn turns away who waits at the door.
        with contextlib.suppress(WrongState), job.connect() as control:
            for status in control.sessions():
                with contextlib.suppress(NotFound):
                    control.signal(signal.SIGKILL, status.id)
        return not job.children() and job.descriptors() == descriptors

    initjob.settle(ended)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_init_withstands_garbage(sanitized: Path, seed: int) -> None:
    rng = random.Random(seed)
    with initjob.started(sanitized / "serac-init") as job:
        with job.connect():
            before = job.descriptors() - 1
        assault(job, rng)
        end_all(job, before)
        with job.connect() as control:
            control.start(SessionSpec(argv=("/bin/echo", "still here")), attach=True)
            said = [event.data for event in control.events() if isinstance(event, Output)]
        assert b"".join(said) == b"still here\n"
        initjob.settle(lambda: (job.descriptors(), job.children()) == (before, {}))


def test_init_withstands_mutated_logs(sanitized: Path, tmp_path: Path) -> None:
    """Whatever lies where a log should be, a session starts, and what it writes can be followed."""
    rng = random.Random(4)
    with initjob.started(sanitized / "serac-init", tmp_path) as job, job.connect() as control:
        control.start(SessionSpec(id=1, argv=("/usr/bin/seq", "60000")), attach=True)
        assert len(list(control.events())) > 1
    good = (tmp_path / "1.log").read_bytes()
    for _ in range(40):
        bad = bytearray(good[: rng.randrange(len(good))])
        for _ in range(rng.randrange(30)):
            if bad:
                bad[rng.choice([rng.randrange(len(bad)), rng.randrange(min(len(bad), 100))])] = rng.randrange(256)
        (tmp_path / "1.log").write_bytes(bad)
        with initjob.started(sanitized / "serac-init", tmp_path) as job, job.connect() as control:
            control.start(SessionSpec(id=1, argv=("/bin/echo", "again")), attach=True)
            events = list(control.events())
            assert [event.data for event in events if isinstance(event, Output)] == [b"again\n"]
            with job.connect() as again:
                assert again.sessions() == []


def test_half_packets_are_answered_and_the_connection_closed(sanitized: Path) -> None:
    start = Message(type=Type.START, payload=b"arg=true\0").encode()
    longer = HEAD.pack(Type.INPUT, 0, 0, 0, 32769, 0, 0, 0) + bytes(32769)
    with initjob.started(sanitized / "serac-init") as job:
        for raw in (start[:1], start[:31], start[:-1], start + b"x", longer, b"\x63" + bytes(31)):
            with job.raw() as sock:
                assert sock.recv(100)[0] == Type.HELLO
                sock.send(raw)
                assert sock.recv(100)[0] == Type.ERROR
                assert sock.recv(100) == b""
        assert os.path.exists(job.io / "init.sock")
        with job.connect() as control:
            assert control.sessions() == []
