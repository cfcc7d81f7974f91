"""The invariants of a root, and what doesn't hold of them: rows against rows, rows against the disk, rows against the
host. Looks, and changes nothing.

A job that somebody works on is left out, and so are the directories while a verb is making or removing some.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine import archive, cgroup, layers, store
from engine.archive import manifest
from engine.errors import Busy, NotFound, SeracError
from engine.lifecycle import archiving, flush, images, mounting, processes, records
from engine.lifecycle.root import Root
from engine.model import LIVE, PASSING, Base, Job, JobState, Layer, Snapshot, Violation


class Rows(NamedTuple):
    bases: dict[str, Base]
    layers: dict[str, Layer]
    snapshots: dict[str, Snapshot]
    jobs: dict[str, Job]


def rows(root: Root) -> Rows:
    """All of them, as of one moment."""
    catalog = root.catalog
    with catalog.transaction():
        return Rows(
            {base.digest: base for base in catalog.bases()},
            {layer.id: layer for layer in catalog.layers()},
            {snapshot.id: snapshot for snapshot in catalog.snapshots()},
            {job.id: job for job in catalog.jobs()},
        )


def violations(root: Root, *, unseen: list[str]) -> Iterator[Violation]:
    """All that is wrong; ``unseen`` gets what could not be looked at, a line each."""
    known = rows(root)
    yield from among(known)
    for job in known.jobs.values():
        try:
            with root.locked(job.id, timeout=0) as current:
                yield from _job(root, current)
        except (Busy, NotFound) as error:
            unseen.append(f"job {job.name}: {error}")
    try:
        with store.locked(root.tmp, timeout=0):
            known = rows(root)
            yield from _bytes(root, known)
            yield from _strange(root, known)
    except Busy:
        unseen.append("the directories of the root: a verb is at work on them")


# rows against rows


def among(known: Rows) -> Iterator[Violation]:
    """What rows say that can't be true together. Pure."""
    uppers = {job.upper: job for job in known.jobs.values() if job.upper is not None}
    for snapshot in known.snapshots.values():
        yield from _missing(f"snapshot {snapshot.id}", snapshot.base, snapshot.layers, known)
        for name in snapshot.layers:
            writer = uppers.get(name)
            if writer is not None and writer.state is not JobState.RESUMING:
                yield Violation(subject=f"snapshot {snapshot.id}", what=f"job {writer.name} writes its layer {name}")
    for job in known.jobs.values():
        chain = (*job.layers, *filter(None, [job.upper]))
        yield from _missing(f"job {job.name}", job.base, chain, known)
        if job.state is JobState.PAUSED:
            own = known.snapshots.get(job.snapshot or "")
            if own is None:
                yield Violation(subject=f"job {job.name}", what="it is paused, and its snapshot isn't there")
            elif own.layers != job.layers:
                yield Violation(subject=f"job {job.name}", what="it is paused to a snapshot with other layers")
    for layer in known.layers.values():
        if layer.owner is not None and uppers.get(layer.id) is None:
            yield Violation(subject=f"layer {layer.id}", what=f"job {layer.owner} is said to write it, and doesn't")


def _missing(subject: str, base: str, chain: tuple[str, ...], known: Rows) -> Iterator[Violation]:
    if base not in known.bases:
        yield Violation(subject=subject, what=f"its base {base[:12]} isn't there")
    for layer in chain:
        if layer not in known.layers:
            yield Violation(subject=subject, what=f"its layer {layer} isn't there")


# rows against the host


def _job(root: Root, job: Job) -> Iterator[Violation]:
    """The caller holds its lock, so that whatever it is passing through nobody is at work on."""
    subject = f"job {job.name}"
    if job.state in PASSING or job.pending:
        yield Violation(subject=subject, what=f"it was left {job.state} by an engine that died", mends=True)
        return
    if job.state in LIVE:
        yield from _living(root, job)
        return
    if store.held(root.run_job(job.id)):  # an engine has a slot ready for it
        return
    group = cgroup.everywhere(root.host, root.config.name, job.id)
    what = {
        "has processes": cgroup.populated(group),
        "has a control group": any(os.path.exists(path) for path in (group.path, *group.legacy)),
        "has something in the run directory": root.run_job(job.id).exists(),
        "has a network interface": job.address is not None and _has_link(job.address.interface),
        "has a work directory": any((root.layer(layer) / "work").exists() for layer in job.layers[-1:]),
    }
    for fact, true in what.items():
        if true:
            yield Violation(subject=subject, what=f"it is {job.state} and {fact}", mends=True)


def _living(root: Root, job: Job) -> Iterator[Violation]:
    if not processes.alive(root, job):
        yield Violation(subject=f"job {job.name}", what=f"it is {job.state} and has no process", mends=True)
        return
    init = processes.recall(root, job).pid
    for pid in _inside(init):
        with contextlib.suppress(OSError):  # it ended
            if f"/serac/{root.config.name}/{job.id}" not in Path(f"/proc/{pid}/cgroup").read_text():
                yield Violation(subject=f"job {job.name}", what=f"its process {pid} is in another control group")


def _inside(init: int) -> Iterator[int]:
    """The processes of a job: those of its pid namespace."""
    own = os.readlink(f"/proc/{init}/ns/pid")
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/pid") == own:
                    yield int(entry)


def _has_link(name: str) -> bool:
    return os.path.exists(f"/sys/class/net/{name}")


# rows against the disk


def _bytes(root: Root, known: Rows) -> Iterator[Violation]:
    for base in known.bases.values():
        yield from _image(root.bases / base.digest, f"base {base.digest[:12]}")
    for digest in sorted(images.referenced(root)):
        yield from _image(root.images / digest, f"image {digest[:12]}")
    for layer in known.layers.values():
        there = (root.layer(layer.id) / "upper").is_dir()
        if layer.directory and not there:
            if layer.image is None:
                yield Violation(subject=f"layer {layer.id}", what="its directory is gone")
            else:
                yield Violation(
                    subject=f"layer {layer.id}", what="its directory is gone; its image is there", mends=True
                )
        elif not layer.directory and layer.image is None:
            yield Violation(subject=f"layer {layer.id}", what="it is neither a directory nor an image")
    for snapshot in known.snapshots.values():
        yield from _snapshot(root, snapshot, known)
    for job in known.jobs.values():
        if job.state not in PASSING and not root.io(job.id).is_dir():
            yield Violation(subject=f"job {job.name}", what="its logs are gone", mends=True)


def _image(directory: Path, subject: str) -> Iterator[Violation]:
    try:
        archive.check_files(directory)
        if archive.image_digest(directory) != directory.name:
            yield Violation(subject=subject, what="its index isn't the one of that digest")
    except (SeracError, OSError) as error:
        yield Violation(subject=subject, what=str(error))


def _snapshot(root: Root, snapshot: Snapshot, known: Rows) -> Iterator[Violation]:
    subject, top = f"snapshot {snapshot.id}", snapshot.layers[-1]
    image = snapshot.image
    if image is not None and image.digest is None and not layers.image(root.layer(top)).is_dir():
        yield Violation(subject=subject, what="its processes are gone; resume --mode filesystem has its files")
    if flush.is_lost(snapshot):
        yield Violation(
            subject=subject, what="the host went down before it was on the disk; its files may not be whole"
        )
    if snapshot.archive is not None and not has_manifest(root, snapshot):
        yield Violation(subject=subject, what="its manifest isn't the one that was written", mends=True)
    written = known.layers.get(top)
    if written is not None and written.owner is None and not is_recorded(root, snapshot):
        yield Violation(subject=subject, what="its record isn't there or says something else", mends=True)


def has_manifest(root: Root, snapshot: Snapshot) -> bool:
    """Whether the manifest of an archived snapshot is there, the one that was written."""
    try:
        return manifest.digest(archiving.manifest_file(root, snapshot).read_bytes()) == snapshot.archive
    except OSError:
        return False


def is_recorded(root: Root, snapshot: Snapshot) -> bool:
    """Whether the record beside its top layer has what a rebuilt catalog needs of it."""
    try:
        found = layers.manifest(root.layer(snapshot.layers[-1]))
    except (SeracError, OSError):
        return False
    return found is not None and _lasting(found) == _lasting(snapshot)


def _lasting(snapshot: Snapshot) -> Snapshot:
    """Without what is told by the manifest."""
    return msgspec.structs.replace(snapshot, archive=None, due=False, image=None, unflushed=None)


def _strange(root: Root, known: Rows) -> Iterator[Violation]:
    """What is there and no row speaks of."""
    slots = {name for name in _named(root.run_jobs) if store.held(root.run_job(name))}  # of engines that live
    places: list[tuple[Path, Container[str], str]] = [
        (root.layers, known.layers, "layer"),
        (root.images, images.referenced(root), "image"),
        (root.bases, known.bases, "base"),
        (root.jobs, known.jobs, "job"),
        (root.run_jobs, slots | known.jobs.keys(), "run directory of job"),
        (root.mounts, {*known.bases, *mounting.wanted(root, known.jobs.values())}, "mount"),
        (root.tmp, (), "scratch directory"),
    ]
    for place, expected, kind in places:
        for name in _named(place):
            if name not in expected:
                yield Violation(subject=f"{kind} {name}", what="no row speaks of it", mends=True)
    for tag in (root.config.name, f"{root.config.name}.pages"):
        for name in sorted(cgroup.leftover(root.host, tag) - known.jobs.keys() - slots):
            yield Violation(subject=f"control group of job {name}", what="no row speaks of it", mends=True)


def _named(place: Path) -> list[str]:
    return sorted(os.listdir(place)) if place.is_dir() else []


def recorded(root: Root) -> None:
    """Write the records anew that aren't as they must be: a part of the repair. The caller is alone in the root."""
    for snapshot in root.catalog.snapshots():
        if root.layer(snapshot.layers[-1]).is_dir() and not is_recorded(root, snapshot):
            records.keep_snapshot(root, snapshot)
    for layer in root.catalog.layers():
        if not layer.directory and layer.image is not None:
            records.keep_layer(root, layer)
    records.keep_bases(root)
