"""prefetch: the resume of a paused job is announced.

1 the job's chain is mounted; 2 the kernel reads what the resume will; 3 a slot is made for it
(`engine.lifecycle.ahead`) and kept for some seconds. The job stays paused, and its resume in this engine takes what is
there. Killed in between, or when the seconds are over: as with any slot.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path

from engine import layers
from engine.errors import InvalidInput
from engine.lifecycle import ahead, bases, mounting, processes, resume
from engine.lifecycle.root import Root, require
from engine.model import Job, JobState, Prefetch, Snapshot
from engine.steps import record, step

LONGEST = 3600.0
"""seconds that a slot is kept for a job"""


def prefetch(root: Root, job: Job, how: resume.How, *, seconds: float) -> Prefetch:
    if not 0 < seconds <= LONGEST:
        raise InvalidInput(f"seconds are out of range: {seconds}", hint=f"up to {LONGEST:g}")
    require(job, JobState.PAUSED, verb="prefetch")
    snapshot = root.catalog.snapshot(job.snapshot or "")
    back, choice = resume.ways(root, snapshot, how)
    what = ahead.what_criu(job.spec, lazily=choice.lazy) if back else ahead.what_init(job.spec)
    with record() as timings:
        processes.take_down(root, job)  # an earlier one
        root.stage(job.id)
        try:
            with step("prefetch.mount", job=job.id):
                mounting.mount_chain(root, job.base, root.catalog.chain(job.layers))
            with step("prefetch.read", job=job.id):
                size = _read(root, snapshot, image=back, memory=not choice.lazy)
            with step("prefetch.begin", job=job.id):
                slot = root.shelf.keep(partial(ahead.make, root, job, what)).result()
        except BaseException:
            processes.take_down(root, job)
            raise
        root.shelf.put(job.id, slot, spoken_for=True)
    timer = threading.Timer(seconds, _expire, (root, slot))
    slot.closing(timer.cancel)
    timer.daemon = True
    timer.start()
    return Prefetch(job=job.id, mode="process" if back else "filesystem", read=size, seconds=seconds, timings=timings)


def _read(root: Root, snapshot: Snapshot, *, image: bool, memory: bool) -> int:
    """Have the kernel read what isn't in memory yet; bytes of all. A lazy resume reads memory as it is needed."""
    warmth = bases.warm_profiled(root, snapshot.base)
    size = 0 if warmth is None else warmth.size
    directory = layers.image(root.layer(snapshot.layers[-1]))
    for entry in sorted(directory.iterdir()) if image and directory.is_dir() else ():
        if entry.is_file() and (memory or not entry.name.startswith("pages-")):
            size += _read_file(entry)
    return size


def _read_file(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _expire(root: Root, slot: ahead.Slot) -> None:
    if root.shelf.drop(slot.job.id, slot):
        ahead.take_away(root, slot.job)
