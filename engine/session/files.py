"""What init leaves in its directory: specs and statuses of sessions, the open question.

The job's root can put anything there, links, fifos and gigabytes included, so everything is opened without following
links and without waiting, must be a regular file, and is read up to a limit.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from engine.errors import ProtocolError, from_os
from engine.model import SessionSpec, SessionStatus
from engine.session.protocol import MESSAGE_MAX, NANOSECONDS, decode_records, decode_spec, decode_status, number

log = logging.getLogger("serac")
_T = TypeVar("_T")

ENTRIES_MAX = 1 << 17
"""entries of the directory that are looked at"""
SESSION_ID_MAX = 999_999_999
FILE_MAX = 2 * MESSAGE_MAX
ALL_MAX = 16 * MESSAGE_MAX
"""bytes of all files of a kind together, with `RECORD_COST` for each record"""
TOGETHER = 64
"""files that are open at once; as many ended sessions as init keeps"""
RECORD_COST = 64
"""bytes that a record takes in memory beyond its own"""
NAME = re.compile(r"(0|[1-9][0-9]{0,8})\.(spec|status)")
WRITTEN = re.compile(r"(0|[1-9][0-9]{0,8})\.(spec|status|log|log\.old)")


class RawQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """What a process of the job asked for by M_ASK and waits for; all of it is the job's word."""

    reason: str
    state: str | None
    """JSON, unchecked"""
    pid: int
    """in the job's pid namespace"""
    number: int
    """which one, as init counts them; 0: an init that doesn't"""
    since: float | None


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What a process of the job holds so that the job isn't taken for idle."""

    until_ns: int
    """wall clock; 0 = until it is given back"""
    reason: str


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of sessions' files: another one, and something was started, has ended or was printed."""

    files: int
    size: int
    """bytes of all"""
    newest_ns: int
    """the latest time of a change"""


def specs(io: Path, only: Container[int] | None = None) -> dict[int, SessionSpec]:
    """The spec of every session, or of those ``only``, of which init keeps one. A file that isn't what init writes is
    passed over."""
    return dict(_sessions(io, "spec", decode_spec, only))


def statuses(io: Path) -> dict[int, SessionStatus]:
    """What init last wrote of every session. A file that isn't what init writes is passed over."""
    return dict(_sessions(io, "status", decode_status))


def raw_question(io: Path) -> RawQuestion | None:
    """The question that is open, None without one. Raises ProtocolError."""
    content = _read(io, "ask")
    if content is None:
        return None
    records = dict(decode_records(content))
    if "pid" not in records:
        raise ProtocolError("the job's question doesn't say who asks")
    return RawQuestion(
        reason=records.get("reason", ""),
        state=records.get("state"),
        pid=number(records["pid"]),
        number=number(records.get("id", "0")),
        since=number(records["since"]) / NANOSECONDS if "since" in records else None,
    )


def lease(io: Path) -> Lease | None:
    """The lease that is held, be it over or not; None without one. Raises ProtocolError."""
    content = _read(io, "awake")
    if content is None:
        return None
    records = dict(decode_records(content))
    return Lease(until_ns=number(records.get("until", "0")), reason=records.get("reason", ""))


def trace(io: Path) -> Trace:
    """Nothing is opened. Raises ProtocolError when the job has put too many files there."""
    count = size = newest = 0
    for name in _names(io):
        if WRITTEN.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):  # it is replaced just now
                status = os.lstat(io / name)
                count, size, newest = count + 1, size + status.st_size, max(newest, status.st_mtime_ns)
    return Trace(files=count, size=size, newest_ns=newest)


def status(io: Path, session: int) -> SessionStatus | None:
    """What init last wrote of one session. Raises ProtocolError."""
    content = _read(io, f"{session}.status")
    return None if content is None else decode_status(content, session)


def runs(io: Path, session: int) -> bool:
    """Whether a session does, as far as init has written: an Exit in its log is then of an earlier life."""
    found = status(io, session)
    return found is not None and found.running


def spec(io: Path, session: int) -> SessionSpec | None:
    """Raises ProtocolError."""
    content = _read(io, f"{session}.spec")
    return None if content is None else decode_spec(content, session)


def _sessions(
    io: Path, kind: str, decode: Callable[[bytes, int], _T], only: Container[int] | None = None
) -> Iterator[tuple[int, _T]]:
    left = ALL_MAX
    for name, fd in _opened_together(io, _names_of(io, kind, only)):
        try:
            content = _content(fd, io / name)
            left -= len(content)
            number = int(name.partition(".")[0])
            found = decode(content, number)
            left -= RECORD_COST * content.count(b"\0")
            yield number, found
        except ProtocolError as error:
            log.warning("%s", error)
        if left < 0:
            raise ProtocolError(f"the job has put more than {ALL_MAX} bytes into {io}")


def _names_of(io: Path, kind: str, only: Container[int] | None) -> list[str]:
    found = [match for name in sorted(_names(io)) if (match := NAME.fullmatch(name)) and match[2] == kind]
    return [match[0] for match in found if only is None or int(match[1]) in only]


def _opened_together(io: Path, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Regular files, of which the disk is asked for `TOGETHER` at a time: one after the other they take as long as all
    that has happened in the job."""
    for start in range(0, len(names), TOGETHER):
        with contextlib.ExitStack() as stack:
            files = []
            for name in names[start : start + TOGETHER]:
                try:
                    fd = stack.enter_context(opened(io, name))
                except ProtocolError as error:
                    log.warning("%s", error)
                    continue
                if fd is not None:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
                    files.append((name, fd))
            yield from files


def _names(io: Path) -> Iterator[str]:
    try:
        with os.scandir(io) as entries:
            for count, entry in enumerate(entries):
                if count == ENTRIES_MAX:
                    raise ProtocolError(f"the job has put more than {ENTRIES_MAX} files into {io}")
                yield entry.name
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_os(error, "read the job's sessions") from error


def _read(io: Path, name: str) -> bytes | None:
    with opened(io, name) as fd:
        return None if fd is None else _content(fd, io / name)


def _content(fd: int, path: Path) -> bytes:
    content = bytearray()
    while len(content) <= FILE_MAX and (part := os.read(fd, FILE_MAX)):
        content += part
    if len(content) > FILE_MAX:
        raise ProtocolError(f"{path.name} in {path.parent} is too long")
    return bytes(content)


@contextlib.contextmanager
def opened(io: Path, name: str) -> Iterator[int | None]:
    """A regular file of the directory, None when there is none. Raises ProtocolError for anything else."""
    try:
        fd = os.open(io / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise ProtocolError(f"{name} in {io} is not a regular file") from error
        raise from_os(error, "read what init wrote") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ProtocolError(f"{name} in {io} is not a regular file")
        yield fd
    finally:
        os.close(fd)
