"""ioprio_get(2) and ioprio_set(2), of one thread."""

from __future__ import annotations

import ctypes
import os
import platform

_GET, _SET = {"x86_64": (252, 251), "aarch64": (31, 30)}.get(platform.machine(), (-1, -1))
"""of the system calls; -1 is answered with ENOSYS"""
_WHO_PROCESS = 1
_libc = ctypes.CDLL(None, use_errno=True)


def ioprio_get(thread: int) -> int:
    """Class and level as the kernel packs them; 0 = it goes by the thread's niceness."""
    return _checked(_libc.syscall(_GET, _WHO_PROCESS, thread))


def ioprio_set(thread: int, priority: int) -> None:
    _checked(_libc.syscall(_SET, _WHO_PROCESS, thread, priority))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
