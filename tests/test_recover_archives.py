"""An engine is killed before and after each step of the verbs that deal with images: archiving, collecting, demotion ..

What their crash tables promise: no snapshot is lost or half done, the verb called again succeeds, what the job had
written is there, and when all is removed nothing is left."""

from __future__ import annotations

import os
from pathlib import Path

import leftovers
import pytest
from roots import inside, shell, wait_for
from test_recover import ELSEWHERE, PLACES, killed, steps_of_the_source

from engine import Engine

pytestmark = pytest.mark.root

STEPS = sorted(name for name in steps_of_the_source() if ELSEWHERE.match(name))
VERBS = {
    "archive": "engine.snapshot_archive(engine.job('a').snapshot)",
    "flatten": "engine.snapshot_flatten(engine.job('a').snapshot)",
    "collect": "engine.collect()",
    "import": "engine.snapshot_import(os.environ['TREE'])",
    "demote": "engine.demote('a')",
}


def test_every_step_has_a_verb_that_reaches_it() -> None:
    assert {name.split(".")[0] for name in STEPS} == set(VERBS)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", STEPS)
def test_a_killed_engine_loses_nothing(engine: Engine, tmp_path: Path, name: str, place: str) -> None:
    engine.close()
    idle = leftovers.count()
    verb = name.split(".")[0]
    prepare(engine, verb, tmp_path / "snapshot.serac")
    engine.close()  # SQLite keeps a closed connection's descriptor while the process has another one to the same file
    assert killed(engine, VERBS[verb], f"{name}:{place}", tmp_path / "snapshot.serac"), f"{name} was not reached"
    with Engine(engine.config.root, timeout=30) as after:
        again(after, verb, tmp_path / "snapshot.serac")
        check(after, verb)
        for job in after.jobs(ended=True):
            after.remove(job.id, force=True)
        for snapshot in after.snapshots():
            after.snapshot_remove(snapshot.id)
        after.collect()
    assert leftovers.difference(idle, leftovers.settled(idle)) == []
    for place_on_disk in ("layers", "images", "jobs", "tmp"):
        assert list((engine.config.root / place_on_disk).iterdir()) == []


def prepare(engine: Engine, verb: str, file: Path) -> None:
    """A job that is paused on a chain of two layers, with its processes; for a collection also what it takes."""
    engine.run(shell("echo first > /first; sleep 1000", name="a"))
    wait_for(lambda: inside(engine, "a", "cat /first 2>/dev/null") == "first\n")
    engine.snapshot_pin(engine.pause("a", mode="filesystem").snapshot)
    engine.resume("a")
    inside(engine, "a", "echo second > /second; rm /src/lower")
    last = engine.pause("a", mode="process").snapshot
    if verb == "collect":
        leave_something(engine)
    elif verb == "import":
        engine.snapshot_export(last, os.fspath(file))
        engine.remove("a")
        engine.collect()


def leave_something(engine: Engine) -> None:
    """Layers that no row needs, an image that no row has, and a directory whose image has the same."""
    engine.run(shell("sleep 1000", name="c"))
    engine.snapshot_archive(engine.pause("c", mode="filesystem").snapshot)
    engine.resume("c")
    engine.snapshot_pin(engine.pause("c", mode="filesystem", archive="wait").snapshot)
    engine.remove("c")
    engine.fork(engine.job("a").snapshot or "", name="b", mode="filesystem")
    engine.snapshot_flatten(engine.job("a").snapshot or "")  # what b has mounted stays until it ends
    engine.stop("b", grace=0)


def again(engine: Engine, verb: str, file: Path) -> None:
    if verb == "archive":
        assert engine.snapshot_archive(engine.job("a").snapshot or "").archive
    elif verb == "flatten":
        assert len(engine.snapshot_flatten(engine.job("a").snapshot or "").layers) == 1
    elif verb == "collect":
        engine.collect()
        assert engine.collect() == []
    elif verb == "demote":
        engine.demote("a")
        assert engine.demote("a") == []
        assert not any(layer.directory for layer in engine._root.catalog.layers())
    else:
        engine.snapshot_import(os.fspath(file))


def check(engine: Engine, verb: str) -> None:
    """Everything that the job had is there, and its image is whole."""
    if verb == "import":
        engine.fork(newest(engine), name="a")
    else:
        snapshot = engine.job("a").snapshot or ""
        if verb != "collect":
            engine.snapshot_archive(snapshot)
            assert engine.snapshot_verify(snapshot) == []
        engine.resume("a")
    assert inside(engine, "a", "cat /first /second; ls /src") == "first\nsecond\n"


def newest(engine: Engine) -> str:
    return engine.snapshots()[-1].id
