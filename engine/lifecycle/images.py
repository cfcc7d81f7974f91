"""Images in the store: placed under their digests, told apart from what nobody needs any more.

An image is written aside, placed by a rename, and named by a row; whoever places it holds its lock until the row is
written, and whoever removes it looks under the same lock whether there is one, and begins with a rename: what lies
under a digest is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from engine import store
from engine.errors import from_os
from engine.lifecycle import mounting
from engine.lifecycle.root import Root


@contextlib.contextmanager
def placed(image: Path, target: Path, *, timeout: float) -> Iterator[None]:
    """The image under its digest, for the block that writes its row. The same bytes may be there already."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store.locked(target, timeout=timeout))
        except FileNotFoundError:
            stack.enter_context(store.locked(image, timeout=timeout))
            if not _rename(image, target):
                stack.enter_context(store.locked(target, timeout=timeout))
        yield


def _rename(image: Path, target: Path) -> bool:
    """False when another engine has just placed the same."""
    try:
        image.rename(target)
        store.sync_directory(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise from_os(error, "place image") from error
    return True


def referenced(root: Root) -> set[str]:
    """Digests of the images that rows speak of, bases apart."""
    layers = {layer.image for layer in root.catalog.layers() if layer.image is not None}
    processes = {snapshot.image.digest for snapshot in root.catalog.snapshots() if snapshot.image is not None}
    return layers | {digest for digest in processes if digest is not None}


def remove_unreferenced(root: Root, digest: str, *, base: bool = False) -> bool:
    """Remove an image, or a base, that no row speaks of; whether it was one. Raises Busy while somebody is about to
    use it."""
    place = (root.bases if base else root.images) / digest
    with contextlib.suppress(FileNotFoundError), store.locked(place, timeout=0):
        named = {entry.digest for entry in root.catalog.bases()} if base else referenced(root)
        if digest in named:
            return False
        for name in _mounted(root, digest) if not base else ():
            mounting.unmount(root, name)
        remove(root, place)
        return True
    return False


def remove(root: Root, place: Path) -> None:
    """An image, or a base, is gone from its place at once; what is left of it in tmp/ by a kill calls for a sweep. The
    caller is in an intent, or sweeps."""
    aside = root.tmp / f"rm-{place.name[:12]}.{store.new_id()}"
    try:
        place.rename(aside)
    except OSError:  # it isn't there; or the disk is full, and removals must work then
        aside = place
    store.remove_tree(aside)


def _mounted(root: Root, digest: str) -> list[str]:
    """Under which names an image is mounted: by a job that is about to go, for rows don't speak of it."""
    with contextlib.suppress(FileNotFoundError):
        return [name for name in os.listdir(root.mounts) if mounting.digest_of(name) == digest]
    return []
