"""The events of a root: what verbs leave in the journal, and what else is told there. The journal itself is in
test_journal.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
import pytest
from commands import Command, serac, up
from roots import inside, shell, until, wait_for

from engine import Engine, JobSpec, JobState, SessionSpec
from engine.base import DirSource
from engine.errors import CannotCheckpoint, NotFound, Timeout
from engine.model import Event

__all__ = ["serac", "up"]  # fixtures

TOLD = {
    "base_build": "base.build",
    "base_profile": "base.profile",
    "base_remove": "base.remove",
    "run": "run",
    "stop": "stop",
    "remove": "remove",
    "freeze": "freeze",
    "thaw": "thaw",
    "pause": "pause",
    "resume": "resume",
    "fork": "fork",
    "snapshot_take": "snapshot.take",
    "snapshot_pin": "snapshot.pin",
    "snapshot_remove": "snapshot.remove",
    "snapshot_archive": "snapshot.archive",
    "snapshot_flatten": "snapshot.flatten",
    "snapshot_export": "snapshot.export",
    "snapshot_import": "snapshot.import",
    "collect": "collect",
    "answer": "answer",
    "demote": "demote",
    "refuse": "refuse",
}
"""verbs that change something -> what the journal calls them"""
UNTOLD = {
    "archiving", "asked", "attach", "base", "base_warm", "bases", "check", "close", "copy_in", "copy_out",
    "counters", "doctor", "events", "exec", "follow", "job", "jobs", "listen", "prefetch", "sessions", "snapshot",
    "snapshot_diff", "snapshot_verify", "snapshots", "start", "verdicts", "wait",
}  # fmt: skip
"""verbs that look, or change something within a job alone"""


def test_every_verb_is_told_or_not() -> None:
    assert {name for name in dir(Engine) if not name.startswith("_")} == TOLD.keys() | UNTOLD


pytest_root = pytest.mark.root


def since(engine: Engine, count: int = 0) -> list[Event]:
    """All events but the first ``count``."""
    return list(engine.events())[count:]


@pytest_root
def test_every_verb_that_changes_something_is_told_once(engine: Engine, small_tree: Path, tmp_path: Path) -> None:
    before = len(since(engine))
    engine.base_build("other", DirSource(path=small_tree))
    engine.base_remove("other")
    engine.base_profile(shell("true"))
    job = engine.run(shell("echo up; while :; do sleep 1; done", name="a"))
    until(engine, "a", b"up\n")
    for answer in (partial(engine.answer, "a"), partial(engine.refuse, "a", "no")):
        engine.start("a", SessionSpec(argv=("/.serac/ask",)))
        wait_for(lambda: engine.asked("a") is not None)
        answer()
        wait_for(lambda: engine.asked("a") is None)
    engine.freeze("a")
    engine.thaw("a")
    taken = engine.snapshot_take("a").snapshot
    forked = engine.fork(taken, name="b")
    paused = engine.pause("a", mode="process").snapshot
    engine.demote("a")
    engine.snapshot_pin(paused)
    resumed = engine.resume("a")
    engine.snapshot_archive(paused)
    engine.snapshot_export(paused, str(tmp_path / "out"))
    engine.snapshot_flatten(paused)
    engine.stop("a")
    engine.remove("a")
    engine.snapshot_remove(paused)
    engine.snapshot_import(str(tmp_path / "out"))
    engine.collect()
    engine.collect(dry_run=True)
    told = since(engine, before)
    verbs = [event for event in told if not event.kind.startswith("collect.")]
    assert [event.kind for event in verbs] == [
        "base.build", "base.remove", "exited", "base.profile", "run", "answer", "refuse", "freeze", "thaw",
        "snapshot.take", "fork", "pause", "demote", "snapshot.pin", "resume", "snapshot.archive", "snapshot.export",
        "snapshot.flatten", "stop", "remove", "snapshot.remove", "snapshot.import", "collect",
    ]  # fmt: skip
    assert {event.kind for event in verbs} == {*TOLD.values(), "exited"}
    assert {event.outcome for event in told} == {"ok"}
    by_kind = {event.kind: event for event in verbs}
    for kind in ("run", "freeze", "thaw", "snapshot.take", "pause", "resume", "stop", "remove"):
        assert (by_kind[kind].job, by_kind[kind].name) == (job.id, "a")
    for kind in ("pause", "snapshot.pin", "snapshot.archive", "snapshot.export", "snapshot.remove", "snapshot.import"):
        assert (by_kind[kind].snapshot, by_kind[kind].job, by_kind[kind].name) == (paused, job.id, "a")
    fork = by_kind["fork"]
    assert (fork.job, fork.name, fork.snapshot) == (forked.job, "b", taken)
    assert by_kind["resume"].facts["strategy"] == resumed.strategy
    assert by_kind["stop"].facts["state"] == "exited"
    assert all(event.ms is not None and event.ms >= 0 for event in verbs if event.kind in TOLD.values())
    assert by_kind["collect"].facts["count"] == len([event for event in told if event.kind.startswith("collect.")])


@pytest_root
def test_what_fails_is_told_with_its_reason(engine: Engine) -> None:
    before = len(since(engine))
    job = engine.run(shell("sleep 1000", name="a", net="host"))
    with pytest.raises(CannotCheckpoint):
        engine.pause("a", mode="process")
    assert engine.pause("a").reason == "host-network"
    with pytest.raises(NotFound):
        engine.run(JobSpec(base="nothing", name="b"))
    _, refused, paused, unknown = since(engine, before)
    assert (refused.kind, refused.outcome, refused.job, refused.name) == ("pause", "cannot-checkpoint", job.id, "a")
    assert refused.facts["why"] == "host-network"
    assert "freeze" in refused.facts["timings"]
    assert (paused.outcome, paused.reason, paused.facts["mode"]) == ("ok", "host-network", "filesystem")
    assert (unknown.kind, unknown.outcome, unknown.job) == ("run", "not-found", None)
    assert unknown.reason


@pytest_root
def test_a_pause_whose_archive_fails_was_a_pause(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Timeout("no time for it")

    before = len(since(engine))
    monkeypatch.setattr("engine.lifecycle.archiving._archive", fail)
    engine.run(JobSpec(base="small", name="a"))
    with pytest.raises(Timeout):
        engine.pause("a", mode="filesystem", archive="wait")
    assert [(event.kind, event.outcome) for event in since(engine, before)] == [
        ("run", "ok"), ("pause", "ok"), ("snapshot.archive", "timeout"),
    ]  # fmt: skip


@pytest_root
def test_a_job_that_ends_by_itself_is_told_once(engine: Engine) -> None:
    before = len(since(engine))
    engine.run(shell("exit 3", name="a"))
    assert engine.wait("a", timeout=30).status == 3
    engine.jobs(ended=True)
    killed = engine.run(shell("sleep 1000", name="b"))
    os.kill(init_of(engine, killed.id), signal.SIGKILL)
    assert engine.wait("b", timeout=30).state is JobState.FAILED
    (exited, failed) = [event for event in since(engine, before) if event.kind != "run"]
    assert (exited.kind, exited.name, exited.facts) == ("exited", "a", {"status": 3})
    assert (failed.kind, failed.job) == ("failed", killed.id)
    assert failed.reason == engine.job("b").failure


def init_of(engine: Engine, job: str) -> int:
    pid: int = json.loads((engine.config.run / "jobs" / job / "init.json").read_text())["pid"]
    return pid


@pytest_root
def test_what_a_crash_left_and_who_mended_it_is_told(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    before = len(since(engine))
    script = "import sys; from engine import Engine; Engine(sys.argv[1]).pause('a', mode='filesystem')"
    fault = {**os.environ, "SERAC_FAULT": "pause.commit:before"}
    command = [sys.executable, "-c", script, engine.config.root]
    assert subprocess.run(command, env=fault, check=False, timeout=60).returncode == -signal.SIGKILL
    with Engine(engine.config.root, timeout=30) as other:
        assert other.job("a").state is JobState.RUNNING
    mended, swept = since(engine, before)
    assert (mended.kind, mended.outcome, mended.name) == ("recover.mend", "ok", "a")
    assert mended.facts["found"] == "pausing"
    assert (swept.kind, swept.facts["complete"]) == ("recover.sweep", True)
    with Engine(engine.config.root, timeout=30):
        assert len(since(engine, before)) == 2  # one that finds nothing to mend has nothing to tell


@pytest_root
def test_a_job_that_cant_be_mended_is_told_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    job = engine.run(shell("sleep 1000", name="a"))
    engine._root.put(msgspec.structs.replace(job, state=JobState.PAUSING))
    before = len(since(engine))
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise Timeout("it doesn't thaw")

        patch.setattr("engine.lifecycle.pause.undo", fail)
        for _ in range(3):
            assert engine.job("a").state is JobState.PAUSING
    assert engine.job("a").state is JobState.RUNNING
    assert [(event.kind, event.outcome, event.reason) for event in since(engine, before)] == [
        ("recover.mend", "timeout", "it doesn't thaw"), ("recover.mend", "ok", None),
    ]  # fmt: skip


@pytest_root
def test_what_the_background_does_is_told(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    inside(engine, "a", "echo x > /x")
    before = len(since(engine))
    snapshot = engine.pause("a", mode="filesystem", archive="background").snapshot
    wait_for(lambda: engine.snapshot(snapshot).archive)
    wait_for(lambda: len(since(engine, before)) == 2)
    archived = since(engine, before)[1]
    assert (archived.kind, archived.outcome, archived.snapshot) == ("snapshot.archive", "ok", snapshot)
    assert archived.facts["background"] is True
    wait_for(lambda: not background(engine))


def background(engine: Engine) -> bool:
    command = ["pgrep", "-f", f"lifecycle.background {engine.config.root}"]
    return bool(subprocess.run(command, check=False, capture_output=True).stdout)


@pytest_root
def test_a_journal_that_cant_be_written_keeps_nobody_from_anything(engine: Engine) -> None:
    journal = engine.config.root / "events.jsonl"
    journal.unlink()
    journal.mkdir()
    engine.run(JobSpec(base="small", name="a"))
    snapshot = engine.pause("a", mode="filesystem").snapshot
    engine.resume("a")
    engine.remove("a", force=True)
    assert engine.jobs(ended=True) == []
    assert snapshot
    assert engine.counters().events_dropped >= 4
    journal.rmdir()


@pytest_root
def test_two_engines_tell_in_one_journal(engine: Engine) -> None:
    before = len(since(engine))
    with Engine(engine.config.root, timeout=30) as other:
        for number, one in enumerate((engine, other, engine)):
            one.run(JobSpec(base="small", name=f"j{number}"))
        assert since(engine, before) == since(other, before)
    assert [event.name for event in since(engine, before)] == ["j0", "j1", "j2"]


# the command


@pytest_root
def test_the_command_shows_events(serac: Command, engine: Engine, up: str) -> None:
    engine.pause(up, mode="filesystem")
    assert serac.error("resume", "nobody")[0] == 201
    lines = serac.good("events").splitlines()
    assert len(lines) == len(since(engine))
    ran, paused, refused = (line.split() for line in lines[-3:])
    assert (ran[2:5], paused[2:5]) == (["run", "ok", "up"], ["pause", "ok", "up"])
    assert (refused[2:4], refused[6:]) == (["fork", "not-found"], ["no", "snapshot", "nobody"])
    assert paused[5:7] == ["snapshot", engine.job(up).snapshot]
    records = [json.loads(line) for line in serac.good("events", "--json").splitlines()]
    assert [record["kind"] for record in records] == [event.kind for event in since(engine)]
    assert records[-2]["facts"]["mode"] == "filesystem"
    time.sleep(0.002)  # what is told is told to the millisecond
    assert serac.good("events", "--since", "1ms") == ""


@pytest_root
def test_the_command_follows_events(serac: Command, engine: Engine, up: str) -> None:
    with serac.begun("events", "-f") as process:
        assert process.stdout is not None
        engine.freeze(up)
        assert any(line.split()[2:5] == ["freeze", "ok", "up"] for line in process.stdout)
        engine.thaw(up)
        assert process.stdout.readline().split()[2:5] == ["thaw", "ok", "up"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
