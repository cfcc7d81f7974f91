"""stop: TERM to the job's init, which passes it on; after the grace KILL to the whole control group.

COMMIT is the settling of the ended job; killed before it: the job has ended or runs on, and the next look tells.
Also freeze and thaw: the whole job stands still in memory and goes on, in a millisecond. COMMIT is the row; where it
can't be written the job goes on, or stands still, as before, and so it does after the next look when the engine was
killed before it."""

from __future__ import annotations

import contextlib
import signal

import msgspec

from engine import cgroup
from engine.lifecycle import lazy, observe, processes
from engine.lifecycle.root import Root, now, require
from engine.model import ENDED, LIVE, Job, JobState
from engine.steps import step


def stop(root: Root, job: Job, *, grace: float | None) -> Job:
    """A job that has ended already is no error."""
    if job.state in ENDED:
        return job
    require(job, *LIVE, verb="stop")
    cgroup.thaw(root.group_of(job))
    with step("stop.term", job=job.id):
        processes.signal_init(root, job, signal.SIGTERM)
        processes.wait_init(root, job, timeout=root.config.settings.stop_grace if grace is None else grace)
    with step("stop.kill", job=job.id):
        if job.loading is not None:  # nobody needs the rest of its memory: said before the run directory goes
            cgroup.kill(root.group_of(job), timeout=root.timeout)
            job = lazy.complete(root, job)
        processes.take_down(root, job)
    with step("stop.commit", job=job.id):
        return root.put(_stopped(root, job))


def _stopped(root: Root, job: Job) -> Job:
    status = observe.main_status(root, job)
    if status is not None and status.status is not None:
        return observe.ended(job, status)
    # Killed before init could write, or a job without a command of its own: we know why it ended.
    had_command = bool(job.spec.argv or job.spec.steps) and job.held is None
    code = 128 + signal.SIGKILL if had_command else 0
    return msgspec.structs.replace(job, state=JobState.EXITED, status=code, ended=now(), mounted=())


def freeze(root: Root, job: Job) -> Job:
    if job.state is JobState.FROZEN:
        return job
    require(job, JobState.RUNNING, verb="freeze")
    group = root.group_of(job)
    with contextlib.ExitStack() as undo:
        undo.callback(cgroup.thaw, group)
        with step("freeze.freeze", job=job.id):
            cgroup.freeze(group, timeout=root.timeout)
        with step("freeze.commit", job=job.id):
            frozen = root.put(msgspec.structs.replace(job, state=JobState.FROZEN))
        undo.pop_all()
    return frozen


def thaw(root: Root, job: Job) -> Job:
    require(job, *LIVE, verb="thaw")
    group = root.group_of(job)
    with contextlib.ExitStack() as undo:
        if job.state is JobState.FROZEN:
            undo.callback(cgroup.freeze, group, timeout=root.timeout)
        with step("thaw.thaw", job=job.id):
            cgroup.thaw(group)
        with step("thaw.commit", job=job.id):
            running = root.put(msgspec.structs.replace(job, state=JobState.RUNNING))
        undo.pop_all()
    return running


def place(root: Root, job: Job) -> None:
    """Let a live job stand still, or run, as its row says."""
    if job.state is JobState.FROZEN:
        cgroup.freeze(root.group_of(job), timeout=root.timeout)
    else:
        cgroup.thaw(root.group_of(job))
