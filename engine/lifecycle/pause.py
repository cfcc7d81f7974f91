"""pause: a running job becomes a snapshot and gives its compute back.

1 row: ``pausing``; 2 freeze: from here on the cut is made; 3 look: what the sessions were doing; 4 dump, with mode
``process``: criu writes the processes beside the upper and holds them (`engine.lifecycle.dump`); 5 seal: the manifest
is written there too; 6 flush: all of it is on the device; 7 COMMIT, durable: snapshot, sealed layer and ``paused`` in
one transaction; 8 release: kill, control group, network, run and work directory go.

The processes are killed only after the commit, so that everything that can fail does so while the job can still be
thawed: then it runs on as if nothing had been.

| killed | leaves | put right by recover |
| --- | --- | --- |
| between 1 and 7 | ``pausing``, frozen or held by criu, an image, a manifest | criu gives up; as before, all removed |
| between 7 and 8 | ``paused`` with frozen processes | criu ends its work; they are killed |
| host lost between 1 and 7 | ``pausing`` without processes | ``failed``, the upper is kept |
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from engine import cgroup, checkpoint, layers, session, store
from engine.errors import Busy, CannotCheckpoint, InvalidInput, SeracError, from_os
from engine.kernel import process
from engine.lifecycle import asking, dump, flush, lazy, processes, requests, sessions, stop
from engine.lifecycle.root import Root, now, require
from engine.model import Archiving, Context, Durability, Job, JobState, Layer, Mode, PauseResult, Snapshot
from engine.steps import record, step

MOMENTS = (0.005, 0.02, 0.1)
"""seconds that a job runs on before a dump is tried again"""
TTL_MAX = 1000 * 366 * 86400.0
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
    ttl: float | None = None,
    durability: Durability = "full",
    request: str | None = None,
    then: Literal[JobState.PAUSED, JobState.RESUMING] = JobState.PAUSED,
) -> PauseResult:
    """The caller holds the job's lock, as with every verb. ``state`` is the caller's JSON value from now on.
    ``archive``: what is not ``never`` leaves the snapshot due, and the caller archives it, or has it archived.
    ``ttl``: seconds that the snapshot is kept; None = as the root's policies have it.
    ``durability``: ``fast`` leaves 6 to the kernel and to `engine.lifecycle.flush`, and 7 isn't durable then.
    ``request``: see `engine.lifecycle.requests`. ``then``: the row's state from 7 on, of a job that goes on at once."""
    requests.refuse_repeated(job, "pause", request)
    sessions.check_mode(mode)
    if durability not in get_args(Durability):
        raise InvalidInput(f"no durability {durability!r}", hint="full or fast")
    if ttl is not None and not 0 <= ttl <= TTL_MAX:
        raise InvalidInput(f"ttl is out of range: {ttl}", hint="seconds, up to a thousand years")
    sessions.check_annotations(labels, None if state is msgspec.UNSET else state)
    require(job, JobState.RUNNING, JobState.FROZEN, verb="pause")
    job = lazy.awaited(root, job)
    with record() as timings, root.intent(f"pause-{job.id}") as intent:
        try:
            stated, fast = state is not msgspec.UNSET, durability == "fast"
            due = archive != "never"
            asked = _Asked(labels, due=due, ttl=ttl, fast=fast, stated=stated, request=request, then=then)
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
        durability=durability,
        timings=timings,
        sizes=_sizes(snapshot),
    )


class _Asked(NamedTuple):
    """What the snapshot is to bear, and the job's row."""

    labels: Mapping[str, str]
    due: bool
    ttl: float | None
    fast: bool
    stated: bool
    """whether the caller gives the state"""
    request: str | None
    then: JobState


def _cut(root: Root, job: Job, *, mode: Mode, asked: _Asked, state: Any | msgspec.UnsetType) -> Snapshot:
    """Steps 1 to 7."""
    root.put(msgspec.structs.replace(job, state=JobState.PAUSING, frozen=job.state is JobState.FROZEN))
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
        snapshot = _snapshot(root, job, asked=asked, reason=reason)
    return _keep(root, job, snapshot, then=asked.then)


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
    with dump.begun(root, job) as begun:
        with step("pause.freeze", job=job.id):
            _still(root, job)
        with step("pause.look", job=job.id):
            snapshot = _snapshot(root, job, asked=asked, reason=None)
        with dump.dumped(root, job, begun) as image:
            whole = msgspec.structs.replace(snapshot, mode="process", image=image)
            return _keep(root, job, whole, then=asked.then)


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


def _keep(root: Root, job: Job, snapshot: Snapshot, *, then: JobState) -> Snapshot:
    """Steps 5 to 7."""
    with step("pause.seal", job=job.id):
        layers.seal(root.layer(snapshot.layers[-1]), snapshot)
    if snapshot.unflushed is None:
        with step("pause.flush", job=job.id):
            flush.through(root, job=job)
    with step("pause.commit", job=job.id):
        _commit(root, job, snapshot, then=then)
    return snapshot


def undo(root: Root, job: Job) -> bool:
    """Back to how ``job`` was, running or frozen, before a pause that didn't come to its commit; whether it hadn't."""
    if root.catalog.job_with(job.id).state is not JobState.PAUSING:
        return False
    try:
        if job.upper is not None:
            dump.forget(root, job)
            layers.unseal(root.layer(job.upper))
    except OSError as error:
        raise from_os(error, "undo the pause") from error
    finally:  # whatever becomes of the disk
        with contextlib.suppress(SeracError):  # its group is gone when the job ended in the middle
            stop.place(root, job)
    root.put(job)
    return True


def _look(root: Root, job: Job, *, labels: Mapping[str, str]) -> Context:
    io = root.io(job.id)
    statuses = session.statuses(io)
    specs = session.specs(io, only={number for number, status in statuses.items() if status.running})
    # Session 0 is what the job was told to run, whatever became of the files that the job can write.
    main = job.held or sessions.main_session(job.name, job.spec, root.catalog.base(job.base).env, None)
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


def _snapshot(root: Root, job: Job, *, asked: _Asked, reason: str | None) -> Snapshot:
    """What a process asks goes in, and its state is the job's from now on, unless the caller gives one."""
    upper, created = processes.upper(job), _moment(root, job)
    question = asking.question(root, job)
    if question is not None and question.state is not None and not asked.stated:
        job = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, state=question.state))
    context = _look(root, job, labels=asked.labels)
    answers = asking.standing(job, context)
    context = msgspec.structs.replace(context, question=question, answers=answers, idle=job.held is not None)
    return Snapshot(
        id=store.new_id(),
        job=job.id,
        name=job.name,
        spec=job.spec,
        base=job.base,
        layers=(*job.layers, upper),
        context=context,
        reason=reason,
        labels=context.labels,
        parent=job.snapshot or job.forked_from,
        created=created,
        due=asked.due,
        unflushed=process.boot_id() if asked.fast else None,
        expires=None if asked.ttl is None else created + asked.ttl,
    )


def _moment(root: Root, job: Job) -> float:
    """Now; but later than the job's other snapshots, whatever has become of the clock."""
    others = (entry.created for entry in root.catalog.snapshots(naming=job.id) if entry.job == job.id)
    return max(now(), round(max(others, default=0.0) + 0.001, 3))


def _commit(root: Root, job: Job, snapshot: Snapshot, *, then: JobState) -> None:
    top = snapshot.layers[-1]
    paused = msgspec.structs.replace(
        job,
        state=then,
        spec=snapshot.spec,
        layers=snapshot.layers,
        mounted=(),
        upper=None,
        snapshot=snapshot.id,
        pauses=job.pauses + 1,
    )
    with root.catalog.transaction(durable=snapshot.unflushed is None) as transaction:
        parent = snapshot.layers[-2] if len(snapshot.layers) > 1 else None
        transaction.put_layer(Layer(id=top, parent=parent, created=snapshot.created))
        transaction.put_snapshot(snapshot)
        transaction.put_job(paused)


def _sizes(snapshot: Snapshot) -> dict[str, int]:
    """``memory`` in bytes, with mode ``process`` only."""
    memory = {"memory": snapshot.image.memory} if snapshot.image is not None else {}
    return {"layers": len(snapshot.layers), **memory}
