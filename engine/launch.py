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
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from engine import steps
from engine.errors import HostLacks, InvalidInput, LaunchFailed, NoSpace, SeracError, Timeout, ToolMissing
from engine.model import Value

Records = Sequence[tuple[str, str]]

IO_INSIDE = "/run/serac"
"""where a job finds its io directory"""

_REPORT_MAX = 64 << 10


class LaunchSpec(Value, frozen=True, kw_only=True):
    """Everything that a job's first process is born with; the fields are the keys of native/protocol.h."""

    cgroup: str
    stage: str
    trees: tuple[tuple[str, str], ...]
    lowers: tuple[str, ...]
    upper: str | None = None
    work: str | None = None
    overlay: tuple[str, ...] = ()
    cgroup1: tuple[str, ...] = ()
    range: tuple[int, int] | None = None
    """first host id and count; None = the host's user namespace"""
    binds: tuple[tuple[str, str], ...] = ()
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


@functools.cache
def program(name: str) -> Path:
    """The path of ``serac-launch`` or ``serac-init``, which lie in the package. Raises ToolMissing."""
    path = importlib.resources.files("engine") / "bin" / name
    if not isinstance(path, Path) or not os.access(path, os.X_OK):
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
        init = _opened(stack, program("serac-init"))
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


def mount_image(meta: Path, blob: Path, target: Path, *, timeout: float) -> None:
    """Mount an EROFS image read-only on ``target`` in the namespace of this process, without a loop device."""
    records = [("meta", os.fspath(meta)), ("blob", os.fspath(blob)), ("target", os.fspath(target))]
    with _started("mount", []) as process:
        _watch(process, _encode(records), deadline=time.monotonic() + timeout)


def unmount(target: Path, *, timeout: float) -> None:
    with _started("unmount", []) as process:
        _watch(process, _encode([("target", os.fspath(target))]), deadline=time.monotonic() + timeout)


def _records(spec: LaunchSpec) -> Iterator[tuple[str, str]]:
    yield from [("cgroup", spec.cgroup), ("stage", spec.stage), ("net", spec.net)]
    if spec.range is not None:
        yield "range", f"{spec.range[0]}:{spec.range[1]}"
    yield from (("tree", f"{name}={path}") for name, path in spec.trees)
    yield from (("bind", f"{tree}={target}") for tree, target in spec.binds)
    yield from (("write", f"{path}={content}") for path, content in spec.writes)
    for key, values in (
        ("cgroup1", spec.cgroup1),
        ("lower", spec.lowers),
        ("overlay", spec.overlay),
        ("rlimit", spec.rlimits),
        ("allow", spec.allow),
        ("arg", spec.args),
    ):
        yield from ((key, value) for value in values)
    for key in ("upper", "work", "address", "gateway", "hostname", "listen", "stdin", "stdout", "stderr"):
        value = getattr(spec, key)
        if value is not None:
            yield key, str(value)


def _encode(records: Records) -> bytes:
    text = b"serac-launch=1\0"
    for key, value in records:
        if "\0" in value:
            raise InvalidInput(f"{key} holds a NUL byte")
        text += f"{key}={value}".encode(errors="surrogateescape") + b"\0"
    return text


def _opened(stack: contextlib.ExitStack, path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


@contextlib.contextmanager
def _started(verb: str, descriptors: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """serac-launch; killed and reaped at the end if it still runs."""
    command = [os.fspath(program("serac-launch")), verb]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=descriptors
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
    """Hand the spec over and follow the report to its end; the pid, or 0 where there is none."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # its report says why it didn't read on
        process.stdin.write(spec)
    seen: dict[str, str] = {}
    for key, value in _report(process.stdout.fileno(), deadline):
        seen[key] = value
        if key == "took":
            name, _, micros = value.partition(":")
            steps.add(f"launch.{name}", int(micros) / 1000)
        elif key == "pid" and network is not None and go is not None:
            network(int(value))
            os.write(go, b"g")
    process.wait()
    if "ready" not in seen:
        raise _failure(seen, process.returncode)
    return int(seen.get("pid", "0"))


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
}
"""What to do about a step that failed with an errno that speaks of the host."""

_OF_THE_HOST = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV, errno.EPERM, errno.EROFS, errno.ENOTBLK}


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
