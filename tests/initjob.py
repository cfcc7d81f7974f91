"""A real serac-init as PID 1 of a pid namespace of its own, without the rest of a job, and ways to look at it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine import session
from engine.model import SessionSpec
from engine.session import Exit, Output, SessionEvent

TIMEOUT = 30.0
PATH = {"PATH": os.environ["PATH"]}
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
"""of linux/ptrace.h"""


@dataclass(frozen=True)
class InitJob:
    io: Path
    process: subprocess.Popen[bytes]
    pid: int
    """of init, on the host"""

    def connect(self) -> session.Connection:
        return session.connect(self.io, timeout=TIMEOUT)

    def raw(self) -> socket.socket:
        """A bare connection, its greeting unread."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(TIMEOUT)
        sock.connect(os.fspath(self.io / "init.sock"))
        return sock

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Init's exit status, once it has ended by itself."""
        return self.process.wait(TIMEOUT)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def children(self) -> dict[int, str]:
        """Host pid -> name of init's children."""
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        found = {}
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
        return found

    def holders(self) -> list[int]:
        return [pid for pid, name in self.children().items() if name == "serac-terminal"]


def pause() -> None:
    """Between two looks at what has no descriptor to wait for."""
    select.select([], [], [], 0.005)


@contextlib.contextmanager
def held_back(pid: int) -> Iterator[None]:
    """A process stands still, whoever sends it SIGCONT. Killed meanwhile, it is gone at the end."""
    _ptrace(PTRACE_SEIZE, pid)
    _ptrace(PTRACE_INTERRUPT, pid)
    os.waitpid(pid, 0)
    try:
        yield
    finally:
        try:
            _ptrace(PTRACE_DETACH, pid)
        except ProcessLookupError:
            os.waitpid(pid, 0)  # before that its parent doesn't hear of its end


def _ptrace(request: int, pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in whatever the main thread waits for."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"not done in {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def build(directory: Path, *flags: str) -> Path:
    """The sanitized program with other compiler flags."""
    source = Path(__file__).resolve().parents[1] / "native"
    options = ["-DSERAC_SANITIZE=ON", f"-DCMAKE_C_FLAGS={' '.join(flags)}"]
    for command in (
        ["cmake", "-S", os.fspath(source), "-B", os.fspath(directory), "-G", "Ninja", *options],
        ["cmake", "--build", os.fspath(directory), "--target", "serac-init"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return directory / "serac-init"


@contextlib.contextmanager
def started(program: Path, io: Path | None = None) -> Iterator[InitJob]:
    """Start init on the directory ``io`` (default: a fresh one, removed at the end); kill it when the test is done."""
    with contextlib.ExitStack() as stack:
        if io is None:
            io = Path(tempfile.mkdtemp(prefix="serac-init-"))
            io.chmod(0o755)
            stack.callback(shutil.rmtree, io)
        (io / "init.sock").unlink(missing_ok=True)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.fspath(io / "init.sock"))
        (io / "init.sock").chmod(0o666)
        listener.listen(128)
        process = _run(program, listener)
        listener.close()
        stack.callback(_end, process)
        yield InitJob(io, process, _init(process, program))


def _run(program: Path, listener: socket.socket) -> subprocess.Popen[bytes]:
    number = listener.fileno()
    script = f'exec 3<&{number} {number}<&-; exec unshare --pid --fork --kill-child --mount-proc "$0"'
    if number == 3:
        script = 'exec unshare --pid --fork --kill-child --mount-proc "$0"'
    sanitizers = {"ASAN_OPTIONS": "detect_leaks=0:log_to_syslog=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.Popen(
        ["bash", "-c", script, os.fspath(program)],
        pass_fds=[number],
        stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], **sanitizers},
    )


def _init(process: subprocess.Popen[bytes], program: Path) -> int:
    """The host's pid of init: the greeting comes from it, so by then it has been executed."""
    with contextlib.suppress(FileNotFoundError):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None:
            for child in children.read_text().split():
                if os.readlink(f"/proc/{child}/exe") == os.fspath(program.resolve()):
                    return int(child)
            pause()  # bash and unshare execute one after the other
    raise AssertionError(f"init didn't start: {process.poll()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
    process.wait(TIMEOUT)


def shell(script: str, **fields: object) -> SessionSpec:
    return SessionSpec(argv=("/bin/sh", "-c", script), env=PATH, **fields)  # type: ignore[arg-type]


def output(events: Iterable[SessionEvent], stream: int = 1) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Output) and event.stream == stream)


def run(job: InitJob, spec: SessionSpec) -> list[SessionEvent]:
    with job.connect() as connection:
        connection.start(spec, attach=True)
        return list(connection.events())


def until(events: Iterator[SessionEvent], wanted: bytes) -> bytes:
    """Read on until the bytes have come; what came with them."""
    seen = b""
    for event in events:
        if isinstance(event, Output):
            seen += event.data
        if wanted in seen:
            return seen
    raise AssertionError(f"ended without {wanted!r}: {seen!r}")


def ending(events: list[SessionEvent]) -> tuple[int | None, int | None]:
    assert isinstance(events[-1], Exit)
    return events[-1].exit, events[-1].signal


def fifo(job: InitJob) -> str:
    path = job.io / "gate"
    if not path.exists():
        os.mkfifo(path)
    return os.fspath(path)


def settle(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if condition():
            return
        pause()
    raise AssertionError("it doesn't settle")


def wait_exit(job: InitJob, number: int) -> list[SessionEvent]:
    """What the log says once it ends with the session's end, which a terminal's holder writes when it comes to it."""
    found: list[SessionEvent] = []

    def whole() -> bool:
        found[:] = session.read_log(job.io, number)
        return bool(found) and isinstance(found[-1], Exit)

    with job.connect() as control:
        while any(status.id == number for status in control.sessions()):
            pause()
    settle(whole)
    return found
