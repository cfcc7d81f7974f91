"""export --format podman: a snapshot with processes becomes a checkpoint archive. Nothing is committed; a file is there
whole or not at all, as with `engine.lifecycle.exports`.

It is to be looked at and taken apart by tools that know such archives. No other engine can bring the processes back:
their PID 1 is serac's init, bound into a root that serac mounted, in namespaces and a cgroup that serac made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import BinaryIO

from engine import archive, layers
from engine.errors import InvalidInput
from engine.exchange import Container, write_checkpoint
from engine.lifecycle import oci_export, run, trees
from engine.lifecycle.archiving import Progress
from engine.lifecycle.root import Root
from engine.model import Snapshot
from engine.tree import Node, open_directory, open_image


def check(snapshot: Snapshot) -> Snapshot:
    """Raises InvalidInput for a snapshot that isn't a checkpoint."""
    if snapshot.image is None:
        raise InvalidInput(f"snapshot {snapshot.id} has no processes", hint="use --format oci")
    return snapshot


def export_checkpoint(root: Root, snapshot: Snapshot, out: BinaryIO, *, progress: Progress | None = None) -> None:
    """Raises NotFound, InvalidInput (a name that the archive can't hold), OSError, Damaged."""
    tick = None if progress is None else lambda done: progress(done, 0)
    with (
        root.intent(f"export-{snapshot.id}", scratch=True) as intent,
        run.reader(root, snapshot.base, snapshot.layers) as job,
        trees.forest(root) as forest,
    ):
        intent.undone()  # there is nothing but the scratch directory
        after = forest.chain(snapshot.base, job.layers)
        with _processes(root, snapshot) as processes:
            write_checkpoint(
                out,
                _container(root, snapshot),
                before=forest.chain(snapshot.base, ()),
                after=after,
                but=frozenset({oci_export.OWN}),
                processes=processes,
                scratch=intent.path,
                tick=tick,
            )


@contextlib.contextmanager
def _processes(root: Root, snapshot: Snapshot) -> Iterator[Node]:
    local = layers.image(root.layer(snapshot.layers[-1]))
    digest = snapshot.image.digest if snapshot.image is not None else None
    if local.exists() or digest is None:
        opened = open_directory(local)
    else:
        opened = open_image(root.images / digest / archive.META, root.images / digest / archive.BLOB)
    with opened as tree:
        yield tree


def _container(root: Root, snapshot: Snapshot) -> Container:
    first = oci_export.main_session(snapshot)
    base = root.catalog.base(snapshot.base)
    env = first.env or {**base.env, **snapshot.spec.env}
    return Container(
        id=snapshot.id.ljust(64, "0"),
        name=snapshot.name,
        base=f"localhost/serac-base:{snapshot.base[:12]}",
        image=snapshot.base,
        created=snapshot.created,
        checkpointed=snapshot.created,
        args=oci_export.command(first),
        env=[f"{key}={value}" for key, value in env.items()],
        workdir=first.workdir or snapshot.spec.workdir,
        uid=first.uid,
        gid=first.gid,
        labels=snapshot.labels,
    )
