"""run: a new job on a base; and fork: a new job on a snapshot's chain. One story, two beginnings.

1 make the job's directories; begin its birth (`engine.lifecycle.ahead`); make its empty upper; 2 row: job ``created``,
with its layer; 3 mount, launch, start its sessions; 4 COMMIT: ``running``.

| killed | leaves | put right by |
| --- | --- | --- |
| between 1 and 2 | directories that the catalog doesn't know, and a marker in tmp/ | the sweep |
| between 2 and 4 | a job that is ``created``, perhaps with processes | recover: they are killed, the job is removed |

A run that fails leaves nothing.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import msgspec

from engine import layers, network, store
from engine.errors import Busy, InvalidInput, NotFound, SeracError, from_os
from engine.journal import about
from engine.lifecycle import ahead, asking, criu, processes, records, remove, restore, resume, sessions, trees, wake
from engine.lifecycle.root import Root, check_name, now
from engine.model import (
    DENIALS,
    ENDED,
    LIMIT_RANGES,
    Address,
    ForkResult,
    Job,
    JobSpec,
    JobState,
    Layer,
    Loading,
    SessionSpec,
    Snapshot,
)
from engine.steps import record, step

Begun = TypeVar("Begun")


def run(root: Root, spec: JobSpec, *, terminal: tuple[int, int] | None) -> Job:
    check(spec)
    base = root.catalog.base(spec.base)
    job = _new_job(spec, base.digest, ahead.claim(root, ahead.what_init(spec)))
    about(job=job.id, name=job.name)
    first = sessions.main_session(job.name, spec, base.env, terminal)
    return _begin(root, job, [first] if first is not None else []).job


def fork(root: Root, snapshot: Snapshot, how: resume.How, *, name: str | None, env: Mapping[str, str]) -> ForkResult:
    """The snapshot stays as it is; its top layer becomes one that is only read. ``env`` is added to the job's own, for
    sessions that are started from now on."""
    spec = msgspec.structs.replace(snapshot.spec, name=name, env={**snapshot.spec.env, **env})
    check(spec)
    layers.check_depth(snapshot)
    back, choice = resume.ways(root, snapshot, how)
    answers = asking.answers(snapshot, "forked", how.answer)
    what = ahead.what_criu(spec, lazily=choice.lazy) if back else ahead.what_init(spec)
    with record() as timings:
        job = msgspec.structs.replace(
            _new_job(spec, snapshot.base, ahead.claim(root, what)),
            layers=snapshot.layers,
            forked_from=snapshot.id,
            answers=answers,
        )
        about(job=job.id, name=job.name)
        if back:
            born = _bring_back(root, job, snapshot, keep_tcp=how.keep_tcp, lazily=choice.lazy)
            untold = wake.introduce(root, born.job) or wake.tell(root, born.job, born.generation)
            if asking.untold(born.job):
                with contextlib.suppress(Busy, NotFound), root.locked(born.job.id):  # who has the lock tells it
                    untold = asking.tell(root, born.job) or untold
        else:
            born = _start_copy(root, job, snapshot, env, idle=how.idle)
            untold = None
    return ForkResult(
        job=born.job.id,
        name=born.job.name,
        snapshot=snapshot.id,
        mode="process" if back else "filesystem",
        missing=born.missing,
        generation=born.generation,
        untold=untold,
        memory=choice.memory,
        eager_because=choice.why,
        timings=timings,
    )


class Born(NamedTuple):
    """A job that runs, the sessions that could not be started, and its generation."""

    job: Job
    missing: dict[int, str]
    generation: str


def _bring_back(root: Root, job: Job, snapshot: Snapshot, *, keep_tcp: bool, lazily: bool) -> Born:
    """The job that goes on as a copy."""
    held = sessions.held_back(snapshot.context)[0] if snapshot.context.idle else None

    def begin(job: Job) -> contextlib.AbstractContextManager[criu.Begun]:
        return ahead.restoring(root, job, lazily=lazily, verb="run")

    with _made(root, msgspec.structs.replace(job, held=held), begin) as (job, begun):
        snapshot = root.catalog.snapshot(snapshot.id)
        generation = wake.new_generation(root, job)
        running = msgspec.structs.replace(job, state=JobState.RUNNING, started=now())
        if lazily:
            running = msgspec.structs.replace(running, loading=Loading(snapshot=snapshot.id, keep=True))
        with (
            restore.restored(root, job, snapshot, begun, keep_tcp=keep_tcp, lazily=lazily, verb="run"),
            step("run.commit", job=job.id),
        ):
            records.keep_job(root, running)
            root.put(running)
        return Born(running, {}, generation)


def _start_copy(root: Root, job: Job, snapshot: Snapshot, env: Mapping[str, str], *, idle: bool) -> Born:
    """The job that begins with the copy's files."""
    context = sessions.renamed(snapshot.context, job.name, env)
    if not idle:
        return _begin(root, job, list(context.sessions), snapshot=snapshot)
    held, others = sessions.held_back(context)
    born = _begin(root, msgspec.structs.replace(job, held=held), [], snapshot=snapshot)
    return born._replace(missing={**born.missing, **others})


def check(spec: JobSpec) -> None:
    """Raises InvalidInput for what no host could run."""
    if spec.name is not None:
        check_name(spec.name)
    if spec.argv and spec.steps:
        raise InvalidInput("a job has a command or steps, not both")
    sessions.check_workdir(spec.workdir)
    wake.check(spec)
    if spec.snapshot_on not in (None, "failure"):
        raise InvalidInput(f"no snapshot on {spec.snapshot_on!r}", hint="failure, or nothing")
    sessions.check_annotations(spec.labels, spec.state)
    if spec.pause_after is not None and not 0 <= spec.pause_after < float("inf"):
        raise InvalidInput(
            f"pause_after is no time: {spec.pause_after}", hint="seconds; 0 = never pause it for being idle"
        )
    names = [entry.name for entry in spec.steps]
    if len(set(names)) != len(names):
        raise InvalidInput("two steps have the same name")
    for name, (lowest, highest) in LIMIT_RANGES.items():
        value = getattr(spec.limits, name)
        if value is not None and not lowest <= value <= highest:
            raise InvalidInput(f"limit {name} is out of range: {value}", hint=f"{lowest} to {highest}")
    for denial in spec.allow:
        if denial not in DENIALS:
            raise InvalidInput(f"allow: {denial!r} is no denial", hint=f"one of {', '.join(DENIALS)}")
    sessions.check_texts((*spec.argv, *names, *(entry.script for entry in spec.steps)), spec.env)


def _new_job(spec: JobSpec, digest: str, job_id: str) -> Job:
    return Job(
        id=job_id,
        name=spec.name or job_id,
        spec=spec,
        state=JobState.CREATED,
        base=digest,
        upper=store.new_id(),
        created=now(),
    )


def _begin(root: Root, job: Job, first: list[SessionSpec], *, snapshot: Snapshot | None = None) -> Born:
    with _made(root, job, functools.partial(ahead.init, root, verb="run")) as (made, slot):
        processes.bring_up(root, made, slot, verb="run")
        if snapshot is not None:
            restore.leave_aside(root, made, snapshot)
        told = asking.leave(root, made)
        with processes.reached(root, made.id) as connection:
            generation = wake.new_generation(root, made)
            connection.greet()
            missing = processes.start(made, connection, first, verb="run")
        with step("run.commit", job=job.id):
            running = msgspec.structs.replace(told, state=JobState.RUNNING, started=now())
            records.keep_job(root, running)
            root.put(running)
        return Born(running, missing, generation)


@contextlib.contextmanager
def reader(root: Root, base: str, chain: tuple[str, ...]) -> Iterator[Job]:
    """A job that lives for the block and runs nothing of its own: while it is there, its chain is wanted, so that
    nobody removes or writes a layer of it."""
    job = _new_job(JobSpec(base=base, userns="host"), base, store.new_id())
    job = msgspec.structs.replace(job, layers=chain)
    with _made(root, job, contextlib.nullcontext) as (job, _):
        yield job
        remove.erase(root, job)


@contextlib.contextmanager
def _made(
    root: Root, job: Job, begin: Callable[[Job], contextlib.AbstractContextManager[Begun]]
) -> Iterator[tuple[Job, Begun]]:
    """The job, made and locked, in state ``created``, and what was begun for it before; erased if the block fails.

    The lock is taken before the row is there: to another engine a ``created`` job that isn't locked is a crash."""
    with root.intent(f"job-{job.id}") as intent:
        try:
            root.io(job.id).mkdir(mode=0o755, parents=True)
        except OSError as error:
            store.remove_tree(root.jobs / job.id)
            intent.undone()
            raise from_os(error, "create job") from error
        with store.locked(root.jobs / job.id, timeout=root.timeout):
            made = job
            try:
                with begin(job) as begun:
                    with step("run.prepare", job=job.id):
                        made = _make(root, job)
                    yield made, begun
            except BaseException:
                remove.erase(root, made)
                intent.undone()
                raise


def _make(root: Root, job: Job) -> Job:
    """The job's upper, then its rows."""
    assert job.upper is not None
    try:
        with trees.below(root, job) as tree:
            layers.create(root.layer(job.upper), like=tree)
    except SeracError:
        _check_chain(root, job)  # what it stands on was removed, perhaps: that says more
        raise
    with root.catalog.transaction() as transaction:
        if job.forked_from is not None:  # its chain may have been flattened since it was looked at
            job = msgspec.structs.replace(job, layers=root.catalog.snapshot(job.forked_from).layers)
        _check_chain(root, job)
        if job.spec.net == "bridge":
            job = msgspec.structs.replace(job, address=_address(root))
        transaction.add_job(job)
        below = job.layers[-1] if job.layers else None
        transaction.put_layer(Layer(id=str(job.upper), parent=below, owner=job.id, created=job.created))
    return job


def _check_chain(root: Root, job: Job) -> None:
    """Within the transaction that adds the job: all that it stands on is there, and nobody writes it."""
    root.catalog.base(job.base)
    if not job.layers:
        return
    if not {layer.id for layer in root.catalog.layers()}.issuperset(job.layers):
        raise NotFound("the layers were removed meanwhile")
    written = {other.upper for other in root.catalog.jobs() if other.state not in ENDED}
    if written.intersection(job.layers):
        raise Busy("the snapshot is being resumed by its job", hint="pin it before, or pause the job again")


def _address(root: Root) -> Address:
    """Within the transaction that adds the job, so that no two engines choose the same."""
    return network.allocate(root.config, [job.address for job in root.catalog.jobs() if job.address is not None])
