"""Entries of a tree as a tar stream, as layers of OCI images are one: POSIX.1-2001 (pax) with what GNU tar, umoci and
containers/storage agree on.

mtime     nanoseconds, in a pax record where there are any
xattrs    ``SCHILY.xattr.*``; what an overlay that a job mounted itself keeps has the names that the job saw, what
          serac's own overlay keeps is never there, nor one with ``=`` in its name, which no record can have
links     a file's second name, within the stream, is a hard link to the first
devices   as they are, fifos too; sockets are left out, for tar knows none
holes     zeros: the image specification advises against sparse entries, and readers differ
deleted   an empty file ``.wh.NAME`` (layer.md of the OCI image specification); with ``whiteouts=False`` nothing

Written in one pass and read in one; memory is one piece of a file, and a path for each file that has more names.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Protocol

from engine.errors import InvalidInput
from engine.exchange.changes import Entry
from engine.tree import OVERLAY, PIECE, Node

WHITEOUT = b".wh."
HOLES_MAX = 64 << 30
"""bytes of a file's holes, which become zeros"""
NAMED = 5
"""paths that an error names"""

_NESTED = OVERLAY + b"overlay."
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Tar:
    """A stream that is being written, to its `finish`. ``tick`` is called with the bytes of contents so far."""

    def __init__(self, out: Sink, *, tick: Callable[[int], None] | None = None) -> None:
        self._out, self._tick, self._done = out, tick, 0
        self._links: dict[Hashable, tuple[bytes, int]] = {}
        """of inodes that have several names: the first one, and how many are still to come at most"""

    def add(self, entries: Iterable[Entry], *, whiteouts: bool = True) -> None:
        """Raises InvalidInput for what no such stream can hold, OSError, and what the tree raises."""
        for path, node in _storable(entries) if whiteouts else entries:
            if node is not None:
                self._entry(path, node)
            elif whiteouts:
                self._whiteout(path)

    def directory(self, name: str, *, mtime: int = 0) -> None:
        """A directory of the archive itself, as `file`."""
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o700, mtime
        self._head(info)

    def file(self, name: str, size: int, pieces: Iterable[bytes], *, mtime: int = 0) -> None:
        """A file of the archive itself, root's alone."""
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o600, mtime
        self._head(info)
        self._contents(size, pieces)

    def finish(self) -> None:
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))

    def _entry(self, path: bytes, node: Node) -> None:
        kind = _TYPES.get(stat.S_IFMT(node.mode))
        if kind is None:
            return
        info = tarfile.TarInfo(os.fsdecode(path or b"."))
        info.type, info.mode, info.uid, info.gid = kind, stat.S_IMODE(node.mode), node.uid, node.gid
        info.mtime = node.mtime_ns // 10**9
        first = self._first_name(path, node)
        if first is not None:
            info.type, info.linkname = tarfile.LNKTYPE, os.fsdecode(first)
            self._head(info)
        else:
            self._fill(info, path, node)

    def _fill(self, info: tarfile.TarInfo, path: bytes, node: Node) -> None:
        if node.is_link:
            info.linkname = os.fsdecode(node.target())
        elif node.is_device:
            info.devmajor, info.devminor = os.major(node.rdev), os.minor(node.rdev)
        elif node.is_file:
            info.size = node.size
        self._head(info, {**_time(node.mtime_ns), **dict(_xattrs(node))})
        if node.is_file and node.size:
            _check_holes(path, node)
            self._contents(node.size, _dense(node))

    def _first_name(self, path: bytes, node: Node) -> bytes | None:
        """The name that a file already has in the stream."""
        if node.nlink == 1 or node.is_directory:
            return None
        first, left = self._links.pop(node.key, (None, node.nlink))
        if left > 1:
            self._links[node.key] = first or path, left - 1
        return first

    def _whiteout(self, path: bytes) -> None:
        parent, slash, name = path.rpartition(b"/")
        self._head(tarfile.TarInfo(os.fsdecode(parent + slash + WHITEOUT + name)))

    def _head(self, info: tarfile.TarInfo, more: Mapping[str, bytes] | None = None) -> None:
        records = {**_extended(info), **(more or {})}
        if records:
            body = b"".join(_record(key.encode(errors="surrogateescape"), records[key]) for key in sorted(records))
            head = tarfile.TarInfo("././@PaxHeader")
            head.type, head.size = tarfile.XHDTYPE, len(body)
            self._out.write(head.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % tarfile.BLOCKSIZE))
        self._out.write(info.tobuf(tarfile.USTAR_FORMAT))

    def _contents(self, size: int, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self._out.write(piece)
            self._done += len(piece)
            if self._tick is not None:
                self._tick(self._done)
        self._out.write(bytes(-size % tarfile.BLOCKSIZE))


def _storable(entries: Iterable[Entry]) -> Iterator[Entry]:
    """What comes before the first name that a layer would take for a whiteout. Raises InvalidInput then."""
    wrong: list[bytes] = []
    for entry in entries:
        if entry.path.rpartition(b"/")[2].startswith(WHITEOUT):
            wrong.append(entry.path)
            if len(wrong) == NAMED:
                break
        elif not wrong:
            yield entry
    if wrong:
        names = ", ".join(repr("/" + os.fsdecode(path)[:80]) for path in wrong)
        raise InvalidInput(
            f"an OCI layer can't hold names that begin with .wh.: {names}", hint="rename them, or use --format serac"
        )


def _extended(info: tarfile.TarInfo) -> dict[str, bytes]:
    """The pax records of what the header has no room for, where there is something else then.

    tarfile would write them too, but with a ``hdrcharset`` for what isn't UTF-8, at which GNU tar warns."""
    records = {}
    for field, key in (("name", "path"), ("linkname", "linkpath")):
        text = getattr(info, field)
        if len(text) >= tarfile.LENGTH_NAME or not text.isascii():
            slash = b"/" if field == "name" and info.isdir() else b""
            records[key] = os.fsencode(text) + slash
            setattr(info, field, text.encode("ascii", "replace").decode()[: tarfile.LENGTH_NAME - 1])
    for field, most in (("uid", 8**7), ("gid", 8**7), ("size", 8**11), ("mtime", 8**11)):
        number = getattr(info, field)
        if not 0 <= number < most:
            records[field] = b"%d" % number
            setattr(info, field, 0)
    return records


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE``, where the length is its own too."""
    rest = b" %b=%b\n" % (key, value)
    size = len(rest) + len(str(len(rest)))
    size = len(rest) + len(str(size))
    return b"%d%b" % (size, rest)


def _xattrs(node: Node) -> Iterator[tuple[str, bytes]]:
    """As pax records."""
    for name, value in node.xattrs().items():
        shown = OVERLAY + name[len(_NESTED) :] if name.startswith(_NESTED) else name
        if b"=" not in name and (shown is not name or not name.startswith(OVERLAY)):
            yield f"SCHILY.xattr.{os.fsdecode(shown)}", value


def _time(mtime_ns: int) -> dict[str, bytes]:
    """As a pax record, a decimal number, where the header's own field doesn't do."""
    whole, rest = divmod(abs(mtime_ns), 10**9)
    if mtime_ns >= 0 and not rest:
        return {}
    return {"mtime": b"%b%d.%09d" % (b"-" if mtime_ns < 0 else b"", whole, rest)}


def _check_holes(path: bytes, node: Node) -> None:
    holes = node.size - sum(length for _, length in node.extents())
    if holes > HOLES_MAX:
        raise InvalidInput(
            f"/{os.fsdecode(path)[:200]} has holes of {holes >> 30} GiB, which would become zeros",
            hint=f"{HOLES_MAX >> 30} GiB is the most; remove it, or use --format serac",
        )


def _dense(node: Node) -> Iterator[bytes]:
    """A file's contents with zeros for its holes, which are not read."""
    end = 0
    for offset, length in node.extents():
        yield from _zeros(offset - end)
        yield from node.read(offset, length)
        end = offset + length
    yield from _zeros(node.size - end)


def _zeros(size: int) -> Iterator[bytes]:
    while size > 0:
        piece = min(size, PIECE)
        yield bytes(piece)
        size -= piece
