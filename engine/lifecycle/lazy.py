"""lazy: a job goes on before its memory is there; a part of `engine.lifecycle.resume` and of a fork.

criu leaves out the memory that can come later. ``serac-launch pages`` brings it in: what a process touches at once, and
all the rest while it runs. It is two processes in a control group of their own, which outlive the engine and end when
all is in or nobody needs it any more. The image's files are open in them.

Until then the job can't be dumped, so that a pause waits. What must never happen is that missing memory reads as zeros,
as it does once nobody holds its userfaultfd: whichever of the two dies, the other holds all until it has killed the job
and seen it gone. The job is ``failed`` then, and can be resumed from its snapshot once more, which for that reason a
lazy resume doesn't use up: it is stacked. When the pages are in, the snapshot goes if an eager resume had taken it.

| killed | leaves | put right by |
| --- | --- | --- |
| the engine, before all is handed over | nothing: criu dies with it, the two give up | recover, as for any resume |
| the engine, after that | a job that runs, its pages come | who takes the job next drops the snapshot |
| one of the two | the other has killed the job and said why | the next look: ``failed`` |
| both before one of them could act | a job that may read zeros | the next look kills it: ``failed`` |
| between the last page and the next look | a snapshot that is used up | who takes the job next |

How it stands is told by ``pages`` in the job's run directory: locked (flock) by the two as long as they live; then the
last word, ``done`` or ``failed: REASON``, or nothing where neither could say it.

Not shared any more after a lazy resume are the pages that a process and its child had in common since a fork.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import msgspec

from engine import cgroup, launch, layers, store
from engine.errors import CannotRestore, HostLacks, InvalidInput, NotFound, WrongState, from_os
from engine.kernel import userfaultfd
from engine.lifecycle.root import Root
from engine.model import Job, Limits, Loading, Memory, Snapshot
from engine.steps import step

WORTH = 256 << 20
"""bytes of memory from which on ``auto`` is lazy: an eager resume takes a quarter of a second more then, and a lazy one
costs a layer of the chain"""

DEPTH = 32
"""layers of a chain from which on ``auto`` is eager: every lazy resume makes it longer"""

_TASKS = "lazy-pages.socket"
"""criu's own name, in its working directory"""
_DOOR = "pages.door"
"""in the job's io directory, as in native/userfaultfd.c"""


class Choice(NamedTuple):
    memory: Literal["eager", "lazy"] | None
    """None where no memory comes back"""
    why: str | None = None
    """why ``auto`` isn't lazy"""

    @property
    def lazy(self) -> bool:
        return self.memory == "lazy"


def choose(snapshot: Snapshot, memory: Memory, *, back: bool) -> Choice:
    """``back``: whether processes come back. Raises InvalidInput for what makes no sense, and HostLacks where ``lazy``
    can't be had."""
    if memory not in get_args(Memory):
        raise InvalidInput(f"no way {memory!r} to bring memory back", hint="auto, eager or lazy")
    if not back:
        if memory == "lazy":
            raise InvalidInput("no memory comes back, so that it can't come lazily")
        return Choice(None)
    if memory == "eager":
        return Choice("eager")
    lacking = userfaultfd.lacking(private=snapshot.spec.userns == "private")
    if memory == "lazy":
        if lacking:
            raise HostLacks(f"no lazy resume: {lacking}", hint="sysctl vm.unprivileged_userfaultfd=1, or --eager")
        return Choice("lazy")
    size = snapshot.image.memory if snapshot.image is not None else 0
    if size < WORTH:
        return Choice("eager", f"less than {WORTH >> 20} MiB of memory")
    limit = snapshot.spec.limits.memory
    if limit is not None and size > limit:
        return Choice("eager", "without pages in common it would be more than its limit of memory")
    if len(snapshot.layers) >= DEPTH:
        return Choice("eager", f"the chain is {DEPTH} layers deep")
    return Choice("eager", lacking) if lacking else Choice("lazy")


class Pages:
    """Memory that is about to come in."""

    def __init__(self, root: Root, job: Job, hold: socket.socket, names: list[Path]) -> None:
        self._root = root
        self._job = job
        self._hold = hold
        self._names = names

    def ready(self) -> None:
        """Wait until all processes were handed over: from here on they may run. Raises CannotRestore."""
        poller = select.poll()
        poller.register(self._hold, select.POLLIN)
        if not poller.poll(self._root.timeout * 1000):
            raise CannotRestore("the pager said nothing in time", reason="pager")
        if not self._hold.recv(1):
            why = verdict(self._root, self._job) or "no reason given"
            raise CannotRestore(f"memory can't be brought in: {why}", reason="pager", hint="try --eager")
        for name in self._names:  # nothing of the job must find them
            name.unlink()


@contextlib.contextmanager
def served(root: Root, job: Job, images: int) -> Iterator[Pages]:
    """Bring memory in from the image behind the descriptor ``images``. Left before `Pages.ready` it is given up, and
    the job is killed. Raises LaunchFailed, HostLacks, Timeout."""
    work = root.run_job(job.id)
    names = [work / _TASKS, root.io(job.id) / _DOOR]
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.enter_context(ours)
        with contextlib.ExitStack() as given:
            given.enter_context(theirs)
            tasks, door = (given.enter_context(_listening(name)) for name in names)
            for name in names:
                stack.callback(name.unlink, missing_ok=True)
            descriptors = {
                "images": images,
                "tasks": tasks.fileno(),
                "group": _opened(given, root.group_of(job).path, os.O_RDONLY | os.O_DIRECTORY),
                "status": _opened(given, os.fspath(_status(root, job)), os.O_RDWR | os.O_CREAT | os.O_TRUNC),
                "hold": theirs.fileno(),
            }
            if job.spec.userns == "private":
                descriptors["door"] = door.fileno()
            fcntl.flock(descriptors["status"], fcntl.LOCK_EX)  # theirs, as long as they have it open
            launch.pages(_own_group(root, job), descriptors, timeout=root.timeout)
        yield Pages(root, job, ours, names)


def _own_group(root: Root, job: Job) -> str:
    group = root.pages_group(job.id)
    cgroup.create(root.host, group, Limits())
    return group.path


def _listening(name: Path) -> socket.socket:
    """A socket in a directory in which others may have put anything by that name."""
    if name.is_dir() and not name.is_symlink():
        store.remove_tree(name)
    name.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(name.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.bind(f"/proc/self/fd/{directory}/{name.name}")  # however long the way there is
        sock.listen()
    except OSError as error:
        sock.close()
        raise from_os(error, "listen") from error
    finally:
        os.close(directory)
    return sock


def _opened(stack: contextlib.ExitStack, path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    return fd


def _status(root: Root, job: Job) -> Path:
    return root.run_job(job.id) / "pages"


def ended(root: Root, job: Job) -> bool:
    """Whether the pages of a job that was resumed lazily are in, or never will be."""
    try:
        fd = os.open(_status(root, job), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def verdict(root: Root, job: Job) -> str | None:
    """Wait for the pages: None when they are in, else why not. Raises Busy when it takes too long."""
    path = _status(root, job)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return "the host went down"
    try:
        store.flock(fd, fcntl.LOCK_SH, path, patience=root.timeout)
        word, _, why = os.pread(fd, 4096, 0).decode(errors="replace").strip().partition(": ")
    finally:
        os.close(fd)
    return None if word == "done" else why or "what brought it back was killed"


def awaited(root: Root, job: Job) -> Job:
    """The job with all of its memory. Raises Busy when it takes too long, and WrongState when it never comes: the job
    is killed."""
    if job.loading is None:
        return job
    why = verdict(root, job)
    if why is not None:
        cgroup.kill(root.group_of(job), timeout=root.timeout)  # for nobody may have been there to do it
        raise WrongState(f"job {job.name} has failed: its memory could not be brought back: {why}")
    return complete(root, job)


def complete(root: Root, job: Job) -> Job:
    """The pages are in, or not needed any more: the snapshot that an eager resume had used up goes now."""
    if job.loading is None:
        return job
    with root.intent(f"loaded-{job.id}") as intent:
        with step("loaded.commit", job=job.id), root.catalog.transaction() as transaction:
            used = _used_up(root, job, job.loading)
            whole = msgspec.structs.replace(job, loading=None, snapshot=None if used else job.snapshot)
            if used is not None:
                transaction.remove_snapshot(used.id)
            transaction.put_job(whole)
        if used is not None:
            intent.away(layers.image(root.layer(used.layers[-1])))
    return whole


def _used_up(root: Root, job: Job, loading: Loading) -> Snapshot | None:
    try:
        snapshot = root.catalog.snapshot(loading.snapshot)
    except NotFound:
        return None
    (top,) = root.catalog.chain(snapshot.layers[-1:])
    others = root.catalog.snapshots(naming=top.id), root.catalog.jobs(naming=top.id)
    reused = layers.choose_strategy(job, snapshot, top, snapshots=others[0], jobs=others[1]) == "reuse"
    return snapshot if reused and not loading.keep else None
