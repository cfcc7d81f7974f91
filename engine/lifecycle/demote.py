"""demote: a paused job gets cold: the images of its snapshot are all that is left of its layers and its processes.

1 archive: what of the snapshot is no image yet becomes one (`engine.lifecycle.archiving`); 2 look: all that the next
resume will mount is there, and nobody else has the directories; 3 COMMIT: the layers' rows say that their images are
all there is; 4 the directories go, and with them what criu wrote.

| killed | leaves | put right by |
| --- | --- | --- |
| within 1 | as of archiving | the next archiving |
| between 3 and 4 | directories that the catalog says are gone, a marker in tmp/ | the sweep |

Before 3 a resume reuses the directory, afterwards it stacks on the image. Layers that jobs have mounted as directories
stay such: `engine.lifecycle.collect` takes them when the last of these jobs has ended.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import msgspec

from engine import archive, layers, store
from engine.errors import Busy, InUse
from engine.lifecycle import archiving, collect, records, recover
from engine.lifecycle.root import Root, require
from engine.model import Collected, Job, JobState, Layer
from engine.steps import step

Rest = Literal["local", "due", "archived", "shared", "cold"]
"""What there is of a paused job's newest layer: its directory alone, for good or until it is archived; its image too;
that, but other jobs have the directory; its image alone."""


def demote(root: Root, ref: str, *, progress: archiving.Progress | None = None) -> list[Collected]:
    """The directories that went. The job isn't locked while it is archived: it can be resumed, which ends that.
    Raises WrongState unless it is paused; InUse, Busy, NoSpace, Damaged, and all is as before."""
    job = root.catalog.job(ref)
    require(job, JobState.PAUSED, verb="demote")
    archiving.archive_snapshot(root, job.snapshot or "", progress=progress)
    with recover.taken(root, job.id) as job:
        require(job, JobState.PAUSED, verb="demote")
        return _demote(root, job)


def _demote(root: Root, job: Job) -> list[Collected]:
    """Steps 2 to 4."""
    with root.intent(f"demote-{job.id}") as intent, contextlib.ExitStack() as stack:
        try:
            found = _droppable(root, job)
            for layer in found:
                with contextlib.suppress(FileNotFoundError):  # a sweep will find that it is gone already
                    stack.enter_context(store.locked(root.layer(layer.id), timeout=0))
            with step("demote.commit", job=job.id):
                _commit(root, job, found)
        except BaseException:
            intent.undone()
            raise
        with step("demote.bytes", job=job.id):
            for layer in found:
                layers.drop_directory(root.layer(layer.id))
    reason = f"job {job.name} is cold: its images have the same"
    return [Collected(kind="directory", id=layer.id, reason=reason) for layer in found]


def _commit(root: Root, job: Job, found: list[Layer]) -> None:
    with root.catalog.transaction(durable=True) as transaction:
        if found != _droppable(root, job):
            raise Busy(f"something came to use what job {job.name} is paused to", hint="try again")
        for layer in found:
            alone = msgspec.structs.replace(layer, directory=False)
            records.keep_layer(root, alone)
            transaction.put_layer(alone)


def _droppable(root: Root, job: Job) -> list[Layer]:
    """The layers whose directories can go, after a look at their images. Raises InUse, Busy, Damaged."""
    snapshot = root.catalog.snapshot(job.snapshot or "")
    chain = root.catalog.chain(snapshot.layers)
    if snapshot.archive is None:
        raise Busy(f"the chain of snapshot {snapshot.id} was flattened meanwhile", hint="try again")
    alone = _alone(job, rows_of(root))
    if chain[-1].directory and chain[-1].id not in alone:
        raise InUse(f"other jobs run on what job {job.name} is paused to", hint="`serac ps` lists them")
    images = {layer.image for layer in chain} | {snapshot.image.digest if snapshot.image is not None else None}
    for digest in sorted(filter(None, images)):
        archive.check_files(root.images / digest)
    return [layer for layer in chain if layer.id in alone]


def _alone(job: Job, rows: collect.Rows) -> set[str]:
    """The layers whose directories nobody but this job, paused as it is, could want. Pure."""
    return set(collect.redundant(rows.layers, rows.snapshots, [other for other in rows.jobs if other.id != job.id]))


def rows_of(root: Root) -> collect.Rows:
    return collect.Rows(root.catalog.layers(), root.catalog.snapshots(), root.catalog.jobs())


def rest(job: Job, rows: collect.Rows) -> Rest:
    """How far a paused job is on the way down. Pure."""
    snapshot = next((entry for entry in rows.snapshots if entry.id == job.snapshot), None)
    top = next((row for row in rows.layers if snapshot is not None and row.id == snapshot.layers[-1]), None)
    if snapshot is None or top is None or not top.directory:
        return "cold"
    if snapshot.archive is None:
        return "due" if snapshot.due else "local"
    return "archived" if top.id in _alone(job, rows) else "shared"
