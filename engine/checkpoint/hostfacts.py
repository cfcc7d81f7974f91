"""What this host is to a process image, and whether one that was made elsewhere can be restored here."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from engine import tools
from engine.checkpoint.obstacles import Obstacle, obstacle
from engine.model import HostFacts


def host_facts() -> HostFacts:
    """Cheap after the first call in a process. Raises ToolMissing without a criu."""
    here = os.uname()
    return HostFacts(criu=tools.find("criu").version, kernel=here.release, machine=here.machine, cpu=_cpu_flags())


@functools.cache
def _cpu_flags() -> tuple[str, ...]:
    """Of the first processor, those of them that criu's cpu-cap "fpu,ins" judges."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return tuple(sorted(match[1].split())) if match else ()


def judge_restore(
    image: HostFacts, here: HostFacts, *, memory: int, available: int, disk_free: int, lazy: bool
) -> tuple[Obstacle, ...]:
    """What stands in the way of restoring an image here."""
    found: list[Obstacle] = []
    if image.machine != here.machine:
        found.append(obstacle("other-machine", f"made on {image.machine}, this is {here.machine}"))
    return tuple(found)
