"""What ``serac-init pack`` wrote, unpacked on the host."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
import time
from typing import BinaryIO, NamedTuple

from engine.copy.stream import BLOCK, DIRECTORY, PIECE, Entry, components, entries, exactly, malformed, take, translated
from engine.errors import BadPath


def unpack_host(stream: BinaryIO, target: str | os.PathLike[str], *, outward_links: bool = False) -> None:
    """Unpack what a job sent as ``target`` on the host, or into it; to the stream's end.

    A symbolic link that could lead out of the directory that takes the tree (an absolute one, or one with too many
    ``..``) is refused unless ``outward_links``; none is ever followed. Raises BadPath for names and types that are
    refused, ProtocolError for a stream that is cut or malformed.
    """
    with translated(f"copy to {target}"), _Tree(os.fspath(target), outward_links=outward_links) as tree:
        for entry in entries(stream):
            tree.put(entry, stream)
        while stream.read(PIECE):
            pass


class _Open(NamedTuple):
    """A directory on the way to the entry at hand."""

    fd: int
    parts: tuple[str, ...]
    attributes: Entry | None
    """what to set when it is left; None: it was there before"""


class _Tree:
    """Where a stream is unpacked: every step is taken from an open directory, by one component, following no link."""

    def __init__(self, target: str, *, outward_links: bool) -> None:
        self.outward_links = outward_links
        self.rename: str | None = None
        self.top: tuple[str, ...] | None = None
        """the part of each name that ``rename`` replaces, once it is known"""
        self.slash = target.endswith("/")
        self.levels = [_Open(self._open_target(target), (), None)]

    def __enter__(self) -> _Tree:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            for level in self.levels:
                stack.callback(_leave, level)

    def _open_target(self, target: str) -> int:
        try:
            return os.open(target, DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            head, self.rename = os.path.split(target.rstrip("/"))
            if self.rename in ("", ".", ".."):
                raise
            return os.open(head or ".", DIRECTORY)

    def put(self, entry: Entry, stream: BinaryIO) -> None:
        """Unpack one entry, taking its contents from the stream."""
        if self.rename and self.top is None:
            self.top = entry.parts[:1]
            if self.slash and entry.kind != tarfile.DIRTYPE:
                raise BadPath(f"{self.rename}/ is no directory")
        parts = self._place(entry.parts)
        if entry.kind == tarfile.DIRTYPE:
            self._enter(parts, entry)
            return
        if not parts:
            raise BadPath("the target is a directory")
        parent = self._enter(parts[:-1], None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(parts[-1], dir_fd=parent)
        self._make(entry, parent, parts, stream)

    def _place(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        if self.rename is None or self.top is None:
            return parts
        if parts[: len(self.top)] != self.top:
            raise BadPath(f"{self.rename} is no directory, and several things are copied", hint="make it first")
        return (self.rename, *parts[len(self.top) :])

    def _make(self, entry: Entry, parent: int, parts: tuple[str, ...], stream: BinaryIO) -> None:
        if entry.kind == tarfile.REGTYPE:
            _make_file(entry, parent, parts[-1], stream)
        elif entry.kind == tarfile.SYMTYPE:
            self._make_symlink(entry, parent, parts)
        elif entry.kind == tarfile.LNKTYPE:
            self._make_link(entry, parent, parts)
        else:
            os.mkfifo(parts[-1], entry.mode & 0o777, dir_fd=parent)
            _set_time(entry, parent, parts[-1])

    def _make_symlink(self, entry: Entry, parent: int, parts: tuple[str, ...]) -> None:
        if not self.outward_links and _leads_out(entry.link, len(parts) - 1):
            raise BadPath(
                f"{'/'.join(parts)} is a link that leads out of what is copied: {entry.link}",
                hint="copy it without the link, or take the tar stream itself: `serac cp JOB:PATH -`",
            )
        os.symlink(entry.link, parts[-1], dir_fd=parent)
        _set_time(entry, parent, parts[-1])

    def _make_link(self, entry: Entry, parent: int, parts: tuple[str, ...]) -> None:
        *way, last = self._place(components(entry.link)) or ("",)
        with contextlib.ExitStack() as stack:
            directory = self.levels[0].fd
            for part in way:
                directory = os.open(part, DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                stack.callback(os.close, directory)
            if stat.S_ISDIR(os.stat(last, dir_fd=directory, follow_symlinks=False).st_mode):
                raise BadPath(f"{'/'.join(parts)} is a hard link to a directory")
            os.link(last, parts[-1], src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)

    def _enter(self, parts: tuple[str, ...], entry: Entry | None) -> int:
        """Make the directory the innermost level, making what is missing of it; ``entry`` says how it shall be."""
        while self.levels[-1].parts != parts[: len(self.levels[-1].parts)]:
            _leave(self.levels.pop())
        while len(self.levels[-1].parts) < len(parts):
            self._descend(parts[: len(self.levels[-1].parts) + 1])
        if entry and self.levels[-1].attributes:
            self.levels[-1] = self.levels[-1]._replace(attributes=entry)
        return self.levels[-1].fd

    def _descend(self, parts: tuple[str, ...]) -> None:
        parent = self.levels[-1].fd
        made = None
        with contextlib.suppress(FileExistsError):
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
            made = Entry(tarfile.DIRTYPE, parts, "", 0o755, 0, time.time_ns())
        self.levels.append(_Open(os.open(parts[-1], DIRECTORY | os.O_NOFOLLOW, dir_fd=parent), parts, made))


def _leads_out(link: str, depth: int) -> bool:
    """Whether a link in a directory ``depth`` levels down could: ``..`` is trusted at the beginning only, where the
    directories that it counts are known to be no links."""
    parts = [part for part in link.split("/") if part not in ("", ".")]
    up = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    return link.startswith("/") or up > depth or ".." in parts[up:]


def _set_time(entry: Entry, parent: int, last: str) -> None:
    os.utime(last, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)


def _make_file(entry: Entry, parent: int, last: str, stream: BinaryIO) -> None:
    fd = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    with open(fd, "wb") as file:
        for piece in exactly(stream, entry.size, cut=malformed("it ends too early")):
            file.write(piece)
        file.flush()
        os.fchmod(fd, entry.mode & 0o777)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
    take(stream, -entry.size % BLOCK)


def _leave(level: _Open) -> None:
    try:
        if level.attributes:
            os.fchmod(level.fd, level.attributes.mode & 0o777)
            os.utime(level.fd, ns=(level.attributes.mtime_ns, level.attributes.mtime_ns))
    finally:
        os.close(level.fd)
