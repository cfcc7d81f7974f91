"""recover: bring the world back in line with the catalog.

A job in a passing state (``created``, ``pausing``, ``resuming``, or ``running`` with sessions pending) whose lock is
free was left by an engine that died, and so was one that should hold nothing of the host and does. Whoever takes the
job next mends it first (`taken`), as the crash table of the verb says; opening a root mends all. A job that can't be
mended now is left as it is, said in the log, and keeps nobody from the others.

The sweep removes what the catalog doesn't know. It is due when tmp/ holds a marker (`engine.store.intent`), and runs
only while nobody is inside a verb that makes or removes directories.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path

import msgspec

from engine import cgroup, launch, layers, store
from engine.errors import Busy, NotFound, SeracError, WrongState, translated
from engine.kernel.mountinfo import mounts
from engine.lifecycle import asking, criu, images, lazy, mounting, observe, pause, processes, remove, resume, stop
from engine.lifecycle.root import Root
from engine.model import LIVE, PASSING, Job, JobState
from engine.steps import step

log = logging.getLogger("serac")

_GLANCE = 0.2
"""seconds between two looks at a job that is to run again"""


@contextlib.contextmanager
def taken(root: Root, ref: str, *, timeout: float | None = None) -> Iterator[Job]:
    """Take a job's lock and give the job, mended and settled. Raises NotFound, Busy."""
    with root.locked(ref, timeout=timeout) as job, translated(f"job {job.name}"):
        mended = mend(root, job)
        if mended is None:
            raise NotFound(f"job {job.name} was never completed")
        yield observe.settle(root, mended)


def look(root: Root, job: Job) -> Job:
    """The job as it is now, mended and settled where that is due. A job that another engine is at work on, or that
    can't be mended now, is given as the catalog has it."""
    due = job.state in PASSING or _left(job) or (job.state in LIVE and _changed(root, job))
    if not due:
        return job
    try:
        with taken(root, job.id, timeout=0) as settled:
            return settled
    except (Busy, NotFound):
        return job
    except SeracError as error:
        log.warning("job=%s can't be settled: %s", job.id, error)
        return job


def seen(root: Root, ref: str) -> Job:
    """Find a job, and give it as `look` does. Raises NotFound."""
    return look(root, root.catalog.job(ref))


def settled(root: Root, ref: str, *, wait: bool = False) -> Job:
    """The job when nobody pauses or resumes it any more, and what is to run in it was started; ``wait``: when it runs,
    or has ended. Raises NotFound, and Busy where a verb takes longer than the root's timeout, but not with ``wait``."""
    waits = {JobState.PAUSED, JobState.FROZEN} if wait else set()
    while True:
        job = seen(root, ref)
        if job.state in waits:
            time.sleep(_GLANCE)
        elif job.state in PASSING or job.pending:
            with contextlib.suppress(*((Busy,) if wait else ())), taken(root, job.id):
                pass  # whoever works on it holds the lock until it is done
        else:
            return job


def _left(job: Job) -> bool:
    """Whether a verb has left something for whoever takes the job next."""
    return bool(job.pending) or job.owes or asking.untold(job)


def _changed(root: Root, job: Job) -> bool:
    if not processes.alive(root, job) or _misplaced(root, job):
        return True
    return job.loading is not None and lazy.ended(root, job)


def _misplaced(root: Root, job: Job) -> bool:
    """Whether a job stands still that should run, or the other way round: a verb died between the two."""
    return cgroup.standing(root.group_of(job)) != (job.state is JobState.FROZEN)


def recover(root: Root) -> None:
    """What an engine does when it opens a root; cheap when all is well."""
    for job in root.catalog.jobs_in(*PASSING, *LIVE):
        if job.state in PASSING or job.loading or _left(job) or _misplaced(root, job):
            look(root, job)
    root.await_removals()  # they keep a sweep away
    with store.sweeping(root.tmp, anyway=_abandoned(root)) as found:
        if found.due:
            with root.journal.telling("recover.sweep") as event, step("recover.sweep"):
                found.complete = sweep(root)
                event["facts"] = {"complete": found.complete}


def _abandoned(root: Root) -> bool:
    """Whether a slot is there whose engine died (`engine.lifecycle.ahead`): a run directory, and no job that lives."""
    names = set(_names(root.run_jobs)) - {job.id for job in root.catalog.jobs_in(*PASSING, *LIVE)}
    return any(not store.held(root.run_job(name)) for name in names)


def mend(root: Root, job: Job) -> Job | None:
    """Finish or undo the verb that was interrupted; None when that removed the job. The caller holds its lock."""
    if job.state in PASSING:
        with _told(root, job), root.intent(f"mend-{job.id}"), step(f"recover.{job.state}", job=job.id):
            return _mend_passing(root, job)
    if job.state in LIVE and processes.alive(root, job) and _misplaced(root, job):
        with step("recover.standing", job=job.id):
            stop.place(root, job)
    if job.pending and processes.alive(root, job):
        with _told(root, job), step("recover.pending", job=job.id), contextlib.suppress(*processes.REFUSED):
            resume.complete(root, job)
        return root.catalog.job_with(job.id)
    if asking.untold(job) and processes.alive(root, job):
        with step("recover.answer", job=job.id):
            asking.tell(root, job)
        return root.catalog.job_with(job.id)
    if job.loading and job.state in LIVE and processes.alive(root, job) and lazy.ended(root, job):
        with contextlib.suppress(WrongState):
            return lazy.awaited(root, job)
    if job.state not in LIVE and root.run_job(job.id).exists() and not root.shelf.holds(job.id):
        _release(root, job)
    return job


@contextlib.contextmanager
def _told(root: Root, job: Job) -> Iterator[None]:
    """The mending of a job is an event of its own, with the state that it was found in. One that can't be mended is
    told once, however often it is looked at."""
    with root.journal.telling("recover.mend") as event:
        event.update({"job": job.id, "name": job.name, "facts": {"found": job.state}})
        event["told"] = job.id not in root.unmended
        root.unmended.add(job.id)
        yield
        root.unmended.discard(job.id)
        event["told"] = True


def _release(root: Root, job: Job) -> None:
    """What a job that is paused or ended still holds of the host goes."""
    criu.settle(root, job, committed=True)
    processes.take_down(root, job)


def _mend_passing(root: Root, job: Job) -> Job | None:
    if job.state is JobState.CREATED:
        remove.erase(root, job)
        return None
    # Of a dump, which in a take is committed where the row says ``resuming``. A restore's criu dies with its engine.
    criu.settle(root, job, committed=job.state is JobState.RESUMING)
    if job.state is JobState.PAUSING:
        before = JobState.FROZEN if job.frozen else JobState.RUNNING
        pause.undo(root, msgspec.structs.replace(job, state=before, frozen=False))
    else:
        resume.undo(root, job.id)
    return root.catalog.job_with(job.id)


def sweep(root: Root) -> bool:
    """Remove what nobody knows of; the caller is alone in the root. False when something could not be removed, which
    is said in the log."""
    jobs = {job.id: job for job in root.catalog.jobs()}
    known = {layer.id: layer for layer in root.catalog.layers()}
    bases = {base.digest for base in root.catalog.bases()}
    slots = {job_id for job_id in _names(root.run_jobs) if store.held(root.run_job(job_id))}  # of engines that live
    wanted = bases | mounting.wanted(root, jobs.values())
    images_alone = [layer.id for layer in known.values() if not layer.directory]
    # The record of a snapshot that is gone says nothing, but for a resume that may have to be taken back.
    may_return = {job.upper for job in jobs.values() if job.pending}
    tops = {snapshot.layers[-1]: snapshot for snapshot in root.catalog.snapshots()}
    topless = [layer for layer in known if layer not in tops and layer not in may_return]
    imageless = [layer for layer in known if layer not in tops or tops[layer].image is None]
    work: list[Callable[[], object]] = [
        *_strange_groups(root, slots | jobs.keys()),
        *(
            partial(_release, root, job)
            for job in jobs.values()
            if job.state not in LIVE | PASSING and not store.held(root.run_job(job.id))
        ),
        *_strange_directories((root.jobs, root.run_jobs), known=slots | jobs.keys()),
        *_strange_directories((root.layers,), known=known),
        *(partial(layers.unseal, root.layer(layer)) for layer in topless),
        *(partial(layers.drop_image, root.layer(layer)) for layer in imageless),
        *(partial(layers.drop_directory, root.layer(layer)) for layer in images_alone),
        *(partial(mounting.unmount, root, name) for name in _names(root.mounts) if name not in wanted),
        *(partial(launch.unmount, target, detach=True, timeout=root.timeout) for target in _mounted_below(root.tmp)),
        *_strange_directories((root.bases,), known=bases, remove=partial(images.remove, root)),
        *_strange_directories((root.images,), known=images.referenced(root), remove=partial(images.remove, root)),
        *(
            partial(store.remove_asides, place / name)
            for place in (root.layers, root.jobs, root.bases)
            for name in _names(place)
        ),
        partial(processes.release_network, root),
    ]
    outcomes = [_done(piece) for piece in work]
    return all(outcomes)


def _done(piece: Callable[[], object]) -> bool:
    try:
        piece()
    except (SeracError, OSError) as error:
        log.warning("sweep: %s", error)
        return False
    return True


def _strange_groups(root: Root, jobs: Container[str]) -> Iterator[Callable[[], object]]:
    for tag in (root.config.name, f"{root.config.name}.pages"):
        for job_id in cgroup.leftover(root.host, tag):
            if job_id not in jobs:
                group = cgroup.everywhere(root.host, tag, job_id)
                yield partial(cgroup.kill, group, timeout=root.timeout)
                yield partial(cgroup.remove, group)


def _strange_directories(
    places: tuple[Path, ...], *, known: Container[str], remove: Callable[[Path], None] = store.remove_tree
) -> Iterator[Callable[[], object]]:
    for place in places:
        yield from (partial(remove, place / name) for name in _names(place) if name not in known)


def _mounted_below(place: Path) -> list[Path]:
    """What a doctor that was killed left there."""
    above = Path(os.path.realpath(place))
    return [Path(mount.target) for mount in mounts() if above in Path(mount.target).parents]


def _names(place: Path) -> list[str]:
    """Of what is in a directory, which another engine may take away when it was empty."""
    try:
        return os.listdir(place)
    except FileNotFoundError:
        return []
