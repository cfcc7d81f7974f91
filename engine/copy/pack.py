"""A path on the host as a tar stream for ``serac-init unpack``."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from engine.copy.stream import BLOCK, DIRECTORY, exactly, translated
from engine.errors import BadPath

LINKS_MAX = 1 << 16
"""files with several names that are remembered while packing; any beyond are written in full"""


def iter_pack(source: str | os.PathLike[str]) -> Iterator[bytes]:
    """The stream of a path on the host, in pieces. Raises BadPath, NotPrivileged and whatever else reading meets.

    A ``Path`` has lost a trailing ``/`` or ``/.``: give a string where that matters.
    """
    path = os.fspath(source)
    links: dict[tuple[int, int], str] = {}
    with translated(f"copy {path}"), contextlib.ExitStack() as stack:
        parent, last, name = _open_source(path)
        stack.callback(os.close, parent)
        status = os.stat(last, dir_fd=parent, follow_symlinks=False)
        for found in _walk(_Found(parent, last, name, status)):
            yield from _pack_entry(found, links)
        yield bytes(2 * BLOCK)


def pack_host(source: str | os.PathLike[str], out: BinaryIO) -> None:
    """Write the stream of a path on the host to ``out``."""
    for piece in iter_pack(source):
        out.write(piece)


class _Found(NamedTuple):
    """Something to pack: where it is, and what the stream calls it."""

    parent: int
    last: str
    name: str
    status: os.stat_result


class _Level:
    """An open directory on the way down; however many entries it has, one is held."""

    def __init__(self, found: _Found) -> None:
        self.name = found.name
        self.fd = os.open(found.last, DIRECTORY | os.O_NOFOLLOW, dir_fd=found.parent)
        self.children = os.scandir(self.fd)

    def next(self) -> _Found | None:
        for child in self.children:
            # What was removed since it was listed is none of the tree.
            with contextlib.suppress(FileNotFoundError):
                status = child.stat(follow_symlinks=False)
                return _Found(self.fd, child.name, f"{self.name}/{child.name}", status)
        return None

    def close(self) -> None:
        self.children.close()
        os.close(self.fd)


def _open_source(source: str) -> tuple[int, str, str]:
    """A descriptor of the directory that the source lies in, its name there, and its name in the stream."""
    path = source.rstrip("/") or source[:1]
    head, last = os.path.split(path)
    name = "." if last in ("", ".", "..") else last
    if name == "." or source.endswith("/"):
        return os.open(source, DIRECTORY), ".", name
    return os.open(head or ".", DIRECTORY), last, name


def _walk(top: _Found) -> Iterator[_Found]:
    """The top and, depth first, all below it."""
    levels: list[_Level] = []
    found: _Found | None = top
    try:
        while found or levels:
            if found:
                yield found
            if found and stat.S_ISDIR(found.status.st_mode):
                levels.append(_Level(found))
            found = levels[-1].next() if levels else None
            if levels and not found:
                levels.pop().close()
    finally:
        for level in levels:
            level.close()


def _pack_entry(found: _Found, links: dict[tuple[int, int], str]) -> Iterator[bytes]:
    status = found.status
    if stat.S_ISREG(status.st_mode):
        yield from _pack_file(found, links)
    elif stat.S_ISDIR(status.st_mode):
        yield _header(found.name, status, tarfile.DIRTYPE)
    elif stat.S_ISLNK(status.st_mode):
        yield _header(found.name, status, tarfile.SYMTYPE, link=os.readlink(found.last, dir_fd=found.parent))
    elif stat.S_ISFIFO(status.st_mode):
        yield _header(found.name, status, tarfile.FIFOTYPE)
    elif not stat.S_ISSOCK(status.st_mode):
        raise BadPath(f"{found.name} is a device", hint="copy files and directories")


def _pack_file(found: _Found, links: dict[tuple[int, int], str]) -> Iterator[bytes]:
    inode = (found.status.st_dev, found.status.st_ino)
    if inode in links:
        yield _header(found.name, found.status, tarfile.LNKTYPE, link=links[inode])
        return
    if found.status.st_nlink > 1 and len(links) < LINKS_MAX:
        links[inode] = found.name
    # It may have become anything since it was looked at; O_NONBLOCK: even a fifo without a writer.
    fd = os.open(found.last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=found.parent)
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadPath(f"{found.name} changed while it was copied", hint="copy it again")
        yield _header(found.name, status, tarfile.REGTYPE, size=status.st_size)
        yield from exactly(file, status.st_size, cut=BadPath(f"{found.name} became shorter while it was copied"))
        yield bytes(-status.st_size % BLOCK)


def _header(name: str, status: os.stat_result, kind: bytes, *, link: str = "", size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    info.mode = stat.S_IMODE(status.st_mode) & 0o1777
    seconds, fraction = divmod(abs(status.st_mtime_ns), 10**9)
    info.mtime = seconds
    if fraction or status.st_mtime_ns < 0:
        sign = "-" if status.st_mtime_ns < 0 else ""
        info.pax_headers = {"mtime": f"{sign}{seconds}.{fraction:09d}"}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
