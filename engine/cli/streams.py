"""A session's output on its way to the user: bytes as they are, or JSON records, one a line.

Records: ``{session, stream, time, data}`` with ``stream`` "stdout" or "stderr" and ``base64`` instead of ``data`` where
the bytes aren't UTF-8; ``{session, step, outcome, time}``; at the end ``{session, exit, signal, time}``.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

from engine.cli.output import Output
from engine.session import Exit, SessionEvent, StepMark
from engine.session import Output as Bytes

STREAMS = {1: "stdout", 2: "stderr"}


class View:
    """What was shown of one session. ``end`` is the offset to go on from, at first where to begin."""

    def __init__(self, out: Output, session: int, *, end: int = 0) -> None:
        self._out = out
        self.session = session
        self.end = end
        self.ending: Exit | None = None

    def show(self, event: SessionEvent) -> None:
        if self._out.json:
            self._out.record(record(event, self.session))
        else:
            self._show(event)
        self.end = event.end
        if isinstance(event, Exit):
            self.ending = event

    def _show(self, event: SessionEvent) -> None:
        if isinstance(event, StepMark):
            self._out.note(_mark(event))
        elif isinstance(event, Bytes) and event.stream == 2:
            sys.stderr.buffer.write(event.data)
            sys.stderr.buffer.flush()
        elif isinstance(event, Bytes):
            self._out.write_bytes(event.data)


def record(event: SessionEvent, session: int) -> dict[str, Any]:
    if isinstance(event, Bytes):
        return {"session": session, "stream": STREAMS[event.stream], "time": event.time, **_data(event.data)}
    if isinstance(event, StepMark):
        return {"session": session, "step": event.name, "outcome": event.outcome, "time": event.time}
    return {"session": session, "exit": event.exit, "signal": event.signal, "time": event.time}


def status(ending: Exit) -> int:
    """As a shell says it."""
    return 128 + ending.signal if ending.signal is not None else ending.exit or 0


def _data(data: bytes) -> dict[str, str]:
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _mark(event: StepMark) -> str:
    return f"--- step {event.name}" if event.outcome == "begins" else f"--- step {event.name} {event.outcome}"
