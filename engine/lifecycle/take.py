"""take: a snapshot of a job that runs on.

It is a pause with the processes and a resume that stacks a new layer on what was sealed, so that the snapshot stays.
The job notices that time has passed, and that its generation is another. What it asks it asks on. Nobody sees it as
paused in between: from the pause's commit on its row says ``resuming``, without an upper as yet.

Killed before that commit the job runs on without a snapshot; after it recover takes the resume back: the job is paused
to the snapshot. The same holds for a take that fails.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from engine.lifecycle import pause, resume
from engine.lifecycle.root import Root, require
from engine.model import Archiving, Durability, Job, JobState, TakeResult


def take(
    root: Root,
    job: Job,
    *,
    labels: Mapping[str, str],
    state: Any | msgspec.UnsetType,
    archive: Archiving = "never",
    ttl: float | None = None,
    durability: Durability = "full",
) -> TakeResult:
    """``archive``, ``ttl`` and ``durability``: as of a pause."""
    require(job, JobState.RUNNING, verb="take a snapshot of")
    began = time.perf_counter()
    paused = pause.pause(
        root, job, mode="process", labels=labels, state=state, archive=archive, ttl=ttl, durability=durability,
        then=JobState.RESUMING,
    )  # fmt: skip
    resumed = resume.resume(
        root, root.catalog.job_with(job.id), resume.How(mode="process", keep_tcp=True, keep=True, reply=False)
    )
    stopped = round((time.perf_counter() - began) * 1000, 3)
    timings = {**paused.timings, **resumed.timings, "stopped": stopped}
    return TakeResult(
        job=job.id, snapshot=paused.snapshot, durability=durability, generation=resumed.generation, timings=timings,
        sizes=paused.sizes,
    )  # fmt: skip
