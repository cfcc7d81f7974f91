"""A connection to a job's init."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.errors import (
    InvalidInput,
    NotFound,
    ProtocolError,
    Timeout,
    WrongState,
    from_os,
)
from engine.model import Outcome, SessionSpec, SessionStatus
from engine.session import files
from engine.session.protocol import (
    CHUNK_MAX,
    HEAD,
    MESSAGE_MAX,
    VERSION,
    Message,
    SessionEvent,
    Type,
    closing,
    decode_records,
    decode_status,
    encode_answer,
    encode_spec,
    event,
    number,
)
from engine.session.refusal import Refused, error_of, start_error

START = 0
"""from the oldest byte that is kept"""
LIVE = (1 << 64) - 1
"""only what comes"""
TAIL = (1 << 64) - 2
"""the last 64 KiB"""

INPUT_MAX = 4 * MESSAGE_MAX + CHUNK_MAX
"""bytes of input that were sent and not taken yet, at most: the kernel doubles the room that is asked for"""

SO_SNDBUFFORCE = 32
"""asm-generic/socket.h; the socket module doesn't have it"""
SESSIONS_MAX = 1024
LIST_END = (1 << 32) - 1
SIGNAL_PATIENCE = 1.0
"""seconds that a signal's answer is waited for, which a job that stands still gives when it goes on"""


def connect(io: Path, *, timeout: float) -> Connection:
    """Connect to the init that serves ``io``. ``timeout``, in seconds, holds for each request on the connection too.

    Raises WrongState when there is none, Timeout, Busy, ProtocolError.
    """
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(reach(io, timeout=timeout))
        connection.greet()
        stack.pop_all()
        return connection


def reach(io: Path, *, timeout: float) -> Connection:
    """The same, but init, which may just be starting, has not been heard yet: `Connection.greet` comes first."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        _enlarge(sock)
        _reach(sock, io / "init.sock", timeout)
        stack.pop_all()
        return Connection(sock, io, timeout)


def _enlarge(sock: socket.socket) -> None:
    """Make room for the longest M_START in one packet; without the right to, a long one is refused when it is sent."""
    size = 2 * MESSAGE_MAX
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def _reach(sock: socket.socket, path: Path, timeout: float) -> None:
    """Connect by the socket's own inode, so that no link that the job made is followed. A full queue is waited for."""
    _limit(sock, max(timeout, 0.001))
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise ProtocolError(f"{path} is not a socket")
            sock.connect(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        _limit(sock, 0)  # it would be one for what is sent, too
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise WrongState("the job has no init that could be asked: it doesn't run") from error
    except BlockingIOError as error:
        raise Timeout("the job's init took no connection in time") from error
    except OSError as error:
        raise from_os(error, "connect to the job's init") from error


def _limit(sock: socket.socket, timeout: float) -> None:
    """How long connect(2) waits where the queue is full, for at most; 0: for ever."""
    seconds, fraction = divmod(timeout, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(fraction * 1e6)))


class Connection:
    """A connection to init: control, until ``start(attach=True)`` or ``attach`` make it a view of one session.

    ``session`` and ``tty`` say which, and whether it has a terminal; ``offset`` is where in its log the view begins;
    ``taken`` how many bytes of input it had taken before, from all who fed it, None when it can't be fed through a
    pipe. Not for several threads at once.
    """

    def __init__(self, sock: socket.socket, io: Path, timeout: float) -> None:
        self._socket = sock
        self._io = io
        self._timeout = timeout
        self.session = -1
        self.tty = False
        self.offset = 0
        self.taken: int | None = None

    def greet(self) -> None:
        """Wait for init's first word. Raises WrongState, Timeout, Busy, ProtocolError."""
        hello = self._answer(Type.HELLO)
        if hello.session != VERSION:
            raise ProtocolError(
                f"the job's init speaks version {hello.session} of the protocol, this serac {VERSION}",
                hint="use the serac that started the job, or `serac stop JOB`",
            )

    def start(
        self,
        spec: SessionSpec,
        *,
        attach: bool = False,
        stdin: bool = False,
        lend: tuple[int, int, int] | None = None,
    ) -> SessionStatus:
        """Start a session; ``attach``: and stay with it from its first byte on; ``stdin``: and feed its input;
        ``lend``: descriptors that become its standard files (with ``attach``, for a command that leaves no log).

        Raises CommandNotFound, CommandNotExecutable, BadPath (its directory), InvalidInput, WrongState, Busy,
        LaunchFailed; then no session is left.
        """
        self._send(Message(type=Type.START, payload=encode_spec(spec, attach=attach, stdin=stdin)), lend or ())
        try:
            reply = self._reply(Type.STARTED)
        except Refused as refusal:
            raise start_error(refusal, spec) from refusal
        if attach:
            self.session, self.tty = reply.session, spec.tty is not None
            self.taken = 0 if stdin and not self.tty else None
        return decode_status(reply.payload + b"running=1\0", reply.session)

    def attach(self, session: int, *, offset: int = START) -> SessionStatus:
        """View a session's output from ``offset`` of its log on, or START, LIVE or TAIL. Raises NotFound.

        A pause closes the connection without an Exit; a new one that begins at the ``end`` of the last event misses
        nothing and has nothing twice. Who fed the session goes on with `feed`."""
        self._send(Message(type=Type.ATTACH, session=session, offset=offset))
        try:
            reply = self._reply(Type.ATTACHED)
        except Refused as refusal:
            if refusal.errno == errno.ESRCH:
                raise NotFound(f"no session {session} runs in the job") from refusal
            raise error_of(refusal) from refusal
        spec = files.spec(self._io, session)
        self.session, self.tty = session, spec is not None and spec.tty is not None
        self.offset = reply.offset
        self.taken = _taken(reply.payload)
        return decode_status(reply.payload, session)

    def events(self) -> Iterator[SessionEvent]:
        """What the session does, as it comes: blocks. Ends with its Exit; without one the connection was lost."""
        return closing(self._events(), self.runs)

    def runs(self) -> bool:
        """Whether the session does although the connection is at its end: its last Exit is of an earlier life then."""
        return files.runs(self._io, self.session)

    def receive(self) -> SessionEvent | None:
        """The next thing that the session does, None at the connection's end. Doesn't block where `fileno` is readable.

        Unlike `events` this gives every Exit; one that isn't the last, or after which the session `runs`, is of an
        earlier life of it."""
        self._socket.settimeout(None)
        message = self._receive()
        if message is None:
            return None
        if message.type == Type.ERROR:
            refusal = Refused(message)
            raise error_of(refusal) from refusal
        if message.session != self.session:
            raise ProtocolError("init sent the output of another session")
        return event(message)

    def send(self, data: bytes) -> int:
        """Input for the session; blocks while it takes none. What an ended session doesn't read is dropped.

        How much was sent: less than all when the connection is lost. Of that a pipe may not take all before a pause,
        a terminal does, unless it is full."""
        for at in range(0, len(data), CHUNK_MAX):
            if not self._post(Message(type=Type.INPUT, payload=data[at : at + CHUNK_MAX])):
                return at
        return len(data)

    def feed(self) -> None:
        """Be who feeds the session from now on: its input ends with this connection."""
        self._post(Message(type=Type.INPUT))

    def close_input(self) -> None:
        """The session's standard input is at its end."""
        self._post(Message(type=Type.INPUT_END))

    def resize(self, rows: int, columns: int) -> None:
        self._send(Message(type=Type.RESIZE, offset=(rows & 0xFFFF) << 32 | (columns & 0xFFFF)))

    def signal(self, signo: int, session: int | None = None) -> None:
        """To the process group of the session: the one viewed, or any by a control connection (raises NotFound).

        That for the one viewed goes by a connection of its own, for on this one it would wait behind input. Raises
        Busy, Timeout; nothing where the session has ended. A frozen job takes it when it is thawed."""
        if self.session < 0:
            self._request(Message(type=Type.SIGNAL, session=session or 0, stream=signo), Type.OK)
            return
        with contextlib.suppress(NotFound, WrongState), reach(self._io, timeout=SIGNAL_PATIENCE) as control:
            control._send(Message(type=Type.SIGNAL, session=self.session, stream=signo))
            with contextlib.suppress(Timeout):
                control.greet()
                control._answer(Type.OK)

    def sessions(self) -> list[SessionStatus]:
        """Every session that runs."""
        self._send(Message(type=Type.LIST))
        found: list[SessionStatus] = []
        while (message := self._answer(Type.LISTED)).session != LIST_END:
            if len(found) == SESSIONS_MAX:
                raise ProtocolError("init lists more sessions than there can be")
            found.append(decode_status(message.payload, message.session))
        return found

    def answer(self, outcome: Outcome, *, text: str = "", state: str | None = None, number: int = 0) -> None:
        """Answer the open question (see `raw_question`), and no other than that ``number`` if it isn't 0. ``state`` is
        JSON. Raises NotFound when nobody waits any more."""
        payload = encode_answer(outcome, text=text, state=state)
        self._request(Message(type=Type.ANSWER, offset=number, payload=payload), Type.OK)

    def watch(self) -> None:
        """Hear of the question that is open, and of each that is opened: `asked` gives them, `fileno` tells when.

        Raises ProtocolError where the job's init is one that doesn't know how."""
        try:
            self._send(Message(type=Type.WATCH))
            self._reply(Type.OK)
        except Refused as refusal:
            raise ProtocolError("the job's init can't say when something asks", hint="update serac") from refusal

    def asked(self) -> int | None:
        """The number of the next question, None at the connection's end. Blocks."""
        self._socket.settimeout(None)
        message = self._receive()
        if message is not None and message.type != Type.ASK:
            raise ProtocolError(f"init sent a message of type {message.type} in place of a question")
        return None if message is None else message.offset

    def quiesce(self) -> None:
        """Close every connection to init but those of processes that wait for an answer, this one last. Sessions with
        lent files have ended then, and no process of the job holds what a client brought along."""
        self._request(Message(type=Type.QUIESCE), Type.OK)
        while self._receive() is not None:
            pass  # its end comes when init has closed it
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Detach; the session goes on. Input that it was fed through this connection is at its end."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _events(self) -> Iterator[SessionEvent]:
        while (each := self.receive()) is not None:
            yield each

    def _request(self, message: Message, expected: Type) -> None:
        self._send(message)
        self._answer(expected)

    def _answer(self, expected: Type) -> Message:
        """The same as `_reply` where a refusal means nothing special."""
        try:
            return self._reply(expected)
        except Refused as refusal:
            raise error_of(refusal) from refusal

    def _reply(self, expected: Type) -> Message:
        """Raises Refused for an M_ERROR, WrongState at the end of the connection, Timeout, ProtocolError."""
        self._socket.settimeout(self._timeout)
        message = self._receive()
        if message is None:
            raise WrongState("the job's init closed the connection: the job ends or is being paused")
        if message.type == Type.ERROR:
            raise Refused(message)
        if message.type != expected:
            raise ProtocolError(f"init answered with a message of type {message.type}")
        return message

    def _receive(self) -> Message | None:
        """The next message, None at the end."""
        try:
            packet = self._packet()
        except TimeoutError as error:
            raise Timeout(f"the job's init didn't answer within {self._timeout} seconds") from error
        except OSError as error:
            raise from_os(error, "hear the job's init") from error
        return Message.decode(packet) if packet else None

    def _packet(self) -> bytes:
        try:
            return self._socket.recv(HEAD.size + CHUNK_MAX + 1)
        except ConnectionResetError:
            # Init closed without reading what we sent last; the kernel says that before it gives what init sent.
            return self._socket.recv(HEAD.size + CHUNK_MAX + 1)

    def _send(self, message: Message, lent: Sequence[int] = ()) -> None:
        self._socket.settimeout(self._timeout)
        try:
            socket.send_fds(self._socket, [message.encode()], lent)
        except TimeoutError as error:
            raise Timeout(f"the job's init took no message within {self._timeout} seconds") from error
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise InvalidInput("command, steps and environment are too long for a caller without rights") from error
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                return  # what it sent before it closed says more
            raise from_os(error, "tell the job's init") from error

    def _post(self, message: Message) -> bool:
        """Send without a limit of time. False when nobody hears any more: its Exit comes, or the connection's end."""
        self._socket.settimeout(None)
        try:
            self._socket.send(message.encode())
        except (BrokenPipeError, ConnectionResetError):
            return False
        except OSError as error:
            raise from_os(error, "tell the job's init") from error
        return True


def _taken(payload: bytes) -> int | None:
    taken = dict(decode_records(payload)).get("taken")
    return None if taken is None else number(taken)
