"""What a verb costs, by counts and not by a clock: bytes and calls, accesses, pages of the page cache."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from engine import Engine
from engine.kernel.cachestat import cachestat

LONG_AGO = 1_000_000_000
"""seconds since the epoch; a time of last access before the last change is moved by the next access (relatime)"""
SLACK = 16 << 10
"""bytes by which two measurements of the same thing differ: pages of the catalog's log, one message more of init"""


class Work(NamedTuple):
    """What was read and written, in bytes, and in how many calls."""

    read: int
    written: int
    calls: int


def forget(files: list[Path]) -> None:
    """Set the times of last access back and drop the pages of the files, which are clean."""
    for path in files:
        if path.is_file():
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        os.utime(path, (LONG_AGO, path.lstat().st_mtime))


def pages(path: Path) -> int:
    """How much of a file the page cache holds; 0 of a directory."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return 0
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
    try:
        return cachestat(fd, 0, 0).cache
    finally:
        os.close(fd)


def work(*pids: int) -> dict[int, Work]:
    """What this process, with the children it waited for, and each of ``pids`` have done since they began
    (proc_pid_io(5))."""
    done = {}
    for pid in (os.getpid(), *pids):
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        facts = {key: int(value) for key, value in (line.split(": ") for line in lines)}
        done[pid] = Work(facts["rchar"], facts["wchar"], facts["syscr"] + facts["syscw"])
    return done


def since(before: Mapping[int, Work], now: Mapping[int, Work]) -> Work:
    """What was done between two looks, by all that lived at the second."""
    total = Work(0, 0, 0)
    for pid, done in now.items():
        was = before.get(pid, Work(0, 0, 0))
        total = Work(*(old + new - gone for old, new, gone in zip(total, done, was, strict=True)))
    return total


def processes(engine: Engine) -> list[int]:
    """All processes of all jobs of a root."""
    groups = Path(engine._root.host.unified, "serac", engine.config.name).glob("*/cgroup.kill")
    return [int(pid) for kill in groups for pid in (kill.parent / "cgroup.procs").read_text().split()]
