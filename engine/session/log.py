"""A session's log on disk (native/protocol.h, LOG): N.log.old and N.log.

    head     "seraclog", version u32, session u32, base u64: the logical offset of the first message
    message  as init sends it, its ``offset`` its own logical position

The job's root can write these files: a message that isn't where it says, or isn't one, is a ProtocolError. A message
that is cut at the end of a file is one that init is writing, or was killed at; the log ends before it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.errors import NotFound, ProtocolError, Timeout, WrongState
from engine.session import files
from engine.session.connection import Connection, reach
from engine.session.protocol import (
    HEAD,
    LOG_HEAD,
    LOG_MAGIC,
    Exit,
    Message,
    SessionEvent,
    closing,
    decode_head,
    event,
)

VERSION = 1
CONNECT_TIMEOUT = 30.0


@dataclass(frozen=True)
class _File:
    fd: int
    session: int
    base: int
    end: int
    """as logical offsets; the end is that of the moment when it was opened"""

    def events(self, offset: int) -> Iterator[SessionEvent]:
        while offset + HEAD.size <= self.end:
            head, length = decode_head(self._at(offset, HEAD.size))
            if head.offset != offset or head.session != self.session:
                raise ProtocolError(f"the log of session {self.session} isn't one at offset {offset}")
            if offset + HEAD.size + length > self.end:
                return
            yield event(Message.decode(self._at(offset, HEAD.size + length)))
            offset += HEAD.size + length

    def _at(self, offset: int, size: int) -> bytes:
        content = os.pread(self.fd, size, offset - self.base + LOG_HEAD.size)
        if len(content) != size:
            raise ProtocolError(f"the log of session {self.session} became shorter while it was read")
        return content


def read_log(io: Path, session: int, *, offset: int = 0) -> Iterator[SessionEvent]:
    """What is on disk of a session's output, from ``offset`` (the ``end`` of an event) on, or from the oldest kept.

    Nothing when there is no log. Raises ProtocolError.
    """
    with ExitStack() as stack:
        current, old = (_open(stack, io, session, suffix) for suffix in ("log", "log.old"))
        for file in (old, current):
            # Opened after a rotation in between, both names are of one file.
            if file is None or (file is old and current is not None and current.base <= max(offset, old.base)):
                continue
            for each in file.events(max(offset, file.base)):
                offset = each.end
                yield each


def _open(stack: ExitStack, io: Path, session: int, suffix: str) -> _File | None:
    fd = stack.enter_context(files.opened(io, f"{session}.{suffix}"))
    if fd is None:
        return None
    head = os.pread(fd, LOG_HEAD.size, 0)
    if len(head) < LOG_HEAD.size:
        raise ProtocolError(f"{session}.{suffix} has no head")
    magic, version, owner, base = LOG_HEAD.unpack(head)
    if (magic, version, owner) != (LOG_MAGIC, VERSION, session) or base >= 1 << 63:
        raise ProtocolError(f"{session}.{suffix} is not a log of session {session}")
    return _File(fd, session, base, base + os.fstat(fd).st_size - LOG_HEAD.size)


def follow(io: Path, session: int, *, offset: int = 0) -> Iterator[SessionEvent]:
    """A session's output from ``offset`` on until it ends, each byte once: what is on disk, then from init while there
    is one, which in a frozen job is waited for. Without an Exit at the end the session was stopped with its job, or
    paused. Raises ProtocolError.
    """
    return closing(_blocking(_follow(io, session, offset)), partial(files.runs, io, session))


def _blocking(events: Iterator[SessionEvent | Connection]) -> Iterator[SessionEvent]:
    for each in events:
        if isinstance(each, Connection):
            ready = select.poll()
            ready.register(each, select.POLLIN)
            ready.poll()
        else:
            yield each


def follow_unblocked(io: Path, session: int, *, offset: int = 0) -> Iterator[SessionEvent | Connection]:
    """`follow` for who must not be blocked: a connection among the events says that the next one is there when the
    connection can be read."""
    return closing(_follow(io, session, offset), partial(files.runs, io, session))


def _follow(io: Path, session: int, offset: int) -> Iterator[SessionEvent | Connection]:
    ending: SessionEvent | None = None
    for source in (read_log, _from_init, read_log):
        if isinstance(ending, Exit) and not files.runs(io, session):
            return
        for each in source(io, session, offset=offset):
            if not isinstance(each, Connection):
                ending, offset = each, each.end
            yield each
    if not isinstance(ending, Exit):
        yield from _from_status(io, session, offset)


def _from_init(io: Path, session: int, *, offset: int) -> Iterator[SessionEvent | Connection]:
    while True:
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(reach(io, timeout=CONNECT_TIMEOUT))
                yield connection
                connection.greet()
                connection.attach(session, offset=offset)
            except (NotFound, WrongState):
                return
            except Timeout:
                continue  # frozen just now
            yield connection
            while (each := connection.receive()) is not None:
                yield each
                yield connection
            return


def _from_status(io: Path, session: int, offset: int) -> Iterator[SessionEvent]:
    """The Exit that found no room in the log."""
    status = files.status(io, session)
    if status is not None and not status.running:
        yield Exit(
            session=session,
            exit=status.exit,
            signal=status.signal,
            offset=offset,
            end=offset,
            time=status.ended or 0.0,
        )
