"""One file, directory or other entry of a tree, whatever the tree is read from."""

from __future__ import annotations

import stat
from collections.abc import Collection, Hashable, Iterator, Sequence

BLOCK = 4096
"""bytes; data lies in blocks, and so do holes"""
PIECE = 1 << 20
"""bytes that are read at once at most"""


class Node:
    """What a tree knows of an entry. Its name is its directory's affair.

    A node is valid as long as its tree is open. Subclasses say where the rest comes from."""

    __slots__ = ("gid", "mode", "mtime_ns", "nlink", "rdev", "size", "uid")

    mode: int
    """type and permissions, as in ``st_mode``"""
    uid: int
    gid: int
    rdev: int
    size: int
    """bytes of a file or of a link's target; of a directory whatever its filesystem says"""
    mtime_ns: int
    nlink: int
    """names that the inode has where it comes from, perhaps outside of the tree too"""

    @property
    def key(self) -> Hashable:
        """Equal for two nodes exactly if they are one inode of one tree."""
        raise NotImplementedError

    def xattrs(self) -> dict[bytes, bytes]:
        raise NotImplementedError

    def target(self) -> bytes:
        """Of a symbolic link."""
        raise NotImplementedError

    def extents(self) -> Iterator[tuple[int, int]]:
        """Where a file has data: offset and length, ascending, whole blocks but for the last one."""
        raise NotImplementedError

    @property
    def grain(self) -> int:
        """Blocks to which a file's extents have been rounded already; 0 = they are as they were written."""
        return 0

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """A file's contents in pieces of PIECE bytes, the last one shorter; holes are zeros. Raises Damaged when the
        file ends before."""
        raise NotImplementedError

    def children(self) -> Sequence[tuple[bytes, Node]]:
        """Of a directory, sorted by name."""
        raise NotImplementedError

    def child(self, name: bytes) -> Node | None:
        raise NotImplementedError

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_device(self) -> bool:
        return stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode)

    @property
    def is_whiteout(self) -> bool:
        """What says in a layer that a name of the layers below is gone; see overlayfs.rst in the kernel."""
        return self.rdev == 0 and stat.S_ISCHR(self.mode)


OVERLAY = b"trusted.overlay."
OPAQUE, REDIRECT, ORIGIN, PROTECTED = (
    OVERLAY + b"opaque",
    OVERLAY + b"redirect",
    OVERLAY + b"origin",
    OVERLAY + b"protattr",
)
NESTED = OVERLAY + b"overlay."
"""what an overlay that a job mounts itself keeps; it is the job's own"""


def portable(node: Node, xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """A layer's extended attributes without what is of one host alone.

    What overlayfs notes of inode numbers and file handles (origin, impure, nlink, uuid, upper) means nothing elsewhere,
    or something wrong. A directory keeps an empty origin: without one, readdir(3) shows its whiteouts as devices
    (kernel commit b79e05aaa166)."""
    if not xattrs:
        return xattrs
    kept = {name: value for name, value in xattrs.items() if _travels(name)}
    if ORIGIN in xattrs and node.is_directory:
        kept[ORIGIN] = b""
    return kept


def _travels(name: bytes) -> bool:
    return not name.startswith(OVERLAY) or name in (OPAQUE, REDIRECT, PROTECTED) or name.startswith(NESTED)


def without(root: Node, names: Collection[bytes]) -> Node:
    """A tree but for what lies under ``names`` in its root directory."""
    return _Pruned(root, names)


class _Pruned(Node):
    """A root directory some of whose entries aren't seen."""

    __slots__ = ("_names", "_whole")

    def __init__(self, whole: Node, names: Collection[bytes]) -> None:
        self._whole, self._names = whole, names
        for field in Node.__slots__:
            setattr(self, field, getattr(whole, field))

    @property
    def key(self) -> Hashable:
        return self._whole.key

    def xattrs(self) -> dict[bytes, bytes]:
        return self._whole.xattrs()

    def children(self) -> list[tuple[bytes, Node]]:
        return [(name, node) for name, node in self._whole.children() if name not in self._names]

    def child(self, name: bytes) -> Node | None:
        return None if name in self._names else self._whole.child(name)
