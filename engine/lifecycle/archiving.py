"""archive: the layers and the process image of a snapshot become images, and its manifest is written.

For each layer of the chain that has no image yet, then for the process image: 1 write the image aside, digested on its
way; 2 place it under its digest; 3 row: the layer (or the snapshot) has it. Then 4 the manifest, beside the top layer;
5 COMMIT: the snapshot has its digest.

| killed | leaves | put right by |
| --- | --- | --- |
| within 1 | a scratch directory, a marker in tmp/ | the sweep; the next archiving starts that image anew |
| between 2 and 3 | an image that no row speaks of | the same sweep, or the next archiving, which finds it there |
| between 3 and 5 | images that layers have | the next archiving goes on with the others |

The layers are read as they lie there. A job may be resumed to write its own top layer meanwhile, and a snapshot may be
removed: then the snapshot is gone from the catalog, which is looked at again and again, and in the transaction of 3.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from engine import archive, layers, store, tools
from engine.archive import manifest
from engine.errors import Damaged, NotFound, WrongState, from_os
from engine.lifecycle import images, trees
from engine.lifecycle.root import Root
from engine.model import Layer, Snapshot
from engine.steps import step
from engine.tree import Node, open_directory, without

Progress = Callable[[int, int], None]
"""bytes done and in all; the sum is an estimate"""

PATIENCE = 24 * 3600.0
"""seconds that one archiving of a snapshot waits for another one of it"""
GLANCE = 0.2
"""seconds between two looks whether the snapshot is still there"""
REMAPS = b"remaps"
"""of a process image: second names of files in the upper, which only a resume by ``reuse`` needs"""


def archive_snapshot(root: Root, ref: str, *, progress: Progress | None = None) -> Snapshot:
    """The snapshot, archived; at once where it is already. Raises NotFound when it is removed, or resumed by ``reuse``,
    meanwhile; NoSpace, Damaged."""
    while True:
        snapshot = root.snapshot(ref)
        if snapshot.archive is not None and _has_manifest(root, snapshot):
            return snapshot
        try:
            return _archive(root, snapshot, progress)
        except NotFound:
            if root.catalog.snapshot(snapshot.id).layers == snapshot.layers:
                raise
            # Its chain was flattened meanwhile: there is less to do now.


def _archive(root: Root, snapshot: Snapshot, progress: Progress | None) -> Snapshot:
    with alone(root, snapshot, timeout=PATIENCE), root.intent(f"archive-{snapshot.id}", scratch=True) as intent:
        watch = _Watch(root, snapshot, intent.path, progress)
        try:
            with watch.gone_is_not_found():
                for layer in root.catalog.chain(snapshot.layers):
                    if layer.image is None:
                        _archive_layer(root, snapshot, layer, watch)
                if snapshot.image is not None:
                    _archive_processes(root, snapshot, watch)
                return _commit(root, snapshot.id)
        except BaseException:
            intent.undone()
            raise


def due(root: Root, *, but: Collection[tuple[str, ...]] = ()) -> str | None:
    """The oldest snapshot that is to be archived in the background, if there is one ``but`` these."""
    found = [(entry.created, entry.id) for entry in root.catalog.snapshots() if entry.due and (entry.id,) not in but]
    return min(found)[1] if found else None


def make_due(root: Root, ref: str) -> None:
    """Leave a snapshot to whoever works in the background. Raises NotFound."""
    with root.catalog.transaction(durable=True) as transaction:
        snapshot = root.catalog.snapshot(ref)
        if snapshot.archive is None:
            transaction.put_snapshot(msgspec.structs.replace(snapshot, due=True))


def under_way(root: Root) -> dict[str, tuple[int, int]]:
    """How far the archiving of snapshots is: bytes done and in all, 0 = unknown."""
    found = {}
    for place in root.tmp.glob("archive-*/progress"):
        with contextlib.suppress(FileNotFoundError):
            done, total = map(int, place.read_text().split())
            found[place.parent.name.partition("-")[2].partition(".")[0]] = (done, total)
    return found


@contextlib.contextmanager
def alone(root: Root, snapshot: Snapshot, *, timeout: float) -> Iterator[None]:
    """Nobody archives the snapshot for the block. Raises Busy, NotFound. The lock is not the layer's own, which whoever
    reads it may have."""
    layer = root.layer(snapshot.layers[-1])
    with contextlib.ExitStack() as stack:
        try:
            upper = layer / "upper"
            stack.enter_context(store.locked(upper if upper.exists() else layer, timeout=timeout))
        except FileNotFoundError as error:
            raise NotFound(f"snapshot {snapshot.id} was removed meanwhile") from error
        yield


class _Watch:
    """Tells how far it is, and ends it when the snapshot is gone."""

    def __init__(self, root: Root, snapshot: Snapshot, scratch: Path, progress: Progress | None) -> None:
        self._root, self._snapshot = root, snapshot
        self._scratch = scratch
        self._progress = progress
        self._before = self._total = 0
        self._looked = time.monotonic()
        if progress is not None:
            self._total = sum(map(tools.disk_usage, _local_trees(root, snapshot)))

    @property
    def place(self) -> Path:
        """Where an image is written aside."""
        return self._scratch / "image"

    def tick(self, done: int) -> None:
        done = min(self._before + done, self._total) if self._total else self._before + done
        if self._progress is not None:
            self._progress(done, self._total)
        if time.monotonic() - self._looked >= GLANCE:
            self._root.catalog.snapshot(self._snapshot.id)
            store.write_aside(self._scratch / "progress", b"%d %d" % (done, self._total))
            self._looked = time.monotonic()

    def next(self, size: int) -> None:
        """An image is done, of so many bytes."""
        self._before += size
        self.tick(0)

    @contextlib.contextmanager
    def gone_is_not_found(self) -> Iterator[None]:
        """What goes wrong while a layer is written again, or removed, is not worth telling."""
        try:
            yield
        except (OSError, Damaged) as error:
            self._root.catalog.snapshot(self._snapshot.id)
            if isinstance(error, OSError):
                raise from_os(error, "archive") from error
            raise


def _local_trees(root: Root, snapshot: Snapshot) -> Iterator[Path]:
    """What is still to be archived."""
    for layer in root.catalog.chain(snapshot.layers):
        if layer.image is None:
            yield root.layer(layer.id) / "upper"
    if snapshot.image is not None and snapshot.image.digest is None:
        yield layers.image(root.layer(snapshot.layers[-1]))


def _archive_layer(root: Root, snapshot: Snapshot, layer: Layer, watch: _Watch) -> None:
    top = _top(root, snapshot)
    with (
        trees.opened(root, layer) as tree,
        _written(root, tree, watch) as digest,
        step("archive.layer"),
        root.catalog.transaction(durable=True) as transaction,
    ):
        _same(root, snapshot, top)
        (current,) = root.catalog.chain((layer.id,))
        transaction.put_layer(msgspec.structs.replace(current, image=digest))


def _archive_processes(root: Root, snapshot: Snapshot, watch: _Watch) -> None:
    assert snapshot.image is not None
    if snapshot.image.digest is not None:
        return
    top = _top(root, snapshot)
    with (
        open_directory(layers.image(root.layer(snapshot.layers[-1]))) as tree,
        _written(root, without(tree, {REMAPS}), watch) as digest,
        step("archive.processes"),
        root.catalog.transaction(durable=True) as transaction,
    ):
        current = _same(root, snapshot, top)
        assert current.image is not None
        image = msgspec.structs.replace(current.image, digest=digest)
        transaction.put_snapshot(msgspec.structs.replace(current, image=image))


def _top(root: Root, snapshot: Snapshot) -> Layer:
    (top,) = root.catalog.chain(snapshot.layers[-1:])
    return top


def _same(root: Root, snapshot: Snapshot, top: Layer) -> Snapshot:
    """The snapshot as its row is now. Raises NotFound when its top layer may have been another for a moment."""
    if _top(root, snapshot).edition != top.edition:
        raise NotFound(f"snapshot {snapshot.id} was resumed meanwhile", hint="archive it again")
    return root.catalog.snapshot(snapshot.id)


@contextlib.contextmanager
def _written(root: Root, tree: Node, watch: _Watch) -> Iterator[str]:
    """Steps 1 and 2; the digest, for the block that writes the row."""
    aside = watch.place
    with step("archive.write"):
        image = archive.build_image(tree, aside, tick=watch.tick)
    digest = archive.image_digest(aside)
    with contextlib.ExitStack() as stack:
        with step("archive.place"):
            stack.enter_context(images.placed(aside, root.images / digest, timeout=root.timeout))
        yield digest
    store.remove_tree(aside)
    watch.next(image.blob.size)


def _commit(root: Root, snapshot_id: str) -> Snapshot:
    """Steps 4 and 5."""
    snapshot = root.catalog.snapshot(snapshot_id)
    encoded = manifest.encode(describe(root, snapshot))
    try:
        with step("archive.manifest"):
            path = manifest_file(root, snapshot)
            store.write_aside(path, encoded)
            store.sync_file(path)
            store.sync_directory(path.parent)
    except OSError as error:
        raise from_os(error, "write manifest") from error
    with step("archive.commit"), root.catalog.transaction(durable=True) as transaction:
        current = root.catalog.snapshot(snapshot_id)
        if current.layers != snapshot.layers:
            raise NotFound(f"the chain of snapshot {snapshot_id} was flattened meanwhile", hint="archive it again")
        archived = msgspec.structs.replace(current, archive=manifest.digest(encoded), due=False)
        transaction.put_snapshot(archived)
    return archived


def describe(root: Root, snapshot: Snapshot) -> manifest.Manifest:
    """The manifest of a snapshot whose parts all are images."""
    parts = [_part(root, str(layer.image)) for layer in root.catalog.chain(snapshot.layers)]
    processes = snapshot.image
    return manifest.Manifest(
        id=snapshot.id,
        job=snapshot.job,
        name=snapshot.name,
        spec=snapshot.spec,
        base=_base(root, snapshot.base),
        layers=tuple(parts),
        overlay=layers.MEANING,
        mode=snapshot.mode,
        reason=snapshot.reason,
        processes=processes,
        processes_size=_part(root, str(processes.digest)).size if processes is not None else 0,
        context=snapshot.context,
        labels=snapshot.labels,
        parent=snapshot.parent,
        created=snapshot.created,
    )


def _base(root: Root, digest: str) -> manifest.BaseRecord:
    base = root.catalog.base(digest)
    return manifest.BaseRecord(digest=digest, size=base.size, env=base.env)


def _part(root: Root, digest: str) -> manifest.Part:
    image = archive.load_image(root.images / digest)
    return manifest.Part(digest=digest, size=image.meta.size + image.blob.size)


def verify(root: Root, ref: str, *, progress: Progress | None = None) -> list[str]:
    """Read every byte of an archived snapshot and its base and compare; what is wrong, a line each. Raises WrongState
    when it isn't archived."""
    snapshot = root.snapshot(ref)
    if snapshot.archive is None:
        raise WrongState(f"snapshot {snapshot.id} isn't archived", hint=f"`serac snapshot archive {snapshot.id}`")
    wrong = list(archive.damages(root.bases / snapshot.base, snapshot.base, progress=progress))
    for digest in sorted(_digests(root, snapshot)):
        wrong += archive.damages(root.images / digest, digest, progress=progress)
    if not _has_manifest(root, snapshot):
        wrong.append(f"{manifest_file(root, snapshot)} is not the one of {snapshot.archive}")
    if wrong:
        root.catalog.snapshot(snapshot.id)  # one that was removed meanwhile isn't damaged
    return wrong


def manifest_file(root: Root, snapshot: Snapshot) -> Path:
    return root.layer(snapshot.layers[-1]) / "manifest.json"


def _has_manifest(root: Root, snapshot: Snapshot) -> bool:
    """Whether it is there and whole."""
    try:
        return manifest.digest(manifest_file(root, snapshot).read_bytes()) == snapshot.archive
    except OSError:
        return False


def _digests(root: Root, snapshot: Snapshot) -> set[str]:
    digests = {layer.image for layer in root.catalog.chain(snapshot.layers)}
    if snapshot.image is not None:
        digests.add(snapshot.image.digest)
    return {digest for digest in digests if digest is not None}
