"""keep: a job whose command failed (`JobSpec.snapshot_on`) leaves a snapshot of how it failed.

Its processes are gone, but not its upper: whoever finds that the job has ended (`engine.lifecycle.observe`) 1 COMMITs
that, with the snapshot that it owes from then on; 2 seal: the manifest is written beside the upper; 3 flush; 4 COMMIT,
durable: the snapshot, the sealed layer, and the job owes nothing. The job stays ``exited``, with the snapshot.

Killed between 1 and 4, or failed for want of room: whoever looks at the job next goes on. The snapshot stays when the
job is removed, and goes when the job itself is resumed. A job that `stop` ended hasn't failed.
"""

from __future__ import annotations

import msgspec

from engine import layers, session, store
from engine.errors import ProtocolError, SeracError
from engine.lifecycle import background, flush, processes, sessions
from engine.lifecycle.root import Root, log, now
from engine.model import Context, Failure, Job, JobState, Layer, Snapshot
from engine.steps import step


def wanted(job: Job) -> bool:
    """Whether a job that has ended just now leaves a snapshot."""
    return job.spec.snapshot_on == "failure" and job.state is JobState.EXITED and bool(job.status)


def keep(root: Root, job: Job) -> Job:
    """Steps 2 to 4, where they are due. What they fail with is no failure of whoever looks."""
    if not job.owes:
        return job
    try:
        with root.intent(f"keep-{job.id}"):
            kept = _keep(root, job)
    except SeracError as error:
        log.warning("job=%s no snapshot of its failure yet: %s", job.id, error)
        return job
    if root.config.settings.archive == "background":
        background.start(root)
    return kept


def _keep(root: Root, job: Job) -> Job:
    snapshot = _snapshot(root, job)
    with step("keep.seal", job=job.id):
        layers.seal(root.layer(snapshot.layers[-1]), snapshot)
    with step("keep.flush", job=job.id):
        flush.through(root)
    with step("keep.commit", job=job.id):
        kept = _commit(root, job, snapshot)
    failure = snapshot.context.failure
    reason = None if failure is None or failure.step is None else f"step {failure.step}"
    root.journal.add("keep", job=job.id, name=job.name, snapshot=snapshot.id, reason=reason)
    return kept


def _commit(root: Root, job: Job, snapshot: Snapshot) -> Job:
    kept = msgspec.structs.replace(
        job, owes=False, upper=None, layers=snapshot.layers, mounted=(), snapshot=snapshot.id
    )
    with root.catalog.transaction(durable=True) as transaction:
        parent = job.layers[-1] if job.layers else None
        transaction.put_layer(Layer(id=snapshot.layers[-1], parent=parent, created=snapshot.created))
        transaction.put_snapshot(snapshot)
        transaction.put_job(kept)
    return kept


def _snapshot(root: Root, job: Job) -> Snapshot:
    context = _context(root, job)
    return Snapshot(
        id=store.new_id(),
        job=job.id,
        name=job.name,
        spec=job.spec,
        base=job.base,
        layers=(*job.layers, processes.upper(job)),
        context=context,
        reason="ended",
        labels=context.labels,
        parent=job.snapshot or job.forked_from,
        created=now(),
        due=root.config.settings.archive == "background",
    )


def _context(root: Root, job: Job) -> Context:
    """Session 0 alone: what ran beside it ended with it."""
    try:
        status = session.status(root.io(job.id), 0)
    except ProtocolError:
        status = None
    main = sessions.main_session(job.name, job.spec, root.catalog.base(job.base).env, None)
    statuses = {} if status is None else {0: status}
    context = sessions.context_of(job, main, {}, statuses, {}, labels={})
    failure = Failure(status=job.status or 0, step=sessions.next_step(context), workdir=job.spec.workdir)
    return msgspec.structs.replace(context, ended=None, failure=failure)
