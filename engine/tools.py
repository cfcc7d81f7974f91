"""The one door for programs that aren't serac's own: which one is used and why, and how it is run.

``find`` looks in ``$SERAC_TOOLS``, in ``/usr/local/lib/serac/bin`` (where ``scripts/setup`` puts programs that are
newer than the distribution's) and in ``PATH``, and takes the first that is new enough. ``run`` starts a program without
a shell, in a session of its own, with a small environment and bounded output; whatever ends the wait, nothing of the
program's process group survives it, and the program itself doesn't survive serac.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from engine.errors import NoSpace, Timeout, ToolFailed, ToolMissing, from_os

SETUP_BIN = Path("/usr/local/lib/serac/bin")
STDOUT_MAX = 16 << 20
STDERR_KEPT = 64 << 10
TICK = 0.2
"""seconds between two calls of ``run``'s ``tick``"""

# A kill of ours between the fork and this call is missed: such a program runs to its end.
_DIES_WITH_US = ("/usr/bin/setpriv", "--pdeathsig", "KILL", "--")
_FIXED_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED_ON = re.compile(r"(?i)(https?|ftp|all|no)_proxy|SSL_CERT_(FILE|DIR)|HOME|TMPDIR|SERAC_TOOLS")


class Program(NamedTuple):
    """What serac knows about a program that it drives."""

    package: str
    """the Debian package that has it"""
    oldest: tuple[int, ...] = ()
    """the oldest version that works, () = any"""


PROGRAMS = {
    "criu": Program("criu", (4, 1, 1)),
    "mmdebstrap": Program("mmdebstrap"),
    "umoci": Program("umoci"),
    "nft": Program("nftables"),
    "tar": Program("tar"),
    "cp": Program("coreutils"),
    "apt-get": Program("apt"),
    "apt-config": Program("apt"),
    "find": Program("findutils"),
    "du": Program("coreutils"),
    "gzip": Program("gzip"),
    "bzip2": Program("bzip2"),
    "xz": Program("xz-utils"),
    "zstd": Program("zstd"),
    "lz4": Program("lz4"),
}


class Tool(NamedTuple):
    """A program that was chosen."""

    path: Path
    version: str
    """as it says itself; empty where nothing depends on it"""
    origin: str
    """``SERAC_TOOLS``, ``setup`` or ``PATH``"""
    why: str
    """for people: why this one, and what was passed over"""


class CompletedOutput(NamedTuple):
    stdout: bytes
    stderr: bytes
    """its last ``STDERR_KEPT`` bytes"""


def find(name: str) -> Tool:
    """The program to use for ``name``. Raises ToolMissing, with the remedy, when none is new enough."""
    program = PROGRAMS.get(name, Program(name))
    passed: list[str] = []
    for path, origin in _candidates(name):
        version = (_kept_version(path, program) or version_of(path)) if program.oldest else ""
        if _numbers(version) >= program.oldest:
            return Tool(path, version, origin, "; ".join([_reason(origin, program), *passed]))
        passed.append(f"passed over {path}: {version or 'no version'} is older than {_dotted(program.oldest)}")
    what = passed[0].removeprefix("passed over ") if passed else "it is not installed"
    remedy = f"run scripts/setup, or install {_dotted(program.oldest)} or newer" if program.oldest else "install it"
    raise ToolMissing(f"{name}: {what}", hint=f"{remedy} (Debian package {program.package})")


def _kept_version(path: Path, program: Program) -> str:
    """What ``scripts/setup`` has written down of its own programs, for it takes longer to ask them."""
    if path.parent != SETUP_BIN:
        return ""
    with contextlib.suppress(FileNotFoundError):
        for line in (SETUP_BIN.parent / "versions").read_text().splitlines():
            package, _, version = line.partition(" ")
            if package == program.package:
                return version.partition("-")[0]
    return ""


def _reason(origin: str, program: Program) -> str:
    wanted = f", {_dotted(program.oldest)} or newer" if program.oldest else ""
    return {"SERAC_TOOLS": "named by SERAC_TOOLS", "setup": "put there by scripts/setup"}.get(
        origin, "first in PATH"
    ) + wanted


def _candidates(name: str) -> Iterator[tuple[Path, str]]:
    """Executable files of that name in the order of preference."""
    places = [(os.environ.get("SERAC_TOOLS", ""), "SERAC_TOOLS"), (os.fspath(SETUP_BIN), "setup")]
    places += [(entry, "PATH") for entry in _search_path().split(":")]
    for directory, origin in places:
        path = Path(directory, name)
        if os.path.isabs(directory) and path.is_file() and os.access(path, os.X_OK):
            yield path, origin


def _search_path() -> str:
    """PATH and the directories of system programs, which an ordinary account's PATH lacks."""
    return ":".join(dict.fromkeys([*os.environ.get("PATH", "").split(":"), *_FIXED_PATH.split(":")])).strip(":")


def version_of(path: Path) -> str:
    """The version that a program prints for ``--version``, such as ``1.9.4``; empty if it prints none."""
    status = path.stat()
    return _version_of(path, status.st_ino, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _version_of(path: Path, _inode: int, _mtime: int) -> str:
    try:
        output = run([path, "--version"], timeout=30)
    except (ToolFailed, Timeout):
        return ""
    match = re.search(rb"\b\d+(\.\d+)+", output.stdout + output.stderr)
    return match[0].decode() if match else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a program gets to see of ours: proxies, certificates, home; messages in plain English, times in UTC."""
    kept = {key: value for key, value in os.environ.items() if _PASSED_ON.fullmatch(key)}
    return {**kept, "PATH": _search_path(), "LC_ALL": "C.UTF-8", "TZ": "UTC", **(extra or {})}


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    data: bytes = b"",
    stdin: int | None = None,
    timeout: float | None = None,
    pass_fds: Sequence[int] = (),
    stdout_max: int = STDOUT_MAX,
    accept: Sequence[int] = (0,),
    tick: Callable[[], None] | None = None,
) -> CompletedOutput:
    """Run a program to its end. ``argv[0]`` is a path, or a name that ``find`` knows.

    ``env`` is added to ``environment()``; ``data`` goes to standard input, which is the descriptor ``stdin`` instead
    where one is given; ``timeout`` is in seconds; ``accept`` are good exit statuses; ``tick`` is called every
    ``TICK`` seconds while it runs. Raises ToolMissing, ToolFailed (with the last telling lines, also when it writes
    more than ``stdout_max`` bytes), NoSpace and Timeout.
    """
    command = [os.fspath(argument) for argument in argv]
    program = command[0] if "/" in command[0] else os.fspath(find(command[0]).path)
    name = os.path.basename(command[0])
    if not os.access(program, os.X_OK):
        raise ToolMissing(f"{name}: there is no program {program}")
    with _started(
        name, [*_DIES_WITH_US, program, *command[1:]], cwd=cwd, env=environment(env), stdin=stdin, pass_fds=pass_fds
    ) as process:
        exchange = _Exchange(name, process, data, stdout_max)
        exchange.until_end(None if timeout is None else time.monotonic() + timeout, tick)
    output = CompletedOutput(bytes(exchange.stdout), bytes(exchange.stderr))
    if process.returncode not in accept:
        raise _failure(name, process.returncode, output)
    return output


def disk_usage(tree: Path) -> int:
    """Bytes that a tree takes, holes not counted. du(1) knows no depth that is too deep."""
    return int(run(["du", "--summarize", "--block-size=1", "."], cwd=tree).stdout.split()[0])


@contextlib.contextmanager
def _started(
    name: str, command: list[str], *, cwd: Path | None, env: dict[str, str], stdin: int | None, pass_fds: Sequence[int]
) -> Iterator[subprocess.Popen[bytes]]:
    """The program in a session of its own; at the end its whole process group is dead and it is reaped."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=pipe if stdin is None else stdin,
            stdout=pipe,
            stderr=pipe,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise ToolMissing(f"{name} can't be started: {error}", hint="install it (Debian package util-linux)") from error
    except OSError as error:
        raise from_os(error, f"start {name}") from error
    try:
        yield process
    finally:
        # It isn't reaped yet, so the group's number is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


class _Exchange:
    """Feeds and drains a program's pipes until the program itself ends, whoever else still holds them."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], data: bytes, stdout_max: int) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.name, self.process, self.stdout_max = name, process, stdout_max
        self.data = memoryview(data)
        self.stdout, self.stderr = bytearray(), bytearray()
        self.stdin, self.out, self.err = process.stdin, process.stdout.fileno(), process.stderr.fileno()

    def until_end(self, deadline: float | None, tick: Callable[[], None] | None) -> None:
        with _pidfd(self.process.pid) as ended, selectors.DefaultSelector() as selector:
            for fd in (self.out, self.err):
                os.set_blocking(fd, False)
            for fd in (self.out, self.err, ended):
                selector.register(fd, selectors.EVENT_READ)
            if self.stdin:
                os.set_blocking(self.stdin.fileno(), False)
                selector.register(self.stdin, selectors.EVENT_WRITE)
            while True:
                ready = {key.fd for key, _ in selector.select(self._wait(deadline, tick))}
                self._exchange(ready, selector)
                if ended in ready:
                    return self._rest(selector)
                if tick:
                    tick()

    def _wait(self, deadline: float | None, tick: Callable[[], None] | None) -> float | None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise Timeout(f"{self.name} took too long and was ended")
        return left if tick is None else min(TICK, TICK if left is None else left)

    def _exchange(self, ready: set[int], selector: selectors.BaseSelector) -> None:
        if self.stdin and self.stdin.fileno() in ready:
            self._feed(self.stdin, selector)
        for fd in ready & {self.out, self.err}:
            if self._drain(fd) == b"":
                selector.unregister(fd)

    def _feed(self, stdin: IO[bytes], selector: selectors.BaseSelector) -> None:
        try:
            self.data = self.data[os.write(stdin.fileno(), self.data[: 64 << 10]) :] if self.data else self.data
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.data = self.data[:0]
        if not self.data:
            selector.unregister(stdin)
            stdin.close()
            self.stdin = None

    def _drain(self, fd: int) -> bytes | None:
        """Read once: b"" at the end of file, None when there is nothing now."""
        try:
            piece = os.read(fd, 64 << 10)
        except BlockingIOError:
            return None
        if fd == self.err:
            self.stderr += piece
            del self.stderr[:-STDERR_KEPT]
            return piece
        self.stdout += piece
        if len(self.stdout) > self.stdout_max:
            raise ToolFailed(f"{self.name} wrote more than {self.stdout_max} bytes and was ended")
        return piece

    def _rest(self, selector: selectors.BaseSelector) -> None:
        for fd in {self.out, self.err} & set(selector.get_map()):
            while self._drain(fd):
                pass


def _failure(name: str, status: int, output: CompletedOutput) -> ToolFailed | NoSpace:
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}"
    text = output.stderr.strip() or output.stdout[-STDERR_KEPT:].strip()
    message = f"{name} {how}: {telling(text)}" if text else f"{name} {how}"
    if b"no space left on device" in text.lower():  # programs in Go say it like that
        return NoSpace(message)
    return ToolFailed(message)


def telling(text: bytes, *, lines: int = 3) -> str:
    """The last lines that say something about an error, else just the last ones, as one line."""
    every = [line.strip() for line in text.decode(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in every if re.search(r"(?i)\berror\b|\bfatal\b|cannot|can't|failed|^E:", line)]
    return " | ".join(line[:300] for line in (errors or every)[-lines:])
