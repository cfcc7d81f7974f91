"""recover: bring the world back in line with the catalog.

A job in a passing state (``created``, ``pausing``, ``resuming``) whose lock is free was left by an engine that died.
Whoever takes the job next mends it first (`taken`), as the crash table of the verb says; opening a root mends all.

The sweep removes what the catalog doesn't know. It is due when tmp/ holds a marker (`engine.store.intent`), and runs
only while nobody is inside a verb that makes or removes directories.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from pathlib import Path

import msgspec

from engine import cgroup, layers, store
from engine.errors import Busy, NotFound
from engine.lifecycle import mounting, observe, pause, processes, remove, resume
from engine.lifecycle.root import Root
from engine.model import LIVE, Job, JobState, Limits
from engine.steps import step

PASSING = (JobState.CREATED, JobState.PAUSING, JobState.RESUMING)


@contextlib.contextmanager
def taken(root: Root, ref: str) -> Iterator[Job]:
    """Take a job's lock and give the job, mended and settled. Raises NotFound, Busy."""
    with root.locked(ref) as job:
        mended = mend(root, job)
        if mended is None:
            raise NotFound(f"job {job.name} was never completed")
        yield observe.settle(root, mended)


def recover(root: Root) -> None:
    """What an engine does when it opens a root; cheap when all is well."""
    for job in root.catalog.jobs_in(*PASSING):
        with contextlib.suppress(Busy, NotFound), root.locked(job.id, timeout=0) as locked:
            mend(root, locked)
    with store.sweeping(root.tmp) as due:
        if due:
            sweep(root)


def mend(root: Root, job: Job) -> Job | None:
    """Finish or undo the verb that was interrupted; None when that removed the job. The caller holds its lock."""
    if job.state not in PASSING:
        return job
    with step(f"recover.{job.state}", job=job.id):
        if job.state is JobState.CREATED:
            remove.erase(root, job)
            return None
        if job.state is JobState.PAUSING:
            return _mend_pausing(root, job)
        return _mend_resuming(root, job)


def _mend_pausing(root: Root, job: Job) -> Job:
    running = msgspec.structs.replace(job, state=JobState.RUNNING)
    pause.undo(root, running, root.group_of(job))
    return running


def _mend_resuming(root: Root, job: Job) -> Job:
    snapshot = root.catalog.snapshot(job.snapshot or "")
    if resume.begun(root, job, snapshot):
        return resume.commit(root, job, snapshot)
    processes.take_down(root, job)
    return resume.undo(root, job, snapshot)


def sweep(root: Root) -> None:
    """Remove what nobody knows of; the caller is alone in the root."""
    with step("recover.sweep"):
        jobs = {job.id: job for job in root.catalog.jobs()}
        _sweep_groups(root, jobs)
        for directory in (root.jobs, root.run_jobs):
            _sweep_directory(directory, known=jobs.keys())
        for job in jobs.values():
            if job.state not in LIVE and job.state not in PASSING:
                processes.take_down(root, job)
        sealed = {layer.id: layer.owner is None for layer in root.catalog.layers()}
        _sweep_directory(root.layers, known=sealed.keys())
        for layer_id, is_sealed in sealed.items():
            if not is_sealed:
                layers.unseal(root.layer(layer_id))
        _sweep_bases(root)
        processes.release_network(root)


def _sweep_groups(root: Root, jobs: dict[str, Job]) -> None:
    here = Path(root.group("", Limits()).path)
    for directory in here.iterdir() if here.is_dir() else ():
        if directory.is_dir() and directory.name not in jobs:
            group = root.group(directory.name, Limits())
            cgroup.kill(group, timeout=root.timeout)
            cgroup.remove(group)


def _sweep_bases(root: Root) -> None:
    known = {base.digest for base in root.catalog.bases()}
    for mount in root.mounts.iterdir():
        if mount.name not in known:
            mounting.unmount(root, mount.name)
    _sweep_directory(root.bases, known=known)


def _sweep_directory(directory: Path, *, known: Container[str]) -> None:
    for path in directory.iterdir():
        if path.name not in known:
            store.remove_tree(path)
