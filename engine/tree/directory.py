"""A tree that is read from a directory, by descriptors: no link in it is followed, no filesystem boundary crossed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from pathlib import Path

from engine.errors import Damaged
from engine.tree.node import BLOCK, PIECE, Node

OPEN_MAX = 128
"""directories that are open at once, however deep the tree is"""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[Node]:
    """The tree below ``path``; what is mounted there isn't taken. Raises OSError, also later from its nodes."""
    fd = os.open(path, _DIRECTORY & ~os.O_NOFOLLOW)
    opened = _Opened(fd)
    try:
        yield _DirectoryNode(opened, None, "", os.fstat(fd))
    finally:
        opened.close()


class _Place:
    """A directory of the tree: its name in the one above it."""

    __slots__ = ("above", "name")

    def __init__(self, above: _Place | None, name: str) -> None:
        self.above = above
        self.name = name


class _Opened:
    """The descriptors of the directories that were needed last, and of the top one."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.device = os.fstat(top).st_dev
        self._fds: OrderedDict[_Place, int] = OrderedDict()

    def fd(self, place: _Place | None) -> int:
        if place is None:
            return self.top
        missing = []
        while place is not None and place not in self._fds:
            missing.append(place)
            place = place.above
        fd = self.top
        if place is not None:
            self._fds.move_to_end(place)
            fd = self._fds[place]
        while missing:
            place = missing.pop()
            fd = self._fds[place] = os.open(place.name, _DIRECTORY, dir_fd=fd)
            if len(self._fds) > OPEN_MAX:
                os.close(self._fds.popitem(last=False)[1])
        return fd

    def close(self) -> None:
        for fd in (*self._fds.values(), self.top):
            os.close(fd)
        self._fds.clear()


class _DirectoryNode(Node):
    __slots__ = ("_blocks", "_device", "_inode", "_name", "_opened", "_place", "_within")

    def __init__(self, opened: _Opened, within: _Place | None, name: str, status: os.stat_result) -> None:
        self._opened, self._within, self._name = opened, within, name
        self._device, self._inode, self._blocks = status.st_dev, status.st_ino, status.st_blocks
        self.mode, self.uid, self.gid = status.st_mode, status.st_uid, status.st_gid
        self.rdev, self.size = status.st_rdev, status.st_size
        self.mtime_ns, self.nlink = status.st_mtime_ns, status.st_nlink
        self._place = _Place(within, name) if name and stat.S_ISDIR(status.st_mode) else None

    @property
    def key(self) -> Hashable:
        return self._device, self._inode

    def _path(self) -> str:
        """For the calls that take no descriptor of a directory; the name in it is not followed."""
        return f"/proc/self/fd/{self._opened.fd(self._within)}/{self._name or '.'}"

    def xattrs(self) -> dict[bytes, bytes]:
        path = self._path()
        return {
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }

    def target(self) -> bytes:
        return os.fsencode(os.readlink(self._name, dir_fd=self._opened.fd(self._within)))

    def extents(self) -> Iterator[tuple[int, int]]:
        if self._blocks * 512 >= self.size:
            if self.size:
                yield 0, self.size
            return
        fd = self._open()
        try:
            end = 0
            while True:
                try:
                    start = os.lseek(fd, end, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    return  # only a hole is left
                if start >= self.size:
                    return
                end = os.lseek(fd, start, os.SEEK_HOLE)
                start -= start % BLOCK
                end += -end % BLOCK
                yield start, min(end, self.size) - start
        finally:
            os.close(fd)

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        fd = self._open()
        try:
            while length:
                want = min(length, PIECE)
                piece = os.pread(fd, want, offset)
                while len(piece) < want:
                    more = os.pread(fd, want - len(piece), offset + len(piece))
                    if not more:
                        raise Damaged(f"{self._name[:80]!r} became shorter while it was read")
                    piece += more
                yield piece
                offset, length = offset + want, length - want
        finally:
            os.close(fd)

    def _open(self) -> int:
        fd = os.open(self._name, _FILE, dir_fd=self._opened.fd(self._within))
        if os.fstat(fd).st_ino != self._inode:
            os.close(fd)
            raise Damaged(f"{self._name[:80]!r} was replaced while it was read")
        return fd

    def children(self) -> list[tuple[bytes, Node]]:
        fd = self._opened.fd(self._place)
        with os.scandir(fd) as entries:
            found = [
                (os.fsencode(entry.name), self._below(entry.name, entry.stat(follow_symlinks=False)))
                for entry in entries
            ]
        found.sort(key=_name)
        return found

    def _below(self, name: str, status: os.stat_result) -> Node:
        if status.st_dev != self._opened.device:
            raise Damaged(f"something is mounted on {name[:80]!r}")
        return _DirectoryNode(self._opened, self._place, name, status)

    def child(self, name: bytes) -> Node | None:
        text = os.fsdecode(name)
        try:
            status = os.stat(text, dir_fd=self._opened.fd(self._place), follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                raise
            return None
        return self._below(text, status)


def _name(named: tuple[bytes, Node]) -> bytes:
    return named[0]
