"""gc in a root with policies: what goes, what stays, and what a verb that is at work keeps."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from commands import Command, serac
from roots import on_disk, shell, wait_for

from engine import Engine, JobState
from engine.errors import InvalidInput, NotFound
from engine.lifecycle import retain
from engine.model import Collected, Verdict

pytestmark = pytest.mark.root

__all__ = ["serac"]


def configured(engine: Engine, **settings: Any) -> Engine:
    """Another engine on the same root, whose config.json has these."""
    (engine.config.root / "config.json").write_text(json.dumps({"archive": "never", **settings}))
    return Engine(engine.config.root, timeout=30)


def pinned_series(engine: Engine, count: int) -> list[str]:
    """Snapshots of one job, oldest first, that nothing holds but policies; the job goes on."""
    engine.run(shell("sleep 1000", name="a"))
    found = []
    for _ in range(count):
        found.append(engine.snapshot_pin(engine.pause("a", mode="filesystem").snapshot).id)
        engine.resume("a")
    for snapshot in found:
        engine.snapshot_pin(snapshot, pinned=False)
    return found


def removed(found: list[Collected], *kinds: str) -> set[str]:
    return {entry.id for entry in found if entry.kind in kinds}


def test_the_last_ones_are_kept(engine: Engine) -> None:
    series = pinned_series(engine, 4)
    with configured(engine, retention=[{"keep_last": 1}]) as strict:
        assert removed(strict.collect(dry_run=True), "snapshot") == set(series[:3])
        assert [verdict.keep for verdict in strict.verdicts()] == [False, False, False, True]
        assert {entry.id for entry in strict.snapshots()} == set(series)
        assert removed(strict.collect(), "snapshot") == set(series[:3])
        assert [entry.id for entry in strict.snapshots()] == series[3:]
        assert strict.job("a").state is JobState.RUNNING
        said = [event for event in strict._root.journal.read() if event.kind == "retention.remove"]
        assert [event.snapshot for event in said] == series[:3]
        assert all(event.reason == "not one of the last 1, policy 1" for event in said)


def test_a_dry_run_says_what_the_run_does(engine: Engine) -> None:
    series = pinned_series(engine, 3)
    engine.snapshot_archive(series[0])
    engine.remove("a", force=True)
    with configured(engine, quota={"snapshots": 1}) as strict:
        before = on_disk(engine.config.root)
        planned = strict.collect(dry_run=True)
        assert on_disk(engine.config.root) == before
        done = strict.collect()
        assert removed(planned, "snapshot") == removed(done, "snapshot") == set(series[:2])
        # The layers of a snapshot go with it.
        assert {entry.kind for entry in planned} >= {entry.kind for entry in done}
        assert strict.collect() == []


def test_a_paused_job_ends_with_its_time(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="kept"))
    engine.run(shell("sleep 1000", name="over"))
    engine.pause("kept", mode="filesystem", ttl=3600)
    over = engine.pause("over", mode="process", ttl=0).snapshot
    assert removed(engine.collect(), "job", "snapshot") == {engine_job(engine, "over", over)}
    assert [job.name for job in engine.jobs(ended=True)] == ["kept"]
    engine.resume("kept")
    assert engine.job("kept").state is JobState.RUNNING


def engine_job(engine: Engine, name: str, snapshot: str) -> str:
    """The id of a job that isn't there any more, from the journal."""
    with pytest.raises(NotFound):
        engine.job(name)
    return next(event.job or "" for event in engine._root.journal.read() if event.snapshot == snapshot and event.job)


def test_a_snapshot_that_was_taken_ends_with_its_time(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    taken = engine.snapshot_take("a", ttl=0).snapshot
    assert removed(engine.collect(), "snapshot") == {taken}
    assert engine.job("a").state is JobState.RUNNING


@pytest.mark.parametrize("ttl", [-1.0, float("nan"), float("inf"), 1e300])
def test_a_time_that_is_none(engine: Engine, ttl: float) -> None:
    engine.run(shell("sleep 1000", name="a"))
    with pytest.raises(InvalidInput):
        engine.pause("a", ttl=ttl)
    assert engine.job("a").state is JobState.RUNNING


def test_what_is_pinned_or_resumed_after_the_verdict_stays(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    loose, paused = (engine.snapshot_take("a", ttl=0).snapshot, engine.pause("a", mode="filesystem", ttl=0).snapshot)
    verdicts = retain.verdicts(engine._root)
    assert [verdict.keep for verdict in verdicts] == [False, False]
    engine.snapshot_pin(loose)
    engine.resume("a")
    assert [retain.execute(engine._root, verdict) for verdict in verdicts] == [False, False]
    assert [entry.id for entry in engine.snapshots()] == [loose]
    assert engine.job("a").snapshot is None
    assert paused not in {entry.id for entry in engine.snapshots()}  # the resume took it: it was the job's own


def test_what_is_being_archived_stays(engine: Engine) -> None:
    engine.run(shell("head -c 20000000 /dev/urandom > /big; sync; echo done > /done; sleep 1000", name="a"))
    upper = engine.config.root / "layers" / str(engine.job("a").upper) / "upper"
    wait_for((upper / "done").exists)
    snapshot = engine.pause("a", mode="filesystem", ttl=0).snapshot
    reached, go_on = threading.Event(), threading.Event()

    def hold(_done: int, _total: int) -> None:
        reached.set()
        assert go_on.wait(30)

    archiver = threading.Thread(target=engine.snapshot_archive, args=(snapshot,), kwargs={"progress": hold})
    archiver.start()
    try:
        assert reached.wait(30)
        assert removed(engine.collect(), "job", "snapshot") == set()
    finally:
        go_on.set()
        archiver.join()
    assert engine.snapshot(snapshot).archive
    assert removed(engine.collect(), "job") != set()
    assert engine.snapshots() == []


def test_the_quota_of_bytes(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    sizes = (12, 8, 4)
    for size in sizes:
        engine.run(shell(f"head -c {size << 20} /dev/urandom > /big; sync; echo > /done; sleep 1000", name=f"b{size}"))
        layer = engine.config.root / "layers" / str(engine.job(f"b{size}").upper)
        wait_for((layer / "upper/done").exists)
        engine.pause(f"b{size}", mode="filesystem")
    with configured(engine, quota={"bytes": 14 << 20}) as strict:
        strict.collect()
        assert {job.name for job in strict.jobs()} == {"a", "b8", "b4"}
        strict.snapshot_archive(strict.job("b8").snapshot or "")  # now it is there twice
        strict.collect()
        assert {job.name for job in strict.jobs()} == {"a", "b4"}


def test_a_clock_that_was_set_forward_takes_nothing(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    engine.pause("a", mode="filesystem", ttl=3600)
    assert engine.collect() == []
    file = engine.config.root / "clock.json"
    clock = json.loads(file.read_bytes())
    engine.config.root.joinpath("clock.json").write_text(json.dumps({**clock, "wall": clock["wall"] - 86400}))
    assert engine.verdicts()[0].reason == "the clock was set forward: ages don't count for a day"
    assert engine.collect() == []
    assert [event.kind for event in engine.events()].count("retention.clock") == 1
    assert [job.name for job in engine.jobs()] == ["a"]


def test_as_a_command(engine: Engine, serac: Command) -> None:
    engine.run(shell("sleep 1000", name="a"))
    kept = engine.snapshot_pin(engine.pause("a", mode="filesystem").snapshot).id
    engine.resume("a")
    serac.good("pause", "a", "--ttl", "0s", "--archive", "never")
    job = engine.job("a")
    said = serac.good("gc", "--dry-run")
    assert f"would keep snapshot {kept}: it is pinned\n" in said
    assert f"would remove job {job.id}: its time ended" in said
    assert ("job", job.id) in {(entry["kind"], entry["id"]) for entry in serac.json("gc")["removed"]}
    assert engine.verdicts() == [Verdict(snapshot=kept, keep=True, held=True, reason="it is pinned")]
