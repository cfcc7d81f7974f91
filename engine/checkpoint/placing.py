"""On which processors threads may run, and with what I/O priority: criu forgets both, so they are noted at a dump and
set again at the restore."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence

from engine.kernel import procfs
from engine.kernel.ioprio import ioprio_get, ioprio_set
from engine.model import Placement


def placements(pids: Sequence[int]) -> tuple[Placement, ...]:
    """What there is to note of a frozen job; ``pids`` as for `look`, init first."""
    usual = os.sched_getaffinity(pids[0])
    return tuple(found for pid in pids for thread in procfs.threads(pid) for found in _placement(pid, thread, usual))


def _placement(pid: int, thread: int, usual: set[int]) -> Iterator[Placement]:
    cpus, priority = os.sched_getaffinity(thread), ioprio_get(thread)
    if cpus != usual or priority:
        placed = tuple(sorted(cpus)) if cpus != usual else ()
        yield Placement(thread=procfs.number_in_job(pid, thread), cpus=placed, ioprio=priority)


def place(pids: Sequence[int], wanted: Sequence[Placement]) -> None:
    """Place the threads of a job, which stands still, as they were; on a host with fewer processors where they can."""
    if not wanted:
        return
    threads = {procfs.number_in_job(pid, thread): thread for pid in pids for thread in procfs.threads(pid)}
    for placement in wanted:
        thread = threads.get(placement.thread)
        if thread is not None:
            _place(thread, placement)


def _place(thread: int, placement: Placement) -> None:
    if placement.cpus:
        with _without_processors():
            os.sched_setaffinity(thread, placement.cpus)
    if placement.ioprio:
        ioprio_set(thread, placement.ioprio)


@contextlib.contextmanager
def _without_processors() -> Iterator[None]:
    """None of those that are asked for are here: then all will do."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
