"""ahead: what jobs need, made before they are there.

A slot is a control group and what waits in it: serac-launch with a job's namespaces, its network and its filter, or a
criu that has loaded its libraries. Neither needs to know the job's layers. An engine that is told of a `Pool` keeps
slots for new jobs; `engine.lifecycle.prefetch` makes one for a paused job whose resume is announced. A job that finds
no slot, or one that has died, begins as it would without.

A slot bears the id of the job that will take it and has its control group and its run directory, which this engine
locks as long as it lives: sweeps and checks leave those alone. Whoever takes the job's lock in another engine takes the
slot away; so does every verb here that takes the job down.

| killed | leaves | put right by |
| --- | --- | --- |
| the engine | a control group, a run directory, mounts; processes die with it | who takes the job next; the sweep |
| a slot's process | the same | who takes the job next |
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

from engine import cgroup, launch, store
from engine.errors import Busy, NotFound, SeracError
from engine.launch import JobSlot
from engine.lifecycle import criu, processes
from engine.lifecycle.root import Root, log
from engine.model import Job, JobSpec, JobState, Limits, Pool
from engine.steps import step


class What(NamedTuple):
    """All that a slot depends on."""

    kind: Literal["init", "criu"]
    limits: Limits
    net: str
    userns: str
    allow: tuple[str, ...] = ()
    lazily: bool = False


def what_init(spec: JobSpec) -> What:
    return What("init", spec.limits, spec.net, spec.userns, spec.allow)


def what_criu(spec: JobSpec, *, lazily: bool) -> What:
    """Its network is the image's."""
    return What("criu", spec.limits, "", spec.userns, lazily=lazily)


class Slot:
    """On the shelf."""

    def __init__(
        self, job: Job, what: What, group: cgroup.Group, begun: JobSlot | criu.Begun, held: contextlib.ExitStack
    ) -> None:
        self.job = job
        self.what = what
        self.begun = begun
        self._group = group
        self._held = held

    def serves(self) -> bool:
        return _launcher(self.begun).waits and cgroup.populated(self._group)

    def closing(self, call: Callable[[], object]) -> None:
        """Call that when it is closed."""
        self._held.callback(call)

    def close(self) -> None:
        self._held.close()


def make(root: Root, job: Job, what: What) -> Slot:
    """A slot, which the caller puts on the shelf, or takes down what there is of it on an error. In the shelf's
    thread."""
    root.stage(job.id)
    with contextlib.ExitStack() as held:
        held.enter_context(store.locked(root.run_job(job.id), timeout=root.timeout))
        begun: JobSlot | criu.Begun
        if what.kind == "init":
            begun = held.enter_context(processes.begun(root, job))
        else:
            begun = held.enter_context(_criu(root, job, lazily=what.lazily))
        _launcher(begun).await_begun(timeout=root.timeout)
        return Slot(job, what, root.group_of(job), begun, held.pop_all())


def _launcher(begun: JobSlot | criu.Begun) -> launch.Slot:
    return begun if isinstance(begun, JobSlot) else begun.slot


def _criu(root: Root, job: Job, *, lazily: bool) -> contextlib.AbstractContextManager[criu.Begun]:
    return criu.begun(root, job, processes.place(root, job), lazily=lazily)


def _take_down(root: Root, job: Job) -> None:
    with contextlib.suppress(SeracError):  # the sweep finds it
        processes.take_down(root, job)


@contextlib.contextmanager
def init(root: Root, job: Job, *, verb: str) -> Iterator[JobSlot]:
    """A slot for a job's init, from the shelf or begun now: it makes what needs no layers while the caller plans, who
    takes the job down on an error."""
    with _taken(root, job, what_init(job.spec)) as begun:
        if isinstance(begun, JobSlot):
            yield begun
            return
        with contextlib.ExitStack() as stack:
            with step(f"{verb}.begin", job=job.id):
                slot = stack.enter_context(processes.begun(root, job))
            yield slot


@contextlib.contextmanager
def restoring(root: Root, job: Job, *, lazily: bool, verb: str) -> Iterator[criu.Begun]:
    """The same for a criu, for `engine.lifecycle.restore`."""
    with _taken(root, job, what_criu(job.spec, lazily=lazily)) as begun:
        if isinstance(begun, criu.Begun):
            yield begun
            return
        with contextlib.ExitStack() as stack:
            with step(f"{verb}.begin", job=job.id):
                anew = stack.enter_context(_criu(root, job, lazily=lazily))
            yield anew


@contextlib.contextmanager
def _taken(root: Root, job: Job, what: What) -> Iterator[JobSlot | criu.Begun | None]:
    """What is on the shelf for a job, while it serves; what doesn't is taken down."""
    kept = root.shelf.take(job.id)
    with contextlib.ExitStack() as stack:
        if kept is not None:
            closing = stack.enter_context(contextlib.closing(kept))
            if isinstance(closing, Slot) and closing.what == what and closing.serves():
                yield closing.begun
                return
    if root.run_job(job.id).exists():
        processes.take_down(root, job)
    yield None


# the pool


def claim(root: Root, what: What) -> str:
    """An id for a new job: that of a slot, if there is one for it."""
    return root.shelf.claim(what) or store.new_id()


def fill(root: Root, pool: Pool) -> None:
    """See to it, beside the caller, that the pool is full."""
    root.shelf.keep(partial(_fill, root, pool))


def _fill(root: Root, pool: Pool) -> None:
    spec = JobSpec(base="", limits=pool.limits)
    try:
        for what, wanted in ((what_init(spec), pool.jobs), (what_criu(spec, lazily=False), pool.forks)):
            for _ in range(wanted - root.shelf.count(what)):
                _add(root, spec, what)
    except (SeracError, OSError) as error:
        log.warning("the pool can't be filled: %s", error)


def _add(root: Root, spec: JobSpec, what: What) -> None:
    job_id = store.new_id()
    job = Job(id=job_id, name=job_id, spec=spec, state=JobState.CREATED, base="", created=0.0)
    with root.intent(f"slot-{job_id}"):
        try:
            root.shelf.put(job_id, make(root, job, what))
        except BaseException:
            _take_down(root, job)
            raise


def close(root: Root) -> None:
    """All slots go, with the engine that made them."""
    root.shelf.close()
    for job_id in root.shelf.ids():
        kept = root.shelf.take(job_id)
        if isinstance(kept, Slot):
            kept.close()
            take_away(root, kept.job)


def take_away(root: Root, job: Job) -> None:
    """What a slot leaves that was closed; who is at work on its job does that himself."""
    try:
        with root.locked(job.id, timeout=0) as found:
            if found.state is JobState.PAUSED and root.run_job(job.id).exists():
                processes.take_down(root, found)
    except NotFound:  # it never got one
        _take_down(root, job)
    except Busy:
        return
    except SeracError as error:
        log.warning("job=%s its slot can't be taken away: %s", job.id, error)
