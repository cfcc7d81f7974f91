"""restore: criu brings the processes of a snapshot back; a part of `engine.lifecycle.resume` and of a fork.

While the caller's block runs, everything is there and nothing has run yet: that is the place for its commit. A restore
that fails leaves the image as it was; the caller takes down what there is of the job. An engine that dies then takes
criu with it, which lets go of the processes: they stand still in their frozen control group, until who takes the job
next kills them, or thaws them when it was just committed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine import cgroup, checkpoint, launch, layers, network, tools
from engine.errors import CannotRestore, Damaged, NoSpace, Timeout
from engine.kernel import process
from engine.launch_spec import NetworkSpec, View
from engine.lifecycle import criu, lazy, logs, mounting, processes
from engine.lifecycle.root import Root
from engine.model import Job, JobState, ProcessImage, Snapshot
from engine.steps import add, step

SHM = 64 << 20
"""bytes of /dev/shm, as of a job that is run"""

SPEED = 50 << 20
"""bytes of memory a second that a restore reads at least"""


@contextlib.contextmanager
def restored(
    root: Root, job: Job, snapshot: Snapshot, begun: criu.Begun, *, keep_tcp: bool, lazily: bool, verb: str
) -> Iterator[None]:
    """Run the block with the snapshot's processes back but standing still; they run when it has come to its end.

    ``keep_tcp``: connections to the outside aren't closed. ``lazily``: memory comes in while they run. Raises
    CannotRestore and NoSpace."""
    image = snapshot.image
    assert image is not None
    with contextlib.ExitStack() as stack:
        images = stack.enter_context(opened(root, snapshot))
        _check_size(images, image)
        bring_logs = logs.put_back if snapshot.job == job.id else logs.copy
        bring_logs(root.io(job.id), images / "io", image.logs)
        with step(f"{verb}.mount", job=job.id):
            view = _view(processes.prepare(root, job))
            work = root.run_job(job.id)
        with step(f"{verb}.restore", job=job.id), _translated(work / "restore.log"):
            patience = root.timeout + image.memory / SPEED
            talk = stack.enter_context(criu.started(root, begun, view, images, work=work, patience=patience))
            stack.enter_context(_dead_on_failure(root, job))
            pages = stack.enter_context(lazy.served(root, job, talk.images)) if lazily else None
            _fill_shm(talk, image, images)
            options = checkpoint.restore_options(images=talk.images, work=talk.work, lazily=lazily)
            talk.conversation.ask(checkpoint.RESTORE, options)
            hold = stack.enter_context(_network(root, job, image, talk, keep_tcp=keep_tcp))
            init = talk.conversation.until("post-restore")
            processes.remember(root, job.id, init, program=image.init)
            talk.conversation.until("pre-resume")
            _check_owners(root, job, criu=talk.criu.pid)
            checkpoint.place(cgroup.pids(root.group_of(job)), image.placements)
            if pages is not None:
                pages.ready()
            hold.end()
        with _standing(root, job):
            yield
        # All that is left to criu is to let go, which the kernel does for it if it dies.
        with step(f"{verb}.go", job=job.id), contextlib.suppress(checkpoint.CriuGone, checkpoint.Refused, Timeout):
            talk.conversation.finish()
    for name, milliseconds in checkpoint.restore_times(work).items():
        add(name, milliseconds)


@contextlib.contextmanager
def _standing(root: Root, job: Job) -> Iterator[None]:
    """Whatever becomes of criu, which is in the job's control group too, nothing runs before the block ends. Raises
    CannotRestore when there is nothing any more that could."""
    cgroup.freeze(root.group_of(job), timeout=root.timeout)
    if not cgroup.populated(root.group_of(job)):
        raise CannotRestore("the processes were killed while they were brought back", reason="criu-killed")
    try:
        yield
    finally:
        cgroup.thaw(root.group_of(job))


@contextlib.contextmanager
def _dead_on_failure(root: Root, job: Job) -> Iterator[None]:
    """A criu that is given up at the end lets the processes run, on files that are the snapshot's until the commit."""
    try:
        yield
    except BaseException:
        if root.catalog.job_with(job.id).state is not JobState.RUNNING:
            cgroup.kill(root.group_of(job), timeout=root.timeout)
        raise


@contextlib.contextmanager
def opened(root: Root, snapshot: Snapshot) -> Iterator[Path]:
    """The directory of a snapshot's process image, for the block. Raises CannotRestore, Damaged."""
    local = layers.image(root.layer(snapshot.layers[-1]))
    digest = snapshot.image.digest if snapshot.image is not None else None
    with contextlib.ExitStack() as stack:
        if digest is None or local.exists():
            yield local
            return
        try:
            mounted = stack.enter_context(mounting.opened(root, digest))
        except FileNotFoundError as error:
            raise CannotRestore(f"the processes are gone: {error.filename}", reason="no-image") from error
        yield mounted


def _check_owners(root: Root, job: Job, *, criu: int) -> None:
    """criu makes user namespaces as an image says; none of its processes may be the host's root. Raises Damaged."""
    ids = processes.id_range(root, job)
    if ids is None:
        return
    restored = set(cgroup.pids(root.group_of(job))) - {criu}
    if any(process.id_map(pid) != ((0, *ids),) for pid in restored):
        raise Damaged(
            "the processes would not be in the user namespace of a job", hint="don't resume it: it was forged"
        )


def _check_size(images: Path, image: ProcessImage) -> None:
    """criu waits for ever for pages that aren't there."""
    if image.memory != (found := page_bytes(images)):
        raise Damaged(
            f"{images}: {found} bytes of memory, {image.memory} were written",
            hint="--mode filesystem starts it again from its files",
        )


def page_bytes(images: Path) -> int:
    """How much memory of processes an image has. Raises CannotRestore."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(images) if entry.name.startswith("pages-"))
    except FileNotFoundError as error:
        raise CannotRestore(f"the processes are gone: {error.filename}", reason="no-image") from error


def _view(view: View) -> View:
    """What criu sees: the job's root, its io directory, and a new /dev/shm."""
    return msgspec.structs.replace(view, binds=(("io", "/run/io"),), shm=SHM)


def leave_aside(root: Root, job: Job, snapshot: Snapshot) -> None:
    """Take away the names that criu gave to files of processes which don't come back; init is there, and runs nothing
    yet."""
    names = snapshot.image.remaps if snapshot.image is not None else ()
    for name in names:
        *parents, last = name.split("/")
        with contextlib.suppress(OSError), process.inside(processes.recall(root, job).pid, *parents) as directory:
            os.unlink(last, dir_fd=directory)


def check(root: Root, image: ProcessImage) -> None:
    """Whether this host can bring the processes back now. Raises CannotRestore."""
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    free = os.statvfs(root.layers)
    obstacles = checkpoint.judge_restore(
        image.host,
        checkpoint.host_facts(),
        memory=image.memory,
        available=available,
        disk_free=free.f_bavail * free.f_frsize,
        lazy=False,
    )
    for obstacle in (*obstacles, *_ids(root, image)):
        raise _cannot(obstacle)


def _ids(root: Root, image: ProcessImage) -> Iterator[checkpoint.Obstacle]:
    """criu gives a user namespace the range that it had."""
    settings = root.config.settings
    here = (settings.id_first, settings.id_count)
    if image.range not in (None, here):
        yield checkpoint.obstacle("id-range", f"their ids are {image.range}, this host's jobs have {here}")


def _cannot(obstacle: checkpoint.Obstacle) -> CannotRestore:
    return CannotRestore(
        f"the processes can't be restored: {obstacle.detail}", reason=obstacle.reason, hint=obstacle.remedy
    )


@contextlib.contextmanager
def _translated(log: Path) -> Iterator[None]:
    try:
        yield
    except checkpoint.Refused as error:
        obstacle = criu.explained(log)
        if obstacle.reason == "no-space":
            raise NoSpace(obstacle.detail) from error
        raise _cannot(obstacle) from error
    except checkpoint.CriuGone as error:
        raise CannotRestore(str(error), reason="criu-killed", hint="try again") from error
    except FileNotFoundError as error:
        raise CannotRestore(f"the processes are gone: {error.filename}", reason="no-image") from error


def _fill_shm(talk: criu.Talk, image: ProcessImage, images: Path) -> None:
    """What lay in /dev/shm, into the new one, before criu opens files of it."""
    if image.shm:
        target = f"/proc/{talk.criu.pid}/root/run/shm"
        tools.run(["cp", "--archive", "--sparse=always", "--", f"{images}/shm/.", target])


@contextlib.contextmanager
def _network(root: Root, job: Job, image: ProcessImage, talk: criu.Talk, *, keep_tcp: bool) -> Iterator[launch.Hold]:
    """The new network namespace gets what the job's had; no packet of a connection is answered before all ends of it
    are back. An address that is the job's no more stays until the connections from there are closed."""
    pid = talk.conversation.until("setup-namespaces")
    address = job.address
    if address is not None:
        network.connect(root.config, address, pid=pid)
    guests = (image.address,) if image.address is not None and (address is None or address.job != image.address) else ()
    spec = NetworkSpec(
        up=True,
        lock=image.connections,
        guests=guests,
        address=f"{address.job}/{address.prefix}" if address else None,
        gateway=address.gateway if address else None,
        close=image.connections and image.address is not None and (bool(guests) or not keep_tcp),
        hostname=job.name,
    )
    with (
        process.namespace(pid, "net") as namespace,
        process.namespace(pid, "uts") as uts,
        launch.network(spec, namespace=namespace, uts=uts, timeout=root.timeout) as hold,
    ):
        yield hold
