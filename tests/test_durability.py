"""When a pause is done its bytes are on the device; with ``--durability fast`` a little later, and that is told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from commands import Command, serac
from remains import killed
from roots import inside, shell, wait_for
from test_background import ended

from engine import Engine, JobState
from engine.errors import Damaged, InvalidInput, NoSpace
from engine.lifecycle import flush, recover
from engine.model import Snapshot

pytestmark = pytest.mark.root

__all__ = ["serac"]


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left to the background stays there."""
    monkeypatch.setattr("engine.lifecycle.background.start", lambda root: None)


def up(engine: Engine) -> None:
    engine.run(shell("echo x > /x; sleep 1000", name="a"))
    wait_for(lambda: inside(engine, "a", "cat /x || true") == "x\n")


def after_a_reboot(engine: Engine, snapshot: str) -> Snapshot:
    """As if the host had gone down since it was made."""
    old = msgspec.structs.replace(engine.snapshot(snapshot), unflushed="another boot")
    with engine._root.catalog.transaction() as transaction:
        transaction.put_snapshot(old)
    return old


@pytest.mark.parametrize("mode", ["process", "filesystem"])
def test_a_full_pause_flushes(engine: Engine, mode: Any) -> None:
    up(engine)
    result = engine.pause("a", mode=mode)
    assert (result.durability, "flush" in result.timings) == ("full", True)
    assert engine.snapshot(result.snapshot).unflushed is None


@pytest.mark.parametrize("mode", ["process", "filesystem"])
def test_a_fast_pause_leaves_it_to_the_background(engine: Engine, mode: Any) -> None:
    up(engine)
    result = engine.pause("a", mode=mode, durability="fast")
    assert (result.durability, "flush" in result.timings) == ("fast", False)
    assert engine.snapshot(result.snapshot).unflushed
    flush.flush(engine._root)
    assert engine.snapshot(result.snapshot).unflushed is None
    assert engine.resume("a").mode == mode
    assert inside(engine, "a", "cat /x") == "x\n"


def test_a_fast_pause_can_be_resumed_at_once(engine: Engine) -> None:
    up(engine)
    engine.pause("a", durability="fast")
    assert engine.resume("a").strategy == "reuse"
    flush.flush(engine._root)


def test_the_background_does_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    up(engine)
    snapshot = engine.pause("a", durability="fast").snapshot
    wait_for(lambda: engine.snapshot(snapshot).unflushed is None)
    ended(engine)


def test_what_the_host_took_along_is_not_resumed(engine: Engine) -> None:
    up(engine)
    snapshot = after_a_reboot(engine, engine.pause("a", mode="process", durability="fast").snapshot)
    for verb in (lambda: engine.resume("a"), lambda: engine.fork(snapshot.id, name="b")):
        with pytest.raises(Damaged, match="--durability fast"):
            verb()
    assert [job.state for job in engine.jobs(ended=True)] == [JobState.PAUSED]
    flush.flush(engine._root)  # it is too late
    assert engine.snapshot(snapshot.id).unflushed
    (found,) = Engine.check(engine.config.root).violations
    assert (found.subject, found.mends) == (f"snapshot {snapshot.id}", False)
    assert engine.resume("a", mode="filesystem").mode == "filesystem"
    assert inside(engine, "a", "cat /x") == "x\n"


@pytest.mark.parametrize(
    "place", ["flush.flush:before", "flush.flush:after", "flush.commit:before", "flush.commit:after"]
)
def test_a_flush_that_is_killed_is_done_again(engine: Engine, place: str) -> None:
    up(engine)
    snapshot = engine.pause("a", durability="fast").snapshot
    engine.close()
    killed(engine, "__import__('engine.lifecycle.flush').lifecycle.flush.flush(engine._root)", place)
    assert bool(engine.snapshot(snapshot).unflushed) == (place != "flush.commit:after")
    flush.flush(engine._root)
    assert engine.snapshot(snapshot).unflushed is None
    recover.recover(engine._root)
    assert Engine.check(engine.config.root).violations == ()


def test_a_flush_that_fails_is_a_pause_that_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: object) -> None:
        raise OSError(28, "No space left on device")

    up(engine)
    monkeypatch.setattr(flush, "syncfs", fail)
    with pytest.raises(NoSpace):
        engine.pause("a")
    assert engine.job("a").state is JobState.RUNNING
    assert engine.snapshots() == []
    assert inside(engine, "a", "cat /x") == "x\n"


def test_as_a_command(engine: Engine, serac: Command) -> None:
    up(engine)
    done = serac("pause", "a", "--durability", "fast", "--archive", "never")
    assert b"it is not flushed" in done.stderr
    with pytest.raises(InvalidInput):
        engine.pause("a", durability="none")  # type: ignore[arg-type]
    wait_for(lambda: engine.snapshot(engine.job("a").snapshot or "").unflushed is None)
    ended(engine)
