"""A timer that has run out again and again, and that nobody has read yet, must go on after a restore.

The kernel stops such a timerfd until it is read, and shows no time that is left (``it_value`` in proc_pid_fdinfo(5)),
as for one that was never armed. criu restores that: the timer would never run out again. With a nanosecond left it does
so at once, and goes on. The image is files.img: criu's images/fdinfo.proto and timerfd.proto.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from engine.checkpoint.rpc import read_varint

_HEAD = 8
_TIMERFD = 12
"""of file_entry"""
_TICKS, _SECONDS, _NANOSECONDS, _EVERY_SECONDS, _EVERY_NANOSECONDS = 5, 7, 8, 9, 10
"""of timerfd_entry"""

Place = tuple[int, int]
"""where a field's value begins and ends"""


def keep_running(images: Path) -> int:
    """Change the image so that its timers go on; how many had to be changed. Raises OSError, IndexError (no image)."""
    file = os.open(images / "files.img", os.O_RDWR | os.O_CLOEXEC)
    try:
        content = os.pread(file, os.fstat(file).st_size, 0)
        stopped = [place for place in _timers(content) if _has_stopped(content, place)]
        for place in stopped:
            at, _ = dict(_fields(content, place))[_NANOSECONDS]
            os.pwrite(file, b"\1", at)  # it was 0: one byte too
        return len(stopped)
    finally:
        os.close(file)


def _timers(content: bytes) -> Iterator[Place]:
    at = _HEAD
    while at + 4 <= len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        yield from (place for number, place in _fields(content, (at + 4, end)) if number == _TIMERFD)
        at = end


def _has_stopped(content: bytes, timer: Place) -> bool:
    values = {number: read_varint(content, at)[0] for number, (at, _) in _fields(content, timer)}
    every = values[_EVERY_SECONDS] or values[_EVERY_NANOSECONDS]
    return bool(every and values[_TICKS] and not values[_SECONDS] and not values[_NANOSECONDS])


def _fields(content: bytes, message: Place) -> Iterator[tuple[int, Place]]:
    at, end = message
    while at < end:
        key, at = read_varint(content, at)
        value, after = read_varint(content, at)
        begin = at if key & 7 == 0 else after
        at = after if key & 7 == 0 else after + value
        yield key >> 3, (begin, at)
