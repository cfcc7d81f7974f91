"""criu, started for one dump or restore of a job: its view, its socket, its cache, its log, its end.

What criu found out about the kernel is kept in the run directory, for one boot. criu itself would keep it in /run, and
only where that is a tmpfs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine import checkpoint, launch, store, tools
from engine.errors import Busy, Timeout
from engine.kernel import process, procfs
from engine.launch import CriuSlot
from engine.launch_spec import Birth, CriuBirth, View
from engine.lifecycle.root import Root
from engine.model import Job

_PIDFILE = "criu.pid"
_GLANCE = 0.005
"""seconds between two looks whether criu has ended"""


class Begun:
    """A criu that starts while its caller plans."""

    def __init__(self, slot: CriuSlot, socket: socket.socket) -> None:
        self.slot = slot
        self.socket = socket
        self.last: tuple[launch.Criu, float] | None = None
        """when it has said how it went: it, and how long it may take to its end, in seconds"""


class Talk(NamedTuple):
    """A criu that waits for its request."""

    criu: launch.Criu
    conversation: checkpoint.Conversation
    images: int
    work: int
    """descriptors, ours: of the image's directory, and of the one for its log"""


@contextlib.contextmanager
def begun(root: Root, job: Job, birth: Birth, *, dumps: bool = False, lazily: bool = False) -> Iterator[Begun]:
    """A criu for one restore, or one dump. When the block ends so has criu, and undoes what it was in the middle of. In
    a dump it doesn't die with this engine: see `settle`.

    ``lazily``: its processes may make userfaultfds."""
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.callback(ours.close)
        if dumps:
            stack.callback(_gone, root, job)
        with theirs:
            kept = [ours.fileno()] if dumps else []
            own = CriuBirth(
                **msgspec.structs.asdict(birth),
                program=os.fspath(tools.find("criu").path),
                args=("swrk", str(theirs.fileno())),
                kdat=os.fspath(_cache(root)),
                preload=os.fspath(launch.program("serac-userfaultfd.so")) if lazily else None,
                pidfile=(ours.fileno(), os.fspath(_pidfile(root, job))) if dumps else None,
            )
            slot = stack.enter_context(CriuSlot(own, descriptors=[theirs.fileno(), *kept]))
        begun = Begun(slot, ours)
        yield begun
        if begun.last is not None:
            criu, patience = begun.last
            with contextlib.suppress(Timeout):  # one that doesn't end then is killed
                criu.wait(patience)


@contextlib.contextmanager
def started(root: Root, begun: Begun, view: View, images: Path, *, work: Path, patience: float) -> Iterator[Talk]:
    """Show criu its ``view``, and speak with it. ``work``: where it leaves its log. ``patience``: how many seconds it
    may be silent."""
    with contextlib.ExitStack() as stack:
        directories = [_opened(path, stack) for path in (images, work)]
        criu = begun.slot.launch(view, timeout=root.timeout)
        pidfd = stack.enter_context(criu.opened())
        conversation = stack.enter_context(checkpoint.Conversation(begun.socket, patience=patience, pidfd=pidfd))
        yield Talk(criu, conversation, *directories)
        begun.last = criu, patience


def _opened(directory: Path, stack: contextlib.ExitStack) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def keep_cache(root: Root, talk: Talk) -> None:
    """Keep what criu found out about the kernel. It knows once it has come to its first notification."""
    cache = _cache(root)
    if not cache.exists():
        with contextlib.suppress(OSError):  # then the next one has to find out again
            store.write_aside(cache, Path(f"/proc/{talk.criu.pid}/root/run/criu.kdat").read_bytes())


def _cache(root: Root) -> Path:
    return root.config.run / f"criu-{process.boot_id()}.kdat"


def explained(log: Path) -> checkpoint.Obstacle:
    """Why a dump or restore was refused, from criu's log."""
    try:
        return checkpoint.explain(log.read_text(errors="replace"))
    except FileNotFoundError:
        return checkpoint.explain("")


def settle(root: Root, job: Job, *, committed: bool) -> None:
    """Let a criu whose engine died come to its end: it goes through with the dump, or undoes it. The caller holds the
    job's lock. Raises Busy while it is still at work."""
    path = _pidfile(root, job)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not _ended(fd):
            _speak(fd, committed=committed)
            _await(fd, path, patience=root.timeout)
    finally:
        os.close(fd)
    path.unlink(missing_ok=True)


def _gone(root: Root, job: Job) -> None:
    """Kill a criu that outlives its launcher, which was killed. While it holds the lock the number is its own."""
    path = _pidfile(root, job)
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            words = os.pread(fd, 64, 0).split()  # none yet: it dies with its launcher
            if words and not _ended(fd):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(words[0]), signal.SIGKILL)
            _await(fd, path, patience=root.timeout)
        finally:
            os.close(fd)
        path.unlink(missing_ok=True)


def _await(fd: int, path: Path, *, patience: float) -> None:
    """Wait until criu has ended. Raises Busy. Processes that it had made, which wait for a word of it for ever when it
    was killed, are killed too: the lock is theirs as well."""
    deadline = time.monotonic() + patience
    while not _ended(fd):
        words, file = os.pread(fd, 64, 0).split(), os.fstat(fd)
        if not words or not _has_open(int(words[0]), file):
            for pid in _strangers(file):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= deadline:
            raise Busy(f"{path.name} is in use by another engine")
        time.sleep(_GLANCE)


def _strangers(file: os.stat_result) -> Iterator[int]:
    """Processes that have a pid file open, but for this one and what it is about to execute."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _has_open(int(name), file):
            with contextlib.suppress(OSError):
                if procfs.status(int(name)).get("PPid") != str(os.getpid()):
                    yield int(name)


def _has_open(pid: int, file: os.stat_result) -> bool:
    with contextlib.suppress(OSError):  # it ends, or a descriptor is closed
        for number, link in procfs.descriptors(pid).items():
            if _PIDFILE in link and os.path.samestat(os.stat(procfs.descriptor(pid, number)), file):
                return True
    return False


def _ended(fd: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _speak(fd: int, *, committed: bool) -> None:
    words = os.pread(fd, 64, 0).split()
    if not words:  # it dies with its launcher
        return
    pid, number = map(int, words)
    with (
        contextlib.suppress(ProcessLookupError),
        process.opened(pid) as pidfd,
        socket.socket(fileno=process.descriptor(pidfd, number)) as ours,
    ):
        checkpoint.settle(ours, agreed=committed)


def _pidfile(root: Root, job: Job) -> Path:
    return root.run_job(job.id) / _PIDFILE
