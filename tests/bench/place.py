"""What a scenario is given."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import interrupts, serac, workloads
from bench.plan import Plan
from engine import Engine


class Place(NamedTuple):
    """A directory on a disk that is gone at the end, with the programs and the root filesystem in it."""

    directory: Path
    floor: Path
    job: Path
    tree: Path
    plan: Plan

    def engine(self) -> contextlib.AbstractContextManager[Engine]:
        """An engine on a new root."""
        return serac.opened(self.directory, self.tree)

    def has_room(self, megabytes: int) -> bool:
        return shutil.disk_usage(self.directory).free > 2 * megabytes << 20


@contextlib.contextmanager
def made(plan: Plan) -> Iterator[Place]:
    directory = Path(tempfile.mkdtemp(prefix="serac-bench-", dir="/var/tmp"))
    try:
        floor, job = (workloads.compiled(name, directory) for name in ("floor", "job"))
        yield Place(directory, floor, job, workloads.small_tree(directory, job), plan)
    finally:
        with interrupts.put_off():
            shutil.rmtree(directory)
