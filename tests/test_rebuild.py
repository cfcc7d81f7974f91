"""A catalog that is lost or damaged is made anew from what lies on the disk."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command, serac
from remains import killed
from roots import count, inside, shell, wait_for
from worlds import REBUILDING, checked, killed_repair, lose_catalog, rows, whole, world

from engine import Engine, JobState
from engine.errors import Damaged, NotFound

pytestmark = pytest.mark.root

__all__ = ["serac", "world"]


def damage_catalog(root: Path) -> None:
    size = (root / "catalog.sqlite").stat().st_size
    with open(root / "catalog.sqlite", "r+b") as file:
        file.write(os.urandom(size))
    for file in ("catalog.sqlite-wal", "catalog.sqlite-shm"):
        (root / file).unlink(missing_ok=True)


def spoil_row(root: Path) -> None:
    connection = sqlite3.connect(root / "catalog.sqlite")
    connection.execute("UPDATE snapshot SET document = '{' WHERE id = (SELECT min(id) FROM snapshot)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("spoil", [lose_catalog, damage_catalog, spoil_row])
def test_a_lost_catalog_is_made_anew(world: Engine, spoil: Callable[[Path], None], serac: Command) -> None:
    before, root = rows(world), world.config.root
    world.close()
    spoil(root)
    if spoil is not spoil_row:
        with pytest.raises(Damaged):
            Engine(root)
    (lost,) = checked(world).violations
    assert (lost.subject, lost.mends) == ("the catalog", True)
    status, lines = serac("check").returncode, serac.good("check", "--repair").splitlines()
    assert status == Damaged.status
    assert lines[0].startswith("repaired: the catalog: ")
    assert len(lines) == 1  # nothing was lost
    assert rows(world) == before
    whole(world)
    assert world.sessions("ended")[0].exit == 3
    goes_on(world)


def goes_on(engine: Engine) -> None:
    """What each job does next is what it would have done."""
    first = count(engine, "runs")
    wait_for(lambda: count(engine, "runs") > first)
    assert engine.thaw("frozen").state is JobState.RUNNING
    assert engine.snapshot(engine.job("files").snapshot or "").context.state == {"ticket": 1}
    assert engine.resume("files").strategy == "reuse"
    assert engine.resume("lives").mode == "process"
    assert engine.resume("fork").mode == "filesystem"
    assert inside(engine, "stacked", "echo $NAME").strip() == "stacked"
    (imaged,) = (entry for entry in engine.snapshots() if entry.name == "imaged")
    assert engine.snapshot_verify(imaged.id) == []
    engine.fork(imaged.id, name="again")
    assert count(engine, "again") > 0


def test_an_engine_that_is_open_sees_the_new_catalog(world: Engine) -> None:
    names = {job.name for job in world.jobs(ended=True)}
    lose_catalog(world.config.root)
    checked(world, repair=True)
    assert {job.name for job in world.jobs(ended=True)} == names
    world.stop("runs", grace=0)
    with Engine(world.config.root) as other:
        assert other.job("runs").state in (JobState.EXITED, JobState.FAILED)


def test_names_of_bases_come_back(engine: Engine, small_tree: Path, tmp_path: Path) -> None:
    from engine.base import DirSource

    tree = tmp_path / "other"
    shutil.copytree(small_tree, tree, symlinks=True)
    (tree / "etc/other").write_text("x")
    engine.base_build("alias", DirSource(path=small_tree))
    engine.base_build("moves", DirSource(path=small_tree))
    engine.base_build("moves", DirSource(path=tree))
    engine.base_build("gone", DirSource(path=tree))
    engine.base_remove("gone")
    before = engine.bases()
    engine.close()
    lose_catalog(engine.config.root)
    assert checked(engine, repair=True).violations == ()
    assert engine.bases() == before
    assert engine.base("moves").names == ("moves",)


@pytest.mark.parametrize("step", REBUILDING)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_repair_that_is_killed_is_done_again(engine: Engine, step: str, when: str) -> None:
    engine.run(shell("sleep 1000", name="a"))
    engine.pause("a", mode="filesystem")
    before = rows(engine)
    engine.close()
    lose_catalog(engine.config.root)
    killed_repair(engine, f"{step}:{when}")
    assert checked(engine, repair=True).violations == ()
    assert rows(engine) == before
    assert engine.resume("a").strategy == "reuse"


def test_what_can_not_be_placed_is_kept(world: Engine) -> None:
    """Layers that a snapshot needs are gone: the others come back, and what is left of it lies in lost/."""
    root = world.config.root
    chain = world.snapshot(world.job("fork").snapshot or "").layers
    files = world.job("files").snapshot
    world.stop("stacked", grace=0)
    world.close()
    shutil.rmtree(root / "layers" / chain[0])
    (root / "layers" / "0123456789ab").mkdir()
    (root / "layers" / "0123456789ab" / "snapshot.json").write_text("{")
    lose_catalog(root)
    found = checked(world, repair=True)
    said = "\n".join(found.repaired)
    assert f"layer {chain[0]} is gone" in said
    assert "snapshot.json" in said
    (lost,) = (root / "lost").iterdir()
    assert (lost / "layers" / chain[1]).is_dir()
    assert (lost / "layers" / "0123456789ab" / "snapshot.json").read_text() == "{"
    assert {job.name for job in world.jobs()} == {"runs", "frozen", "files", "lives"}
    assert world.job("files").snapshot == files
    assert found.violations == ()
    shutil.rmtree(root / "lost")


def test_a_pause_that_was_killed_before_its_commit(engine: Engine) -> None:
    """The catalog is lost on top: the job was sealed and frozen, so that is what it is paused to."""
    engine.run(shell("echo x > /x; sleep 1000", name="a"))
    wait_for(lambda: inside(engine, "a", "cat /x || true") == "x\n")
    engine.close()
    killed(engine, "engine.pause('a', mode='filesystem')", "pause.commit:before")
    lose_catalog(engine.config.root)
    assert checked(engine, repair=True).violations == ()
    assert engine.job("a").state is JobState.PAUSED
    engine.resume("a")
    wait_for(lambda: inside(engine, "a", "cat /x") == "x\n")  # its second life writes it again


def test_a_new_catalog_never_takes_the_place_of_a_lost_one(engine: Engine) -> None:
    """It would know nothing of what is there, and the sweep would take it."""
    snapshot = engine.pause(engine.run(shell("sleep 1000")).id).snapshot
    engine.close()
    lose_catalog(engine.config.root)
    (engine.config.root / "tmp" / "marker").mkdir()
    for _ in range(2):
        with pytest.raises(Damaged, match="lost its catalog"):
            Engine(engine.config.root)
    assert not (engine.config.root / "catalog.sqlite").exists()
    checked(engine, repair=True)
    assert engine.snapshot(snapshot).job
    with pytest.raises(NotFound):
        engine.job("b")
