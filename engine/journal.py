"""The journal of a root: its events, a line of JSON each, oldest first, in events.jsonl.

Any number of engines write at the same time, one after the other: whoever has the file's lock, and sees that it still
is the journal. A file that has become too long is renamed under that lock, to events.1.jsonl, and the next event begins
a new one. So nobody writes to a file that isn't the journal any more, and who reads has all of it when its end has been
reached after the renaming.

Kinds of events are the verbs that change something, as `engine.verbs` names them (``pause``, ``snapshot.take`` ...);
``exited`` and ``failed`` of jobs that ended by themselves; ``recover.mend`` and ``recover.sweep`` of what a crash left;
``collect.layer``, ``collect.image`` and ``collect.directory`` of each thing that was removed.

A journal tells what happened and decides nothing: an event that can't be written, on a full disk say, is dropped and
counted, and a line that can't be read (a newer serac's, a torn one) is passed over. Events aren't flushed to the
device: a power cut may take the last ones.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec

from engine import counters, steps, store
from engine.errors import Busy, SeracError, from_os, outcome
from engine.model import Event

log = logging.getLogger("serac")

SIZE_MAX = 8 << 20
"""bytes from which on a journal begins anew; what it had is kept until the next time"""
POLL = 0.2
"""seconds between two looks whether there are new events"""
PATIENCE = 1.0
"""seconds that an event waits for its turn, which takes microseconds, before it is dropped"""
_CHUNK = 256 << 10

_under_way: ContextVar[dict[str, Any] | None] = ContextVar("serac_event", default=None)


def about(**fields: str) -> None:
    """Whom the verb that is under way is about (``job``, ``name``, ``snapshot``), so that its event says it even when
    it fails. The first one who says it is right: a verb may look at others on its way."""
    event = _under_way.get()
    if event is not None:
        event.update({name: value for name, value in fields.items() if name not in event})


class Journal:
    def __init__(self, root: Path, *, size_max: int = SIZE_MAX) -> None:
        self._file, self._older = root / "events.jsonl", root / "events.1.jsonl"
        self._size_max = size_max

    def add(self, kind: str, **fields: Any) -> None:
        """``fields``: of an `Event`. Never fails for the journal's sake."""
        try:
            with self._opened() as fd:
                self._write(fd, _line(Event(time=round(time.time(), 3), kind=kind, **fields)))
        except (OSError, Busy) as error:
            counters.drop_event()
            log.warning("journal: %s", error)

    @contextlib.contextmanager
    def telling(self, kind: str, *, told: bool = True) -> Iterator[dict[str, Any]]:
        """What surrounds a verb: however it ends, there is an event of it (not if it isn't to be ``told``), a line in
        the log, and it is counted. Gives the event's fields, for what is known of it at its end; ``told`` may be
        decided there too.

        The log record has the fields ``verb``, ``job``, ``snapshot``, ``ms``, ``outcome`` and ``reason``, None where
        there is none."""
        fields: dict[str, Any] = {}
        token = _under_way.set(fields)
        failure: BaseException | None = None
        started = time.perf_counter()
        try:
            with steps.record() as timings:
                yield fields
        except BaseException as error:
            failure = error
            raise
        finally:
            _under_way.reset(token)
            ms = round((time.perf_counter() - started) * 1000, 3)
            facts = {**fields.pop("facts", {}), **_why(failure)}
            spent = {name: spent for name, spent in timings.items() if name != "total"}
            told = fields.pop("told", told)
            fields |= {"ms": ms, "facts": {**facts, **({"timings": spent} if spent else {})}}
            fields |= {"outcome": outcome(failure), **({"reason": str(failure)} if failure is not None else {})}
            _ended(kind, fields)
            if told:
                self.add(kind, **fields)

    def read(self, *, follow: bool = False, since: float | None = None, poll_interval: float = POLL) -> Iterator[Event]:
        """The events that there are, oldest first, ``since`` a time (seconds since the epoch); with ``follow`` also
        those to come, looked for every ``poll_interval`` seconds."""
        with self.tail(since=since) as tail:
            while True:
                while found := tail.more():
                    yield from found
                if not follow:
                    return
                time.sleep(poll_interval)

    def tail(self, *, since: float | None = None) -> Tail:
        """The same for who waits in another way."""
        return Tail(self._file, self._older, since=since)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The journal's file, with its lock. Raises OSError, Busy."""
        while True:
            fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                store.flock(fd, fcntl.LOCK_EX, self._file, patience=PATIENCE)
                if _is(fd, self._file):
                    yield fd
                    return
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)  # for a process that was forked off meanwhile has the descriptor too
                os.close(fd)

    def _write(self, fd: int, line: bytes) -> None:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line  # whoever wrote last was killed, or had no room
        if os.write(fd, line) < len(line):
            raise OSError(errno.ENOSPC, "no room for an event", os.fspath(self._file))
        if size + len(line) >= self._size_max:
            self._file.rename(self._older)


class Tail:
    """Reads a journal on from where it was, each event once. Not for several threads at once.

    What was renamed meanwhile is read to its end. Whoever comes back only when two files have been filled since misses
    what was in neither of those that are kept."""

    def __init__(self, file: Path, older: Path, *, since: float | None) -> None:
        self._file, self._older = file, older
        self._since = since
        self._fd: int | None = None
        self._rest = b""
        """of a line that isn't complete yet"""

    def more(self) -> list[Event]:
        """Some more events, [] when there are no more now. Raises NotPrivileged, SeracError."""
        try:
            return self._more()
        except OSError as error:
            raise from_os(error, "read the journal") from error

    def close(self) -> None:
        self._read(None)

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _more(self) -> list[Event]:
        while True:
            if found := self._some():
                return found
            if self._fd is not None and _is(self._fd, self._file):
                return []
            # Renamed: now that this is known, what is in it is all that ever will be.
            if found := self._some():
                return found
            if not self._go_on():
                return []

    def _some(self) -> list[Event]:
        while self._fd is not None and (chunk := os.read(self._fd, _CHUNK)):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            decoded = [event for event in map(_decoded, lines) if event is not None]
            if found := [event for event in decoded if self._since is None or event.time >= self._since]:
                return found
        return []

    def _go_on(self) -> bool:
        """Begin with the next file, if there is one."""
        files = self._files()
        mine = [at for at, fd in enumerate(files) if self._fd is not None and os.path.sameopenfile(fd, self._fd)]
        at = mine[-1] + 1 if mine else 0
        for fd in (*files[:at], *files[at + 1 :]):
            os.close(fd)
        if at == len(files):
            return False
        self._read(files[at])
        return True

    def _read(self, fd: int | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._rest = fd, b""

    def _files(self) -> list[int]:
        """The older file and the present one, of those that there are, with nothing between them."""
        while True:
            present, older = _open(self._file), _open(self._older)
            files = [fd for fd in (older, present) if fd is not None]
            if _is(present, self._file):
                return files
            for fd in files:
                os.close(fd)


def _open(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return None


def _is(fd: int | None, path: Path) -> bool:
    """Whether the path leads to the file that is open; None: whether it leads to none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return fd is None
    return fd is not None and os.path.samestat(os.fstat(fd), found)


def _line(event: Event) -> bytes:
    try:
        return msgspec.json.encode(event, enc_hook=str) + b"\n"
    except UnicodeEncodeError:  # paths may be of any bytes
        return msgspec.json.encode(_printable(msgspec.to_builtins(event, enc_hook=str))) + b"\n"


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _decoded(line: bytes) -> Event | None:
    try:
        return msgspec.json.decode(line, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _why(failure: BaseException | None) -> dict[str, str]:
    """The machine-readable reason of a checkpoint or restore that couldn't be."""
    return {"why": failure.reason} if isinstance(failure, SeracError) and failure.reason is not None else {}


def _ended(verb: str, fields: dict[str, Any]) -> None:
    counters.add("verb", verb, fields["outcome"], fields["ms"] / 1000)
    extra = {name: fields.get(name) for name in ("job", "snapshot", "ms", "outcome", "reason")}
    log.info(
        "verb=%s job=%s ms=%.3f outcome=%s",
        verb, fields.get("job", ""), fields["ms"], fields["outcome"],
        extra={"verb": verb, **extra},
    )  # fmt: skip
