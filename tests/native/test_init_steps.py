"""Sessions made of steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import initjob
import pytest
from initjob import PATH, InitJob, ending, output, run

from engine import session
from engine.model import SessionSpec, Step
from engine.session import Exit, StepMark

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A test that waits for what never comes fails by itself, and what it started is ended."""
    with initjob.time_limit(300):
        yield


@pytest.fixture
def job(sanitized: Path) -> Iterator[InitJob]:
    with initjob.started(sanitized / "serac-init") as started:
        yield started


@pytest.mark.parametrize("tty", [None, (24, 80)])
def test_steps_run_in_order_from_the_first_not_done(job: InitJob, tty: tuple[int, int] | None) -> None:
    steps = tuple(Step(name=name, script=f"echo in {name}") for name in ("one", "two", "three"))
    with job.connect() as connection:
        connection.start(SessionSpec(id=0, steps=steps, done=("one",), env=PATH, tty=tty))
    events = list(session.follow(job.io, 0))
    assert job.wait() == 0
    told = "".join(
        f"<{event.name} {event.outcome}>" if isinstance(event, StepMark) else event.data.decode().strip()
        for event in events
        if not isinstance(event, Exit)
    )
    assert told == "<two begins>in two<two completed><three begins>in three<three completed>"
    assert session.statuses(job.io)[0].done == ("one", "two", "three")
    assert session.specs(job.io)[0].steps == steps


@pytest.mark.parametrize("tty", [None, (24, 80)])
def test_a_failing_step_ends_the_session(job: InitJob, tty: tuple[int, int] | None) -> None:
    steps = (
        Step(name="a", script="true"),
        Step(name="b", script="false; echo never"),
        Step(name="c", script="echo never"),
    )
    events = run(job, SessionSpec(steps=steps, env=PATH, tty=tty))
    assert [(event.name, event.outcome) for event in events if isinstance(event, StepMark)] == [
        ("a", "begins"), ("a", "completed"), ("b", "begins"), ("b", "failed"),
    ]  # fmt: skip
    assert (output(events), ending(events)) == (b"", (1, None))
    assert session.statuses(job.io)[1].done == ("a",)


def test_status_of_a_step_is_there_before_it_runs(job: InitJob) -> None:
    status = f"tr '\\0' ' ' < {job.io}/1.status; echo"
    steps = (Step(name="a", script="true"), Step(name="b", script=status))
    assert re.search(rb"running=1 step=b done=a", output(run(job, SessionSpec(steps=steps, env=PATH))))


def test_steps_that_are_all_done_end_well(job: InitJob) -> None:
    events = run(job, SessionSpec(steps=(Step(name="a", script="false"),), done=("a",), env=PATH))
    assert [type(event) for event in events] == [Exit]
    assert ending(events) == (0, None)
