"""A paused job that gets cold: only images are left of it, and it goes on from them as from its directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from roots import count, inside, shell, until, wait_for

from engine import Engine, JobState
from engine.errors import Busy, Damaged, InUse, NotFound, WrongState
from engine.lifecycle import demote
from engine.model import Mode
from engine.store import locked

pytestmark = pytest.mark.root

COUNTS = "i=0; while :; do i=$((i+1)); echo $i > /count; echo tick $i; sleep 0.1; done"


def directories(engine: Engine) -> list[str]:
    """What the layers on disk have beyond records, by their names."""
    layers = engine.config.root / "layers"
    return sorted(path.name for path in layers.glob("*/*") if path.suffix != ".json")


@pytest.mark.parametrize("mode", ["process", "filesystem"])
def test_a_cold_job_goes_on_as_if_it_were_warm(engine: Engine, mode: Mode) -> None:
    engine.run(shell(COUNTS, name="a"))
    inside(engine, "a", "echo mine > /file; ln /file /other; rm /src/lower; chown 7:8 /file")
    until(engine, "a", b"tick 3\n")
    paused = engine.pause("a", mode=mode)
    assert "upper" in directories(engine)
    (gone,) = engine.demote("a")
    assert (gone.kind, gone.id) == ("directory", engine.snapshot(paused.snapshot).layers[-1])
    assert directories(engine) == []
    assert engine.demote("a") == []
    assert engine.job("a").state is JobState.PAUSED
    assert engine.snapshot_verify(paused.snapshot) == []
    resumed = engine.resume("a")
    assert (resumed.strategy, resumed.mode) == ("stack", mode)
    assert inside(engine, "a", "cat /other; ls /src; stat -c '%u:%g %h' /file") == "mine\n7:8 2\n"
    before = count(engine, "a")
    assert before >= 3 or mode == "filesystem"
    wait_for(lambda: count(engine, "a") > before)


def test_a_chain_gets_cold_as_a_whole(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    for number in range(3):
        inside(engine, "a", f"echo {number} > /file{number}")
        engine.snapshot_pin(engine.pause("a", mode="filesystem").snapshot)
        if number < 2:
            engine.resume("a")
    assert len(engine.demote("a")) == 3
    assert directories(engine) == []
    engine.resume("a")
    assert inside(engine, "a", "cat /file*") == "0\n1\n2\n"


def test_what_others_run_on_stays_warm(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    snapshot = engine.pause("a", mode="filesystem").snapshot
    engine.fork(snapshot, name="b")
    with pytest.raises(InUse):
        engine.demote("a")
    assert demote.rest(engine.job("a"), demote.rows_of(engine._root)) == "shared"
    engine.remove("b", force=True)
    assert len(engine.demote("a")) == 1
    engine.fork(snapshot, name="b")
    assert inside(engine, "b", "ls /src") == "lower\n"


def test_only_a_paused_job_gets_cold(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    for change in (lambda _: None, engine.freeze):
        change("a")
        with pytest.raises(WrongState):
            engine.demote("a")
    with pytest.raises(NotFound):
        engine.demote("b")


def test_an_image_that_is_not_whole_is_no_reason_to_give_up_the_directory(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    inside(engine, "a", "head -c 100000 /dev/urandom > /noise; md5sum /noise > /sum")
    snapshot = engine.pause("a", mode="process", archive="wait").snapshot
    (layer,) = engine._root.catalog.chain(engine.snapshot(snapshot).layers)
    blob = engine.config.root / "images" / str(layer.image) / "data.blob"
    os.truncate(blob, blob.stat().st_size - 1)
    with pytest.raises(Damaged):
        engine.demote("a")
    assert engine.resume("a").strategy == "reuse"
    assert inside(engine, "a", "md5sum -c /sum") == "/noise: OK\n"


def test_what_is_being_read_is_left(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    snapshot = engine.pause("a", mode="filesystem", archive="wait").snapshot
    layer = engine.config.root / "layers" / engine.snapshot(snapshot).layers[-1]
    with locked(layer, timeout=0, shared=True), pytest.raises(Busy):
        engine.demote("a")
    assert list(Path(engine.config.root / "tmp").iterdir()) == []
    assert len(engine.demote("a")) == 1


def test_the_way_down_is_told(engine: Engine) -> None:
    def rest() -> demote.Rest:
        return demote.rest(engine.job("a"), demote.rows_of(engine._root))

    engine.run(shell("sleep 1000", name="a"))
    snapshot = engine.pause("a").snapshot
    found = [rest()]
    demote.archiving.make_due(engine._root, snapshot)
    found.append(rest())
    engine.snapshot_archive(snapshot)
    demote.archiving.make_due(engine._root, snapshot)  # nothing is due any more
    found.append(rest())
    engine.demote("a")
    found.append(rest())
    assert found == ["local", "due", "archived", "cold"]
