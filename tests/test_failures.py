"""A job that is to be kept when it fails leaves a snapshot, with which it goes on elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import Command, serac
from roots import another_root, inside, output, shell, steps

from engine import Engine, JobSpec, JobState
from engine.errors import InvalidInput, WrongState
from engine.model import Job, Snapshot

__all__ = ["serac"]  # fixture

pytestmark = pytest.mark.root

STEPS = steps(
    fetch="echo fetched >> /log; mkdir -p build; echo half > build/part",
    compile="echo compiling >> /log; test -e fixed; echo $FLAVOUR > build/whole",
    check="echo checked >> /log; cat build/whole",
)


def failing(**fields: object) -> JobSpec:
    return JobSpec(
        base="small", name="a", steps=STEPS, workdir="/src", env={"FLAVOUR": "sweet"}, snapshot_on="failure", **fields
    )  # type: ignore[arg-type]


def kept(engine: Engine, ref: str = "a") -> tuple[Job, Snapshot]:
    """A job that has failed, and its snapshot."""
    job = engine.wait(ref, timeout=60)
    assert job.state is JobState.EXITED
    assert job.snapshot is not None
    return job, engine.snapshot(job.snapshot)


def test_a_failing_command_is_kept(engine: Engine) -> None:
    engine.run(shell("echo half > /src/part; exit 3", name="a", workdir="/src", snapshot_on="failure", state=[1]))
    job, snapshot = kept(engine)
    assert (job.status, job.upper, job.owes) == (3, None, False)
    failure = snapshot.context.failure
    assert failure is not None
    assert (failure.status, failure.step, failure.workdir) == (3, None, "/src")
    assert (snapshot.mode, snapshot.reason, snapshot.context.state) == ("filesystem", "ended", [1])
    assert output(engine, "a") == ""  # the log of a job that has ended is there as ever
    assert [event.snapshot for event in engine._root.journal.read() if event.kind == "keep"] == [snapshot.id]


def test_it_is_fixed_elsewhere_and_goes_on(engine: Engine, small_tree: Path, tmp_path: Path) -> None:
    """Step 2 of 3 fails; on another host a shell sees its files, environment and directory, and after the fix it is
    step 2 that is tried again."""
    engine.run(failing())
    job, snapshot = kept(engine)
    failure = snapshot.context.failure
    assert failure is not None
    assert (failure.step, failure.status, job.status) == ("compile", 1, 1)
    engine.snapshot_export(snapshot.id, os.fspath(tmp_path / "a.serac"))
    with another_root(small_tree) as other:
        other.snapshot_import(os.fspath(tmp_path / "a.serac"))
        other.fork(snapshot.id, name="fix", idle=True)
        assert (
            inside(other, "fix", "pwd; echo $FLAVOUR; cat build/part /log") == "/src\nsweet\nhalf\nfetched\ncompiling\n"
        )
        assert [session.id for session in other.sessions("fix") if session.id == 0] == []
        inside(other, "fix", "touch fixed")
        other.pause("fix", mode="filesystem")
        other.resume("fix")
        assert other.wait("fix", timeout=60).status == 0
        assert other.job("fix").snapshot is None or other.job("fix").upper is not None
        other.copy_out("fix", "/log", os.fspath(tmp_path / "log"))
    assert (tmp_path / "log").read_text() == "fetched\ncompiling\ncompiling\nchecked\n"


def test_it_is_resumed_where_it_failed(engine: Engine) -> None:
    engine.run(failing())
    _, snapshot = kept(engine)
    assert engine.resume("a", idle=True).strategy == "reuse"
    assert engine.job("a").state is JobState.RUNNING
    assert engine.job("a").status is None
    inside(engine, "a", "touch fixed")
    engine.pause("a", mode="filesystem")
    engine.resume("a")
    assert engine.wait("a", timeout=60).status == 0
    assert [entry.id for entry in engine.snapshots()] == []
    assert snapshot.id


def test_it_fails_again_and_again(engine: Engine) -> None:
    """Each time it is kept anew, and what it was resumed from is gone."""
    engine.run(failing())
    first = kept(engine)[1].id
    engine.resume("a")
    job, second = kept(engine)
    assert second.id != first
    assert job.pauses == 0
    assert [entry.id for entry in engine.snapshots()] == [second.id]
    engine.remove("a")
    assert [entry.id for entry in engine.snapshots()] == [second.id]  # for whoever looks into it later
    engine.fork(second.id, name="b")
    assert kept(engine, "b")[0].status == 1


def test_who_succeeds_or_is_stopped_leaves_nothing(engine: Engine) -> None:
    engine.run(shell("exit 0", name="well", snapshot_on="failure"))
    engine.run(shell("trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done", name="stopped", snapshot_on="failure"))
    engine.run(shell("exit 3", name="as ever".replace(" ", "-")))
    assert engine.wait("well", timeout=60).status == 0
    assert engine.wait("as-ever", timeout=60).status == 3
    for event in engine.follow("stopped"):
        if b"up" in getattr(event, "data", b""):
            break
    assert engine.stop("stopped").status == 9
    assert engine.snapshots() == []


def test_a_command_that_is_killed_has_failed(engine: Engine) -> None:
    engine.run(shell("kill -9 $$", name="a", snapshot_on="failure"))
    job, snapshot = kept(engine)
    assert job.status == 137
    assert snapshot.context.failure is not None


def test_an_idle_job_is_idle_through_a_pause(engine: Engine) -> None:
    """With its processes it comes back as it was, as a fork too; a stop of it is no failure."""
    engine.run(failing())
    _, snapshot = kept(engine)
    engine.fork(snapshot.id, name="fix", idle=True)
    with pytest.raises(InvalidInput):
        engine.fork(snapshot.id, idle=True, mode="process")
    paused = engine.pause("fix", mode="process")
    engine.resume("fix", mode="process")
    engine.fork(engine.snapshot_take("fix").snapshot, name="other")
    for name in ("fix", "other"):
        inside(engine, name, "touch fixed")
        engine.pause(name, mode="filesystem")
        engine.resume(name)
        assert engine.wait(name, timeout=60).status == 0
        assert inside_log(engine, name).count("fetched") == 1
    engine.fork(snapshot.id, name="idle", idle=True)
    assert engine.stop("idle").status == 0
    assert paused.mode == "process"


def inside_log(engine: Engine, ref: str) -> str:
    upper = engine.job(ref).upper
    assert upper is not None
    return (engine.config.root / "layers" / upper / "upper/log").read_text()


def test_bad_wishes(engine: Engine) -> None:
    with pytest.raises(InvalidInput):
        engine.run(JobSpec(base="small", snapshot_on="success"))  # type: ignore[arg-type]
    engine.run(shell("exit 3", name="a"))
    engine.wait("a", timeout=60)
    with pytest.raises(WrongState):
        engine.resume("a")


def test_the_command_keeps_and_tells(engine: Engine, serac: Command) -> None:
    words = ("run", "--base", "small", "--name", "a", "--snapshot-on", "failure")
    done = serac(*words, "--step", "one=echo one", "--step", "two=exit 4", "--step", "three=exit 5")
    assert (done.returncode, done.stdout) == (4, b"one\n")
    snapshot = engine.job("a").snapshot
    assert snapshot is not None
    assert f"serac resume {snapshot} --as NAME --idle".encode() in done.stderr
    assert "step two ended with status 4" in serac.good("snapshot", "show", snapshot)
    serac.good("resume", snapshot, "--as", "fix", "--idle")
    assert serac.good("exec", "fix", "--", "pwd") == "/\n"
    serac.good("pause", "--mode", "filesystem", "fix")
    serac.good("resume", "fix")
    assert engine.wait("fix", timeout=60).status == 4
    done = serac("run", "--base", "small", "--snapshot-on", "failure", "--", "/bin/true")
    assert (done.returncode, done.stderr) == (0, b"")


def test_detached_it_is_kept_by_whoever_looks(engine: Engine, serac: Command) -> None:
    serac.good("run", "--base", "small", "--name", "a", "--detach", "--snapshot-on", "failure", "--", "/bin/false")
    assert engine.wait("a", timeout=60).status == 1
    assert serac.json("ps", "--all")[0]["snapshot"] == engine.snapshots()[0].id
