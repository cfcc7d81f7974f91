"""resume: a paused job goes on.

1 choose the strategy (`engine.layers.choose_strategy`); stack: make an empty upper on top, reuse: the sealed layer
becomes the upper again; remove the status files of the sessions that will come; 2 row: ``resuming`` with that upper;
3 mount, launch, start the sessions of the context; 4 COMMIT: ``running``; with reuse the snapshot is gone from here on,
its layer being written again; 5 the manifest goes.

| killed | leaves | put right by recover |
| --- | --- | --- |
| between 1 and 2 | a layer that the catalog doesn't know, a marker in tmp/ | the sweep |
| between 2 and 4, no session begun | ``resuming`` | processes killed, ``paused`` again, the snapshot untouched |
| between 2 and 4, a session begun | ``resuming`` | 4 is done: ``running``, or how it ended since |
| between 4 and 5 | a manifest too many | a manifest counts only for a layer that has no owner |

A status file in the job's io directory tells whether a session was begun, for step 1 removed the old ones. Until a
session begins nothing of the job's own runs and the reused layer is as it was, so a resume that fails leaves the
snapshot.
"""

from __future__ import annotations

import msgspec

from engine import layers, session, store
from engine.lifecycle import processes
from engine.lifecycle.root import Root, now, require
from engine.model import Job, JobState, Layer, ResumeResult, Snapshot, Strategy
from engine.steps import record, step


def resume(root: Root, job: Job) -> ResumeResult:
    require(job, JobState.PAUSED, verb="resume")
    snapshot = root.catalog.snapshot(job.snapshot or "")
    with record() as timings, root.intent(f"resume-{job.id}"):
        with step("resume.plan", job=job.id):
            strategy = _strategy(root, job, snapshot)
            resuming = _prepare(root, job, snapshot, strategy)
        try:
            missing = processes.bring_up(root, resuming, sessions=snapshot.context.sessions, verb="resume")
        except BaseException:
            undo(root, resuming, snapshot)
            raise
        # The sessions run: whatever happens to the commit, from here on the way is forward (see the table).
        with step("resume.commit", job=job.id):
            commit(root, resuming, snapshot)
    return ResumeResult(
        job=job.id,
        snapshot=snapshot.id,
        strategy=strategy,
        mode=snapshot.mode,
        missing=missing,
        timings=timings,
    )


def _strategy(root: Root, job: Job, snapshot: Snapshot) -> Strategy:
    strategy = layers.choose_strategy(job, snapshot, snapshots=root.catalog.snapshots(), jobs=root.catalog.jobs())
    if strategy == "stack":
        layers.check_depth(snapshot)
    return strategy


def _prepare(root: Root, job: Job, snapshot: Snapshot, strategy: Strategy) -> Job:
    """Steps 1 and 2; the job as it is while it is resumed."""
    top = snapshot.layers[-1]
    _clear_io(root, job, snapshot)
    if strategy == "reuse":
        upper, chain = top, snapshot.layers[:-1]
    else:
        upper, chain = store.new_id(), snapshot.layers
        layers.create(root.layer(upper), like=root.layer(top) / "upper")
    resuming = msgspec.structs.replace(job, state=JobState.RESUMING, upper=upper, layers=chain)
    with root.catalog.transaction() as transaction:
        if strategy == "stack":
            transaction.put_layer(Layer(id=upper, parent=top, owner=job.id, created=now()))
        transaction.put_job(resuming)
    return resuming


def _clear_io(root: Root, job: Job, snapshot: Snapshot) -> None:
    """Remove what the last init wrote of sessions that are about to come, and of those that ended with it."""
    io = root.io(job.id)
    coming = {spec.id for spec in snapshot.context.sessions}
    for number, status in session.statuses(io).items():
        if status.running or number in coming:
            (io / f"{number}.status").unlink()
    (io / "ask").unlink(missing_ok=True)


def commit(root: Root, resuming: Job, snapshot: Snapshot) -> Job:
    """Steps 4 and 5; also done by recover for a resume that was killed after a session had begun."""
    assert resuming.upper is not None
    running = msgspec.structs.replace(resuming, state=JobState.RUNNING, started=now())
    reused = resuming.upper == snapshot.layers[-1]
    with root.catalog.transaction(durable=reused) as transaction:
        if reused:
            parent = resuming.layers[-1] if resuming.layers else None
            layer = Layer(id=resuming.upper, parent=parent, owner=resuming.id, created=snapshot.created)
            transaction.put_layer(layer)
            transaction.remove_snapshot(snapshot.id)
            running = msgspec.structs.replace(running, snapshot=None)
        transaction.put_job(running)
    if reused:
        layers.unseal(root.layer(resuming.upper))
    return running


def undo(root: Root, resuming: Job, snapshot: Snapshot) -> Job:
    """Back to ``paused``; the caller has seen to it that nothing of the job runs."""
    assert resuming.upper is not None
    paused = msgspec.structs.replace(
        resuming, state=JobState.PAUSED, upper=None, layers=snapshot.layers, snapshot=snapshot.id
    )
    stacked = resuming.upper != snapshot.layers[-1]
    with root.catalog.transaction() as transaction:
        transaction.put_job(paused)
        if stacked:
            transaction.remove_layer(resuming.upper)
    if stacked:
        store.remove_tree(root.layer(resuming.upper))
    return paused


def begun(root: Root, job: Job, snapshot: Snapshot) -> bool:
    """Whether a session of the resume has begun."""
    statuses = session.statuses(root.io(job.id))
    return any(spec.id in statuses for spec in snapshot.context.sessions)
