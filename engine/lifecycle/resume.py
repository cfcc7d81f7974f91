"""resume: a paused job goes on.

0 control groups; serac-launch or criu is started, and makes ready what needs no layers beside the rest; 1 choose the
strategy (`engine.layers.choose_strategy`); stack: make an empty upper on top, reuse: the sealed layer becomes the upper
again; row: ``resuming`` with that upper; 2 mount, and launch init, or restore all processes (mode ``process``,
`engine.lifecycle.restore`): nothing of the job's own runs yet; 3 COMMIT: ``running``, with the sessions of
the context ``pending`` where there are none yet; with reuse the snapshot is gone from here on, for its layer is about
to be written; 4 start the sessions, or let the processes go; 5 row: none pending; manifest and process image go, whose
bytes are freed while the caller goes on.

| killed | leaves | put right by |
| --- | --- | --- |
| within 0 | a run directory, control groups | whoever takes the job next, or the next opening |
| within 1 | a layer that the catalog doesn't know, and a marker in tmp/ | the sweep |
| between 1 and 3 | ``resuming`` | recover: all processes killed, ``paused`` again, the snapshot untouched |
| between 3 and 5 | ``running`` with pending sessions | whoever takes the job next starts those that don't run yet |
| there, with processes | ``running``: they stand still or run, criu dies with its engine | thawed; sweep: image |
| there, when session 0 was refused | ``running``, or ``paused`` with an init | who is next: ``paused``; the sweep |
| host lost after 3 | reuse: ``running`` | the next look: ``failed``, the upper is kept |

When session 0 is refused (its command or directory is gone) nothing of the job ran, and the job is ``paused`` again
with the snapshot that its manifest still has. A stacked resume commits without waiting for the disk: a power cut soon
after takes the job back to its snapshot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from engine import layers, session, store
from engine.errors import CannotRestore, InvalidInput
from engine.launch import JobSlot
from engine.lifecycle import (
    ahead,
    asking,
    criu,
    flush,
    lazy,
    logs,
    processes,
    records,
    requests,
    restore,
    sessions,
    trees,
    wake,
)
from engine.lifecycle.root import Root, now, require
from engine.model import (
    Answer,
    Context,
    Job,
    JobState,
    Layer,
    Loading,
    Memory,
    Mode,
    ResumeResult,
    SessionSpec,
    Snapshot,
    Strategy,
    Value,
)
from engine.steps import record, step
from engine.store import Intent


class How(Value, frozen=True, kw_only=True):
    """How a snapshot is brought back, as the job that it is of or as a fork."""

    mode: Mode = "auto"
    """``process`` needs a process image, ``filesystem`` leaves one aside, ``auto`` takes it where it is"""
    memory: Memory = "auto"
    workdir: str | None = None
    """the job's directory from now on, where its own is gone; not with processes, which are somewhere"""
    keep: bool = False
    """the snapshot stays"""
    keep_tcp: bool = False
    answer: Any | msgspec.UnsetType = msgspec.UNSET
    """to what a process of it asks, which without one gets null"""
    reply: bool = True
    """else it asks on"""
    idle: bool = False
    """from the files, and nothing is started"""
    request: str | None = None
    """see `engine.lifecycle.requests`"""


class Plan(NamedTuple):
    """How a resume goes, as far as that is known before anything is done."""

    snapshot: Snapshot
    how: How
    back: bool
    """the processes come back"""
    choice: lazy.Choice
    answers: tuple[Answer, ...]


def resume(root: Root, job: Job, how: How) -> ResumeResult:
    origin = _origin(root, job)
    plan = _plan(root, job if origin is None else _paused(job, origin), how)
    if origin is not None:
        job = _again(root, job, origin)
    with record() as timings, root.intent(f"resume-{job.id}", marked=False) as intent:
        try:
            with _begun(root, job, plan) as bring:
                intent.mark()
                with step("resume.plan", job=job.id):
                    resuming, strategy = _prepare(root, job, plan, intent)
                generation = wake.new_generation(root, resuming)
                running, missing = bring(resuming)
                _finish(root, running, intent)
                untold = wake.tell(root, running, generation) if plan.back else None
                untold = asking.tell(root, running) or untold
        except BaseException:
            if undo(root, job.id):
                intent.undone()
            raise
    if how.idle:
        missing.update(sessions.held_back(plan.snapshot.context)[1])
    return ResumeResult(
        job=job.id,
        snapshot=plan.snapshot.id,
        strategy=strategy,
        mode="process" if plan.back else "filesystem",
        missing=missing,
        generation=generation,
        untold=untold,
        memory=plan.choice.memory,
        eager_because=plan.choice.why,
        timings=timings,
    )


def _plan(root: Root, job: Job, how: How) -> Plan:
    """Raises CannotRestore, Damaged, HostLacks, InvalidInput, WrongState."""
    requests.refuse_repeated(job, "resume", how.request)
    require(job, JobState.PAUSED, JobState.RESUMING, verb="resume")  # the latter in the midst of a take
    snapshot = root.catalog.snapshot(job.snapshot or "")
    plan = Plan(snapshot, how, *ways(root, snapshot, how), answers=job.answers)
    if how.workdir is not None:
        sessions.check_workdir(how.workdir)
        if plan.back:
            raise InvalidInput("processes that come back are where they were", hint="--mode filesystem starts anew")
    return plan._replace(answers=asking.answers(snapshot, "resumed", how.answer)) if how.reply else plan


def ways(root: Root, snapshot: Snapshot, how: How) -> tuple[bool, lazy.Choice]:
    """Whether the processes come back, and how their memory does. Raises CannotRestore, Damaged, HostLacks,
    InvalidInput."""
    sessions.check_mode(how.mode)
    back = _with_processes(root, snapshot, how)
    return back, lazy.choose(snapshot, how.memory, back=back)


@contextlib.contextmanager
def _begun(root: Root, job: Job, plan: Plan) -> Iterator[Callable[[Job], tuple[Job, dict[int, str]]]]:
    """What needs no layers is made from here on, beside the caller; what the block gets does steps 2 to 4, and gives
    the sessions that could not be started with the job. Until the block ends some of it may still be about to end."""
    if plan.back:
        with ahead.restoring(root, job, lazily=plan.choice.lazy, verb="resume") as begun:
            yield lambda resuming: _restore(root, resuming, plan, begun)
    else:
        with ahead.init(root, job, verb="resume") as slot:
            yield lambda resuming: _start_anew(root, resuming, plan, slot)


def _origin(root: Root, job: Job) -> Snapshot | None:
    """What a job whose memory never came is paused to again; what it had done since is given up. So it is with one that
    failed, and the snapshot of that."""
    if job.state is JobState.FAILED and job.loading is not None:
        return root.catalog.snapshot(job.loading.snapshot)
    if job.state is JobState.EXITED and job.upper is None and job.snapshot is not None:
        return root.catalog.snapshot(job.snapshot)
    return None


def _again(root: Root, job: Job, origin: Snapshot) -> Job:
    with root.intent(f"again-{job.id}"), step("resume.again", job=job.id):
        paused = _put_paused(root, job, root.catalog.snapshot(origin.id))
        _drop_upper(root, job, paused)
    return paused


def _with_processes(root: Root, snapshot: Snapshot, how: How) -> bool:
    """Whether the processes come back. Raises CannotRestore, Damaged, InvalidInput."""
    if how.idle and how.mode == "process":
        raise InvalidInput("an idle job has no processes", hint="--mode filesystem")
    if how.mode == "filesystem" or how.idle:
        return False
    flush.check(snapshot)
    if snapshot.image is not None:
        restore.check(root, snapshot.image)
        return True
    if how.mode == "process":
        raise CannotRestore(f"snapshot {snapshot.id} has no processes", reason="no-image")
    return False


def _restore(root: Root, resuming: Job, plan: Plan, begun: criu.Begun) -> tuple[Job, dict[int, str]]:
    """The processes go on."""
    snapshot, how, lazily = plan.snapshot, plan.how, plan.choice.lazy
    with (
        restore.restored(root, resuming, snapshot, begun, keep_tcp=how.keep_tcp, lazily=lazily, verb="resume"),
        step("resume.commit", job=resuming.id),
    ):
        loading = Loading(snapshot=snapshot.id, keep=how.keep) if lazily else None
        resuming = msgspec.structs.replace(resuming, loading=loading)
        running = _commit(root, resuming, msgspec.structs.replace(snapshot, context=Context()), None)
    return running, {}


def _start_anew(root: Root, resuming: Job, plan: Plan, slot: JobSlot) -> tuple[Job, dict[int, str]]:
    """From the files; the job's init comes up while the catalog commits."""
    snapshot = plan.snapshot
    processes.bring_up(root, resuming, slot, verb="resume")
    restore.leave_aside(root, resuming, snapshot)
    resuming = asking.leave(root, resuming)
    held, started = None, snapshot
    if plan.how.idle:
        held, _ = sessions.held_back(snapshot.context)
        started = msgspec.structs.replace(snapshot, context=Context())
    with processes.reached(root, resuming.id) as connection:
        with step("resume.commit", job=resuming.id):
            running = _commit(root, msgspec.structs.replace(resuming, held=held), started, plan.how.workdir)
        connection.greet()
        return _start(root, running, connection, running.pending)


def _prepare(root: Root, job: Job, plan: Plan, intent: Intent) -> tuple[Job, Strategy]:
    """Step 1; the job as it is while it is resumed."""
    resuming, strategy = _on_top(root, job, plan.snapshot, keep=plan.how.keep or plan.choice.lazy)
    if not plan.back:
        logs.clear(root.io(job.id), plan.snapshot.context, intent.away)
    resuming = msgspec.structs.replace(resuming, answers=plan.answers)
    return requests.carried_out(resuming, "resume", plan.how.request), strategy


def _on_top(root: Root, job: Job, snapshot: Snapshot, *, keep: bool) -> tuple[Job, Strategy]:
    """The job with an upper, in its row too."""
    with root.catalog.transaction() as transaction:
        if not keep and _strategy(root, job, snapshot) == "reuse":
            upper, chain = snapshot.layers[-1], snapshot.layers[:-1]
            resuming = msgspec.structs.replace(job, state=JobState.RESUMING, upper=upper, layers=chain)
            transaction.put_job(resuming)
            return resuming, "reuse"
    layers.check_depth(snapshot)
    below, upper = snapshot.layers[-1], store.new_id()
    with contextlib.ExitStack() as undo:
        undo.callback(store.remove_tree, root.layer(upper))
        with trees.opened(root, *root.catalog.chain((below,))) as tree:
            layers.create(root.layer(upper), like=tree)
        resuming = msgspec.structs.replace(job, state=JobState.RESUMING, upper=upper, layers=snapshot.layers)
        with root.catalog.transaction() as transaction:
            transaction.put_layer(Layer(id=upper, parent=below, owner=job.id, created=now()))
            transaction.put_job(resuming)
        undo.pop_all()
    return resuming, "stack"


def _strategy(root: Root, job: Job, snapshot: Snapshot) -> Strategy:
    """Within a transaction: read again, for it may have been pinned since."""
    current = root.catalog.snapshot(snapshot.id)
    (top,) = root.catalog.chain(current.layers[-1:])
    snapshots, jobs = root.catalog.snapshots(naming=top.id), root.catalog.jobs(naming=top.id)
    return layers.choose_strategy(job, current, top, snapshots=snapshots, jobs=jobs)


def _commit(root: Root, resuming: Job, snapshot: Snapshot, workdir: str | None) -> Job:
    """Step 3."""
    assert resuming.upper is not None
    pending = tuple(_in_directory(spec, workdir) for spec in snapshot.context.sessions)
    spec = msgspec.structs.replace(resuming.spec, workdir=workdir or resuming.spec.workdir)
    running = msgspec.structs.replace(resuming, state=JobState.RUNNING, spec=spec, started=now(), pending=pending)
    reused = resuming.upper == snapshot.layers[-1]
    if not reused:
        records.keep_job(root, running)
    with root.catalog.transaction(durable=reused) as transaction:
        if reused:
            parent = resuming.layers[-1] if resuming.layers else None
            transaction.put_layer(Layer(id=resuming.upper, parent=parent, owner=resuming.id, created=snapshot.created))
            transaction.remove_snapshot(snapshot.id)
            running = msgspec.structs.replace(running, snapshot=None)
        transaction.put_job(running)
    return running


def _in_directory(spec: SessionSpec, workdir: str | None) -> SessionSpec:
    return msgspec.structs.replace(spec, workdir=workdir) if workdir is not None and not spec.id else spec


def complete(root: Root, running: Job) -> None:
    """Steps 4 and 5 for whoever has the job when they are due: the sessions start that haven't in this life of it, for
    they neither run nor have left a status."""
    with root.intent(f"resume-{running.id}") as intent:
        with processes.connected(root, running.id) as connection:
            begun = {status.id for status in connection.sessions()} | session.statuses(root.io(running.id)).keys()
            _start(root, running, connection, [spec for spec in running.pending if spec.id not in begun])
        _finish(root, running, intent)


def _start(
    root: Root, running: Job, connection: session.Connection, specs: Iterable[SessionSpec]
) -> tuple[Job, dict[int, str]]:
    """Step 4."""
    try:
        missing = processes.start(running, connection, specs, verb="resume")
    except processes.REFUSED:
        _revert(root, running)
        raise
    return root.put(msgspec.structs.replace(running, pending=())), missing


def _finish(root: Root, running: Job, intent: Intent) -> None:
    """Step 5."""
    with step("resume.finish", job=running.id):
        layers.take_apart(root.layer(processes.upper(running)), intent.away)


def _revert(root: Root, running: Job) -> None:
    """Session 0 was refused before anything ran: the job is paused to its snapshot again. That is committed while its
    init lives: without processes it would have failed."""
    assert running.upper is not None
    manifest = layers.manifest(root.layer(running.upper))
    if manifest is None:  # stacked: the snapshot never went
        snapshot = root.catalog.snapshot(running.snapshot or "")
    else:  # the layers below may have been flattened since it was written
        snapshot = msgspec.structs.replace(manifest, layers=(*running.layers, running.upper))
    with step("resume.revert", job=running.id):
        paused = _put_paused(root, running, snapshot)
    try:
        processes.take_down(root, running)
    finally:
        _drop_upper(root, running, paused)


def undo(root: Root, job_id: str) -> bool:
    """Back to ``paused`` from a resume that didn't come to its commit; whether it hadn't."""
    resuming = root.catalog.job_with(job_id)
    if resuming.state in (JobState.PAUSED, JobState.RESUMING):
        processes.take_down(root, resuming)
    if resuming.state is JobState.RESUMING:
        _drop_upper(root, resuming, _put_paused(root, resuming, root.catalog.snapshot(resuming.snapshot or "")))
    return resuming.state in (JobState.RESUMING, JobState.PAUSED)


def _paused(job: Job, snapshot: Snapshot) -> Job:
    return msgspec.structs.replace(
        job,
        state=JobState.PAUSED,
        spec=snapshot.spec,
        upper=None,
        layers=snapshot.layers,
        snapshot=snapshot.id,
        pending=(),
        loading=None,
        requests=requests.resume_taken_back(job),
        ended=None,
        status=None,
        failure=None,
    )


def _put_paused(root: Root, job: Job, snapshot: Snapshot) -> Job:
    top = snapshot.layers[-1]
    if job.upper == top and snapshot.image is not None:
        layers.put_back(root.layer(top), snapshot.image.remaps)
    paused = _paused(job, snapshot)
    with root.catalog.transaction(durable=True) as transaction:
        transaction.put_job(paused)
        if job.upper == top:
            (layer,) = root.catalog.chain((top,))
            transaction.put_layer(msgspec.structs.replace(layer, owner=None, edition=store.new_id()))
        transaction.put_snapshot(snapshot)
        if job.upper is not None and job.upper != top:
            transaction.remove_layer(job.upper)
    return paused


def _drop_upper(root: Root, before: Job, paused: Job) -> None:
    """What was written since the snapshot goes, where it lay on top of that."""
    if before.upper is not None and before.upper not in paused.layers:
        store.remove_tree(root.layer(before.upper))
