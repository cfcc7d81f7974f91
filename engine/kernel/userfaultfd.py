"""Whether userfaultfd(2) can be had: memory that is brought in when a process touches it."""

from __future__ import annotations

import os
from pathlib import Path

from engine.kernel import process

_SYS_PTRACE = 19
_SETTING = Path("/proc/sys/vm/unprivileged_userfaultfd")
_DEVICE = Path("/dev/userfaultfd")


def lacking(*, private: bool) -> str | None:
    """What keeps the processes of a job from it, None = nothing. ``private``: those in a user namespace of their own,
    who aren't asked for what this process may do, but by the device (Linux 6.1 or newer)."""
    if not _SETTING.exists():
        return "the kernel has no userfaultfd"
    if _SETTING.read_text(encoding="ascii").strip() == "1":
        return None
    if private:
        return None if _DEVICE.is_char_device() else f"there is no {_DEVICE}"
    return None if process.has_capability(os.getpid(), _SYS_PTRACE) else "CAP_SYS_PTRACE is not held"
