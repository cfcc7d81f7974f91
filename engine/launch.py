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
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from engine import steps, tools
from engine.errors import HostLacks, InvalidInput, LaunchFailed, NoSpace, SeracError, Timeout, ToolMissing
from engine.model import Value

IO_INSIDE = "/run/serac"
"""where a job finds its io directory"""

_REPORT_MAX = 64 << 10


class ViewSpec(Value, frozen=True, kw_only=True):
    """Where a job's processes are born and what they have for a root; the fields are the keys of native/protocol.h."""

    stage: str
    cgroup: str | None = None
    cgroup1: tuple[str, ...] = ()
    trees: tuple[tuple[str, str], ...] = ()
    lowers: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None
    overlay: tuple[str, ...] = ()
    range: tuple[int, int] | None = None
    """first host id and count; None = the host's user namespace"""
    binds: tuple[tuple[str, str], ...] = ()
    shm: int | None = None
    """bytes of /dev/shm"""


class LaunchSpec(ViewSpec, frozen=True, kw_only=True):
    """Everything that a job's first process is born with."""

    net: str = "private"
    address: str | None = None
    gateway: str | None = None
    hostname: str | None = None
    rlimits: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    writes: tuple[tuple[str, str], ...] = ()
    args: tuple[str, ...] = ()
    listen: str | None = None
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


class CriuSpec(ViewSpec, frozen=True, kw_only=True):
    """How criu is started, and what it sees: the job's root at /run/root."""

    program: str
    args: tuple[str, ...]
    kdat: str | None = None
    """where criu's knowledge of this kernel is kept"""
    preload: str | None = None
    pidfile: tuple[int, str] | None = None
    """given: criu doesn't die with the engine, and keeps this descriptor open; the file tells of both"""


class NetworkSpec(Value, frozen=True, kw_only=True):
    """What is done to a network namespace; the lock and the guests stay until the hold on it ends."""

    lock: bool = True
    """no packet passes but criu's own"""
    guests: tuple[str, ...] = ()
    """addresses on lo, for sockets to be bound to that the namespace has no more"""
    address: str | None = None
    """of eth0, with the prefix's length"""
    gateway: str | None = None
    up: bool = False
    """bring lo up"""
    close: bool = False
    """connections that lead outside end with the hold"""
    hostname: str | None = None
    """a new name of the host, when the hold has ended"""


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


class Criu:
    """A criu that was started, with serac-launch as its parent."""

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
        """Its exit status, 128 + signal when it was killed. Raises Timeout."""
        try:
            return self._launcher.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise Timeout("criu did not end in time") from error

    def kill(self) -> None:
        if self._launcher.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # its parent, not reaped yet, keeps the number from being another's
            self._launcher.wait()


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


def launch(spec: LaunchSpec, *, timeout: float, network: Callable[[int], None] | None = None) -> int:
    """Start a job's init and return its pid. ``network`` is called with the pid while the job waits, to put ``eth0``
    into its namespace. Raises LaunchFailed, HostLacks, Timeout; nothing of the launch is left then."""
    with contextlib.ExitStack() as stack:
        init = os.open(program("serac-init"), os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, init)
        passed = [init, *(fd for fd in (spec.stdin, spec.stdout, spec.stderr) if fd is not None)]
        records = [*_records(spec), ("init", f"{init}:{init_inside()}")]
        go = None
        with contextlib.ExitStack() as theirs:
            if network is not None:
                hold, go = os.pipe()
                stack.callback(os.close, go)
                theirs.callback(os.close, hold)
                records.append(("hold", str(hold)))
                passed.append(hold)
            process = stack.enter_context(_started("run", passed))
        return _watch(process, _encode(records), deadline=time.monotonic() + timeout, network=network, go=go)


@contextlib.contextmanager
def criu(spec: CriuSpec, *, descriptors: Sequence[int], timeout: float) -> Iterator[Criu]:
    """Start criu with ``descriptors`` passed on; at the end it is killed if it still runs. Raises LaunchFailed,
    HostLacks, Timeout."""
    with _started("criu", descriptors) as process:
        pid = _follow(process, _encode(_records(spec)), deadline=time.monotonic() + timeout)
        criu = Criu(pid, process)
        try:
            yield criu
        finally:
            criu.kill()


@contextlib.contextmanager
def network(spec: NetworkSpec, *, namespace: int, uts: int | None = None, timeout: float) -> Iterator[Hold]:
    """Hold the network namespace behind the descriptor ``namespace`` until :meth:`Hold.end`; left without that, what
    the hold keeps is undone and nothing closed. ``uts``: the namespace that gets ``hostname``. ``timeout`` is for each
    end of the hold. Raises LaunchFailed, HostLacks, Timeout; nothing is left in the namespace then."""
    with contextlib.ExitStack() as stack:
        hold, go = (stack.enter_context(io.FileIO(fd, mode)) for fd, mode in zip(os.pipe(), "rw", strict=True))
        records = [*_records(spec), ("net", f"fd:{namespace}"), ("hold", str(hold.fileno()))]
        descriptors = [namespace, hold.fileno()]
        if uts is not None:
            records.append(("uts", f"fd:{uts}"))
            descriptors.append(uts)
        process = stack.enter_context(_started("network", descriptors))
        hold.close()
        held = Hold(process, go, timeout)
        stack.callback(held.leave)
        _follow(process, _encode(records), deadline=time.monotonic() + timeout)
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
    with _started(verb, descriptors) as process:
        _watch(process, _encode(records), deadline=time.monotonic() + timeout)


_PAIRS = {"trees": "tree", "binds": "bind", "writes": "write"}
_LISTS = {
    "cgroup1": "cgroup1",
    "lowers": "lower",
    "overlay": "overlay",
    "rlimits": "rlimit",
    "allow": "allow",
    "args": "arg",
    "guests": "guest",
}
"""Fields that become several records, and their keys; every other field is one record of its own name."""


def _records(spec: ViewSpec | NetworkSpec) -> Iterator[tuple[str, str]]:
    for field in spec.__struct_fields__:
        value = getattr(spec, field)
        if field in _PAIRS:
            yield from ((_PAIRS[field], f"{key}={text}") for key, text in value)
        elif field in _LISTS:
            yield from ((_LISTS[field], text) for text in value)
        elif field in ("range", "pidfile") and value is not None:
            yield field, f"{value[0]}:{value[1]}"
        elif value is True:
            yield field, "1"
        elif value is not None and value is not False:
            yield field, str(value)


def _encode(records: Iterable[tuple[str, str]]) -> bytes:
    text = b"serac-launch=1\0"
    for key, value in records:
        if "\0" in value:
            raise InvalidInput(f"{key} holds a NUL byte")
        text += f"{key}={value}".encode(errors="surrogateescape") + b"\0"
    return text


@contextlib.contextmanager
def _started(verb: str, descriptors: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """serac-launch; killed and reaped at the end if it still runs."""
    with subprocess.Popen(
        [os.fspath(program("serac-launch")), verb],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        pass_fds=descriptors,
        env=tools.environment(),
        umask=0o027,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _watch(
    process: subprocess.Popen[bytes],
    spec: bytes,
    *,
    deadline: float,
    network: Callable[[int], None] | None = None,
    go: int | None = None,
) -> int:
    """Hand the spec over and follow the report to its end, and serac-launch too; the pid, 0 where there is none."""
    pid = _follow(process, spec, deadline=deadline, network=network, go=go)
    process.wait()
    return pid


def _follow(
    process: subprocess.Popen[bytes],
    spec: bytes,
    *,
    deadline: float,
    network: Callable[[int], None] | None = None,
    go: int | None = None,
) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # its report says why it didn't read on
        process.stdin.write(spec)
    seen: dict[str, str] = {}
    for key, value in _report(process.stdout.fileno(), deadline):
        seen[key] = value
        if key == "took":
            _took(value)
        elif key == "pid" and network is not None and go is not None:
            network(int(value))
            os.write(go, b"g")
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
