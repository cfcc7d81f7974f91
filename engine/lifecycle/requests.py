"""Requests: calls of pause and resume that their caller gave an id, so that none is carried out twice.

The id is written into the job's row in the transaction that commits the verb, so it is there exactly when the verb has
happened, whoever is killed when. Whoever calls again with it holds the job's lock first, and is told `Repeated`. What
takes a resume back (its first command was refused, its memory never came) takes its id back too. A job remembers the
last `KEPT`, as long as it is there."""

from __future__ import annotations

import msgspec

from engine.errors import Repeated
from engine.model import Job, Request, RequestVerb

KEPT = 64


def refuse_repeated(job: Job, verb: RequestVerb, request: str | None) -> None:
    """Raises Repeated; the caller holds the job's lock."""
    if any((done.verb, done.id) == (verb, request) for done in job.requests):
        raise Repeated(f"request {request} has been carried out: {verb} job {job.name}")


def carried_out(job: Job, verb: RequestVerb, request: str | None) -> Job:
    """The job as it is to be committed."""
    if request is None:
        return job
    entry = Request(verb=verb, id=request, pauses=job.pauses)
    return msgspec.structs.replace(job, requests=(*job.requests, entry)[-KEPT:])


def resume_taken_back(job: Job) -> tuple[Request, ...]:
    """Without that of the resume since the last pause."""
    return tuple(done for done in job.requests if (done.verb, done.pauses) != ("resume", job.pauses))
