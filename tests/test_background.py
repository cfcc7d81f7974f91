"""Work in the background: it gets done though nobody waits for it, and what comes in between does no harm."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Command, serac
from roots import inside, shell, wait_for

from engine import Engine

__all__ = ["serac"]  # fixture

pytestmark = pytest.mark.root

BIG = 300 << 20
"""bytes, no two blocks the same, so that archiving takes more than a moment"""


def big(engine: Engine, name: str) -> str:
    """A job that was paused; its snapshot, which is being archived."""
    engine.run(shell("sleep 1000", name=name))
    inside(engine, name, f"head -c {BIG} /dev/urandom > /big; echo {name} > /small")
    return engine.pause(name, mode="filesystem", archive="background").snapshot


def workers(engine: Engine) -> list[int]:
    """The processes that work in the background of a root."""
    wanted = [b"engine.lifecycle.background", os.fsencode(engine.config.root)]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends while it is looked at
            if (process / "cmdline").read_bytes().split(b"\0")[-3:-1] == wanted:
                found.append(int(process.name))
    return found


@pytest.fixture
def idle(engine: Engine) -> Iterator[None]:
    """Nothing works in the background when the test is through; what still does is killed."""
    yield
    left = workers(engine)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def stopped(engine: Engine, snapshot: str) -> int:
    """The worker, standing still in the middle of archiving a snapshot."""
    wait_for(lambda: engine.archiving().get(snapshot, (0, 0))[0] > 0)
    (worker,) = workers(engine)
    os.kill(worker, signal.SIGSTOP)
    wait_for(lambda: all(") T " in stat.read_text() for stat in Path(f"/proc/{worker}/task").glob("*/stat")))
    assert engine.snapshot(snapshot).archive is None, "it was too quick"
    return worker


def ended(engine: Engine) -> None:
    wait_for(lambda: not workers(engine), patience=120)


def nothing_but(engine: Engine, *snapshots: str) -> None:
    """In the root there is what these snapshots need, and no trace of anything that came to nothing."""
    engine._root.await_removals()
    with Engine(engine.config.root) as other:  # it sweeps
        other.collect()
    assert [entry.id for entry in engine.snapshots()] == list(snapshots)
    wanted = {layer.image for layer in engine._root.catalog.layers()} - {None}
    assert {path.name for path in (engine.config.root / "images").iterdir()} == wanted
    assert list((engine.config.root / "tmp").iterdir()) == []
    assert engine.archiving() == {}


def intact(engine: Engine, snapshot: str) -> None:
    assert engine.snapshot(snapshot).archive is not None
    assert not engine.snapshot(snapshot).due
    assert engine.snapshot_verify(snapshot) == []


@pytest.mark.usefixtures("idle")
def test_a_pause_is_archived_though_nobody_waits(engine: Engine, serac: Command) -> None:
    snapshot = big(engine, "a")
    assert engine.snapshot(snapshot).due
    worker = stopped(engine, snapshot)
    done, total = engine.archiving()[snapshot]
    assert 0 < done < total
    assert BIG <= total <= 1.1 * BIG
    (shown,) = serac.json("ps")
    for found in (shown, serac.json("show", "a")):
        assert found["archive"] == {"state": "archiving", "done": done, "total": total}
    assert os.getpriority(os.PRIO_PROCESS, worker) == 19
    os.kill(worker, signal.SIGCONT)
    ended(engine)
    intact(engine, snapshot)
    assert serac.json("show", "a")["archive"]["state"] == "archived"
    nothing_but(engine, snapshot)


@pytest.mark.usefixtures("idle")
def test_one_worker_does_the_work_of_many_pauses(engine: Engine) -> None:
    first = big(engine, "a")
    worker = stopped(engine, first)
    names = ["b", "c", "d"]
    for name in names:
        engine.run(shell("sleep 1000", name=name))
    later = [engine.pause(name, mode="filesystem", archive="background").snapshot for name in names]
    wait_for(lambda: len(workers(engine)) == 2)  # one waits for its turn, and no more than one
    assert engine.archiving().keys() == {first}
    os.kill(worker, signal.SIGCONT)
    ended(engine)
    for snapshot in (first, *later):
        intact(engine, snapshot)
    nothing_but(engine, first, *later)


@pytest.mark.usefixtures("idle")
def test_flushing_waits_for_no_archiving(engine: Engine) -> None:
    first = big(engine, "a")
    worker = stopped(engine, first)
    names = ["b", "c"]
    for name in names:
        engine.run(shell("sleep 1000", name=name))
    later = [engine.pause(name, mode="filesystem", archive="never", durability="fast").snapshot for name in names]
    wait_for(lambda: all(engine.snapshot(snapshot).unflushed is None for snapshot in later))
    assert engine.snapshot(first).archive is None
    os.kill(worker, signal.SIGCONT)
    ended(engine)
    nothing_but(engine, first, *later)


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("who", ["the next worker", "somebody who asks for it"])
def test_a_killed_worker_leaves_its_work_to_others(engine: Engine, who: str) -> None:
    first = big(engine, "a")
    os.kill(stopped(engine, first), signal.SIGKILL)
    ended(engine)
    assert engine.snapshot(first).due
    snapshots = [first]
    if who == "the next worker":
        engine.run(shell("sleep 1000", name="b"))
        snapshots.append(engine.pause("b", mode="filesystem", archive="background").snapshot)
        wait_for(lambda: not any(entry.due for entry in engine.snapshots()))
        ended(engine)
    else:
        engine.snapshot_archive(first)
    for snapshot in snapshots:
        intact(engine, snapshot)
    nothing_but(engine, *snapshots)


def resume(engine: Engine) -> None:
    assert engine.resume("a").strategy == "reuse"
    inside(engine, "a", "echo other > /small; rm /big")


def remove(engine: Engine) -> None:
    engine.remove("a")


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("verb", [resume, remove])
def test_what_is_gone_meanwhile_is_given_up(engine: Engine, verb: Callable[[Engine], None]) -> None:
    worker = stopped(engine, big(engine, "a"))
    verb(engine)
    os.kill(worker, signal.SIGCONT)
    ended(engine)
    nothing_but(engine)
    if verb is resume:
        snapshot = engine.pause("a", mode="filesystem", archive="wait").snapshot
        engine.fork(snapshot, name="b")
        assert inside(engine, "b", "cat /small; test -e /big || echo gone") == "other\ngone\n"
