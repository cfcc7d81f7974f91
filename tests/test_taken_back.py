"""Resumes that come to nothing: the job is what it was before, and can be resumed once more."""

from __future__ import annotations

import pytest
from counters import COUNTER, counter, counts_on
from remains import killed
from roots import inside, output, shell, wait_for
from scenes import pages_lost

from engine import Engine, Job, JobState, SessionSpec
from engine.errors import BadPath, Busy, CannotRestore, InvalidInput, WrongState
from engine.lifecycle import processes, resume
from engine.lifecycle.root import Root

pytestmark = pytest.mark.root


def with_sessions(engine: Engine) -> None:
    """A job ``a`` with sessions 1, which has ended, and 2, which only lives as long as its processes; paused."""
    counter(engine)
    assert inside(engine, "a", "echo said") == "said\n"
    with engine.exec("a", SessionSpec(argv=("/bin/sh", "-c", COUNTER))) as connection:
        assert connection.session == 2
        next(connection.events())
        engine.pause("a", mode="process")


def goes_on(engine: Engine) -> None:
    """With its processes, and all that is known of its sessions."""
    assert engine.resume("a").mode == "process"
    counts_on(engine, "a")
    before = output(engine, "a", 2, live=False)
    wait_for(lambda: output(engine, "a", 2, live=False) > before)
    assert output(engine, "a", 1) == "said\n"
    assert [status.running for status in engine.sessions("a")] == [True, False, True]


def test_a_start_from_the_files_that_is_refused_takes_nothing_from_the_sessions(engine: Engine) -> None:
    with_sessions(engine)
    with pytest.raises(BadPath):
        engine.resume("a", mode="filesystem", workdir="/nosuch")
    goes_on(engine)


@pytest.mark.parametrize("place", ["resume.plan:after", "resume.commit:before"])
def test_a_start_from_the_files_that_is_killed_takes_nothing_from_the_sessions(engine: Engine, place: str) -> None:
    with_sessions(engine)
    killed(engine, "engine.resume('a', mode='filesystem')", place)
    assert engine.job("a").state is JobState.PAUSED
    goes_on(engine)


def test_what_is_only_in_an_archive_by_now_is_put_back_from_there(engine: Engine) -> None:
    with_sessions(engine)
    assert engine.demote("a")
    with pytest.raises(BadPath):
        engine.resume("a", mode="filesystem", workdir="/nosuch")
    goes_on(engine)


def test_a_log_that_another_life_began_anew_is_put_back(engine: Engine) -> None:
    with_sessions(engine)
    log = engine._root.io(engine.job("a").id) / "2.log"
    log.rename(log.with_name("2.log.old"))
    log.write_bytes(b"of a life that was given up")
    goes_on(engine)


HOWS = {
    InvalidInput: {"mode": "process", "workdir": "/"},
    WrongState: {"answer": 1},
    CannotRestore: {},
}


@pytest.mark.parametrize("error", HOWS)
def test_a_refused_resume_of_a_job_that_lost_its_memory_leaves_its_files(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    counter(engine)
    engine.pause("a", mode="process")
    pages_lost(engine)
    failed = engine.job("a")
    work = engine.config.root / "layers" / str(failed.upper) / "upper" / "work"
    work.write_text("of hours")
    if error is CannotRestore:
        monkeypatch.setattr(resume.restore, "check", lambda *_: (_ for _ in ()).throw(CannotRestore("too little")))
    with pytest.raises(error):
        engine.resume("a", **HOWS[error])  # type: ignore[arg-type]
    assert engine.job("a") == failed
    assert work.read_text() == "of hours"
    monkeypatch.undo()
    assert engine.resume("a").mode == "process"
    counts_on(engine, "a")


def test_a_refused_resume_of_a_job_that_was_kept_leaves_it_ended(engine: Engine) -> None:
    engine.run(shell("exit 3", name="a", snapshot_on="failure"))
    ended = engine.wait("a", timeout=60)
    assert (ended.state, ended.status) == (JobState.EXITED, 3)
    with pytest.raises(CannotRestore):
        engine.resume("a", mode="process")
    assert engine.job("a") == ended


@pytest.mark.parametrize("pinned", [False, True], ids=["reuse", "stack"])
def test_a_refused_start_whose_taking_down_fails_is_paused_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    with_sessions(engine)
    before = engine.snapshot_pin(str(engine.job("a").snapshot), pinned=pinned)
    take_down, errors = processes.take_down, [Busy("it takes too long")]

    def failing(root: Root, job: Job) -> None:
        take_down(root, job)
        if errors:
            raise errors.pop()

    monkeypatch.setattr(processes, "take_down", failing)
    with pytest.raises((BadPath, Busy)):
        engine.resume("a", mode="filesystem", workdir="/nosuch")
    assert not errors
    assert engine.job("a").state is JobState.PAUSED
    assert engine.snapshots() == [before]
    goes_on(engine)


@pytest.mark.parametrize("place", ["resume.revert:before", "resume.revert:after"])
@pytest.mark.parametrize("pinned", [False, True], ids=["reuse", "stack"])
def test_an_engine_that_dies_when_it_takes_a_refused_start_back(engine: Engine, place: str, pinned: bool) -> None:
    with_sessions(engine)
    before = engine.snapshot_pin(str(engine.job("a").snapshot), pinned=pinned)
    killed(engine, "engine.resume('a', mode='filesystem', workdir='/nosuch')", place)
    assert engine.job("a").state is JobState.PAUSED
    assert engine.snapshots() == [before]
    goes_on(engine)
