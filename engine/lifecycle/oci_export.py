"""export --format oci: a snapshot becomes an image, its base one layer and what its job changed another. Nothing is
committed; the layout is made aside and renamed, and an export that is killed leaves ``DIR.*.part``.

Left out: serac's own directory in a job, names that criu gave to files, processes and their memory, sockets. Holes are
zeros, and a file that has a name in the base and another one in a directory that was renamed is two files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine import base, store
from engine.errors import InvalidInput, from_os
from engine.exchange import ImageConfig, Process, changes, write_image, write_layer
from engine.lifecycle import run, trees
from engine.lifecycle.archiving import Progress
from engine.lifecycle.root import Root
from engine.model import SessionSpec, Snapshot
from engine.steps import step

OWN = b".serac"
"""what serac itself puts into a job"""
STEPS = 'for step; do /bin/sh -c "$step" || exit; done'
"""how the scripts of steps are run, one after the other until one fails"""


def export_image(root: Root, ref: str, target: str | BinaryIO, *, progress: Progress | None = None) -> Snapshot:
    """Write an OCI image layout; ``target`` is ``DIR[:TAG]``, a directory that is new or empty.

    Raises NotFound, InvalidInput (the target, or a file that no layer can hold), NoSpace, Damaged."""
    if not isinstance(target, str):
        raise InvalidInput("an image layout is a directory, not a stream", hint="name one: DIR[:TAG]")
    directory, tag = base.layout_and_tag(target)
    snapshot = root.snapshot(ref)
    with run.reader(root, snapshot.base, snapshot.layers) as job:
        try:
            with _made(directory) as layout, step("export.write"):
                _write(root, snapshot, job.layers, layout, tag, progress)
        except OSError as error:
            raise from_os(error, "export") from error
    return snapshot


@contextlib.contextmanager
def _made(directory: Path) -> Iterator[Path]:
    """A directory that has the name when the block is through. Raises InvalidInput when it can't be made."""
    if os.path.lexists(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise InvalidInput(f"{directory} is there, and not an empty directory", hint="choose another one")
    aside = directory.with_name(f"{directory.name}.{secrets.token_hex(4)}.part")
    try:
        aside.mkdir()
    except OSError as error:
        raise InvalidInput(f"{directory}: {error.strerror}") from error
    try:
        (aside / "blobs" / "sha256").mkdir(parents=True)
        yield aside
        with step("export.place"):
            aside.rename(directory)
            store.sync_directory(directory.parent)
    except BaseException:
        store.remove_tree(aside)
        raise


def _write(
    root: Root, snapshot: Snapshot, chain: tuple[str, ...], layout: Path, tag: str, progress: Progress | None
) -> None:
    blobs, done = layout / "blobs" / "sha256", 0

    def tick(size: int) -> None:
        if progress is not None:
            progress(done + size, 0)

    remaps = snapshot.image.remaps if snapshot.image is not None else ()
    but = frozenset([OWN, *map(os.fsencode, remaps)])
    with trees.forest(root) as forest:
        below, all_of_it = forest.chain(snapshot.base, ()), forest.chain(snapshot.base, chain)
        layers = [write_layer(blobs, changes(None, below), tick=tick)]
        done = layers[0].contents
        layers.append(write_layer(blobs, changes(below, all_of_it, but=but), tick=tick))
    write_image(layout, _config(root, snapshot), layers, tag=tag)


def _config(root: Root, snapshot: Snapshot) -> ImageConfig:
    described = root.catalog.base(snapshot.base)
    annotations = {
        "serac.snapshot": snapshot.id,
        "serac.base": snapshot.base,
        "serac.job": snapshot.name,
        "serac.mode": snapshot.mode,
    }
    return ImageConfig(
        architecture=base.architecture(),
        created=snapshot.created,
        process=_process(snapshot, {**described.env, **snapshot.spec.env}, annotations),
        history=(f"serac base {described.source}", f"serac snapshot {snapshot.id}"),
        annotations=annotations,
    )


def _process(snapshot: Snapshot, env: dict[str, str], annotations: dict[str, str]) -> Process:
    """What a filesystem resume would start: of a job made of steps, those that weren't completed."""
    first = main_session(snapshot)
    user = f"{first.uid}:{first.gid}" if first.uid or first.gid else ""
    return Process(
        user=user,
        env=tuple(f"{key}={value}" for key, value in env.items()),
        cmd=command(first),
        working_dir=first.workdir or snapshot.spec.workdir,
        labels={**snapshot.labels, **annotations},
    )


def main_session(snapshot: Snapshot) -> SessionSpec:
    """Session 0, one without a command where the job only serves ``exec``."""
    found = (session for session in snapshot.context.sessions if not session.id)
    return next(found, SessionSpec(workdir=snapshot.spec.workdir))


def command(session: SessionSpec) -> tuple[str, ...]:
    """A session as one command; empty where it has nothing to do."""
    scripts = [step.script for step in session.steps if step.name not in session.done]
    return ("/bin/sh", "-c", STEPS, "serac", *scripts) if scripts else session.argv
