"""serac: pause and resume CI jobs and agent sessions on overlay layers.

    from engine import Engine, JobSpec

    with Engine("/var/lib/serac") as engine:
        job = engine.run(JobSpec(base="debian", argv=("make", "-j2"), workdir="/src"))
        result = engine.pause(job.id, mode="filesystem")
        engine.resume(job.id)

`AsyncEngine` has the same verbs for asyncio. The words are in `engine.model`, the errors in `engine.errors`, the layout
on disk in `engine.config`.
"""

from typing import TYPE_CHECKING

from engine.errors import SeracError
from engine.model import Job, JobSpec, JobState, Limits, Pool, SessionSpec, Snapshot, Step

if TYPE_CHECKING:
    from engine.aio import AsyncEngine
    from engine.engine import Engine

__all__ = [
    "AsyncEngine",
    "Engine",
    "Job",
    "JobSpec",
    "JobState",
    "Limits",
    "Pool",
    "SeracError",
    "SessionSpec",
    "Snapshot",
    "Step",
]


def __getattr__(name: str) -> object:
    # The engine brings all its rooms along; whoever wants the words alone shouldn't wait for them.
    if name == "Engine":
        from engine.engine import Engine

        return Engine
    if name == "AsyncEngine":
        from engine.aio import AsyncEngine

        return AsyncEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
