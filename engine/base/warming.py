"""Bringing an image's files into the page cache, and telling how much of them is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from engine.errors import from_os
from engine.kernel.cachestat import cachestat
from engine.model import Warmth

_WINDOW = 8 << 20
_PAGE = os.sysconf("SC_PAGESIZE")


def warm(directory: Path, *, progress: Callable[[int, int], None] | None = None) -> Warmth:
    """Read every file of the directory that isn't in memory yet; sizes are in bytes.

    Nothing pins what was read: where memory is short, ``cached_after`` says how much stayed.
    """
    files = sorted(path for path in directory.iterdir() if path.is_file())
    total, done, before, after = sum(path.stat().st_size for path in files), 0, 0, 0
    try:
        for path in files:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(fd).st_size
                before += _cached(fd, size)
                for offset in range(0, size, _WINDOW):
                    _read(fd, offset, min(_WINDOW, size - offset))
                    done += min(_WINDOW, size - offset)
                    if progress:
                        progress(done, total)
                after += _cached(fd, size)
            finally:
                os.close(fd)
    except OSError as error:
        raise from_os(error, "warm base") from error
    return Warmth(size=total, cached_before=before, cached_after=after)


def _cached(fd: int, size: int) -> int:
    return min(cachestat(fd, 0, 0).cache * _PAGE, size)


def _read(fd: int, offset: int, length: int) -> None:
    if cachestat(fd, offset, length).cache * _PAGE >= length:
        return
    os.posix_fadvise(fd, offset + length, _WINDOW, os.POSIX_FADV_WILLNEED)
    end = offset + length
    while offset < end and (piece := os.pread(fd, min(1 << 20, end - offset), offset)):
        offset += len(piece)
