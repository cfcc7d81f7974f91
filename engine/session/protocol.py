"""The bytes of native/protocol.h: messages, records, and the values that travel in them."""

from __future__ import annotations

import enum
import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

import msgspec

from engine.errors import BadPath, InvalidInput, ProtocolError
from engine.model import Outcome, SessionSpec, SessionStatus, Step

VERSION = 1
MESSAGE_MAX = 1 << 20
CHUNK_MAX = 32 << 10
RECORDS_MAX = 1 << 18
"""records at a time; of more than these each would be shorter than any that there is"""
HEAD = struct.Struct("<BBHIIIQQ")
"""type, stream, 0, session, length, 0, offset, time"""
LOG_HEAD = struct.Struct("<8sIIQ")
"""magic, version, session, base"""
LOG_MAGIC = b"seraclog"
NANOSECONDS = 1_000_000_000


class Type(enum.IntEnum):
    HELLO = 1
    START = 2
    STARTED = 3
    ATTACH = 4
    ATTACHED = 5
    OUTPUT = 6
    STEP = 7
    EXIT = 8
    INPUT = 9
    INPUT_END = 10
    RESIZE = 11
    SIGNAL = 12
    LIST = 13
    LISTED = 14
    ASK = 15
    ANSWER = 16
    QUIESCE = 17
    OK = 18
    ERROR = 19
    WATCH = 20
    AWAKE = 21


class Message(msgspec.Struct, frozen=True, kw_only=True):
    type: int
    stream: int = 0
    session: int = 0
    offset: int = 0
    time: int = 0
    """nanoseconds since the epoch"""
    payload: bytes = b""

    def encode(self) -> bytes:
        size = len(self.payload)
        return HEAD.pack(self.type, self.stream, 0, self.session, size, 0, self.offset, self.time) + self.payload

    @classmethod
    def decode(cls, packet: bytes) -> Message:
        """One whole packet. Raises ProtocolError."""
        if len(packet) < HEAD.size:
            raise ProtocolError("a message from init is cut")
        head, length = decode_head(packet)
        if length != len(packet) - HEAD.size:
            raise ProtocolError("a message from init has the wrong length")
        return msgspec.structs.replace(head, payload=packet[HEAD.size :])


def decode_head(packet: bytes) -> tuple[Message, int]:
    """A message without its payload, and how long that is."""
    kind, stream, zero, session, length, zero2, offset, time = HEAD.unpack_from(packet)
    if zero or zero2 or length > CHUNK_MAX:
        raise ProtocolError("a message from init is malformed")
    return Message(type=kind, stream=stream, session=session, offset=offset, time=time), length


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a session wrote. Of a terminal all is stream 1."""

    session: int
    stream: Literal[1, 2]
    data: bytes
    offset: int
    """where the message is in the session's log"""
    end: int
    """where the next one is: to go on from"""
    time: float


class StepMark(msgspec.Struct, frozen=True, kw_only=True):
    session: int
    name: str
    outcome: Literal["begins", "completed", "failed"]
    offset: int
    end: int
    time: float


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a session: ``exit`` code or ``signal``, the other is None."""

    session: int
    exit: int | None
    signal: int | None
    offset: int
    end: int
    time: float


SessionEvent = Output | StepMark | Exit
Other = TypeVar("Other")

OUTCOMES: tuple[Literal["begins", "completed", "failed"], ...] = ("begins", "completed", "failed")


def event(message: Message) -> SessionEvent:
    """An M_OUTPUT, M_STEP or M_EXIT as a value. Raises ProtocolError."""
    end = message.offset + HEAD.size + len(message.payload)
    time = message.time / NANOSECONDS
    if message.type == Type.OUTPUT and message.stream in (1, 2):
        stream: Literal[1, 2] = 1 if message.stream == 1 else 2
        return Output(
            session=message.session, stream=stream, data=message.payload, offset=message.offset, end=end, time=time
        )
    if message.type == Type.STEP and message.stream < len(OUTCOMES):
        name, outcome = os.fsdecode(message.payload), OUTCOMES[message.stream]
        return StepMark(session=message.session, name=name, outcome=outcome, offset=message.offset, end=end, time=time)
    if message.type == Type.EXIT:
        code, signal = outcome_of(dict(decode_records(message.payload)))
        return Exit(session=message.session, exit=code, signal=signal, offset=message.offset, end=end, time=time)
    raise ProtocolError(f"init sent a message of type {message.type} among a session's output")


def closing(events: Iterable[SessionEvent | Other], runs: Callable[[], bool]) -> Iterator[SessionEvent | Other]:
    """The same without an Exit in the middle, or at the end of what came from a session that ``runs``: that of an
    earlier life of a session that was started again."""
    held: Exit | None = None
    for each in events:
        if isinstance(each, Exit):
            held = each
            continue
        if isinstance(each, SessionEvent):
            held = None
        yield each
    if held is not None and not runs():
        yield held


def encode_records(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Raises InvalidInput for a value that holds a NUL."""
    parts = []
    for key, value in pairs:
        if "\0" in value:
            raise InvalidInput(f"{key} has a NUL character in it")
        parts.append(f"{key}=".encode() + os.fsencode(value) + b"\0")
    return b"".join(parts)


def encode_answer(outcome: Outcome, *, text: str, state: str | None) -> bytes:
    """The payload of M_ANSWER. Raises InvalidInput."""
    records = [("outcome", outcome), ("text", text)] + ([("state", state)] if state is not None else [])
    payload = encode_records(records)
    if len(payload) > CHUNK_MAX:
        raise InvalidInput(f"the answer is longer than {CHUNK_MAX >> 10} KiB", hint="put a file into the job")
    return payload


def decode_records(payload: bytes) -> list[tuple[str, str]]:
    """Raises ProtocolError."""
    if not payload:
        return []
    if payload.count(b"\0") > RECORDS_MAX:
        raise ProtocolError("the job has sent more records than fit into a message")
    parts = payload.split(b"\0")
    if parts.pop() != b"" or any(b"=" not in part for part in parts):
        raise ProtocolError("records from the job are malformed")
    pairs = (part.split(b"=", 1) for part in parts)
    return [(key.decode("ascii", "replace"), os.fsdecode(value)) for key, value in pairs]


def number(text: str, *, most: int = 1 << 63) -> int:
    """A decimal number from a record. Raises ProtocolError."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise ProtocolError(f"not a number that init would write: {text[:40]!r}")
    return int(text)


def outcome_of(records: dict[str, str]) -> tuple[int | None, int | None]:
    """Exit code and signal of which one is None. Raises ProtocolError."""
    if ("exit" in records) == ("signal" in records):
        raise ProtocolError("an exit from init has neither code nor signal, or both")
    if "exit" in records:
        return number(records["exit"], most=255), None
    return None, number(records["signal"], most=127)


def encode_spec(spec: SessionSpec, *, attach: bool = False, stdin: bool = False) -> bytes:
    """The payload of M_START. Raises InvalidInput, BadPath."""
    if spec.workdir and not spec.workdir.startswith("/"):
        raise BadPath(f"not an absolute path in the job: {spec.workdir}")
    payload = encode_records(_spec_records(spec, attach=attach, stdin=stdin))
    if len(payload) > MESSAGE_MAX:
        raise InvalidInput("command, steps and environment are longer than 1 MiB together")
    return payload


def _spec_records(spec: SessionSpec, *, attach: bool, stdin: bool) -> Iterator[tuple[str, str]]:
    yield from (("arg", value) for value in spec.argv)
    for step in spec.steps:
        yield from (("step", step.name), ("script", step.script))
    yield from (("done", name) for name in spec.done)
    yield from (("env", f"{key}={value}") for key, value in spec.env.items())
    if spec.workdir:
        yield "cwd", spec.workdir
    yield from ((key, str(value)) for key, value in (("uid", spec.uid), ("gid", spec.gid)) if value)
    if spec.tty is not None:
        yield "tty", f"{spec.tty[0]}x{spec.tty[1]}"
    if spec.id is not None:
        yield ("main", "1") if spec.id == 0 else ("id", str(spec.id))
    flags = {"keep": spec.keep, "attach": attach, "stdin": stdin}
    yield from ((key, "1") for key, flag in flags.items() if flag)


def decode_spec(payload: bytes, session: int) -> SessionSpec:
    """A spec as init keeps it; attach and stdin were a matter of that one connection. Raises ProtocolError."""
    records = decode_records(payload)
    single = dict(records)
    names = [value for key, value in records if key == "step"]
    scripts = [value for key, value in records if key == "script"]
    if len(names) != len(scripts):
        raise ProtocolError("steps and scripts of a session don't match")
    env = [value.partition("=") for key, value in records if key == "env"]
    return SessionSpec(
        id=session,
        argv=tuple(value for key, value in records if key == "arg"),
        steps=tuple(Step(name=name, script=script) for name, script in zip(names, scripts, strict=True)),
        done=tuple(value for key, value in records if key == "done"),
        env={key: value for key, _, value in env},
        workdir=single.get("cwd", ""),
        tty=_terminal(single["tty"]) if "tty" in single else None,
        keep="keep" in single,
        uid=number(single.get("uid", "0")),
        gid=number(single.get("gid", "0")),
    )


def _terminal(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    return number(rows, most=0xFFFF), number(columns, most=0xFFFF)


def decode_status(payload: bytes, session: int) -> SessionStatus:
    """Raises ProtocolError."""
    records = decode_records(payload)
    single = dict(records)
    running = single.get("running") == "1"
    code, signal = (None, None) if running else outcome_of(single)
    return SessionStatus(
        id=session,
        running=running,
        pid=number(single["pid"]) if "pid" in single else None,
        exit=code,
        signal=signal,
        done=tuple(value for key, value in records if key == "done"),
        step=single.get("step"),
        started=_time(single, "started"),
        ended=_time(single, "ended"),
    )


def _time(records: dict[str, str], key: str) -> float | None:
    return number(records[key]) / NANOSECONDS if key in records else None


def error_text(number: int) -> str:
    """For an errno that the job's init claims; it may be any number."""
    return os.strerror(number) if number in errno.errorcode else f"error {number}"
