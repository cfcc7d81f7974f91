"""rebuild: a catalog that is missing or damaged is made anew from what lies on the disk.

1 read all records (`engine.lifecycle.records`); 2 decide what the rows were (`plan`, pure); 3 write them into a new
catalog in tmp/, durable; 4 the old one goes to lost/, with its log; 5 COMMIT: the new one is renamed into its place.
Killed before 5: there is no catalog, or the damaged one; the next repair does it again.

What the disk has and no row can speak of goes to lost/ too, for people to look at: nothing is deleted. Jobs that were
running run on. What only the catalog knew is lost: how often a job was paused, the times of ended jobs, names of bases
that were built before they had a record.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine import store
from engine.archive import manifest
from engine.catalog import Catalog
from engine.errors import from_os
from engine.lifecycle.records import Found, FoundLayer
from engine.lifecycle.root import Places
from engine.model import Base, Job, JobState, Layer, Snapshot
from engine.steps import step


class Plan(NamedTuple):
    bases: list[Base]
    layers: list[Layer]
    snapshots: list[Snapshot]
    jobs: list[Job]
    lost: list[str]
    """what can't be had back, a line each"""


def plan(found: Found, living: Mapping[str, JobState]) -> Plan:
    """``living``: the jobs that have processes, whether they are running or frozen. Pure."""
    lost = list(found.unreadable)
    images = dict(_images(found))
    snapshots = {entry.id: entry for entry in _snapshots(found, images, lost)}
    jobs = [job for job in _jobs(found, snapshots, living, lost) if _stands(found, images, job, lost)]
    for job in jobs:
        if job.upper is not None:  # it is written: what it topped is no snapshot any more
            snapshots = {name: entry for name, entry in snapshots.items() if entry.layers[-1] != job.upper}
    wanted = {layer for entry in snapshots.values() for layer in entry.layers}
    wanted |= {layer for job in jobs for layer in (*job.layers, *filter(None, [job.upper]))}
    lost += [f"layer {name}: nothing tells what it is of" for name in found.layers if name not in wanted]
    lost += [f"job {name}: nothing tells what it was" for name in found.jobs if name not in {job.id for job in jobs}]
    rows = list(_layers(found, images, snapshots.values(), jobs))
    return Plan(list(found.bases.values()), rows, list(snapshots.values()), _named_apart(jobs), lost)


def _images(found: Found) -> Iterator[tuple[str, str]]:
    """The layers that have an image for certain, and its digest."""
    for name, layer in found.layers.items():
        if layer.manifest is not None and layer.snapshot is not None and _goes_with(layer.snapshot, layer.manifest):
            for part, image in zip(layer.snapshot.layers, layer.manifest.layers, strict=True):
                if image.digest in found.images:
                    yield part, image.digest
        if layer.row is not None and layer.row.image in found.images:
            yield name, layer.row.image


def _goes_with(snapshot: Snapshot, described: manifest.Manifest) -> bool:
    """Whether the manifest names the images of the snapshot's chain, in its order."""
    return described.id == snapshot.id and len(described.layers) == len(snapshot.layers)


def _snapshots(found: Found, images: Mapping[str, str], lost: list[str]) -> Iterator[Snapshot]:
    for name, layer in found.layers.items():
        snapshot = layer.snapshot
        if snapshot is None or not snapshot.layers or snapshot.layers[-1] != name:
            continue
        missing = [f"layer {part}" for part in snapshot.layers if not _there(found, images, part)]
        if snapshot.base not in found.bases:
            missing.append(f"base {snapshot.base[:12]}")
        if missing:
            lost.append(f"snapshot {snapshot.id} ({snapshot.name}): {', '.join(missing)} is gone")
            continue
        yield _with_archive(snapshot, layer)


def _there(found: Found, images: Mapping[str, str], layer_id: str) -> bool:
    layer = found.layers.get(layer_id)
    return layer is not None and (layer.directory or layer_id in images)


def _with_archive(snapshot: Snapshot, layer: FoundLayer) -> Snapshot:
    """It was archived if its manifest is there."""
    described = layer.manifest
    if described is None or not _goes_with(snapshot, described):
        return msgspec.structs.replace(snapshot, archive=None)
    digest = manifest.digest(manifest.encode(described))
    return msgspec.structs.replace(snapshot, archive=digest, due=False, image=described.processes)


def _jobs(
    found: Found, snapshots: Mapping[str, Snapshot], living: Mapping[str, JobState], lost: list[str]
) -> Iterator[Job]:
    for name, recorded in found.jobs.items():
        own = sorted((entry for entry in snapshots.values() if entry.job == name), key=lambda entry: entry.created)
        job = recorded if recorded is not None and recorded.id == name else _of(own[-1]) if own else None
        if job is None:
            continue
        if job.base not in found.bases:
            lost.append(f"job {job.name}: base {job.base[:12]} is gone")
            continue
        top = next((entry for entry in own if entry.layers[-1] == job.upper), None)
        state = living.get(name, JobState.RUNNING)  # without processes it has ended, as the next look will find
        written = top is None or (name in living and state is JobState.RUNNING)
        if job.upper is not None and job.upper in found.layers and written:
            yield msgspec.structs.replace(job, state=state, pending=(), loading=None)
            continue
        # Its upper is sealed; or it went, with a resume that was taken back.
        below = [entry for entry in own if entry.id == job.snapshot or entry.layers == job.layers]
        snapshot = top or (below[-1] if below else None)
        if snapshot is None:
            lost.append(f"job {job.name}: neither its upper nor its snapshot is there")
            continue
        yield _failed(job, snapshot) if snapshot.context.failure is not None else _paused(job, snapshot)


def _stands(found: Found, images: Mapping[str, str], job: Job, lost: list[str]) -> bool:
    missing = [layer for layer in job.layers if not _there(found, images, layer)]
    if missing:
        lost.append(f"job {job.name}: layer {missing[0]} is gone")
    return not missing


def _of(snapshot: Snapshot) -> Job:
    """A job of which there is no more than a snapshot."""
    return Job(
        id=snapshot.job, name=snapshot.name, spec=snapshot.spec, state=JobState.PAUSED, base=snapshot.base,
        upper=snapshot.layers[-1], created=snapshot.created,
    )  # fmt: skip


def _paused(job: Job, snapshot: Snapshot) -> Job:
    return msgspec.structs.replace(
        job, state=JobState.PAUSED, spec=snapshot.spec, layers=snapshot.layers, upper=None, mounted=(),
        snapshot=snapshot.id, pending=(), loading=None,
    )  # fmt: skip


def _failed(job: Job, snapshot: Snapshot) -> Job:
    """It has ended, and left the snapshot (`engine.lifecycle.keep`)."""
    failure = snapshot.context.failure
    status = failure.status if failure is not None else None
    kept = _paused(job, snapshot)
    return msgspec.structs.replace(kept, state=JobState.EXITED, status=status, ended=snapshot.created)


def _layers(
    found: Found, images: Mapping[str, str], snapshots: Collection[Snapshot], jobs: Collection[Job]
) -> Iterator[Layer]:
    parents: dict[str, str | None] = {}
    for chain in [*(entry.layers for entry in snapshots), *((*job.layers, *filter(None, [job.upper])) for job in jobs)]:
        parents.update(zip(chain, (None, *chain), strict=False))
    owners = {job.upper: job.id for job in jobs if job.upper is not None}
    created = {entry.layers[-1]: entry.created for entry in snapshots}
    for name, parent in parents.items():
        owner = owners.get(name)
        yield Layer(
            id=name,
            image=None if owner is not None else images.get(name),
            directory=found.layers[name].directory,
            parent=parent,
            owner=owner,
            created=created.get(name, 0.0),
        )


def _named_apart(jobs: list[Job]) -> list[Job]:
    """No two jobs have one name: a later one is called by its id."""
    taken: set[str] = set()
    apart = []
    for job in sorted(jobs, key=lambda job: job.created):
        apart.append(msgspec.structs.replace(job, name=job.id) if job.name in taken else job)
        taken.add(apart[-1].name)
    return apart


def write(made: Plan, file: Path) -> None:
    """Step 3: a new catalog. Raises NoSpace."""
    catalog = Catalog(file)
    with catalog.transaction(durable=True) as transaction:
        for base in made.bases:
            transaction.put_base(base)
        for base in sorted(made.bases, key=lambda base: base.created):
            for name in base.names:
                transaction.put_tag(name, base.digest)
        for layer in made.layers:
            transaction.put_layer(layer)
        for snapshot in made.snapshots:
            transaction.put_snapshot(snapshot)
        for job in made.jobs:
            transaction.add_job(job)
    catalog.close()


def place(root: Places, new: Path, lost: Path) -> None:
    """Steps 4 and 5."""
    try:
        with step("rebuild.aside"):
            lost.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in _with_log(root.catalog_file):
                with contextlib.suppress(FileNotFoundError):
                    (root.config.root / name).rename(lost / name)
        with step("rebuild.commit"):
            (new / root.catalog_file.name).rename(root.catalog_file)
            store.sync_directory(root.config.root)
    except OSError as error:
        raise from_os(error, "place the new catalog") from error


def _with_log(catalog: Path) -> tuple[str, ...]:
    return catalog.name, f"{catalog.name}-wal", f"{catalog.name}-shm"


def set_aside(root: Places, made: Plan, lost: Path) -> list[str]:
    """What no row of the new catalog speaks of goes to lost/; a line for each."""
    named = {layer.image for layer in made.layers} | {entry.image.digest for entry in made.snapshots if entry.image}
    kept: dict[Path, set[Any]] = {
        root.bases: {base.digest for base in made.bases},
        root.images: named,
        root.layers: {layer.id for layer in made.layers},
        root.jobs: {job.id for job in made.jobs},
    }
    said = []
    with step("rebuild.lost"):
        for place, names in kept.items():
            for strange in sorted(set(os.listdir(place)) - names):
                (lost / place.name).mkdir(mode=0o700, exist_ok=True)
                (place / strange).rename(lost / place.name / strange)
                said.append(f"{place.name}/{strange} is in {lost} now")
    return said
