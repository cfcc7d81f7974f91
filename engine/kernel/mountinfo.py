"""/proc/PID/mountinfo, see proc_pid_mountinfo(5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Mount(NamedTuple):
    root: str
    """the directory within the filesystem that is mounted"""
    target: str
    type: str
    """filesystem type, ``ext4``"""
    source: str
    options: frozenset[str]
    """options of the superblock; on a cgroup v1 mount its controllers are among them"""


def mounts() -> Iterator[Mount]:
    """The mount table of this process, in its order: of two mounts on one target, the later one is visible."""
    for line in Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        kind, source, options = right.split(" ", 2)
        yield Mount(_plain(fields[3]), _plain(fields[4]), kind, _plain(source), frozenset(options.split(",")))


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
