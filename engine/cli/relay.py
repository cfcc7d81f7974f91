"""Between a session and the user: one loop over the session's connection, standard input and signals.

No threads and no polling: what is waited for is the connection (output), standard input (only while the connection
takes more), and a pipe that signals write to. The rules for signals:

    on a raw terminal    keys go to the session and raise no signals; SIGWINCH resizes, SIGTERM and SIGHUP detach
    otherwise            the first SIGINT, SIGTERM or SIGQUIT goes to the session, the next detaches; SIGHUP detaches
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
from collections.abc import Callable

import msgspec

from engine.cli import terminal
from engine.errors import from_os
from engine.session import Connection, Event, Exit

CHUNK = 32 << 10

RAW_SIGNALS = (signal.SIGWINCH, signal.SIGCONT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PLAIN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Detached(msgspec.Struct, frozen=True, kw_only=True):
    """The user left, the session stays. ``signal`` is what made them leave, None for the keys."""

    signal: int | None = None


class Lost(msgspec.Struct, frozen=True):
    """The connection ended before the session did: the job was paused, or it is gone."""


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """How to show a session. ``raw``: our terminal becomes its terminal; ``input``: standard input goes to it."""

    raw: bool = False
    input: bool = False
    keys: bytes = terminal.DETACH_KEYS
    remark: Callable[[str], None]
    """takes a remark for people, such as what the first Ctrl-C did"""


def relay(connection: Connection, show: Callable[[Event], None], wishes: Wishes) -> Exit | Detached | Lost:
    """Show a session until it ends or the user leaves. The terminal and the signal handlers are put back."""
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(terminal.caught(RAW_SIGNALS if wishes.raw else PLAIN_SIGNALS))
        poll = stack.enter_context(selectors.PollSelector())
        if wishes.raw:
            stack.enter_context(terminal.raw(0))
        return _Relay(connection, show, wishes, poll).run(signals)


class _Relay:
    def __init__(
        self,
        connection: Connection,
        show: Callable[[Event], None],
        wishes: Wishes,
        poll: selectors.BaseSelector,
    ) -> None:
        self._connection = connection
        self._show = show
        self._wishes = wishes
        self._poll = poll
        self._keys = terminal.DetachKeys(wishes.keys if wishes.raw else b"")
        self._pending = b""
        self._forwarded = False
        self._exit: Exit | None = None
        self._ending: Exit | Detached | Lost | None = None

    def run(self, signals: int) -> Exit | Detached | Lost:
        self._poll.register(self._connection, selectors.EVENT_READ, self._exchange)
        self._poll.register(signals, selectors.EVENT_READ, lambda _: self._signals(signals))
        if self._wishes.input:
            self._poll.register(0, selectors.EVENT_READ, lambda _: self._read())
        if self._wishes.raw:
            self._connection.resize(*terminal.size(0))
        while self._ending is None:
            for key, mask in self._poll.select():
                if self._ending is None:
                    key.data(mask)
        return self._ending

    def _exchange(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._send()
        if mask & selectors.EVENT_READ:
            self._receive()

    def _receive(self) -> None:
        event = self._connection.receive()
        if event is None:
            self._ending = self._exit or Lost()
        elif isinstance(event, Exit):
            self._exit = event  # it counts when nothing comes after it
        else:
            self._exit = None
            self._show(event)

    def _read(self) -> None:
        """Take what was typed; no more of it is read until the session's connection took this."""
        typed = _typed()
        if not typed:
            self._poll.unregister(0)
            self._connection.close_input()
            return
        self._pending, leave = self._keys.feed(typed)
        if leave:
            self._ending = Detached()
        elif self._pending:
            self._poll.unregister(0)
            self._poll.modify(self._connection, selectors.EVENT_READ | selectors.EVENT_WRITE, self._exchange)

    def _send(self) -> None:
        self._connection.send(self._pending)
        self._pending = b""
        self._poll.modify(self._connection, selectors.EVENT_READ, self._exchange)
        self._poll.register(0, selectors.EVENT_READ, lambda _: self._read())

    def _signals(self, descriptor: int) -> None:
        for number in os.read(descriptor, 64):
            if self._wishes.raw:
                self._raw_signal(number)
            else:
                self._plain_signal(number)

    def _raw_signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            self._connection.resize(*terminal.size(0))
        elif number == signal.SIGCONT:
            terminal.make_raw(0)
            self._connection.resize(*terminal.size(0))
        else:
            self._ending = Detached(signal=number)

    def _plain_signal(self, number: int) -> None:
        if self._forwarded or number == signal.SIGHUP:
            self._ending = Detached(signal=number)
            return
        self._forwarded = True
        self._connection.signal(number)
        self._wishes.remark(f"sent {signal.Signals(number).name} to the session; the next one detaches")


def _typed() -> bytes:
    try:
        return os.read(0, CHUNK)
    except OSError as error:
        if error.errno == errno.EIO:  # the terminal hung up
            return b""
        raise from_os(error, "read standard input") from error
