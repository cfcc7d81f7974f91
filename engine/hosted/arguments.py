"""What callers give. The wrong type is a TypeError at once; a value that can't be is an answer, InvalidInput."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from engine.errors import InvalidInput

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
    if not waiting.timeout > 0 or not waiting.poll_interval > 0:
        raise InvalidInput("timeout and poll_interval must be more than 0 seconds")


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
