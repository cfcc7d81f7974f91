"""serac: pause and resume CI jobs and agent sessions on overlay layers.

    from engine import Engine, JobSpec

    with Engine("/var/lib/serac") as engine:
        job = engine.run(JobSpec(base="debian", argv=("make", "-j2"), workdir="/src"))
        result = engine.pause(job.id, mode="filesystem")
        engine.resume(job.id)

The words are in `engine.model`, the errors in `engine.errors`, the layout on disk in `engine.config`.
"""

from engine.engine import Engine
from engine.errors import SeracError
from engine.model import Job, JobSpec, JobState, Limits, SessionSpec, Snapshot, Step

__all__ = ["Engine", "Job", "JobSpec", "JobState", "Limits", "SeracError", "SessionSpec", "Snapshot", "Step"]
