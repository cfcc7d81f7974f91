"""A job may end while no engine looks. Whoever looks next settles it: where its memory came, commits that
(`engine.lifecycle.lazy`); takes down what is left; then one COMMIT: ``exited`` with its status, or ``failed`` with the
reason. Killed in between: the next one who looks does it again. Of one that failed, and is to be kept then, a snapshot
is made (`engine.lifecycle.keep`)."""

from __future__ import annotations

import msgspec

from engine import layers, session
from engine.errors import ProtocolError
from engine.lifecycle import keep, lazy, processes
from engine.lifecycle.root import Root, now
from engine.model import LIVE, Job, JobState, SessionStatus
from engine.steps import step


def settle(root: Root, job: Job) -> Job:
    """The job as it is now; the caller holds its lock."""
    if job.state not in LIVE or processes.alive(root, job):
        return keep.keep(root, job)
    why = lazy.verdict(root, job) if job.loading is not None else None
    if why is None:  # before the run directory goes, which tells it
        job = lazy.complete(root, job)
    with step("settle.release", job=job.id):
        processes.take_down(root, job)
        if job.upper is not None:  # a resume was not finished, perhaps
            layers.unseal(root.layer(job.upper))
    with step("settle.commit", job=job.id):
        settled = root.put(_ended(root, job, why))
    facts = {} if settled.status is None else {"status": settled.status}
    root.journal.add(settled.state.value, job=job.id, name=job.name, reason=settled.failure, facts=facts)
    return keep.keep(root, settled)


def _ended(root: Root, job: Job, why: str | None) -> Job:
    """``why`` its memory couldn't be brought back."""
    job = msgspec.structs.replace(job, pending=())
    if why is not None:
        failure = f"its memory could not be brought back: {why}"
        return msgspec.structs.replace(job, state=JobState.FAILED, failure=failure, ended=now(), mounted=())
    settled = ended(job, main_status(root, job))
    return msgspec.structs.replace(settled, owes=keep.wanted(settled))


def main_status(root: Root, job: Job) -> SessionStatus | None:
    """What init wrote of session 0 last; None where it wrote nothing that can be read."""
    try:
        return session.status(root.io(job.id), 0)
    except ProtocolError:
        return None


def ended(job: Job, status: SessionStatus | None) -> Job:
    """How a job whose processes are gone has ended, judged from init's last word; nothing is written."""
    if status is not None and status.status is not None:
        return msgspec.structs.replace(
            job, state=JobState.EXITED, status=status.status, ended=status.ended or now(), mounted=()
        )
    failure = "its processes were killed from outside, or the host went down"
    return msgspec.structs.replace(job, state=JobState.FAILED, failure=failure, ended=now(), mounted=())
