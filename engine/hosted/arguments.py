"""What callers give. The wrong type is a TypeError at once; a value that can't be is an answer, InvalidInput."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from engine.errors import InvalidInput

WAIT_MAX = 2_000_000
"""seconds, some three weeks: poll(2) counts milliseconds in 31 bits"""
REQUEST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class Wait(NamedTuple):
    """How long a call may take; all in seconds, the deadline of time.monotonic()."""

    timeout: float
    poll_interval: float
    deadline: float

    def left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def until_look(self) -> float:
        """Until the next look at what somebody else does."""
        return min(self.poll_interval, self.left())


def wait(timeout: float, poll_interval: float) -> Wait:
    """From now on. Raises TypeError."""
    for name, value in (("timeout", timeout), ("poll_interval", poll_interval)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} is a number of seconds, not {value!r}")
    return Wait(timeout, poll_interval, time.monotonic() + timeout)


def request(given: str | None) -> str:
    """The caller's id or a new one. Raises TypeError."""
    return str(uuid.uuid4()) if given is None else text(given, "request_id")


def check(request_id: str, waiting: Wait) -> None:
    """Raises InvalidInput."""
    if not REQUEST.fullmatch(request_id):
        raise InvalidInput(f"no request id: {request_id!r}", hint="1 to 128 letters, digits, '.', '_', ':', '-'")
    for seconds in (waiting.timeout, waiting.poll_interval):
        if not 0 < seconds <= WAIT_MAX:
            raise InvalidInput(f"{seconds} seconds are no time to wait", hint=f"more than 0, at most {WAIT_MAX}")


def text(value: str, name: str) -> str:
    """Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is text, not {value!r}")
    return value


def texts(given: Mapping[str, str] | None, name: str) -> dict[str, str]:
    """Raises TypeError."""
    values = dict(given or {})
    if not all(isinstance(each, str) for each in (*values, *values.values())):
        raise TypeError(f"{name} are names and values, both text: {values!r}")
    return values


def whole(value: int, name: str) -> int:
    """Raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    return value
