"""A base is warmed with what jobs really read of it, as a run of one has shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import Command, serac
from roots import shell

from engine import Engine, base
from engine.base import DirSource
from engine.errors import CommandNotFound, InUse, ToolFailed
from engine.lifecycle import bases

pytestmark = pytest.mark.root

__all__ = ["serac"]

SIZE = 4 << 20
READS = "cat /data/1 > /dev/null"


@pytest.fixture
def wide(engine: Engine, small_tree: Path) -> Path:
    """The image of a base of which no job needs more than a little."""
    data = small_tree / "data"
    data.mkdir(exist_ok=True)
    for number in range(24):
        (data / str(number)).write_bytes(os.urandom(SIZE))
    try:
        return engine.config.root / "bases" / engine.base_build("wide", DirSource(path=small_tree)).digest
    finally:
        for file in data.iterdir():
            file.unlink()
        data.rmdir()


def spec(script: str = READS):  # type: ignore[no-untyped-def]
    from msgspec.structs import replace

    return replace(shell(script), base="wide")


def test_what_a_job_reads_is_noted_and_brought_in(engine: Engine, wide: Path) -> None:
    noted = engine.base_profile(spec())
    whole = engine.base("wide").size
    assert SIZE <= noted.size < whole / 4
    assert engine.jobs(ended=True) == []
    bases._cool(engine._root, engine.base("wide"))
    assert base.resident(wide).size == 0
    warmth = engine.base_warm("wide")
    assert (warmth.size, warmth.cached_before, warmth.cached_after) == (noted.size, 0, noted.size)
    assert engine.base_warm("wide", whole=True).cached_after == whole


def test_what_does_not_end_well_is_not_noted(engine: Engine, wide: Path) -> None:
    with pytest.raises(ToolFailed, match="status 3: so it is"):
        engine.base_profile(spec("echo so it is; exit 3"))
    with pytest.raises(CommandNotFound):
        engine.base_profile(spec().__class__(base="wide", argv=("/none",)))
    assert engine.jobs(ended=True) == []
    assert not (wide / "profile.json").exists()
    assert engine.base_warm("wide").size == engine.base("wide").size


def test_a_base_that_is_used_is_not_cooled(engine: Engine, wide: Path) -> None:
    job = engine.run(spec("sleep 1000"))
    with pytest.raises(InUse, match=job.name):
        engine.base_profile(spec())
    engine.pause(job.id, mode="filesystem")
    assert engine.base_profile(spec()).size
    assert engine.resume(job.id).mode == "filesystem"


def test_a_profile_that_can_not_be_read_is_none(engine: Engine, wide: Path) -> None:
    (wide / "profile.json").write_text("{")
    assert engine.base_warm("wide").size == engine.base("wide").size


def test_as_a_command(engine: Engine, wide: Path, serac: Command) -> None:
    assert " are read\n" in serac.good("base", "profile", "wide", "--", "/bin/sh", "-c", READS)
    assert serac.json("base", "warm", "wide")["size"] < engine.base("wide").size
    assert serac.json("base", "warm", "--whole", "wide")["size"] == engine.base("wide").size
    status, lines = serac.error("base", "profile", "wide")
    assert (status, lines[0]) == (200, "serac: no command")
