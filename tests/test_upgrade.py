"""serac is upgraded while jobs are paused: what was dumped goes on with the init that it had."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from roots import inside, shell, until

from engine import Engine, launch

pytestmark = pytest.mark.root

COUNTER = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"


@pytest.fixture
def upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another build of serac-init, which does the same; it is what jobs get from the moment it is asked for."""
    newer = tmp_path / "serac-init"
    shutil.copy(launch.program("serac-init"), newer)
    with newer.open("ab") as file:
        file.write(b"another build")
    old = launch.program

    def program(name: str) -> Path:
        return newer if name == "serac-init" else old(name)

    monkeypatch.setattr(launch, "program", program)
    monkeypatch.setattr(launch, "init_inside", launch.init_inside.__wrapped__)
    return newer


def running(engine: Engine, ref: str) -> str:
    """What init executes, by its path in the job."""
    return inside(engine, ref, "readlink /proc/1/exe").strip()


def test_a_dumped_init_stays_what_it_was(engine: Engine, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    engine.run(shell(COUNTER, name="a"))
    until(engine, "a", b"line 3\n")
    before = running(engine, "a")
    snapshot = engine.pause("a", mode="process").snapshot
    request.getfixturevalue("upgraded")
    assert launch.init_inside() != before
    engine.fork(snapshot, name="b")
    engine.resume("a", mode="process")
    for ref in ("a", "b"):
        assert running(engine, ref) == before
        engine.copy_out(ref, "/etc/hostname", os.fspath(tmp_path / ref))  # by that init's own packer
        assert (tmp_path / ref).read_text() == f"{ref}\n"
    engine.pause("a", mode="process")
    engine.resume("a")
    assert running(engine, "a") == before


def test_a_start_from_the_files_takes_the_new_one(engine: Engine, request: pytest.FixtureRequest) -> None:
    engine.run(shell(COUNTER, name="a"))
    before = running(engine, "a")
    engine.pause("a", mode="process")
    request.getfixturevalue("upgraded")
    engine.resume("a", mode="filesystem")
    assert running(engine, "a") == launch.init_inside() != before
