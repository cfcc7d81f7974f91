"""Verbs that are broken off: by an exception at any step, or with the engine that was killed. What is there then is
what the crash tables of engine/lifecycle say, and no session runs twice for it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import leftovers
import pytest
from counters import counter, counts_on
from roots import inside, shell, until, wait_for

from engine import Engine, Job, JobSpec, JobState, Limits, SessionSpec, steps
from engine.errors import BadPath, SeracError

pytestmark = pytest.mark.root


@contextlib.contextmanager
def interrupted(place: str) -> Iterator[None]:
    """Ctrl-C at ``verb.step:before`` or ``:after``, where the engine could be killed too."""

    def interrupt(name: str, when: str) -> None:
        if f"{name}:{when}" == place:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_fault", interrupt)
        with pytest.raises(KeyboardInterrupt):
            yield


def killed(engine: Engine, verb: str, place: str) -> None:
    """Call a verb in an engine of its own that is killed at ``place``."""
    script = f"import sys; from engine import Engine\nwith Engine(sys.argv[1], timeout=30) as engine: {verb}"
    command = [sys.executable, "-c", script, os.fspath(engine.config.root)]
    done = subprocess.run(command, env={**os.environ, "SERAC_FAULT": place}, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL


def state_of(engine: Engine, ref: str) -> JobState:
    """As the catalog has it; nothing is mended by looking."""
    return engine._root.catalog.job(ref).state


def groups(engine: Engine) -> list[str]:
    """The control groups of this root's jobs, in every hierarchy."""
    return [path for path in leftovers.cgroups() if f"/{engine.config.name}/" in path]


def places(*names: str) -> list[str]:
    return [f"{name}:{when}" for name in names for when in ("before", "after")]


MODES = ("process", "filesystem")

COUNTING = "echo again >> /count; sleep 1000"


def counted(engine: Engine, ref: str, file: str = "/count") -> int:
    return int(inside(engine, ref, f"cat {file} 2>/dev/null | wc -l"))


def counting(engine: Engine) -> None:
    """A job ``a`` that has written its first line."""
    engine.run(shell(COUNTING, name="a"))
    wait_for(lambda: counted(engine, "a") == 1)


# exceptions


def test_a_pause_that_is_broken_off_leaves_the_job_running(engine: Engine) -> None:
    counting(engine)
    upper = engine.job("a").upper
    before = places("pause.freeze", "pause.look", "pause.seal", "pause.flush")
    for place in [*before, "pause.commit:before"]:
        with interrupted(place):
            engine.pause("a", mode="filesystem")
        assert state_of(engine, "a") is JobState.RUNNING, place
        assert counted(engine, "a") == 1, place  # it runs, and it is the same life
        assert engine.snapshots() == [], place
        assert not (engine.config.root / f"layers/{upper}/snapshot.json").exists(), place
    engine.pause("a", mode="filesystem")
    engine.resume("a")


@pytest.mark.parametrize("place", ["pause.commit:after", *places("pause.release")])
def test_what_breaks_off_after_the_commit_does_not_undo_a_pause(engine: Engine, place: str) -> None:
    counting(engine)
    with interrupted(place):
        engine.pause("a", mode="filesystem")
    assert state_of(engine, "a") is JobState.PAUSED
    (snapshot,) = engine.snapshots()
    engine.fork(snapshot.id, name="b")
    wait_for(lambda: counted(engine, "b") == 2)
    engine.resume("a")
    wait_for(lambda: counted(engine, "a") == 2)


def test_a_catalog_that_can_not_be_read_after_the_commit_costs_no_processes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter(engine)
    catalog, failures = engine._root.catalog, [OSError(errno.EMFILE, "too many open files")]
    job_with = catalog.job_with

    def failing(ref: str) -> Job:
        job = job_with(ref)
        if job.state is JobState.PAUSED and failures:
            raise failures.pop()
        return job

    monkeypatch.setattr(catalog, "job_with", failing)
    with pytest.raises((OSError, SeracError)):
        engine.pause("a", mode="process")
    assert not failures
    assert engine.job("a").state is JobState.PAUSED
    assert engine.resume("a").mode == "process"
    counts_on(engine, "a")


@pytest.mark.parametrize("pinned", [False, True], ids=["reuse", "stack"])
def test_a_resume_that_is_broken_off_leaves_the_job_paused(engine: Engine, pinned: bool) -> None:
    counting(engine)
    snapshot = engine.pause("a", mode="filesystem").snapshot
    engine.snapshot_pin(snapshot, pinned=pinned)
    found = engine.snapshot(snapshot), engine.job("a"), sorted((engine.config.root / "layers").iterdir())
    before = places("resume.plan", "resume.mount", "resume.launch")
    for place in [*before, "resume.commit:before"]:
        with interrupted(place):
            engine.resume("a")
        now = engine.snapshot(snapshot), engine.job("a"), sorted((engine.config.root / "layers").iterdir())
        assert now == found, place
    assert engine.resume("a").strategy == ("stack" if pinned else "reuse")
    wait_for(lambda: counted(engine, "a") == 2)


@pytest.mark.parametrize("place", ["resume.commit:after", *places("resume.start")])
def test_a_resume_that_is_broken_off_after_its_commit_goes_on(engine: Engine, place: str) -> None:
    counting(engine)
    engine.pause("a", mode="filesystem")
    with interrupted(place):
        engine.resume("a")
    assert engine.job("a").state is JobState.RUNNING
    assert engine.job("a").pending == ()
    wait_for(lambda: counted(engine, "a") == 2)


def test_a_run_that_is_broken_off_leaves_nothing(engine: Engine) -> None:
    for place in places("run.prepare", "run.mount", "run.launch", "run.start", "run.commit"):
        with interrupted(place):
            engine.run(shell(COUNTING, name="a", limits=Limits(memory=64 << 20, pids=20)))
        assert engine.jobs(ended=True) == [], place
        assert groups(engine) == [], place
        for directory in ("jobs", "layers", "tmp"):
            assert list((engine.config.root / directory).iterdir()) == [], place


# engines that are killed


@pytest.mark.parametrize("mode", MODES)
def test_a_wait_outlives_the_engine_that_was_pausing(engine: Engine, mode: str) -> None:
    engine.run(shell("until test -e /go; do sleep 0.05; done; exit 3", name="a"))
    found: list[int | None] = []
    waiting = threading.Thread(target=lambda: found.append(engine.wait("a", timeout=30).status))
    waiting.start()
    killed(engine, f"engine.pause('a', mode='{mode}')", "pause.seal:before")
    wait_for(lambda: state_of(engine, "a") is JobState.RUNNING)
    inside(engine, "a", "touch /go")
    waiting.join()
    assert found == [3]


@pytest.mark.parametrize("mode", MODES)
def test_a_look_at_all_jobs_mends_each(engine: Engine, mode: str) -> None:
    counting(engine)
    killed(engine, f"engine.pause('a', mode='{mode}')", "pause.seal:before")
    assert state_of(engine, "a") is JobState.PAUSING
    assert [job.state for job in engine.jobs()] == [JobState.RUNNING]
    assert counted(engine, "a") == 1


def test_a_job_that_was_frozen_before_the_row_can_be_thawed(engine: Engine) -> None:
    counting(engine)
    killed(engine, "engine.freeze('a')", "freeze.freeze:after")
    assert state_of(engine, "a") is JobState.RUNNING
    assert engine.thaw("a").state is JobState.RUNNING
    assert counted(engine, "a") == 1


@pytest.mark.parametrize(("mode", "lives"), [("process", 1), ("filesystem", 2)])
@pytest.mark.parametrize("place", ["pause.commit:after", *places("pause.release")])
def test_an_engine_that_stayed_open_resumes_at_the_first_call(
    engine: Engine, place: str, mode: str, lives: int
) -> None:
    counting(engine)
    killed(engine, f"engine.pause('a', mode='{mode}')", place)
    assert engine.resume("a").strategy == "reuse"
    wait_for(lambda: counted(engine, "a") == lives)


@pytest.mark.parametrize("place", ["resume.commit:after", *places("resume.start")])
def test_sessions_run_once_whoever_finishes_a_resume(engine: Engine, place: str) -> None:
    """Also one that ended before the second engine came: it isn't started again."""
    engine.run(shell("echo 0 >> /zero; sleep 1000", name="a"))
    short = "echo 1 >> /one; test -e /second && exit; touch /second; sleep 1000"
    engine.start("a", SessionSpec(argv=("/bin/sh", "-c", short)))
    engine.start("a", SessionSpec(argv=("/bin/sh", "-c", "echo 2 >> /two; sleep 1000")))
    for name in ("/second", "/zero", "/two"):
        inside(engine, "a", f"until test -e {name}; do sleep 0.02; done")
    for name in ("/zero", "/one", "/two"):
        wait_for(lambda name=name: counted(engine, "a", name) == 1)
    engine.pause("a", mode="filesystem")
    job = engine.job("a").id
    killed(engine, "engine.resume('a')", place)
    if place == "resume.start:after":
        upper = engine._root.catalog.job("a").upper
        wait_for(lambda: (engine.config.root / f"layers/{upper}/upper/one").read_text() == "1\n1\n")
        wait_for(lambda: b"exit=0" in (engine.config.root / f"jobs/{job}/io/1.status").read_bytes())
    with Engine(engine.config.root, timeout=30) as other:
        assert other.job("a").pending == ()
    for name in ("/zero", "/one", "/two"):
        wait_for(lambda name=name: counted(engine, "a", name) == 2)
    wait_for(lambda: {status.id for status in engine.sessions("a") if status.running} == {0, 2})
    engine.pause("a", mode="filesystem")
    engine.resume("a")
    wait_for(lambda: counted(engine, "a", "/two") == 3)
    assert counted(engine, "a", "/one") == 2


def test_a_removal_that_was_killed_leaves_no_control_group(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a", limits=Limits(memory=64 << 20, pids=20, cpus=0.5)))
    killed(engine, "engine.remove('a', force=True)", "remove.commit:after")
    assert len(groups(engine)) > 1
    with Engine(engine.config.root, timeout=30):
        assert groups(engine) == []
    for directory in ("jobs", "layers", "tmp"):
        assert list((engine.config.root / directory).iterdir()) == []


def test_a_removal_that_is_broken_off_is_swept(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    engine.pause("a", mode="filesystem")
    with interrupted("remove.commit:after"):
        engine.remove("a")
    with Engine(engine.config.root, timeout=30) as other:
        assert other.jobs(ended=True) == []
    for directory in ("jobs", "layers", "tmp"):
        assert list((engine.config.root / directory).iterdir()) == []


def test_what_can_not_be_swept_keeps_no_engine_from_opening(engine: Engine) -> None:
    junk, marker = engine.config.root / "layers/junk", engine.config.root / "tmp/crash.1"
    (junk / "upper").mkdir(parents=True)
    fixed = junk / "upper/fixed"
    fixed.write_text("stays")
    subprocess.run(["chattr", "+i", fixed], check=True)
    try:
        marker.mkdir()
        with Engine(engine.config.root, timeout=30) as other:
            other.run(JobSpec(base="small", name="a"))
            other.remove("a", force=True)
        assert fixed.read_text() == "stays"
        assert marker.is_dir()
    finally:
        subprocess.run(["chattr", "-i", fixed], check=True)
    with Engine(engine.config.root, timeout=30):
        assert not junk.exists()
        assert not marker.exists()


# a first command that can't begin again


@pytest.mark.parametrize("pinned", [False, True], ids=["reuse", "stack"])
def test_a_job_whose_directory_is_gone_stays_paused_until_it_gets_another(engine: Engine, pinned: bool) -> None:
    engine.run(shell("pwd; sleep 1000", name="a", workdir="/src"))
    until(engine, "a", b"/src\n")
    with engine.exec("a", SessionSpec(argv=("/bin/sh", "-c", "rm /src/lower; rmdir /src"), workdir="/")) as connection:
        list(connection.events())
    snapshot = engine.pause("a", labels={"why": "lunch"}, mode="filesystem").snapshot
    before = engine.snapshot_pin(snapshot, pinned=pinned)
    for workdir in (None, "/nosuch"):
        with pytest.raises(BadPath):
            engine.resume("a", workdir=workdir)
        assert engine.job("a").state is JobState.PAUSED
        assert engine.snapshots() == [before]
        assert groups(engine) == []
    assert engine.resume("a", workdir="/").strategy == ("stack" if pinned else "reuse")
    until(engine, "a", b"/src\n/\n")
    assert inside(engine, "a", "pwd") == "/\n"  # it is the job's directory from now on
    engine.pause("a", mode="filesystem")
    engine.resume("a")
    until(engine, "a", b"/src\n/\n/\n")


def test_what_is_refused_after_a_kill_and_a_sweep_is_paused_again(engine: Engine) -> None:
    """The sweep takes manifests that say nothing any more; this one still says what the job goes back to."""
    engine.run(shell("pwd; sleep 1000", name="a", workdir="/src"))
    until(engine, "a", b"/src\n")
    with engine.exec("a", SessionSpec(argv=("/bin/sh", "-c", "rm /src/lower; rmdir /src"), workdir="/")) as connection:
        list(connection.events())
    before = engine.snapshot(engine.pause("a", mode="filesystem").snapshot)
    killed(engine, "engine.resume('a')", "resume.commit:after")
    assert (state_of(engine, "a"), engine.snapshots()) == (JobState.RUNNING, [])
    with Engine(engine.config.root, timeout=30) as other:
        assert other.job("a").state is JobState.PAUSED
        assert other.snapshots() == [before]
        assert groups(engine) == []
        other.resume("a", workdir="/")
        until(other, "a", b"/src\n/\n")
