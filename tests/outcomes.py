"""What each verb is for: raises unless the verb of a scene (tests/scenes.py) has done it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from roots import inside, wait_for

from engine import Engine, JobState


def is_in(*names: str) -> Callable[[Engine], None]:
    """State of the job ``a``; a take whose resume was cut off leaves it paused."""

    def check(engine: Engine) -> None:
        assert engine.job("a").state in map(JobState, names)

    return check


def second_runs(engine: Engine) -> None:
    assert engine.job("b").state is JobState.RUNNING
    inside(engine, "b", "true")


def is_gone(engine: Engine) -> None:
    assert [found.name for found in engine.jobs(ended=True)] == []


def is_archived(engine: Engine) -> None:
    (snapshot,) = [entry for entry in engine.snapshots() if entry.id == engine.job("a").snapshot]
    assert engine.snapshot_verify(snapshot.id) == []


def is_flat(engine: Engine) -> None:
    assert len(engine.snapshot(str(engine.job("a").snapshot)).layers) == 1


def is_collected(engine: Engine) -> None:
    assert engine.collect() == []


def has_file(name: str) -> Callable[[Engine], None]:
    def check(_: Engine) -> None:
        assert Path(os.environ["WORK"], name).exists()

    return check


def comes_back(engine: Engine) -> None:
    newest = engine.snapshots()[-1]
    engine.fork(newest.id, name="a")


def is_imported(engine: Engine) -> None:
    assert [entry for entry in engine.snapshots() if entry.name == "layout"]


def base_is(*, there: bool) -> Callable[[Engine], None]:
    def check(engine: Engine) -> None:
        assert any("other" in base.names for base in engine.bases()) is there

    return check


def pins(engine: Engine) -> None:
    assert [entry.pinned for entry in engine.snapshots()] == [True]


def has_copy(engine: Engine) -> None:
    assert inside(engine, "a", "cmp /copied /kept && echo same") == "same\n"


def is_flushed(engine: Engine) -> None:
    assert engine.snapshot(str(engine.job("a").snapshot)).unflushed is None


def is_as_it_must_be(engine: Engine) -> None:
    assert Engine.check(engine.config.root).violations == ()


def none_is_pinned(engine: Engine) -> None:
    assert not [entry for entry in engine.snapshots() if entry.pinned]


def is_answered(engine: Engine) -> None:
    wait_for(lambda: not any(session.running for session in engine.sessions("a") if session.id))


def has_failed(engine: Engine) -> None:
    found = engine.job("a")
    assert (found.state, found.status) == (JobState.EXITED, 3)
    assert engine.snapshot(str(found.snapshot)).context.failure


def memory_is_whole(engine: Engine) -> None:
    assert engine.job("a").loading is None
