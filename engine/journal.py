"""The journal of a root: its events, a line of JSON each, oldest first, in events.jsonl.

Any number of engines append at the same time: an event is one write(2) to a file that is opened for appending, which
the kernel doesn't mix with another. A journal tells what happened and decides nothing: an event that can't be written,
on a full disk say, is dropped, and a line that can't be read (a newer serac's, a torn one) is passed over.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine.model import Event

log = logging.getLogger("serac")

SIZE_MAX = 8 << 20
"""bytes from which on a journal begins anew; what it had is kept until the next time"""


class Journal:
    def __init__(self, root: Path) -> None:
        self._file, self._older = root / "events.jsonl", root / "events.1.jsonl"

    def add(self, kind: str, **fields: object) -> None:
        """``fields``: of an `Event`."""
        event = msgspec.convert({"time": round(time.time(), 3), "kind": kind, **fields}, Event)
        try:
            fd = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, msgspec.json.encode(event) + b"\n")
                full = os.fstat(fd).st_size > SIZE_MAX
            finally:
                os.close(fd)
            if full:
                self._file.rename(self._older)
        except OSError as error:
            log.warning("journal: %s", error)

    def read(self) -> Iterator[Event]:
        """All that there are."""
        for file in (self._older, self._file):
            try:
                lines = file.read_bytes().splitlines()
            except FileNotFoundError:
                continue
            for line in lines:
                try:
                    yield msgspec.json.decode(line, type=Event)
                except msgspec.DecodeError:
                    continue
