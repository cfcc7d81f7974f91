"""A job's control groups: one in cgroup v2 to freeze, kill and count, and where a limit is asked for one in each v1
hierarchy that has the controller (hybrid hosts), else the limit in v2.

Sources: cgroup-v2.rst (cgroup.freeze, cgroup.events, cgroup.kill), cgroup-v1/memory.rst, sched-bwc.rst.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.errors import HostLacks, InvalidInput, Timeout, from_os
from engine.kernel.mountinfo import mounts
from engine.model import Limits, Value

_PERIOD = 100_000
"""microseconds of a cpu quota's period, the kernel's default"""

_RACES = 20
_LEAVING = 20.0
"""seconds that the last process of a group has to be gone"""
_POLL = 0.005
_GONE = {errno.ENOENT, errno.ENODEV}


class Hierarchies(Value, frozen=True, kw_only=True):
    """Where this host mounts its control groups."""

    unified: str
    controllers: dict[str, str]
    """v1: controller -> mount point; empty on a host that has only v2"""


class Group(Value, frozen=True, kw_only=True):
    """The control groups of one job."""

    path: str
    """in v2"""
    legacy: tuple[str, ...] = ()
    """in v1"""


def hierarchies() -> Hierarchies:
    """Raises HostLacks where cgroup v2 isn't mounted."""
    unified, controllers = None, {}
    for mount in mounts():
        if mount.type == "cgroup2":
            unified = unified or mount.target
        elif mount.type == "cgroup":
            controllers.update(dict.fromkeys(mount.options & {"memory", "cpu", "pids"}, mount.target))
    if unified is None:
        raise HostLacks("cgroup v2 is not mounted", hint="mount -t cgroup2 none /sys/fs/cgroup/unified")
    return Hierarchies(unified=unified, controllers=controllers)


def locate(host: Hierarchies, tag: str, job: str, limits: Limits) -> Group:
    """The groups that a job has or would have; nothing is made. ``tag`` stands for the root."""
    below = f"serac/{tag}/{job}"
    legacy = {host.controllers[name] for name in _wanted(limits) if name in host.controllers}
    return Group(path=f"{host.unified}/{below}", legacy=tuple(sorted(f"{top}/{below}" for top in legacy)))


def everywhere(host: Hierarchies, tag: str, job: str) -> Group:
    """The groups that a job may have left, whatever its limits were."""
    below = f"serac/{tag}/{job}"
    return Group(
        path=f"{host.unified}/{below}", legacy=tuple(f"{top}/{below}" for top in set(host.controllers.values()))
    )


def leftover(host: Hierarchies, tag: str) -> set[str]:
    """Ids of all jobs of a root that have a group anywhere."""
    tops = {host.unified, *host.controllers.values()}
    found: set[str] = set()
    for top in tops:
        with contextlib.suppress(FileNotFoundError):
            found |= {entry.name for entry in os.scandir(f"{top}/serac/{tag}") if entry.is_dir()}
    return found


def create(host: Hierarchies, group: Group, limits: Limits) -> None:
    """Make the groups and set the limits. Raises HostLacks when a controller for a limit is nowhere to be had,
    InvalidInput when the kernel refuses the value."""
    below = [name for name in _wanted(limits) if name not in host.controllers]
    with contextlib.ExitStack() as undo:
        undo.callback(remove, group)
        try:
            _made(functools.partial(_make, Path(group.path), Path(host.unified), below))
            for path in group.legacy:
                _made(functools.partial(Path(path).mkdir, parents=True))
            for name, file, value in _settings(limits, legacy=host.controllers):
                directory = _legacy_path(host, group, name) or group.path
                _write(Path(directory, file), value)
        except FileExistsError as error:
            undo.pop_all()  # it isn't ours
            raise from_os(error, "create control group") from error
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ERANGE, errno.EBUSY):
                raise InvalidInput(f"the kernel refuses the limit: {error}") from error
            raise from_os(error, "create control group") from error
        undo.pop_all()


def freeze(group: Group, *, timeout: float) -> None:
    """Return when every process of the job stands still. Raises Timeout, with the job thawed again."""
    try:
        with _events(group) as events:
            _write(Path(group.path, "cgroup.freeze"), "1")
            if events.wait("frozen 1", timeout):
                return
            _write(Path(group.path, "cgroup.freeze"), "0")
    except OSError as error:
        raise from_os(error, "freeze") from error
    raise Timeout(f"the job did not freeze within {timeout:g} s", hint="a process is stuck in the kernel (state D)")


def thaw(group: Group) -> None:
    try:
        _write(Path(group.path, "cgroup.freeze"), "0")
    except OSError as error:
        raise from_os(error, "thaw") from error


def kill(group: Group, *, timeout: float) -> None:
    """Kill every process, frozen ones too, and return when none is left. Nothing happens without a group."""
    try:
        with _events(group) as events:
            _write(Path(group.path, "cgroup.kill"), "1")
            if events.wait("populated 0", timeout):
                return
    except OSError as error:
        if error.errno in _GONE:
            return
        raise from_os(error, "kill") from error
    raise Timeout(f"processes of the job survive SIGKILL for {timeout:g} s", hint="they are stuck in the kernel")


def populated(group: Group) -> bool:
    return "populated 1" in _read(Path(group.path, "cgroup.events"))


def standing(group: Group) -> bool:
    """Whether the job was told to stand still."""
    return _read(Path(group.path, "cgroup.freeze")).strip() == "1"


def pids(group: Group) -> list[int]:
    """The job's processes, as this process sees them."""
    return [int(line) for line in _read(Path(group.path, "cgroup.procs")).split()]


def cpu_seconds(group: Group) -> float:
    """CPU time that the job's processes have used since the group was made. cgroup v2 counts it with no controller too,
    and of processes that have ended."""
    lines = dict(line.split() for line in _read(Path(group.path, "cpu.stat")).splitlines())
    return int(lines.get("usage_usec", "0")) / 1e6


def _read(path: Path) -> str:
    """Empty where the group is gone, which may happen between opening the file and reading it."""
    try:
        return path.read_text()
    except OSError as error:
        if error.errno in _GONE:
            return ""
        raise from_os(error, "look at control group") from error


def remove(group: Group) -> None:
    """Remove the groups, and the directories above them that are empty then."""
    for path in (*group.legacy, group.path):
        _rmdir(Path(path))
        for parent in (Path(path).parent, Path(path).parent.parent):
            with contextlib.suppress(OSError):  # other jobs are still in it
                parent.rmdir()


def _rmdir(path: Path) -> None:
    """A launcher that was killed may still be moving a process in, as far as the kernel is: it has to go first."""
    deadline = time.monotonic() + _LEAVING
    while True:
        try:
            return path.rmdir()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise from_os(error, "remove control group") from error
        time.sleep(_POLL)


def _wanted(limits: Limits) -> list[str]:
    present = {"memory": limits.memory, "cpu": limits.cpus, "pids": limits.pids}
    return [name for name, value in present.items() if value is not None]


def _settings(limits: Limits, *, legacy: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Controller, file and value of each limit, in v1's words for the controllers that are there."""
    if limits.memory is not None:
        yield "memory", "memory.limit_in_bytes" if "memory" in legacy else "memory.max", str(limits.memory)
    if limits.pids is not None:
        yield "pids", "pids.max", str(limits.pids)
    if limits.cpus is not None:
        quota = round(limits.cpus * _PERIOD)
        if "cpu" in legacy:
            yield "cpu", "cpu.cfs_period_us", str(_PERIOD)
            yield "cpu", "cpu.cfs_quota_us", str(quota)
        else:
            yield "cpu", "cpu.max", f"{quota} {_PERIOD}"


def _legacy_path(host: Hierarchies, group: Group, controller: str) -> str | None:
    top = host.controllers.get(controller)
    return next((path for path in group.legacy if top is not None and path.startswith(top + "/")), None)


def _made(make: Callable[[], None]) -> None:
    """Another engine may remove a parent, empty for a moment, between our making it and using it: try again."""
    for _ in range(_RACES):
        with contextlib.suppress(FileNotFoundError):
            return make()
    return make()


def _make(path: Path, top: Path, controllers: list[str]) -> None:
    """mkdir -p below ``top``, with the controllers handed down on the way."""
    if not controllers:
        path.mkdir(parents=True)
        return
    missing = set(controllers) - set((top / "cgroup.controllers").read_text().split())
    if missing:
        names = " and ".join(sorted(missing))
        raise HostLacks(f"no cgroup hierarchy has the {names} controller", hint=f"boot with cgroup_enable={names}")
    parents = [*reversed(path.relative_to(top).parents)]
    for parent in parents:
        (top / parent).mkdir(exist_ok=True)
        for name in controllers:
            _write(top / parent / "cgroup.subtree_control", f"+{name}")
    path.mkdir()


def _write(path: Path, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


class _Events:
    """cgroup.events, which wakes a poller up (POLLPRI) when it changes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poller = select.poll()
        self._poller.register(fd, select.POLLPRI)

    def wait(self, line: str, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while line not in os.pread(self._fd, 4096, 0).decode().splitlines():
            left = deadline - time.monotonic()
            if left <= 0 or not self._poller.poll(left * 1000):
                return line in os.pread(self._fd, 4096, 0).decode().splitlines()
        return True


@contextlib.contextmanager
def _events(group: Group) -> Iterator[_Events]:
    fd = os.open(Path(group.path, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield _Events(fd)
    finally:
        os.close(fd)
