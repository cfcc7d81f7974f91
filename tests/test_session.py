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
from initjob import InitJob

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
from engine.model import SessionSpec, SessionStatus, Step
from engine.session import Event, Exit, Output, protocol
from engine.session.protocol import HEAD, LOG_HEAD, Message, Type

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
NAMES = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1, max_size=10)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    with initjob.time_limit(60):
        yield


@pytest.fixture
def job(sanitized: Path) -> Iterator[InitJob]:
    with initjob.started(sanitized / "serac-init") as started:
        yield started


def output(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Output))


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
        id=3, argv=("/bin/sh", "-c", "sleep 1000", "ö\udcff"), env={"A": "b=c", "E": ""}, workdir="/usr", tty=(10, 20), keep=True
    )  # fmt: skip
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
    assert list(session.follow(job.io, 0, offset=live[1].end)) == live[2:]


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
    with Impostor(tmp_path, [HELLO]), session.connect(tmp_path, timeout=0.05) as connection, pytest.raises(Timeout):
        connection.sessions()


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
        session.connect(tmp_path, timeout=5)


def test_an_endless_list_ends(tmp_path: Path) -> None:
    listed = Message(type=Type.LISTED, session=1, payload=b"running=1\0").encode()
    with Impostor(tmp_path, [HELLO, listed], repeat=True), session.connect(tmp_path, timeout=5) as connection:
        with pytest.raises(ProtocolError):
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
    with Impostor(tmp_path, packets), session.connect(tmp_path, timeout=5) as connection:
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
def test_errors_of_init_become_errors_of_ours(
    tmp_path: Path, number: int, what: str, error: type[SeracError]
) -> None:
    refusal = Message(type=Type.ERROR, offset=number, payload=what.encode()).encode()
    with Impostor(tmp_path, [HELLO, refusal]), session.connect(tmp_path, timeout=5) as connection:
        with pytest.raises(error):
            connection.start(SessionSpec(argv=("x",)))


# Files that the job's root may have written.


@pytest.mark.parametrize("name", ["1.spec", "1.status", "ask", "1.log", "1.log.old"])
@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        Path.mkdir,
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.write_bytes(b"\xff\xfe no records"),
        lambda path: os.truncate(path, 1 << 40) if path.touch() is None else None,
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, make: Callable[[Path], object]) -> None:
    make(tmp_path / name)
    with pytest.raises(ProtocolError):
        session.specs(tmp_path)
        session.statuses(tmp_path)
        session.question(tmp_path)
        list(session.read_log(tmp_path, 1))


def test_files_that_are_absent_are_no_error(tmp_path: Path) -> None:
    assert session.specs(tmp_path) == session.statuses(tmp_path / "gone") == {}
    assert session.question(tmp_path) is None
    assert list(session.read_log(tmp_path, 1)) == list(session.follow(tmp_path, 1)) == []


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    for name in ("01.status", "x.status", "1.status.new", "1000000000.status", "-1.status"):
        (tmp_path / name).write_bytes(b"nonsense")
    assert session.statuses(tmp_path) == {}


def test_status_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "0.status").write_bytes(b"pid=2\0started=1500000000\0running=1\0step=b\0done=a\0")
    (tmp_path / "7.status").write_bytes(b"started=1000000000\0signal=9\0ended=2000000000\0")
    assert session.statuses(tmp_path) == {
        0: SessionStatus(id=0, running=True, pid=2, started=1.5, step="b", done=("a",)),
        7: SessionStatus(id=7, running=False, signal=9, started=1.0, ended=2.0),
    }


def log(path: Path, base: int, messages: list[Message]) -> int:
    content = LOG_HEAD.pack(b"seraclog", 1, 1, base)
    for message in messages:
        content += Message(**{**{key: getattr(message, key) for key in message.__struct_fields__}, "offset": base}).encode()
        base += HEAD.size + len(message.payload)
    path.write_bytes(content)
    return base


def said(word: bytes) -> Message:
    return Message(type=Type.OUTPUT, session=1, stream=1, payload=word)


def test_log_goes_from_the_old_file_to_the_new(tmp_path: Path) -> None:
    middle = log(tmp_path / "1.log.old", 1000, [said(b"one"), said(b"two")])
    log(tmp_path / "1.log", middle, [said(b"three"), Message(type=Type.EXIT, session=1, payload=b"exit=0\0")])
    events = list(session.read_log(tmp_path, 1))
    assert output(events) == b"onetwothree"
    assert [event.offset for event in events] == [1000, 1035, middle, middle + 37]
    assert list(session.read_log(tmp_path, 1, offset=events[1].offset)) == events[1:]
    assert list(session.read_log(tmp_path, 1, offset=middle)) == events[2:]
    assert list(session.read_log(tmp_path, 1, offset=events[-1].end)) == []


def test_log_ends_before_a_message_that_is_cut(tmp_path: Path) -> None:
    end = log(tmp_path / "1.log", 0, [said(b"whole"), said(b"half")])
    for cut in range(1, 36):
        os.truncate(tmp_path / "1.log", LOG_HEAD.size + end - cut)
        assert output(list(session.read_log(tmp_path, 1))) == b"whole"


@pytest.mark.parametrize("at", [0, 8, 12, LOG_HEAD.size, LOG_HEAD.size + 2, LOG_HEAD.size + 4, LOG_HEAD.size + 16])
def test_a_log_that_is_none_is_refused(tmp_path: Path, at: int) -> None:
    log(tmp_path / "1.log", 0, [said(b"word")])
    content = bytearray((tmp_path / "1.log").read_bytes())
    content[at] ^= 0x55
    (tmp_path / "1.log").write_bytes(content)
    with pytest.raises(ProtocolError):
        list(session.read_log(tmp_path, 1))


def test_an_exit_without_room_in_the_log_is_known_from_the_status(tmp_path: Path) -> None:
    end = log(tmp_path / "1.log", 0, [said(b"word")])
    (tmp_path / "1.status").write_bytes(b"started=1\0exit=3\0ended=2000000000\0")
    assert list(session.follow(tmp_path, 1))[1:] == [Exit(session=1, exit=3, signal=None, offset=end, end=end, time=2.0)]


# The bytes.


@given(
    argv=st.lists(TEXT, min_size=1, max_size=4).map(tuple),
    env=st.dictionaries(NAMES, TEXT, max_size=4),
    number=st.none() | st.integers(0, 999),
    tty=st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    keep=st.booleans(),
    ids=st.tuples(st.integers(0, 70000), st.integers(0, 70000)),
)
def test_specs_survive_the_way_there_and_back(
    argv: tuple[str, ...], env: dict[str, str], number: int | None, tty: tuple[int, int] | None, keep: bool, ids: tuple[int, int]
) -> None:  # fmt: skip
    spec = SessionSpec(id=number or 0, argv=argv, env=env, tty=tty, keep=keep, uid=ids[0], gid=ids[1])
    assert protocol.decode_spec(protocol.encode_spec(spec), spec.id or 0) == spec


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
