"""cachestat(2), Linux 6.5 and newer: how much of a file the page cache holds."""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_NUMBER = 451
"""of the system call, the same on every architecture"""


class CacheStat(NamedTuple):
    """``struct cachestat``; all in pages."""

    cache: int
    dirty: int
    writeback: int
    evicted: int
    recently_evicted: int


def cachestat(fd: int, offset: int, length: int) -> CacheStat:
    """Pages of ``length`` bytes from ``offset`` on; a length of 0 means to the end of the file."""
    where = (ctypes.c_uint64 * 2)(offset, length)
    result = (ctypes.c_uint64 * 5)()
    if _libc.syscall(_NUMBER, fd, where, result, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return CacheStat(*result)
