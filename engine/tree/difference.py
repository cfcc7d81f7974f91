"""What is different between two trees that have layers in common."""

from __future__ import annotations

import enum
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.tree.layered import Merged, Part
from engine.tree.node import PIECE, Node


class Kind(enum.StrEnum):
    ADDED = "added"
    DELETED = "deleted"
    MODIFIED = "modified"
    """a file's contents, a link's target or a device's number, whatever else"""
    ATTRIBUTES = "attributes"
    """owner, mode, extended attributes or time alone; a directory's time isn't looked at"""
    TYPE = "type"
    """a file became a directory, or the like"""


class Change(NamedTuple):
    path: bytes
    """from the root, with a leading slash"""
    kind: Kind
    before: Node | None
    after: Node | None
    attributes: tuple[str, ...] = ()
    """of ``mode``, ``owner``, ``xattrs``, ``mtime``, those that changed, with kinds ``modified`` and ``attributes``"""


def differences(before: Merged, after: Merged) -> Iterator[Change]:
    """By path. What both trees have from the same layers is not looked into, and contents are compared byte by byte:
    a file isn't the same because its time and size are."""
    common = layers_in_common(before, after)
    waiting: list[tuple[bytes, Node | None, Node | None]] = [(b"", before, after)]
    while waiting:
        path, old, new = waiting.pop()
        change = _compared(path or b"/", old, new)
        if change is not None:
            yield change
        inside = below(old, new, common)
        waiting.extend((path + b"/" + name, *nodes) for name, nodes in sorted(inside.items(), reverse=True))


def layers_in_common(before: Merged, after: Merged) -> int:
    """How many of their lowest layers two trees, given by their roots, share."""
    return _common(before.parts, after.parts, layers=len(before.parts))


def below(old: Node | None, new: Node | None, common: int) -> dict[bytes, tuple[Node | None, Node | None]]:
    """What may differ in two directories of trees with so many layers in common, by name."""
    directories = [node for node in (old, new) if isinstance(node, Merged) and node.is_directory]
    if not directories:
        return {}
    shared = _common(*(node.parts for node in directories), layers=common) if len(directories) == 2 else 0
    names = set().union(*(node.names(above=shared) for node in directories))
    pairs = {name: (_child(old, name), _child(new, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair != (None, None)}


def _child(node: Node | None, name: bytes) -> Node | None:
    return node.child(name) if node is not None and node.is_directory else None


def _common(old: Sequence[Part], new: Sequence[Part], *, layers: int) -> int:
    """How many of their parts two directories have in common, of those in the lowest ``layers``: the lowest parts.

    A part with other layers below it isn't the same, for a redirect in it may lead there."""
    count = 0
    for (below, one), (as_far_below, other) in zip(reversed(old), reversed(new), strict=False):
        if below != as_far_below or below >= layers or one.key != other.key:
            break
        count += 1
    return count


def _compared(path: bytes, old: Node | None, new: Node | None) -> Change | None:
    if old is None or new is None:
        return Change(path, Kind.ADDED if old is None else Kind.DELETED, old, new)
    if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        return Change(path, Kind.TYPE, old, new)
    attributes = tuple(_attributes(old, new))
    if old.key == new.key:
        return None
    if not _same_contents(old, new):
        return Change(path, Kind.MODIFIED, old, new, attributes)
    return Change(path, Kind.ATTRIBUTES, old, new, attributes) if attributes else None


def _attributes(old: Node, new: Node) -> Iterator[str]:
    if old.mode != new.mode:
        yield "mode"
    if (old.uid, old.gid) != (new.uid, new.gid):
        yield "owner"
    if old.xattrs() != new.xattrs():
        yield "xattrs"
    if old.mtime_ns != new.mtime_ns and not old.is_directory:
        yield "mtime"


def _same_contents(old: Node, new: Node) -> bool:
    if old.is_link:
        return old.target() == new.target()
    if old.is_device:
        return old.rdev == new.rdev
    if not old.is_file:
        return True
    return old.size == new.size and _same_data(old, new)


class _Data(NamedTuple):
    """What is left of a piece of a file."""

    at: int
    piece: bytes
    begin: int = 0

    @property
    def left(self) -> int:
        return len(self.piece) - self.begin

    def first(self, size: int) -> bytes:
        return self.piece[self.begin : self.begin + size]

    def after(self, size: int) -> _Data | None:
        return _Data(self.at + size, self.piece, self.begin + size) if size < self.left else None


def _same_data(old: Node, new: Node) -> bool:
    """Of two files of one size. Holes, which may be longer than anybody can wait for, aren't read: whatever the other
    one has there must be zeros."""
    rest, others = _data(old), _data(new)
    one, other = next(rest), next(others)
    while one.left or other.left:
        if other.at < one.at:
            one, rest, other, others = other, others, one, rest
        alone = other.at - one.at
        size = min(one.left, alone or other.left)
        if one.first(size) != (_ZEROS[:size] if alone else other.first(size)):
            return False
        one = one.after(size) or next(rest)
        if not alone:
            other = other.after(size) or next(others)
    return True


def _data(file: Node) -> Iterator[_Data]:
    """In pieces, and nothing at the end."""
    for offset, length in file.extents():
        at = offset
        for piece in file.read(offset, length):
            yield _Data(at, piece)
            at += len(piece)
    yield _Data(sys.maxsize, b"")


_ZEROS = bytes(PIECE)
