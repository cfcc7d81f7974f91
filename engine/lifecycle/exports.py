"""export: a snapshot leaves its host as one stream. Nothing is committed; an export that is killed leaves what it had
written, and a file that was to be written is there whole or not at all.

The images are read as they lie in the store. While that goes on the snapshot is in use: a reader of its chain
(`engine.lifecycle.run.reader`) keeps its layers, and so their images.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from engine import archive, store
from engine.archive import stream
from engine.errors import Damaged, InvalidInput, from_os
from engine.lifecycle import archiving, oci_export, podman_export, run
from engine.lifecycle.archiving import Progress
from engine.lifecycle.root import Root
from engine.model import Format, Snapshot
from engine.steps import step


def export(
    root: Root,
    ref: str,
    target: str | BinaryIO,
    *,
    format: Format = "serac",  # noqa: A002 - the option's name
    with_base: bool = False,
    progress: Progress | None = None,
) -> Snapshot:
    """Write a snapshot in serac's own format (archived first, where it isn't yet), or in another engine's.

    ``target``: a file, or a stream that is open for writing; with ``oci``, whose image always has the base in it,
    ``DIR[:TAG]``. Raises NotFound, InvalidInput, NoSpace, Damaged."""
    if format == "oci":
        return oci_export.export_image(root, ref, target, progress=progress)
    if format == "serac":
        snapshot = archiving.archive_snapshot(root, ref, progress=progress)
        write = functools.partial(_export, root, snapshot, with_base=with_base, progress=progress)
    elif format == "podman" and not with_base:
        snapshot = podman_export.check(root.snapshot(ref))
        write = functools.partial(podman_export.export_checkpoint, root, snapshot, progress=progress)
    else:
        what = "the base isn't in a checkpoint archive" if with_base else f"no format {format!r}"
        raise InvalidInput(what, hint=f"formats: {', '.join(get_args(Format))}")
    with _translated(root, snapshot), contextlib.ExitStack() as stack:
        out = stack.enter_context(written(target)) if isinstance(target, str) else target
        with step("export.write"):
            write(out=out)
    return snapshot


def _export(
    root: Root, snapshot: Snapshot, *, out: BinaryIO, with_base: bool, progress: Progress | None = None
) -> None:
    with run.reader(root, snapshot.base, snapshot.layers):
        directories = _images(root, snapshot, with_base=with_base)
        total = sum(_size(directory) for directory in directories)
        tick = None if progress is None else lambda done: progress(done, total)
        stream.write(out, _manifest(root, snapshot), directories, tick=tick)
        out.flush()


@contextlib.contextmanager
def _translated(root: Root, snapshot: Snapshot) -> Iterator[None]:
    """A reader that went away is no error of ours: BrokenPipeError goes through."""
    try:
        yield
    except BrokenPipeError:
        raise
    except FileNotFoundError as error:  # the image of its processes goes when it is removed and nobody waits for that
        root.catalog.snapshot(snapshot.id)
        raise Damaged(f"an image is gone: {error.filename}") from error
    except OSError as error:
        raise from_os(error, "export") from error


def _images(root: Root, snapshot: Snapshot, *, with_base: bool) -> list[Path]:
    """In the order of the stream; each once."""
    chain = [root.images / str(layer.image) for layer in root.catalog.chain(snapshot.layers)]
    base = [root.bases / snapshot.base] if with_base else []
    processes = snapshot.image
    last = [root.images / str(processes.digest)] if processes is not None else []
    return list(dict.fromkeys([*base, *chain, *last]))


def _size(directory: Path) -> int:
    image = archive.check_files(directory)
    return image.meta.size + image.blob.size


def _manifest(root: Root, snapshot: Snapshot) -> bytes:
    path = archiving.manifest_file(root, snapshot)
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path}: {error.strerror}", hint="`serac snapshot archive` writes it again") from error
    if archive.manifest.digest(encoded) != snapshot.archive:
        raise Damaged(f"{path} is not the one of {snapshot.archive}")
    return encoded


@contextlib.contextmanager
def written(target: str) -> Iterator[BinaryIO]:
    """A new file of that name that its owner alone may read, there when the block is through; what was there before
    stays until then. What is no file, a fifo or /dev/stdout, is written to as it is.

    Raises InvalidInput when it can't be made."""
    if os.path.isdir(target):
        raise InvalidInput(f"{target} is a directory", hint="name a file, or - for standard output")
    aside = not os.path.exists(target) or os.path.isfile(target)
    with _aside(os.path.realpath(target)) if aside else _opened(target, "wb") as file:
        yield file


@contextlib.contextmanager
def _aside(target: str) -> Iterator[BinaryIO]:
    name = f"{target}.{secrets.token_hex(4)}.part"
    file = _opened(name, "xb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with step("export.place"):
            os.rename(name, target)
    except BaseException:
        os.unlink(name)
        raise
    store.sync_directory(Path(target).parent)


def _opened(path: str, mode: Literal["wb", "xb"]) -> BinaryIO:
    try:
        return open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
