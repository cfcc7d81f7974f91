"""Which CPU the calling thread runs on, see sched_setaffinity(2)."""

from __future__ import annotations

import contextlib
import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def leave_to_child() -> None:
    """Go on on another CPU, where this thread may run on one, beside the child that it has just started.

    The kernel puts a child on its parent's CPU when no other one seems idle, and to a guest of KVM none does, for those
    that sleep count as taken by the host (``vcpu_is_preempted``). The child then waits until its parent does, for some
    milliseconds at most, and nothing is done side by side. A tenth of a millisecond."""
    allowed = os.sched_getaffinity(0)
    others = allowed - {_libc.sched_getcpu()}
    if others:
        with contextlib.suppress(OSError):  # they have been taken away meanwhile
            os.sched_setaffinity(0, others)
            os.sched_setaffinity(0, allowed)
