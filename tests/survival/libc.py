"""System calls that Python's standard library of 3.11 doesn't have, as the C library has them."""

from __future__ import annotations

import ctypes
import os
import struct

SIGEV_SIGNAL = 0
SIGEV_THREAD_ID = 4
TIMER_ABSTIME = 1
TFD_TIMER_CANCEL_ON_SET = 2
IPC_PRIVATE, IPC_CREAT, IPC_RMID, IPC_STAT, IPC_NOWAIT = 0, 0o1000, 0, 2, 0o4000
GETVAL, SETVAL, SEM_UNDO = 12, 16, 0x1000
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_NAME, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 2, 15, 22, 38
PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 3, 4, 36, 37
PR_CAPBSET_DROP, PR_SET_THP_DISABLE, PR_GET_THP_DISABLE, PR_SET_KEEPCAPS, PR_GET_KEEPCAPS = 24, 41, 42, 8, 7
PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """``name(*arguments)`` of the C library: integers as long, bytes and buffers as pointers. Raises OSError."""
    function = getattr(_libc, name)
    function.restype = ctypes.c_long
    done = function(*(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments))
    # A 32-bit result leaves the upper half of the register open.
    result = int(done) if name in ("shmat", "mmap", "syscall") else ctypes.c_int(done).value
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
    return result


def timespec(seconds: float) -> bytes:
    return struct.pack("qq", int(seconds), int(seconds % 1 * 1e9))


def itimerspec(value: float, interval: float = 0.0) -> bytes:
    return timespec(interval) + timespec(value)


def seconds(spec: bytes) -> tuple[float, float]:
    """(value, interval) of a struct itimerspec."""
    interval, interval_ns, value, value_ns = struct.unpack("qqqq", spec)
    return value + value_ns / 1e9, interval + interval_ns / 1e9


def timerfd(clock: int, spec: bytes, flags: int = 0) -> int:
    fd = call("timerfd_create", clock, 0)
    call("timerfd_settime", fd, flags, spec, None)
    return fd


def timerfd_left(fd: int) -> tuple[float, float]:
    spec = ctypes.create_string_buffer(32)
    call("timerfd_gettime", fd, spec)
    return seconds(spec.raw)


def timer(clock: int, signo: int, spec: bytes, flags: int = 0) -> int:
    """timer_create and timer_settime: a POSIX timer that sends ``signo`` with its value 77."""
    event = struct.pack("qii48x", 77, signo, SIGEV_SIGNAL)
    timer_id = ctypes.c_void_p()
    call("timer_create", clock, event, ctypes.byref(timer_id))
    handle = timer_id.value or 0
    call("timer_settime", handle, flags, spec, None)
    return handle


def timer_left(handle: int) -> tuple[float, float]:
    spec = ctypes.create_string_buffer(32)
    call("timer_gettime", handle, spec)
    return seconds(spec.raw)


def sigset(*signals: int) -> bytes:
    return sum(1 << (signo - 1) for signo in signals).to_bytes(128, "little")


def sigqueue(pid: int, signo: int, value: int) -> None:
    call("sigqueue", pid, signo, value)


def take_signal(*signals: int) -> tuple[int, int]:
    """(signal, its value) of the next of these that is pending. Raises BlockingIOError when none is."""
    info = ctypes.create_string_buffer(128)
    signo = call("sigtimedwait", sigset(*signals), info, timespec(0))
    return signo, struct.unpack_from("i", info.raw, 24)[0]
