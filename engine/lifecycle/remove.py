"""rm: a job that isn't running, with its upper, its logs and the snapshot it was paused to.

A criu that a pause has left whose engine died comes to its end first, as by recover. 1 COMMIT: the job's row goes, with
its snapshot (unless pinned) and the layers that nothing else needs; 2 what still lives or is held of the host is taken
down; 3 the bytes go. Killed after 1: directories that the catalog doesn't know and a marker in tmp/, put right by the
sweep.

A snapshot: 1 COMMIT: its row goes, with those of layers that nothing else needs; 2 the bytes go. Killed between them:
the same.

Other snapshots that came from the job stay, and so do the layers that they or forks need.
"""

from __future__ import annotations

from typing import NamedTuple

from engine import layers
from engine.catalog import Transaction
from engine.errors import Busy, InUse
from engine.lifecycle import criu, mounting, processes
from engine.lifecycle.root import Root, require
from engine.model import ENDED, Job, JobState
from engine.steps import step
from engine.store import remove_tree


def remove(root: Root, job: Job, *, force: bool) -> None:
    if not force:
        require(job, JobState.PAUSED, *ENDED, verb="remove", hint="`serac stop JOB` first, or --force")
    root.give_way()
    with root.intent(f"rm-{job.id}") as intent:
        try:
            erase(root, job)
        except Busy:
            intent.undone()
            raise


def erase(root: Root, job: Job) -> None:
    """Remove a job, whatever state it is in; the caller holds its lock and an intent."""
    criu.settle(root, job, committed=job.state is not JobState.PAUSING)
    mounted = mounting.names(root, job)
    with step("remove.commit", job=job.id):
        gone = _forget(root, job)
    with step("remove.release", job=job.id):
        processes.take_down(root, job)
        mounting.let_go(root, job, mounted)
    with step("remove.bytes", job=job.id):
        gone.remove(root)
        remove_tree(root.jobs / job.id)


class Gone(NamedTuple):
    """What no row speaks of any more: ids of layers, and of layers that may stay but top no snapshot any more."""

    layers: list[str]
    tops: list[str]

    def remove(self, root: Root) -> None:
        for layer in self.tops:
            layers.forget_snapshot(root.layer(layer))
        for layer in self.layers:
            remove_tree(root.layer(layer))


def _forget(root: Root, job: Job) -> Gone:
    """The rows go."""
    tops = []
    with root.catalog.transaction(durable=True) as transaction:
        transaction.remove_job(job.id)
        needed = job.loading is not None and not job.loading.keep
        goes_on = needed or job.state in (JobState.PAUSED, JobState.RESUMING)
        for snapshot in root.catalog.snapshots() if goes_on else ():
            if snapshot.id == job.snapshot and snapshot.job == job.id and not snapshot.pinned:
                _refuse_forked(root, snapshot.id)
                transaction.remove_snapshot(snapshot.id)
                tops.append(snapshot.layers[-1])
        known = {layer.id for layer in root.catalog.layers()}
        gone = forget_unreferenced(root, transaction)
    # The upper of a job that failed before its rows were written has no row.
    return Gone(gone if job.upper is None or job.upper in known else [*gone, job.upper], tops)


def remove_snapshot(root: Root, ref: str, *, pinned: bool = True) -> None:
    """Remove a snapshot; its layers stay while a chain needs them. Raises InUse for what a job is paused to, and for a
    pinned one where ``pinned`` ones are to stay; Busy while a job is made from it."""
    snapshot = root.snapshot(ref)
    root.give_way()
    with root.intent(f"rm-{snapshot.id}") as intent:
        try:
            with step("remove.snapshot"):
                gone = _forget_snapshot(root, snapshot.id, pinned=pinned)
        except (InUse, Busy):
            intent.undone()
            raise
        with step("remove.layers"):
            gone.remove(root)


def _forget_snapshot(root: Root, snapshot_id: str, *, pinned: bool) -> Gone:
    """Its row goes, and the rows of the layers that nothing else needs."""
    with root.catalog.transaction(durable=True) as transaction:
        snapshot = root.catalog.snapshot(snapshot_id)
        if snapshot.pinned and not pinned:
            raise InUse(f"snapshot {snapshot_id} is pinned")
        _refuse_used(root, snapshot.id)
        _refuse_forked(root, snapshot.id)
        transaction.remove_snapshot(snapshot.id)
        return Gone(forget_unreferenced(root, transaction), [snapshot.layers[-1]])


def _refuse_forked(root: Root, snapshot_id: str) -> None:
    """A fork that is being made reads the process image."""
    for job in root.catalog.jobs_in(JobState.CREATED):
        if job.forked_from == snapshot_id:
            raise Busy(f"snapshot {snapshot_id} is being forked", hint="try again when the fork runs")


def _refuse_used(root: Root, snapshot_id: str) -> None:
    for job in root.catalog.jobs_in(JobState.PAUSED, JobState.RESUMING):
        if job.snapshot == snapshot_id:
            raise InUse(f"job {job.name} is paused to snapshot {snapshot_id}", hint="`serac rm JOB` removes both")


def forget_unreferenced(root: Root, transaction: Transaction) -> list[str]:
    """The rows of layers that nothing needs go; their ids, for whoever removes the bytes."""
    rows = root.catalog.layers()
    gone = layers.unreferenced(rows, snapshots=root.catalog.snapshots(), jobs=root.catalog.jobs())
    for layer in gone:
        transaction.remove_layer(layer)
    return gone
