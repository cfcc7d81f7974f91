"""What /proc tells of a process, see proc_pid_stat(5)."""

from __future__ import annotations

import os
from pathlib import Path


def start_time(pid: int) -> int:
    """Clock ticks since boot at which the process began: with the pid it names a process for one boot.

    Raises ProcessLookupError when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError as error:
        raise ProcessLookupError(f"no process {pid}") from error
    # The second field is the command in parentheses and may hold anything, parentheses too.
    return int(stat.rpartition(b") ")[2].split()[19])


def working_directory(pid: int) -> str:
    """The process's working directory as it sees it, from its own root; raises OSError when it is gone."""
    return os.readlink(f"/proc/{pid}/cwd")


def namespace_pid(pid: int) -> int:
    """The pid that the process has in the innermost pid namespace it belongs to."""
    for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise OSError(f"/proc/{pid}/status has no NSpid")
