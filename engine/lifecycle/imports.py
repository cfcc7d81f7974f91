"""import: a snapshot that was exported, here or on another host, is a snapshot of this root.

1 read the stream: every byte of every image is verified while it is written aside, then its tree is looked at; 2 place
the images; 3 directories of the layers, with the manifest; 4 COMMIT: in one transaction the base (where it came along),
the layers, all of them images, and the snapshot, pinned.

| killed | leaves | put right by |
| --- | --- | --- |
| within 1 | a scratch directory, a marker in tmp/ | the sweep |
| between 2 and 4 | images and directories that no row speaks of | the same sweep |

Nothing of it is mounted, restored or executed here. What is in a manifest is a value and no instruction: it has no path
of the host, and privileges that it asks for are refused unless its maker is trusted.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from engine import archive, base, layers, store
from engine.archive import manifest
from engine.archive.manifest import Manifest, Part
from engine.archive.stream import Reader
from engine.errors import Busy, Damaged, InvalidInput, NameTaken, NoSpace, NotFound, from_os
from engine.lifecycle import images, records, run, sessions
from engine.lifecycle.archiving import Progress
from engine.lifecycle.root import NAME, Root, now
from engine.model import Base, Layer, Snapshot
from engine.steps import step
from engine.tree import Node, open_image


def import_snapshot(
    root: Root, source: str | BinaryIO, *, trust: bool = False, progress: Progress | None = None
) -> Snapshot:
    """The snapshot, from a file or a stream; the same one again is no error. ``trust``: privileges that it asks for,
    and devices in it, are taken.

    Raises Damaged for what isn't as it must be, NotFound when its base is neither here nor in the stream, NameTaken
    when another snapshot has its id, InvalidInput for what only a trusted maker may ask for, NoSpace, Busy."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_translated())
        stream = stack.enter_context(_opened(source)) if isinstance(source, str) else source
        reader = Reader(stream)
        found = _known(root, reader)
        if found is not None:
            if stream is source:
                reader.pass_over()
            return found
        _check(reader.manifest, trust=trust)
        _check_base(root, reader)
        _check_room(root, reader.following())
        intent = stack.enter_context(root.intent(f"import-{reader.manifest.id}", scratch=True))
        try:
            return _take(root, reader, intent.path, trust=trust, progress=progress)
        except BaseException:
            intent.undone()
            raise


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os(error, "import") from error


def _opened(source: str) -> BinaryIO:
    try:
        return open(source, "rb")
    except OSError as error:
        raise InvalidInput(f"{source}: {error.strerror}", hint="a file, or - for standard input") from error


def _known(root: Root, reader: Reader) -> Snapshot | None:
    """The snapshot, if it is here."""
    try:
        found = root.catalog.snapshot(reader.manifest.id)
    except NotFound:
        return None
    if found.archive == manifest.digest(reader.encoded):
        return found
    raise NameTaken(
        f"there is another snapshot {found.id} here", hint=f"`serac snapshot rm {found.id}`, if it is not needed"
    )


def _check(described: Manifest, *, trust: bool) -> None:
    """What the manifest asks for. Raises Damaged for what no engine would have written, InvalidInput."""
    spec = described.spec
    try:
        run.check(spec)
        sessions.check_annotations(described.labels, None)
        sessions.check_texts((), described.base.env)
        sessions.check_context(described.context)
    except InvalidInput as error:
        raise Damaged(f"the manifest: {error}") from error
    if not NAME.fullmatch(described.name):
        raise Damaged(f"the manifest: not a name: {described.name[:80]!r}")
    if len(described.layers) > layers.DEPTH_MAX:
        raise Damaged(f"the manifest: {len(described.layers)} layers, {layers.DEPTH_MAX} are the most")
    if described.overlay != layers.MEANING:
        raise Damaged(f"its layers mean something else here: {described.overlay}", hint="upgrade serac")
    asks = [
        *(["the host's user namespace"] if spec.userns == "host" else []),
        *(["the host's network"] if spec.net == "host" else []),
        *(f"the system calls of {denial}" for denial in spec.allow),
    ]
    if asks and not trust:
        raise InvalidInput(f"the snapshot asks for {', '.join(asks)}", hint="--trust, if you know who made it")


def _check_base(root: Root, reader: Reader) -> None:
    if reader.has_base():
        return
    described = reader.manifest
    try:
        root.catalog.base(described.base.digest)
    except NotFound as error:
        raise NotFound(
            f"base {described.base.digest[:12]} ({described.spec.base}) is not here",
            hint="build the same base, or export the snapshot with --with-base",
        ) from error


def _check_room(root: Root, parts: Iterable[Part]) -> None:
    missing = sum(part.size for part in parts if not _places(root, part.digest))
    free = os.statvfs(root.images)
    if missing > free.f_bavail * free.f_frsize:
        raise NoSpace(f"the snapshot needs {missing >> 20} MiB, {free.f_bavail * free.f_frsize >> 20} MiB are free")


def _places(root: Root, digest: str) -> list[Path]:
    """Where an image is, as one of a layer or as a base."""
    return [place / digest for place in (root.images, root.bases) if (place / digest).exists()]


def _take(root: Root, reader: Reader, scratch: Path, *, trust: bool, progress: Progress | None) -> Snapshot:
    described, parts = reader.manifest, reader.following()
    total = sum(part.size for part in parts)
    tick = None if progress is None else lambda done: progress(done, total)
    known = {base.digest for base in root.catalog.bases()}

    def have(part: Part) -> bool:
        return part.digest in known or (root.images / part.digest).exists()

    with step("import.read"):
        written = dict(reader.images(scratch, have=have, tick=tick))
    for digest, directory in written.items():
        _check_tree(directory, described, digest, trust=trust)
    snapshot, chain = _rows(described, manifest.digest(reader.encoded))
    try:
        return _name(root, reader, scratch, snapshot, chain)
    except BaseException:
        _forget(root, described, chain, written)
        raise


def _name(root: Root, reader: Reader, scratch: Path, snapshot: Snapshot, chain: list[Layer]) -> Snapshot:
    """Steps 2 to 4."""
    described = reader.manifest
    with contextlib.ExitStack() as held:
        with step("import.place"):
            for digest in sorted({described.base.digest, *(part.digest for part in manifest.parts(described))}):
                place = root.bases if digest == described.base.digest else root.images
                _place(root, scratch / digest, place / digest, held)
        found = _known(root, reader)  # two importers at once come here one after the other
        if found is not None:
            return found
        with step("import.layers"):
            _make_layers(root, snapshot, chain, reader.encoded)
        with step("import.commit"):
            _commit(root, described, snapshot, chain)
    return snapshot


def _place(root: Root, image: Path, target: Path, held: contextlib.ExitStack) -> None:
    try:
        held.enter_context(images.placed(image, target, timeout=root.timeout))
    except FileNotFoundError as error:
        raise Busy(f"image {target.name[:12]} was removed meanwhile", hint="import it again") from error


def _forget(root: Root, described: Manifest, chain: list[Layer], written: Iterable[str]) -> None:
    """What was placed and no row speaks of goes again."""
    named = {layer.id for layer in root.catalog.layers([layer.id for layer in chain])}
    for layer in chain:
        if layer.id not in named:
            store.remove_tree(root.layer(layer.id))
    for digest in written:
        with contextlib.suppress(Busy):  # another one is about to use it
            images.remove_unreferenced(root, digest, base=digest == described.base.digest)


def _check_tree(directory: Path, described: Manifest, digest: str, *, trust: bool) -> None:
    processes = described.processes
    if processes is not None and digest == processes.digest:
        with open_image(directory / archive.META, directory / archive.BLOB) as root:
            _check_processes(root)
    try:
        archive.check_tree(directory, devices=lambda node: trust or _harmless(node))
    except Damaged as error:
        raise Damaged(f"image {digest[:12]}: {error}", hint=error.hint) from error


def _harmless(node: Node) -> bool:
    """Whether it is a device that every base has."""
    number = (os.major(node.rdev), os.minor(node.rdev))
    return stat.S_ISCHR(node.mode) and number in base.NODES.values()


def _check_processes(root: Node) -> None:
    """criu's files, and two directories of copies, that are read and copied as root: with no links out."""
    for name, node in root.children():
        if name == b"io" and node.is_directory:
            fine = all(below.is_file for _, below in node.children())
        else:
            fine = node.is_file or (name == b"shm" and node.is_directory)
        if not fine:
            raise Damaged(f"the image of its processes has something else in it: {name[:80]!r}")


def _rows(described: Manifest, digest: str) -> tuple[Snapshot, list[Layer]]:
    created, chain = now(), list[Layer]()
    for part in described.layers:
        parent = chain[-1].id if chain else None
        chain.append(Layer(id=store.new_id(), parent=parent, image=part.digest, directory=False, created=created))
    snapshot = Snapshot(
        id=described.id,
        job=described.job,
        name=described.name,
        spec=described.spec,
        base=described.base.digest,
        layers=tuple(layer.id for layer in chain),
        context=described.context,
        mode=described.mode,
        reason=described.reason,
        image=described.processes,
        labels=described.labels,
        parent=described.parent,
        created=described.created,
        pinned=True,
        archive=digest,
    )
    return snapshot, chain


def _make_layers(root: Root, snapshot: Snapshot, chain: list[Layer], encoded: bytes) -> None:
    try:
        for layer in chain:
            root.layer(layer.id).mkdir()
            records.keep_layer(root, layer)
        records.keep_snapshot(root, snapshot)
        top = root.layer(chain[-1].id)
        store.write_aside(top / "manifest.json", encoded)
        store.sync_file(top / "manifest.json")
        store.sync_directory(top)
        store.sync_directory(root.layers)
    except OSError as error:
        raise from_os(error, "make layers") from error


def _commit(root: Root, described: Manifest, snapshot: Snapshot, chain: list[Layer]) -> None:
    digest = described.base.digest
    with root.catalog.transaction(durable=True) as transaction:
        if any(entry.id == snapshot.id for entry in root.catalog.snapshots()):
            raise NameTaken(f"snapshot {snapshot.id} was imported meanwhile", hint="it is here now")
        if not any(entry.digest == digest for entry in root.catalog.bases()):
            image = archive.load_image(root.bases / digest)
            transaction.put_base(
                Base(
                    digest=digest,
                    size=image.meta.size + image.blob.size,
                    source=f"import:{snapshot.id}",
                    created=now(),
                    env=described.base.env,
                )
            )
            records.keep_bases(root)
        for layer in chain:
            transaction.put_layer(layer)
        transaction.put_snapshot(snapshot)
