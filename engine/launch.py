"""Driving serac-launch, the one program that makes namespaces and mounts: a spec in, a report out.

The form of both is written down in native/protocol.h. What serac-launch reports as step + errno + path becomes an
error with a remedy here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.resources
import io
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from engine import steps, tools
from engine.errors import HostLacks, LaunchFailed, NoSpace, SeracError, Timeout, ToolMissing
from engine.kernel import cpu
from engine.launch_spec import CriuBirth, JobBirth, JobView, NetworkSpec, View, encoded, record, records_of

IO_INSIDE = "/run/serac"
"""where a job finds its io directory"""

_REPORT_MAX = 64 << 10


class Hold:
    """A network namespace that is being held; see :func:`network`."""

    def __init__(self, process: subprocess.Popen[bytes], go: io.FileIO, timeout: float) -> None:
        self._process = process
        self._go = go
        self._timeout = timeout

    def end(self) -> int:
        """Once: end it, and return how many connections were closed. Raises LaunchFailed, HostLacks, Timeout; the
        namespace is let go then as well, at the latest when the context is left."""
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its report says why it is gone
            self._go.write(b"g")
        seen: dict[str, str] = {}
        for key, value in _report(self._process.stdout.fileno(), time.monotonic() + self._timeout):
            seen[key] = value
            if key == "took":
                _took(value)
            elif key == "closed":
                return int(value)
        raise _failure(seen, self._process.wait())

    def leave(self) -> None:
        """Give up what was not ended; harmless afterwards."""
        self._go.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it will be killed
            self._process.wait(self._timeout)


class Slot:
    """A serac-launch that has the head of its spec: it makes what needs no layers, and waits for the body (`go`). A
    context that ends it, and with it what it started, unless that was let go; nothing is left then.

    It dies with the thread that started it (PR_SET_PDEATHSIG)."""

    def __init__(self, verb: str, head: Iterable[tuple[str, str]], descriptors: Sequence[int]) -> None:
        self._process = _popen(verb, descriptors)
        # At once: who is woken from waiting gets the CPU of who wakes him, and that one goes on for a while.
        _give(self._process, encoded(head) + b"\0", whole=False)
        cpu.part_with(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def waits(self) -> bool:
        return self._process.poll() is None

    def await_begun(self, *, timeout: float) -> None:
        """Wait until all is there that it makes ahead; it isn't needed before `go`. Raises as that."""
        assert self._process.stdout is not None
        seen: dict[str, str] = {}
        for key, value in _report(self._process.stdout.fileno(), time.monotonic() + timeout):
            seen[key] = value
            if key == "begun":
                return
        raise _failure(seen, self._process.wait())

    def go(self, view: View, *, deadline: float, report: Callable[[int], None] | None = None) -> int:
        """Hand the body over, and return the pid of what was started once it runs; ``report`` is called with it as soon
        as it is known. Raises LaunchFailed, HostLacks, NoSpace, Timeout."""
        _give(self._process, b"".join(record(*pair) for pair in records_of(view)), whole=True)
        return _followed(self._process, deadline=deadline, report=report)

    def close(self) -> None:
        _end(self._process)


class JobSlot(Slot):
    """For a job's first process. ``hold``: it waits while its network is put in. ``descriptors`` are passed on."""

    def __init__(self, birth: JobBirth, *, hold: bool = False, descriptors: Sequence[int] = ()) -> None:
        self._gate: io.FileIO | None = None
        with contextlib.ExitStack() as passed, contextlib.ExitStack() as undo:
            init = passed.enter_context(io.FileIO(program("serac-init"))).fileno()
            head = [*records_of(birth), ("init", f"{init}:{init_inside()}")]
            descriptors = [init, *descriptors]
            if hold:
                theirs, gate = (io.FileIO(fd, mode) for fd, mode in zip(os.pipe(), "rw", strict=True))
                passed.enter_context(theirs)
                self._gate = undo.enter_context(gate)
                head.append(("hold", str(theirs.fileno())))
                descriptors.append(theirs.fileno())
            super().__init__("run", head, descriptors)
            undo.pop_all()

    def launch(self, view: JobView, *, timeout: float, report: Callable[[int], None] | None = None) -> int:
        """Start the job's init and return its pid. ``report`` is called with the pid when it has its root; while the
        job is held, to put ``eth0`` into its namespace. Raises as `go`."""

        def reported(pid: int) -> None:
            if report is not None:
                report(pid)
            if self._gate is not None:
                self._gate.write(b"g")

        return self.go(view, deadline=time.monotonic() + timeout, report=reported)

    def close(self) -> None:
        if self._gate is not None:
            self._gate.close()
        super().close()


class CriuSlot(Slot):
    """For a criu, which starts with the head, and which serac-launch stays the parent of. ``descriptors`` are passed
    on."""

    def __init__(self, birth: CriuBirth, *, descriptors: Sequence[int]) -> None:
        super().__init__("criu", records_of(birth), descriptors)

    def launch(self, view: View, *, timeout: float) -> Criu:
        """Let it see the job's root. Raises as `go`."""
        return Criu(self.go(view, deadline=time.monotonic() + timeout), self._process)


class Criu:
    """A criu that runs; serac-launch is its parent, and ends as it does."""

    def __init__(self, pid: int, launcher: subprocess.Popen[bytes]) -> None:
        self.pid = pid
        self._launcher = launcher

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A pidfd of it; of its parent, which ends as it does, when it is gone already."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            pidfd = os.pidfd_open(self._launcher.pid)
        try:
            yield pidfd
        finally:
            os.close(pidfd)

    def wait(self, timeout: float) -> int:
        """Its exit status, 128 + signal when it was killed; ``timeout`` in seconds. Raises Timeout."""
        pidfd = os.pidfd_open(self._launcher.pid)
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            if not poller.poll(timeout * 1000):
                raise Timeout("criu did not end in time")
        finally:
            os.close(pidfd)
        return self._launcher.wait()


@functools.cache
def program(name: str) -> Path:
    """The path of ``serac-launch`` or ``serac-init``, which lie in the package. Raises ToolMissing."""
    path = importlib.resources.files("engine") / "bin" / name
    if not isinstance(path, Path) or not os.access(path, os.R_OK if path.suffix else os.X_OK):
        raise ToolMissing(f"{name} is not built", hint="run scripts/setup, or `pip install` serac again")
    return path


@functools.cache
def init_inside() -> str:
    """Where a job keeps the init that it runs: named by its content, so that a job's own one is never replaced."""
    digest = hashlib.sha256(program("serac-init").read_bytes()).hexdigest()
    return f"/.serac/init-{digest[:16]}"


@contextlib.contextmanager
def network(spec: NetworkSpec, *, namespace: int, uts: int | None = None, timeout: float) -> Iterator[Hold]:
    """Hold the network namespace behind the descriptor ``namespace`` until :meth:`Hold.end`; left without that, what
    the hold keeps is undone and nothing closed. ``uts``: the namespace that gets ``hostname``. ``timeout`` is for each
    end of the hold. Raises LaunchFailed, HostLacks, Timeout; nothing is left in the namespace then."""
    with contextlib.ExitStack() as stack:
        hold, go = (stack.enter_context(io.FileIO(fd, mode)) for fd, mode in zip(os.pipe(), "rw", strict=True))
        records = [*records_of(spec), ("net", f"fd:{namespace}"), ("hold", str(hold.fileno()))]
        descriptors = [namespace, hold.fileno()]
        if uts is not None:
            records.append(("uts", f"fd:{uts}"))
            descriptors.append(uts)
        process = stack.enter_context(_started("network", descriptors, records))
        hold.close()
        held = Hold(process, go, timeout)
        stack.callback(held.leave)
        _followed(process, deadline=time.monotonic() + timeout)
        yield held


def pages(group: str, descriptors: Mapping[str, int], *, timeout: float) -> None:
    """Start what brings memory in, which outlives this process: native/protocol.h. Raises LaunchFailed, Timeout."""
    records = [("cgroup", group), *((name, str(fd)) for name, fd in descriptors.items())]
    _do("pages", records, descriptors=list(descriptors.values()), timeout=timeout)


def mount_images(images: Sequence[tuple[Path, Path, Path]], *, timeout: float) -> None:
    """Mount EROFS images (metadata, blob, where) read-only, one after the other; those before one that fails stay."""
    pairs = ((("meta", meta), ("blob", blob), ("target", target)) for meta, blob, target in images)
    _do("mount", [(key, os.fspath(path)) for image in pairs for key, path in image], timeout=timeout)


def unmount(target: Path, *, detach: bool = False, timeout: float) -> None:
    """``detach``: what is open there stays until it is closed."""
    _do("unmount", [("target", os.fspath(target)), *([("detach", "1")] if detach else [])], timeout=timeout)


def _do(verb: str, records: Iterable[tuple[str, str]], *, descriptors: Sequence[int] = (), timeout: float) -> None:
    with _started(verb, descriptors, records) as process:
        _followed(process, deadline=time.monotonic() + timeout)
        process.wait()


def _popen(verb: str, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [os.fspath(program("serac-launch")), verb],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        pass_fds=descriptors,
        env=tools.environment() if verb == "criu" else {},
        umask=0o027,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Killed if it still runs, and reaped."""
    with process:
        if process.poll() is None:
            process.kill()


@contextlib.contextmanager
def _started(
    verb: str, descriptors: Sequence[int], records: Iterable[tuple[str, str]]
) -> Iterator[subprocess.Popen[bytes]]:
    """serac-launch with a whole spec; ended with the block."""
    process = _popen(verb, descriptors)
    try:
        _give(process, encoded(records), whole=True)
        yield process
    finally:
        _end(process)


def _give(process: subprocess.Popen[bytes], spec: bytes, *, whole: bool) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its report says why it doesn't read on
        process.stdin.write(spec)
        if whole:
            process.stdin.close()


def _followed(process: subprocess.Popen[bytes], *, deadline: float, report: Callable[[int], None] | None = None) -> int:
    """Follow the report until all is ready; the pid, 0 where there is none, which ``report`` is called with as soon as
    it is known."""
    assert process.stdout is not None
    seen: dict[str, str] = {}
    for key, value in _report(process.stdout.fileno(), deadline):
        seen[key] = value
        if key == "took":
            _took(value)
        elif key == "pid" and report is not None:
            report(int(value))
        elif key == "ready":
            return int(seen.get("pid", "0"))
    raise _failure(seen, process.wait())


def _took(value: str) -> None:
    name, _, micros = value.partition(":")
    steps.add(f"launch.{name}", int(micros) / 1000)


def _report(fd: int, deadline: float) -> Iterator[tuple[str, str]]:
    buffer, size = b"", 0
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise Timeout("serac-launch did not finish in time")
        chunk = os.read(fd, 4096)
        size += len(chunk)
        if not chunk or size > _REPORT_MAX:
            return
        *lines, buffer = (buffer + chunk).split(b"\0")
        for line in lines:
            key, _, value = line.decode(errors="surrogateescape").partition("=")
            yield key, value


_REMEDIES = {
    "userns": "raise /proc/sys/user/max_user_namespaces, or use --userns host",
    "trees": "the layers' filesystem must support idmapped mounts (ext4, xfs, btrfs, EROFS); or --userns host",
    "overlay": "the root must be on ext4, xfs or btrfs, and the kernel needs CONFIG_OVERLAY_FS",
    "clone": "raise /proc/sys/user/max_*_namespaces, or the pids limit of the engine's own control group",
    "mount": "an image is mounted from its file: Linux 6.12 or newer with CONFIG_EROFS_FS_BACKED_BY_FILE",
    "lock": "the kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET, Linux 5.12 or newer; or it is locked already",
    "close": "the kernel needs CONFIG_INET_TCP_DIAG and CONFIG_INET_DIAG_DESTROY",
}
"""What to do about a step that failed with an errno that speaks of the host."""

_OF_THE_HOST = {
    *(errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV, errno.EPERM, errno.EROFS, errno.ENOTBLK),
    errno.EPROTONOSUPPORT,
}


def _failure(seen: dict[str, str], status: int) -> SeracError:
    if "step" not in seen:
        return LaunchFailed("start", errno.ECHILD, f"serac-launch ended with status {status}")
    step, code, path = seen["step"], int(seen.get("errno", "0")), seen.get("path", "")
    failed = LaunchFailed(step, code, path, hint=_REMEDIES.get(step))
    if code in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(str(failed))
    if step in _REMEDIES and code in _OF_THE_HOST:
        return HostLacks(str(failed), hint=_REMEDIES[step])
    return failed
