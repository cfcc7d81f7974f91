"""dump: criu writes a frozen job's processes to disk; a part of `engine.lifecycle.pause`.

The image lies in the layer that the pause seals. While the caller's block runs, all of it is written and criu still
holds the processes: what fails there makes criu undo its work, and the job is as it was. When the block has come to its
end criu kills them, and nothing that becomes of criu then is a failure any more.

criu doesn't die with its engine, for it would leave the processes half its own. It waits, and `criu.settle`, called by
who takes the job next, tells it whether the pause was committed. What a criu leaves that was killed itself is put right
in `engine.lifecycle.abandoned`; when all was written by then, the pause goes through.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from engine import cgroup, checkpoint, launch, layers, tools
from engine.errors import CannotCheckpoint, HostLacks, LaunchFailed, NoSpace, SeracError, Timeout, ToolMissing, from_os
from engine.kernel import process
from engine.launch_spec import Birth, NetworkSpec, View
from engine.lifecycle import abandoned, criu, logs, processes
from engine.lifecycle.root import Root
from engine.model import Job, JobState, ProcessImage
from engine.steps import add, step

SPEED = 50 << 20
"""bytes of memory a second that a dump writes at least"""


@contextlib.contextmanager
def begun(root: Root, job: Job) -> Iterator[criu.Begun]:
    """A criu for `dumped`, started while the caller freezes the job. Ended with the block. Raises CannotCheckpoint."""
    with contextlib.ExitStack() as stack:
        with step("pause.begin", job=job.id), _translated(root.run_job(job.id) / "dump.log"):
            begun = stack.enter_context(criu.begun(root, job, Birth(stage=os.fspath(root.stage(job.id))), dumps=True))
        yield begun


@contextlib.contextmanager
def dumped(root: Root, job: Job, begun: criu.Begun) -> Iterator[ProcessImage]:
    """Run the block with the processes of a frozen job written to disk; they are gone afterwards.

    Raises CannotCheckpoint and NoSpace, with nothing of the image left, and what the block raises."""
    init, work = processes.recall(root, job), root.run_job(job.id)
    with contextlib.ExitStack() as stack:
        with step("pause.preflight", job=job.id):
            seen = _examine(root, job)
        with step("pause.dump", job=job.id):
            layer = root.layer(processes.upper(job))
            failure = stack.enter_context(contextlib.ExitStack())
            failure.callback(forget, root, job)
            images = layers.make_image(layer, reader=processes.first_id(root, job))
            patience = root.timeout + seen.memory / SPEED
            with _translated(work / "dump.log"):
                if seen.connections:
                    stack.enter_context(_locked(init.pid, timeout=root.timeout))
                talk = stack.enter_context(criu.started(root, begun, View(), images, work=work, patience=patience))
                _write(root, job, talk, init.pid, patience)
            cgroup.freeze(root.group_of(job), timeout=root.timeout)  # for criu has thawed them, and may yet be killed
            image = _describe(root, job, init, images, seen)
        try:
            yield image
        finally:
            try:
                state = root.catalog.job_with(job.id).state
            except BaseException:  # who mends the job sees whether it was committed
                failure.pop_all()
                raise
            if state is not JobState.PAUSING:  # committed, whatever has broken the block off
                failure.pop_all()
                talk.conversation.agree()
        with step("pause.kill", job=job.id), contextlib.suppress(checkpoint.CriuGone, checkpoint.Refused, Timeout):
            talk.conversation.finish()
    for name, milliseconds in checkpoint.dump_times(work).items():
        add(name, milliseconds)


def forget(root: Root, job: Job) -> None:
    """After a dump that came to nothing: put right what criu may have left in the processes, which stay frozen, and
    remove the image."""
    layer = root.layer(processes.upper(job))
    if layers.image(layer).exists():
        with contextlib.suppress(SeracError):  # the job has ended
            abandoned.mend(root, job)
        layers.drop_image(layer)


def _examine(root: Root, job: Job) -> checkpoint.Seen:
    """What the preflight sees. Raises CannotCheckpoint for what criu could not carry."""
    seen = checkpoint.look(cgroup.pids(root.group_of(job)))
    spec = job.spec
    for obstacle in checkpoint.judge(
        seen, userns=spec.userns, net=spec.net, capable=processes.capable(), allow=spec.allow
    ):
        raise _cannot(obstacle)
    return seen


def _cannot(obstacle: checkpoint.Obstacle) -> CannotCheckpoint:
    return CannotCheckpoint(
        f"the processes can't be checkpointed: {obstacle.detail}", reason=obstacle.reason, hint=obstacle.remedy
    )


@contextlib.contextmanager
def _locked(pid: int, *, timeout: float) -> Iterator[None]:
    """No packet is answered in the job's network, so that both ends of a connection are written as they are."""
    with (
        process.namespace(pid, "net") as namespace,
        launch.network(NetworkSpec(lock=True), namespace=namespace, timeout=timeout),
    ):
        yield


@contextlib.contextmanager
def _translated(log: Path) -> Iterator[None]:
    """What keeps criu from its work is a reason, of which a pause in mode ``auto`` makes the best."""
    try:
        yield
    except (ToolMissing, HostLacks, LaunchFailed) as error:
        raise CannotCheckpoint(str(error), reason="host", hint=error.hint) from error
    except Timeout as error:
        raise CannotCheckpoint(str(error), reason="criu-failed") from error
    except checkpoint.Refused as error:
        obstacle = criu.explained(log)
        if obstacle.reason == "no-space":
            raise NoSpace(obstacle.detail) from error
        raise _cannot(obstacle) from error
    except checkpoint.CriuGone as error:
        raise CannotCheckpoint(str(error), reason="criu-killed", hint="try again") from error


def _write(root: Root, job: Job, talk: criu.Talk, init: int, patience: float) -> None:
    """All of the image, with /dev/shm, which criu would pack with tar."""
    options = checkpoint.dump_options(
        images=talk.images, work=talk.work, pid=init, cgroup=root.group_of(job).path, timeout=max(1, round(patience))
    )
    talk.conversation.ask(checkpoint.DUMP, options)
    talk.conversation.until("pre-dump")
    criu.keep_cache(root, talk)
    talk.conversation.until("post-dump")


def _describe(root: Root, job: Job, init: processes.Init, images: Path, seen: checkpoint.Seen) -> ProcessImage:
    try:
        checkpoint.keep_running(images)
        return ProcessImage(
            host=checkpoint.host_facts(),
            init=init.program,
            memory=sum(entry.stat().st_size for entry in os.scandir(images) if entry.name.startswith("pages-")),
            remaps=layers.keep_files(images.parent, _named(checkpoint.link_remaps(images))),
            connections=seen.connections,
            placements=seen.placements,
            address=job.address.job if job.address is not None else None,
            shm=_keep_shm(init.pid, images),
            logs=logs.keep(root.io(job.id), images / "io"),
            range=processes.id_range(root, job),
        )
    except OSError as error:
        raise from_os(error, "keep what belongs to the processes") from error


def _named(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Raises CannotCheckpoint for a path that no catalog can hold."""
    for path in paths:
        if any("\ud800" <= letter <= "\udfff" for letter in path):
            raise _cannot(checkpoint.obstacle("criu-failed", f"a file that has lost a name lies at {path!r}, no text"))
    return paths


def _keep_shm(init: int, images: Path) -> bool:
    """Copy what lies in the job's /dev/shm; whether there was anything."""
    with process.inside(init, "dev", "shm") as directory:
        if not os.listdir(directory):
            return False
        (images / "shm").mkdir()
        source = f"/proc/self/fd/{directory}/."
        tools.run(
            ["cp", "--archive", "--sparse=always", "--", source, os.fspath(images / "shm")], pass_fds=(directory,)
        )
        return True
