"""An image whose metadata is changed as its maker wouldn't."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from engine import archive
from engine.tree import Node, erofs, open_directory, open_image, sound, write_image

BLOCK = 4096


def plant(tree: Path) -> Path:
    (tree / "directory/inner").mkdir(parents=True)
    (tree / "file").write_bytes(os.urandom(10_000))
    os.truncate(tree / "file", 100 * BLOCK)
    (tree / "empty").touch()
    (tree / "link").symlink_to("file")
    (tree / "long").symlink_to("s/" * 2047 + "t")
    os.link(tree / "file", tree / "directory/hard")
    os.mkfifo(tree / "fifo")
    os.setxattr(tree / "file", "user.name", b"value")
    os.setxattr(tree / "file", "user.other", b"another value")
    (tree / "crowd").mkdir()
    for number in range(300):
        (tree / f"crowd/{number:030}").touch()
    return tree


class Image:
    """A tree as an image whose bytes of metadata, ``meta``, may be changed."""

    def __init__(self, tree: Path, into: Path) -> None:
        into.mkdir(exist_ok=True)
        self._meta, self._blob = into / archive.META, into / archive.BLOB
        self._meta.unlink(missing_ok=True)
        self._blob.unlink(missing_ok=True)
        with open_directory(tree) as root:
            write_image(root, self._meta, self._blob)
        self.meta = bytearray(self._meta.read_bytes())

    def inode(self, *path: bytes) -> int:
        """Where an entry's inode is."""
        with open_image(self._meta, self._blob) as root:
            at: Node = root
            for name in path:
                at = dict(at.children())[name]
            return at.key[1] * erofs.SLOT  # type: ignore[index]

    def data(self, at: int) -> int:
        """Where that begins which follows an inode and its extended attributes."""
        (count,) = struct.unpack_from("<H", self.meta, at + 2)
        return at + 64 + (12 + 4 * (count - 1) if count else 0)

    def put(self, form: str, at: int, *values: int | bytes) -> None:
        struct.pack_into(form, self.meta, at, *values)

    def check(self, *, visit: Callable[[Node], object] = lambda _: None) -> None:
        """As an import does it, and then whatever else."""
        self._meta.write_bytes(self.meta)
        with open_image(self._meta, self._blob) as root:
            sound(root, devices=lambda _: True)
            visit(root)

    @property
    def files(self) -> tuple[Path, Path]:
        return self._meta, self._blob
