"""Records: what lies beside the bytes, so that a catalog that is lost can be made anew (`engine.lifecycle.rebuild`).

    bases/<digest>/base.json     the base, with its names
    layers/<id>/snapshot.json    the snapshot that the layer tops (`engine.layers.seal`)
    layers/<id>/manifest.json    of that, once it is archived
    layers/<id>/layer.json       the layer, where its image is all there is of it
    jobs/<id>/job.json           the job, as it was when it began to run on its newest upper

They are written before the row that they go with, for the catalog may lag behind the disk and never lead it; and
flushed, but for a job's, without which nothing is lost. Nothing reads them as long as there is a catalog, so they hold
no more than what can't be told otherwise: a job's state is told by its processes, and by whether its upper is sealed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from engine import archive, layers, store
from engine.archive import manifest
from engine.errors import Damaged, SeracError, from_os
from engine.lifecycle.root import Places, Root
from engine.model import Base, Job, Layer, Snapshot, Value

Record = TypeVar("Record", bound=Value)


def keep_job(root: Places, job: Job) -> None:
    _keep(root.jobs / job.id / "job.json", job)


def keep_layer(root: Places, layer: Layer) -> None:
    path = root.layer(layer.id) / "layer.json"
    _keep(path, layer)
    _flush(path)


def keep_snapshot(root: Places, snapshot: Snapshot) -> None:
    """Of one that is there already; the pause that makes it flushes all at once."""
    directory = root.layer(snapshot.layers[-1])
    layers.seal(directory, snapshot)
    _flush(directory / "snapshot.json")


def keep_bases(root: Root) -> None:
    """Of all that there are: a name that moves is another's no more."""
    for base in root.catalog.bases():
        path = root.bases / base.digest / "base.json"
        if path.parent.is_dir() and _read(path, Base, []) != base:
            _keep(path, base)
            _flush(path)


def _keep(path: Path, record: Value) -> None:
    try:
        store.write_aside(path, msgspec.json.encode(record))
    except OSError as error:
        raise from_os(error, f"write {path.name}") from error


def _flush(path: Path) -> None:
    try:
        store.sync_file(path)
        store.sync_directory(path.parent)
    except OSError as error:
        raise from_os(error, f"flush {path.name}") from error


class Found(NamedTuple):
    """What the disk tells; names are those of directories."""

    bases: dict[str, Base]
    images: frozenset[str]
    layers: dict[str, FoundLayer]
    jobs: dict[str, Job | None]
    """None: there is no record of it"""
    unreadable: list[str]
    """what is there and isn't what it must be, a line each"""


class FoundLayer(NamedTuple):
    directory: bool
    processes: bool
    """whether a process image lies with it"""
    row: Layer | None
    snapshot: Snapshot | None
    manifest: manifest.Manifest | None


def found(root: Places) -> Found:
    wrong: list[str] = []
    bases = {name: base for name in _names(root.bases) if (base := _base(root.bases / name, wrong)) is not None}
    return Found(
        bases=bases,
        images=frozenset(name for name in _names(root.images) if _whole(root.images / name, wrong)),
        layers={name: _layer(root.layer(name), wrong) for name in _names(root.layers)},
        jobs={name: _read(root.jobs / name / "job.json", Job, wrong) for name in _names(root.jobs)},
        unreadable=wrong,
    )


def _names(place: Path) -> list[str]:
    return sorted(os.listdir(place))


def _base(directory: Path, wrong: list[str]) -> Base | None:
    """From its record, or without a name."""
    if not _whole(directory, wrong):
        return None
    base = _read(directory / "base.json", Base, wrong)
    if base is not None and base.digest == directory.name:
        return base
    image = archive.load_image(directory)
    created = (directory / archive.INDEX).stat().st_mtime
    return Base(digest=directory.name, size=image.meta.size + image.blob.size, source="found", created=created)


def _whole(directory: Path, wrong: list[str]) -> bool:
    """Whether it is the image of that digest, as far as can be told without reading all of it."""
    try:
        archive.check_files(directory)
        if archive.image_digest(directory) == directory.name:
            return True
        wrong.append(f"{directory} isn't the image of that digest")
    except (SeracError, OSError) as error:
        wrong.append(str(error))
    return False


def _layer(directory: Path, wrong: list[str]) -> FoundLayer:
    return FoundLayer(
        directory=(directory / "upper").is_dir(),
        processes=layers.image(directory).is_dir(),
        row=_read(directory / "layer.json", Layer, wrong),
        snapshot=_read(directory / "snapshot.json", Snapshot, wrong),
        manifest=_manifest(directory / "manifest.json", wrong),
    )


def _manifest(path: Path, wrong: list[str]) -> manifest.Manifest | None:
    try:
        return manifest.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (Damaged, OSError) as error:
        wrong.append(f"{path}: {error}")
        return None


def _read(path: Path, kind: type[Record], wrong: list[str]) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeError, OSError) as error:
        wrong.append(f"{path}: {error}")
        return None
