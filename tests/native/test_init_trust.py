"""Who may ask init for what, and the question that everybody may ask."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import initjob
import pytest
from initjob import PATH, InitJob, ending, fifo, output, run, settle, until, wait_exit

from engine import session
from engine.errors import NotFound
from engine.model import SessionSpec
from engine.session.protocol import Message, Type

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
    with initjob.time_limit(300):
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


def command(job: InitJob, sanitized: Path, *words: str) -> SessionSpec:
    """`ask` or `awake` where it finds the socket, in the mount namespace that is the job's alone."""
    mounts = 'mountpoint -q /run/serac || { mount -t tmpfs run /run; mkdir /run/serac; mount --bind "$0" /run/serac; }'
    program = os.fspath(sanitized / "serac-init")
    return SessionSpec(argv=("/bin/sh", "-c", f'{mounts}; exec "$@"', os.fspath(job.io), program, *words), env=PATH)


def asked(job: InitJob) -> session.RawQuestion:
    settle(lambda: session.raw_question(job.io) is not None)
    request = session.raw_question(job.io)
    assert request is not None
    return request


def test_a_process_inside_asks_and_is_answered(job: InitJob, sanitized: Path) -> None:
    with job.connect() as asking, job.connect() as control:
        words = ("ask", "--reason", "wait for review", "--state", '{"n": 1}')
        asking.start(command(job, sanitized, *words), attach=True)
        request = asked(job)
        assert (request.reason, request.state, request.number) == ("wait for review", '{"n": 1}', 1)
        assert request.since is not None
        control.quiesce()
    with job.connect() as control:
        control.answer("resumed", text="welcome back", state="{}")
        events = list(session.follow(job.io, 1))
        assert output(events) == b"resumed {}\n"
        assert ending(events) == (0, None)
        assert session.raw_question(job.io) is None
        with pytest.raises(NotFound):
            control.answer("refused")


@pytest.mark.parametrize(("kind", "records"), [(15, "reason=x\\0"), (21, "until=0\\0")], ids=["ask", "awake"])
def test_what_was_asked_just_before_quiesce_is_taken(job: InitJob, kind: int, records: str) -> None:
    script = f"""
import pathlib
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1] + "/init.sock")
assert sock.recv(1000)[0] == 1
print("in", flush=True)
open({fifo(job)!r}).read()
sock.send(head.pack({kind}, 0, 0, 0, {len(records) - 1}, 0, 0, 0) + b"{records}")
pathlib.Path(sys.argv[1], "sent").touch()
print(sock.recv(1000)[0])
"""
    with job.connect() as asking, job.connect() as control:
        python = shutil.which("python3", path="/usr/bin:/bin")
        assert python
        spec = SessionSpec(argv=(python, "-c", INSIDE + script, os.fspath(job.io)), env=PATH)
        status = asking.start(spec, attach=True)
        until(asking.events(), b"in")
        job.signal(signal.SIGSTOP)
        control._send(Message(type=Type.QUIESCE))
        Path(fifo(job)).write_text("go\n")
        settle((job.io / "sent").exists)
        job.signal(signal.SIGCONT)
        control._answer(Type.OK)
    with job.connect() as control:
        if kind == 15:
            control.answer("resumed")
    assert output(wait_exit(job, status.id)) == b"in\n%d\n" % (16 if kind == 15 else 18)


def test_the_recipe_for_asking_asks_again_when_init_hangs_up(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "native/protocol.h").read_text()
    lines = text[text.index(" *   head, packet = ") : text.index(" *   # kind 16:")].splitlines()
    recipe = "\n".join(line.removeprefix(" *   ") for line in lines).replace("/run/serac", os.fspath(tmp_path))
    script = f"import contextlib, socket, struct\n{recipe}\nprint(kind, records[b'outcome'])"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(os.fspath(tmp_path / "init.sock"))
        door.listen()
        asker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        with asker:
            for packets in ([], [1], [1, 16]):
                peer, _ = door.accept()
                with peer:
                    for kind in packets:
                        peer.send(Message(type=kind, payload=b"outcome=resumed\0").encode())
                        peer.recv(1 << 16)  # of what is left unread it would hear
            assert asker.communicate(timeout=initjob.TIMEOUT)[0] == b"16 b'resumed'\n"


def test_a_question_goes_with_who_asked(job: InitJob, sanitized: Path) -> None:
    with job.connect() as asking:
        status = asking.start(command(job, sanitized, "ask", "--reason", "never mind"), attach=True)
        settle(lambda: session.raw_question(job.io) is not None)
        asking.signal(signal.SIGKILL)
        list(asking.events())
        settle(lambda: session.raw_question(job.io) is None)
        assert session.statuses(job.io)[status.id].signal == signal.SIGKILL


def test_questions_wait_for_their_turn(job: InitJob, sanitized: Path) -> None:
    """The second is open when the first is answered; an answer that is meant for another one is refused."""
    with job.connect() as control, job.connect() as watching:
        watching.watch()
        for number in (1, 2, 3):
            control.start(command(job, sanitized, "ask", "--reason", f"question {number}"))
            settle(lambda number=number: f"{number}.spec" in os.listdir(job.io))  # type: ignore[misc]
            if number == 1:
                assert watching.asked() == 1
        settle(lambda: len(control.sessions()) == 3)
        assert asked(job).reason == "question 1"
        with pytest.raises(NotFound):
            control.answer("answered", number=2)
        control.answer("answered", state="1", number=1)
        assert output(session.follow(job.io, 1)) == b"answered 1\n"
        assert watching.asked() == 2
        second = asked(job)
        control.answer("refused", state='"no"', number=second.number)
        assert asked(job).number == 3
        control.answer("answered")
        ends = sorted((output(events), ending(events)) for events in (list(session.follow(job.io, n)) for n in (2, 3)))
        assert ends == [(b"answered null\n", (0, None)), (b'refused "no"\n', (1, None))]
        assert session.raw_question(job.io) is None


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--state", "x" * 40000), 2, b"too long"),
        (("--state", "@/dev/zero"), 2, b"too long"),
        (("--state", "@/nowhere"), 2, b"No such file"),
        (("--timeout", "soon"), 2, b"usage"),
        (("--timeout", "0"), 3, b"timed out"),
        (("--what",), 2, b"usage"),
        (("more",), 2, b"usage"),
    ],
)
def test_what_cannot_be_asked(job: InitJob, sanitized: Path, words: tuple[str, ...], status: int, said: bytes) -> None:
    events = run(job, command(job, sanitized, "ask", *words))
    assert ending(events) == (status, None)
    assert said in output(events, 2)
    settle(lambda: session.raw_question(job.io) is None)


def test_who_is_started_again_finds_its_answers(job: InitJob, sanitized: Path) -> None:
    """Each once and in order, for the same reason only; a file that is no such thing is passed over."""
    blocks = [b"reason=one\0outcome=resumed\0state=1\0", b"reason=two\0outcome=forked\0state=2\0"]
    for content in (b"", b"reason=one", b"outcome=resumed\0reason=one\0", bytes(1000)):
        (job.io / "answers").write_bytes(content)
        assert ending(run(job, command(job, sanitized, "ask", "--reason", "one", "--timeout", "0"))) == (3, None)
    (job.io / "answers").write_bytes(b"".join((*blocks, blocks[0].replace(b"=1", b"=3"))))
    for reason, answer in (("two", b"forked 2\n"), ("one", b"resumed 1\n"), ("one", b"resumed 3\n")):
        assert output(run(job, command(job, sanitized, "ask", "--reason", reason))) == answer
    for reason in ("one", "two", "three", "on", "reason=one"):
        assert ending(run(job, command(job, sanitized, "ask", "--reason", reason, "--timeout", "0"))) == (3, None)


def lease(job: InitJob) -> dict[bytes, bytes]:
    try:
        content = (job.io / "awake").read_bytes()
    except FileNotFoundError:
        return {}
    return dict(part.split(b"=", 1) for part in content.split(b"\0") if part)


def test_a_lease_is_held_as_long_as_its_command_runs(job: InitJob, sanitized: Path) -> None:
    gate = fifo(job)
    words = ("awake", "--reason", "compiling", "--", "/bin/sh", "-c", f"read line <{gate}; exit 7")
    with job.connect() as control:
        control.start(command(job, sanitized, *words))
        settle(lambda: lease(job) == {b"until": b"0", b"reason": b"compiling"})
        control.quiesce()
    with job.connect() as control:
        assert len(control.sessions()) == 1
    assert lease(job) == {b"until": b"0", b"reason": b"compiling"}
    Path(gate).write_text("go\n")
    assert ending(list(session.follow(job.io, 1))) == (7, None)
    settle(lambda: not lease(job))


def test_the_longest_lease_counts(job: InitJob, sanitized: Path) -> None:
    """Without an end it is longer than any other; the files are written again for who comes after a pause."""
    with job.connect() as first, job.connect() as second:
        before = time.time_ns()
        first.start(command(job, sanitized, "awake", "--for", "1h", "--reason", "short"), attach=True)
        settle(lambda: lease(job).get(b"reason") == b"short")
        assert before + 3600 * 10**9 <= int(lease(job)[b"until"]) <= time.time_ns() + 3600 * 10**9
        second.start(command(job, sanitized, "awake", "--reason", "long"), attach=True)
        settle(lambda: lease(job).get(b"reason") == b"long")
        second.signal(signal.SIGKILL)
        settle(lambda: lease(job).get(b"reason") == b"short")
    with job.connect() as control:
        control.quiesce()
    (job.io / "awake").unlink()
    with job.connect() as control:
        settle(lambda: lease(job).get(b"reason") == b"short")
        control.signal(signal.SIGTERM, 1)
        settle(lambda: not lease(job))


def test_a_lease_over_nothing(job: InitJob, sanitized: Path) -> None:
    assert ending(run(job, command(job, sanitized, "awake", "--for", "0"))) == (0, None)
    assert ending(run(job, command(job, sanitized, "awake", "--", "/no/such/command"))) == (127, None)
    assert ending(run(job, command(job, sanitized, "awake", "--for", "-1"))) == (125, None)
    bad = "print([talk(21, payload) for payload in (b'', b'until=x\\0', b'until=-1\\0', b'more=1\\0until=1\\0')])"
    assert inside(job, bad, uid=65534).strip() == repr([(19, errno.EINVAL)] * 4).encode()
