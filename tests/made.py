"""Trees that are nowhere but in memory: what no filesystem here can hold, or would take long to."""

from __future__ import annotations

import stat
from collections.abc import Hashable, Iterator, Mapping

from engine.tree import Node

BLOCK, PIECE = 4096, 1 << 20


class Made(Node):
    def __init__(
        self, mode: int, *, data: bytes = b"", entries: Mapping[bytes, Node] | None = None, links: int = 1
    ) -> None:
        self.mode, self.nlink, self.size = mode, links, len(data)
        self.uid = self.gid = self.rdev = self.mtime_ns = 0
        self.data, self.entries = data, dict(entries or {})
        self.attributes: dict[bytes, bytes] = {}

    @property
    def key(self) -> Hashable:
        return id(self)

    def xattrs(self) -> dict[bytes, bytes]:
        return dict(self.attributes)

    def target(self) -> bytes:
        return self.data

    def extents(self) -> Iterator[tuple[int, int]]:
        if self.data:
            yield 0, len(self.data)

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        for at in range(offset, offset + length, PIECE):
            yield self.data[at : min(at + PIECE, offset + length)]

    def children(self) -> list[tuple[bytes, Node]]:
        return sorted(self.entries.items())

    def child(self, name: bytes) -> Node | None:
        return self.entries.get(name)


def directory(xattrs: Mapping[bytes, bytes] | None = None, **entries: Node) -> Made:
    made = Made(stat.S_IFDIR | 0o755, entries={name.encode(): node for name, node in entries.items()})
    made.attributes.update(xattrs or {})
    return made


def folder(entries: Mapping[bytes, Node]) -> Made:
    return Made(stat.S_IFDIR | 0o755, entries=entries)


def file(data: bytes = b"", *, links: int = 1, xattrs: Mapping[bytes, bytes] | None = None) -> Made:
    made = Made(stat.S_IFREG | 0o644, data=data, links=links)
    made.attributes.update(xattrs or {})
    return made


def link(target: bytes) -> Made:
    return Made(stat.S_IFLNK | 0o777, data=target)


def whiteout() -> Made:
    return Made(stat.S_IFCHR)


class Sparse(Made):
    """A file with data at some places; the rest of it is holes."""

    def __init__(self, size: int, data: Mapping[int, bytes]) -> None:
        super().__init__(stat.S_IFREG | 0o644)
        self.size, self.pieces = size, dict(sorted(data.items()))

    def extents(self) -> Iterator[tuple[int, int]]:
        for at, data in self.pieces.items():
            yield at, len(data)

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        for at in range(offset, offset + length, PIECE):
            piece = bytearray(min(PIECE, offset + length - at))
            for place, data in self.pieces.items():
                first, last = max(place, at), min(place + len(data), at + len(piece))
                if first < last:
                    piece[first - at : last - at] = data[first - place : last - place]
            yield bytes(piece)
