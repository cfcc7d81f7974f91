"""statfs(2), for the field that os.statvfs leaves out: the filesystem's type."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_SIZE = 256
"""bytes, twice what ``struct statfs`` takes on any 64-bit architecture; f_type is its first long"""


def type_of(path: Path) -> int:
    """The magic number of the filesystem that holds ``path``, see linux/magic.h."""
    buffer = ctypes.create_string_buffer(_SIZE)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(path))
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF
