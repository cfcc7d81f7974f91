"""The mounts that all jobs of a root share: each base once on the host, under the run directory. They stay until the
base is removed, so that its page cache and its mount serve the next job."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from engine import launch, store
from engine.errors import Damaged
from engine.lifecycle.root import Root


def mounted(root: Root, digest: str) -> Path:
    """The directory where a base is mounted on this host, mounting it if nobody has yet. Raises Damaged when its
    files aren't there or differ in size."""
    target = root.mounts / digest
    if os.path.ismount(target):
        return target
    directory = root.bases / digest
    try:
        with store.locked(directory, timeout=root.timeout):
            if not os.path.ismount(target):
                _check_sizes(directory)
                root.make_private(target)
                launch.mount_image(directory / "meta.erofs", directory / "data.blob", target, timeout=root.timeout)
    except FileNotFoundError as error:
        raise Damaged(f"base {digest[:12]} is not on this host", hint="build or import the base again") from error
    return target


def _check_sizes(directory: Path) -> None:
    from engine import archive

    image = archive.load_image(directory)
    for name, digest in (("meta.erofs", image.meta), ("data.blob", image.blob)):
        size = (directory / name).stat().st_size
        if size != digest.size:
            raise Damaged(f"{directory / name} has {size} bytes, not {digest.size}", hint="build the base again")


def unmount(root: Root, digest: str) -> None:
    target = root.mounts / digest
    while os.path.ismount(target):  # twice, when a mount was under way as its engine was killed
        launch.unmount(target, timeout=root.timeout)
    with contextlib.suppress(FileNotFoundError):
        target.rmdir()
