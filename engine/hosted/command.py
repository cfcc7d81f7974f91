"""A command in a session: started once, read to its end, killed when it takes too long.

The command bears its request's id in its environment, `COOKIE`. By that a second call finds it in the specs that init
keeps and reads it from its first byte on, be it running or ended; and by that a timeout finds what has left the
command's process group. Starting is done under the job's lock, so that two calls of one request start it once, and
none starts it in the middle of a pause. A job can write its specs itself and so fool those who ask about itself."""

from __future__ import annotations

import collections
import contextlib
import select
import signal
import time
from collections.abc import Callable

import msgspec

from engine import cgroup, session
from engine.engine import Engine
from engine.errors import InvalidInput, NotFound, Paused, SeracError, Timeout, WrongState
from engine.hosted.results import CommandResult, failed
from engine.kernel import process, procfs
from engine.lifecycle import processes, recover
from engine.model import JobState, SessionSpec
from engine.session import Connection, Exit, Output, SessionEvent

COOKIE = "SERAC_REQUEST"
OUTPUT_MAX = 1 << 20
"""bytes of output that a result has; a command may write any amount"""
GRACE = 10.0
"""seconds that a killed command may take to end"""
KILL_ROUNDS = 16
"""how often what a command started is looked for, for it may go on to start more while it is killed"""


def execute(
    engine: Engine, job_id: str, spec: SessionSpec, *, request: str, named: bool, timeout: float
) -> CommandResult:
    """``named``: the id is the caller's, so that the command may have been started before. Raises nothing of ours."""
    spec = _with_cookie(spec, request)
    output = _Tail()
    try:
        number, connection, begun = _begin(engine, job_id, spec, request=request, named=named, timeout=timeout)
        # From here on: by init's clock too the command has then taken that long when it is killed.
        patience = _Patience(timeout, lambda: _kill(engine, job_id, number, request))
        end = _read(engine, job_id, number, connection, output, patience)
    except SeracError as error:
        return output.shown(failed(CommandResult, request, error))
    late = patience.over or (begun and _lasted(engine, job_id, number) >= timeout)
    killed = late and end.signal == signal.SIGKILL  # else it ended by itself at the last moment
    return output.shown(_told(end, request, timeout if killed else None))


def _told(end: Exit, request: str, timeout: float | None) -> CommandResult:
    """``timeout``: the one that it was killed for."""
    status = 128 + end.signal if end.signal is not None else end.exit
    if timeout is not None:
        late = Timeout(f"the command took more than {timeout:g} seconds and was killed", hint="raise timeout")
        return failed(CommandResult, request, late, exit_code=status)
    said = "" if status == 0 else f"the command ended with status {status}"
    return CommandResult(success=status == 0, request_id=request, error_message=said, exit_code=status)


def _with_cookie(spec: SessionSpec, request: str) -> SessionSpec:
    return SessionSpec(argv=spec.argv, workdir=spec.workdir, env={**spec.env, COOKIE: request})


def _begin(
    engine: Engine, job_id: str, spec: SessionSpec, *, request: str, named: bool, timeout: float
) -> tuple[int, Connection | None, bool]:
    """The command's number, a connection to it unless it has ended, and whether it had been started before. A pause or
    resume that is under way is waited for."""
    io = engine._root.io(job_id)
    with recover.taken(engine._root, job_id, timeout=timeout) as job:
        specs = session.specs(io).items() if named else ()
        found = [(number, each) for number, each in specs if each.env.get(COOKIE) == request]
        if not found and job.state is JobState.PAUSED:
            raise Paused("the session is paused", hint="resume it first")
        if not found:
            connection = engine.exec(job_id, spec)
            return connection.session, connection, False
    number, started = found[0]
    if started.argv != spec.argv:
        raise InvalidInput(f"request {request} has run another command", hint="give each request an id of its own")
    status = session.status(io, number)
    ended = status is not None and not status.running
    return number, None if ended else _again(engine, job_id, number, session.START), True


def _read(
    engine: Engine, job_id: str, number: int, connection: Connection | None, output: _Tail, patience: _Patience
) -> Exit:
    """To its end. A pause that fails, or a snapshot of the running job, is passed over; raises Paused after another."""
    at = session.START
    while connection is not None:
        with connection:
            while (event := _next(connection, patience)) is not None:
                if (end := output.add(event)) is not None:
                    return end
                at = event.end
        connection = _again(engine, job_id, number, at)
    for event in engine.follow(job_id, number, offset=at):
        if (end := output.add(event)) is not None:
            return end
    raise WrongState("the session ended before the command did", hint="`serac show ID` says how")


def _again(engine: Engine, job_id: str, number: int, at: int) -> Connection | None:
    """A new connection; None when the command has ended, and its log has the rest. Raises Paused."""
    try:
        return engine.attach(job_id, number, offset=at)
    except Paused as error:
        again = "resume it, and call again with the same request id to go on"
        raise Paused("the session was paused while the command ran", hint=again) from error
    except (NotFound, WrongState):
        return None


class _Patience:
    """How long a command may take: after ``timeout`` seconds it is killed, and has `GRACE` to end."""

    def __init__(self, timeout: float, kill: Callable[[], None]) -> None:
        self._deadline = time.monotonic() + timeout
        self._kill = kill
        self.over = False

    def left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def end(self) -> None:
        if self.over:
            raise Timeout(f"the command was killed and didn't end within {GRACE:g} seconds")
        self.over = True
        self._deadline = time.monotonic() + GRACE
        self._kill()


def _next(connection: Connection, patience: _Patience) -> SessionEvent | None:
    ready = select.poll()
    ready.register(connection, select.POLLIN)
    while not patience.left() or not ready.poll(patience.left() * 1000):
        patience.end()
    return connection.receive()


def _kill(engine: Engine, job_id: str, number: int, request: str) -> None:
    """The command's process group, and whatever bears its cookie in the environment that it was started with."""
    root = engine._root
    with contextlib.suppress(NotFound, WrongState), processes.connected(root, job_id) as connection:
        connection.signal(signal.SIGKILL, session=number)
    group = root.group_of(root.catalog.job_with(job_id))
    mark = f"{COOKIE}={request}".encode()
    for _ in range(KILL_ROUNDS):
        killed = [pid for pid in cgroup.pids(group) if _killed(pid, mark)]
        if not killed:
            return


def _killed(pid: int, mark: bytes) -> bool:
    """Whether it was one of those."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError), process.opened(pid) as pidfd:
        if mark in procfs.read(f"/proc/{pid}/environ").split(b"\0"):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return True
    return False


def _lasted(engine: Engine, job_id: str, number: int) -> float:
    status = session.status(engine._root.io(job_id), number)
    if status is None or status.started is None or status.ended is None:
        return 0.0
    return status.ended - status.started


class _Tail:
    """The last `OUTPUT_MAX` bytes of what a command prints."""

    def __init__(self) -> None:
        self._pieces: collections.deque[tuple[int, bytes]] = collections.deque()
        self._size = 0
        self._truncated = False

    def add(self, event: SessionEvent) -> Exit | None:
        """The command's end, if it is that."""
        if isinstance(event, Exit):
            return event
        if isinstance(event, Output):
            self._pieces.append((event.stream, event.data))
            self._size += len(event.data)
            self._cut()
        return None

    def _cut(self) -> None:
        while self._size > OUTPUT_MAX:
            stream, oldest = self._pieces.popleft()
            rest = oldest[self._size - OUTPUT_MAX :]
            self._size -= len(oldest) - len(rest)
            self._truncated = True
            if rest:
                self._pieces.appendleft((stream, rest))

    def shown(self, result: CommandResult) -> CommandResult:
        """The result with it."""
        streams = {number: b"".join(data for stream, data in self._pieces if stream == number) for number in (1, 2)}
        return msgspec.structs.replace(
            result,
            truncated=self._truncated,
            output_bytes=b"".join(data for _, data in self._pieces),
            stdout_bytes=streams[1],
            stderr_bytes=streams[2],
        )
