"""Which CPU a process runs on, see sched_setaffinity(2)."""

from __future__ import annotations

import contextlib
import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def part_with(child: int) -> None:
    """Have a process that has just been started run on another CPU than this thread, where it may run on one.

    The kernel puts a child on its parent's CPU when no other one seems idle, and to a guest of KVM none does, for those
    that sleep count as taken by the host (``vcpu_is_preempted``). The child then waits until its parent does, for some
    milliseconds at most, and nothing is done side by side. Who only waits for a CPU is moved at once; to move who runs,
    oneself for instance, takes ten times as long."""
    with contextlib.suppress(OSError):  # it is gone, or the CPUs have been taken away meanwhile
        allowed = os.sched_getaffinity(child)
        others = allowed - {_libc.sched_getcpu()}
        if others:
            os.sched_setaffinity(child, others)
            os.sched_setaffinity(child, allowed)
