"""The wall clock jumps, back and forward: what depends on time is right all the same."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import invariants
import pytest
from roots import count, inside, wait_for
from scenes import job

from engine import Engine, JobState
from engine.model import Mode

pytestmark = pytest.mark.root

DAY = 86400.0
JUMPS = (0.0, -DAY, -400 * DAY, 3650 * DAY, -DAY)
"""seconds by which the clock is off"""


@contextlib.contextmanager
def clock(off: float) -> Iterator[None]:
    real = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + off)
        yield


@pytest.mark.parametrize("mode", ["filesystem", "process"])
def test_the_newest_snapshot_of_a_job_is_the_last_whatever_the_clock_says(engine: Engine, mode: Mode) -> None:
    job(engine)
    made = []
    for off in JUMPS:
        with clock(off):
            made.append(engine.pause("a", mode=mode).snapshot)
            engine.snapshot_pin(made[-1])
            engine.resume("a")
    assert [entry.id for entry in engine.snapshots("a")] == made
    parents = [entry.parent for entry in engine.snapshots("a")]
    assert parents == [None, *made[:-1]]
    inside(engine, "a", "md5sum -c /sum")
    invariants.hold(engine)


def test_work_goes_on_when_the_clock_jumps_in_the_middle(engine: Engine, tmp_path: Path) -> None:
    job(engine)
    with clock(10 * DAY):
        snapshot = engine.pause("a", mode="process", archive="wait").snapshot
    with clock(-10 * DAY):
        assert engine.snapshot_verify(snapshot) == []
        engine.snapshot_export(snapshot, os.fspath(tmp_path / "file"))
        assert engine.collect() == []
        engine.resume("a")
        before = count(engine, "a")
        wait_for(lambda: count(engine, "a") > before)
        assert engine.stop("a", grace=20).state is JobState.EXITED
    assert engine.snapshot_import(os.fspath(tmp_path / "file")).id == snapshot
    with clock(-10 * DAY):
        engine.fork(snapshot, name="b")
        assert inside(engine, "b", "wc -l < /lives") == "1\n"
    invariants.hold(engine)
