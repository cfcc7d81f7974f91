"""The user's terminal and the signals that come from it: raw mode, its size, the keys that detach."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import tty
from collections.abc import Callable, Iterable, Iterator

DETACH_KEYS = b"\x10\x11"
"""ctrl-p ctrl-q"""
DEFAULT_SIZE = (24, 80)


def size(descriptor: int) -> tuple[int, int]:
    """Rows and columns; 24 x 80 where the descriptor is no terminal or its size was never set."""
    try:
        columns, rows = os.get_terminal_size(descriptor)
    except OSError:
        return DEFAULT_SIZE
    return (rows, columns) if rows and columns else DEFAULT_SIZE


def make_raw(descriptor: int) -> None:
    tty.setraw(descriptor, termios.TCSADRAIN)


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Every key goes through as it is; the terminal is as before afterwards, whatever happens."""
    before = termios.tcgetattr(descriptor)
    try:
        make_raw(descriptor)
        yield
    finally:
        with contextlib.suppress(termios.error):  # a terminal that hung up has nothing to put back
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def caught(numbers: Iterable[int], heard: Callable[[], object] = lambda: None) -> Iterator[int]:
    """Turn signals into bytes: each that arrives can be read, one byte, from the descriptor that this gives.

    Only in the main thread; afterwards the handlers are what they were. ``heard`` is called after each, between any two
    steps of the thread and while it waits: a call of the system that waits goes on waiting unless that raises.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.signal(number, lambda *_: heard()) for number in numbers}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


class DetachKeys:
    """Finds the keys that detach in what is typed; holds a beginning of them back until it is decided."""

    def __init__(self, keys: bytes = DETACH_KEYS) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What goes on to the session, and whether the keys were typed; what follows them is dropped."""
        typed = self._held + typed
        self._held = b""
        place = typed.find(self._keys) if self._keys else -1
        if place >= 0:
            return typed[:place], True
        for length in range(min(len(self._keys) - 1, len(typed)), 0, -1):
            if self._keys.startswith(typed[-length:]):
                self._held = typed[-length:]
                return typed[:-length], False
        return typed, False
