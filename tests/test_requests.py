"""Pauses and resumes that their callers gave ids: the engine carries each out once."""

from __future__ import annotations

import msgspec
import pytest
from roots import shell

from engine import Engine, Job, JobSpec, JobState
from engine.errors import BadPath, Repeated
from engine.lifecycle.requests import KEPT, carried_out, refuse_repeated, resume_taken_back

JOB = Job(id="0123456789ab", name="a", spec=JobSpec(base="b"), state=JobState.RUNNING, base="d", pauses=3)


def test_what_was_carried_out_is_refused_for_its_verb_alone() -> None:
    job = carried_out(JOB, "pause", "r")
    with pytest.raises(Repeated, match="request r"):
        refuse_repeated(job, "pause", "r")
    refuse_repeated(job, "resume", "r")
    refuse_repeated(job, "pause", "s")
    refuse_repeated(job, "pause", None)
    assert carried_out(job, "pause", None) == job


def test_the_last_requests_are_kept() -> None:
    job = JOB
    for number in range(KEPT + 1):
        job = carried_out(job, "pause", f"r-{number}")
    assert [done.id for done in job.requests] == [f"r-{number}" for number in range(1, KEPT + 1)]


def test_what_takes_a_resume_back_takes_its_request_back_and_no_other() -> None:
    job = carried_out(carried_out(JOB, "pause", "p-1"), "resume", "r-1")
    job = carried_out(msgspec.structs.replace(job, pauses=4), "pause", "p-2")
    assert resume_taken_back(carried_out(job, "resume", "r-2")) == job.requests
    assert resume_taken_back(job) == job.requests


@pytest.mark.root
def test_a_request_is_carried_out_once(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    for _ in range(2):
        engine.pause("a", request=None)
        engine.resume("a", request=None)
    engine.pause("a", request="r")
    for _ in range(2):
        with pytest.raises(Repeated):
            engine.pause("a", request="r")
    assert engine.job("a").state is JobState.PAUSED
    engine.resume("a", request="r")
    with pytest.raises(Repeated):
        engine.pause("a", request="r")
    with pytest.raises(Repeated):
        engine.resume("a", request="r")
    assert engine.job("a").state is JobState.RUNNING
    assert engine.job("a").pauses == 3


@pytest.mark.root
def test_a_resume_that_was_refused_may_be_asked_for_again(engine: Engine) -> None:
    """It commits before the command is started, which can't be where its directory is gone."""
    engine.run(shell("sleep 1000", name="a"))
    engine.pause("a", mode="filesystem", request="p")
    with pytest.raises(BadPath):
        engine.resume("a", workdir="/gone", request="r")
    assert [done.id for done in engine.job("a").requests] == ["p"]
    engine.resume("a", request="r")
    with pytest.raises(Repeated):
        engine.resume("a", request="r")
