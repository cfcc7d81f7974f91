"""A tar stream: its pieces, and its entries as a job sent them, none of it trusted (see native/copy.h)."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from engine.errors import BadPath, ProtocolError, SeracError, from_os

BLOCK = tarfile.BLOCKSIZE
PIECE = 256 << 10
"""bytes that are read and written at once"""
EXTENDED_MAX = 1 << 20
"""bytes of all pax records of an entry"""
_PATH_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Entry(NamedTuple):
    kind: bytes
    """as in ``tarfile``, one of _KINDS"""
    parts: tuple[str, ...]
    """the name's components, none of them empty, ``.`` or ``..``"""
    link: str
    mode: int
    size: int
    mtime_ns: int


_KINDS = (tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_MTIME_MAX = 1 << 40
"""seconds; far beyond any filesystem's"""


def exactly(stream: BinaryIO | io.RawIOBase, size: int, *, cut: SeracError) -> Iterator[bytes]:
    while size:
        piece = stream.read(min(size, PIECE))
        if not piece:
            raise cut
        size -= len(piece)
        yield piece


def take(stream: BinaryIO, size: int) -> bytes:
    return b"".join(exactly(stream, size, cut=malformed("it ends too early")))


def malformed(why: str) -> ProtocolError:
    return ProtocolError(f"what the job sent is no tar stream: {why}")


def entries(stream: BinaryIO) -> Iterator[Entry]:
    """The entries up to the end mark; whoever gets one takes its contents before the next."""
    records: dict[str, str] = {}
    while any(block := take(stream, BLOCK)):
        info = _parse_header(block)
        if info.type == tarfile.XHDTYPE:
            records = _take_records(stream, info.size)
        else:
            yield _entry(info, records)
            records = {}
    if records:
        raise malformed("it ends too early")


def _parse_header(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, sys.getfilesystemencoding(), "surrogateescape")
    except tarfile.HeaderError as error:
        raise malformed(str(error)) from error


def _take_records(stream: BinaryIO, size: int) -> dict[str, str]:
    """The pax records that matter here: ``LENGTH KEY=VALUE`` and a newline, LENGTH counting all of it."""
    if not 0 <= size <= EXTENDED_MAX:
        raise malformed("an extended header is too long")
    data = take(stream, size + -size % BLOCK)[:size]
    records = {}
    at = 0
    while at < size:
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if not match or not match.end() < end <= size or data[end - 1 : end] != b"\n":
            raise malformed("a pax header is malformed")
        records[os.fsdecode(match[2])] = os.fsdecode(data[match.end() : end - 1])
        at = end
    return records


_RECORD = re.compile(rb"([0-9]{1,7}) ([^=\n]+)=")


def _entry(info: tarfile.TarInfo, records: dict[str, str]) -> Entry:
    name, link = records.get("path", info.name), records.get("linkpath", info.linkname)
    kind = tarfile.REGTYPE if info.type == tarfile.AREGTYPE else info.type
    if kind not in _KINDS:
        raise BadPath(f"{name} is neither file, directory, link nor fifo", hint="copy files and directories")
    if "\0" in name + link:
        raise malformed("a name holds a NUL")
    return Entry(kind, components(name), link, info.mode, _size(info, records), _mtime_ns(info, records))


def components(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts:
        raise BadPath(f"{name} leads out of the directory that it is copied to")
    return parts


def _size(info: tarfile.TarInfo, records: dict[str, str]) -> int:
    text = records.get("size", str(info.size))
    if not re.fullmatch("[0-9]{1,18}", text):
        raise malformed("a size is out of range")
    return int(text)


def _mtime_ns(info: tarfile.TarInfo, records: dict[str, str]) -> int:
    match = re.fullmatch(r"(-?)([0-9]{1,13})(?:\.([0-9]*))?", records.get("mtime", str(info.mtime)))
    if not match or int(match[2]) > _MTIME_MAX:
        raise malformed("a time is out of range")
    nanoseconds = int(match[2]) * 10**9 + int(f"{match[3] or ''}000000000"[:9])
    return -nanoseconds if match[1] else nanoseconds


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _PATH_ERRNOS:
            raise from_os(error, doing) from error
        where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        raise BadPath(f"{doing}: {error.strerror}{where}", hint="see `serac cp --help`") from error
