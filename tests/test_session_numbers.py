"""A number names one session of a job, whatever became of that."""

from __future__ import annotations

import pytest
from roots import inside

from engine import Engine, JobSpec, SessionSpec

pytestmark = pytest.mark.root

SLEEPS = SessionSpec(argv=("sleep", "1000"))


def restarted(engine: Engine) -> None:
    """A job ``a`` that was begun anew from its files, with a session that isn't."""
    with engine.exec("a", SLEEPS):
        engine.pause("a", mode="filesystem")
    engine.resume("a")


def test_a_number_is_not_given_again_after_a_start_from_the_files(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    for number in (1, 2):
        with engine.exec("a", SLEEPS) as connection:
            assert connection.session == number
            engine.pause("a", mode="filesystem")
        engine.resume("a")
    engine.pause("a", mode="filesystem")
    engine.resume("a")
    assert engine.start("a", SLEEPS).id == 3


def test_not_either_where_something_lies_in_the_way(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    restarted(engine)
    assert inside(engine, "a", "cd /run/serac; rm 1.used; mkdir -p 3.used/full; echo laid") == "laid\n"
    restarted(engine)
    assert engine.start("a", SLEEPS).id == 4
