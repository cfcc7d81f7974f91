"""Chains of layers that are images or directories, mounted as a job's root is, in a namespace of their own.

stack = stacks.Stack(layers=(newest, .., base), top=directory)
done, taken = stack.inside(partial(forest.grow, seed=1), partial(census.take, overlaid=True))
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import census
import overlays

from engine import archive, layers
from engine.errors import Damaged
from engine.tree import Node, open_directory, open_image

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY = 1


@dataclass(frozen=True, kw_only=True)
class Mounts(overlays.Overlay):
    """``images``: directories of images, and where each is to be mounted before the overlay is."""

    images: tuple[tuple[Path, Path], ...]

    def mount(self, target: Path) -> None:
        for image, place in self.images:
            mount_image(image, place)
        super().mount(target)


def mount_image(image: Path, target: Path) -> None:
    """mount(8) would take a loop device, and no path that long."""
    options = f"device={image / archive.BLOB}".encode()
    arguments = (os.fsencode(image / archive.META), os.fsencode(target), b"erofs", MS_RDONLY, options)
    if LIBC.mount(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(image))


def unmount(target: Path) -> None:
    subprocess.run(["umount", target], check=True)


@dataclass(frozen=True)
class Stack:
    """``layers`` topmost first; ``top`` becomes a new layer's directory, which is what is written."""

    layers: tuple[Path, ...]
    top: Path

    def inside(self, *calls: Callable[[Path], Any]) -> list[Any]:
        with opened(self.layers[:1]) as (below,):
            layers.create(self.top, like=below)
        with tempfile.TemporaryDirectory(prefix="serac-test-") as places:
            images, lowers = [], []
            for number, layer in enumerate(self.layers):
                if is_image(layer):
                    place = Path(places, f"{number}")
                    place.mkdir()
                    images.append((layer, place))
                lowers.append(place if is_image(layer) else layer)
            mounts = Mounts(
                lowers=tuple(lowers), upper=self.top / "upper", work=self.top / "work", images=tuple(images)
            )
            return overlays.inside(mounts, *calls)


@contextlib.contextmanager
def opened(chain: Sequence[Path]) -> Iterator[list[Node]]:
    """The trees of layers."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(opened_layer(layer)) for layer in chain]


def opened_layer(layer: Path) -> contextlib.AbstractContextManager[Node]:
    if is_image(layer):
        return open_image(layer / archive.META, layer / archive.BLOB)
    return open_directory(layer)


def is_image(layer: Path) -> bool:
    return (layer / archive.META).exists()


def build(root: Node, into: Path) -> Path:
    archive.build_image(root, into)
    return into


@dataclass(frozen=True)
class Alone:
    """An image in the stead of an overlay."""

    image: Path

    def mount(self, target: Path) -> None:
        mount_image(self.image, target)


def seen(image: Path) -> census.Census:
    """What the kernel shows of an image."""
    (found,) = overlays.inside(Alone(image), census.take)
    return found


def count(top: Path) -> int:
    return sum(1 for _ in census.walk(top))


@dataclass(frozen=True)
class Bound:
    """A directory in the stead of an overlay."""

    directory: Path

    def mount(self, target: Path) -> None:
        subprocess.run(["mount", "--bind", self.directory, target], check=True)


def refusals(top: Path) -> list[str]:
    """What is said of a directory below which something is mounted: of all that it has, and of that alone."""
    subprocess.run(["mount", "-t", "tmpfs", "none", top / "below"], check=True)
    try:
        return list(_refusals(top))
    finally:
        subprocess.run(["umount", top / "below"], check=True)


def _refusals(top: Path) -> Iterator[str]:
    with open_directory(top) as root:
        for call in (root.children, partial(root.child, b"below")):
            try:
                call()
            except Damaged as error:
                yield str(error)
