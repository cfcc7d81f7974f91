"""Who may ask init for what, and the question that everybody may ask."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import initjob
import pytest
from initjob import PATH, InitJob, ending, fifo, output, run, settle, until

from engine import session
from engine.errors import NotFound
from engine.model import SessionSpec

pytestmark = pytest.mark.root


INSIDE = """
import errno, socket, struct, sys
head = struct.Struct("<BBHIIIQQ")
def talk(kind, payload=b""):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(20)
    sock.connect(sys.argv[1] + "/init.sock")
    assert sock.recv(1000)[0] == 1
    sock.send(head.pack(kind, 0, 0, 0, len(payload), 0, 0, 0) + payload)
    reply = sock.recv(1000)
    return reply[0], head.unpack_from(reply)[6]
"""


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A test that waits for what never comes fails by itself, and what it started is ended."""
    with initjob.time_limit(60):
        yield


@pytest.fixture
def job(sanitized: Path) -> Iterator[InitJob]:
    with initjob.started(sanitized / "serac-init") as started:
        yield started


def inside(job: InitJob, script: str, uid: int = 0) -> bytes:
    python = shutil.which("python3", path="/usr/bin:/bin")
    assert python
    spec = SessionSpec(argv=(python, "-c", INSIDE + script, os.fspath(job.io)), env=PATH, uid=uid, gid=uid)
    events = run(job, spec)
    assert ending(events) == (0, None), output(events, 2).decode()
    return output(events)


def test_others_inside_may_only_ask(job: InitJob) -> None:
    kinds = "print([talk(kind, b'arg=true\\0') for kind in (2, 4, 12, 13, 16, 17, 99)])"
    assert inside(job, kinds, uid=65534).strip() == repr([(19, errno.EPERM)] * 7).encode()
    assert b"(14," in inside(job, "print(talk(13))")


def test_nobody_inside_keeps_the_engine_out(job: InitJob) -> None:
    hoard = """
held = []
for number in range(1000):
    held.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    held[-1].connect(sys.argv[1] + "/init.sock")
"""
    held = hoard + "print('held', flush=True); open(sys.argv[1] + '/gate').read()"
    python = shutil.which("python3", path="/usr/bin:/bin")
    assert python
    fifo(job)
    with job.connect() as connection:
        connection.start(
            SessionSpec(argv=(python, "-c", INSIDE + held, os.fspath(job.io)), env=PATH, uid=65534), attach=True
        )
        job.io.chmod(0o777)
        until(connection.events(), b"held")
        with job.connect() as control:
            assert len(control.sessions()) == 1
        Path(fifo(job)).write_text("go\n")
        assert ending(list(connection.events())) == (0, None)


def ask(job: InitJob, sanitized: Path, *words: str) -> SessionSpec:
    """`serac-init ask` where it finds the socket, in the mount namespace that is the job's alone."""
    mounts = 'mountpoint -q /run/serac || { mount -t tmpfs run /run; mkdir /run/serac; mount --bind "$0" /run/serac; }'
    program = os.fspath(sanitized / "serac-init")
    return SessionSpec(
        argv=("/bin/sh", "-c", f'{mounts}; exec "$@"', os.fspath(job.io), program, "ask", *words), env=PATH
    )


def test_a_process_inside_asks_and_is_answered(job: InitJob, sanitized: Path) -> None:
    with job.connect() as asking, job.connect() as control:
        asking.start(ask(job, sanitized, "wait for review", '{"n": 1}'), attach=True)
        settle(lambda: session.question(job.io) is not None)
        question = session.question(job.io)
        assert question is not None
        assert (question.reason, question.state) == ("wait for review", '{"n": 1}')
        second = run(job, ask(job, sanitized, "me too"))
        assert ending(second) == (2, None)
        assert b"busy" in output(second, 2)
        control.quiesce()
    with job.connect() as control:
        control.answer("resumed", text="welcome back", state="{}")
        events = list(session.follow(job.io, 1))
        assert output(events) == b"outcome=resumed\ntext=welcome back\nstate={}\n"
        assert ending(events) == (0, None)
        assert session.question(job.io) is None
        with pytest.raises(NotFound):
            control.answer("refused")


def test_a_question_goes_with_who_asked(job: InitJob, sanitized: Path) -> None:
    with job.connect() as asking:
        status = asking.start(ask(job, sanitized, "never mind"), attach=True)
        settle(lambda: session.question(job.io) is not None)
        asking.signal(signal.SIGKILL)
        list(asking.events())
        settle(lambda: session.question(job.io) is None)
        assert session.statuses(job.io)[status.id].signal == signal.SIGKILL
