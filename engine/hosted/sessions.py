"""Which jobs are sessions; how one comes to be, once a request; how many there may be; how one goes."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator

import msgspec

from engine import store
from engine.engine import Engine
from engine.errors import Busy, InvalidInput, LimitReached, NameTaken, NotFound, Timeout
from engine.hosted.arguments import Wait
from engine.lifecycle import recover
from engine.model import ENDED, Job, JobSpec, JobState

LABEL = "serac.session"
"""of the jobs that are sessions: the request that created it"""
_ID = re.compile(r"[0-9a-f]{12}")


def is_session(job: Job) -> bool:
    """One that is being made isn't yet."""
    return LABEL in job.spec.labels and job.state is not JobState.CREATED


def job_of(engine: Engine, session_id: str) -> Job:
    """By its whole id, for names and beginnings of ids are the engine's. Raises NotFound."""
    job = _found(engine, session_id) if _ID.fullmatch(session_id) else None
    if job is None or not is_session(job):
        raise NotFound(f"no session {session_id!r}", hint="`list` has the sessions that there are")
    return job


def requested(spec: JobSpec, request: str) -> JobSpec:
    """The spec with the name that this request gives: what two processes want to make with one request, one can't."""
    name = f"session-{hashlib.sha256(request.encode()).hexdigest()[:24]}"
    return msgspec.structs.replace(spec, name=name, labels={**spec.labels, LABEL: request})


def created(engine: Engine, spec: JobSpec, wait: Wait) -> Job:
    """The running job of this spec, which has its request's name: made now, or before, or by somebody meanwhile."""
    assert spec.name is not None
    while (job := _found(engine, spec.name)) is None or job.state is JobState.CREATED:
        if job is None:
            with (
                contextlib.suppress(NameTaken, *(() if not wait.left() else (Busy,))),
                room(engine, wait, but=spec.name),
            ):
                return engine.run(spec)
        elif not wait.left():
            raise Timeout(f"job {job.name} is still being made")
        else:
            with contextlib.suppress(Busy, NotFound), recover.taken(engine._root, job.id, timeout=wait.until_look()):
                pass  # whoever makes it holds the lock until it runs or is gone
    if _asked(job.spec) != _asked(spec):
        raise InvalidInput("this request has created another session", hint="give each request an id of its own")
    return job


def _found(engine: Engine, name: str) -> Job | None:
    try:
        return engine.job(name)
    except NotFound:
        return None


def _asked(spec: JobSpec) -> tuple[object, ...]:
    return spec.base, spec.labels, spec.env, spec.net, spec.limits


@contextlib.contextmanager
def room(engine: Engine, wait: Wait, *, but: str) -> Iterator[None]:
    """Hold a place for one more session, where their number is limited. Raises LimitReached, Busy.

    ``but``: the id or name of the one that it is for, which needs no second place."""
    limit = engine.config.settings.sessions
    if not limit:
        yield
        return
    with store.locked(engine._root.jobs, timeout=wait.left()):  # the lock of all who want a place
        others = [job for job in engine.jobs(ended=True) if _counts(engine, job) and but not in (job.id, job.name)]
        if len(others) >= limit:
            raise LimitReached(f"there are {len(others)} sessions, and config.json allows {limit}")
        yield


def _counts(engine: Engine, job: Job) -> bool:
    if not is_session(job) or job.state in ENDED:  # whoever makes one holds the lock, unless it was killed
        return False
    return engine.config.settings.sessions_paused or job.state is not JobState.PAUSED


def deleted(engine: Engine, session_id: str, wait: Wait) -> None:
    """Returns when there is no such session, and nothing of it. Raises NotFound for a job that is none."""
    while (job := _found(engine, session_id) if _ID.fullmatch(session_id) else None) is not None:
        if not is_session(job):
            raise NotFound(f"job {session_id} is no session", hint="`serac rm JOB` removes a job")
        try:
            engine.remove(job.id, force=True)
        except NotFound:
            break
        except Busy:
            if not wait.left():
                raise
            time.sleep(wait.until_look())
    recover.recover(engine._root)  # who removed it may have been killed before all of it was gone
