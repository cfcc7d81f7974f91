"""Ctrl-C and its like: they end a benchmark once, and never in the middle of its cleaning up."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def install() -> None:
    for number in ENDS:
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    for other in ENDS:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """What comes while the block runs is heard at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
