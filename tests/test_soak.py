"""Two hundred rounds of a job's whole life on one engine leave the host and the root as they were."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from roots import inside, shell, until, wait_for

from engine import Engine, JobState

pytestmark = pytest.mark.root

ROUNDS = 200
COUNTED = 20
"""rounds between two counts: what is left behind is found near the round that left it"""

WRITES = "echo round >> /log; echo x > /new; rm -f /src/lower; mkdir -p /d/e; ln -f /new /d/link; mv /d /moved; "


def test_many_rounds_leave_all_as_it_was(engine: Engine) -> None:
    host, files = leftovers.count(), dict(described(engine.config.root))
    for number in range(1, ROUNDS + 1):
        one_round(engine, number)
        if number % COUNTED == 0:
            assert leftovers.difference(host, leftovers.settled(host)) == [], f"after round {number}"
            assert dict(described(engine.config.root)) == files, f"after round {number}"
    assert (engine.jobs(ended=True), engine.snapshots()) == ([], [])


def one_round(engine: Engine, number: int) -> None:
    """Run, write, pause, resume, remove; every second resume stacks, and some rounds bring a fork and a session."""
    engine.run(shell(f"{WRITES} echo up; sleep 1000", name="a"))
    until(engine, "a", b"up\n")
    snapshot = engine.pause("a").snapshot
    stacked = number % 2 == 0
    if stacked:
        engine.snapshot_pin(snapshot)
    assert engine.resume("a").strategy == ("stack" if stacked else "reuse")
    if number % 10 == 0:
        engine.fork(snapshot, name="b")
        assert inside(engine, "b", "cat /moved/link") == "x\n"
        engine.remove("b", force=True)
    wait_for(lambda: engine.sessions("a")[0].running)
    engine.remove("a", force=True)
    if stacked:
        engine.snapshot_remove(snapshot)


def test_many_pauses_of_one_job_leave_it_one_layer(engine: Engine) -> None:
    engine.run(shell("while :; do date >> /ticks; sleep 0.01; done", name="a"))
    engine.pause("a")
    host, files = leftovers.count(), {path for path, _ in described(engine.config.root)}
    for _ in range(50):
        engine.resume("a")
        engine.pause("a")
    assert leftovers.difference(host, leftovers.settled(host)) == []
    assert {path for path, _ in described(engine.config.root)} == files
    job = engine.job("a")
    assert (job.state, len(job.layers), job.pauses) == (JobState.PAUSED, 1, 51)


def described(root: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every path below a root with its mode, owner, links, and for files size and time; of the catalog the path."""
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        facts: tuple[int, ...] = (info.st_mode, info.st_uid, info.st_gid)
        if stat.S_ISREG(info.st_mode) and not path.name.startswith("catalog.sqlite"):
            facts += (info.st_nlink, info.st_size, info.st_mtime_ns)
        yield os.fspath(path), facts
