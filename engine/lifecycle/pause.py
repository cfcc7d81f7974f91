"""pause: a running job becomes a snapshot and gives its compute back.

1 row: ``pausing``; 2 freeze: from here on the cut is made; 3 look: what the sessions were doing; 4 dump, with mode
``process``: criu writes the processes beside the upper and holds them (`engine.lifecycle.dump`); 5 seal: the manifest
is written there too; 6 flush: all of it is on the device; 7 COMMIT, durable: snapshot, sealed layer and ``paused`` in
one transaction; 8 release: kill, control group, network, run and work directory go.

The processes are killed only after the commit, so that everything that can fail does so while the job can still be
thawed: then it runs on as if nothing had been.

| killed | leaves | put right by recover |
| --- | --- | --- |
| between 1 and 7 | ``pausing``, frozen or held by criu, an image, a manifest | criu gives up; thawed, all removed |
| between 7 and 8 | ``paused`` with frozen processes | criu ends its work; they are killed |
| host lost between 1 and 7 | ``pausing`` without processes | ``failed``, the upper is kept |
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from engine import cgroup, checkpoint, layers, session, store
from engine.errors import Busy, CannotCheckpoint, SeracError, from_os
from engine.kernel import process
from engine.kernel.filesystem import syncfs
from engine.lifecycle import dump, lazy, processes, requests, sessions
from engine.lifecycle.root import Root, now, require
from engine.model import Archiving, Context, Job, JobState, Layer, Mode, PauseResult, Snapshot
from engine.steps import record, step

MOMENTS = (0.005, 0.02, 0.1)
"""seconds that a job runs on before a dump is tried again"""
QUIET_TRIES = 8
"""how often a client may come between being sent away and the freeze"""


def pause(
    root: Root,
    job: Job,
    *,
    mode: Mode,
    labels: Mapping[str, str],
    state: Any | msgspec.UnsetType,
    archive: Archiving = "never",
    request: str | None = None,
) -> PauseResult:
    """The caller holds the job's lock, as with every verb. ``state`` is the caller's JSON value from now on.
    ``archive``: what is not ``never`` leaves the snapshot due, and the caller archives it, or has it archived.
    ``request``: see `engine.lifecycle.requests`."""
    requests.refuse_repeated(job, "pause", request)
    sessions.check_mode(mode)
    sessions.check_annotations(labels, None if state is msgspec.UNSET else state)
    require(job, JobState.RUNNING, JobState.FROZEN, verb="pause")
    job = lazy.awaited(root, job)
    with record() as timings, root.intent(f"pause-{job.id}") as intent:
        try:
            asked = _Asked(labels, due=archive != "never", request=request)
            snapshot = _cut(root, job, mode=mode, asked=asked, state=state)
        except BaseException:
            if undo(root, job):
                intent.undone()
            raise
        with step("pause.release", job=job.id):
            processes.take_down(root, job)
    return PauseResult(
        job=job.id,
        snapshot=snapshot.id,
        mode=snapshot.mode,
        reason=snapshot.reason,
        timings=timings,
        sizes=_sizes(snapshot),
    )


class _Asked(NamedTuple):
    """What the snapshot is to bear, and the job's row."""

    labels: Mapping[str, str]
    due: bool
    request: str | None


def _cut(root: Root, job: Job, *, mode: Mode, asked: _Asked, state: Any | msgspec.UnsetType) -> Snapshot:
    """Steps 1 to 7."""
    root.put(msgspec.structs.replace(job, state=JobState.PAUSING))
    if state is not msgspec.UNSET:
        job = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, state=state))
    job = requests.carried_out(job, "pause", asked.request)
    if mode == "filesystem":
        return _with_files(root, job, asked=asked, reason=None)
    try:
        return _with_processes(root, job, asked=asked)
    except CannotCheckpoint as error:
        if mode == "process":
            raise
        return _with_files(root, job, asked=asked, reason=error.reason)


def _with_files(root: Root, job: Job, *, asked: _Asked, reason: str | None) -> Snapshot:
    with step("pause.freeze", job=job.id):
        cgroup.freeze(root.group_of(job), timeout=root.timeout)
    with step("pause.look", job=job.id):
        snapshot = _snapshot(root, job, _look(root, job, labels=asked.labels), due=asked.due, reason=reason)
    return _keep(root, job, snapshot)


def _with_processes(root: Root, job: Job, *, asked: _Asked) -> Snapshot:
    """What stands in the way for a moment only, such as a connection that is being opened, is given that moment."""
    for moment in MOMENTS:
        try:
            return _once_with_processes(root, job, asked=asked)
        except CannotCheckpoint as error:
            if not checkpoint.REASONS[error.reason or "criu-failed"].passing:
                raise
        cgroup.thaw(root.group_of(job))
        time.sleep(moment)
    return _once_with_processes(root, job, asked=asked)


def _once_with_processes(root: Root, job: Job, *, asked: _Asked) -> Snapshot:
    with step("pause.freeze", job=job.id):
        _still(root, job)
    with step("pause.look", job=job.id):
        snapshot = _snapshot(root, job, _look(root, job, labels=asked.labels), due=asked.due, reason=None)
    with dump.dumped(root, job) as image:
        return _keep(root, job, msgspec.structs.replace(snapshot, mode="process", image=image))


def _still(root: Root, job: Job) -> None:
    """Freeze the job with no client at its init, for the end of a connection that is outside can't be written."""
    group = root.group_of(job)
    for _ in range(QUIET_TRIES):
        cgroup.thaw(group)
        with processes.connected(root, job.id) as connection:
            connection.quiesce()
        cgroup.freeze(group, timeout=root.timeout)
        if not process.foreign_sockets(processes.recall(root, job).pid):
            return
    raise Busy(f"clients keep coming to job {job.name}")


def _keep(root: Root, job: Job, snapshot: Snapshot) -> Snapshot:
    with step("pause.seal", job=job.id):
        layers.seal(root.layer(snapshot.layers[-1]), snapshot)
    with step("pause.flush", job=job.id):
        _flush(root)
    with step("pause.commit", job=job.id):
        _commit(root, job, snapshot)
    return snapshot


def undo(root: Root, job: Job) -> bool:
    """Back to how the job was, running or frozen, before a pause that didn't come to its commit; whether it hadn't."""
    if root.catalog.job_with(job.id).state is not JobState.PAUSING:
        return False
    if job.upper is not None:
        layers.unseal(root.layer(job.upper))
        dump.forget(root, job)
    if job.state is JobState.RUNNING:
        with contextlib.suppress(SeracError):  # its group is gone when the job ended in the middle
            cgroup.thaw(root.group_of(job))
    root.put(job)
    return True


def _look(root: Root, job: Job, *, labels: Mapping[str, str]) -> Context:
    io = root.io(job.id)
    specs, statuses = session.specs(io), session.statuses(io)
    # Session 0 is what the job was told to run, whatever became of the files that the job can write.
    main = sessions.main_session(job.name, job.spec, root.catalog.base(job.base).env, None)
    terminals = {
        status.pid: number
        for number, status in statuses.items()
        if status.running and status.pid is not None and number in specs and specs[number].tty is not None
    }
    return sessions.context_of(job, main, specs, statuses, _directories(root.group_of(job), terminals), labels=labels)


def _directories(group: cgroup.Group, terminals: Mapping[int, int]) -> dict[int, str]:
    """Session -> working directory, for the sessions' first processes (pid in the job -> session)."""
    if not terminals:
        return {}
    found = {}
    for pid in cgroup.pids(group):
        with contextlib.suppress(OSError):  # a zombie has no directory
            number = terminals.get(process.namespace_pid(pid))
            if number is not None:
                found[number] = process.working_directory(pid)
    return found


def _snapshot(root: Root, job: Job, context: Context, *, due: bool, reason: str | None) -> Snapshot:
    assert job.upper is not None
    return Snapshot(
        id=store.new_id(),
        job=job.id,
        name=job.name,
        spec=job.spec,
        base=job.base,
        layers=(*job.layers, job.upper),
        context=context,
        reason=reason,
        labels=context.labels,
        parent=job.snapshot or job.forked_from,
        created=now(),
        due=due,
    )


def _flush(root: Root) -> None:
    try:
        syncfs(root.layers)
    except OSError as error:
        raise from_os(error, "flush layer") from error


def _commit(root: Root, job: Job, snapshot: Snapshot) -> None:
    top = snapshot.layers[-1]
    paused = msgspec.structs.replace(
        job,
        state=JobState.PAUSED,
        layers=snapshot.layers,
        mounted=(),
        upper=None,
        snapshot=snapshot.id,
        pauses=job.pauses + 1,
    )
    with root.catalog.transaction(durable=True) as transaction:
        parent = snapshot.layers[-2] if len(snapshot.layers) > 1 else None
        transaction.put_layer(Layer(id=top, parent=parent, created=snapshot.created))
        transaction.put_snapshot(snapshot)
        transaction.put_job(paused)


def _sizes(snapshot: Snapshot) -> dict[str, int]:
    """``memory`` in bytes, with mode ``process`` only."""
    memory = {"memory": snapshot.image.memory} if snapshot.image is not None else {}
    return {"layers": len(snapshot.layers), **memory}
