"""Between a session and the user: one loop over the session's connection, standard input and signals.

No threads and no polling: what is waited for is the connection (output), standard input (only while the connection
takes more), and a pipe that signals write to. The rules for signals:

    on a raw terminal    keys go to the session and raise no signals; SIGWINCH resizes, SIGTERM and SIGHUP detach
    otherwise            the first SIGINT, SIGTERM or SIGQUIT goes to the session, the next detaches; SIGHUP detaches

They hold too while a write to the user waits, whom nobody reads perhaps; what was to be written is dropped then.
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
from engine.errors import ProtocolError, from_os
from engine.session import INPUT_MAX, Connection, Exit, SessionEvent

CHUNK = 32 << 10

RAW_SIGNALS = (signal.SIGWINCH, signal.SIGCONT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PLAIN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Detached(msgspec.Struct, frozen=True, kw_only=True):
    """The user left, the session stays. ``signal`` is what made them leave, None for the keys."""

    signal: int | None = None


class Lost(msgspec.Struct, frozen=True):
    """The connection ended before the session did: the job was paused, or it is gone."""


class Asks(msgspec.Struct, frozen=True):
    """A process of the job asks something, and waits."""


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """How to show a session. ``raw``: our terminal becomes its terminal; ``input``: standard input goes to it."""

    raw: bool = False
    input: bool = False
    keys: bytes = terminal.DETACH_KEYS
    remark: Callable[[str], None]
    """takes a remark for people, such as what the first Ctrl-C did"""


class _Left(BaseException):
    """The user left while a write waited."""

    def __init__(self, ending: Exit | Detached | Lost | Asks) -> None:
        self.ending = ending


class Relay:
    """Shows a session until it ends or the user leaves, over one connection after the other where a pause comes
    between. The terminal and the signal handlers are put back after each."""

    def __init__(self, show: Callable[[SessionEvent], None], wishes: Wishes) -> None:
        self._show = show
        self._wishes = wishes
        self._input = _Input(wishes.keys if wishes.raw else b"")
        self._forwarded = False
        self._showing = False
        self._unsaid = ""
        """a remark for when nothing is being shown"""

    def run(self, connection: Connection, questions: Connection | None = None) -> Exit | Detached | Lost | Asks:
        """``questions``: a connection that hears of them; the first one ends this."""
        self._connection = connection
        self._exit: Exit | None = None
        self._ending: Exit | Detached | Lost | Asks | None = None
        with contextlib.ExitStack() as stack:
            numbers = RAW_SIGNALS if self._wishes.raw else PLAIN_SIGNALS
            self._caught = stack.enter_context(terminal.caught(numbers, self._heard))
            self._poll = stack.enter_context(selectors.PollSelector())
            if self._wishes.raw:
                stack.enter_context(terminal.raw(0))
                connection.resize(*terminal.size(0))
            self._poll.register(self._caught, selectors.EVENT_READ, lambda _: self._signals())
            self._poll.register(connection, selectors.EVENT_READ, self._exchange)
            if questions is not None:
                self._poll.register(questions, selectors.EVENT_READ, lambda _: self._asked(questions))
            if self._wishes.input:
                self._go_on()
            try:
                return self._loop()
            except _Left as left:
                return left.ending

    def _asked(self, questions: Connection) -> None:
        if questions.asked() is None:
            self._poll.unregister(questions)
        else:
            self._ending = Asks()

    def _loop(self) -> Exit | Detached | Lost | Asks:
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
            self._ending = self._exit if self._exit and not self._connection.runs() else Lost()
        elif isinstance(event, Exit):
            self._exit = event  # it counts when nothing comes after it
        else:
            self._exit = None
            self._showing = True
            self._heard()  # what came just before
            self._show(event)
            self._showing = False
            self._remark()

    def _go_on(self) -> None:
        """Input as it was left when the last connection was lost."""
        if self._input.go_on(self._connection.taken):
            self._connection.feed()
        self._want_input()

    def _want_input(self) -> None:
        """Standard input is read only while the session's connection took all that was read before."""
        if self._input.waiting:
            self._poll.modify(self._connection, selectors.EVENT_READ | selectors.EVENT_WRITE, self._exchange)
        elif self._input.ended:
            self._connection.close_input()
        else:
            self._poll.register(0, selectors.EVENT_READ, lambda _: self._read())

    def _read(self) -> None:
        if self._input.take(_typed()):
            self._ending = Detached()
        elif self._input.waiting or self._input.ended:
            self._poll.unregister(0)
            self._want_input()

    def _send(self) -> None:
        chunk = self._input.waiting[:CHUNK]
        self._poll.modify(self._connection, selectors.EVENT_READ, self._exchange)
        if self._connection.send(chunk):
            self._input.sent(len(chunk))
            self._want_input()

    def _heard(self) -> None:
        """A signal, at any moment."""
        if self._showing:
            self._signals()
            if self._ending is not None:
                self._showing = False
                raise _Left(self._ending)

    def _signals(self) -> None:
        try:
            numbers = os.read(self._caught, 64)
        except BlockingIOError:  # they were heard while something was shown
            return
        for number in numbers:
            if self._wishes.raw:
                self._raw_signal(number)
            else:
                self._plain_signal(number)
        if not self._showing:
            self._remark()

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
        self._unsaid = f"sent {signal.Signals(number).name} to the session; the next one detaches"

    def _remark(self) -> None:
        if self._unsaid:
            self._wishes.remark(self._unsaid)
            self._unsaid = ""


class _Input:
    """What the user typed, on its way to the session. What a pipe doesn't take before a pause is lost with the
    connection, so the last that was sent is kept, to be sent again."""

    def __init__(self, keys: bytes) -> None:
        self._keys = terminal.DetachKeys(keys)
        self.waiting = b""
        """to be sent"""
        self.ended = False
        """standard input is at its end"""
        self._kept = bytearray()
        self._sent = 0
        """bytes since the session began, of which ``_kept`` are the last"""
        self._begun = False

    def go_on(self, taken: int | None) -> bool:
        """Begin, or begin again with what the session hadn't ``taken``; whether input was fed to a pipe before."""
        again, self._begun = self._begun, True
        if taken is None:
            self._kept.clear()  # a terminal takes what was sent; a session that was started again takes nothing more
        elif again:
            lost = self._sent - taken
            if not 0 <= lost <= len(self._kept):
                raise ProtocolError(f"the session says it took {taken} bytes of input, {self._sent} were sent")
            self.waiting = bytes(self._kept[len(self._kept) - lost :]) + self.waiting
            del self._kept[len(self._kept) - lost :]
        self._sent = taken or 0
        return again and taken is not None

    def take(self, typed: bytes) -> bool:
        """Whether the user leaves. Nothing typed: standard input is at its end."""
        self.ended = not typed
        self.waiting, leave = self._keys.feed(typed) if typed else (b"", False)
        return leave

    def sent(self, size: int) -> None:
        self._kept += self.waiting[:size]
        self.waiting = self.waiting[size:]
        self._sent += size
        del self._kept[:-INPUT_MAX]


def _typed() -> bytes:
    try:
        return os.read(0, CHUNK)
    except OSError as error:
        if error.errno == errno.EIO:  # the terminal hung up
            return b""
        raise from_os(error, "read standard input") from error
