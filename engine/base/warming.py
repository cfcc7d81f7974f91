"""Bringing an image's files, or what jobs read of them, into the page cache, and telling how much of them is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.errors import from_os
from engine.kernel.cachestat import cachestat
from engine.model import Profile, Warmth

FILES = ("meta.erofs", "data.blob")
_WINDOW = 8 << 20
_GRAIN = 64 << 10
"""bytes, the smallest part of a profile"""
_PAGE = os.sysconf("SC_PAGESIZE")


def warm(
    directory: Path, profile: Profile | None = None, *, progress: Callable[[int, int], None] | None = None
) -> Warmth:
    """Read what a profile says of the image in a directory, or all of it, as far as it isn't in memory yet.

    Nothing pins what was read: where memory is short, ``cached_after`` says how much stayed. Raises SeracError."""
    total, done, before, after = 0, 0, 0, 0
    try:
        wanted = {name: _parts(directory / name, profile) for name in FILES}
        total = sum(length for parts in wanted.values() for _, length in parts)
        for name, parts in wanted.items():
            fd = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                before += sum(_cached(fd, *part) for part in parts)
                for offset, length in _windows(parts):
                    _read(fd, offset, length)
                    done += length
                    if progress:
                        progress(done, total)
                after += sum(_cached(fd, *part) for part in parts)
            finally:
                os.close(fd)
    except OSError as error:
        raise from_os(error, "warm base") from error
    return Warmth(size=total, cached_before=before, cached_after=after)


def _parts(path: Path, profile: Profile | None) -> tuple[tuple[int, int], ...]:
    size = path.stat().st_size
    if profile is None:
        return ((0, size),) if size else ()
    return tuple(
        (offset, min(length, size - offset)) for offset, length in profile.parts.get(path.name, ()) if offset < size
    )


def _windows(parts: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    for offset, length in parts:
        for start in range(offset, offset + length, _WINDOW):
            yield start, min(_WINDOW, offset + length - start)


def forget(directory: Path) -> None:
    """Drop the pages of an image that isn't mounted. Raises OSError."""
    for name in FILES:
        fd = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def resident(directory: Path) -> Profile:
    """What is in memory of an image now. Raises OSError."""
    return Profile(parts={name: tuple(_resident(directory / name)) for name in FILES})


def _resident(path: Path) -> Iterator[tuple[int, int]]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, begun = os.fstat(fd).st_size, None
        for offset in range(0, size, _GRAIN):
            there = cachestat(fd, offset, min(_GRAIN, size - offset)).cache > 0
            if there and begun is None:
                begun = offset
            elif not there and begun is not None:
                yield begun, offset - begun
                begun = None
        if begun is not None:
            yield begun, size - begun
    finally:
        os.close(fd)


def _cached(fd: int, offset: int, length: int) -> int:
    return min(cachestat(fd, offset, length).cache * _PAGE, length)


def _read(fd: int, offset: int, length: int) -> None:
    if cachestat(fd, offset, length).cache * _PAGE >= length:
        return
    os.posix_fadvise(fd, offset + length, _WINDOW, os.POSIX_FADV_WILLNEED)
    end = offset + length
    while offset < end and (piece := os.pread(fd, min(1 << 20, end - offset), offset)):
        offset += len(piece)
