"""Speaking with ``criu swrk``: one protobuf message a packet on a SOCK_SEQPACKET socket (criu's images/rpc.proto).

A request is answered by a response; on the way criu tells where it is (a notification, named as its action scripts
are: ``pre-dump``, ``post-dump``, ``setup-namespaces``, ``pre-resume`` ...) and waits for an answer to each.

The encoding is protobuf's own (varints and length-delimited fields), which is all that these messages have.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

from engine.errors import Timeout

DUMP, RESTORE, _NOTIFY = 1, 2, 6
"""criu_req_type"""

MESSAGE_MAX = 1 << 20

_OPTIONS = {
    "images_dir_fd": 1,
    "pid": 2,
    "tcp_established": 5,
    "file_locks": 8,
    "log_level": 9,
    "log_file": 10,
    "notify_scripts": 12,
    "root": 13,
    "work_dir_fd": 17,
    "link_remap": 18,
    "force_irmap": 21,
    "manage_cgroups": 24,
    "manage_cgroups_mode": 34,
    "ghost_limit": 35,
    "irmap_scan_paths": 36,
    "external": 37,
    "empty_ns": 38,
    "freeze_cgroup": 44,
    "timeout": 45,
    "tcp_skip_in_flight": 46,
    "lazy_pages": 48,
    "tcp_close": 52,
    "network_lock": 64,
}
"""criu_opts: name -> field number"""

Option = bool | int | str | Sequence[str]
Fields = Mapping[int, int | bytes]


class CriuGone(Exception):
    """criu went away, or said what its protocol doesn't allow."""


class Refused(Exception):
    """criu could not do what it was asked for, and has undone its work."""


class Conversation:
    """One request to one criu, followed from notification to notification.

    with Conversation(sock, patience=60) as criu:
        criu.ask(DUMP, options)
        criu.until("post-dump")     # criu waits, the processes stand
        ...                         # what raises here makes criu undo its work
        criu.finish()

    ``patience`` is in seconds: how long criu may be silent; ``pidfd``: of criu, for what it restores has its end of the
    socket too. Every wait raises Refused, CriuGone or Timeout."""

    def __init__(self, sock: socket.socket, *, patience: float, pidfd: int | None = None) -> None:
        self._sock = sock
        self._patience = patience
        self._pidfd = pidfd
        self._agreed = False
        """what criu is told that waits for an answer when the conversation is left"""
        self._told = False
        """whether criu waits for the answer to a notification"""

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(CriuGone, Refused, Timeout):
            if self._told:
                self._answer(agreed=self._agreed)
                self._rest()
        with contextlib.suppress(OSError):  # it hears so that nobody is there any more
            self._sock.shutdown(socket.SHUT_RDWR)

    def ask(self, kind: int, options: Mapping[str, Option]) -> None:
        self._send(_field(1, kind) + _field(2, _encoded(options)))

    def until(self, name: str) -> int:
        """Go on until criu comes to the notification ``name``; the pid that comes with it, or 0."""
        while (told := self._next()) is not None:
            if told.get(1) == name.encode():
                pid = told.get(2, 0)
                return pid if isinstance(pid, int) else 0
        raise CriuGone(f"criu never came to {name}")

    def agree(self) -> None:
        """From here on criu goes through with its work, also when the conversation is left in the middle."""
        self._agreed = True

    def finish(self) -> None:
        """Go on to the end."""
        self._rest()

    def _rest(self) -> None:
        while self._next() is not None:
            pass

    def _next(self) -> Fields | None:
        """The next notification, after the last one was agreed to; None when criu has succeeded."""
        if self._told:
            self._answer(agreed=True)
        answer = self._receive()
        if answer.get(1) == _NOTIFY:
            self._told = True
            notification = answer.get(5)
            return decoded(notification) if isinstance(notification, bytes) else {}
        if not answer.get(2):
            raise Refused
        return None

    def _answer(self, *, agreed: bool) -> None:
        self._told = False
        self._send(_field(1, _NOTIFY) + _field(3, agreed))

    def _send(self, message: bytes) -> None:
        try:
            self._sock.send(message)
        except OSError as error:
            raise CriuGone("criu has ended") from error

    def _receive(self) -> Fields:
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        if self._pidfd is not None:
            poller.register(self._pidfd, select.POLLIN)
        ready = dict(poller.poll(self._patience * 1000))
        if not ready:
            raise Timeout(f"criu said nothing for {self._patience:g} s")
        if self._sock.fileno() not in ready:
            raise CriuGone("criu has ended")
        try:
            message = self._sock.recv(MESSAGE_MAX)
        except OSError as error:
            raise CriuGone("criu has ended") from error
        if not message:
            raise CriuGone("criu has ended")
        return decoded(message)


def settle(sock: socket.socket, *, agreed: bool) -> None:
    """Say the word that a criu waits for whose engine died: go through with it, or, as to a closed socket, give up."""
    try:
        if agreed:
            sock.send(_field(1, _NOTIFY) + _field(3, True))
        else:
            sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended


def _encoded(options: Mapping[str, Option]) -> bytes:
    return b"".join(_option(_OPTIONS[name], value) for name, value in options.items())


def _option(number: int, value: Option) -> bytes:
    if isinstance(value, (str, int)):
        return _field(number, value.encode() if isinstance(value, str) else value)
    return b"".join(_field(number, text.encode()) for text in value)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def decoded(message: bytes) -> Fields:
    """The fields of a message by number; of a repeated one the last. Raises CriuGone when it is none."""
    try:
        return dict(_fields(message))
    except IndexError as error:
        raise CriuGone("criu sent half a message") from error


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        key, at = read_varint(message, at)
        value, at = read_varint(message, at)
        if key & 7 == 0:
            yield key >> 3, value
        elif key & 7 == 2 and at + value <= len(message):
            yield key >> 3, message[at : at + value]
            at += value
        else:
            raise CriuGone("criu sent what is no message")


def read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it. Raises IndexError."""
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at
