"""The mounts that all jobs of a root share, under the run directory, so that their page cache is shared too.

A base stays mounted until it is removed: it serves the next job. A layer that is an image alone is mounted while a job
has it in its chain; whoever takes the last such job down unmounts it. The directory of an image is locked while that is
decided, and a job's row names its chain before it mounts anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from engine import archive, launch, layers, store
from engine.errors import Damaged
from engine.lifecycle.root import Root
from engine.model import LIVE, PASSING, Job, Layer


def mounted(root: Root, digest: str) -> Path:
    """The directory where a base is mounted on this host, mounting it if nobody has yet. Raises Damaged when its
    files aren't there or can't be what they were."""
    target = root.mounts / digest
    if not os.path.ismount(target):
        try:
            _mount(root, {digest: root.bases / digest})
        except FileNotFoundError as error:
            raise Damaged(f"base {digest[:12]} is not on this host", hint="build or import the base again") from error
    return target


def mount_chain(root: Root, base: str, chain: Sequence[Layer]) -> None:
    """Mount what a job's chain needs. Raises Damaged."""
    mounted(root, base)
    try:
        _mount(root, {name: root.images / digest_of(name) for name in layers.mount_names(chain).values()})
    except FileNotFoundError as error:
        raise Damaged(f"an image of the chain is gone: {error.filename}", hint="import the snapshot again") from error


def digest_of(name: str) -> str:
    """Of the image that is mounted under a name."""
    return name.partition(".")[0]


def _mount(root: Root, places: dict[str, Path]) -> None:
    """Names, and the directories of their images."""
    with contextlib.ExitStack() as stack:
        for directory in sorted(set(places.values())):
            stack.enter_context(store.locked(directory, timeout=root.timeout))
        wanted = []
        for name, directory in places.items():
            target = root.mounts / name
            if not os.path.ismount(target):
                archive.check_files(directory)
                root.make_private(target)
                wanted.append((directory / archive.META, directory / archive.BLOB, target))
        if wanted:
            launch.mount_images(wanted, timeout=root.timeout)


@contextlib.contextmanager
def opened(root: Root, digest: str) -> Iterator[Path]:
    """An image's tree for the block, which nothing else finds; what is open in it afterwards stays readable.

    Raises FileNotFoundError, Damaged."""
    directory, target = root.images / digest, root.mounts / f"{digest[:12]}.{store.new_id()}"
    with store.locked(directory, timeout=root.timeout, shared=True):
        archive.check_files(directory)
        root.make_private(target)
        try:
            launch.mount_images([(directory / archive.META, directory / archive.BLOB, target)], timeout=root.timeout)
            fd = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            launch.unmount(target, detach=True, timeout=root.timeout)
        finally:
            target.rmdir()
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{fd}")
    finally:
        os.close(fd)


def unmount(root: Root, name: str) -> None:
    target = root.mounts / name
    while os.path.ismount(target):  # twice, when a mount was under way as its engine was killed
        launch.unmount(target, timeout=root.timeout)
    with contextlib.suppress(FileNotFoundError):
        target.rmdir()


def wanted(root: Root, jobs: Iterable[Job]) -> set[str]:
    """The names under which jobs have images mounted now, or are about to."""
    return {name for job in jobs if job.state in LIVE | PASSING for name in names(root, job)}


def names(root: Root, job: Job) -> set[str]:
    """Of the images in a job's chain, or in the one that its overlay was made of."""
    rows = {layer.id: layer for layer in root.catalog.layers({*job.layers, *job.mounted})}
    chains = ([rows[layer] for layer in chain if layer in rows] for chain in (job.layers, job.mounted))
    return {name for chain in chains for name in layers.mount_names(chain).values()}


def let_go(root: Root, job: Job) -> None:
    """Unmount what only this job, which has nothing mounted any more, had in its chain."""
    release(root, names(root, job), but=job.id)


def release(root: Root, held: Iterable[str], *, but: str) -> None:
    """Unmount those of the names ``held`` that no job wants ``but`` this one."""
    for name in held:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):  # without an image nobody can be about to mount it
                stack.enter_context(store.locked(root.images / digest_of(name), timeout=root.timeout))
            if name not in wanted(root, (other for other in root.catalog.jobs() if other.id != but)):
                unmount(root, name)
