"""What the client reads from init's directory, which the job's root may have written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from initjob import output

from engine import session
from engine.errors import (
    ProtocolError,
)
from engine.model import SessionStatus
from engine.session import Exit
from engine.session.protocol import HEAD, LOG_HEAD, Message, Type

BAD = [
    os.mkfifo,
    Path.mkdir,
    lambda path: path.symlink_to("/etc/passwd"),
    lambda path: path.write_bytes(b"\xff\xfe no records"),
    lambda path: os.truncate(path, 1 << 40) if path.touch() is None else None,
]


@pytest.mark.parametrize("name", ["1.spec", "1.status", "ask", "1.log", "1.log.old"])
@pytest.mark.parametrize("make", BAD)
def test_bad_files_are_refused(tmp_path: Path, name: str, make: Callable[[Path], object]) -> None:
    make(tmp_path / name)
    readers: dict[str, Callable[[], object]] = {
        "1.spec": lambda: session.files.spec(tmp_path, 1),
        "1.status": lambda: session.status(tmp_path, 1),
        "ask": lambda: session.raw_question(tmp_path),
        "1.log": lambda: list(session.read_log(tmp_path, 1)),
    }
    with pytest.raises(ProtocolError):
        readers[name.removesuffix(".old")]()


@pytest.mark.parametrize("make", BAD)
def test_a_bad_file_hides_no_other_session(tmp_path: Path, make: Callable[[Path], object]) -> None:
    (tmp_path / "2.spec").write_bytes(b"arg=true\0cwd=/\0")
    (tmp_path / "2.status").write_bytes(b"started=1\0running=1\0")
    for kind in ("spec", "status"):
        make(tmp_path / f"1.{kind}")
    assert list(session.specs(tmp_path)) == list(session.statuses(tmp_path)) == [2]


def test_of_many_sessions_all_or_some_are_read(tmp_path: Path) -> None:
    numbers = range(3 * session.files.TOGETHER + 1)
    for number in numbers:
        (tmp_path / f"{number}.spec").write_bytes(b"arg=%d\0cwd=/\0" % number)
    before = os.listdir("/proc/self/fd")
    assert {number: spec.argv for number, spec in session.specs(tmp_path).items()} == {
        number: (str(number),) for number in numbers
    }
    assert session.specs(tmp_path, only={7, 70, 700}).keys() == {7, 70}
    assert os.listdir("/proc/self/fd") == before


def test_files_that_are_absent_are_no_error(tmp_path: Path) -> None:
    assert session.specs(tmp_path) == session.statuses(tmp_path / "gone") == {}
    assert session.raw_question(tmp_path) is None
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
        content += Message(
            **{**{key: getattr(message, key) for key in message.__struct_fields__}, "offset": base}
        ).encode()
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
    assert list(session.follow(tmp_path, 1))[1:] == [
        Exit(session=1, exit=3, signal=None, offset=end, end=end, time=2.0)
    ]
