"""statx(2), for what os.stat leaves out: the mount that a file was opened on."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_WANTED = 0x07FF | 0x1000
"""STATX_BASIC_STATS and STATX_MNT_ID, Linux 5.8"""
_FIELDS = struct.Struct("=16xI8xH18xQ72xII8xQ")
"""of ``struct statx``: stx_nlink, stx_mode, stx_blocks, stx_rdev_major and _minor, stx_mnt_id"""


class Statx(NamedTuple):
    links: int
    mode: int
    blocks: int
    """of 512 bytes"""
    device: tuple[int, int]
    """major and minor number of the device that the file stands for"""
    mount: int
    """as the first field of a line of /proc/PID/mountinfo"""


def statx(path: str) -> Statx:
    """What ``path`` leads to, links followed."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(-100, os.fsencode(path), 0, _WANTED, buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    links, mode, blocks, major, minor, mount = _FIELDS.unpack_from(buffer)
    return Statx(links, mode, blocks, (major, minor), mount)
