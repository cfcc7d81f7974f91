"""diff: what is different between two snapshots, or a snapshot and its base, read from the layers; nothing is mounted,
and nothing written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from engine.lifecycle import trees
from engine.lifecycle.root import Root
from engine.model import FileChange
from engine.tree import Change, Node, differences

OWN = b"/.serac"
"""what serac itself puts into a job"""
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def diff(root: Root, ref: str, other: str | None = None) -> Iterator[FileChange]:
    """From the snapshot ``ref`` to ``other``; without one, from the base to the snapshot. By path, as they are found.
    Raises NotFound, Damaged."""
    after = root.catalog.snapshot(other or ref)
    before = root.catalog.snapshot(ref) if other is not None else None
    with trees.forest(root) as forest:
        new = forest.chain(after.base, after.layers)
        old = forest.chain(before.base, before.layers) if before is not None else forest.chain(after.base, ())
        for change in differences(old, new):
            if change.path != OWN and not change.path.startswith(OWN + b"/"):
                yield _described(change)


def _described(change: Change) -> FileChange:
    node = change.after or change.before
    assert node is not None
    return FileChange(
        path=os.fsdecode(change.path),
        kind=change.kind.value,
        type=_TYPES[stat.S_IFMT(node.mode)],
        before=_bytes(change.before),
        after=_bytes(change.after),
        attributes=change.attributes,
    )


def _bytes(node: Node | None) -> int | None:
    return node.size if node is not None and node.is_file else None
