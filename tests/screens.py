"""A user at a terminal session of a job, by the library: types, and waits for what is to appear."""

from __future__ import annotations

import re
import select
import time

import pytest

from engine import Engine
from engine.session import Exit, Output

PATIENCE = 30.0
ESCAPES = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|[()].|[=>78]|\][^\x07\x1b]*(\x07|\x1b\\))")
"""what moves the cursor and paints, of ECMA-48 and xterm: not what a user reads"""


class Screen:
    """``with Screen(engine, "job", 1) as user: user.type("echo o''k\\r"); user.expect("ok")``. Leaving it detaches."""

    def __init__(self, engine: Engine, job: str, number: int) -> None:
        self._connection = engine.attach(job, number)
        self._seen = b""
        self._read = 0

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def type(self, text: str) -> None:
        self._connection.send(text.encode())

    def expect(self, text: str) -> None:
        """Wait until the text appears after what was expected last."""
        wanted, deadline = text.encode(), time.monotonic() + PATIENCE
        while (place := (shown := ESCAPES.sub(b"", self._seen)).find(wanted, self._read)) < 0:
            if not select.select([self._connection.fileno()], [], [], max(deadline - time.monotonic(), 0))[0]:
                pytest.fail(f"{text!r} did not appear after {shown[self._read :][-2000:]!r}")
            event = self._connection.receive()
            if event is None or isinstance(event, Exit):
                pytest.fail(f"it ended with {event} after {shown[self._read :][-2000:]!r}")
            self._seen += event.data if isinstance(event, Output) else b""
        self._read = place + len(wanted)
