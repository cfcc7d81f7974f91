"""The client of a job's init: against a real one where it behaves, against a made-up one where it doesn't."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import initjob
import pytest
from hypothesis import given
from hypothesis import strategies as st
from initjob import InitJob, output

from engine import session
from engine.errors import (
    BadPath,
    Busy,
    CommandNotExecutable,
    CommandNotFound,
    InvalidInput,
    LaunchFailed,
    NoSpace,
    NotFound,
    ProtocolError,
    SeracError,
    Timeout,
    WrongState,
)
from engine.model import SessionSpec, Step
from engine.session import protocol
from engine.session.protocol import HEAD, Message, Type

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
NAMES = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1, max_size=10)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    with initjob.time_limit(300):
        yield


@pytest.fixture
def job(sanitized: Path) -> Iterator[InitJob]:
    with initjob.started(sanitized / "serac-init") as started:
        yield started


# Against a real init.


@pytest.mark.root
@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (SessionSpec(argv=("/no/such/thing",)), CommandNotFound),
        (SessionSpec(argv=("no-such-thing",), env={"PATH": "/usr/bin"}), CommandNotFound),
        (SessionSpec(argv=("/etc/passwd",)), CommandNotExecutable),
        (SessionSpec(argv=("/etc",)), CommandNotExecutable),
        (SessionSpec(argv=("/bin/true",), workdir="/no/such/place"), BadPath),
        (SessionSpec(argv=("/bin/true",), workdir="/etc/passwd"), BadPath),
        (SessionSpec(argv=("/bin/true",), workdir="relative"), BadPath),
        (SessionSpec(), InvalidInput),
        (SessionSpec(argv=("/bin/true",), steps=(Step(name="a", script="b"),)), InvalidInput),
        (SessionSpec(steps=(Step(name="a", script="b"), Step(name="a", script="c"))), InvalidInput),
        (SessionSpec(argv=("/bin/true", "a\0b")), InvalidInput),
        (SessionSpec(argv=("/bin/true", "a" * (1 << 20))), InvalidInput),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(
    job: InitJob, spec: SessionSpec, error: type[SeracError]
) -> None:
    with job.connect() as connection:
        with pytest.raises(error):
            connection.start(spec)
        assert connection.sessions() == []
    assert session.specs(job.io) == {}
    assert session.statuses(job.io) == {}


@pytest.mark.root
def test_a_file_without_a_program_in_it_is_not_executable(job: InitJob) -> None:
    text = job.io / "text"
    text.write_text("echo no shebang\n")
    text.chmod(0o755)
    with job.connect() as connection, pytest.raises(CommandNotExecutable):
        connection.start(SessionSpec(argv=(os.fspath(text),)))


@pytest.mark.root
def test_a_spec_of_a_mebibyte_fits(job: InitJob) -> None:
    words = tuple("x" * 1000 for _ in range(1000))
    with job.connect() as connection:
        connection.start(SessionSpec(argv=("/bin/sh", "-c", "echo $#", "sh", *words)), attach=True)
        assert output(list(connection.events())) == b"1000\n"
        assert session.specs(job.io)[1].argv[4:] == words


@pytest.mark.root
def test_init_keeps_the_spec_and_the_status_as_the_engine_knows_them(job: InitJob) -> None:
    spec = SessionSpec(
        id=3,
        argv=("/bin/sh", "-c", "sleep 1000", "ö\udcff"),
        env={"A": "b=c", "E": ""},
        workdir="/usr",
        tty=(10, 20),
        keep=True,
    )
    with job.connect() as connection:
        status = connection.start(spec)
        assert (status.id, status.running) == (3, True)
        assert session.specs(job.io) == {3: spec}
        assert session.statuses(job.io)[3].pid == status.pid
        assert connection.sessions() == [session.statuses(job.io)[3]]


@pytest.mark.root
def test_follow_shows_everything_once_whenever_it_comes(job: InitJob) -> None:
    script = "for i in 1 2 3; do echo $i; sleep 0.05; done; echo end"
    with job.connect() as connection:
        connection.start(SessionSpec(argv=("/bin/sh", "-c", script), id=0))
    live = list(session.follow(job.io, 0))
    assert job.wait() == 0
    after = list(session.follow(job.io, 0))
    assert live == after == list(session.read_log(job.io, 0))
    assert output(live) == b"1\n2\n3\nend\n"
    assert list(session.follow(job.io, 0, offset=live[0].end)) == live[1:]


@pytest.mark.root
def test_follow_goes_on_from_disk_when_init_is_killed(job: InitJob) -> None:
    with job.connect() as connection:
        connection.start(SessionSpec(argv=("/bin/sh", "-c", "echo before; sleep 1000")))
    events = session.follow(job.io, 1)
    first = next(events)
    job.signal(9)
    assert list(events) == []
    assert output([first]) == b"before\n"
    assert output(list(session.follow(job.io, 1))) == b"before\n"


@pytest.mark.root
def test_follow_of_what_never_was_is_empty(job: InitJob) -> None:
    assert list(session.follow(job.io, 77)) == []
    with job.connect() as connection, pytest.raises(NotFound):
        connection.attach(77)


@pytest.mark.root
def test_a_connection_knows_whether_it_has_a_terminal(job: InitJob) -> None:
    with job.connect() as one, job.connect() as two:
        one.start(SessionSpec(argv=("/bin/sleep", "1000"), tty=(24, 80)))
        two.attach(1)
        assert (two.session, two.tty) == (1, True)


# Without one.


def test_no_init_is_a_state_of_the_job(tmp_path: Path) -> None:
    with pytest.raises(WrongState):
        session.connect(tmp_path, timeout=1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(os.fspath(tmp_path / "init.sock"))
    with pytest.raises(WrongState):
        session.connect(tmp_path, timeout=1)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/run/dbus/socket"), os.mkfifo, Path.touch, Path.mkdir])
def test_what_is_no_socket_is_not_followed(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "init.sock")
    with pytest.raises(ProtocolError):
        session.connect(tmp_path, timeout=1)


HELLO = Message(type=Type.HELLO, session=1, payload=b"build=x\0").encode()


class Impostor:
    """A process of the job in init's place: sends these packets to whoever connects, then nothing."""

    def __init__(self, io: Path, packets: list[bytes], *, repeat: bool = False) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(os.fspath(io / "init.sock"))
        self._listener.listen()
        self._packets = packets
        self._repeat = repeat
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        with peer:
            try:
                for packet in self._packets:
                    peer.send(packet)
                while self._repeat:
                    peer.send(self._packets[-1])
            except (BrokenPipeError, ConnectionResetError):
                return
            self._done.wait()

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._listener.close()


def test_an_init_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with Impostor(tmp_path, []), pytest.raises(Timeout):
        session.connect(tmp_path, timeout=0.05)


def test_an_init_that_answers_nothing_is_given_up(tmp_path: Path) -> None:
    with Impostor(tmp_path, [HELLO]), session.reach(tmp_path, timeout=30) as connection:
        connection.greet()
        connection._timeout = 0.05
        with pytest.raises(Timeout):
            connection.sessions()


def test_input_is_not_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(tmp_path / "init.sock"))
        listener.listen()
        with session.reach(tmp_path, timeout=0.05) as connection:
            sent: list[int] = []
            sender = threading.Thread(target=lambda: sent.append(connection.send(bytes(8 << 20))))
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(30)
                sender.start()
                sender.join(0.5)
                left = 8 << 20
                while left > 0 and (packet := peer.recv(HEAD.size + (32 << 10))):
                    left -= len(packet) - HEAD.size
            sender.join()
        assert (left, sent) == (0, [8 << 20])


@pytest.mark.parametrize(
    "greeting",
    [
        b"x",
        HELLO[:-1],
        HELLO + b"x",
        Message(type=Type.HELLO, session=2).encode(),
        Message(type=Type.OK).encode(),
        HEAD.pack(1, 0, 1, 1, 0, 0, 0, 0),
        Message(type=Type.ERROR, offset=1 << 60, payload=b"\xff" * 1000).encode(),
        HELLO + bytes(60_000),
    ],
)
def test_a_bad_greeting_is_refused(tmp_path: Path, greeting: bytes) -> None:
    with Impostor(tmp_path, [greeting]), pytest.raises(ProtocolError):
        session.connect(tmp_path, timeout=30)


def test_an_endless_list_ends(tmp_path: Path) -> None:
    listed = Message(type=Type.LISTED, session=1, payload=b"running=1\0").encode()
    init = Impostor(tmp_path, [HELLO, listed], repeat=True)
    with init, session.connect(tmp_path, timeout=30) as connection, pytest.raises(ProtocolError):
        connection.sessions()


@pytest.mark.parametrize(
    "message",
    [
        Message(type=Type.OUTPUT, session=2, stream=1),
        Message(type=Type.OUTPUT, session=1, stream=7),
        Message(type=Type.STEP, session=1, stream=3),
        Message(type=Type.EXIT, session=1),
        Message(type=Type.EXIT, session=1, payload=b"exit=900\0"),
        Message(type=Type.EXIT, session=1, payload=b"exit=1\0signal=1\0"),
        Message(type=Type.EXIT, session=1, payload=b"exit=1"),
        Message(type=99, session=1),
    ],
)
def test_output_that_is_none_is_refused(tmp_path: Path, message: Message) -> None:
    attached = Message(type=Type.ATTACHED, session=1, payload=b"running=1\0").encode()
    packets = [HELLO, attached, message.encode()]
    with Impostor(tmp_path, packets), session.connect(tmp_path, timeout=30) as connection:
        connection.attach(1)
        with pytest.raises(ProtocolError):
            next(connection.events())


@pytest.mark.parametrize(
    ("number", "what", "error"),
    [
        (errno.EAGAIN, "sessions", Busy),
        (errno.EAGAIN, "fork", Busy),
        (errno.EEXIST, "id", WrongState),
        (errno.ESHUTDOWN, "job", WrongState),
        (errno.ENOSPC, "files", NoSpace),
        (errno.EPERM, "user", LaunchFailed),
        (errno.EINVAL, "spec", InvalidInput),
        (errno.ENOENT, "exec", CommandNotFound),
        (errno.ENOEXEC, "exec", CommandNotExecutable),
        (9999, "exec", CommandNotExecutable),
        (9999, "fork", ProtocolError),
    ],
)
def test_errors_of_init_become_errors_of_ours(tmp_path: Path, number: int, what: str, error: type[SeracError]) -> None:
    refusal = Message(type=Type.ERROR, offset=number, payload=what.encode()).encode()
    init = Impostor(tmp_path, [HELLO, refusal])
    with init, session.connect(tmp_path, timeout=30) as connection, pytest.raises(error):
        connection.start(SessionSpec(argv=("x",)))


@pytest.mark.parametrize(
    "ask",
    [
        session.Connection.sessions,
        session.Connection.watch,
        session.Connection.quiesce,
        lambda connection: connection.attach(1),
        lambda connection: connection.signal(9, 1),
        lambda connection: connection.answer("resumed"),
    ],
    ids=["sessions", "watch", "quiesce", "attach", "signal", "answer"],
)
def test_whatever_init_refuses_is_an_error_of_ours(tmp_path: Path, ask: Callable[[session.Connection], object]) -> None:
    refusal = Message(type=Type.ERROR, offset=errno.EACCES, payload=b"no").encode()
    init = Impostor(tmp_path, [HELLO, refusal])
    with init, session.connect(tmp_path, timeout=30) as connection, pytest.raises(SeracError):
        ask(connection)


# The bytes.


@given(
    argv=st.lists(TEXT, min_size=1, max_size=4).map(tuple),
    env=st.dictionaries(NAMES, TEXT, max_size=4),
    number=st.integers(0, 999),
    tty=st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    keep=st.booleans(),
    ids=st.tuples(st.integers(0, 70000), st.integers(0, 70000)),
)
def test_specs_survive_the_way_there_and_back(
    argv: tuple[str, ...],
    env: dict[str, str],
    number: int,
    tty: tuple[int, int] | None,
    keep: bool,
    ids: tuple[int, int],
) -> None:
    spec = SessionSpec(id=number, argv=argv, env=env, tty=tty, keep=keep, uid=ids[0], gid=ids[1])
    assert protocol.decode_spec(protocol.encode_spec(spec), number) == spec


@given(st.lists(st.tuples(NAMES, TEXT), max_size=5), st.lists(TEXT, max_size=3))
def test_steps_survive_the_way_there_and_back(steps: list[tuple[str, str]], done: list[str]) -> None:
    spec = SessionSpec(id=1, steps=tuple(Step(name=a, script=b) for a, b in steps), done=tuple(done))
    assert protocol.decode_spec(protocol.encode_spec(spec), 1) == spec


@given(st.binary(max_size=400))
def test_garbage_is_a_message_or_a_protocol_error(packet: bytes) -> None:
    for decode in (
        Message.decode,
        lambda each: protocol.event(Message.decode(each)),
        lambda each: protocol.decode_spec(each, 1),
        lambda each: protocol.decode_status(each, 1),
    ):
        try:
            decode(packet)
        except ProtocolError:
            continue
