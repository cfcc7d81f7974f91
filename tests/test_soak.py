"""Two hundred rounds of a job's whole life on one engine leave the host and the root as they were."""

from __future__ import annotations

import leftovers
import pytest
from roots import inside, on_disk, shell, until, wait_for

from engine import Engine, JobState

pytestmark = pytest.mark.root

ROUNDS = 200
COUNTED = 20
"""rounds between two counts: what is left behind is found near the round that left it"""

WRITES = "echo round >> /log; echo x > /new; rm -f /src/lower; mkdir -p /d/e; ln -f /new /d/link; mv /d /moved; "


def test_many_rounds_leave_all_as_it_was(engine: Engine) -> None:
    host, files = leftovers.count(), on_disk(engine.config.root)
    for number in range(1, ROUNDS + 1):
        one_round(engine, number)
        if number % COUNTED == 0:
            engine._root.await_removals()
            assert leftovers.difference(host, leftovers.settled(host)) == [], f"after round {number}"
            assert on_disk(engine.config.root) == files, f"after round {number}"
    assert (engine.jobs(ended=True), engine.snapshots()) == ([], [])


def one_round(engine: Engine, number: int) -> None:
    """Run, write, pause, resume, remove; every second resume stacks, and some rounds bring a fork and a session."""
    engine.run(shell(f"{WRITES} echo up; sleep 1000", name="a"))
    until(engine, "a", b"up\n")
    snapshot = engine.pause("a", mode="filesystem").snapshot
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
    engine.run(shell("while :; do date >> /ticks; echo tick; sleep 0.01; done", name="a"))
    until(engine, "a", b"tick\n")
    engine.pause("a", mode="filesystem")
    host, files = leftovers.count(), on_disk(engine.config.root).keys()
    for _ in range(50):
        engine.resume("a")
        engine.pause("a", mode="filesystem")
    engine._root.await_removals()
    assert leftovers.difference(host, leftovers.settled(host)) == []
    assert on_disk(engine.config.root).keys() == files
    job = engine.job("a")
    assert (job.state, len(job.layers), job.pauses) == (JobState.PAUSED, 1, 51)
