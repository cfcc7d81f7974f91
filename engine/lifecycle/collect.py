"""gc: what the root's policies give up goes (`engine.lifecycle.retain`), then what nothing speaks of any more; and what
is there twice is there once.

What is found is decided in `find`, from rows alone. Then, for each: 1 COMMIT: rows go, or a layer's row says that its
image is all there is; 2 the bytes go. Killed between them: the sweep does 2.

Nothing is taken that is being resumed, archived or read: their rows and locks are looked at again in 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from engine import layers, store
from engine.errors import Busy
from engine.lifecycle import images, records, remove, retain
from engine.lifecycle.root import Root
from engine.model import LIVE, PASSING, Collected, Job, JobState, Layer, Snapshot, Verdict
from engine.steps import step


def collect(root: Root, *, dry_run: bool = False) -> list[Collected]:
    """What was removed, or would be, each with its reason."""
    root.give_way()
    condemned = [verdict for verdict in retain.verdicts(root, note=not dry_run) if not verdict.keep]
    if dry_run:
        return [*map(retain.entry, condemned), *find(without(_rows(root), condemned), os.listdir(root.images))]
    gone = [retain.entry(verdict) for verdict in condemned if retain.execute(root, verdict)]
    with root.intent("collect"):
        return gone + [entry for entry in find(_rows(root), os.listdir(root.images)) if _collected(root, entry)]


class Rows(NamedTuple):
    layers: list[Layer]
    snapshots: list[Snapshot]
    jobs: list[Job]


def _rows(root: Root) -> Rows:
    return Rows(root.catalog.layers(), root.catalog.snapshots(), root.catalog.jobs())


def without(rows: Rows, condemned: Iterable[Verdict]) -> Rows:
    """The rows as they are when those are gone. Pure."""
    gone = {which for verdict in condemned for which in (verdict.snapshot, verdict.job)}
    return Rows(
        rows.layers,
        [snapshot for snapshot in rows.snapshots if snapshot.id not in gone],
        [job for job in rows.jobs if job.id not in gone],
    )


def find(rows: Rows, stored: Iterable[str]) -> list[Collected]:
    """``stored``: digests of the images that there are. Pure."""
    gone = layers.unreferenced(rows.layers, snapshots=rows.snapshots, jobs=rows.jobs)
    found = [Collected(kind="layer", id=layer, reason="no snapshot, job or fork needs it") for layer in gone]
    left = [layer for layer in rows.layers if layer.id not in gone]
    named = {layer.image for layer in left} | {entry.image.digest for entry in rows.snapshots if entry.image}
    found += [
        Collected(kind="image", id=digest, reason="no layer or snapshot has it any more")
        for digest in sorted(stored)
        if digest not in named
    ]
    twice = redundant(left, rows.snapshots, rows.jobs)
    return found + [Collected(kind="directory", id=layer, reason="its image has the same") for layer in twice]


def redundant(rows: Iterable[Layer], snapshots: Iterable[Snapshot], jobs: Iterable[Job]) -> list[str]:
    """Layers that are archived and whose directories nobody will write again, or has mounted. Pure."""
    jobs = list(jobs)
    paused = {job.snapshot for job in jobs if job.state is JobState.PAUSED}
    needed = {layer for job in jobs if job.state in LIVE | PASSING for layer in (*job.layers, *job.mounted, job.upper)}
    for snapshot in snapshots:
        # Its job may want to write it again, or there is no other copy of its processes.
        unfinished = snapshot.archive is None and (snapshot.due or snapshot.image is not None)
        if snapshot.id in paused or unfinished:
            needed.add(snapshot.layers[-1])
    return [row.id for row in rows if row.directory and row.image and row.owner is None and row.id not in needed]


def _collected(root: Root, entry: Collected) -> bool:
    gone = _collect(root, entry)
    if gone:
        root.journal.add(f"collect.{entry.kind}", reason=entry.reason, facts={"id": entry.id})
    return gone


def _collect(root: Root, entry: Collected) -> bool:
    """Whether it is gone; it may have come to use since it was found."""
    try:
        if entry.kind == "image":
            with step("collect.image"):
                return images.remove_unreferenced(root, entry.id)
        return _forget_layer(root, entry.id) if entry.kind == "layer" else _drop_directory(root, entry.id)
    except Busy:
        return False


def _forget_layer(root: Root, layer_id: str) -> bool:
    with step("collect.layer"), root.catalog.transaction(durable=True) as transaction:
        gone = remove.Gone(remove.forget_unreferenced(root, transaction), [])
    with step("collect.bytes"):
        gone.remove(root)
    return not root.layer(layer_id).exists()


def _drop_directory(root: Root, layer_id: str) -> bool:
    try:
        with store.locked(root.layer(layer_id), timeout=0):
            return _drop(root, layer_id)
    except FileNotFoundError:
        return False


def _drop(root: Root, layer_id: str) -> bool:
    with step("collect.directory"), root.catalog.transaction(durable=True) as transaction:
        rows = _rows(root)
        if layer_id not in redundant(rows.layers, rows.snapshots, rows.jobs):
            return False
        (layer,) = root.catalog.chain((layer_id,))
        alone = msgspec.structs.replace(layer, directory=False)
        records.keep_layer(root, alone)
        transaction.put_layer(alone)
    with step("collect.copies"):
        layers.drop_directory(root.layer(layer_id))
    return True
